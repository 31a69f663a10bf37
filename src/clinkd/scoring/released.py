"""Answers in the papers' form, `{"id", "image", "question", "annotation", "response"}`: rows for the scripts, and
samples with predictions for the strict scores.

The file name of the image, up to its first "_", is the modality. Nothing is skipped: a row that cannot be used is a
`RowError` that names file, row, id and field.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clinkd.data.codecs import Codec
from clinkd.data.loose import read_loosely
from clinkd.data.modality import read_modality
from clinkd.data.readers.rows import (
    FieldError,
    RowError,
    RowResult,
    SourceRow,
    json_rows,
    make_error_result,
    shorten_value,
)
from clinkd.language.facts import Lexicon
from clinkd.records import BadInput, Candidate, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.scoring.official import ReleasedAnswer
from clinkd.storage import replacing

QUARANTINE = "quarantine"  # as the data room marks what it sets aside
FIELDS = ("image", "annotation", "response")
_ENDS = ("<|im_end|>", "<|endoftext|>")
# marks of turns and padding; those of boxes and references are read, or dropped, with the boxes
_SPECIAL = re.compile(r"<\|(?!box_|object_ref_)\w+\|>|</?s>|<(?:unk|pad|eos|bos)>")


class ReleasedRow(NamedTuple):
    """One good row: the papers' fields, the question, and the place in the file."""

    answered: ReleasedAnswer
    question: str
    number: int
    raw: Any


@dataclass(frozen=True, slots=True)
class Lines:
    """A file of answers: its good rows, and what is wrong with the others."""

    file: Path
    good: Sequence[ReleasedRow]
    bad: Sequence[tuple[RowError, Any]]

    @property
    def rows(self) -> list[ReleasedAnswer]:
        """For the scripts."""
        return [line.answered for line in self.good]

    def without(self, faults: Iterable[tuple[ReleasedRow, FieldError]]) -> Lines:
        """Those rows set among the bad ones."""
        wrong = {line.number: _problem(self.file, line, fault) for line, fault in faults}
        bad = [*self.bad, *((wrong[line.number], line.raw) for line in self.good if line.number in wrong)]
        return Lines(self.file, [line for line in self.good if line.number not in wrong], bad)

    def demand(self) -> None:
        """Raises BadInput with the first bad row, and the number of others."""
        if self.bad:
            more = f" (and {len(self.bad) - 1} more bad rows)" if len(self.bad) > 1 else ""
            raise BadInput(f"{self.bad[0][0]}{more}; --quarantine FILE sets them aside and scores the rest")
        if not self.good:
            raise BadInput(f"{self.file}: no answers in it; give one JSON object a line, with {', '.join(FIELDS)}")

    def set_aside(self, file: Path) -> int:
        """Write each bad row to `file` with what is wrong with it; their number."""
        with replacing(file) as lines:
            for problem, raw in self.bad:
                told = {"clinkd": QUARANTINE, **problem.to_json(), "raw": raw}
                lines.write(f"{json.dumps(told, ensure_ascii=False, default=str)}\n".encode(errors="backslashreplace"))
        return len(self.bad)


def _problem(file: Path, line: ReleasedRow, fault: FieldError) -> RowError:
    return RowError(
        str(file),
        line.number,
        shorten_value(line.answered.id or "?"),
        fault.field,
        shorten_value(fault.value),
        fault.why,
    )


def read_lines(file: Path) -> Lines:
    """The rows of JSON lines or of a JSON list. Raises BadInput where the file is absent, empty or neither."""
    good: list[ReleasedRow] = []
    bad: list[tuple[RowError, Any]] = []
    for row in json_rows(file):
        entry = row if isinstance(row, RowResult) else None
        if isinstance(row, SourceRow):
            try:
                good.append(_line(row))
                continue
            except FieldError as fault:
                entry = make_error_result(row.file, row.number, fault, row.raw, row.value)
        assert entry and entry.problem
        bad.append((entry.problem, entry.raw))
    return Lines(file, good, bad)


def _line(row: SourceRow) -> ReleasedRow:
    value = row.value
    for field in FIELDS:
        if field not in value:
            raise FieldError(
                field, None, "absent; each row needs image, annotation (the truth) and response (the answer)"
            )
        if not isinstance(value[field], str):
            raise FieldError(field, value[field], "text is wanted")
    if not value["image"].strip():
        raise FieldError("image", value["image"], "empty; the name of the image tells its modality")
    if not value["annotation"].strip():
        raise FieldError("annotation", value["annotation"], "empty; without a truth there is nothing to judge by")
    question = value.get("question") or ""
    if not isinstance(question, str):
        raise FieldError("question", question, "text is wanted")
    name = value.get("id", row.number)
    if not isinstance(name, str | int | float):
        raise FieldError("id", name, "text or a number is wanted")
    return ReleasedRow(
        ReleasedAnswer(str(name), value["image"], value["annotation"], value["response"]), question, row.number, row.raw
    )


# ---- strict ---------------------------------------------------------------------------------------------------------


class Questions(NamedTuple):
    """Rows as samples with predictions, the words to judge class names by, and what was counted on the way."""

    samples: list[Sample]
    predictions: list[Prediction]
    lexicon: Lexicon
    told: Counter[str]


def truth_faults(lines: Lines, task: Task, codec: Codec) -> list[tuple[ReleasedRow, FieldError]]:
    """Rows whose truth the declared codec cannot read; strict scores cannot be had of them."""
    return [] if task is not Task.VG else [(ln, fault) for ln in lines.good if (fault := _truth_fault(ln, codec))]


def _truth_fault(line: ReleasedRow, codec: Codec) -> FieldError | None:
    unread = _truth(line.answered.annotation, Task.VG, codec).unread
    if not unread:
        return None
    return FieldError(
        "annotation", unread[0], f"no box that --boxes {codec.name} can read; correct it, or declare another"
    )


def questions(lines: Lines, task: Task, codec: Codec, by: str) -> Questions:
    """Samples and predictions for the strict scores. The truth is read by the declared codec, in whatever spelling.

    Answers keep all their text, special tokens aside. Where most of them end with an end token, those that do not were
    cut by a length limit.
    """
    told: Counter[str] = Counter()
    ended = [_ended(line.answered.response) for line in lines.good]
    by_token = sum(ended) * 2 > len(ended)
    ids = Counter(line.answered.id for line in lines.good)
    again = Counter((line.answered.id, line.answered.image, line.question) for line in lines.good)
    told["rows with id, image and question of another row; each is counted"] += sum(n for n in again.values() if n > 1)
    modality = _modalities(told)
    samples, predictions = [], []
    for line, whole in zip(lines.good, ended, strict=True):
        row = line.answered
        name = row.id if ids[row.id] == 1 else f"{row.id} (row {line.number})"
        told["ids that stand in several rows, told apart by the row"] += ids[row.id] > 1
        truth = _truth(row.annotation, task, codec).answer
        asked = read_loosely(_plain(line.question), codec, bare=True).answer
        names = _names(row.annotation, task)
        turn = Turn(task, asked, truth)
        image = (ImageRef(row.image),)
        samples.append(Sample(name, image, modality(row.modality), (turn,), row.image, names=names, split="test"))
        said = read_loosely(_plain(row.response), codec, bare=task is Task.VG)
        candidate = Candidate(row.response, said.answer, unread=said.unread, truncated=by_token and not whole)
        predictions.append(Prediction(name, (candidate,), by=by))
    told["answers without an end token where most have one, taken as cut"] += sum(
        p.answer.truncated for p in predictions
    )
    classes = (n for s in samples for n in s.names) if task is Task.ROC else ()
    return Questions(samples, predictions, Lexicon(tuple(dict.fromkeys(classes))), +told)


def _ended(response: str) -> bool:
    return response.rstrip().endswith(_ENDS)


def _plain(text: str) -> str:
    return _SPECIAL.sub("", text)


def _truth(annotation: str, task: Task, codec: Codec) -> Any:
    return read_loosely(_plain(annotation), codec, bare=task is Task.VG)


_REF = re.compile(r"<ref>(.*?)</ref>|<\|object_ref_start\|>(.*?)<\|object_ref_end\|>", re.S)


def _names(annotation: str, task: Task) -> tuple[str, ...]:
    """The class of ROC is its whole truth, without a full stop; the names of VG stand in marks."""
    if task is Task.ROC:
        return (_plain(annotation).strip().removesuffix(".").strip(),)
    if task is Task.VG:
        return tuple(dict.fromkeys(a or b for a, b in _REF.findall(annotation)))
    return ()


def _modalities(told: Counter[str]) -> Callable[[str], Modality]:
    """Prefixes of file names as ours; what is none of ours is "other", and counted."""
    known: dict[str, Modality | None] = {}

    def of(prefix: str) -> Modality:
        if prefix not in known:
            try:
                known[prefix] = read_modality(prefix)
            except BadInput:
                known[prefix] = None
        if (found := known[prefix]) is None:
            told[f"answers of the modality {shorten_value(prefix)!r}, which is none of ours and counts as other"] += 1
            return Modality.OTHER
        return found

    return of

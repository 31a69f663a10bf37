"""Answers in the papers' form, `{"id", "image", "question", "annotation", "response"}`: rows for the scripts, and
samples with predictions for the strict scores.

The file name of the image, up to its first "_", is the modality. Nothing is skipped: a row that cannot be used is a
`RowError` that names file, row, id and field.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from clinkd.data.codecs import Codec, Decoded
from clinkd.data.loose import read_loosely
from clinkd.data.modality import read_modality
from clinkd.data.readers.annotated import match_group, parse_group
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

QUARANTINE = "quarantine"  # the mark of a bad row, as in `clinkd.data`
FIELDS = ("image", "annotation", "response")
_END_TOKENS = ("<|im_end|>", "<|endoftext|>")
# marks of turns and padding; marks of boxes and references are read, or dropped, with the boxes
_SPECIAL_TOKENS = re.compile(r"<\|(?!box_|object_ref_)\w+\|>|</?s>|<(?:unk|pad|eos|bos)>")
_REFERENCES = re.compile(r"<ref>(.*?)</ref>|<\|object_ref_start\|>(.*?)<\|object_ref_end\|>", re.S)


class ReleasedRow(NamedTuple):
    """One good row: the papers' fields, the question, and the place in the file."""

    answered: ReleasedAnswer
    question: str
    number: int
    raw: Any


@dataclass(frozen=True, slots=True)
class ReleasedLines:
    """A file of answers: its good rows, and the others, each with its error."""

    file: Path
    good: Sequence[ReleasedRow]
    bad: Sequence[tuple[RowError, Any]]

    @property
    def rows(self) -> list[ReleasedAnswer]:
        """The good rows, as the scripts read them."""
        return [line.answered for line in self.good]

    def without(self, faults: Iterable[tuple[ReleasedRow, FieldError]]) -> ReleasedLines:
        """The same lines, with these rows among the bad ones."""
        results = {
            line.number: make_error_result(self.file, line.number, fault, line.raw, {"id": line.answered.id or "?"})
            for line, fault in faults
        }
        bad = [*self.bad, *((r.problem, r.raw) for r in results.values() if r.problem)]
        return ReleasedLines(self.file, [line for line in self.good if line.number not in results], bad)

    def demand(self) -> None:
        """Raises BadInput with the first bad row, and the number of others."""
        if self.bad:
            more = f" (and {len(self.bad) - 1} more bad rows)" if len(self.bad) > 1 else ""
            raise BadInput(f"{self.bad[0][0]}{more}; --quarantine FILE sets them aside and scores the rest")
        if not self.good:
            raise BadInput(f"{self.file}: no answers in it; give one JSON object a line, with {', '.join(FIELDS)}")

    def set_aside(self, file: Path) -> int:
        """Write each bad row to `file`, with its error. Returns their number."""
        with replacing(file) as lines:
            for problem, raw in self.bad:
                record = {"clinkd": QUARANTINE, **problem.to_json(), "raw": raw}
                text = json.dumps(record, ensure_ascii=False, default=str)
                lines.write(f"{text}\n".encode(errors="backslashreplace"))
        return len(self.bad)


def read_lines(file: Path, group: str | None = None) -> ReleasedLines:
    """The rows of JSON lines or of a JSON list. Raises BadInput where the file is absent, empty or neither.

    `group`: the field that names the patient, where any row has it, else an expression that finds it in the image's
    name; intervals are over these. Without it each image is a group.
    """
    good: list[ReleasedRow] = []
    bad: list[tuple[RowError, Any]] = []
    rows = list(json_rows(file))
    find_group = _choose_group(group, rows)
    for row in rows:
        if isinstance(row, SourceRow):
            try:
                good.append(_read_row(row, find_group(row.value)))
                continue
            except FieldError as fault:
                row = make_error_result(row.file, row.number, fault, row.raw, row.value)
        assert row.problem
        bad.append((row.problem, row.raw))
    return ReleasedLines(file, good, bad)


def _choose_group(group: str | None, rows: Iterable[SourceRow | RowResult]) -> Callable[[Mapping[str, Any]], str]:
    """How to find the group of a row; "" means its image. Raises BadInput for an expression that is none."""
    if group is None:
        return lambda value: ""
    if any(isinstance(row, SourceRow) and group in row.value for row in rows):
        return lambda value: parse_group(value.get(group), group)
    try:
        re.compile(group)
    except re.error as error:
        raise BadInput(
            f"--group {group}: no field of the rows, and not a regular expression for their images ({error})"
        ) from None
    return lambda value: match_group(group, str(value.get("image", "")))


def _read_row(row: SourceRow, group: str) -> ReleasedRow:
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
    question, name = value.get("question") or "", value.get("id", row.number)
    if not isinstance(question, str):
        raise FieldError("question", question, "text is wanted")
    if not isinstance(name, str | int | float):
        raise FieldError("id", name, "text or a number is wanted")
    answered = ReleasedAnswer(str(name), value["image"], value["annotation"], value["response"], group)
    return ReleasedRow(answered, question, row.number, row.raw)


# ---- strict ---------------------------------------------------------------------------------------------------------


class ReleasedQuestions(NamedTuple):
    """Rows as samples with predictions, the lexicon to judge class names by, and notes on the reading, counted."""

    samples: list[Sample]
    predictions: list[Prediction]
    lexicon: Lexicon
    told: Counter[str]


def find_unreadable_truths(lines: ReleasedLines, task: Task, codec: Codec) -> list[tuple[ReleasedRow, FieldError]]:
    """Rows whose truth the declared codec cannot read; they cannot be scored strictly."""
    faults = []
    for line in lines.good if task is Task.VG else ():
        if unread := _read_boxed(line.answered.annotation, task, codec).unparsed_boxes:
            why = f"no box that --boxes {codec.name} can read; correct it, or declare another"
            faults.append((line, FieldError("annotation", unread[0], why)))
    return faults


def read_questions(lines: ReleasedLines, task: Task, codec: Codec, by: str) -> ReleasedQuestions:
    """Samples and predictions for the strict scores. The declared codec reads the truth, in any spelling.

    Answers keep all their text except special tokens. Where most answers end with an end token, a length limit has cut
    those that do not.
    """
    notes: Counter[str] = Counter()
    has_end = [line.answered.response.rstrip().endswith(_END_TOKENS) for line in lines.good]
    most_have_end = sum(has_end) * 2 > len(has_end)
    ids = Counter(line.answered.id for line in lines.good)
    repeats = Counter((line.answered.id, line.answered.image, line.question) for line in lines.good)
    notes["rows with id, image and question of another row; each is counted"] += sum(
        n for n in repeats.values() if n > 1
    )
    samples, predictions = [], []
    for line, complete in zip(lines.good, has_end, strict=True):
        row, modality = line.answered, _find_modality(line.answered.modality)
        name = row.id if ids[row.id] == 1 else f"{row.id} (row {line.number})"
        notes["ids that stand in several rows, told apart by the row"] += ids[row.id] > 1
        if modality is None:
            prefix = shorten_value(row.modality)
            notes[f"answers of the modality {prefix!r}, which is none of ours and counts as other"] += 1
        question = read_loosely(_drop_special_tokens(line.question), codec, bare=True).answer
        turn = Turn(task, question, _read_boxed(row.annotation, task, codec).answer)
        names = _read_names(row.annotation, task)
        samples.append(
            Sample(
                name,
                (ImageRef(row.image),),
                modality or Modality.OTHER,
                (turn,),
                row.group or row.image,
                names=names,
                split="test",
            )
        )
        answer = _read_boxed(row.response, task, codec)
        truncated = most_have_end and not complete
        candidate = Candidate(row.response, answer.answer, unread=answer.unparsed_boxes, truncated=truncated)
        predictions.append(Prediction(name, (candidate,), by=by))
    notes["answers without an end token where most have one, taken as cut"] += sum(
        p.answer.truncated for p in predictions
    )
    classes = (n for s in samples for n in s.names) if task is Task.ROC else ()
    return ReleasedQuestions(samples, predictions, Lexicon(tuple(dict.fromkeys(classes))), +notes)


def _drop_special_tokens(text: str) -> str:
    return _SPECIAL_TOKENS.sub("", text)


def _read_boxed(text: str, task: Task, codec: Codec) -> Decoded:
    """A truth or an answer; only VG has boxes without marks."""
    return read_loosely(_drop_special_tokens(text), codec, bare=task is Task.VG)


def _read_names(annotation: str, task: Task) -> tuple[str, ...]:
    """The class of ROC is its whole truth, without a full stop; the names of VG stand in marks."""
    if task is Task.ROC:
        return (_drop_special_tokens(annotation).strip().removesuffix(".").strip(),)
    if task is Task.VG:
        return tuple(dict.fromkeys(a or b for a, b in _REFERENCES.findall(annotation)))
    return ()


@cache
def _find_modality(prefix: str) -> Modality | None:
    """The modality that a file name begins with; None where we do not know it."""
    try:
        return read_modality(prefix)
    except BadInput:
        return None

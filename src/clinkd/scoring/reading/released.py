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

from clinkd.data.modality import read_modality
from clinkd.data.readers.annotated import match_group, parse_group
from clinkd.data.readers.choices import find_choice_keys, read_closed
from clinkd.data.readers.rows import (
    FieldError,
    RowError,
    RowResult,
    SourceRow,
    json_rows,
    make_error_result,
    shorten_value,
)
from clinkd.data.readers.source import ImageResolver
from clinkd.language.facts import Lexicon
from clinkd.records import BOX_MARK, BadInput, BoxedText, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.scoring.official import ReleasedAnswer
from clinkd.scoring.reading.answer_files import (
    HowToRead,
    find_cut_answers,
    find_frame_doubts,
    read_candidate,
    says_failure,
    size_for,
)
from clinkd.scoring.reading.box_families import ReadAnswer, read_answer
from clinkd.storage import replacing

QUARANTINE = "quarantine"  # the mark of a bad row, as in `clinkd.data`
FIELDS = ("image", "annotation", "response")
# marks of turns and padding; marks of boxes and references are read, or dropped, with the boxes
_SPECIAL_TOKENS = re.compile(r"<\|(?!box_|object_ref_)\w+\|>|</?s>|<(?:unk|pad|eos|bos)>")
_REFERENCES = re.compile(r"<ref>(.*?)</ref>|<\|object_ref_start\|>(.*?)<\|object_ref_end\|>", re.S)


class ReleasedRow(NamedTuple):
    """One good row: the papers' fields, the question, the image with its size where that is known, and the place in
    the file."""

    answered: ReleasedAnswer
    question: str
    image: ImageRef
    number: int
    raw: Any
    closed: bool | None = None  # whether the row calls its question closed


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


def set_aside(bad: Sequence[tuple[RowError, Any]], file: Path) -> None:
    """Write each bad row to `file`, with its error."""
    with replacing(file) as lines:
        for problem, raw in bad:
            record = {"clinkd": QUARANTINE, **problem.to_json(), "raw": raw}
            text = json.dumps(record, ensure_ascii=False, default=str)
            lines.write(f"{text}\n".encode(errors="backslashreplace"))


def read_lines(file: Path, images: ImageResolver | None = None, group: str | None = None) -> ReleasedLines:
    """The rows of JSON lines or of a JSON list. Raises BadInput where the file is absent, empty or neither.

    `images` finds the image of each row. `group`: the field that names the patient, where any row has it, else an
    expression that finds it in the image's name; intervals are over these. Without it each image is a group.
    """
    good: list[ReleasedRow] = []
    bad: list[tuple[RowError, Any]] = []
    rows = list(json_rows(file))
    find_group = _choose_group(group, rows)
    for row in rows:
        if isinstance(row, SourceRow):
            try:
                good.append(_read_row(row, images, find_group(row.value)))
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


def _read_row(row: SourceRow, images: ImageResolver | None, group: str) -> ReleasedRow:
    value = row.value
    if failed := value.get("error"):
        raise FieldError("error", failed, "the request failed; ask again, or set the row aside")
    for field in FIELDS:
        if field not in value:
            raise FieldError(
                field,
                None,
                "absent; each row needs image, annotation (the truth) and response (the answer); "
                "answers of other programs, which hold no truth, need --data",
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
    if says_failure(value["response"]):
        raise FieldError("response", value["response"], "the request failed; ask again, or set the row aside")
    path = value["image"].replace("\\", "/")
    answered = ReleasedAnswer(str(name), path, value["annotation"], value["response"], group)
    image = images.ref(path) if images else ImageRef(path, *_read_size(value))
    closed = read_closed(value, find_choice_keys(tuple(value)).closed, Counter())
    return ReleasedRow(answered, question, image, row.number, row.raw, closed)


def _read_size(value: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Width and height of the image in pixels, where the row has both."""
    sides = [value.get(key) for key in ("width", "height")]
    for key, side in zip(("width", "height"), sides, strict=True):
        if side is not None and (type(side) is not int or side < 1):
            raise FieldError(key, side, "pixels of the image are wanted, a whole number")
    return (sides[0], sides[1]) if None not in sides else (None, None)


# ---- strict ---------------------------------------------------------------------------------------------------------


class ReleasedQuestions(NamedTuple):
    """Rows as samples with predictions, notes on the reading, counted, and sentences on boxes that may be written
    otherwise than declared."""

    samples: list[Sample]
    predictions: list[Prediction]
    notes: Counter[str]
    doubts: tuple[str, ...]

    @property
    def lexicon(self) -> Lexicon:
        """The class names that answers are judged by: those of ROC."""
        return Lexicon(tuple(dict.fromkeys(n for s in self.samples if s.task is Task.ROC for n in s.names)))


def find_unreadable_truths(lines: ReleasedLines, task: Task, truth: HowToRead) -> list[tuple[ReleasedRow, FieldError]]:
    """Rows whose truth has a box that the declared family cannot read; they cannot be scored strictly.

    Raises BadInput where the family has pixels, and the size of an image is not known.
    """
    faults = []
    for line in lines.good if task is Task.VG else ():
        if unread := _read_truth(line, line.answered.annotation, task, truth).unread:
            why = f"no box that {truth.flag} {truth.boxes} can read; correct it, or declare another with --truth-boxes"
            faults.append((line, FieldError("annotation", unread[0], why)))
    return faults


def read_questions(
    lines: ReleasedLines, task: Task, truth: HowToRead, how: HowToRead, prefix: str = ""
) -> ReleasedQuestions:
    """Samples and predictions for the strict scores. `truth`: how questions and truths write boxes; `how`: how the
    answers do; `prefix`: of the ids, which tells the files of several tasks apart."""
    notes: Counter[str] = Counter()
    were_cut = find_cut_answers([line.answered.response for line in lines.good], notes)
    ids = Counter(line.answered.id for line in lines.good)
    repeats = Counter((line.answered.id, line.answered.image, line.question) for line in lines.good)
    notes["rows with id, image and question of another row; each is counted"] += sum(
        n for n in repeats.values() if n > 1
    )
    samples, predictions = [], []
    for line, cut in zip(lines.good, were_cut, strict=True):
        row, modality = line.answered, _find_modality(line.answered.modality)
        name = prefix + (row.id if ids[row.id] == 1 else f"{row.id} (row {line.number})")
        notes["ids that stand in several rows, told apart by the row"] += ids[row.id] > 1
        if modality is None:
            shown = shorten_value(row.modality)
            notes[f"answers of the modality {shown!r}, which is none of ours and counts as other"] += 1
        read = _read_truth(line, row.annotation, task, truth)
        notes["boxes of truths a little over the border, cut there"] += read.clipped
        turn = Turn(task, _read_question(line, task, truth), read.answer, closed=line.closed)
        names = _read_names(row.annotation, task)
        samples.append(
            Sample(
                name,
                (line.image,),
                modality or Modality.OTHER,
                (turn,),
                row.group or row.image,
                names=names,
                split="test",
            )
        )
        candidate = read_candidate(row.response, task, how, size_for(line.image, how), notes, cut)
        predictions.append(Prediction(name, (candidate,), by=lines.file.name))
    doubts = tuple(find_frame_doubts({p.id: p for p in predictions}, samples, how))
    return ReleasedQuestions(samples, predictions, +notes, doubts)


def _drop_special_tokens(text: str) -> str:
    return _SPECIAL_TOKENS.sub("", text)


def _read_truth(line: ReleasedRow, text: str, task: Task, truth: HowToRead) -> ReadAnswer:
    """A truth; only VG has boxes without marks."""
    size = size_for(line.image, truth)
    plain = _drop_special_tokens(text)
    return read_answer(plain, truth.boxes, size, marked_only=task is not Task.VG, keep_repeats=True)


def _read_question(line: ReleasedRow, task: Task, truth: HowToRead) -> BoxedText:
    """A question with its boxes, which only questions about a region have without marks; else its words."""
    plain, about_region = _drop_special_tokens(line.question), task in (Task.ROC, Task.RC)
    read = read_answer(plain, truth.boxes, size_for(line.image, truth), not about_region, keep_repeats=True)
    return BoxedText(plain.replace(BOX_MARK, " ")) if read.unread else read.answer


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

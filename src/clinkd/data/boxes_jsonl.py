"""Reader of `records.jsonl`: one image a line with its boxes in pixels and its questions.

    {"id", "image", "modality", "width", "height", "objects": [{"name", "box": [x1, y1, x2, y2]}],
     "qa": [{"question", "answer"}]}

Boxes are pixels of the stored image, left and top edge inclusive, right and bottom exclusive; "left" and "right" in
names are the patient's. Other keys are passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinkd.data import questions
from clinkd.data.images import open_image
from clinkd.data.modality import read_modality
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, ImageRef, Modality, Sample, Task, Turn

FILE = "records.jsonl"
MOST_BOXES = 4  # in one answer, unless the caller says otherwise


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row was left out."""

    file: str
    row: int  # from 1
    id: str  # of the record, "?" where it has none
    field: str
    value: str
    why: str  # what is wrong and the way out

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, id {self.id}: {self.field} = {self.value}: {self.why}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file gave: samples, the rows left out and why, and how many good questions were not taken, by task.

    `beyond_limit` counts questions over `max_questions` an image, `crowded` names with more than `max_boxes` boxes,
    which are not asked for at all, because an answer with a part of them would be untrue.
    """

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    beyond_limit: dict[Task, int]
    crowded: int

    def demand(self) -> tuple[Sample, ...]:
        """The samples of a file without fault. Raises BadInput with the first problem, and the number of others."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more rows with problems)" if len(self.problems) > 1 else ""
            raise BadInput(f"{self.problems[0]}{more}")
        return self.samples


def read(path: Path, seed: int = 0, max_questions: int = 12, max_boxes: int = MOST_BOXES) -> Reading:
    """Samples of a folder with a `records.jsonl`, or of such a file; image paths are relative to its folder.

    Asks where each name is (all its boxes in one answer, left to right), what each box holds, and the questions of
    `qa`; of more than `max_questions` an image a seeded draw is kept. A row with any fault is left out whole and
    listed. Raises BadInput where there is no file, or it has no rows.
    """
    for knob, value in (("max_questions", max_questions), ("max_boxes", max_boxes)):
        if value < 1:
            raise BadInput(f"data.{knob}={value}: give 1 or more")
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise BadInput(f"{file}: no such file; data.path is a folder with {FILE} and its images")
    samples: list[Sample] = []
    problems: list[Problem] = []
    beyond: Counter[Task] = Counter()
    crowded = rows = 0
    ids: dict[str, int] = {}
    images: dict[str, int] = {}
    with file.open("rb") as lines:
        for row, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            rows += 1
            record: Any = None
            try:
                record = _parse(line)
                checked = _check(record, file.parent, row)
                _once("id", checked.id, ids, row)
                _once("image", checked.image.path, images, row)
            except _Fault as fault:
                name = str(record.get("id", "?")) if isinstance(record, dict) else "?"
                problems.append(Problem(str(file), row, name, fault.field, _short(fault.value), fault.why))
                continue
            asked, skipped = _ask(checked, seed, max_boxes)
            crowded += skipped
            kept = _draw(asked, max_questions, seed)
            beyond.update(s.task for s in asked if s not in kept)
            samples.extend(kept)
    if rows == 0:
        raise BadInput(f"{file}: the file has no rows; give one JSON object a line")
    return Reading(tuple(samples), tuple(problems), dict(beyond), crowded)


def image_paths(file: Path) -> Iterator[str]:
    """The image that each row names, relative to the file's folder. Rows that cannot be read are for `read` to tell."""
    with file.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(_Fault):
                record = _parse(line)
                if isinstance(record, dict) and isinstance(record.get("image"), str):
                    yield record["image"]


class _Fault(Exception):
    """What is wrong with one field of the row at hand."""

    def __init__(self, field: str, value: Any, why: str) -> None:
        super().__init__(field, value, why)
        self.field, self.value, self.why = field, value, why


@dataclass(frozen=True, slots=True)
class _Record:
    """A checked row."""

    id: str
    image: ImageRef
    modality: Modality
    objects: tuple[tuple[str, Box], ...]
    qa: tuple[tuple[str, str], ...]


def _once(key: str, value: str, used: dict[str, int], row: int) -> None:
    if used.setdefault(value, row) != row:
        raise _Fault(key, value, f"already used by row {used[value]}; give each image one row, with an id of its own")


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        text = line.decode(errors="replace").strip()
        raise _Fault("row", text, f"not JSON ({error}); mend or remove the row") from None


def _check(record: Any, root: Path, row: int) -> _Record:
    if not isinstance(record, dict):
        raise _Fault("row", record, "not a JSON object; mend or remove the row")
    name = _text(record, "id", "id")
    path = _text(record, "image", "image")
    try:
        modality = read_modality(_text(record, "modality", "modality"))
        width, height = open_image(root, path, row=row).size
    except BadInput as error:
        field = "modality" if str(error).startswith("modality") else "image"
        raise _Fault(field, record[field], str(error)) from None
    for field, found in (("width", width), ("height", height)):
        if field in record and record[field] != found:
            raise _Fault(field, record[field], f"the image has {found} pixels; correct it, and the boxes with it")
    objects = tuple(
        (_text(entry, "name", f"objects[{i}].name"), _box(entry, f"objects[{i}].box", width, height))
        for i, entry in _entries(record, "objects")
    )
    qa = tuple(
        (_text(entry, "question", f"qa[{i}].question"), _text(entry, "answer", f"qa[{i}].answer"))
        for i, entry in _entries(record, "qa")
    )
    return _Record(name, ImageRef(path, width, height), modality, objects, qa)


def _entries(record: dict[str, Any], field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    entries = record.get(field, [])
    if not isinstance(entries, list):
        raise _Fault(field, entries, "a list is wanted")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise _Fault(f"{field}[{i}]", entry, "an object is wanted")
        yield i, entry


def _text(entry: dict[str, Any], key: str, field: str) -> str:
    """A text without a box mark, white space folded."""
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _Fault(field, value, "empty or not text; fill it in, or remove it")
    if BOX_MARK in value:
        raise _Fault(field, value, f"{BOX_MARK} is kept for the places of boxes; write it otherwise")
    return " ".join(value.split())


def _box(entry: dict[str, Any], field: str, width: int, height: int) -> Box:
    value = entry.get("box")
    numbers = isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)
    if not numbers or not all(math.isfinite(v) for v in value or ()):
        raise _Fault(field, value, "four numbers [x1, y1, x2, y2] in pixels are wanted")
    assert value is not None
    x1, y1, x2, y2 = value
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        wanted = f"0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height} are wanted"
        raise _Fault(field, value, f"empty or outside the image of {width}x{height} pixels; {wanted}")
    return Box(x1 / width, y1 / height, x2 / width, y2 / height)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _ask(record: _Record, seed: int, max_boxes: int) -> tuple[list[Sample], int]:
    """Every question about a record, and the number of names with too many boxes to be asked for."""
    dice = random.Random(f"{seed}/{record.id}")
    images, unit, origin = (record.image,), group(record.id), source(record.id)

    def sample(tag: str, turn: Turn, *names: str) -> Sample:
        return Sample(f"{record.id}-{tag}", images, record.modality, (turn,), unit, origin, names, side="patient")

    boxes: dict[str, list[Box]] = {}
    for name, box in record.objects:
        boxes.setdefault(name, []).append(box)
    asked, crowded = [], 0
    for number, (name, places) in enumerate(boxes.items(), start=1):
        left_to_right = sorted(places, key=lambda b: (b.x1, b.y1, b.x2, b.y2))
        turn = questions.where(name, left_to_right, dice)
        if len(places) > max_boxes:
            crowded += 1
        else:
            asked.append(sample(f"vg{number}", turn, name))
    for number, (name, box) in enumerate(record.objects, start=1):
        asked.append(sample(f"roc{number}", questions.what(box, name, dice), name))
    for number, (question, answer) in enumerate(record.qa, start=1):
        asked.append(sample(f"qa{number}", Turn(Task.QA, BoxedText(question), BoxedText(answer))))
    return asked, crowded


def _draw(asked: list[Sample], most: int, seed: int) -> list[Sample]:
    """`most` of them by a hash of their ids: another question more does not reshuffle the rest. Order is kept."""
    chosen = sorted(asked, key=lambda s: hashlib.sha256(f"{seed}/{s.id}".encode()).digest())[:most]
    ids = {s.id for s in chosen}
    return [s for s in asked if s.id in ids]


def source(record_id: str) -> str:
    """The collection an image comes from: what stands before the first "_" of its id."""
    return record_id.split("_", 1)[0]


def group(record_id: str) -> str:
    """The unit that no split may tear: the patient where the id tells, else the image.

    `sts_STS_012_ct_z038` -> `sts_STS_012`; `mbh_158019` -> `mbh_158` (patient 158, slice 019).
    """
    known = re.match(r"sts_STS_\d{3}(?=_|$)|mbh_\d{3}", record_id)
    return known.group() if known else record_id

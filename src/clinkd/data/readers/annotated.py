"""One image with its boxes, names and questions, and the samples made from it."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from clinkd.data import questions
from clinkd.data.readers.rows import FieldError
from clinkd.data.readers.source import Source
from clinkd.records import Box, BoxedText, ImageRef, Modality, Sample, Side, Split, Task, Turn


@dataclass(frozen=True, slots=True)
class Annotated:
    """A checked image. `objects` are pairs of name and box, `qa` of question and answer.

    `incomplete` holds names that have unknown boxes, too; no question asks where they are.
    """

    id: str
    image: ImageRef
    modality: Modality
    objects: tuple[tuple[str, Box], ...] = ()
    qa: tuple[tuple[str, str], ...] = ()
    group: str = ""  # if empty, the id
    origin: str = ""  # the collection that the image comes from
    side: Side = "patient"
    split: Split | None = None
    incomplete: frozenset[str] = frozenset()

    def make_sample(self, sample_id: str, turn: Turn, names: tuple[str, ...] = ()) -> Sample:
        """A sample with one question about the image."""
        group = self.group or self.id
        return Sample(
            sample_id, (self.image,), self.modality, (turn,), group, self.origin, names, (), self.side, self.split
        )


def make_samples(record: Annotated, source: Source, notes: Counter[str]) -> list[Sample]:
    """Make the questions of a record: where each name is (one answer with all its boxes, left to right), what each box
    shows, a sentence on each box, and the record's own questions.

    No question asks for a name with more than `max_boxes` boxes, because an answer with some of them would be wrong.
    Of more than `max_questions` questions a seeded sample is kept. A box that stands twice under one name counts once.
    Names that differ in case, white space and underscores alone are one. `notes` counts all four.
    """
    rng = random.Random(f"{source.seed}/{record.id}")
    objects = tuple(dict.fromkeys((source.spellings.unify(name, notes), box) for name, box in record.objects))
    incomplete = {source.spellings.unify(name, Counter()) for name in record.incomplete}
    if repeated := len(record.objects) - len(objects):
        notes["boxes that stand twice under one name, taken once"] += repeated
    boxes: dict[str, list[Box]] = {}
    for name, box in objects:
        boxes.setdefault(name, []).append(box)
    samples = []
    for number, (name, boxes_of_name) in enumerate(boxes.items() if Task.VG in source.tasks else (), start=1):
        left_to_right = sorted(boxes_of_name, key=lambda b: b.corners)
        turn = questions.ask_where(name, left_to_right, rng)
        if name in incomplete:
            notes["names of which not all boxes are known, so that where they are is not asked"] += 1
        elif len(boxes_of_name) > source.max_boxes:
            notes[f"names with more than max_boxes={source.max_boxes} boxes in one image"] += 1
        else:
            samples.append(record.make_sample(f"{record.id}-vg{number}", turn, (name,)))
    for number, (name, box) in enumerate(objects if Task.ROC in source.tasks else (), start=1):
        samples.append(record.make_sample(f"{record.id}-roc{number}", questions.ask_what(box, name, rng), (name,)))
    for number, (name, box) in enumerate(objects if Task.RC in source.tasks else (), start=1):
        turn = questions.ask_description(box, questions.write_box_sentence(name, box, rng), rng)
        samples.append(record.make_sample(f"{record.id}-rc{number}", turn, (name,)))
    for number, (question, answer) in enumerate(record.qa, start=1):
        turn = Turn(Task.QA, BoxedText(question), BoxedText(answer))
        samples.append(record.make_sample(f"{record.id}-qa{number}", turn))
    return sample_questions(samples, source, notes)


def sample_questions(samples: list[Sample], source: Source, notes: Counter[str]) -> list[Sample]:
    """The samples of an image, at most `max_questions`, in their order. `notes` counts the others.

    A hash of the ids decides, so that a new question does not reshuffle the rest.
    """
    most = source.max_questions
    if most is None or len(samples) <= most:
        return samples
    ranked = sorted(samples, key=lambda s: hashlib.sha256(f"{source.seed}/{s.id}".encode()).digest())
    kept_ids = {s.id for s in ranked[:most]}
    kept = [s for s in samples if s.id in kept_ids]
    notes[f"questions beyond max_questions={most} an image"] += len(samples) - len(kept)
    return kept


def parse_pixel_box(value: Any, field: str, image: ImageRef) -> Box:
    """The Box of [x1, y1, x2, y2] in pixels of the upright image, right and bottom exclusive."""
    if image.width is None or image.height is None:
        raise FieldError(field, value, "boxes in pixels need the size of the image: let the images be opened")
    x1, y1, x2, y2 = require_four_numbers(value, field, "[x1, y1, x2, y2] in pixels")
    width, height = image.width, image.height
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        wanted = f"0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height} are wanted"
        problem = _describe_bad_corners(x1, y1, x2, y2)
        raise FieldError(field, value, f"{problem} the image of {width}x{height} pixels; {wanted}")
    if x2 <= 1 and y2 <= 1 and any(v != int(v) for v in (x1, y1, x2, y2)):
        raise FieldError(field, value, "fractions of the image where pixels are declared; multiply by width and height")
    return Box(x1 / width, y1 / height, x2 / width, y2 / height)


def _describe_bad_corners(x1: float, y1: float, x2: float, y2: float) -> str:
    if min(x1, y1, x2, y2) < 0:
        return "negative, so outside"
    if x2 < x1 or y2 < y1:
        return "swapped corners (x2 < x1 or y2 < y1), so no box in"
    return "outside" if x1 < x2 and y1 < y2 else "empty in"


def require_four_numbers(value: Any, field: str, wanted: str) -> tuple[float, float, float, float]:
    """Four finite numbers, in any unit. `wanted` describes them in the error."""
    are_numbers = isinstance(value, list | tuple) and len(value) == 4 and all(type(v) in (int, float) for v in value)
    if not are_numbers or not all(abs(v) < math.inf for v in value):
        raise FieldError(field, value, f"four numbers {wanted} are wanted")
    a, b, c, d = value
    return a, b, c, d


def find_split_group(source: Source, path: str) -> str:
    """The unit that no split may divide: the part of the image path that `--group` matches, else the path."""
    if source.group is None:
        return path
    match = re.search(source.group, path)
    if match is None:
        raise FieldError("image", path, f"--group {source.group} finds no patient in the path; widen the expression")
    return match.group(1 if match.re.groups else 0)

"""One image with its boxes, names and questions, and the samples made from it."""

from __future__ import annotations

import hashlib
import math
import random
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from clinkd.data import questions
from clinkd.data.images import Facts
from clinkd.data.modality import LEGAL, read_modality
from clinkd.data.patients import strip_frame
from clinkd.data.readers.agreement import merge_readers
from clinkd.data.readers.box_layout import CORNER_BOXES, NUMBERS, BoxLayout, FourNumbers, clip_to_border, lies_inside
from clinkd.data.readers.rows import FieldError, require_words
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Box, ImageRef, Modality, Sample, Side, Split, Task, Turn


@dataclass(frozen=True, slots=True)
class Annotated:
    """A checked image. `objects` are pairs of name and box, `qa` the questions about the whole image.

    `incomplete` holds names that have unknown boxes, too; no question asks where they are.
    """

    id: str
    image: ImageRef
    modality: Modality
    objects: tuple[tuple[str, Box], ...] = ()
    qa: tuple[Turn, ...] = ()
    group: str = ""  # if empty, the id
    origin: str = ""  # the collection that the image comes from
    side: Side = "patient"
    split: Split | None = None
    incomplete: frozenset[str] = frozenset()
    sentences: tuple[tuple[str, Box, str], ...] = ()  # name, box, what the data says of the box
    readers: tuple[str, ...] = ()  # who drew each of `objects`, "" where nobody is named
    panel: frozenset[str] = frozenset()  # all who read the image, also those who drew nothing

    def make_sample(self, sample_id: str, turn: Turn, names: tuple[str, ...] = ()) -> Sample:
        """A sample with one question about the image."""
        group = self.group or self.id
        return Sample(
            sample_id, (self.image,), self.modality, (turn,), group, self.origin, names, (), self.side, self.split
        )


def annotate(
    source: Source,
    image: ImageRef,
    objects: Iterable[tuple[str, Box]],
    split: Split | None = None,
    modality: object = None,
    group: str | None = None,
) -> Annotated:
    """An image of which the data state the boxes, and perhaps more; the source says the rest."""
    return Annotated(
        id=image.path,
        image=image,
        modality=resolve_modality(modality, source),
        objects=tuple(objects),
        group=group or find_split_group(source, image.path),
        origin=source.origin,
        side=source.side or "patient",
        split=source.split or split,
    )


def make_samples(record: Annotated, source: Source, notes: Counter[str]) -> list[Sample]:
    """Make the questions of a record: where each name is (one answer with all its boxes, left to right), what each box
    shows, a sentence on each box (the record's own, where it has one), and the record's own questions.

    No question asks for a name with more than `max_boxes` boxes, because an answer with some of them would be wrong.
    Of more than `max_questions` questions a seeded sample is kept. A box that stands twice under one name counts once,
    and `Source.readers` says what becomes of several readers' boxes (see `agreement`). Names that differ in case, white
    space and underscores alone are one. `notes` counts all five.
    """
    rng = random.Random(f"{source.seed}/{record.id}")
    named = [(source.spellings.unify(name, notes), box) for name, box in record.objects]
    objects = merge_readers(named, record.readers, record.panel, source.readers, notes)
    incomplete = {source.spellings.unify(name, Counter()) for name in record.incomplete}
    source.drawn.by_image.setdefault(record.image.path, set()).update(name for name, _ in objects)
    source.drawn.partial |= bool(incomplete or record.sentences)
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
    stated = dict.fromkeys((source.spellings.unify(name, Counter()), b, text) for name, b, text in record.sentences)
    described = {(name, box) for name, box, _ in stated}
    plain = [(*pair, "") for pair in objects if pair not in described] if Task.RC in source.tasks else []
    for number, (name, box, sentence) in enumerate([*stated, *plain], start=1):
        turn = questions.ask_description(box, sentence or questions.write_box_sentence(name, box, rng), rng)
        samples.append(record.make_sample(f"{record.id}-rc{number}", turn, (name,)))
    for number, turn in enumerate(record.qa, start=1):
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


def parse_pixel_box(
    value: Any,
    field: str,
    image: ImageRef,
    notes: Counter[str] | None = None,
    layout: BoxLayout = CORNER_BOXES,
    way_from_fractions: str = "multiply by width and height",
) -> Box:
    """The Box of four numbers in pixels of the upright image: [x1, y1, x2, y2], right and bottom exclusive, unless
    `layout` says otherwise.

    A box less than a pixel over the border is put on it, which `notes` counts; without `notes` it is refused. The
    error of a box in fractions ends with `way_from_fractions`.
    """
    if image.width is None or image.height is None:
        raise FieldError(field, value, "boxes in pixels need the size of the image: let the images be opened")
    numbers = require_four_numbers(value, field, f"{NUMBERS[layout.form]} in pixels")
    width, height = image.width, image.height
    require_sizes(numbers, layout, field)
    corners = layout.to_corners(numbers, height)
    if notes is not None:
        corners = put_on_border(corners, (width, height), (1, 1), notes)
    x1, y1, x2, y2 = corners
    if not lies_inside(corners, width, height):
        wanted = f"0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height} are wanted"
        read_as = "" if layout == CORNER_BOXES else f"; read as x1, y1, x2, y2 = {x1:g}, {y1:g}, {x2:g}, {y2:g}"
        problem = _describe_bad_corners(x1, y1, x2, y2)
        raise FieldError(field, value, f"{problem} the image of {width}x{height} pixels; {wanted}{read_as}")
    if x2 <= 1 and y2 <= 1 and any(v != int(v) for v in corners):
        raise FieldError(field, value, f"fractions of the image, and pixels are wanted; {way_from_fractions}")
    return Box(x1 / width, y1 / height, x2 / width, y2 / height)


def require_sizes(numbers: FourNumbers, layout: BoxLayout, field: str) -> None:
    """Raise FieldError if the width or the height of a box with a size is not above 0."""
    if layout.form != "xyxy" and min(numbers[2:]) <= 0:
        raise FieldError(field, list(numbers), "the width and the height of a box are above 0; correct them")


def put_on_border(
    corners: FourNumbers, size: tuple[float, float], pixel: tuple[float, float], notes: Counter[str]
) -> FourNumbers:
    """`clip_to_border`, counted. What lies over the border by the noise of a float alone is not counted."""
    if lies_inside(corners, *size):
        return corners
    clipped = clip_to_border(corners, *size, pixel)
    moved = max(abs(a - b) for a, b in zip(clipped, corners, strict=True))
    if moved > 1e-6 * pixel[0] and lies_inside(clipped, *size):
        notes["boxes less than a pixel over the border of the image, put on it"] += 1
    return clipped


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


def resolve_modality(value: object, source: Source) -> Modality:
    """The modality that the row names, else that the source names."""
    if value in (None, "") and source.modality is not None:
        return source.modality
    if not isinstance(value, str) or not value.strip():
        why = "nothing says how the image was made" if value is None or value == "" else "not text"
        why += f"; give one for all with --modality: {LEGAL}"
        raise FieldError("modality", value, why)
    if (known := source.modalities.get(value.strip().casefold())) is not None:
        return known
    try:
        return read_modality(value)
    except BadInput as error:
        why = f"{error}, or say what it means: --modality-map {shlex.quote(f'{value}=other')}"
        raise FieldError("modality", value, why) from None


def parse_group(value: Any, key: str) -> str:
    """The patient whom a row names: text, or a number; 7.0, which pandas makes of a column with gaps, is 7."""
    is_number = type(value) is int or (isinstance(value, float) and value.is_integer())
    return require_words(str(int(value)) if is_number else value, key)


def find_split_group(source: Source, path: str, facts: Facts | None = None) -> str:
    """The unit that no split may divide: the part of the path that `--group` matches, else patient or study of the
    header, else the file, of whatever frame.

    Raises FieldError where `--group` matches nothing.
    """
    file = strip_frame(path)
    if source.group is None:
        return (facts and (facts.patient or facts.study)) or file
    return match_group(source.group, file)


def match_group(expression: str, path: str) -> str:
    """The part of a path that `--group` matches. Raises FieldError where it matches nothing."""
    match = re.search(expression, path)
    if match is None or not match[0]:
        raise FieldError("image", path, f"--group {expression} finds no patient in the path; widen the expression")
    return (match[1] if match.re.groups else "") or match[0]

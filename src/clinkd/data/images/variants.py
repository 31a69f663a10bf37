"""Variants of training images: pixels, boxes and words changed together, so that a question stays true.

A variant is a field of the ImageRef, applied on opening: nothing is stored twice. It is no other patient: it has the
group of its image. Validation and test images have none.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

from PIL import Image

from clinkd.language.languages import find_language, list_languages, mentions_side
from clinkd.language.sides import mirror_sides
from clinkd.records import BadInput, Box, BoxedText, ImageRef, Modality, Sample, Task, Turn, Variant

Change = Literal["mirror", "upend", "shift", "window", "gain", "gamma"]

# Of the first variant, the second and so on, and from the front again with other amounts. A change that an image does
# not allow is left out. No two variants of an image are the same.
PLAN: tuple[tuple[Change, ...], ...] = (
    ("mirror",), ("window",), ("shift",), ("gamma",), ("gain",), ("upend", "window"),
    ("mirror", "upend", "shift", "window"),
)  # fmt: skip
MOST_SHIFT = 0.1  # of the width, and of the height
LEAST_KEPT = 0.5  # share of a box that a shift leaves in the picture; a question about a box with less is not asked

# Which way is up is the hand's that holds the instrument, or the slide's. Patients, organs and depth have an up: CT,
# MR, X-ray and PET by convention, ultrasound by the probe, a fundus by the head; no test image is upside down.
_WITHOUT_UP = frozenset({Modality.DERMOSCOPY, Modality.MICROSCOPY, Modality.ENDOSCOPY})
_UP_OR_DOWN = re.compile(
    r"clock|flipp|mirror|orient|\b(?:up|down|top|bottom|(?:high|low)(?:er|est)?(?!-grade)|upp\w+|above|below|beneath|under\w*|over\w*|super\w*|"
    r"infer\w*|anterior\w*|poster\w*|crani\w*|caud\w*|apex|apic\w*|bas(?:e|al)\w*|vertical\w*|"
    r"ober\w*|oben|unte[rn]\w*|haut\w*|bas|sup[eé]r\w*|inf[eé]r\w*|sopra|sotto|arriba|abajo|\w*quadrant\w*)\b",
    re.I,
)
_PLACE = re.compile(
    r"\b(?:cent\w*|mid\w*|edge|corner|border|margin\w*|peripher\w*|mitt\w*|rand\w*)\b|\b(?:third|half|part)\s+of", re.I
)


# ---- pixels and boxes -----------------------------------------------------------------------------------------------


def change_pixels(picture: Image.Image, variant: Variant) -> Image.Image:
    """The changed picture, of the same size, RGB. A shift uncovers black: what an edge repeats could look like more of
    a structure."""
    if variant.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if variant.upended:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if variant.shift != (0, 0):
        shifted = Image.new("RGB", picture.size)
        shifted.paste(picture, variant.shift)
        picture = shifted
    if (variant.gamma, variant.gain, variant.level) != (1, 1, 0):
        values = [variant.gain * (v / 255) ** variant.gamma + variant.level for v in range(256)]
        picture = picture.point([round(255 * min(1.0, max(0.0, v))) for v in values] * 3)
    return picture


def change_box(box: Box, variant: Variant, image: ImageRef) -> Box | None:
    """The box around the same pixels, cut at the border; None if less than LEAST_KEPT of it stays in the picture."""
    x1, y1, x2, y2 = box.corners
    if variant.mirrored:
        x1, x2 = 1 - x2, 1 - x1
    if variant.upended:
        y1, y2 = 1 - y2, 1 - y1
    if variant.shift != (0, 0):
        right, down = variant.shift[0] / (image.width or 1), variant.shift[1] / (image.height or 1)
        x1, x2 = (min(1.0, max(0.0, x + right)) for x in (x1, x2))
        y1, y2 = (min(1.0, max(0.0, y + down)) for y in (y1, y2))
        if (x2 - x1) * (y2 - y1) < LEAST_KEPT * box.area:
            return None
    return Box(x1, y1, x2, y2)


# ---- samples --------------------------------------------------------------------------------------------------------


def add_variants(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """The samples, and behind them those of `count` - 1 variants of each image, with ids such as ID+v1.

    All samples of an image share a variant; which changes it has and how much depends on seed, image and number alone.
    A flip is made only if the words of all of them can follow, a shift only if none speaks of a place in the picture or
    of the whole image. Raises BadInput for an image of unknown size.
    """
    rows: dict[tuple[ImageRef, ...], list[Sample]] = {}
    for sample in samples if count > 1 else ():
        if sample.images:
            rows.setdefault(sample.images, []).append(sample)
    varied = list(samples)
    for images, row in rows.items():
        mirrored = _mirror_words(row)
        possible = _list_possible_changes(row, mirrored)
        for number in range(1, count):
            variant = _choose_variant(images, possible, number, seed)
            changed = (_change_images(s, variant) for s in (mirrored if variant.mirrored else row))
            varied += [replace(s, id=f"{s.id}+v{number}") for s in changed if s is not None]
    return varied


def change_sample(sample: Sample, variant: Variant) -> Sample | None:
    """The sample about the changed image; None if one of its boxes lies mostly outside then.

    Raises BadInput if the words cannot follow a mirror (see `mirror_sides`).
    """
    return _change_images(mirror_sides(sample) if variant.mirrored else sample, variant)


def _change_images(sample: Sample, variant: Variant) -> Sample | None:
    """The sample, its words mirrored already, about the changed images."""
    images = tuple(replace(image, variant=variant) for image in sample.images)
    turns = []
    for turn in sample.turns:
        texts = [_change_boxes(text, variant, images[-1]) for text in (turn.question, turn.answer)]
        if texts[0] is None or texts[1] is None:
            return None
        turns.append(replace(turn, question=texts[0], answer=texts[1]))
    return replace(sample, images=images, turns=tuple(turns))


_LIST_OF_BOXES = re.compile(r"[^\[]*\[box\](?:[\s,]*(?:and\s+)?\[box\])*\W*")  # boxes of which none is told apart


def _change_boxes(text: BoxedText, variant: Variant, image: ImageRef) -> BoxedText | None:
    boxes = [change_box(box, variant, image) for box in text.boxes]
    kept = [box for box in boxes if box is not None]
    if len(kept) < len(boxes):
        return None
    if _LIST_OF_BOXES.fullmatch(text.text) and list(text.boxes) == _sort_from_left(text.boxes):
        kept = _sort_from_left(kept)
    return BoxedText(text.text, tuple(kept))


def _sort_from_left(boxes: Sequence[Box]) -> list[Box]:
    """The order in which an answer lists boxes (`make_samples`)."""
    return sorted(boxes, key=lambda box: box.corners)


def _mirror_words(row: Sequence[Sample]) -> list[Sample]:
    """The samples in the words for the mirrored images; none if one of them cannot follow."""
    try:
        return [mirror_sides(sample) for sample in row]
    except BadInput:
        return []


def _list_possible_changes(row: Sequence[Sample], mirrored: Sequence[Sample]) -> set[Change]:
    """The changes after which every text about these images is still true. `mirrored`: of `_mirror_words`."""
    possible: set[Change] = {"window", "gain", "gamma"}
    possible |= {"mirror"} if mirrored else set()
    texts = [text for s in row for t in s.turns for text in (t.question.text, t.answer.text, *t.options)]
    texts += [name for s in row for name in s.names]
    up_or_down = any(map(_UP_OR_DOWN.search, texts))
    english = (None, list_languages()[0])
    readable = not up_or_down and all(find_language(text) in english for text in texts)
    if row[0].modality in _WITHOUT_UP and readable:
        possible.add("upend")
    of_picture = any(s.side == "image" for s in row) and any(map(mentions_side, texts))
    about_boxes = all(_is_about_boxes(turn) for s in row for turn in s.turns)
    if len(row[0].images) == 1 and about_boxes and not (up_or_down or of_picture or any(map(_PLACE.search, texts))):
        possible.add("shift")
    return possible


def _is_about_boxes(turn: Turn) -> bool:
    """Whether a turn says nothing of the whole image, of which a shift cuts a part."""
    return turn.task in (Task.VG, Task.ROC, Task.RC)


def _choose_variant(images: Sequence[ImageRef], possible: Collection[Change], number: int, seed: int) -> Variant:
    rng = random.Random(f"{seed} variant {number} {' '.join(i.path for i in images)}")
    planned: list[Change] = [change for change in PLAN[(number - 1) % len(PLAN)] if change in possible]
    changes = planned or [change for change in ("shift", "gain", "gamma") if change in possible]
    if number > len(PLAN) and {"mirror", "upend", "shift"}.issuperset(changes):  # such a variant is there already
        changes = [*changes, "window"]
    shift, gamma, gain, level = (0, 0), 1.0, 1.0, 0.0
    if "shift" in changes:
        shift = _choose_shift(images[-1], rng)
    if "gamma" in changes:
        gamma = round(2 ** rng.uniform(-0.5, 0.5), 6)
    if "gain" in changes:
        gain = round(rng.uniform(0.75, 1.25), 6)
    if "window" in changes:  # the contrast about the middle grey, and the grey that it is about
        gain = round(rng.uniform(0.75, 1.25), 6)
        level = round((1 - gain) / 2 + rng.uniform(-0.08, 0.08), 6)
    return Variant("mirror" in changes, "upend" in changes, shift, gamma, gain, level)


def _choose_shift(image: ImageRef, rng: random.Random) -> tuple[int, int]:
    """Whole pixels to the right and down, at least one."""
    if image.width is None or image.height is None:
        raise BadInput(f"image {image.path}: its size is not known; import the data again with its images")
    amounts = [max(1, round(rng.uniform(0.02, MOST_SHIFT) * side)) for side in (image.width, image.height)]
    right, down = (rng.choice((-1, 1)) * amount for amount in amounts)
    return right, down

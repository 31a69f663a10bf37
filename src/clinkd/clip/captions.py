"""Training data of a tiny CLIP: images with their sentences, boxes with their names, and boxes that miss."""

from __future__ import annotations

import random
from collections.abc import Sequence

from clinkd.boxes import iou
from clinkd.clip.model import Captioned, View
from clinkd.data.questions import make_bare_pairs
from clinkd.records import Box, ImageRef, Sample, Task

ELSEWHERE, MISSED = "elsewhere", 0.45  # the name of a box whose IoU with every true box is below this value


def make_captioned_views(samples: Sequence[Sample], crops: bool, seed: int) -> list[list[Captioned]]:
    """Whole images with their sentences; with `crops` also boxes, once with their names and once with sentences.

    Names and sentences are apart because other captions of a batch count as false: "the liver" beside "a small liver"
    would not be. Some boxes miss every structure, so that a name comes to mean a place that fits.
    """
    whole: dict[View, list[str]] = {}
    boxed: dict[View, list[str]] = {}
    named: dict[View, list[str]] = {}
    for sample in samples:
        words = sample.answer.words
        if sample.task is not Task.VG and words:
            whole.setdefault(View(sample.images[0]), []).append(words)
        if sample.task is Task.RC and words:
            for box in sample.question.boxes:
                boxed.setdefault(View(sample.images[0], box), []).append(words)
    for pair in make_bare_pairs(samples):
        for box in (*pair.question.boxes, *pair.answer.boxes):
            name = named.setdefault(View(pair.images[0], box), [])
            name += [pair.names[0]] if pair.names[0] not in name else []
    boxes = [(view.image, view.box) for view in named if view.box]
    named.update({view: [ELSEWHERE] for view in _sample_missing_boxes(boxes, random.Random(f"{seed} elsewhere"))})
    kinds = (whole, named, boxed) if crops else (whole,)
    return [list(kind.items()) for kind in kinds]


def _sample_missing_boxes(boxes: Sequence[tuple[ImageRef, Box]], rng: random.Random) -> list[View]:
    """For each box one of similar size nearby that misses all boxes of the image, if 20 tries find one."""
    taken: dict[ImageRef, list[Box]] = {}
    for image, box in boxes:
        taken.setdefault(image, []).append(box)
    missing: list[View] = []
    for image, box in boxes:
        tries = (_move_box(box, rng) for _ in range(20))
        miss = next((b for b in tries if max(iou(b, t) for t in taken[image]) < MISSED), None)
        missing += [View(image, miss)] if miss else []
    return missing


def _move_box(box: Box, rng: random.Random) -> Box:
    """The box at another size, up to its own width and height away, inside the image."""
    wide, high = (min(1.0, side * rng.uniform(0.7, 1.4)) for side in (box.width, box.height))
    x = min(max(box.centre[0] + rng.uniform(-1, 1) * box.width - wide / 2, 0), 1 - wide)
    y = min(max(box.centre[1] + rng.uniform(-1, 1) * box.height - high / 2, 0), 1 - high)
    return Box(x, y, min(1.0, x + wide), min(1.0, y + high))

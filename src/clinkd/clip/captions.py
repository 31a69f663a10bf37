"""What a tiny CLIP is taught: images with what is said of them, boxes with their names, and boxes that miss."""

from __future__ import annotations

import random
from collections.abc import Sequence

from clinkd.boxes import iou
from clinkd.clip.model import Captioned, View
from clinkd.data.questions import make_bare_pairs
from clinkd.records import Box, ImageRef, Sample, Task

ELSEWHERE, MISSED = "elsewhere", 0.45  # what is told of a box whose IoU with every true one is below that


def captioned(samples: Sequence[Sample], crops: bool, seed: int) -> list[list[Captioned]]:
    """Whole images with what is said of them; with `crops` also boxes, once with their names and once with sentences:
    in a batch of either, what is not the caption is false, where "the liver" beside "a small liver" would not be.
    Among the names are boxes that miss every structure, so that a name comes to mean a place that fits."""
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
    named.update({view: [ELSEWHERE] for view in _elsewhere([*named], random.Random(f"{seed} elsewhere"))})
    kinds = (whole, named, boxed) if crops else (whole,)
    return [list(kind.items()) for kind in kinds]


def _elsewhere(views: Sequence[View], dice: random.Random) -> list[View]:
    """For each view of a box one of a like size nearby that meets no box of the image, where one is soon found."""
    taken: dict[ImageRef, list[Box]] = {}
    for view in views:
        assert view.box
        taken.setdefault(view.image, []).append(view.box)
    made: list[View] = []
    for view in views:
        assert view.box
        tries = (_moved(view.box, dice) for _ in range(20))
        free = next((b for b in tries if max(iou(b, t) for t in taken[view.image]) < MISSED), None)
        made += [View(view.image, free)] if free else []
    return made


def _moved(box: Box, dice: random.Random) -> Box:
    """The box at another size and up to its own width and height away, inside the image."""
    wide, high = (min(1.0, side * dice.uniform(0.7, 1.4)) for side in (box.width, box.height))
    x = min(max(box.centre[0] + dice.uniform(-1, 1) * box.width - wide / 2, 0), 1 - wide)
    y = min(max(box.centre[1] + dice.uniform(-1, 1) * box.height - high / 2, 0), 1 - high)
    return Box(x, y, min(1.0, x + wide), min(1.0, y + high))

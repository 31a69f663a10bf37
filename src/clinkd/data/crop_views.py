"""Samples for a teacher that sees only boxes: the same questions and answers, about images that are grey elsewhere."""

from __future__ import annotations

from dataclasses import replace

from clinkd.data.split import compute_hash_rank
from clinkd.records import Box, Sample

MARGINS = (0.1, 1.0)  # least and most of a margin, in sides of its box


def show_boxes_only(sample: Sample, seed: int) -> Sample:
    """The sample with only the boxes of its question and answer shown in its last image, each with a margin.

    The image keeps its size, so that the boxes of the answer stay where they are. Each of the four margins is drawn
    between `MARGINS` by seed and id: with equal ones the edge of the grey would tell the box to the pixel. A sample
    without boxes, or without images, stays as it is.
    """
    boxes = (*sample.question.boxes, *sample.answer.boxes)
    if not boxes or not sample.images:
        return sample
    shown = tuple(_widen(box, seed, f"{sample.id} {number}") for number, box in enumerate(boxes))
    return replace(sample, images=(*sample.images[:-1], replace(sample.images[-1], shown=shown)))


def _widen(box: Box, seed: int, name: str) -> Box:
    least, most = MARGINS
    left, up, right, down = (least + (most - least) * compute_hash_rank(seed, f"crop {k}", name) for k in range(4))
    return Box(
        max(0.0, box.x1 - left * box.width), max(0.0, box.y1 - up * box.height),
        min(1.0, box.x2 + right * box.width), min(1.0, box.y2 + down * box.height),
    )  # fmt: skip

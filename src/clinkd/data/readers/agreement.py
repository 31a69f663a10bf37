"""Boxes that several readers drew of one finding: kept apart, or made one box.

Two boxes of one name and of different readers are of one finding if their IoU is 0.5 or more, the overlap from which an
answer's box counts as right. A box joins others only if it overlaps with each of them so: else a chain of neighbours
would become one large box. The two boxes of one reader are two findings, however near they are. Boxes without a reader
count as boxes of different readers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from statistics import median
from typing import Literal

import numpy as np

from clinkd.boxes import iou_matrix
from clinkd.data.readers.rows import FieldError
from clinkd.records import Box

HowToMerge = Literal["keep", "union", "vote"]
OVERLAP = 0.5  # IoU
MOST_COMPARED = 200  # boxes of one name, of which is told that they overlap: more are cells, not readings of one

STAY_NOTE = (
    "boxes of one name overlap by half (IoU .5) or more and stay apart; where they are of several readers, "
    "--readers union or vote makes one of them"
)


def merge_readers(
    objects: Sequence[tuple[str, Box]],
    readers: Sequence[str],
    panel: Set[str],
    how: HowToMerge,
    notes: Counter[str],
) -> tuple[tuple[str, Box], ...]:
    """The pairs of name and box of an image, with one box for each finding of several readers.

    `readers`: who drew each box ("" where nobody is named), or nothing. `panel`: all who read the image, also those who
    drew nothing. "union": the smallest box that holds all of a finding. "vote": what more than half of the panel drew;
    each side lies at the median. "keep": all boxes, but an equal one once. `notes` counts what became of them. Raises
    FieldError if "vote" is asked and a box has no reader.
    """
    if how == "vote" and objects and not all(readers or [""]):
        why = (
            "--readers vote counts readers, and this box has none: name the column of readers, or give --readers union"
        )
        raise FieldError("reader", "", why)
    drawn = dict.fromkeys(
        (name, box, by) for (name, box), by in zip(objects, readers or [""] * len(objects), strict=True)
    )
    places: dict[str, list[int]] = {}
    for place, (name, _, _) in enumerate(drawn):
        places.setdefault(name, []).append(place)
    boxes, who = [box for _, box, _ in drawn], [by or f"box {place}" for place, (_, _, by) in enumerate(drawn)]
    merged: dict[int, tuple[str, Box]] = {}  # by the place of the first box of a finding
    for name, group in places.items():
        if how == "keep" and len(group) > MOST_COMPARED:
            findings = [[place] for place in group]
        else:
            findings = find_findings(group, boxes, who) if len(group) > 1 else [group]
        for finding in findings:
            parts = [boxes[place] for place in finding]
            kept = _merge(parts, how, len(panel | set(readers)), notes)
            merged |= {place: (name, box) for place, box in zip(finding, kept, strict=False)}
    different = tuple(dict.fromkeys(merged[place] for place in sorted(merged)))
    if repeated := len(objects) - len(drawn) + len(merged) - len(different):
        notes["boxes that stand twice under one name, taken once"] += repeated
    return different


def _merge(boxes: list[Box], how: HowToMerge, panel: int, notes: Counter[str]) -> list[Box]:
    """What becomes of the boxes of one finding. `panel`: the number of readers of the image."""
    if how == "vote" and 2 * len(boxes) <= panel:
        notes["boxes that half of the readers of their image or fewer drew, left out by --readers vote"] += len(boxes)
        return []
    if len(boxes) > 1 and how == "keep":
        if len(set(boxes)) > 1:
            notes[STAY_NOTE] += len(boxes)
        return boxes
    if len(boxes) > 1:
        notes[f"boxes of several readers that --readers {how} made part of another"] += len(boxes) - 1
    return [unite(boxes) if how == "union" else find_median(boxes)]


def find_findings(places: Sequence[int], boxes: Sequence[Box], readers: Sequence[str]) -> list[list[int]]:
    """The places of one name parted into findings. The pairs that overlap most are joined first.

    The order of the boxes does not matter. `boxes` and `readers` are those of all places.
    """
    order = sorted(places, key=lambda k: (boxes[k].corners, readers[k]))
    overlap = iou_matrix([boxes[k] for k in order], [boxes[k] for k in order])
    finding_of = {k: [k] for k in range(len(order))}
    pairs = zip(*np.nonzero(np.triu(overlap >= OVERLAP, 1)), strict=True)
    for i, j in sorted(pairs, key=lambda pair: -overlap[pair]):
        one, other = finding_of[i], finding_of[j]
        if not {readers[order[k]] for k in one}.isdisjoint(readers[order[k]] for k in other):
            continue
        if (overlap[np.ix_(one, other)] >= OVERLAP).all():
            one.extend(other)
            finding_of |= dict.fromkeys(other, one)
    findings = {id(finding): sorted(order[k] for k in finding) for finding in finding_of.values()}
    return sorted(findings.values())


def unite(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all boxes."""
    x1, y1, x2, y2 = zip(*(box.corners for box in boxes), strict=True)
    return Box(min(x1), min(y1), max(x2), max(y2))


def find_median(boxes: Sequence[Box]) -> Box:
    """The box whose sides lie at the medians of the sides of all."""
    x1, y1, x2, y2 = (median(values) for values in zip(*(box.corners for box in boxes), strict=True))
    return Box(x1, y1, x2, y2)

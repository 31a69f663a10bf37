"""Boxes as fractions of an image: their overlap, and pairs of boxes that match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from clinkd.records import Box


def iou_matrix(truth: Sequence[Box], predicted: Sequence[Box]) -> NDArray[np.float64]:
    """Intersection over union of every pair, [len(truth), len(predicted)], 0..1; exactly 1 for equal boxes."""
    return iou_of_corners(corners(truth), corners(predicted))


def iou_of_corners(truth_T4: NDArray[np.float64], predicted_P4: NDArray[np.float64]) -> NDArray[np.float64]:
    """`iou_matrix` of rows x1, y1, x2, y2. At most one box of each pair may be empty."""
    a, b = truth_T4[:, None], predicted_P4[None, :]  # [T,1,4], [1,P,4]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])  # [T,P,2]
    both = np.prod(np.clip(high - low, 0, None), axis=-1)
    union = np.prod(a[..., 2:] - a[..., :2], axis=-1) + np.prod(b[..., 2:] - b[..., :2], axis=-1) - both
    return cast(NDArray[np.float64], both / union)  # a Box is never empty, so the union is positive


def corners(boxes: Sequence[Box]) -> NDArray[np.float64]:
    """x1, y1, x2, y2 of each box, [N, 4]."""
    return np.array([(b.x1, b.y1, b.x2, b.y2) for b in boxes], dtype=np.float64).reshape(-1, 4)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0..1."""
    return float(iou_matrix([a], [b])[0, 0])


def match_boxes(truth: Sequence[Box], predicted: Sequence[Box], iou: float) -> list[tuple[int, int]]:
    """Pairs (truth index, predicted index), each box used once: the most pairs of IoU >= `iou` that are possible,
    and of such matchings the one with the largest summed IoU. Ordered by truth index. `iou` 0 pairs overlapping boxes.
    """
    return match_overlaps(iou_matrix(truth, predicted), iou)


def match_overlaps(overlap: NDArray[np.float64], iou: float) -> list[tuple[int, int]]:
    """`match_boxes` from the IoU of every pair, [T, P]."""
    fits = (overlap >= iou) & (overlap > 0)
    rows, columns = np.flatnonzero(fits.any(axis=1)), np.flatnonzero(fits.any(axis=0))
    if len(rows) == 0:
        return []
    if len(rows) == 1:
        return [(int(rows[0]), int(np.argmax(np.where(fits[rows[0]], overlap[rows[0]], -1))))]
    more_than_any_sum = 1.0 + min(len(rows), len(columns))  # so that one more pair always outweighs better overlap
    worth = np.where(fits, more_than_any_sum + overlap, 0.0)[np.ix_(rows, columns)]
    return [(int(rows[r]), int(columns[c])) for r, c in assign(worth) if worth[r, c] > 0]


def assign(worth: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """(row, column) of the one-to-one assignment with the greatest summed worth, ordered by row."""
    from scipy.optimize import linear_sum_assignment  # here, as commands that match no boxes start faster without it

    return zip(*linear_sum_assignment(worth, maximize=True), strict=True)

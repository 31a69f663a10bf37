"""VG: boxes one to one. Shapes: T truth boxes, A answered boxes, P pairs of one of each, N answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinkd.boxes import corners, match_overlaps
from clinkd.language.sides import has_no_sides
from clinkd.records import Box, Task
from clinkd.scoring.captions import Counts
from clinkd.scoring.measure import (
    IN_COMPARISON,
    NOTHING_SAID,
    Measure,
    Metric,
    Ratio,
    Rules,
    SampleAnswer,
    make_f1,
    make_ratio,
)

# Largest area of a small and of a medium box, as a share of the image: sides of one tenth and of three tenths. COCO's
# two limits have the same ratio (32 and 96 pixels a side). They are shares because medical images have any size and
# are resized before a model sees them.
SIZES = (("small", 0.01), ("medium", 0.09), ("large", float("inf")))
_AREA_LIMITS = np.array([limit for _, limit in SIZES[:-1]])


# Thresholds that papers print hits at: .25, .5 and .75 of phrase grounding ("Acc@0.5" is Recall@0.5 where a question
# has one box), .3, .5 and .7 of weakly supervised localisation of findings (ChestX-ray8, Wang et al. 2017).
HIT_IOUS = (0.25, 0.3, 0.5, 0.7, 0.75)
COCO_IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
_BOX_COLUMNS = (
    *("answers", "truth boxes", "answered boxes", "found", "touching", "their IoU", "found at .5 to .95"),
    *(f"found at {iou}" for iou in HIT_IOUS),
    *(f"{size} truth boxes" for size, _ in SIZES),
    *(f"{size} found" for size, _ in SIZES),
    *("truth boxes with a side", "on the other side", "answers without a truth box", "of these with a box"),
)
_ANSWERS_PER_BLOCK = 2048  # answers whose boxes are paired together: bounds memory where answers hold hundreds of boxes


def _count_boxes(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    parts = [
        _count_some_boxes(items[i : i + _ANSWERS_PER_BLOCK], rules.iou)
        for i in range(0, len(items), _ANSWERS_PER_BLOCK)
    ]
    return np.concatenate([np.zeros((0, len(_BOX_COLUMNS))), *parts])


def _count_some_boxes(items: Sequence[SampleAnswer], iou: float) -> Counts:
    truth, answered = [i.sample.answer.boxes for i in items], [i.answer.answer.boxes for i in items]
    pairs = _BoxPairs.from_boxes(truth, answered)
    truth_T4, answered_A4 = (corners([b for boxes in side for b in boxes]) for side in (truth, answered))
    mirror_T4 = _mirror_boxes(truth_T4)
    overlap_P = _compute_row_ious(truth_T4[pairs.truth_P], answered_A4[pairs.answered_P])
    found_P, touching_P = pairs.match_pairs(overlap_P, iou), pairs.match_pairs(overlap_P, 0.0)
    found_at = {t: pairs.sum_pairs(pairs.match_pairs(overlap_P, t)) for t in {*HIT_IOUS, *COCO_IOUS}}
    found_T, used_A = (np.zeros(len(boxes), dtype=bool) for boxes in (truth_T4, answered_A4))
    found_T[pairs.truth_P[found_P]] = used_A[pairs.answered_P[found_P]] = True
    # not its own mirror image, in a picture where mirrored means the other side
    with_sides_N = np.array([not has_no_sides(i.sample) for i in items], dtype=bool)
    sided_T = (_compute_row_ious(truth_T4, mirror_T4) < iou) & np.repeat(with_sides_N, pairs.num_truth_N)
    # a missed box whose mirror image overlaps with a spare box of the answer
    open_P = (sided_T & ~found_T)[pairs.truth_P] & ~used_A[pairs.answered_P]
    mirrored_P = np.where(open_P, _compute_row_ious(mirror_T4[pairs.truth_P], answered_A4[pairs.answered_P]), 0.0)
    size_T = np.searchsorted(_AREA_LIMITS, _compute_areas(truth_T4), side="right")
    num_truth, num_answered = pairs.num_truth_N, pairs.num_answered_N
    # The answer also claims a box that could not be read: it lowers precision and finds nothing.
    num_claimed = num_answered + np.array([len(i.answer.unread) for i in items])
    columns = {
        "answers": np.ones(len(items)),
        "truth boxes": num_truth,
        "answered boxes": num_claimed,
        "found": pairs.sum_pairs(found_P),
        "found at .5 to .95": np.mean([found_at[t] for t in COCO_IOUS], axis=0),
        **{f"found at {t}": found_at[t] for t in HIT_IOUS},
        "touching": pairs.sum_pairs(touching_P),
        "their IoU": pairs.sum_pairs(np.where(touching_P, overlap_P, 0.0)),
        "truth boxes with a side": pairs.sum_truth(sided_T),
        "on the other side": pairs.sum_pairs(pairs.match_pairs(mirrored_P, iou)),
        "answers without a truth box": num_truth == 0,
        "of these with a box": (num_truth == 0) & (num_claimed > 0),
    }
    for size_code, (size, _) in enumerate(SIZES):
        columns[f"{size} truth boxes"] = pairs.sum_truth(size_T == size_code)
        columns[f"{size} found"] = pairs.sum_truth((size_T == size_code) & found_T)
    return np.column_stack([columns[c] for c in _BOX_COLUMNS]).astype(np.float64)


def find_best_overlaps(truth: Sequence[Sequence[Box]], answered: Sequence[Sequence[Box]]) -> Counts:
    """[T] by truth box, the best IoU with a box of the answer to its question, 0 without one. One box of an answer may
    be the best of several truth boxes."""
    best = [np.zeros(0)]
    for i in range(0, len(truth), _ANSWERS_PER_BLOCK):
        sides = truth[i : i + _ANSWERS_PER_BLOCK], answered[i : i + _ANSWERS_PER_BLOCK]
        pairs = _BoxPairs.from_boxes(*sides)
        truth_T4, answered_A4 = (corners([b for boxes in side for b in boxes]) for side in sides)
        best.append(np.zeros(len(truth_T4)))
        overlap_P = _compute_row_ious(truth_T4[pairs.truth_P], answered_A4[pairs.answered_P])
        np.maximum.at(best[-1], pairs.truth_P, overlap_P)
    return np.concatenate(best)


@dataclass(frozen=True, slots=True)
class _BoxPairs:
    """Every truth box of an answer with every box of that answer, over N answers: P pairs, ordered by answer, then by
    truth box. T truth boxes and A answered boxes of all answers stand in two flat rows."""

    num_truth_N: NDArray[np.intp]
    num_answered_N: NDArray[np.intp]
    start_N: NDArray[np.intp]  # the first pair of each answer
    answer_T: NDArray[np.intp]  # the answer of each truth box
    answer_P: NDArray[np.intp]
    truth_P: NDArray[np.intp]
    answered_P: NDArray[np.intp]

    @classmethod
    def from_boxes(cls, truth: Sequence[Sequence[Box]], answered: Sequence[Sequence[Box]]) -> _BoxPairs:
        num_truth_N, num_answered_N = (np.array([len(b) for b in side], dtype=np.intp) for side in (truth, answered))
        num_N, answers_N = num_truth_N * num_answered_N, np.arange(len(truth))
        answer_P = np.repeat(answers_N, num_N)
        within_P = np.arange(len(answer_P)) - _find_starts(num_N)[answer_P]
        row_P, column_P = np.divmod(within_P, num_answered_N[answer_P])
        truth_P, answered_P = (
            _find_starts(num_truth_N)[answer_P] + row_P,
            _find_starts(num_answered_N)[answer_P] + column_P,
        )
        answer_T = np.repeat(answers_N, num_truth_N)
        return cls(num_truth_N, num_answered_N, _find_starts(num_N), answer_T, answer_P, truth_P, answered_P)

    def match_pairs(self, overlap_P: Counts, iou: float) -> NDArray[np.bool_]:
        """[P] whether `match_boxes` pairs the two within their answer. Where no box fits two others, all that fit are
        pairs."""
        matched_P = (overlap_P >= iou) & (overlap_P > 0)
        truth, answered = self.truth_P[matched_P], self.answered_P[matched_P]
        contested = (np.bincount(truth)[truth] > 1) | (np.bincount(answered)[answered] > 1)
        for answer in np.unique(self.answer_P[matched_P][contested]):
            start, width = self.start_N[answer], self.num_answered_N[answer]
            block = slice(start, start + self.num_truth_N[answer] * width)
            matched_P[block] = False
            for row, column in match_overlaps(overlap_P[block].reshape(-1, width), iou):
                matched_P[start + row * width + column] = True
        return matched_P

    def sum_pairs(self, values_P: NDArray[Any]) -> Counts:
        """[N] the sum over the pairs of each answer."""
        return np.bincount(self.answer_P, values_P, len(self.num_truth_N)).astype(np.float64)

    def sum_truth(self, values_T: NDArray[Any]) -> Counts:
        """[N] the sum over the truth boxes of each answer."""
        return np.bincount(self.answer_T, values_T, len(self.num_truth_N)).astype(np.float64)


def _find_starts(sizes_N: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.cumsum(sizes_N) - sizes_N


def _mirror_boxes(boxes_B4: Counts) -> Counts:
    """The boxes with left and right exchanged."""
    x1, y1, x2, y2 = boxes_B4.T
    return np.column_stack([1 - x2, y1, 1 - x1, y2])


def _compute_areas(boxes_B4: Counts) -> Counts:
    x1, y1, x2, y2 = boxes_B4.T
    return np.asarray((x2 - x1) * (y2 - y1))


def _compute_row_ious(a_B4: Counts, b_B4: Counts) -> Counts:
    """[B] the IoU of each pair of rows, by the same arithmetic as `iou_matrix`."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a_B4.T, b_B4.T
    width, height = np.minimum(ax2, bx2) - np.maximum(ax1, bx1), np.minimum(ay2, by2) - np.maximum(ay1, by1)
    intersection = np.clip(width, 0, None) * np.clip(height, 0, None)
    return np.asarray(intersection / (_compute_areas(a_B4) + _compute_areas(b_B4) - intersection))


# A spare or a missing box counts as an IoU of 0.
_MEAN_IOU = Ratio(
    itemgetter("their IoU"), lambda s: s["truth boxes"] + s["answered boxes"] - s["touching"], binary=False
)

BOXES = Measure(
    (Task.VG,),
    _BOX_COLUMNS,
    _count_boxes,
    (
        Metric(
            "F1",
            make_f1("found", "truth boxes", "answered boxes"),
            primary_of=(Task.VG,),
            shown=IN_COMPARISON,
            missing=NOTHING_SAID,
        ),
        Metric("Precision", make_ratio("found", "answered boxes"), shown=IN_COMPARISON, missing=NOTHING_SAID),
        Metric("Recall", make_ratio("found", "truth boxes"), shown=("comparison", "ablation")),
        Metric("mIoU", _MEAN_IOU, shown=("comparison", "question", "ablation")),
        *(Metric(f"Recall@{iou}", make_ratio(f"found at {iou}", "truth boxes")) for iou in HIT_IOUS),
        *(
            Metric(f"F1@{name}", make_f1(f"found at {iou}", "truth boxes", "answered boxes"), missing=NOTHING_SAID)
            for iou, name in ((".5 to .95", "[.5:.95]"), *((iou, str(iou)) for iou in (0.25, 0.5, 0.75)))
        ),
        Metric(
            "False boxes where none is",
            make_ratio("of these with a box", "answers without a truth box"),
            better="lower",
        ),
        *(Metric(f"Recall, {size} boxes", make_ratio(f"{size} found", f"{size} truth boxes")) for size, _ in SIZES),
        Metric(
            "Left-right swaps",
            make_ratio("on the other side", "truth boxes with a side"),
            shown=IN_COMPARISON,
            better="lower",
        ),
    ),
)

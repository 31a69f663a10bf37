"""VG with a score for each box: average precision as COCO has it, and FROC.

Both rank the boxes of all images together, so they are figures of a whole set, not sums over answers.

COCO: Lin et al. 2014, computed by pycocotools. FROC: Bunch et al. 1978; its mean at seven rates of false positives, and
the straight lines between thresholds, as in LUNA16 (Setio et al. 2017) and CAMELYON16 (Ehteshami Bejnordi et al. 2017).
Shapes: B boxes, T truth boxes, G groups of images, R replicates.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinkd.boxes import corners, iou_of_corners
from clinkd.records import Box, Candidate, ImageRef, Prediction, Sample, Table, Task
from clinkd.scoring.bootstrap import draw_group_weights, widen_points
from clinkd.scoring.captions import Counts
from clinkd.scoring.intervals import scale_interval
from clinkd.scoring.score import spell_interval

PRECISIONS = ("AP@[.5:.95]", "AP50", "AP75")
FALSE_POSITIVES = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2, "1": 1.0, "2": 2.0, "4": 4.0, "8": 8.0}  # an image
MOST_BOXES = 100  # of a class in an image that COCO's average precision looks at
REPLICATES = 200  # of FROC
MEAN = "mean"


class DetectorBox(NamedTuple):
    """A box of COCO results as it stands: left, top, width and height in pixels, not cut at the border."""

    image: str
    name: str
    score: float | None
    bbox: tuple[float, float, float, float]


class DetectorOutput(NamedTuple):
    """Boxes of COCO results, those of names that are not in their image, too; and the paths of all images of the split.
    Both are empty for other answers."""

    images: frozenset[str] = frozenset()
    boxes: Sequence[DetectorBox] = ()


@dataclass(frozen=True, slots=True)
class Detection:
    """Figures x100. `precision` has those of `PRECISIONS` by class (the class is "" where the data name none), NaN of a
    class without a truth box. `sensitivity` and `intervals` (95 %) are by the names of `FALSE_POSITIVES`, and "mean".
    All are empty where `why` says why nothing was computed. `iou`: from which a box hits, for FROC."""

    images: int
    truth_boxes: int
    boxes: int
    iou: float
    why: str | None = None
    precision: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)

    @property
    def mean_precision(self) -> tuple[float, ...]:
        """The mean of each of `PRECISIONS` over the classes that have truth boxes."""
        return tuple(np.nanmean(list(self.precision.values()), axis=0).tolist())

    def to_json(self) -> dict[str, Any]:
        by_class = {
            name: dict(zip(PRECISIONS, values, strict=True)) if values[0] >= 0 else None
            for name, values in self.precision.items()
            if name
        }
        return {
            **dict(zip(PRECISIONS, self.mean_precision if self.precision else [None] * 3, strict=True)),
            "by_class": by_class,
            "FROC": self.sensitivity.get(MEAN),
            "sensitivity": {k: {"score": v, "interval": self.intervals[k]} for k, v in self.sensitivity.items()},
            **{name: getattr(self, name) for name in ("images", "truth_boxes", "boxes", "iou", "why")},
        }

    def tables(self) -> list[Table]:
        """Average precision by class, and the sensitivity at each rate of false positives; none where not computed."""
        if self.why:
            return []
        rows = [(name or "all boxes", *map(_spell, values)) for name, values in self.precision.items()]
        if len(rows) > 1:
            num_classes = sum(values[0] >= 0 for values in self.precision.values())
            rows.insert(0, (f"mean of {num_classes} classes", *map(_spell, self.mean_precision)))
        note = f"x100, as COCO computes it, with the first {MOST_BOXES} boxes of a class in an image; no interval."
        precision = Table("Average precision", ("class", *PRECISIONS), tuple(rows), (note,), "average_precision")
        note = (
            f"x100; {self.truth_boxes:,} truth boxes in {self.images:,} images, those without a truth box included. A "
            f"box hits from IoU {self.iou:g} on; a second box on a truth that is found is no false positive (LUNA16, "
            f"CAMELYON16). 95 %: bootstrap by group, {REPLICATES} replicates."
        )
        lines = tuple((k, _spell(v), spell_interval(self.intervals[k])) for k, v in self.sensitivity.items())
        froc = Table("FROC", ("false positives an image", "sensitivity", "95 %"), lines, (note,), "froc")
        return [precision, froc]


def _spell(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f}"


class _ClassInImage(NamedTuple):
    """The boxes of one class in one image: x1, y1, x2, y2 in pixels. `truth_T4` [T, 4], `boxes_B4` [B, 4]."""

    name: str
    group: str
    truth_T4: Counts
    boxes_B4: Counts
    scores: Sequence[float | None]


def measure_detection(
    samples: Sequence[Sample], predictions: Sequence[Prediction], iou: float, output: DetectorOutput | None = None
) -> Detection | None:
    """Average precision and FROC of the questions of VG; None where there is none. One prediction for each sample, in
    their order; of each its answer counts. The boxes of `output`, where it has any, count in the place of the answers'.
    Two questions for one class in an image are two images of it.
    """
    output = output or DetectorOutput()
    asked = [(s, p.answer) for s, p in zip(samples, predictions, strict=True) if s.task is Task.VG]
    if not asked:
        return None
    groups = {path: path for path in output.images} | {s.images[0].path: s.group for s, _ in asked}
    parts = _gather_output(asked, output, groups) if output.boxes else [_gather_answer(s, a, groups) for s, a in asked]
    num_truth, num_boxes = (sum(len(part[k]) for part in parts) for k in (2, 3))
    unscored = sum(len(part.boxes_B4) - sum(score is not None for score in part.scores) for part in parts)
    why = None
    if not num_truth:
        why = "no question has a truth box"
    elif not num_boxes:
        why = "no answer has a box"
    elif unscored:
        why = f"{unscored:,} of {num_boxes:,} boxes have no score"
    detection = Detection(len(groups), num_truth, num_boxes, iou, why)
    if why:
        return detection
    sensitivity, intervals = _compute_froc(parts, list(groups.values()), iou)
    return replace(
        detection, precision=_compute_precision_by_class(parts), sensitivity=sensitivity, intervals=intervals
    )


def _gather_answer(sample: Sample, answer: Candidate, groups: Mapping[str, str]) -> _ClassInImage:
    truth_T4, boxes_B4 = (_to_pixels(boxes, sample.images[0]) for boxes in (sample.answer.boxes, answer.answer.boxes))
    return _ClassInImage(", ".join(sample.names), groups[sample.images[0].path], truth_T4, boxes_B4, answer.box_scores)


def _gather_output(
    asked: Sequence[tuple[Sample, Candidate]], output: DetectorOutput, groups: Mapping[str, str]
) -> list[_ClassInImage]:
    found: dict[tuple[str, str], list[DetectorBox]] = defaultdict(list)
    for box in output.boxes:
        found[box.image, box.name].append(box)
    truths = {(s.images[0].path, ", ".join(s.names)): _to_pixels(s.answer.boxes, s.images[0]) for s, _ in asked}
    parts = []
    for image, name in dict.fromkeys((*truths, *found)):
        boxes = found[image, name]
        boxes_B4 = np.array([box.bbox for box in boxes], dtype=np.float64).reshape(-1, 4)
        boxes_B4[:, 2:] += boxes_B4[:, :2]
        truth_T4 = truths.get((image, name), np.zeros((0, 4)))
        parts.append(_ClassInImage(name, groups[image], truth_T4, boxes_B4, [box.score for box in boxes]))
    return parts


def _to_pixels(boxes: Sequence[Box], image: ImageRef) -> Counts:
    """[N, 4] rounded, so that whole pixels, and with them an IoU of exactly a half, come back from fractions."""
    width, height = image.width or 1000, image.height or 1000  # unknown: the IoU is the same in any unit
    return np.round(corners(boxes) * (width, height, width, height), 6)


# ---- average precision ----------------------------------------------------------------------------------------------


def _compute_precision_by_class(parts: Sequence[_ClassInImage]) -> dict[str, Sequence[float]]:
    by_class: dict[str, list[_ClassInImage]] = defaultdict(list)
    for part in parts:
        by_class[part.name].append(part)
    return {name: _compute_precision(by_class[name]) for name in sorted(by_class)}


def _compute_precision(parts: Sequence[_ClassInImage]) -> tuple[float, ...]:
    """x100, each of `PRECISIONS` of one class; NaN without a truth box."""
    if not any(len(part.truth_T4) for part in parts):
        return (np.nan,) * len(PRECISIONS)
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):  # it tells each of its steps
        evaluation = COCOeval(*(_build_coco(parts, of_truth) for of_truth in (True, False)), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, float("inf")]], ["all"]
        evaluation.params.maxDets = [MOST_BOXES]
        evaluation.evaluate()
        evaluation.accumulate()
    precision_IR = evaluation.eval["precision"][:, :, 0, 0, 0]  # by IoU .5 to .95, and by recall
    return tuple(100 * float(np.mean(chosen)) for chosen in (precision_IR, precision_IR[0], precision_IR[5]))


def _build_coco(parts: Sequence[_ClassInImage], of_truth: bool) -> Any:
    """The truth, or the answers, of one class, as pycocotools holds them."""
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image, part in enumerate(parts):
        boxes, scores = (part.truth_T4, [1.0] * len(part.truth_T4)) if of_truth else (part.boxes_B4, part.scores)
        for (x1, y1, x2, y2), score in zip(boxes.tolist(), scores, strict=True):
            bbox, number = [x1, y1, x2 - x1, y2 - y1], len(annotations) + 1
            annotation = {"id": number, "image_id": image, "category_id": 1, "bbox": bbox, "area": bbox[2] * bbox[3]}
            annotations.append({**annotation, "iscrowd": 0, "score": score})
    coco = COCO()
    coco.dataset = {"images": [{"id": i} for i in range(len(parts))], "categories": [{"id": 1}]}
    coco.dataset["annotations"] = annotations
    coco.createIndex()
    return coco


# ---- FROC -----------------------------------------------------------------------------------------------------------


class _RankedBoxes(NamedTuple):
    """Boxes that hit a truth first, or none, by falling score. `last_B`: whether the next has a lower score."""

    hit_B: NDArray[np.bool_]
    group_B: NDArray[np.intp]
    last_B: NDArray[np.bool_]

    def interpolate(self, weight_G: Counts, num_images: float, num_truth: float) -> Counts:
        """[7] the sensitivity at each of `FALSE_POSITIVES`, on straight lines between thresholds."""
        weight_B = weight_G[self.group_B]
        hits, misses = (np.cumsum(weight_B * kind)[self.last_B] for kind in (self.hit_B, ~self.hit_B))
        rates = np.append(0.0, misses / num_images)
        return np.asarray(np.interp(list(FALSE_POSITIVES.values()), rates, np.append(0.0, hits / num_truth)))


def _compute_froc(
    parts: Sequence[_ClassInImage], image_groups: Sequence[str], iou: float
) -> tuple[dict[str, float], dict[str, tuple[float, float] | None]]:
    """x100: the sensitivity by rate of false positives and its mean, and their intervals."""
    code = {group: g for g, group in enumerate(sorted(set(image_groups)))}
    images_G = np.bincount([code[group] for group in image_groups], minlength=len(code))
    part_groups = [code[part.group] for part in parts]
    truth_G = np.bincount(part_groups, [len(part.truth_T4) for part in parts], len(code))
    judged = [(score, g, hit) for g, part in zip(part_groups, parts, strict=True) for score, hit in _judge(part, iou)]
    scores, groups, hits = (np.array(values) for values in zip(*judged, strict=True))
    order = np.argsort(-scores, kind="stable")
    ranked = _RankedBoxes(hits[order].astype(bool), groups[order], np.append(np.diff(scores[order]) != 0, True))
    weights_RG = np.vstack(
        [np.ones(len(code)), draw_group_weights(np.random.default_rng([2, *b"FROC"]), len(code), REPLICATES)]
    )
    weights_RG = weights_RG[weights_RG @ truth_G > 0]  # a replicate without a truth box has no sensitivity
    drawn_R7 = np.array([ranked.interpolate(w, w @ images_G, w @ truth_G) for w in weights_RG])
    drawn_R8 = np.column_stack([drawn_R7, drawn_R7.mean(axis=1)])
    names, num_groups = [*FALSE_POSITIVES, MEAN], int((truth_G > 0).sum())
    ends = np.percentile(drawn_R8[1:], [2.5, 97.5], axis=0).T if num_groups > 1 else np.full((len(names), 2), np.nan)
    [ends] = widen_points(drawn_R8[:1], ends[None], np.array([num_groups]))
    intervals = dict(zip(names, map(scale_interval, ends), strict=True))
    return dict(zip(names, (100 * drawn_R8[0]).tolist(), strict=True)), intervals


def _judge(part: _ClassInImage, iou: float) -> Iterator[tuple[float, bool]]:
    """The score of each box, and whether it is the first on a truth; boxes on truths that are found are left out."""
    scores_B = np.array(part.scores, dtype=np.float64)
    if not len(part.truth_T4):
        yield from ((score, False) for score in scores_B)
        return
    overlap_TB = iou_of_corners(part.truth_T4, part.boxes_B4)
    free_T = np.ones(len(part.truth_T4), dtype=bool)
    for b in np.argsort(-scores_B, kind="stable"):
        fits_T = overlap_TB[:, b] >= iou
        if (fits_T & free_T).any():
            free_T[np.argmax(np.where(fits_T & free_T, overlap_TB[:, b], -1.0))] = False
            yield scores_B[b], True
        elif not fits_T.any():
            yield scores_B[b], False

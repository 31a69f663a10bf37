"""The numbers behind the figures of a page: overlaps of boxes, confusion of names, and calibration, as plain JSON.

Each part that rests on too little has `why` in the place of its numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinkd.language.facts import Lexicon
from clinkd.records import Prediction, Sample, Task
from clinkd.scoring.calibration import describe_calibration
from clinkd.scoring.captions import Counts
from clinkd.scoring.measure import SampleAnswer
from clinkd.scoring.measures.boxes import find_best_overlaps
from clinkd.scoring.measures.names import read_classes

FEWEST = 20  # truth boxes or answers, below which a figure shows chance
MOST_CLASSES = 12  # of the confusion of names
OTHER, NONE, SEVERAL = "another class", "no class", "several classes"
_HISTOGRAM = np.arange(21) / 20
_THRESHOLDS = np.arange(1, 20) / 20
_AREAS = np.array([0.0, 0.0025, 0.01, 0.04, 0.09, 0.25, 1.0])  # shares of the image: sides of .05, .1, .2, .3, .5


def describe_figures(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    blind: tuple[str, Sequence[Prediction]] | None,
    figures: Mapping[str, Mapping[str, float]],
    lexicon: Lexicon,
    replicates: int,
) -> dict[str, Any]:
    """The parts `boxes` (VG), `names` (ROC) and `calibration` (by task), of the tasks that were asked.

    `blind`: the best image-blind baseline of VG and its predictions. `figures`: by sample, those of its one answer.
    """
    answers = {p.id: p for p in predictions}
    described: dict[str, Any] = {}
    if boxed := [s for s in samples if s.task is Task.VG]:
        rows = {"model": answers, **({"blind": {p.id: p for p in blind[1]}} if blind else {})}
        described["boxes"] = {**_describe_boxes(boxed, rows), "blind_is": blind[0] if blind else None}
    if named := [SampleAnswer(s, answers[s.id].answer) for s in samples if s.task is Task.ROC]:
        described["names"] = _describe_names(named, lexicon)
    described["calibration"] = describe_calibration(samples, answers, figures, replicates)
    return described


# ---- boxes ----------------------------------------------------------------------------------------------------------


def _describe_boxes(samples: Sequence[Sample], rows: Mapping[str, Mapping[str, Prediction]]) -> dict[str, Any]:
    """The best IoU of each truth box: its histogram, the share at each threshold, and the mean by size of the box."""
    truth = [s.answer.boxes for s in samples]
    area_T = np.array([box.area for boxes in truth for box in boxes])
    if len(area_T) < FEWEST:
        return {"truth_boxes": len(area_T), "why": f"{len(area_T)} truth boxes are too few, {FEWEST} are wanted"}
    best = {
        row: find_best_overlaps(truth, [p[s.id].answer.answer.boxes if s.id in p else () for s in samples])
        for row, p in rows.items()
    }
    size_T = np.clip(np.searchsorted(_AREAS, area_T, side="left") - 1, 0, len(_AREAS) - 2)
    count_S = np.bincount(size_T, minlength=len(_AREAS) - 1)
    return {
        "truth_boxes": len(area_T),
        "histogram": {
            "edges": _HISTOGRAM.tolist(),
            "counts": {row: np.histogram(best_T, _HISTOGRAM)[0].tolist() for row, best_T in best.items()},
        },
        "recall": {
            "thresholds": _THRESHOLDS.tolist(),
            "shares": {row: (best_T[:, None] >= _THRESHOLDS).mean(0).tolist() for row, best_T in best.items()},
        },
        "size": {
            "edges": _AREAS.tolist(),
            "counts": count_S.tolist(),
            "mean_iou": {row: _mean_by_size(best_T, size_T, count_S) for row, best_T in best.items()},
        },
    }


def _mean_by_size(best_T: Counts, size_T: NDArray[np.intp], count_S: NDArray[np.intp]) -> list[float | None]:
    sums_S = np.bincount(size_T, best_T, len(count_S))
    return [float(total / count) if count else None for total, count in zip(sums_S, count_S, strict=True)]


# ---- names ----------------------------------------------------------------------------------------------------------


def _describe_names(items: Sequence[SampleAnswer], lexicon: Lexicon) -> dict[str, Any]:
    """How often each class was called which: rows are the commonest classes of the truth, columns what was named."""
    if len(items) < FEWEST:
        return {"answers": len(items), "why": f"{len(items)} answers are too few, {FEWEST} are wanted"}
    pairs = [tuple(_find_class(names) for names in read_classes(item, lexicon)) for item in items]
    common = Counter(truth for truth, _ in pairs if truth not in (NONE, SEVERAL))
    classes = [name for name, _ in common.most_common(MOST_CLASSES)]
    names = [*classes, OTHER, NONE, SEVERAL]
    known = {name: name for name in names}
    counted = Counter((known.get(truth, OTHER), known.get(named, OTHER)) for truth, named in pairs)
    rows = [name for name in names if name in classes or any(truth == name for truth, _ in counted)]
    return {
        "answers": len(items),
        "classes": len(common),
        "rows": rows,
        "columns": names,
        "counts": [[counted[truth, named] for named in names] for truth in rows],
    }


def _find_class(names: set[str]) -> str:
    return SEVERAL if len(names) > 1 else next(iter(names), NONE)

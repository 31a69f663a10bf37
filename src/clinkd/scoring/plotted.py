"""The numbers behind the figures of a page: overlaps of boxes, confusion of names, how far confidences and token
probabilities can be believed, as plain JSON.

Each part that rests on too little has `why` in the place of its numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinkd.language.agreement import is_wrong
from clinkd.language.facts import Lexicon
from clinkd.records import Prediction, Sample, Task, name_kind
from clinkd.scoring.calibration import Probabilities, describe_probabilities
from clinkd.scoring.captions import Counts
from clinkd.scoring.measure import SampleAnswer
from clinkd.scoring.measures.boxes import find_best_overlaps
from clinkd.scoring.measures.names import read_classes
from clinkd.scoring.metrics import PRIMARY_METRIC

FEWEST = 20  # truth boxes or answers, below which a figure shows chance
FEWEST_PROBABILITIES = 30
_NO_PROBABILITIES = "the answers bring no probabilities"
_NO_THRESHOLD = "a caption is more or less right: no threshold makes it right or wrong"
NO_CONFIDENCES = "the answers bring none: only those of a run of this version do, by a fit to its validation answers"
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
    """The parts `boxes` (VG), `names` (ROC) and `token_probability` (by task), of the tasks that were asked.

    `blind`: the best image-blind baseline of VG and its predictions. `figures`: by sample, those of its one answer.
    """
    answers = {p.id: p for p in predictions}
    described: dict[str, Any] = {}
    if boxed := [s for s in samples if s.task is Task.VG]:
        rows = {"model": answers, **({"blind": {p.id: p for p in blind[1]}} if blind else {})}
        described["boxes"] = {**_describe_boxes(boxed, rows), "blind_is": blind[0] if blind else None}
    if named := [SampleAnswer(s, answers[s.id].answer) for s in samples if s.task is Task.ROC]:
        described["names"] = _describe_names(named, lexicon)
    described["token_probability"] = _describe_token_probability(samples, answers, figures, replicates)
    return described


# ---- confidences and token probabilities ----------------------------------------------------------------------------


def describe_confidence(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    lexicon: Lexicon,
    absences: Mapping[str, str],
    replicates: int,
) -> dict[str, Any]:
    """By kind of question, as for a free one (`records.name_kind`), how far the confidence that is told can be
    believed, and under `token_probability` the same of the token probability of the same answers; or `why` not.

    Right is what the confidence is fitted to: `is_wrong` has the rule. `absences`: by kind, why answers have none.
    """
    asked = {s.id: s for s in samples}
    by_kind: dict[str, list[Prediction]] = {}
    for p in predictions:
        by_kind.setdefault(name_kind(asked[p.id].question, p.answer.answer), []).append(p)
    described: dict[str, Any] = {}
    for kind, of_kind in sorted(by_kind.items(), key=lambda entry: -len(entry[1])):
        known = [p for p in of_kind if p.confidence is not None]
        counts = {"answers": len(known), "of": len(of_kind)}
        absence = {"absence": absences.get(kind, NO_CONFIDENCES)} if len(known) < len(of_kind) else {}
        if len(known) < FEWEST_PROBABILITIES:
            why = _count_too_few(len(known)) if known else absence["absence"]
            described[kind] = {**counts, "why": why}
            continue
        right = np.array([not is_wrong(p.answer.answer, asked[p.id].answer, lexicon.names) for p in known])
        groups = [asked[p.id].group for p in known]
        described[kind] = {**counts, **absence}
        described[kind] |= describe_probabilities(
            Probabilities(np.array([p.confidence for p in known], float), right, groups), replicates
        )
        if all(p.answer.logprob is not None for p in known):
            tokens = Probabilities(np.exp([float(p.answer.logprob or 0) for p in known]), right, groups)
            described[kind]["token_probability"] = describe_probabilities(tokens, replicates)
    return described


def _describe_token_probability(
    samples: Sequence[Sample],
    predictions: Mapping[str, Prediction],
    figures: Mapping[str, Mapping[str, float]],
    replicates: int,
) -> dict[str, Any]:
    """By task how far the token probability, exp(`logprob`) of the chosen answer, can be believed; or `why` not.

    It is the geometric mean of the probabilities of its tokens, which is no probability of the answer. An answer is
    right where its primary metric is 1 (`figures`: by sample, 0..1); to a question for a box that is not there, no box
    is right.
    """
    described: dict[str, Any] = {}
    for task in (t for t in Task if any(s.task is t for s in samples)):
        asked = [s for s in samples if s.task is task]
        known = [s for s in asked if predictions[s.id].answer.logprob is not None]
        logprobs = [float(predictions[s.id].answer.logprob or 0.0) for s in known]
        if why := _find_reason(task, len(known), logprobs):
            described[task.value] = {"why": why}
            continue
        right = [figures.get(s.id, {}).get(PRIMARY_METRIC[task], float(task is Task.VG)) == 1 for s in known]
        answers = Probabilities(np.exp(logprobs), np.array(right), [s.group for s in known])
        counts = {"answers": len(known), "of": len(asked)}
        described[task.value] = {**counts, **describe_probabilities(answers, replicates)}
    return described


def _find_reason(task: Task, answers: int, logprobs: Sequence[float]) -> str:
    if task in (Task.RC, Task.MIA):
        return _NO_THRESHOLD
    if not answers:
        return _NO_PROBABILITIES
    if any(not value <= 1e-6 for value in logprobs):
        return "a value given as log-probability is above 0 or no number, so it is none"
    return _count_too_few(answers) if answers < FEWEST_PROBABILITIES else ""


def _count_too_few(answers: int) -> str:
    return f"{answers} answers with probabilities are too few, {FEWEST_PROBABILITIES} are wanted"


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

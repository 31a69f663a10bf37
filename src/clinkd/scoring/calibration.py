"""How far the confidence of answers can be believed: reliability, ECE, the Brier score, and risk by coverage.

Shapes: N answers, B bins, G groups, R bootstrap replicates. Confidences are 0..1, and an answer is right or wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinkd.records import Prediction, Sample, Task
from clinkd.scoring.bootstrap import draw_group_weights, replicate
from clinkd.scoring.captions import Counts
from clinkd.scoring.intervals import wilson_interval
from clinkd.scoring.metrics import PRIMARY_METRIC

BINS = 15  # as Guo et al. 2017
FEWEST = 30  # answers, below which nothing is computed
_SIMULATIONS = 200
_MOST_POINTS = 100  # of the risk-coverage curve as it is kept
_GRADED = (Task.RC, Task.MIA)
NO_PROBABILITIES = "the answers bring no probabilities"
NO_THRESHOLD = "a caption is more or less right: no threshold makes it right or wrong"


class Confidences(NamedTuple):
    """Confidence and rightness of N answers, and the group (patient or image) of each."""

    confidence_N: Counts
    right_N: NDArray[np.bool_]
    groups: Sequence[str]


def describe_calibration(
    samples: Sequence[Sample],
    predictions: Mapping[str, Prediction],
    figures: Mapping[str, Mapping[str, float]],
    replicates: int,
) -> dict[str, Any]:
    """By task: ECE, Brier score, reliability bins, risk by coverage; or `why` they were not computed.

    The confidence is exp(`logprob`) of the chosen answer: the geometric mean of the probabilities of its tokens, which
    is no probability of the answer. An answer is right where its primary metric is 1 (`figures`: by sample, 0..1); to
    a question for a box that is not there, no box is right.
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
        answers = Confidences(np.exp(logprobs), np.array(right), [s.group for s in known])
        described[task.value] = {"answers": len(known), "of": len(asked), **_describe(answers, replicates)}
    return described


def _find_reason(task: Task, answers: int, logprobs: Sequence[float]) -> str:
    if task in _GRADED:
        return NO_THRESHOLD
    if not answers:
        return NO_PROBABILITIES
    if any(not value <= 1e-6 for value in logprobs):
        return "a value given as log-probability is above 0 or no number, so it is none"
    return f"{answers} answers with probabilities are too few, {FEWEST} are wanted" if answers < FEWEST else ""


def _describe(answers: Confidences, replicates: int) -> dict[str, Any]:
    confidence_N, right_N, _ = answers
    edges, equal_mass = np.linspace(0, 1, BINS + 1), find_equal_mass_edges(confidence_N, BINS)
    coverage_N, risk_N = trace_risk(confidence_N, right_N)
    kept = np.unique(np.linspace(0, len(risk_N) - 1, min(len(risk_N), _MOST_POINTS)).round().astype(int))
    least_aurc = float(np.mean(trace_risk(right_N.astype(float), right_N)[1]))
    return {
        "right": int(right_N.sum()),
        "mean_confidence": float(confidence_N.mean()),
        "ece": compute_ece(confidence_N, right_N, edges),
        "ece_interval": bootstrap_ece(answers, edges, replicates),
        "ece_if_calibrated": simulate_calibrated_ece(confidence_N, edges),
        "ece_equal_mass": compute_ece(confidence_N, right_N, equal_mass),
        "brier": compute_brier(confidence_N, right_N),
        "bins": describe_bins(confidence_N, right_N, edges),
        "risk_coverage": {"coverage": coverage_N[kept].tolist(), "risk": risk_N[kept].tolist()},
        "aurc": float(risk_N.mean()),
        "excess_aurc": float(risk_N.mean()) - least_aurc,
    }


def compute_brier(confidence_N: Counts, right_N: NDArray[np.bool_]) -> float:
    """The mean squared distance of confidence and rightness (Brier 1950), 0..1; 0 is best."""
    return float(np.mean((confidence_N - right_N) ** 2))


# ---- reliability ----------------------------------------------------------------------------------------------------


def find_equal_mass_edges(confidence_N: Counts, bins: int) -> Counts:
    """Edges of bins that hold as many answers each, as far as equal confidences allow."""
    last = -(-np.arange(1, bins + 1) * len(confidence_N) // bins) - 1  # the place of the last answer of each bin
    sorted_N = np.sort(confidence_N)
    return np.unique(np.append(sorted_N[0], sorted_N[np.maximum(last, 0)]))


def _place(confidence_N: Counts, edges: Counts) -> NDArray[np.intp]:
    """[N] the bin of each answer; a bin holds its upper edge, and the first one its lower edge, too."""
    return np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, max(0, len(edges) - 2))


def _sum_by_bin(confidence_N: Counts, right_N: NDArray[Any], edges: Counts) -> Counts:
    """[3, B] answers, summed confidence and right answers of each bin."""
    bins_N, bins = _place(confidence_N, edges), max(1, len(edges) - 1)
    return np.stack([np.bincount(bins_N, w, bins) for w in (np.ones(len(bins_N)), confidence_N, right_N)])


def _compute_gap(sums: Counts) -> Counts:
    """[..., 3, B] sums by bin -> [...] ECE."""
    answers, confidence, right = sums[..., 0, :], sums[..., 1, :], sums[..., 2, :]
    return np.asarray(np.abs(confidence - right).sum(-1) / answers.sum(-1))


def compute_ece(confidence_N: Counts, right_N: NDArray[np.bool_], edges: Counts) -> float:
    """The expected calibration error, 0..1: the distance of mean confidence and accuracy in a bin, weighted by its
    answers (Guo et al. 2017, equation 3). Chance alone raises it where bins hold few answers."""
    return float(_compute_gap(_sum_by_bin(confidence_N, right_N, edges)))


def bootstrap_ece(answers: Confidences, edges: Counts, replicates: int) -> tuple[float, float] | None:
    """The 95 % percentile interval over groups; None with fewer than two of either. It keeps the upward bias of ECE."""
    names, codes_N = np.unique(np.array(answers.groups), return_inverse=True)
    if replicates < 2 or len(names) < 2:
        return None
    sums_G3B = np.zeros((len(names), 3, len(edges) - 1))
    bins_N = _place(answers.confidence_N, edges)
    for part, values_N in enumerate((np.ones(len(bins_N)), answers.confidence_N, answers.right_N)):
        np.add.at(sums_G3B[:, part], (codes_N, bins_N), values_N)
    weights_RG = draw_group_weights(np.random.default_rng([2, len(names)]), len(names), replicates)
    low, high = np.percentile(replicate(_compute_gap, sums_G3B, weights_RG), [2.5, 97.5])
    return float(low), float(high)


def simulate_calibrated_ece(confidence_N: Counts, edges: Counts) -> float:
    """The mean ECE of as many answers with these confidences, if each were right as often as its confidence says: what
    chance alone gives."""
    rng = np.random.default_rng([3, len(confidence_N)])
    right = (rng.random(len(confidence_N)) < confidence_N for _ in range(_SIMULATIONS))
    return float(np.mean([compute_ece(confidence_N, drawn, edges) for drawn in right]))


def describe_bins(confidence_N: Counts, right_N: NDArray[np.bool_], edges: Counts) -> list[dict[str, Any]]:
    """The bins with answers: edges, answers, mean confidence, accuracy, and its 95 % interval (Wilson)."""
    described = []
    for low, high, (answers, confidence, right) in zip(
        edges[:-1], edges[1:], _sum_by_bin(confidence_N, right_N, edges).T, strict=True
    ):
        if answers:
            values = {"low": float(low), "high": float(high), "answers": int(answers)}
            values |= {"confidence": float(confidence / answers), "accuracy": float(right / answers)}
            described.append({**values, "interval": wilson_interval(int(right), int(answers))})
    return described


# ---- risk by coverage -----------------------------------------------------------------------------------------------


def trace_risk(confidence_N: Counts, right_N: NDArray[np.bool_]) -> tuple[Counts, Counts]:
    """[N] coverage and [N] risk: the share of wrong answers among the n most confident ones, n from 1 to N (Geifman and
    El-Yaniv 2017). Their mean is AURC. Of equally confident answers the order is left to chance: the expected risk."""
    order_N = np.argsort(-confidence_N, kind="stable")
    wrong_N = (~right_N[order_N]).astype(float)
    _, starts, sizes = np.unique(-confidence_N[order_N], return_index=True, return_counts=True)
    shared_N = np.repeat(np.add.reduceat(wrong_N, starts) / sizes, sizes)
    number_N = np.arange(1, len(order_N) + 1)
    return number_N / len(order_N), np.cumsum(shared_N) / number_N

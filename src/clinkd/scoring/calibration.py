"""How far a probability of answers can be believed: reliability, ECE, the Brier score, and risk by coverage.

Shapes: N answers, B bins, G groups, R bootstrap replicates. Probabilities are 0..1, and an answer is right or wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinkd.scoring.bootstrap import draw_group_weights, replicate
from clinkd.scoring.captions import Counts
from clinkd.scoring.intervals import wilson_interval

BINS = 15  # of ECE, as Guo et al. 2017
DRAWN = 10  # bins of a reliability diagram, with as many answers each: one of equal width may hold a single answer
_SIMULATIONS = 200
_MOST_POINTS = 100  # of the risk-coverage curve as it is kept


class Probabilities(NamedTuple):
    """The probability said of each of N answers, whether it is right, and its group (patient or image)."""

    probability_N: Counts
    right_N: NDArray[np.bool_]
    groups: Sequence[str]


def describe_probabilities(answers: Probabilities, replicates: int) -> dict[str, Any]:
    """Of one answer or more: the figures of a probability, the bins of its reliability, and its risk by coverage."""
    probability_N, right_N, _ = answers
    edges, equal_mass = np.linspace(0, 1, BINS + 1), find_equal_mass_edges(probability_N, BINS)
    coverage_N, risk_N = trace_risk(probability_N, right_N)
    kept = np.unique(np.linspace(0, len(risk_N) - 1, min(len(risk_N), _MOST_POINTS)).round().astype(int))
    least_aurc = float(np.mean(trace_risk(right_N.astype(float), right_N)[1]))
    skill, skill_interval = bootstrap_skill(answers, replicates)
    return {
        "right": int(right_N.sum()),
        "mean_probability": float(probability_N.mean()),
        "ece": compute_ece(probability_N, right_N, edges),
        "ece_if_calibrated": simulate_calibrated_ece(probability_N, edges),
        "ece_equal_mass": compute_ece(probability_N, right_N, equal_mass),
        "brier": compute_brier(probability_N, right_N),
        "brier_skill": skill,
        "brier_skill_interval": skill_interval,
        "bins": describe_bins(probability_N, right_N, find_equal_mass_edges(probability_N, DRAWN)),
        "risk_coverage": {"coverage": coverage_N[kept].tolist(), "risk": risk_N[kept].tolist()},
        "aurc": float(risk_N.mean()),
        "excess_aurc": float(risk_N.mean()) - least_aurc,
    }


# ---- the Brier score ------------------------------------------------------------------------------------------------


def compute_brier(probability_N: Counts, right_N: NDArray[np.bool_]) -> float:
    """The mean squared distance of probability and rightness (Brier 1950), 0..1; 0 is best."""
    return float(np.mean((probability_N - right_N) ** 2))


def _compute_skill(sums: Counts) -> Counts:
    """[..., 3] summed squared distances, right answers, answers -> [...] skill; NaN where all are right, or none is."""
    distance, right, answers = sums[..., 0], sums[..., 1], sums[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        skill = 1 - distance / (right * (1 - right / answers))
    return np.where((right > 0) & (right < answers), skill, np.nan)


def bootstrap_skill(answers: Probabilities, replicates: int) -> tuple[float | None, tuple[float, float] | None]:
    """By how much of it the Brier score is better than that of the best constant, the share of right ones of these
    same answers: 1 is best, 0 worth no more than the constant. And its 95 % percentile interval over groups; None with
    fewer than two groups or replicates, or where a replicate has no skill."""
    probability_N, right_N, groups = answers
    sums_N3 = np.stack([(probability_N - right_N) ** 2, right_N, np.ones(len(right_N))], axis=1)
    names, codes_N = np.unique(np.array(groups), return_inverse=True)
    sums_G3: Counts = np.stack([np.bincount(codes_N, added) for added in sums_N3.T], axis=1).astype(float)
    skill = float(_compute_skill(sums_G3.sum(0)))
    ends = (np.nan, np.nan)
    if replicates >= 2 and len(names) >= 2:
        weights_RG = draw_group_weights(np.random.default_rng([2, len(names)]), len(names), replicates)
        ends = tuple(np.percentile(replicate(_compute_skill, sums_G3, weights_RG), [2.5, 97.5]).tolist())
    return None if np.isnan(skill) else skill, ends if np.isfinite(ends).all() else None


# ---- reliability ----------------------------------------------------------------------------------------------------


def find_equal_mass_edges(probability_N: Counts, bins: int) -> Counts:
    """Edges of bins that hold as many answers each, as far as equal ones allow."""
    last = -(-np.arange(1, bins + 1) * len(probability_N) // bins) - 1  # the place of the last answer of each bin
    sorted_N = np.sort(probability_N)
    edges = np.unique(np.append(sorted_N[0], sorted_N[np.maximum(last, 0)]))
    return edges if len(edges) > 1 else np.repeat(edges, 2)  # all are equal: one bin


def _place(probability_N: Counts, edges: Counts) -> NDArray[np.intp]:
    """[N] the bin of each answer; a bin holds its upper edge, and the first one its lower edge, too."""
    return np.clip(np.searchsorted(edges, probability_N, side="left") - 1, 0, len(edges) - 2)


def sum_by_bin(probability_N: Counts, right_N: NDArray[Any], edges: Counts) -> Counts:
    """[3, B] answers, summed probability and right answers of each bin."""
    bins_N, bins = _place(probability_N, edges), len(edges) - 1
    return np.stack([np.bincount(bins_N, w, bins) for w in (np.ones(len(bins_N)), probability_N, right_N)])


def _compute_gap(sums: Counts) -> Counts:
    """[..., 3, B] sums by bin -> [...] ECE."""
    answers, said, right = sums[..., 0, :], sums[..., 1, :], sums[..., 2, :]
    return np.asarray(np.abs(said - right).sum(-1) / answers.sum(-1))


def compute_ece(probability_N: Counts, right_N: NDArray[np.bool_], edges: Counts) -> float:
    """The expected calibration error, 0..1: the distance of mean probability and accuracy in a bin, weighted by its
    answers (Guo et al. 2017, equation 3). Chance alone raises it where bins hold few answers."""
    return float(_compute_gap(sum_by_bin(probability_N, right_N, edges)))


def simulate_calibrated_ece(probability_N: Counts, edges: Counts) -> float:
    """The mean ECE of as many answers with these probabilities, if each were right as often as it says: what
    chance alone gives."""
    rng = np.random.default_rng([3, len(probability_N)])
    right = (rng.random(len(probability_N)) < probability_N for _ in range(_SIMULATIONS))
    return float(np.mean([compute_ece(probability_N, drawn, edges) for drawn in right]))


def describe_bins(probability_N: Counts, right_N: NDArray[np.bool_], edges: Counts) -> list[dict[str, Any]]:
    """The bins with answers: edges, answers, mean probability, accuracy, and its 95 % interval (Wilson)."""
    described = []
    for low, high, (answers, said, right) in zip(
        edges[:-1], edges[1:], sum_by_bin(probability_N, right_N, edges).T, strict=True
    ):
        if answers:
            values = {"low": float(low), "high": float(high), "answers": int(answers)}
            values |= {"probability": float(said / answers), "accuracy": float(right / answers)}
            described.append({**values, "interval": wilson_interval(int(right), int(answers))})
    return described


# ---- risk by coverage -----------------------------------------------------------------------------------------------


def trace_risk(probability_N: Counts, right_N: NDArray[np.bool_]) -> tuple[Counts, Counts]:
    """[N] coverage and [N] risk: the share of wrong answers among the n surest ones, n from 1 to N (Geifman and
    El-Yaniv 2017). Their mean is AURC. Of equally sure answers the order is left to chance: the expected risk."""
    order_N = np.argsort(-probability_N, kind="stable")
    wrong_N = (~right_N[order_N]).astype(float)
    _, starts, sizes = np.unique(-probability_N[order_N], return_index=True, return_counts=True)
    shared_N = np.repeat(np.add.reduceat(wrong_N, starts) / sizes, sizes)
    number_N = np.arange(1, len(order_N) + 1)
    return number_N / len(order_N), np.cumsum(shared_N) / number_N

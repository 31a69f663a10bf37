"""Calibration: against a naive computation, in cases whose answer is known, and where it cannot be computed."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from clinkd.records import Box, BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.scoring.calibration import (
    BINS,
    Confidences,
    bootstrap_ece,
    compute_brier,
    compute_ece,
    describe_bins,
    describe_calibration,
    find_equal_mass_edges,
    simulate_calibrated_ece,
    trace_risk,
)

EDGES = np.linspace(0, 1, BINS + 1)


def draw(seed: int, count: int = 400, power: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.random(count), 2)  # many are equal, some are on an edge
    return confidence, rng.random(count) < confidence**power


def naive_ece(confidence: np.ndarray, right: np.ndarray, edges: np.ndarray) -> float:
    """Guo et al.: a loop over the bins (low, high]."""
    total = 0.0
    for number, (low, high) in enumerate(pairwise(edges)):
        inside = [low < c <= high or (number == 0 and c == low) for c in confidence]
        members = [(c, r) for c, r, of in zip(confidence, right, inside, strict=True) if of]
        if members:
            gap = sum(c for c, _ in members) / len(members) - sum(r for _, r in members) / len(members)
            total += len(members) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_ece_is_that_of_a_naive_loop(seed: int) -> None:
    confidence, right = draw(seed)
    for edges in (EDGES, find_equal_mass_edges(confidence, BINS)):
        assert compute_ece(confidence, right, edges) == pytest.approx(naive_ece(confidence, right, edges), abs=1e-12)
    assert compute_brier(confidence, right) == pytest.approx(
        np.mean([(c - r) ** 2 for c, r in zip(confidence, right, strict=True)])
    )


def test_a_calibrated_answerer_has_an_ece_near_0_and_what_is_left_is_chance() -> None:
    confidence, right = draw(1, 40_000, power=1.0)
    assert compute_ece(confidence, right, EDGES) < 0.012
    few, few_right = confidence[:60], right[:60]
    chance = simulate_calibrated_ece(few, EDGES)
    assert 0.05 < chance < 0.25 and simulate_calibrated_ece(confidence[:4000], EDGES) < 0.03  # upward bias of few
    assert abs(compute_ece(few, few_right, EDGES) - chance) < 0.1


def test_a_constant_confidence_has_the_distance_to_the_accuracy() -> None:
    right = np.array([True] * 30 + [False] * 70)
    constant = np.full(100, 0.9)
    assert compute_ece(constant, right, EDGES) == pytest.approx(0.6)
    assert compute_ece(constant, right, find_equal_mass_edges(constant, BINS)) == pytest.approx(0.6)
    [only] = describe_bins(constant, right, EDGES)
    assert (only["answers"], only["accuracy"]) == (100, 0.3) and only["interval"][0] < 0.3 < only["interval"][1]
    coverage, risk = trace_risk(constant, right)
    assert risk == pytest.approx(np.full(100, 0.7)) and coverage[-1] == 1  # no order: the risk is that of all


def test_bins_of_equal_mass_hold_as_many_answers() -> None:
    confidence = np.random.default_rng(0).random(150)
    right = confidence > 0.5
    counts = [b["answers"] for b in describe_bins(confidence, right, find_equal_mass_edges(confidence, 10))]
    assert sum(counts) == 150 and max(counts) - min(counts) <= 1


def test_risk_by_coverage_is_the_share_of_errors_of_the_most_confident() -> None:
    confidence, right = np.array([0.9, 0.2, 0.8, 0.4]), np.array([True, False, False, True])
    coverage, risk = trace_risk(confidence, right)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1] and risk == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    many, truth = draw(4)
    coverage, risk = trace_risk(many, truth)
    threshold = 0.7
    kept = many >= threshold
    at = coverage.tolist().index(kept.mean())
    assert risk[at] == pytest.approx(np.mean(~truth[kept]))
    assert trace_risk(many[::-1], truth[::-1])[1] == pytest.approx(risk)  # the order of equal ones does not matter


def test_the_interval_of_ece_is_wider_where_answers_come_in_groups() -> None:
    confidence, right = draw(2, 300)
    alone = Confidences(confidence, right, [str(i) for i in range(300)])
    grouped = Confidences(np.repeat(confidence[:60], 5), np.repeat(right[:60], 5), [str(i // 5) for i in range(300)])
    low, high = bootstrap_ece(alone, EDGES, 300) or (1, 0)
    wide = bootstrap_ece(grouped, EDGES, 300) or (1, 0)
    assert low < high and wide[1] - wide[0] > high - low
    assert bootstrap_ece(alone, EDGES, 0) is None
    assert bootstrap_ece(alone._replace(groups=["one"] * 300), EDGES, 300) is None


# ---- of answers -----------------------------------------------------------------------------------------------------


def answered(task: Task, count: int, logprob: float | None, right: float | None = 1.0) -> tuple:
    text = BoxedText("[box]", (Box(0.1, 0.1, 0.5, 0.5),))
    samples = [
        Sample(f"{task}{n}", (ImageRef("a.png"),), Modality.CT, (Turn(task, text, text),), f"g{n}")
        for n in range(count)
    ]
    predictions = {s.id: Prediction(s.id, (Candidate("", text, logprob),)) for s in samples}
    metric = {Task.VG: "F1", Task.ROC: "Recall", Task.QA: "Accuracy"}.get(task, "SPICE")
    return samples, predictions, {s.id: {} if right is None else {metric: right} for s in samples}


def test_confidence_is_the_geometric_mean_and_right_is_a_primary_metric_of_1() -> None:
    for task in (Task.VG, Task.ROC, Task.QA):
        [(name, found)] = describe_calibration(*answered(task, 40, math.log(0.8)), 100).items()
        assert name == task.value and found["mean_confidence"] == pytest.approx(0.8)
        assert (
            found["ece"] == pytest.approx(0.2) and found["right"] == 40 and found["aurc"] == found["excess_aurc"] == 0
        )
        assert describe_calibration(*answered(task, 40, -1.0, 0.9), 0)[name]["right"] == 0
    assert (
        describe_calibration(*answered(Task.VG, 40, -1.0, None), 0)["VG"]["right"] == 40
    )  # no box is there, none said
    assert describe_calibration(*answered(Task.QA, 40, -1.0, None), 0)["QA"]["right"] == 0


def test_what_cannot_be_computed_has_its_reason() -> None:
    def why(*case: object) -> str:
        [found] = describe_calibration(*answered(*case), 0).values()  # type: ignore[arg-type]
        return str(found["why"])

    assert "bring no probabilities" in why(Task.VG, 40, None)
    assert "no threshold" in why(Task.MIA, 40, -1.0)
    assert "above 0" in why(Task.QA, 40, 0.5) and "above 0" in why(Task.QA, 40, math.nan)
    assert "29 answers" in why(Task.QA, 29, -1.0)

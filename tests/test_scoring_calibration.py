"""How far probabilities can be believed: against naive computations, in cases whose answer is known, and where it
cannot be computed."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from clinkd.language.facts import Lexicon
from clinkd.records import Box, BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Task, Turn
from clinkd.scoring.calibration import (
    BINS,
    Probabilities,
    bootstrap_skill,
    compute_brier,
    compute_ece,
    describe_bins,
    find_equal_mass_edges,
    simulate_calibrated_ece,
    trace_risk,
)
from clinkd.scoring.plotted import NO_CONFIDENCES, describe_confidence, describe_figures

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


def test_the_interval_of_skill_is_wider_where_answers_come_in_groups() -> None:
    confidence, right = draw(2, 300)
    alone = Probabilities(confidence, right, [str(i) for i in range(300)])
    grouped = Probabilities(np.repeat(confidence[:60], 5), np.repeat(right[:60], 5), [str(i // 5) for i in range(300)])
    low, high = bootstrap_skill(alone, 300)[1] or (1, 0)
    wide = bootstrap_skill(grouped, 300)[1] or (1, 0)
    assert low < high and wide[1] - wide[0] > high - low
    assert bootstrap_skill(alone, 0)[1] is None
    assert bootstrap_skill(alone._replace(groups=["one"] * 300), 300)[1] is None


def draw_groups(seed: int, meaning: float) -> Probabilities:
    """300 answers of 60 patients, four of five right; `meaning`: how much the probability knows of it."""
    rng = np.random.default_rng(seed)
    right = rng.random(300) < 0.8
    said = (1 - meaning) * right.mean() + meaning * right
    return Probabilities(said, right, [str(n // 5) for n in range(300)])


def test_skill_is_against_the_best_constant() -> None:
    from sklearn.metrics import r2_score

    confidence, right = draw(5)
    answers = Probabilities(confidence, right, [str(n // 4) for n in range(400)])
    skill, interval = bootstrap_skill(answers, 300)
    assert skill == pytest.approx(r2_score(right.astype(float), confidence))  # the same formula, under another name
    assert interval and skill and interval[0] < skill < interval[1]
    for meaning, expected in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.75)):
        assert bootstrap_skill(draw_groups(0, meaning), 0) == (pytest.approx(expected), None)
    worse = Probabilities(np.full(400, 0.99), right, answers.groups)
    assert (bootstrap_skill(worse, 0)[0] or 0) < 0  # no constant beats the share of right ones
    for same in (
        np.ones(400, bool),
        np.zeros(400, bool),
    ):  # the share is beyond reproach, so nothing is better by any part
        assert bootstrap_skill(Probabilities(confidence, same, answers.groups), 100) == (None, None)


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


def describe_tokens(samples: list, predictions: dict, figures: dict, replicates: int) -> dict:
    found = describe_figures(samples, [*predictions.values()], None, figures, Lexicon(()), replicates)
    return found["token_probability"]


def test_token_probability_is_the_geometric_mean_and_right_is_a_primary_metric_of_1() -> None:
    for task in (Task.VG, Task.ROC, Task.QA):
        [(name, found)] = describe_tokens(*answered(task, 40, math.log(0.8)), 100).items()
        assert name == task.value and found["mean_probability"] == pytest.approx(0.8)
        assert (
            found["ece"] == pytest.approx(0.2) and found["right"] == 40 and found["aurc"] == found["excess_aurc"] == 0
        )
        assert describe_tokens(*answered(task, 40, -1.0, 0.9), 0)[name]["right"] == 0
    assert describe_tokens(*answered(Task.VG, 40, -1.0, None), 0)["VG"]["right"] == 40  # no box is there, none said
    assert describe_tokens(*answered(Task.QA, 40, -1.0, None), 0)["QA"]["right"] == 0


def test_what_cannot_be_computed_has_its_reason() -> None:
    def why(*case: object) -> str:
        [found] = describe_tokens(*answered(*case), 0).values()  # type: ignore[arg-type]
        return str(found["why"])

    assert "bring no probabilities" in why(Task.VG, 40, None)
    assert "no threshold" in why(Task.MIA, 40, -1.0)
    assert "above 0" in why(Task.QA, 40, 0.5) and "above 0" in why(Task.QA, 40, math.nan)
    assert "29 answers" in why(Task.QA, 29, -1.0)


# ---- the confidence that is told ------------------------------------------------------------------------------------


def told(task: Task, count: int, confidence: float | None, logprob: float | None = -0.5) -> tuple[list, list]:
    """Answers of which every fourth is wrong, two of a patient."""
    asked = BoxedText("What is at [box]?", (Box(0.1, 0.1, 0.5, 0.5),)) if task is Task.ROC else BoxedText("?")
    truth = BoxedText("[box]", (Box(0.1, 0.1, 0.5, 0.5),)) if task is Task.VG else BoxedText("the liver")
    wrong = BoxedText("[box]", (Box(0.6, 0.6, 0.9, 0.9),)) if task is Task.VG else BoxedText("the spleen")
    samples = [
        Sample(f"{task}{n}", (ImageRef("a.png"),), Modality.CT, (Turn(task, asked, truth),), f"g{n // 2}")
        for n in range(count)
    ]
    predictions = [
        Prediction(s.id, (Candidate("", truth if n % 4 else wrong, logprob),), confidence=confidence)
        for n, s in enumerate(samples)
    ]
    return samples, predictions


def describe(*parts: tuple[list, list], absences: dict[str, str] | None = None) -> dict:
    samples, predictions = ([row for part in parts for row in part[side]] for side in (0, 1))
    return describe_confidence(samples, predictions, Lexicon(("liver", "spleen")), absences or {}, 50)


def test_the_confidence_that_is_told_is_judged_by_kind_beside_the_token_probability_of_the_same_answers() -> None:
    found = describe(told(Task.VG, 40, 0.8), told(Task.ROC, 60, 0.75, None), told(Task.MIA, 40, None))
    assert [*found] == ["ROC or RC", "VG", "MIA or QA"]  # the commonest first
    vg, roc, mia = found["VG"], found["ROC or RC"], found["MIA or QA"]
    assert (vg["answers"], vg["of"], vg["right"], vg["mean_probability"]) == (40, 40, 30, pytest.approx(0.8))
    assert vg["ece"] == pytest.approx(0.05) and vg["brier"] == pytest.approx(0.75 * 0.04 + 0.25 * 0.64)
    tokens = vg["token_probability"]
    assert tokens["mean_probability"] == pytest.approx(math.exp(-0.5)) and tokens["right"] == 30
    assert roc["brier_skill"] == pytest.approx(0) and roc["ece"] == pytest.approx(0)  # told is but the share
    assert "token_probability" not in roc and mia == {"answers": 0, "of": 40, "why": NO_CONFIDENCES}


def test_why_answers_have_no_confidence_is_said() -> None:
    reason = {"VG": "of 9 validation answers 8 are right, and more are wanted"}
    assert describe(told(Task.VG, 40, None), absences=reason)["VG"]["why"] == reason["VG"]
    few = describe(told(Task.VG, 29, 0.8), absences=reason)["VG"]
    assert few["why"] == "29 answers with probabilities are too few, 30 are wanted"
    samples, predictions = told(Task.VG, 80, 0.8)  # of a cross-validation in which not every fold tells one
    _, others = told(Task.VG, 80, None)
    some = describe((samples, predictions[:40] + others[40:]), absences=reason)["VG"]
    assert (some["answers"], some["of"], some["absence"], some["right"]) == (40, 80, reason["VG"], 30)
    assert "absence" not in describe((samples, predictions))["VG"]

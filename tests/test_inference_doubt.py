"""How far candidates agree: by properties."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from clinkd.inference.disagreement import (
    CalibrationBins,
    Disagreement,
    count_calibration,
    count_disagreement,
    explain_disagreement,
    find_confidence,
)
from clinkd.inference.self_consistency import measure_supports, self_consistency
from clinkd.language.agreement import is_wrong
from clinkd.records import BOX_MARK, Box, BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Task, Turn

NAMES = ("liver", "spleen", "left lung", "lung")


def candidate(text: str, share: float | None, *boxes: Box) -> Candidate:
    """With the whole text's probability, as an answer of one token."""
    return Candidate(text, BoxedText(text, boxes), None if share is None else math.log(share))


def of(*candidates: Candidate, chosen: int = 0, lengths: list[int] | None = None):
    return self_consistency(Prediction("a", candidates, chosen), lengths or [1] * len(candidates), NAMES)


def because(what: str) -> str:
    return f"the candidates differ in their {what}"


def test_one_candidate_agrees_with_itself():
    found = of(candidate("the liver", 0.1))
    assert (found.weights, found.similarities, found.value, found.why) == ((1.0,), (1.0,), 1.0, None)


@pytest.mark.parametrize("share", [0.95, 0.55])
def test_other_names_are_no_likeness_however_alike_the_words(share):
    found = of(candidate("This is the liver.", share), candidate("This is the spleen.", 1 - share))
    assert found.value == pytest.approx(share)
    assert found.why == (None if share > 0.6 else because("names"))


def test_contradictions_are_told_by_their_kind():
    for other, what in (("There is no liver here.", "negation"), ("The liver on the left.", "laterality")):
        found = of(candidate("The liver on the right.", 0.5), candidate(other, 0.5))
        assert found.similarities == (1.0, 0.0)
        assert found.why == because(what)


def test_boxes_count_by_their_overlap():
    near, far = Box(0.1, 0.1, 0.5, 0.5), Box(0.6, 0.6, 0.9, 0.9)
    same = of(candidate(BOX_MARK, 0.5, near), candidate(BOX_MARK, 0.5, Box(0.1, 0.1, 0.5, 0.49)))
    assert same.why is None and 0.97 < same.value < 1
    apart = of(candidate(BOX_MARK, 0.5, near), candidate(BOX_MARK, 0.5, far))
    assert apart.value == pytest.approx(0.5) and apart.why == because("boxes")


def test_weights_are_probabilities_of_whole_answers():
    dice = random.Random(0)
    for _ in range(100):
        texts = [candidate(f"the liver {n}", dice.uniform(0.01, 1)) for n in range(dice.randint(1, 5))]
        lengths = [dice.randint(1, 60) for _ in texts]
        found = of(*texts, chosen=dice.randrange(len(texts)), lengths=lengths)
        assert math.fsum(found.weights) == pytest.approx(1)
        assert 0 <= found.value <= 1 and found.similarities.count(1.0) >= 1
        whole = [math.exp(c.logprob * n) for c, n in zip(texts, lengths, strict=True)]
        assert found.weights == pytest.approx([p / sum(whole) for p in whole])


def test_answers_longer_than_any_float_and_unknown_probabilities_have_weights():
    long = [Candidate(t, BoxedText(t), -5.0) for t in ("the liver", "the spleen")]
    assert of(*long, lengths=[100_000, 100_001]).weights == pytest.approx(
        (1 / (1 + math.exp(-5)), 1 / (1 + math.exp(5)))
    )
    unknown = of(candidate("the liver", 0.3), candidate("the spleen", None), candidate("the lung", 0.3))
    assert unknown.weights == pytest.approx((1 / 3,) * 3)


# ---- what disagreement means ----------------------------------------------------------------------------------------

TELLING = [
    ((42, 23, 336, 44), True),  # VG of the demo's test split
    ((42, 1, 345, 3), False),  # ROC: hardly any answer is wrong
    ((9, 9, 100, 0), False),  # too few that differ
    ((100, 90, 9, 0), False),  # too few others
    ((60, 30, 60, 30), False),
    ((60, 10, 60, 50), False),  # wrong less often
    ((10, 5, 10, 0), False),  # p = 0.016
    ((10, 6, 10, 0), True),  # p = 0.005
]


@pytest.mark.parametrize(("counts", "telling"), TELLING)
def test_disagreement_is_telling_only_where_it_was_shown(counts, telling):
    """By counting all ways to deal out the wrong answers: the oracle of Fisher's exact test."""
    found = Disagreement(*counts)
    assert found.is_telling is telling
    differing, differing_wrong, agreeing, agreeing_wrong = counts
    wrong = differing_wrong + agreeing_wrong
    ways = [math.comb(differing, k) * math.comb(agreeing, wrong - k) for k in range(min(wrong, differing) + 1)]
    p_value = sum(ways[differing_wrong:]) / math.comb(differing + agreeing, wrong)
    assert telling is (p_value < 0.01 and min(differing, agreeing) >= 10)


def test_what_it_means_is_said_in_counts_and_only_if_every_possible_task_shows_it():
    recorded = {
        "VG": Disagreement(42, 23, 336, 44)._asdict(),
        "ROC": Disagreement(42, 1, 345, 3)._asdict(),
        "RC": Disagreement(40, 20, 60, 3)._asdict(),
        "MIA": Disagreement(20, 16, 20, 2)._asdict(),
    }
    assert explain_disagreement(recorded, ["VG"]) == (
        "on 378 validation questions of VG, answers whose candidates differ so were wrong in 55 % against 13 %"
    )
    assert explain_disagreement(recorded, ["ROC", "RC"]) is None
    assert "40 validation questions of MIA, " in (
        explain_disagreement(recorded, ["MIA", "QA"]) or ""
    )  # no QA was asked
    assert explain_disagreement(recorded, ["QA"]) is None and explain_disagreement({}, ["VG"]) is None
    del recorded["ROC"]
    recorded["QA"] = recorded["RC"]
    assert "140 validation questions of MIA and QA, " in (explain_disagreement(recorded, ["MIA", "QA"]) or "")


WRONG = [
    (("Here [box].", Box(0.1, 0.1, 0.5, 0.5)), ("It is at [box].", Box(0.1, 0.1, 0.5, 0.4)), False),
    (("Here [box].", Box(0.1, 0.1, 0.5, 0.5)), ("It is at [box].", Box(0.6, 0.1, 0.9, 0.5)), True),
    (("Here [box].", Box(0.1, 0.1, 0.5, 0.5)), ("There is none.",), True),
    (("This is the liver.",), ("The liver, bright.",), False),
    (("This is the liver.",), ("This is the spleen.",), True),
    (("This is the liver.",), ("There is no liver.",), True),
    (("Yes",), ("yes.",), False),
    (("Yes",), ("no",), True),
]


@pytest.mark.parametrize(("truth", "answer", "wrong"), WRONG)
def test_a_wrong_answer_misses_place_name_or_words(truth, answer, wrong):
    (text, *boxes), (other, *other_boxes) = truth, answer
    assert is_wrong(BoxedText(other, tuple(other_boxes)), BoxedText(text, tuple(boxes)), NAMES) is wrong


def test_validation_answers_are_counted_by_task_as_they_are_chosen():
    near, far = Box(0.1, 0.1, 0.5, 0.5), Box(0.6, 0.6, 0.9, 0.9)
    samples, predictions = {}, []
    for n in range(40):
        turn = Turn(Task.VG, BoxedText("Where is the liver?"), BoxedText(BOX_MARK, (near,)))
        samples[f"{n}"] = Sample(f"{n}", (ImageRef("a.png"),), Modality.CT, (turn,), "a")
        place = near if n % 2 else far
        differ = n < 20
        texts = [
            candidate(BOX_MARK, 0.5, place),
            candidate(BOX_MARK, 0.5, (far if n % 2 else near) if differ else place),
        ]
        predictions.append(Prediction(f"{n}", tuple(texts), chosen=n % 4 == 0))
    supports = {p.id: measure_supports(p, [1, 1], NAMES) for p in predictions}
    assert supports["0"] == [0.5, 0.5] and supports["30"] == [1, 1]
    chosen = {p.id: supports[p.id][p.chosen] for p in predictions}
    # of the first 20, those with n % 4 == 0 choose the near box, though their first candidate is the far one
    assert count_disagreement(samples, predictions, chosen, NAMES) == {"VG": Disagreement(20, 5, 20, 10)}


# ---- confidence -----------------------------------------------------------------------------------------------------


def bins(*counts: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Answers and right ones of the ten bins; those that are not given are empty."""
    answers, right = zip(*counts, *[(0, 0)] * (10 - len(counts)), strict=True)
    return {"answers": answers, "right": right}


def test_calibration_counts_answers_by_their_support():
    near, far = Box(0.1, 0.1, 0.5, 0.5), Box(0.6, 0.6, 0.9, 0.9)
    turn = Turn(Task.VG, BoxedText("Where is the liver?"), BoxedText(BOX_MARK, (near,)))
    supports = {"a": 0.05, "b": 0.6, "c": 0.699, "d": 1.0}
    samples = {key: Sample(key, (ImageRef("a.png"),), Modality.CT, (turn,), "a") for key in supports}
    boxes = {key: far if key == "b" else near for key in supports}
    answers = [Prediction(key, (candidate(BOX_MARK, 1, box),)) for key, box in boxes.items()]
    counted = count_calibration(samples, answers, supports, NAMES)
    assert counted == {"VG": CalibrationBins((1, 0, 0, 0, 0, 0, 2, 0, 0, 1), (1, 0, 0, 0, 0, 0, 1, 0, 0, 1))}


def test_confidence_is_the_share_of_right_ones_with_as_much_support():
    recorded = {"VG": bins(*[(0, 0)] * 3, (18, 3), *[(0, 0)] * 5, (98, 89))}
    found = [find_confidence(recorded, ["VG"], support) for support in (0, 0.35, 0.89, 0.9, 1)]
    assert found == [0.2, 0.2, 0.2, 0.9, 0.9]
    assert find_confidence(recorded, ["ROC"], 1) is None and find_confidence({}, ["VG"], 1) is None
    assert find_confidence({"VG": bins((29, 29))}, ["VG"], 1) is None  # too few
    both = {"MIA": bins((28, 0)), "QA": bins((20, 24))}
    assert find_confidence(both, ["MIA", "QA"], 0.5) == find_confidence({"MIA": bins((48, 24))}, ["MIA"], 0.5) == 0.5


def test_confidence_never_falls_with_support_and_is_never_certain():
    """As isotonic regression by scipy, where no bin is sparse."""
    from scipy.optimize import isotonic_regression

    rng = np.random.default_rng(4)
    for _ in range(50):
        answers = rng.integers(0, 40, 10)
        right = rng.binomial(answers, rng.random(10))
        recorded = {"VG": {"answers": answers.tolist(), "right": right.tolist()}}
        shares = [find_confidence(recorded, ["VG"], (n + 0.5) / 10) for n in range(10)]
        assert shares == sorted(shares) and shares[0] > 0 and shares[-1] < 1
    answers, right = np.full(10, 10_000), rng.integers(0, 10_000, 10)
    recorded = {"VG": {"answers": answers.tolist(), "right": right.tolist()}}
    shares = [find_confidence(recorded, ["VG"], (n + 0.5) / 10) for n in range(10)]
    assert shares == pytest.approx(isotonic_regression(right / answers).x, abs=2e-4)

"""How far candidates agree: by properties."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from clinkd.inference.confidence import (
    FEATURES,
    OLDER,
    ConfidenceRow,
    FittedConfidence,
    describe_answer,
    explain_absences,
    find_confidence,
    fit_confidence,
    fit_confidences,
    read_fits,
)
from clinkd.inference.disagreement import Disagreement, count_disagreement, explain_disagreement
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


def draw_rows(seed: int, meaning: float, answers: int = 120) -> list[ConfidenceRow]:
    """Answers of 40 patients; the first feature tells of right and wrong as much as `meaning` says."""
    rng = np.random.default_rng(seed)
    features_NF = rng.normal([1, -0.3, 0.5, 3, 0], [1, 0.2, 0.3, 0.5, 1], (answers, len(FEATURES)))
    right_N = rng.random(answers) < 1 / (1 + np.exp(-1 - meaning * (features_NF[:, 0] - 1)))
    return [
        ConfidenceRow(tuple(map(float, features)), bool(right), str(n % 40))
        for n, (features, right) in enumerate(zip(features_NF, right_N, strict=True))
    ]


def test_confidence_is_what_scikit_learn_foretells_and_outlives_the_record():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, asked = draw_rows(0, meaning=2), draw_rows(1, meaning=2)
    oracle = make_pipeline(StandardScaler(), LogisticRegression())
    oracle.fit([r.features for r in rows], [r.right for r in rows])
    expected = oracle.predict_proba([r.features for r in asked])[:, 1].clip(1 / 122, 121 / 122)
    fitted = fit_confidence(rows)
    assert fitted.skill is not None and fitted.skill > 0.1 and tuple(fitted.weights) == (*FEATURES, "constant")
    fits = read_fits(json.loads(json.dumps({"VG": fitted._asdict()})))
    assert [fits["VG"].estimate(r.features) for r in asked] == pytest.approx(expected, abs=1e-3)
    for far, most in ((1e6, 121 / 122), (-1e6, 1 / 122)):  # never surer than so many answers allow
        assert fits["VG"].estimate((far, 0, 0, 0, 0)) == pytest.approx(most, abs=1e-4)
    where, boxed = BoxedText("Where?"), candidate(BOX_MARK, 0.6, Box(0.1, 0.1, 0.5, 0.5))
    answer, features = Prediction("a", (boxed,)), describe_answer(Prediction("a", (boxed,)), 0.9, "")
    assert features and find_confidence(fits, where, answer, 0.9, "") == fits["VG"].estimate(features)
    assert find_confidence({}, where, answer, 0.9, "") is None
    assert find_confidence(fits, where, Prediction("a", (candidate("the liver", 0.6),)), 0.9, "") is None  # MIA or QA
    assert find_confidence(fits, where, Prediction("a", (replace(boxed, logprob=None),)), 0.9, "") is None


def test_why_an_answer_has_no_confidence_is_said_by_kind():
    turns = {Task.VG: BOX_MARK, Task.MIA: "the liver"}
    asked = {
        t: Sample(t, (ImageRef("a.png"),), Modality.CT, (Turn(t, BoxedText("?"), BoxedText("x")),), "a") for t in turns
    }
    answers = [
        Prediction(Task.VG, (candidate(BOX_MARK, 0.5, Box(0.1, 0.1, 0.5, 0.5)),)),
        Prediction(Task.MIA, (candidate("the liver", 0.5),)),
    ]
    fits = {"VG": FittedConfidence(30, 25), "MIA or QA": FittedConfidence(60, 40, 0.01)}
    found = explain_absences(asked, answers, fits)
    assert found["VG"].startswith("of 30 validation answers 25 are right, and at least 10 right ones, 10 wrong ones")
    assert found["MIA or QA"].startswith("of 60 validation answers 40 are right, and no fit is seen to foretell more")
    assert explain_absences(asked, answers, {"VG": fits["VG"]})["MIA or QA"] == "no validation answer is of this kind"
    assert explain_absences(asked, answers, {}) == {"VG": OLDER, "MIA or QA": OLDER}
    assert (
        explain_absences(asked, answers, {**fits, "VG": FittedConfidence(30, 15, 0.3, {"constant": 1})})["VG"] == OLDER
    )
    told = [replace(a, confidence=0.9) for a in answers]
    assert explain_absences(asked, told, fits) == {}
    assert [Prediction.from_json(a.to_json()) for a in (*answers, *told)] == [*answers, *told]
    assert "confidence" not in answers[0].to_json()


def test_no_confidence_where_nothing_foretells_what_is_right():
    by_chance = [fit_confidence(draw_rows(seed, meaning=0)) for seed in range(6)]
    assert not any(f.weights for f in by_chance) and all(f.skill is not None for f in by_chance)
    assert all(fit_confidence(draw_rows(seed, meaning=3)).weights for seed in range(3))


def test_no_confidence_from_few_answers_or_patients():
    rows = draw_rows(0, meaning=3)
    wrong = [r for r in rows if not r.right]
    assert fit_confidence([r for r in rows if r.right] + wrong[:9]).skill is None  # too few wrong ones
    assert fit_confidence(wrong) == FittedConfidence(len(wrong), 0) and not fit_confidence(wrong).weights
    assert fit_confidence([r._replace(group=str(n % 9)) for n, r in enumerate(rows)]).skill is None


def test_features_are_those_of_the_chosen_answer():
    first, second = candidate("the liver", 0.6), candidate("a spleen", 0.3)
    scored = replace(second, scores={"clip": 0.25})
    found = describe_answer(Prediction("a", (first, scored), 1), 0.75, "clip")
    assert found == pytest.approx((math.log(3), math.log(0.3), math.log(0.5), math.log(9), 0.25))
    assert describe_answer(Prediction("a", (first, scored)), 1.0, "")[0] == pytest.approx(math.log(199))  # type: ignore[index]
    assert describe_answer(Prediction("a", (first,)), 1.0, "clip")[2:] == (0, math.log(10), 0)  # type: ignore[index]
    assert describe_answer(Prediction("a", (first, candidate("x", None))), 1.0, "") is None


def test_answers_are_fitted_by_what_is_known_of_a_free_question():
    near, far = Box(0.1, 0.1, 0.5, 0.5), Box(0.6, 0.6, 0.9, 0.9)
    turn = Turn(Task.VG, BoxedText("Where is the liver?"), BoxedText(BOX_MARK, (near,)))
    asked = {key: Sample(key, (ImageRef("a.png"),), Modality.CT, (turn,), "a") for key in "abc"}
    boxes = {"a": (near,), "b": (far,), "c": ()}  # the third answer has no box, so nobody could tell that it is of VG
    answers = [Prediction(key, (candidate(BOX_MARK * len(b), 0.5, *b),)) for key, b in boxes.items()]
    fits = fit_confidences(asked, answers, dict.fromkeys("abc", 1.0), NAMES, "")
    assert fits == {"VG": FittedConfidence(2, 1), "MIA or QA": FittedConfidence(1, 0)}

"""How far candidates agree: by properties."""

from __future__ import annotations

import math
import random

import pytest

from clinkd.inference.self_consistency import self_consistency
from clinkd.records import BOX_MARK, Box, BoxedText, Candidate, Prediction

NAMES = ("liver", "spleen", "left lung", "lung")


def candidate(text: str, share: float | None, *boxes: Box) -> Candidate:
    """With the whole text's probability, as an answer of one token."""
    return Candidate(text, BoxedText(text, boxes), None if share is None else math.log(share))


def of(*candidates: Candidate, chosen: int = 0, lengths: list[int] | None = None):
    return self_consistency(Prediction("a", candidates, chosen), lengths or [1] * len(candidates), NAMES)


def because(what: str) -> str:
    return f"the candidates differ in their {what}; on its own this says nothing of right or wrong"


def test_one_candidate_is_certain():
    found = of(candidate("the liver", 0.1))
    assert (found.weights, found.similarities, found.value, found.uncertain) == ((1.0,), (1.0,), 1.0, False)


@pytest.mark.parametrize("share", [0.95, 0.55])
def test_other_names_are_no_likeness_however_alike_the_words(share):
    found = of(candidate("This is the liver.", share), candidate("This is the spleen.", 1 - share))
    assert found.value == pytest.approx(share)
    assert found.uncertain is (share < 0.6)
    assert found.why == (None if share > 0.6 else because("names"))


def test_contradictions_are_told_by_their_kind():
    for other, what in (("There is no liver here.", "negation"), ("The liver on the left.", "laterality")):
        found = of(candidate("The liver on the right.", 0.5), candidate(other, 0.5))
        assert found.similarities == (1.0, 0.0)
        assert found.why == because(what)


def test_boxes_count_by_their_overlap():
    near, far = Box(0.1, 0.1, 0.5, 0.5), Box(0.6, 0.6, 0.9, 0.9)
    same = of(candidate(BOX_MARK, 0.5, near), candidate(BOX_MARK, 0.5, Box(0.1, 0.1, 0.5, 0.49)))
    assert not same.uncertain and 0.97 < same.value < 1
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

"""The offline similarity: bounds, symmetry, determinism, and the order it puts answers in."""

import itertools
import random

import pytest

from clinkd.correction.similarity import LexicalSimilarity

NAMES = ["kidney", "liver", "left lung", "right lung", "optic disc", "polyp", "spleen", "retinal vein"]
TRUTHS = [
    *NAMES,
    *(f"The {n} is at [box]." for n in NAMES),
    *(
        f"A {size} {light} {n} on the {side} side of the image."
        for n, size, light, side in itertools.product(NAMES, ["small", "large"], ["bright", "dark"], ["left", "right"])
    ),
]
SIMILARITY = LexicalSimilarity(TRUTHS)


def one(a: str, b: str) -> float:
    return SIMILARITY.similar([a], [b])[0]


def test_bounds_symmetry_and_equality() -> None:
    draw = random.Random(0)
    words = [w for t in TRUTHS for w in t.split()] + ["unheard", "of", "", "?!"]
    texts = [" ".join(draw.choices(words, k=draw.randint(0, 9))) for _ in range(400)] + ["", "..."]
    other = draw.sample(texts, len(texts))
    values = SIMILARITY.similar(texts, other)
    assert values == SIMILARITY.similar(other, texts)
    assert all(0 <= v <= 1 for v in values)
    assert len(set(values)) > 100
    assert SIMILARITY.similar(texts, [f"  {t.capitalize()} !" for t in texts]) == [1.0] * len(texts)
    assert SIMILARITY.similar([], []) == []


def test_a_batch_equals_one_by_one_in_any_order() -> None:
    pairs = list(itertools.product(TRUTHS[::7], ["It is the kidney.", *TRUTHS[::9]]))
    together = SIMILARITY.similar([a for a, _ in pairs], [b for _, b in pairs])
    fresh = LexicalSimilarity(reversed(TRUTHS))
    assert together == [fresh.similar([a], [b])[0] for a, b in pairs]


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("kidney", "It is the kidney."),
        ("The kidney is at [box].", "You can find the kidney at [box]."),
        (
            "A small bright kidney on the left side of the image.",
            "On the left side of the image there is a small bright kidney.",
        ),
    ],
)
def test_paraphrases_of_a_truth_pass_the_papers_threshold(truth: str, answer: str) -> None:
    assert one(answer, truth) >= 0.8


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("kidney", "liver"),
        ("kidney", "kidney kidney kidney"),
        ("Yes", "No"),
        ("tumor", "no tumor"),
        ("The kidney is at [box].", "The liver is at [box]."),
        (
            "A small bright kidney on the left side of the image.",
            "A large dark kidney on the right side of the image.",
        ),
        ("A small bright kidney on the left side of the image.", ""),
    ],
)
def test_wrong_answers_do_not(truth: str, answer: str) -> None:
    assert one(answer, truth) < 0.8


def test_more_that_differs_is_less_alike() -> None:
    truth = "A small bright kidney on the left side of the image."
    steps = [truth, truth.replace("small", "large"), truth.replace("small bright", "large dark"), "A polyp."]
    values = [one(s, truth) for s in steps]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    assert one("A kidney.", truth) > one("A liver.", truth)
    assert one("optic disk", "optic disc") > one("optic nerve", "optic disc")  # a spelling is nearer than another thing


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        SIMILARITY.similar(["a"], [])

"""Boxes against brute force, words and clauses against tables of pairs, facts against sentences built from facts."""

import itertools
import random
import subprocess
import sys

import numpy as np
import pytest

from clinkd.boxes import iou, iou_matrix, match_boxes, match_overlaps
from clinkd.language.agreement import answer_similarity
from clinkd.language.conflicts import affirms, conflicts, numbers, sides
from clinkd.language.facts import Lexicon, read_facts
from clinkd.language.negation import affirmed_names, mentions
from clinkd.language.words import normalise
from clinkd.records import Box, BoxedText, Fact


def some_boxes(draw: random.Random, count: int) -> list[Box]:
    grid = [(a / 8, b / 8) for a, b in itertools.combinations(range(9), 2)]  # a coarse grid, so that boxes do overlap
    pairs = [(draw.choice(grid), draw.choice(grid)) for _ in range(count)]
    return [Box(x[0], y[0], x[1], y[1]) for x, y in pairs]


def test_iou_counts_cells() -> None:
    """On a grid of eighths the IoU is a ratio of cell counts."""
    draw = random.Random(0)
    for a, b in zip(some_boxes(draw, 300), some_boxes(draw, 300), strict=True):
        cells = [
            {(x, y) for x in range(round(8 * k.x1), round(8 * k.x2)) for y in range(round(8 * k.y1), round(8 * k.y2))}
            for k in (a, b)
        ]
        assert iou(a, b) == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]), abs=1e-12)
        assert iou(a, b) == iou(b, a)
        assert iou(a, a) == 1.0


def test_iou_matrix_holds_every_pair_and_may_be_empty() -> None:
    draw = random.Random(1)
    a, b = some_boxes(draw, 4), some_boxes(draw, 3)
    assert np.array_equal(iou_matrix(a, b), [[iou(x, y) for y in b] for x in a])
    assert iou_matrix([], b).shape == (0, 3)
    assert match_boxes([], b, 0.5) == match_boxes(a, [], 0.5) == []


def best_by_trying_all(overlap: np.ndarray, threshold: float) -> tuple[int, float]:
    """(pairs, summed IoU) of the best one-to-one matching, by trying every one."""
    rows, columns = overlap.shape
    best = (0, 0.0)
    for order in itertools.permutations([*range(columns), *[-1] * rows], rows):
        picked = [overlap[r, c] for r, c in enumerate(order) if c >= 0 and overlap[r, c] >= threshold > 0]
        best = max(best, (len(picked), float(sum(picked))))
    return best


def test_matching_is_the_best_there_is() -> None:
    draw = random.Random(2)
    more_than_greedy = 0
    for _ in range(120):
        truth, predicted = some_boxes(draw, draw.randint(1, 3)), some_boxes(draw, draw.randint(1, 4))
        threshold = draw.choice([0.1, 0.3, 0.5])
        overlap, pairs = iou_matrix(truth, predicted), match_boxes(truth, predicted, threshold)
        assert len({t for t, _ in pairs}) == len({p for _, p in pairs}) == len(pairs)
        assert all(overlap[t, p] >= threshold for t, p in pairs)
        count, total = best_by_trying_all(overlap, threshold)
        assert (len(pairs), pytest.approx(sum(overlap[t, p] for t, p in pairs))) == (count, total)
        more_than_greedy += count > 1
    assert more_than_greedy > 10


def test_of_boxes_that_all_overlap_the_worth_of_the_pairs_is_the_greatest() -> None:
    """Any shape, ties included: as many pairs and as much summed IoU as the best of all assignments has, by brute
    force; which of several equal ones is taken is left open."""
    draw = np.random.default_rng(5)
    for _ in range(300):
        overlap = draw.integers(0, 5, size=draw.integers(1, 5, size=2)) / 4
        pairs = match_overlaps(overlap, threshold := float(draw.choice([0.25, 0.5, 0.75])))
        assert pairs == sorted(pairs) and all(overlap[t, p] >= threshold for t, p in pairs)
        assert len({t for t, _ in pairs}) == len({p for _, p in pairs}) == len(pairs)
        count, total = best_by_trying_all(overlap, threshold)
        assert (len(pairs), pytest.approx(sum(overlap[t, p] for t, p in pairs))) == (count, total)


def test_words_are_compared_without_the_solver_of_boxes() -> None:
    rooms = "clinkd.boxes, clinkd.language.agreement, clinkd.scoring"
    code = f"import sys, {rooms}; sys.exit('scipy.optimize' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_more_pair_beats_a_better_pair() -> None:
    """The middle box fits both truths; giving it to the closer one would leave the other without a partner."""
    truth = [Box(0, 0, 0.5, 1), Box(0.1, 0, 0.6, 1)]
    predicted = [Box(0.1, 0, 0.6, 1), Box(0.3, 0, 0.8, 1)]
    assert match_boxes(truth, predicted, 0.4) == [(0, 0), (1, 1)]


def test_spraying_boxes_wins_one_partner_each() -> None:
    truth = [Box(0.1, 0.1, 0.4, 0.4), Box(0.5, 0.5, 0.9, 0.9)]
    pairs = match_boxes(truth, truth * 50, 0.5)
    assert [(t, p % 2) for t, p in pairs] == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  The LEFT  lung.", "the left lung"),
        ("It\u2019s a 5.6cm mass (x-ray).", "its a 5.6 cm mass x ray"),
        ("\uff2c\uff49ver \ufb01eld", "liver field"),
        ("The kidney is at [box].", "the kidney is at"),
        ("left_lung", "left lung"),
        ("\u202f...", ""),
    ],
)
def test_normalise(text: str, plain: str) -> None:
    assert normalise(text) == plain
    assert normalise(plain) == plain


@pytest.mark.parametrize(
    ("text", "name", "there"),
    [
        ("It is the kidney.", "kidney", True),
        ("both Kidneys", "kidney", True),
        ("two masses", "mass", True),
        ("a kidneylike shape", "kidney", False),
        ("left lung", "lung", True),
        ("lung on the left", "left lung", False),
        ("the X-Ray", "x ray", True),
        ("arteries", "artery", True),
        ("anything", "", False),
    ],
)
def test_mentions(text: str, name: str, there: bool) -> None:
    assert mentions(text, name) is there


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("kidney", True),
        ("It is a kidney, not a liver.", True),
        ("This is not the kidney.", False),
        ("no kidney", False),
        ("There is no evidence of a liver or kidney.", False),
        ("without kidney", False),
        ("absence of the kidney", False),
        ("The kidney is not seen.", False),
        ("The kidney is absent.", False),
        ("The kidney is not enlarged.", True),
        ("No, the kidney is normal.", True),
        ("Not the liver but the kidney.", True),
        ("There is no liver, but a kidney is seen.", True),
        ("No liver. A kidney.", True),
        ("No liver is seen, and the kidney is large.", True),
        ("It isn't the kidney", False),
        ("neither liver nor kidney", False),
        ("There is no mass in the kidney.", True),
        ("a liver rather than a kidney", False),
        ("not only the liver and the kidney", True),
        ("No kidney is seen; the kidney is elsewhere.", True),
        ("the liver", False),
    ],
)
def test_affirms(text: str, there: bool) -> None:
    assert affirms(text, "kidney") is there


def test_listing_takes_the_longest_name_and_skips_denied_ones() -> None:
    names = ("lung", "left lung", "liver", "kidney")
    assert affirmed_names("A liver, the left lung and no kidney; the left lung again.", names) == ("liver", "left lung")
    assert affirmed_names("the lungs", names) == ("lung",)


SAME = [  # pairs that say the same, or do not contradict each other
    ("The left lung.", "left lung"),
    ("There is no tumor.", "No tumor is seen."),
    ("No lesion is seen in the liver.", "The liver shows no lesion."),
    ("The mass is absent.", "There is no mass."),
    ("The kidney is at [box].", "You can find the kidney at [box]."),
    ("A small bright kidney on the left side of the image.", "On the left there is a bright small kidney."),
    (
        "On the left there is a kidney. On the right there is a liver.",
        "A liver is on the right side of the image and a kidney on the left.",
    ),
    ("A kidney is seen on the left. A liver is on the right.", "A liver is seen on the right. A kidney on the left."),
    ("Bilateral effusions.", "Effusions on the left and on the right."),
    ("both lungs", "the left lung and the right lung"),
    ("A CT image with two structures.", "This CT shows 2 structures."),
    ("A single structure.", "There is one structure."),
    ("Two structures: one kidney and one liver.", "One kidney and one liver."),
    ("The left one is larger.", "A larger structure on the left."),
    ("A 5 mm nodule.", "A nodule."),
    ("Two nodules in one area.", "Two nodules near each other."),
    ("No one is in the room.", "An empty room."),
    ("A T2 weighted image with one lesion.", "A T2 image. One lesion."),
    ("Yes", "yes, there is a fracture"),
    ("kidney", "liver"),  # a wrong name is no conflict of side, negation or count
    ("", "The left lung is not seen in two places."),
    ("No", "no."),
    ("The kidney is on the left.", "There is a kidney."),
    ("5.6cm focal, predominantly hypodense", "hypodense focal lesion of 5.6 cm"),
    ("The heart is normal, without effusion.", "No effusion. The heart is normal."),
]
DIFFERENT = [
    ("left lung", "right lung", "laterality"),
    ("The left lung is at [box].", "The right lung is at [box].", "laterality"),
    ("Bilateral effusions.", "A left effusion.", "laterality"),
    ("both lungs", "left lung", "laterality"),
    (
        "On the left there is a kidney. On the right there is a liver.",
        "On the left there is a liver. On the right there is a kidney.",
        "laterality",
    ),
    (
        "A kidney on the left and a liver on the right.",
        "A liver on the left and a kidney on the right.",
        "laterality",
    ),
    ("left-sided mass", "right-sided mass", "laterality"),
    ("tumor", "no tumor", "negation"),
    ("There is a fracture.", "There is no evidence of a fracture.", "negation"),
    ("The mass is seen.", "The mass is not seen.", "negation"),
    ("Yes", "No", "negation"),
    ("Yes, a fracture.", "No.", "negation"),
    ("This is the kidney", "This is not the kidney", "negation"),
    ("non-contrast", "contrast", "negation"),
    ("two structures", "one structure", "count"),
    ("A single structure.", "Three structures.", "count"),
    ("2", "3", "count"),
    ("two", "3", "count"),
    ("both structures are bright", "a single structure is bright", "count"),
    ("one kidney and two livers", "one kidney and one liver", "count"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_no_false_alarm(a: str, b: str) -> None:
    assert conflicts(a, b) == conflicts(b, a) == conflicts(a, a) == ()


@pytest.mark.parametrize(("a", "b", "what"), DIFFERENT)
def test_conflicts_are_found(a: str, b: str, what: str) -> None:
    assert what in conflicts(a, b)
    assert conflicts(a, b) == conflicts(b, a)


def test_several_conflicts_at_once() -> None:
    found = conflicts("Two masses on the left, no fracture.", "One mass on the right, a fracture.")
    assert found == ("laterality", "negation", "count")


def test_sides_and_numbers() -> None:
    assert sides("a left mass, not on the right") == {"left"}
    assert sides("both lungs") == {"left", "right"}
    assert numbers("two structures, 5 mm apart, grade 3, on T2") == {2}
    assert numbers("the left one") == frozenset()


WORDS = Lexicon(
    names=("kidney", "liver", "lung", "left lung", "retinal artery"),
    sizes=("small", "large"),
    sides=("left", "right"),
    brightness=("bright", "dark"),
)


def test_lexicon_round_trip() -> None:
    assert Lexicon.from_json(WORDS.to_json()) == WORDS


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (
            "A small bright kidney on the left side of the image.",
            [Fact("kidney", "small", "left", "bright")],
        ),
        (
            "A CT image with two structures. On the left there is a small bright kidney. "
            "On the right there is a large dark liver.",
            [Fact("kidney", "small", "left", "bright", 2), Fact("liver", "large", "right", "dark", 2)],
        ),
        (
            "A large dark liver on the right and a bright, small kidney on the left.",
            [Fact("liver", "large", "right", "dark"), Fact("kidney", "small", "left", "bright")],
        ),
        (
            "On the left is a kidney, and on the right a liver.",
            [Fact("kidney", side="left"), Fact("liver", side="right")],
        ),
        (
            "On the left there is a small kidney and a large liver.",
            [Fact("kidney", "small", "left"), Fact("liver", "large", "left")],
        ),
        ("The kidney is small and bright.", [Fact("kidney", "small", None, "bright")]),
        ("The kidney and the liver are dark.", [Fact("kidney", brightness="dark"), Fact("liver", brightness="dark")]),
        ("There is a kidney. It is small and lies on the left.", [Fact("kidney", "small", "left")]),
        (
            "Two structures: a kidney and a liver. The kidney is small. The liver is dark.",
            [Fact("kidney", "small", count=2), Fact("liver", brightness="dark", count=2)],
        ),
        (
            "A small kidney on the left. A large kidney on the right.",
            [Fact("kidney", "small", "left"), Fact("kidney", "large", "right")],
        ),
        ("A single structure: the left lung.", [Fact("left lung", count=1)]),
        ("A lung on the left.", [Fact("lung", side="left")]),
        ("No kidney is seen. A dark liver.", [Fact("liver", brightness="dark")]),
        ("The liver is large, while the kidney is small.", [Fact("liver", "large"), Fact("kidney", "small")]),
        ("one structure, a large retinal artery", [Fact("retinal artery", "large", count=1)]),
        ("The kidney, which is on the left, is bright.", [Fact("kidney", side="left", brightness="bright")]),
        ("The small structure on the left is a kidney.", [Fact("kidney", "small", "left")]),
        ("Nothing of note.", []),
        ("", []),
    ],
)
def test_reading_facts(text: str, facts: list[Fact]) -> None:
    assert list(read_facts(text, WORDS)) == facts


def test_facts_written_as_sentences_are_read_back() -> None:
    draw = random.Random(3)
    for _ in range(400):
        number = draw.choice([1, 2])
        facts = [
            Fact(
                name,
                draw.choice([None, *WORDS.sizes]),
                draw.choice(WORDS.sides),
                draw.choice([None, *WORDS.brightness]),
                number,
            )
            for name in draw.sample(["kidney", "liver", "retinal artery"], number)
        ]
        head = (
            draw.choice(["A CT image with", "This shows", "There are"])
            + [" a single structure", " two structures"][number - 1]
        )
        body = [sentence(f, draw.randrange(4)) for f in facts]
        assert set(read_facts(". ".join([head, *body]) + ".", WORDS)) == set(facts)


def sentence(fact: Fact, form: int) -> str:
    noun = " ".join(w for w in (fact.size, fact.brightness, fact.name) if w)
    predicate = " and ".join(w for w in (fact.brightness, fact.size) if w)
    return (
        f"On the {fact.side} there is a {noun}",
        f"A {noun} on the {fact.side} side of the image",
        f"The {fact.name} on the {fact.side} is {predicate}" if predicate else f"A {fact.name} on the {fact.side}",
        f"There is a {noun}, seen on the {fact.side}",
    )[form]


# ---- likeness of two answers ----------------------------------------------------------------------------------------


def spoken(draw: random.Random) -> BoxedText:
    words = draw.choices(["a", "left", "kidney", "is", "not", "Seen"], k=draw.randrange(5))
    boxes = some_boxes(draw, draw.choice([0, 0, 1, 1, 2, 3]))
    return BoxedText(" ".join([*words, *["[box]"] * len(boxes)]), tuple(boxes))


def test_likeness_is_symmetric_and_1_for_the_same() -> None:
    draw = random.Random(5)
    for _ in range(500):
        a, b = spoken(draw), spoken(draw)
        assert 0 <= answer_similarity(a, b) <= 1
        assert answer_similarity(a, b) == pytest.approx(answer_similarity(b, a), abs=1e-12)
        assert answer_similarity(a, a) == 1


def test_likeness_of_boxes_is_the_best_of_all_pairings() -> None:
    draw = random.Random(6)
    for _ in range(150):
        a, b = sorted((some_boxes(draw, draw.randrange(1, 5)) for _ in range(2)), key=len)
        overlap = iou_matrix(a, b)
        best = max(sum(overlap[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(len(b)), len(a)))
        texts = [BoxedText("[box]" * len(boxes), tuple(boxes)) for boxes in (a, b)]
        assert answer_similarity(*texts) == pytest.approx(best / len(b))


def test_likeness_where_only_one_has_boxes_is_none() -> None:
    box = BoxedText("kidney [box]", (Box(0.1, 0.1, 0.4, 0.4),))
    assert answer_similarity(box, BoxedText("kidney")) == answer_similarity(BoxedText("kidney"), box) == 0


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ("The liver.", "the LIVER", 1.0),
        ("left lung", "right lung", 0.5),
        ("no mass", "mass", 2 / 3),
        ("a a b", "a b b", 2 / 3),
        ("", "", 1.0),
        ("", "liver", 0.0),
    ],
)
def test_likeness_of_words(a: str, b: str, wanted: float) -> None:
    assert answer_similarity(BoxedText(a), BoxedText(b)) == pytest.approx(wanted)

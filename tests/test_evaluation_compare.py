"""Differences between systems: against textbook formulas, and by how often they err where the truth is known."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.records import (
    BadInput,
    Box,
    BoxedText,
    Candidate,
    ImageRef,
    Modality,
    Prediction,
    Sample,
    Task,
    Turn,
)
from clinkd.reporting import compare
from clinkd.reporting.compare import (
    ComparedAnswers,
    compare_pair,
    compare_paired_values,
    compare_seeds,
    correct_together,
    find_hindrance,
    pool_values,
    score_systems,
)
from clinkd.reporting.systems import ComparedSystems, tabulate_differences
from clinkd.scoring.measure import Rules
from clinkd.scoring.score import score_predictions

LEXICON = Lexicon(("liver", "cyst"))
CONFIG = EvaluateConfig(replicates=200)
BOX, FAR = Box(0.1, 0.1, 0.3, 0.3), Box(0.6, 0.6, 0.8, 0.8)
RIGHT, WRONG = {Task.ROC: "liver", Task.VG: (BOX,)}, {Task.ROC: "cyst", Task.VG: (FAR,)}


def said(of: str | tuple[Box, ...]) -> BoxedText:
    return BoxedText(of) if isinstance(of, str) else BoxedText(" ".join(["[box]"] * len(of)), of)


def asked(number: int, group: int, task: Task = Task.ROC, modality: Modality = Modality.CT) -> Sample:
    turn = Turn(task, BoxedText("What?"), said(RIGHT[task]))
    names = ("liver",) if task is Task.ROC else ()
    return Sample(f"s{number}", (ImageRef(f"{group}.png", 64, 64),), modality, (turn,), f"g{group}", "set", names)


def answered(samples: Sequence[Sample], right: Sequence[bool]) -> list[Prediction]:
    texts = [said((RIGHT if r else WRONG)[s.task]) for s, r in zip(samples, right, strict=True)]
    return [Prediction(s.id, (Candidate(t.text, t),)) for s, t in zip(samples, texts, strict=True)]


# ---- over seeds -----------------------------------------------------------------------------------------------------


def test_over_seeds_is_the_paired_t_test():
    ours, theirs = [61.2, 58.0, 63.3, 60.1, 59.9], [57.0, 58.5, 60.2, 57.7, 58.8]
    found, oracle = compare_paired_values(ours, theirs), stats.ttest_rel(ours, theirs)
    assert found.p == pytest.approx(oracle.pvalue) and found.pairs == 5
    assert found.interval == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    error = statistics.stdev([a - b for a, b in zip(ours, theirs, strict=True)]) / 5**0.5
    shift = found.smallest / error  # noncentrality
    power = stats.nct.sf(stats.t.ppf(0.975, 4), 4, shift) + stats.nct.cdf(stats.t.ppf(0.025, 4), 4, shift)
    assert power == pytest.approx(0.8, abs=1e-5)
    swapped = compare_paired_values(theirs, ours)
    assert (swapped.mean, swapped.p, swapped.smallest) == pytest.approx((-found.mean, found.p, found.smallest))


def test_one_pair_has_a_difference_and_no_interval():
    assert (
        compare_paired_values([3.0], [1.0]) == (2.0, None, None, None, 1)
        and not compare_paired_values([3.0], [1.0]).certain
    )
    with pytest.raises(ValueError):
        compare_paired_values([3.0], [1.0, 2.0])
    with pytest.raises(ValueError):
        compare_paired_values([], [])


def test_pairs_that_never_vary():
    """Two seeds that differ by the same amount do not tell how others would: no p of 0, nor one by rounding errors."""
    assert compare_paired_values([2.0, 3.0], [1.0, 2.0]) == (1.0, None, None, None, 2)
    assert compare_paired_values([0.3, 0.6, 0.9], [0.2, 0.5, 0.8])[1:] == (None, None, None, 3)
    assert compare_paired_values([1.0, 2.0], [1.0, 2.0]) == (0.0, None, 1.0, None, 2)
    assert pool_values([50.0, 50.0]) == (50.0, 0.0, None, 2)


def smallest_of(pairs: int) -> float:
    """The smallest difference, in standard deviations."""
    values = [1.0, -1.0] * (pairs // 2) + [0.0] * (pairs % 2)
    return compare_paired_values(values, [0.0] * pairs).smallest / statistics.stdev(values)


@pytest.mark.parametrize(("pairs", "effect"), [(15, 0.8), (34, 0.5), (199, 0.2)])
def test_the_smallest_difference_is_that_of_the_tables_of_power(pairs: int, effect: float) -> None:
    """G*Power and R's power.t.test: paired, two-sided, 5 %, power 80 %: so many pairs are the least for this effect."""
    assert smallest_of(pairs) <= effect < smallest_of(pairs - 1)


@pytest.mark.parametrize("pairs", [3, 5, 30])
def test_the_smallest_difference_is_seen_in_80_of_100_repetitions(pairs: int) -> None:
    """By brute force; (t.975 + t.8) / sqrt(n) would be seen in 76 % at 3 pairs."""
    drawn = np.random.default_rng(0).normal(smallest_of(pairs), 1, (40_000, pairs))
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / pairs**0.5)
    assert np.mean(abs(t) > stats.t.ppf(0.975, pairs - 1)) == pytest.approx(0.8, abs=4 * (0.16 / 40_000) ** 0.5)


def test_pooled_seeds():
    found, values = pool_values([1.0, 2.0, 4.0]), [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, statistics.fmean(values), stats.sem(values))
    assert found.interval == pytest.approx((low, high)) and found.sd == statistics.stdev(values)
    assert pool_values([5.0]) == (5.0, None, None, 1)


# ---- over images ----------------------------------------------------------------------------------------------------


def system(name: str, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> ComparedAnswers:
    return ComparedAnswers(name, samples, predictions, Rules(0.5, LEXICON))


def compared(ours: ComparedAnswers, theirs: ComparedAnswers, replicates: int = CONFIG.replicates):
    (found,) = correct_together([compare_pair(*score_systems((ours, theirs), replicates))])
    return found


def two(samples: Sequence[Sample], a: Sequence[bool], b: Sequence[bool], replicates: int = CONFIG.replicates):
    ours, theirs = system("ours", samples, answered(samples, a)), system("theirs", samples, answered(samples, b))
    return compared(ours, theirs, replicates)


def test_a_difference_is_that_of_the_two_systems_own_scores():
    draw = np.random.default_rng(1)
    kinds = list(product((Task.ROC, Task.VG), (Modality.CT, Modality.PET)))
    samples = [asked(i, i // 3, *kinds[i % 4]) for i in range(120)]
    a, b = draw.random((2, 120)) < 0.6
    found = two(samples, a, b)
    told = [score_predictions(samples, answered(samples, right), {}, LEXICON, CONFIG).scores() for right in (a, b)]
    own = [{(s.task, s.metric, s.modality): s for s in scores if s.row == "model"} for scores in told]
    for task, metric in ((Task.ROC, "Recall"), (Task.VG, "F1"), (Task.VG, "mIoU")):
        for modality in (None, Modality.CT, Modality.PET):
            scores = [of[task, metric, modality] for of in own]
            difference = found.get(task, metric, modality)
            assert (difference.ours, difference.theirs) == pytest.approx([s.value for s in scores])
            assert difference.count == scores[0].count
    swapped = two(samples, b, a)
    assert swapped.get_primary(Task.VG).value == pytest.approx(-found.get_primary(Task.VG).value)
    assert swapped.get_primary(Task.VG).p == pytest.approx(found.get_primary(Task.VG).p, abs=0.03)


def test_a_system_is_no_better_than_itself():
    samples = [asked(i, i) for i in range(20)]
    right = [i % 3 == 0 for i in range(20)]
    found = two(samples, right, right)
    head = found.get_primary(Task.ROC)
    assert (head.value, head.interval, head.p, head.smallest) == (0, None, 1, None)
    assert found.sentences() == ["ROC Recall: no difference in any part."]
    assert two(samples[:3], [True] * 3, [False] * 3).get_primary(Task.ROC).interval is None  # no width is no knowledge
    few = two(samples[:3], [True] * 3, [False] * 3).sentences()
    assert len(few) == 1 and few[0].startswith(
        "ROC Recall: +100.0 in every part, yet too few to tell it from chance (p"
    )


def test_what_is_not_seen_is_told_with_what_could_have_been():
    samples = [asked(i, i) for i in range(40)]
    (line,) = two(samples, [i % 2 == 0 for i in range(40)], [i % 4 in (0, 1) for i in range(40)]).sentences()
    assert line.startswith("ROC Recall: no difference seen (+0.0 [") and "could have shown one of 3" in line


def test_what_is_plain_is_said():
    samples = [asked(i, i, task) for i, task in enumerate([Task.ROC, Task.VG] * 40)]
    found = two(samples, [True] * 80, [i % 8 == 0 or i % 4 in (1, 2) for i in range(80)])
    assert all(p < 0.01 for p in found.corrected.values())
    assert all("ours scores higher than theirs" in line for line in found.sentences())
    other = two(samples, [False] * 80, [True] * 80)
    assert all("theirs scores higher than ours (-100.0" in line for line in other.sentences())


def test_p_by_exchange_is_the_sign_flip_test_for_a_mean():
    """By full enumeration, for few images with one question each."""
    a = [True, True, True, True, False, True, True, False]
    b = [False, True, False, False, False, True, False, True]
    samples = [asked(i, i) for i in range(8)]
    differences = np.array(a, dtype=int) - np.array(b, dtype=int)
    all_signs = np.array(list(product((-1, 1), repeat=8))) @ differences
    exact = np.mean(np.abs(all_signs) >= abs(differences.sum()))
    assert two(samples, a, b).get_primary(Task.ROC).p == pytest.approx(exact, abs=0.03)


def drawn(draw: np.random.Generator, task: Task, images: int, above: float = 0.0):
    """Two systems, alike but for `above`, on images that are hard or easy for both, with one to four questions."""
    groups = np.repeat(np.arange(images), draw.integers(1, 5, images))
    easy = draw.uniform(0.2, 0.8, images)[groups]
    samples = [asked(i, int(g), task) for i, g in enumerate(groups)]
    a, b = (draw.random(len(groups)) < np.clip(easy + more, 0, 1) for more in (above, 0.0))
    return two(samples, a, b)


@pytest.fixture
def headlines_only(monkeypatch):
    monkeypatch.setattr(compare, "EXCHANGES", 199)
    monkeypatch.setattr(compare, "list_shown_metrics", lambda place, task: ())


@pytest.mark.usefixtures("headlines_only")
@pytest.mark.parametrize(
    ("task", "images", "times"),
    [
        (Task.ROC, 30, 60),
        (Task.VG, 8, 60),
        pytest.param(Task.ROC, 30, 800, marks=pytest.mark.slow),
        pytest.param(Task.VG, 8, 800, marks=pytest.mark.slow),
    ],
)
def test_of_systems_that_are_alike_one_in_twenty_seems_better(task, images, times):
    """Level of p, and coverage of the interval, the latter for images enough that a bootstrap may be trusted."""
    draw, room = np.random.default_rng(7), 3 / times**0.5
    heads = [drawn(draw, task, images).get_primary(task) for _ in range(times)]
    assert np.mean([h.p <= 0.05 for h in heads]) <= 0.05 + 0.22 * room
    # Under a half, since figures of few answers tie: .29 for the means of 8 images that are drawn so, .47 by half ties.
    assert np.mean([h.p <= 0.5 for h in heads]) >= 0.29 - 0.5 * room
    if images > 20:
        assert abs(np.mean([h.interval[0] <= 0 <= h.interval[1] for h in heads]) - 0.94) <= 0.02 + 0.24 * room


@pytest.mark.slow
@pytest.mark.usefixtures("headlines_only")
def test_the_smallest_difference_is_seen_in_four_of_five():
    draw = np.random.default_rng(8)
    smallest = statistics.fmean(drawn(draw, Task.ROC, 40).get_primary(Task.ROC).smallest for _ in range(20))
    seen = [drawn(draw, Task.ROC, 40, smallest / 100).get_primary(Task.ROC).p <= 0.05 for _ in range(300)]
    assert 0.7 <= np.mean(seen) <= 0.9


@pytest.mark.usefixtures("headlines_only")
def test_the_smallest_difference_is_that_of_a_binomial_for_single_answers():
    draw = np.random.default_rng(9)
    samples = [asked(i, i) for i in range(400)]
    found = two(samples, draw.random(400) < 0.5, draw.random(400) < 0.5).get_primary(Task.ROC)
    assert found.smallest == pytest.approx(2.80 * 100 * (2 * 0.25 / 400) ** 0.5, rel=0.15)


def test_holm():
    assert compare.correct_by_holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    assert compare.correct_by_holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0} and compare.correct_by_holm({}) == {}


def test_only_what_was_answered_is_compared():
    """Other candidates of either, better or worse, do not count."""
    samples = [asked(i, i) for i in range(6)]
    plain = answered(samples, [True] * 6)
    more = [replace(p, candidates=(Candidate("cyst", BoxedText("cyst")), *p.candidates), chosen=1) for p in plain]
    found = compared(system("a", samples, more), system("b", samples, plain))
    assert (found.get_primary(Task.ROC).ours, found.get_primary(Task.ROC).value) == (100, 0)
    with pytest.raises(BadInput, match="b: 1 of 6 questions are not answered, the first is 's5'"):
        compared(system("a", samples, plain), system("b", samples, plain[:-1]))


def test_seeds_are_compared_by_their_figures():
    pairs = []
    for seed in range(4):
        draw = np.random.default_rng(seed)
        samples = [asked(i, i, task) for i, task in enumerate([Task.ROC, Task.VG] * 30)]
        pairs.append(two(samples, draw.random(60) < 0.9, draw.random(60) < 0.4, 0))
    assert pairs[0].get_primary(Task.ROC).interval is None and "of chance nothing is known" in pairs[0].sentences()[0]
    (found,) = correct_together([compare_seeds(pairs)])
    ours, theirs = [p.get_primary(Task.VG).ours for p in pairs], [p.get_primary(Task.VG).theirs for p in pairs]
    head, paired = found.get_primary(Task.VG), compare_paired_values(ours, theirs)
    assert (head.metric, head.modality, head.pools) == ("F1", None, (pool_values(ours), pool_values(theirs)))
    assert (head.value, head.interval, head.p, head.smallest, head.count) == paired
    assert found.corrected == compare.correct_by_holm({t: found.get_primary(t).p for t in found.primary_metrics})
    assert all("scores higher" in line for line in found.sentences())
    (table,) = tabulate_differences([found]).tasks
    assert table.rows[0][:2] == ("ours - theirs", "VG F1") and "(sd " in table.rows[0][2]
    assert dict(zip(table.columns, table.rows[0], strict=True))["Seeds"] == "4"
    assert table.columns[6:8] == ("p", "p after Holm")
    assert all(len(row) == len(table.columns) for row in table.rows)
    (told,) = ComparedSystems("strict", [], [found]).to_json()["comparisons"]
    assert told["over"] == "seeds" and told["tasks"]["VG"]["metrics"]["F1"]["seeds"] == 4
    assert json.loads(json.dumps(told, allow_nan=False))["tasks"]["ROC"]["metric"] == "Recall"


# ---- several systems ------------------------------------------------------------------------------------------------


def test_what_two_systems_share_is_compared_as_if_there_were_no_more():
    """Figures, intervals and p are those of the shared questions alone, in whatever order each system lists them."""
    draw = np.random.default_rng(3)
    samples = [asked(i, i // 2, (Task.ROC, Task.VG)[i % 2], (Modality.CT, Modality.PET)[i // 3 % 2]) for i in range(80)]
    a, b = draw.random((2, 80)) < 0.6
    ours, theirs = answered(samples, a), answered(samples, b)
    first = system("ours", samples[:60], ours[:60])
    second = system("theirs", samples[:19:-1], theirs[:19:-1])
    found = compared(first, second)
    alone = compared(system("ours", samples[20:60], ours[20:60]), system("theirs", samples[20:60], theirs[20:60]))
    assert found.shared[Task.VG] == (20, 20, 30, 30) and found.shared[Task.ROC].questions == 20
    for task, metric in found.primary_metrics.items():
        for modality in (None, Modality.CT, Modality.PET):
            assert found.get(task, metric, modality) == alone.get(task, metric, modality)
    (table,) = tabulate_differences([found]).tasks
    assert "ours and theirs share 20 questions of VG, of 30 and 30: the difference is over these alone." in table.notes


def test_patients_are_the_clusters_where_one_side_knows_them():
    samples = [asked(i, i) for i in range(24)]
    of_patients = [replace(s, group=f"p{i // 4}") for i, s in enumerate(samples)]
    right = [i % 3 == 0 for i in range(24)]
    known = compared(system("a", of_patients, answered(samples, right)), system("b", samples, answered(samples, right)))
    assert known.shared[Task.ROC] == (24, 6, 24, 24)


def test_questions_of_one_id_are_the_same_only_with_one_truth_and_image():
    samples = [asked(i, i) for i in range(3)]
    predictions = answered(samples, [True] * 3)
    ours = system("ours", samples, predictions)
    image = [replace(s, images=(ImageRef(f"other-{s.id}.png", 64, 64),)) for s in samples]
    truth = [replace(s, turns=(replace(s.turns[0], answer=said("cyst")),)) for s in samples]
    other_id = [replace(s, id=f"t{s.id}") for s in samples]
    for others, told in ((image, "although both have one named 's0'"), (truth, "'s0'"), (other_id, "no question")):
        assert told in (find_hindrance(ours, system("theirs", others, predictions)) or "")
    assert find_hindrance(ours, system("theirs", [*image, *samples[2:]], predictions)) is None
    moved = [replace(s, images=(replace(s.images[0], path=f"folder/{s.images[0].path}"),)) for s in samples]
    assert find_hindrance(ours, system("theirs", moved, predictions)) is None


def test_systems_that_share_questions_are_scored_by_the_words_of_all():
    """One file of answers may name fewer classes than another: a score must not depend on that."""
    samples = [asked(i, i) for i in range(4)]
    said_more = [Prediction(s.id, (Candidate("liver, cyst", said("liver, cyst")),)) for s in samples]
    narrow = ComparedAnswers("narrow", samples, said_more, Rules(0.5, Lexicon(("liver",))))
    wide = system("wide", samples, said_more)
    renamed = [replace(s, id=f"t{s.id}") for s in samples], [replace(p, id=f"t{p.id}") for p in said_more]
    apart = ComparedAnswers("apart", *renamed, narrow.rules)
    scored = list(score_systems((narrow, wide, apart), 0))
    rated = [list(one.rate_questions().values()) for one in scored]
    assert rated[0] == rated[1] != rated[2]


@pytest.mark.usefixtures("headlines_only")
def test_holm_is_over_all_tasks_of_all_pairs():
    draw = np.random.default_rng(5)
    samples = [asked(i, i, (Task.ROC, Task.VG)[i % 2]) for i in range(80)]
    quality = {"a": 0.9, "b": 0.7, "c": 0.6, "d": 0.5}
    systems = [system(name, samples, answered(samples, draw.random(80) < q)) for name, q in quality.items()]
    scored = list(score_systems(systems, 50))
    pairs = [compare_pair(scored[0], other) for other in scored[1:]]
    found = correct_together(pairs)
    single = {(c.theirs, t): c.get_primary(t).p for c in found for t in c.primary_metrics}
    assert len(single) == 6
    assert {(c.theirs, t): p for c in found for t, p in c.corrected.items()} == compare.correct_by_holm(single)
    assert min(p for c in found for p in c.corrected.values()) >= 6 * min(single.values()) * 0.999
    matrix, (table,), _ = tabulate_differences(found)
    assert [row[0] for row in matrix[0].rows] == ["b", "c", "d"] and "all 6 tests" in " ".join(table.notes)


def test_p_can_be_small_enough_however_many_tests_there_are():
    samples = [asked(i, i) for i in range(30)]
    ours, theirs = (system(n, samples, answered(samples, [n == "a"] * 30)) for n in "ab")
    scored = list(score_systems((ours, theirs), 50))
    assert 200 * compare_pair(*scored, tests=200).get_primary(Task.ROC).p < 0.05

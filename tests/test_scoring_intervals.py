"""Intervals of shares: how often they hold the truth, and what they are at the edge and for a single group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from clinkd.scoring.intervals import percentile_levels, share_interval, wilson_interval

ROOT = Path(__file__).resolve().parent.parent


def intervals(hits: list[list[float]], items: list[list[float]], binary: bool = True) -> tuple[float, float]:
    """Of K strata with G groups."""
    low, high = share_interval(np.array(hits, dtype=float), np.array(items, dtype=float), binary)
    return float(low), float(high)


@pytest.mark.parametrize("cell", [(0.95, 120, 0, 0.2), (0.99, 300, 2, 0.0), (0.8, 60, 3, 0.5)])
def test_an_interval_holds_the_truth_in_95_of_100(monkeypatch: pytest.MonkeyPatch, cell: tuple[float, int, int, float]):
    """Three cells of `python -m benchmarks.coverage`, with room for four standard errors; the percentile bootstrap and
    Wilson's interval without groups fail the first and the last."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import coverage

    covered, _, narrowest = coverage.measure(coverage.Cell(*cell), 2000, coverage.in_use)
    room = 4 * (0.95 * 0.05 / 2000) ** 0.5
    assert 0.93 - room <= covered <= 0.98 + room
    assert not narrowest <= 0.01


def test_a_mean_over_modalities_and_values_between_0_and_1_hold_as_well() -> None:
    rng, times = np.random.default_rng(0), 2000
    shares, groups = np.array([0.7, 0.9, 0.99]), 40
    items = rng.integers(1, 4, size=(times, 3, groups)).astype(float)
    hits = rng.binomial(items.astype(int), rng.beta(3 * shares, 3 * (1 - shares), (times, groups, 3)).swapaxes(1, 2))
    values = rng.beta(8, 2, size=(times, 1, groups))  # as an IoU
    room = 4 * (0.95 * 0.05 / times) ** 0.5
    for ends, truth in (
        (share_interval(hits.astype(float), items), shares.mean()),
        (share_interval(values, np.ones_like(values), binary=False), 0.8),
    ):
        assert 0.93 - room <= np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])) <= 0.98 + room


def test_single_items_have_wilsons_interval_and_whole_groups_that_of_their_number() -> None:
    ones, n = [[1.0] * 45 + [0.0] * 5], 50
    assert intervals(ones, [[1.0] * n]) == pytest.approx(wilson_interval(45, n), abs=0.003)
    oracle = stats.binomtest(45, n).proportion_ci(method="wilson")
    assert wilson_interval(45, n) == pytest.approx((oracle.low, oracle.high))
    # six questions an image that stand and fall together: at least as wide as of the images, and not of the questions
    low, high = intervals([[6.0] * 45 + [0.0] * 5], [[6.0] * n])
    assert high - low == pytest.approx(oracle.high - oracle.low, rel=0.05)


@pytest.mark.parametrize("groups", [2, 5, 43])
def test_a_perfect_score_has_the_interval_of_as_many_perfect_groups(groups: int) -> None:
    least = groups / (groups + 1.959964**2)
    for binary in (True, False):
        assert intervals([[3.0] * groups], [[3.0] * groups], binary) == pytest.approx((least, 1))
        assert intervals([[0.0] * groups], [[3.0] * groups], binary) == pytest.approx((0, 1 - least))


def test_one_group_has_no_interval_and_a_stratum_of_one_makes_the_mean_wider() -> None:
    assert np.isnan(intervals([[2.0]], [[3.0]])).all() and np.isnan(intervals([[0.0, 0.0]], [[0.0, 0.0]])).all()
    hits, items = [[1.0] * 36 + [0.0] * 4], [[1.0] * 40]
    low, high = intervals(hits, items)
    pair = intervals([[*hits[0], 0.0], [0.0] * 40 + [1.0]], [[*items[0], 0.0], [0.0] * 40 + [1.0]])
    assert pair[1] - pair[0] > 2 * (high - low)
    assert intervals([*hits, [0.0] * 40], [*items, [0.0] * 40]) == (low, high)  # a modality without items is none


def test_few_misses_have_the_limit_of_a_poisson_count() -> None:
    """Three misses of 100: Wilson's interval leaves out .99, which has such a draw in 6 % of repetitions."""
    low, high = intervals([[1.0] * 97 + [0.0] * 3], [[1.0] * 100])
    assert wilson_interval(97, 100)[1] < 0.99 < high < 1 and low == pytest.approx(wilson_interval(97, 100)[0], abs=2e-3)
    by_chi_squared = 1 - stats.chi2.ppf(0.05, 6) / 2 / 100
    assert high == pytest.approx(by_chi_squared, abs=1e-3)


def test_a_bootstrap_of_few_groups_takes_wider_percentiles() -> None:
    assert percentile_levels(100_000) == pytest.approx([2.5, 97.5], abs=1e-3)
    assert percentile_levels(5)[0] == pytest.approx(100 * stats.norm.cdf(-2.776445 * 1.25**0.5), rel=1e-5)

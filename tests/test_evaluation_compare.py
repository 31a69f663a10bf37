"""Differences between systems: against textbook formulas, and by how often they err where the truth is known."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from scipy import stats

from clinkd.evaluation import over_seeds, pooled

# ---- over seeds -----------------------------------------------------------------------------------------------------


def test_over_seeds_is_the_paired_t_test():
    ours, theirs = [61.2, 58.0, 63.3, 60.1, 59.9], [57.0, 58.5, 60.2, 57.7, 58.8]
    found, oracle = over_seeds(ours, theirs), stats.ttest_rel(ours, theirs)
    assert found.p == pytest.approx(oracle.pvalue) and found.pairs == 5
    assert found.interval == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    error = statistics.stdev([a - b for a, b in zip(ours, theirs, strict=True)]) / 5**0.5
    assert found.smallest == pytest.approx((stats.t.ppf(0.975, 4) + stats.t.ppf(0.8, 4)) * error)
    swapped = over_seeds(theirs, ours)
    assert (swapped.mean, swapped.p, swapped.smallest) == pytest.approx((-found.mean, found.p, found.smallest))


def test_one_pair_has_a_difference_and_no_interval():
    assert over_seeds([3.0], [1.0]) == (2.0, None, None, None, 1) and not over_seeds([3.0], [1.0]).certain
    with pytest.raises(ValueError):
        over_seeds([3.0], [1.0, 2.0])
    with pytest.raises(ValueError):
        over_seeds([], [])


def test_pairs_that_never_vary():
    assert over_seeds([2.0, 3.0], [1.0, 2.0]) == (1.0, (1.0, 1.0), 0.0, 0.0, 2)
    assert over_seeds([1.0, 2.0], [1.0, 2.0]).p == 1 and not over_seeds([1.0, 2.0], [1.0, 2.0]).certain


def test_the_smallest_difference_is_seen_about_as_often_as_said():
    """With the spread estimated from few pairs the power is near 80 %, not exactly; with many it is."""
    rng = np.random.default_rng(0)
    smallest = (stats.t.ppf(0.975, 29) + stats.t.ppf(0.8, 29)) / 30**0.5
    seen = [over_seeds(list(row), [0.0] * 30).p < 0.05 for row in rng.normal(smallest, 1, (800, 30))]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.05)


def test_pooled_seeds():
    found, values = pooled([1.0, 2.0, 4.0]), [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, statistics.fmean(values), stats.sem(values))
    assert found.interval == pytest.approx((low, high)) and found.sd == statistics.stdev(values)
    assert pooled([5.0]) == (5.0, None, None, 1)

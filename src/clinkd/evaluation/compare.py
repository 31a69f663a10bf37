"""Is one system better than another: over seeds, and over the images of one test set."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

POWER = 0.8  # of the smallest difference that is told: seen so often by a two-sided test at 5 %

Interval = tuple[float, float]


class Pooled(NamedTuple):
    """Several seeds of one system: mean, standard deviation, and Student's 95 % interval of the mean; None for one."""

    mean: float
    sd: float | None
    interval: Interval | None
    seeds: int


class Paired(NamedTuple):
    """Several seeds of two systems, in pairs: `mean` of ours - theirs, in the unit of the values.

    `interval` and `p` (two-sided) are Student's for paired differences; `smallest` is the true difference that as many
    pairs of this spread would have told from 0 in 80 % of repetitions: (t.975 + t.8) sd / sqrt(n), with n - 1 degrees
    of freedom. All three are None for a single pair, whose spread is not known.
    """

    mean: float
    interval: Interval | None
    p: float | None
    smallest: float | None
    pairs: int

    @property
    def certain(self) -> bool:
        """The interval leaves out 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def pooled(values: Sequence[float]) -> Pooled:
    """One figure of several seeds of one system. Raises ValueError where there is none."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Pooled(mean, None, None, len(values))
    sd = statistics.stdev(values)
    half = _student(0.975, len(values)) * sd / len(values) ** 0.5
    return Pooled(mean, sd, (mean - half, mean + half), len(values))


def over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """The same figure of two systems, seed by seed. Raises ValueError where their numbers differ or are 0."""
    found = pooled([a - b for a, b in zip(ours, theirs, strict=True)])
    if found.sd is None:
        return Paired(found.mean, None, None, None, 1)
    error = found.sd / found.seeds**0.5
    smallest = (_student(0.975, found.seeds) + _student(POWER, found.seeds)) * error
    return Paired(found.mean, found.interval, _student_p(found.mean, error, found.seeds), smallest, found.seeds)


def _student(quantile: float, count: int) -> float:
    """Student's t at this quantile for a mean of so many values."""
    from scipy.special import stdtrit  # here: what needs no interval starts without it

    return float(stdtrit(count - 1, quantile))


def _student_p(mean: float, error: float, count: int) -> float:
    """Two-sided; where all values are equal, 1 if they are 0, else 0."""
    from scipy.special import stdtr

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(count - 1, -abs(mean) / error))

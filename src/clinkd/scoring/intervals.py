"""95 % intervals of shares and of means of values from 0 to 1, near 0 and 1 too, where the items come in groups.

Shapes: K strata (modalities) that count alike in the mean, G groups (patients, else images). Leading axes, `...`, are
any number of such data sets, which are computed together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_Z2 = 1.959963984540054**2  # the square of the normal 97.5 % quantile
# How much one believes, before any data, that the items of a group stand or fall together: as much as so many items of
# the rarer kind tell. Of .25, .35, .5, .75 and 1 the smallest with which no cell of `python -m benchmarks.coverage`
# falls below 92.5 %.
_PRIOR_ITEMS = 0.75
_FEW = 2, 3  # so many items of the rarer kind have a Poisson limit: up to 50 items, and of more (Brown et al. 2001)


def share_interval(hits_KG: Floats, items_KG: Floats, binary: bool = True) -> Floats:
    """[..., K, G] hits among items -> [..., 2] the 95 % interval of the mean over the strata of hits / items, 0..1.

    It is Wilson's score interval (1927), whose number of items is divided by the design effect of the groups, as Rao
    and Scott (1992), Korn and Graubard (1998), Dean and Pagano (2015) and Saha, Miller and Wang (2016) do::

        (p + x/2 +- sqrt(x p q + x^2/4)) / (1 + x),    x = z^2 / effective items,    q = 1 - p

        x p q = z^2 B + t^2 max(0, R - B)    B: variance of p with independent items, sum of p q / items / K^2
                                             R: variance of p by the linearised ratio of groups (Rao and Scott)

    Only what the groups add is estimated from few of them: it has Student's t, with Satterthwaite's degrees of freedom
    over the strata. Where few items are hits, or few are not, the groups say little of how their items depend on each
    other: as much as .75 items tell speaks for whole groups that stand and fall together. So a perfect score has the
    interval of as many perfect groups. A count of at most 3 hits, or misses, has the Poisson limit of Brown, Cai and
    DasGupta (2001), without which Wilson's covers 92 % there.

    Hits of a group are from 0 to its items. Not `binary`: an item is a value from 0 to 1, whose variance may be far
    smaller than p q, so B is left out. A stratum without items does not count; of one with a single group only the
    bounds are known, so its variance is the largest that a share can have, 1/4. NaN: one group in all, or none.
    """
    n_K, groups_K = items_KG.sum(-1), (items_KG > 0).sum(-1)
    w_K = np.where(n_K > 0, 1.0, 0.0) / np.maximum(1, (n_K > 0).sum(-1, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        p_K = np.where(n_K > 0, hits_KG.sum(-1) / n_K, 0.0)
        weight_KG = np.where(n_K > 0, w_K / n_K, 0.0)[..., None]
        residual_KG = weight_KG * (hits_KG - p_K[..., None] * items_KG)
        p = (w_K * p_K).sum(-1)
        spread = p * (1 - p)
        between, t2 = _estimate_group_variance(residual_KG, groups_K, w_K)
        independent = (weight_KG[..., 0] * w_K * p_K * (1 - p_K)).sum(-1)
        alike = ((weight_KG * items_KG).sum(-2) ** 2).sum(-1)  # 1 / effective items, if groups stand or fall together
        apart = (weight_KG[..., 0] * w_K).sum(-1)  # the same of independent items
        rare = np.minimum(p, 1 - p) / apart  # hits or misses, in items
        known = np.where(spread > 0, rare / (rare + _PRIOR_ITEMS), 0.0)
        safe = np.where(spread > 0, spread, 1.0)
        if binary:
            extra = known * t2 * (between - independent) / safe + (1 - known) * _Z2 * (alike - apart)
            x = _Z2 * (known * independent / safe + (1 - known) * apart) + np.maximum(0, extra)
        else:
            x = known * t2 * between / safe + (1 - known) * _Z2 * alike
    low, high = _solve_score(p, x)
    if binary:
        low = np.minimum(low, _poisson_limit(p, apart, x))
        high = np.maximum(high, 1 - _poisson_limit(1 - p, apart, x))
    ends = np.clip(np.stack([low, high], axis=-1), 0.0, 1.0)
    return np.where((items_KG.sum(-2) > 0).sum(-1)[..., None] > 1, ends, np.nan)


def _estimate_group_variance(residual_KG: Floats, groups_K: NDArray[np.intp], w_K: Floats) -> tuple[Floats, Floats]:
    """[...] the variance of the mean by the groups, and the square of Student's t for it. Groups may lie in several
    strata."""
    from scipy.special import stdtrit  # here: what needs no interval starts without it

    own_K = (residual_KG**2).sum(-1)
    within_K = np.where(groups_K > 1, own_K * groups_K / np.maximum(1, groups_K - 1), w_K**2 / 4)
    shared = (residual_KG.sum(-2) ** 2).sum(-1) - own_K.sum(-1)  # of groups in several strata
    variance = within_K.sum(-1)
    estimated = np.where(groups_K > 1, within_K**2 / np.maximum(1, groups_K - 1), 0.0).sum(-1)
    freedom = np.where(estimated > 0, variance**2 / np.where(estimated > 0, estimated, 1.0), np.inf)
    return variance + np.maximum(0.0, shared), np.asarray(stdtrit(np.clip(freedom, 1, 1e6), 0.975)) ** 2


def _solve_score(p: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Wilson's limits of a share, with x = z^2 / items."""
    middle, spread = p + x / 2, np.sqrt(x * p * (1 - p) + x * x / 4)
    low, high = (middle - spread) / (1 + x), (middle + spread) / (1 + x)
    return np.where(p == 0, 0.0, low), np.where(p == 1, 1.0, high)  # without a rounding error at the edge


def _poisson_limit(p: Floats, apart: Floats, x: Floats) -> Floats:
    """The lower limit of a share of few hits, in effective items; 1 where there are none or many."""
    from scipy.special import gammaincinv

    with np.errstate(divide="ignore", invalid="ignore"):
        hits, items = p / apart, _Z2 / x
        few = (hits > 0) & (hits <= np.where(items > 50, _FEW[1], _FEW[0]) + 1e-9)
        return np.where(few, gammaincinv(np.where(few, p * items, 1.0), 0.05) / items, 1.0)


def percentile_levels(groups: int) -> Floats:
    """[2] the percentiles of bootstrap replicates over so many groups that make a 95 % interval, 0..100.

    With few groups 2.5 and 97.5 are too narrow: replicates vary by (G - 1) / G of the true variance, and Student's t is
    wider than the normal. The expanded percentile interval (Hesterberg 2015, "What teachers should know about the
    bootstrap", section 4.4) takes the normal's tail beyond t sqrt(G / (G - 1)) instead.
    """
    from scipy.special import ndtr, stdtrit

    tail = 100 * ndtr(-stdtrit(groups - 1, 0.975) * np.sqrt(groups / (groups - 1)))
    return np.array([tail, 100 - tail])


def wilson_interval(part: float, whole: float) -> tuple[float, float]:
    """The 95 % interval of a share of independent items (Wilson 1927), 0..1. It also holds near 0 and 1, and for few
    items."""
    low, high = _solve_score(np.array(part / whole), np.array(_Z2 / whole))
    return float(low), float(high)


def scale_interval(ends: Floats) -> tuple[float, float] | None:
    """The ends of an interval, 0..1 -> x100; None for NaN."""
    return None if np.isnan(ends).any() else (100 * float(ends[0]), 100 * float(ends[1]))

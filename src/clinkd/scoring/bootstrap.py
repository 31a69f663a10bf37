"""Bootstrap over groups (patients, else images): each replicate draws as many groups as there are, with replacement.

Shapes: G groups, R replicates, K keys (modalities, sources), F figures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clinkd.scoring.captions import Counts
from clinkd.scoring.intervals import percentile_levels, wilson_interval

_CHUNK = 64  # replicates computed together: bounds memory at 64 x groups


def draw_group_weights(rng: np.random.Generator, num_groups: int, replicates: int) -> NDArray[np.uint8]:
    """[R, G] how often each replicate draws each group."""
    drawn = [
        np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups).clip(max=255).astype(np.uint8)
        for _ in range(replicates)
    ]
    return np.array(drawn, dtype=np.uint8).reshape(replicates, num_groups)


def replicate(figure: Callable[[Counts], Counts], sums_G: Counts, weights_RG: NDArray[np.uint8]) -> Counts:
    """[G, ...] sums by group, [R, G] weights -> [R, ...] `figure` of the sums that each replicate draws."""
    flat = sums_G.reshape(len(sums_G), -1)
    chunks = (weights_RG[i : i + _CHUNK].astype(np.float64) for i in range(0, max(1, len(weights_RG)), _CHUNK))
    return np.concatenate([figure((chunk @ flat).reshape(-1, *sums_G.shape[1:])) for chunk in chunks])


def mean_over_keys(values: Counts, axis: int) -> Counts:
    """Mean over the keys that have a value; NaN where none has."""
    has_value = ~np.isnan(values)
    count = has_value.sum(axis)
    return np.where(count > 0, np.where(has_value, values, 0.0).sum(axis) / np.maximum(count, 1), np.nan)


def percentile_intervals(replicates: Counts, groups: NDArray[np.intp]) -> Counts:
    """[R, K, ...] replicates over [K] groups -> [K, ..., 2] ends of 95 % intervals; NaN where no replicate has a
    figure."""
    ends = np.full((*replicates.shape[1:], 2), np.nan)
    for k, number in enumerate(groups.tolist() if len(replicates) else ()):
        has_figure = np.asarray(~np.isnan(replicates[:, k]).all(axis=0))
        of_key = np.where(has_figure, replicates[:, k], 0.0)
        percentiles = np.nanpercentile(of_key, percentile_levels(max(2, number)), axis=0)
        ends[k] = np.where(has_figure[..., None], np.moveaxis(percentiles, 0, -1), np.nan)
    return ends


def widen_points(values: Counts, intervals: Counts, groups: NDArray[np.intp]) -> Counts:
    """[K, F] values, [K, F, 2] intervals, [K] groups -> the intervals, none of them a point.

    Where every group has the same figure, the bootstrap cannot tell how others would differ. Of a figure of 0 or 1 the
    interval is then Wilson's for that share of the groups; of any other there is none.
    """
    widened = intervals.copy()
    for k, f in np.argwhere(intervals[..., 0] == intervals[..., 1]):
        share = values[k, f]
        widened[k, f] = wilson_interval(round(share) * groups[k], groups[k]) if share in (0, 1) else np.nan
    return widened

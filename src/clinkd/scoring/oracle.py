"""The oracle: for each metric, the choice among the candidates that no other choice surpasses, made by the truth.

Shapes: N answers, K candidates of each, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clinkd.scoring.captions import Counts
from clinkd.scoring.measure import Measure, Metric

_MOST_STEPS = 50  # a ratio takes about five
_LEAST_GAIN = 1e-12
Choice = NDArray[np.intp]  # [N] rows of the counts


def choose_by_truth(
    measure: Measure,
    counts: Counts,
    candidates: Mapping[int, Sequence[int]],
    keys: Mapping[int, object],
    starts: Sequence[Mapping[int, int]],
) -> list[tuple[Measure, dict[int, int]]]:
    """Metrics of the measure with the rows of `counts` that are best by them; metrics of one choice stand together.

    `candidates`: by sample, rows of `counts`. `keys`: by sample, the task and modality whose figure is raised. A figure
    is one of sums over many answers, so the best candidate of each answer alone need not give the best figure. From the
    best of `starts` and of that choice, each step takes for every answer the candidate along whose counts the figure
    rises most, as long as it rises. A ratio of two sums then reaches its maximum (Dinkelbach 1967). Any other figure,
    such as BLEU, is at least that of each start.
    """
    samples_by_key: dict[object, list[int]] = defaultdict(list)
    for sample in candidates:
        samples_by_key[keys[sample]].append(sample)
    if all(len(set(rows)) == 1 for rows in candidates.values()):
        return [(measure, {sample: rows[0] for sample, rows in candidates.items()})]
    metrics_by_choice: dict[tuple[int, ...], list[Metric]] = defaultdict(list)
    best: dict[int, int] = {}
    for metric in measure.rows:
        earlier = [best] if best else []  # of an equal figure the choice is that of the metric before
        best = {}
        for samples in samples_by_key.values():
            rows, known = _pad([candidates[s] for s in samples]), _take([*earlier, *starts], samples)
            best.update(zip(samples, _choose(measure, metric, counts, rows, known).tolist(), strict=True))
        metrics_by_choice[tuple(best[s] for s in candidates)].append(metric)
    return [
        (replace(measure, rows=tuple(metrics)), dict(zip(candidates, rows, strict=True)))
        for rows, metrics in metrics_by_choice.items()
    ]


def _pad(rows: Sequence[Sequence[int]]) -> NDArray[np.intp]:
    """[N, K] rows of the counts; where an answer has fewer candidates, its first one again."""
    most = max(map(len, rows))
    return np.array([[*r, *[r[0]] * (most - len(r))] for r in rows], dtype=np.intp)


def _take(starts: Sequence[Mapping[int, int]], samples: Sequence[int]) -> list[Choice]:
    return [np.array([start[s] for s in samples], dtype=np.intp) for start in starts]


def _choose(
    measure: Measure, metric: Metric, counts: Counts, rows_NK: NDArray[np.intp], starts: Sequence[Choice]
) -> Choice:
    def goodness(sums: Counts) -> Counts:
        return metric.goodness(measure.figure(metric.name, sums))

    def figure(chosen_N: Choice) -> float:
        return float(np.nan_to_num(goodness(counts[chosen_N].sum(0)), nan=-np.inf))

    counts_NKC, answers_N = counts[rows_NK], np.arange(len(rows_NK))
    # NaN: the answer rightly says nothing, for example where neither truth nor answer has a box.
    alone_N = rows_NK[answers_N, np.nan_to_num(goodness(counts_NKC), nan=1.0).argmax(1)]
    chosen_N: Choice = max([*starts, alone_N], key=figure)
    value = figure(chosen_N)
    for _ in range(_MOST_STEPS if np.isfinite(value) else 0):
        slope_C = _find_slope(goodness, counts[chosen_N].sum(0))
        worth_NK = counts_NKC @ slope_C
        rises_N = worth_NK.max(1) > counts[chosen_N] @ slope_C + _LEAST_GAIN
        next_N = np.where(rises_N, rows_NK[answers_N, worth_NK.argmax(1)], chosen_N)
        if (next_value := figure(next_N)) <= value + _LEAST_GAIN:
            break
        chosen_N, value = next_N, next_value
    return chosen_N


def _find_slope(figure: Callable[[Counts], Counts], sums_C: Counts) -> Counts:
    """[C] how much the figure changes with each column of the sums."""
    step = 1e-6 * max(1.0, float(np.abs(sums_C).max()))
    changed = figure(sums_C + step * np.eye(len(sums_C))) - figure(sums_C)
    return np.nan_to_num(np.asarray(changed / step), nan=0.0)

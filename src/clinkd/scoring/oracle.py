"""The oracle: for each metric, the best choice among the candidates, made by the truth.

Shapes: N answers, K candidates of each, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clinkd.scoring.captions import Counts
from clinkd.scoring.measure import Measure, Metric

_LEAST_GAIN = 1e-12


def choose_by_truth(
    measure: Measure,
    counts: Counts,
    candidates: Mapping[int, Sequence[int]],
    keys: Mapping[int, object],
    starts: Sequence[Mapping[int, int]],
) -> list[tuple[Measure, dict[int, int]]]:
    """Metrics of the measure with the rows of `counts` that are best by them; metrics of one choice stand together.

    `candidates`: by sample, rows of `counts`. `keys`: by sample, the task and modality whose figure is raised. A figure
    is one of sums over many answers, so the best candidate of each answer alone need not give the best figure: no
    choice is above a ratio of two sums; any other figure, such as BLEU, is at least that of each of `starts`.
    """
    if all(len(set(rows)) == 1 for rows in candidates.values()):
        return [(measure, {sample: rows[0] for sample, rows in candidates.items()})]
    samples_by_key: dict[object, list[int]] = defaultdict(list)
    for sample in candidates:
        samples_by_key[keys[sample]].append(sample)
    most = max(map(len, candidates.values()))
    padded = {s: [*rows, *[rows[0]] * (most - len(rows))] for s, rows in candidates.items()}
    metrics_by_choice: dict[tuple[int, ...], list[Metric]] = defaultdict(list)
    best: dict[int, int] = {}
    for metric in measure.rows:
        tried = [best, *starts] if best else starts  # of an equal figure the choice is that of the metric before
        best = {}
        for samples in samples_by_key.values():
            tried_TN = np.array([[choice[s] for s in samples] for choice in tried])
            chosen_N = _choose(measure, metric, counts, np.array([padded[s] for s in samples]), tried_TN)
            best.update(zip(samples, chosen_N.tolist(), strict=True))
        metrics_by_choice[tuple(best[s] for s in candidates)].append(metric)
    return [
        (replace(measure, rows=tuple(metrics)), dict(zip(candidates, rows, strict=True)))
        for rows, metrics in metrics_by_choice.items()
    ]


def _choose(
    measure: Measure, metric: Metric, counts: Counts, rows_NK: NDArray[np.intp], tried_TN: NDArray[np.intp]
) -> NDArray[np.intp]:
    """[N] rows of the counts: the best of those tried and of each answer alone, and then, as long as the figure rises,
    of each answer the candidate along whose counts it rises most. A ratio so reaches its maximum (Dinkelbach 1967)."""

    def goodness(sums: Counts, undefined: float) -> Counts:
        return np.nan_to_num(metric.goodness(measure.figure(metric.name, sums)), nan=undefined)

    counts_NKC, answers_N = counts[rows_NK], np.arange(len(rows_NK))
    # undefined: the answer rightly says nothing, for example where neither truth nor answer has a box
    alone_N = rows_NK[answers_N, goodness(counts_NKC, 1.0).argmax(1)]
    next_N: NDArray[np.intp] = max([*tried_TN, alone_N], key=lambda n: float(goodness(counts[n].sum(0), -np.inf)))
    chosen_N, value = next_N, -np.inf
    while (next_value := float(goodness(sums_C := counts[next_N].sum(0), -np.inf))) > value + _LEAST_GAIN:
        chosen_N, value = next_N, next_value
        step = 1e-6 * max(1.0, float(np.abs(sums_C).max()))
        slope_C = (goodness(sums_C + step * np.eye(len(sums_C)), value) - value) / step
        next_N = rows_NK[answers_N, (counts_NKC @ slope_C).argmax(1)]
    return chosen_N

"""Test whether one system is better than another: over the images of one test set, and over seeds.

Over images: two systems answered the same questions. The difference of any figure has a 95 % interval by bootstrap over
groups (patients, else images), drawn in pairs, and a two-sided p by permutation: if the two are equally good, they can
swap their answers to the images of a group. This also holds for figures that are no means over answers (F1, BLEU), and
for few images, where a p from a bootstrap is too small (tests/test_evaluation_compare.py draws both). Over seeds: the
figures of each pair of runs are compared by Student's t. Over the tasks p is corrected by Holm.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from clinkd.config import EvaluateConfig
from clinkd.records import BadInput, Modality, Prediction, Sample, Table, Task
from clinkd.reporting.tables import TITLES, as_cell
from clinkd.scoring.measure import Rules
from clinkd.scoring.metrics import list_shown_metrics
from clinkd.scoring.score import MODEL, PairedDifference, ScoredAnswers, score_predictions, spell_interval

POWER = 0.8  # a two-sided test at 5 % finds the smallest difference that often
LEVEL = 0.05
EXCHANGES = 1999  # the smallest p is then 1 / 2000
_THEIRS = "compared"

Interval = tuple[float, float]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class MetricDifference:
    """Ours - theirs of one metric, x100: of a modality, or of the mean over them (None).

    `count`: of questions, or of seeds. `smallest`: the true difference that as much data tells from 0 in 80 % of
    repetitions; over images it is (1.96 + .84) times the spread of the replicates, over seeds that of `SeedDifference`,
    and None where nothing varies. A value that could not be computed is None. `pools`: ours and theirs over the seeds.
    """

    task: Task
    metric: str
    modality: Modality | None
    ours: float
    theirs: float
    value: float
    interval: Interval | None
    p: float | None
    smallest: float | None
    count: int
    pools: tuple[SeedMean, SeedMean] | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems over the questions of one test set, or over several seeds.

    `primary_metrics`: the metric that each task is compared by; `corrected`: its p after Holm.
    """

    ours: str
    theirs: str
    over: Literal["questions", "seeds"]
    differences: tuple[MetricDifference, ...]
    primary_metrics: Mapping[Task, str]
    corrected: Mapping[Task, float]

    @classmethod
    def of(
        cls, names: tuple[str, str], over: Literal["questions", "seeds"], differences: Iterable[MetricDifference],
        primary_metrics: Mapping[Task, str],
    ) -> Comparison:  # fmt: skip
        """Correct p by Holm over the tasks. A task without a difference is left out of `primary_metrics`."""
        differences = tuple(differences)
        means = {d.task: d.p for d in differences if d.modality is None and d.metric == primary_metrics.get(d.task)}
        corrected = correct_by_holm({task: p for task, p in means.items() if p is not None})
        return cls(*names, over, differences, {t: m for t, m in primary_metrics.items() if t in means}, corrected)

    def get(self, task: Task, metric: str, modality: Modality | None = None) -> MetricDifference | None:
        wanted = (task, metric, modality)
        return next((d for d in self.differences if (d.task, d.metric, d.modality) == wanted), None)

    def get_primary(self, task: Task) -> MetricDifference:
        difference = self.get(task, self.primary_metrics[task])
        assert difference is not None
        return difference

    def sentences(self) -> list[str]:
        """The conclusion for each task."""
        return [f"{task.value} {metric}: {self._sentence(task)}" for task, metric in self.primary_metrics.items()]

    def _sentence(self, task: Task) -> str:
        primary, p = self.get_primary(task), self.corrected.get(task)
        if p is None or primary.interval is None:
            return f"{self.ours} {primary.value:+.1f} above {self.theirs}; of chance nothing is known."
        figures = f"{primary.value:+.1f} [{primary.interval[0]:+.1f}, {primary.interval[1]:+.1f}], p = {p:.2g}"
        if p < LEVEL:
            better, worse = (self.ours, self.theirs) if primary.value > 0 else (self.theirs, self.ours)
            return f"{better} scores higher than {worse} ({figures})."
        if primary.smallest:
            return f"no difference seen ({figures}); the data could have shown one of {primary.smallest:.1f} or more."
        if primary.value:
            return f"{primary.value:+.1f} in every part, yet too few to tell it from chance (p = {p:.2g})."
        return "no difference in any part."


# ---- over images ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComparedAnswers:
    """Answers of a system and the rules of scoring. `root`: the folder of the images, where it is known."""

    name: str
    samples: Sequence[Sample]
    predictions: Sequence[Prediction]
    rules: Rules
    root: Path | None = None


def compare_answers(ours: ComparedAnswers, theirs: ComparedAnswers, replicates: int) -> Comparison:
    """Two systems by their answers to the same questions; candidates that were not chosen do not count.

    `replicates` under 2: figures alone, without intervals and p. Raises BadInput where the questions or the rules
    differ, and for a question without an answer.
    """
    _require_same_test(ours, theirs)
    mine, others = _require_chosen_answers(ours), _require_chosen_answers(theirs)
    config = EvaluateConfig(iou=ours.rules.iou, replicates=replicates)
    scored = score_predictions(ours.samples, mine, {_THEIRS: others}, ours.rules.lexicon, config)
    metrics = {task: primary for task in Task if (primary := scored.find_primary_metric(task))}
    differences = [
        d
        for task in metrics
        for metric in dict.fromkeys((metrics[task], *list_shown_metrics("comparison", task)))
        for d in _compare_metric(scored, task, metric)
    ]
    names = (ours.name, theirs.name) if ours.name != theirs.name else (f"{ours.name} (1)", f"{theirs.name} (2)")
    return Comparison.of(names, "questions", differences, metrics)


def _require_same_test(ours: ComparedAnswers, theirs: ComparedAnswers) -> None:
    """Raise BadInput where the two answered different questions, or are scored by another IoU."""
    mine, others = ({s.id: (s.question, s.answer) for s in side.samples} for side in (ours, theirs))
    if mine != others:
        different = next((i for i in (*mine, *others) if mine.get(i) != others.get(i)), "")
        raise BadInput(
            f"{ours.name} and {theirs.name} were asked different test questions, such as {different!r}: compare runs "
            "of the same data and seed (phantoms and splits are drawn anew with each seed), several seeds with "
            "--against"
        )
    if ours.rules.iou != theirs.rules.iou:
        raise BadInput(
            f"evaluate.iou={ours.rules.iou:g} of {ours.name} is {theirs.rules.iou:g} in {theirs.name}: no fair "
            "comparison"
        )


def _require_chosen_answers(side: ComparedAnswers) -> list[Prediction]:
    """The predictions without the candidates that were not chosen. Raises BadInput for a sample without an answer."""
    answered = {p.id for p in side.predictions}
    if missing := [s.id for s in side.samples if s.id not in answered]:
        count = f"{len(missing)} of {len(side.samples)}"
        raise BadInput(f"{side.name}: {count} questions are not answered, the first is {missing[0]!r}")
    return [replace(p, candidates=(p.answer,), chosen=0) for p in side.predictions]


def _compare_metric(scored: ScoredAnswers, task: Task, metric: str) -> list[MetricDifference]:
    exchanges = EXCHANGES if scored.replicates >= 2 else 0
    paired = scored.compare_rows(task, metric, MODEL, _THEIRS, [s.modality for s in scored.samples], exchanges)
    if paired is None:
        return []
    differences = []
    for k, key in enumerate(paired.keys):
        ours, theirs = 100 * float(paired.ours[k]), 100 * float(paired.theirs[k])
        if not np.isnan(ours - theirs):
            modality = None if key is None else Modality(key)
            tested = (paired.interval[k], *_test_by_permutation(paired, k), paired.answers[k])
            differences.append(MetricDifference(task, metric, modality, ours, theirs, ours - theirs, *tested))
    return differences


def _test_by_permutation(difference: PairedDifference, k: int) -> tuple[float | None, float | None]:
    """p, and the smallest difference."""
    if difference.permuted is None or difference.replicates is None:
        return None, None
    observed, permuted = abs(difference.ours[k] - difference.theirs[k]), np.abs(difference.permuted[:, k])
    p = (1 + int((permuted >= observed - 1e-12).sum())) / (1 + len(permuted))
    spread = float(np.nanstd(difference.replicates[:, k]))
    factor = 100 * (NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(POWER))
    return p, factor * spread if spread > 0 else None  # what never varied says nothing of how it might


def correct_by_holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """Correct p of several tests, so that under 5 % of families of true nulls have one under 0.05 (Holm 1979)."""
    corrected: dict[Key, float] = {}
    worst = 0.0
    for rank, (key, value) in enumerate(sorted(p.items(), key=lambda kv: kv[1])):
        worst = max(worst, min(1.0, (len(p) - rank) * value))
        corrected[key] = worst
    return {key: corrected[key] for key in p}


# ---- over seeds -----------------------------------------------------------------------------------------------------


class SeedMean(NamedTuple):
    """Several seeds of one system: mean, standard deviation, and Student's 95 % interval of the mean; None for one."""

    mean: float
    sd: float | None
    interval: Interval | None
    seeds: int


class SeedDifference(NamedTuple):
    """Several seeds of two systems, in pairs: `mean` of ours - theirs, in the unit of the values.

    `interval` and `p` (two-sided) are Student's for paired differences; `smallest` is the true difference that as many
    pairs of this spread tell from 0 in 80 % of repetitions: sd / sqrt(n) times the noncentrality at which the
    noncentral t exceeds t.975 in 80 %, with n - 1 degrees of freedom (Cohen 1988). All three are None for a single
    pair, whose spread is not known.
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


def pool_values(values: Sequence[float]) -> SeedMean:
    """Pool one figure of several seeds of one system. Raises ValueError where there is none."""
    mean = fmean(values)
    if len(values) < 2:
        return SeedMean(mean, None, None, len(values))
    sd = stdev(values)
    half = _compute_t_quantile(0.975, len(values)) * sd / len(values) ** 0.5
    return SeedMean(mean, sd, (mean - half, mean + half), len(values))


def compare_paired_values(ours: Sequence[float], theirs: Sequence[float]) -> SeedDifference:
    """Compare one figure of two systems, seed by seed. Raises ValueError where their numbers differ or are 0."""
    mean, sd, interval, seeds = pool_values([a - b for a, b in zip(ours, theirs, strict=True)])
    if sd is None:
        return SeedDifference(mean, None, None, None, 1)
    from scipy.special import nctdtrinc, stdtr  # here: what needs no interval starts without it

    error = sd / seeds**0.5
    smallest = float(nctdtrinc(seeds - 1, 1 - POWER, _compute_t_quantile(1 - LEVEL / 2, seeds))) * error
    p = float(2 * stdtr(seeds - 1, -abs(mean) / error)) if error else float(mean == 0)  # all alike: sure, or no change
    return SeedDifference(mean, interval, p, smallest, seeds)


def _compute_t_quantile(quantile: float, count: int) -> float:
    """Student's t at this quantile for a mean of so many values."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, quantile))


def compare_seeds(pairs: Sequence[Comparison]) -> Comparison:
    """Compare pairs of runs, a seed each, by the figures that every pair has. Raises ValueError without a pair."""
    differences = []
    for d in pairs[0].differences:
        same = [other for pair in pairs if (other := pair.get(d.task, d.metric, d.modality))]
        if len(same) == len(pairs):
            ours, theirs = [of.ours for of in same], [of.theirs for of in same]
            pools, paired = (pool_values(ours), pool_values(theirs)), compare_paired_values(ours, theirs)
            mean, rival_mean = pools[0].mean, pools[1].mean
            differences.append(MetricDifference(d.task, d.metric, d.modality, mean, rival_mean, *paired, pools))
    ours_all, theirs_all = (" ".join(dict.fromkeys(getattr(c, side) for c in pairs)) for side in ("ours", "theirs"))
    return Comparison.of((ours_all, theirs_all), "seeds", differences, pairs[0].primary_metrics)


# ---- as tables and as JSON ------------------------------------------------------------------------------------------

_METHODS = {
    "questions": "Intervals: bootstrap over patients or images, in pairs. p: exchange of the answers to them.",
    "seeds": "Intervals and p: Student's, of the differences of pairs of runs (a pair a seed).",
}
_SMALLEST = (
    "Could have shown: the true difference that such data tell from 0 in 80 % of repetitions, at 5 %, two-sided."
)
_SINGLE = "p of a single figure, not corrected for how many there are."


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Differences by task, by task and modality, and of the other main figures."""
    task_rows, modality_rows, other_rows = [], [], []
    for d in comparison.differences:
        name, cells = f"{d.task.value} {d.metric}", _format_difference(d)
        if comparison.primary_metrics.get(d.task) != d.metric:
            other_rows += [(name, *cells)] if d.modality is None else []
        elif d.modality is None:
            task_rows.append((name, *cells, _format_p(comparison.corrected.get(d.task))))
        else:
            modality_rows.append((name, TITLES[d.modality], *cells))
    columns = (comparison.over.capitalize(), "Ours", "Theirs", "Ours - theirs", "95 %", "p", "Could have shown")
    method = f"x100, strict mode, mean over modalities. {_METHODS[comparison.over]}"
    notes = (*comparison.sentences(), method, _SMALLEST)
    title = f"{comparison.ours} beside {comparison.theirs}"
    tables = [Table(title, ("", *columns, "p after Holm"), tuple(task_rows), notes)]
    if modality_rows:
        tables.append(Table("By modality", ("", "Modality", *columns), tuple(modality_rows), (_SINGLE,)))
    return [*tables, Table("Other figures", ("", *columns), tuple(other_rows), (_SINGLE,))] if other_rows else tables


def _format_difference(d: MetricDifference) -> tuple[str, ...]:
    spreads = [f" (sd {pool.sd:.1f})" if pool.sd is not None else "" for pool in d.pools or ()] or ["", ""]
    ours, theirs = (f"{value:.1f}{spread}" for value, spread in zip((d.ours, d.theirs), spreads, strict=True))
    interval_cell = spell_interval(d.interval, "+")
    return str(d.count), ours, theirs, f"{d.value:+.1f}", interval_cell, _format_p(d.p), as_cell(d.smallest)


def _format_p(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}"


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """For a program, x100: by task the metric it is compared by, its p after Holm, the sentence, and by metric the mean
    over modalities and each modality."""
    tasks: dict[str, Any] = {}
    for (task, primary), sentence in zip(comparison.primary_metrics.items(), comparison.sentences(), strict=True):
        corrected = comparison.corrected.get(task)
        tasks[task.value] = {"headline": primary, "p_holm": corrected, "sentence": sentence, "metrics": {}}
    for d in comparison.differences:
        if d.task in comparison.primary_metrics:
            metric = tasks[d.task.value]["metrics"].setdefault(d.metric, {"by_modality": {}})
            place = metric if d.modality is None else metric["by_modality"].setdefault(d.modality.value, {})
            place.update(_describe_difference(d))
    return {"ours": comparison.ours, "theirs": comparison.theirs, "over": comparison.over, "tasks": tasks}


def _describe_difference(d: MetricDifference) -> dict[str, Any]:
    values: dict[str, Any] = {"answers" if d.pools is None else "seeds": d.count, "difference": d.value}
    for side, pool in zip(("ours", "theirs"), d.pools or (None, None), strict=True):
        values[side] = getattr(d, side)
        values |= {} if pool is None else {f"{side}_sd": pool.sd, f"{side}_interval": pool.interval}
    return values | {"interval": d.interval, "p": d.p, "smallest": d.smallest}

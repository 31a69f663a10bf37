"""Is one system better than another: over the images of one test set, and over seeds.

Over images two systems answered the same questions. The difference of any figure has a 95 % interval by bootstrap over
groups (patients, else images), drawn in pairs, and a two-sided p by exchange: were the two alike, their answers to the
images of a group could change places. That holds for figures that are no means over answers, too (F1, BLEU), and for
few images, where a p read off a bootstrap is too small (tests/test_evaluation_compare.py draws both). Over seeds the
figures of each pair of runs are compared by Student's t. Over the tasks p is corrected by Holm.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from clinkd.agreement import Lexicon
from clinkd.config import EvaluateConfig
from clinkd.evaluation.metrics import CLASS, FACTS, WORDS
from clinkd.evaluation.score import MODEL, Apart, Judged, judge, spelled
from clinkd.evaluation.tables import TITLES
from clinkd.records import BadInput, Modality, Prediction, Sample, Table, Task

POWER = 0.8  # of the smallest difference that is told: seen so often by a two-sided test at 5 %
LEVEL = 0.05
EXCHANGES = 1999  # the smallest p is then 1 / 2000
MAIN: Mapping[Task, tuple[str, ...]] = {
    Task.VG: ("F1", "Precision", "Recall", "mIoU", "Left-right swaps"),
    Task.ROC: ("Recall", "Lists another class", "Laterality swaps"),
    Task.RC: ("SPICE", FACTS, WORDS, CLASS, "Laterality agreement", "Negation conflicts"),
    Task.MIA: (WORDS, FACTS, CLASS, "Laterality agreement", "Negation conflicts"),
    Task.QA: ("Accuracy", "Yes/no accuracy", "Open accuracy", "Open recall of words"),
}
_THEIRS = "compared"

Interval = tuple[float, float]
Key = TypeVar("Key", bound=Hashable)


# ---- over images ----------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """Ours - theirs of one figure, x100: of a modality, or of the mean over them (None).

    `smallest`: the true difference that as many images would have told from 0 in 80 % of repetitions, from the spread
    of the replicates: (1.96 + .84) of it. What could not be computed is None, as the last where nothing varies.
    """

    task: Task
    metric: str
    modality: Modality | None
    answers: int
    ours: float
    theirs: float
    interval: Interval | None
    p: float | None
    smallest: float | None

    @property
    def value(self) -> float:
        return self.ours - self.theirs


@dataclass(frozen=True, slots=True)
class Compared:
    """Two systems over one test set. `heads`: the metric each task is compared by; `corrected`: its p after Holm."""

    ours: str
    theirs: str
    differences: tuple[Difference, ...]
    heads: Mapping[Task, str]
    corrected: Mapping[Task, float]

    def get(self, task: Task, metric: str, modality: Modality | None = None) -> Difference | None:
        wanted = (task, metric, modality)
        return next((d for d in self.differences if (d.task, d.metric, d.modality) == wanted), None)

    def head(self, task: Task) -> Difference:
        found = self.get(task, self.heads[task])
        assert found is not None
        return found

    def sentences(self) -> list[str]:
        """What may be said of each task."""
        return [
            _sentence(f"{t.value} {m}", self.ours, self.theirs, self.head(t), self.corrected.get(t))
            for t, m in self.heads.items()
        ]


def compare_answers(
    samples: Sequence[Sample],
    ours: tuple[str, Iterable[Prediction]],
    theirs: tuple[str, Iterable[Prediction]],
    lexicon: Lexicon,
    config: EvaluateConfig,
) -> Compared:
    """Two systems, each with its name and its answers to all samples, by what was answered (not by other candidates).

    `config.replicates` under 2: figures alone, without intervals and p. Raises BadInput for a sample without an answer.
    """
    said = {MODEL: _chosen(ours[1]), _THEIRS: _chosen(theirs[1])}
    for (name, _), answers in zip((ours, theirs), said.values(), strict=True):
        _demand_all(name, samples, answers)
    judged = judge(samples, said[MODEL], {_THEIRS: said[_THEIRS]}, lexicon, config)
    heads = {task: head for task in Task if (head := judged.headline(task))}
    found = tuple(
        d
        for task in heads
        for metric in dict.fromkeys((heads[task], *MAIN[task]))
        for d in _differences(judged, task, metric)
    )
    means = {d.task: d.p for d in found if d.modality is None and d.metric == heads[d.task]}
    corrected = holm({task: p for task, p in means.items() if p is not None})
    return Compared(ours[0], theirs[0], found, {t: m for t, m in heads.items() if t in means}, corrected)


def _chosen(predictions: Iterable[Prediction]) -> list[Prediction]:
    return [replace(p, candidates=(p.answer,), chosen=0) for p in predictions]


def _demand_all(name: str, samples: Sequence[Sample], answers: Sequence[Prediction]) -> None:
    there = {p.id for p in answers}
    if missing := [s.id for s in samples if s.id not in there]:
        raise BadInput(
            f"{name}: {len(missing)} of {len(samples)} questions are not answered, the first is {missing[0]!r}"
        )


def _differences(judged: Judged, task: Task, metric: str) -> list[Difference]:
    exchanges = EXCHANGES if judged.replicates >= 2 else 0
    found = judged.apart(task, metric, MODEL, _THEIRS, [s.modality for s in judged.samples], exchanges)
    if found is None:
        return []
    return [
        Difference(
            task, metric, None if key is None else Modality(key), found.answers[k], 100 * float(found.ours[k]),
            100 * float(found.theirs[k]), found.interval[k], *_told(found, k),
        )
        for k, key in enumerate(found.keys) if not np.isnan(found.ours[k] - found.theirs[k])
    ]  # fmt: skip


def _told(apart: Apart, k: int) -> tuple[float | None, float | None]:
    """p, and the smallest difference."""
    if apart.exchanged is None or apart.drawn is None:
        return None, None
    seen, by_chance = abs(apart.ours[k] - apart.theirs[k]), np.abs(apart.exchanged[:, k])
    p = (1 + int((by_chance >= seen - 1e-12).sum())) / (1 + len(by_chance))
    spread = float(np.nanstd(apart.drawn[:, k]))
    normal = statistics.NormalDist()
    factor = 100 * (normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER))
    return p, factor * spread if spread > 0 else None  # what never varied says nothing of how it might


def holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """p of several tests, such that under 5 % of families of true nulls have one under 0.05 (Holm 1979)."""
    found: dict[Key, float] = {}
    worst = 0.0
    for rank, (key, value) in enumerate(sorted(p.items(), key=lambda kv: kv[1])):
        worst = max(worst, min(1.0, (len(p) - rank) * value))
        found[key] = worst
    return {key: found[key] for key in p}


def _sentence(what: str, ours: str, theirs: str, found: Difference | Paired, p: float | None) -> str:
    value = found.value if isinstance(found, Difference) else found.mean
    if p is None or found.interval is None:
        return f"{what}: {ours} {value:+.1f} above {theirs}; of chance nothing is known."
    told = f"{value:+.1f} [{found.interval[0]:+.1f}, {found.interval[1]:+.1f}], p = {p:.2g}"
    if p < LEVEL:
        better = (ours, theirs) if value > 0 else (theirs, ours)
        return f"{what}: {better[0]} scores higher than {better[1]} ({told})."
    if not found.smallest:
        few = f"{value:+.1f} in every part, yet too few to tell it from chance (p = {p:.2g})"
        return f"{what}: {few if value else 'no difference in any part'}."
    return f"{what}: no difference seen ({told}); the data could have shown one of {found.smallest:.1f} or more."


# ---- over seeds -----------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class Seeds:
    """Two systems over several seeds: by task, metric and modality (None: the mean over them), ours - theirs x100."""

    ours: str
    theirs: str
    found: Mapping[tuple[Task, str, Modality | None], tuple[Pooled, Pooled, Paired]]
    heads: Mapping[Task, str]
    corrected: Mapping[Task, float]

    def sentences(self) -> list[str]:
        """What may be said of each task."""
        return [
            _sentence(f"{t.value} {m}", self.ours, self.theirs, self.found[t, m, None][2], self.corrected.get(t))
            for t, m in self.heads.items()
        ]


def compare_seeds(pairs: Sequence[Compared]) -> Seeds:
    """Pairs of runs, a seed each; of what every pair has a figure for. Raises ValueError without a pair."""
    by_pair = [{(d.task, d.metric, d.modality): d for d in pair.differences} for pair in pairs]
    shared = [key for key in by_pair[0] if all(key in of for of in by_pair)]
    found = {}
    for key in shared:
        ours, theirs = [of[key].ours for of in by_pair], [of[key].theirs for of in by_pair]
        found[key] = pooled(ours), pooled(theirs), over_seeds(ours, theirs)
    heads = {t: m for t, m in pairs[0].heads.items() if (t, m, None) in found}
    p = {t: found[t, m, None][2].p for t, m in heads.items()}
    corrected = holm({t: value for t, value in p.items() if value is not None})
    names = [" ".join(dict.fromkeys(side)) for side in zip(*((c.ours, c.theirs) for c in pairs), strict=True)]
    return Seeds(names[0], names[1], found, heads, corrected)


# ---- as tables and as JSON ------------------------------------------------------------------------------------------


def comparison_tables(compared: Compared | Seeds) -> list[Table]:
    """By task, by task and modality, and of the other main figures."""
    lines, heads = _lines(compared), compared.heads
    first = [
        (f"{of.task.value} {of.metric}", *cells, _p(compared.corrected.get(of.task)))
        for of, cells in lines if of.modality is None and heads.get(of.task) == of.metric
    ]  # fmt: skip
    by_modality = [
        (f"{of.task.value} {of.metric}", TITLES[of.modality], *cells)
        for of, cells in lines if of.modality is not None and heads.get(of.task) == of.metric
    ]  # fmt: skip
    rest = [
        (f"{of.task.value} {of.metric}", *cells)
        for of, cells in lines if of.modality is None and heads.get(of.task) != of.metric
    ]  # fmt: skip
    figures = (_unit(compared), "Ours", "Theirs", "Ours - theirs", "95 %", "p", "Could have shown")
    title = f"{compared.ours} beside {compared.theirs}"
    notes = (*compared.sentences(), f"x100, strict mode, mean over modalities. {_METHOD[type(compared)]}", _SMALLEST)
    tables = [Table(title, ("", *figures, "p after Holm"), tuple(first), notes)]
    single = "p of a single figure, not corrected for how many there are."
    if by_modality:
        tables.append(Table("By modality", ("", "Modality", *figures), tuple(by_modality), (single,)))
    return [*tables, Table("Other figures", ("", *figures), tuple(rest), (single,))] if rest else tables


_SMALLEST = (
    "Could have shown: the true difference that such data tell from 0 in 80 % of repetitions, at 5 %, two-sided."
)


def _unit(compared: Compared | Seeds) -> str:
    return "Seeds" if isinstance(compared, Seeds) else "Questions"


class _Of(NamedTuple):
    task: Task
    metric: str
    modality: Modality | None


def _lines(compared: Compared | Seeds) -> list[tuple[_Of, tuple[str, ...]]]:
    if isinstance(compared, Compared):
        return [
            (
                _Of(d.task, d.metric, d.modality),
                (str(d.answers), f"{d.ours:.1f}", f"{d.theirs:.1f}", f"{d.value:+.1f}", spelled(d.interval, "+"),
                 _p(d.p), _number(d.smallest)),
            )
            for d in compared.differences
        ]  # fmt: skip
    return [
        (
            _Of(*key),
            (str(pair.pairs), _spread(a), _spread(b), f"{pair.mean:+.1f}", spelled(pair.interval, "+"), _p(pair.p),
             _number(pair.smallest)),
        )
        for key, (a, b, pair) in compared.found.items()
    ]  # fmt: skip


def _spread(of: Pooled) -> str:
    return f"{of.mean:.1f}" if of.sd is None else f"{of.mean:.1f} (sd {of.sd:.1f})"


def _p(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


_METHOD = {
    Compared: "Intervals: bootstrap over patients or images, in pairs. p: exchange of the answers to them.",
    Seeds: "Intervals and p: Student's, of the differences of pairs of runs (a pair a seed).",
}


def comparison_json(compared: Compared | Seeds) -> dict[str, Any]:
    """For a program, x100: by task the metric it is compared by, its p after Holm, the sentence, and by metric the mean
    over modalities and each modality."""
    found: dict[str, Any] = {"ours": compared.ours, "theirs": compared.theirs, "over": _unit(compared).lower()}
    tasks: dict[str, Any] = {}
    for (task, head), sentence in zip(compared.heads.items(), compared.sentences(), strict=True):
        corrected = compared.corrected.get(task)
        tasks[task.value] = {"headline": head, "p_holm": corrected, "sentence": sentence, "metrics": {}}
    for of, values in _values(compared):
        if of.task in compared.heads:
            place = tasks[of.task.value]["metrics"].setdefault(of.metric, {"by_modality": {}})
            (place if of.modality is None else place["by_modality"].setdefault(of.modality.value, {})).update(values)
    return {**found, "tasks": tasks}


def _values(compared: Compared | Seeds) -> list[tuple[_Of, dict[str, Any]]]:
    if isinstance(compared, Compared):
        keys = ("answers", "ours", "theirs", "interval", "p", "smallest")
        return [
            (_Of(d.task, d.metric, d.modality), {"difference": d.value, **{k: getattr(d, k) for k in keys}})
            for d in compared.differences
        ]
    return [
        (
            _Of(*key),
            {
                "seeds": p.pairs, "ours": a.mean, "ours_sd": a.sd, "ours_interval": a.interval, "theirs": b.mean,
                "theirs_sd": b.sd, "theirs_interval": b.interval, "difference": p.mean, "interval": p.interval,
                "p": p.p, "smallest": p.smallest,
            },
        )
        for key, (a, b, p) in compared.found.items()
    ]  # fmt: skip

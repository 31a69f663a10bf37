"""Test whether one system is better than another: over the images of one test set, and over seeds.

Over images: two systems answered the same questions. The difference of any figure has a 95 % interval by bootstrap over
groups (patients, else images), drawn in pairs, and a two-sided p by permutation: if the two are equally good, they can
swap their answers to the images of a group. This also holds for figures that are no means over answers (F1, BLEU), and
for few images, where a p from a bootstrap is too small (tests/test_evaluation_compare.py draws both). Over seeds: the
figures of each pair of runs are compared by Student's t. p is corrected by Holm over all tasks and all pairs that are
looked at together. Tables and pages are made elsewhere (`reporting/systems.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePath
from statistics import NormalDist, fmean, stdev
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.records import BadInput, Modality, Prediction, Sample, Task
from clinkd.scoring.captions import CaptionScorer
from clinkd.scoring.measure import Rules
from clinkd.scoring.metrics import list_shown_metrics
from clinkd.scoring.outside import make_stored_measure
from clinkd.scoring.score import (
    MODEL,
    PairedDifference,
    ScoredAnswers,
    pair_answers,
    score_by_measures,
    score_predictions,
    spell_interval,
)

POWER = 0.8  # a two-sided test at 5 % finds the smallest difference that often
LEVEL = 0.05
EXCHANGES = 1999  # the smallest p is then 1 / 2000
_EXCHANGES_A_TEST = 40  # the smallest p after Holm is then 1 / 40, however many tests there are
_THEIRS = "compared"
_MOST_PAIRS = 1_000_000
_ROUNDING = 1e-9  # of a difference: what is smaller is no spread

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


class SharedQuestions(NamedTuple):
    """How many questions of a task two systems share, of how many patients or images, and how many each answered."""

    questions: int
    groups: int
    ours: int
    theirs: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems over the questions of one test set, or over several seeds.

    `primary_metrics`: the metric that each task is compared by; `corrected`: its p after Holm. `shared`: by task, over
    how many questions; empty over seeds.
    """

    ours: str
    theirs: str
    over: Literal["questions", "seeds"]
    differences: tuple[MetricDifference, ...]
    primary_metrics: Mapping[Task, str]
    shared: Mapping[Task, SharedQuestions] = field(default_factory=dict)
    corrected: Mapping[Task, float] = field(default_factory=dict)

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

    def list_left_out(self) -> list[str]:
        """A sentence for each task of which one of the two answered more than the shared questions."""
        return [
            f"{self.ours} and {self.theirs} share {shared.questions} questions of {task.value}, of {shared.ours} and "
            f"{shared.theirs}: the difference is over these alone."
            for task, shared in self.shared.items()
            if not shared.questions == shared.ours == shared.theirs
        ]

    def _sentence(self, task: Task) -> str:
        primary, p = self.get_primary(task), self.corrected.get(task)
        if p is None:
            return f"{self.ours} {primary.value:+.1f} above {self.theirs}; of chance nothing is known."
        interval = f" {spell_interval(primary.interval, '+')}" if primary.interval else ""
        figures = f"{primary.value:+.1f}{interval}, p after Holm = {p:.2g}"
        if p < LEVEL:
            better, worse = (self.ours, self.theirs) if primary.value > 0 else (self.theirs, self.ours)
            return f"{better} scores higher than {worse} ({figures})."
        if primary.smallest:
            return f"no difference seen ({figures}); the data could have shown one of {primary.smallest:.1f} or more."
        if primary.value:
            return f"{primary.value:+.1f} in every part, yet too few to tell it from chance (p after Holm = {p:.2g})."
        return "no difference in any part."


def correct_together(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct p by Holm over all tasks of all pairs: whoever looks at many tests finds something by chance."""
    p = {
        (place, task): primary.p
        for place, comparison in enumerate(comparisons)
        for task in comparison.primary_metrics
        if (primary := comparison.get_primary(task)).p is not None
    }
    corrected = correct_by_holm(p)
    return [
        replace(comparison, corrected={task: value for (n, task), value in corrected.items() if n == place})
        for place, comparison in enumerate(comparisons)
    ]


def correct_by_holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """Correct p of several tests, so that under 5 % of families of true nulls have one under 0.05 (Holm 1979)."""
    corrected: dict[Key, float] = {}
    worst = 0.0
    for rank, (key, value) in enumerate(sorted(p.items(), key=lambda kv: kv[1])):
        worst = max(worst, min(1.0, (len(p) - rank) * value))
        corrected[key] = worst
    return {key: corrected[key] for key in p}


# ---- over images ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComparedAnswers:
    """Answers of a system and the rules of scoring. `root`: the folder of the images, where it is known. `outside`: by
    outside scorer and sample the score of the chosen answer, 0..1."""

    name: str
    samples: Sequence[Sample]
    predictions: Sequence[Prediction]
    rules: Rules
    root: Path | None = None
    outside: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @cached_property
    def places(self) -> dict[Hashable, int]:
        """Where each question stands among the samples. Questions are the same if all that is asked, the truth and the
        image are; an id alone says nothing, as many data sets count from 0."""
        return {
            (s.id, s.modality, s.task, s.question, s.answer, tuple(PurePath(i.path).name for i in s.images)): place
            for place, s in enumerate(self.samples)
        }


@dataclass(frozen=True)
class ScoredSystem:
    """A system with its answers, counted once for all its comparisons."""

    name: str
    answers: ComparedAnswers
    scored: ScoredAnswers

    def rate_questions(self) -> dict[Hashable, float]:
        """By question, the primary metric of its answer alone, 0..1."""
        figures, samples = self.scored.each(), self.answers.samples
        primary = {task: self.scored.find_primary_metric(task) for task in {s.task for s in samples}}
        return {
            key: figures[s.id][metric]
            for key, place in self.answers.places.items()
            if (metric := primary[(s := samples[place]).task]) is not None and metric in figures.get(s.id, {})
        }


def score_systems(systems: Iterable[ComparedAnswers], replicates: int) -> Iterator[ScoredSystem]:
    """Count the answers of each system. Systems that share questions are scored by the words of all of them.

    Raises BadInput for a question without an answer.
    """
    systems = list(systems)
    with CaptionScorer.opened() as scorer:
        for answers, lexicon in zip(systems, _share_lexicons(systems), strict=True):
            chosen = _require_chosen_answers(answers)
            config = EvaluateConfig(iou=answers.rules.iou, replicates=replicates)
            scored = score_predictions(answers.samples, chosen, {}, lexicon, config, scorer)
            stored = [make_stored_measure(name, answers.samples, chosen, of) for name, of in answers.outside.items()]
            outside = score_by_measures(stored, answers.samples, chosen, {}, answers.rules, replicates)
            scored = replace(scored, rows=(*scored.rows, *outside.rows))
            yield ScoredSystem(answers.name, answers, scored)


def join_lexicons(lexicons: Sequence[Lexicon]) -> Lexicon:
    """The words of all of them; the first itself where they are equal."""
    if all(lexicon == lexicons[0] for lexicon in lexicons):
        return lexicons[0]
    kinds = ("names", "sizes", "sides", "brightness")
    return Lexicon(*(tuple(sorted({w for lexicon in lexicons for w in getattr(lexicon, kind)})) for kind in kinds))


def _share_lexicons(systems: Sequence[ComparedAnswers]) -> list[Lexicon]:
    """The words to score each system by: of all that share a question with it, directly or through others."""
    family, first_with = list(range(len(systems))), dict[Hashable, int]()
    for number, answers in enumerate(systems):
        for other in {first_with.setdefault(question, number) for question in answers.places}:
            family = [family[number] if of == family[other] else of for of in family]
    lexicons = {of: join_lexicons([s.rules.lexicon for s, f in zip(systems, family, strict=True) if f == of])
                for of in set(family)}  # fmt: skip
    return [lexicons[of] for of in family]


def _require_chosen_answers(side: ComparedAnswers) -> list[Prediction]:
    """The predictions without the candidates that were not chosen. Raises BadInput for a sample without an answer."""
    answered = {p.id for p in side.predictions}
    if missing := [s.id for s in side.samples if s.id not in answered]:
        count = f"{len(missing)} of {len(side.samples)}"
        raise BadInput(f"{side.name}: {count} questions are not answered, the first is {missing[0]!r}")
    return [replace(p, candidates=(p.answer,), chosen=0) for p in side.predictions]


def find_hindrance(ours: ComparedAnswers, theirs: ComparedAnswers) -> str | None:
    """Why two systems cannot be compared, as a sentence; None where they can be."""
    names = f"{ours.name} and {theirs.name}"
    if ours.places.keys().isdisjoint(theirs.places):
        theirs_ids = {s.id for s in theirs.samples}
        example = next((s.id for s in ours.samples if s.id in theirs_ids), None)
        same_id = f", although both have one named {example!r}" if example is not None else ""
        return (
            f"{names} share no question with the same truth and image{same_id}: compare systems on the same data, and "
            "runs of the same seed (phantoms and splits are drawn anew with each seed), several seeds with --against."
        )
    if ours.rules.iou != theirs.rules.iou:
        return (
            f"{names} are scored by different rules: evaluate.iou={ours.rules.iou:g} of {ours.name} is "
            f"{theirs.rules.iou:g} in {theirs.name}."
        )
    return None


def compare_pair(ours: ScoredSystem, theirs: ScoredSystem, tests: int = 1) -> Comparison:
    """Two systems by their answers to the questions that both answered; candidates that were not chosen do not count.

    Of systems that were scored with under 2 replicates figures alone, without intervals and p. `tests`: how many p will
    be corrected together, so that p is computed finely enough.
    """
    both = ours.answers.places.keys() & theirs.answers.places
    places = [(place, theirs.answers.places[q]) for q, place in ours.answers.places.items() if q in both]
    paired = pair_answers(ours.scored, theirs.scored, places, _THEIRS)
    exchanges = max(EXCHANGES, _EXCHANGES_A_TEST * tests) if paired.replicates >= 2 else 0
    primary = {task: metric for task in Task if (metric := paired.find_primary_metric(task, (MODEL, _THEIRS)))}
    outside = [name for name in ours.answers.outside if name in theirs.answers.outside]
    differences = [
        d
        for task in primary
        for metric in dict.fromkeys((primary[task], *list_shown_metrics("comparison", task), *outside))
        for d in _compare_metric(paired, task, metric, exchanges)
    ]
    primary = _keep_compared(primary, differences)
    shared = {task: _count_shared(paired.samples, ours.answers, theirs.answers, task) for task in primary}
    return Comparison(ours.name, theirs.name, "questions", tuple(differences), primary, shared)


def _count_shared(
    samples: Sequence[Sample], ours: ComparedAnswers, theirs: ComparedAnswers, task: Task
) -> SharedQuestions:
    groups = [s.group for s in samples if s.task is task]
    all_of_each = (sum(s.task is task for s in side.samples) for side in (ours, theirs))
    return SharedQuestions(len(groups), len(set(groups)), *all_of_each)


def _compare_metric(scored: ScoredAnswers, task: Task, metric: str, exchanges: int) -> list[MetricDifference]:
    paired = scored.compare_rows(task, metric, MODEL, _THEIRS, [s.modality for s in scored.samples], exchanges)
    if paired is None:
        return []
    differences = []
    intervals = paired.interval
    for k, key in enumerate(paired.keys):
        ours, theirs = 100 * float(paired.ours[k]), 100 * float(paired.theirs[k])
        if not np.isnan(ours - theirs):
            modality = None if key is None else Modality(key)
            interval = intervals[k]
            if interval and interval[0] == interval[1]:
                interval = None  # all parts alike: the bootstrap cannot tell how others would differ
            tested = (interval, *_test_by_permutation(paired, k), paired.answers[k])
            differences.append(MetricDifference(task, metric, modality, ours, theirs, ours - theirs, *tested))
    return differences


def _test_by_permutation(difference: PairedDifference, k: int) -> tuple[float | None, float | None]:
    """p, and the smallest difference."""
    if difference.permuted is None or difference.replicates is None:
        return None, None
    observed, permuted = abs(difference.ours[k] - difference.theirs[k]), np.abs(difference.permuted[:, k])
    p = (1 + int((permuted >= observed - 1e-12).sum())) / (1 + len(permuted))
    drawn = difference.replicates[:, k]
    spread = 0.0 if np.isnan(drawn).all() else float(np.nanstd(drawn))
    factor = 100 * (NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(POWER))
    return p, factor * spread if spread > 0 else None  # what never varied says nothing of how it might


# ---- over seeds -----------------------------------------------------------------------------------------------------


class SeedMean(NamedTuple):
    """Several seeds of one system: mean, standard deviation, and Student's 95 % interval of the mean. Both are None for
    one; equal values have no interval, as they do not tell how another would differ."""

    mean: float
    sd: float | None
    interval: Interval | None
    seeds: int


class SeedDifference(NamedTuple):
    """Several seeds of two systems, in pairs: `mean` of ours - theirs, in the unit of the values.

    `interval` and `p` (two-sided) are Student's for paired differences; `smallest` is the true difference that as many
    pairs of this spread tell from 0 in 80 % of repetitions: sd / sqrt(n) times the noncentrality at which the
    noncentral t exceeds t.975 in 80 %, with n - 1 degrees of freedom (Cohen 1988). All three are None for a single
    pair, and where all pairs differ by the same amount: the spread is not known. If that amount is 0, p is 1.
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
    if sd <= _ROUNDING * abs(mean):
        return SeedMean(mean, sd, None, len(values))
    half = _compute_t_quantile(0.975, len(values)) * sd / len(values) ** 0.5
    return SeedMean(mean, sd, (mean - half, mean + half), len(values))


def compare_paired_values(ours: Sequence[float], theirs: Sequence[float]) -> SeedDifference:
    """Compare one figure of two systems, seed by seed. Raises ValueError where their numbers differ or are 0."""
    mean, sd, interval, seeds = pool_values([a - b for a, b in zip(ours, theirs, strict=True)])
    if sd is None or interval is None:
        return SeedDifference(mean, None, 1.0 if sd == 0 == mean else None, None, seeds)
    from scipy.special import nctdtrinc, stdtr  # here: what needs no interval starts without it

    error = sd / seeds**0.5
    smallest = float(nctdtrinc(seeds - 1, 1 - POWER, _compute_t_quantile(1 - LEVEL / 2, seeds))) * error
    p = float(2 * stdtr(seeds - 1, -abs(mean) / error))
    return SeedDifference(mean, interval, p, smallest, seeds)


def count_pairs_needed(sd: float, smallest: float) -> int | None:
    """How many pairs tell a true difference of `smallest` from 0 in 80 % of repetitions where differences spread by
    `sd`: the least n for which the two-sided paired t-test at 5 % has that power, by the noncentral t with n - 1
    degrees of freedom (Cohen 1988). None where nothing varies, or if a million are too few.
    """
    from scipy.special import nctdtr

    def lacks_power(pairs: int) -> bool:
        # as in `SeedDifference.smallest` a difference of the wrong sign is not seen, so the upper tail alone counts
        t = _compute_t_quantile(1 - LEVEL / 2, pairs)
        return bool(nctdtr(pairs - 1, smallest * pairs**0.5 / sd, t) > 1 - POWER)

    counts = range(2, _MOST_PAIRS)
    place = bisect_left(counts, True, key=lambda pairs: not lacks_power(pairs)) if sd > 0 else len(counts)
    return counts[place] if place < len(counts) else None


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
    primary = _keep_compared(pairs[0].primary_metrics, differences)
    return Comparison(ours_all, theirs_all, "seeds", tuple(differences), primary)


def _keep_compared(primary: Mapping[Task, str], differences: Iterable[MetricDifference]) -> dict[Task, str]:
    """The primary metrics of the tasks that have a difference of them."""
    compared = {(d.task, d.metric) for d in differences if d.modality is None}
    return {task: metric for task, metric in primary.items() if (task, metric) in compared}

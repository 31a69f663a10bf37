"""Scores of predictions by modality, with intervals: the model, other choices of candidates, image-blind baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.records import BadInput, Modality, Prediction, Sample, Score, Table, Task
from clinkd.scoring.blind.choice import BlindChoice
from clinkd.scoring.bootstrap import draw_group_weights, mean_over_keys, percentile_intervals, replicate, widen_points
from clinkd.scoring.captions import CaptionScorer, Counts, NotComputed, Sums, by_column
from clinkd.scoring.intervals import scale_interval, share_interval
from clinkd.scoring.measure import FACTS, JUDGED, Mean, Measure, Ratio, Rules, SampleAnswer
from clinkd.scoring.measures.absence import find_structures
from clinkd.scoring.measures.texts import CAPTIONS, SPICE, begin_captions
from clinkd.scoring.metrics import FLAWS, PRIMARY_METRIC, list_stand_ins, measures
from clinkd.scoring.oracle import choose_by_truth

MODEL, FIRST_BEAM, ORACLE = "model", "first beam", "oracle"
PROBE = "frozen-feature probe"  # sees the image, without a language model
# scorers to compare every other with, by their names in the record
_REFERENCE_SCORERS = ("random", "agreement")
_SCORER_PREFIX = "by "
ONE_GROUP = "of one patient or image alone: no interval"


class Estimate(NamedTuple):
    """Figures of one measure for one key (a modality, a source) or for the mean over keys; 0..1."""

    values: Counts  # [F]
    answers: int
    groups: int
    intervals: Counts  # [F, 2], NaN where there is none


class Gain(NamedTuple):
    """How much a choice of candidates gains over the first beam, or (row PROBE or a baseline) the model over that row,
    x100, in the mean over modalities; negative is worse.

    None, as in a Score, where there is nothing to divide by. The interval is of the difference: both use the same
    bootstrap images.
    """

    row: str
    task: Task
    metric: str
    value: float | None
    interval: tuple[float, float] | None

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """One row compared with another by one metric, on the samples that both answer: for each of K keys (a modality, a
    source), and last for the mean over them. Figures are 0..1, NaN where there is nothing to divide by."""

    keys: tuple[str | None, ...]  # [K + 1], the last None
    answers: tuple[int, ...]  # [K + 1]
    groups: NDArray[np.intp]  # [K + 1]
    ours: Counts  # [K + 1]
    theirs: Counts  # [K + 1]
    replicates: Counts  # [R, K + 1] differences in bootstrap replicates; both rows use the same images
    permuted: Counts | None  # [P, K + 1] differences after the rows swap their answers in random groups

    @property
    def interval(self) -> list[tuple[float, float] | None]:
        """[K + 1] 95 % intervals of ours - theirs, x100."""
        return [scale_interval(ends) for ends in percentile_intervals(self.replicates, self.groups)]

    def at(self, key: str) -> _KeyDifference | None:
        """The difference for one key; None where the two rows share no answers."""
        if key not in self.keys:
            return None
        place = self.keys.index(key)
        return _KeyDifference(float(self.ours[place]), float(self.theirs[place]), self.interval[place])


class _KeyDifference(NamedTuple):
    """One key of a `PairedDifference`: both figures, 0..1, and the interval of their difference, x100."""

    ours: float
    theirs: float
    interval: tuple[float, float] | None


def is_choice(row: str) -> bool:
    """Whether a row chooses among the model's candidates."""
    return row in (MODEL, FIRST_BEAM, ORACLE, *_REFERENCE_SCORERS) or row.startswith(_SCORER_PREFIX)


def is_blind(row: str) -> bool:
    """Whether a row is an image-blind baseline."""
    return row != PROBE and not is_choice(row)


@dataclass(frozen=True, slots=True)
class _ScoreRow:
    """The counted answers of one row under one measure, for one task."""

    row: str
    task: Task
    measure: Measure
    places: NDArray[np.intp]  # [N] index of the sample of each answer
    counts: Counts | None  # [N, C]; None where it could not be computed
    why: str | None = None

    @property
    def key(self) -> tuple[str, Task, tuple[str, ...]]:
        return self.row, self.task, self.measure.metrics

    @property
    def has_interval(self) -> bool:
        """Whether its figures by modality get intervals: it was computed, and is no image-blind baseline."""
        return self.counts is not None and self.measure is not FLAWS and not is_blind(self.row)

    @property
    def judged(self) -> bool:
        """Whether at least one answer is judged."""
        return self.counts is not None and bool(self.counts[:, JUDGED].any())


@dataclass(frozen=True)
class GroupedCounts:
    """The counts of a row, summed by group (patient, else image) and key (a modality, a source), with the bootstrap
    weights of the groups. Figures have one more key, the mean over the others.

    Shapes: G groups, K keys in the order of first appearance, C columns, F metrics, R replicates (0: no intervals).
    """

    measure: Measure
    keys: Sequence[str]
    sums_GKC: Counts
    weights_RG: NDArray[np.uint8]

    @cached_property
    def sums_KC(self) -> Counts:
        return np.asarray(self.sums_GKC.sum(0))

    @property
    def answers_K(self) -> NDArray[np.intp]:
        """[K] judged answers."""
        return self.sums_KC[:, JUDGED].astype(int)

    @property
    def groups(self) -> NDArray[np.intp]:
        """[K + 1] groups with a judged answer, by key and in all."""
        judged_GK = self.sums_GKC[:, :, JUDGED] > 0
        return np.append(judged_GK.sum(0), judged_GK.any(1).sum())

    def figures(self, sums: Counts) -> Counts:
        """[..., K, C] sums -> [..., K + 1, F]"""
        values = self.measure.figures(sums)
        return np.concatenate([values, mean_over_keys(values, -2)[..., None, :]], axis=-2)

    def bootstrap(self) -> Counts:
        """[R, K + 1, F] figures of each replicate. It draws groups, not answers."""
        replicates = replicate(self.figures, self.sums_GKC, self.weights_RG)
        replicates[:, self.groups < 2] = np.nan  # one group always draws itself
        return replicates

    def compute_intervals(self, values: Counts, drawn: Counts) -> Counts:
        """[K + 1, F] values, [R, K + 1, F] replicates -> [K + 1, F, 2] intervals: of shares by `share_interval`, of
        other metrics from the replicates."""
        groups, intervals = self.groups, np.full((*values.shape, 2), np.nan)
        if others := [f for f, metric in enumerate(self.measure.rows) if not isinstance(metric.figure, Ratio)]:
            by_bootstrap = percentile_intervals(drawn[:, :, others], groups)
            intervals[:, others] = widen_points(values[:, others], by_bootstrap, groups)
        means = [f for f, metric in enumerate(self.measure.rows) if isinstance(metric.figure, Mean)]
        intervals[:, means] = np.where(np.ptp(drawn[:, :, means], axis=0)[..., None] > 0, intervals[:, means], np.nan)
        sums_GK = self.measure.name_sums(self.sums_GKC)
        for f, metric in enumerate(self.measure.rows):
            if isinstance(ratio := metric.figure, Ratio):
                counted_K1 = ~np.isnan(values[:-1, f, None])  # the others do not count in the mean
                hits_KG, items_KG = ratio.part(sums_GK).T * counted_K1, ratio.whole(sums_GK).T * counted_K1
                intervals[:-1, f] = share_interval(hits_KG[:, None], items_KG[:, None], ratio.binary)
                intervals[-1, f] = share_interval(hits_KG, items_KG, ratio.binary)
        return intervals


@dataclass(frozen=True)
class ScoredAnswers:
    """All answers, counted once; tables by modality and by source are sums of these counts. `choice`: of the best
    image-blind baseline."""

    samples: Sequence[Sample]
    rows: tuple[_ScoreRow, ...]
    replicates: int
    choice: BlindChoice = field(default_factory=BlindChoice)

    def scores(self) -> list[Score]:
        """One Score for each row, metric and non-empty modality, and for the mean over these (modality None)."""
        results: list[Score] = []
        modalities = [s.modality for s in self.samples]
        for row in self.rows:
            if row.counts is None:
                results += _make_missing_scores(row, row.measure.metrics, row.why, modalities)
            else:
                results += _make_scores(
                    row, self._estimate_figures(row, modalities, self._replicates_by_modality.get(row.key))
                )
        return self._mark_chosen_baselines(results)

    def _mark_chosen_baselines(self, scores: Sequence[Score]) -> list[Score]:
        """The scores, those of the best baseline of each task and modality marked with where it was chosen."""
        metrics = {task: self.find_primary_metric(task) for task in Task}
        present: dict[tuple[Task, Modality | None], list[str]] = {}
        for s in scores:
            if is_blind(s.row) and s.value is not None and s.metric == metrics[s.task]:
                present.setdefault((s.task, s.modality), []).append(s.row)
        best = {key: self.choice.pick(*key, names) for key, names in present.items()}
        marked = None if self.choice.chosen_on == "test" else self.choice.chosen_on
        return [replace(s, chosen_on=marked) if s.row == best.get((s.task, s.modality)) else s for s in scores]

    def sums(self, task: Task, measure: Measure) -> dict[str, Sums]:
        """Counts of the model's answers by column, for each modality with answers, in the order of `Modality`; empty
        where not computed."""
        row = next((r for r in self.rows if (r.row, r.task, r.measure) == (MODEL, task, measure)), None)
        if row is None or row.counts is None:
            return {}
        grouped = self._group_counts(row, [s.modality for s in self.samples])
        sums = dict(zip(grouped.keys, grouped.sums_KC, strict=True))
        return {m.value: by_column(measure.columns, sums[m]) for m in Modality if m in sums and sums[m][JUDGED]}

    def gains(self) -> list[Gain]:
        """Each choice of candidates compared with the first beam, and the model with the probe (row PROBE), for each
        metric that was computed; and the model with each image-blind baseline, by the metrics of the first table."""
        modalities = [s.modality for s in self.samples]
        first = {(r.task, m): r for r in self.rows if r.row == FIRST_BEAM for m in r.measure.metrics}
        results: list[Gain] = []
        for row in self.rows:
            if row.row == PROBE or is_blind(row.row):
                results += self._compare_model_with(row, modalities)
                continue
            if not row.has_interval or row.row == FIRST_BEAM:
                continue
            beam = first[row.task, row.measure.metrics[0]]
            places = [beam.measure.metrics.index(m) for m in row.measure.metrics]  # the oracle has some of the metrics
            own, of_beam = (self._group_counts(r, modalities) for r in (row, beam))
            above = own.figures(own.sums_KC)[-1] - of_beam.figures(of_beam.sums_KC)[-1, places]
            own_replicates, beam_replicates = (self._replicates_by_modality[r.key][:, -1:] for r in (row, beam))
            [ends] = percentile_intervals(own_replicates - beam_replicates[..., places], own.groups[-1:])
            for metric, value, interval in zip(row.measure.metrics, above.tolist(), ends, strict=True):
                gained = None if np.isnan(value) else 100 * value
                results.append(Gain(row.row, row.task, metric, gained, scale_interval(interval)))
        return results

    def _compare_model_with(self, row: _ScoreRow, modalities: Sequence[Modality]) -> Iterator[Gain]:
        """How much the model is above the probe or a baseline, by metric, on the questions that this one answered."""
        if row.counts is None or row.measure is FLAWS:
            return
        shown = row.measure.metrics if row.row == PROBE else (PRIMARY_METRIC[row.task], FACTS)
        for metric in (m for m in row.measure.metrics if m in shown):
            if both := self.compare_rows(row.task, metric, MODEL, row.row, modalities):
                above = float(both.ours[-1] - both.theirs[-1])
                yield Gain(row.row, row.task, metric, None if np.isnan(above) else 100 * above, both.interval[-1])

    def each(self) -> dict[str, dict[str, float]]:
        """By sample, the figures of the model's one answer, 0..1; a figure with nothing to divide by is left out."""
        results: dict[str, dict[str, float]] = {}
        for row in self.rows:
            if row.row != MODEL or row.counts is None or row.measure is FLAWS:
                continue
            values = row.measure.figures(row.counts)  # [N, F]
            for place, own_figures in zip(row.places, values.tolist(), strict=True):
                results.setdefault(self.samples[place].id, {}).update(
                    (m, v) for m, v in zip(row.measure.metrics, own_figures, strict=True) if not np.isnan(v)
                )
        return results

    def by_source(self) -> Table:
        """A table by task and source (the data set an image came from): the model, its image-blind baselines, and how
        much the model is above the best of them."""
        sources = [s.source or "-" for s in self.samples]
        baselines = [name for name in dict.fromkeys(r.row for r in self.rows) if is_blind(name)]
        lines: list[tuple[str, ...]] = []
        for task in Task:
            if metric := self.find_primary_metric(task):
                lines += self._make_source_lines(task, metric, sources, baselines)
        heads = ("Task", "Source", "Metric", "Questions", "Model", "95 %", "Best blind baseline", "Which")
        columns = (*heads, "Above it", "95 % of that", *(f"Blind: {t}" for t in baselines))
        notes = (
            "x100 over the questions of a source; intervals by bootstrap over patients or images, of the difference to "
            "the best baseline (of the task, or of the source where none was chosen before the test) in pairs: where "
            "it spans 0, the answers do not show that the images of the source were used.",
        )
        return Table("By source", columns, tuple(lines), notes)

    def _make_source_lines(
        self, task: Task, metric: str, sources: Sequence[str], baselines: Sequence[str]
    ) -> Iterator[tuple[str, ...]]:
        row = self._find_row(MODEL, task, metric)
        assert row is not None
        place = row.measure.metrics.index(metric)
        figures = self._estimate_figures(row, sources, self._group_counts(row, sources).bootstrap())
        apart = {
            baseline: both
            for baseline in baselines
            if (both := self.compare_rows(task, metric, MODEL, baseline, sources))
        }
        for source in sorted(key for key in figures if key is not None):
            figure = figures[source]
            pairs = {baseline: pair for baseline, both in apart.items() if (pair := both.at(source))}
            computed = [baseline for baseline in pairs if not np.isnan(pairs[baseline].theirs)]
            best = self.choice.pick(task, None, computed) or max(
                computed, key=lambda baseline: pairs[baseline].theirs, default=None
            )
            ours, theirs, ends = pairs[best] if best is not None else _KeyDifference(np.nan, np.nan, None)
            interval = scale_interval(figure.intervals[place])
            cells = (_spell_figure(figure.values[place]), spell_interval(interval), _spell_figure(theirs), best or "-")
            above = (_spell_figure(ours - theirs, "+"), spell_interval(ends, "+"))
            blind = (_spell_figure(pairs[baseline].theirs) if baseline in pairs else "-" for baseline in baselines)
            yield (task.value, source, metric, str(figure.answers), *cells, *above, *blind)

    def find_primary_metric(self, task: Task, rows: Sequence[str] = (MODEL,)) -> str | None:
        """The metric by which a task is compared: its primary metric, or what replaces it where it was not computed
        for each of `rows`."""
        for metric in list_stand_ins(task):
            if all((row := self._find_row(name, task, metric)) and row.judged for name in rows):
                return metric
        return None

    def _find_row(self, row: str, task: Task, metric: str) -> _ScoreRow | None:
        mine = (r for r in self.rows if (r.row, r.task) == (row, task) and metric in r.measure.metrics)
        return next((r for r in mine if r.counts is not None), None)

    def compare_rows(
        self, task: Task, metric: str, row: str, other: str, keys: Sequence[str], exchanges: int = 0
    ) -> PairedDifference | None:
        """`row` compared with `other`, by key of a sample; None where one was not computed, or no sample is shared.

        `exchanges`: how often the two swap their answers in a random half of the groups. If the two were equally good,
        each such difference would be as likely as the observed one, for any metric (Noreen 1989).
        """
        pair = [r for name in (row, other) if (r := self._find_row(name, task, metric))]
        if len(pair) < 2:
            return None
        places = np.intersect1d(pair[0].places, pair[1].places)
        ours, theirs = (self._group_counts(_narrow_row(r, metric, places), keys) for r in pair)
        answers = ours.answers_K
        if not answers.any():
            return None
        kept = np.append(answers > 0, True)
        return PairedDifference(
            keys=(*(k for k, n in zip(ours.keys, answers.tolist(), strict=True) if n), None),
            answers=(*answers[answers > 0].tolist(), int(answers.sum())),
            groups=ours.groups[kept],
            ours=ours.figures(ours.sums_KC)[kept, 0],
            theirs=theirs.figures(theirs.sums_KC)[kept, 0],
            replicates=(ours.bootstrap() - theirs.bootstrap())[:, kept, 0],
            permuted=_permute_answers(ours, theirs, task, exchanges)[:, kept, 0] if exchanges else None,
        )

    def _estimate_figures(
        self, row: _ScoreRow, keys: Sequence[str], drawn: Counts | None
    ) -> dict[str | None, Estimate]:
        """Figures of each key with answers, in the order of first appearance; under None the mean over those keys.

        Intervals: from the replicates `drawn`, as `GroupedCounts.bootstrap` gives them; without any there are none.
        """
        if row.counts is None or not len(row.places):
            return {}
        grouped = self._group_counts(row, keys)
        values = grouped.figures(grouped.sums_KC)
        answers, groups = grouped.answers_K, grouped.groups
        intervals = np.full((*values.shape, 2), np.nan)
        if drawn is not None and len(drawn):
            intervals = grouped.compute_intervals(values, drawn)
        results: dict[str | None, Estimate] = {
            key: Estimate(values[i], int(answers[i]), int(groups[i]), intervals[i])
            for i, key in enumerate(grouped.keys)
            if answers[i]
        }
        if results:
            results[None] = Estimate(values[-1], int(answers.sum()), int(groups[-1]), intervals[-1])
        return results

    @cached_property
    def _replicates_by_modality(self) -> Mapping[tuple[str, Task, tuple[str, ...]], Counts]:
        """Replicates over modalities of each row with intervals, by its key; scores and gains use them."""
        modalities = [s.modality for s in self.samples]
        return {r.key: self._group_counts(r, modalities).bootstrap() for r in self.rows if r.has_interval}

    def _group_counts(self, row: _ScoreRow, keys: Sequence[str]) -> GroupedCounts:
        """The counts of a computed row, summed by group and by the key of each sample."""
        assert row.counts is not None
        groups, weights_RG = self._weights_by_task[row.task]
        names = list(dict.fromkeys(keys[p] for p in row.places))
        code = {name: i for i, name in enumerate(names)}
        sums_GKC = np.zeros((weights_RG.shape[1], len(names), row.counts.shape[1]))
        codes_N = np.array([code[keys[p]] for p in row.places], dtype=np.intp)
        np.add.at(sums_GKC, (groups[row.places], codes_N), row.counts)
        return GroupedCounts(row.measure, names, sums_GKC, weights_RG)

    @cached_property
    def _weights_by_task(self) -> Mapping[Task, tuple[NDArray[np.intp], NDArray[np.uint8]]]:
        """By task: the group of each sample (-1 for a sample of another task), and how often each replicate draws each
        group [R, G]. The draws are the same for every row and metric of a task, and for every run over the same
        samples, so that differences are paired."""
        draws: dict[Task, tuple[NDArray[np.intp], NDArray[np.uint8]]] = {}
        for task in {s.task for s in self.samples}:
            code = {name: i for i, name in enumerate(sorted({s.group for s in self.samples if s.task is task}))}
            codes = np.array([code[s.group] if s.task is task else -1 for s in self.samples])
            rng = np.random.default_rng([0, *task.value.encode()])
            draws[task] = codes, draw_group_weights(rng, len(code), self.replicates if self.replicates >= 2 else 0)
        return draws


def pair_answers(
    ours: ScoredAnswers, theirs: ScoredAnswers, places: Sequence[tuple[int, int]], name: str
) -> ScoredAnswers:
    """The questions that two systems share, with the counts of both: nothing is scored anew.

    `places`: where each shared question stands among the samples of ours and of theirs. `name`: of the row of theirs;
    ours is the model's. The groups are those of the side that has fewer, as patients are fewer than images.
    """
    rows = []
    for scored, row_name, own_places in zip((ours, theirs), (MODEL, name), np.array(places).T, strict=True):
        new_place = np.full(len(scored.samples), -1)
        new_place[own_places] = np.arange(len(places))
        for row in scored.rows:
            if row.row == MODEL:
                kept = np.flatnonzero(new_place[row.places] >= 0)
                kept = kept[np.argsort(new_place[row.places[kept]])]
                counts = None if row.counts is None else row.counts[kept]
                rows.append(replace(row, row=row_name, places=new_place[row.places[kept]], counts=counts))
    sides = [[scored.samples[p[k]] for p in places] for k, scored in enumerate((ours, theirs))]
    samples = min(sides, key=lambda side: len({s.group for s in side}))
    return ScoredAnswers(samples, tuple(row for row in rows if len(row.places)), ours.replicates)


def score_predictions(
    samples: Sequence[Sample],
    predictions: Iterable[Prediction],
    baselines: Mapping[str, Iterable[Prediction]],
    lexicon: Lexicon,
    config: EvaluateConfig,
    captions: CaptionScorer | None = None,
) -> ScoredAnswers:
    """Count every answer with every measure of its task. METEOR and the tokenizer start once for all rows, unless
    `captions` brings them. Raises BadInput as `score_by_measures`."""
    with CaptionScorer.opened(captions) as scorer:
        rules = Rules(config.iou, lexicon, scorer, find_structures(samples, lexicon))
        return score_by_measures(measures(config.spice), samples, predictions, baselines, rules, config.replicates)


def score_by_measures(
    chosen_measures: Sequence[Measure],
    samples: Sequence[Sample],
    predictions: Iterable[Prediction],
    baselines: Mapping[str, Iterable[Prediction]],
    rules: Rules,
    replicates: int,
) -> ScoredAnswers:
    """Count every answer with those of the measures that are of its task.

    Every sample needs a prediction; a baseline may lack some. Raises BadInput naming the first sample without an
    answer, or a prediction that belongs to no sample.
    """
    place = {s.id: i for i, s in enumerate(samples)}
    answered = _index_predictions(predictions, place, "predictions")
    if missing := [s.id for i, s in enumerate(samples) if i not in answered]:
        raise BadInput(
            f"{len(missing)} of {len(samples)} samples have no prediction, the first is {missing[0]!r}; "
            "answer them, or leave them out of the samples"
        )
    items = _UniqueAnswers(samples)
    picks = _choose_candidates(items, answered)
    for name, rows in baselines.items():
        assert not is_choice(name), f"{name!r} is no name of a blind baseline"
        picks[name] = {
            i: items.place(i, p, p.chosen) for i, p in _index_predictions(rows, place, f"baseline {name!r}").items()
        }
    candidates = {i: [items.place(i, p, c) for c in range(len(p.candidates))] for i, p in answered.items()}
    if rules.captions and CAPTIONS in chosen_measures:
        begin_captions([item for item in items.items if item.sample.task in CAPTIONS.tasks], rules.captions)
    waiting = CAPTIONS.count, SPICE.count  # for programs: last, while all else is counted here
    counted = {
        measure: list(_count_measure(measure, items, picks, candidates, rules))
        for measure in sorted(chosen_measures, key=lambda m: m.count in waiting)
    }
    return ScoredAnswers(samples, tuple(row for m in chosen_measures for row in counted[m]), replicates)


class _UniqueAnswers:
    """The different answers, each kept once, although many rows may share it."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.items: list[SampleAnswer] = []
        self._index_by_key: dict[object, int] = {}

    def place(self, sample: int, prediction: Prediction, candidate: int) -> int:
        """The index of a candidate among the items; a new one is added."""
        answer = prediction.candidates[candidate]
        key = (sample, answer.answer, answer.unread, answer.truncated)
        if key not in self._index_by_key:
            self._index_by_key[key] = len(self.items)
            self.items.append(SampleAnswer(self.samples[sample], answer))
        return self._index_by_key[key]


def _choose_candidates(items: _UniqueAnswers, answered: Mapping[int, Prediction]) -> dict[str, dict[int, int]]:
    """The item of each sample by row, for every way to choose a candidate except the oracle."""
    picks = {
        MODEL: {i: items.place(i, p, p.chosen) for i, p in answered.items()},
        FIRST_BEAM: {i: items.place(i, p, 0) for i, p in answered.items()},
    }
    task_of = {i: items.samples[i].task for i in answered}
    scorers = {task: _list_scorers([p for i, p in answered.items() if task_of[i] is task]) for task in Task}
    every = set().union(*scorers.values())
    for name in (*_REFERENCE_SCORERS, *sorted(every - {*_REFERENCE_SCORERS})):
        row = name if name in _REFERENCE_SCORERS else f"{_SCORER_PREFIX}{name}"
        if scored := {i: p for i, p in answered.items() if name in scorers[task_of[i]]}:
            picks[row] = {i: items.place(i, p, _find_highest(p, name)) for i, p in scored.items()}
    return picks


def _count_measure(
    measure: Measure,
    items: _UniqueAnswers,
    picks: Mapping[str, dict[int, int]],
    candidates: Mapping[int, list[int]],
    rules: Rules,
) -> Iterator[_ScoreRow]:
    """The rows of one measure, by task."""
    places = [k for k, item in enumerate(items.items) if item.sample.task in measure.tasks]
    if not places:
        return
    counts, why = None, None
    try:
        part = measure.count([items.items[k] for k in places], rules)
        counts = np.zeros((len(items.items), part.shape[1]))
        counts[places] = part
    except NotComputed as reason:
        why = str(reason)
    rows = [(name, measure, chosen) for name, chosen in picks.items()]
    if measure is not FLAWS:
        rows += [(ORACLE, *best) for best in _choose_best(measure, counts, candidates, picks, items.samples)]
    for task in measure.tasks:
        for name, part_of_measure, chosen in rows:
            of_task = [i for i in chosen if items.samples[i].task is task]
            if of_task:
                row_counts = None if counts is None else counts[[chosen[i] for i in of_task]]
                yield _ScoreRow(name, task, part_of_measure, np.array(of_task), row_counts, why)


def _index_predictions(predictions: Iterable[Prediction], place: Mapping[str, int], what: str) -> dict[int, Prediction]:
    prediction_by_place: dict[int, Prediction] = {}
    for prediction in predictions:
        if prediction.id not in place:
            raise BadInput(f"{what}: no sample has the id {prediction.id!r}; give the samples that were answered")
        if place[prediction.id] in prediction_by_place:
            raise BadInput(f"{what}: {prediction.id!r} is answered twice; keep one line for each sample")
        prediction_by_place[place[prediction.id]] = prediction
    return dict(sorted(prediction_by_place.items()))


def _list_scorers(predictions: Iterable[Prediction]) -> set[str]:
    """Names of the scorers that scored every candidate of every prediction, without "first", the order of the beams."""
    scored = [c.scores.keys() for p in predictions for c in p.candidates]
    return set(scored[0]).intersection(*scored) - {"first"} if scored else set()


def _find_highest(prediction: Prediction, scorer: str) -> int:
    """The candidate that a scorer prefers; ties go to the earlier beam."""
    return max(range(len(prediction.candidates)), key=lambda n: prediction.candidates[n].scores[scorer])


def _choose_best(
    measure: Measure,
    counts: Counts | None,
    candidates: Mapping[int, list[int]],
    chosen: Mapping[str, dict[int, int]],
    samples: Sequence[Sample],
) -> list[tuple[Measure, dict[int, int]]]:
    """By metric, the candidate of each sample that gives the best figures in its task and modality."""
    if counts is None:
        return [(measure, chosen[FIRST_BEAM])]
    asked = {i: rows for i, rows in candidates.items() if samples[i].task in measure.tasks}
    starts = [chosen[FIRST_BEAM] | choice for name, choice in chosen.items() if is_choice(name)]
    return choose_by_truth(measure, counts, asked, {i: (samples[i].task, samples[i].modality) for i in asked}, starts)


def _make_scores(row: _ScoreRow, figures: Mapping[str | None, Estimate]) -> list[Score]:
    scores = []
    for key, figure in figures.items():
        modality = None if key is None else Modality(key)
        for metric, value, ends in zip(row.measure.rows, figure.values.tolist(), figure.intervals, strict=True):
            if np.isnan(value):
                scores.append(Score(row.row, row.task, metric.name, modality, None, figure.answers, metric.missing))
                continue
            interval = scale_interval(ends)
            why = ONE_GROUP if figure.groups == 1 and row.has_interval else None
            scores.append(Score(row.row, row.task, metric.name, modality, 100 * value, figure.answers, why, interval))
    return scores


def _make_missing_scores(
    row: _ScoreRow, metrics: Sequence[str], why: str | None, modalities: Sequence[Modality]
) -> list[Score]:
    counts: Counter[Modality | None] = Counter(modalities[p] for p in row.places)
    counts[None] = len(row.places)
    return [Score(row.row, row.task, metric, m, None, n, why) for metric in metrics for m, n in counts.items()]


def _narrow_row(row: _ScoreRow, metric: str, places: NDArray[np.intp]) -> _ScoreRow:
    """The part of a computed row that answers these samples, with one metric."""
    assert row.counts is not None
    kept_N = np.isin(row.places, places)
    measure = replace(row.measure, rows=tuple(m for m in row.measure.rows if m.name == metric))
    return replace(row, measure=measure, places=row.places[kept_N], counts=row.counts[kept_N])


def _permute_answers(ours: GroupedCounts, theirs: GroupedCounts, task: Task, exchanges: int) -> Counts:
    """[exchanges, K + 1, F] differences after the two swap their answers in a random half of the groups."""
    whole_KC = ours.sums_KC + theirs.sums_KC

    def difference(moved_KC: Counts) -> Counts:
        mine_KC = theirs.sums_KC + moved_KC
        return ours.figures(mine_KC) - ours.figures(whole_KC - mine_KC)

    rng, num_groups = np.random.default_rng([1, *task.value.encode()]), len(ours.sums_GKC)
    kept_PG = np.array([rng.integers(2, size=num_groups).astype(np.uint8) for _ in range(exchanges)])
    return replicate(difference, ours.sums_GKC - theirs.sums_GKC, kept_PG)


def spell_interval(ends: tuple[float, float] | None, sign: str = "", digits: int = 1) -> str:
    """An interval as the text of a table cell; `sign` is "+" for a difference."""
    return "-" if ends is None else f"[{ends[0]:{sign}.{digits}f}, {ends[1]:{sign}.{digits}f}]"


def _spell_figure(value: float, sign: str = "") -> str:
    return "-" if np.isnan(value) else f"{100 * value:{sign}.1f}"

"""Predictions to scores, by modality, with intervals: the model, other choices of its candidates, its blind twins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.records import BadInput, Modality, Prediction, Sample, Score, Table, Task
from clinkd.scoring.captions import CaptionScorer, NotComputed, Sums, by_column
from clinkd.scoring.metrics import FLAWS, JUDGED, Counts, Measure, Rules, SampleAnswer, measures, stand_ins

MODEL, FIRST_BEAM, ORACLE = "model", "first beam", "oracle"
_RIVALS = ("random", "agreement")  # scorers that stand beside every other one, by the name they go by in the record
_BY = "by "
_CHUNK = 64  # bootstrap replicates worked out together: bounds memory at 64 x groups


class Estimate(NamedTuple):
    """Figures of one measure for one key (a modality, a source) or for the mean over keys; 0..1."""

    values: Counts  # [F]
    answers: int
    intervals: Counts | None = None  # [F, 2]


class Gain(NamedTuple):
    """What a choice of candidates is above the first beam, x100, in the mean over modalities; below where negative.

    None, as in a Score, where there is nothing to divide by. The interval is of the difference: the same images are
    drawn for both.
    """

    row: str
    task: Task
    metric: str
    value: float | None
    interval: tuple[float, float] | None

    @property
    def certain(self) -> bool:
        """The interval leaves out 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """One row beside another under one metric, where both have an answer: for each of K keys (a modality, a source),
    and last for the mean over them. Figures are 0..1, NaN where there is nothing to divide by."""

    keys: tuple[str | None, ...]  # [K + 1], the last None
    answers: tuple[int, ...]  # [K + 1]
    ours: Counts  # [K + 1]
    theirs: Counts  # [K + 1]
    drawn: Counts | None  # [R, K + 1] differences of bootstrap replicates, drawn in pairs
    exchanged: Counts | None  # [P, K + 1] differences where the rows' answers to the images of a group change places

    @property
    def interval(self) -> list[tuple[float, float] | None]:
        """[K + 1] 95 % intervals of ours - theirs, x100."""
        if self.drawn is None:
            return [None] * len(self.keys)
        return [_ends(ends) for ends in _percentiles(self.drawn)]

    def at(self, key: str) -> _OneKey | None:
        """Of one key; None where it has no answers of both."""
        if key not in self.keys:
            return None
        place = self.keys.index(key)
        return _OneKey(float(self.ours[place]), float(self.theirs[place]), self.interval[place])


class _OneKey(NamedTuple):
    """Of one key of an `PairedDifference`: both figures, 0..1, and the interval of their difference, x100."""

    ours: float
    theirs: float
    interval: tuple[float, float] | None


def is_choice(row: str) -> bool:
    """A row of the model's own candidates, however chosen; else it is a blind twin's."""
    return row in (MODEL, FIRST_BEAM, ORACLE, *_RIVALS) or row.startswith(_BY)


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
        """By modality it is told with an interval: it was computed, and is a choice of the model's candidates."""
        return self.counts is not None and self.measure is not FLAWS and is_choice(self.row)

    @property
    def judged(self) -> bool:
        """Some of the answers are."""
        return self.counts is not None and bool(self.counts[:, JUDGED].any())


@dataclass(frozen=True)
class ScoredAnswers:
    """All answers, counted once; tables by modality and by source are sums of it."""

    samples: Sequence[Sample]
    rows: tuple[_ScoreRow, ...]
    replicates: int

    def scores(self) -> list[Score]:
        """One Score for each row, metric and non-empty modality, and for the mean over these (modality None)."""
        found: list[Score] = []
        modalities = [s.modality for s in self.samples]
        for row in self.rows:
            if row.counts is None:
                found += _not_computed(row, row.measure.metrics, row.why, modalities)
            else:
                found += _as_scores(row, self._figures(row, modalities, self._by_modality.get(row.key)))
        return found

    def sums(self, task: Task, measure: Measure) -> dict[Modality, Sums]:
        """Counts of the model's answers by column, in each modality that has some; empty where not computed."""
        modalities = [s.modality for s in self.samples]
        found = [r for r in self.rows if (r.row, r.task, r.measure) == (MODEL, task, measure) and r.counts is not None]
        if not found:
            return {}
        codes, names = _coded(found[0], modalities)
        sums = _summed(found[0], codes, names)
        return {Modality(n): by_column(measure.columns, s) for n, s in zip(names, sums, strict=True) if s[JUDGED]}

    def gains(self) -> list[Gain]:
        """Each choice of candidates beside the first beam, for each metric that was computed."""
        modalities = [s.modality for s in self.samples]
        first = {r.key: r for r in self.rows if r.row == FIRST_BEAM}
        found: list[Gain] = []
        for row in self.rows:
            if not row.has_interval or row.row == FIRST_BEAM:
                continue
            pair = row, first[replace(row, row=FIRST_BEAM).key]
            own, beam = (_mean(r.measure.figures(_summed(r, *_coded(r, modalities))), 0) for r in pair)
            own_drawn, beam_drawn = (self._by_modality.get(r.key) for r in pair)
            ends = np.full((len(own), 2), np.nan)
            if own_drawn is not None and beam_drawn is not None:
                ends = _percentiles(own_drawn[:, -1] - beam_drawn[:, -1])
            for metric, value, interval in zip(row.measure.metrics, own - beam, ends, strict=True):
                above = None if np.isnan(value) else 100 * float(value)
                found.append(Gain(row.row, row.task, metric, above, _ends(interval)))
        return found

    def each(self) -> dict[str, dict[str, float]]:
        """By sample, the figures of the model's answer to it alone, 0..1; those with nothing to divide by left out."""
        found: dict[str, dict[str, float]] = {}
        for row in self.rows:
            if row.row != MODEL or row.counts is None or row.measure is FLAWS:
                continue
            values = row.measure.figures(row.counts)  # [N, F]
            for place, own in zip(row.places, values.tolist(), strict=True):
                known = found.setdefault(self.samples[place].id, {})
                known |= {m: v for m, v in zip(row.measure.metrics, own, strict=True) if not np.isnan(v)}
        return found

    def by_source(self) -> Table:
        """Task and source (the data set an image came from) against the model and its blind twins, and how far above
        the best of them it stands."""
        sources = [s.source or "-" for s in self.samples]
        twins = [name for name in dict.fromkeys(r.row for r in self.rows) if not is_choice(name)]
        lines: list[tuple[str, ...]] = []
        for task in Task:
            if metric := self.headline(task):
                lines += self._source_lines(task, metric, sources, twins)
        heads = ("Task", "Source", "Metric", "Questions", "Model", "95 %", "Best blind twin", "Which")
        columns = (*heads, "Above it", "95 % of that", *(f"Blind: {t}" for t in twins))
        notes = (
            "x100 over the questions of a source; intervals by bootstrap over patients or images, of the difference to "
            "the best twin in pairs: where it spans 0, nothing is known to be seen in the images of the source.",
        )
        return Table("By source", columns, tuple(lines), notes)

    def _source_lines(
        self, task: Task, metric: str, sources: Sequence[str], twins: Sequence[str]
    ) -> Iterator[tuple[str, ...]]:
        row = self._found(MODEL, task, metric)
        assert row is not None
        place = row.measure.metrics.index(metric)
        figures = self._figures(row, sources, self._replicated(row, sources))
        apart = {twin: both for twin in twins if (both := self.apart(task, metric, MODEL, twin, sources))}
        for source in sorted(key for key in figures if key is not None):
            figure = figures[source]
            pairs = {twin: pair for twin, both in apart.items() if (pair := both.at(source))}
            computed = [twin for twin in pairs if not np.isnan(pairs[twin].theirs)]
            best = max(computed, key=lambda twin: pairs[twin].theirs, default=None)
            ours, theirs, ends = pairs[best] if best is not None else _OneKey(np.nan, np.nan, None)
            interval = None if figure.intervals is None else _ends(figure.intervals[place])
            cells = (_cell(figure.values[place]), spelled(interval), _cell(theirs), best or "-")
            above = (_cell(ours - theirs, "+"), spelled(ends, "+"))
            blind = (_cell(pairs[twin].theirs) if twin in pairs else "-" for twin in twins)
            yield (task.value, source, metric, str(figure.answers), *cells, *above, *blind)

    def headline(self, task: Task) -> str | None:
        """What a task is compared by: its primary metric; where that was not computed, what stands in for it."""
        found = (m for m in stand_ins(task) if (row := self._found(MODEL, task, m)) and row.judged)
        return next(found, None)

    def _found(self, row: str, task: Task, metric: str) -> _ScoreRow | None:
        mine = (r for r in self.rows if (r.row, r.task) == (row, task) and metric in r.measure.metrics)
        return next((r for r in mine if r.counts is not None), None)

    def apart(
        self, task: Task, metric: str, row: str, other: str, keys: Sequence[str], exchanges: int = 0
    ) -> PairedDifference | None:
        """`row` beside `other`, by the key of each sample; None where either was not computed, or nothing is shared.

        `exchanges`: how often the two change places in half of the groups, drawn at random: were they alike, each such
        difference would be as likely as the one that was seen, whatever the metric (Noreen 1989).
        """
        pair = self._found(row, task, metric), self._found(other, task, metric)
        if pair[0] is None or pair[1] is None:
            return None
        places = np.intersect1d(pair[0].places, pair[1].places)
        ours, theirs = (_only(r, places) for r in pair if r)
        codes, names = _coded(ours, keys)
        sums = [_summed(r, codes, names) for r in (ours, theirs)]
        there = sums[0][:, JUDGED] > 0
        if not there.any():
            return None
        at = ours.measure.metrics.index(metric)

        def figures(of: Counts) -> Counts:
            """[..., K, C] sums -> [..., K + 1]"""
            found = ours.measure.figure(metric, of)
            return np.concatenate([found, _mean(found, -1)[..., None]], axis=-1)

        drawn = [self._replicated(r, keys) for r in (ours, theirs)]
        kept = np.append(there, True)
        answers = sums[0][:, JUDGED].astype(int)
        exchanged = self._exchanged(ours, theirs, codes, exchanges, figures) if exchanges else None
        return PairedDifference(
            keys=(*(n for n, t in zip(names, there, strict=True) if t), None),
            answers=(*answers[there].tolist(), int(answers.sum())),
            ours=figures(sums[0])[kept],
            theirs=figures(sums[1])[kept],
            drawn=None if drawn[0] is None or drawn[1] is None else (drawn[0] - drawn[1])[:, kept, at],
            exchanged=None if exchanged is None else exchanged[:, kept],
        )

    def _exchanged(
        self,
        ours: _ScoreRow,
        theirs: _ScoreRow,
        codes: NDArray[np.intp],
        exchanges: int,
        figures: Callable[[Counts], Counts],
    ) -> Counts:
        assert ours.counts is not None and theirs.counts is not None
        groups, weights = self._drawn(ours.task, ours.places)
        by_group = []
        for counts in (ours.counts, theirs.counts):
            sums = np.zeros((weights.shape[1], int(codes.max()) + 1, counts.shape[1]))
            np.add.at(sums, (groups, codes), counts)
            by_group.append(sums)
        flat = (by_group[0] - by_group[1]).reshape(weights.shape[1], -1)
        whole, other = by_group[0].sum(0) + by_group[1].sum(0), by_group[1].sum(0)
        rng = np.random.default_rng([1, *ours.task.value.encode()])
        found = []
        for start in range(0, exchanges, _CHUNK):
            kept = rng.integers(2, size=(min(_CHUNK, exchanges - start), len(flat))).astype(np.float64)
            mine = other + (kept @ flat).reshape(len(kept), *other.shape)
            found.append(figures(mine) - figures(whole - mine))
        return np.concatenate(found)

    def _figures(self, row: _ScoreRow, keys: Sequence[str], drawn: Counts | None) -> dict[str | None, Estimate]:
        """Figures of each key with answers, in the order of first sight; under None the mean over those keys.

        Their intervals are those of the replicates `drawn`, as of `_replicated`.
        """
        if row.counts is None or not len(row.places):
            return {}
        codes, names = _coded(row, keys)
        sums = _summed(row, codes, names)
        values = row.measure.figures(sums)  # [K, F]
        intervals = None if drawn is None else _percentiles(drawn)
        found: dict[str | None, Estimate] = {}
        for i, name in enumerate(names):
            if sums[i, JUDGED]:
                found[name] = Estimate(values[i], int(sums[i, JUDGED]), None if intervals is None else intervals[i])
        if found:
            found[None] = Estimate(
                _mean(values, 0), int(sums[:, JUDGED].sum()), None if intervals is None else intervals[-1]
            )
        return found

    @cached_property
    def _by_modality(self) -> Mapping[tuple[str, Task, tuple[str, ...]], Counts]:
        """`_replicated` over modalities of the rows with intervals, by their keys: scores and gains both ask for it."""
        modalities = [s.modality for s in self.samples]
        drawn = {r.key: self._replicated(r, modalities) for r in self.rows if r.has_interval}
        return {key: replicates for key, replicates in drawn.items() if replicates is not None}

    def _replicated(self, row: _ScoreRow, keys: Sequence[str]) -> Counts | None:
        """[R, K + 1, F] figures of each replicate, the last of K + 1 the mean over keys; groups are drawn, not answers.
        None where too few replicates are wanted for an interval."""
        if self.replicates < 2:
            return None
        assert row.counts is not None
        codes, names = _coded(row, keys)
        groups, weights = self._drawn(row.task, row.places)
        sums = np.zeros((weights.shape[1], len(names), row.counts.shape[1]))
        np.add.at(sums, (groups, codes), row.counts)
        flat = sums.reshape(len(sums), -1)
        drawn = []
        for start in range(0, len(weights), _CHUNK):
            part = weights[start : start + _CHUNK].astype(np.float64) @ flat
            values = row.measure.figures(part.reshape(len(part), len(names), -1))  # [R, K, F]
            drawn.append(np.concatenate([values, _mean(values, 1)[:, None]], axis=1))
        return np.concatenate(drawn)

    def _drawn(self, task: Task, places: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        """Group of each answer [N], and how often each group is drawn in each replicate [R, G]. The same draws for
        every row and metric of a task, and for every run over the same samples, so that differences are paired."""
        codes, weights = self._draws[task]
        return codes[places], weights

    @cached_property
    def _draws(self) -> Mapping[Task, tuple[NDArray[np.intp], NDArray[np.uint8]]]:
        """Of each task the group of each sample, -1 where it is of another task, and what `_drawn` draws."""
        return {task: self._drawn_anew(task) for task in {s.task for s in self.samples}}

    def _drawn_anew(self, task: Task) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        names = sorted({s.group for s in self.samples if s.task is task})
        code = {name: i for i, name in enumerate(names)}
        rng = np.random.default_rng([0, *task.value.encode()])
        size = len(names)
        drawn = [
            np.bincount(rng.integers(size, size=size), minlength=size).clip(max=255).astype(np.uint8)
            for _ in range(self.replicates)
        ]
        codes = np.array([code[s.group] if s.task is task else -1 for s in self.samples])
        return codes, np.array(drawn, dtype=np.uint8).reshape(self.replicates, size)


def score(
    samples: Sequence[Sample],
    predictions: Iterable[Prediction],
    twins: Mapping[str, Iterable[Prediction]],
    lexicon: Lexicon,
    config: EvaluateConfig,
) -> list[Score]:
    """Strict scores of every row, x100, as `score_predictions` gives them."""
    return score_predictions(samples, predictions, twins, lexicon, config).scores()


def score_by_source(
    samples: Sequence[Sample],
    predictions: Iterable[Prediction],
    twins: Mapping[str, Iterable[Prediction]],
    lexicon: Lexicon,
    config: EvaluateConfig,
) -> Table:
    """The headline of each task by `Sample.source`, beside its best blind twin."""
    return score_predictions(samples, predictions, twins, lexicon, config).by_source()


def score_predictions(
    samples: Sequence[Sample],
    predictions: Iterable[Prediction],
    twins: Mapping[str, Iterable[Prediction]],
    lexicon: Lexicon,
    config: EvaluateConfig,
    captions: CaptionScorer | None = None,
) -> ScoredAnswers:
    """Count every answer under every measure of its task; METEOR and the tokenizer are started once for all rows, or
    belong to `captions`.

    Every sample needs a prediction; a twin may lack some. Raises BadInput naming the first sample without an answer,
    or a prediction that belongs to no sample.
    """
    place = {s.id: i for i, s in enumerate(samples)}
    answered = _by_place(predictions, place, "predictions")
    if missing := [s.id for i, s in enumerate(samples) if i not in answered]:
        raise BadInput(
            f"{len(missing)} of {len(samples)} samples have no prediction, the first is {missing[0]!r}; "
            "answer them, or leave them out of the samples"
        )
    items = _Items(samples)
    picks = _choices(items, answered)
    for name, rows in twins.items():
        assert not is_choice(name), f"{name!r} is no blind twin's name"
        picks[name] = {i: items.place(i, p, p.chosen) for i, p in _by_place(rows, place, f"twin {name!r}").items()}
    candidates = {i: [items.place(i, p, c) for c in range(len(p.candidates))] for i, p in answered.items()}
    with CaptionScorer.opened(captions) as scorer:
        rules = Rules(config.iou, lexicon, scorer)
        counted = (_counted(measure, items, picks, candidates, rules) for measure in measures(config.spice))
        return ScoredAnswers(samples, tuple(row for rows in counted for row in rows), config.replicates)


class _Items:
    """The answers that differ, each once, however many rows hold it."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.items: list[SampleAnswer] = []
        self._places: dict[object, int] = {}

    def place(self, sample: int, prediction: Prediction, candidate: int) -> int:
        """Where a candidate stands among the items; it is added where it is new."""
        answer = prediction.candidates[candidate]
        key = (sample, answer.answer, answer.unread, answer.truncated)
        if key not in self._places:
            self._places[key] = len(self.items)
            self.items.append(SampleAnswer(self.samples[sample], answer))
        return self._places[key]


def _choices(items: _Items, answered: Mapping[int, Prediction]) -> dict[str, dict[int, int]]:
    """By row the item of each sample, of every way to choose among the candidates but the oracle's."""
    picks = {
        MODEL: {i: items.place(i, p, p.chosen) for i, p in answered.items()},
        FIRST_BEAM: {i: items.place(i, p, 0) for i, p in answered.items()},
    }
    for name in _scorers(answered.values()):
        row = name if name in _RIVALS else f"{_BY}{name}"
        picks[row] = {i: items.place(i, p, _highest(p, name)) for i, p in answered.items()}
    return picks


def _counted(
    measure: Measure,
    items: _Items,
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
    rows = picks if measure is FLAWS else {**picks, ORACLE: _best(measure, counts, candidates, picks)}
    for task in measure.tasks:
        for name, chosen in rows.items():
            of_task = [i for i in chosen if items.samples[i].task is task]
            if of_task:
                own = None if counts is None else counts[[chosen[i] for i in of_task]]
                yield _ScoreRow(name, task, measure, np.array(of_task), own, why)


def _by_place(predictions: Iterable[Prediction], place: Mapping[str, int], what: str) -> dict[int, Prediction]:
    found: dict[int, Prediction] = {}
    for prediction in predictions:
        if prediction.id not in place:
            raise BadInput(f"{what}: no sample has the id {prediction.id!r}; give the samples that were answered")
        if place[prediction.id] in found:
            raise BadInput(f"{what}: {prediction.id!r} is answered twice; keep one line for each sample")
        found[place[prediction.id]] = prediction
    return dict(sorted(found.items()))


def _scorers(predictions: Iterable[Prediction]) -> list[str]:
    """Names of the scorers that scored every candidate of every prediction, the order of the beams itself aside."""
    scored = [c.scores.keys() for p in predictions for c in p.candidates]
    everywhere = set(scored[0]).intersection(*scored) if scored else set()
    return [name for name in (*_RIVALS, *sorted(everywhere - {*_RIVALS, "first"})) if name in everywhere]


def _highest(prediction: Prediction, scorer: str) -> int:
    """The candidate that a scorer prefers; ties go to the earlier beam."""
    return max(range(len(prediction.candidates)), key=lambda n: prediction.candidates[n].scores[scorer])


def _best(
    measure: Measure, counts: Counts | None, candidates: Mapping[int, list[int]], chosen: Mapping[str, dict[int, int]]
) -> dict[int, int]:
    """Of each sample the candidate with the best figure of the leading metric; ties go to the earlier beam."""
    if counts is None:
        return chosen[FIRST_BEAM]
    # NaN: nothing was to be said and nothing was, as where no box is true and none is answered. That is right.
    leading = measure.rows[0]
    worth = np.nan_to_num(leading.goodness(measure.figure(leading.name, counts)), nan=1.0)
    return {i: max(own, key=lambda k: worth[k]) for i, own in candidates.items()}


def _as_scores(row: _ScoreRow, figures: Mapping[str | None, Estimate]) -> list[Score]:
    found = []
    for key, figure in figures.items():
        modality = None if key is None else Modality(key)
        for f, metric in enumerate(row.measure.rows):
            value = float(figure.values[f])
            if np.isnan(value):
                found.append(Score(row.row, row.task, metric.name, modality, None, figure.answers, metric.missing))
                continue
            interval = None if figure.intervals is None else _ends(figure.intervals[f])
            found.append(Score(row.row, row.task, metric.name, modality, 100 * value, figure.answers, None, interval))
    return found


def _not_computed(
    row: _ScoreRow, metrics: Sequence[str], why: str | None, modalities: Sequence[Modality]
) -> list[Score]:
    counts: Counter[Modality | None] = Counter(modalities[p] for p in row.places)
    counts[None] = len(row.places)
    return [Score(row.row, row.task, metric, m, None, n, why) for metric in metrics for m, n in counts.items()]


def _only(row: _ScoreRow, places: NDArray[np.intp]) -> _ScoreRow:
    """The row's answers to these samples."""
    assert row.counts is not None
    kept = np.isin(row.places, places)
    return replace(row, places=row.places[kept], counts=row.counts[kept])


def _coded(row: _ScoreRow, keys: Sequence[str]) -> tuple[NDArray[np.intp], list[str]]:
    """The key of each answer [N] as a number, and the keys by their numbers, in the order of first sight."""
    names = list(dict.fromkeys(keys[p] for p in row.places))
    code = {name: i for i, name in enumerate(names)}
    return np.array([code[keys[p]] for p in row.places]), names


def _summed(row: _ScoreRow, codes: NDArray[np.intp], names: Sequence[str]) -> Counts:
    """[K, C] counts of the answers of each key."""
    assert row.counts is not None
    sums = np.zeros((len(names), row.counts.shape[1]))
    np.add.at(sums, codes, row.counts)
    return sums


def _percentiles(drawn: Counts) -> Counts:
    """[R, ...] replicates -> [..., 2] 2.5th and 97.5th percentiles; NaN where no replicate has a figure."""
    some = np.asarray(~np.isnan(drawn).all(axis=0))
    ends = np.nanpercentile(np.where(some, drawn, 0.0), [2.5, 97.5], axis=0)
    return np.where(some[..., None], np.moveaxis(ends, 0, -1), np.nan)


def _ends(ends: Counts) -> tuple[float, float] | None:
    return None if np.isnan(ends).any() else (100 * float(ends[0]), 100 * float(ends[1]))


def _mean(values: Counts, axis: int) -> Counts:
    """Mean over the keys that have a value; NaN where none has."""
    there = ~np.isnan(values)
    count = there.sum(axis)
    return np.where(count > 0, np.where(there, values, 0.0).sum(axis) / np.maximum(count, 1), np.nan)


def spelled(ends: tuple[float, float] | None, sign: str = "") -> str:
    """An interval as a cell; `sign` "+" where it is of a difference."""
    return "-" if ends is None else f"[{ends[0]:{sign}.1f}, {ends[1]:{sign}.1f}]"


def _cell(value: float, sign: str = "") -> str:
    return "-" if np.isnan(value) else f"{100 * value:{sign}.1f}"

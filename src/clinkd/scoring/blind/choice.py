"""Which image-blind baseline is the best of a task: chosen where the test answers have no part, and recorded.

The best of several baselines on the test answers themselves is too good by chance, and would make a model look worse
than it is; a baseline chosen elsewhere is a fair opponent. "images shuffled" is no candidate: it would have to answer
the validation questions, too, and stands beside the choice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from clinkd.language.words import normalise
from clinkd.records import Modality, Prediction, Record, Sample, Task
from clinkd.scoring.blind.baselines import (
    BASELINES,
    Kind,
    answer_by_other_images,
    answer_from_questions,
    group_by_kind,
    make_image_blind_baselines,
    pick_evenly,
)
from clinkd.scoring.measure import Rules, SampleAnswer
from clinkd.scoring.metrics import MEASURES, PRIMARY_METRIC

ChosenOn = Literal["validation", "training", "test"]
CHOSEN_ON: tuple[ChosenOn, ...] = get_args(ChosenOn)
LEAST_OF_MODALITY = 50  # validation questions from which on a modality has a choice of its own
_MOST_OF_KIND = 200  # questions of a task and modality that the baselines are tried on, picked evenly
_TRIED = "tried "  # before an id: a question of validation may have that of a test question
_CAPTIONS = (Task.RC, Task.MIA)


@dataclass(frozen=True, slots=True)
class BlindTrial(Record):
    """How well a baseline answered the questions of a task and modality that were kept apart, 0..1: by the primary
    metric; for captions by the F1 of the different words, since their metrics need Java."""

    task: Task
    modality: Modality
    baseline: str
    figure: float
    questions: int


@dataclass(frozen=True, slots=True)
class BlindChoice(Record):
    """The trials by which the best baseline is chosen, and on which questions they were made: the validation split;
    the training split, each group answered from others; or none, where the best is taken on the test answers."""

    chosen_on: ChosenOn = "test"
    trials: tuple[BlindTrial, ...] = ()

    def pick(self, task: Task, modality: Modality | None, present: Collection[str]) -> str | None:
        """The best of the baselines that are `present`, for a modality or for the mean over modalities; None where
        none was tried. A modality with few questions takes the choice of its task."""
        of_task = [t for t in self.trials if t.task is task and t.baseline in present]
        of_modality = [t for t in of_task if t.modality is modality]
        enough = max((t.questions for t in of_modality), default=0) >= LEAST_OF_MODALITY
        figures: dict[str, list[float]] = {}
        for trial in of_modality if enough else of_task:
            figures.setdefault(trial.baseline, []).append(trial.figure)
        order = sorted(figures, key=BASELINES.index)
        return max(order, key=lambda baseline: float(np.mean(figures[baseline])), default=None)

    @classmethod
    def pooled(cls, choices: Sequence[BlindChoice]) -> BlindChoice:
        """One choice for the folds of a cross-validation, from the trials of all; a fold counts by its questions."""
        by_key: dict[tuple[Task, Modality, str], list[BlindTrial]] = {}
        for trial in (t for choice in choices for t in choice.trials):
            by_key.setdefault((trial.task, trial.modality, trial.baseline), []).append(trial)
        trials = []
        for key, of_folds in by_key.items():
            counts = [t.questions for t in of_folds]
            figure = float(np.average([t.figure for t in of_folds], weights=counts))
            trials.append(BlindTrial(*key, figure, sum(counts)))
        least_apart: list[ChosenOn] = sorted((c.chosen_on for c in choices), key=CHOSEN_ON.index)
        return cls(least_apart[-1] if least_apart else "test", tuple(trials))


def answer_blindly(
    train: Sequence[Sample], validation: Sequence[Sample], test: Sequence[Sample], rules: Rules
) -> tuple[dict[str, list[Prediction]], BlindChoice]:
    """The answers of the image-blind baselines to the test questions, and the choice of the best of them.

    Without validation questions the choice is a cross-validation in training, by groups; without training questions,
    the test answers themselves. The truths of the test questions have no part in either of the first two.
    """
    if not train:
        return make_image_blind_baselines(train, test), BlindChoice()
    tasks = {s.task for s in test}
    tried = [replace(s, id=_TRIED + s.id) for s in _pick_trials(validation) if s.task in tasks]
    if tried:
        rows = answer_from_questions(train, [*tried, *test])  # both at once: each forest is fitted once
        on_trial = answer_by_other_images(tried) | rows
        ids = {s.id for s in test}
        rows = {name: kept for name, of in rows.items() if (kept := [p for p in of if p.id in ids])}
        return answer_by_other_images(test) | rows, BlindChoice("validation", try_baselines(tried, on_trial, rules))
    tried = [s for s in _pick_trials(train) if s.task in tasks]
    trials = try_baselines(tried, make_image_blind_baselines([], tried), rules)
    answers = make_image_blind_baselines(train, test)
    return answers, BlindChoice("training" if trials else "test", trials)


def _pick_trials(samples: Sequence[Sample]) -> list[Sample]:
    return [s for of_kind in group_by_kind(samples).values() for s in pick_evenly(of_kind, _MOST_OF_KIND)]


def try_baselines(
    tried: Sequence[Sample], rows: Mapping[str, Iterable[Prediction]], rules: Rules
) -> tuple[BlindTrial, ...]:
    """How well baselines answered questions, by task, modality and baseline. What was not answered finds nothing."""
    answered = {name: {p.id: p for p in predictions} for name, predictions in rows.items()}
    trials = []
    for kind, samples in group_by_kind(tried).items():
        for name, by_id in answered.items():
            items = [SampleAnswer(s, by_id[s.id].answer) for s in samples if s.id in by_id]
            figure = _score(kind, items, rules) if items else None
            if figure is not None:
                trials.append(BlindTrial(*kind, name, figure * len(items) / len(samples), len(samples)))
    return tuple(trials)


def _score(kind: Kind, items: Sequence[SampleAnswer], rules: Rules) -> float | None:
    """The figure of some answers, 0..1; None where there is nothing to divide by."""
    task, _ = kind
    if task in _CAPTIONS:
        return float(np.mean([_compute_word_f1(i) for i in items]))
    metric = PRIMARY_METRIC[task]
    measure = next(m for m in MEASURES if task in m.tasks and metric in m.metrics)
    figure = float(measure.figure(metric, measure.count(items, rules).sum(0)))
    return None if np.isnan(figure) else figure


def _compute_word_f1(item: SampleAnswer) -> float:
    said, true = (set(normalise(text.words).split()) for text in (item.answer.answer, item.sample.answer))
    return 2 * len(said & true) / max(1, len(said) + len(true))

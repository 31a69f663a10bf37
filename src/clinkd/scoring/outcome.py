"""All scores of one task in one mode, in the form that `clinkd evaluate --json` prints; all figures x100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from clinkd.records import Score, Task
from clinkd.scoring.blind.choice import BlindChoice
from clinkd.scoring.measure import NOT_ASKED, NOTHING_SAID
from clinkd.scoring.metrics import ANSWERS, BOXES, FLAWS, NAMES, PRIMARY_METRIC
from clinkd.scoring.score import MODEL, ScoredAnswers, is_blind

Mode = Literal["official", "strict"]
MODES: tuple[Mode, ...] = ("official", "strict")
Figures = dict[tuple[str, str, str | None], float]  # by row, metric and modality

_ITEM_COLUMNS = {  # measure, and the columns that count the items and the hits
    Task.VG: (BOXES, "truth boxes", "found"),
    Task.ROC: (NAMES, "answers", "hits"),
    Task.QA: (ANSWERS, "answers", "right"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of a task by row (the model, or an image-blind baseline), metric and modality; None stands for the
    mean over the modalities with items. A figure that could not be computed is left out; `why` gives the reason for
    the primary metric, `metric`. `interval`: 95 %, over patients or images.

    By modality, `totals` counts the items (truth boxes for VG, else answers), and `hits` those that were found, where
    this is counted. `unparsed`: answers without a readable box, where one was asked for; they are misses.
    """

    mode: Mode
    task: Task
    metric: str
    totals: Mapping[str, int]
    figures: Figures = field(default_factory=dict)
    hits: Mapping[str, int] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    why: str | None = None
    not_computed: Mapping[str, str] = field(default_factory=dict)
    answers: int = 0
    unparsed: int = 0
    truncated: int = 0
    empty: int = 0
    choice: BlindChoice = field(default_factory=BlindChoice)  # of the best image-blind baseline

    def score(self, modality: str | None = None) -> float | None:
        """The model's primary metric."""
        return self.figures.get((MODEL, self.metric, modality))

    @property
    def blind_by(self) -> dict[str, float]:
        """The primary metric of each image-blind baseline."""
        return {
            row: value
            for (row, metric, modality), value in self.figures.items()
            if row != MODEL and (metric, modality) == (self.metric, None)
        }

    @property
    def best_baseline(self) -> str | None:
        """The name of the best image-blind baseline: the one chosen beforehand, else that of the highest score."""
        blind_by = self.blind_by
        best = self.choice.pick(self.task, None, blind_by)
        return best or max(blind_by, key=blind_by.__getitem__, default=None)

    def parts(self, modality: str | None = None) -> dict[str, float]:
        """The model's other metrics."""
        return {
            metric: value
            for (row, metric, of), value in self.figures.items()
            if (row, of) == (MODEL, modality) and metric != self.metric
        }

    def to_json(self) -> dict[str, Any]:
        blind_by, best = self.blind_by, self.best_baseline
        return {
            "mode": self.mode,
            "task": self.task.value,
            "metric": self.metric,
            "score": self.score(),
            "why": self.why,
            "interval": list(self.interval) if self.interval else None,
            "by_modality": {modality: self._describe_modality(modality) for modality in self.totals},
            "parts": self.parts(),
            "not_computed": dict(self.not_computed),
            "unparsed": self.unparsed,
            "truncated": self.truncated,
            "empty": self.empty,
            "answers": self.answers,
            "blind": None if best is None else blind_by[best],
            "blind_is": best,
            "blind_chosen_on": None if best is None else self.choice.chosen_on,
            "blind_by": blind_by,
        }

    def _describe_modality(self, modality: str) -> dict[str, Any]:
        hits = {"hits": self.hits[modality]} if modality in self.hits else {}
        parts = self.parts(modality)
        total = {"total": self.totals[modality], "score": self.score(modality)}
        return {**hits, **total, **({"parts": parts} if parts else {})}


def strict_outcomes(scored: ScoredAnswers, scores: Sequence[Score]) -> list[Outcome]:
    """One for each task that was asked, in the tasks' order; `scores` are those of `scored`."""
    tasks = {s.task for s in scored.samples}
    return [
        _build_strict_outcome(scored, [s for s in scores if s.task is task], task) for task in Task if task in tasks
    ]


def _build_strict_outcome(scored: ScoredAnswers, scores: Sequence[Score], task: Task) -> Outcome:
    metric = PRIMARY_METRIC[task]
    mean = next((s for s in scores if (s.row, s.metric, s.modality) == (MODEL, metric, None)), None)
    measure, total_column, hit_column = _ITEM_COLUMNS.get(task, (FLAWS, "answers", None))
    why = mean.why if mean else None
    items, flaws = scored.sums(task, measure), scored.sums(task, FLAWS)
    answers, truncated, empty, unparsed = (
        int(sum(sums[column] for sums in flaws.values()))
        for column in ("answers", "truncated", "empty", "of these without a box")
    )
    return Outcome(
        mode="strict",
        task=task,
        metric=metric,
        totals={modality: int(sums[total_column]) for modality, sums in items.items()},
        figures={
            (s.row, s.metric, s.modality): s.value
            for s in scores
            if s.value is not None and s.metric not in FLAWS.metrics and (s.row == MODEL or is_blind(s.row))
        },
        hits={m: int(sums[hit_column]) for m, sums in items.items()} if hit_column else {},
        interval=mean.interval if mean else None,
        why=why,
        not_computed={
            s.metric: s.why
            for s in scores
            if (s.row, s.modality) == (MODEL, None) and s.why and s.why not in (NOT_ASKED, NOTHING_SAID, why)
        },
        answers=answers,
        unparsed=unparsed if task is Task.VG else 0,
        truncated=truncated,
        empty=empty,
        choice=scored.choice,
    )

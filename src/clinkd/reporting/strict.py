"""All that mode strict says of some answers: scores, gains of selection, tables, and the numbers of the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from clinkd.language.facts import Lexicon
from clinkd.records import Prediction, Score, Table, Task
from clinkd.reporting.tables import BY_SOURCE, ScoreIndex, tabulate_scores
from clinkd.scoring.metrics import PRIMARY_METRIC
from clinkd.scoring.plotted import describe_confidence, describe_figures
from clinkd.scoring.score import Gain, ScoredAnswers


@dataclass(frozen=True, slots=True)
class StrictResults:
    """`by_sample`: the figures of each answer by metric, 0..1. `figures`: as `scoring.plotted.describe_figures` gives
    them, and under `confidence` what `describe_confidence` gives."""

    scores: Sequence[Score] = ()
    gains: Sequence[Gain] = ()
    tables: Sequence[Table] = ()
    by_sample: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        scored: ScoredAnswers,
        predictions: Sequence[Prediction],
        baselines: Mapping[str, Sequence[Prediction]],
        lexicon: Lexicon,
        choices: bool = True,
        absences: Mapping[str, str] = {},
    ) -> Self:
        """Of scored predictions and their image-blind baselines; `choices`: as `tabulate_scores` has it. `absences`: as
        `describe_confidence` has it."""
        scores, gains, by_sample = scored.scores(), scored.gains(), scored.each()
        tables = tabulate_scores(scores, gains, choices)
        if len({s.source for s in scored.samples}) > 1:
            tables.append(replace(scored.by_source(), key=BY_SOURCE))
        best = ScoreIndex(scores).best_baseline(Task.VG, PRIMARY_METRIC[Task.VG])
        blind = (best, baselines[best]) if best else None
        figures = describe_figures(scored.samples, predictions, blind, by_sample, lexicon, scored.replicates)
        confidence = describe_confidence(scored.samples, predictions, lexicon, absences, scored.replicates)
        return cls(scores, gains, tables, by_sample, {**figures, "confidence": confidence})

"""Whether answers whose candidates disagree are wrong more often: counts of a run's validation answers, by task.

Agreement of candidates is no confidence: they may agree on a wrong answer. So an answer is called uncertain only in a
task for which these counts show that disagreement means something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from clinkd.inference.self_consistency import CERTAIN
from clinkd.language.agreement import is_wrong
from clinkd.records import Prediction, Sample

LEAST_ANSWERS = 10  # with candidates that differ, and as many others
P_VALUE = 0.01  # of the exact test; questions about one image are not independent, and each task is tested


class Disagreement(NamedTuple):
    """Answers to the validation questions of a task, and how many of them are wrong: those whose candidates differ
    (`support` below CERTAIN), and the others."""

    differing: int = 0
    differing_wrong: int = 0
    agreeing: int = 0
    agreeing_wrong: int = 0

    @property
    def is_telling(self) -> bool:
        """Whether answers whose candidates differ are wrong more often, by Fisher's exact test."""
        if min(self.differing, self.agreeing) < LEAST_ANSWERS:
            return False
        from scipy.stats import fisher_exact

        right = self.differing - self.differing_wrong, self.agreeing - self.agreeing_wrong
        counts = [[self.differing_wrong, right[0]], [self.agreeing_wrong, right[1]]]
        return float(fisher_exact(counts, alternative="greater").pvalue) < P_VALUE

    def add_answer(self, differs: bool, wrong: bool) -> Self:
        """The counts with one more answer."""
        if differs:
            return self._replace(differing=self.differing + 1, differing_wrong=self.differing_wrong + wrong)
        return self._replace(agreeing=self.agreeing + 1, agreeing_wrong=self.agreeing_wrong + wrong)


def count_disagreement(
    samples: Mapping[str, Sample], predictions: Sequence[Prediction], supports: Mapping[str, float],
    names: Sequence[str],
) -> dict[str, Disagreement]:  # fmt: skip
    """The counts by task. supports: by id, `SelfConsistency.value` of the chosen answer; names: class names."""
    counts: dict[str, Disagreement] = {}
    for prediction in predictions:
        sample = samples[prediction.id]
        wrong = is_wrong(prediction.answer.answer, sample.answer, names)
        before = counts.get(sample.task.value, Disagreement())
        counts[sample.task.value] = before.add_answer(supports[prediction.id] < CERTAIN, wrong)
    return counts


def explain_disagreement(recorded: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> str | None:
    """What disagreement means for a question that may belong to any of `tasks`; None unless it was shown to mean
    something in each of these that the run had validation questions of. recorded: counts by task, as stored."""
    validated = {task: Disagreement(**recorded[task]) for task in tasks if task in recorded}
    if not validated or not all(counts.is_telling for counts in validated.values()):
        return None
    total = Disagreement(*map(sum, zip(*validated.values(), strict=True)))
    differing, agreeing = (100 * total[i + 1] / total[i] for i in (0, 2))
    return (
        f"on {total.differing + total.agreeing} validation questions of {' and '.join(validated)}, answers whose "
        f"candidates differ so were wrong in {differing:.0f} % against {agreeing:.0f} %"
    )

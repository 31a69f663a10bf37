"""Whether answers whose candidates disagree are wrong more often: counts of a run's validation answers, by task.

Agreement of candidates is no confidence: they may agree on a wrong answer. So an answer is called uncertain only in a
task for which these counts show that disagreement means something, and its confidence is the share of right ones among
validation answers with as much support.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from clinkd.inference.self_consistency import CERTAIN
from clinkd.language.agreement import is_wrong
from clinkd.records import Prediction, Sample

LEAST_ANSWERS = 10  # with candidates that differ, and as many others
P_VALUE = 0.01  # of the exact test; questions about one image are not independent, and each task is tested
BINS = 10  # of support, equally wide
LEAST_CALIBRATED = 30  # answers of the possible tasks, below which no confidence is told
LEAST_OF_STEP = 10  # answers that share one confidence


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


# ---- confidence -----------------------------------------------------------------------------------------------------


class CalibrationBins(NamedTuple):
    """Answers to the validation questions of a task by their support, from 0 to 1 in `BINS` equal bins, and how many of
    them are right."""

    answers: tuple[int, ...]
    right: tuple[int, ...]


def count_calibration(
    samples: Mapping[str, Sample], predictions: Sequence[Prediction], supports: Mapping[str, float],
    names: Sequence[str],
) -> dict[str, CalibrationBins]:  # fmt: skip
    """The counts by task; arguments as for `count_disagreement`."""
    counts: dict[str, tuple[list[int], list[int]]] = {}
    for prediction in predictions:
        sample = samples[prediction.id]
        answers, right = counts.setdefault(sample.task.value, ([0] * BINS, [0] * BINS))
        place = _find_bin(supports[prediction.id])
        answers[place] += 1
        right[place] += not is_wrong(prediction.answer.answer, sample.answer, names)
    return {task: CalibrationBins(tuple(answers), tuple(right)) for task, (answers, right) in counts.items()}


def find_confidence(recorded: Mapping[str, Mapping[str, Any]], tasks: Sequence[str], support: float) -> float | None:
    """The probability that an answer is right, for a question that may belong to any of `tasks`; None where too few
    validation answers tell it. recorded: counts by task, as stored.

    A step function of the support that never falls (isotonic regression of bins: adjacent ones are pooled until each
    step holds enough answers and the shares of right ones rise). A share is (right + 1) / (answers + 2), so never 0
    or 1.
    """
    known = [recorded[task] for task in tasks if task in recorded]
    steps: list[tuple[int, int, int]] = []  # answers, right ones, bins
    for part in range(BINS):
        steps.append((sum(k["answers"][part] for k in known), sum(k["right"][part] for k in known), 1))
        while len(steps) > 1 and _must_pool(steps[-2], steps[-1]):
            (a, b, c), (d, e, f) = steps.pop(), steps.pop()
            steps.append((a + d, b + e, c + f))
    if sum(answers for answers, _, _ in steps) < LEAST_CALIBRATED:
        return None
    shares = [share for answers, right, bins in steps for share in [(right + 1) / (answers + 2)] * bins]
    return round(shares[_find_bin(support)], 4)


def _must_pool(below: tuple[int, int, int], above: tuple[int, int, int]) -> bool:
    rises = (below[1] + 1) / (below[0] + 2) < (above[1] + 1) / (above[0] + 2)
    return min(below[0], above[0]) < LEAST_OF_STEP or not rises


def _find_bin(support: float) -> int:
    return min(int(round(support, 6) * BINS), BINS - 1)  # as many digits as supports are stored with

"""What a measure and a metric are: counts of answers, and figures of their sums.

A measure turns each answer into one row of counts (the first column is 1 where the answer is judged, else the whole
row is zero), and the sum of any rows into figures. So a modality, a source, a whole split and a bootstrap replicate
are the same computation. Shapes: N answers, C columns, F metrics. Figures are 0..1, and NaN where there is nothing to
divide by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinkd.language.facts import Lexicon
from clinkd.records import Candidate, Sample, Task
from clinkd.scoring.captions import (
    CaptionScorer,
    Counts,
    Sums,
    by_column,
)

Place = Literal["comparison", "question", "ablation"]  # tables that show only some metrics
IN_COMPARISON: tuple[Place, ...] = ("comparison",)

FACTS, WORDS, CLASS = "Facts F1", "mBMR", "Class F1"
JUDGED = 0  # the first column of every measure
# The reason given where a figure has nothing to divide by: no such question, or nothing in questions and answers.
NOT_ASKED, NOTHING_SAID = "no question of this kind", "nothing to divide by"
SAME_TRUTHS = "all truths are the same text, and CIDEr weighs words by how few of the truths have them"


class SampleAnswer(NamedTuple):
    """One answer to one question."""

    sample: Sample
    answer: Candidate


class Rules(NamedTuple):
    """What the scores depend on: the smallest IoU of a found box, the words of the data set, and the scorer of
    captions, where there are captions. `structures`: those that the truths of an image name, by its path."""

    iou: float
    lexicon: Lexicon
    captions: CaptionScorer | None = None
    structures: Mapping[str, frozenset[str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a measure. It is shown x100 with one decimal.

    `figure` computes it from the sums of the columns, by their names; a `Ratio` has the interval of a share.
    `primary_of`: tasks whose primary metric it is. `stands_in`: where the primary metric of a task could not be
    computed, the metric with the lowest number replaces it. `shown`: the short tables that show it. `better`: "lower"
    for a share of errors. `missing`: the reason to give where `figure` is NaN.
    """

    name: str
    figure: Callable[[Sums], Counts]
    primary_of: tuple[Task, ...] = ()
    stands_in: int | None = None
    shown: tuple[Place, ...] = ()
    better: Literal["higher", "lower"] = "higher"
    missing: str = NOT_ASKED

    def goodness(self, values: Counts) -> Counts:
        """The values, with their sign changed where lower is better."""
        return values if self.better == "higher" else -values


@dataclass(frozen=True, slots=True)
class Measure:
    """Metrics that are computed from the same counts. `count` gives [N, C] rows. `derive` turns the sums into what the
    metrics are computed from, where they share much arithmetic.
    """

    tasks: tuple[Task, ...]
    columns: tuple[str, ...]
    count: Callable[[Sequence[SampleAnswer], Rules], Counts]
    rows: tuple[Metric, ...]
    derive: Callable[[Sums], Sums] | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return tuple(m.name for m in self.rows)

    def figures(self, sums: Counts) -> Counts:
        """[..., C] sums -> [..., F] figures."""
        sums_by_name = self.name_sums(sums)
        return np.stack([m.figure(sums_by_name) for m in self.rows], axis=-1)

    def figure(self, metric: str, sums: Counts) -> Counts:
        """[..., C] sums -> [...] of one metric."""
        return self.rows[self.metrics.index(metric)].figure(self.name_sums(sums))

    def name_sums(self, sums: Counts) -> Sums:
        """[..., C] sums -> [...] of each column, by its name, or what the measure derives from them."""
        sums_by_name = by_column(self.columns, sums)
        return self.derive(sums_by_name) if self.derive else sums_by_name


def stack_counts(columns: Sequence[str], counts: Iterable[Mapping[str, float]]) -> Counts:
    """[N, C] counts from one mapping (column to count) for each answer; an empty mapping is an answer not judged."""
    rows = [[row[c] for c in columns] if row else [0.0] * len(columns) for row in counts]
    return np.array(rows, dtype=np.float64).reshape(-1, len(columns))


def count_each(
    columns: Sequence[str], count: Callable[[SampleAnswer, Rules], Mapping[str, float]]
) -> Callable[[Sequence[SampleAnswer], Rules], Counts]:
    """Make a `Measure.count` that counts the answers one by one."""
    return lambda items, rules: stack_counts(columns, (count(item, rules) for item in items))


def divide(part: Counts, whole: Counts) -> Counts:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure that is a share: the sum of one count divided by that of another, of which it is a part in every answer.

    So it has the interval of a share (`clinkd.scoring.intervals`). Not `binary`: the items are values from 0 to 1, such
    as an IoU, and not hits or misses. `applies`: whether the figure says anything, by the sums of all answers; their
    groups may each hold a part of what it needs.
    """

    part: Callable[[Sums], Counts]
    whole: Callable[[Sums], Counts]
    binary: bool = True
    applies: Callable[[Sums], NDArray[np.bool_]] | None = None

    def __call__(self, sums: Sums) -> Counts:
        shares = divide(self.part(sums), self.whole(sums))
        return shares if self.applies is None else np.where(self.applies(sums), shares, np.nan)


def make_ratio(part: str, whole: str, binary: bool = True) -> Ratio:
    """Make a figure: one column divided by another, of which it is a part."""
    return Ratio(itemgetter(part), itemgetter(whole), binary)


@dataclass(frozen=True, slots=True)
class Mean:
    """A figure that is a mean of values of any size, which has a bootstrap interval: CIDEr, or a program's score."""

    total: str
    count: str

    def __call__(self, sums: Sums) -> Counts:
        return divide(sums[self.total], sums[self.count])


F1_COLUMNS = ("in both", "of the answer", "of the truth")  # of counts of what two texts share


def make_f1(both: str, one: str, other: str) -> Ratio:
    """Make the figure F1 from the columns that count what is in both, in the one and in the other: the share of what is
    in both, of the mean of the two."""
    return Ratio(itemgetter(both), lambda s: (s[one] + s[other]) / 2, binary=False)

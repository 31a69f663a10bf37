"""The strict measures: what each task is judged by, as counts that add up over answers and figures of their sums.

A measure turns each answer into one row of counts (column 0 is 1 where the answer is judged, else the row is all zero)
and the sum of any rows into figures. So a modality, a source, a whole split and a bootstrap replicate are the same
computation. Shapes: N answers, C columns, F figures. Figures are 0..1, NaN where there is nothing to divide by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinkd.agreement import Lexicon, iou_matrix, listed, match_boxes, normalise, read_facts
from clinkd.evaluation.captions import FIGURES, Caption, caption_counts, caption_figures
from clinkd.records import Candidate, Sample, Task

Counts = NDArray[np.float64]

HEADLINE = {Task.VG: "Recall", Task.ROC: "Recall", Task.RC: "SPICE", Task.MIA: "mBMR", Task.QA: "Accuracy"}
FACTS = "Facts F1"
SPICE_WHY = "SPICE is not part of this version; the facts F1 beside it needs none"


class Item(NamedTuple):
    """One answer to one question."""

    sample: Sample
    answer: Candidate


class Rules(NamedTuple):
    """What the judging depends on: the least IoU of a found box, and the words of the data set."""

    iou: float
    lexicon: Lexicon


@dataclass(frozen=True, slots=True)
class Measure:
    """`count` gives [N, C] rows, `figures` maps [..., C] sums to [..., F]; `metrics`: their names, headline first."""

    tasks: tuple[Task, ...]
    metrics: tuple[str, ...]
    count: Callable[[Sequence[Item], Rules], Counts]
    figures: Callable[[Counts], Counts]


def _share(part: Counts, whole: Counts) -> Counts:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def wilson(part: int, whole: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), 0..1: it holds where the share is near 0 or 1, or of few."""
    z = 1.959964
    middle, spread = part + z * z / 2, z * math.sqrt(part * (whole - part) / whole + z * z / 4)
    return max(0.0, (middle - spread) / (whole + z * z)), min(1.0, (middle + spread) / (whole + z * z))


# ---- VG: boxes one to one -------------------------------------------------------------------------------------------


def _count_boxes(items: Sequence[Item], rules: Rules) -> Counts:
    """Columns: answers, truth boxes, answered boxes, pairs at rules.iou, .25 and .75, all pairs, their summed IoU."""
    return np.array([_boxes(item, rules.iou) for item in items]).reshape(len(items), 8)


def _boxes(item: Item, iou: float) -> list[float]:
    truth, answered = item.sample.answer.boxes, item.answer.answer.boxes
    found = [len(match_boxes(truth, answered, threshold)) for threshold in (iou, 0.25, 0.75)]
    overlaps = _overlaps(item)
    # A box that could not be read was claimed all the same: it lowers precision and finds nothing.
    claimed = len(answered) + len(item.answer.unread)
    return [1.0, len(truth), claimed, *found, len(overlaps), sum(overlaps)]


def _overlaps(item: Item) -> list[float]:
    truth, answered = item.sample.answer.boxes, item.answer.answer.boxes
    overlap = iou_matrix(truth, answered)
    return [float(overlap[t, a]) for t, a in match_boxes(truth, answered, 0.0)]


def _box_figures(sums: Counts) -> Counts:
    _, truth, claimed, found, found_25, found_75, pairs, overlap = np.moveaxis(sums, -1, 0)
    return np.stack(
        [
            _share(found, truth),
            _share(found, claimed),
            _share(2 * found, truth + claimed),
            _share(overlap, truth + claimed - pairs),  # a spare or a missing box counts as an IoU of 0
            _share(found_25, truth),
            _share(found_75, truth),
        ],
        axis=-1,
    )


BOXES = Measure(
    (Task.VG,), ("Recall", "Precision", "F1", "mIoU", "Recall@0.25", "Recall@0.75"), _count_boxes, _box_figures
)


# ---- ROC: the class name, and no other ------------------------------------------------------------------------------


def _count_names(items: Sequence[Item], rules: Rules) -> Counts:
    """Columns: answers, hits, answers that list another class."""
    rows = []
    for item in items:
        truth = truth_names(item.sample, rules.lexicon)
        said = {normalise(n) for n in listed(item.answer.answer.words, (*truth, *rules.lexicon.names))}
        right = {normalise(n) for n in truth}
        rows.append([1.0, said == right, bool(said - right)])
    return np.array(rows, dtype=np.float64).reshape(len(items), 3)


def truth_names(sample: Sample, lexicon: Lexicon) -> tuple[str, ...]:
    """The class names an answer must affirm: those of the record, else those its truth lists, else its whole truth."""
    words = sample.answer.words
    return sample.names or listed(words, lexicon.names) or (words,)


def _name_figures(sums: Counts) -> Counts:
    answers, hits, others = np.moveaxis(sums, -1, 0)
    return np.stack([_share(hits, answers), _share(others, answers)], axis=-1)


NAMES = Measure((Task.ROC,), ("Recall", "Lists another class"), _count_names, _name_figures)


# ---- RC and MIA: words, and the facts in them -----------------------------------------------------------------------


def _count_captions(items: Sequence[Item], rules: Rules) -> Counts:
    return caption_counts([Caption(i.answer.answer.words, (i.sample.answer.words,)) for i in items])


CAPTIONS = Measure(
    (Task.RC, Task.MIA), ("mBMR", *(f for f in FIGURES if f != "mBMR")), _count_captions,
    lambda sums: np.roll(caption_figures(sums), 1, axis=-1),  # mBMR, the last, becomes the headline
)  # fmt: skip


def _count_facts(items: Sequence[Item], rules: Rules) -> Counts:
    """Columns: answers judged, tuples in both, tuples of the answer, tuples of the truth."""
    rows = np.zeros((len(items), 4))
    for row, item in zip(rows, items, strict=True):
        if item.sample.facts:
            truth = {t for fact in item.sample.facts for t in fact.tuples}
            said = {t for fact in read_facts(item.answer.answer.words, rules.lexicon) for t in fact.tuples}
            row[:] = 1.0, len(truth & said), len(said), len(truth)
    return rows


def _fact_figures(sums: Counts) -> Counts:
    _, both, said, truth = np.moveaxis(sums, -1, 0)
    return np.stack([_share(2 * both, said + truth), _share(both, said), _share(both, truth)], axis=-1)


FACT_TUPLES = Measure(
    (Task.RC, Task.MIA), (FACTS, "Facts precision", "Facts recall"), _count_facts, _fact_figures
)  # fmt: skip


# ---- QA: yes or no, and short answers -------------------------------------------------------------------------------


def _count_answers(items: Sequence[Item], rules: Rules) -> Counts:
    """Columns: answers, yes/no questions, right ones, open questions, equal ones, summed recall of truth words."""
    rows = np.zeros((len(items), 6))
    for row, item in zip(rows, items, strict=True):
        truth, answer = normalise(item.sample.answer.words), normalise(item.answer.answer.words)
        if truth in ("yes", "no"):
            row[:] = 1, 1, particle(answer) == truth, 0, 0, 0
        else:
            words = set(truth.split())
            row[:] = 1, 0, 0, 1, answer == truth, len(words & set(answer.split())) / max(1, len(words))
    return rows


def particle(answer: str) -> str | None:
    """ "yes" or "no" where a normalised answer says so: by its first word, else by the only one of the two in it."""
    words = answer.split()
    said = {"yes", "no"} & set(words)
    return words[0] if words[:1] in (["yes"], ["no"]) else said.pop() if len(said) == 1 else None


def _answer_figures(sums: Counts) -> Counts:
    answers, closed, right, opened, equal, recall = np.moveaxis(sums, -1, 0)
    shares = ((right + equal, answers), (right, closed), (equal, opened), (recall, opened))
    return np.stack([_share(part, whole) for part, whole in shares], axis=-1)


ANSWERS = Measure(
    (Task.QA,),
    ("Accuracy", "Yes/no accuracy", "Open accuracy", "Open recall of words"),
    _count_answers,
    _answer_figures,
)


# ---- all tasks: what could not be judged as it stands ---------------------------------------------------------------


def _count_flaws(items: Sequence[Item], rules: Rules) -> Counts:
    """Columns: answers, cut by the length limit, with an unreadable box, empty."""
    rows = [[1, i.answer.truncated, bool(i.answer.unread), not i.answer.answer.text.strip()] for i in items]
    return np.array(rows, dtype=np.float64).reshape(len(items), 4)


def _flaw_figures(sums: Counts) -> Counts:
    return _share(sums[..., 1:], sums[..., :1])


FLAWS = Measure(tuple(Task), ("Truncated", "Unread boxes", "Empty"), _count_flaws, _flaw_figures)

MEASURES = (BOXES, NAMES, CAPTIONS, FACT_TUPLES, ANSWERS, FLAWS)

"""The strict metrics of each task. A measure counts each answer; the sums of the counts give the figures.

To add a metric, add one `Metric` to the rows of the `Measure` that counts what it needs: tables, JSON, report and
comparisons follow, and a test asks for a new version of the stage `score`. A measure turns each answer into one row of
counts (the first column is 1 where the answer is judged, else the whole row is zero), and the sum of any rows into
figures. So a modality, a source, a whole split and a bootstrap replicate are the same computation. Shapes: N answers,
C columns, F metrics, T truth boxes, A answered boxes, P pairs of one of each. Figures are 0..1, and NaN where
there is nothing to divide by.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinkd.boxes import corners, match_overlaps
from clinkd.language.conflicts import DESCRIBING, affirms, conflicts, sides
from clinkd.language.facts import Lexicon, read_facts
from clinkd.language.languages import list_verdicts, read_verdict
from clinkd.language.negation import affirmed_names
from clinkd.language.sides import has_no_sides
from clinkd.language.words import normalise
from clinkd.records import Box, Candidate, Sample, Task
from clinkd.scoring.captions import (
    COLUMNS,
    FIGURES,
    Caption,
    CaptionScorer,
    Counts,
    NotComputed,
    Sums,
    by_column,
    caption_figures,
)
from clinkd.scoring.spice import SPICE_COLUMNS, FailedPair, spice_counts

Place = Literal["comparison", "question", "ablation"]  # tables that show only some metrics
_IN_COMPARISON: tuple[Place, ...] = ("comparison",)

FACTS, WORDS, CLASS = "Facts F1", "mBMR", "Class F1"
JUDGED = 0  # the first column of every measure
# The reason given where a figure has nothing to divide by: no such question, or nothing in questions and answers.
NOT_ASKED, NOTHING_SAID = "no question of this kind", "nothing to divide by"


class SampleAnswer(NamedTuple):
    """One answer to one question."""

    sample: Sample
    answer: Candidate


class Rules(NamedTuple):
    """What the scores depend on: the smallest IoU of a found box, the words of the data set, and the scorer of
    captions, where there are captions."""

    iou: float
    lexicon: Lexicon
    captions: CaptionScorer | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a measure. It is shown x100 with one decimal.

    `figure` computes it from the sums of the columns, by their names. `primary_of`: tasks whose primary metric it is.
    `stands_in`: where the primary metric of a task could not be computed, the metric with the lowest number replaces
    it. `shown`: the short tables that show it. `better`: "lower" for a share of errors. `missing`: the reason to give
    where `figure` is NaN.
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
    """Metrics that are computed from the same counts. `count` gives [N, C] rows. The first metric chooses the best
    candidate of an answer. `derive` turns the sums into what the metrics are computed from, where they share much
    arithmetic.
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
        sums_by_name = self._name_sums(sums)
        return np.stack([m.figure(sums_by_name) for m in self.rows], axis=-1)

    def figure(self, metric: str, sums: Counts) -> Counts:
        """[..., C] sums -> [...] of one metric."""
        return self.rows[self.metrics.index(metric)].figure(self._name_sums(sums))

    def _name_sums(self, sums: Counts) -> Sums:
        sums_by_name = by_column(self.columns, sums)
        return self.derive(sums_by_name) if self.derive else sums_by_name


def _stack_counts(columns: Sequence[str], counts: Iterable[Mapping[str, float]]) -> Counts:
    """[N, C] counts from one mapping (column to count) for each answer; an empty mapping is an answer not judged."""
    rows = [[row[c] for c in columns] if row else [0.0] * len(columns) for row in counts]
    return np.array(rows, dtype=np.float64).reshape(-1, len(columns))


def _count_each(
    columns: Sequence[str], count: Callable[[SampleAnswer, Rules], Mapping[str, float]]
) -> Callable[[Sequence[SampleAnswer], Rules], Counts]:
    """Make a `Measure.count` that counts the answers one by one."""
    return lambda items, rules: _stack_counts(columns, (count(item, rules) for item in items))


def _divide(part: Counts, whole: Counts) -> Counts:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def make_ratio(part: str, whole: str) -> Callable[[Sums], Counts]:
    """Make a figure: one column divided by another."""
    return lambda s: _divide(s[part], s[whole])


def _make_f1(both: str, one: str, other: str) -> Callable[[Sums], Counts]:
    """Make the figure F1 from the columns that count what is in both, in the one and in the other."""
    return lambda s: _divide(2 * s[both], s[one] + s[other])


def wilson_interval(part: int, whole: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), 0..1. It also holds for a share near 0 or 1, and for few items."""
    z = 1.959964
    middle, spread = part + z * z / 2, z * math.sqrt(part * (whole - part) / whole + z * z / 4)
    return max(0.0, (middle - spread) / (whole + z * z)), min(1.0, (middle + spread) / (whole + z * z))


# ---- VG: boxes one to one -------------------------------------------------------------------------------------------

# Largest area of a small and of a medium box, as a share of the image: sides of one tenth and of three tenths. COCO's
# two limits have the same ratio (32 and 96 pixels a side). They are shares because medical images have any size and
# are resized before a model sees them.
SIZES = (("small", 0.01), ("medium", 0.09), ("large", float("inf")))
_AREA_LIMITS = np.array([limit for _, limit in SIZES[:-1]])


_BOX_COLUMNS = (
    *("answers", "truth boxes", "answered boxes", "found", "found at .25", "found at .75", "touching", "their IoU"),
    *(f"{size} truth boxes" for size, _ in SIZES),
    *(f"{size} found" for size, _ in SIZES),
    *("truth boxes with a side", "on the other side", "answers without a truth box", "of these with a box"),
)
_ANSWERS_PER_BLOCK = 2048  # answers whose boxes are paired together: bounds memory where answers hold hundreds of boxes


def _count_boxes(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    parts = [
        _count_some_boxes(items[i : i + _ANSWERS_PER_BLOCK], rules.iou)
        for i in range(0, len(items), _ANSWERS_PER_BLOCK)
    ]
    return np.concatenate([np.zeros((0, len(_BOX_COLUMNS))), *parts])


def _count_some_boxes(items: Sequence[SampleAnswer], iou: float) -> Counts:
    truth, answered = [i.sample.answer.boxes for i in items], [i.answer.answer.boxes for i in items]
    pairs = _BoxPairs.from_boxes(truth, answered)
    truth_T4, answered_A4 = (corners([b for boxes in side for b in boxes]) for side in (truth, answered))
    mirror_T4 = _mirror_boxes(truth_T4)
    overlap_P = _compute_row_ious(truth_T4[pairs.truth_P], answered_A4[pairs.answered_P])
    found_P, touching_P = pairs.match_pairs(overlap_P, iou), pairs.match_pairs(overlap_P, 0.0)
    found_T, used_A = (np.zeros(len(boxes), dtype=bool) for boxes in (truth_T4, answered_A4))
    found_T[pairs.truth_P[found_P]] = used_A[pairs.answered_P[found_P]] = True
    # not its own mirror image, in a picture where mirrored means the other side
    with_sides_N = np.array([not has_no_sides(i.sample) for i in items], dtype=bool)
    sided_T = (_compute_row_ious(truth_T4, mirror_T4) < iou) & np.repeat(with_sides_N, pairs.num_truth_N)
    # a missed box whose mirror image overlaps with a spare box of the answer
    open_P = (sided_T & ~found_T)[pairs.truth_P] & ~used_A[pairs.answered_P]
    mirrored_P = np.where(open_P, _compute_row_ious(mirror_T4[pairs.truth_P], answered_A4[pairs.answered_P]), 0.0)
    size_T = np.searchsorted(_AREA_LIMITS, _compute_areas(truth_T4), side="right")
    num_truth, num_answered = pairs.num_truth_N, pairs.num_answered_N
    # The answer also claims a box that could not be read: it lowers precision and finds nothing.
    num_claimed = num_answered + np.array([len(i.answer.unread) for i in items])
    columns = {
        "answers": np.ones(len(items)),
        "truth boxes": num_truth,
        "answered boxes": num_claimed,
        "found": pairs.sum_pairs(found_P),
        "found at .25": pairs.sum_pairs(pairs.match_pairs(overlap_P, 0.25)),
        "found at .75": pairs.sum_pairs(pairs.match_pairs(overlap_P, 0.75)),
        "touching": pairs.sum_pairs(touching_P),
        "their IoU": pairs.sum_pairs(np.where(touching_P, overlap_P, 0.0)),
        "truth boxes with a side": pairs.sum_truth(sided_T),
        "on the other side": pairs.sum_pairs(pairs.match_pairs(mirrored_P, iou)),
        "answers without a truth box": num_truth == 0,
        "of these with a box": (num_truth == 0) & (num_claimed > 0),
    }
    for size_code, (size, _) in enumerate(SIZES):
        columns[f"{size} truth boxes"] = pairs.sum_truth(size_T == size_code)
        columns[f"{size} found"] = pairs.sum_truth((size_T == size_code) & found_T)
    return np.column_stack([columns[c] for c in _BOX_COLUMNS]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class _BoxPairs:
    """Every truth box of an answer with every box of that answer, over N answers: P pairs, ordered by answer, then by
    truth box. T truth boxes and A answered boxes of all answers stand in two flat rows."""

    num_truth_N: NDArray[np.intp]
    num_answered_N: NDArray[np.intp]
    start_N: NDArray[np.intp]  # the first pair of each answer
    answer_T: NDArray[np.intp]  # the answer of each truth box
    answer_P: NDArray[np.intp]
    truth_P: NDArray[np.intp]
    answered_P: NDArray[np.intp]

    @classmethod
    def from_boxes(cls, truth: Sequence[Sequence[Box]], answered: Sequence[Sequence[Box]]) -> _BoxPairs:
        num_truth_N, num_answered_N = (np.array([len(b) for b in side], dtype=np.intp) for side in (truth, answered))
        num_N, answers_N = num_truth_N * num_answered_N, np.arange(len(truth))
        answer_P = np.repeat(answers_N, num_N)
        within_P = np.arange(len(answer_P)) - _find_starts(num_N)[answer_P]
        row_P, column_P = np.divmod(within_P, num_answered_N[answer_P])
        truth_P, answered_P = (
            _find_starts(num_truth_N)[answer_P] + row_P,
            _find_starts(num_answered_N)[answer_P] + column_P,
        )
        answer_T = np.repeat(answers_N, num_truth_N)
        return cls(num_truth_N, num_answered_N, _find_starts(num_N), answer_T, answer_P, truth_P, answered_P)

    def match_pairs(self, overlap_P: Counts, iou: float) -> NDArray[np.bool_]:
        """[P] whether `match_boxes` pairs the two within their answer. Where no box fits two others, all that fit are
        pairs."""
        matched_P = (overlap_P >= iou) & (overlap_P > 0)
        truth, answered = self.truth_P[matched_P], self.answered_P[matched_P]
        contested = (np.bincount(truth)[truth] > 1) | (np.bincount(answered)[answered] > 1)
        for answer in np.unique(self.answer_P[matched_P][contested]):
            start, width = self.start_N[answer], self.num_answered_N[answer]
            block = slice(start, start + self.num_truth_N[answer] * width)
            matched_P[block] = False
            for row, column in match_overlaps(overlap_P[block].reshape(-1, width), iou):
                matched_P[start + row * width + column] = True
        return matched_P

    def sum_pairs(self, values_P: NDArray[Any]) -> Counts:
        """[N] the sum over the pairs of each answer."""
        return np.bincount(self.answer_P, values_P, len(self.num_truth_N)).astype(np.float64)

    def sum_truth(self, values_T: NDArray[Any]) -> Counts:
        """[N] the sum over the truth boxes of each answer."""
        return np.bincount(self.answer_T, values_T, len(self.num_truth_N)).astype(np.float64)


def _find_starts(sizes_N: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.cumsum(sizes_N) - sizes_N


def _mirror_boxes(boxes_B4: Counts) -> Counts:
    """The boxes with left and right exchanged."""
    x1, y1, x2, y2 = boxes_B4.T
    return np.column_stack([1 - x2, y1, 1 - x1, y2])


def _compute_areas(boxes_B4: Counts) -> Counts:
    x1, y1, x2, y2 = boxes_B4.T
    return np.asarray((x2 - x1) * (y2 - y1))


def _compute_row_ious(a_B4: Counts, b_B4: Counts) -> Counts:
    """[B] the IoU of each pair of rows, by the same arithmetic as `iou_matrix`."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a_B4.T, b_B4.T
    width, height = np.minimum(ax2, bx2) - np.maximum(ax1, bx1), np.minimum(ay2, by2) - np.maximum(ay1, by1)
    intersection = np.clip(width, 0, None) * np.clip(height, 0, None)
    return np.asarray(intersection / (_compute_areas(a_B4) + _compute_areas(b_B4) - intersection))


def _compute_mean_iou(s: Sums) -> Counts:
    """A spare or a missing box counts as an IoU of 0."""
    return _divide(s["their IoU"], s["truth boxes"] + s["answered boxes"] - s["touching"])


BOXES = Measure(
    (Task.VG,),
    _BOX_COLUMNS,
    _count_boxes,
    (
        Metric(
            "F1",
            _make_f1("found", "truth boxes", "answered boxes"),
            primary_of=(Task.VG,),
            shown=_IN_COMPARISON,
            missing=NOTHING_SAID,
        ),
        Metric("Precision", make_ratio("found", "answered boxes"), shown=_IN_COMPARISON, missing=NOTHING_SAID),
        Metric("Recall", make_ratio("found", "truth boxes"), shown=("comparison", "ablation")),
        Metric("mIoU", _compute_mean_iou, shown=("comparison", "question", "ablation")),
        Metric("Recall@0.25", make_ratio("found at .25", "truth boxes")),
        Metric("Recall@0.75", make_ratio("found at .75", "truth boxes")),
        Metric(
            "False boxes where none is",
            make_ratio("of these with a box", "answers without a truth box"),
            better="lower",
        ),
        *(Metric(f"Recall, {size} boxes", make_ratio(f"{size} found", f"{size} truth boxes")) for size, _ in SIZES),
        Metric(
            "Left-right swaps",
            make_ratio("on the other side", "truth boxes with a side"),
            shown=_IN_COMPARISON,
            better="lower",
        ),
    ),
)


# ---- ROC: the class name, and no other ------------------------------------------------------------------------------

_NAME_COLUMNS = ("answers", "hits", "list another class", "truths with a side", "on the other side")


def _count_name(item: SampleAnswer, rules: Rules) -> dict[str, float]:
    lexicon = rules.lexicon
    words, truth = item.answer.answer.words, truth_names(item.sample, lexicon)
    new = [n for n in truth if n not in lexicon.names]
    affirmed = {normalise(n) for n in affirmed_names(words, (*new, *lexicon.names) if new else lexicon.names)}
    right = {normalise(n) for n in truth}
    with_side = [n for n in truth if len(sides(n)) == 1]
    return {
        "answers": 1,
        "hits": affirmed == right,
        "list another class": bool(affirmed - right),
        "truths with a side": bool(with_side),
        "on the other side": any(_affirms_other_side(words, n) for n in with_side),
    }


def _affirms_other_side(words: str, name: str) -> bool:
    """Whether the text affirms the structure of a name, but on the other side: "right lung", "lung on the right"."""
    stated, sides_of_name = sides(words), sides(name)
    bare = " ".join(w for w in normalise(name).split() if not sides(w) & sides_of_name)
    return bool(stated) and not stated & sides_of_name and affirms(words, bare)


def truth_names(sample: Sample, lexicon: Lexicon) -> tuple[str, ...]:
    """The class names an answer must affirm: those of the record, else those its truth lists, else its whole truth."""
    words = sample.answer.words
    return sample.names or affirmed_names(words, lexicon.names) or (words,)


# Recall: the share of questions answered with the right class and no other. A denied class counts as not named.
NAMES = Measure(
    (Task.ROC,),
    _NAME_COLUMNS,
    _count_each(_NAME_COLUMNS, _count_name),
    (
        Metric("Recall", make_ratio("hits", "answers"), primary_of=(Task.ROC,), shown=_IN_COMPARISON),
        Metric(
            "Lists another class", make_ratio("list another class", "answers"), shown=_IN_COMPARISON, better="lower"
        ),
        Metric(
            "Laterality swaps",
            make_ratio("on the other side", "truths with a side"),
            shown=_IN_COMPARISON,
            better="lower",
        ),
    ),
)


# ---- RC and MIA: words, and the facts in them -----------------------------------------------------------------------


def _make_captions(items: Sequence[SampleAnswer]) -> list[Caption]:
    return [Caption(i.answer.answer.words, (i.sample.answer.words,)) for i in items]


def _count_captions(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    assert rules.captions is not None
    return rules.captions.counts(_make_captions(items))


CAPTIONS = Measure(
    (Task.RC, Task.MIA),
    COLUMNS,
    _count_captions,
    (
        Metric(WORDS, itemgetter(WORDS), primary_of=(Task.MIA,), stands_in=2, shown=("comparison", "question")),
        *(Metric(name, itemgetter(name)) for name in FIGURES if name != WORDS),
    ),
    caption_figures,
)


_F1_COLUMNS = ("in both", "of the answer", "of the truth")
_FACT_COLUMNS = ("answers", *_F1_COLUMNS)


def _count_shared(truth: set[Any], answer: set[Any]) -> dict[str, int]:
    return dict(zip(_F1_COLUMNS, (len(truth & answer), len(answer), len(truth)), strict=True))


def _count_facts(item: SampleAnswer, rules: Rules) -> dict[str, float]:
    """Count tuples of the stated facts; an empty mapping where the record states none."""
    if not item.sample.facts:
        return {}
    truth = {t for fact in item.sample.facts for t in fact.tuples}
    answer = {t for fact in read_facts(item.answer.answer.words, rules.lexicon) for t in fact.tuples}
    return {"answers": 1, **_count_shared(truth, answer)}


FACT_TUPLES = Measure(
    (Task.RC, Task.MIA),
    _FACT_COLUMNS,
    _count_each(_FACT_COLUMNS, _count_facts),
    (
        Metric(
            FACTS,
            _make_f1(*_F1_COLUMNS),
            stands_in=1,
            shown=("comparison", "question", "ablation"),
            missing=NOTHING_SAID,
        ),
        Metric("Facts precision", make_ratio("in both", "of the answer"), missing=NOTHING_SAID),
        Metric("Facts recall", make_ratio("in both", "of the truth")),
    ),
)


def _count_spice(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    assert rules.captions is not None
    try:
        return spice_counts(_make_captions(items), rules.captions)
    except FailedPair as failed:
        raise NotComputed(f"{items[failed.place].sample.id}: {failed}") from None


SPICE = Measure(
    (Task.RC,),
    SPICE_COLUMNS,
    _count_spice,
    (Metric("SPICE", make_ratio("F-score", "answers"), primary_of=(Task.RC,), shown=_IN_COMPARISON),),
)


_CLASS_COLUMNS, _DESCRIBING_COLUMNS = (
    (f"{kind} in both", f"{kind} of the answer", f"{kind} of the truth") for kind in ("classes", "describing words")
)
_CLAIM_COLUMNS = (
    *("answers", *_CLASS_COLUMNS, *_DESCRIBING_COLUMNS),
    *("truths with a side", "agree with it", "contradict it", "deny or affirm against the truth"),
)


def _count_claims(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    lexicon = rules.lexicon
    words = {
        "classes": lexicon.names,
        "describing words": tuple(dict.fromkeys((*lexicon.sizes, *lexicon.brightness, *DESCRIBING))),
    }
    affirmed: dict[str, dict[str, set[str]]] = {}  # kept, since one truth is compared with many answers
    rows = []
    for item in items:
        truth, answer = item.sample.answer.words, item.answer.answer.words
        for text in (truth, answer):
            if text not in affirmed:
                affirmed[text] = {kind: set(affirmed_names(text, names)) for kind, names in words.items()}
        row: dict[str, float] = {"answers": 1, **_compare_sides(truth, answer)}
        for kind in words:
            shared = _count_shared(affirmed[truth][kind], affirmed[answer][kind])
            row |= {f"{kind} {column}": count for column, count in shared.items()}
        rows.append(row)
    return _stack_counts(_CLAIM_COLUMNS, rows)


def _compare_sides(truth: str, answer: str) -> dict[str, float]:
    contradictions, side = conflicts(answer, truth), sides(truth)
    contradicts = "laterality" in contradictions
    return {
        "truths with a side": bool(side),
        "agree with it": bool(side) and side == sides(answer) and not contradicts,
        "contradict it": bool(side) and contradicts,
        "deny or affirm against the truth": "negation" in contradictions,
    }


# These can be judged without facts in the data: the classes and describing words that a text affirms, and its sides.
# A side that is left out neither agrees nor contradicts.
CLAIMS = Measure(
    (Task.RC, Task.MIA),
    _CLAIM_COLUMNS,
    _count_claims,
    (
        Metric(CLASS, _make_f1(*_CLASS_COLUMNS), shown=_IN_COMPARISON, missing=NOTHING_SAID),
        Metric("Attribute F1", _make_f1(*_DESCRIBING_COLUMNS), missing=NOTHING_SAID),
        Metric("Laterality agreement", make_ratio("agree with it", "truths with a side"), shown=_IN_COMPARISON),
        Metric("Laterality conflicts", make_ratio("contradict it", "truths with a side"), better="lower"),
        Metric(
            "Negation conflicts",
            make_ratio("deny or affirm against the truth", "answers"),
            shown=_IN_COMPARISON,
            better="lower",
        ),
    ),
)


# ---- QA: yes or no, short and longer answers ------------------------------------------------------------------------

_JOINING = frozenset({"or", "and", "oder", "und", "ou", "et", "o", "y", "e"})  # in "yes or no"
SHORT = 3  # most words of a truth that must be met exactly; longer ones are judged by shared words, as open VQA-RAD is


_OPEN_COLUMNS = ("questions", "equal", "recall of words", "F1 of words")
_ANSWER_COLUMNS = (
    *("answers", "yes/no questions", "right yes/no"),
    *(f"{length} {column}" for length in ("short", "long") for column in _OPEN_COLUMNS),
)


def _count_answer(item: SampleAnswer, rules: Rules) -> dict[str, float]:
    row: dict[str, float] = {**dict.fromkeys(_ANSWER_COLUMNS, 0), "answers": 1}
    truth, answer = normalise(item.sample.answer.words), normalise(item.answer.answer.words)
    if verdict := read_verdict(truth):
        return row | {"yes/no questions": 1, "right yes/no": read_yes_no(answer, truth) == verdict}
    truth_words, answer_words = Counter(truth.split()), Counter(answer.split())
    num_shared = (truth_words & answer_words).total()
    length = "short" if truth_words.total() <= SHORT else "long"
    recall, f1 = (
        num_shared / max(1, truth_words.total()),
        2 * num_shared / max(1, truth_words.total() + answer_words.total()),
    )
    return row | {f"{length} {c}": v for c, v in zip(_OPEN_COLUMNS, (1, answer == truth, recall, f1), strict=True)}


def read_yes_no(answer: str, truth: str) -> str | None:
    """ "yes" or "no" where a normalised answer says so, in English or in a language of the truth: by its first word,
    else by the only one of the two in it. "yes or no" counts as neither."""
    verdicts, words = list_verdicts(truth), answer.split()
    stated = {verdicts[word] for word in words if word in verdicts}
    if len(stated) == 2 and all(word in verdicts or word in _JOINING for word in words):
        return None
    return verdicts.get(words[0]) or (stated.pop() if len(stated) == 1 else None) if words else None


def _make_mean(column: str, *lengths: str) -> Callable[[Sums], Counts]:
    """The mean of a column over the questions with an answer of these lengths."""

    def figure(s: Sums) -> Counts:
        parts, questions = ([s[f"{length} {c}"] for length in lengths] for c in (column, "questions"))
        return _divide(np.sum(parts, axis=0), np.sum(questions, axis=0))

    return figure


_OPEN = ("short", "long")
ANSWERS = Measure(
    (Task.QA,),
    _ANSWER_COLUMNS,
    _count_each(_ANSWER_COLUMNS, _count_answer),
    (
        Metric(
            "Accuracy",
            lambda s: _divide(s["right yes/no"] + (s["short equal"] + s["long equal"]), s["answers"]),
            primary_of=(Task.QA,),
            shown=_IN_COMPARISON,
        ),
        Metric("Yes/no accuracy", make_ratio("right yes/no", "yes/no questions"), shown=_IN_COMPARISON),
        Metric("Open accuracy", _make_mean("equal", *_OPEN), shown=_IN_COMPARISON),
        Metric("Open recall of words", _make_mean("recall of words", *_OPEN), shown=("comparison", "question")),
        Metric("Open F1 of words", _make_mean("F1 of words", *_OPEN)),
        Metric("Short accuracy", _make_mean("equal", "short")),
        Metric("Short recall of words", _make_mean("recall of words", "short")),
        Metric("Long recall of words", _make_mean("recall of words", "long")),
        Metric("Long F1 of words", _make_mean("F1 of words", "long")),
    ),
)


# ---- all tasks: what could not be judged as it stands ---------------------------------------------------------------


_FLAW_COLUMNS = ("answers", "truncated", "unread box", "empty", "to a truth with a box", "of these without a box")


def _count_flaws(item: SampleAnswer, rules: Rules) -> dict[str, float]:
    truth_has_box, answer = bool(item.sample.answer.boxes), item.answer
    return {
        "answers": 1,
        "truncated": answer.truncated,
        "unread box": bool(answer.unread),
        "empty": not answer.answer.text.strip(),
        "to a truth with a box": truth_has_box,
        "of these without a box": truth_has_box and not answer.answer.boxes,
    }


FLAWS = Measure(
    tuple(Task),
    _FLAW_COLUMNS,
    _count_each(_FLAW_COLUMNS, _count_flaws),
    (
        Metric("Truncated", make_ratio("truncated", "answers"), better="lower"),
        Metric("Unread boxes", make_ratio("unread box", "answers"), better="lower"),
        Metric("Empty", make_ratio("empty", "answers"), better="lower"),
        Metric(
            "No box where one was asked for",
            make_ratio("of these without a box", "to a truth with a box"),
            better="lower",
        ),
    ),
)


# ---- all metrics ----------------------------------------------------------------------------------------------------

MEASURES = (BOXES, NAMES, CAPTIONS, FACT_TUPLES, SPICE, CLAIMS, ANSWERS, FLAWS)
PRIMARY_METRIC = {
    task: metric.name for task in Task for m in MEASURES for metric in m.rows if task in metric.primary_of
}


def measures(spice: Literal["headline", "all"]) -> tuple[Measure, ...]:
    """All measures, with SPICE for the task whose primary metric it is, or for every task of captions."""
    tasks = SPICE.tasks if spice == "headline" else CAPTIONS.tasks
    return tuple(replace(m, tasks=tasks) if m is SPICE else m for m in MEASURES)


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """The metrics of a task: the primary metric, those that replace it, then the others in the order above."""

    def rank(metric: Metric) -> tuple[bool, float]:
        return task not in metric.primary_of, math.inf if metric.stands_in is None else metric.stands_in

    return tuple(sorted((metric for m in MEASURES if task in m.tasks for metric in m.rows), key=rank))


def list_shown_metrics(place: Place, task: Task) -> tuple[str, ...]:
    """The metrics of a task that a short table shows, in their order."""
    return tuple(m.name for m in metrics_of(task) if place in m.shown)


def list_stand_ins(task: Task) -> tuple[str, ...]:
    """The metrics by which a task is compared: its primary metric, then those that replace it where it is missing."""
    return tuple(m.name for m in metrics_of(task) if task in m.primary_of or m.stands_in is not None)

"""The strict measures: what each task is judged by, as counts that add up over answers and figures of their sums.

A measure turns each answer into one row of counts (column 0 is 1 where the answer is judged, else the row is all zero)
and the sum of any rows into figures. So a modality, a source, a whole split and a bootstrap replicate are the same
computation. Shapes: N answers, C columns, F figures. Figures are 0..1, NaN where there is nothing to divide by.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clinkd.agreement import (
    DESCRIBING,
    Lexicon,
    affirms,
    conflicts,
    corners,
    iou_matrix,
    iou_of_corners,
    listed,
    match_overlaps,
    normalise,
    read_facts,
    sides,
)
from clinkd.evaluation.captions import FIGURES, Caption, NotComputed, caption_counts, caption_figures
from clinkd.evaluation.spice import FailedPair, spice_counts
from clinkd.records import Box, Candidate, Sample, Task

Counts = NDArray[np.float64]

HEADLINE = {Task.VG: "F1", Task.ROC: "Recall", Task.RC: "SPICE", Task.MIA: "mBMR", Task.QA: "Accuracy"}
FACTS, WORDS = "Facts F1", "mBMR"


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

# Areas, in shares of the image, up to which a box is small and medium: sides of a tenth and of three tenths. COCO's two
# limits stand in the same ratio (32 and 96 pixels a side); shares of the image, since medical images have any size and
# are resized before a model sees them.
SIZES = (("small", 0.01), ("medium", 0.09), ("large", float("inf")))
_LIMITS = np.array([limit for _, limit in SIZES[:-1]])


class _Found(NamedTuple):
    """The counts of one answer beside its numbers of boxes."""

    pairs: Sequence[int]  # one to one at rules.iou, .25 and .75
    met: int  # pairs of any overlap
    overlap: float  # summed IoU of those
    truth_by_size: NDArray[np.intp]  # [3] truth boxes
    found_by_size: NDArray[np.intp]  # [3] those paired at rules.iou
    sided: int  # truth boxes that are not their own mirror image
    swapped: int  # of those the missed ones whose mirror image a spare box of the answer meets


_BOX_COLUMNS = 18


def _count_boxes(items: Sequence[Item], rules: Rules) -> Counts:
    """Columns: answers, truth boxes, answered boxes, pairs at rules.iou, .25 and .75, all pairs, their summed IoU,
    truth boxes by size, found ones by size, truth boxes with a side, swapped ones, answers without a truth box, those
    of them with a box."""
    rows = np.zeros((len(items), _BOX_COLUMNS))
    single: list[int] = []
    for at, (row, item) in enumerate(zip(rows, items, strict=True)):
        truth, answered = item.sample.answer.boxes, item.answer.answer.boxes
        # A box that could not be read was claimed all the same: it lowers precision and finds nothing.
        row[:3] = 1.0, len(truth), len(answered) + len(item.answer.unread)
        row[16:] = not truth, not truth and row[2] > 0
        if len(truth) == len(answered) == 1:
            single.append(at)
        elif truth:
            found = _several(truth, answered, rules.iou)
            row[3:16] = (
                *found.pairs, found.met, found.overlap, *found.truth_by_size, *found.found_by_size, found.sided,
                found.swapped,
            )  # fmt: skip
    if single:
        rows[single, 3:16] = _one_to_one([items[at] for at in single], rules.iou)
    return rows


def _several(truth: Sequence[Box], answered: Sequence[Box], iou: float) -> _Found:
    overlap = iou_matrix(truth, answered)
    found, met = match_overlaps(overlap, iou), match_overlaps(overlap, 0.0)
    sizes = np.searchsorted(_LIMITS, [b.area for b in truth], side="right")
    mirror_T4 = _mirrored(corners(truth))
    sided = _iou_rows(corners(truth), mirror_T4) < iou
    hit, used = {t for t, _ in found}, {a for _, a in found}
    missed = [t for t in range(len(truth)) if sided[t] and t not in hit]
    spare = [a for a in range(len(answered)) if a not in used]
    return _Found(
        pairs=(len(found), len(match_overlaps(overlap, 0.25)), len(match_overlaps(overlap, 0.75))),
        met=len(met),
        overlap=float(sum(overlap[t, a] for t, a in met)),
        truth_by_size=np.bincount(sizes, minlength=3),
        found_by_size=np.bincount(sizes[sorted(hit)], minlength=3),
        sided=int(sided.sum()),
        swapped=len(match_overlaps(iou_of_corners(mirror_T4[missed], corners(answered)[spare]), iou)),
    )


def _one_to_one(items: Sequence[Item], iou: float) -> Counts:
    """[N, 13] the counts of `_several` for answers of one box to a truth of one, all at once: most are so."""
    truth = corners([i.sample.answer.boxes[0] for i in items])
    answered = corners([i.answer.answer.boxes[0] for i in items])
    mirror, overlap = _mirrored(truth), _iou_rows(truth, answered)
    hit = overlap >= iou
    sided = _iou_rows(truth, mirror) < iou
    swapped = sided & ~hit & (_iou_rows(mirror, answered) >= iou)
    area = (truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1])
    size = np.searchsorted(_LIMITS, area, side="right")[:, None] == np.arange(3)
    parts = (hit, overlap >= 0.25, overlap >= 0.75, overlap > 0, overlap)
    return np.column_stack([*parts, size, size & hit[:, None], sided, swapped]).astype(np.float64)


def _mirrored(rows_N4: Counts) -> Counts:
    """Where boxes would stand with left and right exchanged."""
    return np.stack([1 - rows_N4[:, 2], rows_N4[:, 1], 1 - rows_N4[:, 0], rows_N4[:, 3]], axis=1)


def _iou_rows(a_N4: Counts, b_N4: Counts) -> Counts:
    """[N] the IoU of each pair of rows, by the same arithmetic as `iou_matrix`."""
    low, high = np.maximum(a_N4[:, :2], b_N4[:, :2]), np.minimum(a_N4[:, 2:], b_N4[:, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=-1) for x in (a_N4, b_N4)]
    return np.asarray(both / (areas[0] + areas[1] - both), dtype=np.float64)


def _box_figures(sums: Counts) -> Counts:
    _, truth, claimed, found, found_25, found_75, pairs, overlap = np.moveaxis(sums[..., :8], -1, 0)
    truth_by_size, found_by_size = np.moveaxis(sums[..., 8:11], -1, 0), np.moveaxis(sums[..., 11:14], -1, 0)
    sided, swapped, boxless, sprayed = np.moveaxis(sums[..., 14:], -1, 0)
    return np.stack(
        [
            _share(2 * found, truth + claimed),
            _share(found, claimed),
            _share(found, truth),
            _share(overlap, truth + claimed - pairs),  # a spare or a missing box counts as an IoU of 0
            _share(found_25, truth),
            _share(found_75, truth),
            _share(sprayed, boxless),
            *(_share(f, t) for f, t in zip(found_by_size, truth_by_size, strict=True)),
            _share(swapped, sided),
        ],
        axis=-1,
    )


BOXES = Measure(
    (Task.VG,),
    (
        *("F1", "Precision", "Recall", "mIoU", "Recall@0.25", "Recall@0.75", "False boxes where none is"),
        *(f"Recall, {size} boxes" for size, _ in SIZES),
        "Left-right swaps",
    ),
    _count_boxes,
    _box_figures,
)


# ---- ROC: the class name, and no other ------------------------------------------------------------------------------


def _count_names(items: Sequence[Item], rules: Rules) -> Counts:
    """Columns: answers, hits, answers that list another class, truths with a side in their name, swapped sides."""
    rows = np.zeros((len(items), 5))
    for row, item in zip(rows, items, strict=True):
        words, truth = item.answer.answer.words, truth_names(item.sample, rules.lexicon)
        new = [n for n in truth if n not in rules.lexicon.names]
        said = {normalise(n) for n in listed(words, (*new, *rules.lexicon.names) if new else rules.lexicon.names)}
        right = {normalise(n) for n in truth}
        sided = [n for n in truth if len(sides(n)) == 1]
        row[:] = 1.0, said == right, bool(said - right), bool(sided), any(_swapped(words, n) for n in sided)
    return rows


def _swapped(words: str, name: str) -> bool:
    """The text affirms what a name stands for, and the other side only: "right lung", "lung on the right"."""
    stated, own = sides(words), sides(name)
    bare = " ".join(w for w in normalise(name).split() if w not in own)
    return bool(stated) and not stated & own and affirms(words, bare)


def truth_names(sample: Sample, lexicon: Lexicon) -> tuple[str, ...]:
    """The class names an answer must affirm: those of the record, else those its truth lists, else its whole truth."""
    words = sample.answer.words
    return sample.names or listed(words, lexicon.names) or (words,)


def _name_figures(sums: Counts) -> Counts:
    answers, hits, others, sided, swapped = np.moveaxis(sums, -1, 0)
    return np.stack([_share(hits, answers), _share(others, answers), _share(swapped, sided)], axis=-1)


# Recall: of the questions, those answered with the right class and no other; a denied class is not named.
NAMES = Measure((Task.ROC,), ("Recall", "Lists another class", "Laterality swaps"), _count_names, _name_figures)


# ---- RC and MIA: words, and the facts in them -----------------------------------------------------------------------


def _captions(items: Sequence[Item]) -> list[Caption]:
    return [Caption(i.answer.answer.words, (i.sample.answer.words,)) for i in items]


def _count_captions(items: Sequence[Item], rules: Rules) -> Counts:
    return caption_counts(_captions(items))


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


def _count_spice(items: Sequence[Item], rules: Rules) -> Counts:
    """Columns: answers, summed F-score."""
    try:
        return spice_counts(_captions(items))
    except FailedPair as failed:
        raise NotComputed(f"{items[failed.place].sample.id}: {failed}") from None


SPICE = Measure((Task.RC,), ("SPICE",), _count_spice, lambda sums: _share(sums[..., 1:], sums[..., :1]))


def _count_claims(items: Sequence[Item], rules: Rules) -> Counts:
    """Columns: answers; class names in both, of the answer, of the truth; describing words, likewise; truths with a
    side, answers that agree with it, answers that contradict it; answers that deny what the truth affirms or affirm
    what it denies."""
    lexicon = rules.lexicon
    describing = tuple(dict.fromkeys((*lexicon.sizes, *lexicon.brightness, *DESCRIBING)))
    read: dict[str, tuple[set[str], set[str]]] = {}  # a truth is held against many answers
    rows = np.zeros((len(items), 11))
    for row, item in zip(rows, items, strict=True):
        truth, answer = item.sample.answer.words, item.answer.answer.words
        for text in (truth, answer):
            if text not in read:
                read[text] = set(listed(text, lexicon.names)), set(listed(text, describing))
        shared = (n for w, s in zip(read[truth], read[answer], strict=True) for n in (len(w & s), len(s), len(w)))
        clash, side = conflicts(answer, truth), sides(truth)
        against = "laterality" in clash
        agree = side == sides(answer) and not against
        row[:] = 1, *shared, bool(side), bool(side) and agree, bool(side) and against, "negation" in clash
    return rows


def _claim_figures(sums: Counts) -> Counts:
    answers, *shared, sided, agree, against, denied = np.moveaxis(sums, -1, 0)
    f1 = [_share(2 * both, said + truth) for both, said, truth in (shared[:3], shared[3:])]
    return np.stack([*f1, _share(agree, sided), _share(against, sided), _share(denied, answers)], axis=-1)


CLASS = "Class F1"
# What can be judged where the data state no facts: the classes and the describing words that a text affirms, and sides.
# A side that is left out agrees with none and contradicts none.
CLAIMS = Measure(
    (Task.RC, Task.MIA),
    (CLASS, "Attribute F1", "Laterality agreement", "Laterality conflicts", "Negation conflicts"),
    _count_claims,
    _claim_figures,
)


# ---- QA: yes or no, short and longer answers ------------------------------------------------------------------------

SHORT = 3  # words of a truth that is to be met exactly; longer ones are told by their words, as VQA-RAD's open ones are


def _count_answers(items: Sequence[Item], rules: Rules) -> Counts:
    """Columns: answers, yes/no questions, right ones; then for short and for longer truths: questions, equal answers,
    summed recall of truth words, summed F1 of words."""
    rows = np.zeros((len(items), 11))
    for row, item in zip(rows, items, strict=True):
        truth, answer = normalise(item.sample.answer.words), normalise(item.answer.answer.words)
        row[0] = 1
        if truth in ("yes", "no"):
            row[1:3] = 1, particle(answer) == truth
        else:
            wanted, said = Counter(truth.split()), Counter(answer.split())
            both = (wanted & said).total()
            kind = 3 if wanted.total() <= SHORT else 7
            f1 = 2 * both / max(1, wanted.total() + said.total())
            row[kind : kind + 4] = 1, answer == truth, both / max(1, wanted.total()), f1
    return rows


def particle(answer: str) -> str | None:
    """ "yes" or "no" where a normalised answer says so: by its first word, else by the only one of the two in it. Who
    says "yes or no" says neither."""
    words = answer.split()
    said = {"yes", "no"} & set(words)
    if len(said) == 2 and set(words) <= {"yes", "no", "or", "and"}:
        return None
    return words[0] if words[:1] in (["yes"], ["no"]) else said.pop() if len(said) == 1 else None


def _answer_figures(sums: Counts) -> Counts:
    answers, closed, right = np.moveaxis(sums[..., :3], -1, 0)
    short, longer = sums[..., 3:7], sums[..., 7:]
    opened = short + longer
    parts = [_share(right + opened[..., 1], answers), _share(right, closed)]
    for of, columns in ((opened, (1, 2, 3)), (short, (1, 2)), (longer, (2, 3))):
        parts += [_share(of[..., c], of[..., 0]) for c in columns]
    return np.stack(parts, axis=-1)


ANSWERS = Measure(
    (Task.QA,),
    (
        *("Accuracy", "Yes/no accuracy", "Open accuracy", "Open recall of words", "Open F1 of words"),
        *("Short accuracy", "Short recall of words", "Long recall of words", "Long F1 of words"),
    ),
    _count_answers,
    _answer_figures,
)


# ---- all tasks: what could not be judged as it stands ---------------------------------------------------------------


def _count_flaws(items: Sequence[Item], rules: Rules) -> Counts:
    """Columns: answers, cut by the length limit, with an unreadable box, empty, to a truth with a box, those of these
    without one that could be read."""
    rows = np.zeros((len(items), 6))
    for row, (sample, said) in zip(rows, items, strict=True):
        asked = bool(sample.answer.boxes)
        row[:4] = 1, said.truncated, bool(said.unread), not said.answer.text.strip()
        row[4:] = asked, asked and not said.answer.boxes
    return rows


def _flaw_figures(sums: Counts) -> Counts:
    answers, cut, unread, empty, asked, boxless = np.moveaxis(sums, -1, 0)
    return np.stack([*(_share(x, answers) for x in (cut, unread, empty)), _share(boxless, asked)], axis=-1)


FLAWS = Measure(
    tuple(Task), ("Truncated", "Unread boxes", "Empty", "No box where one was asked for"), _count_flaws, _flaw_figures
)  # fmt: skip

MEASURES = (BOXES, NAMES, CAPTIONS, FACT_TUPLES, SPICE, CLAIMS, ANSWERS, FLAWS)


def measures(spice: Literal["headline", "all"]) -> tuple[Measure, ...]:
    """All, with SPICE for the task that it is the headline of, or for every task of captions."""
    tasks = SPICE.tasks if spice == "headline" else CAPTIONS.tasks
    return tuple(replace(m, tasks=tasks) if m is SPICE else m for m in MEASURES)

"""The papers' own scoring, reproduced with its faults, so that printed numbers can be compared (PAPER.md lists them).

It rewards (measured) thousands of boxes all over the image, "this is not the X", every class name listed at once. It
punishes boxes spelled `[x1, y1, x2, y2]`, and corners in the other order. The strict scores use nothing from here.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from clinkd.data.codecs import make_codec
from clinkd.records import BadInput, Candidate, Task
from clinkd.scoring.bootstrap import draw_group_weights, mean_over_keys, percentile_intervals, replicate, widen_points
from clinkd.scoring.captions import (
    COLUMNS,
    Caption,
    CaptionScorer,
    Counts,
    NotComputed,
    Sums,
    by_column,
    caption_figures,
)
from clinkd.scoring.intervals import scale_interval, share_interval
from clinkd.scoring.measure import SAME_TRUTHS, Ratio, make_ratio
from clinkd.scoring.outcome import Figures, Outcome
from clinkd.scoring.score import MODEL
from clinkd.scoring.spice import SPICE_COLUMNS, FailedPair, spice_counts

# x1, y1, x2, y2 in thousandths; the corners come in any order, since the scripts do not check it
Rectangle = tuple[int, int, int, int]

_BETWEEN_NEWLINES = re.compile(r"\n(.*?)\n")
_TAGGED_BOX = re.compile(r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")
_BARE_BOX = re.compile(r"\((\d+),(\d+)\),\((\d+),(\d+)\)")

METRICS = {Task.VG: "Recall", Task.ROC: "Recall", Task.RC: "SPICE", Task.MIA: "mBMR", Task.QA: "Accuracy"}
# The scripts' own names of figures of captions, where they differ from ours; they also print CIDEr.
PARTS = {**{f"BLEU-{n}": f"Bleu_{n}" for n in (1, 2, 3, 4)}, "ROUGE-L": "ROUGE_L"}
_RELEASED_CODEC = make_codec("qwen-vl")


@dataclass(frozen=True, slots=True)
class ReleasedAnswer:
    """One line of the released prediction files: `annotation` is the truth, `response` the model's raw answer."""

    id: str
    image: str
    annotation: str
    response: str
    group: str = ""  # the patient, where one is known; intervals are over these, else over images

    @property
    def modality(self) -> str:
        """The file name up to its first "_": `x` for X-ray, as the scripts print it."""
        return self.image.rsplit("/", 1)[-1].split("_", 1)[0]


def clean_released_answer(response: str) -> str:
    """The scripts' clean-up of an answer. It keeps only what stands between two newlines: paragraphs are lost."""
    if ".<|im_end|>" in response:
        response = response.split(".<|im_end|>", 1)[0] + "."
    response = response.replace("<|im_end|>\n", "")
    if between := _BETWEEN_NEWLINES.search(response):
        response = between.group(1)
    return response.replace("<|endoftext|>", "").strip()


def boxes(text: str) -> list[Rectangle]:
    """The boxes in `<box>` tags; where there is none, every bare `(d,d),(d,d)`."""
    matches = _TAGGED_BOX.findall(text) or _BARE_BOX.findall(text)
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in matches]


def count_boxes(row: ReleasedAnswer) -> tuple[int, int]:
    """VG: the truth boxes, and those that any answered box meets with IoU > 0.5. Spare boxes are free."""
    truth, answer = boxes(row.annotation), boxes(clean_released_answer(row.response))
    return len(truth), sum(any(_iou(t, a) > 0.5 for a in answer) for t in truth)


def count_classes(row: ReleasedAnswer) -> tuple[int, int]:
    """ROC: 1, and whether the answer contains, anywhere, each white-space token of the truth, in lower case."""
    answer = clean_released_answer(row.response).lower()
    return 1, int(all(word in answer for word in row.annotation.lower().split()))


def as_released_text(answer: Candidate) -> str:
    """An answer with its boxes as the scripts read them; its raw text where its words would be read as boxes."""
    try:
        return _RELEASED_CODEC.encode(answer.answer)
    except BadInput:
        return answer.raw


# ---- a file of answers ----------------------------------------------------------------------------------------------

_HIT_COLUMNS = ("items", "hits")


def evaluate(
    rows: Sequence[ReleasedAnswer],
    task: Task,
    replicates: int = 1000,
    captions: CaptionScorer | None = None,
    baselines: Mapping[str, Sequence[ReleasedAnswer]] | None = None,
) -> Outcome:
    """Score answers to one task as the scripts do, and the answers of image-blind baselines. What cannot be computed
    has a reason, and no number.

    The scripts have no interval: ours is of the mean over modalities. `captions`: the scorer of
    captions; without it the function starts its own.
    """
    totals, metric = Counter(row.modality for row in rows), METRICS[task]
    outcome = Outcome("official", task, metric, totals, unparsed=_count_unparsed(rows, task), answers=len(rows))
    if task is Task.QA:
        return replace(outcome, why="the papers' scripts know no free questions; see mode strict")
    blind: Figures = {}
    with CaptionScorer.opened(captions) as scorer:
        for name, blind_rows in (baselines or {}).items():
            with contextlib.suppress(NotComputed):
                blind[name, metric, None] = _count_answers(blind_rows, task, scorer).mean
        try:
            counted = _count_answers(rows, task, scorer)
        except NotComputed as reason:
            return replace(outcome, figures=blind, why=str(reason))
        caption_figures_by_modality = _compute_caption_figures(counted, scorer) if task is Task.MIA else {}
    has_cider = task is not Task.MIA or (MODEL, "CIDEr", None) in caption_figures_by_modality
    return replace(
        outcome,
        not_computed={} if has_cider else {"CIDEr": f"in a modality {SAME_TRUTHS}"},
        totals={m: int(sums[counted.columns[0]]) for m, sums in counted.sums_by_modality.items()},
        figures={
            **blind,
            **caption_figures_by_modality,
            (MODEL, metric, None): counted.mean,
            **{(MODEL, metric, m): 100 * score for m, score in counted.scores.items()},
        },
        hits={m: int(sums["hits"]) for m, sums in counted.sums_by_modality.items() if "hits" in sums},
        interval=counted.compute_interval(replicates),
    )


@dataclass(frozen=True)
class _CountedAnswers:
    """[N, C] counts of each answer by named columns; any sum of them has a score. The first column counts the items:
    truth boxes for VG, else answers."""

    rows: Sequence[ReleasedAnswer]
    counts: Counts
    columns: tuple[str, ...]
    score: Callable[[Sums], Counts]  # [...] 0..1 of [...] sums by column

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """The answers of each modality, without those that have no item."""
        places: dict[str, list[int]] = defaultdict(list)
        for place in np.flatnonzero(self.counts[:, 0]).tolist():
            places[self.rows[place].modality].append(place)
        return places

    @cached_property
    def sums_by_modality(self) -> dict[str, Sums]:
        return {m: by_column(self.columns, self.counts[places].sum(0)) for m, places in self.places.items()}

    @cached_property
    def scores(self) -> dict[str, float]:
        """0..1, by modality."""
        return {m: float(self.score(sums)) for m, sums in self.sums_by_modality.items()}

    @property
    def mean(self) -> float:
        """x100, over the modalities with items. (The scripts divide by 8 always; the papers' own means do not.)"""
        return 100 * sum(self.scores.values()) / len(self.scores)

    def compute_interval(self, replicates: int) -> tuple[float, float] | None:
        """95 %, x100, of the mean over modalities with items: of a share by its score interval, else by bootstrap over
        patients or images, with all their answers. None for a single one, and for under two replicates."""
        names = [row.group or row.image for row in self.rows]
        code = {name: i for i, name in enumerate(sorted(set(names)))}
        if replicates < 2 or len(code) < 2:
            return None
        groups, num_groups = np.array([code[name] for name in names]), len(code)
        sums_GKC = np.zeros((num_groups, len(self.places), self.counts.shape[1]))
        for k, places in enumerate(self.places.values()):
            np.add.at(sums_GKC[:, k], groups[places], self.counts[places])
        if isinstance(self.score, Ratio):
            sums = by_column(self.columns, sums_GKC.swapaxes(0, 1))
            return scale_interval(share_interval(self.score.part(sums), self.score.whole(sums), self.score.binary))

        def mean(sums_RKC: Counts) -> Counts:
            return mean_over_keys(self.score(by_column(self.columns, sums_RKC)), 1)[:, None]

        weights = draw_group_weights(np.random.default_rng([0, num_groups]), num_groups, replicates)
        number = np.array([num_groups])
        ends_12 = percentile_intervals(replicate(mean, sums_GKC, weights), number)
        [[ends]] = widen_points(np.array([[self.mean / 100]]), ends_12[:, None], number)
        return scale_interval(ends)


def _count_answers(rows: Sequence[ReleasedAnswer], task: Task, scorer: CaptionScorer) -> _CountedAnswers:
    """Raises NotComputed where Java or SPICE cannot run, naming the row that SPICE fails on, and where no truth has an
    item."""
    if task is Task.MIA:
        counts = scorer.counts([_make_caption(row) for row in rows])
        return _CountedAnswers(rows, counts, COLUMNS, lambda sums: caption_figures(sums)[METRICS[Task.MIA]])
    if task is Task.RC:
        try:
            counts = spice_counts([_make_caption(row) for row in rows], scorer)
        except FailedPair as failed:
            raise NotComputed(f"prediction {rows[failed.place].id}: {failed}") from None
        return _CountedAnswers(rows, counts, SPICE_COLUMNS, make_ratio("F-score", "answers", binary=False))
    count = count_boxes if task is Task.VG else count_classes
    counts = np.array([count(row) for row in rows], dtype=np.float64).reshape(len(rows), len(_HIT_COLUMNS))
    if not counts.any():
        raise NotComputed("no truth has a box, so there is none to be found")
    return _CountedAnswers(rows, counts, _HIT_COLUMNS, make_ratio("hits", "items"))


def _make_caption(row: ReleasedAnswer) -> Caption:
    return Caption(clean_released_answer(row.response), (row.annotation,))


def _compute_caption_figures(counted: _CountedAnswers, scorer: CaptionScorer) -> Figures:
    """MIA: what the scripts print beside the score, for each modality and in the mean over them. CIDEr is left out
    where a modality has a single truth: they print 0 there, also for a perfect answer."""
    figures: Figures = {}
    for modality, places in counted.places.items():
        values = dict(caption_figures(counted.sums_by_modality[modality]))
        cider = scorer.cider([_make_caption(counted.rows[i]) for i in places])
        values |= {} if cider is None else {"CIDEr": cider.mean()}
        for name, value in values.items():
            figures[MODEL, PARTS.get(name, name), modality] = 100 * float(value)
    for name in dict.fromkeys(name for _, name, _ in figures):
        by_modality = [figures[MODEL, name, m] for m in counted.places if (MODEL, name, m) in figures]
        if len(by_modality) == len(counted.places):  # a mean over some of them would be another figure
            figures[MODEL, name, None] = sum(by_modality) / len(by_modality)
    return figures


def _count_unparsed(rows: Sequence[ReleasedAnswer], task: Task) -> int:
    """Answers to VG in which the scripts find no box, where the truth has one."""
    if task is not Task.VG:
        return 0
    return sum(bool(boxes(row.annotation)) and not boxes(clean_released_answer(row.response)) for row in rows)


def _iou(a: Rectangle, b: Rectangle) -> float:
    """Corners are taken as written, so a box with swapped corners has no area in common with anything."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

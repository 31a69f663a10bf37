"""The papers' own scoring, reproduced with its faults, so that printed numbers can be compared (PAPER.md lists them).

What it rewards (measured): thousands of sprayed boxes, "this is not the X", every class name listed at once. What it
punishes: boxes spelled `[x1, y1, x2, y2]`, corners the other way round. Nothing here is used by the strict scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from clinkd.data.codecs import make_codec
from clinkd.records import BadInput, Candidate, Task
from clinkd.scoring.captions import (
    COLUMNS,
    Caption,
    CaptionScorer,
    CaptionScores,
    NotComputed,
    Sums,
    by_column,
    caption_figures,
)
from clinkd.scoring.outcome import Outcome, Share
from clinkd.scoring.spice import SPICE_COLUMNS, FailedPair, spice_counts

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in thousandths, corners in any order: the scripts do not look

_BETWEEN_NEWLINES = re.compile(r"\n(.*?)\n")
_TAGGED_BOX = re.compile(r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")
_BARE_BOX = re.compile(r"\((\d+),(\d+)\),\((\d+),(\d+)\)")

METRICS = {Task.VG: "Recall", Task.ROC: "Recall", Task.RC: "SPICE", Task.MIA: "mBMR"}
# Figures of captions as the scripts print them, where they write them otherwise; CIDEr stands beside them.
PARTS = {**{f"BLEU-{n}": f"Bleu_{n}" for n in (1, 2, 3, 4)}, "ROUGE-L": "ROUGE_L"}
_SPELLED = make_codec("qwen-vl")
_CHUNK = 64  # replicates worked out together

Counts = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReleasedAnswer:
    """One line of the released prediction files: `annotation` is the truth, `response` the model's raw answer."""

    id: str
    image: str
    annotation: str
    response: str

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises BadInput where a field is missing."""
        missing = [k for k in ("image", "annotation", "response") if k not in value]
        if missing:
            raise BadInput(f"prediction {value.get('id', '?')}: no field {missing[0]!r}; each line needs one")
        return cls(str(value.get("id", "")), str(value["image"]), str(value["annotation"]), str(value["response"]))

    @property
    def modality(self) -> str:
        """The file name up to its first "_": `x` for X-ray, as the scripts print it."""
        return self.image.rsplit("/", 1)[-1].split("_", 1)[0]


@dataclass(frozen=True, slots=True)
class Hits:
    """Items found, of how many."""

    hits: int
    total: int


def clean_released_answer(response: str) -> str:
    """The scripts' clean-up of an answer. It keeps only what stands between two newlines: paragraphs are lost."""
    if ".<|im_end|>" in response:
        response = response.split(".<|im_end|>", 1)[0] + "."
    response = response.replace("<|im_end|>\n", "")
    if between := _BETWEEN_NEWLINES.search(response):
        response = between.group(1)
    return response.replace("<|endoftext|>", "").strip()


def boxes(text: str) -> list[Rectangle]:
    """Boxes in `<box>` tags; only where there is none, every bare `(d,d),(d,d)`."""
    found = _TAGGED_BOX.findall(text) or _BARE_BOX.findall(text)
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in found]


def grounding(rows: Iterable[ReleasedAnswer]) -> dict[str, Hits]:
    """VG: truth boxes that any answered box meets with IoU > 0.5, by modality. Spare boxes are free."""
    found: dict[str, Hits] = {}
    for row in rows:
        truth, answer = boxes(row.annotation), boxes(clean_released_answer(row.response))
        hits = sum(any(_iou(t, a) > 0.5 for a in answer) for t in truth)
        _add(found, row.modality, hits, len(truth))
    return found


def classification(rows: Iterable[ReleasedAnswer]) -> dict[str, Hits]:
    """ROC: answers that contain, anywhere, each white-space token of the truth, in lower case; by modality."""
    found: dict[str, Hits] = {}
    for row in rows:
        answer = clean_released_answer(row.response).lower()
        _add(found, row.modality, int(all(word in answer for word in row.annotation.lower().split())), 1)
    return found


def captioning(rows: Iterable[ReleasedAnswer], scorer: CaptionScorer) -> dict[str, CaptionScores]:
    """MIA: BLEU, METEOR and ROUGE-L of each modality as one corpus. Raises NotComputed where Java is missing."""
    corpora: dict[str, list[Caption]] = {}
    for row in rows:
        corpora.setdefault(row.modality, []).append(Caption(clean_released_answer(row.response), (row.annotation,)))
    return scorer.scores(corpora)


def spice_by_modality(rows: Iterable[ReleasedAnswer], scorer: CaptionScorer) -> dict[str, float]:
    """RC: the mean SPICE (0..1) of each modality's answers. Raises NotComputed where SPICE cannot run, naming the row
    that it fails on."""
    rows = list(rows)
    counted = _spice_counts(rows, scorer)
    places = _places(rows, Task.RC, counted)
    return {m: float(counted.score(counted.summed(own))) for m, own in places.items()}


def mean_over_modalities(values: Iterable[float]) -> float:
    """x100, over the modalities that have items. (The scripts divide by 8 always; the papers' own means do not.)"""
    values = list(values)
    return 100 * sum(values) / len(values)


def as_released_text(answer: Candidate) -> str:
    """An answer with its boxes as the scripts read them; as it was written where its words would be taken for boxes."""
    try:
        return _SPELLED.encode(answer.answer)
    except BadInput:
        return answer.raw


# ---- a file of answers ----------------------------------------------------------------------------------------------


class _AnswerCounts(NamedTuple):
    """[N, C] counts of each answer by named columns, of which any sum has a score."""

    counts: Counts
    columns: tuple[str, ...]
    score: Callable[[Sums], Counts]  # [...] 0..1 of [...] sums by column

    def summed(self, places: Sequence[int]) -> Sums:
        """Of those answers."""
        return by_column(self.columns, self.counts[list(places)].sum(0))


_HIT_COLUMNS = ("hits", "items")


def evaluate(
    rows: Sequence[ReleasedAnswer], task: Task, replicates: int = 1000, captions: CaptionScorer | None = None
) -> Outcome:
    """Score answers to one task as the scripts do; what cannot be computed has a reason, and no number.

    The interval is ours: bootstrap by image of the mean over modalities. `captions`: counts captions, if not one of
    its own.
    """
    if task is Task.QA:
        return _without(rows, task, "Accuracy", "the papers' scripts know no free questions; see mode strict")
    with CaptionScorer.opened(captions) as scorer:
        try:
            counted = _counted(rows, task, scorer)
        except NotComputed as reason:
            return _without(rows, task, METRICS[task], str(reason))
        places = _places(rows, task, counted)
        if not places:
            return _without(rows, task, METRICS[task], "no truth has a box, so there is none to be found")
        shares = _shares(rows, task, counted, places, scorer)
    names = shares[next(iter(shares))].parts
    parts = {name: sum(share.parts[name] for share in shares.values()) / len(shares) for name in names}
    interval = _interval(rows, counted, places, replicates)
    score = _mean(counted, places)
    return Outcome(
        "official", task, METRICS[task], score, shares, parts, _unparsed(rows, task), interval, answers=len(rows)
    )


def score_of(rows: Sequence[ReleasedAnswer], task: Task, captions: CaptionScorer | None = None) -> float | None:
    """The score alone, of a blind twin; None where it cannot be computed."""
    if task is Task.QA:
        return None
    with CaptionScorer.opened(captions) as scorer:
        try:
            counted = _counted(rows, task, scorer)
        except NotComputed:
            return None
    places = _places(rows, task, counted)
    return _mean(counted, places) if places else None


def _places(rows: Sequence[ReleasedAnswer], task: Task, counted: _AnswerCounts) -> dict[str, list[int]]:
    """The answers of each modality; those to a truth without a box are none of VG's."""
    found: dict[str, list[int]] = {}
    columns = by_column(counted.columns, counted.counts)
    for place, row in enumerate(rows):
        if task is not Task.VG or columns["items"][place]:
            found.setdefault(row.modality, []).append(place)
    return found


def _mean(counted: _AnswerCounts, places: Mapping[str, Sequence[int]]) -> float:
    return mean_over_modalities(float(counted.score(counted.summed(own))) for own in places.values())


def _counted(rows: Sequence[ReleasedAnswer], task: Task, scorer: CaptionScorer) -> _AnswerCounts:
    if task is Task.MIA:
        return _caption_counts(rows, scorer)
    return _spice_counts(rows, scorer) if task is Task.RC else _hit_counts(rows, task)


def _hit_counts(rows: Sequence[ReleasedAnswer], task: Task) -> _AnswerCounts:
    find = grounding if task is Task.VG else classification
    hits = [next(iter(find([row]).values()), Hits(0, 0)) for row in rows]
    counts = np.array([[h.hits, h.total] for h in hits], dtype=np.float64).reshape(len(rows), len(_HIT_COLUMNS))
    return _AnswerCounts(counts, _HIT_COLUMNS, lambda sums: _divided(sums["hits"], sums["items"]))


def _divided(part: Counts, whole: Counts) -> Counts:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(part / whole)


def _caption_counts(rows: Sequence[ReleasedAnswer], scorer: CaptionScorer) -> _AnswerCounts:
    counts = scorer.counts([_caption(row) for row in rows])
    return _AnswerCounts(counts, COLUMNS, lambda sums: caption_figures(sums)["mBMR"])


def _caption(row: ReleasedAnswer) -> Caption:
    return Caption(clean_released_answer(row.response), (row.annotation,))


def _shares(
    rows: Sequence[ReleasedAnswer],
    task: Task,
    counted: _AnswerCounts,
    places: Mapping[str, Sequence[int]],
    scorer: CaptionScorer,
) -> dict[str, Share]:
    sums = {m: counted.summed(own) for m, own in places.items()}
    scores = {m: 100 * float(counted.score(s)) for m, s in sums.items()}
    if task is Task.RC:
        return {m: Share(len(own), scores[m]) for m, own in places.items()}
    if task is not Task.MIA:
        return {m: Share(int(s["items"]), scores[m], int(s["hits"])) for m, s in sums.items()}
    weighed = scorer.cider({m: [_caption(rows[i]) for i in own] for m, own in places.items()})
    shares = {}
    for m, own in places.items():
        figures = caption_figures(sums[m])
        parts = {PARTS.get(name, name): 100 * float(v) for name, v in figures.items() if name != "mBMR"}
        shares[m] = Share(len(own), scores[m], parts=parts | {"CIDEr": 100 * weighed[m]})
    return shares


def _spice_counts(rows: Sequence[ReleasedAnswer], scorer: CaptionScorer) -> _AnswerCounts:
    """Raises NotComputed where SPICE cannot run, naming the row that it fails on."""
    try:
        counts = spice_counts([_caption(row) for row in rows], scorer)
    except FailedPair as failed:
        raise NotComputed(f"prediction {rows[failed.place].id}: {failed}") from None
    return _AnswerCounts(counts, SPICE_COLUMNS, lambda sums: _divided(sums["F-score"], sums["answers"]))


def _without(rows: Sequence[ReleasedAnswer], task: Task, metric: str, why: str) -> Outcome:
    shares = {m: Share(n, None) for m, n in _totals(rows).items()}
    return Outcome("official", task, metric, None, shares, {}, _unparsed(rows, task), why=why, answers=len(rows))


def _totals(rows: Sequence[ReleasedAnswer]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        found[row.modality] = found.get(row.modality, 0) + 1
    return found


def _unparsed(rows: Sequence[ReleasedAnswer], task: Task) -> int:
    """Answers to VG in which the scripts find no box, where the truth has one."""
    if task is not Task.VG:
        return 0
    return sum(bool(boxes(row.annotation)) and not boxes(clean_released_answer(row.response)) for row in rows)


def _interval(
    rows: Sequence[ReleasedAnswer], counted: _AnswerCounts, places: Mapping[str, Sequence[int]], replicates: int
) -> tuple[float, float] | None:
    """95 %, x100: images are drawn, with all their answers, and the mean over modalities with items is taken anew."""
    if replicates < 2:
        return None
    code = {image: i for i, image in enumerate(sorted({row.image for row in rows}))}
    groups = np.array([code[row.image] for row in rows])
    by_image = {}  # an image is of one modality, since its name tells it
    for modality, own in places.items():
        images, at = np.unique(groups[list(own)], return_inverse=True)
        sums = np.zeros((len(images), counted.counts.shape[1]))
        np.add.at(sums, at, counted.counts[list(own)])
        by_image[modality] = images, sums
    rng = np.random.default_rng([0, len(code)])
    drawn: list[Counts] = []
    for start in range(0, replicates, _CHUNK):
        few = min(_CHUNK, replicates - start)
        weights = np.array(
            [np.bincount(rng.integers(len(code), size=len(code)), minlength=len(code)) for _ in range(few)]
        )
        drawn_sums = (by_column(counted.columns, weights[:, images] @ sums) for images, sums in by_image.values())
        figures = np.array([counted.score(sums) for sums in drawn_sums])
        some = ~np.isnan(figures)
        with np.errstate(invalid="ignore"):
            drawn.append(np.where(some, figures, 0.0).sum(0) / some.sum(0))
    low, high = np.nanpercentile(np.concatenate(drawn), [2.5, 97.5])
    return 100 * float(low), 100 * float(high)


def _add(found: dict[str, Hits], modality: str, hits: int, total: int) -> None:
    if total:
        old = found.get(modality, Hits(0, 0))
        found[modality] = Hits(old.hits + hits, old.total + total)


def _iou(a: Rectangle, b: Rectangle) -> float:
    """Corners are taken as written, so a box with swapped corners has no area in common with anything."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

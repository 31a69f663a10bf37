"""The papers' own scoring, reproduced with its faults, so that printed numbers can be compared (PAPER.md lists them).

What it rewards (measured): thousands of sprayed boxes, "this is not the X", every class name listed at once. What it
punishes: boxes spelled `[x1, y1, x2, y2]`, corners the other way round. Nothing here is used by the strict scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from clinkd.evaluation.captions import Caption, CaptionScores, NotComputed, caption_scores
from clinkd.evaluation.spice import FailedPair, spice_counts
from clinkd.records import BadInput

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in thousandths, corners in any order: the scripts do not look

_BETWEEN_NEWLINES = re.compile(r"\n(.*?)\n")
_TAGGED_BOX = re.compile(r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")
_BARE_BOX = re.compile(r"\((\d+),(\d+)\),\((\d+),(\d+)\)")


@dataclass(frozen=True, slots=True)
class Answered:
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

    @property
    def share(self) -> float:
        return self.hits / self.total


def clean(response: str) -> str:
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


def grounding(rows: Iterable[Answered]) -> dict[str, Hits]:
    """VG: truth boxes that any answered box meets with IoU > 0.5, by modality. Spare boxes are free."""
    found: dict[str, Hits] = {}
    for row in rows:
        truth, answer = boxes(row.annotation), boxes(clean(row.response))
        hits = sum(any(_iou(t, a) > 0.5 for a in answer) for t in truth)
        _add(found, row.modality, hits, len(truth))
    return found


def classification(rows: Iterable[Answered]) -> dict[str, Hits]:
    """ROC: answers that contain, anywhere, each white-space token of the truth, in lower case; by modality."""
    found: dict[str, Hits] = {}
    for row in rows:
        answer = clean(row.response).lower()
        _add(found, row.modality, int(all(word in answer for word in row.annotation.lower().split())), 1)
    return found


def captioning(rows: Iterable[Answered]) -> dict[str, CaptionScores]:
    """MIA: BLEU, METEOR and ROUGE-L of each modality as one corpus. Raises NotComputed where Java is missing."""
    corpora: dict[str, list[Caption]] = {}
    for row in rows:
        corpora.setdefault(row.modality, []).append(Caption(clean(row.response), (row.annotation,)))
    return caption_scores(corpora)


def spice_by_modality(rows: Iterable[Answered]) -> dict[str, float]:
    """RC: the mean SPICE (0..1) of each modality's answers. Raises NotComputed where SPICE cannot run, naming the row
    that it fails on."""
    rows = list(rows)
    try:
        scores = spice_counts([Caption(clean(row.response), (row.annotation,)) for row in rows])[:, 1]
    except FailedPair as failed:
        raise NotComputed(f"prediction {rows[failed.place].id}: {failed}") from None
    found: dict[str, list[float]] = {}
    for row, score in zip(rows, scores, strict=True):
        found.setdefault(row.modality, []).append(float(score))
    return {modality: sum(values) / len(values) for modality, values in found.items()}


def mean_over_modalities(values: Iterable[float]) -> float:
    """x100, over the modalities that have items. (The scripts divide by 8 always; the papers' own means do not.)"""
    values = list(values)
    return 100 * sum(values) / len(values)


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

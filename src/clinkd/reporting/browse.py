"""Every answered question as data for the page's script, within a size that can be mailed."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clinkd.data.images import open_image
from clinkd.records import BadInput, Box, Candidate, ImageRef, Modality, Prediction, Sample, Task
from clinkd.reporting.tables import SCORERS, TITLES
from clinkd.reporting.viewer.shot import Picture, thumbnail
from clinkd.scoring.metrics import PRIMARY_METRIC, list_shown_metrics
from clinkd.storage import progress

PAGE_BYTES = 24_000_000  # of the whole page, at most
_TEXT_BYTES = 9_000_000  # of these, texts and scores of the questions
_REST_BYTES = 1_500_000  # of these, tables, charts and corrections
MOST = 6_000  # questions that are looked at for a page at all
_LADDER = ((448, 82), (384, 80), (320, 78), (288, 74), (256, 70), (224, 66), (192, 62), (160, 58))  # pixels, quality
_PROBE_PICTURES = 24  # pictures that are encoded to estimate the size of all
_SIZE_MARGIN = 1.06  # factor on the estimate, for safety
_NO_PICTURES = (
    "No pictures: only the names of the images are known. Boxes lie on a blank; --images FOLDER shows the pictures."
)
Shown = Callable[[str], str]


class AnsweredSample(NamedTuple):
    """A question of a test set with its answer: its number there from 1, whether it is right (None: not judged), and
    the figures of this one answer by metric, 0..1."""

    number: int
    sample: Sample
    prediction: Prediction
    right: bool | None
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PageContent:
    """The part that the page shows: script data, pictures by image, and notes on what was left out or reduced."""

    data: dict[str, Any]
    answered: Sequence[AnsweredSample]
    pictures: Mapping[ImageRef, Picture]
    notes: Sequence[str]

    def number_pictures(self) -> dict[ImageRef, int]:
        """The place of each picture among those of the script's data."""
        places = {
            item.sample.images[0]: entry["p"] for item, entry in zip(self.answered, self.data["samples"], strict=True)
        }
        return {image: places[image] for image in self.pictures}


def choose_evenly(answered: Sequence[AnsweredSample], most: int) -> list[AnsweredSample]:
    """At most `most` questions, spread evenly over tasks and modalities and evenly within each, in their order."""
    piles: dict[tuple[Task, Modality], list[AnsweredSample]] = defaultdict(list)
    for item in answered:
        piles[item.sample.task, item.sample.modality].append(item)
    kept: list[AnsweredSample] = []
    left = most
    for pile_number, pile in enumerate(sorted(piles.values(), key=len)):  # a small pile leaves its rest to larger ones
        count = min(len(pile), left // (len(piles) - pile_number))
        kept += [pile[k * len(pile) // count] for k in range(count)]
        left -= count
    return sorted(kept, key=lambda item: item.number)


def select_for_page(
    answered: Sequence[AnsweredSample],
    root: Path | None,
    shown: Shown,
    most_bytes: int = PAGE_BYTES,
    lenient: bool = False,
) -> PageContent:
    """Choose as many questions as fit into `most_bytes`, with pictures as large as the remaining space allows.

    Without a `root` boxes lie on a blank in the place of each picture. Every text passes `shown`. Raises BadInput on an
    unreadable image; `lenient`: a blank and a note take its place.
    """
    opener = _PictureOpener(root or Path(), lenient)
    records = _build_page_records(choose_evenly(answered, MOST), shown)
    kept = _fit_text(records, min(_TEXT_BYTES, most_bytes // 2))
    picture_bytes = most_bytes - _REST_BYTES - sum(records[item.number].size for item in kept)
    images = _list_images(kept) if root is not None else []
    with progress(len(images), "pictures of the page", "images") as advance:
        sizes = _estimate_picture_bytes(opener, images)
        rung = next((i for i, size in enumerate(sizes) if size * len(images) <= picture_bytes), len(_LADDER))
        if rung == len(_LADDER):
            rung -= 1
            kept = _fit(kept, lambda items: len(_list_images(items)), max(1, int(picture_bytes / sizes[-1])))
            images = _list_images(kept)
        pictures = _encode_pictures(opener, images, *_LADDER[rung], advance)
    # if the estimate was too small, go down one rung
    while sum(len(p.uri) for p in pictures.values()) > picture_bytes and rung + 1 < len(_LADDER):
        rung += 1
        pictures = _encode_pictures(opener, images, *_LADDER[rung], lambda n: None)
    index = {image: i for i, image in enumerate(_list_images(kept))}
    samples = [{**records[item.number].value, "p": index[item.sample.images[0]]} for item in kept]
    entries = [
        [p.uri, p.width, p.height] if (p := pictures.get(image)) else [None, image.width or 4, image.height or 3]
        for image in index
    ]
    notes = [_describe_selection(kept, answered), _describe_picture_size(pictures, *_LADDER[rung])]
    notes.append(_NO_PICTURES if root is None else _describe_missing_pictures(kept, opener.problems, len(images)))
    data = _build_page_data(samples, entries, [shown(s) for s in _list_sources(kept)])
    return PageContent(data, kept, pictures, [n for n in notes if n])


def select_without_text(answered: Sequence[AnsweredSample], most_bytes: int = PAGE_BYTES) -> PageContent:
    """Select scores and boxes alone: no picture, and no text of people or models."""
    records = _build_page_records(choose_evenly(answered, MOST), None)
    kept = _fit_text(records, most_bytes - _REST_BYTES)
    shapes: dict[tuple[int, int], int] = {}
    samples = []
    for item in kept:
        image = item.sample.images[0]
        shape = _round_shape(image.width or 1, image.height or 1)
        samples.append({**records[item.number].value, "p": shapes.setdefault(shape, len(shapes))})
    notes = [_describe_selection(kept, answered), "Boxes and scores alone: no images, no questions, no answers."]
    return PageContent(_build_page_data(samples, [[None, *s] for s in shapes], []), kept, {}, notes)


def _round_shape(width: int, height: int) -> tuple[int, int]:
    """Width and height in small numbers: exact sizes of a collection can tell which one it is."""
    longer = max(width, height)
    return max(1, round(16 * width / longer)) * 20, max(1, round(16 * height / longer)) * 20


def _build_page_data(samples: list[dict[str, Any]], pictures: list[Any], sources: list[str]) -> dict[str, Any]:
    return {
        "pictures": pictures,
        "modalities": {m.value: TITLES[m] for m in Modality},
        "sources": sources,
        "first": {t.value: _list_question_metrics(t) for t in Task},
        "samples": samples,
    }


def _list_question_metrics(task: Task) -> list[str]:
    """The metrics that are shown for a single answer, the primary metric first."""
    return list(dict.fromkeys((PRIMARY_METRIC[task], *list_shown_metrics("question", task))))


# ---- the record of a question ----------------------------------------------------------------------------------------


class _PageRecord(NamedTuple):
    item: AnsweredSample
    value: dict[str, Any]
    size: int  # bytes


def _build_page_records(answered: Sequence[AnsweredSample], shown: Shown | None) -> dict[int, _PageRecord]:
    source_numbers = {source: i for i, source in enumerate(_list_sources(answered))}
    records = {}
    for item in answered:
        value = _describe_question(item, shown)
        if shown is not None:
            value["s"] = source_numbers[item.sample.source]
        records[item.number] = _PageRecord(item, value, len(json.dumps(value)) + 12)
    return records


def _list_sources(answered: Iterable[AnsweredSample]) -> list[str]:
    return list(dict.fromkeys(item.sample.source for item in answered))


def _describe_question(item: AnsweredSample, shown: Shown | None) -> dict[str, Any]:
    """The fields that `viewer.browse` describes; without any text of people or models if `shown` is None."""
    sample, prediction = item.sample, item.prediction
    value: dict[str, Any] = {
        "n": item.number,
        "t": sample.task.value,
        "m": sample.modality.value,
        "v": item.right,
        "f": {m: round(item.figures[m], 3) for m in _list_question_metrics(sample.task) if m in item.figures},
        "ask": _round_corners(sample.question.boxes),
        "tru": _round_corners(sample.answer.boxes),
        "c": [_describe_candidate(c, shown) for c in prediction.candidates],
        "k": prediction.chosen,
    }
    if prediction.confidence is not None:
        value["sure"] = prediction.confidence
    if shown is not None:
        value |= {"q": shown(sample.question.text), "a": shown(sample.answer.text)}
        if len(sample.turns) > 1:
            value["e"] = [[shown(t.question.text), shown(t.answer.text)] for t in sample.turns[:-1]]
    if len(sample.images) > 1:
        value["more"] = len(sample.images) - 1
    return value


def _describe_candidate(candidate: Candidate, shown: Shown | None) -> dict[str, Any]:
    boxed_text = candidate.answer
    value: dict[str, Any] = {"b": _round_corners(boxed_text.boxes)}
    if shown is None:
        value["s"] = {}
    else:
        value["a"] = shown(boxed_text.text)
        value["s"] = {SCORERS.get(k) or shown(k): _round_finite(v) for k, v in candidate.scores.items()}
        if candidate.raw.strip() != boxed_text.text.strip():
            value["r"] = shown(candidate.raw)
        if candidate.unread:
            value["u"] = [shown(text) for text in candidate.unread]
    if candidate.logprob is not None:
        value["l"] = _round_finite(candidate.logprob)
    if candidate.truncated:
        value["x"] = True
    return value


def _round_finite(value: float) -> float:
    return round(value, 3) if math.isfinite(value) else math.copysign(1e9, value)


def _round_corners(boxes: Sequence[Box]) -> list[list[float]]:
    return [[round(v, 4) for v in (b.x1, b.y1, b.x2, b.y2)] for b in boxes]


# ---- how much of it --------------------------------------------------------------------------------------------------


def _fit_text(records: Mapping[int, _PageRecord], most_bytes: int) -> list[AnsweredSample]:
    """Evenly chosen questions whose records fit into `most_bytes`."""
    items = [entry.item for entry in records.values()]
    return _fit(items, lambda kept: sum(records[item.number].size for item in kept), most_bytes, 0.98)


def _fit(
    kept: Sequence[AnsweredSample], measure: Callable[[Sequence[AnsweredSample]], int], most: int, margin: float = 1.0
) -> list[AnsweredSample]:
    """Evenly chosen questions that `measure` at most `most`, or one."""
    chosen = list(kept)
    while (size := measure(chosen)) > most and len(chosen) > 1:
        count = min(len(chosen) - 1, int(len(chosen) * most / size * margin))
        chosen = choose_evenly(chosen, max(1, count))
    return chosen


def _list_images(kept: Iterable[AnsweredSample]) -> list[ImageRef]:
    return list(dict.fromkeys(item.sample.images[0] for item in kept))


@dataclass(frozen=True, slots=True)
class _PictureOpener:
    """Opens images below `root`; a `lenient` one notes those that cannot be opened."""

    root: Path
    lenient: bool
    problems: set[ImageRef] = field(default_factory=set)

    def open(self, image: ImageRef) -> Any:
        """The image; None where it cannot be opened."""
        try:
            return open_image(self.root, image)
        except BadInput:
            if not self.lenient:
                raise
            self.problems.add(image)
            return None


def _estimate_picture_bytes(opener: _PictureOpener, images: Sequence[ImageRef]) -> list[float]:
    """Estimated bytes of one picture at each rung of the ladder, from a few evenly chosen images."""
    count = min(_PROBE_PICTURES, len(images))
    probes = (opener.open(images[k * len(images) // count]) for k in range(count))
    opened = [image for image in probes if image is not None]
    bytes_by_rung = []
    for side, quality in _LADDER:
        opened = [_shrink_image(image, side) for image in opened]
        sizes = [len(thumbnail(image, side, quality).uri) for image in opened]
        bytes_by_rung.append(_SIZE_MARGIN * sum(sizes) / max(1, len(sizes)) + 24)
    return bytes_by_rung


def _shrink_image(image: Any, side: int) -> Any:
    """Shrink an image that is much larger than it will be shown, so that later scaling costs less."""
    factor = max(image.size) // (2 * side)
    return image.reduce(factor) if factor > 1 else image


def _encode_pictures(
    opener: _PictureOpener, images: Sequence[ImageRef], side: int, quality: int, advance: Callable[[int], None]
) -> dict[ImageRef, Picture]:
    pictures = {}
    for image in images:
        if (opened := opener.open(image)) is not None:
            pictures[image] = thumbnail(_shrink_image(opened, side), side, quality)
        advance(1)
    return pictures


def _describe_selection(kept: Sequence[AnsweredSample], answered: Sequence[AnsweredSample]) -> str:
    if len(kept) == len(answered):
        return f"All {len(kept):,} questions of the test set."
    cells = len({(item.sample.task, item.sample.modality) for item in answered})
    return (
        f"{len(kept):,} of the {len(answered):,} questions of the test set: more would make this page too large. They "
        f"are chosen evenly over its {cells} pairs of task and modality, whatever was answered. The tables rest on all."
    )


def _describe_missing_pictures(kept: Sequence[AnsweredSample], problems: Collection[ImageRef], count: int) -> str:
    if not problems:
        return ""
    first = next(item.number for item in kept if item.sample.images[0] in problems)
    return (
        f"{len(problems):,} of {count:,} pictures are missing or cannot be read: boxes lie on a blank, first in "
        f"question {first}."
    )


def _describe_picture_size(pictures: Mapping[ImageRef, Picture], side: int, quality: int) -> str:
    if not pictures:
        return ""
    smaller = sum(max(p.width, p.height) < max(i.width or 0, i.height or 0) for i, p in pictures.items())
    if not smaller:
        return f"Pictures have the size of the images, in JPEG of quality {quality} or PNG."
    return (
        f"{smaller:,} of {len(pictures):,} pictures are smaller than the images they show: at most {side} pixels a "
        f"side, JPEG of quality {quality}. No finding should be looked for in them."
    )

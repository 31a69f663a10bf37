"""The rows that a run in small keeps, their counts, and truths in the place of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from clinkd.model.encode import group_by_images
from clinkd.pipeline import steps
from clinkd.pipeline.prepared import read_split
from clinkd.records import Candidate, Prediction, Sample, Split
from clinkd.storage import write_lines

SIDE = 28  # pixels of an image token of Qwen2-VL

Counts = dict[str, dict[Split, int]]  # of "questions", "rows" and "images", by split


def count_samples(samples: Mapping[Split, Sequence[Sample]]) -> Counts:
    """Questions, rows and images of each split."""
    return {
        "questions": {split: len(part) for split, part in samples.items()},
        "rows": {split: len(group_by_images(part)) for split, part in samples.items()},
        "images": {split: len({i.path for s in part for i in s.images}) for split, part in samples.items()},
    }


def choose_typical(rows: Sequence[list[Sample]], number: int, most_tokens: int) -> list[list[Sample]]:
    """`number` rows that represent all: of each modality its share, from short to long, and the heaviest row, which
    decides the memory. `most_tokens`: of an image."""

    if len(rows) <= number:
        return list(rows)
    order = sorted(rows, key=lambda row: (row[0].modality, _weigh(row, most_tokens)))
    places = [int((k + 0.5) * len(order) / number) for k in range(number)]
    heaviest = max(range(len(order)), key=lambda k: _weigh(order[k], most_tokens))
    nearest = min(range(number), key=lambda k: abs(places[k] - heaviest))
    places[nearest] = heaviest
    return [order[k] for k in places]


def choose_heaviest(rows: Sequence[list[Sample]], number: int, most_tokens: int) -> list[list[Sample]]:
    """The rows with the largest images and the longest text; `most_tokens`: of an image."""
    return sorted(rows, key=lambda row: -_weigh(row, most_tokens))[:number]


def _weigh(row: list[Sample], most_tokens: int) -> float:
    """Tokens of a row, roughly."""
    images = sum(min((i.width or 0) * (i.height or 0) / SIDE**2, most_tokens) for i in row[0].images)
    return images + sum(len(s.question.text) + len(s.answer.text) for s in row) / 3


def write_truths(answered: Path, prepared: Path, files: Mapping[Split, str], candidates: int) -> None:
    """Replace the answers of a model of a few steps by truths. A trained model comes near to truths, and the stages
    that look at answers take longer over them."""
    for split, name in files.items():
        samples = read_split(prepared, split)
        predictions = []
        for k, sample in enumerate(samples):
            truths = dict.fromkeys(samples[(k + n) % len(samples)].answer for n in range(candidates))
            predictions.append(Prediction(sample.id, tuple(Candidate(a.text, a) for a in truths), by="truth"))
        write_lines(answered / name, (p.to_json() for p in predictions))
        supports = ({"id": p.id, "supports": [1.0] * len(p.candidates)} for p in predictions)
        write_lines(answered / steps.SUPPORTS[split], supports)

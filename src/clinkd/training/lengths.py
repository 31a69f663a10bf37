"""Rows that fit: no sample is cut. One that is too long stops the stage, is left out, or gets smaller images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clinkd import distributed
from clinkd.config import FitConfig
from clinkd.model.encode import TokenCount, group_by_images
from clinkd.model.vlm import VisionLanguageModel
from clinkd.records import BadInput, Sample
from clinkd.storage import JsonLines
from clinkd.training.teachers import Learner

LISTED = "overlong.jsonl"


def rows_within(
    model: Learner, samples: Sequence[Sample], config: FitConfig, folder: Path, title: str
) -> list[list[Sample]]:
    """Rows of samples that share their images, none longer than `config.max_tokens` (0: no limit).

    Questions that do not fit into a row with the others of their image get another row. For a sample that is too long
    by itself `config.overlong` decides: "error" raises BadInput, naming the first; "drop" leaves it out and lists it in
    `folder`/overlong.jsonl; "shrink" resamples its images to so few tokens that it fits, and lists that, too. Raises
    BadInput also if no token would be left for an image, or a smaller one finds no place in the text.
    """
    if not config.max_tokens:
        return group_by_images(samples)
    lengths = _count_tokens(model, samples)
    long = [s for s in samples if lengths[s.id].whole > config.max_tokens]
    if long and config.overlong == "error":
        worst, more = lengths[long[0].id], f" (and {len(long) - 1} more samples)" if len(long) > 1 else ""
        raise BadInput(
            f"{title}: sample {long[0].id} has {worst.whole} tokens, {worst.images} of them its images, and "
            f"fit.max_tokens is {config.max_tokens}{more}; raise it, or set fit.overlong to drop or shrink"
        )
    for sample in long if config.overlong == "shrink" else ():
        _shrink_images(model, sample, lengths[sample.id], config.max_tokens)
        if isinstance(model, VisionLanguageModel):
            model.demand_places(sample.images)
    _list_samples(folder, long, lengths, config)
    if config.overlong == "drop":
        dropped = {s.id for s in long}
        samples = [s for s in samples if s.id not in dropped]
    elif long:
        lengths = _count_tokens(model, samples)
    return [part for row in group_by_images(samples) for part in _split_row(row, lengths, config.max_tokens)]


def _count_tokens(model: Learner, samples: Sequence[Sample]) -> dict[str, TokenCount]:
    return dict(zip((s.id for s in samples), model.count_tokens(samples), strict=True))


def _shrink_images(model: Learner, sample: Sample, length: TokenCount, most: int) -> None:
    """Give each image an equal part of the tokens that the words leave."""
    left = most - (length.whole - length.images)
    each = left // len(sample.images) if sample.images else 0
    if each < 1:
        raise BadInput(
            f"sample {sample.id}: its words alone have {length.whole - length.images} tokens, and fit.max_tokens is "
            f"{most}; raise it, or set fit.overlong=drop"
        )
    for ref in sample.images:
        model.images.limit_tokens(ref, each)


def _split_row(row: list[Sample], lengths: dict[str, TokenCount], most: int) -> list[list[Sample]]:
    """Split the questions of a row into as few rows as their order allows."""
    parts: list[list[Sample]] = []
    free = 0
    for sample in row:
        if not parts or lengths[sample.id].rest > free:
            parts.append([])
            free = most - lengths[sample.id].front
        parts[-1].append(sample)
        free -= lengths[sample.id].rest
    return parts


def _list_samples(folder: Path, long: Sequence[Sample], lengths: dict[str, TokenCount], config: FitConfig) -> None:
    if not distributed.is_main():
        return
    (folder / LISTED).unlink(missing_ok=True)
    with JsonLines(folder / LISTED) as lines:
        for s in long:
            length = lengths[s.id]
            lines.append({"id": s.id, "tokens": length.whole, "image_tokens": length.images, "done": config.overlong})

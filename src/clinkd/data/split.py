"""Split samples by group into train, validation and test; sample the teacher's share of the training images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import floor
from typing import NamedTuple

from clinkd.records import BadInput, Modality, Sample, Split, Task


def _compute_hash_rank(seed: int, what: str, key: str) -> float:
    """A number in [0, 1) that depends on these three only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}/{key}".encode()).digest()[:7], "big") / 2**56


def split_samples(samples: Sequence[Sample], validation_share: float, test_share: float, seed: int) -> list[Sample]:
    """The samples with `split` set; all samples of a group stay together, samples that have a split keep it.

    See `assign_splits` for who goes where. Raises BadInput on shares that leave nothing to train on, on a group already
    torn, or where a split stays empty.
    """
    groups: dict[str, Group] = {}
    for sample in samples:
        first_of_group = groups.setdefault(sample.group, Group(sample.source, sample.split))
        if first_of_group.split != sample.split:
            raise BadInput(f"sample {sample.id}: group {sample.group} is in two splits; put all its samples in one")
    placed = assign_splits(groups, validation_share, test_share, seed)
    placed_samples = [replace(s, split=placed[s.group]) for s in samples]
    counts = Counter(s.split for s in placed_samples)
    for name in ("train", "validation", "test"):
        if not counts[name]:
            raise BadInput(f"the {name} split is empty: {len(groups)} groups are too few; give more data")
    return placed_samples


class Group(NamedTuple):
    """A group stays in one split: the collection it comes from, and its given split, if any."""

    source: str
    split: Split | None


def assign_splits(
    groups: Mapping[str, Group], validation_share: float, test_share: float, seed: int
) -> dict[str, Split]:
    """A split for every group; those that were given one keep it, save where nothing was given for validation.

    A group's place follows from a hash of its name alone, so more data leave the old groups where they were, save this:
    a source with three free groups or more that got none in a split hands over the group that came nearest to it. Where
    no group is for validation (files of train and test only), `validation_share` of the train groups are put aside.
    Raises BadInput on shares that leave nothing to train on.
    """
    if not 0 <= validation_share < 1 or not 0 <= test_share < 1 or validation_share + test_share >= 1:
        raise BadInput(
            f"data.validation_share={validation_share:g} and data.test_share={test_share:g} leave nothing to train on; "
            "their sum must be below 1"
        )
    placed: dict[str, Split] = {name: g.split for name, g in groups.items() if g.split is not None}
    free: dict[str, list[str]] = {}
    for name, group in groups.items():
        if group.split is None:
            free.setdefault(group.source, []).append(name)
    for names in free.values():
        placed.update(_split_source(names, validation_share, test_share, seed))
    if "validation" not in placed.values():
        for name in [n for n, split in placed.items() if split == "train"]:
            if _compute_hash_rank(seed, "split", name) < validation_share:
                placed[name] = "validation"
    return placed


def _split_source(groups: Sequence[str], validation: float, test: float, seed: int) -> dict[str, Split]:
    hash_rank = {g: _compute_hash_rank(seed, "split", g) for g in groups}
    bounds: dict[Split, tuple[float, float]] = {
        "test": (0, test), "validation": (test, test + validation), "train": (test + validation, 1)
    }  # fmt: skip
    placed = {g: next(s for s, (low, high) in bounds.items() if low <= hash_rank[g] < high) for g in groups}
    for missing, (low, high) in bounds.items():
        if low == high:
            continue  # a share of nothing
        counts = Counter(placed.values())
        spare = [g for g in groups if counts[placed[g]] > 1]
        if len(groups) >= 3 and not counts[missing] and spare:
            placed[min(spare, key=lambda g: abs(hash_rank[g] - (low + high) / 2))] = missing
    return placed


def sample_share(samples: Sequence[Sample], share: float, seed: int) -> list[Sample]:
    """Whole images, `share` of them, spread evenly over modalities and the sets of tasks asked of an image.

    Every such stratum gives its share to within one image, and so does the whole; never none. Order is kept.
    Raises BadInput on a share outside (0, 1], or without samples.
    """
    if not 0 < share <= 1:
        raise BadInput(f"teacher.share={share:g}: more than 0 and at most 1 is wanted")
    if not samples:
        raise BadInput("teacher.share: there are no samples to draw from")
    tasks: dict[str, set[Task]] = {}
    modalities: dict[str, Modality] = {}
    for sample in samples:
        image = _join_image_paths(sample)
        tasks.setdefault(image, set()).add(sample.task)
        modalities.setdefault(image, sample.modality)
    order = sorted(tasks, key=lambda i: (modalities[i], sorted(tasks[i]), _compute_hash_rank(seed, "share", i)))
    start = _compute_hash_rank(seed, "share", "start")  # systematic sampling: every 1/share-th of the ordered images
    sampled = {image for k, image in enumerate(order) if floor((k + 1) * share + start) > floor(k * share + start)}
    sampled = sampled or {order[int(start * len(order))]}
    return [s for s in samples if _join_image_paths(s) in sampled]


def count_sampled_images(images: int, share: float, seed: int) -> int:
    """How many of so many images `sample_share` draws."""
    return max(1, floor(images * share + _compute_hash_rank(seed, "share", "start")))


def _join_image_paths(sample: Sample) -> str:
    return "\n".join(i.path for i in sample.images)

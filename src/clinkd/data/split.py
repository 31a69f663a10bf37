"""Split samples by group into train, validation and test; choose the teacher's share of the training images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import floor
from typing import NamedTuple

from clinkd.records import BadInput, Modality, Sample, Split, Task


def _compute_hash_rank(seed: int, what: str, key: str) -> float:
    """A number in [0, 1) that depends only on the three arguments."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}/{key}".encode()).digest()[:7], "big") / 2**56


def split_samples(samples: Sequence[Sample], validation_share: float, test_share: float, seed: int) -> list[Sample]:
    """Set the `split` of all samples, as `assign_splits` chooses it. All samples of a group stay together.

    Samples that have a split keep it. Raises BadInput if the shares leave nothing to train on, if a group is in two
    splits, or if a split stays empty.
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
    """A group, which stays in one split: the collection that it comes from, and its stated split, if any."""

    source: str
    split: Split | None


def assign_splits(
    groups: Mapping[str, Group], validation_share: float, test_share: float, seed: int
) -> dict[str, Split]:
    """Assign a split to every group. Groups with a stated split keep it, with one exception below.

    The split follows from a hash of the group's name, so that more data do not move old groups. There is one exception:
    if a source with at least three free groups has none in a split, the group with the nearest hash moves there. If no
    group at all is in validation (files of train and test only), `validation_share` of the train groups move there.
    Raises BadInput if the shares leave nothing to train on.
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
            continue  # a share of 0
        counts = Counter(placed.values())
        spare = [g for g in groups if counts[placed[g]] > 1]
        if len(groups) >= 3 and not counts[missing] and spare:
            placed[min(spare, key=lambda g: abs(hash_rank[g] - (low + high) / 2))] = missing
    return placed


def sample_share(samples: Sequence[Sample], share: float, seed: int) -> list[Sample]:
    """Choose `share` of the images with all their samples, evenly over modalities and over the tasks of an image.

    Each such stratum, and the whole, has its share to within one image. At least one image is chosen. The order stays.
    Raises BadInput if the share is outside (0, 1], or without samples.
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
    """The number of images that `sample_share` chooses."""
    return max(1, floor(images * share + _compute_hash_rank(seed, "share", "start")))


def _join_image_paths(sample: Sample) -> str:
    return "\n".join(i.path for i in sample.images)

"""Split samples by group into train, validation and test; choose the teacher's share of the training images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import floor
from typing import NamedTuple

from clinkd.records import SPLITS, BadInput, Modality, Sample, Split, Task

Stratum = tuple[str, str]  # a source and a modality


def compute_hash_rank(seed: int, what: str, key: str) -> float:
    """A number in [0, 1) that depends only on the three arguments."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}/{key}".encode()).digest()[:7], "big") / 2**56


def split_samples(samples: Sequence[Sample], validation_share: float, test_share: float, seed: int) -> list[Sample]:
    """Set the `split` of all samples, as `assign_splits` chooses it. All samples of a group stay together.

    Samples that have a split keep it. Raises BadInput if the shares leave nothing to train on, if a group is in two
    splits, or if a split stays empty.
    """
    groups = _collect_groups(samples)
    return _place_samples(samples, assign_splits(groups, validation_share, test_share, seed))


def split_fold(samples: Sequence[Sample], fold: int, folds: int, validation_share: float, seed: int) -> list[Sample]:
    """Set the `split` of all samples for one fold of a cross-validation, counted from 1, as `assign_fold` chooses it.

    A split that samples have is replaced. Raises BadInput if there are fewer groups than folds, or if a split stays
    empty.
    """
    groups = _collect_groups([replace(s, split=None) for s in samples])
    return _place_samples(samples, assign_fold(groups, fold, folds, validation_share, seed))


def _collect_groups(samples: Sequence[Sample]) -> dict[str, Group]:
    groups: dict[str, Group] = {}
    for sample in samples:
        group = Group(sample.source, sample.split, sample.modality)
        if groups.setdefault(sample.group, group).split != sample.split:
            raise BadInput(f"sample {sample.id}: group {sample.group} is in two splits; put all its samples in one")
        groups[sample.group] = groups[sample.group].merge(group)
    return groups


def _place_samples(samples: Sequence[Sample], placed: Mapping[str, Split]) -> list[Sample]:
    placed_samples = [replace(s, split=placed[s.group]) for s in samples]
    counts = Counter(s.split for s in placed_samples)
    for name in SPLITS:
        if not counts[name]:
            raise BadInput(f"the {name} split is empty: {len(placed)} groups are too few; give more data")
    return placed_samples


class Group(NamedTuple):
    """A group, which stays in one split: the collection that it comes from, its stated split, if any, its modality."""

    source: str
    split: Split | None
    modality: str

    def merge(self, other: Group) -> Group:
        """The two as one group. Its source and modality do not depend on which of the two comes first."""
        return Group(min(self.source, other.source), self.split, min(self.modality, other.modality))


def assign_splits(
    groups: Mapping[str, Group], validation_share: float, test_share: float, seed: int
) -> dict[str, Split]:
    """Assign a split to every group. Groups with a stated split keep it, with one exception below.

    Each modality of each source, and the whole, gets the shares as nearly as whole groups allow. A hash of the group's
    name ranks the groups, so their order does not matter. But a source with at least three free groups has one in every
    split whose share is not 0, even where this is more than its share. If no group at all is in validation (files of
    train and test only), `validation_share` of the train groups move there. Raises BadInput if the shares leave nothing
    to train on.
    """
    if not 0 <= validation_share < 1 or not 0 <= test_share < 1 or validation_share + test_share >= 1:
        raise BadInput(
            f"data.validation_share={validation_share:g} and data.test_share={test_share:g} leave nothing to train on; "
            "their sum must be below 1"
        )
    placed: dict[str, Split] = {name: g.split for name, g in groups.items() if g.split is not None}
    free = {name: group for name, group in groups.items() if group.split is None}
    placed |= _split_by_rank(free, validation_share, test_share, seed)
    if "validation" not in placed.values():
        train = {name: groups[name] for name, split in placed.items() if split == "train"}
        placed |= _split_by_rank(train, validation_share, 0, seed)
    return placed


def assign_fold(
    groups: Mapping[str, Group], fold: int, folds: int, validation_share: float, seed: int
) -> dict[str, Split]:
    """Assign a split to every group for one fold of a cross-validation, counted from 1.

    Each group is in the test split of exactly one fold. The groups are dealt out in turn, ranked by a hash of their
    names within each source of each modality, so the test splits, and their parts of a modality, differ by one group at
    most, and the order of the groups does not matter. Of the rest, as many groups are in validation as
    `validation_share` of all. Raises BadInput if there are fewer groups than folds.
    """
    if folds > len(groups):
        raise BadInput(
            f"data.folds={folds}: the data has only {len(groups)} groups (patients, else images), and each fold tests "
            f"one at least; set data.folds={len(groups)} or less"
        )
    ranked = sorted(groups, key=lambda g: (groups[g].modality, groups[g].source, compute_hash_rank(seed, "fold", g)))
    placed: dict[str, Split] = dict.fromkeys(ranked[fold - 1 :: folds], "test")
    # of all sources together: so even few groups have one for validation
    others = {name: group._replace(source="") for name, group in groups.items() if name not in placed}
    return placed | _split_by_rank(others, min(1.0, validation_share * len(groups) / max(1, len(others))), 0, seed)


def _split_by_rank(groups: Mapping[str, Group], validation: float, test: float, seed: int) -> dict[str, Split]:
    """In each stratum (source and modality), the groups of the lowest hash ranks are test, the next ones validation."""
    strata: dict[Stratum, list[str]] = {}
    for name in sorted(groups, key=lambda g: compute_hash_rank(seed, "split", g)):
        strata.setdefault((groups[name].source, groups[name].modality), []).append(name)
    shares: dict[Split, float] = {"test": test, "validation": validation, "train": 1 - test - validation}
    counts = _apportion({stratum: len(strata[stratum]) for stratum in sorted(strata)}, shares)
    for source in {source for source, _ in strata}:
        _fill_empty_splits([counts[stratum] for stratum in sorted(strata) if stratum[0] == source], shares)
    return {
        name: split
        for stratum, names in strata.items()
        for name, split in zip(names, counts[stratum].elements(), strict=True)
    }


def _apportion(sizes: Mapping[Stratum, int], shares: Mapping[Split, float]) -> dict[Stratum, Counter[Split]]:
    """Divide each stratum by largest remainder. What a split is owed from the strata before is added to its remainder,
    so that the total is as near to the shares as each stratum is."""
    owed = dict.fromkeys(shares, 0.0)
    counts: dict[Stratum, Counter[Split]] = {}
    for stratum, size in sizes.items():
        exact = {split: round(size * share, 9) for split, share in shares.items()}
        count = counts[stratum] = Counter({split: floor(value) for split, value in exact.items()})
        due = {split: owed[split] + exact[split] - count[split] for split in shares if exact[split] > count[split]}
        for split in sorted(due, key=due.__getitem__, reverse=True)[: size - count.total()]:
            count[split] += 1
        owed = {split: owed[split] + exact[split] - count[split] for split in shares}
    return counts


def _fill_empty_splits(strata: Sequence[Counter[Split]], shares: Mapping[Split, float]) -> None:
    """Move single groups of a source of at least three, so that each split has one where its share is not 0."""
    total = sum(strata, Counter[Split]())
    for empty in [s for s, share in shares.items() if share > 0 and not total[s]] if total.total() >= 3 else []:
        giver = max(total, key=total.__getitem__)
        largest = max(strata, key=lambda count: count[giver])
        largest[giver] -= 1
        largest[empty] += 1
        total = sum(strata, Counter[Split]())


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
    order = sorted(tasks, key=lambda i: (modalities[i], sorted(tasks[i]), compute_hash_rank(seed, "share", i)))
    start = compute_hash_rank(seed, "share", "start")  # systematic sampling: every 1/share-th of the ordered images
    sampled = {image for k, image in enumerate(order) if floor((k + 1) * share + start) > floor(k * share + start)}
    sampled = sampled or {order[int(start * len(order))]}
    return [s for s in samples if _join_image_paths(s) in sampled]


def count_sampled_images(images: int, share: float, seed: int) -> int:
    """The number of images that `sample_share` chooses."""
    return max(1, floor(images * share + compute_hash_rank(seed, "share", "start")))


def _join_image_paths(sample: Sample) -> str:
    return "\n".join(i.path for i in sample.images)

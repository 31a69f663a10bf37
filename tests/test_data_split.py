"""Splits by group, the teacher's share, and the table of counts."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from clinkd.data.checks.stats import count_samples
from clinkd.data.split import count_sampled_images as number_drawn
from clinkd.data.split import sample_share, split_fold, split_samples
from clinkd.records import BadInput, BoxedText, ImageRef, Modality, Sample, Split, Task, Turn


def sample(
    image: str, task: Task = Task.ROC, group: str | None = None, modality: Modality = Modality.CT,
    source: str = "a", split: Split | None = None,
) -> Sample:  # fmt: skip
    turn = Turn(task, BoxedText("What?"), BoxedText("kidney"))
    ref = ImageRef(f"{image}.png", 10, 10)
    return Sample(f"{image}-{task}", (ref,), modality, (turn,), group or image, source, split=split)


def many(count: int, sources: int = 3) -> list[Sample]:
    return [
        sample(f"i{k}", task, group=f"p{k // 2}", source=f"s{k // 2 % sources}")
        for k in range(count)
        for task in (Task.VG, Task.ROC)
    ]


SPLIT_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def test_groups_are_never_torn_and_shares_are_met() -> None:
    for seed in range(5):
        found = split_samples(many(1200), 0.1, 0.2, seed)
        splits: dict[str, set[Split | None]] = {}
        for s in found:
            splits.setdefault(s.group, set()).add(s.split)
        assert all(len(v) == 1 for v in splits.values())
        assert Counter(next(iter(v)) for v in splits.values()) == {"train": 420, "validation": 60, "test": 120}
    assert split_samples(many(100), 0.1, 0.2, 0) != split_samples(many(100), 0.1, 0.2, 1)


def kinds(rng: random.Random) -> list[Sample]:
    """Groups of one to three images, in up to four modalities of up to three sources, ten groups each or more."""
    found = []
    for number, modality in enumerate(rng.sample(list(Modality), 4)):
        for k in range(rng.randint(10, 40)):
            group = f"{modality}{k}"
            found += [
                sample(f"{group}.{i}", group=group, modality=modality, source=f"s{number % 3}")
                for i in range(rng.randint(1, 3))
            ]
    return found


@pytest.mark.parametrize("seed", range(20))
def test_each_modality_and_the_whole_have_the_shares_to_within_one_group_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    samples = kinds(rng)
    found = split_samples(samples, 0.1, 0.2, seed)
    groups = {s.group: s for s in found}
    for modality in {*(s.modality for s in found), None}:
        chosen = [s.split for s in groups.values() if modality in (s.modality, None)]
        for split, share in SPLIT_SHARES.items():
            assert abs(chosen.count(split) - share * len(chosen)) < 1, (modality, split)
    rng.shuffle(samples)
    assert {s.id: s.split for s in split_samples(samples, 0.1, 0.2, seed)} == {s.id: s.split for s in found}


def test_many_small_modalities_add_up_to_the_shares() -> None:
    """One group a source and modality: none is forced, and the remainders are carried on."""
    samples = [sample(f"i{k}", modality=list(Modality)[k % 8], source=f"s{k // 8}") for k in range(16)]
    assert Counter(s.split for s in split_samples(samples, 0.1, 0.2, 0)) == {"train": 11, "validation": 2, "test": 3}


def test_a_group_of_two_sources_and_modalities_has_its_split_whatever_the_order() -> None:
    """A patient with CT and MR, and near-duplicates of two sheets."""
    both = [sample(f"p{k}-{m}", group=f"p{k}", modality=m, source=m) for k in range(9) for m in list(Modality)[:2]]
    forth, back = split_samples([*both, *many(20)], 0.1, 0.2, 0), split_samples([*many(20), *both[::-1]], 0.1, 0.2, 0)
    assert {s.id: s.split for s in forth} == {s.id: s.split for s in back}


def test_a_few_train_groups_become_validation_where_the_files_have_none() -> None:
    fixed = [sample(f"t{k}", split="test" if k < 20 else "train") for k in range(60)]
    assert Counter(s.split for s in split_samples(fixed, 0.1, 0.2, 0)) == {"test": 20, "train": 36, "validation": 4}


def test_every_source_with_three_groups_is_in_every_split() -> None:
    for seed in range(20):
        found = split_samples(many(48, sources=8), 0.05, 0.1, seed)  # three groups a source
        for source in {s.source for s in found}:
            assert {s.split for s in found if s.source == source} == {"train", "validation", "test"}


def test_given_splits_are_kept() -> None:
    fixed = [sample(f"t{k}", split="test") for k in range(5)]
    found = split_samples([*fixed, *many(60)], 0.2, 0.2, 0)
    assert found[:5] == fixed and all(s.split for s in found)
    with pytest.raises(BadInput, match="group p is in two splits"):
        split_samples([sample("a", group="p", split="test"), sample("b", group="p"), *many(60)], 0.2, 0.2, 0)


def test_impossible_splits_are_named() -> None:
    with pytest.raises(BadInput, match=r"test_share=0\.6"):
        split_samples(many(60), 0.4, 0.6, 0)
    with pytest.raises(BadInput, match="split is empty"):
        split_samples(many(4), 0.1, 0.2, 0)


@pytest.mark.parametrize("seed", range(20))
def test_each_group_is_tested_in_exactly_one_fold_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    samples, folds = kinds(rng), rng.randint(2, 7)
    shuffled = rng.sample(samples, len(samples))
    groups = {s.group: s for s in samples}
    tested: list[set[str]] = []
    for fold in range(1, folds + 1):
        found = split_fold(samples, fold, folds, 0.1, seed)
        assert [replace(s, split=None) for s in found] == samples
        assert {s.id: s.split for s in split_fold(shuffled, fold, folds, 0.1, seed)} == {s.id: s.split for s in found}
        parts = {split: {s.group for s in found if s.split == split} for split in SPLIT_SHARES}
        assert sum(map(len, parts.values())) == len(groups), "no group is in two splits"
        assert abs(len(parts["validation"]) - 0.1 * len(groups)) <= 1
        tested.append(parts["test"])
    assert set().union(*tested) == set(groups) and sum(map(len, tested)) == len(groups)
    for modality in {*(s.modality for s in samples), None}:
        sizes = [sum(modality in (groups[g].modality, None) for g in test) for test in tested]
        assert max(sizes) - min(sizes) <= 1, modality


def test_folds_replace_a_stated_split_and_fit_the_groups() -> None:
    fixed = [sample(f"t{k}", split="test" if k < 3 else "train") for k in range(6)]
    tested = {s.id for fold in (1, 2, 3) for s in split_fold(fixed, fold, 3, 0.1, 0) if s.split == "test"}
    assert tested == {s.id for s in fixed}
    with pytest.raises(BadInput, match=r"data\.folds=7: the data has only 6 groups .* set data\.folds=6 or less"):
        split_fold(fixed, 1, 7, 0.1, 0)


def test_a_fold_of_few_groups_has_all_splits_or_says_which_is_empty() -> None:
    for groups in range(2, 9):
        samples = [sample(f"i{k}", source=f"s{k % 3}") for k in range(groups)]
        for folds, share in itertools.product(range(2, groups + 1), (0.05, 0.4)):
            for fold in range(1, folds + 1):
                rest = groups - len(range(fold - 1, groups, folds))
                try:
                    splits = {s.split for s in split_fold(samples, fold, folds, share, 0)}
                    assert splits == {"train", "validation", "test"}
                except BadInput as error:
                    assert rest < 3 and f"split is empty: {groups} groups are too few" in str(error)


def pool() -> list[Sample]:
    dice = random.Random(3)
    found = []
    for k in range(700):
        modality = dice.choice((Modality.CT, Modality.CT, Modality.CT, Modality.PET, Modality.FUNDUS))
        tasks: Sequence[Task] = dice.choice(((Task.VG, Task.ROC), (Task.QA,), (Task.VG, Task.ROC, Task.MIA)))
        found += [sample(f"i{k}", task, modality=modality) for task in tasks]
    return found


@pytest.mark.parametrize("share", [0.05, 0.111, 0.5, 1.0])
def test_a_share_holds_whole_images_of_every_kind(share: float) -> None:
    samples = pool()
    tasks: dict[str, set[Task]] = {}
    for s in samples:
        tasks.setdefault(s.group, set()).add(s.task)
    drawn = sample_share(samples, share, seed=1)
    images = {s.group for s in drawn}
    assert [s for s in samples if s.group in images] == drawn
    assert abs(len(images) - share * 700) <= 1 and len(images) == number_drawn(700, share, 1)
    kinds = Counter((s.modality, frozenset(tasks[s.group])) for s in {s.group: s for s in samples}.values())
    got = Counter((s.modality, frozenset(tasks[s.group])) for s in {s.group: s for s in drawn}.values())
    assert len(kinds) == 9 and all(abs(got[k] - share * n) <= 1 for k, n in kinds.items())


def test_a_share_is_drawn_by_seed_whatever_the_order() -> None:
    samples = pool()
    drawn = {s.id for s in sample_share(samples, 0.111, seed=1)}
    assert drawn != {s.id for s in sample_share(samples, 0.111, seed=2)}
    random.Random(0).shuffle(samples)
    assert drawn == {s.id for s in sample_share(samples, 0.111, seed=1)}
    assert len({s.group for s in sample_share(samples, 0.0001, seed=1)}) == 1 == number_drawn(700, 0.0001, 1)
    for share in (0, 1.5):
        with pytest.raises(BadInput, match=f"share={share:g}"):
            sample_share(samples, share, seed=1)
    with pytest.raises(BadInput, match="no samples"):
        sample_share([], 0.5, seed=1)


def test_counts_add_up() -> None:
    found = split_samples(
        [*many(60), *(sample(f"q{k}", Task.QA, modality=Modality.PET) for k in range(30))], 0.2, 0.2, 0
    )
    table = count_samples(found)
    assert table.columns == ("split", "modality", "groups", "images", "VG", "ROC", "QA")
    alls = [row for row in table.rows if row[1] == "all"]
    assert [row[0] for row in alls] == ["train", "validation", "test"]
    assert sum(int(v) for row in alls for v in row[4:]) == len(found)
    assert sum(int(v) for row in table.rows if row[1] != "all" for v in row[4:]) == len(found)
    assert sum(int(row[2]) for row in alls) == 60

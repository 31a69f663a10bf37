"""Images that show the same are found among many: as when all are compared with all, and without doing so."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clinkd.cli import main
from clinkd.data.checks import similar
from clinkd.data.checks.near import Look, examine_images
from clinkd.data.checks.similar import BITS, Pair, find_similar_pairs
from clinkd.records import ImageRef


def looks_of(hash_N: NDArray[np.uint64], pixel_NT: NDArray[np.uint8]) -> list[Look]:
    return [Look(None, int(h), p.tobytes()) for h, p in zip(hash_N, pixel_NT, strict=True)]


def make_alike(count: int, seed: int) -> tuple[list[Look], list[int], list[int]]:
    """Some hashes a few bits apart, some equal, with thumbnails of a few kinds; groups of two or so, and splits."""
    rng = np.random.default_rng(seed)
    hash_N = rng.integers(0, 2**64, count // 4, dtype=np.uint64)[rng.integers(0, count // 4, count)]
    for _ in range(3):
        hash_N ^= np.where(rng.random(count) < 0.4, np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64), 0)
    hash_N[: count // 3] = hash_N[0]
    kind_KT = rng.integers(0, 256, (5, 256))
    pixel_NT = np.clip(kind_KT[rng.integers(0, 5, count)] + rng.integers(-12, 13, (count, 256)), 0, 255)
    groups = rng.integers(0, count // 2, count).tolist()
    split_of = rng.integers(0, 3, count).tolist()
    return looks_of(hash_N, pixel_NT.astype(np.uint8)), groups, [split_of[g] for g in groups]


def compare_all(looks: list[Look], groups: list[int]) -> list[Pair]:
    """The pairs by definition."""
    pixel_NT = np.array([np.frombuffer(look.thumbnail, np.uint8) for look in looks], np.float64)
    correlation_NN = np.corrcoef(pixel_NT)
    return [
        Pair(i, j)
        for j in range(len(looks))
        for i in range(j)
        if groups[i] != groups[j]
        and (looks[i].hash ^ looks[j].hash).bit_count() <= BITS
        and correlation_NN[i, j] >= similar.MIN_CORRELATION
    ]


def join_groups(pairs: Iterable[Pair], groups: list[int], splits: list[int]) -> list[int]:
    leader = list(range(max(groups) + 1))
    for i, j in pairs:
        if splits[i] == splits[j]:
            old, new = leader[groups[j]], leader[groups[i]]
            leader = [new if k == old else k for k in leader]
    return [leader.index(k) for k in leader]


@pytest.mark.parametrize("sizes", [(256, 1 << 18, 1 << 12), (8, 100, 20)])  # the second has many runs and batches
def test_pairs_join_and_part_as_if_all_were_compared_with_all(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int]
) -> None:
    for name, size in zip(("_RUN", "_BATCH", "_BLOCK"), sizes, strict=True):
        monkeypatch.setattr(similar, name, size)
    for seed in range(3):
        looks, groups, splits = make_alike(240, seed)
        wanted, found = compare_all(looks, groups), find_similar_pairs(iter(looks), groups, splits)
        assert set(found) <= set(wanted) and found == sorted(found) and len(found) < len(wanted) / 2
        assert join_groups(found, groups, splits) == join_groups(wanted, groups, splits)
        across = {j for i, j in wanted if splits[i] != splits[j]}
        assert across and {j for i, j in found if splits[i] != splits[j]} == across


@pytest.mark.parametrize("patients", [1, 2_000])
def test_many_alike_take_a_few_comparisons_each(monkeypatch: pytest.MonkeyPatch, patients: int) -> None:
    """A thousand of one hash and a thousand a bit apart: all with all were two million comparisons."""
    rng, compared = np.random.default_rng(0), []
    monkeypatch.setattr(similar, "_RUN", 16)
    monkeypatch.setattr(similar, "_BATCH", 4 * 16 * 16)
    plain = similar._HashComparison._correlate

    def count(
        self: similar._HashComparison, product: NDArray[np.float32], *images: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        compared.append(product.size)
        return plain(self, product, *images)

    monkeypatch.setattr(similar._HashComparison, "_correlate", count)
    hash_N = np.full(2_000, 7 << 40, np.uint64)
    hash_N[::2] ^= np.uint64(1) << rng.integers(0, 64, 1_000, dtype=np.uint64)
    looks = [Look(None, h, bytes(range(256))) for h in hash_N.tolist()]
    splits = [0] * 2_000 if patients == 1 else [n % 2 for n in range(2_000)]
    found = find_similar_pairs(looks, [n % patients for n in range(2_000)], splits)
    assert len(found) == (0 if patients == 1 else 1_999 + 2 * 999)  # across the splits, and within each
    assert sum(compared) < 100 * 2_000


def test_the_comparison_shows_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clinkd.storage.LOG_SECONDS", 0.0)
    rng = np.random.default_rng(0)
    hash_N = rng.integers(0, 2**64, 600, dtype=np.uint64)
    hash_N[:300] = hash_N[0]
    find_similar_pairs(looks_of(hash_N, rng.integers(0, 256, (600, 256), np.uint8)), range(600), [0] * 600)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("compare images: ") and " left" in first
    done, total = last.split()[2].split("/")
    assert done == total and int(total) > 300 * 300 / 2


def test_black_slices_with_noise_are_compared_with_nothing(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        noise = rng.integers(0, 4, (64, 64), np.uint8)
        if number > 1:
            noise[10:30, 20:40] = 90
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    looks = list(examine_images(tmp_path, [ImageRef(f"{n}.png") for n in range(4)], 1))
    assert [look.flat for look in looks] == [True, True, False, False]
    assert find_similar_pairs(looks, range(4), [0] * 4) == [Pair(2, 3)]


def test_all_rows_of_an_image_on_both_sides_are_bad(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two questions of the same test image: with the first row alone set aside, the second were still a leak."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8), np.uint8)
    for name in ("a", "b"):
        Image.fromarray(coarse).resize((64, 48)).save(tmp_path / f"{name}.png")
    Image.fromarray(coarse[::-1]).resize((64, 48)).save(tmp_path / "c.png")
    splits = {"a": "train", "b": "test", "c": "test"}
    rows = [f"{name}.png,Question {n}?,yes,ct,{split}" for name, split in splits.items() for n in range(2)]
    (tmp_path / "sheet.csv").write_text("\n".join(["image,question,answer,modality,split", *rows]))
    words = ["data", "import", str(tmp_path / "sheet.csv"), "--out", str(tmp_path / "out")]
    assert main([*words, "--quarantine", str(tmp_path / "bad.jsonl")]) == 0
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2
    assert "b.png" not in (tmp_path / "out/samples.jsonl").read_text()

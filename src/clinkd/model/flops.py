"""Floating-point operations of a pass, counted from shapes: two a multiply-add, matrix products and attention only.

The forward equals the count of torch's FlopCounterMode. In the backward a product costs one more product for its
weight's gradient, if that learns, and one more for its input's gradient, if something before it learns; attention costs
two forwards. What is computed again to save memory does not count: these are the model's operations, not the machine's.

Shapes: B lines, S tokens of a line, N answer tokens, T vision patches, H hidden width, V vocabulary.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clinkd.model.encode import Batch
from clinkd.model.families import Family, family_of
from clinkd.model.quantized import count_numbers

# Dense bfloat16 (V100, T4: float16, as they have no other), by words of the name in torch, longer words first; from
# NVIDIA's data sheets (half of the figures "with sparsity").
PEAKS = {
    "GH200": 989e12, "H200 NVL": 835e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "H800 PCIe": 756e12, "H800": 989e12,
    "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A6000": 155e12,
    "A10": 125e12, "A10G": 70e12, "RTX 4090": 165e12, "V100-PCIE": 112e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip
LESS = ("MIG", "Laptop GPU", "4090 D")  # a part of a GPU, or a slower one of the same name


class Operations(NamedTuple):
    """Operations of one part: in the forward, and in the backward for gradients of weights and of inputs."""

    forward: int
    backward: int


def count_operations(network: Any, visual: nn.Module, batch: Batch, merge: int) -> dict[str, Operations] | None:
    """Operations of a batch by part (vision, merger, text, head), with a backward to all that learns. None if the
    vision tower, `visual`, is not known here. `merge`: patches a side of an image token.

    The gradient of a part's input counts if something learns in the part or before it; so a first layer counts one
    product too many if nothing before it learns.
    """
    family = family_of(network.config)
    text, head = (network.get_submodule(path) for path in (family.text, "lm_head"))
    vision = count_vision(family, visual, batch.grids_I3 if batch.features_FH is None else batch.grids_I3[:0], merge)
    if vision is None:
        return None
    blocks = network.get_submodule(family.text_blocks)
    heads = text.config.num_attention_heads
    width = heads * (getattr(text.config, "head_dim", None) or text.config.hidden_size // heads)
    lines, size = batch.input_ids_BS.shape
    attention = 4 * len(blocks) * lines * size**2 * width
    flows = _learns(visual, text)
    return {
        **vision,
        "text": _add_operations(
            count_linear(blocks, lines * size, flows), Operations(attention, 2 * attention * flows)
        ),
        "head": count_linear(head, len(batch.labels_N), _learns(visual, text, head)),
    }


def count_vision(family: Family, visual: nn.Module, grids_I3: Tensor, merge: int) -> dict[str, Operations] | None:
    """Operations of tower and merger on images with these grids [I, 3]. None if the tower is not known here."""
    attention = family.vision_attention(visual, grids_I3)
    if attention is None:
        return None
    patches = int(grids_I3.prod(-1).sum())
    blocks = visual.get_submodule(family.vision_blocks)
    embeds, mergers = ([visual.get_submodule(p) for p in paths] for paths in (family.embeddings, family.mergers))
    # a table of positions is looked up, which is no product: only the convolution that reads pixels counts
    pixel_weights = [p for embed in embeds for p in embed.parameters() if p.dim() > 2]
    embedding = 2 * sum(p.numel() for p in pixel_weights) * patches
    flows = _learns(*embeds, blocks)
    tower = _add_operations(
        Operations(embedding, embedding * any(p.requires_grad for p in pixel_weights)),  # pixels need no gradient
        count_linear(blocks, patches, flows),
        Operations(attention, 2 * attention * flows),
    )
    return {
        "vision": tower,
        "merger": _add_operations(*(count_linear(m, patches // merge**2, _learns(visual)) for m in mergers)),
    }


def count_linear(module: nn.Module, tokens: int, flows: bool) -> Operations:
    """Operations of a module's matrices, additions of LoRA among them, on so many tokens. `flows`: whether their
    inputs need a gradient."""
    layers = (m for m in module.modules() if not isinstance(m, nn.Embedding))
    weights = [p for m in layers for p in m.parameters(recurse=False) if p.dim() == 2]
    every = sum(map(count_numbers, weights))
    learning = sum(w.numel() for w in weights if w.requires_grad)
    return Operations(2 * tokens * every, 2 * tokens * (learning + every * flows))


def training_operations(parts: Mapping[str, Operations] | None) -> int | None:
    """Operations of all parts, forward and backward; None if they are not known."""
    return None if parts is None else sum(part.forward + part.backward for part in parts.values())


def _learns(*modules: nn.Module) -> bool:
    return any(p.requires_grad for module in modules for p in module.parameters())


def _add_operations(*parts: Operations) -> Operations:
    return Operations(*(sum(column) for column in zip(*parts, strict=True)))


def peak_flops(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """The most operations a second: of a known GPU as published (dense bfloat16), of any other device as measured here.

    The measure is the best of five square products of `dtype` on torch's present number of threads.
    """
    if device.type == "cuda":
        peak = published(torch.cuda.get_device_name(device))
        if peak is not None:
            return peak
    side = 1024 if device.type == "cpu" else 8192
    rng = torch.Generator(device).manual_seed(0)  # its own: the random numbers of a training must not change
    # not ones: a GPU is faster on numbers that switch fewer of its transistors
    matrix = torch.rand((side, side), generator=rng, device=device).to(dtype)
    return 2 * side**3 / min(_time_product(matrix) for _ in range(5))


def published(name: str) -> float | None:
    """The published peak of a GPU of this name; None if it is not known."""

    def names_part(part: str) -> bool:
        return re.search(rf"\b{part}\b", name) is not None

    return (
        None if any(map(names_part, LESS)) else next((peak for part, peak in PEAKS.items() if names_part(part)), None)
    )


def _time_product(matrix: Tensor) -> float:
    start = time.perf_counter()
    matrix @ matrix
    if matrix.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start

"""Bytes that a training keeps for the backward, counted on two blocks of the base's widths, without its weights.

The text runs on fake tensors, which have shapes and no numbers; the vision tower, whose shapes depend on the sizes of
images, on numbers that mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from clinkd.config import ModelConfig
from clinkd.model.encode import ImageEncoder
from clinkd.model.families import Family, read_family
from clinkd.model.folders import opened_folder
from clinkd.records import ImageRef

TOKENS = 128  # of the text that is tried
BLANK = ImageRef("", 112, 112)
FLOAT = 4  # bytes of what stands between blocks


@dataclass(frozen=True)
class KeptBytes:
    """Of a stack of blocks: the bytes that each token (or patch) keeps of one block, and those of its width, which are
    all that stays where blocks are computed again."""

    blocks: int
    a_block: float
    width: float

    def whole(self, tokens: float, recompute: bool) -> float:
        """Bytes of all blocks: each of them, or the input of each and the one that is computed again."""
        return tokens * (self.blocks * self.width + self.a_block if recompute else self.blocks * self.a_block)


@dataclass(frozen=True)
class Activations:
    """What a training keeps of a text token and of a vision patch. `cached`: numbers of a token's keys and values while
    an answer is written."""

    text: KeptBytes
    vision: KeptBytes
    cached: int
    images: ImageEncoder

    def image_tokens(self, refs: Sequence[ImageRef]) -> int:
        """The tokens of images, together."""
        return sum(math.prod(self.images.grid(ref)) for ref in refs)


def count_activations(knobs: ModelConfig, precision: str) -> Activations:
    """Count for the base of `knobs`. Raises BadInput as `load`, for what is read of it: its configurations."""
    assert knobs.base
    family, config = read_family(knobs.base, knobs)
    with opened_folder(knobs.base, "a vision-language model", adapters=True) as opened:
        processor = opened.processor(family.processor_class)
    family.complete_processor(processor, config)
    family.limit_image_tokens(processor, knobs.max_image_tokens)

    def show_blank(ref: ImageRef) -> Image.Image:
        return Image.new("RGB", (ref.width or 1, ref.height or 1))

    images = ImageEncoder(family, processor, show_blank, knobs.square)
    with torch.device("meta"):
        network = family.network_class(config)
    text = config.text_config
    heads = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return Activations(
            _count_text(network.get_submodule(family.text), family, config),
            _count_vision(network.get_submodule(family.visual), family, images),
            2 * text.num_hidden_layers * text.num_key_value_heads * heads,
            images,
        )


def _count_text(text: nn.Module, family: Family, config: Any) -> KeptBytes:
    blocks = family.text_blocks.removeprefix(f"{family.text}.")

    def run() -> Tensor:
        hidden_BSH = torch.zeros(1, TOKENS, config.text_config.hidden_size, requires_grad=True)
        ids_BS, mask_B1SS = torch.zeros(1, TOKENS, dtype=torch.long), torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool)
        given = family.inputs(config, ids_BS, mask_B1SS, torch.zeros(3, 1, TOKENS), None)
        places = {name: given[name] for name in ("attention_mask", "position_ids")}
        states: Tensor = text(inputs_embeds=hidden_BSH, use_cache=False, **places).last_hidden_state
        return states

    with FakeTensorMode(allow_non_fake_inputs=True):  # weights on `meta` become fake ones
        return _count_a_block(text, blocks, run, TOKENS)


def _count_vision(visual: nn.Module, family: Family, images: ImageEncoder) -> KeptBytes:
    pixels_TD, grids_I3 = images.patches([BLANK])
    return _count_a_block(
        visual, family.vision_blocks, lambda: family.vision_features(visual, pixels_TD, grids_I3), len(pixels_TD)
    )


def _count_a_block(module: nn.Module, path: str, run: Callable[[], Tensor], tokens: int) -> KeptBytes:
    """What two blocks keep and one does not. The module, which is on `meta`, gets weights without a meaning."""
    blocks, widths, kept = list(module.get_submodule(path)), list[int](), list[int]()  # type: ignore[call-overload]
    for number in (2, 1):
        module.set_submodule(path, nn.ModuleList(blocks[:number]))
        if number == 2:
            module.to_empty(device="cpu").train()
            for buffer in module.buffers():  # some are indices
                buffer.zero_()
        kept.append(_count_kept(module, run, tokens))
    with torch.no_grad():
        blocks[0].register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[-1]))
        run()
    return KeptBytes(len(blocks), (kept[0] - kept[1]) / tokens, widths[0] * FLOAT)


def _count_kept(module: nn.Module, run: Callable[[], Tensor], tokens: int) -> int:
    """Bytes that the backward of `run` would read, without weights, what they become in bfloat16, and matrices of
    attention, [tokens, tokens], which the kernels of a GPU do not keep."""
    shapes = {p.shape for p in module.parameters()} | {p.T.shape for p in module.parameters() if p.dim() == 2}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape not in shapes and tensor.shape[-2:] != (tokens, tokens):
            storage = tensor.untyped_storage()
            kept[id(storage)] = (storage.nbytes(), tensor)  # the tensor is kept, so that no other gets its id
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(size for size, _ in kept.values())

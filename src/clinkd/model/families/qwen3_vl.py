"""Our Qwen3-VL (dense): features of several depths of its tower (DeepStack), interleaved rotary pairs, no system turn.

DeepStack (arXiv 2406.04334): features from L blocks of the tower are added to the hidden states behind the first L
blocks of the text. Here they stand beside the merged ones, as features [F, (1 + L) * H] of one vision pass, so that
stores, teachers and decoding treat them as one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from clinkd.config import TinyConfig
from clinkd.model.families.family import count_full_attention
from clinkd.model.families.portable.qwen3_vl import ClinkdQwen3Config, ClinkdQwen3ForConditionalGeneration
from clinkd.model.families.qwen import CHAT, COMMON, Qwen

GREY = [0.5] * 3  # mean and deviation of a pixel, as this family normalises it

AutoConfig.register(ClinkdQwen3Config.model_type, ClinkdQwen3Config)


class Qwen3VL(Qwen):
    """The hooks of its own; QWEN3_VL holds the names."""

    def tiny_settings(self, tiny: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        settings = super().tiny_settings(tiny, tokenizer)
        text, head_dim = settings["text_config"], 2 * tiny.hidden // tiny.heads  # not hidden / heads, as in the 4B
        text["head_dim"] = head_dim
        text["rope_parameters"] |= {"mrope_interleaved": True, "mrope_section": self.share_pairs(head_dim // 2)}
        return settings

    def tiny_vision(self, tiny: TinyConfig) -> dict[str, Any]:
        return {
            "hidden_size": tiny.vision_hidden,
            "out_hidden_size": tiny.hidden,
            "intermediate_size": 4 * tiny.vision_hidden,
            "num_position_embeddings": (tiny.image_pixels // tiny.patch) ** 2,
            # behind the last block of the text nothing would look at them any more
            "deepstack_visual_indexes": [*range(min(3, tiny.vision_layers, tiny.layers - 1))],
        }

    def tiny_processor(self, tiny: TinyConfig) -> Qwen2VLImageProcessorPil:
        processor = super().tiny_processor(tiny)
        processor.image_mean = processor.image_std = GREY
        return processor

    def vision_features(self, visual: nn.Module, pixels_TD: Tensor, grids_I3: Tensor) -> Tensor:
        output = visual(pixels_TD, grid_thw=grids_I3)
        return torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)

    def feature_width(self, config: Any) -> int:
        depths = 1 + len(config.vision_config.deepstack_visual_indexes)
        return depths * super().feature_width(config)

    def encoder_output(self, config: Any, features: tuple[Tensor, ...]) -> BaseModelOutputWithDeepstackFeatures:
        depths = [torch.split(f, config.text_config.hidden_size, dim=-1) for f in features]
        merged, *deepstack = (list(images) for images in zip(*depths, strict=True))
        return BaseModelOutputWithDeepstackFeatures(pooler_output=merged, deepstack_features=deepstack)

    def vision_attention(self, visual: Any, grids_I3: Tensor) -> int | None:
        return count_full_attention(len(visual.blocks), visual.config.hidden_size, grids_I3)


QWEN3_VL = Qwen3VL(
    name="Qwen3-VL",
    stock_type=Qwen3VLConfig.model_type,
    own_type=ClinkdQwen3Config.model_type,
    network_class=ClinkdQwen3ForConditionalGeneration,
    stock_class=Qwen3VLForConditionalGeneration,
    layout="interleaved",
    boxes="qwen3-vl",
    **COMMON
    | {
        "chat": replace(CHAT, system=None),
        "embeddings": ("patch_embed", "pos_embed"),
        "mergers": ("merger", "deepstack_merger_list"),
    },
)

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
from transformers import AutoModel, PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration, Qwen3VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.configuration_qwen3_vl import (
    Qwen3VLConfig,
    Qwen3VLTextConfig,
    Qwen3VLVisionConfig,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures, Qwen3VLTextModel

from clinkd.config import TinyConfig
from clinkd.model.families.family import SchemeKnobs, count_full_attention, register
from clinkd.model.families.qwen import CHAT, COMMON, LayoutKnobs, Qwen, SchemeGeneration, SchemeModel

GREY = [0.5] * 3  # mean and deviation of a pixel, as this family normalises it


class ClinkdQwen3TextConfig(LayoutKnobs, Qwen3VLTextConfig):
    """Stock text configuration plus what decides the rotary pairs."""

    model_type = "clinkd_qwen3_vl_text"
    sections = (24, 20, 20)


class ClinkdQwen3Config(SchemeKnobs, Qwen3VLConfig):
    """Stock configuration plus the scheme."""

    model_type = "clinkd_qwen3_vl"
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": Qwen3VLVisionConfig, "text_config": ClinkdQwen3TextConfig
    }  # fmt: skip


class ClinkdQwen3TextModel(Qwen3VLTextModel):
    """Stock text model under our configuration, by which the stock model finds it."""

    config_class = ClinkdQwen3TextConfig


class ClinkdQwen3Model(SchemeModel, Qwen3VLModel):
    """Stock model with our positions."""

    config_class = ClinkdQwen3Config


class ClinkdQwen3ForConditionalGeneration(SchemeGeneration, Qwen3VLForConditionalGeneration):
    """Stock head and generation on our model."""

    config_class = ClinkdQwen3Config
    model_class = ClinkdQwen3Model


AutoModel.register(ClinkdQwen3TextConfig, ClinkdQwen3TextModel)
register(
    ClinkdQwen3Config,
    {ClinkdQwen3ForConditionalGeneration: Qwen3VLForConditionalGeneration, ClinkdQwen3Model: Qwen3VLModel},
)


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

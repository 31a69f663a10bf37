"""The stock Qwen2.5-VL classes with a position scheme of choice."""

from __future__ import annotations

from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)

from clinkd.model.families.portable.networks import (
    LayoutKnobs,
    SchemeGeneration,
    SchemeKnobs,
    SchemeModel,
    read_hub_names,
)


class ClinkdQwen25TextConfig(LayoutKnobs, Qwen2_5_VLTextConfig):
    """Stock text configuration plus what decides the rotary pairs."""

    model_type = "clinkd_qwen2_5_vl_text"


class ClinkdQwen25Config(SchemeKnobs, Qwen2_5_VLConfig):
    """Stock configuration plus the scheme."""

    model_type = "clinkd_qwen2_5_vl"
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": Qwen2_5_VLVisionConfig, "text_config": ClinkdQwen25TextConfig
    }  # fmt: skip


class ClinkdQwen25Model(SchemeModel, Qwen2_5_VLModel):
    """Stock model with our positions."""

    config_class = ClinkdQwen25Config


class ClinkdQwen25ForConditionalGeneration(SchemeGeneration, Qwen2_5_VLForConditionalGeneration):
    """Stock head and generation on our model."""

    config_class = ClinkdQwen25Config
    model_class = ClinkdQwen25Model


read_hub_names(
    {
        ClinkdQwen25ForConditionalGeneration: Qwen2_5_VLForConditionalGeneration,
        ClinkdQwen25Model: Qwen2_5_VLModel,
    }
)

"""The stock Qwen2-VL classes with a position scheme of choice."""

from __future__ import annotations

from transformers import Qwen2VLForConditionalGeneration, Qwen2VLModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import (
    Qwen2VLConfig,
    Qwen2VLTextConfig,
    Qwen2VLVisionConfig,
)

from clinkd.model.families.portable.networks import (
    LayoutKnobs,
    SchemeGeneration,
    SchemeKnobs,
    SchemeModel,
    read_hub_names,
)


class ClinkdTextConfig(LayoutKnobs, Qwen2VLTextConfig):
    """Stock text configuration plus what decides the rotary pairs."""

    model_type = "clinkd_text"


class ClinkdConfig(SchemeKnobs, Qwen2VLConfig):
    """Stock configuration plus the scheme."""

    model_type = "clinkd"
    sub_configs_defaults = {"vision_config": Qwen2VLVisionConfig, "text_config": ClinkdTextConfig}  # noqa: RUF012


class ClinkdModel(SchemeModel, Qwen2VLModel):
    """Stock model with our positions."""

    config_class = ClinkdConfig


class ClinkdForConditionalGeneration(SchemeGeneration, Qwen2VLForConditionalGeneration):
    """Stock head and generation on our model."""

    config_class = ClinkdConfig
    model_class = ClinkdModel


read_hub_names({ClinkdForConditionalGeneration: Qwen2VLForConditionalGeneration, ClinkdModel: Qwen2VLModel})

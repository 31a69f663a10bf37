"""The stock Qwen3-VL classes (dense) with a position scheme of choice."""

from __future__ import annotations

from transformers import AutoModel, Qwen3VLForConditionalGeneration, Qwen3VLModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import (
    Qwen3VLConfig,
    Qwen3VLTextConfig,
    Qwen3VLVisionConfig,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from clinkd.model.families.portable.networks import (
    LayoutKnobs,
    SchemeGeneration,
    SchemeKnobs,
    SchemeModel,
    read_hub_names,
)


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
read_hub_names({ClinkdQwen3ForConditionalGeneration: Qwen3VLForConditionalGeneration, ClinkdQwen3Model: Qwen3VLModel})

"""Our Qwen2.5-VL: as Qwen2-VL, but most blocks of its tower attend within windows; boxes are pixels as it sees them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)

from clinkd.config import TinyConfig
from clinkd.model.families.family import SchemeKnobs, register
from clinkd.model.families.qwen import COMMON, LayoutKnobs, Qwen, SchemeGeneration, SchemeModel


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


register(
    ClinkdQwen25Config,
    {
        ClinkdQwen25ForConditionalGeneration: Qwen2_5_VLForConditionalGeneration,
        ClinkdQwen25Model: Qwen2_5_VLModel,
    },
)


class Qwen25VL(Qwen):
    """The hooks of its own; QWEN2_5_VL holds the names."""

    def tiny_vision(self, tiny: TinyConfig) -> dict[str, Any]:
        return {
            "hidden_size": tiny.vision_hidden,
            "out_hidden_size": tiny.hidden,
            "intermediate_size": 4 * tiny.vision_hidden,
            "window_size": 4 * tiny.merge * tiny.patch,  # four tokens a side, as the stock windows
            "fullatt_block_indexes": [tiny.vision_layers - 1],
        }

    def vision_attention(self, visual: Any, grids_I3: Tensor) -> int | None:
        config = visual.config
        full = len({*range(len(visual.blocks))} & {*config.fullatt_block_indexes})
        side = config.window_size // config.spatial_merge_size // config.patch_size * config.spatial_merge_size

        def windows(patches: int) -> int:
            """The squared lengths of the windows along one side of an image, added up; the last may be shorter."""
            return patches // side * side**2 + (patches % side) ** 2

        pairs = 0  # of a patch and one that it attends to, in all blocks
        for frames, tall, wide in grids_I3.tolist():
            windowed = (len(visual.blocks) - full) * windows(tall) * windows(wide)
            pairs += frames * (full * (tall * wide) ** 2 + windowed)
        return 4 * int(config.hidden_size) * pairs


QWEN2_5_VL = Qwen25VL(
    name="Qwen2.5-VL",
    stock_type=Qwen2_5_VLConfig.model_type,
    own_type=ClinkdQwen25Config.model_type,
    network_class=ClinkdQwen25ForConditionalGeneration,
    stock_class=Qwen2_5_VLForConditionalGeneration,
    layout="sections",
    boxes="qwen2.5-vl",
    **COMMON,
)

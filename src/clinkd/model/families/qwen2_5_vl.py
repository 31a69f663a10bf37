"""Our Qwen2.5-VL: as Qwen2-VL, but most blocks of its tower attend within windows; boxes are pixels as it sees them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig

from clinkd.config import TinyConfig
from clinkd.model.families.portable.qwen2_5_vl import ClinkdQwen25Config, ClinkdQwen25ForConditionalGeneration
from clinkd.model.families.qwen import COMMON, Qwen

AutoConfig.register(ClinkdQwen25Config.model_type, ClinkdQwen25Config)


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

"""Our Qwen2-VL: the stock transformers classes with a position scheme of choice."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig, Qwen2VLVisionConfig

from clinkd.config import TinyConfig
from clinkd.model.families.family import count_full_attention
from clinkd.model.families.portable.qwen2_vl import ClinkdConfig, ClinkdForConditionalGeneration
from clinkd.model.families.qwen import COMMON, Qwen

STRAIGHT = 10.0  # from here on GELU is the identity: no normalised value of a tiny tower is far below -10

AutoConfig.register(ClinkdConfig.model_type, ClinkdConfig)


class Qwen2VL(Qwen):
    """The hooks of its own; QWEN2_VL holds the names."""

    def tiny_vision(self, tiny: TinyConfig) -> dict[str, Any]:
        return {"embed_dim": tiny.vision_hidden, "hidden_size": tiny.hidden, "mlp_ratio": 4}

    def start_as_identity(self, visual: Any) -> None:
        """Let the tower of a tiny model give the first values of each patch, normalised; merged tokens their mean."""
        embedding_DP, (widen, _, narrow) = visual.patch_embed.proj.weight.flatten(1), visual.merger.mlp
        nn.init.eye_(embedding_DP)
        for block in visual.blocks:
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.fc2.weight)
        nn.init.eye_(widen.weight)
        nn.init.constant_(widen.bias, STRAIGHT)
        mean_HMD = narrow.weight.unflatten(1, (-1, len(embedding_DP)))
        for k in range(mean_HMD.shape[1]):
            nn.init.eye_(mean_HMD[:, k]).div_(mean_HMD.shape[1])
        narrow.bias.copy_(-STRAIGHT * narrow.weight.sum(1))

    def vision_attention(self, visual: Any, grids_I3: Tensor) -> int | None:
        if visual.config.model_type != Qwen2VLVisionConfig.model_type:
            return None
        return count_full_attention(len(visual.blocks), visual.config.embed_dim, grids_I3)


QWEN2_VL = Qwen2VL(
    name="Qwen2-VL",
    stock_type=Qwen2VLConfig.model_type,
    own_type=ClinkdConfig.model_type,
    network_class=ClinkdForConditionalGeneration,
    stock_class=Qwen2VLForConditionalGeneration,
    layout="sections",
    boxes="qwen2-vl",
    **COMMON,
)

"""Our Qwen2-VL: the stock transformers classes with a position scheme of choice.

What touches the private surface of its classes stands here only.

Two hooks suffice: `get_rope_index` of the model (float32, delta 0 or the scheme's) and the rotary embedding of the
text part. Everything else, the vision tower, the cache, beam search, is transformers' own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration, Qwen2VLModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2_vl.configuration_qwen2_vl import (
    Qwen2VLConfig,
    Qwen2VLTextConfig,
    Qwen2VLVisionConfig,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

from clinkd.config import Layout, ModelConfig, TinyConfig
from clinkd.model.families.family import (
    NOT_CARRIED,
    OWN_KEYS,
    ChatTemplate,
    Family,
    ImageGeometry,
    drop_keys,
    scheme_knobs,
)
from clinkd.model.positions import MRope, PositionScheme, RotaryPairs, position_scheme, rotary_pairs
from clinkd.records import BadInput

__all__ = ["QWEN2_VL", "ClinkdConfig", "ClinkdForConditionalGeneration", "ClinkdModel"]

# A rope type that no other class knows: the stock class would take our weights under any model type, with a warning
# and the wrong positions, but stops at this.
ROPE_TYPE = "clinkd"
NATIVE = MRope()  # the positions of Qwen2-VL itself
STRAIGHT = 10.0  # from here on GELU is the identity: no normalised value of a tiny tower is far below -10


class ClinkdTextConfig(Qwen2VLTextConfig):
    """Stock text configuration plus what decides the rotary pairs."""

    model_type = "clinkd_text"
    rope_layout: Layout = "sections"
    rope_axes: list[int] | None = None


class ClinkdConfig(Qwen2VLConfig):
    """Stock configuration under a model type of our own, so that no Auto class takes it for a stock model.

    `scheme` holds the ModelConfig that the checkpoint was made with, but for NOT_CARRIED. `eyes`: whether its patches
    are those of the eyes that are saved beside it.
    """

    model_type = "clinkd"
    sub_configs_defaults = {"vision_config": Qwen2VLVisionConfig, "text_config": ClinkdTextConfig}  # noqa: RUF012
    scheme: dict[str, Any] | None = None
    system_turn: bool = True  # whether prompts open with Qwen2-VL's system turn
    eyes: bool = False


def _pairs(config: ClinkdTextConfig) -> RotaryPairs:
    num_pairs = config.hidden_size // config.num_attention_heads // 2
    sections = tuple(config.rope_parameters.get("mrope_section", (16, 24, 24)))
    return rotary_pairs(config.rope_layout, tuple(config.rope_axes or (0, 1, 2)), num_pairs, sections)


def _frequencies(config: Any, *_: Any, **__: Any) -> tuple[Tensor, float]:
    """Inverse frequencies [P] for rope type ROPE_TYPE. Raises BadInput for a stock configuration."""
    if not isinstance(config, ClinkdTextConfig):
        raise BadInput("this checkpoint has positions of its own: load it by clinkd.model.load, not by the stock class")
    # The stock expression for the ladder, so that `sections` and `interleaved` give the same bits.
    exponent_P = torch.tensor(_pairs(config).exponent_P, dtype=torch.float)
    return 1.0 / (config.rope_parameters["rope_theta"] ** exponent_P), 1.0


ROPE_INIT_FUNCTIONS[ROPE_TYPE] = _frequencies


class ClinkdRotaryEmbedding(Qwen2VLRotaryEmbedding):
    """Rotary embedding whose pairs are shared out by `rotary_pairs`; one cosine a pair, not one an axis."""

    def __init__(self, config: ClinkdTextConfig) -> None:
        super().__init__(config)
        self.axes = list(_pairs(config).axis_P)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, S, head_dim] of positions [3, B, S]; angles in float32 whatever the model's type."""
        place_BSP = position_ids.expand(3, -1, -1).float()[self.axes].permute(1, 2, 0)
        angle_BSP = place_BSP * self.inv_freq.to(device=x.device, dtype=torch.float)
        angle_BSD = torch.cat((angle_BSP, angle_BSP), dim=-1)
        return angle_BSD.cos().to(x.dtype), angle_BSD.sin().to(x.dtype)


class ClinkdModel(Qwen2VLModel):
    """Stock model with our positions."""

    config_class = ClinkdConfig

    def __init__(self, config: ClinkdConfig) -> None:
        super().__init__(config)
        self.scheme: PositionScheme = position_scheme(scheme_knobs(config).positions, NATIVE)
        self.language_model.rotary_emb = ClinkdRotaryEmbedding(config.text_config)

    def get_rope_index(
        self,
        input_ids: Tensor,
        mm_token_type_ids: Tensor,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Positions [3, B, S] float32 and what to add to a cached step's plain index [B, 1], as the stock method.

        The stock layout: one sequence a row, padding (left or right) named by `attention_mask`.
        """
        if video_grid_thw is not None:
            raise BadInput("videos are not supported: give single frames as images")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        seen_BS = attention_mask.bool()
        running_BS = (seen_BS.long().cumsum(1) - 1).clamp(min=0)
        merge = self.config.vision_config.spatial_merge_size
        grids_N2 = image_grid_thw[:, 1:] // merge if image_grid_thw is not None else running_BS.new_zeros(0, 2)
        image_BS = (mm_token_type_ids == 1) & seen_BS
        positions_3BS = self.scheme.positions(image_BS, running_BS, grids_N2.to(input_ids.device))
        # A row's last token is text, at its running index plus this difference; later text follows it.
        delta_B1 = positions_3BS[0, :, -1:] - running_BS[:, -1:]
        return positions_3BS.masked_fill(~seen_BS, 0.0), delta_B1


class ClinkdForConditionalGeneration(Qwen2VLForConditionalGeneration):
    """Stock head and generation on our model."""

    config_class = ClinkdConfig

    def __init__(self, config: ClinkdConfig) -> None:
        super().__init__(config)
        self.model = ClinkdModel(config)
        self.post_init()


AutoConfig.register("clinkd", ClinkdConfig)
for _stock in ("Qwen2VLForConditionalGeneration", "Qwen2VLModel"):
    # Without this, hub-named weights load as random ones, with nothing but a printed report.
    if (
        _mapping := get_checkpoint_conversion_mapping(_stock) or get_checkpoint_conversion_mapping("qwen2_vl")
    ) is not None:
        register_checkpoint_conversion_mapping(_stock.replace("Qwen2VL", "Clinkd"), _mapping, overwrite=True)


class Qwen2VL(Family):
    """The hooks; QWEN2_VL holds the names."""

    def tiny_settings(self, tiny: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        if tiny.hidden % (tiny.heads * 8):
            raise BadInput(f"model.tiny.hidden={tiny.hidden} must be a multiple of 8 * model.tiny.heads={tiny.heads}")
        if tiny.image_pixels % (tiny.patch * tiny.merge):
            raise BadInput(
                f"model.tiny.image_pixels={tiny.image_pixels} must be a multiple of model.tiny.merge * patch = "
                f"{tiny.patch * tiny.merge}"
            )
        num_pairs = tiny.hidden // tiny.heads // 2
        height = width = (num_pairs * 3) // 8  # the stock proportions, 16 : 24 : 24
        token = tokenizer.convert_tokens_to_ids
        return {
            "text_config": {
                "vocab_size": len(tokenizer),
                "hidden_size": tiny.hidden,
                "intermediate_size": tiny.mlp,
                "num_hidden_layers": tiny.layers,
                "num_attention_heads": tiny.heads,
                "num_key_value_heads": tiny.heads,
                "max_position_embeddings": 4096,
                "initializer_range": tiny.init_std,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": tiny.rope_theta,
                    "mrope_section": [num_pairs - height - width, height, width],
                },
                "bos_token_id": token("<|endoftext|>"),
                "eos_token_id": token("<|im_end|>"),
                "pad_token_id": token("<|endoftext|>"),
            },
            "vision_config": {
                "depth": tiny.vision_layers,
                "embed_dim": tiny.vision_hidden,
                "hidden_size": tiny.hidden,
                "num_heads": tiny.vision_heads,
                "mlp_ratio": 4,
                "patch_size": tiny.patch,
                "spatial_merge_size": tiny.merge,
                "temporal_patch_size": 2,
                "initializer_range": tiny.init_std,
            },
            "image_token_id": token("<|image_pad|>"),
            "video_token_id": token("<|video_pad|>"),
            "vision_start_token_id": token("<|vision_start|>"),
            "vision_end_token_id": token("<|vision_end|>"),
            "tie_word_embeddings": True,
            "initializer_range": tiny.init_std,
        }

    def tiny_processor(self, tiny: TinyConfig) -> Qwen2VLImageProcessorPil:
        area = tiny.image_pixels**2
        return Qwen2VLImageProcessorPil(
            patch_size=tiny.patch, merge_size=tiny.merge, size={"shortest_edge": area, "longest_edge": area}
        )

    def start_as_identity(self, visual: Any) -> None:
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

    def configure(self, stock: dict[str, Any], knobs: ModelConfig) -> ClinkdConfig:
        scheme = knobs.model_dump(mode="json", exclude=NOT_CARRIED)
        config: ClinkdConfig = self.network_class.config_class(**drop_keys(stock, "scheme"), scheme=scheme)
        rope = config.text_config.rope_parameters
        if rope["rope_type"] not in ("default", ROPE_TYPE):
            raise BadInput(
                f"model.base: rope_type {rope['rope_type']!r} is not supported; {self.name} has 'default' (or 'mrope')"
            )
        rope["rope_type"] = ROPE_TYPE
        config.text_config.rope_layout = knobs.layout
        config.text_config.rope_axes = list(position_scheme(knobs.positions, self.native).axes)
        return config

    def stock_settings(self, config: ClinkdConfig) -> dict[str, Any]:
        settings = drop_keys(config.to_dict(), *OWN_KEYS)
        for key in ("model_type", "rope_layout", "rope_axes"):
            settings["text_config"].pop(key, None)
        settings["text_config"]["rope_parameters"]["rope_type"] = "default"
        return settings

    def geometry(self, processor: Qwen2VLImageProcessorPil) -> ImageGeometry:
        side, size = processor.patch_size, processor.size
        values = 3 * processor.temporal_patch_size * side**2
        return ImageGeometry(side, processor.merge_size, values, size["shortest_edge"], size["longest_edge"])

    def limit_image_tokens(self, processor: Qwen2VLImageProcessorPil, most: int) -> None:
        pixels = (processor.patch_size * processor.merge_size) ** 2  # of a token
        size = dict(processor.size)
        size["longest_edge"] = min(size["longest_edge"], most * pixels)
        size["shortest_edge"] = min(size["shortest_edge"], size["longest_edge"])
        processor.size = size

    def patches(self, processor: Qwen2VLImageProcessorPil, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        processed = processor(images=list(images), do_resize=False, return_tensors="pt")
        return processed["pixel_values"], processed["image_grid_thw"]

    def order_patches(self, patches_YXD: Tensor, merge: int) -> Tensor:
        tall, wide, values = patches_YXD.shape  # patches that become one token follow each other
        blocks = patches_YXD.reshape(tall // merge, merge, wide // merge, merge, values).transpose(1, 2)
        return blocks.reshape(-1, values)

    def vision_features(self, visual: nn.Module, pixels_TD: Tensor, grids_I3: Tensor) -> Tensor:
        features_FH: Tensor = visual(pixels_TD, grid_thw=grids_I3).pooler_output
        return features_FH

    def inputs(self, positions_3BS: Tensor, features: tuple[Tensor, ...] | None) -> dict[str, Any]:
        images = None if features is None else {"image": BaseModelOutputWithPooling(pooler_output=features)}
        return {"position_ids": positions_3BS, "mm_encoder_outputs": images}

    def pixel_inputs(self, image_BS: Tensor, pixels_TD: Tensor, grids_I3: Tensor) -> dict[str, Any]:
        return {"mm_token_type_ids": image_BS.int(), "pixel_values": pixels_TD, "image_grid_thw": grids_I3}

    def vision_attention(self, visual: Any, patches_I: Sequence[int]) -> int | None:
        if visual.config.model_type != Qwen2VLVisionConfig.model_type:
            return None
        return 4 * len(visual.blocks) * visual.config.embed_dim * sum(n**2 for n in patches_I)


QWEN2_VL = Qwen2VL(
    name="Qwen2-VL",
    stock_type=Qwen2VLConfig.model_type,
    own_type=ClinkdConfig.model_type,
    network_class=ClinkdForConditionalGeneration,
    stock_class=Qwen2VLForConditionalGeneration,
    processor_class=Qwen2VLImageProcessorPil,
    native=NATIVE,
    layout="sections",
    boxes="qwen2-vl",
    chat=ChatTemplate(
        system="You are a helpful assistant.",
        system_turn="<|im_start|>system\n{}<|im_end|>\n",
        user="<|im_start|>user\n",
        image_start="<|vision_start|>",
        image_token="<|image_pad|>",
        image_end="<|vision_end|>",
        answer="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        between="\n",
        pad="<|endoftext|>",
        suppressed=("<|image_pad|>", "<|video_pad|>", "<|im_start|>"),
        words=("user", "assistant\n", "\n"),
    ),
    special_tokens=(
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
        "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
        "<|image_pad|>", "<|video_pad|>",
    ),
    visual="model.visual",
    embedding="patch_embed",
    vision_blocks="blocks",
    merger="merger",
    text="model.language_model",
    text_blocks="model.language_model.layers",
)  # fmt: skip

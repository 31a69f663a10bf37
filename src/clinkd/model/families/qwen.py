"""What the Qwen vision-language families have in common: positions of choice, chat marks, image processor, most hooks.

What touches the private surface of the classes of transformers stands here and in the families' own files only.

Two hooks suffice: `get_rope_index` of the model (float32, delta 0 or the scheme's) and the rotary embedding of the
text part. Everything else, the vision tower, the cache, beam search, is transformers' own code.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
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

# A rope type that no other class knows: the stock class would take our weights under any model type, with a warning
# and the wrong positions, but stops at this.
ROPE_TYPE = "clinkd"
NATIVE = MRope()  # the positions of all these families (for images; only videos differ)


@dataclass(kw_only=True, repr=False, eq=False)
class LayoutKnobs:
    """What a text configuration of ours has beside the stock one: it decides the rotary pairs."""

    sections: ClassVar[tuple[int, ...]] = (16, 24, 24)  # pairs of time, height, width where a configuration has none
    rope_layout: Layout = "sections"
    rope_axes: list[int] | None = None


def _pairs(config: Any) -> RotaryPairs:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sections = tuple(config.rope_parameters.get("mrope_section", config.sections))
    return rotary_pairs(config.rope_layout, tuple(config.rope_axes or (0, 1, 2)), head_dim // 2, sections)


def _frequencies(config: Any, *_: Any, **__: Any) -> tuple[Tensor, float]:
    """Inverse frequencies [P] for rope type ROPE_TYPE. Raises BadInput for a stock configuration."""
    if not isinstance(config, LayoutKnobs):
        raise BadInput("this checkpoint has positions of its own: load it by clinkd.model.load, not by the stock class")
    # The stock expression for the ladder, so that `sections` and `interleaved` give the same bits.
    exponent_P = torch.tensor(_pairs(config).exponent_P, dtype=torch.float)
    return 1.0 / (config.rope_parameters["rope_theta"] ** exponent_P), 1.0  # type: ignore[attr-defined]


ROPE_INIT_FUNCTIONS[ROPE_TYPE] = _frequencies


class ClinkdRotaryEmbedding(Qwen2VLRotaryEmbedding):
    """Rotary embedding whose pairs are shared out by `rotary_pairs`; one cosine a pair, not one an axis."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.axes = list(_pairs(config).axis_P)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, S, head_dim] of positions [3, B, S]; angles in float32 whatever the model's type."""
        place_BSP = position_ids.expand(3, -1, -1).float()[self.axes].permute(1, 2, 0)
        angle_BSP = place_BSP * self.inv_freq.to(device=x.device, dtype=torch.float)
        angle_BSD = torch.cat((angle_BSP, angle_BSP), dim=-1)
        return angle_BSD.cos().to(x.dtype), angle_BSD.sin().to(x.dtype)


class SchemeModel(nn.Module):
    """Stands before a stock model among the bases of ours, and gives it our positions."""

    config: Any
    language_model: Any

    def __init__(self, config: Any) -> None:
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


class SchemeGeneration(nn.Module):
    """Stands before a stock class with head and generation among the bases of ours, and puts our model into it."""

    model_class: ClassVar[type[PreTrainedModel]]
    post_init: Any  # a method of the stock class

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.post_init()


class Qwen(Family):
    """The hooks that these families share; COMMON holds the names."""

    def tiny_settings(self, tiny: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        if tiny.hidden % (tiny.heads * 8):
            raise BadInput(f"model.tiny.hidden={tiny.hidden} must be a multiple of 8 * model.tiny.heads={tiny.heads}")
        if tiny.image_pixels % (tiny.patch * tiny.merge):
            raise BadInput(
                f"model.tiny.image_pixels={tiny.image_pixels} must be a multiple of model.tiny.merge * patch = "
                f"{tiny.patch * tiny.merge}"
            )
        num_pairs = tiny.hidden // tiny.heads // 2
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
                    "mrope_section": self.share_pairs(num_pairs),
                },
                "bos_token_id": token("<|endoftext|>"),
                "eos_token_id": token("<|im_end|>"),
                "pad_token_id": token("<|endoftext|>"),
            },
            "vision_config": {
                "depth": tiny.vision_layers,
                "num_heads": tiny.vision_heads,
                "patch_size": tiny.patch,
                "spatial_merge_size": tiny.merge,
                "temporal_patch_size": 2,
                "initializer_range": tiny.init_std,
                **self.tiny_vision(tiny),
            },
            "image_token_id": token("<|image_pad|>"),
            "video_token_id": token("<|video_pad|>"),
            "vision_start_token_id": token("<|vision_start|>"),
            "vision_end_token_id": token("<|vision_end|>"),
            "tie_word_embeddings": True,
            "initializer_range": tiny.init_std,
        }

    def share_pairs(self, num_pairs: int) -> list[int]:
        """Rotary pairs of time, height and width, in the stock proportions."""
        sections = self.network_class.config_class.sub_configs["text_config"].sections
        height, width = (num_pairs * section // sum(sections) for section in sections[1:])
        return [num_pairs - height - width, height, width]

    @abstractmethod
    def tiny_vision(self, tiny: TinyConfig) -> dict[str, Any]:
        """The widths of the tower of a tiny model, and what else only this family's tower has."""

    def tiny_processor(self, tiny: TinyConfig) -> Qwen2VLImageProcessorPil:
        area = tiny.image_pixels**2
        return Qwen2VLImageProcessorPil(
            patch_size=tiny.patch, merge_size=tiny.merge, size={"shortest_edge": area, "longest_edge": area}
        )

    def configure(self, stock: dict[str, Any], knobs: ModelConfig) -> Any:
        scheme = knobs.model_dump(mode="json", exclude=NOT_CARRIED)
        config: Any = self.network_class.config_class(**drop_keys(stock, "scheme"), scheme=scheme)
        rope = config.text_config.rope_parameters
        if rope["rope_type"] not in ("default", ROPE_TYPE):
            raise BadInput(
                f"model.base: rope_type {rope['rope_type']!r} is not supported; {self.name} has 'default' (or 'mrope')"
            )
        rope["rope_type"] = ROPE_TYPE
        config.text_config.rope_layout = knobs.layout
        config.text_config.rope_axes = list(position_scheme(knobs.positions, self.native).axes)
        return config

    def stock_settings(self, config: Any) -> dict[str, Any]:
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

    def inputs(
        self, config: Any, ids_BS: Tensor, mask: Tensor, positions_3BS: Tensor, features: tuple[Tensor, ...] | None
    ) -> dict[str, Any]:
        images = None if features is None else {"image": self.encoder_output(config, features)}
        return {
            "input_ids": ids_BS, "attention_mask": mask, "position_ids": positions_3BS, "mm_encoder_outputs": images,
        }  # fmt: skip

    def encoder_output(self, config: Any, features: tuple[Tensor, ...]) -> BaseModelOutputWithPooling:
        """The features of each image, as the stock class has them from its tower."""
        return BaseModelOutputWithPooling(pooler_output=features)

    def pixel_inputs(self, image_BS: Tensor, pixels_TD: Tensor, grids_I3: Tensor) -> dict[str, Any]:
        return {"mm_token_type_ids": image_BS.int(), "pixel_values": pixels_TD, "image_grid_thw": grids_I3}


CHAT = ChatTemplate(
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
)
COMMON: dict[str, Any] = {  # of the fields of a Family
    "processor_class": Qwen2VLImageProcessorPil,
    "native": NATIVE,
    "chat": CHAT,
    "special_tokens": (
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
        "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
        "<|image_pad|>", "<|video_pad|>",
    ),
    "visual": "model.visual",
    "embeddings": ("patch_embed",),
    "vision_blocks": "blocks",
    "mergers": ("merger",),
    "text": "model.language_model",
    "text_blocks": "model.language_model.layers",
}  # fmt: skip

"""What the Qwen vision-language families have in common: chat marks, image processor, most hooks.

What touches the private surface of the classes of transformers stands here, in `portable` and in the families' own
files only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from clinkd.config import ModelConfig, TinyConfig
from clinkd.model.families.family import (
    OWN_KEYS,
    ChatTemplate,
    Family,
    ImageGeometry,
    drop_keys,
    write_scheme,
)
from clinkd.model.families.portable.networks import NATIVE, ROPE_TYPE
from clinkd.model.families.portable.processing import ClinkdImageProcessor, ClinkdProcessor
from clinkd.model.positions import position_scheme
from clinkd.records import BadInput


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
        config: Any = self.network_class.config_class(**drop_keys(stock, "scheme"), scheme=write_scheme(knobs))
        rope = config.text_config.rope_parameters
        if config.text_config.rope_step > 1:  # exported with doubled positions
            config.text_config.rope_step, rope["rope_type"] = 1, ROPE_TYPE
            rope.pop("factor")
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
        for key in ("model_type", "rope_layout", "rope_axes", "rope_step"):
            settings["text_config"].pop(key, None)
        settings["text_config"]["rope_parameters"].pop("factor", None)
        settings["text_config"]["rope_parameters"]["rope_type"] = "default"
        return settings

    def carried_processors(self) -> tuple[type, type]:
        return ClinkdImageProcessor, ClinkdProcessor

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

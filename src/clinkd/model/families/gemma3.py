"""Our Gemma 3, also as MedGemma: the stock transformers classes under positions of their own, and our masks.

Text is causal, but the tokens of an image attend to each other both ways; most blocks look only a window of tokens
back. The stock class makes such masks for whole rows; ours hold for packed rows, for questions that share their images,
and for rows with padding between their parts: a window is counted in running indices, not in columns.

Every image becomes one square and has as many tokens: the projector pools the tower's patches. Crops of an image (pan
and scan) are not made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from clinkd.config import ModelConfig, NativePositions, TinyConfig
from clinkd.model.families.family import (
    OWN_KEYS,
    ChatTemplate,
    Family,
    ImageGeometry,
    count_full_attention,
    drop_keys,
    write_scheme,
)
from clinkd.model.families.portable.networks import SchemeKnobs, read_hub_names
from clinkd.model.positions import Sequential
from clinkd.records import BadInput

GREY = [0.5] * 3  # mean and deviation of a pixel, as this family normalises it


class ClinkdGemma3Config(SchemeKnobs, Gemma3Config):
    """Stock configuration plus the scheme."""

    model_type = "clinkd_gemma3"


class ClinkdGemma3ForConditionalGeneration(Gemma3ForConditionalGeneration):
    """The stock class, with tower and projector to be had as one."""

    config_class = ClinkdGemma3Config

    @property
    def visual(self) -> nn.ModuleDict:
        """Tower and projector; not a module of this one, or each weight would have two names."""
        names = ("vision_tower", "multi_modal_projector")
        return nn.ModuleDict({name: self.model.get_submodule(name) for name in names})


AutoConfig.register(ClinkdGemma3Config.model_type, ClinkdGemma3Config)
read_hub_names({ClinkdGemma3ForConditionalGeneration: Gemma3ForConditionalGeneration})


class Gemma3(Family):
    """The hooks; GEMMA3 holds the names."""

    videos: ClassVar[bool] = False
    blind_types: ClassVar[tuple[str, ...]] = (Gemma3TextConfig.model_type,)

    @property
    def vision_modules(self) -> tuple[str, ...]:
        return ("model.vision_tower", "model.multi_modal_projector")

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        vision, merger = self.vision_modules
        return {**super().parts, "vision": (vision,), "merger": (merger,)}

    def demand_knobs(self, knobs: ModelConfig) -> None:
        if not isinstance(knobs.positions, NativePositions):
            raise BadInput(
                f"model.positions={knobs.positions.name}: {self.name} has one index for every token and no axes of an "
                "image; set model.positions=native, or take a base of another family"
            )
        if knobs.layout != self.layout:
            raise BadInput(
                f"model.layout={knobs.layout}: {self.name} has no axes that share out its rotary pairs; set "
                f"model.layout={self.layout}"
            )

    def tiny_settings(self, tiny: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        if tiny.hidden % (2 * tiny.heads):
            raise BadInput(f"model.tiny.hidden={tiny.hidden} must be a multiple of 2 * model.tiny.heads={tiny.heads}")
        if tiny.image_pixels % (tiny.patch * tiny.merge):
            raise BadInput(
                f"model.tiny.image_pixels={tiny.image_pixels} must be a multiple of model.tiny.merge * patch = "
                f"{tiny.patch * tiny.merge}"
            )
        head_dim = 2 * tiny.hidden // tiny.heads  # not hidden / heads, as in the 4B
        token = tokenizer.convert_tokens_to_ids
        kinds = ("sliding_attention", "full_attention")
        return {
            "text_config": {
                "model_type": Gemma3TextConfig.model_type,
                "vocab_size": len(tokenizer),
                "hidden_size": tiny.hidden,
                "intermediate_size": tiny.mlp,
                "num_hidden_layers": tiny.layers,
                "num_attention_heads": tiny.heads,
                "num_key_value_heads": max(1, tiny.heads // 2),
                "head_dim": head_dim,
                "query_pre_attn_scalar": head_dim,
                "max_position_embeddings": 4096,
                "initializer_range": tiny.init_std,
                "layer_types": [kinds[k % 2] for k in range(tiny.layers)],
                "sliding_window": 8,
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": tiny.rope_theta},
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100 * tiny.rope_theta},
                },
                "bos_token_id": token("<bos>"),
                "eos_token_id": token("<end_of_turn>"),
                "pad_token_id": token("<pad>"),
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": tiny.vision_hidden,
                "intermediate_size": 4 * tiny.vision_hidden,
                "num_hidden_layers": tiny.vision_layers,
                "num_attention_heads": tiny.vision_heads,
                "image_size": tiny.image_pixels,
                "patch_size": tiny.patch,
                "vision_use_head": False,
            },
            "mm_tokens_per_image": (tiny.image_pixels // tiny.patch // tiny.merge) ** 2,
            "boi_token_index": token("<start_of_image>"),
            "eoi_token_index": token("<end_of_image>"),
            "image_token_index": token("<image_soft_token>"),
            "initializer_range": tiny.init_std,
        }

    def tiny_processor(self, tiny: TinyConfig) -> Gemma3ImageProcessorPil:
        return Gemma3ImageProcessorPil(
            size={"height": tiny.image_pixels, "width": tiny.image_pixels}, image_mean=GREY, image_std=GREY,
            patch_size=tiny.patch, merge_size=tiny.merge,
        )  # fmt: skip

    def configure(self, stock: dict[str, Any], knobs: ModelConfig) -> ClinkdGemma3Config:
        self.demand_knobs(knobs)
        scheme = write_scheme(knobs)
        config = ClinkdGemma3Config(**drop_keys(stock, "scheme"), scheme=scheme)
        if config.get_text_config().use_bidirectional_attention:
            raise BadInput(
                "model.base: use_bidirectional_attention is set, as in a model of embeddings: it cannot write"
            )
        return config

    def stock_settings(self, config: ClinkdGemma3Config) -> dict[str, Any]:
        return drop_keys(config.to_dict(), *OWN_KEYS)

    def complete_processor(self, processor: Any, config: Any) -> None:
        side, size = config.vision_config.image_size, dict(processor.size)
        if (size.get("height"), size.get("width")) != (side, side):
            raise BadInput(
                f"preprocessor_config.json: size is {size}, but the tower of config.json takes {side} x {side} pixels; "
                "copy both files of one release"
            )
        if processor.do_pan_and_scan:
            raise BadInput("preprocessor_config.json: do_pan_and_scan: crops of an image are not made; set it to null")
        processor.patch_size = config.vision_config.patch_size
        processor.merge_size = side // processor.patch_size // math.isqrt(config.mm_tokens_per_image)

    def stock_processor_settings(self, config: Any) -> dict[str, Any]:
        return {"processor_class": Gemma3Processor.__name__, "image_seq_length": config.mm_tokens_per_image}

    def geometry(self, processor: Any) -> ImageGeometry:
        patch, area = processor.patch_size, processor.size["height"] * processor.size["width"]
        return ImageGeometry(patch, processor.merge_size, 3 * patch**2, area, area, square=True)

    def limit_image_tokens(self, processor: Any, most: int) -> None:
        cut = self.geometry(processor)
        tokens = cut.most_pixels // cut.factor**2
        if most < tokens:
            raise BadInput(
                f"model.max_image_tokens={most}: {self.name} makes {tokens} tokens of every image; set it to {tokens} "
                "or more"
            )

    def patches(self, processor: Any, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        processed = processor(images=list(images), do_resize=False, do_pan_and_scan=False, return_tensors="pt")
        patch = processor.patch_size
        cut_ICYPXP = processed["pixel_values"].unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        tall, wide = cut_ICYPXP.shape[2], cut_ICYPXP.shape[4]
        pixels_TD = cut_ICYPXP.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * patch**2)
        return pixels_TD, torch.tensor([[1, tall, wide]] * len(images))

    def order_patches(self, patches_YXD: Tensor, merge: int) -> Tensor:
        return patches_YXD.flatten(0, 1)

    def vision_features(self, visual: nn.Module, pixels_TD: Tensor, grids_I3: Tensor) -> Tensor:
        tower, projector = (visual.get_submodule(name) for name in ("vision_tower", "multi_modal_projector"))
        patches_ITH = tower(pixel_values=_join_patches(pixels_TD, grids_I3)).last_hidden_state
        features_FH: Tensor = projector(patches_ITH).flatten(0, 1)
        return features_FH

    def inputs(
        self, config: Any, ids_BS: Tensor, mask: Tensor, positions_3BS: Tensor, features: tuple[Tensor, ...] | None
    ) -> dict[str, Any]:
        image = None if features is None else BaseModelOutputWithPooling(pooler_output=torch.stack(features))
        window = config.text_config.sliding_window
        return {
            "input_ids": ids_BS,
            "attention_mask": make_masks(ids_BS == config.image_token_id, mask, positions_3BS[0], window),
            "position_ids": positions_3BS[0],
            "mm_encoder_outputs": image and {"image": image},
        }

    def pixel_inputs(self, image_BS: Tensor, pixels_TD: Tensor, grids_I3: Tensor) -> dict[str, Any]:
        return {"token_type_ids": image_BS.int(), "pixel_values": _join_patches(pixels_TD, grids_I3)}

    def vision_attention(self, visual: nn.Module, grids_I3: Tensor) -> int | None:
        config: Any = visual.get_submodule("vision_tower").config
        return count_full_attention(config.num_hidden_layers, config.hidden_size, grids_I3)


def _join_patches(pixels_TD: Tensor, grids_I3: Tensor) -> Tensor:
    """Pixels [I, 3, height, width] of images of one size from their patches."""
    patch, (_, tall, wide) = math.isqrt(pixels_TD.shape[1] // 3), grids_I3[0].tolist()
    cut_IYXCPP = pixels_TD.view(-1, tall, wide, 3, patch, patch)
    return cut_IYXCPP.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, tall * patch, wide * patch)


def make_masks(image_BS: Tensor, mask: Tensor, running_BS: Tensor, window: int) -> dict[str, Tensor]:
    """The masks [B, 1, S, K] of the two kinds of blocks, True where query attends to key.

    image_BS, running_BS: of the queries, which are the last keys; `mask` as in `Family.inputs`.
    """
    queries, keys = image_BS.shape[1], mask.shape[-1]
    column_K = torch.arange(keys, device=mask.device)
    column_S1 = column_K[-queries:, None]
    if mask.dim() == 2:
        running_BK = mask.cumsum(1) - 1
        attends_BSK = mask[:, None].bool() & (column_K <= column_S1)
    else:
        running_BK, attends_BSK = running_BS, mask[:, 0]
    if queries == keys:  # later on there are no images
        starts_BS = image_BS & ~nn.functional.pad(image_BS, (1, 0))[:, :-1]
        block_BS = starts_BS.cumsum(1).masked_fill(~image_BS, 0)
        attends_BSK = attends_BSK | ((block_BS[:, :, None] == block_BS[:, None]) & image_BS[:, None])
    near_BSK = running_BS[:, :, None] - running_BK[:, None] < window
    itself_SK = column_K == column_S1  # also at padding: a query without any key gives NaN
    return {
        "full_attention": (attends_BSK | itself_SK)[:, None],
        "sliding_attention": (attends_BSK & near_BSK | itself_SK)[:, None],
    }


GEMMA3 = Gemma3(
    name="Gemma 3",
    stock_type=Gemma3Config.model_type,
    own_type=ClinkdGemma3Config.model_type,
    network_class=ClinkdGemma3ForConditionalGeneration,
    stock_class=Gemma3ForConditionalGeneration,
    processor_class=Gemma3ImageProcessorPil,
    native=Sequential(),
    layout="sections",
    boxes="gemma3",
    chat=ChatTemplate(
        system=None,
        system_turn="",
        user="<start_of_turn>user\n",
        image_start="\n\n<start_of_image>",
        image_token="<image_soft_token>",
        image_end="<end_of_image>\n\n",
        answer="<end_of_turn>\n<start_of_turn>model\n",
        end="<end_of_turn>",
        between="\n",
        pad="<pad>",
        suppressed=("<image_soft_token>", "<start_of_image>", "<end_of_image>", "<start_of_turn>"),
        words=("user", "model\n", "\n"),
        first="<bos>",
        image_mark="<start_of_image>",
    ),
    special_tokens=(
        "<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
        "<image_soft_token>",
    ),
    visual="visual",
    embeddings=("vision_tower.embeddings",),
    vision_blocks="vision_tower.encoder.layers",
    mergers=("multi_modal_projector",),
    text="model.language_model",
    text_blocks="model.language_model.layers",
)  # fmt: skip

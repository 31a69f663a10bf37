"""The embedded default: a tiny Qwen2-VL with random weights and a byte-level BPE of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from clinkd.config import TinyConfig
from clinkd.model.families.qwen2_vl import Qwen2VLImageProcessorPil
from clinkd.records import BadInput

# Qwen2-VL's special tokens, in its order.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
MERGE = 2  # vision patches a side that become one text token, as in Qwen2-VL


def train_tokenizer(texts: Iterable[str], vocabulary: int, codec_tokens: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts`, at most `vocabulary` entries, plus Qwen's special tokens and the box codec's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL_TOKENS, *(t for t in codec_tokens if t not in SPECIAL_TOKENS)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary + len(special),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )


def stock_config(tiny: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The Qwen2-VL configuration of the tiny model, as the dict its config.json would hold.

    Raises BadInput where widths, heads and patches do not fit together.
    """
    if tiny.hidden % (tiny.heads * 8):
        raise BadInput(f"model.tiny.hidden={tiny.hidden} must be a multiple of 8 * model.tiny.heads={tiny.heads}")
    if tiny.image_pixels % (tiny.patch * MERGE):
        raise BadInput(
            f"model.tiny.image_pixels={tiny.image_pixels} must be a multiple of {MERGE} * patch = {tiny.patch * MERGE}"
        )
    num_pairs = tiny.hidden // tiny.heads // 2
    height = width = (num_pairs * 3) // 8  # Qwen2-VL's proportions, 16 : 24 : 24
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
            "spatial_merge_size": MERGE,
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


def image_processor(tiny: TinyConfig) -> Qwen2VLImageProcessorPil:
    """How images are cut for the tiny model: all of about the same area."""
    area = tiny.image_pixels**2
    return Qwen2VLImageProcessorPil(
        patch_size=tiny.patch, merge_size=MERGE, size={"shortest_edge": area, "longest_edge": area}
    )


def smooth_location_codes(
    table_VH: torch.Tensor, tokenizer: PreTrainedTokenizerFast, tokens: tuple[str, ...], std: float
) -> None:
    """Start location tokens as points on a smooth curve, one an axis, so that neighbours begin as neighbours.

    In place, in the embedding table. From independent random codes a tiny model must first learn the order of its
    coordinates: on phantoms it then needs about twice the steps to find its first boxes (LOG.md).
    """
    axes: dict[str, list[tuple[int, int]]] = {}
    for token in tokens:
        if match := re.fullmatch(r"<([xy])_(\d+)>", token):
            axes.setdefault(match[1], []).append((int(match[2]), int(tokenizer.convert_tokens_to_ids(token))))
    angles_F = math.pi * torch.tensor([0.5, 1, 2, 3, 4, 6])
    for axis in sorted(axes):
        waves = torch.randn(2 * len(angles_F), table_VH.shape[1])
        for number, token_id in axes[axis]:
            turn_F = angles_F * (number + 0.5) / len(axes[axis])
            code_H = torch.cat([turn_F.cos(), turn_F.sin()]) @ waves
            table_VH[token_id] = code_H / code_H.norm() * std * table_VH.shape[1] ** 0.5

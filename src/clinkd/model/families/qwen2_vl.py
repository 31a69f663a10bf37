"""Our Qwen2-VL: the stock transformers classes with a position scheme of choice.

What touches the private surface of the library stands here only.

Two hooks suffice: `get_rope_index` of the model (float32, delta 0 or the scheme's) and the rotary embedding of the
text part. Everything else, the vision tower, the cache, beam search, is transformers' own code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # weights come from a local path; nothing here may reach for a network

import torch
from torch import Tensor
from transformers import AutoConfig, Qwen2VLForConditionalGeneration, Qwen2VLModel
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
from transformers.utils import logging as transformers_logging

from clinkd.config import Layout, ModelConfig
from clinkd.model.positions import MRope, PositionScheme, RotaryPairs, position_scheme, rotary_pairs
from clinkd.records import BadInput
from clinkd.settings import modernise

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

__all__ = [
    "ClinkdConfig",
    "ClinkdForConditionalGeneration",
    "Qwen2VLImageProcessorPil",
    "as_stock",
    "build",
    "is_stock",
    "load_folder",
    "load_written",
    "uncompile",
    "vision_output",
]


# A rope type that no other class knows: the stock class would take our weights under any model type, with a warning
# and the wrong positions, but stops at this.
ROPE_TYPE = "clinkd"


NATIVE = MRope()  # the positions of Qwen2-VL itself


class ClinkdTextConfig(Qwen2VLTextConfig):
    """Stock text configuration plus what decides the rotary pairs."""

    model_type = "clinkd_text"
    rope_layout: Layout = "sections"
    rope_axes: list[int] | None = None


class ClinkdConfig(Qwen2VLConfig):
    """Stock configuration under a model type of our own, so that no Auto class takes it for a stock model.

    `scheme` holds the ModelConfig that the checkpoint was made with, but for NOT_CARRIED.
    """

    model_type = "clinkd"
    sub_configs_defaults = {"vision_config": Qwen2VLVisionConfig, "text_config": ClinkdTextConfig}  # noqa: RUF012
    scheme: dict[str, Any] | None = None
    system_turn: bool = True  # whether prompts open with Qwen2-VL's system turn


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


# Knobs that say how a base comes about, not what a checkpoint is.
NOT_CARRIED = {"base", "tiny", "vision_features"}


def scheme_knobs(config: ClinkdConfig) -> ModelConfig:
    """The ModelConfig a checkpoint was made with, as far as the checkpoint must know it."""
    unknown: list[str] = []
    knobs = modernise(config.scheme or {}, ModelConfig, unknown)
    if unknown:
        raise BadInput(f"config.json: scheme.{unknown[0]}: not known to this version of clinkd, which is older")
    return ModelConfig(base=Path("."), **knobs)  # a checkpoint is its own base


def clinkd_config(stock: dict[str, Any], knobs: ModelConfig) -> ClinkdConfig:
    """A stock configuration (as a dict) with our scheme written into it."""
    stock = {k: v for k, v in stock.items() if k not in ("model_type", "architectures", "transformers_version")}
    config = ClinkdConfig(**stock, scheme=knobs.model_dump(mode="json", exclude=NOT_CARRIED))
    rope = config.text_config.rope_parameters
    if rope["rope_type"] not in ("default", ROPE_TYPE):
        raise BadInput(
            f"model.base: rope_type {rope['rope_type']!r} is not supported; Qwen2-VL has 'default' (or 'mrope')"
        )
    rope["rope_type"] = ROPE_TYPE
    config.text_config.rope_layout = knobs.layout
    config.text_config.rope_axes = list(position_scheme(knobs.positions, NATIVE).axes)
    return config


def build(stock: dict[str, Any], knobs: ModelConfig) -> ClinkdForConditionalGeneration:
    """A model with random weights, drawn from torch's current generator."""
    return ClinkdForConditionalGeneration(clinkd_config(stock, knobs))


def is_stock(config: ClinkdConfig) -> bool:
    """Whether the stock class computes the same: Qwen2-VL's own positions and sections."""
    knobs = scheme_knobs(config)
    return position_scheme(knobs.positions, NATIVE) == NATIVE and knobs.layout == "sections"


def as_stock(network: ClinkdForConditionalGeneration) -> Qwen2VLForConditionalGeneration:
    """The same weights in the stock class, sharing their memory. Raises BadInput where positions are not stock."""
    if not is_stock(network.config):
        knobs = scheme_knobs(network.config)
        raise BadInput(f"positions={knobs.positions.name}, layout={knobs.layout} exist in no stock class")
    plain = network.config.to_dict()
    for key in ("model_type", "architectures", "transformers_version", "scheme", "system_turn"):
        plain.pop(key, None)
    text = plain["text_config"]
    for key in ("model_type", "rope_layout", "rope_axes"):
        text.pop(key, None)
    text["rope_parameters"]["rope_type"] = "default"
    with torch.device("meta"):
        stock = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**plain))
    stock.load_state_dict(network.state_dict(), assign=True)
    stock.tie_weights()
    stock.generation_config = network.generation_config
    return stock


def uncompile(block: torch.nn.Module) -> None:
    """Undo `block.compile()`; torch has no public word for it."""
    block._compiled_call_impl = None


def vision_output(features: tuple[Tensor, ...]) -> BaseModelOutputWithPooling:
    """Merged features of images, as the model takes them in the place of the tower's output."""
    return BaseModelOutputWithPooling(pooler_output=features)


def load_written(folder: Path, dtype: torch.dtype) -> Qwen2VLForConditionalGeneration:
    """A folder that was just written, as whoever gets it will load it: by the stock class where that is its type."""
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    cls = ClinkdForConditionalGeneration if kind == ClinkdConfig.model_type else Qwen2VLForConditionalGeneration
    loaded: Qwen2VLForConditionalGeneration = cls.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return loaded


def load_folder(folder: Path, knobs: ModelConfig | None, dtype: torch.dtype) -> ClinkdForConditionalGeneration:
    """Weights from a folder: a stock Qwen2-VL (then `knobs` name the scheme) or one of ours (`knobs` None).

    Raises BadInput where the folder is not one of these, or any weight is missing or left over.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise BadInput(f"model.base={folder}: no config.json there; a Qwen2-VL folder in Hugging Face layout is wanted")
    try:
        stock = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    kind = stock.get("model_type") if isinstance(stock, dict) else None
    if knobs is None and kind != "clinkd":
        raise BadInput(f"{folder} holds a {kind!r} model, not one trained here")
    if kind not in ("qwen2_vl", "clinkd"):
        raise BadInput(f"model.base={folder}: model_type is {kind!r}, but a Qwen2-VL ('qwen2_vl') is wanted")
    config = clinkd_config(stock, knobs) if knobs is not None else ClinkdConfig(**stock)
    try:
        model, report = ClinkdForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, use_safetensors=True
        )
    except OSError as error:
        raise BadInput(
            f"model.base={folder}: {str(error).splitlines()[0]} A folder with config.json and *.safetensors is wanted"
        ) from None
    wrong = {k: sorted(map(str, v)) for k, v in report.items() if v and k.endswith(("_keys", "_msgs"))}
    if wrong:
        what = "; ".join(
            f"{kind.replace('_', ' ')}: {', '.join(names[:3])} ({len(names)})" for kind, names in wrong.items()
        )
        raise BadInput(f"{folder}: its weights do not fit a Qwen2-VL of its config.json: {what}")
    loaded: ClinkdForConditionalGeneration = model
    return loaded

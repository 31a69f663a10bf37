"""A stock vision-language network with positions of choice.

Two hooks suffice: `get_rope_index` of the model (float32, delta 0 or the scheme's) and the rotary embedding of the
text part. Everything else, the vision tower, the cache, beam search, is transformers' own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

from clinkd.boxed_text import BadInput
from clinkd.model.positions import MRope, PositionScheme, RotaryPairs, position_scheme, rotary_pairs

# A rope type that no other class knows: the stock class would take our weights under any model type, with a warning
# and the wrong positions, but stops at this.
ROPE_TYPE = "clinkd"
NATIVE = MRope()  # the positions of all these families (for images; only videos differ)


@dataclass(kw_only=True, repr=False, eq=False)
class LayoutKnobs:
    """What a text configuration of ours has beside the stock one: it decides the rotary pairs.

    Positions are multiplied by `rope_step` before they meet the frequencies, which are divided by the `factor` of
    `rope_parameters`: with both 2 no angle changes, but half positions become whole ones, as a table wants them.
    """

    sections: ClassVar[tuple[int, ...]] = (16, 24, 24)  # pairs of time, height, width where a configuration has none
    rope_layout: str = "sections"
    rope_axes: list[int] | None = None
    rope_step: int = 1


@dataclass(kw_only=True, repr=False, eq=False)
class SchemeKnobs:
    """What a configuration of ours has beside the stock one, under a model type of its own: no Auto class takes it for
    a stock model.

    `scheme` holds the knobs that the checkpoint was made with: positions, layout, spelling of boxes and the like.
    `eyes`: whether its patches are those of the eyes that are saved beside it.
    """

    scheme: dict[str, Any] | None = None
    system_turn: bool = True  # whether prompts open with the family's system turn, if it has one
    eyes: bool = False


def rotary_pairs_of(config: Any) -> RotaryPairs:
    """The rotary pairs of a text configuration of ours."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sections = tuple(config.rope_parameters.get("mrope_section", config.sections))
    return rotary_pairs(config.rope_layout, tuple(config.rope_axes or (0, 1, 2)), head_dim // 2, sections)


def _frequencies(config: Any, *_: Any, **__: Any) -> tuple[Tensor, float]:
    """Inverse frequencies [P] for rope type ROPE_TYPE. Raises BadInput for a stock configuration."""
    if not hasattr(config, "sections"):  # a class of ours, of any copy of this file
        raise BadInput(
            "this checkpoint has positions of its own, which no stock class has: load it by clinkd; or, where code "
            "lies beside it, by AutoModelForImageTextToText with trust_remote_code=True"
        )
    # The stock expression for the ladder, so that `sections` and `interleaved` give the same bits.
    exponent_P = torch.tensor(rotary_pairs_of(config).exponent_P, dtype=torch.float)
    rope = config.rope_parameters
    return 1.0 / (rope["rope_theta"] ** exponent_P) / rope.get("factor", 1.0), 1.0


ROPE_INIT_FUNCTIONS[ROPE_TYPE] = _frequencies


class ClinkdRotaryEmbedding(Qwen2VLRotaryEmbedding):
    """Rotary embedding whose pairs are shared out by `rotary_pairs`; one cosine a pair, not one an axis."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.axes, self.step = list(rotary_pairs_of(config).axis_P), config.rope_step

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, S, head_dim] of positions [3, B, S]; angles in float32 whatever the model's type."""
        place_BSP = self.step * position_ids.expand(3, -1, -1).float()[self.axes].permute(1, 2, 0)
        angle_BSP = place_BSP * self.inv_freq.to(device=x.device, dtype=torch.float)
        angle_BSD = torch.cat((angle_BSP, angle_BSP), dim=-1)
        return angle_BSD.cos().to(x.dtype), angle_BSD.sin().to(x.dtype)


class SchemeModel(nn.Module):
    """Stands before a stock model among the bases of ours, and gives it our positions."""

    config: Any
    language_model: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.scheme: PositionScheme = position_scheme(SimpleNamespace(**config.scheme["positions"]), NATIVE)
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


def read_hub_names(ours: Mapping[type, type[PreTrainedModel]]) -> None:
    """Let our classes read weights under the names of the hub. `ours`: each with the stock class it stands for.

    Without this, they load as random ones, with nothing but a printed report.
    """
    for our_class, stock_class in ours.items():
        names = stock_class.__name__, stock_class.config_class.model_type
        for mapping in filter(None, map(get_checkpoint_conversion_mapping, reversed(names))):
            register_checkpoint_conversion_mapping(our_class.__name__, mapping, overwrite=True)

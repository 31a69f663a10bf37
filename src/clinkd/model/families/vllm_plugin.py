"""Our positions for vLLM (`clinkd.vllm_plugin`). Not run in vLLM: the functions alone are tested, by our own model.

vLLM looks cosines up in a table by whole positions, and counts on by one a token. So text keeps its whole positions,
and those between two of them (half steps of tied images) are further blocks of the table.
Shapes: S tokens of a prompt, P rotary pairs of a head, H heads, R rows of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from clinkd.model.positions import PositionScheme, RotaryPairs, position_scheme
from clinkd.records import BadInput

PARTS = 4  # positions are whole, halves or quarters


def prompt_rows(scheme: PositionScheme, image_S: Tensor, grids_N2: Tensor, length: int) -> tuple[Tensor, int]:
    """The rows of the table [3, S] for a prompt, and what a later token adds to its index for its own row.

    image_S: True at image tokens; grids_N2: merged height and width of each image; length: positions in the table.
    Raises BadInput for a position that the table does not have.
    """
    parts_3S = scheme.positions(image_S[None], torch.arange(len(image_S))[None], grids_N2)[:, 0].double() * PARTS
    whole_3S = parts_3S.long()
    behind, late = divmod(int(whole_3S[0, -1]) - PARTS * (len(image_S) - 1), PARTS)
    if late or not whole_3S.equal(parts_3S) or whole_3S.min() < 0 or whole_3S.max() >= length * PARTS:
        raise BadInput(f"this prompt has positions that are not in steps of 1/{PARTS} (text: 1) from 0 to {length - 1}")
    return whole_3S % PARTS * length + whole_3S // PARTS, behind


def rotary_table(pairs: RotaryPairs, theta: float, length: int) -> Tensor:
    """Cosines and sines [R, 2P] of all positions: whole ones from 0 to length - 1, then those a part further."""
    inverse_P = 1.0 / (theta ** torch.tensor(pairs.exponent_P, dtype=torch.float))
    whole_L, part_K = (torch.arange(n, dtype=torch.float) for n in (length, PARTS))  # vLLM changes torch's default
    angle_RP = (whole_L + part_K[:, None] / PARTS).flatten()[:, None] * inverse_P
    return torch.cat((angle_RP.cos(), angle_RP.sin()), dim=-1)


def rotate(heads: Tensor, rows_3S: Tensor, table_R2P: Tensor, axes: Sequence[int]) -> Tensor:
    """Queries or keys [S, H * 2P] turned by the positions of their tokens. axes: of each pair."""
    cos_3SP, sin_3SP = table_R2P[rows_3S].to(heads.dtype).chunk(2, dim=-1)
    cos_S1P, sin_S1P = (t_3SP[axes, :, range(len(axes))].T[:, None] for t_3SP in (cos_3SP, sin_3SP))
    first_SHP, second_SHP = heads.view(len(heads), -1, 2 * len(axes)).chunk(2, dim=-1)
    turned = first_SHP * cos_S1P - second_SHP * sin_S1P, second_SHP * cos_S1P + first_SHP * sin_S1P
    return torch.cat(turned, dim=-1).view_as(heads)


@cache
def define_served_model() -> Any:
    """The class of vLLM for our Qwen2-VL, which exists where vLLM is installed alone."""
    from vllm.model_executor.models import qwen2_vl as stock
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from clinkd.model.families import TINY, scheme_knobs
    from clinkd.model.families.portable.networks import rotary_pairs_of

    class ServedRotary(torch.nn.Module):
        def __init__(self, pairs: RotaryPairs, theta: float, length: int) -> None:
            super().__init__()
            self.axes = pairs.axis_P
            self.register_buffer("table_R2P", rotary_table(pairs, theta, length), persistent=False)

        def forward(self, rows: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
            table_R2P, rows_3S = self.get_buffer("table_R2P"), rows.expand(3, -1)
            return tuple(rotate(heads, rows_3S, table_R2P, self.axes) for heads in (query, key))

    class ServedQwen2VL(stock.Qwen2VLForConditionalGeneration):
        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            config = vllm_config.model_config.hf_config
            self.length, text = config.text_config.max_position_embeddings, config.text_config
            self.scheme = position_scheme(scheme_knobs(config).positions, TINY.native)
            text.rope_parameters["rope_type"] = "default"  # what vLLM builds by it is replaced below
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            rotary = ServedRotary(rotary_pairs_of(text), text.rope_parameters["rope_theta"], self.length)
            for module in (m for m in self.language_model.modules() if hasattr(m, "rotary_emb")):
                module.rotary_emb = rotary

        def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
            ordered = sorted(mm_features, key=lambda f: f.mm_position.offset)
            grids = [f.data["image_grid_thw"].data.tolist()[1:] for f in ordered]
            grids_N2 = torch.tensor(grids, dtype=torch.long).view(-1, 2) // self.config.vision_config.spatial_merge_size
            image_S = torch.tensor(input_tokens) == self.config.image_token_id
            return prompt_rows(self.scheme, image_S, grids_N2, self.length)

    parts = {"info": stock.Qwen2VLProcessingInfo, "dummy_inputs": stock.Qwen2VLDummyInputsBuilder}
    MULTIMODAL_REGISTRY.register_processor(stock.Qwen2VLMultiModalProcessor, **parts)(ServedQwen2VL)
    return ServedQwen2VL

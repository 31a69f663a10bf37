"""Position schemes of image tokens (MCG-RoPE and its rivals), vectorised over batch and images, in float32.

Shapes: B rows, S tokens of a row, N images of the batch in reading order, P rotary pairs of a head (head_dim / 2).
Axes: 0 time, 1 height, 2 width, as in Qwen2-VL's M-RoPE.

Three tensors describe a row: `image_BS` (True at image tokens), `running_BS` (the token's index in its own sequence,
from 0: its plain 1-D position) and `grids_N2` (merged height and width of each image). As the index is the running one,
not the column, several questions can follow one image prefix, each with the positions that it would have alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clinkd.boxed_text import BadInput

TIME, HEIGHT, WIDTH = 0, 1, 2


@dataclass(frozen=True)
class ImageTokens:
    """All I image tokens of a batch, in reading order.

    flat_I: index into the flattened B*S tokens; image_I: number of its image; row_I, column_I: 1-based place v in the
    merged grid; first_I: running index of the image's first token.
    """

    flat_I: Tensor
    image_I: Tensor
    row_I: Tensor
    column_I: Tensor
    first_I: Tensor
    last_N: Tensor  # flat index of the last token of each image

    @classmethod
    def find(cls, image_BS: Tensor, running_BS: Tensor, grids_N2: Tensor) -> ImageTokens:
        flat_I = image_BS.flatten().nonzero().squeeze(1)
        ends_N = grids_N2.prod(1).cumsum(0)
        num_tokens, num_patches = flat_I.numel(), int(ends_N[-1]) if ends_N.numel() else 0
        if num_tokens != num_patches:
            raise BadInput(
                f"{num_tokens} image tokens in the batch but {num_patches} patches in its {len(grids_N2)} images"
            )
        ordinal_I = torch.arange(num_tokens, device=flat_I.device)
        image_I = torch.searchsorted(ends_N, ordinal_I, right=True)
        starts_N = ends_N - grids_N2.prod(1)
        rank_I, width_I = ordinal_I - starts_N[image_I], grids_N2[image_I, 1]
        first_I = running_BS.flatten()[flat_I[starts_N]][image_I]
        row_I = torch.div(rank_I, width_I, rounding_mode="floor") + 1
        return cls(flat_I, image_I, row_I, rank_I % width_I + 1, first_I, flat_I[ends_N - 1])


class PositionScheme(ABC):
    """The place of each token on the three axes.

    `axes` are the axes that the layouts `interleaved` and `halves` use.
    """

    axes: tuple[int, ...] = (HEIGHT, WIDTH)

    def positions(self, image_BS: Tensor, running_BS: Tensor, grids_N2: Tensor) -> Tensor:
        """Positions [3, B, S], float32.

        Raises BadInput if the image tokens do not fit the grids, or an image would overlap the text around it.
        """
        if not len(grids_N2):
            return running_BS.to(torch.float32).expand(3, *running_BS.shape)
        tokens = ImageTokens.find(image_BS, running_BS, grids_N2)
        # By how much each image is shorter than its number of tokens, for the text behind it.
        saved_BS = torch.zeros_like(running_BS, dtype=torch.float32)
        saved_BS.view(-1)[tokens.last_N] = self.saved(grids_N2).to(torch.float32)
        before_BS = saved_BS.cumsum(1) - saved_BS
        # Other sequences in the same line do not count: each begins where the running index is 0.
        columns_S = torch.arange(running_BS.shape[1], device=running_BS.device)
        start_BS = torch.where(running_BS == 0, columns_S, 0).cummax(1).values
        before_BS = before_BS - before_BS.gather(1, start_BS)
        positions_3T = (running_BS - before_BS).to(torch.float32).flatten().repeat(3, 1)
        start_I = tokens.first_I - before_BS.flatten()[tokens.flat_I]
        positions_3T[:, tokens.flat_I] = self.image(start_I.to(torch.float32), tokens, grids_N2)
        return positions_3T.view(3, *running_BS.shape)

    def saved(self, grids_N2: Tensor) -> Tensor:
        """By how many positions [N], not always whole, each image is shorter than its number of tokens."""
        return torch.zeros_like(grids_N2[:, 0])

    def explain_overlap(self, height: int, width: int) -> str | None:
        """Why an image of so many patches finds no place between the text before it and behind it, and the way out
        (docs/POSITIONS.md); None if it does."""
        return None

    def is_whole(self, times: int) -> bool:
        """Whether each position, `times` itself, is a whole number, whatever the images."""
        return True

    @abstractmethod
    def image(self, start_I: Tensor, tokens: ImageTokens, grids_N2: Tensor) -> Tensor:
        """Positions [3, I] of the image tokens; `start_I` is where text would stand at the image's first token."""


@dataclass(frozen=True)
class MRope(PositionScheme):
    """Stock Qwen2-VL: (start, start + r, start + c); text goes on behind the longer side.

    With `spatial_reset`, height and width count from 0 in every image ("Revisiting Multimodal Positional Encoding",
    arXiv 2510.23095, section on spatial-reset); the text still goes on behind the longer side.
    """

    spatial_reset: bool = False
    axes = (TIME, HEIGHT, WIDTH)

    def saved(self, grids_N2: Tensor) -> Tensor:
        return grids_N2.prod(1) - grids_N2.amax(1)

    def image(self, start_I: Tensor, tokens: ImageTokens, grids_N2: Tensor) -> Tensor:
        origin_I = torch.zeros_like(start_I) if self.spatial_reset else start_I
        return torch.stack([start_I, origin_I + tokens.row_I - 1, origin_I + tokens.column_I - 1])


@dataclass(frozen=True)
class Sequential(PositionScheme):
    """One plain index for every token, as in Qwen-VL, BiRD and LLaVA."""

    def image(self, start_I: Tensor, tokens: ImageTokens, grids_N2: Tensor) -> Tensor:
        rank_I = (tokens.row_I - 1) * grids_N2[tokens.image_I, 1] + tokens.column_I - 1
        return (start_I + rank_I).expand(3, -1)


@dataclass(frozen=True)
class Affine(PositionScheme):
    """On each axis patch v, in 1..n, stands at start + stride (v - 1); the text before it ends at l.

    gap: start = l + gap on every axis. With "equal" the patches stand on each axis in the middle between the text on
    both sides, start = l + (wh + 1) / 2 - stride (n - 1) / 2, so that both gaps are equal.
    resume: the text goes on at l + wh + 1, its plain running index ("tokens"), or gap behind the longer side
    ("extent").

    `tied`, MCG-RoPE (paper, Methodology; RoPE-Tie-v2, kexue.fm/archives/10352), is (alpha, equal, tokens), and time,
    where a layout uses it, is the centre; `gap`, the paper's released code, is (1, 2, extent).
    """

    stride: float = 2.0
    gap: float | Literal["equal"] = "equal"
    resume: Literal["tokens", "extent"] = "tokens"

    @property
    def axes(self) -> tuple[int, ...]:  # type: ignore[override]
        return (HEIGHT, WIDTH) if self.gap == "equal" else (TIME, HEIGHT, WIDTH)

    def saved(self, grids_N2: Tensor) -> Tensor:
        if self.gap == "equal" or self.resume == "tokens":
            return torch.zeros_like(grids_N2[:, 0])
        return grids_N2.prod(1) + 1 - (2 * self.gap + self.stride * (grids_N2.amax(1) - 1))

    def image(self, start_I: Tensor, tokens: ImageTokens, grids_N2: Tensor) -> Tensor:
        for number, (height, width) in enumerate(grids_N2.tolist(), start=1):
            if overlap := self.explain_overlap(height, width):
                raise BadInput(f"image {number} of the batch {overlap}")
        before_I = start_I - 1  # the paper's l
        if self.gap != "equal":
            first_I = before_I + self.gap
            steps_I = (torch.zeros_like(tokens.row_I), tokens.row_I - 1, tokens.column_I - 1)
            return torch.stack([first_I + self.stride * step_I for step_I in steps_I])
        height_I, width_I = grids_N2[tokens.image_I].unbind(1)
        centre_I = before_I + (grids_N2.prod(1)[tokens.image_I] + 1) / 2
        return torch.stack(
            [
                centre_I,
                centre_I + self.stride * (tokens.row_I - (height_I + 1) / 2),
                centre_I + self.stride * (tokens.column_I - (width_I + 1) / 2),
            ]
        )

    def is_whole(self, times: int) -> bool:
        """With equal gaps the middle and the way to it are halves."""
        if self.gap == "equal":
            return times % 2 == 0 and (times // 2 * self.stride) % 1 == 0
        return (times * self.gap) % 1 == 0 and (times * self.stride) % 1 == 0

    def explain_overlap(self, height: int, width: int) -> str | None:
        """With equal gaps it has one if gap > 0, hence stride (n - 1) < wh + 1; with a given gap, if
        gap + stride (n - 1) < wh + 1; with resume="extent" always.
        """
        gap = 0.0 if self.gap == "equal" else self.gap
        if self.resume == "extent" or gap + self.stride * (max(height, width) - 1) < height * width + 1:
            return None
        start = f"{gap:g} + " if gap else ""
        return (
            f"({height} x {width} patches) overlaps the text around it under model.positions.stride={self.stride:g}: "
            f"{start}stride * ({max(height, width)} - 1) must stay below {height * width + 1}; lower "
            f"model.positions.stride{', or set model.square=true' if height != width else ''}"
        )


def position_scheme(knobs: Any, native: PositionScheme) -> PositionScheme:
    """The scheme that the knobs describe, or an object of the same values; `native`: that of the base itself."""
    match knobs.kind:
        case "affine":
            return Affine(knobs.stride, knobs.gap, knobs.resume)
        case "mrope":
            return MRope(knobs.spatial_reset)
        case "sequential":
            return Sequential()
        case _:
            return native


@dataclass(frozen=True)
class RotaryPairs:
    """For each rotary pair, its axis and the exponent e of its frequency theta^(-e)."""

    axis_P: tuple[int, ...]
    exponent_P: tuple[float, ...]


def rotary_pairs(layout: str, axes: tuple[int, ...], num_pairs: int, sections: tuple[int, ...]) -> RotaryPairs:
    """The axis and the frequency of each rotary pair of a head.

    sections: blocks of `sections` pairs for time, height, width (stock M-RoPE).
    interleaved: with three axes t h w t h w .., the rest to time, each axis as many pairs as its section (Qwen3-VL);
        with two axes even pairs height, odd pairs width. Frequencies are the one ladder of the pretrained model, so
        nothing changes for text, whose position is equal on all axes.
    halves: the paper's layout: first half height, second half width, each with its own ladder.

    Raises BadInput if the number of pairs does not fit the layout.
    """
    ladder = tuple(p / num_pairs for p in range(num_pairs))
    if layout == "sections":
        if sum(sections) != num_pairs:
            raise BadInput(f"mrope_section {list(sections)} does not add up to the {num_pairs} rotary pairs of a head")
        return RotaryPairs(tuple(a for a, n in enumerate(sections) for _ in range(n)), ladder)
    if layout == "interleaved" and len(axes) == 3:
        places = [TIME] * num_pairs
        for axis in (HEIGHT, WIDTH):
            for place in range(axis, min(3 * sections[axis], num_pairs), 3):
                places[place] = axis
        return RotaryPairs(tuple(places), ladder)
    if layout == "interleaved":
        return RotaryPairs(tuple(axes[p % 2] for p in range(num_pairs)), ladder)
    if num_pairs % 2:
        raise BadInput(f"model.layout=halves needs an even number of rotary pairs a head, not {num_pairs}")
    half = num_pairs // 2
    own_ladder = tuple(p / half for p in range(half))
    return RotaryPairs((HEIGHT,) * half + (WIDTH,) * half, own_ladder * 2)

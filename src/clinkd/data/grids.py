"""The resized image of a model family, in whose pixels its boxes may be."""

from __future__ import annotations

import math
from typing import NamedTuple

from clinkd.boxed_text import BadInput

FACTOR = 28  # side in pixels of the square that becomes one token of Qwen2-VL and Qwen2.5-VL
MIN_PIXELS = 56 * 56
MAX_PIXELS = 28 * 28 * 1280


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


def smart_resize(
    width: int, height: int, factor: int = FACTOR, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> Size:
    """The size with both sides multiples of `factor`, the area within bounds, and the aspect kept as far as possible.

    `factor` is 28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL. The numbers equal those of `smart_resize` in qwen2_vl
    of transformers, also for slim images. Raises BadInput where one side is more than 200 times the other, as the
    families do.
    """
    if max(width, height) > 200 * min(width, height):
        raise BadInput(f"an image of {width}x{height} pixels: sides of more than 200 to 1 cannot be resized; crop it")
    w, h = (round(side / factor) * factor for side in (width, height))
    if w * h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        w, h = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
    elif w * h < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        w, h = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return Size(w, h)


def square_resize(
    width: int, height: int, factor: int = FACTOR, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> Size:
    """The square of about the same area, to which `model.square` resamples: one axis is stretched, fractions stay.

    As `smart_resize` of a square image, but in whole numbers: where both bounds are one area, as in a tiny model, a
    side of 96 by floats is 95.99... or 96.00..., and the next multiple below or above it another grid.
    """
    side = max(1, round((width * height) ** 0.5))
    tokens = round(side / factor)
    if (tokens * factor) ** 2 > max_pixels:
        tokens = max(1, math.isqrt(max_pixels) // factor)
    elif (tokens * factor) ** 2 < min_pixels:
        tokens = math.isqrt(min_pixels - 1) // factor + 1
    return Size(tokens * factor, tokens * factor)


def limit_tokens(size: Size, factor: int, most: int) -> Size:
    """The size with at most `most` tokens: the longer side gives way first, and the aspect with it.

    A strip keeps more from `smart_resize`, which lets no side be below one token but goes on by the aspect.
    """
    short, long = sorted(side // factor for side in size)
    if short * long <= most:
        return size
    short = min(short, math.isqrt(most))
    short, long = short * factor, min(long, most // short) * factor
    return Size(long, short) if size.width > size.height else Size(short, long)

"""How a model family resizes an image before it looks: the frame that its boxes in pixels are in."""

from __future__ import annotations

import math
from typing import NamedTuple

from clinkd.records import BadInput

MIN_PIXELS = 56 * 56
MAX_PIXELS = 28 * 28 * 1280


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


def smart_resize(
    width: int, height: int, factor: int = 28, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> Size:
    """Both sides multiples of `factor`, the area within bounds, the aspect as near as that allows.

    `factor` is 28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL; the same numbers as `smart_resize` of transformers'
    qwen2_vl, for slim images, too. Raises BadInput where one side is more than 200 times the other, which the families
    refuse.
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

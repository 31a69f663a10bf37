"""Shapes that annotators draw, as points, and the boxes around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]  # x and y in pixels, y downward


def rotate(points: Points, degrees: float, pivot: tuple[float, float] | None = None) -> Points:
    """Points turned clockwise as one sees them (y grows downward), by default about the middle of their extent."""
    if not degrees:
        return points
    x1, y1, x2, y2 = extent(points)
    x0, y0 = pivot or ((x1 + x2) / 2, (y1 + y2) / 2)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    shifted = [(x - x0, y - y0) for x, y in points]
    return [(x0 + cosine * x - sine * y, y0 + sine * x + cosine * y) for x, y in shifted]


def extent(points: Points) -> tuple[float, float, float, float]:
    """The least and greatest x and y: x1, y1, x2, y2."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)

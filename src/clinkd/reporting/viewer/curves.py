"""Line charts as inline SVG: how figures changed from step to step. The page colours them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from clinkd.reporting.viewer.page import chart
from clinkd.reporting.viewer.shot import Html

_LEFT, _TOP, _WIDTH, _HEIGHT, _RIGHT, _FOOT = 52, 34, 430, 190, 14, 44  # units of the drawing; it scales with the page
_POINTS = 160  # a line has at most so many: means of as many stretches
_TICKS = 4
Points = Sequence[tuple[float, float]]


def render_line_chart(title: str, series: Mapping[str, Points], across: str, up: str) -> Html:
    """A line for each series of (x, y), x rising, from y 0 up. Axes are named in words; up to five series."""
    thinned = {name: thin(points) for name, points in series.items() if points}
    if not thinned:
        return Html("")
    all_points = [p for points in thinned.values() for p in points]
    right, top = max(x for x, _ in all_points) or 1.0, max(max(y for _, y in all_points), 1e-9)
    step = _round_step(top)
    top = step * math.ceil(top / step - 1e-9)
    parts = _draw_axes(right, top, step, across, up)
    legend_x = float(_LEFT)
    for number, (name, points) in enumerate(thinned.items()):
        path = " ".join(f"{_scale_x(x, right):.1f},{_scale_y(y, top):.1f}" for x, y in points)
        parts.append(f'<polyline class="curve c{number}" points="{path}"/>')
        parts.append(f'<line class="curve c{number}" x1="{legend_x}" y1="14" x2="{legend_x + 22}" y2="14"/>')
        parts.append(f'<text x="{legend_x + 27}" y="18">{escape(name)}</text>')
        legend_x += 52 + 7 * len(name)
    description = "; ".join(
        f"{n}: from {p[0][1]:.3g} at {p[0][0]:g} to {p[-1][1]:.3g} at {p[-1][0]:g}" for n, p in thinned.items()
    )
    size = (_LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _FOOT)
    return chart(title, f"{title}, {up} by {across}. {description}", *size, "".join(parts))


def thin(points: Points, most: int = _POINTS) -> list[tuple[float, float]]:
    """At most `most` points: the first and the last, and the means of equal stretches in between."""
    if len(points) <= most:
        return list(points)
    inner, count = points[1:-1], most - 2
    thinned = [points[0]]
    for k in range(count):
        stretch = inner[k * len(inner) // count : (k + 1) * len(inner) // count]
        thinned.append((sum(x for x, _ in stretch) / len(stretch), sum(y for _, y in stretch) / len(stretch)))
    return [*thinned, points[-1]]


def _round_step(top: float) -> float:
    """A step of 1, 2 or 5 times a power of ten, of which about _TICKS reach `top`."""
    rough = top / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)


def _draw_axes(right: float, top: float, step: float, across: str, up: str) -> list[str]:
    parts = []
    for k in range(round(top / step) + 1):
        y = _scale_y(k * step, top)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + _WIDTH}" y2="{y:.1f}"/>')
        parts.append(f'<text class="label small" x="{_LEFT - 7}" y="{y + 4:.1f}">{k * step:.4g}</text>')
    stride = max(1.0, _round_step(right))
    for k in range(math.floor(right / stride) + 1):
        x = k * stride
        parts.append(f'<text class="axis" x="{_scale_x(x, right):.1f}" y="{_TOP + _HEIGHT + 16}">{x:,.0f}</text>')
    parts.append(f'<text class="axis" x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 36}">{escape(across)}</text>')
    middle = _TOP + _HEIGHT / 2
    parts.append(f'<text class="axis" transform="translate(12 {middle}) rotate(-90)">{escape(up)}</text>')
    return parts


def _scale_x(value: float, right: float) -> float:
    return _LEFT + _WIDTH * value / right


def _scale_y(value: float, top: float) -> float:
    return _TOP + _HEIGHT * (1 - value / top)

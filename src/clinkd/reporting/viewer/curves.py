"""Line charts and histograms as inline SVG. The page colours them."""

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
Whisker = tuple[float, float, float]  # x, low, high


def render_line_chart(
    title: str, series: Mapping[str, Points], across: str, up: str, whiskers: Sequence[Whisker] = ()
) -> Html:
    """A line for each series of (x, y), x rising, from 0 to the right and up. Axes are named in words; up to five
    series. `whiskers`: intervals."""
    thinned = {name: thin(points) for name, points in series.items() if points}
    if not thinned:
        return Html("")
    all_points = [p for points in thinned.values() for p in points]
    right, top = max(x for x, _ in all_points) or 1.0, max(max(y for _, y in all_points), 1e-9)
    step = _round_step(top)
    top = step * math.ceil(top / step - 1e-9)
    parts = _draw_axes(right, top, step, across, up)
    parts += [_draw_whisker(_scale_x(x, right), _scale_y(low, top), _scale_y(high, top)) for x, low, high in whiskers]
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


def render_histogram(
    title: str, edges: Sequence[float], shares: Mapping[str, Sequence[float]], across: str, up: str
) -> Html:
    """Upright bars between `edges`, which rise from 0; up to two series stand beside each other in each bin."""
    right, step = edges[-1], _round_step(max(1e-9, *(v for values in shares.values() for v in values)))
    top = step * math.ceil(max(v for values in shares.values() for v in values) / step - 1e-9) or step
    parts = _draw_axes(right, top, step, across, up)
    for number, (name, kind) in enumerate(zip(shares, ("bar", "baseline"), strict=False)):
        x = _LEFT + 150 * number
        parts.append(f'<rect class="{kind}" x="{x}" y="6" width="11" height="9"/>')
        parts.append(f'<text x="{x + 16}" y="15">{escape(name)}</text>')
        for low, high, value in zip(edges[:-1], edges[1:], shares[name], strict=True):
            width = (_scale_x(high, right) - _scale_x(low, right)) / len(shares)
            y = _scale_y(value, top)
            parts.append(
                f'<rect class="{kind}" x="{_scale_x(low, right) + width * number:.1f}" y="{y:.1f}" '
                f'width="{width - 0.6:.1f}" height="{_scale_y(0, top) - y:.1f}"/>'
            )
    description = "; ".join(f"{name}: {', '.join(f'{v:.3g}' for v in values)}" for name, values in shares.items())
    size = (_LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _FOOT)
    told = f"{title}, {up} by {across} in {len(edges) - 1} bins from {edges[0]:g} to {right:g}. {description}"
    return chart(title, told, *size, "".join(parts))


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
    stride = _round_step(right) if right <= 1 else max(1.0, _round_step(right))  # steps of a training are whole
    for k in range(math.floor(right / stride + 1e-9) + 1):
        x = k * stride
        spelled = f"{x:.4g}" if right <= 1 else f"{x:,.0f}"
        parts.append(f'<text class="axis" x="{_scale_x(x, right):.1f}" y="{_TOP + _HEIGHT + 16}">{spelled}</text>')
    parts.append(f'<text class="axis" x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 36}">{escape(across)}</text>')
    middle = _TOP + _HEIGHT / 2
    parts.append(f'<text class="axis" transform="translate(12 {middle}) rotate(-90)">{escape(up)}</text>')
    return parts


def _draw_whisker(x: float, low: float, high: float) -> str:
    return f'<line class="whisker" x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}"/>'


def _scale_x(value: float, right: float) -> float:
    return _LEFT + _WIDTH * value / right


def _scale_y(value: float, top: float) -> float:
    return _TOP + _HEIGHT * (1 - value / top)

"""Places and counts as inline SVG: heat maps and columns. The page colours them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from clinkd.reporting.viewer.page import chart
from clinkd.reporting.viewer.shot import Html

_SIDE, _MARGIN = 180, 26  # units of the drawing; it scales with the page
_WIDTH, _HEIGHT, _FOOT = 560, 150, 34


def render_heat_map(title: str, shares: Sequence[Sequence[float]], across: str, down: str, up: bool = False) -> Html:
    """A grid of shares, the greatest darkest. Row 0 is the top, or the bottom with `up`; axes are named in words."""
    rows = list(reversed(shares)) if up else list(shares)
    height, width = _SIDE / max(len(rows), 1), _SIDE / max((len(r) for r in rows), default=1)
    highest = max((v for row in rows for v in row), default=0) or 1
    cells = "".join(
        f'<rect class="bar" x="{_MARGIN + j * width:.2f}" y="{4 + i * height:.2f}" width="{width:.2f}" '
        f'height="{height:.2f}" fill-opacity="{value / highest:.3f}"/>'
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
        if value > 0
    )
    right = _MARGIN + _SIDE
    bottom = 4 + _SIDE
    frame = "".join(
        f'<line class="grid" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
        for x1, y1, x2, y2 in (
            (_MARGIN, 4, right, 4), (_MARGIN, bottom, right, bottom),
            (_MARGIN, 4, _MARGIN, bottom), (right, 4, right, bottom),
        )
    )  # fmt: skip
    axis_titles = (
        f'<text class="axis" x="{_MARGIN + _SIDE / 2}" y="{_SIDE + 20}" text-anchor="middle">{escape(across)}</text>'
        f'<text class="axis" transform="translate(12 {4 + _SIDE / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(down)}</text>"
    )
    return chart(title, f"{title}: a map of {across} by {down}", right + 6, _SIDE + 28, cells + frame + axis_titles)


def render_column_chart(title: str, entries: Sequence[tuple[str, int]]) -> Html:
    """Counts side by side, each with its number on top."""
    if not entries:
        return Html("")
    highest = max(n for _, n in entries) or 1
    step = _WIDTH / len(entries)
    parts = []
    for i, (label, count) in enumerate(entries):
        height = (_HEIGHT - 22) * count / highest
        middle = i * step + step / 2
        parts.append(
            f'<rect class="bar" x="{i * step + step * 0.12:.1f}" y="{_HEIGHT - height:.1f}" width="{step * 0.76:.1f}" '
            f'height="{height:.1f}"/>'
            f'<text class="value" x="{middle:.1f}" y="{_HEIGHT - height - 5:.1f}" text-anchor="middle">{count:,}</text>'
            f'<text class="axis" x="{middle:.1f}" y="{_HEIGHT + 16}" text-anchor="middle">{escape(label)}</text>'
        )
    description = f"{title}: " + "; ".join(f"{label}: {count}" for label, count in entries)
    return chart(title, description, _WIDTH, _HEIGHT + _FOOT, "".join(parts))

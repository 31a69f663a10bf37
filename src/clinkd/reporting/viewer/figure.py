"""Bar charts as inline SVG: a score beside its image-blind baseline. The page colours them by its theme."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from clinkd.reporting.viewer.page import chart
from clinkd.reporting.viewer.shot import Html

_ROW, _LEFT, _WIDTH, _RIGHT, _TOP = 34, 118, 360, 62, 30  # units of the drawing; it scales with the page


class Bar(NamedTuple):
    """A score and its baseline, 0..100; None leaves the bar out. A missing score is named. `interval` is of `value`."""

    label: str
    value: float | None
    baseline: float | None = None
    interval: tuple[float, float] | None = None


def render_bar_chart(
    title: str, rows: Sequence[Bar], value_name: str = "model", baseline_name: str = "best blind baseline"
) -> Html:
    """Horizontal bars from 0 to 100, each with its baseline below it and a whisker for its interval."""
    height = _TOP + _ROW * len(rows) + 22
    bottom = height - 20
    parts = [_draw_text(_LEFT + _WIDTH * tick / 100, bottom + 14, str(tick), "axis") for tick in (0, 25, 50, 75, 100)]
    parts += [_draw_line(_scale_x(tick), _TOP - 4, _scale_x(tick), bottom, "grid") for tick in (0, 25, 50, 75, 100)]
    for i, row in enumerate(rows):
        parts += _draw_bar(row, _TOP + _ROW * i)
    legend = [
        f'<rect class="bar" x="{_LEFT}" y="8" width="11" height="9"/>',
        _draw_text(_LEFT + 16, 16, value_name, "name"),
        f'<rect class="baseline" x="{_LEFT + 130}" y="8" width="11" height="9"/>',
        _draw_text(_LEFT + 146, 16, baseline_name, "name"),
    ]
    description = "; ".join(
        f"{r.label}: {value_name} {_spell_figure(r.value)}, {baseline_name} {_spell_figure(r.baseline)}" for r in rows
    )
    shapes = "".join((*legend, *parts))
    return chart(title, f"{title}. {description}", _LEFT + _WIDTH + _RIGHT, height, shapes)


def _draw_bar(row: Bar, top: float) -> list[str]:
    parts = [_draw_text(_LEFT - 8, top + 17, row.label, "label")]
    if row.value is None:
        parts.append(_draw_text(_LEFT + 5, top + 13, "not computed", "none"))
    else:
        parts.append(_draw_rectangle("bar", top + 2, row.value, 14))
        end = row.value
        if row.interval is not None:
            low, high = row.interval
            middle, end = top + 9, max(row.value, high)
            parts += [_draw_line(_scale_x(low), middle, _scale_x(high), middle, "whisker")]
            parts += [_draw_line(_scale_x(v), middle - 4, _scale_x(v), middle + 4, "whisker") for v in (low, high)]
        parts.append(_draw_text(_scale_x(end) + 5, top + 14, f"{row.value:.1f}", "value"))
    if row.baseline is not None:
        parts.append(_draw_rectangle("baseline", top + 18, row.baseline, 8))
        parts.append(_draw_text(_scale_x(row.baseline) + 5, top + 26, f"{row.baseline:.1f}", "small"))
    return parts


def _draw_rectangle(kind: str, top: float, value: float, height: int) -> str:
    return f'<rect class="{kind}" x="{_LEFT}" y="{top}" width="{_scale_x(value) - _LEFT:.1f}" height="{height}"/>'


def _scale_x(value: float) -> float:
    return _LEFT + _WIDTH * min(100.0, max(0.0, value)) / 100


def _draw_text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _draw_line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _spell_figure(value: float | None) -> str:
    return "not computed" if value is None else f"{value:.1f}"

"""A table of scores, each above its image-blind baseline and linked to its questions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from clinkd.reporting.viewer.page import scrolling_table
from clinkd.reporting.viewer.shot import Html


class Cell(NamedTuple):
    """A score, the baseline below it, both in words, and a link on this page (a fragment without #)."""

    value: str
    baseline: str
    description: str
    link: str | None = None


def render_grid(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell | None]]], notes: Sequence[str] = ()
) -> Html:
    """Rows with a heading and a cell a column; None is a gap. It scrolls sideways where there is no room."""
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_render_cell, cells))}</tr>' for name, cells in rows
    )
    return scrolling_table(title, ' class="grid"', f'<td class="corner"></td>{head}', body, notes)


def _render_cell(cell: Cell | None) -> str:
    if cell is None:
        return '<td class="gap">–</td>'
    kind = "" if any(c.isdigit() for c in cell.value) else ' class="soft"'
    inside = (
        f'<b{kind} aria-hidden="true">{escape(cell.value)}</b><small aria-hidden="true">{escape(cell.baseline)}</small>'
    )
    inside += f'<span class="unseen">{escape(cell.description)}</span>'
    if cell.link is None:
        return f'<td title="{escape(cell.description)}">{inside}</td>'
    return f'<td><a href="#{escape(cell.link)}" title="{escape(cell.description)}">{inside}</a></td>'

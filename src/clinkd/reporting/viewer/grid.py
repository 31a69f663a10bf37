"""A table of scores, each above its interval and its image-blind baseline, and linked to its questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from clinkd.reporting.viewer.page import list_meanings, render_heads, scrolling_table
from clinkd.reporting.viewer.shot import Html


class Cell(NamedTuple):
    """A score, its interval, the baseline below it, all in words, and a link on this page (a fragment without #).

    `shade`, 0 to 4, darkens the cell."""

    value: str
    interval: str
    baseline: str
    description: str
    link: str | None = None
    shade: int = 0


def render_grid(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell | None]]], notes: Sequence[str] = (),
    meanings: Mapping[str, str] | None = None,
) -> Html:  # fmt: skip
    """Rows with a heading and a cell a column; None is a gap. It scrolls sideways where there is no room.

    `meanings`: of the columns and of what heads the rows, listed below the table, folded.
    """
    meanings = meanings or {}
    head = render_heads(columns, meanings)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_render_cell, cells))}</tr>' for name, cells in rows
    )
    table = scrolling_table(title, ' class="grid"', f'<td class="corner"></td>{head}', body, notes)
    return Html(table + list_meanings(meanings))


def _render_cell(cell: Cell | None) -> str:
    if cell is None:
        return '<td class="gap">–</td>'
    kind = "" if any(c.isdigit() for c in cell.value) else ' class="soft"'
    lines = "".join(f'<small aria-hidden="true">{escape(text)}</small>' for text in (cell.interval, cell.baseline))
    inside = f'<b{kind} aria-hidden="true">{escape(cell.value)}</b>{lines}'
    inside += f'<span class="unseen">{escape(cell.description)}</span>'
    if cell.link is None:
        shade = f' class="shade{cell.shade}"' if cell.shade else ""
        return f'<td{shade} title="{escape(cell.description)}">{inside}</td>'
    return f'<td><a href="#{escape(cell.link)}" title="{escape(cell.description)}">{inside}</a></td>'

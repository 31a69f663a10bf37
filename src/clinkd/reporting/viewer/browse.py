"""The part of a page in which its script (`page.js`) shows answered questions: filters, a count, cards, "more".

Without the script the page shows the cards given here and no filters. The page's data for the script:

- `pictures`: [data URI or null, width, height]; null where a card given here has the picture.
- `modalities`: code to title; `sources`: names; `first`: task to the metrics by which its answers are sorted.
- `samples`: n its number, t task, m modality, s source (index), p picture (index), more (images beside it); q question,
  e earlier turns [[question, answer]], a truth, v right (null: not judged), f figures by metric 0..1; ask, tru: boxes
  [x1, y1, x2, y2] in fractions; c candidates, k the chosen one, sure its confidence 0..1 where one is told. A
  candidate: a answer, r as written (where it differs), b boxes, l log-probability a token, s scores by scorer, u unread
  boxes, x cut by the length limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from clinkd.reporting.viewer.page import line_sample
from clinkd.reporting.viewer.shot import Html


class Choices(NamedTuple):
    """One filter: its name in the page's address, its label, and (value, text) of each choice; the first is none."""

    name: str
    label: str
    options: Sequence[tuple[str, str]]


class Key(NamedTuple):
    """A kind of boxes that can be hidden, its colour, and what it is."""

    kind: str
    colour: str
    text: str


def render_browser(filters: Sequence[Choices], keys: Sequence[Key], cards: Html, searched: str = "") -> Html:
    """Filters, count and cards. `cards` are shown unchanged if no script runs; `searched` labels the search for words,
    which is left out without it."""
    selects = "".join(_render_select(f) for f in filters)
    search = ""
    if searched:
        search = f'<label class="wide">{escape(searched)}<input type="search" name="q" autocomplete="off"></label>'
    checkboxes = "".join(_render_checkbox(k) for k in keys)
    return Html(
        f'<form id="filter" role="search" aria-label="Which answers are shown" hidden><div class="filters">{selects}'
        f'{search}<button type="reset">Show all</button></div></form>'
        f'<fieldset id="kinds" class="key"><legend class="unseen">Boxes that are drawn</legend>{checkboxes}</fieldset>'
        '<noscript><p class="soft">The page\'s script is not running: only some answers are shown, and no filters.</p>'
        f'</noscript><p id="count" role="status" tabindex="-1"></p><div id="cards">{cards}</div>'
        '<p><button id="more" type="button" hidden>More</button></p>'
    )


def _render_select(choices: Choices) -> str:
    options = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in choices.options)
    return f'<label>{escape(choices.label)}<select name="{escape(choices.name)}">{options}</select></label>'


def _render_checkbox(key: Key) -> str:
    checkbox = f'<input type="checkbox" value="{escape(key.kind)}" checked hidden>'
    return f"<label>{checkbox}{line_sample(key.colour)}{escape(key.text)}</label>"

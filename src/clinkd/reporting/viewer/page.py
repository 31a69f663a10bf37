"""Self-contained HTML: everything escaped, one style sheet, pictures as data URIs, at most one script, a strict CSP.

Only `Html` may be put into a page; every function that makes `Html` from plain text escapes it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any, NamedTuple

from PIL import Image

from clinkd.records import Table
from clinkd.reporting.viewer.overlay import DASHES
from clinkd.reporting.viewer.shot import DrawnBox, Html, Picture, boxed_words, shot, thumbnail

# The style sheet of every page: light and dark, readable on a phone, printable.
STYLE = resources.files(__package__).joinpath("page.css").read_text("utf-8")
# The one script of a page. It shows the answers that the page's data hold, and makes text nodes and no markup. Which
# answers are shown is part of the page's address (`#task=VG&modality=ct`), so that it can be kept and mailed.
SCRIPT = resources.files(__package__).joinpath("page.js").read_text("utf-8")
NOTICE = "Research use only. Not a medical device; nothing here may inform a clinical decision."
_SIDE = 448  # pixels of a picture's longer side
_NUMBER = re.compile(r"^\s*[-+±]?[\d.,]+\s*(%|\[.*\])?\s*$|^\s*(-|–|not computed|)\s*$|^\[.*\]$")


class CardText(NamedTuple):
    """A text under its heading, and the kind of the boxes (of `shot.KINDS`) that its box marks stand for."""

    heading: str
    text: str
    boxes: str = ""


class Card(NamedTuple):
    """One picture with texts about it. `verdict` is shown as right (True), wrong (False) or not at all (None).

    `number`: of the picture, by which the page's script finds it.
    """

    picture: Image.Image | Picture
    alt: str
    title: str
    lines: tuple[CardText, ...]
    verdict: bool | None = None
    candidates: tuple[str, ...] = ()  # shown on demand, numbered
    marks: tuple[DrawnBox, ...] = ()
    number: int | None = None


def document(title: str, sections: Sequence[Html], lead: str = "", footer: str = "", data: Any = None) -> str:
    """A whole document. Sections made by `section` are listed in its navigation.

    Where there are `data`, a JSON value, the page has one script, which finds them in the element with the id "data".
    """
    policy = f"default-src 'none'; img-src data:; style-src {_hash_for_csp(STYLE)}; base-uri 'none'; form-action 'none'"
    if data is not None:
        policy += f"; script-src {_hash_for_csp(SCRIPT)}; require-trusted-types-for 'script'"
    links = [m.groups() for s in sections for m in re.finditer(r'<section id="([^"]+)"[^>]*><h2>(.*?)</h2>', s)]
    menu = "".join(f'<li><a href="#{anchor}">{text}</a></li>' for anchor, text in links)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        '<body><a class="skip" href="#main">Skip to the content</a>\n'
        f"<header><h1>{escape(title)}</h1>{paragraph(lead, soft=True) if lead else ''}"
        f'<p class="notice" role="note">{escape(NOTICE)}</p>'
        f'<nav aria-label="Sections"><ul>{menu}</ul></nav></header>\n'
        f'<main id="main">\n{chr(10).join(sections)}\n</main>\n<footer>{paragraph(footer) if footer else ""}</footer>'
        f"{_embed_data(data) if data is not None else ''}</body></html>\n"
    )


def _hash_for_csp(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _embed_data(data: Any) -> str:
    """The data come last, so that the rest can be read before them. No text in them can end their element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return f'<script type="application/json" id="data">{text}</script>\n<script>{SCRIPT}</script>'


def section(title: str, parts: Sequence[Html], anchor: str = "") -> Html:
    """A titled part of a page. `anchor`: its id for the page's script; without it the id is made from the title."""
    anchor = anchor or re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"
    return Html(
        f'<section id="{anchor}" aria-label="{escape(title)}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'
    )


def paragraph(text: str, soft: bool = False) -> Html:
    """Plain text as a paragraph."""
    kind = ' class="soft"' if soft else ""
    return Html(f"<p{kind}>{escape(text)}</p>")


def article(title: str, parts: Sequence[Html]) -> Html:
    """One of several cases, as wide as the page."""
    return Html(
        f'<article class="card case"><div class="body"><h3>{escape(title)}</h3>{"".join(parts)}</div></article>'
    )


def note(lines: Sequence[str]) -> Html:
    """Small print, one line an item."""
    return Html(f'<ul class="notes">{"".join(f"<li>{escape(t)}</li>" for t in lines)}</ul>') if lines else Html("")


def table(content: Table, meanings: Mapping[str, str] | None = None) -> Html:
    """A table with its title as caption and its notes beneath; the first column heads the rows. It scrolls sideways.

    `meanings`: of columns by their heads, listed below the table, folded.
    """
    meanings = meanings or {}
    head = render_heads(content.columns, meanings)
    body = "".join(_render_row(row) for row in content.rows if row)
    cells = [c for row in content.rows for c in row[1:]]
    kind = "" if sum(bool(_NUMBER.match(c)) for c in cells) * 2 >= len(cells) else ' class="words"'
    return Html(scrolling_table(content.title, kind, head, body, content.notes) + list_meanings(meanings))


def render_heads(columns: Sequence[str], meanings: Mapping[str, str]) -> Html:
    """Cells that head columns; a mouse that rests on one shows its meaning."""
    tips = (f' title="{escape(meanings[c])}"' if c in meanings else "" for c in columns)
    return Html("".join(f'<th scope="col"{tip}>{escape(c)}</th>' for c, tip in zip(columns, tips, strict=True)))


def list_meanings(meanings: Mapping[str, str]) -> Html:
    """What columns say, opened by a click: without a mouse, too. Columns of one meaning stand together."""
    heads: dict[str, list[str]] = {}
    for head, meaning in meanings.items():
        heads.setdefault(meaning, []).append(head or "First column")
    entries = (f"<dt>{escape(', '.join(names))}</dt><dd>{escape(text)}</dd>" for text, names in heads.items())
    return (
        folded("What the columns say", [Html(f'<dl class="meanings">{"".join(entries)}</dl>')]) if heads else Html("")
    )


def scrolling_table(title: str, kind: str, head: str, body: str, notes: Sequence[str]) -> Html:
    """A table of ready head cells and body rows; `kind` is the attribute of its class, or empty."""
    return Html(
        f'<div class="scroll" role="region" aria-label="{escape(title)}" tabindex="0"><table{kind}>'
        f"<caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"{note(notes)}"
    )


def _render_row(row: Sequence[str]) -> str:
    kind = ' class="sub"' if row[0].startswith(" ") else ""  # it belongs to the row above it
    cells = "".join(f"<td>{escape(c)}</td>" for c in row[1:])
    return f'<tr><th scope="row"{kind}>{escape(row[0].strip())}</th>{cells}</tr>'


def chart(title: str, description: str, width: float, height: float, shapes: str) -> Html:
    """A drawing with its title as caption; the description is read out in its place."""
    svg = (
        f'<svg class="bars" role="img" aria-label="{escape(description)}" viewBox="0 0 {width:g} {height:g}" '
        f'xmlns="http://www.w3.org/2000/svg">{shapes}</svg>'
    )
    return Html(f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{svg}</figure>')


def charts(figures: Sequence[Html], small: bool = False) -> Html:
    """Figures side by side where there is room; of the `small` ones four fit beside each other on a wide screen."""
    return Html(f'<div class="charts{" small" if small else ""}">{"".join(figures)}</div>')


def explained(figure: Html, aid: str) -> Html:
    """A figure above the sentence that helps to read it."""
    return Html(f"<div>{figure}{paragraph(aid, soft=True)}</div>")


def framed(parts: Sequence[Html]) -> Html:
    """Parts in a dashed frame, which sets them apart from the rest of the page."""
    return Html(f'<div class="apart">{"".join(parts)}</div>')


def folded(title: str, parts: Sequence[Html]) -> Html:
    """Parts that the reader opens by a click on the title; on paper they are open."""
    return Html(f'<details class="folded"><summary>{escape(title)}</summary>{"".join(parts)}</details>')


def side_by_side(left: Sequence[Html], right: Sequence[Html]) -> Html:
    """Two groups of parts, beside each other where there is room."""
    return Html(f'<div class="beside"><div>{"".join(left)}</div><div>{"".join(right)}</div></div>')


def key(entries: Sequence[tuple[str, str]]) -> Html:
    """The meaning of the lines on the pictures: (text, colour); they are dashed as there."""
    items = "".join(f"<li>{line_sample(colour)}{escape(text)}</li>" for text, colour in entries)
    return Html(f'<ul class="key">{items}</ul>')


def line_sample(colour: str) -> Html:
    """A small box of this colour, dashed as on the pictures."""
    dashes = f' stroke-dasharray="{" ".join(map(str, DASHES[colour]))}"' if colour in DASHES else ""
    place = 'x="2" y="2" width="36" height="12" fill="none"'
    # as on the pictures, inside a dark line: white is seen on a white page, too
    box = f'<rect {place} stroke="#000" stroke-width="4"/>'
    box += f'<rect {place} stroke="{escape(colour)}" stroke-width="2"{dashes}/>'
    return Html(f'<svg aria-hidden="true" width="40" height="16">{box}</svg>')


def gallery(cards: Sequence[Card], small: bool = False) -> Html:
    """Pictures with their questions and answers; of `small` ones three stand in a row, on a phone one."""
    kind = "gallery three" if small else "gallery"
    return Html(f'<div class="{kind}">{"".join(_render_card(c) for c in cards)}</div>')


def verdict_mark(right: bool | None) -> Html:
    """Right (True), wrong (False) or nothing."""
    marks = {True: '<span class="good">✓ right</span>', False: '<span class="bad">✗ wrong</span>', None: ""}
    return Html(marks[right])


def _render_card(card: Card) -> str:
    lines = "".join(
        f"<dt>{escape(x.heading)}</dt><dd>{boxed_words(x.text, x.boxes) or '(empty)'}</dd>" for x in card.lines
    )
    candidates = "".join(f"<li>{escape(t) or '(empty)'}</li>" for t in card.candidates)
    more = f"<details><summary>All candidates</summary><ol>{candidates}</ol></details>" if candidates else ""
    picture = card.picture if isinstance(card.picture, Picture) else thumbnail(card.picture, _SIDE)
    title = f"<h3><span>{escape(card.title)}</span>{verdict_mark(card.verdict)}</h3>"
    return (
        f'<article class="card">{shot(picture, card.marks, card.alt, card.number)}'
        f'<div class="body">{title}<dl>{lines}</dl>{more}</div></article>'
    )

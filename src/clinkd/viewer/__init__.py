"""Records to pictures and pages: boxes on images, and HTML that needs no network."""

from clinkd.viewer.browse import Choices, Key, browser
from clinkd.viewer.curves import lines
from clinkd.viewer.figure import Bar, bars
from clinkd.viewer.grid import Cell, grid
from clinkd.viewer.maps import columns, heat
from clinkd.viewer.overlay import ANSWER, ASKED, LATER, TRUTH, boxed, overlay
from clinkd.viewer.page import (
    Card,
    Line,
    apart,
    article,
    charts,
    folded,
    gallery,
    key,
    note,
    page,
    paragraph,
    section,
    table,
)
from clinkd.viewer.shot import Html, Mark, Picture, boxed_words, repeated, thumbnail

__all__ = [
    "ANSWER",
    "ASKED",
    "LATER",
    "TRUTH",
    "Bar",
    "Card",
    "Cell",
    "Choices",
    "Html",
    "Key",
    "Line",
    "Mark",
    "Picture",
    "apart",
    "article",
    "bars",
    "boxed",
    "boxed_words",
    "browser",
    "charts",
    "columns",
    "folded",
    "gallery",
    "grid",
    "heat",
    "key",
    "lines",
    "note",
    "overlay",
    "page",
    "paragraph",
    "repeated",
    "section",
    "table",
    "thumbnail",
]

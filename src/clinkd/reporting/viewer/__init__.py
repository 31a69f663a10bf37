"""Records to pictures and pages: boxes on images, and HTML that needs no network."""

from clinkd.reporting.viewer.browse import Choices, Key, browser
from clinkd.reporting.viewer.curves import lines
from clinkd.reporting.viewer.figure import Bar, render_bar_chart
from clinkd.reporting.viewer.grid import Cell, grid
from clinkd.reporting.viewer.maps import columns, heat
from clinkd.reporting.viewer.overlay import ANSWER, ASKED, LATER, TRUTH, boxed, overlay
from clinkd.reporting.viewer.page import (
    Card,
    CardText,
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
from clinkd.reporting.viewer.shot import DrawnBox, Html, Picture, boxed_words, repeated, thumbnail

__all__ = [
    "ANSWER",
    "ASKED",
    "LATER",
    "TRUTH",
    "Bar",
    "Card",
    "CardText",
    "Cell",
    "Choices",
    "DrawnBox",
    "Html",
    "Key",
    "Picture",
    "apart",
    "article",
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
    "render_bar_chart",
    "repeated",
    "section",
    "table",
    "thumbnail",
]

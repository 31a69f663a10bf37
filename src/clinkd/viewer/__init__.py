"""Records to pictures and pages: boxes on images, and HTML that needs no network and runs no script."""

from clinkd.viewer.figure import Bar, bars
from clinkd.viewer.maps import columns, heat
from clinkd.viewer.overlay import ANSWER, ASKED, LATER, TRUTH, boxed, overlay
from clinkd.viewer.page import Card, Html, charts, data_uri, folded, gallery, key, note, page, paragraph, section, table

__all__ = [
    "ANSWER",
    "ASKED",
    "LATER",
    "TRUTH",
    "Bar",
    "Card",
    "Html",
    "bars",
    "boxed",
    "charts",
    "columns",
    "data_uri",
    "folded",
    "gallery",
    "heat",
    "key",
    "note",
    "overlay",
    "page",
    "paragraph",
    "section",
    "table",
]

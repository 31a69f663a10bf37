"""Records to pictures and pages: boxes on images, and HTML that needs no network and runs no script."""

from clinkd.viewer.figure import Bar, bars
from clinkd.viewer.overlay import ANSWER, ASKED, TRUTH, overlay
from clinkd.viewer.page import Card, Html, charts, data_uri, gallery, key, note, page, paragraph, section, table

__all__ = [
    "ANSWER",
    "ASKED",
    "TRUTH",
    "Bar",
    "Card",
    "Html",
    "bars",
    "charts",
    "data_uri",
    "gallery",
    "key",
    "note",
    "overlay",
    "page",
    "paragraph",
    "section",
    "table",
]

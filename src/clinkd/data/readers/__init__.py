"""Every form of data to samples: one reader a form, all of one shape.

A reader yields an `Entry` for each row of a `Source`: samples, or the problem that the row has. Nothing is skipped.
"""

from clinkd.data.readers.forms import FORMS, demand, detect, read
from clinkd.data.readers.rows import Entry, Kind, Problem
from clinkd.data.readers.source import Source

__all__ = ["FORMS", "Entry", "Kind", "Problem", "Source", "demand", "detect", "read"]

"""Every form of data to samples: one reader a form, all of one shape.

A reader yields an `RowResult` for each row of a `Source`: samples, or the problem that the row has. Nothing is skipped.
"""

from clinkd.data.readers.forms import FORMS, detect_form, read_rows, read_samples
from clinkd.data.readers.rows import Kind, RowError, RowResult
from clinkd.data.readers.source import Source

__all__ = ["FORMS", "Kind", "RowError", "RowResult", "Source", "detect_form", "read_rows", "read_samples"]

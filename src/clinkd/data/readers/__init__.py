"""Read each form of data into samples. Each form has one reader, and all readers work alike.

A reader yields a `RowResult` for each row of a `Source`: the samples, or the problem of the row. No row is skipped.
In `agreement`, `Annotated` and `Source.readers` alone, readers are the persons who read an image, as in `--readers`.
"""

from clinkd.data.readers.forms import FORMS, detect_form, read_rows, read_samples
from clinkd.data.readers.rows import Kind, RowError, RowResult
from clinkd.data.readers.source import Source

__all__ = ["FORMS", "Kind", "RowError", "RowResult", "Source", "detect_form", "read_rows", "read_samples"]

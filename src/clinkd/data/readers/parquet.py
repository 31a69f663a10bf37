"""Rows of a Parquet file, as those of JSON. Pictures inside get the paths by which `clinkd.data.images` opens them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from clinkd.data.images.parquet import PictureColumn, find_picture_column, find_picture_columns, open_parquet
from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, make_error_result, parse_object
from clinkd.records import BadInput

_BATCH_ROWS = 64  # with their pictures in memory


def parquet_rows(file: Path) -> Iterator[SourceRow | RowResult]:
    """Rows of a Parquet file. Instead of a picture they have its path: `train.parquet#3` for that of the third row.

    A picture that stands in several rows has the path of its first, so that a data set that repeats the image beside
    each question has as many images as it shows. Raises BadInput if the file is damaged or empty, or has several
    columns of pictures.
    """
    with open_parquet(file, str(file)) as opened:
        if not opened.metadata.num_rows:
            raise BadInput(f"{file}: the file has no rows")
        pictures = find_picture_column(opened.schema_arrow, str(file))
        left_out = {column.name for column in find_picture_columns(opened.schema_arrow, str(file))} - {
            pictures and pictures.name
        }
        columns = [name for name in opened.schema_arrow.names if name not in left_out]
        number, first_rows = 0, dict[bytes, int]()
        for batch in opened.iter_batches(_BATCH_ROWS, columns=columns):
            for value in batch.to_pylist():
                number += 1
                yield _make_row(file, number, value, pictures, first_rows)


def _make_row(
    file: Path, number: int, value: dict[str, Any], pictures: PictureColumn | None, first_rows: dict[bytes, int]
) -> SourceRow | RowResult:
    if pictures is not None:
        held = value[pictures.name]
        content = held.get("bytes") if isinstance(held, dict) else held
        if content:
            first = first_rows.setdefault(hashlib.sha256(content).digest(), number)
            value[pictures.name] = f"{file.name}#{first}"
        else:  # the record may name a file instead
            value[pictures.name] = held.get("path") if isinstance(held, dict) else None
    raw = orjson.dumps(value, default=str).decode()
    try:
        return SourceRow(file, number, parse_object(raw), raw)
    except FieldError as fault:
        return make_error_result(file, number, fault, raw, value)

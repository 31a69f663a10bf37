"""Pictures inside a Parquet file, as Hugging Face stores them: `train.parquet#3` is the picture of the third row.

A picture is a column of the bytes of an image file, or of records of `bytes` and `path`
(https://huggingface.co/docs/datasets/image_dataset). Needs the extra `parquet`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from clinkd.data.images.kind import Facts, File, Geometry, ImageFrame, check_pixels
from clinkd.data.images.limits import ON_DISK, FileLimits
from clinkd.data.images.plain import Plain
from clinkd.records import BadInput

MAGIC = b"PAR1"
MOST_GROUP_BYTES = 1 << 30  # of the pictures of a row group, which are in memory together
_MOST_HEADER_BYTES = 1 << 26  # of any one text or list of the header


class Parquet:
    """A Parquet file with one column of pictures. Its frames are its rows."""

    name = "Parquet file"
    formats: tuple[str, ...] = ()  # nobody hands one over as an image
    accept: tuple[str, ...] = ()
    medical = False
    reportable = False

    def sniff(self, file: File) -> bool:
        return isinstance(file, Path) and is_parquet(file)

    def describe(
        self, file: File, place: str, frame: int | None = 1, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> Facts:
        picture, rows = _read_picture(file, place, frame)
        facts = Plain().describe(picture, place)
        return Facts(facts.width, facts.height, rows, orientation=facts.orientation)

    def open(
        self, file: File, place: str, frame: int | None, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> ImageFrame:
        picture, rows = _read_picture(file, place, frame)
        opened = Plain().open(picture, place, None, None, limits)
        check_pixels(opened.facts.width, opened.facts.height, place, limits)
        return ImageFrame(opened.picture, Facts(opened.facts.width, opened.facts.height, rows), frame or 1)

    def geometry(self, file: File, place: str, limits: FileLimits = ON_DISK) -> Geometry:
        return Geometry()

    def instance_uid(self, path: Path, place: str) -> str:
        return ""

    def texts(self, path: Path, place: str) -> set[str]:
        raise BadInput(f"{place}: pictures inside a Parquet file; write them out with clinkd data import --copy first")


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does."""
    try:
        if not path.is_file():  # reading a pipe may never end
            return False
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False


@contextmanager
def open_parquet(path: Path, place: str) -> Iterator[Any]:
    """The opened `pyarrow.parquet.ParquetFile`. Raises BadInput where it is damaged, or the extra is missing."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise BadInput(f"{place}: Parquet needs the extra: pip install 'clinkd[parquet]'") from None
    limits = {f"thrift_{kind}_size_limit": _MOST_HEADER_BYTES for kind in ("string", "container")}
    try:
        with parquet.ParquetFile(path, **limits) as file:
            yield file
    except (arrow.ArrowException, OSError, MemoryError) as error:
        raise BadInput(f"{place}: cannot be read ({' '.join(str(error).split())[:200]})") from None


class PictureColumn(NamedTuple):
    """A column with a picture in each row; `leaf` is where its bytes are."""

    name: str
    leaf: str


def find_picture_columns(schema: Any, place: str) -> list[PictureColumn]:
    """The columns of an Arrow schema that may hold pictures: bytes, or records with `bytes`.

    Raises BadInput for lists of pictures.
    """
    from pyarrow import types

    def is_record(kind: Any) -> bool:
        return bool(types.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    found = []
    for field in schema:
        if types.is_list(field.type) and is_record(field.type.value_type):
            raise BadInput(f"{place}: column {field.name} holds lists of pictures; one picture a row can be read")
        if types.is_binary(field.type) or types.is_large_binary(field.type):
            found.append(PictureColumn(field.name, field.name))
        elif is_record(field.type):
            found.append(PictureColumn(field.name, f"{field.name}.bytes"))
    return found


def find_picture_column(schema: Any, place: str) -> PictureColumn | None:
    """The column of pictures, None if there is none. Raises BadInput where it is not clear which one is."""
    columns = find_picture_columns(schema, place)
    chosen = [c for c in columns if c.name == "image"] if len(columns) > 1 else columns
    if columns and not chosen:
        names = ", ".join(column.name for column in columns)
        raise BadInput(f"{place}: has several columns of bytes ({names}) and none called image; keep or rename one")
    return chosen[0] if chosen else None


def _read_picture(file: File, place: str, frame: int | None) -> tuple[io.BytesIO, int]:
    """The image file in a row, from 1, and the number of rows."""
    assert isinstance(file, Path)  # as `sniff` says
    with open_parquet(file, place) as opened:
        rows = opened.metadata.num_rows
        if frame is None:
            raise BadInput(f"{place}: a file of {rows:,} rows and none is named; give one, as {file.name}#1")
        if not 1 <= frame <= rows:
            raise BadInput(f"{place}: row {frame} of {rows:,}; rows count from 1")
        column = find_picture_column(opened.schema_arrow, place)
        if column is None:
            raise BadInput(f"{place}: has no column of pictures")
        place_in_group = frame - 1
        for group in range(opened.num_row_groups):
            size = opened.metadata.row_group(group).num_rows
            if place_in_group < size:
                break
            place_in_group -= size
    group_rows = _read_group(file, file.stat().st_mtime_ns, group, column)
    picture = group_rows[place_in_group].as_py() if place_in_group < len(group_rows) else None
    if not picture:
        raise BadInput(f"{place}: no picture in this row")
    return io.BytesIO(picture), rows


@lru_cache(maxsize=1)  # neighbours are mostly asked for one after another
def _read_group(path: Path, changed: int, group: int, column: PictureColumn) -> Any:
    """The bytes of all pictures of a row group. `changed`: the file's time, so that a new one is read anew."""
    with open_parquet(path, str(path)) as file:
        metadata = file.metadata.row_group(group)
        chunks = (metadata.column(n) for n in range(metadata.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column.leaf)
        if size > MOST_GROUP_BYTES:
            more = f"its row group {group + 1} has {size:,} bytes of pictures, more than {MOST_GROUP_BYTES:,}"
            raise BadInput(f"{path}: {more}; write it anew with fewer rows a group")
        read = file.read_row_group(group, columns=[column.leaf]).column(0).combine_chunks()
    return read if column.leaf == column.name else read.field("bytes")

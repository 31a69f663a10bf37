"""Files of records: JSON lists, JSON lines and Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clinkd.data.readers.parquet import parquet_rows
from clinkd.data.readers.rows import RowResult, SourceRow, json_rows
from clinkd.records import BadInput

SUFFIXES = (".json", ".jsonl", ".parquet")


def record_rows(file: Path, encoding: str = "utf-8") -> Iterator[SourceRow | RowResult]:
    """The rows of a file of records. Raises BadInput if the file is absent, empty or of another kind."""
    return parquet_rows(file) if file.suffix.lower() == ".parquet" else json_rows(file, encoding)


def files(path: Path) -> list[Path]:
    """The files of records in a folder, or the file itself. Raises BadInput if there is none."""
    if not path.is_dir():
        return [path]
    found = [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES and p.stem != "dataset_info"]
    if not found:
        raise BadInput(f"{path}: no {', '.join(SUFFIXES)} file there; give the file, or the folder that holds it")
    return found

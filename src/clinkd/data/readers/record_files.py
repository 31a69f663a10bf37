"""Files of records: JSON lists, JSON lines and Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from clinkd.data.readers.parquet import parquet_rows
from clinkd.data.readers.rows import RowResult, SourceRow, json_rows
from clinkd.records import BadInput

RECORD_SUFFIXES = (".json", ".jsonl", ".parquet")


def walk_files(root: Path) -> Iterator[str]:
    """The paths of all files below a folder, relative to it, folder by folder, sorted; hidden folders are left out."""
    for directory, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        below = Path(directory).relative_to(root)
        yield from ((below / name).as_posix() for name in sorted(names))


def record_rows(file: Path, encoding: str = "utf-8") -> Iterator[SourceRow | RowResult]:
    """The rows of a file of records. Raises BadInput if the file is absent, empty or of another kind."""
    return parquet_rows(file) if file.suffix.lower() == ".parquet" else json_rows(file, encoding)


def find_record_files(folder: Path) -> list[Path]:
    """The files of records in a folder, sorted. dataset_info.json of Hugging Face is none."""
    files = (p for p in sorted(folder.iterdir()) if p.suffix.lower() in RECORD_SUFFIXES)
    return [p for p in files if p.stem != "dataset_info" and p.is_file()]


def list_record_files(path: Path) -> list[Path]:
    """The files of records in a folder, or the file itself. Raises BadInput if there is none."""
    if not path.is_dir():
        return [path]
    files = find_record_files(path)
    if not files:
        suffixes = ", ".join(RECORD_SUFFIXES)
        raise BadInput(f"{path}: no {suffixes} file there; give the file, or the folder that holds it")
    return files

"""A data set as `clinkd data import` leaves it: samples.jsonl, dataset.json, and random access to the rows."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson

from clinkd.records import BadInput, Sample
from clinkd.storage import read_json, sha256_file, write_atomic

SAMPLES = "samples.jsonl"
ABOUT = "dataset.json"  # describes the whole set, beside its samples
RECORDS = "records.jsonl"
INDEX = ".samples.npy"  # where each line begins; made anew when it does not fit the file
_CHUNK = 1 << 24
_HEAD = 1 << 16  # of a dataset.json, where our first keys stand
_FIRST_KEYS = b'"root"', b'"sources"'


def data_file(path: Path) -> Path:
    """The file that holds the rows of a folder that a run can learn from, or the file itself.

    Raises BadInput where there is none; other forms of data are imported first.
    """
    candidates = [path / name for name in (SAMPLES, RECORDS) if (path / name).is_file()] if path.is_dir() else [path]
    if not candidates or not candidates[0].is_file():
        raise BadInput(
            f"data.path={path}: no {RECORDS} and no {SAMPLES} there; data of another form is imported first, with "
            "clinkd data import"
        )
    return candidates[0]


def read_about(folder: Path) -> dict[str, Any] | None:
    """What `data import` and `data split` wrote about a data set, with its `root` as text; None where they did not.

    A `dataset.json` of somebody else (nnU-Net, MSD, MONAI, or rows in a file of that name) has other keys: it is not
    ours to read, however large or broken. Raises BadInput where one of ours is broken.
    """
    file = folder / ABOUT
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head.lstrip().startswith(b"{") or not any(key in head for key in _FIRST_KEYS):
        return None
    try:
        about = read_json(file)
    except BadInput:
        if (folder / SAMPLES).is_file():
            raise
        return None
    if not isinstance(about, dict) or not ("clinkd" in about or about.keys() <= {"root", "split", "groups"}):
        return None
    if not isinstance(about.get("root"), str):
        raise BadInput(f"{file}: no root there; name the folder of the images with --images")
    return about


def dataset_identity(path: Path, root: Path) -> dict[str, str]:
    """Identify a data set: a hash of its file, and a hash of the size and change time of every image.

    Errors of a row appear when it is read, not here. Raises BadInput as `data_file`.
    """
    file = data_file(path)
    images = hashlib.sha256()
    for name in sorted(set(_list_image_paths(file))):
        with contextlib.suppress(OSError, ValueError):
            stat = (root / name.rpartition("#")[0] if "#" in name else root / name).stat()
            images.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return {"sha256": sha256_file(file), "images": images.hexdigest()}


def _list_image_paths(file: Path) -> Iterator[str]:
    """The images that the rows name."""
    with file.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(orjson.JSONDecodeError, AttributeError, TypeError, KeyError):
                record: dict[str, Any] = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
                named = [record["image"]] if "image" in record else [i["path"] for i in record["images"]]
                yield from (name for name in named if isinstance(name, str))


class SampleFile(Sequence[Sample]):
    """The samples of a file of one JSON object a line, read one by one as they are asked for.

    Holds 8 bytes a row in memory. `pread` and not a memory map: pages of a map stay in the memory of the process.
    Raises BadInput naming the line where one is no sample.
    """

    def __init__(self, path: Path) -> None:
        self.file = path / SAMPLES if path.is_dir() else path
        if not self.file.is_file():
            raise BadInput(f"{self.file}: no such file; clinkd data import makes one")
        self._line_starts = _line_starts(self.file)
        self._descriptor = os.open(self.file, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._line_starts) - 1

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(index)
        start, end = int(self._line_starts[number]), int(self._line_starts[number + 1])
        line = os.pread(self._descriptor, end - start, start)
        try:
            return Sample.from_json(orjson.loads(line))
        except ValueError as error:
            where = f"{self.file}, line {number + 1}"
            raise BadInput(f"{where}: no sample ({error}); clinkd data check says more") from None

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)


def _line_starts(file: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each line begins, and the end of the file, kept beside it for the next time."""
    index_file = file.with_name(INDEX)
    size, modified = file.stat().st_size, file.stat().st_mtime_ns
    with contextlib.suppress(OSError, ValueError):
        cached = np.load(index_file, allow_pickle=False)
        if cached.dtype == np.int64 and cached.size > 2 and (cached[-1], cached[-2]) == (modified, size):
            return np.asarray(cached[:-1])
    chunk_starts = [np.zeros(1, np.int64)]
    with file.open("rb") as stream:
        offset = 0
        while chunk := stream.read(_CHUNK):
            chunk_starts.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + offset + 1)
            offset += len(chunk)
    starts = np.concatenate(chunk_starts)
    if starts[-1] != size:  # a last line without line end
        starts = np.append(starts, size)
    with contextlib.suppress(OSError, BadInput):  # a folder one may not write to: it is counted anew each time
        buffer = io.BytesIO()
        np.save(buffer, np.append(starts, modified))
        write_atomic(index_file, buffer.getvalue())
    return starts

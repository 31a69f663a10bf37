"""A data set as `clinkd data import` writes it: samples.jsonl, dataset.json, and what identifies them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from clinkd.records import BadInput
from clinkd.storage import read_json, sha256_file

SAMPLES = "samples.jsonl"
ABOUT = "dataset.json"  # describes the whole set, beside its samples
RECORDS = "records.jsonl"
_HEAD = 1 << 16  # bytes of a dataset.json that hold our first keys
_FIRST_KEYS = b'"root"', b'"sources"'


def data_file(path: Path) -> Path:
    """The file with the rows of a folder that a run can learn from, or the file itself.

    Raises BadInput if there is none, because other forms of data must be imported first.
    """
    candidates = [path / name for name in (SAMPLES, RECORDS) if (path / name).is_file()] if path.is_dir() else [path]
    if not path.exists():
        raise BadInput(f"data.path={path}: no such file or folder")
    if not candidates or not candidates[0].is_file():
        raise BadInput(
            f"data.path={path}: no {RECORDS} and no {SAMPLES} there; data of another form is imported first, with "
            "clinkd data import"
        )
    return candidates[0]


def read_about(folder: Path) -> dict[str, Any] | None:
    """The dataset.json that `data import` and `data split` wrote, with its `root` as text. None if they wrote none.

    A `dataset.json` of another program (nnU-Net, MSD, MONAI, or rows in a file of that name) has other keys. It is not
    read, even if it is large or broken. Raises BadInput if one of ours is broken.
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
    """Yield the names of the images in the rows."""
    with file.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(orjson.JSONDecodeError, AttributeError, TypeError, KeyError):
                record: dict[str, Any] = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
                names = [record["image"]] if "image" in record else [i["path"] for i in record["images"]]
                yield from (name for name in names if isinstance(name, str))

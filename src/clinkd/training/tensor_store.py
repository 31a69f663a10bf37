"""Tensors on disk, some files of them, filled resumably and read by memory map.

A tensor store is a folder:

    about.json      what it was made from; it serves only who asks for the same
    *.safetensors   the tensors
    index.jsonl     a line a file: its seal, and the items in it, in order: id and lengths
    manifest.json   checksums of all files, written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from clinkd.records import BadInput
from clinkd.settings import differences
from clinkd.storage import (
    MANIFEST,
    Advance,
    JsonLines,
    Manifest,
    progress,
    read_json,
    sha256_file,
    write_atomic,
    write_json,
    write_lines,
)

ABOUT, INDEX = "about.json", "index.jsonl"
Items = list[list[Any]]  # id and lengths of each item of a file
Filled = tuple[dict[str, Tensor], Items]


def digest(value: Any) -> str:
    """Of JSON values: sixteen hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def finished(folder: Path) -> bool:
    """Whether a store was filled to its end."""
    return (folder / MANIFEST).is_file()


class TensorStore:
    """`what` it holds, in words, and `about`, what it was made from, as JSON values.

    `owner`: what to remove where it is damaged, if that is more than its folder.
    """

    def __init__(self, folder: Path, what: str, about: Mapping[str, Any], owner: Path | None = None) -> None:
        self.folder, self.what, self.about, self.owner = folder, what, dict(about), owner or folder

    def fill(
        self, files: Mapping[str, Sequence[str]], make: Callable[[str, Advance], Filled], title: str, unit: str
    ) -> None:
        """Write those of `files`, by name and the ids of their items, that do not stand whole yet.

        The end has the same bytes, however often it was stopped. `make` is given a file's name and the progress bar,
        in `unit`s, which are items. One process only.

        Raises BadInput where the folder is made from something else, and on a full disk.
        """
        if (self.folder / ABOUT).exists():
            self.demand_same(self.about)
        for torn in self.folder.glob(".*.tmp"):
            torn.unlink()
        write_json(self.folder / ABOUT, self.about)
        index = JsonLines(self.folder / INDEX)
        done = self._whole(index, files)
        total, before = (sum(len(files[name]) for name in names) for names in (files, done))
        with index, progress(total, title, unit, done=before) as advance:
            for name in [n for n in files if n not in done]:
                tensors, items = make(name, advance)
                write_atomic(self.folder / name, save(tensors))
                done[name] = {"id": name, "seal": self._seal(name, items), "items": items}
                index.append(done[name])
        write_lines(index.path, (done[name] for name in files))
        Manifest.write(self.folder)

    def opened(self) -> dict[str, Items]:
        """The items of every file of a full store, after each byte was checked.

        Raises BadInput where the store was never filled, was made from something else (naming it), or is damaged.
        """
        if finished(self.folder):  # otherwise the manifest's own words are the right ones
            self.demand_same(self.about)
        Manifest.verify(self.folder, self.owner)
        return {line["id"]: line["items"] for line in JsonLines(self.folder / INDEX).read()}

    def file(self, name: str) -> Any:
        """A file, mapped into memory."""
        return safe_open(self.folder / name, framework="pt")

    def demand_same(self, about: Mapping[str, Any]) -> None:
        """Raises BadInput, with what differs, where the folder is made from something else than `about` says."""
        there = read_json(self.folder / ABOUT)
        apart = differences(about, there if isinstance(there, dict) else {})
        if apart:
            told = "; ".join(apart)
            raise BadInput(
                f"{self.folder}: {self.what} is of something else: {told}; remove {self.owner} to make it anew"
            )

    def _whole(self, index: JsonLines, files: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
        """The index lines of files that need not be made again."""
        try:
            lines = {line.get("id"): line for line in index.read()}
        except BadInput:  # a damaged line: nothing is known of the files any more
            index.path.unlink()
            return {}
        return {
            name: lines[name]
            for name, ids in files.items()
            if name in lines
            and (self.folder / name).is_file()
            and self._seal(name, lines[name].get("items")) == lines[name].get("seal")
            and [item[0] for item in lines[name]["items"]] == list(ids)
        }

    def _seal(self, name: str, items: Any) -> str:
        """A digest of a file together with what the index says of it."""
        return digest([sha256_file(self.folder / name), self.about, items])

"""Tensors on disk, in several files. Filling them can be resumed, and they are read by memory map.

A tensor store is a folder:

    about.json      what it was made from; only for this can it be used
    *.safetensors   the tensors
    index.jsonl     a line for each file: its seal, and its items in order, each with id and lengths
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
    """A digest of JSON values: sixteen hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def is_store_full(folder: Path) -> bool:
    """Whether a store is full."""
    return (folder / MANIFEST).is_file()


class TensorStore:
    """A folder of tensors. `what`: its contents, in words; `about`: what it was made from, as JSON values.

    `owner`: the folder to remove if the store is damaged, if that is more than its own folder.
    """

    def __init__(self, folder: Path, what: str, about: Mapping[str, Any], owner: Path | None = None) -> None:
        self.folder, self.what, self.about, self.owner = folder, what, dict(about), owner or folder
        self.mapped: dict[str, Any] = {}

    def fill(
        self, files: Mapping[str, Sequence[str]], make: Callable[[str, Advance], Filled], title: str, unit: str
    ) -> None:
        """Write those `files` (name, and ids of the items) that are not whole yet.

        The full store has the same bytes however often filling was stopped. `make` gets a file's name and a function
        that advances the progress bar by items, named `unit`. For one process only.

        Raises BadInput if the folder was made from something else, and on a full disk.
        """
        if (self.folder / ABOUT).exists():
            self.demand_same(self.about)
        for torn in self.folder.glob(".*.tmp"):
            torn.unlink()
        write_json(self.folder / ABOUT, self.about)
        index = JsonLines(self.folder / INDEX)
        done = self._find_whole(index, files)
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
        """The items of every file of a full store, after a check of all bytes.

        Raises BadInput if the store is not full, was made from something else (which it names), or is damaged.
        """
        if is_store_full(self.folder):  # otherwise the manifest's own error says what is wrong
            self.demand_same(self.about)
        Manifest.verify(self.folder, self.owner)
        return {line["id"]: line["items"] for line in JsonLines(self.folder / INDEX).read()}

    def file(self, name: str) -> Any:
        """A file, mapped into memory."""
        if name not in self.mapped:
            self.mapped[name] = safe_open(self.folder / name, framework="pt")
        return self.mapped[name]

    def demand_same(self, about: Mapping[str, Any]) -> None:
        """Raise BadInput, with the differences, if the folder was made from something else than `about`."""
        stored = read_json(self.folder / ABOUT)
        unequal = "; ".join(differences(about, stored if isinstance(stored, dict) else {}))
        if unequal:
            raise BadInput(
                f"{self.folder}: {self.what} is of something else: {unequal}; remove {self.owner} to make it anew"
            )

    def _find_whole(self, index: JsonLines, files: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
        """The index lines of the files that are whole."""
        try:
            lines = {line.get("id"): line for line in index.read()}
        except BadInput:  # a damaged line: the index tells nothing reliable about the files
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
        """A digest of a file and its items in the index."""
        return digest([sha256_file(self.folder / name), self.about, items])

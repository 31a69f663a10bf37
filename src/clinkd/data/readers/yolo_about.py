"""What data.yaml, or the texts of Darknet, say of a YOLO data set: the names of its classes, and its splits.

    {path: set, train: images/train, val: [images/a, images/b], test: test.txt, names: [liver, spleen] or {0: liver}}

An entry is a folder of images, a text with the path of an image a line, or a list of both. Darknet has the names in
obj.names or classes.txt, a name a line, and the splits in train.txt, valid.txt and test.txt.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from clinkd.data.readers.names import load_yaml, require_class_name
from clinkd.data.readers.rows import FieldError
from clinkd.data.readers.source import Source
from clinkd.data.readers.split_words import SPLIT_WORDS
from clinkd.records import BadInput, Split

MOST_BYTES = 1 << 22  # of a label file or data.yaml
YAML = (".yaml", ".yml")
NAME_FILES = (
    "data.yaml", "data.yml", "dataset.yaml", "*.yaml", "*.yml", "classes.txt", "labels/classes.txt", "*.names",
    "_darknet.labels", "*/_darknet.labels",
)  # fmt: skip
PARENTS = ("data.yaml", "data.yml")  # where one folder of a split is given
SPLIT_LISTS = {"train.txt": "train", "valid.txt": "val", "val.txt": "val", "test.txt": "test"}  # of Darknet


class YoloAbout:
    """The names of classes by number, and the splits of images. Raises BadInput if no file names the classes."""

    def __init__(self, source: Source, base: Path, notes: Counter[str]) -> None:
        self.source, self.base, self.notes = source, base, notes
        self.file, self.values = self._read_values()
        self.names = _parse_names(self.values.get("names"), self.values.get("nc"), self.file)
        self.has_key_points = "kpt_shape" in self.values
        self.listed = self._read_listed_splits()

    def find_splits(self, image: str) -> set[Split | None]:
        """The splits for which an image, or a folder that holds it, is listed."""
        path = PurePosixPath(image)
        return {
            split
            for p in (path, *path.parents)
            for place, split in self.listed.get(p.name, {}).items()
            if place == str(p) or place.endswith(f"/{p}")
        }

    def _read_values(self) -> tuple[Path, dict[str, Any]]:
        """The file that names the classes, and what it says."""
        given = self.source.path if self.source.path.suffix.lower() in YAML else None
        folders = [(f, p) for f, patterns in ((self.base, NAME_FILES), (self.base.parent, PARENTS)) for p in patterns]
        files = [given] if given else [file for f, p in folders for file in sorted(f.glob(p)) if file.is_file()]
        values = {SPLIT_LISTS[f.name]: f.name for f in sorted(self.base.glob("*.txt")) if f.name in SPLIT_LISTS}
        for file in files:
            if "names" in (own := _read_name_file(file)):
                values |= own if file.parent != self.base.parent else {"names": own["names"]}  # paths are not ours
                break
        if (given_names := self.source.class_names) is not None:
            by_code = given_names.by_dataset.get("", {0: (given_names.only,)})
            return Path(given_names.place), values | {"nc": None, "names": {k: n[0] for k, n in by_code.items()}}
        if "names" in values:
            return file, values
        wanted = "data.yaml, classes.txt or obj.names"
        raise BadInput(f"{self.source.path}: no names of the classes ({wanted}); give the file with --names FILE")

    def _read_listed_splits(self) -> dict[str, dict[str, Split]]:
        """Folders and single images that data.yaml lists for a split: last name of the path -> path -> split."""
        splits: dict[str, set[Split]] = {}
        for key in ("train", "val", "test"):
            entries = self.values.get(key) or []
            for entry in [entries] if isinstance(entries, str) else entries:
                for place in self._find_listed(str(entry), key):
                    splits.setdefault(place, set()).add(SPLIT_WORDS[key])
        listed: dict[str, dict[str, Split]] = {}
        for place, told in splits.items():
            if len(told) > 1:
                both = " and ".join(sorted(told))
                self.notes[f"{self.file.name} gives {place} for {both}, so it tells no split"] += 1
            else:
                listed.setdefault(PurePosixPath(place).name, {})[place] = told.pop()
        return listed

    def _find_listed(self, entry: str, key: str) -> list[str]:
        """What an entry of data.yaml means, as paths below the root: Roboflow's ../train/images is train/images."""
        plain = entry.removeprefix("./").replace("../", "")
        stated = str(self.values.get("path") or "").removeprefix("./")
        for place in (self.base / stated / entry, self.base / entry, self.base / plain):
            if place.is_dir() and place.resolve().is_relative_to(self.base.resolve()):
                return [place.resolve().relative_to(self.base.resolve()).as_posix()]
            if place.is_file() and place.suffix == ".txt":
                lines = place.read_text(encoding=self.source.encoding).split("\n")
                return [line.strip().removeprefix("./") for line in lines if line.strip()]
        self.notes[f"{self.file.name} gives {entry} for {key}, which is not there"] += 1
        return []


def _read_name_file(file: Path) -> dict[str, Any]:
    """data.yaml as it is; a text with a name a line as {"names": [...]}."""
    if not file.is_file() or file.stat().st_size > MOST_BYTES:
        raise BadInput(f"{file}: no such file, or too long for names of classes; check the path")
    if file.suffix.lower() not in YAML:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
        return {"names": [line.strip() for line in text.rstrip().split("\n")]}
    value = load_yaml(file)
    return value if isinstance(value, dict) else {}


def _parse_names(stated: Any, count: Any, file: Path) -> dict[int, str]:
    """The names of classes by number, of a list or of {number: name}. Raises BadInput for anything else."""
    numbered = dict(enumerate(stated)) if isinstance(stated, list) else stated if isinstance(stated, dict) else {}
    names: dict[int, str] = {}
    for number, name in numbered.items():
        try:
            names[int(number)] = require_class_name(name, "names", None)
        except (ValueError, FieldError):
            why = f"names: {number}: {name} is no number and name of a class; correct it, or give --names"
            raise BadInput(f"{file}: {why}") from None
    if not names:
        raise BadInput(f"{file}: names: a list of names, or number: name, is wanted")
    if type(count) is int and count != len(names):
        raise BadInput(f"{file}: nc: {count} classes, and {len(names)} names; correct one of them")
    return names

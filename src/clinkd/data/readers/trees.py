"""Trees of label files and images, as COCO, YOLO and Pascal VOC have them: where the images lie.

annotations/instances_train2017.json   images/train2017/1.jpg or train2017/1.jpg
labels/train/1.txt                     images/train/1.jpg
train/labels/1.txt                     train/images/1.jpg
Annotations/1.xml                      JPEGImages/1.jpg
train/_annotations.coco.json           train/1.jpg
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

from clinkd.data.images import is_named_as_image, stays_inside
from clinkd.data.readers.record_files import walk_files
from clinkd.data.readers.rows import FieldError
from clinkd.data.readers.source import LABEL_FOLDERS, ImageResolver, Source
from clinkd.data.readers.split_words import find_split_in_name, find_split_of_path
from clinkd.records import ImageRef, Split

LABEL_SUFFIXES = (".txt", ".xml")
IMAGE_FOLDERS = ("images", "JPEGImages", "Images", "imgs", "img", "data")


class TreeImages:
    """Finds the image that a label file means, in the folders that belong to the file."""

    def __init__(self, source: Source, notes: Counter[str]) -> None:
        self.source = source
        self.resolver = ImageResolver(replace(source, prefix=""), notes)  # the prefix is cut before a folder is added
        self.base = replace(source, images=None).root  # folders of labels and of images have equal names below it
        self._cached_folders = cache(self._list_folders)
        self._cached_subfolders = cache(_list_subfolders)

    def find(self, file: Path, name: object, field: str) -> ImageRef:
        """The image `name` of a label file. Raises FieldError if it is in none of the file's folders, or in several."""
        if not isinstance(name, str) or not name.strip():
            return self.resolver.ref(name, field)
        places = self._list_places(file, name)
        exact = [place for place in places if self._is_file(place)]
        if len(exact) > 1 and self.source.images is None:
            why = f"is both {exact[0]} and {exact[1]}; give the folder of the right one with --images"
            raise FieldError(field, name, why)
        errors = []
        for place in exact[:1] or places:
            try:
                return self.resolver.ref(place, field)
            except FieldError as fault:
                errors.append(fault)
        raise FieldError(field, name, errors[0].why)

    def find_by_stem(self, file: Path, field: str) -> ImageRef:
        """The image that has the name of a label file, but for the suffix. Raises FieldError as `find`."""
        folders = self._find_folders(file)
        places = [f"{folder}{name}" for folder in folders for name in self.names.get(folder, {}).get(file.stem, ())]
        if len(places) > 1:
            why = f"is both {places[0]} and {places[1]}; remove one, or give the folder of the right one with --images"
            raise FieldError(field, file.stem, why)
        if not places:
            why = f"no image of this name in {', '.join(f or '.' for f in folders)} of {self.source.root}; add it"
            raise FieldError(
                field, file.stem, f"{why}, remove {file.name}, or give the folder of the images with --images"
            )
        return self.resolver.ref(places[0], field)

    def find_named_or_like(self, file: Path, name: str, field: str) -> ImageRef:
        """The image that a label file names, else the one with the name of the file. Raises FieldError as `find`."""
        is_named = bool(name) and any(self._is_file(place) for place in self._list_places(file, name))
        return self.find(file, name, field) if is_named else self.find_by_stem(file, field)

    @cached_property
    def names(self) -> dict[str, dict[str, list[str]]]:
        """The image files below the root: folder, as a prefix of paths -> stem -> names."""
        found: dict[str, dict[str, list[str]]] = {}
        for path in filter(is_named_as_image, walk_files(self.source.root)):
            folder, slash, name = path.rpartition("/")
            found.setdefault(folder + slash, {}).setdefault(PurePosixPath(name).stem, []).append(name)
        return found

    def list_label_files(self, suffix: str) -> list[Path]:
        """The files of a suffix below the given folder, or the given file; its tree's, if it has another suffix."""
        path = self.source.path
        if path.suffix.lower() == suffix and path.is_file():
            return [path]
        top = path if path.is_dir() else self.base
        return sorted(f for f in top.rglob("*") if f.suffix.lower() == suffix and f.is_file())

    def count_unlabelled(self, labelled: Set[str], notes: Counter[str]) -> None:
        """Note the images below the root that no label file means, where the whole tree is read."""
        path, base = self.source.path.resolve(), self.base.resolve()
        if path != base and (path.parent != base or path.suffix.lower() in LABEL_SUFFIXES):
            return
        paths = (folder + name for folder, stems in self.names.items() for names in stems.values() for name in names)
        if count := sum(path not in labelled for path in paths):
            notes["images without a label file, of which nothing is asked"] += count

    def locate(self, file: Path, name: str) -> str:
        """The path of an image as `find` has it, without opening it."""
        places = self._list_places(file, name)
        return next((place for place in places if self._is_file(place)), places[0])

    def _list_places(self, file: Path, name: str) -> list[str]:
        """The paths that an image of a label file may have, relative to the root of the source, the likeliest first."""
        relative = name.strip().removeprefix(self.source.prefix)
        return [f"{folder}{relative}" for folder in self._find_folders(file)]

    def _find_folders(self, file: Path) -> list[str]:
        """The folders of the images of a label file. The name of a file for one image says nothing of folders."""
        return self._cached_folders(file.parent, "" if file.suffix.lower() in LABEL_SUFFIXES else file.stem)

    def _is_file(self, place: str) -> bool:
        names = (place, place.rpartition("#")[0]) if "#" in place else (place,)
        return stays_inside(place) and any(os.path.isfile(self.source.root / name) for name in names)

    def find_below(self, path: Path) -> PurePosixPath:
        """The path of a label file or its folder, relative to the top of the tree; "." for one outside."""
        below = PurePosixPath(Path(os.path.relpath(path, self.base)).as_posix())
        return PurePosixPath(".") if ".." in below.parts else below

    def tell_split(self, file: Path) -> Split | None:
        """The split that the folders of a label file tell. Raises BadInput if they tell different ones."""
        return find_split_of_path(Path(self.find_below(file.parent)), Path("."))

    def _list_folders(self, parent: Path, stem: str) -> list[str]:
        """The folders in which the images of a label file may lie, as prefixes of paths."""
        own = self.find_below(parent)
        folders = [PurePosixPath("."), own]
        for k, part in enumerate(own.parts):
            if part.lower() in LABEL_FOLDERS:
                before, after = PurePosixPath(*own.parts[:k]), own.parts[k + 1 :]
                folders += [before.joinpath(*middle, *after) for middle in ((), *((n,) for n in IMAGE_FOLDERS))]
        folders += [f / n for f in tuple(folders) for n in IMAGE_FOLDERS]
        told, ends = find_split_in_name(stem), {stem[k + 1 :] for k, sign in enumerate(stem) if sign == "_"} | {stem}
        for folder in tuple(folders):
            for name in self._cached_subfolders(self.source.root / folder):
                if name in ends or (told is not None and find_split_in_name(name) == told):
                    folders += [folder / name, *(folder / name / n for n in IMAGE_FOLDERS)]
        existing = [f for f in dict.fromkeys(folders) if (self.source.root / f).is_dir()]
        return ["" if str(f) == "." else f"{f}/" for f in existing or folders[:1]]


def _list_subfolders(folder: Path) -> Sequence[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if folder.is_dir() else ()

"""What is said of a data set from outside: where it lies, in which form, and what its rows do not tell themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from clinkd.data.dataset import ABOUT
from clinkd.data.images import Facts, header, look, stays_inside
from clinkd.data.readers.rows import Fault, check_whole
from clinkd.records import BadInput, ImageRef, Modality, Side, Split, Task
from clinkd.storage import read_json

MOST_BOXES = 4  # in one answer, unless the caller says otherwise


@dataclass(frozen=True)
class Source:
    """One data set. None leaves to the form, or to the files, what they tell themselves.

    `images`: folder that image paths start from (else that of the file). `prefix` is cut from the front of each path.
    `open_images` False leaves sizes unknown. `boxes`: codec of boxes in text; `min_pixels`, `max_pixels`: limits of
    the resize that Qwen2.5-VL boxes are in. `group`: regular expression on an image's path whose first group (else
    the whole match) is the patient. `columns`: of a sheet, our name -> its name. `classes`: file with the names of
    masks; `specks`: share of a picture below which a part of a mask is none. `turns`: a conversation becomes one sample
    a question, or stays one. `ask`: what is asked of boxes and names. `window`: how DICOM values become grey.
    """

    path: Path
    form: str | None = None
    images: Path | None = None
    prefix: str = ""
    open_images: bool = True
    boxes: str | None = None
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    side: Side | None = None
    modality: Modality | None = None
    task: Task | None = None
    split: Split | None = None
    group: str | None = None
    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    sheet: str | None = None
    classes: Path | None = None
    specks: float = 1e-4
    encoding: str = "utf-8"
    turns: Literal["split", "keep"] = "split"
    ask: tuple[Task, ...] = (Task.VG, Task.ROC)
    max_questions: int | None = None
    max_boxes: int = MOST_BOXES
    window: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for knob, value in (("max_questions", self.max_questions), ("max_boxes", self.max_boxes)):
            if value is not None and value < 1:
                raise BadInput(f"data.{knob}={value}: give 1 or more")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise BadInput(f"--min-pixels {self.min_pixels}, --max-pixels {self.max_pixels}: 0 < min <= max is wanted")
        if not 0 <= self.specks < 1:
            raise BadInput(f"--specks {self.specks:g}: a share of the picture from 0 to below 1 is wanted")
        if self.group is not None:
            try:
                re.compile(self.group)
            except re.error as error:
                raise BadInput(f"--group {self.group}: not a regular expression ({error})") from None

    @cached_property
    def root(self) -> Path:
        """The folder that image paths start from: the one given, that of an imported data set, or the file's own."""
        folder = self.path if self.path.is_dir() else self.path.parent
        if self.images is None and (folder / ABOUT).is_file():
            about = read_json(folder / ABOUT)
            if not isinstance(about, dict) or not isinstance(about.get("root"), str):
                raise BadInput(f"{folder / ABOUT}: no root there; name the folder of the images with --images")
            return folder / str(about["root"])
        return self.images or folder


class Pictures:
    """Image paths of rows to ImageRefs, each file looked at once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._known = lru_cache(maxsize=65536)(self._look)
        self._headers = lru_cache(maxsize=4096)(self._header)

    def relative(self, path: str) -> str:
        """A path as rows give it, from the root."""
        return path.strip().removeprefix(self.source.prefix)

    def header(self, path: str) -> Facts | None:
        """What the header of a medical image says; None for plain pictures, and where images are not opened."""
        return self._headers(self.relative(path)) if self.source.open_images else None

    def _header(self, relative: str) -> Facts | None:
        try:
            return header(self.source.root, relative, relative)
        except BadInput:
            return None  # `ref` says why

    def ref(self, path: object, field: str = "image") -> ImageRef:
        """The image a row names. Raises Fault where it is no path, leads out of the root, or cannot be opened."""
        if not isinstance(path, str) or not path.strip():
            raise Fault(field, path, "empty or not text; give the path of the image")
        if not path.isascii():
            check_whole(path, field)
        found = self._known(self.relative(path))
        if isinstance(found, str):
            raise Fault(field, path, found)
        return found

    def _look(self, relative: str) -> ImageRef | str:
        if not stays_inside(relative):
            hint = "cut its front with --prefix" if relative.startswith("/") else "give a path inside it"
            return f"leads out of {self.source.root}; {hint}"
        if not self.source.open_images:
            return ImageRef(relative)
        try:
            return look(self.source.root, relative, relative, self.source.window)
        except BadInput as error:
            return str(error).removeprefix(f"{relative}: ")

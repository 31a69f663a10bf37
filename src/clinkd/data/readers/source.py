"""What the user states about a data set: its path, its form, and what its rows do not state."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from itertools import chain, islice
from operator import not_
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Literal

from clinkd.data.codecs import make_codec
from clinkd.data.dataset import read_about
from clinkd.data.grids import MAX_PIXELS, MIN_PIXELS
from clinkd.data.images import Facts, read_image_header, stays_inside
from clinkd.data.modality import read_modality
from clinkd.data.patients import strip_frame
from clinkd.data.readers.agreement import HowToMerge
from clinkd.data.readers.box_layout import BoxForm, BoxLayout
from clinkd.data.readers.names import Names, load_names
from clinkd.data.readers.rows import FieldError, check_unicode, normalize_encoding
from clinkd.records import BadInput, ImageRef, Modality, Side, Split, Task
from clinkd.spelling import suggest

NAMELESS_NOTE = (
    "headers name no patient (empty, or a word such as ANONYMOUS): where neither a column nor --group does, the images"
    " of one study stay together"
)
MOST_BOXES = 4  # in one answer, by default
LABEL_FOLDERS = ("annotations", "labels")  # in lower case; images lie beside such a folder, not in it
_MOST_FOLDERS = 50  # of one level, in which a missing image is looked for


class Flag:
    """How the command line sets a field: the help text, and the name of the flag (by default that of the field).

    `read` makes the field's value of the given one, if the type alone cannot. `options` go to argparse.
    """

    def __init__(
        self, help_text: str, name: str = "", read: Callable[[Any], Any] | None = None, **options: Any
    ) -> None:
        self.help_text, self.name, self.read, self.options = help_text, name, read, options


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        our_name, equals, sheet_name = pair.partition("=")
        if not equals or not our_name or not sheet_name:
            raise BadInput(f"--column {pair}: OURS=THEIRS is wanted, such as --column question=Frage")
        columns[our_name] = sheet_name
    return columns


def _check_codec_name(name: str) -> str:
    make_codec(name)
    return name


def _parse_modality(text: str) -> Modality | None:
    return read_modality(text) if text else None


def _parse_modality_map(pairs: Sequence[str]) -> dict[str, Modality]:
    words = {}
    for pair in pairs:
        word, equals, modality = pair.rpartition("=")
        if not equals or not word:
            raise BadInput(f"--modality-map {pair}: THEIRS=OURS is wanted, such as --modality-map CCTA=ct")
        words[word.casefold()] = read_modality(modality)
    return words


def _parse_task(text: str, name: str = "--task") -> Task | None:
    try:
        return Task(text.strip().upper()) if text else None
    except ValueError:
        raise BadInput(f"{name} {text}: one of {', '.join(Task)} is wanted{suggest(text, Task)}") from None


def _parse_tasks(text: str) -> tuple[Task | None, ...]:
    return tuple(_parse_task(t, "--ask") for t in text.split(",") if t) if text != "none" else ()


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def fold_name(name: str) -> str:
    """What the names of one thing share: letters without case, and one space for white space and underscores."""
    return " ".join(_compose(name).casefold().replace("_", " ").split())


@dataclass(frozen=True)
class Spellings:
    """One spelling for all names that differ in case, white space and underscores alone: the first that is met."""

    by_folded: dict[str, str] = field(default_factory=dict)

    def unify(self, name: str, notes: Counter[str]) -> str:
        """The spelling that is taken for a name. `notes` counts names that are spelled otherwise."""
        spelling = self.by_folded.setdefault(fold_name(name), " ".join(name.split()))
        if spelling != name:
            notes[f"names spelled {name!r}, taken for {spelling!r}"] += 1
        return spelling


@dataclass
class DrawnNames:
    """What structures images show, as far as was read: by path the names of all boxes, also of those that no question
    asks for. `partial`: some boxes are unknown, or drawn only because a sentence speaks of them."""

    by_image: dict[str, set[str]] = field(default_factory=dict)
    partial: bool = False


@dataclass(frozen=True)
class Source:
    """One data set. A field that is None comes from the form or from the files.

    Raises BadInput if a number is too small or too large, or if `group` is no regular expression.
    """

    path: Path
    form: Annotated[str | None, Flag("of the data, if it is not detected (see clinkd data check --form help)")] = None
    images: Annotated[Path | None, Flag("where image paths start (the file's own)", metavar="FOLDER")] = None
    prefix: Annotated[str, Flag("cut from the front of each image path")] = ""
    open_images: Annotated[
        bool,
        Flag("do not open the images; sizes stay unknown", "--no-images", not_, action="store_true", default=False),
    ] = True
    boxes: Annotated[
        str | None,
        Flag("how boxes are written: qwen-vl, qwen2-vl, qwen2.5-vl, ...", read=_check_codec_name, metavar="FAMILY"),
    ] = None
    box_form: Annotated[
        BoxForm | None,
        Flag(
            "what the numbers of plain boxes are: xyxy, left, top, right, bottom; xywh, left, top and size; "
            "cxcywh, centre and size (as heads and forms say)"
        ),
    ] = None
    one_based: Annotated[
        bool,
        Flag(
            "plain boxes count pixels from 1 and include the last column and row, as Pascal VOC and Matlab do",
            action="store_true",
        ),
    ] = False
    y_up: Annotated[bool, Flag("y of plain boxes starts at the lower border, as in MedVision", action="store_true")] = (
        False
    )
    min_pixels: Annotated[int, Flag("of the resized image that Qwen2.5-VL boxes refer to")] = MIN_PIXELS
    max_pixels: Annotated[int, Flag("of the same image")] = MAX_PIXELS
    side: Annotated[Side | None, Flag("whose left and right the words mean (patient)")] = None
    modality: Annotated[Modality | None, Flag("of images whose rows name none", read=_parse_modality)] = None
    modalities: Annotated[
        Mapping[str, Modality],
        Flag(
            "what a word for a modality means in these data", "--modality-map", _parse_modality_map, action="append",
            default=[], metavar="THEIRS=OURS",
        ),
    ] = field(default_factory=lambda: MappingProxyType({}))  # fmt: skip
    task: Annotated[Task | None, Flag("of all questions: VG, ROC, RC, MIA or QA", read=_parse_task)] = None
    split: Annotated[Split | None, Flag("the split of all rows", "--all-in")] = None
    group: Annotated[
        str | None, Flag("finds the patient in an image path: its first group, else all it matches", metavar="REGEX")
    ] = None
    columns: Annotated[
        Mapping[str, str],
        Flag(
            "column's name in the sheet", "--column", parse_columns, action="append", default=[], metavar="OURS=THEIRS"
        ),
    ] = field(default_factory=lambda: MappingProxyType({}))
    sheet: Annotated[str | None, Flag("the one to read of an XLSX with several")] = None
    names: Annotated[
        Path | str | None,
        Flag("names of classes that are numbers: nnU-Net's dataset.json, data.yaml, JSON, CSV ...; or the one name"),
    ] = None
    channel: Annotated[
        str | None, Flag("of several images of a case, as the sequences of an MR: its number (from 0) or its name")
    ] = None
    slices: Annotated[
        str, Flag("of a volume: largest (the one with most of each structure), labelled, or every:N of these")
    ] = "largest"
    min_area: Annotated[float, Flag("share of a picture: smaller parts of masks are left out", "--specks")] = 1e-4
    encoding: Annotated[str, Flag("of text files (utf-8)", read=normalize_encoding)] = "utf-8"
    conversation: Annotated[
        Literal["split", "keep"], Flag("split: one sample for each question; keep: one for all (split)", "--turns")
    ] = "split"
    tasks: Annotated[
        tuple[Task, ...],
        Flag("of named boxes: VG, ROC, RC, or none (VG,ROC)", "--ask", _parse_tasks, default="VG,ROC", metavar="TASKS"),
    ] = (Task.VG, Task.ROC)
    ask_absent: Annotated[
        bool,
        Flag(
            "ask images of no finding where a named structure is; the answer says that it is not there",
            action="store_true",
        ),
    ] = False
    max_questions: Annotated[int | None, Flag("most for one image, sampled by the seed (all)")] = None
    max_boxes: Annotated[int, Flag(f"no question asks for a name with more in one image ({MOST_BOXES})")] = MOST_BOXES
    readers: Annotated[
        HowToMerge,
        Flag(
            "boxes of one finding by several: keep all, union (a box around them), vote (median of a majority) (keep)"
        ),
    ] = "keep"
    window: Annotated[str | None, Flag("of DICOM: a number, a preset such as lung, or centre/width")] = None
    seed: Annotated[int, Flag("of phrasings, sampling and splits")] = 0
    spellings: Spellings = field(default_factory=Spellings, compare=False, repr=False)  # of all sources of an import
    drawn: DrawnNames = field(default_factory=DrawnNames, compare=False, repr=False)

    def __post_init__(self) -> None:
        _ = self.box_layout  # raises for flags that contradict each other
        for knob, value in (("max_questions", self.max_questions), ("max_boxes", self.max_boxes)):
            if value is not None and value < 1:
                raise BadInput(f"data.{knob}={value}: give 1 or more")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise BadInput(f"--min-pixels {self.min_pixels}, --max-pixels {self.max_pixels}: 0 < min <= max is wanted")
        if not 0 <= self.min_area < 1:
            raise BadInput(f"--specks {self.min_area:g}: a share of the picture from 0 to below 1 is wanted")
        if not re.fullmatch(r"largest|labelled|every:[1-9]\d{0,5}", self.slices):
            raise BadInput(f"--slices {self.slices}: largest, labelled, or every:N (as every:5) is wanted")
        if self.group is not None:
            try:
                re.compile(self.group)
            except re.error as error:
                raise BadInput(f"--group {self.group}: not a regular expression ({error})") from None

    @property
    def box_layout(self) -> BoxLayout:
        """What the four numbers of a plain box mean. Raises BadInput if the flags contradict each other."""
        return BoxLayout(self.box_form or "xyxy", self.one_based, self.y_up)

    @cached_property
    def root(self) -> Path:
        """The folder that image paths start from: the given one, the one of an imported data set, or the file's own."""
        folder = self.path if self.path.is_dir() else self.path.parent
        if self.images is not None:
            return self.images
        if self.form in ("coco", "yolo", "voc"):
            labels = next((f for f in (folder, folder.absolute().parent) if f.name.lower() in LABEL_FOLDERS), None)
            return labels.parent if labels is not None else folder
        about = read_about(folder)
        return folder / about["root"] if about is not None else folder

    @cached_property
    def origin(self) -> str:
        """The collection that images come from, if the data do not name it: the folder, or the file."""
        path = self.path.resolve()
        return path.name if path.is_dir() else path.stem

    @cached_property
    def class_names(self) -> Names | None:
        """What `names` holds. Raises BadInput where it cannot be read."""
        folder = self.path if self.path.is_dir() else self.path.parent
        return load_names(self.names, folder) if self.names is not None else None


class ImageResolver:
    """Turns the image paths of rows into ImageRefs. Opens each file once.

    A file whose name is spelled otherwise is found if it is the only one: with letters composed in another way (as
    macOS stores them), behind backslashes, or without its suffix. `notes` counts these.
    """

    def __init__(self, source: Source, notes: Counter[str] | None = None) -> None:
        if source.images is not None and source.open_images and not source.images.is_dir():
            raise BadInput(f"--images {source.images}: no such folder; give the one that image paths start from")
        self.source, self.notes = source, Counter[str]() if notes is None else notes
        self._nameless_files: set[str] = set()
        self._cached_names = cache(self._list_spellings)
        self._cached_header_or_reason = lru_cache(maxsize=65536)(self._open_header)

    def relative(self, path: str) -> str:
        """The path of a row, relative to the root."""
        return path.strip().removeprefix(self.source.prefix)

    def header(self, path: str) -> Facts | None:
        """The header of a medical image; None for plain pictures, and if images are not opened."""
        header_or_reason = self._cached_header_or_reason(self.relative(path))
        return None if isinstance(header_or_reason, str) else header_or_reason[1]

    def ref(self, path: object, field: str = "image") -> ImageRef:
        """The image a row names. Raises FieldError if it is no path, leads out of the root, or cannot be opened."""
        if not isinstance(path, str) or not path.strip():
            raise FieldError(field, path, "empty or not text; give the path of the image")
        check_unicode(path, field)
        header_or_reason = self._cached_header_or_reason(self.relative(path))
        if isinstance(header_or_reason, str):
            raise FieldError(field, path, header_or_reason)
        return header_or_reason[0]

    def _open_header(self, relative: str) -> tuple[ImageRef, Facts | None] | str:
        if not stays_inside(relative):
            hint = "cut its front with --prefix" if relative.startswith("/") else "give a path inside it"
            return f"leads out of {self.source.root}; {hint}"
        if not self.source.open_images:
            return ImageRef(relative), None
        try:
            ref, facts = read_image_header(self.source.root, relative, relative, self.source.window)
        except BadInput as error:
            why = str(error).removeprefix(f"{relative}: ")
        else:
            file = strip_frame(relative)
            if facts is not None and self.source.modality and facts.modality not in (None, self.source.modality):
                flag = f"--modality {self.source.modality} is taken where no row says it"
                self.notes[f"images are {facts.modality} by their header; {flag}"] += 1
            if facts is not None and facts.patient == "" and file not in self._nameless_files:
                self._nameless_files.add(file)
                self.notes[NAMELESS_NOTE] += 1
            return ref, facts
        if "no such file" not in why:
            return why
        if found := self._find_spelled_otherwise(relative):
            self.notes["image files found under another spelling of their names"] += 1
            return self._open_header(found)
        return why + self._suggest_way(relative)

    def _find_spelled_otherwise(self, relative: str) -> str | None:
        """The path of the only file that a missing one may mean."""
        name, sign, frame = relative.partition("#")
        path = PurePosixPath(name.replace("\\", "/"))
        folder = PurePosixPath(".")
        for part in path.parent.parts:
            folder /= self._cached_names(folder).get(_compose(part), part)
        found = self._cached_names(folder).get(_compose(path.name))
        other = f"{folder / found}{sign}{frame}" if found else None
        return other if other and stays_inside(other) and other != relative else None

    def _list_spellings(self, folder: PurePosixPath) -> dict[str, str]:
        """The names in a folder by their composed spelling, and files by that of their stem, where it is one file's."""
        if not stays_inside(str(folder)) or not os.path.isdir(self.source.root / folder):
            return {}
        names = os.listdir(self.source.root / folder)
        stems = Counter(_compose(PurePosixPath(name).stem) for name in names)
        by_stem = {stem: n for n in names if stems[stem := _compose(PurePosixPath(n).stem)] == 1}
        return by_stem | {_compose(name): name for name in names}

    def _suggest_way(self, relative: str) -> str:
        """The flag with which a missing image would be found, if there is one."""
        path, root = PurePosixPath(relative.split("#")[0]), self.source.root
        if below := next((f for f in self._folders_below if os.path.isfile(f / path)), None):
            return f"; it lies in {below}: give --images {shlex.quote(str(below))}"
        if len(path.parts) > 1 and os.path.isfile(root.joinpath(*path.parts[1:])):
            return f"; the path holds a folder too many: give --prefix {shlex.quote(path.parts[0])}/"
        if above := next((f for f in root.resolve().parents[:2] if len(path.parts) > 1 and (f / path).is_file()), None):
            return f"; it lies above, in {above}: give --images {shlex.quote(str(above))}"
        return "" if self.source.images else ", or give the folder of the images with --images"

    @cached_property
    def _folders_below(self) -> list[Path]:
        """Folders inside the root, down to two levels, the nearest first."""
        folders = (islice(sorted(self.source.root.glob(pattern)), _MOST_FOLDERS) for pattern in ("*/", "*/*/"))
        return [*chain.from_iterable(folders)]

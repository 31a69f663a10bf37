"""Read a folder of medical images: check each, and list the lines of a sheet to fill in with questions and boxes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clinkd.data.images import Facts, kind_of, locate, medical_names, read_image_size
from clinkd.data.readers.rows import FieldError, RowResult, make_error_result
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, ImageRef

DICOM_INDEX = "DICOMDIR"
TO_FILL_IN = ("question", "answer", "name", "x1", "y1", "x2", "y2")
NO_QUESTION = "images without a question; clinkd data sheet writes a sheet to fill in"


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Yield each medical image of a folder, or the one file, as a row without samples or as an error.

    Rows are numbered in the order of the files, folder by folder. `notes` counts files of other kinds, DICOMDIRs, and
    links that are not followed. Raises BadInput where there is no medical image at all.
    """
    root = source.path if source.path.is_dir() else source.path.parent
    number = 0
    for path in _walk_files(source.path, notes):
        if not kind_of(path).medical:
            notes[f"files that are not {medical_names()}"] += 1
        elif path.name == DICOM_INDEX:
            notes[f"{DICOM_INDEX} files, which list other files"] += 1
        else:
            number += 1
            yield _check_file(path, path.relative_to(root).as_posix(), number, source.window, notes)
    if number == 0:
        raise BadInput(f"{source.path}: no {medical_names()} file there; give the folder that holds them")


def _check_file(path: Path, relative: str, number: int, window: str | None, notes: Counter[str]) -> RowResult:
    kind = kind_of(path)
    raw = {"image": relative}
    try:
        facts = kind.describe(path, relative, window=window)
    except BadInput as error:
        why = str(error).removeprefix(f"{relative}: ")
        return make_error_result(path, number, FieldError("image", relative, why), raw, {"id": relative})
    notes[f"{kind.name} {NO_QUESTION}"] += 1
    images = tuple(ImageRef(name, facts.width, facts.height, window=window) for name in _name_frames(relative, facts))
    return RowResult(str(path), number, raw=raw, images=images, group=facts.patient or relative)


def _name_frames(relative: str, facts: Facts) -> list[str]:
    return [f"{relative}#{k}" for k in range(1, facts.frames + 1)] if facts.frames > 1 else [relative]


def list_sheet_lines(root: Path) -> Iterator[dict[str, str]]:
    """Yield a line for each picture below a folder: what its header states, and empty cells TO_FILL_IN.

    Each frame of a file with several has its own line, `path#1` and on. A file that cannot be opened has a line with
    its path ("image") and the reason with the way out ("problem"). So have links that are not followed.
    Raises BadInput where `root` is no folder or has no file.
    """
    if not root.is_dir():
        raise BadInput(f"{root}: no such folder; give the one that holds the images")
    unfollowed_links: Counter[str] = Counter()
    empty = True
    for path in _walk_files(root, unfollowed_links):
        empty = False
        relative = path.relative_to(root).as_posix()
        try:
            yield from _make_sheet_lines(root, relative)
        except BadInput as error:
            yield {"image": _escape_unprintable(relative), "problem": str(error).removeprefix(f"{relative}: ")}
    for reason, count in unfollowed_links.items():
        empty = False
        yield {"image": ".", "problem": f"{count} {reason}; put the files themselves there"}
    if empty:
        raise BadInput(f"{root}: the folder is empty; give the one that holds the images")


def _make_sheet_lines(root: Path, relative: str) -> Iterator[dict[str, str]]:
    if _escape_unprintable(relative) != relative:
        raise BadInput(f"{relative}: a name that cannot be written into a sheet; rename the file")
    path, _ = locate(root, relative, relative)
    kind = kind_of(path)
    facts = kind.describe(path, relative)
    modality = facts.modality.value if facts.modality else ""
    ref = None
    for name in _name_frames(relative, facts):
        if ref is None or not kind.medical:  # frames of a TIFF have sizes of their own
            ref = read_image_size(root, name, relative)
        cells = {"image": name, "modality": modality, "patient": facts.patient}
        yield cells | {"width": str(ref.width), "height": str(ref.height)} | dict.fromkeys(TO_FILL_IN, "")


def _escape_unprintable(text: str) -> str:
    """A path as text that any file can hold: bytes without a known encoding become escapes."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _walk_files(path: Path, notes: Counter[str]) -> Iterator[Path]:
    """Yield all files below a folder, folder by folder. Links to folders and out of the folder are not followed."""
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; check the path")
    if not path.is_dir():
        yield path
        return
    resolved_root = path.resolve()

    def raise_unreadable(error: OSError) -> None:
        raise BadInput(f"{error.filename}: cannot be listed ({error.strerror}); make it readable")

    for folder, folders, files in os.walk(path, onerror=raise_unreadable):
        folders.sort()
        links = sum(Path(folder, name).is_symlink() for name in folders)
        if links:
            notes["links to folders, which are not followed"] += links
        for name in sorted(files):
            file = Path(folder, name)
            if file.is_symlink() and not _is_inside(file, resolved_root):
                notes["links that lead nowhere, or out of the folder"] += 1
            else:
                yield file


def _is_inside(link: Path, folder: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(folder)
    except (OSError, RuntimeError):  # broken, or a loop
        return False

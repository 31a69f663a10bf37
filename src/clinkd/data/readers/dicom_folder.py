"""Read a folder of medical images: check each, and list the lines of a sheet to fill in with questions and boxes.

DICOM segmentations and structured reports beside the images become questions about the boxes in them.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clinkd.data.images import Facts, kind_of, locate, medical_names, read_image_size
from clinkd.data.readers.annotated import annotate, find_split_group, make_samples
from clinkd.data.readers.dicom_annotations import DicomBox, DicomIdentity, identify, make_box, read_annotations
from clinkd.data.readers.rows import FieldError, RowResult, make_error_result, require_words
from clinkd.data.readers.source import NAMELESS_NOTE, Source
from clinkd.data.readers.unknown import WAYS, name_way, recognise
from clinkd.records import BadInput, ImageRef, Sample

DICOM_INDEX = "DICOMDIR"
TO_FILL_IN = ("question", "answer", "name", "x1", "y1", "x2", "y2")
NO_QUESTION = "images without a question; clinkd data sheet writes a sheet to fill in"


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Yield each medical image of a folder, or the one file, as a row without samples or as an error.

    Rows are numbered in the order of the files, folder by folder. `notes` counts files of other kinds, DICOMDIRs, and
    links that are not followed, and names objects that are no images. Raises BadInput where there is no medical image.
    """
    root = source.path if source.path.is_dir() else source.path.parent
    files: dict[Path, DicomIdentity] = {}
    for path in _walk_files(source.path, notes):
        if not kind_of(path).medical:
            notes[f"files that are not {medical_names()}"] += 1
        elif path.name == DICOM_INDEX:
            notes[f"{DICOM_INDEX} files, which list other files"] += 1
        elif (name := recognise(path)) in WAYS:
            notes[f"files that are {name} and no images, left out; {WAYS[name]}"] += 1
        else:
            files[path] = identify(path)
    if not files:
        if named := name_way(source.path, [] if source.path.is_file() else [*_walk_files(source.path, Counter())]):
            raise BadInput(named)
        raise BadInput(f"{source.path}: no {medical_names()} file there; give the folder that holds them")
    annotating = [path for path, identity in files.items() if identity.annotates]
    known = frozenset(f.instance for f in files.values() if not f.annotates)
    by_image: dict[str, dict[int, list[DicomBox]]] = defaultdict(lambda: defaultdict(list))  # UID -> frame -> boxes
    for number, path in enumerate(annotating, start=1):
        relative = path.relative_to(root).as_posix()
        try:
            for annotation in read_annotations(path, source.min_area, known, notes):
                by_image[annotation.instance][annotation.frame].append(annotation)
            yield RowResult(str(path), number, raw={"image": relative})
        except FieldError as fault:
            yield make_error_result(path, number, fault, {"image": relative}, {"id": relative})
    images = (path for path, identity in files.items() if not identity.annotates)
    for number, path in enumerate(images, start=len(annotating) + 1):
        relative = path.relative_to(root).as_posix()
        if frames := by_image.get(files[path].instance):
            yield _convert_annotated(path, relative, number, frames, source, notes)
        else:
            yield _check_file(path, relative, number, source, notes)


def _convert_annotated(
    path: Path,
    relative: str,
    number: int,
    frames: Mapping[int, Sequence[DicomBox]],
    source: Source,
    notes: Counter[str],
) -> RowResult:
    """The questions about the boxes of an image."""
    raw, samples = {"image": relative}, list[Sample]()
    try:
        facts = kind_of(path).describe(path, relative, window=source.window)
        names = _name_frames(relative, facts)
        for frame, annotations in sorted(frames.items()):
            if frame > len(names):
                raise FieldError("frame", frame, f"of an image with {len(names)}; bring the image it was drawn on")
            objects = ((require_words(a.name, "name"), make_box(a, facts.height, facts.width)) for a in annotations)
            image = ImageRef(
                names[frame - 1], facts.width, facts.height, window=source.window, laterality=facts.laterality
            )
            group = find_split_group(source, relative, facts)
            record = annotate(source, image, objects, modality=source.modality or facts.modality, group=group)
            samples += make_samples(record, source, notes)
    except FieldError as fault:
        return make_error_result(path, number, fault, raw, {"id": relative})
    except BadInput as error:
        why = str(error).removeprefix(f"{relative}: ")
        return make_error_result(path, number, FieldError("image", relative, why), raw, {"id": relative})
    return RowResult(str(path), number, tuple(samples), raw=raw)


def _check_file(path: Path, relative: str, number: int, source: Source, notes: Counter[str]) -> RowResult:
    kind = kind_of(path)
    raw = {"image": relative}
    try:
        facts = kind.describe(path, relative, window=source.window)
        group = find_split_group(source, relative, facts)
    except (BadInput, FieldError) as error:
        why = error.why if isinstance(error, FieldError) else str(error).removeprefix(f"{relative}: ")
        return make_error_result(path, number, FieldError("image", relative, why), raw, {"id": relative})
    if facts.patient == "":
        notes[NAMELESS_NOTE] += 1
    notes[f"{kind.name} {NO_QUESTION}"] += 1
    ref = ImageRef(relative, facts.width, facts.height, window=source.window)
    if facts.frames == 1:  # each of several frames may have a plane of its own
        ref = replace(ref, laterality=facts.laterality)
    images = tuple(replace(ref, path=name) for name in _name_frames(relative, facts))
    return RowResult(str(path), number, raw=raw, images=images, group=group)


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
            yield from make_sheet_lines(root, relative)
        except BadInput as error:
            yield {"image": _escape_unprintable(relative), "problem": str(error).removeprefix(f"{relative}: ")}
    for reason, count in unfollowed_links.items():
        empty = False
        yield {"image": ".", "problem": f"{count} {reason}; put the files themselves there"}
    if empty:
        raise BadInput(f"{root}: the folder is empty; give the one that holds the images")


def make_sheet_lines(root: Path, relative: str) -> Iterator[dict[str, str]]:
    """The lines of one picture, as in `list_sheet_lines`. Raises BadInput where it cannot be opened."""
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
        cells = {"image": name, "modality": modality, "patient": facts.patient or facts.study}
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

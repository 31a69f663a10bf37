"""The forms of data that can be read, and how the form of a path is detected."""

from __future__ import annotations

import importlib
import itertools
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from clinkd.data.dataset import RECORDS, SAMPLES
from clinkd.data.images import is_named_as_image, kind_of
from clinkd.data.images.nifti import SUFFIXES as VOLUMES
from clinkd.data.readers.conversations import MISSPELT
from clinkd.data.readers.mask_pairs import PICTURES, is_mask, pair_masks
from clinkd.data.readers.rows import SHEETS, RowError, RowResult, SourceRow, json_rows
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Sample
from clinkd.version import spell_program

HEAD_BYTES = 1 << 16
_MASK_SUFFIXES = (*PICTURES, *VOLUMES)
MOST_LOOKED_AT = 100  # rows or files; then the form is unknown
FOLDER_MARKS = {
    "samples": [SAMPLES],
    "boxes": [RECORDS],
    "sa-med2d": ["images", "masks"],
    "masks": ["imagesTr", "labelsTr"],
    "coco": ["annotations"],
}
FORMS = {  # name -> module of the reader, description
    "boxes": ("boxes", "records.jsonl: one image a line with its boxes, names and questions"),
    "med-grit": ("conversations", "Med-GRIT-270k: pairs of question and answer, <img> and <box> in the text"),
    "sharegpt": ("conversations", "ShareGPT, LLaVA and Qwen-VL: conversations of human and gpt"),
    "swift": ("conversations", "ms-swift: messages and objects"),
    "sa-med2d": ("masks", "SA-Med2D-20M: a folder of images and masks"),
    "masks": ("mask_folders", "images and masks, by their names: Kvasir-SEG, ISIC, nnU-Net, MSD; pictures or NIfTI"),
    "coco": ("coco", "COCO: images, annotations and categories"),
    "sheet": ("sheet", "CSV or XLSX, a line an image, a box or a question"),
    "vqa": ("vqa", "VQA-RAD and SLAKE: questions of images"),
    "llava-med-qa": ("vqa", "LLaVA-Med-qa0.2k: questions with answers of GPT-4"),
    "dicom": ("dicom_folder", "DICOM or NIfTI files; questions about them come from a sheet"),
    "samples": ("samples", "samples.jsonl: what `clinkd data import` leaves"),
}


def read_rows(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Read each row of a source as samples or as an error. `notes` counts what was left out or changed, by reason.

    Raises BadInput if there is no data of the form, or if the form cannot be detected.
    """
    form = source.form or detect_form(source)
    if form not in FORMS:
        raise BadInput(f"--form {form}: one of {', '.join(FORMS)} is wanted")
    module = importlib.import_module(f"clinkd.data.readers.{FORMS[form][0]}")
    results: Iterator[RowResult] = module.read(replace(source, form=form), notes)
    return results


def detect_form(source: Source) -> str:
    """Detect the form from the files in a folder, or from the keys in the first row of a file.

    Raises BadInput if these do not show it: the form is never guessed from less.
    """
    path = source.path
    if path.is_dir():
        form = _detect_folder_form(path, source.encoding)
    elif path.is_file():
        form = _detect_file_form(path, source.encoding)
    else:
        raise BadInput(f"{path}: no such file or folder; check the path")
    if form is None:
        if path.is_dir() and any(is_named_as_image(p.name) for p in _list_first_files(path)):
            way_out = f"`{spell_program()} data sheet {shlex.quote(str(path))} > sheet.csv` writes a sheet to fill in"
            raise BadInput(f"{path}: holds images, and no questions about them; {way_out}")
        raise BadInput(
            f"{path}: the form of the data cannot be told from its names and keys; give it with --form, one of "
            f"{', '.join(FORMS)} (--form help says what they are)"
        )
    return form


def _detect_folder_form(folder: Path, encoding: str) -> str | None:
    for marked_form, marks in FOLDER_MARKS.items():
        if all((folder / mark).exists() for mark in marks):
            return "masks" if marked_form == "sa-med2d" and not _is_sa_med2d(folder) else marked_form
    files = [p for p in sorted(folder.iterdir()) if p.is_file()]
    json_files = [p for p in files if p.suffix.lower() in (".json", ".jsonl") and p.stem != "dataset_info"]
    forms = list(dict.fromkeys(form for p in json_files if (form := _detect_file_form(p, encoding)) is not None))
    if len(forms) > 1:
        raise BadInput(f"{folder}: holds files of the forms {', '.join(forms)}; give one of the files, or --form")
    if forms:
        return forms[0]
    sheets = [p.name for p in files if p.suffix.lower() in SHEETS]
    if sheets:
        way_out = "give it by name, and the folder of images with --images"
        raise BadInput(f"{folder}: holds the sheet {sheets[0]}; {way_out}")
    if _has_masks(folder):
        return "masks"
    return "dicom" if any(kind_of(p).medical for p in _list_first_files(folder)) else None


def _has_masks(folder: Path) -> bool:
    """Whether a folder holds masks of its pictures or volumes, by the first names in each of its folders."""
    paths: list[str] = []
    for directory, folders, names in os.walk(folder):
        place = Path(directory).relative_to(folder)
        folders[:] = sorted(folders) if len(paths) < 50 * MOST_LOOKED_AT else []
        paths += [(place / n).as_posix() for n in sorted(names)[:MOST_LOOKED_AT] if n.lower().endswith(_MASK_SUFFIXES)]
    masks = [path for path in paths if is_mask(path)]
    return bool(masks) and any(pair.masks for pair in pair_masks(sorted({*paths} - {*masks}), masks)[0])


def _is_sa_med2d(folder: Path) -> bool:
    """Whether the masks of a folder are named as those of SA-Med2D, IMAGE--CLASS_INSTANCE.png."""
    entries = (
        list(itertools.islice((folder / "masks").iterdir(), MOST_LOOKED_AT)) if (folder / "masks").is_dir() else []
    )
    names = [entry.name for entry in entries if entry.name.lower().endswith(_MASK_SUFFIXES)]
    return any("--" in name for name in names) or not (names or any(entry.is_dir() for entry in entries))


def _list_first_files(folder: Path) -> list[Path]:
    return list(itertools.islice(_walk_files(folder), MOST_LOOKED_AT))


def _walk_files(folder: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(directory) / name for name in sorted(names))


def _detect_file_form(file: Path, encoding: str) -> str | None:
    if file.suffix.lower() in SHEETS:
        return "sheet"
    if kind_of(file).medical:
        return "dicom"
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES).decode(encoding, "replace").lstrip("\ufeff \t\r\n")
    if file.suffix.lower() not in (".json", ".jsonl"):
        return None
    if head.startswith("{") and not head.partition("\n")[0].rstrip().endswith("}"):
        return "coco" if any(f'"{key}"' in head for key in ("images", "annotations", "categories")) else None
    first_rows = list(itertools.islice(json_rows(file, encoding), MOST_LOOKED_AT))
    first = next((row for row in first_rows if isinstance(row, SourceRow)), None)
    if first is not None:
        return _detect_row_form(first.value)
    fault = next(row.problem for row in first_rows if isinstance(row, RowResult))
    raise BadInput(f"no row of the first {len(first_rows)} can be read: {fault}")


def _detect_row_form(row: dict[str, Any]) -> str | None:
    conversations = row.get("conversations") or row.get(MISSPELT)
    if isinstance(row.get("annotations"), list) and "images" in row:
        return "coco"
    if "turns" in row and "images" in row:
        return "samples"
    if conversations:
        return "med-grit" if isinstance(conversations, list) and isinstance(conversations[0], list) else "sharegpt"
    if "messages" in row:
        return "swift"
    if "gpt4_answer" in row or "fig_caption" in row:
        return "llava-med-qa"
    if "image" in row and ("objects" in row or "qa" in row):
        return "boxes"
    return "vqa" if "question" in row and "answer" in row else None


def read_samples(source: Source, notes: Counter[str]) -> list[Sample]:
    """The samples of a source without errors. Raises BadInput with the first error and the number of others."""
    samples: list[Sample] = []
    problems: list[RowError] = []
    for result in read_rows(source, notes):
        samples.extend(result.samples)
        if result.problem:
            problems.append(result.problem)
    if problems:
        more = f" (and {len(problems) - 1} more rows with problems)" if len(problems) > 1 else ""
        raise BadInput(f"{problems[0]}{more}; clinkd data check {source.path} lists all")
    return samples

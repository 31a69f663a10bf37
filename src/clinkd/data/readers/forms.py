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
from clinkd.data.readers.conversations import MISSPELT
from clinkd.data.readers.rows import SHEETS, RowError, RowResult, SourceRow, json_rows
from clinkd.data.readers.source import Source
from clinkd.data.readers.unknown import name_way, recognise
from clinkd.records import BadInput, Sample
from clinkd.spelling import find_near, suggest
from clinkd.version import spell_program

HEAD_BYTES = 1 << 16
MOST_LOOKED_AT = 100  # rows or files; then the form is unknown
FOLDER_MARKS = {"samples": [SAMPLES], "boxes": [RECORDS], "sa-med2d": ["images", "masks"], "coco": ["annotations"]}
KNOWN_KEYS = ("image", "images", "question", "answer", "conversations", "messages", "objects", "turns", "annotations")
FORMS = {  # name -> module of the reader, description
    "boxes": ("boxes", "records.jsonl: one image a line with its boxes, names and questions"),
    "med-grit": ("conversations", "Med-GRIT-270k: pairs of question and answer, <img> and <box> in the text"),
    "sharegpt": ("conversations", "ShareGPT, LLaVA and Qwen-VL: conversations of human and gpt"),
    "swift": ("conversations", "ms-swift: messages and objects"),
    "sa-med2d": ("masks", "SA-Med2D-20M: a folder of images and masks"),
    "coco": ("coco", "COCO: images, annotations and categories"),
    "sheet": ("sheet", "CSV or XLSX, a line an image, a box or a question"),
    "vqa": ("vqa", "VQA-RAD and SLAKE: questions of images"),
    "llava-med-qa": ("vqa", "LLaVA-Med-qa0.2k: questions with answers of GPT-4"),
    "dicom": ("dicom_folder", "DICOM files; questions about them come from a sheet"),
    "samples": ("samples", "samples.jsonl: what `clinkd data import` leaves"),
}

LAYOUTS = {  # name -> the smallest example
    "boxes": '{"id": "1", "image": "a.png", "modality": "ct", "objects": [{"name": "liver", "box": [10, 20, 90, 80]}]}',
    "med-grit": '{"id": "1", "image": "a.png", "conversations": [[{"from": "human", ...}, {"from": "gpt", ...}]]}',
    "sharegpt": '{"image": "a.png", "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}',
    "swift": '{"messages": [{"role": "user", "content": ...}, ...], "images": ["a.png"], "objects": {"bbox": [...]}}',
    "sa-med2d": "FOLDER/images/ct_00--LiTS--a--x_0.png, FOLDER/masks/ct_00--LiTS--a--x_0--0001_000.png",
    "coco": '{"images": [...], "categories": [...], "annotations": [{"image_id": 1, "bbox": [x, y, w, h], ...}]}',
    "sheet": "image,modality,question,answer / a.png,ct,What is this?,a liver",
    "vqa": '{"image": "a.png", "question": "What is this?", "answer": "a liver", "modality": "ct"}',
    "llava-med-qa": '{"question_id": 1, "image": "a.jpg", "text": "What is this?", "gpt4_answer": "a liver", ...}',
    "dicom": "FOLDER/patient1/ct.dcm",
    "samples": "FOLDER/samples.jsonl, FOLDER/dataset.json",
}


def describe_forms() -> str:
    """The forms as --form help prints them: the name, what is read, and an example of the layout."""
    entries = []
    for form, (_, description) in FORMS.items():
        entries.append(f"{form:<14}{description}")
        if form in LAYOUTS:
            entries.append(f"{'':<14}  {LAYOUTS[form]}")
    return "\n".join(entries)


def require_form(form: str) -> None:
    """Raise BadInput if no form has this name."""
    if form not in FORMS:
        names = f"one of {', '.join(FORMS)} is wanted (--form help says what they are)"
        raise BadInput(f"--form {form}: {names}{suggest(form, FORMS)}")


def read_rows(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Read each row of a source as samples or as an error. `notes` counts what was left out or changed, by reason.

    Raises BadInput if there is no data of the form, or if the form cannot be detected.
    """
    form = source.form or detect_form(source)
    require_form(form)
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
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise BadInput(f"{path}: no such file or folder; check the path{suggest(path.name, beside)}")
    if form is None:
        files = _list_first_files(path) if path.is_dir() else []
        has_images = any(is_named_as_image(p.name) for p in files)
        if named := name_way(path, files, has_images):
            raise BadInput(named)
        if has_images:
            way_out = f"`{spell_program()} data sheet {shlex.quote(str(path))} > sheet.csv` writes a sheet to fill in"
            raise BadInput(f"{path}: holds images, and no questions about them; {way_out}")
        raise BadInput(
            f"{path}: the form of the data cannot be told from its names and keys{_suggest_key(path)}; give it with "
            f"--form, one of {', '.join(FORMS)} (--form help says what they are)"
        )
    return form


def _detect_folder_form(folder: Path, encoding: str) -> str | None:
    for marked_form, marks in FOLDER_MARKS.items():
        if all((folder / mark).exists() for mark in marks):
            return marked_form
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
    return "dicom" if any(kind_of(p).medical for p in _list_first_files(folder)) else None


def _list_first_files(folder: Path) -> list[Path]:
    return list(itertools.islice(_walk_files(folder), MOST_LOOKED_AT))


def _walk_files(folder: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(directory) / name for name in sorted(names))


def _detect_file_form(file: Path, encoding: str) -> str | None:
    if file.suffix.lower() in SHEETS:  # a CSV has no marks: something else of that name would be read as one long word
        return "sheet" if file.suffix.lower().startswith(".xls") or recognise(file) is None else None
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


def _suggest_key(path: Path) -> str:
    """The misspelt keys of the first row of a file, as "; did you mean answer for its key 'anwser'?"."""
    if path.suffix.lower() not in (".json", ".jsonl") or not path.is_file():
        return ""
    first = next((row for row in json_rows(path) if isinstance(row, SourceRow)), None)
    near = {key: find_near(key, KNOWN_KEYS) for key in (first.value if first else ()) if key not in KNOWN_KEYS}
    hints = [f"{known} for its key {key!r}" for key, known in near.items() if known]
    return f"; did you mean {' and '.join(hints)}?" if hints else ""


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

"""The forms of data that can be read, and how the form of a path is detected."""

from __future__ import annotations

import importlib
import itertools
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from clinkd.data.dataset import RECORDS, SAMPLES
from clinkd.data.images import is_named_as_image, kind_of
from clinkd.data.images.nifti import SUFFIXES as VOLUMES
from clinkd.data.patients import note_patients, strip_frame
from clinkd.data.readers import coco, voc, vqa_med, yolo
from clinkd.data.readers.choices import find_choice_keys
from clinkd.data.readers.conversations import MISSPELT
from clinkd.data.readers.cvat import FILE as CVAT_FILE
from clinkd.data.readers.cvat import looks_like_cvat
from clinkd.data.readers.image_boxes import KVASIR_FILE, list_slake_files
from clinkd.data.readers.imagefolder import is_metadata, list_metadata
from clinkd.data.readers.label_studio import is_task
from clinkd.data.readers.mask_pairs import PICTURES, is_mask, pair_masks
from clinkd.data.readers.record_files import SUFFIXES, record_rows
from clinkd.data.readers.rows import SHEETS, RowError, RowResult, SourceRow
from clinkd.data.readers.source import Source
from clinkd.data.readers.unknown import name_way, recognise
from clinkd.records import BadInput, Sample
from clinkd.spelling import find_near, suggest
from clinkd.version import spell_program

_MASK_SUFFIXES = (*PICTURES, *VOLUMES)
MOST_LOOKED_AT = 100  # rows or files; then the form is unknown
PLAIN_BOXES = ("boxes", "sheet")  # forms whose boxes are four numbers, of which flags may say what they are
FOLDER_MARKS = {
    "samples": [SAMPLES],
    "boxes": [RECORDS],
    "kvasir-seg": [KVASIR_FILE],
    "sa-med2d": ["images", "masks"],
    "masks": ["imagesTr", "labelsTr"],
}
TREES = {  # form -> patterns of its label files, and whether a file is one
    "coco": (("annotations/*.json", "*/*.json", "*/annotations/*.json"), coco.looks_like_coco),
    "yolo": (
        ("*.yaml", "*.yml", "*.txt", "labels/*.txt", "*/*.txt", "labels/*/*.txt", "*/labels/*.txt"),
        yolo.looks_like_yolo,
    ),
    "voc": (("*.xml", "*/*.xml", "*/*/*.xml"), voc.looks_like_voc),
}
KNOWN_KEYS = ("image", "images", "question", "answer", "conversations", "messages", "objects", "turns", "annotations")
FORMS = {  # name -> module of the reader, description
    "boxes": ("boxes", "records.jsonl: one image a line with its boxes, names and questions"),
    "med-grit": ("conversations", "Med-GRIT-270k: pairs of question and answer, <img> and <box> in the text"),
    "sharegpt": ("conversations", "ShareGPT, LLaVA and Qwen-VL: conversations of human and gpt"),
    "swift": ("conversations", "ms-swift: messages and objects"),
    "sa-med2d": ("masks", "SA-Med2D-20M: a folder of images and masks"),
    "masks": ("mask_folders", "images and masks, by their names: ISIC, BUSI, nnU-Net, MSD; pictures or NIfTI"),
    "coco": ("coco", "COCO: images, annotations and categories"),
    "yolo": ("yolo", "YOLO: a text file of boxes for each image, and data.yaml"),
    "voc": ("voc", "Pascal VOC: an XML file of boxes for each image"),
    "sheet": ("sheet", "CSV or XLSX, a line an image, a box or a question, also with options (PMC-VQA)"),
    "vqa": ("vqa", "VQA-RAD, SLAKE, PathVQA, OmniMedVQA: questions of images, also with options"),
    "imagefolder": ("imagefolder", "Hugging Face ImageFolder: metadata.jsonl or Parquet with texts or objects"),
    "label-studio": ("label_studio", "Label Studio: JSON or JSON-MIN of finished tasks"),
    "cvat": ("cvat", "CVAT for images 1.1: annotations.xml"),
    "kvasir-seg": ("image_boxes", "Kvasir-SEG: images and kavsir_bboxes.json"),
    "slake-boxes": ("image_boxes", "SLAKE: the boxes of its images, detection.json"),
    "llava-med-qa": ("vqa", "LLaVA-Med-qa0.2k: questions with answers of GPT-4"),
    "vqa-med": ("vqa_med", "VQA-Med of ImageCLEF: lines such as image|question|answer"),
    "dicom": (
        "dicom_folder",
        "DICOM or NIfTI files, with boxes of segmentations and reports; other questions come from a sheet",
    ),
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


def require_form(form: str) -> str:
    """The form. Raises BadInput if none has this name."""
    if form not in FORMS:
        names = f"one of {', '.join(FORMS)} is wanted (--form help says what they are)"
        raise BadInput(f"--form {form}: {names}{suggest(form, FORMS)}")
    return form


def read_rows(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Read each row of a source as samples or as an error. `notes` counts what was left out or changed, by reason.

    Raises BadInput if there is no data of the form, or if the form cannot be detected.
    """
    source = with_form(source)
    form = require_form(source.form or "")
    _refuse_box_flags(source)
    module = importlib.import_module(f"clinkd.data.readers.{FORMS[form][0]}")
    results: Iterator[RowResult] = module.read(source, notes)
    return results if form == "samples" else _note_patients(results, source, notes)


def _note_patients(results: Iterator[RowResult], source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Pass the rows on; then note the patients whom nobody told."""
    groups: dict[str, str] = {}
    for result in results:
        groups.update((strip_frame(image.path), s.group) for s in result.samples for image in s.images)
        groups.update((strip_frame(image.path), result.group) for image in result.images)
        yield result
    notes.update(dict(note_patients(groups, source.group)))


def _refuse_box_flags(source: Source) -> None:
    """Raise BadInput if a flag says what the numbers of boxes mean, and the form says it itself."""
    flags = [f"--box-form {source.box_form}"] * (source.box_form is not None)
    flags += ["--one-based"] * source.one_based + ["--y-up"] * source.y_up
    if flags and source.form not in PLAIN_BOXES:
        own = f"the form {source.form} says itself what the numbers of its boxes are"
        raise BadInput(f"{flags[0]}: {own}; leave it out, or import {source.path} by itself without it")


def with_form(source: Source) -> Source:
    """The source with its form, which its root depends on. Raises BadInput if the form cannot be detected."""
    return replace(source, form=source.form or detect_form(source))


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
        if below := find_data_below(path):
            raise BadInput(f"{path}: holds no data of a known form itself; {below}")
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
            return "masks" if marked_form == "sa-med2d" and not _is_sa_med2d(folder) else marked_form
    files = [p for p in sorted(folder.iterdir()) if p.is_file()]
    record_files = [p for p in files if p.suffix.lower() in SUFFIXES and p.stem != "dataset_info"]
    forms = list(dict.fromkeys(form for p in record_files if (form := _detect_file_form(p, encoding)) is not None))
    forms += [form for form, tree in TREES.items() if form not in forms and _has_label_file(folder, *tree)]
    if len(forms) > 1:
        raise BadInput(f"{folder}: holds files of the forms {', '.join(forms)}; give one of the files, or --form")
    if forms:
        return forms[0]
    if (folder / CVAT_FILE).is_file():
        return "cvat"
    if list_metadata(folder):
        return "imagefolder"
    if list_slake_files(folder):
        return "slake-boxes"
    if any(p.suffix.lower() == ".txt" and vqa_med.count_parts(p) > 1 for p in _list_first_files(folder)):
        return "vqa-med"
    sheets = [p.name for p in files if p.suffix.lower() in SHEETS]
    if sheets:
        which = f"sheets {', '.join(sheets[:5])}; give one" if len(sheets) > 1 else f"sheet {sheets[0]}; give it"
        raise BadInput(f"{folder}: holds the {which} by name, and the folder of images with --images")
    if _has_masks(folder):
        return "masks"
    return "dicom" if any(kind_of(p).medical for p in _list_first_files(folder)) else None


def find_data_below(folder: Path) -> str:
    """Where the folders in a folder hold data of a known form, as "give ..."; "" if they hold none."""
    for file in _walk_files(folder) if folder.is_dir() else ():
        if file.parent == folder or file.suffix.lower() not in {*SUFFIXES, *SHEETS}:
            continue
        try:
            form = _detect_file_form(file, "utf-8")
        except BadInput:
            continue
        if form is not None:
            place = file if form == "sheet" else file.parent
            return f"give {shlex.quote(str(place))} ({form}), and --images {shlex.quote(str(folder))}"
    return ""


def _has_label_file(folder: Path, patterns: Iterable[str], is_label_file: Callable[[Path], bool]) -> bool:
    """Whether one of the first files of a pattern is a label file."""
    first_files = itertools.chain.from_iterable(itertools.islice(folder.glob(p), MOST_LOOKED_AT) for p in patterns)
    return any(path.is_file() and is_label_file(path) for path in first_files)


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
    if file.suffix.lower() in SHEETS:  # a CSV has no marks: something else of that name would be read as one long word
        return "sheet" if file.suffix.lower().startswith(".xls") or recognise(file) is None else None
    if vqa_med.count_parts(file) > 1:
        return "vqa-med"
    if kind_of(file).medical:
        return "dicom"
    if file.suffix.lower() not in SUFFIXES:
        if looks_like_cvat(file):
            return "cvat"
        return next((form for form, (_, looks_like) in TREES.items() if looks_like(file)), None)
    with file.open("rb") as stream:
        head = stream.read(coco.HEAD_BYTES).decode(encoding, "replace").lstrip("\ufeff \t\r\n")
    if head.startswith("{") and not head.partition("\n")[0].rstrip().endswith("}"):
        return "coco" if coco.looks_like_coco(file, encoding) else None
    first_rows = list(itertools.islice(record_rows(file, encoding), MOST_LOOKED_AT))
    first = next((row for row in first_rows if isinstance(row, SourceRow)), None)
    if first is not None:
        return _detect_row_form(first.value)
    fault = next(row.problem for row in first_rows if isinstance(row, RowResult))
    raise BadInput(f"no row of the first {len(first_rows)} can be read: {fault}")


def _suggest_key(path: Path) -> str:
    """The misspelt keys of the first row of a file, as "; did you mean answer for its key 'anwser'?"."""
    if path.suffix.lower() not in (".json", ".jsonl") or not path.is_file():
        return ""
    first = next((row for row in record_rows(path) if isinstance(row, SourceRow)), None)
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
    if is_task(row):
        return "label-studio"
    if "messages" in row:
        return "swift"
    if "gpt4_answer" in row or "fig_caption" in row:
        return "llava-med-qa"
    if "image" in row and ("objects" in row or "qa" in row):
        return "imagefolder" if isinstance(row.get("objects"), dict) else "boxes"
    has_answer = "answer" in row or "gt_answer" in row or bool(find_choice_keys(tuple(row)).letter)
    if "question" in row and has_answer:
        return "vqa"
    return "imagefolder" if is_metadata(row) else None


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

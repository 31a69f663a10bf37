"""The forms of data that can be read, and how the form of a path is detected."""

from __future__ import annotations

import importlib
import itertools
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from clinkd.data.dataset import RECORDS, SAMPLES, read_about
from clinkd.data.images import is_named_as_image, kind_of
from clinkd.data.patients import note_patients, strip_frame
from clinkd.data.readers import (
    coco,
    conversations,
    cvat,
    imagefolder,
    label_studio,
    mask_pairs,
    voc,
    vqa,
    vqa_med,
    yolo,
)
from clinkd.data.readers.image_boxes import KVASIR_FILE, list_slake_files
from clinkd.data.readers.record_files import RECORD_SUFFIXES, find_record_files, record_rows, walk_files
from clinkd.data.readers.rows import SHEET_SUFFIXES, RowError, RowResult, SourceRow, read_head
from clinkd.data.readers.source import Source
from clinkd.data.readers.unknown import name_way, recognise
from clinkd.records import BadInput, Sample
from clinkd.spelling import find_near, suggest
from clinkd.version import spell_program

MOST_LOOKED_AT = 100  # rows or files; then the form is unknown
PLAIN_BOXES = ("boxes", "sheet")  # forms whose boxes are four numbers, of which flags may say what they are
KNOWN_KEYS = ("image", "images", "question", "answer", "conversations", "messages", "objects", "turns", "annotations")


class Form(NamedTuple):
    """A form of data: its reader, its line in the help, and how its files are known."""

    module: str  # of the reader
    description: str
    example: str = ""  # the smallest
    is_row: Callable[[dict[str, Any]], bool] | None = None  # the first row of JSON or Parquet
    is_file: Callable[[Path], bool] | None = None  # a file that is no sheet, JSON or Parquet
    label_files: Iterable[str] = ()  # patterns of files in a folder, of which one that `is_file` tells the form
    is_marked: Callable[[Path], bool] | None = None  # a folder that holds what other forms do not
    is_folder: Callable[[Path], bool] | None = None  # a folder that is not marked, and whose files tell no form
    marks_all: bool = False  # each image has a box for every structure of the data's names, as detection data have


def _holds(*names: str) -> Callable[[Path], bool]:
    return lambda folder: all((folder / name).exists() for name in names)


def _has_keys(*keys: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: all(key in row for key in keys)


def _is_medical(file: Path) -> bool:
    return kind_of(file).medical


def _refuse_sheet(folder: Path) -> bool:
    """False. Raises BadInput if a folder holds a sheet, which does not say where its images are."""
    if sheets := [p.name for p in sorted(folder.iterdir()) if p.is_file() and p.suffix.lower() in SHEET_SUFFIXES]:
        which = f"sheets {', '.join(sheets[:5])}; give one" if len(sheets) > 1 else f"sheet {sheets[0]}; give it"
        raise BadInput(f"{folder}: holds the {which} by name, and the folder of images with --images")
    return False


def find_data_below(folder: Path) -> str:
    """Where the folders in a folder hold data of a known form, as "give ..."; "" if they hold none."""
    for file in map(folder.joinpath, walk_files(folder)):
        if file.parent == folder or file.suffix.lower() not in {*RECORD_SUFFIXES, *SHEET_SUFFIXES}:
            continue
        try:
            form = _detect_file_form(file, "utf-8")
        except BadInput:
            continue
        if form is not None:
            place = file if form == "sheet" else file.parent
            return f"give {shlex.quote(str(place))} ({form}), and --images {shlex.quote(str(folder))}"
    return ""


FORMS = {  # by name; what fits several is of the first
    "coco": Form(
        "coco", "COCO: images, annotations and categories",
        '{"images": [...], "categories": [...], "annotations": [{"image_id": 1, "bbox": [x, y, w, h], ...}]}',
        is_row=coco.is_row, is_file=coco.is_file, label_files=coco.LABEL_FILES, marks_all=True,
    ),
    "samples": Form(
        "samples", "samples.jsonl: what `clinkd data import` leaves", "FOLDER/samples.jsonl, FOLDER/dataset.json",
        is_row=_has_keys("turns", "images"), is_marked=_holds(SAMPLES),
    ),
    "med-grit": Form(
        "conversations", "Med-GRIT-270k: pairs of question and answer, <img> and <box> in the text",
        '{"id": "1", "image": "a.png", "conversations": [[{"from": "human", ...}, {"from": "gpt", ...}]]}',
        is_row=conversations.is_row_of_pairs,
    ),
    "sharegpt": Form(
        "conversations", "ShareGPT, LLaVA and Qwen-VL: conversations of human and gpt",
        '{"image": "a.png", "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}',
        is_row=conversations.is_row,
    ),
    "label-studio": Form(
        "label_studio", "Label Studio: JSON or JSON-MIN of finished tasks", is_row=label_studio.is_row,
    ),
    "swift": Form(
        "conversations", "ms-swift: messages and objects",
        '{"messages": [{"role": "user", "content": ...}, ...], "images": ["a.png"], "objects": {"bbox": [...]}}',
        is_row=_has_keys("messages"),
    ),
    "llava-med-qa": Form(
        "vqa", "LLaVA-Med-qa0.2k: questions with answers of GPT-4",
        '{"question_id": 1, "image": "a.jpg", "text": "What is this?", "gpt4_answer": "a liver", ...}',
        is_row=lambda row: "gpt4_answer" in row or "fig_caption" in row,
    ),
    "boxes": Form(
        "boxes", "records.jsonl: one image a line with its boxes, names and questions",
        '{"id": "1", "image": "a.png", "modality": "ct", "objects": [{"name": "liver", "box": [10, 20, 90, 80]}]}',
        is_row=lambda row: "image" in row and ("objects" in row or "qa" in row) and not imagefolder.has_columns(row),
        is_marked=_holds(RECORDS), marks_all=True,
    ),
    "vqa": Form(
        "vqa", "VQA-RAD, SLAKE, PathVQA, OmniMedVQA: questions of images, also with options",
        '{"image": "a.png", "question": "What is this?", "answer": "a liver", "modality": "ct"}',
        is_row=lambda row: vqa.is_row(row) and not imagefolder.has_columns(row),
    ),
    "cvat": Form(
        "cvat", "CVAT for images 1.1: annotations.xml",
        is_file=cvat.is_file, is_folder=_holds(cvat.FILE), marks_all=True,
    ),
    "imagefolder": Form(
        "imagefolder", "Hugging Face ImageFolder: metadata.jsonl or Parquet with texts or objects",
        is_row=imagefolder.is_row, is_folder=lambda folder: bool(imagefolder.list_metadata(folder)),
    ),
    "kvasir-seg": Form("image_boxes", "Kvasir-SEG: images and kavsir_bboxes.json", is_marked=_holds(KVASIR_FILE)),
    "slake-boxes": Form(
        "image_boxes", "SLAKE: the boxes of its images, detection.json",
        is_folder=lambda folder: bool(list_slake_files(folder)),
    ),
    "vqa-med": Form(
        "vqa_med", "VQA-Med of ImageCLEF: lines such as image|question|answer",
        is_file=vqa_med.is_file, is_folder=lambda folder: any(map(vqa_med.is_file, _list_first_files(folder))),
    ),
    "sheet": Form(
        "sheet", "CSV or XLSX, a line an image, a box or a question, also with options (PMC-VQA)",
        "image,modality,question,answer / a.png,ct,What is this?,a liver", is_folder=_refuse_sheet,
    ),
    "sa-med2d": Form(
        "masks", "SA-Med2D-20M: a folder of images and masks",
        "FOLDER/images/ct_00--LiTS--a--x_0.png, FOLDER/masks/ct_00--LiTS--a--x_0--0001_000.png",
        is_marked=lambda folder: _holds("images", "masks")(folder) and mask_pairs.are_named_as_sa_med2d(folder),
    ),
    "masks": Form(
        "mask_folders", "images and masks, by their names: ISIC, BUSI, nnU-Net, MSD; pictures or NIfTI",
        is_marked=lambda folder: _holds("images", "masks")(folder) or _holds("imagesTr", "labelsTr")(folder),
        is_folder=mask_pairs.is_folder, marks_all=True,
    ),
    "dicom": Form(
        "dicom_folder",
        "DICOM or NIfTI files, with boxes of segmentations and reports; other questions come from a sheet",
        "FOLDER/patient1/ct.dcm",
        is_file=_is_medical, is_folder=lambda folder: any(map(_is_medical, _list_first_files(folder))),
    ),
    "yolo": Form(
        "yolo", "YOLO: a text file of boxes for each image, and data.yaml",
        is_file=yolo.is_file, label_files=yolo.LABEL_FILES, marks_all=True,
    ),
    "voc": Form(
        "voc", "Pascal VOC: an XML file of boxes for each image",
        is_file=voc.is_file, label_files=voc.LABEL_FILES, marks_all=True,
    ),
}  # fmt: skip


def describe_forms() -> str:
    """The forms as --form help prints them: the name, what is read, and an example of the layout."""
    entries = (f"{name:<14}{form.description}\n{'':<16}{form.example}".rstrip() for name, form in FORMS.items())
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
    module = importlib.import_module(f"clinkd.data.readers.{FORMS[form].module}")
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
    if marked := next((name for name, form in FORMS.items() if form.is_marked and form.is_marked(folder)), None):
        return marked
    by_file = [_detect_file_form(p, encoding) for p in find_record_files(folder)]
    by_label_file: list[str | None] = [name for name, form in FORMS.items() if _has_label_file(folder, form)]
    names = list(dict.fromkeys(filter(None, by_file + by_label_file)))
    if len(names) > 1:
        raise BadInput(f"{folder}: holds files of the forms {', '.join(names)}; give one of the files, or --form")
    if names:
        return names[0]
    return next((name for name, form in FORMS.items() if form.is_folder and form.is_folder(folder)), None)


def _has_label_file(folder: Path, form: Form) -> bool:
    """Whether one of the first files of a pattern is a label file."""
    globs = (itertools.islice(folder.glob(pattern), MOST_LOOKED_AT) for pattern in form.label_files)
    is_file = form.is_file
    return is_file is not None and any(path.is_file() and is_file(path) for path in itertools.chain(*globs))


def _list_first_files(folder: Path) -> list[Path]:
    return [folder / path for path in itertools.islice(walk_files(folder), MOST_LOOKED_AT)]


def _detect_file_form(file: Path, encoding: str) -> str | None:
    suffix = file.suffix.lower()
    if suffix in SHEET_SUFFIXES:  # a CSV has no marks: something else of that name would be read as one long word
        return "sheet" if suffix.startswith(".xls") or recognise(file) is None else None
    if suffix not in RECORD_SUFFIXES:
        return next((name for name, form in FORMS.items() if form.is_file and form.is_file(file)), None)
    head = read_head(file, encoding)
    if head.startswith("{") and not head.partition("\n")[0].rstrip().endswith("}"):
        return "coco" if coco.is_file(file, encoding) else None
    first_rows = list(itertools.islice(record_rows(file, encoding), MOST_LOOKED_AT))
    first = next((row.value for row in first_rows if isinstance(row, SourceRow)), None)
    if first is not None:
        return next((name for name, form in FORMS.items() if form.is_row and form.is_row(first)), None)
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


def marks_everything(source: Source) -> bool:
    """Whether an image without a box of a name does not show it, as far as the form of the read data, or the forms that
    they were imported from, tell. Questions may have been left out at the import: then nobody knows any more."""
    source = with_form(source)
    if source.form == "samples":
        about = read_about(source.path if source.path.is_dir() else source.path.parent) or {}
        sources = about.get("sources") or [{}]
        return all(isinstance(s, dict) and s.get("marks_all") is True for s in sources)
    return FORMS[require_form(source.form or "")].marks_all and not source.drawn.partial


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

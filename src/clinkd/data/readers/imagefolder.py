"""Reader of ImageFolder: images beside a metadata.jsonl, or Parquet files with the pictures inside.

    {"file_name": "0001.png", "text": "An axial slice."}                                        a description (MIA)
    {"file_name": "0001.png", "objects": {"bbox": [[302, 109, 73, 52]], "categories": ["cyst"]}} boxes (VG, ROC)

Layout: https://huggingface.co/docs/datasets/image_dataset (Image captioning, Object detection): one metadata file a
folder, `file_name` from there, a box is left, top, width and height in pixels. In Parquet the picture is in a column
`image`. A split is told by the folder (`train/metadata.jsonl`) or the file (`test-00000-of-00002.parquet`). A row may
have id, modality and patient. Questions with answers are read as the form `vqa`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from clinkd.data import questions
from clinkd.data.readers.annotated import annotate, make_samples, parse_pixel_box, sample_questions
from clinkd.data.readers.box_layout import SIZED_BOXES
from clinkd.data.readers.names import require_class_name
from clinkd.data.readers.record_files import list_record_files, record_rows
from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, convert_rows, count_unused_keys, require_words
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.data.readers.split_words import find_split_of_path
from clinkd.records import Box, ImageRef, Sample

METADATA = ("metadata.jsonl", "metadata.parquet")
KEYS = {"file_name", "image", "text", "caption", "objects", "id", "modality", "patient"}
_CATEGORIES = ("categories", "category")  # of which the documentation has the first, most data sets the second


def list_metadata(folder: Path) -> list[Path]:
    """The metadata files of a folder and of the folders in it."""
    return sorted(path for name in METADATA for pattern in (name, f"*/{name}") for path in folder.glob(pattern))


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """The rows of a file, or of the metadata files of a folder, else of its Parquet files.

    Raises BadInput if there is none.
    """
    pictures = ImageResolver(source, notes)
    for file in (list_metadata(source.path) if source.path.is_dir() else ()) or list_record_files(source.path):
        folder = "" if source.images else file.parent.relative_to(source.root).as_posix()
        convert = partial(_convert_row, folder=folder, source=source, pictures=pictures, notes=notes)
        yield from convert_rows(record_rows(file, source.encoding), convert)


def _convert_row(
    row: SourceRow, folder: str, source: Source, pictures: ImageResolver, notes: Counter[str]
) -> list[Sample]:
    value = row.value
    count_unused_keys(value, KEYS, notes)
    key = next((k for k in ("file_name", "image") if k in value), "file_name")
    name = require_words(value.get(key), key)
    image = pictures.ref(name if folder in ("", ".") else f"{folder}/{name}", key)
    objects = _find_objects(value.get("objects"), image, source, notes)
    split = source.split or find_split_of_path(row.file)
    group = None if value.get("patient") is None else require_words(str(value["patient"]), "patient")
    record = annotate(source, image, objects, split, value.get("modality"), group)
    if (stated_id := value.get("id")) is not None:
        record = replace(record, id=require_words(str(stated_id), "id"))
    samples = make_samples(record, source, notes)
    for text_key in ("text", "caption"):
        if value.get(text_key) is not None:
            text = require_words(value[text_key], text_key)
            turn = questions.ask_overall(text, random.Random(f"{source.seed}/{record.id}/{text_key}"))
            samples.append(record.make_sample(f"{record.id}-{text_key}", turn))
    if not samples and not record.objects:
        notes["rows without text and objects, of which nothing is asked"] += 1
    return sample_questions(samples, source, notes)


def _find_objects(objects: Any, image: ImageRef, source: Source, notes: Counter[str]) -> Iterator[tuple[str, Box]]:
    if objects is None:
        return
    names = next((objects[k] for k in _CATEGORIES if k in objects), None) if isinstance(objects, dict) else None
    boxes = objects.get("bbox") if isinstance(objects, dict) else None
    if not isinstance(names, list) or not isinstance(boxes, list) or len(names) != len(boxes):
        why = '{"bbox": [[x, y, width, height], ...], "categories": [name, ...]} of equal lengths is wanted'
        raise FieldError("objects", objects, why)
    for n, (name, box) in enumerate(zip(names, boxes, strict=True)):
        field = f"objects.bbox[{n}]"
        name = require_class_name(name, f"objects.categories[{n}]", source.class_names)
        yield name, parse_pixel_box(box, field, image, notes, SIZED_BOXES)


def has_columns(row: Mapping[str, Any]) -> bool:
    """Whether the objects of an image are columns, of names and of boxes, as no other form has them."""
    return "image" in row and isinstance(row.get("objects"), dict)


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of an ImageFolder that is no question with its answer."""
    return ("file_name" in row or "image" in row) and bool(row.keys() & {"text", "caption", "objects"})

"""Reader of `records.jsonl`: one image a line with its boxes in pixels and its questions.

    {"id", "image", "modality", "width", "height", "objects": [{"name", "box": [x1, y1, x2, y2]}],
     "qa": [{"question", "answer"}]}

Boxes are pixels of the upright image, left and top edge inclusive, right and bottom exclusive; "left" and "right" in
names are the patient's unless the source says otherwise. "group" (the patient), "split" and "side" may be given; other
keys are counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, get_args

from clinkd.data.dataset import RECORDS
from clinkd.data.modality import read_modality
from clinkd.data.readers.annotated import Annotated, grouped, make_samples, pixel_box
from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, entries, json_rows, objects_of, text_of
from clinkd.data.readers.source import Pictures, Source
from clinkd.records import SPLITS, BadInput, ImageRef, Modality, Sample, Side

KEYS = {"id", "image", "modality", "width", "height", "objects", "qa", "group", "split", "side"}
SIDES: tuple[Side, ...] = get_args(Side)
Word = TypeVar("Word", bound=str)


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Rows of the file, or of the `records.jsonl` in a folder. Raises BadInput where there is none, or it is empty."""
    file = source.path / RECORDS if source.path.is_dir() else source.path
    if not file.is_file():
        raise BadInput(f"{file}: no such file; data.path is a folder with {RECORDS} and its images")
    pictures = Pictures(source)
    rows_of_ids: dict[str, int] = {}
    rows_of_images: dict[str, int] = {}

    def make(row: SourceRow) -> list[Sample]:
        record = _parse_record(row, source, pictures)
        _require_unique("id", record.id, rows_of_ids, row.number)
        _require_unique("image", record.image.path, rows_of_images, row.number)
        notes.update(f"keys {key!r}, which are not used" for key in row.value.keys() - KEYS)
        samples = make_samples(record, source, notes)
        if not record.objects and not record.qa:
            notes["rows without objects and questions, of which nothing is asked"] += 1
        return samples

    return entries(json_rows(file, source.encoding), make)


def _require_unique(key: str, value: str, first_rows: dict[str, int], row: int) -> None:
    if first_rows.setdefault(value, row) != row:
        raise FieldError(
            key, value, f"already used by row {first_rows[value]}; give each image one row, with an id of its own"
        )


def _parse_record(row: SourceRow, source: Source, pictures: Pictures) -> Annotated:
    value = row.value
    name = text_of(value, "id")
    text_of(value, "image")
    modality = modality_of(value.get("modality"), source)
    image = _with_stated_size(pictures.ref(value["image"]), value)
    for field, actual in (("width", image.width), ("height", image.height)):
        if field in value and actual is not None and value[field] != actual:
            raise FieldError(field, value[field], f"the image has {actual} pixels; correct it, and the boxes with it")
    objects = tuple(
        (text_of(entry, "name", f"objects[{i}].name"), pixel_box(entry.get("box"), f"objects[{i}].box", image))
        for i, entry in objects_of(value, "objects")
    )
    qa = tuple(
        (text_of(entry, "question", f"qa[{i}].question"), text_of(entry, "answer", f"qa[{i}].answer"))
        for i, entry in objects_of(value, "qa")
    )
    if value.get("group") is not None:
        split_group = text_of(value, "group")
    else:
        split_group = grouped(source, image.path) if source.group else group(name)
    split = choice(value, "split", SPLITS)
    side = choice(value, "side", SIDES) or source.side or "patient"
    return Annotated(name, image, modality, objects, qa, split_group, origin(name), side, split or source.split)


def _with_stated_size(image: ImageRef, value: dict[str, Any]) -> ImageRef:
    """Add the size that the row gives if the image was not opened."""
    width, height = value.get("width"), value.get("height")
    if image.width is not None or type(width) is not int or type(height) is not int or min(width, height) < 1:
        return image
    return replace(image, width=width, height=height)


def choice(value: dict[str, Any], key: str, legal: Sequence[Word]) -> Word | None:
    """One of a few words, None where the key is absent."""
    stated = value.get(key)
    if stated is None:
        return None
    for word in legal:
        if stated == word:
            return word
    raise FieldError(key, stated, f"one of {', '.join(legal)} is wanted")


def modality_of(value: object, source: Source) -> Modality:
    """The modality that the row names, else the modality of the source."""
    if value in (None, "") and source.modality is not None:
        return source.modality
    if not isinstance(value, str) or not value.strip():
        raise FieldError("modality", value, "empty or not text; fill it in, or give one for all with --modality")
    try:
        return read_modality(value)
    except BadInput as error:
        raise FieldError("modality", value, str(error)) from None


def origin(record_id: str) -> str:
    """The collection an image comes from: what stands before the first "_" of its id."""
    return record_id.split("_", 1)[0]


def group(record_id: str) -> str:
    """The unit that no split may divide: the patient if the id contains it, else the image.

    `sts_STS_012_ct_z038` -> `sts_STS_012`; `mbh_158019` -> `mbh_158` (patient 158, slice 019).
    """
    patient = re.match(r"sts_STS_\d{3}(?=_|$)|mbh_\d{3}", record_id)
    return patient.group() if patient else record_id

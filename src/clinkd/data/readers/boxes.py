"""Reader of `records.jsonl`: each line is one image with its boxes in pixels and its questions.

    {"id", "image", "modality", "width", "height", "objects": [{"name", "box": [x1, y1, x2, y2]}],
     "qa": [{"question", "answer", "options"}]}

`annotations.jsonl`, which the page of `clinkd serve` saves, is the same. Boxes are pixels of the upright image, left
and top inclusive, right and bottom exclusive, unless `Source.box_layout` says otherwise. "left" and "right" in names
are the patient's unless the source says otherwise. An object may have a "reader", who drew its box; a row "group" (the
patient), "split" and "side". Other keys are counted. Options make a question a multiple choice (see `choices`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from clinkd.data.dataset import RECORDS
from clinkd.data.readers.annotated import (
    Annotated,
    find_split_group,
    make_samples,
    parse_group,
    parse_pixel_box,
    resolve_modality,
)
from clinkd.data.readers.choices import find_choice_keys, make_choice_turn
from clinkd.data.readers.names import require_class_name
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    Word,
    convert_rows,
    count_unused_keys,
    iterate_objects,
    json_rows,
    require_choice,
    require_words,
)
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.records import SPLITS, BadInput, Box, BoxedText, ImageRef, Sample, Side, Task, Turn

KEYS = {"id", "image", "modality", "width", "height", "objects", "qa", "group", "split", "side"}
ANNOTATIONS = "annotations.jsonl"
READER_KEYS = ("reader", "reader_id", "rad_id", "annotator", "annotator_id")  # of a box
OBJECT_KEYS = {"name", "box", *READER_KEYS}
SIDES: tuple[Side, ...] = get_args(Side)


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Rows of the file, or of `records.jsonl` in the folder. Raises BadInput if it is absent or empty."""
    files = [source.path / name for name in (RECORDS, ANNOTATIONS)] if source.path.is_dir() else [source.path]
    file = next(filter(Path.is_file, files), files[0])
    if not file.is_file():
        raise BadInput(f"{file}: no such file; data.path is a folder with {RECORDS} and its images")
    pictures = ImageResolver(source, notes)
    rows_of_ids: dict[str, int] = {}
    rows_of_images: dict[str, int] = {}

    def make(row: SourceRow) -> list[Sample]:
        record = _parse_record(row, source, pictures, notes)
        _require_unique("id", record.id, rows_of_ids, row.number)
        _require_unique("image", record.image.path, rows_of_images, row.number)
        count_unused_keys(row.value, KEYS, notes)
        samples = make_samples(record, source, notes)
        if not record.objects and not record.qa:
            notes["rows without objects and questions, of which nothing is asked"] += 1
        return samples

    return convert_rows(json_rows(file, source.encoding), make)


def _require_unique(key: str, value: str, first_rows: dict[str, int], row: int) -> None:
    if first_rows.setdefault(value, row) != row:
        why = f"already used by row {first_rows[value]}; give each image one row, with an id of its own"
        raise FieldError(key, value, why)


def _parse_record(row: SourceRow, source: Source, pictures: ImageResolver, notes: Counter[str]) -> Annotated:
    value = row.value
    name = require_words(value.get("id"), "id")
    require_words(value.get("image"), "image")
    modality = resolve_modality(value.get("modality"), source)
    image = _with_stated_size(pictures.ref(value["image"]), value)
    for field, actual in (("width", image.width), ("height", image.height)):
        if field in value and actual is not None and value[field] != actual:
            raise FieldError(field, value[field], f"the image has {actual} pixels; correct it, and the boxes with it")
    objects, readers = [], []
    for i, entry in iterate_objects(value, "objects"):
        count_unused_keys(entry, OBJECT_KEYS, notes, "objects.")
        object_name = require_class_name(entry.get("name"), f"objects[{i}].name", source.class_names)
        objects.append((object_name, _parse_box(entry.get("box"), f"objects[{i}].box", image, source, notes)))
        readers.append(find_reader(entry, f"objects[{i}]"))
    qa = [_parse_turn(entry, f"qa[{i}].", notes) for i, entry in iterate_objects(value, "qa")]
    if value.get("group") is not None:
        split_group = parse_group(value["group"], "group")
    else:
        split_group = _find_untold_group(source, image, name, pictures)
    split = parse_choice(value, "split", SPLITS) or source.split
    side = parse_choice(value, "side", SIDES) or source.side or "patient"
    origin = parse_origin(name)
    return Annotated(
        name, image, modality, tuple(objects), tuple(qa), split_group, origin, side, split, readers=tuple(readers)
    )


def find_reader(entry: dict[str, Any], field: str) -> str:
    """Who drew a box, "" if no key says so. Raises FieldError if it is neither text nor a number."""
    for key in READER_KEYS:
        if (reader := entry.get(key)) is not None:
            return require_words(str(reader) if type(reader) is int else reader, f"{field}.{key}")
    return ""


def _parse_box(value: Any, field: str, image: ImageRef, source: Source, notes: Counter[str]) -> Box:
    try:
        return parse_pixel_box(value, field, image, notes, source.box_layout)
    except FieldError as fault:
        if source.box_form is None and "swapped" in fault.why:
            fault.why += "; if it is left, top, width and height, give --box-form xywh"
        raise


def _find_untold_group(source: Source, image: ImageRef, name: str, pictures: ImageResolver) -> str:
    facts = pictures.header(source.prefix + image.path)
    if source.group or facts:
        return find_split_group(source, image.path, facts)
    return parse_patient_group(name)


def _parse_turn(entry: dict[str, Any], prefix: str, notes: Counter[str]) -> Turn:
    """A question about the whole image, and its answer."""
    keys = find_choice_keys(tuple(entry))
    count_unused_keys(entry, {"question", "answer", *keys.used}, notes, "qa.")
    question = BoxedText(require_words(entry.get("question"), f"{prefix}question"))
    answer = BoxedText(require_words(entry.get("answer"), f"{prefix}answer"))
    return make_choice_turn(Turn(Task.QA, question, answer), entry, keys, f"{prefix}answer", notes)


def _with_stated_size(image: ImageRef, value: dict[str, Any]) -> ImageRef:
    """The image with the size that the row states, if the image was not opened."""
    width, height = value.get("width"), value.get("height")
    if image.width is not None or type(width) is not int or type(height) is not int or min(width, height) < 1:
        return image
    return replace(image, width=width, height=height)


def parse_choice(value: dict[str, Any], key: str, choices: Sequence[Word]) -> Word | None:
    """One of a few words, None if the key is absent."""
    return None if value.get(key) is None else require_choice(value[key], choices, key)


def parse_origin(record_id: str) -> str:
    """The collection that an image comes from: the part of its id before the first "_"."""
    return record_id.split("_", 1)[0]


def parse_patient_group(record_id: str) -> str:
    """The unit that no split may divide: the patient if the id names one, else the image.

    `sts_STS_012_ct_z038` -> `sts_STS_012`; `mbh_158019` -> `mbh_158` (patient 158, slice 019).
    """
    patient = re.match(r"sts_STS_\d{3}(?=_|$)|mbh_\d{3}", record_id)
    return patient.group() if patient else record_id

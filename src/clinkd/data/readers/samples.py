"""Reader of samples.jsonl, in which the program keeps its samples: one `Sample.to_json` a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, get_args

from clinkd.data.dataset import SAMPLES
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    check_unicode,
    convert_rows,
    get_list,
    iterate_objects,
    json_rows,
)
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.records import BadInput, Box, BoxedText, Fact, ImageRef, Modality, Sample, Side, Split, Task, Turn

_MEND_OR_IMPORT = "mend it, or import the data anew"


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Rows of the file, or of the `samples.jsonl` in a folder.

    Raises BadInput where there is none, where it is empty, or where the root of its images is no folder.
    """
    file = source.path / SAMPLES if source.path.is_dir() else source.path
    if source.open_images and file.is_file() and not source.root.is_dir():
        raise BadInput(f"{source.root}: no such folder, where {file} has its images; name it with --images")
    pictures = ImageResolver(source)
    first_rows: dict[str, int] = {}

    def make(row: SourceRow) -> list[Sample]:
        sample = _make_sample(row.value, pictures, notes)
        if first_rows.setdefault(sample.id, row.number) != row.number:
            raise FieldError(
                "id", sample.id, f"already used by row {first_rows[sample.id]}; give each sample an id of its own"
            )
        return [sample if sample.split or not source.split else replace(sample, split=source.split)]

    yield from convert_rows(json_rows(file, source.encoding), make)


def _make_sample(value: dict[str, Any], pictures: ImageResolver, notes: Counter[str]) -> Sample:
    _count_unknown_keys(value, Sample, "", notes)
    images = tuple(
        _parse_image(entry, f"images[{i}]", pictures, notes)
        for i, entry in iterate_objects(_require_key(value, "images"), "images")
    )
    turns = tuple(
        _parse_turn(entry, f"turns[{i}]", notes) for i, entry in iterate_objects(_require_key(value, "turns"), "turns")
    )
    return assemble_sample(value.get("id"), images, turns, value)


def assemble_sample(
    name: Any, images: tuple[ImageRef, ...], turns: tuple[Turn, ...], value: dict[str, Any], prefix: str = ""
) -> Sample:
    """A sample from images and turns; the rest from `value`, in the form of `Sample.to_json`. Raises FieldError.

    `prefix` goes before the name of a field in faults.
    """
    if not images:
        raise FieldError("images", [], f"a sample has one image or more; {_MEND_OR_IMPORT}")
    if not turns:
        raise FieldError("turns", [], f"a sample has one turn or more; {_MEND_OR_IMPORT}")
    modality: Modality = _require_choice(value, "modality", tuple(Modality), prefix)
    side: Side = _require_choice(value, "side", get_args(Side), prefix)
    split: Split | None = None
    if value.get("split") is not None:
        split = _require_choice(value, "split", get_args(Split), prefix)
    names = tuple(_require_text(n, f"{prefix}names[{i}]") for i, n in enumerate(get_list(value, "names")))
    facts = tuple(_parse_fact(entry, f"{prefix}facts[{i}]") for i, entry in iterate_objects(value, "facts"))
    origin = value.get("source")
    if not isinstance(origin, str):
        raise FieldError(f"{prefix}source", origin, f"not text; {_MEND_OR_IMPORT}")
    group = _require_text(value.get("group"), f"{prefix}group")
    return Sample(
        _require_text(name, "id"), images, Modality(modality), turns, group, origin, names, facts, side, split
    )


def _count_unknown_keys(value: dict[str, Any], record_type: type, prefix: str, notes: Counter[str]) -> None:
    for key in value.keys() - {f.name for f in fields(record_type)}:
        notes[f"key {prefix + key!r} of rows, which a sample does not keep"] += 1


def _require_key(value: dict[str, Any], key: str) -> dict[str, Any]:
    if key not in value:
        raise FieldError(key, None, f"absent; {_MEND_OR_IMPORT}")
    return value


def _require_text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise FieldError(field, value, f"empty or not text; {_MEND_OR_IMPORT}")
    check_unicode(value, field)
    return value


def _require_choice(value: dict[str, Any], key: str, legal: tuple[str, ...], prefix: str) -> Any:
    stated = value.get(key)
    if stated not in legal:
        raise FieldError(f"{prefix}{key}", stated, f"one of {', '.join(legal)} is wanted")
    return stated


def _parse_fact(value: dict[str, Any], field: str) -> Fact:
    texts = ("name", "size", "side", "brightness")
    for key, stated in value.items():
        if key not in (*texts, "count"):
            raise FieldError(f"{field}.{key}", stated, f"a fact has {', '.join(texts)} and count; {_MEND_OR_IMPORT}")
        if not (stated is None or isinstance(stated, str if key in texts else int)):
            raise FieldError(f"{field}.{key}", stated, f"{'text' if key in texts else 'a number'} is wanted")
    _require_text(value.get("name"), f"{field}.name")
    return Fact(**value)


def _parse_image(value: dict[str, Any], field: str, pictures: ImageResolver, notes: Counter[str]) -> ImageRef:
    """The image of a row, its recorded size checked against the file's."""
    _count_unknown_keys(value, ImageRef, "images.", notes)
    path = value.get("path")
    actual_image = pictures.ref(path, f"{field}.path")
    assert isinstance(path, str)
    for key in ("width", "height"):
        stated = value.get(key)
        if stated is not None and not (type(stated) is int and stated > 0):
            raise FieldError(f"{field}.{key}", stated, "a number of pixels is wanted")
        actual = getattr(actual_image, key)
        if stated is not None and actual not in (None, stated):
            raise FieldError(
                f"{field}.{key}",
                stated,
                f"the image has {actual} pixels now; bring back the old one, or {_MEND_OR_IMPORT}",
            )
    stated_orientation = value.get("orientation", 1)
    if type(stated_orientation) is not int or not 1 <= stated_orientation <= 8:
        raise FieldError(f"{field}.orientation", stated_orientation, "1 to 8, as in EXIF, is wanted")
    window = value.get("window")
    if window is not None:
        _require_text(window, f"{field}.window")
    if actual_image.width is None:
        return ImageRef(path, value.get("width"), value.get("height"), stated_orientation, window)
    if "orientation" in value and stated_orientation != actual_image.orientation:
        raise FieldError(
            f"{field}.orientation",
            stated_orientation,
            f"the image has {actual_image.orientation} now; {_MEND_OR_IMPORT}",
        )
    return actual_image if window is None else replace(actual_image, window=window)


def _parse_turn(value: dict[str, Any], field: str, notes: Counter[str]) -> Turn:
    _count_unknown_keys(value, Turn, "turns.", notes)
    task = _require_choice(value, "task", tuple(Task), f"{field}.")
    return Turn(Task(task), _parse_text(value, "question", field), _parse_text(value, "answer", field))


def _parse_text(value: dict[str, Any], key: str, field: str) -> BoxedText:
    """A text, or {"text", "boxes"}."""
    raw, field = value.get(key), f"{field}.{key}"
    text, boxes = (raw.get("text"), raw.get("boxes")) if isinstance(raw, dict) else (raw, [])
    if not isinstance(boxes, list):
        raise FieldError(f"{field}.boxes", boxes, "a list of boxes is wanted")
    parsed_boxes = tuple(_parse_box(b, f"{field}.boxes[{i}]") for i, b in enumerate(boxes))
    try:
        return BoxedText(_require_text(text, field), parsed_boxes)
    except BadInput as error:
        raise FieldError(field, raw, str(error)) from None


def _parse_box(value: Any, field: str) -> Box:
    if not isinstance(value, list) or len(value) != 4 or not all(type(v) in (int, float) for v in value):
        raise FieldError(field, value, "four numbers [x1, y1, x2, y2], fractions of the image, are wanted")
    try:
        return Box(*value)
    except BadInput as error:
        raise FieldError(field, value, str(error)) from None

"""Reader of samples.jsonl, the program's own file of samples: each line is one `Sample.to_json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, get_args

from clinkd.data.dataset import SAMPLES
from clinkd.data.readers.annotated import require_four_numbers
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    check_unicode,
    convert_rows,
    count_unused_keys,
    get_list,
    iterate_objects,
    json_rows,
    require_choice,
)
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.records import (
    SPLITS,
    BadInput,
    Box,
    BoxedText,
    Fact,
    ImageRef,
    Laterality,
    Modality,
    Sample,
    Side,
    Split,
    Task,
    Turn,
)

_MEND_OR_IMPORT = "mend it, or import the data anew"


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Rows of the file, or of `samples.jsonl` in the folder.

    Raises BadInput if it is absent or empty, or if the root of its images is no folder.
    """
    file = source.path / SAMPLES if source.path.is_dir() else source.path
    if source.open_images and file.is_file() and not source.root.is_dir():
        raise BadInput(f"{source.root}: no such folder, where {file} has its images; name it with --images")
    pictures = ImageResolver(source)
    first_rows: dict[str, int] = {}

    def make(row: SourceRow) -> list[Sample]:
        sample = _make_sample(row.value, pictures, notes)
        if first_rows.setdefault(sample.id, row.number) != row.number:
            why = f"already used by row {first_rows[sample.id]}; give each sample an id of its own"
            raise FieldError("id", sample.id, why)
        return [sample if sample.split or not source.split else replace(sample, split=source.split)]

    yield from convert_rows(json_rows(file, source.encoding), make)


def _make_sample(value: dict[str, Any], pictures: ImageResolver, notes: Counter[str]) -> Sample:
    _count_unknown_keys(value, Sample, "", notes)
    for key in ("images", "turns"):
        if key not in value:
            raise FieldError(key, None, f"absent; {_MEND_OR_IMPORT}")
    images = [_parse_image(v, f"images[{i}]", pictures, notes) for i, v in iterate_objects(value, "images")]
    turns = [_parse_turn(v, f"turns[{i}]", notes) for i, v in iterate_objects(value, "turns")]
    return assemble_sample(value.get("id"), tuple(images), tuple(turns), value)


def assemble_sample(
    name: Any, images: tuple[ImageRef, ...], turns: tuple[Turn, ...], value: dict[str, Any], prefix: str = ""
) -> Sample:
    """A sample from images, turns and the other keys of `value`, which is in the form of `Sample.to_json`.

    Raises FieldError. `prefix` goes before the field names in errors.
    """
    if not images:
        raise FieldError("images", [], f"a sample has one image or more; {_MEND_OR_IMPORT}")
    if not turns:
        raise FieldError("turns", [], f"a sample has one turn or more; {_MEND_OR_IMPORT}")
    modality = require_choice(value.get("modality"), tuple(Modality), f"{prefix}modality")
    side: Side = require_choice(value.get("side"), get_args(Side), f"{prefix}side")
    split: Split | None = None
    if value.get("split") is not None:
        split = require_choice(value["split"], SPLITS, f"{prefix}split")
    names = tuple(_require_text(n, f"{prefix}names[{i}]") for i, n in enumerate(get_list(value, "names")))
    facts = tuple(_parse_fact(entry, f"{prefix}facts[{i}]") for i, entry in iterate_objects(value, "facts"))
    origin = value.get("source")
    if not isinstance(origin, str):
        raise FieldError(f"{prefix}source", origin, f"not text; {_MEND_OR_IMPORT}")
    group = _require_text(value.get("group"), f"{prefix}group")
    sample_id = _require_text(name, "id")
    return Sample(sample_id, images, modality, turns, group, origin, names, facts, side, split)


def _count_unknown_keys(value: dict[str, Any], record_type: type, prefix: str, notes: Counter[str]) -> None:
    count_unused_keys(value, {f.name for f in fields(record_type)}, notes, prefix)


def _require_text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise FieldError(field, value, f"empty or not text; {_MEND_OR_IMPORT}")
    check_unicode(value, field)
    return value


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
    """The image of a row. Raises FieldError if its recorded size differs from the file's."""
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
            why = f"the image has {actual} pixels now; bring back the old one, or {_MEND_OR_IMPORT}"
            raise FieldError(f"{field}.{key}", stated, why)
    stated_orientation = value.get("orientation", 1)
    if type(stated_orientation) is not int or not 1 <= stated_orientation <= 8:
        raise FieldError(f"{field}.orientation", stated_orientation, "1 to 8, as in EXIF, is wanted")
    window = value.get("window")
    if window is not None:
        _require_text(window, f"{field}.window")
    if value.get("variant") is not None:
        why = "changed pixels are for training alone, and made there (data.variants); leave it out"
        raise FieldError(f"{field}.variant", value["variant"], why)
    laterality = _parse_laterality(value.get("laterality"), f"{field}.laterality") or actual_image.laterality
    if actual_image.width is None:
        return ImageRef(path, value.get("width"), value.get("height"), stated_orientation, window, laterality)
    if "orientation" in value and stated_orientation != actual_image.orientation:
        why = f"the image has {actual_image.orientation} now; {_MEND_OR_IMPORT}"
        raise FieldError(f"{field}.orientation", stated_orientation, why)
    return replace(actual_image, window=window or actual_image.window, laterality=laterality)


def _parse_laterality(value: Any, field: str) -> Laterality | None:
    """What the import recorded; it stands where a copy has no header any more."""
    try:
        return None if value is None else Laterality.from_json(value)
    except BadInput as error:
        raise FieldError(field, value, f"{error}; {_MEND_OR_IMPORT}") from None


def _parse_turn(value: dict[str, Any], field: str, notes: Counter[str]) -> Turn:
    _count_unknown_keys(value, Turn, "turns.", notes)
    task = require_choice(value.get("task"), tuple(Task), f"{field}.task")
    question, answer = (_parse_text(value, key, field, notes) for key in ("question", "answer"))
    options = parse_options(value.get("options"), answer, f"{field}.options")
    return Turn(task, question, answer, options, parse_closed(value.get("closed"), f"{field}.closed"))


def parse_closed(value: Any, field: str) -> bool | None:
    """Whether the data call a question closed; None if they do not say."""
    if value is not None and not isinstance(value, bool):
        raise FieldError(field, value, f"true or false is wanted; {_MEND_OR_IMPORT}")
    return value


def parse_options(value: Any, answer: BoxedText, field: str) -> tuple[str, ...]:
    """The options of a turn, none if the key is absent. Raises FieldError if the answer is none of them."""
    if value in (None, []):
        return ()
    if not isinstance(value, list) or not all(isinstance(words, str) for words in value) or answer.text not in value:
        raise FieldError(field, value, f"a list of texts, the answer among them, is wanted; {_MEND_OR_IMPORT}")
    return tuple(value)


def _parse_text(value: dict[str, Any], key: str, field: str, notes: Counter[str]) -> BoxedText:
    """A text, or {"text", "boxes"}."""
    raw, field = value.get(key), f"{field}.{key}"
    if isinstance(raw, dict):
        count_unused_keys(raw, {"text", "boxes"}, notes, f"turns.{key}.")
    text, boxes = (raw.get("text"), raw.get("boxes")) if isinstance(raw, dict) else (raw, [])
    if not isinstance(boxes, list):
        raise FieldError(f"{field}.boxes", boxes, "a list of boxes is wanted")
    parsed_boxes = tuple(_parse_box(b, f"{field}.boxes[{i}]") for i, b in enumerate(boxes))
    try:
        return BoxedText(_require_text(text, field), parsed_boxes)
    except BadInput as error:
        raise FieldError(field, raw, str(error)) from None


def _parse_box(value: Any, field: str) -> Box:
    try:
        return Box(*require_four_numbers(value, field, "[x1, y1, x2, y2], fractions of the image,"))
    except BadInput as error:
        raise FieldError(field, value, str(error)) from None

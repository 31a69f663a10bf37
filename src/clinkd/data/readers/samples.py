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
    check_whole,
    entries,
    json_rows,
    list_of,
    objects_of,
)
from clinkd.data.readers.source import Pictures, Source
from clinkd.records import BadInput, Box, BoxedText, Fact, ImageRef, Modality, Sample, Side, Split, Task, Turn

_ANEW = "mend it, or import the data anew"


def read(source: Source, told: Counter[str]) -> Iterator[RowResult]:
    """Rows of the file, or of the `samples.jsonl` in a folder.

    Raises BadInput where there is none, where it is empty, or where the root of its images is no folder.
    """
    file = source.path / SAMPLES if source.path.is_dir() else source.path
    if source.open_images and file.is_file() and not source.root.is_dir():
        raise BadInput(f"{source.root}: no such folder, where {file} has its images; name it with --images")
    pictures = Pictures(source)
    rows: dict[str, int] = {}

    def make(row: SourceRow) -> list[Sample]:
        sample = _sample(row.value, pictures, told)
        if rows.setdefault(sample.id, row.number) != row.number:
            raise FieldError(
                "id", sample.id, f"already used by row {rows[sample.id]}; give each sample an id of its own"
            )
        return [sample if sample.split or not source.split else replace(sample, split=source.split)]

    yield from entries(json_rows(file, source.encoding), make)


def _sample(value: dict[str, Any], pictures: Pictures, told: Counter[str]) -> Sample:
    _count_unknown(value, Sample, "", told)
    images = tuple(
        _image(entry, f"images[{i}]", pictures, told) for i, entry in objects_of(_demanded(value, "images"), "images")
    )
    turns = tuple(_turn(entry, f"turns[{i}]", told) for i, entry in objects_of(_demanded(value, "turns"), "turns"))
    return assembled(value.get("id"), images, turns, value)


def assembled(
    name: Any, images: tuple[ImageRef, ...], turns: tuple[Turn, ...], value: dict[str, Any], prefix: str = ""
) -> Sample:
    """A sample of its images and turns, all else from `value` as `Sample.to_json` has it. Raises Fault on any field.

    `prefix` goes before the name of a field in faults.
    """
    if not images:
        raise FieldError("images", [], f"a sample has one image or more; {_ANEW}")
    if not turns:
        raise FieldError("turns", [], f"a sample has one turn or more; {_ANEW}")
    modality: Modality = _one_of(value, "modality", tuple(Modality), prefix)
    side: Side = _one_of(value, "side", get_args(Side), prefix)
    split: Split | None = None
    if value.get("split") is not None:
        split = _one_of(value, "split", get_args(Split), prefix)
    names = tuple(_said(n, f"{prefix}names[{i}]") for i, n in enumerate(list_of(value, "names")))
    facts = tuple(_fact(entry, f"{prefix}facts[{i}]") for i, entry in objects_of(value, "facts"))
    origin = value.get("source")
    if not isinstance(origin, str):
        raise FieldError(f"{prefix}source", origin, f"not text; {_ANEW}")
    group = _said(value.get("group"), f"{prefix}group")
    return Sample(_said(name, "id"), images, Modality(modality), turns, group, origin, names, facts, side, split)


def _count_unknown(value: dict[str, Any], noun: type, where: str, told: Counter[str]) -> None:
    for key in value.keys() - {f.name for f in fields(noun)}:
        told[f"key {where + key!r} of rows, which a sample does not keep"] += 1


def _demanded(value: dict[str, Any], key: str) -> dict[str, Any]:
    if key not in value:
        raise FieldError(key, None, f"absent; {_ANEW}")
    return value


def _said(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise FieldError(field, value, f"empty or not text; {_ANEW}")
    check_whole(value, field)
    return value


def _one_of(value: dict[str, Any], key: str, legal: tuple[str, ...], prefix: str) -> Any:
    found = value.get(key)
    if found not in legal:
        raise FieldError(f"{prefix}{key}", found, f"one of {', '.join(legal)} is wanted")
    return found


def _fact(value: dict[str, Any], field: str) -> Fact:
    texts = ("name", "size", "side", "brightness")
    for key, stated in value.items():
        if key not in (*texts, "count"):
            raise FieldError(f"{field}.{key}", stated, f"a fact has {', '.join(texts)} and count; {_ANEW}")
        if not (stated is None or isinstance(stated, str if key in texts else int)):
            raise FieldError(f"{field}.{key}", stated, f"{'text' if key in texts else 'a number'} is wanted")
    _said(value.get("name"), f"{field}.name")
    return Fact(**value)


def _image(value: dict[str, Any], field: str, pictures: Pictures, told: Counter[str]) -> ImageRef:
    """The image of a row, its recorded size checked against the file's."""
    _count_unknown(value, ImageRef, "images.", told)
    path = value.get("path")
    found = pictures.ref(path, f"{field}.path")
    assert isinstance(path, str)
    for key in ("width", "height"):
        stated = value.get(key)
        if stated is not None and not (type(stated) is int and stated > 0):
            raise FieldError(f"{field}.{key}", stated, "a number of pixels is wanted")
        real = getattr(found, key)
        if stated is not None and real not in (None, stated):
            raise FieldError(
                f"{field}.{key}", stated, f"the image has {real} pixels now; bring back the old one, or {_ANEW}"
            )
    turned = value.get("orientation", 1)
    if type(turned) is not int or not 1 <= turned <= 8:
        raise FieldError(f"{field}.orientation", turned, "1 to 8, as in EXIF, is wanted")
    window = value.get("window")
    if window is not None:
        _said(window, f"{field}.window")
    if found.width is None:
        return ImageRef(path, value.get("width"), value.get("height"), turned, window)
    if "orientation" in value and turned != found.orientation:
        raise FieldError(f"{field}.orientation", turned, f"the image has {found.orientation} now; {_ANEW}")
    return found if window is None else replace(found, window=window)


def _turn(value: dict[str, Any], field: str, told: Counter[str]) -> Turn:
    _count_unknown(value, Turn, "turns.", told)
    task = _one_of(value, "task", tuple(Task), f"{field}.")
    return Turn(Task(task), _text(value, "question", field), _text(value, "answer", field))


def _text(value: dict[str, Any], key: str, field: str) -> BoxedText:
    """A text, or {"text", "boxes"}."""
    given, field = value.get(key), f"{field}.{key}"
    text, boxes = (given.get("text"), given.get("boxes")) if isinstance(given, dict) else (given, [])
    if not isinstance(boxes, list):
        raise FieldError(f"{field}.boxes", boxes, "a list of boxes is wanted")
    made = tuple(_box(b, f"{field}.boxes[{i}]") for i, b in enumerate(boxes))
    try:
        return BoxedText(_said(text, field), made)
    except BadInput as error:
        raise FieldError(field, given, str(error)) from None


def _box(value: Any, field: str) -> Box:
    if not isinstance(value, list) or len(value) != 4 or not all(type(v) in (int, float) for v in value):
        raise FieldError(field, value, "four numbers [x1, y1, x2, y2], fractions of the image, are wanted")
    try:
        return Box(*value)
    except BadInput as error:
        raise FieldError(field, value, str(error)) from None

"""Reader of Label Studio: the JSON of finished tasks, or JSON-MIN.

    {"id", "data": {"image": "/data/upload/1/1a2b3c4d-a.png"}, "annotations": [{"result": [
      {"type": "rectanglelabels", "original_width": 600, "original_height": 403,
       "value": {"x": 50.8, "y": 5.9, "width": 12.4, "height": 10.5, "rotation": 0, "rectanglelabels": ["polyp"]}}]}]}
    {"id", "image": "...", "annotation_id", "label": [{"x", "y", "width", "height", "rectanglelabels", ...}]}

Layout: https://labelstud.io/guide/task_format and https://labelstud.io/tags/rectanglelabels. Numbers are percent of
width and height; a rectangle is turned about its left upper corner. Polygons and ellipses count by their extent.
Counted are results that are no shape with a label (brushes, key points, choices, texts), predictions, and annotations
that were cancelled. An uploaded image is found with or without the 8 letters and the hyphen in front of its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from clinkd.data.readers.annotated import annotate, make_samples, parse_pixel_box
from clinkd.data.readers.names import require_class_name
from clinkd.data.readers.record_files import list_record_files, record_rows
from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, convert_rows, iterate_objects, require_words
from clinkd.data.readers.shapes import Points, extent, rotate
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.records import Box, ImageRef, Sample

_LABELS = {"rectanglelabels": "rectangle", "polygonlabels": "polygon", "ellipselabels": "ellipse"}
_UPLOADED = re.compile(r"/?data/upload/(?:\d+/)?([0-9a-f]{8}-)?(.+)")


def is_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is a task of Label Studio, as JSON or JSON-MIN."""
    if isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list):
        return True
    return any(
        isinstance(shape, dict) and _LABELS.keys() & shape.keys() for shapes in _list_minimal(row) for shape in shapes
    )


def _list_minimal(row: Mapping[str, Any]) -> list[list[Any]]:
    """The lists of shapes of a row of JSON-MIN, which are called as the project calls them."""
    return [value for value in row.values() if isinstance(value, list)] if "annotation_id" in row else []


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """The tasks of a file, or of all JSON files of a folder. Raises BadInput if there is none."""
    pictures = ImageResolver(source, notes)
    convert = partial(_convert_task, source=source, pictures=pictures, notes=notes)
    for file in list_record_files(source.path):
        yield from convert_rows(record_rows(file, source.encoding), convert)


def _convert_task(row: SourceRow, source: Source, pictures: ImageResolver, notes: Counter[str]) -> list[Sample]:
    value = row.value
    data = value["data"] if isinstance(value.get("data"), dict) else value
    key = next((k for k in ("image", "img", "image_url", "url") if isinstance(data.get(k), str)), "image")
    image = _find_image(require_words(data.get(key), key), key, pictures)
    objects = [pair for shape in _iterate_shapes(value, notes) for pair in _read_shape(*shape, image, source, notes)]
    if not objects:
        notes["tasks without a box, of which nothing is asked"] += 1
    record = annotate(source, image, objects, modality=data.get("modality"))
    return make_samples(record, source, notes)


def _find_image(address: str, field: str, pictures: ImageResolver) -> ImageRef:
    uploaded, parts = _UPLOADED.fullmatch(address), urlsplit(address)
    if "/local-files/" in parts.path and (place := parse_qs(parts.query).get("d")):
        return pictures.ref(place[0], field)
    if not uploaded:
        return pictures.ref(address, field)
    name = unquote(uploaded[2])
    try:
        return pictures.ref(f"{uploaded[1] or ''}{name}", field)
    except FieldError:
        return pictures.ref(name, field)


def _iterate_shapes(value: dict[str, Any], notes: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each shape of a task, with the place of it: its percentages and the size of its image in one object."""
    if "data" not in value:
        for key in value:
            if isinstance(value[key], list):
                yield from ((f"{key}[{n}]", shape) for n, shape in iterate_objects(value, key))
        return
    if value.get("predictions"):
        notes["predictions of models, which are not used"] += len(value["predictions"])
    finished = [(n, a) for n, a in iterate_objects(value, "annotations") if not a.get("was_cancelled")]
    if cancelled := len(value["annotations"]) - len(finished):
        notes["annotations that were cancelled, left out"] += cancelled
    for n, annotation in finished:
        for m, result in iterate_objects(annotation, "result"):
            shape = result["value"] if isinstance(result.get("value"), dict) else {}
            yield f"annotations[{n}].result[{m}]", {**result, **shape}


def _read_shape(
    field: str, shape: dict[str, Any], image: ImageRef, source: Source, notes: Counter[str]
) -> Iterator[tuple[str, Box]]:
    key = next((k for k in _LABELS if shape.get(k)), None)
    if key is None:
        kind = shape.get("type")
        notes[f"results of the kind {kind if isinstance(kind, str) else 'unknown'}, which are no box with a label"] += 1
        return
    if shape.get("image_rotation"):
        raise FieldError(
            f"{field}.image_rotation", shape["image_rotation"], "of an image turned in the tool; turn it back"
        )
    for stated, actual in (("original_width", image.width), ("original_height", image.height)):
        if actual is not None and shape.get(stated, actual) != actual:
            why = f"the image has {actual} pixels; bring the image that was annotated"
            raise FieldError(f"{field}.{stated}", shape[stated], why)
    width, height = image.width or shape.get("original_width") or 0, image.height or shape.get("original_height") or 0
    try:
        points = _list_corners(_LABELS[key], shape, width / 100, height / 100)
    except (KeyError, TypeError, ValueError):
        raise FieldError(field, shape, "numbers in percent of width and height are wanted") from None
    box = parse_pixel_box(list(extent(points)), field, image, notes)
    labels = shape[key] if isinstance(shape[key], list) else [shape[key]]
    yield from ((require_class_name(label, f"{field}.{key}", source.class_names), box) for label in labels)


def _list_corners(kind: str, shape: dict[str, Any], x_unit: float, y_unit: float) -> Points:
    """The corners around a shape in pixels; `x_unit` and `y_unit`: pixels in a percent."""
    if kind == "polygon":
        return [(x * x_unit, y * y_unit) for x, y in shape["points"]]
    x, y = shape["x"] * x_unit, shape["y"] * y_unit
    if kind == "ellipse":
        rx, ry = shape["radiusX"] * x_unit, shape["radiusY"] * y_unit
        corners, pivot = [(x - rx, y - ry), (x + rx, y - ry), (x + rx, y + ry), (x - rx, y + ry)], (x, y)
    else:
        w, h = shape["width"] * x_unit, shape["height"] * y_unit
        corners, pivot = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)], (x, y)
    return rotate(corners, shape.get("rotation") or 0.0, pivot)

"""Reader of CVAT: annotations.xml of "CVAT for images 1.1", with `images/` beside it.

    <image name="a.png" width="640" height="480" subset="Train">
      <box label="polyp" xtl="10.0" ytl="20.0" xbr="50.5" ybr="60.0" rotation="0.0"/>
      <polygon label="cyst" points="1.0,2.0;3.5,4.0;5.0,6.0"/> <ellipse label="node" cx="9" cy="9" rx="3" ry="2"/>
      <mask label="liver" left="5" top="6" width="20" height="10" rle="..."/>

Layout: https://docs.cvat.ai/docs/other/xml_format. Coordinates are pixels, right and bottom exclusive. A shape that is
no box counts by its extent, a turned one by the extent of its corners (of an ellipse, of the rectangle around it).
Lines, points, tags and attributes are counted. Tracks of videos are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse

from clinkd.data.readers.annotated import annotate, make_samples, parse_pixel_box
from clinkd.data.readers.names import require_class_name
from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, convert_rows, read_head, require_words
from clinkd.data.readers.shapes import Points, extent, rotate
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.data.readers.split_words import SPLIT_WORDS
from clinkd.records import BadInput, Box, ImageRef, Sample

FILE = "annotations.xml"
_SHAPES = {"box", "polygon", "ellipse", "mask"}  # that have an extent


def is_file(file: Path) -> bool:
    """Whether the beginning of an XML file is that of an export."""
    head = read_head(file) if file.suffix.lower() == ".xml" else ""
    return "<annotations" in head and ("<image " in head or "<track " in head)


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """The images of the file, or of annotations.xml in the folder. Raises BadInput where it is absent or damaged."""
    file = source.path / FILE if source.path.is_dir() else source.path
    folder = "images/" if source.images is None and (source.root / "images").is_dir() else ""
    pictures = ImageResolver(source, notes)
    convert = partial(_convert_image, folder=folder, source=source, pictures=pictures, notes=notes)
    return convert_rows(_read_images(file), convert)


def _read_images(file: Path) -> Iterator[SourceRow]:
    if not file.is_file():
        raise BadInput(f"{file}: no such file; give the folder that holds {FILE}")
    number = 0
    try:
        for _, element in iterparse(file, events=("end",), forbid_dtd=True):
            if element.tag == "track":
                raise BadInput(f"{file}: tracks of a video; export it anew as CVAT for images 1.1")
            if element.tag != "image":
                continue
            number += 1
            shapes = [(shape.tag, dict(shape.attrib), len(shape)) for shape in element]
            value = {**element.attrib, "image": element.get("name"), "shapes": shapes}
            yield SourceRow(file, number, value, value)
            element.clear()  # else the whole file is in memory
    except (ParseError, DefusedXmlException) as error:
        why = "a document type, which may stand for gigabytes" if isinstance(error, DefusedXmlException) else error
        raise BadInput(f"{file}: cannot be read behind image {number} ({why}); export it anew") from None
    if not number:
        raise BadInput(f"{file}: no image in it; an export of CVAT for images 1.1 is wanted")


def _convert_image(
    row: SourceRow, folder: str, source: Source, pictures: ImageResolver, notes: Counter[str]
) -> list[Sample]:
    value = row.value
    image = pictures.ref(f"{folder}{require_words(value['image'], 'name')}", "name")
    for key, actual in (("width", image.width), ("height", image.height)):
        if actual is not None and value.get(key) != str(actual):
            raise FieldError(key, value.get(key), f"the image has {actual} pixels; bring the image that was annotated")
    objects = []
    for n, (tag, shape, attributes) in enumerate(value["shapes"], start=1):
        if tag not in _SHAPES:
            notes[f"shapes of the kind {tag}, which have no box"] += 1
            continue
        if attributes:
            notes["attributes of shapes, which are not used"] += attributes
        field = f"{tag} {n}"
        name = require_class_name(shape.get("label"), f"{field} label", source.class_names)
        objects.append((name, _find_box(tag, shape, field, image, notes)))
    if not objects:
        notes["images without a box, of which nothing is asked"] += 1
    subset = value.get("subset", "").casefold()
    origin = (source.path.parent if source.path.is_file() else source.path).resolve().name
    record = replace(annotate(source, image, objects, SPLIT_WORDS.get(subset)), origin=origin)
    return make_samples(record, source, notes)


def _find_box(tag: str, shape: dict[str, str], field: str, image: ImageRef, notes: Counter[str]) -> Box:
    points = _list_corners(tag, shape, field)
    rotation = _read_numbers(shape, ("rotation",), field)[0] if "rotation" in shape else 0.0
    corners = extent(rotate(points, rotation))
    return parse_pixel_box(list(corners), field, image, notes)


def _list_corners(tag: str, shape: dict[str, str], field: str) -> Points:
    """The points of a polygon, or the corners of what is around another shape."""
    if tag == "polygon":
        try:
            return [(float(x), float(y)) for x, y in (p.split(",") for p in shape.get("points", "").split(";"))]
        except ValueError:
            raise FieldError(field, shape.get("points"), "points x,y;x,y;... are wanted") from None
    if tag == "box":
        x1, y1, x2, y2 = _read_numbers(shape, ("xtl", "ytl", "xbr", "ybr"), field)
    elif tag == "mask":
        x1, y1, width, height = _read_numbers(shape, ("left", "top", "width", "height"), field)
        x2, y2 = x1 + width, y1 + height
    else:
        x, y, rx, ry = _read_numbers(shape, ("cx", "cy", "rx", "ry"), field)
        x1, y1, x2, y2 = x - rx, y - ry, x + rx, y + ry
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _read_numbers(shape: dict[str, str], keys: Sequence[str], field: str) -> list[float]:
    try:
        return [float(shape[key]) for key in keys]
    except (KeyError, ValueError):
        stated = {key: shape.get(key) for key in keys}
        raise FieldError(field, stated, f"numbers for {', '.join(keys)} are wanted") from None

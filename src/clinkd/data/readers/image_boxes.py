"""Readers of the boxes of Kvasir-SEG and of SLAKE: a few numbers an image, without questions.

Kvasir-SEG  kavsir_bboxes.json beside images/: {"IMAGE": {"height", "width", "bbox": [{"label", "xmin", "ymin",
            "xmax", "ymax"}]}}, pixels, right and bottom exclusive (https://datasets.simula.no/kvasir-seg)
SLAKE       imgs/xmlab1/detection.json beside source.jpg: [{"Liver": [x, y, width, height]}], pixels. Untested
            against the source, which is to be asked for (https://www.med-vqa.com/slake).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from clinkd.data.readers.annotated import annotate, make_samples, parse_pixel_box
from clinkd.data.readers.box_layout import SIZED_BOXES
from clinkd.data.readers.names import require_class_name
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    convert_rows,
    iterate_objects,
    load_json_file,
)
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.records import BadInput, Box, ImageRef, Sample

KVASIR_FILE = "kavsir_bboxes.json"  # spelled so by its publisher
SLAKE_FILE = "detection.json"


def list_slake_files(folder: Path) -> list[Path]:
    """The files of boxes in the folders of images, by number."""
    files = [*folder.glob(f"*/{SLAKE_FILE}"), *folder.glob(f"imgs/*/{SLAKE_FILE}")]
    return sorted(files, key=lambda path: (len(path.parent.name), path.parent.name))


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """The images of the file or folder. Raises BadInput if there is none, or a file is no JSON."""
    pictures = ImageResolver(source, notes)
    is_kvasir = source.form == "kvasir-seg"

    def convert(row: SourceRow) -> list[Sample]:
        image = pictures.ref(row.value["image"])
        objects = (_read_kvasir_objects if is_kvasir else _read_slake_objects)(row.value, image, source, notes)
        modality = "endoscopy" if is_kvasir and source.modality is None else None
        origin = "kvasir_seg" if is_kvasir else "slake"
        record = replace(annotate(source, image, objects, modality=modality), id=row.value["id"], origin=origin)
        return make_samples(record, source, notes)

    return convert_rows(_list_kvasir(source) if is_kvasir else _list_slake(source), convert)


def _list_kvasir(source: Source) -> Iterator[SourceRow]:
    file = source.path / KVASIR_FILE if source.path.is_dir() else source.path
    content = load_json_file(file, source.encoding)
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise BadInput(f'{file}: {{"IMAGE": {{"bbox": [...]}}}} is wanted, as Kvasir-SEG has it')
    folder = "" if source.images else "images/"
    for number, (name, value) in enumerate(content.items(), start=1):
        path = f"{folder}{name}.jpg"  # the publisher leaves the suffix out
        image = path if (source.root / path).is_file() else f"{folder}{name}"
        yield SourceRow(file, number, {**value, "id": name, "image": image}, {name: value})


def _read_kvasir_objects(
    value: dict[str, Any], image: ImageRef, source: Source, notes: Counter[str]
) -> Iterator[tuple[str, Box]]:
    for key, actual in (("height", image.height), ("width", image.width)):
        if actual is not None and value.get(key, actual) != actual:
            raise FieldError(key, value[key], f"the image has {actual} pixels; bring the image that was annotated")
    for n, entry in iterate_objects(value, "bbox"):
        corners = [entry.get(key) for key in ("xmin", "ymin", "xmax", "ymax")]
        name = require_class_name(entry.get("label"), f"bbox[{n}].label", source.class_names)
        yield name, parse_pixel_box(corners, f"bbox[{n}]", image, notes)


def _list_slake(source: Source) -> Iterator[SourceRow]:
    files = list_slake_files(source.path)
    if not files:
        raise BadInput(f"{source.path}: no {SLAKE_FILE} in its folders; give the folder imgs of SLAKE")
    for number, file in enumerate(files, start=1):
        content = load_json_file(file, source.encoding)
        image = (file.parent / "source.jpg").relative_to(source.root).as_posix()
        yield SourceRow(file, number, {"id": file.parent.name, "image": image, "boxes": content}, content)


def _read_slake_objects(
    value: dict[str, Any], image: ImageRef, source: Source, notes: Counter[str]
) -> Iterator[tuple[str, Box]]:
    for n, entry in iterate_objects(value, "boxes"):
        for name, box in entry.items():
            field = f"boxes[{n}].{name}"
            name = require_class_name(name, field, source.class_names)
            yield name, parse_pixel_box(box, field, image, notes, SIZED_BOXES)

"""Reader of YOLO: a text file for each image, a line for each object, in fractions of the upright image.

    0 0.5 0.5 0.3 0.2            class (from 0), centre x, centre y, width, height; a sixth number is a confidence
    0 0.1 0.1 0.4 0.1 0.4 0.4    class, and a polygon, whose extent becomes the box

Label files lie in a folder `labels`, which has the folders of `images` beside it (labels/train, images/train, or
train/labels, train/images), or else beside their images. data.yaml, or classes.txt or obj.names, names the classes.
Folders tell the split, and data.yaml does (see `yolo_about`). With `kpt_shape` in it a line is a box and key points,
which are counted. The layout is that of https://docs.ultralytics.com/datasets/detect.

A row is an image; `line 3` in an error is the third line of its label file. An empty file is an image without objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clinkd.data.readers.annotated import annotate, make_samples
from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, convert_rows, read_head
from clinkd.data.readers.shapes import extent
from clinkd.data.readers.source import Source
from clinkd.data.readers.trees import TreeImages
from clinkd.data.readers.yolo_about import MOST_BYTES, YoloAbout
from clinkd.records import BadInput, Box, ImageRef, Sample, Split

LABELS = "labels"
LABEL_FILES = ("*.yaml", "*.yml", "*.txt", "labels/*.txt", "*/*.txt", "labels/*/*.txt", "*/labels/*.txt")
NO_LABELS = ("classes.txt",)
ROUNDING = 1e-5  # of fractions: YOLO files are written with six decimals
NO_OBJECT = "images without a box, of which nothing is asked"


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Rows of the label files below a folder, or below the folder of a data.yaml. Raises BadInput if there are none, or
    no names of classes.
    """
    reader = _YoloReader(source, notes)
    rows = [SourceRow(file, 1, {"id": file.stem}, {"labels": str(file)}) for file in reader.list_label_files()]
    if not rows:
        raise BadInput(
            f"{source.path}: no label files (labels/*.txt) there; give the folder that holds images and labels"
        )
    yield from convert_rows(rows, reader.convert)
    reader.images.count_unlabelled(reader.labelled, notes)


def is_file(file: Path) -> bool:
    """Whether a file is a data.yaml, or its first line is an object."""
    head = read_head(file)
    if file.suffix.lower() in (".yaml", ".yml"):
        keys = {line.partition(":")[0] for line in head.splitlines()}
        return "names" in keys and not keys.isdisjoint(("train", "val", "nc", "path"))
    try:
        number, *values = (float(text) for text in head.partition("\n")[0].split())
    except ValueError:
        return False
    return (
        file.suffix.lower() == ".txt" and number.is_integer() and len(values) >= 4 and all(0 <= v <= 1 for v in values)
    )


class _YoloReader:
    """Reads the label files of a source. `labelled`: the images that have had one."""

    def __init__(self, source: Source, notes: Counter[str]) -> None:
        self.source, self.notes = source, notes
        self.images = TreeImages(source, notes)
        self.base = self.images.base
        self.about = YoloAbout(source, self.base, notes)
        self.labelled: set[str] = set()

    def list_label_files(self) -> list[Path]:
        """The label files in folders named `labels`; without such a folder, those beside images of their names."""
        files = [f for f in self.images.list_label_files(".txt") if f.name not in NO_LABELS]
        in_folders = [f for f in files if LABELS in map(str.lower, self.images.find_below(f).parts[:-1])]
        return in_folders or [f for f in files if self._has_image_beside(f)]

    def _has_image_beside(self, file: Path) -> bool:
        folder = self.images.find_below(file.parent)
        return file.stem in self.images.names.get("" if str(folder) == "." else f"{folder}/", {})

    def convert(self, row: SourceRow) -> list[Sample]:
        """The samples of the image of a label file."""
        image = self.images.find_by_stem(row.file, "image")
        if image.path in self.labelled:
            raise FieldError("image", image.path, "has another label file; remove one of them")
        self.labelled.add(image.path)
        objects = tuple(self._parse_lines(row.file, image))
        if not objects:
            self.notes[NO_OBJECT] += 1
            return []
        split = self.source.split or self._find_split(row.file, image.path)
        record = replace(annotate(self.source, image, objects, split), origin=self.base.resolve().name)
        return make_samples(record, self.source, self.notes)

    def _find_split(self, file: Path, image: str) -> Split | None:
        """The split that folders or data.yaml tell. Raises FieldError if they tell different ones."""
        told = self.about.find_splits(image) | {self.images.tell_split(file)} - {None}
        if len(told) > 1:
            why = f"the folder, or a list of {self.about.file.name}, says {' and '.join(sorted(filter(None, told)))}"
            raise FieldError("split", image, f"{why}; correct one of them, or give --all-in")
        return next(iter(told), None)

    # ---- a label file

    def _parse_lines(self, file: Path, image: ImageRef) -> Iterator[tuple[str, Box]]:
        if file.stat().st_size > MOST_BYTES:
            raise FieldError("labels", file.name, f"more than {MOST_BYTES:,} bytes; no label file is so long")
        try:
            lines = file.read_text(encoding=self.source.encoding).split("\n")
        except UnicodeDecodeError:
            raise FieldError("labels", file.name, f"not {self.source.encoding} text; write it anew") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield self._parse_line(line, f"line {number}", image)

    def _parse_line(self, line: str, field: str, image: ImageRef) -> tuple[str, Box]:
        try:
            label, *values = [float(text) for text in line.split()]
        except ValueError:
            raise FieldError(field, line, "not numbers with blanks between them; correct it") from None
        if (name := self.about.names.get(int(label) if label.is_integer() else -1)) is None:
            names = f"{len(self.about.names)} classes, {min(self.about.names)} to {max(self.about.names)}"
            why = f"class {label:g}, and {self.about.file.name} names {names}"
            raise FieldError(field, line, f"{why}; correct one of them")
        if self.about.has_key_points and len(values) > 4:
            self.notes["key points, of which the box alone is kept"] += 1
            values = values[:4]
        if len(values) == 5:
            self.notes["confidences (the sixth column), which are not used"] += 1
            values = values[:4]
        if len(values) < 4 or len(values) % 2:
            raise FieldError(field, line, "class, centre x, centre y, width, height are wanted, or class and a polygon")
        if not all(0 <= abs(v) <= 1 + ROUNDING for v in values):
            raise FieldError(field, line, "not fractions of the image, 0 to 1; divide pixels by its width and height")
        if len(values) > 4:
            self.notes["polygons of which the extent alone is kept"] += 1
            corners = extent(list(zip(values[::2], values[1::2], strict=True)))
        else:
            x, y, width, height = values
            corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        return name, self._make_box(corners, field, line, image)

    def _make_box(self, corners: tuple[float, ...], field: str, line: str, image: ImageRef) -> Box:
        """The box. What rounding moved beyond the border, by less than a pixel, is put on it."""
        excess = max(-corners[0], -corners[1], corners[2] - 1, corners[3] - 1)
        pixel = 1 / min(image.width, image.height) if image.width and image.height else ROUNDING
        if not excess < max(pixel, ROUNDING):
            raise FieldError(field, line, "outside the image; correct or remove the line")
        if excess > ROUNDING:
            self.notes["boxes less than a pixel beyond the border, put on it"] += 1
        x1, y1, x2, y2 = (min(max(v, 0.0), 1.0) for v in corners)
        if not (x1 < x2 and y1 < y2):
            raise FieldError(field, line, "a box without area; correct or remove the line")
        return Box(x1, y1, x2, y2)

"""Reader of Pascal VOC: an XML file for each image, an `object` in it for each box.

    <annotation><filename>1.jpg</filename><size><width>500</width><height>375</height></size>
      <object><name>liver</name><bndbox><xmin>8</xmin><ymin>12</ymin><xmax>352</xmax><ymax>300</ymax></bndbox></object>
    </annotation>

Files lie in `Annotations`, with `JPEGImages` or `images` beside it, or beside their images, as Roboflow exports them.
ImageSets/Main/train.txt, val.txt and test.txt list the names of a split; folders tell it, too. A row is an image.

VOC counts pixels from 1, and a box includes its last column and row: 1 is taken from left and top, as Detectron2 does
(http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf). Other programs write the layout and count from 0. A
source is read as VOC's unless a left or top below 1 shows that it counts from 0; which, is told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from clinkd.data.readers.annotated import annotate, make_samples, parse_pixel_box
from clinkd.data.readers.names import require_class_name
from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, convert_rows, read_head
from clinkd.data.readers.source import Source
from clinkd.data.readers.split_words import SPLIT_WORDS
from clinkd.data.readers.trees import TreeImages
from clinkd.records import BadInput, Box, ImageRef, Sample, Split

LABEL_FILES = ("*.xml", "*/*.xml", "*/*/*.xml")
MOST_BYTES = 1 << 21  # of an XML file: some 7,000 objects
CORNERS = ("bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
KEYS = {"folder", "filename", "path", "source", "size", "segmented", "owner", "object"}  # of an annotation
NO_MARKS = ("", "0", "Unspecified", "unspecified")  # of pose, truncated, difficult, occluded


def read(source: Source, notes: Counter[str]) -> Iterator[RowResult]:
    """Rows of an XML file, or of all below a folder. Raises BadInput if there are none."""
    reader = _VocReader(source, notes)
    files = reader.images.list_label_files(".xml")
    if not files:
        raise BadInput(f"{source.path}: no .xml files there; give the folder that holds Annotations and the images")
    reader.set_first_pixel(files)
    rows = (SourceRow(file, 1, {"id": file.stem}, {"annotation": str(file)}) for file in files)
    yield from convert_rows(rows, reader.convert)
    reader.images.count_unlabelled(reader.labelled, notes)


def is_file(file: Path) -> bool:
    """Whether the beginning of an XML file is that of an annotation."""
    head = read_head(file) if file.suffix.lower() == ".xml" else ""
    return "<annotation" in head and ("<object" in head or "<filename" in head)


class _VocReader:
    """Reads the XML files of a source. `labelled`: the images that have had one."""

    def __init__(self, source: Source, notes: Counter[str]) -> None:
        self.source, self.notes = source, notes
        self.images = TreeImages(source, notes)
        self.first_pixel = 1  # the number of the first column and row
        self.listed = self._read_lists()
        self.labelled: set[str] = set()

    def set_first_pixel(self, files: list[Path]) -> None:
        """See whether a left or top is below 1, where no file of Pascal VOC has one."""
        for file in files:
            try:
                entries = _parse_xml(file).findall("object")
                lefts = [_read_number(entry, corner) for entry in entries for corner in CORNERS[:2]]
            except FieldError:
                continue  # its row says so
            if any(v < 1 for v in lefts):
                self.first_pixel = 0
                self.notes["source has corners below 1, so that all count from 0, right and bottom excluded"] += 1
                return
        self.notes["source has corners that count from 1, right and bottom included, as Pascal VOC's do"] += 1

    def _read_lists(self) -> dict[str, set[Split]]:
        """The splits of ImageSets/Main, by the path of its folder (of VOC2007, say) and the name of the image."""
        listed: dict[str, set[Split]] = {}
        for file in sorted(f for f in self.images.base.rglob("ImageSets/Main/*.txt") if f.stem in SPLIT_WORDS):
            folder = self.images.find_below(file.parents[2])
            for words in map(str.split, file.read_text(encoding=self.source.encoding).split("\n")):
                if words:
                    listed.setdefault(str(folder / words[0]), set()).add(SPLIT_WORDS[file.stem])
        return listed

    def convert(self, row: SourceRow) -> list[Sample]:
        """The samples of the image of an XML file."""
        root = _parse_xml(row.file)
        image = self._find_image(root, row.file)
        if image.path in self.labelled:
            raise FieldError("filename", image.path, "has another XML file; remove one of them")
        self.labelled.add(image.path)
        notes = Counter(
            f"keys {part.tag!r} of annotations, which are not used" for part in root if part.tag not in KEYS
        )
        objects = tuple(
            self._parse_object(e, f"object {k}", image, notes) for k, e in enumerate(root.findall("object"), 1)
        )
        self.notes.update(notes)
        if not objects:
            self.notes["images without a box, of which nothing is asked"] += 1
            return []
        split = self.source.split or self._find_split(row.file)
        record = replace(annotate(self.source, image, objects, split), origin=self.images.base.resolve().name)
        return make_samples(record, self.source, self.notes)

    def _find_image(self, root: Element, file: Path) -> ImageRef:
        """The image of an XML file, with the size that the file states. Raises FieldError if its true size differs."""
        name = (root.findtext("filename") or "").strip()
        image = self.images.find_named_or_like(file, name, "filename")
        sides = ("size/width", "size/height")
        width, height = (_read_number(root, side) if root.findtext(side) else 0 for side in sides)
        if not (width and height):  # some programs write 0 where they do not know it
            return image
        if image.width is not None and (image.width, image.height) != (width, height):
            why = f"the image has {image.width}x{image.height} pixels; correct it, and the boxes with it"
            raise FieldError("size", f"{width:g}x{height:g}", why)
        return replace(image, width=int(width), height=int(height))

    def _find_split(self, file: Path) -> Split | None:
        """The split that lists or folders tell. Raises FieldError if they tell different ones."""
        by_folder = self.images.tell_split(file)
        places = (str(folder / file.stem) for folder in self.images.find_below(file).parents)
        told = next((self.listed[place] for place in places if place in self.listed), set()) | (
            {by_folder} if by_folder else set()
        )
        if len(told) > 1:
            why = f"the folder, or the lists of ImageSets, say {' and '.join(sorted(told))}"
            raise FieldError("split", file.stem, f"{why}; correct one of them, or give --all-in")
        if self.listed and not told:
            self.notes["images that no list of ImageSets/Main names for train, val or test"] += 1
        return next(iter(told), None)

    def _parse_object(self, entry: Element, field: str, image: ImageRef, notes: Counter[str]) -> tuple[str, Box]:
        name = require_class_name(entry.findtext("name"), f"{field}.name", self.source.class_names)
        boxes = entry.findall("bndbox")
        if len(boxes) != 1:
            raise FieldError(
                f"{field}.bndbox", len(boxes), f"one box is wanted for each object, {name!r}; mend the file"
            )
        marks = {part.tag for part in entry if part.tag not in ("name", "bndbox")}
        notes.update(
            f"keys {tag!r} of objects, which are not used"
            for tag in marks
            if len(entry.findall(tag)[0]) or (entry.findtext(tag) or "").strip() not in NO_MARKS
        )
        x1, y1, x2, y2 = (_read_number(entry, corner) for corner in CORNERS)
        corners = [x1 - self.first_pixel, y1 - self.first_pixel, x2, y2]
        return name, parse_pixel_box([int(v) if v == int(v) else v for v in corners], f"{field}.bndbox", image)


def _parse_xml(file: Path) -> Element:
    """The root of an XML file. Raises FieldError for a file that is none, too long, or declares a document type."""
    if file.stat().st_size > MOST_BYTES:
        raise FieldError("annotation", file.name, f"more than {MOST_BYTES:,} bytes; no annotation is so long")
    try:
        root: Element = fromstring(file.read_bytes(), forbid_dtd=True)
    except DefusedXmlException:
        why = "declares a document type, which may unfold without end or read other files; remove it"
        raise FieldError("annotation", file.name, why) from None
    except (ParseError, ValueError, LookupError) as error:  # the last two: of its encoding
        raise FieldError("annotation", file.name, f"not XML ({error}); mend or remove the file") from None
    if root.tag != "annotation":
        raise FieldError("annotation", f"<{root.tag}>", "no annotation of Pascal VOC; remove the file")
    return root


def _read_number(element: Element, path: str) -> float:
    """The number of pixels at a path below an element. Raises FieldError if there is none."""
    text = element.findtext(path)
    try:
        number = float(text or "nan")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise FieldError(path, text, "a number of pixels is wanted; correct it")
    return number

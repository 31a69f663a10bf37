"""The sheet of a folder of pulled images, to be filled in by a person: a line for each image."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clinkd.data.readers.dicom_annotations import identify
from clinkd.data.readers.dicom_folder import make_sheet_lines
from clinkd.data.readers.rows import find_csv_dialect
from clinkd.records import BadInput
from clinkd.storage import locked, read_cell, write_atomic, write_csv

SHEET = "sheet.csv"


@dataclass
class SheetAddition:
    """How many lines a sheet got, and what has none: `problems`, each with its reason, `annotations`, segmentations
    and reports, which `clinkd data import FOLDER --form dicom` reads beside the images, and `others`, as a PDF."""

    path: Path
    lines: int = 0
    annotations: int = 0
    others: int = 0
    problems: list[str] = field(default_factory=list)


def add_to_sheet(folder: Path) -> SheetAddition:
    """Add a line for each image of a folder that its sheet does not have yet. What a person filled in stays as it is,
    to the byte. Raises BadInput where the sheet cannot be read."""
    added = SheetAddition(folder / SHEET)
    if not folder.is_dir():  # nothing came
        return added
    with locked(folder):  # against another pull
        sheet = _read_sheet(added.path) if added.path.exists() else _OpenedSheet()
        if lines := list(_describe_images(folder, sheet.images, added)):
            head = sheet.head or list(lines[0])
            rows = [[line.get(name, "") for name in head] for line in lines]
            write_atomic(added.path, sheet.content + sheet.encode([*([] if sheet.head else [head]), *rows]))
    added.lines = len(lines)
    return added


def _describe_images(folder: Path, known: set[str], added: SheetAddition) -> Iterator[dict[str, str]]:
    for path in sorted(folder.glob("*/*/*.dcm")):
        relative = path.relative_to(folder).as_posix()
        if relative in known:
            continue
        identity = identify(path)
        if identity.annotates:
            added.annotations += 1
            continue
        if not _shows_image(path, identity.sop_class):
            added.others += 1
            continue
        try:
            yield from make_sheet_lines(folder, relative)
        except BadInput as error:
            added.problems.append(str(error))


def _shows_image(path: Path, sop_class: str) -> bool:
    """Whether an object is an image, by its class, or else by its rows; so is what cannot be read: its reason is told
    where it is described."""
    from pydicom import dcmread
    from pydicom.uid import UID

    if "Image" in UID(sop_class).keyword:
        return True
    try:
        return "Rows" in dcmread(path, stop_before_pixels=True, specific_tags=["Rows"])
    except Exception:  # whatever pydicom meets in a damaged file
        return True


@dataclass
class _OpenedSheet:
    """The bytes of a sheet, how it spells its rows, and its images, without the numbers of frames."""

    content: bytes = b""
    encoding: str = "utf-8"
    separator: str = ","
    head: list[str] = field(default_factory=list)
    images: set[str] = field(default_factory=set)

    def encode(self, rows: list[list[str]]) -> bytes:
        """Rows as this sheet spells them, to stand behind its last one."""
        text = io.StringIO(newline="")
        write_csv(text, rows, separator=self.separator)
        whole = not self.content or self.content.decode(self.encoding, "replace").endswith(("\n", "\r"))
        added = ("" if whole else "\r\n") + text.getvalue()
        if self.encoding == "utf-16":  # the codec would write its mark again
            return added.encode("utf-16-le" if self.content.startswith(b"\xff\xfe") else "utf-16-be")
        return added.encode()


def _read_sheet(path: Path) -> _OpenedSheet:
    content = path.read_bytes()
    encoding, separator, _ = find_csv_dialect(content)
    text = io.StringIO(content.decode(encoding, "surrogateescape"), newline="")
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text, delimiter=separator, strict=True)]
    except csv.Error as error:
        raise BadInput(f"{path}: not CSV ({error}); mend its quotes, or move it away") from None
    rows = [row for row in rows if any(row) and not row[0].startswith("sep=")]
    if rows and "image" not in rows[0]:
        raise BadInput(f"{path}: has no column image, so no line can be added; name it so, or move the sheet away")
    place = rows[0].index("image") if rows else 0
    images = {read_cell(row[place]).partition("#")[0] for row in rows[1:] if len(row) > place}
    return _OpenedSheet(content, encoding, separator, rows[0] if rows else [], images)

"""Read one sheet of an XLSX as a stream, within the limits of a spreadsheet.

A small archive can unfold to gigabytes, and a cell may claim any row. Nothing here grows faster than the cells that
are delivered; each limit is checked before memory is taken, and what breaks one is refused by its row or cell. openpyxl
reads the same files, but holds a row of any length, fills gaps of any length, and takes rows out of order without a
word; from it come the rules of dates. The parts and their names: ECMA-376, part 1, 18.2 to 18.8.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

from clinkd.records import BadInput

MAX_UNPACKED_BYTES = 1 << 30
MAX_RATIO, LEAST_BYTES = 200, 1 << 19  # unpacked to packed: a sheet of equal long rows has 60; fewer bytes may have any
MAX_ROWS, MAX_COLUMNS = 1 << 20, 1 << 14  # of a sheet in Excel and LibreOffice
MAX_TEXT = 1 << 17  # characters of a cell; Excel has 32,767
MAX_TEXTS = 1 << 28  # characters of all cells together: many cells may show one shared text
MAX_PLAIN_BYTES, MAX_PLAIN_ELEMENTS = 1 << 24, 1 << 18  # of a part that is no sheet and no table of texts
MAX_DEPTH = 64
FREE_GAPS, GAPS_A_CELL = 1 << 22, 32  # empty cells that the filled ones may have before them
_CHUNK_BYTES = 1 << 16
_SAVE_ANEW = "save the sheet anew in a spreadsheet program, or as CSV"
_OLE = b"\xd0\xcf\x11\xe0"  # how an XLS and an XLSX with a password begin
_REFERENCE = re.compile(r"([A-Z]{1,3})([1-9][0-9]{0,6})")
_ROW = re.compile(r"[1-9][0-9]{0,6}")
_ESCAPE = re.compile("_x([0-9A-Fa-f]{4})_")

# Of a row: its number, and texts, numbers, truth values, dates and times. A formula that was never computed is "=...".
Row = tuple[int, list[Any]]


class _Relation(NamedTuple):
    kind: str
    part: str


class Workbook:
    """The sheets of an XLSX; use it as a context. Raises BadInput, from any member, if the file is damaged, protected,
    or larger than a spreadsheet can be."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with file.open("rb") as stream:
            if stream.read(4) == _OLE:
                raise BadInput(
                    f"{file}: an old XLS, or protected by a password; save it as XLSX without one, or as CSV"
                )
        try:
            self.archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise self._unreadable(error) from None
        try:
            self._open_parts()
        except BaseException:
            self.archive.close()
            raise

    def __enter__(self) -> Workbook:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()

    def _open_parts(self) -> None:
        members = self.archive.infolist()
        self.names = {member.filename.lower(): member for member in members}
        if len(self.names) < len(members):
            raise BadInput(f"{self.file}: holds two files of one name; {_SAVE_ANEW}")
        unpacked = sum(member.file_size for member in members)
        if unpacked > MAX_UNPACKED_BYTES:
            raise BadInput(
                f"{self.file}: unpacks to {unpacked:,} bytes, more than {MAX_UNPACKED_BYTES:,}; save it as CSV"
            )
        book = next((r.part for r in self._relations("").values() if r.kind == "officeDocument"), "xl/workbook.xml")
        by_id = self._relations(book)
        self.parts = {relation.kind: relation.part for relation in by_id.values()}
        self.sheets: dict[str, str] = {}
        self.starts_1904 = False
        for _, name, attributes in self._plain(book):
            if name == "sheet":
                place = next((by_id.get(v) for key, v in attributes.items() if key.endswith("relationships id")), None)
                if place is None or place.part.lower() not in self.names:
                    raise BadInput(f"{self.file}: its sheet {attributes.get('name', '')!r} is missing; {_SAVE_ANEW}")
                if place.kind != "worksheet":  # a chart, or macros
                    continue
                if self.sheets.setdefault(attributes.get("name", ""), place.part) != place.part:
                    raise BadInput(f"{self.file}: two sheets have the name {attributes['name']!r}; {_SAVE_ANEW}")
            elif name == "workbookPr":
                self.starts_1904 = attributes.get("date1904") in ("1", "true")

    def _relations(self, part: str) -> dict[str, _Relation]:
        folder, name = posixpath.split(part)
        listed = posixpath.join(folder, "_rels", f"{name}.rels")
        if listed.lower() not in self.names:
            return {}
        return {
            a.get("Id", ""): _Relation(
                a.get("Type", "").rpartition("/")[2],
                posixpath.normpath(posixpath.join("/", folder, a.get("Target", ""))).lstrip("/"),
            )
            for _, name, a in self._plain(listed)
            if name == "Relationship"
        }

    # ---- parts

    def _unreadable(self, error: Exception) -> BadInput:
        return BadInput(f"{self.file}: not a readable XLSX ({type(error).__name__}: {error}); {_SAVE_ANEW}")

    def _refuse(self, where: str, why: str) -> BadInput:
        return BadInput(f"{self.file}: {where}: {why}; {_SAVE_ANEW}")

    def _parse(self, part: str, parser: _PartParser) -> Iterator[None]:
        """Give a part to the parser, a chunk a step."""
        member = self.names.get(part.lower())
        if member is None:
            raise self._refuse(part, "this part is missing")
        done, swollen = 0, member.file_size > MAX_RATIO * member.compress_size
        try:
            with self.archive.open(member) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    parser.expat.Parse(chunk, False)
                    yield
                    done += len(chunk)
                    if swollen and done > LEAST_BYTES:
                        raise _TooMuch("", f"{member.compress_size:,} bytes unfold to {member.file_size:,}")
                parser.expat.Parse(b"", True)
                yield
        except _TooMuch as error:
            raise self._refuse(error.where or parser.where() or part, error.why) from None
        except expat.ExpatError as error:
            raise self._refuse(part, f"cannot be read from line {error.lineno} on ({error})") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise self._unreadable(error) from None

    def _plain(self, part: str) -> list[tuple[str, str, dict[str, str]]]:
        """All elements of a part that is small in any workbook: the parent's name, its own, its attributes."""
        member = self.names.get(part.lower())
        if member is not None and member.file_size > MAX_PLAIN_BYTES:
            raise self._refuse(part, f"unpacks to {member.file_size:,} bytes, more than {MAX_PLAIN_BYTES:,}")
        elements: list[tuple[str, str, dict[str, str]]] = []

        def start(parent: str, name: str, attributes: dict[str, str]) -> None:
            elements.append((parent, name, attributes))
            if len(elements) > MAX_PLAIN_ELEMENTS:
                raise _TooMuch("", f"more than {MAX_PLAIN_ELEMENTS:,} elements")

        for _ in self._parse(part, _PartParser(start, lambda *_: None)):
            pass
        return elements

    def _shared_texts(self) -> list[str]:
        texts: list[str] = []
        words = _Words()

        def end(parent: str, name: str, text: str) -> None:
            words.add(parent, name, text)
            if name == "si":
                texts.append(words.take())
                if len(texts) > MAX_ROWS:
                    raise _TooMuch("", f"more than {MAX_ROWS:,} texts")

        if "sharedStrings" in self.parts:
            for _ in self._parse(self.parts["sharedStrings"], _PartParser(lambda *_: None, end)):
                pass
        return texts

    def _date_styles(self) -> dict[str, bool]:
        """The styles of dates and times, by their numbers; whether one is a duration."""
        from openpyxl.styles.numbers import BUILTIN_FORMATS, is_date_format, is_timedelta_format

        if "styles" not in self.parts:
            return {}
        formats: dict[str, str] = {str(number): text for number, text in BUILTIN_FORMATS.items()}
        styles: list[str] = []
        for parent, name, attributes in self._plain(self.parts["styles"]):
            if name == "numFmt":
                formats[attributes.get("numFmtId", "")] = attributes.get("formatCode", "")
            elif name == "xf" and parent == "cellXfs":
                styles.append(formats.get(attributes.get("numFmtId", "0"), ""))
        return {str(n): is_timedelta_format(text) for n, text in enumerate(styles) if text and is_date_format(text)}

    # ---- the cells

    def rows(self, sheet: str) -> Iterator[Row]:
        """The number of each row that the sheet has, from 1, and its cells, None for an empty one."""
        reader = _CellReader(self._shared_texts(), self._date_styles(), self.starts_1904)
        for _ in self._parse(self.sheets[sheet], _PartParser(reader.start, reader.end, reader.where)):
            yield from reader.take()


class _TooMuch(Exception):
    """Something that no spreadsheet has, at a row or cell, or "" where the parser knows the place."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(where, why)
        self.where, self.why = where, why


class _PartParser:
    """Calls `start` (the parent's name, the element's, its attributes) and `end` (both names, the text before it)."""

    def __init__(
        self,
        start: Callable[[str, str, dict[str, str]], None],
        end: Callable[[str, str, str], None],
        where: Callable[[], str] = str,
    ) -> None:
        self.start, self.end, self.where = start, end, where
        self.names, self.text = [""], ""
        self.expat = expat.ParserCreate(namespace_separator=" ")
        self.expat.buffer_text = True
        self.expat.StartDoctypeDeclHandler = self._refuse_doctype
        self.expat.StartElementHandler, self.expat.EndElementHandler = self._start, self._end
        self.expat.CharacterDataHandler = self._add_text

    def _refuse_doctype(self, *_: object) -> None:
        raise _TooMuch("", "declares a document type, which may unfold without end or read other files")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(" ")[2]  # without its name space: the strict form has others
        if len(self.names) > MAX_DEPTH:
            raise _TooMuch("", f"more than {MAX_DEPTH} elements within each other")
        self.start(self.names[-1], name, attributes)
        self.names.append(name)
        self.text = ""

    def _end(self, _: str) -> None:
        name = self.names.pop()
        self.end(self.names[-1], name, self.text)
        self.text = ""

    def _add_text(self, text: str) -> None:
        self.text += text
        if len(self.text) > MAX_TEXT:
            raise _TooMuch("", f"a text of more than {MAX_TEXT:,} characters")


class _Words:
    """The text of a cell, which may be in pieces of several fonts; how it is spoken (Japanese) is no part of it."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, parent: str, name: str, text: str) -> None:
        if name == "t" and parent in ("si", "is", "r"):
            self.text += text
            if len(self.text) > MAX_TEXT:
                raise _TooMuch("", f"a text of more than {MAX_TEXT:,} characters")

    def take(self) -> str:
        text, self.text = self.text.strip(), ""
        return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text) if "_x" in text else text


class _CellReader:
    """Makes rows of the elements of a sheet; `take` gives those that are whole."""

    def __init__(self, texts: list[str], dates: dict[str, bool], starts_1904: bool) -> None:
        self.texts, self.dates, self.starts_1904 = texts, dates, starts_1904
        self.ready: list[Row] = []
        self.row, self.cells = 0, list[Any]()
        self.words = _Words()
        self.kind = self.style = self.value = ""
        self.formula: str | None = None
        self.filled = self.gaps = self.characters = 0

    def take(self) -> list[Row]:
        ready, self.ready = self.ready, []
        return ready

    def where(self) -> str:
        return f"row {self.row}" if self.row else ""

    def start(self, parent: str, name: str, attributes: dict[str, str]) -> None:
        if parent == "sheetData":
            self._begin_row(name, attributes)
        elif parent == "row":
            self._begin_cell(name, attributes)

    def end(self, parent: str, name: str, text: str) -> None:
        if parent == "c":
            self.value = text if name == "v" else self.value
            self.formula = text if name == "f" else self.formula
        elif parent == "row":
            self.cells.append(self._read_value())
        elif parent == "sheetData":
            self.ready.append((self.row, self.cells))
        self.words.add(parent, name, text)

    def _begin_row(self, name: str, attributes: dict[str, str]) -> None:
        stated = attributes.get("r", str(self.row + 1))
        number = int(stated) if name == "row" and _ROW.fullmatch(stated) else 0
        if not self.row < number <= MAX_ROWS:
            above = f"below row {self.row}" if self.row else "at the top"
            raise _TooMuch(f"row {stated[:20]}", f"stands {above}; rows are numbered upward, from 1 to {MAX_ROWS:,}")
        self.row, self.cells = number, []

    def _begin_cell(self, name: str, attributes: dict[str, str]) -> None:
        from openpyxl.utils import column_index_from_string

        last = len(self.cells)
        column = last + 1
        if (stated := attributes.get("r")) is not None or name != "c":
            match = _REFERENCE.fullmatch(stated or "") if name == "c" else None
            here = match is not None and int(match[2]) == self.row
            column = column_index_from_string(match[1]) if match and here else 0
        if not last < column <= MAX_COLUMNS:
            why = f"cells stand once each, from left to right, in the first {MAX_COLUMNS:,} columns"
            raise _TooMuch(f"row {self.row}, cell {(stated or str(column))[:20]}", why)
        self.filled, self.gaps = self.filled + 1, self.gaps + column - 1 - last
        if self.gaps > FREE_GAPS + GAPS_A_CELL * self.filled:
            raise _TooMuch(f"row {self.row}, cell {stated}", "too far to the right of the cells before it; delete it")
        self.cells += [None] * (column - 1 - last)
        self.kind, self.style = attributes.get("t", "n"), attributes.get("s", "0")
        self.value, self.formula = "", None

    def _read_value(self) -> Any:
        words = self.words.take()
        if self.formula is not None and not self.value and self.kind != "str":
            return f"={self.formula}"  # never computed
        try:
            value = words if self.kind == "inlineStr" else self._convert(self.value) if self.value else None
        except (ValueError, IndexError, OverflowError):
            place = f"row {self.row}, column {len(self.cells) + 1}"
            raise _TooMuch(place, f"{self.value[:40]!r} is no value of the kind {self.kind[:20]!r}") from None
        self.characters += len(value) if isinstance(value, str) else 0
        if self.characters > MAX_TEXTS:
            raise _TooMuch("", f"the cells so far have more than {MAX_TEXTS:,} characters")
        return value

    def _convert(self, text: str) -> Any:
        from openpyxl.utils.datetime import MAC_EPOCH, WINDOWS_EPOCH, from_excel, from_ISO8601

        if self.kind == "s":
            return self.texts[int(text) if text.isdecimal() else len(self.texts)]
        if self.kind == "b":
            return bool(int(text))
        if self.kind == "d":
            return from_ISO8601(text)
        if self.kind != "n":
            return text.strip()  # the text of a formula, or an error
        number = float(text) if set(text) & set(".eE") else int(text)
        if self.style not in self.dates:
            return number
        try:
            return from_excel(
                number, MAC_EPOCH if self.starts_1904 else WINDOWS_EPOCH, timedelta=self.dates[self.style]
            )
        except (ValueError, OverflowError):
            return "#VALUE!"  # as the spreadsheet shows it

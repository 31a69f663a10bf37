"""Read one sheet of an XLSX as a stream, within the limits of a spreadsheet.

A small archive can unfold to gigabytes, and a cell may claim any row. Nothing here grows faster than the cells that
are delivered; each limit is checked before memory is taken, and what breaks one is refused by its row or cell. openpyxl
reads the same files, but holds a row of any length, fills gaps of any length, and takes rows out of order without a
word; from it come the rules of dates. The parts and their names: ECMA-376, part 1, 18.2 to 18.8.
"""

from __future__ import annotations

import datetime
import math
import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from clinkd.data.readers.number_formats import MOST_DIGITS, show_date, show_general, show_number
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
_AS_STORED = ("", "General", "@")
_BY_COMPUTER = ("14", "22")  # numbers of formats that are shown as the computer's language has it
_MAX_EXPONENT = 308

_AS_TEXT = "give its column the format Text, and type it again"
UNCOMPUTED = "a formula that was never computed; open the sheet, save it, and try again"
ERROR_CELL = "an error of the spreadsheet in a cell; mend it"
_STRUCK = (
    "struck out in the spreadsheet, which may mean deleted: delete the cell or row, or take the line through it away"
)


class SheetCell(str):
    """A cell as it is shown, where there is more to know: the number that is stored, and why it must not be used."""

    def __new__(cls, shown: str, why: str = "", exact: str = "") -> SheetCell:
        cell = super().__new__(cls, shown)
        cell.why, cell.exact = why, exact
        return cell

    why: str  # "" for a cell that may be used
    exact: str  # "" for a cell that is no number


class _Style(NamedTuple):
    """How cells look: the code of their format, whether it is a date's, and whether they are struck out."""

    code: str | None = ""  # None: the computer decides how such a cell is shown
    date: bool = False
    struck: bool = False


Row = tuple[int, list[str]]  # its number, and its cells as they are shown, "" for an empty one


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
        self.hidden_rows = 0  # with a filled cell; counted by `rows`
        self.hidden_columns: list[tuple[int, int]] = []  # first and last, from 1

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
            for _ in self._parse(self.parts["sharedStrings"], _PartParser(words.start, end)):
                pass
        return texts

    def _styles(self) -> list[_Style]:
        """The styles of cells, by their numbers."""
        from openpyxl.styles.numbers import BUILTIN_FORMATS, is_date_format

        if "styles" not in self.parts:
            return []
        formats: dict[str, str | None] = {str(number): text for number, text in BUILTIN_FORMATS.items()}
        formats |= dict.fromkeys(_BY_COMPUTER)
        struck: list[bool] = []
        styles: list[_Style] = []
        font_parent = ""
        for parent, name, attributes in self._plain(self.parts["styles"]):
            if name == "numFmt":
                formats[attributes.get("numFmtId", "")] = attributes.get("formatCode", "")
            elif name == "font":
                font_parent = parent
                struck += [False] * (parent == "fonts")
            elif name == "strike" and font_parent == "fonts":
                struck[-1] = attributes.get("val") not in ("0", "false")
            elif name == "xf" and parent == "cellXfs":
                code = formats.get(attributes.get("numFmtId", "0"))
                font = attributes.get("fontId", "0")
                is_struck = font.isdecimal() and int(font) < len(struck) and struck[int(font)]
                styles.append(_Style(code, code is None or is_date_format(code), is_struck))
        return styles

    def _merged_cells(self, part: str) -> list[tuple[int, int, int, int]]:
        """The merged ranges of a sheet: first and last row, first and last column. They stand behind all rows."""
        from openpyxl.utils.cell import range_boundaries

        ranges: list[tuple[int, int, int, int]] = []

        def start(parent: str, name: str, attributes: dict[str, str]) -> None:
            if parent == "mergeCells" and name == "mergeCell":
                try:
                    left, top, right, bottom = range_boundaries(attributes.get("ref", ""))
                except (ValueError, TypeError):
                    raise _TooMuch(attributes.get("ref", "")[:20], "is no range of merged cells") from None
                ranges.append((top or 1, bottom or MAX_ROWS, left or 1, right or MAX_COLUMNS))
                if len(ranges) > MAX_PLAIN_ELEMENTS:
                    raise _TooMuch("", f"more than {MAX_PLAIN_ELEMENTS:,} merged ranges")

        if self._mentions(part, b"mergeCell "):
            for _ in self._parse(part, _PartParser(start, lambda *_: None)):
                pass
        return sorted(ranges)

    def _mentions(self, part: str, word: bytes) -> bool:
        """Whether the bytes of a part hold a word: far faster than parsing it."""
        member, before = self.names[part.lower()], b""
        if member.file_size > max(MAX_RATIO * member.compress_size, LEAST_BYTES):
            return False  # `_parse` refuses it
        try:
            with self.archive.open(member) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    if word in before + chunk:
                        return True
                    before = chunk[-len(word) :]
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
            pass  # so does it here
        return False

    # ---- the cells

    def rows(self, sheet: str) -> Iterator[Row]:
        """The number of each row that the sheet has, from 1, and its cells as they are shown.

        A cell that may mean something else than it shows is a `SheetCell` with the reason. Hidden rows and columns are
        read and counted, because a filter that was left on hides good rows, and other programs read them, too.
        """
        part = self.sheets[sheet]
        reader = _CellReader(self._shared_texts(), self._styles(), self.starts_1904, self._merged_cells(part))
        for _ in self._parse(part, _PartParser(reader.start, reader.end, reader.where)):
            yield from reader.take()
        self.hidden_rows, self.hidden_columns = reader.hidden_rows, reader.hidden_columns


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
        self.text, self.struck = "", False

    def start(self, parent: str, name: str, attributes: dict[str, str]) -> None:
        if parent == "rPr" and name == "strike":
            self.struck |= attributes.get("val") not in ("0", "false")

    def add(self, parent: str, name: str, text: str) -> None:
        if name == "t" and parent in ("si", "is", "r"):
            self.text += text
            if len(self.text) > MAX_TEXT:
                raise _TooMuch("", f"a text of more than {MAX_TEXT:,} characters")

    def take(self) -> str:
        text, struck, self.text, self.struck = self.text.strip(), self.struck, "", False
        text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text) if "_x" in text else text
        return SheetCell(text, _STRUCK) if struck else text


class _CellReader:
    """Makes rows of the elements of a sheet; `take` gives those that are whole."""

    def __init__(
        self, texts: list[str], styles: list[_Style], starts_1904: bool, merged: list[tuple[int, int, int, int]]
    ) -> None:
        self.texts, self.styles, self.starts_1904, self.merged = texts, styles, starts_1904, merged[::-1]
        self.ready: list[Row] = []
        self.row, self.cells = 0, list[str]()
        self.words = _Words()
        self.kind = self.value = ""
        self.style = _Style()
        self.formula: str | None = None
        self.filled = self.gaps = self.characters = self.hidden_rows = 0
        self.hidden_columns: list[tuple[int, int]] = []
        self.is_hidden = False
        self.open_ranges: list[tuple[int, int, int, int]] = []  # merged ones of this row

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
        elif parent == "cols" and attributes.get("hidden") in ("1", "true"):
            first, last = attributes.get("min", ""), attributes.get("max", "")
            if first.isdecimal() and last.isdecimal() and len(self.hidden_columns) < MAX_COLUMNS:
                self.hidden_columns.append((int(first), int(last)))
        else:
            self.words.start(parent, name, attributes)

    def end(self, parent: str, name: str, text: str) -> None:
        if parent == "c":
            self.value = text if name == "v" else self.value
            self.formula = text if name == "f" else self.formula
        elif parent == "row":
            self.cells.append(self._read_value())
        elif parent == "sheetData":
            if self.merged or self.open_ranges:
                self._mark_merged_cells()
            self.hidden_rows += self.is_hidden and any(self.cells)
            self.ready.append((self.row, self.cells))
        self.words.add(parent, name, text)

    def _begin_row(self, name: str, attributes: dict[str, str]) -> None:
        stated = attributes.get("r", str(self.row + 1))
        number = int(stated) if name == "row" and _ROW.fullmatch(stated) else 0
        if not self.row < number <= MAX_ROWS:
            above = f"below row {self.row}" if self.row else "at the top"
            raise _TooMuch(f"row {stated[:20]}", f"stands {above}; rows are numbered upward, from 1 to {MAX_ROWS:,}")
        self.row, self.cells, self.is_hidden = number, [], attributes.get("hidden") in ("1", "true")

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
        self.filled += 1
        self._count_gaps(column - 1 - last, f"cell {stated}")
        self.cells += [""] * (column - 1 - last)
        style = attributes.get("s", "0")
        is_known = style.isdecimal() and int(style) < len(self.styles)
        self.kind, self.style = attributes.get("t", "n"), self.styles[int(style)] if is_known else _Style()
        self.value, self.formula = "", None

    def _count_gaps(self, gaps: int, place: str) -> None:
        self.gaps += gaps
        if self.gaps > FREE_GAPS + GAPS_A_CELL * self.filled:
            raise _TooMuch(f"row {self.row}, {place}", "too far to the right of the cells before it; delete it")

    def _mark_merged_cells(self) -> None:
        """Mark the cells of the row that a merged range covers, other than its first one, which has the value."""
        self.open_ranges = [merged for merged in self.open_ranges if merged[1] >= self.row]
        while self.merged and self.merged[-1][0] <= self.row:
            self.open_ranges.append(self.merged.pop())
        for top, bottom, left, right in self.open_ranges:
            self._count_gaps(right - left + 1, "a merged cell")
            blank = SheetCell(
                "", f"part of a merged cell of rows {top} to {bottom}: unmerge it, and fill in each of its cells"
            )
            self.cells += [""] * (right - len(self.cells))
            first = left + 1 if self.row == top else left
            self.cells[first - 1 : right] = [cell or blank for cell in self.cells[first - 1 : right]]

    def _read_value(self) -> str:
        words = self.words.take()
        if self.formula is not None and not self.value and self.kind != "str":
            return SheetCell(f"={self.formula}", UNCOMPUTED)
        try:
            cell = words if self.kind == "inlineStr" else self._convert(self.value) if self.value else ""
        except (ValueError, IndexError, OverflowError, ArithmeticError):
            place = f"row {self.row}, column {len(self.cells) + 1}"
            raise _TooMuch(place, f"{self.value[:40]!r} is no value of the kind {self.kind[:20]!r}") from None
        self.characters += len(cell)
        if self.characters > MAX_TEXTS:
            raise _TooMuch("", f"the cells so far have more than {MAX_TEXTS:,} characters")
        return SheetCell(cell, _STRUCK) if self.style.struck and cell else cell

    def _convert(self, text: str) -> str:
        from openpyxl.utils.datetime import from_ISO8601

        if self.kind == "s":
            return self.texts[int(text) if text.isdecimal() else len(self.texts)]
        if self.kind == "b":
            return "TRUE" if int(text) else "FALSE"
        if self.kind == "d":
            from_ISO8601(text)
            return text.strip()
        if self.kind != "n":
            return text.strip()  # the text of a formula, or an error
        number = Decimal(text)
        if not number.is_finite() or abs(number.adjusted()) > _MAX_EXPONENT:
            raise ValueError(text)
        return self._show_date(number) if self.style.date else self._show_number(number)

    def _show_number(self, number: Decimal) -> str:
        general = show_general(number)
        if number == number.to_integral_value() and number.adjusted() >= MOST_DIGITS:
            why = f"a number of more than {MOST_DIGITS} digits, of which a spreadsheet keeps {MOST_DIGITS}: {_AS_TEXT}"
            return SheetCell(general, why)
        if self.style.code in _AS_STORED:
            return general
        shown = show_number(number, self.style.code or "")
        if shown is None:
            why = f"it is shown by the format {self.style.code}, which is not read: {_AS_TEXT}"
            return SheetCell(general, why, general)
        return shown if shown == general else SheetCell(shown, "", general)

    def _show_date(self, number: Decimal) -> str:
        from openpyxl.utils.datetime import MAC_EPOCH, WINDOWS_EPOCH, from_excel

        epoch = MAC_EPOCH if self.starts_1904 else WINDOWS_EPOCH
        try:
            moment = from_excel(float(number) if number >= 0 else math.inf, epoch)
        except (ValueError, OverflowError):
            return SheetCell("#VALUE!", ERROR_CELL)  # the spreadsheet shows ####
        if isinstance(moment, datetime.time):
            moment = datetime.datetime.combine(epoch, moment)
        shown, is_whole = show_date(moment, self.style.code) if self.style.code is not None else (None, True)
        if shown is not None and is_whole:
            return shown
        what = f"{moment:%Y-%m-%d}" if number >= 1 else f"{moment:%H:%M:%S}"
        how = f"and shows {shown}" if shown is not None else "shown as each computer has it"
        return SheetCell(shown or what, f"the spreadsheet took it for the date or time {what}, {how}: {_AS_TEXT}")

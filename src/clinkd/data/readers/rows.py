"""Read files row by row: JSON lists (as a stream), JSON lines, CSV and XLSX. Each row knows its place.

No row is skipped: each becomes a `RowResult` with its samples or with its error. If nothing can be read after damage
(a JSON list that is cut in the middle), the error names the byte and the last good row.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from clinkd.data.images import is_named_as_image
from clinkd.data.readers.xlsx import ERROR_CELL, MAX_COLUMNS, UNCOMPUTED, SheetCell, Workbook
from clinkd.records import BOX_MARK, RESERVED, BadInput, ImageRef, Sample
from clinkd.spelling import find_near, suggest
from clinkd.storage import read_cell

CHUNK_BYTES = 1 << 22
HEAD_BYTES = 1 << 16  # which tell the form of a file
MAX_ROW_BYTES = 1 << 24  # a file without row ends must not fill the memory
SHEET_SUFFIXES = (".csv", ".tsv", ".xlsx", ".xlsm")  # suffixes
ROW_FILES = (*SHEET_SUFFIXES, ".jsonl", ".json")
MANY = 20  # sheets named in a message

Kind = Literal["row", "duplicate", "split", "near-duplicate", "side", "frame", "length"]
Word = TypeVar("Word", bound=str)

# What programs write for a cell without a value; in JSON, which has null, "None" is a word.
_ABSENT = {"nan", "NaN", "NAN", "-nan", "<NA>", "NaT", "N/A", "n/a", "#N/A", "#NV"}
_ABSENT_CELLS = {*_ABSENT, "None", "NULL", "null"}

_IMAGE_KEYS = ("image", "image_name", "img_name", "image_path", "file_name", "path")
_BOX_MARKS = re.compile(r"</?(?:box|ref|quad)>|<\|(?:box|object_ref|quad)_\w+\|>")
_CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # and changes of text direction


class FieldError(Exception):
    """One field of the current row is wrong. `why` says how to mend it."""

    def __init__(self, field: str, value: Any, why: str) -> None:
        super().__init__(field, value, why)
        self.field, self.value, self.why = field, value, why


@dataclass(frozen=True, slots=True)
class RowError:
    """The error of one row; or of several rows together, if `kind` is not "row"."""

    file: str
    row: int  # from 1, as a person counts: lines of JSON lines, entries of a list, lines of a sheet with its head
    id: str  # of the record, else its image; "?" if it has neither
    field: str
    value: str
    why: str  # what is wrong, and how to mend it
    kind: Kind = "row"
    image: str = ""  # path of the row's image, "" if it names none

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}{self.describe()}"

    def describe(self) -> str:
        """What is wrong with the row, from its id on; with its image, where that is neither the id nor the value."""
        name = f", id {self.id}" if self.id != "?" else ""
        image = f" (image {self.image})" if self.image not in ("", self.id, self.value) else ""
        return f"{name}: {self.field} = {self.value}: {self.why}{image}"

    def to_json(self) -> dict[str, Any]:
        members = {"reason" if name == "why" else name: value for name, value in asdict(self).items()}
        return members if self.image else {name: value for name, value in members.items() if name != "image"}


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One record as the file has it. A quarantine file keeps `raw`."""

    file: Path
    number: int
    value: dict[str, Any]
    raw: Any


@dataclass(frozen=True, slots=True)
class RowResult:
    """The result of one row: samples, or a problem, or images of a `group` that have no question yet."""

    file: str
    row: int
    samples: tuple[Sample, ...] = ()
    problem: RowError | None = None
    raw: Any = None
    images: tuple[ImageRef, ...] = ()
    group: str = ""
    left_out: str = ""  # why a good row makes no sample, if an error of another row is the cause


def convert_rows(
    rows: Iterable[SourceRow | RowResult], make: Callable[[SourceRow], Sequence[Sample]]
) -> Iterator[RowResult]:
    """Yield the result of each row: the samples from `make`, or the FieldError that `make` raised."""
    for row in rows:
        if isinstance(row, RowResult):
            yield row
            continue
        try:
            yield RowResult(str(row.file), row.number, tuple(make(row)), raw=row.raw)
        except FieldError as fault:
            fault.why += _suggest_key(row.value, fault.field) if fault.value is None else ""
            yield make_error_result(row.file, row.number, fault, row.raw, row.value, image=_find_image(row.value))


def _find_image(value: dict[str, Any]) -> str:
    """The image that a row names, "" if none."""
    return next((name for key in _IMAGE_KEYS if isinstance(name := value.get(key), str)), "")


def _suggest_key(value: Any, field: str) -> str:
    """The misspelt key of a field, such as objects[0].name, that a row lacks: "; is its key 'naem' meant for it?"."""
    *path, last = re.findall(r"\w+", field) or [""]
    for step in path:
        inside = value.get(step) if isinstance(value, dict) else None
        if isinstance(value, list):
            inside = value[int(step)] if step.isdecimal() and int(step) < len(value) else None
        value = inside
    if not isinstance(value, dict) or last in value:
        return ""
    near = find_near(last, value)
    return f"; is its key {shorten_value(near)!r} meant for it?" if near else ""


def make_error_result(  # noqa: PLR0913
    file: Path, number: int, fault: FieldError, raw: Any, value: Any = None, kind: Kind = "row", image: str = ""
) -> RowResult:
    """The result of a row that has an error."""
    keys = ("id", "qid", "question_id", "image", "image_name", "img_name", "image_path")
    name = next((value[k] for k in keys if k in value), "?") if isinstance(value, dict) else "?"
    row_id = shorten_value(str(name))
    shown = shorten_value(fault.value)
    problem = RowError(str(file), number, row_id, fault.field, shown, fault.why, kind, shorten_value(image))
    return RowResult(str(file), number, problem=problem, raw=raw)


def shorten_value(value: Any) -> str:
    """The value as one line of at most 80 characters."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value[:81] if isinstance(value, list) else value, ensure_ascii=False, default=str)
        except RecursionError:
            value = "brackets within brackets"
    text = _escape_unprintable(value[:81])
    return text if len(text) <= 80 else text[:77] + "..."


def _escape_unprintable(text: str) -> str:
    """Text for any terminal and any file: line ends, control characters and torn encodings become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


# ---- fields ---------------------------------------------------------------------------------------------------------


def require_words(value: Any, field: str) -> str:
    """The text with white space folded. Raises FieldError if it is empty, torn, no text, or has a mark of a model."""
    if not isinstance(value, str) or not value.strip():
        raise FieldError(field, value, "empty or not text; fill it in, or remove it")
    if BOX_MARK in value:
        raise FieldError(field, value, f"{BOX_MARK} is kept for the places of boxes; write it otherwise")
    return fold_plain_text(value, field)


def fold_plain_text(value: str, field: str) -> str:
    """The text with white space folded. Raises FieldError if it has a mark of a model or a control character."""
    text = " ".join(value.split())
    if "<" in text and (mark := RESERVED.search(text) or _BOX_MARKS.search(text)):
        why = f"{mark.group()} is a mark of models and no text; remove it, or write it otherwise"
        raise FieldError(field, value, why)
    check_unicode(value, field)
    if not text.isprintable() and (character := _CONTROL_CHARACTERS.search(text)):
        raise FieldError(field, value, f"the control character U+{ord(character.group()):04X}; remove it")
    return text


def check_unicode(value: str, field: str) -> None:
    """Raise FieldError if the text has half a character, because no file can store it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        why = f"half a character at place {error.start + 1} (an escape or encoding torn apart); write the text anew"
        raise FieldError(field, value, why) from None


def require_answer(value: Any, field: str, notes: Counter[str]) -> str:
    """The text of an answer. A number is taken as text, which `notes` counts; JSON's true and false are not."""
    if isinstance(value, bool):
        raise FieldError(field, value, 'not text: it may mean "yes" or "true", "no" or "false"; write the word')
    if isinstance(value, int | float):
        notes["answers that are numbers, taken as text"] += 1
        value = str(value)
    return require_words(value, field)


def count_unused_keys(value: dict[str, Any], used: Collection[str], notes: Counter[str], prefix: str = "") -> None:
    """Count each key that no reader uses, unless it is empty. `prefix` names the object that it is a key of."""
    for key in value:
        if key not in used and value[key] not in (None, "", [], {}):
            notes[f"keys {prefix + key!r}, which are not used"] += 1


def require_choice(value: Any, choices: Sequence[Word], field: str) -> Word:
    """The word of `choices` that equals `value`. Raises FieldError if there is none."""
    for word in choices:
        if value == word:
            return word
    hint = suggest(value, choices) if isinstance(value, str) else ""
    raise FieldError(field, value, f"one of {', '.join(choices)} is wanted{hint}")


def get_list(entry: dict[str, Any], key: str) -> list[Any]:
    """The list of a key, empty if the key is absent."""
    value = entry.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise FieldError(key, value, "a list is wanted")
    return value


def iterate_objects(entry: dict[str, Any], key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a list, with their numbers from 0."""
    for i, member in enumerate(get_list(entry, key)):
        if not isinstance(member, dict):
            raise FieldError(f"{key}[{i}]", member, "an object is wanted")
        yield i, member


# ---- JSON -----------------------------------------------------------------------------------------------------------


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object. A repeated key is an error, because JSON readers keep the last value without a word."""
    members = {key: None if type(value) is str and value in _ABSENT else value for key, value in pairs}
    if len(members) != len(pairs):
        repeated_key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        repeated_values = [value for key, value in pairs if key == repeated_key]
        raise FieldError(repeated_key, repeated_values, "the key stands twice; keep one of them")
    return members


def _parse_constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_make_object, parse_constant=_parse_constant)
_LENIENT_DECODER = json.JSONDecoder()  # finds the end of a value that the other refuses
_MEND = "mend or remove the row"
_ONE_ENCODING = "save the whole file in one encoding, or name it with --encoding"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BLANKS = " \t\r\n\ufeff"


def json_rows(file: Path, encoding: str = "utf-8") -> Iterator[SourceRow | RowResult]:
    """Rows of a JSON list of objects, or of JSON lines. Raises BadInput if the file is absent, empty or neither.

    Damage ends a JSON list: the rows before it are delivered, and the last result says how much was not read.
    """
    encoding = normalize_encoding(encoding)
    with _open_file(file) as stream:
        head = stream.read(64)
        while head and not head.strip():
            head = stream.read(64)
    if not head:
        raise BadInput(f"{file}: the file has no rows; give JSON, a list of objects or one object a line")
    _refuse_utf16(file, head, encoding)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    is_list = _is_wide_encoding(encoding) or start == b"["
    yield from _read_list_rows(file, encoding) if is_list else _read_line_rows(file, encoding)


def read_head(file: Path, encoding: str = "utf-8") -> str:
    """The beginning of a text file, without a mark and blanks before it. Wrong bytes are replaced."""
    with file.open("rb") as stream:
        return stream.read(HEAD_BYTES).decode(encoding, "replace").lstrip(_BLANKS)


def normalize_encoding(encoding: str) -> str:
    """The usual name of an encoding. Raises BadInput if it is unknown."""
    try:
        canonical = codecs.lookup(encoding).name
        "a".encode(canonical)
    except LookupError:
        raise BadInput(f"--encoding {encoding}: no such encoding; utf-8, utf-16, latin-1 or cp1252 are usual") from None
    return "utf-8" if canonical == "utf-8-sig" else canonical


def _is_wide_encoding(encoding: str) -> bool:
    """Whether each letter takes several bytes."""
    return encoding.startswith(("utf-16", "utf-32"))


def _refuse_utf16(file: Path, head: bytes, encoding: str) -> None:
    if (head[:2] in _UTF16_MARKS or head.count(b"\0") > len(head) / 3) and not _is_wide_encoding(encoding):
        raise BadInput(f"{file}: written as UTF-16, it seems; save it as UTF-8, or give --encoding utf-16")


def _open_file(file: Path) -> IO[bytes]:
    if not file.is_file():
        raise BadInput(f"{file}: no such file; check the path")
    return file.open("rb")


def _read_line_rows(file: Path, encoding: str) -> Iterator[SourceRow | RowResult]:
    has_rows = False
    with file.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_ROW_BYTES), b""), start=1):
            offset = stream.tell() - len(line)
            if not has_rows and line.strip() == b"{":
                raise BadInput(f"{file}: one object over several lines; give a list of objects, or one object a line")
            if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                has_rows = True
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = stream.readline(MAX_ROW_BYTES)
                why = f"longer than {MAX_ROW_BYTES:,} bytes (from byte {offset}); put one row on a line"
                fault = FieldError("row", line[:80].decode(encoding, "replace"), why)
                yield make_error_result(file, number, fault, None)
            elif line.strip():
                has_rows = True
                yield _parse_line(file, number, line, encoding, offset)
    if not has_rows:
        raise BadInput(f"{file}: the file has no rows; give one JSON object a line")


def _parse_line(file: Path, number: int, line: bytes, encoding: str, offset: int) -> SourceRow | RowResult:
    text = line.decode(encoding, "backslashreplace")
    raw = text.strip(_BLANKS)
    try:
        line.decode(encoding)
        return SourceRow(file, number, parse_object(raw), raw)
    except UnicodeDecodeError as error:
        why = f"byte {offset + error.start} (0x{line[error.start]:02x}) is not {encoding}; {_ONE_ENCODING}"
        fault = FieldError("row", raw, why)
    except json.JSONDecodeError as error:
        before = text[: text.index(raw) + error.pos]
        why = f"not JSON at byte {offset + len(before.encode(encoding))} ({error.msg}); {_MEND}"
        fault = FieldError("row", raw, why)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        fault = FieldError("row", raw, f"not usable JSON ({error}); {_MEND}")
    except FieldError as error:
        fault = error
    return make_error_result(file, number, fault, raw)


def _require_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError("row", value, f"not a JSON object; {_MEND}")
    return value


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object of a text. Raises FieldError where it is no object, or has a key twice."""
    return _require_object(_DECODER.decode(text))


class _JsonDamage(Exception):
    """Damage (byte and reason) after which the reader cannot see where a row ends."""


class _JsonWindow:
    """A window of text that moves through a file; `byte` is the place of `text[position]` in the file."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self.stream, self.encoding, self.wide = stream, encoding, _is_wide_encoding(encoding)
        # A wrong byte is kept as a lone surrogate, so that only its row has an error.
        self.errors = "surrogatepass" if self.wide else "surrogateescape"
        self.decoder = codecs.getincrementaldecoder(encoding)(self.errors)
        self.text, self.position, self.ended = "", 0, False
        self.byte = len("".encode(encoding))  # the decoder removes a byte order mark
        self.markless_encoding = f"{encoding[:6]}-le" if self.wide else encoding

    def read_more(self, chunk_bytes: int) -> None:
        data = self.stream.read(chunk_bytes)
        self.ended = len(data) < chunk_bytes
        try:
            new_text = self.decoder.decode(data, final=self.ended and not self.wide)
        except UnicodeDecodeError as error:
            raise self.damage(len(self.text), f"not {self.encoding}: {error.reason}") from None
        except UnicodeError:  # utf-16 and utf-32 need a mark at the start
            names = f"{self.encoding}-le or {self.encoding}-be"
            raise self.damage(0, f"{self.encoding} without a byte order mark: give --encoding {names}") from None
        self.text = self.text[self.position :] + new_text
        self.position = 0

    def advance(self, end: int) -> str:
        """Move to `text[end]` and return the text in between."""
        passed_text = self.text[self.position : end]
        self.byte += self.count_bytes(passed_text)
        self.position = end
        return passed_text

    def count_bytes(self, text: str) -> int:
        return len(text.encode(self.markless_encoding, self.errors))

    def damage(self, end: int, why: str) -> _JsonDamage:
        """The error for damage at `text[end]`."""
        return _JsonDamage(f"not JSON at byte {self.byte + self.count_bytes(self.text[self.position : end])} ({why})")

    def next_character(self) -> str:
        """The next character that is not blank, "" at the end of the file."""
        while True:
            end = self.position
            while end < len(self.text) and self.text[end] in _BLANKS:
                end += 1
            self.advance(end)
            if end < len(self.text) or self.ended:
                return self.text[end : end + 1]
            self.read_more(CHUNK_BYTES)

    def check_encoding(self, raw: str) -> None:
        """Raise FieldError if `raw`, the text just passed, has a byte of another encoding."""
        try:
            raw.encode()
        except UnicodeEncodeError as error:
            byte = self.byte - self.count_bytes(raw[error.start :])
            shown = "half a character" if self.wide else f"0x{ord(raw[error.start]) - 0xDC00:02x}"
            why = f"byte {byte} ({shown}) is not {self.encoding}; {_ONE_ENCODING}"
            raise FieldError("row", raw, why) from None


def _read_list_rows(file: Path, encoding: str) -> Iterator[SourceRow | RowResult]:
    """Rows of a JSON list. Only a window of the file is in memory."""
    with file.open("rb") as binary_file:
        stream = _JsonWindow(binary_file, encoding)
        last_good: SourceRow | None = None
        number = 0
        try:
            if stream.next_character() != "[":
                hint = "; lines of JSON must be UTF-8" if stream.wide else ""
                raise BadInput(f"{file}: not a JSON list of objects in {encoding}{hint}")
            stream.advance(stream.position + 1)
            if stream.next_character() == "]":
                raise BadInput(f"{file}: the list has no rows")
            next_character = ","
            while next_character == ",":
                row = _read_list_row(file, number + 1, stream)
                number += 1
                last_good = row if isinstance(row, SourceRow) else last_good
                yield row
                if (next_character := stream.next_character()) not in (",", "]"):
                    shown = shorten_value(next_character) or "the file ends"
                    raise stream.damage(stream.position, f"{shown} where , or ] is wanted")
                stream.advance(stream.position + 1)
            if stream.next_character():
                raise stream.damage(stream.position, "something follows the end of the list")
        except _JsonDamage as damage:
            good_rows = "no row before it is good"
            if last_good is not None:
                shown_id = f" (id {shorten_value(last_good.value['id'])})" if "id" in last_good.value else ""
                good_rows = f"the last good row is {last_good.number}{shown_id}"
            size = file.stat().st_size
            lost = f"{size - stream.byte:,} of {size:,} bytes, from byte {stream.byte} on, were not read"
            value = stream.text[stream.position : stream.position + 200]
            fault = FieldError("file", value, f"{damage}; {good_rows}; {lost}; bring back a whole copy, or mend it")
            yield make_error_result(file, number + 1, fault, value)


def _read_list_row(file: Path, number: int, stream: _JsonWindow) -> SourceRow | RowResult:
    """Read the next value of the list as a row."""
    stream.next_character()
    value, raw = _read_next_value(stream)
    try:
        stream.check_encoding(raw)
        if isinstance(value, FieldError):
            raise value
        return SourceRow(file, number, _require_object(value), raw)
    except FieldError as fault:
        return make_error_result(file, number, fault, raw)


def _read_next_value(stream: _JsonWindow) -> tuple[Any, str]:
    """The next value and its text. If a complete value has an error inside, the FieldError replaces the value."""
    chunk_bytes = CHUNK_BYTES
    while True:
        window_length = len(stream.text) - stream.position
        try:
            value, end = _decode_value(stream)
            if end < len(stream.text) or stream.ended or isinstance(value, dict):
                return value, stream.advance(end)
        except json.JSONDecodeError as error:
            cut = _may_be_cut_short(error) or (not stream.ended and error.pos > len(stream.text) - 16)
            if not cut or stream.ended or window_length >= MAX_ROW_BYTES:
                why = error.msg
                if cut and stream.ended:
                    why = "the file ends inside a row" if window_length else "the file ends where a row is wanted"
                elif cut:
                    why = f"a row of more than {MAX_ROW_BYTES:,} bytes, or a quotation mark is missing"
                raise stream.damage(error.pos, why) from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
            raise stream.damage(stream.position, " ".join(str(error).split())) from None
        stream.read_more(chunk_bytes)  # the error may only come from the end of the window
        chunk_bytes *= 2


def _may_be_cut_short(error: json.JSONDecodeError) -> bool:
    """Whether more text might remove the error."""
    if error.msg.startswith("Unterminated string"):
        return True
    rest = error.doc[error.pos : error.pos + 16].strip()
    return ("escape" in error.msg and len(rest) < 12) or any(word.startswith(rest) for word in _TOKEN_STARTS)


_TOKEN_STARTS = ("true", "false", "null", "NaN", "-Infinity", "Infinity", ".", "e+", "e-", "E+", "E-")


def _decode_value(stream: _JsonWindow) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(stream.text, stream.position)
    except FieldError as fault:
        return fault, _LENIENT_DECODER.raw_decode(stream.text, stream.position)[1]


def load_json_file(file: Path, encoding: str = "utf-8") -> Any:
    """The value of a JSON file, read at once. Raises BadInput with the byte and the reason if it cannot be read."""
    encoding = normalize_encoding(encoding)
    with _open_file(file) as stream:
        data = stream.read()
    if not data.strip():
        raise BadInput(f"{file}: the file is empty; bring back a whole copy")
    _refuse_utf16(file, data[:64], encoding)
    try:
        return _DECODER.decode(data.decode(encoding).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        why = f"byte {error.start} (0x{data[error.start]:02x}) is not {encoding}; {_ONE_ENCODING}"
    except json.JSONDecodeError as error:
        error_byte = len(data) - len(error.doc[error.pos :].encode(encoding, "surrogatepass"))
        if encoding == "utf-16":
            error_byte += 2  # `encode` wrote a byte order mark
        ends = error_byte >= len(data.rstrip()) - 1 or error.msg.startswith("Unterminated string")
        cut = "the file ends inside a value" if ends else error.msg
        why = f"not JSON at byte {error_byte:,} of {len(data):,} ({cut}); bring back a whole copy, or mend it"
    except FieldError as fault:
        why = f"not usable JSON (the key {fault.field!r} stands twice in one object); mend it"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        why = f"not usable JSON ({' '.join(str(error).split())}); mend it"
    raise BadInput(f"{file}: {why}")


def table_rows(file: Path) -> Iterator[SourceRow | RowResult]:
    """The rows of a file with a suffix of `ROW_FILES`. Raises BadInput as `sheet_rows` and `json_rows`."""
    return sheet_rows(file) if file.suffix.lower() in SHEET_SUFFIXES else json_rows(file)


# ---- sheets ---------------------------------------------------------------------------------------------------------


def sheet_rows(
    file: Path, encoding: str = "utf-8", sheet: str | None = None, notes: Counter[str] | None = None
) -> Iterator[SourceRow | RowResult]:
    """Rows of a CSV (comma, semicolon, tab or bar between cells) or XLSX. The first line names the columns.

    Values are texts, "" for an empty cell and for what programs write into one (nan, None, #N/A), which `raw` keeps.
    A cell that must not be used as it is shown is a `SheetCell` with the reason: take values by `use_cell`. Empty lines
    and empty columns at the end are skipped, hidden ones are read and counted in `notes`. `sheet` names the one to read
    if an XLSX has several. Raises BadInput if a column has no name, or two have the same.
    """
    is_xlsx = file.suffix.lower() in (".xlsx", ".xlsm")
    notes = Counter[str]() if notes is None else notes
    head: list[str] = []
    width = 0  # of the head with its empty end; every line of a CSV has that end, too
    has_lines = False
    for number, cells in _read_xlsx(file, sheet, head, notes) if is_xlsx else _read_csv(file, encoding):
        if isinstance(cells, FieldError):
            yield make_error_result(file, number, cells, str(cells.value))
        elif not any(cells):
            continue
        elif not head:
            head += _check_column_names(file, _strip_empty_end(cells))
            width = len(cells)
        else:
            if (beside := _strip_empty_end(cells)) and not has_lines:
                _refuse_title(file, head, number, beside)
            has_lines = True
            if is_xlsx or len(cells) == width:
                cells = cells[: max(len(beside), len(head))]
                cells += [""] * (len(head) - len(cells))  # an XLSX omits empty cells at the end of a line
            yield _make_sheet_row(file, number, head, cells, encoding)
    if not head:
        raise BadInput(f"{file}: the sheet is empty; its first line names the columns")


def use_cell(cell: Any, field: str, as_number: bool = False) -> Any:
    """A value of a row as it is shown, or, `as_number`, as it is stored: 1024 rather than 1,024.

    Raises FieldError if what the cell shows may not be what it means: a date made of 1-2, an error, struck-out words.
    """
    if not isinstance(cell, SheetCell):
        return cell
    if cell.why:
        raise FieldError(field, cell, cell.why)
    return (as_number and cell.exact) or str(cell)


def _strip_empty_end(cells: list[str]) -> list[str]:
    end = max((place for place, cell in enumerate(cells, start=1) if cell), default=0)
    return cells[:end]


def _refuse_title(file: Path, head: list[str], number: int, cells: list[str]) -> None:
    """Raise BadInput if the first line looks like a title, and the one below it, the row `number`, like the head."""
    may_be_head = all(cells) and len(set(cells)) == len(cells) and not any(_NUMERIC.fullmatch(c) for c in cells)
    if len(cells) > len(head) and (len(head) == 1 or may_be_head) and not any(map(is_named_as_image, cells)):
        names = ", ".join(map(shorten_value, cells))
        title = shorten_value(", ".join(head))
        raise BadInput(
            f"{file}: its first line ({title}) is a title, it seems, and row {number} the head ({names}): delete what "
            "stands above the head, since the first line names the columns"
        )


def _make_sheet_row(file: Path, number: int, head: list[str], cells: list[str], encoding: str) -> SourceRow | RowResult:
    if len(cells) != len(head):
        why = f"{len(cells)} cells where the head has {len(head)}; quote a cell that holds a separator"
        return make_error_result(file, number, FieldError("row", cells, why), cells)
    value = dict(zip(head, cells, strict=True))
    for key, text in value.items():
        try:
            check_unicode(text, key)
        except FieldError:
            why = f"not {encoding}; save the sheet in one encoding, or name it with --encoding (cp1252 is Excel's)"
            return make_error_result(file, number, FieldError("row", text, why), cells, value)
    words = {k: "" if text in _ABSENT_CELLS else text for k, text in value.items()}
    return SourceRow(file, number, value if words == value else words, value)  # a sheet's rows stay in memory


def _check_column_names(file: Path, cells: list[str]) -> list[str]:
    if len(cells) > MAX_COLUMNS:
        raise BadInput(
            f"{file}: {len(cells):,} columns, more than the {MAX_COLUMNS:,} of a spreadsheet; leave some out"
        )
    names = [cells[0].strip() or _INDEX, *(c.strip() for c in cells[1:])]
    counts = Counter(names)
    for place, name in enumerate(names, start=1):
        if isinstance(cells[place - 1], SheetCell) and not name:
            raise BadInput(f"{file}: column {place} has no name: its head is a merged cell; unmerge it, and fill it in")
        if not name:
            raise BadInput(f"{file}: column {place} has no name; the first line names the columns (no title above it)")
        if counts[name] > 1:
            raise BadInput(f"{file}: the column {name!r} stands twice; rename one of them")
    return names


_Cells = list[str] | FieldError
_SEPARATORS = ",;\t|"
_HIDDEN_ROWS = "rows that are hidden in the spreadsheet, read like the others; delete those that must not count"
_INDEX = "(no name)"  # of a first column, which pandas writes for its index
_NUMERIC = re.compile(r"[\d.,\s+-]+")


def find_csv_dialect(head: bytes, encoding: str = "utf-8") -> tuple[str, str, bool]:
    """The encoding of a CSV that begins so, what separates its cells, and whether its first line names that."""
    encoding = normalize_encoding(encoding)
    if head[:2] in _UTF16_MARKS:
        encoding = "utf-16"
    elif encoding == "utf-8":
        encoding = "utf-8-sig"
    first_lines = head.decode(encoding, "replace").strip().splitlines() or [""]
    separator_line = re.fullmatch(r"sep=(.)", first_lines[0].strip())  # with this line Excel names the separator
    head_line = next((line for line in first_lines if any(s in line for s in _SEPARATORS)), "")  # below a title
    separator = separator_line[1] if separator_line else max(_SEPARATORS, key=head_line.count)
    return encoding, separator, separator_line is not None


def _read_csv(file: Path, encoding: str) -> Iterator[tuple[int, _Cells]]:
    with _open_file(file) as stream:
        encoding, separator, has_separator_line = find_csv_dialect(stream.read(HEAD_BYTES), encoding)
    with file.open(encoding=encoding, errors="surrogateescape", newline="") as lines:
        reader = csv.reader(_bound_lines(file, lines), delimiter=separator, strict=True)
        while True:
            start = reader.line_num + 1  # the first line of the row; a quoted cell may have several
            try:
                cells: _Cells = [read_cell(_check_cell(c.strip())) for c in next(reader)]
            except StopIteration:
                return
            except csv.Error as error:
                where = f"lines {start} to {reader.line_num}" if reader.line_num > start else f"line {start}"
                why = f"not CSV ({error}); mend the quotes of the row, these lines are left out"
                cells = FieldError("row", where, why)
            except UnicodeError as error:
                raise BadInput(f"{file}: not {encoding} ({error}); name its encoding with --encoding") from None
            if not (has_separator_line and start == 1):
                yield start, cells


def _bound_lines(file: Path, lines: IO[str]) -> Iterator[str]:
    """The lines of a file. Raises BadInput for one so long that it would fill the memory."""
    for number, line in enumerate(iter(lambda: lines.readline(MAX_ROW_BYTES), ""), start=1):
        if len(line) == MAX_ROW_BYTES and not line.endswith(("\n", "\r")):
            raise BadInput(f"{file}: line {number} has more than {MAX_ROW_BYTES:,} characters; put one row on a line")
        yield line


def _read_xlsx(file: Path, sheet: str | None, head: list[str], notes: Counter[str]) -> Iterator[tuple[int, list[str]]]:
    with _open_file(file):
        pass
    with Workbook(file) as book:
        names = list(book.sheets)
        shown = ", ".join(map(shorten_value, names[:MANY])) + (" and others" if len(names) > MANY else "")
        if sheet is None and len(names) > 1:
            raise BadInput(f"{file}: has the sheets {shown}; name one with --sheet")
        if not names or (sheet is not None and sheet not in names):
            hint = suggest(sheet or "", names)
            raise BadInput(f"{file}: has no sheet {sheet or 'of cells'!r}; it has {shown or 'none'}{hint}")
        for number, cells in book.rows(sheet or names[0]):
            yield number, [_check_cell(cell) for cell in cells]
        if book.hidden_rows:
            notes[_HIDDEN_ROWS] += book.hidden_rows
        for place, name in enumerate(head, start=1):
            if any(first <= place <= last for first, last in book.hidden_columns):
                notes[f"column {name!r} is hidden in the spreadsheet, and read like the others"] += 1


def _check_cell(text: str) -> str:
    """The cell, marked if its text is an error of a spreadsheet, or a formula."""
    if text.startswith("="):
        return SheetCell(text, UNCOMPUTED)
    return SheetCell(text, ERROR_CELL) if text.startswith("#") and text in _SPREADSHEET_ERRORS else text


_SPREADSHEET_ERRORS = {
    "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!", "#SPILL!", "#CALC!",
    "#BEZUG!", "#WERT!", "#ZAHL!", "#ÜBERLAUF!",
}  # fmt: skip

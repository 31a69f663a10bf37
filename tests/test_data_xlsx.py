"""Sheets that unfold, lie about their rows, or are no sheets: refused at once, by the row or cell. And plain ones."""

from __future__ import annotations

import datetime
import random
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from openpyxl.cell.rich_text import CellRichText, TextBlock
from PIL import Image

from clinkd.data.readers import Source, read_rows, rows
from clinkd.data.readers.rows import FieldError, RowResult, SourceRow, sheet_rows
from clinkd.data.readers.xlsx import Workbook
from clinkd.records import BadInput, Sample

SHEET = "xl/worksheets/sheet1.xml"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    book = openpyxl.Workbook()
    for line in (["image", "question", "answer"], ["a.png", "What?", "liver"], ["b.png", "Where?", "here"]):
        book.active.append(line)
    path = tmp_path_factory.mktemp("plain") / "plain.xlsx"
    book.save(path)
    return path


def altered(plain: Path, path: Path, changes: dict[str, Callable[[bytes], bytes]]) -> Path:
    """A copy of the workbook in which some parts are changed, or added."""
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in dict.fromkeys([*old.namelist(), *changes]):
            data = old.read(name) if name in old.namelist() else b""
            new.writestr(name, changes[name](data) if name in changes else data)
    return path


def swap(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new)


def doctype(data: bytes) -> bytes:
    return b'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/hostname">]>' + data.replace(
        b"liver", b"&x;"
    )


STRINGS = "xl/sharedStrings.xml"
HOSTILE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "a row far below": (SHEET, swap(b'<row r="2"', b'<row r="2000000000"'), "row 2000000000: stands below row 1"),
    "a row of five thousand digits": (SHEET, swap(b'<row r="2"', b'<row r="%s"' % (b"9" * 5000)), "row 9999"),
    "a negative row": (SHEET, swap(b'<row r="2"', b'<row r="-5"'), "row -5: stands below row 1"),
    "a row that is no number": (SHEET, swap(b'<row r="2"', b'<row r="1_0"'), "row 1_0"),
    "a row twice": (SHEET, swap(b'<row r="3"', b'<row r="2"'), "row 2: stands below row 2"),
    "rows out of order": (SHEET, swap(b'<row r="2"', b'<row r="9"/><row r="2"'), "row 2: stands below row 9"),
    "something between the rows": (SHEET, swap(b'<row r="2"', b'<raw/><row r="2"'), "row 2: stands below"),
    "a column too far": (SHEET, swap(b'r="C2"', b'r="ZZZ2"'), "row 2, cell ZZZ2: cells stand"),
    "a cell twice": (SHEET, swap(b'r="C2"', b'r="B2"'), "row 2, cell B2: cells stand"),
    "a cell of another row": (SHEET, swap(b'r="C2"', b'r="C7"'), "row 2, cell C7: cells stand"),
    "cells without end": (SHEET, swap(b'<row r="2">', b'<row r="2">' + b"<c/>" * 20_000), "row 2, cell 16385: cells"),
    "rows without end": (SHEET, swap(b"</sheetData>", b"<row/>" * 100_000 + b"</sheetData>"), "bytes unfold to"),
    "a row below the last": (SHEET, swap(b"</sheetData>", b'<row r="1048577"/></sheetData>'), "row 1048577: stands"),
    "wide rows": (
        SHEET,
        swap(b"</sheetData>", b"".join(b'<row><c r="XFD%d"/></row>' % n for n in range(4, 400)) + b"</sheetData>"),
        "too far to the right",
    ),
    "a giant text": (SHEET, swap(b"<t>", b"<t>" + b"x" * 200_000), "text of more than"),
    "elements in elements": (SHEET, swap(b"<sheetData>", b"<a>" * 500 + b"<sheetData>"), "within each other"),
    "no number": (SHEET, swap(b"</row>", b"<c><v>1x</v></c></row>"), "row 1, column 4: '1x' is no value"),
    "no such text": (SHEET, swap(b"</row>", b'<c t="s"><v>-1</v></c></row>'), "row 1, column 4: '-1' is no value"),
    "an outside file": (SHEET, doctype, "declares a document type"),
    "no XML": (SHEET, lambda data: data[:-40], "cannot be read from line"),
    "blanks without end": (SHEET, swap(b"<sheetData>", b" <x/>" * 150_000 + b"<sheetData>"), "bytes unfold to"),
    "texts in texts": (STRINGS, lambda _: b"<sst>" + b"<si>" * 500, "within each other"),
    "a swollen list of styles": ("xl/styles.xml", lambda data: data + b" " * (1 << 24), "unpacks to"),
    "a missing sheet": ("xl/_rels/workbook.xml.rels", swap(b"sheet1.xml", b"sheet7.xml"), "'Sheet' is missing"),
    "no sheet": ("xl/workbook.xml", swap(b"<sheet ", b"<shed "), "has no sheet"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_sheet_is_refused_by_its_row_or_cell(tmp_path: Path, plain: Path, kind: str) -> None:
    part, change, told = HOSTILE[kind]
    changes = {part: change}
    if part == STRINGS:
        relation = b'<Relationship Id="rId99" Type="x/sharedStrings" Target="/xl/sharedStrings.xml"/></Relationships>'
        changes["xl/_rels/workbook.xml.rels"] = swap(b"</Relationships>", relation)
    file = altered(plain, tmp_path / "a.xlsx", changes)
    with pytest.raises(BadInput) as error:
        list(sheet_rows(file))
    assert told in str(error.value) and str(file) in str(error.value) and len(str(error.value)) < 400


def test_a_bomb_takes_little_memory(tmp_path: Path, plain: Path) -> None:
    file = altered(plain, tmp_path / "a.xlsx", {SHEET: swap(b'<row r="2">', b'<row r="2">' + b"<c/>" * 200_000)})
    tracemalloc.start()
    with pytest.raises(BadInput):
        list(sheet_rows(file))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6


@pytest.mark.parametrize("name", ["gap", "cells", "neg"])
def test_the_sheets_that_broke_it(shared: Path, name: str) -> None:
    with pytest.raises(BadInput, match="row"):
        list(sheet_rows(shared / f"cases/attacks/{name}.xlsx"))


def test_one_shared_text_in_many_cells_is_counted_in_each(tmp_path: Path, plain: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("clinkd.data.readers.xlsx.MAX_TEXTS", 1000)
    book = openpyxl.Workbook()
    for _ in range(30):
        book.active.append(["x" * 90])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(BadInput, match="row 12: the cells so far have more than 1,000"):
        list(sheet_rows(tmp_path / "a.xlsx"))


def test_what_is_no_xlsx_is_told(tmp_path: Path, plain: Path) -> None:
    file = tmp_path / "a.xlsx"
    with zipfile.ZipFile(plain) as archive:
        place = archive.getinfo(SHEET).header_offset + 80
    damaged = bytearray(plain.read_bytes())
    damaged[place : place + 20] = bytes(20)
    for content, told in (
        (b"\xd0\xcf\x11\xe0" + bytes(600), "password"),
        (b"PK\x03\x04 and no more", "not a readable XLSX"),
        (b"", "not a readable XLSX"),
        (damaged, "not a readable XLSX"),
    ):
        file.write_bytes(content)
        with pytest.raises(BadInput, match=told):
            list(sheet_rows(file))


def test_many_sheets_are_not_all_named(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for number in range(50):
        book.create_sheet(f"s{number}")
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(BadInput, match="s18 and others; name one"):
        list(sheet_rows(tmp_path / "a.xlsx"))


def show(value: Any) -> str:
    """What openpyxl reads from a cell with a plain format, as a spreadsheet shows it."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime.datetime):
        return f"{value:%Y-%m-%d} {value.hour}:{value:%M:%S}"
    if isinstance(value, datetime.time):
        return f"{value.hour}:{value:%M:%S}"
    return "" if value is None else str(value).strip()


def test_cells_are_read_as_openpyxl_reads_them(tmp_path: Path) -> None:
    rng = random.Random(0)
    kinds: list[Callable[[], Any]] = [
        lambda: rng.randint(-(10**9), 10**9),
        lambda: round(rng.uniform(-1, 1) * 10 ** rng.randint(-3, 9), 4),
        lambda: rng.choice([True, False, None]),
        lambda: rng.choice(["Leber", "two\nlines", "é 肝 <&>", "0012", "x" * 300]),
        lambda: datetime.datetime(1999, 1, 2) + datetime.timedelta(seconds=rng.randint(0, 10**9)),
        lambda: datetime.time(rng.randint(0, 23), rng.randint(0, 59)),
    ]
    for write_only in (False, True):  # shared texts, and texts in the cells
        book = openpyxl.Workbook(write_only=write_only)
        book.epoch = openpyxl.utils.datetime.MAC_EPOCH if write_only else book.epoch
        sheet = book.create_sheet("s") if write_only else book.active
        for _ in range(60):
            sheet.append([make() for make in kinds])
        book.save(tmp_path / "a.xlsx")
        read = openpyxl.load_workbook(tmp_path / "a.xlsx", data_only=True)
        wanted = [[show(cell) for cell in row] for row in read.worksheets[0].iter_rows(values_only=True)]
        with Workbook(tmp_path / "a.xlsx") as opened:
            assert [cells for _, cells in opened.rows("s" if write_only else "Sheet")] == wanted


DAY = datetime.date(2024, 2, 1)
SHOWN: list[tuple[Any, str, str]] = [  # value, format, and what Excel shows
    (0.25, "0%", "25%"), (0.255, "0.0%", "25.5%"), (0.004, "0.00%", "0.40%"), (7, "000", "007"), (2, "0.0", "2.0"),
    (1234.5, "#,##0.00", "1,234.50"), (1234567, "#,##0", "1,234,567"), (1234567, "#,##0,", "1,235"), (2.5, "0", "3"),
    (9.5, '#,##0.00 "€"', "9.50 €"), (9.5, "[$€-407] #,##0.0", "€ 9.5"), (3, '"P"000', "P003"), (-3, "0;[Red]-0", "-3"),
    (-3, "#,##0_);(#,##0)", "(3)"), (0, '0;-0;"none"', "none"), (1002, "000\\-000", "001-002"), (0.5, "#.##", ".5"),
    (0.1 + 0.2, "General", "0.3"), (1e-9, "General", "1E-09"), (12345, "0.00E+00", "1.23E+04"), (-0.2, "0", "0"),
    (5, 'General" mm"', "5 mm"), (12, "@", "12"), (7.0, "General", "7"), (True, "General", "TRUE"),
    (DAY, "yyyy-mm-dd", "2024-02-01"), (DAY, "dd\\.mm\\.yyyy", "01.02.2024"), (DAY, "[$-409]d mmm yy;@", "1 Feb 24"),
    (DAY, "dddd, d mmmm yyyy", "Thursday, 1 February 2024"), (datetime.time(13, 5), "h:mm AM/PM", "1:05 PM"),
    (datetime.datetime(2024, 2, 1, 9, 5, 7), "d/m/yyyy hh:mm:ss", "1/2/2024 09:05:07"),
]  # fmt: skip
REFUSED: list[tuple[Any, str, str]] = [  # value, format, and what is told
    (DAY, "d-m", "date or time 2024-02-01, and shows 1-2: give its column"), (DAY, "d-mmm", "shows 1-Feb"),
    (DAY, "mmm-yy", "shows Feb-24"), (DAY, "mm-dd-yy", "as each computer has it"), (0.5, "# ?/?", "is not read"),
    (DAY, "[$-407]d. mmmm yyyy", "as each computer has it"), (datetime.timedelta(hours=30), "[h]:mm", "took it"),
    (5, "[>3]0;0.0", "is not read"), (5, ";;;", "is not read"), (12345678901234567, "0", "15 digits"),
    (-1, "yyyy-mm-dd", "error of"), ("=1+1", "General", "never computed"), ("#REF!", "General", "error of"),
]  # fmt: skip


def one_column(path: Path, cells: list[tuple[Any, str]]) -> list[str]:
    book = openpyxl.Workbook()
    book.active.append(["id"])
    for row, (value, code) in enumerate(cells, start=2):
        book.active.cell(row, 1, value).number_format = code
    book.save(path)
    return [row.value["id"] for row in sheet_rows(path) if isinstance(row, SourceRow)]


def test_numbers_are_read_as_they_are_shown(tmp_path: Path) -> None:
    cells = one_column(tmp_path / "a.xlsx", [(value, code) for value, code, _ in SHOWN])
    used = [rows.use_cell(cell, "id") for cell in cells]
    assert used == [shown for *_, shown in SHOWN]
    exact = {code: rows.use_cell(cell, "x1", as_number=True) for cell, (_, code, _) in zip(cells, SHOWN, strict=True)}
    assert exact["#,##0.00"] == "1234.5" and exact["0%"] == "0.25" and exact["000"] == "7", "boxes take what is stored"


def test_what_was_made_of_a_cell_unasked_is_refused(tmp_path: Path) -> None:
    cells = one_column(tmp_path / "a.xlsx", [(value, code) for value, code, _ in REFUSED])
    for cell, (*_, told) in zip(cells, REFUSED, strict=True):
        assert told in getattr(cell, "why", ""), cell
        with pytest.raises(FieldError):
            rows.use_cell(cell, "id")


def test_only_the_cells_that_are_used_are_refused(tmp_path: Path) -> None:
    """Struck out, merged, and dates made of 1-2: by the cell, where its column is used. Hidden: read, and told."""
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["image", "modality", "question", "answer", "seen", "id", "split"])
    for row in range(2, 10):
        sheet.append(["a.png", "ct", f"Question {row}?", f"Answer {row}", datetime.date(2024, 2, row), row, "train"])
        sheet.cell(row, 5).number_format = "d-m"
    sheet["D3"].font = openpyxl.styles.Font(strike=True)
    sheet["E4"].font = openpyxl.styles.Font(strike=True)
    block = openpyxl.cell.text.InlineFont(strike=True)
    sheet["C5"] = CellRichText("Question ", TextBlock(block, "five"), "?")
    sheet["F6"], sheet["F6"].number_format = datetime.date(2024, 1, 2), "d-m"
    sheet.merge_cells("G7:G8")
    sheet.row_dimensions[9].hidden = True
    sheet.column_dimensions["D"].hidden = True
    book.save(tmp_path / "a.xlsx")
    notes: Counter[str] = Counter()
    results = {r.row: r for r in read_rows(Source(tmp_path / "a.xlsx"), notes)}
    problems = {row: (r.problem.field, r.problem.why) for row, r in results.items() if r.problem}
    assert {row: field for row, (field, _) in problems.items()} == {3: "answer", 5: "question", 6: "id", 8: "split"}
    for row, why in (
        (3, "struck out"),
        (5, "struck out"),
        (6, "2024-01-02, and shows 2-1"),
        (8, "rows 7 to 8: unmerge"),
    ):
        assert why in problems[row][1]
    assert [notes[n] for n in notes if "hidden" in n] == [1, 1], notes


def test_an_index_without_a_name_and_a_merged_head_are_named(tmp_path: Path) -> None:
    for name in ("a.csv", "a.xlsx"):
        lines = [["", "image", "question"], ["0", "a.png", "What?"], ["1", "b.png", "Why?"]]
        if name == "a.csv":
            (tmp_path / name).write_text("\n".join(map(",".join, lines)))
        else:
            book = openpyxl.Workbook()
            for line in lines:
                book.active.append([cell or None for cell in line])
            book.save(tmp_path / name)
        first, _ = sheet_rows(tmp_path / name)
        assert isinstance(first, SourceRow) and first.value == {"(no name)": "0", "image": "a.png", "question": "What?"}
    book = openpyxl.Workbook()
    book.active.append(["image", "box", None, "name"])
    book.active.merge_cells("B1:C1")
    book.save(tmp_path / "b.xlsx")
    with pytest.raises(BadInput, match="column 3 has no name: its head is a merged cell"):
        list(sheet_rows(tmp_path / "b.xlsx"))


def test_merged_ranges_without_end_are_refused(tmp_path: Path, plain: Path) -> None:
    ranges = b"<mergeCells>" + b"<mergeCell ref='A1:XFD1048576'/>" * 1000 + b"</mergeCells>"
    file = altered(plain, tmp_path / "a.xlsx", {SHEET: swap(b"</sheetData>", b"</sheetData>" + ranges)})
    with pytest.raises(BadInput, match="row 1, a merged cell"):
        list(sheet_rows(file))
    file = altered(
        plain, tmp_path / "a.xlsx", {SHEET: swap(b"</sheetData>", b"</sheetData>" + ranges.replace(b":", b"!"))}
    )
    with pytest.raises(BadInput, match="no range of merged cells"):
        list(sheet_rows(file))


def test_a_text_of_several_fonts_and_an_escaped_sign_are_one_text(tmp_path: Path, plain: Path) -> None:
    rich = (
        b"<c t='inlineStr'><is><r><rPr><b/></rPr><t>li</t></r><r><t>ver_x0009__x005F_x0041_</t></r>"
        b"<rPh sb='0' eb='1'><t>spoken</t></rPh></is></c>"
    )
    file = altered(plain, tmp_path / "a.xlsx", {SHEET: swap(b'<row r="2">', b'<row r="2">' + rich)})
    with zipfile.ZipFile(file) as archive:
        assert b"spoken" in archive.read(SHEET)
    file = altered(plain, tmp_path / "b.xlsx", {SHEET: swap(b"</sheetData>", b"<row>" + rich + b"</row></sheetData>")})
    last = list(sheet_rows(file))[-1]
    assert isinstance(last, SourceRow) and last.value == {"image": "liver\t_x0041_", "question": "", "answer": ""}


def test_a_formula_is_its_value_and_refused_without_one(tmp_path: Path, plain: Path) -> None:
    cells = b"<row><c><f>1+1</f><v>2</v></c><c t='str'><f>A1</f><v></v></c><c t='str'><f>A1</f><v>x</v></c></row>"
    shared = b"<row><c><f t='shared' si='0'/></c></row></sheetData>"
    file = altered(plain, tmp_path / "a.xlsx", {SHEET: swap(b"</sheetData>", cells + shared)})
    *_, good, bad = sheet_rows(file)
    assert isinstance(good, SourceRow) and list(good.value.values()) == ["2", "", "x"]
    with pytest.raises(FieldError, match="never computed"):
        rows.use_cell(bad.value["image"] if isinstance(bad, SourceRow) else "", "image")


# ---- other sheets and lists -----------------------------------------------------------------------------------------


def test_a_csv_line_or_head_without_end_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a,b\n" + ",".join(map(str, range(100_000))) + "\n")
    (wide,) = sheet_rows(file)
    assert isinstance(wide, RowResult) and wide.problem and "100000 cells where the head has 2" in wide.problem.why
    file.write_text(",".join(map(str, range(100_000))) + "\n")
    with pytest.raises(BadInput, match="100,000 columns"):
        list(sheet_rows(file))
    file.write_text('a,b\n1,"' + "x" * 200_000 + '"\n')
    (long,) = sheet_rows(file)
    assert isinstance(long, RowResult) and long.problem and "field larger than field limit" in long.problem.why
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1000)
    file.write_text("a,b\n1," + "x" * 2000)
    with pytest.raises(BadInput, match="line 2 has more than 1,000 characters"):
        list(sheet_rows(file))


@pytest.mark.parametrize("depth", [100, 5000, 200_000])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_brackets_without_end_are_one_error(tmp_path: Path, depth: int, name: str) -> None:
    row = '{"id": "1", "question": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / name).write_text(f"[{row}]" if name == "a.json" else f"{row}\n")

    def make(row: SourceRow) -> list[Sample]:
        rows.require_words(row.value["question"], "question")
        return []

    (result,) = rows.convert_rows(rows.json_rows(tmp_path / name), make)
    assert result.problem and len(str(result.problem)) < 600

"""Files to rows: every way a file can be damaged is named by its byte or row, and what is whole is delivered."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clinkd.data.readers import rows
from clinkd.data.readers.rows import (
    FieldError,
    RowResult,
    SourceRow,
    convert_rows,
    json_rows,
    require_words,
    sheet_rows,
    shorten_value,
)
from clinkd.records import BadInput


def values(found: list[SourceRow | RowResult]) -> list[Any]:
    return [r.value for r in found if isinstance(r, SourceRow)]


def problems(found: list[SourceRow | RowResult]) -> list[tuple[int, str]]:
    return [(r.row, f"{r.problem.field}: {r.problem.why}") for r in found if isinstance(r, RowResult) and r.problem]


def read(
    path: Path, content: bytes | str, encoding: str = "utf-8", name: str = "a.json"
) -> list[SourceRow | RowResult]:
    file = path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(sheet_rows(file, encoding) if name.endswith(".csv") else json_rows(file, encoding))


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_BYTES", 7)
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 300)


def random_value(dice: random.Random, depth: int = 0) -> Any:
    texts = ["é", 'a"b', "\\", "\n", "日本語", "😀", "]", "},{", "[", "\u2028", "x" * 30, "", "\ufeff", "1e5", "null"]
    if depth > 2 or dice.random() < 0.5:
        return dice.choice([dice.choice(texts), dice.randint(-(10**6), 10**6), dice.random() * 1e-5, True, None, False])
    if dice.random() < 0.5:
        return [random_value(dice, depth + 1) for _ in range(dice.randint(0, 3))]
    return {f"{dice.choice(texts)}{k}": random_value(dice, depth + 1) for k in range(dice.randint(0, 3))}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf8", "UTF-8"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_list_comes_in_as_json_reads_it(
    tmp_path: Path, small_window: None, encoding: str, ascii_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1 << 20)
    dice = random.Random(1)
    for _ in range(25):
        monkeypatch.setattr(rows, "CHUNK_BYTES", dice.choice([4, 8, 12, 64, 256]))  # 4 divides every character
        made = [{"id": k, "v": random_value(dice)} for k in range(dice.randint(1, 6))]
        text = json.dumps(made, ensure_ascii=ascii_only, indent=dice.choice([None, 0, 2]))
        text = dice.choice(["", " ", "\r\n"]) + text.replace("\n", "\r\n") + dice.choice(["", "\n \n"])
        assert values(read(tmp_path, text.encode(encoding), encoding)) == made


def test_json_lines_come_in_whatever_ends_a_line(tmp_path: Path) -> None:
    made = [{"id": k, "t": "é\u2028😀"} for k in range(4)]
    for end in ("\n", "\r\n", "\n\n"):
        for mark in ("", "\ufeff"):
            for last in ("", end):
                text = mark + end.join(json.dumps(m, ensure_ascii=False) for m in made) + last
                assert values(read(tmp_path, text)) == made
    assert [r.number for r in read(tmp_path, '\n\n{"id": 1}\n\n{"id": 2}') if isinstance(r, SourceRow)] == [3, 5]
    assert values(read(tmp_path, '{"t": "\xe9"}'.encode("latin-1"), "latin-1")) == [{"t": "é"}]


GOOD = [{"id": f"g{k}", "t": f"größe {k} 日😀"} for k in range(5)]
LIST = json.dumps(GOOD, ensure_ascii=False).encode()


def test_a_list_cut_anywhere_delivers_what_is_whole_and_names_the_rest(tmp_path: Path, small_window: None) -> None:
    ends = []  # byte after each row
    for k in range(5):
        ends.append(len(b"[" + b", ".join(json.dumps(g, ensure_ascii=False).encode() for g in GOOD[: k + 1])))
    for cut in range(1, len(LIST)):
        found = read(tmp_path, LIST[:cut])
        whole = sum(end <= cut for end in ends)
        assert values(found) == GOOD[:whole], cut
        ((number, why),) = problems(found)
        assert number == whole + 1
        last = f"the last good row is {whole} (id g{whole - 1})" if whole else "no row before it is good"
        assert f"; {last}; " in why and why.startswith("file: not JSON at byte ") and "the file ends" in why
        at = int(why.split("at byte ")[1].split(" ")[0])
        unread = int(why.split("; ")[2].split(" of ")[0])
        assert cut - unread <= at <= cut and 0 <= unread <= cut - ([1, *ends][whole])


DAMAGE = [
    (b'[{"id": 1}, {"id": 2} {"id": 3}]', 2, 3, "at byte 22 ({ where , or ] is wanted)"),
    (b'[{"id": 1}, {"id": 2}]]', 2, 3, "at byte 22 (something follows the end of the list)"),
    (b'[{"id": 1}] {"id": 2}', 1, 2, "at byte 12 (something follows"),
    (b'[{"id": 1}, {"id": 2, }]', 1, 2, "property name"),
    (b'[{"id": 1}, {"id" 2}, {"id": 3}]', 1, 2, "at byte 18 (Expecting ':'"),
    (b'[{"id": 1}, {"id": 2},]', 2, 3, "at byte 22 (Expecting value"),
    (b'[{"id": 1}, x, {"id": 3}]', 1, 2, "at byte 12 (Expecting value"),
    (b'[{"id": 1}, x]', 1, 2, "Expecting value"),
    (b'[{"id": 1}, {"a": "\n"}]', 1, 2, "Invalid control character"),
    (b'[{"id": 1}, {"a": "\\x41"}, {"id": 3}]', 1, 2, "Invalid \\escape"),
    (b'[{"id": 1}, {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}]", 1, 2, "recursion"),
    (b'[{"id": 1}, {"a": ' + b"1" * 5000 + b"}]", 1, 2, "digits"),
    (b'[{"id": 1},\xff]', 1, 2, "at byte 11 (Expecting value"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "whole", "row", "told"), DAMAGE, ids=[d[3] for d in DAMAGE])
def test_a_damaged_list_ends_at_the_damage(tmp_path: Path, content: bytes, whole: int, row: int, told: str) -> None:
    found = read(tmp_path, content)
    assert len(values(found)) == whole
    ((number, why),) = problems(found)
    assert number == row and told in why and f"the last good row is {whole}" in why
    assert f" of {len(content):,} bytes, from byte " in why


FAULTY_ROWS = [
    (b"3", "row: not a JSON object"),
    (b'"text"', "row: not a JSON object"),
    (b"[1, 2]", "row: not a JSON object"),
    (b"null", "row: not a JSON object"),
    (b'{"id": "a", "id": "b"}', "id: the key stands twice"),
    (b'{"id": 1, "deep": {"x": 1, "y": [{"z": 1, "z": 2}]}}', "z: the key stands twice"),
    (b'{"t": "gr\xf6\xdfe"}', "(0xf6) is not utf-8"),
    (b'{"t": "\xed\xa0\x80"}', "(0xed) is not utf-8"),
]  # fmt: skip


@pytest.mark.parametrize("window", [5, 1 << 20])
@pytest.mark.parametrize(("row", "told"), FAULTY_ROWS, ids=[f[1] for f in FAULTY_ROWS])
def test_a_faulty_row_of_a_list_is_alone_at_fault(
    tmp_path: Path, row: bytes, told: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "CHUNK_BYTES", window)
    head = '[{"t": "é"}, '.encode()
    found = read(tmp_path, head + row + b', {"id": 3}]')
    assert values(found) == [{"t": "é"}, {"id": 3}]
    ((number, why),) = problems(found)
    assert number == 2 and told in why
    if "0x" in told:
        assert f"byte {len(head) + row.index(bytes([int(told[3:5], 16)]))} " in why
    assert values(read(tmp_path, b"[" + row + b"," + row + b"]")) == []


FAULTY_LINES = [
    *FAULTY_ROWS[:7],
    (b'{"id": 1', "not JSON at byte 23 (Expecting ',' delimiter)"),
    (b'  {"id" 1}', "not JSON at byte 23 (Expecting ':' delimiter)"),
    (b'{"id": 1}, ', "not JSON at byte 24 (Extra data)"),
    (b'{"a": "abc', "not JSON at byte 21 (Unterminated string"),
    (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "not usable JSON"),
    (b'{"a": ' + b"1" * 5000 + b"}", "not usable JSON"),
    (b"not json", "not JSON at byte 15"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "told"), FAULTY_LINES, ids=[f[1] for f in FAULTY_LINES])
def test_a_faulty_line_is_alone_at_fault(tmp_path: Path, row: bytes, told: str) -> None:
    first = b'{"t": "\xc3\xa9ab"}\n'
    assert len(first) == 14
    found = read(tmp_path, first + b"\n" + row + b'\n{"id": 3}\n')
    assert values(found) == [{"t": "éab"}, {"id": 3}]
    ((number, why),) = problems(found)
    assert number == 3 and told in why


def test_any_damage_of_any_byte_spares_the_rows_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(5)
    lines = b"\n".join(json.dumps(g, ensure_ascii=False).encode() for g in GOOD)
    seen = set()
    for _ in range(600):
        monkeypatch.setattr(rows, "CHUNK_BYTES", dice.choice([7, 50, 1 << 20]))
        whole, end = dice.choice([(LIST, b'"}'), (lines, b'"}\n')])
        at = dice.randrange(1, len(whole))
        new = dice.choice(
            [b"", b"\x00", b"\xff", b'"', b"{", b"}", b"]", b",", b"\n", b"\\", b"1", bytes([dice.randrange(256)])]
        )
        damaged = whole[:at] + new + whole[at + dice.randint(0, 2) :]
        found = read(tmp_path, damaged)
        before = sum(g["t"].encode() + end in damaged[:at] for g in GOOD)
        assert values(found)[:before] == GOOD[:before]
        assert len(values(found)) == 5 or problems(found) or values(found) != GOOD
        assert all("\n" not in why and why.count(";") >= 1 for _, why in problems(found))
        seen |= {why.split("(")[-1][:12] for _, why in problems(found)}
    assert len(seen) > 8


def test_a_row_too_long_is_named_and_lines_go_on(tmp_path: Path, small_window: None) -> None:
    long = json.dumps({"id": 2, "t": "x" * 1000})
    found = read(tmp_path, f'{{"id": 1}}\n{long}\n{{"id": 3}}')
    assert values(found) == [{"id": 1}, {"id": 3}] and problems(found)[0][0] == 2
    assert "longer than 300 bytes (from byte 10)" in problems(found)[0][1]
    exact = json.dumps({"t": "x" * (300 - len('{"t": ""}') - 1)}) + "\n"
    assert len(exact) == 300 and len(values(read(tmp_path, exact * 2))) == 2
    found = read(tmp_path, f'[{{"id": 1}}, {long}, {{"id": 3}}]')
    assert values(found) == [{"id": 1}]
    ((number, why),) = problems(found)
    assert number == 2 and "a row of more than 300 bytes, or a quotation mark is missing" in why
    (_, why) = problems(read(tmp_path, '[{"id": 1}, {"id": "2}, ' + ", ".join(['{"id": 3}'] * 400) + "]"))[0]
    assert "Expecting" in why or "quotation mark" in why


def test_half_characters_and_torn_files_in_wide_encodings(tmp_path: Path, small_window: None) -> None:
    text = '[{"id": 1}, {"id": 2, "t": "?"}, {"id": 3}]'
    for encoding, half in (("utf-16-le", b"\x00\xd8"), ("utf-16-be", b"\xd8\x00")):
        torn = text.encode(encoding).replace("?".encode(encoding), half)
        found = read(tmp_path, torn, encoding)
        assert values(found) == [{"id": 1}, {"id": 3}]
        assert f"byte {2 * text.index('?')} (half a character) is not {encoding}" in problems(found)[0][1]
        for cut in range(2, len(torn)):
            assert "the last good row is" in problems(read(tmp_path, torn[:cut], encoding))[-1][1] or cut < 24
    ((_, why),) = problems(read(tmp_path, text.encode("utf-16-be"), "utf-16"))
    assert "utf-16 without a byte order mark: give --encoding utf-16-le or utf-16-be" in why
    marked = text.encode("utf-16")[:-2]
    ((_, why),) = problems(read(tmp_path, marked, "utf-16"))
    assert f"not JSON at byte {len(marked)} (the file ends where , or ] is wanted)" in why


def test_infinities_are_kept_for_the_field_to_refuse_and_nan_is_no_value(tmp_path: Path) -> None:
    (row,) = read(tmp_path, '{"a": NaN, "b": [-Infinity, 1e999]}')
    assert isinstance(row, SourceRow)
    assert row.value == {"a": None, "b": [float("-inf"), float("inf")]}


REFUSED = [
    (b"", "utf-8", "no rows"),
    (b" \r\n" * 100, "utf-8", "no rows"),
    (b"[]", "utf-8", "the list has no rows"),
    (b" [ \n ] ", "utf-8", "the list has no rows"),
    (b'{\n "images": [],\n "annotations": []\n}', "utf-8", "one object over several lines"),
    ('[{"id": 1}]'.encode("utf-16"), "utf-8", "--encoding utf-16"),
    ('[{"id": 1}]'.encode("utf-16-le"), "utf-8", "--encoding utf-16"),
    ('{"id": 1}\n'.encode("utf-16"), "utf-16", "lines of JSON must be UTF-8"),
    (b"[]", "utf-99", "no such encoding"),
    (b"[]", "rot13", "no such encoding"),
    (b"[]", "base64", "no such encoding"),
]


@pytest.mark.parametrize(("content", "encoding", "told"), REFUSED, ids=[r[2] for r in REFUSED])
def test_what_is_no_file_of_rows_is_refused_in_one_line(
    tmp_path: Path, content: bytes, encoding: str, told: str
) -> None:
    with pytest.raises(BadInput, match=told) as error:
        read(tmp_path, content, encoding)
    assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match=r"none\.json: no such file"):
        list(json_rows(tmp_path / "none.json"))


def test_a_list_behind_many_blanks_or_a_mark_is_found(tmp_path: Path) -> None:
    assert values(read(tmp_path, b" " * 200 + b'[{"id": 1}]')) == [{"id": 1}]
    assert values(read(tmp_path, b'\xef\xbb\xbf\r\n[\r\n{"id": 1}\r\n]\r\n')) == [{"id": 1}]


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_BYTES", 1 << 14)
    row = json.dumps({"id": "x", "t": "y" * 500})

    def peak(count: int, end: str) -> int:
        file = tmp_path / "big.json"
        file.write_text("[" + ",\n".join([row] * count) + end)
        tracemalloc.start()
        number = sum(1 for _ in json_rows(file))
        assert number == count + (end == "")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many, torn = peak(200, "]"), peak(8000, "]"), peak(8000, "")
    assert max(many, torn) < 2 * few < 1 << 20


def test_faults_of_rows_become_problems_of_one_line(tmp_path: Path) -> None:
    found = read(tmp_path, '{"id": "a\\nb\\ud800", "t": 1}\n{"id": 2}')

    def make(row: SourceRow) -> list[Any]:
        raise FieldError("t", row.value.get("t"), "wrong; mend it")

    first, second = convert_rows(iter(found), make)
    assert str(first.problem) == f"{tmp_path / 'a.json'}, row 1, id a\\nb\\ud800: t = 1: wrong; mend it"
    assert second.problem is not None and second.problem.to_json() == {
        "file": str(tmp_path / "a.json"), "row": 2, "id": "2", "field": "t", "value": "null",
        "reason": "wrong; mend it", "kind": "row",
    }  # fmt: skip
    assert first.raw == '{"id": "a\\nb\\ud800", "t": 1}'


def test_values_are_shown_short_on_one_line() -> None:
    assert (
        shorten_value("a\nb\x1b[0m") == "a\\nb\\x1b[0m"
        and len(shorten_value("\n" * 100)) == 80
        and shorten_value([1, "é"]) == '[1, "é"]'
    )
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    assert shorten_value(deep) == "brackets within brackets"


TEXTS = [
    (None, "empty or not text"), (3, "empty or not text"), ("", "empty"), (" \n", "empty"),
    ("at [box]", "kept for the places of boxes"), ("half \ud83d of it", "half a character at place 6"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "told"), TEXTS)
def test_texts_that_say_nothing_or_are_torn_are_refused(value: Any, told: str) -> None:
    with pytest.raises(FieldError, match=told):
        require_words(value, "t")
    assert require_words(" a \n b😀 ", "t") == "a b😀"


# ---- sheets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_sheet_of_any_separator_and_encoding(tmp_path: Path, separator: str, encoding: str) -> None:
    lines = ["id", "größe"], ["1", ' "x, ;|"" \n y" '.strip()], ["2", "é"], ["", ""], ["3", ""]
    text = "\r\n" + "\r\n".join(separator.join(line) for line in lines) + "\r\n"
    found = read(tmp_path, text.encode(encoding), "cp1252" if encoding == "cp1252" else "utf-8", "a.csv")
    assert values(found) == [{"id": "1", "größe": 'x, ;|" \n y'}, {"id": "2", "größe": "é"}, {"id": "3", "größe": ""}]
    assert [r.number for r in found if isinstance(r, SourceRow)] == [3, 5, 7]


def test_empty_columns_at_the_end_are_passed_over(tmp_path: Path) -> None:
    assert values(read(tmp_path, "a,b,,\n1,2,,\n3,,,\n", name="a.csv")) == [{"a": "1", "b": "2"}, {"a": "3", "b": ""}]
    # a comma inside a number moves the cells behind it: the empty end must not hide that
    (shifted,) = read(tmp_path, "a,x,y,note\nscan.png,1,5,2,,\n", name="a.csv")
    assert isinstance(shifted, RowResult) and shifted.problem and "6 cells where the head has 4" in shifted.problem.why


FAULTY_CELLS = [
    (b"1", 2, "1 cells where the head has 2"),
    (b"1,2,3", 2, "3 cells where the head has 2"),
    (b'1,"2"3', 2, "not CSV"),
    (b"1,gr\xf6\xdfe", 2, "row: not utf-8"),
    (b'1,"' + b"x" * 140_000 + b'"', 2, "field larger"),
]


@pytest.mark.parametrize(("line", "row", "told"), FAULTY_CELLS, ids=[f[2] for f in FAULTY_CELLS])
def test_a_faulty_line_of_a_sheet_is_alone_at_fault(tmp_path: Path, line: bytes, row: int, told: str) -> None:
    found = read(tmp_path, b"a,b\n" + line + b"\n5,6\n", name="a.csv")
    assert values(found) == [{"a": "5", "b": "6"}]
    ((number, why),) = problems(found)
    assert number == row and told in why


def test_an_open_quote_tells_which_lines_are_lost(tmp_path: Path) -> None:
    found = read(tmp_path, 'a,b\n1,2\n3,"4\n5,6\n7,8\n', name="a.csv")
    assert values(found) == [{"a": "1", "b": "2"}]
    (entry,) = (e for e in found if isinstance(e, RowResult))
    assert entry.problem is not None and entry.row == 3
    assert entry.problem.value == "lines 3 to 5" and "left out" in entry.problem.why


TITLES = [
    b"A study of livers\nimage,question,answer\na.png,What?,liver\n",
    b"A study of livers\n\nimage;question;answer\na.png;What?;liver\n",
    b"Livers, 2024\nimage,question,answer\na.png,What?,liver\n",
    b"Livers,,\nimage,question,answer\na.png,What?,liver\n",
]


@pytest.mark.parametrize("content", TITLES)
def test_a_title_above_the_head_is_named_once(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadInput, match=r"\(Livers, 2024\)|\(Livers\)|\(A study of livers\)") as refused:
        read(tmp_path, content, name="a.csv")
    assert "is a title" in str(refused.value) and "the head (image, question, answer)" in str(refused.value)


def test_a_comma_too_many_in_the_first_row_is_no_title(tmp_path: Path) -> None:
    (entry,) = read(tmp_path, b"image,question,answer\na.png,Is it?,Yes, it is\n", name="a.csv")
    assert isinstance(entry, RowResult) and entry.problem is not None
    assert (entry.row, entry.problem.why.split(";")[0]) == (2, "4 cells where the head has 3")


HEADS = [
    ("", "empty"),
    ("\n\n", "empty"),
    ("a,,b\n1,2,3", "column 2 has no name"),
    ("a,b,a\n1,2,3", "'a' stands twice"),
]


@pytest.mark.parametrize(("content", "told"), HEADS)
def test_a_head_that_does_not_tell_columns_apart_is_refused(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        read(tmp_path, content, name="a.csv")


def workbook(path: Path, *sheets: list[list[Any]]) -> Path:
    import openpyxl

    book = openpyxl.Workbook()
    for k, lines in enumerate(sheets):
        sheet = book.active if k == 0 else book.create_sheet(f"s{k}")
        for line in lines:
            sheet.append(line)
    book.save(path)
    return path


def test_an_xlsx_gives_texts(tmp_path: Path) -> None:
    lines = [["id", "n", "t"], [1, 2.0, " é "], [2, 2.5], [], [None, None, "x"], [3, "=1+1", "y"], [4, "#REF!", "z"]]
    found = values(sheet_rows(workbook(tmp_path / "a.xlsx", lines)))
    assert found[:3] == [
        {"id": "1", "n": "2", "t": "é"}, {"id": "2", "n": "2.5", "t": ""}, {"id": "", "n": "", "t": "x"},
    ]  # fmt: skip
    for row, why in zip(found[3:], ("never computed", "error of the spreadsheet"), strict=True):
        assert rows.use_cell(row["t"], "t") in "yz"
        with pytest.raises(FieldError, match=why):
            rows.use_cell(row["n"], "n")


def test_an_xlsx_is_read_to_its_end_whatever_it_says_of_its_size(tmp_path: Path) -> None:
    file = workbook(tmp_path / "a.xlsx", [["id", "patient"], *([k, f"p{k}"] for k in range(5))])
    packed = tmp_path / "b.xlsx"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1:A3"', data))
    assert values(sheet_rows(packed)) == values(sheet_rows(file)) and len(values(sheet_rows(file))) == 5


def test_excels_own_line_and_errors_in_a_csv(tmp_path: Path) -> None:
    assert values(read(tmp_path, "sep=;\na;b\n1,5;2\n", name="a.csv")) == [{"a": "1,5", "b": "2"}]
    for cell, why in (("#NAME?", "error"), ("#BEZUG!", "error"), ("=SUMME(A1)", "never computed")):
        (found,) = values(read(tmp_path, f"a,b\n1,{cell}\n", name="a.csv"))
        with pytest.raises(FieldError, match=why):
            rows.use_cell(found["b"], "b")


def test_what_programs_write_for_no_value_is_none(tmp_path: Path) -> None:
    absent = ("nan", "NaN", "<NA>", "NaT", "#N/A", "#NV", "n/a")
    lines = "".join(f"{cell},1\n" for cell in (*absent, "None", "null", "none", "nanny", "NA"))
    cells = [row["a"] for row in values(read(tmp_path, f"a,b\n{lines}", name="a.csv"))]
    assert cells == [*[""] * (len(absent) + 2), "none", "nanny", "NA"]
    book = workbook(tmp_path / "a.xlsx", [["a", "b"], ["NaN", 1], [" None ", 1], ["none", 1]])
    assert [row["a"] for row in values(sheet_rows(book))] == ["", "", "none"]
    words = ", ".join(f'{{"a": {value}}}' for value in ("NaN", *(f'"{a}"' for a in absent), "null", '"None"', '"none"'))
    for name, text in (("a.json", f"[{words}]"), ("a.jsonl", words.replace("}, ", "}\n"))):
        answers = [row["a"] for row in values(read(tmp_path, text, name=name))]
        assert answers == [*[None] * (len(absent) + 2), "None", "none"], "JSON has null, so there None is a word"


@pytest.mark.parametrize(
    "text",
    [
        "what <|image_pad|> is it?",
        "a<|im_end|> x",
        "<image>",
        "<img>y</img>",
        "<box>",
        "<start_of_image>",
        "<end_of_turn>",
        "a\x07b",
        "a\u202eb",
    ],
)
def test_marks_of_models_and_unseen_signs_are_no_text(text: str) -> None:
    with pytest.raises(FieldError, match="mark of models|control character"):
        rows.require_words(text, "question")
    assert rows.require_words("a < b, c\u00a0d >  e", "question") == "a < b, c d > e"


def test_an_xlsx_of_several_sheets_or_none_is_refused(tmp_path: Path) -> None:
    several = workbook(tmp_path / "a.xlsx", [["a"], ["1"]], [["b"], ["2"]])
    with pytest.raises(BadInput, match="--sheet"):
        list(sheet_rows(several))
    assert values(list(sheet_rows(several, sheet="s1"))) == [{"b": "2"}]
    with pytest.raises(BadInput, match="no sheet 'x'"):
        list(sheet_rows(several, sheet="x"))
    (tmp_path / "b.xlsx").write_bytes(several.read_bytes()[:500])
    with pytest.raises(BadInput, match="not a readable XLSX"):
        list(sheet_rows(tmp_path / "b.xlsx"))


def test_rows_are_delivered_before_the_file_is_read_to_its_end(tmp_path: Path, small_window: None) -> None:
    file = tmp_path / "a.json"
    file.write_text('[{"id": 1}, {"id": 2}, {"id": 3}, broken')
    stream: Iterator[SourceRow | RowResult] = json_rows(file)
    first = next(stream)
    assert isinstance(first, SourceRow) and first.value == {"id": 1} and first.raw == '{"id": 1}'

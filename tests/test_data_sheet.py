"""The reader of sheets: what a line asks, how lines of an image go together, and one fault for each bad line."""

from __future__ import annotations

import csv
import json
import random
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openpyxl
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from clinkd.data.images.dicom import Dicom
from clinkd.data.readers import boxes as boxes_reader
from clinkd.data.readers import sheet
from clinkd.data.readers.rows import RowResult
from clinkd.data.readers.source import ImageResolver, Source
from clinkd.records import BadInput, Box, BoxedText, Modality, Sample, Task

HEAD = ("image", "modality", "patient", "question", "answer", "name", "x1", "y1", "x2", "y2", "sentence", "caption")
Cells = dict[str, Any]


def line(image: str = "a.png", **cells: Any) -> Cells:
    return {"image": image, "modality": "ct", "patient": "P1", **cells}


def box(name: str, *corners: float, image: str = "a.png", **cells: Any) -> Cells:
    return line(image, name=name, **dict(zip(sheet.CORNERS, corners, strict=True)), **cells)


def write(root: Path, lines: Sequence[Cells], name: str = "sheet.csv", head: Sequence[str] = HEAD) -> Path:
    """A sheet of lines beside four images of 100 x 50 pixels, one of two frames and one in a folder."""
    for image in ("a.png", "b.png", "d.png", "sub/c.png"):
        (root / image).parent.mkdir(exist_ok=True)
        Image.new("RGB", (100, 50)).save(root / image)
    frame = Image.new("L", (100, 50))
    frame.save(root / "f.tif", save_all=True, append_images=[frame])
    head = (*head, *(k for row in lines for k in row if k not in head and k != "_")) if head is HEAD else head
    rows = [[row.get(k, "") for k in dict.fromkeys(head)] for row in lines]
    file = root / name
    if file.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for cells in (list(dict.fromkeys(head)), *rows):
            book.active.append([None if c == "" else c for c in cells])
        book.save(file)
    else:
        with file.open("w", newline="") as opened:
            csv.writer(opened).writerows([list(dict.fromkeys(head)), *rows])
    return file


def read(file: Path, **knobs: Any) -> tuple[list[RowResult], Counter[str]]:
    told: Counter[str] = Counter()
    return list(sheet.read(Source(file, **knobs), told)), told


def samples(entries: Sequence[RowResult]) -> list[Sample]:
    return [s for e in entries for s in e.samples]


BOTH = [
    box("lung", 10, 10, 60, 45),
    box("lung", 0, 5, 9.5, 45, sentence="A clear lung."),
    line(question="Is there a nodule?", answer="yes", id="q7"),
    line("b.png", caption="A normal picture."),
    line(question="What is at [box]?", answer="nodule", x1=20, y1=20, x2=30, y2=30),
    line(question="Where is the nodule?", answer="It is at [box].", x1=20, y1=20, x2=30, y2=30, name="nodule"),
    line(question="How does [box] look?", answer="It is round, with a bright rim.", x1=20, y1=20, x2=30, y2=30),
]


@pytest.mark.parametrize("name", ["sheet.csv", "sheet.xlsx"])
def test_lines_become_questions(tmp_path: Path, name: str) -> None:
    entries, told = read(write(tmp_path, BOTH, name))
    assert [e.row for e in entries] == list(range(2, 9)) and not any(e.problem for e in entries) and not told
    by_row = {e.row: e.samples for e in entries}
    assert [s.task for s in by_row[2]] == [Task.VG, Task.ROC, Task.ROC]
    vg = by_row[2][0]
    assert vg.answer.boxes == (Box(0, 0.1, 0.095, 0.9), Box(0.1, 0.2, 0.6, 0.9)) and vg.names == ("lung",)
    (rc,) = by_row[3]
    assert (rc.task, rc.answer.text, rc.question.boxes) == (Task.RC, "A clear lung.", (Box(0, 0.1, 0.095, 0.9),))
    (qa,) = by_row[4]
    assert (qa.id, qa.task, qa.question.text, qa.answer.text) == ("q7", Task.QA, "Is there a nodule?", "yes")
    (mia,) = by_row[5]
    assert (mia.task, mia.answer.text, mia.images[0].path) == (Task.MIA, "A normal picture.", "b.png")
    nodule = Box(0.2, 0.4, 0.3, 0.6)
    (roc,), (where,), (looks,) = by_row[6], by_row[7], by_row[8]
    assert (roc.task, roc.question, roc.names) == (Task.ROC, BoxedText("What is at [box]?", (nodule,)), ("nodule",))
    assert (where.task, where.answer, where.names) == (Task.VG, BoxedText("It is at [box].", (nodule,)), ("nodule",))
    assert looks.task is Task.RC
    for s in samples(entries):
        assert (s.modality, s.group, s.source, s.side, s.split) == (Modality.CT, "P1", "sheet", "patient", None)
        assert (s.images[0].width, s.images[0].height) == (100, 50)
        assert Sample.from_json(s.to_json()) == s
    assert len({s.id for s in samples(entries)}) == len(samples(entries)) == 9


def test_columns_go_by_name_or_map(tmp_path: Path) -> None:
    head = ("Scan File", "MODALITY", "Frage", "Antwort", "Patient ", "reader")
    lines = [dict(zip(head, ("a.png", "MRI", "Was?", "Leber", "7", "Dr X"), strict=True))]
    file = write(tmp_path, lines, head=head)
    given = {"image": "scan_file", "question": "Frage", "answer": "Antwort"}
    entries, told = read(file, columns=given)
    (s,) = samples(entries)
    assert (s.question.text, s.answer.text, s.group, s.modality) == ("Was?", "Leber", "7", Modality.MR)
    assert told == {"column 'reader' is not used": 1}


def test_a_name_without_boxes_is_not_read_because_it_may_be_the_patients(tmp_path: Path) -> None:
    file = write(tmp_path, [line(question="What?", answer="liver", name="Jane Doe")], head=(*HEAD[:6], "modality"))
    entries, told = read(file)
    (s,) = samples(entries)
    assert s.names == () and "Jane" not in str(s) and told == {"column 'name' is not used": 1}


EXTENT = ("image", "name", "x", "y", "width", "height", "modality")


@pytest.mark.parametrize(("frame", "cells"), [(None, (10, 5, 50, 20)), ("normalised", (0.1, 0.1, 0.5, 0.4))])
def test_a_box_may_be_given_by_its_corner_and_its_size(tmp_path: Path, frame: str, cells: tuple[float, ...]) -> None:
    lines = [dict(zip(EXTENT, ("a.png", "lung", *cells, "ct"), strict=True))]
    entries, told = read(write(tmp_path, lines, head=EXTENT), boxes=frame)
    assert [s.task for s in samples(entries)] == [Task.VG, Task.ROC] and not told
    assert samples(entries)[0].answer.boxes == (Box(0.1, 0.1, 0.6, 0.5),)


EXTENT_FAULTS = [
    ((10, 5, 0, 20), "width", "above 0"),
    ((10, 5, 20, -1), "height", "above 0"),
    ((90, 5, 20, 20), "x,y,width,height", "outside the image"),
    ((90, 5, "", 20), "width", "other corners"),
]


@pytest.mark.parametrize(("cells", "field", "why"), EXTENT_FAULTS)
def test_a_size_that_makes_no_box_is_named(tmp_path: Path, cells: tuple[Any, ...], field: str, why: str) -> None:
    lines = [dict(zip(EXTENT, ("a.png", "lung", *cells, "ct"), strict=True))]
    entries, _ = read(write(tmp_path, lines, head=EXTENT))
    (problem,) = (e.problem for e in entries)
    assert problem is not None and problem.field == field and why in problem.why and problem.id == "a.png"


def test_the_size_of_the_image_is_no_box(tmp_path: Path) -> None:
    head = ("image", "width", "height", "caption", "modality")
    file = write(tmp_path, [dict(zip(head, ("a.png", 100, 50, "A lung.", "ct"), strict=True))], head=head)
    entries, told = read(file)
    assert len(samples(entries)) == 1 and told == {"column 'width' is not used": 1, "column 'height' is not used": 1}


OFFERS = [
    ("Bild,Frage,Antwort", "image=Bild question=Frage answer=Antwort"),
    ("Bild Datei,Frage,Antwort", "'image=Bild Datei' question=Frage answer=Antwort"),
    ("Bild,Name,links,oben,rechts,unten", "image=Bild x1=links y1=oben x2=rechts y2=unten"),
    ("Bild,Befund,x,y,Breite,Höhe", "image=Bild name=Befund x=x y=y width=Breite 'height=Höhe'"),
    ("Bild,Struktur,links,oben,Breite,Hoehe", "image=Bild name=Struktur x=links y=oben width=Breite height=Hoehe"),
    ("Image,Question,Réponse", "'answer=Réponse'"),
    ("Fichier,Nom,gauche,haut,droite,bas", "image=Fichier name=Nom x1=gauche y1=haut x2=droite y2=bas"),
    ("filename,label,bbox_xmin,bbox_ymin,bbox_xmax,bbox_ymax", "image=filename name=label x1=bbox_xmin y1=bbox_ymin "
     "x2=bbox_xmax y2=bbox_ymax"),
    ("Bild,Befund", "image=Bild caption=Befund"),
    ("filename,diagnosis", "image=filename label=diagnosis"),
]  # fmt: skip


@pytest.mark.parametrize(("head", "offer"), OFFERS)
def test_other_heads_are_offered_as_flags_that_work(tmp_path: Path, head: str, offer: str) -> None:
    file = tmp_path / "sheet.csv"
    file.write_text(f"{head}\n{','.join('1' for _ in head.split(','))}\n")
    with pytest.raises(BadInput) as refused:
        read(file)
    flags = str(refused.value).partition("perhaps: ")[2]
    given = shlex.split(flags)[1::2]
    assert given == shlex.split(offer) and flags.count("--column ") == len(given)
    read(file, columns=dict(pair.split("=") for pair in given))


def test_the_patients_name_is_never_offered(tmp_path: Path) -> None:
    file = tmp_path / "sheet.csv"
    file.write_text("Bild,Nom,Frage,Antwort\na.png,Doe,Was?,Leber\n")
    with pytest.raises(BadInput, match="perhaps: (?!.*Nom)"):
        read(file)


HEADS = [
    (
        ("image", "name", "x", "y", "width", "height"),
        {"x1": "x", "y1": "y", "x2": "width", "y2": "height"},
        "'width' is a size, and x2 a corner: give --column x=x --column y=y --column width=width --column height",
    ),
    (("image", "Frage", "Antwort"), {"questoin": "Frage"}, "did you mean question=Frage"),
    (("image", "Frage", "Antwort"), {"Frage": "question"}, "did you mean question=Frage"),
    (("file", "question", "answer"), {}, "none is the image"),
    (("image", "modality"), {}, "nothing to ask"),
    (("image", "name"), {}, "nothing to ask"),
    (("image", "question"), {}, "question without answer"),
    (("image", "answer", "caption"), {}, "answer without question"),
    (("image", "name", "x1", "y1", "x2"), {}, "without y2"),
    (("image", "name", "box", "x1", "y1", "x2", "y2"), {}, "boxes stand both"),
    (("image", "Caption", "caption "), {}, "both mean caption|stands twice"),
    (("image", "caption", "X 1", "x1"), {}, "both mean x1"),
    (("image", "caption"), {"caption": "text"}, r"its columns are image, caption; there is no 'text'"),
    (("image", "caption"), {"colour": "caption"}, "one of image, modality"),
]


@pytest.mark.parametrize(("head", "columns", "why"), HEADS)
def test_a_head_that_cannot_be_understood_is_refused(
    tmp_path: Path, head: tuple[str, ...], columns: dict[str, str], why: str
) -> None:
    file = tmp_path / "sheet.csv"
    file.write_text(",".join(head) + "\n" + ",".join("a" for _ in head) + "\n")
    with pytest.raises(BadInput, match=why) as refused:
        read(file, columns=columns)
    assert "\n" not in str(refused.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no sheet"):
        read(tmp_path)
    file = write(tmp_path, [line(caption="x")])
    assert samples(read(tmp_path)[0]) == samples(read(file)[0]) != []
    (tmp_path / "other.csv").write_text("image,caption\n")
    with pytest.raises(BadInput, match="the sheets other.csv, sheet.csv"):
        read(tmp_path)
    with pytest.raises(BadInput, match="no lines below the head"):
        read(tmp_path / "other.csv")
    with pytest.raises(BadInput, match="--boxes digits"):
        read(file, boxes="digits")


FAULTS: list[tuple[Cells, str, str]] = [
    (line("", caption="x"), "image", "fill merged cells down"),
    (line("none.png", caption="x"), "image", "no such file"),
    (line("A", caption="x"), "image", "did you mean a.png?"),
    (line("a.jpg", caption="x"), "image", "did you mean a.png?"),
    (line("sub\\cc.png", caption="x"), "image", "did you mean sub/c.png?"),
    (line("D:\\scans\\a.png", caption="x"), "image", "did you mean a.png?"),
    (line("sub/cc.png", caption="x"), "image", "did you mean sub/c.png?"),
    (line("../a.png", caption="x"), "image", "leads out"),
    (line("sheet.csv", caption="x"), "image", "not an image"),
    (line("f.tif", caption="x"), "image", "2 frames and none is named"),
    (line("f.tif", caption="x", frame="3"), "image", "frame 3 of 2"),
    (line("f.tif", caption="x", frame="0"), "frame", "from 1"),
    (line("f.tif", caption="x", frame="1.5"), "frame", "from 1"),
    (line("b.png", caption="x", modality="thermography"), "modality", "unknown"),
    (line("b.png", caption="x", modality=""), "modality", "--modality"),
    (box("lung", 10, 10, 101, 20, image="b.png"), "x1,y1,x2,y2", "100x50"),
    (box("lung", 20, 10, 10, 20, image="b.png"), "x1,y1,x2,y2", "swapped"),
    (box("lung", -1, 10, 10, 20, image="b.png"), "x1,y1,x2,y2", "negative"),
    (box("lung", 0.1, 0.1, 0.5, 0.5, image="b.png"), "x1,y1,x2,y2", "give --boxes normalised"),
    (line("b.png", name="lung", x1="1", y1="2", x2="3"), "y2", "other corners"),
    (line("b.png", name="lung", x1="12,5", y1="2", x2="30", y2="9"), "x1", "a comma in a number"),
    (line("b.png", name="lung", x1="1,200", y1="2", x2="30", y2="9"), "x1", "a comma in a number"),
    (line("b.png", name="lung", x1="1.200,5", y1="2", x2="30", y2="9"), "x1", "a comma in a number"),
    (line("b.png", name="lung", x1="12px", y1="2", x2="30", y2="9"), "x1", "not a number"),
    (line("b.png", name="lung", x1="nan", y1="2", x2="30", y2="9"), "x1", "empty, where other corners"),
    (line("b.png", name="lung", x1="1_0", y1="2", x2="30", y2="9"), "x1", "not a number"),
    (line("b.png", name="lung"), "x1,y1,x2,y2", "no box for 'lung'"),
    (line("b.png", x1=1, y1=2, x2=3, y2=4), "name", "the box has no name"),
    (line("b.png", sentence="A round mass."), "sentence", "no box"),
    (box("a [box]", 1, 2, 3, 4, image="b.png"), "name", "kept for"),
    (line("b.png", question="What?"), "answer", "empty, where the question"),
    (line("b.png", answer="lung"), "question", "empty, where the answer"),
    (line("b.png", question="What is [box]?", answer="lung"), "question", "no box on the line"),
    (line("b.png", question="What?", answer="[box], [box]", x1=1, y1=2, x2=3, y2=4), "answer", "2 [box] marks"),
    (line("b.png", caption="x", split="holdout"), "split", "train, validation or test"),
    (line("b.png", caption="x", side="left"), "side", "whose left"),
    (line("b.png", caption="x", window="lung"), "window", "no DICOM"),
    (line("b.png", question="Why?", answer="x", id="q7"), "id", "already used by row 4"),
    (line("a.png", caption="x", patient="P2"), "patient", "row 2 says P1"),
    (line("a.png", caption="x", modality="pet"), "modality", "row 2 says ct"),
    (BOTH[0], "row", "the same as row 2"),
]


@pytest.mark.parametrize("label", ["1", "-1.0", "1.0", "0"])
def test_a_code_is_no_word_for_what_an_image_shows(tmp_path: Path, label: str) -> None:
    lines = [line("a.png", label="mass"), line("b.png", label=label)]
    entries, _ = read(write(tmp_path, lines, head=("image", "modality", "label")))
    assert [(p.row, p.field, p.value) for e in entries if (p := e.problem)] == [(3, "label", label)]


@pytest.mark.parametrize(("bad", "field", "why"), FAULTS, ids=[f"{k}-{f[1]}" for k, f in enumerate(FAULTS)])
def test_a_line_at_fault_is_named_and_the_rest_is_read(tmp_path: Path, bad: Cells, field: str, why: str) -> None:
    good = [*BOTH[:3], line("sub/c.png", caption="Fine.")]
    entries, _ = read(write(tmp_path, [*good, bad, line("d.png", caption="Last.")]))
    problems = [e.problem for e in entries if e.problem]
    assert [(p.row, p.field) for p in problems] == [(6, field)]
    assert why in str(problems[0]) and "\n" not in str(problems[0])
    assert problems[0].kind == ("duplicate" if why.startswith("the same") else "row")
    assert [e.row for e in entries] == list(range(2, 8))
    assert entries[-1].samples[0].answer.text == "Last."
    whole = {s.images[0].path for s in samples(entries)}
    assert ("a.png" in whole) == (bad["image"] != "a.png" or why.startswith("the same"))


def test_a_number_that_lost_its_zeros_is_known(tmp_path: Path) -> None:
    for name in ("scan05.png", "scan15.png", "scan100.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    for bad, good in (("scan5", "scan05.png"), ("scan5.png", "scan05.png"), ("scan0100.png", "scan100.png")):
        entries, _ = read(write(tmp_path, [line(bad, caption="x")]))
        assert entries[0].problem and f"did you mean {good}?" in str(entries[0].problem)


def test_all_faults_are_found_at_once(tmp_path: Path) -> None:
    lines = [BOTH[0], BOTH[1], BOTH[2], *(bad for bad, _, _ in FAULTS)]
    entries, _ = read(write(tmp_path, lines))
    assert len(entries) == len(lines)
    # the line without modality takes that of its image, which another line tells
    assert sum(e.problem is not None for e in entries) == len(FAULTS) - 1
    assert samples(entries) == []


AT_FAULT = [box("lung", 1, 1, 200, 20), box("", 1, 1, 200, 20), line(question="What?"), line("", caption="x"),
            box("lung", 1, 1, 20, 20, modality="pet")]  # fmt: skip
KEPT = [["heart", "x"], [], ["heart", "lung", "x"], [], []]


@pytest.mark.parametrize(("bad", "kept"), list(zip(AT_FAULT, KEPT, strict=True)))
def test_a_fault_takes_out_what_it_leaves_open_and_that_is_counted(tmp_path: Path, bad: Cells, kept: list[str]) -> None:
    """A question asks for all boxes of a name; what a line says of its image counts for all of it."""
    lines = [
        box("lung", 1, 1, 20, 20), box("heart", 30, 1, 60, 20), line(question="What?", answer="x"), bad,
        box("lung", 1, 1, 20, 20, image="b.png"),
    ]  # fmt: skip
    entries, told = read(write(tmp_path, lines))
    assert [bool(e.problem) for e in entries] == [False, False, False, True, False]
    of_a = [s for s in samples(entries) if s.images[0].path == "a.png"]
    asked = sorted(name for s in of_a if s.task in (Task.VG, Task.QA) for name in s.names or (s.answer.text,))
    assert asked == kept
    if kept:
        assert {n for s in of_a if s.task is Task.ROC for n in s.names} == {"heart", "lung"}  # each box for itself
    else:
        assert told == {sheet.LEFT_OUT_NOTE: 3} and not of_a


def test_lines_below_a_merged_cell_are_not_called_duplicates(tmp_path: Path) -> None:
    below = {"question": "Is there a nodule?", "answer": "no"}
    pairs = [cells for name in ("a.png", "b.png") for cells in (line(name, question="What?", answer="lung"), below)]
    entries, _ = read(write(tmp_path, pairs))
    assert [(p.field, "merged cells" in p.why) for e in entries if (p := e.problem)] == [("image", True)] * 2


def test_a_missing_image_names_the_flag_that_finds_it(tmp_path: Path) -> None:
    file = write(tmp_path, [line(caption="x"), line("b.png", caption="x")])
    scans = tmp_path / "my scans"
    scans.mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / name).rename(scans / name)
    for knobs, hint in (
        ({}, f"it lies in {scans}: give --images '{scans}'"),
        ({"images": tmp_path}, f"it lies in {scans}: give --images '{scans}'"),
        ({"images": tmp_path / "sub"}, "check the path; did you mean c.png?"),
    ):
        first, second = (str(e.problem) for e in read(file, **knobs)[0])
        assert first.endswith(hint) and first.partition(": no such")[2] == second.partition(": no such")[2]
    file = write(tmp_path, [line("my scans/b.png", caption="x")])
    (scans / "a.png").rename(tmp_path / "a.png")
    assert "give --prefix 'my scans'/" in str(read(file, images=scans)[0][0].problem)
    with pytest.raises(BadInput, match="--images .*: no such folder"):
        read(file, images=tmp_path / "scnas")


def test_a_line_that_tells_no_image_takes_out_the_one_above(tmp_path: Path) -> None:
    lines = [box("lung", 1, 1, 20, 20), {"name": "lung", "x1": 30, "y1": 1, "x2": 40, "y2": 20}]
    entries, told = read(write(tmp_path, [*lines, line("b.png", caption="x")]))
    assert {s.images[0].path for s in samples(entries)} == {"b.png"} and told == {sheet.LEFT_OUT_NOTE: 1}


def test_a_line_that_tells_no_frame_takes_out_all_of_them(tmp_path: Path) -> None:
    lines = [box("lung", 1, 1, 9, 9, image="f.tif", frame=k) for k in ("1", "2", "x")]
    entries, told = read(write(tmp_path, lines))
    assert samples(entries) == [] and told == {sheet.LEFT_OUT_NOTE: 2}
    assert len(samples(read(write(tmp_path, lines[:2]))[0])) == 4


def test_a_torn_line_takes_out_the_image_it_names(tmp_path: Path) -> None:
    file = write(tmp_path, [box("lung", 1, 1, 20, 20), box("lung", 1, 1, 20, 20, image="b.png")])
    file.write_text(file.read_text() + "a.png,ct,P1,,,lung,12,5,1,20,20,,x\n")
    entries, told = read(file)
    assert "13 cells" in str(entries[2].problem)
    assert {s.images[0].path for s in samples(entries)} == {"b.png"} and told == {sheet.LEFT_OUT_NOTE: 1}


def test_without_boxes_each_line_stands_alone(tmp_path: Path) -> None:
    head = ("image", "modality", "question", "answer")
    lines = [line(question="One?", answer="1"), line(question="Two?"), line(question="Three?", answer="3")]
    entries, told = read(write(tmp_path, lines, head=head))
    assert [s.answer.text for s in samples(entries)] == ["1", "3"] and not told
    assert [e.row for e in entries if e.problem] == [3]


def pixels(of: Box) -> tuple[int, ...]:
    return tuple(round(v * side) for v, side in zip(of.to_json(), (100, 50, 100, 50), strict=True))


def test_an_image_of_two_patients_is_left_out_with_or_without_boxes(tmp_path: Path) -> None:
    lines = [line(question="One?", answer="1"), line(question="Two?", answer="2", patient="P2")]
    entries, told = read(write(tmp_path, lines, head=("image", "modality", "patient", "question", "answer")))
    assert samples(entries) == [] and told == {sheet.LEFT_OUT_NOTE: 1} and entries[1].problem is not None


def test_scattered_lines_make_one_image(tmp_path: Path) -> None:
    dice = random.Random(0)
    boxes = [
        (image, name, x, y, x + dice.randrange(1, 20), y + dice.randrange(1, 20))
        for image in ("a.png", "b.png", "sub/c.png", "f.tif#1", "f.tif#2")
        for name in ("lung", "cell", "cyst")
        for x, y in [(dice.randrange(80), dice.randrange(30)) for _ in range(3)]
    ]
    for _ in range(3):
        dice.shuffle(boxes)
        lines = [box(name, *corners, image=image, patient=image) for image, name, *corners in boxes]
        entries, told = read(write(tmp_path, lines))
        assert not told and not any(e.problem for e in entries)
        found = {
            (s.images[0].path, s.names[0]): {pixels(b) for b in s.answer.boxes}
            for s in samples(entries)
            if s.task is Task.VG
        }
        truth: dict[tuple[str, str], set[tuple[float, ...]]] = {}
        for image, name, *corners in boxes:
            truth.setdefault((image, name), set()).add(tuple(corners))
        assert found == truth
        assert sum(s.task is Task.ROC for s in samples(entries)) == sum(len(v) for v in truth.values())


def test_a_box_in_a_question_counts_where_its_name_is_asked_for(tmp_path: Path) -> None:
    marked = box("lung", 50, 1, 70, 20, question="What is [box]?", answer="lung")
    (vg,) = (s for s in samples(read(write(tmp_path, [box("lung", 1, 1, 20, 20), marked]))[0]) if s.task is Task.VG)
    assert len(vg.answer.boxes) == 2
    assert [s.task for s in samples(read(write(tmp_path, [marked]))[0])] == [Task.ROC]


def test_boxes_and_captions_repeated_for_a_question_are_taken_once(tmp_path: Path) -> None:
    lines = [box("lung", 1, 1, 20, 20, question=q, answer="x", caption="All well.") for q in ("One?", "Two?")]
    entries, told = read(write(tmp_path, lines))
    assert Counter(s.task for s in samples(entries)) == {Task.VG: 1, Task.ROC: 1, Task.QA: 2, Task.MIA: 1}
    assert told == {"boxes given on more than one line, taken once": 1}


def test_lines_that_ask_nothing_are_counted(tmp_path: Path) -> None:
    entries, told = read(write(tmp_path, [line(), line("b.png", caption="x")]))
    assert len(samples(entries)) == 1 and told == {"lines that name an image and no question, box or caption": 1}


@pytest.mark.parametrize(
    ("boxes", "cell", "wanted"),
    [
        (None, "10,20,30,40", Box(0.1, 0.4, 0.3, 0.8)),
        (None, "[10, 20, 30.5, 40]", Box(0.1, 0.4, 0.305, 0.8)),
        ("normalised", "[0.1, 0.4, 3e-1, 1]", Box(0.1, 0.4, 0.3, 1)),
        ("qwen2-vl", "100,400,300,999", Box(0.1, 0.4, 0.3, 0.999)),
        (None, "12,5,20,1,30,2,40,0", "four numbers"),
        (None, "10;20;30;40", "four numbers"),
        (None, "10,20,30", "four numbers"),
        (None, "10,20,,40", "empty; four numbers"),
        ("normalised", "10,20,30,40", "not fractions 0 to 1"),
        ("normalised", "0.9,0.8,0.6,0.5", "empty or outside"),
        ("normalised", "-0.3,0.4,0.1,0.5", "empty or outside"),
        ("qwen2-vl", "0.1,0.2,0.3,0.4", "not thousandths"),
        ("qwen2-vl", "10,20,30,1024", "not thousandths"),
    ],
)
def test_frames_of_boxes(tmp_path: Path, boxes: str | None, cell: str, wanted: Box | str) -> None:
    file = write(tmp_path, [line(name="lung", box=cell)], head=("image", "modality", "name", "box"))
    (entry,) = read(file, boxes=boxes)[0]
    if isinstance(wanted, Box):
        assert entry.samples[0].answer.boxes == (wanted,)
    else:
        assert entry.problem is not None and entry.problem.field == "box" and wanted in entry.problem.why


def test_what_one_line_says_counts_for_the_image(tmp_path: Path) -> None:
    lines = [
        {"image": "a.png", "caption": "One."},
        line(caption="Two.", split="VAL", side="image"),
        line("f.tif", caption="Three.", frame="2.0"),
    ]
    entries, _ = read(write(tmp_path, lines), split="train")
    one, two, three = samples(entries)
    assert one.group == two.group == "P1" and one.split == two.split == "validation" and one.side == "image"
    assert (three.images[0].path, three.split, three.side) == ("f.tif#2", "train", "patient")


def test_the_patient_is_that_of_the_column_the_expression_the_header_or_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = ("image", "caption", "patient", "modality")
    lines = [line("a.png", caption="x"), {"image": "f.tif#2", "caption": "y", "modality": "us"}]
    file = write(tmp_path, lines, head=head)
    entries, told = read(file)
    (problem,) = (e.problem for e in entries if e.problem)  # a patient of merged cells, say: a split could tear it
    assert [s.group for s in samples(entries)] == ["P1"] and problem.row == 3
    assert problem.field == "patient" and "where other images have one" in problem.why and not told
    assert [s.group for s in samples(read(file, group=r"^(\w)\.")[0])] == ["P1", "f"]
    (problem,) = (e.problem for e in read(file, group=r"(\d{5})")[0] if e.problem)
    assert problem.row == 3 and "finds no patient" in problem.why
    facts = SimpleNamespace(modality=Modality.PET, patient="hash")
    monkeypatch.setattr(ImageResolver, "header", lambda self, path: facts)
    assert [s.group for s in samples(read(file)[0])] == ["P1", "hash"]


def test_the_header_tells_the_modality_and_windows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"image": "a.png", "caption": "x", "window": "lung"}, {"image": "a.png", "caption": "y"},
        {"image": "b.png", "caption": "z", "modality": "us"}, {"image": "a.png", "caption": "w", "window": "bone"},
    ]  # fmt: skip
    monkeypatch.setattr(
        ImageResolver, "header", lambda self, path: SimpleNamespace(modality=Modality.PET, patient="", study="")
    )
    file = write(tmp_path, lines[:3])
    found = samples(read(file)[0])
    assert [(s.modality, s.images[0].window) for s in found] == [
        (Modality.PET, "lung"), (Modality.PET, "lung"), (Modality.ULTRASOUND, None),
    ]  # fmt: skip
    assert samples(read(file, modality=Modality.OTHER)[0])[0].modality is Modality.OTHER
    problems = [e.problem for e in read(write(tmp_path, lines))[0] if e.problem]
    assert [(p.row, p.field) for p in problems] == [(5, "window")] and "row 2 says lung" in problems[0].why


def test_of_a_real_dicom_the_header_tells_what_the_sheet_does_not(tmp_path: Path) -> None:
    scan = tmp_path / "IM0001"
    shutil.copy(get_testdata_file("CT_small.dcm"), scan)
    file = tmp_path / "sheet.csv"
    rows = ["image,caption,window,patient", "IM0001,One.,lung,", "IM0001,Two.,,"]
    file.write_text("\n".join(rows))
    for s in samples(read(file)[0]):
        facts = Dicom().describe(scan, "")
        assert (s.modality, s.group, s.images[0].window) == (Modality.CT, facts.patient, "lung") and facts.patient
        assert (s.images[0].width, s.images[0].height) == (128, 128)
    assert len(samples(read(file)[0])) == 2
    for window, why in (("lungg", "not known"), ("7", "the file has no more"), ("40/0", "not known")):
        file.write_text("\n".join([rows[0], f"IM0001,One.,{window},"]))
        (entry,) = read(file)[0]
        assert entry.problem is not None and (entry.problem.row, entry.problem.field) == (2, "window")
        assert why in entry.problem.why


def test_a_sheet_asks_what_the_records_it_was_made_of_ask(tmp_path: Path, shared: Path) -> None:
    """The reader of records.jsonl is the oracle: the same real boxes and questions, a line each, in any order."""
    folder = shared / "data" / "dev"
    records = [json.loads(row) for row in (folder / "records.jsonl").read_text().splitlines()[::4]]
    short = tmp_path / "records.jsonl"
    short.write_text("".join(json.dumps(r) + "\n" for r in records))
    lines = []
    for r in records:
        common = {"image": r["image"], "modality": r["modality"]}
        for thing in r["objects"]:
            lines.append(common | {"name": thing["name"], "box": str(thing["box"])})
        lines += [common | {"question": q["question"], "answer": q["answer"]} for q in r["qa"]]
    random.Random(0).shuffle(lines)
    head = ("image", "modality", "name", "box", "question", "answer")
    file = tmp_path / "sheet.csv"
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, head, restval="")
        writer.writeheader()
        writer.writerows(lines)

    def content(entries: Sequence[RowResult]) -> Counter[Any]:
        assert not any(e.problem for e in entries if e.problem and e.problem.kind != "duplicate")
        return Counter(
            (s.task, s.images[0], s.modality, s.names, frozenset(s.question.boxes), frozenset(s.answer.boxes))
            + ((s.question.text, s.answer.text) if s.task is Task.QA else ())
            for s in samples(entries)
        )

    oracle = content(list(boxes_reader.read(Source(short, images=folder), Counter())))
    assert sum(oracle.values()) > 300
    assert content(read(file, images=folder)[0]) == oracle


def test_knobs_of_asking(tmp_path: Path) -> None:
    lines = [box("cell", k, 0, k + 5, 5, sentence=f"Cell {k}.") for k in range(0, 60, 6)]
    file = write(tmp_path, lines)
    entries, told = read(file)
    assert Counter(s.task for s in samples(entries)) == {Task.ROC: 10, Task.RC: 10}
    assert told == {"names with more than max_boxes=4 boxes in one image": 1}
    assert Counter(s.task for s in samples(read(file, tasks=(Task.RC,))[0])) == {Task.RC: 10}
    few, told = read(file, max_questions=3, max_boxes=10)
    everything = {s.id: s for s in samples(read(file, max_boxes=10)[0])}
    assert len(samples(few)) == 3 and all(everything[s.id] == s for s in samples(few))
    assert told == {"questions beyond max_questions=3 an image": len(everything) - 3}
    assert read(file, max_questions=3)[0] == read(file, max_questions=3)[0]


def test_the_task_of_questions_can_be_said(tmp_path: Path) -> None:
    lines = [line(question="What?", answer="x", x1=1, y1=1, x2=9, y2=9, name="lung")]
    file = write(tmp_path, lines)
    assert {s.task for s in samples(read(file, task=Task.MIA)[0])} == {Task.MIA, Task.VG, Task.ROC}
    for task, field in ((Task.VG, "answer"), (Task.ROC, "question"), (Task.RC, "question")):
        (entry,) = read(file, task=task)[0]
        assert entry.problem is not None and entry.problem.field == field and f"of {task}" in entry.problem.why


def test_excel_habits(tmp_path: Path) -> None:
    file = write(tmp_path, [], "sheet.xlsx")
    book = openpyxl.Workbook()
    book.active.append(["Image", "Modality", "ID", "Question ", "Answer"])
    book.active.append(["a.png ", "CT", 1.0, " What? ", 12])
    book.active.append([None] * 5)
    book.active.append(["a.png", "CT", 2.0, "How much?", 0.5])
    book.save(file)
    entries, _ = read(file)
    assert [(e.row, e.samples[0].id, e.samples[0].answer.text) for e in entries] == [(2, "1", "12"), (4, "2", "0.5")]


def test_images_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, [])
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists" / "x.csv"
    file.write_text("image,modality,caption\n/old/place/a.png,ct,one\n/old/place/./a.png,ct,two\n")
    entries, _ = read(file, images=tmp_path, prefix="/old/place/")
    assert not any(e.problem for e in entries)
    entries, _ = read(file, images=tmp_path, prefix="/old/place/", open_images=False)
    assert samples(entries)[1].images[0].width is None and {s.group for s in samples(entries)} == {"a.png"}
    entries, _ = read(file, images=tmp_path)
    assert all(e.problem and "--prefix" in e.problem.why for e in entries)


def test_many_missing_images_are_named_in_seconds(tmp_path: Path) -> None:
    file = write(tmp_path, [])
    file.write_text("image,caption,modality\n" + "".join(f"img{k},x,ct\n" for k in range(5000)))
    entries, _ = read(file)
    assert sum(e.problem is not None for e in entries) == 5000


def test_words_for_no_value_ask_nothing_and_are_no_patient(tmp_path: Path) -> None:
    lines = [line(question="nan", answer="NaN"), line("b.png", question="Is it?", answer="None"),
             line("d.png", question="Is it?", answer="none"), line("sub/c.png")]  # fmt: skip
    entries, told = read(write(tmp_path, [{**cells, "patient": "nan"} for cells in lines]))
    problems = [(e.problem.row, e.problem.field, e.problem.value) for e in entries if e.problem]
    assert problems == [(2, "question", "nan"), (3, "answer", "None")]
    assert [(s.answer.text, s.group) for s in samples(entries)] == [("none", "d.png")]
    assert told == {"lines that name an image and no question, box or caption": 1}
    box_of_nan = box("nan", 1, 1, 9, 9)
    [entry], _ = read(write(tmp_path, [box_of_nan]))
    assert entry.problem and entry.problem.field == "name" and entry.problem.value == "nan"


def test_an_image_is_found_under_another_spelling_of_its_name(tmp_path: Path) -> None:
    file = write(tmp_path, [])
    composed, decomposed = "M\u00fcller.png", "Mu\u0308ller.png"
    Image.new("RGB", (100, 50)).save(tmp_path / "sub" / decomposed)
    Image.new("RGB", (100, 50)).save(tmp_path / "twice.png")
    Image.new("RGB", (100, 50)).save(tmp_path / "twice.jpg")
    spelled = {f"sub/{composed}": f"sub/{decomposed}", "sub\\c.png": "sub/c.png", "a": "a.png", "f#2": "f.tif#2"}
    lines = [box("lung", 10, 10, 60, 45, image=name) for name in spelled]
    file = write(tmp_path, [*lines, box("lung", 1, 1, 9, 9, image="twice")])
    entries, told = read(file)
    assert [s.images[0].path for s in samples(entries) if s.task is Task.VG] == list(spelled.values())
    assert told == {"image files found under another spelling of their names": 4}
    assert [e.problem.row for e in entries if e.problem] == [6], "two files have that stem"


def test_no_finding_asks_nothing(tmp_path: Path) -> None:
    entries, told = read(write(tmp_path, [line(name="No finding"), box("cyst", 1, 1, 9, 9, image="b.png")]))
    assert [s.names for s in samples(entries)] == [("cyst",)] * 2 and not any(e.problem for e in entries)
    assert told["lines that say 'No finding' and have no box, of which nothing is asked"] == 1


def test_an_answer_of_visual_grounding_may_deny(tmp_path: Path) -> None:
    rows = [line(question="Where is the cyst?", answer=a) for a in ("Not there.", "There is no cyst.", "here")]
    results, _ = read(write(tmp_path, rows), task=Task.VG)
    assert [[s.answer.text for s in r.samples] for r in results] == [["Not there."], ["There is no cyst."], []]
    assert results[2].problem is not None and "no [box] in an answer of VG" in results[2].problem.why

"""Answers of `clinkd ask` to an archive: what is sent, what is not, and that each object is sent once."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image

from clinkd import cli
from clinkd.hospital.push import PushPlan, PushResult, push
from clinkd.pacs import ArchiveUnreachable
from clinkd.records import BadInput, Box
from clinkd.storage import sha256_file, write_csv
from clinkd.workflows.batch import COLUMNS, _spell_record
from dicom_images import COLUMNS as WIDTH
from dicom_images import ROWS as HEIGHT
from dicom_images import make_image
from structured_reports import read_report

MODEL = "demo/reflect@0123456789abcdef"
DOUBTS = [
    {"kind": "no_box", "message": "no box given, though asked; see"},
    {"kind": "unknown_name", "message": "not a name this model learned: x (nearest: y, z)"},
]


class Kept:
    """An archive in memory. `fails`: what a call does instead, by its number from 1."""

    def __init__(self, fails: dict[int, BadInput] | None = None) -> None:
        self.objects: list[pydicom.Dataset] = []
        self.contents: list[bytes] = []
        self.calls, self.fails = 0, fails or {}

    def store(self, content: bytes) -> None:
        self.calls += 1
        if error := self.fails.get(self.calls):
            raise error
        self.contents.append(content)
        self.objects.append(pydicom.dcmread(io.BytesIO(content)))


def record_of(folder: Path, number: int, name: str, **more: Any) -> dict[str, Any]:
    path = folder / name.partition("#")[0]
    uid = str(pydicom.dcmread(path).SOPInstanceUID) if path.suffix == ".dcm" else ""
    record: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    record |= {"id": f"q{number}", "image": name, "sha256": sha256_file(path), "sop_instance_uid": uid}
    record |= {"question": "Where; is it?", "answer": "Here [box] and [box].", "model": MODEL, "candidates": []}
    record |= {"boxes": [[0.25, 0.5, 0.75, 1.0], [0, 0.1, 0.5, 0.2000001]], "boxes_pixels": [], "warnings": []}
    return record | {"box_names": ["liver", "left kidney"]} | more


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for form, name in (("CT", "ct"), ("US film", "film"), ("CR", "cr")):
        (folder / f"{name}.dcm").write_bytes(make_image(form))
    Image.new("RGB", (20, 20)).save(folder / "photo.png")
    return folder


def write_answers(folder: Path, records: list[dict[str, Any]], suffix: str = ".csv") -> Path:
    file = folder / f"answers{suffix}"
    if suffix == ".jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        with file.open("w", newline="", encoding="utf-8-sig") as out:
            write_csv(out, [COLUMNS, *map(_spell_record, records)])
    os.utime(file, (1.8e9, 1.8e9))
    return file


@pytest.fixture
def plan(tmp_path: Path, images: Path) -> PushPlan:
    nothing = {"boxes": [], "box_names": [], "answer": "No."}
    records = [
        record_of(images, 1, "ct.dcm", warnings=DOUBTS, confidence=0.8125), record_of(images, 2, "film.dcm#3"),
        record_of(images, 3, "cr.dcm", **nothing),
    ]  # fmt: skip
    return PushPlan(write_answers(tmp_path, records), images, "https://pacs/dicom-web", segment=True)


def counted(result: PushResult) -> tuple[int, int, int, int]:
    return result.rows, result.sent, result.before, len(result.problems)


def test_an_answer_becomes_a_report_and_a_segmentation(plan: PushPlan, images: Path) -> None:
    archive = Kept()
    assert counted(push(plan, archive)) == (3, 5, 0, 0)
    assert [ds.Modality for ds in archive.objects] == ["SR", "SEG", "SR", "SEG", "SR"]
    first, film, last = (read_report(archive.contents[n], WIDTH, HEIGHT) for n in (0, 2, 4))
    assert (first.question, first.answer) == ("Where; is it?", "Here [box] and [box].")
    assert [(r.label, r.by) for r in first.regions] == [("liver", "model"), ("left kidney", "model")]
    assert first.regions[0].box == Box(0.25, 0.5, 0.75, 1)
    assert (first.model.name, first.model.version.partition("+")[2]) == ("demo/reflect", "0123456789abcdef")
    assert (film.frame, last.frame, last.regions) == (3, 1, ())
    for ds, name in zip(archive.objects, ("ct", "ct", "film", "film", "cr"), strict=True):
        source = pydicom.dcmread(images / f"{name}.dcm")
        assert ds.StudyInstanceUID == source.StudyInstanceUID
        assert {e.value for e in ds.iterall() if e.keyword == "ReferencedSOPInstanceUID"} == {source.SOPInstanceUID}
    texts = {str(e.value) for e in archive.objects[0].iterall() if e.keyword == "TextValue"}
    assert {doubt["message"] for doubt in DOUBTS} <= texts
    numbers = [[float(e.value) for e in ds.iterall() if e.keyword == "NumericValue"] for ds in archive.objects]
    assert 0.8125 in numbers[0] and 0.8125 not in numbers[2]


def test_both_forms_of_answers_give_the_same_objects(plan: PushPlan, images: Path, tmp_path: Path) -> None:
    csv, jsonl = Kept(), Kept()
    push(plan, csv)
    records = [
        record_of(images, 1, "ct.dcm", warnings=DOUBTS, confidence=0.8125), record_of(images, 2, "film.dcm#3"),
        record_of(images, 3, "cr.dcm", boxes=[], box_names=[], answer="No."),
    ]  # fmt: skip
    push(replace(plan, answers=write_answers(tmp_path, records, ".jsonl")), jsonl)
    assert csv.contents == jsonl.contents


@pytest.mark.parametrize("step", [70, pytest.param(9, marks=pytest.mark.slow)])
def test_a_journal_that_is_cut_in_its_last_line_goes_on(plan: PushPlan, step: int) -> None:
    whole = Kept()
    push(plan, whole)
    journal = plan.journal.read_bytes()
    begin = journal.rindex(b"\n", 0, -1) + 1
    for end in range(begin, len(journal), step):
        plan.journal.write_bytes(journal[:end])
        rest = Kept()
        assert counted(push(plan, rest)) == (3, 1, 4, 0) and rest.contents == whole.contents[-1:]
        assert plan.journal.read_bytes() == journal


def test_the_same_answers_are_not_sent_by_two_at_once(plan: PushPlan) -> None:
    """Their lines of the journal would be written over each other."""

    class Meanwhile(Kept):
        def store(self, content: bytes) -> None:
            with pytest.raises(BadInput, match="another process sends these answers; wait for it"):
                push(plan, Kept())
            super().store(content)

    assert push(plan, Meanwhile()).sent == 5 and push(plan, Kept()).before == 5


def test_what_was_sent_is_not_sent_again(plan: PushPlan) -> None:
    whole, lost = Kept(), Kept({3: ArchiveUnreachable("the archive does not answer")})
    push(replace(plan, destination=""), whole)
    assert not plan.journal.exists()  # nothing was sent anywhere that has a name
    with pytest.raises(ArchiveUnreachable):
        push(plan, lost)
    os.utime(plan.answers)  # the time of the answers is that of the first push
    rest = Kept()
    assert counted(push(plan, rest)) == (3, 3, 2, 0) and lost.contents + rest.contents == whole.contents
    assert counted(push(plan, Kept())) == (3, 0, 5, 0)
    other = Kept()
    assert push(replace(plan, destination="dicom://OTHER@b:1"), other).sent == 5 and other.contents == whole.contents
    plan.journal.unlink()
    anew = Kept()
    push(plan, anew)  # a copy without a journal: the same objects, by UID
    assert [ds.SOPInstanceUID for ds in anew.objects] == [ds.SOPInstanceUID for ds in whole.objects]


def test_what_cannot_be_sent_is_named_and_the_rest_is_sent(plan: PushPlan, images: Path, tmp_path: Path) -> None:
    (images / "old.dcm").write_bytes(make_image("MR"))
    gone = record_of(images, 5, "old.dcm")
    (images / "old.dcm").unlink()
    (images / "mr.dcm").write_bytes(make_image("MR"))
    records = [
        record_of(images, 1, "ct.dcm", error="the question is too long"), record_of(images, 2, "photo.png"),
        record_of(images, 3, "mr.dcm", sha256="0" * 64), record_of(images, 4, "mr.dcm", box_names=["one"]), gone,
        record_of(images, 6, "mr.dcm", boxes=[[0, 0, 2, 2]], box_names=["a"]), record_of(images, 7, "mr.dcm"),
        record_of(images, 8, "cr.dcm"), record_of(images, 9, "cr.dcm", image="../x.dcm"),
    ]  # fmt: skip
    plan = replace(plan, answers=write_answers(tmp_path, records, ".jsonl"), segment=False)
    archive = Kept({1: BadInput("the archive refuses an object: out of resources")})
    result = push(plan, archive)
    assert counted(result) == (9, 1, 0, 8)
    said = (
        "too long",
        "not a DICOM",
        "was changed",
        "2 boxes have 1 names",
        "no such file",
        "",
        "out of resources",
        "",
    )
    for problem, words, number in zip(result.problems, said, (1, 2, 3, 4, 5, 6, 7, 9), strict=True):
        assert problem.startswith(f"row q{number}: ") and words in problem and "\n" not in problem
    assert counted(push(plan, Kept())) == (9, 1, 1, 7)  # what was refused is tried again


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.unlink(), "no such file"),
        (lambda file: file.write_text("image,question\na,b\n"), "no column sha256"),
        (lambda file: file.write_text(",".join(COLUMNS) + "\n"), "holds no answer"),
    ],
)
def test_answers_that_are_refused(plan: PushPlan, change: Callable[[Path], None], said: str) -> None:
    change(plan.answers)
    with pytest.raises(BadInput, match=said):
        push(plan, Kept())


def pushed(*words: object) -> int:
    return cli.main(["pacs", "push", *map(str, words)])


def test_objects_are_written_to_a_folder_instead(plan: PushPlan, tmp_path: Path, capsys: Any) -> None:
    flags = ("--answers", plan.answers, "--images", plan.images)
    assert pushed(*flags, "--dry-run", "--seg") == 0
    assert "5 objects would be sent, of 3 answers" in capsys.readouterr().out
    out = tmp_path / "objects"
    for _ in range(2):
        assert pushed(*flags, "--out", out) == 0
        assert "3 objects written" in capsys.readouterr().out
        files = sorted(out.iterdir())
        assert len(files) == 3 and all(pydicom.dcmread(f).SOPInstanceUID == f.stem for f in files)
    assert not plan.journal.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "ADDRESS: give that of the archive"), (("https://pacs", "--out", "x"), "ADDRESS: give"),
        (("--dry-run", "--codes", "none.yaml"), "none.yaml: no such file"), (("nonsense",), "address: "),
    ],
)  # fmt: skip
def test_commands_that_are_refused(plan: PushPlan, capsys: Any, words: tuple[str, ...], said: str) -> None:
    assert pushed(*words, "--answers", plan.answers, "--images", plan.images) == 2
    assert said in capsys.readouterr().err


def test_rows_that_are_not_sent_end_in_an_error(plan: PushPlan, tmp_path: Path, images: Path, capsys: Any) -> None:
    shutil.copy(images / "photo.png", images / "other.png")
    file = write_answers(tmp_path, [record_of(images, 1, "other.png"), record_of(images, 2, "cr.dcm")])
    assert pushed("--answers", file, "--images", images, "--dry-run") == 2
    printed = capsys.readouterr()
    assert "row q1: image other.png: not a DICOM" in printed.err and "1 object would be sent" in printed.out

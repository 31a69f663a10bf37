"""Misspelt words get the near word as a hint, wherever one of a set is wanted, and never a far one."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from PIL import Image

from clinkd.cli import main
from clinkd.data.images.grey import Refusal, parse_window
from clinkd.data.readers import Source, read_rows
from clinkd.data.readers.forms import FORMS
from clinkd.pipeline.runs import find_run
from clinkd.records import BadInput
from clinkd.spelling import find_near, suggest

MODALITIES = ["ct", "mr", "x-ray", "pet", "ultrasound", "microscopy", "fundus", "endoscopy"]
NEAR = [
    ("tset", ["train", "test"], "test"), ("TRAIN", ["train", "test"], "train"), ("x ray", MODALITIES, "x-ray"),
    ("fundos", MODALITIES, "fundus"), ("sharegtp", list(FORMS), "sharegpt"), ("VQG", ["VG", "ROC"], None),
    ("oct", MODALITIES, None), ("gastroscopy", MODALITIES, None), ("mammography", MODALITIES, None),
    ("tc", MODALITIES, "ct"), ("", MODALITIES, None), ("patient age", ["patient"], None),
    ("runn", ["runs", "run"], "run"), ("anwser", ["question", "answer"], "answer"), ("val", ["train", "test"], None),
]  # fmt: skip


@pytest.mark.parametrize(("word", "words", "near"), NEAR)
def test_only_a_close_word_is_suggested(word: str, words: list[str], near: str | None) -> None:
    assert find_near(word, words) == near
    assert suggest(word, words) == (f"; did you mean {near}?" if near else "")


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sheet")
    Image.new("L", (40, 30)).save(root / "a.png")
    (root / "a.csv").write_text("image,modality,question,answer,split\na.png,ct,What?,this,tset\n")
    book = openpyxl.Workbook()
    book.active.title = "Patients"
    book.create_sheet("Images")
    book.save(root / "a.xlsx")
    return root


FLAGS = [
    (["a.csv", "--form", "shett"], "did you mean sheet?"),
    (["a.csv", "--modality", "fundos"], "did you mean fundus?"),
    (["a.csv", "--task", "RCO"], "did you mean ROC?"),
    (["a.csv", "--ask", "VG,RCO"], "did you mean ROC?"),
    (["a.csv", "--boxes", "qwen2vl"], "did you mean qwen2-vl?"),
    (["a.csv", "--boxes", "normalized"], "did you mean normalised?"),
    (["a.csv", "--allow", "duplicates"], "did you mean duplicate?"),
    (["a.csv", "--column", "qestion=Frage"], "did you mean question=Frage?"),
    (["a.csv", "--column", "caption=anwser"], "did you mean --column caption=answer?"),
    (["a.csv", "--side", "pateint"], "did you mean patient?"),
    (["a.csv", "--all-in", "tset"], "did you mean test?"),
    (["a.csv"], "train, validation or test is wanted; did you mean test?"),
    (["a.xlsx", "--sheet", "patient"], "did you mean Patients?"), (["A.CSV"], "did you mean a.csv?"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "hint"), FLAGS)
def test_flags_and_cells_have_the_hint(sheet: Path, words: list[str], hint: str, capsys: Any) -> None:
    try:
        status = main(["data", "check", str(sheet / words[0]), *words[1:]])
    except SystemExit as ended:  # of argparse
        status = int(ended.code or 0)
    printed = capsys.readouterr()
    assert status != 0 and hint in printed.err + printed.out


def test_runs_and_windows_have_the_hint(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("clinkd.pipeline.runs.list_runs", lambda _: [tmp_path / "demo", tmp_path / "real"])
    with pytest.raises(Refusal, match=r"did you mean lung\?"):
        parse_window("Lnug", True)
    with pytest.raises(BadInput, match=r"no run of that name.*did you mean demo\?"):
        find_run("dmeo", tmp_path)


def test_heads_and_keys_near_a_known_one_are_named(tmp_path: Path) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "modality", "qustion", "anwser"], ["a.png", "ct", "What?", "this"]])
    with pytest.raises(BadInput, match="--column question=qustion --column answer=anwser"):
        list(read_rows(Source(tmp_path / "a.csv"), Counter()))
    for head in ("Patient Age", "size", "fname"):
        (tmp_path / "b.csv").write_text(f"image,modality,question,answer,{head}\na.png,ct,What?,this,1\n")
        notes: Counter[str] = Counter()
        list(read_rows(Source(tmp_path / "b.csv"), notes))
        assert notes == {f"column {head!r} is not used": 1}, "no wild guess"
    rows = [
        {"image": "a.png", "modality": "ct", "objects": [{"naem": "x", "box": [1, 1, 5, 5]}]},
        {"image": "a.png", "modlaity": "ct", "objects": []},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": str(k), **row}) + "\n" for k, row in enumerate(rows)))
    whys = [r.problem.why for r in read_rows(Source(tmp_path / "a.jsonl"), Counter()) if r.problem]
    assert "is its key 'naem' meant for it?" in whys[0] and "is its key 'modlaity' meant for it?" in whys[1]


@pytest.mark.parametrize("verb", ["check", "import", "export", "stats", "show"])
def test_help_of_forms_needs_no_path(verb: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", verb, "--form", "help"])
    printed = capsys.readouterr()
    assert ended.value.code == 0 and not printed.err
    lines = printed.out.splitlines()
    for name, form in FORMS.items():
        assert any(line.startswith(f"{name} ") and line.endswith(form.description) for line in lines)
    assert all(any(form.example in line for line in lines) for form in FORMS.values())

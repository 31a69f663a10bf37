"""docs/TUTORIAL.md: what its commands print is what stands below them; the whole of it leads to a box on its side."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from docs.material import write_material

from clinkd.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "TUTORIAL.md").read_text(encoding="utf-8")
BLOCKS = [*re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S), ("", "")]
ELSEWHERE = "make"  # the installation

Give = Callable[[str], tuple[int, str]]  # a block of commands -> exit status, what it prints


def walk(folder: Path, give: Give, last: str) -> None:
    """Give the commands of the tutorial, through the block that begins with `last`: what the page shows below each is
    among what it prints."""
    for number, (kind, block) in enumerate(BLOCKS):
        if kind != "sh" or block.startswith(ELSEWHERE):
            continue
        status, printed = give(block)
        follows, expected = BLOCKS[number + 1]
        assert status == (2 if "clinkd: " in expected and follows == "text" else 0), printed
        if follows == "text":
            compare(expected, printed + (folder / "tutorial" / "tabelle.csv").read_text(encoding="utf-8"), folder)
        if block.startswith(last):
            return


def compare(expected: str, printed: str, folder: Path) -> None:
    lines = {" ".join(line.split()) for line in printed.replace(str(folder), "FOLDER").splitlines()}
    missing = {" ".join(line.split()) for line in expected.splitlines()} - lines
    assert not missing, printed


def test_mistakes_are_told_as_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def give(block: str) -> tuple[int, str]:
        program, *words = shlex.split(block.replace("\\\n", " "))
        if program == "python":
            write_material(tmp_path / words[1])
            return 0, ""
        status = main([*words, "--workers", "1"])
        return status, "".join(capfd.readouterr())

    walk(tmp_path, give, "clinkd data import tutorial/tabelle-richtig.csv")
    assert (tmp_path / "mydata.html").is_file()


@pytest.mark.slow
def test_the_tutorial_ends_with_a_box_on_the_right_side(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "bin").mkdir()
    for program, words in (("clinkd", "-m clinkd"), ("python", "")):
        shim = tmp_path / "bin" / program
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        shim.chmod(0o755)
    places = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}

    def give(block: str) -> tuple[int, str]:
        serves = block.startswith("clinkd serve")  # until Ctrl-C
        words = [*(["timeout", "--preserve-status", "--signal=INT", "60"] if serves else []), "bash", "-c", block]
        done = subprocess.run(words, cwd=tmp_path, env={**os.environ, **places}, capture_output=True, text=True)
        assert not serves or "http://" in done.stdout
        return 0 if serves else done.returncode, done.stdout + done.stderr

    walk(tmp_path, give, "clinkd serve")
    assert (tmp_path / "answer.png").is_file() and (tmp_path / "runs" / "real" / "report.html").is_file()
    with (tmp_path / "lungs.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    assert len(rows) == 20 and len(list((tmp_path / "lungs").iterdir())) == 20
    left, top, right, bottom = map(float, rows["scan00.dcm"]["boxes"].split())
    assert left + right > 1 and top < bottom  # the patient's left

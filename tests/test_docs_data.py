"""What README and docs/DATA.md show of data is what the commands print: twenty DICOM files and one sheet."""

from __future__ import annotations

import csv
import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from clinkd.cli import main
from clinkd.data.readers.forms import read_samples
from clinkd.data.readers.source import Source

ROOT = Path(__file__).parents[1]
SHEET_HEAD = ("id", "image", "name", "x1", "y1", "x2", "y2", "Frage", "Antwort")


def scans(folder: Path) -> None:
    """Twenty files of ten patients: a real CT, each with a square of its own."""
    folder.mkdir()
    ct = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 2000, (8, 8)).repeat(16, 0).repeat(16, 1)
        ct.PixelData = (ct.pixel_array // 2 + pixels).astype(np.int16).tobytes()
        ct.PatientID, ct.PatientName = f"MRN-{number // 2}", "Canary^Anna"
        ct.save_as(folder / f"scan{number:02d}.dcm")
        ct = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))


def fill_in(path: Path, wrong: bool) -> None:
    with path.open("w", newline="") as file:
        lines = csv.writer(file, delimiter=";")
        lines.writerow(SHEET_HEAD)
        for number in range(20):
            x2 = "12,5" if wrong and number == 2 else "60"
            question = ("Is there a nodule?", "yes" if number % 2 else "no")
            lines.writerow([f"ct-{number + 1:02d}", f"scan{number:02d}.dcm", "nodule", 5, 10, x2, 50, *question])


def shown() -> tuple[list[str], list[str]]:
    """The import command of the README, and what it is shown to print."""
    block = next(
        b
        for b in re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
        if "$ clinkd data import" in b
    )
    command, *printed = block.splitlines()
    return shlex.split(command.removeprefix("$ clinkd ")), printed


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    scans(tmp_path / "scans")
    return tmp_path


def test_the_readme_shows_what_a_wrong_sheet_prints(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_in(here / "sheet.csv", wrong=True)
    words, printed = shown()
    assert main(words) == 2
    told = capsys.readouterr()
    assert printed[0] in told.out.splitlines()
    assert printed[1] == told.err.splitlines()[-1]
    assert not (here / "mydata").exists()


def test_twenty_files_and_a_sheet_become_a_data_set(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_in(here / "sheet.csv", wrong=False)
    words, _ = shown()
    assert main([*words, "--page", "mydata.html"]) == 0
    told = capsys.readouterr().out
    assert "60 samples of 20 images" in told
    samples = read_samples(Source(here / "mydata"), Counter())
    assert {s.split for s in samples} == {"train", "validation", "test"}
    patients = {s.group for s in samples}
    assert len(patients) == 10  # two scans each, told apart by the header, kept as hashes
    assert all(len({s.split for s in samples if s.group == p}) == 1 for p in patients)
    everything = told + "".join(p.read_text() for p in [here / "mydata.html", *(here / "mydata").glob("*.json*")])
    assert "Canary" not in everything and "MRN-" not in everything

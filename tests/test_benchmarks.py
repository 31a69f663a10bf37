"""Every benchmark has one form: the same options, rows for a program, a sheet and a picture."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if p.stem != "report")


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_has_the_options_of_all(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    told = capsys.readouterr().out
    assert ended.value.code == 0 and all(option in told for option in ("--json", "--csv", "--plot"))


def test_rows_for_a_program_a_sheet_and_a_picture(tmp_path, capsys):
    report = importlib.import_module("benchmarks.report")
    rows = [
        report.Row("a loss of " + "very " * 40 + "long name", 0.5, 2.0, "plain", "s"),
        report.Row("b", 3, 1, "x", "MB"),
    ]
    parser = argparse.ArgumentParser()
    report.add_outputs(parser)
    sheet, picture = tmp_path / "rows.csv", tmp_path / "rows.png"
    report.show(rows, parser.parse_args(["--json", "--csv", str(sheet), "--plot", str(picture)]))
    told = json.loads(capsys.readouterr().out)
    assert [r["ratio"] for r in told] == [0.25, 3.0]
    assert {"what", "ours", "rival", "rival_name", "ratio", "unit", "commit", "machine", "torch"} <= told[0].keys()
    with sheet.open() as file:
        assert [float(r["ratio"]) for r in csv.DictReader(file)] == [0.25, 3.0]
    with Image.open(picture) as drawn:
        bars = [drawn.getpixel((report.LEFT + 5, 62 + k * report.LINE + 8)) for k in range(2)]
        assert bars == [(47, 111, 159)] * 2 and drawn.width == report.WIDTH
    report.show(rows, parser.parse_args([]))
    assert "ratio 0.250" in capsys.readouterr().out

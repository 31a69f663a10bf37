"""docs/RESULTS.md is what the files of docs/results say; pages of files that hold few runs, or none, or others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs.results import PAGE, choose_lines, write_page

from clinkd.experiments import CLAIMS
from clinkd.records import BadInput
from clinkd.reporting.ablation import FinishedRun
from clinkd.workflows.results_file import ResultLine, add_result


def add_line(file: Path, row: str, seed: int, value: float, knobs: str = "aaaaaa-bbbbbb", fold: int = 0) -> None:
    run = FinishedRun(row, seed, 60, 7.0, {"VG F1": value, "VG log-likelihood box": -value / 100}, fold=fold)
    add_result(file, ResultLine(f"digits{seed}", "0.2.0+abcdef", run, file.stem.partition("-")[0], knobs))


def test_the_page_is_what_the_files_say():
    assert PAGE.read_text(encoding="utf-8") == write_page(), "give: python -m docs.results"


def test_a_page_without_files_says_so(tmp_path: Path):
    assert write_page(tmp_path / "none").rstrip().endswith("No file is there yet.")


def test_a_table_is_of_the_runs_there_are_and_short_rows_say_so(tmp_path: Path):
    file = tmp_path / "small-parts.csv"
    for seed, value in enumerate((50.0, 52.0, 54.0)):
        add_line(file, "plain", seed, value)
        if seed < 2:
            add_line(file, "whole", seed, value + 3 + seed)
    page = write_page(tmp_path)
    assert f"## `small`: {CLAIMS['parts'].question}" in page
    assert "`clinkd ablate small --claim parts --seeds 0,1,2 --results docs/results/small-parts.csv`" in page
    assert "5 runs; code 0.2.0+abcdef." in page and "| Plain tuning | 3 | 52.0 |" in page
    assert "| ClinKD | 2 of 3 | 54.5 |" in page and "| ClinKD - Plain tuning | +3.5 |" in page
    assert "| ClinKD | 2 of 3 | -0.545 |" in page  # nats
    assert page.index("### Rows") < page.index("### Rows: differences (exploratory, Holm)")


def test_lines_of_other_knobs_and_older_runs_are_left_out_and_told(tmp_path: Path):
    file = tmp_path / "demo.csv"
    for row, seed, value, knobs in (
        ("bird", 0, 99.0, "old000-bbbbbb"), ("bird", 0, 10.0, "aaaaaa-bbbbbb"), ("tuned", 0, 98.0, "aaaaaa-old000"),
        ("tuned", 0, 20.0, "aaaaaa-cccccc"), ("bird", 0, 11.0, "aaaaaa-bbbbbb"),
    ):  # fmt: skip
        add_line(file, row, seed, value, knobs)
    page = write_page(tmp_path)
    assert "## `demo`: the rows of Table 2" in page and "--rows tuned,bird --seeds 0" in page.replace(
        "bird,tuned", "tuned,bird"
    )
    assert "2 runs; code 0.2.0+abcdef. 3 older lines of other knobs, or of runs made again, are left out." in page
    assert re.search(r"\| BiRD-like \| 1 \| 11.0 \|", page) and re.search(r"tuned \| 1 \| 20.0 \|", page)


def test_folds_are_told_and_each_base_has_a_section(tmp_path: Path):
    file = tmp_path / "real-parts.csv"
    for fold in (1, 2):
        add_line(file, "plain", 0, 20.0 + fold, fold=fold)
    run = FinishedRun("plain", 0, 60, 7.0, {"VG F1": 70.0})
    add_result(file, ResultLine("digits", "0.2.0+abcdef", run, "small"))
    page = write_page(tmp_path)
    assert "clinkd ablate real --set data.path=FOLDER --set data.folds=2 --claim parts --seeds 0 --results" in page
    assert "| Folds |" in page and "| Seeds |" in page and page.index("## `real`") < page.index("## `small`")


def test_a_row_that_the_claim_does_not_have_is_refused(tmp_path: Path):
    add_line(tmp_path / "small-parts.csv", "bird", 0, 1.0)
    with pytest.raises(BadInput, match=r"small-parts.csv: row bird is none of claim parts"):
        write_page(tmp_path)


def test_of_equal_runs_the_last_line_counts():
    runs = [ResultLine("a", "c", FinishedRun("bird", 0, 1, 1.0, {"VG F1": v}), "small", "x-y") for v in (1.0, 2.0)]
    assert choose_lines(runs) == runs[1:]

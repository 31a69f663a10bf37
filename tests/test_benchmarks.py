"""Every benchmark has one form: the same options, rows for a program, a sheet and a picture."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from clinkd.records import BadInput, BoxedText, Candidate

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(
    p.stem for p in (ROOT / "benchmarks").glob("*.py") if p.stem not in ("forks", "kills", "patience", "report")
)


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


@pytest.mark.slow
def test_answers_are_timed_only_where_the_rival_says_the_same(tmp_path, monkeypatch):
    bench = importlib.import_module("benchmarks.answers")
    short = {name: config.model_copy(update={"max_new_tokens": 6}) for name, config in bench.METHODS.items()}
    monkeypatch.setattr(bench, "METHODS", short)
    model, samples = bench.trained(tmp_path, 0)
    rows = bench.rows_of_figures(model.eval(), samples[:12], 4, [1, 8], "fresh")
    assert len(rows) == 5 and all(r.ours > 0 and r.rival > 0 and r.unit == "answers/s" for r in rows)
    monkeypatch.setattr(bench, "stock", lambda *_: [Candidate("no", BoxedText("no"))])
    with pytest.raises(SystemExit, match="3 beams: 4 of 4 answers are not those of the rival"):
        bench.rows_of_figures(model.eval(), samples[:12], 4, [1], "fresh")


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


def test_gains_over_seeds_are_students_intervals_of_paired_differences():
    gains = importlib.import_module("benchmarks.gains")
    ours, theirs = [51.0, 53.0, 52.0], [50.0, 50.5, 50.5]  # differences 1, 2.5, 1.5: mean 1.667, deviation .764
    made = gains.row("VG", ours, theirs, "first beam")
    assert made.what == "VG: +1.7 [-0.2, +3.6] over 3 seeds"  # 4.303 * .764 / sqrt(3) = 1.897
    assert (made.ours, made.rival) == (52.0, pytest.approx(50.3333, abs=1e-4))


def test_a_wait_is_longer_where_the_machine_is_slower_and_measured_once(monkeypatch):
    patience = importlib.import_module("benchmarks.patience")
    now, measured = [0.0], []
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(patience, "slowness", lambda: measured.append(now[0]) or 3.0)
    deadline = patience.Deadline(10)
    passed = []
    for now[0] in (0, 9.9, 10, 29.9, 30, 31):
        passed.append(deadline.passed())
    assert passed == [False] * 4 + [True] * 2 and measured == [10]  # not before it matters
    assert deadline.seconds == 30 and patience.patience(2) == 6


def test_a_process_that_takes_too_long_is_named_with_the_limit(tmp_path, monkeypatch, capfd):
    crashes = importlib.import_module("benchmarks.crashes")
    monkeypatch.setattr("benchmarks.patience.slowness", lambda: 2.0)
    short = importlib.import_module("benchmarks.patience").Deadline(0.1)
    monkeypatch.setattr("benchmarks.forks.Deadline", lambda seconds: short)
    shop = object.__new__(crashes.Shop)
    shop.log = tmp_path / "log"
    shop.log.write_text("what it did last\n")
    with pytest.raises(SystemExit, match="(?s)what it did last.*exit status -14"):
        shop.must(lambda: time.sleep(60))
    assert "took longer than 0.2 s and was killed" in capfd.readouterr().err


def test_kills_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    kills = importlib.import_module("benchmarks.kills")
    asked: list[int] = []

    def kill(yard, number, seed):
        if number == 2 and number not in asked:
            asked.append(number)
            raise KeyboardInterrupt
        asked.append(number)
        return {"kill": number, "lost": []}

    monkeypatch.setattr(kills.Yard, "kill", kill)
    with pytest.raises(KeyboardInterrupt):
        kills.kills(tmp_path / "a", 4, 7, tmp_path / "out.jsonl")
    done = kills.kills(tmp_path / "b", 4, 7, tmp_path / "out.jsonl")
    assert asked == [0, 1, 2, 2, 3] and [line["kill"] for line in done] == [0, 1, 2, 3]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4
    with pytest.raises(BadInput, match="of seed 7"):
        kills.kills(tmp_path / "c", 4, 8, tmp_path / "out.jsonl")


def test_what_a_kill_lost_is_seen_and_times_are_not(tmp_path):
    kills = importlib.import_module("benchmarks.kills")
    stage = {"seconds": 1, "attempts": 1, "started": "a", "finished": "b", "recorded": {"answers": {"seconds": 1}}}
    for number, folder in enumerate((tmp_path / "whole", tmp_path / "again")):
        (folder / "model").mkdir(parents=True)
        (folder / "stage.json").write_text(json.dumps({**stage, "seconds": number, "attempts": number}))
        (folder / "log.jsonl").write_text('{"step": 1, "loss": 2}\n' * (number + 1) + '{"st' * number)
        (folder / "link").symlink_to("model")
    wanted = kills.digest(tmp_path / "whole")
    assert kills.digest(tmp_path / "again") == wanted
    (folder / "model" / "x.clinkd.tmp").touch()
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 3}\n')
    (folder / "link").unlink()
    lost = ["differs: log.jsonl", "left behind: model/x.clinkd.tmp", "missing: link"]
    assert kills.find_differences(kills.digest(folder), wanted) == lost

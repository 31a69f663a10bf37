"""Table 1 and Tables 3 and 4: whose figures stand where, and the paper's only where the data are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clinkd.cli import main
from clinkd.records import Modality, Task
from clinkd.reporting.printed import paper_tables
from clinkd.reporting.systems import System, TaskResult, system_tables


def result(score: float | None, **by_modality: float) -> TaskResult:
    return TaskResult(score, {Modality(m): v for m, v in by_modality.items()}, (1.0, 2.0), 3.0, "no jars")


def ours(**more: float) -> System:
    tasks = {Task.VG: result(10, ct=5, mr=15), Task.ROC: result(20, ct=20), Task.MIA: result(30, ct=30)}
    return System("ours", "scans", tasks | {Task(t): result(v, ct=v) for t, v in more.items()})


def test_an_average_stands_only_over_all_four():
    table, by_modality = system_tables([ours()], "strict")
    assert table.rows[0] == ("ours", "scans", "10.0", "20.0", "-", "30.0", "-")
    assert system_tables([ours(RC=40)], "strict")[0].rows[0][-1] == "25.0"
    assert by_modality.rows[0][:3] == ("VG F1", "5.0", "15.0") and by_modality.rows[0][-1] == "10.0"
    assert by_modality.rows[-1][1:3] == ("18.3", "15.0")  # of CT (5 + 20 + 30) / 3
    failed = System("theirs", "scans", {Task.RC: TaskResult(None, {Modality.CT: None}, why="no jars")})
    table = system_tables([failed], "official")[0]
    assert table.rows[0][4] == "not computed" and "theirs: RC not computed: no jars" in table.notes


@pytest.mark.parametrize("mode", ["strict", "official"])
@pytest.mark.parametrize("same", [True, False])
def test_the_papers_rows_stand_among_ours_only_on_its_data_and_by_its_scripts(mode, same):
    tables = system_tables([ours()], mode, same)
    said = [row[0] for table in tables for row in table.rows]
    assert any("rinted" in s for s in said) == (same and mode == "official")
    assert any("stand apart" in n for n in tables[0].notes) != (same and mode == "official")
    assert tables[0].columns[2] == {"strict": "VG F1", "official": "VG Recall@0.5"}[mode]


def test_the_papers_own_tables_name_its_metrics_and_its_slips():
    first, *by_modality = paper_tables()
    assert (
        first.columns[1] == "VG Recall@0.5"
        and ("ClinKD on LLaVA-Med-qa0.2k", "-", "-", "-", "13.24", "-") in first.rows
    )
    assert all(t.rows[0][0] == "VG Recall@0.5" for t in by_modality)
    assert any("67.65, printed 67.51" in n for t in by_modality for n in t.notes)


def test_evaluated_files_stand_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, answers in {"sharp": ("liver", "right kidney"), "blunt": ("liver", "liver")}.items():
        rows = [
            {"id": i, "image": f"{m}_00--{i}.png", "question": "What is this?", "annotation": a, "response": said}
            for i, (m, a, said) in enumerate(zip(("ct", "x"), ("liver", "right kidney"), answers, strict=True))
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        words = ["evaluate", "--predictions", str(tmp_path / f"{name}.jsonl"), "--task", "ROC"]
        assert main([*words, "--as", name, "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()
    folders = [str(tmp_path / n) for n in ("sharp", "blunt")]
    for mode in ("official", "strict"):
        assert main(["systems", *folders, "--mode", mode, "--json"]) == 0
        sharp, blunt = json.loads(capsys.readouterr().out)
        assert sharp["system"] == "sharp" and sharp["ROC"]["score"] == 100 and blunt["ROC"]["score"] == 50
        assert blunt["ROC"]["by_modality"] == {"ct": 100, "xray": 0} and blunt["average"] is None
    page = tmp_path / "page.html"
    assert main(["systems", *folders, "--page", str(page)]) == 0
    assert "blunt" in page.read_text() and "Table 1" in capsys.readouterr().out
    assert main(["systems", *folders, "--page", str(tmp_path / "sharp.jsonl")]) == 2  # not a page of ours
    assert main(["systems", str(tmp_path)]) == 2

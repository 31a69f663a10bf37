"""A run's model answers data that it has never seen: other images, names, modalities and tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clinkd.cli import main

pytestmark = pytest.mark.usefixtures("one_meteor")


def write_clinic(folder: Path) -> Path:
    """Six pictures of two kinds that phantoms do not have, and one question without a box."""
    folder.mkdir()
    rows = []
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 255, (40 + n, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
        name, modality = ("white cell", "microscopy") if n % 2 else ("kidney", "CT")
        qa = [{"question": "Is it normal?", "answer": "no"}] if n == 0 else []
        objects = [{"name": name, "box": [5, 5, 20 + n, 25]}]
        rows.append({"id": str(n), "image": f"{n}.png", "modality": modality, "width": 60, "height": 40 + n})
        rows[-1] |= {"objects": objects, "qa": qa}
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluate(run: Path, data: Path, out: Path, *more: str) -> list[str]:
    words = ["evaluate", "--run", run.name, "--runs", str(run.parent), "--data", str(data), "--out", str(out)]
    return [*words, "--replicates", "10", "--json", *more]


def test_a_run_answers_data_that_it_has_never_seen(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clinic = write_clinic(tmp_path / "clinic")
    assert main(evaluate(small_run, clinic, tmp_path / "out")) == 2
    assert "no question is in the test split (splits: none); give --split all" in capsys.readouterr().err
    assert main(evaluate(small_run, clinic, tmp_path / "out", "--split", "all")) == 0
    scored: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert scored["test_set"] == "clinic" and {t: scored["strict"][t]["answers"] for t in scored["strict"]} == {
        "VG": 6, "ROC": 6, "QA": 1,
    }  # fmt: skip
    told = scored["told"]
    assert told["questions about structures that the run never learned: white cell"] == 6
    assert told["questions of a modality that the run never learned: microscopy"] == 6
    assert told["questions of a task that the run never learned: QA"] == 1
    assert (
        told["questions, each answered blindly from those of other patients or images, as there is no training split"]
        == 13
    )
    assert not any("trained on" in caution for caution in scored["cautions"])
    assert scored["strict"]["VG"]["blind_by"] and (tmp_path / "out" / "report.html").is_file()


def test_images_that_the_run_learned_from_are_told_and_missing_ones_refused(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clinic = write_clinic(tmp_path / "clinic")
    prepared = small_run / "stages" / "prepare"
    learned = json.loads((prepared / "train.jsonl").read_text().splitlines()[0])["images"][0]["path"]
    shutil.copy(prepared / learned, clinic / "0.png")
    rows = [json.loads(line) for line in (clinic / "records.jsonl").read_text().splitlines()]
    rows[0] |= {"width": 96, "height": 96}
    (clinic / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(evaluate(small_run, clinic, tmp_path / "out", "--split", "all", "--ask", "ROC")) == 0
    cautions = json.loads(capsys.readouterr().out)["cautions"]
    assert any(caution.startswith("1 of 6 image files are among those") for caution in cautions)
    assert main(evaluate(small_run, clinic, tmp_path / "two", "--split", "all", "--no-images")) == 2
    assert "--no-images: a model answers from the images" in capsys.readouterr().err
    (clinic / "3.png").unlink()
    assert main(evaluate(small_run, clinic, tmp_path / "three", "--split", "all")) == 2
    error = capsys.readouterr().err
    assert "row 4, id 3: image = 3.png: no such file" in error and len(error.splitlines()) == 1

"""Cross-validation: each patient is tested once, answers are pooled and scored once, finished folds are reused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clinkd.cli import main
from clinkd.pipeline import steps
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.prepared import BASELINES, PREDICTIONS, read_predictions, read_split
from clinkd.pipeline.runs import find_finished_run, find_run
from clinkd.records import BoxedText, Candidate, Prediction, Sample
from clinkd.scoring.baselines import MEDIAN_BOX, make_image_blind_baselines
from clinkd.storage import JsonLines, write_json, write_lines

PATIENTS, FOLDS = 11, 3
WITHOUT_METHOD = ("teacher=null", "distill=null", "reflect=null", "select.scorer=first")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two images of each patient. All but one patient are stated to be of the train split."""
    folder = tmp_path / "study"
    (folder / "images").mkdir(parents=True)
    lines = []
    for n in range(2 * PATIENTS):
        pixels = np.random.default_rng(n).integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{n}.png")
        objects = [{"name": ("liver", "kidney")[n % 2], "box": [4, 4, 14 + n % 9, 20]}]
        row = {"id": f"s{n}", "image": f"images/{n}.png", "width": 32, "height": 32, "objects": objects, "qa": []}
        row |= {"modality": ("CT", "MR")[n % 3 == 0], "group": f"p{n // 2}", "split": "train" if n > 1 else "test"}
        lines.append(row)
    (folder / "records.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stubs of the steps that need a model. The second image of each patient is answered right; the list grows by the
    folder of each stage that is trained."""
    folders: list[str] = []

    def base(work: steps.StageInputs, config: object) -> None:
        folders.append(work.folder.name)
        work.record("fit-pairs", {"steps": 9 + len(folders), "falling": len(folders) > 1})
        write_json(work.folder / "model.json", {"tested": sorted({s.group for s in work.samples("test")})})

    def answer(samples: list[Sample], right: Callable[[Sample], bool], by: str) -> list[Prediction]:
        return [Prediction(s.id, (Candidate("", s.answer if right(s) else BoxedText("")),), by=by) for s in samples]

    def write(work: steps.StageInputs | StageContext, predictions: list[Prediction]) -> None:
        write_lines(work.folder / PREDICTIONS, (p.to_json() for p in predictions))

    def shuffle(work: steps.StageInputs, config: object, previous: str) -> None:
        write(work, answer(work.samples("test"), lambda s: False, "images shuffled"))

    def select(work: steps.StageInputs, config: object) -> None:
        write(work, answer(work.samples("test"), lambda s: s.images[0].path[-5] in "13579", work.folder.name))
        work.record("reordered_tasks", [])

    monkeypatch.setattr(steps, "base", base)
    monkeypatch.setattr(steps, "answer", lambda work, config, previous: write(work, []))
    monkeypatch.setattr(steps, "shuffle", shuffle)
    monkeypatch.setattr(steps, "select", select)
    return folders


def command(study: Path, *more: str) -> list[str]:
    settings = [f"data.path={study}", f"data.folds={FOLDS}", "data.workers=1", "evaluate.replicates=50"]
    words = [x for s in (*settings, *WITHOUT_METHOD, *more) for x in ("--set", s)]
    return ["run", "real", "--name", "study", "--runs", str(study.parent / "runs"), *words]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main([*words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("clinkd: ") and sum(line.startswith("clinkd: ") for line in lines) == 1
    return lines[-1]


def test_answers_of_all_folds_are_pooled_scored_once_and_reused(study, trained, capsys):
    runs = study.parent / "runs"
    assert main(command(study)) == 0
    out, err = capsys.readouterr()
    assert len(trained) == FOLDS and "fold 2 of 3, stage 2 of 6, base: start" in err
    pooled = find_finished_run(None, runs)
    assert pooled.folder.name == "study", "the pooled run is the newest"
    folds = [find_run(f"study-fold-{n}", runs) for n in (1, 2, 3)]

    test = read_split(pooled.stage("prepare"), "test")
    parts = [read_split(fold.stage("prepare"), "test") for fold in folds]
    assert test == [s for part in parts for s in part] and len({s.group for s in test}) == PATIENTS
    for part, fold in zip(parts, folds, strict=True):
        others = {s.group for split in ("train", "validation") for s in read_split(fold.stage("prepare"), split)}
        assert len(others) + len({s.group for s in part}) == PATIENTS
    answers = read_predictions(pooled.stage("select"))
    assert answers == [p for fold in folds for p in read_predictions(fold.stage("select"))]
    assert [p.id for p in answers] == [s.id for s in test]

    scores = pooled.scores()
    assert 0 < scores["VG"]["score"] < 100 and scores["VG"]["interval"] and scores["ROC"]["blind"]
    assert "study: test splits of all 3 folds" in out
    assert not any("no conclusion" in line for line in scores["cautions"]), "11 patients in all, four a fold"
    assert any("no conclusion" in line for line in folds[0].scores()["cautions"])
    falling = [line for line in scores["cautions"] if line.startswith("undertrained")]
    assert falling == [
        "undertrained: stage base's loss still falls after 11 to 12 steps in 2 of 3 folds; more "
        "model.tiny.pretrain.pairs.epochs or model.tiny.pretrain.pairs.min_steps"
    ]
    assert pooled.wall_seconds()["base"] == pytest.approx(sum(fold.wall_seconds()["base"] for fold in folds))
    assert "Cross-validation of 3 folds" in pooled.report().read_text()

    assert main(command(study)) == 0
    err = capsys.readouterr().err
    assert len(trained) == FOLDS and ": start" not in err and "fold 3 of 3, stage 6 of 6, score: done before" in err


def test_a_broken_off_run_goes_on_and_a_fold_can_be_run_alone(study, trained, capsys, monkeypatch):
    runs, base = study.parent / "runs", steps.base

    def stopped(work: steps.StageInputs, config: object) -> None:
        if len(trained) == 2:
            raise KeyboardInterrupt
        base(work, config)

    assert main([*command(study, "data.fold=2"), "--name", "alone"]) == 0
    monkeypatch.setattr(steps, "base", stopped)
    assert main(command(study)) == 130 and len(trained) == 2, "fold 1 beside fold 2, which was there"
    monkeypatch.setattr(steps, "base", base)
    capsys.readouterr()
    assert main(["status", "study", "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "15 of 21 stages done, 3 of 3 folds begun" in " ".join(out.split()) or "stages done" in out
    assert "fold-2/score" in out and "fold-3/base" in out and "stopped" in out and "go on with: " in out
    go_on = out.partition("go on with: ")[2].split()
    assert main(go_on[go_on.index("run") :]) == 0 and len(trained) == FOLDS
    assert find_run("alone", runs).stage("select") == find_run("study-fold-2", runs).stage("select")


def test_baselines_never_see_the_patients_they_answer_for(study, trained):
    assert main(command(study)) == 0
    runs = study.parent / "runs"
    lines = [*JsonLines(find_run("study", runs).stage("select") / BASELINES).read()]
    pooled = [Prediction.from_json(line["prediction"]) for line in lines if line["baseline"] == MEDIAN_BOX]
    expected = []
    for number in range(1, FOLDS + 1):
        prepared = find_run(f"study-fold-{number}", runs).stage("prepare")
        train, test = (read_split(prepared, split) for split in ("train", "test"))
        expected += make_image_blind_baselines(train, test)[MEDIAN_BOX]
    assert pooled == expected != []


def test_verbs_that_need_a_model_ask_for_a_fold(study, trained, capsys, tmp_path):
    assert main(command(study)) == 0
    where = ["--runs", str(study.parent / "runs")]
    image = str(study / "images/0.png")
    for words in (
        ["ask", *where, image, "Where is the liver?"],
        ["serve", "study", *where],
        ["export", *where, "--run", "study", str(tmp_path / "out")],
        ["correct", "study", *where, "--dry-run"],
    ):
        line = refused(capsys, *words).replace("clinkd: run study, the newest finished run", "")
        assert "study-fold-1" in line and "data.folds=0" in line, words
    for words in (["table", "study", *where], ["report", "study", *where], ["report", "study", *where, "--share"]):
        assert main(words) == 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (("data.folds=1",), "data.folds=1 would test on what it trains on"),
        (("data.fold=4",), "data.fold=4: is to be one of data.folds=3"),
        (("data.path=null",), "data.folds=3 needs data.path: phantoms"),
        (("data.folds=2", "data.validation_share=0.5"), "leave nothing to train on"),
        (("data.folds=12",), "data.folds=12: the data has only 11 groups"),
    ],
)
def test_folds_that_cannot_be_are_one_line(study, trained, capsys, settings, line):
    assert line in refused(capsys, *command(study, *settings)) and not trained


def test_a_plan_shows_the_stages_of_each_fold(study, trained, capsys):
    assert main(["plan", *command(study)[1:], "--json"]) == 0
    names = [row["stage"] for row in json.loads(capsys.readouterr().out)["stages"]]
    assert len(names) == 6 * FOLDS + 3 and names[:2] == ["fold-1/prepare", "fold-1/base"] and names[-1] == "score"
    assert "data.fold=1" in refused(capsys, "plan", *command(study)[1:], "--measure")

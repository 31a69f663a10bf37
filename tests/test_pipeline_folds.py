"""Cross-validation: each patient is tested once, answers are pooled and scored once, finished folds are reused."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from clinkd import pipeline
from clinkd.cli import main
from clinkd.config import RunConfig
from clinkd.experiments import small
from clinkd.pipeline import steps
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.prepared import (
    BASELINES,
    LIKELIHOODS,
    NO_CONFIDENCE,
    PREDICTIONS,
    read_predictions,
    read_scores,
    read_split,
)
from clinkd.pipeline.runs import Run, find_finished_run, find_run
from clinkd.records import BoxedText, Candidate, Prediction, Sample, Task
from clinkd.reporting.ablation import FinishedRun
from clinkd.scoring.blind.baselines import MEDIAN_BOX, make_image_blind_baselines
from clinkd.scoring.likelihood import describe_truth
from clinkd.settings import override
from clinkd.storage import JsonLines, write_json, write_lines
from clinkd.workflows import ablate as workflow
from clinkd.workflows.ablate import AblationPlan, RunKey, _read_finished_run
from clinkd.workflows.results_file import read_results

PATIENTS, FOLDS = 11, 3
REAL_STEPS = {name: getattr(steps, name) for name in ("base", "answer", "shuffle", "select", "likelihood")}
WITHOUT_METHOD = ("teacher=null", "distill=null", "reflect=null", "select.scorer=first")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each patient. All but one patient are stated to be of the train split."""
    folder = tmp_path_factory.mktemp("folds") / "study"
    (folder / "images").mkdir(parents=True)
    lines = []
    for n in range(2 * PATIENTS):
        pixels = np.random.default_rng(n).integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{n}.png")
        objects = [{"name": ("liver", "kidney")[n % 2], "box": [4, 4, 14 + n % 9, 20]}]
        row = {
            "id": f"study_{n:02d}",
            "image": f"images/{n}.png",
            "width": 32,
            "height": 32,
            "objects": objects,
            "qa": [],
        }
        row |= {"modality": ("CT", "MR")[n % 3 == 0], "group": f"p{n // 2}", "split": "train" if n > 1 else "test"}
        lines.append(row)
    (folder / "records.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


@pytest.fixture(scope="module")
def trained() -> Iterator[list[str]]:
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
        work.record(NO_CONFIDENCE, {"VG": "too few answers"})

    def likelihood(work: steps.StageInputs, batch: int, previous: str) -> None:
        lines = (describe_truth(s, {"box": -4.0}, {"box": 2}) for s in work.samples("test") if s.task is Task.VG)
        write_lines(work.folder / LIKELIHOODS, lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "base", base)
        patch.setattr(steps, "likelihood", likelihood)
        patch.setattr(steps, "answer", lambda work, config, previous: write(work, []))
        patch.setattr(steps, "shuffle", shuffle)
        patch.setattr(steps, "select", select)
        yield folders


class Finished(NamedTuple):
    pooled: Run
    folds: list[Run]
    trained: int
    out: str
    err: str


@pytest.fixture(scope="module")
def finished(study: Path, trained: list[str]) -> Finished:
    runs, out, err = study.parent / "runs", io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(command(study)) == 0
    folds = [find_run(f"study-fold-{n}", runs) for n in range(1, FOLDS + 1)]
    return Finished(find_finished_run(None, runs), folds, len(trained), out.getvalue(), err.getvalue())


def command(study: Path, *more: str) -> list[str]:
    settings = [
        f"data.path={study}",
        f"data.folds={FOLDS}",
        "data.workers=1",
        "data.variants=1",
        "model.tiny.eyes=false",
        "model.vision_features=live",
        "evaluate.replicates=20",
        "evaluate.gallery=2",
        "evaluate.likelihood=true",
        "evaluate.probe=false",
    ]
    words = [x for s in (*settings, *WITHOUT_METHOD, *more) for x in ("--set", s)]
    return ["run", "real", "--name", "study", "--runs", str(study.parent / "runs"), *words]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main([*words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("clinkd: ") and sum(line.startswith("clinkd: ") for line in lines) == 1
    return lines[-1]


def test_answers_of_all_folds_are_pooled_and_scored_once(finished):
    pooled, folds = finished.pooled, finished.folds
    assert finished.trained == FOLDS and "fold 2 of 3, stage 2 of 7, base: start" in finished.err
    assert pooled.folder.name == "study", "the pooled run is the newest"

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
    assert 0 < scores["VG"]["score"] < 100 and scores["ROC"]["blind"] is not None
    totals = (len(s.answer.boxes) for s in test if s.task is Task.VG)
    rows = [
        r for r in read_scores(pooled.stage("score")) if (r.task, r.metric) == (Task.VG, "F1") and r.modality is None
    ]
    assert sum(totals) == 2 * PATIENTS and any(r.interval for r in rows)
    assert "study: test splits of all 3 folds" in finished.out
    assert not any("no conclusion" in line for line in scores["cautions"]), "11 patients in all, four a fold"
    assert any("no conclusion" in line for line in folds[0].scores()["cautions"])
    falling = [line for line in scores["cautions"] if line.startswith("undertrained")]
    assert falling == [
        "undertrained: stage base's loss still falls after 11 to 12 steps in 2 of 3 folds; more "
        "model.tiny.pretrain.pairs.epochs or model.tiny.pretrain.pairs.min_steps"
    ]
    assert pooled.wall_seconds()["base"] == pytest.approx(sum(fold.wall_seconds()["base"] for fold in folds))
    told = {"mean": -2.0, "questions": 2 * PATIENTS, "tokens": 4 * PATIENTS}
    assert scores["log_likelihood"] == {"VG": {"box": told}}
    page = pooled.report().read_text()
    reasons = "; ".join(f"in fold {n}, too few answers" for n in range(1, FOLDS + 1))
    assert "Cross-validation of 3 folds" in page and f"Confidence of VG is not drawn: {reasons}." in page


def test_a_second_run_finds_all_done(study, finished, trained, capsys):
    before = len(trained)
    assert main(command(study)) == 0
    err = capsys.readouterr().err
    assert len(trained) == before and ": start" not in err and "fold 3 of 3, stage 7 of 7, score: done before" in err


def test_a_broken_off_run_goes_on_and_a_fold_can_be_run_alone(study, trained, capsys, monkeypatch, tmp_path):
    runs, base = tmp_path / "runs", steps.base
    trained.clear()
    here = [*command(study, "data.folds=2"), "--runs", str(runs)]

    def stopped(work: steps.StageInputs, config: object) -> None:
        if len(trained) == 1:
            raise KeyboardInterrupt
        base(work, config)

    def score(work: StageContext, whole: RunConfig) -> None:
        write_json(work.folder / "table.json", {"average": None})
        (work.folder / "report.html").write_text("<p>")

    monkeypatch.setattr(steps, "score", score)
    assert main([*here, "--set", "data.fold=2", "--name", "study-fold-2"]) == 0
    monkeypatch.setattr(steps, "base", stopped)
    assert main(here) == 130 and len(trained) == 1
    monkeypatch.setattr(steps, "base", base)
    capsys.readouterr()
    assert main(["status", "study", "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "8 of 17 stages done, 2 of 2 folds begun" in " ".join(out.split())
    assert re.search(r"fold-1/base +stopped", out) and re.search(r"fold-2/score +done", out) and "go on with: " in out
    go_on = out.partition("go on with: ")[2].split()
    assert main(go_on[go_on.index("run") :]) == 0 and len(trained) == 2, "fold 2 was there"
    assert find_run("study", runs).status()[-1].state == "done"


@pytest.mark.slow
def test_real_images_are_learned_fold_by_fold(study, monkeypatch, tmp_path):
    for name, step in REAL_STEPS.items():
        monkeypatch.setattr(steps, name, step)
    fits = ("teacher.fit", "distill.fit", "reflect.fit", "model.tiny.pretrain.vision", "model.tiny.pretrain.pairs")
    quick = ("data.folds=2", "teacher.share=0.5", "select.clip.epochs=0.5", "answer.max_new_tokens=8", "threads=1",
             "model.tiny.hidden=48", "model.tiny.heads=2", "model.tiny.layers=1", "reflect.review_share=0.1",
             *(f"{fit}.{knob}" for fit in fits for knob in ("min_steps=2", "epochs=0.1")))  # fmt: skip
    words = ["run", "real", "--runs", str(tmp_path), "--set", f"data.path={study}"]
    assert main([*words, *(x for q in quick for x in ("--set", q))]) == 0
    pooled, folds = find_run("real", tmp_path), [find_run(f"real-fold-{n}", tmp_path) for n in (1, 2)]
    answers = [p for fold in folds for p in read_predictions(fold.stage("select"))]
    assert read_predictions(pooled.stage("select")) == answers and len({p.by for p in answers}) == 2
    finished = [_read_finished_run(RunKey("row", 0, n), run) for n, run in enumerate((pooled, *folds))]
    assert [run.fold for run in finished] == [0, 1, 2]
    assert finished[0].steps == sum(run.steps for run in finished[1:]) / 2 > 0
    image = str(study / "images/0.png")
    words = ["ask", "--runs", str(tmp_path), "--run", "real-fold-1", "--out", str(tmp_path / "answer.png")]
    assert main([*words, image, "Where is the liver?"]) == 0


def test_an_ablation_makes_each_fold_a_line_and_goes_on_between_folds(study, monkeypatch, tmp_path):
    made: list[str] = []

    def read(key: RunKey, run: Path) -> FinishedRun:
        return FinishedRun(key.row, key.seed, 1, 1.0, {"VG F1": 10.0 * key.fold}, fold=key.fold)

    monkeypatch.setattr(pipeline, "run", lambda config, runs: made.append(config.name))
    monkeypatch.setattr(workflow, "open_run", lambda folder: folder)
    monkeypatch.setattr(workflow, "_read_finished_run", read)
    base = override(small(), [f"data.path={study}", "data.folds=3", "select.scorer=first"])
    file, plan = tmp_path / "r.csv", AblationPlan.of(base, ["bird", "tuned"], [], [0])
    one = AblationPlan.of(override(base, ["data.fold=2"]), ["bird", "tuned"], [], [0])
    workflow.ablate(one, tmp_path / "runs", 1, file)
    assert made == ["small-bird-s0-fold-2", "small-tuned-s0-fold-2"] and len(read_results(file)) == 2
    made.clear()
    [scores, *_] = workflow.ablate(plan, tmp_path / "runs", 1, file).tables
    assert made == [f"small-{row}-s0-fold-{n}" for n in (1, 3) for row in ("bird", "tuned")]
    assert [(line.run.fold, line.base) for line in read_results(file)] == [(n, "small") for n in (2, 2, 1, 1, 3, 3)]
    assert scores.columns[1] == "Folds" and scores.rows[0][:3] == ("BiRD-like", "3", "20.0")


def test_baselines_never_see_the_patients_they_answer_for(finished):
    lines = [*JsonLines(finished.pooled.stage("select") / BASELINES).read()]
    pooled = [Prediction.from_json(line["prediction"]) for line in lines if line["baseline"] == MEDIAN_BOX]
    expected = []
    for fold in finished.folds:
        train, test = (read_split(fold.stage("prepare"), split) for split in ("train", "test"))
        expected += make_image_blind_baselines(train, test)[MEDIAN_BOX]
    assert {p.id: p for p in pooled} == {p.id: p for p in expected} and len(pooled) == len(expected) > 0


def test_verbs_that_need_a_model_ask_for_a_fold(study, finished, capsys, tmp_path):
    where = ["--runs", str(study.parent / "runs")]
    image = str(study / "images/0.png")
    for words in (
        ["ask", *where, "--run", "study", image, "Where is the liver?"],
        ["serve", "study", *where],
        ["export", *where, "--run", "study", str(tmp_path / "out")],
        ["correct", "study", *where, "--dry-run"],
    ):
        line = refused(capsys, *words)
        assert "study-fold-1" in line and "--set data.folds=0" in line, words
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
def test_folds_that_cannot_be_are_one_line(study, trained, capsys, settings, line, tmp_path):
    before = len(trained)
    words = [*command(study, *settings), "--runs", str(tmp_path)]
    assert line in refused(capsys, *words) and len(trained) == before


def test_a_plan_shows_the_stages_of_each_fold_and_why(study, finished, capsys):
    assert main(["plan", *command(study)[1:], "--json"]) == 0
    names = [row["stage"] for row in json.loads(capsys.readouterr().out)["stages"]]
    assert len(names) == 7 * FOLDS + 3 and names[:2] == ["fold-1/prepare", "fold-1/base"] and names[-1] == "score"
    assert main(["plan", *command(study, "select.trust=always")[1:]]) == 0
    assert "fold-1/select" in (out := capsys.readouterr().out) and "its folds were changed" in out
    assert "data.fold=1" in refused(capsys, "plan", *command(study)[1:], "--measure")

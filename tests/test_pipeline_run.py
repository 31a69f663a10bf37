"""The whole graph on a handful of phantoms: it ends, resumes, leaves the test split alone, refuses bad input."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from safetensors.torch import load_file

from clinkd.boxes import iou
from clinkd.cli import main
from clinkd.config import RunConfig
from clinkd.experiments import EXPERIMENTS
from clinkd.pipeline import graph, plan
from clinkd.pipeline.graph import Stage, StageContext
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.models import make_scorer
from clinkd.pipeline.prepared import read_data, read_predictions, read_split
from clinkd.pipeline.report import ReflectionResults
from clinkd.pipeline.runs import open_run
from clinkd.records import BadInput, Box, BoxedText, Correction, ImageRef, Modality, Sample, Task, Turn
from clinkd.reporting.gallery import choose_rewritten
from clinkd.reporting.tables import RetestResult
from clinkd.settings import override
from clinkd.storage import write_lines
from clinkd.workflows.ask import trusts
from conftest import fail_java
from processes import run_together, start

SMALL = [
    "data.phantoms.train_images=40", "data.phantoms.validation_images=8", "data.phantoms.test_images=16",
    "data.workers=1", "teacher.share=0.5", "teacher.fit.epochs=1", "distill.fit.epochs=1", "reflect.fit.epochs=1",
    "reflect.review_share=0.1", "select.clip.epochs=1", "select.clip.rows=16", "answer.max_new_tokens=12",
    "distill.targets=mixed", "model.tiny.hidden=48", "model.tiny.layers=1", "model.tiny.heads=2", "threads=1",
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("one_meteor")


def command(runs: Path, *more: str) -> list[str]:
    return ["run", "demo", "--runs", str(runs), *(x for s in SMALL for x in ("--set", s)), *more]


class Done(NamedTuple):
    runs: Path
    opened: set[str]  # the stages in which the test split was opened


@pytest.fixture(scope="module")
def done(one_meteor: None, tmp_path_factory: pytest.TempPathFactory) -> Done:
    opened: set[str] = set()
    current: list[str] = []

    def noting(stage: Stage, *rest: Any) -> None:
        current.append(stage.name)
        do(stage, *rest)

    def note(event: str, given: tuple[object, ...]) -> None:
        if event == "open" and current and isinstance(given[0], str | bytes) and str(given[0]).endswith("test.jsonl"):
            opened.add(current[-1])

    do, runs = graph._work_in_draft, tmp_path_factory.mktemp("runs")
    sys.addaudithook(note)  # for good: no hook can be taken off
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "_work_in_draft", noting)
        assert main(command(runs)) == 0
    current.clear()
    return Done(runs, opened)


def test_nothing_but_the_final_scoring_opens_the_test_split(done):
    # prepare writes it, and base looks at the sizes of its images, so that none is refused after the training
    assert sorted(done.opened) == ["answer", "base", "prepare", "score", "select", "shuffle"]


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started here score without METEOR, which takes longer than all else that they do."""
    folder = tmp_path / "bin"
    folder.mkdir()
    fail_java(folder, monkeypatch)


@pytest.mark.slow  # in a slice: test_training_trajectory trains in two processes, in every way
@pytest.mark.usefixtures("no_java")
def test_two_processes_do_the_same_run(done, tmp_path):
    log = tmp_path / "log.txt"
    assert run_together(log, main, command(tmp_path)) == [0, 0], log.read_text()[-2000:]
    told = log.read_text()
    assert told.count("report  ") == 1 and told.count("stage 1 of 12, prepare: start") == 1
    for stage in ("base", "teacher", "distill", "reflect-1", "reflect-2"):
        here, there = (load_file(next((runs / "demo" / "stages" / stage / "model").glob("*.safetensors")))
                       for runs in (tmp_path, done.runs))  # fmt: skip
        assert here.keys() == there.keys()
        for name, tensor in there.items():
            torch.testing.assert_close(here[name], tensor, rtol=0, atol=1e-3, msg=f"{stage}: {name}")
    here, there = (sorted((runs / "demo" / "stages" / "answer").glob("*.jsonl")) for runs in (tmp_path, done.runs))
    assert [p.name for p in here] == [p.name for p in there] == [
        "predictions.jsonl", "test-supports.jsonl", "validation-supports.jsonl", "validation.jsonl",
    ]  # fmt: skip
    for mine, theirs in zip(here, there, strict=True):
        asked = [sorted(json.loads(line)["id"] for line in p.read_text().splitlines()) for p in (mine, theirs)]
        assert asked[0] == asked[1]


@pytest.mark.slow  # 2 minutes: torchrun itself, twice
@pytest.mark.usefixtures("no_java")
def test_two_nodes_do_one_run(tmp_path):
    """As in docs/DISTILLATION.md: a launch a node, which meet at an address; here both nodes are this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "tests"]
    meet += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    words = [sys.executable, "-m", "torch.distributed.run", *meet, "-m", "clinkd", *command(tmp_path)]
    words += ["--set", "teacher.fit.rows=25"]  # which two cannot share
    nodes = []
    for number in range(2):
        with (tmp_path / f"node-{number}.txt").open("wb") as log:
            nodes.append(subprocess.Popen(words, stdout=log, stderr=log))
    try:
        codes = [node.wait(600) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    told = "".join((tmp_path / f"node-{number}.txt").read_text() for number in range(2))
    assert codes == [0, 0], told[-3000:]
    assert told.count("2 processes: rows=25, accumulate=1 of teacher.fit become rows=24 (other steps)") == 1
    assert told.count("report  ") == 1 and told.count("stage 1 of 12, prepare: start") == 1
    assert open_run(tmp_path / "demo").config.teacher.fit.rows == 24


def test_the_table_for_programs_has_its_form(done, capsys):
    assert main(["table", "demo", "--runs", str(done.runs), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["mode"] == "strict" and table["average"] is None
    assert table["RC"]["score"] is None and "SPICE" in table["RC"]["why"]
    for task in ("VG", "ROC", "MIA"):
        assert 0 <= table[task]["score"] <= 100 and table[task]["blind_chosen_on"] == "validation"
        assert table[task]["blind"] == table[task]["blind_by"][table[task]["blind_is"]]
        assert set(table[task]["by_modality"]) <= {
            "ct", "mr", "xray", "pet", "endoscopy", "dermoscopy", "fundus", "ultrasound", "microscopy", "other",
        }  # fmt: skip
        assert "images shuffled" in table[task]["blind_by"] and table[task]["metric"]
    for task in ("RC", "MIA"):
        assert set(table[task]["facts"]) == {"score", "blind"}
    choices = {"first beam", "random", "agreement", "by clip", "by clip text", "by clip crop", "model", "oracle"}
    assert all(set(table["selection"][t][m]) == choices for t, m in (("VG", "F1"), ("RC", "Facts F1")))
    assert table["selection"]["MIA"]["mBMR"]["model"]["score"] == table["MIA"]["score"]
    assert set(table["selection"]["MIA"]["mBMR"]) == choices - {"by clip crop"}  # a whole image has no crop
    assert table["selection_seconds"].keys() == choices - {"oracle"}
    assert table["selection_seconds"]["by clip"] > table["wall_seconds"]["clip"] - 0.1
    for number, round in enumerate(table["reflection"], start=1):
        recorded = json.loads((done.runs / f"demo/stages/reflect-{number}/stage.json").read_text())["recorded"]
        kept = {k: v for k, v in recorded["reviewed"].items() if k not in ("asked", "of")}
        assert round == {"round": number, "similarity": "offline", **kept, "rechecked": recorded["rechecked"]}
        assert round["reviewed"] == recorded["reviewed"]["asked"]
    assert {"prepare", "teacher", "distill", "reflect-1", "reflect-2", "answer", "score"} <= set(table["wall_seconds"])


def test_with_shuffled_images_the_model_answers_each_question_once(done):
    """By the likeliest words alone, for other images than its own."""
    asked = [json.loads(line) for line in (done.runs / "demo/stages/prepare/test.jsonl").read_text().splitlines()]
    said = [json.loads(line) for line in (done.runs / "demo/stages/shuffle/predictions.jsonl").read_text().splitlines()]
    assert sorted(a["id"] for a in said) == sorted(a["id"] for a in asked)
    assert {(len(a["candidates"]), a["by"]) for a in said} == {(1, "images shuffled")}


def test_a_run_is_no_better_than_itself(done, capsys):
    assert main(["compare", "demo", str(done.runs / "demo"), "--runs", str(done.runs), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert (told["ours"], told["theirs"]) == ("demo (1)", "demo (2)")
    assert {"VG", "ROC", "RC", "MIA"} <= told["tasks"].keys()
    for task in told["tasks"].values():
        head = task["metrics"][task["metric"]]
        assert (head["difference"], head["interval"], head["p"], task["p_holm"]) == (0, None, 1, 1)


def test_without_shuffled_images_the_answers_stay_what_they_are():
    with_them, without = (
        {s.name: s for s in plan(override(EXPERIMENTS["demo"](), [f"evaluate.shuffled={on}"]))}
        for on in ("true", "false")
    )  # fmt: skip
    assert with_them.keys() - without.keys() == {"shuffle"}
    assert {n for n in without if with_them[n].identity != without[n].identity} == {"score"}
    sampled = {s.name: s for s in plan(override(EXPERIMENTS["demo"](), ["answer.method=sampling"]))}
    assert sampled["shuffle"].identity == with_them["shuffle"].identity  # how candidates are drawn is nothing to it
    assert sampled["answer"].identity != with_them["answer"].identity


def test_the_report_tells_what_a_round_left_and_what_it_did(tmp_path):
    """The effect is shown where a reflect stage wrote it; corrections of questions that are not at hand are left out,
    as in the small run of `clinkd plan --measure`."""
    image, truth, round_1, round_2 = ImageRef("a.png", 8, 8), BoxedText("liver"), tmp_path / "1", tmp_path / "2"
    round_1.mkdir()
    round_2.mkdir()
    train = [Sample(i, (image,), Modality.CT, (Turn(Task.ROC, BoxedText("?"), truth),), i) for i in ("a", "b")]
    for number, folder in enumerate((round_1, round_2), start=1):
        fixed = [Correction(i, number, BoxedText("lung"), truth, 0.1, ("box",), truth, "offline") for i in ("a", "far")]
        write_lines(folder / "corrections.jsonl", (c.to_json() for c in fixed))
    told = {"id": "a", "task": "ROC", "modality": "ct", "before_wrong": True, "after_wrong": False, "answer": "liver"}
    stages = {"reflect-1": round_1, "reflect-2": round_2}
    assert "Asked again" not in [t.title[:11] for t in ReflectionResults.of(stages, train, (), "offline").tables()]
    write_lines(round_2 / "effect.jsonl", [told, {**told, "id": "far"}])
    reviewed = ReflectionResults.of(stages, train, ("liver", "lung"), "offline")
    *_, effect = reviewed.tables()
    assert effect.rows[0][:4] == ("Round 2, all", "1", "1", "100.0")
    later = {
        (r.sample.id, r.correction.round): r.again
        for r in choose_rewritten(train, reviewed.corrections, reviewed.again, 9)
    }
    assert later == {("a", 1): None, ("a", 2): RetestResult(2, "a", Task.ROC, Modality.CT, True, False, truth)}


def test_a_second_run_has_nothing_to_do_and_says_so_without_torch(done):
    code = (
        "import sys, json; from clinkd.cli import main; "
        "s = main(json.loads(sys.argv[1])); print('torch' in sys.modules); sys.exit(s)"
    )
    start = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-c", code, json.dumps(command(done.runs))], capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0 and told.stdout.rstrip().endswith("False")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("kind", ["png", "jpg", "dcm"])
def test_ask_answers_about_an_image_and_draws(done, tmp_path, capsys, kind):
    image = tmp_path / f"x.{kind}"
    if kind == "dcm":
        image.write_bytes(Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes())
    else:
        Image.new("RGB", (80, 60), "grey").save(image)
    out = tmp_path / "drawn.png"
    assert main(["ask", "--runs", str(done.runs), str(image), "Where is the kidney?", "--out", str(out)]) == 0
    assert Image.open(out).size[0] >= 80
    told = capsys.readouterr().out
    assert "candidates" in told and "clip" in told and str(out) in told


def test_ask_says_what_is_no_image(done, tmp_path, capsys):
    (tmp_path / "no.png").write_text("not an image")
    assert main(["ask", "--runs", str(done.runs), str(tmp_path / "no.png"), "What?"]) == 2
    assert "not an image" in capsys.readouterr().err


def test_the_model_can_be_carried_away_with_its_card(done, tmp_path, capsys):
    out = tmp_path / "model"
    assert main(["export", "--runs", str(done.runs), "--run", "demo", str(out)]) == 0
    assert "the same logits: bit for bit" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    for words in ("Research use only", "stage `reflect-2`", "| VG |", "reflect-2: ", "kd_weight:", "torch "):
        assert words in card, words
    assert str(done.runs) not in card and not list(tmp_path.glob(".*"))
    code = card.partition("```python\nimport clinkd\n")[2].partition("```")[0]
    Image.new("RGB", (96, 96)).save(tmp_path / "scan.png")
    code = code.replace("FOLDER", repr(str(out))).replace("scan.png", str(tmp_path / "scan.png"))
    exec("import clinkd\n" + code, {})  # what the card says is enough to ask the model
    assert main(["export", "--runs", str(done.runs), "--run", "demo", str(out)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    twice = ["export", "--runs", str(done.runs), "--run", "demo", str(tmp_path / "twice"), "--positions", "doubled"]
    assert main(twice) == 0 and "and the same logits" in capsys.readouterr().out
    assert "Positions are doubled" in (tmp_path / "twice" / "README.md").read_text()


def test_a_run_that_is_evaluated_answers_and_chooses_as_it_did(done, tmp_path, capsys):
    """On its own test split, so what it said and scored there is known."""
    runs = done.runs
    stages = runs / "demo" / "stages"
    test, out = stages / "prepare" / "test.jsonl", tmp_path / "out"
    words = ["evaluate", "--run", "demo", "--runs", str(runs), "--data", str(test), "--out", str(out), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    said = [
        {r["id"]: (r["chosen"], [c["raw"] for c in r["candidates"]]) for r in map(json.loads, file.open())}
        for file in (stages / "select" / "predictions.jsonl", out / "predictions.jsonl")
    ]
    assert said[0] == said[1]
    table = json.loads((runs / "demo" / "table.json").read_text())
    assert [told["strict"][t]["score"] for t in ("VG", "ROC", "MIA")] == [
        table[t]["score"] for t in ("VG", "ROC", "MIA")
    ]
    assert set(told["official"]) == {"VG", "ROC", "RC", "MIA"} and told["system"] == "demo"


def test_a_killed_run_goes_on_to_the_same_table(done, tmp_path):
    """Killed in a training, in the second round of another, and among its answers; it ends in this process."""
    given = command(tmp_path, "--set", "teacher.fit.checkpoint_seconds=0.001")
    cache = tmp_path / graph.CACHE
    signs = ("teacher-*.part/fit-*/step-*", "reflect-2-*.part/fit-*/log.jsonl", "answer-*.part/*.jsonl")
    for sign in signs:
        process = start(tmp_path / "log.txt", {}, main, given)
        while not list(cache.glob(sign)):
            assert process.is_alive(), (
                f"it ended before there was a {sign}: {(tmp_path / 'log.txt').read_text()[-2000:]}"
            )
            time.sleep(0.001)
        process.kill()
        process.join()
    drafts = {path.name.rpartition("-")[0] for path in cache.glob("*.part")}
    assert "answer" in drafts and not (tmp_path / "demo" / "table.json").exists()
    assert main(given) == 0

    def scores(runs: Path) -> dict[str, object]:
        table: dict[str, object] = json.loads((runs / "demo" / "table.json").read_text())
        return {k: v for k, v in table.items() if k not in ("wall_seconds", "selection_seconds")}

    assert scores(tmp_path) == scores(done.runs)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_every_experiment_plans(name, tmp_path):
    config = EXPERIMENTS[name]()
    given: list[str] = []
    (tmp_path / "records.jsonl").write_text("{}\n")
    (tmp_path / "config.json").write_text("{}")
    if name in ("real", "laptop", "modern", "paper"):
        given.append(f"data.path={tmp_path}")
    if name in ("laptop", "modern", "paper"):
        given.append(f"model.base={tmp_path}")
    if name == "paper":
        given.append(f"select.clip.base={tmp_path}")
    stages = plan(override(config, given))
    assert stages[0].name == "prepare" and stages[-1].name == "score"


def test_stages_are_shared_where_only_later_knobs_differ():
    a, b = plan(RunConfig()), plan(override(RunConfig(), ["distill.temperature=3"]))
    same = {x.name for x, y in zip(a, b, strict=True) if x.identity == y.identity}
    assert same == {"prepare", "base", "teacher", "clip"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["model.base=NOWHERE", "model.positions=native"], "config.json"),
        (["data.path=NOWHERE"], r"no such file or folder"),
        (["distill.temprature=3"], "temperature"),
        (["model.positions.stride=40"], "model.positions.stride"),
    ],
)
def test_bad_input_is_one_line(given, says, tmp_path, capsys):
    given = [g.replace("NOWHERE", str(tmp_path / "nowhere")) for g in given]
    assert main([*command(tmp_path), *(x for g in given for x in ("--set", g))]) == 2
    error = [x for x in capsys.readouterr().err.splitlines() if x.strip() and "[" not in x[:1] and "draw" not in x]
    assert says in error[-1]


def test_real_images_run_through_the_same_graph(shared, tmp_path, capsys):
    whole, data = shared / "data" / "dev", tmp_path / "part"
    (data / "images").mkdir(parents=True)
    records = (whole / "records.jsonl").read_text().splitlines(keepends=True)[::8]
    (data / "records.jsonl").write_text("".join(records))
    for image in (json.loads(record)["image"] for record in records):
        shutil.copy(whole / image, data / image)
    fits = ("teacher.fit", "distill.fit", "reflect.fit", "model.tiny.pretrain.vision", "model.tiny.pretrain.pairs")
    quick = ["data.variants=2", "model.tiny.image_pixels=64", "select.clip.eyes=false", "teacher.share=0.3",
             "teacher.fit.epochs=0.1", "distill.fit.epochs=0.1", "reflect.fit.epochs=0.05",
             "reflect.review_share=0.02", "select.clip.epochs=0.5", "answer.max_new_tokens=8", "answer.beams=2",
             "answer.candidates=2", "model.tiny.hidden=48", "model.tiny.heads=2", "model.tiny.layers=1",
             "model.tiny.pretrain.vision.epochs=0.2", "model.tiny.pretrain.pairs.epochs=0.2",
             *(f"{fit}.min_steps=2" for fit in fits), "threads=1"]  # fmt: skip
    given = ["run", "real", "--runs", str(tmp_path), "--set", f"data.path={data}"]
    assert main([*given, *(x for q in quick for x in ("--set", q))]) == 0
    capsys.readouterr()
    assert main(["table", "real", "--runs", str(tmp_path), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["QA"]["score"] is not None and table["RC"]["why"]
    assert "microscopy" in table["VG"]["by_modality"] or "microscopy" in table["ROC"]["by_modality"]


def test_a_base_that_is_stopped_between_its_two_lessons_goes_on(done, tmp_path, monkeypatch):
    from clinkd.pipeline import steps as work
    from clinkd.training import fit

    config = override(EXPERIMENTS["demo"](), SMALL).model
    inputs = {"prepare": done.runs / "demo" / "stages" / "prepare"}

    def base(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        context = StageContext(folder, inputs, 0, lambda key, value: None)
        work.base(work.StageInputs(context, Machine("cpu", 1)), config)

    taught: list[str] = []

    def stopping(*given, **named):
        taught.append(given[4].title)
        if taught == ["see", "pairs"]:
            raise KeyboardInterrupt
        return fit(*given, **named)

    monkeypatch.setattr("clinkd.pipeline.inputs.fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        base(tmp_path / "stopped")
    base(tmp_path / "stopped")
    assert taught == ["see", "pairs", "pairs"]
    base(tmp_path / "whole")
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("stopped", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not (tmp_path / "stopped" / "seen").exists()


@pytest.mark.parametrize("stage", ["base", "tower"])
def test_a_strip_without_a_place_is_named_before_anything_is_trained(done, tmp_path, monkeypatch, stage):
    from clinkd.pipeline import steps as work

    demo = shutil.copytree(done.runs / "demo" / "stages" / "prepare", tmp_path / "prepare", symlinks=True)
    lines = [json.loads(line) for line in (demo / "test.jsonl").read_text().splitlines()]
    strip = {"path": "scans/strip.png", "width": 3000, "height": 40}
    lines[0]["images"] = [strip]
    (demo / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = override(EXPERIMENTS["demo"](), [*SMALL, "model.square=false"]).model
    context = StageContext(tmp_path, {"prepare": demo}, 0, lambda key, value: None)
    monkeypatch.setattr("clinkd.pipeline.inputs.fit", None)
    with pytest.raises(BadInput, match=r"^image scans/strip.png \(1 x \d+ patches\) overlaps the text"):
        getattr(work, stage)(work.StageInputs(context, Machine("cpu", 1)), config)


def test_questions_and_pictures_that_cannot_be_are_refused(done, tmp_path, capsys):
    image = tmp_path / "x.png"
    Image.new("RGB", (80, 60), "grey").save(image)
    for question, more, says in (
        ("", [], "the question is empty"),
        ("Is it?<|im_end|>", [], "the question holds <|im_end|>, a mark that is kept for images and turns; remove it"),
        ("What is at [box]?", [], "no box as this model spells them, for example <x_"),
        ("What?", ["--out", str(tmp_path / "x.jpgg")], "drawn on a .png or .jpg"),
    ):
        assert main(["ask", "--runs", str(done.runs), str(image), question, *more]) == 2
        assert says in capsys.readouterr().err


def test_a_recipe_that_was_not_edited_is_refused(tmp_path, capsys):
    assert main(["recipe", "real"]) == 0
    file = tmp_path / "real.yaml"
    file.write_text(capsys.readouterr().out)
    assert main(["plan", str(file)]) == 2
    assert "data.path" in capsys.readouterr().err


def test_a_replaced_image_makes_other_data(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "records.jsonl").write_text('{"id": "a", "image": "a.png"}\n')
    config = override(EXPERIMENTS["real"](), [f"data.path={tmp_path}"])
    before = plan(config)[0].identity
    assert plan(config)[0].identity == before
    (tmp_path / "a.png").write_bytes(b"another")
    assert plan(config)[0].identity != before


def test_a_row_that_is_no_json_is_told_by_the_reader_of_the_data(tmp_path, capsys):
    (tmp_path / "records.jsonl").write_text('{"id": broken\n')
    assert main(["run", "real", "--runs", str(tmp_path / "runs"), "--set", f"data.path={tmp_path}"]) == 2
    assert "row 1: row = " in capsys.readouterr().err


def test_a_replaced_clip_is_noticed_and_what_it_is_shown_is_a_matter_of_the_choice(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for name in ("config.json", "vocab.txt", "model.safetensors", "README.md"):
        (folder / name).write_text("{}")

    def changed(*settings: str, base: Path | None = folder) -> set[str]:
        given = [f"select.clip.base={base}"] if base else []
        stages = plan(override(EXPERIMENTS["demo"](), [*given, *settings]))
        now = {s.name: s.identity for s in stages}
        try:
            return {name for name in now if now[name] != known[base].get(name)}
        finally:
            known[base] = now

    known: dict[Path | None, dict[str, str]] = {folder: {}, None: {}}
    start = ("select.clip.grounding=text", "select.clip.overlong=split")
    chosen = {"select", "score"}
    assert changed(*start) and not changed(*start)
    for name in ("config.json", "vocab.txt", "model.safetensors"):
        (folder / name).write_text("another")
        assert changed(*start) == {"clip", *chosen}, name
    (folder / "README.md").write_text("another")
    assert not changed(*start)
    assert changed("select.clip.grounding=crop", start[1]) == chosen
    assert changed("select.clip.grounding=crop", "select.clip.overlong=truncate") == chosen
    assert changed("select.clip.grounding=crop", "select.clip.overlong=truncate", "select.clip.width=64") == chosen
    # a tiny one is taught crops, where it is to see some, and nothing else
    assert changed(*start, base=None) and changed("select.clip.grounding=crop", start[1], base=None) == {
        "clip",
        *chosen,
    }
    assert changed("select.clip.grounding=both", start[1], base=None) == chosen
    assert changed("select.clip.grounding=both", "select.clip.overlong=truncate", base=None) == chosen
    with pytest.raises(BadInput, match="no config.json and no open_clip_config.json there"):
        changed(base=tmp_path)


def test_a_tiny_clip_is_taught_training_boxes_and_some_that_miss_them(done):
    from clinkd.clip.captions import ELSEWHERE, make_captioned_views

    train = read_split(done.runs / "demo" / "stages" / "prepare", "train")
    whole, named, boxed = make_captioned_views(train, True, seed=0)
    assert (
        make_captioned_views(train, False, seed=0) == [whole] and make_captioned_views(train, True, seed=0)[1] == named
    )
    true = {(s.images[0], b): s.names[0] for s in train for b in (*s.question.boxes, *s.answer.boxes)}
    missed = [(v.image, v.box) for v, texts in named if texts == [ELSEWHERE]]
    assert {(v.image, v.box): texts[0] for v, texts in named if texts != [ELSEWHERE]} == true
    assert len(missed) > 0.8 * len(true)
    for image, box in missed:
        assert max(iou(box, b) for (i, b) in true if i == image) < 0.5
    assert {(v.image, v.box) for v, _ in boxed} <= set(true) and all(v.box is None for v, _ in whole)


def test_without_captions_no_clip_is_trained_and_the_first_beam_is_taken(done, tmp_path):
    from clinkd.pipeline import steps as work

    stages = done.runs / "demo" / "stages"
    prepare = shutil.copytree(stages / "prepare", tmp_path / "prepare")
    boxed = [replace(s, names=()) for s in read_split(prepare, "train") if s.task == "VG"]
    (prepare / "train.jsonl").write_text("".join(json.dumps(s.to_json()) + "\n" for s in boxed))
    select = override(EXPERIMENTS["demo"](), SMALL).select
    inputs = {name: stages / name for name in ("base", "answer")} | {"prepare": prepare, "clip": tmp_path / "clip"}
    recorded: dict[str, Any] = {}
    for name, step, config in (("clip", work.clip, select.clip), ("select", work.select, select)):
        (tmp_path / name).mkdir()
        context = StageContext(tmp_path / name, inputs, 0, recorded.__setitem__)
        step(work.StageInputs(context, Machine("cpu", 1)), config)
    assert "no CLIP was trained" in recorded["cautions"][0]
    answers = read_predictions(tmp_path / "select")
    assert answers and all(p.chosen == 0 and len(p.candidates) > 1 for p in answers)


def test_what_the_clip_saw_is_recorded(done, tmp_path):
    from clinkd.pipeline import steps as work

    stages = done.runs / "demo" / "stages"
    settings = [*SMALL, "select.clip.grounding=both", "select.trust=always"]
    select = override(EXPERIMENTS["demo"](), settings).select
    inputs = {name: stages / name for name in ("prepare", "base", "answer")} | {"clip": tmp_path / "clip"}
    told: dict[str, Any] = {}
    for name in ("clip", "select"):
        (tmp_path / name).mkdir()
    for name, step, config in (("clip", work.clip, select.clip), ("select", work.select, select)):
        context = StageContext(tmp_path / name, inputs, 0, told.__setitem__)
        step(work.StageInputs(context, Machine("cpu", 1)), config)
    whole, names, sentences = told["views"]
    assert 40 == whole <= sentences < names <= 2 * sentences + 40  # names: those of boxes, and of boxes that miss
    samples = {s.id: s for s in read_split(inputs["prepare"], "test")}
    found = read_predictions(tmp_path / "select")
    seen = [*found, *read_predictions(inputs["answer"], "validation.jsonl")]  # these tell when candidates disagree
    assert told["clip_inputs"]["candidates"] == sum(len(p.candidates) for p in seen)
    assert told["clip_inputs"]["token_limit"] == 77 and told["clip_inputs"]["too_long"] == 0
    for p in found:
        boxed = samples[p.id].task in ("VG", "ROC", "RC")
        for c in p.candidates:
            assert set(c.scores) == {"agreement", "random", "clip", "clip text", *(["clip crop"] if boxed else [])}
        assert p.chosen == max(range(len(p.candidates)), key=lambda n: (p.candidates[n].scores["clip"], -n))


def test_a_crop_classifier_is_trained_in_the_place_of_the_clip_and_its_weights_are_kept(done, tmp_path, monkeypatch):
    from clinkd.clip import crops
    from clinkd.pipeline import steps as work

    class Letters:
        """In the place of a sentence model."""

        def embed(self, names):
            return np.array([np.bincount(list(n.encode()), minlength=128)[:128] for n in names], np.float32)

    for name, value in (("PIXELS", 32), ("_open_embedder", Letters)):  # for speed
        monkeypatch.setattr(crops, name, value)
    monkeypatch.setattr(crops.fit_matcher, "__defaults__", (5,))
    monkeypatch.setattr(work, "MOST_CROPS", 30)
    stages = done.runs / "demo" / "stages"
    select = override(EXPERIMENTS["demo"](), [*SMALL, "select.clip.eyes=true", "select.trust=always"]).select
    inputs = {name: stages / name for name in ("prepare", "answer")} | {"clip": tmp_path / "clip"}
    told: dict[str, Any] = {}
    for name, step, config in (("clip", work.clip, select.clip), ("select", work.select, select)):
        (tmp_path / name).mkdir()
        context = StageContext(tmp_path / name, inputs, 0, told.__setitem__)
        step(work.StageInputs(context, Machine("cpu", 1)), config)
    assert told["crops"]["units"] == 30 < told["crops_of"] and "cautions" not in told
    weights = {kind: fitted["weight"] for kind, fitted in told["crop_weights"].items()}
    assert "names" in weights  # this little model writes hardly a box
    samples = {s.id: s for s in read_split(inputs["prepare"], "test")}
    for p in read_predictions(tmp_path / "select"):
        for c in p.candidates:
            asked = "names" if samples[p.id].question.boxes else "boxes"
            if "crop alone" in c.scores:
                whole = c.scores["crop alone"] + weights.get(asked, 0) * c.logprob
                assert c.scores["crop classifier"] == pytest.approx(whole, abs=1e-5)
            else:
                assert c.scores["crop classifier"] == 0 and asked == "boxes"
        assert p.chosen == max(range(len(p.candidates)), key=lambda n: (p.candidates[n].scores["crop classifier"], -n))
    open_image, lexicon = read_data(inputs["prepare"])
    again = make_scorer(select, tmp_path / "clip", open_image, lexicon, 0, told)  # as `ask` and `evaluate` do
    assert again.weights == weights


def test_a_free_question_is_answered_as_the_run_answers_its_like():
    box = Box(0, 0, 0.5, 0.5)
    bare, boxed = BoxedText("Where?"), BoxedText("[box]", (box,))
    gain = {"MIA": -3.0, "RC": -1.0, "ROC": 2.0, "VG": 1.0}
    told = {"validation_gain": gain, "reordered_tasks": ["VG", "ROC"]}
    assert trusts(told, bare, boxed) and not trusts(told, bare, bare)
    assert not trusts(told, boxed, bare)  # it may be of either, and one is not trusted
    assert trusts({**told, "reordered_tasks": ["ROC", "RC"]}, boxed, bare)
    only_roc = {"validation_gain": {"ROC": 2.0}, "reordered_tasks": ["ROC"]}
    assert trusts(only_roc, boxed, bare) and not trusts(only_roc, bare, boxed)
    always = {"reordered_tasks": ["VG", "ROC", "RC", "MIA", "QA"]}
    assert trusts(always, bare, boxed) and trusts(always, boxed, bare) and trusts(always, bare, bare)

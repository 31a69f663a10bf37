"""What `clinkd plan` says a run takes: its counts are the real run's; what does not fit is refused with a way out."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.numpy import save_file

from clinkd import pipeline
from clinkd.cli import main
from clinkd.config import FitConfig, ModelConfig, PhantomConfig, ReflectConfig, RunConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.data.split import count_sampled_images, sample_share
from clinkd.data.writers import write_jsonl
from clinkd.experiments import demo, laptop, paper
from clinkd.model.encode import group_by_images
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy
from clinkd.pipeline import steps
from clinkd.pipeline.graph import StageContext, StageStatus, plan_stages, stage_record
from clinkd.pipeline.prepared import read_data, read_split
from clinkd.records import BadInput, ImageRef, Prediction, Sample
from clinkd.settings import override
from clinkd.storage import JsonLines, write_lines
from clinkd.training import FitRun, fit
from clinkd.workflows import forecast as estimate
from clinkd.workflows import trial
from clinkd.workflows.counted import trained_bytes
from clinkd.workflows.forecast import Forecast, StageEstimate, forecast

SMALL = [
    "data.phantoms.train_images=32", "data.phantoms.validation_images=6", "data.phantoms.test_images=8",
    "data.workers=1", "teacher.share=0.4", "reflect.review_share=0.1", "reflect.rounds=1", "select.scorer=first",
    "answer.max_new_tokens=12", "answer.batch=8", "distill.teacher_as=states", "distill.targets=mixed",
    "model.tiny.hidden=48", "model.tiny.layers=1", "model.tiny.heads=2", "evaluate.replicates=20",
    "model.tiny.pretrain.vision.rows=12", "model.tiny.pretrain.pairs.rows=12", "teacher.fit.rows=8",
    "distill.fit.rows=8", "reflect.fit.rows=8", "threads=1",
    "model.tiny.pretrain.vision.epochs=0.7", "model.tiny.pretrain.pairs.epochs=1", "teacher.fit.epochs=1.2",
    "distill.fit.epochs=0.5", "reflect.fit.epochs=0.6",  # two or three steps each
]  # fmt: skip


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return override(demo(), SMALL)


@pytest.fixture(scope="module")
def told(config, failing_java, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Forecast]:
    """What a trial tells that scores captions without METEOR."""
    runs = tmp_path_factory.mktemp("runs")
    return runs, forecast(config, states_of(config, runs), runs)


@pytest.mark.parametrize("knobs", [SMALL, ["data.phantoms.train_images=9", "select.scorer=first"], []])
def test_a_trial_trains_no_longer_than_the_run(knobs):
    config = override(demo(), knobs)
    small = trial.shrink_config(config)
    for split in ("train", "validation", "test"):
        name = f"{split}_images"
        assert getattr(small.data.phantoms, name) <= getattr(config.data.phantoms, name)
    for name, fit_config in config.fits().items():
        there, here = config.data.phantoms.train_images, trial._count_kept_rows(config)["train"]
        if name == "teacher.fit":
            there, here = (count_sampled_images(n, config.teacher.share, config.seed) for n in (there, here))
        assert small.fits()[name].count_steps(here) == min(16, fit_config.count_steps(there)), name


def states_of(config: RunConfig, runs: Path) -> list[StageStatus]:
    return [stage.status for stage in plan_stages(pipeline.plan(config), runs)]


def test_steps_and_bytes_are_those_of_the_run_and_what_is_done_takes_nothing(config, told):
    runs, found = told
    assert {e.state for e in found.stages} == {"missing"} and found.seconds > 0
    run = pipeline.run(config, runs)
    assert [e.stage for e in found.stages] == [s.name for s in run.status()]
    for guess in found.stages:
        folder = run.stage(guess.stage)
        recorded = stage_record(folder)["recorded"]
        assert guess.steps == sum(v["steps"] for k, v in recorded.items() if k.startswith("fit-")), guess.stage
        taken = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
        near = 0.6 if guess.stage == "score" else 0.4  # a part of its page is there whatever the number of questions
        assert guess.disk_mb == pytest.approx(taken, rel=near, abs=0.2), guess.stage
        assert guess.seconds >= 0 and 300 < guess.memory_mb < 10_000
    stored = next(e for e in found.stages if e.stage == "distill")
    weights = stage_record(run.stage("base"))["recorded"]["parameters"]
    bytes_there = stage_record(run.stage("distill"))["recorded"]["stored_teacher"]["bytes"]
    assert stored.passing_mb == pytest.approx((3 * 8 * weights + bytes_there) / 1e6, rel=0.2)  # by muon


@pytest.mark.slow
def test_what_meteor_takes_is_counted(config, told, failing_java, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.environ["PATH"].removeprefix(failing_java + os.pathsep))
    seconds = [
        {e.stage: e.seconds for e in f.stages}["score"]
        for f in (told[1], forecast(config, states_of(config, tmp_path), tmp_path))
    ]
    assert seconds[1] > seconds[0] + 1


def test_what_is_done_takes_nothing_and_is_not_tried(config, told, tmp_path, monkeypatch):
    states = states_of(config, tmp_path)
    lines = [{"estimate": asdict(e), "gpu_free_mb": None, "parameters": 1} for e in told[1].stages]
    monkeypatch.setattr(estimate, "_run_trial", lambda *given: iter(lines))
    half = [replace(s, state="done" if s.name in ("prepare", "base", "teacher") else "missing") for s in states]
    found = forecast(config, half, tmp_path)
    assert [e.state for e in found.stages][:3] == ["done"] * 3
    assert all(e.seconds == e.memory_mb == e.disk_mb == e.steps == 0 for e in found.stages[:3])
    assert found.stages[3:] == told[1].stages[3:]
    monkeypatch.setattr(estimate, "_run_trial", None)  # a call would fail
    done = forecast(config, [replace(s, state="done") for s in states], tmp_path)
    assert done.seconds == done.memory_mb == done.disk_mb == 0 and len(done.stages) == len(states)
    done.demand_room(config)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    """Data of which the short rows of one modality come first."""
    folder = tmp_path_factory.mktemp("given")
    drawn = PhantomConfig(train_images=90, validation_images=20, test_images=20)
    samples = phantoms.write_phantoms(folder, drawn, 0)
    samples.sort(key=lambda s: (s.modality, s.images[0].path))
    write_jsonl(samples, folder / "samples.jsonl")
    return folder, samples


def small_run(config: RunConfig, folder: Path) -> trial.SmallRun:
    """One whose data are prepared and thinned."""
    run = trial.SmallRun(config, folder)
    (folder / "prepare").mkdir(parents=True)
    steps.prepare(StageContext(folder / "prepare", {}, config.seed, lambda key, value: None), config.data)
    run.thin(folder / "prepare")
    run.open_seconds, run.image_mb = 0.0, 0.0
    return run


def test_a_trial_on_given_data_is_of_rows_that_stand_for_all_and_counts_them_all(given, tmp_path):
    folder, _ = given
    config = override(demo(), [f"data.path={folder}", "model.tiny.pretrain=null", "select.scorer=first"])
    config = override(config, ["teacher.fit.rows=2", "distill.fit.rows=24", "reflect.fit.rows=24"])
    light = override(
        config, [f"model.base={folder}", "model.positions=native"]
    )  # of a large base only a few rows are tried
    run = small_run(light, tmp_path)
    assert {split: trial._count_kept_rows(light)[split] for split in ("train", "test")} == {"train": 24, "test": 4}
    left = read_split(tmp_path / "prepare", "train")
    assert run.whole == run.drawn and run.whole["rows"]["train"] == 90
    assert run.narrow["rows"]["train"] == len(group_by_images(left)) == 24 == run.narrow["images"]["train"]
    assert run.narrow["questions"]["train"] == len(left)
    wider = {split: read_split(tmp_path / "wide", split) for split in ("train", "validation", "test")}
    assert run.wide["questions"] == {split: len(s) for split, s in wider.items()}
    assert {split: len(group_by_images(s)) for split, s in wider.items()} == run.wide["rows"] == run.whole["rows"]
    read_data(tmp_path / "wide")[0](wider["test"][0].images[0])  # its images are found from there, too
    there, here = (Counter(row[0].modality for row in group_by_images(s)) for s in (wider["train"], left))
    assert set(here) == set(there)
    assert all(abs(here[m] - there[m] * 24 / 90) <= 1 for m in there)  # the first 24 rows are of three modalities

    for kind, fit_config, drawn_here, drawn_there in (
        ("teacher", config.teacher.fit, *(sample_share(s, config.teacher.share, 0) for s in (left, wider["train"]))),
        ("distill", config.distill.fit, left, wider["train"]),
    ):
        recorded = {f"fit-{kind}": {"rows": len(group_by_images(drawn_here)), "steps": 1, "trained_parameters": 1}}
        tried = trial.Trial(1.0, 1.0, 1.0, {f"fit-{kind}": [1.0]}, recorded)
        steps_there = math.ceil(fit_config.epochs * len(group_by_images(drawn_there)) / fit_config.rows)
        found = run.estimate(kind, tried)
        assert (found.steps, found.seconds) == (steps_there, steps_there)


def test_rows_that_stand_for_all_have_the_heaviest_among_them(given):
    rows = group_by_images(given[1])
    few = trial.choose_typical(rows, 8, 1024)

    def weight(row: list[Sample]) -> int:
        return sum(len(s.question.text) + len(s.answer.text) for s in row)

    assert len(few) == 8 == len({id(r) for r in few})
    assert max(map(weight, few)) == max(map(weight, rows))
    mean, of_all = (np.mean([weight(r) for r in some]) for some in (few, rows))
    assert mean == pytest.approx(of_all, rel=0.3)
    assert trial.choose_typical(rows, len(rows), 1024) == rows == trial.choose_typical(rows, 1000, 1024)


def test_answers_are_scored_in_small_at_the_length_of_truths(given, tmp_path):
    samples = [Sample.from_json(s.to_json()) for s in given[1] if s.split == "test"]  # boxes rounded as on the disk
    for split in ("validation", "test"):
        write_lines(tmp_path / f"{split}.jsonl", (s.to_json() for s in samples))
    (tmp_path / steps.SUPPORTS["validation"]).write_text('{"id": "of the few alone", "supports": [1.0]}\n')
    trial.write_truths(tmp_path, tmp_path, steps.ANSWER_FILES, 3)
    for split, name in steps.ANSWER_FILES.items():
        said = [Prediction.from_json(r) for r in JsonLines(tmp_path / name).read()]
        supports = {r["id"]: len(r["supports"]) for r in JsonLines(tmp_path / steps.SUPPORTS[split]).read()}
        assert supports == {p.id: len(p.candidates) for p in said}  # the stage `select` looks them up
        assert [p.id for p in said] == [s.id for s in samples]
        assert all(p.answer.answer == s.answer for p, s in zip(said, samples, strict=True))
        assert all(1 <= len(p.candidates) == len({c.answer for c in p.candidates}) <= 3 for p in said)
        assert max(len(p.candidates) for p in said) == 3


def tiny_model(given: tuple[Path, list[Sample]]) -> VisionLanguageModel:
    # wide, as matrices are what a real model consists of: muon keeps two states of the rest
    tiny = TinyConfig(hidden=128, layers=2, heads=2, mlp=512, vision_hidden=64, vision_layers=1, vocabulary=300)
    knobs = ModelConfig(tiny=tiny)

    def opened(ref: ImageRef) -> Image.Image:
        return open_image(given[0], ref)

    return new_tiny(knobs, spell_samples(given[1], knobs), 0, opened)


def test_time_goes_with_what_it_is_taken_by(given, tmp_path):
    """By hand: images opened once, and anew where they find no place; scores and answers by their number."""
    config = override(demo(), ["threads=2", f"data.path={given[0]}"])
    run = small_run(config, tmp_path)
    run.narrow = {unit: dict.fromkeys(("train", "validation", "test"), 50) for unit in ("questions", "rows", "images")}
    run.wide = {**run.narrow, "questions": {"train": 100, "validation": 10, "test": 20}}
    run.whole = {
        "questions": {"train": 1000, "validation": 50, "test": 200}, "rows": dict.fromkeys(run.narrow["rows"], 500),
        "images": {"train": 500, "validation": 25, "test": 100},
    }  # fmt: skip
    run.open_seconds, run.image_mb, run.answers_mb, run.scoring_pace = 0.01, 0.5, 0.0, 0.25
    recorded = {"fit-distill": {"rows": 50, "steps": 3, "trained_parameters": 1}}
    distill = trial.Trial(1.0, 1.0, 1.0, {"fit-distill": [0.1, 9.0, 0.1]}, recorded)
    epochs, rows = config.distill.fit.epochs, config.distill.fit.rows
    steps_there = math.ceil(epochs * 500 / rows)
    found = run.estimate("distill", distill)
    # 500 images of 0.5 MB find a place; on two threads beside the steps
    assert (found.steps, found.seconds) == (steps_there, pytest.approx(0.1 * steps_there + 0.7 + 500 * 0.01 / 2))
    run.image_mb = 1.0
    assert run.estimate("distill", distill).seconds == pytest.approx(0.1 * steps_there + 0.7 + epochs * 500 * 0.01 / 2)

    plain = trial.Trial(3.0, 1.0, 1.0, {}, {})
    assert run.estimate("score", plain).seconds == pytest.approx(3 + 0.25 * 150)
    assert run.estimate("select", plain).seconds == pytest.approx(3 * 250 / 30)
    run.paces, batch = {config.answer.rows: (2.0, 0.1), 1: (1.0, 0.1)}, config.answer.batch
    run.tokens = {"train": [4], "validation": [10], "test": [10, 1000]}
    assert run.answer_seconds("reflect", batch / 2) == pytest.approx((1 + 0.1 * 4) / 2 + batch / 2 * 0.01)
    most = config.answer.max_new_tokens
    assert run.answer_seconds("answer", batch) == pytest.approx(2 + 0.1 * most + batch * 0.01)  # the longest decides
    two = 2 * 1 + 0.1 * (most + (10 + most) / 2)  # batches of short and of long answers
    assert run.answer_seconds("shuffle", 2 * batch) == pytest.approx(two + min(2 * batch, 100) * 0.01)


@pytest.mark.parametrize(("optimizer", "near"), [("adamw", 0.02), ("muon", 0.3)])
def test_a_checkpoint_is_as_large_as_counted(given, optimizer, near, tmp_path):
    model = tiny_model(given)
    config = FitConfig(epochs=1, rows=8, optimizer=optimizer, checkpoint_seconds=0)
    fitted = fit(model, given[1][:80], CrossEntropy(), config, FitRun(tmp_path, 0, "fit"))
    kept = sorted(tmp_path.glob("step-*"))
    bytes_there = sum(p.stat().st_size for p in kept[-1].glob("*.safetensors"))
    assert len(kept) == estimate.CHECKPOINTS - 1  # one more while it is written
    counted = fitted.num_trained * trained_bytes(config)
    assert counted <= bytes_there and counted == pytest.approx(bytes_there, rel=near)


def test_a_forecast_for_people_and_for_programs(told, config, monkeypatch, capsys, tmp_path):
    found = replace(told[1], load=0.1)
    assert all(e.measured_steps > 0 for e in found.stages if e.steps)
    monkeypatch.setattr("clinkd.workflows.forecast.forecast", lambda *given: found)
    words = ["plan", "demo", "--runs", str(tmp_path), "--measure"]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [s["stage"] for s in said["stages"]] == [e.stage for e in found.stages]
    assert all(s["measured"] and s["seconds"] >= 0 for s in said["stages"])
    assert said["whole"]["seconds"] == pytest.approx(sum(s["seconds"] for s in said["stages"]))
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "whole" in table and "free: " in table and "other work" not in table
    assert f"{sum(e.measured_steps for e in found.stages):,} steps of all trainings" in table
    busy = replace(found, load=3.14)
    monkeypatch.setattr("clinkd.workflows.forecast.forecast", lambda *given: busy)
    assert main(words) == 0 and "other work had 3.1 of the " in capsys.readouterr().out
    tight = replace(found, free_memory_mb=100.0)
    monkeypatch.setattr("clinkd.workflows.forecast.forecast", lambda *given: tight)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "whole" in out and "of memory and 100 MB are free: " in err and len(err.splitlines()) == 1


def test_a_trial_that_fails_or_is_killed_is_told_with_its_stage(config, tmp_path, monkeypatch):
    states = states_of(config, tmp_path)
    line = json.dumps({"estimate": asdict(StageEstimate("prepare", "missing"))})

    def ended(how: str) -> str:
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\necho '{line}'\n{how}\n")
        script.chmod(0o755)
        monkeypatch.setattr(estimate.sys, "executable", str(script))
        with pytest.raises(BadInput) as told:
            forecast(config, states, tmp_path)
        return str(told.value)

    assert ended("kill -9 $$").startswith("the trial of base was killed: memory will not do; ")
    assert ended("echo 'clinkd.records.BadInput: too odd' >&2; exit 1") == "the trial of base failed: too odd"
    assert ended("exit 3") == "the trial of base failed: it ended with 3"
    for said in (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory",
        "MemoryError",
    ):
        told = ended(f'echo "{said}" >&2; exit 1')
        assert told.startswith("the trial of base ran out of memory: "), told


def base_of(folder: Path, **parts: int) -> Path:
    names = {"vision": "visual.blocks.0.w", "merger": "visual.merger.w", "text": "model.w", "head": "lm_head.weight"}
    folder.mkdir()
    save_file({names[p]: np.zeros(n, np.float16) for p, n in parts.items()}, folder / "model.safetensors")
    return folder


def test_weights_are_counted_without_a_step(tmp_path):
    base = base_of(tmp_path / "base", vision=3_000_000, merger=1_000_000, text=8_000_000, head=2_000_000)
    found = estimate.count_least(paper(base=base))
    assert found and found.stage == "distill"
    assert found.memory_mb == 2 * 14 * 4 + 14 * 12  # student and teacher; gradients and two states
    assert found.disk_mb == 4 * 14 * 4 + 3 * 14 * 12  # teacher, distill and two rounds; three checkpoints
    frozen = FitConfig(freeze=("vision", "merger", "head"))
    alone = override(paper(base=base), ["distill.kd_weight=0", "teacher=null"]).model_copy(
        update={"reflect": ReflectConfig(rounds=1, fit=frozen)}
    )
    assert alone.distill
    alone = alone.model_copy(update={"distill": alone.distill.model_copy(update={"fit": frozen})})
    assert (one := estimate.count_least(alone)) and one.memory_mb == 14 * 4 + 8 * 12
    light = estimate.count_least(laptop(base=base))
    assert (
        light and light.memory_mb == 14 * 4 and light.saved_mb == {}
    )  # additions count for nothing, the teacher is on the disk
    assert estimate.count_least(demo()) is None
    muon = override(paper(base=base), [f"{kind}.fit.optimizer=muon" for kind in ("teacher", "distill", "reflect")])
    assert (lean := estimate.count_least(muon)) and lean.memory_mb == 2 * 14 * 4 + 14 * 8  # one state, not two
    (base / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(BadInput, match=r"model.safetensors: its weights are cut or broken, or no safetensors"):
        estimate.count_least(paper(base=base))


HALF = [f"{kind}.fit.precision=bf16" for kind in ("teacher", "distill", "reflect")]


def test_what_is_fixed_takes_half_in_bf16_and_what_is_shared_counts_once(tmp_path):
    base = base_of(tmp_path / "base", vision=3_000_000, merger=1_000_000, text=8_000_000, head=2_000_000)
    half = override(paper(base=base), ["model.dtype=bf16", *HALF])
    assert (whole := estimate.count_least(half)) and whole.stage == "distill"
    assert whole.memory_mb == 14 * 2 + 14 * 4 + 14 * 12  # the teacher; the student, whose weights learn
    assert whole.disk_mb == 4 * 14 * 2 + 3 * 14 * 12
    low_rank = [f"{kind}.fit.lora={{}}" for kind in ("teacher", "distill", "reflect")]
    additions = override(half, low_rank)
    assert (one := estimate.count_least(additions)) and one.memory_mb == 14 * 2 and one.saved_mb == {}
    again = override(additions, ["reflect.objective=distill"])
    assert (two := estimate.count_least(again)) and two.memory_mb == 14 * 2 + 8 * 2 and two.stage == "reflect-1"
    for knobs in (["shard=true"], ["distill.on_policy=0.5"]):
        assert (apart := estimate.count_least(override(additions, knobs)))
        assert apart.memory_mb == 14 * 2 + (14 if knobs == ["shard=true"] else 8) * 2
        assert "distill.teacher_as=states" in apart.saved_mb


def status_of(tmp_path: Path, **states: str) -> list[StageStatus]:
    return [StageStatus(n.replace("_", "-"), "0", s, 1.0, tmp_path / n) for n, s in states.items()]


def test_only_what_is_left_to_do_is_counted(tmp_path, monkeypatch):
    base = base_of(tmp_path / "base", text=1_000_000)
    config = paper(base=base).model_copy(update={"device": "cpu"})
    made = status_of(tmp_path, teacher="done", distill="done", reflect_1="done", reflect_2="missing")
    found = estimate.count_least(config, made)
    assert found and found.stage == "reflect-2" and found.memory_mb == 4 + 12
    assert found.disk_mb == 4 + 3 * 12
    left = [*made[:3], *status_of(tmp_path, reflect_2="done")]
    assert (only := estimate.count_least(config, left)) and (only.stage, only.memory_mb, only.disk_mb) == (
        "answer",
        4,
        0,
    )
    answered = [*left, *status_of(tmp_path, answer="done")]
    assert (shuffled := estimate.count_least(config, answered)) and (shuffled.stage, shuffled.memory_mb) == (
        "shuffle",
        4,
    )
    assert estimate.count_least(config, [*answered, *status_of(tmp_path, shuffle="done")]) is None
    plain = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"shuffled": False})})
    assert estimate.count_least(plain, answered) is None

    draft = tmp_path / "reflect_2.part" / "fit-reflect" / "step-0000001"
    draft.mkdir(parents=True)
    (draft / "weights.safetensors").write_bytes(bytes(30_000_000))  # of the 40 MB that it is to take
    halfway = estimate.count_least(config, [*made[:3], *status_of(tmp_path, reflect_2="partial")])
    assert halfway and halfway.drafts_mb == 30
    monkeypatch.setattr(estimate, "free_memory_mb", lambda: 1000.0)
    monkeypatch.setattr(estimate, "free_bytes", lambda runs: 12e6)
    halfway.demand_room(config, tmp_path)
    with pytest.raises(BadInput, match="about 40 MB of disk and 12 MB are free"):
        found.demand_room(config, tmp_path)


def test_a_trial_that_is_stopped_leaves_no_process_and_no_file(tmp_path, monkeypatch, config):
    """SIGTERM arrives as SystemExit while the trial is waited for (`end_in_order`)."""
    program, usual = tmp_path / "python", tmp_path / "usual"
    program.write_text('#!/bin/sh\nmkdir "$TMPDIR/left"\nsleep 600 >&- 2>&- &\necho $!\nwait\n')
    program.chmod(0o755)
    usual.mkdir()
    monkeypatch.setattr(estimate.sys, "executable", str(program))
    monkeypatch.setattr(estimate.tempfile, "tempdir", str(usual))
    monkeypatch.setenv("TMPDIR", str(usual))
    monkeypatch.setattr(estimate, "_choose_scratch_folder", lambda runs: usual)
    results = estimate._run_trial(config, (), tmp_path)
    helper = psutil.Process(next(results))
    assert helper.is_running() and len(list(usual.iterdir())) == 1 + (usual / "left").exists()
    with pytest.raises(SystemExit):
        results.throw(SystemExit(143))
    assert not helper.is_running() or helper.status() == psutil.STATUS_ZOMBIE
    assert list(usual.iterdir()) == []


def test_a_trial_is_not_begun_where_the_count_says_no(tmp_path, monkeypatch, capsys, given):
    base = base_of(tmp_path / "base", text=1_000_000)
    (base / "config.json").write_text("{}")
    monkeypatch.setattr(estimate, "free_memory_mb", lambda: 10.0)
    monkeypatch.setattr("clinkd.workflows.forecast.forecast", None)  # a call would fail
    words = ["plan", "paper", "--runs", str(tmp_path), "--measure", "--set", "device=cpu"]
    words += ["--set", "select.scorer=first"]  # by no CLIP
    assert main([*words, "--set", f"model.base={base}", "--set", f"data.path={given[0]}"]) == 2
    err = capsys.readouterr().err
    assert "distill takes about 20 MB of memory and 10 MB are free" in err and len(err.splitlines()) == 1


def test_a_run_whose_weights_do_not_fit_is_refused_at_once(tmp_path, monkeypatch):
    config = paper(base=base_of(tmp_path / "base", text=2_000_000))
    least = estimate.count_least(config)
    assert least
    monkeypatch.setattr(estimate, "free_memory_mb", lambda: 30.0)
    config = config.model_copy(update={"device": "cpu"})
    knobs = r"set distill.fit.lora=\{\} \(24 MB less\), or distill.teacher_as=states \(8 MB less\), or "
    with pytest.raises(BadInput, match="distill takes about 40 MB of memory and 30 MB are free: " + knobs):
        least.demand_room(config, tmp_path)
    monkeypatch.setattr(estimate, "free_memory_mb", lambda: 50.0)
    monkeypatch.setattr(estimate, "free_bytes", lambda runs: 50e6)
    with pytest.raises(BadInput, match=r"about 104 MB of disk and 50 MB are free: make room, or give another --runs"):
        least.demand_room(config, tmp_path)


def test_ways_out_name_what_is_not_done_yet():
    assert estimate.suggest_knobs(paper(base=Path("x")), "distill").split(", or ")[:2] == [
        "set distill.fit.lora={}",
        "distill.teacher_as=states",
    ]
    by_effect = estimate.estimate_savings(
        override(paper(base=Path("x")), ["distill.fit.freeze=[vision,merger]"]), "distill", 9_000_000, 1_000_000
    )
    assert list(by_effect.items()) == [("distill.teacher_as=states", 36.0), ("distill.fit.lora={}", 12.0)]
    assert estimate.estimate_savings(paper(base=Path("x")), "answer", 9, 9) == {}
    turned = override(
        laptop(base=Path("x")),
        ["shard=true", "model.dtype=bf16", *HALF, "distill.fit.max_tokens=1024"],
    )
    assert estimate.suggest_knobs(turned, "distill") == "a smaller base, or a larger machine, is needed"
    half = "model.dtype=bf16 (and precision=bf16)"
    assert estimate.suggest_knobs(laptop(base=Path("x")), "answer") == f"set answer.batch=1, or {half}"
    whole = Forecast((StageEstimate("answer", "missing", memory_mb=10.0),), 5.0, 100.0)
    with pytest.raises(BadInput, match="answer takes about 10 MB of memory and 5 MB are free: set answer.batch=1"):
        whole.demand_room(laptop(base=Path("x")))

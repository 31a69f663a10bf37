"""What `clinkd plan` says a run takes: its counts are the real run's; what does not fit is refused with a way out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from clinkd import pipeline
from clinkd.cli import main
from clinkd.config import FitConfig, ReflectConfig, RunConfig, override
from clinkd.experiments import demo, laptop, paper
from clinkd.pipeline import estimate
from clinkd.pipeline.estimate import Estimate, Forecast
from clinkd.pipeline.graph import stage_record
from clinkd.records import BadInput

SMALL = [
    "data.phantoms.train_images=60", "data.phantoms.validation_images=6", "data.phantoms.test_images=8",
    "data.workers=1", "teacher.share=0.4", "reflect.review_share=0.1", "reflect.rounds=1", "select.scorer=first",
    "answer.max_new_tokens=12", "distill.teacher_as=states", "distill.targets=mixed", "model.tiny.hidden=48",
    "model.tiny.layers=1", "model.tiny.heads=2", "evaluate.replicates=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return override(demo(), SMALL)


@pytest.fixture(scope="module")
def told(config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Forecast]:
    runs = tmp_path_factory.mktemp("runs")
    return runs, pipeline.forecast(config, runs)


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
        assert guess.disk_mb == pytest.approx(taken, rel=0.4, abs=0.2), guess.stage
        assert guess.seconds >= 0 and 300 < guess.memory_mb < 10_000
    stored = next(e for e in found.stages if e.stage == "distill")
    weights = stage_record(run.stage("base"))["recorded"]["parameters"]
    bytes_there = stage_record(run.stage("distill"))["recorded"]["stored teacher"]["bytes"]
    assert stored.passing_mb == pytest.approx((36 * weights + bytes_there) / 1e6, rel=0.2)
    done = replace(found, stages=tuple(replace(e, state="done") for e in found.stages))
    assert done.seconds == done.memory_mb == done.disk_mb == 0


def test_a_forecast_for_people_and_for_programs(told, config, monkeypatch, capsys, tmp_path):
    found = told[1]
    monkeypatch.setattr(pipeline, "forecast", lambda config, runs: found)
    words = ["plan", "demo", "--runs", str(tmp_path), "--measure"]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [s["stage"] for s in said["stages"]] == [e.stage for e in found.stages]
    assert all(s["measured"] and s["seconds"] >= 0 for s in said["stages"])
    assert said["whole"]["seconds"] == pytest.approx(sum(s["seconds"] for s in said["stages"]))
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "whole" in table and "free: " in table
    tight = replace(found, free_memory_mb=100.0)
    monkeypatch.setattr(pipeline, "forecast", lambda config, runs: tight)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "whole" in out and "of memory and 100 MB are free: " in err and len(err.splitlines()) == 1


def test_a_trial_that_fails_or_is_killed_is_told_with_its_stage(config, tmp_path, monkeypatch):
    states = [look.status for look in pipeline.outlook(pipeline.plan(config), tmp_path)]

    def ended(how: str) -> str:
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\necho \'{{"stage": "prepare"}}\'\n{how}\n')
        script.chmod(0o755)
        monkeypatch.setattr(estimate.sys, "executable", str(script))
        with pytest.raises(BadInput) as told:
            estimate.forecast(config, states, tmp_path)
        return str(told.value)

    assert ended("kill -9 $$").startswith("the trial of base was killed: memory will not do; ")
    assert ended("echo 'clinkd.records.BadInput: too odd' >&2; exit 1") == "the trial of base failed: too odd"
    assert ended("exit 3") == "the trial of base failed: it ended with 3"


def base_of(folder: Path, **parts: int) -> Path:
    names = {"vision": "visual.blocks.0.w", "merger": "visual.merger.w", "text": "model.w", "head": "lm_head.weight"}
    folder.mkdir()
    save_file({names[p]: np.zeros(n, np.float16) for p, n in parts.items()}, folder / "model.safetensors")
    return folder


def test_weights_are_counted_without_a_step(tmp_path):
    base = base_of(tmp_path / "base", vision=3_000_000, merger=1_000_000, text=8_000_000, head=2_000_000)
    found = estimate.least(paper(base=base))
    assert found and found.stage == "distill"
    assert found.memory_mb == 2 * 14 * 4 + 14 * 12  # student and teacher; gradients and two states
    assert found.disk_mb == 4 * 14 * 4 + 3 * 14 * 12  # teacher, distill and two rounds; three checkpoints
    frozen = FitConfig(freeze=("vision", "merger", "head"))
    alone = override(paper(base=base), ["distill.kd_weight=0", "teacher=null"]).model_copy(
        update={"reflect": ReflectConfig(rounds=1, fit=frozen)}
    )
    assert alone.distill
    alone = alone.model_copy(update={"distill": alone.distill.model_copy(update={"fit": frozen})})
    assert (one := estimate.least(alone)) and one.memory_mb == 14 * 4 + 8 * 12
    light = estimate.least(laptop(base=base))
    assert light and light.memory_mb == 14 * 4  # additions count for nothing, the teacher is on the disk
    assert estimate.least(demo()) is None


def test_a_run_whose_weights_do_not_fit_is_refused_at_once(tmp_path, monkeypatch):
    config = paper(base=base_of(tmp_path / "base", text=2_000_000))
    least = estimate.least(config)
    assert least
    monkeypatch.setattr(estimate, "free_memory_mb", lambda: 30.0)
    config = config.model_copy(update={"device": "cpu"})
    with pytest.raises(BadInput, match=r"distill takes about 40 MB of memory and 30 MB are free: set distill.fit.lora"):
        least.demand_room(config, tmp_path)
    monkeypatch.setattr(estimate, "free_memory_mb", lambda: 50.0)
    monkeypatch.setattr(estimate, "free_disk_mb", lambda runs: 50.0)
    with pytest.raises(BadInput, match=r"about 104 MB of disk and 50 MB are free: make room, or give another --runs"):
        least.demand_room(config, tmp_path)


def test_ways_out_name_what_is_not_done_yet():
    assert estimate.ways_out(paper(base=Path("x")), "distill").split(", or ")[:2] == [
        "set distill.fit.lora={} (gradients and optimiser of additions alone)",
        "distill.teacher_as=states (no teacher beside the student)",
    ]
    turned = override(laptop(base=Path("x")), ["shard=true"])
    assert estimate.ways_out(turned, "distill") == "a smaller base, or a larger machine, is needed"
    assert estimate.ways_out(laptop(base=Path("x")), "answer") == "set answer.batch=1"
    whole = Forecast((Estimate("answer", "missing", 0, 1.0, 10.0, 1.0, 0.0),), 5.0, 100.0)
    with pytest.raises(BadInput, match="answer takes about 10 MB of memory and 5 MB are free: set answer.batch=1"):
        whole.demand_room(laptop(base=Path("x")))

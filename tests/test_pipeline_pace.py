"""The time that is left: by the same work that was timed before, or not told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clinkd.pipeline.graph import Stage, StageContext, execute, stage_record
from clinkd.pipeline.pace import estimate_left, remember_forecast, spell_left
from clinkd.storage import write_json


def plan(questions: int = 100, hidden: int = 8, beams: int = 3, seed: int = 0) -> list[Stage]:
    def prepare(work: StageContext) -> None:
        work.record("train", {"questions": questions - 10})
        work.record("test", {"questions": 10})

    def work(_: StageContext) -> None: ...

    data = Stage("prepare", 1, {"questions": questions}, (), prepare, seed)
    base = Stage("base", 1, {"hidden": hidden}, (data,), work, seed)
    first = Stage("reflect-1", 1, {"round": 1}, (data, base), work, seed)
    second = Stage("reflect-2", 1, {"round": 2}, (data, first), work, seed)
    return [data, base, first, second, Stage("answer", 1, {"beams": beams}, (data, second), work, seed)]


SECONDS = {"prepare": 5.0, "base": 60.0, "reflect-1": 20.0, "reflect-2": 40.0, "answer": 100.0}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A finished run whose stages took so long."""
    for name, folder in execute(plan(), tmp_path / "first").items():
        write_json(folder / "stage.json", {**stage_record(folder), "seconds": SECONDS[name]})
    return tmp_path / ".stages"


def begin(stages: list[Stage], cache: Path, number: int) -> None:
    execute(stages[:number], cache.parent / "second")


def test_what_the_same_work_took_is_scaled_by_the_questions(cache: Path) -> None:
    for questions, scale in ((100, 1.0), (150, 1.5), (50, 0.5)):
        stages = plan(questions, seed=7)
        assert estimate_left(stages, 0, cache) is None, "nobody knows the questions yet"
        begin(stages, cache, 1)
        newest_round = 40.0  # of both rounds, the last one timed
        assert estimate_left(stages, 1, cache) == scale * (60 + 2 * newest_round + 100)
        assert estimate_left(stages, 4, cache) == scale * 100


def test_a_first_run_knows_what_plan_measured(tmp_path: Path) -> None:
    stages, cache = plan(), tmp_path / ".stages"
    remember_forecast(cache, {stage.key: 10.0 for stage in stages})
    assert estimate_left(stages, 0, cache) == 50
    begin(stages, cache, 2)
    assert estimate_left(stages, 2, cache) == 30
    assert estimate_left(plan(beams=4), 2, cache) is None, "another work"


def test_a_round_is_known_from_the_one_before(tmp_path: Path) -> None:
    stages = plan()
    done = execute(stages[:3], tmp_path / "first")
    write_json(done["reflect-1"] / "stage.json", {**stage_record(done["reflect-1"]), "seconds": 30.0})
    assert estimate_left(stages[:4], 3, tmp_path / ".stages") == 30
    assert estimate_left(stages, 3, tmp_path / ".stages") is None, "nothing was ever answered"


def test_other_work_says_nothing(cache: Path) -> None:
    for stages in (plan(hidden=16, seed=1), plan(beams=5, seed=2), plan(questions=201), plan(questions=49)):
        begin(stages, cache, 1)
        assert estimate_left(stages, 1, cache) is None


def test_what_is_done_or_spent_is_not_left(cache: Path) -> None:
    stages = plan(beams=3, seed=9)
    begin(stages, cache, 4)
    draft = cache / f"{stages[4].key}.part"
    draft.mkdir()
    write_json(draft / "stage.json", {"seconds": 30.0})
    assert estimate_left(stages, 1, cache) == 70
    write_json(draft / "stage.json", {"seconds": 300.0})
    assert estimate_left(stages, 1, cache) == 0


def test_damaged_records_are_passed_over(cache: Path) -> None:
    for path in cache.glob("answer-*/stage.json"):
        path.write_text("{")
    stages = plan(seed=3)
    begin(stages, cache, 1)
    assert estimate_left(stages, 1, cache) is None


def test_a_time_is_told_no_finer_than_it_is_known() -> None:
    assert (spell_left(None), spell_left(9.9)) == ("", ", less than 10 s left")
    told = {10: "10 s", 44: "40 s", 94: "90 s", 95: "2 min", 130: "2 min", 3600: "60 min", 9000: "2 h"}
    assert {s: spell_left(s) for s in told} == {s: f", about {t} left" for s, t in told.items()}


def test_the_line_of_a_stage_says_it(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = plan(seed=5)
    execute(stages, cache.parent / "third", "", lambda number: spell_left(estimate_left(stages, number, cache)))
    lines = re.findall(r"stage .*start.*", capsys.readouterr().err)
    assert lines[0] == "stage 1 of 5, prepare: start"
    assert lines[1] == "stage 2 of 5, base: start, about 4 min left"
    assert lines[4] == "stage 5 of 5, answer: start, about 2 min left"

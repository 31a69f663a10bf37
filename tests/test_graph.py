"""The graph of stages: what is done is kept, what was broken off goes on, and what differs is named."""

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from clinkd import pipeline
from clinkd.config import DistillConfig, RunConfig, TeacherConfig
from clinkd.pipeline import graph, runs
from clinkd.pipeline.graph import Stage, execute, plan_stages
from clinkd.pipeline.runs import find_finished_run, find_run, score_table
from clinkd.records import BadInput
from clinkd.settings import change_knobs, override
from clinkd.storage import read_json, write_json


class Workshop:
    """Three stages whose works note that they were called."""

    def __init__(self):
        self.called = []
        self.fail = {}

    def _work(self, name):
        def work(given):
            self.called.append(name)
            notes = given.folder / "attempts.txt"
            notes.write_text((notes.read_text() if notes.exists() else "") + "x")
            if name in self.fail:
                raise self.fail[name]
            text = "+".join((folder / "out.txt").read_text() for folder in given.inputs.values())
            (given.folder / "out.txt").write_text(f"{name}({text})")
            given.record("inputs", sorted(given.inputs))

        return work

    def stages(self, teacher=None, distill=None, seed=0):
        data = Stage("data", 1, {"images": 3}, (), self._work("data"), seed)
        taught = Stage("teacher", 1, teacher or TeacherConfig(), (data,), self._work("teacher"), seed)
        student = Stage("distill", 1, distill or DistillConfig(), (data, taught), self._work("distill"), seed)
        return [data, taught, student]


@pytest.fixture
def shop():
    return Workshop()


def test_stages_are_done_once_and_hand_over_their_folders(shop, tmp_path):
    done = execute(shop.stages(), tmp_path / "runs" / "a")
    assert shop.called == ["data", "teacher", "distill"]
    assert (done["distill"] / "out.txt").read_text() == "distill(data()+teacher(data()))"
    assert execute(shop.stages(), tmp_path / "runs" / "a") == done
    assert execute(shop.stages(), tmp_path / "runs" / "b") == done
    assert shop.called == ["data", "teacher", "distill"]
    assert (tmp_path / "runs/b/stages/teacher/out.txt").read_text() == "teacher(data())"
    assert not [p for p in (tmp_path / "runs/.stages").iterdir() if p.suffix in (".part", ".lock")]


def test_a_changed_knob_runs_its_stage_and_what_needs_it_only(shop, tmp_path):
    execute(shop.stages(), tmp_path / "a")
    execute(shop.stages(distill=DistillConfig(kd_weight=0.25)), tmp_path / "b")
    assert shop.called[3:] == ["distill"]
    execute(shop.stages(teacher=TeacherConfig(share=0.5)), tmp_path / "c")
    assert shop.called[4:] == ["teacher", "distill"]
    execute(shop.stages(seed=1), tmp_path / "d")
    assert shop.called[6:] == ["data", "teacher", "distill"]


def test_identity_ignores_speed_and_sees_everything_else(shop):
    base = TeacherConfig()
    fast = change_knobs(base, fit=change_knobs(base.fit, checkpoint_seconds=1.0))
    stage = shop.stages()[1]
    same = [
        replace(stage, config=fast),
        replace(stage, work=print),
        replace(stage, config=base.identity(), knobs=TeacherConfig),
    ]
    assert {s.identity for s in same} == {stage.identity}
    others = [
        replace(stage, name="tutor"),
        replace(stage, version=2),
        replace(stage, seed=1),
        replace(stage, needs=()),
        replace(stage, config=TeacherConfig(share=0.2)),
    ]
    assert len({s.identity for s in [stage, *others]}) == len(others) + 1
    assert len(stage.identity) == 12 and int(stage.identity, 16) >= 0


def test_a_failed_stage_goes_on_in_its_draft_and_its_time_adds_up(shop, tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(graph.time, "monotonic", lambda: clock[0])
    stages = shop.stages()
    broken = stages[1].work

    def slow(given):
        clock[0] += 7
        broken(given)

    stages[1] = replace(stages[1], work=slow)
    stages[2] = replace(stages[2], needs=(stages[0], stages[1]))
    for error in (KeyboardInterrupt(), RuntimeError("torn")):
        shop.fail["teacher"] = error
        with pytest.raises(type(error)):
            execute(stages, tmp_path / "a")
    partial = graph.status(graph.describe_stages(stages), tmp_path / ".stages")
    assert [s.state for s in partial] == ["done", "partial", "missing"]
    assert [s.seconds for s in partial] == [0, 14, 0]
    shop.fail.clear()
    done = execute(stages, tmp_path / "a")
    record = graph.stage_record(done["teacher"])
    assert (done["teacher"] / "attempts.txt").read_text() == "xxx"
    assert record["seconds"] == 21 and record["attempts"] == 3 and record["recorded"] == {"inputs": ["data"]}
    assert record["finished"] and record["config"] == TeacherConfig().identity() and "torch" in record["versions"]


def test_what_a_stage_of_version_0_1_recorded_is_read_by_the_keys_of_today(tmp_path):
    fit = {"steps": 48, "rows": 48, "trained parameters": 58968}
    recorded = {
        "gain on validation over the first beam": {"VG": 0.0}, "tasks reordered": ["VG"], "fit-distill": fit,
        "stored teacher": {"bytes": 142201}, "pseudo-labels": {"used": 9, "empty, truth kept": 1},
        "shown to the CLIP": {"candidates": 4, "too long": 1, "token limit": 77}, "answers": {"units": 96},
        "truths overruled by a person": 3, "left out": {"a bad row": 2},
    }  # fmt: skip
    write_json(tmp_path / "stage.json", {"name": "select", "seconds": 1.5, "recorded": recorded})
    assert graph.stage_record(tmp_path) == {
        "name": "select",
        "seconds": 1.5,
        "recorded": {
            "validation_gain": {"VG": 0.0}, "reordered_tasks": ["VG"],
            "fit-distill": {"steps": 48, "rows": 48, "trained_parameters": 58968}, "stored_teacher": {"bytes": 142201},
            "pseudo_labels": {"used": 9, "empty": 1},
            "clip_inputs": {"candidates": 4, "too_long": 1, "token_limit": 77},
            "answers": {"units": 96}, "overruled_truths": 3, "left_out": {"a bad row": 2},
        },
    }  # fmt: skip


def test_the_records_of_stored_runs_of_version_0_1_have_the_keys_of_today(tmp_path):
    with tarfile.open(Path(__file__).parent / "data" / "runs-0.1.0.tar.xz") as tar:
        stored = [m for m in tar.getmembers() if m.name.endswith("/stage.json") and ".stages" in m.name]
        tar.extractall(tmp_path, stored, filter="data")
    recorded = {m.name.split("/")[2]: graph.stage_record((tmp_path / m.name).parent)["recorded"] for m in stored}
    keys = {
        key for of in recorded.values() for key in (*of, *(k for v in of.values() if isinstance(v, dict) for k in v))
    }
    assert len(recorded) >= 9 and not [key for key in keys if " " in key]
    (select,) = (of for name, of in recorded.items() if name.startswith("select-"))
    assert select == {"validation_gain": {"VG": 0.0, "ROC": 0.0}, "reordered_tasks": []}


def test_a_draft_of_version_0_1_goes_on_with_the_keys_of_today(shop, tmp_path):
    shop.fail["teacher"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        execute(shop.stages(), tmp_path / "a")
    (draft,) = tmp_path.glob(".stages/teacher-*.part/stage.json")
    write_json(draft, {**read_json(draft), "recorded": {"stored teacher": {"bytes": 1}}})
    shop.fail.clear()
    record = read_json(execute(shop.stages(), tmp_path / "a")["teacher"] / "stage.json")
    assert record["recorded"]["stored_teacher"] == {"bytes": 1} and "stored teacher" not in record["recorded"]


def test_a_stage_killed_between_its_end_and_its_renaming_is_not_done_again(shop, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(graph, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            execute(shop.stages(), tmp_path / "a")
    assert not list((tmp_path / ".stages").glob(f"data-{'?' * 12}"))
    execute(shop.stages(), tmp_path / "a")
    assert shop.called == ["data", "teacher", "distill"]


def test_what_a_kill_leaves_beside_a_stage_is_removed_by_the_next_run(shop, tmp_path):
    [stage, *_] = shop.stages()
    cache, run = tmp_path / ".stages", tmp_path / "a"
    draft = cache / f"{stage.key}.part"
    (draft / "model").mkdir(parents=True)
    for name in (".stage.json.77.clinkd.tmp", ".out.txt.77.tmp", "model/.tmpSYuYmt"):  # the last is of safetensors
        (draft / name).write_text("half")
    (run / "stages").mkdir(parents=True)
    (run / "stages" / ".data.tmp").symlink_to("somewhere")
    for _ in range(2):
        execute([stage], run)
        left = {p.name for p in tmp_path.rglob("*") if p.is_symlink() or p.is_file()}
        assert left == {"attempts.txt", "out.txt", "stage.json", "manifest.json", "data"}
        assert (run / "stages" / "data").is_dir() and not (cache / f"{stage.key}.lock").exists()
        (cache / f"{stage.key}.lock").write_text("77")  # killed before it removed that


def test_without_locks_a_run_goes_on_and_says_what_not_to_do(shop, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".stages").mkdir()
    (tmp_path / ".stages" / f"{shop.stages()[0].key}.lock").touch()
    assert not graph.is_at_work(tmp_path / ".stages" / shop.stages()[0].key)
    execute(shop.stages()[:1], tmp_path / "a")
    [line] = [line for line in capsys.readouterr().err.splitlines() if "locks" in line]
    assert f"{tmp_path / '.stages'}: its file system has no locks" in line and "start no second run" in line


def test_a_full_disk_is_one_line_and_leaves_a_draft(shop, tmp_path):
    shop.fail["teacher"] = OSError(28, "No space left on device")
    with pytest.raises(BadInput, match=r"teacher-\w+\.part: no room left"):
        execute(shop.stages(), tmp_path / "a")
    shop.fail.clear()
    execute(shop.stages(), tmp_path / "a")


def test_a_folder_that_is_not_what_its_name_says_is_refused(shop, tmp_path):
    done = execute(shop.stages(), tmp_path / "a")
    record = read_json(done["data"] / "stage.json")
    write_json(done["data"] / "stage.json", {**record, "identity": "0" * 12, "files": {}})
    (done["data"] / "manifest.json").unlink()
    with pytest.raises(BadInput, match="remove it to make it anew"):
        execute(shop.stages(), tmp_path / "a")
    (done["data"] / "stage.json").write_text("{")
    with pytest.raises(BadInput, match="stage.json: missing or broken, so stage data is damaged; remove"):
        execute(shop.stages(), tmp_path / "a")


def test_record_refuses_what_is_not_json(tmp_path):
    stage = Stage("x", 1, {}, (), lambda work: work.record("loss", float("nan")))
    with pytest.raises(ValueError, match="not JSON"):
        execute([stage], tmp_path / "a")


def test_why_names_the_knob_through_the_needs(shop, tmp_path):
    execute(shop.stages(), tmp_path / "a")
    cache = tmp_path / ".stages"
    assert graph.explain_rerun("teacher", graph.describe_stages(shop.stages()), cache) == [
        f"teacher: no other teacher is in {cache}"
    ]
    changed = graph.describe_stages(shop.stages(teacher=TeacherConfig(share=0.5)))
    for name in ("teacher", "distill"):
        (line,) = graph.explain_rerun(name, changed, cache)
        assert line.startswith("teacher: share is 0.5 here and 0.111 there (teacher-")
    (line,) = graph.explain_rerun(
        "distill", graph.describe_stages(shop.stages(distill=DistillConfig(kd_weight=0.25))), cache
    )
    assert line.startswith("distill: kd_weight is 0.25 here and 0.5 there")
    stages = shop.stages(seed=4)
    assert any(
        "the seed is 4 here and 0 there" in line
        for line in graph.explain_rerun("data", graph.describe_stages(stages), cache)
    )
    bare = replace(shop.stages()[2], needs=())
    (first, second) = graph.explain_rerun("distill", graph.describe_stages([bare]), cache)
    assert "needs data only there" in first and "needs teacher only there" in second
    with pytest.raises(BadInput, match="its stages are data, teacher, distill"):
        graph.explain_rerun("techer", changed, cache)


def test_why_takes_the_nearest_of_several(shop, tmp_path):
    execute(shop.stages(), tmp_path / "a")
    execute(shop.stages(distill=DistillConfig(kd_weight=0.9, temperature=1)), tmp_path / "b")
    asked = graph.describe_stages(shop.stages(distill=DistillConfig(kd_weight=0.9, temperature=3)))
    (line,) = graph.explain_rerun("distill", asked, tmp_path / ".stages")
    assert "temperature is 3.0 here and 1.0 there" in line


def test_outlook_says_what_would_run(shop, tmp_path):
    execute(shop.stages(), tmp_path / "a")
    looks = plan_stages(shop.stages(distill=DistillConfig(kd_weight=0.25)), tmp_path)
    assert [look.status.state for look in looks] == ["done", "done", "missing"]
    assert not looks[0].causes and "kd_weight" in looks[2].causes[0]


SCRIPT = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from clinkd.pipeline.graph import Stage, execute
    from clinkd.storage import JsonLines
    folder, pause = Path(sys.argv[1]), float(sys.argv[2])

    def count(work):
        with JsonLines(work.folder / "steps.jsonl") as lines:
            for step in range(len(lines.ids()), 40):
                time.sleep(pause)
                lines.append({"id": str(step)})

    first = Stage("first", 1, {"n": 40}, (), count)
    execute([first, Stage("second", 1, {}, (first,), count)], folder / "run")
    """
)


def start(folder, pause, **more):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(pause)], stderr=subprocess.PIPE, **more)


def check_finished(folder):
    for name in ("first", "second"):
        lines = (folder / "run" / "stages" / name / "steps.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [str(i) for i in range(40)]


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_killed_anywhere_the_same_command_goes_on(tmp_path, kind):
    draw, kills = random.Random(0), 0
    while kills < 4:
        worker = start(tmp_path, 0.005)
        time.sleep(draw.uniform(0.15, 0.45))
        worker.send_signal(kind)
        worker.communicate()
        kills += 1
        if worker.returncode == 0:
            break
    worker = start(tmp_path, 0)
    _, said = worker.communicate()
    assert worker.returncode == 0, said
    check_finished(tmp_path)


def test_what_another_process_makes_just_now_is_not_taken_for_an_older_version(shop, tmp_path):
    done = execute(shop.stages(), tmp_path / "runs" / "a")
    cache, stages = tmp_path / "runs" / ".stages", shop.stages()
    assert graph.older_folder(stages[0], {}, cache) is None
    done["data"].rename(graph.draft_of(done["data"]))
    assert graph.older_folder(stages[0], {}, cache) is None
    graph.draft_of(done["data"]).rename(cache / "data-000000000000")
    assert graph.older_folder(stages[0], {}, cache) == cache / "data-000000000000"


def test_two_processes_share_the_work(tmp_path):
    first, second = start(tmp_path, 0.02), None
    while not list(tmp_path.glob(".stages/first-*.part")):
        time.sleep(0.01)
    second = start(tmp_path, 0.02)
    said = [worker.communicate()[1].decode() for worker in (first, second)]
    assert first.returncode == second.returncode == 0, said
    check_finished(tmp_path)
    assert f"process {first.pid} is at it; waiting" in said[1]
    assert "waiting" not in said[0].partition("stage 2")[0]  # of the second stage either may be the first


def test_a_waiting_process_takes_over_from_a_killed_one(tmp_path):
    first = start(tmp_path, 0.2)
    while not list(tmp_path.glob(".stages/first-*.part/steps.jsonl")):
        time.sleep(0.01)
    second = start(tmp_path, 0)
    time.sleep(0.4)
    first.kill()
    first.communicate()
    _, said = second.communicate()
    assert second.returncode == 0, said
    check_finished(tmp_path)
    (record,) = (graph.stage_record(p) for p in tmp_path.glob(".stages/first-*"))
    assert record["attempts"] == 2


def test_the_clock_of_a_killed_stage_is_nearly_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "HEARTBEAT_SECONDS", 0.05)
    stop, seen = threading.Event(), []

    def work(given):
        time.sleep(0.3)
        seen.append(read_json(given.folder / "stage.json")["seconds"])  # what a kill -9 at this moment would leave
        stop.set()

    execute([Stage("x", 1, {}, (), work)], tmp_path / "a")
    assert stop.is_set() and seen[0] > 0.15


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_plan(shop, monkeypatch):
    """A plan of the shop's stages, the last of which leaves a table and a report."""

    def plan(config):
        stages = shop.stages(config.teacher, config.distill, config.seed)
        work = stages[2].work

        def report(given):
            work(given)
            write_json(given.folder / "table.json", SCORES)
            (given.folder / "report.html").write_text("<p>")

        return [*stages[:2], replace(stages[2], work=report)]

    monkeypatch.setattr(pipeline, "plan", plan)
    return plan


SCORES = {
    "mode": "strict",
    "VG": {"score": 61.24, "blind": 12.0, "by_modality": {"mr": {"score": 70.0, "blind": 1.0}, "ct": {"score": None}}},
    "RC": {"score": None, "why": "no SPICE", "facts": {"score": 81.0, "blind": 40.0}},
    "average": None,
}


def test_a_run_ends_with_its_table_and_report(shop, tiny_plan, tmp_path):
    done = pipeline.run(override(RunConfig(), ["name=one"]), tmp_path)
    assert done.folder == tmp_path / "one" and (tmp_path / "one" / "report.html").read_text() == "<p>"
    assert read_json(tmp_path / "one" / "table.json") == SCORES
    scores = done.scores()
    assert set(scores["wall_seconds"]) == {"data", "teacher", "distill"} and scores["VG"] == SCORES["VG"]
    assert runs.open_run(tmp_path / "one").config == done.config
    (tmp_path / "one" / "stages" / "distill" / "report.html").unlink()
    with pytest.raises(BadInput, match="missing; remove"):
        done.report()


def test_a_run_folder_of_another_config_is_refused_and_can_be_replaced(shop, tiny_plan, tmp_path):
    pipeline.run(RunConfig(), tmp_path)
    pipeline.run(override(RunConfig(), ["threads=1", "data.workers=1"]), tmp_path)  # speed only
    other = override(RunConfig(), ["distill.kd_weight=0.25", "seed=3"])
    with pytest.raises(BadInput, match=r"seed is 3 here and 0 there\); --name NEW"):
        pipeline.run(other, tmp_path)
    assert runs.open_run(tmp_path / "demo").config.seed == 0
    assert pipeline.run(other, tmp_path, replace=True).config == other
    pipeline.run(override(other, ["name=beside"]), tmp_path)
    assert len(shop.called) == 6


def test_a_folder_that_is_no_run_is_left_alone(tiny_plan, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="no run of ours"):
        pipeline.run(RunConfig(), tmp_path)
    assert [p.name for p in (tmp_path / "demo").iterdir()] == ["thesis.txt"]


def test_find_by_name_by_path_and_the_newest(tiny_plan, tmp_path):
    with pytest.raises(BadInput, match="no runs yet"):
        find_run(None, tmp_path / "none")
    for name in ("b", "a"):
        pipeline.run(override(RunConfig(), [f"name={name}"]), tmp_path)
    assert find_run(None, tmp_path).folder.name == "a"
    now = time.time_ns()
    os.utime(tmp_path / "b" / "run.json", ns=(now + 10**9, now + 10**9))
    assert find_run(None, tmp_path).folder.name == "b"
    assert find_run("a", tmp_path).folder == find_run(str(tmp_path / "a"), Path("elsewhere")).folder
    with pytest.raises(BadInput, match="ab: no run of that name or path; runs under .*: b, a"):
        find_run("ab", tmp_path)


def test_without_a_name_a_finished_run_goes_before_a_newer_one_at_work(shop, tiny_plan, tmp_path):
    pipeline.run(override(RunConfig(), ["name=whole"]), tmp_path)
    shop.fail["distill"] = RuntimeError("power cut")
    with pytest.raises(RuntimeError):
        pipeline.run(override(RunConfig(), ["name=half", "seed=1"]), tmp_path)
    assert find_run(None, tmp_path).folder.name == "half"
    assert find_finished_run(None, tmp_path).folder.name == "whole"
    assert find_finished_run("half", tmp_path).folder.name == "half"
    shutil.rmtree(tmp_path / "whole")
    assert find_finished_run(None, tmp_path).folder.name == "half"  # none is finished: the newest


def test_an_unfinished_run_says_how_to_go_on(shop, tiny_plan, tmp_path):
    shop.fail["distill"] = RuntimeError("power cut")
    with pytest.raises(RuntimeError):
        pipeline.run(RunConfig(), tmp_path)
    found = find_run("demo", tmp_path)
    assert [s.state for s in found.status()] == ["done", "done", "partial"]
    with pytest.raises(BadInput, match=r"distill is not done; `clinkd run .*config\.yaml --runs"):
        found.scores()
    with pytest.raises(BadInput, match="no stage answer"):
        found.stage("answer")
    assert found.why("teacher")


def test_the_printed_table_shows_gaps_and_reasons():
    shown = score_table(SCORES, "demo")
    assert shown.columns == ("task", "score", "blind", "ct", "mr")
    assert shown.rows[0] == ("VG", "61.2", "12.0", "-/-", "70.0/1.0")
    assert shown.rows[1:] == (
        ("RC", "-", "-", "-", "-"),
        ("RC facts", "81.0", "40.0", "-", "-"),
        ("average", "-", "", "", ""),
    )
    assert any("RC: not computed: no SPICE" in note for note in shown.notes)


def test_finding_and_reading_a_run_needs_no_torch(tiny_plan, tmp_path):
    pipeline.run(RunConfig(), tmp_path)
    code = (
        "import sys; from pathlib import Path; from clinkd.pipeline.runs import find_run\n"
        "r = find_run(None, Path(sys.argv[1])); r.status(); r.scores(); r.why('teacher')\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)

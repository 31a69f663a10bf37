"""What older versions left behind opens and goes on: runs, checkpoints, knobs by old names, journals.

`data/runs-0.1.0.tar.xz` holds two runs of version 0.1.0, one finished and one killed in the middle of `distill`.
Weights that nothing here reads were taken out.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tests.defaults import GOLDEN, current, unraised

from clinkd import pipeline
from clinkd.cli import main
from clinkd.config import DataConfig, FitConfig, ModelConfig, RunConfig, TeacherConfig
from clinkd.experiments import demo, small
from clinkd.pipeline import graph, runs, stages
from clinkd.pipeline.stages import plan
from clinkd.records import BadInput
from clinkd.remote.journal import Journal
from clinkd.scoring import jars
from clinkd.settings import Knobs, complete, knob, load, override, without_defaults
from clinkd.storage import read_json

DATA = Path(__file__).parent / "data"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two runs of version 0.1.0, on a machine with the same jars of SPICE."""
    with tarfile.open(DATA / "runs-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    scored = read_json(next(tmp_path.glob("finished/.stages/score-*/stage.json")))
    monkeypatch.setattr(jars, "jars_identity", lambda: scored["config"]["SPICE jars"])
    return tmp_path


def clinkd(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_finished_run_opens(old, capsys):
    at = ("--runs", old / "finished")
    stored = read_json(old / "finished/small/table.json")
    status, out, _ = clinkd(capsys, "status", *at)
    assert status == 0 and "9of9" in "".join(out.split())
    status, out, _ = clinkd(capsys, "table", "small", *at, "--json")
    assert status == 0 and json.loads(out)["VG"]["score"] == stored["VG"]["score"]
    status, _, _ = clinkd(capsys, "report", "small", *at)
    assert status == 0 and "small" in (old / "finished/small/report.html").read_text()


def test_a_model_of_a_finished_run_answers(old, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the picture with the answer is written
    image = next(old.glob("finished/.stages/prepare-*/images/ct_test_*.png"))
    shutil.copy(image, tmp_path / "scan.png")
    words = ("ask", "--runs", old / "finished", tmp_path / "scan.png", "Where is the liver located in the image?")
    status, out, err = clinkd(capsys, *words)
    assert status == 0 and out.strip(), err
    assert any(Image.open(p).size for p in tmp_path.glob("*.png"))


def test_of_a_finished_run_only_the_scores_of_an_older_version_are_made_again(old, capsys):
    made = {p: p.stat().st_mtime_ns for p in (old / "finished/.stages").rglob("*") if p.is_file()}
    status, _, err = clinkd(capsys, "run", old / "finished/small/config.yaml", "--runs", old / "finished")
    assert status == 0 and err.count("done before") == 8 and "score: done in" in err
    assert {p: p.stat().st_mtime_ns for p in made} == made
    status, out, _ = clinkd(capsys, "status", "--runs", old / "finished")
    assert status == 0 and "9of9" in "".join(out.split())
    # identities that are new stand for the folders of old
    run = runs.open_run(old / "finished/small")
    assert {"base", "teacher", "distill"} <= {stage.name for stage in run.status() if stage.folder.is_symlink()}
    assert "no other teacher" in run.why("teacher")[0]


def test_a_plan_of_an_older_run_has_nothing_to_do_but_its_scores(old):
    config = runs.load_config(old / "finished/small/config.yaml")
    looks = {look.status.name: look.status.state for look in graph.plan_stages(plan(config), old / "finished")}
    assert looks.pop("score") == "missing" and [*looks.values()] == ["done"] * 8  # the version of `score` was raised
    changed = override(config, ["teacher.share=0.5"])
    looks = {look.status.name: look for look in graph.plan_stages(plan(changed), old / "finished")}
    assert looks["base"].status.state == "done"
    [why] = looks["teacher"].causes
    assert why.startswith("teacher: share is 0.5 here and 0.111 there")


def test_a_killed_run_goes_on_from_its_checkpoint(old, capsys):
    status, _, err = clinkd(capsys, "run", old / "stopped/small/config.yaml", "--runs", old / "stopped")
    assert status == 0, err
    assert "distill: going on where it stopped" in err and err.count("done before") == 3
    run = runs.open_run(old / "stopped/small")
    log = [json.loads(line) for line in (run.stage("distill") / "fit-distill/log.jsonl").read_text().splitlines()]
    steps = [entry["step"] for entry in log]
    assert steps == sorted({*steps}) and steps[-1] > 15  # none twice
    record = read_json(run.stage("distill") / "stage.json")
    assert record["attempts"] == 2 and record["started"] < record["finished"]
    assert run.scores()["VG"]["score"] is not None


def test_a_run_of_another_config_is_still_refused(old):
    config = override(runs.load_config(old / "finished/small/config.yaml"), ["model.positions=mrope"])
    with pytest.raises(BadInput, match=r"another config \(model\.positions\.kind is mrope here and affine there"):
        pipeline.run(config, old / "finished")


def test_a_knob_that_is_no_more_is_told_and_not_fatal(old, capsys):
    path = old / "finished/small/config.yaml"
    path.write_text(path.read_text().replace("teacher:\n", "teacher:\n  patience: 3\n", 1))
    config = runs.load_config(path)
    assert "teacher.patience: no knob of this version; left out" in capsys.readouterr().err
    assert config.teacher.share == 0.111
    recipe = old / "recipe.yaml"
    recipe.write_text("teacher: {patience: 3}")
    with pytest.raises(BadInput, match=r"teacher\.patience: no such knob"):
        load(recipe, RunConfig)


def test_knobs_of_another_version_keep_no_finished_run_closed(old, capsys, tmp_path):
    path, record = old / "finished/small/config.yaml", old / "finished/small/run.json"
    text = path.read_text().replace("teacher:\n", "teacher:\n  patience: 3\n", 1)
    path.write_text(text.replace("model:\n", "model:\n  novel: {a: 1}\n", 1) + "\nsede: 1\nnew:\n  x: {y: 2}\n7: 1\n")
    stored = read_json(record)
    stored["config"] |= {"sede": 1, "new": {"x": 1}}
    record.write_text(json.dumps(stored))
    at = ("--runs", old / "finished")
    for words in (("status",), ("table",), ("report",), ("why", "teacher"), ("runs", "list")):
        status, out, err = clinkd(capsys, *words, *at)
        assert status == 0 and out, err
        assert err.count("model.novel, teacher.patience, sede, new, 7: no knob of this version; left out") == 1
    status, out, _ = clinkd(capsys, "recipe", record)
    assert status == 0 and "sede" not in out
    for verb in ("run", "plan"):
        status, _, err = clinkd(capsys, verb, path, *at)
        assert status == 2 and "model.novel: no such knob" in err
    path.write_text(path.read_text().replace("  novel: {a: 1}\n", "").replace("  patience: 3\n", ""))
    status, _, err = clinkd(capsys, "run", path, *at)
    assert status == 2 and "sede: no such knob; did you mean seed?" in err


def test_an_old_name_in_a_recipe_is_answered_with_the_new_one(tmp_path):
    for group, name in [(g, n) for g in (ModelConfig, RunConfig, FitConfig, TeacherConfig) for n in g.renamed]:
        assert name not in group.model_fields, name
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"model": {"alpha": 2}}))
    with pytest.raises(BadInput, match=r"model\.alpha: now called model\.positions\.stride$"):
        load(recipe, RunConfig)
    with pytest.raises(BadInput, match=r"model\.sight: now called model\.vision_features$"):
        override(RunConfig(), ["model.sight=stored"])


def test_positions_of_version_0_1_0_are_read():
    old = {"positions": "tied", "alpha": 1.5, "spatial_reset": False}
    assert complete(old, ModelConfig)["positions"] == {
        "kind": "affine", "stride": 1.5, "gap": "equal", "resume": "tokens",
    }  # fmt: skip
    assert complete({"sight": "stored"}, ModelConfig)["vision_features"] == "cached"
    # alpha counted under `tied` alone, the reset under `mrope` alone
    assert complete({**old, "positions": "gap"}, ModelConfig)["positions"]["stride"] == 1
    assert complete({"positions": "mrope", "alpha": 2.0, "spatial_reset": True}, ModelConfig)["positions"] == {
        "kind": "mrope", "spatial_reset": True,
    }  # fmt: skip


def test_a_journal_of_version_0_1_0_opens(tmp_path):
    shutil.copy(DATA / "journal-0.1.0.sqlite", tmp_path / "chat.sqlite")
    with Journal(tmp_path / "chat.sqlite") as journal:
        assert journal.reply("a") == '{"rewrite": "The left kidney is shown."}'
        assert [journal.state(key) for key in "abcd"] == ["done", "failed", "unknown", "new"]
        assert (journal.ledger().spent, journal.ledger().reserved) == (7_500_000, 0)
    assert sqlite3.connect(tmp_path / "chat.sqlite").execute("select count(*) from calls").fetchone() == (4,)


# -- identity ---------------------------------------------------------------------------------------------------------


def with_inert_knob(group: type[Knobs]) -> type[Knobs]:
    """The group with one more knob, at a default that does nothing."""
    return type(group.__name__, (group,), {"__annotations__": {"inert": int}, "inert": knob(0, "does nothing")})


@pytest.mark.parametrize("config", [demo(), small()], ids=lambda c: c.name)
def test_an_inert_new_knob_changes_no_identity(config, monkeypatch):
    before = {stage.name: stage.identity for stage in plan(config)}
    changed = 0
    for stage in plan(config):
        group = stage.knobs or Knobs
        tree = {**graph.describe_stages([stage])[0]["config"], "inert": 0}
        larger = graph.Stage(
            stage.name, stage.version, tree, stage.needs, stage.work, stage.seed, knobs=with_inert_knob(group)
        )
        assert larger.identity == before[stage.name]
        tree["inert"] = 1
        del larger.__dict__["identity"]
        changed += larger.identity != before[stage.name]
    assert changed == len(before)


def test_groups_that_differ_never_read_the_same():
    """A group whose default is not that of its class is told from one that has its class's default."""
    fits = [FitConfig(epochs=e) for e in (1, 2, 3)]
    trees = [without_defaults(RunConfig(reflect={"fit": fit}).identity(), RunConfig) for fit in fits]
    assert len({json.dumps(t, sort_keys=True) for t in trees}) == 3 and {} in trees
    left_out = without_defaults(RunConfig(reflect=None).identity(), RunConfig)
    assert left_out == {"reflect": None}


def test_what_does_not_count_reads_as_its_default():
    read = complete({"sight": None, "tiny": None}, ModelConfig)  # as 0.1.0 wrote what did not count
    assert without_defaults(read, ModelConfig) == {}
    assert without_defaults(complete({"phantoms": {"train_images": 5}}, DataConfig), DataConfig) == {
        "phantoms": {"train_images": 5}
    }


def test_a_changed_default_raises_the_version_of_its_stages():
    golden = json.loads(GOLDEN.read_text())
    assert not unraised(golden, current())
    assert golden == current(), "write the new knobs or versions down: python -m tests.defaults"


def test_the_check_of_defaults_can_fail():
    golden = json.loads(GOLDEN.read_text())
    golden["teacher"]["defaults"]["fit"]["epochs"] = 7.0
    assert unraised(golden, current()) == [
        "fit.epochs has a new default: raise VERSIONS['teacher'] in pipeline/stages.py"
    ]
    golden["teacher"]["version"] -= 1
    assert not unraised(golden, current())
    assert {*stages.VERSIONS} == {*golden}

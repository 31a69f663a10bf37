"""Damaged and moved runs: every verb names what is damaged and how to make it again, and the way out works."""

import re
import shutil
from pathlib import Path

import pytest

from clinkd.cli import main
from clinkd.pipeline.runs import find_run, open_run
from clinkd.storage import read_json, write_json

VERSIONS = ("checksums", "sizes", "no sizes")  # that a stage records of its files, the newest first


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_run.parent, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs" / "small"


def refuse(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line with which a command refuses."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("stage ")]
    assert line.startswith("clinkd: ") and "fault of the program" not in line
    return line


def forget(folder: Path, version: str) -> None:
    """Make the records of a stage as an older version wrote them: without checksums, and first of all without sizes."""
    if version == "checksums":
        return
    record = read_json(folder / "stage.json")
    listed = read_json(folder / "manifest.json")["files"]
    (folder / "manifest.json").unlink()
    sizes = {name: entry["bytes"] for name, entry in listed.items() if name != "stage.json"}
    kept = {key: value for key, value in record.items() if key != "files"}
    write_json(folder / "stage.json", {**kept, **({"files": sizes} if version == "sizes" else {})})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def commands(run: Path) -> dict[str, list[object]]:
    where = ["--runs", run.parent]
    image = next((run / "stages/prepare/images").rglob("*.png"))
    test = run / "stages/prepare/test.jsonl"
    return {
        "status": ["status", "small", *where],
        "ask": ["ask", *where, "--run", "small", image, "Where is it?", "--out", run.parent / "answer.png"],
        "serve": ["serve", "small", *where, "--port", "0"],
        "export": ["export", *where, "--run", "small", run.parent / "out"],
        "table": ["table", "small", *where],
        "report": ["report", "small", *where],
        "run": ["run", run / "config.yaml", *where],
        "compare": ["compare", "small", run, *where],
        "evaluate": ["evaluate", "--data", test, "--run", "small", *where, "--out", run.parent / "evaluated"],
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_cut_weights_are_named_and_the_way_out_makes_them_again(run, capsys, version):
    stage = (run / "stages/reflect-2").resolve()
    forget(stage, version)
    if version != "checksums":
        assert all(s.state == "done" for s in open_run(run).status())
    cut(stage / "model/model.safetensors")
    assert [s.name for s in open_run(run).status() if s.state == "damaged"] == ["reflect-2"]
    for verb in ("status", "ask", "serve", "export", "run", "evaluate"):
        line = refuse(capsys, *commands(run)[verb])
        assert "model/model.safetensors" in line and "stage reflect-2 is damaged" in line, verb
        assert f"remove {stage}, then" in line and "makes the stage again" in line, verb
    for verb in ("table", "report"):  # they need no weights
        assert main([str(word) for word in commands(run)[verb]]) == 0
    assert not (run.parent / "out").exists()


def test_a_page_is_not_written_without_the_corrections_that_it_shows(run, capsys):
    (run / "stages/reflect-1/corrections.jsonl").unlink()
    assert "reflect-1 is damaged" in refuse(capsys, *commands(run)["report"])


def test_a_removed_stage_is_made_again_by_the_printed_command(run, capsys):
    answer = (run / "stages/score").resolve()
    (answer / "table.json").unlink()
    line = refuse(capsys, *commands(run)["table"])
    folder, command = re.search(r"remove (\S+), then `clinkd (.*)` makes", line).groups()
    shutil.rmtree(folder)
    assert main(command.split()) == 0 and main([str(word) for word in commands(run)["table"]]) == 0


@pytest.mark.parametrize(
    ("stage", "lost"),
    [("reflect-2", "model"), ("base", "model"), ("prepare", "test.jsonl"), ("select", "predictions.jsonl"),
     ("clip", "model"), ("score", "stage.json")],
)  # fmt: skip
@pytest.mark.parametrize("version", ["checksums", "no sizes"])
def test_missing_files_are_noticed_in_stages_of_any_version(run, capsys, stage, lost, version):
    folder = (run / "stages" / stage).resolve()
    forget(folder, version)
    shutil.rmtree(folder / lost) if (folder / lost).is_dir() else (folder / lost).unlink()
    line = refuse(capsys, *commands(run)["status"])
    assert str(folder / lost).partition(".stages")[2] in line and f"stage {stage} is damaged" in line
    assert "model.base" not in line


def test_the_log_for_tensorboard_and_a_page_written_again_are_no_damage(run):
    shutil.rmtree(next((run / "stages/base").resolve().rglob("tensorboard")))
    (run / "report.html").write_text("shorter")
    assert all(s.state == "done" for s in open_run(run).status())


def test_a_run_without_its_config_gets_its_own_back(run, capsys, monkeypatch):
    before = (run / "config.yaml").read_bytes()
    for content in (None, b"seed: [", b"seed: yes and no"):
        (run / "config.yaml").unlink()
        if content is not None:
            (run / "config.yaml").write_bytes(content)
        for verb in ("table", "run", "compare"):
            line = refuse(capsys, *commands(run)[verb])
            assert f"{run / 'config.yaml'}: " in line and "recipe demo" not in line
        command, target = re.search(r"`clinkd (.*) > (.*)` writes it again", line).groups()
        capsys.readouterr()
        assert main(command.split()) == 0
        Path(target).write_text(capsys.readouterr().out)
        assert (run / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("content", [None, b'{"name": "sma', b"[]"])
def test_a_run_without_its_record_gets_it_back_and_keeps_its_stages(run, capsys, content):
    before = read_json(run / "run.json")
    (run / "run.json").unlink()
    if content is not None:
        (run / "run.json").write_bytes(content)
    for verb in ("table", "status", "compare", "serve"):
        line = refuse(capsys, *commands(run)[verb])
        assert f"{run / 'run.json'}: missing or broken" in line
    command = re.search(r"`clinkd (.*)` writes it again", line)[1]
    assert main(command.split()) == 0 and " start" not in capsys.readouterr().err
    assert read_json(run / "run.json") == before


def test_a_run_without_record_and_config_says_how_to_begin_again(run, capsys):
    (run / "run.json").unlink()
    (run / "config.yaml").unlink()
    assert f"rename {run}" in refuse(capsys, *commands(run)["table"])


def test_a_run_moved_without_its_stages_names_the_folder_to_bring(run, capsys, tmp_path):
    (tmp_path / "other").mkdir()
    moved = shutil.move(run, tmp_path / "other")
    where = ["small", "--runs", tmp_path / "other"]
    for verb in ("status", "table", "report", "serve"):
        line = refuse(capsys, verb, *where)
        assert f"put the folder .stages of where the run was made into {tmp_path / 'other'}" in line, verb
    shutil.copytree(tmp_path / "runs/.stages", tmp_path / "other/.stages", symlinks=True)
    assert main(["table", *map(str, where)]) == 0 and find_run(str(moved)).scores()


def test_a_pretrained_base_that_is_gone_is_to_be_brought_back(run, capsys, tmp_path):
    stage = (run / "stages/base").resolve()
    shutil.copytree(stage / "model", tmp_path / "pretrained")
    write_json(stage / "base.json", {"folder": str(tmp_path / "pretrained"), "model": {}})
    forget(stage, "no sizes")
    assert all(s.state == "done" for s in open_run(run).status())
    cut(tmp_path / "pretrained/model.safetensors")
    assert f"bring a whole copy back to {tmp_path / 'pretrained'}" in refuse(capsys, *commands(run)["status"])
    shutil.rmtree(tmp_path / "pretrained")
    assert "the pretrained model is no longer there" in refuse(capsys, *commands(run)["status"])


def test_a_model_alone_with_cut_weights_is_named(run, capsys, tmp_path):
    model = shutil.copytree(run / "stages/reflect-2/model", tmp_path / "alone")
    cut(model / "model.safetensors")
    test = run / "stages/prepare/test.jsonl"
    line = refuse(capsys, "evaluate", "--data", test, "--model", model, "--out", tmp_path / "scored")
    assert f"{model}/model.safetensors: its weights are cut or broken" in line

"""Damage that keeps sizes, and records that are JSON of another shape: told in a line, and what the line says heals."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.three_stages import plan_three_stages

from clinkd import pipeline, storage
from clinkd.cli import main
from clinkd.config import RunConfig
from clinkd.pipeline import damage, graph
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.prepared import read_predictions, read_split
from clinkd.pipeline.runs import open_run
from clinkd.records import BadInput
from clinkd.storage import Manifest, digest_file, read_json, write_json, write_lines
from clinkd.workflows.packing import open_pack, pack_run

LINES = [{"id": str(number), "text": "12.5"} for number in range(3)]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for runs of three stages that take no time."""

    def prepare(work: StageContext) -> None:
        (work.folder / "images").mkdir(exist_ok=True)
        (work.folder / "images" / "1.png").write_bytes(b"png" * 500)
        write_lines(work.folder / "train.jsonl", LINES)

    def teach(work: StageContext) -> None:
        (work.folder / "model").mkdir(exist_ok=True)
        (work.folder / "model" / "config.json").write_text("{}")
        (work.folder / "model" / "weights").write_bytes(random.Random(work.seed).randbytes(3000))

    def score(work: StageContext) -> None:
        write_json(work.folder / "table.json", {"VG": {"score": 61.2, "blind": 12.0}, "average": None})
        (work.folder / "report.html").write_text("<p>")

    plan_three_stages(monkeypatch, prepare, teach, score)
    return tmp_path / "runs"


def make(runs: Path, name: str = "a", seed: int = 0) -> Path:
    pipeline.run(RunConfig(name=name, seed=seed), runs)
    return runs / name


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, list[str]]:
    """Status, output, and the lines on stderr that the program calls its own."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert "fault of the program" not in err and "Traceback" not in err, err
    return status, out, [line for line in err.splitlines() if line.startswith("clinkd: ") and "newest" not in line]


def read_tree(runs: Path) -> dict[str, object]:
    """All files with their bytes, and links; of records what does not change with the time."""
    tree: dict[str, object] = {}
    for path in sorted(p for p in runs.rglob("*") if not p.is_dir() or p.is_symlink()):
        name = str(path.relative_to(runs))
        if path.is_symlink():
            tree[name] = os.readlink(path)
        elif path.name == "stage.json":
            tree[name] = {k: v for k, v in read_json(path).items() if k not in ("seconds", "started", "finished")}
        elif path.name != "manifest.json":  # it holds the checksum of stage.json
            tree[name] = path.read_bytes()
    return tree


def follow(line: str) -> None:
    """Do what a line advises."""
    folder, command = re.search(r"; remove (\S+), then `clinkd (.*?)` makes", line).groups()
    shutil.rmtree(folder)
    assert main(command.split()) == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def turn_to_link(path: Path) -> None:
    shutil.move(path, path.parents[3] / "elsewhere")
    path.symlink_to(path.parents[3] / "elsewhere")


def turn_to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def lose_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


DAMAGES: list[Callable[[Path], Any]] = [
    flip, turn_to_link, turn_to_folder, Path.unlink, lose_last_line,
    lambda path: os.truncate(path, path.stat().st_size // 2), lambda path: path.write_bytes(b"[" * 200_000),
]  # fmt: skip
FILES = [
    "prepare/images/1.png", "prepare/train.jsonl", "prepare/stage.json", "teacher/model/weights",
    "teacher/model/config.json", "score/table.json", "score/stage.json", "score/manifest.json",
]  # fmt: skip


@pytest.mark.parametrize("kinds", [1, pytest.param(len(DAMAGES), marks=pytest.mark.slow)])
def test_every_damage_is_named_and_what_the_line_says_heals_the_run(runs, capsys, kinds):
    run, before = make(runs), read_tree(runs)
    assert call(capsys, "runs", "verify", "a", "--runs", runs)[0] == 0
    turns = [(file, DAMAGES[(n + k) % len(DAMAGES)]) for k in range(kinds) for n, file in enumerate(FILES)]
    for file, harm in turns:
        stage, _, name = file.partition("/")
        path = (run / "stages" / stage).resolve() / name
        harm(path)
        status, _, [line] = call(capsys, "runs", "verify", "a", "--runs", runs)
        # a manifest with a digit changed is a manifest still, and names a file whose checksum differs
        named = path.parent if (name, harm) == ("manifest.json", flip) else f"{path}: "
        assert status == 1 and f"clinkd: {named}" in line
        follow(line)
        shutil.rmtree(runs / "elsewhere", ignore_errors=True)
        (runs / "elsewhere").unlink(missing_ok=True)
        assert read_tree(runs) == before, harm
        assert call(capsys, "runs", "verify", "a", "--runs", runs)[0] == 0


def test_all_damages_are_named_and_files_more_are_told(runs, capsys):
    run = make(runs)
    stages = [(run / "stages" / name).resolve() for name in ("prepare", "teacher", "score")]
    (stages[0] / "notes.txt").write_text("mine")
    status, out, lines = call(capsys, "runs", "verify", "a", "--runs", runs)
    assert status == 0 and not lines and "notes.txt: no file of the stage" in " ".join(out.split())
    assert call(capsys, "status", "a", "--runs", runs)[0] == 0
    for file in (stages[0] / "train.jsonl", stages[0] / "images/1.png", stages[1] / "model/weights"):
        flip(file)
    status, out, lines = call(capsys, "runs", "verify", "a", "--runs", runs)
    assert status == 1 and [line.split(": ")[1].rpartition("/")[2] for line in lines] == [
        "1.png",
        "train.jsonl",
        "weights",
    ]
    assert all("damaged (its checksum differs), so stage" in line for line in lines)
    # as the page is written again, it is no part of the stage
    (stages[2] / "report.html").write_text("<p>again")
    assert len(call(capsys, "runs", "verify", "a", "--runs", runs)[2]) == 3


def test_a_stage_without_checksums_is_told_as_that_and_its_sizes_are_compared(runs, capsys):
    run = make(runs)
    for link in (run / "stages").iterdir():
        listed = Manifest.read(link)
        (link / "manifest.json").unlink()
        sizes = {name: digest.bytes for name, digest in listed.items() if name != "stage.json"}
        write_json(link / "stage.json", {**read_json(link / "stage.json"), "files": sizes})
    flip(run / "stages/teacher/model/weights")
    status, out, _ = call(capsys, "runs", "verify", "a", "--runs", runs)
    assert status == 0 and out.count("sizes only") == 4 and "whole" not in out
    assert call(capsys, "table", "a", "--runs", runs)[0] == 0
    os.truncate(run / "stages/teacher/model/weights", 30)
    status, _, [line] = call(capsys, "runs", "verify", "a", "--runs", runs)
    assert status == 1 and "30 bytes instead of 3000" in line


def test_a_damaged_stage_that_two_runs_share_is_healed_for_both(runs, capsys):
    for name in ("a", "b"):
        make(runs, name)
    before = read_tree(runs)
    flip(runs / "a/stages/teacher/model/weights")
    lines = [call(capsys, "runs", "verify", name, "--runs", runs)[2][0] for name in ("a", "b")]
    folder = (runs / "a/stages/teacher").resolve()
    shutil.rmtree(folder)
    # in between, each says how to make it; it was not moved
    for name in ("a", "b"):
        status, out, [line] = call(capsys, "status", name, "--runs", runs)
        assert status == 2 and "2 of 3 stages done" in out and "makes the stage again" in line and "moved" not in line
    folder.mkdir()
    follow(lines[1])
    assert all(call(capsys, "runs", "verify", name, "--runs", runs)[0] == 0 for name in ("a", "b"))
    assert {k: v for k, v in read_tree(runs).items() if k in before} == before


def test_whoever_reads_a_file_of_a_stage_compares_it(runs, capsys):
    run = make(runs)
    prepared, scored = ((run / "stages" / name).resolve() for name in ("prepare", "score"))
    table = scored / "table.json"
    table.write_text(table.read_text().replace("61.2", "99.9"))
    assert open_run(run).state() == "finished", "sizes alone say nothing"
    for words in (["table", "a"], ["table", "a", "--json"]):
        status, out, [line] = call(capsys, *words, "--runs", runs)
        assert (status, out) == (2, "") and "table.json: damaged (its checksum differs), so stage score" in line
    status, out, _ = call(capsys, "runs", "list", "--runs", runs)
    assert status == 0 and "a is damaged" in " ".join(out.split())
    follow(line)
    assert call(capsys, "table", "a", "--runs", runs)[0] == 0
    flip(prepared / "train.jsonl")
    with pytest.raises(
        BadInput, match=r"train\.jsonl: damaged .* so stage prepare is damaged; remove .* makes the stage"
    ):
        read_split(prepared, "train")
    flip(prepared / "train.jsonl")
    (prepared / "manifest.json").write_text("{")
    with pytest.raises(BadInput, match=r"manifest\.json: missing or broken, so stage prepare is damaged"):
        read_split(prepared, "train")
    assert read_predictions(prepared) == []


def test_weights_are_compared_whenever_they_are_loaded(runs):
    from clinkd.pipeline.models import load_model

    stage = (make(runs) / "stages/teacher").resolve()
    flip(stage / "model/weights")
    with pytest.raises(
        BadInput, match=r"weights: damaged .* so stage teacher is damaged; remove \S+teacher-\w+, then `"
    ):
        load_model(stage, lambda image: None)
    flip(stage / "model/weights")
    with pytest.raises(BadInput, match="holds a None model|model_type is"):  # whole, and no model of ours
        load_model(stage, lambda image: None)


def test_weights_of_a_pretrained_base_are_compared_too(tmp_path):
    base, stage = tmp_path / "pretrained", tmp_path / "base-0123456789ab"
    base.mkdir(), stage.mkdir()
    (base / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    write_json(stage / "base.json", {**damage.point_to(base), "model": {}})
    damage.demand_whole_model(stage)
    (base / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0 {")
    with pytest.raises(
        BadInput, match=r"model\.safetensors: damaged .* stage base is damaged; bring a whole copy back"
    ):
        damage.demand_whole_model(stage)


@pytest.mark.parametrize("images", [True, False])
def test_a_damaged_run_is_not_packed_and_a_packed_one_verifies(runs, tmp_path, capsys, images, monkeypatch):
    monkeypatch.setattr("clinkd.workflows.packing._render_shared_page", lambda run: b"<p>")
    run = make(runs)
    file = run / "stages/prepare/train.jsonl"
    flip(file)
    with pytest.raises(BadInput, match=r"train\.jsonl: damaged \(its checksum differs\), so stage prepare is damaged"):
        pack_run(open_run(run), tmp_path / "a.tar", images)
    assert not (tmp_path / "a.tar").exists()
    flip(file)
    pack_run(open_run(run), tmp_path / "a.tar", images)
    open_pack(tmp_path / "a.tar", tmp_path / "other")
    status, out, lines = call(capsys, "runs", "verify", "a", "--runs", tmp_path / "other")
    assert (status, lines) == (0, []) and out.count("whole") == 3 and "sizes only" not in out


def test_checksums_of_a_store_below_are_not_computed_again(tmp_path, monkeypatch):
    (tmp_path / "store").mkdir()
    for name in ("a", "store/b"):
        (tmp_path / name).write_bytes(name.encode())
    Manifest.write(tmp_path / "store")
    hashed: list[Path] = []
    monkeypatch.setattr(storage, "digest_file", lambda path: hashed.append(path) or digest_file(path))
    damage.write_manifest(tmp_path)
    assert hashed == [tmp_path / "a", tmp_path / "store/manifest.json"]
    assert Manifest.read(tmp_path)["store/b"] == digest_file(b"store/b")


# ---- moved ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False])
def test_a_run_moved_without_its_stages_says_so_and_each_way_heals(runs, tmp_path, capsys, links):
    make(runs)
    for number, heal in enumerate(("bring", "pack", "command")):
        there = tmp_path / f"there-{number}"
        there.mkdir()
        shutil.copytree(runs / "a", there / "a", symlinks=links)
        for words in (["status", "a"], ["table", "a"], ["report", "a"], ["runs", "verify", "a"]):
            status, out, [line, *_] = call(capsys, *words, "--runs", there)
            assert status and "the run was moved without its stages" in line
            assert f"put the folder .stages of where the run was made into {there}, or" in line
            assert words[0] != "status" or ("none of its 3 stages is here" in out and " 0 of" not in out)
        if copies := re.search(r"remove (\S+), which holds copies; then put", line):
            shutil.rmtree(copies[1])
        assert bool(copies) == (not links)
        if heal == "bring":
            shutil.copytree(runs / ".stages", there / ".stages", symlinks=True)
        elif heal == "pack":
            shutil.rmtree(there / "a")
            pack_run(open_run(runs / "a"), tmp_path / f"{links}.tar")
            open_pack(tmp_path / f"{links}.tar", there)
        else:
            command = re.search(r"or `clinkd ([^`]*)` makes them again", line)[1]
            assert main(command.split()) == 0
        assert call(capsys, "runs", "verify", "a", "--runs", there)[0] == 0
        assert call(capsys, "table", "a", "--runs", there)[0] == 0


# ---- records of another shape ---------------------------------------------------------------------------------------

HUGE = 10**400
EVIL = (None, [], {}, "x", "../../../etc", "/etc", -1, 1e308, HUGE, True, [[]], [{}], "a\0b", "\ud800", "{", "[" * 99)


def mutate(value: Any, evil: Any) -> list[Any]:
    """The value with each of its parts, in turn, replaced by `evil` or left out."""
    if isinstance(value, dict):
        inner = [{**value, key: part} for key in value for part in mutate(value[key], evil)]
        return [*inner, *({k: v for k, v in value.items() if k != key} for key in value), evil]
    if isinstance(value, list):
        return [
            *([*value[:n], part, *value[n + 1 :]] for n, v in enumerate(value) for part in mutate(v, evil)),
            [],
            evil,
        ]
    return [evil]


def list_mutations(record: dict[str, Any], number: int) -> list[Any]:
    """Some of all mutations of a record, always the same ones; half of them of its config."""
    parts = {key: record[key] for key in record if key != "config"}
    whole = [{**record, **m} if isinstance(m, dict) else m for evil in EVIL for m in mutate(parts, evil)]
    configs = [{**record, "config": m} for evil in EVIL for m in mutate(record["config"], evil)]
    chance = random.Random(0)
    return [*chance.sample(whole, number), *chance.sample(configs, number)]


def verbs(runs: Path) -> list[list[object]]:
    at = ["--runs", runs]
    image = runs / "x.png"
    return [
        ["status", "a", *at], ["status", *at], ["runs", "list", *at], ["runs", "verify", "a", *at],
        ["runs", "pack", "a", "--out", runs.parent / "a.tar", *at], ["table", "a", *at], ["report", "a", *at],
        ["why", "a", "teacher", *at], ["serve", "a", *at], ["ask", *at, "--run", "a", image, "Where?"],
        ["plan", runs / "a/config.yaml", *at], ["compare", "a", "a", *at], ["recipe", runs / "a/run.json"],
        ["export", "--run", "a", runs.parent / "out", *at],
    ]  # fmt: skip


@pytest.mark.parametrize("number", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_record_of_a_run_of_another_shape_is_one_line_and_is_written_again(runs, tmp_path, capsys, number):
    run = make(runs)
    record, outside = read_json(run / "run.json"), {*tmp_path.iterdir()}
    for mutation in ("[" * 100_000, *list_mutations(record, number)):
        content = mutation if isinstance(mutation, str) else json.dumps(mutation)
        (run / "run.json").write_text(content)
        before = read_tree(runs)
        for words in verbs(runs):
            status, _, lines = call(capsys, *words)
            assert status in (0, 1, 2) and len(lines) <= 1, (words, content, lines)
            (tmp_path / "a.tar").unlink(missing_ok=True)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        after = {k: v for k, v in read_tree(runs).items() if k in before}
        assert after == before and {*tmp_path.iterdir()} == outside
        status, _, lines = call(capsys, "table", "a", "--runs", runs)
        if status:
            command = re.search(r"`clinkd (.*)` (writes it again|goes on|makes)", lines[0])[1]
            assert main(command.split()) == 0
            assert read_json(run / "run.json") == record, content


@pytest.mark.parametrize("number", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_record_of_a_stage_of_another_shape_is_one_line_and_its_stage_is_made_again(runs, capsys, number):
    run = make(runs)
    before, stage = read_tree(runs), (run / "stages/teacher").resolve()
    record = read_json(stage / "stage.json")
    for mutation in ("[" * 100_000, *list_mutations(record, number)):
        content = mutation if isinstance(mutation, str) else json.dumps(mutation)
        (stage / "stage.json").write_text(content)
        for older in (False, True):
            if older:
                (stage / "manifest.json").unlink(missing_ok=True)
            for words in verbs(runs):
                status, _, lines = call(capsys, *words)
                assert status in (0, 1, 2) and len(lines) <= 1, (words, content, lines)
                (runs.parent / "a.tar").unlink(missing_ok=True)
                shutil.rmtree(runs.parent / "out", ignore_errors=True)
        _, _, lines = call(capsys, "runs", "verify", "a", "--runs", runs)
        if lines:
            follow(lines[0])
        else:
            shutil.rmtree(stage)
            make(runs)
        (run / "report-shared.html").unlink(missing_ok=True)
        assert read_tree(runs) == before, content


def test_a_draft_goes_on_whatever_its_record_says_and_its_time_is_never_negative(runs, capsys, monkeypatch):
    run, before = make(runs), read_tree(runs)
    stage = (run / "stages/teacher").resolve()
    whole = read_json(stage / "stage.json")
    broken = {"seconds": -5.0}, {"seconds": 1e999}, {"attempts": []}, {"recorded": 3}, {"files": {"../../x": 1}}
    for content in ("{", "[]", "null", *(json.dumps({**whole, "finished": None, **b}) for b in broken)):
        stage.rename(draft := graph.draft_of(stage))
        (draft / "stage.json").write_text(content)
        monkeypatch.setattr(graph.time, "strftime", lambda form: "1999-01-01T00:00:00+0000")  # the clock went back
        status, _, _ = call(capsys, "run", run / "config.yaml", "--runs", runs)
        assert status == 0 and read_tree(runs) == before, content
        assert 0 <= read_json(stage / "stage.json")["seconds"] < 100

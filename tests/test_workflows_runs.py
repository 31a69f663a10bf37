"""Runs as things to keep: what they take, how they go, and as files that anybody may have made."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import pty
import random
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from tests.three_stages import plan_three_stages

from clinkd import pipeline
from clinkd.cli import main
from clinkd.cli.manage import _spell_age
from clinkd.config import RunConfig
from clinkd.pipeline import graph
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.runs import open_run
from clinkd.records import BadInput
from clinkd.storage import digest_file, read_json, write_json
from clinkd.workflows import packing
from clinkd.workflows.inventory import take_inventory
from clinkd.workflows.packing import open_pack, pack_run

SCORES = {"VG": {"score": 61.2, "blind": 12.0}, "RC": {"score": None, "why": "no SPICE"}, "average": None}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for runs of three stages that take no time; the data are those of all seeds."""

    def prepare(work: StageContext) -> None:
        (work.folder / "images").mkdir()
        (work.folder / "images" / "1.png").write_bytes(b"png" * 500)

    def teach(work: StageContext) -> None:
        (work.folder / "weights").write_bytes(random.Random(work.seed).randbytes(3000))

    def score(work: StageContext) -> None:
        write_json(work.folder / "table.json", SCORES)
        (work.folder / "report.html").write_text("<p>")

    plan_three_stages(monkeypatch, prepare, teach, score)
    return tmp_path / "runs"


def make(runs: Path, name: str, seed: int = 0) -> Path:
    pipeline.run(RunConfig(name=name, seed=seed), runs)
    return runs / name


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["runs", *map(str, words)])
    return status, *capsys.readouterr()


def refuse(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    status, out, err = call(capsys, *words)
    lines = [line for line in err.splitlines() if line.startswith("clinkd: ")]
    assert status == 2 and out == "" and len(lines) == 1 and "fault of the program" not in err, (status, out, err)
    return lines[0]


def list_tree(folder: Path) -> dict[str, bytes | str]:
    """All files below a folder with their bytes, and all links with their targets."""
    paths = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*"))}
    return {n: str(p.readlink()) if p.is_symlink() else p.read_bytes() for n, p in paths.items() if not p.is_dir()}


def count_bytes(folder: Path) -> int:
    return sum(len(content) for content in list_tree(folder).values() if isinstance(content, bytes))


# ---- list -----------------------------------------------------------------------------------------------------------


def test_sizes_add_up_to_what_is_on_the_disk(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("a", "b", "c")):
        make(runs, name, seed)
    make(runs, "twin", 2)
    status, out, _ = call(capsys, "list", "--runs", runs, "--json")
    told = json.loads(out)
    by_name = {run["name"]: run for run in told["runs"]}
    size = {
        name: count_bytes(stage) for name in ("prepare", "teacher", "score") for stage in runs.glob(f"*/stages/{name}")
    }
    assert status == 0 and list(by_name) == ["twin", "c", "b", "a"]
    assert told["total_bytes"] == count_bytes(runs) and told["unused_bytes"] == 0
    assert by_name["a"]["shared_bytes"] == size["prepare"] and by_name["a"]["own_bytes"] > size["teacher"]
    assert by_name["c"]["own_bytes"] == count_bytes(runs / "c"), "its twin has all of its stages"
    assert by_name["a"]["scores"] == {"VG": 61.2, "RC": None} and by_name["a"]["state"] == "finished"


def test_states_are_told_apart_and_damage_is_named(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("whole", "stopped", "live", "cut", "lost")
    stages = {name: (make(runs, name, seed) / "stages" / "teacher").resolve() for seed, name in enumerate(names)}
    for name in ("stopped", "live"):
        stages[name].rename(stages[name].with_name(stages[name].name + ".part"))
    (stages["cut"] / "weights").write_bytes(b"short")
    (runs / "lost" / "run.json").unlink()
    with stages["live"].with_name(stages["live"].name + ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        states = {entry.folder.name: entry.state for entry in take_inventory(runs).runs}
        assert "Ctrl-C" in refuse(capsys, "rm", "live", "--yes", "--runs", runs)
    assert states == {"whole": "finished", "stopped": "stopped", "live": "live", "cut": "damaged", "lost": "damaged"}
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call(capsys, "list", "--runs", runs)
    assert "…" not in out and all(len(line) <= 80 for line in out.splitlines()[1:])
    words = " ".join(out.split())
    assert "cut is damaged" in words and "lost is damaged" in words and "VG: visual grounding" in words
    assert "MIA" not in out, "no run has a score there"


def test_without_runs_the_list_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no runs yet" in " ".join(call(capsys, "list", "--runs", tmp_path / "none")[1].split())
    assert [_spell_age(s) for s in (-5, 60, 7000, 8000, 200000)] == ["0 min", "1 min", "117 min", "2 h", "2 d"]


# ---- rm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 20))])
def test_whatever_is_removed_the_other_runs_stay_whole_and_nothing_else_stays(runs: Path, seed: int) -> None:
    chance = random.Random(seed)
    seeds = {f"r{n}": chance.randrange(3) for n in range(5)}
    for name, of_run in seeds.items():
        make(runs, name, of_run)
    gone = chance.sample(sorted(seeds), 3)
    before = count_bytes(runs)
    freed = 0
    for number in (1, 2):
        part, gone = gone[:number], gone[number:]
        size = count_bytes(runs)
        assert main(["runs", "rm", *part, "--yes", "--runs", str(runs)]) == 0
        freed += size - count_bytes(runs)
    left = [f for f in runs.iterdir() if f.name != ".stages"]
    assert len(left) == 2 and all(open_run(folder).state() == "finished" for folder in left)
    assert before - freed == count_bytes(runs)
    linked = {link.resolve() for folder in left for link in (folder / "stages").iterdir()}
    assert {p.resolve() for p in (runs / ".stages").iterdir()} == linked


def test_what_is_freed_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(runs, "a", 0), make(runs, "b", 1)
    big = runs / "a" / "corrections-human.jsonl"
    big.write_bytes(b"x" * 3_000_000)
    assert call(capsys, "rm", "a", "--yes", "--runs", runs)[1] == (
        "removed  a, 2 stages: 3 MB; 1 stages stay, since other runs use them\n"
    )
    assert call(capsys, "rm", runs / "b", "--yes", "--runs", runs)[1].startswith("removed  b, 3 stages: ")
    assert list_tree(runs) == {}


def test_only_runs_of_the_folder_are_removed(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(runs, "a")
    elsewhere = make(tmp_path / "others", "far")
    (runs / "link").symlink_to(elsewhere)
    (runs / "linked-within").symlink_to("a")
    (runs / "notes").mkdir()
    before = list_tree(tmp_path)
    for name in (elsewhere, "../others/far", "..", ".", "", ".stages", runs, "/", "link", runs / "link",
                 "linked-within", "notes", "nobody"):  # fmt: skip
        line = refuse(capsys, "rm", "a", name, "--yes", "--runs", runs)
        assert "not directly under" in line or "a link to" in line or "no run; runs under" in line, name
    assert "which runs?" in refuse(capsys, "rm", "--yes", "--runs", runs)
    assert list_tree(tmp_path) == before


def test_a_cache_behind_a_link_may_be_of_others_and_stays(runs: Path, tmp_path: Path) -> None:
    make(runs, "a")
    (runs / ".stages").rename(tmp_path / "elsewhere")
    (runs / ".stages").symlink_to(tmp_path / "elsewhere")
    before = list_tree(tmp_path / "elsewhere")
    assert main(["runs", "rm", "a", "--yes", "--runs", str(runs)]) == 0
    assert not (runs / "a").exists() and list_tree(tmp_path / "elsewhere") == before


def test_it_asks_and_without_a_terminal_wants_yes(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(runs, "a")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert "--yes" in refuse(capsys, "rm", "a", "--runs", runs)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        for reply in (b"n\n", b"\n", b"yesterday\n"):
            os.write(ours, reply)
            status, out, err = call(capsys, "rm", "a", "--runs", runs)
            assert status == 1 and out == "" and "remove a, 3 stages" in err and "nothing was removed" in err
            assert folder.is_dir()
        os.write(ours, b"y\n")
        assert call(capsys, "rm", "a", "--runs", runs)[0] == 0 and not folder.exists()
    os.close(ours)


def test_a_run_that_begins_while_it_is_asked_keeps_its_stages(runs: Path) -> None:
    from clinkd.workflows.inventory import remove_runs

    make(runs, "a")
    with pytest.raises(BadInput, match="changed meanwhile"):
        remove_runs(["a"], runs, lambda removal: bool(make(runs, "b")))
    assert open_run(runs / "a").state() == open_run(runs / "b").state() == "finished"


def test_stages_that_no_run_uses_go_when_asked_for(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(runs, "a", 0)
    pipeline.run(RunConfig(name="a", seed=1), runs, replace=True)
    (runs / ".stages" / "chat.sqlite").write_text("kept")
    assert take_inventory(runs).unused > 3000
    assert "no run uses" in call(capsys, "list", "--runs", runs)[1]
    assert call(capsys, "rm", "--unused", "--yes", "--runs", runs)[0] == 0
    assert take_inventory(runs).unused == 0 and open_run(runs / "a").state() == "finished"
    assert (runs / ".stages" / "chat.sqlite").is_file()


# ---- pack and open --------------------------------------------------------------------------------------------------


def test_a_packed_run_is_the_same_elsewhere(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(runs, "a")
    (folder / "corrections-human.jsonl").write_text("{}\n")
    status, out, _ = call(capsys, "pack", "a", "--runs", runs, "--out", tmp_path / "a.tar")
    assert status == 0 and "images   inside (drawn, of no patient)" in out and "words    inside: questions" in out
    with tarfile.open(tmp_path / "a.tar") as tar:
        first = tar.next()
        assert first is not None and first.name == packing.MANIFEST
        manifest = json.load(tar.extractfile(first) or io.StringIO())
        assert {m.name for m in tar} == {*manifest["files"], packing.MANIFEST}
    assert (manifest["images"], manifest["words"], manifest["patients"]) == (True, True, False)
    status, out, _ = call(capsys, "open", tmp_path / "a.tar", "--runs", tmp_path / "new")
    assert status == 0 and list_tree(tmp_path / "new") == list_tree(runs)
    assert main(["table", "a", "--runs", str(tmp_path / "new"), "--json"]) == 0
    assert main(["status", "a", "--runs", str(tmp_path / "new")]) == 0


def test_a_second_name_is_a_run_of_that_name_which_goes_on(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(runs, "a")
    pack_run(open_run(runs / "a"), tmp_path / "a.tar")
    before = list_tree(runs)
    (runs / ".a.clinkd-killed.part").mkdir()  # what a command leaves that is killed just after its run is there
    assert "--name NEW" in call(capsys, "open", tmp_path / "a.tar", "--runs", runs)[2]
    assert not list(runs.glob(".*.part"))
    assert "--name NEW" in refuse(capsys, "open", tmp_path / "a.tar", "--runs", runs)
    for name in ("../b", "", ".b", "b/c"):
        assert (
            "a letter or digit first" in refuse(capsys, "open", tmp_path / "a.tar", "--runs", runs, "--name", name)
            or name == ""
        )
    assert list_tree(runs) == before
    assert "3 of 3 were there already" in call(capsys, "open", tmp_path / "a.tar", "--runs", runs, "--name", "b")[1]
    assert {n: c for n, c in list_tree(runs).items() if not n.startswith("b/")} == before
    opened = open_run(runs / "b")
    assert opened.config == RunConfig(name="b") and opened.state() == "finished"
    assert main(["run", *opened.command.split()[-3:]]) == 0 and read_json(runs / "b/run.json")["name"] == "b"


def test_the_file_is_private_from_its_creation_and_never_over_another(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(runs, "a")
    modes, add, out = set(), tarfile.TarFile.addfile, tmp_path / "place" / "a.tar"
    out.parent.mkdir()

    def note(tar: tarfile.TarFile, *rest: object) -> None:
        modes.update(stat.S_IMODE(p.stat().st_mode) for p in out.parent.iterdir())
        add(tar, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tarfile.TarFile, "addfile", note)
    os.umask(before := os.umask(0))
    pack_run(open_run(runs / "a"), out)
    os.umask(before)
    assert modes == {0o600} and stat.S_IMODE(out.stat().st_mode) == 0o600 and list(out.parent.iterdir()) == [out]
    content = out.read_bytes()
    assert "is there already" in refuse(capsys, "pack", "a", "--runs", runs, "--out", out)
    (link := out.with_name("link")).symlink_to("nowhere")
    assert "is there already" in refuse(capsys, "pack", "a", "--runs", runs, "--out", link)
    assert "is no folder" in refuse(capsys, "pack", "a", "--runs", runs, "--out", tmp_path / "no" / "a.tar")
    assert out.read_bytes() == content

    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", fill)
    assert "no room left" in refuse(capsys, "pack", "a", "--runs", runs, "--out", out.with_name("b.tar"))
    assert sorted(p.name for p in out.parent.iterdir()) == ["a.tar", "link"]


def test_an_unfinished_or_damaged_run_is_not_packed(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(runs, "a")
    stage = (folder / "stages" / "score").resolve()
    (stage / "table.json").write_text("{}")
    words = ("pack", "a", "--runs", runs, "--out", tmp_path / "a.tar")
    assert "stage score is damaged; remove" in refuse(capsys, *words)
    shutil.rmtree(stage)
    (folder / "stages" / "score").unlink()
    assert "its stage score is not done; `" in refuse(capsys, *words)
    assert not (tmp_path / "a.tar").exists()


def test_stages_of_an_older_version_stay_linked(runs: Path, tmp_path: Path) -> None:
    folder = make(runs, "a")
    stage = (folder / "stages" / "teacher").resolve()
    older = stage.with_name("teacher-0123456789ab")
    stage.rename(older)
    stage.symlink_to(older.name)
    pack_run(open_run(folder), tmp_path / "a.tar")
    opened = open_pack(tmp_path / "a.tar", tmp_path / "new")
    assert opened.run.state() == "finished" and list_tree(tmp_path / "new") == list_tree(runs)


# ---- hostile files --------------------------------------------------------------------------------------------------

Change = Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]


def rewrite(source: Path, target: Path, change: Change) -> Path:
    """The members of a packed run, changed."""
    with tarfile.open(source) as tar:
        members = [(m, (tar.extractfile(m) or io.BytesIO()).read()) for m in tar]
    change(members)
    with tarfile.open(target, "w") as tar:
        for member, content in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return target


def adding(name: str, kind: bytes = tarfile.REGTYPE, to: str = "", listed: bool = True) -> Change:
    """Another member, named in the manifest if `listed`."""

    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, to
        content = b"evil" if kind == tarfile.REGTYPE else b""
        members.append((member, content))
        if listed:
            edit_manifest(members, lambda m: m["files"].update({name: asdict(digest_file(content))}))

    return change


def edit_manifest(members: list[tuple[tarfile.TarInfo, bytes]], edit: Callable[[dict], object]) -> None:
    value = json.loads(members[0][1])
    edit(value)
    members[0] = (members[0][0], json.dumps(value).encode())


def editing(edit: Callable[[dict], object]) -> Change:
    return lambda members: edit_manifest(members, edit)


def replacing_content(part: str, content: Callable[[bytes], bytes], rehash: bool = False) -> Change:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        number = next(n for n, (m, _) in enumerate(members) if m.name.endswith(part))
        member, old = members[number]
        members[number] = (member, new := content(old))
        if rehash:
            described = asdict(digest_file(new))
            edit_manifest(members, lambda m: m["files"].update({member.name: described}))

    return change


STAGE = ".stages/teacher-0123456789ab"
BOMB = {f"{STAGE}/{n}": {"sha256": "0" * 64, "bytes": 0} for n in range(30)}
HOSTILE: dict[str, Change] = {
    "absolute path": adding("/tmp/clinkd-evil"),
    "out of the folder": adding("run/../../evil"),
    "out of the folder, not listed": adding("../evil", listed=False),
    "into the links of the run": adding("run/stages/evil"),
    "no stage": adding(".stages/evil/file"),
    "top": adding("evil"),
    "line break": adding("run/evil\nfile"),
    "symbolic link": adding("run/evil", tarfile.SYMTYPE, "/etc/passwd"),
    "symbolic link, not listed": adding("run/evil", tarfile.SYMTYPE, "../..", listed=False),
    "hard link": adding("run/evil", tarfile.LNKTYPE, "run/run.json"),
    "device": adding("run/evil", tarfile.CHRTYPE),
    "pipe": adding("run/evil", tarfile.FIFOTYPE),
    "folder": adding("run/evil", tarfile.DIRTYPE, listed=False),
    "sparse file": adding("run/evil", tarfile.GNUTYPE_SPARSE),
    "file that is not listed": adding("run/evil", listed=False),
    "twice": lambda members: members.append(members[-1]),
    "one missing": lambda members: members.pop() and None,
    "manifest not first": lambda members: members.reverse(),
    "manifest a link": lambda members: setattr(members[0][0], "type", tarfile.SYMTYPE),
    "empty": lambda members: members.clear(),
    "no JSON": lambda members: members.__setitem__(0, (members[0][0], b"{")),
    "another form": editing(lambda m: m.update(form=2)),
    "more keys": editing(lambda m: m.update(more=1)),
    "wrong types": editing(lambda m: m.update(files=[])),
    "name of a path": editing(lambda m: m.update(name="../evil")),
    "negative size": editing(lambda m: next(iter(m["files"].values())).update(bytes=-1)),
    "huge size": editing(lambda m: next(iter(m["files"].values())).update(bytes=10**11)),
    "too many files": editing(lambda m: m["files"].update(BOMB)),
    "link out of the cache": editing(lambda m: m["links"].update({"../evil": "teacher-0123456789ab"})),
    "link to nothing": editing(lambda m: m["links"].update({"teacher-ffffffffffff": "../../evil"})),
    "other bytes": replacing_content("weights", lambda old: old[::-1]),
    "fewer bytes": replacing_content("weights", lambda old: old[:-1]),
    "a cut stage with a true checksum": replacing_content("weights", lambda old: old[:9], rehash=True),
    "a record that is no record": replacing_content("run/run.json", lambda _: b"[]", rehash=True),
    "a record without stages": replacing_content(
        "run/run.json", lambda _: b'{"config": {}, "stages": []}', rehash=True
    ),
    "stages of wrong form": replacing_content("run/run.json", lambda _: b'{"config": {}, "stages": [7]}', rehash=True),
    "a stage with a path": replacing_content(
        "run/run.json", lambda old: old.replace(b'"name": "teacher"', b'"name": "../../../evil"'), rehash=True
    ),
    "a config of wrong form": replacing_content("config.yaml", lambda _: b"a: [", rehash=True),
}


@pytest.fixture
def packed(runs: Path, tmp_path: Path) -> Path:
    pack_run(open_run(make(runs, "a")), tmp_path / "a.tar")
    return tmp_path / "a.tar"


def test_hostile_files_are_refused_and_leave_nothing(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "deep" / "runs"
    monkeypatch.setattr(packing, "MOST_FILES", 30)
    for what, change in HOSTILE.items():
        file = rewrite(packed, tmp_path / "evil.tar", change)
        with pytest.raises(BadInput) as refusal:
            open_pack(file, target)
        assert str(refusal.value).startswith(f"{file}: "), (what, refusal.value)
        assert not target.exists() or list_tree(target) == {}, what
    assert "evil.tar: " in refuse(capsys, "open", file, "--runs", target)
    assert not [p for p in tmp_path.rglob("*evil*") if p != file] and not Path("/tmp/clinkd-evil").exists()
    open_pack(rewrite(packed, file, lambda members: None), target)  # unchanged it opens


def test_other_files_are_refused(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = packed.read_bytes()
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, packing.MOST_HEADER_BYTES + 1
    long_names = tarfile.TarInfo("long")
    long_names.type, long_names.size = tarfile.GNUTYPE_LONGNAME, 512
    contents = {
        "nothing": b"", "text": b"no tar " * 999, "a header and no more": whole[:512], "cut": whole[:-12_000],
        "a header too large for memory": pax.tobuf(), "nested headers": (long_names.tobuf() + b"a" * 512) * 5000,
        "compressed": gzip.compress(whole),
    }  # fmt: skip
    for what, content in contents.items():
        (file := tmp_path / "other.tar").write_bytes(content)
        if what.startswith("a header too"):
            os.truncate(file, packing.MOST_HEADER_BYTES + 4096)  # it is all there, as holes
        with pytest.raises(BadInput, match="other.tar: "):
            open_pack(file, tmp_path / "target")
    assert "no such file" in refuse(capsys, "open", tmp_path, "--runs", tmp_path / "target")
    assert not (tmp_path / "target").exists() or list_tree(tmp_path / "target") == {}


@pytest.mark.parametrize("times", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_damage_is_one_line_or_changes_nothing(packed: Path, tmp_path: Path, times: int) -> None:
    whole, chance, target = packed.read_bytes(), random.Random(0), tmp_path / "target"
    expected = list_tree(packed.parent / "runs")
    refused = 0
    for _ in range(times):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(whole))] = chance.randrange(256)
        (file := tmp_path / "broken.tar").write_bytes(content[: chance.choice((None, chance.randrange(len(whole))))])
        try:
            open_pack(file, target)
        except (BadInput, OSError):
            refused += 1
            assert not target.exists() or list_tree(target) == {}
        else:
            assert list_tree(target) == expected
            shutil.rmtree(target)
    assert refused > times // 2


def test_a_stage_that_is_damaged_or_being_made_here_is_not_used(
    packed: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(runs / "a")
    [stage] = runs.glob(".stages/teacher-*")
    (stage / "weights").write_text("short")
    assert "so stage teacher is damaged; remove" in refuse(capsys, "open", packed, "--runs", runs)
    shutil.rmtree(stage)
    with stage.with_name(f"{stage.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "a process is making this stage" in refuse(capsys, "open", packed, "--runs", runs)
    assert not (runs / "a").exists() and open_pack(packed, runs).reused == 2


def test_too_little_room_is_told_before_anything_is_written(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "free_bytes", lambda path: 1000)
    assert "are needed and" in refuse(capsys, "open", packed, "--runs", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_what_was_left_out_of_a_packed_run_is_made_again_by_the_run_itself(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_render_shared_page", lambda run: b"<p>")
    pack_run(open_run(make(runs, "a")), tmp_path / "a.tar", images=False)
    open_pack(tmp_path / "a.tar", tmp_path / "bare")
    assert not (tmp_path / "bare/a/stages/prepare/images").exists()
    states = {p.status.name: p.status.state for p in graph.plan_stages(pipeline.plan(RunConfig()), tmp_path / "bare")}
    assert states == {"prepare": "missing", "teacher": "done", "score": "missing"}
    again = make(tmp_path / "bare", "a")
    assert {p.name for p in again.glob("stages/*/*")} == {p.name for p in (runs / "a").glob("stages/*/*")}
    assert (again / "stages/prepare/images/1.png").is_file() and (again / "stages/score/report.html").is_file()


# ---- a real run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def carried(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real run, packed with and without its images, and opened in two folders, `whole` and `bare`."""
    place = tmp_path_factory.mktemp("carried")
    for name, images in (("whole", True), ("bare", False)):
        manifest = pack_run(open_run(small_run), place / f"{name}.tar", images)
        assert manifest.images == images
        open_pack(place / f"{name}.tar", place / name)
    yield place


def test_an_opened_run_is_shown_and_asked(carried: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runs", str(carried / "whole")]
    for words in (["status", "small"], ["table", "small"], ["report", "small"], ["why", "small", "distill"]):
        assert main([*words, *where]) == 0, words
    image = next((carried / "whole/small/stages/prepare/images").glob("*.png"))
    out = tmp_path / "answer.png"
    assert main(["ask", *where, "--run", "small", str(image), "Where is it?", "--out", str(out)]) == 0
    assert out.is_file()


def test_without_images_no_pixel_is_inside_and_the_rest_works(carried: Path) -> None:
    where = ["--runs", str(carried / "bare")]
    files = [p for p in (carried / "bare").rglob("*") if p.is_file()]
    assert len(files) > 50 and not [p for p in files if p.suffix in (".png", ".jpg", ".dcm")]
    pages = {p.resolve() for p in files if p.suffix == ".html"}
    assert len(pages) == 1 and not [p for p in pages if "data:image/" in p.read_text()]
    for words in (["status", "small"], ["table", "small"], ["report", "small", "--share"]):
        assert main([*words, *where]) == 0, words
    assert open_run(carried / "bare/small").state() == "finished"


def test_a_stage_without_its_images_is_taken_for_a_whole_one_by_nobody(carried: Path) -> None:
    whole, bare = ({s["name"]: s["identity"] for s in read_json(carried / n / "small/run.json")["stages"]}
                   for n in ("whole", "bare"))  # fmt: skip
    assert {name for name in whole if whole[name] != bare[name]} == {"prepare", "score"}
    for folder in (carried / "bare/.stages").iterdir():
        assert folder.name == "{name}-{identity}".format(**read_json(folder / "stage.json"))

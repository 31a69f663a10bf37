"""What is written may hold data of patients: only its owner may read it, whatever the umask."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from clinkd.cli import main
from clinkd.correction.embedding import _open_cache
from clinkd.pipeline.graph import Stage, StageContext, execute
from clinkd.remote import Journal
from clinkd.storage import JsonLines, Manifest, make_folder, new_folder, publish, replacing, write_atomic, write_json


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    assert os.umask(before) == request.param  # a host's own is left as it was


def modes(folder: Path) -> dict[str, str]:
    """The permissions of a folder and of all in it that are not its owner's alone."""
    wanted = {p: 0o700 if p.is_dir() else 0o600 for p in (folder, *folder.rglob("*")) if not p.is_symlink()}
    assert len(wanted) > 1, folder
    found = {p: stat.S_IMODE(p.stat().st_mode) for p in wanted}
    return {str(p): oct(mode) for p, mode in found.items() if mode != wanted[p]}


def write_as_libraries_do(folder: Path) -> None:
    (folder / "board" / "events").mkdir(parents=True)
    (folder / "board" / "model.safetensors").write_bytes(b"weights")


def test_every_writer(umask: int, tmp_path: Path) -> None:
    top = tmp_path / "top"
    make_folder(top / "made" / "deep")
    write_atomic(top / "new" / "a.txt", "text")
    write_json(top / "b.json", {})
    with replacing(top / "c.bin") as file:
        file.write(b"c")
    (old := top / "d.txt").write_text("read by all")
    old.chmod(0o666)
    write_atomic(old, "for its owner")
    with JsonLines(top / "log" / "lines.jsonl") as lines:
        lines.append({"id": 1})
    with new_folder(top / "given" / "folder") as draft:
        write_as_libraries_do(draft)
        Manifest.write(draft)
    (draft := top / "draft").mkdir()
    write_as_libraries_do(draft)
    (tmp_path / "shared").mkdir(mode=0o755)
    shared = stat.S_IMODE((tmp_path / "shared").stat().st_mode)
    (draft / "link").symlink_to(tmp_path / "shared")
    publish(draft, top / "published")
    Journal(top / "calls" / "chat.sqlite").close()
    with _open_cache(top / "vectors" / "v.sqlite"):
        assert modes(top) == {}  # its write-ahead files, too
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == shared  # what a link leads to is another's


def test_a_stage_at_work_and_when_it_is_done(umask: int, tmp_path: Path) -> None:
    def work(context: StageContext) -> None:
        write_as_libraries_do(context.folder)
        found.append(stat.S_IMODE(context.folder.stat().st_mode))
        found.append(stat.S_IMODE(context.folder.with_suffix(".lock").stat().st_mode))

    found: list[int] = []
    execute([Stage("data", 1, {}, (), work, 0)], tmp_path / "runs" / "a")
    assert found == [0o700, 0o600] and modes(tmp_path / "runs") == {}


def test_every_file_of_a_run(small_run: Path) -> None:
    assert modes(small_run) == modes(small_run.parent / ".stages") == {}


def test_what_commands_write(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "out"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scans").mkdir()
    (tmp_path / "out").mkdir(0o700)
    with open("sheet.csv", "w", newline="") as file:
        sheet = csv.writer(file)
        sheet.writerow(["image", "question", "answer", "modality", "patient", "x1", "y1", "x2", "y2", "name"])
        for n in range(6):
            Image.effect_noise((32, 32), 50 + n).save(tmp_path / "scans" / f"{n}.png")
            sheet.writerow([f"{n}.png", "Is there a lesion?", "no", "ct", n, 4, 4, 20, 20, "liver"])
    assert main(["data", "import", "sheet.csv", "--images", "scans", "--out", "out/data"]) == 0, capsys.readouterr().err
    first = json.loads(Path("out/data/samples.jsonl").read_text().splitlines()[0])["id"]
    for words in (
        "data export out/data --to coco --out out/coco.json",
        f"data show out/data {first} --out out/shown.png",
    ):
        assert main(words.split()) == 0, (words, capsys.readouterr().err)

    def fail(*_: object) -> None:
        raise RuntimeError("of ours")

    monkeypatch.setattr("clinkd.data.writers.write_jsonl", fail)
    assert main(["data", "export", "out/data", "--to", "jsonl", "--out", "out/lines.jsonl"]) == 1
    assert list((tmp_path / "out").glob("clinkd-error-*"))
    assert modes(tmp_path / "out") == {}

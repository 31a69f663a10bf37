"""Files that survive crashes, full disks and damage; progress that can be read with and without a terminal."""

import contextlib
import csv
import errno
import io
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clinkd import storage
from clinkd.data.readers.rows import SourceRow, sheet_rows
from clinkd.records import BadInput
from clinkd.storage import (
    JsonLines,
    Manifest,
    draft_folder,
    naming_full_disk,
    new_folder,
    progress,
    publish,
    read_json,
    replacing,
    sha256_file,
    write_atomic,
    write_json,
)

LIMIT = 200_000  # bytes: stands for a disk that is full


@contextlib.contextmanager
def small_disk():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_write_atomic_replaces_whole_and_makes_parents(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_full_disk_is_one_line_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_atomic(path, "old")
    with small_disk(), pytest.raises(BadInput) as caught:
        write_atomic(path, b"x" * (LIMIT + 1))
    assert str(path) in str(caught.value) and "free some space" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_file_only(tmp_path, monkeypatch, step):
    path = tmp_path / "x"
    write_atomic(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(BadInput, match="no room left"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def killed_inside(folder: Path, ready: Path, opened: Callable[[], Any]) -> None:
    """A process that is killed while it writes."""
    with opened() as place:
        (place / "x").write_text("half") if isinstance(place, Path) else place.write(b"half")
        ready.touch()
        time.sleep(60)


@pytest.mark.parametrize("way", [replacing, new_folder, draft_folder])
def test_what_a_killed_process_was_writing_is_removed_by_the_next_and_only_that(tmp_path, way):
    folder, ready = tmp_path / "data", tmp_path / "ready"
    others = [folder / ".b.12.tmp", folder / ".a.part", folder / ".a.1234.clinkd.tmp.bak"]
    folder.mkdir()
    for other in others:
        other.write_text("mine")
    writer = multiprocessing.get_context("fork").Process(
        target=killed_inside, args=(folder, ready, partial(way, folder / "a"))
    )
    writer.start()
    try:
        while not ready.exists():
            time.sleep(0.001)
        for kill in (False, True):
            if kill:
                writer.kill()
                writer.join()
            storage._clear_drafts_once.cache_clear()  # as in a new process
            with way(folder / "a") as place:
                if not kill:
                    assert len(list(folder.iterdir())) == len(others) + 2  # that of the living stays
                (place / "x").write_text("whole") if isinstance(place, Path) else place.write(b"whole")
            if not kill:
                shutil.rmtree(folder / "a") if (folder / "a").is_dir() else (folder / "a").unlink(missing_ok=True)
    finally:
        writer.kill()
    left = set(folder.iterdir()) - set(others)
    assert left == (set() if way is draft_folder else {folder / "a"}) and all(o.read_text() == "mine" for o in others)


def test_an_error_names_the_file_that_was_wanted(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_atomic(tmp_path / "x", "new")
    assert caught.value.filename == str(tmp_path / "x")


def test_other_errors_of_the_system_pass_through(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "file" / "x", "content")


def test_json_round_trip_and_its_errors(tmp_path):
    value = {"a": [1, 2.5, None, "lésion\u2028"], "b": {"c": True}}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value
    with pytest.raises(BadInput, match="no such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "v.json").write_text('{"a": ')
    with pytest.raises(BadInput, match="v.json: not valid JSON"):
        read_json(tmp_path / "v.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "nan.json", float("nan"))


def folder_of_files(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(random.Random(0).randbytes(5000))
    (folder / "sub" / "config.json").write_text("{}")
    Manifest.write(folder)
    return folder


def test_manifest_accepts_what_it_described(tmp_path):
    Manifest.verify(folder_of_files(tmp_path / "ok"))
    assert sha256_file(tmp_path / "ok/sub/config.json") == (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )


def test_manifest_detects_every_flip_and_cut(tmp_path):
    folder, draw = folder_of_files(tmp_path / "ckpt"), random.Random(1)
    path = folder / "weights.bin"
    good = path.read_bytes()
    for _ in range(40):
        where = draw.randrange(len(good))
        path.write_bytes(good[:where] + bytes([good[where] ^ (1 << draw.randrange(8))]) + good[where + 1 :])
        with pytest.raises(BadInput, match=r"weights\.bin: damaged"):
            Manifest.verify(folder)
        path.write_bytes(good[:where])
        with pytest.raises(BadInput, match=r"weights\.bin: \d+ bytes instead of 5000"):
            Manifest.verify(folder)
    path.write_bytes(good)
    Manifest.verify(folder)


def test_manifest_names_missing_and_unknown_files(tmp_path):
    folder = folder_of_files(tmp_path / "ckpt")
    (folder / "extra").write_text("")
    with pytest.raises(BadInput, match="extra: not in manifest"):
        Manifest.verify(folder)
    (folder / "extra").unlink()
    (folder / "sub" / "config.json").unlink()
    with pytest.raises(BadInput, match=r"config\.json: missing"):
        Manifest.verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(BadInput, match="never finished"):
        Manifest.verify(folder)


def test_publish_moves_the_whole_folder(tmp_path):
    folder_of_files(tmp_path / "x.part")
    publish(tmp_path / "x.part", tmp_path / "x")
    assert not (tmp_path / "x.part").exists()
    Manifest.verify(tmp_path / "x")


def test_json_lines_round_trip(tmp_path):
    records = [{"id": "a", "text": "one\u2028two\r\nthree"}, {"id": "b", "n": 1.5}, {"id": "c", "bad": "\ud800"}]
    with JsonLines(tmp_path / "r" / "x.jsonl") as lines:
        assert list(lines.read()) == [] and lines.ids() == set()
        for record in records:
            lines.append(record)
            assert list(lines.read())[-1] == record  # flushed at once
    assert list(JsonLines(tmp_path / "r" / "x.jsonl").read()) == records
    assert JsonLines(tmp_path / "r" / "x.jsonl").ids() == {"a", "b", "c"}


def test_json_lines_lose_at_most_the_torn_line(tmp_path):
    """Cut the file at every byte: the records whose closing brace survived read back, and appending goes on."""
    path = tmp_path / "x.jsonl"
    records = [{"id": str(i), "v": "é" * i} for i in range(4)]
    with JsonLines(path) as lines:
        for record in records:
            lines.append(record)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        survivors = whole[:cut].count(b"}")
        assert list(JsonLines(path).read()) == records[:survivors]
        with JsonLines(path) as lines:
            lines.append({"id": "new"})
        assert list(JsonLines(path).read()) == [*records[:survivors], {"id": "new"}]


def test_json_lines_cut_a_torn_line_longer_than_a_block(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a"}\n{"id": "' + "b" * 200_000)
    with JsonLines(path) as lines:
        lines.append({"id": "c"})
    assert JsonLines(path).ids() == {"a", "c"}


def test_json_lines_name_a_broken_line_in_the_middle(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a"}\n{"id": \n{"id": "c"}\n')
    with pytest.raises(BadInput, match=r"x\.jsonl, line 2"):
        list(JsonLines(path).read())


def test_json_lines_on_a_full_disk_keep_whole_records(tmp_path):
    path, record = tmp_path / "x.jsonl", {"id": "r", "v": "x" * 3000}
    with small_disk(), JsonLines(path) as lines, pytest.raises(BadInput, match="no room left"):
        for _ in range(200):
            lines.append(record)
    found = list(JsonLines(path).read())
    assert len(found) == LIMIT // len(path.read_bytes().splitlines(keepends=True)[0])
    assert path.read_bytes().endswith(b"}\n")
    with JsonLines(path) as lines:
        lines.append({"id": "after"})
    assert "after" in JsonLines(path).ids()


def test_a_reader_does_not_follow_a_growing_file(tmp_path):
    with JsonLines(tmp_path / "x.jsonl") as lines:
        lines.append({"id": "0"})
        for number, _ in enumerate(lines.read(), start=1):
            lines.append({"id": str(number)})
            assert number == 1


WRITER = """
import sys
from clinkd.storage import JsonLines
with JsonLines(sys.argv[1]) as lines:
    first = len(lines.ids())
    for i in range(first, first + 20_000):  # ends by itself, should nobody be left to kill it
        lines.append({"id": str(i), "v": "x" * 500})
"""


def test_json_lines_survive_kill_9(tmp_path):
    path = tmp_path / "x.jsonl"
    seen = 0
    for _ in range(3):
        size = path.stat().st_size if path.exists() else 0
        worker = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        try:
            deadline = time.monotonic() + 20
            while (not path.exists() or path.stat().st_size <= size) and time.monotonic() < deadline:
                time.sleep(0.001)
        finally:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        ids = [r["id"] for r in JsonLines(path).read()]
        assert ids == [str(i) for i in range(len(ids))] and len(ids) > seen
        seen = len(ids)


def test_progress_prints_lines_with_rate_and_time_left(capsys, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(storage.time, "monotonic", lambda: float(next(clock)))
    with progress(10, "Teacher", "step") as advance:
        for step in range(10):
            advance(1, loss=1 / (step + 1))
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) < 10
    assert all(line.startswith("Teacher: ") and ("step/s" in line or "s/step" in line) for line in lines)
    assert all(" left" in line for line in lines[:-1]) and "loss 0.1" in lines[-1] and "10/10 step in" in lines[-1]


def test_progress_counts_earlier_work_but_not_in_the_rate(capsys):
    with progress(1000, "Answer", done=998) as advance:
        advance(2)
    assert "1000/1000" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def open_terminal(monkeypatch, columns):
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_a_bar_stays_whole_in_80_columns(monkeypatch):
    screen = open_terminal(monkeypatch, "80")
    with progress(250, "reflect-1: train", "steps") as advance:
        advance(96, loss=0.547, answer_tokens_per_s=318, mfu="12%")
    lines = [
        line for line in re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", screen.getvalue()).splitlines() if "96/250" in line
    ]
    assert lines and all("…" not in line and len(line.rstrip()) <= 80 for line in lines)
    assert "━" in lines[-1] and "steps/s" in lines[-1] and "mfu" not in lines[-1]
    facts = ["96/250 steps", "", "6 min 12 s left", "2.4 s/steps", "loss 0.547", "answer_tokens_per_s 318"]
    assert storage.join_what_fits(facts, 56) == "96/250 steps  6 min 12 s left  2.4 s/steps  loss 0.547"
    assert storage.join_what_fits(facts, 54) == "96/250 steps  6 min 12 s left  2.4 s/steps  loss 0.547"
    assert storage.join_what_fits(facts, 53) == "96/250 steps  6 min 12 s left  2.4 s/steps"


def test_progress_bars_nest_on_a_terminal(monkeypatch):
    screen = open_terminal(monkeypatch, "160")
    with progress(2, "outer [round]", "round") as outer:
        for _ in range(2):
            with progress(3, "inner", "step") as inner:
                for _ in range(3):
                    inner(loss=0.5)
            outer()
    assert storage._OUTER_BAR.get() is None
    text = screen.getvalue()
    assert "outer [round]" in text and "2/2 round" in text and "took" in text


def test_an_error_inside_nested_bars_passes_and_cleans_up(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyError), progress(2, "outer"), progress(2, "inner"):
        raise KeyError("x")
    assert storage._OUTER_BAR.get() is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (245, "4 min 05 s"), (7830, "2 h 10 min")]
)
def test_durations_in_words(seconds, words):
    assert storage.spell_seconds(seconds) == words


def test_rates_in_words():
    spelled = [storage.spell_rate(r, "it") for r in (None, 0.25, 1234.56)]
    assert spelled == ["- it/s", "4.0 s/it", "1,234.6 it/s"]


def test_no_room_is_named_where_a_library_tells_it_in_words_only(tmp_path):
    class LibraryError(Exception):
        pass

    with pytest.raises(BadInput, match="model: no room left .* another folder"), naming_full_disk(tmp_path / "model"):
        raise LibraryError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(LibraryError), naming_full_disk(tmp_path / "model"):
        raise LibraryError("I/O error: Permission denied (os error 13)")


KILLED = """
import os, sys
from pathlib import Path
from clinkd.storage import new_folder, replacing
with new_folder(Path(sys.argv[1]) / "mydata") as draft, replacing(Path(sys.argv[1]) / "lines.jsonl") as file:
    (draft / "records.jsonl").write_text("texts of patients")
    file.write(b"texts")
    file.flush()
    print("made", flush=True)
    sys.stdin.read() if len(sys.argv) > 2 else os.kill(os.getpid(), 9)
"""


def test_drafts_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path, capsys):
    arguments = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(arguments, capture_output=True).returncode == -9
    left = sorted(path.suffix for path in tmp_path.iterdir())
    assert left == [".part", ".tmp"]
    others = [tmp_path / name for name in (".mydata.abcdefgh.part", ".lines.jsonl.77.tmp", ".x.clinkd-1.txt")]
    for path in others:
        path.write_text("of another program")
    with subprocess.Popen([*arguments, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout and living.stdout.readline() == b"made\n"
        with storage.new_folder(tmp_path / "another") as draft:
            (draft / "a").write_text("a")
        drafts = [path for path in tmp_path.iterdir() if path.suffix in (".part", ".tmp") and path not in others]
        assert len(drafts) == 2, "of the living process alone"  # it had removed those of the dead one itself
        living.kill()
    capsys.readouterr()
    storage.clear_drafts(tmp_path)
    assert "removed 2 unfinished drafts of commands that were killed" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "another"])
    storage.clear_drafts(tmp_path)
    storage.clear_drafts(tmp_path / "none")
    assert capsys.readouterr().err == ""


def test_where_there_are_no_locks_no_draft_is_removed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage.fcntl, "flock", refuse)
    draft = tmp_path / ".mydata.clinkd-abcdefgh.part"
    draft.mkdir()
    (draft / "a").touch()
    with storage.new_folder(tmp_path / "mydata") as folder:
        (folder / "b").touch()
    assert draft.is_dir() and (tmp_path / "mydata/b").is_file()


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "a\rb", "\u202egnp.exe", "\x00", "\u2028", "\x7f\x08"]
)
def test_no_control_character_is_printed(text):
    shown = storage.visible(f"line {text}\n")
    assert shown.endswith("\n") and shown[:-1].isprintable() and "\\" in shown


def test_legal_text_is_printed_as_it_is():
    text = "Größe µ é 肝臓 שלום\u200f نیم\u200cفاصله 👩\u200d⚕ a\tb\r\nc\xa0d"
    assert storage.visible(text) == text
    stream = storage.VisibleStream(out := io.StringIO())
    stream.writelines(["a\x1b", "b"])
    assert out.getvalue() == "a\\x1bb" and stream.isatty() is False and storage.ungated(stream) is out


def test_progress_shows_the_controls_of_its_title(capsys):
    with storage.progress(1, "read \x1b[31m.png") as advance:
        advance(name="\x9b")
    assert "read \\x1b[31m.png" in capsys.readouterr().err


FORMULAS = [
    "=1+1",
    "+49 30",
    "-see below",
    "@SUM(A1)",
    "\t=1",
    "'=1",
    "''-1",
    "\r=1",
    "'",
    "it's",
    "'quoted'",
    "-",
    "",
    "+-1",
]


def test_texts_that_a_spreadsheet_would_compute_come_back_as_they_were(tmp_path):
    numbers = ["-1.5", "+2", "-1e-7", "0", "1,5"]
    file = tmp_path / "a.csv"
    with file.open("w", newline="") as out:
        storage.write_csv(out, [["id", "text"], *enumerate([*FORMULAS, *numbers]), [-1.5, -2]])
    with file.open(newline="") as read:
        rows = list(csv.reader(read))
    assert [storage.read_cell(row[1]) for row in rows[1:-1]] == [*FORMULAS, *numbers] and rows[-1] == ["-1.5", "-2"]
    assert not any(row[1][:1] in "=+-@\t\r" for row in rows[1:-6] if row[1]) and [r[1] for r in rows[-6:-1]] == numbers
    texts = [row.value["text"] for row in sheet_rows(file) if isinstance(row, SourceRow)]
    assert texts == [*FORMULAS, *numbers, "-2"]

"""Kills of every command that writes, at random points: after the same command again, are all files as if nothing was?

A kill is a fork that does one command in a folder like that of all others: a whole tiny run of eleven stages (or what
is left of it after so many), an import, a server with decisions being put, `ask` with a sheet, an export, pack, open.
It is killed after a random time, or just before a random one of its file operations (open for writing, rename, fsync,
unlink and others), as an audit hook sees them. Then the same command is given once more. All files, links and folders
must be those of an undisturbed command: what is left behind (a draft, a lock, a temporary file, a process) is lost.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import httpx2
import numpy as np
from benchmarks.forks import ended, fork, session_of
from benchmarks.patience import Deadline
from PIL import Image

from clinkd.cli import STOPPED, main
from clinkd.cli.outputs import ENDED
from clinkd.pipeline.graph import CACHE
from clinkd.records import BadInput
from clinkd.storage import JsonLines
from clinkd.workflows.review import FILE as DECISIONS

for module in (  # what the commands import, once for all forks
    "data.importing", "pipeline.report", "pipeline.steps", "serving.app", "serving.server", "workflows.batch",
    "workflows.export", "workflows.packing",
):  # fmt: skip
    import_module(f"clinkd.{module}")

FITS = ("model.tiny.pretrain.vision", "model.tiny.pretrain.pairs", "teacher.fit", "distill.fit", "reflect.fit")
KNOBS = (
    "threads=1", "data.workers=1", "data.phantoms.train_images=12", "data.phantoms.validation_images=3",
    "data.phantoms.test_images=3", "data.phantoms.structures=1", "data.phantoms.image_pixels=48",
    'data.phantoms.tasks=["VG","ROC"]', "model.tiny.hidden=16", "model.tiny.layers=1", "model.tiny.heads=2",
    "model.tiny.mlp=32", "model.tiny.vision_hidden=16", "model.tiny.vision_layers=1", "model.tiny.vision_heads=2",
    "model.tiny.vocabulary=300", "model.tiny.image_pixels=32", "teacher.share=0.5", "teacher.fit.rows=4",
    "distill.fit.rows=6", "reflect.fit.rows=6", "reflect.review_share=0.2", "reflect.recheck=2",
    "select.clip.epochs=1", "select.clip.rows=8", "select.clip.width=16", "answer.beams=2", "answer.candidates=2",
    "answer.max_new_tokens=4", "answer.batch=2", "evaluate.replicates=5", "evaluate.gallery=2",
    *(f"{fit}.epochs=1" for fit in FITS), *(f"{fit}.checkpoint_seconds=0" for fit in FITS),
)  # fmt: skip
COMMANDS: Mapping[str, str] = {
    "run": f"run demo --name r {' '.join(f'--set {knob}' for knob in KNOBS)}",
    "import": "data import sheet.csv --images scans --out set --copy --quarantine bad.jsonl",
    "serve": "serve r --token-file token --port",
    "ask": "ask scans --questions questions.csv --run r --out answers.csv --pictures pictures",
    "pack": "runs pack r --out r.tar",
    "export": "export --run r model",
    "open": "runs open packed.tar --runs others",
}
ORDER = ("run", "import", "serve", "ask", "pack", "export", "open", "run", "run", "run")  # of ten kills
TIDY = ("import", "pack", "export", "open")  # asked to end, these leave nothing that the whole does not have
MOST_TRIES = 12
OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate")
TIMED = ("report.html", "log.jsonl", "stage.json")  # files that tell how long something took
TOKEN = "a-token-of-a-benchmark"


# ---- a command, and where it is killed ------------------------------------------------------------------------------


class Point(NamedTuple):
    """When a command is killed: after so many seconds, or before its file operation of that number (from 1)."""

    signal: int
    seconds: float | None = None
    operation: int = 0


def do(command: str, folder: Path, trace: Path, point: Point) -> NoReturn:
    """Do a command in a folder; write each file operation to `trace`, with the seconds since the start."""
    os.chdir(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = str(trace.parent)
    _watch(folder, trace, point)
    words = COMMANDS[command].split()
    if command == "serve":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            words.append(str(free.getsockname()[1]))
        threading.Thread(target=_decide, args=(int(words[-1]), trace.with_name("acknowledged")), daemon=True).start()
    status = main(words)
    sys.exit(0 if command == "serve" and status == STOPPED else status)


def _watch(folder: Path, trace: Path, point: Point) -> None:
    """Note each file operation inside the folder, and kill this process before the one that the point names."""
    file, start, owner = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), time.monotonic(), os.getpid()
    number, guard, fsync = 0, threading.Lock(), os.fsync

    def note(what: str, place: object) -> None:
        nonlocal number
        path = os.fsdecode(place) if isinstance(place, str | bytes | os.PathLike) else ""
        if os.getpid() != owner or (path.startswith("/") and not path.startswith(f"{folder}/")):
            return
        with guard:
            number += 1
            os.write(file, f"{time.monotonic() - start:.4f} {what} {path.removeprefix(f'{folder}/')}\n".encode())
            if number == point.operation:
                os.kill(owner, point.signal)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in OPERATIONS:
            note(event.removeprefix("os."), arguments[0])
        elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            note("open", arguments[0])

    def noted_fsync(descriptor: int) -> None:
        note("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    os.fsync = noted_fsync
    sys.addaudithook(hook)


def _decide(port: int, acknowledged: Path) -> None:
    """Put a decision on every wrong answer, note those that the server acknowledged, and stop it."""
    headers, wait = {"authorization": f"Bearer {TOKEN}"}, Deadline(60)
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}/v1", headers=headers, timeout=60) as client:
        while not wait.passed():
            try:
                rounds = client.get("/about").raise_for_status().json()["run"]["rounds"]
                break
            except httpx2.TransportError:
                time.sleep(0.01)
        with acknowledged.open("a") as file:
            for round in rounds:
                answers = client.get("/corrections", params={"round": round, "limit": 100}).json()["items"]
                for number, answer in enumerate(answers):
                    verdict = "reject" if number % 2 or not answer["after"] else "accept"
                    decision = {"id": answer["id"], "round": round, "verdict": verdict}
                    client.put("/corrections", json=decision).raise_for_status()
                    print(json.dumps([round, answer["id"]]), file=file, flush=True)
    os.kill(os.getpid(), signal.SIGINT)


# ---- what is compared -----------------------------------------------------------------------------------------------


def digest(folder: Path) -> dict[str, str]:
    """What is at each path of a folder, apart from times: of a file its checksum, of a link where it points."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "tensorboard" in path.parts:
            continue
        if path.is_symlink():
            what = f"link to {path.readlink()}"
        else:
            what = "folder" if path.is_dir() else hashlib.sha256(_read_for_digest(path)).hexdigest()
        found[path.relative_to(folder).as_posix()] = what
    return found


def _read_for_digest(path: Path) -> bytes:
    try:
        return _without_times(path)
    except (ValueError, tarfile.TarError):  # cut by the kill
        return path.read_bytes()


def _without_times(path: Path) -> bytes:
    if path.name == "report.html":  # it tells how long each stage took
        return b""
    if path.name == "r.tar":  # its manifest bears the time of packing
        with tarfile.open(path) as tar:
            members = [(m.name, hashlib.sha256(tar.extractfile(m).read()).hexdigest()) for m in tar]  # type: ignore[union-attr]
        return json.dumps(members).encode()
    if path.name == "log.jsonl":  # of a step that was done again, the last line counts
        lines = [line for line in JsonLines(path).read() if "step" in line]
        return json.dumps({r["step"]: [r.get("loss"), r.get("grad_norm")] for r in lines}, sort_keys=True).encode()
    if path.name == "manifest.json":
        listed = json.loads(path.read_bytes())["files"]
        return json.dumps({k: v for k, v in listed.items() if not k.endswith(TIMED)}, sort_keys=True).encode()
    if path.name != "stage.json":
        return path.read_bytes()
    record = json.loads(path.read_bytes())
    record["recorded"] = {k: v for k, v in record["recorded"].items() if "seconds" not in str(v)}
    if isinstance(record.get("files"), dict):  # with their sizes
        record["files"] = {k: v for k, v in record["files"].items() if not k.endswith(TIMED)}
    for key in ("seconds", "attempts", "started", "finished"):
        record.pop(key)
    return json.dumps(record, sort_keys=True).encode()


def find_differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    more = found.keys() - wanted.keys()
    left = [f"left behind: {path}" for path in more if os.path.dirname(path) not in more]
    others = [path for path, what in wanted.items() if found.get(path) != what]
    return sorted([*left, *(f"{'differs' if path in found else 'missing'}: {path}" for path in others)])


# ---- the kills ------------------------------------------------------------------------------------------------------


class Whole(NamedTuple):
    """An undisturbed command: what it leaves, and each file operation with its seconds."""

    digest: Mapping[str, str]
    operations: Sequence[tuple[float, str]]
    seconds: float


class Yard:
    """A folder in which commands are killed, always at the same path."""

    def __init__(self, scratch: Path) -> None:
        self.folder, self.finished, self.bare = (scratch / name for name in ("here", "finished", "bare"))
        self.log, self.temporary = scratch / "said.txt", scratch / "temporary"
        self.trace, self.acknowledged = (self.temporary / name for name in ("trace", "acknowledged"))
        self.wholes: dict[str, Whole] = {}
        _make_inputs(self.bare)

    def lay(self, command: str, stages: int = 0) -> None:
        """Put into the folder what the command needs; of a run, its first stages."""
        packed = self.packed if command == "open" else None
        for folder in (self.folder, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
        self.temporary.mkdir()
        fresh = command == "run" and not stages
        shutil.copytree(self.bare if fresh or command == "import" else self.finished, self.folder, symlinks=True)
        if packed:
            shutil.copy2(packed, self.folder / "packed.tar")
        if command == "run" and stages:
            for name in self.stages[stages:]:
                (self.folder / "runs" / "r" / "stages" / name).unlink()
                shutil.rmtree(next((self.folder / "runs" / CACHE).glob(f"{name}-*")))

    def start(self, command: str, point: Point) -> int:
        return fork(partial(do, command, self.folder, self.trace, point), self.log)

    def whole(self, command: str) -> Whole:
        """The same command undisturbed, done at the first use."""
        if command not in self.wholes:
            if command not in ("run", "import"):
                self.whole("run")
            self.lay(command)
            start = time.monotonic()
            if status := ended(self.start(command, Point(signal.SIGKILL))):
                raise SystemExit(f"{self.log.read_text()}\n{command}: exit status {status}")
            took = time.monotonic() - start
            lines = (line.partition(" ") for line in self.trace.read_text().splitlines())
            self.wholes[command] = Whole(digest(self.folder), [(float(s), what) for s, _, what in lines], took)
            if command == "run":
                shutil.copytree(self.folder, self.finished, symlinks=True)
        return self.wholes[command]

    @cached_property
    def packed(self) -> Path:
        """A packed run, made by the command itself."""
        self.lay("pack")
        assert ended(self.start("pack", Point(signal.SIGKILL))) == 0
        return Path(shutil.move(self.folder / "r.tar", self.finished.with_name("packed.tar")))

    @cached_property
    def stages(self) -> list[str]:
        """The names of the run's stages, in order."""
        record = json.loads((self.finished / "runs" / "r" / "run.json").read_text())
        return [stage["name"] for stage in record["stages"]]

    def kill(self, number: int, seed: int) -> dict[str, Any]:
        """Kill number so-and-so: what was killed where, and what was lost. Number and seed decide all but the clock."""
        rng, command = random.Random(f"{seed} {number}"), ORDER[number % len(ORDER)]
        stages = rng.randrange(len(self.stages)) if command == "run" and rng.random() < 0.8 and self.whole("run") else 0
        point = self._choose_point(rng, self.whole(command), self.stages[stages] if stages else "")
        for _ in range(MOST_TRIES):
            self.lay(command, stages)
            before = digest(self.folder)
            if status := self._hit(self.start(command, point), point):
                break
            # it was done before: half as late
            point = point._replace(seconds=point.seconds and point.seconds / 2, operation=(point.operation + 1) // 2)
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        hit = {
            "kill": number, "command": command, "stages": stages, **point._asdict(), "status": status,
            "at": lines[-1].partition(" ")[2] if lines else "the start",
        }  # fmt: skip
        return {**hit, "lost": self._find_losses(command, point, status, before)}

    def _choose_point(self, rng: random.Random, whole: Whole, stage: str) -> Point:
        """A point of the command, or of a run from that stage on."""
        begun = next((n for n, (_, what) in enumerate(whole.operations) if stage and f"{CACHE}/{stage}-" in what), 0)
        chosen = signal.SIGTERM if rng.random() < 0.25 else signal.SIGKILL
        if rng.random() < 0.5:
            return Point(chosen, rng.uniform(0, whole.seconds - (whole.operations[begun][0] if begun else 0)))
        return Point(chosen, None, 1 + rng.randrange(len(whole.operations) - begun))

    def _hit(self, pid: int, point: Point) -> int:
        if point.seconds is not None:
            time.sleep(point.seconds)
            os.kill(pid, point.signal)  # its status waits to be read, so no other process has its number
        status = ended(pid)
        wait = Deadline(30)
        while (left := session_of(pid)) and not wait.passed():
            time.sleep(0.01)
        for process in left:
            os.kill(process, signal.SIGKILL)
        return status if not left else -signal.SIGALRM

    def _find_losses(self, command: str, point: Point, status: int, before: Mapping[str, str]) -> list[str]:
        wanted, found = self.whole_digest(command), digest(self.folder)
        if status not in (-point.signal, *([ENDED] if point.signal == signal.SIGTERM else [])):
            return [f"exit status {status} for the signal, or a process lived on"]
        if status == ENDED and command in TIDY and (left := found.keys() - before.keys() - wanted.keys()):
            return [f"left behind by SIGTERM: {path}" for path in sorted(left)]
        if command == "serve" and self.acknowledged.exists():
            kept = [(r["round"], r["id"]) for r in JsonLines(self.folder / "runs" / "r" / DECISIONS).read()]
            done = [tuple(json.loads(line)) for line in self.acknowledged.read_text().splitlines()]
            if gone := [f"decision {key}" for key in done if key not in kept]:
                return gone
        if found == wanted:
            return []
        again = ended(self.start(command, Point(signal.SIGKILL)))
        lost = find_differences(digest(self.folder), wanted)
        # what was done already may be refused, if nothing is left behind
        return [f"again: exit status {again}", *lost] if again and lost else lost

    def whole_digest(self, command: str) -> Mapping[str, str]:
        return self.whole(command).digest


def _make_inputs(folder: Path) -> None:
    """Images, a sheet with a bad row, a sheet of questions, and a token."""
    (folder / "scans").mkdir(parents=True)
    names = [f"scan{n}.png" for n in range(6)]
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "scans" / name)
    rows = [{"image": name, "question": "Where is the liver?"} for name in names]
    _write_sheet(folder / "questions.csv", rows)
    rows = [{**row, "answer": f"On side {n}.", "modality": "ct"} for n, row in enumerate(rows)]
    _write_sheet(folder / "sheet.csv", [*rows, {**rows[0], "image": "none.png"}])
    (folder / "token").write_text(TOKEN)


def _write_sheet(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def kills(
    scratch: Path, number: int, seed: int, out: Path | None = None, only: int | None = None
) -> list[dict[str, Any]]:
    """All kills from 0 on, or one alone. Finished ones are lines of `out`, and are not done again.

    Raises BadInput where `out` is of another seed.
    """
    done: dict[int, dict[str, Any]] = {}
    with JsonLines(out or scratch / "kills.jsonl") as lines:
        for line in lines.read():
            if line["seed"] != seed:  # else its kills would pass for these
                raise BadInput(
                    f"{out}: its kills are of seed {line['seed']}; give --seed {line['seed']}, or another --out"
                )
            done[line["kill"]] = line
        yard = Yard(scratch / "yard")
        for at in [only] if only is not None else range(number):
            if at not in done:
                done[at] = {"seed": seed, **yard.kill(at, seed)}
                lines.append(done[at])
                if done[at]["lost"]:
                    print(json.dumps(done[at]), file=sys.stderr, flush=True)
    return [done[at] for at in ([only] if only is not None else range(number))]

"""What comes back after kills, faults and damage: of everything that was tried, how much ended with the same bits.

    python -m benchmarks.crashes [--json] [--kills 100] [--damages 100] [--every 1] [--seed 0] [--only PART ...]
    python -m benchmarks.crashes --only kills --kills 1000 --seed 0 --out kills.jsonl   # goes on after Ctrl-C
    python -m benchmarks.crashes --only kills --kill 17 --seed 0                        # that one alone

kills     SIGKILL and SIGTERM at random points of every command that writes; then the same command again (`kills.py`).
stops     SIGTERM at random points of a teacher and a distillation, with no checkpoint but the one that the stop makes.
faults    Every write, fsync, rename and deletion of a save fails once: by an error, by the end of the process, and by
          a power cut that takes along all that was not yet on the disk.
damages   Flipped bits, changed bytes and cuts at random places of every file of a checkpoint.

Everything runs in forks of one process that has imported all and computed nothing, on a model of a few thousand
parameters, two threads, a checkpoint after each step. Exit status 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.utils.tensorboard
from benchmarks.forks import PATIENCE_SECONDS, ended, fork
from benchmarks.kills import kills
from benchmarks.patience import Deadline
from benchmarks.report import Row, add_outputs, show

from clinkd.cli import STOPPED
from clinkd.cli.outputs import ENDED, end_in_order
from clinkd.config import (
    DataConfig,
    DistillConfig,
    FitConfig,
    ModelConfig,
    PhantomConfig,
    RunConfig,
    TeacherConfig,
    TinyConfig,
)
from clinkd.objectives import CrossEntropy
from clinkd.pipeline.graph import CACHE, execute
from clinkd.pipeline.models import load_model
from clinkd.pipeline.prepared import read_data, read_split
from clinkd.pipeline.stages import plan
from clinkd.records import BadInput
from clinkd.storage import Manifest
from clinkd.training import FitRun, checkpoint, fit
from clinkd.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint

PARTS = ("kills", "stops", "faults", "damages")
FAULTY_STEP = 3  # the save that breaks: two checkpoints lie there, and one of them is to be deleted
HOWS = ("error", "crash", "power")
TINY = TinyConfig(
    hidden=16, layers=1, heads=2, mlp=32, vision_hidden=16, vision_layers=1, vision_heads=2, vocabulary=400
)
PHANTOMS = PhantomConfig(train_images=36, validation_images=2, test_images=2)
FIT = FitConfig(epochs=4, rows=24, questions=2, optimizer="muon", checkpoint_seconds=0)  # 6 steps, two lanes
SHORT = FitConfig(epochs=0.4, rows=4, questions=1, optimizer="muon", checkpoint_seconds=0)  # 4 steps


def config(fit: FitConfig) -> RunConfig:
    return RunConfig(
        threads=2,
        data=DataConfig(phantoms=PHANTOMS, workers=1),
        model=ModelConfig(tiny=TINY),
        teacher=TeacherConfig(share=0.99, fit=fit),
        distill=DistillConfig(fit=fit),
        reflect=None,
    )


# ---- runs to train ---------------------------------------------------------------------------------------------------


class Shop:
    """A folder of runs whose data and base are made; copies of it are trained, killed and compared."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.log = scratch, scratch / "said.txt"

    @cached_property
    def template(self) -> Path:
        folder = self.scratch / "template"
        self.must(lambda: train(folder, FIT, ("prepare", "base")))
        return folder

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.template, self.scratch / name, symlinks=True))

    def must(self, todo: Callable[[], object]) -> None:
        if status := ended(fork(todo, self.log)):
            raise SystemExit(f"{self.log.read_text()}\nexit status {status}")

    def whole(self, fit: FitConfig) -> tuple[str, float]:
        """Digest of an uninterrupted run, and its seconds."""
        folder, start = self.copy("whole"), time.monotonic()
        self.must(lambda: train(folder, fit))
        took, found = time.monotonic() - start, digest(folder)
        shutil.rmtree(folder)
        return found, took


def train(folder: Path, fit: FitConfig, names: Sequence[str] = ("prepare", "base", "teacher", "distill")) -> None:
    execute([s for s in plan(config(fit)) if s.name in names], folder / "run")


def digest(folder: Path) -> str:
    """Of the weights that teacher and distillation left."""
    found = hashlib.sha256()
    for name in ("teacher", "distill"):
        for path in sorted((folder / "run" / "stages" / name / "model").glob("*.safetensors")):
            found.update(path.read_bytes())
    return found.hexdigest()


# ---- kills and stops ------------------------------------------------------------------------------------------------


def kill_rows(scratch: Path, args: argparse.Namespace) -> list[Row]:
    """Of each command that was killed."""
    done = kills(scratch, args.kills, args.seed, args.out, args.kill)
    tried, recovered = Counter(k["command"] for k in done), Counter(k["command"] for k in done if not k["lost"])
    return [Row(f"kills of `{c}` at random points", recovered[c], tried[c], "tried", "kills") for c in tried]


def stops(shop: Shop, number: int, seed: int) -> list[Row]:
    rare = FIT.model_copy(update={"checkpoint_seconds": 1e9, "epochs": 2 * FIT.epochs})
    wanted, took = shop.whole(rare)
    draw, recovered = random.Random(seed), 0

    def stoppable(at: Path) -> None:
        end_in_order()
        train(at, rare)

    for _ in range(number):
        folder = shop.copy("stopped")
        stage = draw.choice(("teacher", "distill"))
        pid = fork(partial(stoppable, folder), shop.log)
        deadline = Deadline(PATIENCE_SECONDS)
        while not list(folder.glob(f"{CACHE}/{stage}-*.part/fit-*/log.jsonl")) and not deadline.passed():
            time.sleep(0.002)
        time.sleep(draw.uniform(0, took / 10))  # the fit that has just begun takes more than twice as long
        os.kill(pid, signal.SIGTERM)
        in_order = ended(pid) == ENDED
        saved = len(list(folder.glob(f"{CACHE}/{stage}-*.part/fit-*/step-*")))
        same = ended(fork(partial(train, folder, rare), shop.log)) == 0 and digest(folder) == wanted
        recovered += in_order and saved == 1 and same
        shutil.rmtree(folder)
    return [Row("SIGTERM at random points: saved, status 143, same bits", recovered, number, "tried", "stops")]


# ---- faults ---------------------------------------------------------------------------------------------------------


class Disk:
    """Counts what a save asks of the system, and lets operation number `at` fail.

    A power cut takes along what no fsync has put on the disk: the bytes of a file, a new name in a folder.
    """

    def __init__(self, folder: Path, at: int = 0, how: str = "error") -> None:
        self.folder, self.at, self.how = folder, at, how
        self.done: list[str] = []
        self.synced: set[int] = {p.stat().st_ino for p in folder.rglob("*")}
        self.renamed: list[tuple[Path, Path]] = []

    def before(self, what: str, path: object, tear: Callable[[], object] = lambda: None) -> None:
        self.done.append(f"{what} {Path(os.fsdecode(path)).name}" if isinstance(path, str | Path) else what)
        if len(self.done) == self.at:
            tear()
            self.fail()

    def fail(self) -> None:
        if self.how == "error":
            raise OSError(errno.EIO, "a fault was put here")
        if self.how == "power":
            self.cut()
        os._exit(0)

    def cut(self) -> None:
        for source, target in reversed(self.renamed):
            REAL["rename"](target, source)
        for path in self.folder.rglob("*"):
            if path.is_file() and path.stat().st_ino not in self.synced:
                os.truncate(path, path.stat().st_size // 2)

    def fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.before("fsync", path)
        REAL["fsync"](descriptor)
        self.synced.add(os.fstat(descriptor).st_ino)
        self.renamed = [(s, t) for s, t in self.renamed if t.parent != path]

    def rename(self, source: Path, target: Path) -> None:
        self.before("rename", target)
        REAL["rename"](source, target)
        self.renamed.append((Path(source), Path(target)))

    def open(self, path: Path, mode: str = "r", *more: Any, **others: Any) -> Any:
        file = REAL["open"](path, mode, *more, **others)
        return _Torn(self, file) if set(mode) & set("wax+") else file

    def save_file(self, tensors: dict[str, torch.Tensor], path: Path) -> None:
        REAL["save_file"](tensors, path)
        self.before("write", path, lambda: os.truncate(path, path.stat().st_size // 2))

    def named(self, what: str) -> Callable[..., None]:
        def call(path: Any, *more: Any, **others: Any) -> None:
            self.before(what, path)
            REAL[what](path, *more, **others)

        return call

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        shims: dict[str, Any] = {"fsync": self.fsync, "rename": self.rename, "replace": self.rename}
        shims |= {what: self.named(what) for what in ("mkdir", "unlink", "rmdir")}
        for name, shim in shims.items():
            setattr(os, name, shim)
        io.open, checkpoint.save_file = self.open, self.save_file
        try:
            yield
        finally:
            for name in shims:
                setattr(os, name, REAL[name])
            io.open, checkpoint.save_file = REAL["open"], REAL["save_file"]


REAL: dict[str, Any] = {n: getattr(os, n) for n in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")}
REAL |= {"open": io.open, "save_file": checkpoint.save_file}


class _Torn:
    """A file of which a failing write takes half."""

    def __init__(self, disk: Disk, file: Any) -> None:
        self.disk, self.file = disk, file

    def write(self, data: bytes) -> int:
        def tear() -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.disk.before("write", self.file.name, tear)
        written: int = self.file.write(data)
        return written

    def __enter__(self) -> _Torn:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class Broken(NamedTuple):
    """A save that failed at an operation, and whether the folder came back."""

    what: str
    how: str
    recovered: bool


class Bench:
    """The base and its samples, fitted for a few steps as often as wanted."""

    def __init__(self, shop: Shop) -> None:
        torch.set_num_threads(1)  # it forks after it computed: no pool of threads may be lost in that
        found = {s: next(shop.template.glob(f"{CACHE}/{s}-*")) for s in ("prepare", "base")}
        opened, _ = read_data(found["prepare"])
        self.samples = read_split(found["prepare"], "train")
        self.model = load_model(found["base"], opened)
        self.start = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def fit(self, folder: Path) -> str:
        """Digest of the weights it ends with."""
        self.model.load_state_dict(self.start)
        fit(self.model, self.samples, CrossEntropy(), SHORT, FitRun(folder, 0, "short"))
        found = hashlib.sha256()
        for parameter in self.model.parameters():
            found.update(parameter.detach().numpy().tobytes())
        return found.hexdigest()


def faults(shop: Shop, every: int) -> list[Row]:
    file = shop.scratch / "faults.json"
    shop.must(lambda: file.write_text(json.dumps(_faults(shop, every))))
    found = [Broken(*entry) for entry in json.loads(file.read_text())]
    rows = []
    for how, words in zip(HOWS, ("an error", "the end of the process", "a power cut"), strict=True):
        mine = [b for b in found if b.how == how]
        for lost in (b for b in mine if not b.recovered):
            print(f"lost: operation {lost.what}, {how}", file=sys.stderr)
        recovered = sum(b.recovered for b in mine)
        rows.append(Row(f"{words} at each operation of a save", recovered, len(mine), "tried", "faults"))
    return rows


def _faults(shop: Shop, every: int) -> list[Broken]:
    bench = Bench(shop)
    wanted = bench.fit(shop.scratch / "whole")
    folder = shop.scratch / "parts"
    save = _stopped_at_save(bench, folder)
    dry = Disk(Path(shutil.copytree(folder, shop.scratch / "dry")))
    with dry.mounted():
        save(dry.folder)
    broken = []
    for at, what in list(enumerate([*dry.done, "the end"], start=1))[::-every]:
        for how in HOWS:
            copy = Path(shutil.copytree(folder, shop.scratch / "broken"))
            _break(copy, at, how, save)
            sound = _two_sound(copy)
            same = bench.fit(copy) == wanted and not list(copy.glob("damaged-*")) and not list(copy.glob(".step-*"))
            broken.append(Broken(f"{at}, {what}", how, sound and same))
            shutil.rmtree(copy)
    return broken


def _stopped_at_save(bench: Bench, folder: Path) -> Callable[[Path], None]:
    """Leave the folder as it is before the save that is to break, and give that save, to be done in any folder."""
    loop = sys.modules["clinkd.training.fit"]
    given: list[Any] = []

    class Enough(Exception):
        pass

    def save(folder: Path, step: int, *more: Any) -> None:
        if step == FAULTY_STEP:
            given.extend(deepcopy(more))  # together, as the optimisers hold the parameters
            raise Enough
        save_checkpoint(folder, step, *more)

    setattr(loop, "save_checkpoint", save)  # noqa: B010 - a module is not known to have it
    with contextlib.suppress(Enough):
        bench.fit(folder)
    setattr(loop, "save_checkpoint", save_checkpoint)  # noqa: B010
    return lambda at: save_checkpoint(at, FAULTY_STEP, *given)


def _break(copy: Path, at: int, how: str, save: Callable[[Path], None]) -> None:
    pid = os.fork()
    if not pid:
        disk = Disk(copy, at, how)
        with contextlib.suppress(OSError), disk.mounted():
            save(copy)
            if how == "power":
                disk.cut()
        os._exit(len(disk.done) < at - 1)  # else a fault that was never met would pass for one survived
    if ended(pid):
        raise RuntimeError(f"{copy}: the save did not fail as it was to")


def _two_sound(folder: Path) -> bool:
    """At least two checkpoints, and all of them verify."""
    found = checkpoints(folder)
    try:
        for each in found:
            Manifest.verify(each)
    except BadInput as error:
        print(error, file=sys.stderr)
        return False
    return len(found) >= checkpoint.KEPT


# ---- damages --------------------------------------------------------------------------------------------------------


def damages(shop: Shop, number: int, seed: int) -> list[Row]:
    file = shop.scratch / "damages.json"
    shop.must(lambda: file.write_text(json.dumps(_damages(shop, number, random.Random(seed)))))
    found = json.loads(file.read_text())
    return [
        Row(f"{what} in a checkpoint's files", sum(f[what] for f in found), len(found), "tried", "damages")
        for what in ("flipped bit", "changed byte", "cut")
    ]


def _damages(shop: Shop, number: int, draw: random.Random) -> list[dict[str, bool]]:
    """For every file, so many times each: was it told, and the checkpoint before taken?"""
    bench = Bench(shop)
    folder = shop.scratch / "damaged"
    bench.fit(folder)
    newest = checkpoints(folder)[-1]
    return [
        {what: _noticed(folder, path, damage) for what, damage in _damage(path.read_bytes(), draw).items()}
        for path in sorted(newest.iterdir())
        for _ in range(number)
    ]


def _damage(good: bytes, draw: random.Random) -> dict[str, bytes]:
    at = draw.randrange(len(good))

    def changed(by: int) -> bytes:
        return good[:at] + bytes([good[at] ^ by]) + good[at + 1 :]

    return {
        "flipped bit": changed(1 << draw.randrange(8)),
        "changed byte": changed(draw.randrange(1, 256)),
        "cut": good[:at],
    }


def _noticed(folder: Path, path: Path, damaged: bytes) -> bool:
    good, model, before = path.read_bytes(), torch.nn.Module(), checkpoints(folder)[-2]
    path.write_bytes(damaged)
    with contextlib.suppress(Exception):
        load_checkpoint(folder, model, [], {})
    aside = path.parent.with_name(f"damaged-{path.parent.name}")
    noticed = aside.is_dir() and before.is_dir()
    if aside.is_dir():
        aside.rename(path.parent)
    path.write_bytes(good)
    return noticed


# ---- all ------------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damages", type=int, default=100, help="of each kind for each file")
    parser.add_argument("--every", type=int, default=1, help="break each so-many-th operation of a save, the last too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a line a finished kill; with it, the rest is done later"
    )
    parser.add_argument("--kill", type=int, metavar="N", help="kill N of this seed alone")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    add_outputs(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clinkd-crashes-") as scratch:
        print(f"seed {args.seed}", file=sys.stderr)
        shop = Shop(Path(scratch))
        todo: dict[str, Callable[[], list[Row]]] = {
            "kills": lambda: kill_rows(Path(scratch), args),
            "stops": lambda: stops(shop, max(1, args.kills // 10), args.seed),
            "faults": lambda: faults(shop, args.every),
            "damages": lambda: damages(shop, args.damages, args.seed),
        }
        try:
            rows = [row for part in args.only for row in todo[part]()]
        except KeyboardInterrupt:
            print(f"stopped{'; the same command goes on' if args.out else ''}", file=sys.stderr)
            return STOPPED
        lost = any(row.ours != row.rival for row in rows)
        if lost and shop.log.exists():
            print(shop.log.read_text()[-5000:], file=sys.stderr)
    show(rows, args)
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())

"""A run as a graph of cached stages: identity, resumable drafts, locks, and why a stage would run again.

A stage works in `.stages/NAME-IDENTITY.part`, which is renamed to `.stages/NAME-IDENTITY` when it is done. A crash
leaves the draft, and the next run of the same stage goes on in it. Runs that share a stage share its folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from clinkd import distributed
from clinkd.records import BadInput
from clinkd.settings import Knobs, complete, differences, without_defaults
from clinkd.storage import naming_full_disk, publish, read_json, spell_seconds, write_json
from clinkd.version import __version__

CACHE = ".stages"  # inside the folder of all runs
RECORD = "stage.json"
HEARTBEAT_SECONDS = 2.0  # what a kill -9 can lose of a stage's clock
_KEYS_OF_0_1 = {  # what stages of version 0.1.0 recorded, and the key of it today
    "bare pairs": "bare_pairs",
    "empty, truth kept": "empty",
    "gain on validation over the first beam": "validation_gain",
    "left out": "left_out",
    "pseudo-labels": "pseudo_labels",
    "shown to the CLIP": "clip_inputs",
    "stored samples": "stored_samples",
    "stored teacher": "stored_teacher",
    "tasks reordered": "reordered_tasks",
    "token limit": "token_limit",
    "too long": "too_long",
    "trained parameters": "trained_parameters",
    "truths overruled by a person": "overruled_truths",
}


@dataclass(frozen=True)
class Stage:
    """One step of a run: `work` fills a folder from the folders of the stages it `needs`.

    `config` is all that decides the result beside `seed`, the needs and `version`, which is raised when the code of
    the stage, or a default among its knobs, comes to do something else; `knobs` is the group by whose names and
    defaults it is read. `work` imports what is heavy only when it is called. Where several processes do the run
    (`clinkd.distributed`), those beside the main one take part in the stages done `collective`.
    """

    name: str
    version: int
    config: Knobs | Mapping[str, Any]
    needs: tuple[Stage, ...]
    work: Callable[[StageContext], None] = field(compare=False)
    seed: int = 0
    together: bool = field(default=False, compare=False)
    knobs: type[Knobs] | None = field(default=None, compare=False)

    @cached_property
    def identity(self) -> str:
        """Twelve hexadecimal digits that are equal exactly where the result is to be the same.

        What equals its default is left out, so a new knob that does nothing changes no identity.
        """
        needs = {need.name: need.identity for need in self.needs}
        described = {**_described(self), "config": self.essence(_described(self)["config"]), "needs": needs}
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]

    def essence(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the result in a stored `config` of this stage, perhaps of an older version: no defaults."""
        group = self._group
        return without_defaults(complete(config, group), group)

    def completed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A stored `config` of this stage with every knob of today."""
        return complete(config, self._group)

    @property
    def _group(self) -> type[Knobs]:
        return self.knobs or (type(self.config) if isinstance(self.config, Knobs) else Knobs)

    @property
    def key(self) -> str:
        """The name of the stage's folder in the cache."""
        return f"{self.name}-{self.identity}"


def _described(stage: Stage) -> dict[str, Any]:
    """What decides a stage's result, its needs aside, as it reads back from JSON."""
    plain = {"name": stage.name, "version": stage.version, "seed": stage.seed, "config": _plain(stage.config)}
    described: dict[str, Any] = json.loads(json.dumps(plain, allow_nan=False))
    return described


def _plain(value: Any) -> Any:
    if isinstance(value, Knobs):
        return value.identity()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class StageContext:
    """What a stage's `work` is given: the draft `folder` (as an earlier attempt left it), the finished folders of its
    needs by name, the seed, and `record`, which keeps a JSON value under a key of `stage.json` (of the main process).
    """

    folder: Path
    inputs: Mapping[str, Path]
    seed: int
    record: Callable[[str, Any], None]


State = Literal["done", "partial", "missing"]


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Where a stage stands. `seconds` are those really spent on it, over all attempts, in whichever run."""

    name: str
    identity: str
    state: State
    seconds: float
    folder: Path  # finished, or as it will be


def described(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The stages as plain values for `run.json`, with what `status` and `why` ask for."""
    return [
        {**_described(s), "identity": s.identity, "needs": {need.name: need.identity for need in s.needs}}
        for s in stages
    ]


def status(described_stages: Sequence[Mapping[str, Any]], cache: Path) -> list[StageStatus]:
    """How far each stage of a run (as of `described`) has come, in order."""
    return [_status(s["name"], s["identity"], cache / f"{s['name']}-{s['identity']}") for s in described_stages]


def _status(name: str, identity: str, folder: Path) -> StageStatus:
    draft = draft_of(folder)
    state: State = "done" if folder.is_dir() else "partial" if (draft / RECORD).is_file() else "missing"
    seconds = stage_record(folder if state == "done" else draft)["seconds"] if state != "missing" else 0.0
    return StageStatus(name, identity, state, seconds, folder)


def older_folder(stage: Stage, inputs: Mapping[str, Path], cache: Path) -> Path | None:
    """The folder, finished or a draft, in which an older version did the same under another identity, if there is one.

    The same is: seed, version of the code, the knobs by today's names and defaults, and the needs by their `inputs`.
    """
    ours = _described(stage)
    needs = {name: folder.resolve().name for name, folder in inputs.items()}
    drafts_last = sorted(cache.glob(f"{stage.name}-*/{RECORD}"), key=lambda path: path.parent.suffix == ".part")
    for folder in (path.parent for path in drafts_last):
        try:
            record = stage_record(folder)
            same = all(record[key] == ours[key] for key in ("name", "seed", "version"))
            same &= {name: f"{name}-{identity}" for name, identity in record["needs"].items()} == needs
            if same and stage.essence(record["config"]) == stage.essence(ours["config"]):
                return folder.resolve()
        except (BadInput, KeyError, AttributeError):
            continue  # none that could be taken over
    return None


def _take_over(stage: Stage, inputs: Mapping[str, Path], folder: Path) -> None:
    """Let `folder`, where it is neither finished nor begun, be what an older version did of the same stage."""
    older = None if folder.is_dir() or draft_of(folder).is_dir() else older_folder(stage, inputs, folder.parent)
    if older is None:
        return
    if older.suffix != ".part":
        link(folder, older)
        return
    with _lock(older.with_suffix(".lock"), stage.name), naming_full_disk(folder):
        older.rename(draft_of(folder))
    older.with_suffix(".lock").unlink(missing_ok=True)


def lineage(finished: Mapping[str, Path]) -> dict[str, Path]:
    """The given finished stages and all that led to them, by name, each after what it needs."""
    found: dict[str, Path] = {}

    def follow(name: str, folder: Path) -> None:
        if name in found or not (folder / RECORD).is_file():
            return
        for need, identity in read_json(folder / RECORD).get("needs", {}).items():
            follow(need, folder.parent / f"{need}-{identity}")
        found[name] = folder

    for name, folder in finished.items():
        follow(name, folder)
    return found


def stage_record(folder: Path) -> dict[str, Any]:
    """The `stage.json` of a stage's folder: name, identity, config, needs, seconds, attempts, started, finished,
    versions, recorded. Keys of `recorded` are those of today. Raises BadInput where it cannot be read."""
    record: dict[str, Any] = read_json(folder / RECORD)
    return {**record, "recorded": _rename_keys(record.get("recorded", {}))}


def _rename_keys(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {_KEYS_OF_0_1.get(key, key): _rename_keys(inner) for key, inner in value.items()}


def draft_of(folder: Path) -> Path:
    """Where a stage works before its folder is finished."""
    return folder.with_name(folder.name + ".part")


def execute(stages: Sequence[Stage], run_folder: Path) -> dict[str, Path]:
    """Do every stage that is not done yet, in order, and return the finished folders by name.

    Finished stages are taken from `run_folder/../.stages`; links to them are kept in `run_folder/stages`. A stage at
    which another process is working is waited for, if it is not of the same crew: in that the main process has the
    lock, and the others follow it. Ctrl-C or a kill leave a draft with which the next call goes on.
    Raises BadInput on a full disk, and whatever a stage raises; distributed.Left where another process is gone.
    """
    cache = run_folder.parent / CACHE
    distributed.on_main_process(lambda: _make(cache))
    finished: dict[str, Path] = {}
    for number, stage in enumerate(stages, start=1):
        assert all(need.name in finished for need in stage.needs), f"{stage.name} comes before what it needs"
        assert stage.name not in finished, f"two stages are called {stage.name}"
        inputs = {need.name: finished[need.name] for need in stage.needs}
        finished[stage.name] = folder = cache / stage.key
        if distributed.is_main():
            _take_over(stage, inputs, folder)
            _finish(stage, inputs, folder, f"[{number}/{len(stages)}] {stage.name}")
            link(run_folder / "stages" / stage.name, folder)
            distributed.broadcast_object((stage.key, True))
        else:
            _follow(stage, inputs, folder)
    return finished


def _make(cache: Path) -> None:
    with naming_full_disk(cache):
        cache.mkdir(parents=True, exist_ok=True)


def _follow(stage: Stage, inputs: Mapping[str, Path], folder: Path) -> None:
    """What a process beside the main one does about a stage: what it is told."""
    done = False
    while not done:
        key, done = distributed.broadcast_object(("", True))
        if key != stage.key:
            raise BadInput(f"{stage.key}: process 0 is at {key}; all processes must get the same config and data")
        place = folder if done else draft_of(folder)
        if not place.is_dir():
            raise BadInput(f"{place}: not to be seen here; all processes must share the folder of runs")
        if not done:
            with distributed.collective():
                stage.work(StageContext(place, dict(inputs), stage.seed, lambda key, value: None))


def _finish(stage: Stage, inputs: Mapping[str, Path], folder: Path, title: str) -> None:
    if not folder.is_dir():
        lock = folder.with_name(folder.name + ".lock")
        with _lock(lock, title):
            if not folder.is_dir():  # else another process did it while this one waited
                _do(stage, inputs, folder, title)
                lock.unlink()  # who waits on the removed file, or makes it again, then finds the finished folder
                return
    record = stage_record(folder)
    if f"{stage.name}-{record.get('identity')}" != folder.resolve().name:
        raise BadInput(f"{folder}: holds something else than its name says; remove it to make it anew")
    _say(f"{title}: done before, in {spell_seconds(record['seconds'])}")


def _do(stage: Stage, inputs: Mapping[str, Path], folder: Path, title: str) -> None:
    draft = draft_of(folder)
    with naming_full_disk(draft):
        draft.mkdir(exist_ok=True)
        clock = _Clock(stage, draft)
        if not clock.finished:
            _say(f"{title}: {'going on with a draft' if clock.attempts > 1 else 'start'}")
            with clock.running():
                if stage.together:
                    distributed.broadcast_object((stage.key, False))
                with distributed.collective():
                    stage.work(StageContext(draft, dict(inputs), stage.seed, clock.record))
            clock.finish()
        publish(draft, folder)
    _say(f"{title}: done in {spell_seconds(clock.seconds())}")


class _Clock:
    """Keeps `stage.json` of a draft: the seconds of all attempts, killed ones too, and what the stage records."""

    def __init__(self, stage: Stage, draft: Path) -> None:
        self.path = draft / RECORD
        known = stage_record(draft) if self.path.is_file() else {}
        self.kept: dict[str, Any] = {
            **described([stage])[0],
            "seconds": known.get("seconds", 0.0),
            "attempts": known.get("attempts", 0) + (known.get("finished") is None),
            "started": known.get("started", _now()),
            "finished": known.get("finished"),
            "versions": versions(),
            "recorded": known.get("recorded", {}),
        }
        self.before: float = self.kept["seconds"]
        self.since: float | None = None
        self.guard = threading.Lock()

    @property
    def finished(self) -> bool:
        return self.kept["finished"] is not None

    @property
    def attempts(self) -> int:
        attempts: int = self.kept["attempts"]
        return attempts

    def seconds(self) -> float:
        return self.before + (time.monotonic() - self.since if self.since is not None else 0.0)

    def record(self, key: str, value: Any) -> None:
        json.dumps(value, allow_nan=False)  # a value that is not JSON fails here, before anything is written
        with self.guard:
            self.kept["recorded"][key] = value
        self.save()

    def save(self) -> None:
        with self.guard:
            self.kept["seconds"] = round(self.seconds(), 3)
            write_json(self.path, self.kept)

    def finish(self) -> None:
        self.kept["finished"] = _now()
        self.save()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                with contextlib.suppress(OSError, BadInput):  # the work itself will meet the full disk, and tell
                    self.save()

        self.since = time.monotonic()
        self.save()
        heart = threading.Thread(target=beat, name="stage-clock", daemon=True)
        heart.start()
        try:
            yield
        finally:
            stop.set()
            heart.join()
            with contextlib.suppress(OSError, BadInput):
                self.save()


@contextlib.contextmanager
def _lock(path: Path, title: str) -> Iterator[None]:
    """One process at a stage. The system lets go of the lock when its holder ends, however that ends."""
    with naming_full_disk(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "?"
            _say(f"{title}: process {holder} is at it; waiting until it ends (Ctrl-C to leave)")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def link(link: Path, folder: Path) -> None:
    """Point `link` at `folder` by a relative path, so that the folder of all runs may be moved."""
    target = os.path.relpath(folder, link.parent)
    if link.is_symlink() and os.readlink(link) == target:
        return
    with naming_full_disk(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        temp = link.with_name(f".{link.name}.{os.getpid()}.tmp")
        temp.unlink(missing_ok=True)
        temp.symlink_to(target)
        temp.replace(link)


Completed = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]


def why(
    name: str,
    described_stages: Sequence[Mapping[str, Any]],
    cache: Path,
    completed: Completed = lambda _, config: config,
) -> list[str]:
    """What keeps the stage `name` from being the nearest other one in the cache, a line for each cause.

    A cause is a knob, the seed, the version of the code, or a needed stage, which is followed down to its own cause.
    `completed` gives the stored config of a stage, perhaps of an older version, with all knobs by today's names.
    """

    def read(stage: Mapping[str, Any]) -> dict[str, Any]:
        needs = {need: _place(cache, need, identity) for need, identity in stage["needs"].items()}
        return {**stage, "config": completed(stage["name"], stage["config"]), "needs": needs}

    def cached(name: str) -> list[dict[str, Any]]:
        return [read(record) for record in _cached(cache, name)]

    by_name = {stage["name"]: read(stage) for stage in described_stages}
    if name not in by_name:
        raise BadInput(f"{name}: no such stage in this run; its stages are {', '.join(by_name)}")
    stage = by_name[name]
    here = _place(cache, name, stage["identity"])
    others = [record for record in cached(name) if _key(record) != here]
    if not others:
        return [f"{name}: no other {name} is in {cache}"]
    return _nearest(stage, others, by_name, cached)


def _key(record: Mapping[str, Any]) -> str:
    return f"{record['name']}-{record['identity']}"


def _place(cache: Path, name: str, identity: str) -> str:
    """The name of the folder that holds a stage: its own, or that of an older version which was taken over."""
    return (cache / f"{name}-{identity}").resolve().name


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What a run would do about one stage: nothing where `status.state` is done, else work, because of `causes`."""

    status: StageStatus
    causes: tuple[str, ...]


def plan_stages(stages: Sequence[Stage], runs: Path) -> list[StagePlan]:
    """What `execute` would do about each stage in a run under `runs`."""
    plain, cache = described(stages), runs / CACHE
    readers = {stage.name: stage.completed for stage in stages}
    folders: dict[str, Path] = {}
    for stage in stages:
        own = cache / stage.key
        begun = own.is_dir() or draft_of(own).is_dir()
        older = None if begun else older_folder(stage, {need.name: folders[need.name] for need in stage.needs}, cache)
        folders[stage.name] = older.with_suffix("") if older else own
    states = [_status(stage.name, stage.identity, folders[stage.name]) for stage in stages]
    return [
        StagePlan(
            s, () if s.state == "done" else tuple(why(s.name, plain, cache, lambda n, config: readers[n](config)))
        )
        for s in states
    ]


Cached = Callable[[str], list[dict[str, Any]]]


def _nearest(
    stage: Mapping[str, Any],
    others: Sequence[Mapping[str, Any]],
    by_name: Mapping[str, Mapping[str, Any]],
    cached: Cached,
) -> list[str]:
    return min((_causes(stage, other, by_name, cached) for other in others), key=len)


def _causes(
    stage: Mapping[str, Any], other: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]], cached: Cached
) -> list[str]:
    there, name = _key(other), stage["name"]
    lines = [f"{name}: {d} ({there})" for d in differences(stage["config"], other["config"])]
    for key, words in (("seed", "the seed"), ("version", "the version of its code")):
        if stage[key] != other[key]:
            lines.append(f"{name}: {words} is {stage[key]} here and {other[key]} there ({there})")
    for need in dict.fromkeys([*stage["needs"], *other["needs"]]):
        ours, theirs = stage["needs"].get(need), other["needs"].get(need)
        if ours == theirs:
            continue
        if ours is None or theirs is None:
            lines.append(f"{name}: needs {need} only {'there' if ours is None else 'here'} ({there})")
            continue
        nearest = [record for record in cached(need) if _key(record) == theirs]
        if nearest:
            lines += [line for line in _nearest(by_name[need], nearest, by_name, cached) if line not in lines]
        else:
            ours, theirs = (place.removeprefix(f"{need}-") for place in (ours, theirs))
            lines.append(f"{name}: its {need} is {ours} here and {theirs} there ({there})")
    return lines


def _cached(cache: Path, name: str) -> list[dict[str, Any]]:
    """The records of all finished stages of that name."""
    folders = (path.parent for path in sorted(cache.glob(f"{name}-*/{RECORD}")))
    records = (stage_record(folder) for folder in folders if folder.suffix != ".part" and not folder.is_symlink())
    return [record for record in records if record["name"] == name]


def versions() -> dict[str, str]:
    """Versions that may matter to a result, read without importing anything heavy."""
    found = {"clinkd": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""A run as a graph of cached stages: identity, resumable drafts, locks, and the reasons why a stage runs again.

A stage works in the draft `.stages/NAME-IDENTITY.part`, which is renamed to `.stages/NAME-IDENTITY` when it is done.
After a crash the draft stays, and the next run of the same stage continues in it. Runs share the folders of equal
stages.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from clinkd import distributed
from clinkd.pipeline.damage import RECORD, Damage, find_damage, refuse_damage, write_manifest
from clinkd.pipeline.knobs import complete_stage_config
from clinkd.records import BadInput
from clinkd.settings import Knobs, complete, differences, without_defaults
from clinkd.spelling import suggest
from clinkd.storage import (
    MANIFEST,
    is_plain_path,
    make_folder,
    naming_full_disk,
    publish,
    read_json,
    spell_seconds,
    sync_tree,
    write_json,
)
from clinkd.version import __version__

CACHE = ".stages"  # inside the folder of all runs
POOLED = "folds pooled"  # in the config of a stage that pools the folds of a cross-validation
STRIPPED = "without images"  # in the record of a stage whose images were left out when its run was packed
HEARTBEAT_SECONDS = 2.0  # `kill -9` loses at most so much of the recorded time of a stage
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of a network's file system, perhaps
_KEYS_OF_0_1 = {  # keys that stages of version 0.1.0 recorded, and the keys of today
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

    `config`, `seed`, `version` and the needs decide the result, and nothing else does. Raise `version` when the code of
    the stage or a default of its knobs changes the result. `knobs` is the group that gives the names and defaults of
    `config`. `work` imports heavy packages only when it is called. If several processes share the run
    (`clinkd.distributed`), the other processes join the main process in the stages with `together`.
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
        """Twelve hexadecimal digits: equal identities mean equal results.

        Knobs at their defaults are left out, so a new knob that is off changes no identity.
        """
        values = describe_stage(self)
        values["config"] = self.essence(values["config"])
        values["needs"] = {need.name: need.identity for need in self.needs}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def essence(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The knobs of a stored `config` (perhaps of an older version) that decide the result: no defaults."""
        group = self.knobs or (type(self.config) if isinstance(self.config, Knobs) else Knobs)
        return without_defaults(complete(config, group), group)

    @property
    def key(self) -> str:
        """The name of the stage's folder in the cache."""
        return f"{self.name}-{self.identity}"


def describe_stage(stage: Stage) -> dict[str, Any]:
    """The values that decide the result of a stage, without its needs, as they read back from JSON."""
    values = {"name": stage.name, "version": stage.version, "seed": stage.seed, "config": stage.config}
    from_json: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False, default=_to_plain_value))
    return from_json


def _to_plain_value(value: Knobs | Path) -> Any:
    return value.identity() if isinstance(value, Knobs) else os.fspath(value)


@dataclass(frozen=True)
class StageContext:
    """The argument of a stage's `work`: the draft `folder` (as an earlier attempt left it), the finished folders of its
    needs by name, the seed, and `record`, which stores a JSON value under a key in `stage.json` (main process only).
    """

    folder: Path
    inputs: Mapping[str, Path]
    seed: int
    record: Callable[[str, Any], None]


State = Literal["done", "partial", "missing", "damaged"]  # damaged: finished once, and files are cut or missing


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The progress of a stage. `seconds`: the time spent on it in all attempts and all runs."""

    name: str
    identity: str
    state: State
    seconds: float
    folder: Path  # of the finished stage, even if it does not exist yet
    damage: Damage | None = None

    def spell_time(self) -> str:
        """The time in words; "" for a stage that was never begun."""
        return spell_seconds(self.seconds) if self.state != "missing" else ""


def _demand_inside(name: str) -> str:
    if not is_plain_path(name):
        raise ValueError("no place in the folder of a stage")
    return name


_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
_Identity = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
_Number = Annotated[int, Field(ge=-(2**63), lt=2**64)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]


class DescribedStage(BaseModel):
    """The shape of a stage in `run.json`; only what has it is read, since its names become paths."""

    model_config = ConfigDict(frozen=True, strict=True)
    name: _Name
    version: _Number
    seed: _Number
    config: dict[str, Any]
    identity: _Identity
    needs: dict[_Name, _Identity]


class RecordedStage(BaseModel):
    """The shape of `stage.json`; a finished stage has all keys of `_WHOLE`."""

    model_config = ConfigDict(frozen=True, strict=True)
    name: _Name = ""
    version: _Number = 0
    seed: _Number = 0
    config: dict[str, Any] = {}
    identity: _Identity = ""
    needs: dict[_Name, _Identity] = {}
    seconds: float = Field(0.0, ge=0, le=1e12, allow_inf_nan=False)
    attempts: _Count = 1
    recorded: dict[str, Any] = {}
    files: dict[Annotated[str, AfterValidator(_demand_inside)], _Count] | Literal["manifest.json"] | None = None


_WHOLE = {*DescribedStage.model_fields, "seconds"}


def describe_stages(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The stages as plain values for `run.json`, which `status` and `explain_rerun` read."""
    return [
        {**describe_stage(s), "identity": s.identity, "needs": {need.name: need.identity for need in s.needs}}
        for s in stages
    ]


def status(described_stages: Sequence[Mapping[str, Any]], cache: Path) -> list[StageStatus]:
    """The progress of each stage of a run, in order; `described_stages` as `describe_stages` returns them."""
    return [_read_status(s["name"], s["identity"], cache / f"{s['name']}-{s['identity']}") for s in described_stages]


def _read_status(name: str, identity: str, folder: Path) -> StageStatus:
    draft = draft_of(folder)
    if folder.is_dir():
        record = read_record(folder)
        damage = find_damage(name, folder, record)
        return StageStatus(
            name, identity, "damaged" if damage else "done", (record or {}).get("seconds", 0.0), folder, damage
        )
    if (draft / RECORD).is_file():
        return StageStatus(name, identity, "partial", (read_record(draft) or {}).get("seconds", 0.0), folder)
    return StageStatus(name, identity, "missing", 0.0, folder)


def read_record(folder: Path, whole: bool = True) -> dict[str, Any] | None:
    """The `stage.json` of a folder; None if it is missing or broken, or is to be `whole` and lacks a key."""
    try:
        record: dict[str, Any] = read_json(folder / RECORD)
        RecordedStage.model_validate(record)
        if whole and not record.keys() >= _WHOLE:
            return None
        return {**record, "recorded": _rename_keys(record.get("recorded", {}))}
    except (BadInput, ValidationError, RecursionError):
        return None


def is_at_work(folder: Path) -> bool:
    """Whether a process holds the lock of a stage; `folder` is that of the finished stage."""
    try:
        descriptor = os.open(_lock_of(folder), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_LOCKS
    finally:
        os.close(descriptor)
    return False


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def older_folder(stage: Stage, inputs: Mapping[str, Path], cache: Path) -> Path | None:
    """The folder (finished or a draft) in which an older version did the same work under another identity. None if
    there is none, and if the stage was begun under its own identity. A folder that was packed without its images is
    none, for the work is not in it.

    The same work has equal seed, code version, knobs (by the names and defaults of today) and needs (`inputs`).
    """
    ours, folder = describe_stage(stage), cache / stage.key
    if folder.is_dir() or draft_of(folder).is_dir():
        return None
    needs = {name: folder.resolve().name for name, folder in inputs.items()}
    drafts_last = sorted(cache.glob(f"{stage.name}-*/{RECORD}"), key=lambda path: path.parent.suffix == ".part")
    for older in (path.parent for path in drafts_last):
        if older.with_suffix("").name == stage.key:
            continue  # its own, which another process may be making just now
        try:
            if (record := read_record(older)) is None or record.get(STRIPPED):
                continue  # what cannot be read, or has lost a part, is not taken over
            same = all(record[key] == ours[key] for key in ("name", "seed", "version"))
            same &= {name: f"{name}-{identity}" for name, identity in record["needs"].items()} == needs
            if same and stage.essence(record["config"]) == stage.essence(ours["config"]):
                return older.resolve()
        except (BadInput, AttributeError, KeyError, TypeError):
            continue  # its knobs are none of ours
    return None


def _adopt_older_folder(stage: Stage, inputs: Mapping[str, Path], cache: Path) -> None:
    """If the stage was not begun, use the folder in which an older version did the same."""
    older, folder = older_folder(stage, inputs, cache), cache / stage.key
    if older is None:
        return
    if older.suffix != ".part":
        point_link(folder, older)
        return
    with _hold_lock(older.with_suffix(".lock"), stage.name), naming_full_disk(folder):
        if still_exists := older.is_dir():  # another process may have finished or adopted it while this one waited
            older.rename(draft_of(folder))
        older.with_suffix(".lock").unlink(missing_ok=True)
    if not still_exists:
        _adopt_older_folder(stage, inputs, cache)


def trace_lineage(finished: Mapping[str, Path]) -> dict[str, Path]:
    """The finished stages and all stages that led to them, by name, each after the stages it needs."""
    folders: dict[str, Path] = {}

    def follow(name: str, folder: Path) -> None:
        if name in folders or not (folder / RECORD).is_file():
            return
        for need, identity in stage_record(folder).get("needs", {}).items():
            follow(need, folder.parent / f"{need}-{identity}")
        folders[name] = folder

    for name, folder in finished.items():
        follow(name, folder)
    return folders


def stage_record(folder: Path) -> dict[str, Any]:
    """The `stage.json` of a stage's folder: name, identity, config, needs, seconds, attempts, started, finished,
    versions, recorded, files (the name of the manifest; their sizes, or nothing, in older stages). The keys of
    `recorded` are the keys of today. Raises BadInput, with the way out, if it cannot be read."""
    if (record := read_record(folder, whole=False)) is None:
        raise refuse_damage(folder, f"{folder / RECORD}: missing or broken")
    return record


def read_seconds(folders: Mapping[str, Path]) -> dict[str, float]:
    """Seconds spent on each stage, in all runs that worked on it; in pooled folds of a cross-validation, too."""
    seconds = Counter[str]()
    for name, folder in folders.items():
        record = stage_record(folder)
        seconds.update({name: record["seconds"], **record["recorded"].get("fold_seconds", {})})
    return dict(seconds)


def _rename_keys(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {_KEYS_OF_0_1.get(key, key): _rename_keys(inner) for key, inner in value.items()}


def draft_of(folder: Path) -> Path:
    """The folder in which a stage works before it is done."""
    return folder.with_name(folder.name + ".part")


def execute(
    stages: Sequence[Stage], run_folder: Path, part: str = "", spell_left: Callable[[int], str] = lambda number: ""
) -> dict[str, Path]:
    """Do every stage that is not done yet, in order, and return the finished folders by name. `part`: of what, as
    "fold 2 of 5", to be printed before the number of each stage. `spell_left` says how much time the run takes from
    stage `number` on (0 is the first); it stands behind the start of a stage.

    Finished stages are in `run_folder/../.stages`; `run_folder/stages` holds links to them. If a process that was
    started apart works on a stage, this call waits for it. Among the processes of one run, the main process holds the
    lock and the others follow it. After Ctrl-C or a kill the draft stays, and the next call continues in it.
    Raises BadInput on a full disk, whatever a stage raises, and distributed.PeerLost if another process has ended.
    """
    cache = run_folder.parent / CACHE
    distributed.on_main_process(lambda: make_folder(cache))
    finished: dict[str, Path] = {}
    for number, stage in enumerate(stages, start=1):
        assert all(need.name in finished for need in stage.needs), f"{stage.name} comes before what it needs"
        assert stage.name not in finished, f"two stages are called {stage.name}"
        inputs = {need.name: finished[need.name] for need in stage.needs}
        finished[stage.name] = folder = cache / stage.key
        if distributed.is_main():
            _adopt_older_folder(stage, inputs, cache)
            title = f"stage {number} of {len(stages)}, {stage.name}"
            title = f"{part}, {title}" if part else title
            _finish_stage(stage, inputs, folder, title, partial(spell_left, number - 1))
            point_link(run_folder / "stages" / stage.name, folder)
            distributed.broadcast_object((stage.key, True))
        else:
            _follow_main_process(stage, inputs, folder)
    return finished


def _follow_main_process(stage: Stage, inputs: Mapping[str, Path], folder: Path) -> None:
    """In a process that is not the main one: do the part of the stage that the main process announces."""
    done = False
    while not done:
        key, done = distributed.broadcast_object(("", True))
        if key != stage.key:
            raise BadInput(f"{stage.key}: process 0 is at {key}; all processes must get the same config and data")
        stage_folder = folder if done else draft_of(folder)
        if not stage_folder.is_dir():
            raise BadInput(f"{stage_folder}: not to be seen here; all processes must share the folder of runs")
        if not done:
            with distributed.collective():
                stage.work(StageContext(stage_folder, dict(inputs), stage.seed, lambda key, value: None))


def _finish_stage(
    stage: Stage, inputs: Mapping[str, Path], folder: Path, title: str, spell_left: Callable[[], str]
) -> None:
    lock = _lock_of(folder)
    if not folder.is_dir():
        with _hold_lock(lock, title):
            if not folder.is_dir():  # another process may have finished it while this one waited
                _work_in_draft(stage, inputs, folder, title, spell_left)
                # whoever waits on the removed file, or makes it anew, then finds the finished folder
                lock.unlink(missing_ok=True)
                return
    if lock.exists():  # of a process that was killed when all was done
        lock.unlink(missing_ok=True)
    record = read_record(folder)
    if damage := find_damage(stage.name, folder, record):
        raise BadInput(damage.describe(stage.name, "the same command"))
    assert record is not None, "a folder without a record is damaged"
    if f"{stage.name}-{record.get('identity')}" != folder.resolve().name:
        raise BadInput(f"{folder}: holds something else than its name says; remove it to make it anew")
    _print_line(f"{title}: done before, in {spell_seconds(record['seconds'])}")


def _work_in_draft(
    stage: Stage, inputs: Mapping[str, Path], folder: Path, title: str, spell_left: Callable[[], str]
) -> None:
    draft = draft_of(folder)
    with naming_full_disk(draft):
        draft.mkdir(0o700, exist_ok=True)
        _remove_temporary_files(draft)
        clock = _StageClock(stage, draft)
        if clock.values["finished"] is None:
            begun = "going on where it stopped" if clock.values["attempts"] > 1 else "start"
            _print_line(f"{title}: {begun}{spell_left()}")
            with clock.running():
                if stage.together:
                    distributed.broadcast_object((stage.key, False))
                with distributed.collective():
                    stage.work(StageContext(draft, dict(inputs), stage.seed, clock.record))
            clock.finish()
        write_manifest(draft)
        if folder.is_symlink():  # it led to a folder of an older version that is gone
            folder.unlink()
        publish(draft, folder, True)
    _print_line(f"{title}: done in {spell_seconds(clock.seconds())}")


def _remove_temporary_files(draft: Path) -> None:
    """Remove what a killed attempt was writing; the names that begin with `.tmp` are those of safetensors."""
    for pattern in (".*.tmp", ".tmp*"):
        for path in draft.rglob(pattern):
            path.unlink()


class _StageClock:
    """Writes `stage.json` of a draft: seconds of all attempts (killed ones too) and the values the stage records."""

    def __init__(self, stage: Stage, draft: Path) -> None:
        self.path = draft / RECORD
        stored = read_record(draft, whole=False) or {}
        if self.path.is_file() and not stored:
            _print_line(f"{self.path}: broken; the time that the stage took before is lost, and its files are kept")
        self.values: dict[str, Any] = {
            **describe_stages([stage])[0],
            "seconds": stored.get("seconds", 0.0),
            "attempts": stored.get("attempts", 0) + (stored.get("finished") is None),
            "started": stored.get("started", _spell_now()),
            "finished": stored.get("finished"),
            "versions": read_versions(),
            "recorded": stored.get("recorded", {}),
            **({"files": stored["files"]} if "files" in stored else {}),
        }
        self.before: float = self.values["seconds"]
        self.since: float | None = None
        self.guard = threading.Lock()

    def seconds(self) -> float:
        return self.before + (time.monotonic() - self.since if self.since is not None else 0.0)

    def record(self, key: str, value: Any) -> None:
        json.dumps(value, allow_nan=False)  # a value that is not JSON fails here, before anything is written
        with self.guard:
            self.values["recorded"][key] = value
        self.save()

    def save(self) -> None:
        with self.guard:
            self.values["seconds"] = round(self.seconds(), 3)
            write_json(self.path, self.values)

    def finish(self) -> None:
        sync_tree(self.path.parent)  # what is called finished is on the disk, and is written there once
        self.values["finished"] = _spell_now()
        self.values["files"] = MANIFEST
        self.save()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                with contextlib.suppress(OSError, BadInput):  # `work` meets the same full disk and reports it
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
def _hold_lock(path: Path, title: str) -> Iterator[None]:
    """Let one process at a time work on a stage. The system frees the lock when its process ends, even after a kill."""
    with naming_full_disk(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "?"
            _print_line(f"{title}: process {holder} is at it; waiting until it ends (Ctrl-C to leave)")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            why = f"{path.parent}: its file system has no locks ({error.strerror})"
            _print_line(f"{title}: {why}; start no second run on the same stages until this one ends")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def point_link(link: Path, folder: Path) -> None:
    """Point `link` at `folder` by a relative path, so that the folder of all runs can be moved."""
    target = os.path.relpath(folder, link.parent)
    if link.is_symlink() and os.readlink(link) == target:
        return
    if link.is_dir() and not link.is_symlink():
        raise BadInput(f"{link}: a folder, where a link to {folder} belongs; remove it, then give the command again")
    make_folder(link.parent)
    temp = link.with_name(f".{link.name}.tmp")  # of one name, so that none is left for good by a kill
    with naming_full_disk(link):
        while not (link.is_symlink() and os.readlink(link) == target):
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # another process makes the same link
                temp.unlink(missing_ok=True)
                temp.symlink_to(target)
                temp.replace(link)


def explain_rerun(name: str, described_stages: Sequence[Mapping[str, Any]], cache: Path) -> list[str]:
    """Why the stage `name` differs from the nearest other stage of that name in the cache: a line for each cause.

    A cause is a knob, the seed, the version of the code, or a needed stage, which is followed down to its own cause.
    """
    stages = {stage["name"]: _read_stage(stage, cache) for stage in described_stages}
    if name not in stages:
        raise BadInput(f"{name}: no such stage in this run; its stages are {', '.join(stages)}{suggest(name, stages)}")
    own_folder_name = _resolve_folder_name(cache, name, stages[name]["identity"])
    pooled = POOLED in stages[name]["config"]  # such a stage differs in every knob from another of its name
    others = [s for s in _read_cached(cache, name) if (POOLED in s["config"]) == pooled]
    others = [stage for stage in others if _spell_folder_name(stage) != own_folder_name]
    return _find_causes(name, others, stages, cache) if others else [f"{name}: no other {name} is in {cache}"]


def _read_stage(stage: Mapping[str, Any], cache: Path) -> dict[str, Any]:
    """A stored stage (perhaps of an older version) with all knobs by the names of today, and the folders it needs."""
    needs = {need: _resolve_folder_name(cache, need, identity) for need, identity in stage["needs"].items()}
    return {**stage, "config": complete_stage_config(stage["name"], stage["config"]), "needs": needs}


def _read_cached(cache: Path, name: str) -> list[dict[str, Any]]:
    """All finished stages of that name."""
    folders = (path.parent for path in sorted(cache.glob(f"{name}-*/{RECORD}")))
    records = (read_record(folder) for folder in folders if folder.suffix != ".part" and not folder.is_symlink())
    return [_read_stage(record, cache) for record in records if record and record["name"] == name]


def _spell_folder_name(record: Mapping[str, Any]) -> str:
    return f"{record['name']}-{record['identity']}"


def _resolve_folder_name(cache: Path, name: str, identity: str) -> str:
    """The name of the folder that holds a stage: its own folder, or the folder of an older version that it links to."""
    return (cache / f"{name}-{identity}").resolve().name


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What a run would do about a stage: nothing if `status.state` is "done", else its work, because of `causes`."""

    status: StageStatus
    causes: tuple[str, ...]


def plan_stages(stages: Sequence[Stage], runs: Path) -> list[StagePlan]:
    """What `execute` would do about each stage of a run under `runs`."""
    records, cache = describe_stages(stages), runs / CACHE
    folders: dict[str, Path] = {}
    for stage in stages:
        older = older_folder(stage, {need.name: folders[need.name] for need in stage.needs}, cache)
        folders[stage.name] = older.with_suffix("") if older else cache / stage.key
    states = [_read_status(stage.name, stage.identity, folders[stage.name]) for stage in stages]
    return [StagePlan(s, () if s.state == "done" else tuple(explain_rerun(s.name, records, cache))) for s in states]


def _find_causes(
    name: str, others: Sequence[Mapping[str, Any]], stages: Mapping[str, Mapping[str, Any]], cache: Path
) -> list[str]:
    """The causes that tell a stage from the nearest of others: the one with the fewest causes."""
    return min((_list_causes(stages[name], other, stages, cache) for other in others), key=len)


def _list_causes(
    stage: Mapping[str, Any], other: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]], cache: Path
) -> list[str]:
    name, other_folder = stage["name"], f"({_spell_folder_name(other)})"
    lines = [f"{name}: {_spell_data_change(d)} {other_folder}" for d in differences(stage["config"], other["config"])]
    for key, words in (("seed", "the seed"), ("version", "the version of its code")):
        if stage[key] != other[key]:
            lines.append(f"{name}: {words} is {stage[key]} here and {other[key]} there {other_folder}")
    for need in dict.fromkeys([*stage["needs"], *other["needs"]]):
        own_need, other_need = stage["needs"].get(need), other["needs"].get(need)
        if own_need == other_need:
            continue
        if own_need is None or other_need is None:
            lines.append(f"{name}: needs {need} only {'there' if own_need is None else 'here'} {other_folder}")
        elif nearest := [s for s in _read_cached(cache, need) if _spell_folder_name(s) == other_need]:
            lines += [line for line in _find_causes(need, nearest, stages, cache) if line not in lines]
        else:
            own_need, other_need = (place.removeprefix(f"{need}-") for place in (own_need, other_need))
            lines.append(f"{name}: its {need} is {own_need} here and {other_need} there {other_folder}")
    return lines


def _spell_data_change(difference: str) -> str:
    """A difference of knobs; for the checksums that `prepare` records of a data set, what they mean."""
    changed = {"sha256": "the rows of the data set were changed", "images": "its image files were changed"}
    changed[POOLED] = "its folds were changed; ask why of a fold's run"
    return changed.get(difference.partition(" is ")[0], difference)


def read_versions() -> dict[str, str]:
    """Versions of the packages that may change a result, read without importing them."""
    by_package = {"clinkd": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            by_package[package] = metadata.version(package)
    return by_package


def _spell_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

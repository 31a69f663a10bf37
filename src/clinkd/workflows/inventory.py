"""What runs there are and what they take of the disk; removing runs without harm to others. Imports no torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clinkd.pipeline.damage import STAGE_FOLDER
from clinkd.pipeline.graph import CACHE, draft_of, is_at_work
from clinkd.pipeline.runs import RUN_RECORD, Run, RunState, is_run, name_stages, open_run
from clinkd.records import BadInput, Task
from clinkd.storage import folder_bytes


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run and what it takes of the disk, in bytes: `own`, its folder and the stages that it alone uses; `shared`,
    stages that other runs use, too.

    `started`: when it was last started, in seconds since the epoch. `scores`: of a finished run by task, x100; None
    where one was not computed. `damage`: why a damaged run is that.
    """

    folder: Path
    state: RunState
    started: float
    own: int
    shared: int
    scores: Mapping[str, float | None] = field(default_factory=dict)
    damage: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The runs of a folder, the last started first; the bytes of all their stages and of stages that no run uses."""

    runs: Sequence[RunEntry]
    total: int
    unused: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, with sizes in bytes."""
        runs = [
            {
                "name": e.folder.name, "folder": str(e.folder), "state": e.state, "started": round(e.started),
                "own_bytes": e.own, "shared_bytes": e.shared, "scores": dict(e.scores), "damage": e.damage or None,
            }
            for e in self.runs
        ]  # fmt: skip
        return {"runs": runs, "total_bytes": self.total, "unused_bytes": self.unused}


def take_inventory(runs: Path) -> Inventory:
    """All runs under a folder, damaged ones too. Nothing is changed, and a run may be at work meanwhile."""
    folders, cache = _list_folders(runs), runs / CACHE
    users = {folder: name_stages(folder) for folder in folders}
    used = set[str]().union(*users.values())
    sizes = {name: _measure_stage(cache / name) for name in used}
    entries = []
    for folder, names in users.items():
        others = set[str]().union(*(users[f] for f in folders if f != folder))
        own = folder_bytes(folder) + sum(sizes[name] for name in names - others)
        entries.append(_describe_run(folder, own, sum(sizes[name] for name in names & others)))
    unused = sum(map(folder_bytes, _list_unused(cache, used)))
    return Inventory(entries, sum(sizes.values()) + sum(map(folder_bytes, folders)), unused)


def _list_folders(runs: Path) -> list[Path]:
    """The folders of all runs, also of those without a record, the last started first."""
    folders = [f for f in runs.iterdir() if f.name[0] != "." and is_run(f)] if runs.is_dir() else []
    return sorted(folders, key=_read_start, reverse=True)


def _read_start(folder: Path) -> float:
    record = folder / RUN_RECORD  # written at each start
    return (record if record.is_file() else folder).stat().st_mtime


def _describe_run(folder: Path, own: int, shared: int) -> RunEntry:
    started = _read_start(folder)
    try:
        run = open_run(folder)
        state = run.state()
        if state == "damaged":
            run.demand_whole()
        return RunEntry(folder, state, started, own, shared, _read_scores(run) if state == "finished" else {})
    except BadInput as error:
        return RunEntry(folder, "damaged", started, own, shared, damage=str(error))


def _read_scores(run: Run) -> dict[str, float | None]:
    scores = run.scores()
    return {task.value: entry.get("score") for task in Task if isinstance(entry := scores.get(task.value), dict)}


def _measure_stage(folder: Path) -> int:
    """Bytes of a stage and of its draft; a link to the stage of an older version takes nothing."""
    return 0 if folder.is_symlink() else folder_bytes(folder) + folder_bytes(draft_of(folder))


def _list_unused(cache: Path, used: Set[str]) -> list[Path]:
    """Finished and begun stages that are not among those that runs use, and that no process works on."""
    stages = {path: path.name.removesuffix(".part") for path in sorted(cache.glob("*-*")) if path.is_dir()}
    return [
        path
        for path, name in stages.items()
        if STAGE_FOLDER.fullmatch(name) and name not in used and not is_at_work(cache / name)
    ]


# ---- removing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Removal:
    """What is removed: folders of runs, and folders of stages that no other run uses. `kept`: how many stages of these
    runs stay, since others use them. `size`: the bytes that this frees."""

    runs: Sequence[Path]
    stages: Sequence[Path]
    kept: int
    size: int


def remove_runs(
    names: Sequence[str], runs: Path, confirm: Callable[[Removal], bool], unused: bool = False
) -> Removal | None:
    """Remove runs under `runs` with the stages that they alone use; with `unused`, also stages that no run uses.

    `confirm` is asked first; None if it refuses. Raises BadInput, with nothing removed, for a run at work, for what is
    no run directly under `runs` or is a link, and if the runs were changed while `confirm` was asked.
    """
    removal = _plan_removal(names, runs, unused)
    if not confirm(removal):
        return None
    if _plan_removal(names, runs, unused) != removal:
        raise BadInput("the runs were changed meanwhile, and nothing was removed; give the command again")
    for folder in removal.stages:  # first: after a kill the same command goes on
        _remove_stage(folder)
    for folder in removal.runs:
        hidden = folder.with_name(f".{folder.name}.removed")
        folder.rename(hidden)
        shutil.rmtree(hidden)
    return removal


def _plan_removal(names: Sequence[str], runs: Path, unused: bool) -> Removal:
    folders, cache = list(dict.fromkeys(_find_removable(name, runs) for name in names)), runs / CACHE
    used = set[str]().union(*map(name_stages, folders))
    others = set[str]().union(*(name_stages(f) for f in _list_folders(runs) if f not in folders))
    alone = [] if cache.is_symlink() else sorted(used - others)  # behind a link, runs elsewhere may use them
    stages = [path for name in alone for path in (cache / name, draft_of(cache / name)) if path.is_dir()]
    stages += _list_unused(cache, used | others) if unused else []
    size = sum(map(folder_bytes, folders)) + sum(folder_bytes(path) for path in stages if not path.is_symlink())
    kept = sum((cache / name).is_dir() and not (cache / name).is_symlink() for name in used.difference(alone))
    return Removal(folders, stages, kept, size)


def _find_removable(name: str, runs: Path) -> Path:
    folder = runs / name if Path(name).name == name else Path(name)
    if folder.name in ("", "..") or folder.name[0] == "." or folder.parent.resolve() != runs.resolve():
        raise BadInput(f"{name}: not directly under {runs}; runs are removed by name from the folder of all runs")
    folder = runs / folder.name
    if folder.is_symlink():
        raise BadInput(f"{folder}: a link to {folder.readlink()}; remove the link itself, or the run where it is")
    if not is_run(folder):
        existing = ", ".join(f.name for f in _list_folders(runs)) or "none"
        raise BadInput(f"{folder}: no run; runs under {runs}: {existing}")
    if _is_live(folder):
        raise BadInput(f"{folder}: a process works on this run; stop it first, with Ctrl-C")
    return folder


def _is_live(folder: Path) -> bool:
    try:
        return open_run(folder).state() == "live"
    except BadInput:  # its record or config is damaged
        return any(is_at_work(folder.parent / CACHE / name) for name in name_stages(folder))


def _remove_stage(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)
    folder.with_name(folder.name.removesuffix(".part") + ".lock").unlink(missing_ok=True)

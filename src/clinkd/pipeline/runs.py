"""Finding runs under a folder, reading their state and their scores."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinkd.config import RunConfig
from clinkd.pipeline import graph
from clinkd.pipeline.knobs import completed
from clinkd.records import BadInput, Modality, Table, Task
from clinkd.settings import complete, differences, dump, load, load_stored, recipe_text
from clinkd.storage import naming_full_disk, read_json, write_atomic, write_json

RUNS = Path("runs")
RUN_RECORD = "run.json"
SCORES = "table.json"
REPORT = "report.html"
BESIDE = ("table.md", "table.csv")  # the same figures for reading and for a spreadsheet
TRAINED = ("reflect-", "distill", "teacher", "base")  # stages that end in a model, the latest kind first


@dataclass(frozen=True)
class Run:
    """A run's folder and what it says of itself. `stages` are as `graph.described` gives them."""

    folder: Path
    config: RunConfig
    stages: Sequence[Mapping[str, Any]]

    @property
    def cache(self) -> Path:
        return self.folder.parent / graph.CACHE

    def status(self) -> list[graph.StageStatus]:
        """How far each stage has come, in order."""
        return graph.status(self.stages, self.cache)

    def why(self, stage: str) -> list[str]:
        """What tells the stage from the nearest other one that was made before, a line for each cause."""
        return graph.why(stage, self.stages, self.cache, completed)

    def stage(self, name: str) -> Path:
        """The finished folder of a stage. Raises BadInput where the run has no such stage, or has not finished it."""
        for found in self.status():
            if found.name == name and found.state == "done":
                return found.folder
            if found.name == name:
                raise BadInput(f"{self.folder}: its stage {name} is not done; `{self.command}` goes on with the run")
        raise BadInput(f"{self.folder}: no stage {name}; its stages are {', '.join(s['name'] for s in self.stages)}")

    @property
    def last_trained(self) -> str:
        """The stage that makes the run's final model."""
        names = [str(stage["name"]) for stage in self.stages]
        return next(n for kind in TRAINED for n in reversed(names) if n.startswith(kind))

    @property
    def command(self) -> str:
        """What goes on with the run."""
        runs = "" if self.folder.parent == RUNS else f" --runs {self.folder.parent}"
        return f"clinkd run {self.folder / 'config.yaml'}{runs}"

    def wall_seconds(self) -> dict[str, float]:
        """Seconds really spent on each finished stage, in whichever run that was."""
        return {s.name: s.seconds for s in self.status() if s.state == "done"}

    def scores(self) -> dict[str, Any]:
        """The final table as plain values, x100, with `wall_seconds`. Raises BadInput where the run is not finished."""
        scores: dict[str, Any] = read_json(self._result(SCORES))
        return {**scores, "wall_seconds": self.wall_seconds()}

    def report(self) -> Path:
        """The HTML page. Raises BadInput where the run is not finished."""
        return self._result(REPORT)

    def _result(self, name: str) -> Path:
        path = self.stage(self.stages[-1]["name"]) / name
        if not path.is_file():
            raise BadInput(f"{path}: missing; remove {path.parent} and give `{self.command}` to make it anew")
        return path


def begin_run(config: RunConfig, stages: Sequence[graph.Stage], runs: Path, replace: bool = False) -> None:
    """Make or re-open the run's folder and write down what it is to hold.

    Raises BadInput where the folder holds a run of another config, naming the first knob that differs, unless
    `replace`: the finished stages of that other config stay in the cache.
    """
    folder = runs / config.name
    plain = dump(config)
    if (folder / RUN_RECORD).is_file():
        theirs = _record(folder)["config"]
        changed = differences(config.identity(), complete(theirs, RunConfig))
        if changed and not replace:
            raise BadInput(
                f"{folder}: holds a run of another config ({changed[0]}); "
                "--name NEW starts a run beside it, --replace gives the folder to this config"
            )
        if changed:
            shutil.rmtree(folder / "stages", ignore_errors=True)
            for name in (SCORES, REPORT, *BESIDE):
                (folder / name).unlink(missing_ok=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: exists and is no run of ours (no {RUN_RECORD}); choose another --name or --runs")
    with naming_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    heading = "A ClinKD run. Copy, edit, then: clinkd run FILE.yaml"
    write_atomic(folder / "config.yaml", recipe_text(config, heading))
    record = {"name": config.name, "config": plain, "stages": graph.described(stages), "versions": graph.versions()}
    write_json(folder / RUN_RECORD, record)


def finish_run(run: Run) -> None:
    """Show the results of the last stage in the run's own folder, by links."""
    for name in (SCORES, REPORT):
        graph.link(run.folder / name, run._result(name))
    for name in BESIDE:
        path = run.report().with_name(name)
        if path.is_file():
            graph.link(run.folder / name, path)


def open_run(folder: Path) -> Run:
    """The run in a folder. Raises BadInput where there is none."""
    if not (folder / RUN_RECORD).is_file():
        raise BadInput(f"{folder}: no run there (no {RUN_RECORD})")
    return Run(folder, load_config(folder / "config.yaml"), _record(folder)["stages"])


def load_config(path: Path) -> RunConfig:
    """The config in a YAML file. That of a run's folder may be of an older version: its knobs are read by today's
    names, and those that are no more are told and left out. Raises BadInput naming file and knob.
    """
    if not path.expanduser().with_name(RUN_RECORD).is_file():
        return load(path, RunConfig)
    config, unknown = load_stored(path, RunConfig)
    for name in unknown:
        print(f"{path}: {name}: no knob of this version; left out", file=sys.stderr)
    return config


def _record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = read_json(folder / RUN_RECORD)
    if not isinstance(record, dict) or not {"config", "stages"} <= record.keys():
        raise BadInput(f"{folder / RUN_RECORD}: not the record of a run; remove {folder} to make it anew")
    return record


def list_runs(runs: Path = RUNS) -> list[Path]:
    """The folders of all runs under `runs`, the latest started first."""
    found = [path.parent for path in runs.glob(f"*/{RUN_RECORD}")] if runs.is_dir() else []
    return sorted(found, key=lambda folder: (folder / RUN_RECORD).stat().st_mtime_ns, reverse=True)


def find_run(wanted: str | None = None, runs: Path = RUNS) -> Run:
    """The run of that name under `runs`, or at that path; the latest started where nothing is wanted in particular.

    Raises BadInput naming the runs there are.
    """
    folders = list_runs(runs)
    if wanted is None:
        if not folders:
            raise BadInput(f"{runs}: no runs yet; `clinkd run demo` makes one")
        return open_run(folders[0])
    for folder in (runs / wanted, Path(wanted).expanduser()):
        if (folder / RUN_RECORD).is_file():
            return open_run(folder)
    names = ", ".join(folder.name for folder in folders) or "none; `clinkd run demo` makes one"
    raise BadInput(f"{wanted}: no run of that name or path; runs under {runs}: {names}")


def score_table(scores: Mapping[str, Any], title: str) -> Table:
    """Scores as `Run.scores` gives them, as rows to print: a task beside the best of its image-blind twins, then
    each modality. A figure that was not computed is "-", with its reason among the notes."""
    used = [m.value for m in Modality if any(m.value in (_entry(scores, t).get("by_modality") or {}) for t in Task)]
    gap = ("",) * len(used)
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for task in Task:
        entry = _entry(scores, task)
        if not entry:
            continue
        by_modality = entry.get("by_modality") or {}
        cells = [_cell(by_modality.get(m)) for m in used]
        rows.append((task.value, _number(entry.get("score")), _number(entry.get("blind")), *cells))
        if entry.get("score") is None:
            notes.append(f"{task.value}: not computed: {entry.get('why', 'no reason given')}")
        if facts := entry.get("facts"):
            cells = [_cell((by_modality.get(m) or {}).get("facts")) for m in used]
            rows.append((f"{task.value} facts", _number(facts.get("score")), _number(facts.get("blind")), *cells))
    average = scores.get("average")
    value = average.get("score") if isinstance(average, Mapping) else average
    rows.append(("average", _number(value), "", *gap))
    if value is None:
        notes.append("average: over a task that was not computed there is none")
    notes.append("blind: the best of the twins that do not see the image; cells are score/blind, x100")
    return Table(title, ("task", "score", "blind", *used), tuple(rows), tuple(notes))


def _entry(scores: Mapping[str, Any], task: Task) -> Mapping[str, Any]:
    entry = scores.get(task.value)
    return entry if isinstance(entry, Mapping) else {}


def _cell(entry: Mapping[str, Any] | None) -> str:
    return f"{_number(entry.get('score'))}/{_number(entry.get('blind'))}" if entry else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

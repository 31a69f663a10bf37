"""Find runs under a folder, and read their state and their scores."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clinkd.config import RunConfig
from clinkd.pipeline import graph
from clinkd.pipeline.damage import CONFIG, RUNS, STAGE_FOLDER, find_moved, read_stage_json, spell_run_command
from clinkd.records import BadInput, Modality, Table, Task
from clinkd.settings import change_knobs, complete, differences, dump, load, load_stored, recipe_text, validate_stored
from clinkd.spelling import suggest
from clinkd.storage import make_folder, read_json, write_atomic, write_json

RUN_RECORD = "run.json"
SCORES = "table.json"
REPORT = "report.html"
EXAMPLES = "examples"  # images of the test split to be asked about
SCORE_FILES = ("table.md", "table.csv")  # the same figures for reading and for a spreadsheet
RunState = Literal["live", "stopped", "finished", "damaged"]
TRAINED_STAGES = ("reflect-", "distill", "teacher", "base")  # stages that end in a model, the latest kind first


class RecordedRun(BaseModel):
    """The shape of `run.json`; only what has it is read."""

    model_config = ConfigDict(frozen=True, strict=True)
    config: dict[str, Any]
    stages: list[graph.DescribedStage] = Field(min_length=1)


@dataclass(frozen=True)
class Run:
    """The folder of a run, its config, and its stages as `graph.describe_stages` returns them."""

    folder: Path
    config: RunConfig
    stages: Sequence[Mapping[str, Any]]

    @property
    def cache(self) -> Path:
        return self.folder.parent / graph.CACHE

    def status(self) -> list[graph.StageStatus]:
        """The progress of each stage, in order. A stage that is linked here and gone is damaged: the run was moved."""
        return self._read_statuses(self.stages)

    def state(self) -> RunState:
        """Whether a process works on a stage of the run or of its folds; else whether it is whole, damaged, or not done
        yet."""
        stages = self.status()
        names = set[str]().union(*map(name_stages, (self.folder, *self.folds)))
        if any(graph.is_at_work(self.cache / name) for name in names):
            return "live"
        if any(s.damage for s in stages):
            return "damaged"
        return "finished" if all(s.state == "done" for s in stages) else "stopped"

    def _read_statuses(self, stages: Sequence[Mapping[str, Any]]) -> list[graph.StageStatus]:
        statuses = graph.status(stages, self.cache)
        return [s if s.state != "missing" else self._notice_move(s) for s in statuses]

    def _notice_move(self, missing: graph.StageStatus) -> graph.StageStatus:
        alone = any((self.cache / f"{s['name']}-{s['identity']}").is_dir() for s in self.stages)
        damage = find_moved(self.folder / "stages" / missing.name, missing.folder, alone)
        return replace(missing, state="damaged", damage=damage) if damage else missing

    def demand_whole(self, with_models: bool = True) -> None:
        """Raises BadInput, with the way out, for the first stage that was finished and is damaged now. Without
        `with_models`, stages of which only the model is damaged pass."""
        damaged = [s for s in self.status() if s.damage and (with_models or not s.damage.only_model)]
        if damaged:
            more = f" ({len(damaged) - 1} more stages are damaged, too)" if len(damaged) > 1 else ""
            raise BadInput(self._describe_damage(damaged[0]) + more)

    def _describe_damage(self, stage_status: graph.StageStatus) -> str:
        assert stage_status.damage
        return stage_status.damage.describe(stage_status.name, f"`{self.command}`")

    def why(self, stage: str) -> list[str]:
        """Why a stage differs from the nearest other stage that was made before: a line for each cause."""
        return graph.explain_rerun(stage, self.stages, self.cache)

    def stage(self, name: str) -> Path:
        """The finished folder of a stage. Raises BadInput if the run has no such stage, has not finished it, or the
        stage is damaged."""
        # this stage alone: to look for damage takes a look at each of its files
        for stage_status in self._read_statuses([s for s in self.stages if s["name"] == name]):
            if stage_status.state == "done":
                return stage_status.folder
            if stage_status.damage:
                raise BadInput(self._describe_damage(stage_status))
            raise BadInput(f"{self.folder}: its stage {name} is not done; `{self.command}` goes on with the run")
        raise BadInput(f"{self.folder}: no stage {name}; its stages are {', '.join(s['name'] for s in self.stages)}")

    @property
    def folds(self) -> list[Path]:
        """The folders of the folds' runs, if this run pools those of a cross-validation."""
        return [self.folder.parent / fold.name for fold in self.config.fold_runs()]

    def demand_one_model(self) -> None:
        """Raises BadInput, with the way out, if the run has no model of its own, but one of each fold."""
        if self.folds:
            raise BadInput(
                f"{self.folder}: a cross-validation has no model of its own, but {len(self.folds)}, one of each fold; "
                f"name a fold's run, as {self.folds[0].name}, or train one model on one split: `{self.command} "
                f"--name {self.folder.name}-single --set data.folds=0`"
            )

    @property
    def last_trained(self) -> str:
        """The name of the stage that makes the final model. Raises BadInput if each fold has its own."""
        self.demand_one_model()
        names = [str(stage["name"]) for stage in self.stages]
        return next(n for kind in TRAINED_STAGES for n in reversed(names) if n.startswith(kind))

    @property
    def answering_stages(self) -> list[str]:
        """The names of the stages that must be done before the final model can be asked."""
        scorer = self.config.select.scorer
        chosen_by = {"clip": ["clip", "select"], "agreement": ["select"]}.get(scorer, [])
        return ["prepare", self.last_trained, *chosen_by]

    @property
    def command(self) -> str:
        """The command that continues the run."""
        return spell_run_command(self.folder)

    def wall_seconds(self) -> dict[str, float]:
        """Seconds spent on each finished stage, in all runs that worked on it."""
        return graph.read_seconds({s.name: s.folder for s in self.status() if s.state == "done"})

    @property
    def tested_on(self) -> str:
        """The questions that the scores are of."""
        return f"test splits of all {len(self.folds)} folds" if self.folds else "test split"

    def scores(self) -> dict[str, Any]:
        """The final table as plain values, x100, with `wall_seconds`. Raises BadInput if the run is not finished."""
        scores: dict[str, Any] = read_stage_json(self._find_result(SCORES))
        return {**scores, "wall_seconds": self.wall_seconds()}

    def report(self) -> Path:
        """The path of the HTML page. Raises BadInput if the run is not finished."""
        return self._find_result(REPORT)

    def _find_result(self, name: str) -> Path:
        path = self.stage(self.stages[-1]["name"]) / name
        if not path.is_file():
            raise BadInput(f"{path}: missing; remove {path.parent} and give `{self.command}` to make it anew")
        return path


def begin_run(config: RunConfig, stages: Sequence[graph.Stage], runs: Path, replace: bool = False) -> None:
    """Make or re-open the folder of a run, and write its config and its stages.

    Raises BadInput, naming the first knob that differs, if the folder holds a run of another config and `replace` is
    false. With `replace`, the finished stages of the other config stay in the cache.
    """
    folder = runs / config.name
    stored_config = _read_stored_config(folder)
    if stored_config is not None:
        changed = differences(config.identity(), complete(stored_config, RunConfig))
        if changed and not replace:
            raise BadInput(
                f"{folder}: holds a run of another config ({changed[0]}); "
                "--name NEW starts a run beside it, --replace gives the folder to this config"
            )
        if changed:
            for name in ("stages", EXAMPLES):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in (SCORES, REPORT, *SCORE_FILES):
                (folder / name).unlink(missing_ok=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: exists and is no run of ours (no {RUN_RECORD}); choose another --name or --runs")
    make_folder(folder)
    _write_run(folder, config, {"stages": graph.describe_stages(stages), "versions": graph.read_versions()})


def _write_run(folder: Path, config: RunConfig, record: Mapping[str, Any]) -> None:
    """Write the config of a run, and its record with that config."""
    write_atomic(folder / CONFIG, recipe_text(config, "A ClinKD run. Copy, edit, then: clinkd run FILE.yaml"))
    write_json(folder / RUN_RECORD, {"name": config.name, "config": dump(config), **record})


def rename_run(folder: Path, name: str) -> None:
    """Give the run in a folder another name, in its config and its record. Raises BadInput as `open_run`."""
    stored = _read_record(folder)
    _write_run(
        folder,
        change_knobs(load_config(folder / CONFIG), name=name),
        {key: value for key, value in stored.items() if key not in ("name", "config")},
    )


def _read_stored_config(folder: Path) -> Mapping[str, Any] | None:
    """The config of the run in a folder, from its record; where that is missing or broken, from its YAML file.
    None if there is no run. Raises BadInput if neither can be read."""
    if (record := _load_record(folder)) is not None:
        stored: dict[str, Any] = record["config"]
        return stored
    if not is_run(folder):
        return None
    try:
        return dump(load_stored(folder / CONFIG, RunConfig)[0])
    except BadInput:
        raise _refuse_lost_run(folder) from None


def _refuse_lost_run(folder: Path) -> BadInput:
    return BadInput(
        f"{folder}: {RUN_RECORD} and {CONFIG} are both missing or broken; rename {folder} and give the `clinkd run` "
        f"that made it once more: it uses the finished stages in {folder.parent / graph.CACHE}"
    )


def finish_run(run: Run) -> None:
    """Link the results of the last stage into the folder of the run."""
    for name in (SCORES, REPORT):
        graph.point_link(run.folder / name, run._find_result(name))
    for name in SCORE_FILES:
        path = run.report().with_name(name)
        if path.is_file():
            graph.point_link(run.folder / name, path)


def open_run(folder: Path) -> Run:
    """The run in a folder. Raises BadInput if there is none, or its record or config is missing or broken."""
    if not is_run(folder):
        raise BadInput(f"{folder}: no run there (no {RUN_RECORD})")
    record = _read_record(folder)
    return Run(folder, load_config(folder / CONFIG), record["stages"])


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: its record, or, where that is lost, links to stages as `graph.execute` makes
    them."""
    return (folder / RUN_RECORD).is_file() or any(p.is_symlink() for p in (folder / "stages").glob("*"))


def name_stages(folder: Path) -> set[str]:
    """The names in the cache of all stages that the run in a folder uses: by its record, or by its links where the
    record is lost; with those of older versions that stand for them."""
    cache, record = folder.parent / graph.CACHE, _load_record(folder) or {"stages": []}
    names = {f"{stage['name']}-{stage['identity']}" for stage in record["stages"]}
    names |= {link.readlink().name for link in (folder / "stages").glob("*") if link.is_symlink()}
    names |= {(cache / name).resolve().name for name in names}
    return {name for name in names if STAGE_FOLDER.fullmatch(name)}


def read_recorded_config(record: Path) -> RunConfig:
    """The config in the record of a run, its `run.json`; knobs that this version lacks are left out."""
    stored = _read_record(record.parent)["config"]
    try:
        return validate_stored(stored, RunConfig, f"{record}: config: ")[0]
    except BadInput as error:
        raise BadInput(f"{error}; `{spell_run_command(record.parent)}` writes it again") from None


def load_config(path: Path, strict: bool = False) -> RunConfig:
    """The config in a YAML file. In the folder of a run it may be of another version: its knobs are read by the names
    of today, and unknown ones are printed and left out, or, if `strict`, refused. Raises BadInput naming file and knob.
    """
    if not path.expanduser().with_name(RUN_RECORD).is_file():
        return load(path, RunConfig)
    again = f"`clinkd recipe {path.with_name(RUN_RECORD)} > {path}` writes it again"
    if not path.expanduser().is_file():
        raise BadInput(f"{path}: missing; {again}")
    try:
        config, unknown = load_stored(path, RunConfig, strict)
    except BadInput as error:
        raise BadInput(f"{error}; mend it, or {again}") from None
    if unknown:
        print(f"{path}: {', '.join(unknown)}: no knob of this version; left out", file=sys.stderr)
    return config


def _load_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in a folder; None if it is missing or broken."""
    try:
        record: dict[str, Any] = read_json(folder / RUN_RECORD)
        RecordedRun.model_validate(record)
    except (BadInput, ValidationError):
        return None
    return record


def _read_record(folder: Path) -> dict[str, Any]:
    record = _load_record(folder)
    if record is not None:
        return record
    try:
        load_stored(folder / CONFIG, RunConfig)
    except BadInput:
        raise _refuse_lost_run(folder) from None
    raise BadInput(
        f"{folder / RUN_RECORD}: missing or broken; `{spell_run_command(folder)}` writes it again and uses "
        "the finished stages"
    )


def list_runs(runs: Path = RUNS) -> list[Path]:
    """The folders of all runs under `runs`, the last started first."""
    folders = [path.parent for path in runs.glob(f"*/{RUN_RECORD}")] if runs.is_dir() else []
    return sorted(folders, key=lambda folder: (folder / RUN_RECORD).stat().st_mtime_ns, reverse=True)


def find_run(wanted: str | None = None, runs: Path = RUNS) -> Run:
    """The run named `wanted` under `runs`, or at that path; without `wanted`, the last started run.

    Raises BadInput that lists the existing runs.
    """
    folders = list_runs(runs)
    if wanted is None:
        if not folders:
            raise BadInput(f"{runs}: no runs yet; `clinkd run demo` makes one")
        return open_run(folders[0])
    for folder in (runs / wanted, Path(wanted).expanduser()):
        if is_run(folder):
            return open_run(folder)
    names = ", ".join(folder.name for folder in folders) or "none; `clinkd run demo` makes one"
    hint = suggest(wanted, (folder.name for folder in folders))
    raise BadInput(f"{wanted}: no run of that name or path; runs under {runs}: {names}{hint}")


def find_finished_run(wanted: str | None = None, runs: Path = RUNS) -> Run:
    """As `find_run`; but without `wanted`, the last started of the finished runs, or the last started if none is."""
    finished = [folder for folder in list_runs(runs) if is_finished(folder)] if wanted is None else []
    return open_run(finished[0]) if finished else find_run(wanted, runs)


def is_finished(folder: Path) -> bool:
    """Whether the last stage of the run in a folder is done. A run whose record is damaged is not finished."""
    with contextlib.suppress(BadInput):
        last = _read_record(folder)["stages"][-1]
        return (folder.parent / graph.CACHE / f"{last['name']}-{last['identity']}").is_dir()
    return False


def score_table(scores: Mapping[str, Any], title: str) -> Table:
    """The scores of `Run.scores` as rows to print: each task beside its best image-blind baseline, then each modality.
    A score that was not computed is "-", with its reason in the notes."""
    entries = {task: entry for task in Task if isinstance(entry := scores.get(task.value), Mapping) and entry}
    modalities = [m.value for m in Modality if any(m.value in (e.get("by_modality") or {}) for e in entries.values())]
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []

    def add_row(name: str, entry: Mapping[str, Any], by_modality: Mapping[str, Any]) -> None:
        cells = (_spell_scores(by_modality.get(m)) for m in modalities)
        rows.append((name, _spell_number(entry.get("score")), _spell_number(entry.get("blind")), *cells))

    for task, entry in entries.items():
        if entry.get("metrics") == {}:  # the test split has no questions of this task
            notes.append(f"{task.value}: {entry['why']}")
            continue
        by_modality = entry.get("by_modality") or {}
        add_row(task.value, entry, by_modality)
        if entry.get("score") is None:
            notes.append(f"{task.value}: not computed: {entry.get('why', 'no reason given')}")
        if (above := entry.get("above_blind")) is not None:
            difference = _spell_signed(above, entry["above_blind_interval"])
            notes.append(f"{task.value}: the model minus the best blind baseline is {difference}")
        if facts := entry.get("facts"):
            add_row(f"{task.value} facts", facts, {m: (v or {}).get("facts") for m, v in by_modality.items()})
    average = scores.get("average")
    value = average.get("score") if isinstance(average, Mapping) else average
    rows.append(("average", _spell_number(value), "", *[""] * len(modalities)))
    if value is None:
        notes.append("average: over a task that was not computed there is none")
    notes += _list_probe_notes(scores.get("probe") or {}, entries)
    notes.append("blind: the best of the baselines that do not see the image; cells are score/blind, x100")
    return Table(title, ("task", "score", "blind", *modalities), tuple(rows), tuple(notes))


def _list_probe_notes(probe: Mapping[str, Any], entries: Mapping[Task, Mapping[str, Any]]) -> list[str]:
    """A line for each task that the frozen-feature probe answered, by its main metric."""
    notes = []
    for task, figures in ((task, metrics.get(entries[Task(task)]["metric"])) for task, metrics in probe.items()):
        if figures and (above := figures["model_above"]) is not None:
            score, difference = _spell_number(figures["score"]), _spell_signed(above, figures["model_above_interval"])
            notes.append(
                f"{task}: the frozen-feature probe (same eyes, no language model) has {score}; the model minus that is "
                f"{difference}"
            )
    return notes


def _spell_signed(value: float, ends: Sequence[float] | None) -> str:
    return f"{value:+.1f}" + (f" [{ends[0]:+.1f}, {ends[1]:+.1f}]" if ends else "")


def _spell_scores(entry: Mapping[str, Any] | None) -> str:
    return f"{_spell_number(entry.get('score'))}/{_spell_number(entry.get('blind'))}" if entry else "-"


def _spell_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

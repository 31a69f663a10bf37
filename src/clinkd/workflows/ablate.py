"""Many runs that differ by one change each: made, read and told in one table and one page."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

from clinkd.config import RunConfig
from clinkd.experiments import ROWS, SWEEPS, AblationRow
from clinkd.pipeline.graph import stage_record
from clinkd.pipeline.prepared import read_scores, read_split
from clinkd.pipeline.runs import Run, open_run
from clinkd.records import BadInput, Table
from clinkd.reporting.ablation import AblationGrid, FinishedRun, ablation_json, ablation_tables
from clinkd.reporting.report import NOTICE
from clinkd.reporting.tables import ScoreIndex, to_markdown
from clinkd.reporting.viewer import page
from clinkd.settings import override
from clinkd.storage import naming_full_disk, write_atomic, write_json
from clinkd.workflows.compare import ComparedFolder, cases, page_sections

STUDENT, TUTOR = ("distill", "reflect-"), "teacher"  # stages whose steps count for the student, and for its teacher


@dataclass(frozen=True)
class AblationPlan:
    """What an ablation is made of: rows by name (those of a sweep among them), titled groups of them, and seeds."""

    base: RunConfig
    rows: Mapping[str, AblationRow]
    groups: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, base: RunConfig, rows: Sequence[str], sweeps: Sequence[str], seeds: Sequence[int]) -> AblationPlan:
        """Raises BadInput for an unknown row or sweep, one that this run cannot have, and a seed given twice."""
        _demand_known("--rows", rows, ROWS)
        _demand_known("--sweep", sweeps, SWEEPS)
        if len(set(seeds)) < len(seeds):
            raise BadInput(f"--seeds {','.join(map(str, seeds))}: a seed stands twice; a seed is one draw")
        made = {name: ROWS[name] for name in rows}
        groups = {"Rows": tuple(rows)} if rows else {}
        for name in sweeps:
            swept = _swept(name, base)
            made |= swept
            groups[SWEEPS[name].title] = tuple(swept)
        plan = cls(base, made, groups, tuple(seeds))
        for row in made:
            plan.config(row, seeds[0])
        return plan

    def config(self, row: str, seed: int) -> RunConfig:
        """The run of a row."""
        settings = [f"name={self.base.name}-{row}-s{seed}", f"seed={seed}"]
        return override(self.rows[row].make(self.base), settings)

    def all(self) -> list[tuple[str, int]]:
        """Row and seed of every run, a seed's rows one after the other, so that they find its stages made."""
        return [(row, seed) for seed in self.seeds for row in self.rows]


@dataclass(frozen=True)
class Ablation:
    """What was found: tables, the files they were written to, and the runs that failed, with the reason."""

    tables: Sequence[Table]
    folder: Path
    failed: Mapping[str, str]


def _demand_known(flag: str, names: Sequence[str], among: Iterable[str]) -> None:
    import difflib

    for name in names:
        if name not in among:
            near = difflib.get_close_matches(name, list(among), n=1)
            raise BadInput(f"{flag} {name}: not known; {f'did you mean {near[0]}? ' if near else ''}there are "
                           f"{', '.join(among)}")  # fmt: skip


def _swept(name: str, base: RunConfig) -> dict[str, AblationRow]:
    """A row for each value of a sweep, told against the value that the run itself has."""
    sweep = SWEEPS[name]
    own = reduce(getattr, sweep.knob.split("."), ROWS[sweep.row].make(base))
    values = list(dict.fromkeys([*sweep.values, own]))
    own = next(v for v in values if v == own)  # as the sweep spells it: 2, not 2.0

    def make(value: Any, of: RunConfig) -> RunConfig:
        return override(ROWS[sweep.row].make(of), [f"{sweep.knob}={value}"])

    return {
        f"{name}-{value}": AblationRow(
            f"{sweep.knob} {value}",
            ROWS[sweep.row].title,
            partial(make, value),
            None if value == own else f"{name}-{own}",
        )
        for value in values
    }


# -- making -----------------------------------------------------------------------------------------------------------


def ablate(plan: AblationPlan, runs: Path, workers: int, say: Callable[[str], object] = print) -> Ablation:
    """Make every run that is not done, `workers` at a time, then the tables, the page, and JSON beside them.

    Stages are shared between rows as between any runs. A run that fails is named, and the others go on. With several
    workers each run is a process of its own with its share of the threads, and its words go to a file beside it.
    Raises BadInput before any work where a row cannot be planned.
    """
    from clinkd.pipeline.stages import plan as stages

    wanted = [(row, seed, plan.config(row, seed)) for row, seed in plan.all()]
    for _, _, config in wanted:
        stages(config)
    failed: dict[str, str] = {}
    for number, (config, why) in enumerate(_made([c for _, _, c in wanted], runs, workers), start=1):
        if why:
            failed[config.name] = why
        say(f"[{number}/{len(wanted)}] {config.name}: {f'failed: {why}' if why else 'done'}")
    found = {(row, seed): open_run(runs / c.name) for row, seed, c in wanted if c.name not in failed}
    if not found:
        raise BadInput(f"every run failed, the first so: {next(iter(failed.values()))}")
    return _told(plan, found, failed, runs / f"{plan.base.name}-ablation")


def _made(configs: Sequence[RunConfig], runs: Path, workers: int) -> Iterator[tuple[RunConfig, str | None]]:
    if workers <= 1:
        for config in configs:
            yield config, _run_here(config, runs)
        return
    with ThreadPoolExecutor(workers) as pool:
        made = [(c, pool.submit(_run_apart, c, runs)) for c in configs]
        try:
            for config, why in made:
                yield config, why.result()
        except BaseException:
            for _, waiting in made:
                waiting.cancel()
            raise


def _run_here(config: RunConfig, runs: Path) -> str | None:
    from clinkd import pipeline

    try:
        pipeline.run(config, runs)
    except BadInput as error:
        return str(error)
    return None


def _run_apart(config: RunConfig, runs: Path) -> str | None:
    """In a process of its own. None, or the last line it said."""
    from clinkd.settings import recipe_text

    folder = runs / f"{config.name}.log"
    with naming_full_disk(runs):
        runs.mkdir(parents=True, exist_ok=True)
        recipe = folder.with_suffix(".yaml")
        write_atomic(recipe, recipe_text(config, "A row of an ablation"))
        with folder.open("wb") as log:
            command = [sys.executable, "-m", "clinkd", "run", str(recipe), "--runs", str(runs)]
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    said = folder.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    recipe.unlink(missing_ok=True)
    if done.returncode == 0:
        folder.unlink(missing_ok=True)
        return None
    last = said[-1].removeprefix("clinkd: ") if said else f"exit status {done.returncode}"
    return f"{last} (all it said: {folder})"


# -- telling ----------------------------------------------------------------------------------------------------------


def _told(
    plan: AblationPlan, found: Mapping[tuple[str, int], Run], failed: Mapping[str, str], folder: Path
) -> Ablation:
    grid = AblationGrid(plan.rows, [_finished(row, seed, run) for (row, seed), run in found.items()])
    tables = ablation_tables(grid, plan.groups)
    with naming_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "ablation.json", ablation_json(grid) | {"failed": dict(failed)})
    write_atomic(folder / "ablation.md", "\n".join(map(to_markdown, tables)))
    write_atomic(folder / "ablation.html", _page(plan, found, tables, failed))
    return Ablation(tables, folder, failed)


def _finished(row: str, seed: int, run: Run) -> FinishedRun:
    """What a run's stages recorded of their work. A sample of plain tuning costs three forward passes, one of
    distillation four."""
    train = len(read_split(run.stage("prepare"), "train"))
    steps, passes = 0, 0.0
    for stage in run.status():
        recorded = stage_record(stage.folder)["recorded"]
        for name, fit in recorded.items():
            if not name.startswith("fit-"):
                continue
            if stage.name.startswith(STUDENT):
                steps += fit["steps"]
                passes += (4 if name == "fit-distill" else 3) * fit["samples"] / fit["rows"]
            elif stage.name == TUTOR:
                passes += 3 * recorded["questions"] / train * fit["samples"] / fit["rows"]
    return FinishedRun(row, seed, ScoreIndex(read_scores(run.stage("score"))), steps, passes)


def _page(
    plan: AblationPlan, found: Mapping[tuple[str, int], Run], tables: Sequence[Table], failed: Mapping[str, str]
) -> str:
    first = {row.title: run for name, row in plan.rows.items() if (run := found.get((name, plan.seeds[0])))}  # its seed
    beside = cases({title: ComparedFolder.of_run(run) for title, run in first.items()})
    sections = page_sections("Rows and changes", tables, beside, "each row")
    if failed:
        sections.append(page.section("Runs that failed", [page.note([f"{n}: {w}" for n, w in failed.items()])]))
    return page.document(
        f"ClinKD ablation: {plan.base.name}",
        sections,
        notice=NOTICE,
        lead=f"Each row is one change. {len(plan.rows)} rows, seeds {', '.join(map(str, plan.seeds))}; the same data, "
        "and as many optimiser steps as plain tuning, where a row does not say otherwise.",
        footer="Made by ClinKD. This page holds everything it shows: no network.",
    )

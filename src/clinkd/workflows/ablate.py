"""Make many runs that differ by one change each, and show their scores in one table and one page."""

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
from clinkd.reporting.printed import paper_tables
from clinkd.reporting.tables import ScoreIndex, to_markdown
from clinkd.reporting.viewer import page
from clinkd.settings import override
from clinkd.spelling import LOOSE, find_near
from clinkd.storage import make_folder, naming_full_disk, open_private, write_atomic, write_json
from clinkd.workflows.compare import read_answers, render_cases

STUDENT, TEACHER = ("distill", "reflect-"), "teacher"  # stages whose steps count for the student, and for its teacher


@dataclass(frozen=True)
class AblationPlan:
    """The parts of an ablation: rows by name (also those of a sweep), groups of them by title, and seeds."""

    base: RunConfig
    rows: Mapping[str, AblationRow]
    groups: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, base: RunConfig, rows: Sequence[str], sweeps: Sequence[str], seeds: Sequence[int]) -> AblationPlan:
        """Raises BadInput for an unknown row or sweep, one that this run cannot have, and a seed given twice."""
        _require_known("--rows", rows, ROWS)
        _require_known("--sweep", sweeps, SWEEPS)
        if len(set(seeds)) < len(seeds):
            raise BadInput(f"--seeds {','.join(map(str, seeds))}: a seed stands twice; a seed is one draw")
        row_by_name = {name: ROWS[name] for name in rows}
        groups = {"Rows": tuple(rows)} if rows else {}
        for name in sweeps:
            sweep_rows = _build_sweep_rows(name, base)
            row_by_name |= sweep_rows
            groups[SWEEPS[name].title] = tuple(sweep_rows)
        plan = cls(base, row_by_name, groups, tuple(seeds))
        for row in row_by_name:
            plan.config(row, seeds[0])
        return plan

    def config(self, row: str, seed: int) -> RunConfig:
        """The run of a row."""
        settings = [f"name={self.base.name}-{row}-s{seed}", f"seed={seed}"]
        return override(self.rows[row].make(self.base), settings)


@dataclass(frozen=True)
class Ablation:
    """The results: tables, the folder of their files, and the runs that failed, with the reason."""

    tables: Sequence[Table]
    folder: Path
    failed: Mapping[str, str]


def _require_known(flag: str, names: Sequence[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            near = find_near(name, known, LOOSE)
            hint = f"did you mean {near}? " if near else ""
            raise BadInput(f"{flag} {name}: not known; {hint}there are {', '.join(known)}")


def _build_sweep_rows(name: str, base: RunConfig) -> dict[str, AblationRow]:
    """A row for each value of a sweep, compared with the row of the value that the run itself has."""
    sweep = SWEEPS[name]
    row = ROWS[sweep.row]
    run_value = reduce(getattr, sweep.knob.split("."), row.make(base))
    values = list(dict.fromkeys([*sweep.values, run_value]))
    run_value = next(v for v in values if v == run_value)  # as the sweep spells it: 2, not 2.0

    def make(value: Any, config: RunConfig) -> RunConfig:
        return override(row.make(config), [f"{sweep.knob}={value}"])

    rows = {}
    for value in values:
        against = None if value == run_value else f"{name}-{run_value}"
        rows[f"{name}-{value}"] = AblationRow(f"{sweep.knob} {value}", row.title, partial(make, value), against)
    return rows


# -- making -----------------------------------------------------------------------------------------------------------


def ablate(plan: AblationPlan, runs: Path, workers: int, say: Callable[[str], object] = print) -> Ablation:
    """Make every run that is not done, `workers` at a time, then the tables, the page, and JSON beside them.

    Rows share stages as any runs do. A run that fails is named, and the others go on. With several workers each run is
    a process of its own with its share of the threads, and its output goes to a file beside it. Raises BadInput before
    any work where a row cannot be planned.
    """
    from clinkd.pipeline.stages import plan as plan_stages

    # the rows of a seed one after the other, so that they find its stages
    configs = {(row, seed): plan.config(row, seed) for seed in plan.seeds for row in plan.rows}
    for config in configs.values():
        plan_stages(config)
    failed: dict[str, str] = {}
    results = zip(configs.values(), _make_runs([*configs.values()], runs, workers), strict=True)
    for number, (config, failure) in enumerate(results, start=1):
        if failure:
            failed[config.name] = failure
        say(f"[{number}/{len(configs)}] {config.name}: {f'failed: {failure}' if failure else 'done'}")
    done = {key: open_run(runs / config.name) for key, config in configs.items() if config.name not in failed}
    if not done:
        raise BadInput(f"every run failed, the first so: {next(iter(failed.values()))}")
    return _write_results(plan, done, failed, runs / f"{plan.base.name}-ablation")


def _make_runs(configs: Sequence[RunConfig], runs: Path, workers: int) -> Iterator[str | None]:
    """Yield for each run None, or why it failed."""
    if workers <= 1:
        yield from (_make_run_here(config, runs) for config in configs)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(partial(_make_run_in_process, runs), configs)
    finally:
        pool.shutdown(cancel_futures=True)


def _make_run_here(config: RunConfig, runs: Path) -> str | None:
    from clinkd import pipeline

    try:
        pipeline.run(config, runs)
    except BadInput as error:
        return str(error)
    return None


def _make_run_in_process(runs: Path, config: RunConfig) -> str | None:
    """Make the run in a process of its own. Returns None, or the last line of its output."""
    from clinkd.settings import recipe_text

    log = runs / f"{config.name}.log"
    with naming_full_disk(runs):
        make_folder(runs)
        recipe = log.with_suffix(".yaml")
        write_atomic(recipe, recipe_text(config, "A row of an ablation"))
        with open(log, "wb", opener=open_private) as output:
            command = [sys.executable, "-m", "clinkd", "run", str(recipe), "--runs", str(runs)]
            finished = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    recipe.unlink(missing_ok=True)
    if finished.returncode == 0:
        log.unlink(missing_ok=True)
        return None
    last = lines[-1].removeprefix("clinkd: ") if lines else f"exit status {finished.returncode}"
    return f"{last} (all it said: {log})"


# -- results ----------------------------------------------------------------------------------------------------------


def _write_results(
    plan: AblationPlan, done: Mapping[tuple[str, int], Run], failed: Mapping[str, str], folder: Path
) -> Ablation:
    grid = AblationGrid(plan.rows, [_read_finished_run(row, seed, run) for (row, seed), run in done.items()])
    tables = ablation_tables(grid, plan.groups)
    write_json(folder / "ablation.json", ablation_json(grid) | {"failed": dict(failed)})
    write_atomic(folder / "ablation.md", "\n".join(map(to_markdown, tables)))
    write_atomic(folder / "ablation.html", _build_page(plan, done, tables, failed))
    return Ablation(tables, folder, failed)


def _read_finished_run(row: str, seed: int, run: Run) -> FinishedRun:
    """Read the scores of a run, and what its stages recorded of their work: of a cross-validation, the mean a fold."""
    run.demand_whole(with_models=False)
    work = [_count_work(open_run(folder)) for folder in run.folds] or [_count_work(run)]
    steps, passes = (sum(counts) / len(work) for counts in zip(*work, strict=True))
    return FinishedRun(row, seed, ScoreIndex(read_scores(run.stage("score"))), round(steps), passes)


def _count_work(run: Run) -> tuple[int, float]:
    """The student's steps, and the passes of student and teacher over the training data: a sample of plain tuning costs
    three forward passes, one of distillation four."""
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
            elif stage.name == TEACHER:
                passes += 3 * recorded["questions"] / train * fit["samples"] / fit["rows"]
    return steps, passes


def _build_page(
    plan: AblationPlan, done: Mapping[tuple[str, int], Run], tables: Sequence[Table], failed: Mapping[str, str]
) -> str:
    first_seed = {row.title: run for name, row in plan.rows.items() if (run := done.get((name, plan.seeds[0])))}
    cases = render_cases({title: read_answers(run) for title, run in first_seed.items()})
    sections = [page.section("Rows and changes", [page.table(t) for t in tables])]
    if cases:
        sections.append(page.section("The same questions, answered by each row", [cases]))
    sections.append(page.section("The paper's figures", [page.table(t) for t in paper_tables()]))
    if failed:
        lines = [f"{name}: {failure}" for name, failure in failed.items()]
        sections.append(page.section("Runs that failed", [page.note(lines)]))
    return page.document(
        f"ClinKD ablation: {plan.base.name}",
        sections,
        lead=f"Each row is one change. {len(plan.rows)} rows, seeds {', '.join(map(str, plan.seeds))}; the same data, "
        "and as many optimiser steps as plain tuning, where a row does not say otherwise.",
        footer="Made by ClinKD. This page holds everything it shows: no network.",
    )

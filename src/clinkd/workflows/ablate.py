"""Make many runs that differ by one change each, and show their scores in one table and one page."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

from clinkd.config import RunConfig
from clinkd.experiments import CLAIMS, ROWS, SWEEPS, AblationRow, Claim
from clinkd.pipeline.graph import stage_record
from clinkd.pipeline.prepared import read_likelihoods, read_scores, read_split
from clinkd.pipeline.runs import Run, is_finished, open_run
from clinkd.records import BadInput, Table
from clinkd.reporting.ablation import AblationGrid, FinishedRun, ablation_json, ablation_tables, compare_primary
from clinkd.reporting.printed import paper_tables
from clinkd.reporting.tables import ScoreIndex, to_markdown
from clinkd.reporting.viewer import page
from clinkd.scoring.likelihood import average_likelihoods
from clinkd.settings import override
from clinkd.spelling import LOOSE, find_near
from clinkd.storage import make_folder, naming_full_disk, open_private, write_atomic, write_json
from clinkd.workflows.compare import read_answers, render_cases
from clinkd.workflows.results_file import ResultLine, add_result, identify_code, identify_knobs, read_results

STUDENT, TEACHER = ("distill", "reflect-"), "teacher"  # stages whose steps count for the student, and for its teacher


class RunKey(NamedTuple):
    """Which run of an ablation: its row, its seed, and of a cross-validation its fold (from 1; else 0)."""

    row: str
    seed: int
    fold: int = 0


@dataclass(frozen=True)
class AblationPlan:
    """The parts of an ablation: rows by name (also those of a sweep), groups of them by title, and seeds. Where the
    base is a cross-validation, each fold is a run."""

    base: RunConfig
    rows: Mapping[str, AblationRow]
    groups: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    claim: Claim | None = None

    @classmethod
    def of(
        cls, base: RunConfig, rows: Sequence[str], sweeps: Sequence[str], seeds: Sequence[int], claim: str | None = None
    ) -> AblationPlan:
        """With a `claim`, its rows, or those of them that `rows` names.

        Raises BadInput for an unknown row, sweep or claim, one that this run cannot have, and a seed given twice.
        """
        _require_known("--claim", [claim] if claim else [], CLAIMS)
        known = CLAIMS[claim].rows if claim else ROWS
        rows = tuple(rows or known) if claim else rows
        _require_known("--rows", rows, known)
        _require_known("--sweep", sweeps, SWEEPS)
        if len(set(seeds)) < len(seeds):
            raise BadInput(f"--seeds {','.join(map(str, seeds))}: a seed stands twice; a seed is one draw")
        row_by_name = {name: known[name] for name in rows}
        groups = {"Rows": tuple(rows)} if rows else {}
        for name in sweeps:
            sweep_rows = _build_sweep_rows(name, base)
            row_by_name |= sweep_rows
            groups[SWEEPS[name].title] = tuple(sweep_rows)
        plan = cls(base, row_by_name, groups, tuple(seeds), CLAIMS[claim] if claim else None)
        for row in row_by_name:
            plan.config(RunKey(row, seeds[0]))
        return plan

    @property
    def keys(self) -> list[RunKey]:
        """All runs: the rows of a seed (and fold) one after the other, so that they find its stages."""
        folds = range(1, self.base.data.folds + 1) if self.base.fold_runs() else (self.base.data.fold,)
        return [RunKey(row, seed, fold) for seed in self.seeds for fold in folds for row in self.rows]

    def config(self, key: RunKey) -> RunConfig:
        """The run of a row, which also looks up the likelihood of the truth. A fold has the name that it has in a run
        of all folds."""
        name = f"{self.base.name}-{key.row}-s{key.seed}{f'-fold-{key.fold}' if key.fold else ''}"
        settings = [f"name={name}", f"seed={key.seed}", "evaluate.likelihood=true", f"data.fold={key.fold}"]
        return override(self.rows[key.row].make(self.base), settings)


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


def ablate(
    plan: AblationPlan,
    runs: Path,
    workers: int,
    results: Path | None = None,
    minutes: float | None = None,
    say: Callable[[str], object] = print,
) -> Ablation:
    """Make every run whose line is not in the file `results` yet, `workers` at a time, add its line, and show what the
    file holds of this plan as tables, a page, and JSON.

    Rows share stages as any runs do. A run that fails is named, and the others go on. With several workers each run is
    a process of its own with its share of the threads, and its output goes to a file beside it. `minutes`: no run
    begins that would probably end later. `results`: without it a file in the folder of the tables. Raises BadInput
    before any work where a row cannot be planned or the file is no results file, and if there is nothing to show.
    """
    from clinkd.pipeline.stages import identify_config

    folder = runs / f"{plan.base.name}-ablation"
    file = results or folder / "results.csv"
    configs = {key: plan.config(key) for key in plan.keys}
    identities = {key: identify_config(config) for key, config in configs.items()}  # plans each
    of_base = [line for line in read_results(file) if line.base in ("", plan.base.name)]
    lines = _select_lines(of_base, identities, file, say)
    left = {key: config for key, config in configs.items() if key not in lines}
    if lines:
        say(f"{len(lines)} of {len(configs)} runs stand in {file}")
    failed: dict[str, str] = {}
    budget = _TimeBudget(minutes)
    made = zip(left, _make_runs([*left.values()], runs, workers, budget), strict=True)
    for number, (key, failure) in enumerate(made, start=1):
        name = left[key].name
        if failure is _NOT_BEGUN:
            continue
        if failure:
            failed[name] = failure
        else:
            finished, knobs = _read_finished_run(key, open_run(runs / name)), identify_knobs(plan.base, configs[key])
            lines[key] = ResultLine(identities[key], identify_code(), finished, plan.base.name, knobs)
            add_result(file, lines[key])
        say(f"[{number}/{len(left)}] {name}: {f'failed: {failure}' if failure else 'done'}")
    if budget.not_begun:
        say(f"{budget.not_begun} runs are left for another time: --minutes {minutes:g}; the same command makes them")
    if not lines:
        raise BadInput(f"no run is done; {next(iter(failed.values()), 'give more --minutes')}")
    wanted = len(configs) // len(plan.rows)
    grid = AblationGrid(plan.rows, [lines[key].run for key in configs if key in lines], wanted, plan.claim)
    done = {key: run for key in lines if (run := _find_whole_run(runs / configs[key].name))}
    return _write_results(plan, grid, done, failed, folder)


def _select_lines(
    found: Sequence[ResultLine], identities: Mapping[RunKey, str], file: Path, say: Callable[[str], object]
) -> dict[RunKey, ResultLine]:
    """The lines of these runs, the last one of each. Those of other knobs or data are left out, those of other code are
    kept: both told."""
    keyed = [(RunKey(line.run.row, line.run.seed, line.run.fold), line) for line in found]
    lines = {key: line for key, line in keyed if identities.get(key) == line.config}
    others = sum(key in identities and identities[key] != line.config for key, line in keyed)
    if others:
        say(f"{file}: {others} lines of these rows and seeds are of other data or knobs, and are left out")
    code = identify_code()
    if older := sum(line.code != code for line in lines.values()):
        say(f"{file}: {older} lines were made by other code than {code}; to make them anew, take them out")
    return lines


_NOT_BEGUN = "not begun"


class _TimeBudget:
    """Tells whether a run may begin: whether it would end in time if it took as long as the longest before it."""

    def __init__(self, minutes: float | None) -> None:
        self.end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.longest = 0.0
        self.not_begun = 0

    def spend(self, make: Callable[[RunConfig], str | None], config: RunConfig) -> str | None:
        """Make the run, or return `_NOT_BEGUN`."""
        start = time.monotonic()
        if start + self.longest >= self.end:
            self.not_begun += 1
            return _NOT_BEGUN
        failure = make(config)
        self.longest = max(self.longest, time.monotonic() - start)
        return failure


def _make_runs(configs: Sequence[RunConfig], runs: Path, workers: int, budget: _TimeBudget) -> Iterator[str | None]:
    """Yield for each run None, why it failed, or `_NOT_BEGUN`."""
    if workers <= 1:
        yield from (budget.spend(partial(_make_run_here, runs), config) for config in configs)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(partial(budget.spend, partial(_make_run_in_process, runs)), configs)
    finally:
        pool.shutdown(cancel_futures=True)


def _make_run_here(runs: Path, config: RunConfig) -> str | None:
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
    plan: AblationPlan, grid: AblationGrid, done: Mapping[RunKey, Run], failed: Mapping[str, str], folder: Path
) -> Ablation:
    tables = ablation_tables(grid, plan.groups)
    primary = compare_primary(grid)
    about = {"primary": primary and primary.to_json(), "failed": dict(failed)}
    write_json(folder / "ablation.json", ablation_json(grid) | about)
    write_atomic(folder / "ablation.md", "\n".join(map(to_markdown, tables)))
    write_atomic(folder / "ablation.html", _build_page(plan, done, tables, failed))
    return Ablation(tables, folder, failed)


def _find_whole_run(folder: Path) -> Run | None:
    """The run of a line whose folder is still there."""
    return open_run(folder) if is_finished(folder) else None


def _read_finished_run(key: RunKey, run: Run) -> FinishedRun:
    """Read the scores of a run, and what its stages recorded of their work: of a cross-validation, the mean a fold."""
    run.demand_whole(with_models=False)
    work = [_count_work(open_run(folder)) for folder in run.folds] or [_count_work(run)]
    steps, passes = (sum(counts) / len(work) for counts in zip(*work, strict=True))
    finished = FinishedRun.of(key.row, key.seed, round(steps), passes, ScoreIndex(read_scores(run.stage("score"))))
    stages = {s.name: s.folder for s in run.status()}
    return finished.add_likelihoods(average_likelihoods(read_likelihoods(stages)))._replace(fold=key.fold)


def _count_work(run: Run) -> tuple[int, float]:
    """The student's steps, and the forward passes over the training questions of student, teacher and their answers.

    A question of plain tuning costs three, one beside a live teacher four, one that a teacher's outputs are stored for
    or that is answered for training (pseudo-labels, own answers, reviews) one. Those of a teacher of another size count
    by the ratio of the parameters. Answers that only measure an effect are not counted.
    """
    train = len(read_split(run.stage("prepare"), "train"))
    recorded = {stage.name: stage_record(stage.folder)["recorded"] for stage in run.status()}
    teacher = _weigh_teacher(recorded, TEACHER)
    distill, reflect = run.config.distill, run.config.reflect
    by_teacher = bool(distill and distill.pseudo_from == "teacher")
    beside = {"fit-distill": teacher, "fit-reflect": teacher if reflect and reflect.objective == "distill" else 0.0}
    steps, forwards = 0, 0.0
    for stage, figures in recorded.items():
        student = stage.startswith(STUDENT)
        for name, figure in figures.items():
            if name.startswith("fit-") and student:
                steps += figure["steps"]
                live = beside.get("-".join(name.split("-")[:2]), 0.0) if "stored_teacher" not in figures else 0.0
                forwards += (3 + live) * figure["samples"]
            elif name.startswith("fit-") and stage.startswith(TEACHER):
                forwards += 3 * _weigh_teacher(recorded, stage) * figure["samples"]
            elif name.startswith("stored_samples"):
                forwards += _weigh_teacher(recorded, name.replace("stored_samples", TEACHER)) * figure["units"]
            elif name == "answers" and stage == "pseudo" and by_teacher:
                forwards += teacher * figure["units"]
            elif (student or stage == "pseudo") and name.startswith(("answers", "own_answers")):
                forwards += figure["units"]
    return steps, forwards / train


def _weigh_teacher(recorded: Mapping[str, Mapping[str, Any]], teacher: str) -> float:
    """A pass of a teacher, in passes of the student, by their parameters."""
    own = next(name for name in (f"base-{teacher}", f"base-{TEACHER}", "base") if name in recorded)
    return float(recorded[own]["parameters"] / recorded["base"]["parameters"])


def _build_page(
    plan: AblationPlan, done: Mapping[RunKey, Run], tables: Sequence[Table], failed: Mapping[str, str]
) -> str:
    first = plan.keys[0]
    first_seed = {row.title: run for name, row in plan.rows.items() if (run := done.get(first._replace(row=name)))}
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

"""Runs and evaluated answers in the paper's tables, side by side. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clinkd import evaluation, viewer
from clinkd.evaluation import Mode, Result, System
from clinkd.pipeline import evaluating
from clinkd.pipeline.answering import answers_of
from clinkd.pipeline.comparing import EVALUATION, Judgeable, cases, evaluated
from clinkd.pipeline.prepared import about, read_split
from clinkd.pipeline.runs import SCORES, Run, find
from clinkd.records import BadInput, Table, Task
from clinkd.storage import read_json, write_atomic


class Systems(NamedTuple):
    """The tables, the systems they show, and the page where one was asked for."""

    systems: Sequence[System]
    tables: Sequence[Table]
    page: Path | None


def systems(
    wanted: Sequence[str], runs: Path, mode: Mode, same_data: bool = False, page: Path | None = None
) -> Systems:
    """Each a run under `runs` or a folder of `clinkd evaluate --out`; `page`: an HTML page with their cases beside each
    other, where they answered the same questions.

    Raises BadInput for a run that is not finished, and a folder that was not evaluated in this mode.
    """
    found = [_system(name, runs, mode) for name in wanted]
    tables = evaluation.system_tables(found, mode, same_data)
    if page is not None:
        write_atomic(page, _page(wanted, runs, tables))
    return Systems(found, tables, page)


def _system(name: str, runs: Path, mode: Mode) -> System:
    folder = evaluated(name, runs)
    if folder is None:
        return _of_run(find(name, runs), mode)
    told, table = read_json(folder / EVALUATION), read_json(folder / SCORES)
    if mode not in told["modes"]:
        raise BadInput(f"{name}: not evaluated in mode {mode}, only {', '.join(told['modes'])}; evaluate it again")
    tasks = table["official"] if mode == "official" else table
    return System(told["system"], told["test_set"]["name"], _results(tasks))


def _of_run(run: Run, mode: Mode) -> System:
    data = run.config.data
    where = data.path.name if data.path else f"phantoms, seed {run.config.seed}"
    if mode == "strict":
        return System(run.folder.name, where, _results(run.scores()))
    prepared = run.stage("prepare")
    judged = Judgeable.of_run(run)
    answers = answers_of(
        run.folder.name, where, judged.samples, judged.predictions, judged.lexicon, read_split(prepared, "train")
    )
    found = evaluating.evaluate(answers, ["official"], run.config.evaluate)
    return System(run.folder.name, where, {o.task: Result.from_json(o.to_json()) for o in found.outcomes})


def _results(tasks: dict[str, dict[str, object]]) -> dict[Task, Result]:
    found = {t: Result.from_json(tasks[t.value]) for t in Task if t.value in tasks}
    return {t: r for t, r in found.items() if r.by_modality}


def _page(wanted: Sequence[str], runs: Path, tables: Sequence[Table]) -> str:
    sections = [viewer.section("Systems", [viewer.table(t) for t in tables])]
    answered = {of.name: of for of in (Judgeable.find(name, runs) for name in wanted)}
    roots = [about(find(name, runs).stage("prepare")).root for name in wanted if not evaluated(name, runs)]
    if roots and (beside := cases(answered, roots[0])):
        sections.append(viewer.section("The same questions, answered by each", [beside]))
    sections.append(viewer.section("The paper's figures", [viewer.table(t) for t in evaluation.paper_tables()]))
    return viewer.page("ClinKD: systems side by side", sections, notice=evaluation.NOTICE)

"""Runs and evaluated answers in the paper's tables, side by side. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clinkd import evaluation, viewer
from clinkd.evaluation import Mode, Result, System
from clinkd.pipeline import evaluating
from clinkd.pipeline.answering import answers_of
from clinkd.pipeline.comparing import EVALUATION, Judgeable
from clinkd.pipeline.prepared import about, read_split, told_by
from clinkd.pipeline.runs import RUN_RECORD, SCORES, Run, find
from clinkd.records import BadInput, Prediction, Sample, Table, Task
from clinkd.remote import Scrubber
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


def _is_folder(name: str, runs: Path) -> bool:
    folder = Path(name).expanduser()
    return (folder / EVALUATION).is_file() and not any((f / RUN_RECORD).is_file() for f in (runs / name, folder))


def _system(name: str, runs: Path, mode: Mode) -> System:
    if not _is_folder(name, runs):
        return _of_run(find(name, runs), mode)
    folder = Path(name).expanduser()
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
    answered = [Judgeable.find(name, runs) for name in wanted]
    roots = [about(find(n, runs).stage("prepare")).root for n in wanted if not _is_folder(n, runs)]
    common = _common(answered)
    if roots and common and len(answered) > 1:
        said: dict[str, Sequence[Prediction]] = {j.name: j.predictions for j in answered}
        cases = evaluation.side_by_side(
            said, common, roots[0], lexicon=answered[0].lexicon, iou=answered[0].iou,
            shown=Scrubber(told_by(roots[0], common)).plain,
        )  # fmt: skip
        sections.append(viewer.section("The same questions, answered by each", [cases]))
    sections.append(viewer.section("The paper's figures", [viewer.table(t) for t in evaluation.paper_tables()]))
    return viewer.page("ClinKD: systems side by side", sections, notice=evaluation.NOTICE)


def _common(answered: Sequence[Judgeable]) -> list[Sample]:
    """Questions, the same in all, that all of them answered."""
    others = [{s.id: s for s in j.samples} for j in answered[1:]]
    return [s for s in answered[0].samples if all(o.get(s.id) == s for o in others)]

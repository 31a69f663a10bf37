"""Compare runs and folders of evaluated answers: by differences, in tables, case by case. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.pipeline.prepared import (
    EVALUATION,
    OUTSIDE,
    PREDICTIONS,
    SAMPLES,
    read_data_source,
    read_identifying_texts,
    read_predictions,
    read_split,
)
from clinkd.pipeline.runs import RUN_RECORD, SCORES, Run, find_run
from clinkd.records import BadInput, Sample, Table, Task
from clinkd.remote import PlainPage
from clinkd.reporting.cases import side_by_side
from clinkd.reporting.compare import ComparedAnswers, Comparison, compare_answers, compare_seeds
from clinkd.reporting.printed import paper_tables
from clinkd.reporting.systems import System, TaskResult, system_tables
from clinkd.reporting.viewer import page
from clinkd.reporting.viewer.shot import Html
from clinkd.scoring.measure import Rules
from clinkd.scoring.outcome import Mode
from clinkd.storage import JsonLines, progress, read_json, write_atomic
from clinkd.workflows.answer import collect_run_answers
from clinkd.workflows.evaluate import evaluate


def read_answers(source: Run | Path) -> ComparedAnswers:
    """Read the chosen answers of a run to its test split, or what `clinkd evaluate --out` wrote into a folder.

    Raises BadInput where the run is not finished, or a file is missing.
    """
    if isinstance(source, Run):
        prepared, selected = source.stage("prepare"), source.stage("select")
        root, lexicon = read_data_source(prepared)
        rules = Rules(source.config.evaluate.iou, lexicon)
        return ComparedAnswers(
            source.folder.name, read_split(prepared, "test"), read_predictions(selected), rules, root
        )
    for name in (EVALUATION, SAMPLES, PREDICTIONS):
        if not (source / name).is_file():
            raise BadInput(f"{source / name}: missing; `clinkd evaluate ... --out {source}` writes it")
    record = read_json(source / EVALUATION)
    samples = [Sample.from_json(line) for line in JsonLines(source / SAMPLES).read()]
    lexicon = Lexicon.from_json(record["lexicon"]) if "lexicon" in record else _collect_lexicon(samples)
    rules = Rules(record.get("iou", EvaluateConfig().iou), lexicon)
    name, predictions = str(record.get("system") or source.name), read_predictions(source)
    return ComparedAnswers(name, samples, predictions, rules, outside=_read_outside_scores(source / OUTSIDE))


def _read_outside_scores(file: Path) -> dict[str, dict[str, float]]:
    """By outside scorer and sample the score of the chosen answer; empty where no program scored."""
    scores: dict[str, dict[str, float]] = {}
    for row in JsonLines(file).read() if file.is_file() else ():
        scores.setdefault(row["scorer"], {})[row["id"]] = row["score"]
    return scores


def find_evaluated(wanted: str, runs: Path) -> Run | Path:
    """Find the run of that name under `runs` or at that path, else the folder of `clinkd evaluate --out` at that path.

    Raises BadInput naming the runs there are.
    """
    folder = Path(wanted).expanduser()
    is_run = any((f / RUN_RECORD).is_file() for f in (runs / wanted, folder))
    return folder if (folder / EVALUATION).is_file() and not is_run else find_run(wanted, runs)


def _collect_lexicon(samples: Sequence[Sample]) -> Lexicon:
    """Collect the classes that the records name, and the truths of class questions."""
    truths = {s.answer.words.rstrip(".") for s in samples if s.task is Task.ROC and not s.names}
    return Lexicon(tuple(sorted({n for s in samples for n in s.names} | truths)))


# ---- by differences -------------------------------------------------------------------------------------------------


def compare(ours: Sequence[str], against: Sequence[str], runs: Path) -> list[Comparison]:
    """Compare the first of `ours` with each of the rest; or, with `against`, each of `ours` with the one at its place
    there. A single pair is compared over its images, several pairs (seeds) by their figures.

    Raises BadInput where there is nothing to compare with, and where the numbers or the questions of a pair differ.
    """
    if against and len(against) != len(ours):
        raise BadInput(
            f"--against: {len(against)} for {len(ours)} runs; give one for each, in the order of their seeds"
        )
    if not against and len(ours) < 2:
        raise BadInput(f"{ours[0]}: nothing to compare it with; give another run, or --against RUN")
    pairs = list(zip(ours, against, strict=True)) if against else [(ours[0], other) for other in ours[1:]]
    seeds, comparisons = len(pairs) > 1 and bool(against), []
    with progress(len(pairs), "compare", "pairs") as advance:
        for pair in pairs:
            our_answers, their_answers = (read_answers(find_evaluated(name, runs)) for name in pair)
            replicates = 0 if seeds else EvaluateConfig().replicates
            comparisons.append(compare_answers(our_answers, their_answers, replicates))
            advance(1)
    return [compare_seeds(comparisons)] if seeds else comparisons


# ---- in the paper's tables ------------------------------------------------------------------------------------------


def tabulate_systems(
    wanted: Sequence[str], runs: Path, mode: Mode, same_data: bool = False, path: Path | None = None
) -> tuple[list[System], list[Table]]:
    """Read systems and build their tables. A system is a run under `runs` or a folder of `clinkd evaluate --out`.
    `path`: write an HTML page there, with the cases beside each other where all answered the same questions.

    Raises BadInput for a run that is not finished, and a folder that was not evaluated in this mode.
    """
    sources = [find_evaluated(name, runs) for name in wanted]
    systems = [
        _read_run_system(source, mode) if isinstance(source, Run) else _read_folder_system(name, source, mode)
        for name, source in zip(wanted, sources, strict=True)
    ]
    tables = system_tables(systems, mode, same_data)
    if path is not None:
        cases = render_cases({answers.name: answers for answers in map(read_answers, sources)})
        sections = page_sections("Systems", tables, cases, "each")
        write_atomic(path, page.document("ClinKD: systems side by side", sections))
    return systems, tables


def _read_folder_system(name: str, folder: Path, mode: Mode) -> System:
    record, table = read_json(folder / EVALUATION), read_json(folder / SCORES)
    if mode not in record["modes"]:
        raise BadInput(f"{name}: not evaluated in mode {mode}, only {', '.join(record['modes'])}; evaluate it again")
    results = _read_results(table["official"] if mode == "official" else table)
    return System(record["system"], record["test_set"]["name"], results)


def _read_run_system(run: Run, mode: Mode) -> System:
    data, name = run.config.data, run.folder.name
    test_set = data.path.name if data.path else f"phantoms, seed {run.config.seed}"
    if mode == "strict":
        return System(name, test_set, _read_results(run.scores()))
    chosen, train = read_answers(run), read_split(run.stage("prepare"), "train")
    answers = collect_run_answers(name, test_set, chosen.samples, chosen.predictions, chosen.rules.lexicon, train)
    evaluation = evaluate(answers, ["official"], run.config.evaluate)
    return System(name, test_set, {o.task: TaskResult.from_json(o.to_json()) for o in evaluation.outcomes})


def _read_results(tasks: Mapping[str, Mapping[str, Any]]) -> dict[Task, TaskResult]:
    results = {t: TaskResult.from_json(tasks[t.value]) for t in Task if t.value in tasks}
    return {t: r for t, r in results.items() if r.by_modality}


# ---- case by case ---------------------------------------------------------------------------------------------------


def render_cases(answered: Mapping[str, ComparedAnswers]) -> Html | None:
    """Show the same questions answered by each system (the paper's Figure 4). None where fewer than two answered, where
    they share no question, and where none knows the folder of the images."""
    root = next((answers.root for answers in answered.values() if answers.root), None)
    if len(answered) < 2 or root is None:
        return None
    first, *others = answered.values()
    other_samples = [{s.id: s for s in answers.samples} for answers in others]
    common = [s for s in first.samples if all(by_id.get(s.id) == s for by_id in other_samples)]
    if not common:
        return None
    predictions = {name: answers.predictions for name, answers in answered.items()}
    return side_by_side(predictions, common, root, first.rules, PlainPage(read_identifying_texts(root, common)))


def page_sections(title: str, tables: Sequence[Table], cases: Html | None, each: str) -> list[Html]:
    """Build the sections: tables under their title, the same questions answered by `each`, and the paper's figures."""
    sections = [page.section(title, [page.table(t) for t in tables])]
    if cases:
        sections.append(page.section(f"The same questions, answered by {each}", [cases]))
    return [*sections, page.section("The paper's figures", [page.table(t) for t in paper_tables()])]

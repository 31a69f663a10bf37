"""Compare any number of runs and folders of evaluated answers, in tables, by differences, case by case. Imports no
torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from clinkd.config import EvaluateConfig
from clinkd.data.questions import drop_added
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
from clinkd.pipeline.runs import SCORES, Run, find_run, is_run
from clinkd.records import BadInput, Sample, Task
from clinkd.remote import PlainPage
from clinkd.reporting.cases import SharedCases
from clinkd.reporting.compare import (
    ComparedAnswers,
    Comparison,
    ScoredSystem,
    compare_pair,
    compare_seeds,
    correct_together,
    find_hindrance,
    join_lexicons,
    score_systems,
)
from clinkd.reporting.printed import paper_tables
from clinkd.reporting.systems import ComparedSystems, System, TaskResult, pool_systems, tabulate_differences
from clinkd.reporting.viewer import page
from clinkd.reporting.viewer.shot import Html
from clinkd.scoring.measure import Rules
from clinkd.scoring.outcome import Mode
from clinkd.storage import JsonLines, progress, read_json, write_atomic
from clinkd.workflows.answer import collect_run_answers
from clinkd.workflows.evaluate import evaluate

MOST_FOR_ALL_PAIRS = 6
PAGE_TITLE = "ClinKD: systems side by side"
_CASES = 48  # on the page
_BY_DIFFERENCE = "In each part those stand first that most systems answered, and whose answers differ most."


@dataclass(frozen=True)
class HowToCompare:
    """`against`: as many systems as are compared, in the order of their seeds. `all_pairs`: else each is compared with
    the first. `same_data`: the test set is the paper's, so its printed rows stand among the systems."""

    against: Sequence[str] = ()
    all_pairs: bool = False
    mode: Mode = "strict"
    same_data: bool = False


@dataclass(frozen=True)
class _Member:
    """A system to compare: from a run, or from one or several evaluated folders of it. `strict`: its truths were read
    strictly, so its answers can be scored so."""

    answers: ComparedAnswers
    system: System
    places: tuple[str, ...]
    strict: bool = True
    is_run: bool = False


# ---- what is read ---------------------------------------------------------------------------------------------------


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
        scores.setdefault(row["scorer"], {})[row["id"]] = float(row["score"])
    return scores


def find_evaluated(wanted: str, runs: Path) -> Run | Path:
    """Find the run of that name under `runs` or at that path, else the folder of `clinkd evaluate --out` at that path.

    Raises BadInput naming the runs there are, and for a folder that is neither.
    """
    folder = Path(wanted).expanduser()
    if any(map(is_run, (runs / wanted, folder))):
        return find_run(wanted, runs)
    if (folder / EVALUATION).is_file():
        return folder
    if folder.is_dir():
        raise BadInput(
            f"{wanted}: neither a run nor a folder of clinkd evaluate --out (no {EVALUATION}); score its answers with "
            "`clinkd evaluate --predictions FILE --out DIR`, and give DIR"
        )
    return find_run(wanted, runs)


def _collect_lexicon(samples: Sequence[Sample]) -> Lexicon:
    """Collect the classes that the records name, and the truths of class questions."""
    truths = {s.answer.words.rstrip(".") for s in samples if s.task is Task.ROC and not s.names}
    return Lexicon(tuple(sorted({n for s in samples for n in s.names} | truths)))


def _read_member(wanted: str, runs: Path, mode: Mode) -> _Member:
    source = find_evaluated(wanted, runs)
    if isinstance(source, Run):
        answers = read_answers(source)
        return _Member(_name_ids_by_task(answers), _read_run_system(source, answers, mode), (wanted,), is_run=True)
    try:
        record, table, answers = read_json(source / EVALUATION), read_json(source / SCORES), read_answers(source)
        modes = record["modes"]
        results = _read_results(table["official"] if mode == "official" else table)
        system = System(answers.name, str(record["test_set"]["name"]), results)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput) and str(source) in str(error):
            raise
        raise BadInput(
            f"{source}: its files are not as `clinkd evaluate --out` writes them ({error}); evaluate the answers again"
        ) from None
    if mode not in modes:
        raise BadInput(f"{wanted}: not evaluated in mode {mode}, only {', '.join(modes)}; evaluate it again")
    return _Member(_name_ids_by_task(answers), system, (wanted,), "strict" in modes)


def _name_ids_by_task(answers: ComparedAnswers) -> ComparedAnswers:
    """The task before each id: files of several tasks that are joined may all count from 0."""
    name = {s.id: f"{s.task.value} {s.id}" for s in answers.samples}
    samples = [replace(s, id=name[s.id]) for s in answers.samples]
    predictions = [replace(p, id=name.get(p.id, p.id)) for p in answers.predictions]
    outside = {by: {name.get(id, id): score for id, score in of.items()} for by, of in answers.outside.items()}
    return replace(answers, samples=samples, predictions=predictions, outside=outside)


def _read_run_system(run: Run, chosen: ComparedAnswers, mode: Mode) -> System:
    data, name = run.config.data, run.folder.name
    test_set = data.path.name if data.path else f"phantoms, seed {run.config.seed}"
    if mode == "strict":
        return System(name, test_set, _read_results(run.scores()))
    train = drop_added(read_split(run.stage("prepare"), "train"))
    answers = collect_run_answers(name, test_set, chosen.samples, chosen.predictions, chosen.rules.lexicon, train)
    answers = replace(answers, validation=read_split(run.stage("prepare"), "validation"))
    evaluation = evaluate(answers, ["official"], run.config.evaluate)
    return System(name, test_set, {o.task: TaskResult.from_json(o.to_json()) for o in evaluation.outcomes})


def _read_results(tasks: Mapping[str, Mapping[str, Any]]) -> dict[Task, TaskResult]:
    results = {t: TaskResult.from_json(tasks[t.value]) for t in Task if t.value in tasks}
    return {t: r for t, r in results.items() if r.by_modality}


def _read_members(wanted: Sequence[str], runs: Path, mode: Mode) -> list[_Member]:
    """The systems in the order given, each with a name of its own. Folders of one system, each with tasks of its own,
    are joined. Raises BadInput for a task that two of them hold, and for a folder given twice."""
    if twice := [name for name, count in Counter(wanted).items() if count > 1]:
        raise BadInput(f"{twice[0]}: is given twice; name each run and folder once")
    members: dict[Hashable, _Member] = {}
    with progress(len(wanted), "read", "systems") as advance:
        for name in wanted:
            member = _read_member(name, runs, mode)
            key: Hashable = (name,) if member.is_run else member.system.name  # a run has all its tasks by itself
            members[key] = _join_members(members[key], member) if key in members else member
            advance(1)
    return _name_apart(list(members.values()))


def _name_apart(members: Sequence[_Member]) -> list[_Member]:
    """The same systems; those of one name get the number of their place behind it."""
    names = [m.system.name for m in members]
    apart = [f"{name} ({n})" if names.count(name) > 1 else name for n, name in enumerate(names, start=1)]
    if len({*apart}) < len(apart):  # one is called "a (1)" already
        apart = [f"{name} ({n})" for n, name in enumerate(names, start=1)]
    return [
        replace(m, answers=replace(m.answers, name=name), system=m.system._replace(name=name))
        for m, name in zip(members, apart, strict=True)
    ]


def _join_members(one: _Member, other: _Member) -> _Member:
    name, a, b = one.system.name, one.answers, other.answers
    if both := {s.task for s in a.samples} & {s.task for s in b.samples}:
        tasks = ", ".join(t.value for t in Task if t in both)
        raise BadInput(
            f"{name}: {tasks} is in {' and '.join((*one.places, *other.places))}; folders of one system are joined, so "
            "each task may be in one of them: leave one out, or evaluate it again under another name (--as)"
        )
    if a.rules.iou != b.rules.iou:
        raise BadInput(
            f"{name}: evaluate.iou={a.rules.iou:g} in {one.places[0]} is {b.rules.iou:g} in {other.places[0]}: they "
            "cannot be joined; evaluate one of them again"
        )
    rules = Rules(a.rules.iou, join_lexicons((a.rules.lexicon, b.rules.lexicon)))
    outside = {by: {**a.outside.get(by, {}), **b.outside.get(by, {})} for by in {**a.outside, **b.outside}}
    samples, predictions = [*a.samples, *b.samples], [*a.predictions, *b.predictions]
    answers = ComparedAnswers(name, samples, predictions, rules, outside=outside)
    sets = ", ".join(dict.fromkeys((one.system.test_set, other.system.test_set)))
    system = System(name, sets, {**one.system.results, **other.system.results})
    return _Member(answers, system, (*one.places, *other.places), one.strict and other.strict)


# ---- what is compared -----------------------------------------------------------------------------------------------


def compare(wanted: Sequence[str], runs: Path, how: HowToCompare, page_file: Path | None = None) -> ComparedSystems:
    """Put systems into the paper's tables, and compare the first with each of the others, or as `how` says. With
    `how.against` several pairs (seeds) are compared by their figures. `page_file`: write an HTML page there.

    Raises BadInput for what is no finished run and no evaluated folder, where the numbers of seeds differ, and where
    differences were asked for that do not exist.
    """
    if how.against and how.all_pairs:
        raise BadInput("--all-pairs: --against says which pairs are compared; give one of the two")
    if how.against and len(how.against) != len(wanted):
        raise BadInput(
            f"--against: {len(how.against)} for {len(wanted)} runs; give one for each, in the order of their seeds"
        )
    seeds = len(how.against) > 1
    if twice := [pair for pair, count in Counter(zip(wanted, how.against, strict=False)).items() if count > 1]:
        raise BadInput(f"--against: {' and '.join(twice[0])} are given twice, and a pair is one seed; give each once")
    if seeds:
        members = [_read_member(name, runs, how.mode) for name in (*wanted, *how.against)]
        pairs = [(n, n + len(wanted)) for n in range(len(wanted))]
    else:
        members = _read_members([*wanted, *how.against], runs, how.mode)
        pairs = [pair for pair in combinations(range(len(members)), 2) if how.all_pairs or pair[0] == 0]
    if how.all_pairs and not 2 <= len(members) <= MOST_FOR_ALL_PAIRS:
        raise BadInput(f"--all-pairs: {len(members)} systems; 2 to {MOST_FOR_ALL_PAIRS} can be compared so")
    hindrances = {pair: why for pair in pairs if (why := _find_hindrance(*(members[n] for n in pair)))}
    if hindrances and (seeds or (len(hindrances) == len(pairs) and (how.against or how.all_pairs))):
        raise BadInput(next(iter(hindrances.values())).rstrip("."))
    scored, comparisons = _compare_members(members, [pair for pair in pairs if pair not in hindrances], seeds)
    systems, notes = [m.system for m in members], _tell_joined(members)
    if seeds:
        systems = [pool_systems(systems[: len(wanted)]), pool_systems(systems[len(wanted) :])]
        notes += [f"Scores are means over {len(pairs)} seeds; their intervals are Student's, of the mean."]
        notes += [sentence for comparison in comparisons for sentence in comparison.list_left_out()]
        comparisons = [compare_seeds(comparisons)]
    corrected, left_out = correct_together(comparisons), list(hindrances.values())
    compared = ComparedSystems(how.mode, systems, corrected, left_out, notes, how.same_data)
    if page_file is not None:
        write_atomic(page_file, _build_page(compared, None if seeds else _collect_cases(scored)))
    return compared


def _find_hindrance(ours: _Member, theirs: _Member) -> str | None:
    if loose := next((m for m in (ours, theirs) if not m.strict), None):
        return (
            f"{ours.system.name} and {theirs.system.name}: {loose.system.name} was evaluated by the papers' scripts "
            "alone, and differences are strict; evaluate it again without --mode."
        )
    return find_hindrance(ours.answers, theirs.answers)


def _compare_members(
    members: Sequence[_Member], pairs: Sequence[tuple[int, int]], seeds: bool
) -> tuple[list[ScoredSystem], list[Comparison]]:
    """Score each system of a pair once, then compare the pairs; over seeds their figures alone."""
    if not pairs:
        return [], []
    needed = sorted({n for pair in pairs for n in pair})
    scored: dict[int, ScoredSystem] = {}
    comparisons = []
    with progress(len(needed) + len(pairs), "compare", "steps") as advance:
        replicates = 0 if seeds else EvaluateConfig().replicates
        for n, system in zip(needed, score_systems([members[n].answers for n in needed], replicates), strict=True):
            scored[n] = system
            advance(1)
        for ours, theirs in pairs:
            comparisons.append(compare_pair(scored[ours], scored[theirs], len(pairs) * len(Task)))
            advance(1)
    return list(scored.values()), comparisons


def _tell_joined(members: Sequence[_Member]) -> list[str]:
    """What was joined, a sentence each."""
    joined = (m for m in members if len(m.places) > 1)
    return [f"{m.system.name} is joined from {', '.join(m.places)}, each with tasks of its own." for m in joined]


# ---- the page -------------------------------------------------------------------------------------------------------


def _build_page(compared: ComparedSystems, cases: Html | None) -> str:
    first, *by_modality = map(page.table, compared.tables())
    differences = tabulate_differences(compared.comparisons)
    sections = [page.section("Systems", [first, page.folded("By modality", by_modality)])]
    if compared.comparisons or compared.hindrances:
        shown = map(page.table, (*differences.matrix, *differences.tasks))
        details = [page.folded(table.title, [page.table(table)]) for table in differences.details]
        left_out = [page.paragraph("Not compared:"), page.note(compared.hindrances)] if compared.hindrances else []
        sections.append(page.section("Differences", [*shown, *left_out, *details]))
    if cases:
        sections.append(page.section("The same questions, answered by each", [cases]))
    if not compared.prints_among:
        sections.append(page.section("The paper's figures", [page.framed([*map(page.table, paper_tables())])]))
    return page.document(
        PAGE_TITLE,
        sections,
        lead=f"{len(compared.systems)} systems: {', '.join(s.name for s in compared.systems)}.",
        footer="Made by ClinKD. This page holds everything it shows: no network.",
    )


def _collect_cases(systems: Sequence[ScoredSystem]) -> Html | None:
    """The questions that two systems or more answered, those first whose answers differ most. A question's picture is
    of the first system that knows its folder."""
    ordered = sorted(systems, key=lambda s: s.answers.root is None)  # stable
    samples: dict[Hashable, tuple[Sample, Path | None]] = {}
    for system in ordered:
        for question, place in system.answers.places.items():
            samples.setdefault(question, (system.answers.samples[place], system.answers.root))
    counts = Counter(question for system in systems for question in system.answers.places)
    number = {question: str(n) for n, question in enumerate(q for q in samples if counts[q] > 1)}
    if not number:
        return None
    answers = {}
    ratings: dict[str, list[float]] = defaultdict(list)
    for system in systems:
        by_id, its = {p.id: p for p in system.answers.predictions}, system.answers
        answers[system.name] = {
            number[q]: by_id[its.samples[place].id] for q, place in its.places.items() if q in number
        }
        for question, rating in system.rate_questions().items():
            if question in number:
                ratings[number[question]].append(rating)
    roots = {number[q]: root for q, (_, root) in samples.items() if q in number and root and root.is_dir()}
    questions = [replace(samples[q][0], id=number[q]) for q in number]
    cases = SharedCases(questions, answers, roots, systems[0].answers.rules)
    chosen = cases.choose_differing({id: max(values) - min(values) for id, values in ratings.items()}, _CASES)
    return replace(cases, shown=_plain(roots, chosen)).render_by_kind(chosen, _BY_DIFFERENCE)


def _plain(roots: Mapping[str, Path], chosen: Sequence[Sample]) -> PlainPage:
    """What takes names of persons, as headers and paths of the images hold them, out of the texts of a page."""
    by_root: dict[Path, list[Sample]] = defaultdict(list)
    for sample in chosen:
        if sample.id in roots:
            by_root[roots[sample.id]].append(sample)
    return PlainPage({text for root, samples in by_root.items() for text in read_identifying_texts(root, samples)})


def render_cases(answered: Mapping[str, ComparedAnswers]) -> Html | None:
    """Show the same questions answered by each row of an ablation (the paper's Figure 4), chosen without a look at the
    answers. None where fewer than two rows answered, and where they share no question."""
    if len(answered) < 2:
        return None
    first, *others = answered.values()
    other_samples = [{s.id: s for s in answers.samples} for answers in others]
    common = [s for s in first.samples if all(by_id.get(s.id) == s for by_id in other_samples)]
    if not common or first.root is None:
        return None
    answers = {name: {p.id: p for p in side.predictions} for name, side in answered.items()}
    cases = SharedCases(common, answers, {s.id: first.root for s in common}, first.rules)
    chosen = cases.choose_evenly(8)
    notice = "The questions take turns over tasks and modalities; they were chosen without a look at the answers."
    return replace(cases, shown=_plain(cases.roots, chosen)).render(chosen, notice)

"""Several systems as tables and JSON: the paper's Table 1 (by task), Tables 3 and 4 (by modality), and differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from clinkd.records import PAPER_MODALITIES, Modality, Table, Task
from clinkd.reporting.compare import LEVEL, Comparison, MetricDifference, pool_values
from clinkd.reporting.printed import (
    METRICS,
    ON_SECOND,
    PRINTED,
    PRINTED_BY_MODALITY,
    SECOND,
    TEST_SET,
    TITLES_BY_MODALITY,
)
from clinkd.reporting.tables import AVERAGED, MISSING, NOT_COMPUTED, TITLES, as_cell, mean_of_all
from clinkd.scoring.metrics import PRIMARY_METRIC
from clinkd.scoring.outcome import Mode
from clinkd.scoring.score import spell_interval

NAMES: Mapping[Mode, Mapping[Task, str]] = {
    "official": {Task.QA: Task.QA.value, **METRICS},  # the scripts know no free questions
    "strict": {task: f"{task.value} {metric}" for task, metric in PRIMARY_METRIC.items()},
}


class TaskResult(NamedTuple):
    """One task of a system, x100. None: not computed; `blind` is the best image-blind baseline."""

    score: float | None
    by_modality: Mapping[Modality, float | None]
    interval: tuple[float, float] | None = None
    blind: float | None = None
    why: str | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TaskResult:
        """Read a task as `clinkd table --json` or `clinkd evaluate --json` print it; `x` of the scripts is X-ray.

        Raises ValueError for a score that is no number.
        """
        names = {m.value: m for m in Modality} | {"x": Modality.XRAY}
        modalities = (value.get("by_modality") or {}).items()
        shares = {names.get(k, Modality.OTHER): _read_number(v.get("score")) for k, v in modalities}
        low, high = map(_read_number, value.get("interval") or (None, None))
        interval = None if low is None or high is None else (low, high)
        return cls(
            _read_number(value.get("score")), shares, interval, _read_number(value.get("blind")), value.get("why")
        )

    def to_json(self) -> dict[str, Any]:
        """The result for a program, modalities by their names here."""
        values = {key: getattr(self, key) for key in ("score", "interval", "blind", "why")}
        return values | {"by_modality": {m.value: v for m, v in self.by_modality.items()}}


def _read_number(value: Any) -> float | None:
    if value is None or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r} is no score")


_NO_RESULT = TaskResult(None, {})


class System(NamedTuple):
    """A system, its test set, and its score of each task in one mode."""

    name: str
    test_set: str
    results: Mapping[Task, TaskResult]

    @property
    def average(self) -> float | None:
        """Over the four tasks; None where one of them has no score."""
        return mean_of_all([result.score for result in self.averaged()])

    def averaged(self) -> list[TaskResult]:
        """The results of the four tasks."""
        return [self.results.get(task, _NO_RESULT) for task in AVERAGED]

    def to_json(self) -> dict[str, Any]:
        """For a program: the average, and the result of each task."""
        return {"average": self.average, **{task.value: result.to_json() for task, result in self.results.items()}}


def pool_systems(systems: Sequence[System]) -> System:
    """Several seeds of one system: means of all figures that each seed has; intervals are Student's, of the mean."""
    results: dict[Task, TaskResult] = {}
    for task in systems[0].results:
        seeds = [s.results.get(task, _NO_RESULT) for s in systems]
        scores = [r.score for r in seeds if r.score is not None]
        pooled = pool_values(scores) if len(scores) == len(seeds) else None
        by_modality = {m: mean_of_all([r.by_modality.get(m) for r in seeds]) for m in seeds[0].by_modality}
        blind, why = mean_of_all([r.blind for r in seeds]), next((r.why for r in seeds if r.why), None)
        results[task] = TaskResult(pooled and pooled.mean, by_modality, pooled and pooled.interval, blind, why)
    names, test_sets = (s.name for s in systems), (s.test_set for s in systems)
    return System(" ".join(dict.fromkeys(names)), ", ".join(dict.fromkeys(test_sets)), results)


# ---- the paper's tables ---------------------------------------------------------------------------------------------


def system_tables(systems: Sequence[System], mode: Mode, printed: bool = False) -> list[Table]:
    """Table 1, then each system by modality. `printed`: the tables also hold the paper's printed rows, which are of its
    test set and the official scripts; else these stand apart (`paper_tables`)."""
    return [_tabulate_tasks(systems, mode, printed), *(_tabulate_modalities(s, mode, printed) for s in systems)]


def _tabulate_tasks(systems: Sequence[System], mode: Mode, printed: bool) -> Table:
    further = [t for t in Task if t not in AVERAGED and any(t in s.results for s in systems)]
    lines = []
    for s in systems:
        results = [*s.averaged(), *(s.results.get(task, _NO_RESULT) for task in further)]
        lines.append((s.name, s.test_set, *map(_format_score, results), as_cell(s.average)))
        if any(r.interval for r in results):
            lines.append(("  95 %", "", *(spell_interval(r.interval) for r in results), MISSING))
        if any(r.blind is not None for r in results):
            lines.append(("  best blind baseline", "", *(as_cell(r.blind) for r in results), MISSING))
    if printed:
        rows: list[tuple[str, str, Sequence[float | None]]] = [(n, TEST_SET, values) for n, values in PRINTED.items()]
        rows += [(n, SECOND, (None, None, None, value, None)) for n, value in ON_SECOND.items()]
        for name, test_set, (*scores, average) in rows:
            cells = (as_cell(v, digits=2) for v in (*scores, *(None for _ in further), average))
            lines.append((f"Printed: {name}", test_set, *cells))
    notes = [
        {"official": "x100 by the papers' own scripts, with their faults (docs/EVALUATION.md).",
         "strict": "x100, strict mode: boxes one to one, names at word boundaries."}[mode],
        *_explain_missing(systems),
        *([] if printed else ["The paper's printed rows are of another test set and stand apart."]),
    ]  # fmt: skip
    if further:
        notes.append("The average is over VG, ROC, RC and MIA, as the paper's.")
    heads = ("System", "Test set", *(NAMES[mode][task] for task in (*AVERAGED, *further)), "Average")
    return Table("Systems by task", heads, tuple(lines), tuple(notes))


def _tabulate_modalities(system: System, mode: Mode, printed: bool) -> Table:
    lines = []
    for task in sorted(system.results, key=lambda task: task not in AVERAGED):
        result = system.results[task]
        cells = [as_cell(result.by_modality.get(m)) for m in PAPER_MODALITIES]
        lines.append((NAMES[mode][task], *cells, _format_score(result)))
        for name, by_task in PRINTED_BY_MODALITY.items() if printed and task in AVERAGED else ():
            lines.append((f"  printed, {TITLES_BY_MODALITY[name]}", *(as_cell(v, digits=2) for v in by_task[task])))
    scores_by_modality = [[r.by_modality[m] for r in system.averaged() if m in r.by_modality] for m in PAPER_MODALITIES]
    lines.append(("Average", *(as_cell(mean_of_all(scores)) for scores in scores_by_modality), as_cell(system.average)))
    heads = ("", *(TITLES[m] for m in PAPER_MODALITIES), "Mean")
    notes = (
        "The mean is over all modalities with questions, also those outside the paper's eight. The average of a column "
        "is over the tasks it has, and missing where one of them was not computed.",
    )
    title = f"{system.name} on {system.test_set} by modality"
    return Table(title, heads, tuple(lines), notes)


def _explain_missing(systems: Sequence[System]) -> list[str]:
    missing = [(s.name, t, r.why) for s in systems for t, r in s.results.items() if r.score is None and r.why]
    return [f"{name}: {task.value} not computed: {why}" for name, task, why in missing]


def _format_score(result: TaskResult) -> str:
    return as_cell(result.score, NOT_COMPUTED if result.by_modality else MISSING)


# ---- differences ----------------------------------------------------------------------------------------------------

_METHODS = {
    "questions": "Intervals: bootstrap over patients or images, in pairs, each for itself; so one may leave out 0 "
    "where p after Holm shows no difference. p: exchange of the answers to them.",
    "seeds": "Intervals and p: Student's, of the differences of pairs of runs (a pair a seed).",
}
_SMALLEST = (
    "Could have shown: the true difference that such data tell from 0 in 80 % of repetitions, at 5 %, two-sided."
)
_HOLM = 5  # the column "p after Holm" stands behind so many figures
_SINGLE = "p of a single figure, not corrected for how many there are."


class Differences(NamedTuple):
    """Tables of differences: `matrix` says at one glance which systems differ (empty for a single pair), `tasks` holds
    each pair's tasks with the sentences; `details` are its modalities and other main figures."""

    matrix: list[Table]
    tasks: list[Table]
    details: list[Table]


def tabulate_differences(comparisons: Sequence[Comparison]) -> Differences:
    """All pairs in the same tables. Without a comparison there are none."""
    if not comparisons:
        return Differences([], [], [])
    task_rows, modality_rows, other_rows = [], [], []
    for comparison in comparisons:
        pair = f"{comparison.ours} - {comparison.theirs}"
        for d in comparison.differences:
            name, cells = f"{d.task.value} {d.metric}", _format_difference(d)
            if comparison.primary_metrics.get(d.task) != d.metric:
                other_rows += [(pair, name, *cells)] if d.modality is None else []
            elif d.modality is None:
                groups = [str(comparison.shared[d.task].groups)] if d.task in comparison.shared else []
                holm = _format_p(comparison.corrected.get(d.task))
                task_rows.append((pair, name, *cells[:_HOLM], holm, *cells[_HOLM:], *groups))
            else:
                modality_rows.append((pair, name, TITLES[d.modality], *cells))
    over = comparisons[0].over
    figures = ("First", "Second", "Difference", "95 %", "p", "Could have shown", over.capitalize())
    groups = ["Patients or images"] if comparisons[0].shared else []
    columns = ("Pair", "", *figures[:_HOLM], "p after Holm", *figures[_HOLM:], *groups)
    tables = [Table("Differences", columns, tuple(task_rows), tuple(_explain_differences(comparisons)))]
    details = [
        Table("Differences by modality", ("Pair", "", "Modality", *figures), tuple(modality_rows), (_SINGLE,)),
        Table("Differences of other figures", ("Pair", "", *figures), tuple(other_rows), (_SINGLE,)),
    ]
    return Differences(_tabulate_matrix(comparisons), tables, [t for t in details if t.rows])


def _explain_differences(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for each pair and task, and what the columns mean."""
    lines = []
    for c in comparisons:
        pair = f"{c.ours} and {c.theirs}, " if len(comparisons) > 1 else ""
        lines += [f"{pair}{sentence}" for sentence in c.sentences()]
        lines += c.list_left_out()
    tests = sum(len(c.corrected) for c in comparisons)
    holm = f"p after Holm: corrected for all {tests} tests of this table. " if tests else ""
    method = (
        "x100, scored strictly with the words of all systems that share questions, mean over modalities; difference: "
        "the first system less the second."
    )
    return [*lines, method, f"{holm}{_METHODS[comparisons[0].over]}", _SMALLEST]


def _tabulate_matrix(comparisons: Sequence[Comparison]) -> list[Table]:
    """With one first system a table of the others by task; else a table of all by all for each task."""
    if len(comparisons) < 2:
        return []
    notes = (f"* p after Holm under {LEVEL:g}. {MISSING}: not compared.",)
    tasks = [t for t in Task if any(t in c.primary_metrics for c in comparisons)]
    firsts = list(dict.fromkeys(c.ours for c in comparisons))
    if len(firsts) == 1:
        rows = tuple((c.theirs, *(_format_cell(c, task) for task in tasks)) for c in comparisons)
        return [Table(f"{firsts[0]} less each other system", ("", *(t.value for t in tasks)), rows, notes)]
    names = list(dict.fromkeys(name for c in comparisons for name in (c.ours, c.theirs)))
    by_pair = {(c.ours, c.theirs): c for c in comparisons}
    tables = []
    for task in tasks:
        rows = tuple(
            (one, *(_format_cell(by_pair.get((one, other)) or by_pair.get((other, one)), task, one) for other in names))
            for one in names
        )
        tables.append(Table(f"{task.value}: the system of the row less that of the column", ("", *names), rows, notes))
    return tables


def _format_cell(comparison: Comparison | None, task: Task, first: str | None = None) -> str:
    if comparison is None or task not in comparison.primary_metrics:
        return MISSING
    value = comparison.get_primary(task).value * (1 if first in (None, comparison.ours) else -1)
    p = comparison.corrected.get(task)
    return f"{value:+.1f}{' *' if p is not None and p < LEVEL else ''}"


def _format_difference(d: MetricDifference) -> tuple[str, ...]:
    spreads = [f" (sd {pool.sd:.1f})" if pool.sd is not None else "" for pool in d.pools or ()] or ["", ""]
    ours, theirs = (f"{value:.1f}{spread}" for value, spread in zip((d.ours, d.theirs), spreads, strict=True))
    interval_cell = spell_interval(d.interval, "+")
    return ours, theirs, f"{d.value:+.1f}", interval_cell, _format_p(d.p), as_cell(d.smallest), str(d.count)


def _format_p(p: float | None) -> str:
    return MISSING if p is None else f"{p:.2g}"


# ---- together -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComparedSystems:
    """Systems in the paper's tables, the differences of their pairs, and why a pair has none.

    `notes`: what was joined or assumed, a sentence each. `same_data`: the test set is the paper's.
    """

    mode: Mode
    systems: Sequence[System]
    comparisons: Sequence[Comparison] = ()
    hindrances: Sequence[str] = ()
    notes: Sequence[str] = ()
    same_data: bool = False

    @property
    def prints_among(self) -> bool:
        """Whether the paper's printed rows stand among the systems, since nothing tells them from these."""
        return self.same_data and self.mode == "official"

    def tables(self) -> list[Table]:
        """Table 1 with what must be told, then a table by modality for each system."""
        first, *by_modality = system_tables(self.systems, self.mode, self.prints_among)
        return [replace(first, notes=(*first.notes, *self.notes)), *by_modality]

    def to_json(self) -> dict[str, Any]:
        """For a program, all figures x100, null where not computed.

        `systems`: by task the score, its interval, the best image-blind baseline and the modalities, in `mode`.
        `comparisons`: for each pair, by task, the metric it is compared by, the questions and groups that both
        answered, p after Holm over all tests here, a sentence, and by metric the difference in the mean over modalities
        and in each; always in strict mode. `not_compared`, `notes`: sentences.
        """
        rows = [{"system": s.name, "test_set": s.test_set, **s.to_json()} for s in self.systems]
        compared = [_describe_comparison(c) for c in self.comparisons]
        left_out, notes = list(self.hindrances), list(self.notes)
        return {
            "mode": self.mode, "systems": rows, "comparisons": compared, "not_compared": left_out, "notes": notes,
        }  # fmt: skip


def _describe_comparison(comparison: Comparison) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for (task, primary), sentence in zip(comparison.primary_metrics.items(), comparison.sentences(), strict=True):
        shared = comparison.shared.get(task)
        counts = {"questions": shared.questions, "groups": shared.groups} if shared else {}
        p_holm = comparison.corrected.get(task)
        tasks[task.value] = {"metric": primary, **counts, "p_holm": p_holm, "sentence": sentence, "metrics": {}}
    for d in comparison.differences:
        if d.task in comparison.primary_metrics:
            metric = tasks[d.task.value]["metrics"].setdefault(d.metric, {"by_modality": {}})
            place = metric if d.modality is None else metric["by_modality"].setdefault(d.modality.value, {})
            place.update(_describe_difference(d))
    return {"ours": comparison.ours, "theirs": comparison.theirs, "over": comparison.over, "tasks": tasks}


def _describe_difference(d: MetricDifference) -> dict[str, Any]:
    values: dict[str, Any] = {"answers" if d.pools is None else "seeds": d.count, "difference": d.value}
    for side, pool in zip(("ours", "theirs"), d.pools or (None, None), strict=True):
        values[side] = getattr(d, side)
        values |= {} if pool is None else {f"{side}_sd": pool.sd, f"{side}_interval": pool.interval}
    return values | {"interval": d.interval, "p": d.p, "smallest": d.smallest}

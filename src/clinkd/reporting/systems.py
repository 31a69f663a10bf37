"""Several systems in the form of the paper's tables: Table 1 (systems by tasks), Tables 3 and 4 (by modality)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clinkd.records import PAPER_MODALITIES, Modality, Table, Task
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
    "official": METRICS,
    "strict": {task: f"{task.value} {PRIMARY_METRIC[task]}" for task in AVERAGED},
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
        """Read a task as `clinkd table --json` or `clinkd evaluate --json` print it; `x` of the scripts is X-ray."""
        names = {m.value: m for m in Modality} | {"x": Modality.XRAY}
        shares = {names.get(k, Modality.OTHER): v.get("score") for k, v in (value.get("by_modality") or {}).items()}
        bounds = value.get("interval")
        return cls(value.get("score"), shares, bounds and tuple(bounds), value.get("blind"), value.get("why"))

    def to_json(self) -> dict[str, Any]:
        """The result for a program, modalities by their names here."""
        values = {key: getattr(self, key) for key in ("score", "interval", "blind", "why")}
        return values | {"by_modality": {m.value: v for m, v in self.by_modality.items()}}


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


def system_tables(systems: Sequence[System], mode: Mode, same_data: bool = False) -> list[Table]:
    """Table 1, then each system by modality. `same_data`: the test set is the paper's, so the tables also hold its
    printed rows, which are of the official scripts alone; else these stand apart (`paper_tables`)."""
    printed = same_data and mode == "official"
    return [_tabulate_tasks(systems, mode, printed), *(_tabulate_modalities(s, mode, printed) for s in systems)]


def _tabulate_tasks(systems: Sequence[System], mode: Mode, printed: bool) -> Table:
    lines = []
    for s in systems:
        results = s.averaged()
        lines.append((s.name, s.test_set, *map(_format_score, results), as_cell(s.average)))
        if any(r.interval for r in results):
            lines.append(("  95 %", "", *(spell_interval(r.interval) for r in results), MISSING))
        if any(r.blind is not None for r in results):
            lines.append(("  best blind baseline", "", *(as_cell(r.blind) for r in results), MISSING))
    if printed:
        lines += [(f"Printed: {n}", TEST_SET, *(f"{v:.2f}" for v in values)) for n, values in PRINTED.items()]
        lines += [
            (f"Printed: {n}", SECOND, MISSING, MISSING, MISSING, f"{v:.2f}", MISSING) for n, v in ON_SECOND.items()
        ]
    notes = [
        {"official": "x100 by the papers' own scripts, with their faults (docs/EVALUATION.md).",
         "strict": "x100, strict mode: boxes one to one, names at word boundaries."}[mode],
        *_explain_missing(systems),
        *([] if printed else ["The paper's printed rows are of another test set and stand apart."]),
    ]  # fmt: skip
    heads = ("System", "Test set", *NAMES[mode].values(), "Average")
    return Table("Systems (the paper's Table 1)", heads, tuple(lines), tuple(notes))


def _tabulate_modalities(system: System, mode: Mode, printed: bool) -> Table:
    lines = []
    for task, result in zip(AVERAGED, system.averaged(), strict=True):
        if result is _NO_RESULT:
            continue
        cells = [as_cell(result.by_modality.get(m)) for m in PAPER_MODALITIES]
        lines.append((NAMES[mode][task], *cells, _format_score(result)))
        for name, by_task in PRINTED_BY_MODALITY.items() if printed else ():
            lines.append((f"  printed, {TITLES_BY_MODALITY[name]}", *(as_cell(v, digits=2) for v in by_task[task])))
    scores_by_modality = [[r.by_modality[m] for r in system.averaged() if m in r.by_modality] for m in PAPER_MODALITIES]
    lines.append(("Average", *(as_cell(mean_of_all(scores)) for scores in scores_by_modality), as_cell(system.average)))
    heads = ("", *(TITLES[m] for m in PAPER_MODALITIES), "Mean")
    notes = (
        "The mean is over all modalities with questions, also those outside the paper's eight. The average of a column "
        "is over the tasks it has, and missing where one of them was not computed.",
    )
    title = f"{system.name} on {system.test_set} by modality (the paper's Tables 3 and 4)"
    return Table(title, heads, tuple(lines), notes)


def _explain_missing(systems: Sequence[System]) -> list[str]:
    missing = [(s.name, t, r.why) for s in systems for t, r in s.results.items() if r.score is None and r.why]
    return [f"{name}: {task.value} not computed: {why}" for name, task, why in missing if task in AVERAGED]


def _format_score(result: TaskResult) -> str:
    return as_cell(result.score, NOT_COMPUTED if result.by_modality else MISSING)

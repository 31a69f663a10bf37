"""Runs that differ by one change each, over seeds: scores by row, and what each change did, as tables and JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from clinkd.experiments import AblationRow
from clinkd.records import Table, Task
from clinkd.reporting.compare import SeedDifference, SeedMean, compare_paired_values, pool_values
from clinkd.reporting.printed import PRINTED
from clinkd.reporting.tables import AVERAGED, ScoreIndex, as_cell, describe_certain, format_signed, mean_of_all
from clinkd.scoring.metrics import PRIMARY_METRIC, list_shown_metrics
from clinkd.scoring.score import FIRST_BEAM, MODEL, spell_interval

AVERAGE = "Average of four"
# Columns of a results file and of the tables, in their order: primary metric, facts by task, mIoU of boxes, average.
COLUMNS = (
    *(f"{t.value} {m}" for t in Task for m in dict.fromkeys((PRIMARY_METRIC[t], *list_shown_metrics("ablation", t)))),
    AVERAGE,
)


class FinishedRun(NamedTuple):
    """A finished run of a row. `steps` counts student steps after the base; `passes` counts the compute of student and
    teacher in forward passes over the training data (a trained pass counts as three). Scores are x100, by column;
    those that were not computed are left out. `first_beam`: before selection. `blind`: the best image-blind baseline.
    """

    row: str
    seed: int
    steps: int
    passes: float
    scores: Mapping[str, float]
    first_beam: Mapping[str, float] = {}
    blind: Mapping[str, float] = {}

    @classmethod
    def of(cls, row: str, seed: int, steps: int, passes: float, scores: ScoreIndex) -> FinishedRun:
        """From all scores of a run."""
        keys = [(t, m) for t in Task for m in scores.metrics(t) if f"{t.value} {m}" in COLUMNS]

        def take(value: Callable[[Task, str], float | None], average: float | None) -> dict[str, float]:
            by_column = {f"{t.value} {m}": value(t, m) for t, m in keys} | {AVERAGE: average}
            return {column: v for column in COLUMNS if (v := by_column.get(column)) is not None}

        return cls(
            row, seed, steps, passes,
            take(partial(scores.value, MODEL), scores.average(MODEL)),
            take(partial(scores.value, FIRST_BEAM), scores.average(FIRST_BEAM)),
            take(scores.blind, None),
        )  # fmt: skip


class AblationGrid:
    """Finished runs by row and seed. `seeds`: those that were asked for; a row may have fewer."""

    def __init__(self, rows: Mapping[str, AblationRow], runs: Sequence[FinishedRun], seeds: Sequence[int] = ()) -> None:
        self.rows = {name: row for name, row in rows.items() if any(r.row == name for r in runs)}
        self.runs = {name: sorted((r for r in runs if r.row == name), key=lambda r: r.seed) for name in self.rows}
        self.seeds = tuple(seeds) or tuple(sorted({r.seed for r in runs}))

    def columns(self) -> list[str]:
        """The columns with values."""
        return [c for c in COLUMNS if any(self.values(row, c) for row in self.rows)]

    def values(self, row: str, column: str) -> dict[int, float]:
        """The scores x100 by seed, where they were computed."""
        return {r.seed: r.scores[column] for r in self.runs[row] if column in r.scores}

    def blind(self, row: str, column: str) -> float | None:
        """Mean over seeds of the best image-blind baseline; None if no seed has one."""
        return mean_of_all([r.blind[column] for r in self.runs[row] if column in r.blind])

    def pooled(self, row: str, column: str) -> SeedMean | None:
        """Mean and interval over the seeds that have a value."""
        values = self.values(row, column)
        return pool_values([*values.values()]) if values else None

    def paired(self, row: str, column: str) -> SeedDifference | None:
        """The row minus its reference row, over the seeds that both have; None without a reference."""
        against = self.rows[row].against
        if against not in self.rows:
            return None
        ours, theirs = self.values(row, column), self.values(against, column)
        both = [seed for seed in ours if seed in theirs]
        return compare_paired_values([ours[s] for s in both], [theirs[s] for s in both]) if both else None

    def count_seeds(self, row: str) -> str:
        """How many seeds a row has, "7 of 20" if it is short of some."""
        count = len(self.runs[row])
        return str(count) if count == len(self.seeds) else f"{count} of {len(self.seeds)}"


def ablation_tables(grid: AblationGrid, groups: Mapping[str, Sequence[str]]) -> list[Table]:
    """For each titled group of rows its scores and its differences; then the paper's changes beside ours.

    Rows without a finished run are left out.
    """
    tables = []
    for title, names in groups.items():
        finished = [n for n in names if n in grid.rows]
        if finished:
            tables.append(_tabulate_scores(grid, title, finished))
        if comparable := [n for n in finished if grid.rows[n].against in grid.rows]:
            tables.append(_tabulate_differences(grid, title, comparable))
    printed = [n for n in grid.rows if grid.rows[n].printed and n != "bird"]
    return [*tables, *([_tabulate_paper_changes(grid, printed)] if printed and "bird" in grid.rows else [])]


def ablation_json(grid: AblationGrid) -> dict[str, Any]:
    """Rows by name: seeds, mean and interval of each figure by "task metric", and its difference to the row that it
    is compared with; x100."""
    return {
        name: {
            "title": row.title,
            "change": row.change,
            "against": row.against,
            "seeds": [r.seed for r in grid.runs[name]],
            "steps": [r.steps for r in grid.runs[name]],
            "passes": [round(r.passes, 3) for r in grid.runs[name]],
            "scores": {
                column: {
                    "mean": pooled_scores.mean,
                    "interval": pooled_scores.interval,
                    "by_seed": {r.seed: r.scores.get(column) for r in grid.runs[name]},
                    "difference": (difference := grid.paired(name, column)) and difference._asdict(),
                }
                for column in grid.columns()
                if (pooled_scores := grid.pooled(name, column))
            },
        }
        for name, row in grid.rows.items()
    }


def _tabulate_scores(grid: AblationGrid, title: str, names: Sequence[str]) -> Table:
    columns, cells_by_row = grid.columns(), []
    for name in names:
        runs, pools = grid.runs[name], [grid.pooled(name, c) for c in columns]
        cost = (f"{sum(r.steps for r in runs) / len(runs):,.0f}", f"{sum(r.passes for r in runs) / len(runs):.1f}")
        means = (as_cell(pool and pool.mean) for pool in pools)
        cells_by_row.append((grid.rows[name].title, grid.count_seeds(name), *means, *cost))
        if any(pool and pool.interval for pool in pools):
            intervals = (spell_interval(pool and pool.interval) for pool in pools)
            cells_by_row.append(("  95 % over seeds", "", *intervals, "", ""))
    cells_by_row.append(("Best blind baseline", "", *(as_cell(grid.blind(names[0], c)) for c in columns), "", ""))
    heads = ("", "Seeds", *columns, "Steps", "Passes")
    notes = (
        *(f"{grid.rows[n].title}: {grid.rows[n].change}." for n in names),
        f"The blind baseline is of {grid.rows[names[0]].title}, for each task the one that its run chose.",
        "x100, strict mode, mean over seeds of the mean over modalities; each seed draws weights and order anew, and "
        "phantoms too. What was answered, so after selection where a row has one.",
        "Steps: of the student after its base, plain tuning, distillation and reflection alike. Passes: forward "
        "passes over the training data for student and teacher together, a trained pass counted as three; "
        "the training of the CLIP that chooses among beams is not counted.",
    )
    return Table(title, heads, tuple(cells_by_row), notes)


def _tabulate_differences(grid: AblationGrid, title: str, names: Sequence[str]) -> Table:
    columns, intervals = grid.columns(), 0
    lines: list[tuple[str, ...]] = []
    sentences: list[str] = []
    for name in names:
        row = grid.rows[name]
        assert row.against
        label = f"{row.title} - {grid.rows[row.against].title}"
        gains = [grid.paired(name, c) for c in columns]
        tested = [(head, g.mean, g.certain) for head, g in zip(columns, gains, strict=True) if g and g.interval]
        nothing = "no difference seen" if tested else "one seed tells no difference from chance"
        sentences.append(f"{label}: {describe_certain(tested) or nothing}.")
        intervals += len(tested)
        lines.append((label, *(format_signed(gain and gain.mean) for gain in gains)))
        lines.append(("  95 %", *(spell_interval(gain and gain.interval, "+") for gain in gains)))
        lines.append(("  smallest that would be seen", *(as_cell(gain and gain.smallest) for gain in gains)))
    by_chance = max(1, round(intervals / 20)) if intervals else 0
    notes = (
        *sentences,
        "Pairs of runs with the same seed; Student's intervals over the seeds. Smallest: the true difference that as "
        "many seeds of this spread would tell from 0 four times in five.",
        f"{intervals} intervals: about {by_chance} of them leave out 0 by chance alone.",
    )
    return Table(f"{title}: differences", ("", *columns), tuple(lines), notes)


def _tabulate_paper_changes(grid: AblationGrid, names: Sequence[str]) -> Table:
    """What each change added to BiRD: in the paper, and here. The data differ, so only signs and sizes compare."""
    columns = [f"{t.value} {PRIMARY_METRIC[t]}" for t in AVERAGED]
    lines = []
    for name in names:
        printed = grid.rows[name].printed
        assert printed
        theirs = [a - b for a, b in zip(PRINTED[printed][:4], PRINTED["BiRD"][:4], strict=True)]
        ours = [(gain := grid.paired(name, c)) and gain.mean for c in columns]
        lines.append((grid.rows[name].title, *(f"{v:+.2f}" for v in theirs), *map(format_signed, ours)))
    heads = ("Above BiRD", *(f"Paper {t.value}" for t in AVERAGED), *(f"Ours {t.value}" for t in AVERAGED))
    notes = (
        "Paper: differences of its printed Table 2 (Med-GRIT-270k, Qwen-VL, the official scripts, one run each, no "
        "intervals). Ours: this page's data and model, strict mode. Other data and another model: only signs compare.",
    )
    return Table("The paper's changes beside ours", heads, tuple(lines), notes)

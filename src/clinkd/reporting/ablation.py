"""Runs that differ by one change each, over seeds: scores by row, and what each change did, as tables and JSON.

One difference of a claim, its primary comparison, was named before any run and is tested alone. All others are
exploratory: their p are adjusted together by Holm's method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

from clinkd.experiments import AblationRow, Claim, Primary
from clinkd.records import Modality, Table, Task
from clinkd.reporting.compare import (
    LEVEL,
    SeedDifference,
    SeedMean,
    compare_paired_values,
    correct_by_holm,
    count_pairs_needed,
    pool_values,
)
from clinkd.reporting.printed import PRINTED
from clinkd.reporting.tables import AVERAGED, ScoreIndex, as_cell, describe_certain, format_signed, mean_of_all
from clinkd.scoring.likelihood import TOKEN_KINDS, LogLikelihood, TokenKind
from clinkd.scoring.metrics import PRIMARY_METRIC, list_shown_metrics
from clinkd.scoring.score import FIRST_BEAM, MODEL, spell_interval

AVERAGE = "Average of four"
LIKELIHOODS = tuple(f"{t.value} log-likelihood {kind}" for t in Task for kind in TOKEN_KINDS)
# Columns of a results file and of the tables, in their order: primary metric, facts by task, mIoU of boxes, average;
# then the log-likelihood of the truth, in nats.
COLUMNS = (
    *(f"{t.value} {m}" for t in Task for m in dict.fromkeys((PRIMARY_METRIC[t], *list_shown_metrics("ablation", t)))),
    AVERAGE,
    *LIKELIHOODS,
)
# The scores of a results file that stand there for each modality, too.
BY_MODALITY = tuple(
    f"{m.value} {c}" for c in (*(f"{t.value} {PRIMARY_METRIC[t]}" for t in Task), "VG mIoU") for m in Modality
)
WITHIN_REACH = 50  # pairs: on the small task, a minute a run, they take 100 minutes of two cores


class FinishedRun(NamedTuple):
    """A finished run of a row. `steps` counts student steps after the base; `passes` counts the compute of student and
    teacher in forward passes over the training data (a trained pass counts as three). Scores are x100, by column, and
    log-likelihoods in nats; those that were not computed are left out. `first_beam`: before selection. `blind`: the
    best image-blind baseline. `by_modality`: scores of `BY_MODALITY`. `fold`: of a cross-validation, from 1; else 0.
    """

    row: str
    seed: int
    steps: int
    passes: float
    scores: Mapping[str, float]
    first_beam: Mapping[str, float] = {}
    blind: Mapping[str, float] = {}
    by_modality: Mapping[str, float] = {}
    fold: int = 0

    @property
    def unit(self) -> int | str:
        """What pairs are made of: the seed, or the fold of a seed."""
        return f"{self.seed} fold {self.fold}" if self.fold else self.seed

    @classmethod
    def of(cls, row: str, seed: int, steps: int, passes: float, scores: ScoreIndex) -> FinishedRun:
        """From all scores of a run."""
        keys = [(t, m) for t in Task for m in scores.metrics(t) if f"{t.value} {m}" in COLUMNS]

        def take(value: Callable[[Task, str], float | None], average: float | None) -> dict[str, float]:
            by_column = {f"{t.value} {m}": value(t, m) for t, m in keys} | {AVERAGE: average}
            return {column: v for column in COLUMNS if (v := by_column.get(column)) is not None}

        parts = {f"{kind.value} {t.value} {m}": scores.value(MODEL, t, m, kind) for t, m in keys for kind in Modality}
        return cls(
            row, seed, steps, passes,
            take(partial(scores.value, MODEL), scores.average(MODEL)),
            take(partial(scores.value, FIRST_BEAM), scores.average(FIRST_BEAM)),
            take(scores.blind, None),
            {column: v for column in BY_MODALITY if (v := parts.get(column)) is not None},
        )  # fmt: skip

    def add_likelihoods(self, found: Mapping[tuple[Task, TokenKind], LogLikelihood]) -> FinishedRun:
        """The run with the log-likelihood of the truth among its scores."""
        added = {f"{task.value} log-likelihood {kind}": of.mean for (task, kind), of in found.items()}
        return self._replace(scores={**self.scores, **added})


class AblationGrid:
    """Finished runs by row and unit (a seed, or the fold of a seed). `wanted`: how many runs of a row were asked for; a
    row may have fewer. `claim`: names the primary comparison."""

    def __init__(
        self,
        rows: Mapping[str, AblationRow],
        runs: Sequence[FinishedRun],
        wanted: int | None = None,
        claim: Claim | None = None,
    ) -> None:
        self.rows = {name: row for name, row in rows.items() if any(r.row == name for r in runs)}
        self.runs = {
            name: sorted((r for r in runs if r.row == name), key=lambda r: (r.seed, r.fold)) for name in self.rows
        }
        self.wanted = len({r.unit for r in runs}) if wanted is None else wanted
        self.claim = claim

    @property
    def primary(self) -> Primary | None:
        """The primary comparison, if both of its rows have a run."""
        return self.named if self.named and {self.named.row, self.named.against} <= self.rows.keys() else None

    @cached_property
    def named(self) -> Primary | None:
        """The primary comparison of the claim, in the measure that these runs have."""
        primary = self.claim and self.claim.primary
        if not primary or primary.otherwise is None or primary.column in self.columns():
            return primary
        return primary._replace(column=primary.otherwise)

    def columns(self) -> list[str]:
        """The columns with values."""
        return [c for c in COLUMNS if any(self.values(row, c) for row in self.rows)]

    def values(self, row: str, column: str) -> dict[int | str, float]:
        """The scores by unit, where they were computed: x100, or nats."""
        return {r.unit: r.scores[column] for r in self.runs[row] if column in r.scores}

    def blind(self, row: str, column: str) -> float | None:
        """Mean over runs of the best image-blind baseline; None if no run has one."""
        return mean_of_all([r.blind[column] for r in self.runs[row] if column in r.blind])

    def pooled(self, row: str, column: str) -> SeedMean | None:
        """Mean and interval over the runs that have a value."""
        values = self.values(row, column)
        return pool_values([*values.values()]) if values else None

    def paired(self, row: str, column: str, against: str | None = None) -> SeedDifference | None:
        """The row minus its reference row (or another), over the units that both have; None without a reference."""
        both = self._pair(row, column, against)
        return compare_paired_values([a for a, _ in both], [b for _, b in both]) if both else None

    def spread(self, row: str, column: str, against: str) -> float | None:
        """The standard deviation of the differences of pairs; None for fewer than two."""
        both = self._pair(row, column, against)
        return pool_values([a - b for a, b in both]).sd if both else None

    def _pair(self, row: str, column: str, against: str | None) -> list[tuple[float, float]]:
        against = against or self.rows[row].against
        if against not in self.rows:
            return []
        ours, theirs = self.values(row, column), self.values(against, column)
        return [(ours[unit], theirs[unit]) for unit in ours if unit in theirs]

    def is_primary(self, row: str, column: str) -> bool:
        """Whether the difference of a row to its reference row in a column is the primary comparison."""
        return self.primary is not None and (row, self.rows[row].against, column) == self.primary[:3]

    @cached_property
    def adjusted(self) -> dict[tuple[str, str], float]:
        """p of all exploratory differences by row and column, adjusted by Holm's method over all of them."""
        p = {(r, c): d.p for r in self.rows for c in self.columns() if (d := self.paired(r, c)) and d.p is not None}
        return correct_by_holm({key: value for key, value in p.items() if not self.is_primary(*key)})

    def count_runs(self, row: str) -> str:
        """How many runs a row has, "7 of 20" if it is short of some."""
        count = len(self.runs[row])
        return str(count) if count == self.wanted else f"{count} of {self.wanted}"

    @property
    def unit(self) -> str:
        """The word for what pairs are made of."""
        return "fold" if any(r.fold for runs in self.runs.values() for r in runs) else "seed"


def ablation_tables(grid: AblationGrid, groups: Mapping[str, Sequence[str]]) -> list[Table]:
    """The primary comparison; for each titled group of rows its scores and its differences, and the same of the
    likelihood of the truth; then the paper's changes beside ours.

    Rows without a finished run are left out.
    """
    tables = [tabulate_primary(grid)] if grid.claim and grid.claim.primary else []
    scores = [c for c in grid.columns() if c not in LIKELIHOODS]
    likelihoods = [c for c in grid.columns() if c in LIKELIHOODS]
    for title, names in groups.items():
        finished = [n for n in names if n in grid.rows]
        comparable = [n for n in finished if grid.rows[n].against in grid.rows]
        for heading, columns in ((title, scores), (f"{title}, likelihood of the truth", likelihoods)):
            if finished and columns:
                tables.append(_tabulate_scores(grid, heading, finished, columns))
            if comparable and columns:
                tables.append(_tabulate_differences(grid, heading, comparable, columns))
    printed = [n for n in grid.rows if grid.rows[n].printed and grid.rows[n].against == "bird"]
    return [*tables, *([_tabulate_paper_changes(grid, printed)] if printed and "bird" in grid.rows else [])]


def ablation_json(grid: AblationGrid) -> dict[str, Any]:
    """Rows by name: seeds, mean and interval of each figure by "task metric", and its difference to the row that it
    is compared with, `p_holm` adjusted over all exploratory ones; x100, log-likelihoods in nats."""

    def describe(name: str, column: str) -> dict[str, Any] | None:
        difference = grid.paired(name, column)
        return difference and {**difference._asdict(), "p_holm": grid.adjusted.get((name, column))}

    return {
        name: {
            "title": row.title,
            "change": row.change,
            "against": row.against,
            "seeds": [r.seed for r in grid.runs[name]],
            "folds": [r.fold for r in grid.runs[name]],
            "steps": [r.steps for r in grid.runs[name]],
            "passes": [round(r.passes, 3) for r in grid.runs[name]],
            "scores": {
                column: {
                    "mean": pooled_scores.mean,
                    "interval": pooled_scores.interval,
                    "by_seed": {r.unit: r.scores.get(column) for r in grid.runs[name]},
                    "difference": describe(name, column),
                }
                for column in grid.columns()
                if (pooled_scores := grid.pooled(name, column))
            },
        }
        for name, row in grid.rows.items()
    }


# ---- the primary comparison -----------------------------------------------------------------------------------------


class PrimaryResult(NamedTuple):
    """The primary comparison of a claim. `needed`: pairs that see its `smallest` four times in five, by the spread so
    far; None where that is not known. `sentence`: what was found."""

    primary: Primary
    difference: SeedDifference | None
    needed: int | None
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        difference = self.difference and self.difference._asdict()
        return {**self.primary._asdict(), "difference": difference, "pairs_needed": self.needed, "says": self.sentence}


def compare_primary(grid: AblationGrid) -> PrimaryResult | None:
    """Test the primary comparison of the grid's claim; None where none was named."""
    primary = grid.named
    if not primary:
        return None
    if not grid.primary:
        missing = " and ".join(n for n in (primary.row, primary.against) if n not in grid.rows)
        return PrimaryResult(primary, None, None, f"No run of {missing} is finished, so nothing can be said.")
    row, against, column, smallest, *_ = primary
    found, sd = grid.paired(row, column, against), grid.spread(row, column, against)
    needed = count_pairs_needed(sd, smallest) if sd else None
    if found is None or found.interval is None:
        return PrimaryResult(primary, found, None, _describe_no_spread(grid, primary, found))
    digits = _count_digits(column)
    ours, theirs = grid.rows[row].title, grid.rows[against].title
    figures = f"{found.mean:+.{digits}f} {spell_interval(found.interval, '+', digits)} in {column}, p = {found.p:.2g}"
    named = f"{smallest:g} or more"
    if found.pairs < primary.fixed:
        count = f"{found.pairs} of {primary.fixed} {grid.unit}s that were fixed beforehand"
        sentence = f"{count}: no conclusion yet ({figures})."
    elif found.certain:
        sentence = f"Seen: {ours} is {'above' if found.mean > 0 else 'below'} {theirs} ({figures})."
    elif found.smallest is not None and found.smallest <= smallest:
        sentence = f"Not seen ({figures}): a true difference of {named} would have been seen four times in five."
    elif needed is None or needed > WITHIN_REACH:
        count = f"{needed:,}" if needed else "over a million"
        sentence = f"Not seen ({figures}). A difference of {named} needs {count} {grid.unit}s: out of reach."
    else:
        sentence = f"Not seen ({figures}). A difference of {named} needs {needed} {grid.unit}s; here are {found.pairs}."
    return PrimaryResult(primary, found, needed, sentence)


def _describe_no_spread(grid: AblationGrid, primary: Primary, found: SeedDifference | None) -> str:
    """Why the primary comparison has no interval."""
    if found is None:
        return f"No {grid.unit} has {primary.column} of both rows, so nothing can be said."
    if found.pairs == 1:
        return f"One {grid.unit} tells no difference from chance."
    return f"All {found.pairs} {grid.unit}s differ by the same amount, so that nothing is known of chance."


def tabulate_primary(grid: AblationGrid) -> Table:
    """The primary comparison of the grid's claim, which has one."""
    result = compare_primary(grid)
    assert result and grid.claim
    primary, found = result.primary, result.difference
    digits = _count_digits(primary.column)
    cells = (
        str(found.pairs) if found else "0",
        format_signed(found and found.mean, digits),
        spell_interval(found and found.interval, "+", digits),
        "-" if found is None or found.p is None else f"{found.p:.2g}",
        as_cell(found and found.smallest, digits=digits),
        f"{primary.smallest:g}",
        "-" if result.needed is None else f"{result.needed:,}",
    )
    heads = ("Pairs", "Difference", "95 %", "p", "Smallest seen", "Named beforehand", "Pairs needed for it")
    unit = "nats a token" if primary.column in LIKELIHOODS else "points (x100)"
    notes = (
        f"{grid.claim.question} {result.sentence}",
        f"Named before any run: {primary.row} - {primary.against} in {primary.column}, {unit}. Pairs of the same "
        f"{grid.unit}; Student's interval and p, not adjusted.",
        "Smallest seen: the true difference that as many pairs of this spread tell from 0 four times in five. p holds "
        f"for a number of {grid.unit}s that is fixed beforehand: who looks again and again finds more by chance.",
        *_describe_folds(grid),
    )
    return Table("Primary comparison", ("", *heads), ((f"{primary.row} - {primary.against}", *cells),), notes)


def _count_digits(column: str) -> int:
    """Digits behind the point: nats are small."""
    return 3 if column in LIKELIHOODS else 1


def _describe_folds(grid: AblationGrid) -> list[str]:
    """What must be known of pairs of folds."""
    return [
        "Folds share training images, so they differ less than other patients would: intervals are somewhat too narrow."
    ] if grid.unit == "fold" else []  # fmt: skip


# ---- all rows -------------------------------------------------------------------------------------------------------


def _tabulate_scores(grid: AblationGrid, title: str, names: Sequence[str], columns: Sequence[str]) -> Table:
    cells_by_row: list[tuple[str, ...]] = []
    places = [_count_digits(c) for c in columns]
    for name in names:
        runs, pools = grid.runs[name], [grid.pooled(name, c) for c in columns]
        cost = (f"{sum(r.steps for r in runs) / len(runs):,.0f}", f"{sum(r.passes for r in runs) / len(runs):.1f}")
        means = (as_cell(pool and pool.mean, digits=d) for pool, d in zip(pools, places, strict=True))
        cells_by_row.append((grid.rows[name].title, grid.count_runs(name), *means, *cost))
        if any(pool and pool.interval for pool in pools):
            ends = [pool and pool.interval for pool in pools]
            intervals = (spell_interval(end, digits=d) for end, d in zip(ends, places, strict=True))
            cells_by_row.append((f"  95 % over {grid.unit}s", "", *intervals, "", ""))
    blind = [grid.blind(names[0], c) for c in columns]
    heads = ("", f"{grid.unit.capitalize()}s", *columns, "Steps", "Passes")
    changes = tuple(f"{grid.rows[n].title}: {grid.rows[n].change}." for n in names)
    if all(c in LIKELIHOODS for c in columns):
        return Table(title, heads, tuple(cells_by_row), (_NATS, *_describe_folds(grid)))
    cells_by_row.append(("Best blind baseline", "", *map(as_cell, blind), "", ""))
    notes = (
        *changes,
        f"The blind baseline is of {grid.rows[names[0]].title}, for each task the one that its run chose.",
        f"x100, strict mode, mean over {grid.unit}s of the mean over modalities; each seed draws weights and order "
        "anew, and phantoms too. What was answered, so after selection where a row has one.",
        "Steps: of the student after its base, plain tuning, distillation and reflection alike. Passes: forward "
        "passes over the training data for student and teacher together, a trained pass counted as three; "
        "the training of the CLIP that chooses among beams is not counted.",
        *_describe_folds(grid),
    )
    return Table(title, heads, tuple(cells_by_row), notes)


_NATS = (
    "The mean log-probability of a token of the true answer under the final model, in nats; 0 is best. box: "
    "coordinates; name: the structures asked about; rest: all else. The mean is over tokens, then questions, then "
    "modalities."
)


def _tabulate_differences(grid: AblationGrid, title: str, names: Sequence[str], columns: Sequence[str]) -> Table:
    lines: list[tuple[str, ...]] = []
    sentences: list[str] = []
    places = [_count_digits(c) for c in columns]
    for name in names:
        row = grid.rows[name]
        assert row.against
        label = f"{row.title} - {grid.rows[row.against].title}"
        gains = [(grid.paired(name, c), d) for c, d in zip(columns, places, strict=True)]
        p = [grid.adjusted.get((name, c)) for c in columns]
        tested = [(c, g.mean, q < LEVEL) for c, (g, _), q in zip(columns, gains, p, strict=True) if g and q is not None]
        nothing = "no difference seen" if tested else f"one {grid.unit} tells no difference from chance"
        sentences.append(f"{label}: {describe_certain(tested, digits=max(places)) or nothing}.")
        marks = ("primary" if grid.is_primary(name, c) else "-" for c in columns)
        lines.append((label, *(format_signed(g and g.mean, d) for g, d in gains)))
        lines.append(("  95 %", *(spell_interval(g and g.interval, "+", d) for g, d in gains)))
        lines.append(("  p, Holm", *(m if q is None else f"{q:.2g}" for m, q in zip(marks, p, strict=True))))
        lines.append(("  smallest that would be seen", *(as_cell(g and g.smallest, digits=d) for g, d in gains)))
    notes = (
        *sentences,
        f"Pairs of runs with the same {grid.unit}; Student's intervals over the {grid.unit}s. Smallest: the true "
        "difference that as many pairs of this spread would tell from 0 four times in five.",
        f"Exploratory, Holm: p of all {len(grid.adjusted)} differences of this page are adjusted together, and the "
        "sentences go by them. The intervals are not adjusted: one in twenty leaves out 0 by chance.",
    )
    return Table(f"{title}: differences (exploratory, Holm)", ("", *columns), tuple(lines), notes)


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

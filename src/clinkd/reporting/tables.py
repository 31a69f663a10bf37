"""Scores as tables for people (Markdown, CSV) and as JSON for programs, with the paper's printed rows apart."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from clinkd.records import PAPER_MODALITIES, BoxedText, Modality, Score, Table, Task
from clinkd.scoring.metrics import FACTS, FLAWS, NOT_ASKED, NOTHING_SAID, PRIMARY_METRIC, wilson
from clinkd.scoring.score import FIRST_BEAM, MODEL, ORACLE, Gain, is_choice, spelled

AVERAGED = (Task.VG, Task.ROC, Task.RC, Task.MIA)  # the paper's overall figure is the mean of these four
TITLES = {
    Modality.CT: "CT", Modality.MR: "MR", Modality.XRAY: "X-ray", Modality.PET: "PET",
    Modality.ENDOSCOPY: "Endoscopy", Modality.DERMOSCOPY: "Dermoscopy", Modality.FUNDUS: "Fundus",
    Modality.ULTRASOUND: "Ultrasound", Modality.MICROSCOPY: "Microscopy", Modality.OTHER: "Other",
}  # fmt: skip
MISSING, NOT_COMPUTED = "-", "not computed"
SCORES, BY_MODALITY, OUTSIDE, BY_SOURCE = "scores", "by_modality", "outside_modalities", "by_source"  # keys of tables
SELECTION = "selection"
_TITLES_OF_TABLES = {
    SCORES: "Scores",
    BY_MODALITY: "Task by modality",
    OUTSIDE: "Outside the paper's modalities",
    BY_SOURCE: "By source",
    SELECTION: "What selection gained",
}


class ScoreIndex:
    """Scores, found by who, task, metric and modality."""

    def __init__(self, scores: Iterable[Score]) -> None:
        self._found = {(s.row, s.task, s.metric, s.modality): s for s in scores}

    def get(self, row: str, task: Task, metric: str, modality: Modality | None = None) -> Score | None:
        return self._found.get((row, task, metric, modality))

    def value(self, row: str, task: Task, metric: str, modality: Modality | None = None) -> float | None:
        found = self.get(row, task, metric, modality)
        return found.value if found else None

    def metrics(self, task: Task) -> list[str]:
        return list(dict.fromkeys(m for _, t, m, _ in self._found if t is task))

    def modalities(self, task: Task, metric: str) -> list[Modality]:
        """Those with questions, in the order of the paper's columns."""
        there = {m for r, t, k, m in self._found if (r, t, k) == (MODEL, task, metric)}
        return [m for m in Modality if m in there]

    def twins(self) -> list[str]:
        return list(dict.fromkeys(r for r, _, _, _ in self._found if not is_choice(r)))

    def choices(self) -> list[str]:
        """Rows of the model's own candidates, the first beam first and the oracle last."""
        there = dict.fromkeys(r for r, _, _, _ in self._found if is_choice(r))
        last = [r for r in (MODEL, ORACLE) if r in there]
        return [*(r for r in there if r == FIRST_BEAM), *(r for r in there if r not in (FIRST_BEAM, *last)), *last]

    def blind(self, task: Task, metric: str, modality: Modality | None = None) -> tuple[str, float] | None:
        """The best image-blind twin and its figure; None where none was computed."""
        values = {t: v for t in self.twins() if (v := self.value(t, task, metric, modality)) is not None}
        return max(values.items(), key=lambda tv: tv[1]) if values else None

    def columns(self) -> list[tuple[Task, str]]:
        """What stands first of each task: its headline, and the facts; the paper's four tasks before others."""
        columns = [(t, m) for t in Task for m in (PRIMARY_METRIC[t], FACTS) if m in self.metrics(t)]
        return [c for c in columns if c[0] in AVERAGED] + [c for c in columns if c[0] not in AVERAGED]

    def reasons(self, columns: Sequence[tuple[Task, str]]) -> list[str]:
        """Why some of them could not be computed, in sentences."""
        found = [self.get(MODEL, t, m) for t, m in columns]
        return [f"{s.task.value} {s.metric} not computed: {s.why}." for s in found if s and s.value is None]


# ---- for a program --------------------------------------------------------------------------------------------------


def table_json(
    scores: Sequence[Score], wall_seconds: Mapping[str, float], gains: Sequence[Gain] = ()
) -> dict[str, Any]:
    """What `clinkd table RUN --json` prints, x100; null with a "why" where a figure could not be computed.

    `blind` is the highest of the image-blind twins, in each modality anew. `by_modality` holds the modalities that
    have questions of the task. `selection` holds, by task, metric and row, what other choices of the candidates score
    in the mean over modalities, and their gain over the first beam, each with its 95 % interval or null.
    """
    board = ScoreIndex(scores)
    found: dict[str, Any] = {"mode": "strict"}
    for task in Task:
        found[task.value] = _task_json(board, task, PRIMARY_METRIC[task])
        if task in (Task.RC, Task.MIA):
            facts = _task_json(board, task, FACTS)
            found[task.value]["facts"] = {k: facts[k] for k in ("score", "blind", "why") if k in facts}
    missing = [t.value for t in AVERAGED if found[t.value]["score"] is None]
    found["average"] = None if missing else sum(found[t.value]["score"] for t in AVERAGED) / len(AVERAGED)
    if missing:
        found["average_why"] = f"{', '.join(missing)} not computed: a mean over the others would be another figure"
    found["selection"] = _selection_json(board, gains)
    found["wall_seconds"] = dict(wall_seconds)
    return found


def _selection_json(board: ScoreIndex, gains: Sequence[Gain]) -> dict[str, Any]:
    known = {(g.task, g.metric, g.row): g for g in gains}
    found: dict[str, Any] = {}
    for task, metric in dict.fromkeys((g.task, g.metric) for g in gains):
        rows = found.setdefault(task.value, {}).setdefault(metric, {})
        for row in board.choices():
            own, gain = board.get(row, task, metric), known.get((task, metric, row))
            if own is None:  # nothing of this kind was asked
                continue
            rows[row] = {"score": own.value, "interval": _pair_json(own.interval)}
            if gain:
                rows[row] |= {"gain": gain.value, "gain_interval": _pair_json(gain.interval)}
    return found


def _pair_json(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _task_json(board: ScoreIndex, task: Task, metric: str) -> dict[str, Any]:
    whole = _pair(board, task, metric, None)
    by = {t: board.value(t, task, metric) for t in board.twins() if board.get(t, task, metric)}
    modalities = {m.value: _pair(board, task, metric, m) for m in board.modalities(task, metric)}
    found = {"metric": metric, "score": whole["score"], "blind": whole["blind"], "blind_by": by}
    found["by_modality"] = modalities
    return {**found, "why": whole["why"]} if "why" in whole else found


def _pair(board: ScoreIndex, task: Task, metric: str, modality: Modality | None) -> dict[str, Any]:
    own, blind = board.get(MODEL, task, metric, modality), board.blind(task, metric, modality)
    found: dict[str, Any] = {"score": own.value if own else None, "blind": blind[1] if blind else None}
    if found["score"] is None:
        found["why"] = own.why if own else _absent(board, task)
    return found


def _absent(board: ScoreIndex, task: Task) -> str:
    if board.metrics(task):
        return "the data state no facts (name, size, side, brightness, count) for this task"
    return f"the test split has no {task.value} questions"


# ---- for people -----------------------------------------------------------------------------------------------------


def tabulate(scores: Sequence[Score], gains: Sequence[Gain] = ()) -> list[Table]:
    """Overall, by modality, outside the paper's eight modalities and what selection gained (where there are any), every
    metric, and flaws."""
    board = ScoreIndex(scores)
    outside = _by_modality(board, tuple(Modality)[len(PAPER_MODALITIES) :], OUTSIDE)
    tables = [_overall(board), _by_modality(board, PAPER_MODALITIES, BY_MODALITY)]
    selection = [_selection(board, gains)] if any(g.value for g in gains) else []
    return [*tables, *([outside] if outside.rows else []), *selection, _every_metric(board), _flaws(board)]


def _keyed(key: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]], notes: Sequence[str]) -> Table:
    return Table(_TITLES_OF_TABLES[key], tuple(columns), tuple(rows), tuple(notes), key)


def _overall(board: ScoreIndex) -> Table:
    """Like the paper's Table 2: who answered against task."""
    columns = board.columns()
    lines = [_line(board, MODEL, "Model", columns)]
    ends = [board.get(MODEL, t, m) for t, m in columns]
    lines.append(("  95 % interval", *(_interval(s) for s in ends), MISSING))
    best = [board.blind(t, m) for t, m in columns]
    lines.append(
        ("Best blind twin", *(as_cell(b[1] if b else None, NOT_COMPUTED) for b in best), _mean_cell(board, None))
    )
    above = [
        s.value - b[1] if s and s.value is not None and b else None for s, b in zip(ends, best, strict=True)
    ]  # fmt: skip
    lines.append(("  Model above it", *(signed(a) for a in above), MISSING))
    lines += [_line(board, t, f"  Blind: {t}", columns) for t in board.twins()]
    lines += [_line(board, FIRST_BEAM, "First beam, no selection", columns)]
    lines += [_line(board, ORACLE, "Best candidate (oracle)", columns)]
    notes = (
        "x100, strict mode, mean over the modalities that have questions. "
        "VG F1: boxes matched one to one at IoU 0.5, or as evaluate.iou says; spare ones count against it.",
        "A blind twin answers without seeing the image: only what stands above the best of them was seen in the image.",
        "The oracle picks each answer by its truth: no selection can do better.",
        *board.reasons(columns),
    )
    names = tuple(f"{t.value} {m}" for t, m in columns)
    return _keyed(SCORES, ("", *names, "Average of four"), lines, notes)


def _line(board: ScoreIndex, row: str, title: str, columns: Sequence[tuple[Task, str]]) -> tuple[str, ...]:
    cells = []
    for task, metric in columns:
        found = board.get(row, task, metric)
        cells.append(MISSING if found is None else NOT_COMPUTED if found.value is None else f"{found.value:.1f}")
    return (title, *cells, _mean_cell(board, row))


def _mean_cell(board: ScoreIndex, row: str | None) -> str:
    """Mean over the four tasks of a row, or of the best twins where `row` is None; none where one of them has none."""
    values = []
    for task in AVERAGED:
        blind = board.blind(task, PRIMARY_METRIC[task])
        values.append(board.value(row, task, PRIMARY_METRIC[task]) if row else blind[1] if blind else None)
    return as_cell(mean_of_all(values))


def _by_modality(board: ScoreIndex, modalities: Sequence[Modality], key: str) -> Table:
    """Like the paper's Tables 3 and 4, each task with its best blind twin beneath. Those of BY_MODALITY have a mean."""
    lines, left_out, mean = [], [], key == BY_MODALITY
    for task, metric in board.columns():
        if not set(modalities) & set(board.modalities(task, metric)):
            continue
        own, blind = [], []
        for modality in (*modalities, *([None] if mean else [])):
            found, twin = board.get(MODEL, task, metric, modality), board.blind(task, metric, modality)
            own.append(MISSING if found is None else as_cell(found.value, NOT_COMPUTED))
            blind.append(as_cell(twin[1] if twin else None))
        if board.value(MODEL, task, metric) is None:
            left_out.append(f"{task.value} {metric}")
            continue
        lines.append((f"{task.value} {metric}", *own))
        lines.append(("  best blind twin", *blind))
    columns = ("", *(TITLES[m] for m in modalities), *(["Mean"] if mean else []))
    notes = ["x100. In each modality the best twin anew."]
    rest = [
        TITLES[m]
        for m in Modality
        if m not in PAPER_MODALITIES and any(m in board.modalities(*c) for c in board.columns())
    ]
    if left_out:
        notes.append(f"Not computed, so not shown: {', '.join(left_out)}.")
    if mean and rest:
        notes.append(f"The mean is over all modalities with questions, here also {' and '.join(rest)}, shown apart.")
    return _keyed(key, columns, lines, notes)


_CHOICES = {
    FIRST_BEAM: "First beam", "random": "Random", "agreement": "Agreement", MODEL: "Chosen", ORACLE: "Oracle",
}  # fmt: skip


def _selection(board: ScoreIndex, gains: Sequence[Gain]) -> Table:
    """Each way to choose among the candidates against the first beam, by task."""
    known = {(g.task, g.metric, g.row): g for g in gains}
    rows, lines, used = board.choices(), [], []
    for task, metric in board.columns():
        if board.value(FIRST_BEAM, task, metric) is None:
            continue
        used += [known[task, metric, row] for row in rows if (task, metric, row) in known]
        cells = [known.get((task, metric, row)) for row in rows]
        lines.append((f"{task.value} {metric}", *(_cell(board.get(row, task, metric)) for row in rows)))
        lines.append(("  above the first beam", *(signed(g.value if g else None) for g in cells)))
        lines.append(("  95 % interval of that", *(_interval(g) for g in cells)))
    names = {row: _CHOICES.get(row, row.capitalize()) for row in rows}
    notes = (
        *(_verdict(names[row], [g for g in used if g.row == row]) for row in rows if row not in (FIRST_BEAM, ORACLE)),
        _room([g for g in used if g.row == ORACLE]),
        "x100, mean over modalities. Chosen is what was answered: the scorer's choice in the tasks where select.trust "
        "lets it, else the first beam. By a scorer's name: its choice in every task. Random: one draw an answer. "
        "Agreement: the candidate most alike to the others. Oracle: by the truth, which no selection can beat.",
        "Drawn in pairs, by image (patient where known). By chance one interval in twenty leaves out 0.",
    )  # fmt: skip
    return _keyed(SELECTION, ("", *names.values()), lines, notes)


def _verdict(name: str, gains: Sequence[Gain]) -> str:
    """In words what a choice gained and lost; what spans 0 is neither."""
    if all(g.interval is None for g in gains):
        return f"{name}: without bootstrap replicates (evaluate.replicates) no gain can be told from chance."
    if all(g.interval == (0, 0) for g in gains):
        return f"{name}: scores as the first beam does, in every task."
    parts = []
    for said, sign in (("better than the first beam", 1), ("worse", -1)):
        told = [f"{g.task.value} {g.metric} {g.value:+.1f}" for g in gains if g.certain and (g.value or 0) * sign > 0]
        parts += [f"{said} in {', '.join(told)}"] if told else []
    if not parts:
        return f"{name}: no gain and no loss: every interval spans 0."
    rest = "; no difference seen in the rest" if sum(g.certain for g in gains) < len(gains) else ""
    return f"{name}: {'; '.join(parts)}{rest}."


def _room(gains: Sequence[Gain]) -> str:
    told = [f"{g.task.value} {g.metric} {g.value:+.1f}" for g in gains if g.value is not None]
    return f"The most that any choice among these candidates could gain (oracle): {', '.join(told)}."


def as_cell(value: float | None, missing: str = MISSING, digits: int = 1) -> str:
    """A figure as a cell."""
    return missing if value is None else f"{value:.{digits}f}"


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean of several figures; None where one of them is missing, and where there are none."""
    given = [v for v in values if v is not None]
    return sum(given) / len(given) if given and len(given) == len(values) else None


def signed(value: float | None) -> str:
    """A difference as a cell."""
    return MISSING if value is None else f"{value:+.1f}"


def _every_metric(board: ScoreIndex) -> Table:
    rows = (MODEL, FIRST_BEAM, ORACLE, *board.twins())
    lines = []
    for task in Task:
        for metric in board.metrics(task):
            if metric in FLAWS.metrics:
                continue
            own = board.get(MODEL, task, metric)
            cells = (_cell(board.get(row, task, metric)) for row in rows)
            lines.append((f"{task.value} {metric}", str(own.count if own else 0), _interval(own), *cells))
    titles = ("Model", "First beam", "Oracle", *(f"Blind: {t}" for t in board.twins()))
    notes = ("x100, mean over modalities. Intervals: bootstrap by image (patient where known).",)
    return Table("Every metric", ("", "Questions", "95 %", *titles), tuple(lines), notes)


def _flaws(board: ScoreIndex) -> Table:
    """Answers of the model that were cut, empty, or held a box nobody could read: they count as they stand."""
    lines = []
    for task in Task:
        cells = [board.get(MODEL, task, metric) for metric in FLAWS.metrics]
        if any(cells):
            lines.append((task.value, str(next(c.count for c in cells if c)), *(_cell(c) for c in cells)))
    heads = tuple(f"{m}, %" for m in FLAWS.metrics)
    notes = ("They are judged as they stand: what could not be read finds nothing.",)
    return Table("Answers with a flaw", ("Task", "Questions", *heads), tuple(lines), notes)


def _cell(score: Score | None) -> str:
    return MISSING if score is None or score.why in (NOT_ASKED, NOTHING_SAID) else as_cell(score.value, NOT_COMPUTED)


def _interval(score: Score | Gain | None) -> str:
    return spelled(score.interval if score else None)


# ---- what reflection did --------------------------------------------------------------------------------------------


class RetestResult(NamedTuple):
    """One question of a review that was asked again after the round's training, and whether it is wrong by the same
    tests, before and after."""

    round: int
    id: str  # of the Sample
    task: Task
    modality: Modality
    before_wrong: bool
    after_wrong: bool
    answer: BoxedText  # after

    @classmethod
    def from_json(cls, round: int, value: Mapping[str, Any]) -> Self:
        return cls(
            round=round,
            id=value["id"],
            task=Task(value["task"]),
            modality=Modality(value["modality"]),
            before_wrong=value["before_wrong"],
            after_wrong=value["after_wrong"],
            answer=BoxedText.from_json(value["answer"]),
        )


def effect_table(again: Sequence[RetestResult]) -> Table:
    """Of the answers that were wrong the share now right, of those that were right the share now wrong, by round, task
    and modality, with 95 % Wilson intervals."""
    lines = []
    for number in sorted({a.round for a in again}):
        whole = [a for a in again if a.round == number]
        lines.append((f"Round {number}, all", *_turned(whole)))
        for task in (t for t in Task if any(a.task is t for a in whole)):
            some = [a for a in whole if a.task is task]
            lines.append((f"Round {number}, {task.value}", *_turned(some)))
            for modality in (m for m in Modality if any(a.modality is m for a in some)):
                lines.append((f"  {TITLES[modality]}", *_turned([a for a in some if a.modality is modality])))
    columns = ("", "Were wrong", "Now right", "%", "95 %", "Were right", "Now wrong", "%", "95 %")
    notes = (
        "Questions of the training split, asked again after the round's training and tested in the same way. Intervals "
        "by Wilson, answers taken as independent.",
        "The round trained on all samples beside the corrected ones: what the corrections alone did is told by a run "
        "without them (reflect=null), not by this table. Of answers picked for being wrong some turn right by chance.",
    )
    return Table("Asked again after the training", columns, tuple(lines), notes)


def _turned(again: Sequence[RetestResult]) -> tuple[str, ...]:
    wrong, right = ([a for a in again if a.before_wrong is was] for was in (True, False))
    pairs = (sum(not a.after_wrong for a in wrong), len(wrong)), (sum(a.after_wrong for a in right), len(right))
    cells: list[str] = []
    for part, whole in pairs:
        ends = [100 * v for v in wilson(part, whole)] if whole else []
        share = (f"{100 * part / whole:.1f}", f"[{ends[0]:.1f}, {ends[1]:.1f}]") if whole else (MISSING, MISSING)
        cells += [f"{whole:,}", f"{part:,}", *share]
    return tuple(cells)


# ---- files ----------------------------------------------------------------------------------------------------------


def read_table(value: Mapping[str, Any]) -> Table:
    """A table as `tables.json` holds it. Those of version 0.1.0 have no keys: their titles tell them."""
    keys = {title: key for key, title in _TITLES_OF_TABLES.items()}
    rows = tuple(tuple(row) for row in value["rows"])
    key = value["key"] if "key" in value else keys.get(value["title"], "")
    return Table(value["title"], tuple(value["columns"]), rows, tuple(value["notes"]), key)


def to_markdown(table: Table) -> str:
    """A GitHub table under its title, numbers to the right, notes beneath. No cell can break out of the table."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(_plain(c) for c in cells)} |"

    head = [line(table.columns), f"|{'|'.join(['---', *['---:'] * (len(table.columns) - 1)])}|"]
    notes = [f"- {_plain(n)}" for n in table.notes]
    return "\n".join(
        [f"### {_plain(table.title)}", "", *head, *map(line, table.rows), *([""] if notes else []), *notes, ""]
    )


def _plain(text: str) -> str:
    spaced = "\u2003" * ((len(text) - len(text.lstrip())) // 2) + " ".join(text.split())
    for mark in ("\\", "|", "<", "*", "`"):
        spaced = spaced.replace(mark, "&lt;" if mark == "<" else "\\" + mark)
    return spaced


def to_csv(scores: Sequence[Score]) -> str:
    """One line a score: row, task, metric, modality, value, low, high, count, why; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", "task", "metric", "modality", "value", "low", "high", "count", "why"))
    for s in scores:
        ends = s.interval or ("", "")
        value = "" if s.value is None else round(s.value, 4)
        low, high = (e if e == "" else round(float(e), 4) for e in ends)
        modality = s.modality.value if s.modality else "mean"
        writer.writerow((s.row, s.task.value, s.metric, modality, value, low, high, s.count, s.why or ""))
    return out.getvalue()

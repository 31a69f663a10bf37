"""Scores as tables for people (Markdown, CSV) and as JSON for programs, with the paper's printed rows apart."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from clinkd.records import PAPER_MODALITIES, BoxedText, Modality, Score, Table, Task
from clinkd.scoring.metrics import FACTS, FLAWS, NOT_ASKED, NOTHING_SAID, PRIMARY_METRIC, wilson_interval
from clinkd.scoring.score import FIRST_BEAM, MODEL, ORACLE, Gain, is_choice, spell_interval

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
        self._score_by_key = {(s.row, s.task, s.metric, s.modality): s for s in scores}

    def get(self, row: str, task: Task, metric: str, modality: Modality | None = None) -> Score | None:
        return self._score_by_key.get((row, task, metric, modality))

    def value(self, row: str, task: Task, metric: str, modality: Modality | None = None) -> float | None:
        looked_up = self.get(row, task, metric, modality)
        return looked_up.value if looked_up else None

    def metrics(self, task: Task) -> list[str]:
        return list(dict.fromkeys(m for _, t, m, _ in self._score_by_key if t is task))

    def modalities(self, task: Task, metric: str) -> list[Modality]:
        """The modalities with questions, in the order of the paper's columns."""
        present = {m for r, t, k, m in self._score_by_key if (r, t, k) == (MODEL, task, metric)}
        return [m for m in Modality if m in present]

    def twins(self) -> list[str]:
        return list(dict.fromkeys(r for r, _, _, _ in self._score_by_key if not is_choice(r)))

    def choices(self) -> list[str]:
        """Rows of the model's own candidates, the first beam first and the oracle last."""
        present = dict.fromkeys(r for r, _, _, _ in self._score_by_key if is_choice(r))
        last = [r for r in (MODEL, ORACLE) if r in present]
        return [*(r for r in present if r == FIRST_BEAM), *(r for r in present if r not in (FIRST_BEAM, *last)), *last]

    def blind(self, task: Task, metric: str, modality: Modality | None = None) -> tuple[str, float] | None:
        """The best image-blind baseline and its score; None if none was computed."""
        values = {t: v for t in self.twins() if (v := self.value(t, task, metric, modality)) is not None}
        return max(values.items(), key=lambda tv: tv[1]) if values else None

    def columns(self) -> list[tuple[Task, str]]:
        """The main columns: primary metric and facts of each task; the paper's four tasks come first."""
        columns = [(t, m) for t in Task for m in (PRIMARY_METRIC[t], FACTS) if m in self.metrics(t)]
        return [c for c in columns if c[0] in AVERAGED] + [c for c in columns if c[0] not in AVERAGED]

    def reasons(self, columns: Sequence[tuple[Task, str]]) -> list[str]:
        """Why some of them could not be computed, in sentences."""
        looked_up = [self.get(MODEL, t, m) for t, m in columns]
        return [f"{s.task.value} {s.metric} not computed: {s.why}." for s in looked_up if s and s.value is None]


# ---- for a program --------------------------------------------------------------------------------------------------


def table_json(
    scores: Sequence[Score], wall_seconds: Mapping[str, float], gains: Sequence[Gain] = ()
) -> dict[str, Any]:
    """What `clinkd table RUN --json` prints, x100; null with a "why" where a figure could not be computed.

    `blind` is the highest image-blind baseline, chosen for each modality. `by_modality` holds the modalities that
    have questions of the task. `selection` holds, by task, metric and row, what other choices of the candidates score
    in the mean over modalities, and their gain over the first beam, each with its 95 % interval or null.
    """
    score_index = ScoreIndex(scores)
    result: dict[str, Any] = {"mode": "strict"}
    for task in Task:
        result[task.value] = _describe_task(score_index, task, PRIMARY_METRIC[task])
        if task in (Task.RC, Task.MIA):
            facts = _describe_task(score_index, task, FACTS)
            result[task.value]["facts"] = {k: facts[k] for k in ("score", "blind", "why") if k in facts}
    missing = [t.value for t in AVERAGED if result[t.value]["score"] is None]
    result["average"] = None if missing else sum(result[t.value]["score"] for t in AVERAGED) / len(AVERAGED)
    if missing:
        result["average_why"] = f"{', '.join(missing)} not computed: a mean over the others would be another figure"
    result["selection"] = _describe_selection(score_index, gains)
    result["wall_seconds"] = dict(wall_seconds)
    return result


def _describe_selection(score_index: ScoreIndex, gains: Sequence[Gain]) -> dict[str, Any]:
    gain_by_key = {(g.task, g.metric, g.row): g for g in gains}
    result: dict[str, Any] = {}
    for task, metric in dict.fromkeys((g.task, g.metric) for g in gains):
        rows = result.setdefault(task.value, {}).setdefault(metric, {})
        for row in score_index.choices():
            score, gain = score_index.get(row, task, metric), gain_by_key.get((task, metric, row))
            if score is None:  # nothing of this kind was asked
                continue
            rows[row] = {"score": score.value, "interval": _list_interval(score.interval)}
            if gain:
                rows[row] |= {"gain": gain.value, "gain_interval": _list_interval(gain.interval)}
    return result


def _list_interval(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _describe_task(score_index: ScoreIndex, task: Task, metric: str) -> dict[str, Any]:
    mean = _describe_figure(score_index, task, metric, None)
    blind_by_row = {
        t: score_index.value(t, task, metric) for t in score_index.twins() if score_index.get(t, task, metric)
    }
    modalities = {m.value: _describe_figure(score_index, task, metric, m) for m in score_index.modalities(task, metric)}
    result = {"metric": metric, "score": mean["score"], "blind": mean["blind"], "blind_by": blind_by_row}
    result["by_modality"] = modalities
    return {**result, "why": mean["why"]} if "why" in mean else result


def _describe_figure(score_index: ScoreIndex, task: Task, metric: str, modality: Modality | None) -> dict[str, Any]:
    model_score, blind = score_index.get(MODEL, task, metric, modality), score_index.blind(task, metric, modality)
    result: dict[str, Any] = {"score": model_score.value if model_score else None, "blind": blind[1] if blind else None}
    if result["score"] is None:
        result["why"] = model_score.why if model_score else _explain_absence(score_index, task)
    return result


def _explain_absence(score_index: ScoreIndex, task: Task) -> str:
    if score_index.metrics(task):
        return "the data state no facts (name, size, side, brightness, count) for this task"
    return f"the test split has no {task.value} questions"


# ---- for people -----------------------------------------------------------------------------------------------------


def tabulate(scores: Sequence[Score], gains: Sequence[Gain] = ()) -> list[Table]:
    """Overall, by modality, outside the paper's eight modalities and what selection gained (where there are any), every
    metric, and flaws."""
    score_index = ScoreIndex(scores)
    outside = _tabulate_modalities(score_index, tuple(Modality)[len(PAPER_MODALITIES) :], OUTSIDE)
    tables = [_tabulate_overall(score_index), _tabulate_modalities(score_index, PAPER_MODALITIES, BY_MODALITY)]
    selection = [_tabulate_selection(score_index, gains)] if any(g.value for g in gains) else []
    return [
        *tables,
        *([outside] if outside.rows else []),
        *selection,
        _tabulate_metrics(score_index),
        _tabulate_flaws(score_index),
    ]


def _build_table(key: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]], notes: Sequence[str]) -> Table:
    return Table(_TITLES_OF_TABLES[key], tuple(columns), tuple(rows), tuple(notes), key)


def _tabulate_overall(score_index: ScoreIndex) -> Table:
    """Like the paper's Table 2: who answered against task."""
    columns = score_index.columns()
    lines = [_build_score_row(score_index, MODEL, "Model", columns)]
    model_scores = [score_index.get(MODEL, t, m) for t, m in columns]
    lines.append(("  95 % interval", *(_format_interval(s) for s in model_scores), MISSING))
    best_blind = [score_index.blind(t, m) for t, m in columns]
    lines.append(
        (
            "Best blind twin",
            *(as_cell(b[1] if b else None, NOT_COMPUTED) for b in best_blind),
            _format_mean(score_index, None),
        )
    )
    differences = [
        s.value - b[1] if s and s.value is not None and b else None
        for s, b in zip(model_scores, best_blind, strict=True)
    ]
    lines.append(("  Model above it", *(format_signed(a) for a in differences), MISSING))
    lines += [_build_score_row(score_index, t, f"  Blind: {t}", columns) for t in score_index.twins()]
    lines += [_build_score_row(score_index, FIRST_BEAM, "First beam, no selection", columns)]
    lines += [_build_score_row(score_index, ORACLE, "Best candidate (oracle)", columns)]
    notes = (
        "x100, strict mode, mean over the modalities that have questions. "
        "VG F1: boxes matched one to one at IoU 0.5, or as evaluate.iou says; spare ones count against it.",
        "A blind twin answers without seeing the image: only what stands above the best of them was seen in the image.",
        "The oracle picks each answer by its truth: no selection can do better.",
        *score_index.reasons(columns),
    )
    names = tuple(f"{t.value} {m}" for t, m in columns)
    return _build_table(SCORES, ("", *names, "Average of four"), lines, notes)


def _build_score_row(
    score_index: ScoreIndex, row: str, title: str, columns: Sequence[tuple[Task, str]]
) -> tuple[str, ...]:
    cells = []
    for task, metric in columns:
        score = score_index.get(row, task, metric)
        cells.append(MISSING if score is None else NOT_COMPUTED if score.value is None else f"{score.value:.1f}")
    return (title, *cells, _format_mean(score_index, row))


def _format_mean(score_index: ScoreIndex, row: str | None) -> str:
    """Mean over the four tasks, of a row or (if `row` is None) of the best baselines; missing if one lacks a value."""
    values = []
    for task in AVERAGED:
        blind = score_index.blind(task, PRIMARY_METRIC[task])
        values.append(score_index.value(row, task, PRIMARY_METRIC[task]) if row else blind[1] if blind else None)
    return as_cell(mean_of_all(values))


def _tabulate_modalities(score_index: ScoreIndex, modalities: Sequence[Modality], key: str) -> Table:
    """Like the paper's Tables 3 and 4, each task with its best blind baseline below. Only BY_MODALITY has a mean."""
    lines, left_out, mean = [], [], key == BY_MODALITY
    for task, metric in score_index.columns():
        if not set(modalities) & set(score_index.modalities(task, metric)):
            continue
        model_cells, blind = [], []
        for modality in (*modalities, *([None] if mean else [])):
            score, baseline = score_index.get(MODEL, task, metric, modality), score_index.blind(task, metric, modality)
            model_cells.append(MISSING if score is None else as_cell(score.value, NOT_COMPUTED))
            blind.append(as_cell(baseline[1] if baseline else None))
        if score_index.value(MODEL, task, metric) is None:
            left_out.append(f"{task.value} {metric}")
            continue
        lines.append((f"{task.value} {metric}", *model_cells))
        lines.append(("  best blind twin", *blind))
    columns = ("", *(TITLES[m] for m in modalities), *(["Mean"] if mean else []))
    notes = ["x100. In each modality the best twin anew."]
    outside = [
        TITLES[m]
        for m in Modality
        if m not in PAPER_MODALITIES and any(m in score_index.modalities(*c) for c in score_index.columns())
    ]
    if left_out:
        notes.append(f"Not computed, so not shown: {', '.join(left_out)}.")
    if mean and outside:
        notes.append(f"The mean is over all modalities with questions, here also {' and '.join(outside)}, shown apart.")
    return _build_table(key, columns, lines, notes)


_CHOICES = {
    FIRST_BEAM: "First beam", "random": "Random", "agreement": "Agreement", MODEL: "Chosen", ORACLE: "Oracle",
}  # fmt: skip


def _tabulate_selection(score_index: ScoreIndex, gains: Sequence[Gain]) -> Table:
    """Each way to choose among the candidates against the first beam, by task."""
    gain_by_key = {(g.task, g.metric, g.row): g for g in gains}
    rows, lines, shown_gains = score_index.choices(), [], []
    for task, metric in score_index.columns():
        if score_index.value(FIRST_BEAM, task, metric) is None:
            continue
        shown_gains += [gain_by_key[task, metric, row] for row in rows if (task, metric, row) in gain_by_key]
        row_gains = [gain_by_key.get((task, metric, row)) for row in rows]
        lines.append((f"{task.value} {metric}", *(_format_score(score_index.get(row, task, metric)) for row in rows)))
        lines.append(("  above the first beam", *(format_signed(g.value if g else None) for g in row_gains)))
        lines.append(("  95 % interval of that", *(_format_interval(g) for g in row_gains)))
    names = {row: _CHOICES.get(row, row.capitalize()) for row in rows}
    notes = (
        *(
            _describe_choice(names[row], [g for g in shown_gains if g.row == row])
            for row in rows
            if row not in (FIRST_BEAM, ORACLE)
        ),
        _describe_oracle_gain([g for g in shown_gains if g.row == ORACLE]),
        "x100, mean over modalities. Chosen is what was answered: the scorer's choice in the tasks where select.trust "
        "lets it, else the first beam. By a scorer's name: its choice in every task. Random: one draw an answer. "
        "Agreement: the candidate most alike to the others. Oracle: by the truth, which no selection can beat.",
        "Drawn in pairs, by image (patient where known). By chance one interval in twenty leaves out 0.",
    )  # fmt: skip
    return _build_table(SELECTION, ("", *names.values()), lines, notes)


def _describe_choice(name: str, gains: Sequence[Gain]) -> str:
    """State in words what a choice gained and lost; an interval that spans 0 counts as neither."""
    if all(g.interval is None for g in gains):
        return f"{name}: without bootstrap replicates (evaluate.replicates) no gain can be told from chance."
    if all(g.interval == (0, 0) for g in gains):
        return f"{name}: scores as the first beam does, in every task."
    parts = []
    for phrase, sign in (("better than the first beam", 1), ("worse", -1)):
        certain_gains = [
            f"{g.task.value} {g.metric} {g.value:+.1f}" for g in gains if g.certain and (g.value or 0) * sign > 0
        ]
        parts += [f"{phrase} in {', '.join(certain_gains)}"] if certain_gains else []
    if not parts:
        return f"{name}: no gain and no loss: every interval spans 0."
    rest = "; no difference seen in the rest" if sum(g.certain for g in gains) < len(gains) else ""
    return f"{name}: {'; '.join(parts)}{rest}."


def _describe_oracle_gain(gains: Sequence[Gain]) -> str:
    gain_texts = [f"{g.task.value} {g.metric} {g.value:+.1f}" for g in gains if g.value is not None]
    return f"The most that any choice among these candidates could gain (oracle): {', '.join(gain_texts)}."


def as_cell(value: float | None, missing: str = MISSING, digits: int = 1) -> str:
    """A figure as a cell."""
    return missing if value is None else f"{value:.{digits}f}"


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean of several values; None if one is missing or there are none."""
    computed = [v for v in values if v is not None]
    return sum(computed) / len(computed) if computed and len(computed) == len(values) else None


def format_signed(value: float | None) -> str:
    """A difference as a cell."""
    return MISSING if value is None else f"{value:+.1f}"


def _tabulate_metrics(score_index: ScoreIndex) -> Table:
    rows = (MODEL, FIRST_BEAM, ORACLE, *score_index.twins())
    lines = []
    for task in Task:
        for metric in score_index.metrics(task):
            if metric in FLAWS.metrics:
                continue
            model_score = score_index.get(MODEL, task, metric)
            cells = (_format_score(score_index.get(row, task, metric)) for row in rows)
            lines.append(
                (
                    f"{task.value} {metric}",
                    str(model_score.count if model_score else 0),
                    _format_interval(model_score),
                    *cells,
                )
            )
    titles = ("Model", "First beam", "Oracle", *(f"Blind: {t}" for t in score_index.twins()))
    notes = ("x100, mean over modalities. Intervals: bootstrap by image (patient where known).",)
    return Table("Every metric", ("", "Questions", "95 %", *titles), tuple(lines), notes)


def _tabulate_flaws(score_index: ScoreIndex) -> Table:
    """Answers of the model that were cut, empty, or held a box nobody could read: they count as they stand."""
    lines = []
    for task in Task:
        cells = [score_index.get(MODEL, task, metric) for metric in FLAWS.metrics]
        if any(cells):
            lines.append((task.value, str(next(c.count for c in cells if c)), *(_format_score(c) for c in cells)))
    heads = tuple(f"{m}, %" for m in FLAWS.metrics)
    notes = ("They are judged as they stand: what could not be read finds nothing.",)
    return Table("Answers with a flaw", ("Task", "Questions", *heads), tuple(lines), notes)


def _format_score(score: Score | None) -> str:
    return MISSING if score is None or score.why in (NOT_ASKED, NOTHING_SAID) else as_cell(score.value, NOT_COMPUTED)


def _format_interval(score: Score | Gain | None) -> str:
    return spell_interval(score.interval if score else None)


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
        of_round = [a for a in again if a.round == number]
        lines.append((f"Round {number}, all", *_count_changes(of_round)))
        for task in (t for t in Task if any(a.task is t for a in of_round)):
            of_task = [a for a in of_round if a.task is task]
            lines.append((f"Round {number}, {task.value}", *_count_changes(of_task)))
            for modality in (m for m in Modality if any(a.modality is m for a in of_task)):
                lines.append((f"  {TITLES[modality]}", *_count_changes([a for a in of_task if a.modality is modality])))
    columns = ("", "Were wrong", "Now right", "%", "95 %", "Were right", "Now wrong", "%", "95 %")
    notes = (
        "Questions of the training split, asked again after the round's training and tested in the same way. Intervals "
        "by Wilson, answers taken as independent.",
        "The round trained on all samples beside the corrected ones: what the corrections alone did is told by a run "
        "without them (reflect=null), not by this table. Of answers picked for being wrong some turn right by chance.",
    )
    return Table("Asked again after the training", columns, tuple(lines), notes)


def _count_changes(again: Sequence[RetestResult]) -> tuple[str, ...]:
    wrong, right = ([a for a in again if a.before_wrong is before] for before in (True, False))
    pairs = (sum(not a.after_wrong for a in wrong), len(wrong)), (sum(a.after_wrong for a in right), len(right))
    cells: list[str] = []
    for part, whole in pairs:
        bounds = [100 * v for v in wilson_interval(part, whole)] if whole else []
        share = (f"{100 * part / whole:.1f}", f"[{bounds[0]:.1f}, {bounds[1]:.1f}]") if whole else (MISSING, MISSING)
        cells += [f"{whole:,}", f"{part:,}", *share]
    return tuple(cells)


# ---- files ----------------------------------------------------------------------------------------------------------


def read_table(value: Mapping[str, Any]) -> Table:
    """A table as `tables.json` holds it. Tables of version 0.1.0 have no key: their titles identify them."""
    keys = {title: key for key, title in _TITLES_OF_TABLES.items()}
    rows = tuple(tuple(row) for row in value["rows"])
    key = value["key"] if "key" in value else keys.get(value["title"], "")
    return Table(value["title"], tuple(value["columns"]), rows, tuple(value["notes"]), key)


def to_markdown(table: Table) -> str:
    """A GitHub table under its title, numbers to the right, notes beneath. No cell can break out of the table."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(_escape_markdown(c) for c in cells)} |"

    head = [line(table.columns), f"|{'|'.join(['---', *['---:'] * (len(table.columns) - 1)])}|"]
    notes = [f"- {_escape_markdown(n)}" for n in table.notes]
    return "\n".join(
        [
            f"### {_escape_markdown(table.title)}",
            "",
            *head,
            *map(line, table.rows),
            *([""] if notes else []),
            *notes,
            "",
        ]
    )


def _escape_markdown(text: str) -> str:
    escaped = "\u2003" * ((len(text) - len(text.lstrip())) // 2) + " ".join(text.split())
    for mark in ("\\", "|", "<", "*", "`"):
        escaped = escaped.replace(mark, "&lt;" if mark == "<" else "\\" + mark)
    return escaped


def to_csv(scores: Sequence[Score]) -> str:
    """One line a score: row, task, metric, modality, value, low, high, count, why; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", "task", "metric", "modality", "value", "low", "high", "count", "why"))
    for s in scores:
        bounds = s.interval or ("", "")
        value = "" if s.value is None else round(s.value, 4)
        low, high = (e if e == "" else round(float(e), 4) for e in bounds)
        modality = s.modality.value if s.modality else "mean"
        writer.writerow((s.row, s.task.value, s.metric, modality, value, low, high, s.count, s.why or ""))
    return out.getvalue()

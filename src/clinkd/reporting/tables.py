"""Scores as tables for people (Markdown, CSV) and as JSON for programs, with the paper's printed rows apart."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clinkd.records import PAPER_MODALITIES, BoxedText, Modality, Record, Score, Table, Task
from clinkd.scoring.intervals import wilson_interval
from clinkd.scoring.likelihood import LogLikelihood, TokenKind
from clinkd.scoring.measure import FACTS, NOT_ASKED, NOTHING_SAID
from clinkd.scoring.metrics import FLAWS, PRIMARY_METRIC, list_shown_metrics
from clinkd.scoring.score import FIRST_BEAM, MODEL, ORACLE, PROBE, Gain, is_blind, is_choice, spell_interval
from clinkd.storage import write_csv

AVERAGED = (Task.VG, Task.ROC, Task.RC, Task.MIA)  # the paper's overall figure is the mean of these four
TITLES = {
    Modality.CT: "CT", Modality.MR: "MR", Modality.XRAY: "X-ray", Modality.PET: "PET",
    Modality.ENDOSCOPY: "Endoscopy", Modality.DERMOSCOPY: "Dermoscopy", Modality.FUNDUS: "Fundus",
    Modality.ULTRASOUND: "Ultrasound", Modality.MICROSCOPY: "Microscopy", Modality.OTHER: "Other",
}  # fmt: skip
SCORERS = {  # the scores of candidates in plain words, as on the page of `clinkd serve`
    "clip": "fit of text and image", "clip text": "fit of the words to the image",
    "clip crop": "fit of the words to what is in the box", "agreement": "likeness to the other candidates",
    "crop classifier": "fit of name and box by the crop classifier, with the model's own log-probability",
    "crop alone": "fit of name and box by the crop classifier alone",
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
    """Scores by row (who answered), task, metric and modality."""

    def __init__(self, scores: Iterable[Score]) -> None:
        self._score_by_key = {(s.row, s.task, s.metric, s.modality): s for s in scores}
        # once: every figure beside a blind one asks for them
        self._baselines = tuple(dict.fromkeys(r for r, _, _, _ in self._score_by_key if is_blind(r)))

    def get(self, row: str, task: Task, metric: str, modality: Modality | None = None) -> Score | None:
        return self._score_by_key.get((row, task, metric, modality))

    def value(self, row: str, task: Task, metric: str, modality: Modality | None = None) -> float | None:
        score = self.get(row, task, metric, modality)
        return score.value if score else None

    def metrics(self, task: Task) -> list[str]:
        return list(dict.fromkeys(m for _, t, m, _ in self._score_by_key if t is task))

    def modalities(self, task: Task, metric: str) -> list[Modality]:
        """The modalities with questions, in the order of the paper's columns."""
        present = {m for r, t, k, m in self._score_by_key if (r, t, k) == (MODEL, task, metric)}
        return [m for m in Modality if m in present]

    def baselines(self) -> tuple[str, ...]:
        return self._baselines

    def choices(self) -> list[str]:
        """Rows of the model's own candidates, the first beam first and the oracle last."""
        present = dict.fromkeys(r for r, _, _, _ in self._score_by_key if is_choice(r))
        return sorted(present, key=lambda row: {FIRST_BEAM: 0, MODEL: 2, ORACLE: 3}.get(row, 1))

    def has_probe(self) -> bool:
        return any(r == PROBE for r, _, _, _ in self._score_by_key)

    def best_baseline(self, task: Task, metric: str, modality: Modality | None = None) -> str | None:
        """The name of the best image-blind baseline; None if none was computed. It is the one that was chosen for the
        task and modality without the test answers; where none was, the one with the highest score of them."""
        of_baselines = {t: s for t in self.baselines() if (s := self.get(t, task, metric, modality))}
        if chosen := [t for t, s in of_baselines.items() if s.chosen_on]:
            return chosen[0]
        values = {t: s.value for t, s in of_baselines.items() if s.value is not None}
        return max(values, key=lambda t: values[t], default=None)

    def chosen_on(self, task: Task, metric: str) -> str | None:
        """The questions by which the best baseline of a task was chosen; None if none was computed."""
        best = self.best_baseline(task, metric)
        score = self.get(best, task, metric) if best else None
        return (score.chosen_on or "test") if score else None

    def blind(self, task: Task, metric: str, modality: Modality | None = None) -> float | None:
        """The score of the best image-blind baseline; None if none was computed."""
        best = self.best_baseline(task, metric, modality)
        return None if best is None else self.value(best, task, metric, modality)

    def average(self, row: str) -> float | None:
        """The mean over the four tasks; None if one lacks a value."""
        return mean_of_all([self.value(row, t, PRIMARY_METRIC[t]) for t in AVERAGED])

    def columns(self) -> list[tuple[Task, str]]:
        """The main columns: primary metric and facts of each task; the paper's four tasks come first."""
        columns = [(t, m) for t in Task for m in (PRIMARY_METRIC[t], FACTS) if m in self.metrics(t)]
        return sorted(columns, key=lambda column: column[0] not in AVERAGED)

    def reasons(self, columns: Sequence[tuple[Task, str]]) -> list[str]:
        """Why some of them could not be computed, in sentences."""
        looked_up = [self.get(MODEL, t, m) for t, m in columns]
        return [f"{s.task.value} {s.metric} not computed: {s.why}." for s in looked_up if s and s.value is None]


# ---- for a program --------------------------------------------------------------------------------------------------


def describe_scores(
    scores: Sequence[Score], wall_seconds: Mapping[str, float], gains: Sequence[Gain] = ()
) -> dict[str, Any]:
    """What `clinkd table RUN --json` prints, x100; null with a "why" where a figure could not be computed.

    `blind` is the best image-blind baseline, chosen for each modality; `blind_is` names that of the mean over them, and
    `blind_chosen_on` the questions by which it was chosen; `above_blind`, with its interval, is how far the model is
    above that one. `metrics` holds every metric of a task, in the mean over modalities, and `by_modality` the
    modalities that have questions of the task. Beside each score stand its 95 % `interval` or null, and how many
    `answers` it is of. `selection` holds, by task, metric and row, what other choices of the candidates score in the
    mean over modalities, and their gain over the first beam, each with its 95 % interval or null. `probe`, by task and
    metric where the run has one: the frozen-feature probe's score and how far the model is above it, likewise.
    """
    score_index = ScoreIndex(scores)
    result: dict[str, Any] = {"mode": "strict"}
    for task in Task:
        result[task.value] = _describe_task(score_index, task, PRIMARY_METRIC[task], gains)
        result[task.value]["metrics"] = {
            metric: _describe_figure(score_index, task, metric, None) for metric in score_index.metrics(task)
        }
        if task in (Task.RC, Task.MIA):
            facts = _describe_task(score_index, task, FACTS, gains)
            result[task.value]["facts"] = {k: facts[k] for k in ("score", "blind", "why") if k in facts}
    result["average"] = score_index.average(MODEL)
    if missing := [t.value for t in AVERAGED if result[t.value]["score"] is None]:
        result["average_why"] = f"{', '.join(missing)} not computed: a mean over the others would be another figure"
    result["selection"] = _describe_selection(score_index, [g for g in gains if is_choice(g.row)])
    if probe := _describe_probe(score_index, gains):
        result["probe"] = probe
    result["wall_seconds"] = dict(wall_seconds)
    return result


def describe_metrics(scores: Sequence[Score], metrics: Sequence[str]) -> dict[str, Any]:
    """By metric and task, x100: the model's score and its interval, each image-blind baseline, and the modalities."""
    score_index = ScoreIndex(scores)
    result: dict[str, Any] = {metric: {} for metric in metrics}
    for metric, task in ((m, t) for m in metrics for t in Task if score_index.get(MODEL, t, m)):
        result[metric][task.value] = _describe_task(score_index, task, metric, ())
    return result


def _find_gain(gains: Sequence[Gain], task: Task, metric: str, row: str | None) -> Gain | None:
    return next((g for g in gains if (g.task, g.metric, g.row) == (task, metric, row)), None)


def _describe_selection(score_index: ScoreIndex, gains: Sequence[Gain]) -> dict[str, Any]:
    gain_by_key = {(g.task, g.metric, g.row): g for g in gains}
    result: dict[str, Any] = {}
    for task, metric in dict.fromkeys((g.task, g.metric) for g in gains):
        rows = result.setdefault(task.value, {}).setdefault(metric, {})
        for row in score_index.choices():
            if score := score_index.get(row, task, metric):
                rows[row] = {"score": score.value, "interval": score.interval}
            if score and (gain := gain_by_key.get((task, metric, row))):
                rows[row] |= {"gain": gain.value, "gain_interval": gain.interval}
    return result


def _describe_probe(score_index: ScoreIndex, gains: Sequence[Gain]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for gain in (g for g in gains if g.row == PROBE):
        if score := score_index.get(PROBE, gain.task, gain.metric):
            figures = {"score": score.value, "interval": score.interval, "answers": score.count}
            above = {"model_above": gain.value, "model_above_interval": gain.interval}
            result.setdefault(gain.task.value, {})[gain.metric] = figures | above
    return result


def _describe_task(score_index: ScoreIndex, task: Task, metric: str, gains: Sequence[Gain]) -> dict[str, Any]:
    mean = _describe_figure(score_index, task, metric, None)
    why = {"why": mean.pop("why")} if "why" in mean else {}
    blind_by_row = {
        t: score_index.value(t, task, metric) for t in score_index.baselines() if score_index.get(t, task, metric)
    }
    modalities = {m.value: _describe_figure(score_index, task, metric, m) for m in score_index.modalities(task, metric)}
    blind: dict[str, Any] = {"blind_is": score_index.best_baseline(task, metric), "blind_by": blind_by_row}
    blind["blind_chosen_on"] = score_index.chosen_on(task, metric)
    if above := _find_gain(gains, task, metric, score_index.best_baseline(task, metric)):
        blind |= {"above_blind": above.value, "above_blind_interval": above.interval and list(above.interval)}
    return {"metric": metric, **mean, **blind, "by_modality": modalities, **why}


def _describe_figure(score_index: ScoreIndex, task: Task, metric: str, modality: Modality | None) -> dict[str, Any]:
    model_score = score_index.get(MODEL, task, metric, modality)
    figure: dict[str, Any] = {
        "score": model_score and model_score.value, "blind": score_index.blind(task, metric, modality),
    }  # fmt: skip
    if model_score is not None:
        figure |= {"interval": model_score.interval and list(model_score.interval), "answers": model_score.count}
    if model_score is None and score_index.metrics(task):
        figure["why"] = "the data state no facts (name, size, side, brightness, count) for this task"
    elif model_score is None:
        figure["why"] = f"the test split has no {task.value} questions"
    elif model_score.value is None:
        figure["why"] = model_score.why
    return figure


# ---- for people -----------------------------------------------------------------------------------------------------


def tabulate_scores(scores: Sequence[Score], gains: Sequence[Gain] = (), choices: bool = True) -> list[Table]:
    """Tables of scores: overall, by modality, outside the paper's eight modalities and the gains of selection (where
    there are any), every metric, and flaws. `choices`: some answers were chosen among several candidates."""
    score_index = ScoreIndex(scores)
    tables = [
        _tabulate_overall(score_index, choices, gains),
        _tabulate_modalities(score_index, PAPER_MODALITIES, BY_MODALITY),
    ]
    outside = _tabulate_modalities(score_index, tuple(Modality)[len(PAPER_MODALITIES) :], OUTSIDE)
    tables += [outside] if outside.rows else []
    tables += [_tabulate_selection(score_index, gains)] if any(g.value for g in gains if is_choice(g.row)) else []
    return [*tables, _tabulate_metrics(score_index, choices), _tabulate_flaws(score_index)]


def tabulate_likelihoods(likelihoods: Mapping[tuple[Task, TokenKind], LogLikelihood]) -> Table:
    """The log-likelihood of the truth by task and kind of token."""
    lines = [
        (task.value, kind, f"{found.mean:.3f}", f"{found.questions:,}", f"{found.tokens:,}")
        for (task, kind), found in likelihoods.items()
    ]
    notes = (
        "The mean log-probability of a token of the true answer in nats (natural log; 0 is best, ln 0.5 = -0.693 is a "
        "coin), before any answer is chosen: over the tokens of an answer, then over the questions of a modality, then "
        "over modalities.",
        "box: coordinates without the marks around them. name: the structures that the question is about. rest: all "
        "else, with the end of the answer.",
    )
    columns = ("", "Tokens of the truth", "Log-likelihood a token", "Questions", "Tokens")
    return Table("Likelihood of the truth", columns, tuple(lines), notes)


def describe_likelihoods(likelihoods: Mapping[tuple[Task, TokenKind], LogLikelihood]) -> dict[str, Any]:
    """The log-likelihood of the truth for a program: by task and kind of token, in nats."""
    result: dict[str, Any] = {}
    for (task, kind), found in likelihoods.items():
        result.setdefault(task.value, {})[kind] = found._asdict()
    return result


def tabulate_outside(scores: Sequence[Score], metrics: Sequence[str]) -> Table:
    """What outside scorers made of the answers, by task."""
    score_index, lines = ScoreIndex(scores), []
    for task, metric in ((t, m) for t in Task for m in metrics):
        if (score := score_index.get(MODEL, task, metric)) and score.value is not None:
            best, blind = score_index.best_baseline(task, metric), score_index.blind(task, metric)
            cells = (f"{score.count:,}", as_cell(score.value), _format_interval(score))
            above = format_signed(None if blind is None else score.value - blind)
            lines.append((task.value, metric, *cells, f"{as_cell(blind)} ({best})" if best else MISSING, above))
    columns = ("", "metric", "answers", "score", "95 %", "best blind baseline", "above it")
    return Table("outside scorers", columns, tuple(lines), ("x100, mean over modalities with questions.",))


def _build_table(key: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]], notes: Sequence[str]) -> Table:
    return Table(_TITLES_OF_TABLES[key], tuple(columns), tuple(rows), tuple(notes), key)


_ORACLE = (
    "The oracle picks candidates by the truth, for each metric anew, so that no selection can score higher by it; of "
    "means over captions as a corpus (BLEU, mBMR) it is the best choice that was found."
)


_PROBE = (
    "The frozen-feature probe sees the image with the same eyes, without a language model: linear fits on frozen "
    "features, chosen on the validation split. It is no image-blind baseline. A model below it loses what its eyes see."
)


def _tabulate_overall(score_index: ScoreIndex, choices: bool, gains: Sequence[Gain]) -> Table:
    """Like the paper's Table 2: who answered against task."""
    columns = score_index.columns()
    model_scores = [score_index.get(MODEL, t, m) for t, m in columns]
    best_blind = [score_index.blind(t, m) for t, m in columns]
    blind_average = mean_of_all([score_index.blind(t, PRIMARY_METRIC[t]) for t in AVERAGED])
    differences = [
        s.value - blind if s and s.value is not None and blind is not None else None
        for s, blind in zip(model_scores, best_blind, strict=True)
    ]
    above_blind = [_find_gain(gains, t, m, score_index.best_baseline(t, m)) for t, m in columns]
    lines = [
        _build_score_row(score_index, MODEL, "Model", columns),
        ("  95 % interval", *map(_format_interval, model_scores), MISSING),
        ("Best blind baseline", *(as_cell(b, NOT_COMPUTED) for b in best_blind), as_cell(blind_average)),
        ("  Model above it", *map(format_signed, differences), MISSING),
        ("  95 % interval of that", *map(_format_interval, above_blind), MISSING),
        *(_build_score_row(score_index, t, f"  Blind: {t}", columns) for t in score_index.baselines()),
    ]
    probed = [score_index.get(PROBE, *column) for column in columns]
    if any(probed):
        above = [_find_gain(gains, t, m, PROBE) for t, m in columns]
        lines += [
            _build_score_row(score_index, PROBE, "Frozen-feature probe", columns),
            ("  95 % interval", *map(_format_interval, probed), MISSING),
            ("  Model above it", *(format_signed(g.value if g else None) for g in above), MISSING),
            ("  95 % interval of that", *map(_format_interval, above), MISSING),
        ]
    if choices:
        lines.append(_build_score_row(score_index, FIRST_BEAM, "First beam, no selection", columns))
        lines.append(_build_score_row(score_index, ORACLE, "Best candidate (oracle)", columns))
    notes = (
        "x100, strict mode, mean over the modalities that have questions. "
        "VG F1: boxes matched one to one at IoU 0.5, or as evaluate.iou says; spare ones count against it.",
        *describe_blind({place for c in columns if (place := score_index.chosen_on(*c))}),
        *([_PROBE] if any(probed) else []),
        *([_ORACLE] if choices else []),
        *score_index.reasons(columns),
    )
    names = tuple(f"{t.value} {m}" for t, m in columns)
    return _build_table(SCORES, ("", *names, "Average of four"), lines, notes)


_CHOSEN_ON = {
    "validation": "on the validation split, for each task (and for a modality with enough questions there)",
    "training": "in the training split, each image answered from others, for there is no validation split",
    "test": "on the test answers themselves, for there is no training split, which makes it look better than it is",
}


def describe_blind(places: Collection[str]) -> list[str]:
    """What the best blind baseline is and tells, in sentences; `places`: where it was chosen. Empty without one."""
    chosen = "; ".join(words for place, words in _CHOSEN_ON.items() if place in places)
    return [
        f"The best blind baseline was chosen {chosen}. A modality with enough questions to choose by has its own; a "
        "mean over modalities is of one baseline.",
        "A blind baseline answers without the image, by the habits of the data. A model above it, and above its own "
        "answers to other images (images shuffled), used the image; one that is not above has not shown that it did. "
        "It is no measure of what a clinician can do.",
    ] if places else []  # fmt: skip


def _build_score_row(
    score_index: ScoreIndex, row: str, title: str, columns: Sequence[tuple[Task, str]]
) -> tuple[str, ...]:
    cells = [_format_value(score_index.get(row, *column)) for column in columns]
    return (title, *cells, as_cell(score_index.average(row)))


def _tabulate_modalities(score_index: ScoreIndex, modalities: Sequence[Modality], key: str) -> Table:
    """Like the paper's Tables 3 and 4, each task with its best blind baseline below. Only BY_MODALITY has a mean."""
    lines, left_out, mean = [], [], key == BY_MODALITY
    for task, metric in score_index.columns():
        if not set(modalities) & set(score_index.modalities(task, metric)):
            continue
        if score_index.value(MODEL, task, metric) is None:
            left_out.append(f"{task.value} {metric}")
            continue
        places = (*modalities, *([None] if mean else []))
        model_cells = (_format_value(score_index.get(MODEL, task, metric, m)) for m in places)
        lines.append((f"{task.value} {metric}", *model_cells))
        lines.append(("  best blind baseline", *(as_cell(score_index.blind(task, metric, m)) for m in places)))
    columns = ("", *(TITLES[m] for m in modalities), *(["Mean"] if mean else []))
    notes = ["x100. A modality with enough questions has a best baseline of its own."]
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


def _name_choice(row: str) -> str:
    return _CHOICES.get(row, row.capitalize())


def charge_selection(table: Table, seconds: Mapping[str, float]) -> Table:
    """The table of selection with a last row: what each choice cost, in seconds, by its row (`ScoreIndex.choices`)."""
    cells = {_name_choice(row): f"{value:.1f}" for row, value in seconds.items()}
    costs = ("Seconds, of training and scoring", *(cells.get(head, MISSING) for head in table.columns[1:]))
    return replace(table, rows=(*table.rows, costs))


def _tabulate_selection(score_index: ScoreIndex, gains: Sequence[Gain]) -> Table:
    """Each way to choose among the candidates against the first beam, by task."""
    gain_by_key = {(g.task, g.metric, g.row): g for g in gains}
    rows, lines, shown_gains = score_index.choices(), [], []
    columns = [(t, m) for t, main in score_index.columns() for m in (main, *list_shown_metrics("question", t))]
    for task, metric in dict.fromkeys(columns):
        if score_index.value(FIRST_BEAM, task, metric) is None:
            continue
        shown_gains += [gain_by_key[task, metric, row] for row in rows if (task, metric, row) in gain_by_key]
        row_gains = [gain_by_key.get((task, metric, row)) for row in rows]
        lines.append((f"{task.value} {metric}", *(_format_score(score_index.get(row, task, metric)) for row in rows)))
        lines.append(("  above the first beam", *(format_signed(g.value if g else None) for g in row_gains)))
        lines.append(("  95 % interval of that", *(_format_interval(g) for g in row_gains)))
    names = {row: _name_choice(row) for row in rows}
    gains_by_row = {row: [g for g in shown_gains if g.row == row] for row in (*rows, ORACLE)}
    notes = (
        *(_describe_choice(names[row], gains_by_row[row]) for row in rows if row not in (FIRST_BEAM, ORACLE)),
        _describe_oracle_gain(gains_by_row[ORACLE]),
        "x100, mean over modalities, all on the same answers. First beam: the highest log-probability a token. Chosen "
        "is what was answered: the scorer's choice in the tasks where select.trust lets it, else the "
        "first beam. By a scorer's name: its choice in every task. Random: one draw an answer. "
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
    changes = [(f"{g.task.value} {g.metric}", g.value or 0.0, g.certain) for g in gains]
    parts = describe_certain(changes, "better than the first beam")
    return f"{name}: {parts or 'no gain and no loss: every interval spans 0'}."


def describe_certain(changes: Sequence[tuple[str, float, bool]], better: str = "better", digits: int = 1) -> str:
    """State where a difference is certain, for the better or the worse; empty where none is.

    `changes`: name, difference, and whether it is certain (its interval leaves out 0, or its p is small).
    """
    parts = []
    for phrase, sign in ((better, 1), ("worse", -1)):
        names = [f"{name} {value:+.{digits}f}" for name, value, certain in changes if certain and value * sign > 0]
        parts += [f"{phrase} in {', '.join(names)}"] if names else []
    if parts and not all(certain for _, _, certain in changes):
        parts.append("no difference seen in the rest")
    return "; ".join(parts)


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


def format_signed(value: float | None, digits: int = 1) -> str:
    """A difference as a cell."""
    return MISSING if value is None else f"{value:+.{digits}f}"


def _tabulate_metrics(score_index: ScoreIndex, choices: bool) -> Table:
    chosen = {FIRST_BEAM: "First beam", ORACLE: "Oracle"} if choices else {}
    chosen |= {PROBE: "Frozen-feature probe"} if score_index.has_probe() else {}
    rows = (MODEL, *chosen, *score_index.baselines())
    lines = []
    for task in Task:
        for metric in score_index.metrics(task):
            if metric in FLAWS.metrics:
                continue
            model_score = score_index.get(MODEL, task, metric)
            cells = (_format_score(score_index.get(row, task, metric)) for row in rows)
            count = str(model_score.count if model_score else 0)
            lines.append((f"{task.value} {metric}", count, _format_interval(model_score), *cells))
    titles = ("Model", *chosen.values(), *(f"Blind: {t}" for t in score_index.baselines()))
    notes = ("x100, mean over modalities. Intervals over images (patients where known): by score, else bootstrap.",)
    return Table("Every metric", ("", "Questions", "95 %", *titles), tuple(lines), notes)


def _tabulate_flaws(score_index: ScoreIndex) -> Table:
    """Answers of the model that were cut, empty, or held an unreadable box: they count as they are."""
    lines = []
    for task in Task:
        cells = [score_index.get(MODEL, task, metric) for metric in FLAWS.metrics]
        if any(cells):
            lines.append((task.value, str(next(c.count for c in cells if c)), *(_format_score(c) for c in cells)))
    heads = tuple(f"{m}, %" for m in FLAWS.metrics)
    notes = ("They are judged as they stand: what could not be read finds nothing.",)
    return Table("Answers with a flaw", ("Task", "Questions", *heads), tuple(lines), notes)


def _format_value(score: Score | None) -> str:
    return MISSING if score is None else as_cell(score.value, NOT_COMPUTED)


def _format_score(score: Score | None) -> str:
    """As `_format_value`, but missing where there was no question or no answer."""
    return MISSING if score and score.why in (NOT_ASKED, NOTHING_SAID) else _format_value(score)


def _format_interval(score: Score | Gain | None) -> str:
    return spell_interval(score.interval if score else None)


# ---- what reflection did --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RetestResult(Record):
    """One question of a review that was asked again after the round's training. The same tests say whether the answer
    is wrong before and after."""

    round: int
    id: str  # of the Sample
    task: Task
    modality: Modality
    before_wrong: bool
    after_wrong: bool
    answer: BoxedText  # after


def effect_table(again: Sequence[RetestResult]) -> Table:
    """The share of wrong answers that are now right, and of right answers that are now wrong, by round, task and
    modality, with 95 % Wilson intervals."""
    lines = []
    for number in sorted({a.round for a in again}):
        of_round = [a for a in again if a.round == number]
        lines.append((f"Round {number}, all", *_count_changes(of_round)))
        for task in (t for t in Task if any(a.task is t for a in of_round)):
            of_task = [a for a in of_round if a.task is task]
            lines.append((f"Round {number}, {task.value}", *_count_changes(of_task)))
            for modality in (m for m in Modality if any(a.modality is m for a in of_task)):
                lines.append((f"  {TITLES[modality]}", *_count_changes([a for a in of_task if a.modality is modality])))
    columns = ("", "Were wrong", "Now right", "% now right", "95 %", "Were right", "Now wrong", "% now wrong", "95 %")
    notes = (
        "Questions of the training split, asked again after the round's training. Wrong: by the tests of the round, or "
        "by a box, a name, a side, a negation or a count, whatever the round looked at. Intervals by Wilson, answers "
        "taken as independent.",
        "The round trained on all samples beside the corrected ones: what the corrections alone did is told by a run "
        "that rewrites none (reflect.rewrite=none), not by this table. Of answers picked for being wrong some turn "
        "right by chance.",
    )
    return Table("Asked again after the training", columns, tuple(lines), notes)


def _count_changes(again: Sequence[RetestResult]) -> tuple[str, ...]:
    cells: list[str] = []
    for before in (True, False):
        changed = [a.after_wrong is not before for a in again if a.before_wrong is before]
        part, whole = sum(changed), len(changed)
        bounds = wilson_interval(part, whole) if whole else None
        share = f"{100 * part / whole:.1f}" if whole else MISSING
        cells += [f"{whole:,}", f"{part:,}", share, spell_interval(bounds and (100 * bounds[0], 100 * bounds[1]))]
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
    lines = [f"### {_escape_markdown(table.title)}", "", *head, *map(line, table.rows)]
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])


def _escape_markdown(text: str) -> str:
    escaped = "\u2003" * ((len(text) - len(text.lstrip())) // 2) + " ".join(text.split())
    for mark in ("\\", "|", "<", "*", "`"):
        escaped = escaped.replace(mark, "&lt;" if mark == "<" else "\\" + mark)
    return escaped


def to_csv(scores: Sequence[Score]) -> str:
    """One line a score: row, task, metric, modality, value, low, high, count, why; empty where there is none."""
    out = io.StringIO()
    rows: list[tuple[object, ...]] = [("row", "task", "metric", "modality", "value", "low", "high", "count", "why")]
    for s in scores:
        bounds = s.interval or ("", "")
        value = "" if s.value is None else round(s.value, 4)
        low, high = (e if e == "" else round(float(e), 4) for e in bounds)
        modality = s.modality.value if s.modality else "mean"
        rows.append((s.row, s.task.value, s.metric, modality, value, low, high, s.count, s.why or ""))
    write_csv(out, rows, "\n")
    return out.getvalue()

"""Charts of a report: scores and image-blind baselines as bars, the paper's Figure 3, and training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from clinkd.records import PAPER_MODALITIES, Modality, Task
from clinkd.reporting.columns import explain_columns
from clinkd.reporting.printed import PRINTED_AVERAGES
from clinkd.reporting.tables import AVERAGED, NOT_COMPUTED, TITLES, ScoreIndex, as_cell, mean_of_all
from clinkd.reporting.viewer import page
from clinkd.reporting.viewer.curves import render_line_chart
from clinkd.reporting.viewer.figure import Bar, render_bar_chart
from clinkd.reporting.viewer.grid import Cell, render_grid
from clinkd.reporting.viewer.shot import Html
from clinkd.scoring.measure import FACTS
from clinkd.scoring.metrics import PRIMARY_METRIC
from clinkd.scoring.score import MODEL, spell_interval


class Curve(NamedTuple):
    """How figures of one training changed: by name, (optimiser step, figure)."""

    title: str
    series: Mapping[str, Sequence[tuple[float, float]]]


def draw_score_grid(score_index: ScoreIndex, shown: Mapping[tuple[Task, Modality], int]) -> Html:
    """Task by modality: each score above the best image-blind baseline. A score links to its questions on the page, if
    there are any (`shown` counts them)."""
    columns = score_index.columns()
    modalities = [m for m in Modality if any(m in score_index.modalities(*c) for c in columns)]
    rows = []
    for task, metric in columns:
        with_questions = score_index.modalities(task, metric)
        cells = [
            _build_grid_cell(score_index, task, metric, m, shown) if m in with_questions else None for m in modalities
        ]
        rows.append((f"{task.value} {metric}", [*cells, _build_grid_cell(score_index, task, metric, None, shown)]))
    notes = (
        "x100: the model, its 95 % interval where there is one, and the best answer that never saw the image (blind), "
        "in each cell anew.",
        *(["A figure leads to the questions it rests on."] if shown else []),
        *score_index.reasons(columns),
    )
    heads = (*(TITLES[m] for m in modalities), "Mean")
    meanings = explain_columns([*(name for name, _ in rows), *heads])
    return render_grid("Task by modality: model, interval, best blind baseline", heads, rows, notes, meanings)


def _build_grid_cell(
    score_index: ScoreIndex,
    task: Task,
    metric: str,
    modality: Modality | None,
    shown: Mapping[tuple[Task, Modality], int],
) -> Cell:
    score, baseline = score_index.get(MODEL, task, metric, modality), score_index.best_baseline(task, metric, modality)
    value, blind_cell = score.value if score else None, as_cell(score_index.blind(task, metric, modality), "–")
    cell = as_cell(value, "–")
    place = TITLES[modality] if modality else "mean over modalities"
    description = f"{task.value} {metric}, {place}: model {cell if value is not None else NOT_COMPUTED}"
    if score and score.interval:
        description += f", 95 % interval {score.interval[0]:.1f} to {score.interval[1]:.1f}"
    if baseline:
        description += f"; best blind baseline ({baseline}) {blind_cell}"
    if score:
        description += f"; {score.count:,} {'question' if score.count == 1 else 'questions'}"
    question_count = sum(n for (t, m), n in shown.items() if t is task and modality in (None, m))
    link = f"task={task.value}" + (f"&modality={modality.value}" if modality else "")
    if value is not None:
        link += f"&by={metric.replace('%', '%25').replace('+', '%2B').replace('&', '%26').replace(' ', '+')}"
    interval = spell_interval(score.interval) if score and score.interval else ""
    return Cell(cell, interval, f"blind {blind_cell}", description, link if question_count else None)


def draw_score_charts(score_index: ScoreIndex) -> Html:
    bars_of_tasks = [
        _build_bar(f"{t.value} {m}", score_index, t, m)
        for t in Task
        for m in (PRIMARY_METRIC[t], FACTS)
        if m in score_index.metrics(t)
    ]
    bar_charts = [render_bar_chart("By task, mean over modalities (x100)", bars_of_tasks)] if bars_of_tasks else []
    for task in Task:
        metric = next((m for m in (PRIMARY_METRIC[task], FACTS) if score_index.value(MODEL, task, m) is not None), None)
        if metric is not None:
            modalities = score_index.modalities(task, metric)
            bars_of_task = [_build_bar(TITLES[m], score_index, task, metric, m) for m in modalities]
            bar_charts.append(render_bar_chart(f"{task.value}: {metric} by modality (x100)", bars_of_task))
    return Html(page.charts(bar_charts) + page.note(["Whiskers: 95 % intervals over images (patients where known)."]))


def _build_bar(label: str, score_index: ScoreIndex, task: Task, metric: str, modality: Modality | None = None) -> Bar:
    score = score_index.get(MODEL, task, metric, modality)
    blind = score_index.blind(task, metric, modality)
    return Bar(label, score.value, blind, score.interval) if score else Bar(label, None, blind)


# ---- the paper's Figure 3: average by kind of data ------------------------------------------------------------------


def draw_averages(score_index: ScoreIndex) -> Html:
    """The mean over the four tasks in each modality: ours, and separately the values that the paper printed."""
    computed = [t for t in AVERAGED if score_index.value(MODEL, t, PRIMARY_METRIC[t]) is not None]
    rows, some_lack = [], False
    for modality in (m for m in Modality if any(m in score_index.modalities(t, PRIMARY_METRIC[t]) for t in computed)):
        present = [t for t in computed if score_index.value(MODEL, t, PRIMARY_METRIC[t], modality) is not None]
        ours_by_task = [score_index.value(MODEL, t, PRIMARY_METRIC[t], modality) for t in present]
        blind = [score_index.blind(t, PRIMARY_METRIC[t], modality) for t in present]
        lacks = len(present) < len(computed)
        some_lack |= lacks
        label = TITLES[modality] + (f" ({len(present)})" if lacks else "")
        rows.append(Bar(label, mean_of_all(ours_by_task), mean_of_all(blind)))
    printed = [
        Bar(TITLES[m], ours, theirs)
        for m, ours, theirs in zip(PAPER_MODALITIES, PRINTED_AVERAGES["ClinKD"], PRINTED_AVERAGES["BiRD"], strict=True)
    ]
    theirs = render_bar_chart("Printed in the paper: other data, other scripts", printed, "ClinKD", "BiRD")
    if not rows:
        return page.framed([theirs])
    missing = [f"{t.value} {PRIMARY_METRIC[t]}" for t in AVERAGED if t not in computed]
    ours = render_bar_chart(f"This run: mean of {', '.join(t.value for t in computed)} (x100)", rows)
    notes = [
        *([f"Without {', '.join(missing)}, which was not computed: no mean over four tasks."] if missing else []),
        *(["In brackets: the number of tasks with questions, where some have none."] if some_lack else []),
        "The paper's bars are of its Tables 3 and 4, on Med-GRIT-270k. They cannot be compared with ours.",
    ]
    return Html(page.charts([ours, page.framed([theirs])]) + page.note(notes))


# ---- the paper's Figure 5: how the losses fell ----------------------------------------------------------------------


def draw_training_curves(trainings: Sequence[Curve]) -> Html:
    """A chart for each training."""
    charts = [render_line_chart(c.title, c.series, "optimiser steps", "nats an answer token") for c in trainings]
    return page.charts(charts)

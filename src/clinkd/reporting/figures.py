"""What a report draws beside its tables: scores and blind twins as bars, the paper's Figure 3, and training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from clinkd.records import PAPER_MODALITIES, Modality, Task
from clinkd.reporting import viewer
from clinkd.reporting.printed import PRINTED_AVERAGES
from clinkd.reporting.tables import AVERAGED, NOT_COMPUTED, TITLES, ScoreIndex, mean_of_all
from clinkd.reporting.viewer.figure import Bar
from clinkd.reporting.viewer.grid import Cell
from clinkd.reporting.viewer.shot import Html
from clinkd.scoring.metrics import FACTS, PRIMARY_METRIC
from clinkd.scoring.score import MODEL


class Curve(NamedTuple):
    """How figures of one training changed: by name, (optimiser step, figure)."""

    title: str
    series: Mapping[str, Sequence[tuple[float, float]]]


def by_cell(board: ScoreIndex, shown: Mapping[tuple[Task, Modality], int]) -> Html:
    """Task by modality, each figure above the best of its image-blind twins, and leading to its questions on the page,
    where there are any (`shown`: how many)."""
    columns = board.columns()
    modalities = [m for m in Modality if any(m in board.modalities(*c) for c in columns)]
    rows = []
    for task, metric in columns:
        there = board.modalities(task, metric)
        cells = [_cell(board, task, metric, m, shown) if m in there else None for m in modalities]
        rows.append((f"{task.value} {metric}", [*cells, _cell(board, task, metric, None, shown)]))
    notes = (
        "x100: the model, and beneath it the best answer that never saw the image, in each cell anew. Intervals stand "
        "in the tips and in table.csv.",
        *(["A figure leads to the questions it rests on."] if shown else []),
        *board.reasons(columns),
    )
    return viewer.grid(
        "Task by modality: model / best blind twin", (*(TITLES[m] for m in modalities), "Mean"), rows, notes
    )


def _cell(
    board: ScoreIndex, task: Task, metric: str, modality: Modality | None, shown: Mapping[tuple[Task, Modality], int]
) -> Cell:
    own, blind = board.get(MODEL, task, metric, modality), board.blind(task, metric, modality)
    value = own.value if own else None
    cell = f"{value:.1f}" if value is not None else "–"
    where = TITLES[modality] if modality else "mean over modalities"
    said = f"{task.value} {metric}, {where}: model {cell if value is not None else NOT_COMPUTED}"
    if own and own.interval:
        said += f", 95 % interval {own.interval[0]:.1f} to {own.interval[1]:.1f}"
    if blind:
        said += f"; best blind twin ({blind[0]}) {blind[1]:.1f}"
    if own:
        said += f"; {own.count:,} {'question' if own.count == 1 else 'questions'}"
    there = sum(n for (t, m), n in shown.items() if t is task and modality in (None, m))
    link = f"task={task.value}" + (f"&modality={modality.value}" if modality else "")
    if value is not None:
        link += f"&by={metric.replace('%', '%25').replace('+', '%2B').replace('&', '%26').replace(' ', '+')}"
    return Cell(cell, f"{blind[1]:.1f}" if blind else "–", said, link if there else None)


def charts(board: ScoreIndex) -> Html:
    overall = [
        Bar(f"{t.value} {m}", *_figures(board, t, m, None)) for t in Task for m in (PRIMARY_METRIC[t], FACTS)
        if m in board.metrics(t)
    ]  # fmt: skip
    found = [viewer.bars("By task, mean over modalities (x100)", overall)] if overall else []
    for task in Task:
        metric = next((m for m in (PRIMARY_METRIC[task], FACTS) if board.value(MODEL, task, m) is not None), None)
        if metric is not None:
            modalities = board.modalities(task, metric)
            rows = [Bar(TITLES[m], *_figures(board, task, metric, m)) for m in modalities]
            found.append(viewer.bars(f"{task.value}: {metric} by modality (x100)", rows))
    return Html(viewer.charts(found) + viewer.note(["Whiskers: 95 % intervals, bootstrap by image."]))


def _figures(
    board: ScoreIndex, task: Task, metric: str, modality: Modality | None
) -> tuple[float | None, float | None, tuple[float, float] | None]:
    own, blind = board.get(MODEL, task, metric, modality), board.blind(task, metric, modality)
    return own.value if own else None, blind[1] if blind else None, own.interval if own else None


# ---- the paper's Figure 3: average by kind of data ------------------------------------------------------------------


def averages(board: ScoreIndex) -> Html:
    """The mean over the four tasks in each modality, ours and, apart from it, the paper's printed values."""
    told = [t for t in AVERAGED if board.value(MODEL, t, PRIMARY_METRIC[t]) is not None]
    rows, some_lack = [], False
    for modality in (m for m in Modality if any(m in board.modalities(t, PRIMARY_METRIC[t]) for t in told)):
        there = [t for t in told if board.value(MODEL, t, PRIMARY_METRIC[t], modality) is not None]
        own = [board.value(MODEL, t, PRIMARY_METRIC[t], modality) for t in there]
        blind = [b[1] if (b := board.blind(t, PRIMARY_METRIC[t], modality)) else None for t in there]
        lacks = len(there) < len(told)
        some_lack |= lacks
        label = TITLES[modality] + (f" ({len(there)})" if lacks else "")
        rows.append(Bar(label, mean_of_all(own), mean_of_all(blind)))
    printed = [
        Bar(TITLES[m], ours, theirs)
        for m, ours, theirs in zip(PAPER_MODALITIES, PRINTED_AVERAGES["ClinKD"], PRINTED_AVERAGES["BiRD"], strict=True)
    ]
    theirs = viewer.bars("Printed in the paper: other data, other scripts", printed, "ClinKD", "BiRD")
    if not rows:
        return viewer.apart([theirs])
    missing = [f"{t.value} {PRIMARY_METRIC[t]}" for t in AVERAGED if t not in told]
    ours = viewer.bars(f"This run: mean of {', '.join(t.value for t in told)} (x100)", rows)
    notes = [
        *([f"Without {', '.join(missing)}, which was not computed: no mean over four tasks."] if missing else []),
        *(["In brackets: the number of tasks with questions, where some have none."] if some_lack else []),
        "The paper's bars are of its Tables 3 and 4, on Med-GRIT-270k. They cannot be compared with ours.",
    ]
    return Html(viewer.charts([ours, viewer.apart([theirs])]) + viewer.note(notes))


# ---- the paper's Figure 5: how the losses fell ----------------------------------------------------------------------


def curves(trainings: Sequence[Curve]) -> Html:
    """A chart for each training."""
    return viewer.charts(
        [viewer.lines(c.title, c.series, "optimiser steps", "nats an answer token") for c in trainings]
    )

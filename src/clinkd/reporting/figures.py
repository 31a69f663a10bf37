"""Charts of a report: scores and image-blind baselines as bars, the paper's Figure 3, boxes, names, and training
curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten
from typing import Any, NamedTuple

from clinkd.records import PAPER_MODALITIES, Modality, Task
from clinkd.reporting.columns import explain_columns
from clinkd.reporting.printed import PRINTED_AVERAGES
from clinkd.reporting.reliability import draw_reliability
from clinkd.reporting.tables import AVERAGED, NOT_COMPUTED, TITLES, ScoreIndex, as_cell, describe_blind, mean_of_all
from clinkd.reporting.viewer import page
from clinkd.reporting.viewer.curves import render_histogram, render_line_chart
from clinkd.reporting.viewer.figure import Bar, render_bar_chart
from clinkd.reporting.viewer.grid import Cell, render_grid
from clinkd.reporting.viewer.shot import Html
from clinkd.scoring.measure import FACTS
from clinkd.scoring.metrics import PRIMARY_METRIC
from clinkd.scoring.plotted import NONE, OTHER, SEVERAL
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
        "x100: the model, its 95 % interval, and the best baseline that never saw the image (blind). A modality with a "
        "single patient, or image where none is known, has no interval.",
        *describe_blind({place for c in columns if (place := score_index.chosen_on(*c))}),
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
    ours = render_bar_chart(f"Mean of {', '.join(t.value for t in computed)} (x100)", rows)
    notes = [
        *([f"Without {', '.join(missing)}, which was not computed: no mean over four tasks."] if missing else []),
        *(["In brackets: the number of tasks with questions, where some have none."] if some_lack else []),
        "Blind: the mean over the tasks of the best blind baseline of each task in this modality.",
        "The paper's bars are of its Tables 3 and 4, on Med-GRIT-270k. They cannot be compared with ours.",
    ]
    return Html(page.charts([ours, page.framed([theirs])]) + page.note(notes))


# ---- boxes and names: drawn from `clinkd.scoring.plotted` -----------------------------------------------------------

_OVERLAPS = "Each true box counts by its best overlap (IoU) with a box of the answer; "
_AIDS = {
    "histogram": _OVERLAPS + "a tall bar at 0 is boxes that were missed altogether, one near 1 is boxes that fit.",
    "recall": _OVERLAPS + "the height at .5 is the share of true boxes that overlap by half or more, and a line that "
    "stays high to the right means exact boxes.",
    "size": _OVERLAPS + "the rows are the sizes of the true box as a share of the image, with the number of boxes in "
    "brackets, and the bars are the mean x100.",
}
_MODEL, _BLIND = "model", "blind"
_LEAST_SHADES = (0.05, 0.25, 0.5, 0.75)


def rename_classes(described: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """The numbers of the figures with other names for the classes, which are words of the data."""
    names = described.get("names", {})
    if "rows" not in names:
        return dict(described)
    renamed = {name: name if name in (OTHER, NONE, SEVERAL) else rename(name) for name in names["columns"]}
    heads = {side: [renamed[name] for name in names[side]] for side in ("rows", "columns")}
    return {**described, "names": {**names, **heads}}


def draw_figures(described: Mapping[str, Any]) -> list[Html]:
    """The figures whose numbers `scoring.plotted.describe_figures` gave; where it gave a reason, the reason."""
    parts = [_draw_boxes(described["boxes"])] if "boxes" in described else []
    parts += [_draw_names(described["names"])] if "names" in described else []
    return [*parts, *draw_reliability(described)]


def _draw_boxes(boxes: Mapping[str, Any]) -> Html:
    if "why" in boxes:
        return page.note([f"Figures of boxes (VG) are not drawn: {boxes['why']}."])
    names = {_MODEL: "model", _BLIND: f"blind: {boxes['blind_is']}"}
    histogram, recall, size = boxes["histogram"], boxes["recall"], boxes["size"]
    shares = {
        names[row]: [100 * c / boxes["truth_boxes"] for c in counts] for row, counts in histogram["counts"].items()
    }
    curves = {
        names[row]: list(zip(recall["thresholds"], values, strict=True)) for row, values in recall["shares"].items()
    }
    blind_means = size["mean_iou"].get(_BLIND, [None] * len(size["counts"]))
    bars = [
        Bar(f"{100 * low:g}–{100 * high:g} % ({count:,})", 100 * mean, None if blind is None else 100 * blind)
        for low, high, count, mean, blind in zip(
            size["edges"][:-1], size["edges"][1:], size["counts"], size["mean_iou"][_MODEL], blind_means, strict=True
        )
        if count
    ]
    overlap, share = "IoU of a true box with the best box of the answer", "% of true boxes"
    drawn = {
        "histogram": render_histogram("VG: how well boxes overlap", histogram["edges"], shares, overlap, share),
        "recall": render_line_chart(
            "VG: recall by the least IoU of a found box", curves, "least IoU", "share of true boxes"
        ),
        "size": render_bar_chart("VG: overlap by the size of the true box", bars, _MODEL, names[_BLIND]),
    }
    return page.charts([page.explained(figure, _AIDS[kind]) for kind, figure in drawn.items()])


def _draw_names(names: Mapping[str, Any]) -> Html:
    if "why" in names:
        return page.note([f"The confusion of names (ROC) is not drawn: {names['why']}."])
    columns = [shorten(name, 32, placeholder="…") for name in names["columns"]]
    rows = []
    for name, counts in zip(names["rows"], names["counts"], strict=True):
        whole = max(1, sum(counts))
        cells = [
            Cell(
                str(count), f"{100 * count / whole:.0f} %", "", f"truth {name}, named {named}: {count} of {whole}",
                shade=sum(count / whole >= least for least in _LEAST_SHADES),
            )
            if count else None
            for named, count in zip(names["columns"], counts, strict=True)
        ]  # fmt: skip
        rows.append((shorten(name, 32, placeholder="…"), cells))
    notes = (
        "Each row is a class of the truth, and its cells count what its answers named, with their share of the row: a "
        f"good model has its counts where row and column have one name. {NONE}: the answer affirms none of them; "
        f"{SEVERAL}: more than one.",
        *([f"The {len(names['columns']) - 3} commonest of {names['classes']} classes; the others are together."]
          if names["classes"] > len(names["columns"]) - 3 else []),
    )  # fmt: skip
    return render_grid("ROC: truth (rows) by what was named (columns)", columns, rows, notes)


# ---- the paper's Figure 5: how the losses fell ----------------------------------------------------------------------


def draw_training_curves(trainings: Sequence[Curve]) -> Html:
    """A chart for each training."""
    charts = [render_line_chart(c.title, c.series, "optimiser steps", "nats an answer token") for c in trainings]
    return page.charts(charts)

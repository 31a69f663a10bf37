"""All strict metrics.

To add a metric, add one `Metric` to the rows of the `Measure` (in `measures`) that counts what it needs: tables, JSON,
report and comparisons follow, and a test asks for a new version of the stage `score`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from clinkd.records import Task
from clinkd.scoring.measure import Measure, Metric, Place
from clinkd.scoring.measures.absence import ABSENCE, HALLUCINATION
from clinkd.scoring.measures.answers import ANSWERS, is_right
from clinkd.scoring.measures.boxes import BOXES
from clinkd.scoring.measures.flaws import FLAWS
from clinkd.scoring.measures.names import NAMES
from clinkd.scoring.measures.texts import CAPTIONS, CHRF, CIDER, CLAIMS, FACT_TUPLES, SPICE

__all__ = [
    "ANSWERS",
    "BOXES",
    "FLAWS",
    "MEASURES",
    "NAMES",
    "PRIMARY_METRIC",
    "is_right",
    "list_shown_metrics",
    "list_stand_ins",
    "measures",
    "metrics_of",
]

MEASURES = (*(BOXES, NAMES, CAPTIONS, CIDER, CHRF, FACT_TUPLES, SPICE, CLAIMS, ANSWERS, ABSENCE, HALLUCINATION, FLAWS),)
PRIMARY_METRIC = {
    task: metric.name for task in Task for m in MEASURES for metric in m.rows if task in metric.primary_of
}


def measures(spice: Literal["headline", "all"]) -> tuple[Measure, ...]:
    """All measures, with SPICE for the task whose primary metric it is, or for every task of captions."""
    tasks = SPICE.tasks if spice == "headline" else CAPTIONS.tasks
    return tuple(replace(m, tasks=tasks) if m is SPICE else m for m in MEASURES)


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """The metrics of a task: the primary metric, those that replace it, then the others in the order above."""

    def rank(metric: Metric) -> tuple[bool, float]:
        return task not in metric.primary_of, math.inf if metric.stands_in is None else metric.stands_in

    return tuple(sorted((metric for m in MEASURES if task in m.tasks for metric in m.rows), key=rank))


def list_shown_metrics(place: Place, task: Task) -> tuple[str, ...]:
    """The metrics of a task that a short table shows, in their order."""
    return tuple(m.name for m in metrics_of(task) if place in m.shown)


def list_stand_ins(task: Task) -> tuple[str, ...]:
    """The metrics by which a task is compared: its primary metric, then those that replace it where it is missing."""
    return tuple(m.name for m in metrics_of(task) if task in m.primary_of or m.stands_in is not None)

"""All tasks: what could not be judged as it stands."""

from __future__ import annotations

from clinkd.records import Task
from clinkd.scoring.measure import Measure, Metric, Rules, SampleAnswer, count_each, make_ratio

_FLAW_COLUMNS = ("answers", "truncated", "unread box", "empty", "to a truth with a box", "of these without a box")


def _count_flaws(item: SampleAnswer, rules: Rules) -> dict[str, float]:
    truth_has_box, answer = bool(item.sample.answer.boxes), item.answer
    return {
        "answers": 1,
        "truncated": answer.truncated,
        "unread box": bool(answer.unread),
        "empty": not answer.answer.text.strip() and not answer.unread,
        "to a truth with a box": truth_has_box,
        "of these without a box": truth_has_box and not answer.answer.boxes,
    }


FLAWS = Measure(
    tuple(Task),
    _FLAW_COLUMNS,
    count_each(_FLAW_COLUMNS, _count_flaws),
    (
        Metric("Truncated", make_ratio("truncated", "answers"), better="lower"),
        Metric("Unread boxes", make_ratio("unread box", "answers"), better="lower"),
        Metric("Empty", make_ratio("empty", "answers"), better="lower"),
        Metric(
            "No box where one was asked for",
            make_ratio("of these without a box", "to a truth with a box"),
            better="lower",
        ),
    ),
)

"""The strict scores of each task in the form that `clinkd evaluate` prints beside those of the papers' scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from clinkd.records import Modality, Prediction, Sample, Score, Task
from clinkd.reporting.tables import ScoreIndex
from clinkd.scoring.metrics import ANSWERS, BOXES, FLAWS, NAMES, PRIMARY_METRIC
from clinkd.scoring.outcome import Outcome, Share
from clinkd.scoring.score import MODEL, ScoredAnswers

_HITS = {  # columns that add up to what was found, and that of how many there were
    Task.VG: (BOXES, ("found",), "truth boxes"),
    Task.ROC: (NAMES, ("hits",), "answers"),
    Task.QA: (ANSWERS, ("right yes/no", "short equal", "long equal"), "answers"),
}


def outcomes(judged: ScoredAnswers, scores: Sequence[Score], predictions: Iterable[Prediction]) -> list[Outcome]:
    """One for each task that was asked, in the tasks' order; `scores` are those of `judged`."""
    board, unread = ScoreIndex(scores), _unparsed(judged.samples, predictions)
    asked = {s.task for s in judged.samples}
    return [_outcome(judged, board, task, unread) for task in Task if task in asked]


def _outcome(judged: ScoredAnswers, board: ScoreIndex, task: Task, unread: Mapping[Task, int]) -> Outcome:
    metric = PRIMARY_METRIC[task]
    own = board.get(MODEL, task, metric)
    flaws = judged.sums(task, FLAWS)
    found = {m: _share(judged, board, task, m, int(sums["answers"])) for m, sums in flaws.items()}
    answers, truncated, empty = (
        int(sum(sums[column] for sums in flaws.values())) for column in ("answers", "truncated", "empty")
    )
    return Outcome(
        mode="strict",
        task=task,
        metric=metric,
        score=own.value if own else None,
        by_modality={m.value: found[m] for m in Modality if m in found},
        parts=_parts(board, task, None),
        unparsed=unread.get(task, 0),
        interval=own.interval if own else None,
        why=own.why if own else None,
        blind_by={t: v for t in board.twins() if (v := board.value(t, task, metric)) is not None},
        answers=answers,
        truncated=truncated,
        empty=empty,
    )


def _share(judged: ScoredAnswers, board: ScoreIndex, task: Task, modality: Modality, answers: int) -> Share:
    parts, value = _parts(board, task, modality), board.value(MODEL, task, PRIMARY_METRIC[task], modality)
    if task not in _HITS:
        return Share(answers, value, parts=parts)
    measure, found, whole = _HITS[task]
    sums = judged.sums(task, measure)[modality]
    return Share(int(sums[whole]), value, int(sum(sums[column] for column in found)), parts)


def _parts(board: ScoreIndex, task: Task, modality: Modality | None) -> dict[str, float]:
    """Every metric that was computed, the headline and the flaws aside."""
    rest = (m for m in board.metrics(task) if m != PRIMARY_METRIC[task] and m not in FLAWS.metrics)
    return {m: v for m in rest if (v := board.value(MODEL, task, m, modality)) is not None}


def _unparsed(samples: Sequence[Sample], predictions: Iterable[Prediction]) -> dict[Task, int]:
    """Answers in which no box could be read, where the truth has one."""
    asked = {s.id for s in samples if s.task is Task.VG and s.answer.boxes}
    return {Task.VG: sum(p.id in asked and not p.answer.answer.boxes for p in predictions)}

"""The strict scores of each task in the form that `clinkd evaluate` prints beside those of the papers' scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from clinkd.records import Modality, Prediction, Sample, Score, Task
from clinkd.reporting.tables import ScoreIndex
from clinkd.scoring.metrics import ANSWERS, BOXES, FLAWS, NAMES, PRIMARY_METRIC
from clinkd.scoring.outcome import Outcome, Share
from clinkd.scoring.score import MODEL, ScoredAnswers

_HIT_COLUMNS = {  # columns that add up to the hits, and the column with the total
    Task.VG: (BOXES, ("found",), "truth boxes"),
    Task.ROC: (NAMES, ("hits",), "answers"),
    Task.QA: (ANSWERS, ("right yes/no", "short equal", "long equal"), "answers"),
}


def outcomes(scored: ScoredAnswers, scores: Sequence[Score], predictions: Iterable[Prediction]) -> list[Outcome]:
    """One for each task that was asked, in the tasks' order; `scores` are those of `judged`."""
    score_index, unparsed = ScoreIndex(scores), _count_unparsed(scored.samples, predictions)
    tasks = {s.task for s in scored.samples}
    return [_build_outcome(scored, score_index, task, unparsed) for task in Task if task in tasks]


def _build_outcome(
    scored: ScoredAnswers, score_index: ScoreIndex, task: Task, unparsed_by_task: Mapping[Task, int]
) -> Outcome:
    metric = PRIMARY_METRIC[task]
    model_score = score_index.get(MODEL, task, metric)
    flaws = scored.sums(task, FLAWS)
    shares = {m: _build_share(scored, score_index, task, m, int(sums["answers"])) for m, sums in flaws.items()}
    answers, truncated, empty = (
        int(sum(sums[column] for sums in flaws.values())) for column in ("answers", "truncated", "empty")
    )
    return Outcome(
        mode="strict",
        task=task,
        metric=metric,
        score=model_score.value if model_score else None,
        by_modality={m.value: shares[m] for m in Modality if m in shares},
        parts=_read_other_metrics(score_index, task, None),
        unparsed=unparsed_by_task.get(task, 0),
        interval=model_score.interval if model_score else None,
        why=model_score.why if model_score else None,
        blind_by={t: v for t in score_index.twins() if (v := score_index.value(t, task, metric)) is not None},
        answers=answers,
        truncated=truncated,
        empty=empty,
    )


def _build_share(scored: ScoredAnswers, score_index: ScoreIndex, task: Task, modality: Modality, answers: int) -> Share:
    parts, value = (
        _read_other_metrics(score_index, task, modality),
        score_index.value(MODEL, task, PRIMARY_METRIC[task], modality),
    )
    if task not in _HIT_COLUMNS:
        return Share(answers, value, parts=parts)
    measure, hit_columns, total_column = _HIT_COLUMNS[task]
    sums = scored.sums(task, measure)[modality]
    return Share(int(sums[total_column]), value, int(sum(sums[column] for column in hit_columns)), parts)


def _read_other_metrics(score_index: ScoreIndex, task: Task, modality: Modality | None) -> dict[str, float]:
    """Every computed metric except the primary metric and the flaws."""
    other = (m for m in score_index.metrics(task) if m != PRIMARY_METRIC[task] and m not in FLAWS.metrics)
    return {m: v for m in other if (v := score_index.value(MODEL, task, m, modality)) is not None}


def _count_unparsed(samples: Sequence[Sample], predictions: Iterable[Prediction]) -> dict[Task, int]:
    """Count the answers without a readable box, among the questions whose truth has a box."""
    boxed_ids = {s.id for s in samples if s.task is Task.VG and s.answer.boxes}
    return {Task.VG: sum(p.id in boxed_ids and not p.answer.answer.boxes for p in predictions)}

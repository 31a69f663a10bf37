"""Find the answers that miss the truth: three tests an answer (words, boxes, contradictions), named in the record."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from clinkd.boxes import match_boxes
from clinkd.config import ReflectConfig
from clinkd.correction.similarity import Similarity
from clinkd.language.conflicts import conflicts
from clinkd.language.negation import mentioned_names
from clinkd.records import BadInput, BoxedText, Correction, Prediction, Sample

MISSES = ("box", "name", "laterality", "negation", "count")


def review(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    similarity: Similarity,
    config: ReflectConfig,
    round: int,
) -> list[Correction]:
    """One Correction for each answered sample, in the order of the samples; right answers have no reasons.

    An answer is wrong if its box-stripped text is less similar to the truth than `config.threshold`; if a truth box has
    no partner of its own with IoU >= `config.box_iou` (0 leaves this test out); or if sides, negation or counts
    contradict the truth (`config.conflicts`). `box_iou=0, conflicts=False` is the paper's plain rule.

    Raises BadInput for a prediction of a sample that is not among `samples`, or two of one sample.
    """
    answers = _answers_by_id(samples, predictions)
    reviewed = [(s, answers[s.id]) for s in samples if s.id in answers]
    similarities = similarity.similar([a.words for _, a in reviewed], [s.answer.words for s, _ in reviewed])
    return [
        Correction(s.id, round, a, s.answer, value, _reasons(a, s.answer, value, config))
        for (s, a), value in zip(reviewed, similarities, strict=True)
    ]


def choose_for_control(
    reviewed: Sequence[Correction], rewrite: Literal["random", "none"], seed: int
) -> list[Correction]:
    """The same answers with the same reasons, but others to rewrite: as many as were wrong, drawn by seed from all, or
    none. The controls show what rewriting does without aiming at mistakes, and what training does without rewrites."""
    hash_ranks = {c.id: hashlib.sha256(f"{seed} rewrite {c.round} {c.id}".encode()).digest() for c in reviewed}
    count = sum(c.wrong for c in reviewed) if rewrite == "random" else 0
    sampled_ids = set(sorted(hash_ranks, key=lambda i: hash_ranks[i])[:count])
    return [replace(c, drawn=c.id in sampled_ids) for c in reviewed]


def find_misses(answer: BoxedText, truth: BoxedText, names: Sequence[str]) -> tuple[str, ...]:
    """The kinds in which an answer misses its truth, whatever the rule of the round: some of `MISSES`.

    box: a true box has no box of its own with IoU 0.5; name: other structures are named than in the truth; then the
    contradictions of `conflicts`. `names`: class names of the data.
    """
    found: tuple[str, ...] = ("box",) if len(match_boxes(truth.boxes, answer.boxes, 0.5)) < len(truth.boxes) else ()
    if set(mentioned_names(answer.words, names)) != set(mentioned_names(truth.words, names)):
        found += ("name",)
    return found + conflicts(answer.words, truth.words)


def is_missed(reviewed: Correction, names: Sequence[str]) -> bool:
    """Whether the answer of a review is wrong by the rule of its round or by `find_misses`: one measure for all rules,
    for a rule that passes a wrong side would not see a side that training broke."""
    return reviewed.wrong or bool(find_misses(reviewed.before, reviewed.truth, names))


def _answers_by_id(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, BoxedText]:
    sample_ids, answers = {s.id for s in samples}, dict[str, BoxedText]()
    for prediction in predictions:
        if prediction.id not in sample_ids:
            raise BadInput(f"prediction {prediction.id!r} answers no sample under review: give the file they came from")
        if prediction.id in answers:
            raise BadInput(f"two predictions for sample {prediction.id!r}: keep one")
        answers[prediction.id] = prediction.answer.answer
    return answers


def _reasons(answer: BoxedText, truth: BoxedText, similarity: float, config: ReflectConfig) -> tuple[str, ...]:
    reasons: tuple[str, ...] = ("similarity",) if similarity < config.threshold else ()
    if config.box_iou > 0 and len(match_boxes(truth.boxes, answer.boxes, config.box_iou)) < len(truth.boxes):
        reasons += ("box",)
    return reasons + (conflicts(answer.words, truth.words) if config.conflicts else ())

"""How far the candidates of an answer agree, which a reader sees beside the chosen one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from clinkd.language.agreement import answer_similarity
from clinkd.language.conflicts import conflicts
from clinkd.language.negation import mentioned_names
from clinkd.records import Candidate, Prediction

CERTAIN = 0.6  # support from which candidates count as agreeing; LOG.md has what this means on the demo


class SelfConsistency(NamedTuple):
    """The weight of each candidate (they sum to 1) and its similarity to the chosen one, 0..1.

    `value`, the support, is the weighted mean of the similarities. `why` says in words what differs, None if the
    candidates agree. Neither says anything of right or wrong on its own (see `disagreement`).
    """

    weights: tuple[float, ...]
    similarities: tuple[float, ...]
    value: float
    why: str | None


def self_consistency(prediction: Prediction, lengths: Sequence[int], names: Sequence[str] = ()) -> SelfConsistency:
    """Weights are the model's probabilities of the candidates, scaled to sum to 1: exp(logprob * length).

    lengths: tokens of each candidate, end mark included; names: class names of the data. Similarity is
    `answer_similarity`, but 0 between candidates that name different structures or contradict each other: "the liver"
    and "the spleen" share most of their words. A candidate without a log-probability gets the others' mean log weight.
    """
    chosen = prediction.answer
    weights = _compute_weights(prediction.candidates, lengths)
    clashes = [_find_clash(c, chosen, names) for c in prediction.candidates]
    similarities = tuple(
        0.0 if clash else answer_similarity(c.answer, chosen.answer)
        for c, clash in zip(prediction.candidates, clashes, strict=True)
    )
    support = min(1.0, math.fsum(w * v for w, v in zip(weights, similarities, strict=True)))
    if support >= CERTAIN:
        return SelfConsistency(weights, similarities, support, None)
    # the candidate that weighs most against the chosen one
    _, worst = max((w * (1 - v), n) for n, (w, v) in enumerate(zip(weights, similarities, strict=True)))
    what = clashes[worst] or ("boxes" if prediction.candidates[worst].answer.boxes or chosen.answer.boxes else "words")
    return SelfConsistency(weights, similarities, support, f"the candidates differ in their {what}")


def measure_supports(prediction: Prediction, lengths: Sequence[int], names: Sequence[str]) -> list[float]:
    """The support of each candidate, were it the chosen one; arguments as for `self_consistency`."""
    return [
        round(self_consistency(replace(prediction, chosen=n), lengths, names).value, 6)
        for n in range(len(prediction.candidates))
    ]


def _compute_weights(candidates: Sequence[Candidate], lengths: Sequence[int]) -> tuple[float, ...]:
    known_logs = [c.logprob * n for c, n in zip(candidates, lengths, strict=True) if c.logprob is not None]
    mean = math.fsum(known_logs) / len(known_logs) if known_logs else 0.0
    log_weights = [mean if c.logprob is None else c.logprob * n for c, n in zip(candidates, lengths, strict=True)]
    shares = [math.exp(v - max(log_weights)) for v in log_weights]
    return tuple(v / math.fsum(shares) for v in shares)


def _find_clash(candidate: Candidate, chosen: Candidate, names: Sequence[str]) -> str | None:
    """The kind of contradiction between two answers; None if there is none."""
    ours, theirs = candidate.answer.words, chosen.answer.words
    if set(mentioned_names(ours, names)) != set(mentioned_names(theirs, names)):
        return "names"
    kinds = conflicts(ours, theirs)
    return kinds[0] if kinds else None

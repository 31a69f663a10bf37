"""How far the candidates of an answer agree: what a reader is told beside the chosen one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from clinkd.language.agreement import answer_similarity
from clinkd.language.conflicts import conflicts
from clinkd.language.negation import mentioned_names
from clinkd.records import Candidate, Prediction

CERTAIN = 0.6  # support from which an answer counts as agreed on; what it tells on the demo is in LOG.md


class SelfConsistency(NamedTuple):
    """Of each candidate its weight (they sum to 1) and its likeness to the chosen one, 0..1.

    `support` is the mean likeness by weight. `why` says in words what differs, None where the answer is certain.
    """

    weights: tuple[float, ...]
    likeness: tuple[float, ...]
    support: float
    why: str | None

    @property
    def uncertain(self) -> bool:
        return self.why is not None


def self_consistency(prediction: Prediction, lengths: Sequence[int], names: Sequence[str] = ()) -> SelfConsistency:
    """Weights are the probabilities of the candidates among each other, by the model: exp(logprob * length).

    lengths: tokens of each candidate, end mark included; names: class names of the data. Similarity is
    `answer_similarity`, but 0 between candidates that name different structures or contradict each other: "the liver"
    and "the spleen" share most of their words. A candidate without a log-probability weighs as the mean of the others.
    """
    chosen = prediction.answer
    weights = _weights(prediction.candidates, lengths)
    clashes = [_clash(c, chosen, names) for c in prediction.candidates]
    likeness = tuple(
        0.0 if clash else answer_similarity(c.answer, chosen.answer)
        for c, clash in zip(prediction.candidates, clashes, strict=True)
    )
    support = min(1.0, math.fsum(w * v for w, v in zip(weights, likeness, strict=True)))
    if support >= CERTAIN:
        return SelfConsistency(weights, likeness, support, None)
    # what weighs most against the chosen one
    _, worst = max((w * (1 - v), n) for n, (w, v) in enumerate(zip(weights, likeness, strict=True)))
    what = clashes[worst] or ("boxes" if prediction.candidates[worst].answer.boxes or chosen.answer.boxes else "words")
    return SelfConsistency(weights, likeness, support, f"the candidates disagree in their {what}")


def _weights(candidates: Sequence[Candidate], lengths: Sequence[int]) -> tuple[float, ...]:
    told = [c.logprob * n for c, n in zip(candidates, lengths, strict=True) if c.logprob is not None]
    mean = math.fsum(told) / len(told) if told else 0.0
    logs = [mean if c.logprob is None else c.logprob * n for c, n in zip(candidates, lengths, strict=True)]
    shares = [math.exp(v - max(logs)) for v in logs]
    return tuple(v / math.fsum(shares) for v in shares)


def _clash(candidate: Candidate, chosen: Candidate, names: Sequence[str]) -> str | None:
    """In what two answers cannot both be right; None where nothing speaks for it."""
    ours, theirs = candidate.answer.words, chosen.answer.words
    if set(mentioned_names(ours, names)) != set(mentioned_names(theirs, names)):
        return "names"
    found = conflicts(ours, theirs)
    return found[0] if found else None

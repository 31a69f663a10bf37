"""Selective generation (paper, Algorithm 1): score every candidate against the image, the best is the answer."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from clinkd.agreement import alike
from clinkd.model.clip import ImageTextModel
from clinkd.records import BoxedText, Prediction, Sample
from clinkd.storage import progress

BATCH = 64  # samples scored together


class Scorer(Protocol):
    """How well each candidate answers; higher is better. `name` is the key of its figures in the record."""

    name: str

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]: ...


class ClipScorer:
    """Cosine of a CLIP between the image and the answer's words.

    Coordinates mean nothing to a CLIP, so box marks are left out; candidates that differ in their boxes only tie, and
    a tie keeps the order of the beams. The question is not shown, as in the paper.
    """

    name = "clip"

    def __init__(self, model: ImageTextModel) -> None:
        self.model = model

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        texts = [[c.answer.words for c in p.candidates] for p in predictions]
        return self.model.score([s.images[0] for s in samples], texts)


class FirstBeam:
    """The order of the beams themselves: selection switched off."""

    name = "first"

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        return [[float(-n) for n in range(len(p.candidates))] for p in predictions]


class RandomScorer:
    """A die, seeded by sample: what selection must beat."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        dice = [random.Random(f"{self.seed} {p.id}") for p in predictions]
        return [[d.random() for _ in p.candidates] for d, p in zip(dice, predictions, strict=True)]


class Agreement:
    """Self-consistency: how alike a candidate is to the others of its sample, on average; the best is their medoid.

    Boxes by IoU, words by F1 (`agreement.alike`). Neither image nor question is looked at, and no model.
    """

    name = "agreement"

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        return [_mean_likeness([c.answer for c in p.candidates]) for p in predictions]


def _mean_likeness(answers: Sequence[BoxedText]) -> list[float]:
    """Of each answer to all others; 1 where there is no other."""
    pairs = {(i, j): alike(answers[i], answers[j]) for j in range(len(answers)) for i in range(j)}
    # each pair once and summed exactly: two answers that are as alike to the rest must tie
    sums = [math.fsum(v for pair, v in pairs.items() if n in pair) for n in range(len(answers))]
    return [total / (len(answers) - 1) if len(answers) > 1 else 1.0 for total in sums]


def rerank(
    samples: Mapping[str, Sample],
    predictions: Sequence[Prediction],
    scorer: Scorer,
    tasks: Sequence[str],
    rivals: Sequence[Scorer] = (),
) -> list[Prediction]:
    """The same predictions with scores written beside every candidate and, in `tasks`, the best one chosen.

    `rivals` write their scores, too, and choose nothing: what the scorer is held against. Choice is by the scores as
    written, so that the record alone tells it; ties go to the earlier beam. Candidates keep their order, so the first
    beam remains known.
    """
    done: list[Prediction] = []
    with progress(len(predictions), f"select by {scorer.name}", "answers") as advance:
        for start in range(0, len(predictions), BATCH):
            batch = predictions[start : start + BATCH]
            asked = [samples[p.id] for p in batch]
            scored: Sequence[Prediction] = batch
            for judge in (*rivals, scorer):
                found = judge.scores(asked, batch)
                scored = [_noted(p, judge.name, own) for p, own in zip(scored, found, strict=True)]
            done += [
                replace(p, chosen=_best(p, scorer.name) if s.task in tasks else 0)
                for s, p in zip(asked, scored, strict=True)
            ]
            advance(len(batch))
    return done


def _noted(prediction: Prediction, name: str, scores: Sequence[float]) -> Prediction:
    candidates = zip(prediction.candidates, scores, strict=True)
    return replace(
        prediction, candidates=tuple(replace(c, scores={**c.scores, name: round(s, 6)}) for c, s in candidates)
    )


def _best(prediction: Prediction, name: str) -> int:
    """The first candidate of the highest score of that name."""
    return max(range(len(prediction.candidates)), key=lambda n: prediction.candidates[n].scores[name])

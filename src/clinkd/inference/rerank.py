"""Selective generation (paper, Algorithm 1): score every candidate against the image, the best is the answer."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from clinkd.model.clip import ImageTextModel
from clinkd.records import Prediction, Sample
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


def rerank(
    samples: Mapping[str, Sample], predictions: Sequence[Prediction], scorer: Scorer, tasks: Sequence[str]
) -> list[Prediction]:
    """The same predictions with scores written beside every candidate and, in `tasks`, the best one chosen.

    Ties go to the earlier beam. Candidates keep their order, so the first beam remains known.
    """
    done: list[Prediction] = []
    with progress(len(predictions), f"select by {scorer.name}", "answers") as advance:
        for start in range(0, len(predictions), BATCH):
            batch = predictions[start : start + BATCH]
            asked = [samples[p.id] for p in batch]
            for sample, prediction, scores in zip(asked, batch, scorer.scores(asked, batch), strict=True):
                candidates = tuple(
                    replace(c, scores={**c.scores, scorer.name: round(s, 6)})
                    for c, s in zip(prediction.candidates, scores, strict=True)
                )
                best = max(range(len(scores)), key=lambda n: (scores[n], -n)) if sample.task in tasks else 0
                done.append(replace(prediction, candidates=candidates, chosen=best))
            advance(len(batch))
    return done

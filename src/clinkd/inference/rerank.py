"""Selective generation (paper, Algorithm 1): score every candidate against the image; the best is the answer."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean
from typing import Literal, Protocol

from clinkd.clip.model import LOWEST, ImageTextModel, View
from clinkd.language.agreement import answer_similarity
from clinkd.language.negation import mentioned_names
from clinkd.records import BoxedText, Prediction, Sample, Task
from clinkd.storage import progress

BATCH = 64  # samples scored together

Grounding = Literal["text", "crop", "both"]
Shown = dict[str, list[tuple[View, str]]]  # of one candidate: by part of its score, views with the words for them


class Scorer(Protocol):
    """Scores how well each candidate answers; higher is better. `name` is the key of its scores in the record."""

    name: str

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]: ...

    def parts(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[dict[str, float]]]:
        """The record beside each candidate: the score under the scorer's name, and its parts if it has any."""
        return [[{self.name: s} for s in line] for line in self.scores(samples, predictions)]


class ScorerOfParts(Scorer):
    """A scorer whose `parts` are computed, and the scores taken from them."""

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        return [[parts[self.name] for parts in line] for line in self.parts(samples, predictions)]


class ClipScorer(ScorerOfParts):
    """Cosine of a CLIP between a view of the image and words.

    Coordinates mean nothing to a CLIP. Under `text` it sees the whole image and the answer's words without box marks;
    candidates that differ only in their boxes tie, and a tie keeps the order of the beams. Under `crop` it sees boxes.
    If the question has boxes: their crops with the candidate's words. If the question asks for boxes: the crops of the
    candidate's boxes with the names in the question (`names` are the class names of the data), and a candidate without
    a box scores lowest. Otherwise the same as under `text`. Under `both` the mean counts. The truth is never read, and
    of the question only its boxes and names.
    """

    name = "clip"

    def __init__(self, model: ImageTextModel, grounding: Grounding, names: Sequence[str]) -> None:
        self.model, self.grounding, self.names = model, grounding, tuple(names)
        self.num_candidates = self.num_too_long = 0  # scored so far, and of these with a text beyond the token limit

    def parts(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[dict[str, float]]]:
        """The scores, and their parts `clip text` and `clip crop` unless `grounding` is text."""
        shown = [self._views_of(s, p) for s, p in zip(samples, predictions, strict=True)]
        pairs = [pair for line in shown for part in line for pair in chain.from_iterable(part.values())]
        self._count_too_long(shown)
        cosines = iter(self.model.score(pairs))
        return [
            [self._combine({k: [next(cosines) for _ in v] for k, v in part.items()}) for part in line] for line in shown
        ]

    def _views_of(self, sample: Sample, prediction: Prediction) -> list[Shown]:
        """The views and words for each candidate."""
        image, boxes = sample.images[0], sample.question.boxes
        wants_boxes = not boxes and asks_for_boxes(sample, prediction)
        names = " and ".join(mentioned_names(sample.question.words, self.names)) if wants_boxes else ""
        views: list[Shown] = []
        for candidate in prediction.candidates:
            words = candidate.answer.words
            part: Shown = {}
            if self.grounding != "crop" or not (boxes or wants_boxes):
                part["clip text"] = [(View(image), words)]
            if self.grounding != "text" and (boxes or wants_boxes):
                part["clip crop"] = [(View(image, box), names or words) for box in boxes or candidate.answer.boxes]
            views.append(part)
        return views

    def _combine(self, cosines: Mapping[str, Sequence[float]]) -> dict[str, float]:
        means = {part: fmean(values) if values else LOWEST for part, values in cosines.items()}
        boxless = any(not values for values in cosines.values())
        whole = LOWEST if boxless else fmean(means.values())
        return {self.name: whole} if self.grounding == "text" else {self.name: whole, **means}

    def _count_too_long(self, shown: Sequence[Sequence[Shown]]) -> None:
        texts = list({text for line in shown for part in line for views in part.values() for _, text in views})
        long = {text for text, too in zip(texts, self.model.too_long(texts), strict=True) if too}
        for part in chain.from_iterable(shown):
            self.num_candidates += 1
            self.num_too_long += any(text in long for _, text in chain.from_iterable(part.values()))


def asks_for_boxes(sample: Sample, prediction: Prediction) -> bool:
    """Whether the answer should hold boxes: by the task; for a free question, by whether the first beam has any."""
    return sample.task is Task.VG or (sample.task is Task.QA and bool(prediction.candidates[0].answer.boxes))


class FirstBeam(Scorer):
    """The order of the beams: no selection."""

    name = "first"

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        return [[float(-n) for n in range(len(p.candidates))] for p in predictions]


class RandomScorer(Scorer):
    """Random scores, seeded by sample: the control that selection must beat."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        rngs = [random.Random(f"{self.seed} {p.id}") for p in predictions]
        return [[rng.random() for _ in p.candidates] for rng, p in zip(rngs, predictions, strict=True)]


class Agreement(Scorer):
    """Self-consistency: the mean similarity of a candidate to the others of its sample; the best is their medoid.

    Boxes by IoU, words by F1 (`agreement.answer_similarity`). It reads neither image nor question, and needs no model.
    """

    name = "agreement"

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        return [_mean_similarities([c.answer for c in p.candidates]) for p in predictions]


class TimedScorer(ScorerOfParts):
    """Another scorer, with the `seconds` that it has taken so far."""

    def __init__(self, scorer: Scorer) -> None:
        self.name, self.scorer, self.seconds = scorer.name, scorer, 0.0

    def parts(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[dict[str, float]]]:
        start = time.monotonic()
        parts = self.scorer.parts(samples, predictions)
        self.seconds += time.monotonic() - start
        return parts


def _mean_similarities(answers: Sequence[BoxedText]) -> list[float]:
    """Of each answer to all others; 1 if there is no other."""
    pairs = {(i, j): answer_similarity(answers[i], answers[j]) for j in range(len(answers)) for i in range(j)}
    # each pair once and an exact sum: two answers that are equally similar to the rest must tie
    sums = [math.fsum(v for pair, v in pairs.items() if n in pair) for n in range(len(answers))]
    return [total / (len(answers) - 1) if len(answers) > 1 else 1.0 for total in sums]


def rerank(
    samples: Mapping[str, Sample],
    predictions: Sequence[Prediction],
    scorer: Scorer,
    tasks: Sequence[str],
    rivals: Sequence[Scorer] = (),
) -> list[Prediction]:
    """The same predictions with scores beside every candidate and, in `tasks`, the best candidate chosen.

    `rivals` also write their scores, for comparison, and choose nothing. The choice is by the written, rounded scores,
    so the record alone explains it; ties go to the earlier beam. Candidates keep their order, so the first beam stays
    first.
    """
    reranked: list[Prediction] = []
    with progress(len(predictions), f"select by {scorer.name}", "answers") as advance:
        for start in range(0, len(predictions), BATCH):
            batch = predictions[start : start + BATCH]
            reranked += rerank_batch([samples[p.id] for p in batch], batch, scorer, tasks, rivals)
            advance(len(batch))
    return reranked


def rerank_batch(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    scorer: Scorer,
    tasks: Sequence[str],
    rivals: Sequence[Scorer] = (),
) -> list[Prediction]:
    """`rerank` for one batch: a prediction for each sample, in order."""
    scored = predictions
    for each_scorer in (*rivals, scorer):
        parts = each_scorer.parts(samples, predictions)
        scored = [_add_scores(p, added) for p, added in zip(scored, parts, strict=True)]
    return [
        replace(p, chosen=_pick(p, scorer.name) if s.task in tasks else 0) for s, p in zip(samples, scored, strict=True)
    ]


def _add_scores(prediction: Prediction, parts: Sequence[Mapping[str, float]]) -> Prediction:
    candidates = (
        replace(c, scores={**c.scores, **{name: round(s, 6) for name, s in part.items()}})
        for c, part in zip(prediction.candidates, parts, strict=True)
    )
    return replace(prediction, candidates=tuple(candidates))


def _pick(prediction: Prediction, name: str) -> int:
    """The first candidate with the highest score of this name."""
    return max(range(len(prediction.candidates)), key=lambda n: prediction.candidates[n].scores[name])

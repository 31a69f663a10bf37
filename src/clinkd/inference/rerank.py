"""Selective generation (paper, Algorithm 1): score every candidate against the image, the best is the answer."""

from __future__ import annotations

import math
import random
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
Shown = dict[str, list[tuple[View, str]]]  # of one candidate: for each part of its score, views with the words for them


class Scorer(Protocol):
    """How well each candidate answers; higher is better. `name` is the key of its figures in the record."""

    name: str

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]: ...

    def parts(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[dict[str, float]]]:
        """What is written beside each candidate: the score under the scorer's name, and what it is made of, if told."""
        return [[{self.name: s} for s in line] for line in self.scores(samples, predictions)]


class ClipScorer(Scorer):
    """Cosine of a CLIP between what it is shown of the image and what is said of it.

    Coordinates mean nothing to a CLIP. Under `text` it sees the whole image and the answer's words without box marks;
    candidates that differ in their boxes only tie, and a tie keeps the order of the beams. Under `crop` it sees boxes:
    where the question has some, their crops with the candidate's words; where it asks for some, the crops of the
    candidate's own, with what the question names (`names` are the class names of the data), and a candidate without a
    box scores lowest; where neither is so, it sees the same as under `text`. Under `both` the mean counts. The truth
    is never looked at, and the question for its names alone.
    """

    name = "clip"

    def __init__(self, model: ImageTextModel, grounding: Grounding, names: Sequence[str]) -> None:
        self.model, self.grounding, self.names = model, grounding, tuple(names)
        self.num_candidates = self.num_too_long = 0  # shown so far, and of these with a text beyond the token limit

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        return [[marks[self.name] for marks in line] for line in self.parts(samples, predictions)]

    def parts(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[dict[str, float]]]:
        """What `scores` gives, and under `clip text` and `clip crop` what it is made of, where a crop is asked for."""
        shown = [self._shown(s, p) for s, p in zip(samples, predictions, strict=True)]
        looks = [look for line in shown for part in line for look in chain.from_iterable(part.values())]
        self._count(shown)
        cosines = iter(self.model.score(looks))
        return [
            [self._marks({k: [next(cosines) for _ in v] for k, v in part.items()}) for part in line] for line in shown
        ]

    def _shown(self, sample: Sample, prediction: Prediction) -> list[Shown]:
        """What is looked at of each candidate."""
        image, asked = sample.images[0], sample.question.boxes
        wants_boxes = not asked and _asks_for_boxes(sample, prediction)
        about = " and ".join(mentioned_names(sample.question.words, self.names)) if wants_boxes else ""
        made: list[Shown] = []
        for candidate in prediction.candidates:
            words = candidate.answer.words
            part: Shown = {}
            if self.grounding != "crop" or not (asked or wants_boxes):
                part["clip text"] = [(View(image), words)]
            if self.grounding != "text" and (asked or wants_boxes):
                part["clip crop"] = [(View(image, box), about or words) for box in asked or candidate.answer.boxes]
            made.append(part)
        return made

    def _marks(self, cosines: Mapping[str, Sequence[float]]) -> dict[str, float]:
        means = {part: fmean(values) if values else LOWEST for part, values in cosines.items()}
        boxless = any(not values for values in cosines.values())
        whole = LOWEST if boxless else fmean(means.values())
        return {self.name: whole} if self.grounding == "text" else {self.name: whole, **means}

    def _count(self, shown: Sequence[Sequence[Shown]]) -> None:
        texts = list({text for line in shown for part in line for look in part.values() for _, text in look})
        long = {text for text, too in zip(texts, self.model.too_long(texts), strict=True) if too}
        for part in chain.from_iterable(shown):
            self.num_candidates += 1
            self.num_too_long += any(text in long for _, text in chain.from_iterable(part.values()))


def _asks_for_boxes(sample: Sample, prediction: Prediction) -> bool:
    """Whether the answer should hold boxes: by the task, or, of a free question, by what the first beam makes of it."""
    return sample.task is Task.VG or (sample.task is Task.QA and bool(prediction.candidates[0].answer.boxes))


class FirstBeam(Scorer):
    """The order of the beams themselves: selection switched off."""

    name = "first"

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        return [[float(-n) for n in range(len(p.candidates))] for p in predictions]


class RandomScorer(Scorer):
    """A die, seeded by sample: what selection must beat."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        dice = [random.Random(f"{self.seed} {p.id}") for p in predictions]
        return [[d.random() for _ in p.candidates] for d, p in zip(dice, predictions, strict=True)]


class Agreement(Scorer):
    """Self-consistency: how alike a candidate is to the others of its sample, on average; the best is their medoid.

    Boxes by IoU, words by F1 (`agreement.answer_similarity`). Neither image nor question is looked at, and no model.
    """

    name = "agreement"

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[float]]:
        return [_mean_likeness([c.answer for c in p.candidates]) for p in predictions]


def _mean_likeness(answers: Sequence[BoxedText]) -> list[float]:
    """Of each answer to all others; 1 where there is no other."""
    pairs = {(i, j): answer_similarity(answers[i], answers[j]) for j in range(len(answers)) for i in range(j)}
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
            done += judged([samples[p.id] for p in batch], batch, scorer, tasks, rivals)
            advance(len(batch))
    return done


def judged(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    scorer: Scorer,
    tasks: Sequence[str],
    rivals: Sequence[Scorer] = (),
) -> list[Prediction]:
    """As `rerank`, for one batch: a prediction for each sample, in order."""
    scored = predictions
    for judge in (*rivals, scorer):
        found = judge.parts(samples, predictions)
        scored = [_noted(p, own) for p, own in zip(scored, found, strict=True)]
    return [
        replace(p, chosen=_best(p, scorer.name) if s.task in tasks else 0) for s, p in zip(samples, scored, strict=True)
    ]


def _noted(prediction: Prediction, parts: Sequence[Mapping[str, float]]) -> Prediction:
    candidates = (
        replace(c, scores={**c.scores, **{name: round(s, 6) for name, s in part.items()}})
        for c, part in zip(prediction.candidates, parts, strict=True)
    )
    return replace(prediction, candidates=tuple(candidates))


def _best(prediction: Prediction, name: str) -> int:
    """The first candidate of the highest score of that name."""
    return max(range(len(prediction.candidates)), key=lambda n: prediction.candidates[n].scores[name])

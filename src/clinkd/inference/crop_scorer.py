"""Score candidates by the crop classifier: what is in the box against the name, beside the model's own probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from clinkd.clip.crops import LOWEST_LOG, CropClassifier
from clinkd.clip.model import View
from clinkd.inference.rerank import ScorerOfParts, asks_for_boxes
from clinkd.language.agreement import answer_accuracy
from clinkd.language.facts import Lexicon
from clinkd.language.negation import affirmed_names, mentioned_names
from clinkd.records import Candidate, Prediction, Sample

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # to choose from, of the model's own log-probability
ALONE = "crop alone"  # the key of the classifier's part of a score

Kind = Literal["names", "boxes"]  # what an answer gives: a name for the question's box, or boxes for its name
KINDS: tuple[Kind, ...] = ("names", "boxes")
Shown = list[tuple[View, str]]  # of one candidate


@dataclass(frozen=True)
class FittedWeight:
    """The weight with the highest accuracy on validation answers; of equal ones the smallest. `by_weight`: the
    accuracy of every weight, x100."""

    weight: float
    questions: int
    by_weight: Mapping[str, float]


class CropScorer(ScorerOfParts):
    """The log-probability of a name for a crop, plus a weight times the model's own log-probability a token.

    If the question has boxes: their crops, with the class names that the candidate affirms, or else its words. If it
    asks for boxes: the candidate's boxes, with the class names in the question, or else nothing. Several crops or names
    count by their mean. A candidate without a box scores lowest where the first beam has one; where it has none the
    model says that the structure is not there, of which no crop tells. Then, and in questions without boxes, every
    candidate scores 0, and the first beam stays; so it does where a word cannot be read (`unread`, by what the extra
    `eyes` brings). The truth is never read.
    """

    name = "crop classifier"

    def __init__(self, classifier: CropClassifier, names: Sequence[str], weights: Mapping[str, float]) -> None:
        """`names`: the class names of the data; `weights`: by kind of answer, 0 where missing."""
        self.classifier, self.names, self.weights = classifier, tuple(names), dict(weights)
        self.unread: dict[str, str] = {}  # by question, a word that no training box is called and nothing here reads

    def parts(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[list[dict[str, float]]]:
        """The scores, and the part of the classifier alone where it has one."""
        lines: list[list[dict[str, float]]] = []
        for prediction, (kind, crops) in zip(predictions, self._score_crops(samples, predictions), strict=True):
            weight = self.weights.get(kind, 0.0) if kind else 0.0
            own = _list_own(prediction)
            lines.append(
                [{self.name: 0.0} if kind is None else {self.name: crop + weight * log, ALONE: crop}
                 for crop, log in zip(crops, own, strict=True)]
            )  # fmt: skip
        return lines

    def fit_weights(
        self, samples: Sequence[Sample], predictions: Sequence[Prediction], lexicon: Lexicon
    ) -> dict[str, FittedWeight]:
        """Choose the weight of each kind of answer by the accuracy of the answers that it would choose, and keep it."""
        chances: dict[str, list[tuple[list[float], list[float], list[float]]]] = {kind: [] for kind in KINDS}
        for s, p, (kind, crops) in zip(samples, predictions, self._score_crops(samples, predictions), strict=True):
            if kind:
                right = [answer_accuracy(c.answer, s.answer, s.facts, lexicon) for c in p.candidates]
                chances[kind].append((crops, _list_own(p), right))
        fitted = {kind: _fit_weight(answers) for kind, answers in chances.items() if answers}
        self.weights = {kind: choice.weight for kind, choice in fitted.items()}
        return fitted

    def _find_kind(self, sample: Sample, prediction: Prediction) -> Kind | None:
        """What the answer is to give; None where the classifier has nothing to say."""
        if sample.question.boxes:
            return "names"
        named = asks_for_boxes(sample, prediction) and mentioned_names(sample.question.words, self.names)
        return "boxes" if named and prediction.candidates[0].answer.boxes else None

    def _score_crops(
        self, samples: Sequence[Sample], predictions: Sequence[Prediction]
    ) -> list[tuple[Kind | None, list[float]]]:
        """What each answer gives, and the score of each of its candidates."""
        shown = [self._show(s, p) for s, p in zip(samples, predictions, strict=True)]
        scores = iter(self.classifier.score([pair for _, line in shown for views in line for pair in views]))
        means = [(kind, [[next(scores) for _ in views] for views in line]) for kind, line in shown]
        return [(kind, [fmean(values) if values else LOWEST_LOG for values in line]) for kind, line in means]

    def _show(self, sample: Sample, prediction: Prediction) -> tuple[Kind | None, list[Shown]]:
        """What the answer gives, and the crops and names of each candidate; none of both where a name is not read."""
        kind = self._find_kind(sample, prediction)
        shown = [self._views_of(sample, c, kind) for c in prediction.candidates]
        unread = next((name for views in shown for _, name in views if not self.classifier.reads(name)), None)
        if unread is None:
            return kind, shown
        self.unread[sample.id] = unread
        return None, [[] for _ in shown]

    def _views_of(self, sample: Sample, candidate: Candidate, kind: Kind | None) -> Shown:
        if kind is None:
            return []
        boxes = sample.question.boxes if kind == "names" else candidate.answer.boxes
        text = candidate.answer.words if kind == "names" else sample.question.words
        find = affirmed_names if kind == "names" else mentioned_names
        names = find(text, self.names) or ((text,) if text else ())
        return [(View(sample.images[0], box), name) for box in boxes for name in names]


def _list_own(prediction: Prediction) -> list[float]:
    """The model's log-probability a token of each candidate; zeros if one is unknown."""
    own = [c.logprob for c in prediction.candidates if c.logprob is not None]
    return own if len(own) == len(prediction.candidates) else [0.0] * len(prediction.candidates)


def _fit_weight(answers: Sequence[tuple[list[float], list[float], list[float]]]) -> FittedWeight:
    """`answers`: of each the candidates' scores by crops, their log-probabilities, and how right they are."""

    def choose(crops: Sequence[float], own: Sequence[float], weight: float) -> int:
        return max(range(len(crops)), key=lambda n: round(crops[n] + weight * own[n], 6))

    accuracy = {w: fmean(right[choose(crops, own, w)] for crops, own, right in answers) for w in WEIGHTS}
    best = max(WEIGHTS, key=accuracy.__getitem__)
    return FittedWeight(best, len(answers), {f"{w:g}": round(100 * a, 2) for w, a in accuracy.items()})

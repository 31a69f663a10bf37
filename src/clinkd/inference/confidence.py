"""How probably an answer is right: a fit to a run's validation answers, by kind of question.

An answer has a confidence only where the fit foretells patients it was not fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clinkd.language.agreement import is_wrong
from clinkd.records import BoxedText, Prediction, Sample, name_kind

FEATURES = ("logit of support", "logprob", "lead over the next", "log of length", "score")
LEAST_EACH = 10  # right answers, wrong ones, and patients
FOLDS = 5  # of patients, in which a fit is tried
STANDARD_ERRORS = 2  # by which it must be better than the share of right answers
OLDER = "the answers are of an older version, which did not keep how far their candidates agree"


class FittedConfidence(NamedTuple):
    """A logistic regression of the validation answers to one kind of question: how many there are, how many are right,
    and the weight of each of FEATURES and of `constant`. No weights: what it foretells is not seen to be better than
    the share of right ones alone. `skill`: by how much of the squared error of that share it is better, on patients
    left out of the fit; None with too few answers to try.
    """

    answers: int
    right: int
    skill: float | None = None
    weights: Mapping[str, float] = {}

    def estimate(self, features: Sequence[float]) -> float | None:
        """The probability that an answer is right, never nearer to 0 or 1 than the number of answers allows."""
        if not self.weights:
            return None
        logit = math.fsum(w * v for w, v in zip(self.weights.values(), (*features, 1.0), strict=True))
        least = 1 / (self.answers + 2)
        return round(min(max(1 / (1 + math.exp(-max(logit, -50.0))), least), 1 - least), 4)

    def explain_absence(self) -> str:
        """Why an answer to such a question has no confidence."""
        counted = f"of {self.answers} validation answers {self.right} are right"
        if self.skill is None:
            least = f"{LEAST_EACH} right ones, {LEAST_EACH} wrong ones and {LEAST_EACH} patients"
            return f"{counted}, and at least {least} are wanted"
        if not self.weights:
            return f"{counted}, and no fit is seen to foretell more of patients left out than this share does"
        return OLDER


def describe_answer(prediction: Prediction, support: float, scorer: str) -> tuple[float, ...] | None:
    """FEATURES of the chosen answer; None where log-probabilities are missing. scorer: name of its scores, if any."""
    chosen = prediction.answer
    others = [c.logprob for n, c in enumerate(prediction.candidates) if n != prediction.chosen]
    if chosen.logprob is None or None in others:
        return None
    held = min(max(round(support, 6), 0.005), 0.995)  # as many digits as supports are stored with
    lead = chosen.logprob - max((v for v in others if v is not None), default=chosen.logprob)
    length = math.log1p(len(chosen.raw))
    return math.log(held / (1 - held)), chosen.logprob, lead, length, chosen.scores.get(scorer, 0.0)


class ConfidenceRow(NamedTuple):
    """A validation answer: its features, whether it is right, and its patient."""

    features: tuple[float, ...]
    right: bool
    group: str


def fit_confidences(
    samples: Mapping[str, Sample], predictions: Sequence[Prediction], supports: Mapping[str, float],
    names: Sequence[str], scorer: str,
) -> dict[str, FittedConfidence]:  # fmt: skip
    """The fit of each kind of question. Arguments as of `count_disagreement` and `describe_answer`."""
    rows: dict[str, list[ConfidenceRow]] = {}
    for p in predictions:
        sample = samples[p.id]
        right = not is_wrong(p.answer.answer, sample.answer, names)
        if features := describe_answer(p, supports[p.id], scorer):
            row = ConfidenceRow(features, right, sample.group)
            rows.setdefault(name_kind(sample.question, p.answer.answer), []).append(row)
    return {kind: fit_confidence(of_kind) for kind, of_kind in rows.items()}


def find_confidence(
    fits: Mapping[str, FittedConfidence], question: BoxedText, prediction: Prediction, support: float, scorer: str
) -> float | None:
    """The probability that the chosen answer is right; None where none is known."""
    fit = fits.get(name_kind(question, prediction.answer.answer))
    features = describe_answer(prediction, support, scorer)
    return fit.estimate(features) if fit and features else None


def read_fits(recorded: Mapping[str, Mapping[str, Any]]) -> dict[str, FittedConfidence]:
    """The fits that a run has recorded."""
    return {kind: FittedConfidence(**fit) for kind, fit in recorded.items()}


def explain_absences(
    samples: Mapping[str, Sample], predictions: Sequence[Prediction], fits: Mapping[str, FittedConfidence]
) -> dict[str, str]:
    """By kind of question, why answers have no confidence. No fits: of answers of an older version."""
    kinds = {name_kind(samples[p.id].question, p.answer.answer) for p in predictions if p.confidence is None}
    other = "no validation answer is of this kind" if fits else OLDER
    return {kind: fits[kind].explain_absence() if kind in fits else other for kind in sorted(kinds)}


def fit_confidence(rows: Sequence[ConfidenceRow]) -> FittedConfidence:
    """A ridge of scikit-learn's default strength. It has weights if it is better than the share of right answers by
    STANDARD_ERRORS, patient by patient, each left out once."""
    from sklearn.dummy import DummyClassifier  # here: they take a second to load
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, right, groups = map(list, zip(*rows, strict=True))
    counted = FittedConfidence(len(right), sum(right))
    if min(counted.right, counted.answers - counted.right, len(set(groups))) < LEAST_EACH:
        return counted
    model, rate = make_pipeline(StandardScaler(), LogisticRegression()), DummyClassifier(strategy="prior")
    parts = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(features, right, groups))
    fitted, known = (
        cross_val_predict(m, features, right, cv=parts, method="predict_proba")[:, 1].tolist() for m in (model, rate)
    )
    gains: dict[str, float] = dict.fromkeys(groups, 0.0)
    for p, base, was_right, group in zip(fitted, known, right, groups, strict=True):
        gains[group] += (base - was_right) ** 2 - (p - was_right) ** 2
    gain, error = math.fsum(gains.values()), math.sqrt(math.fsum(g * g for g in gains.values()))
    loss = math.fsum((base - was_right) ** 2 for base, was_right in zip(known, right, strict=True))
    counted = counted._replace(skill=round(gain / loss, 4))
    if gain <= STANDARD_ERRORS * error:
        return counted
    scaler, regression = (step for _, step in model.fit(features, right).steps)
    slopes = regression.coef_[0] / scaler.scale_
    constant = regression.intercept_[0] - slopes @ scaler.mean_
    names = (*FEATURES, "constant")
    return counted._replace(weights={n: round(float(w), 6) for n, w in zip(names, (*slopes, constant), strict=True)})

"""The log-likelihood of the truth under a model, by kind of token: a measure that moves before any answer changes.

The model is given question and true answer, and the probability of each token of the answer is looked up (teacher
forcing). Kinds of tokens: `box`, the coordinates of boxes, without the marks around them, which are certain once a box
has begun; `name`, the names of the structures that the question is about; `rest`, all other tokens with the end mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

from clinkd.records import Modality, Sample, Task

TokenKind = Literal["box", "name", "rest"]
TOKEN_KINDS: tuple[TokenKind, ...] = get_args(TokenKind)


class LogLikelihood(NamedTuple):
    """The mean log-probability of a token in nats (natural log; 0 is best), and the questions and tokens it is of."""

    mean: float
    questions: int
    tokens: int


def describe_truth(sample: Sample, sums: Mapping[TokenKind, float], tokens: Mapping[TokenKind, int]) -> dict[str, Any]:
    """The line of a question in a file of likelihoods: sums of log-probabilities in nats, and numbers of tokens."""
    about = {"id": sample.id, "task": sample.task.value, "modality": sample.modality.value}
    return {**about, "log_probability": dict(sums), "tokens": dict(tokens)}


def average_likelihoods(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[Task, TokenKind], LogLikelihood]:
    """The mean a token by task and kind: over the tokens of a question, then over the questions of a modality, then
    over the modalities, as in every other score. Kinds without tokens are left out."""
    means: dict[tuple[Task, TokenKind], dict[Modality, list[float]]] = {}
    counts: dict[tuple[Task, TokenKind], int] = {}
    for line in lines:
        for kind in TOKEN_KINDS:
            if tokens := line["tokens"].get(kind, 0):
                key = Task(line["task"]), kind
                by_modality = means.setdefault(key, {})
                by_modality.setdefault(Modality(line["modality"]), []).append(line["log_probability"][kind] / tokens)
                counts[key] = counts.get(key, 0) + tokens
    return {
        key: LogLikelihood(fmean(map(fmean, part.values())), sum(map(len, part.values())), counts[key])
        for task in Task
        for kind in TOKEN_KINDS
        if (part := means.get(key := (task, kind)))
    }

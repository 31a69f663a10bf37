"""QA: yes or no, short and longer answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from operator import itemgetter

import numpy as np

from clinkd.language.languages import list_verdicts, read_verdict
from clinkd.language.words import normalise
from clinkd.records import Task
from clinkd.scoring.captions import (
    Counts,
    Sums,
)
from clinkd.scoring.measure import (
    IN_COMPARISON,
    Measure,
    Metric,
    Ratio,
    Rules,
    SampleAnswer,
    count_each,
    make_ratio,
)

_JOINING = frozenset({"or", "and", "oder", "und", "ou", "et", "o", "y", "e"})  # in "yes or no"
SHORT = 3  # most words of a truth that must be met exactly; longer ones are judged by shared words, as open VQA-RAD is


_OPEN_COLUMNS = ("questions", "equal", "recall of words", "F1 of words")
_ANSWER_COLUMNS = (
    *("answers", "yes/no questions", "right yes/no"),
    *(f"{length} {column}" for length in ("short", "long") for column in _OPEN_COLUMNS),
)


def _count_answer(item: SampleAnswer, rules: Rules) -> dict[str, float]:
    row: dict[str, float] = {**dict.fromkeys(_ANSWER_COLUMNS, 0), "answers": 1}
    truth, answer = normalise(item.sample.answer.words), normalise(item.answer.answer.words)
    if verdict := read_verdict(truth):
        return row | {"yes/no questions": 1, "right yes/no": read_yes_no(answer, truth) == verdict}
    truth_words, answer_words = Counter(truth.split()), Counter(answer.split())
    num_shared = (truth_words & answer_words).total()
    length = "short" if truth_words.total() <= SHORT else "long"
    recall, f1 = (
        num_shared / max(1, truth_words.total()),
        2 * num_shared / max(1, truth_words.total() + answer_words.total()),
    )
    return row | {f"{length} {c}": v for c, v in zip(_OPEN_COLUMNS, (1, answer == truth, recall, f1), strict=True)}


def read_yes_no(answer: str, truth: str) -> str | None:
    """ "yes" or "no" where a normalised answer says so, in English or in a language of the truth: by its first word,
    else by the only one of the two in it. "yes or no" counts as neither."""
    verdicts, words = list_verdicts(truth), answer.split()
    stated = {verdicts[word] for word in words if word in verdicts}
    if len(stated) == 2 and all(word in verdicts or word in _JOINING for word in words):
        return None
    return verdicts.get(words[0]) or (stated.pop() if len(stated) == 1 else None) if words else None


def _make_mean(column: str, *lengths: str) -> Ratio:
    """The mean of a column over the questions with an answer of these lengths."""
    total, questions = (partial(_add_columns, [f"{length} {c}" for length in lengths]) for c in (column, "questions"))
    return Ratio(total, questions, binary=column == "equal")


def _add_columns(columns: Sequence[str], sums: Sums) -> Counts:
    return np.asarray(np.sum([sums[column] for column in columns], axis=0))


_RIGHT = ("right yes/no", "short equal", "long equal")
_OPEN = ("short", "long")
ANSWERS = Measure(
    (Task.QA,),
    _ANSWER_COLUMNS,
    count_each(_ANSWER_COLUMNS, _count_answer),
    (
        Metric(
            "Accuracy",
            Ratio(partial(_add_columns, _RIGHT), itemgetter("answers")),
            primary_of=(Task.QA,),
            shown=IN_COMPARISON,
        ),
        Metric("Yes/no accuracy", make_ratio("right yes/no", "yes/no questions"), shown=IN_COMPARISON),
        Metric("Open accuracy", _make_mean("equal", *_OPEN), shown=IN_COMPARISON),
        Metric("Open recall of words", _make_mean("recall of words", *_OPEN), shown=("comparison", "question")),
        Metric("Open F1 of words", _make_mean("F1 of words", *_OPEN)),
        Metric("Short accuracy", _make_mean("equal", "short")),
        Metric("Short recall of words", _make_mean("recall of words", "short")),
        Metric("Long recall of words", _make_mean("recall of words", "long")),
        Metric("Long F1 of words", _make_mean("F1 of words", "long")),
    ),
)

"""QA: multiple choice, closed questions, and open ones with short and longer answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from clinkd.data.readers.choices import split_options
from clinkd.language.equality import answer_key, says_same
from clinkd.language.languages import read_verdict
from clinkd.language.verdicts import read_yes_no
from clinkd.language.words import normalise, singular
from clinkd.records import OPTION_LETTERS, Candidate, Sample, Task
from clinkd.scoring.captions import (
    Counts,
    Sums,
)
from clinkd.scoring.choice_answers import read_choice
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

SHORT = 3  # most words of a truth that must be met exactly; longer ones are judged by shared words, as open VQA-RAD is
_LETTERED = re.compile(rf"\(?([{OPTION_LETTERS}])(?:\)?\.?|[.:)]\s*(.+))", re.S)  # a truth: "B", "B. pneumonia"

_OPEN_COLUMNS = ("questions", "equal", "recall of words", "F1 of words")
_ANSWER_COLUMNS = (
    *("answers", "right", "choices", "right choices", "no choice read"),
    *("yes/no questions", "right yes/no", "no yes/no read", "closed questions", "right closed"),
    *(f"{length} {column}" for length in ("short", "long") for column in _OPEN_COLUMNS),
)


def _count_answer(item: SampleAnswer, rules: Rules) -> dict[str, float]:
    """Multiple choice is neither closed nor open, unless the data call it closed. Other questions are closed or open as
    the data say; where they do not, those with the truth yes or no are closed."""
    sample, turn = item.sample, item.sample.turns[-1]
    row: dict[str, float] = {**dict.fromkeys(_ANSWER_COLUMNS, 0), "answers": 1}
    right = says_same(item.answer.answer.words, sample.answer.words)
    if choice := _find_choice(sample):
        chosen = read_choice(item.answer.answer.text, choice.options, sample.question.words)
        right = choice.is_true(chosen)
        row |= {"choices": 1, "right choices": right, "no choice read": not chosen}
    elif verdict := read_verdict(normalise(sample.answer.words)):
        said = read_yes_no(item.answer.answer.words, sample.question.words, sample.answer.words)
        right = said == verdict
        row |= {"yes/no questions": 1, "right yes/no": right, "no yes/no read": said is None}
    closed = turn.closed if turn.closed is not None else bool(row["yes/no questions"])
    row |= {"right": right}
    if closed:
        return row | {"closed questions": 1, "right closed": right}
    return row if choice else row | _count_open(item, right)


def _count_open(item: SampleAnswer, right: bool) -> dict[str, float]:
    """The shared words of an answer and its truth, in one spelling each."""
    truth, answer = (
        Counter(map(singular, normalise(text.words).split())) for text in (item.sample.answer, item.answer.answer)
    )
    num_shared = (truth & answer).total()
    length = "short" if truth.total() <= SHORT else "long"
    recall, f1 = num_shared / max(1, truth.total()), 2 * num_shared / max(1, truth.total() + answer.total())
    if right:  # equal in another spelling ("R kidney"), or yes in other words
        recall = f1 = 1.0
    return {f"{length} {c}": v for c, v in zip(_OPEN_COLUMNS, (1, right, recall, f1), strict=True)}


class _ChoiceQuestion(NamedTuple):
    """The options of a question in the order of their letters, none where they are not known, and the true letter."""

    options: tuple[str, ...]
    letter: str

    def is_true(self, letter: str) -> bool:
        """Whether a letter, "" for none, is the true one, or that of another option with the same words."""
        same = {c for c, words in zip(OPTION_LETTERS, self.options, strict=False) if words == self._true_words}
        return letter in same | {self.letter}

    @property
    def _true_words(self) -> str | None:
        place = OPTION_LETTERS.index(self.letter)
        return self.options[place] if place < len(self.options) else None


def _find_choice(sample: Sample) -> _ChoiceQuestion | None:
    """The options that the record has; else those in its question, or none, where the truth is a letter; None for other
    questions. "E. coli" is a letter with words only if the question has that option."""
    turn, truth = sample.turns[-1], _LETTERED.fullmatch(sample.answer.words)
    if turn.options:
        return _ChoiceQuestion(turn.options, turn.letter)
    if not truth:
        return None
    asked = _ChoiceQuestion(split_options(turn.question.text), truth[1])
    if truth[2]:
        return asked if answer_key(asked._true_words or "") == answer_key(truth[2]) else None
    return asked


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
        Metric("Accuracy", make_ratio("right", "answers"), primary_of=(Task.QA,), shown=IN_COMPARISON),
        Metric("Choice accuracy", make_ratio("right choices", "choices"), shown=IN_COMPARISON),
        Metric("No choice read", make_ratio("no choice read", "choices"), better="lower"),
        Metric("Yes/no accuracy", make_ratio("right yes/no", "yes/no questions"), shown=IN_COMPARISON),
        Metric("No yes or no read", make_ratio("no yes/no read", "yes/no questions"), better="lower"),
        Metric("Closed accuracy", make_ratio("right closed", "closed questions"), shown=IN_COMPARISON),
        Metric("Open accuracy", _make_mean("equal", *_OPEN), shown=IN_COMPARISON),
        Metric("Open recall of words", _make_mean("recall of words", *_OPEN), shown=("comparison", "question")),
        Metric("Open F1 of words", _make_mean("F1 of words", *_OPEN)),
        Metric("Short accuracy", _make_mean("equal", "short")),
        Metric("Short recall of words", _make_mean("recall of words", "short")),
        Metric("Long recall of words", _make_mean("recall of words", "long")),
        Metric("Long F1 of words", _make_mean("F1 of words", "long")),
    ),
)


def is_right(sample: Sample, answer: Candidate, rules: Rules) -> bool | None:
    """Whether an answer to a choice or a closed question is right; None for an open question."""
    row = _count_answer(SampleAnswer(sample, answer), rules)
    return bool(row["right"]) if row["choices"] or row["closed questions"] or row["yes/no questions"] else None

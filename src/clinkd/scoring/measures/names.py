"""ROC: the class name, and no other."""

from __future__ import annotations

import re
from functools import lru_cache

from clinkd.language.conflicts import affirms, sides
from clinkd.language.equality import answer_key, says_same, unify
from clinkd.language.facts import Lexicon
from clinkd.language.negation import affirmed_names
from clinkd.language.words import normalise
from clinkd.records import Sample, Task
from clinkd.scoring.measure import (
    IN_COMPARISON,
    Measure,
    Metric,
    Rules,
    SampleAnswer,
    count_each,
    make_ratio,
)

_NAME_COLUMNS = ("answers", "hits", "list another class", "truths with a side", "on the other side")


def read_classes(item: SampleAnswer, lexicon: Lexicon) -> tuple[set[str], set[str]]:
    """The classes that the truth names and those that the answer affirms, each by its `answer_key`."""
    names, known = _list_classes(truth_names(item.sample, lexicon)), _list_classes(lexicon.names)
    new = [n for n in names if n not in known]
    affirmed = affirmed_names(unify(item.answer.answer.words), (*new, *known) if new else known)
    return {" ".join(answer_key(n)) for n in names}, {" ".join(answer_key(n)) for n in affirmed}


def _count_name(item: SampleAnswer, rules: Rules) -> dict[str, float]:
    text, truth = item.answer.answer.words, truth_names(item.sample, rules.lexicon)
    words, names = unify(text), _list_classes(truth)
    right, affirmed = read_classes(item, rules.lexicon)
    with_side = [n for n in names if len(sides(n)) == 1]
    # a class may be a denial ("No finding"), which no text affirms
    equal = any(says_same(text, words) for words in (item.sample.answer.words, ", ".join(truth)))
    return {
        "answers": 1,
        "hits": equal or (bool(right) and affirmed == right),
        "list another class": not equal and bool(affirmed - right),
        "truths with a side": bool(with_side),
        "on the other side": any(_affirms_other_side(words, n) for n in with_side),
    }


@lru_cache(maxsize=4096)
def _list_classes(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes as answers are searched for them: side words before their nouns, no article, and each class of
    a list ("opacity, consolidation", "Opacity. Consolidation.") by itself."""
    classes: dict[tuple[str, ...], str] = {}
    for name in names:
        for piece in re.split(r"(?: |^)[.,](?= |$)", unify(name)):
            if bare := re.sub(r"^(?:(?:and|the|an?)\s+)+", "", piece.strip()):
                classes.setdefault(answer_key(bare), bare)
    return tuple(classes.values())


def _affirms_other_side(words: str, name: str) -> bool:
    """Whether the text affirms the structure of a name, but on the other side: "right lung", "lung on the right"."""
    stated, sides_of_name = sides(words), sides(name)
    bare = " ".join(w for w in normalise(name).split() if not sides(w) & sides_of_name)
    return bool(stated) and not stated & sides_of_name and affirms(words, bare)


def truth_names(sample: Sample, lexicon: Lexicon) -> tuple[str, ...]:
    """The class names an answer must affirm: those of the record, else those its truth lists, else its whole truth."""
    words = sample.answer.words
    return sample.names or affirmed_names(words, lexicon.names) or (words,)


# Recall: the share of questions answered with the right class and no other, in any spelling of `language.spellings`. A
# class that is denied, unlikely or not to be excluded counts as not named.
NAMES = Measure(
    (Task.ROC,),
    _NAME_COLUMNS,
    count_each(_NAME_COLUMNS, _count_name),
    (
        Metric("Recall", make_ratio("hits", "answers"), primary_of=(Task.ROC,), shown=IN_COMPARISON),
        Metric("Lists another class", make_ratio("list another class", "answers"), shown=IN_COMPARISON, better="lower"),
        Metric(
            "Laterality swaps",
            make_ratio("on the other side", "truths with a side"),
            shown=IN_COMPARISON,
            better="lower",
        ),
    ),
)

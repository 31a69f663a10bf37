"""ROC: the class name, and no other."""

from __future__ import annotations

from clinkd.language.conflicts import affirms, sides
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
    """The normalised classes that the truth names, and those that the answer affirms."""
    words, truth = item.answer.answer.words, truth_names(item.sample, lexicon)
    new = [n for n in truth if n not in lexicon.names]
    affirmed = affirmed_names(words, (*new, *lexicon.names) if new else lexicon.names)
    return {normalise(n) for n in truth}, {normalise(n) for n in affirmed}


def _count_name(item: SampleAnswer, rules: Rules) -> dict[str, float]:
    words, truth = item.answer.answer.words, truth_names(item.sample, rules.lexicon)
    right, affirmed = read_classes(item, rules.lexicon)
    with_side = [n for n in truth if len(sides(n)) == 1]
    return {
        "answers": 1,
        "hits": affirmed == right,
        "list another class": bool(affirmed - right),
        "truths with a side": bool(with_side),
        "on the other side": any(_affirms_other_side(words, n) for n in with_side),
    }


def _affirms_other_side(words: str, name: str) -> bool:
    """Whether the text affirms the structure of a name, but on the other side: "right lung", "lung on the right"."""
    stated, sides_of_name = sides(words), sides(name)
    bare = " ".join(w for w in normalise(name).split() if not sides(w) & sides_of_name)
    return bool(stated) and not stated & sides_of_name and affirms(words, bare)


def truth_names(sample: Sample, lexicon: Lexicon) -> tuple[str, ...]:
    """The class names an answer must affirm: those of the record, else those its truth lists, else its whole truth."""
    words = sample.answer.words
    return sample.names or affirmed_names(words, lexicon.names) or (words,)


# Recall: the share of questions answered with the right class and no other. A denied class counts as not named.
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

"""RC and MIA: words, and the facts in them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from clinkd.language.conflicts import DESCRIBING, conflicts, sides
from clinkd.language.facts import read_facts
from clinkd.language.negation import affirmed_names
from clinkd.records import Task
from clinkd.scoring.captions import (
    COLUMNS,
    FIGURES,
    Caption,
    Counts,
    NotComputed,
    caption_figures,
)
from clinkd.scoring.measure import (
    CLASS,
    F1_COLUMNS,
    FACTS,
    IN_COMPARISON,
    NOTHING_SAID,
    WORDS,
    Measure,
    Metric,
    Rules,
    SampleAnswer,
    count_each,
    make_f1,
    make_ratio,
    stack_counts,
)
from clinkd.scoring.spice import SPICE_COLUMNS, FailedPair, spice_counts


def _make_captions(items: Sequence[SampleAnswer]) -> list[Caption]:
    return [Caption(i.answer.answer.words, (i.sample.answer.words,)) for i in items]


def _count_captions(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    assert rules.captions is not None
    return rules.captions.counts(_make_captions(items))


CAPTIONS = Measure(
    (Task.RC, Task.MIA),
    COLUMNS,
    _count_captions,
    (
        Metric(WORDS, itemgetter(WORDS), primary_of=(Task.MIA,), stands_in=2, shown=("comparison", "question")),
        *(Metric(name, itemgetter(name)) for name in FIGURES if name != WORDS),
    ),
    caption_figures,
)


_FACT_COLUMNS = ("answers", *F1_COLUMNS)


def _count_shared(truth: set[Any], answer: set[Any]) -> dict[str, int]:
    return dict(zip(F1_COLUMNS, (len(truth & answer), len(answer), len(truth)), strict=True))


def _count_facts(item: SampleAnswer, rules: Rules) -> dict[str, float]:
    """Count tuples of the stated facts; an empty mapping where the record states none."""
    if not item.sample.facts:
        return {}
    truth = {t for fact in item.sample.facts for t in fact.tuples}
    answer = {t for fact in read_facts(item.answer.answer.words, rules.lexicon) for t in fact.tuples}
    return {"answers": 1, **_count_shared(truth, answer)}


FACT_TUPLES = Measure(
    (Task.RC, Task.MIA),
    _FACT_COLUMNS,
    count_each(_FACT_COLUMNS, _count_facts),
    (
        Metric(
            FACTS,
            make_f1(*F1_COLUMNS),
            stands_in=1,
            shown=("comparison", "question", "ablation"),
            missing=NOTHING_SAID,
        ),
        Metric("Facts precision", make_ratio("in both", "of the answer"), missing=NOTHING_SAID),
        Metric("Facts recall", make_ratio("in both", "of the truth")),
    ),
)


def _count_spice(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    assert rules.captions is not None
    try:
        return spice_counts(_make_captions(items), rules.captions)
    except FailedPair as failed:
        raise NotComputed(f"{items[failed.place].sample.id}: {failed}") from None


SPICE = Measure(
    (Task.RC,),
    SPICE_COLUMNS,
    _count_spice,
    (Metric("SPICE", make_ratio("F-score", "answers", binary=False), primary_of=(Task.RC,), shown=IN_COMPARISON),),
)


_CLASS_COLUMNS, _DESCRIBING_COLUMNS = (
    (f"{kind} in both", f"{kind} of the answer", f"{kind} of the truth") for kind in ("classes", "describing words")
)
_CLAIM_COLUMNS = (
    *("answers", *_CLASS_COLUMNS, *_DESCRIBING_COLUMNS),
    *("truths with a side", "agree with it", "contradict it", "deny or affirm against the truth"),
)


def _count_claims(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    lexicon = rules.lexicon
    words = {
        "classes": lexicon.names,
        "describing words": tuple(dict.fromkeys((*lexicon.sizes, *lexicon.brightness, *DESCRIBING))),
    }
    affirmed: dict[str, dict[str, set[str]]] = {}  # kept, since one truth is compared with many answers
    rows = []
    for item in items:
        truth, answer = item.sample.answer.words, item.answer.answer.words
        for text in (truth, answer):
            if text not in affirmed:
                affirmed[text] = {kind: set(affirmed_names(text, names)) for kind, names in words.items()}
        row: dict[str, float] = {"answers": 1, **_compare_sides(truth, answer)}
        for kind in words:
            shared = _count_shared(affirmed[truth][kind], affirmed[answer][kind])
            row |= {f"{kind} {column}": count for column, count in shared.items()}
        rows.append(row)
    return stack_counts(_CLAIM_COLUMNS, rows)


def _compare_sides(truth: str, answer: str) -> dict[str, float]:
    contradictions, side = conflicts(answer, truth), sides(truth)
    contradicts = "laterality" in contradictions
    return {
        "truths with a side": bool(side),
        "agree with it": bool(side) and side == sides(answer) and not contradicts,
        "contradict it": bool(side) and contradicts,
        "deny or affirm against the truth": "negation" in contradictions,
    }


# These can be judged without facts in the data: the classes and describing words that a text affirms, and its sides.
# A side that is left out neither agrees nor contradicts.
CLAIMS = Measure(
    (Task.RC, Task.MIA),
    _CLAIM_COLUMNS,
    _count_claims,
    (
        Metric(CLASS, make_f1(*_CLASS_COLUMNS), shown=IN_COMPARISON, missing=NOTHING_SAID),
        Metric("Attribute F1", make_f1(*_DESCRIBING_COLUMNS), missing=NOTHING_SAID),
        Metric("Laterality agreement", make_ratio("agree with it", "truths with a side"), shown=IN_COMPARISON),
        Metric("Laterality conflicts", make_ratio("contradict it", "truths with a side"), better="lower"),
        Metric(
            "Negation conflicts",
            make_ratio("deny or affirm against the truth", "answers"),
            shown=IN_COMPARISON,
            better="lower",
        ),
    ),
)

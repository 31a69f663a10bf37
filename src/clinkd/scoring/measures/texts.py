"""RC and MIA: words, and the facts in them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from clinkd.language.conflicts import DESCRIBING, conflicts, sides
from clinkd.language.facts import read_facts
from clinkd.language.negation import affirmed_names
from clinkd.records import Task
from clinkd.scoring.captions import (
    COLUMNS,
    FIGURES,
    Caption,
    CaptionScorer,
    Counts,
    NotComputed,
    Sums,
    by_column,
    caption_figures,
    compute_answer_mbmr,
)
from clinkd.scoring.measure import (
    CLASS,
    F1_COLUMNS,
    FACTS,
    IN_COMPARISON,
    NOTHING_SAID,
    SAME_TRUTHS,
    WORDS,
    Mean,
    Measure,
    Metric,
    Rules,
    SampleAnswer,
    count_each,
    divide,
    make_f1,
    make_ratio,
    stack_counts,
)
from clinkd.scoring.ngrams import CHARACTERS, count_characters
from clinkd.scoring.spice import SPICE_COLUMNS, FailedPair, spice_counts


def _make_captions(items: Sequence[SampleAnswer]) -> list[Caption]:
    return [Caption(i.answer.answer.words, (i.sample.answer.words,)) for i in items]


def begin_captions(items: Sequence[SampleAnswer], captions: CaptionScorer) -> None:
    """Let `captions` begin to count what `CAPTIONS` will ask it for."""
    captions.begin(_make_captions(items))


def _count_captions(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    assert rules.captions is not None
    counts = rules.captions.counts(_make_captions(items))
    return np.column_stack([counts, compute_answer_mbmr(by_column(COLUMNS, counts))])


# mBMR is a mean over answers, so that a few words in one answer cannot move it by more than that answer. The others
# are those of a corpus, as they are printed elsewhere.
_MBMR_SUM = "mBMR of each answer"
CAPTIONS = Measure(
    (Task.RC, Task.MIA),
    (*COLUMNS, _MBMR_SUM),
    _count_captions,
    (
        Metric(WORDS, itemgetter(_MBMR_SUM), primary_of=(Task.MIA,), stands_in=2, shown=("comparison", "question")),
        Metric(f"{WORDS} (corpus)", itemgetter(WORDS)),
        *(Metric(name, itemgetter(name)) for name in FIGURES if name != WORDS),
    ),
    lambda sums: {**caption_figures(sums), _MBMR_SUM: divide(sums[_MBMR_SUM], sums["answers"])},
)


_CIDER_COLUMNS = ("answers", "CIDEr", "answers with a CIDEr")


def _count_cider(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    """Words are weighed by the truths of all questions of a task: every answer, also of a bootstrap replicate or of a
    baseline, is scored by the same weights."""
    assert rules.captions is not None
    captions, counts = _make_captions(items), np.zeros((len(items), len(_CIDER_COLUMNS)))
    for task in {item.sample.task for item in items}:
        places = [i for i, item in enumerate(items) if item.sample.task is task]
        documents = {items[i].sample.id: captions[i] for i in places}
        scores = rules.captions.cider([captions[i] for i in places], list(documents.values()))
        counts[places] = (1, 0, 0) if scores is None else np.column_stack([np.ones(len(places)), scores, scores >= 0])
    return counts


CIDER = Measure(
    (Task.RC, Task.MIA),
    _CIDER_COLUMNS,
    _count_cider,
    (Metric("CIDEr", Mean("CIDEr", "answers with a CIDEr"), missing=SAME_TRUTHS),),
)


_CHARACTER_COLUMNS = tuple(f"{n} {what}" for n in range(1, CHARACTERS + 1) for what in ("answer", "truth", "both"))
_RECALL_WEIGHT = 2.0**2  # chrF2: recall counts twice as much as precision


def _count_characters(items: Sequence[SampleAnswer], rules: Rules) -> Counts:
    counts = count_characters([(i.answer.answer.words, i.sample.answer.words) for i in items])
    return np.column_stack([np.ones(len(items)), counts])


def _compute_chrf(sums: Sums) -> Counts:
    """chrF2 (Popovic 2015) of a corpus, 0..1, as sacrebleu 2 computes it: means over the lengths of n-grams that both
    sides have."""
    precision, recall, lengths = (np.zeros_like(sums["answers"]) for _ in range(3))
    for n in range(1, CHARACTERS + 1):
        answer, truth, both = (sums[f"{n} {what}"] for what in ("answer", "truth", "both"))
        present = (answer > 0) & (truth > 0)
        precision += np.where(present, both / np.maximum(answer, 1), 0.0)
        recall += np.where(present, both / np.maximum(truth, 1), 0.0)
        lengths += present
    precision, recall = (part / np.maximum(lengths, 1) for part in (precision, recall))
    score = (1 + _RECALL_WEIGHT) * precision * recall / np.maximum(_RECALL_WEIGHT * precision + recall, 1e-16)
    return np.where(sums["answers"] > 0, score, np.nan)


CHRF = Measure(
    (Task.RC, Task.MIA),
    ("answers", *_CHARACTER_COLUMNS),
    _count_characters,
    (Metric("chrF", _compute_chrf),),
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

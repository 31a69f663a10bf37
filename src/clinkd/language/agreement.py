"""How far two answers agree, by boxes and by words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from clinkd.boxes import assign, iou_matrix, match_boxes
from clinkd.language.conflicts import conflicts
from clinkd.language.facts import Lexicon, read_facts
from clinkd.language.negation import mentioned_names
from clinkd.language.words import normalise
from clinkd.records import BoxedText, Fact


def answer_accuracy(answer: BoxedText, truth: BoxedText, facts: Sequence[Fact], lexicon: Lexicon) -> float:
    """How near an answer is to its truth, 0..1, without a language tool: for choices on the validation split.

    If the truth has boxes, the share of boxes matched one to one at IoU 0.5; if it states facts, the F1 of their
    tuples; otherwise 1 for equal normalised words.
    """
    if truth.boxes:
        return len(match_boxes(truth.boxes, answer.boxes, 0.5)) / max(len(truth.boxes), len(answer.boxes))
    if facts:
        true_tuples = {t for f in facts for t in f.tuples}
        stated_tuples = {t for f in read_facts(answer.text, lexicon) for t in f.tuples}
        return 2 * len(true_tuples & stated_tuples) / (len(true_tuples) + len(stated_tuples))
    return float(normalise(answer.text) == normalise(truth.text))


def is_wrong(answer: BoxedText, truth: BoxedText, names: Sequence[str]) -> bool:
    """Whether an answer misses its truth: boxes that overlap by an IoU below 0.5; other structures than the truth
    names, or a contradiction to it; other words, if the truth names no structure. names: class names of the data."""
    if truth.boxes:
        return answer_similarity(answer, truth) < 0.5
    if true_names := set(mentioned_names(truth.words, names)):
        return set(mentioned_names(answer.words, names)) != true_names or bool(conflicts(answer.words, truth.words))
    return normalise(answer.text) != normalise(truth.text)


def answer_similarity(a: BoxedText, b: BoxedText) -> float:
    """The similarity of two answers, 0..1, without a truth; symmetric, and 1 for an answer and itself.

    If either has boxes, only these count: the largest summed IoU of boxes paired one to one, divided by the number of
    boxes of the answer with more boxes, so that a spare box lowers it. Otherwise the F1 of normalised words, each
    counted as often as it occurs, in any order. Two answers without words are equal.
    """
    if a.boxes or b.boxes:
        overlap = iou_matrix(a.boxes, b.boxes)
        wide = overlap if len(a.boxes) <= len(b.boxes) else overlap.T
        # not `match_boxes`, which prefers many pairs that barely touch to one good pair
        summed_iou = sum(float(wide[pair]) for pair in assign(wide))
        return summed_iou / max(len(a.boxes), len(b.boxes))
    words_a, words_b = (Counter(normalise(t.text).split()) for t in (a, b))
    total = words_a.total() + words_b.total()
    return 2 * (words_a & words_b).total() / total if total else 1.0

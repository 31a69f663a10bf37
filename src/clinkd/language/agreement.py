"""How far two answers agree, by boxes and by words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from clinkd.boxes import assign, iou_matrix, match_boxes
from clinkd.language.facts import Lexicon, read_facts
from clinkd.language.words import normalise
from clinkd.records import BoxedText, Fact


def answer_accuracy(answer: BoxedText, truth: BoxedText, facts: Sequence[Fact], lexicon: Lexicon) -> float:
    """How near an answer comes to its truth, 0..1, without a language tool: what a choice on validation may look at.

    Where the truth has boxes, the share of boxes met one to one at IoU 0.5; where it states facts, the F1 of their
    tuples; else 1 for equal normalised words.
    """
    if truth.boxes:
        return len(match_boxes(truth.boxes, answer.boxes, 0.5)) / max(len(truth.boxes), len(answer.boxes))
    if facts:
        wanted = {t for f in facts for t in f.tuples}
        said = {t for f in read_facts(answer.text, lexicon) for t in f.tuples}
        return 2 * len(wanted & said) / (len(wanted) + len(said))
    return float(normalise(answer.text) == normalise(truth.text))


def answer_similarity(a: BoxedText, b: BoxedText) -> float:
    """How much two answers say the same, 0..1, without a truth; symmetric, and 1 for an answer and itself.

    Where either has boxes, these alone count: the largest summed IoU of boxes paired one to one, over the number of
    boxes of the answer that has more, so that a spare box counts against it. Else the F1 of normalised words, each as
    often as it stands; their order is not looked at. Two answers without words are alike.
    """
    if a.boxes or b.boxes:
        overlap = iou_matrix(a.boxes, b.boxes)
        wide = overlap if len(a.boxes) <= len(b.boxes) else overlap.T
        # not `match_boxes`: it prefers many pairs that barely touch to one good pair
        met = sum(float(wide[pair]) for pair in assign(wide))
        return met / max(len(a.boxes), len(b.boxes))
    said_a, said_b = (Counter(normalise(t.text).split()) for t in (a, b))
    total = said_a.total() + said_b.total()
    return 2 * (said_a & said_b).total() / total if total else 1.0

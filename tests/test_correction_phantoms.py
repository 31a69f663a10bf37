"""Correction on the demo's own truths: facts are read exactly, and a right paraphrase is never called wrong."""

import random

import numpy as np
import pytest

from clinkd.config import ReflectConfig
from clinkd.correction.correctors import OfflineCorrector, Wrong, correct
from clinkd.correction.review import review
from clinkd.correction.similarity import LexicalSimilarity
from clinkd.correction.verify import verify
from clinkd.data import phantoms
from clinkd.language.facts import read_facts
from clinkd.records import BoxedText, Candidate, Correction, ImageRef, Prediction, Sample


def drawn(images: int) -> list[Sample]:
    rng, modalities = np.random.default_rng(0), list(phantoms.STRUCTURES)
    found = []
    for at in range(images):
        drawing = phantoms.draw_phantom(rng, modalities[at % len(modalities)], structures=3)
        found += phantoms.make_phantom_samples(drawing, ImageRef("x.png", 96, 96), f"i{at}", "train", random.Random(at))
    return found


@pytest.mark.parametrize("images", [60, pytest.param(240, marks=pytest.mark.slow)])
def test_phantom_truths_survive_reading_rewriting_and_a_second_review(images: int) -> None:
    samples = drawn(images)
    for one in samples:
        if one.facts:
            assert set(read_facts(one.answer.text, phantoms.LEXICON)) == set(one.facts)
    wrong = [Correction(s.id, 1, BoxedText("?"), s.answer, 0.0, ("similarity",)) for s in samples]
    for one, correction in zip(samples, wrong, strict=True):
        ((proposals, _),) = OfflineCorrector(0).rewrite([Wrong(one, correction)])
        assert [verify(one, p.answer, phantoms.LEXICON) for p in proposals] == [None] * len(proposals)
    fixed = correct(wrong, samples, OfflineCorrector(0), phantoms.LEXICON)
    assert all(c.after not in (None, c.truth) for c in fixed)
    learnt = [Prediction(c.id, (Candidate("", c.after),)) for c in fixed if c.after]
    similarity = LexicalSimilarity(s.answer.words for s in samples)
    assert [c for c in review(samples, learnt, similarity, ReflectConfig(), 2) if c.wrong] == []


def test_answers_of_another_image_are_mostly_found_wrong() -> None:
    samples = drawn(240)
    by_task: dict[str, list[Sample]] = {}
    for one in samples:
        by_task.setdefault(one.task, []).append(one)
    similarity = LexicalSimilarity(s.answer.words for s in samples)
    for task, mine in by_task.items():
        others = [*mine[7:], *mine[:7]]
        swapped = [Prediction(s.id, (Candidate("", o.answer),)) for s, o in zip(mine, others, strict=True)]
        found = review(mine, swapped, similarity, ReflectConfig(), 1)
        same = sum(s.answer == o.answer for s, o in zip(mine, others, strict=True))
        assert sum(c.wrong for c in found) > 0.9 * (len(mine) - same), task

"""What texts share by n-grams: CIDEr-D of words and chrF2 of characters. Texts are strings, and scores need no Java."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

Ngrams = tuple[Counter[tuple[str, ...]], ...]  # by their length, from one word on

CHARACTERS = 6  # the longest n-grams of chrF
_SIGMA = 6.0  # of CIDEr-D: how fast an answer of another length loses


@lru_cache(maxsize=4096)
def count_ngrams(text: str) -> Ngrams:
    """How often each sequence of one to four words occurs in a text."""
    words = text.split()
    return tuple(Counter(zip(*(words[i:] for i in range(n)), strict=False)) for n in (1, 2, 3, 4))


# ---- CIDEr ----------------------------------------------------------------------------------------------------------


def compute_cider(pairs: Sequence[tuple[str, Sequence[str]]], documents: Sequence[Sequence[str]]) -> list[float] | None:
    """CIDEr-D (Vedantam et al. 2015) of each pair of an answer and its references, 0..10, as pycocoevalcap has it.

    An n-gram weighs the more, the fewer `documents` (the references of one question each) have it. None where all
    documents say the same: no n-gram tells one from another, and a perfect answer would score 0.
    """
    if len({tuple(document) for document in documents}) < 2:
        return None
    frequency = Counter(
        ngram for d in documents for ngram in {g for text in set(d) for counts in count_ngrams(text) for g in counts}
    )
    rarest = math.log(len(documents))
    weight_by_ngram = {ngram: rarest - math.log(count) for ngram, count in frequency.items()}

    @lru_cache(maxsize=4096)
    def weigh(text: str) -> _Weighed:
        ngrams = count_ngrams(text)
        weights = tuple({g: c * weight_by_ngram.get(g, rarest) for g, c in counts.items()} for counts in ngrams)
        norms = tuple(math.sqrt(sum(v * v for v in w.values())) for w in weights)
        return _Weighed(weights, norms, sum(ngrams[1].values()))

    scores = [0.0] * len(pairs)
    for place in sorted(range(len(pairs)), key=lambda i: tuple(pairs[i][1])):  # so that a reference is weighed once
        answer, references = pairs[place]
        similarities = [_compare_weighed(weigh(answer), weigh(reference)) for reference in references]
        scores[place] = 10 * sum(similarities) / len(similarities)
    return scores


class _Weighed(NamedTuple):
    """A text as vectors of weighed n-grams, one for each length. `pairs`: of words, which is the length of a text to
    pycocoevalcap."""

    weights: tuple[dict[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    pairs: int


def _compare_weighed(answer: _Weighed, reference: _Weighed) -> float:
    """The mean cosine over the lengths of n-grams, 0..1. No n-gram counts more often than the reference has it, and an
    answer of another length scores less."""
    cosines = 0.0
    for ours, theirs, our_norm, their_norm in zip(
        answer.weights, reference.weights, answer.norms, reference.norms, strict=True
    ):
        if our_norm and their_norm:
            shared = sum(min(ours[ngram], theirs[ngram]) * theirs[ngram] for ngram in ours.keys() & theirs.keys())
            cosines += shared / (our_norm * their_norm)
    return cosines / len(answer.weights) * math.exp(-((answer.pairs - reference.pairs) ** 2) / (2 * _SIGMA**2))


# ---- chrF -----------------------------------------------------------------------------------------------------------


def count_characters(answer: str, reference: str) -> list[int]:
    """What chrF is computed from, as sacrebleu counts it: for n-grams of one to six characters without white space, how
    many the answer has, how many the reference has, and how many both have."""
    ours, theirs = ("".join(text.split()) for text in (answer, reference))
    characters = np.frombuffer((ours + theirs).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    letters = np.unique(characters, return_inverse=True)[1]
    codes, base = letters, len(letters) + 1  # a number for each n-gram that differs, three times as fast as a Counter
    counts: list[int] = []
    for n in range(1, CHARACTERS + 1):
        if n > 1:
            codes = np.unique(codes[:-1] * base + letters[n - 1 :], return_inverse=True)[1]
        num_ours, num_theirs = (max(0, len(text) - n + 1) for text in (ours, theirs))
        both = [np.bincount(part, minlength=base) for part in (codes[:num_ours], codes[len(ours) :])]
        counts += [num_ours if num_theirs else 0, num_theirs, int(np.minimum(*both).sum())]
    return counts

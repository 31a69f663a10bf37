"""What texts share by n-grams: CIDEr-D of words and chrF2 of characters. Texts are strings, and scores need no Java."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
            # in the order of the answer: that of a set of strings, and so the last digit, is another in each process
            shared = sum(
                min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in ours.items() if ngram in theirs
            )
            cosines += shared / (our_norm * their_norm)
    return cosines / len(answer.weights) * math.exp(-((answer.pairs - reference.pairs) ** 2) / (2 * _SIGMA**2))


# ---- chrF -----------------------------------------------------------------------------------------------------------


def count_characters(pairs: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    """[N, 3 * CHARACTERS] what chrF is computed from, as sacrebleu counts it, for each pair of an answer and a
    reference: for n-grams of one to six characters without white space, how many the answer has, how many the reference
    has, and how many both have."""
    texts = {text: "".join(text.split()) for pair in pairs for text in pair}
    known = _know_trigrams(list(texts.values()))

    @lru_cache(maxsize=2048)
    def count(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        codes, numbers = np.unique(_encode_ngrams(texts[text], known), return_counts=True)
        return np.append(codes, np.iinfo(np.int64).max), np.append(numbers, 0)  # an end that is no n-gram

    counts = np.zeros((len(pairs), CHARACTERS, 3), dtype=np.int64)
    lengths = np.arange(CHARACTERS)
    for place in sorted(range(len(pairs)), key=lambda i: pairs[i][1]):  # so that a reference is counted once
        (ours, num_ours), (theirs, num_theirs) = (count(text) for text in pairs[place])
        at = np.searchsorted(theirs[:-1], ours)
        both = np.where(theirs[at] == ours, np.minimum(num_ours, num_theirs[at]), 0)
        of_both = np.bincount(ours[:-1] >> _LENGTH_BITS, both[:-1], CHARACTERS)
        of_ours, of_theirs = (np.maximum(0, len(texts[text]) - lengths) for text in pairs[place])
        counts[place] = np.stack([np.where(of_theirs > 0, of_ours, 0), of_theirs, of_both], axis=1)
    return counts.reshape(len(pairs), 3 * CHARACTERS)


_LETTER_BITS, _RANK_BITS, _LENGTH_BITS = 21, 30, 60  # any character of Unicode; so many trigrams; above both
_TEXTS_AT_ONCE = 1000


def _read_letters(text: str) -> NDArray[np.int64]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.int64)


def _make_trigrams(letters: NDArray[np.int64]) -> NDArray[np.int64]:
    return letters[:-2] << 2 * _LETTER_BITS | letters[1:-1] << _LETTER_BITS | letters[2:]


def _know_trigrams(texts: Sequence[str]) -> NDArray[np.int64]:
    """All sequences of three characters, in order, and some more: those from one text to the next."""
    known = np.zeros(0, dtype=np.int64)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        known = np.union1d(known, _make_trigrams(_read_letters("".join(texts[start : start + _TEXTS_AT_ONCE]))))
    return known


def _encode_ngrams(text: str, known: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each n-gram of one to CHARACTERS characters, equal for equal ones. Two trigrams make the longer."""
    letters = _read_letters(text)
    ranks = np.searchsorted(known, _make_trigrams(letters))
    codes = [letters, letters[:-1] << _LETTER_BITS | letters[1:], ranks]
    codes += [ranks[:-n] << _RANK_BITS | ranks[n:] for n in range(1, CHARACTERS - 2)]
    return np.concatenate([n << _LENGTH_BITS | code for n, code in enumerate(codes)])

"""What texts share by n-grams: CIDEr-D of words and chrF2 of characters. Texts are strings, and scores need no Java."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ngrams = tuple[Counter[tuple[str, ...]], ...]  # by their length, from one word on

CHARACTERS = 6  # the longest n-grams of chrF
_PAIRS_AT_ONCE = 8192  # bounds memory
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
    references_P = [reference for _, references in pairs for reference in references]
    answers_P = [answer for answer, references in pairs for _ in references]
    texts = list(dict.fromkeys([*answers_P, *references_P, *(text for d in documents for text in d)]))
    place = {text: n for n, text in enumerate(texts)}
    ours_P, theirs_P = (np.array([place[text] for text in part], dtype=np.intp) for part in (answers_P, references_P))
    counts_by_length, places_D = _count_sequences(texts), [[place[text] for text in d] for d in documents]
    cosines_P = np.zeros(len(ours_P))
    for counts_TG in counts_by_length:
        cosines_P += _compare_weighed(_weigh(counts_TG, places_D), ours_P, theirs_P)
    length_T = np.asarray(counts_by_length[1].sum(axis=1)).ravel()  # to pycocoevalcap, the pairs of words
    # an answer of another length scores less
    cosines_P *= np.exp(-((length_T[ours_P] - length_T[theirs_P]) ** 2) / (2 * _SIGMA**2)) / len(counts_by_length)
    numbers = np.array([len(references) for _, references in pairs])
    sums = np.add.reduceat(np.append(cosines_P, 0.0), np.cumsum(numbers) - numbers) if len(pairs) else np.zeros(0)
    return [float(score) for score in 10 * sums / numbers]


def _count_sequences(texts: Sequence[str]) -> list[Any]:
    """Sparse matrices [T, G] for one to four words: how often each text has each sequence of so many words."""
    from scipy.sparse import csr_array  # here: what has no captions starts without it

    words_of = [text.split() for text in texts]
    text_W = np.repeat(np.arange(len(texts)), [len(words) for words in words_of])
    rank = {word: n for n, word in enumerate(sorted({word for words in words_of for word in words}))}
    word_W = np.array([rank[word] for words in words_of for word in words], dtype=np.int64)
    code_W, matrices = word_W, []
    for n in range(1, 5):
        if n > 1:  # the sequence before, and one word more of the same text
            code_W = code_W[:-1] * max(1, len(rank)) + word_W[n - 1 :]
            of_one_text_W = text_W[: len(code_W)] == text_W[n - 1 :]
        else:
            of_one_text_W = np.ones(len(code_W), dtype=bool)
        known_G, code_W = np.unique(code_W, return_inverse=True)  # in the order of words: sums are the same anywhere
        rows, columns = text_W[: len(code_W)][of_one_text_W], code_W[of_one_text_W]
        shape = (len(texts), max(1, len(known_G)))
        counts_TG = csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
        counts_TG.sum_duplicates()
        matrices.append(counts_TG)
    return matrices


def _weigh(counts_TG: Any, documents: Sequence[Sequence[int]]) -> Any:
    """The counts times log(documents / documents that have the sequence), [T, G]."""
    from scipy.sparse import csr_array

    number_D = [len(document) for document in documents]
    row_R, text_R = np.repeat(np.arange(len(documents)), number_D), [text for d in documents for text in d]
    of_documents = csr_array((np.ones(len(row_R)), (row_R, text_R)), shape=(len(documents), counts_TG.shape[0]))
    frequency_G = np.asarray(((of_documents @ counts_TG) > 0).sum(axis=0)).ravel()
    weight_G = math.log(len(documents)) - np.log(np.maximum(frequency_G, 1))
    return counts_TG.multiply(weight_G[None]).tocsr()


def _compare_weighed(weights_TG: Any, ours_P: NDArray[np.intp], theirs_P: NDArray[np.intp]) -> NDArray[np.float64]:
    """[P] cosines of answers and references. No sequence counts more often than the reference has it."""
    norm_T = np.sqrt(np.asarray(weights_TG.multiply(weights_TG).sum(axis=1)).ravel())
    norms_P, shared_P = norm_T[ours_P] * norm_T[theirs_P], np.zeros(len(ours_P))
    for start in range(0, len(ours_P), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        theirs = weights_TG[theirs_P[some]]
        shared_P[some] = np.asarray(weights_TG[ours_P[some]].minimum(theirs).multiply(theirs).sum(axis=1)).ravel()
    return np.asarray(np.divide(shared_P, norms_P, out=np.zeros(len(ours_P)), where=norms_P > 0))


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

"""Similarity of two texts, 0..1: the protocol, and an offline version without weights and network."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clinkd.language.negation import carries_meaning
from clinkd.language.words import normalise

_SHARES = {"word": 0.6, "gram": 0.3, "pair": 0.1}  # of the three cosines; pairs see order: paraphrases move words
_LIGHT = 0.25  # weight of a word like "the" or "is"; a word with meaning weighs 1 or more
_LENGTH_POWER = 1 / 3  # the cost of length: "kidney kidney" against "kidney" falls below 0.8


class Similarity(Protocol):
    """Compares answers with their truths: two lists of equal length, of texts without boxes."""

    @property
    def name(self) -> str: ...

    def similar(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
        """[len(a)] values in 0..1, 1 for equal texts, symmetric."""
        ...


def text_hash(text: str, exact: bool = False) -> str:
    """The cache key of a reference text: equal for texts that are equal when normalised, or only for `exact` ones."""
    return hashlib.blake2b((text if exact else normalise(text)).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class _Vector:
    """Unnormalised features of one text by block: hashed features and their weights, with repeats."""

    blocks: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
    mass: float  # summed weight of the words


class LexicalSimilarity:
    """TF-IDF cosine of words, of character trigrams and of neighbouring words, times a length ratio.

    Weights are fitted on the reference texts, so words that distinguish truths (names, findings) count, and phrases in
    all of them hardly do; a word in no reference weighs as the average word, and "the" or "is" next to nothing.

    Against a sentence embedding: both put a paraphrase with the same findings high, another organ low, and "tumor" near
    .73 of "no tumor". This one is stricter with synonyms ("renal" is no "kidney": 0). Both let a wrong side pass where
    sides are common ("left lung" / "right lung": an embedding .98, this one .84 on the phantoms and .94 in a sentence)
    and one wrong attribute of several (.89), which is why review also tests sides, negation and counts.

    Deterministic; results do not depend on what was compared before. Vectors of the references are kept by text hash.
    """

    name = "offline"

    def __init__(self, references: Iterable[str]) -> None:
        plain = {text_hash(t): normalise(t) for t in references}
        self._texts = len(plain)
        self._texts_with = Counter(w for t in plain.values() for w in set(t.split()))
        held = {w: n for w, n in self._texts_with.items() if carries_meaning(w)}
        self._typical = sum(n * self._rarity(n) for n in held.values()) / max(1, sum(held.values())) or 1.0
        self._kept = {key: self._vector(t) for key, t in plain.items()}

    def similar(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
        """[len(a)] values in 0..1, rounded to 6 places; exactly 1 if the normalised texts are equal."""
        equal = np.array([normalise(x) == normalise(y) for x, y in zip(a, b, strict=True)])
        if not a:
            return []
        new_vectors: dict[str, _Vector] = {}
        left, right = ([self._cached_vector(t, new_vectors) for t in texts] for texts in (a, b))
        total = sum(share * _row_cosines(block, left, right) for block, share in _SHARES.items())
        mass = np.array([(u.mass, v.mass) for u, v in zip(left, right, strict=True)])  # [N,2]
        low, high = mass.min(axis=1), mass.max(axis=1)
        ratio = np.divide(low, high, out=np.zeros_like(low), where=high > 0) ** _LENGTH_POWER
        return [float(v) for v in np.where(equal, 1.0, np.clip(total * ratio, 0, 1).round(6))]

    def _cached_vector(self, text: str, new_vectors: dict[str, _Vector]) -> _Vector:
        key = text_hash(text)
        if key in self._kept:
            return self._kept[key]
        if key not in new_vectors:
            new_vectors[key] = self._vector(normalise(text))
        return new_vectors[key]

    def _vector(self, plain: str) -> _Vector:
        words = plain.split()
        weights = [self._weight(w) for w in words]
        ends = [("^", 1.0), *zip(words, weights, strict=True), ("$", 1.0)]
        pairs = [(_hash_feature(f"{x} {y}"), math.sqrt(v * w)) for (x, v), (y, w) in itertools.pairwise(ends)]
        grams = [_trigram_features(w) for w in words]
        shares = [np.full(len(g), v / math.sqrt(len(g))) for g, v in zip(grams, weights, strict=True)]
        empty = np.zeros(0)
        features = np.array([_hash_feature(w) for w in words], dtype=np.int64)
        blocks = {
            "word": (features, np.array(weights, dtype=np.float64)),
            "gram": (np.concatenate([empty.astype(np.int64), *grams]), np.concatenate([empty, *shares])),
            "pair": (np.array([f for f, _ in pairs], dtype=np.int64), np.array([v for _, v in pairs])),
        }
        return _Vector(blocks, sum(weights))

    def _weight(self, word: str) -> float:
        if not carries_meaning(word):
            return _LIGHT
        texts_with_word = self._texts_with[word]
        return self._rarity(texts_with_word) if texts_with_word else self._typical

    def _rarity(self, texts: int) -> float:
        return 1.0 + math.log((1 + self._texts) / (1 + texts))


@lru_cache(maxsize=1 << 18)
def _hash_feature(text: str) -> int:
    """A number for a feature, equal in every process; 56 bits, so no collision is to be expected."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


@lru_cache(maxsize=1 << 16)
def _trigram_features(word: str) -> NDArray[np.int64]:
    """The character trigrams of a word with its ends marked, at least one."""
    marked = f"^{word}$"
    return np.array([_hash_feature("#" + marked[i : i + 3]) for i in range(max(1, len(marked) - 2))], dtype=np.int64)


def _row_cosines(block: str, left: list[_Vector], right: list[_Vector]) -> NDArray[np.float64]:
    """Row-wise cosine [N] of two lists of sparse vectors: one sort joins the features that both sides share."""
    sides = [[v.blocks[block] for v in vectors] for vectors in (left, right)]
    rows = np.concatenate([np.repeat(np.arange(len(side)), [len(ids) for ids, _ in side]) for side in sides])
    ids = np.concatenate([ids for side in sides for ids, _ in side])
    values = np.concatenate([values for side in sides for _, values in side])
    first = np.arange(len(ids)) < sum(len(i) for i, _ in sides[0])
    order = np.lexsort((ids, rows))
    rows, ids, values, first = rows[order], ids[order], values[order], first[order]
    new = np.ones(len(ids), dtype=bool)
    new[1:] = (rows[1:] != rows[:-1]) | (ids[1:] != ids[:-1])
    cell = np.cumsum(new) - 1  # one a distinct (row, feature)
    u, v = (np.bincount(cell, np.where(side, values, 0.0)) for side in (first, ~first))
    row_of = rows[new]
    dot, uu, vv = (np.bincount(row_of, p, minlength=len(left)) for p in (u * v, u * u, v * v))
    norm = np.sqrt(uu * vv)
    cosines: NDArray[np.float64] = np.divide(dot, norm, out=np.zeros_like(dot), where=norm > 0)
    return cosines

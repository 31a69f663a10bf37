"""Words and sentences of a text, and which names stand in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from clinkd.records import BOX_MARK

_WORD = re.compile(r"\d+(?:\.\d+)+|[^\W_]+|,")
_SENTENCE_END = re.compile(r"[;!?\n\r\u2028\u2029]+|\.(?!\d)|(?<!\d)\.")
_APOSTROPHE = re.compile(r"(?<=\w)['\u2019\u02bc](?=\w)")


@lru_cache(maxsize=65536)
def sentences(text: str) -> tuple[tuple[str, ...], ...]:
    """Sentences as lower-case words, commas (and colons) kept as ",": what all reading below starts from."""
    plain = unicodedata.normalize("NFKC", text.replace(BOX_MARK, " ")).casefold().replace(":", ",")
    plain = _APOSTROPHE.sub("", plain)  # isn't -> isnt, patient's -> patients
    found = (tuple(_WORD.findall(s)) for s in _SENTENCE_END.split(plain))
    return tuple(s for s in found if any(w != "," for w in s))


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """Case folded, NFKC, box marks and punctuation gone (a decimal point stays), words one space apart."""
    return " ".join(w for s in sentences(text) for w in s if w != ",")


@lru_cache(maxsize=65536)
def singular(word: str) -> str:
    """A crude singular, the same for both numbers of a regular noun; used on both sides of a comparison only."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 4 and word.endswith("ae"):
        return word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


@lru_cache(maxsize=65536)
def _key(name: str) -> tuple[str, ...]:
    return tuple(singular(w) for w in normalise(name).split())


@lru_cache(maxsize=256)
def _index(names: tuple[str, ...]) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """First word -> the names that begin with it, longest first."""
    index: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for name in names:
        if key := _key(name):
            index.setdefault(key[0], []).append((key, name))
    for keys in index.values():
        keys.sort(key=lambda kn: -len(kn[0]))
    return index


def spans(words: Sequence[str], names: tuple[str, ...]) -> Iterator[tuple[int, int, str]]:
    """(start, end, name) of every name in the words, the longest first at each place, never overlapping."""
    index, singulars, at = _index(names), [singular(w) for w in words], 0
    while at < len(words):
        hit = next(((k, n) for k, n in index.get(singulars[at], ()) if tuple(singulars[at : at + len(k)]) == k), None)
        if hit:
            yield at, at + len(hit[0]), hit[1]
        at += len(hit[0]) if hit else 1


AUXILIARY = {"be", "been", "being", "clearly", "well", "yet", "definitely", "to", "currently"}
PLACES = {"in", "on", "at", "within", "along", "near", "around", "under", "above", "below", "over", "inside", "beside"}
DETERMINERS = {"the", "a", "an", "this", "that", "these", "those", "there", "it", "its", "they"}
VERBS = {
    *("is", "are", "was", "were", "has", "have", "had", "be", "been", "being", "can", "shows", "show", "lies", "lie"),
    *("sits", "appears", "appear", "contains", "contain", "seems", "measures", "occupies", "exists", "do", "does"),
    *("reveals", "displays", "depicts", "demonstrates", "could", "would", "may", "might", "will", "should", "looks"),
}
GENERIC = {"structure", "organ", "object", "finding", "region", "area", "abnormality", "item", "instance", "thing"}
NUMBERS = {
    **{"single": 1, "solitary": 1, "one": 1, "two": 2, "pair": 2, "couple": 2, "three": 3, "four": 4, "five": 5},
    **{"six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12},
}

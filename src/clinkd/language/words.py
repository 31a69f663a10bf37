"""Words and sentences of a text, and the names in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from clinkd.language.spellings import get_spellings
from clinkd.records import BOX_MARK

_WORD = re.compile(r"\d+(?:\.\d+)+|[^\W_]+|,")
_SENTENCE_END = re.compile(r"[;!?\n\r\u2028\u2029]+|\.(?!\d)|(?<!\d)\.")
_BARE_DECIMAL = re.compile(r"(?<![\w.)\]])\.(?=\d)")  # .5 is 0.5
_APOSTROPHE = re.compile(r"(?<=\w)['\u2019\u02bc](?=\w)")


@lru_cache(maxsize=65536)
def sentences(text: str) -> tuple[tuple[str, ...], ...]:
    """Sentences as lower-case words, with commas and colons as ",": all other readers start from these."""
    plain = unicodedata.normalize("NFKC", text.replace(BOX_MARK, " ")).casefold().replace(":", ",")
    plain = _BARE_DECIMAL.sub("0.", plain)
    plain = _APOSTROPHE.sub("", plain)  # isn't -> isnt, patient's -> patients
    word_lists = (tuple(_WORD.findall(s)) for s in _SENTENCE_END.split(plain))
    return tuple(words for words in word_lists if any(w != "," for w in words))


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """The words, case folded and NFKC, one space apart, without box marks and punctuation except decimal points."""
    return " ".join(w for s in sentences(text) for w in s if w != ",")


@lru_cache(maxsize=65536)
def singular(word: str) -> str:
    """A rough singular in one spelling, equal for both numbers of a noun and for its twins (tumours, tumor); use it
    only on both sides of a comparison."""
    return get_spellings().unify_word(word, _cut_plural)


def _cut_plural(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 4 and word.endswith("ae"):
        return word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


@lru_cache(maxsize=65536)
def _make_key(name: str) -> tuple[str, ...]:
    return tuple(singular(w) for w in normalise(name).split())


@lru_cache(maxsize=256)
def _index_names(names: tuple[str, ...]) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """The names by their first word, longest first."""
    index: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for name in names:
        if key := _make_key(name):
            index.setdefault(key[0], []).append((key, name))
    for keys in index.values():
        keys.sort(key=lambda kn: -len(kn[0]))
    return index


def spans(words: Sequence[str], names: tuple[str, ...]) -> Iterator[tuple[int, int, str]]:
    """(start, end, name) of every name in the words, without overlaps; at each place the longest name counts."""
    index, singulars, i = _index_names(names), [singular(w) for w in words], 0
    while i < len(words):
        match = next(((k, n) for k, n in index.get(singulars[i], ()) if tuple(singulars[i : i + len(k)]) == k), None)
        if match:
            yield i, i + len(match[0]), match[1]
        i += len(match[0]) if match else 1


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

"""Sides, numbers and negation in two texts, and whether they contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from clinkd.language.languages import find_language, list_languages, mentions_side
from clinkd.language.negation import (
    affirmed_names,
    carries_finding,
    clauses,
    negated_words,
    split_clauses,
    yes_no_verdict,
)
from clinkd.language.words import GENERIC, NUMBERS, normalise, sentences, singular


def affirms(text: str, name: str) -> bool:
    """Whether the text states the name at least once without denying it in the same clause ("not the X" denies it)."""
    return bool(affirmed_names(text, (name,)))


_SIDE_WORDS = {
    "left": frozenset({"left"}),
    "right": frozenset({"right"}),
    **{w: frozenset({"left"}) for w in ("leftmost", "leftward", "leftwards", "lefthand")},
    **{w: frozenset({"right"}) for w in ("rightmost", "rightward", "rightwards", "righthand")},
    **{w: frozenset({"left", "right"}) for w in ("bilateral", "bilaterally")},
}
# adjectives; two structures of an image may swap them and keep their sides
DESCRIBING = (
    *("small", "large", "big", "little", "tiny", "huge", "medium", "bright", "dark", "light", "dim", "round", "oval"),
)


def denied(text: str) -> frozenset[str]:
    """The content words that a text denies, in the singular."""
    return frozenset(w for w, polarity in _read_polarity(text).items() if True in polarity)


_UNITS = {
    *("mm", "cm", "m", "ml", "cc", "kg", "g", "mg", "hu", "tesla", "t", "weeks", "week", "days", "day", "years"),
    *("year", "months", "month", "hours", "percent", "pixels", "px", "degrees", "oclock", "x", "by", "and", "hz"),
}
_RANKED = {"grade", "stage", "level", "type", "zone", "segment", "series", "figure", "phase", "t", "l", "c", "s", "v"}
_POINTING = {"the", "this", "that", "other", "another", "each", "every", "no", "any", "left", "right", "t", "which"}


@lru_cache(maxsize=65536)
def sides(text: str) -> frozenset[str]:
    """The sides, "left" and "right", that a text states and does not deny; bilateral, or "both lungs", is both.

    In other languages than English a sentence that denies anything states no side.
    """
    if mentions_side(text) and (language := find_language(text)) and language is not list_languages()[0]:
        return frozenset[str](language.read_sides(text))
    return frozenset().union(*(_read_sides(c.words, c.negated) for c in clauses(text)))


def _read_sides(words: Sequence[str], negated: Sequence[bool]) -> frozenset[str]:
    stated: set[str] = set()
    for i, (word, denied) in enumerate(zip(words, negated, strict=True)):
        if denied:
            continue
        after = words[i + 1] if i + 1 < len(words) else ""
        if word in _SIDE_WORDS:
            stated |= _SIDE_WORDS[word]
        elif word == "both" and (after == "sides" or (after.endswith("s") and carries_finding(after))):
            stated |= {"left", "right"}
    return frozenset(stated)


@dataclass(frozen=True, slots=True)
class _Count:
    number: int
    head: str  # the counted noun in the singular; "" where it is missing
    firm: bool  # stated as a number, not as "both"


@lru_cache(maxsize=65536)
def counts(text: str) -> tuple[_Count, ...]:
    stated = []
    for clause in clauses(text):
        words = clause.words
        for i, word in enumerate(words):
            before, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
            if word == "both":
                stated.append(_Count(2, _find_noun(words[i + 1 :]), False))
            elif clause.negated[i]:
                continue
            elif word in NUMBERS:
                noun = _find_noun(words[i + 1 :])
                pronoun = word == "one" and (
                    (not noun and len(words) > 1 and before != "is") or before in _POINTING | {"in", "on"}
                )
                if not pronoun:
                    stated.append(_Count(NUMBERS[word], noun, True))
            elif word.isdecimal() and len(word) <= 2 and after not in _UNITS and before not in _RANKED:
                stated.append(_Count(int(word), _find_noun(words[i + 1 :]), True))
    return tuple(stated)


def _find_noun(words: Sequence[str]) -> str:
    """The noun that a number counts, from the words after it: "small bright structures on ..." -> structure."""
    head = ""
    for word in words[1:] if words[:1] in (("of",), ["of"]) else words:
        noun = singular(word)
        if noun in GENERIC:
            return noun
        if not carries_finding(word) or word in _SIDE_WORDS or word in NUMBERS:
            break
        head = noun
    return head


def numbers(text: str) -> frozenset[int]:
    """The counts that a text states ("two structures", "a single lesion", "3"), without measurements and "T2"."""
    return frozenset(c.number for c in counts(text) if c.firm)


def conflicts(answer: str, truth: str) -> tuple[str, ...]:
    """How two texts contradict each other: some of "laterality", "negation", "count", in this order.

    Silence is no contradiction: a text without a side conflicts with no side. Symmetric in its arguments.
    """
    if normalise(answer) == normalise(truth):
        return ()
    checks = (("laterality", _sides_conflict), ("negation", _negation_conflicts), ("count", _counts_conflict))
    return tuple(name for name, conflict in checks if conflict(answer, truth))


def _sides_conflict(a: str, b: str) -> bool:
    sides_a, sides_b = sides(a), sides(b)
    if sides_a and sides_b and sides_a != sides_b:
        return True
    bound_a, bound_b = _bind_sides(a), _bind_sides(b)  # "a kidney on the left, a liver on the right", swapped
    return any(not bound_a[w] & bound_b[w] for w in bound_a.keys() & bound_b.keys())


@lru_cache(maxsize=65536)
def _bind_sides(text: str) -> dict[str, frozenset[str]]:
    """The sides stated in the clauses of each content word; by the parts around "and" where each states one side."""
    bound: dict[str, frozenset[str]] = {}
    for sentence in sentences(text):
        for clause in split_clauses(sentence):
            parts = list(_split_parts(clause))
            if any(len(_read_sides(p, negated_words(p))) != 1 for p in parts):
                parts = [tuple(w for w in clause if w != ",")]
            for part in parts:
                stated = _read_sides(part, negated_words(part))
                for word in filter(_can_have_side, part) if stated else ():
                    bound[singular(word)] = bound.get(singular(word), frozenset()) | stated
    return bound


def _can_have_side(word: str) -> bool:
    return carries_finding(word) and not (word in _SIDE_WORDS or word in NUMBERS or word in DESCRIBING)


def _split_parts(clause: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The pieces of a clause between its commas and "and"s; a piece without a finding joins the next piece."""
    piece: list[str] = []
    for word in clause:
        if word in {",", "and"} and any(carries_finding(w) and w not in _SIDE_WORDS for w in piece):
            yield tuple(piece)
            piece = []
        elif word != ",":
            piece.append(word)
    if piece:
        yield tuple(piece)


def _negation_conflicts(a: str, b: str) -> bool:
    denials_a, denials_b = _read_polarity(a), _read_polarity(b)
    shared = denials_a.keys() & denials_b.keys()
    if any(len(denials_a[w]) == len(denials_b[w]) == 1 and denials_a[w] != denials_b[w] for w in shared):
        return True
    return bool(yes_no_verdict(a) and yes_no_verdict(b) and yes_no_verdict(a) != yes_no_verdict(b))


@lru_cache(maxsize=65536)
def _read_polarity(text: str) -> dict[str, frozenset[bool]]:
    """For each content word, whether it is denied; both values where the text does both. A word that is left open ("a
    mass cannot be excluded") contradicts nothing."""
    polarity: dict[str, frozenset[bool]] = {}
    for clause in clauses(text):
        for word, denied, uncertain in zip(clause.words, clause.negated, clause.uncertain, strict=True):
            if carries_finding(word) and not uncertain:
                polarity[singular(word)] = polarity.get(singular(word), frozenset()) | {denied}
    return polarity


def _counts_conflict(a: str, b: str) -> bool:
    counts_a, counts_b = counts(a), counts(b)
    for head in {c.head for c in counts_a} & {c.head for c in counts_b} - {""}:
        if not {c.number for c in counts_a if c.head == head} & {c.number for c in counts_b if c.head == head}:
            return True
    all_a, all_b = ([c.number for c in counts if c.firm or not c.head] for counts in (counts_a, counts_b))
    if not all_a or not all_b or set(all_a) & set(all_b):
        return False
    return sum(all_a) not in all_b and sum(all_b) not in all_a  # "one kidney and one liver" are two structures

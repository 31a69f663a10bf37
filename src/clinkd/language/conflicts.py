"""Sides, numbers and negation in two texts, and whether they contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

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
    """The text states the name at least once without negating it in the same clause ("not the X" does not)."""
    return bool(affirmed_names(text, (name,)))


_SIDE_WORDS = {
    "left": frozenset({"left"}),
    "right": frozenset({"right"}),
    **{w: frozenset({"left"}) for w in ("leftmost", "leftward", "leftwards", "lefthand")},
    **{w: frozenset({"right"}) for w in ("rightmost", "rightward", "rightwards", "righthand")},
    **{w: frozenset({"left", "right"}) for w in ("bilateral", "bilaterally")},
}
DESCRIBING = (  # adjectives that two structures of one image may well exchange without changing sides
    *("small", "large", "big", "little", "tiny", "huge", "medium", "bright", "dark", "light", "dim", "round", "oval"),
)


def denied(text: str) -> frozenset[str]:
    """The content words a text denies, singular."""
    return frozenset(w for w, said in _polarity(text).items() if True in said)


_UNITS = {
    *("mm", "cm", "m", "ml", "cc", "kg", "g", "mg", "hu", "tesla", "t", "weeks", "week", "days", "day", "years"),
    *("year", "months", "month", "hours", "percent", "pixels", "px", "degrees", "oclock", "x", "by", "and", "hz"),
}
_RANKED = {"grade", "stage", "level", "type", "zone", "segment", "series", "figure", "phase", "t", "l", "c", "s", "v"}
_POINTING = {"the", "this", "that", "other", "another", "each", "every", "no", "any", "left", "right", "t", "which"}


@lru_cache(maxsize=65536)
def sides(text: str) -> frozenset[str]:
    """The sides a text states without denying them: of "left" and "right"; bilateral, or "both lungs", is both."""
    return frozenset().union(*(_clause_sides(c.words, c.negated) for c in clauses(text)))


def _clause_sides(words: Sequence[str], negated: Sequence[bool]) -> frozenset[str]:
    stated: set[str] = set()
    for at, (word, denied) in enumerate(zip(words, negated, strict=True)):
        if denied:
            continue
        after = words[at + 1] if at + 1 < len(words) else ""
        if word in _SIDE_WORDS:
            stated |= _SIDE_WORDS[word]
        elif word == "both" and (after == "sides" or (after.endswith("s") and carries_finding(after))):
            stated |= {"left", "right"}
    return frozenset(stated)


@dataclass(frozen=True, slots=True)
class _Count:
    number: int
    head: str  # the counted noun, singular; "" where it is left out
    firm: bool  # said as a number, not as "both"


@lru_cache(maxsize=65536)
def counts(text: str) -> tuple[_Count, ...]:
    found = []
    for clause in clauses(text):
        words = clause.words
        for at, word in enumerate(words):
            before, after = words[at - 1] if at else "", words[at + 1] if at + 1 < len(words) else ""
            if word == "both":
                found.append(_Count(2, _head(words[at + 1 :]), False))
            elif clause.negated[at]:
                continue
            elif word in NUMBERS:
                noun = _head(words[at + 1 :])
                pronoun = word == "one" and (
                    (not noun and len(words) > 1 and before != "is") or before in _POINTING | {"in", "on"}
                )
                if not pronoun:
                    found.append(_Count(NUMBERS[word], noun, True))
            elif word.isdecimal() and len(word) <= 2 and after not in _UNITS and before not in _RANKED:
                found.append(_Count(int(word), _head(words[at + 1 :]), True))
    return tuple(found)


def _head(words: Sequence[str]) -> str:
    """The noun that words after a number lead to: "small bright structures on ..." -> structure."""
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
    """The counts a text states ("two structures", "a single lesion", "3"); measurements and "T2" are not counts."""
    return frozenset(c.number for c in counts(text) if c.firm)


def conflicts(answer: str, truth: str) -> tuple[str, ...]:
    """Where two texts contradict each other: a subset of ("laterality", "negation", "count"), in that order.

    Silence is no contradiction: a text that states no side conflicts with none. Symmetric in its arguments.
    """
    if normalise(answer) == normalise(truth):
        return ()
    found = (("laterality", _sides_clash), ("negation", _negation_clash), ("count", _counts_clash))
    return tuple(name for name, clash in found if clash(answer, truth))


def _sides_clash(a: str, b: str) -> bool:
    sides_a, sides_b = sides(a), sides(b)
    if sides_a and sides_b and sides_a != sides_b:
        return True
    bound_a, bound_b = _bound_sides(a), _bound_sides(b)  # "a kidney on the left, a liver on the right", swapped
    return any(not bound_a[w] & bound_b[w] for w in bound_a.keys() & bound_b.keys())


@lru_cache(maxsize=65536)
def _bound_sides(text: str) -> dict[str, frozenset[str]]:
    """Content word -> the sides stated in its clauses, finer where each part around an "and" states just one."""
    bound: dict[str, frozenset[str]] = {}
    for sentence in sentences(text):
        for clause in split_clauses(sentence):
            parts = list(_parts(clause))
            if any(len(_clause_sides(p, negated_words(p))) != 1 for p in parts):
                parts = [tuple(w for w in clause if w != ",")]
            for part in parts:
                stated = _clause_sides(part, negated_words(part))
                for word in filter(_can_have_side, part) if stated else ():
                    bound[singular(word)] = bound.get(singular(word), frozenset()) | stated
    return bound


def _can_have_side(word: str) -> bool:
    return carries_finding(word) and not (word in _SIDE_WORDS or word in NUMBERS or word in DESCRIBING)


def _parts(clause: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The pieces of a clause around its commas and "and"s; a piece that names nothing stays with its follower."""
    piece: list[str] = []
    for word in clause:
        if word in {",", "and"} and any(carries_finding(w) and w not in _SIDE_WORDS for w in piece):
            yield tuple(piece)
            piece = []
        elif word != ",":
            piece.append(word)
    if piece:
        yield tuple(piece)


def _negation_clash(a: str, b: str) -> bool:
    said_a, said_b = _polarity(a), _polarity(b)
    if any(len(said_a[w]) == len(said_b[w]) == 1 and said_a[w] != said_b[w] for w in said_a.keys() & said_b.keys()):
        return True
    return bool(yes_no_verdict(a) and yes_no_verdict(b) and yes_no_verdict(a) != yes_no_verdict(b))


@lru_cache(maxsize=65536)
def _polarity(text: str) -> dict[str, frozenset[bool]]:
    """Content word -> whether it is denied, both values where it is and is not."""
    said: dict[str, frozenset[bool]] = {}
    for clause in clauses(text):
        for word, denied in zip(clause.words, clause.negated, strict=True):
            if carries_finding(word):
                said[singular(word)] = said.get(singular(word), frozenset()) | {denied}
    return said


def _counts_clash(a: str, b: str) -> bool:
    counts_a, counts_b = counts(a), counts(b)
    for head in {c.head for c in counts_a} & {c.head for c in counts_b} - {""}:
        if not {c.number for c in counts_a if c.head == head} & {c.number for c in counts_b if c.head == head}:
            return True
    all_a, all_b = ([c.number for c in found if c.firm or not c.head] for found in (counts_a, counts_b))
    if not all_a or not all_b or set(all_a) & set(all_b):
        return False
    return sum(all_a) not in all_b and sum(all_b) not in all_a  # "one kidney and one liver" are two structures

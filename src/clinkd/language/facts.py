"""Facts of a text: which structure, where, with which attributes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from clinkd.language.conflicts import counts
from clinkd.language.negation import clauses
from clinkd.language.words import GENERIC, spans
from clinkd.records import Fact, Record


@dataclass(frozen=True, slots=True)
class Lexicon(Record):
    """The words a data set describes its structures with. Names may nest ("lung", "left lung"): the longest wins."""

    names: tuple[str, ...]
    sizes: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    brightness: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _TermSpan:
    """A name or an attribute found in a sentence; `start` and `end` count its words."""

    start: int
    end: int
    kind: str  # name, size, side, brightness
    value: str


def read_facts(text: str, lexicon: Lexicon) -> tuple[Fact, ...]:
    """What a text states of the lexicon's names, in order of mention; negated mentions state nothing.

    A clause with one name gives it all attributes of the clause. Where names share a clause, attributes that run up to
    a name are its own ("a small bright kidney and a dark liver"), a side before the first name holds for all that state
    no other ("on the left a kidney and a liver"), what follows "are" holds for all, and other words go to the name
    before them. "It is ..." goes on about the name before. Two mentions are two facts where their attributes differ.
    """
    count = next((c.number for c in counts(text) if c.head in GENERIC), None)
    facts: list[Fact] = []
    for words, negated in _whole_sentences(text):
        marks = _marks(words, negated, lexicon)
        if any(m.kind == "name" for m in marks):
            for fact, again in _read_sentence(words, marks):
                _add(facts, fact, again)
        elif facts and words[0] in {"it", "they", "this"}:
            for mark in marks:
                facts[-1] = _with(facts[-1], mark)
    return tuple(dict.fromkeys(replace(f, count=count) for f in facts))


def _whole_sentences(text: str) -> Iterator[tuple[tuple[str, ...], tuple[bool, ...]]]:
    """Clauses joined again into sentences, now with their negation known and a "," between clauses."""
    for _, parts in groupby(clauses(text), key=lambda clause: clause.sentence):
        first, *others = parts
        words, negated = first.words, first.negated
        for clause in others:
            words += (",", *clause.words)
            negated += (False, *clause.negated)
        yield words, negated


def _marks(words: tuple[str, ...], negated: tuple[bool, ...], lexicon: Lexicon) -> list[_TermSpan]:
    names = list(spans(words, lexicon.names))
    taken = {i for start, end, _ in names for i in range(start, end)}  # the "left" of "left lung" is no attribute
    marks = [_TermSpan(start, end, "name", name) for start, end, name in names if not negated[end - 1]]
    for kind, values in (("size", lexicon.sizes), ("side", lexicon.sides), ("brightness", lexicon.brightness)):
        for start, end, value in spans(words, values):
            if not taken & set(range(start, end)) and not negated[start]:
                marks.append(_TermSpan(start, end, kind, value))
    return sorted(marks, key=lambda m: m.start)


def _read_sentence(words: tuple[str, ...], marks: list[_TermSpan]) -> Iterator[tuple[Fact, bool]]:
    """(fact, whether the text speaks of it again: "the kidney" after "a kidney") for each name of one sentence."""
    names = [m for m in marks if m.kind == "name"]
    owned: dict[int, list[_TermSpan]] = {n.start: [] for n in names}
    loose: list[_TermSpan] = []
    following: _TermSpan | None = None
    for mark in reversed(marks):  # attributes that run up to a name, with nothing but "and" between, are its own
        if mark.kind == "name":
            following = mark
        elif following and set(words[mark.end : following.start]) <= _inside(words, marks, mark.end, following.start):
            owned[following.start].insert(0, mark)
        else:
            following = None
            loose.insert(0, mark)
    for mark in sorted(loose, key=lambda m: m.start < names[0].start):  # what opens the sentence fills what is left
        for name in _owners(words, names, mark):
            if all(m.kind != mark.kind for m in owned[name.start]):
                owned[name.start].append(mark)
    for name in names:
        fact = Fact(name.value)
        for mark in owned[name.start]:
            fact = _with(fact, mark)
        before = words[: min([m.start for m in owned[name.start] if m.end <= name.start] + [name.start])]
        yield fact, bool(before) and before[-1] in {"the", "this", "that", "its"}


def _inside(words: tuple[str, ...], marks: list[_TermSpan], start: int, end: int) -> set[str]:
    """Words that may stand between an attribute and the name it belongs to: other attributes, "and", "very"."""
    others = {w for m in marks if m.kind != "name" and start <= m.start < end for w in words[m.start : m.end]}
    return others | {"and", "very", "rather", "quite"}


def _owners(words: tuple[str, ...], names: list[_TermSpan], mark: _TermSpan) -> list[_TermSpan]:
    """The names that an attribute standing apart from them is said of."""
    before, after = [n for n in names if n.end <= mark.start], [n for n in names if n.start >= mark.end]
    if not before:
        return names if mark.kind == "side" else after[:1]
    if after:  # between two names: after a "," or "and" it opens the next part ("... and on the right a liver")
        gap = words[before[-1].end : mark.start]
        opened = {",", "and", "with"} & set(gap) and not set(words[mark.end : after[0].start]) & {",", "and"}
        if opened and mark.kind == "side":
            return after[:1]
    if {"are", "were"} & set(words[before[-1].end : mark.start]):
        return before
    return before[-1:]


def _with(fact: Fact, mark: _TermSpan) -> Fact:
    return Fact(**{mark.kind: mark.value, **fact.to_json()})  # what the fact states already, stays


def _add(facts: list[Fact], fact: Fact, again: bool) -> None:
    """Append, or merge with an earlier fact of the same name that it repeats or completes."""
    kinds = ("size", "side", "brightness")
    for at in reversed(range(len(facts))):
        old = facts[at]
        if old.name != fact.name:
            continue
        pairs = [(getattr(old, k), getattr(fact, k)) for k in kinds]
        bare = not any(a for a, _ in pairs) or not any(b for _, b in pairs)
        if (again or bare) and all(a is None or b is None or a == b for a, b in pairs):
            facts[at] = replace(old, **{k: a or b for k, (a, b) in zip(kinds, pairs, strict=True)})
            return
    facts.append(fact)

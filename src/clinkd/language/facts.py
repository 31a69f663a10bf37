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
    """The words in which a data set describes structures. Of nested names ("lung", "left lung") the longest counts."""

    names: tuple[str, ...]
    sizes: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    brightness: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _TermSpan:
    """A name or an attribute in a sentence; `start` and `end` count the words of the sentence."""

    start: int
    end: int
    kind: str  # name, size, side, brightness
    value: str


def read_facts(text: str, lexicon: Lexicon) -> tuple[Fact, ...]:
    """The facts that a text states of the names in the lexicon, in order of mention; denied mentions state nothing.

    In a clause with one name, all attributes of the clause belong to it. In a clause with several names, attributes
    directly before a name belong to it ("a small bright kidney and a dark liver"), a side before the first name belongs
    to all names without another side ("on the left a kidney and a liver"), attributes after "are" belong to all names,
    and other attributes to the name before them. "It is ..." continues with the last name. Two mentions are two facts
    where their attributes differ.
    """
    count = next((c.number for c in counts(text) if c.head in GENERIC), None)
    facts: list[Fact] = []
    for words, negated in _join_clauses(text):
        terms = _find_terms(words, negated, lexicon)
        if any(m.kind == "name" for m in terms):
            for fact, again in _read_sentence(words, terms):
                _merge_fact(facts, fact, again)
        elif facts and words[0] in {"it", "they", "this"}:
            for term in terms:
                facts[-1] = _add_attribute(facts[-1], term)
    return tuple(dict.fromkeys(replace(f, count=count) for f in facts))


def _join_clauses(text: str) -> Iterator[tuple[tuple[str, ...], tuple[bool, ...]]]:
    """Sentences and which of their words are denied or left open, joined from clauses with "," between them."""
    for _, parts in groupby(clauses(text), key=lambda clause: clause.sentence):
        words: tuple[str, ...] = ()
        unaffirmed: tuple[bool, ...] = ()
        for clause in parts:
            words += (*((",",) if words else ()), *clause.words)
            unaffirmed += (*((False,) if unaffirmed else ()), *map(max, clause.negated, clause.uncertain))
        yield words, unaffirmed


def _find_terms(words: tuple[str, ...], negated: tuple[bool, ...], lexicon: Lexicon) -> list[_TermSpan]:
    names = list(spans(words, lexicon.names))
    taken = {i for start, end, _ in names for i in range(start, end)}  # the "left" of "left lung" is no attribute
    terms = [_TermSpan(start, end, "name", name) for start, end, name in names if not negated[end - 1]]
    for kind, values in (("size", lexicon.sizes), ("side", lexicon.sides), ("brightness", lexicon.brightness)):
        for start, end, value in spans(words, values):
            if not taken & set(range(start, end)) and not negated[start]:
                terms.append(_TermSpan(start, end, kind, value))
    return sorted(terms, key=lambda m: m.start)


def _read_sentence(words: tuple[str, ...], terms: list[_TermSpan]) -> Iterator[tuple[Fact, bool]]:
    """For each name of a sentence, its fact, and whether the text mentions it again: "the kidney" after "a kidney"."""
    names = [m for m in terms if m.kind == "name"]
    owned: dict[int, list[_TermSpan]] = {n.start: [] for n in names}
    loose: list[_TermSpan] = []
    following: _TermSpan | None = None
    for term in reversed(terms):  # attributes directly before a name, or with "and" between, belong to it
        if term.kind == "name":
            following = term
        elif following and set(words[term.end : following.start]) <= _fillers(words, terms, term.end, following.start):
            owned[following.start].insert(0, term)
        else:
            following = None
            loose.insert(0, term)
    for term in sorted(loose, key=lambda m: m.start < names[0].start):  # those that open the sentence come last
        for name in _find_owners(words, names, term):
            if all(m.kind != term.kind for m in owned[name.start]):
                owned[name.start].append(term)
    for name in names:
        fact = Fact(name.value)
        for term in owned[name.start]:
            fact = _add_attribute(fact, term)
        before = words[: min([m.start for m in owned[name.start] if m.end <= name.start] + [name.start])]
        yield fact, bool(before) and before[-1] in {"the", "this", "that", "its"}


def _fillers(words: tuple[str, ...], terms: list[_TermSpan], start: int, end: int) -> set[str]:
    """Words that may be between an attribute and its name: other attributes, "and", "very"."""
    others = {w for m in terms if m.kind != "name" and start <= m.start < end for w in words[m.start : m.end]}
    return others | {"and", "very", "rather", "quite"}


def _find_owners(words: tuple[str, ...], names: list[_TermSpan], term: _TermSpan) -> list[_TermSpan]:
    """The names that a separate attribute describes."""
    before, after = [n for n in names if n.end <= term.start], [n for n in names if n.start >= term.end]
    if not before:
        return names if term.kind == "side" else after[:1]
    if after:  # between two names: after "," or "and" it begins the next part ("... and on the right a liver")
        gap = words[before[-1].end : term.start]
        opened = {",", "and", "with"} & set(gap) and not set(words[term.end : after[0].start]) & {",", "and"}
        if opened and term.kind == "side":
            return after[:1]
    if {"are", "were"} & set(words[before[-1].end : term.start]):
        return before
    return before[-1:]


def _add_attribute(fact: Fact, term: _TermSpan) -> Fact:
    return Fact(**{term.kind: term.value, **fact.to_json()})  # attributes that the fact has already stay


def _merge_fact(facts: list[Fact], fact: Fact, again: bool) -> None:
    """Append a fact, or merge it with an earlier fact of the same name that it repeats or completes."""
    kinds = ("size", "side", "brightness")
    for i in reversed(range(len(facts))):
        old = facts[i]
        if old.name != fact.name:
            continue
        pairs = [(getattr(old, k), getattr(fact, k)) for k in kinds]
        bare = not any(a for a, _ in pairs) or not any(b for _, b in pairs)
        if (again or bare) and all(a is None or b is None or a == b for a, b in pairs):
            facts[i] = replace(old, **{k: a or b for k, (a, b) in zip(kinds, pairs, strict=True)})
            return
    facts.append(fact)

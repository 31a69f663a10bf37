"""What a text says is not there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from clinkd.language.words import AUXILIARY, DETERMINERS, GENERIC, NUMBERS, PLACES, VERBS, sentences, singular, spans


def mentions(text: str, name: str) -> bool:
    """The name stands in the text, at word boundaries, case and a regular plural aside; negated or not."""
    return bool(mentioned_names(text, (name,)))


def mentioned_names(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names a text mentions, negated or not, once each, in order of appearance; of nested names only the longest
    counts, so that "left lung" does not name "lung"."""
    names = tuple(names)
    return tuple(dict.fromkeys(n for clause in clauses(text) for _, _, n in spans(clause.words, names)))


def affirmed_names(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """As `mentioned_names`, but only the names that the text affirms somewhere."""
    names = tuple(names)
    affirmed = (
        name for clause in clauses(text) for _, end, name in spans(clause.words, names) if not clause.negated[end - 1]
    )
    return tuple(dict.fromkeys(affirmed))


# In the manner of NegEx (Chapman 2001): a trigger, a direction, and a scope that ends with the clause.
_NEGATORS = {
    *("no", "not", "without", "never", "neither", "nor", "cannot", "lack", "lacks", "lacking", "excluding", "denies"),
    *("isnt", "arent", "wasnt", "werent", "doesnt", "dont", "didnt", "cant", "couldnt", "hasnt", "havent", "none"),
}
_NEGATOR_PAIRS = {("absence", "of"), ("free", "of"), ("negative", "for"), ("rather", "than"), ("instead", "of")}
_NOT_NEGATORS = {("not", "only"), ("no", "doubt"), ("without", "doubt"), ("not", "just"), ("not", "merely")}
_PERCEIVED = {
    *("seen", "visible", "present", "found", "identified", "detected", "visualized", "visualised", "observed"),
    *("evident", "noted", "demonstrated", "shown", "depicted", "there", "apparent", "appreciated"),
}
_ABSENT = {"absent", "missing", "nonexistent"}
_TURNS = {"but", "however", "although", "though", "whereas", "while", "yet", "except", "because", "which"}
_UNSAID = {  # words that carry no finding: agreement on them, or their negation, means nothing
    *_NEGATORS, *_PERCEIVED, *_ABSENT, *AUXILIARY, *_TURNS, *PLACES, *DETERMINERS, *VERBS, *GENERIC, ",",
    *("and", "or", "of", "to", "for", "from", "by", "with", "as", "any", "some", "all", "other", "another", "both"),
    *("here", "also", "only", "just", "i", "we", "you", "one", "ones", "each", "every", "very", "than", "then", "so"),
    *("evidence", "sign", "absence", "free", "negative", "image", "picture", "scan", "slice", "view", "photo", "box"),
    *("side", "half", "part", "portion", "located", "location", "positioned", "situated", "side", "sided", "hand"),
    *("what", "where", "find", "see", "finds", "sees", "look", "looking", "answer", "yes", "if", "who", "when"),
    *("rather", "instead", "patient", "patients", "given", "marked", "indicated", "question", "single", "out"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Clause:
    words: tuple[str, ...]  # without commas
    negated: tuple[bool, ...]
    sentence: int


def carries_finding(word: str) -> bool:
    return word not in _UNSAID and singular(word) not in _UNSAID


def split_clauses(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Clauses of a sentence. A comma or an "and" parts two clauses only where a new subject with its verb follows,
    so that "no mass, nodule or effusion is seen" stays whole and "no mass, the liver is large" does not."""
    start, after_head = 0, words[0] in {"yes", "no"} and len(words) > 1 and words[1] == ","
    for at, word in enumerate(words):
        rest = words[at + 1 :]
        if after_head and at == 1:
            yield words[:1]
            start = 2
        elif not _turns(word, rest) or all(w == "," for w in words[start:at]):
            continue
        else:
            yield words[start:at]
            start = at + 1
    if any(w != "," for w in words[start:]):
        yield words[start:]


def _turns(word: str, rest: tuple[str, ...]) -> bool:
    """A clause ends at this word: "but", or "," or "and" before "the liver is large ..."."""
    if word not in {",", "and"} or not rest or rest[0] not in DETERMINERS | PLACES:
        return word in _TURNS
    stop = rest.index(",") if "," in rest else len(rest)
    return any(w in VERBS for w in rest[:stop])


@lru_cache(maxsize=65536)
def clauses(text: str) -> tuple[_Clause, ...]:
    found = []
    for number, sentence in enumerate(sentences(text)):
        for part in split_clauses(sentence):
            words = tuple(w for w in part if w != ",")
            found.append(_Clause(words, negated_words(words), number))
    return tuple(found)


def negated_words(words: tuple[str, ...]) -> tuple[bool, ...]:
    """Which words of a clause are denied."""
    denied = [False] * len(words)
    for at, word in enumerate(words):
        pair = words[at : at + 2]
        if word == "non" and at + 1 < len(words):
            denied[at + 1] = True
        elif word in _ABSENT or (words[at:] == ("none",)):
            _deny_before(words, denied, at) if any(carries_finding(w) for w in words[:at]) else _deny_after(
                words, denied, at + 1
            )
        elif pair in _NEGATOR_PAIRS:
            _deny_after(words, denied, at + 2)
        elif pair in (("ruled", "out"), ("is", "excluded"), ("are", "excluded")):
            _deny_before(words, denied, at)
        elif word in _NEGATORS and pair not in _NOT_NEGATORS:
            ahead = next((w for w in words[at + 1 :] if w not in AUXILIARY), "")
            mute = not any(carries_finding(w) for w in words[at + 1 :])  # "the mass: no", "the mass is not at [box]"
            if (mute or (ahead in _PERCEIVED and word != "no")) and any(carries_finding(w) for w in words[:at]):
                _deny_before(words, denied, at)  # "the mass is not seen in the liver" denies the mass, not the liver
            else:
                _deny_after(words, denied, at + 1)
    return tuple(denied)


def _deny_after(words: tuple[str, ...], denied: list[bool], start: int) -> None:
    said = False
    for at in range(start, len(words)):
        if said and words[at] in PLACES:
            return  # "no mass in the liver" leaves the liver standing; "it is not in the liver" does not
        denied[at] = True
        said = said or carries_finding(words[at]) or words[at] == "one"  # "no one is in the room"


def _deny_before(words: tuple[str, ...], denied: list[bool], stop: int) -> None:
    place, said = False, False
    for at in range(stop):
        if words[at] in PLACES:
            place, said = True, False
        elif place and said and words[at] in DETERMINERS:
            place = False
        said = said or (place and carries_finding(words[at]))
        denied[at] = denied[at] or not place


def yes_no_verdict(text: str) -> str:
    """The word "yes" or "no" where a text opens with it as an answer ("No, ...", "The answer is no."), else empty."""
    for clause in clauses(text)[:1]:
        words = clause.words
        for opening in (("the", "answer", "is"), ("answer", "is"), ("the", "answer"), ("answer",)):
            words = words[len(opening) :] if words[: len(opening)] == opening else words
        if words in (("yes",), ("no",)):
            return words[0]
    return ""


def carries_meaning(word: str) -> bool:
    """A normalised word that an answer can be right or wrong by; not "the", "is", "seen", "image"."""
    return carries_finding(word) or word in _NEGATORS or word in NUMBERS or word in {"yes", "both"}

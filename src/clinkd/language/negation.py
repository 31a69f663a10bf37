"""Which words and names a text denies, and which it leaves open.

"Unlikely", "less likely", "no longer" and "rather than" deny. What "cannot be excluded", is to be ruled out or stands
in a differential diagnosis is left open: neither denied nor affirmed. What is possible, probable or suspected is
affirmed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from clinkd.language.languages import read_verdict
from clinkd.language.words import AUXILIARY, DETERMINERS, GENERIC, NUMBERS, PLACES, VERBS, sentences, singular, spans


def mentions(text: str, name: str) -> bool:
    """Whether the name is in the text, denied or not, in any case and in the regular plural."""
    return bool(mentioned_names(text, (name,)))


def mentioned_names(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names that a text mentions, denied or not, once each, in order of appearance. Of nested names only the
    longest counts, so that "left lung" does not mention "lung"."""
    names = tuple(names)
    return tuple(dict.fromkeys(n for clause in clauses(text) for _, _, n in spans(clause.words, names)))


def affirmed_names(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """Like `mentioned_names`, but only names that the text affirms at least once."""
    names = tuple(names)
    affirmed = (
        name
        for clause in clauses(text)
        for _, end, name in spans(clause.words, names)
        if not clause.negated[end - 1] and not clause.uncertain[end - 1]
    )
    return tuple(dict.fromkeys(affirmed))


# Like NegEx (Chapman 2001): a trigger, a direction, and a scope that ends with the clause.
_NEGATORS = {
    *("no", "not", "without", "never", "neither", "nor", "cannot", "lack", "lacks", "lacking", "excluding", "denies"),
    *("isnt", "arent", "wasnt", "werent", "doesnt", "dont", "didnt", "cant", "couldnt", "hasnt", "havent", "none"),
    "nothing",
}
_NEGATOR_PAIRS = {("absence", "of"), ("free", "of"), ("negative", "for"), ("rather", "than"), ("instead", "of")}
_NOT_NEGATORS = {("not", "only"), ("no", "doubt"), ("without", "doubt"), ("not", "just"), ("not", "merely")}
_PERCEIVED = {
    *("seen", "visible", "present", "found", "identified", "detected", "visualized", "visualised", "observed"),
    *("evident", "noted", "demonstrated", "shown", "depicted", "there", "apparent", "appreciated"),
}
_ABSENT = {"absent", "missing", "nonexistent"}
# Phrases of several words, or whose direction depends on what stands beside them. What they deny or leave open stands
# behind them (after), before them, or behind them if a finding follows, else before them (either).
_UNLIKELY = {"unlikely", "improbable", "doubtful"}
_PHRASES = (
    ("uncertain", "before", r"(?:cannot|cant|can not|could not|couldnt|should|must|to)(?: \w+ly)? be(?: \w+ly)? _OUT"),
    ("uncertain", "before", r"not (?:been )?(?:\w+ly )?_OUT"),
    ("uncertain", "after", r"(?:cannot |cant |can not |could not |couldnt |not |to )*(?:\w+ly )?(?:exclude|rule out)"),
    ("uncertain", "after", r"differentials?(?: diagnos[ie]s| considerations?)*"),
    ("denied", "before", r"(?:is|are|was|were|been)(?: \w+ly)? _OUT"),
    ("denied", "either", r"(?:rules|ruled|ruling) out|excludes"),
    ("denied", "either", rf"(?:{'|'.join(_UNLIKELY)}|less likely|not likely|isnt likely|no longer)"),
    ("denied", "after", r"more likely(?: \w+)+? than"),
    ("denied", "after", r"more likely than"),
    ("denied", "after", r"low (?:probability|likelihood|suspicion) (?:of|for)"),
    ("denied", "after", r"(?:argues?|arguing|evidence) against|(?:fails?|failed) to"),
)
_COMPILED_PHRASES = [
    (kind, side, re.compile(rf"\b(?:{pattern.replace('_OUT', '(?:excluded|ruled out)')})\b"))
    for kind, side, pattern in _PHRASES
]
_CLAUSE_ENDS = {"but", "however", "although", "though", "whereas", "while", "yet", "except", "because", "which"}
_EMPTY_WORDS = {  # words without a finding: to agree on them or to deny them means nothing
    *_NEGATORS, *_PERCEIVED, *_ABSENT, *AUXILIARY, *_CLAUSE_ENDS, *PLACES, *DETERMINERS, *VERBS, *GENERIC, ",",
    *("and", "or", "of", "to", "for", "from", "by", "with", "as", "any", "some", "all", "other", "another", "both"),
    *("here", "also", "only", "just", "i", "we", "you", "one", "ones", "each", "every", "very", "than", "then", "so"),
    *("evidence", "sign", "absence", "free", "negative", "image", "picture", "scan", "slice", "view", "photo", "box"),
    *("side", "half", "part", "portion", "located", "location", "positioned", "situated", "side", "sided", "hand"),
    *("what", "where", "find", "see", "finds", "sees", "look", "looking", "answer", "yes", "if", "who", "when"),
    *("rather", "instead", "patient", "patients", "given", "marked", "indicated", "question", "single", "out"),
    *("likely", "probably", "possibly", "longer", "excluded", "ruled", "less", *_UNLIKELY),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Clause:
    words: tuple[str, ...]  # without commas
    negated: tuple[bool, ...]
    sentence: int
    uncertain: tuple[bool, ...]  # neither denied nor affirmed


def carries_finding(word: str) -> bool:
    return word not in _EMPTY_WORDS and singular(word) not in _EMPTY_WORDS


def split_clauses(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Clauses of a sentence. A comma or "and" ends a clause only before a new subject with its verb, so that
    "no mass, nodule or effusion is seen" is one clause and "no mass, the liver is large" is two."""
    start, after_head = 0, read_verdict(words[0]) is not None and words[1:2] == (",",)
    for i, word in enumerate(words):
        rest = words[i + 1 :]
        if after_head and i == 1:
            yield words[:1]
            start = 2
        elif not (_ends_clause(word, rest) or (word == "," and words[i - 1] in _UNLIKELY | {"likely"})) or all(
            w == "," for w in words[start:i]
        ):
            continue
        else:
            yield words[start:i]
            start = i + 1
    if any(w != "," for w in words[start:]):
        yield words[start:]


def _ends_clause(word: str, rest: tuple[str, ...]) -> bool:
    """Whether a clause ends at this word: at "but", or at "," or "and" before "the liver is large ..."."""
    if word not in {",", "and"} or not rest or rest[0] not in DETERMINERS | PLACES:
        return word in _CLAUSE_ENDS
    stop = rest.index(",") if "," in rest else len(rest)
    return any(w in VERBS for w in rest[:stop])


@lru_cache(maxsize=65536)
def clauses(text: str) -> tuple[_Clause, ...]:
    clause_list = []
    for number, sentence in enumerate(sentences(text)):
        for part in split_clauses(sentence):
            words = tuple(w for w in part if w != ",")
            denied, uncertain = _read_denials(words)
            clause_list.append(_Clause(words, denied, number, uncertain))
    return tuple(clause_list)


def negated_words(words: tuple[str, ...]) -> tuple[bool, ...]:
    """For each word of a clause, whether it is denied."""
    return _read_denials(words)[0]


@lru_cache(maxsize=65536)
def _read_denials(words: tuple[str, ...]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """For each word of a clause, whether it is denied, and whether it is left open."""
    marked = {kind: [False] * len(words) for kind in ("denied", "uncertain")}
    consumed = _mark_phrases(words, marked)
    denied = marked["denied"]
    for i, word in enumerate(words):
        if i in consumed:
            continue
        pair, before, after = words[i : i + 2], words[:i], words[i + 1 :]
        if word == "non" and after:
            denied[i + 1] = True
        elif word in _ABSENT or words[i:] == ("none",):
            if _carry_finding(before):
                _deny_before(words, denied, i)
            else:
                _deny_after(words, denied, i + 1)
        elif pair in _NEGATOR_PAIRS:
            _deny_after(words, denied, i + 2)
        elif word in _NEGATORS and pair not in _NOT_NEGATORS:
            follower = next((w for w in after if w not in AUXILIARY), "")
            comes_last = not _carry_finding(after)  # "the mass: no", "the mass is not at [box]"
            if (comes_last or (follower in _PERCEIVED and word != "no")) and _carry_finding(before):
                _deny_before(words, denied, i)  # "the mass is not seen in the liver": only the mass is denied
            else:
                _deny_after(words, denied, i + 1)
    return tuple(denied), tuple(marked["uncertain"])


def _mark_phrases(words: tuple[str, ...], marked: dict[str, list[bool]]) -> set[int]:
    """Mark what the phrases deny or leave open. Returns the places of the phrases' own words."""
    text, consumed = " ".join(words), set[int]()
    for kind, side, pattern in _COMPILED_PHRASES:
        for match in pattern.finditer(text):
            start, end = text.count(" ", 0, match.start()), text.count(" ", 0, match.end()) + 1
            if consumed & {*range(start, end)}:
                continue
            consumed |= {*range(start, end)}
            after = [w for w in words[end:] if w not in AUXILIARY | {"for", "a", "an", "the"}][:1]
            if side == "after" or (side == "either" and (after == ["that"] or _carry_finding(tuple(after)))):
                _deny_after(words, marked[kind], end)
            else:
                _deny_before(words, marked[kind], start)
    return consumed


def _carry_finding(words: tuple[str, ...]) -> bool:
    return any(carries_finding(w) for w in words)


def _deny_after(words: tuple[str, ...], denied: list[bool], start: int) -> None:
    has_finding = False
    for i in range(start, len(words)):
        if has_finding and words[i] in PLACES:
            return  # "no mass in the liver" does not deny the liver; "it is not in the liver" does
        denied[i] = True
        has_finding = has_finding or carries_finding(words[i]) or words[i] == "one"  # "no one is in the room"


def _deny_before(words: tuple[str, ...], denied: list[bool], stop: int) -> None:
    place, has_finding = False, False
    for i in range(stop):
        if words[i] in PLACES:
            place, has_finding = True, False
        elif place and has_finding and words[i] in DETERMINERS:
            place = False
        has_finding = has_finding or (place and carries_finding(words[i]))
        denied[i] = denied[i] or not place


def yes_no_verdict(text: str) -> str:
    """ "yes" or "no" if a text begins with this answer ("No, ...", "The answer is no.", "Ja"), otherwise ""."""
    for clause in clauses(text)[:1]:
        words = clause.words
        for opening in (("the", "answer", "is"), ("answer", "is"), ("the", "answer"), ("answer",)):
            words = words[len(opening) :] if words[: len(opening)] == opening else words
        if len(words) == 1 and (verdict := read_verdict(words[0])):
            return verdict
    return ""


def denies(text: str) -> bool:
    """Whether a text denies anything, as "no", "not there", "absent" and "there is no mass" do."""
    return any(any(c.negated) or c.words in _BARE_DENIALS for c in clauses(text)) or yes_no_verdict(text) == "no"


_BARE_DENIALS = {(word,) for word in (*_NEGATORS, *_ABSENT, "nothing", "nowhere", "negative")}


def carries_meaning(word: str) -> bool:
    """Whether a normalised word can make an answer right or wrong; not "the", "is", "seen", "image"."""
    return carries_finding(word) or word in _NEGATORS or word in NUMBERS or word in {"yes", "both"}

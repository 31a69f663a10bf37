"""Yes or no, as an answer itself states it; the truth is never asked.

A statement is "yes" or "no" that stands alone ("No.", "Based on the image, yes."), opens the answer ("Yes, there is",
"No, ..."), or what an English question asked, said or denied in its own words: "There is no mass" and "No evidence of a
mass" answer "Is there a mass?" with no. A "no" that denies something else ("a large mass; no effusion") is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby

from clinkd.language.languages import Language, Verdict, find_language, list_languages
from clinkd.language.negation import carries_finding, clauses
from clinkd.language.words import AUXILIARY, DETERMINERS, PLACES, VERBS, sentences, singular

_JOINING = frozenset({",", "or", "and", "oder", "und", "ou", "et", "o", "y", "e"})  # in "yes or no"
# words before a statement: "I think yes", "My answer to this question is no"
_OPENINGS = DETERMINERS | AUXILIARY | {
    *("my", "final", "correct", "answer", "response", "conclusion", "question", "is", "would", "be", "i", "think"),
    *("believe", "say", "guess", "probably", "likely", "most", "well", "so", "thus", "therefore", "hence", "of", ","),
}  # fmt: skip
# what may follow "no" where it is an answer, and does not deny the next word: "No there is not", "No it isn't"
_SUBJECTS = {"there", "theres", "it", "its", "this", "that", "these", "those", "they", "the", "i", "we", "a", "an"}
_DASHES = re.compile(r"\s[-–—]+\s|[()\[\]/]")  # as good as a comma
_PICTURE = frozenset({"chest", "xray", "x", "ray", "radiograph", "ct", "mri", "mr", "film"})
_PREAMBLE = PLACES | {"based", "according", "to", "the", "this", "a", "an", "image", "picture", "scan", *_PICTURE}
_EXISTS = {
    "there",
    "theres",
    "it",
    "they",
    "that",
    "these",
    "those",
    "no",
    "is",
    "are",
}  # with what a repeated question begins
# words between two that cannot change places: "smaller than", "left of"
_RELATING = {"than", "of", "to", "from", "by", "before", "after", "behind", "into", "toward", "towards"}
_NOT_ALL = {"other", "another"}  # "no other mass" leaves open whether there is one
_OPEN_VERBS = {"may", "might", "could", "would", "should", "cannot", "cant"}


def read_yes_no(answer: str, question: str = "", truth: str = "") -> Verdict | None:
    """What an answer says, None where it says neither, or both. Words for yes and no count in English and in the
    language of the question, or where that is unknown or has no such truth, in those in which `truth` is yes or no."""
    english, others = list_languages()[0], _list_other_languages(question, truth)
    verdicts = {word: verdict for language in (english, *others) for word, verdict in language.verdicts.items()}
    firm = {word for language in others for word in language.verdicts} | {*verdicts} - {"no"}
    parts = sentences(_DASHES.sub(", ", answer))
    words = [word for part in parts for word in part]
    if {verdicts.get(word) for word in words} >= {"yes", "no"} and all(w in verdicts or w in _JOINING for w in words):
        return None
    stated = [_read_statement(part, verdicts, firm) for part in parts]
    if any(stated):
        return stated[0] or (next(filter(None, stated)) if len({*stated} - {None}) == 1 else None)
    return _read_echo(answer, question)


def _list_other_languages(question: str, truth: str) -> list[Language]:
    """The languages beside English in which an answer may say yes or no. "non" is no "no" in English."""
    english, *others = list_languages()
    asked = find_language(question)
    if asked in others:
        return [asked] if asked else []
    word = "".join(word for part in sentences(truth) for word in part)
    return [] if word in english.verdicts else [language for language in others if word in language.verdicts]


def _read_statement(part: Sequence[str], verdicts: Mapping[str, Verdict], firm: set[str]) -> Verdict | None:
    """The yes or no that a sentence opens with, or that stands alone behind its last comma. firm: words that are a
    statement whatever follows; the English "no" may deny the next word alone."""
    words = _drop_openings(part, verdicts)
    verdict = verdicts.get(words[0]) if words else None
    if verdict:
        rest = words[1:]
        if len(rest) > 1 and rest[0] in _JOINING - {","} and rest[1] in verdicts:
            return None  # "yes and no"
        return verdict if words[0] in firm or not rest or rest[0] == "," or rest[0] in _SUBJECTS else None
    last = _drop_openings([list(piece) for _, piece in groupby(part, key=lambda word: word == ",")][-1], verdicts)
    return verdicts.get(last[0]) if len(last) == 1 else None


def _drop_openings(words: Sequence[str], verdicts: Mapping[str, Verdict]) -> Sequence[str]:
    start = next((i for i, word in enumerate(words) if word in verdicts or word not in _OPENINGS), len(words))
    return words[start:]


def _read_echo(answer: str, question: str) -> Verdict | None:
    """What the first clause of an answer says of exactly what an English question asks: whether it is so, or denied."""
    asked = next((part for part in sentences(question) if part[0] in VERBS | {"did"}), ())
    said = next((clause for clause in clauses(answer) if any(map(carries_finding, clause.words))), None)
    if not asked or not said or {"or", *_OPEN_VERBS} & {*asked[1:], *said.words} or any(_read_negated(question)):
        return None
    heads, places = _split_places(asked)
    empty = _EXISTS | (_PICTURE - {*heads, *places})
    content = {singular(w): i for i, w in enumerate(said.words) if carries_finding(w) and w not in empty}
    if not heads or any(said.uncertain[i] for i in content.values()):
        return None
    if _NOT_ALL & ({*said.words} - {*asked}) or (_RELATING & {*asked} and not _keeps_order([*content], heads + places)):
        return None
    if any(said.negated[i] for i in content.values()):  # "no effusion" denies a pleural effusion, too
        return "no" if heads[-1] in content and content.keys() <= {*heads, *places} else None
    start = next((i for i, word in enumerate(said.words) if word not in _PREAMBLE), len(said.words))
    opens = said.words[start : start + 1]
    if not opens or (opens[0] not in _EXISTS and singular(opens[0]) not in heads):
        return None  # "The image shows a mass" describes
    return "yes" if content.keys() == {*heads, *places} else None


def _keeps_order(words: Sequence[str], asked: Sequence[str]) -> bool:
    """Whether the words stand in the order in which they are asked; others beside them do not count."""
    rest = iter(asked)
    return all(word in rest for word in words if word in asked)


def _read_negated(text: str) -> list[bool]:
    return [negated for clause in clauses(text) for negated in clause.negated]


def _split_places(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that a question asks about, and those that say where, each in the singular."""
    where = next((i for i, word in enumerate(words) if word in PLACES), len(words))
    heads, places = ([singular(w) for w in part if carries_finding(w)] for part in (words[:where], words[where:]))
    return heads, places

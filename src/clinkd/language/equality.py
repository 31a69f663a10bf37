"""Whether two short texts say the same: spelling, number, articles, abbreviations and the place of a side word aside.

Nothing else is put aside: a word more or less makes two texts differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from clinkd.language.spellings import get_spellings
from clinkd.language.words import AUXILIARY, NUMBERS, PLACES, VERBS, sentences, singular

_ARTICLES = {"the", "a", "an"}
_SIDES = {"left", "right", "both"}
_SPELT = {  # other words for a side; rightmost and the like are places of their own
    **dict.fromkeys(("leftsided", "leftside", "lefthand"), "left"),
    **dict.fromkeys(("rightsided", "rightside", "righthand"), "right"),
    **dict.fromkeys(("bilateral", "bilaterally"), "both"),
}
_AFTER_SIDE = {"side", "sided", "sides"}
_BEFORE_SIDE = {"on", "in", "at", "to"}
_POSITIONS = {  # adjectives that may stand before or behind a side word: "lower left lobe"
    *("upper", "lower", "middle", "mid", "anterior", "posterior", "medial", "lateral", "superior", "inferior"),
    *("inner", "outer", "proximal", "distal", "main"),
}
_BORDERS = {  # words that end a noun and what describes it
    *_ARTICLES, *PLACES, *VERBS, *AUXILIARY, *_SIDES, ",", "and", "or", "with", "without", "no", "not", "of", "from",
    *("for", "but", "there", "this", "that", "these", "those", "it", "its", "which", "than", "nor", "versus", "vs"),
}  # fmt: skip
_NO_NOUN = {",", ".", "and", "or"}
_FRAMES = (  # openings that say nothing: "This is the liver."
    *(("this", "is"), ("it", "is"), ("its",), ("these", "are"), ("there", "is"), ("there", "are"), ("they", "are")),
    *(("the", "image", "shows"), ("this", "image", "shows"), ("image", "shows")),
)


@lru_cache(maxsize=65536)
def unify(text: str) -> str:
    """The text in lower case, with abbreviations in full and each side word before its noun: "R kidney" and "kidney,
    on the right" become "right kidney". Sentences end with a full stop; words keep their spelling and number."""
    spellings = get_spellings()
    plain = [spellings.unify_phrases(" ".join(words)).split() for words in sentences(spellings.expand(text))]
    return " . ".join(" ".join(_front_sides(_spell_sides(words))) for words in plain)


@lru_cache(maxsize=65536)
def answer_key(text: str) -> tuple[str, ...]:
    """What makes two texts equal: their words in one spelling, numbers as digits, no articles and empty openings."""
    marked = unify(text).split()
    # nothing follows the A of "hepatitis A" and of "A and B": it is no article
    articles = {i for i, w in enumerate(marked[:-1]) if w in _ARTICLES and marked[i + 1] not in _NO_NOUN}
    words = [(i, w) for i, w in enumerate(marked) if w not in {",", "."}]
    frame = next((f for f in _FRAMES if tuple(w for _, w in words[: len(f)]) == f), ())
    kept = [w for i, w in words[len(frame) :] if i not in articles] or [w for _, w in words]
    return tuple(str(NUMBERS[w]) if w in NUMBERS else singular(w) for w in kept)


def says_same(answer: str, truth: str) -> bool:
    """Whether an answer says the same as the truth. Texts without a word ("?") are the same character by character, and
    an empty answer says nothing."""
    key = answer_key(answer)
    return key == answer_key(truth) and (key != () or answer.strip() == truth.strip() != "")


def _spell_sides(words: Sequence[str]) -> list[str]:
    """The words with one form for each side: "left-sided", "bilateral", "left and right" are "left", "both", "both"."""
    spelt: list[str] = []
    for word in words:
        word = _SPELT.get(word, word)
        if word in {"side", "sided"} and spelt[-1:] == ["hand"] and {*spelt[-2:-1]} & _SIDES:
            spelt.pop()  # "on the left-hand side"; a left hand is a part of the body
        if word == "sided" and spelt and spelt[-1] in _SIDES:
            continue
        if spelt[-1:] == ["and"] and {*spelt[-2:-1], word} == {"left", "right"}:
            spelt[-2:] = ["both"]
            continue
        spelt.append(word)
    return spelt


def _front_sides(words: list[str]) -> list[str]:
    """The words with each side word that stands behind its noun, or between its adjectives, before them."""
    fronted: list[str] = []
    i = 0
    while i < len(words):
        end = _end_of_side(words, i)
        if words[i] in _SIDES and fronted[-1:] and fronted[-1] in _POSITIONS:
            end = i + 1
        if end == len(words) and not fronted:  # "on the left side"
            return [next(w for w in words[i:] if w in _SIDES)]
        start = _find_noun_start(fronted) if end else len(fronted)
        if end is None or start == len(fronted):
            fronted.append(words[i])
            i += 1
            continue
        fronted.insert(start, next(w for w in words[i:end] if w in _SIDES))
        i = end
    return fronted


def _end_of_side(words: Sequence[str], start: int) -> int | None:
    """The end of a side that begins here and describes what stands before it: ", left", "on the left side"."""
    i = start
    for skipped in ({","}, _BEFORE_SIDE, {"the"}):
        i += i < len(words) and words[i] in skipped
    if i >= len(words) or words[i] not in _SIDES:
        return None
    i += 1
    while i < len(words) and words[i] in _AFTER_SIDE:
        i += 1
    # "left of the liver" and "on the left kidney" describe no word before them
    return i if i == len(words) or (words[i] in _BORDERS and words[i] not in {"of", "from"}) else None


def _find_noun_start(words: Sequence[str]) -> int:
    """Where the noun at the end of the words begins, with its adjectives; the number of words if none stands there, or
    if it has a side."""
    start = len(words)
    while start and words[start - 1] not in _BORDERS:
        start -= 1
    return len(words) if start and words[start - 1] in _SIDES else start

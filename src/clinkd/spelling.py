"""Find the word that a misspelt one was meant to be."""

import difflib
from collections.abc import Iterable

CLOSE = 0.75  # of difflib's ratio: one slip in four letters
LOOSE = 0.6  # for a few long names, such as knobs of a group
_MOST_LETTERS = 2  # too many or too few: patient age is no slip of patient
_SHORT = 3  # letters: most words of three letters are near some other, as oct is to ct


def find_near(word: str, words: Iterable[str], cutoff: float = CLOSE) -> str | None:
    """The word that a slip of the keys would turn into `word`: case and signs apart equal, or closely spelled.

    Words of two letters are near only to the same letters in another order, those of three only to words with the same
    first letter. A wrong hint is worse than none.
    """
    spellings = {_strip(known): known for known in reversed([*words])}
    key = _strip(word)
    if key in spellings:
        return spellings[key]
    long = [spelling for spelling in spellings if _is_comparable(spelling, key)]
    mixed = [spelling for spelling in spellings if len(key) > 1 and sorted(spelling) == sorted(key)]
    near = mixed or difflib.get_close_matches(key, long, n=1, cutoff=cutoff)
    return spellings[near[0]] if near else None


def _is_comparable(one: str, other: str) -> bool:
    shorter, longer = sorted((len(one), len(other)))
    return longer - shorter <= _MOST_LETTERS and (shorter > _SHORT or (shorter == _SHORT and one[0] == other[0]))


def suggest(word: str, words: Iterable[str], cutoff: float = CLOSE) -> str:
    """The near word as the end of a message: "; did you mean train?", "" without one."""
    near = find_near(word, words, cutoff)
    return f"; did you mean {near}?" if near else ""


def _strip(word: str) -> str:
    return "".join(c for c in word.casefold() if c.isalnum()) or word

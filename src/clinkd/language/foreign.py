"""Words for left, right, yes and no in other languages than English, which no check and no score reads."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clinkd.language.words import normalise
from clinkd.records import Sample

_SIDES = re.compile(
    r"link(?:e[mnrs]?|s(?:seitige?[mnrs]?)?)|recht(?:e[mnrs]?|s(?:seitige?[mnrs]?)?)|gauches?|droite?s?"
    r"|izquierd[oa]s?|derech[oa]s?|sinistr[oaie]|destr[oaie]|esquerd[oa]s?|direit[oa]s?"
)
_YES_AND_NO = frozenset({"ja", "nein", "oui", "non", "si", "sì", "sí", "nee", "sim", "não"})
_ENGLISH = frozenset({"the", "of", "and", "is", "are", "between"})  # beside them, "links" is an English word


def find_foreign_sides(text: str) -> list[str]:
    """The words of a text that mean left or right in German, French, Spanish, Italian or Portuguese."""
    words = normalise(text).split()
    is_english = not _ENGLISH.isdisjoint(words)
    return [word for word in words if _SIDES.fullmatch(word) and not (word == "links" and is_english)]


def explain_foreign_words(sample: Sample) -> Iterator[str]:
    """What is not read in a sample because its words are not English, as text for a count of samples."""
    texts = [*sample.names, *(text.words for turn in sample.turns for text in (turn.question, turn.answer))]
    if any(map(find_foreign_sides, texts)):
        yield (
            "samples with left or right in another language: only the English words are compared with boxes and turned "
            "by --turn-to; write left and right"
        )
    if any(normalise(turn.answer.text) in _YES_AND_NO for turn in sample.turns):
        yield "samples that answer yes or no in another language: only yes and no are scored as such; write these"

"""Sides in a language or in letters that no check reads: they are told, and not turned."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator

from clinkd.language.languages import find_language, list_sided, mentions_side
from clinkd.language.words import normalise
from clinkd.records import Sample

# words in letters that are not Latin; Greek and other letters may stand alone
_OTHER_LETTERS = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff]{3,}|[\u3040-\u9fff\uac00-\ud7af]")


def find_foreign_sides(text: str, beside: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Side words that no check reads, with their language: one without phrases, or another than that of the text.

    `beside`: languages of texts beside this one, in which a `shared` word counts, too. A word in other letters than
    Latin ones may be a side.
    """
    if mentions_side(text):
        own = find_language(text)
        for word in normalise(text).split():
            languages = list_sided(word)
            if own and own in languages and own.phrases is None:
                yield word, own.name
            elif own not in languages:
                for language in languages[:1]:
                    if word not in language.shared or language.name in beside:
                        yield word, f"{language.name} within {own.name if own else 'another'}"
    if letters := _OTHER_LETTERS.search(unicodedata.normalize("NFKC", text)):
        yield letters[0], f"{unicodedata.name(letters[0][0], 'OTHER').split()[0]} letters"


def list_foreign_languages(sample: Sample) -> list[str]:
    """The languages in which a sample names sides that no check reads."""
    texts = [*sample.names, *(text.words for turn in sample.turns for text in (turn.question, turn.answer))]
    return sorted({name for text in texts for _, name in find_foreign_sides(text)})


def explain_foreign_words(sample: Sample) -> Iterator[str]:
    """Yield what is not checked in a sample because of its language, as text for a count of samples."""
    for name in list_foreign_languages(sample):
        yield f"samples in {name}: sides are not checked in this language, and not turned by --turn-to"

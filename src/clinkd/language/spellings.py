"""Words that say the same (spelling twins, irregular plurals, abbreviations), from `spellings.yaml`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from clinkd.records import BadInput

_TABLE = Path(__file__).with_name("spellings.yaml")


@dataclass(frozen=True)
class SpellingTable:
    """The table, whose head explains its lists. `twins` and `phrases`: each word or phrase with its first one."""

    twins: Mapping[str, str]
    families: tuple[tuple[re.Pattern[str], str], ...]
    phrases: Mapping[str, str]
    abbreviations: tuple[tuple[re.Pattern[str], str], ...]

    def unify_word(self, word: str, stem: Callable[[str], str]) -> str:
        """The spelling that stands for a lower-case word and its plural. `stem` cuts regular plurals."""
        if word in self.twins:
            return self.twins[word]
        word = self._unify_family(word)
        word = self.twins.get(word) or stem(word)
        return self.twins.get(word, word)

    def _unify_family(self, word: str) -> str:
        for pattern, replacement in self.families:
            word = pattern.sub(replacement, word)
        return word

    def expand(self, text: str) -> str:
        """The text with its abbreviations written in full; case counts."""
        for pattern, words in self.abbreviations:
            text = pattern.sub(f" {words} ", text)
        return text

    def unify_phrases(self, sentence: str) -> str:
        """Normalised words with each phrase of the table replaced by its first one."""
        pattern = _compile_phrases(tuple(self.phrases))
        return pattern.sub(lambda match: self.phrases[match[0]], sentence)


@cache
def _compile_phrases(phrases: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(map(re.escape, phrases), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(longest_first)})\b")


def read_spellings(file: Path) -> SpellingTable:
    """The table of a file. Raises BadInput that says what is wrong with it."""
    try:
        table = yaml.load(file.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        twins, phrases = (_give_firsts(table[key]) for key in ("twins", "phrases"))
        patterns = [tuple((re.compile(p), words) for p, words in table[key]) for key in ("families", "abbreviations")]
    except (AttributeError, KeyError, TypeError, ValueError, re.error, yaml.YAMLError) as error:
        raise BadInput(f"{file}: {error!r}; correct it as the head of the file says") from None
    return SpellingTable(twins, patterns[0], phrases, patterns[1])


def _give_firsts(lists: list[list[str]]) -> dict[str, str]:
    firsts: dict[str, str] = {}
    for words in lists:
        for word in words:
            if not isinstance(word, str) or firsts.setdefault(word, words[0]) != words[0]:
                raise ValueError(f"{word!r} is no text, or stands in two lists")
    return firsts


@cache
def get_spellings() -> SpellingTable:
    """The packaged table."""
    return read_spellings(_TABLE)

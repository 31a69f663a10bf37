"""The languages of data: their words for left, right, yes and no, and usual heads of columns, from `languages.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from clinkd.language.words import normalise, sentences
from clinkd.records import BadInput

TABLE = Path(__file__).with_name("languages.yaml")
Half = Literal["left", "right"]
Verdict = Literal["yes", "no"]
_NEVER = "(?!)"  # an empty list of phrases: matches nowhere


@dataclass(frozen=True)
class Phrases:
    """Where a side word is no plain side: one pattern for each list of that name in the table, which explains them."""

    after_image: re.Pattern[str]
    after_patient: re.Pattern[str]
    after_unclear: re.Pattern[str]
    before_image: re.Pattern[str]
    before_patient: re.Pattern[str]
    before_unclear: re.Pattern[str]
    asks_image: re.Pattern[str]
    asks_patient: re.Pattern[str]
    frame: re.Pattern[str]
    names: re.Pattern[str]
    idioms: re.Pattern[str]
    other_view: re.Pattern[str]
    one_sided: re.Pattern[str]
    relating: re.Pattern[str]
    pieces: re.Pattern[str]
    denying: re.Pattern[str]
    unsafe: tuple[tuple[re.Pattern[str], str], ...]  # with the reason


@dataclass(frozen=True)
class Language:
    """A section of the table. `phrases` None: its sides are told, and neither compared with boxes nor turned."""

    name: str
    pairs: tuple[tuple[str, ...], ...]  # left, right and perhaps the gender of this form of right
    common: re.Pattern[str]
    shared: frozenset[str]
    verdicts: Mapping[str, Verdict]  # words for yes and no
    heads: Mapping[str, str]
    genders: Mapping[str, re.Pattern[str]]
    both: re.Pattern[str]
    phrases: Phrases | None

    @cached_property
    def halves(self) -> dict[str, Half]:
        """The half that each side word means."""
        return {word: half for pair in self.pairs for word, half in zip(pair, get_args(Half), strict=False)}

    @cached_property
    def side_word(self) -> re.Pattern[str]:
        """Finds side words; "_" ends a word, too."""
        return re.compile(rf"(?<![^\W_])(?:{_join_longest_first(self.halves)})(?![^\W_])", re.I)

    def find_opposite(self, text: str, start: int, end: int) -> str | None:
        """The word for the other side of text[start:end], in lower case; None if its gender is not known."""
        word = text[start:end].lower()
        forms = {pair[2:]: pair[word == pair[0]] for pair in self.pairs if word in pair[:2]}
        if len({*forms.values()}) == 1:
            return next(iter(forms.values()))
        for before in reversed(re.findall(r"[^\W\d_]+", text[:start].lower())):
            for (gender,), form in forms.items():
                if self.genders[gender].fullmatch(before):
                    return form
        return None

    def read_sides(self, text: str) -> frozenset[Half]:
        """The sides that a text states; a sentence with a word that denies states none."""
        stated: set[Half] = set()
        for sentence in map(" ".join, sentences(text)):
            if self.phrases and not self.phrases.denying.search(sentence):
                stated.update(get_args(Half) if self.both.search(sentence) else ())
                stated.update(self.halves[word] for word in sentence.split() if word in self.halves)
        return frozenset(stated)


def _join_longest_first(words: Mapping[str, Half]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


# ---- the table ------------------------------------------------------------------------------------------------------


def read_languages(file: Path) -> tuple[Language, ...]:
    """The languages of a table. Raises BadInput that names the section if one lacks a key or has a wrong one."""
    sections = yaml.load(file.read_text("utf-8"), getattr(yaml, "CBaseLoader", yaml.BaseLoader))  # "no" stays a word
    languages = []
    for name, section in sections.items():
        try:
            languages.append(_parse_language(name, section))
        except (AttributeError, KeyError, TypeError, ValueError, re.error) as error:
            raise BadInput(f"{file}, section {name}: {error!r}; correct it as the head of the file says") from None
    return tuple(languages)


def _parse_language(name: str, section: dict[str, Any]) -> Language:
    known = {"sides", "common", "shared", "yes", "no", "heads", "masculine", "feminine", "both", "phrases"}
    if unknown := section.keys() - known:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    pairs = tuple(tuple(pair) for pair in section["sides"])
    if not all(2 <= len(pair) <= 3 and all(isinstance(word, str) for word in pair) for pair in pairs):
        raise ValueError("sides: pairs of words are wanted")
    verdicts: dict[str, Verdict] = {normalise(w): v for v in get_args(Verdict) for w in section[v]}
    genders = {key: _compile(words, {}) for key, words in section.items() if key in ("masculine", "feminine")}
    language = Language(
        name, pairs, _compile(section["common"], {}), frozenset(section.get("shared", ())), verdicts,
        section.get("heads", {}), genders, _compile(section.get("both", []), {}), None,
    )  # fmt: skip
    phrases = section.get("phrases")
    return language if phrases is None else Language(**{**vars(language), "phrases": _parse_phrases(phrases, language)})


def _parse_phrases(phrases: dict[str, Any], language: Language) -> Phrases:
    parts = {"side": f"(?:{_join_longest_first(language.halves)})"}
    for name, pattern in phrases.get("parts", {}).items():  # each may hold those before it
        parts[name] = _fill_parts(pattern, parts)
    unsafe = tuple((_compile(entry["words"], parts, 0), entry["why"]) for entry in phrases["unsafe"])
    names = [field.name for field in fields(Phrases) if field.name != "unsafe"]
    return Phrases(**{name: _compile(phrases[name], parts) for name in names}, unsafe=unsafe)


def _compile(alternatives: list[str], parts: Mapping[str, str], flags: int = re.I) -> re.Pattern[str]:
    return re.compile("|".join(_fill_parts(one, parts) for one in alternatives) or _NEVER, flags)


def _fill_parts(pattern: str, parts: Mapping[str, str]) -> str:
    return re.sub(r"\{([a-z_]+)\}", lambda m: parts[m[1]], pattern)


@cache
def list_languages() -> tuple[Language, ...]:
    """The languages of the packaged table; English is the first."""
    return read_languages(TABLE)


def list_usual_heads(our_name: str) -> set[str]:
    """The usual heads, in any language, of a column that ClinKD calls `our_name`."""
    return {head for language in list_languages() for head in language.heads.get(our_name, "").split()}


# ---- texts ----------------------------------------------------------------------------------------------------------


@cache
def _compile_hint() -> re.Pattern[str]:
    """Finds part of a side word of any language, in lower case."""
    words = {word for language in list_languages() for word in language.halves}
    return re.compile("|".join(w for w in sorted(words) if not any(o != w and o in w for o in words)))


@lru_cache(maxsize=65536)
def mentions_side(text: str) -> bool:
    """Whether a text may hold a side word of any language: a quick look before a careful one."""
    return _compile_hint().search(text.lower()) is not None


@cache
def _index_sides() -> dict[str, list[Language]]:
    words = {word for language in list_languages() for word in language.halves}
    return {word: [language for language in list_languages() if word in language.halves] for word in words}


def list_sided(word: str) -> list[Language]:
    """The languages in which a normalised word is a side."""
    return _index_sides().get(word, [])


@lru_cache(maxsize=65536)
def find_language(text: str) -> Language | None:
    """The language of a text, by its words in the table; None where it holds none of them.

    One of whose side words it has, if not only a `shared` one without another word of the language; of several the one
    with most words in the text.
    """
    words = normalise(text).split()
    # most texts have side words of one language alone
    strong = {language.name: language for w in words for language in list_sided(w) if w not in language.shared}
    if len(strong) == 1:
        return next(iter(strong.values()))
    sided = [language for language in list_languages() if any(w in language.halves for w in words)]
    sided = [language for language in sided if _count_words([w for w in words if w not in language.shared], language)]
    best = max(sided or list_languages(), key=lambda language: _count_words(words, language))
    return best if _count_words(words, best) else None


def _count_words(words: list[str], language: Language) -> int:
    return sum(w in language.halves or w in language.verdicts or bool(language.common.fullmatch(w)) for w in words)


@cache
def _index_verdicts() -> dict[str, Verdict]:
    return {word: verdict for language in list_languages() for word, verdict in language.verdicts.items()}


def read_verdict(word: str) -> Verdict | None:
    """What a normalised word says that means yes or no in any language of the table; None for other words."""
    return _index_verdicts().get(word)

"""Multiple choice: the options become part of the question, and the answer is the words of one of them, no letter.

A row has its options under keys of one kind, each with a letter or a number (`option_A`, `Choice A`, `A`, `option1`),
or all of them under one key (`options`, `choices`): a list, an object by letter, or a text "A. ... B. ...". Its answer
is the words of an option, or a letter; the letter may stand under a key of its own (`Answer_label`), too.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from clinkd.data.readers.rows import FieldError, require_words, use_cell
from clinkd.records import OPTION_LETTERS, BoxedText, Turn

_OPTION_KEY = re.compile(
    r"(options?|choices?|opt|antwort|auswahl|réponse|choix|answer|)[\s_.:-]*\(?([a-j]|\d\d?)\)?", re.I
)
_LISTS = ("options", "choices", "answerchoices", "answeroptions", "optionlist")
_LETTER_KEYS = (
    "answerlabel", "anwserlabel", "answerletter", "answeridx", "answerindex", "answerkey", "answeroption", "gtlabel",
    "correctoption", "correctchoice", "correctletter", "correctanswer", "correctlabel", "labelletter",
)  # fmt: skip
_CLOSED_KEYS = ("answertype", "atype", "closed")
_LETTER = re.compile(r"(?:option|choice)?[\s_]*\(?([A-Ja-j])\)?[.:)]?", re.I)
_LETTERED = re.compile(r"\(?([A-Ja-j])([.:)]|\s-)\s*(.+)", re.S)
_MARKS = re.compile(r"(?:^|(?<=[\s,;]))\(?([A-J])[.:)]\s*")  # "A. ... B. ...", "(A) ... (B) ..."


@dataclass(frozen=True, slots=True)
class ChoiceKeys:
    """Where the options of rows stand: a key each, in the order of the letters ("" for none), or one for all."""

    options: tuple[str, ...] = ()
    listed: str = ""
    letter: str = ""  # of the true option
    closed: str = ""  # whether the question is closed or open

    @property
    def has_options(self) -> bool:
        return bool(self.options or self.listed)

    @property
    def used(self) -> set[str]:
        return {*self.options, self.listed, self.letter, self.closed} - {""}


NO_CHOICE = ChoiceKeys()


@lru_cache(maxsize=1024)
def find_choice_keys(keys: tuple[str, ...]) -> ChoiceKeys:
    """The keys, or columns, of a multiple-choice question; no options if there are not two, nor a list of them."""
    closed = _find_key(keys, _CLOSED_KEYS)
    kinds: dict[str, dict[int, str]] = {}
    for key in keys:
        if match := _OPTION_KEY.fullmatch(key.strip()):
            prefix, sign = match[1].casefold().rstrip("s"), match[2].upper()
            if sign in OPTION_LETTERS or prefix in ("option", "choice", "opt"):  # answer_1: one of several answerers
                numbered = "#" if sign.isdecimal() else ""
                place = int(sign) if numbered else OPTION_LETTERS.index(sign)
                kinds.setdefault(prefix + numbered, {})[place] = key
    for kind, by_place in sorted(kinds.items(), reverse=True):  # a bare "A" last
        start = min(by_place) if kind.endswith("#") else 0
        if {start, start + 1} <= by_place.keys() and start <= 1 and max(by_place) - start < len(OPTION_LETTERS):
            options = tuple(by_place.get(k, "") for k in range(start, max(by_place) + 1))
            return ChoiceKeys(options, "", _find_key(keys, _LETTER_KEYS), closed)
    listed = _find_key(keys, _LISTS)
    return ChoiceKeys((), listed, _find_key(keys, _LETTER_KEYS) if listed else "", closed)


def _find_key(keys: Iterable[str], wanted: Sequence[str]) -> str:
    return next((key for key in keys if re.sub(r"[\W_]", "", key.casefold()) in wanted), "")


def make_choice_turn(turn: Turn, row: Mapping[str, Any], keys: ChoiceKeys, field: str, notes: Counter[str]) -> Turn:
    """The turn of a row with its options, if the row has any, closed or open if it says so. `field` is the key of the
    answer.

    Raises FieldError if the answer is none of the options, or may be two, or is a letter in a row without options.
    Where no row has options, a letter is an answer like others (hepatitis B), which `notes` counts.
    """
    turn = replace(turn, closed=read_closed(row, keys.closed, notes))
    answer = turn.answer.text
    options = _read_options(row, keys)
    letter = str(use_cell(row.get(keys.letter), keys.letter) or "").strip()
    if not options:
        if keys.has_options and _LETTER.fullmatch(answer):
            why = "a letter, and the row has no options; fill them in, or write the answer in words"
            raise FieldError(field, answer, why)
        count_letter_answer(answer, notes)
        return turn
    places = _find_option(answer, options, field)
    if letter:
        places = _check_letter(letter, places, answer, options, keys.letter)
    if len({_fold(options[k]) for k in places}) > 1:
        why = f"may be a letter or the words of another option ({_show(options)}); give the letter as answer_label, too"
        raise FieldError(field, answer, why)
    question = replace(turn.question, text=_add_options(turn.question.text, options))
    return replace(turn, question=question, answer=BoxedText(options[min(places)]), options=options)


def read_closed(row: Mapping[str, Any], key: str, notes: Counter[str]) -> bool | None:
    """Whether a row calls its question closed ("CLOSED", true) or open; None if it does not say, which `notes` counts
    where it says something else."""
    value = use_cell(row.get(key), key) if key else None
    word = str(value).strip().casefold()
    if word not in ("", "none", "closed", "open", "true", "false"):
        notes[f"keys {key!r} with {word!r}, which is neither closed nor open and not used"] += 1
    return {"closed": True, "true": True, "open": False, "false": False}.get(word)


def split_options(text: str) -> tuple[str, ...]:
    """The options that stand in a question as "A. ... B. ...", in the order of their letters; none if it has none."""
    _, *pieces = _MARKS.split(text)
    letters = pieces[0::2]
    if len(letters) < 2 or "".join(letters) != OPTION_LETTERS[: len(letters)]:
        return ()
    return tuple(words.strip().rstrip(",;").strip() for words in pieces[1::2])


def count_letter_answer(answer: str, notes: Counter[str]) -> None:
    """Count an answer that may be a letter of options in the text, or a word (vitamin C)."""
    if len(answer) < 4 and _LETTER.fullmatch(answer):
        notes["answers of one letter, taken as they are: no options stand beside them"] += 1


def ask_with_options(question: str, row: Mapping[str, Any]) -> str:
    """The question with the options of its row, if the row has any. Raises FieldError if these cannot be read."""
    return _add_options(question, _read_options(row, find_choice_keys(tuple(row))))


def _add_options(question: str, options: Sequence[str]) -> str:
    """The question with its options below, a line each, as vision-language models are asked; if it lacks them."""
    lettered = [(letter, words) for letter, words in zip(OPTION_LETTERS, options, strict=False) if words]
    if all(re.search(rf"\b{letter}\W{{1,3}}{re.escape(words)}", question, re.I) for letter, words in lettered):
        return question
    return "\n".join([question, *(f"{letter}. {words}" for letter, words in lettered)])


# ---- options --------------------------------------------------------------------------------------------------------


def _read_options(row: Mapping[str, Any], keys: ChoiceKeys) -> tuple[str, ...]:
    """The words of the options in the order of their letters, "" for an empty one; none if all are empty."""
    named = [(key, use_cell(row.get(key), key)) for key in keys.options]
    named = named or _unfold(use_cell(row.get(keys.listed), keys.listed), keys.listed)
    options = [_read_words(value, key) for key, value in named]
    while options and not options[-1]:
        options.pop()
    if options and sum(map(bool, options)) < 2:
        raise FieldError(named[0][0], options[-1], "the only option; give all, or none where the question is open")
    return tuple(_cut_letters(options))


def _cut_letters(options: list[str]) -> Iterator[str]:
    """The options without the letters that they begin with: "B: Red" under B; "E. coli" only if all begin so."""
    parts = [_LETTERED.fullmatch(words) for words in options]
    own = [m if m and m[1].upper() == letter else None for m, letter in zip(parts, OPTION_LETTERS, strict=False)]
    all_have = all(m for m, words in zip(own, options, strict=True) if words)
    for match, words in zip(own, options, strict=True):
        yield match[3].strip() if match and (all_have or match[2] in ":)") else words


def _read_words(value: Any, key: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return require_words(str(value) if type(value) in (int, float) else value, key)


def _unfold(value: Any, key: str) -> list[tuple[str, Any]]:
    """The options under one key, with the names of their fields."""
    if isinstance(value, str) and value.strip():
        value = _parse_text(value.strip(), key)
    if not value:
        return []
    if isinstance(value, list) and all(isinstance(entry, dict) and len(entry) == 2 for entry in value):
        value = dict(_split_entry(entry, key) for entry in value)  # {"letter": "A", "content": "Green"}
    if isinstance(value, dict):
        by_letter = {str(letter).strip().upper(): words for letter, words in value.items()}
        places = {letter: OPTION_LETTERS.find(letter) for letter in by_letter}
        if any(len(letter) != 1 or place < 0 for letter, place in places.items()):
            raise FieldError(key, value, "options by their letters, from A on, are wanted")
        return [(f"{key}.{c}", by_letter.get(c)) for c in OPTION_LETTERS[: max(places.values()) + 1]]
    if not isinstance(value, list) or len(value) > len(OPTION_LETTERS):
        why = f"a list of at most {len(OPTION_LETTERS)} options, or an object of them by letter, is wanted"
        raise FieldError(key, value, why)
    return [(f"{key}[{k}]", words) for k, words in enumerate(value)]


def _split_entry(entry: dict[str, Any], key: str) -> tuple[str, Any]:
    """The letter and the words of an object that holds both."""
    letters = [name for name, words in entry.items() if isinstance(words, str) and _LETTER.fullmatch(words)]
    letters = [name for name in letters if name.casefold() in ("letter", "label", "key", "id", "option")] or letters
    if len(letters) != 1:
        raise FieldError(key, entry, "a letter and the words of the option are wanted")
    return entry[letters[0]], next(words for name, words in entry.items() if name != letters[0])


def _parse_text(text: str, key: str) -> Any:
    """The options of a text: a list or an object as Python or JSON write it, or "A. ... B. ..."."""
    if text[0] in "[{":
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise FieldError(key, text, "not a list or an object of options; mend it") from None
    options = split_options(text)
    if not options or _MARKS.split(text)[0].strip():
        raise FieldError(key, text, 'the options of a text are wanted as "A. ... B. ...", in the order of the letters')
    return list(options)


# ---- the answer -----------------------------------------------------------------------------------------------------


def _find_option(answer: str, options: Sequence[str], field: str) -> set[int]:
    """The places of the options that an answer may mean."""
    places = {k for k, words in enumerate(options) if words and _fold(words) == _fold(answer)}
    if match := _LETTER.fullmatch(answer):
        places |= _place_of(match[1], options)
    elif not places and (match := _LETTERED.fullmatch(answer)):
        places = {k for k in _place_of(match[1], options) if _fold(options[k]) == _fold(match[3])}
    if not places:
        why = f"none of the options ({_show(options)}); correct one of them, or rename columns that hold no options"
        raise FieldError(field, answer, why)
    return places


def _check_letter(letter: str, places: set[int], answer: str, options: Sequence[str], key: str) -> set[int]:
    """The place that the letter of the true option states. A number may count from 0 or from 1, so the words decide."""
    if letter.isdecimal():
        stated = places & {int(letter), int(letter) - 1}
        stated = stated if _fold(answer) != letter else set()  # the number itself
    else:
        match = _LETTER.fullmatch(letter) or _LETTERED.fullmatch(letter)
        stated = _place_of(match[1], options) if match else _find_option(letter, options, key)
    same = {k for k in stated for p in places if _fold(options[k]) == _fold(options[p])}
    if not same:
        why = f"not the option that the answer {answer!r} is ({_show(options)}); correct one of them"
        raise FieldError(key, letter, why)
    return same


def _place_of(letter: str, options: Sequence[str]) -> set[int]:
    place = OPTION_LETTERS.index(letter.upper())
    return {place} if place < len(options) and options[place] else set()


def _fold(words: str) -> str:
    return " ".join(words.casefold().split()).rstrip(".")


def _show(options: Sequence[str]) -> str:
    return "; ".join(f"{letter}. {words}" for letter, words in zip(OPTION_LETTERS, options, strict=False) if words)

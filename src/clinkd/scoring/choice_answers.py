"""The option that an answer to a multiple-choice question chooses: its letter, its words, or both.

    B   (B)   b)   B.   **B**   Option B   Answer: B   The correct answer is B.   B is correct
    B. pneumonia   (B) pneumonia   B pneumonia   Option B: pneumonia   pneumonia (B)   B. pneumonia, because ...
    pneumonia   Pneumonia. The lower lobe is opaque.

An answer that contradicts itself ("B. oedema" where C is oedema; "B or C"; all options again) chooses none. Words count
only where they are those of one whole option (see `language.equality`), never as a part of the answer, and "a mass" is
no letter A.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from clinkd.language.equality import answer_key
from clinkd.language.languages import read_verdict
from clinkd.language.verdicts import read_yes_no
from clinkd.language.words import normalise
from clinkd.records import OPTION_LETTERS

_L = f"[{OPTION_LETTERS}]"
_CHOSEN = r"(?i:answer|option|choice|letter|choose|chose|select|pick|go\s+with)"
_IS = r"(?:(?i:is|s|would\s+be|should\s+be)\b\W*)?"
_MARKUP = re.compile(r"[*_`#$\"“”{}]+|\\(?:boxed|text|mathrm|mathbf)\b")
_SUBJECTS = rf"(?:{_CHOSEN}|(?i:it|this)(?=\s+is\b|['’]s\b))"
_OPENING = re.compile(rf"^\W*(?i:(?:the|my)\s+)?(?:(?i:final|correct|best|right)\s+)*(?:{_SUBJECTS}\b\W*{_IS})+")
_ALONE = re.compile(r"\W*([A-Ja-j])\W*")
# a letter at the beginning, with a mark behind it; then words
_HEAD = re.compile(rf"\W*(?:\(([A-Ja-j])\)|([A-Ja-j])[.):](?=\s|$|[^\W\d])|({_L})(?:,|\n|\s*[-–—](?=\s)))\s*(.*)", re.S)
_SPACED = re.compile(rf"\W*({_L})\s+(.+)", re.S)  # "B pneumonia": a choice only with the words of that option
_MARKED = re.compile(rf"(?:^|\n)\s*\(?({_L})[.):]\s|\(({_L})\)")
_INLINE = re.compile(rf"\s({_L})[.):]\s+\S")
_WITH_WORDS = re.compile(rf"(?<!\S)\(?({_L})[.):]\s+")
_WRONG = r"(?!\s+(?:is|would\s+be)\s+(?:not|wrong|incorrect|unlikely)\b)"
_NO_ARTICLE = r"(?![\w'’-])(?!\s+(?!(?:is|because|as|since|and|or)\b)[a-z])"
_STATED = re.compile(
    rf"\b{_SUBJECTS}\b\W*{_IS}(?:(?i:the\s+)?(?i:option|choice|letter)\b\W*)?({_L}){_NO_ARTICLE}{_WRONG}"
)
_SUBJECT = re.compile(rf"^\W*({_L})\s+(?:is|seems|because|since)\b(?!\s+(?:not|wrong|incorrect|unlikely)\b)")
_SECOND = rf"\)?\s*(?:,|/|&|\bor\b|\band\b)\s*\(?({_L}){_NO_ARTICLE}"
_EXPLAINED = re.compile(r"\n\s*\n|\b(?:explanation|reason(?:ing)?|rationale|justification)\s*:", re.I)
_CLAUSE_END = re.compile(r"\n|[.;](?=\s|$)|,?\s+(?:because|since|as)\b|\s[-–—]\s")


def read_choice(answer: str, options: Sequence[str], question: str = "") -> str:
    """The letter of the option that an answer chooses; "" where it chooses none, or several. `options`: words in the
    order of their letters, "" for one that is left out; none where only letters are known."""
    whole = _MARKUP.sub("", answer).strip()
    for text in dict.fromkeys((_EXPLAINED.split(whole, maxsplit=1)[0], whole)):
        if chosen := _read_part(text, options) or _find_verdict(text, options, question):
            return next(iter(chosen)) if len(chosen) == 1 else ""
    return ""


def _read_part(text: str, options: Sequence[str]) -> set[str]:
    """The letters of all options that a text chooses by letter or by words."""
    bare = _OPENING.sub("", text, count=1)
    head = _HEAD.match(bare)
    if (spaced := _SPACED.fullmatch(bare)) and spaced[1] in _find_words(spaced[2], options, whole=True):
        return {spaced[1]}
    is_a = head is not None and (head[1] or head[2] or head[3]).upper() == "A"  # not the article of what follows
    named = set() if is_a else _find_words(text, options)
    if len(named) == 1 and len(text) > 1 and _has_key(text, options[OPTION_LETTERS.index(min(named))]):
        return named  # "E. coli" is no letter
    letters = {c for c in _find_letters(text, bare) if not options or OPTION_LETTERS.index(c) < len(options)}
    letters |= {m[1] for m in _WITH_WORDS.finditer(text) if m[1] in _find_words(text[m.end() :], options)}
    if head:
        named = named or _find_words(head[4], options)
    elif not named and letters:
        named = _find_words(re.sub(rf"\(({_L})\)", "", text), options)
    elif not named:
        named = _find_words(bare, options)
    return letters | named


def _find_letters(text: str, bare: str) -> Iterator[str]:
    """The letters that a text states as its choice. bare: the text without "The answer is"."""
    for part in (text, bare):
        if alone := _ALONE.fullmatch(part):
            yield alone[1].upper()
            return
    stated = [match[1] for pattern in (_STATED, _SUBJECT) for match in pattern.finditer(text)]
    stated += [match[1] or match[2] for match in _MARKED.finditer(text)]
    if head := _HEAD.match(bare):
        stated.append((head[1] or head[2] or head[3]).upper())
        yield from (match[1] for match in _INLINE.finditer(head[4]))
    yield from stated
    for letter in {*stated, bare[:1]} & {*OPTION_LETTERS}:
        if second := re.search(rf"(?<![\w'’]){letter}{_SECOND}", text):
            yield from (letter, second[1])


def _find_words(text: str, options: Sequence[str], whole: bool = False) -> set[str]:
    """The letters of the options whose words a text is, or, if not `whole`, begins with as a clause of its own."""
    lettered = {c: words for c, words in zip(OPTION_LETTERS, options, strict=False) if words}
    for part in (text,) if whole else (text, _CLAUSE_END.split(text.strip(), maxsplit=1)[0]):
        if same := {letter for letter, words in lettered.items() if _has_key(part, words)}:
            exact = {letter for letter in same if normalise(lettered[letter]) == normalise(part)}
            return {min(exact)} if exact else same  # "cyst" and "cysts" may be two options
    return set()


def _has_key(text: str, words: str) -> bool:
    return answer_key(text) == answer_key(words) != ()


def _find_verdict(text: str, options: Sequence[str], question: str) -> set[str]:
    """The letter of the option yes or no, where an answer says so in a sentence."""
    lettered = zip(OPTION_LETTERS, options, strict=False)
    verdicts = {verdict: letter for letter, words in lettered if (verdict := read_verdict(normalise(words)))}
    said = read_yes_no(text, question) if verdicts else None
    return {verdicts[said]} if said and said in verdicts else set()

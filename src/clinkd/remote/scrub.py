"""Hide what may identify a person in a text before it leaves, and put it back into the text that returns.

A mark such as [NAME-1] takes its place. A mark is undone on return, so hiding too much costs little, and these rules
hide too much rather than too little. They are no proof that a text is anonymous.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
_NAME = r"[^\W\d_][\w'’.-]*"
_TITLE = r"(?:Dr|DR|Mr|Mrs|MRS|Ms|Miss|Prof|PROF|Herr|Frau|Hr|Fr|Mme|Mlle|Sr|Sra|Sig)\b\.?"
_CAPITAL = rf"(?!{_TITLE})(?=[^\W\d_])(?![a-zß-öø-ÿ])[\w'’-]+"
_BEHIND_TITLE = r"(?:\s+(?:Dr|med|Prof|von|van|de|der|del|la|le)\b\.?){0,8}(?:\s+|(?<=\.))"
# Words that follow a title's letters where these are no title: MR image, ms lesions, DR chest, to miss a mass.
_ORDINARY = (
    "a|an|the|this|that|its?|there|and|or|of|in|on|at|by|to|from|for|as|with|without|not?|after|before|than|then|"
    "is|are|was|were|be|been|has|have|had|does?|did|may|can|will|shows?|shown|reveals?|demonstrates?|performed|"
    "und|oder|der|die|das|dem|den|des|eine?[mnrs]?|mit|ohne|ist|sind|war|hat|im|am|auf|bei|von|nicht|"
    "les?|la|une?|du|de|et|ou|est|sont|avec|sans|dans|sur|pas|"
    "images?|imaging|scans?|pictures?|slices?|sequences?|series|study|studies|exams?|examinations?|views?|reports?|data|"
    r"angio\w*|spectro\w*|entero\w*|elasto\w*|veno\w*|uro\w*|cholangio\w*|arthro\w*|"
    "perfusion|diffusion|flair|stir|dwi|adc|swi|contrast|signal|weighted|delayed|ct|mri|pet|"
    r"brain|head|neck|spin(?:e|al)|cervical|thora\w*|lumbar|chest|abdom\w*|pelvi[sc]|knee|shoulder|hip|liver|"
    "kidneys?|breast|heart|cardiac|lesions?|plaques?|masses|mass|nodules?|patients?|disease|findings?|catheters?|small"
)
_ANY_CASE = rf"(?!(?i:{_ORDINARY}|{_TITLE})(?![\w'’-]))[^\W\d_][\w'’-]*"
# each pattern looks once from the start of a word; else a long text without blanks would take time by its square
_PATTERNS = {
    "LINK": (r"(?i)\b(?:https?|ftp|file|s3)://\S+|\bwww\.\S+|(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+",),
    "PATH": (
        r"(?i)(?:(?<![\w<\\/])|(?<=[\w<][\\/]))(?:[a-z]:)?(?:[\\/]+[^\s\\/:*?\"<>|()]+){2,}[\\/]?|~[\\/]\S+",
        r"(?i)(?<![^\s()\[\]])[^\s()\[\]]+"
        r"\.(?:dcm|dicom|ima|png|jpe?g|tiff?|bmp|gif|nii(?:\.gz)?|mhd?|nrrd|txt|csv|json)\b",
    ),
    "DATE": (
        r"(?i)\b\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[T ]\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?",
        r"\b\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})\b",
        rf"(?i)\b\d{{1,2}}(?:st|nd|rd|th|\.)?\s+(?:of\s+)?{_MONTH}\b\.?(?:,?\s+\d{{2,4}}\b)?",
        rf"(?i)\b{_MONTH}\b\.?\s+\d{{1,2}}(?:st|nd|rd|th)?\b(?:,?\s+\d{{4}}\b)?|\b{_MONTH}\b\.?,?\s+\d{{4}}\b",
        r"(?i)\b\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:\s?[ap]\.?m\b\.?)?",
        r"(?i)\b(?:19|20)\d{2}\b(?!\s*(?:mm|cm|ml|x)\b)",
    ),
    "AGE": (r"(?i)\b(?:9\d|1[0-2]\d)(?=[\s-]*(?:years?|yrs?|y/?o)\b)",),
    "NAME": (
        r"(?<![^\s^])[^\s^]+\^[^\s]*|\^[^\s]+",  # in DICOM: Family^Given
        rf"\b{_TITLE}(?i:{_BEHIND_TITLE}){_CAPITAL}(?:\s+{_CAPITAL}){{0,2}}",
        rf"(?<!\d)(?<!\d\s)\b(?i:{_TITLE}{_BEHIND_TITLE})"
        rf"(?:(?![a-zß-öø-ÿ]){_ANY_CASE}(?:\s+(?![a-zß-öø-ÿ]){_ANY_CASE}){{0,2}}|{_ANY_CASE}(?:\s+{_ANY_CASE}){{0,2}})",
        rf"(?i:(?<=\bpatient\s))(?!(?i:{_ORDINARY})(?![\w'’-])){_CAPITAL}(?:,?\s+{_CAPITAL}){{0,2}}"
        rf"|(?i:(?<=\bnamed\s)|(?<=\bname\sis\s)|(?<=\bname:\s)|(?<=\bcalled\s))"
        rf"{_NAME}(?:,?\s+{_CAPITAL}){{0,2}}",
    ),
    "ID": (
        r"(?i)(?:(?<=\bMRN\s)|(?<=\bMRN:\s)|(?<=\bID\s)|(?<=\bID:\s)|(?<=\baccession\s)|(?<=\bcase\s)|(?<=\bNo\.\s)"
        r"|(?<=#))[\w./-]*\d[\w./-]*",
        r"\b\d+(?:\.\d+){3,}\b",  # UIDs, IP addresses
        r"(?<!\w)\+?\(?\d[\d ()/-]{6,}\d\b",  # telephone numbers
        r"(?<![\w-])-*+(?:\d{1,3}-(?=(?:year|month|week|day)s?\b))?+"
        r"(?=[\w-]*\d)(?=[\w-]*[^\W\d_])(?=(?:[\w-]*\d){2})\w[\w-]{4,}\w\b",
        r"\b\d{5,}\b",
    ),
}
_RULES = tuple((kind, re.compile(pattern)) for kind, patterns in _PATTERNS.items() for pattern in patterns)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_PLAIN_NUMBER = re.compile(r"\d{1,3}(?:[a-z]{1,2})?", re.I)
_MARK = re.compile(r"\[(?:LINK|PATH|DATE|AGE|NAME|ID|WORD)-\d+\]")
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
Piece = tuple[str | None, str]  # a stretch of text, and before it the kind of thing to hide there, or None
_SHORTEST = 3  # letters; a shorter part of a name is found with its own capital letters only


@dataclass(slots=True)
class Masked:
    """One conversation: the words hidden in its texts, by mark. The same word always gets the same mark."""

    scrubber: Scrubber
    hidden: dict[str, str] = field(default_factory=dict)
    _marks: dict[str, str] = field(default_factory=dict)

    def hide(self, text: str) -> str:
        """The text with marks in the place of what is hidden."""
        return "".join(
            piece if kind is None else self._mark_of(kind, piece) for kind, piece in self.scrubber.pieces(text)
        )

    def show(self, text: str) -> str:
        """The text with its marks undone; a mark that stands for nothing stays."""
        return _MARK.sub(lambda m: self.hidden.get(m[0], m[0]), text)

    @staticmethod
    def marks(text: str) -> list[str]:
        """The marks in a text, in order."""
        return _MARK.findall(text)

    def _mark_of(self, kind: str, piece: str) -> str:
        mark = self._marks.get(piece.casefold())
        if mark is None:
            number = 1 + sum(other.startswith(f"[{kind}-") for other in self.hidden)
            mark = self._marks[piece.casefold()] = f"[{kind}-{number}]"
            self.hidden[mark] = piece
        return mark


class Scrubber:
    """Finds names, dates, identifiers, paths and links: by their form, and by what headers and paths say.

    `terms`: values of header fields and parts of paths; they are found whole, and those with a "^" (names of persons)
    also part by part. `common`: words in the texts of more than one patient. If it is given, every other word with a
    capital letter or a digit is hidden too, and every other word of the terms, also in small letters.
    """

    def __init__(self, terms: Iterable[str] = (), common: Iterable[str] | None = None) -> None:
        self._common = None if common is None else frozenset(w.casefold() for w in common)
        terms_pattern = _compile_terms(terms, self._common)
        self._rules = [*([("ID", terms_pattern)] if terms_pattern else []), ("WORD", _MARK), *_RULES]

    def masked(self) -> Masked:
        """A new conversation."""
        return Masked(self)

    def plain(self, text: str) -> str:
        """The text with the kind of what is hidden in its place, as [name], for a page that people pass on."""
        return "".join(piece if kind is None else f"[{kind.lower()}]" for kind, piece in self.pieces(text))

    def pieces(self, text: str) -> list[Piece]:
        """The text in pieces, each with the kind of thing to hide in it, or None; in NFC, so that an accent is part of
        its letter."""
        pieces: list[Piece] = [(None, unicodedata.normalize("NFC", text))]
        for kind, pattern in self._rules:
            pieces = [part for piece in pieces for part in _split(piece, kind, pattern)]
        if self._common is not None:
            pieces = [part for piece in pieces for part in _split(piece, "WORD", _WORD, self._is_rare)]
        return pieces

    def _is_rare(self, word: str) -> bool:
        assert self._common is not None
        common = word.casefold() in self._common or (word.islower() and word.isalpha())
        return not common and not _PLAIN_NUMBER.fullmatch(word) and word not in ("A", "I")


class PlainPage:
    """`Scrubber(terms).plain` for the texts of a page and thousands of terms.

    A text is searched only for terms that share a word with it, which finds the same.
    """

    def __init__(self, terms: Iterable[str]) -> None:
        self._by_word: dict[str, set[str]] = defaultdict(set)
        for term in terms:
            for word in _words(term) or {""}:  # a term without a word is looked for in every text
                self._by_word[word].add(term)
        self._scrubber_of = cache(Scrubber)
        self._plain_text = cache(self._scrub)  # candidates are often equal

    def __call__(self, text: str) -> str:
        return self._plain_text(text)

    def _scrub(self, text: str) -> str:
        terms = frozenset(t for word in (*_words(text), "") for t in self._by_word.get(word, ()))
        return self._scrubber_of(terms).plain(text)


def _words(text: str) -> set[str]:
    return {word.casefold() for word in re.findall(r"\w+", unicodedata.normalize("NFC", text))}


def common_words(texts: Iterable[tuple[str, str]]) -> frozenset[str]:
    """The words in texts of at least two groups; `texts` are (group, text)."""
    groups: dict[str, set[str]] = defaultdict(set)
    for group, text in texts:
        for word in _WORD.findall(unicodedata.normalize("NFC", text)):
            groups_of_word = groups[word.casefold()]
            if len(groups_of_word) < 2:
                groups_of_word.add(group)
    return frozenset(word for word, groups_of_word in groups.items() if len(groups_of_word) > 1)


def _split(
    piece: Piece, kind: str, pattern: re.Pattern[str], hides: Callable[[str], object] = str.strip
) -> Iterator[Piece]:
    """Cut a piece that is not hidden yet at the matches that `hides` accepts, by default those that are not blank."""
    hidden_as, text = piece
    if hidden_as is not None:
        yield piece
        return
    end = 0
    for match in pattern.finditer(text):
        if hides(match[0]):
            yield from ((None, text[end : match.start()]), (kind, match[0]))
            end = match.end()
    yield None, text[end:]


def _compile_terms(terms: Iterable[str], common: frozenset[str] | None) -> re.Pattern[str] | None:
    """One pattern of all terms, the longest first; None if there are none."""
    ignores_case: dict[str, bool] = {}  # by the word to find
    for term in terms:
        term = unicodedata.normalize("NFC", " ".join(term.split()))
        if len(term) >= _SHORTEST and not _is_short_number(term):
            ignores_case[term] = True
        if "^" in term or "=" in term:
            for part in re.split(r"[\^=\s,]+", term):
                if len(part) >= 2:
                    ignores_case[part] = len(part) >= _SHORTEST
        if common is not None:  # a folder named after a person, a name in a comment
            ignores_case |= {word: True for word in _LONG_WORD.findall(term) if word.casefold() not in common}
    if not ignores_case:
        return None
    patterns = [
        (r"\s+".join(map(re.escape, term.split())), ignore)
        for term, ignore in sorted(ignores_case.items(), key=lambda t: -len(t[0]))
    ]
    words = "|".join(f"{'(?i:' if ignore else '(?:'}{s})" for s, ignore in patterns)
    return re.compile(rf"(?<!\w)(?!(?<=\[)box\])(?:{words})(?!\w)")  # a person may be called Box, a mark may not


def _is_short_number(term: str) -> bool:
    """A short number, such as an instance number, identifies nobody and may be a count in any text."""
    return term.isdigit() and len(term) < 4

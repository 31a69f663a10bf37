"""Which words of an answer each of its boxes belongs to."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from clinkd.records import BOX_MARK, BoxedText

_BREAK = re.compile(r"[.;:!?\n]")
_FILLING = re.compile(r"^(?:\W|(?:and|or|with|at|in|is|are|here|there|located|this|that|it|the|a|an)\b)+", re.I)


class Phrase(NamedTuple):
    """The words, and where they stand in the text; None for words that the question gave."""

    words: str
    span: tuple[int, int] | None


def phrases(answer: BoxedText, asked: str, names: Sequence[str]) -> list[Phrase]:
    """One for each box: the last class name before its mark in its sentence, or else the last words there; where there
    are none, what the sentence says after the mark; and where it says nothing, what the question names, or its words.

    A box that follows another with nothing but a comma or an "and" between belongs to the same words.
    """
    text, marked = answer.text, list[Phrase]()
    marks = [m.start() for m in re.finditer(re.escape(BOX_MARK), text)]
    start = 0
    for mark, next_mark in itertools.pairwise([*marks, len(text)]):
        sentence_start = max((m.end() for m in _BREAK.finditer(text, start, mark)), default=start)
        phrase = _named_or_trimmed(text, sentence_start, mark, names, -1)
        if phrase is None and marked and _joined(text[start:mark]):
            phrase = marked[-1]
        start = mark + len(BOX_MARK)
        stop = _BREAK.search(text, start, next_mark)
        phrase = phrase or _named_or_trimmed(text, start, stop.start() if stop else next_mark, names, 0)
        marked.append(phrase or Phrase(_of_question(asked, names), None))
    return marked


def _joined(between: str) -> bool:
    return not re.sub(r"\band\b|[\s,&]", "", between)


def _named(text: str, start: int, end: int, names: Sequence[str]) -> list[Phrase]:
    """The class names in a stretch of text, in order; of nested ones the longest."""
    if not names:
        return []
    longest_first = sorted(names, key=len, reverse=True)
    found = re.finditer(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", text[start:end], re.I)
    return [Phrase(m.group(), (start + m.start(), start + m.end())) for m in found]


def _named_or_trimmed(text: str, start: int, end: int, names: Sequence[str], position: int) -> Phrase | None:
    """The first (0) or last (-1) class name in a stretch of text, or else its words; None where there are none."""
    named = _named(text, start, end, names)
    return named[position] if named else _trimmed(text, start, end)


def _trimmed(text: str, start: int, end: int) -> Phrase | None:
    """The words of a stretch without what joins them to others."""
    piece = text[start:end]
    filling = _FILLING.match(piece)
    begin = start + (filling.end() if filling else 0)
    last = begin + len(text[begin:end].rstrip(" ,([-\t"))
    return Phrase(text[begin:last], (begin, last)) if last > begin else None


def _of_question(asked: str, names: Sequence[str]) -> str:
    named = _named(asked, 0, len(asked), names)
    return named[-1].words if named else " ".join(asked.replace(BOX_MARK, " ").split())

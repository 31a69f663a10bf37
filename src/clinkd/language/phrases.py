"""Find the words of an answer that each of its boxes belongs to."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from clinkd.records import BOX_MARK, BoxedText

_BREAK = re.compile(r"[.;:!?\n]")
_FILLING = re.compile(r"^(?:\W|(?:and|or|with|at|in|is|are|here|there|located|this|that|it|the|a|an)\b)+", re.I)


class Phrase(NamedTuple):
    """The words, and their place in the text; None for words from the question."""

    words: str
    span: tuple[int, int] | None


def find_phrases(answer: BoxedText, question: str, names: Sequence[str]) -> list[Phrase]:
    """One for each box: the last class name before its mark in its sentence, or else the words there; without any, the
    first class name or the words after the mark; without any again, the class name in the question, or its words.

    A box that follows another box after only a comma or an "and" belongs to the same words.
    """
    text, marked = answer.text, list[Phrase]()
    marks = [m.start() for m in re.finditer(re.escape(BOX_MARK), text)]
    start = 0
    for mark, next_mark in itertools.pairwise([*marks, len(text)]):
        sentence_start = max((m.end() for m in _BREAK.finditer(text, start, mark)), default=start)
        phrase = _find_phrase(text, sentence_start, mark, names, -1)
        if phrase is None and marked and _is_list_joint(text[start:mark]):
            phrase = marked[-1]
        start = mark + len(BOX_MARK)
        stop = _BREAK.search(text, start, next_mark)
        phrase = phrase or _find_phrase(text, start, stop.start() if stop else next_mark, names, 0)
        marked.append(phrase or Phrase(_read_question(question, names), None))
    return marked


def _is_list_joint(between: str) -> bool:
    return not re.sub(r"\band\b|[\s,&]", "", between)


def _find_names(text: str, start: int, end: int, names: Sequence[str]) -> list[Phrase]:
    """The class names in a stretch of text, in order; of nested ones the longest."""
    if not names:
        return []
    longest_first = sorted(names, key=len, reverse=True)
    matches = re.finditer(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", text[start:end], re.I)
    return [Phrase(m.group(), (start + m.start(), start + m.end())) for m in matches]


def _find_phrase(text: str, start: int, end: int, names: Sequence[str], position: int) -> Phrase | None:
    """The first (0) or last (-1) class name in a stretch of text, or else its words; None where there are none."""
    named = _find_names(text, start, end, names)
    return named[position] if named else _trim_filling(text, start, end)


def _trim_filling(text: str, start: int, end: int) -> Phrase | None:
    """The words of a stretch without the filling words around them."""
    piece = text[start:end]
    filling = _FILLING.match(piece)
    begin = start + (filling.end() if filling else 0)
    last = begin + len(text[begin:end].rstrip(" ,([-\t"))
    return Phrase(text[begin:last], (begin, last)) if last > begin else None


def _read_question(question: str, names: Sequence[str]) -> str:
    named = _find_names(question, 0, len(question), names)
    return named[-1].words if named else " ".join(question.replace(BOX_MARK, " ").split())

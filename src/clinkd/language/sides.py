"""Left and right: compare words with boxes, convert between the patient's and the picture's left, and mirror words.

Where the header of an image tells where the patient's left lies (`ImageRef.laterality`), that holds. Otherwise the
convention holds: standard views of CT, MR, X-ray and PET show the patient from the front or from the feet, so that the
patient's left is at the picture's right. Other modalities have no such rule, nor have sagittal and lateral views.

The frame of a side word stands beside it ("of the image", "the patient's left"); otherwise the sample declares it. Some
names hold a side word that is no place and so have no frame: chambers and vessels of the heart, parts of the liver and
of the colon, the aortic arch, projections, handedness. The words of each language are in `languages.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from clinkd.language.conflicts import denied, sides
from clinkd.language.foreign import find_foreign_sides
from clinkd.language.languages import (
    Half,
    Language,
    Phrases,
    find_language,
    list_languages,
    mentions_side,
)
from clinkd.language.negation import mentions, yes_no_verdict
from clinkd.records import BadInput, Box, Fact, Laterality, Modality, Sample, Side, Task, Turn

MARGIN = 0.1  # of the width: a box on one side is at least so far from the middle
MIRRORED = frozenset({Modality.CT, Modality.MR, Modality.XRAY, Modality.PET})  # patient's left at the picture's right

_OPPOSITE: dict[str, Half] = {"left": "right", "right": "left"}
Frame = Literal["image", "patient", "unclear"]


class _SideWord(NamedTuple):
    """A side word of a text, and the frame named beside it; None means the frame of the sample."""

    text: str
    start: int
    end: int
    side: Half
    frame: Frame | None


def _read_language(text: str) -> tuple[Language, Phrases]:
    """The language whose patterns read a text: its own, or English where that is not known or has none."""
    language = find_language(text)
    language = language if language and language.phrases else list_languages()[0]
    assert language.phrases is not None
    return language, language.phrases


def _list_phrases(*texts: str) -> list[Phrases]:
    """The phrases of the languages of some texts, and the English ones, for words that stand in no side's text."""
    english = list_languages()[0]
    languages = {english.name: english, **{language.name: language for language, _ in map(_read_language, texts)}}
    return [language.phrases for language in languages.values() if language.phrases]


def _find_other_view(text: str) -> re.Match[str] | None:
    """The words of a text for a view without left and right."""
    return next(filter(None, (phrases.other_view.search(text) for phrases in _list_phrases(text))), None)


@lru_cache(maxsize=65536)
def _find_side_words(text: str) -> tuple[_SideWord, ...]:
    """The side words of a text; side words in names and idioms do not count."""
    if not mentions_side(text):
        return ()
    language, phrases = _read_language(text)
    excluded_spans = [m.span() for pattern in (phrases.names, phrases.idioms) for m in pattern.finditer(text)]
    return tuple(
        _SideWord(m[0], *m.span(), half, _find_frame(text, *m.span(), phrases))
        for m in language.side_word.finditer(text)
        if (half := language.halves.get(m[0].casefold()))
        and not any(start <= m.start() < end for start, end in excluded_spans)
    )


def _find_frame(text: str, start: int, end: int, phrases: Phrases) -> Frame | None:
    before = text[max(0, start - 80) : start]
    if phrases.after_image.match(text, end) or phrases.before_image.search(before):
        return "image"
    if phrases.after_patient.match(text, end) or phrases.before_patient.search(before):
        return "patient"
    return "unclear" if phrases.after_unclear.match(text, end) or phrases.before_unclear.search(before) else None


def _find_question_frame(question: str) -> str | None:
    """The frame that a question names, or None; the answer uses the same frame."""
    for word in _find_side_words(question):
        if word.frame:
            return word.frame
    asked = list(_list_phrases(question))
    if any(phrases.asks_image.search(question) for phrases in asked):
        return "image"
    return "patient" if any(phrases.asks_patient.search(question) for phrases in asked) else None


def _list_texts(sample: Sample) -> Iterator[str]:
    for turn in sample.turns:
        yield turn.question.text
        yield turn.answer.text
    yield from sample.names
    for fact in sample.facts:
        yield fact.name
        yield fact.side or ""


# ---- where the patient's left is ------------------------------------------------------------------------------------


def _get_laterality(sample: Sample) -> Laterality | None:
    return sample.images[-1].laterality if sample.images else None


def _find_patients_left(sample: Sample) -> Half | None:
    """The half of the picture where the patient's left is; None where there is none, or nobody knows."""
    laterality = _get_laterality(sample)
    if laterality is None:
        return "right" if sample.modality in MIRRORED else None
    return laterality.left if laterality.left in ("left", "right") else None


def has_no_sides(sample: Sample) -> bool:
    """Whether the header of the image tells that left and right are not side by side in the picture."""
    laterality = _get_laterality(sample)
    return laterality is not None and laterality.left == "none"


def describe_laterality(laterality: Laterality) -> str:
    """The rule that holds for an image, as a note to count."""
    if laterality.left in ("left", "right"):
        return f"images with the patient's left at the picture's {laterality.left}, by {laterality.rule}"
    reason = "without left and right side by side" if laterality.left == "none" else "with left and right unknown"
    return f"images {reason}, by {laterality.rule}; words of the patient's sides are not compared with their boxes"


# ---- contradiction --------------------------------------------------------------------------------------------------


def find_side_contradiction(sample: Sample) -> str | None:
    """One line that says why the boxes and the words of a sample name different sides; None if they do not.

    It reports only clear cases. All boxes must be on the wrong side, further than `MARGIN` from the middle. The words
    must name one side only and relate no places. The patient's left is checked where it is known.
    """
    texts = list(_list_texts(sample))
    if not any(map(mentions_side, texts)) or any(map(_find_other_view, texts)):
        return None
    for number, turn in enumerate(sample.turns, start=1):
        names = sample.names if number == len(sample.turns) else ()
        for text, boxes in _pair_texts_with_boxes(turn, names):
            if reason := _explain_contradiction(text, boxes, sample):
                return reason
    return None


def _pair_texts_with_boxes(turn: Turn, names: tuple[str, ...]) -> Iterator[tuple[str, tuple[Box, ...]]]:
    """Yield texts with the boxes that they name."""
    question, answer = turn.question, turn.answer
    question_frame = _find_question_frame(question.text)
    if question_frame and any(w.frame is None for w in _find_side_words(answer.text)):
        return
    if turn.task is Task.VG and answer.boxes:
        yield answer.words if _find_side_words(answer.words) else "; ".join(names), answer.boxes
        yield question.words, answer.boxes
    elif turn.task is Task.ROC and question.boxes:
        yield answer.words, question.boxes
    elif turn.task is Task.RC and len(question.boxes) == 1:
        language, phrases = _read_language(answer.words)
        pieces = [piece.strip() for piece in phrases.pieces.split(answer.words)]
        stated = [piece for piece in pieces if _find_side_words(piece)]
        if len(stated) == 1 and any(mentions(stated[0], language.side_word.sub(" ", name)) for name in names):
            yield stated[0], question.boxes


def _explain_contradiction(text: str, boxes: tuple[Box, ...], sample: Sample) -> str | None:
    words = _select_certain_words(text, sample)
    patients_left = _find_patients_left(sample)
    halves = {_find_half(w.side, w.frame or sample.side, patients_left) for w in words}
    if len(halves) != 1 or (half := halves.pop()) is None:
        return None
    distances = [0.5 - b.centre[0] if half == "right" else b.centre[0] - 0.5 for b in boxes]
    if min(distances) <= MARGIN:
        return None
    box = boxes[0]
    declared = all(w.frame is None for w in words)
    frame = f"side={sample.side}" if declared else "the frame it names"
    other_frame = "image" if sample.side == "patient" else "patient"
    is_mirrored = patients_left != "left"  # otherwise both frames say the same
    another = f" (if all rows are so, give --side {other_frame})" if declared and is_mirrored else ""
    place = f"its box at x {box.x1:.2f} to {box.x2:.2f} is in the picture's {_OPPOSITE[half]} half"
    meaning = f"where {frame} means the {half} one; correct the word or the box{another}"
    return f"{words[0].text!r} in {_shorten_text(text)!r}: {place}, {meaning}"


def _select_certain_words(text: str, sample: Sample) -> list[_SideWord]:
    """The side words that a text affirms; none if it may mean another place, or if the frame is unknown."""
    affirmed = sides(text)
    words = [w for w in _find_side_words(text) if w.side in affirmed]
    frames = {w.frame or sample.side for w in words}
    _, phrases = _read_language(text)
    doubts = (phrases.one_sided, phrases.names, phrases.idioms, *(pattern for pattern, _ in phrases.unsafe))
    if not words or "unclear" in frames or any(doubt.search(text) for doubt in doubts):
        return []
    if _relates_places(text):
        return []
    if len({w.frame for w in _find_side_words(text)}) > 1 and denied(text):
        return []
    return [] if len(affirmed) > 1 and all(w.frame is None for w in words) else words


def _relates_places(text: str) -> bool:
    """Whether a text relates two places; "of the image" and the like relate none."""
    _, phrases = _read_language(text)
    return phrases.relating.search(phrases.frame.sub("", text)) is not None


def _find_half(side: Half, frame: str, patients_left: Half | None) -> Half | None:
    """The half of the picture that a side word means; None where nobody knows where the patient's left is."""
    if frame == "image" or patients_left is None:
        return side if frame == "image" else None
    return patients_left if side == "left" else _OPPOSITE[patients_left]


def _shorten_text(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# ---- question and answer --------------------------------------------------------------------------------------------


def names_other_side(question: str, answer: str) -> bool:
    """Whether a question names one side and its answer only the other one; in doubt, False.

    A "no" may name the other side, and so may words that relate two places.
    """
    if yes_no_verdict(answer) == "no" or _relates_places(question) or _relates_places(answer):
        return False
    words = [*_find_side_words(question), *_find_side_words(answer)]
    if len({w.frame for w in words if w.frame}) > 1:
        return False
    asked, answered = ({w.side for w in _find_side_words(text)} & sides(text) for text in (question, answer))
    return len(asked) == len(answered) == 1 and asked != answered


# ---- conversion ----------------------------------------------------------------------------------------------------


def convert_side(sample: Sample, to: Side) -> Sample:
    """Convert the words to another frame: the patient's "left lung" is the "right lung" of the picture.

    Words that state their frame stay, and so do names without a frame, and all words where the patient's left is at
    the picture's left. A picture without a header does not state its view, so the caller must leave out sagittal
    slices. Raises BadInput if a change would be a guess: nobody knows where the patient's left is, an abbreviation,
    words that may mean a side or not, an answer without a frame to a question with one.
    """
    if sample.side == to:
        return sample
    patients_left = _find_patients_left(sample)
    if patients_left == "left":
        return replace(sample, side=to)
    _refuse_unsafe(sample)
    words = [(text, w) for text in _list_texts(sample) for w in _find_side_words(text) if w.frame in (None, "unclear")]
    if not words:
        return replace(sample, side=to)
    if patients_left is None:
        laterality = _get_laterality(sample)
        reason = f"{sample.modality.value} has no rule for where the patient's left is"
        if laterality is not None:
            what = "not side by side" if laterality.left == "none" else "unknown"
            reason = f"the patient's left and right are {what} in this picture (by {laterality.rule})"
        why = f"{reason}; write the text anew for side={to}"
        raise _make_refusal(sample, words[0][1].text, words[0][0], why)
    for text, word in words:
        if word.frame == "unclear":
            raise _make_refusal(sample, word.text, text, 'whose left? Write "of the image" or "the patient\'s"')
    for text in _list_texts(sample):
        if view := _find_other_view(text):
            raise _make_refusal(sample, view[0], text, "a view without left and right; leave the sample out")
    for turn in sample.turns:
        answer = turn.answer.text
        word_without_frame = next((w for w in _find_side_words(answer) if w.frame is None), None)
        if word_without_frame and _find_question_frame(turn.question.text):
            why = "the question names a frame, the answer does not; write it into the answer"
            raise _make_refusal(sample, word_without_frame.text, answer, why)

    return replace(_change_texts(sample, lambda text: _swap_sides(text, sample, (None,))), side=to)


# ---- mirror ---------------------------------------------------------------------------------------------------------

_MIRROR_CHANGES = re.compile(r"clock|mirror|flipp|orient|handed", re.I)


def mirror_sides(sample: Sample) -> Sample:
    """The words for the mirrored picture: left and right are exchanged, whoever's they are.

    The mirrored picture is that of a patient whose sides are exchanged, in the same view. So `ImageRef.laterality`,
    the half of the picture where the patient's left is, stays. Twice it is the sample itself. Raises BadInput if the
    words could become false: abbreviations and what else `convert_side` refuses, names that keep their side word in a
    mirror or sit on one side without it ("left ventricle", "situs"), and what a mirror turns without such a word
    ("clockwise").
    """
    _refuse_unsafe(sample)
    for text in _list_texts(sample):
        patterns = (_MIRROR_CHANGES, *(phrases.names for phrases in _list_phrases(text)))
        if match := next(filter(None, (pattern.search(text) for pattern in patterns)), None):
            raise _make_refusal(sample, match[0], text, "what becomes of it in a mirror is not known")
    return _change_texts(sample, lambda text: _swap_sides(text, sample, (*get_args(Frame), None)))


# ---- shared ---------------------------------------------------------------------------------------------------------


def _change_texts(sample: Sample, change: Callable[[str], str]) -> Sample:
    """The sample with every text of it changed."""

    def change_turn(turn: Turn) -> Turn:
        question, answer = (replace(t, text=change(t.text)) for t in (turn.question, turn.answer))
        return replace(turn, question=question, answer=answer, options=tuple(map(change, turn.options)))

    def change_fact(fact: Fact) -> Fact:
        return replace(fact, name=change(fact.name), side=fact.side and change(fact.side))

    return replace(
        sample,
        turns=tuple(map(change_turn, sample.turns)),
        names=tuple(map(change, sample.names)),
        facts=tuple(map(change_fact, sample.facts)),
    )


def _swap_sides(text: str, sample: Sample, frames: Collection[Frame | None]) -> str:
    """Swap left and right in words of these frames (None: they name none); the case stays."""
    swapped = _exchange_side_words(text, sample, frames)
    if swapped != text and _exchange_side_words(swapped, sample, frames) != text:
        raise _make_refusal(sample, swapped, text, "swapped, the words mean something else; write them otherwise")
    return swapped


def _exchange_side_words(text: str, sample: Sample, frames: Collection[Frame | None]) -> str:
    pieces, position = [], 0
    for word in _find_side_words(text):
        if word.frame in frames:
            pieces += [text[position : word.start], _exchange_word(word, text, sample)]
            position = word.end
    return "".join([*pieces, text[position:]])


def _exchange_word(word: _SideWord, text: str, sample: Sample) -> str:
    opposite = _read_language(text)[0].find_opposite(text, word.start, word.end)
    if opposite is None:
        raise _make_refusal(sample, word.text, text, "of which gender? Write the noun before it, and its article")
    for case in (str.lower, str.title, str.upper):
        if word.text == case(word.text):
            return case(opposite)
    raise _make_refusal(sample, word.text, text, "capitals within the word; write it in one case")


def _refuse_unsafe(sample: Sample) -> None:
    """Raise BadInput if a text holds words that cannot be turned, or sides in a language that no check reads."""
    texts = list(_list_texts(sample))
    languages = {language.name: language for language in map(find_language, texts) if language and language.phrases}
    for text in texts:
        for language in languages.values() or list_languages()[:1]:
            for pattern, why in language.phrases.unsafe if language.phrases else ():
                if match := pattern.search(text):
                    raise _make_refusal(sample, match.group(), text, why)
        for word, name in find_foreign_sides(text, languages):
            turned = ", ".join(language.name for language in list_languages() if language.phrases)
            raise _make_refusal(sample, word, text, f"sides in {name} are not turned; write one of {turned} throughout")


def _make_refusal(sample: Sample, word: str, text: str, why: str) -> BadInput:
    return BadInput(f"sample {sample.id}: {word!r} in {_shorten_text(text)!r}: {why}")

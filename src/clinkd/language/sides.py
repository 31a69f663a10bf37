"""Left and right: compare words with boxes, and convert between the patient's left and the picture's left.

Where the header of an image tells where the patient's left lies (`ImageRef.laterality`), that holds. Otherwise the
convention holds: standard views of CT, MR, X-ray and PET show the patient from the front or from the feet, so that the
patient's left is at the picture's right. Other modalities have no such rule, nor have sagittal and lateral views.

The frame of a side word stands beside it ("of the image", "the patient's left"); otherwise the sample declares it. Some
names hold a side word that is no place and so have no frame (`_NAMES`): chambers and vessels of the heart, parts of the
liver and of the colon, the aortic arch, projections, handedness.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

from clinkd.language.conflicts import denied, sides
from clinkd.language.foreign import find_foreign_sides
from clinkd.language.negation import mentions, yes_no_verdict
from clinkd.records import BadInput, Box, BoxedText, Fact, Laterality, Modality, Sample, Side, Task, Turn

MARGIN = 0.1  # of the width: a box on one side is at least so far from the middle
MIRRORED = frozenset({Modality.CT, Modality.MR, Modality.XRAY, Modality.PET})  # patient's left at the picture's right

_GAP = r"[\s_-]+"
_LR = r"(?:left|right)"
_PICTURE = (
    r"(?:images?|pictures?|photos?|photographs?|scans?|slices?|films?|radiographs?|x-?rays?|views?|frames?|screens?"
    r"|figures?|panels?|sections?)"
)
_PERSON = r"(?:patients?|body|subject|person)"
_PLACE = (
    r"(?:side|hand|half|part|portion|third|edge|border|margin|corner|quadrant|region|area|aspect|upper|lower|top"
    r"|bottom|middle|central|cent(?:er|re)|and|or|/|left|right)"
)
_ARTICLE = r"(?:the|this|that|our|your|each)\s+(?:[\w-]+\s+)?"
_SIDE_WORD = re.compile(rf"(?<![^\W_])({_LR})(most|wards?|hand|sided|side)?(?![^\W_])", re.I)
_BEHIND_IMAGE = re.compile(rf"(?:{_GAP}{_PLACE})*\s+of\s+{_ARTICLE}{_PICTURE}\b", re.I)
_BEHIND_PATIENT = re.compile(rf"(?:{_GAP}{_PLACE})*\s+of\s+{_ARTICLE}{_PERSON}\b", re.I)
_BEHIND_UNCLEAR = re.compile(
    rf"(?:{_GAP}{_PLACE})*\s+(?:in|on|within)\s+{_ARTICLE}{_PICTURE}\b|(?:\s+\w+){{1,3}}\s+of\s+{_ARTICLE}{_PERSON}\b",
    re.I,
)
_BETWEEN = rf"(?:(?:own|upper|lower|anterior|posterior)\s+)?(?:{_LR}\s+(?:or|and|than|versus|vs\.?)\s+(?:the\s+)?)?$"
_BEFORE_IMAGE = re.compile(rf"\b(?:image|picture|photo|viewer|observer|reader|screen)(?:['’]s\s+|-){_BETWEEN}", re.I)
_BEFORE_PATIENT = re.compile(
    rf"\b(?:(?:patient|subject|person|body)(?:['’]s\s+|s['’]?\s+|-)|(?:his|her|their|anatomic(?:al)?)\s+){_BETWEEN}",
    re.I,
)
_SIDE_OF_IMAGE = re.compile(rf"\b(?:side|half)\s+of\s+{_ARTICLE}{_PICTURE}\b", re.I)
_SIDE_OF_PATIENT = re.compile(
    rf"\b(?:side|half)\s+of\s+{_ARTICLE}{_PERSON}\b|\b{_PERSON}(?:['’]s|s['’]?)\s+side\b", re.I
)

# Names without a frame: they stay as they are when the frame of the words changes.
_NAMES = re.compile(
    rf"\b(?:{_LR}(?:{_GAP}(?:and|or){_GAP}{_LR})?(?:{_GAP}sided)?{_GAP}(?:main{_GAP})?(?:"
    r"heart|ventric\w*|atri(?:um|a|al)\b|auric\w*|bundle|coronary|circumflex|anterior descending"
    r"|hepatic|liver|portal|lobes? of (?:the )?liver|colon|colic|hemicolectomy|gastr\w+|aort\w+"
    rf"|(?:anterior|posterior){_GAP}oblique|(?:lateral{_GAP})?decubitus"
    rf"|lateral{_GAP}(?:views?|projections?|films?|radiographs?|position)|handed\w*|to{_GAP}{_LR}{_GAP}shunt\w*)"
    r"|(?:levo|laevo|dextro)\w+|(?:levo|laevo|dextro)-\w+|situs)\b",
    re.I,
)
# Left and right that mean no side.
_IDIOMS = re.compile(
    r"\bright\s+(?:away|now|next\s+to|beside)\b|\ball\s+right\b|\bright\s+or\s+wrong\b|\bright-angled\b"
    r"|\bright\s+(?:answer|choice|option|diagnosis)\b|\bat\s+(?:a\s+)?right\s+angles?\b|\bright\s+angles?\s+(?:to|with)\b"
    r"|\bleft\s+(?:behind|over|untreated|in\s+place|in\s+situ|alone|out|intact|unchanged|open)\b",
    re.I,
)
# Words that cannot be converted by exchanging left and right, and why.
_UNSAFE = (
    (
        re.compile(
            r"(?<![\d/.])(?<!\d )\b[LR]\b(?!\s+wave|[\s-]*spine|/O)|\b(?:L[Tt]|R[Tt]|O[DS])\b|\b[lr]t\."
            r"|\b[LR](?:UL|LL|ML|UQ|LQ|IF|UZ|LZ|MZ|UE|LE)\b"
        ),
        "an abbreviation; write left or right in full",
    ),
    (re.compile(r"\b(?:dext(?:er|ra|rum|ri)|sinist(?:er|ra|rum|ri))\b", re.I), "Latin; write left or right"),
    (re.compile("[左右]"), "not English; translate it"),
    (
        re.compile(r"(?<!\bthe )\bright\s+(?:above|below|under|behind|after|before|at|in|here|there)\b", re.I),
        "a side, or just there? Write it otherwise",
    ),
)
_OTHER_VIEW = re.compile(
    rf"\bsagittal\b|\blateral{_GAP}(?:{_PICTURE}|projections?|chest|cxr|spine)\b|\bposterior{_GAP}view\b", re.I
)
# A picture of one limb, one breast or one eye shows one side as a whole: its halves mean nothing.
_ONE_SIDED = re.compile(
    r"\b(?:knees?|hands?|foot|feet|wrists?|ankles?|legs?|arms?|elbows?|femurs?|femoral|tibia\w*|fibula\w*|hips?"
    r"|shoulders?|humer\w+|fingers?|toes?|thighs?|calf|forearms?|radius|ulna|patell\w+|breasts?|mamm\w+|eyes?|retina\w*"
    r"|fundus|macula\w*|optic|ears?|cochlea\w*|tooth|teeth|molars?|dental|(?:upper|lower)\s+(?:limb|extremity))\b",
    re.I,
)
# Words that relate two places, so that a side may not be the side of the box.
_RELATING = re.compile(
    rf"\b{_LR}\s+(?:side\s+)?(?:of|to|from)\b|\b(?:adjacent|near|next|beside|between|from|towards?|into|across|relative"
    r"|relation|compared|than|opposite|contralateral|medial|lateral|crosse?s?|crossing|midline|shift\w*|displac\w*"
    r"|deviat\w*|rotat\w*|extend\w*|extension|abut\w*|mirror\w*)\b",
    re.I,
)
_PIECES = re.compile(r"[.;,:!?\n]|\b(?:and|but|with|which|while|whereas|without|that)\b", re.I)

Half = Literal["left", "right"]
_OPPOSITE: dict[str, Half] = {"left": "right", "right": "left"}
Frame = Literal["image", "patient", "unclear"]


class _SideWord(NamedTuple):
    """A side word of a text, and the frame named beside it; None means the frame of the sample."""

    text: str
    start: int
    end: int
    side: Half
    frame: Frame | None


def _mentions_side(text: str) -> bool:
    lower = text.lower()
    return "left" in lower or "right" in lower


@lru_cache(maxsize=65536)
def _find_side_words(text: str) -> tuple[_SideWord, ...]:
    """The side words of a text; side words in names and idioms do not count."""
    if not _mentions_side(text):
        return ()
    excluded_spans = [m.span() for pattern in (_NAMES, _IDIOMS) for m in pattern.finditer(text)]
    return tuple(
        _SideWord(m[0], *m.span(), "left" if m[1].lower() == "left" else "right", _find_frame(text, *m.span()))
        for m in _SIDE_WORD.finditer(text)
        if not any(start <= m.start() < end for start, end in excluded_spans)
    )


def _find_frame(text: str, start: int, end: int) -> Frame | None:
    before = text[max(0, start - 80) : start]
    if _BEHIND_IMAGE.match(text, end) or _BEFORE_IMAGE.search(before):
        return "image"
    if _BEHIND_PATIENT.match(text, end) or _BEFORE_PATIENT.search(before):
        return "patient"
    return "unclear" if _BEHIND_UNCLEAR.match(text, end) else None


def _find_question_frame(question: str) -> str | None:
    """The frame that a question names, or None; the answer uses the same frame."""
    for word in _find_side_words(question):
        if word.frame:
            return word.frame
    return "image" if _SIDE_OF_IMAGE.search(question) else "patient" if _SIDE_OF_PATIENT.search(question) else None


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
    if not any(map(_mentions_side, texts)) or any(_OTHER_VIEW.search(text) for text in texts):
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
        pieces = [piece.strip() for piece in _PIECES.split(answer.words)]
        stated = [piece for piece in pieces if _find_side_words(piece)]
        if len(stated) == 1 and any(mentions(stated[0], _SIDE_WORD.sub(" ", name)) for name in names):
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
    doubts = (_ONE_SIDED, _NAMES, _IDIOMS, *(pattern for pattern, _ in _UNSAFE))
    if not words or "unclear" in frames or any(doubt.search(text) for doubt in doubts):
        return []
    if _RELATING.search(_remove_frame_phrases(text)):
        return []
    if len({w.frame for w in _find_side_words(text)}) > 1 and denied(text):
        return []
    return [] if len(affirmed) > 1 and all(w.frame is None for w in words) else words


def _remove_frame_phrases(text: str) -> str:
    """The text without "of the image" and the like, which relate to no other place."""
    return re.sub(rf"\bof\s+{_ARTICLE}(?:{_PICTURE}|{_PERSON})\b", "", text, flags=re.I)


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
    texts = [_remove_frame_phrases(text) for text in (question, answer)]
    if yes_no_verdict(answer) == "no" or any(_RELATING.search(text) for text in texts):
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
    _refuse_matches(sample, _UNSAFE)
    for text in _list_texts(sample):
        if foreign_words := find_foreign_sides(text):
            raise _make_refusal(
                sample, foreign_words[0], text, "only left and right in English are turned; write these"
            )
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
    _refuse_matches(sample, ((_OTHER_VIEW, "a view without left and right; leave the sample out"),))
    for turn in sample.turns:
        answer = turn.answer.text
        word_without_frame = next((w for w in _find_side_words(answer) if w.frame is None), None)
        if word_without_frame and _find_question_frame(turn.question.text):
            why = "the question names a frame, the answer does not; write it into the answer"
            raise _make_refusal(sample, word_without_frame.text, answer, why)

    def swap_text(value: BoxedText) -> BoxedText:
        return replace(value, text=_swap_sides(value.text, sample))

    def swap_fact(fact: Fact) -> Fact:
        return replace(fact, name=_swap_sides(fact.name, sample), side=fact.side and _swap_sides(fact.side, sample))

    def swap_turn(turn: Turn) -> Turn:
        options = tuple(_swap_sides(option, sample) for option in turn.options)
        return replace(turn, question=swap_text(turn.question), answer=swap_text(turn.answer), options=options)

    return replace(
        sample,
        turns=tuple(swap_turn(turn) for turn in sample.turns),
        names=tuple(_swap_sides(name, sample) for name in sample.names),
        facts=tuple(swap_fact(fact) for fact in sample.facts),
        side=to,
    )


def _swap_sides(text: str, sample: Sample) -> str:
    """Swap left and right in words that name no frame; the case stays."""
    swapped = _exchange_side_words(text, sample)
    if swapped != text and _exchange_side_words(swapped, sample) != text:
        raise _make_refusal(sample, swapped, text, "swapped, the words mean something else; write them otherwise")
    return swapped


def _exchange_side_words(text: str, sample: Sample) -> str:
    pieces, position = [], 0
    for word in _find_side_words(text):
        if word.frame is None:
            pieces += [text[position : word.start], _exchange_word(word, text, sample)]
            position = word.end
    return "".join([*pieces, text[position:]])


def _exchange_word(word: _SideWord, text: str, sample: Sample) -> str:
    stem, ending = word.text[: len(word.side)], word.text[len(word.side) :]  # "left" and "ward"
    for case in (str.lower, str.title, str.upper):
        if stem == case(stem):
            return case(_OPPOSITE[word.side]) + ending
    raise _make_refusal(sample, word.text, text, "capitals within the word; write it in one case")


def _refuse_matches(sample: Sample, patterns: Iterable[tuple[re.Pattern[str], str]]) -> None:
    for text in _list_texts(sample):
        for pattern, why in patterns:
            if match := pattern.search(text):
                raise _make_refusal(sample, match.group(), text, why)


def _make_refusal(sample: Sample, word: str, text: str, why: str) -> BadInput:
    return BadInput(f"sample {sample.id}: {word!r} in {_shorten_text(text)!r}: {why}")

"""Decide by code whether a rewritten answer may be learned from, whoever wrote it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import chain

from clinkd.language.conflicts import conflicts, denied, numbers, sides
from clinkd.language.facts import Lexicon, read_facts
from clinkd.language.negation import mentioned_names, yes_no_verdict
from clinkd.records import BOX_MARK, BoxedText, Sample

_MARKUP = re.compile(
    r"<[^>]*>?|\[(?!box\])[^\]]*\]?|&\w+;|&#\d+;|https?\S*|www\.\S+|\]\(|```|`|\*\*|__|^#+ |\{\{|\}\}|<\||\|>",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
_DIGITS = re.compile(r"\d+(?:\.\d+)?")
_SHORTEST, _LONGEST, _SPARE = 0.5, 2.0, 20  # times the truth's length, and characters a short truth may grow by


def verify(sample: Sample, text: BoxedText, lexicon: Lexicon) -> str | None:
    """Why `text` may not replace the sample's true answer, in one line; None if it may.

    The boxes must be the truth's, exactly and in order. The lexicon's names must be the truth's, in the truth's order
    where there are several boxes; sides, counts, yes or no, and the attributes of each name must be kept; the length
    stays within bounds; no markup, links, control characters or figures that the truth does not hold.
    Each box must belong to the same name as in the truth. Letters beyond ASCII that are not in the truth are also read
    without their accents, and letters of another alphabet, which only look like them, are refused.
    The truth itself always passes.
    """
    if text == sample.answer:
        return None
    return next(_all_objections(sample.answer, text, lexicon), None)


def _all_objections(truth: BoxedText, text: BoxedText, lexicon: Lexicon) -> Iterator[str]:
    """Objections to the text as written and as it looks: people read "l\u00e9ft" as "left", and no rule does."""
    yield from _length_fault(truth, text)  # first: the rest is slow on a long text
    truth_characters = set(unicodedata.normalize("NFC", truth.text + truth.text.casefold() + truth.text.upper()))
    new = {c for c in unicodedata.normalize("NFC", text.text) if not c.isascii() and c not in truth_characters}
    decomposed = {c: unicodedata.normalize("NFKD", c) for c in new}
    ascii_lookalikes = {
        c: b[0] for c, b in decomposed.items() if b[0].isascii() and b[0].isalpha() and all(map(_is_accent, b[1:]))
    }
    if strange := sorted(c for c in new - set(ascii_lookalikes) if unicodedata.category(c)[0] in "LMN"):
        yield f"letters of another alphabet than the truth's: {', '.join(f'U+{ord(c):04X}' for c in strange[:5])}"
    yield from _objections(truth, text, lexicon)
    if ascii_lookalikes:
        plain = "".join(ascii_lookalikes.get(c, c) for c in unicodedata.normalize("NFC", text.text))
        yield from _objections(truth, BoxedText(plain, text.boxes), lexicon)


def _is_accent(c: str) -> bool:
    return unicodedata.category(c) == "Mn"


def _objections(truth: BoxedText, text: BoxedText, lexicon: Lexicon) -> Iterator[str]:
    """Every objection, the gravest first except for a length that is too small."""
    if text.boxes != truth.boxes:
        yield f"boxes differ: {len(text.boxes)} given, {len(truth.boxes)} in the truth, equal and in order wanted"
    names, wanted = mentioned_names(text.words, lexicon.names), mentioned_names(truth.words, lexicon.names)
    if foreign := set(names) - set(wanted):
        yield f"names what the truth does not: {', '.join(sorted(foreign))}"
    if missing := set(wanted) - set(names):
        yield f"leaves out: {', '.join(sorted(missing))}"
    if len(truth.boxes) > 1 and (names != wanted or _box_owners(text, lexicon) != _box_owners(truth, lexicon)):
        yield "names stand in another order than their boxes"
    if clash := conflicts(text.words, truth.words):
        yield f"contradicts the truth: {', '.join(clash)}"
    if sides(text.words) != sides(truth.words):
        yield "left or right added or left out"
    if numbers(text.words) != numbers(truth.words):
        yield "a count added or left out"
    if yes_no_verdict(text.words) != yes_no_verdict(truth.words) or bool(denied(text.words)) != bool(
        denied(truth.words)
    ):
        yield "a yes, a no or a negation added or left out"
    if set(read_facts(text.words, lexicon)) != set(read_facts(truth.words, lexicon)):
        yield "other attributes than the truth's"
    yield from _form_faults(truth, text)


def _box_owners(text: BoxedText, lexicon: Lexicon) -> list[str | None]:
    """The name that each box belongs to: the last before it in its sentence, or else the next, or the one of the
    sentence before."""
    owners: list[str | None] = []
    for sentence in _SENTENCE_END.split(text.text):
        parts = [mentioned_names(part, lexicon.names) for part in sentence.split(BOX_MARK)]
        name = owners[-1] if owners else None
        for position in range(1, len(parts)):
            before, after = (
                list(chain.from_iterable(name_lists)) for name_lists in (parts[:position], parts[position:])
            )
            nearest = before[-1:] if parts[0] else after[:1]
            name = nearest[0] if nearest else name
            owners.append(name)
    return owners


def _length_fault(truth: BoxedText, text: BoxedText) -> Iterator[str]:
    length, wanted = len(text.text), len(truth.text)
    if length > _LONGEST * wanted + _SPARE:
        yield f"length {length} characters against {wanted} of the truth"


def presentable(truth: BoxedText, text: BoxedText) -> str | None:
    """Why a text may not be learned from, even if a person who knows better than the truth wrote it."""
    return next(_text_faults(truth, text), None)


def _form_faults(truth: BoxedText, text: BoxedText) -> Iterator[str]:
    length, wanted = len(text.text), len(truth.text)
    if length < _SHORTEST * wanted:
        yield f"length {length} characters against {wanted} of the truth"
    yield from _text_faults(truth, text)
    counted = {str(n) for n in numbers(truth.words)}
    if figures := set(_DIGITS.findall(text.text)) - set(_DIGITS.findall(truth.text)) - counted:
        yield f"figures the truth does not hold: {', '.join(sorted(figures))}"


def _text_faults(truth: BoxedText, text: BoxedText) -> Iterator[str]:
    if not text.text.strip():
        yield "empty"
    if marks := [m for m in _MARKUP.findall(text.text) if m not in truth.text]:
        yield f"markup or a link: {marks[0][:2]!r}..."  # no more: no scrubber finds half a name
    if any(unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" for c in set(text.text) - set(truth.text)):
        yield "control characters"

"""May a rewritten answer be learned from: decided by code, whoever wrote it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from clinkd.agreement import Lexicon, conflicts, denied, named, numbers, read_facts, sides, verdict
from clinkd.records import BoxedText, Sample

_MARKUP = re.compile(
    r"<[^>]*>?|\[(?!box\])[^\]]*\]?|&\w+;|&#\d+;|https?\S*|www\.\S+|\]\(|```|`|\*\*|__|^#+ |\{\{|\}\}|<\||\|>",
    re.IGNORECASE | re.MULTILINE,
)
_DIGITS = re.compile(r"\d+(?:\.\d+)?")
_SHORTEST, _LONGEST, _SPARE = 0.5, 2.0, 20  # times the truth's length, and characters a short truth may grow by


def verify(sample: Sample, text: BoxedText, lexicon: Lexicon) -> str | None:
    """Why `text` may not stand for the sample's true answer, in one line; None where it may.

    The boxes must be the truth's, exactly and in order. The lexicon's names must be the truth's, in the truth's order
    where there are several boxes; sides, counts, yes or no, and the attributes of each name must be kept; the length
    stays within bounds; no markup, links, control characters or figures that the truth does not hold.
    The truth itself always passes.
    """
    if text == sample.answer:
        return None
    return next(_objections(sample.answer, text, lexicon), None)


def _objections(truth: BoxedText, text: BoxedText, lexicon: Lexicon) -> Iterator[str]:
    """Every objection, the gravest first but for a length that is out of bounds."""
    yield from _too_long(truth, text)  # first: what follows takes its time with a long text
    if text.boxes != truth.boxes:
        yield f"boxes differ: {len(text.boxes)} given, {len(truth.boxes)} in the truth, equal and in order wanted"
    names, wanted = named(text.words, lexicon.names), named(truth.words, lexicon.names)
    if foreign := set(names) - set(wanted):
        yield f"names what the truth does not: {', '.join(sorted(foreign))}"
    if gone := set(wanted) - set(names):
        yield f"leaves out: {', '.join(sorted(gone))}"
    if len(truth.boxes) > 1 and names != wanted:
        yield "names stand in another order than their boxes"
    if clash := conflicts(text.words, truth.words):
        yield f"contradicts the truth: {', '.join(clash)}"
    if sides(text.words) != sides(truth.words):
        yield "left or right added or left out"
    if numbers(text.words) != numbers(truth.words):
        yield "a count added or left out"
    if verdict(text.words) != verdict(truth.words) or bool(denied(text.words)) != bool(denied(truth.words)):
        yield "a yes, a no or a negation added or left out"
    if set(read_facts(text.words, lexicon)) != set(read_facts(truth.words, lexicon)):
        yield "other attributes than the truth's"
    yield from _form(truth, text)


def _too_long(truth: BoxedText, text: BoxedText) -> Iterator[str]:
    length, wanted = len(text.text), len(truth.text)
    if length > _LONGEST * wanted + _SPARE:
        yield f"length {length} characters against {wanted} of the truth"


def _form(truth: BoxedText, text: BoxedText) -> Iterator[str]:
    length, wanted = len(text.text), len(truth.text)
    if length < _SHORTEST * wanted:
        yield f"length {length} characters against {wanted} of the truth"
    if not text.text.strip():
        yield "empty"
    if marks := [m for m in _MARKUP.findall(text.text) if m not in truth.text]:
        yield f"markup or a link: {marks[0][:20]!r}"
    if any(unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" for c in set(text.text) - set(truth.text)):
        yield "control characters"
    counted = {str(n) for n in numbers(truth.words)}
    if figures := set(_DIGITS.findall(text.text)) - set(_DIGITS.findall(truth.text)) - counted:
        yield f"figures the truth does not hold: {', '.join(sorted(figures))}"

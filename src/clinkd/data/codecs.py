"""Boxes in model text, one spelling a model family; coordinates of any other kind are reported, never guessed.

Between `BoxedText` (words with `[box]` marks, boxes in fractions) and what a model reads and writes. Every codec names
the special tokens its tokenizer needs and the step of its grid. A coordinate comes back within half a step, with two
exceptions: a box thinner than a step is widened to one, and the grid [0,1000) of the Qwen spellings ends a step early.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from clinkd.records import BOX_MARK, BadInput, Box, BoxedText

SPELLINGS = ("qwen2-vl", "qwen-vl", "digits", "locations")
Corners = tuple[int, int, int, int]  # x1, y1, x2, y2 on a codec's grid

_NUMBER = r"-?\d+(?:\.\d+)?"
_POINT = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
_QWEN = re.compile(r"\((\d{1,4}),\s*(\d{1,4})\),\s*\((\d{1,4}),\s*(\d{1,4})\)")
# whatever looks like a box in any spelling: text of another codec, torn marks, bare coordinates, a mark without box
_LOOKS_LIKE_A_BOX = (
    r"<\|box_start\|>[\d\s,().+-]*(?:<\|box_end\|>)?|<\|box_end\|>|<box>[\d\s,().+-]*(?:</box>)?|</box>"
    rf"|(?:<[xy]_\d+>\s*)*<[xy]_\d+>|{_POINT}\s*,?\s*{_POINT}|\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*\]"
    + "|"
    + re.escape(BOX_MARK)
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a model's text says, and every piece that looks like a box but could not be read (cut from the text)."""

    answer: BoxedText
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Codec(ABC):
    """One spelling of boxes. `bins` values an axis; value k stands for (k + `offset`) / bins."""

    name: str
    bins: int
    special_tokens: tuple[str, ...]
    offset: float
    own: str  # regular expression of one well-formed box
    passed_over: tuple[str, ...] = ()  # marks around names that are not part of the words
    _any: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_any", re.compile(f"(?P<own>{self.own})|{_LOOKS_LIKE_A_BOX}"))

    @property
    def step(self) -> float:
        """Distance of neighbouring grid values, in fractions of the image."""
        return 1 / self.bins

    def encode(self, text: BoxedText) -> str:
        """The text with each mark replaced by its box.

        Raises BadInput where the words already hold something that would be read as a box.
        """
        words = text.text.split(BOX_MARK)
        for piece in words:
            if stray := next((m for m in self._any.finditer(piece) if m["own"] or "<" in m.group()), None):
                raise BadInput(
                    f"the words of {text.text!r} hold {stray.group()!r}, a box written out: "
                    f"write {BOX_MARK} in its place and give the box beside the text"
                )
        pieces = [words[0]]
        for box, after in zip(text.boxes, words[1:], strict=True):
            pieces.append(self._join(self._spell(self.corners(box)), after))
        return "".join(pieces)

    def decode(self, raw: str) -> Decoded:
        """The boxes that are spelled as this codec spells them, and what else looks like one."""
        boxes: list[Box] = []
        unread: list[str] = []

        def replace(match: re.Match[str]) -> str:
            box = self._box(self._values(match.group())) if match["own"] else None
            if box is None:
                unread.append(match.group())
                return " "  # a blank, lest what stood around it join to a new mark
            boxes.append(box)
            return BOX_MARK

        for mark in self.passed_over:
            raw = raw.replace(mark, "")
        text = self._any.sub(replace, raw)
        return Decoded(BoxedText(text, tuple(boxes)), tuple(unread))

    def corners(self, box: Box) -> Corners:
        """A box on the grid, widened where both its edges fall on one value."""
        x1, x2 = self._edges(box.x1, box.x2)
        y1, y2 = self._edges(box.y1, box.y2)
        return x1, y1, x2, y2

    def _edges(self, low: float, high: float) -> tuple[int, int]:
        first, last = (self._value(v) for v in (low, high))
        if first < last:
            return first, last
        middle = (low + high) / 2 * self.bins - self.offset  # the neighbour on the side where the box lies
        first = first - 1 if middle < first else first
        first = min(max(first, 0), self.bins - 2)
        return first, first + 1

    def _value(self, fraction: float) -> int:
        return min(max(int(fraction * self.bins - self.offset + 0.5), 0), self.bins - 1)

    def _box(self, corners: Corners) -> Box | None:
        """None where the corners are outside the grid, swapped or without area."""
        if any((c + self.offset) / self.bins > 1 for c in corners):
            return None
        x1, y1, x2, y2 = ((c + self.offset) / self.bins for c in corners)
        return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None

    def _join(self, box: str, after: str) -> str:
        return box + after

    @abstractmethod
    def _spell(self, corners: Corners) -> str:
        """Grid values as text."""

    @abstractmethod
    def _values(self, spelled: str) -> Corners:
        """Grid values of a match of `own`."""


class _Thousandths(Codec):
    """`(x1,y1),(x2,y2)` between two marks, values round(1000 * fraction) up to 999; 1000 is read as the border."""

    def _spell(self, corners: Corners) -> str:
        x1, y1, x2, y2 = corners
        return f"{self.special_tokens[0]}({x1},{y1}),({x2},{y2}){self.special_tokens[1]}"

    def _values(self, spelled: str) -> Corners:
        found = _QWEN.search(spelled)
        assert found is not None
        x1, y1, x2, y2 = (int(v) for v in found.groups())
        return x1, y1, x2, y2


class _Digits(Codec):
    """`<|box_start|>` and eight digits, two a coordinate: nine tokens; no end mark is needed at a fixed length."""

    def _spell(self, corners: Corners) -> str:
        return self.special_tokens[0] + "".join(f"{c:02d}" for c in corners)

    def _values(self, spelled: str) -> Corners:
        digits = spelled[-8:]
        x1, y1, x2, y2 = (int(digits[i : i + 2]) for i in (0, 2, 4, 6))
        return x1, y1, x2, y2

    def _join(self, box: str, after: str) -> str:
        return f"{box} {after}" if after[:1].isdigit() else box + after  # a ninth digit would spoil the box


class _Locations(Codec):
    """Four special tokens, those of x and y apart: `<x_03><y_05><x_09><y_12>`."""

    def _spell(self, corners: Corners) -> str:
        width = _padding(self.bins)
        return "".join(f"<{axis}_{c:0{width}d}>" for axis, c in zip("xyxy", corners, strict=True))

    def _values(self, spelled: str) -> Corners:
        x1, y1, x2, y2 = (int(v) for v in re.findall(r"\d+", spelled))
        return x1, y1, x2, y2


def _padding(bins: int) -> int:
    return max(2, len(str(bins - 1)))


def codec(name: str, bins: int = 1000) -> Codec:
    """The codec of a spelling; `bins` counts for `digits` (10..100) and `locations` (2..1000) only.

    `digits` and `locations` put a value in the middle of its bin: with n symbols the error is at most 1/2n, against
    1/2(n-1) when the symbols sit on the edges 0..1, and a hundred bins fit two digits. Raises BadInput on an unknown
    name or an impossible number of bins.
    """
    if name == "qwen2-vl":
        own = rf"<\|box_start\|>\s*{_QWEN.pattern}\s*<\|box_end\|>"
        names = ("<|object_ref_start|>", "<|object_ref_end|>")
        return _Thousandths(name, 1000, ("<|box_start|>", "<|box_end|>"), 0, own, names)
    if name == "qwen-vl":
        own = rf"<box>\s*{_QWEN.pattern}\s*</box>"
        return _Thousandths(name, 1000, ("<box>", "</box>"), 0, own, ("<ref>", "</ref>"))
    if name == "digits":
        if not 10 <= bins <= 100:
            raise BadInput(f"model.box_bins={bins}: two digits spell 10..100 bins")
        return _Digits(name, bins, ("<|box_start|>",), 0.5, r"<\|box_start\|>\s*[0-9]{8}(?![0-9])")
    if name == "locations":
        if not 2 <= bins <= 1000:
            raise BadInput(f"model.box_bins={bins}: 2..1000 location tokens an axis are possible")
        width = _padding(bins)
        tokens = tuple(f"<{axis}_{k:0{width}d}>" for axis in "xy" for k in range(bins))
        one = r"<{}_[0-9]{{" + str(width) + "}}>"
        own = r"\s*".join(one.format(axis) for axis in "xyxy")
        return _Locations(name, bins, tokens, 0.5, own)
    raise BadInput(f"model.boxes={name}: one of {', '.join(SPELLINGS)} is wanted")

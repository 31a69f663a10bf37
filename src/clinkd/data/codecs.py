"""Boxes in model text, one spelling for each model family. Other coordinates are reported, never guessed.

    qwen2-vl      <|box_start|>(x1,y1),(x2,y2)<|box_end|>   thousandths 0..999
    qwen-vl       <box>(x1,y1),(x2,y2)</box>                thousandths 0..999
    qwen2.5-vl    <|box_start|>(x1,y1),(x2,y2)<|box_end|>   pixels of the resized image, so its size must be given
    qwen3-vl      {"bbox_2d": [x1, y1, x2, y2]}             thousandths 0..1000
    gemma3        {"box_2d": [y1, x1, y2, x2]}              thousandths 0..1000, decimals are read
    normalised    [x1,y1,x2,y2]                             fractions 0..1, three decimals
    digits        <|box_start|>03050912                     two digits for each coordinate, middles of bins
    locations     <x_03><y_05><x_09><y_12>                  special tokens, middles of bins

A codec converts between `BoxedText` (words with `[box]` marks, boxes in fractions) and the text of a model. It names
the special tokens for the tokenizer and the step of its grid. A coordinate comes back within half a step, with two
exceptions: a box thinner than a step is widened to one step, and the grid [0,1000) of qwen2-vl and qwen-vl ends one
step early. Qwen2.5-VL and Qwen3-VL like to answer with JSON, a list of objects with "bbox_2d" and "label", often
between ``` fences: both codecs read it, as "label[box], label[box]". So does MedGemma 1.5 with "box_2d" (its notebook
cxr_anatomy_localization, github.com/Google-Health/medgemma).
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from clinkd.boxed_text import BOX_MARK, BadInput, Box, BoxedText
from clinkd.data.grids import Size
from clinkd.spelling import suggest

SPELLINGS = ("qwen2-vl", "qwen-vl", "qwen2.5-vl", "qwen3-vl", "gemma3", "normalised", "digits", "locations")
MOST = 10**6  # beyond all images: what is larger, of however many digits, is no coordinate
Corners = tuple[int, int, int, int]  # x1, y1, x2, y2 on a codec's grid

_NUMBER = r"-?\d+(?:\.\d+)?"
_POINT = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
# everything that looks like a box in any spelling: text of another codec, torn marks, bare coordinates, a mark alone
_LOOKS_LIKE_A_BOX = (
    r"<\|box_start\|>[\d\s,().+-]*(?:<\|box_end\|>)?|<\|box_end\|>|<box>[\d\s,().+-]*(?:</box>)?|</box>"
    rf"|(?:<[xy]_\d+>\s*)*<[xy]_\d+>|{_POINT}\s*,?\s*{_POINT}|\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER}){{3}}\s*\]"
    + "|"
    + re.escape(BOX_MARK)
)
_QWEN2 = ("<|box_start|>", "<|box_end|>")
_QWEN = ("<box>", "</box>")
_REFS = ("<|object_ref_start|>", "<|object_ref_end|>")
_QWEN_REFS = ("<ref>", "</ref>")
_FOREIGN = {"<|box_start|>": "qwen2-vl", "<|box_end|>": "qwen2-vl", "<box>": "qwen-vl", "</box>": "qwen-vl"}


@dataclass(frozen=True, slots=True)
class Decoded:
    """The text and boxes of a model's answer, and every piece that looks like a box but is none (cut from the text)."""

    answer: BoxedText
    unparsed_boxes: tuple[str, ...] = ()


def _leave_unread(piece: str) -> Decoded:
    """Leave the piece unread. A blank replaces it, so that its neighbours do not form a new mark."""
    return Decoded(BoxedText(" "), (piece,))


@dataclass(frozen=True)
class Codec(ABC):
    """One spelling of boxes. Each axis has `bins` steps; value k means (k + `offset`) / bins.

    Where `needs_size` is true, the grid is the resized image itself: `bins` is 0, and `encode`, `decode` and `why`
    raise BadInput unless they get its size in pixels. Other codecs ignore the size.
    """

    name: str
    bins: int
    special_tokens: tuple[str, ...]
    offset: float
    pattern: str  # regular expression of one well-formed box; its groups are the coordinates
    ignored_marks: tuple[str, ...] = ()  # marks around names; they are no part of the words
    writes_border: bool = False  # whether the value `bins`, the right and lower border, is written
    marks: tuple[tuple[str, str], ...] = ()  # around a box
    needs_size: ClassVar[bool] = False
    extras: ClassVar[str] = ""  # of other pieces to read, tried before those that look like a box
    frame: ClassVar[str] = ""  # the declared frame of the coordinates
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _finder: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pattern", re.compile(self.pattern))
        object.__setattr__(self, "_finder", re.compile(f"(?P<box>{self.pattern})|{self.extras}{_LOOKS_LIKE_A_BOX}"))

    def steps(self, size: Size | None = None) -> tuple[float, float]:
        """Distance between neighbouring grid values along x and y, in fractions of the image."""
        grid = self._resolve_grid(size)
        return 1 / grid.width, 1 / grid.height

    def encode(self, text: BoxedText, size: Size | None = None) -> str:
        """The text with each mark replaced by its box; `size` is the size of the resized image, in pixels.

        Raises BadInput where the words already hold text that would be read as a box.
        """
        return self.encode_with_places(text, size)[0]

    def encode_with_places(self, text: BoxedText, size: Size | None = None) -> tuple[str, list[tuple[int, int]]]:
        """The text as `encode` gives it, and for each box where its coordinates begin and end there, in characters:
        from the first digit to the last, without the marks around them."""
        words = text.text.split(BOX_MARK)
        for piece in words:
            if stray := next((m for m in self._finder.finditer(piece) if self._reads_as_box(m)), None):
                raise BadInput(
                    f"the words of {text.text!r} hold {stray.group()!r}, a box written out: "
                    f"write {BOX_MARK} in its place and give the box beside the text"
                )
        grid = self._resolve_grid(size)
        encoded, places = words[0], list[tuple[int, int]]()
        for box, after in zip(text.boxes, words[1:], strict=True):
            spelled, start = self._spell_box(self._snap_box(box, grid)), len(encoded)
            digits = [m.start() for m in re.finditer(r"(?<!box_)\d", spelled)]
            places.append((start + digits[0], start + digits[-1] + 1))
            encoded += self._join_after(spelled, after)
        return encoded, places

    def decode(self, raw: str, size: Size | None = None) -> Decoded:
        """The boxes in the spelling of this codec, and all other pieces that look like a box."""
        grid = self._resolve_grid(size)
        if self._has_no_box(raw):
            return Decoded(BoxedText(raw))
        for mark in self.ignored_marks:
            raw = raw.replace(mark, "")
        boxes: list[Box] = []
        unread: list[str] = []

        def replace(match: re.Match[str]) -> str:
            piece = self._read_piece(match, grid)
            boxes.extend(piece.answer.boxes)
            unread.extend(piece.unparsed_boxes)
            return piece.answer.text

        text = self._finder.sub(replace, raw)
        return Decoded(BoxedText(text, tuple(boxes)), tuple(unread))

    def explain_unread(self, piece: str, size: Size | None = None) -> str:
        """Why a piece that `decode` left unread is no box, and the way out, in one line."""
        if piece.strip() == BOX_MARK:
            return f"{BOX_MARK} is kept for the places of boxes; write it otherwise"
        grid = self._resolve_grid(size)
        example = self._spell_box(self._snap_box(Box(0.25, 0.25, 0.5, 0.5), grid))
        return (
            self._explain_foreign(piece)
            or self._explain_torn(piece)
            or self._explain_misplaced(self._find_numbers(piece), piece, grid)
            or f"not as {self.name} spells a box; write it like {example}"
        )

    # ---- what codecs do differently ----

    def _resolve_grid(self, size: Size | None) -> Size:
        """Steps along x and y."""
        return Size(self.bins, self.bins)

    @abstractmethod
    def _spell_box(self, corners: Corners) -> str:
        """Grid values as text."""

    def _join_after(self, box: str, after: str) -> str:
        return box + after

    def _has_no_box(self, words: str) -> bool:
        """Whether the words hold no box and no part of a box."""
        return "<" not in words and "[" not in words and "(" not in words

    def _reads_as_box(self, match: re.Match[str]) -> bool:
        """Whether words would be read as a box, whole or torn."""
        return bool(match["box"]) or "<" in match.group()

    def _read_box(self, coordinates: Sequence[str], grid: Size) -> Box | None:
        """The box from the groups of `pattern`. None where it is outside the grid, swapped or without area."""
        x1, y1, x2, y2 = coordinates
        left, right = (int(x1) + self.offset) / grid.width, (int(x2) + self.offset) / grid.width
        top, bottom = (int(y1) + self.offset) / grid.height, (int(y2) + self.offset) / grid.height
        return Box(left, top, right, bottom) if left < right <= 1 and top < bottom <= 1 else None

    def _read_piece(self, match: re.Match[str], grid: Size) -> Decoded:
        """The text and boxes of a match of `_finder`."""
        box = self._read_box(match.groups()[1 : 1 + self._pattern.groups], grid) if match["box"] else None
        return Decoded(BoxedText(BOX_MARK, (box,))) if box else _leave_unread(match.group())

    def _find_numbers(self, piece: str) -> list[str] | None:
        """The coordinates of a piece as they are written, None where it has no clear ones."""
        own_match = self._pattern.fullmatch(piece)
        return [g for g in own_match.groups() if g is not None] if own_match else None

    def _explain_misfit(self, values: Sequence[str], piece: str, grid: Size) -> str | None:
        """Why four coordinates, none of them negative, cannot be in the declared frame."""
        return f"beyond the grid of {self.bins}" if max(map(int, values)) >= grid.width else None

    # ---- the grid ----

    def _snap_box(self, box: Box, grid: Size) -> Corners:
        """A box on the grid, widened where two of its edges fall on one value."""
        x1, x2 = self._snap_edges(box.x1, box.x2, grid.width)
        y1, y2 = self._snap_edges(box.y1, box.y2, grid.height)
        return x1, y1, x2, y2

    def _snap_edges(self, low: float, high: float, bins: int) -> tuple[int, int]:
        first, last = (self._snap_value(v, bins) for v in (low, high))
        if first < last:
            return first, last
        middle = (low + high) / 2 * bins - self.offset  # the neighbour on the side where the box lies
        first = first - 1 if middle < first else first
        first = min(max(first, 0), bins - (1 if self.writes_border else 2))
        return first, first + 1

    def _snap_value(self, fraction: float, bins: int) -> int:
        return min(max(int(fraction * bins - self.offset + 0.5), 0), bins if self.writes_border else bins - 1)

    # ---- why a piece was not read ----

    def _explain_foreign(self, piece: str) -> str | None:
        own_marks = {mark for pair in self.marks for mark in pair} | set(self.special_tokens)
        for mark, family in _FOREIGN.items():
            if mark in piece and mark not in own_marks:
                return f"a box of {family} where {self.name} is declared; give --boxes {family}"
        return None

    def _explain_torn(self, piece: str) -> str | None:
        for opening, closing in self.marks:
            if opening in piece and closing not in piece:
                return f"no closing mark; write {closing} behind it"
            if closing in piece and opening not in piece:
                return f"no opening mark; write {opening} before it"
        if self.marks and not any(opening in piece for opening, _ in self.marks):
            return f"without its marks; write {self.marks[0][0]} before it and {self.marks[0][1]} behind it"
        return None

    def _explain_misplaced(self, numbers: list[str] | None, piece: str, grid: Size) -> str | None:
        if numbers is None:
            return None
        if len(numbers) != 4:
            return f"four numbers are wanted, {len(numbers)} found; write x1, y1, x2, y2"
        x1, y1, x2, y2 = (float(n) for n in numbers)
        if min(x1, y1, x2, y2) < 0:
            return "negative, so outside the image; correct it"
        if misfit := self._explain_misfit(numbers, piece, grid):
            return misfit
        for axis, low, high in (("x", x1, x2), ("y", y1, y2)):
            if high <= low:
                return f"{axis}2 <= {axis}1 ({high:g} <= {low:g}); the upper left corner comes first"
        return None


class _Points(Codec):
    """`(x1,y1),(x2,y2)` between two marks: round(1000 * fraction), at most 999; 1000 is read as the border."""

    frame = "thousandths [0,1000)"

    def _spell_box(self, corners: Corners) -> str:
        x1, y1, x2, y2 = corners
        return f"{self.marks[0][0]}({x1},{y1}),({x2},{y2}){self.marks[0][1]}"

    def _find_numbers(self, piece: str) -> list[str] | None:
        return re.findall(_NUMBER, piece)

    def _explain_misfit(self, values: Sequence[str], piece: str, grid: Size) -> str | None:
        coordinates = [float(v) for v in values]
        if any("." in v for v in values):
            if max(coordinates) <= 1:
                return f"fractions 0..1 where {self.frame} are declared; give --boxes normalised"
            return f"decimals where {self.frame} are declared; round them"
        return self._explain_outside(max(coordinates[0::2]), max(coordinates[1::2]), grid)

    def _explain_outside(self, x: float, y: float, grid: Size) -> str | None:
        if max(x, y) > self.bins:
            return f"beyond the grid of {self.bins}; pixels of the resized image are --boxes qwen2.5-vl"
        return None


class _Answering(_Points):
    """Reads the JSON answers of Qwen2.5-VL and Qwen3-VL, beside boxes between marks."""

    numbers: ClassVar[tuple[type, ...]] = (int,)
    key: ClassVar[str]  # of the coordinates in an object
    _object: ClassVar[re.Pattern[str]]
    _bbox: ClassVar[re.Pattern[str]]

    def __init_subclass__(cls, key: str = "bbox_2d") -> None:
        one = rf'\{{(?=[^{{}}]*(?<!b){key})(?:[^{{}}"]|"(?:[^"\\]|\\.)*")*\}}'
        several = rf"\[\s*{one}(?:\s*,\s*{one})*(?:\s*,?\s*\])?"
        bare = rf"""["']?(?<!b){key}\b["']?(?:\s*:\s*\[(?P<bare>[^\[\]{{}}"]*\]?))?"""
        cls.key, cls._object, cls._bbox = key, re.compile(one), re.compile(bare)
        cls.extras = rf"(?P<json>```(?:json)?\s*(?:{several}|{one})\s*```|{several}|{one})|(?P<bbox>{bare})|"

    def _has_no_box(self, words: str) -> bool:
        return super()._has_no_box(words) and self.key not in words

    def _reads_as_box(self, match: re.Match[str]) -> bool:
        return super()._reads_as_box(match) or self.key in match.group()

    def _read_piece(self, match: re.Match[str], grid: Size) -> Decoded:
        if match["json"]:
            return self._read_list(match.group(), grid)
        if match["bbox"]:
            return self._read_object(match.group(), grid)
        return super()._read_piece(match, grid)

    def _read_list(self, text: str, grid: Size) -> Decoded:
        """Objects with labels, without their fence and brackets; bare boxes are replaced where they stand."""
        objects = list(self._object.finditer(text))
        pieces = [self._read_object(json_object.group(), grid) for json_object in objects]
        answers = [piece.answer for piece in pieces]
        boxes = tuple(box for answer in answers for box in answer.boxes)
        unread = tuple(cut for piece in pieces for cut in piece.unparsed_boxes)
        if any(answer.boxes and answer.text != BOX_MARK for answer in answers):
            return Decoded(BoxedText(", ".join(answer.text for answer in answers if answer.boxes), boxes), unread)
        parts, position = [], 0
        for json_object, answer in zip(objects, answers, strict=True):
            parts += [text[position : json_object.start()], answer.text]
            position = json_object.end()
        return Decoded(BoxedText("".join([*parts, text[position:]]), boxes), unread)

    def _read_object(self, piece: str, grid: Size) -> Decoded:
        """One object: the label beside its box, then the box."""
        try:
            values, label = self._parse_object(piece)
        except ValueError:
            return _leave_unread(piece)
        corners = values[0] if values else None
        if not isinstance(corners, list) or len(corners) != 4 or any(map(self._is_no_number, corners)):
            return _leave_unread(piece)
        box = self._read_box(corners, grid)
        return Decoded(BoxedText(label + BOX_MARK, (box,))) if box else _leave_unread(piece)

    def _is_no_number(self, value: Any) -> bool:
        return type(value) not in self.numbers or not 0 <= value <= MOST

    def _parse_object(self, piece: str) -> tuple[list[Any], str]:
        """The values of `key`, and the label beside them. Raises ValueError with the reason why it is no box."""
        try:
            pairs = json.loads(piece if piece.startswith("{") else "{" + piece + "}", object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error}); write it anew") from None
        values = [value for key, value in pairs if key == self.key]
        if len(values) > 1:
            raise ValueError(f"{self.key} stands twice in one object; give each box an object")
        label = ", ".join(str(value) for key, value in pairs if key != self.key and value not in (None, ""))
        if "[" in label or "]" in label or self._finder.search(label):
            raise ValueError("brackets or a box beside its own; take them out")
        return values, label

    def _explain_torn(self, piece: str) -> str | None:
        if self.key not in piece:
            return super()._explain_torn(piece)
        if "]" not in piece:
            return "cut off before its end; write it anew"
        try:
            self._parse_object(piece)
        except ValueError as error:
            return str(error)
        return None

    def _find_numbers(self, piece: str) -> list[str] | None:
        json_match = self._bbox.search(piece)
        return re.findall(_NUMBER, json_match["bare"] or "") if json_match else super()._find_numbers(piece)


class _Pixels(_Answering):
    """Pixels of the resized image (`grids.smart_resize`); the border is its width or height."""

    frame = "pixels of the resized image"
    needs_size = True

    def _resolve_grid(self, size: Size | None) -> Size:
        if size is None:
            raise BadInput(f"boxes of {self.name} are pixels of the resized image: its size must be known")
        return size

    def _explain_outside(self, x: float, y: float, grid: Size) -> str | None:
        if x > grid.width or y > grid.height:
            size = f"{grid.width}x{grid.height}"
            way_out = "pixels of the original? Scale them; or give the min_pixels and max_pixels they were made with"
            return f"beyond the resized image of {size}: {way_out}"
        return None


class _Relative(_Answering):
    """Values round(1000 * fraction), with the border, as the JSON of one box."""

    frame = "thousandths 0..1000"

    def _spell_box(self, corners: Corners) -> str:
        x1, y1, x2, y2 = corners
        return f'{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}}'


class _RowsFirst(_Answering, key="box_2d"):
    """As `_Relative`, but rows before columns, and decimals are read. There are no marks."""

    frame = "thousandths 0..1000"
    numbers = (int, float)

    def _spell_box(self, corners: Corners) -> str:
        x1, y1, x2, y2 = corners
        return f'{{"{self.key}": [{y1}, {x1}, {y2}, {x2}]}}'

    def _read_box(self, coordinates: Sequence[Any], grid: Size) -> Box | None:
        numbers = [float(c) for c in coordinates]
        if max(numbers) <= 1 and any(n % 1 for n in numbers):  # fractions, not a box of a thousandth
            return None
        top, left, bottom, right = (n / self.bins for n in numbers)
        return Box(left, top, right, bottom) if left < right <= 1 and top < bottom <= 1 else None

    def _find_numbers(self, piece: str) -> list[str] | None:
        found = super()._find_numbers(piece)
        return [found[k] for k in (1, 0, 3, 2)] if found and len(found) == 4 else found

    def _explain_misfit(self, values: Sequence[str], piece: str, grid: Size) -> str | None:
        whole = all("." not in v for v in values) or max(map(float, values)) > 1
        return super()._explain_misfit([v.partition(".")[0] for v in values] if whole else values, piece, grid)


_REAL = r"(-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"


class _Normalised(Codec):
    """`[x1,y1,x2,y2]` in fractions, written with three decimals, read with any number, also between marks of Qwen."""

    # a list of decimals that are not four, or that is cut off
    extras = r"\[(?=[\s\d,eE+-]*\.\d)(?=[\s\d.eE+-]*,)[\s\d.,eE+-]+(?:\]|\Z)|"

    def _spell_box(self, corners: Corners) -> str:
        x1, y1, x2, y2 = (f"{c / self.bins:.3f}" for c in corners)
        return f"[{x1},{y1},{x2},{y2}]"

    def _read_box(self, coordinates: Sequence[str], grid: Size) -> Box | None:
        x1, y1, x2, y2 = (float(c) for c in coordinates if c is not None)
        return Box(x1, y1, x2, y2) if 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 else None

    def _find_numbers(self, piece: str) -> list[str] | None:
        return re.findall(_REAL, piece)

    def _explain_torn(self, piece: str) -> str | None:
        if "<" in piece:
            return super()._explain_torn(piece)
        return "cut off before its end; write it anew" if "[" in piece and "]" not in piece else None

    def _explain_misfit(self, values: Sequence[str], piece: str, grid: Size) -> str | None:
        if max(map(float, values)) <= 1:
            return None
        family = next((f for mark, f in _FOREIGN.items() if mark in piece), None)
        way_out = f"thousandths are --boxes {family}" if family else "divide thousandths by 1000, pixels by the size"
        return f"beyond 1 where fractions 0..1 are declared; {way_out}"


class _Digits(Codec):
    """`<|box_start|>` and eight digits, two for each coordinate: nine tokens of fixed length, so without end mark."""

    def _spell_box(self, corners: Corners) -> str:
        return self.special_tokens[0] + "".join(f"{c:02d}" for c in corners)

    def _join_after(self, box: str, after: str) -> str:
        return f"{box} {after}" if after[:1].isdigit() else box + after  # a ninth digit would spoil the box


class _Locations(Codec):
    """Four special tokens, others for x than for y: `<x_03><y_05><x_09><y_12>`."""

    def _spell_box(self, corners: Corners) -> str:
        width = _count_digits(self.bins)
        return "".join(f"<{axis}_{c:0{width}d}>" for axis, c in zip("xyxy", corners, strict=True))


def _count_digits(bins: int) -> int:
    return max(2, len(str(bins - 1)))


def _build_marked_pattern(marks: tuple[str, str], inside: str) -> str:
    return rf"{re.escape(marks[0])}\s*{inside}\s*{re.escape(marks[1])}"


def _build_points_pattern(marks: tuple[str, str], digits: int = 4) -> str:
    """`(x1,y1),(x2,y2)` between marks, each number of at most so many digits."""
    one = rf"(\d{{1,{digits}}})"
    return _build_marked_pattern(marks, rf"\({one},\s*{one}\),\s*\({one},\s*{one}\)")


def make_codec(name: str, bins: int = 1000) -> Codec:
    """The codec of a spelling. Only `digits` (10..100) and `locations` (2..1000) use `bins`.

    `digits` and `locations` put a value in the middle of its bin: with n symbols the error is at most 1/2n, but
    1/2(n-1) with symbols on the edges 0..1; and a hundred bins fit two digits. Raises BadInput on an unknown name or an
    impossible number of bins.
    """
    if name == "qwen2-vl":
        return _Points(name, 1000, _QWEN2, 0, _build_points_pattern(_QWEN2), _REFS, marks=(_QWEN2,))
    if name == "qwen-vl":
        return _Points(name, 1000, _QWEN, 0, _build_points_pattern(_QWEN), _QWEN_REFS, marks=(_QWEN,))
    if name == "qwen2.5-vl":
        return _Pixels(name, 0, _QWEN2, 0, _build_points_pattern(_QWEN2, digits=5), _REFS, True, (_QWEN2,))
    if name == "qwen3-vl":
        return _Relative(name, 1000, (), 0, _build_points_pattern(_QWEN2), _REFS, True, (_QWEN2,))
    if name == "gemma3":
        one = r"(\d{1,4}(?:\.\d+)?)"
        bare = rf'\{{"box_2d": \[{one},\s*{one},\s*{one},\s*{one}\]\}}'
        return _RowsFirst(name, 1000, (), 0, bare, (), True)
    if name == "normalised":
        listed = rf"\[\s*{_REAL}\s*,\s*{_REAL}\s*,\s*{_REAL}\s*,\s*{_REAL}\s*\]"
        loose = rf"[\[(]\s*{_REAL}\s*,\s*{_REAL}\s*\)?\s*,\s*\(?\s*{_REAL}\s*,\s*{_REAL}\s*[\])]"
        pattern = "|".join((_build_marked_pattern(_QWEN2, loose), _build_marked_pattern(_QWEN, loose), listed))
        return _Normalised(name, 1000, (), 0, pattern, (*_REFS, *_QWEN_REFS), True, (_QWEN2, _QWEN))
    if name == "digits":
        if not 10 <= bins <= 100:
            raise BadInput(f"model.box_bins={bins}: two digits spell 10..100 bins")
        return _Digits(name, bins, _QWEN2[:1], 0.5, r"<\|box_start\|>\s*" + r"([0-9]{2})" * 4 + r"(?![0-9])")
    if name == "locations":
        if not 2 <= bins <= 1000:
            raise BadInput(f"model.box_bins={bins}: 2..1000 location tokens an axis are possible")
        width = _count_digits(bins)
        tokens = tuple(f"<{axis}_{k:0{width}d}>" for axis in "xy" for k in range(bins))
        one = r"<{}_([0-9]{{" + str(width) + "}})>"
        return _Locations(name, bins, tokens, 0.5, r"\s*".join(one.format(axis) for axis in "xyxy"))
    raise BadInput(f"boxes={name}: one of {', '.join(SPELLINGS)} is wanted{suggest(name, SPELLINGS)}")

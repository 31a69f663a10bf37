"""Read boxes in answers of other people's models. The spelling is free; the frame is declared, never guessed.

    <box>(x1,y1),(x2,y2)</box>, <|box_start|>...<|box_end|>     the marks of Qwen-VL and Qwen2-VL, whatever is between
    (x1, y1), (x2, y2)    [x1, y1, x2, y2]    [[x1, y1, x2, y2]]    x1=.., y1=.., x2=.., y2=..

Two opposite corners make a box, in any order. A codec (`clinkd.data.codecs`) states what the numbers count. Numbers
outside its frame are not read. Codecs whose boxes are special tokens read these tokens and nothing else.
"""

from __future__ import annotations

import re

from clinkd.data.codecs import Codec, Decoded
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText

FRAMES = {"qwen-vl": 1000.0, "qwen2-vl": 1000.0, "qwen3-vl": 1000.0, "normalised": 1.0}  # value of the far borders

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_COMMA = r"(?:\s*+[,;]\s*+|\s++)"  # possessive, so that a page of blanks is read only once
_TWO, _FOUR = _COMMA.join([_NUMBER] * 2), _COMMA.join([_NUMBER] * 4)
_OPEN, _CLOSE = r"[(\[{]\s*+", r"\s*+[)\]}]"
_CORNER = rf"{_OPEN}{_TWO}{_CLOSE}"
_CORNERS = rf"{_CORNER}\s*+(?:[,;-]|and\b|to\b)?\s*+{_CORNER}"
_NAMED = (r"""["']?\b{}["']?\s*+[:=]\s*+""" + _NUMBER).format
_X1, _Y1, _X2, _Y2 = (_NAMED(rf"{axis}_?(?:{n}|{end})") for n, end in ((1, "min"), (2, "max")) for axis in "xy")
_LISTED = rf"{_OPEN}{_FOUR}{_CLOSE}|{_X1}{_COMMA}{_Y1}{_COMMA}{_X2}{_COMMA}{_Y2}"
_BARE = rf"{_CORNERS}|{_LISTED}"
_END = r"</box>|<\|box_end\|>"
_MARKED = rf"(?:<box>|<\|box_start\|>)(?P<inside>[^<]*(?={_END})|[\d\s,;.()\[\]{{}}+-]*)(?P<end>{_END})?"
_ANY = re.compile(rf"{_MARKED}|(?P<bare>{_BARE})|(?P<stray>{_END})|{re.escape(BOX_MARK)}", re.I)
_ANY_MARKED = re.compile(rf"{_MARKED}|(?P<bare>(?!))|(?P<stray>{_END})|{re.escape(BOX_MARK)}", re.I)
_WHOLE = re.compile(_BARE, re.I)
_NUMBERS = re.compile(rf"(?<![a-z_\d.]){_NUMBER}", re.I)  # the 1 of "x1" is no number
_REFS = re.compile(r"</?ref>|<\|object_ref_(?:start|end)\|>")


def read_loosely(text: str, codec: Codec, bare: bool = True) -> Decoded:
    """Read an answer with its boxes as fractions, in any spelling. `bare` False: only boxes between marks are read.

    `unread` lists the texts in the place of a box that are no box in the frame of `codec`.
    Raises BadInput for a codec in pixels, because it needs the size of an image.
    """
    if codec.needs_size:
        raise BadInput(f"boxes of {codec.name} are pixels of the resized image: its size must be known")
    if codec.name not in FRAMES:
        return codec.decode(text)
    frame_end = FRAMES[codec.name]
    boxes: list[Box] = []
    unparsed: list[str] = []

    def mark_boxes(match: re.Match[str]) -> str:
        parsed = _parse_boxes(match, frame_end)
        if not parsed:
            unparsed.extend([] if match["stray"] else [match.group()])
            return " "
        boxes.extend(parsed)
        return " ".join([BOX_MARK] * len(parsed))

    plain_text = (_ANY if bare else _ANY_MARKED).sub(mark_boxes, _REFS.sub("", text))
    return Decoded(BoxedText(plain_text, tuple(boxes)), tuple(unparsed))


def _parse_boxes(match: re.Match[str], frame_end: float) -> list[Box]:
    """The boxes of a match of `_ANY`; empty where a number is missing or a box lies outside the frame."""
    piece = match["bare"] or match["inside"] or ""
    if match["inside"] and not match["end"]:  # without the last bracket, the last number may be cut
        whole = _WHOLE.match(piece.lstrip())
        piece = whole.group() if whole else ""
    numbers = [float(n) for n in _NUMBERS.findall(piece)]
    if not numbers or len(numbers) % 4 or (frame_end > 1 and max(numbers) <= 1 and "." in piece):
        return []  # fractions where thousandths are declared: another frame, not a tiny box
    boxes = []
    for i in range(0, len(numbers), 4):
        (x1, x2), (y1, y2) = sorted(numbers[i : i + 4 : 2]), sorted(numbers[i + 1 : i + 4 : 2])
        if not (0 <= x1 < x2 <= frame_end and 0 <= y1 < y2 <= frame_end):
            return []
        boxes.append(Box(x1 / frame_end, y1 / frame_end, x2 / frame_end, y2 / frame_end))
    return boxes

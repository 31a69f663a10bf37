"""Boxes in the answers of any vision-language model, read as the family writes them that is declared.

A family says what numbers mean: their unit and their order. How a box is put down is read in all usual notations
whatever the family (`box_notations`). Nothing is guessed from the numbers or from the truth: what does not fit the
declared frame stays unread, and is counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from clinkd.data.grids import Size
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText
from clinkd.scoring.reading.box_notations import (
    MARKS,
    NOTATIONS,
    PLAIN,
    Coordinates,
    Order,
    claims_a_box,
    find_stated_order,
    is_marked,
    read_notation,
    says_nowhere,
)
from clinkd.spelling import suggest

OVER = 0.02  # of the width or height: a box that is so far over the border is cut there, and counted


@dataclass(frozen=True)
class BoxFamily:
    """What the numbers of a family mean: value k of `unit` is (k + `offset`) / `unit` of the width or height.

    `unit` None: pixels, of an image whose size is given with each answer.
    """

    unit: float | None
    order: Order = "xyxy"
    offset: float = 0.0


_UNITS = {"fractions": 1, "percent": 100, "thousandths": 1000, "pixels": None}
_ORDERS: tuple[Order, ...] = ("xyxy", "xywh", "cxcywh", "yxyx")
FAMILIES: Mapping[str, BoxFamily] = {
    **{
        unit if order == "xyxy" else f"{unit}-{order}": BoxFamily(end, order)
        for order in _ORDERS
        for unit, end in _UNITS.items()
    },
    "normalised": BoxFamily(1),
    "qwen-vl": BoxFamily(1000),
    "qwen2-vl": BoxFamily(1000),
    "qwen2.5-vl": BoxFamily(None),  # of the resized image
    "qwen3-vl": BoxFamily(1000),
    "internvl": BoxFamily(1000),
    "cogvlm": BoxFamily(1000),
    "glm-4v": BoxFamily(1000),
    "ferret": BoxFamily(1000),
    "seed-vl": BoxFamily(1000),
    "ernie-vl": BoxFamily(1000),
    "gemini": BoxFamily(1000, "yxyx"),
    "medgemma": BoxFamily(1000, "yxyx"),
    "gemma3": BoxFamily(1000, "yxyx"),
    "deepseek-vl2": BoxFamily(999),
    "chexagent": BoxFamily(100),
    "minigpt-v2": BoxFamily(100),
    "maira-2": BoxFamily(100, offset=0.5),  # middles of bins, as in the answers on its model card
    "paligemma": BoxFamily(1024, "yxyx"),
    "florence-2": BoxFamily(1000, offset=0.5),
    "kosmos-2": BoxFamily(32),
    "shikra": BoxFamily(1),
    "llava": BoxFamily(1),
    "ovis": BoxFamily(1),
    "moondream": BoxFamily(1),
}


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """An answer with its boxes. `unread`: pieces that look like a box, and are none in the declared family. `clipped`:
    boxes a little over the border. `repeated`: boxes that were said before, which count once. `turned`: boxes whose
    corners are not the upper left and the lower right. `scores`: what is said of each box, empty unless each has one.
    """

    answer: BoxedText
    unread: tuple[str, ...] = ()
    clipped: int = 0
    repeated: int = 0
    turned: int = 0
    scores: tuple[float, ...] = ()


def choose_family(name: str, flag: str = "--boxes") -> BoxFamily:
    """Raises BadInput for an unknown name, that of `flag`."""
    if name not in FAMILIES:
        raise BadInput(f"{flag} {name}: one of {', '.join(FAMILIES)} is wanted{suggest(name, FAMILIES)}")
    return FAMILIES[name]


_PLACE = "\ue000"  # of a box, until the brackets of JSON around it are gone
_NOWHERE = "\ue001"  # an object whose box is empty
_NOWHERE_LISTED = re.compile(rf"\[?\s*{_NOWHERE}(?:\s*,\s*{_NOWHERE})*\s*\]?")
_JSON_AROUND = re.compile(r"""(?:\{ ?["']\w+["'] ?: ?)?\[? ?(?P<inside>[^\[\]{}]*+)\]? ?\}?""")


# numbers as numpy shows them, and brackets as LaTeX has them
_WRAPPED = re.compile(r"\bnp\.(?:float|int)\d*\(([-+\d.e]+)\)|\\(?:left|right)?(?=[\[\]()])")
# four numbers in a notation that is none of ours: with units, in a table or on lines of their own
_LIKE_A_BOX = re.compile(
    r"(?:\d[\d.]*+ ?(?:px|pixels?)? ?[,;|/] ?){3}\d[\d.]*"
    r"|(?:\b(?:x|y|left|top|right|bottom)\w{0,4}\W{1,4}\d[\d.]*+(?: ?px)?\W{0,8}){4}"
    r"|\A(?:[a-z][a-z ]{0,60}[ :,])?(?:\d[\d.]*+[ ,]{1,2}){4,8}\d[\d.]*+\Z"
    r"|\bhorizontal[^\d]{1,40}\d[\d.]*+%?[^\d]{1,20}\d[^\n]{1,60}\bvertical[^\d]{1,40}\d[\d.]*+%?[^\d]{1,20}\d"
    r"|\d[\d.]*+%?[^\d]{1,20}\d[\d.]*+%? horizontal[^\d]{1,40}\d[\d.]*+%?[^\d]{1,20}\d[\d.]*+%? vertical",
    re.I,
)


def read_answer(
    raw: str, family: str, size: Size | None = None, marked_only: bool = False, keep_repeats: bool = False
) -> ReadAnswer:
    """The words and boxes of an answer. `size`: pixels that the numbers of the family refer to, where it has pixels.
    `marked_only`: plain numbers in brackets stay words, as in answers that need no box. `keep_repeats`: as in a truth.

    Raises BadInput for an unknown family, or for pixels without a size.
    """
    declared = choose_family(family)
    if declared.unit is None and size is None:
        raise BadInput(f"--boxes {family}: pixels; the size of the image must be known")
    places: list[_Place] = []
    known: set[Box] = set()
    unread: list[str] = []
    repeated = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal repeated
        if marked_only and not is_marked(match):
            return match.group()
        words = []
        found = read_notation(match)
        for coordinates in found:
            place = _place(coordinates, declared, size, stated)
            if place is None:
                unread.append(match.group().strip())
            elif place.box in known and not keep_repeats:
                repeated += 1
            else:
                places.append(place)
                known.add(place.box)
                words.append(coordinates.label + _PLACE)
        if not found and says_nowhere(match):
            return _NOWHERE
        if not found and claims_a_box(match):
            unread.append(match.group().strip())
        elif not found:
            return match.group()
        return ", ".join(words) or " "

    plain = _WRAPPED.sub(r"\1", raw.replace(_PLACE, " ").replace(_NOWHERE, " ").translate(PLAIN))
    stated = find_stated_order(plain)
    text = MARKS.sub(" ", NOTATIONS.sub(replace, plain)).replace(BOX_MARK, " ")
    text = _NOWHERE_LISTED.sub("[]", text)
    text = " ".join(text.split())
    if places and (around := _JSON_AROUND.fullmatch(text)):
        text = around["inside"].strip()
    if not (places or unread or marked_only) and (like := _LIKE_A_BOX.search(text)):
        unread.append(like.group())
    text = text.replace(_PLACE, BOX_MARK)
    scores = [p.score for p in places if p.score is not None]
    return ReadAnswer(
        BoxedText(text, tuple(p.box for p in places)),
        tuple(unread),
        sum(p.clipped for p in places),
        repeated,
        sum(p.turned for p in places),
        tuple(scores) if len(scores) == len(places) else (),  # of some boxes alone: no ranking of all of them
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """A box that was read; whether it was cut at the border, and whether its corners stand in another order."""

    box: Box
    clipped: bool
    turned: bool
    score: float | None


def _place(found: Coordinates, family: BoxFamily, size: Size | None, stated: Order | None) -> _Place | None:
    """The box in fractions, None where the numbers do not fit the frame. `stated`: the order that the text states."""
    unit = 100 if found.percent else family.unit
    offset = 0.0 if found.percent else family.offset
    if not all(map(math.isfinite, found.values)) or (found.unit is not None and found.unit != unit):
        return None  # the latter: tokens of another family
    if unit != 1 and max(found.values) <= 1 and any(v != int(v) for v in found.values):
        return None  # fractions where another unit is declared
    points = "yxyx" if family.order == "yxyx" else "xyxy"
    order = points if found.order == "points" else found.order or stated or family.order
    width, height = (size.width, size.height) if unit is None and size else (unit or 1, unit or 1)
    a, b, c, d = found.values
    if order == "xywh":
        corners = a / width, b / height, (a + c) / width, (b + d) / height
    elif order == "cxcywh":
        corners = (a - c / 2) / width, (b - d / 2) / height, (a + c / 2) / width, (b + d / 2) / height
    else:
        a, b, c, d = (b, a, d, c) if order == "yxyx" else (a, b, c, d)
        a, b, c, d = (v + offset for v in (a, b, c, d))
        corners = a / width, b / height, c / width, d / height
    if not (min(corners) >= -OVER and max(corners) <= 1 + OVER):
        return None
    clipped = tuple(min(max(v, 0.0), 1.0) for v in corners)
    (x1, x2), (y1, y2) = sorted(clipped[::2]), sorted(clipped[1::2])
    if not (x1 < x2 and y1 < y2):
        return None
    return _Place(Box(x1, y1, x2, y2), clipped != corners, clipped != (x1, y1, x2, y2), found.score)

"""Boxes in the answers of any vision-language model, read as the family writes them that is declared.

A family says what numbers mean: their unit and their order. How a box is put down is read in all usual notations
whatever the family: lists, pairs in brackets, objects with named corners, polygons, tags, location tokens, two corners
or two ranges in a sentence. Nothing is guessed from the numbers or from the truth: what does not fit the declared frame
stays unread, and is counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clinkd.data.grids import Size
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText

Order = Literal["xyxy", "yxyx", "xywh", "cxcywh"]
Numbers = Sequence[float]

OVER = 0.02  # of the width or height: a box that is so far over the border is cut there, and counted


@dataclass(frozen=True)
class BoxFamily:
    """What the numbers of a family mean: value k of `unit` is (k + `offset`) / `unit` of the width or height.

    `unit` None: pixels, of an image whose size is given with each answer.
    """

    unit: float | None
    order: Order = "xyxy"
    offset: float = 0.0


FAMILIES: Mapping[str, BoxFamily] = {
    "fractions": BoxFamily(1),
    "fractions-xywh": BoxFamily(1, "xywh"),
    "fractions-cxcywh": BoxFamily(1, "cxcywh"),
    "percent": BoxFamily(100),
    "thousandths": BoxFamily(1000),
    "pixels": BoxFamily(None),
    "pixels-xywh": BoxFamily(None, "xywh"),
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
    "deepseek-vl2": BoxFamily(999),
    "chexagent": BoxFamily(100),
    "minigpt-v2": BoxFamily(100),
    "maira-2": BoxFamily(100, offset=0.5),  # middles of bins, as in the answers on its model card
    "paligemma": BoxFamily(1024, "yxyx"),
    "florence-2": BoxFamily(1000, offset=0.5),
    "kosmos-2": BoxFamily(32),
    "shikra": BoxFamily(1),
    "ovis": BoxFamily(1),
    "moondream": BoxFamily(1),
}


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """An answer with its boxes. `unread`: pieces that look like a box, and are none in the declared family. `clipped`:
    boxes a little over the border. `repeated`: boxes that were said before, which count once. `scores`: the confidence
    of each box, empty unless every box states one."""

    answer: BoxedText
    unread: tuple[str, ...] = ()
    clipped: int = 0
    repeated: int = 0
    scores: tuple[float, ...] = ()


def choose_family(name: str) -> BoxFamily:
    """Raises BadInput for an unknown name."""
    if name not in FAMILIES:
        raise BadInput(f"boxes={name}: one of {', '.join(FAMILIES)} is wanted")
    return FAMILIES[name]


# ---- notations ------------------------------------------------------------------------------------------------------

_N = r"[-+]?\d+(?:\.\d+)?\s*%?"
_PAIR = rf"\(\s*{_N}\s*,\s*{_N}\s*\)"
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_TOKENS = (
    r"(?:<\|LOC_BEGIN\|>)?(?:<\|LOC_\d+\|>\s*)+(?:<\|LOC_END\|>)?|(?:<loc_?\d+>\s*)+|(?:<patch_index_\d+>\s*)+"
    r"|\{(?:<\d+>)+\}|(?:<[xy]_?\d+>\s*)+"
)
_NOTATIONS = re.compile(
    rf"""
    (?P<points><points?\b[^>]*>(?:(?!</point).)*(?:</points?>)?|<point>[^<]*</point>|start_box\s*=\s*'[^']*')
    |(?P<tokens>{_TOKENS})
    |(?P<object>\{{[^{{}}]*["'\w]\s*[:=][^{{}}]*\d[^{{}}]*\}})
    |(?P<list>\[[\s\d.,;%eE+\-\[\]]*\d[\s\d.,;%eE+\-\[\]]*\])
    |(?P<corners>top[\s-]?left\W{{0,4}}{_PAIR}\W{{0,4}}(?:and\W{{1,2}}|to\W{{1,2}})?(?:the\s)?bottom[\s-]?right\W{{0,4}}{_PAIR})
    |(?P<ranges>\bx\s*(?:from|in|:|=)?\s*{_N}\s*(?:to|-|–)\s*{_N}\W{{1,3}}(?:and\s+)?y\s*(?:from|in|:|=)?\s*{_N}\s*(?:to|-|–)\s*{_N})
    |(?P<pairs>{_PAIR}\s*[,;]?\s*{_PAIR}(?:\s*[,;]?\s*{_PAIR})*)
    |(?P<tag><(?P<name>bbox|bounding_box|box)>[\s\d.,()+\-%]*\d[\s\d.,()+\-%]*(?:</(?P=name)>)?)
    |(?P<torn>\([\s\d.,+\-%]*,[\s\d.,+\-%]*\)|\[[\s\d.,+\-]*,[\s\d.,+\-]*\Z|{re.escape(BOX_MARK)})
    """,
    re.X | re.I | re.S,
)
_KEYED = re.compile(
    r"""["']?([A-Za-z_][\w ]*)["']?\s*[:=]\s*"""
    r"""(\[(?:[^\[\]]|\[[^\[\]]*\])*\]|"[^"]*"|'[^']*'|[-+]?[\d.]+(?:[eE][-+]?\d+)?\s*%?)"""
)
_KEYS: tuple[tuple[Order, tuple[tuple[str, ...], ...]], ...] = (
    (
        "xyxy",
        (
            ("x1", "xmin", "x_min", "left", "x0", "x_left"),
            ("y1", "ymin", "y_min", "top", "y0", "y_top"),
            ("x2", "xmax", "x_max", "right", "x_right"),
            ("y2", "ymax", "y_max", "bottom", "y_bottom"),
        ),
    ),
    ("xywh", (("x", "left"), ("y", "top"), ("width", "w"), ("height", "h"))),
    ("cxcywh", (("cx", "x_center", "center_x"), ("cy", "y_center", "center_y"), ("width", "w"), ("height", "h"))),
)
_LISTED = ("bbox_2d", "box_2d", "bbox", "box", "bounding_box", "boundingbox", "bbox2d", "bboxes", "boxes")
_NESTED = re.compile(rf"""["'](?:{"|".join(_LISTED)})["']\s*:\s*\{{([^{{}}]*)\}}""", re.I)  # beside label and score
_LABELS = ("label", "name", "phrase", "class", "object", "category")
_SCORES = ("score", "confidence", "conf", "probability", "prob", "confidence_score", "logit")
_MARKS = re.compile(
    r"</?(?:box|ref|quad|bbox|bounding_box|p|obj|object|grounding|phrase|rec|delimiter_of_multi_objects)>"
    r"|<\|/?(?:ref|det|box|object_ref_start|object_ref_end|box_start|box_end|begin_of_box|end_of_box|grounding)\|>"
    r"|```(?:json)?",
    re.I,
)
_PLACE = "\ue000"  # of a box, until the brackets of JSON around it are gone
_JSON_AROUND = re.compile(
    rf"^\s*(?:\{{\s*[\"']\w+[\"']\s*:\s*)?\[?\s*([^\[\]{{}}]*{_PLACE}[^\[\]{{}}]*?)\s*\]?\s*\}}?\s*$"
)
_WIDE = str.maketrans("（），；：［］｛｝", "(),;:[]{}")  # as keyboards for Chinese write them


@dataclass(frozen=True, slots=True)
class _Coordinates:
    """Four numbers, and the order that their notation states, None where it is the family's."""

    values: tuple[float, ...]
    order: Order | None = None
    percent: bool = False
    label: str = ""
    score: float | None = None


def read_answer(raw: str, family: str, size: Size | None = None) -> ReadAnswer:
    """The words and boxes of an answer. `size`: pixels that the numbers of the family refer to, where it has pixels.

    Raises BadInput for an unknown family, or for pixels without a size.
    """
    declared = choose_family(family)
    if declared.unit is None and size is None:
        raise BadInput(f"boxes={family}: pixels; the size of the image must be known")
    boxes: list[Box] = []
    unread: list[str] = []
    scores: list[float] = []
    clipped = repeated = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal clipped, repeated
        words = []
        found = list(_read_notation(match))
        for coordinates in found:
            box, was_clipped = _place(coordinates, declared, size)
            if box is None:
                unread.append(match.group().strip())
                continue
            clipped += was_clipped
            if box in boxes:
                repeated += 1
            else:
                boxes.append(box)
                words.append(coordinates.label + _PLACE)
                scores.extend(() if coordinates.score is None else (coordinates.score,))
        if not found and _claims_a_box(match):
            unread.append(match.group().strip())
        elif not found:
            return match.group()
        return ", ".join(words) or " "

    flat = _NESTED.sub(r"\1", raw.translate(_WIDE))
    text = _MARKS.sub(" ", _NOTATIONS.sub(replace, flat))
    text = _JSON_AROUND.sub(r"\1", text)
    text = " ".join(text.replace(_PLACE, BOX_MARK).split())
    stated = tuple(scores) if len(scores) == len(boxes) else ()  # of some boxes alone: no ranking of all of them
    return ReadAnswer(BoxedText(text, tuple(boxes)), tuple(unread), clipped, repeated, stated)


def _claims_a_box(match: re.Match[str]) -> bool:
    """Whether a piece without coordinates was meant to be a box, and not some other list or object."""
    kind = match.lastgroup if match.lastgroup != "name" else "tag"
    if kind == "object":
        return any(key.lower() in _LISTED or "point" in key.lower() for key, _ in _KEYED.findall(match.group()))
    return kind != "list" or len(_NUMBER.findall(match.group())) >= 4


def _read_notation(match: re.Match[str]) -> Iterator[_Coordinates]:
    """The coordinates of a match; none where it is no box."""
    piece = match.group()
    percent = "%" in piece
    if match["tokens"]:
        yield from _read_tokens([int(n) for n in re.findall(r"\d+", piece)], piece)
    elif match["object"]:
        yield from _read_object(piece)
    elif match["list"]:
        yield from (_Coordinates(values, order, percent) for values, order in _read_list(piece))
    elif match["ranges"]:
        x1, x2, y1, y2 = _find_numbers(piece)
        yield _Coordinates((x1, y1, x2, y2), "xyxy", percent)
    elif match["corners"]:
        yield _Coordinates(_find_numbers(piece), None, percent)
    elif match["pairs"]:
        numbers = _find_numbers(piece)
        if len(numbers) == 4:
            yield _Coordinates(numbers, None, percent)
        else:
            yield from (_Coordinates(values, order, percent) for values, order in _read_polygon(_chunk(numbers, 2)))
    elif match["tag"]:
        numbers = _find_numbers(piece)
        if len(numbers) == 4:
            yield _Coordinates(numbers, None, percent)


def _chunk(numbers: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return list(zip(*[iter(numbers)] * size, strict=True))


def _find_numbers(piece: str) -> tuple[float, ...]:
    return tuple(float(n) for n in _NUMBER.findall(re.sub(r"<[^>]*>", " ", piece)))


def _read_tokens(numbers: Sequence[int], piece: str) -> Iterator[_Coordinates]:
    if "patch_index" in piece:
        for first, last in _chunk(numbers, 2) if len(numbers) % 2 == 0 else ():
            yield _Coordinates(_join_patches(first, last), "xyxy")
    elif len(numbers) % 4 == 0:
        yield from (_Coordinates(tuple(map(float, four))) for four in _chunk(numbers, 4))


def _join_patches(first: int, last: int, side: int = 32) -> tuple[float, ...]:
    """The box from one patch to another, in patches: from middle to middle, or all of them in one row or column.

    As `patch_index_to_coordinate` of Kosmos-2's processor (transformers, processing_kosmos2.py) has it.
    """
    (y1, x1), (y2, x2) = divmod(first, side), divmod(last, side)
    if x1 == x2 or y1 == y2:
        return float(x1), float(y1), x2 + 1.0, y2 + 1.0
    return x1 + 0.5, y1 + 0.5, x2 + 0.5, y2 + 0.5


def _read_object(piece: str) -> Iterator[_Coordinates]:
    members = {key.strip().lower(): value.strip() for key, value in _KEYED.findall(piece)}
    label = next((members[key].strip("\"'") for key in _LABELS if key in members), "")
    label = re.sub(r"[\[\]]", " ", label)
    score = next((read for key in _SCORES if (read := _read_score(members.get(key, ""))) is not None), None)
    percent = any("%" in text for key, text in members.items() if key not in (*_SCORES, *_LABELS))
    listed = [members[key] for key in _LISTED if key in members]
    if listed:
        found, stated = list(_read_list(listed[0])), _find_numbers(members.get("scores", ""))
        scores = stated if len(stated) == len(found) else [score] * len(found)
        for (values, order), own in zip(found, scores, strict=True):
            yield _Coordinates(values, order, percent, label, own)
        return
    for order, names in _KEYS:
        keys = [next((k for k in choices if k in members), None) for choices in names]
        if all(keys):
            texts = [members[key] for key in keys if key]
            numbers = tuple(n for text in texts for n in _find_numbers(text))
            if len(numbers) == 4:
                yield _Coordinates(numbers, order, percent, label, score)
            return


def _read_score(text: str) -> float | None:
    """A confidence, where it is written as a number: 0.9, "0.9" or 90%; "high" is none."""
    number = text.strip("\"' ")
    try:
        score = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        return None
    return score if math.isfinite(score) else None


def _read_list(piece: str) -> Iterator[tuple[tuple[float, ...], Order | None]]:
    """The boxes of a list of numbers, of lists of four, of two corners, or of the corners of a polygon."""
    tokens = re.findall(rf"\[|\]|;|{_NUMBER.pattern}", piece)
    groups: list[tuple[float, ...]] = []
    current: list[float] = []
    for token in tokens:
        if token in "[];":
            if current:
                groups.append(tuple(current))
            current = []
        else:
            current.append(float(token))
    if all(len(group) == 4 for group in groups):
        yield from ((group, None) for group in groups)
    elif len(groups) == 2 and all(len(group) == 2 for group in groups):
        yield (*groups[0], *groups[1]), None
    elif len(groups) > 2 and all(len(group) == 2 for group in groups):
        yield from _read_polygon(groups)


def _read_polygon(points: Sequence[Sequence[float]]) -> Iterator[tuple[tuple[float, ...], Order | None]]:
    """The extent of three points or more, in the order of the family's pairs."""
    if len(points) > 2 and all(len(point) == 2 for point in points):
        first, second = zip(*points, strict=True)
        yield (min(first), min(second), max(first), max(second)), None


# ---- the frame ------------------------------------------------------------------------------------------------------


def _place(found: _Coordinates, family: BoxFamily, size: Size | None) -> tuple[Box | None, bool]:
    """The box in fractions, None where the numbers do not fit the frame; and whether it was cut at the border."""
    unit = 100 if found.percent else family.unit
    offset = 0.0 if found.percent else family.offset
    values: list[float] = list(found.values)
    if unit != 1 and max(values) <= 1 and any(v != int(v) for v in values):
        return None, False  # fractions where another unit is declared
    order = found.order or family.order
    if family.order == "yxyx" and found.order is None:
        values, order = [values[1], values[0], values[3], values[2]], "xyxy"
    width, height = (size.width, size.height) if unit is None and size else (unit or 1, unit or 1)
    a, b, c, d = (values[0] + offset) / width, (values[1] + offset) / height, values[2] / width, values[3] / height
    if order == "xywh":
        corners = a, b, a + c, b + d
    elif order == "cxcywh":
        corners = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    else:
        corners = a, b, c + offset / width, d + offset / height
    if min(corners) < -OVER or max(corners) > 1 + OVER:
        return None, False
    x1, y1, x2, y2 = (min(max(v, 0.0), 1.0) for v in corners)
    if not (x1 < x2 and y1 < y2):
        return None, False
    return Box(x1, y1, x2, y2), (x1, y1, x2, y2) != corners

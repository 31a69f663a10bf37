"""How boxes are put down in answers of vision-language models: lists, points, objects, polygons, tags, tokens, words.

A notation gives four numbers, and says in which order they stand where it names them; what they count is the family's
matter (`box_families`). This is the one place that knows spellings.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clinkd.records import BOX_MARK

Order = Literal["xyxy", "yxyx", "xywh", "cxcywh"]


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Four numbers as an answer has them. `order`: as the notation states it; "points" are two corners whose axes are
    in the family's order; None is the family's order. `unit`: what location tokens count up to, None for others.
    `score`: that which stands beside the box."""

    values: tuple[float, ...]
    order: Order | Literal["points"] | None = None
    percent: bool = False
    label: str = ""
    score: float | None = None
    unit: int | None = None


_NUM = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?"
_N = rf"{_NUM}(?:\s*+%)?"
_NUMBER = re.compile(rf"(?<![\w.]){_NUM}", re.I)  # the 1 of "x1" is none, and the bar of 100-400 no minus
_BESIDE = r"(?:\s*+[,;]\s*+|\s++)"  # possessive, so that a page of blanks is read once
_FOUR = _BESIDE.join([_N] * 4)
_BARE = rf"{_N}{_BESIDE}{_N}(?:{_BESIDE}|\s*+(?:[–-]|to\b)\s*+){_N}{_BESIDE}{_N}"
_POINT = rf"\(\s*+(?:x\s*[:=]\s*)?{_N}{_BESIDE}(?:y\s*[:=]\s*)?{_N}\s*+\)"
_NAMED_POINT = rf"\bx\s*[:=]\s*{_N}{_BESIDE}(?:and\s+)?y\s*[:=]\s*{_N}"
_DEPTH = 4  # brackets within brackets


def _nest(opening: str, inside: str, closing: str) -> str:
    pattern = rf"{opening}{inside}*+{closing}"
    for _ in range(_DEPTH):
        pattern = rf"{opening}(?:{inside}++|{pattern})*+{closing}"
    return pattern


_LIST = _nest(r"\[", r"[\s\d.,;%e+\-]", r"\]")
_OBJECT = _nest(r"\{", r"[^{}]", r"\}")
_OPEN = (
    r"(?:<(?P<poly>quad|poly(?:gon)?)>|<(?:box|bbox|bounding_box|rec)>"
    r"|<\|(?:box_start|det|box|begin_of_box|quad_start)\|>)"
)
_CLOSE = (
    r"(?:</(?:quad|poly(?:gon)?|box|bbox|bounding_box|rec)>|<\|/?(?:box_end|/det|/box|end_of_box|quad_end|det|box)\|>)"
)
_ELEMENT = rf"<(?P<key>[a-z_]\w*)>\s*{_N}\s*</(?P=key)>\s*"
_TOKENS = (
    r"(?:<\|LOC_BEGIN\|>)?(?:<\|LOC_\d+\|>\s*)+(?:<\|LOC_END\|>)?|(?:<loc_?\d+>\s*)+|(?:<patch_index_\d+>\s*)+"
    r"|\{(?:<\d+>)+\}|(?:<\d+>\s*){4,}|(?:<[xy]_?\d+>\s*)+"
)
_KEY = (
    r"""["']?\b(?:[xy]_?(?:[012]|min|max|center)?|[xy](?:min|max)|c[xy]|left|top|right|bottom|width|height|w|h)"""
    r"""\b["']?"""
)
_CORNER = (
    rf"(?:\s+corner)?(?:\s+(?:is|at|is\s+at|of))?\W{{0,4}}{_POINT}\W{{0,4}}(?:and\W{{1,2}}|to\W{{1,2}})?(?:the\s+)?"
)
NOTATIONS = re.compile(
    rf"""
    (?P<points><points?\b[^<>]*/>|<points?\b[^<>]*>(?:(?!</point).)*(?:</points?>)?)
    |(?P<element><(?:box|bbox|bounding_box|bndbox|rect|region|object|detection)\s[^<>]*=[^<>]*>|(?:{_ELEMENT}){{4}})
    |(?P<tokens>{_TOKENS})
    |(?P<tag>{_OPEN}(?P<inside>[^<]*+(?={_CLOSE})|[\s\d.,;()\[\]{{}}+\-%]++)(?P<end>{_CLOSE})?)
    |(?P<object>(?=\{{[^{{}}]*[\w"']\s*[:=]){_OBJECT})
    |(?P<list>{_LIST}(?:\s*+(?:[,;]|to\b)?\s*+{_LIST})*)
    |(?P<corners>(?:(?:top|upper|bottom|lower)[\s-]*+(?:left|right){_CORNER}){{2}})
    |(?P<ranges>\bx\s*(?:from|in|:|=)?\s*{_N}\s*(?:to|-|–)\s*{_N}\W{{1,3}}(?:and\s+)?
        y\s*(?:from|in|:|=)?\s*{_N}\s*(?:to|-|–)\s*{_N}
        |\bx\s*[:=∈]\s*\[\s*{_N}\s*,\s*{_N}\s*\]\W{{1,3}}(?:and\s+)?y\s*[:=∈]\s*\[\s*{_N}\s*,\s*{_N}\s*\])
    |(?P<named_points>{_NAMED_POINT}\W{{0,3}}\s(?:to|and)\s+{_NAMED_POINT})
    |(?P<named>{_KEY}\s*[:=]\s*{_N}(?:{_BESIDE}(?:and\s+|[-*•]\s+)?{_KEY}\s*[:=]\s*{_N}){{3}})
    |(?P<pairs>{_POINT}(?:\s*+(?:[,;–-]|to\b)?\s*+{_POINT})+)
    |(?P<four>[({{]\s*+{_FOUR}\s*+[)}}])
    |(?P<alone>\A\s*+(?:[a-z][a-z ]{{0,60}}(?:[:=,]|[:=]?\s))?\s*+{_BARE}(?:[^\S\n]*+[;\n]\s*+{_BARE})*+\W*\Z)
    |(?P<torn>\([\s\d.,;+\-%e]++(?:\)|\Z)|\[[\s\d.,+\-\[\]]++\Z)
    |(?P<mark>{re.escape(BOX_MARK)})
    """,
    re.X | re.I | re.S,
)
_MARKED = ("points", "tokens", "tag", "element", "object", "mark")  # boxes by what stands around them
MARKS = re.compile(
    r"</?(?:box|ref|quad|poly(?:gon)?|bbox|bounding_box|bndbox|p|obj|object|grounding|phrase|rec|delim|and"
    r"|delimiter_of_multi_objects)/?>|<seg\d+>"
    r"|<\|/?(?:ref|det|box|object_ref_start|object_ref_end|box_start|box_end|begin_of_box|end_of_box|grounding)\|>"
    r"|```(?:json|python|xml)?",
    re.I,
)
PLAIN = str.maketrans(
    {chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)}  # full width, as keyboards for Chinese write them
    | {"、": ",", "【": "[", "】": "]", "〔": "[", "〕": "]", "\u2212": "-", "\u2010": "-", "\u2011": "-", "\xa0": " "}
)


def read_notation(match: re.Match[str]) -> tuple[Coordinates, ...]:
    """The boxes of a match of `NOTATIONS`; none where it is no box."""
    piece, kind = match.group(), find_kind(match)
    percent = "%" in piece
    if kind == "tokens":
        return tuple(_read_tokens([int(n) for n in re.findall(r"\d+", piece)], piece))
    if kind == "tag":
        return tuple(_read_tag(match))
    if kind == "object":
        return tuple(_read_value(_parse_object(piece)))
    if kind in ("element", "named"):
        return tuple(_read_value(_list_members(piece)))
    if kind == "list":
        return tuple(_read_lists(_parse_lists(piece), percent))
    numbers = _find_numbers(piece)
    if kind == "ranges":
        x1, x2, y1, y2 = numbers
        return (Coordinates((x1, y1, x2, y2), "xyxy", percent),)
    if kind == "named_points":
        return (Coordinates(numbers, "xyxy", percent),)
    if kind == "pairs":
        return tuple(_read_points(_chunk(numbers, 2), percent))
    if kind in ("corners", "four", "alone") and len(numbers) % 4 == 0:
        order: Literal["points"] | None = "points" if kind == "corners" else None
        return tuple(Coordinates(four, order, percent) for four in _chunk(numbers, 4))
    return ()


def find_kind(match: re.Match[str]) -> str:
    """The name of the notation."""
    return next(name for name in NOTATIONS.groupindex if match[name] is not None)


def is_marked(match: re.Match[str]) -> bool:
    """Whether marks, tokens or names of keys say that the match is a box; plain numbers in brackets may be anything."""
    return find_kind(match) in _MARKED


_AXIS = r"[\"']?(x|y|w|h|left|top|right|bottom|cx|cy)(?:idth|eight)?_?(?:\d|min|max|center|centre)?[\"']?"
_FORMAT = re.compile(rf"[\[(]\s*{_AXIS}\s*,\s*{_AXIS}\s*,\s*{_AXIS}\s*,\s*{_AXIS}\s*[\])]", re.I)
_FORMATS: Mapping[str, Order] = {
    **dict.fromkeys(("x y x y", "left top right bottom"), "xyxy"),
    **dict.fromkeys(("y x y x", "top left bottom right"), "yxyx"),
    **dict.fromkeys(("x y w h", "left top w h"), "xywh"),
    "cx cy w h": "cxcywh",
}
_NO_PLACE = re.compile(
    r"""["'](?:bbox|box)\w*["']\s*:\s*(?:\[\s*\]|null|None|["'](?:none|null|n/a)?["'])""", re.I
)  # fmt: skip


def find_stated_order(text: str) -> Order | None:
    """The order that a text says its numbers have, as "[y_min, x_min, y_max, x_max]"; None without one, or with two."""
    found = set()
    for match in _FORMAT.finditer(text):
        axes = " ".join(match.groups()).lower()
        centred = axes == "x y w h" and "cent" in match.group().lower()
        found.add("cxcywh" if centred else _FORMATS.get(axes))
    return found.pop() if len(found) == 1 else None


def says_nowhere(match: re.Match[str]) -> bool:
    """Whether a match is an object whose box is empty: what was asked for is not there."""
    return find_kind(match) == "object" and bool(_NO_PLACE.search(match.group()))


def claims_a_box(match: re.Match[str]) -> bool:
    """Whether a match without coordinates was meant as a place in the image, and not some other list or object."""
    kind, piece = find_kind(match), match.group()
    if kind == "object":
        keys = {_fold_key(key) for key in re.findall(r"""["']?([A-Za-z][\w -]*)["']?\s*[:=]""", piece)}
        values = _QUOTED_KEY.sub("", piece)
        return any(key in _PLACES or "point" in key for key in keys) and any(map(str.isdigit, values))
    return kind not in ("list", "torn") or len(_find_numbers(piece)) > 1


# ---- numbers --------------------------------------------------------------------------------------------------------


def _find_numbers(piece: str) -> tuple[float, ...]:
    return tuple(float(n) for n in _NUMBER.findall(re.sub(r"<[^>]*>", " ", piece)))


def _chunk(numbers: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return list(zip(*[iter(numbers)] * size, strict=True))


def _read_points(points: Sequence[Sequence[float]], percent: bool) -> Iterator[Coordinates]:
    """Two corners, the four corners of an upright rectangle, or several boxes of two corners each."""
    if len(points) > 3 and not _are_corners(points) and _go_around(points):
        yield from _read_polygon(points, percent)
    elif len(points) % 2 == 0:
        yield from (Coordinates((*a, *b), None, percent) for a, b in _chunk(points, 2))


def _are_corners(points: Sequence[Sequence[float]]) -> bool:
    """Whether the points are upper left and lower right corners in turn."""
    return len(points) % 2 == 0 and all(a[0] < b[0] and a[1] < b[1] for a, b in _chunk(points, 2))


def _go_around(points: Sequence[Sequence[float]]) -> bool:
    """Whether the points go once around an outline that has no dent, in one direction."""
    ring = [point for point, after in zip(points, [*points[1:], points[0]], strict=True) if point != after]
    turns = [
        (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])
        for a, b, c in zip(ring, [*ring[1:], *ring[:1]], [*ring[2:], *ring[:2]], strict=True)
    ]
    return len(ring) > 2 and (all(turn >= 0 for turn in turns) or all(turn <= 0 for turn in turns))


def _read_polygon(points: Sequence[Sequence[float]], percent: bool, label: str = "") -> Iterator[Coordinates]:
    """The extent of three points or more."""
    if len(points) > 2:
        first, second = zip(*points, strict=True)
        yield Coordinates((min(first), min(second), max(first), max(second)), "points", percent, label)


def _parse_lists(piece: str) -> list[Any]:
    """The lists of a text, as nested lists of numbers; a semicolon begins another list."""
    stack: list[list[Any]] = [[]]
    for token in re.findall(rf"\[|\]|;|{_NUM}", piece, re.I):
        if token == "[":
            stack[-1].append([])
            stack.append(stack[-1][-1])
        elif token == "]":
            stack.pop()
        elif token == ";" and len(stack) > 1:
            stack.pop()
            stack[-1].append([])
            stack.append(stack[-1][-1])
        elif token != ";":
            stack[-1].append(float(token))
    return stack[0]


def _read_lists(lists: Sequence[Any], percent: bool) -> Iterator[Coordinates]:
    """The boxes of lists that stand side by side."""
    if all(_is_point(part) for part in lists):
        yield from _read_points(lists, percent)
    else:
        for part in lists:
            yield from _read_list(part, percent)


def _read_list(part: Any, percent: bool, order: Order | None = None) -> Iterator[Coordinates]:
    """The boxes of a list: four numbers, two corners, four or more points of a polygon, or lists of these."""
    if not isinstance(part, list):
        return
    if _are_numbers(part):
        if len(part) == 4:
            yield Coordinates(tuple(map(float, part)), order, percent)
        elif len(part) == 5 and 0 < part[4] < 1 < max(part[:4]):  # the score stands behind
            yield Coordinates(tuple(map(float, part[:4])), order, percent, score=float(part[4]))
    elif all(_is_point(point) for point in part):
        if len(part) == 2:
            yield Coordinates((*part[0], *part[1]), order, percent)
        elif len(part) > 3:
            yield from _read_polygon(part, percent)
    else:
        for inner in part:
            yield from _read_list(inner, percent, order)


def _are_numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _are_numbers(value)


# ---- tokens and tags ------------------------------------------------------------------------------------------------


def _read_tokens(numbers: Sequence[int], piece: str) -> Iterator[Coordinates]:
    if "patch_index" in piece:
        for first, last in _chunk(numbers, 2) if len(numbers) % 2 == 0 else ():
            yield Coordinates(_join_patches(first, last), "xyxy", unit=32)
    elif len(numbers) % 4 == 0:
        unit = 1024 if re.match(r"<loc\d{4}>", piece, re.I) else None
        yield from (Coordinates(tuple(map(float, four)), unit=unit) for four in _chunk(numbers, 4))


def _join_patches(first: int, last: int, side: int = 32) -> tuple[float, ...]:
    """The box from one patch to another, in patches: from middle to middle, or all of them in one row or column.

    As `patch_index_to_coordinate` of Kosmos-2's processor (transformers, processing_kosmos2.py) has it.
    """
    (y1, x1), (y2, x2) = divmod(first, side), divmod(last, side)
    if x1 == x2 or y1 == y2:
        return float(x1), float(y1), x2 + 1.0, y2 + 1.0
    return x1 + 0.5, y1 + 0.5, x2 + 0.5, y2 + 0.5


def _read_tag(match: re.Match[str]) -> Iterator[Coordinates]:
    """The boxes between marks. Without the mark of the end and the last bracket, the last number may be cut."""
    inside = match["inside"].strip()
    percent, numbers = "%" in inside, _find_numbers(inside)
    if not match["end"] and inside[-1:] not in (*")]}",):
        return
    if match["poly"] and len(numbers) > 4:
        yield from _read_polygon(_chunk(numbers, 2), percent) if len(numbers) % 2 == 0 else ()
    elif found := NOTATIONS.fullmatch(inside):
        yield from read_notation(found)
    elif numbers and len(numbers) % 4 == 0 and not re.search("[a-z]", inside, re.I):
        yield from (Coordinates(four, None, percent) for four in _chunk(numbers, 4))


# ---- objects --------------------------------------------------------------------------------------------------------

_KEYED = re.compile(
    r"""(?:["'](?P<quoted>[A-Za-z_][\w -]*)["']|(?P<key>\b[A-Za-z_][\w-]*))\s*[:=]\s*"""
    r"""(?P<value>\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]|"[^"]*"|'[^']*'"""
    rf"""|{_NUM}\s*%?(?!\s*,\s*\d))""",  # 1,024 is no 1
    re.I,
)
_QUOTED_KEY = re.compile(r"""["'][A-Za-z_][\w -]*["']\s*:""")
_XML = re.compile(r"<(\w+)>\s*([^<>]*?)\s*</\1>")
_LEFT, _TOP = (
    ("xmin", "left", "xleft", "minx", "startx", "xtl", "l"),
    ("ymin", "top", "ytop", "miny", "starty", "ytl", "t"),
)
_RIGHT, _BOTTOM = (
    ("xmax", "right", "xright", "maxx", "endx", "xbr", "r"),
    ("ymax", "bottom", "ybottom", "maxy", "endy", "ybr", "b"),
)
_SIZE = (("width", "w", "boxwidth"), ("height", "h", "boxheight"))
_NAMED: tuple[tuple[Order, tuple[tuple[str, ...], ...]], ...] = (
    ("xyxy", (("x0",), ("y0",), ("x1",), ("y1",))),
    ("xyxy", (("x1", "x", *_LEFT), ("y1", "y", *_TOP), ("x2", *_RIGHT), ("y2", *_BOTTOM))),
    ("cxcywh", (("cx", "xcenter", "centerx", "xc", "xcentre"), ("cy", "ycenter", "centery", "yc", "ycentre"), *_SIZE)),
    ("xywh", (("x", "x1", "x0", *_LEFT), ("y", "y1", "y0", *_TOP), *_SIZE)),
)
_POINTED = (  # two corners by name
    ("p1", "p2"), ("point1", "point2"), ("topleft", "bottomright"),
    ("upperleft", "lowerright"), ("tl", "br"), ("min", "max"), ("start", "end"),
    ("bottomleft", "topright"), ("lowerleft", "upperright"),
)  # fmt: skip
_ORDERS: Mapping[str, Order] = {"xyxy": "xyxy", "ltrb": "xyxy", "yxyx": "yxyx", "xywh": "xywh", "ltwh": "xywh",
                                "cxcywh": "cxcywh"}  # fmt: skip
_LISTED = (
    *("bbox2d", "box2d", "bbox", "box", "boundingbox", "boxes", "bboxes", "boundingboxes", "coordinates", "coords"),
    *("location", "region", "rect", "rectangle", "roi", *_ORDERS),
)
_OUTLINES = ("polygon", "polygons", "segmentation", "vertices", "outline", "contour", "points", "corners")
_LABELS = ("label", "name", "phrase", "class", "object", "category")
_SCORES = ("score", "confidence", "conf", "probability", "prob", "confidencescore", "logit")
_PLACES = {*_LISTED, *_OUTLINES, "center", "centre", *(k for _, names in _NAMED for choices in names for k in choices)}
_PLACES |= {key for pair in _POINTED for key in pair} - {"start", "end", "min", "max"}


def _fold_key(key: str) -> str:
    return re.sub(r"[^a-z0-9]", "", key.lower())


def _parse_object(piece: str) -> Any:
    """The value of an object in JSON or Python, else the members that can be found in it."""
    try:
        return json.loads(piece, object_pairs_hook=_join_repeats)
    except ValueError:
        pass
    try:
        return json.loads(json.dumps(ast.literal_eval(piece)))  # tuples become lists
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        inner = piece[1:-1]
        if "{" in inner:
            return [_parse_object(part) for part in re.findall(_OBJECT, inner, re.I)]
        return _list_members(piece)


def _join_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object, with a list of the values of a key that stands in it several times."""
    members: dict[str, Any] = {}
    for key, value in pairs:
        members[key] = [members[key], value] if key in members else value
    return members


def _list_members(piece: str) -> dict[str, str]:
    keyed = [(found["quoted"] or found["key"], found["value"]) for found in _KEYED.finditer(piece)]
    return dict([*keyed, *_XML.findall(piece)])


def _read_value(value: Any) -> Iterator[Coordinates]:
    """The boxes of an object, or of the objects and lists within it."""
    if isinstance(value, list):
        if all(isinstance(part, list | int | float) for part in value):
            yield from _read_list(value, False)
        else:
            for part in value:
                yield from _read_value(part)
    elif isinstance(value, dict):
        members = {_fold_key(str(key)): member for key, member in value.items()}
        percent = any("%" in str(member) for key, member in members.items() if key not in (*_SCORES, *_LABELS))
        boxes = tuple(_read_members(members, percent))
        score = next((s for key in _SCORES if (s := _read_score(members.get(key))) is not None), None)
        scores = [_read_score(part) for part in listed] if isinstance(listed := members.get("scores"), list) else []
        own = scores if len(scores) == len(boxes) else [None] * len(boxes)
        label = next((str(members[key]).strip("\"'") for key in _LABELS if isinstance(members.get(key), str)), "")
        label = re.sub(r"[\[\]]", " ", label)
        for box, stated in zip(boxes, own, strict=True):
            confidence = next((s for s in (box.score, stated, score) if s is not None), None)
            yield Coordinates(box.values, box.order, box.percent, label or box.label, confidence)
        if not boxes:
            for member in value.values():
                if isinstance(member, dict | list):
                    yield from _read_value(member)
                elif isinstance(member, str) and member.strip()[:1] in ("[", "(", "{", "<"):
                    yield from _read_written(member)


def _read_members(members: Mapping[str, Any], percent: bool) -> Iterator[Coordinates]:
    """The boxes that the keys of an object name."""
    for key, value in members.items():
        if key in _LISTED or (key.endswith(tuple(_ORDERS)) and not isinstance(value, int | float)):
            order = next((_ORDERS[name] for name in _ORDERS if key.endswith(name)), None)
            yield from _read_listed(value, percent, order)
            return
    for first, second in _POINTED:
        if first in members and second in members:
            (a, a_named), (b, b_named) = _read_point(members[first]), _read_point(members[second])
            if len(a) == len(b) == 2:
                yield Coordinates((*a, *b), "xyxy" if a_named and b_named else "points", percent)
                return
    for key in _OUTLINES:
        if isinstance(outline := members.get(key), list):
            flat = list(_flatten(outline))
            corners = len(flat) == 4 and key == "corners"
            if corners:
                yield Coordinates(tuple(flat), "points", percent)
            elif len(flat) % 2 == 0:
                yield from _read_polygon(_chunk(flat, 2), percent)
            return
    yield from _read_named(members, percent)


def _read_listed(value: Any, percent: bool, order: Order | None) -> Iterator[Coordinates]:
    if isinstance(value, str):
        inside = value.strip("\"'")
        numbers = _find_numbers(inside)
        if inside[:1] in "[(":
            yield from _read_written(inside)
        elif len(numbers) == 4:
            yield Coordinates(numbers, order, percent)
    elif isinstance(value, list) and len(value) == 4 and all(isinstance(v, str) for v in value):
        numbers = tuple(n for text in value for n in _find_numbers(text))
        yield from (Coordinates(numbers, order, percent),) if len(numbers) == 4 else ()
    elif isinstance(value, list) and not any(isinstance(part, dict | str) for part in value):
        yield from _read_list(value, percent, order)
    else:
        yield from _read_value(value)


def _read_written(text: str) -> Iterator[Coordinates]:
    """The boxes of a text within an object, where it is nothing else."""
    match = NOTATIONS.fullmatch(text.strip())
    yield from read_notation(match) if match else ()


def _read_named(members: Mapping[str, Any], percent: bool) -> Iterator[Coordinates]:
    """A box by the names of its four numbers; of a middle and a size, or of a range an axis."""
    spread = dict(members)
    for names, parts in ((("center", "centre"), ("cx", "cy")), (("size",), ("width", "height"))):
        point = next((_read_point(members[name])[0] for name in names if name in members), ())
        spread |= dict(zip(parts, point, strict=False)) if len(point) == 2 else {}
    for order, choices_of in _NAMED:
        keys = [next((k for k in choices if k in spread), None) for choices in choices_of]
        numbers = [_find_numbers(str(spread[key])) for key in keys if key is not None]
        if len(numbers) == 4 and all(len(n) == 1 for n in numbers):
            yield Coordinates(tuple(n for (n,) in numbers), order, percent)
            return
    across, down = (next((members[k] for k in (f"{a}range", a) if k in members), None) for a in "xy")
    if across is not None and down is not None:
        (x, _), (y, _) = _read_point(across), _read_point(down)
        if len(x) == len(y) == 2:
            yield Coordinates((x[0], y[0], x[1], y[1]), "xyxy", percent)


def _read_point(value: Any) -> tuple[tuple[float, ...], bool]:
    """The numbers of a point, and whether they are named x and y."""
    if isinstance(value, dict):
        members = {_fold_key(str(key)): member for key, member in value.items()}
        keys = ("x", "y") if {"x", "y"} <= members.keys() else ("width", "height")
        return tuple(n for key in keys for n in _find_numbers(str(members.get(key, "")))), True
    return _find_numbers(str(value)), False


def _flatten(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        yield from (n for n in _read_point(value)[0])
    elif isinstance(value, list):
        for part in value:
            yield from _flatten(part)
    elif _are_numbers([value]):
        yield float(value)


def _read_score(value: Any) -> float | None:
    """A score, where it is written as a number: 0.9, "0.9" or 90%; "high" is none."""
    number = re.fullmatch(rf"[\"']?\s*({_NUM})\s*(%?)\s*[\"']?", str(value), re.I)
    return None if number is None else float(number[1]) / (100 if number[2] else 1)

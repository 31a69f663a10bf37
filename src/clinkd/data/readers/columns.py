"""Map the columns of a sheet to our column names."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from clinkd.data.readers.box_layout import BoxForm
from clinkd.data.readers.choices import NO_CHOICE, ChoiceKeys, find_choice_keys
from clinkd.language.languages import list_usual_heads
from clinkd.records import BadInput
from clinkd.spelling import find_near

CORNERS = ("x1", "y1", "x2", "y2")
EXTENT = ("x", "y", "width", "height")  # left, top, and the size of the box
SHEET_COLUMNS = (
    "image", "modality", "patient", "question", "answer", "name", *CORNERS, *EXTENT, "box", "split", "id", "side",
    "window", "frame", "sentence", "caption", "label", "reader",
)  # fmt: skip
CHOICE_COLUMNS = {  # of PMC-VQA (whose own code reads "Anwser") and OmniMedVQA, taken only beside options
    "image": ("Figure_path", "image_path"), "answer": ("Anwser", "gt_answer"), "modality": ("modality_type",),
    "id": ("question_id",),
}  # fmt: skip
_NEAR = 0.81  # of the spelling of a head to our name: frame is no slip of fname


# Heads that say what the numbers of a box are, as `_strip_head` leaves them. The first that are all there count: beside
# x y w h, width and height are the image's.
_FAR_CORNERS = ("x1 y1 x2 y2", "x0 y0 x1 y1", "xmin ymin xmax ymax", "minx miny maxx maxy", "left top right bottom")
_LEFT_TOPS = ("left top", "xmin ymin", "minx miny")
_CENTRES = (
    "cx cy", "xc yc", "xcenter ycenter", "centerx centery", "xcentre ycentre", "centrex centrey", "xctr yctr",
)  # fmt: skip
_BOX_HEADS = (
    *((CORNERS, corners.split()) for corners in _FAR_CORNERS),
    *((EXTENT, [*near.split(), *size]) for near in ("x y", *_LEFT_TOPS, *_CENTRES) for size in ("wh", EXTENT[2:])),
)
_LEFT_HEADS = {corners.split()[0] for corners in (*_FAR_CORNERS, *_LEFT_TOPS)}
_CENTRE_HEADS = {centre.split()[0] for centre in _CENTRES}
_Y_BEFORE_X = re.compile(r"y|row|top(?!left)|tlbr")  # at the beginning of the head of a single column
_BOX_NAMES = ("bbox", "boundingbox", "boxes", "bboxes", "boundingboxes")  # of one column, which say no more
_FORMS_IN_HEADS: dict[str, BoxForm] = {
    "xyxy": "xyxy", "x1y1x2y2": "xyxy", "x0y0x1y1": "xyxy", "xminyminxmaxymax": "xyxy", "lefttoprightbottom": "xyxy",
    "ltrb": "xyxy", "xywh": "xywh", "xywidthheight": "xywh", "xminyminwidthheight": "xywh", "xminyminwh": "xywh",
    "lefttopwidthheight": "xywh", "ltwh": "xywh", "cxcywh": "cxcywh", "xcenterycenterwidthheight": "cxcywh",
}  # fmt: skip


def map_columns(
    head: list[str], mapping: Mapping[str, str], file: Path, notes: Counter[str], used: Collection[str] = ()
) -> dict[str, str]:
    """Our name -> the sheet's name, for each used column. Raises BadInput if the column names do not fit.

    `notes` counts the columns that are neither mapped nor in `used`.
    """
    context = f"{file}: its columns are {', '.join(head)}"
    columns = {our_name: _find_column(our_name, sheet_name, head, context) for our_name, sheet_name in mapping.items()}
    _refuse_sizes_as_corners(columns, context)
    for column in head:
        our_name = next((o for o in SHEET_COLUMNS if fold_head(o) == fold_head(column)), None)
        if our_name in (None, "label") or our_name in mapping or column in columns.values():
            continue
        if our_name in columns:
            both = f"{columns[our_name]!r} and {column!r} both mean {our_name}"
            raise BadInput(f"{context}; {both}: say which with --column")
        columns[our_name] = column
    columns = _add_choice_columns(head, columns)
    if not (set(EXTENT) <= columns.keys() or set(EXTENT) & mapping.keys()):  # width and height may be the image's
        columns = {our_name: sheet_name for our_name, sheet_name in columns.items() if our_name not in EXTENT}
    if mapping.keys().isdisjoint({"box", *CORNERS, *EXTENT}):
        columns |= _find_box_columns(head, columns)
    offered = guess_columns(head, columns)
    has_boxes = _check_columns(columns, context, _spell_offer(offered))
    if not has_boxes:  # "name" may be the patient's name
        ambiguous = {"name", "sentence", "reader"} - mapping.keys()
        columns = {our_name: sheet_name for our_name, sheet_name in columns.items() if our_name not in ambiguous}
    asks = {"question", "caption", "label"} & columns.keys() or (has_boxes and {"name", "sentence"} & columns.keys())
    if not asks and not has_boxes and (label := next((c for c in head if fold_head(c) == "label"), None)):
        columns["label"] = label  # beside a question it may be anything, and beside a box it is the name
    elif not asks:
        wanted = "question and answer, name and box (or x1, y1, x2, y2), caption, or label"
        offer = _spell_offer(offered) or ", as --column caption=COLUMN"
        raise BadInput(f"{context}; nothing to ask: {wanted} is wanted{offer}")
    meanings = {sheet_name: our_name for our_name, sheet_name in offered.items()}
    used = {*used, *find_choice_columns(head, columns).used, *find_size_columns(head, columns).values()}
    for column in head:
        if column not in columns.values() and column not in used:
            perhaps = f"; perhaps: {_spell_flag(meanings[column], column)}" if column in meanings else ""
            notes[f"column {column!r} is not used{perhaps}"] += 1
    return columns


def _find_box_columns(head: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """The columns of named boxes whose heads say what their numbers are, under other names than ours."""
    has_names = not columns.keys().isdisjoint({"name", "sentence"})
    if not has_names or not columns.keys().isdisjoint({"box", "x2", "y2"}):
        return {}
    taken = {c for ours, c in columns.items() if ours not in (*CORNERS, *EXTENT)}
    by_stripped = {_strip_head(c): c for c in reversed(head) if c not in taken}
    for ours, heads in _BOX_HEADS:
        if set(heads) <= by_stripped.keys():
            return {our_name: by_stripped[h] for our_name, h in zip(ours, heads, strict=True)}
    boxes = [c for stripped, c in by_stripped.items() if stripped in (*_BOX_NAMES, *_FORMS_IN_HEADS)]
    return {"box": boxes[0]} if len(boxes) == 1 and "x1" not in columns else {}


def list_box_forms(columns: Mapping[str, str]) -> tuple[BoxForm, ...]:
    """What the numbers of the boxes may be by the heads of their columns; the first is what they are usually.

    Raises BadInput for a single column whose head names y before x.
    """
    if "box" in columns:
        if _Y_BEFORE_X.match(stripped := _strip_head(columns["box"])):
            raise BadInput(f"the column {columns['box']!r} puts y before x; write x first, under another head")
        form = _FORMS_IN_HEADS.get(stripped)
        return (form,) if form else ("xyxy", "xywh", "cxcywh")
    if "x" not in columns:
        return ("xyxy",)
    left = _strip_head(columns["x"])
    return ("cxcywh",) if left in _CENTRE_HEADS else ("xywh",) if left in _LEFT_HEADS else ("xywh", "cxcywh")


def find_size_columns(head: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """width and height -> the columns that state them of the image, of a sheet whose boxes do not use them."""
    if columns.keys().isdisjoint({"box", "x1", "x"}):
        return {}
    free = {fold_head(column): column for column in head if column not in columns.values()}
    pairs = ({key: f"{before}{key}" for key in ("width", "height")} for before in ("", "image", "img"))
    names = next((pair for pair in pairs if set(pair.values()) <= free.keys()), {})
    return {key: free[name] for key, name in names.items()}


def find_choice_columns(head: list[str], columns: Mapping[str, str]) -> ChoiceKeys:
    """The columns of options and of the true letter, if the sheet asks questions."""
    free = tuple(column for column in head if column not in columns.values())
    return find_choice_keys(free) if "question" in columns else NO_CHOICE


def _add_choice_columns(head: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """The columns with those that published sets of multiple choice name in their own way, if the sheet has options."""
    choice = find_choice_columns(head, columns)
    if not choice.has_options:
        return dict(columns)
    names = {our_name: next((c for c in head if c in theirs), "") for our_name, theirs in CHOICE_COLUMNS.items()}
    names["answer"] = names["answer"] or choice.letter
    return {our_name: column for our_name, column in names.items() if column} | dict(columns)


def guess_columns(head: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our name -> the sheet's name, for columns outside `columns` with a usual name in a language of the table.

    These are offered, never taken by themselves.
    """
    free = [column for column in head if column not in columns.values()]
    guesses: dict[str, str] = {}
    for our_name in SHEET_COLUMNS:
        usual = {our_name, *list_usual_heads(our_name)}
        column = next((c for c in free if _strip_head(c) in usual), None)
        column = column or next((c for c in free if c[:1].casefold() == our_name[0] and _is_slip(c, our_name)), None)
        if our_name not in columns and column is not None:
            guesses[our_name] = column
    known = {**guesses, **columns}
    spelling = next((group for group in (("box",), CORNERS, EXTENT) if set(group) <= known.keys()), ())
    others = {"box", *CORNERS, *EXTENT} - set(spelling)  # "left" is a corner, or the left of a width
    if not spelling:
        others |= {"name", "sentence", "reader"}  # without boxes, "name" may be the patient's name
    guesses = {our_name: column for our_name, column in guesses.items() if our_name not in others}
    taken: dict[str, str] = {}
    for our_name, column in guesses.items():
        taken.setdefault(column, our_name)
    return {our_name: column for column, our_name in taken.items()}


def _is_slip(column: str, our_name: str) -> bool:
    return _strip_head(column) != our_name and find_near(column, [our_name], _NEAR) is not None


def _spell_offer(offered: Mapping[str, str]) -> str:
    """The guesses as flags to paste, "" without any."""
    return "; perhaps: " + " ".join(_spell_flag(o, c) for o, c in offered.items()) if offered else ""


def _spell_flag(our_name: str, column: str) -> str:
    return f"--column {shlex.quote(f'{our_name}={column}')}"


def _refuse_sizes_as_corners(columns: Mapping[str, str], context: str) -> None:
    """Raise BadInput if a column is given as a corner of a box and its name says that it is a size, or the reverse."""
    for corner, size in (("x2", "width"), ("y2", "height")):
        column = columns.get(corner, "")
        if _strip_head(column) in {size, *list_usual_heads(size)}:
            way_out = " ".join(_spell_flag(o, columns.get(c, c)) for o, c in zip(EXTENT, CORNERS, strict=True))
            raise BadInput(f"{context}; {column!r} is a size, and {corner} a corner: give {way_out}")
        column = columns.get(size, "")
        if _strip_head(column) in {corner, *list_usual_heads(corner)}:
            way_out = " ".join(_spell_flag(o, columns.get(c, c)) for o, c in zip(CORNERS, EXTENT, strict=True))
            raise BadInput(f"{context}; {column!r} is a corner, and {size} a size: give {way_out}")


def _check_columns(columns: dict[str, str], context: str, offer: str) -> bool:
    """Whether the columns have boxes. Raises BadInput if a column is missing that belongs to another."""
    if "image" not in columns:
        raise BadInput(f"{context}; none is the image{offer or ': name it, as --column image=COLUMN'}")
    for columns_together in (("question", "answer"), CORNERS, EXTENT):
        present = [c for c in columns_together if c in columns]
        missing = next((c for c in columns_together if c not in columns), None)
        if present and missing:
            way_out = offer or f": name it, as --column {missing}=COLUMN"
            raise BadInput(f"{context}; {', '.join(present)} without {missing}{way_out}")
    spellings = [columns[first] for first in ("box", "x1", "x") if first in columns]
    if len(spellings) > 1:
        raise BadInput(f"{context}; boxes stand both in {' and in '.join(spellings)} ...: rename one of them")
    return bool(spellings)


def _find_column(our_name: str, sheet_name: str, head: list[str], context: str) -> str:
    if our_name not in SHEET_COLUMNS:
        near = find_near(our_name, SHEET_COLUMNS)
        hint = f"did you mean {near}={sheet_name}? " if near else ""
        if sheet_name in SHEET_COLUMNS and our_name in head:
            hint = f"did you mean {sheet_name}={our_name}? "
        legal = ", ".join(SHEET_COLUMNS)
        raise BadInput(f"--column {our_name}={sheet_name}: {hint}one of {legal} is wanted before the =")
    if sheet_name in head:
        return sheet_name
    similar = [c for c in head if fold_head(c) == fold_head(sheet_name)]
    if len(similar) != 1:
        near = find_near(sheet_name, head)
        way_out = (
            f"did you mean {_spell_flag(our_name, near)}?" if near else f"correct {_spell_flag(our_name, sheet_name)}"
        )
        raise BadInput(f"{context}; there is no {sheet_name!r}: {way_out}")
    return similar[0]


def fold_head(name: str) -> str:
    """A name of a column without its case, blanks and "_"."""
    return re.sub(r"[\s_]+", "", name.casefold())


def _strip_head(name: str) -> str:
    """A name without case, accents, signs and a "bbox" or "bounding box" before it."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    letters = "".join(c for c in plain if c.isalnum())
    return letters if letters in _BOX_NAMES else re.sub(r"^(?:bounding)?b?box(?:es)?(?=.)", "", letters)

"""Map the columns of a sheet to our column names."""

from __future__ import annotations

import difflib
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from clinkd.language.languages import list_usual_heads
from clinkd.records import BadInput

CORNERS = ("x1", "y1", "x2", "y2")
EXTENT = ("x", "y", "width", "height")  # left, top, and the size of the box
SHEET_COLUMNS = (
    "image", "modality", "patient", "question", "answer", "name", *CORNERS, *EXTENT, "box", "split", "id", "side",
    "window", "frame", "sentence", "caption",
)  # fmt: skip


def map_columns(head: list[str], mapping: Mapping[str, str], file: Path, notes: Counter[str]) -> dict[str, str]:
    """Our name -> the sheet's name, for each used column. Raises BadInput if the column names do not fit."""
    context = f"{file}: its columns are {', '.join(head)}"
    columns = {our_name: _find_column(our_name, sheet_name, head, context) for our_name, sheet_name in mapping.items()}
    _refuse_sizes_as_corners(columns, context)
    for column in head:
        our_name = next((o for o in SHEET_COLUMNS if _fold_name(o) == _fold_name(column)), None)
        if our_name is None or our_name in mapping or column in columns.values():
            continue
        if our_name in columns:
            both = f"{columns[our_name]!r} and {column!r} both mean {our_name}"
            raise BadInput(f"{context}; {both}: say which with --column")
        columns[our_name] = column
    if not (set(EXTENT) <= columns.keys() or set(EXTENT) & mapping.keys()):  # width and height may be the image's
        columns = {our_name: sheet_name for our_name, sheet_name in columns.items() if our_name not in EXTENT}
    offered = guess_columns(head, columns)
    has_boxes = _check_columns(columns, context, _spell_offer(offered))
    if not has_boxes:  # "name" may be the patient's name
        ambiguous = {"name", "sentence"} - mapping.keys()
        columns = {our_name: sheet_name for our_name, sheet_name in columns.items() if our_name not in ambiguous}
    if not ({"question", "caption"} & columns.keys() or (has_boxes and {"name", "sentence"} & columns.keys())):
        wanted = "question and answer, name and box (or x1, y1, x2, y2), or caption"
        offer = _spell_offer(offered) or ", as --column caption=COLUMN"
        raise BadInput(f"{context}; nothing to ask: {wanted} is wanted{offer}")
    meanings = {sheet_name: our_name for our_name, sheet_name in offered.items()}
    for column in head:
        if column not in columns.values():
            perhaps = f"; perhaps: {_spell_flag(meanings[column], column)}" if column in meanings else ""
            notes[f"column {column!r} is not used{perhaps}"] += 1
    return columns


def guess_columns(head: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our name -> the sheet's name, for columns outside `columns` with a usual name in a language of the table.

    These are offered, never taken by themselves.
    """
    free = [column for column in head if column not in columns.values()]
    guesses: dict[str, str] = {}
    for our_name in SHEET_COLUMNS:
        usual = {our_name, *list_usual_heads(our_name)}
        column = next((c for c in free if _strip_name(c) in usual), None)
        if our_name not in columns and column is not None:
            guesses[our_name] = column
    known = {**guesses, **columns}
    spelling = next((group for group in (("box",), CORNERS, EXTENT) if set(group) <= known.keys()), ())
    others = {"box", *CORNERS, *EXTENT} - set(spelling)  # "left" is a corner, or the left of a width
    if not spelling:
        others |= {"name", "sentence"}  # without boxes, "name" may be the patient's name
    guesses = {our_name: column for our_name, column in guesses.items() if our_name not in others}
    taken: dict[str, str] = {}
    for our_name, column in guesses.items():
        taken.setdefault(column, our_name)
    return {our_name: column for column, our_name in taken.items()}


def _spell_offer(offered: Mapping[str, str]) -> str:
    """The guesses as flags to paste, "" without any."""
    return "; perhaps: " + " ".join(_spell_flag(o, c) for o, c in offered.items()) if offered else ""


def _spell_flag(our_name: str, column: str) -> str:
    return f"--column {shlex.quote(f'{our_name}={column}')}"


def _refuse_sizes_as_corners(columns: Mapping[str, str], context: str) -> None:
    """Raise BadInput if a column is given as the far corner of a box, and its name says that it is a size."""
    for corner, size in (("x2", "width"), ("y2", "height")):
        column = columns.get(corner, "")
        if _strip_name(column) in {size, *list_usual_heads(size)}:
            way_out = " ".join(_spell_flag(o, columns.get(c, c)) for o, c in zip(EXTENT, CORNERS, strict=True))
            raise BadInput(f"{context}; {column!r} is a size, and {corner} a corner: give {way_out}")


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
        near = difflib.get_close_matches(our_name, SHEET_COLUMNS, n=1)
        hint = f"did you mean {near[0]}={sheet_name}? " if near else ""
        if sheet_name in SHEET_COLUMNS and our_name in head:
            hint = f"did you mean {sheet_name}={our_name}? "
        legal = ", ".join(SHEET_COLUMNS)
        raise BadInput(f"--column {our_name}={sheet_name}: {hint}one of {legal} is wanted before the =")
    if sheet_name in head:
        return sheet_name
    similar = [c for c in head if _fold_name(c) == _fold_name(sheet_name)]
    if len(similar) != 1:
        raise BadInput(f"{context}; there is no {sheet_name!r}: correct --column {our_name}={sheet_name}")
    return similar[0]


def _fold_name(name: str) -> str:
    return re.sub(r"[\s_]+", "", name.casefold())


def _strip_name(name: str) -> str:
    """A name without case, accents, signs and a "bbox" before it."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    letters = "".join(c for c in plain if c.isalnum())
    return re.sub(r"^b?box(?=.)", "", letters)

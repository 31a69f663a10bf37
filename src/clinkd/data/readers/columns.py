"""Map the columns of a sheet to our column names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from clinkd.records import BadInput

CORNERS = ("x1", "y1", "x2", "y2")
SHEET_COLUMNS = (
    "image", "modality", "patient", "question", "answer", "name", *CORNERS, "box", "split", "id", "side", "window",
    "frame", "sentence", "caption",
)  # fmt: skip


def map_columns(head: list[str], mapping: Mapping[str, str], file: Path, notes: Counter[str]) -> dict[str, str]:
    """Our name -> the sheet's name, for each used column. Raises BadInput if the column names do not fit."""
    context = f"{file}: its columns are {', '.join(head)}"
    columns = {our_name: _find_column(our_name, sheet_name, head, context) for our_name, sheet_name in mapping.items()}
    for column in head:
        our_name = next((o for o in SHEET_COLUMNS if _fold_name(o) == _fold_name(column)), None)
        if our_name is None or our_name in mapping or column in columns.values():
            continue
        if our_name in columns:
            both = f"{columns[our_name]!r} and {column!r} both mean {our_name}"
            raise BadInput(f"{context}; {both}: say which with --column")
        columns[our_name] = column
    has_boxes = _check_columns(columns, context)
    if not has_boxes:  # "name" may be the patient's name
        ambiguous = {"name", "sentence"} - mapping.keys()
        columns = {our_name: sheet_name for our_name, sheet_name in columns.items() if our_name not in ambiguous}
    if not ({"question", "caption"} & columns.keys() or (has_boxes and {"name", "sentence"} & columns.keys())):
        wanted = "question and answer, name and box (or x1, y1, x2, y2), or caption"
        raise BadInput(f"{context}; nothing to ask: {wanted} is wanted, as --column caption=COLUMN")
    for column in head:
        if column not in columns.values():
            notes[f"column {column!r} is not used"] += 1
    return columns


def _check_columns(columns: dict[str, str], context: str) -> bool:
    """Whether the columns have boxes. Raises BadInput if a column is missing that belongs to another."""
    if "image" not in columns:
        raise BadInput(f"{context}; none is the image: name it, as --column image=COLUMN")
    for columns_together in (("question", "answer"), CORNERS):
        present = [c for c in columns_together if c in columns]
        missing = next((c for c in columns_together if c not in columns), None)
        if present and missing:
            raise BadInput(f"{context}; {', '.join(present)} without {missing}: name it, as --column {missing}=COLUMN")
    if "x1" in columns and "box" in columns:
        both = f"{columns['box']} and in {columns['x1']} ..."
        raise BadInput(f"{context}; boxes stand both in {both}: rename one of them")
    return "x1" in columns or "box" in columns


def _find_column(our_name: str, sheet_name: str, head: list[str], context: str) -> str:
    if our_name not in SHEET_COLUMNS:
        raise BadInput(f"--column {our_name}={sheet_name}: one of {', '.join(SHEET_COLUMNS)} is wanted before the =")
    if sheet_name in head:
        return sheet_name
    similar = [c for c in head if _fold_name(c) == _fold_name(sheet_name)]
    if len(similar) != 1:
        raise BadInput(f"{context}; there is no {sheet_name!r}: correct --column {our_name}={sheet_name}")
    return similar[0]


def _fold_name(name: str) -> str:
    return re.sub(r"[\s_]+", "", name.casefold())

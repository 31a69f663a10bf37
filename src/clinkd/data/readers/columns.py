"""The head of a sheet: which of its columns is which of ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from clinkd.records import BadInput

CORNERS = ("x1", "y1", "x2", "y2")
OURS = (
    "image", "modality", "patient", "question", "answer", "name", *CORNERS, "box", "split", "id", "side", "window",
    "frame", "sentence", "caption",
)  # fmt: skip


def columns_of(head: list[str], given: Mapping[str, str], file: Path, told: Counter[str]) -> dict[str, str]:
    """Our name -> the sheet's, of what is used. Raises BadInput where the sheet cannot be understood by its head."""
    there = f"{file}: its columns are {', '.join(head)}"
    columns = {ours: _mapped(ours, theirs, head, there) for ours, theirs in given.items()}
    for column in head:
        ours = next((o for o in OURS if _bare(o) == _bare(column)), None)
        if ours is None or ours in given or column in columns.values():
            continue
        if ours in columns:
            raise BadInput(f"{there}; {columns[ours]!r} and {column!r} both mean {ours}: say which with --column")
        columns[ours] = column
    boxes = _checked(columns, there)
    if not boxes:  # "name" may well be that of the patient
        left = {"name", "sentence"} - given.keys()
        columns = {ours: theirs for ours, theirs in columns.items() if ours not in left}
    if not ({"question", "caption"} & columns.keys() or (boxes and {"name", "sentence"} & columns.keys())):
        wanted = "question and answer, name and box (or x1, y1, x2, y2), or caption"
        raise BadInput(f"{there}; nothing to ask: {wanted} is wanted, as --column caption=COLUMN")
    for column in head:
        if column not in columns.values():
            told[f"column {column!r} is not used"] += 1
    return columns


def _checked(columns: dict[str, str], there: str) -> bool:
    """Whether the columns hold boxes. Raises BadInput where columns that belong together are not."""
    if "image" not in columns:
        raise BadInput(f"{there}; none is the image: name it, as --column image=COLUMN")
    for together in (("question", "answer"), CORNERS):
        given = [c for c in together if c in columns]
        missing = next((c for c in together if c not in columns), None)
        if given and missing:
            raise BadInput(f"{there}; {', '.join(given)} without {missing}: name it, as --column {missing}=COLUMN")
    if "x1" in columns and "box" in columns:
        raise BadInput(f"{there}; boxes stand both in {columns['box']} and in {columns['x1']} ...: rename one of them")
    return "x1" in columns or "box" in columns


def _mapped(ours: str, theirs: str, head: list[str], there: str) -> str:
    if ours not in OURS:
        raise BadInput(f"--column {ours}={theirs}: one of {', '.join(OURS)} is wanted before the =")
    if theirs in head:
        return theirs
    alike = [c for c in head if _bare(c) == _bare(theirs)]
    if len(alike) != 1:
        raise BadInput(f"{there}; there is no {theirs!r}: correct --column {ours}={theirs}")
    return alike[0]


def _bare(name: str) -> str:
    return re.sub(r"[\s_]+", "", name.casefold())

"""Map the columns of a sheet to our column names."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from clinkd.records import BadInput
from clinkd.spelling import find_near

CORNERS = ("x1", "y1", "x2", "y2")
EXTENT = ("x", "y", "width", "height")  # left, top, and the size of the box
SHEET_COLUMNS = (
    "image", "modality", "patient", "question", "answer", "name", *CORNERS, *EXTENT, "box", "split", "id", "side",
    "window", "frame", "sentence", "caption",
)  # fmt: skip
_NEAR = 0.81  # of the spelling of a head to our name: frame is no slip of fname
_LEFT, _TOP = "x left xmin links gauche", "y top ymin oben haut"
_USUAL_NAMES = {  # in English, German and French, as `_strip_name` leaves them; offered, never taken by themselves
    "image": "filename file path filepath imagefile imagename imagepath imageid bild bilddatei bildname bildpfad datei "
    "dateiname pfad fichier nomfichier nomdufichier cheminimage",
    "modality": "modalitat modalitaet bildgebung verfahren modalite",
    "patient": "patientid patientenid patientennummer patientennr patnr pid subject subjectid proband idpatient",
    "question": "questions frage fragen fragetext query prompt",
    "answer": "answers antwort antworten antworttext reponse response",
    "x1": f"{_LEFT} x0 xlinks linksx", "y1": f"{_TOP} y0 yoben obeny",
    "x2": "right xmax rechts droite xrechts rechtsx", "y2": "bottom ymax unten bas yunten unteny",
    "x": _LEFT, "y": _TOP, "width": "w breite largeur", "height": "h hohe hoehe hauteur",
    "box": "bbox boundingbox rechteck rectangle cadre",
    "name": "label class classname category structure finding struktur klasse organ befund nom classe organe etiquette",
    "sentence": "satz phrase",
    "caption": "description report findings beschreibung bildbeschreibung befund befundtext legende rapport",
    "split": "set subset partition aufteilung",
}  # fmt: skip


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
    """Our name -> the sheet's name, for columns outside `columns` with a usual name in English, German or French."""
    free = [column for column in head if column not in columns.values()]
    guesses: dict[str, str] = {}
    for our_name in SHEET_COLUMNS:
        usual = {our_name, *_USUAL_NAMES.get(our_name, "").split()}
        column = next((c for c in free if _strip_name(c) in usual), None)
        column = column or next((c for c in free if c[:1].casefold() == our_name[0] and _is_slip(c, our_name)), None)
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


def _is_slip(column: str, our_name: str) -> bool:
    return _strip_name(column) != our_name and find_near(column, [our_name], _NEAR) is not None


def _spell_offer(offered: Mapping[str, str]) -> str:
    """The guesses as flags to paste, "" without any."""
    return "; perhaps: " + " ".join(_spell_flag(o, c) for o, c in offered.items()) if offered else ""


def _spell_flag(our_name: str, column: str) -> str:
    return f"--column {shlex.quote(f'{our_name}={column}')}"


def _refuse_sizes_as_corners(columns: Mapping[str, str], context: str) -> None:
    """Raise BadInput if a column is given as the far corner of a box, and its name says that it is a size."""
    for corner, size in (("x2", "width"), ("y2", "height")):
        column = columns.get(corner, "")
        if _strip_name(column) in {size, *_USUAL_NAMES[size].split()}:
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
        near = find_near(our_name, SHEET_COLUMNS)
        hint = f"did you mean {near}={sheet_name}? " if near else ""
        if sheet_name in SHEET_COLUMNS and our_name in head:
            hint = f"did you mean {sheet_name}={our_name}? "
        legal = ", ".join(SHEET_COLUMNS)
        raise BadInput(f"--column {our_name}={sheet_name}: {hint}one of {legal} is wanted before the =")
    if sheet_name in head:
        return sheet_name
    similar = [c for c in head if _fold_name(c) == _fold_name(sheet_name)]
    if len(similar) != 1:
        near = find_near(sheet_name, head)
        way_out = (
            f"did you mean {_spell_flag(our_name, near)}?" if near else f"correct {_spell_flag(our_name, sheet_name)}"
        )
        raise BadInput(f"{context}; there is no {sheet_name!r}: {way_out}")
    return similar[0]


def _fold_name(name: str) -> str:
    return re.sub(r"[\s_]+", "", name.casefold())


def _strip_name(name: str) -> str:
    """A name without case, accents, signs and a "bbox" before it."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    letters = "".join(c for c in plain if c.isalnum())
    return re.sub(r"^b?box(?=.)", "", letters)

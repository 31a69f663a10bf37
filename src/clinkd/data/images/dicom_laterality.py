"""Where the patient's left lies in a DICOM frame, by its header.

The loader neither flips nor turns a frame, so rows run to the picture's right as they are stored. Patient coordinates
grow to the patient's left, back and head (PS3.3 C.7.6.2.1.1). That a patient lies prone or feet first is in them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import numpy as np

from clinkd.data.images.dicom_grey import find_functional_group
from clinkd.data.images.dicom_header import Header, read_numbers, read_term
from clinkd.records import Laterality

if TYPE_CHECKING:
    from pydicom import Dataset

Left = Literal["left", "right", "none", "unknown"]

_LEAST_COSINE = 0.8  # below it, a row follows no axis of the body: oblique (as in PixelMed and PS3.3 C.23.2)
_TOLERANCE = 0.05  # of unit length and right angle: some writers round to two digits
_AXES = {"L": 0, "R": 0, "A": 1, "P": 1, "H": 2, "F": 2}
_LEFT_BY_LETTER: dict[str, Left] = {"L": "right", "R": "left"}  # the end of a row lies at the picture's right
# PS3.3 C.8.11.5.1.1 and C.8.7.3; the longer words are those of public chest films
_VIEWS: dict[str, Left] = {
    **dict.fromkeys(("AP", "PA", "AP AXIAL", "PA AXIAL", "AP ERECT", "AP SUPINE"), "right"),
    **dict.fromkeys(("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT", "LEFT LATERAL", "RIGHT LATERAL"), "none"),
    **dict.fromkeys(("XTABLE LATERAL", "CC", "MLO", "ML", "LM", "LMO", "XCCL", "XCCM", "FB", "SIO"), "none"),
    **dict.fromkeys(("LAO", "RAO", "LPO", "RPO", "LLO", "RLO", "LLD", "RLD", "AP LLD", "AP RLD"), "unknown"),
    **dict.fromkeys(("PA LLD", "PA RLD", "OBLIQUE"), "unknown"),
}
_UNUSUAL_POSITIONS = ("HFP", "FFS", "FFP", "HFDR", "HFDL", "FFDR", "FFDL")


def find_laterality(header: Header, index: int) -> Laterality | None:
    """Where the patient's left lies in a frame (counted from 0); None where the header says nothing of it.

    The plane of the frame decides, else the letters of its edges, else the view. A view from the front or from the back
    is shown as if the viewer faces the patient, so it gives way to what is stated of the edges.
    """
    ds = header.ds
    plane = _read_plane(find_functional_group(header, index, "PlaneOrientationSequence"))
    if not plane and (rule := _find_one_sided_field(ds)):
        return Laterality("none", rule)
    edges, view = _read_edges(ds), _VIEWS.get(read_term(ds, "ViewPosition", tuple(_VIEWS)))
    stated = {"ImageOrientationPatient": plane, "PatientOrientation": edges, "ViewPosition": view}
    known: dict[str, Left] = {rule: left for rule, left in stated.items() if left}
    if not known:
        unusual = read_term(ds, "PatientPosition", _UNUSUAL_POSITIONS)
        return Laterality("unknown", "PatientPosition") if unusual else None
    first, *others = known
    for other in others:
        if _contradict(known[first], known[other], by_view=other == "ViewPosition"):
            return Laterality("unknown", f"{first} and {other}, which contradict each other")
    return Laterality(known[first], first)


def _read_plane(ds: Dataset) -> Left | None:
    stored = ds.get_item("ImageOrientationPatient")  # not converted: what is no number would raise
    if stored is None or not stored.value:
        return None
    cosines = read_numbers(ds, "ImageOrientationPatient")
    if len(cosines) != 6:
        return "unknown"
    axes_23 = np.reshape(cosines, (2, 3))
    if np.abs(axes_23 @ axes_23.T - np.eye(2)).max() > _TOLERANCE:
        return "unknown"
    row_3 = axes_23[0]
    axis = int(np.abs(row_3).argmax())
    if abs(row_3[axis]) < _LEAST_COSINE:
        return "unknown"
    return "none" if axis else "right" if row_3[0] > 0 else "left"


def _read_edges(ds: Dataset) -> Left | None:
    """The two directions in which rows and columns run; the first letter of each is its main one (C.7.6.1.1.1)."""
    value = ds.get("PatientOrientation") or ()
    row, *rest = ((value,) if isinstance(value, str) else tuple(value)) or ("",)
    if not row and not any(rest):
        return None
    if read_term(ds, "AnatomicalOrientationType", ("QUADRUPED",)) or len(rest) != 1:
        return "unknown"
    ends = [str(end).strip().upper() for end in (row, rest[0])]
    if not all(re.fullmatch("[LRAPHF]{1,3}", end) for end in ends) or _AXES[ends[0][0]] == _AXES[ends[1][0]]:
        return "unknown"
    return _LEFT_BY_LETTER.get(ends[0][0], "none")


def _find_one_sided_field(ds: Dataset) -> str:
    """The field that says that the picture shows one breast, limb or eye, "" if none does."""
    if read_term(ds, "ImageLaterality", ("L", "R")):
        return "ImageLaterality"
    return "Modality MG" if read_term(ds, "Modality", ("MG",)) else ""


def _contradict(one: Left, other: Left, by_view: bool) -> bool:
    if "unknown" in (one, other):
        return False
    return ("none" in (one, other) or not by_view) and one != other

"""The many spellings of how an image was made, read as one of ten modalities."""

from __future__ import annotations

import difflib

from clinkd.records import BadInput, Modality

_SPELLINGS = {
    Modality.CT: ("ct", "computed tomography"),
    Modality.MR: ("mr", "mri", "magnetic resonance", "magnetic resonance imaging"),
    Modality.XRAY: ("x-ray", "x", "radiograph", "cr", "dx"),
    Modality.PET: ("pet", "pt"),
    Modality.ENDOSCOPY: ("endoscopy", "colonoscopy"),
    Modality.DERMOSCOPY: ("dermoscopy", "dermatoscopy"),
    Modality.FUNDUS: ("fundus", "fundus photograph", "fundus photography"),
    Modality.ULTRASOUND: ("ultrasound", "us", "sonography"),
    Modality.MICROSCOPY: ("microscopy", "histopathology"),
    Modality.OTHER: ("other",),
}


def _bare(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


_KNOWN = {_bare(spelling): modality for modality, spellings in _SPELLINGS.items() for spelling in spellings}


def read_modality(text: str) -> Modality:
    """The modality meant by `text`; case, blanks and hyphens do not count. Raises BadInput on an unknown one."""
    found = _KNOWN.get(_bare(text))
    if found is None:
        near = difflib.get_close_matches(_bare(text), _KNOWN, n=1)
        hint = f"; did you mean {_KNOWN[near[0]].value}?" if near else ""
        legal = ", ".join(spellings[0] for spellings in _SPELLINGS.values())
        raise BadInput(f"modality {text!r} is unknown{hint}; give one of {legal}")
    return found

"""Read the many spellings of a modality as one of ten."""

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


def _normalise_spelling(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


_BY_SPELLING = {
    _normalise_spelling(spelling): modality for modality, spellings in _SPELLINGS.items() for spelling in spellings
}


def read_modality(text: str) -> Modality:
    """The modality that `text` means; case, blanks and hyphens do not count. Raises BadInput if it is unknown."""
    modality = _BY_SPELLING.get(_normalise_spelling(text))
    if modality is None:
        similar = difflib.get_close_matches(_normalise_spelling(text), _BY_SPELLING, n=1)
        hint = f"; did you mean {_BY_SPELLING[similar[0]].value}?" if similar else ""
        legal = ", ".join(spellings[0] for spellings in _SPELLINGS.values())
        raise BadInput(f"modality {text!r} is unknown{hint}; give one of {legal}")
    return modality

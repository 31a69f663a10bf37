"""Read the many spellings of a modality as one of ten."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clinkd.records import BadInput, Modality
from clinkd.spelling import find_near

_SPELLINGS = {  # without the words of _PICTURES
    Modality.CT: ("ct", "computed tomography", "computerised tomography", "cat", "hrct", "cbct", "cect", "ncct"),
    Modality.MR: ("mr", "mri", "magnetic resonance"),
    Modality.XRAY: ("x-ray", "x", "cxr", "chest x-ray", "radiograph", "radiography", "cr", "dx", "röntgen", "roentgen"),
    Modality.PET: ("pet", "pt", "positron emission tomography"),
    Modality.ENDOSCOPY: ("endoscopy", "colonoscopy", "gastroscopy", "bronchoscopy", "capsule endoscopy"),
    Modality.DERMOSCOPY: ("dermoscopy", "dermatoscopy"),
    Modality.FUNDUS: ("fundus", "retinal fundus", "colour fundus", "color fundus", "cfp"),
    Modality.ULTRASOUND: ("ultrasound", "us", "sonography", "ultrasonography", "echocardiography"),
    Modality.MICROSCOPY: ("microscopy", "histopathology", "histology"),
    # kinds that are known to be none of the nine
    Modality.OTHER: ("other", "oct", "optical coherence tomography", "mammography", "mammogram", "angiography"),
}
LEGAL = ", ".join(spellings[0] for spellings in _SPELLINGS.values())  # as messages list them
_PICTURES = re.compile(r"(images?|imaging|scans?|slices?|slides?|photos?|photographs?|photography|pictures?)$")
_NEAR = 0.8  # of difflib's ratio: a slip of the keys, and no other word


def _normalise_spelling(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


_BY_SPELLING = {
    _normalise_spelling(spelling): modality for modality, spellings in _SPELLINGS.items() for spelling in spellings
}


def read_modality(text: str) -> Modality:
    """The modality that `text` means, as "MR (magnetic resonance imaging)"; case, blanks and hyphens do not count, nor
    words such as "images" at the end. Raises BadInput if it is unknown, or names two."""
    found = {_BY_SPELLING[part] for part in _list_parts(text) if part in _BY_SPELLING}
    if len(found) == 1:
        return found.pop()
    similar = find_near(_normalise_spelling(text), _BY_SPELLING, _NEAR)
    hint = f"; did you mean {_BY_SPELLING[similar].value}?" if similar else ""
    raise BadInput(f"modality {text!r} is unknown{hint}; give one of {LEGAL}")


def _list_parts(text: str) -> Iterator[str]:
    """The whole, and what stands before and in brackets, each as written and without a last word for a picture."""
    for part in (text, *re.split(r"[()\[\]]", text)):
        spelling = _normalise_spelling(part)
        yield spelling
        yield _PICTURES.sub("", spelling)

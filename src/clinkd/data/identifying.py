"""What a file says of a person: texts of its header and parts of its path, to be looked for in what leaves the house.

They are read for this alone, kept in memory, and written nowhere.
"""

from __future__ import annotations

import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from clinkd.data.images import header, locate, opened
from clinkd.data.images.dicom import is_dicom
from clinkd.data.images.dicom_header import opened as checked
from clinkd.records import BadInput, ImageRef

if TYPE_CHECKING:
    from pydicom import Dataset

# value representations that are text (PS3.5 6.2)
_TEXTS = frozenset(
    ["AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"]
)  # PS3.5 6.2
_LONGEST = 300  # characters; a longer text does not stand whole in an answer


def told_by(root: Path, image: ImageRef) -> frozenset[str]:
    """Texts of the header of an image, and the parts of its path that may be a name or a number.

    Raises BadInput where the file cannot be read: what it says is then not known.
    """
    place = f"image {image.path}"
    path, _ = locate(root, image.path, place)
    found = set(_dicom(path, place) if is_dicom(path) else _picture(path, place))
    parts = PurePosixPath(image.path.partition("#")[0])
    for name in (*parts.parts[:-1], parts.stem):
        if any(c.isdigit() or c.isupper() or c in "_^" for c in name):
            found.add(name)
    return frozenset(" ".join(text.split()) for text in found if 1 < len(text) <= _LONGEST)


def burnt_in(root: Path, image: ImageRef) -> bool:
    """Whether a DICOM says that there is text in its pixels."""
    facts = header(root, image.path, f"image {image.path}")
    return facts is not None and facts.burned_in == "YES"


def _dicom(path: Path, place: str) -> set[str]:
    import pydicom

    with checked(path, place):  # its sizes
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _texts(pydicom.dcmread(path, stop_before_pixels=True, force=True))
    except Exception as error:
        raise BadInput(f"{place}: its header cannot be read whole ({type(error).__name__})") from None


def _texts(ds: Dataset) -> set[str]:
    found: set[str] = set()
    for element in ds.iterall():
        if element.VR in _TEXTS and element.value:
            several = element.value if element.VM > 1 else [element.value]
            for value in several:
                found |= {str(value).strip(), *(str(value).split("=") if element.VR == "PN" else ())}
    return found


def _picture(path: Path, place: str) -> set[str]:
    with opened(path, place, None) as file:
        texts = [*file.info.values(), *file.getexif().values()]
    return {text.strip() for text in texts if isinstance(text, str)}

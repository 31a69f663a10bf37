"""Texts of the header and path of a file that may identify a person; outgoing text is searched for them.

They are read for this search alone, kept in memory, and written nowhere.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from clinkd.data.images import kind_of, locate, read_medical_facts
from clinkd.records import ImageRef

_LONGEST = 300  # characters; no answer holds a longer text whole


def identifying_texts(root: Path, image: ImageRef) -> frozenset[str]:
    """Texts of the header of an image, and the parts of its path that may be a name or a number.

    Raises BadInput where the file cannot be read, as its texts are then unknown.
    """
    place = f"image {image.path}"
    path, _ = locate(root, image.path, place)
    texts = kind_of(path).texts(path, place)
    parts = PurePosixPath(image.path.partition("#")[0])
    for name in (*parts.parts[:-1], parts.stem):
        if any(c.isdigit() or c.isupper() or c in "_^" for c in name):
            texts.add(name)
    return frozenset(" ".join(text.split()) for text in texts if 1 < len(text) <= _LONGEST)


def has_burnt_in_text(root: Path, image: ImageRef) -> bool:
    """Whether the header of an image says that its pixels hold text."""
    facts = read_medical_facts(root, image.path, f"image {image.path}")
    return facts is not None and facts.burned_in == "YES"

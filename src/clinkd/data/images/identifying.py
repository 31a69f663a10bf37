"""Texts that may identify a person, from header and path of a file; outgoing text is searched for them.

They are read for this alone, kept in memory, and written nowhere.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from clinkd.data.images import kind_of, locate, read_medical_facts
from clinkd.records import ImageRef

_LONGEST = 300  # characters; a longer text does not stand whole in an answer


def identifying_texts(root: Path, image: ImageRef) -> frozenset[str]:
    """Texts of the header of an image, and the parts of its path that may be a name or a number.

    Raises BadInput where the file cannot be read: what it says is then not known.
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
    """Whether the header of an image says that there is text in its pixels."""
    facts = read_medical_facts(root, image.path, f"image {image.path}")
    return facts is not None and facts.burned_in == "YES"

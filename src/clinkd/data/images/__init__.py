"""Open an image safely: confined to its root, capped before decoding, upright, and always 8-bit RGB.

`KINDS` lists the kinds of image files that can be read. The first kind that recognises a file opens it. A new kind is
one class of `ImageKind` and its place in that list.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path, PurePosixPath

from PIL import Image

from clinkd.data.images.dicom import Dicom
from clinkd.data.images.grey import PRESETS
from clinkd.data.images.kind import Facts, File, ImageFrame, ImageKind, check_pixels
from clinkd.data.images.limits import MAX_PIXELS, FileLimits
from clinkd.data.images.nifti import Nifti
from clinkd.data.images.parquet import Parquet
from clinkd.data.images.pixels import blank_outside, encode_picture
from clinkd.data.images.plain import Plain, open_at_frame
from clinkd.data.images.variants import change_pixels
from clinkd.records import BadInput, ImageRef

__all__ = [
    "KINDS",
    "PRESETS",
    "Dicom",
    "Facts",
    "ImageFrame",
    "ImageKind",
    "encode_picture",
    "is_named_as_image",
    "kind_of",
    "locate",
    "medical_names",
    "open_at_frame",
    "open_image",
    "read_image_header",
    "read_image_size",
    "read_medical_facts",
    "stays_inside",
]

KINDS: tuple[ImageKind, ...] = (Dicom(), Nifti(), Parquet(), Plain())  # Plain last: it takes all other files


def kind_of(file: File) -> ImageKind:
    """The kind of a file, by its first bytes and its name. A file that is no image counts as a plain picture."""
    return next(kind for kind in KINDS if kind.sniff(file))


def is_named_as_image(name: str) -> bool:
    """Whether the suffix of a file is that of an image."""
    suffixes = tuple(suffix for kind in KINDS for suffix in kind.accept if suffix.startswith("."))
    return name.lower().endswith(suffixes) or (mimetypes.guess_type(name)[0] or "").startswith("image/")


def medical_names() -> str:
    """The names of the medical kinds, for messages."""
    return " or ".join(kind.name for kind in KINDS if kind.medical)


def open_image(
    root: Path, image: ImageRef | str | Path, max_pixels: int = MAX_PIXELS, row: int | None = None
) -> Image.Image:
    """The image at `root`/`image` as RGB, turned upright by its EXIF tag; `a.tif#2` is the second frame of a file.

    It has pixels alone: nothing of its file's texts is kept, and its colours are sRGB by the file's profile.
    Grey levels beyond 8 bits are stretched from the least to the greatest value of the image; for a DICOM, the `window`
    of the ImageRef decides (see `clinkd.data.images.dicom`), and its `variant` changes the picture at the end.
    Transparent parts become black, and what an ImageRef does not show becomes grey. Raises BadInput with the path, and
    the row of a data file where given, if the path leads out of `root`, or the file is missing, empty, larger than
    `max_pixels`, damaged, no image, or has several frames and the path names none.
    """
    relative, window = (image.path, image.window) if isinstance(image, ImageRef) else (str(image), None)
    place = f"row {row}, image {relative}" if row is not None else f"image {relative}"
    path, frame = locate(root, relative, place)
    picture = kind_of(path).open(path, place, frame, window, FileLimits(pixels=max_pixels)).picture
    if isinstance(image, ImageRef) and image.variant:
        picture = change_pixels(picture, image.variant)
    return blank_outside(picture, image.shown) if isinstance(image, ImageRef) and image.shown else picture


def read_medical_facts(root: Path, relative: str, place: str) -> Facts | None:
    """The facts of the header of a medical image; None for a plain picture. Raises BadInput where it is unreadable."""
    path, _ = locate(root, relative, place)
    kind = kind_of(path)
    return kind.describe(path, place) if kind.medical else None


def read_image_size(
    root: Path, relative: str, place: str, window: str | None = None, max_pixels: int = MAX_PIXELS
) -> ImageRef:
    """Size and orientation of an image from its header alone.

    Raises BadInput like `open_image`, except for damage behind the header.
    """
    return read_image_header(root, relative, place, window, max_pixels)[0]


def read_image_header(
    root: Path, relative: str, place: str, window: str | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[ImageRef, Facts | None]:
    """As `read_image_size`, with the facts of the header if the image is a medical one."""
    path, frame = locate(root, relative, place)
    kind, limits = kind_of(path), FileLimits(pixels=max_pixels)
    facts = kind.describe(path, place, frame, window, limits)
    check_pixels(facts.width, facts.height, place, limits)
    window = window if kind.medical else None
    ref = ImageRef(relative, facts.width, facts.height, facts.orientation, window, facts.laterality)
    return ref, facts if kind.medical else None


def locate(root: Path, relative: str, place: str) -> tuple[Path, int | None]:
    """The file of an image, and the number of the frame if the name ends in one. Raises BadInput outside `root`."""
    stem, sign, number = relative.rpartition("#")
    path = _confine_path(root, relative, place)
    if sign and number.isdecimal() and not path.exists():
        return _confine_path(root, stem, place), int(number)
    return path, None


def stays_inside(relative: str) -> bool:
    """Whether the text of a path stays below its root. Only `locate` follows links."""
    path = PurePosixPath(relative)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in relative


def _confine_path(root: Path, relative: str | Path, place: str) -> Path:
    try:
        base = Path(root).resolve()
        path = (base / relative).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL byte, a loop of links, a name too long
        raise BadInput(f"{place}: not a usable path ({error}); correct it") from None
    if not path.is_relative_to(base):
        raise BadInput(f"{place}: leads out of {root}; give a path inside it")
    return path

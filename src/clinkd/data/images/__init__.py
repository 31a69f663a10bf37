"""Open an image safely: confined to its root, capped before decoding, upright, and always 8-bit RGB."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from clinkd.data.images.dicom import Facts, describe, is_dicom, name_of, open_dicom, scans_of, which_frame
from clinkd.data.images.dicom_header import reading
from clinkd.data.limits import MAX_PIXELS, ON_DISK, Limits
from clinkd.records import BadInput, ImageRef

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")  # decoders that run no other program
_FILMS = ("PNG", "GIF", "WEBP")  # a frame of which is made from those before it
_WAY_OUT = f"give a readable image ({', '.join(FORMATS)} or DICOM)"


def open_image(
    root: Path,
    image: ImageRef | str | Path,
    max_pixels: int = MAX_PIXELS,
    row: int | None = None,
) -> Image.Image:
    """The image at `root`/`image` as RGB, turned upright as its EXIF says; `a.tif#2` is a file's second frame.

    Grey levels beyond 8 bits are stretched from the image's least to its greatest value, those of a DICOM by the
    `window` of the ImageRef (see `clinkd.data.images.dicom`); transparent parts become black. Raises BadInput naming
    the path, and the row of a data file where given, when the path leads out of `root`, or the file is missing, empty,
    larger than `max_pixels`, damaged, no image, or of several frames of which none is named.
    """
    relative = image.path if isinstance(image, ImageRef) else str(image)
    place = f"row {row}, image {relative}" if row is not None else f"image {relative}"
    path, frame = locate(root, relative, place)
    limits = Limits(pixels=max_pixels)
    if is_dicom(path):
        window = image.window if isinstance(image, ImageRef) else None
        return open_dicom(path, place, frame, window, limits)
    return open_picture(path, place, frame, limits)


def open_picture(file: Path | BinaryIO, place: str, frame: int | None, limits: Limits = ON_DISK) -> Image.Image:
    """A picture that is no DICOM as `open_image` gives it. Raises BadInput, `place` in front, as `open_image`."""
    with opened(file, place, frame, limits) as picture:
        if picture.format in ("JPEG", "MPO") and limits.decoded_pixels < ON_DISK.decoded_pixels:
            with reading(file, place) as stream:
                at, scans = stream.tell(), scans_of(stream.read())
                stream.seek(at)
            if scans * picture.width * picture.height > limits.decoded_pixels:
                more = f"{scans:,} scans of {picture.width}x{picture.height} pixels"
                raise BadInput(f"{place}: {more}, more than {limits.decoded_pixels:,} pixels; save it anew as a PNG")
        picture.load()
        return _rgb(ImageOps.exif_transpose(picture))


def header(root: Path, relative: str, place: str) -> Facts | None:
    """What the header of a DICOM tells; None where the file is another image."""
    path, _ = locate(root, relative, place)
    return describe(path, place) if is_dicom(path) else None


def look(root: Path, relative: str, place: str, window: str | None = None, max_pixels: int = MAX_PIXELS) -> ImageRef:
    """Size and orientation of an image from its header alone.

    Raises BadInput as `open_image`, but for damage further in.
    """
    path, frame = locate(root, relative, place)
    if is_dicom(path):
        facts = describe(path, place, window)
        which_frame(frame, facts.frames, relative, place)
        _capped(facts.width, facts.height, place, max_pixels)
        return ImageRef(relative, facts.width, facts.height, window=window)
    with opened(path, place, frame, Limits(pixels=max_pixels)) as file:
        turned = _orientation(file)
        # Pillow turns the size of a TIFF, but of no other, before its pixels are loaded.
        lying = turned >= 5 and file.format != "TIFF"
        width, height = file.size[::-1] if lying else file.size
        return ImageRef(relative, width, height, turned)


def count_frames(root: Path, relative: str, place: str) -> int:
    """How many frames a file has, DICOM or other. Raises BadInput where it cannot be opened."""
    path, _ = locate(root, relative, place)
    return describe(path, place).frames if is_dicom(path) else picture_frames(path, place)


def picture_frames(file: Path | BinaryIO, place: str, limits: Limits = ON_DISK) -> int:
    """How many frames a picture has that is no DICOM. Raises BadInput where it cannot be opened, or has too many."""
    with _file(file, place) as picture:
        return _frames(picture, place, limits)


def _orientation(file: Image.Image) -> int:
    """The EXIF orientation, 1 where none is given. The pixels of a PNG are read only where it may stand behind them."""
    exif = file.getexif() if not isinstance(file, PngImageFile) or _may_be_turned(file) else {}
    turned = int(exif.get(ExifTags.Base.Orientation, 1))
    return turned if 1 <= turned <= 8 else 1


def _may_be_turned(file: PngImageFile) -> bool:
    """Whether a PNG has a chunk from which Pillow takes an orientation; to ask Pillow itself decodes every PNG."""
    stream = file.fp
    assert stream is not None
    at, back = 8, stream.tell()
    found = False
    while not found and len(head := (stream.seek(at), stream.read(8))[1]) == 8:
        found = head[4:] in (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
        at += 12 + int.from_bytes(head[:4], "big")
    stream.seek(back)
    return found


@contextlib.contextmanager
def opened(file: Path | BinaryIO, place: str, frame: int | None, limits: Limits = ON_DISK) -> Iterator[Image.Image]:
    """The opened file at its frame, nothing decoded yet; what decoders throw inside becomes BadInput."""
    with _file(file, place) as picture:
        number = which_frame(frame, _frames(picture, place, limits), name_of(file), place)
        if number > 1 and picture.format in _FILMS:
            _capped(picture.width, picture.height, place, limits.pixels)
            if picture.width * picture.height * number > limits.decoded_pixels:
                more = f"more than {limits.decoded_pixels:,} pixels to decode up to frame {number}"
                raise BadInput(f"{place}: {more}; give that frame alone")
        picture.seek(number - 1)
        _capped(picture.width, picture.height, place, limits.pixels)
        yield picture


@contextlib.contextmanager
def _file(file: Path | BinaryIO, place: str) -> Iterator[Image.Image]:
    """The opened file; what decoders throw inside becomes BadInput."""
    on_disk = isinstance(file, Path)
    try:
        if isinstance(file, Path) and file.exists() and not file.is_file():  # a pipe would be waited for without end
            raise BadInput(f"{place}: cannot be read (it is a folder, or no file at all); {_WAY_OUT}")
        with warnings.catch_warnings(), reading(file, place) as stream:
            warnings.simplefilter("ignore")  # of metadata that are not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not stream.read(1):
                raise BadInput(f"{place}: the file is empty (0 bytes); bring back the original, or leave it out")
            stream.seek(0)
            with Image.open(stream, formats=FORMATS) as picture:
                yield picture
    except BadInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadInput(f"{place}: more than {MAX_PIXELS:,} pixels; shrink it first") from None
    except UnidentifiedImageError:
        raise BadInput(f"{place}: not an image; {_WAY_OUT}") from None
    except Exception as error:  # what damage makes of decoders; of what others send, not in words that may be theirs
        said = error if on_disk else type(error).__name__
        raise BadInput(f"{place}: cannot be read ({said}); {_WAY_OUT}") from None


def _frames(picture: Image.Image, place: str, limits: Limits) -> int:
    if picture.format == "MPO":  # a camera's preview is no frame
        return 1
    if picture.format == "TIFF" and limits.frames < ON_DISK.frames:  # to count them all takes the square of them
        with contextlib.suppress(EOFError):
            for index in range(1, limits.frames + 1):  # one by one: a leap beyond the end makes Pillow miscount
                picture.seek(index)
            raise _too_many(place, limits)
        picture.seek(0)
    frames: int = getattr(picture, "n_frames", 1)
    if frames > limits.frames:
        raise _too_many(place, limits)
    return frames


def _too_many(place: str, limits: Limits) -> BadInput:
    return BadInput(f"{place}: more than {limits.frames:,} frames; cut it into shorter ones")


def _capped(width: int, height: int, place: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadInput(f"{place}: {width}x{height} pixels, more than {max_pixels:,} in all; shrink it first")


def locate(root: Path, relative: str, place: str) -> tuple[Path, int | None]:
    """The file of an image, and the number of its frame where the name ends in one. Raises BadInput outside `root`."""
    stem, sign, number = relative.rpartition("#")
    path = _confined(root, relative, place)
    if sign and number.isdecimal() and not path.exists():
        return _confined(root, stem, place), int(number)
    return path, None


def stays_inside(relative: str) -> bool:
    """Whether a path, by its words alone, stays below its root. Links are followed by `locate` only."""
    path = PurePosixPath(relative)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in relative


def _confined(root: Path, relative: str | Path, place: str) -> Path:
    try:
        base = Path(root).resolve()
        path = (base / relative).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL byte, a loop of links, a name too long
        raise BadInput(f"{place}: not a usable path ({error}); correct it") from None
    if not path.is_relative_to(base):
        raise BadInput(f"{place}: leads out of {root}; give a path inside it")
    return path


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        values[~np.isfinite(values)] = 0
        low, span = values.min(), max(values.max() - values.min(), 1e-12)
        values -= low  # in place: each copy of a large image is 320 MB
        values /= span
        values *= 255
        return Image.fromarray(values.round(out=values).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, (0, 0, 0, 255)), clear).convert("RGB")
    return image.convert("RGB")

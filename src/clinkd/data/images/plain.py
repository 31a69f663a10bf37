"""Pictures that Pillow decodes: PNG, JPEG, BMP, TIFF, GIF, WebP."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from clinkd.data.images.kind import Facts, File, ImageFrame, check_pixels, reading, which_frame
from clinkd.data.images.limits import MAX_PIXELS, ON_DISK, FileLimits
from clinkd.records import BadInput

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")  # decoders that run no other program
_FILMS = ("PNG", "GIF", "WEBP")  # a frame of which is made from those before it
_WAY_OUT = f"give a readable image ({', '.join(FORMATS)} or DICOM)"


class Plain:
    """Any file that is of no other kind: a picture, or none at all.

    Grey levels beyond 8 bits are stretched from the image's least to its greatest value; transparent parts become
    black. A window means nothing here, and is not looked at.
    """

    name = "picture"
    formats = FORMATS
    accept = ("image/*",)
    medical = False
    reportable = False

    def sniff(self, file: File) -> bool:
        return True

    def describe(
        self, file: File, place: str, frame: int | None = 1, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> Facts:
        with _open_picture(file, place) as picture:
            frames = _count_frames(picture, place, limits)
            _seek_frame(picture, which_frame(frame, frames, file, place), place, limits)
            orientation = _read_orientation(picture)
            # Pillow turns the size of a TIFF, but of no other, before its pixels are loaded.
            lying = orientation >= 5 and picture.format != "TIFF"
            width, height = picture.size[::-1] if lying else picture.size
            return Facts(width, height, frames, orientation=orientation)

    def open(
        self, file: File, place: str, frame: int | None, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> ImageFrame:
        with _open_picture(file, place) as picture:
            frames = _count_frames(picture, place, limits)
            number = which_frame(frame, frames, file, place)
            _seek_frame(picture, number, place, limits)
            if picture.format in ("JPEG", "MPO") and limits.decoded_pixels < ON_DISK.decoded_pixels:
                with reading(file, place) as stream:
                    position, scans = stream.tell(), scans_of(stream.read())
                    stream.seek(position)
                if scans * picture.width * picture.height > limits.decoded_pixels:
                    more = f"{scans:,} scans of {picture.width}x{picture.height} pixels"
                    way_out = "save it anew as a PNG"
                    raise BadInput(f"{place}: {more}, more than {limits.decoded_pixels:,} pixels; {way_out}")
            picture.load()
            upright = _convert_to_rgb(ImageOps.exif_transpose(picture))
            return ImageFrame(upright, Facts(upright.width, upright.height, frames), number)

    def texts(self, path: Path, place: str) -> set[str]:
        values: list[object] = []
        with _open_picture(path, place) as picture:
            for index in range(_count_frames(picture, place, ON_DISK) if picture.format == "TIFF" else 1):
                picture.seek(index)  # each has tags of its own
                values += [*picture.info.values(), *picture.getexif().values()]
            comment = picture.info.get("comment")  # of a GIF or JPEG, as bytes
            values.append(comment.decode("utf-8", "replace") if isinstance(comment, bytes) else comment)
        return {text.strip() for text in values if isinstance(text, str)}


@contextlib.contextmanager
def open_at_frame(file: File, place: str, frame: int | None) -> Iterator[Image.Image]:
    """The opened file at its frame, nothing decoded yet; what decoders throw inside becomes BadInput."""
    with _open_picture(file, place) as picture:
        number = which_frame(frame, _count_frames(picture, place, ON_DISK), file, place)
        _seek_frame(picture, number, place, ON_DISK)
        yield picture


def scans_of(jpeg: bytes) -> int:
    """How often a decoder goes over a picture: SOS marks (ISO/IEC 10918-1 B.2.3), which no coded bytes look like."""
    return jpeg.count(b"\xff\xda")


def _seek_frame(picture: Image.Image, number: int, place: str, limits: FileLimits) -> None:
    """Go to a frame, where it is small enough, and so are those it is made from."""
    if number > 1 and picture.format in _FILMS:
        check_pixels(picture.width, picture.height, place, limits)
        if picture.width * picture.height * number > limits.decoded_pixels:
            more = f"more than {limits.decoded_pixels:,} pixels to decode up to frame {number}"
            raise BadInput(f"{place}: {more}; give that frame alone")
    picture.seek(number - 1)
    check_pixels(picture.width, picture.height, place, limits)


def _read_orientation(file: Image.Image) -> int:
    """The EXIF orientation, 1 where none is given. The pixels of a PNG are read only where it may stand behind them."""
    exif = file.getexif() if not isinstance(file, PngImageFile) or _may_hold_orientation(file) else {}
    turned = int(exif.get(ExifTags.Base.Orientation, 1))
    return turned if 1 <= turned <= 8 else 1


def _may_hold_orientation(file: PngImageFile) -> bool:
    """Whether a PNG has a chunk from which Pillow takes an orientation; to ask Pillow itself decodes every PNG."""
    stream = file.fp
    assert stream is not None
    position, back = 8, stream.tell()
    has_chunk = False
    while not has_chunk and len(head := (stream.seek(position), stream.read(8))[1]) == 8:
        has_chunk = head[4:] in (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
        position += 12 + int.from_bytes(head[:4], "big")
    stream.seek(back)
    return has_chunk


@contextlib.contextmanager
def _open_picture(file: File, place: str) -> Iterator[Image.Image]:
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
        cause = error if on_disk else type(error).__name__
        raise BadInput(f"{place}: cannot be read ({cause}); {_WAY_OUT}") from None


def _count_frames(picture: Image.Image, place: str, limits: FileLimits) -> int:
    if picture.format == "MPO":  # a camera's preview is no frame
        return 1
    if picture.format == "TIFF" and limits.frames < ON_DISK.frames:  # to count them all takes the square of them
        with contextlib.suppress(EOFError):
            for index in range(1, limits.frames + 1):  # one by one: a leap beyond the end makes Pillow miscount
                picture.seek(index)
            raise _make_frames_error(place, limits)
        picture.seek(0)
    frames: int = getattr(picture, "n_frames", 1)
    if frames > limits.frames:
        raise _make_frames_error(place, limits)
    return frames


def _make_frames_error(place: str, limits: FileLimits) -> BadInput:
    return BadInput(f"{place}: more than {limits.frames:,} frames; cut it into shorter ones")


def _convert_to_rgb(image: Image.Image) -> Image.Image:
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

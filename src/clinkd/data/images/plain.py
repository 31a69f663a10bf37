"""Pictures that Pillow decodes: PNG, JPEG, BMP, TIFF, GIF, WebP."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from clinkd.data.images.kind import Facts, File, Geometry, ImageFrame, check_pixels, choose_frame, open_stream
from clinkd.data.images.limits import MAX_PIXELS, ON_DISK, FileLimits
from clinkd.data.images.pixels import convert_to_srgb
from clinkd.data.images.structure import check_structure
from clinkd.records import BadInput

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")  # their decoders run no other program
_ANIMATIONS = ("PNG", "GIF", "WEBP")  # each frame is made from the frames before it
_WAY_OUT = f"give a readable image ({', '.join(FORMATS)} or DICOM)"


class Plain:
    """Any file of no other kind: a picture, or no image at all.

    Grey levels beyond 8 bits are stretched from the least to the greatest value of the image. Transparent parts become
    black. Colours become sRGB by the file's profile. A window has no meaning here and is ignored.
    """

    name = "picture"
    formats: tuple[str, ...] = FORMATS
    accept: tuple[str, ...] = ("image/*",)
    medical = False
    reportable = False

    def sniff(self, file: File) -> bool:
        return True

    def describe(
        self, file: File, place: str, frame: int | None = 1, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> Facts:
        with open_at_frame(file, place, frame, limits) as (picture, _, frames):
            orientation = _read_orientation(picture)
            # Pillow turns the size of a TIFF, but of no other format, before it loads the pixels.
            lying = orientation >= 5 and picture.format != "TIFF"
            width, height = picture.size[::-1] if lying else picture.size
            return Facts(width, height, frames, orientation=orientation)

    def open(
        self, file: File, place: str, frame: int | None, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> ImageFrame:
        with open_at_frame(file, place, frame, limits) as (picture, number, frames):
            if picture.format in ("JPEG", "MPO") and limits.decoded_pixels < ON_DISK.decoded_pixels:
                with open_stream(file, place) as stream:
                    scans = count_scans(stream.read())
                if scans * picture.width * picture.height > limits.decoded_pixels:
                    more = f"{scans:,} scans of {picture.width}x{picture.height} pixels, more than"
                    raise BadInput(f"{place}: {more} {limits.decoded_pixels:,} pixels; save it anew as a PNG")
            picture.load()
            turned = ImageOps.exif_transpose(picture)
            upright = convert_to_srgb(turned, _convert_to_rgb(turned))
            return ImageFrame(upright, Facts(upright.width, upright.height, frames), number)

    def geometry(self, file: File, place: str, limits: FileLimits = ON_DISK) -> Geometry:
        return Geometry()

    def instance_uid(self, path: Path, place: str) -> str:
        return ""

    def texts(self, path: Path, place: str) -> set[str]:
        values: list[object] = []
        with _open_file(path, place) as picture:
            for index in range(_count_frames(picture, place, ON_DISK) if picture.format == "TIFF" else 1):
                picture.seek(index)  # each frame has its own tags
                values += [*picture.info.values(), *picture.getexif().values()]
            comment = picture.info.get("comment")  # of a GIF or JPEG, as bytes
            values.append(comment.decode("utf-8", "replace") if isinstance(comment, bytes) else comment)
        return {text.strip() for text in values if isinstance(text, str)}


@contextlib.contextmanager
def open_at_frame(
    file: File, place: str, frame: int | None, limits: FileLimits = ON_DISK
) -> Iterator[tuple[Image.Image, int, int]]:
    """The opened file at its frame, nothing decoded yet, the number of this frame, and how many frames there are.

    Errors that decoders raise inside become BadInput.
    """
    with _open_file(file, place, limits) as picture:
        frames = _count_frames(picture, place, limits)
        number = choose_frame(frame, frames, file, place)
        _seek_frame(picture, number, place, limits)
        yield picture, number, frames


def count_scans(jpeg: bytes) -> int:
    """The passes of a decoder over a picture: its SOS marks (ISO/IEC 10918-1 B.2.3). No coded bytes equal a mark."""
    return jpeg.count(b"\xff\xda")


def _seek_frame(picture: Image.Image, number: int, place: str, limits: FileLimits) -> None:
    """Go to a frame. Raises BadInput where it and the frames it is made from have too many pixels."""
    if number > 1 and picture.format in _ANIMATIONS:
        check_pixels(picture.width, picture.height, place, limits)
        if picture.width * picture.height * number > limits.decoded_pixels:
            more = f"more than {limits.decoded_pixels:,} pixels to decode up to frame {number}"
            raise BadInput(f"{place}: {more}; give that frame alone")
    picture.seek(number - 1)
    check_pixels(picture.width, picture.height, place, limits)


def _read_orientation(file: Image.Image) -> int:
    """The EXIF orientation, 1 where it is absent. A PNG is read behind its pixels only if the tag may stand there."""
    exif = file.getexif() if not isinstance(file, PngImageFile) or _may_hold_orientation(file) else {}
    turned = int(exif.get(ExifTags.Base.Orientation, 1))
    return turned if 1 <= turned <= 8 else 1


def _may_hold_orientation(file: PngImageFile) -> bool:
    """Whether a PNG has a chunk that Pillow takes an orientation from. Pillow itself would decode the whole PNG."""
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
def _open_file(file: File, place: str, limits: FileLimits = ON_DISK) -> Iterator[Image.Image]:
    """The opened file. Errors that decoders raise inside become BadInput."""
    on_disk = isinstance(file, Path)
    try:
        if isinstance(file, Path) and file.exists() and not file.is_file():  # reading a pipe may never end
            raise BadInput(f"{place}: cannot be read (it is a folder, or no file at all); {_WAY_OUT}")
        with warnings.catch_warnings(), open_stream(file, place) as stream:
            warnings.simplefilter("ignore")  # about metadata that nobody uses
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not stream.read(1):
                raise BadInput(f"{place}: the file is empty (0 bytes); bring back the original, or leave it out")
            stream.seek(0)
            check_structure(stream, place, limits)
            with Image.open(stream, formats=FORMATS) as picture:
                yield picture
    except BadInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadInput(f"{place}: more than {MAX_PIXELS:,} pixels; shrink it first") from None
    except UnidentifiedImageError:
        raise BadInput(f"{place}: not an image; {_WAY_OUT}") from None
    except Exception as error:  # a damaged file; the message of an upload may quote the file
        cause = error if on_disk else type(error).__name__
        raise BadInput(f"{place}: cannot be read ({cause}); {_WAY_OUT}") from None


def _count_frames(picture: Image.Image, place: str, limits: FileLimits) -> int:
    if picture.format == "MPO":  # the preview of a camera is no frame
        return 1
    if picture.format == "TIFF" and limits.frames < ON_DISK.frames:  # counting all takes quadratic time
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

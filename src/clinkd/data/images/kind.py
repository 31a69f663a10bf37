"""What every kind of image file can be asked, and what it answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image

from clinkd.data.images.grey import GreyFrame
from clinkd.data.images.limits import ON_DISK, FileLimits
from clinkd.records import BadInput, Modality

File = Path | BinaryIO  # on disk, or bytes in memory


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file says of one of its frames without a pixel decoded, from an allow-list of its fields.

    `width` and `height` are those of the upright frame, in pixels. `orientation` is the EXIF tag (1: as stored).
    `patient` and `study` are pseudonyms: hashes of PatientID (with its issuer) and StudyInstanceUID, "" where absent.
    They keep rows of a patient together; who holds a list of all IDs can undo them. `burned_in` is what the file says
    of names in the picture itself: YES, NO, or "" where it says nothing. `windows` are the VOIs of the frame in the
    order they are numbered: "LUT", or "centre/width".
    """

    width: int
    height: int
    frames: int
    modality: Modality = Modality.OTHER
    patient: str = ""
    study: str = ""
    burned_in: str = ""
    windows: tuple[str, ...] = ()
    orientation: int = 1


@dataclass(frozen=True, slots=True)
class ImageFrame:
    """One decoded frame: its picture, and what the picture was made from."""

    picture: Image.Image  # RGB, upright
    facts: Facts
    number: int  # from 1
    window: tuple[float, float] | None = None  # centre and width that the picture shows, where it shows a window
    hounsfield: bool = False  # whether the presets for CT fit
    grey: GreyFrame | None = None  # the values before the window; None for colour, and where there are none


class ImageKind(Protocol):
    """A kind of image file. Frames count from 1; None means the only one, and is refused where there are several.

    `place` stands at the front of every error. Nothing is decoded beyond `limits`.
    """

    @property
    def name(self) -> str:
        """As messages call it."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The names of its file formats."""

    @property
    def accept(self) -> tuple[str, ...]:
        """How a file picker finds it: suffixes and media types, as in HTML's `accept`."""

    @property
    def medical(self) -> bool:
        """Whether its header may name modality and patient, and its grey values go through a window.

        A folder of such files is a data set without further tables.
        """

    @property
    def reportable(self) -> bool:
        """Whether a DICOM structured report can refer to it."""

    def sniff(self, file: File) -> bool:
        """Whether a file is of this kind; False where there is no file, or it is empty. Raises nothing."""

    def describe(
        self, file: File, place: str, frame: int | None = 1, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> Facts:
        """What the file says of a frame; no pixel is decoded.

        Raises BadInput where the file is missing, cut or of another kind, has no such frame, or `window` does not fit.
        """

    def open(
        self, file: File, place: str, frame: int | None, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> ImageFrame:
        """A frame as 8-bit RGB, grey values through `window` (see `clinkd.data.images.dicom`).

        Raises BadInput as `describe`, and where the frame is larger than `limits` allow or cannot be decoded.
        """

    def texts(self, path: Path, place: str) -> set[str]:
        """Every text that the header holds. Raises BadInput where it cannot be read whole."""


@contextlib.contextmanager
def reading(file: File, place: str) -> Iterator[BinaryIO]:
    """A file, or bytes in memory, from the first byte on. Raises BadInput where the file is missing."""
    if not isinstance(file, Path):
        file.seek(0)
        yield file
        return
    try:
        stream = file.open("rb")
    except FileNotFoundError:
        hint = "write / for the \\ in it" if "\\" in file.name else "check the path"
        raise BadInput(f"{place}: no such file in {file.parent}; {hint}") from None
    with stream:
        yield stream


def which_frame(frame: int | None, frames: int, file: File, place: str) -> int:
    """The number of the frame meant, from 1. Raises BadInput where none of several is named, or it is not there."""
    if frame is None and frames > 1:
        name = file.name if isinstance(file, Path) else "image"
        several = f"the file has {frames} frames and none is named; give one, as {name}#1 (up to #{frames})"
        raise BadInput(f"{place}: {several}")
    if frame is not None and not 1 <= frame <= frames:
        raise BadInput(f"{place}: frame {frame} of {frames}; frames count from 1")
    return frame or 1


def check_pixels(width: int, height: int, place: str, limits: FileLimits) -> None:
    """Raise BadInput where a frame is larger than allowed."""
    if width * height > limits.pixels:
        raise BadInput(f"{place}: {width}x{height} pixels, more than {limits.pixels:,} in all; shrink it first")

"""The questions that every kind of image file answers, and the form of the answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image

from clinkd.data.images.grey import GreyFrame
from clinkd.data.images.limits import ON_DISK, FileLimits
from clinkd.records import BadInput, Laterality, Modality

File = Path | BinaryIO  # on disk, or bytes in memory


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of one frame from an allow-list of the fields of its file. No pixel is decoded for them.

    `width` and `height` are in pixels of the upright frame. `modality` and `patient` are None in files that have no
    field for them. `orientation` is the EXIF tag (1: as stored). `patient` and `study` are pseudonyms: hashes of
    PatientID (with its issuer) and StudyInstanceUID (else of SeriesInstanceUID), "" where absent; so is a patient
    called ANONYMOUS and the like. They keep the rows of a patient together; anyone with a list of all IDs can undo
    them. `burned_in`: whether the pixels hold names, according to the file: YES, NO, or "" where it says nothing.
    `windows` are the VOIs of the frame in the order of their numbers: "LUT", or "centre/width". `laterality`: None
    where the file says nothing of it.
    """

    width: int
    height: int
    frames: int
    modality: Modality | None = None
    patient: str | None = ""
    study: str = ""
    burned_in: str = ""
    windows: tuple[str, ...] = ()
    orientation: int = 1
    laterality: Laterality | None = None


@dataclass(frozen=True, slots=True)
class StoredVoxels:
    """How a volume lies in its file, behind its compression if there is any.

    `type` is numpy's, such as "<i2"; values are slope * stored + intercept. Of `shape` the first axis is the fastest.
    `axes`: of slices, rows and columns of the frames, the stored axis, and 1 where both count up, else -1.
    """

    offset: int
    type: str
    shape: tuple[int, ...]  # x, y, z, volume
    slope: float
    intercept: float
    axes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class StoredPixels:
    """Where the pixels of a DICOM begin, and the bits of each frame: they lie one behind the other. `frame_bits`: None
    where they are compressed, in items (PS3.5 A.4)."""

    offset: int
    frame_bits: int | None


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the frames of a file lie, in millimetres to the patient's left, back and head (PS3.3 C.7.6.2.1.1).

    `orientation`: the directions in which columns and rows count up; `spacing`: between rows, and between columns;
    `positions`: the middle of the first pixel of each frame. Each is empty where the file does not say it of all
    frames alike. `series` is a pseudonym of SeriesInstanceUID, "" where absent. `voxels`: None for all but a NIfTI;
    `pixels`: None for all but a DICOM.
    """

    orientation: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    positions: tuple[tuple[float, ...], ...] = ()
    series: str = ""
    series_number: int | None = None
    instance_number: int | None = None
    voxels: StoredVoxels | None = None
    pixels: StoredPixels | None = None


@dataclass(frozen=True, slots=True)
class ImageFrame:
    """One decoded frame: its picture, and the values behind it."""

    picture: Image.Image  # RGB, upright
    facts: Facts
    number: int  # from 1
    window: tuple[float, float] | None = None  # centre and width of the picture, where it shows a window
    hounsfield: bool = False  # whether the presets for CT fit its values
    grey: GreyFrame | None = None  # the values before the window; None for pictures and colour


class ImageKind(Protocol):
    """A kind of image file. Frames count from 1; None means the only frame, and raises BadInput where there are more.

    Every error begins with `place`. Nothing is decoded beyond `limits`.
    """

    name: str  # in messages
    formats: tuple[str, ...]  # names of its file formats
    accept: tuple[str, ...]  # suffixes and media types, as in HTML's `accept`
    # Whether its header may name modality and patient, and its grey values go through a window. A folder of such files
    # is a data set without further tables.
    medical: bool
    reportable: bool  # whether a DICOM structured report can refer to it

    def sniff(self, file: File) -> bool:
        """Whether a file is of this kind; False for a missing or empty file. Raises nothing."""

    def describe(
        self, file: File, place: str, frame: int | None = 1, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> Facts:
        """The facts of a frame; no pixel is decoded.

        Raises BadInput where the file is missing, cut or of another kind, has no such frame, or `window` does not fit.
        """

    def open(
        self, file: File, place: str, frame: int | None, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> ImageFrame:
        """A frame as 8-bit RGB, its grey values through `window` (see `clinkd.data.images.dicom`).

        Raises BadInput like `describe`, and where the frame is beyond `limits` or cannot be decoded.
        """

    def geometry(self, file: File, place: str, limits: FileLimits = ON_DISK) -> Geometry:
        """Where the frames of a file lie; no pixel is decoded. Raises BadInput like `describe`."""

    def instance_uid(self, path: Path, place: str) -> str:
        """The SOP instance UID of a file, "" where it has none. Raises BadInput where the header cannot be read."""

    def texts(self, path: Path, place: str) -> set[str]:
        """All texts of the header. Raises BadInput where it cannot be read whole."""


@contextlib.contextmanager
def open_stream(file: File, place: str) -> Iterator[BinaryIO]:
    """A file, or bytes in memory, at the first byte. Raises BadInput where the file is missing."""
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


def choose_frame(frame: int | None, frames: int, file: File, place: str) -> int:
    """The number of the wanted frame, from 1. Raises BadInput where none of several is named, or it does not exist."""
    if frame is None and frames > 1:
        name = file.name if isinstance(file, Path) else "image"
        several = f"the file has {frames} frames and none is named; give one, as {name}#1 (up to #{frames})"
        raise BadInput(f"{place}: {several}")
    if frame is not None and not 1 <= frame <= frames:
        raise BadInput(f"{place}: frame {frame} of {frames}; frames count from 1")
    return frame or 1


def check_pixels(width: int, height: int, place: str, limits: FileLimits) -> None:
    """Raise BadInput where a frame has more pixels than allowed."""
    if width * height > limits.pixels:
        raise BadInput(f"{place}: {width}x{height} pixels, more than {limits.pixels:,} in all; shrink it first")

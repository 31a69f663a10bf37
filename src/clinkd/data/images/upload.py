"""Uploaded images: bytes in memory, limits before decoding, and errors that reveal nothing of the file."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clinkd.data.images import kind_of, medical_names
from clinkd.data.images.limits import UPLOADS, FileLimits
from clinkd.records import BadInput, Modality

PLACE = "the image"  # how errors name it
_LONGEST_WINDOW = 40  # characters: names of presets and pairs of numbers are shorter


@dataclass(frozen=True, slots=True)
class GreyValues:
    """A grey frame after its modality LUT, to be windowed by whoever looks at it.

    `values` [height, width]: NaN and infinities stand as the ends of float32. `low` and `high` are the least and the
    greatest value, padding aside. `inverted`: the least value is white (MONOCHROME1).
    """

    values: NDArray[np.float32]
    inverted: bool
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One frame as the model would see it, and what may be told of its file."""

    picture: Image.Image  # RGB, upright
    frames: int
    frame: int  # from 1
    dicom: bool  # whether a structured report can refer to it
    modality: Modality  # OTHER for a picture
    burned_in: str  # whether text stands in the pixels, as a DICOM says: YES, NO, or "" where it says nothing
    windows: tuple[str, ...]  # the frame's VOIs in the order they are numbered: "LUT", or "centre/width"
    hounsfield: bool  # whether the presets for CT fit
    window: tuple[float, float] | None  # centre and width shown; None for pictures, colour, LUTs and other curves
    grey: GreyValues | None  # where asked for, of a medical image in grey

    @property
    def width(self) -> int:
        return self.picture.width

    @property
    def height(self) -> int:
        return self.picture.height


def decode_frame(
    content: bytes,
    frame: int | None = None,
    window: str | None = None,
    limits: FileLimits = UPLOADS,
    values: bool = False,
) -> DecodedFrame:
    """One frame of a file in memory, the first where none is named, through `window` (see `clinkd.data.images.dicom`).

    The picture is what `open_image` makes of the file, and where `window` of the result is a pair,
    clip((v - (centre - width / 2)) / width, 0, 1) of its values v, inverted where that is said, to one level of 255.
    `values` asks for the grey values as well. Raises BadInput, in one line that names no path and no text of the file,
    where the file is none that can be opened, beyond a limit (before anything is decoded), or has no such frame, and
    where the window does not fit.
    """
    if window is not None and len(window) > _LONGEST_WINDOW:
        raise BadInput(f"the window has {len(window):,} characters; give auto, full, a number, centre/width or a name")
    stream = io.BytesIO(content)
    kind = kind_of(stream)
    if not kind.medical and (window or "auto").strip().lower() not in ("auto", "full"):
        rule = f"windows are for the grey values of a {medical_names()}, leave it out"
        raise BadInput(f"window {window!r} of a picture; {rule}")
    decoded = kind.open(stream, PLACE, 1 if frame is None else frame, window, limits)
    grey = None
    if values and decoded.grey is not None:
        grey = GreyValues(decoded.grey.single(), decoded.grey.inverted, *decoded.grey.ends)
    return DecodedFrame(
        decoded.picture,
        decoded.facts.frames,
        decoded.number,
        kind.reportable,
        decoded.facts.modality,
        decoded.facts.burned_in,
        decoded.facts.windows,
        decoded.hounsfield,
        decoded.window,
        grey,
    )

"""Uploaded images: bytes in memory, limits before decoding, and errors that quote nothing of the file."""

from __future__ import annotations

import io

from clinkd.data.images import kind_of, medical_names
from clinkd.data.images.kind import Facts, Geometry, ImageFrame
from clinkd.data.images.limits import UPLOADS, FileLimits
from clinkd.records import BadInput

PLACE = "the file"  # how errors name it
_LONGEST_WINDOW = 40  # characters: names of presets and pairs of numbers are shorter


def decode_frame(
    content: bytes, frame: int | None = None, window: str | None = None, limits: FileLimits = UPLOADS
) -> ImageFrame:
    """One frame of a file in memory, the first where none is named, through `window` (see `clinkd.data.images.dicom`).

    The picture is the same as that of `open_image`. Where `window` of the result is a pair, the picture is
    clip((v - (centre - width / 2)) / width, 0, 1) of the grey values v, inverted where they are, to one level of 255.
    Raises BadInput, in one line without any path or text of the file, where the file cannot be opened, is beyond a
    limit (before anything is decoded), or has no such frame, and where the window does not fit.
    """
    if window is not None and len(window) > _LONGEST_WINDOW:
        raise BadInput(f"the window has {len(window):,} characters; give auto, full, a number, centre/width or a name")
    stream = io.BytesIO(content)
    kind = kind_of(stream)
    if not kind.medical and (window or "auto").strip().lower() not in ("auto", "full"):
        rule = f"windows are for the grey values of a {medical_names()}, leave it out"
        raise BadInput(f"window {window!r} of a picture; {rule}")
    return kind.open(stream, PLACE, 1 if frame is None else frame, window, limits)


class _FileStart(io.BytesIO):
    """The first bytes of a file, which ends where the whole file does."""

    def __init__(self, head: bytes, size: int) -> None:
        super().__init__(head)
        self.size = max(size, len(head))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(self.size + offset) if whence == io.SEEK_END else super().seek(offset, whence)


def describe_head(head: bytes, size: int, limits: FileLimits = UPLOADS) -> tuple[str, Facts, Geometry]:
    """The kind of a file of `size` bytes, the facts of its first frame, and where its frames lie, by its first bytes.

    Raises BadInput as `decode_frame`, and where more bytes are needed.
    """
    stream = _FileStart(head, size)
    kind = kind_of(stream)
    if not kind.medical and len(head) < size:
        raise BadInput(f"{PLACE}: a {kind.name} is described by all its bytes")
    return kind.name, kind.describe(stream, PLACE, limits=limits), kind.geometry(stream, PLACE, limits)

"""Uploaded images: bytes in memory, limits before decoding, and errors that quote nothing of the file."""

from __future__ import annotations

import bisect
import io
import json
from collections.abc import Sequence
from typing import Any, BinaryIO, cast

from numpy.typing import NDArray

from clinkd.data.images import Dicom, kind_of, medical_names
from clinkd.data.images.kind import Facts, Geometry, ImageFrame
from clinkd.data.images.limits import UPLOADS, FileLimits
from clinkd.records import BadInput

PLACE = "the file"  # how errors name it
_EXCERPT = b"ClinKD excerpt\n"
_LONGEST_LINE = 4 << 20  # bytes of JSON: the heads of all pieces that a compressed film may have need a third of it
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
    stream = open_upload(content)
    kind = kind_of(stream)
    if not kind.medical and (window or "auto").strip().lower() not in ("auto", "full"):
        rule = f"windows are for the grey values of a {medical_names()}, leave it out"
        raise BadInput(f"window {window!r} of a picture; {rule}")
    return kind.open(stream, PLACE, 1 if frame is None else frame, window, limits)


def decode_values(content: bytes, frames: Sequence[int], limits: FileLimits = UPLOADS) -> NDArray[Any]:
    """Grey values of frames of a DICOM, as `GreyFrame.to_values` has them, without a window.

    Raises BadInput as `decode_frame`, and for another kind of file and colour.
    """
    kind = kind_of(stream := open_upload(content))
    if not isinstance(kind, Dicom):
        raise BadInput(f"{PLACE}: no DICOM, of which alone values are given; open it as a picture")
    return kind.read_values(stream, PLACE, frames, limits)


def open_upload(content: bytes) -> BinaryIO:
    """A file in memory: all its bytes, or an excerpt.

    An excerpt has the line "ClinKD excerpt", a line of JSON with the `size` of the file and `ranges` of it, each the
    place of its first byte and its length, in order, and then the bytes of these ranges. It is read as the file itself:
    to show a frame of a film of any size, its header and the bytes of that frame are enough.
    """
    if not content.startswith(_EXCERPT):
        return io.BytesIO(content)
    end = content.find(b"\n", len(_EXCERPT), len(_EXCERPT) + _LONGEST_LINE)
    held = memoryview(content)[end + 1 :]
    try:
        about = json.loads(content[len(_EXCERPT) : max(end, 0)])
        ranges = [(int(place), int(length)) for place, length in about["ranges"]]
        size = int(about["size"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise BadInput(f"{PLACE}: an excerpt that begins with no size and ranges; send the whole file") from None
    ends = [0, *(place + length for place, length in ranges)]
    ordered = all(end <= place and length >= 0 for end, (place, length) in zip(ends, ranges, strict=False))
    if not ordered or max(ends) > size or sum(length for _, length in ranges) != len(held):
        raise BadInput(f"{PLACE}: an excerpt whose ranges overlap or do not fit its size or bytes; send it whole")
    stream = cast(BinaryIO, _PartialFile(size, ranges, held))
    if not isinstance(kind_of(stream), Dicom):
        raise BadInput(f"{PLACE}: an excerpt of no DICOM; send the whole file")
    return stream


class _PartialFile(io.RawIOBase):
    """Ranges of the bytes of a file, which ends where the whole file does. The others read as if it ended there."""

    def __init__(self, size: int, ranges: Sequence[tuple[int, int]], held: bytes | memoryview) -> None:
        self._size, self._held, self._position = size, memoryview(held), 0
        self._places, self._ends, self._starts = list[int](), list[int](), list[int]()
        start = 0
        for place, length in ranges:
            if self._ends and self._ends[-1] == place:
                self._ends[-1] += length
            else:
                self._places.append(place)
                self._ends.append(place + length)
                self._starts.append(start)
            start += length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        at = bisect.bisect_right(self._places, self._position) - 1
        count = min(len(buffer), self._ends[at] - self._position) if at >= 0 else 0
        if count <= 0:
            return 0
        start = self._starts[at] + self._position - self._places[at]
        memoryview(buffer)[:count] = self._held[start : start + count]
        self._position += count
        return count


def describe_head(head: bytes, size: int, limits: FileLimits = UPLOADS) -> tuple[str, Facts, Geometry]:
    """The kind of a file of `size` bytes, the facts of its first frame, and where its frames lie, by its first bytes.

    Raises BadInput as `decode_frame`, and where more bytes are needed.
    """
    stream = cast(BinaryIO, _PartialFile(max(size, len(head)), [(0, len(head))], head))
    kind = kind_of(stream)
    if not kind.medical and len(head) < size:
        raise BadInput(f"{PLACE}: a {kind.name} is described by all its bytes")
    return kind.name, kind.describe(stream, PLACE, limits=limits), kind.geometry(stream, PLACE, limits)

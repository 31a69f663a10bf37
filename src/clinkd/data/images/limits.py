"""What an image may cost at most: limits that are checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

MAX_PIXELS = 40_000_000  # 120 MB as RGB


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Of one file."""

    pixels: int = MAX_PIXELS  # of one frame
    frames: int = 1 << 31  # as many as a DICOM header can say
    decoded_pixels: int = 1 << 40  # gone over for one frame: those before it in an animation, each scan of a JPEG
    header_bytes: int = 1 << 30  # that are read of a DICOM header
    inflated_bytes: int = 1 << 28  # of a deflated DICOM; 0 refuses these before they are inflated
    apart: bool = False  # whether a decoder that may end its process gets one of its own: a second more for the first


ON_DISK = FileLimits()
UPLOADS = FileLimits(frames=4096, decoded_pixels=16 * MAX_PIXELS, header_bytes=4 << 20, inflated_bytes=0, apart=True)

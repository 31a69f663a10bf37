"""Limits of the cost of an image, checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

MAX_PIXELS = 40_000_000  # 120 MB as RGB


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Limits of one file."""

    pixels: int = MAX_PIXELS  # of one frame
    frames: int = 1 << 31  # a DICOM header can name no more
    decoded_pixels: int = 1 << 40  # decoded for one frame: all frames before it in an animation, each scan of a JPEG
    blocks: int = 50_000  # parts of a picture file (chunks, marks, tags, frames) or fragments of a DICOM's pixels
    metadata_bytes: int = 8 << 20  # of a picture file, beside its pixels; decoders join them in quadratic time
    elements: int = 500_000  # of a DICOM header, those in sequences as well
    header_bytes: int = 1 << 30  # read from a DICOM header
    inflated_bytes: int = 1 << 28  # of a deflated DICOM; 0 refuses it, and a .nii.gz, before it is inflated
    volume_bytes: int = 1 << 31  # of the values of a NIfTI volume, which is read whole
    isolate: bool = False  # GDCM, which may end its process, runs in another one: a second more for the first


ON_DISK = FileLimits()
UPLOADS = FileLimits(
    frames=4096,
    decoded_pixels=16 * MAX_PIXELS,
    header_bytes=4 << 20,
    inflated_bytes=0,
    volume_bytes=1 << 28,
    isolate=True,
)

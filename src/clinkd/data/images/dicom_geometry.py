"""Where the frames of a DICOM lie in the patient, and which number its series gives it."""

from __future__ import annotations

import numpy as np

from clinkd.data.images.dicom_grey import find_functional_group
from clinkd.data.images.dicom_header import Header, read_numbers
from clinkd.data.images.kind import Geometry, StoredPixels

GEOMETRY_FIELDS = ("ImagePositionPatient", "PixelSpacing", "SeriesNumber", "InstanceNumber")


def read_geometry(header: Header, series: str) -> Geometry:
    """`series`: the pseudonym of the series."""
    frames = range(header.frames)
    return Geometry(
        orientation=_read_shared(header, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
        spacing=_read_shared(header, "PixelMeasuresSequence", "PixelSpacing", 2),
        positions=_read_positions(header, frames),
        series=series,
        series_number=_read_whole(header, "SeriesNumber"),
        instance_number=_read_whole(header, "InstanceNumber"),
        pixels=StoredPixels(header.offset, None if header.syntax.is_encapsulated else header.frame_bits),
    )


def _read_positions(header: Header, frames: range) -> tuple[tuple[float, ...], ...]:
    groups = (find_functional_group(header, index, "PlanePositionSequence") for index in frames)
    positions = tuple(tuple(read_numbers(group, "ImagePositionPatient")) for group in groups)
    # a single place for all frames is that of the first alone
    if any(len(position) != 3 for position in positions) or (len(positions) > 1 and len(set(positions)) == 1):
        return ()
    return positions


def _read_shared(header: Header, group: str, keyword: str, count: int) -> tuple[float, ...]:
    """The numbers that are the same for all frames, else none."""
    first, *others = (
        read_numbers(find_functional_group(header, index, group), keyword) for index in range(header.frames)
    )
    same = len(first) == count and all(len(o) == count and np.allclose(o, first, atol=1e-4) for o in others)
    return tuple(first) if same else ()


def _read_whole(header: Header, keyword: str) -> int | None:
    numbers = read_numbers(header.ds, keyword)
    return int(numbers[0]) if len(numbers) == 1 else None

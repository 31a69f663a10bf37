"""Files of a volume whose values tell where they lie, for tests."""

from __future__ import annotations

import collections.abc
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

SHAPE = (9, 20, 24)  # slices from the feet up, rows from the front, columns from the patient's right
GAP, ROW, COLUMN = 2.0, 1.0, 1.0  # mm
VOLUME = np.random.default_rng(0).integers(-200, 300, SHAPE).astype("<i2")


def place(number: int, gap: float = GAP) -> list[float]:
    """Of slice `number` of the volume."""
    return [-12.0, -30.0, -8.0 + gap * number]


def ct(pixels: Any, series: str = "1.2.3", number: int = 1, **fields: Any) -> Dataset:
    """A CT of these values (Hounsfield units), with some fields set."""
    ds = dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.PixelData, ds.RescaleIntercept, ds.RescaleSlope = pixels.astype("<i2").tobytes(), 0, 1
    ds.SeriesInstanceUID, ds.SeriesNumber = series, number
    ds.PixelSpacing, ds.ImageOrientationPatient = [ROW, COLUMN], [1, 0, 0, 0, 1, 0]
    for name, value in fields.items():
        setattr(ds, name, value)
    return ds


def write_series(folder: Path, slices: range = range(SHAPE[0]), **fields: Any) -> list[Path]:
    """A file a slice of the volume, by names that say nothing of their order."""
    paths = []
    for number in slices:
        path = folder / f"IM{number * 7 % SHAPE[0]}"
        ds = ct(VOLUME[number], ImagePositionPatient=place(number), InstanceNumber=90 - number, **fields)
        ds.save_as(path)
        paths.append(path)
    return paths


def enhanced(order: collections.abc.Sequence[int], volume: Any = VOLUME, gap: float = GAP) -> Dataset:
    """One file of the slices of the volume in this order, each with its place."""
    ds = ct(volume[list(order)], NumberOfFrames=len(order))
    frames = []
    for number in order:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = place(number, gap)
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return ds

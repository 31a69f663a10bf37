"""Where the frames of files lie in the patient, told by the first bytes of each."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from nibabel import Nifti1Image
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from PIL import Image

from clinkd.data.images.kind import Geometry
from clinkd.data.images.upload import decode_frame, describe_head
from clinkd.records import BadInput
from slices import COLUMN, ROW, SHAPE, VOLUME, ct, enhanced, place


def content(ds) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream)
    return stream.getvalue()


def geometry_of(data: bytes, head: int | None = None) -> Geometry:
    return describe_head(data[:head], len(data))[2]


def test_a_slice_is_told_by_the_head_of_its_file():
    data = content(ct(VOLUME[3], ImagePositionPatient=place(3), InstanceNumber=7))
    kind, facts, geometry = describe_head(data[:-400], len(data))
    assert (kind, facts.width, facts.height, facts.frames) == ("DICOM", SHAPE[2], SHAPE[1], 1)
    assert geometry.positions == (tuple(place(3)),) and geometry.orientation == (1, 0, 0, 0, 1, 0)
    assert geometry.spacing == (ROW, COLUMN) and (geometry.series_number, geometry.instance_number) == (1, 7)
    assert geometry.series and geometry.series != "1.2.3"
    assert geometry.series == geometry_of(content(ct(VOLUME[4]))).series
    with pytest.raises(BadInput, match="cut: 24x20 pixels need 960 bytes"):
        describe_head(data[:-400], len(data) - 400)
    with pytest.raises(BadInput, match="the file: "):
        describe_head(data[:300], len(data))


def test_frames_have_their_own_places_or_none():
    order = [4, 0, 8, 2]
    assert geometry_of(content(enhanced(order))).positions == tuple(tuple(place(n)) for n in order)
    film = ct(VOLUME, NumberOfFrames=SHAPE[0], ImagePositionPatient=place(0))
    assert geometry_of(content(film)).positions == ()
    del film.PixelSpacing
    film.ImageOrientationPatient = None
    told = geometry_of(content(film))
    assert told.pixels and content(film)[told.pixels.offset :].startswith(film.PixelData)
    assert told.pixels.frame_bits == 8 * VOLUME[0].nbytes
    number = int(film.InstanceNumber)
    assert told == Geometry(series=told.series, series_number=1, instance_number=number, pixels=told.pixels)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIR"])
def test_a_voxel_of_a_nifti_lies_where_its_affine_says(codes, tmp_path: Path):
    shape = (5, 6, 7)
    stored = np.arange(210, dtype=np.float32).reshape(shape)
    turned = inv_ornt_aff(axcodes2ornt(codes), shape) @ np.eye(4)
    affine = np.diag([2.0, 3.0, 2.5, 1]) @ np.linalg.inv(turned)
    affine[:3, 3] = 11, -7, 5
    Nifti1Image(stored, affine).to_filename(tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    geometry = geometry_of(data, 352)
    right, down = np.reshape(geometry.orientation, (2, 3))
    for frame, row, column in ((1, 0, 0), (2, 3, 1), (len(geometry.positions), 2, 4)):
        grey = decode_frame(data, frame).grey
        assert grey is not None
        voxel = np.argwhere(stored == grey.to_values()[row, column])[0]
        there = np.asarray(geometry.positions[frame - 1])
        there = there + row * geometry.spacing[0] * down + column * geometry.spacing[1] * right
        assert there == pytest.approx((affine @ [*voxel, 1])[:3] * [-1, -1, 1])
        assert geometry.voxels is not None
        counted = dict(zip(("slice", "row", "column"), geometry.voxels.axes, strict=True))
        for name, number in (("slice", frame - 1), ("row", row), ("column", column)):
            axis, sign = counted[name]
            assert voxel[axis] == (number if sign > 0 else shape[axis] - 1 - number)


def test_a_picture_needs_all_its_bytes():
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "PNG")
    data = stream.getvalue()
    kind, facts, geometry = describe_head(data, len(data))
    assert (kind, facts.width, geometry) == ("picture", 30, Geometry())
    with pytest.raises(BadInput, match="all its bytes"):
        describe_head(data[:40], len(data))

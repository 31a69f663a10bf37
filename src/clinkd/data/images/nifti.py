"""NIfTI volumes as pictures: slices in the plane of acquisition, turned by the affine as radiologists look at them.

The order in which a file stores its voxels does not matter: the affine (sform, else qform) says where each axis points,
and nibabel reads it. The slices are axial, unless the voxels are more than `_THICK` times as far apart in another
direction; then that is the direction in which slices were taken. Frames count from 1: from the feet up (axial), from
the back to the front (coronal), from the patient's left to the right (sagittal). In axial and coronal pictures the
patient's right is at the picture's left; sagittal ones look to the picture's left. A 4-D file has the slices of its
first volume, then those of the second, and so on.

The `window` of an ImageRef makes values grey, after slope and intercept of the header:

    None, "auto"   from the 0.5th to the 99.5th percentile of the volume
    "lung", ...    a preset of PRESETS, if the volume has values below `_FAT`, as CT in Hounsfield units has
    "-600/1500"    centre/width
    "full"         from the least to the greatest value of the slice
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clinkd.data.images.grey import PRESETS, GreyCurve, GreyFrame, Ramp, Refusal, Values, parse_window
from clinkd.data.images.kind import (
    Facts,
    File,
    Geometry,
    ImageFrame,
    StoredVoxels,
    check_pixels,
    choose_frame,
    open_stream,
)
from clinkd.data.images.limits import ON_DISK, FileLimits
from clinkd.records import BadInput, Laterality

INSTALL = "pip install 'clinkd[volumes]'"
SUFFIXES = (".nii", ".nii.gz")
PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}  # slices, rows, columns, of x, y, z
_THICK = 1.5
_FAT = -100  # Hounsfield units; air is -1000
_GZIP = b"\x1f\x8b"
_SAMPLED = 1 << 20  # values of a volume for its percentiles
_PERCENTILES = (0.5, 99.5)
_AGAIN = "bring back a whole copy"


class VolumeHeader(NamedTuple):
    """Facts of a header."""

    shape: tuple[int, int, int]  # as stored
    volumes: int
    dtype: np.dtype[Any]
    offset: int  # bytes
    slope: float
    intercept: float
    affine: NDArray[np.float64]  # (4, 4); stored voxel to mm: right, anterior and superior are positive
    has_orientation: bool  # whether the file states an affine at all
    axes: NDArray[Any]  # nibabel's orientation: of each stored axis the one of x, y, z, and its direction
    plane: str

    @property
    def extent(self) -> tuple[int, int, int]:
        """Slices, rows and columns of the pictures."""
        xyz = dict(zip(self.axes[:, 0].astype(int).tolist(), self.shape, strict=True))
        slices, rows, columns = (xyz[axis] for axis in PLANES[self.plane])
        return slices, rows, columns


@dataclass(frozen=True)
class Volume:
    """One file in memory. `stored` is [x, y, z, volume] in the file's order and type, without slope."""

    header: VolumeHeader
    stored: Values

    def slices(self, volume: int = 0) -> Values:
        """The stored values of a volume as pictures, [slices, rows, columns], without slope. A view, not a copy."""
        from nibabel.orientations import apply_orientation

        xyz = apply_orientation(self.stored[..., volume], self.header.axes)
        return np.asarray(xyz.transpose(PLANES[self.header.plane])[:, ::-1, ::-1])

    def rescale_exactly(self, values: Values) -> Values:
        """The values as they are where the header has no slope: whole numbers stay whole numbers."""
        return values if (self.header.slope, self.header.intercept) == (1, 0) else self.rescale(values)

    def rescale(self, values: Values) -> NDArray[np.float64]:
        return values.astype(np.float64) * self.header.slope + self.header.intercept

    @cached_property
    def ranges(self) -> tuple[tuple[float, float, float], ...]:
        """Of each volume the least value, and the percentiles between which it is shown."""
        return tuple(self._measure(volume) for volume in range(self.header.volumes))

    def _measure(self, volume: int) -> tuple[float, float, float]:
        slices = self.slices(volume)
        step = max(1, math.ceil((slices.size / _SAMPLED) ** (1 / 3)))
        sample = self.rescale(slices[::step, ::step, ::step])
        sample = sample[np.isfinite(sample)]
        if not sample.size:
            return 0.0, 0.0, 0.0
        low, high = np.percentile(sample, _PERCENTILES)
        if low == high:
            low, high = sample.min(), sample.max()
        return float(sample.min()), float(low), float(high)

    def choose_curve(self, window: str | None, volume: int) -> GreyCurve | None:
        """The grey curve of a window; None for "full". Raises Refusal for a window that does not fit."""
        least, low, high = self.ranges[volume]
        name = (window or "auto").strip().lower()
        if name in PRESETS and least > _FAT:
            why = f"its least value is {least:g}, so that they are none; give centre/width, or leave it out"
            raise Refusal(f"window {name!r} is for CT in Hounsfield units: {why}")
        return Ramp(low, high - low) if name == "auto" else None if name == "full" else _parse_window(name)


class Nifti:
    """NIfTI files: volumes, of which each slice is a frame."""

    name = "NIfTI"
    formats: tuple[str, ...] = ("NIfTI",)
    accept: tuple[str, ...] = SUFFIXES
    medical = True
    reportable = False

    def sniff(self, file: File) -> bool:
        """By the suffix of a file on disk, and by the first bytes of one in memory."""
        if isinstance(file, Path):
            try:
                return file.name.lower().endswith(SUFFIXES) and file.is_file() and file.stat().st_size > 0
            except OSError:
                return False
        file.seek(0)
        head = file.read(2)
        file.seek(0)
        try:
            return _has_magic((_inflate(file) if head == _GZIP else file).read(348))
        except (OSError, EOFError, zlib.error):
            return False

    def describe(
        self, file: File, place: str, frame: int | None = 1, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> Facts:
        header = read_volume_header(file, place, limits)
        slices, height, width = header.extent
        frames = slices * header.volumes
        choose_frame(frame, frames, file, place)
        name = (window or "auto").strip().lower()
        if name not in ("auto", "full"):
            try:
                _parse_window(name)
            except Refusal as refusal:
                raise BadInput(f"{place}: {refusal}") from None
        return Facts(width, height, frames, None, None, laterality=_find_laterality(header))

    def open(
        self, file: File, place: str, frame: int | None, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> ImageFrame:
        facts = self.describe(file, place, frame, window, limits)
        number = frame or 1
        check_pixels(facts.width, facts.height, place, limits)
        volume = read_volume(file, place, limits)
        which, index = divmod(number - 1, volume.header.extent[0])
        values = volume.rescale(volume.slices(which)[index])
        grey = GreyFrame(values, None, np.isfinite(values), inverted=False)
        low, high = grey.ends
        try:
            curve = volume.choose_curve(window, which) or Ramp(low, high - low)
        except Refusal as refusal:
            raise BadInput(f"{place}: {refusal}") from None
        picture = Image.fromarray(grey.to_8_bit(curve)).convert("RGB")
        return ImageFrame(picture, facts, number, curve.linear, volume.ranges[which][0] <= _FAT, grey)

    def geometry(self, file: File, place: str, limits: FileLimits = ON_DISK) -> Geometry:
        return _find_geometry(read_volume_header(file, place, limits))

    def instance_uid(self, path: Path, place: str) -> str:
        return ""

    def texts(self, path: Path, place: str) -> set[str]:
        """Texts of the fields for them, and of the extensions, in which some converters keep a DICOM header."""
        offset = min(read_volume_header(path, place).offset, ON_DISK.metadata_bytes)
        with open_stream(path, place) as stream:
            head = _read(stream, offset, place).decode("latin-1")
        return {text.strip() for text in re.findall(r'[^\x00-\x1f"{}\[\]\x7f-\x9f]{3,}', head)}


def _find_geometry(header: VolumeHeader) -> Geometry:
    """No places where the file states no affine."""
    from nibabel.affines import apply_affine
    from nibabel.orientations import inv_ornt_aff

    voxels = _find_voxels(header)
    if not header.has_orientation:
        return Geometry(voxels=voxels)
    to_left_back_head = np.diag([-1.0, -1.0, 1.0, 1.0]) @ header.affine @ inv_ornt_aff(header.axes, header.shape)
    slices, rows, columns = header.extent
    slice_axis, row_axis, column_axis = PLANES[header.plane]
    corners_S3 = np.zeros((slices, 3))  # in x, y, z of the turned volume; rows and columns count down its axes
    corners_S3[:, slice_axis], corners_S3[:, row_axis], corners_S3[:, column_axis] = (
        range(slices),
        rows - 1,
        columns - 1,
    )
    positions_S3 = apply_affine(to_left_back_head, corners_S3)
    steps_23 = -to_left_back_head[:3, [column_axis, row_axis]].T
    lengths_2 = np.linalg.norm(steps_23, axis=1)
    return Geometry(
        orientation=tuple((steps_23 / lengths_2[:, None]).ravel().tolist()),
        spacing=(float(lengths_2[1]), float(lengths_2[0])),
        positions=tuple(map(tuple, positions_S3.tolist())) * header.volumes,
        voxels=voxels,
    )


def _find_voxels(header: VolumeHeader) -> StoredVoxels:
    stored_of_xyz = {int(axis): (stored, int(sign)) for stored, (axis, sign) in enumerate(header.axes)}
    slices, rows, columns = (stored_of_xyz[axis] for axis in PLANES[header.plane])
    axes = slices, (rows[0], -rows[1]), (columns[0], -columns[1])
    shape = (*header.shape, header.volumes)
    return StoredVoxels(header.offset, header.dtype.str, shape, header.slope, header.intercept, axes)


def _find_laterality(header: VolumeHeader) -> Laterality:
    if not header.has_orientation:
        return Laterality("unknown", "sform and qform, which have code 0")
    return Laterality("none" if header.plane == "sagittal" else "right", "the affine")


def _parse_window(name: str) -> GreyCurve:
    if name.isdecimal():
        raise Refusal(f"window {name!r}: NIfTI files hold no windows; give auto, full, centre/width or a preset")
    return parse_window(name, hounsfield=True)  # the header does not say; `choose_curve` looks at the values


# ---- the file -------------------------------------------------------------------------------------------------------


def _inflate(stream: BinaryIO) -> IO[bytes]:
    stream.seek(0)
    return cast(IO[bytes], gzip.GzipFile(fileobj=stream, mode="rb"))


def _has_magic(head: bytes) -> bool:
    return head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2")


def _read(stream: BinaryIO, count: int, place: str, limits: FileLimits = ON_DISK) -> bytearray:
    """The first `count` bytes, inflated where the file is. No more is inflated, whatever the file holds.

    Raises BadInput where it ends before.
    """
    stream.seek(0)
    compressed = stream.read(2) == _GZIP
    if compressed and limits.inflated_bytes == 0:
        raise BadInput(f"{place}: a compressed NIfTI, which is not taken here; inflate it first (gunzip)")
    source: IO[bytes] = _inflate(stream) if compressed else stream
    source.seek(0)
    content = bytearray()
    try:
        while len(content) < count and (part := source.read(min(count - len(content), 1 << 24))):
            content += part
        if compressed:
            source.read(1)  # if these were all, their checksum is compared
    except (OSError, EOFError, zlib.error):
        raise BadInput(f"{place}: its gzip stream is cut or damaged; {_AGAIN}") from None
    if len(content) < count:
        raise BadInput(f"{place}: cut: {len(content):,} bytes where its header asks for {count:,}; {_AGAIN}")
    return content


def read_volume_header(file: File, place: str, limits: FileLimits = ON_DISK) -> VolumeHeader:
    """The header of a NIfTI-1 or NIfTI-2 file, compressed or not; no voxel is read.

    Raises BadInput where it is missing, damaged or beyond `limits`, and where nibabel is not installed.
    """
    try:
        from nibabel import Nifti1Header, Nifti2Header
        from nibabel.affines import voxel_sizes
        from nibabel.orientations import io_orientation
    except ImportError:
        raise BadInput(f"{place}: NIfTI files are read with nibabel, an extra: {INSTALL}") from None
    with open_stream(file, place) as stream:
        head = bytes(_read(stream, 348, place, limits))
        if head[344:347] == b"ni1" or head[4:7] == b"ni2":
            raise BadInput(f"{place}: a header whose voxels are in an .img file; make one .nii of both")
        if not _has_magic(head):
            raise BadInput(f"{place}: not NIfTI, whatever its name says; {_AGAIN}")
        is_second = head[4:7] == b"n+2"
        if is_second:
            head = bytes(_read(stream, 540, place, limits))
    try:
        raw = (Nifti2Header if is_second else Nifti1Header)(head, check=False)
        dims = [int(v) for v in raw["dim"]]
        dtype, offset = raw.get_data_dtype(), int(raw["vox_offset"])
        affine = np.asarray(raw.get_best_affine(), dtype=np.float64)
        slope, intercept = raw.get_slope_inter()
        codes = int(raw["sform_code"]), int(raw["qform_code"])
    except Exception as error:  # whatever nibabel meets in damaged fields
        raise BadInput(f"{place}: its header cannot be read ({' '.join(str(error).split())[:100]}); {_AGAIN}") from None
    shape, volumes = _read_shape(dims, place)
    count = math.prod(shape) * volumes
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise BadInput(f"{place}: voxels of the type {dtype}; whole or real numbers, one a voxel, are wanted")
    if offset < len(head) or offset > limits.header_bytes:
        raise BadInput(f"{place}: its voxels are said to begin at byte {offset:,}; {_AGAIN}")
    if count * dtype.itemsize > limits.volume_bytes:
        size = f"{'x'.join(map(str, (*shape, volumes)))} voxels of {dtype.itemsize} bytes"
        raise BadInput(f"{place}: {size}, more than {limits.volume_bytes:,} bytes in all; cut or resample it first")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise BadInput(f"{place}: its affine is no map of space (NaN, or an axis of no length); mend sform or qform")
    axes = io_orientation(affine)
    spacing = {int(axis): float(size) for axis, size in zip(axes[:, 0], voxel_sizes(affine), strict=True)}
    plane = max(PLANES, key=lambda p: spacing[PLANES[p][0]] / (_THICK if p != "axial" else 1))
    scaled = slope is not None and math.isfinite(slope) and slope != 0
    slope, intercept = (float(slope), float(intercept or 0)) if scaled else (1.0, 0.0)
    has_orientation = any(code > 0 for code in codes)
    return VolumeHeader(shape, volumes, dtype, offset, slope, intercept, affine, has_orientation, axes, plane)


def _read_shape(dims: list[int], place: str) -> tuple[tuple[int, int, int], int]:
    used = dims[1 : dims[0] + 1] if 1 <= dims[0] <= 7 else []
    x, y, z, volumes, *more = (*used, *[1] * (7 - len(used)))
    if not used or any(n < 1 for n in used):
        raise BadInput(f"{place}: its header names {dims} as sizes, which no volume has; {_AGAIN}")
    if any(n > 1 for n in more):
        raise BadInput(f"{place}: {len(used)} dimensions; a volume has three, or four with channels or times")
    return (x, y, z), volumes


def read_volume(file: File, place: str, limits: FileLimits = ON_DISK, keep: bool = True) -> Volume:
    """A whole file. The last one from disk is kept, since its slices are read one after another.

    Raises BadInput as `read_volume_header`, and where voxels are missing.
    """
    if not isinstance(file, Path) or not keep:
        return _load_volume(file, place, limits)
    try:
        facts = file.stat()
    except OSError:
        return _load_volume(file, place, limits)  # says what is wrong
    try:
        return _load_last_volume(file, limits, (facts.st_mtime_ns, facts.st_size))
    except BadInput as error:
        raise BadInput(f"{place}{error}") from None


@lru_cache(maxsize=1)
def _load_last_volume(file: Path, limits: FileLimits, version: tuple[int, int]) -> Volume:
    return _load_volume(file, "", limits)  # the place is that of a slice, and differs each time


def _load_volume(file: File, place: str, limits: FileLimits) -> Volume:
    header = read_volume_header(file, place, limits)
    shape = (*header.shape, header.volumes)
    with open_stream(file, place) as stream:
        content = _read(stream, header.offset + math.prod(shape) * header.dtype.itemsize, place, limits)
    stored = np.frombuffer(content, header.dtype, math.prod(shape), header.offset).reshape(shape, order="F")
    return Volume(header, stored)

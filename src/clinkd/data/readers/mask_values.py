"""What the values of a mask mean: one class, or a class a value, in pictures and in NIfTI volumes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clinkd.data.images import locate
from clinkd.data.images.nifti import VolumeHeader, read_volume
from clinkd.data.readers.masks import list_values, read_mask_values
from clinkd.data.readers.names import Names, is_background
from clinkd.data.readers.rows import FieldError
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, ImageRef

_DARK, _LIGHT, _CLEAR = 64, 192, 0.98  # of a JPEG mask: all but 2 % of its values are dark or light
_MOVED = 0.5  # of a voxel: so far may the corners of a mask be from those of its volume


@dataclass(frozen=True, slots=True)
class Layer:
    """One class in one mask: where `values` [slices, rows, columns] are among `codes`; `areas` count by slice."""

    name: str
    values: NDArray[np.int64]
    codes: tuple[int, ...]
    areas: NDArray[np.int64]

    def inside(self, index: int) -> NDArray[np.bool_]:
        """The pixels of the class in a slice, [rows, columns]."""
        return np.isin(self.values[index], self.codes)


@dataclass(frozen=True, slots=True)
class Mask:
    """Whole numbers, [slices, rows, columns] in the order of the pictures, and how often each is in each slice."""

    file: str
    values: NDArray[np.int64]
    counts: dict[int, NDArray[np.int64]]  # value -> its pixels in each slice

    @classmethod
    def count(cls, file: str, values: NDArray[np.int64]) -> Mask:
        counts: dict[int, NDArray[np.int64]] = {}
        for index, picture in enumerate(values):
            for code, count in zip(*np.unique(picture, return_counts=True), strict=True):
                counts.setdefault(int(code), np.zeros(len(values), np.int64))[index] = count
        return cls(file, values, dict(sorted(counts.items())))

    def make_layer(self, name: str, codes: tuple[int, ...]) -> Layer:
        areas = sum((self.counts[code] for code in codes), np.zeros(len(self.values), np.int64))
        return Layer(name, self.values, codes, areas)


def load_picture_mask(source: Source, file: str, image: ImageRef, notes: Counter[str]) -> Mask:
    """The mask of a picture. Raises FieldError as `read_mask_values`, and for a JPEG with values between."""
    values = read_mask_values(source.path, file, image)
    if file.lower().endswith((".jpg", ".jpeg", ".jpe")):
        if ((values < _DARK) | (values >= _LIGHT)).mean() < _CLEAR:
            why = f"JPEG does not keep the values of a mask ({list_values(values)}); write it as PNG"
            raise FieldError("mask", file, why)
        notes["JPEG masks, whose values are divided at 128"] += 1
        values = np.where(values >= 128, 255, 0)
    return Mask.count(file, _require_whole(values, file)[None])


def load_volume_mask(source: Source, file: str, image: VolumeHeader) -> Mask:
    """The mask of a volume. Raises FieldError where it lies elsewhere in space, or is no mask."""
    try:
        path, _ = locate(source.path, file, file)
        volume = read_volume(path, file, keep=False)
    except BadInput as error:
        raise FieldError("mask", file, str(error).removeprefix(f"{file}: ")) from None
    header = volume.header
    if header.shape != image.shape or header.volumes != 1:
        sizes = ["x".join(map(str, (*h.shape, *[h.volumes][: h.volumes > 1]))) for h in (header, image)]
        raise FieldError("mask", file, f"{sizes[0]} voxels where the volume has {sizes[1]}; bring its own mask")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in header.shape], [1])).reshape(4, -1)[[0, 1, 2, 3]]
    moved = np.linalg.norm(((header.affine - image.affine) @ corners)[:3], axis=0).max()
    if moved > _MOVED * np.linalg.norm(image.affine[:3, :3], axis=0).min():
        why = (
            f"its affine puts a corner {moved:.3g} mm away from that of the volume; resample it, or bring its own mask"
        )
        raise FieldError("mask", file, why)
    return Mask.count(file, _require_whole(volume.rescale_exactly(volume.slices()), file))


def _require_whole(values: NDArray[np.generic], file: str) -> NDArray[np.int64]:
    if values.dtype.kind in "iu":
        return values  # type: ignore[return-value]
    whole = values.astype(np.int64) if np.isfinite(values.astype(np.float64)).all() else None
    if whole is None or (whole != values).any():
        raise FieldError("mask", file, f"the values {list_values(values)}, no whole numbers: probabilities? round them")
    return whole


def name_layers(mask: Mask, text: str, names: Names | None, notes: Counter[str]) -> list[Layer]:
    """The classes that a mask shows: that of `text` (its name or folder), or those of its values.

    Raises FieldError for a value without a name.
    """
    shown = tuple(code for code in mask.counts if code != 0)
    single = names.single if names is not None else ""
    if text or names is None or (single and (names.only or shown in ((1,), (255,)))):
        if len(shown) > 1:
            values = list_values(np.array(list(mask.counts)))
            why = f"the values {values} and one name; give each its own with --names FILE"
            raise FieldError("mask", mask.file, why)
        if text.casefold() in ("left", "right"):
            if not single:
                raise FieldError("mask", mask.file, f"its name says {text}, but not of what; give it, as --names lung")
            single = f"{text.lower()} {single}"
        elif text and not (names is not None and names.only):
            notes["masks whose class is told by the name of their file or folder"] += 1
            single = text
        return [mask.make_layer(single, shown)] if shown else []
    codes_by_name: dict[str, tuple[int, ...]] = {}
    for code in mask.counts:
        named = names.of_value(code)
        if (not named and code != 0) or (len(named) > 1 and not names.regions):
            why = f"has several names ({', '.join(named)})" if named else "is not there"
            raise FieldError("mask", mask.file, f"the value {code} {why} in {names.place}; correct the names")
        for name in named:
            if not is_background(name):
                codes_by_name[name] = (*codes_by_name.get(name, ()), code)
                if code == 0:
                    notes[f"masks in which 0, usually the background, is {name!r}"] += 1
    return [mask.make_layer(name, codes) for name, codes in codes_by_name.items()]

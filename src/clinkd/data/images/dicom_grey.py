"""Stored values of a DICOM to 8 bits: rescale and window (PS3.3 C.11, PS3.4 N.2), lookup tables, and palettes.

The tables are applied here and not by `pydicom.pixels`, which (as of 3.0.2) counts positions in a table of 8-bit
entries in 8 bits, refuses modality LUTs of 10 and 12 bits and 8-bit palettes of an odd length, reads big-endian
palettes as little-endian, and unfolds a segmented palette without end. A test covers each of these.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clinkd.data.images.dicom_header import GREY, Header, read_modality, read_natural, read_numbers, read_term
from clinkd.data.images.grey import GreyCurve, GreyFrame, Ramp, Refusal, Values, Window, parse_window
from clinkd.records import Modality

if TYPE_CHECKING:
    from pydicom import Dataset

# ---- grey -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _LookupTable:
    """A lookup table: entry 0 for values up to `first`, the last entry for values beyond its end (PS3.3 C.11.1.1)."""

    first: int
    bits: int
    entries: Values

    linear = None  # even where the table is one straight line

    def __str__(self) -> str:
        return "LUT"

    def look_up(self, values: Values) -> Values:
        indices = np.clip(np.nan_to_num(values.astype(float).round()) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[indices.astype(np.int64)])

    def __call__(self, values: Values) -> Values:
        return self.look_up(values) / (2.0**self.bits - 1)


def find_functional_group(header: Header, index: int, name: str) -> Dataset:
    """The data set with a functional group of a frame: of the frame, shared by all frames, or the file itself."""
    ds = header.ds
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for groups in ([per_frame[index]] if index < len(per_frame) else [], shared):
        if groups and groups[0].get(name):
            functional_group: Dataset = groups[0][name].value[0]
            return functional_group
    return ds


def list_vois(header: Header, index: int) -> list[_LookupTable | Window]:
    """All VOI LUTs of a frame, then all windows, with those of no usable width, so that the numbers stay right."""
    ds = find_functional_group(header, index, "FrameVOILUTSequence")
    signed = _may_be_negative(header, index)
    tables: list[_LookupTable | Window] = [
        _make_table(item.LUTDescriptor, item.LUTData, header, signed)
        for item in ds.get("VOILUTSequence") or []
        if "LUTDescriptor" in item and "LUTData" in item
    ]
    function = read_term(ds, "VOILUTFunction", ("LINEAR", "LINEAR_EXACT", "SIGMOID"))
    if not function and ds.get("VOILUTFunction"):
        raise Refusal("its VOILUTFunction is not LINEAR, LINEAR_EXACT or SIGMOID; mend the header")
    pairs = zip(read_numbers(ds, "WindowCenter"), read_numbers(ds, "WindowWidth"), strict=False)
    return tables + [Window(c, w, function or "LINEAR") for c, w in pairs]


def choose_grey_curve(window: str | None, header: Header, index: int) -> GreyCurve | None:
    """The VOI of a frame that `window` names; None for colour, and for the span from least to greatest value."""
    wanted = (window or "auto").strip().lower()
    if header.photometric not in GREY:
        if wanted not in ("auto", "full"):
            raise Refusal(f"window {wanted!r} of a picture in colour; windows are for grey values, leave it out")
        return None
    if wanted == "full":
        return None
    if wanted != "auto" and not wanted.isdecimal():
        return parse_window(wanted, is_hounsfield(header, index))
    vois = list_vois(header, index)
    usable = [v for v in vois if isinstance(v, _LookupTable) or v.usable]
    if wanted == "auto":
        return usable[0] if usable else _make_stored_ramp(header, index)
    if not 1 <= int(wanted) <= len(vois):
        raise Refusal(f"window {wanted} of {len(vois)}; the file has no more, give another or leave it out")
    chosen = vois[int(wanted) - 1]
    if chosen not in usable:
        raise Refusal(f"window {wanted} of the file is {chosen}, which has no width; give another or leave it out")
    return chosen


def is_hounsfield(header: Header, index: int) -> bool:
    """Whether the rescaled values of a frame are Hounsfield units, as PRESETS need."""
    rescale = find_functional_group(header, index, "PixelValueTransformationSequence")
    units = read_term(rescale, "RescaleType", ("HU", "HU_MOD")) or not rescale.get("RescaleType")
    rescaled = read_numbers(rescale, "RescaleIntercept") or header.ds.get("ModalityLUTSequence")
    return read_modality(header.ds) is Modality.CT and bool(units) and bool(rescaled)


def _make_stored_ramp(header: Header, index: int) -> GreyCurve | None:
    """A ramp over all stored values of at most 8 bits without a rescale, so that frames of a film compare."""
    bits = header.ds.get("BitsStored")
    rescale = find_functional_group(header, index, "PixelValueTransformationSequence")
    plain = header.keyword == "PixelData" and not header.signed and isinstance(bits, int) and 1 <= bits <= 8
    same = read_numbers(rescale, "RescaleSlope") in ([], [1]) and read_numbers(rescale, "RescaleIntercept") in ([], [0])
    if not plain or not same or header.ds.get("ModalityLUTSequence"):
        return None
    return Ramp(0, 2.0**bits - 1)


def convert_colours(stored: Values, header: Header) -> NDArray[np.uint8]:
    """The stored values of a frame in colour as 8-bit RGB."""
    if header.photometric == "PALETTE COLOR":
        return _apply_palette(stored, header)
    bits = read_natural(header.ds, "BitsStored")
    if bits == 8 and stored.dtype == np.uint8:
        return np.ascontiguousarray(stored)
    return (np.clip(stored / (2.0**bits - 1), 0, 1) * 255).round().astype(np.uint8)


def make_grey_frame(stored: Values, header: Header, index: int) -> GreyFrame:
    low, high = stored.min(), stored.max()
    is_countable = stored.dtype.kind in "iu" and int(high) - int(low) < 65536
    levels = np.arange(int(low), int(high) + 1) if is_countable else stored
    indices = stored.astype(np.int64) - int(low) if is_countable else None
    values = _rescale_levels(levels, header, index)
    occurs = np.bincount(indices.ravel(), minlength=len(levels)) > 0 if indices is not None else True
    finite = np.isfinite(values)
    counted = finite & occurs & ~_find_padding(levels, header)
    return GreyFrame(values, indices, counted if counted.any() else finite, header.photometric == "MONOCHROME1")


def _rescale_levels(levels: Values, header: Header, index: int) -> Values:
    """The values after the modality LUT or rescale (PS3.3 C.11.1)."""
    if sequence := header.ds.get("ModalityLUTSequence"):
        return _make_table(sequence[0].LUTDescriptor, sequence[0].LUTData, header).look_up(levels).astype(float)
    ds = find_functional_group(header, index, "PixelValueTransformationSequence")
    slope, intercept = (read_numbers(ds, k) for k in ("RescaleSlope", "RescaleIntercept"))
    for keyword, parsed in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        if not parsed and ds.get(keyword) not in (None, ""):
            raise Refusal(f"its {keyword} is no number; mend the header")
    return levels.astype(float) * (slope or [1.0])[0] + (intercept or [0.0])[0]


def _find_padding(levels: Values, header: Header) -> Values:
    """Which stored values are padding, not tissue (PS3.3 C.7.5.1.1.2)."""
    ends = [header.ds.get(k) for k in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    padding_values = [_read_stored_value(v, header) for v in ends if v is not None]
    if not padding_values or levels.dtype.kind == "f":
        return np.zeros(levels.shape, bool)
    return np.asarray((levels >= min(padding_values)) & (levels <= max(padding_values)))


def _read_stored_value(value: Any, header: Header) -> int:
    """A value of VR "US or SS" with the sign of the pixels; writers often take the wrong VR."""
    if isinstance(value, bytes):
        value = int.from_bytes(value[:2], "little" if header.syntax.is_little_endian else "big")
    return _wrap_signed(int(value), header.signed)


def _wrap_signed(value: int, signed: bool) -> int:
    """16 bits read as signed or unsigned."""
    return (value + 32768) % 65536 - 32768 if signed else value % 65536


# ---- tables ---------------------------------------------------------------------------------------------------------


def _may_be_negative(header: Header, index: int) -> bool:
    """Whether the values before a VOI LUT may be negative. They are rescaled, not stored values."""
    if header.ds.get("ModalityLUTSequence"):
        return False
    bits = int(header.ds.get("BitsStored") or 16)
    ends = np.array([0, 2**bits - 1]) - (2 ** (bits - 1) if header.signed else 0)
    return bool(_rescale_levels(ends, header, index).min() < 0)


def _make_table(descriptor: Any, data: Any, header: Header, signed: bool | None = None) -> _LookupTable:
    """A table from LUT Descriptor and LUT Data (PS3.3 C.7.6.3.1.5, C.11.1.1). Data may be bytes or numbers.

    `signed`: whether the first mapped value may be negative; None means that it is signed like the pixels.
    """
    if isinstance(descriptor, bytes):
        descriptor = struct.unpack(f"{header.order}3H", descriptor[:6])
    count, first, bits = (int(v) for v in descriptor)
    count = count % 65536 or 65536  # 0 means 65536
    words = f"{header.order}u2"
    raw = data if isinstance(data, bytes) else np.asarray(data, words).tobytes()
    entries = np.frombuffer(raw, words if len(raw) >= 2 * count else np.uint8)
    if not 8 <= bits <= 16 or len(entries) < count:
        raise Refusal("a lookup table of it is shorter than it says, or not of 8 to 16 bits; mend the header")
    entries = entries[:count].astype(np.int64)
    first = _wrap_signed(first, header.signed if signed is None else signed)
    return _LookupTable(first, max(bits, int(entries.max()).bit_length()), entries)


def _apply_palette(stored: Values, header: Header) -> NDArray[np.uint8]:
    """PALETTE COLOR as RGB (PS3.3 C.7.9)."""
    tables = [_read_palette(colour, header) for colour in ("Red", "Green", "Blue")]
    # Some writers fill 16-bit tables with 8-bit colours, like the old ACR-NEMA standard.
    bits = 8 if max(int(t.entries.max()) for t in tables) < 256 else 16
    planes = [t.look_up(stored) * 255 / (2**bits - 1) for t in tables]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def _read_palette(colour: str, header: Header) -> _LookupTable:
    descriptor = header.ds.get(f"{colour}PaletteColorLookupTableDescriptor")
    plain = header.ds.get(f"{colour}PaletteColorLookupTableData")
    segments = header.ds.get(f"Segmented{colour}PaletteColorLookupTableData")
    if descriptor is None or (plain is None and segments is None):
        raise Refusal("its palette is missing; mend the header, or convert it to RGB first")
    return _make_table(
        descriptor, _unfold_segments(segments, int(descriptor[2]), header) if plain is None else plain, header
    )


def _unfold_segments(segments: bytes, bits: int, header: Header) -> list[int]:
    """The entries of a segmented table (PS3.3 C.7.9.2): runs and straight lines.

    Raises Refusal for segments that refer to others: readers disagree on what the offset counts.
    """
    codes = np.frombuffer(segments, np.uint8 if bits == 8 else f"{header.order}u2").astype(int).tolist()
    entries: list[int] = []
    position = 0
    while position + 2 < len(codes) and len(entries) < 65536:
        kind, length = codes[position], codes[position + 1]
        position += 2
        if kind == 0:
            entries.extend(codes[position : position + length])
            position += length
        elif kind == 1 and entries:
            start, end = entries[-1], codes[position]
            steps = np.arange(1, length + 1)
            entries.extend(np.rint(start + (end - start) * steps / length).astype(int).tolist())
            position += 1
        else:
            raise Refusal("its palette is broken, or has segments that refer to others; convert it to RGB first")
    return entries

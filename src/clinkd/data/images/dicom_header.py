"""The header of a DICOM: the fields of an allow-list, and sizes, checked before any pixel is decoded."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from clinkd.data.images.grey import Refusal
from clinkd.data.images.kind import File, open_stream
from clinkd.data.images.limits import ON_DISK, FileLimits
from clinkd.records import BadInput, Modality

if TYPE_CHECKING:
    from pydicom import Dataset

_ELEMENT_READS = 3  # at most, of one header element
_ELEMENT_BYTES = 32  # of one in a sequence, on average: the short ones of a large sequence take minutes
MAX_ELEMENT_BYTES = 1 << 26  # of one header element that is read

# PS3.3 C.7.3.1.1.1
_MODALITIES = {
    "CT": Modality.CT,
    "MR": Modality.MR,
    **dict.fromkeys(("CR", "DX", "MG", "RF", "XA", "IO", "PX"), Modality.XRAY),
    "PT": Modality.PET,
    **dict.fromkeys(("US", "IVUS"), Modality.ULTRASOUND),
    "ES": Modality.ENDOSCOPY,
    "DMS": Modality.DERMOSCOPY,
    "OP": Modality.FUNDUS,
    **dict.fromkeys(("GM", "SM"), Modality.MICROSCOPY),
}
_STORAGE = "1.2.840.10008.5.1.4.1.1."  # SOP classes of images begin so (PS3.4, table B.5-1), and their family follows
_CLASSES = {
    **dict.fromkeys(("1", "12"), Modality.XRAY), "2": Modality.CT, **dict.fromkeys(("3", "6"), Modality.ULTRASOUND),
    "4": Modality.MR, **dict.fromkeys(("128", "130"), Modality.PET),
}  # fmt: skip

_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_SEQUENCES = (0x00283000, 0x00283010, 0x52009229, 0x52009230)  # of tables, and of what holds for all frames or each
_ALLOWED = (
    "SOPClassUID", "Modality", "PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "BurnedInAnnotation", "ImageOrientationPatient", "PatientOrientation", "AnatomicalOrientationType",
    "ImageLaterality", "ViewPosition", "PatientPosition",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PixelDataProviderURL",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)  # fmt: skip

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
WHOLE = "bring back a whole copy, or leave it out"
INFLATE = "inflate it first (gdcmconv --raw)"
CONVERT = "decompress it first (gdcmconv --raw, dcmdjpeg)"
_SHOWN = (*GREY, *COLOUR, "PALETTE COLOR")
_UNDEFINED = 0xFFFFFFFF
_PACKAGE = re.compile(r"(pylibjpeg[\w-]*)>=")  # as pydicom names those that would read a syntax


@cache
def _silence_loggers() -> None:
    """These loggers would write values and names, perhaps of a patient."""
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


@dataclass(slots=True)
class Header:
    """The allowed elements of a file, and where its pixels lie: `length` bytes from `offset` of `stream`."""

    ds: Dataset
    stream: BinaryIO
    syntax: Any  # pydicom UID
    keyword: str
    vr: str | None
    offset: int
    length: int
    rows: int = 0
    columns: int = 0
    frames: int = 1
    photometric: str = ""
    limits: FileLimits = ON_DISK

    @property
    def signed(self) -> bool:
        return self.keyword == "PixelData" and self.ds.get("PixelRepresentation") == 1

    @property
    def samples(self) -> int:
        """Samples of a pixel."""
        return 3 if self.photometric in COLOUR else 1

    @property
    def frame_bits(self) -> int:
        """Bits of an uncompressed frame."""
        bits = self.rows * self.columns * self.samples * read_natural(self.ds, "BitsAllocated")
        return bits // 3 * 2 if self.photometric == "YBR_FULL_422" else bits  # two pixels share one pair of colours

    @property
    def order(self) -> str:
        """The byte order in the form of `struct`."""
        return "<" if self.syntax.is_little_endian else ">"

    @property
    def decodable(self) -> bool:
        """Whether pixels in its transfer syntax are read."""
        try:
            return bool(find_decoder(self))
        except Refusal:
            return False

    @property
    def syntax_name(self) -> str:
        return _name_uid(self.syntax, "transfer syntax ") or "unknown transfer syntax"


@contextlib.contextmanager
def open_header(
    file: File, place: str, limits: FileLimits = ON_DISK, also: tuple[str, ...] = (), until: str = ""
) -> Iterator[Header]:
    """The parsed header, checked against the size of the file. Any exception of a library inside becomes BadInput.

    `also` are keywords of more elements to parse. `until`: the keyword of the last one; of what comes behind it nothing
    is read or checked, so the object need not be an image.
    """
    step = "the header"
    _silence_loggers()
    try:
        with warnings.catch_warnings(), open_stream(file, place) as stream:
            warnings.simplefilter("ignore")
            header = _parse_header(stream, limits, also, until)
            header = header if until else _check_header(header)
            step = f"its elements or pixels ({header.syntax_name})"
            yield header
    except Refusal as refusal:
        raise BadInput(f"{place}: {refusal}") from None
    except BadInput:
        raise
    except Exception as error:
        kind = type(error).__name__  # not its message, which may quote the header
        raise BadInput(f"{place}: not a usable DICOM, {step} cannot be read ({kind}); {WHOLE}") from None


def _parse_header(file: BinaryIO, limits: FileLimits, also: tuple[str, ...] = (), until: str = "") -> Header:
    """The elements before the pixels, or up to one. A deflated data set is inflated whole in memory, up to a cap."""
    from pydicom import uid
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import read_dataset, read_partial

    start = 132 if file.read(132)[128:] == b"DICM" else 0
    file.seek(start)
    metered: Any = _LimitedStream(file, limits)
    meta = read_dataset(metered, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = meta.get("TransferSyntaxUID")
    allowed: list[Any] = [tag_for_keyword(k) for k in (*_ALLOWED, *also)]
    deflated = syntax == uid.DeflatedExplicitVRLittleEndian
    finder = _PixelFinder(_inflate_data(file, limits.inflated_bytes) if deflated else file, frozenset(allowed), limits)
    finder.last = tag_for_keyword(until) if until else None
    if deflated:
        syntax = uid.ExplicitVRLittleEndian
        metered = _LimitedStream(finder.stream, limits)
        ds = read_dataset(metered, False, True, stop_when=finder, specific_tags=allowed)
    else:
        file.seek(0)
        ds = read_partial(metered, stop_when=finder, force=True, specific_tags=allowed)
        if not syntax:
            implicit, little = ds.original_encoding
            syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
            syntax = syntax if little else uid.ExplicitVRBigEndian
    if not finder.elements:
        raise Refusal("not a DICOM, though its name or first bytes say so; give the picture itself")
    syntax = uid.UID(syntax)
    return Header(ds, finder.stream, syntax, finder.keyword, finder.vr, finder.offset, finder.length, limits=limits)


class _LimitedStream:
    """A stream that gives at most so many bytes, a few for each element: a header takes a hundred times its bytes in
    memory, and each element microseconds."""

    def __init__(self, stream: BinaryIO, limits: FileLimits) -> None:
        self.stream, self.most, self.left = stream, limits.header_bytes, limits.header_bytes
        self.elements, self.reads = limits.elements, _ELEMENT_READS * limits.elements
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        self.reads -= 1
        if self.reads < 0:
            raise Refusal(f"a header of more than {self.elements:,} elements; leave it out")
        data = self.stream.read(size if 0 <= size <= self.left else self.left + 1)
        self.left -= len(data)
        if self.left < 0:
            raise Refusal(f"a header of more than {self.most:,} bytes; leave it out")
        return data


class _PixelFinder:
    """Decides at each element of the top level whether to stop: at the pixels, or behind `last`. It keeps their place.

    Raises Refusal at an element that ends after the end of the file, or is too long.
    """

    def __init__(self, stream: BinaryIO, allowed: frozenset[int], limits: FileLimits) -> None:
        self.stream, self.allowed, self.limits = stream, allowed, limits
        self.elements, self.keyword, self.offset, self.length = 0, "", 0, 0
        self.vr: str | None = None
        self.last: int | None = None
        self.end = _measure_stream(stream)

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        position = self.stream.tell()
        self.elements += 1
        if self.last is not None and tag > self.last:
            return True
        if tag in _PIXELS:
            self.keyword, self.vr, self.offset, self.length = _PIXELS[tag], vr, position, length
            return True
        if length == _UNDEFINED:
            return False
        left = self.end - position
        most = _ELEMENT_BYTES * self.limits.elements if tag in _SEQUENCES else MAX_ELEMENT_BYTES
        if length <= left and (length <= most or tag not in self.allowed):
            return False
        name = f"element ({tag >> 16:04x},{tag & 0xFFFF:04x})"
        if length > left:
            raise Refusal(f"cut, or no DICOM: {name} says {length:,} bytes where {left:,} are left; {WHOLE}")
        raise Refusal(f"{name} of the header has {length:,} bytes, more than {most:,}; leave it out")


def _measure_stream(stream: BinaryIO) -> int:
    position = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    stream.seek(position)
    return end


def _inflate_data(file: BinaryIO, most: int) -> BinaryIO:
    """The rest of the file inflated, to at most `most` bytes (PS3.5 A.5)."""
    if not most:
        raise Refusal(f"deflated: what it inflates to can take any memory; {INFLATE}")
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = engine.decompress(file.read(2 * most), most + 1)
    if len(inflated) > most:
        raise Refusal(f"inflates to more than {most:,} bytes; {CONVERT}")
    if not engine.eof:
        raise Refusal(f"cut: the deflated data have no end; {WHOLE}")
    return io.BytesIO(inflated)


def _check_header(header: Header) -> Header:
    """The header with its sizes. Raises Refusal where they are impossible, or bytes of the pixels are missing."""
    ds, limits = header.ds, header.limits
    if not header.keyword:
        if "PixelDataProviderURL" in ds:
            raise Refusal("a DICOM whose pixels lie on a server; store them in the file")
        raise Refusal(f"a DICOM without pixels (SOP class {_read_class_name(ds)}); leave it out")
    header.rows, header.columns = read_natural(ds, "Rows"), read_natural(ds, "Columns")
    header.frames = read_natural(ds, "NumberOfFrames") if ds.get("NumberOfFrames") else 1
    if header.frames > limits.frames:
        raise Refusal(f"{header.frames:,} frames, more than {limits.frames:,}; cut it into shorter ones")
    header.photometric = read_term(ds, "PhotometricInterpretation", _SHOWN)
    if not header.photometric:
        kinds = f"one of {', '.join(_SHOWN)} is read"
        raise Refusal(f"its PhotometricInterpretation is missing or not one that is shown; {kinds}")
    samples = read_natural(ds, "SamplesPerPixel") if "SamplesPerPixel" in ds else 1
    if samples != header.samples:
        raise Refusal(f"{samples} samples a pixel do not go with {header.photometric}; mend the header")
    if header.photometric in GREY and read_term(ds, "PixelPresentation", ("COLOR", "MIXED")):
        raise Refusal("grey with supplemental colours, which are not shown; convert it to RGB first")
    find_decoder(header)
    if not header.syntax.is_encapsulated:
        _check_length(header)
    elif header.frames > (pieces := _count_fragments(header)):
        raise Refusal(f"says {header.frames} frames but holds {pieces} pieces of pixels; {WHOLE}")
    return header


def _check_length(header: Header) -> None:
    """Raise Refusal where bytes of uncompressed pixels are missing."""
    needed = -(-header.frame_bits * header.frames // 8)
    if header.length == _UNDEFINED:
        raise Refusal(f"compressed pixels under the name of {header.syntax_name}; mend the header")
    present = min(header.length, _measure_stream(header.stream) - header.offset)
    if present < needed:
        size = f"{header.columns}x{header.rows} pixels" + (f" in {header.frames} frames" if header.frames > 1 else "")
        raise Refusal(f"cut: {size} need {needed:,} bytes, and {present:,} are there; {WHOLE}")


def _count_fragments(header: Header) -> int:
    """The number of pieces of the compressed pixels, without the offset table (PS3.5 A.4). Where these are not all at
    hand, in the first bytes of a file, one a frame is taken for granted."""
    stream, size, position = header.stream, _measure_stream(header.stream), header.offset
    count = -1
    while position + 8 <= size:
        stream.seek(position)
        if len(head := stream.read(8)) < 8:
            return header.frames
        tag, length = struct.unpack("<II", head)
        if tag == 0xE0DDFFFE:  # the end of the sequence
            break
        if tag != 0xE000FFFE:
            raise Refusal(f"broken: what stands for compressed pixels are none ({WHOLE})")
        position += 8 + length
        if position > size:
            raise Refusal(f"cut: a piece of {length:,} bytes of pixels ends behind the end of the file; {WHOLE}")
        count += 1
        if count > header.frames + header.limits.blocks:
            more = f"more than {header.limits.blocks:,} pieces beside one a frame"
            raise Refusal(f"compressed pixels in {more}; {CONVERT}")
    return max(count, 0)


def read_natural(ds: Dataset, keyword: str) -> int:
    try:
        value = int(ds[keyword].value)
    except Exception:  # absent, empty, or a text where a number is wanted
        raise Refusal(f"its {keyword} is missing or no number; mend the header, or leave it out") from None
    if value < 1:
        raise Refusal(f"its {keyword} is {value}; mend the header, or leave it out")
    return value


def read_numbers(ds: Dataset, keyword: str) -> list[float]:
    """The values of an element; empty where it is absent, or any value is no number."""
    try:
        floats: list[float] = np.ravel(np.asarray(ds.get(keyword), float)).tolist()
    except (TypeError, ValueError):
        return []
    return floats if all(np.isfinite(floats)) else []


def read_term(ds: Dataset, keyword: str, legal: tuple[str, ...]) -> str:
    """The value of an element if it is one of the `legal` words, otherwise "": no free text passes."""
    value = str(ds.get(keyword) or "").strip().upper()
    return value if value in legal else ""


def read_modality(ds: Dataset) -> Modality | None:
    """The modality that the header names, or else its SOP class. None if neither does."""
    if not ds.get("Modality"):
        family = str(ds.get("SOPClassUID") or "").removeprefix(_STORAGE).split(".")[0]
        return _CLASSES.get(family)
    return _MODALITIES.get(read_term(ds, "Modality", tuple(_MODALITIES)), Modality.OTHER)


def _read_class_name(ds: Dataset) -> str:
    from pydicom.uid import UID

    uid = UID(str(ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID") or ""))
    return _name_uid(uid) or "not given"


def _name_uid(uid: Any, kind: str = "") -> str:
    """The name of a known UID, `kind` and the number of another UID, "" for any other text: no free text passes."""
    if uid.name != str(uid):
        return str(uid.name)
    return f"{kind}{uid}" if re.fullmatch(r"[0-9.]{1,64}", str(uid)) else ""


def find_decoder(header: Header) -> Any:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(header.syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        missing = _PACKAGE.findall(" ".join(decoder.missing_dependencies)) if decoder else []
        way_out = f"pip install {' '.join(missing)} reads it" if missing else CONVERT
        raise Refusal(f"compressed as {header.syntax_name}, which is not read; {way_out}")
    return decoder

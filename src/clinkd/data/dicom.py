"""DICOM files as pictures: what a header may tell, and pixels through their tables and windows to 8-bit RGB.

Grey values go the way of the standard (PS3.3 C.11, PS3.4 N.2): modality LUT or rescale, VOI LUT or window, and the
inversion of MONOCHROME1 last. The `window` of an ImageRef says which VOI:

    None, "auto"   the file's first VOI LUT or usable window; without one, values of at most 8 bits as they are, others
                   from the frame's least to its greatest value, padding and NaN aside
    "1", "2", ...  the file's n-th, VOI LUTs counted before windows
    "lung", ...    a preset of PRESETS, for CT in Hounsfield units only
    "-600/1500"    centre/width in the units of the rescaled values, black at centre - width/2, white at + width/2
    "full"         from the frame's least to its greatest value

Only the fields of an allow-list are ever parsed, and no text of a header stands in an error. Overlays are not drawn.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clinkd.records import BadInput, Modality

if TYPE_CHECKING:
    from pydicom import Dataset

Values = NDArray[Any]  # one frame, or the levels that may occur in it
Grey = Callable[[Values], Values]  # rescaled values -> 0 (black) to 1 (white)

# Centre and width in HU. Lung, bone, brain, liver and soft tissue are the defaults of the OHIF viewer; the rest are
# customary and differ by some ten HU between books: give numbers where yours do.
PRESETS = {
    "lung": (-600, 1500),
    "mediastinum": (40, 400),
    "bone": (480, 2500),
    "brain": (40, 80),
    "stroke": (40, 40),
    "subdural": (75, 215),
    "abdomen": (60, 400),
    "liver": (90, 150),
    "soft-tissue": (40, 400),
}

MAX_INFLATED_BYTES = 1 << 28  # of a deflated data set
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

_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_ALLOWED = (
    "SOPClassUID", "Modality", "PatientID", "IssuerOfPatientID", "StudyInstanceUID", "BurnedInAnnotation",
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

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_SUFFIXES = (".dcm", ".dicom", ".ima")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"{", b"[", b"%PDF", b"PK")
_VRS = frozenset(b"UL UI CS SH LO US ST DA TM OB".split())  # those a file may begin with
_UNDEFINED = 0xFFFFFFFF
_WHOLE = "bring back a whole copy, or leave it out"
_CONVERT = "decompress it first (gdcmconv --raw, dcmdjpeg)"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a header tells, from an allow-list of its fields.

    `patient` and `study` are pseudonyms: hashes of PatientID (with its issuer) and StudyInstanceUID, "" where absent.
    They keep rows of a patient together; who holds a list of all IDs can undo them. `burned_in` is what the file says
    of names in the picture itself: YES, NO, or "" where it says nothing. `windows` are the VOIs of the first frame in
    the order they are numbered: "LUT", or "centre/width".
    """

    width: int
    height: int
    frames: int
    modality: Modality
    patient: str
    study: str
    burned_in: str = ""
    windows: tuple[str, ...] = ()


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM by its first 140 bytes, or, where these are no other known kind, by its suffix.

    False where there is no file, or it is empty.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(140)
    except OSError:
        return False
    if head[128:132] == b"DICM" or _bare_start(head):
        return True
    return bool(head) and path.suffix.lower() in _SUFFIXES and not head.lstrip().startswith(_PICTURES)


def _bare_start(head: bytes) -> bool:
    """Whether bytes begin as a data set without preamble does: with an element of group 2 or 8."""
    if head[:2] in (b"\x02\0", b"\x08\0"):
        element, order = int.from_bytes(head[2:4], "little"), "<"
    elif head[:2] == b"\0\x08":
        element, order = int.from_bytes(head[2:4], "big"), ">"
    else:
        return False
    if len(head) < 12 or element > 0x0120:
        return False
    (length,) = struct.unpack(f"{order}I", head[4:8])
    return head[4:6] in _VRS or (length <= 64 and length % 2 == 0)


def describe(path: Path, place: str, window: str | None = None) -> Facts:
    """What the header tells; no pixel is decoded.

    Raises BadInput, `place` in front, where the file is missing, cut, no DICOM, or holds no pixels, and where `window`
    does not fit its first frame.
    """
    with _opened(path, place) as header:
        ds = header.ds
        _grey(window, header, 0)
        return Facts(
            header.columns,
            header.rows,
            header.frames,
            _modality(ds),
            _pseudonym(ds, "IssuerOfPatientID", "PatientID"),
            _pseudonym(ds, "StudyInstanceUID"),
            _term(ds, "BurnedInAnnotation", ("YES", "NO")),
            tuple(str(v) for v in _vois(header, 0)) if header.photometric in _GREY else (),
        )


def open_dicom(path: Path, place: str, frame: int | None, window: str | None, max_pixels: int) -> Image.Image:
    """One frame as 8-bit RGB. `frame` counts from 1, `window` is as the head of this module tells.

    Colours of more than 8 bits are scaled by BitsStored. Raises BadInput, `place` in front, as `describe`, and where
    the frame is larger than `max_pixels` or not named among several, the window does not fit, or the pixels cannot be
    decoded.
    """
    with _opened(path, place) as header:
        number = which_frame(frame, header.frames, path.name, place)
        if header.rows * header.columns > max_pixels:
            raise _Refusal(f"{header.columns}x{header.rows} pixels, more than {max_pixels:,} in all; shrink it first")
        grey = _grey(window, header, number - 1)
        stored = _decoded(header, number - 1)
        if header.photometric == "PALETTE COLOR":
            return Image.fromarray(_through_palette(stored, header))
        if stored.ndim == 3:
            return Image.fromarray(_eight_bits(stored, header))
        return Image.fromarray(_shown(stored, grey, header, number - 1)).convert("RGB")


def which_frame(frame: int | None, frames: int, name: str, place: str) -> int:
    """The number of the frame meant, from 1. Raises BadInput where none of several is named, or it is not there."""
    if frame is None and frames > 1:
        several = f"the file has {frames} frames and none is named; give one, as {name}#1 (up to #{frames})"
        raise BadInput(f"{place}: {several}")
    if frame is not None and not 1 <= frame <= frames:
        raise BadInput(f"{place}: frame {frame} of {frames}; frames count from 1")
    return frame or 1


class _Refusal(BadInput):
    """A BadInput that does not name its place yet."""


# ---- header ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Header:
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
    items: int = 0  # fragments of compressed pixels

    @property
    def signed(self) -> bool:
        return self.keyword == "PixelData" and self.ds.get("PixelRepresentation") == 1


@contextlib.contextmanager
def _opened(path: Path, place: str) -> Iterator[_Header]:
    """The parsed header, checked against the size of the file. Whatever a library throws inside becomes BadInput."""
    step = "the header"
    try:
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.simplefilter("ignore")
            stream = stack.enter_context(path.open("rb"))
            header = _checked(_parsed(stream))
            step = f"its elements or pixels ({_syntax_name(header.syntax)})"
            yield header
    except _Refusal as refusal:
        raise BadInput(f"{place}: {refusal}") from None
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(f"{place}: no such file in {path.parent}; check the path") from None
    except Exception as error:  # its words may be those of the header, so its kind alone is told
        raise BadInput(f"{place}: not a usable DICOM, {step} cannot be read ({_kind(error)}); {_WHOLE}") from None


def _kind(error: BaseException) -> str:
    return type(error).__name__


def _parsed(file: BinaryIO) -> _Header:
    """Elements up to the pixels. Of a deflated data set, all of it is inflated in memory, up to a cap."""
    from pydicom import uid
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import read_dataset, read_partial

    start = 132 if file.read(132)[128:] == b"DICM" else 0
    file.seek(start)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = meta.get("TransferSyntaxUID")
    allowed: list[Any] = [tag_for_keyword(k) for k in _ALLOWED]
    seen = _Seen(file, frozenset(allowed))
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        seen.stream = _inflated(file)
        syntax = uid.ExplicitVRLittleEndian
        ds = read_dataset(seen.stream, False, True, stop_when=seen, specific_tags=allowed)
    else:
        file.seek(0)
        ds = read_partial(file, stop_when=seen, force=True, specific_tags=allowed)
        if not syntax:
            implicit, little = ds.original_encoding
            syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
            syntax = syntax if little else uid.ExplicitVRBigEndian
    if not seen.elements:
        raise _Refusal("not a DICOM, though its name or first bytes say so; give the picture itself")
    return _Header(ds, seen.stream, uid.UID(syntax), seen.keyword, seen.vr, seen.offset, seen.length)


class _Seen:
    """Is asked at each element of the top level whether to stop there: at the pixels, whose place it remembers.

    Raises _Refusal at an element that ends behind the end of the file, or is too long to be read.
    """

    def __init__(self, stream: BinaryIO, allowed: frozenset[int]) -> None:
        self.stream, self.allowed = stream, allowed
        self.elements, self.keyword, self.offset, self.length = 0, "", 0, 0
        self.vr: str | None = None

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        at = self.stream.tell()
        self.elements += 1
        if tag in _PIXELS:
            self.keyword, self.vr, self.offset, self.length = _PIXELS[tag], vr, at, length
            return True
        if length == _UNDEFINED:
            return False
        left = _size(self.stream) - at
        if length > left:
            name = f"element ({tag >> 16:04x},{tag & 0xFFFF:04x})"
            raise _Refusal(f"cut, or no DICOM: {name} says {length:,} bytes where {left:,} are left; {_WHOLE}")
        if tag in self.allowed and length > MAX_ELEMENT_BYTES:
            name = f"element ({tag >> 16:04x},{tag & 0xFFFF:04x})"
            raise _Refusal(f"{name} of the header has {length:,} bytes, more than {MAX_ELEMENT_BYTES:,}; leave it out")
        return False


def _size(stream: BinaryIO) -> int:
    at = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    stream.seek(at)
    return end


def _inflated(file: BinaryIO) -> BinaryIO:
    """The data set that follows, inflated (PS3.5 A.5)."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    made = io.BytesIO()
    data = file.read(1 << 20)
    while data and not engine.eof:
        made.write(engine.decompress(data, 1 << 24))
        if made.tell() > MAX_INFLATED_BYTES:
            raise _Refusal(f"inflates to more than {MAX_INFLATED_BYTES:,} bytes; {_CONVERT}")
        data = engine.unconsumed_tail or file.read(1 << 20)
    if not engine.eof:
        raise _Refusal(f"cut: the deflated data have no end; {_WHOLE}")
    made.seek(0)
    return made


def _checked(header: _Header) -> _Header:
    """The header with its sizes, where these are possible and the bytes of the pixels are all there."""
    ds = header.ds
    if not header.keyword:
        if "PixelDataProviderURL" in ds:
            raise _Refusal("a DICOM whose pixels lie on a server; store them in the file")
        raise _Refusal(f"a DICOM without pixels (SOP class {_class_name(ds)}); leave it out")
    header.rows, header.columns = _natural(ds, "Rows"), _natural(ds, "Columns")
    header.frames = _natural(ds, "NumberOfFrames") if ds.get("NumberOfFrames") else 1
    header.photometric = _term(ds, "PhotometricInterpretation", (*_GREY, *_COLOUR, "PALETTE COLOR"))
    if not header.photometric:
        kinds = f"one of {', '.join((*_GREY, *_COLOUR, 'PALETTE COLOR'))} is read"
        raise _Refusal(f"its PhotometricInterpretation is missing or not one that is shown; {kinds}")
    samples = _natural(ds, "SamplesPerPixel") if "SamplesPerPixel" in ds else 1
    if samples != (3 if header.photometric in _COLOUR else 1):
        raise _Refusal(f"{samples} samples a pixel do not go with {header.photometric}; mend the header")
    if header.photometric in _GREY and _term(ds, "PixelPresentation", ("COLOR", "MIXED")):
        raise _Refusal("grey with supplemental colours, which are not shown; convert it to RGB first")
    _decoder(header)
    if header.syntax.is_encapsulated:
        header.items = _fragments(header)
        if header.frames > header.items:
            raise _Refusal(f"says {header.frames} frames but holds {header.items} pieces of pixels; {_WHOLE}")
        return header
    bits = header.rows * header.columns * samples * _natural(ds, "BitsAllocated") * header.frames
    wanted = -(-bits // 8) // (3 if header.photometric == "YBR_FULL_422" else 1)
    wanted *= 2 if header.photometric == "YBR_FULL_422" else 1
    if header.length == _UNDEFINED:
        raise _Refusal(f"compressed pixels under the name of {_syntax_name(header.syntax)}; mend the header")
    have = min(header.length, _size(header.stream) - header.offset)
    if have < wanted:
        size = f"{header.columns}x{header.rows} pixels" + (f" in {header.frames} frames" if header.frames > 1 else "")
        raise _Refusal(f"cut: {size} need {wanted:,} bytes, and {have:,} are there; {_WHOLE}")
    return header


def _fragments(header: _Header) -> int:
    """How many pieces the compressed pixels have, their offset table aside (PS3.5 A.4)."""
    stream, size, at = header.stream, _size(header.stream), header.offset
    count = -1
    while at + 8 <= size:
        stream.seek(at)
        tag, length = struct.unpack("<II", stream.read(8))
        if tag == 0xE0DDFFFE:  # the end of the sequence
            break
        if tag != 0xE000FFFE:
            raise _Refusal(f"broken: what stands for compressed pixels are none ({_WHOLE})")
        at += 8 + length
        if at > size:
            raise _Refusal(f"cut: a piece of {length:,} bytes of pixels ends behind the end of the file; {_WHOLE}")
        count += 1
    return max(count, 0)


def _natural(ds: Dataset, keyword: str) -> int:
    try:
        value = int(ds[keyword].value)
    except Exception:  # absent, empty, or a text where a number is wanted
        raise _Refusal(f"its {keyword} is missing or no number; mend the header, or leave it out") from None
    if value < 1:
        raise _Refusal(f"its {keyword} is {value}; mend the header, or leave it out")
    return value


def _numbers(ds: Dataset, keyword: str) -> list[float]:
    """The values of an element, empty where it is absent or one of them is no number."""
    from pydicom.multival import MultiValue

    value = ds.get(keyword)
    several = value if isinstance(value, MultiValue | list) else [value]
    try:
        found = [float(v) for v in several]
    except (TypeError, ValueError):
        return []
    return found if all(np.isfinite(found)) else []


def _term(ds: Dataset, keyword: str, legal: tuple[str, ...]) -> str:
    """The value of an element that is one of a few words, "" otherwise: no free text passes."""
    value = str(ds.get(keyword) or "").strip().upper()
    return value if value in legal else ""


def _modality(ds: Dataset) -> Modality:
    return _MODALITIES.get(_term(ds, "Modality", tuple(_MODALITIES)), Modality.OTHER)


def _pseudonym(ds: Dataset, *keywords: str) -> str:
    *front, last = (str(ds.get(k) or "").strip() for k in keywords)
    return hashlib.blake2b("\0".join((*front, last)).encode(), digest_size=8).hexdigest() if last else ""


def _syntax_name(uid: Any) -> str:
    known = str(uid.name)
    return known if known != str(uid) else f"transfer syntax {uid}" if _is_uid(str(uid)) else "unknown transfer syntax"


def _class_name(ds: Dataset) -> str:
    from pydicom.uid import UID

    uid = UID(str(ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID") or ""))
    return str(uid.name) if uid.name != str(uid) else str(uid) if _is_uid(str(uid)) else "not given"


def _is_uid(text: str) -> bool:
    return re.fullmatch(r"[0-9.]{1,64}", text) is not None


# ---- pixels ---------------------------------------------------------------------------------------------------------


def _decoder(header: _Header) -> Any:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(header.syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise _Refusal(f"compressed as {_syntax_name(header.syntax)}, which is not read; {_CONVERT}")
    return decoder


def _decoded(header: _Header, index: int) -> Values:
    """The stored values of one frame: (rows, columns), or (rows, columns, 3) as RGB."""
    from pydicom.pixels.utils import as_pixel_options

    name, decoder = _syntax_name(header.syntax), _decoder(header)
    values: Values
    plugins: tuple[str, ...] = ("",)
    if header.syntax.is_encapsulated:
        plugins = _plugins(header, _coded(header, index), decoder.available_plugins)
    elif header.ds.get("BitsAllocated") == 1:
        return _bits(header, index)
    options = as_pixel_options(header.ds, pixel_keyword=header.keyword, pixel_vr=header.vr)
    options["number_of_frames"] = header.frames
    for plugin in plugins:
        header.stream.seek(header.offset)
        try:
            values, said = decoder.as_array(header.stream, index=index, decoding_plugin=plugin, **options)
            break
        except Exception as error:
            kind = _kind(error)
    else:
        bits = f"{name}, {header.ds.get('BitsStored', 32)} bits"
        raise _Refusal(f"its pixels ({bits}) cannot be decoded ({kind}); {_CONVERT}, or {_WHOLE}")
    if values.ndim == 3 and said["photometric_interpretation"] not in ("RGB", "YBR_ICT", "YBR_RCT"):
        raise _Refusal(f"its pixels ({name}) cannot be brought to RGB; {_CONVERT}")
    return values


def _bits(header: _Header, index: int) -> Values:
    """A frame of single bits, which need not begin at a whole byte (PS3.5 8.1.1)."""
    pixels = header.rows * header.columns
    first, last = index * pixels, (index + 1) * pixels
    header.stream.seek(header.offset + first // 8)
    raw = np.frombuffer(header.stream.read(-(-last // 8) - first // 8), np.uint8)
    if not header.syntax.is_little_endian and header.vr == "OW":
        raise _Refusal("single bits in big-endian words, which are not read; convert it first (gdcmconv --raw)")
    bits = np.unpackbits(raw, bitorder="little")[first % 8 :][:pixels]
    return bits.reshape(header.rows, header.columns)


@dataclass(frozen=True, slots=True)
class _Coded:
    """What the head of a JPEG, JPEG-LS or JPEG 2000 stream says."""

    width: int
    height: int
    precision: int  # bits a sample
    samples: int


def _coded(header: _Header, index: int) -> _Coded | None:
    """The head of a frame's stream, None where it has none (RLE).

    Refused where it does not agree with the header of the file: decoders make room by the one and fill by the other.
    """
    from pydicom import uid
    from pydicom.encaps import get_frame

    header.stream.seek(header.offset)
    offsets = None
    if header.ds.get("ExtendedOffsetTable") and header.ds.get("ExtendedOffsetTableLengths"):
        offsets = (header.ds.ExtendedOffsetTable, header.ds.ExtendedOffsetTableLengths)
    data = get_frame(header.stream, index, number_of_frames=header.frames, extended_offsets=offsets)
    samples = 3 if header.photometric in _COLOUR else 1
    allocated = _natural(header.ds, "BitsAllocated")
    if header.syntax == uid.RLELossless:
        if len(data) > header.rows * header.columns * samples * allocated // 4 + 4096:
            raise _Refusal(f"{len(data):,} bytes for {header.columns}x{header.rows} pixels; mend the header")
        return None
    coded = _jpeg_2000(data) if header.syntax in uid.JPEG2000TransferSyntaxes else _jpeg(data)
    if coded is None:
        raise _Refusal(f"its compressed pixels do not begin as {_syntax_name(header.syntax)} does; {_WHOLE}")
    if b"\xff\xd9" not in data[-64:]:  # the end mark of all three; behind it some writers leave a few bytes
        raise _Refusal(f"cut: its compressed pixels have no end; {_WHOLE}")
    if (coded.width, coded.height) != (header.columns, header.rows):
        inside = f"the compressed pixels are {coded.width}x{coded.height}"
        raise _Refusal(f"{inside}, the header says {header.columns}x{header.rows}; mend the header")
    if coded.samples != samples or not 1 <= coded.precision <= allocated:
        inside = f"the compressed pixels have {coded.samples} samples of {coded.precision} bits"
        raise _Refusal(f"{inside}, the header says {samples} in {allocated} bits; mend the header")
    return coded


def _jpeg_2000(data: bytes) -> _Coded | None:
    """The SIZ segment (ISO/IEC 15444-1 A.5.1)."""
    at = data[:4096].find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 43:
        return None
    x1, y1, x0, y0 = struct.unpack(">4I", data[at + 8 : at + 24])
    (samples,) = struct.unpack(">H", data[at + 40 : at + 42])
    return _Coded(x1 - x0, y1 - y0, (data[at + 42] & 0x7F) + 1, samples)


def _jpeg(data: bytes) -> _Coded | None:
    """The frame header, SOF (ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2)."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            precision, height, width, samples = struct.unpack(">BHHB", data[at + 4 : at + 10])
            return _Coded(width, height, precision, samples)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _plugins(header: _Header, coded: _Coded | None, available: tuple[str, ...]) -> tuple[str, ...]:
    """Who is to decode, in this order. Pillow where it can: a broken JPEG makes GDCM end the whole program."""
    from pydicom import uid

    if "gdcm" not in available:
        return available
    _quiet_gdcm()
    if coded is None or "pillow" not in available:
        return ("gdcm",)
    if header.syntax in uid.JPEG2000TransferSyntaxes:  # Pillow cuts colours to 8 bits, and is strict where GDCM is not
        return ("pillow", "gdcm") if coded.precision <= (8 if coded.samples > 1 else 16) else ("gdcm",)
    if coded.precision == 8:
        return ("pillow",)
    raise _Refusal(f"{_syntax_name(header.syntax)} of {coded.precision} bits, which is not read; {_CONVERT}")


@cache
def _quiet_gdcm() -> None:
    """GDCM writes its complaints to stderr; what it cannot do is told by our own errors."""
    import gdcm

    for off in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
        off()


def _eight_bits(stored: Values, header: _Header) -> NDArray[np.uint8]:
    bits = _natural(header.ds, "BitsStored")
    if bits == 8 and stored.dtype == np.uint8:
        return np.ascontiguousarray(stored)
    return (np.clip(stored / (2.0**bits - 1), 0, 1) * 255).round().astype(np.uint8)


# ---- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Table:
    """A lookup table: entry 0 for values up to `first`, the last one for all beyond its end (PS3.3 C.11.1.1)."""

    first: int
    bits: int
    entries: Values

    def __str__(self) -> str:
        return "LUT"

    def at(self, values: Values) -> Values:
        places = np.clip(np.nan_to_num(values.astype(float).round()) - self.first, 0, len(self.entries) - 1)
        found: Values = self.entries[places.astype(np.int64)]
        return found

    def __call__(self, values: Values) -> Values:
        return self.at(values) / (2.0**self.bits - 1)


def _table(descriptor: Any, data: Any, header: _Header, signed: bool) -> _Table:
    """A table from LUT Descriptor and LUT Data (PS3.3 C.7.6.3.1.5, C.11.1.1). Data may be bytes or numbers."""
    order = "<" if header.syntax.is_little_endian else ">"
    if isinstance(descriptor, bytes):
        descriptor = struct.unpack(f"{order}3H", descriptor[:6])
    count, first, bits = (int(v) for v in descriptor)
    count = count % 65536 or 65536  # 0 stands for 65536
    first = (first + 32768) % 65536 - 32768 if signed else first % 65536
    entries = np.frombuffer(data, f"{order}u2") if isinstance(data, bytes) and len(data) >= 2 * count else None
    if entries is None:
        raw = data if isinstance(data, bytes) else np.asarray(data, f"{order}u2").tobytes()
        wide = len(raw) >= 2 * count
        entries = np.frombuffer(raw, f"{order}u2" if wide else np.uint8)
    if not 8 <= bits <= 16 or len(entries) < count:
        raise _Refusal("a lookup table of it is shorter than it says, or not of 8 to 16 bits; mend the header")
    entries = entries[:count].astype(np.int64)
    return _Table(first, max(bits, int(entries.max()).bit_length()), entries)


def _through_palette(stored: Values, header: _Header) -> NDArray[np.uint8]:
    """PALETTE COLOR as RGB (PS3.3 C.7.9)."""
    tables = [_palette(colour, header) for colour in ("Red", "Green", "Blue")]
    # Some writers fill 16-bit tables with 8-bit colours, as the ACR-NEMA standard had them.
    bits = 8 if max(int(t.entries.max()) for t in tables) < 256 else 16
    planes = [t.at(stored) * 255 / (2**bits - 1) for t in tables]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def _palette(colour: str, header: _Header) -> _Table:
    descriptor = header.ds.get(f"{colour}PaletteColorLookupTableDescriptor")
    plain = header.ds.get(f"{colour}PaletteColorLookupTableData")
    if descriptor is None:
        raise _Refusal("its palette is missing; mend the header, or convert it to RGB first")
    if plain is not None:
        return _table(descriptor, plain, header, header.signed)
    segments = header.ds.get(f"Segmented{colour}PaletteColorLookupTableData")
    if segments is None:
        raise _Refusal("its palette is missing; mend the header, or convert it to RGB first")
    return _table(descriptor, _unfolded(segments, int(descriptor[2]), header), header, header.signed)


def _unfolded(segments: bytes, bits: int, header: _Header) -> list[int]:
    """The entries of a segmented table (PS3.3 C.7.9.2): runs and straight lines.

    Segments that refer to others are refused: readers disagree on what their offset counts.
    """
    order = "<" if header.syntax.is_little_endian else ">"
    codes = np.frombuffer(segments, np.uint8 if bits == 8 else f"{order}u2").astype(int).tolist()
    entries: list[int] = []
    at = 0
    while at + 2 < len(codes) and len(entries) < 65536:
        kind, length = codes[at], codes[at + 1]
        at += 2
        if kind == 0:
            entries.extend(codes[at : at + length])
            at += length
        elif kind == 1 and entries:
            start, end = entries[-1], codes[at]
            entries.extend(round(start + (end - start) * k / length) for k in range(1, length + 1))
            at += 1
        else:
            raise _Refusal("its palette is broken, or has segments that refer to others; convert it to RGB first")
    return entries


# ---- grey -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Window:
    """Centre and width, and how grey follows values between them (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    centre: float
    width: float
    function: str = "LINEAR_EXACT"

    def __str__(self) -> str:
        return f"{self.centre:g}/{self.width:g}"

    @property
    def usable(self) -> bool:
        return self.width >= 1 if self.function == "LINEAR" else self.width > 0

    def __call__(self, values: Values) -> Values:
        if self.function == "SIGMOID":  # 1 / (1 + exp(-4 (x - c) / w)), in a form that cannot overflow
            return (1 + np.tanh(2 * (values - self.centre) / self.width)) / 2
        centre, width = self.centre, self.width
        if self.function == "LINEAR":
            centre, width = centre - 0.5, width - 1
        if width == 0:
            return (values > centre).astype(float)
        return np.clip((values - centre) / width + 0.5, 0, 1)


def _group(header: _Header, index: int, name: str) -> Dataset:
    """The data set that says a functional group of a frame: its own, the shared one, or the file itself."""
    ds = header.ds
    own = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for groups in ([own[index]] if index < len(own) else [], shared):
        if groups and groups[0].get(name):
            found: Dataset = groups[0][name].value[0]
            return found
    return ds


def _vois(header: _Header, index: int) -> list[_Table | _Window]:
    """All VOI LUTs, then all windows, of a frame; a window without a usable width included, to keep the numbers."""
    ds = _group(header, index, "FrameVOILUTSequence")
    tables: list[_Table | _Window] = [
        _table(item.LUTDescriptor, item.LUTData, header, header.signed)
        for item in ds.get("VOILUTSequence") or []
        if "LUTDescriptor" in item and "LUTData" in item
    ]
    function = _term(ds, "VOILUTFunction", ("LINEAR", "LINEAR_EXACT", "SIGMOID"))
    if not function and ds.get("VOILUTFunction"):
        raise _Refusal("its VOILUTFunction is not LINEAR, LINEAR_EXACT or SIGMOID; mend the header")
    pairs = zip(_numbers(ds, "WindowCenter"), _numbers(ds, "WindowWidth"), strict=False)
    return tables + [_Window(c, w, function or "LINEAR") for c, w in pairs]


def _grey(window: str | None, header: _Header, index: int) -> Grey | None:
    """The VOI that a window means for a frame; None for colour, and for least to greatest."""
    wanted = (window or "auto").strip().lower()
    if header.photometric in _GREY:
        return _chosen(wanted, header, index)
    if wanted not in ("auto", "full"):
        raise _Refusal(f"window {wanted!r} of a picture in colour; windows are for grey values, leave it out")
    return None


def _chosen(wanted: str, header: _Header, index: int) -> Grey | None:
    """The VOI meant by `wanted` (lower case); None for the values as they are, or from least to greatest."""
    if wanted == "full":
        return None
    if wanted == "auto" or wanted.isdecimal():
        vois = _vois(header, index)
        usable = [v for v in vois if isinstance(v, _Table) or v.usable]
        if wanted == "auto":
            return usable[0] if usable else _as_stored(header, index)
        if not 1 <= int(wanted) <= len(vois):
            raise _Refusal(f"window {wanted} of {len(vois)}; the file has no more, give another or leave it out")
        chosen = vois[int(wanted) - 1]
        if chosen not in usable:
            raise _Refusal(f"window {wanted} of the file is {chosen}, which has no width; give another or leave it out")
        return chosen
    if wanted in PRESETS:
        rescale = _group(header, index, "PixelValueTransformationSequence")
        units = _term(rescale, "RescaleType", ("HU", "HU_MOD")) or not rescale.get("RescaleType")
        rescaled = _numbers(rescale, "RescaleIntercept") or header.ds.get("ModalityLUTSequence")
        if _modality(header.ds) is not Modality.CT or not units or not rescaled:
            way_out = "give centre/width in its own units, or leave it out"
            raise _Refusal(f"window {wanted!r} is for CT in Hounsfield units, which this file is not; {way_out}")
        return _Window(*PRESETS[wanted])
    numbers = re.fullmatch(r"([-+]?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", wanted)
    if numbers is None or float(numbers[2]) == 0:
        legal = f"auto, full, a number from 1, centre/width such as -600/1500, or one of {', '.join(PRESETS)}"
        raise _Refusal(f"window {wanted!r} is not known; give {legal}")
    return _Window(float(numbers[1]), float(numbers[2]))


def _as_stored(header: _Header, index: int) -> Grey | None:
    """Values of at most 8 bits without a rescale are grey as they are, so that frames of a film compare."""
    bits = header.ds.get("BitsStored")
    rescale = _group(header, index, "PixelValueTransformationSequence")
    plain = header.keyword == "PixelData" and not header.signed and isinstance(bits, int) and 1 <= bits <= 8
    same = _numbers(rescale, "RescaleSlope") in ([], [1]) and _numbers(rescale, "RescaleIntercept") in ([], [0])
    if not plain or not same or header.ds.get("ModalityLUTSequence"):
        return None
    most = 2.0**bits - 1
    return lambda values: np.clip(values / most, 0, 1)


def _shown(stored: Values, grey: Grey | None, header: _Header, index: int) -> NDArray[np.uint8]:
    """Stored values to grey of 8 bits."""
    low, high = stored.min(), stored.max()
    few = stored.dtype.kind in "iu" and int(high) - int(low) < 65536
    # What is done to a value depends on it alone, so it is done once to each that may occur.
    levels = np.arange(int(low), int(high) + 1) if few else stored
    places = stored.astype(np.int64) - int(low) if few else None
    values = _rescaled(levels, header, index)
    if grey is None:
        occurs = np.bincount(places.ravel(), minlength=len(levels)) > 0 if places is not None else True
        grey = _least_to_greatest(values, occurs & ~_padding(levels, header))
    shown = np.nan_to_num(grey(values), nan=0.0)
    shown = 1 - shown if header.photometric == "MONOCHROME1" else shown
    eight = (shown * 255).round().astype(np.uint8)
    return eight[places] if places is not None else eight


def _rescaled(levels: Values, header: _Header, index: int) -> Values:
    """The modality LUT (PS3.3 C.11.1)."""
    if sequence := header.ds.get("ModalityLUTSequence"):
        return _table(sequence[0].LUTDescriptor, sequence[0].LUTData, header, header.signed).at(levels).astype(float)
    ds = _group(header, index, "PixelValueTransformationSequence")
    slope, intercept = (_numbers(ds, k) for k in ("RescaleSlope", "RescaleIntercept"))
    for keyword, found in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        if not found and ds.get(keyword) not in (None, ""):
            raise _Refusal(f"its {keyword} is no number; mend the header")
    return levels.astype(float) * (slope or [1.0])[0] + (intercept or [0.0])[0]


def _padding(levels: Values, header: _Header) -> Values:
    """Which stored values stand for no tissue (PS3.3 C.7.5.1.1.2)."""
    ends = [header.ds.get(k) for k in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    known = [_stored_value(v, header) for v in ends if v is not None]
    if not known or levels.dtype.kind == "f":
        return np.zeros(levels.shape, bool)
    padded: Values = (levels >= min(known)) & (levels <= max(known))
    return padded


def _stored_value(value: Any, header: _Header) -> int:
    """A value of VR "US or SS" as the pixels are signed; writers often take the other VR."""
    if isinstance(value, bytes):
        value = int.from_bytes(value[:2], "little" if header.syntax.is_little_endian else "big")
    return (int(value) + 32768) % 65536 - 32768 if header.signed else int(value) % 65536


def _least_to_greatest(values: Values, counted: Values) -> Grey:
    finite = np.isfinite(values)
    used = values[finite & counted] if (finite & counted).any() else values[finite]
    low, high = (used.min(), used.max()) if used.size else (0.0, 0.0)
    span = high - low
    return lambda v: np.clip((v - low) / span, 0, 1) if span > 0 else np.zeros(v.shape)

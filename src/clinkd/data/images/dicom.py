"""DICOM files as pictures: what a header may tell, and pixels through their tables and windows to 8-bit RGB.

GreyCurve values go the way of the standard (PS3.3 C.11, PS3.4 N.2): modality LUT or rescale, VOI LUT or window, and the
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

import hashlib
import os
import struct
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from clinkd.data.images.dicom_grey import choose_grey_curve, colours, grey_frame, hounsfield, vois_of
from clinkd.data.images.dicom_header import (
    CONVERT,
    GREY,
    WHOLE,
    Header,
    decoder_of,
    modality_of,
    natural,
    open_header,
    term,
)
from clinkd.data.images.grey import Refusal, Values
from clinkd.data.images.kind import Facts, File, ImageFrame, check_pixels, reading, which_frame
from clinkd.data.images.limits import ON_DISK, FileLimits
from clinkd.data.images.plain import scans_of
from clinkd.data.worker import JobFailed, Worker, WorkerLimits, WorkerLost
from clinkd.records import BadInput

if TYPE_CHECKING:
    from pydicom import Dataset

_APART = WorkerLimits(60.0, 3 << 30)
_SUFFIXES = (".dcm", ".dicom", ".ima")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"{", b"[", b"%PDF", b"PK")
# value representations that are text (PS3.5 6.2)
_TEXTS = frozenset(["AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"])
_VRS = frozenset(b"UL UI CS SH LO US ST DA TM OB".split())  # those a file may begin with


class Dicom:
    """DICOM files with pixels."""

    name = "DICOM"
    formats = ("DICOM",)
    accept = (*_SUFFIXES, "application/dicom")
    medical = True
    reportable = True

    def sniff(self, file: File) -> bool:
        """By its first 140 bytes, or, where these are no other known kind, by its suffix."""
        try:
            if isinstance(file, Path) and not file.is_file():
                return False
            with reading(file, "") as stream:
                head = stream.read(140)
        except (OSError, BadInput):
            return False
        if head[128:132] == b"DICM" or _bare_start(head):
            return True
        named = isinstance(file, Path) and file.suffix.lower() in _SUFFIXES
        return bool(head) and named and not head.lstrip().startswith(_PICTURES)

    def describe(
        self, file: File, place: str, frame: int | None = 1, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> Facts:
        with open_header(file, place, limits) as header:
            index = which_frame(frame, header.frames, file, place) - 1
            choose_grey_curve(window, header, index)
            return _facts(header, index)

    def open(
        self, file: File, place: str, frame: int | None, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> ImageFrame:
        """Colours of more than 8 bits are scaled by BitsStored. A window that does not fit is refused undecoded."""
        with open_header(file, place, limits) as header:
            number = which_frame(frame, header.frames, file, place)
            check_pixels(header.columns, header.rows, place, limits)
            index = number - 1
            facts, voi = _facts(header, index), choose_grey_curve(window, header, index)
            stored = _decoded(header, index)
            if header.photometric not in GREY:
                return ImageFrame(Image.fromarray(colours(stored, header)).convert("RGB"), facts, number)
            values = grey_frame(stored, header, index)
            grey = voi or values.ramp
            picture = Image.fromarray(values.shown(grey)).convert("RGB")
            return ImageFrame(picture, facts, number, grey.linear, hounsfield(header, index), values)

    def texts(self, path: Path, place: str) -> set[str]:
        import pydicom

        with open_header(path, place):  # its sizes
            pass
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _texts(pydicom.dcmread(path, stop_before_pixels=True, force=True))
        except Exception as error:
            raise BadInput(f"{place}: its header cannot be read whole ({type(error).__name__})") from None


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


def _facts(header: Header, index: int) -> Facts:
    ds = header.ds
    return Facts(
        header.columns,
        header.rows,
        header.frames,
        modality_of(ds),
        _pseudonym(ds, "IssuerOfPatientID", "PatientID"),
        _pseudonym(ds, "StudyInstanceUID"),
        term(ds, "BurnedInAnnotation", ("YES", "NO")),
        tuple(str(v) for v in vois_of(header, index)) if header.photometric in GREY else (),
    )


def _pseudonym(ds: Dataset, *keywords: str) -> str:
    *front, last = (str(ds.get(k) or "").strip() for k in keywords)
    return hashlib.blake2b("\0".join((*front, last)).encode(), digest_size=8).hexdigest() if last else ""


def _texts(ds: Dataset) -> set[str]:
    found: set[str] = set()
    for element in ds.iterall():
        if element.VR in _TEXTS and element.value:
            several = element.value if element.VM > 1 else [element.value]
            for value in several:
                found |= {str(value).strip(), *(str(value).split("=") if element.VR == "PN" else ())}
    return found


# ---- pixels ---------------------------------------------------------------------------------------------------------


def _decoded(header: Header, index: int) -> Values:
    """The stored values of one frame: (rows, columns), or (rows, columns, 3) as RGB."""
    from pydicom.pixels.utils import as_pixel_options

    decoder = decoder_of(header)
    values: Values
    plugins: tuple[str, ...] = ("",)
    if header.syntax.is_encapsulated:
        frame = _frame_bytes(header, index)
        plugins = _plugins(header, _coded(header, frame), decoder.available_plugins)
    elif header.ds.get("BitsAllocated") == 1:
        return _bits(header, index)
    options = as_pixel_options(header.ds, pixel_keyword=header.keyword, pixel_vr=header.vr)
    options["number_of_frames"] = header.frames
    for plugin in plugins:
        if plugin == "gdcm" and header.limits.apart:
            values, photometric = _decoded_apart(header, frame, options)
            break
        header.stream.seek(header.offset)
        try:
            values, meta = decoder.as_array(header.stream, index=index, decoding_plugin=plugin, **options)
            photometric = meta["photometric_interpretation"]
            break
        except Exception as error:
            kind = type(error).__name__
    else:
        bits = f"{header.syntax_name}, {header.ds.get('BitsStored', 32)} bits"
        raise Refusal(f"its pixels ({bits}) cannot be decoded ({kind}); {CONVERT}, or {WHOLE}")
    if values.ndim == 3 and photometric not in ("RGB", "YBR_ICT", "YBR_RCT"):
        raise Refusal(f"its pixels ({header.syntax_name}) cannot be brought to RGB; {CONVERT}")
    return values


def _decoded_apart(header: Header, frame: bytes, options: dict[str, Any]) -> tuple[Values, str]:
    """The same by GDCM in a process of its own, which a broken file may end."""
    plain = {key: value for key, value in options.items() if isinstance(value, str | int)} | {"number_of_frames": 1}
    try:
        about, values = gdcm_worker(os.getpid())([str(header.syntax), plain], frame)
        return np.frombuffer(values, about["dtype"]).reshape(about["shape"]), about["photometric"]
    except (WorkerLost, JobFailed, ValueError):
        raise Refusal(f"its pixels ({header.syntax_name}) cannot be decoded; {CONVERT}, or {WHOLE}") from None


@cache
def gdcm_worker(process: int) -> Worker:
    """The one of this process, whose number is given: forks of it must not share one."""
    return Worker(decode_by_gdcm, _APART)


def decode_by_gdcm(request: tuple[str, dict[str, Any]], frame: bytes) -> tuple[dict[str, Any], bytes]:
    """What `gdcm_worker` does: a compressed frame to its values, by the name of its transfer syntax and its options."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    _quiet_gdcm()
    syntax, options = request
    decoder = get_decoder(UID(syntax))
    values, meta = decoder.as_array(encapsulate([frame]), index=0, decoding_plugin="gdcm", **options)
    about = {"dtype": values.dtype.str, "shape": values.shape, "photometric": meta["photometric_interpretation"]}
    return about, values.tobytes()


def _bits(header: Header, index: int) -> Values:
    """A frame of single bits, which need not begin at a whole byte (PS3.5 8.1.1)."""
    pixels = header.rows * header.columns
    first, last = index * pixels, (index + 1) * pixels
    header.stream.seek(header.offset + first // 8)
    raw = np.frombuffer(header.stream.read(-(-last // 8) - first // 8), np.uint8)
    if not header.syntax.is_little_endian and header.vr == "OW":
        raise Refusal("single bits in big-endian words, which are not read; convert it first (gdcmconv --raw)")
    bits = np.unpackbits(raw, bitorder="little")[first % 8 :][:pixels]
    return bits.reshape(header.rows, header.columns)


@dataclass(frozen=True, slots=True)
class _Coded:
    """What the head of a JPEG, JPEG-LS or JPEG 2000 stream says."""

    width: int
    height: int
    precision: int  # bits a sample
    samples: int


def _frame_bytes(header: Header, index: int) -> bytes:
    """A frame as it is compressed."""
    from pydicom.encaps import get_frame

    header.stream.seek(header.offset)
    offsets = None
    if header.ds.get("ExtendedOffsetTable") and header.ds.get("ExtendedOffsetTableLengths"):
        offsets = (header.ds.ExtendedOffsetTable, header.ds.ExtendedOffsetTableLengths)
    return get_frame(header.stream, index, number_of_frames=header.frames, extended_offsets=offsets)


def _coded(header: Header, data: bytes) -> _Coded | None:
    """The head of a frame's stream, None where it has none (RLE).

    Refused where it does not agree with the header of the file: decoders make room by the one and fill by the other.
    """
    from pydicom import uid

    samples = header.samples
    allocated = natural(header.ds, "BitsAllocated")
    if header.syntax == uid.RLELossless:
        if len(data) > header.rows * header.columns * samples * allocated // 4 + 4096:
            raise Refusal(f"{len(data):,} bytes for {header.columns}x{header.rows} pixels; mend the header")
        return None
    coded = _jpeg_2000(data) if header.syntax in uid.JPEG2000TransferSyntaxes else _jpeg(data)
    if coded is None:
        raise Refusal(f"its compressed pixels do not begin as {header.syntax_name} does; {WHOLE}")
    if b"\xff\xd9" not in data[-64:]:  # the end mark of all three; behind it some writers leave a few bytes
        raise Refusal(f"cut: its compressed pixels have no end; {WHOLE}")
    if (coded.width, coded.height) != (header.columns, header.rows):
        inside = f"the compressed pixels are {coded.width}x{coded.height}"
        raise Refusal(f"{inside}, the header says {header.columns}x{header.rows}; mend the header")
    if coded.samples != samples or not 1 <= coded.precision <= allocated:
        inside = f"the compressed pixels have {coded.samples} samples of {coded.precision} bits"
        raise Refusal(f"{inside}, the header says {samples} in {allocated} bits; mend the header")
    scans, most = scans_of(data), header.limits.decoded_pixels
    if header.syntax not in uid.JPEG2000TransferSyntaxes and scans * header.rows * header.columns > most:
        more = f"{scans:,} scans of {header.columns}x{header.rows} pixels, more than {most:,} pixels"
        raise Refusal(f"{more}; {CONVERT}")
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


def _plugins(header: Header, coded: _Coded | None, available: tuple[str, ...]) -> tuple[str, ...]:
    """Who is to decode, in this order. Pillow where it can: a broken JPEG makes GDCM end the whole program."""
    from pydicom import uid

    if "gdcm" not in available:
        return available
    if header.syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless):
        return ("pyjpegls",)
    _quiet_gdcm()
    if coded is None or "pillow" not in available:
        return ("gdcm",)
    if header.syntax in uid.JPEG2000TransferSyntaxes:  # Pillow cuts colours to 8 bits, and is strict where GDCM is not
        return ("pillow", "gdcm") if coded.precision <= (8 if coded.samples > 1 else 16) else ("gdcm",)
    if coded.precision == 8:
        return ("pillow",)
    raise Refusal(f"{header.syntax_name} of {coded.precision} bits, which is not read; {CONVERT}")


@cache
def _quiet_gdcm() -> None:
    """GDCM writes its complaints to stderr; what it cannot do is told by our own errors."""
    import gdcm

    for off in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
        off()

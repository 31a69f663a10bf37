"""DICOM files as pictures: facts of the header, and pixels through their tables and windows to 8-bit RGB.

Grey values pass the steps of the standard in its order (PS3.3 C.11, PS3.4 N.2): modality LUT or rescale, VOI LUT or
window, and at last the inversion of MONOCHROME1. The `window` of an ImageRef chooses the VOI:

    None, "auto"   the first VOI LUT or usable window of the file; without one, values of at most 8 bits as they are,
                   others from the least to the greatest value of the frame, without padding and NaN
    "1", "2", ...  the n-th of the file; VOI LUTs count before windows
    "lung", ...    a preset of PRESETS, for CT in Hounsfield units only
    "-600/1500"    centre/width in the units of the rescaled values, black at centre - width/2, white at + width/2
    "full"         from the least to the greatest value of the frame

Only the fields of an allow-list are ever parsed, and no error holds a text of a header. Overlays are not drawn.
"""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clinkd.data.images.dicom_geometry import GEOMETRY_FIELDS, read_geometry
from clinkd.data.images.dicom_grey import choose_grey_curve, convert_colours, is_hounsfield, list_vois, make_grey_frame
from clinkd.data.images.dicom_header import (
    CONVERT,
    GREY,
    WHOLE,
    Header,
    find_decoder,
    open_header,
    read_modality,
    read_natural,
    read_term,
)
from clinkd.data.images.dicom_laterality import find_laterality
from clinkd.data.images.grey import Ramp, Refusal, Values
from clinkd.data.images.kind import Facts, File, Geometry, ImageFrame, check_pixels, choose_frame, open_stream
from clinkd.data.images.limits import ON_DISK, FileLimits
from clinkd.data.images.plain import count_scans
from clinkd.data.patients import names_nobody
from clinkd.data.worker import JobFailed, Worker, WorkerLimits, WorkerLost
from clinkd.records import BadInput

if TYPE_CHECKING:
    from pydicom import Dataset

_GDCM_LIMITS = WorkerLimits(60.0, 3 << 30)
_SUFFIXES = (".dcm", ".dicom", ".ima")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"{", b"[", b"%PDF", b"PK")
# value representations of text (PS3.5 6.2)
_TEXTS = frozenset(["AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"])
_VRS = frozenset(b"UL UI CS SH LO US ST DA TM OB".split())  # with which a file may begin


class Dicom:
    """DICOM files with pixels."""

    name = "DICOM"
    formats: tuple[str, ...] = ("DICOM",)
    accept: tuple[str, ...] = (*_SUFFIXES, "application/dicom")
    medical = True
    reportable = True

    def sniff(self, file: File) -> bool:
        """Looks at the first 140 bytes, and at the suffix where these bytes belong to no other known kind."""
        try:
            if isinstance(file, Path) and not file.is_file():
                return False
            with open_stream(file, "") as stream:
                head = stream.read(140)
        except (OSError, BadInput):
            return False
        if head[128:132] == b"DICM" or _begins_without_preamble(head):
            return True
        named = isinstance(file, Path) and file.suffix.lower() in _SUFFIXES
        return bool(head) and named and not head.lstrip().startswith(_PICTURES)

    def describe(
        self, file: File, place: str, frame: int | None = 1, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> Facts:
        with open_header(file, place, limits) as header:
            index = choose_frame(frame, header.frames, file, place) - 1
            choose_grey_curve(window, header, index)
            return _read_facts(header, index)

    def open(
        self, file: File, place: str, frame: int | None, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> ImageFrame:
        """Scales colours of more than 8 bits by BitsStored. Refuses a window that does not fit before it decodes."""
        with open_header(file, place, limits) as header:
            number = choose_frame(frame, header.frames, file, place)
            check_pixels(header.columns, header.rows, place, limits)
            index = number - 1
            facts, voi = _read_facts(header, index), choose_grey_curve(window, header, index)
            stored = _decode_values(header, index)
            if header.photometric not in GREY:
                return ImageFrame(Image.fromarray(convert_colours(stored, header)).convert("RGB"), facts, number)
            values = make_grey_frame(stored, header, index)
            low, high = values.ends
            grey = voi or Ramp(low, high - low)
            picture = Image.fromarray(values.to_8_bit(grey)).convert("RGB")
            return ImageFrame(picture, facts, number, grey.linear, is_hounsfield(header, index), values)

    def read_values(self, file: File, place: str, frames: Sequence[int], limits: FileLimits = ON_DISK) -> NDArray[Any]:
        """Grey values of frames, one behind the other, as `GreyFrame.to_values` has them. The header is read once.

        Raises BadInput like `open`, and for colour.
        """
        with open_header(file, place, limits) as header:
            check_pixels(header.columns, header.rows * len(frames), place, limits)
            if header.photometric not in GREY:
                raise Refusal("its frames are in colour and have no grey values; open it as a picture")
            indices = [choose_frame(frame, header.frames, file, place) - 1 for frame in frames]
            values = np.stack([make_grey_frame(_decode_values(header, n), header, n).to_values() for n in indices])
            return values.astype(np.float32) if values.dtype == np.int32 else values  # of signed frames and unsigned

    def geometry(self, file: File, place: str, limits: FileLimits = ON_DISK) -> Geometry:
        with open_header(file, place, limits, also=GEOMETRY_FIELDS) as header:
            return read_geometry(header, _make_pseudonym(header.ds, "SeriesInstanceUID"))

    def instance_uid(self, path: Path, place: str) -> str:
        with open_header(path, place, also=("SOPInstanceUID",)) as header:
            return str(header.ds.get("SOPInstanceUID") or "")

    def texts(self, path: Path, place: str) -> set[str]:
        import pydicom

        with open_header(path, place):  # checks the sizes
            pass
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _collect_texts(pydicom.dcmread(path, stop_before_pixels=True, force=True))
        except Exception as error:
            raise BadInput(f"{place}: its header cannot be read whole ({type(error).__name__})") from None


def _begins_without_preamble(head: bytes) -> bool:
    """Whether bytes begin like a data set without preamble: with an element of group 2 or 8."""
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


def _read_facts(header: Header, index: int) -> Facts:
    ds = header.ds
    return Facts(
        header.columns,
        header.rows,
        header.frames,
        read_modality(ds),
        _find_patient(ds),
        _make_pseudonym(ds, "StudyInstanceUID") or _make_pseudonym(ds, "SeriesInstanceUID"),
        read_term(ds, "BurnedInAnnotation", ("YES", "NO")),
        tuple(str(v) for v in list_vois(header, index)) if header.photometric in GREY else (),
        laterality=find_laterality(header, index),
    )


def _find_patient(ds: Dataset) -> str:
    """The pseudonym of the patient, "" where the ID is absent, zero or a word for nobody, such as ANONYMOUS."""
    name = str(ds.get("PatientID") or "").strip()
    return "" if names_nobody(name) or not name.strip("0") else _make_pseudonym(ds, "IssuerOfPatientID", "PatientID")


def _make_pseudonym(ds: Dataset, *keywords: str) -> str:
    *front, last = (str(ds.get(k) or "").strip() for k in keywords)
    return hashlib.blake2b("\0".join((*front, last)).encode(), digest_size=8).hexdigest() if last else ""


def _collect_texts(ds: Dataset) -> set[str]:
    texts: set[str] = set()
    for element in ds.iterall():
        if element.VR in _TEXTS and element.value:
            values = element.value if element.VM > 1 else [element.value]
            for value in values:
                texts |= {str(value).strip(), *(str(value).split("=") if element.VR == "PN" else ())}
    return texts


# ---- pixels ---------------------------------------------------------------------------------------------------------


def _decode_values(header: Header, index: int) -> Values:
    """The stored values of one frame: (rows, columns), or (rows, columns, 3) as RGB."""
    from pydicom.pixels.utils import as_pixel_options

    decoder = find_decoder(header)
    about = {"pixel_keyword": header.keyword, "pixel_vr": header.vr, "number_of_frames": header.frames}
    options = as_pixel_options(header.ds, **about)
    values: Values
    plugins: tuple[str, ...] = ("",)
    if header.syntax.is_encapsulated:
        frame = _read_frame_bytes(header, index, options.get("extended_offsets"))
        plugins = _choose_plugins(header, _check_stream_head(header, frame), decoder.available_plugins)
    elif header.ds.get("BitsAllocated") == 1:
        return _read_bits(header, index)
    for plugin in plugins:
        if plugin == "gdcm" and header.limits.isolate:
            values, photometric = _decode_in_worker(header, frame, options)
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


def _decode_in_worker(header: Header, frame: bytes, options: dict[str, Any]) -> tuple[Values, str]:
    """Decode by GDCM in another process, which a broken file may end. Returns the values and their photometric."""
    plain = {key: value for key, value in options.items() if isinstance(value, str | int)} | {"number_of_frames": 1}
    try:
        about, [values] = gdcm_worker(os.getpid())([str(header.syntax), plain], frame)
        return np.frombuffer(values, about["dtype"]).reshape(about["shape"]), about["photometric"]
    except (WorkerLost, JobFailed, ValueError):
        raise Refusal(f"its pixels ({header.syntax_name}) cannot be decoded; {CONVERT}, or {WHOLE}") from None


@cache
def gdcm_worker(process: int) -> Worker:
    """The worker of this process. The number of the process is the key, as forks must not share a worker."""
    return Worker(decode_by_gdcm, _GDCM_LIMITS)


def decode_by_gdcm(request: tuple[str, dict[str, Any]], frame: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The job of `gdcm_worker`: decode a compressed frame, given the name of its transfer syntax and its options."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    _quiet_gdcm()
    syntax, options = request
    decoder = get_decoder(UID(syntax))
    values, meta = decoder.as_array(encapsulate([frame]), index=0, decoding_plugin="gdcm", **options)
    about = {"dtype": values.dtype.str, "shape": values.shape, "photometric": meta["photometric_interpretation"]}
    return about, [values.tobytes()]


def _read_bits(header: Header, index: int) -> Values:
    """A frame of single bits; it may begin inside a byte (PS3.5 8.1.1)."""
    pixels = header.rows * header.columns
    first, last = index * pixels, (index + 1) * pixels
    header.stream.seek(header.offset + first // 8)
    raw = np.frombuffer(header.stream.read(-(-last // 8) - first // 8), np.uint8)
    if not header.syntax.is_little_endian and header.vr == "OW":
        raise Refusal("single bits in big-endian words, which are not read; convert it first (gdcmconv --raw)")
    bits = np.unpackbits(raw, bitorder="little")[first % 8 :][:pixels]
    return bits.reshape(header.rows, header.columns)


class _StreamHead(NamedTuple):
    """Facts of the head of a JPEG, JPEG-LS or JPEG 2000 stream."""

    width: int
    height: int
    precision: int  # bits a sample
    samples: int


def _read_frame_bytes(header: Header, index: int, offsets: tuple[bytes, bytes] | None) -> bytes:
    """The compressed bytes of a frame."""
    from pydicom.encaps import get_frame

    header.stream.seek(header.offset)
    usable = offsets if offsets and all(offsets) else None
    return get_frame(header.stream, index, number_of_frames=header.frames, extended_offsets=usable)


def _check_stream_head(header: Header, data: bytes) -> _StreamHead | None:
    """The head of the stream of a frame, None for a stream without a head (RLE).

    Raises Refusal where it disagrees with the header of the file: decoders allocate by the one and write by the other.
    """
    from pydicom import uid

    samples = header.samples
    allocated = read_natural(header.ds, "BitsAllocated")
    if header.syntax == uid.RLELossless:
        if len(data) > header.rows * header.columns * samples * allocated // 4 + 4096:
            raise Refusal(f"{len(data):,} bytes for {header.columns}x{header.rows} pixels; mend the header")
        return None
    head = _read_jpeg_2000_head(data) if header.syntax in uid.JPEG2000TransferSyntaxes else _read_jpeg_head(data)
    if head is None:
        raise Refusal(f"its compressed pixels do not begin as {header.syntax_name} does; {WHOLE}")
    if b"\xff\xd9" not in data[-64:]:  # all three end so; some writers leave a few bytes behind it
        raise Refusal(f"cut: its compressed pixels have no end; {WHOLE}")
    if (head.width, head.height) != (header.columns, header.rows):
        inside = f"the compressed pixels are {head.width}x{head.height}"
        raise Refusal(f"{inside}, the header says {header.columns}x{header.rows}; mend the header")
    if head.samples != samples or not 1 <= head.precision <= allocated:
        inside = f"the compressed pixels have {head.samples} samples of {head.precision} bits"
        raise Refusal(f"{inside}, the header says {samples} in {allocated} bits; mend the header")
    scans, most = count_scans(data), header.limits.decoded_pixels
    if header.syntax not in uid.JPEG2000TransferSyntaxes and scans * header.rows * header.columns > most:
        more = f"{scans:,} scans of {header.columns}x{header.rows} pixels, more than {most:,} pixels"
        raise Refusal(f"{more}; {CONVERT}")
    return head


def _read_jpeg_2000_head(data: bytes) -> _StreamHead | None:
    """The SIZ segment (ISO/IEC 15444-1 A.5.1)."""
    start = data[:4096].find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 43:
        return None
    x1, y1, x0, y0 = struct.unpack(">4I", data[start + 8 : start + 24])
    (samples,) = struct.unpack(">H", data[start + 40 : start + 42])
    return _StreamHead(x1 - x0, y1 - y0, (data[start + 42] & 0x7F) + 1, samples)


def _read_jpeg_head(data: bytes) -> _StreamHead | None:
    """The frame header, SOF (ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2)."""
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            precision, height, width, samples = struct.unpack(">BHHB", data[position + 4 : position + 10])
            return _StreamHead(width, height, precision, samples)
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _choose_plugins(header: Header, head: _StreamHead | None, available: tuple[str, ...]) -> tuple[str, ...]:
    """The decoders to try, in this order. Pillow where it can: GDCM ends the whole program on a broken JPEG."""
    from pydicom import uid

    if "gdcm" not in available:
        return available
    if header.syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless):
        return ("pyjpegls",)
    _quiet_gdcm()
    if head is None or "pillow" not in available:
        return ("gdcm",)
    if header.syntax in uid.JPEG2000TransferSyntaxes:  # Pillow cuts colours to 8 bits, and is stricter than GDCM
        return ("pillow", "gdcm") if head.precision <= (8 if head.samples > 1 else 16) else ("gdcm",)
    if head.precision == 8:
        return ("pillow",)
    raise Refusal(f"{header.syntax_name} of {head.precision} bits, which is not read; {CONVERT}")


@cache
def _quiet_gdcm() -> None:
    """Keep the complaints of GDCM from stderr: our own errors say what it cannot do."""
    import gdcm

    for off in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
        off()

"""Files that others send: as `open_image` shows them, within limits, and with errors that tell nothing of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file

from clinkd.data.images import kind_of, open_image
from clinkd.data.images.dicom import Dicom, gdcm_worker
from clinkd.data.images.kind import Facts, ImageFrame
from clinkd.data.images.limits import UPLOADS, FileLimits
from clinkd.data.images.upload import decode_frame, decode_values
from clinkd.records import BadInput, ImageRef, Modality
from mutations import mutants, seeds, survivors

is_dicom, describe = Dicom().sniff, Dicom().describe

SHIPPED = Path(pydicom.__file__).parent / "data"


def shipped() -> list[Path]:
    files = sorted(p for p in SHIPPED.rglob("*") if p.is_file() and "TINY_ALPHA" not in p.parts)
    return [p for p in files if is_dicom(p)]


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, form, **options)
    return made.getvalue()


def film(form: str, frames: int) -> bytes:
    drawn = [Image.new("L", (8, 6), 255 * k // max(frames - 1, 1)) for k in range(frames)]
    return saved(drawn[0], form, save_all=True, append_images=drawn[1:])


def windowed(shown: ImageFrame) -> np.ndarray[Any, Any]:
    """What a page draws of the values it was sent."""
    assert shown.grey is not None and shown.window is not None
    centre, width = shown.window
    values = shown.grey.to_values().astype(np.float64)
    drawn = np.clip((values - (centre - width / 2)) / width, 0, 1)
    return np.round(255 * (1 - drawn if shown.grey.inverted else drawn))


def test_every_shipped_dicom_is_shown_as_it_is_opened() -> None:
    compared, linear = 0, 0
    here = dataclasses.replace(UPLOADS, isolate=False)
    for path in shipped():
        content = path.read_bytes()
        try:
            facts = describe(path, "x")
            frame = facts.frames  # the last
            picture = open_image(path.parent, f"{path.name}#{frame}")
        except BadInput:
            with pytest.raises(BadInput):
                decode_frame(content)
            continue
        try:
            shown = decode_frame(content, frame, None, here)
        except BadInput as refused:
            assert "deflated" in str(refused), path
            continue
        assert (np.asarray(shown.picture) == np.asarray(picture)).all() and shown.picture.mode == "RGB", path
        assert (shown.picture.size, shown.facts.frames, shown.number) == ((facts.width, facts.height), frame, frame)
        assert shown.facts == facts and kind_of(path).reportable
        compared += 1
        if shown.grey is None:
            assert shown.window is None
            continue
        values = shown.grey.to_values()
        assert values.dtype in (np.int16, np.uint16, np.float32) and values.shape == (facts.height, facts.width)
        assert np.array_equal(decode_values(content, [frame], here)[0], values)
        low, high = shown.grey.ends
        assert low <= high
        for window in ("full", "1", "40/400", "lung"):
            try:
                again = decode_frame(content, frame, window, here)
            except BadInput:
                assert window in ("1", "lung") and not (shown.hounsfield and window == "lung")
                continue
            if again.window is not None:
                assert np.abs(windowed(again) - np.asarray(again.picture)[..., 0]).max() <= 1, (path, window)
                linear += 1
    assert compared >= 95 and linear >= 150


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_presets_fit_hounsfield_units_only(name: str) -> None:
    content = Path(str(get_testdata_file(name, download=False))).read_bytes()
    shown = decode_frame(content)
    assert shown.hounsfield is (name == "CT_small.dcm") is (shown.facts.modality is Modality.CT)
    if shown.hounsfield:
        assert decode_frame(content, window="lung").window == (-600, 1500)
    else:
        with pytest.raises(BadInput, match="is for CT in Hounsfield units"):
            decode_frame(content, window="lung")


@pytest.mark.parametrize("name", ["liver_1frame.dcm", "examples_overlay.dcm", "693_J2KI.dcm", "examples_palette.dcm"])
def test_values_are_sent_where_asked_for(name: str) -> None:
    content = Path(str(get_testdata_file(name, download=False))).read_bytes()
    assert (decode_frame(content).grey is None) == (name == "examples_palette.dcm")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_pictures_are_shown_as_they_are_opened(tmp_path: Path, form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if form in ("PNG", "JPEG", "TIFF", "WEBP") else {}
    content = saved(Image.fromarray(pixels), form, **options)
    (tmp_path / "a").write_bytes(content)
    shown = decode_frame(content)
    assert (np.asarray(shown.picture) == np.asarray(open_image(tmp_path, "a"))).all()
    assert shown.picture.size == ((20, 30) if options else (30, 20))
    assert (shown.number, shown.facts, shown.window, shown.grey) == (1, Facts(*shown.picture.size, 1), None, None)
    assert not kind_of(io.BytesIO(content)).reportable


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_frames_count_from_one_and_the_first_is_shown(tmp_path: Path, form: str) -> None:
    content = film(form, 3)
    (tmp_path / "a").write_bytes(content)
    assert decode_frame(content).number == 1 and decode_frame(content).facts.frames == 3
    for frame in (1, 2, 3):
        wanted = open_image(tmp_path, f"a#{frame}")
        assert (np.asarray(decode_frame(content, frame).picture) == np.asarray(wanted)).all()
    for frame in (0, 4, -1):
        with pytest.raises(BadInput, match=f"frame {frame} of 3"):
            decode_frame(content, frame)
    with pytest.raises(BadInput, match="more than 2 frames"):
        decode_frame(content, limits=dataclasses.replace(UPLOADS, frames=2))


@pytest.mark.parametrize(
    "window", ["nan", "nan/400", "40/inf", "40/-400", "40/0", "1e3/4", "9" * 400, "1/" + "9" * 38 + "9" * 400, "0", "7"]
)
@pytest.mark.parametrize("name", ["CT_small.dcm", "SC_rgb_small_odd.dcm", "picture"])
def test_windows_that_are_none_are_refused(window: str, name: str) -> None:
    picture = saved(Image.new("L", (4, 4)), "PNG")
    content = picture if name == "picture" else Path(str(get_testdata_file(name, download=False))).read_bytes()
    with pytest.raises(BadInput, match="window") as found:
        decode_frame(content, window=window)
    assert len(str(found.value)) < 300 and "\n" not in str(found.value)


def test_a_window_must_be_finite(tmp_path: Path) -> None:
    path = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    with pytest.raises(BadInput, match="is not known"):
        open_image(path.parent, ImageRef(path.name, window="1/" + "9" * 400))


def in_grey(pixels: np.ndarray[Any, Any], **elements: Any) -> bytes:
    """A DICOM of [rows, columns] numbers: MONOCHROME2 unless told otherwise."""
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = uid.CTImageStorage, "1.2.3.4", "CT"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    if pixels.dtype.kind == "f":
        ds.FloatPixelData = pixels.tobytes()
    else:
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = ds.BitsAllocated, ds.BitsAllocated - 1, 1
        ds.PixelData = pixels.tobytes()
        ds["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made = io.BytesIO()
    pydicom.dcmwrite(made, ds, enforce_file_format=True)
    return made.getvalue()


RAMP = np.arange(-1100, 1100, dtype=np.int16).reshape(44, 50)
TABLE = pydicom.Dataset()
TABLE.LUTDescriptor, TABLE.LUTData = [4, 0, 8], np.array([0, 255, 10, 20], np.uint16).tobytes()
TABLE["LUTDescriptor"].VR, TABLE["LUTData"].VR = "US", "OW"


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("elements", "window"),
    [
        ({}, (-0.5, 2199)),  # least to greatest
        ({"WindowCenter": 40, "WindowWidth": 400}, (39.5, 399)),  # PS3.3 C.11.2.1.2.1
        ({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"}, (40, 400)),
        ({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"}, None),
        ({"WindowCenter": 40, "WindowWidth": 1}, None),  # a step
        ({"VOILUTSequence": [TABLE]}, None),
        ({"PixelPaddingValue": -1100}, (0, 2198)),
        ({"RescaleSlope": 2, "RescaleIntercept": -24}, (-25, 4398)),
    ],
)
def test_the_window_is_the_one_that_is_shown(
    photometric: str, elements: dict[str, Any], window: tuple[float, float] | None
) -> None:
    shown = decode_frame(in_grey(RAMP, PhotometricInterpretation=photometric, **elements))
    assert shown.window == window and shown.grey is not None
    assert shown.grey.inverted is (photometric == "MONOCHROME1")
    rescaled = RAMP.astype(float) * elements.get("RescaleSlope", 1) + elements.get("RescaleIntercept", 0)
    assert (shown.grey.to_values() == rescaled).all()
    if window is not None:
        assert np.abs(windowed(shown) - np.asarray(shown.picture)[..., 0]).max() <= 1


def test_values_that_are_no_numbers_are_sent_as_numbers() -> None:
    odd = np.array([[0, 1, 2, np.nan, np.inf, -np.inf, 3, 4]], np.float32)
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        shown = decode_frame(in_grey(odd, PhotometricInterpretation=photometric))
        assert shown.grey is not None and np.isfinite(shown.grey.to_values()).all()
        assert (shown.grey.ends, shown.window) == ((0, 4), (2, 4))
        assert (windowed(shown) == np.asarray(shown.picture)[..., 0]).all()


def test_a_frame_of_one_value_has_no_window() -> None:
    shown = decode_frame(in_grey(np.full((4, 4), 7, np.int16)))
    assert shown.window is None and shown.grey is not None and shown.grey.ends == (7, 7)


# ---- limits ---------------------------------------------------------------------------------------------------------


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    long = vr in (b"OB", b"OW", b"SQ", b"UN", b"UT")
    length = struct.pack("<2xI", len(value)) if long else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + vr + length + value


def part_10(syntax: str, body: bytes) -> bytes:
    name = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = element(2, 0x10, b"UI", name)
    return b"\0" * 128 + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + body


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compress(b"\0" * (width + 1) * min(height, 10))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deflated(body: bytes) -> bytes:
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return part_10(uid.DeflatedExplicitVRLittleEndian, engine.compress(body) + engine.flush())


def bombs() -> dict[str, tuple[bytes, str]]:
    """Small files that would take much memory or time, and what is said of each."""
    zeros = zlib.compress(b"\0" * (100 << 20), 9)
    many = element(8, 0x60, b"CS", b"CT") + element(9, 1, b"UN", b"") * 500_000
    nested = b"\xfe\xff\0\xe0\xff\xff\xff\xff" + element(9, 1, b"UN", b"") * 500_000
    control = chunk(b"acTL", struct.pack(">II", 1 << 30, 0))
    return {
        "deflated": (deflated(b"\0" * (100 << 20)), "deflated"),
        "elements": (part_10(uid.ExplicitVRLittleEndian, many), "header of more than 4,194,304 bytes"),
        "nested": (
            part_10(uid.ExplicitVRLittleEndian, b"\x40\0\x75\x02SQ\0\0\xff\xff\xff\xff" + nested),
            "header of more than 4,194,304 bytes",
        ),
        "text": (png(4, 4, chunk(b"zTXt", b"a\0\0" + zeros)), "image"),
        "international": (png(4, 4, chunk(b"iTXt", b"a\0\1\0\0\0" + zeros)), "image"),
        "profile": (png(4, 4, chunk(b"iCCP", b"a\0\0" + zeros)), "image"),
        "pixels": (png(60_000, 60_000), "shrink it first"),
        "wide": (png(9_000, 9_000), "9000x9000 pixels, more than 40,000,000"),
        "frames": (png(4, 4, control), "more than 4,096 frames"),
    }


BOMBS = bombs()


@pytest.mark.parametrize("name", [name for name in BOMBS if name not in ("elements", "nested")])
def test_bombs_are_refused_before_they_are_decoded(name: str) -> None:
    content, said = BOMBS[name]
    tracemalloc.start()
    try:
        decode_frame(content)
    except BadInput as error:
        assert said in str(error)
    else:
        assert name in ("text", "international", "profile")  # what is unpacked of these is bounded, too
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 << 20


def test_directories_of_a_tiff_are_counted_up_to_the_limit() -> None:
    page = film("TIFF", 1)
    start = struct.unpack("<I", page[4:8])[0]
    size = 2 + 12 * struct.unpack("<H", page[start : start + 2])[0]
    tiff = page
    for k in range(100):  # directories that share one picture
        tiff += page[start : start + size] + struct.pack("<I", len(page) + (size + 4) * (k + 1) if k < 99 else 0)
    tiff = tiff[: start + size] + struct.pack("<I", len(page)) + tiff[start + size + 4 :]
    assert decode_frame(tiff).facts.frames == 101
    with pytest.raises(BadInput, match="more than 100 frames"):
        decode_frame(tiff, limits=dataclasses.replace(UPLOADS, frames=100))


@pytest.mark.parametrize("name", ["elements", "nested"])
def test_a_header_is_read_up_to_its_limit(name: str) -> None:
    content, said = BOMBS[name]
    with pytest.raises(BadInput, match=said):
        decode_frame(content)


def test_the_cap_of_pixels_comes_before_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    small = FileLimits(pixels=599)
    ct = Path(str(get_testdata_file("CT_small.dcm", download=False))).read_bytes()
    contents = [saved(Image.new("L", (30, 20)), form) for form in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")]
    monkeypatch.setattr("clinkd.data.images.dicom._decode_values", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    for content in (ct, *contents):
        with pytest.raises(BadInput, match="more than 599 in all"):
            decode_frame(content, limits=small)


def test_what_a_decoder_goes_over_is_limited() -> None:
    """A scan of a JPEG costs a hundred bytes, and as much time as the picture."""
    once = dataclasses.replace(UPLOADS, decoded_pixels=30 * 20 * 12)
    scans = saved(Image.new("L", (30, 20)), "JPEG", progressive=True)
    last = scans[scans.rindex(b"\xff\xda") : -2]
    assert decode_frame(scans, limits=once).facts.frames == 1
    many = scans[:-2] + last * 12 + scans[-2:]
    assert decode_frame(many).facts.frames == 1
    with pytest.raises(BadInput, match="18 scans of 30x20 pixels, more than 7,200 pixels"):
        decode_frame(many, limits=once)
    for form in ("GIF", "WEBP", "PNG"):
        strip = film(form, 5)
        few = dataclasses.replace(UPLOADS, decoded_pixels=8 * 6 * 3)
        assert decode_frame(strip, 3, limits=few).number == 3
        with pytest.raises(BadInput, match="more than 144 pixels to decode up to frame 4"):
            decode_frame(strip, 4, limits=few)


@pytest.mark.parametrize("content", [b"", b"\0", b"no image", b"%PDF-1.7", b"<svg/>", b"\0" * 400, b"DICM" * 40])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(BadInput, match="the file: "):
        decode_frame(content)


# ---- damage ---------------------------------------------------------------------------------------------------------


def judged(content: bytes) -> str:
    """ "" where a file is shown, or refused as it should be; else what is wrong."""
    try:
        shown = decode_frame(content)
        for again in [shown, *([decode_frame(content, shown.facts.frames, "full")] if shown.facts.frames > 1 else [])]:
            if again.picture.mode != "RGB" or not 0 < again.picture.width * again.picture.height <= UPLOADS.pixels:
                return "not a picture"
            if again.grey is not None and not np.isfinite(again.grey.to_values()).all():
                return "values that JSON cannot say"
    except BadInput as error:
        said = str(error)
        marks = ("\n", "Traceback", "/", "0x7f", "<_io", "site-packages", "tmp", "CompressedSamples", "Errno")
        plain = said.replace("/width", "").replace("-600/1500", "").replace("pixels/", "")
        return f"tells {said!r}" if any(m in plain for m in marks) or len(said) > 400 else ""
    except BaseException as error:
        return f"raises {type(error).__name__}: {error}"
    return ""


def wrong(count: int, seed: int, folder: Path) -> list[str]:
    said = survivors("test_data_upload:judged", count, seed, folder, 30 + count)
    assert len(said) == count
    return [line for line in said if not line.endswith(": ")]


def test_damage_is_shown_or_refused(tmp_path: Path) -> None:
    assert wrong(100, 0, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_much_damage_is_shown_or_refused(tmp_path: Path, seed: int) -> None:
    assert wrong(500, seed, tmp_path) == []


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm.dcm", "JPEG2000.dcm"])
def test_a_decoder_that_may_end_its_process_has_one_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(str(get_testdata_file(name, download=False)))
    assert (np.asarray(decode_frame(path.read_bytes()).picture) == np.asarray(open_image(path.parent, path.name))).all()
    gdcm_worker(os.getpid()).close()
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    if name == "JPEG2000.dcm":  # by Pillow
        assert decode_frame(path.read_bytes()).facts.frames == 1
    else:
        with pytest.raises(BadInput, match="cannot be decoded; decompress it first"):
            decode_frame(path.read_bytes())


def test_what_ends_gdcm_is_refused() -> None:
    mutant = next(itertools.islice(mutants(711, 28), 710, None))
    assert mutant.name.startswith("SC_rgb_jpeg_gdcm.dcm")
    with pytest.raises(BadInput, match="cannot be decoded; decompress it first"):
        decode_frame(mutant.content)


def test_mutants_are_the_same_each_time_and_many_still_open() -> None:
    first, second = list(mutants(60, 5)), list(mutants(60, 5))
    assert first == second and len({m.content for m in first}) == 60
    opened = 0
    for content in seeds().values():
        with contextlib.suppress(BadInput):
            opened += decode_frame(content).facts.frames > 0
    assert opened >= len(seeds()) - 3  # but for the deflated one, and what has no pixels


def test_scans_of_a_jpeg_in_a_dicom_are_limited() -> None:
    ds = pydicom.dcmread(str(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm", download=False)))
    stream = pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1)
    end = stream.rindex(b"\xff\xd9")
    ds.PixelData = pydicom.encaps.encapsulate(
        [stream[:end] + stream[stream.rindex(b"\xff\xda") : end] * 9 + stream[end:]]
    )
    made = io.BytesIO()
    ds.save_as(made)
    with pytest.raises(BadInput, match="10 scans of 100x100 pixels, more than 99,999 pixels"):
        decode_frame(made.getvalue(), limits=dataclasses.replace(UPLOADS, decoded_pixels=99_999))

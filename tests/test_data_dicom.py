"""DICOM as pictures: every file pydicom ships, the formulae of the standard by hand, one clear line for the rest."""

from __future__ import annotations

import gc
import random
import struct
import tracemalloc
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.pixels.processing import _expand_segmented_lut  # type: ignore[attr-defined]

from clinkd.data.images import PRESETS, Facts, open_image, read_image_size
from clinkd.data.images.dicom import Dicom
from clinkd.data.images.limits import FileLimits
from clinkd.data.readers.dicom_folder import NO_QUESTION, list_sheet_lines, read
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, ImageRef, Modality

SHIPPED = Path(pydicom.__file__).parent / "data"
CANARY = "Zqxw^Kanarienvogel"
CT = "1.2.840.10008.5.1.4.1.1.2"
DICOM = Dicom()
is_dicom, describe = DICOM.sniff, DICOM.describe

# What of pydicom's files is refused, and why; all others open.
NO_PIXELS = "a DICOM without pixels"
REFUSED = {
    "JPEG-lossy.dcm": "12 bits, which is not read",
    "JPGExtended.dcm": "12 bits, which is not read",
    "JPEG2000-embedded-sequence-delimiter.dcm": "the compressed pixels are 3722445056x1024, the header says 256x1024",
    "MR_truncated.dcm": "cut: 64x64 pixels need 8,192 bytes, and 8,130 are there",
    "badVR.dcm": "its NumberOfFrames is missing or no number",
    "meta_missing_tsyntax.dcm": "its Rows is missing",
    "nested_priv_SQ.dcm": "its Rows is missing",
    "no_meta.dcm": "cut, or no DICOM",
    "rtplan_truncated.dcm": "cut, or no DICOM",
    **dict.fromkeys(("chrJapMulti.dcm", "chrJapMultiExplicitIR6.dcm", "chrKoreanMulti.dcm"), NO_PIXELS),
    **dict.fromkeys(("chrSQEncoding.dcm", "chrSQEncoding1.dcm", "priv_SQ.dcm", "UN_sequence.dcm"), NO_PIXELS),
    **dict.fromkeys(("ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "empty_charset_LEI.dcm"), NO_PIXELS),
    **dict.fromkeys(("no_meta_group_length.dcm", "reportsi.dcm", "rtplan.dcm", "rtstruct.dcm"), NO_PIXELS),
    **dict.fromkeys(("reportsi_with_empty_number_tags.dcm", "test-SR.dcm", "waveform_ecg.dcm"), NO_PIXELS),
    **dict.fromkeys(("fall.dcm", "hotiron.dcm", "hotmetalblue.dcm", "pet.dcm", "pet20step.dcm"), "Color Palette"),
    **dict.fromkeys(("spring.dcm", "summer.dcm", "winter.dcm"), "Color Palette"),
    **dict.fromkeys(("DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-empty.dcm", "DICOMDIR-implicit"), "Directory"),
    **dict.fromkeys(("DICOMDIR-nooffset", "DICOMDIR-nopatient", "DICOMDIR-reordered"), "Directory"),
}


def shipped() -> list[Path]:
    """Files that pydicom ships; pictures of its TINY_ALPHA set have no pixels, so they are one case, not fifty."""
    files = sorted(p for p in SHIPPED.rglob("*") if p.is_file() and "TINY_ALPHA" not in p.parts)
    return [p for p in files if "__pycache__" not in p.parts]


def open_dicom(path: Path, place: str, frame: int | None, window: str | None, limits: FileLimits) -> Image.Image:
    return DICOM.open(path, place, frame, window, limits).picture


def shown(path: Path, window: str | None = None, frame: int | None = None) -> NDArray[np.uint8]:
    return np.asarray(open_dicom(path, path.name, frame, window, FileLimits(10_000_000)))


# ---- the files that pydicom ships -----------------------------------------------------------------------------------


def test_every_shipped_file_opens_or_says_why_not(capfd: pytest.CaptureFixture[str]) -> None:
    opened, refused, others = [], {}, []
    gc.collect()  # what other tests left open is told now, not as noise of these files
    with warnings.catch_warnings(record=True) as noise:
        warnings.simplefilter("always")
        for path in shipped():
            if not is_dicom(path):
                others.append(path.suffix)
                continue
            try:
                facts = describe(path, path.name)
                picture = open_dicom(path, path.name, facts.frames, None, FileLimits(10_000_000))
            except BadInput as error:
                refused[path.name] = str(error)
            else:
                assert picture.mode == "RGB" and picture.size == (facts.width, facts.height), path
                assert picture.getextrema() != ((0, 0),) * 3, path
                opened.append(path.name)
    out, err = capfd.readouterr()
    assert (out, err, noise) == ("", "", [])
    assert set(refused) == set(REFUSED)
    for name, reason in REFUSED.items():
        assert reason in refused[name] and refused[name].startswith(f"{name}: ") and "\n" not in refused[name]
    assert len(opened) == 100 and not {".dcm", ""} & {*others} - {""}
    print(f"{len(opened)} opened, {len(refused)} refused: {Counter(REFUSED.values())}")


def test_the_empty_set_has_no_pixels() -> None:
    tiny = sorted((SHIPPED / "test_files/dicomdirtests/TINY_ALPHA").rglob("IM*"))
    assert len(tiny) == 50
    for path in tiny:
        with pytest.raises(BadInput, match="without pixels"):
            describe(path, "x")


def by_pydicom(path: Path, frame: int) -> NDArray[np.uint8] | None:
    """A grey frame by pydicom's own functions and the range they map to; None where there is no VOI."""
    ds = pydicom.dcmread(path, force=True)
    if "WindowCenter" not in ds and "VOILUTSequence" not in ds:
        return None
    stored = pixel_array(path, index=frame)
    values = apply_voi_lut(apply_modality_lut(stored, ds), ds)
    low, high = (-(2 ** (ds.BitsStored - 1)), 2 ** (ds.BitsStored - 1) - 1) if ds.PixelRepresentation else (0, 0)
    high = high or 2**ds.BitsStored - 1
    slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
    low, high = low * slope + intercept, high * slope + intercept
    share = (values - low) / (high - low)
    share = 1 - share if ds.PhotometricInterpretation == "MONOCHROME1" else share
    return (share * 255).round().astype(np.uint8)


def test_grey_is_what_pydicom_makes_of_it() -> None:
    compared = 0
    for path in shipped():
        if not is_dicom(path) or path.name in REFUSED:
            continue
        if pydicom.dcmread(path, force=True, stop_before_pixels=True).SamplesPerPixel != 1:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = by_pydicom(path, 0)
        if theirs is not None:
            ours = shown(path, frame=1)[..., 0]
            assert np.abs(ours.astype(int) - theirs).max() <= 1, path
            compared += 1
    assert compared >= 40


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("SC_rgb_small_odd.dcm", 0),
        ("SC_rgb_small_odd_big_endian.dcm", 0),
        ("SC_rgb_rle.dcm", 0),
        ("SC_rgb_jpeg_gdcm.dcm", 0),  # lossless
        ("SC_rgb_jls_lossy_sample.dcm", 0),
        ("GDCMJ2K_TextGBR.dcm", 0),
        ("examples_jpeg2k.dcm", 1),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", 4),  # lossy: two JPEG libraries
        ("SC_rgb_jpeg_lossy_gdcm.dcm", 4),
        ("SC_ybr_full_422_uncompressed.dcm", 2),
        ("examples_ybr_color.dcm", 2),
    ],
)
def test_colour_is_what_gdcm_makes_of_it(name: str, off: int) -> None:
    gdcm = pytest.importorskip("gdcm")
    path = Path(str(get_testdata_file(name, download=False)))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    turn = gdcm.ImageChangePhotometricInterpretation()
    flat = gdcm.ImageChangePlanarConfiguration()
    flat.SetInput(reader.GetImage())
    flat.SetPlanarConfiguration(0)
    flat.Change()
    image = flat.GetOutput()
    facts = describe(path, name)
    raw = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), np.uint8)
    theirs = raw.reshape(facts.frames, facts.height, facts.width, 3)[0].astype(float)
    if "YBR_FULL" in str(image.GetPhotometricInterpretation()):
        y, b, r = np.moveaxis(theirs, -1, 0)  # PS3.3 C.7.6.3.1.2, turned round
        theirs = np.stack(
            [y + 1.402 * (r - 128), y - 0.344136 * (b - 128) - 0.714136 * (r - 128), y + 1.772 * (b - 128)], -1
        )
    del turn
    assert np.abs(shown(path, frame=1) - np.clip(theirs, 0, 255)).max() <= off + 1


def test_one_picture_in_many_transfer_syntaxes() -> None:
    names = ["MR_small_RLE", "MR_small_bigendian", "MR_small_expb", "MR_small_implicit", "MR_small_jp2klossless"]
    first = shown(Path(str(get_testdata_file("MR_small.dcm", download=False))))
    for name in [*names, "MR_small_jpeg_ls_lossless", "MR_small_padded"]:
        assert (shown(Path(str(get_testdata_file(f"{name}.dcm", download=False)))) == first).all(), name
    doses = [Path(str(get_testdata_file(f"rtdose{k}.dcm", download=False))) for k in ("", "_rle", "_expb")]
    for frame in (1, 8, 15):
        pictures = [shown(d, frame=frame) for d in doses]
        assert (pictures[0] == pictures[1]).all() and (pictures[0] == pictures[2]).all()


# ---- written here ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _wrong_values_are_meant() -> Iterator[None]:
    """pydicom warns of wrong values that the tests write on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write(path: Path, pixels: NDArray[Any], syntax: str = uid.ExplicitVRLittleEndian, **elements: Any) -> Path:
    """A DICOM of (rows, columns), or (rows, columns, 3) where `frames` is 1, else with a leading axis of frames."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID = CT, "1.2.3.4", "1.2.3"
    ds.PatientName, ds.PatientID, ds.PatientComments, ds.Modality = CANARY, f"ID-{CANARY}", CANARY, "CT"
    frames = int(elements.get("NumberOfFrames", 1))
    shape = pixels.shape[1:] if frames > 1 and pixels.ndim > 2 else pixels.shape
    ds.Rows, ds.Columns = shape[:2]
    ds.SamplesPerPixel = 3 if len(shape) == 3 else 1
    ds.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
    if len(shape) == 3:
        ds.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    ds.BitsAllocated = bits
    if pixels.dtype.kind == "f":
        setattr(ds, "FloatPixelData" if bits == 32 else "DoubleFloatPixelData", pixels.tobytes())
    else:
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(pixels.dtype.kind == "i")
        ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


def item(**elements: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def lut(first: int, bits: int, entries: list[int], vr: str = "OW", count: int | None = None) -> Dataset:
    """An item of a LUT sequence; as VR US, the entries are numbers in the file, too."""
    descriptor = [count or len(entries), first, bits]
    data = np.array(entries, np.uint16).tobytes()
    ds = item(LUTDescriptor=descriptor, LUTData=data if vr == "OW" else entries)
    ds["LUTData"].VR = vr
    ds["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    return ds


RAMP = np.arange(-1100, 1100, 1, dtype=np.int16).reshape(44, 50)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (-600, 1500), (0.5, 1), (100, 2), (300.25, 77.5)])
def test_windows_follow_the_standard(tmp_path: Path, function: str | None, centre: float, width: float) -> None:
    extra = {"VOILUTFunction": function} if function else {}
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -24}
    path = write(tmp_path / "a.dcm", RAMP, WindowCenter=centre, WindowWidth=width, **rescale, **extra)
    wanted = []
    for stored in RAMP.ravel().tolist():
        x = stored * 2 - 24
        if function == "SIGMOID":  # PS3.3 C.11.2.1.3.1
            y = 1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700)))
        elif function == "LINEAR_EXACT":  # PS3.3 C.11.2.1.3.2
            y = 0 if x <= centre - width / 2 else 1 if x > centre + width / 2 else (x - centre) / width + 0.5
        elif x <= centre - 0.5 - (width - 1) / 2:  # PS3.3 C.11.2.1.2.1
            y = 0
        else:
            y = 1 if x > centre - 0.5 + (width - 1) / 2 else (x - (centre - 0.5)) / (width - 1) + 0.5
        wanted.append(round(255 * float(y)))
    assert np.abs(shown(path)[..., 0].ravel().astype(int) - wanted).max() <= 0


def test_a_window_by_hand(tmp_path: Path) -> None:
    stored = np.array([[0, 1024, 1064, 1264, 4095]], np.uint16)  # HU: -1024, 0, 40, 240, 3071
    path = write(tmp_path / "a.dcm", stored, RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    assert shown(path, "40/400")[0, :, 0].tolist() == [0, 102, 128, 255, 255]
    ref = read_image_size(tmp_path, "a.dcm", "a", "40/400")
    assert ref == ImageRef("a.dcm", 5, 1, window="40/400")
    assert np.asarray(open_image(tmp_path, ref)).tolist() == shown(path, "40/400").tolist()
    assert (
        shown(path, "soft-tissue").tolist() == shown(path, "40/400").tolist() == shown(path, " Soft-Tissue ").tolist()
    )
    assert shown(path, "lung")[0, :, 0].tolist() == [55, 230, 236, 255, 255]  # (x + 1350) / 1500
    assert shown(path, "full")[0, :, 0].tolist() == [0, 64, 66, 79, 255]
    assert shown(path).tolist() == shown(path, "full").tolist() == shown(path, "auto").tolist()
    for name, (centre, width) in PRESETS.items():
        assert (shown(path, name) == shown(path, f"{centre}/{width}")).all(), name


def test_the_file_numbers_its_windows(tmp_path: Path) -> None:
    two = write(tmp_path / "a.dcm", RAMP, WindowCenter=[0, 500], WindowWidth=[200, 100])
    assert (shown(two) == shown(two, "1")).all() and (shown(two, "1") != shown(two, "2")).any()
    assert shown(two, "2")[..., 0].ravel()[RAMP.ravel() == 500] in (128, 129)
    assert describe(two, "a").windows == ("0/200", "500/100")
    table = lut(0, 8, [0, 255, 10, 20], "US")
    stored = np.array([[0, 1, 2, 3, 4, 5]], np.uint16)
    with_table = write(tmp_path / "b.dcm", stored, WindowCenter=2, WindowWidth=4, VOILUTSequence=[table])
    assert describe(with_table, "b").windows == ("LUT", "2/4")
    assert shown(with_table)[0, :, 0].tolist() == [0, 255, 10, 20, 20, 20]
    assert shown(with_table, "2")[0, :, 0].tolist() == [0, 128 - 43, 255 - 85, 255, 255, 255]
    widthless = write(tmp_path / "c.dcm", RAMP, WindowCenter=[0, 500], WindowWidth=[0, 100])
    assert (shown(widthless) == shown(widthless, "2")).all()
    with pytest.raises(BadInput, match="window 1 of the file is 0/0, which has no width"):
        shown(widthless, "1")


def test_a_voi_table_begins_at_a_rescaled_value(tmp_path: Path) -> None:
    """PS3.3 C.11.2: a VOI LUT sees what the modality LUT gives, whose sign need not be that of the stored pixels."""
    ramp = lut(-1024, 8, list(range(256)))
    stored = np.array([[0, 1, 100, 255, 300]], np.uint16)
    below = write(tmp_path / "a.dcm", stored, RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=[ramp])
    assert shown(below)[0, :, 0].tolist() == [0, 1, 100, 255, 255]
    high = lut(40000, 8, list(range(256)))
    signed = np.array([[7232, 7233, 7332, 7487, 8000]], np.int16)
    above = write(tmp_path / "b.dcm", signed, RescaleSlope=1, RescaleIntercept=32768, VOILUTSequence=[high])
    assert shown(above)[0, :, 0].tolist() == [0, 1, 100, 255, 255]


@pytest.mark.parametrize(
    ("window", "elements", "reason"),
    [
        ("3", {"WindowCenter": [1, 2], "WindowWidth": [3, 4]}, "window 3 of 2"),
        ("0", {"WindowCenter": 1, "WindowWidth": 2}, "window 0 of 1"),
        ("1", {}, "window 1 of 0"),
        ("lung", {"Modality": "MR", "RescaleSlope": 1, "RescaleIntercept": 0}, "CT in Hounsfield units"),
        ("lung", {}, "CT in Hounsfield units"),
        ("lung", {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "US"}, "CT in Hounsfield units"),
        ("lungs", {}, "'lungs' is not known; give auto, full, a number"),
        ("40/0", {}, "is not known"),
        ("40/-5", {}, "is not known"),
        ("40/nan", {}, "is not known"),
        ("1e9/4", {}, "is not known"),
    ],
)
def test_windows_that_do_not_fit(tmp_path: Path, window: str, elements: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / "a.dcm", RAMP, **elements)
    for job in (shown, lambda path, window: read_image_size(tmp_path, path.name, "a", window)):
        with pytest.raises(BadInput, match=reason):
            job(path, window)


def test_colour_takes_no_window(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = write(tmp_path / "a.dcm", pixels)
    assert (shown(path) == pixels).all() and (shown(path, "full") == pixels).all()
    for window in ("1", "lung", "40/400"):
        with pytest.raises(BadInput, match="in colour"):
            shown(path, window)


def test_monochrome1_is_the_inverse(tmp_path: Path) -> None:
    for k, window in enumerate(({"WindowCenter": 40, "WindowWidth": 400}, {})):
        white = write(tmp_path / f"{k}.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", **window)
        black = write(tmp_path / f"{k}b.dcm", RAMP, **window)
        assert np.abs(shown(white).astype(int) + shown(black) - 255).max() <= 1
    assert shown(write(tmp_path / "a.dcm", np.array([[0, 9]], np.uint16), PhotometricInterpretation="MONOCHROME1"))[
        0, :, 0
    ].tolist() == [255, 0]


def test_eight_bits_are_as_they_are_and_more_are_stretched(tmp_path: Path) -> None:
    pixels = np.array([[30, 31, 90]], np.uint8)
    assert shown(write(tmp_path / "a.dcm", pixels))[0, :, 0].tolist() == [30, 31, 90]
    assert shown(write(tmp_path / "a.dcm", pixels), "full")[0, :, 0].tolist() == [0, 4, 255]
    assert shown(write(tmp_path / "b.dcm", pixels.astype(np.uint16)))[0, :, 0].tolist() == [0, 4, 255]
    assert (shown(write(tmp_path / "c.dcm", np.full((3, 3), 7, np.int16))) == 0).all()
    signed = np.array([[-32768, 0, 32767]], np.int16)
    assert shown(write(tmp_path / "d.dcm", signed))[0, :, 0].tolist() == [0, 128, 255]
    wide = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    assert shown(write(tmp_path / "e.dcm", wide))[0, :, 0].tolist() == [0, 128, 255]
    stored12 = np.array([[0xF000, 0x0FFF, 0x0800]], np.uint16)  # bits above the twelfth do not count
    twelve = write(tmp_path / "f.dcm", stored12, BitsStored=12, HighBit=11)
    assert shown(twelve)[0, :, 0].tolist() == [0, 255, 128]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats(tmp_path: Path, dtype: Any) -> None:
    values = np.array([[0.0, 0.25, 1.0, np.nan, np.inf]], dtype)
    path = write(tmp_path / "a.dcm", values)
    assert shown(path)[0, :, 0].tolist() == [0, 64, 255, 0, 255]
    assert shown(path, "0.25/0.5")[0, :, 0].tolist() == [0, 128, 255, 0, 255]


def test_padding_does_not_drive_the_range(tmp_path: Path) -> None:
    stored = np.array([[-2000, 0, 50, 100]], np.int16)
    assert shown(write(tmp_path / "a.dcm", stored, PixelPaddingValue=-2000))[0, :, 0].tolist() == [0, 0, 128, 255]
    assert shown(write(tmp_path / "b.dcm", stored))[0, 2, 0] == 249
    ranged = write(tmp_path / "c.dcm", stored, PixelPaddingValue=-2000, PixelPaddingRangeLimit=10)
    assert shown(ranged)[0, :, 0].tolist() == [0, 0, 0, 255]
    unsigned = write(tmp_path / "d.dcm", np.array([[63536, 0, 50, 100]], np.uint16), PixelPaddingValue=63536)
    assert shown(unsigned)[0, :, 0].tolist() == [255, 0, 128, 255]


def test_the_modality_lut_comes_before_the_window(tmp_path: Path) -> None:
    table = lut(10, 16, [0, 1000, 500])
    stored = np.array([[9, 10, 11, 12, 13]], np.uint16)
    path = write(tmp_path / "a.dcm", stored, ModalityLUTSequence=[table])
    assert shown(path)[0, :, 0].tolist() == [0, 0, 255, 128, 128]
    assert shown(path, "500/2000")[0, :, 0].tolist() == [64, 64, 191, 128, 128]


def test_enhanced_frames_have_windows_of_their_own(tmp_path: Path) -> None:
    frame = np.arange(0, 256, dtype=np.uint16).reshape(16, 16)

    def groups(centre: float, slope: float) -> Dataset:
        rescale = item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="HU")
        window = item(WindowCenter=centre, WindowWidth=100, VOILUTFunction="LINEAR_EXACT")
        return item(PixelValueTransformationSequence=[rescale], FrameVOILUTSequence=[window])

    own = [groups(50, 1), groups(200, 2)]
    pixels = np.stack([frame, frame])
    path = write(tmp_path / "a.dcm", pixels, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=own)
    for number, (centre, slope) in enumerate(((50, 1), (200, 2)), start=1):
        wanted = np.clip((frame.astype(float) * slope - centre) / 100 + 0.5, 0, 1) * 255
        assert np.abs(shown(path, frame=number)[..., 0] - wanted).max() <= 0.5
    assert (shown(path, "brain", 1) == shown(path, "40/80", 1)).all()
    shared = write(tmp_path / "b.dcm", pixels, NumberOfFrames=2, SharedFunctionalGroupsSequence=[groups(50, 1)])
    assert (shown(shared, frame=2) == shown(path, frame=1)).all()


def test_frames_are_named_and_decoded_alone(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6), dtype=np.uint8)
    path = write(tmp_path / "film.dcm", pixels, NumberOfFrames=5)
    for k in range(5):
        assert (np.asarray(open_image(tmp_path, f"film.dcm#{k + 1}"))[..., 0] == pixels[k]).all()
    with pytest.raises(BadInput, match=r"5 frames and none is named; give one, as film.dcm#1 \(up to #5\)"):
        open_image(tmp_path, "film.dcm")
    for number in (0, 6):
        with pytest.raises(BadInput, match=f"frame {number} of 5; frames count from 1"):
            shown(path, frame=number)
    big = np.zeros((200, 100, 100), np.uint8)
    path = write(tmp_path / "long.dcm", big, NumberOfFrames=200)
    tracemalloc.start()
    shown(path, frame=100)
    assert tracemalloc.get_traced_memory()[1] < big.nbytes / 2
    tracemalloc.stop()


def test_single_bits_need_not_begin_at_a_byte(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).integers(0, 2, (9, 3, 5), dtype=np.uint8)
    packed = np.packbits(masks.ravel(), bitorder="little").tobytes()
    packed += b"\0" * (len(packed) % 2)
    bits = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "PixelData": packed}
    path = write(tmp_path / "a.dcm", masks, NumberOfFrames=9, **bits)
    for k in range(9):
        assert (shown(path, frame=k + 1)[..., 0] == masks[k] * 255).all()


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (16, False), (16, True)])
def test_palettes(tmp_path: Path, bits: int, signed: bool) -> None:
    rng = np.random.default_rng(bits)
    tables = rng.integers(0, 2**bits, (3, 200), dtype=np.uint16 if bits == 16 else np.uint8)
    stored = rng.integers(-20 if signed else 0, 120, (8, 9)).astype(np.int16 if signed else np.uint16)
    first = -5 if signed else 3
    elements: dict[str, Any] = {}
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [200, first, bits]
        elements[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    path = write(tmp_path / "a.dcm", stored, PhotometricInterpretation="PALETTE COLOR", **elements)
    places = np.clip(stored.astype(int) - first, 0, 199)
    wanted = np.stack([t[places] for t in tables], -1) * 255.0 / (2**bits - 1)
    assert np.abs(shown(path) - wanted).max() <= 0.5


def test_segmented_palettes(tmp_path: Path) -> None:
    dice = random.Random(0)
    for k in range(10):
        codes = [0, 2, dice.randrange(65536), dice.randrange(65536)]
        for _ in range(4):
            codes += [1, dice.randrange(1, 40), dice.randrange(65536)]
            codes += [0, 1, dice.randrange(65536)]
        entries = _expand_segmented_lut(tuple(codes), "<H")
        raw = struct.pack(f"<{len(codes)}H", *codes)
        elements: dict[str, Any] = {}
        for colour in ("Red", "Green", "Blue"):
            elements[f"{colour}PaletteColorLookupTableDescriptor"] = [len(entries), 0, 16]
            elements[f"Segmented{colour}PaletteColorLookupTableData"] = raw
        stored = np.arange(len(entries), dtype=np.uint16)[None]
        path = write(tmp_path / f"{k}.dcm", stored, PhotometricInterpretation="PALETTE COLOR", **elements)
        assert np.abs(shown(path)[0, :, 1] - np.array(entries) / 257).max() <= 0.51


@pytest.mark.parametrize(("count", "syntax"), [(300, "little"), (201, "little"), (200, "big")])
def test_palettes_that_pydicom_reads_otherwise(tmp_path: Path, count: int, syntax: str) -> None:
    """PS3.3 C.7.6.3.1.5: 8-bit tables of more than 256 or of an odd number of entries; tables of big-endian words."""
    dtype = ">u2" if syntax == "big" else "u1"
    table = np.random.default_rng(count).integers(0, 65536 if syntax == "big" else 256, count).astype(dtype)
    elements: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [count, 0, 8 * table.dtype.itemsize]
        elements[f"{colour}PaletteColorLookupTableData"] = table.tobytes() + b"\0" * (table.nbytes % 2)
    stored = np.array([[0, 1, 150, 199, 200, 255, 256, 299, 300, 4000]], np.uint16)
    transfer = uid.ExplicitVRBigEndian if syntax == "big" else uid.ExplicitVRLittleEndian
    pixels = {"PixelData": stored.astype(">u2").tobytes()} if syntax == "big" else {}
    path = write(tmp_path / "a.dcm", stored, transfer, PhotometricInterpretation="PALETTE COLOR", **pixels, **elements)
    wanted = table[np.clip(stored, 0, count - 1)] * 255.0 / (65535 if syntax == "big" else 255)
    assert np.abs(shown(path)[..., 0] - wanted).max() <= 0.5


def test_a_segmented_palette_unfolds_to_what_a_table_may_hold(tmp_path: Path) -> None:
    """A line of 65,535 entries takes six bytes: a tenth of a megabyte of such would be 1 GB of numbers."""
    codes = [0, 1, 0, *[1, 65535, 65535] * 3_000]
    elements: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [0, 0, 16]
        elements[f"Segmented{colour}PaletteColorLookupTableData"] = struct.pack(f"<{len(codes)}H", *codes)
    stored = np.array([[0, 32768, 65535]], np.uint16)
    path = write(tmp_path / "a.dcm", stored, PhotometricInterpretation="PALETTE COLOR", **elements)
    tracemalloc.start()
    assert shown(path)[0, :, 1].tolist() == [0, 128, 255]
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_a_modality_lut_need_not_fill_its_words(tmp_path: Path, bits: int) -> None:
    """PS3.3 C.11.1.1: entries of 8 to 16 bits, values behind the last one through it."""
    top = 2**bits - 1
    path = write(
        tmp_path / "a.dcm", np.array([[0, 1, 2, 3, 700]], np.uint16), ModalityLUTSequence=[lut(1, bits, [0, top])]
    )
    assert shown(path, f"{top / 2}/{top}")[0, :, 0].tolist() == [0, 0, 255, 255, 255]


def test_colours_of_sixteen_bits_planes_and_ybr(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 4096, (4, 5, 3), dtype=np.uint16)
    path = write(tmp_path / "a.dcm", deep, BitsStored=12, HighBit=11)
    assert np.abs(shown(path) - deep / 4095 * 255).max() <= 0.5
    rgb = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    planes = np.ascontiguousarray(np.moveaxis(rgb, -1, 0)).tobytes()
    assert (shown(write(tmp_path / "b.dcm", rgb, PlanarConfiguration=1, PixelData=planes)) == rgb).all()
    smooth = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    ybr = write(tmp_path / "c.dcm", smooth, PhotometricInterpretation="YBR_FULL")
    assert np.abs(shown(ybr).astype(int) - rgb).max() <= 3


def test_facts_are_of_an_allow_list(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP, BurnedInAnnotation="YES")
    facts = describe(path, "a")
    assert (facts.width, facts.height, facts.frames, facts.burned_in) == (50, 44, 1, "YES")
    assert facts.modality is Modality.CT and len(facts.patient) == len(facts.study) == 16
    assert CANARY not in repr(facts) and "1.2.3" not in repr(facts)
    assert describe(write(tmp_path / "b.dcm", RAMP + 1), "b").patient == facts.patient
    for elements in ({"PatientID": "other"}, {"IssuerOfPatientID": "elsewhere"}):
        assert describe(write(tmp_path / "c.dcm", RAMP, **elements), "c").patient not in ("", facts.patient)
    nobody = describe(write(tmp_path / "d.dcm", RAMP, PatientID="", BurnedInAnnotation=CANARY), "d")
    assert (nobody.patient, nobody.burned_in) == ("", "")
    assert nobody == Facts(50, 44, 1, Modality.CT, "", facts.study)


CODES = {
    "ct": ["CT"],
    "mr": ["MR"],
    "xray": ["CR", "DX", "MG", "RF", "XA", "IO", "PX"],
    "pet": ["PT"],
    "ultrasound": ["US", "IVUS"],
    "endoscopy": ["ES"],
    "dermoscopy": ["DMS"],
    "fundus": ["OP"],
    "microscopy": ["GM", "SM"],
    "other": ["NM", "OT", "SEG", "RTDOSE", "ct scan"],
}


@pytest.mark.parametrize(("code", "modality"), [(c, m) for m, codes in CODES.items() for c in codes])
def test_modalities(tmp_path: Path, code: str, modality: str) -> None:
    assert describe(write(tmp_path / "a.dcm", RAMP, Modality=code), "a").modality is Modality(modality)


@pytest.mark.parametrize(("sop_class", "modality"), [("1.1", "xray"), ("2.1", "ct"), ("20", None), ("77.1.1", None)])
def test_a_header_without_modality_is_known_by_its_class_alone(
    tmp_path: Path, sop_class: str, modality: str | None
) -> None:
    """The DICOM files of VinDr-CXR have no Modality, and are Digital X-Ray Images (PS3.4, table B.5-1)."""
    uid = f"1.2.840.10008.5.1.4.1.1.{sop_class}"
    assert describe(write(tmp_path / "a.dcm", RAMP, Modality="", SOPClassUID=uid), "a").modality == modality


# ---- told from other files ------------------------------------------------------------------------------------------


def test_what_is_a_dicom(tmp_path: Path) -> None:
    whole = write(tmp_path / "noend", RAMP).read_bytes()
    assert is_dicom(tmp_path / "noend")
    bare = whole[132:]
    first = bare.index(b"\x08\0\x16\0UI")
    for name, content, answer in [
        ("bare", bare, True),
        ("noprefix", bare[first:], True),
        ("implicit", b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100" + b"\0" * 200, True),
        ("big", b"\0\x08\0\x05CS\0\x0aISO_IR 100", True),
        ("broken.dcm", b"\0" * 300, True),
        ("broken.IMA", b"something", True),
        ("empty.dcm", b"", False),
        ("png.dcm", b"\x89PNG\r\n\x1a\n" + b"\0" * 200, False),
        ("jpeg.ima", b"\xff\xd8\xff\xe0" + b"\0" * 200, False),
        ("data.json", b'[{"id": 1}]', False),
        ("rows.csv", b"image,question\n", False),
        ("control", b"\x08\0" + b"\xff" * 60, False),
        ("text", b"\x08ackspace" * 20, False),
    ]:
        (tmp_path / name).write_bytes(content)
        assert is_dicom(tmp_path / name) is answer, name
    for folder_or_none in (tmp_path, tmp_path / "absent.dcm"):
        assert not is_dicom(folder_or_none)
    (tmp_path / "bare.dcm").write_bytes(bare[first:])
    assert (shown(tmp_path / "bare.dcm") == shown(tmp_path / "noend")).all()


def test_pictures_and_tables_are_no_dicom(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(40):
        image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        for suffix in ("png", "jpg", "bmp", "gif", "tiff", "webp"):
            image.save(tmp_path / f"{k}.{suffix}")
            assert not is_dicom(tmp_path / f"{k}.{suffix}")


# ---- refused --------------------------------------------------------------------------------------------------------


def deflated(path: Path, body: bytes) -> Path:
    """A file of the deflated transfer syntax around the given data set."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = uid.UID(CT), uid.UID("1.2.3")
    with path.open("wb") as file:
        file.write(b"\0" * 128 + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, meta, enforce_standard=False)
        file.write(body)
    return path


def squeeze(data: bytes) -> bytes:
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    return engine.compress(data) + engine.flush()


def test_deflated(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.dcm", RAMP, WindowCenter=0, WindowWidth=500)
    whole = plain.read_bytes()
    body = squeeze(whole[whole.index(b"\x08\0\x16\0UI", 132) :])
    good = deflated(tmp_path / "b.dcm", body)
    assert (shown(good) == shown(plain)).all() and describe(good, "b") == describe(plain, "a")
    # a long element of the header that squeezes well ends far behind the end of the squeezed file
    padded = b"\x09\0\x10\0OB\0\0" + (20_000).to_bytes(4, "little") + b"\0" * 20_000
    rest = whole.index(b"\x28\0\x02\0US", 132)
    body_of_much = whole[whole.index(b"\x08\0\x16\0UI", 132) : rest] + padded + whole[rest:]
    assert describe(deflated(tmp_path / "e.dcm", squeeze(body_of_much)), "e") == describe(plain, "a")
    with pytest.raises(BadInput, match="the deflated data have no end"):
        describe(deflated(tmp_path / "c.dcm", body[: len(body) // 2]), "c")
    with pytest.raises(BadInput, match="not a usable DICOM, the header cannot be read"):
        describe(deflated(tmp_path / "d.dcm", b"\xff" * 50), "d")


def test_a_deflated_bomb_is_not_inflated(tmp_path: Path) -> None:
    bomb = deflated(tmp_path / "a.dcm", squeeze(b"\0" * (80 << 20)))
    tracemalloc.start()
    with pytest.raises(BadInput, match="inflates to more than 4,194,304 bytes"):
        describe(bomb, "a", limits=FileLimits(inflated_bytes=1 << 22))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def jpeg(width: int, height: int, mode: str = "L") -> bytes:
    import io

    made = io.BytesIO()
    Image.new(mode, (width, height), 90 if mode == "L" else (90, 20, 10)).save(made, "JPEG")
    return made.getvalue()


def coded(path: Path, frames: list[bytes], syntax: str = uid.JPEGBaseline8Bit, **elements: Any) -> Path:
    shape = np.zeros((20, 30), np.uint8)
    return write(path, shape, syntax, PixelData=encapsulate(frames), **elements)


def refused(tmp_path: Path) -> list[tuple[Path, str]]:
    """Bad files of many kinds, each with what is to be said of it."""
    n = iter(range(1000))

    def new() -> Path:
        return tmp_path / f"{next(n)}.dcm"

    grey = np.zeros((20, 30), np.uint16)
    whole = write(new(), RAMP).read_bytes()
    pixels = whole.rindex(b"\xe0\x7f\x10\0")

    def changed(data: bytes) -> Path:
        path = new()
        path.write_bytes(data)
        return path

    made = [
        (changed(whole[:-10]), "cut: 50x44 pixels need 4,400 bytes, and 4,390 are there"),
        (changed(whole[:pixels]), NO_PIXELS + r" \(SOP class CT Image Storage\)"),
        (changed(whole[: pixels // 2 + 100]), "cut, or no DICOM|without pixels"),
        (changed(b"\0" * 400), "not a DICOM|without pixels"),
        (changed(b"This is a letter, not a picture." * 10), "cut, or no DICOM"),
        (write(new(), grey, Rows=60000, Columns=60000), "cut: 60000x60000 pixels need 7,200,000,000 bytes"),
        (write(new(), grey, NumberOfFrames=2_000_000_000), "in 2000000000 frames need"),
        (write(new(), grey, NumberOfFrames=-3), "its NumberOfFrames is -3"),
        (write(new(), grey, Rows=0), "its Rows is 0"),
        (write(new(), grey, Columns=None), "its Columns is missing"),
        (write(new(), grey, BitsAllocated=None), "its BitsAllocated is missing"),
        (write(new(), grey, PixelData=b""), "cut: 30x20 pixels need 1,200 bytes, and 0 are there"),
        (write(new(), grey, PixelData=None), NO_PIXELS),
        (write(new(), grey, PixelData=None, PixelDataProviderURL="http://example.org/x"), "lie on a server"),
        (write(new(), grey, PhotometricInterpretation=CANARY[:16]), "PhotometricInterpretation is missing or not one"),
        (write(new(), grey, PhotometricInterpretation=None), "PhotometricInterpretation is missing or not one"),
        (write(new(), grey, PhotometricInterpretation="RGB"), "1 samples a pixel do not go with RGB"),
        (write(new(), grey, SamplesPerPixel=3), "3 samples a pixel do not go with MONOCHROME2"),
        (write(new(), grey, PixelPresentation="MIXED"), "supplemental colours"),
        (write(new(), grey, PhotometricInterpretation="PALETTE COLOR"), "its palette is missing"),
        (write(new(), grey, BitsStored=40), "cannot be decoded"),
        (write(new(), grey, WindowCenter=1, WindowWidth=2, VOILUTFunction=CANARY[:16]), "VOILUTFunction is not"),
        (write(new(), grey, VOILUTSequence=[lut(0, 16, [1, 2], count=9)]), "lookup table"),
        (coded(new(), [jpeg(30, 21)]), "compressed pixels are 30x21, the header says 30x20"),
        (coded(new(), [jpeg(60000, 10)]), "compressed pixels are 60000x10"),
        (coded(new(), [jpeg(30, 20, "RGB")]), "3 samples of 8 bits, the header says 1"),
        (coded(new(), [jpeg(30, 20)[:-100]]), "cut: its compressed pixels have no end"),
        (coded(new(), [b"nonsense of some length"]), "do not begin as JPEG Baseline"),
        (coded(new(), [jpeg(30, 20)], NumberOfFrames=7), "says 7 frames but holds 1 pieces"),
        (coded(new(), [jpeg(30, 20)], uid.HTJ2K), "High-Throughput JPEG 2000.* is not read; pip install pylibjpeg"),
        (coded(new(), [jpeg(30, 20)], uid.MPEG2MPML), "MPEG2 Main Profile.* is not read"),
        (coded(new(), [b"\0" * 100_000], uid.RLELossless), "100,000 bytes for 30x20 pixels"),
        (coded(new(), [b"\1" + b"\0" * 63 + b"\5ab"], uid.RLELossless), "cannot be decoded"),
    ]
    half = coded(new(), [jpeg(30, 20)]).read_bytes()
    private = half.replace(uid.JPEGBaseline8Bit.encode(), b"1.2.840.99999.1.2.4.99")
    made.append((changed(private), "compressed as transfer syntax 1.2.840.99999.1.2.4.99, which is not read"))
    words = half.replace(uid.JPEGBaseline8Bit.encode(), CANARY.encode()[:18] + b"    ")
    made.append((changed(words), "compressed as unknown transfer syntax, which is not read"))
    made.append((changed(half[:-200]), "cut: a piece of"))
    lie = half.replace(uid.JPEGBaseline8Bit.encode(), b"1.2.840.10008.1.2.1\0\0\0")
    made.append((changed(lie), "compressed pixels under the name of Explicit VR Little Endian"))
    return made


def test_bad_files_are_named_and_tell_no_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cases = refused(tmp_path)
    capfd.readouterr()
    for path, reason in cases:
        place = f"row 3, image {path.name}"
        with warnings.catch_warnings(), pytest.raises(BadInput, match=reason) as found:
            warnings.simplefilter("error")
            open_dicom(path, place, 1, None, FileLimits(10_000_000))
        text = str(found.value)
        assert text.startswith(f"{place}: ") and "\n" not in text and "; " in text, text
        assert "Kanarien" not in text and "Zqxw" not in text
        assert found.value.__cause__ is None and found.value.__suppress_context__
    assert capfd.readouterr() == ("", "")


def test_what_is_not_read_is_told_by_the_header_alone(tmp_path: Path) -> None:
    path = coded(tmp_path / "a.dcm", [jpeg(30, 20)], uid.HTJ2K)
    with pytest.raises(BadInput, match="High-Throughput JPEG 2000"):
        describe(path, "a")


def test_a_huge_header_takes_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((2, 2), np.uint16), Rows=60000, Columns=60000)
    tracemalloc.start()
    for job in (lambda: describe(path, "a"), lambda: open_dicom(path, "a", 1, None, FileLimits(10**10))):
        with pytest.raises(BadInput, match="cut"):
            job()
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_the_cap_comes_before_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((20, 30), np.uint16))
    assert open_dicom(path, "a", None, None, FileLimits(600)).size == (30, 20)
    monkeypatch.setattr("clinkd.data.images.dicom._decode_values", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadInput, match="30x20 pixels, more than 599 in all"):
        open_dicom(path, "a", None, None, FileLimits(599))
    monkeypatch.setattr("clinkd.data.images.dicom_header._ELEMENT_BYTES", 0)
    table = lut(0, 16, [0] * 100)
    with pytest.raises(BadInput, match=r"element \(0028,3010\) of the header has 2"):
        describe(write(tmp_path / "b.dcm", RAMP, VOILUTSequence=[table]), "b")


def test_sequences_without_end_are_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.dcm", RAMP).read_bytes()
    opening = b"\x40\0\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"  # (0040,0275), an item in it
    at = whole.rindex(b"\xe0\x7f\x10\0")
    (tmp_path / "b.dcm").write_bytes(whole[:at] + opening * 5000 + whole[at:])
    with pytest.raises(BadInput, match="not a usable DICOM|without pixels"):
        describe(tmp_path / "b.dcm", "b")


def test_damage_of_any_kind_is_one_line(tmp_path: Path) -> None:
    dice = random.Random(0)
    names = [
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "image_dfl.dcm",
    ]
    for name in [*names, "examples_palette.dcm"]:
        whole = Path(str(get_testdata_file(name, download=False))).read_bytes()
        for _ in range(15):
            broken = bytearray(whole[: dice.choice((len(whole), dice.randrange(150, len(whole))))])
            for _ in range(dice.choice((1, 4, 30))):
                broken[dice.randrange(132, min(len(broken), 3000))] = dice.randrange(256)
            (tmp_path / "a.dcm").write_bytes(broken)
            try:
                picture = open_dicom(tmp_path / "a.dcm", "a.dcm", 1, None, FileLimits(10_000_000))
            except BadInput as error:
                assert str(error).startswith("a.dcm: ") and "\n" not in str(error)
            else:
                assert picture.mode == "RGB"


# ---- folders --------------------------------------------------------------------------------------------------------


def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "p1").mkdir(parents=True)
    write(root / "b.dcm", RAMP)
    write(root / "p1" / "IM0001", np.zeros((3, 4, 5), np.uint8), NumberOfFrames=3, Modality="US", PatientID="2")
    write(root / "p1" / "none.dcm", RAMP, PixelData=None)
    Image.new("RGB", (7, 8)).save(root / "a.png")
    Image.new("L", (7, 8)).save(root / "s.tif", save_all=True, append_images=[Image.new("L", (9, 8))])
    (root / "notes.txt").write_text("no picture")
    (root / "DICOMDIR").write_bytes((SHIPPED / "test_files/dicomdirtests/DICOMDIR").read_bytes())
    write(tmp_path / "outside.dcm", RAMP)
    (root / "link.dcm").symlink_to(tmp_path / "outside.dcm")
    (root / "inner.dcm").symlink_to(root / "b.dcm")
    (root / "p1" / "loop").symlink_to(root)
    (root / "self.dcm").symlink_to(root / "self.dcm")
    return root


def test_a_folder_is_checked_file_by_file(tmp_path: Path) -> None:
    root = folder(tmp_path)
    told: Counter[str] = Counter()
    entries = list(read(Source(root), told))
    assert [(Path(e.file).name, e.row) for e in entries] == [
        ("b.dcm", 1), ("inner.dcm", 2), ("IM0001", 3), ("none.dcm", 4),
    ]  # fmt: skip
    assert not any(e.samples for e in entries)
    (problem,) = [e.problem for e in entries if e.problem]
    assert (problem.row, problem.id, problem.field) == (4, "p1/none.dcm", "image") and NO_PIXELS in problem.why
    assert told == {
        f"DICOM {NO_QUESTION}": 3,
        "files that are not DICOM or NIfTI": 3,
        "DICOMDIR files, which list other files": 1,
        "links to folders, which are not followed": 1,
        "links that lead nowhere, or out of the folder": 2,
    }
    (single,) = read(Source(root / "b.dcm"), told)
    assert single.row == 1 and single.problem is None
    for path, reason in ((tmp_path / "absent", "no such"), (root / "a.png", "no DICOM or NIfTI file there")):
        with pytest.raises(BadInput, match=reason):
            list(read(Source(path), told))


def test_the_sheet_has_a_line_for_each_frame(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "bad\udcff.png").write_bytes(b"x")
    lines = list(list_sheet_lines(root))
    good = [line for line in lines if "problem" not in line]
    assert [(g["image"], g["modality"], g["width"], g["height"]) for g in good] == [
        ("a.png", "", "7", "8"),
        ("b.dcm", "ct", "50", "44"),
        ("inner.dcm", "ct", "50", "44"),
        ("s.tif#1", "", "7", "8"),
        ("s.tif#2", "", "9", "8"),
        *[(f"p1/IM0001#{k}", "ultrasound", "5", "4") for k in (1, 2, 3)],
    ]
    assert " ".join(good[0]) == "image modality patient width height question answer name x1 y1 x2 y2"
    assert good[0]["patient"] == "" and len({g["patient"] for g in good}) == 3
    assert CANARY not in repr(lines)
    for line in good:
        facts = open_image(root, ImageRef(line["image"]))
        assert facts.size == (int(line["width"]), int(line["height"]))
    problems = {line["image"]: line["problem"] for line in lines if "problem" in line}
    assert set(problems) == {"DICOMDIR", "notes.txt", "p1/none.dcm", "bad\\xff.png", "."}
    assert "not an image" in problems["notes.txt"] and "cannot be written" in problems["bad\\xff.png"]
    (tmp_path / "empty").mkdir()
    for path, reason in ((tmp_path / "empty", "is empty"), (tmp_path / "absent", "no such folder")):
        with pytest.raises(BadInput, match=reason):
            list(list_sheet_lines(path))

"""A DICOM of many frames: the page sends its header and one frame, and the server reads that as the file itself."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from browser import arrived
from clinkd.data.dicom_objects import Model, Region, ReportedAnswer, write_report
from clinkd.data.images.limits import UPLOADS
from clinkd.data.images.upload import decode_frame, decode_values, describe_head
from clinkd.records import BadInput, Box
from serving import Server, serving_model
from slices import VOLUME, ct, enhanced
from test_serving_page import answered, pixels
from test_serving_replies import ScriptedAnswerer
from test_serving_stacks import at_slice, open_files, sent_image

FRAMES = 5


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_model(ScriptedAnswerer) as made:
        yield made


def written(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream)
    return stream.getvalue()


def excerpt(content: bytes, *ranges: tuple[int, int], size: int | None = None) -> bytes:
    about = {"size": size or len(content), "ranges": ranges}
    parts = [content[at : at + length] for at, length in ranges]
    return b"".join([b"ClinKD excerpt\n", json.dumps(about).encode(), b"\n", *parts])


def with_own_windows() -> Dataset:
    """A file of frames that each have a rescale and a window of their own."""
    ds = enhanced([4, 1, 0, 3, 2])
    for number, item in enumerate(ds.PerFrameFunctionalGroupsSequence):
        window, rescale = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = 10 * number, 100 + 50 * number
        rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = -5 * number, 1 + number, "HU"
        item.FrameVOILUTSequence, item.PixelValueTransformationSequence = Sequence([window]), Sequence([rescale])
    return ds


def jpegs(form: str = "JPEG", **options: Any) -> list[bytes]:
    drawn = np.clip(VOLUME[:FRAMES] + 100, 0, 255).astype(np.uint8)
    streams = [io.BytesIO() for _ in drawn]
    for frame, stream in zip(drawn, streams, strict=True):
        Image.fromarray(frame).save(stream, form, **options)
    return [stream.getvalue() for stream in streams]


def jpeg_film(pieces: bytes, syntax: str = JPEGBaseline8Bit, **fields: Any) -> bytes:
    ds = ct(VOLUME[:FRAMES], NumberOfFrames=FRAMES, BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = pieces
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    for name, value in fields.items():
        setattr(ds, name, value)
    return written(ds)


def films() -> dict[str, bytes]:
    """Each way in which frames lie in a file."""
    bits = ct(VOLUME, NumberOfFrames=FRAMES, BitsAllocated=1, BitsStored=1, HighBit=0, Rows=5, Columns=7)
    bits.PixelData = np.random.default_rng(0).bytes(22)
    bits.PixelRepresentation = 0
    packed = with_own_windows()
    packed.compress(RLELossless)
    pieces, offsets, lengths = encapsulate_extended(jpegs())
    made = {
        "plain": written(with_own_windows()),
        "single bits": written(bits),
        "RLE": written(packed),
        "a table": jpeg_film(encapsulate(jpegs())),
        "a table, two pieces each": jpeg_film(encapsulate(jpegs(), fragments_per_frame=2)),
        "no table": jpeg_film(encapsulate(jpegs(), has_bot=False)),
        "no table, two pieces each": jpeg_film(encapsulate(jpegs(), has_bot=False, fragments_per_frame=2)),
        "an extended table": jpeg_film(pieces, ExtendedOffsetTable=offsets, ExtendedOffsetTableLengths=lengths),
    }
    if get_decoder(JPEGLSLossless).is_available:
        packed = with_own_windows()
        packed.compress(JPEGLSLossless)
        made["JPEG-LS"] = written(packed)
    if features.check("jpg_2000"):
        made["JPEG 2000"] = jpeg_film(encapsulate(jpegs("JPEG2000", no_jp2=True)), JPEG2000Lossless)
    for name in ("examples_ybr_color.dcm", "SC_rgb_rle_16bit_2frame.dcm", "rtdose.dcm", "rtdose_expb.dcm",
                 "rtdose_rle.dcm"):  # fmt: skip
        made[name] = Path(str(get_testdata_file(name, download=False))).read_bytes()
    return made


def test_a_frame_that_the_page_sends_is_the_frame_of_the_whole_file(page):
    given, wanted = [], []
    for content in films().values():
        _, facts, geometry = describe_head(content, len(content))
        shown = sorted({1, 2, facts.frames // 2 + 1, facts.frames} & set(range(1, facts.frames + 1)))
        given.append([{**asdict(geometry), "frames": facts.frames}, base64.b64encode(content).decode(), shown])
        wanted.append((content, facts.frames, shown))
    told = page.ask(f"""Promise.all([import('/assets/film.js'), import('/assets/picture.js')]).then(([a, b]) =>
      Promise.all({json.dumps(given)}.map(async ([about, content, shown]) => {{
        const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
        const film = new a.Film({{ ...about, file: new Blob([bytes]) }}), all = shown.length > 2 ? [[2, 3]] : [];
        return Promise.all([...shown.map((n) => [n]), ...all].map(async (frames) =>
          b.encode(await film.excerpt(frames)))); }})))""")
    for name, parts, (content, frames, shown) in zip(films(), told, wanted, strict=True):
        sent = [base64.b64decode(part.partition(",")[2]) for part in parts]
        for number, part in zip(shown, sent, strict=False):
            expected, seen = decode_frame(content, number), decode_frame(part, number)
            assert (np.asarray(seen.picture) == np.asarray(expected.picture)).all(), (name, number)
            assert (seen.facts, seen.number, seen.window) == (expected.facts, number, expected.window), name
            if frames > 2 and name != "no table, two pieces each":  # which frame a piece belongs to is known to nobody
                assert len(part) < len(content), name
        if len(shown) > 2 and decode_frame(content).grey:
            both = decode_values(content, [2, 3])
            assert np.array_equal(decode_values(sent[-1], [2, 3]), both) and len(both) == 2, name
    assert len(told) == len(films())


def test_a_report_about_an_excerpt_refers_to_the_frame_of_the_file():
    content = films()["plain"]
    told = ReportedAnswer("q", "a", [Region(Box(0, 0, 1, 1), "liver", "model")], Model("m", "1"), 4,
                          answered=datetime(2026, 1, 1))  # fmt: skip
    _, _, geometry = describe_head(content, len(content))
    assert geometry.pixels
    report = write_report(excerpt(content, (0, geometry.pixels.offset)), told)
    assert report == write_report(content, told)
    references = [e.value for e in dcmread(io.BytesIO(report)).iterall() if e.keyword == "ReferencedFrameNumber"]
    assert set(references) == {4}


def test_an_excerpt_that_lacks_bytes_or_sense_is_refused_in_a_line():
    content = films()["plain"]
    _, _, geometry = describe_head(content, len(content))
    assert geometry.pixels
    offset, each = geometry.pixels.offset, VOLUME[0].nbytes
    header = (0, offset)
    second = excerpt(content, header, (offset + each, each))
    assert decode_frame(second, 2).number == 2
    png = io.BytesIO()
    Image.new("L", (9, 9)).save(png, "PNG")
    for sent, why in (
        (excerpt(content, header), "cannot be"),
        (excerpt(content, (0, offset - 9)), "without pixels"),
        (excerpt(content, header, (offset - 2, each)), "overlap"),
        (excerpt(content, header, (offset + each, each), size=offset), "do not fit"),
        (second + b"x", "do not fit"),
        (excerpt(content, header, (offset, each), size=len(content) - each), "cut: 24x20 pixels in 5 frames need"),
        (b"ClinKD excerpt\n{}\n", "begins with no size and ranges"),
        (b"ClinKD excerpt\n", "begins with no size and ranges"),
        (b"ClinKD excerpt\n" + b"[" * 9999, "begins with no size and ranges"),
        (b'ClinKD excerpt\n{"size": 1e999, "ranges": []}\n', "begins with no size and ranges"),
        (b'ClinKD excerpt\n{"size": 9, "ranges": [[0, Infinity]]}\n', "begins with no size and ranges"),
        (b'ClinKD excerpt\n{"size": 9, "ranges": []' + b" " * (5 << 20) + b"}\n", "begins with no size and ranges"),
        (excerpt(png.getvalue(), (0, len(png.getvalue()))), "an excerpt of no DICOM"),
    ):
        with pytest.raises(BadInput, match=why) as refused:
            decode_frame(sent, 2)
        assert "\n" not in str(refused.value)
    for frames, why in (([0], "frame 0 of 5"), ([6], "frame 6 of 5")):
        with pytest.raises(BadInput, match=why):
            decode_values(second, frames)
    colour = Path(str(get_testdata_file("examples_rgb_color.dcm", download=False))).read_bytes()
    for other, why in ((colour, "in colour"), (png.getvalue(), "no DICOM")):
        with pytest.raises(BadInput, match=why):
            decode_values(other, [1])


def test_frames_of_several_types_are_given_in_one_that_holds_them():
    """Whole numbers below zero in one frame, above 32767 in another, and halves in a third."""
    ds = with_own_windows()
    for item, intercept in zip(ds.PerFrameFunctionalGroupsSequence, (0, 40_000, 0.5), strict=False):
        rescale = item.PixelValueTransformationSequence[0]
        rescale.RescaleIntercept, rescale.RescaleSlope = intercept, 1
    content = written(ds)
    alone = {frame: decode_values(content, [frame])[0] for frame in (1, 2, 3)}
    assert [v.dtype.name for v in alone.values()] == ["int16", "uint16", "float32"]
    for frames in ([1, 2], [2, 1], [2, 3], [1, 2, 3]):
        values = decode_values(content, frames)
        assert values.dtype == np.float32
        assert np.array_equal(values, np.stack([alone[frame] for frame in frames]))


def test_pieces_that_are_not_at_hand_are_not_counted():
    content = films()["no table"]
    _, facts, geometry = describe_head(content, len(content))
    assert geometry.pixels and geometry.pixels.frame_bits is None
    assert describe_head(content[: geometry.pixels.offset + 40], len(content))[1] == facts
    item = content.index(struct.pack("<I", 0xE000FFFE), geometry.pixels.offset)
    with pytest.raises(BadInput, match="broken"):
        describe_head(content[:item] + b"x" + content[item + 1 :], len(content), UPLOADS)


def test_a_film_larger_than_a_request_is_opened_and_asked_about(page, server, tmp_path):
    count, side = 20, 400
    rng, path = np.random.default_rng(0), tmp_path / "film.dcm"
    noise = rng.integers(0, 300, (side, side), np.int16)
    volume = np.stack([noise + 20 * n for n in range(count)])
    enhanced(range(count), volume).save_as(path)
    assert path.stat().st_size > server.served.handler.limits.body_bytes
    page.sent.clear()
    open_files(page, path)
    at_slice(page, f"axial slice {count // 2 + 1} of {count}")
    page.pick("#centre", "300")
    page.pick("#width", "800")
    page.pick("#frame", "19")
    at_slice(page, f"axial slice 19 of {count}")
    seen = np.clip((volume[18] + 100) / 800, 0, 1) * 255
    assert np.abs(pixels(page)[..., 0] - seen).max() <= 1
    page.click("[data-task=overall]")
    body = answered(page)
    assert body["clinkd"]["frame"] == 19 and len(sent_image(body)) < 2 * noise.nbytes
    (out := tmp_path / "out").mkdir()
    page.downloads(out)
    page.click("#save-sr")
    report = dcmread(io.BytesIO(arrived(out, "dcm")))
    uids = {e.value for e in report.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
    assert uids == {dcmread(path, stop_before_pixels=True).SOPInstanceUID}
    page.pick("#plane", "coronal")
    page.until(f"document.getElementById('frame').max === '{side}'", 60)
    at_slice(page, f"coronal slice {side // 2 + 1} of {side}")
    rows = np.clip((volume[::-1, side - 1 - side // 2] + 100) / 800, 0, 1) * 255
    assert np.abs(pixels(page)[::2, :, 0] - rows).max() <= 1
    assert page.ask("document.getElementById('facts').textContent").startswith("Coronal plane of film.dcm")


def test_films_of_any_pixels_are_scrolled_and_switched_without_a_stale_picture(page, tmp_path):
    made, paths = films(), []
    for number, name in enumerate(("examples_ybr_color.dcm", "single bits", "RLE", "an extended table")):
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(made[name])
    open_files(page, *paths)
    order = page.ask("[...document.querySelectorAll('#stack option')].map((e) => e.textContent)")
    assert len(order) == 4
    page.ask(f"""for (const n of {[0, 1, 2, 3] * 5}) {{
      Object.assign(document.getElementById('stack'), {{ value: n }}).dispatchEvent(new Event('change')); }}""")
    for number, title in enumerate(order):
        count = int(re.search(r"(\d+) (?:frame|slice)s", title)[1])  # type: ignore[index]
        page.pick("#stack", str(number))
        page.until(f"document.getElementById('frame').max === '{count}'")
        page.pick("#frame", "1")
        page.pick("#frame", str(count))
        at_slice(page, f"{count} of {count}")
        at = int(page.ask("document.getElementById('facts').textContent")[0])
        content = paths[at].read_bytes()
        assert np.abs(pixels(page) - np.asarray(decode_frame(content, shown_frame(content, count)).picture)).max() <= 1


def shown_frame(content: bytes, at: int) -> int:
    """The frame that stands at this place, from 1, by where the frames lie."""
    positions = describe_head(content, len(content))[2].positions
    return sorted(range(len(positions)), key=lambda n: positions[n][2])[at - 1] + 1 if positions else at

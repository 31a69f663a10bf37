"""Pictures with few pixels and very many parts: refused by their number of parts, before a decoder reads them."""

from __future__ import annotations

import io
import struct
import time
import zlib
from dataclasses import replace

import pytest
from benchmarks.patience import patience
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from clinkd.data.images import open_image
from clinkd.data.images.limits import UPLOADS
from clinkd.data.images.structure import check_structure
from clinkd.data.images.upload import decode_frame
from clinkd.records import BadInput

FEW = replace(UPLOADS, blocks=300, metadata_bytes=3000)


def encode(kind: str, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, kind)
    return file.getvalue()


def make_png(parts: int, content: bytes = b"", name: bytes = b"prVt") -> bytes:
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    picture = encode("PNG")
    return picture[:33] + chunk * parts + picture[33:]


def make_jpeg(parts: int, content: bytes = b"", marker: bytes = b"\xfe") -> bytes:
    picture = encode("JPEG")
    return picture[:2] + (b"\xff" + marker + struct.pack(">H", len(content) + 2) + content) * parts + picture[2:]


def make_gif(frames: int, comments: int = 0) -> bytes:
    picture = encode("GIF", "P")
    start = 13 + (3 << (picture[10] % 8 + 1) if picture[10] & 0x80 else 0)
    return picture[:start] + b"!\xfe" + b"\1a" * comments + b"\0" + picture[start:-1] * frames + b";"


def make_tiff(pages: int, order: str = "<") -> bytes:
    """Pages that share their tags with the first one's pixels."""
    tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)]
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 10) + b"\0\0"
    for page in range(pages):
        out += struct.pack(f"{order}H", len(tags))
        out += b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
        out += struct.pack(f"{order}I", len(out) + 4 if page < pages - 1 else 0)
    return out


def make_webp(parts: int) -> bytes:
    picture = encode("WEBP", "RGB") + b"JUNK\0\0\0\0" * parts
    return picture[:4] + struct.pack("<I", len(picture) - 8) + picture[8:]


MANY = {
    "PNG chunks": make_png(301), "PNG bytes": make_png(7, bytes(500)),
    "JPEG comments": make_jpeg(301), "JPEG bytes": make_jpeg(7, bytes(500), b"\xe1"),
    "GIF frames": make_gif(301), "GIF comments": make_gif(1, 301),
    "TIFF pages": make_tiff(120), "TIFF pages, big-endian": make_tiff(120, ">"), "WEBP chunks": make_webp(301),
}  # fmt: skip


@pytest.mark.parametrize("content", MANY.values(), ids=MANY)
def test_many_parts_are_refused(content):
    with pytest.raises(BadInput, match=r"^the file: more than (300 parts|3,000 bytes of tags)"):
        decode_frame(content, limits=FEW)
    assert decode_frame(content).picture.size == ((1, 1) if content[:2] in (b"II", b"MM") else (4, 4))


WHOLE = [make_png(9), make_jpeg(9), make_gif(9, 9), make_tiff(9), make_webp(9), encode("BMP"),
         make_jpeg(1) + b"\xff\xfe\0\2" * 999]  # fmt: skip


@pytest.mark.parametrize("content", WHOLE, ids=range(len(WHOLE)))
def test_few_parts_and_what_follows_a_picture_are_not(content):
    check_structure(io.BytesIO(content), "x", replace(FEW, blocks=100))
    for cut in (3, 12, 20, len(content) // 2, len(content) - 1):  # a cut file is left to its decoder
        check_structure(io.BytesIO(content[:cut]), "x", replace(FEW, blocks=100))


def test_the_tags_of_a_tiff_may_not_say_more_bytes_than_the_file_has():
    content = bytearray(make_tiff(1))
    content[10 + 2 + 4 : 10 + 2 + 8] = struct.pack("<I", 1 << 30)
    with pytest.raises(BadInput, match="bytes of tags"):
        decode_frame(bytes(content), limits=FEW)


def test_a_million_parts_are_refused_at_once_on_disk_and_as_an_upload(tmp_path):
    content, start = make_png(1_000_000), time.monotonic()
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadInput, match=r"^image a\.png: more than 50,000 parts"):
        open_image(tmp_path, "a.png")
    with pytest.raises(BadInput, match=r"^the file: more than 50,000 parts"):
        decode_frame(content)
    assert time.monotonic() - start < patience(3)


@pytest.mark.parametrize(("whole", "says"), [(False, "more than 300 elements"), (True, "bytes, more than 9,600")])
def test_elements_of_a_dicom_are_counted_in_sequences_as_well(whole, says):
    """`whole`: the sequence gives its length, and is parsed when it is wanted."""
    inner, outer = Dataset(), Dataset()
    inner.WindowCenter, inner.WindowWidth = 1, 2
    outer.BitsAllocated, outer.PixelData = 16, b"\0\0"
    outer.PerFrameFunctionalGroupsSequence = Sequence([inner] * 500)
    outer["PerFrameFunctionalGroupsSequence"].is_undefined_length = not whole
    file = io.BytesIO()
    outer.save_as(file, implicit_vr=False, little_endian=True)
    content = bytes(128) + b"DICM" + file.getvalue()
    with pytest.raises(BadInput, match=says):
        decode_frame(content, limits=replace(UPLOADS, elements=300))
    with pytest.raises(BadInput, match="Rows is missing"):
        decode_frame(content)


def test_a_deep_sequence_is_refused_in_a_line():
    deep = struct.pack("<HHI", 0x5200, 0x9230, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    content = struct.pack("<HHI", 0x0008, 0x0060, 2) + b"CT" + deep * 20_000
    with pytest.raises(BadInput, match=r"^the file: not a usable DICOM, the header cannot be read \(RecursionError\)"):
        decode_frame(content)

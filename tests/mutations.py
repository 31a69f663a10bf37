"""Small image files of every kind, and seeded damage to them: what a parser of files from strangers must survive."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.data import get_testdata_file

MEMORY = 4 << 30  # bytes that a process may map

# One of each way that pixels are stored, all of them small.
DICOMS = (
    "CT_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "JPEGLSNearLossless_16.dcm", "SC_rgb_jls_lossy_line.dcm", "693_J2KI.dcm",
    "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle_2frame.dcm",
    "SC_rgb_rle_32bit_2frame.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_palette.dcm", "image_dfl.dcm",
    "liver_1frame.dcm", "rtdose_1frame.dcm", "ExplVR_BigEnd.dcm", "reportsi.dcm",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """A damaged file. `name` is the seed it comes of, with its number, so that it can be made again."""

    name: str
    content: bytes


def mutants(count: int, seed: int = 0) -> Iterator[Mutant]:
    """So many damaged files, the same ones each time."""
    files = sorted(seeds().items())
    for number in range(count):
        dice = random.Random(f"{seed}/{number}")
        name, content = files[number % len(files)]
        for _ in range(dice.choice((1, 1, 2, 3))):
            content = dice.choice(DAMAGE)(content, dice)
        yield Mutant(f"{name} {seed}/{number}", content)


def damaged(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """So many kinds of damage to one content, the same ones each time."""
    for number in range(count):
        dice = random.Random(f"{seed}/{number}")
        yield dice.choice(DAMAGE)(content, dice)


@cache
def seeds() -> dict[str, bytes]:
    """Whole files by name."""
    files = {name: Path(str(get_testdata_file(name, download=False))).read_bytes() for name in DICOMS}
    noise = np.random.default_rng(0).integers(0, 256, (24, 36, 4), dtype=np.uint8)
    smooth = np.add.outer(np.arange(24), np.arange(36))[..., None].repeat(3, -1).astype(np.uint8)
    rgb, rgba = Image.fromarray(smooth), Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    made: list[tuple[str, str, Image.Image, dict[str, object]]] = [
        ("rgb.png", "PNG", rgb, {"exif": exif}),
        ("rgba.png", "PNG", rgba, {}),
        ("deep.png", "PNG", deep, {}),
        ("palette.png", "PNG", rgb.quantize(16), {"transparency": 3}),
        ("film.png", "PNG", rgb, {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}),
        ("plain.jpg", "JPEG", rgb, {"exif": exif}),
        ("progressive.jpg", "JPEG", rgb, {"progressive": True}),
        ("cmyk.jpg", "JPEG", rgb.convert("CMYK"), {}),
        ("a.bmp", "BMP", rgb, {}),
        ("plain.tif", "TIFF", rgb, {"exif": exif}),
        ("lzw.tif", "TIFF", rgb, {"compression": "tiff_lzw"}),
        ("deflate.tif", "TIFF", deep, {"compression": "tiff_adobe_deflate"}),
        ("jpeg.tif", "TIFF", rgb, {"compression": "jpeg"}),
        ("fax.tif", "TIFF", rgb.convert("1"), {"compression": "group4"}),
        ("film.tif", "TIFF", rgb, {"save_all": True, "append_images": [rgb.rotate(90), deep]}),
        ("film.gif", "GIF", rgb, {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}),
        ("lossy.webp", "WEBP", rgb, {"exif": exif}),
        ("lossless.webp", "WEBP", rgba, {"lossless": True}),
        ("film.webp", "WEBP", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
    ]
    for name, form, image, options in made:
        out = io.BytesIO()
        image.save(out, form, **options)
        files[name] = out.getvalue()
    return files


def survivors(judge: str, count: int, seed: int, folder: Path, timeout_seconds: float) -> list[str]:
    """What `judge` ("module:function", given the bytes of a mutant) says of so many, "" where it has no complaint.

    They run in a process of their own, so that one that ends its process is named: AssertionError.
    """
    module, _, name = judge.partition(":")
    code = f"""if True:
        import faulthandler, resource, sys
        faulthandler.enable()
        resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
        from mutations import mutants
        from {module} import {name}
        for mutant in mutants({count}, {seed}):
            print(mutant.name, end=": ", flush=True)
            print({name}(mutant.content), flush=True)
    """
    out, err = folder / "said.txt", folder / "stderr.txt"
    with out.open("wb") as said, err.open("wb") as noise:
        paths = os.pathsep.join(p for p in sys.path if p)
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=said,
            stderr=noise,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            timeout=timeout_seconds,
            check=False,
        )
    lines = out.read_text(errors="replace").splitlines()
    trace = err.read_text(errors="replace")
    assert done.returncode == 0, (
        f"ended with {done.returncode} at {lines[-1] if lines else 'the start'}\n{trace[-3000:]}"
    )
    # Libraries in C say there what they could not decode; ours and Python's own words would be a leak.
    assert "Warning" not in trace and "Traceback" not in trace, trace[-3000:]
    return lines


# ---- damage ---------------------------------------------------------------------------------------------------------


def _place(content: bytes, dice: random.Random) -> int:
    """Mostly in the first bytes, where the lengths and sizes stand."""
    return dice.randrange(min(len(content), dice.choice((32, 200, 3000, 1 << 30))) or 1)


def flip_bits(content: bytes, dice: random.Random) -> bytes:
    broken = bytearray(content)
    for _ in range(dice.choice((1, 4, 30)) if broken else 0):
        broken[_place(content, dice)] ^= 1 << dice.randrange(8)
    return bytes(broken)


def set_bytes(content: bytes, dice: random.Random) -> bytes:
    broken = bytearray(content)
    for _ in range(dice.choice((1, 4, 30)) if broken else 0):
        broken[_place(content, dice)] = dice.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, dice.randrange(256)))
    return bytes(broken)


def cut(content: bytes, dice: random.Random) -> bytes:
    return content[: _place(content, dice)]


def drop(content: bytes, dice: random.Random) -> bytes:
    at = _place(content, dice)
    return content[:at] + content[at + dice.choice((1, 2, 4, 100)) :]


def insert(content: bytes, dice: random.Random) -> bytes:
    at = _place(content, dice)
    return content[:at] + dice.randbytes(dice.choice((1, 2, 4, 100))) + content[at:]


def write_length(content: bytes, dice: random.Random) -> bytes:
    """A number, where one may stand: large, negative, or just beyond what is there."""
    at, form = _place(content, dice), dice.choice(("<I", ">I", "<H", ">H"))
    size = 1 << (32 if form[1] == "I" else 16)
    value = dice.choice(
        (0, 1, size - 1, size // 2, size // 2 - 1, len(content), len(content) + 1, dice.randrange(size))
    )
    field = struct.pack(form, value % size)
    return content[:at] + field + content[at + len(field) :]


def repeat(content: bytes, dice: random.Random) -> bytes:
    start, end = sorted((_place(content, dice), _place(content, dice)))
    return content[:end] + content[start:end] * dice.choice((1, 2, 20)) + content[end:]


def swap(content: bytes, dice: random.Random) -> bytes:
    """Two pieces of a file change places; chunks of a PNG whole, with sums that are right."""
    if content.startswith(b"\x89PNG"):
        chunks = list(_chunks(content))
        dice.shuffle(chunks)
        return content[:8] + b"".join(chunks)
    a, b, c = sorted(_place(content, dice) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def _chunks(content: bytes) -> Iterator[bytes]:
    at = 8
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        yield content[at:end]
        at = end


def splice(content: bytes, dice: random.Random) -> bytes:
    """The head of one file before the tail of another."""
    other = dice.choice(sorted(seeds().items()))[1]
    return content[: _place(content, dice)] + other[_place(other, dice) :]


DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bits, set_bytes, cut, drop, insert, write_length, repeat, swap, splice,
)  # fmt: skip

"""Opening images: confinement, caps, orientation, depth, and one clear line for each kind of bad file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clinkd.data import open_image, read_modality
from clinkd.records import BadInput, ImageRef, Modality


def test_plain_images_keep_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for ref in ("a.png", Path("a.png"), ImageRef("a.png", 30, 20)):
        assert (np.asarray(open_image(tmp_path, ref)) == pixels).all()


def test_exif_turns_the_image_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: turn by 90 degrees clockwise
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = open_image(tmp_path, "a.jpg")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[0] > 200 and upright.getpixel((10, 35))[0] < 50  # type: ignore[index]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_stretched_not_cut(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(1000, 5000, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    grey = np.asarray(open_image(tmp_path, f"a.{suffix}"))
    assert grey.shape == (16, 16, 3) and (grey[..., 0] == grey[..., 2]).all()
    assert grey.min() == 0 and grey.max() == 255 and (np.diff(grey[..., 0].astype(int).ravel()) >= 0).all()
    flat = Image.fromarray(np.full((4, 4), 900, np.uint16))
    flat.save(tmp_path / "flat.png")
    assert (np.asarray(open_image(tmp_path, "flat.png")) == 0).all()


def test_palette_and_transparency(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(tmp_path / "p.png")
    assert open_image(tmp_path, "p.png").getpixel((0, 0)) == (10, 200, 30)
    palette.save(tmp_path / "t.png", transparency=1)
    assert open_image(tmp_path, "t.png").getpixel((0, 0)) == (0, 0, 0)
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "a.png")
    assert open_image(tmp_path, "a.png").getpixel((0, 0)) == (0, 0, 0)
    Image.new("1", (4, 4), 1).save(tmp_path / "b.png")
    assert open_image(tmp_path, "b.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("CMYK", (4, 4)).save(tmp_path / "c.jpg")
    assert open_image(tmp_path, "c.jpg").mode == "RGB"


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.png", None, "no such file"),
        ("empty.png", b"", "empty"),
        ("text.png", b"this is no image", "not an image"),
        ("bomb.png", png_header(60_000, 60_000), "shrink it first"),
        ("wide.png", png_header(9_000, 9_000), "9000x9000"),
        ("cut.png", png_header(10, 10), "cannot be read"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "not an image"),
        ("folder", "folder", "cannot be read"),
        ("../outside.png", None, "leads out of"),
        ("/etc/hostname", None, "leads out of"),
        ("nul\0.png", None, "not a usable path"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes | str | None, message: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    if content == "folder":
        (root / name).mkdir()
    elif isinstance(content, bytes):
        (root / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as plain:
        open_image(root, name)
    assert name in str(plain.value) and "\n" not in str(plain.value)
    with pytest.raises(BadInput, match="row 7"):
        open_image(root, name, row=7)


def test_a_jpeg_cut_in_the_middle_is_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"a\.jpg: cannot be read"):
        open_image(tmp_path, "a.jpg")


def test_links_out_of_the_root_are_refused_and_roots_may_be_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    Image.new("RGB", (4, 4)).save(root / "inside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "alias").symlink_to(root)
    with pytest.raises(BadInput, match="leads out of"):
        open_image(root, "link.png")
    assert open_image(tmp_path / "alias", "inside.png").size == (4, 4)


def test_the_cap_is_a_knob(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    assert open_image(tmp_path, "a.png", max_pixels=100).size == (10, 10)
    with pytest.raises(BadInput, match="10x10"):
        open_image(tmp_path, "a.png", max_pixels=99)


@pytest.mark.parametrize("modality", list(Modality))
def test_each_modality_reads_itself_in_any_case(modality: Modality) -> None:
    assert read_modality(modality.value) is read_modality(modality.value.upper()) is modality


def test_modality_spellings() -> None:
    assert read_modality("X-ray") is read_modality("x ray") is read_modality("XRay") is Modality.XRAY
    assert read_modality("MRI") is Modality.MR
    with pytest.raises(BadInput, match=r"'fundos'.*did you mean fundus.*X-ray".replace("X-ray", "x-ray")):
        read_modality("fundos")
    with pytest.raises(BadInput, match="unknown; give one of ct"):
        read_modality("")

"""Opening images: confinement, caps, orientation, depth, and one clear line for each kind of bad file."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clinkd.data.images import kind_of, open_image, read_image_size
from clinkd.data.modality import read_modality
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


UPRIGHT = {  # EXIF 2.32, 4.6.4 A: where row 0 and column 0 of the stored pixels lie in the upright image
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_orientation_is_applied_and_recorded(tmp_path: Path, suffix: str, turned: int) -> None:
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :24], stored[16:, :24], stored[:16, 24:] = 250, 170, 90
    exif = Image.Exif()
    exif[0x0112] = turned
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    wanted = UPRIGHT[turned](stored)
    ref = read_image_size(tmp_path, f"a.{suffix}", "a")
    assert (ref.height, ref.width, ref.orientation) == (*wanted.shape[:2], turned)
    for image in (ref, ref.path):
        assert np.abs(np.asarray(open_image(tmp_path, image)).astype(int) - wanted).max() <= 3


def test_orientation_may_stand_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png", exif=exif)
    whole = (tmp_path / "a.png").read_bytes()
    start = whole.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    moved = whole[:start] + whole[end:-12] + whole[start:end] + whole[-12:]
    (tmp_path / "b.png").write_bytes(moved)
    ref = read_image_size(tmp_path, "b.png", "b")
    assert (ref.width, ref.height, ref.orientation) == (20, 40, 6)
    assert open_image(tmp_path, ref).size == (20, 40)


@pytest.mark.parametrize("number", [0, 9, 6000])
def test_an_orientation_that_is_none_is_upright(tmp_path: Path, number: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = number
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image_size(tmp_path, "a.jpg", "a") == ImageRef("a.jpg", 40, 20)


def test_the_pixels_of_a_plain_png_are_not_read_to_look_at_it(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    whole = bytearray((tmp_path / "a.png").read_bytes())
    at = whole.index(b"IDAT") + 6
    whole[at : at + 4] = b"\xff" * 4
    (tmp_path / "a.png").write_bytes(whole)
    assert read_image_size(tmp_path, "a.png", "a") == ImageRef("a.png", 40, 20)
    with pytest.raises(BadInput, match="cannot be read"):
        open_image(tmp_path, "a.png")


@pytest.mark.parametrize("suffix", ["tiff", "gif", "webp"])
def test_one_of_several_frames_is_named(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (30, 20), (80 * k, 0, 0)) for k in range(3)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert kind_of(tmp_path / f"a.{suffix}").describe(tmp_path / f"a.{suffix}", "a").frames == 3
    for k in range(3):
        picture = open_image(tmp_path, f"a.{suffix}#{k + 1}")
        assert picture.size == (30, 20) and abs(picture.getpixel((5, 5))[0] - 80 * k) <= 2  # type: ignore[index]
        assert read_image_size(tmp_path, f"a.{suffix}#{k + 1}", "a").path == f"a.{suffix}#{k + 1}"
    for job in (open_image, lambda root, name: read_image_size(root, name, f"image {name}")):
        with pytest.raises(BadInput, match=rf"image a.{suffix}: the file has 3 frames.*a.{suffix}#1 \(up to #3\)"):
            job(tmp_path, f"a.{suffix}")
        for number in (0, 4):
            with pytest.raises(BadInput, match=f"frame {number} of 3; frames count from 1"):
                job(tmp_path, f"a.{suffix}#{number}")


def test_frames_of_a_tiff_have_sizes_of_their_own(tmp_path: Path) -> None:
    big, small = Image.new("L", (30, 20)), Image.new("L", (9, 8))
    big.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    for number, size in ((1, (30, 20)), (2, (9, 8))):
        ref = read_image_size(tmp_path, f"a.tif#{number}", "a")
        assert (ref.width, ref.height) == open_image(tmp_path, ref).size == size
    with pytest.raises(BadInput, match="30x20 pixels"):
        open_image(tmp_path, "a.tif#1", max_pixels=100)
    assert open_image(tmp_path, "a.tif#2", max_pixels=100).size == (9, 8)


def test_a_number_sign_may_be_part_of_a_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 5)).save(tmp_path / "slice#2", "PNG")
    Image.new("RGB", (6, 7)).save(tmp_path / "a.png")
    assert open_image(tmp_path, "slice#2").size == (4, 5)
    assert open_image(tmp_path, "a.png#1").size == (6, 7)
    with pytest.raises(BadInput, match="frame 2 of 1"):
        open_image(tmp_path, "a.png#2")


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


def test_loops_of_links_and_pipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (("a.png", "not a usable path|no such file"), ("pipe.png", "no file at all")):
        for job in (open_image, lambda root, name: read_image_size(root, name, f"image {name}")):
            with pytest.raises(BadInput, match=f"image {name}: .*({reason})"):
                job(tmp_path, name)


def test_looking_refuses_what_opening_refuses(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "wide.png").write_bytes(png_header(9_000, 9_000))
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (tmp_path / "text.png").write_bytes(b"this is no image")
    for name in ("empty.png", "wide.png", "bomb.png", "text.png", "none.png", "../out.png"):
        said = []
        for job in (open_image, lambda root, name: read_image_size(root, name, f"image {name}")):
            with pytest.raises(BadInput) as found:
                job(tmp_path, name)
            said.append(str(found.value))
        assert said[0] == said[1]


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
    assert read_modality("MRI") is read_modality("MR (Mag-netic Resonance Imaging)") is Modality.MR
    assert read_modality("CT(Computed Tomography)") is read_modality("ct scans") is Modality.CT
    assert read_modality("Microscopy Images") is read_modality("Histology slides") is Modality.MICROSCOPY
    for text in ("OCT", "OCT (Optical Coherence Tomography", "mammography", "Other images"):
        assert read_modality(text) is Modality.OTHER, text
    assert read_modality("gastroscopy") is Modality.ENDOSCOPY and read_modality("CXR") is Modality.XRAY
    for text in ("PET (CT)", "thermography", "images", "()"):
        with pytest.raises(BadInput) as caught:
            read_modality(text)
        assert "did you mean" not in str(caught.value), "no hint rather than a wrong one"
    with pytest.raises(BadInput, match=r"'fundos'.*did you mean fundus.*X-ray".replace("X-ray", "x-ray")):
        read_modality("fundos")
    with pytest.raises(BadInput, match="unknown; give one of ct"):
        read_modality("")

"""Pictures that are written or sent are pixels alone: nothing of a file's comments, tags, profile or other texts."""

from __future__ import annotations

import base64
import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from clinkd.cli import main
from clinkd.data.images import encode_picture, open_image
from clinkd.data.images.upload import decode_frame
from clinkd.notebook import _open_picture
from clinkd.pipeline.correcting import encode_png_images
from clinkd.records import BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.reporting.viewer.overlay import draw_boxes
from clinkd.reporting.viewer.shot import thumbnail

CANARY = "CANARY"
FILES = ("a.png", "b.jpg", "c.gif", "d.tif", "e.webp", "grey.png", "palette.png")


def profile_with(text: bytes) -> bytes:
    """sRGB with red and blue exchanged, and a text of no use to anybody behind it."""
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(srgb[at : at + 4]): at + 4 for at in range(132, 132 + 12 * int.from_bytes(srgb[128:132]), 12)}
    red, blue = (slice(tags[name], tags[name] + 8) for name in (b"rXYZ", b"bXYZ"))
    srgb[red], srgb[blue] = srgb[blue], srgb[red]
    srgb += text + bytes(-len(text) % 4)
    return len(srgb).to_bytes(4) + bytes(srgb[4:])


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red picture in each format, with texts wherever the format has room for them."""
    folder = tmp_path_factory.mktemp("scans")
    icc = profile_with(f"{CANARY} profile".encode())
    exif = Image.Exif()
    exif[0x010E], exif[0x9286], exif.get_ifd(0x8825)[29] = CANARY, CANARY, CANARY
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", CANARY)
    texts.add_text("Author", CANARY, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", f"<x>{CANARY}</x>", zip=True)
    comment, xmp = CANARY.encode(), f"<x>{CANARY}</x>".encode()
    red = Image.new("RGB", (40, 30), "red")
    red.save(folder / "a.png", icc_profile=icc, pnginfo=texts, exif=exif)
    red.save(folder / "b.jpg", icc_profile=icc, comment=comment, exif=exif, xmp=xmp, quality=100)
    red.convert("P").save(folder / "c.gif", comment=comment)
    red.save(folder / "d.tif", icc_profile=icc, description=CANARY, software=CANARY, exif=exif)
    red.save(folder / "e.webp", icc_profile=icc, exif=exif, xmp=xmp, lossless=True)
    red.convert("L").save(folder / "grey.png", icc_profile=icc, pnginfo=texts)  # a profile of other colours
    red.quantize(4).save(folder / "palette.png", icc_profile=icc, pnginfo=texts)
    return folder


def texts_of(content: bytes) -> str:
    """All that can be read in a file, and in the pictures inside a page."""
    texts = [content.decode("latin-1")]
    for uri in re.findall(rb"base64,([A-Za-z0-9+/=]{40,})", content):
        texts.append(texts_of(base64.b64decode(uri)))
    return "\n".join(texts)


def is_clean(content: bytes) -> bool:
    assert len(content) > 60
    return not re.search(f"{CANARY}|exif|adobe|ICC_PROFILE|iCCP|zTXt|iTXt", texts_of(content), re.I)


def test_the_canary_is_found(scans: Path) -> None:
    assert [name for name in FILES if is_clean((scans / name).read_bytes())] == []


@pytest.mark.parametrize("name", FILES)
def test_an_opened_picture_has_pixels_alone_and_the_colours_of_its_profile(scans: Path, name: str) -> None:
    opened = open_image(scans, name)
    uploaded = decode_frame((scans / name).read_bytes()).picture
    wanted = {"c.gif": (255, 0, 0), "grey.png": (76, 76, 76)}.get(name, (0, 0, 255))
    for picture in (opened, uploaded, _open_picture(Image.open(scans / name))):
        assert picture.info == {} and not dict(picture.getexif()) and picture.mode == "RGB"
        pixel = picture.getpixel((20, 15))
        assert isinstance(pixel, tuple) and max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) <= 3


@pytest.mark.parametrize("name", FILES)
def test_a_written_picture_has_pixels_alone(scans: Path, name: str) -> None:
    with Image.open(scans / name) as dirty:  # by whatever way it comes
        for file_format in ("PNG", "JPEG", "TIFF"):
            picture = dirty if file_format == "PNG" else dirty.convert("RGB")
            assert is_clean(encode_picture(picture, file_format))
        assert is_clean(thumbnail(dirty, 160).uri.encode()) and is_clean(thumbnail(dirty, 20).uri.encode())
        assert is_clean(encode_picture(draw_boxes(dirty, [])))
    turn = Turn(Task.QA, BoxedText("Why?", ()), BoxedText("So.", ()))
    sample = Sample("q", (ImageRef(name, 40, 30),), Modality.CT, (turn,), "p")
    assert is_clean(encode_png_images(scans)(sample).encode())


@pytest.mark.parametrize("content", [b"no profile", b"", profile_with(b"")[:300]])
def test_a_damaged_profile_is_left_out(tmp_path: Path, content: bytes) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png", icc_profile=content)
    assert open_image(tmp_path, "a.png").getpixel((20, 15)) == (255, 0, 0)


def test_commands_write_pixels_alone(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open("sheet.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "question", "answer", "modality"])
        rows.writerows([name, "Is there a lesion?", "no", "ct"] for name in FILES)
    words = ["sheet.csv", "--images", str(scans)]
    assert main(["data", "import", *words, "--copy", "--out", "data"]) == 0
    ids = [json.loads(line)["id"] for line in Path("data/samples.jsonl").read_text().splitlines()]
    assert main(["data", "check", *words, "--page", "check.html"]) == 0
    for number, sample in enumerate(ids[:3]):
        assert main(["data", "show", *words, sample, "--out", f"shown{number}.png"]) == 0
    written = {p for p in tmp_path.rglob("*") if p.suffix in (".png", ".html")}
    assert len(written) == len(FILES) + 3 + 1
    assert [p for p in written if not is_clean(p.read_bytes())] == []

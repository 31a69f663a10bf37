"""Kinds of image files: a new one is a class in `KINDS`, and everything that reads images reads it."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clinkd.data import images
from clinkd.data.checks.check import Checks
from clinkd.data.dicom_objects import Model, ReportedAnswer, write_report
from clinkd.data.images import (
    KINDS,
    Facts,
    File,
    ImageFrame,
    ImageKind,
    kind_of,
    open_image,
    read_image_size,
    read_medical_facts,
)
from clinkd.data.images.identifying import has_burnt_in_text, identifying_texts
from clinkd.data.images.kind import Geometry, choose_frame, open_stream
from clinkd.data.images.limits import ON_DISK, FileLimits
from clinkd.data.images.upload import decode_frame
from clinkd.data.importing import import_data
from clinkd.data.readers import detect_form, dicom_folder
from clinkd.data.readers.forms import read_rows, read_samples
from clinkd.data.readers.source import Source
from clinkd.pipeline import prepared
from clinkd.records import BadInput, ImageRef, Modality
from clinkd.remote.scrub import PlainPage

GREY = np.array([[0, 20, 40], [60, 80, 100]], np.uint8)
CANARY = "Zqxw^Kanarienvogel"


class Stack:
    """Two frames of 3 x 2 pixels, the second of twice the grey of the first; a patient's name is all the file holds."""

    name, medical, reportable = "STACK", True, False

    def sniff(self, file: File) -> bool:
        try:
            with open_stream(file, "") as stream:
                return stream.read(5) == b"STACK"
        except (OSError, BadInput):
            return False

    def describe(
        self, file: File, place: str, frame: int | None = 1, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> Facts:
        choose_frame(frame, 2, file, place)
        return Facts(3, 2, 2, Modality.MR, patient="somebody", burned_in="YES")

    def open(
        self, file: File, place: str, frame: int | None, window: str | None = None, limits: FileLimits = ON_DISK
    ) -> ImageFrame:
        number = choose_frame(frame, 2, file, place)
        picture = Image.fromarray(number * GREY).convert("RGB")
        return ImageFrame(picture, self.describe(file, place), number)

    def geometry(self, file: File, place: str, limits: FileLimits = ON_DISK) -> Geometry:
        return Geometry()

    def instance_uid(self, path: Path, place: str) -> str:
        return ""

    def texts(self, path: Path, place: str) -> set[str]:
        return {path.read_bytes().decode().removeprefix("STACK")}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file of the new kind."""
    monkeypatch.setattr("clinkd.data.images.KINDS", (Stack(), *KINDS))
    monkeypatch.setattr(
        "clinkd.data.checks.near._SAFE_SUFFIXES", ("",)
    )  # look at images here: what is patched ends with a process
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "scan.bmp").write_bytes(b"STACK" + CANARY.encode())
    return folder


def test_the_first_kind_that_recognises_a_file_opens_it(tmp_path: Path, root: Path) -> None:
    Image.new("L", (5, 4)).save(root / "a.png")
    kinds: dict[str, ImageKind] = {name: kind_of(root / name) for name in ("scan.bmp", "a.png", "absent", ".")}
    assert {name: kind.name for name, kind in kinds.items()} == {
        "scan.bmp": "STACK", "a.png": "picture", "absent": "picture", ".": "picture",
    }  # fmt: skip


def test_frames_of_a_new_kind_are_found_and_opened(root: Path) -> None:
    assert read_image_size(root, "scan.bmp#2", "x", "40/400") == ImageRef("scan.bmp#2", 3, 2, window="40/400")
    for number in (1, 2):
        assert (np.asarray(open_image(root, f"scan.bmp#{number}"))[..., 0] == number * GREY).all()
    for job in (open_image, lambda root, name: read_image_size(root, name, "x")):
        with pytest.raises(BadInput, match="2 frames and none is named"):
            job(root, "scan.bmp")
        with pytest.raises(BadInput, match="frame 3 of 2"):
            job(root, "scan.bmp#3")
    facts = read_medical_facts(root, "scan.bmp", "x")
    assert facts is not None and facts.modality is Modality.MR
    assert has_burnt_in_text(root, ImageRef("scan.bmp#2"))
    with pytest.raises(BadInput, match="3x2 pixels, more than 5 in all"):
        read_image_size(root, "scan.bmp#1", "x", max_pixels=5)


def test_what_a_new_kind_says_of_a_person_is_scrubbed_from_pages(root: Path) -> None:
    image = ImageRef("scan.bmp#1", 3, 2)
    assert CANARY in identifying_texts(root, image)
    sheet = root / "rows.csv"
    sheet.write_text("image,question,answer,patient\nscan.bmp#1,Who is it?,Nobody.,p\n")
    (row,) = read_rows(Source(sheet), Counter())
    page = PlainPage(prepared.read_identifying_texts(root, row.samples))
    assert CANARY not in page(f"seen in {CANARY} today") and "today" in page(f"seen in {CANARY} today")


def test_a_new_kind_is_uploaded(root: Path) -> None:
    content = (root / "scan.bmp").read_bytes()
    shown = decode_frame(content, 2, "40/400")
    facts = shown.facts
    assert (facts.frames, shown.number, facts.modality, facts.burned_in) == (2, 2, Modality.MR, "YES")
    assert shown.picture.size == (3, 2)
    assert (np.asarray(shown.picture)[..., 0] == 2 * GREY).all()
    with pytest.raises(BadInput, match="not a DICOM, so no DICOM object"):
        write_report(content, ReportedAnswer("q", "a", [], Model("m", "1"), 1))


def test_a_folder_of_a_new_kind_is_checked_and_imported(tmp_path: Path, root: Path) -> None:
    assert detect_form(Source(root)) == detect_form(Source(root / "scan.bmp")) == "dicom"
    told: Counter[str] = Counter()
    (entry,) = read_rows(Source(root, window="40/400"), told)
    names = ["scan.bmp#1", "scan.bmp#2"]
    assert entry.images == tuple(ImageRef(name, 3, 2, window="40/400") for name in names)
    assert entry.group == "somebody" and told == {f"STACK {dicom_folder.NO_QUESTION}": 1}
    lines = list(dicom_folder.list_sheet_lines(root))
    assert [(x["image"], x["modality"], x["patient"], x["width"]) for x in lines] == [
        (name, "mr", "somebody", "3") for name in names
    ]  # fmt: skip
    Image.new("L", (5, 4)).save(root / "a.png")
    list(read_rows(Source(root, form="dicom"), told))
    assert told["files that are not STACK or DICOM or NIfTI"] == 1
    sheet = root / "rows.csv"
    sheet.write_text("image,question,answer,window\n" + "".join(f"{n},Is it white?,yes,40/400\n" for n in names))
    import_data([Source(sheet)], tmp_path / "out", Checks(), None)
    samples = read_samples(Source(tmp_path / "out"), Counter())
    assert [(s.images[0].path, s.modality, s.group) for s in samples] == [(n, Modality.MR, "somebody") for n in names]


@pytest.mark.parametrize("name", ["a.gif#2", "a.tif#1", "a.jpg"])
def test_texts_of_every_frame_and_comments_are_looked_for(tmp_path: Path, name: str) -> None:
    frames = [Image.new("L", (8, 6), grey) for grey in (0, 90)]
    if name == "a.jpg":
        frames[0].save(tmp_path / name, comment=CANARY.encode())
    elif name == "a.gif#2":
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], comment=CANARY.encode())
    else:
        frames[1].encoderinfo = {"tiffinfo": {270: CANARY}}
        frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert CANARY in identifying_texts(tmp_path, ImageRef(name))


def test_every_kind_of_image_stands_in_the_list() -> None:
    """A class with the methods of `ImageKind` that no list names would never be asked."""
    methods = {name for name in vars(ImageKind) if not name.startswith("_")}
    modules = [importlib.import_module(f"{images.__name__}.{m.name}") for m in pkgutil.iter_modules(images.__path__)]
    kinds = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and value is not ImageKind and methods <= {*dir(value)}
    }
    assert kinds == {type(kind) for kind in KINDS} and len(kinds) >= 2

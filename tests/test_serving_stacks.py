"""Stacks on the page of `clinkd serve`: many files as one volume, its planes, and boxes that are saved as data."""

from __future__ import annotations

import base64
import gzip
import io
import itertools
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nibabel import Nifti1Header, Nifti1Image
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from PIL import Image
from pydicom import dcmread

from browser import Browser, arrived
from clinkd.cli import main
from clinkd.data.images.upload import decode_frame, describe_head
from clinkd.data.readers.forms import read_rows
from clinkd.data.readers.source import Source
from serving import TOKEN, Server, picture, serving_model
from slices import GAP, SHAPE, VOLUME, ct, enhanced, place, write_series
from test_serving_page import FAINT, HIGH, NAMES, SMALL, WIDE, answered, draw, pixels, places, text
from test_serving_replies import ScriptedAnswerer


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_model(ScriptedAnswerer) as made:
        yield made


@pytest.fixture
def modules(chromium: Browser, server: Server) -> Iterator[Browser]:
    """The page in whatever state it is, where only its modules are asked; nothing may be complained of."""
    if chromium.origin != server.url:
        chromium.visit(f"{server.url}/?token={TOKEN}")
    yield chromium
    told, chromium.told = chromium.told, []
    assert told == []


def open_files(page: Browser, *paths: Path) -> None:
    page.ask("document.getElementById('facts').textContent = ''")
    page.choose("#file", *paths)
    page.until("document.getElementById('facts').textContent !== ''")


def at_slice(page: Browser, said: str) -> None:
    """Wait until a slice is shown: "axial slice 5 of 9"."""
    page.until(f"document.getElementById('stage').getAttribute('aria-label').endsWith('{said}')")


def through(values: Any, centre: float, width: float) -> Any:
    """Grey of values, as a window shows them."""
    return np.clip((values - (centre - width / 2)) / width, 0, 1) * 255


def shown(page: Browser) -> Any:
    return pixels(page)[..., 0].astype(float)


def sent_image(body: Any) -> bytes:
    url = next(part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url")
    return base64.b64decode(url.partition(",")[2])


def test_a_series_is_scrolled_and_asked_about_slice_by_slice(page, tmp_path):
    paths = write_series(tmp_path)
    damaged, foreign = tmp_path / "IM99", tmp_path / "notes.txt"
    damaged.write_bytes(paths[0].read_bytes()[:-400])
    foreign.write_text("no image at all")
    open_files(page, foreign, *reversed(paths), damaged)
    at_slice(page, "axial slice 5 of 9")
    assert text(page, "#left-out summary") == "2 files are left out"
    left = page.ask("[...document.querySelectorAll('#left-out li')].map((e) => e.textContent)")
    assert left[0].startswith("notes.txt: not an image") and left[1].startswith("IM99: cut: 24x20 pixels need 960")
    page.pick("#centre", "50")
    page.pick("#width", "500")
    assert np.abs(shown(page) - through(VOLUME[4], 50, 500)).max() <= 1
    ((x, y),) = places(page, (0.5, 0.5))
    page.wheel(x, y, 100)
    at_slice(page, "axial slice 6 of 9")
    page.ask("document.getElementById('stage').focus()")
    page.press("End")
    at_slice(page, "axial slice 9 of 9")
    assert np.abs(shown(page) - through(VOLUME[8], 50, 500)).max() <= 1  # the window stays
    page.pick("#frame", "2")
    at_slice(page, "axial slice 2 of 9")
    page.click("[data-task=overall]")
    body = answered(page)
    assert list(dcmread(io.BytesIO(sent_image(body))).ImagePositionPatient) == place(1)
    assert body["clinkd"]["frame"] is None and body["clinkd"]["window"] == "50/500"


HELD = """{ const real = fetch, held = new Promise((done) => { globalThis.release = done; }); let count = 0;
  globalThis.fetch = async (path, how) => {
    if (path === '/v1/series' && ++count > 1) await held;
    return real(path, how); }; }"""


def test_of_many_files_one_is_shown_and_asked_about_while_the_others_are_looked_at(page, tmp_path):
    paths = [tmp_path / f"IM{number}" for number in range(40)]
    for number, path in enumerate(paths):
        ct(VOLUME[number % 9], ImagePositionPatient=place(number), InstanceNumber=number + 1).save_as(path)
    page.ask(HELD)
    open_files(page, *reversed(paths))
    assert text(page, "#facts").startswith("IM20 ")
    page.pick("#centre", "50")
    page.pick("#width", "500")
    draw(page, (0.2, 0.2), (0.6, 0.7))
    page.click("[data-task=overall]")
    answered(page)
    page.ask("release()")
    at_slice(page, "axial slice 21 of 40")
    opened = [s.body["image"] for s in page.sent if s.path == "/v1/open"]
    assert len(set(opened)) == len(opened)  # it is not read again where its stack is known
    assert np.abs(shown(page) - through(VOLUME[20 % 9], 50, 500)).max() <= 1  # the window stays, box and answer too
    assert page.ask("document.getElementById('answer').checkVisibility()")
    assert page.ask("document.querySelectorAll('#boxes li').length") == 1
    page.pick("#frame", "30")
    at_slice(page, "axial slice 30 of 40")
    assert page.ask("document.querySelectorAll('#boxes li').length") == 0


def test_a_file_that_goes_while_others_are_looked_at_is_left_out(page, tmp_path):
    paths = [tmp_path / f"IM{number}" for number in range(40)]
    for number, path in enumerate(paths):
        ct(VOLUME[number % 9], ImagePositionPatient=place(number), InstanceNumber=number + 1).save_as(path)
    page.ask(HELD)
    open_files(page, *paths)
    paths[-1].unlink()
    page.ask("release()")
    at_slice(page, "axial slice 21 of 39")
    assert text(page, "#left-out li") == "IM39: it is empty, or gone"


def told_error(page: Browser) -> str:
    """The line about what went wrong, which is wiped then."""
    return str(page.until("(() => { const e = document.getElementById('error'), said = e.textContent;"
                          " e.textContent = ''; return said; })()"))  # fmt: skip


def test_a_film_that_goes_or_breaks_off_is_told_in_a_line_and_what_is_shown_is_named(page, tmp_path):
    path, empty = tmp_path / "film.dcm", tmp_path / "empty.dcm"
    empty.touch()
    page.choose("#file", empty)
    assert told_error(page)
    enhanced(range(45), np.tile(VOLUME, (5, 1, 1))).save_as(path)
    open_files(page, path)
    at_slice(page, "axial slice 23 of 45")
    cut_off = "new Response(new ReadableStream({ pull: (c) => c.error(new TypeError('network error')) }))"
    page.ask(f"globalThis.real = fetch; globalThis.fetch = async () => {cut_off}; 0")
    page.pick("#frame", "2")
    assert told_error(page) == "The server does not answer. Is clinkd serve still running?"
    page.pick("#plane", "coronal")
    assert told_error(page) == "The server does not answer. Is clinkd serve still running?"
    page.ask("globalThis.fetch = real; 0")
    path.unlink()
    page.pick("#frame", "1")
    assert told_error(page) == "The file could not be read."
    page.until("document.getElementById('frame-said').textContent === '23 of 45'")
    at_slice(page, "axial slice 23 of 45")
    page.pick("#plane", "sagittal")
    assert told_error(page) == "The file could not be read."
    assert page.ask("document.getElementById('plane').value") == "axial"
    said, page.told = page.told, []
    assert all("Failed to load resource" in line for line in said), said  # of the empty file


def test_other_planes_are_made_of_the_volume_and_asked_about_as_pictures(page, tmp_path):
    open_files(page, *write_series(tmp_path))
    at_slice(page, "axial slice 5 of 9")
    page.pick("#centre", "50")
    page.pick("#width", "500")
    rows = round((SHAPE[0] - 1) * GAP) + 1
    for plane, count, wanted in (
        ("coronal", SHAPE[1], VOLUME[::-1, SHAPE[1] - 1 - 4]),  # the fifth from the back; the head is above
        ("sagittal", SHAPE[2], VOLUME[::-1, :, SHAPE[2] - 1 - 4]),  # the fifth from the left
    ):
        page.pick("#plane", plane)
        page.until(f"document.getElementById('frame').max === '{count}'")
        page.pick("#frame", "5")
        at_slice(page, f"{plane} slice 5 of {count}")
        assert shown(page).shape == (rows, wanted.shape[1])
        assert np.abs(shown(page)[::2] - through(wanted, 50, 500)).max() <= 1
        between = (wanted[:-1].astype(float) + wanted[1:]) / 2
        assert np.abs(shown(page)[1::2] - through(between, 50, 500)).max() <= 1
    assert "not a frame of the file" in text(page, "#reformatted")
    assert text(page, "#facts").startswith("Sagittal plane of 9 files · ")
    assert page.ask("document.getElementById('reformatted').checkVisibility()")
    page.click("[data-task=overall]")
    body = answered(page)
    assert (np.asarray(Image.open(io.BytesIO(sent_image(body))).convert("RGB")) == pixels(page)).all()
    assert (body["clinkd"]["frame"], body["clinkd"]["window"]) == (None, None)
    assert text(page, "#sr-why") == "A DICOM SR needs a frame of the file; this slice was made of many."
    page.pick("#plane", "axial")
    at_slice(page, "axial slice 5 of 9")
    page.ask("document.querySelector('#history button').click()")
    at_slice(page, f"sagittal slice 5 of {SHAPE[2]}")
    page.pick("#frame", "6")
    at_slice(page, f"sagittal slice 6 of {SHAPE[2]}")


def test_one_of_several_series_is_chosen_and_a_film_has_no_planes(page, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    first = write_series(tmp_path / "a")
    second = write_series(tmp_path / "b", range(4), series="9.9", number=2, Modality="MR")
    film, cut = tmp_path / "film.dcm", tmp_path / "one.dcm"
    ct(VOLUME[:3], NumberOfFrames=3, series="8.8", ImagePositionPatient=place(0)).save_as(film)
    enhanced([2, 0, 1]).save_as(cut)
    open_files(page, film, *second, cut, *first)
    titles = page.ask("[...document.querySelectorAll('#stack option')].map((e) => e.textContent)")
    assert titles == [
        "Series 1: CT, axial, 9 slices of 24 × 20", "Series 2: MR, axial, 4 slices of 24 × 20",
        "Series 1: CT, 3 frames of 24 × 20", "Series 1: CT, axial, 3 slices of 24 × 20",
    ]  # fmt: skip
    page.pick("#stack", "1")
    at_slice(page, "axial slice 3 of 4")
    page.pick("#stack", "2")
    at_slice(page, "frame 1 of 3")
    assert text(page, "#flat") == "Other planes cannot be shown: the files do not say where each slice lies."
    assert page.ask("document.getElementById('planes').hidden && !document.getElementById('flat').hidden")
    page.pick("#stack", "3")
    at_slice(page, "axial slice 2 of 3")
    page.click("[data-task=overall]")
    assert answered(page)["clinkd"]["frame"] == 3  # of the file, where the second slice stands third


@pytest.mark.parametrize("ending", ["nii.gz", pytest.param("nii", marks=pytest.mark.slow)])
def test_a_nifti_is_unpacked_and_cut_by_the_page(page, tmp_path, ending):
    affine = np.diag([-1.0, -1, GAP, 1])  # columns count to the left, rows to the back
    path = tmp_path / f"v.{ending}"
    Nifti1Image(VOLUME.transpose(2, 1, 0), affine).to_filename(path)
    open_files(page, path)
    at_slice(page, "axial slice 5 of 9")
    content = path.read_bytes()
    wanted = decode_frame(gzip.decompress(content) if ending == "nii.gz" else content, 5)
    assert np.abs(shown(page) - np.asarray(wanted.picture)[..., 0]).max() <= 1
    page.click("[data-task=overall]")
    body = answered(page)
    sent = decode_frame(sent_image(body), body["clinkd"]["frame"], body["clinkd"]["window"])  # one slice of it
    assert np.abs(np.asarray(sent.picture, float) - np.asarray(wanted.picture)).max() <= 1
    page.pick("#centre", "50")
    page.pick("#width", "500")
    assert np.abs(shown(page) - through(VOLUME[4], 50, 500)).max() <= 1
    page.pick("#plane", "coronal")
    page.until(f"document.getElementById('frame').max === '{SHAPE[1]}'")
    page.pick("#frame", "5")
    at_slice(page, f"coronal slice 5 of {SHAPE[1]}")
    assert np.abs(shown(page)[::2] - through(VOLUME[::-1, SHAPE[1] - 1 - 4], 50, 500)).max() <= 1
    page.click("[data-task=overall]")
    answered(page)
    Image.new("L", (9, 9)).save(tmp_path / "other.png")
    open_files(page, tmp_path / "other.png")
    page.ask("document.querySelector('#history button').click()")  # the volume is read anew
    page.pick("#frame", "6")
    at_slice(page, f"coronal slice 6 of {SHAPE[1]}")
    assert np.abs(shown(page)[::2] - through(VOLUME[::-1, SHAPE[1] - 1 - 5], 50, 500)).max() <= 1


def test_a_packed_file_that_cannot_be_opened_is_told_in_a_line(page, tmp_path):
    whole, damaged, cut, other = (tmp_path / f"{name}.nii.gz" for name in ("whole", "damaged", "cut", "other"))
    rng = np.random.default_rng(0)
    Nifti1Image(rng.integers(0, 9999, (80, 80, 40), np.int16), np.eye(4)).to_filename(whole)
    content = whole.read_bytes()
    damaged.write_bytes(content[:-6] + bytes([content[-6] ^ 1]) + content[-5:])  # of the checksum
    cut.write_bytes(content[: len(content) // 2])
    other.write_bytes(gzip.compress(b"no image"))
    for path, why in ((damaged, "damaged"), (cut, "damaged"), (other, "not an image")):
        page.choose("#file", path)
        page.until(f"document.getElementById('error').textContent.includes({json.dumps(why)})")
        page.ask("document.getElementById('error').textContent = ''")
    page.ask("delete globalThis.DecompressionStream")
    page.choose("#file", whole)
    page.until("document.getElementById('error').textContent.includes('gunzip')")


def nifti(codes: str, dtype: str, slope: float = 1, volumes: int = 1) -> bytes:
    """A file with numbers of that type, turned as the codes say."""
    shape = (5, 6, 7, volumes)[: 3 + (volumes > 1)]
    values = np.random.default_rng(0).normal(0, 99, shape)
    affine = np.diag([2.0, 3.0, 2.5, 1]) @ np.linalg.inv(inv_ornt_aff(axcodes2ornt(codes), shape[:3]))
    image = Nifti1Image(
        (np.abs(values) if "u" in dtype else values).astype(dtype), affine, Nifti1Header(endianness=dtype[0])
    )
    image.header.set_data_dtype(np.dtype(dtype))
    image.header.set_slope_inter(slope, 7)
    return bytes(image.to_bytes())


KINDS_OF_NIFTI = [("RAS", "<i2"), ("LPS", ">i2"), ("SAR", "<f4"), ("PIR", ">f8"), ("ASL", "<u1"), ("RAS", "<i8")]


def test_the_page_cuts_the_slices_that_the_server_shows(modules):
    files = [nifti(codes, dtype) for codes, dtype in KINDS_OF_NIFTI] + [nifti("LPS", "<i2", 0.5, 2)]
    given, wanted = [], []
    for content in files:
        _, facts, geometry = describe_head(content, len(content))
        about = {"width": facts.width, "height": facts.height, "voxels": asdict(geometry)["voxels"]}
        given.append([about, base64.b64encode(content).decode(), facts.frames])
        wanted.append([decode_frame(content, n + 1) for n in range(facts.frames)])
    told = modules.ask(f"""import('/assets/nifti.js').then(({{ NiftiVolume }}) => Promise.all(
      {json.dumps(given)}.map(async ([about, content, frames]) => {{
        const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
        const volume = await NiftiVolume.read({{ ...about, file: new Blob([bytes]) }});
        return [...Array(frames).keys()].map((n) => [[...volume.values(n)], volume.measure(n)]); }})))""")
    for frames, expected in zip(told, wanted, strict=True):
        for (values, measured), frame in zip(frames, expected, strict=True):
            assert frame.grey is not None
            assert values == pytest.approx(frame.grey.to_values().ravel().tolist(), rel=1e-6)
            assert measured["level"] == pytest.approx(frame.window, rel=1e-5)
            assert measured["hounsfield"] == frame.hounsfield


FILE = {"kind": "DICOM", "width": 24, "height": 20, "frames": 1, "modality": "ct", "orientation": [1, 0, 0, 0, 1, 0],
        "spacing": [1, 1], "series": "s", "series_number": 1, "instance_number": None, "why": None}  # fmt: skip


def records(positions: list[list[float]], **fields: Any) -> list[dict[str, Any]]:
    named = enumerate(positions)
    return [{**FILE, "path": f"{n}", "file": {}, "positions": [p] if p else [], **fields} for n, p in named]


WHY_FLAT = [
    (records([[0, 0, z] for z in (0, 2, 4.01, 6)]), ""),
    (records([[0, 0, z] for z in (0, 2, 6)]), "the slices are not equally far apart (2 to 4 mm)"),
    (records([[0, z / 10, z] for z in (0, 2, 4)]), "the slices are shifted against each other, as by a tilted gantry"),
    (records([[0, 0, z] for z in (0, 2, 2)]), "several slices lie at one place"),
    (records([[0, 0, z] for z in (0, 2)]), "two slices make no volume"),
    (records([[0, 0, 0], [], [0, 0, 4]]), "the files do not say where each slice lies"),
    (records([[0, 0, z] for z in (0, 2, 4)], spacing=[]), "the files do not say how large a pixel is"),
    (records([[0, 0, z] for z in (0, 2, 4)], width=9000, height=4000),
     "it has 108 million voxels, and this page holds 100 million"),
]  # fmt: skip


def test_why_a_stack_is_no_volume_is_one_line(modules):
    told = modules.ask(f"""import('/assets/stack.js').then(({{ stacksOf }}) =>
      {json.dumps([files for files, _ in WHY_FLAT])}.map((files) => stacksOf(files).stacks[0].why))""")
    assert told == [why for _, why in WHY_FLAT]


def test_each_way_to_store_a_volume_gives_the_same_slices(modules):
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # [from the feet, from the front, from the right]
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=2):
            # the stack's slices, rows and columns along axes of the body: 0 up, 1 back, 2 left
            stored = volume.transpose(order)[:, :: signs[0], :: signs[1]]
            row, column = np.zeros(3), np.zeros(3)
            row[2 - order[2]], column[2 - order[1]] = signs[1], signs[0]
            normal = np.cross(row, column)
            positions = [(normal * 2 * n).tolist() for n in range(stored.shape[0])]
            if normal.sum() < 0:  # the first slice of a stack is the last along the body
                stored = stored[::-1]
            about = records(positions, width=stored.shape[2], height=stored.shape[1], spacing=[2, 2],
                            orientation=[*row.tolist(), *column.tolist()])  # fmt: skip
            found.append([about, stored.ravel().tolist()])
    code = f"""Promise.all([import('/assets/stack.js'), import('/assets/planes.js')]).then(([a, b]) =>
      {json.dumps(found)}.map(([files, values]) => {{
        const {{ stacks: [stack] }} = a.stacksOf(files);
        const volume = {{ space: stack.space, stored: values }};
        return [['axial', 2], ['coronal', 3], ['sagittal', 4]].map(([plane, count]) =>
          [...Array(count).keys()].map((n) => [...b.cut(volume, plane, n).values])); }}))"""
    slices = [
        [volume[n].ravel().tolist() for n in range(2)],
        [volume[::-1, 2 - n].ravel().tolist() for n in range(3)],
        [volume[::-1, :, 3 - n].ravel().tolist() for n in range(4)],
    ]
    told = modules.ask(code)
    assert len(told) == 24 and all(one == slices for one in told)


# ---- boxes as data ---------------------------------------------------------------------------------------------------


def label(page: Browser, row: int, words: str) -> None:
    field = f"#boxes li:nth-child({row}) [data-label]"
    page.type(field, words)
    page.until(f"document.querySelector({json.dumps(field)}).value === {json.dumps(words)}")


def imported_boxes(folder: Path, out: Path) -> dict[tuple[str, str], list[float]]:
    """The boxes of a folder after `clinkd data import`, in pixels, by image and name."""
    assert main(["data", "import", str(folder), "--out", str(out)]) == 0
    found = {}
    for sample in (sample for result in read_rows(Source(out), Counter()) for sample in result.samples):
        (image,) = sample.images
        for box in sample.turns[0].question.boxes:
            assert image.width and image.height
            size = [image.width, image.height] * 2
            found[image.path, sample.names[0]] = [v * n for v, n in zip(box.corners, size, strict=True)]
    return found


def test_boxes_with_names_are_saved_as_data_that_is_imported(page, tmp_path):
    series, volume, plain = tmp_path / "series", tmp_path / "v.nii", tmp_path / "kidney.png"
    series.mkdir()
    files = write_series(series)
    Nifti1Image(VOLUME.transpose(2, 1, 0), np.diag([-1.0, -1, GAP, 1])).to_filename(volume)
    picture(WIDE, HIGH).save(plain)
    drawn = {}
    open_files(page, *files)
    at_slice(page, "axial slice 5 of 9")
    assert page.ask("[...document.querySelectorAll('#names option')].map((e) => e.value)") == ["liver", "spleen"]
    drawn[f"images/{files[4].name}", "liver"] = draw(page, (0.1, 0.2), (0.5, 0.7))
    label(page, 1, "liver")
    draw(page, (0.6, 0.6), (0.9, 0.9))  # without a name it is no data
    assert text(page, "#noted") == "1 box with 1 name and 0 answers on 1 image."
    page.pick("#frame", "7")
    at_slice(page, "axial slice 7 of 9")
    assert page.ask("document.querySelectorAll('.mark').length") == 0
    drawn[f"images/{files[6].name}", "left kidney"] = draw(page, (0.3, 0.3), (0.6, 0.6))
    label(page, 1, "left kidney")
    page.type("#note-answer", "A slice through the kidneys.")
    page.pick("#frame", "5")
    at_slice(page, "axial slice 5 of 9")
    assert page.ask("document.querySelector('.mark .name').textContent") == "A liver"
    assert page.ask("document.getElementById('note-answer').value") == ""
    page.pick("#plane", "coronal")
    page.until(f"document.getElementById('frame').max === '{SHAPE[1]}'")
    draw(page, (0.3, 0.3), (0.6, 0.6))
    assert page.ask("document.querySelector('#boxes [data-label]').hidden") and "of no file" in text(page, "#noted")
    open_files(page, volume)
    at_slice(page, "axial slice 5 of 9")
    drawn["images/v.nii#5", "spleen"] = draw(page, (0.5, 0.1), (0.8, 0.4))
    label(page, 1, "spleen")
    open_files(page, plain)
    drawn["images/kidney.png", "cyst"] = draw(page, (0.25, 0.25), (0.5, 0.5))
    label(page, 1, "cyst")
    assert text(page, "#noted") == "4 boxes with 4 names and 1 answer on 4 images."
    out = tmp_path / "out"
    out.mkdir()
    page.downloads(out)
    page.click("#save-data")
    page.until("document.getElementById('error').textContent.includes('choose the modality')")
    page.pick("#note-modality", "ultrasound")
    page.click("#save-data")
    with zipfile.ZipFile(io.BytesIO(arrived(out, "zip"))) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "data")
    assert (tmp_path / "data" / "images" / files[4].name).read_bytes() == files[4].read_bytes()
    imported = imported_boxes(tmp_path / "data", tmp_path / "mydata")
    sizes = {name: (WIDE, HIGH) if "png" in name else (SHAPE[2], SHAPE[1]) for name, _ in drawn}
    assert imported.keys() == drawn.keys()
    for (name, words), corners in drawn.items():
        wanted = [v * n for v, n in zip(corners, sizes[name] * 2, strict=True)]
        assert imported[name, words] == pytest.approx(wanted, abs=0.5), name
    page.click("#save-boxes")
    lines = [json.loads(line) for line in arrived(out, "jsonl").decode().splitlines()]
    assert [line["image"] for line in lines] == [files[4].name, files[6].name, "v.nii#5", "kidney.png"]
    assert [line["modality"] for line in lines] == ["ct", "ct", "ultrasound", "ultrasound"]
    assert lines[1]["qa"] == [{"question": "What does this image show?", "answer": "A slice through the kidneys."}]


@pytest.mark.parametrize(("width", "dark"), [(360, False), pytest.param(1280, True, marks=pytest.mark.slow)])
def test_the_page_with_a_stack_is_named_contrasting_and_roomy(page, server, tmp_path, width, dark):
    files = write_series(tmp_path)
    page.visit(f"{server.url}/", width, 740, dark=dark)
    page.until("document.getElementById('state').dataset.state === 'ready'")
    (tmp_path / "notes.txt").write_text("no image")
    open_files(page, *files, tmp_path / "notes.txt")
    draw(page, (0.2, 0.2), (0.6, 0.6))
    page.ask("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.ask(NAMES) == [] and page.ask(SMALL) == [] and page.ask(FAINT) == []
    assert page.ask("document.documentElement.scrollWidth") == width

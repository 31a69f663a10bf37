"""The reader of SA-Med2D folders: parts of masks as boxes against brute force, class maps, and each fault by name."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clinkd.data.readers import masks
from clinkd.data.readers.rows import RowResult
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Box, Modality, Sample, Task

STEM = "ct_00--KiTS--case_00001--x_0040"
GOOD = "mr_t1--BraTS2021--BraTS2021_00218--z_0141"
MAP = {"KiTS": {"kidney": "0000", "kidney_tumor": "0001"}, "BraTS2021": {"edema": "0001", "necrosis": "0000"}}
HEIGHT, WIDTH = 40, 60


def blank(value: int = 0, shape: tuple[int, ...] = (HEIGHT, WIDTH)) -> NDArray[np.uint8]:
    return np.full(shape, value, dtype=np.uint8)


def spot(x1: int, y1: int, x2: int, y2: int, value: int = 255) -> NDArray[np.uint8]:
    mask = blank()
    mask[y1:y2, x1:x2] = value
    return mask


def save(file: Path, values: NDArray[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


def folder(root: Path, classes: object = MAP) -> Path:
    """A good image with a good mask, and a class map."""
    save(root / "images" / f"{GOOD}.png", blank(90))
    save(root / "masks" / f"{GOOD}--0001_000.png", spot(0, 0, 30, 20))
    if classes is not None:
        (root / masks.CLASS_FILES[0]).write_text(json.dumps(classes))
    return root


def add(root: Path, stem: str = STEM, image: NDArray[Any] | None = None, **ends: NDArray[Any]) -> None:
    """An image and its masks; `c0000_000` stands for the mask `--0000_000.png`."""
    save(root / "images" / f"{stem}.png", blank(50) if image is None else image)
    for end, values in ends.items():
        save(root / "masks" / f"{stem}--{end[1:]}.png", values)


def read(root: Path, **changes: Any) -> tuple[list[RowResult], Counter[str]]:
    told: Counter[str] = Counter()
    return list(masks.read(Source(root, **changes), told)), told


def boxes(samples: Iterable[Sample]) -> dict[str, list[tuple[float, ...]]]:
    """Name -> its boxes in pixels, as visual grounding answers them."""
    scale = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    found = {}
    for s in samples:
        if s.task is Task.VG:
            corners = ((b.x1, b.y1, b.x2, b.y2) for b in s.answer.boxes)
            found[s.names[0]] = [tuple(round(v * k, 6) for v, k in zip(c, scale, strict=True)) for c in corners]
    return found


# ---- parts of a mask ------------------------------------------------------------------------------------------------


def brute_parts(mask: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """8-connected parts as sets of (row, column), by flooding."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    parts = []
    while left:
        front, part = [left.pop()], set()
        while front:
            y, x = front.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
        parts.append(part)
    return parts


def extent(part: set[tuple[int, int]], shape: tuple[int, ...]) -> Box:
    (height, width), ys, xs = shape, [y for y, _ in part], [x for _, x in part]
    return Box(min(xs) / width, min(ys) / height, (max(xs) + 1) / width, (max(ys) + 1) / height)


def random_mask(dice: random.Random) -> NDArray[np.bool_]:
    height, width = dice.randint(1, 14), dice.randint(1, 14)
    density = dice.choice((0.05, 0.2, 0.4, 0.8))
    return np.array([[dice.random() < density for _ in range(width)] for _ in range(height)])


def test_parts_are_those_of_brute_force() -> None:
    dice = random.Random(0)
    seen = Counter()
    for _ in range(400):
        mask = random_mask(dice)
        parts = brute_parts(mask)
        found = masks.find_regions(mask, speck_share=0)
        assert found.specks == 0
        assert Counter(found.boxes) == Counter(extent(p, mask.shape) for p in parts)
        seen[min(len(parts), 4)] += 1
    assert set(seen) == {0, 1, 2, 3, 4}


def test_boxes_cover_every_pixel_and_are_tight() -> None:
    dice = random.Random(1)
    for _ in range(200):
        mask = random_mask(dice)
        height, width = mask.shape
        covered = np.zeros_like(mask)
        for b in masks.find_regions(mask, speck_share=0).boxes:
            x1, y1, x2, y2 = (round(v) for v in (b.x1 * width, b.y1 * height, b.x2 * width, b.y2 * height))
            part = mask[y1:y2, x1:x2]
            assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
            covered[y1:y2, x1:x2] = True
        assert not (mask & ~covered).any()


def test_specks_are_left_out_and_the_largest_part_stays() -> None:
    dice = random.Random(2)
    dropped = 0
    for _ in range(300):
        mask, share = random_mask(dice), dice.choice((0.01, 0.05, 0.2, 0.9))
        parts = sorted(brute_parts(mask), key=len, reverse=True)
        large = [p for p in parts if len(p) >= share * mask.size]
        found = masks.find_regions(mask, share)
        assert len(found.boxes) + found.specks == len(parts)
        assert len(found.boxes) == (max(len(large), 1) if parts else 0)
        longest = [extent(p, mask.shape) for p in parts if len(p) == len(parts[0])]
        assert not parts or set(longest) & set(found.boxes)
        assert set(found.boxes) >= {extent(p, mask.shape) for p in large}
        dropped += found.specks
    assert dropped > 100


# ---- a folder -------------------------------------------------------------------------------------------------------


def test_a_folder_of_the_release_becomes_samples(tmp_path: Path) -> None:
    root = folder(tmp_path)
    kidneys = spot(2, 3, 12, 13) | spot(40, 5, 52, 17)
    add(root, c0000_000=kidneys, c0001_000=spot(42, 7, 46, 9, value=1), c0001_001=spot(50, 30, 60, 40))
    found, told = read(root, tasks=(Task.VG, Task.ROC, Task.RC))
    assert [(e.row, e.problem) for e in found] == [(1, None), (2, None)] and not told
    ct, mr = (e.samples for e in found)
    assert boxes(ct) == {
        "kidney": [(2, 3, 12, 13), (40, 5, 52, 17)],
        "kidney tumor": [(42, 7, 46, 9), (50, 30, 60, 40)],
    }
    assert boxes(mr) == {"edema": [(0, 0, 30, 20)]}, "numbers of classes count anew in each dataset"
    assert Counter(s.task for s in ct) == {Task.VG: 2, Task.ROC: 4, Task.RC: 4}
    for s in ct:
        assert (s.modality, s.side, s.group, s.source) == (Modality.CT, "patient", "KiTS--case_00001", "KiTS")
        assert s.images[0].to_json() == {"path": f"images/{STEM}.png", "width": WIDTH, "height": HEIGHT}
    assert len({s.id for s in (*ct, *mr)}) == len(ct) + len(mr)
    assert read(root, tasks=(Task.VG, Task.ROC, Task.RC))[0] == found


@pytest.mark.parametrize(
    ("prefix", "modality"),
    [
        ("ct_cbf", Modality.CT), ("dermoscopy_00", Modality.DERMOSCOPY), ("endoscopy_00", Modality.ENDOSCOPY),
        ("fundus_photography", Modality.FUNDUS), ("mr_t1ce", Modality.MR), ("pet_00", Modality.PET),
        ("ultrasound_00", Modality.ULTRASOUND), ("x_ray", Modality.XRAY),
    ],
)  # fmt: skip
def test_every_modality_of_the_release_is_told_by_the_name(tmp_path: Path, prefix: str, modality: Modality) -> None:
    root = folder(tmp_path, {"crass": {"clavicle": "0000"}, **MAP})
    add(root, f"{prefix}--crass--a--b--2d_none", c0000_000=spot(1, 1, 9, 9))
    (entry,) = [e for e in read(root)[0] if e.samples[0].source == "crass"]
    assert {(s.modality, s.group) for s in entry.samples} == {(modality, "crass--a--b")}


@pytest.mark.parametrize(
    "classes",
    [
        {"liver": "0003", "left_lung": "0001"}, {"liver": 3, "left_lung": 1}, {"0003": "liver", "0001": "left_lung"},
        {"3": "liver", "1": "left_lung"}, {"KiTS": {"0003": "liver", "0001": "left_lung"}, "BraTS2021": {"edema": 1}},
    ],
)  # fmt: skip
def test_maps_of_both_directions_and_kinds_are_read(tmp_path: Path, classes: object) -> None:
    root = folder(tmp_path, classes)
    add(root, c0003_000=spot(1, 1, 9, 9), c0001_000=spot(20, 1, 29, 9))
    found, _ = read(root)
    assert set(boxes(found[0].samples)) == {"liver", "left lung"}


def test_a_map_of_the_caller_goes_before_that_of_the_folder(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"whole_tumour": "0001"}))
    assert set(boxes(read(root, names=own)[0][0].samples)) == {"whole tumour"}
    (root / "inside.json").write_text(json.dumps({"oedema": "0001"}))
    assert set(boxes(read(root, names=Path("inside.json"))[0][0].samples)) == {"oedema"}


def test_a_plain_folder_has_the_names_in_its_masks(tmp_path: Path) -> None:
    save(tmp_path / "images" / "p7_scan.png", blank(9))
    save(tmp_path / "masks" / "p7_scan--left_lung.png", spot(1, 2, 9, 9))
    save(tmp_path / "masks" / "p7_scan--nodule_000.png", spot(3, 4, 5, 6))
    save(tmp_path / "masks" / "p7_scan--nodule_001.png", spot(13, 4, 15, 6))
    (entry,), _ = read(tmp_path, modality=Modality.CT, group=r"p\d+", side="image")
    assert boxes(entry.samples) == {"left lung": [(1, 2, 9, 9)], "nodule": [(3, 4, 5, 6), (13, 4, 15, 6)]}
    assert {(s.group, s.source, s.side) for s in entry.samples} == {("p7", tmp_path.name, "image")}
    (entry,), _ = read(tmp_path)
    assert entry.problem is not None and "--modality" in entry.problem.why


def test_images_may_stay_closed_and_lie_elsewhere(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    (root / "images").rename(tmp_path / "images")
    (entry,), _ = read(root, images=tmp_path, open_images=False)
    assert boxes(entry.samples) == {"edema": [(0, 0, 30, 20)]} and entry.samples[0].images[0].width is None


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA"])
def test_masks_of_every_storage_are_read_alike(tmp_path: Path, mode: str) -> None:
    root = folder(tmp_path)
    add(root, c0000_000=spot(1, 1, 9, 9))
    file = root / "masks" / f"{STEM}--0000_000.png"
    image = Image.fromarray(spot(1, 1, 9, 9)).convert(mode)
    if mode == "P":
        image = Image.frombytes("P", image.size, spot(1, 1, 9, 9, value=1).tobytes())
        image.putpalette([200, 30, 40, 0, 90, 0])  # label tools colour the background, too
    image.save(file)
    with Image.open(file) as stored:
        assert stored.mode == mode
    assert boxes(read(root)[0][0].samples) == {"kidney": [(1, 1, 9, 9)]}


# ---- what is left out -----------------------------------------------------------------------------------------------


def test_specks_and_empty_masks_are_counted(tmp_path: Path) -> None:
    root = folder(tmp_path)
    add(root, c0000_000=spot(1, 1, 21, 21) | spot(40, 10, 41, 11) | spot(50, 10, 51, 12), c0001_000=blank())
    (ct, _), told = read(root, min_area=0.01)
    assert boxes(ct.samples) == {"kidney": [(1, 1, 21, 21)]}
    assert told == {
        "specks below 0.01 of the picture, beside a larger part": 2,
        "masks without a pixel, whose class is not there": 1,
    }
    (ct, _), told = read(root)
    assert len(boxes(ct.samples)["kidney"]) == 3 and len(told) == 1
    with pytest.raises(BadInput, match="--specks 2"):
        read(root, min_area=2)


def test_a_mask_of_the_whole_image_is_told(tmp_path: Path) -> None:
    root = folder(tmp_path)
    add(root, c0000_000=blank(255), c0001_000=spot(1, 1, 21, 21))
    _, told = read(root)
    assert told == {"masks of which a part reaches all four borders: is the background marked, or all of the image?": 1}


def test_nothing_is_counted_of_an_image_that_is_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path)
    add(root, c0000_000=blank(), c0001_000=spot(1, 1, 9, 9, value=7))
    found, told = read(root)
    assert found[0].problem and not told


def test_other_files_are_counted(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "images" / "Thumbs.db").write_text("")
    (root / "masks" / "more").mkdir()
    found, told = read(root)
    assert len(found) == 1
    assert told == {"entries of images/ that are no image files": 1, "entries of masks/ that are no image files": 1}


def test_the_list_of_the_release_tells_what_is_missing(tmp_path: Path) -> None:
    root = folder(tmp_path)
    add(root, c0000_000=spot(1, 1, 9, 9))
    listed = {
        f"images/{GOOD}.png": [f"masks/{GOOD}--0001_000.png"],
        f"images/{STEM}.png": [f"masks/{STEM}--0000_000.png", f"masks/{STEM}--0000_001.png"],
        "images/ct_00--KiTS--case_00009--x_0001.png": ["masks/ct_00--KiTS--case_00009--x_0001--0000_000.png"],
    }
    (root / masks.LIST_FILE).write_text(json.dumps(listed))
    found, told = read(root)
    assert told == {"images that SAMed2D_v1.json lists and the folder has not": 1}
    problem = found[0].problem
    assert problem is not None and problem.row == 1 and "0000_001.png" in problem.value and "unpack" in problem.why
    assert found[1].problem is None
    (root / masks.LIST_FILE).write_text(json.dumps([1]))
    with pytest.raises(BadInput, match=r"SAMed2D_v1\.json"):
        read(root)


# ---- faults ---------------------------------------------------------------------------------------------------------

COLOURED = blank(0, (HEIGHT, WIDTH, 3))
COLOURED[3:9, 3:9, 0] = 255
CLEAR = np.dstack([spot(1, 1, 9, 9), spot(1, 1, 9, 9)])
NOISE = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
FINE = spot(1, 1, 9, 9)

FAULTS: dict[str, tuple[dict[str, NDArray[Any]], str, str, str]] = {
    "other size": ({"c0000_000": spot(1, 1, 9, 9).T}, "mask", "0000_000", "40x60 pixels where the image has 60x40"),
    "multi-label": ({"c0000_000": FINE // 255 + spot(20, 20, 30, 30, 2)}, "mask", "0000_000", "the values 0, 1, 2;"),
    "1 and 255": ({"c0000_000": FINE | spot(20, 20, 30, 30, 1)}, "mask", "0000_000", "the values 0, 1, 255;"),
    "one other value": ({"c0000_000": spot(1, 1, 9, 9, 128)}, "mask", "0000_000", "the values 0, 128;"),
    "grey levels": ({"c0000_000": NOISE}, "mask", "0000_000", "... (256 in all)"),
    "16 bits": ({"c0000_000": FINE.astype(np.uint16) * 257}, "mask", "0000_000", "the values 0, 65535;"),
    "colours": ({"c0000_000": COLOURED}, "mask", "0000_000", "colours"),
    "transparent": ({"c0000_000": CLEAR}, "mask", "0000_000", "transparent"),
    "all empty": (
        {"c0000_000": blank(), "c0001_000": blank()},
        "masks",
        "0000_000",
        "no mask of this image has a pixel",
    ),
    "second bad": ({"c0000_000": FINE, "c0001_000": NOISE}, "mask", "0001_000", "256 in all"),
    "class unknown": ({"c0009_000": FINE}, "mask", "0009_000", "class 0009 is not there"),
    "no class": ({"c0000_0": FINE}, "mask", "0000_0", "neither the number nor the name"),
    "no masks": ({}, "masks", STEM, "no mask of this image"),
}


@pytest.mark.parametrize(("ends", "where", "value", "told"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_image_is_left_out_whole_and_named(
    tmp_path: Path, ends: dict[str, NDArray[Any]], where: str, value: str, told: str
) -> None:
    root = folder(tmp_path)
    add(root, **ends)
    bad, good = read(root)[0]
    assert good.problem is None and good.samples and not bad.samples
    assert bad.problem is not None
    assert (bad.problem.row, bad.problem.id, bad.problem.field) == (1, STEM, where)
    assert value in bad.problem.value and told in bad.problem.why and "\n" not in str(bad.problem)
    assert bad.raw["masks"] == [f"masks/{STEM}--{end[1:]}.png" for end in sorted(ends)]


def damaged(root: Path) -> None:
    add(root, c0000_000=spot(1, 1, 9, 9))
    file = root / "masks" / f"{STEM}--0000_000.png"
    file.write_bytes(file.read_bytes()[:-30])


def no_picture(root: Path) -> None:
    add(root, c0000_000=FINE)
    (root / "masks" / f"{STEM}--0000_000.png").write_text("mask")


def empty_file(root: Path) -> None:
    add(root, c0000_000=FINE)
    (root / "images" / f"{STEM}.png").write_bytes(b"")


def two_images(root: Path) -> None:
    add(root, c0000_000=FINE)
    Image.fromarray(blank()).save(root / "images" / f"{STEM}.bmp")


def no_dataset(root: Path) -> None:
    add(root, "ct_00--WORD--c1--x_0001", c0000_000=FINE)


def no_modality(root: Path) -> None:
    add(root, "camera_00--KiTS--c1--x_0001", c0000_000=FINE)


def two_names(root: Path) -> None:
    (root / masks.CLASS_FILES[0]).write_text(json.dumps(MAP | {"KiTS": {"kidney": "0000", "cyst": "000"}}))
    add(root, c0000_000=FINE)


def mark(root: Path) -> None:
    add(root, "ct_00--KiTS--[box]--x_0001", c0000_000=FINE)


def no_patient(root: Path) -> None:
    add(root, "ct_00--KiTS--c1--x_0001", c0000_000=FINE)


SETTINGS = [
    (damaged, "mask", "cannot be read"), (no_picture, "mask", "not an image"), (empty_file, "image", "empty (0 bytes)"),
    (two_images, "image", "several images of one name"), (no_dataset, "mask", "dataset WORD is not in"),
    (no_modality, "modality", "--modality"), (two_names, "mask", "several names (kidney, cyst)"),
    (mark, "image", "kept for"), (no_patient, "image", "finds no patient"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "where", "told"), SETTINGS, ids=[s[0].__name__ for s in SETTINGS])
def test_a_faulty_file_or_name_is_named(tmp_path: Path, make: Any, where: str, told: str) -> None:
    root = folder(tmp_path)
    make(root)
    found, _ = read(root, group="Bra.+?--" if make is no_patient else None)
    problem = next(e.problem for e in found if e.problem)
    assert problem.row == 1 and problem.field == where and told in problem.why
    assert [e.row for e in found if e.samples] == [2]


def test_masks_without_image_are_rows_of_their_own(tmp_path: Path) -> None:
    root = folder(tmp_path)
    for end in ("0000_000", "0001_000"):
        save(root / "masks" / f"{STEM}--{end}.png", FINE)
    save(root / "masks" / "left.png", FINE)
    good, stray, orphan = read(root)[0]
    assert good.samples and orphan.problem and stray.problem
    assert (orphan.row, orphan.problem.id, orphan.problem.field) == (3, STEM, "image")
    assert "no image of this name for 2 masks" in orphan.problem.why and len(orphan.raw["masks"]) == 2
    assert (stray.row, stray.problem.value) == (2, "masks/left.png") and "not named after" in stray.problem.why


BAD_MAPS = [
    ('{"KiTS": {"kidney": "0000"', "not JSON at byte"), ('["kidney"]', "not a map"), ("{}", "not a map"),
    ('{"kidney": "0000", "0001": "tumor"}', "'0001': 'tumor'"), ('{"0": "1", "1": "2"}', "a name is wanted"),
    ('{"kidney": "0000", "kidney": "0001"}', "'kidney' stands twice"), ('{"kidney": "first"}', "neither name"),
    ('{"KiTS": {"kidney": null}}', "KiTS: 'kidney'"), ('{"0000": ""}', "a name is wanted"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), BAD_MAPS)
def test_a_bad_map_is_named_with_its_file(tmp_path: Path, text: str, told: str) -> None:
    root = folder(tmp_path)
    (root / masks.CLASS_FILES[0]).write_text(text)
    with pytest.raises(BadInput) as error:
        read(root)
    assert masks.CLASS_FILES[0] in str(error.value) and told in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        read(tmp_path)
    with pytest.raises(BadInput, match="not a folder"):
        read(tmp_path / "none")
    (tmp_path / "images").mkdir()
    with pytest.raises(BadInput, match="no image files"):
        read(tmp_path)
    root = folder(tmp_path, classes=None)
    with pytest.raises(BadInput, match="no map names them"):
        read(root)
    with pytest.raises(BadInput, match=r"none\.json: no such file"):
        read(root, names=Path("none.json"))
    for name in masks.CLASS_FILES:
        (root / name).write_text(json.dumps(MAP))
    with pytest.raises(BadInput, match="--names"):
        read(root)


def test_maps_name_what_they_lack_and_no_class_is_guessed(tmp_path: Path) -> None:
    root = folder(tmp_path, {"BraTS2021": {"kidney": "0000"}})
    (entry,), _ = read(root)
    assert entry.problem is not None
    assert "class 0001 is not there" in entry.problem.why and "dataset BraTS2021" in entry.problem.why

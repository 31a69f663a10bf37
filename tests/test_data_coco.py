"""The reader of COCO: boxes and masks against pycocotools, what an image may say of itself, and each fault by name."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle

from clinkd.data.readers import coco
from clinkd.data.readers.rows import RowResult
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Modality, Sample, Task

WIDTH, HEIGHT = 100, 50
Data = dict[str, Any]


def image(number: int, **changes: Any) -> Data:
    return {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT} | changes


def mark(number: int, picture: int, bbox: Any, category: int = 1, **changes: Any) -> Data:
    made = {"id": number, "image_id": picture, "category_id": category, "bbox": bbox, "iscrowd": 0}
    return made | changes


def data() -> Data:
    """Image 1 is good, image 2 is there to be spoiled, image 3 is good."""
    return {
        "info": {"year": 2024},
        "images": [image(1), image(2), image(3)],
        "annotations": [
            mark(11, 1, [10, 10, 30, 20]), mark(12, 2, [20.5, 10, 30, 20.25]), mark(13, 3, [0, 0, 100, 50], 2),
            mark(14, 1, [60, 5, 40, 45]),
        ],
        "categories": [
            {"id": 1, "name": "left lung", "supercategory": "x-ray"},
            {"id": 2, "name": "heart", "supercategory": "xray"},
        ],
    }  # fmt: skip


def write(root: Path, value: Any, name: str = "instances.json") -> Path:
    for number in range(1, 6):
        if not (root / f"{number}.png").exists():
            Image.new("L", (WIDTH, HEIGHT)).save(root / f"{number}.png")
    (root / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return root / name


def read(path: Path, **changes: Any) -> tuple[list[RowResult], Counter[str]]:
    told: Counter[str] = Counter()
    return list(coco.read(Source(path, **changes), told)), told


def boxes(samples: Iterable[Sample]) -> list[tuple[str, tuple[float, ...]]]:
    """(name, x, y, width, height) in pixels of every box, in the order of the file."""
    scale = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    found = []
    for s in samples:
        if s.task is Task.ROC:
            (b,) = s.question.boxes
            corners = zip((b.x1, b.y1, b.width, b.height), scale, strict=True)
            found.append((s.answer.text, tuple(round(v * k, 6) for v, k in corners)))
    return found


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_objects_become_samples(tmp_path: Path) -> None:
    found, told = read(write(tmp_path, data()), tasks=(Task.VG, Task.ROC, Task.RC))
    assert [(e.row, e.problem) for e in found] == [(1, None), (2, None), (3, None)] and not told
    samples = [s for e in found for s in e.samples]
    assert boxes(samples) == [
        ("left lung", (10, 10, 30, 20)), ("left lung", (60, 5, 40, 45)), ("left lung", (20.5, 10, 30, 20.25)),
        ("heart", (0, 0, 100, 50)),
    ]  # fmt: skip
    assert Counter(s.task for s in samples) == {Task.VG: 3, Task.ROC: 4, Task.RC: 4}
    for s in samples:
        assert (s.modality, s.side, s.source, s.split) == (Modality.XRAY, "patient", "instances", None)
        assert s.group == s.images[0].path and s.images[0].width == WIDTH
    assert len({s.id for s in samples}) == len(samples)


def test_an_image_may_say_what_it_is(tmp_path: Path) -> None:
    value = data()
    ours = {"modality": "ct", "group": "p1", "source": "kits", "side": "image", "split": "test", "samples": [1]}
    value["images"][0] |= {"clinkd": ours}
    value["images"][1] |= {"modality": "MRI", "patient": 17, "split": "val"}
    found, _ = read(write(tmp_path, value, "instances_train2017.json"))
    assert [e.problem.field for e in found if e.problem] == ["split", "split"]
    assert "the name of the file, or of its folder, says train" in str(found[0].problem)
    found, _ = read(write(tmp_path, value, "trainval2017.json"), split="train")
    said = [{(s.modality, s.group, s.source, s.side, s.split) for s in e.samples} for e in found]
    assert said == [
        {(Modality.CT, "p1", "kits", "image", "test")},
        {(Modality.MR, "17", "trainval2017", "patient", "validation")},
        {(Modality.XRAY, "3.png", "trainval2017", "patient", "train")},
    ]
    found, _ = read(tmp_path / "trainval2017.json", split="test", side="image", modality=Modality.PET, group=".")
    (last,) = {(s.modality, s.group, s.side, s.split) for s in found[2].samples}
    assert {s.split for s in found[1].samples} == {"validation"}
    assert last == (Modality.XRAY, "3", "image", "test"), "the modality of a supercategory is the file's own word"


def test_the_source_gives_a_modality_where_no_supercategory_is_one(tmp_path: Path) -> None:
    value = data()
    for category, kind in zip(value["categories"], ("organ", "other"), strict=True):
        category["supercategory"] = kind
    found, _ = read(write(tmp_path, value))
    assert [e.problem.field for e in found if e.problem] == ["modality"] * 3
    found, _ = read(tmp_path / "instances.json", modality=Modality.PET)
    assert {s.modality for e in found for s in e.samples} == {Modality.PET}


def test_a_box_of_two_readers_counts_once(tmp_path: Path) -> None:
    value = data()
    value["annotations"] += [mark(15, 1, [10, 10, 30, 20]), mark(16, 1, [10, 10, 30, 20], 2)]  # the last: another name
    entries, told = read(write(tmp_path, value))
    found = boxes(s for entry in entries for s in entry.samples)
    assert len(found) == len(set(found)) == 5
    assert told["boxes that stand twice under one name, taken once"] == 1


def test_ids_may_be_texts(tmp_path: Path) -> None:
    value = data()
    value["images"][0]["id"] = "a"
    for k in (0, 3):
        value["annotations"][k]["image_id"] = "a"
    value["annotations"][1]["image_id"] = "2"
    found, _ = read(write(tmp_path, value))
    assert [len(boxes(e.samples)) for e in found] == [2, 1, 1]


def test_folders_of_files_are_read_in_turn(tmp_path: Path) -> None:
    first, second = data(), data()
    for part, other in (("images", "annotations"), ("annotations", "images")):
        first[part] = [v for v in first[part] if v.get("image_id", v["id"]) != 3]
        second[part] = [v for v in second[part] if v.get("image_id", v["id"]) == 3]
        assert first[part] and second[part] and other
    (tmp_path / "annotations").mkdir()
    write(tmp_path, "{}", "settings.json")
    write(tmp_path, first, "annotations/a.json"), write(tmp_path, second, "annotations/b.json")
    found, _ = read(tmp_path)
    assert [(Path(e.file).name, e.row) for e in found] == [("a.json", 1), ("a.json", 2), ("b.json", 1)]
    write(tmp_path, first, "annotations/b.json")
    found, _ = read(tmp_path)
    assert [e.problem.field for e in found if e.problem] == ["file_name", "file_name"]
    assert "row 1 of a.json" in found[2].problem.why  # type: ignore[union-attr]


def test_sizes_come_from_the_file_where_images_stay_closed(tmp_path: Path) -> None:
    value = data()
    value["images"][1]["height"] = 200
    del value["images"][2]["width"]
    found, _ = read(write(tmp_path, value), open_images=False, images=tmp_path / "nowhere")
    assert [s.question.boxes[0].y2 for s in found[1].samples if s.task is Task.ROC] == [30.25 / 200]
    assert [e.problem.field for e in found if e.problem] == ["width"]
    found, _ = read(tmp_path / "instances.json")
    assert [(e.row, e.problem.field) for e in found if e.problem] == [(2, "height")], (
        "a width that is absent is the file's"
    )


def test_turned_images_are_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (HEIGHT, WIDTH)).save(tmp_path / "1.png", exif=exif)
    value = data()
    value["images"][1]["file_name"], value["images"][0]["file_name"] = "1.png", "2.png"
    found, _ = read(write(tmp_path, value))
    assert [e.problem for e in found] == [None] * 3 and found[1].samples[0].images[0].orientation == 6
    value["images"][1] |= {"width": HEIGHT, "height": WIDTH}
    found, _ = read(write(tmp_path, value))
    assert found[1].problem is not None and "EXIF" in found[1].problem.why


# ---- masks ----------------------------------------------------------------------------------------------------------


def random_mask(dice: random.Random) -> np.ndarray[Any, np.dtype[np.uint8]]:
    height, width, density = dice.randint(1, 12), dice.randint(1, 12), dice.choice((0.02, 0.3, 0.9))
    cells = [[dice.random() < density for _ in range(width)] for _ in range(height)]
    cells[dice.randrange(height)][dice.randrange(width)] = True
    return np.asfortranarray(np.array(cells, dtype=np.uint8))


def runs(mask: np.ndarray[Any, Any]) -> list[int]:
    """Lengths of runs down the columns, background first."""
    flat, counts, value = mask.ravel(order="F").tolist(), [0], 0
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def test_run_length_masks_have_the_boxes_of_pycocotools(tmp_path: Path) -> None:
    dice = random.Random(0)
    kinds = Counter()
    value: Data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell", "supercategory": "ct"}]}
    wanted = []
    for number in range(1, 301):
        mask = random_mask(dice)
        height, width = mask.shape
        packed = oracle.encode(mask)
        text = packed["counts"].decode()
        assert coco.unpack_run_lengths(text) == runs(mask)
        kind = dice.choice(("packed", "plain"))
        kinds[kind] += 1
        value["images"].append(image(number, width=width, height=height))
        shape = {"size": [height, width], "counts": text if kind == "packed" else runs(mask)}
        made = mark(number, number, None, segmentation=shape)
        del made["bbox"]
        value["annotations"].append(made)
        x, y, w, h = oracle.toBbox(packed).tolist()
        wanted.append([x / width, y / height, (x + w) / width, (y + h) / height])
    found, _ = read(write(tmp_path, value), open_images=False)
    assert not [e.problem for e in found if e.problem] and min(kinds.values()) > 100
    given = [[b.x1, b.y1, b.x2, b.y2] for e in found for s in e.samples if s.task is Task.ROC for b in s.question.boxes]
    np.testing.assert_allclose(given, wanted, atol=1e-12)


def test_long_runs_are_unpacked_as_pycocotools_packs_them() -> None:
    dice = random.Random(1)
    for _ in range(100):
        height, width = dice.randint(1, 4000), dice.randint(1, 2000)
        cuts = sorted(dice.sample(range(1, height * width), min(dice.randint(1, 40), height * width - 1)))
        counts = [b - a for a, b in zip([0, *cuts], [*cuts, height * width], strict=True)]
        packed = oracle.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        assert coco.unpack_run_lengths(packed["counts"].decode()) == counts


def test_a_run_of_no_pixels_draws_no_box_out(tmp_path: Path) -> None:
    value = data()
    value["annotations"][1] |= {
        "bbox": None,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": [110, 0, 60, 5, 4825]},
    }
    found, _ = read(write(tmp_path, value))
    assert boxes(found[1].samples) == [("left lung", (3, 20, 1, 5))]


def test_polygons_have_their_extent_and_a_box_goes_before_them(tmp_path: Path) -> None:
    value = data()
    polygons = [[10, 10, 30, 10, 20, 45], [60.5, 5, 80, 7, 70, 9, 61, 8]]
    value["annotations"][1] |= {"bbox": [], "segmentation": polygons}
    value["annotations"][2] |= {"segmentation": polygons}
    found, told = read(write(tmp_path, value))
    assert boxes(found[1].samples) == [("left lung", (10, 5, 70, 40))]
    assert boxes(found[2].samples) == [("heart", (0, 0, 100, 50))]
    assert told == {"segmentation of which the box alone is kept": 1}


# ---- what is left out or changed ------------------------------------------------------------------------------------


def test_crowds_and_empty_images_are_counted(tmp_path: Path) -> None:
    value = data()
    value["annotations"][0]["iscrowd"] = 1
    value["annotations"][1] |= {"iscrowd": 1, "bbox": [-5, 0, 0, 0]}
    found, told = read(write(tmp_path, value))
    assert [len(boxes(e.samples)) for e in found] == [1, 0, 1] and not any(e.problem for e in found)
    value["categories"][0]["supercategory"] = "chest"
    assert read(write(tmp_path, value), modality=Modality.CT)[0][1] == found[1], "its modality is not needed"
    assert told == {
        "crowds (iscrowd), which are no single object": 2,
        "images without a box, of which nothing is asked": 1,
        "names of which not all boxes are known, so that where they are is not asked": 1,
    }


def test_a_rounding_beyond_the_border_is_put_on_it_and_counted(tmp_path: Path) -> None:
    value = data()
    value["annotations"][1]["bbox"] = [66.67, -0.004, 33.335, 50.008]
    found, told = read(write(tmp_path, value))
    assert boxes(found[1].samples) == [("left lung", (66.67, 0, 33.33, 50))]
    assert told == {"boxes less than a pixel over the border of the image, put on it": 1}
    value["annotations"][1]["bbox"] = [1, 1, 99.5, 49.9]
    assert boxes(read(write(tmp_path, value))[0][1].samples) == [("left lung", (1, 1, 99, 49))]
    value["annotations"][1]["bbox"] = [100 / 3, 0, 200 / 3 + 1e-13, 50]
    assert not read(write(tmp_path, value))[1], "the noise of a float is no change"


# ---- faults ---------------------------------------------------------------------------------------------------------

Spoil = Callable[[Data], object]


def second(key: str, value: Any) -> Spoil:
    return lambda d: d["images"][1].update({key: value})


def object_(**changes: Any) -> Spoil:
    return lambda d: d["annotations"][1].update(changes)


def shape(**changes: Any) -> Spoil:
    return object_(bbox=None, segmentation={"size": [HEIGHT, WIDTH], "counts": [10, 5, 4985]} | changes)


NAN, INF = float("nan"), float("inf")
IN_IMAGE: list[tuple[Spoil, str, str]] = [
    (object_(bbox=[20, 10, 81, 20]), "annotations[1].bbox", "outside the image of 100x50"),
    (object_(bbox=[20, 10, 30, 41]), "annotations[1].bbox", "outside"),
    (object_(bbox=[-1, 10, 30, 20]), "annotations[1].bbox", "outside"),
    (object_(bbox=[20, -1.5, 30, 20]), "annotations[1].bbox", "outside"),
    (object_(bbox=[70, 30, 90, 45]), "annotations[1].bbox", "looks like [x1, y1, x2, y2]"),
    (object_(bbox=[20, 10, 0, 20]), "annotations[1].bbox", "not above 0"),
    (object_(bbox=[0.1, 0.2, 0.3, 0.4]), "annotations[1].bbox", "fractions of the image"),
    (object_(bbox=[20, 10, 30, -20]), "annotations[1].bbox", "not above 0"),
    (object_(bbox=[20, 10, 30]), "annotations[1].bbox", "four numbers"),
    (object_(bbox=[20, 10, 30, 20, 45]), "annotations[1].bbox", "four numbers"),
    (object_(bbox=[20, 10, 30, "20"]), "annotations[1].bbox", "four numbers"),
    (object_(bbox=[20, 10, 30, NAN]), "annotations[1].bbox", "four numbers"),
    (object_(bbox=[20, 10, INF, 20]), "annotations[1].bbox", "four numbers"),
    (object_(bbox={"x": 1}), "annotations[1].bbox", "annotation id 12"),
    (lambda d: d["annotations"][1].pop("bbox"), "annotations[1].bbox", "no box and no segmentation"),
    (object_(bbox=None, segmentation=[]), "annotations[1].bbox", "no box and no segmentation"),
    (object_(category_id=9), "annotations[1].category_id", "no usable category"),
    (lambda d: d["annotations"][1].pop("category_id"), "annotations[1].category_id", "no usable category"),
    (object_(iscrowd="no"), "annotations[1].iscrowd", "0 or 1"),
    (object_(id=13, image_id=2), "annotations[1].id", "the id of 2 annotations"),
    (object_(id=1.5), "annotations[1].id", "no usable id"),
    (object_(bbox=None, segmentation=[[1, 2, 3, 4]]), "annotations[1].segmentation", "polygons"),
    (object_(bbox=None, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotations[1].segmentation", "polygons"),
    (object_(bbox=None, segmentation=[[1, 2, 3, 4, 5, NAN]]), "annotations[1].segmentation", "polygons"),
    (object_(bbox=None, segmentation=[[1, 2, 3, 4, 120, 6]]), "annotations[1].segmentation", "outside"),
    (object_(bbox=None, segmentation=[[1, 2, 1, 4, 1, 6]]), "annotations[1].segmentation", "without area"),
    (object_(bbox=None, segmentation="mask.png"), "annotations[1].segmentation", "polygons"),
    (shape(size=[WIDTH, HEIGHT]), "annotations[1].segmentation.size", "[50, 100]"),
    (shape(size=None), "annotations[1].segmentation.size", "[50, 100]"),
    (shape(counts=[10, 5, 4986]), "annotations[1].segmentation.counts", "add up to 5,001"),
    (shape(counts=[10, -5, 4995]), "annotations[1].segmentation.counts", "none below 0"),
    (shape(counts=[5000]), "annotations[1].segmentation.counts", "without a pixel"),
    (shape(counts="a b"), "annotations[1].segmentation.counts", "' ' at place 1"),
    (shape(counts="oo"), "annotations[1].segmentation.counts", "ends inside a number"),
    (shape(counts=None), "annotations[1].segmentation.counts", "whole numbers"),
    (second("file_name", "none.png"), "file_name", "no such file"),
    (second("file_name", "../2.png"), "file_name", "leads out"),
    (second("file_name", ""), "file_name", "empty"),
    (second("file_name", "\ud800.png"), "file_name", "half a character"),
    (second("file_name", "1.png"), "file_name", "already used by row 1"),
    (second("width", 200), "width", "100 pixels"),
    (second("width", "100"), "width", "number of pixels"),
    (second("modality", "thermography"), "modality", "thermography"),
    (second("split", "holdout"), "split", "train, validation, test"),
    (second("patient", [1]), "patient", "not text"),
    (second("clinkd", 3), "clinkd", "an object"),
    (second("clinkd", {"side": "mirror"}), "side", "image, patient"),
    (lambda d: d["images"][1].pop("id"), "id", "no id"),
    (lambda d: d["annotations"].append(mark(15, 2, [1, 1, 5, 5], 3)), "modality", "several modalities"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "field", "told"), IN_IMAGE, ids=[f"{k}-{f[1]}" for k, f in enumerate(IN_IMAGE)])
def test_a_faulty_image_is_left_out_whole_and_named(tmp_path: Path, spoil: Spoil, field: str, told: str) -> None:
    value = data()
    value["categories"].append({"id": 3, "name": "tumour", "supercategory": "mr"})
    value["annotations"].append(mark(16, 2, [1, 1, 5, 5]))
    spoil(value)
    found, counted = read(write(tmp_path, value))
    if field == "annotations[1].id" and "2 annotations" in told:
        assert found.pop(2).problem.field == "annotations[2].id"  # type: ignore[union-attr]
        found.append(RowResult("", 3, problem=None))
    elif field == "id":
        strays = [found.pop(0), found.pop(0)]
        assert [e.problem.field for e in strays] == ["annotations[1].image_id", "annotations[4].image_id"]  # type: ignore[union-attr]
    assert [(e.row, e.problem is None) for e in found] == [(1, True), (2, False), (3, True)]
    problem = found[1].problem
    assert problem is not None and not found[1].samples and not counted
    line = str(problem)
    assert problem.field == field and told in line and "\n" not in line
    assert line.startswith(f"{tmp_path / 'instances.json'}, row 2{'' if field == 'id' else ', id 2'}:")
    assert found[1].raw["image"] == json.loads(json.dumps(value["images"][1]))


STRAYS: list[tuple[Spoil, int, str, str]] = [
    (object_(image_id=99), 2, "annotations[1].image_id", "no image has this id"),
    (lambda d: d["annotations"][1].pop("image_id"), 2, "annotations[1].image_id", "no image"),
    (lambda d: d["annotations"].append("box"), 5, "annotations[4]", "an object"),
    (lambda d: d["categories"].append({"id": 3}), 3, "categories[2].name", "empty"),
    (lambda d: d["categories"].append({"id": 3, "name": " "}), 3, "categories[2].name", "empty"),
    (lambda d: d["categories"].append({"id": 3, "name": "a [box]"}), 3, "categories[2].name", "kept for"),
    (lambda d: d["categories"].append({"name": "lung"}), 3, "categories[2].id", "no id"),
    (lambda d: d["categories"].append("lung"), 3, "categories[2]", "an object"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "row", "field", "told"), STRAYS)
def test_what_belongs_to_no_image_is_a_row_of_its_own(
    tmp_path: Path, spoil: Spoil, row: int, field: str, told: str
) -> None:
    value = data()
    spoil(value)
    found, _ = read(write(tmp_path, value))
    (problem,) = [e.problem for e in found if e.problem]
    assert (problem.row, problem.field) == (row, field) and told in problem.why
    assert [e.row for e in found if not e.problem] == [1, 2, 3]


def test_a_bad_category_takes_its_images_along(tmp_path: Path) -> None:
    value = data()
    value["categories"][0]["name"] = None
    found, _ = read(write(tmp_path, value))
    fields = ["categories[0].name", "annotations[0].category_id", "annotations[1].category_id"]
    assert [e.problem.field for e in found if e.problem] == fields
    value = data()
    value["categories"].append({"id": 1, "name": "lung"})
    found, _ = read(write(tmp_path, value))
    assert [e.problem.field for e in found if e.problem] == ["categories[0].id", "categories[2].id", *fields[1:]]


def test_images_of_one_id_are_all_left_out(tmp_path: Path) -> None:
    value = data()
    value["images"][1]["id"] = 1
    value["images"].insert(0, "1.png")
    found, _ = read(write(tmp_path, value))
    told = [(e.row, e.problem.field, e.problem.value) for e in found if e.problem]
    assert told == [(2, "annotations[1].image_id", "2"), (1, "images[0]", "1.png"), (2, "id", "1"), (3, "id", "1")]
    assert [e.row for e in found if e.samples] == [4]


def test_a_file_of_corners_is_not_trusted_anywhere(tmp_path: Path) -> None:
    value = data()
    corners = ([10, 10, 40, 30], [70, 20, 90, 45], [5, 5, 12, 12], [1, 1, 100, 50])
    for annotation, box in zip(value["annotations"], corners, strict=True):
        annotation["bbox"] = box
    found, _ = read(write(tmp_path, value))
    assert len(found) == 3 and all(e.problem and "every bbox of the file" in e.problem.why for e in found)
    value["annotations"][3]["bbox"] = [60, 5, 40, 45]  # no corners: the one that looks so is a slip
    found, _ = read(write(tmp_path, value))
    assert [e.row for e in found if e.problem] == [2]


def cut(text: str) -> str:
    return text[: text.index('"categories"') + 30]


NOT_COCO: list[tuple[Callable[[Data], str], str]] = [
    (lambda d: cut(json.dumps(d)), "the file ends inside a value"),
    (lambda d: json.dumps(d)[:-1], "the file ends inside a value"),
    (lambda d: json.dumps(d).replace('"images"', "images", 1), "not JSON at byte 25 of"),
    (lambda d: json.dumps(d["annotations"]), "it is a list"),
    (lambda d: json.dumps({k: v for k, v in d.items() if k != "categories"}), "it is an object with info, images"),
    (lambda d: json.dumps(d | {"images": {}}), "has the lists"),
    (lambda d: json.dumps(d | {"images": []}), "images is empty"),
    (lambda d: "", "the file is empty"),
    (lambda d: json.dumps(d)[:-1] + ', "images": []}', "'images' stands twice"),
    (lambda d: json.dumps(d).replace("2024", "9" * 5000), "not usable JSON"),
    (lambda d: '{"a":' * 100_000, "not usable JSON"),
    (lambda d: '{"a": {"images": 1}}', "it is an object with a"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "told"), NOT_COCO)
def test_what_is_no_coco_is_one_line(tmp_path: Path, spoil: Callable[[Data], str], told: str) -> None:
    file = write(tmp_path, spoil(data()))
    with pytest.raises(BadInput) as error:
        read(file)
    assert str(error.value).startswith(f"{file}: ") and told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_cut_file_names_the_byte_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    value = copy.deepcopy(data())
    value["categories"][0]["name"] = "Brüste"
    text = json.dumps(value, ensure_ascii=False)
    file = write(tmp_path, "")
    file.write_bytes(text.encode(encoding))
    assert boxes(read(file, encoding=encoding)[0][0].samples)[0][0] == "Brüste"
    whole = text.replace('"heart"', "heart", 1).encode(encoding)
    file.write_bytes(whole)
    byte = whole.index("heart".encode(encoding.removesuffix("-sig") if encoding != "utf-16" else "utf-16-le"))
    with pytest.raises(BadInput, match=f"byte {byte:,} of {len(whole):,}"):
        read(file, encoding=encoding)


def test_another_encoding_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, "")
    file.write_bytes(json.dumps(data()).replace("heart", "c\u0153ur").encode("cp1252"))
    with pytest.raises(BadInput, match=r"\(0x9c\) is not utf-8.*--encoding"):
        read(file)
    file.write_bytes(json.dumps(data()).encode("utf-16"))
    with pytest.raises(BadInput, match="UTF-16"):
        read(file)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no \.json file"):
        read(tmp_path)
    with pytest.raises(BadInput, match="no such file"):
        read(tmp_path / "none.json")


def test_random_boxes_come_back(tmp_path: Path) -> None:
    dice = random.Random(3)
    value = data()
    value["annotations"] = []
    for number in range(1, 200):
        x, y = dice.randrange(0, WIDTH - 1) + dice.choice((0, 0.25)), dice.randrange(0, HEIGHT - 1)
        w, h = dice.uniform(0.1, WIDTH - x), dice.uniform(0.1, HEIGHT - y)
        value["annotations"].append(mark(number, 1 + number % 3, [x, y, round(w, 2), round(h, 2)], 1 + number % 2))
    found, told = read(write(tmp_path, value))
    got = sorted(b for e in found for b in boxes(e.samples))
    names = {1: "left lung", 2: "heart"}
    wanted = sorted((names[a["category_id"]], tuple(a["bbox"])) for a in value["annotations"])
    assert [n for n, _ in got] == [n for n, _ in wanted]
    np.testing.assert_allclose([b for _, b in got], [b for _, b in wanted], atol=0.011)
    assert not any(e.problem for e in found) and not {
        k for k in told if not k.startswith(("names with", "boxes up", "boxes of one name"))
    }

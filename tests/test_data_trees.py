"""Trees of label files and images, as they are published: COCO's, Roboflow's, YOLO's, Pascal VOC's."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from clinkd.cli import main
from clinkd.data.checks.check import Checks, check
from clinkd.data.importing import Division, NotClean, import_data
from clinkd.data.readers.coco import CocoNames
from clinkd.data.readers.forms import detect_form, read_rows, read_samples
from clinkd.data.readers.rows import FieldError
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Modality, Sample, Task

WIDTH, HEIGHT = 40, 20
CHECKS = Checks(workers=1, allow=frozenset({"near-duplicate"}))


def picture(path: Path) -> Path:
    """A picture whose grey the path decides, so that no two are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (WIDTH, HEIGHT), sum(str(path.name).encode()) % 256).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def coco(names: list[str], **changes: Any) -> str:
    """A COCO file with a box in each image."""
    value: dict[str, Any] = {
        "images": [{"id": k, "file_name": name, "width": WIDTH, "height": HEIGHT} for k, name in enumerate(names)],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [k + 1, 2, 10, 8], "area": 80, "iscrowd": 0}
            for k, _ in enumerate(names)
        ],
        "categories": [{"id": 1, "name": "polyp", "supercategory": "none"}],
    }
    return json.dumps(value | changes)


def read(path: Path, **changes: Any) -> tuple[list[Sample], Counter[str], list[str]]:
    """The samples, the notes and the problems of a source."""
    notes: Counter[str] = Counter()
    rows = list(read_rows(Source(path, modality=Modality.CT, **changes), notes))
    return [s for r in rows for s in r.samples], notes, [str(r.problem) for r in rows if r.problem]


def boxes(samples: list[Sample]) -> set[tuple[str, str, tuple[float, ...]]]:
    """Path of the image, name and corners in pixels of every box, by the ROC questions."""
    scale = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    return {
        (s.images[0].path, s.answer.text, tuple(round(v * k, 4) for v, k in zip(box.corners, scale, strict=True)))
        for s in samples
        if s.task is Task.ROC
        for box in s.question.boxes
    }


def splits(samples: list[Sample]) -> set[tuple[str, str | None]]:
    return {(s.images[0].path, s.split) for s in samples}


# ---- COCO -----------------------------------------------------------------------------------------------------------

COCO_TREES = {  # the folder of the images: as https://cocodataset.org/#download unpacks, and as tools arrange it
    "images/train2017": ("annotations/instances_train2017.json", "images/train2017", "images/val2017"),
    "train2017": ("annotations/instances_train2017.json", "train2017", "val2017"),
    "train/images": ("annotations/train.json", "train/images", "val/images"),
    "other words for a split": ("annotations/instances_train.json", "images/training", "images/valid"),
    "all images together": ("annotations/instances_train.json", "images", "images"),
    "beside each": ("train/_annotations.coco.json", "train", "val"),
    "data beside labels.json": ("train/labels.json", "train/data", "val/data"),
}


@pytest.mark.parametrize("tree", COCO_TREES)
def test_images_of_a_coco_tree_are_found_and_keep_their_splits(tmp_path: Path, tree: str) -> None:
    file, *folders = COCO_TREES[tree]
    for split, folder in zip(("train", "val"), folders, strict=True):
        names = [f"{split}{k}.png" for k in range(2)]
        for name in names:
            picture(tmp_path / folder / name)
        write(tmp_path / file.replace("train", split), coco(names))
    samples, notes, problems = read(tmp_path)
    assert not problems and not notes and detect_form(Source(tmp_path)) == "coco"
    wanted = {
        (f"{f}/{s}{k}.png", w)
        for f, s, w in zip(folders, ("train", "val"), ("train", "validation"), strict=True)
        for k in (0, 1)
    }
    assert splits(samples) == wanted and len({s.id for s in samples}) == len(samples) == 8
    truth = COCO(tmp_path / file)
    own = {f"{folders[0]}/{truth.imgs[a['image_id']]['file_name']}": a["bbox"] for a in truth.anns.values()}
    found = {path: corners for path, _, corners in boxes(samples)}
    assert all(found[path] == (x, y, x + w, y + h) for path, (x, y, w, h) in own.items())
    one, _, problems = read(tmp_path / file)
    assert not problems and len(one) == 4


def test_a_coco_file_alone_finds_its_images(tmp_path: Path) -> None:
    picture(tmp_path / "images/val2017/a.png")
    file = write(tmp_path / "annotations/instances_val2017.json", coco(["a.png"]))
    out = tmp_path / "out"
    import_data([Source(file, modality=Modality.CT)], out, CHECKS, None)
    (sample, _) = read_samples(Source(out), Counter())
    assert (sample.images[0].path, sample.split) == ("images/val2017/a.png", "validation")
    assert splits(read(file, images=tmp_path / "images", open_images=False)[0]) == {("val2017/a.png", "validation")}
    assert check(Source(file, modality=Modality.CT), CHECKS).clean
    assert main(["data", "show", str(file), sample.id, "--modality", "ct", "--out", str(tmp_path / "drawn.png")]) == 0


def test_an_image_that_lies_in_two_folders_is_refused(tmp_path: Path) -> None:
    for folder in ("images", "images/val"):
        picture(tmp_path / folder / "a.png")
    write(tmp_path / "annotations/val.json", coco(["a.png"]))
    (problem,) = read(tmp_path)[2]
    assert "is both images/a.png and images/val/a.png" in problem and "--images" in problem
    assert not read(tmp_path, images=tmp_path / "images/val")[2]


def test_other_files_of_coco_are_named_and_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "images/val2017/a.png")
    others = [
        "captions_val2017",
        "person_keypoints_val2017",
        "panoptic_val2017",
        "stuff_val2017",
        "image_info_test2017",
    ]
    for name in ("instances_val2017", *others):
        write(tmp_path / f"annotations/{name}.json", coco(["a.png"]))
    samples, notes, problems = read(tmp_path)
    assert not problems and len(samples) == 2
    assert all(any(f"{name}.json is left out" in note for note in notes) for name in others) and len(notes) == len(
        others
    )
    assert len(read(tmp_path / "annotations/person_keypoints_val2017.json")[0]) == 2


def roboflow(root: Path) -> Path:
    """Roboflow's export (https://roboflow.com/formats/coco-json): class 0 is the project, and nothing has it."""
    categories = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "RBC", "supercategory": "cells"},
    ]
    for split, count in (("train", 8), ("valid", 3), ("test", 3)):
        names = [f"{split}{k}.png" for k in range(count)]
        for name in names:
            picture(root / split / name)
        write(root / split / "_annotations.coco.json", coco(names, categories=categories))
    write(root / "README.roboflow.txt", "14 images\n0 0.5 0.5 0.1 0.1\n")
    return root


@pytest.mark.parametrize("single", [False, True])
def test_an_export_of_roboflow_keeps_its_splits(tmp_path: Path, single: bool) -> None:
    root = roboflow(tmp_path / "test")  # the folder around says nothing
    paths = [root / split / "_annotations.coco.json" for split in ("train", "valid", "test")] if single else [root]
    found = import_data([Source(p, modality=Modality.CT) for p in paths], tmp_path / "out", CHECKS, Division())
    samples = read_samples(Source(tmp_path / "out"), Counter())
    counts = Counter({(s.images[0].path, s.split): 1 for s in samples}.keys())
    assert Counter((path.split("/")[0], split) for path, split in counts) == {
        ("train", "train"): 8, ("valid", "validation"): 3, ("test", "test"): 3,
    }  # fmt: skip
    note = "category 'cells' is the kind of others and has no annotation, so nothing is asked of it"
    assert found.notes[note] == len(paths) and {s.names for s in samples} == {("RBC",)}


def test_a_single_file_in_a_folder_called_test_is_told(tmp_path: Path) -> None:
    file = roboflow(tmp_path) / "test/_annotations.coco.json"
    found = import_data([Source(file, modality=Modality.CT)], tmp_path / "out", CHECKS, None)
    assert "file is divided, though its name says test; --all-in test keeps all of it there" in found.notes


def test_splits_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        picture(tmp_path / folder / f"{folder}.png")
    one = write(tmp_path / "train/instances_val.json", coco(["train.png"]))
    two = write(tmp_path / "val/instances_val.json", coco(["val.png"]))
    with pytest.raises(BadInput, match="'train' says train, and 'instances_val' says validation; rename"):
        read(tmp_path)
    with pytest.raises(BadInput, match="'train' says train, and 'instances_val' says validation; rename"):
        import_data([Source(p, modality=Modality.CT) for p in (one, two)], tmp_path / "out", CHECKS)
    assert {split for _, split in splits(read(tmp_path, split="test")[0])} == {"test"}


@pytest.mark.parametrize("anew", [False, True])
def test_a_row_that_contradicts_the_name_of_its_sheet_is_bad(tmp_path: Path, anew: bool) -> None:
    sheets = []
    for name, stated in (("train", "test"), ("test", "test")):
        picture(tmp_path / f"{name}.png")
        line = f"{name}.png,What is it?,A lung,CT,{stated}"
        sheets.append(write(tmp_path / f"{name}.csv", f"image,question,answer,modality,split\n{line}\n"))
    work = [Source(s) for s in sheets], tmp_path / "out", CHECKS, Division(anew=anew)
    if anew:
        assert import_data(*work).clean
        return
    with pytest.raises(NotClean) as caught:
        import_data(*work)
    (problem,) = caught.value.findings.bad
    assert (problem.field, problem.value) == ("split", "test") and "the name of the source says train" in problem.why


def test_ids_of_several_files_are_not_mixed_up(tmp_path: Path) -> None:
    root = roboflow(tmp_path)
    names = CocoNames.of(Source(root, form="coco"))
    assert names.category(1) == "RBC" and names.image(7) == "train/train7.png"
    with pytest.raises(FieldError) as caught:
        names.image(0)
    assert "more than one image" in caught.value.why


def test_phrases_of_boxes_are_read_and_other_keys_counted(tmp_path: Path) -> None:
    """MS-CXR (https://physionet.org/content/ms-cxr): `label_text` is the radiologist's phrase for the box."""
    picture(tmp_path / "a.png")
    phrases = [["small apical pneumothorax"], "basal pneumothorax"]
    marks = [
        {"id": k, "image_id": 0, "category_id": 1, "bbox": [20 * k, 1, 9, 9], "label_text": text, "origin_y": 7}
        for k, text in enumerate(phrases)
    ]
    file = write(tmp_path / "mscxr.json", coco(["a.png"], annotations=marks))
    samples, notes, problems = read(file, tasks=(Task.VG, Task.RC))
    assert not problems and notes == {"keys 'origin_y' of annotations, which are not used": 2}
    answers = {s.answer.text: s.question.boxes[0].x1 * WIDTH for s in samples if s.task is Task.RC}
    assert answers == {"small apical pneumothorax": 0, "basal pneumothorax": 20}
    marks[0]["label_text"] = [" "]
    write(file, coco(["a.png"], annotations=marks))
    assert "annotations[0].label_text" in read(file)[2][0]


# ---- equal names ----------------------------------------------------------------------------------------------------


def sharegpt(names: list[str]) -> str:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A lung."}]
    return json.dumps([{"id": name, "image": name, "conversations": turns} for name in names])


def sheet(names: list[str]) -> str:
    return "image,question,answer\n" + "".join(f"{name},What is it?,A lung\n" for name in names)


def records(names: list[str]) -> str:
    qa = [{"question": "What is it?", "answer": "A lung."}]
    return "".join(json.dumps({"id": Path(n).stem, "image": n, "qa": qa}) + "\n" for n in names)


SAME_NAMES = {"coco.json": coco, "rows.json": sharegpt, "sheet.csv": sheet, "records.jsonl": records}


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("name", SAME_NAMES)
def test_equal_file_names_of_two_sources_are_two_groups(tmp_path: Path, name: str, told: bool) -> None:
    folders = ("train", "val") if told else ("berlin", "paris")
    names = ["0001.png", "0002.png"]
    for folder in folders:
        for k, n in enumerate(names):
            picture(tmp_path / folder / n).write_bytes(picture(tmp_path / "x" / f"{folder}{k}.png").read_bytes())
        write(tmp_path / folder / name, SAME_NAMES[name](names))
    sources = [Source(tmp_path / folder / name, modality=Modality.CT) for folder in folders]
    found = import_data(sources, tmp_path / "out", CHECKS, Division(0.2, 0.2))
    samples = read_samples(Source(tmp_path / "out"), Counter())
    assert found.clean and len({s.group for s in samples}) == 4
    assert not told or {(s.images[0].path[:3], s.split) for s in samples} == {("tra", "train"), ("val", "validation")}
    again = import_data([Source(tmp_path / "out")], tmp_path / "again", CHECKS)
    assert sum(again.groups.values()) == 4


def test_patients_stay_one_over_sources_and_joined_groups_stay_joined(tmp_path: Path) -> None:
    for folder, patient in (("a", "p1"), ("b", "p1"), ("c", "")):
        picture(tmp_path / folder / "1.png")
        Image.effect_noise((64, 64), 90).save(tmp_path / folder / "2.png")
        Image.open(tmp_path / folder / "2.png").save(tmp_path / folder / "3.png")  # joined with 2.png
        rows = "".join(f"{k}.png,What is it?,A lung {k},ct,{patient}\n" for k in (1, 2, 3))
        write(tmp_path / folder / "s.csv", "image,question,answer,modality,patient\n" + rows)
        import_data([Source(tmp_path / folder / "s.csv")], tmp_path / f"set-{folder}", CHECKS, None)
    found = import_data([Source(tmp_path / f"set-{f}") for f in "abc"], tmp_path / "out", CHECKS, None)
    groups = {(s.images[0].path, s.group) for s in read_samples(Source(tmp_path / "out"), Counter())}
    assert {g for path, g in groups if path[0] in "ab"} == {"p1"} and found.clean
    assert {g for path, g in groups if path[0] == "c"} == {"c/1.png", "c/2.png"}


# ---- YOLO -----------------------------------------------------------------------------------------------------------

LINES = ["0 0.5 0.5 0.5 0.5", "1 0.25 0.5 0.1 0.2"]
CORNERS = {("liver", (10, 5, 30, 15)), ("spleen", (8, 8, 12, 12))}
NAMES: list[Any] = [["liver", "spleen"], {0: "liver", 1: "spleen"}, {"0": "liver", "1": "spleen"}]


def yolo(root: Path, images: str, labels: str, about: dict[str, Any] | None = None) -> Path:
    """An image and a label file for each split, where `images` and `labels` say, and a data.yaml."""
    for split in ("train", "val", "test"):
        picture(root / images.format(split) / f"{split}.png")
        write(root / labels.format(split) / f"{split}.txt", "\n".join(LINES) + "\n")
    write(root / "data.yaml", yaml.safe_dump({"names": NAMES[0], "nc": 2} | (about or {})))
    return root


def lists(pattern: str) -> dict[str, str]:
    return {split: pattern.format(split) for split in ("train", "val", "test")}


YOLO_TREES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # https://docs.ultralytics.com/datasets/detect: images and labels in equal trees, folders below `path`
    "ultralytics": ("images/{}", "labels/{}", {"path": "set"} | lists("images/{}")),
    # https://roboflow.com/formats/yolo: a tree for each split, paths from the folder of a training program
    "roboflow": ("{}/images", "{}/labels", lists("../{}/images")),
    "only data.yaml tells": ("images/{}x", "labels/{}x", lists("images/{}x") | {"train": ["images/trainx"]}),
    "beside each other": ("{}", "{}", {"train": "train", "val": "val"}),
}  # fmt: skip


@pytest.mark.parametrize("tree", YOLO_TREES)
@pytest.mark.parametrize("names", NAMES, ids=["list", "numbers", "texts"])
def test_boxes_and_splits_of_yolo_trees(tmp_path: Path, tree: str, names: Any) -> None:
    images, labels, about = YOLO_TREES[tree]
    root = yolo(tmp_path / "test", images, labels, about | {"names": names})
    write(root / "README.dataset.txt", "hello")
    for path in (root, root / "data.yaml"):
        samples, notes, problems = read(path)
        assert detect_form(Source(path)) == "yolo" and not problems and not notes
        places = {s: f"{images.format(s)}/{s}.png" for s in ("train", "val", "test")}
        assert boxes(samples) == {(place, *pair) for place in places.values() for pair in CORNERS}
        told = {"train": "train", "val": "validation", "test": "test"}
        assert splits(samples) == {(places[s], split) for s, split in told.items()}


def test_a_part_of_a_yolo_tree_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = yolo(tmp_path / "a", "images/{}", "labels/{}")
    monkeypatch.chdir(root)
    assert len(splits(read(Path("labels"))[0])) == len(splits(read(Path("."))[0])) == 3
    assert splits(read(Path("labels/val/val.txt"))[0]) == {("images/val/val.png", "validation")}
    samples, notes, problems = read(root / "labels/val")
    assert splits(samples) == {("images/val/val.png", "validation")} and not notes and not problems
    root = yolo(tmp_path / "b", "{}/images", "{}/labels", lists("../{}/images"))
    found = import_data(
        [Source(root / split, modality=Modality.CT) for split in ("train", "val", "test")],
        tmp_path / "out",
        CHECKS,
        None,
    )
    told = {"train": "train", "val": "validation", "test": "test"}
    assert splits(read_samples(Source(tmp_path / "out"), Counter())) == {
        (f"{s}/images/{s}.png", split) for s, split in told.items()
    }
    assert [note for note in found.notes if "as its name" not in note] == [
        "images of one colour all over, or nearly; not compared with others"
    ]


def test_darknet_names_classes_and_splits_in_texts(tmp_path: Path) -> None:
    """https://github.com/AlexeyAB/darknet: lists name the images from the folder of the program, as data/obj/a.png."""
    for name in ("a", "b"):
        picture(tmp_path / f"obj/{name}.png")
        write(tmp_path / f"obj/{name}.txt", LINES[0])
    write(tmp_path / "obj.names", "liver\nspleen\n")
    write(tmp_path / "train.txt", "data/obj/a.png\n")
    write(tmp_path / "valid.txt", "data/obj/b.png\n")
    samples, notes, problems = read(tmp_path)
    assert not problems and not notes and detect_form(Source(tmp_path)) == "yolo"
    assert splits(samples) == {("obj/a.png", "train"), ("obj/b.png", "validation")}
    found = import_data([Source(tmp_path, modality=Modality.CT)], tmp_path / "out", CHECKS, Division())
    assert found.clean and found.samples == 4 and found.groups == {"train": 1, "validation": 1}


def test_what_a_label_file_may_hold_beside_boxes(tmp_path: Path) -> None:
    root = yolo(tmp_path, "images/{}", "labels/{}")
    polygon = "1 0.1 0.1 0.4 0.2 0.3 0.6"
    write(root / "labels/train/train.txt", f"{polygon}\n0 0.5 0.5 0.5 0.5 0.91\n0 0.99 0.5 0.04 0.2\n")
    write(root / "labels/val/val.txt", "")
    picture(root / "images/test/alone.png")
    samples, notes, problems = read(root)
    assert not problems and notes == {
        "polygons of which the extent alone is kept": 1,
        "confidences (the sixth column), which are not used": 1,
        "boxes less than a pixel beyond the border, put on it": 1,
        "images without a box, of which nothing is asked": 1,
        "images without a label file, of which nothing is asked": 1,
    }
    train = {(name, corners) for path, name, corners in boxes(samples) if "train" in path}
    assert train == {("spleen", (4, 2, 16, 12)), ("liver", (10, 5, 30, 15)), ("liver", (38.8, 8, 40, 12))}
    write(root / "data.yaml", yaml.safe_dump({"names": ["hand"], "kpt_shape": [2, 2]}))
    for split in ("train", "val", "test"):
        write(root / f"labels/{split}/{split}.txt", "0 0.5 0.5 0.5 0.5 0.4 0.4 0.6 0.6\n")
    samples, notes, problems = read(root)
    assert {corners for *_, corners in boxes(samples)} == {(10, 5, 30, 15)} and not problems
    assert notes["key points, of which the box alone is kept"] == 3


YOLO_FAULTS = [
    ("2 0.5 0.5 0.5 0.5", "class 2, and data.yaml names 2 classes, 0 to 1"),
    ("-1 0.5 0.5 0.5 0.5", "class -1"),
    ("0.5 0.5 0.5 0.5 0.5", "class 0.5"),
    ("0 20 10 20 10", "not fractions of the image"),
    ("0 0.5 0.5 nan 0.5", "not fractions of the image"),
    ("0 0.9 0.5 0.5 0.5", "outside the image"),
    ("0 0.5 0.5 0 0.5", "without area"),
    ("0 0.5 0.5 -0.2 0.5", "without area"),
    ("0 0.5 0.5 0.5", "class, centre x"),
    ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "class, centre x"),
    ("liver 0.5 0.5 0.5 0.5", "not numbers"),
]


@pytest.mark.parametrize(("line", "why"), YOLO_FAULTS)
def test_a_faulty_line_of_yolo_is_named_and_its_image_left_out(tmp_path: Path, line: str, why: str) -> None:
    root = yolo(tmp_path, "images/{}", "labels/{}")
    file = write(root / "labels/val/val.txt", f"{LINES[0]}\n{line}\n")
    samples, _, (problem,) = read(root)
    assert problem.startswith(f"{file}, row 1, id val: line 2 = {line}: ") and why in problem
    assert {path for path, _ in splits(samples)} == {"images/train/train.png", "images/test/test.png"}


def test_a_yolo_tree_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    root = yolo(tmp_path, "images/{}", "labels/{}", {"train": "images/train", "val": "images/train", "test": "gone"})
    write(root / "labels/train/stray.txt", LINES[0])
    _, notes, (problem,) = read(root)
    assert "no image of this name" in problem and "remove stray.txt" in problem
    assert notes["data.yaml gives images/train for train and validation, so it tells no split"] == 1
    assert notes["data.yaml gives gone for test, which is not there"] == 1
    (root / "labels/train/stray.txt").unlink()
    picture(root / "images/train/train.jpg")
    assert "is both images/train/train.jpg and images/train/train.png" in read(root)[2][0]
    (root / "images/train/train.jpg").unlink()
    write(root / "data.yaml", yaml.safe_dump({"names": NAMES[0], "train": "images/val"}))
    assert "train and validation" in read(root)[2][0] and "--all-in" in read(root)[2][0]
    assert not read(root, split="train")[2]
    for about, why in (
        ({"names": ["a"], "nc": 2}, "nc: 2"),
        ({"names": {"x": "a"}}, "names: x"),
        ({"names": []}, "list of names"),
    ):
        write(root / "data.yaml", yaml.safe_dump(about))
        with pytest.raises(BadInput, match=why):
            read(root, form="yolo")
    (root / "data.yaml").unlink()
    with pytest.raises(BadInput, match="no names of the classes"):
        read(root)
    write(root / "train/_darknet.labels", "liver\nspleen\n")  # of Roboflow's export for Darknet
    assert not read(root)[2]
    (root / "train/_darknet.labels").unlink()
    names = write(root / "words.txt", "liver\nspleen\n")
    assert not read(root, names=names)[2]
    names.rename(root / "classes.txt")
    assert not read(root, open_images=False)[2]
    assert {path for path, _ in splits(read(root / "labels/val/val.txt")[0])} == {"images/val/val.png"}


# ---- Pascal VOC -----------------------------------------------------------------------------------------------------


def voc(name: str, boxes: list[tuple[str, int, int, int, int]], more: str = "") -> str:
    """An annotation as VOC2012 and Roboflow (https://roboflow.com/formats/pascal-voc-xml) write it."""
    objects = "".join(
        f"<object><name>{n}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>{more}"
        f"<bndbox><xmin>{x1}</xmin><xmax>{x2}</xmax><ymin>{y1}</ymin><ymax>{y2}</ymax></bndbox></object>"
        for n, x1, y1, x2, y2 in boxes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    head = f"<folder>VOC2012</folder><filename>{name}</filename><source><database>x</database></source>"
    return f"<annotation>{head}{size}<segmented>0</segmented>{objects}</annotation>"


VOC_BOXES = [("liver", 1, 1, WIDTH, HEIGHT), ("spleen", 5, 3, 12, 9)]
VOC_TREES = {
    "two years": ("VOC2007/Annotations", "VOC2007/JPEGImages"),
    "the devkit": ("Annotations", "JPEGImages"),
    "lower case": ("annotations", "images"),
    "roboflow": ("{}", "{}"),
    "a tree a split": ("{}/labels", "{}/images"),
}


@pytest.mark.parametrize("tree", VOC_TREES)
def test_boxes_and_splits_of_voc_trees(tmp_path: Path, tree: str) -> None:
    labels, images = VOC_TREES[tree]
    for split in ("train", "val", "test"):
        picture(tmp_path / images.format(split) / f"{split}.png")
        write(tmp_path / labels.format(split) / f"{split}.xml", voc(f"{split}.png", VOC_BOXES))
        if "{}" not in labels:
            lists = tmp_path / labels / "../ImageSets/Main"
            write(lists / f"{split}.txt", f"{split}\n")
            write(lists / f"liver_{split}.txt", "train 1\nval 1\ntest -1\n")
            write(lists / "trainval.txt", "train\nval\n")
            write(tmp_path / "VOC2012/ImageSets/Main/train.txt", "train\nval\ntest\n")  # of other images
    samples, notes, problems = read(tmp_path)
    assert detect_form(Source(tmp_path)) == "voc" and not problems
    assert notes == {"source has corners that count from 1, right and bottom included, as Pascal VOC's do": 1}
    wanted = set()
    for file in tmp_path.rglob("*.xml"):
        for entry in ElementTree.parse(file).getroot().iter("object"):
            x1, y1, x2, y2 = (int(entry.findtext(f"bndbox/{k}") or 0) for k in ("xmin", "ymin", "xmax", "ymax"))
            place = f"{images.format(file.stem)}/{file.stem}.png"
            wanted.add((place, entry.findtext("name") or "", (float(x1 - 1), float(y1 - 1), float(x2), float(y2))))
    assert boxes(samples) == wanted and len(wanted) == 6
    told = {"train": "train", "val": "validation", "test": "test"}
    assert splits(samples) == {(f"{images.format(s)}/{s}.png", split) for s, split in told.items()}
    assert not any("without a label" in note for note in read(next(tmp_path.rglob("val.xml")))[1])
    if tree == "the devkit":
        assert len(read(tmp_path / "Annotations/val.xml")[0]) == len(read(tmp_path / "Annotations")[0]) / 3 == 4


def test_a_voc_source_with_a_corner_at_0_counts_from_0(tmp_path: Path) -> None:
    """labelImg and CVAT write the layout, too; a left at 0 is not VOC's."""
    for name, box in (("a", ("liver", 0, 4, 40, 20)), ("b", ("liver", 5, 3, 12, 9))):
        picture(tmp_path / f"{name}.png")
        write(
            tmp_path / f"{name}.xml",
            voc("", [box], "<occluded>1</occluded><pose>Left</pose><part><name>x</name></part>"),
        )
    samples, notes, problems = read(tmp_path)
    assert not problems and {c for *_, c in boxes(samples)} == {(0, 4, 40, 20), (5, 3, 12, 9)}
    assert notes == {
        "source has corners below 1, so that all count from 0, right and bottom excluded": 1,
        "keys 'occluded' of objects, which are not used": 2,
        "keys 'part' of objects, which are not used": 2,
    }


VOC_FAULTS = [
    (("<width>40", "<width>41"), "size", "the image has 40x20 pixels"),
    (("<xmax>12", "<xmax>52"), "object 2.bndbox", "outside"),
    (("<xmax>12", "<xmax>4"), "object 2.bndbox", "empty"),
    (("<xmax>12", "<xmax>x"), "bndbox/xmax", "a number of pixels"),
    (("<xmax>12</xmax>", ""), "bndbox/xmax", "a number of pixels"),
    (("<name>spleen</name>", "<name> </name>"), "object 2.name", "empty"),
    (("<annotation>", '<?xml version="1.0" encoding="gbk"?><annotation>'), "annotation", "not XML"),
    (("bndbox>", "robndbox>"), "object 1.bndbox", "one box is wanted"),
    (("</annotation>", ""), "annotation", "not XML"),
    (("annotation>", "Annotations>"), "annotation", "no annotation of Pascal VOC"),
    (("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>'), "annotation", "document type"),
    (("val.png</filename>", "none.png</filename>"), "filename", "no image of this name"),
]


@pytest.mark.parametrize(("change", "field", "why"), VOC_FAULTS)
def test_a_faulty_xml_is_named_and_its_image_left_out(
    tmp_path: Path, change: tuple[str, str], field: str, why: str
) -> None:
    for name in ("train", "val"):
        picture(tmp_path / f"JPEGImages/{name}.png")
        write(tmp_path / f"Annotations/{name}.xml", voc(f"{name}.png", VOC_BOXES))
    file = tmp_path / "Annotations/val.xml"
    if field == "filename":
        file = file.rename(tmp_path / "Annotations/none.xml")
    write(file, file.read_text().replace(*change))
    samples, _, (problem,) = read(tmp_path)
    assert problem.startswith(f"{file}, row 1, id {file.stem}: {field} = ") and why in problem
    assert {path for path, _ in splits(samples)} == {"JPEGImages/train.png"}


def test_lists_of_voc_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"JPEGImages/{name}.png")
        write(tmp_path / f"Annotations/{name}.xml", voc(f"{name}.png", VOC_BOXES))
    for split in ("train", "val"):
        write(tmp_path / f"ImageSets/Main/{split}.txt", "a\n")
    _, notes, (problem,) = read(tmp_path)
    assert "say train and validation" in problem
    assert notes["images that no list of ImageSets/Main names for train, val or test"] == 1


def test_two_forms_in_one_folder_are_not_guessed_between(tmp_path: Path) -> None:
    root = yolo(tmp_path, "images/{}", "labels/{}")
    write(root / "annotations/instances_val.json", coco(["val.png"]))
    with pytest.raises(BadInput, match="holds files of the forms coco, yolo"):
        detect_form(Source(root))
    assert read(root, form="coco")[0] and read(root, form="yolo")[0]

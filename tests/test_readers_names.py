"""Names of classes: every file in which data sets keep them, and numbers that have none."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from clinkd.data.readers import read_rows
from clinkd.data.readers.names import is_number, load_names
from clinkd.data.readers.rows import FieldError
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Modality

NNUNET_V2 = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "liver_tumour": 2}}
MSD = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "liver tumour"}}
FILES = {
    "name to number": ("map.json", json.dumps({"liver": 1, "liver_tumour": "0002"})),
    "number to name": ("map.json", json.dumps({"1": "liver", "2.0": "liver tumour"})),
    "nnU-Net 2 (MIC-DKFZ/nnUNet, documentation/dataset_format.md)": ("dataset.json", json.dumps(NNUNET_V2)),
    "MSD and nnU-Net 1 (open-mmlab/mmsegmentation, decathlon.py)": ("dataset.json", json.dumps(MSD)),
    "YOLO, list": ("data.yaml", "train: images/train\nnames: [background, liver, liver_tumour]\nnc: 3\n"),
    "YOLO, map": ("data.yaml", "path: x\nnames:\n  0: background\n  1: liver\n  2: liver_tumour\n"),
    "a name a line": ("classes.txt", "\ufeffbackground\nliver\nliver tumour\n"),
    "number and name": ("classes.csv", "id,name\n0,background\n1,liver\n2,liver tumour\n"),
    "name and number": ("classes.txt", "liver: 1\nliver tumour: 2\n"),
    "tabs": ("classes.tsv", "1\tliver\n2\tliver tumour\n"),
}


@pytest.mark.parametrize(("name", "text"), FILES.values(), ids=FILES)
def test_every_file_of_names_is_read_alike(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    for names in (load_names(tmp_path / name, Path("elsewhere")), load_names(name, tmp_path)):
        assert [names.of_value(v) for v in (1, 2, 3)] == [("liver",), ("liver tumour",), ()]
        assert [names.find(c, "name", c) for c in (1, "0002", "2.0")] == ["liver", "liver tumour", "liver tumour"]
        with pytest.raises(FieldError, match="class 3 is not there"):
            names.find(3, "name", 3)


def test_names_stand_on_the_command_line_and_regions_overlap(tmp_path: Path) -> None:
    assert load_names("polyp", tmp_path).find(255, "name", 255) == "polyp"
    assert load_names("1=liver,-1=no_liver", tmp_path).find("-1.0", "name", "") == "no liver"
    regions = {"labels": {"background": 0, "whole tumour": [1, 2], "core": [2]}}
    (tmp_path / "dataset.json").write_text(json.dumps(regions))
    names = load_names("dataset.json", tmp_path)
    assert names.regions and [names.of_value(v) for v in range(3)] == [
        ("background",),
        ("whole tumour",),
        ("whole tumour", "core"),
    ]


BAD = {
    "no file": ("none.yaml", None, "none.yaml: no such file"),
    "two words": ("liver,tumour", None, "numbers and names as 1=liver,2=tumour"),
    "a number": ("3", None, "numbers and names as 1=liver"),
    "twice": ("1=liver,1=tumour", None, "'1' stands twice"),
    "no YAML": ("data.yaml", "names: [a, b", "not YAML"),
    "no names": ("data.yaml", "names: [3, 4]\n", "class 0 has the name 3"),
    "both ways": ("map.json", '{"liver": 1, "2": "tumour"}', "'2': 'tumour' is neither"),
    "a line without a number": ("classes.csv", "1,liver\ntumour\n", "'tumour' is no number and name"),
    "empty": ("classes.txt", "\n", "not a map of classes"),
    "latin": ("classes.txt", b"L\xf6we\n", "not a text in UTF-8"),
}


@pytest.mark.parametrize(("names", "content", "told"), BAD.values(), ids=BAD)
def test_bad_names_are_told_in_one_line(tmp_path: Path, names: str, content: str | bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / names).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput) as error:
        load_names(names, tmp_path)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_what_is_a_number() -> None:
    assert all(map(is_number, (2, -1, 1.0, "2", "-1", "1.0", "0003")))
    assert not any(map(is_number, ("liver", "T2", "1.5", 1.5, True, None, "", "1 2")))


@pytest.mark.parametrize("form", ["sheet", "boxes", "coco", "voc", "cvat", "label-studio", "imagefolder", "kvasir-seg"])
@pytest.mark.parametrize("code", ["-1", "2", "1.0"])
def test_a_class_that_is_a_number_wants_names(tmp_path: Path, form: str, code: str) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    files = {
        "sheet": ("s.csv", f"image,name,x1,y1,x2,y2,modality\na.png,{code},1,2,11,12,ct\n"),
        "boxes": ("records.jsonl", json.dumps(
            {"id": "a", "image": "a.png", "modality": "ct", "objects": [{"name": code, "box": [1, 2, 11, 12]}]}
        )),
        "coco": ("c.json", json.dumps({
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 10]}],
            "categories": [{"id": 7, "name": code}],
        })),
        "voc": ("a.xml", "<annotation><filename>a.png</filename><size><width>40</width><height>30</height></size>"
            f"<object><name>{code}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>12</ymax></bndbox>"
            "</object></annotation>"),
        "cvat": ("annotations.xml", '<annotations><version>1.1</version><image id="0" name="a.png" width="40" '
            f'height="30"><box label="{code}" xtl="1" ytl="2" xbr="11" ybr="12"/></image></annotations>'),
        "label-studio": ("ls.json", json.dumps([{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": [
            {"type": "rectanglelabels", "original_width": 40, "original_height": 30,
             "value": {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": [code]}}]}]}])),
        "imagefolder": ("metadata.jsonl", json.dumps(
            {"file_name": "a.png", "objects": {"bbox": [[1, 2, 10, 10]], "categories": [code]}}
        )),
        "kvasir-seg": ("kavsir_bboxes.json", json.dumps(
            {"a.png": {"bbox": [{"label": code, "xmin": 1, "ymin": 2, "xmax": 11, "ymax": 12}]}}
        )),
    }  # fmt: skip
    name, text = files[form]
    (tmp_path / name).write_text(text)
    modality = None if form in ("sheet", "boxes") else Modality.CT
    source = Source(tmp_path / name, modality=modality, images=tmp_path, form=form if form == "kvasir-seg" else None)
    problems = [r.problem for r in read_rows(source, Counter()) if r.problem]
    assert problems and "--names FILE" in problems[0].why and not any(r.samples for r in read_rows(source, Counter()))
    (tmp_path / "names.json").write_text(json.dumps({"-1": "no_finding_here", "1": "liver", "2": "spleen"}))
    named = replace(source, names=tmp_path / "names.json")
    rows = list(read_rows(named, Counter()))
    assert {n for r in rows for s in r.samples for n in s.names} == {
        {"-1": "no finding here", "2": "spleen", "1.0": "liver"}[code]
    }


@pytest.mark.parametrize("names", ["['0', '1']", "[0, 1]"])
def test_numbers_in_data_yaml_are_no_names(tmp_path: Path, names: str) -> None:
    """Roboflow writes such names where the classes were called so."""
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text(f"train: .\nnc: 2\nnames: {names}\n")
    source = Source(tmp_path, form="yolo", modality=Modality.CT)
    with pytest.raises(BadInput, match="names: 0: 0 is no .* name of a class; correct it, or give --names"):
        list(read_rows(source, Counter()))
    samples = [s for r in read_rows(replace(source, names="0=cyst,1=polyp"), Counter()) for s in r.samples]
    assert {s.names for s in samples} == {("polyp",)}

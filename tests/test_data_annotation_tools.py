"""CVAT and Label Studio: boxes against shapes drawn as pixels, and what is no box is counted."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from clinkd.data.readers import forms
from clinkd.data.readers.shapes import extent, rotate
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Modality, Task

WIDTH, HEIGHT = 200, 100


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "1a2b3c4d-b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / name)
    return tmp_path


def read(path: Path, **knobs):
    notes: Counter[str] = Counter()
    samples = forms.read_samples(Source(path, modality=Modality.ENDOSCOPY, **knobs), notes)
    boxes = {
        s.names[0]: tuple(round(v * size, 3) for v, size in zip(b.corners, (WIDTH, HEIGHT) * 2, strict=True))
        for s in samples
        if s.task is Task.VG
        for b in s.answer.boxes
    }
    return boxes, samples, notes


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 200.0])
@pytest.mark.parametrize("pivot", [None, (70.0, 60.0)])
def test_turned_shapes_fill_the_box_around_them(degrees, pivot):
    """Each pixel of the turned polygon, as Pillow fills it, lies in the box, and the box is no larger."""
    points = rotate([(70.0, 60.0), (110.0, 60.0), (110.0, 80.0), (70.0, 80.0)], degrees, pivot)
    drawn = Image.new("1", (300, 300))
    ImageDraw.Draw(drawn).polygon([(x + 100, y + 100) for x, y in points], fill=1)
    ys, xs = np.nonzero(np.asarray(drawn))
    assert np.allclose(extent(points), (xs.min() - 100, ys.min() - 100, xs.max() - 100, ys.max() - 100), atol=1)


def cvat(images: str) -> str:
    return f'<?xml version="1.0"?>\n<annotations><version>1.1</version><meta/>{images}</annotations>'


def test_shapes_of_cvat_are_boxes(scans):
    shapes = """<box label="polyp" xtl="10.0" ytl="20.0" xbr="50.5" ybr="60.0"><attribute name="a">b</attribute></box>
        <box label="turned" rotation="90.0" xtl="100" ytl="40" xbr="140" ybr="60"/>
        <polygon label="cyst" points="1.0,2.0;30.5,4.0;5.0,6.0"/><ellipse label="node" cx="90" cy="50" rx="3" ry="2"/>
        <mask label="liver" left="5" top="6" width="20" height="10" rle="1, 2"/><points label="p" points="1,2"/>"""
    (scans / "annotations.xml").write_text(
        cvat(f'<image id="0" name="a.png" width="200" height="100" subset="Test">{shapes}</image>')
    )
    boxes, samples, notes = read(scans)
    assert boxes == {
        "polyp": (10, 20, 50.5, 60), "turned": (110, 30, 130, 70), "cyst": (1, 2, 30.5, 6), "node": (87, 48, 93, 52),
        "liver": (5, 6, 25, 16),
    }  # fmt: skip
    assert {s.split for s in samples} == {"test"}
    assert notes["shapes of the kind points, which have no box"] == 1
    assert notes["attributes of shapes, which are not used"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (cvat('<track id="0" label="polyp"/>'), "tracks of a video"),
        (cvat(""), "no image in it"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotations><image name="&x;"/></annotations>', "document type"),
        (cvat('<image name="a.png" width="200" height="100"/>')[:-9], "cannot be read behind image 1"),
        (cvat('<image name="a.png" width="100" height="100"/>'), "the image has 200 pixels"),
        (cvat('<image name="a.png" width="200" height="100"><box xtl="1"/></image>'), "box 1"),
        (cvat('<image name="c.png" width="200" height="100"/>'), "no such file"),
    ],
)
def test_other_xml_is_refused(scans, text, words):
    (scans / "annotations.xml").write_text(text)
    with pytest.raises(BadInput, match=words):
        read(scans, form="cvat")


def rectangle(**value: object) -> dict[str, object]:
    value = {"x": 10.0, "y": 20.0, "width": 5.0, "height": 40.0, "rotation": 0, "rectanglelabels": ["polyp"]} | value
    return {"type": "rectanglelabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}


def task(*results: object, image: str = "a.png", **annotation: object) -> list[dict[str, object]]:
    return [{"id": 1, "data": {"image": image}, "annotations": [{"result": results, **annotation}]}]


def test_shapes_of_label_studio_are_boxes(scans):
    ellipse = {
        "type": "ellipselabels",
        "value": {"x": 50, "y": 50, "radiusX": 5, "radiusY": 10, "ellipselabels": ["e"]},
    }
    points = {"points": [[1, 2], [30, 4], [5, 6]], "polygonlabels": ["p", "q"]}
    others = [{"type": "choices", "value": {"choices": ["x"]}}, {"type": "brushlabels", "value": {"rle": [1]}}]
    rows = task(rectangle(), ellipse, {"type": "polygonlabels", "value": points}, *others)
    rows[0]["predictions"] = [{"result": []}]
    (scans / "tasks.json").write_text(json.dumps(rows))
    boxes, _, notes = read(scans / "tasks.json", images=scans / "images")
    assert boxes == {"polyp": (20, 20, 30, 60), "e": (90, 40, 110, 60), "p": (2, 2, 60, 6), "q": (2, 2, 60, 6)}
    assert {k: n for k, n in notes.items() if "kind" in k or "predictions" in k} == {
        "results of the kind choices, which are no box with a label": 1,
        "results of the kind brushlabels, which are no box with a label": 1,
        "predictions of models, which are not used": 1,
    }


def test_a_turned_rectangle_hangs_at_its_corner(scans):
    """Label Studio's own conversion: a rectangle of 20 x 20 pixels turned by 45 degrees about its left upper corner."""
    (scans / "tasks.json").write_text(json.dumps(task(rectangle(x=50.0, y=20.0, width=10.0, height=20.0, rotation=45))))
    half = 20 * math.sqrt(0.5)
    boxes, _, _ = read(scans / "tasks.json", images=scans / "images")
    assert np.allclose(boxes["polyp"], (100 - half, 20, 100 + half, 20 + 2 * half), atol=0.001)


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("/data/upload/7/1a2b3c4d-b.png", "1a2b3c4d-b.png"),
        ("/data/upload/7/9f2b3c4d-a.png", "a.png"),
        ("/data/local-files/?d=a.png", "a.png"),
    ],
)
def test_the_image_is_found_by_the_addresses_of_the_tool(scans, image, path):
    (scans / "tasks.json").write_text(json.dumps(task(rectangle(), image=image)))
    _, samples, _ = read(scans / "tasks.json", images=scans / "images")
    assert {s.images[0].path for s in samples} == {path}


def test_json_min_is_read_alike(scans):
    shape = {k: v for k, v in rectangle().items() if k != "value"} | rectangle()["value"]
    (scans / "min.json").write_text(json.dumps([{"image": "a.png", "id": 1, "annotation_id": 2, "label": [shape]}]))
    boxes, _, _ = read(scans / "min.json", images=scans / "images")
    assert boxes == {"polyp": (20, 20, 30, 60)}


def test_what_was_cancelled_is_left_out_and_counted(scans):
    (scans / "tasks.json").write_text(json.dumps(task(rectangle(), was_cancelled=True)))
    boxes, _, notes = read(scans / "tasks.json", images=scans / "images")
    assert not boxes and notes["annotations that were cancelled, left out"] == 1


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (rectangle(x="a"), "numbers in percent"),
        (rectangle() | {"original_width": 7}, "the image has 200 pixels"),
        (rectangle() | {"image_rotation": 90}, "turned in the tool"),
        (rectangle(x=120.0), "outside"),
    ],
)
def test_a_shape_that_cannot_be_is_a_bad_row(scans, result, words):
    (scans / "tasks.json").write_text(json.dumps(task(result)))
    with pytest.raises(BadInput, match=words):
        read(scans / "tasks.json", images=scans / "images")


def test_a_box_of_label_studio_up_to_the_border_is_read(scans):
    """Percentages of a box along the border seldom add up to 100."""
    value = {"x": 33.3333333333, "y": 50.0, "width": 66.6666666668, "height": 50.2, "rectanglelabels": ["polyp"]}
    result = {"type": "rectanglelabels", "original_width": WIDTH, "original_height": HEIGHT, "value": value}
    task = {"id": 1, "data": {"image": "images/a.png"}, "annotations": [{"result": [result]}]}
    (scans / "tasks.json").write_text(json.dumps([task]))
    boxes, _, notes = read(scans / "tasks.json")
    assert boxes == {"polyp": (66.667, 50.0, 200.0, 100.0)}
    assert notes == {"boxes less than a pixel over the border of the image, put on it": 1}

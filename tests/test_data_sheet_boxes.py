"""What the four numbers of a box mean: by the heads of a sheet, by flags, or refused; and boxes at the border."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clinkd.data.readers import sheet
from clinkd.data.readers.box_layout import BoxForm, BoxLayout
from clinkd.data.readers.forms import read_rows
from clinkd.data.readers.rows import RowResult
from clinkd.data.readers.source import Source
from clinkd.records import BadInput, Modality, Task

CASES = Path(__file__).parents[2] / "shared" / "cases" / "data"
SIZE = (100, 50)


def read(root: Path, text: str, **knobs: Any) -> tuple[list[RowResult], Counter[str]]:
    """The rows of a sheet beside an image of 100 x 50 pixels."""
    Image.new("L", SIZE).save(root / "a.png")
    (root / "sheet.csv").write_text(text)
    notes: Counter[str] = Counter()
    source = Source(root / "sheet.csv", **{"modality": Modality.CT, **knobs})
    return list(sheet.read(source, notes)), notes


def pixels(rows: list[RowResult]) -> list[tuple[float, ...]]:
    """Left, top, right and bottom of the boxes of all VG answers."""
    vg = (s for row in rows for s in row.samples if s.task is Task.VG)
    return [
        tuple(round(v * n, 3) for v, n in zip(b.corners, (*SIZE, *SIZE), strict=True))
        for s in vg
        for b in s.answer.boxes
    ]


def spell(corners: tuple[int, ...], layout: BoxLayout, height: int) -> tuple[float, ...]:
    """The numbers of a box in a layout, written down independently of `BoxLayout`."""
    left, top, right, bottom = corners
    if layout.y_up:
        top, bottom = height - bottom, height - top
    first = 1 if layout.one_based else 0
    if layout.form == "xyxy":
        return left + first, top + first, right, bottom
    if layout.form == "xywh":
        return left + first, top + first, right - left, bottom - top
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


@pytest.mark.parametrize("y_up", [False, True])
@pytest.mark.parametrize("one_based", [False, True])
@pytest.mark.parametrize("form", ["xyxy", "xywh", "cxcywh"])
def test_a_box_spelled_in_any_layout_comes_back(form: BoxForm, one_based: bool, y_up: bool) -> None:
    if form == "cxcywh" and one_based:
        with pytest.raises(BadInput, match="--one-based with --box-form cxcywh"):
            BoxLayout(form, one_based, y_up)
        return
    rng, layout = random.Random(0), BoxLayout(form, one_based, y_up)
    for _ in range(50):
        left, top = rng.randrange(90), rng.randrange(40)
        corners = (left, top, rng.randint(left + 1, 100), rng.randint(top + 1, 50))
        assert layout.to_corners(spell(corners, layout, 50), 50) == corners  # type: ignore[arg-type]


BOX = (10, 5, 40, 45)
HEADS = [  # heads, the numbers of BOX
    ("x1,y1,x2,y2", "10,5,40,45"), ("x_min,y_min,x_max,y_max", "10,5,40,45"), ("x0,y0,x1,y1", "10,5,40,45"),
    ("Left,Top,Right,Bottom", "10,5,40,45"), ("bbox_xmin,bbox_ymin,bbox_xmax,bbox_ymax", "10,5,40,45"),
    ("x,y,width,height", "10,5,30,40"), ("x,y,w,h", "10,5,30,40"), ("Bbox [x,y,w,h]", "10,5,30,40"),
    ("left,top,width,height", "10,5,30,40"), ("xmin,ymin,w,h", "10,5,30,40"), ("cx,cy,w,h", "25,25,30,40"),
    ("bounding_box_x1,bounding_box_y1,bounding_box_x2,bounding_box_y2", "10,5,40,45"),
    ("xc,yc,w,h", "25,25,30,40"), ("x_centre,y_centre,w,h", "25,25,30,40"), ("min_x,min_y,width,height", "10,5,30,40"),
    ("x_center,y_center,width,height", "25,25,30,40"), ("bbox_xywh", '"10,5,30,40"'),
    ("bbox_xyxy", '"[10, 5, 40, 45]"'),
    ('"bbox [x,y,w,h]"', '"[10, 5, 30, 40]"'), ('"box (x1, y1, x2, y2)"', '"(10, 5, 40, 45)"'),
    ("x,y,w,h,width,height", "10,5,30,40,100,50"), ("height,width,xmin,ymin,xmax,ymax", "50,100,10,5,40,45"),
]  # fmt: skip


@pytest.mark.parametrize(("heads", "numbers"), HEADS)
def test_heads_that_say_what_the_numbers_are_are_believed(tmp_path: Path, heads: str, numbers: str) -> None:
    rows, _ = read(tmp_path, f"image,name,{heads}\na.png,lung,{numbers}\n")
    assert pixels(rows) == [BOX]


def test_heads_that_say_nothing_can_be_said_to_be_centres(tmp_path: Path) -> None:
    columns = {"x": "mid_a", "y": "mid_b", "width": "w", "height": "h"}
    text = "image,name,mid_a,mid_b,w,h\na.png,lung,25,25,30,40\n"
    assert pixels(read(tmp_path, text, columns=columns, box_form="cxcywh")[0]) == [BOX]


@pytest.mark.parametrize("heads", ["x,y,width,height", "x1,y1,x2,y2", "xmin,ymin,xmax,ymax"])
def test_without_a_name_only_our_own_heads_make_a_box(tmp_path: Path, heads: str) -> None:
    """Beside a question xmin ... may be anything, and was never taken."""
    rows, notes = read(tmp_path, f"image,question,answer,{heads}\na.png,Is it?,yes,1,2,30,40\n")
    is_told = "column 'xmin' is not used" in " ".join(notes)
    assert is_told == heads.startswith("xmin") and (rows[0].problem is None) == is_told


REFUSED = [
    ("x,y,width,height", "1,2,3,4", {"box_form": "xyxy"}, "the heads 'x', 'y', 'width', 'height' say xywh"),
    ("x1,y1,x2,y2", "1,2,3,4", {"box_form": "xywh"}, "say xyxy; leave the flag out"),
    ("bbox_xyxy", '"1,2,3,4"', {"box_form": "cxcywh"}, "say xyxy"),
    ("left,top,w,h", "1,2,3,4", {"box_form": "cxcywh"}, "say xywh"),
    ('"bbox [y1,x1,y2,x2]"', '"1,2,3,4"', {"columns": {"box": "bbox [y1,x1,y2,x2]"}}, "puts y before x"),
    ("box_yxyx", '"1,2,3,4"', {"columns": {"box": "box_yxyx"}, "box_form": "xyxy"}, "puts y before x"),
    ("a,b,xmax,d", "1,2,3,4", {"columns": {"x": "a", "y": "b", "width": "xmax", "height": "d"}},
     "'xmax' is a corner, and width a size: give --column x1=a --column y1=b --column x2=xmax --column y2=d"),
    ("bbox", '"1,2,8,9"', {},
     "of 1 boxes xyxy .* fits 1, xywh .* fits 1, cxcywh .* fits 0; give --box-form xyxy or --box-form xywh"),
    ("cx,cy,w,h", "9,9,3,4", {"one_based": True}, "a centre is not counted in pixels"),
    ("x1,y1,x2,y2", "1,2,3,4", {"boxes": "normalised", "one_based": True}, "fractions do not count pixels"),
    ("x1,y1,x2,y2", "1,2,3,4", {"boxes": "qwen2-vl", "y_up": True}, "--boxes qwen2-vl says itself"),
]  # fmt: skip


@pytest.mark.parametrize(("heads", "numbers", "knobs", "why"), REFUSED)
def test_what_contradicts_or_says_nothing_is_refused(
    tmp_path: Path, heads: str, numbers: str, knobs: dict[str, Any], why: str
) -> None:
    with pytest.raises(BadInput, match=why) as refused:
        read(tmp_path, f"image,name,{heads}\na.png,lung,{numbers}\n", **knobs)
    assert "\n" not in str(refused.value)


def test_one_column_of_four_numbers_is_refused_with_the_counts_of_each_form(tmp_path: Path) -> None:
    """As NIH's 984 boxes: 181 of their left, top, width and height pass as corners."""
    rng = random.Random(0)
    sizes = [(rng.randint(1, 50), rng.randint(1, 25)) for _ in range(20)]
    boxes = [(rng.randint(0, 100 - w), rng.randint(0, 50 - h), w, h) for w, h in sizes]
    corners = sum(x < w and y < h for x, y, w, h in boxes)
    centres = sum(x >= w / 2 and y >= h / 2 for x, y, w, h in boxes)
    assert 0 < corners < 20
    for head in ("box", "bbox", "Bounding Boxes"):
        text = f"image,name,{head}\n" + "".join(
            f'a.png,lung,"{x},{y},{w},{h}"\n' for x, y, w, h in dict.fromkeys(boxes)
        )
        with pytest.raises(BadInput, match=rf"fits {corners}, xywh .* fits 20, cxcywh .* fits {centres}; give"):
            read(tmp_path, text)
        assert sorted(pixels(read(tmp_path, text, box_form="xywh", max_boxes=20)[0])) == sorted(
            (x, y, x + w, y + h) for x, y, w, h in boxes
        )


def test_a_column_box_is_corners_where_its_numbers_fit_nothing_else_as_well(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, 'image,name,box\na.png,lung,"60,30,90,45"\na.png,lung,"1,2,30,40"\n')
    assert pixels(rows) == [(1, 2, 30, 40), (60, 30, 90, 45)]
    with pytest.raises(BadInput, match="--box-form"):
        read(tmp_path, 'image,name,bbox\na.png,lung,"60,30,90,45"\na.png,lung,"1,2,30,40"\n')


def test_flags_hold_for_plain_boxes(tmp_path: Path) -> None:
    text = "image,name,x1,y1,x2,y2\na.png,lung,11,6,40,45\n"
    assert pixels(read(tmp_path, text, one_based=True)[0]) == [(10, 5, 40, 45)]
    assert pixels(read(tmp_path, text, y_up=True)[0]) == [(11, 5, 40, 44)]
    for one_based in (False, True):
        text = f"image,name,left,top,right,bottom\na.png,lung,{11 + one_based},45,40,{6 + one_based}\n"
        assert pixels(read(tmp_path, text, y_up=True, one_based=one_based)[0]) == [(11, 5, 40, 44)]
    text = "image,name,x,y,w,h\na.png,lung,0.25,0.2,0.1,0.4\n"
    assert pixels(read(tmp_path, text, boxes="normalised", box_form="cxcywh")[0]) == [(20, 0, 30, 20)]
    assert pixels(read(tmp_path, text, boxes="normalised", y_up=True)[0]) == [(25, 20, 35, 40)]
    record = {"id": "a", "image": "a.png", "modality": "ct", "objects": [{"name": "lung", "box": [11, 6, 30, 40]}]}
    (tmp_path / "records.jsonl").write_text(json.dumps(record))
    for knobs, wanted in (({}, (11, 6, 30, 40)), ({"box_form": "xywh", "one_based": True}, (10, 5, 40, 45))):
        assert pixels(list(read_rows(Source(tmp_path, **knobs), Counter()))) == [wanted]  # type: ignore[arg-type]


@pytest.mark.parametrize("knobs", [{"box_form": "xywh"}, {"one_based": True}, {"y_up": True}])
def test_a_form_that_says_it_itself_refuses_the_flag(tmp_path: Path, knobs: dict[str, Any]) -> None:
    flag = next(iter(knobs)).replace("_", "-")
    with pytest.raises(BadInput, match=f"--{flag}.*: the form coco says itself"):
        next(iter(read_rows(Source(tmp_path, form="coco", **knobs), Counter())))


BORDER = [
    ("xyxy", "-0.4,-0.9,100.5,50.999", None, (0, 0, 100, 50)),
    ("xywh", "90,5,10.5,9", None, (90, 5, 100, 14)),
    ("xyxy", "90,5,101,9", None, None),
    ("xyxy", "-1,5,9,9", None, None),
    ("xyxy", "0.9,0.1,1.004,0.5", "normalised", (90, 5, 100, 25)),
    ("xyxy", "0.9,0.1,1.02,0.5", "normalised", None),
]


@pytest.mark.parametrize(("form", "numbers", "boxes", "wanted"), BORDER)
def test_a_box_less_than_a_pixel_over_the_border_is_put_on_it_and_told(
    tmp_path: Path, form: BoxForm, numbers: str, boxes: str | None, wanted: tuple[int, ...] | None
) -> None:
    heads = "x1,y1,x2,y2" if form == "xyxy" else "x,y,w,h"
    rows, notes = read(tmp_path, f"image,name,{heads}\na.png,lung,{numbers}\n", boxes=boxes)
    assert pixels(rows) == ([wanted] if wanted else [])
    assert notes == ({"boxes less than a pixel over the border of the image, put on it": 1} if wanted else {})
    assert wanted or rows[0].problem is not None


def test_the_case_of_sizes_mapped_to_corners(tmp_path: Path) -> None:
    if not CASES.is_dir():
        pytest.skip("shared/cases/data is not here")
    folder = Path(shutil.copytree(CASES / "04_xywh", tmp_path / "case"))
    mapped = {"x1": "x", "y1": "y", "x2": "width", "y2": "height"}
    with pytest.raises(BadInput, match="'width' is a size, and x2 a corner"):
        list(sheet.read(Source(folder / "sheet.csv", columns=mapped), Counter()))
    rows = list(sheet.read(Source(folder / "sheet.csv"), Counter()))
    vg = {s.images[0]: s.answer.boxes[0].corners for row in rows for s in row.samples if s.task is Task.VG}
    wanted = {"a.png": (277, 250, 817, 551), "b.png": (298, 200, 846, 628)}
    for image, corners in vg.items():
        assert image.width and image.height
        scaled = zip(corners, (image.width, image.height) * 2, strict=True)
        assert tuple(round(v * n) for v, n in scaled) == wanted[image.path]
    assert len(vg) == 2


@pytest.mark.parametrize("heads", ["width,height,xmin,ymin,xmax,ymax", "image_width,image_height,x1,y1,x2,y2"])
def test_the_size_that_a_line_states_is_that_of_its_image(tmp_path: Path, heads: str) -> None:
    """As of VinDr's and Roboflow's sheets beside smaller copies of the images, in which the boxes lie elsewhere."""
    for size, problem in (("100,50", None), ("100.0,50", None), (",", None), ("200,100", "200"), ("100,100", "100")):
        rows, notes = read(tmp_path, f"image,name,{heads}\na.png,lung,{size},10,5,40,45\n")
        assert (rows[0].problem and rows[0].problem.value) == problem and not any("not used" in note for note in notes)
        assert problem or pixels(rows) == [BOX]
    rows, _ = read(tmp_path, f"image,name,{heads}\na.png,lung,200,100,.1,.1,.4,.9\n", boxes="normalised")
    assert pixels(rows) == [BOX]

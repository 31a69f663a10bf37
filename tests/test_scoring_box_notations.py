"""Boxes of other people's models: every notation of a box is that box, and what is none is named."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from clinkd.data.grids import Size
from clinkd.records import BadInput, BoxedText
from clinkd.scoring.final_answer import find_final_answer
from clinkd.scoring.reading.box_families import ReadAnswer, read_answer

CORNERS = (0.1, 0.2, 0.4, 0.5)
SPELLED = [
    "<box>({x1},{y1}),({x2},{y2})</box>",
    "<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>",
    "<box>[[{x1}, {y1}, {x2}, {y2}]]</box>",
    "<box>{x1},{y1},{x2},{y2}</box>",
    "<box>({x1},{y1}),({x2},{y2})",
    "({x1},{y1}),({x2},{y2})",
    "({x1}, {y1}), ({x2}, {y2})",
    "({x1}, {y1}) to ({x2}, {y2})",
    "[{x1}, {y1}, {x2}, {y2}]",
    "[{x1}, {y1}], [{x2}, {y2}]",
    "({x1}, {y1}, {x2}, {y2})",
    "x1={x1}, y1={y1}, x2={x2}, y2={y2}",
    "xmin: {x1}, ymin: {y1}, xmax: {x2}, ymax: {y2}",
    '```json\n[{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "label": "liver"}}]\n```',
]


@pytest.mark.parametrize("spelled", SPELLED)
@pytest.mark.parametrize("family", ["qwen-vl", "normalised"])
def test_every_spelling_and_every_order_of_corners_is_the_same_box(spelled: str, family: str) -> None:
    dice, unit = random.Random(spelled), 1 if family == "normalised" else 1000
    for _ in range(5):
        (left, right), (top, bottom) = (sorted(dice.sample(range(1001), 2)) for _ in "xy")
        for (x1, x2), (y1, y2) in itertools.product(((left, right), (right, left)), ((top, bottom), (bottom, top))):
            values = {k: v * unit / 1000 for k, v in zip(("x1", "y1", "x2", "y2"), (x1, y1, x2, y2), strict=True)}
            values = values if unit == 1 else {k: int(v) for k, v in values.items()}
            read = read_answer(f"It is at {spelled.format(**values)} here.", family)
            assert read.unread == () and len(read.answer.boxes) == 1
            assert read.answer.boxes[0].corners == pytest.approx([v / 1000 for v in (left, top, right, bottom)])
            assert read.turned == ((x1, y1) != (left, top)), values
            assert read.answer.words.startswith("It is at") and read.answer.words.endswith("here.")


THOUSANDTHS = [
    '{"y2": 500, "x1": 100, "y1": 200, "x2": 400}',
    '{"h": 300, "w": 300, "y": 200, "x": 100}',
    '{"cx": 250, "cy": 350, "w": 300, "h": 300}',
    '{"center": [250, 350], "size": [300, 300]}',
    '{"center": {"x": 250, "y": 350}, "width": 300, "height": 300}',
    '{"top_left": [100, 200], "bottom_right": [400, 500]}',
    '{"topLeft": {"x": 100, "y": 200}, "bottomRight": {"x": 400, "y": 500}}',
    '{"x": [100, 400], "y": [200, 500]}',
    '{"bbox": {"xmin": 100, "ymin": 200, "xmax": 400, "ymax": 500}, "label": "liver", "score": 0.93}',
    '{"x0":100,"y0":200,"x1":400,"y1":500}',
    '{"left": "10%", "top": "20%", "right": "40%", "bottom": "50%"}',
    '{"x1": "100", "y1": "200", "x2": "400", "y2": "500"}',
    "{'x1': 100, 'y1': 200, 'x2': 400, 'y2': 500}",
    "{x1: 100, y1: 200, x2: 400, y2: 500}",
    '{"bbox": "[100, 200, 400, 500]"}',
    '{"bbox": [[100,200],[400,500]]}',
    '{"bbox": ["100","200","400","500"]}',
    '{"bbox_xywh": [100,200,300,300]}',
    '{"polygon": [[250,200],[400,500],[100,350]]}',
    '{"segmentation": [100,200,400,200,400,500,100,500]}',
    '{"points": [{"x":100,"y":200},{"x":400,"y":200},{"x":400,"y":500},{"x":100,"y":500}]}',
    '{"detections": [{"box": [100,200,400,500], "confidence": 0.9, "class": "liver"}], "count": 1}',
    "{'<OD>': {'bboxes': [[100, 200, 400, 500]], 'labels': ['liver']}}",
    '[[100, 200, 400, 500], "liver", 0.93]',
    "[100, 200, 400, 500, 0.93]",
    "[y_min, x_min, y_max, x_max] = [200, 100, 500, 400]",
    "In the format (x, y, width, height) it is [100, 200, 300, 300].",
    "[x_center, y_center, width, height]: [250, 350, 300, 300]",
    "(100,200),(400,210),(390,500),(110,490)",  # an outline, and no two boxes
    "from x=100, y=200 to x=400, y=500",
    "<box><100><200><400><500></box>",
    "[np.float64(100.0), np.float64(200.0), np.float64(400.0), np.float64(500.0)]",
    '{"p1": [100, 200], "p2": [400, 500]}',
    "\\[100, 200, 400, 500\\]",
    "- x1: 100\n- y1: 200\n- x2: 400\n- y2: 500",
    "X: [100, 400], Y: [200, 500]",
    '{"Place": "[100, 200, 400, 500]"}',
    '{"answer": "the liver", "bbox_2d": [100, 200, 400, 500]}',
    "liver: 0.93 [100, 200, 400, 500]",
    '[{"bbox_2d": [100, 200, 400, 500], "lab',
    '<box x1="100" y1="200" x2="400" y2="500"/>',
    "<bbox><x1>100</x1><y1>200</y1><x2>400</x2><y2>500</y2></bbox>",
    "left: 100, top: 200, width: 300, height: 300",
    "x: 100-400, y: 200-500",
    "x: 10%–40%, y: 20%–50%",
    "(100,200)-(400,500)",
    "top-left corner (x=100, y=200) and bottom-right corner (x=400, y=500)",
    "The top left corner is at (100, 200) and the bottom right corner is at (400, 500).",
    "bottom-left (100,500), top-right (400,200)",
    "The box is 100, 200, 400, 500.",
    "100 200 400 500",
    "[1e2, 2.0E+02, 4e2, 5e2]",
    "[100. 200. 400. 500.]",
    "［１００，２００，４００，５００］",
    "【100, 200, 400, 500】",
    "<quad>(100,200),(400,200),(400,500),(100,500)</quad>",
    "<poly>100,200,400,200,400,500,100,500</poly>",
    "(100,200),(400,200),(400,500),(100,500)",
    "click(start_box='[100, 200, 400, 500]')",
    "<|begin_of_box|>[100,200,400,500]<|end_of_box|>",
    "<bounding_box>100, 200, 400, 500</bounding_box>",
]


def test_boxes_are_read_however_they_are_put_down() -> None:
    for text in THOUSANDTHS:
        read = read_answer(find_final_answer(text).text, "thousandths")
        assert [b.corners for b in read.answer.boxes] == [pytest.approx(CORNERS)] and not read.unread, text


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("[[100,200,400,500;0,0,50,50]]", "cogvlm"),
        ("<box>[[100, 200, 400, 500], [0, 0, 50, 50]]</box>", "internvl"),
        ("<box>(100,200),(400,500)(0,0),(50,50)</box>", "qwen-vl"),
        ("[[[100,200],[400,500]],[[0,0],[50,50]]]", "qwen-vl"),
        ("100,200,400,500;0,0,50,50", "qwen-vl"),
        ('{"bbox": [100,200,400,500], "bbox": [0,0,50,50]}', "qwen-vl"),
        ("<loc0205><loc0102><loc0512><loc0410><seg012> liver ; <loc0000><loc0000><loc0051><loc0051> x", "paligemma"),
        ("<p>liver</p>{<10><20><40><50>}<delim>{<0><0><5><5>}", "minigpt-v2"),
        ("<|det|>[[100, 200, 400, 500], [0,0,50,50]]<|/det|>", "deepseek-vl2"),
        ('[{"box_2d": [200, 100, 500, 400]}, {"box_2d": [0, 0, 50, 50], "mask": "data:base64,iVB[3]"}]', "gemini"),
    ],
)
def test_several_boxes_stay_several(text: str, family: str) -> None:
    read = read_answer(text, family)
    assert [b.corners for b in read.answer.boxes] == [
        pytest.approx(CORNERS, abs=2e-3),
        pytest.approx((0, 0, 0.05, 0.05), abs=2e-3),
    ] and not read.unread  # fmt: skip


@pytest.mark.parametrize(
    ("text", "family"),
    [
        *((text, "qwen-vl") for text in (
            "<box>(1,2),(3,", "<box>(100,100),(300,30", "<box></box>", "[0.1, 0.1, 0.3, 0.3]", "[100, 100, 1200, 300]",
            "(100,100),(100,300)", "(-25,1),(30,40)", "[box]", "<box>(1,2)</box>", "(250, 350)", "[250, 350]",
            "(100,200), (400,500), (700,100)", "<point>250 350</point>", '<points coords="1 1 250 350 2 400 500"/>',
            "start_box='<|box_start|>(100,200)<|box_end|>'", '{"x": 250, "y": 350}', "[100, 200, 400, 500, 7]",
            '{"bbox_2d": [100, 200, 4', "<box>liver</box>", '{"bbox": [NaN, 2, 3, 4]}', "[1e999, 2, 3, 4]",
            "bbox: 100,200,400,500 (liver)", "[100px, 200px, 400px, 500px]", "| 100 | 200 | 400 | 500 |",
            "liver 0.95 100 200 400 500 1", "horizontally from 100 to 400 and vertically from 200 to 500",
            "<loc0205><loc0102><loc0512><loc0410> liver",
            "<object><patch_index_0195><patch_index_0525></object>",
        )),
        ('{"x1": 1,024, "y1": 200, "x2": 400, "y2": 500}', "pixels"), ("[1,024, 2,048, 3,072, 4,096]", "pixels"),
    ],
)  # fmt: skip
def test_what_is_no_box_of_the_declared_frame_is_left_unread(text: str, family: str) -> None:
    read = read_answer(f"at {text}", family, Size(4096, 4096))
    assert read.answer.boxes == () and len(read.unread) == 1


def test_words_stay_words() -> None:
    for text in ("I cannot see it (2 of 3).", "a [left] lung, 3 of 4; (see figure 1)", ""):
        read = read_answer(text, "qwen-vl")
        assert (read.answer.text, read.answer.boxes, read.unread) == (text, (), ())
    said = read_answer("the <ref>liver</ref><box>(1,2),(3,4)</box> of (1,2),(3,4)", "qwen-vl", marked_only=True)
    assert said.answer.text == "the liver [box] of (1,2),(3,4)" and len(said.answer.boxes) == 1


def test_scores_count_only_where_every_box_has_one() -> None:
    scored, bare = '{"bbox": [100,200,400,500], "score": "90%"}', "[0,0,50,50]"
    assert read_answer(scored, "qwen-vl").scores == (0.9,)
    assert read_answer(f"{scored} {bare}", "qwen-vl").scores == ()


def test_many_boxes_are_all_read() -> None:
    text = "".join(f"<box>({x},{y}),({x + 9},{y + 9})</box>" for x in range(0, 900, 15) for y in range(0, 900, 15))
    assert len(read_answer(text, "qwen2-vl").answer.boxes) == 3600


@pytest.mark.parametrize(
    "text",
    ["(" * 20_000, "(1" + " " * 20_000, "<box>" * 8_000, "(1 " * 8_000, "[" + "1," * 8_000, '{"a":' * 8_000,
     "<think>" * 4_000, "*" * 8_000, "```json\n" * 4_000, "<points " * 4_000, "\ue000" * 8_000],
)  # fmt: skip
def test_hostile_answers_take_no_time(text: str) -> None:
    start = time.process_time()
    read_answer(text, "qwen-vl")
    read_answer(find_final_answer(text).text, "qwen-vl")
    assert time.process_time() - start < 2


def test_pixels_need_a_size_and_a_family_a_known_name() -> None:
    with pytest.raises(BadInput, match="size of the image must be known"):
        read_answer("(1,2),(3,4)", "qwen2.5-vl")
    with pytest.raises(BadInput, match="did you mean gemini"):
        read_answer("(1,2),(3,4)", "gemin")


def test_an_object_whose_box_is_empty_says_that_it_is_nowhere() -> None:
    for text in ('[{"bbox_2d": [], "label": "liver"}]', '{"box_2d": null}', '[{"bbox": "none"}, {"bbox": []}]'):
        assert read_answer(text, "thousandths") == ReadAnswer(BoxedText("[]")), text
    both = read_answer('[{"bbox_2d": []}, {"bbox_2d": [100, 200, 400, 500]}]', "thousandths")
    assert len(both.answer.boxes) == 1 and not both.unread

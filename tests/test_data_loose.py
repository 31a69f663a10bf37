"""Boxes of other people's models: every spelling of a box is that box, and no number decides what it counts."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from clinkd.data.codecs import make_codec
from clinkd.data.loose import read_loosely
from clinkd.records import BadInput

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
@pytest.mark.parametrize("family", ["qwen-vl", "qwen2-vl", "qwen3-vl", "normalised"])
def test_every_spelling_and_every_order_of_corners_is_the_same_box(spelled: str, family: str) -> None:
    dice, boxes = random.Random(spelled), make_codec(family)
    for _ in range(20):
        (left, right), (top, bottom) = (sorted(dice.sample(range(1001), 2)) for _ in "xy")
        far = 1 if family == "normalised" else 1000
        for (x1, x2), (y1, y2) in itertools.product(((left, right), (right, left)), ((top, bottom), (bottom, top))):
            values = dict(zip(("x1", "y1", "x2", "y2"), (x1, y1, x2, y2), strict=True))
            if far == 1:
                values = {k: v / 1000 for k, v in values.items()}
            found = read_loosely(f"It is at {spelled.format(**values)} here.", boxes)
            assert found.unparsed_boxes == () and len(found.answer.boxes) == 1
            box = found.answer.boxes[0]
            expected = [v / 1000 for v in (left, top, right, bottom)]
            assert [box.x1, box.y1, box.x2, box.y2] == pytest.approx(expected)
            assert found.answer.words.startswith("It is at") and found.answer.words.endswith("here.")


@pytest.mark.parametrize(
    "text",
    ["<box>(1,2),(3,", "<box>(100,100),(300,30", "<box></box>", "[0.1, 0.1, 0.3, 0.3]", "[100, 100, 1200, 300]",
     "(100,100),(100,300)", "(-5,1),(30,40)", "[box]", "<box>(1,2)</box>"],
)  # fmt: skip
def test_what_is_no_box_of_the_declared_frame_is_left_unread(text: str) -> None:
    found = read_loosely(f"at {text}", make_codec("qwen-vl"))
    assert found.answer.boxes == () and len(found.unparsed_boxes) == 1


def test_words_stay_words() -> None:
    for text in ("I cannot see it (2 of 3).", "at (450, 320)", "a [left] lung, 3 of 4; (see figure 1)", ""):
        found = read_loosely(text, make_codec("qwen-vl"))
        assert (found.answer.text, found.answer.boxes, found.unparsed_boxes) == (text, (), ())
    said = read_loosely("the <ref>liver</ref><box>(1,2),(3,4)</box> of (1,2),(3,4)", make_codec("qwen-vl"), bare=False)
    assert said.answer.text == "the liver[box] of (1,2),(3,4)" and len(said.answer.boxes) == 1


def test_many_boxes_are_all_read() -> None:
    text = "".join(f"<box>({x},{y}),({x + 9},{y + 9})</box>" for x in range(0, 900, 15) for y in range(0, 900, 15))
    assert len(read_loosely(text, make_codec("qwen2-vl")).answer.boxes) == 3600


@pytest.mark.parametrize(
    "text", ["(" * 50_000, "(1" + " " * 50_000, "<box>" * 20_000, "(1 " * 20_000, "[" + "1," * 20_000]
)
def test_hostile_answers_take_no_time(text: str) -> None:
    start = time.process_time()
    read_loosely(text, make_codec("qwen-vl"))
    assert time.process_time() - start < 2


def test_special_tokens_are_read_by_their_codec_and_pixels_need_a_size() -> None:
    digits = make_codec("digits", 100)
    assert len(read_loosely("<|box_start|>03050912", digits).answer.boxes) == 1
    with pytest.raises(BadInput, match="its size must be known"):
        read_loosely("(1,2),(3,4)", make_codec("qwen2.5-vl"))

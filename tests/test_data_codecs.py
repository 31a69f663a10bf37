"""Box codecs: round trips by property, and every unreadable spelling reported."""

from __future__ import annotations

import random
import re

import pytest

from clinkd.data import Codec, codec
from clinkd.records import BadInput, Box, BoxedText

CODECS = [
    codec("qwen2-vl"), codec("qwen-vl"), codec("digits", 10), codec("digits", 37), codec("digits", 100),
    codec("locations", 2), codec("locations", 16), codec("locations", 100), codec("locations", 1000),
]  # fmt: skip
each_codec = pytest.mark.parametrize("c", CODECS, ids=lambda c: f"{c.name}-{c.bins}")


def random_box(dice: random.Random, least: float = 0.0) -> Box:
    """Corners anywhere, the borders included; sides of at least `least`."""
    while True:
        x1, x2 = sorted(dice.choice((0.0, 1.0, dice.random(), dice.random(), dice.random())) for _ in "ab")
        y1, y2 = sorted(dice.choice((0.0, 1.0, dice.random(), dice.random(), dice.random())) for _ in "ab")
        if x2 - x1 > least and y2 - y1 > least:
            return Box(x1, y1, x2, y2)


def slack(c: Codec, value: float) -> float:
    """Half a step; a whole one where the grid [0,1000) of the Qwen spellings ends before the border does."""
    return 1e-6 + c.step * (1.0 if c.name.startswith("qwen") and value > 1 - c.step else 0.5)


@each_codec
def test_corners_come_back_within_half_a_step(c: Codec) -> None:
    dice = random.Random(1)
    for _ in range(2000):
        box = random_box(dice, least=min(c.step, 0.9))
        back = c.decode(c.encode(BoxedText("[box]", (box,)))).answer.boxes[0]
        for before, after in zip(box.to_json(), back.to_json(), strict=True):
            assert abs(before - after) <= slack(c, before)


@each_codec
def test_text_and_number_of_boxes_survive(c: Codec) -> None:
    dice = random.Random(2)
    words = ("The kidney is at ", " and ", ".", "", "3 of 4 (left), ", "[x]", "x_03 ", "\n", "é ", "a < b > c", "5")
    for _ in range(800):
        count = dice.randint(0, 4)
        pieces = [dice.choice(words) for _ in range(count + 1)]
        text = BoxedText("[box]".join(pieces), tuple(random_box(dice) for _ in range(count)))
        found = c.decode(c.encode(text))
        assert found.unread == () and len(found.answer.boxes) == count
        same = found.answer.text == text.text
        assert same or (c.name == "digits" and found.answer.text == re.sub(r"(\[box\])(?=\d)", r"\1 ", text.text))


@each_codec
def test_spelling_is_stable_after_one_round(c: Codec) -> None:
    dice = random.Random(3)
    for _ in range(500):
        once = c.encode(BoxedText("at [box]", (random_box(dice),)))
        assert c.encode(c.decode(once).answer) == once


@each_codec
def test_thin_boxes_are_widened_to_one_step_near_their_place(c: Codec) -> None:
    dice = random.Random(4)
    for _ in range(500):
        x, y = dice.uniform(0, 1 - 1e-5), dice.uniform(0, 1 - 1e-5)
        thin = Box(x, y, x + 1e-6, y + 1e-6)
        back = c.decode(c.encode(BoxedText("[box]", (thin,)))).answer.boxes[0]
        assert back.width == pytest.approx(c.step) and back.height == pytest.approx(c.step)
        assert abs(back.centre[0] - x) <= 1.01 * c.step and abs(back.centre[1] - y) <= 1.01 * c.step


@each_codec
def test_random_text_never_breaks_decoding(c: Codec) -> None:
    dice = random.Random(5)
    bits = [*c.special_tokens[:4], *c.special_tokens[-2:], "<|box_start|>", "<|box_end|>", "<box>", "</box>", "<ref>"]
    bits += ["(1,2)", "(12,300),(400,999)", "[", "]", "box", "[box]", "12345678", "03", ",", "is", "(", "<", " "]
    bits += ["<x_01>", "<y_99>"]
    for _ in range(4000):
        raw = "".join(dice.choice(bits) for _ in range(dice.randint(1, 12)))
        found = c.decode(raw)
        assert found.answer.text.count("[box]") == len(found.answer.boxes)
        left = re.search(r"<\|box_(start|end)\|>|</?box>|<[xy]_\d+>|\(\d+,\d+\),\(\d+,\d+\)", found.answer.text)
        assert left is None, "a piece of a box was left in the words"
        for piece in found.unread:
            assert piece in raw or c.passed_over


@pytest.mark.parametrize(
    ("c", "raw", "boxes"),
    [
        (codec("qwen2-vl"), "at <|box_start|>(100,200),(300,400)<|box_end|>.", [Box(0.1, 0.2, 0.3, 0.4)]),
        (codec("qwen2-vl"), "<|box_start|>(0,0), (1000,1000)<|box_end|>", [Box(0, 0, 1, 1)]),
        (codec("qwen2-vl"), "<|object_ref_start|>lung<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>",
         [Box(0.001, 0.002, 0.003, 0.004)]),
        (codec("qwen-vl"), "<ref>lung</ref><box>(1,2),(3,4)</box>", [Box(0.001, 0.002, 0.003, 0.004)]),
        (codec("digits", 10), "<|box_start|>00010203.", [Box(0.05, 0.15, 0.25, 0.35)]),
        (codec("locations", 10), "<x_00><y_01><x_02><y_03><x_04><y_05><x_06><y_07>",
         [Box(0.05, 0.15, 0.25, 0.35), Box(0.45, 0.55, 0.65, 0.75)]),
    ],
)  # fmt: skip
def test_known_spellings(c: Codec, raw: str, boxes: list[Box]) -> None:
    found = c.decode(raw)
    assert [b.to_json() for b in found.answer.boxes] == [b.to_json() for b in boxes] and found.unread == ()
    assert not found.answer.words.startswith("<")


@pytest.mark.parametrize(
    ("c", "spelled"),
    [
        (codec("qwen2-vl"), "<|box_start|>(300,200),(100,400)<|box_end|>"),  # swapped
        (codec("qwen2-vl"), "<|box_start|>(100,200),(100,400)<|box_end|>"),  # no width
        (codec("qwen2-vl"), "<|box_start|>(100,200),(300,1400)<|box_end|>"),  # off the grid
        (codec("qwen2-vl"), "<|box_start|>(100,200),(300<|box_end|>"),
        (codec("qwen2-vl"), "<|box_start|>(0.1,0.2),(0.3,0.4)<|box_end|>"),
        (codec("qwen2-vl"), "(100,200),(300,400)"),
        (codec("qwen2-vl"), "[100, 200, 300, 400]"),
        (codec("qwen2-vl"), "<box>(100,200),(300,400)</box>"),  # of another family
        (codec("qwen2-vl"), "[box]"),
        (codec("qwen-vl"), "<|box_start|>(100,200),(300,400)<|box_end|>"),
        (codec("digits", 16), "<|box_start|>03040316"),  # 16 is off a grid of 0..15
        (codec("digits", 16), "<|box_start|>030405"),
        (codec("digits", 16), "<|box_start|>0304050607"),
        (codec("locations", 16), "<x_03><y_04><x_05>"),
        (codec("locations", 16), "<y_03><x_04><y_05><x_06>"),
        (codec("locations", 16), "<x_03><y_04><x_03><y_06>"),
        (codec("locations", 16), "<x_03><y_04><x_05><y_16>"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_reported_and_gets_no_mark(c: Codec, spelled: str) -> None:
    found = c.decode(f"The liver is at {spelled} there.")
    assert "".join(found.unread).replace(" ", "") == spelled.replace(" ", "")
    assert found.answer.boxes == () and found.answer.words == "The liver is at there."


@each_codec
def test_a_box_written_out_in_the_words_is_refused(c: Codec) -> None:
    spelled = c.encode(BoxedText("[box]", (Box(0.1, 0.1, 0.9, 0.9),)))
    with pytest.raises(BadInput, match="box written out"):
        c.encode(BoxedText(f"as {spelled} shows"))
    with pytest.raises(BadInput, match="marks"):
        BoxedText("a literal [box] mark")


def test_tokens_are_distinct_and_used() -> None:
    c = codec("locations", 16)
    assert len(set(c.special_tokens)) == 32
    spelled = c.encode(BoxedText("[box]", (Box(0, 0, 1, 1),)))
    assert re.findall(r"<[^>]+>", spelled) == ["<x_00>", "<y_00>", "<x_15>", "<y_15>"]
    assert set(re.findall(r"<[^>]+>", spelled)) <= set(c.special_tokens)
    assert codec("digits", 100).encode(BoxedText("[box]", (Box(0, 0.5, 1, 1),))) == "<|box_start|>00509999"
    assert (
        codec("qwen2-vl").encode(BoxedText("[box]", (Box(0, 0.5, 1, 1),)))
        == "<|box_start|>(0,500),(999,999)<|box_end|>"
    )


@pytest.mark.parametrize(("name", "bins"), [("digits", 9), ("digits", 101), ("locations", 1), ("pixels", 16)])
def test_impossible_codecs_are_named(name: str, bins: int) -> None:
    with pytest.raises(BadInput, match=str(bins) if name != "pixels" else "model.boxes=pixels"):
        codec(name, bins)

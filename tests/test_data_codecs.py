"""Box codecs: round trips by property, and every unreadable spelling reported."""

from __future__ import annotations

import random
import re
import time

import pytest

from clinkd.data.codecs import Codec, make_codec
from clinkd.data.grids import Size, smart_resize, square_resize
from clinkd.records import BadInput, Box, BoxedText

CODECS = [
    make_codec("qwen2-vl"), make_codec("qwen-vl"), make_codec("digits", 10), make_codec("digits", 37),
    make_codec("digits", 100),
    make_codec("locations", 2), make_codec("locations", 16), make_codec("locations", 100),
    make_codec("locations", 1000),
    make_codec("qwen2.5-vl"), make_codec("qwen3-vl"), make_codec("gemma3"), make_codec("normalised"),
]  # fmt: skip
SIZES = (Size(504, 364), Size(28, 28), Size(1092, 28), Size(1000, 1000), Size(3, 12345))
each_codec = pytest.mark.parametrize("c", CODECS, ids=lambda c: f"{c.name}-{c.bins}")
RESIZED = Size(504, 364)


def random_box(dice: random.Random, least: tuple[float, float] = (0.0, 0.0)) -> Box:
    """Corners anywhere, the borders included; sides of at least `least`."""
    while True:
        x1, x2 = sorted(dice.choice((0.0, 1.0, dice.random(), dice.random(), dice.random())) for _ in "ab")
        y1, y2 = sorted(dice.choice((0.0, 1.0, dice.random(), dice.random(), dice.random())) for _ in "ab")
        if x2 - x1 > least[0] and y2 - y1 > least[1]:
            return Box(x1, y1, x2, y2)


def slack(c: Codec, value: float, step: float) -> float:
    """Half a step; a whole one where the grid [0,1000) of two Qwen spellings ends before the border does."""
    return 1e-6 + step * (1.0 if c.name in ("qwen2-vl", "qwen-vl") and value > 1 - 2 * step else 0.5)


@each_codec
def test_corners_come_back_within_half_a_step(c: Codec) -> None:
    dice = random.Random(1)
    for _ in range(2000):
        size = dice.choice(SIZES)
        steps = c.steps(size)
        box = random_box(dice, least=(min(steps[0], 0.9), min(steps[1], 0.9)))
        back = c.decode(c.encode(BoxedText("[box]", (box,)), size), size).answer.boxes[0]
        for axis, (before, after) in enumerate(zip(box.to_json(), back.to_json(), strict=True)):
            assert abs(before - after) <= slack(c, before, steps[axis % 2])


def test_pixels_come_back_within_half_a_pixel_of_any_resized_image() -> None:
    c, dice = make_codec("qwen2.5-vl"), random.Random(6)
    for _ in range(500):
        width, height = (int(2 ** dice.uniform(5, 12)) for _ in "wh")
        size = smart_resize(width, height, dice.choice((28, 32)))
        assert c.steps(size) == (1 / size.width, 1 / size.height)
        box = random_box(dice, least=c.steps(size))
        spelled = c.encode(BoxedText("[box]", (box,)), size)
        pixels = [int(v) for v in re.findall(r"\d+", spelled)]
        sides = (size.width, size.height) * 2
        assert pixels == [int(v * side + 0.5) for v, side in zip((box.x1, box.y1, box.x2, box.y2), sides, strict=True)]
        back = c.decode(spelled, size).answer.boxes[0]
        for before, after, side in zip(box.to_json(), back.to_json(), sides, strict=True):
            assert abs(before - after) * side <= 0.5 + 1e-2


def test_a_square_resample_stretches_an_axis_and_keeps_the_fractions() -> None:
    size = smart_resize(500, 500)  # the square of the area of 1000 x 250
    assert size == Size(504, 504)  # 18 * 28
    c, box = make_codec("qwen2.5-vl"), Box(0.5, 0.25, 1, 1)
    assert c.encode(BoxedText("[box]", (box,)), size) == "<|box_start|>(252,126),(504,504)<|box_end|>"
    wide = smart_resize(1000, 250)
    assert c.encode(BoxedText("[box]", (box,)), wide) == "<|box_start|>(504,63),(1008,252)<|box_end|>"


def test_smart_resize_is_that_of_the_family() -> None:
    theirs = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize
    dice, refused = random.Random(7), 0
    for _ in range(5000):
        width, height = (int(2 ** dice.uniform(0, 13)) for _ in "wh")
        factor = dice.choice((28, 32))
        least, most = dice.choice((4, 256)) * factor**2, dice.choice((300, 1280, 16384)) * factor**2
        try:
            tall, wide = theirs(height, width, factor, least, most)
        except ValueError:
            refused += 1
            with pytest.raises(BadInput, match="200 to 1"):
                smart_resize(width, height, factor, least, most)
        else:
            assert smart_resize(width, height, factor, least, most) == (wide, tall)
    assert 0 < refused < 2000


def test_a_square_is_the_largest_or_smallest_that_the_bounds_allow_for_every_size_of_image() -> None:
    """By floats a side of 96 was 95.99..., so that one image in a hundred had another number of tokens."""
    dice = random.Random(8)
    for _ in range(5000):
        width, height = (dice.randint(1, 3000) for _ in "wh")
        tokens = dice.randint(1, 40)
        factor, area = dice.choice((16, 28, 32)), tokens**2
        exact = (area * factor**2,) * 2  # as a tiny model has them: one area for all
        assert square_resize(width, height, factor, *exact) == Size(tokens * factor, tokens * factor)
        least, most = dice.choice((4, 5)) * factor**2, dice.choice((90, 100, 1280)) * factor**2
        size = square_resize(width, height, factor, least, most)
        assert size.width == size.height and size.width % factor == 0
        assert least <= size.width**2 <= most
        side = max(1, round((width * height) ** 0.5))
        by_floats = smart_resize(side, side, factor, least, most)  # what the family makes of that square
        assert size == by_floats or size.width**2 in (least, most)


@each_codec
def test_text_and_number_of_boxes_survive(c: Codec) -> None:
    dice = random.Random(2)
    words = (
        "The kidney is at ",
        " and ",
        ".",
        "",
        "3 of 4 (left), ",
        "[x]",
        "x_03 ",
        "\n",
        "é ",
        "a < b > c",
        "5",
        " [",
        "]",
        '"{',
        "}",
        "```json\n",
        ", ",
    )
    for _ in range(800):
        count = dice.randint(0, 4)
        pieces = [dice.choice(words) for _ in range(count + 1)]
        text = BoxedText("[box]".join(pieces), tuple(random_box(dice) for _ in range(count)))
        found = c.decode(c.encode(text, RESIZED), RESIZED)
        assert found.unparsed_boxes == () and len(found.answer.boxes) == count
        places = [b.centre for b in text.boxes], [b.centre for b in found.answer.boxes]
        for before, after in zip(*places, strict=True):  # in the same order
            assert all(abs(a - b) <= 1.01 * s for a, b, s in zip(before, after, c.steps(RESIZED), strict=True))
        same = found.answer.text == text.text
        assert same or (c.name == "digits" and found.answer.text == re.sub(r"(\[box\])(?=\d)", r"\1 ", text.text))


@each_codec
def test_spelling_is_stable_after_one_round(c: Codec) -> None:
    dice = random.Random(3)
    for _ in range(500):
        size = dice.choice(SIZES)
        once = c.encode(BoxedText("at [box]", (random_box(dice),)), size)
        assert c.encode(c.decode(once, size).answer, size) == once


@each_codec
def test_thin_boxes_are_widened_to_one_step_near_their_place(c: Codec) -> None:
    dice = random.Random(4)
    for _ in range(500):
        x, y = dice.uniform(0, 1 - 1e-5), dice.uniform(0, 1 - 1e-5)
        thin = Box(x, y, x + 1e-6, y + 1e-6)
        size = dice.choice(SIZES)
        wide, tall = c.steps(size)
        back = c.decode(c.encode(BoxedText("[box]", (thin,)), size), size).answer.boxes[0]
        assert back.width == pytest.approx(wide) and back.height == pytest.approx(tall)
        assert abs(back.centre[0] - x) <= 1.01 * wide and abs(back.centre[1] - y) <= 1.01 * tall


@each_codec
def test_borders_stay_borders(c: Codec) -> None:
    back = c.decode(c.encode(BoxedText("[box]", (Box(0, 0, 1, 1),)), RESIZED), RESIZED).answer.boxes[0]
    if c.writes_border:
        assert back == Box(0, 0, 1, 1)
    else:
        wide, tall = c.steps(RESIZED)
        assert back.x1 <= wide / 2 and back.y1 <= tall / 2 and back.x2 >= 1 - wide and back.y2 >= 1 - tall


@each_codec
def test_random_text_never_breaks_decoding(c: Codec) -> None:
    dice = random.Random(5)
    bits = [*c.special_tokens[:4], *c.special_tokens[-2:], "<|box_start|>", "<|box_end|>", "<box>", "</box>", "<ref>"]
    bits += ["(1,2)", "(12,300),(400,999)", "[", "]", "box", "[box]", "12345678", "03", ",", "is", "(", "<", " "]
    bits += ["<x_01>", "<y_99>", '{"bbox_2d": [1, 2, 3, 4]}', '{"bbox_2d": [1, 2, 3, 4], "label": "', "lung", '"}']
    bits += ["```json", "```", '"bbox_2d"', ": [", "[0.1,0.2,0.3,0.4]", "0.5,", "\n", "}", "{", '"label": "box]"']
    for _ in range(6000):
        raw = "".join(dice.choice(bits) for _ in range(dice.randint(1, 12)))
        found = c.decode(raw, RESIZED)
        assert found.answer.text.count("[box]") == len(found.answer.boxes)
        left = re.search(r"<\|box_(start|end)\|>|</?box>|<[xy]_\d+>|\(\d+,\d+\),\(\d+,\d+\)", found.answer.text)
        assert left is None, "a piece of a box was left in the words"
        assert "bbox_2d" not in found.answer.text or c.name not in ("qwen2.5-vl", "qwen3-vl")
        for piece in found.unparsed_boxes:
            assert piece in raw or c.ignored_marks
            assert re.fullmatch(r"[^\n]{10,200}", c.explain_unread(piece, RESIZED))


def test_long_and_broken_text_is_read_in_little_time() -> None:
    for c in CODECS:
        for bit in ("[", "(", '{"bbox_2d": [1,', "```json [", '{"', "<|box_start|>", "[0.1,", "<x_01>", "bbox_2d"):
            started = time.perf_counter()
            c.decode(bit * 2000, RESIZED)
            assert time.perf_counter() - started < 2, (c.name, bit)


def test_brackets_without_end_are_reported() -> None:
    c = make_codec("qwen3-vl")
    (piece,) = c.decode('{"bbox_2d": ' + "[" * 100_000 + "]}").unparsed_boxes
    assert "not JSON" in c.explain_unread(piece)


HUGE = (
    "1" * 330,
    "1" * 400,
    "1" * 5000,
    "-" + "1" * 400,
    "1" * 400 + ".5",
    "1e308",
    "1e400",
    "NaN",
    "Infinity",
    "-Infinity",
)


@each_codec
@pytest.mark.parametrize("number", HUGE, ids=lambda n: n if len(n) < 10 else f"{n[:2]}-{len(n)}")
def test_a_number_beyond_all_images_is_no_box(c: Codec, number: str) -> None:
    dice = random.Random(number)
    spelled = c.encode(BoxedText("[box]", (Box(0.1, 0.2, 0.3, 0.4),)), RESIZED)
    forms = ['{"bbox_2d": [%s]}', '{"box_2d": [%s], "label": "a"}', '"bbox_2d": [%s]', "[%s]", "<box>(%s)</box>"]
    listed = [dice.sample([number, "1", "2", "3"], 4), [number] * 4, ["0.1", "0.2", number, "0.4"]]
    raws = [form % ", ".join(numbers) for form in forms for numbers in listed]
    raws += [spelled[: m.start()] + number + spelled[m.end() :] for m in re.finditer(r"\d+(?:\.\d+)?", spelled)]
    for raw in raws:
        found = c.decode(f"at {raw} there", RESIZED)
        assert found.answer.boxes == (), raw[:40]
        for piece in found.unparsed_boxes:
            assert "\n" not in c.explain_unread(piece, RESIZED)


@pytest.mark.parametrize(
    ("c", "raw", "boxes"),
    [
        (make_codec("qwen2-vl"), "at <|box_start|>(100,200),(300,400)<|box_end|>.", [Box(0.1, 0.2, 0.3, 0.4)]),
        (make_codec("qwen2-vl"), "<|box_start|>(0,0), (1000,1000)<|box_end|>", [Box(0, 0, 1, 1)]),
        (make_codec("qwen2-vl"), "<|object_ref_start|>lung<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>",
         [Box(0.001, 0.002, 0.003, 0.004)]),
        (make_codec("qwen-vl"), "<ref>lung</ref><box>(1,2),(3,4)</box>", [Box(0.001, 0.002, 0.003, 0.004)]),
        (make_codec("qwen3-vl"), 'at {"bbox_2d": [100, 200, 300, 1000]}.', [Box(0.1, 0.2, 0.3, 1)]),
        (make_codec("qwen3-vl"), "at <|box_start|>(100,200),(300,1000)<|box_end|>.", [Box(0.1, 0.2, 0.3, 1)]),
        (make_codec("gemma3"), 'at {"box_2d": [200, 100, 1000, 300]}.', [Box(0.1, 0.2, 0.3, 1)]),
        (make_codec("gemma3"), '```json\n[{"box_2d": [200.5, 100, 400, 300], "label": "lung"}]\n```',
         [Box(0.1, 0.2005, 0.3, 0.4)]),
        (make_codec("normalised"), "at [0, .25, 5e-1, 1.0].", [Box(0, 0.25, 0.5, 1)]),
        (make_codec("normalised"), "<ref>a</ref><box>(0.1,0.2),(0.3,0.4)</box>", [Box(0.1, 0.2, 0.3, 0.4)]),
        (make_codec("normalised"), "<|box_start|>(0.1, 0.2), (0.3, 0.4)<|box_end|>", [Box(0.1, 0.2, 0.3, 0.4)]),
        (make_codec("normalised"), "<box>[0.1, 0.2, 0.3, 0.4]</box>", [Box(0.1, 0.2, 0.3, 0.4)]),
        (make_codec("digits", 10), "<|box_start|>00010203.", [Box(0.05, 0.15, 0.25, 0.35)]),
        (make_codec("locations", 10), "<x_00><y_01><x_02><y_03><x_04><y_05><x_06><y_07>",
         [Box(0.05, 0.15, 0.25, 0.35), Box(0.45, 0.55, 0.65, 0.75)]),
    ],
)  # fmt: skip
def test_known_spellings(c: Codec, raw: str, boxes: list[Box]) -> None:
    found = c.decode(raw)
    assert [b.to_json() for b in found.answer.boxes] == [b.to_json() for b in boxes] and found.unparsed_boxes == ()
    assert not found.answer.words.startswith("<")


LUNG, LIVER = Box(0.1, 0.2, 0.3, 0.4), Box(0.5, 0.5, 1, 1)


@pytest.mark.parametrize(
    ("raw", "text", "boxes"),
    [
        ('```json\n[\n\t{"bbox_2d": [100, 200, 300, 400], "label": "left lung"}\n]\n```', "left lung[box]", [LUNG]),
        ('[{"bbox_2d": [100,200,300,400], "label": "lung"}, {"label": "liver", "bbox_2d": [500,500,1000,1000]}]',
         "lung[box], liver[box]", [LUNG, LIVER]),
        ('Sure: ```json\n{"bbox_2d": [100, 200, 300, 400], "label": "l"}\n``` Done.', "Sure: l[box] Done.", [LUNG]),
        ('{"bbox_2d": [100, 200, 300, 400], "label": "a {b} \\"c\\"", "sub": ""}', 'a {b} "c"[box]', [LUNG]),
        ('{"bbox_2d": [100, 200, 300, 400], "label": "a", "score": 0.5}', "a, 0.5[box]", [LUNG]),
        ('[{"bbox_2d": [100, 200, 300, 400]}]', "[[box]]", [LUNG]),
        ('It is "bbox_2d": [100, 200, 300, 400].', "It is [box].", [LUNG]),
        ('[{"bbox_2d": [100,200,300,400], "label": "a"}, {"bbox_2d": [500,500,1000,1000], "lab',
         'a[box], {[box], "lab', [LUNG, LIVER]),  # cut off
        ('{"objects": [{"bbox_2d": [100,200,300,400], "label": "a"}]}', '{"objects": a[box]}', [LUNG]),
        ("[] and ```json\n[]\n```", "[] and ```json\n[]\n```", []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("c", [make_codec("qwen3-vl"), make_codec("qwen2.5-vl")], ids=lambda c: c.name)
def test_json_answers_are_read(c: Codec, raw: str, text: str, boxes: list[Box]) -> None:
    found = c.decode(raw, Size(1000, 1000))
    assert found.answer == BoxedText(text, tuple(boxes)) and found.unparsed_boxes == ()
    if c.needs_size and boxes:
        half = c.decode(raw, Size(2000, 1000)).answer.boxes[0]
        assert (half.x1, half.y1) == (LUNG.x1 / 2, LUNG.y1)


@pytest.mark.parametrize(
    ("raw", "text", "unread", "why"),
    [
        ('[{"bbox_2d": [1,2,3,4], "label": "a"}, {"bbox_2d": [5,2,3,4], "label": "b"}]', "a[box]",
         ['{"bbox_2d": [5,2,3,4], "label": "b"}'], r"x2 <= x1 \(3 <= 5\)"),
        ('at {"bbox_2d": [0.1, 0.2, 0.3, 0.4]}.', "at  .", ['{"bbox_2d": [0.1, 0.2, 0.3, 0.4]}'], "fractions 0..1"),
        ('at {"bbox_2d": [1, 2, 3]}.', "at  .", ['{"bbox_2d": [1, 2, 3]}'], "four numbers are wanted, 3 found"),
        ('at {"bbox_2d": [-1, 2, 3, 4]}.', "at  .", ['{"bbox_2d": [-1, 2, 3, 4]}'], "negative"),
        ('at {"bbox_2d": [1, 2, 3, 1001]}.', "at  .", ['{"bbox_2d": [1, 2, 3, 1001]}'], "beyond the (grid|resized)"),
        ("at {'bbox_2d': [1, 2, 3, 4]}.", "at  .", ["{'bbox_2d': [1, 2, 3, 4]}"], "not JSON"),
        ('{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [5, 6, 7, 8]}', " ",
         ['{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [5, 6, 7, 8]}'], "stands twice"),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "[box]"}', " ", ['{"bbox_2d": [1, 2, 3, 4], "label": "[box]"}'],
         "brackets or a box"),
        ('{"bbox_2d": ["1", "2", "3", "4"]}', " ", ['{"bbox_2d": ["1", "2", "3", "4"]}'], "four numbers are wanted"),
        ('a {"bbox_2d": [1, 2', "a { ", ['"bbox_2d": [1, 2'], "cut off"),
        ('a {"bbox_2d', 'a { ', ['"bbox_2d'], "cut off"),
        ("at [1, 2, 3, 4].", "at  .", ["[1, 2, 3, 4]"], "without its marks"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("c", [make_codec("qwen3-vl"), make_codec("qwen2.5-vl")], ids=lambda c: c.name)
def test_json_that_is_no_box_is_reported(c: Codec, raw: str, text: str, unread: list[str], why: str) -> None:
    found = c.decode(raw, Size(1000, 1000))
    assert (found.answer.text, list(found.unparsed_boxes)) == (text, unread)
    assert re.search(why, c.explain_unread(unread[0], Size(1000, 1000)))


@pytest.mark.parametrize(
    ("name", "spelled", "why"),
    [
        ("qwen-vl", "<box>(0.1,0.2),(0.3,0.4)</box>",
         r"fractions 0..1 where thousandths \[0,1000\) are declared; give --boxes normalised"),
        ("qwen-vl", "<box>(100.5,200),(300,400)</box>", "decimals where thousandths"),
        ("qwen-vl", "<box>(100,200),(300,1001)</box>", "beyond the grid of 1000"),
        ("qwen-vl", "<box>(100,200),(300,12345)</box>", "beyond the grid of 1000"),
        ("qwen-vl", "<box>(300,200),(100,400)</box>", "x2 <= x1"),
        ("qwen-vl", "<box>(100,400),(300,400)</box>", "y2 <= y1"),
        ("qwen-vl", "<box>(-1,200),(300,400)</box>", "negative"),
        ("qwen-vl", "<box>(100,200),(300,400)", "no closing mark; write </box>"),
        ("qwen-vl", "</box>", "no opening mark; write <box>"),
        ("qwen-vl", "<box>(100,200),(300)</box>", "four numbers are wanted, 3 found"),
        ("qwen-vl", "(100,200),(300,400)", "without its marks; write <box>"),
        ("qwen-vl", "[box]", "kept for the places of boxes"),
        ("qwen-vl", "<|box_start|>(1,2),(3,4)<|box_end|>", "a box of qwen2-vl where qwen-vl is declared"),
        ("qwen2-vl", "<box>(1,2),(3,4)</box>", "give --boxes qwen-vl"),
        ("qwen2.5-vl", "<|box_start|>(1,2),(505,4)<|box_end|>", "beyond the resized image of 504x364: pixels of the"),
        ("qwen2.5-vl", "<|box_start|>(1,2),(3,365)<|box_end|>", "beyond the resized image of 504x364"),
        ("qwen2.5-vl", "<|box_start|>(0.1,0.2),(0.3,0.4)<|box_end|>", "fractions 0..1 where pixels"),
        ("qwen2.5-vl", "<box>(1,2),(3,4)</box>", "give --boxes qwen-vl"),
        ("gemma3", '{"box_2d": [100, 300, 200, 300]}', r"x2 <= x1 \(300 <= 300\)"),
        ("gemma3", '{"box_2d": [0.1, 0.2, 0.3, 0.4], "label": "a"}', "fractions 0..1 where thousandths 0..1000"),
        ("gemma3", '{"box_2d": [100.5, 0, 200, 1001.5], "label": "a"}', "beyond the grid of 1000"),
        ("normalised", "<box>(100,200),(300,400)</box>", "thousandths are --boxes qwen-vl"),
        ("normalised", "[100, 200, 300, 400]", "beyond 1 where fractions 0..1 are declared"),
        ("normalised", "[0.5, 0.2, 0.3, 0.4]", "x2 <= x1"),
        ("normalised", "[-0.5, 0.2, 0.3, 0.4]", "negative"),
        ("normalised", "[0.1, 0.2, 0.3]", "four numbers are wanted, 3 found"),
        ("normalised", "<box>(0.1, 0.2)", "no closing mark"),
        ("digits", "<|box_start|>030405", "write it like <|box_start|>25255050"),
        ("digits", "<|box_start|>30030510", "x2 <= x1"),
        ("locations", "<x_03><y_04><x_05>", "write it like <x_250>"),
        ("locations", "<x_003><y_004><x_002><y_009>", "x2 <= x1"),
    ],
)  # fmt: skip
def test_why_a_box_is_not_read(name: str, spelled: str, why: str) -> None:
    c = make_codec(name, 100 if name == "digits" else 1000)
    found = c.decode(f"The liver is at {spelled} there.", RESIZED)
    assert "".join(found.unparsed_boxes).replace(" ", "") == spelled.replace(" ", "")
    assert found.answer.boxes == () and re.search(why, c.explain_unread(found.unparsed_boxes[0], RESIZED))


def test_a_cut_off_list_of_fractions_is_reported() -> None:
    found = make_codec("normalised").decode("at [0.1, 0.2")
    assert found.unparsed_boxes == ("[0.1, 0.2",) and "cut off" in make_codec("normalised").explain_unread("[0.1, 0.2")
    assert make_codec("normalised").decode("as shown [1, 2], p [0.05]").unparsed_boxes == ()


def test_pixels_need_the_size_of_the_image() -> None:
    c = make_codec("qwen2.5-vl")
    assert c.needs_size and not any(o.needs_size for o in CODECS if o.name != c.name)
    for ask in (c.decode, c.explain_unread):
        with pytest.raises(BadInput, match="qwen2.5-vl are pixels of the resized image: its size must be known"):
            ask("<|box_start|>(1,2),(3,4)<|box_end|>")
    with pytest.raises(BadInput, match="its size must be known"):
        c.encode(BoxedText("[box]", (LUNG,)))


@each_codec
def test_text_without_boxes_is_returned_as_it_is(c: Codec) -> None:
    for raw in ("The lung.", "", " two\n lines ", "50 % (left)", "x > 5, {a}, ```", "[1] and [2]"):
        assert c.decode(raw, RESIZED).answer == BoxedText(raw)


@pytest.mark.parametrize(
    ("c", "spelled"),
    [
        (make_codec("qwen2-vl"), "<|box_start|>(300,200),(100,400)<|box_end|>"),  # swapped
        (make_codec("qwen2-vl"), "<|box_start|>(100,200),(100,400)<|box_end|>"),  # no width
        (make_codec("qwen2-vl"), "<|box_start|>(100,200),(300,1400)<|box_end|>"),  # off the grid
        (make_codec("qwen2-vl"), "<|box_start|>(100,200),(300<|box_end|>"),
        (make_codec("qwen2-vl"), "<|box_start|>(0.1,0.2),(0.3,0.4)<|box_end|>"),
        (make_codec("qwen2-vl"), "(100,200),(300,400)"),
        (make_codec("qwen2-vl"), "[100, 200, 300, 400]"),
        (make_codec("qwen2-vl"), "<box>(100,200),(300,400)</box>"),  # of another family
        (make_codec("qwen2-vl"), "[box]"),
        (make_codec("qwen-vl"), "<|box_start|>(100,200),(300,400)<|box_end|>"),
        (make_codec("digits", 16), "<|box_start|>03040316"),  # 16 is off a grid of 0..15
        (make_codec("digits", 16), "<|box_start|>030405"),
        (make_codec("digits", 16), "<|box_start|>0304050607"),
        (make_codec("locations", 16), "<x_03><y_04><x_05>"),
        (make_codec("locations", 16), "<y_03><x_04><y_05><x_06>"),
        (make_codec("locations", 16), "<x_03><y_04><x_03><y_06>"),
        (make_codec("locations", 16), "<x_03><y_04><x_05><y_16>"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_reported_and_gets_no_mark(c: Codec, spelled: str) -> None:
    found = c.decode(f"The liver is at {spelled} there.")
    assert "".join(found.unparsed_boxes).replace(" ", "") == spelled.replace(" ", "")
    assert found.answer.boxes == () and found.answer.words == "The liver is at there."


@each_codec
def test_a_box_written_out_in_the_words_is_refused(c: Codec) -> None:
    spelled = c.encode(BoxedText("[box]", (Box(0.1, 0.1, 0.9, 0.9),)), RESIZED)
    with pytest.raises(BadInput, match="box written out"):
        c.encode(BoxedText(f"as {spelled} shows"), RESIZED)
    if c.name.startswith(("qwen3", "qwen2.5")):
        with pytest.raises(BadInput, match="box written out"):
            c.encode(BoxedText('a "bbox_2d": '), RESIZED)
    with pytest.raises(BadInput, match="marks"):
        BoxedText("a literal [box] mark")


def test_tokens_are_distinct_and_used() -> None:
    c = make_codec("locations", 16)
    assert len(set(c.special_tokens)) == 32
    spelled = c.encode(BoxedText("[box]", (Box(0, 0, 1, 1),)))
    assert re.findall(r"<[^>]+>", spelled) == ["<x_00>", "<y_00>", "<x_15>", "<y_15>"]
    assert set(re.findall(r"<[^>]+>", spelled)) <= set(c.special_tokens)
    assert make_codec("digits", 100).encode(BoxedText("[box]", (Box(0, 0.5, 1, 1),))) == "<|box_start|>00509999"
    assert (
        make_codec("qwen3-vl").encode(BoxedText("[box]", (Box(0, 0.5, 1, 1),))) == '{"bbox_2d": [0, 500, 1000, 1000]}'
    )
    assert make_codec("normalised").encode(BoxedText("[box]", (Box(0, 0.5, 1, 1),))) == "[0.000,0.500,1.000,1.000]"
    assert (
        make_codec("qwen2-vl").encode(BoxedText("[box]", (Box(0, 0.5, 1, 1),)))
        == "<|box_start|>(0,500),(999,999)<|box_end|>"
    )


@pytest.mark.parametrize(("name", "bins"), [("digits", 9), ("digits", 101), ("locations", 1), ("pixels", 16)])
def test_impossible_codecs_are_named(name: str, bins: int) -> None:
    with pytest.raises(BadInput, match=str(bins) if name != "pixels" else "boxes=pixels"):
        make_codec(name, bins)

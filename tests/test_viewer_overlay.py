"""Boxes on pictures: in the right place, sharp, inside the picture, and never on the original."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image, ImageColor

from clinkd.records import Box, Table
from clinkd.reporting.viewer import page
from clinkd.reporting.viewer.curves import render_line_chart
from clinkd.reporting.viewer.figure import Bar, render_bar_chart
from clinkd.reporting.viewer.overlay import ANSWER, ASKED, DASHES, LATER, TRUTH, draw_boxes
from clinkd.reporting.viewer.page import STYLE, section, table
from clinkd.reporting.viewer.shot import thumbnail


def coloured(image: Image.Image, colour: str) -> np.ndarray:
    """[H, W] where the picture has exactly this colour."""
    return (np.array(image) == np.array(ImageColor.getrgb(colour))).all(-1)


@pytest.mark.parametrize(("kind", "colour"), [("truth", TRUTH), ("answer", ANSWER), ("asked", ASKED), ("later", LATER)])
def test_the_style_sheet_draws_boxes_as_the_pictures_do(kind: str, colour: str) -> None:
    line = dict(part.strip().split(": ") for part in _rule(f".over .line.{kind}").split(";") if part.strip())
    dashes = {"stroke-dasharray": " ".join(map(str, DASHES[colour]))} if colour in DASHES else {}
    assert line == {"stroke": colour, **dashes}
    chip = _rule(f".chip.{kind}")
    assert f"border-color: {colour};" in chip and f"border-style: {'dashed' if dashes else 'solid'};" in chip


def _rule(selector: str) -> str:
    return re.findall(rf"{re.escape(selector)} {{(.*?)}}", STYLE)[0]


def test_an_outline_runs_along_its_box() -> None:
    original = Image.new("RGB", (200, 100), (120, 120, 120))
    drawn = draw_boxes(original, [Box(0.25, 0.2, 0.75, 0.8)], side_pixels=400)
    assert drawn.size == (400, 200)
    rows, columns = np.nonzero(coloured(drawn, TRUTH))
    assert (columns.min(), columns.max()) == (100, 299)
    assert (rows.min(), rows.max()) == (40, 159)
    assert original.getcolors() == [(20000, (120, 120, 120))]


def test_a_small_image_is_enlarged_without_smoothing() -> None:
    board = Image.fromarray((np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    drawn = draw_boxes(board, [], side_pixels=64)
    assert drawn.size == (64, 64) and {c for _, c in drawn.getcolors()} == {(0, 0, 0), (255, 255, 255)}


def test_a_large_image_is_shrunk_and_keeps_its_shape() -> None:
    assert draw_boxes(Image.new("L", (3000, 1500)), [], side_pixels=448).size == (448, 224)


def test_answers_are_dashed() -> None:
    image = Image.new("RGB", (400, 400), (120, 120, 120))
    whole = coloured(draw_boxes(image, [Box(0.1, 0.1, 0.9, 0.9)], (), (TRUTH,), side_pixels=400), TRUTH).sum()
    dashed = coloured(draw_boxes(image, [Box(0.1, 0.1, 0.9, 0.9)], (), (ANSWER,), side_pixels=400), ANSWER).sum()
    assert 0.4 < dashed / whole < 0.8


def test_three_kinds_of_boxes_are_told_apart_by_their_lines() -> None:
    image = Image.new("RGB", (400, 400), (120, 120, 120))
    shares = {}
    for colour in (TRUTH, ANSWER, LATER):
        drawn = draw_boxes(image, [Box(0.1, 0.1, 0.9, 0.9)], (), (colour,), side_pixels=400)
        shares[colour] = coloured(drawn, colour).sum() / (4 * 2 * 320)
    assert shares[TRUTH] > 0.95 and 0.55 < shares[ANSWER] < 0.65 and 0.35 < shares[LATER] < 0.5
    marked = page.key([("truth", TRUTH), ("before <b>", ANSWER), ("after", LATER)])
    assert re.findall(r'stroke-dasharray="([^"]+)"', marked) == ["9 6", "3 4"] and "<b>" not in marked


@pytest.mark.parametrize("box", [Box(0, 0, 1, 1), Box(0, 0, 0.001, 0.001), Box(0.999, 0.999, 1, 1)])
def test_boxes_at_the_border_and_tiny_ones_are_seen(box: Box) -> None:
    drawn = draw_boxes(Image.new("RGB", (64, 64)), [box], ["a label longer than the picture is wide, by far"], [TRUTH])
    assert coloured(drawn, TRUTH).any()


def test_labels_of_two_boxes_in_one_place_do_not_cover_each_other() -> None:
    image = Image.new("RGB", (400, 400), (120, 120, 120))
    boxes = [Box(0.4, 0.4, 0.6, 0.6)] * 2
    drawn = draw_boxes(image, boxes, ["truth", "answer"], [TRUTH, ANSWER], side_pixels=400)
    alone = draw_boxes(image, boxes[:1], ["truth"], [TRUTH], side_pixels=400)
    plate = coloured(alone, TRUTH)[:155]  # the label above the box
    assert plate.sum() > 200 and (coloured(drawn, TRUTH)[:155] == plate).all()


def test_a_picture_survives_the_page() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    made = thumbnail(image, 448)
    kind, text = made.uri.split(",")
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (made.width, made.height) == (30, 20)


def test_a_thumbnail_is_bounded_and_grey_only_where_the_image_is() -> None:
    ramp = np.tile(np.arange(400, dtype=np.uint8)[:, None, None] % 200, (1, 600, 3))
    opened = []
    for values in (ramp, ramp + np.array([0, 0, 9], dtype=np.uint8)):
        made = thumbnail(Image.fromarray(values), 300)
        opened.append(Image.open(io.BytesIO(base64.b64decode(made.uri.split(",")[1]))))
        assert (made.width, made.height) == opened[-1].size == (300, 200)
    assert [o.mode for o in opened] == ["L", "RGB"]


def test_curves_end_where_they_begin_and_say_so() -> None:
    points = [(float(x), 8.0 / x) for x in range(1, 1001)]
    drawn = render_line_chart("Loss <of>", {"loss": points, "KL": points[:3]}, "steps", "nats")
    assert "loss: from 8 at 1 to 0.008 at 1000; KL: from 8 at 1 to 2.67 at 3" in drawn and "<of>" not in drawn
    path = re.findall(r'points="([^"]+)"', drawn)
    counts = [len(p.split()) for p in path]
    assert counts == [160, 3]
    x, y = (np.array([[float(v) for v in p.split(",")] for p in path[0].split()])).T
    assert (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()  # y of a picture grows downwards
    assert render_line_chart("none", {"loss": []}, "steps", "nats") == ""


def test_bars_say_their_figures_and_their_gaps() -> None:
    drawn = render_bar_chart("Scores & more", [Bar("CT", 50.0, 20.0, (40.0, 60.0)), Bar("<PET>", None)])
    assert "CT: model 50.0, best blind baseline 20.0; &lt;PET&gt;: model not computed" in drawn
    assert drawn.count('class="whisker"') == 3 and "<PET>" not in drawn


def test_a_page_lists_its_sections() -> None:
    html = page.document("T", [section("One & two", []), section("Three", [table(Table("t", ("a",), (("b",),)))])])
    assert 'href="#one-two"' in html and 'id="one-two"' in html and 'href="#three"' in html

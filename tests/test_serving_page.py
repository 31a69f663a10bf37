"""The page of `clinkd serve` in a browser: images, boxes, questions, downloads, corrections; by mouse, finger, key."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian

from browser import Browser, arrived
from clinkd.reporting.tables import SCORERS
from clinkd.reporting.viewer.page import STYLE
from clinkd.serving.app import PAGE
from clinkd.serving.options import MOST_BEAMS, AnswerOptions
from clinkd.version import spell_program
from serving import Server, json_of, picture, serving, uri

WIDE, HIGH = 120, 80  # of the picture in most tests


@pytest.fixture(scope="module")
def server(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runs = tmp_path_factory.mktemp("served")
    shutil.copytree(small_run.parent, runs, symlinks=True, dirs_exist_ok=True)
    with serving(runs / small_run.name) as made:
        yield made


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("png") / "picture.png"
    picture(WIDE, HIGH).save(path)
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM of three frames, each brighter than the one before."""
    ds = dcmread(get_testdata_file("CT_small.dcm"))
    frames = np.stack([np.clip(ds.pixel_array + 200 * n, -2000, 4000) for n in range(3)])
    ds.NumberOfFrames, ds.PixelData = 3, frames.astype("<i2").tobytes()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = tmp_path_factory.mktemp("film") / "film.dcm"
    ds.save_as(path)
    return path


def open_file(page: Browser, path: Path) -> None:
    page.ask("document.getElementById('facts').textContent = ''")
    page.choose("#file", path)
    page.until("document.getElementById('facts').textContent !== ''")


def places(page: Browser, *fractions: tuple[float, float], stage: str = "#stage") -> list[tuple[float, float]]:
    """Where points of the picture are in the window."""
    page.ask(f"document.querySelector('{stage}').scrollIntoView({{block: 'nearest'}})")
    x, y, w, h = page.ask(
        f"(() => {{ const r = document.querySelector('{stage} canvas').getBoundingClientRect(); "
        "return [r.x, r.y, r.width, r.height]; })()"
    )
    return [(x + a * w, y + b * h) for a, b in fractions]


WHERE = """(() => { window.pressed = []; const note = (e) => { const c = document.querySelector('#stage canvas');
  const r = c.getBoundingClientRect(); pressed.push((e.clientX - r.x) / r.width, (e.clientY - r.y) / r.height); };
  for (const name of ['pointerdown', 'pointerup']) addEventListener(name, note, {capture: true, once: true}); })()"""


def draw(page: Browser, *corners: tuple[float, float]) -> list[float]:
    """A box by the mouse; its fractions, by where the pointer really went down and up."""
    first, last = places(page, *corners)
    middle = (first[0] / 2 + last[0] / 2, first[1] / 2 + last[1] / 2)
    page.ask(WHERE)
    page.mouse(first, middle, last)
    pressed: list[float] = page.ask("pressed")
    assert pressed == pytest.approx([v for corner in corners for v in corner], abs=0.01)
    return pressed


def answered(page: Browser) -> Any:
    """Wait for the answer; the question as it was sent."""
    page.until("document.getElementById('answer').ariaBusy !== 'true' && !document.getElementById('saving').hidden")
    last = next(s for s in reversed(page.sent) if s.path == "/v1/chat/completions")
    return last.body


def question(body: Any) -> str:
    return next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")


def text(page: Browser, selector: str) -> str:
    found: str = page.ask(f"document.querySelector({json.dumps(selector)}).textContent")
    return found


def pixels(page: Browser) -> np.ndarray[Any, Any]:
    """What is on the canvas: (height, width, 3)."""
    code = page.ask("document.querySelector('#stage canvas').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(code.partition(",")[2]))).convert("RGB"))


# ---- images ----------------------------------------------------------------------------------------------------------


def test_a_file_is_opened_by_the_button_and_by_a_drop(page, png):
    open_file(page, png)
    assert "picture.png · 120 × 80 pixels" in text(page, "#facts")
    assert page.ask("document.getElementById('levels').hidden")
    assert (pixels(page) == np.asarray(Image.open(png))).all()
    page.ask("document.getElementById('facts').textContent = ''")
    ((x, y),) = places(page, (0.5, 0.5))
    page.drop(x, y, png)
    page.until("document.getElementById('facts').textContent !== ''")
    assert (pixels(page) == np.asarray(Image.open(png))).all()


def test_a_jpeg_and_a_text_burned_in_are_told_as_they_are(page, server, tmp_path):
    path = tmp_path / "picture.jpg"
    picture(90, 70).save(path, quality=80)
    open_file(page, path)
    assert (pixels(page) == from_server(server, path)).all() and page.ask("document.getElementById('burned').hidden")
    ds = dcmread(get_testdata_file("CT_small.dcm"))
    ds.BurnedInAnnotation = "YES"
    ds.save_as(tmp_path / "burned.dcm")
    open_file(page, tmp_path / "burned.dcm")
    assert page.ask("document.getElementById('burned').checkVisibility()")


def test_the_line_of_state_follows_the_model(page, server):
    try:
        server.engine.state, server.engine.why = "failed", "its folder is empty"
        page.visit(server.url + "/", 1280, 900)
        page.until("document.getElementById('state').textContent === 'model failed: its folder is empty'")
        server.engine.state, server.engine.why = "loading", None
        page.visit(server.url + "/", 1280, 900)
        page.until("document.getElementById('state').textContent === 'model is loading'")
    finally:
        server.engine.state, server.engine.why = "ready", None
    page.until("document.getElementById('state').textContent === 'model is ready'")
    assert text(page, "#model") == "small"


def test_what_is_no_image_is_told_in_a_line_that_moves_nothing(page, tmp_path):
    path = tmp_path / "words.png"
    path.write_text("no image at all")
    stage = "(({x, y}) => [x, y])(document.getElementById('stage').getBoundingClientRect())"
    place = page.ask(stage)
    page.choose("#file", path)
    told = page.until("document.getElementById('error').hidden ? '' : document.getElementById('error').textContent")
    assert told.startswith("the file: not an image; give a readable image") and "\n" not in told
    assert page.ask(stage) == place and page.ask("document.getElementById('error').getAttribute('role')") == "alert"
    large = tmp_path / "large.png"
    large.write_bytes(bytes(4 << 20))
    page.choose("#file", large)
    page.until("document.getElementById('error').textContent.includes('more than the server takes')")
    assert page.told and all("400" in line for line in page.told)
    page.told.clear()


def test_zoom_and_pan_keep_the_point_under_the_pointer(page, png):
    open_file(page, png)
    (left, top), (right, bottom) = places(page, (0, 0), (1, 1))
    at = ((300 - left) / (right - left), (400 - top) / (bottom - top))
    zoom = text(page, "#zoom")
    page.wheel(300, 400, -400)
    page.until(f"document.getElementById('zoom').textContent !== '{zoom}'")
    assert places(page, at)[0] == pytest.approx((300, 400), abs=0.1)
    before = page.ask("document.querySelector('#stage canvas').getBoundingClientRect().width")
    page.touch([(400, 400), (500, 400)], [(380, 400), (520, 400)], [(350, 400), (550, 400)])
    after = page.ask("document.querySelector('#stage canvas').getBoundingClientRect().width")
    assert after == pytest.approx(2 * before, rel=0.01)
    left = places(page, (0, 0))[0]
    page.ask("document.getElementById('stage').focus()")
    page.press("ArrowRight")
    assert places(page, (0, 0))[0] == pytest.approx((left[0] - 40, left[1]))
    page.press("h")
    page.mouse((500, 400), (520, 410), (530, 420))
    assert places(page, (0, 0))[0] == pytest.approx((left[0] - 10, left[1] + 20), abs=0.1)
    page.press("0")
    box = page.ask(
        "(({width, height}) => [width, height])(document.querySelector('#stage canvas').getBoundingClientRect())"
    )
    room = page.ask("[document.getElementById('stage').clientWidth, document.getElementById('stage').clientHeight]")
    assert min(room[0] / box[0], room[1] / box[1]) == pytest.approx(1)


# ---- boxes -----------------------------------------------------------------------------------------------------------


def test_a_box_by_the_mouse_is_sent_exactly(page, png):
    open_file(page, png)
    drawn = draw(page, (0.2, 0.3), (0.55, 0.7))
    page.click("[data-task=what]")
    body = answered(page)
    assert body["clinkd"]["boxes"][0] == pytest.approx(drawn, abs=1e-12)
    assert question(body) == "What is at [box]?" and body["model"] == "small" and body["stream"] is True
    assert text(page, "#asked") == "What is at [box A]?"


def test_a_box_is_moved_resized_and_deleted_by_the_mouse(page, png):
    open_file(page, png)
    draw(page, (0.2, 0.2), (0.5, 0.6))
    page.mouse(*places(page, (0.35, 0.4), (0.4, 0.5), (0.45, 0.5)))  # from its middle
    page.mouse(*places(page, (0.6, 0.7), (0.65, 0.75), (0.7, 0.8)))  # from its corner
    page.click("[data-task=describe]")
    body = answered(page)
    assert body["clinkd"]["boxes"][0] == pytest.approx([0.3, 0.3, 0.7, 0.8], abs=2e-3)
    page.click("#boxes li button:last-child")
    page.click("[data-task=describe]")
    assert text(page, "#error") == "Draw a box first: this question is about one."


def test_a_box_under_others_can_still_be_held_by_its_corner(page, png):
    open_file(page, png)
    draw(page, (0.3, 0.3), (0.6, 0.6))
    page.press("Escape")
    draw(page, (0.1, 0.1), (0.9, 0.9))
    page.mouse(*places(page, (0.45, 0.45)))
    assert page.ask("document.activeElement.dataset.key") == "person-A"  # the smaller one is taken by a click
    page.mouse(*places(page, (0.6, 0.6), (0.65, 0.65), (0.7, 0.75)))
    page.click("[data-task=what]")
    assert answered(page)["clinkd"]["boxes"][0] == pytest.approx([0.3, 0.3, 0.7, 0.75], abs=0.01)


def test_a_box_by_a_finger(page, png):
    open_file(page, png)
    start, middle, end = places(page, (0.1, 0.2), (0.3, 0.3), (0.4, 0.5))
    page.touch([start], [middle], [end])
    page.click("[data-task=what]")
    assert answered(page)["clinkd"]["boxes"][0] == pytest.approx([0.1, 0.2, 0.4, 0.5], abs=3e-3)


def test_a_box_by_the_keyboard_alone(page, png):
    open_file(page, png)
    page.ask("document.getElementById('stage').focus()")
    page.press("Enter")
    assert page.ask("document.activeElement.dataset.key") == "person-A"
    made = page.ask("[...document.querySelectorAll('#boxes input[type=number]')].map((e) => +e.value)")
    assert made == pytest.approx([WIDE / 3, HIGH / 3, 2 * WIDE / 3, 2 * HIGH / 3], abs=WIDE * 0.12)
    page.press("ArrowRight")
    page.press("ArrowDown", "Control")
    page.press("ArrowLeft", "Shift")
    wanted = [made[0] + 1.2, made[1] + 0.08, made[2], made[3] + 0.08]
    assert page.ask(
        "[...document.querySelectorAll('#boxes input[type=number]')].map((e) => +e.value)"
    ) == pytest.approx(wanted, abs=0.011)
    said = page.ask("document.activeElement.getAttribute('aria-label')")
    assert said.startswith("Your box A, from ") and f"{100 * wanted[0] / WIDE:.1f} % left" in said
    page.press("Delete")
    assert page.ask("document.querySelectorAll('.mark').length") == 0
    assert page.ask("document.activeElement.id") == "stage"


def test_numbers_of_a_box_are_taken_as_they_are_typed(page, png):
    open_file(page, png)
    draw(page, (0.2, 0.2), (0.5, 0.6))
    for place, value in ((1, 12.5), (2, 7.25), (3, 90), (4, 80)):
        page.ask(f"document.querySelectorAll('#boxes input')[{place - 1}].focus()")
        page.pick(f"#boxes li input:nth-of-type({place})", str(value))
    page.click("[data-task=what]")
    assert answered(page)["clinkd"]["boxes"] == [[12.5 / WIDE, 7.25 / HIGH, 90 / WIDE, 1]]
    page.pick("#boxes li input:nth-of-type(1)", "95")
    assert "left < right" in text(page, "#error")
    assert page.ask("document.querySelector('#boxes input').ariaInvalid") == "true"


# ---- questions -------------------------------------------------------------------------------------------------------


def test_each_task_is_one_click(page, png):
    open_file(page, png)
    page.click("[data-task=overall]")
    assert question(answered(page)) == "What does this image show?"
    page.type("#name", "left kidney")
    page.click("#where-form button")
    page.until("document.getElementById('asked').textContent.includes('left kidney')")
    body = answered(page)
    assert question(body) == "Where is the left kidney in the image?" and body["clinkd"]["boxes"] == []
    assert page.ask("document.querySelectorAll('#names option').length") > 1


def test_a_question_of_ones_own_has_its_boxes_in_order(page, png):
    open_file(page, png)
    first, second = draw(page, (0.1, 0.1), (0.3, 0.4)), draw(page, (0.5, 0.5), (0.9, 0.9))
    page.type("#question", "Is [box B] larger than ")
    page.ask("document.querySelector('#boxes .chip').click()")
    page.click("#insert")
    assert page.ask("document.getElementById('question').value") == "Is [box B] larger than [box A]"
    page.press("Enter", "Control")
    body = answered(page)
    assert question(body) == "Is [box] larger than [box]"
    assert body["clinkd"]["boxes"] == [pytest.approx(second, abs=1e-12), pytest.approx(first, abs=1e-12)]
    page.type("#question", "What is [box C]?")
    page.press("Enter", "Control")
    page.until("document.getElementById('error').textContent.includes('There is no box for [box C]')")


def test_options_are_fields_of_the_record_and_go_along_as_they_are(page, png):
    names = page.ask("[...document.querySelectorAll('[data-option]')].map((e) => e.dataset.option)")
    assert names == ["beams"] and set(names) <= set(AnswerOptions.model_fields)
    assert page.ask("document.querySelector('[data-option=beams]').max") == str(MOST_BEAMS)
    open_file(page, png)
    page.click("[data-task=overall]")
    assert set(answered(page)["clinkd"]) == {"boxes", "frame", "window"}
    page.click("#ask details summary:has(+ #options)")
    assert page.ask("document.querySelector('[data-option=beams]').checkVisibility()")
    assert page.ask("document.querySelector('[data-option=beams]').placeholder") == "3"
    page.type("[data-option=beams]", "1")
    page.click("[data-task=overall]")
    page.until("document.querySelectorAll('#history li').length === 2")
    assert answered(page)["clinkd"]["beams"] == 1
    assert page.ask("document.querySelectorAll('.candidates li').length") == 0  # a single one is the answer alone
    page.type("[data-option=beams]", "99")
    page.click("[data-task=overall]")
    page.until("document.getElementById('error').textContent.includes('beams: Input should be less than')")
    assert page.told and all("400" in line for line in page.told)
    page.told.clear()


ANSWER = {
    "text": "The 𝛼 liver[box] and the kidneys[box][box].",
    "boxes": [
        {"box": [0.1, 0.1, 0.4, 0.4], "pixels": [12, 8, 48, 32], "phrase": "liver", "span": [6, 11]},
        {"box": [0.5, 0.1, 0.7, 0.4], "pixels": [60, 8, 84, 32], "phrase": "kidneys", "span": [25, 32]},
        {"box": [0.7, 0.6, 0.9, 0.9], "pixels": [84, 48, 108, 72], "phrase": "kidneys", "span": [25, 32]},
    ],
    "asked": [],
    "candidates": [
        {"text": "Nothing.", "boxes": [], "logprob": -0.2, "weight": 0.7, "likeness": 0.1, "scores": {"clip": 0.2},
         "chosen": False, "truncated": False, "unread": []},
        {"text": "The 𝛼 liver[box] and the kidneys[box][box].", "boxes": [[0.1, 0.1, 0.4, 0.4]], "logprob": -0.5,
         "weight": 0.3, "likeness": 1.0, "scores": {"clip": 0.31}, "chosen": True, "truncated": False, "unread": []},
    ],
    "support": 0.37, "uncertain": True, "why": "the candidates differ in their boxes", "reordered": True,
    "warnings": [{"kind": "unknown_name", "message": "not a name this model learned: livr (nearest: liver)"}],
    "image": {"width": WIDE, "height": HIGH}, "ignored": [], "seconds": 0.5, "notice": "Research use only.",
}  # fmt: skip
FAKE = """
(() => {
  const real = fetch;
  const line = (told) => `data: ${JSON.stringify(told)}\\n\\n`;
  window.fetch = (path, how) => {
    if (path !== '/v1/chat/completions') return real(path, how);
    const said = new TextEncoder();
    return Promise.resolve(new Response(new ReadableStream({ start(stream) {
      const give = (told) => stream.enqueue(said.encode(line(told)));
      how.signal.addEventListener('abort', () => {
        window.stopped = true; stream.error(new DOMException('x', 'AbortError')); });
      give({choices: [{delta: {role: 'assistant', content: ''}}]});
      give({clinkd: {draft: {text: 'The li[box]', boxes: [[0.2, 0.2, 0.4, 0.5]]}}});
      window.finish = () => { give({choices: [], clinkd: ANSWER}); stream.enqueue(said.encode('data: [DONE]\\n\\n'));
        stream.close(); };
    } })));
  };
})()"""


def faked(page: Browser, png: Path, answer: dict[str, Any] = ANSWER) -> None:
    """An answer of three boxes, given in the form of the API when the test says so: the small run has learned none."""
    open_file(page, png)
    page.ask(FAKE.replace("ANSWER", json.dumps(answer)))
    page.click("[data-task=overall]")
    page.until("document.querySelectorAll('.mark.model').length === 1")


def test_drafts_are_shown_as_drafts_and_phrases_are_linked_to_boxes_both_ways(page, png):
    faked(page, png)
    assert (
        "may still change" in text(page, "#answer") and page.ask("document.getElementById('answer').ariaBusy") == "true"
    )
    page.ask("finish()")
    page.until("document.getElementById('answer').ariaBusy === 'false'")
    assert page.ask("[...document.querySelectorAll('#answer .phrase')].map((e) => e.textContent)") == [
        "liver",
        "kidneys",
    ]
    assert text(page, "#answer .words") == "The 𝛼 liver1 and the kidneys23."
    remarks = page.ask("[...document.querySelectorAll('#answer .doubt')].map((e) => e.textContent)")
    assert remarks == [
        "Warning not a name this model learned: livr (nearest: liver)",
        "Uncertain the candidates differ in their boxes",
    ]
    assert "agreement" not in text(page, "#answer") and "37" not in text(page, "#answer")
    lit = "[...document.querySelectorAll('.mark.lit')].map((e) => e.dataset.key)"
    page.hover(*page.ask(
        "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
        "(document.querySelectorAll('#answer .phrase')[1].getBoundingClientRect())"
    ))  # fmt: skip
    assert page.ask(lit) == ["model-2", "model-3"]
    page.ask("document.querySelector('#answer .phrase').focus()")
    assert page.ask(lit) == ["model-1"]
    words = "[...document.querySelectorAll('#answer .lit')].map((e) => e.textContent)"
    page.hover(*places(page, (0.8, 0.75))[0])
    assert page.ask(lit) == ["model-3"] and page.ask(words) == ["kidneys", "3"]
    page.ask("document.querySelector('.mark.model').focus()")
    assert page.ask(words) == ["liver", "1"]
    dashes = page.ask("document.querySelector('.mark.model .line').getAttribute('stroke-dasharray')")
    draw(page, (0.1, 0.5), (0.4, 0.9))
    assert dashes and not page.ask("document.querySelector('.mark.person .line').getAttribute('stroke-dasharray')")


HOSTILE = "</script></textarea><img src=x onerror=hit=1><svg onload=hit=1>{{7*7}}${7*7} \u202egnp.exe " + "W" * 3000


def test_words_of_a_model_become_no_markup_and_do_not_widen_the_page(page, server, png):
    candidates = [{**candidate, "text": HOSTILE, "unread": [HOSTILE]} for candidate in ANSWER["candidates"]]
    boxes = [{**box, "phrase": HOSTILE} for box in ANSWER["boxes"]]
    faked(page, png, {**ANSWER, "text": f"{HOSTILE}[box]", "boxes": boxes[:1], "why": HOSTILE, "candidates": candidates,
                      "warnings": [{"kind": "unknown_name", "message": HOSTILE}]})  # fmt: skip
    page.ask("finish()")
    page.until("document.querySelectorAll('.candidates li').length === 2")
    assert text(page, "#answer").count("onerror=hit=1>") >= 4 and "{{7*7}}" in text(page, "#answer")
    assert sound(page) == [True, 0, []]
    corrections = json_of(server.client.get("/v1/corrections"))
    item = {**corrections["items"][0], "by": HOSTILE, "question": {"text": HOSTILE, "boxes": []}, "rejected": HOSTILE}
    item |= {name: {"text": HOSTILE, "boxes": []} for name in ("before", "truth", "after")}
    reply = json.dumps({**corrections, "items": [item], "total": 1, "command": HOSTILE})
    page.ask(
        f"(() => {{ const real = fetch, reply = {json.dumps(reply)}; window.fetch = (path, how) => "
        "path.startsWith('/v1/corrections?') ? Promise.resolve(new Response(reply)) : real(path, how); "
        "location.hash = '#corrections'; })()"
    )
    page.until("document.querySelector('#corrections dl')?.textContent.includes('onerror')")
    assert sound(page) == [True, 0, []]


def sound(page: Browser) -> list[object]:
    """Whether a text made an element; and what is wider than the page."""
    made = "document.querySelectorAll('main :is(script, [onerror], [onload], img[src=x])').length"
    wide = (
        "document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll('main *')]"
        ".filter((e) => e.scrollWidth > innerWidth).map((e) => `${e.tagName} ${e.id} ${e.className}`)"
    )
    return page.ask(f"[window.hit === undefined, {made}, {wide}]")


def test_a_candidate_shows_its_boxes_while_it_is_looked_at(page, png):
    faked(page, png)
    page.ask("finish()")
    page.until("document.querySelectorAll('.candidates li').length === 2")
    told = text(page, ".candidates li.chosen")
    assert "chosen" in told and "weight 30 %" in told and "likeness" not in told
    assert "fit of text and image 0.31" in told and "how likely the model finds it -0.5" in told and "2.1" in told
    page.ask("document.querySelector('.candidates li.chosen').focus()")
    assert page.ask("document.querySelectorAll('.mark.candidate').length") == 1
    assert "2.1" in page.ask("document.querySelector('.mark.candidate').textContent")
    page.ask("document.querySelector('.candidates li').focus()")
    assert page.ask("document.querySelectorAll('.mark.candidate').length") == 0
    assert page.ask("document.querySelectorAll('.mark.model').length") == 3


def test_on_a_phone_the_answer_stands_right_under_the_image_and_both_are_seen(page, server, png):
    page.visit(f"{server.url}/", 390, 844)
    page.until("document.getElementById('state').dataset.state === 'ready'")
    faked(page, png)  # asked from below the fold
    page.ask("finish()")
    page.until("document.querySelectorAll('.candidates li').length === 2")
    edges = "(({top, bottom}) => [top, bottom])(document.querySelector('NAME').getBoundingClientRect())"
    names = ("header", "#stage", "#answer-card", "#answer .words", "#facts", "#ask-card")
    header, stage, card, words, facts, ask = (page.ask(edges.replace("NAME", name)) for name in names)
    assert header[1] <= stage[0] and stage[1] <= card[0] <= stage[1] + 20 and words[1] < 844
    assert card[1] <= facts[0] < ask[0]
    page.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    page.until("document.getElementById('ask-card').nextElementSibling.id === 'answer-card'")


def test_stop_ends_it_and_takes_the_draft_away(page, png):
    faked(page, png)
    page.click("#stop")
    page.until("window.stopped && document.getElementById('stop').hidden")
    assert text(page, "#answer") == "Stopped." and page.ask("document.querySelectorAll('.mark.model').length") == 0
    assert page.ask("document.getElementById('error').hidden")


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (429, {"Retry-After": "7"}, "Too many questions wait. Try again in 7 s."),
        (401, {}, "The token is wrong or gone. Open the address that clinkd serve printed."),
        (400, {}, "so and so"),
    ],
)
def test_a_refusal_is_one_plain_line(page, png, status, headers, told):
    open_file(page, png)
    page.ask(
        "window.fetch = () => Promise.resolve(new Response(JSON.stringify({error: {message: 'so and so'}}), "
        f"{{status: {status}, headers: {json.dumps(headers)}}}))"
    )
    page.click("[data-task=overall]")
    assert page.until("document.getElementById('error').textContent") == told


def test_the_history_brings_image_boxes_and_answer_back(page, png, tmp_path):
    open_file(page, png)
    draw(page, (0.2, 0.3), (0.6, 0.7))
    page.click("[data-task=what]")
    answered(page)
    said = text(page, "#answer .words")
    other = tmp_path / "other.png"
    picture(50, 60, seed=1).save(other)
    open_file(page, other)
    assert page.ask("document.querySelectorAll('.mark').length") == 0
    page.ask("document.querySelector('#history button').click()")
    assert (pixels(page) == np.asarray(Image.open(png))).all() and text(page, "#answer .words") == said
    assert page.ask("document.querySelectorAll('.mark.person').length") == 1


# ---- DICOM -----------------------------------------------------------------------------------------------------------


def from_server(server: Server, path: Path, **how: Any) -> np.ndarray[Any, Any]:
    reply = server.ask("/v1/open", image=uri(path.read_bytes(), "application/dicom"), **how)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(reply["picture"].partition(",")[2]))).convert("RGB"))


def test_a_window_by_dragging_is_the_one_that_the_model_sees(page, server):
    path = Path(get_testdata_file("CT_small.dcm"))
    open_file(page, path)
    assert (pixels(page) == from_server(server, path)).all()
    page.click("[data-mode=level]")
    page.mouse(*places(page, (0.5, 0.5), (0.45, 0.4), (0.4, 0.35)))
    centre, width = page.ask("[+document.getElementById('centre').value, +document.getElementById('width').value]")
    page.click("[data-task=overall]")
    window = answered(page)["clinkd"]["window"]
    assert [float(v) for v in window.split("/")] == pytest.approx([centre, width], abs=1e-3)
    theirs = from_server(server, path, window=window).astype(int)
    assert np.abs(pixels(page) - theirs).max() <= 1 and np.ptp(theirs) > 50
    for chosen in ("lung", "full"):
        page.pick("#window", chosen)
        page.until(f"document.getElementById('window').value === '{chosen}'")
        page.until("document.getElementById('stage').ariaBusy !== 'true'")
        assert np.abs(pixels(page) - from_server(server, path, window=chosen).astype(int)).max() <= 1
    page.pick("#centre", "40")
    page.pick("#width", "400")
    assert np.abs(pixels(page) - from_server(server, path, window="40/400").astype(int)).max() <= 1


def test_an_inverted_picture_is_windowed_as_the_server_does(page, server, tmp_path):
    ds = dcmread(get_testdata_file("CT_small.dcm"))
    ds.PhotometricInterpretation = "MONOCHROME1"
    path = tmp_path / "inverted.dcm"
    ds.save_as(path)
    open_file(page, path)
    page.pick("#centre", "100")
    page.pick("#width", "700.5")
    theirs = from_server(server, path, window="100/700.5").astype(int)
    assert np.abs(pixels(page) - theirs).max() <= 1 and theirs[0].mean() > theirs[64].mean()


def test_frames_by_slider_and_keys_keep_their_own_boxes(page, server, film):
    open_file(page, film)
    assert text(page, "#frame-said") == "1 of 3"
    draw(page, (0.2, 0.2), (0.5, 0.5))
    page.pick("#frame", "3")
    page.until("document.getElementById('stage').getAttribute('aria-label').includes('frame 3')")
    assert (pixels(page) == from_server(server, film, frame=3)).all()
    assert page.ask("document.querySelectorAll('.mark').length") == 0
    page.click("[data-task=overall]")
    assert answered(page)["clinkd"]["frame"] == 3
    page.ask("document.getElementById('stage').focus()")
    page.press("PageUp")
    page.press("PageUp")
    page.until("document.getElementById('stage').getAttribute('aria-label').includes('frame 1')")
    assert page.ask("document.querySelectorAll('.mark.person').length") == 1


# ---- files to keep ---------------------------------------------------------------------------------------------------


URLS = """(() => { window.made = []; window.revoked = []; window.later = [];
  const { createObjectURL: make, revokeObjectURL: revoke } = URL;
  URL.createObjectURL = (blob) => { const url = make(blob); made.push(url); return url; };
  URL.revokeObjectURL = (url) => { revoked.push(url); revoke(url); };
  const real = setTimeout;
  window.setTimeout = (act, ms) => (ms === 10000 ? later.push(act) : real(act, ms)); })()"""


def test_picture_and_answer_are_saved(page, png, tmp_path):
    faked(page, png)
    page.ask("finish()")
    page.until("!document.getElementById('saving').hidden")
    page.downloads(tmp_path)
    page.ask(URLS)
    page.click("#save-png")
    page.click("#save-json")
    told = json.loads(arrived(tmp_path, "json"))
    assert told["question"]["text"] == "What does this image show?" and told["answer"]["text"] == ANSWER["text"]
    assert told["answer"]["boxes"][1]["fractions"] == [0.5, 0.1, 0.7, 0.4]
    assert told["answer"]["boxes"][1]["pixels"] == pytest.approx([60, 8, 84, 32])
    assert told["answer"]["warnings"] == ANSWER["warnings"]
    assert told["model"] == "small" and "Research use only" in told["notice"] and told["image"]["width"] == WIDE
    assert re.match(r"20\d\d-\d\d-\d\dT", told["time"]) and "picture.png" not in json.dumps(told)
    made = Image.open(io.BytesIO(arrived(tmp_path, "png"))).convert("RGB")
    assert made.width == WIDE and made.height > HIGH
    seen, plain = np.asarray(made).astype(int), np.asarray(Image.open(png)).astype(int)
    same = (seen[:HIGH] == plain).all(-1)
    assert same[50:78, 10:60].all() and not same[8, 12:48].any()  # untouched beside the boxes, drawn on their sides
    assert np.ptp(seen[HIGH:]) > 200  # words below
    page.ask("later.forEach((act) => act())")
    assert page.ask("made.length === 2 && made.every((url) => revoked.includes(url))")
    assert page.ask("document.getElementById('save-sr').disabled")
    assert text(page, "#sr-why") == "A DICOM SR needs a DICOM image; this one is none."


def test_a_report_is_saved_for_a_dicom(page, film, tmp_path):
    open_file(page, film)
    page.pick("#frame", "2")
    page.until("document.getElementById('stage').getAttribute('aria-label').includes('frame 2')")
    drawn = draw(page, (0.25, 0.25), (0.5, 0.75))
    page.click("[data-task=what]")
    answered(page)
    page.downloads(tmp_path)
    page.click("#save-sr")
    ds = dcmread(io.BytesIO(arrived(tmp_path, "dcm")))
    assert ds.Modality == "SR" and ds.VerificationFlag == "UNVERIFIED"
    page.settle()  # what it sent meanwhile is read
    sent = next(s for s in page.sent if s.path == "/v1/sr").body
    assert sent["frame"] == 2 and sent["regions"][-1]["by"] == "person"
    assert {"warnings", "confidence"} < sent.keys()
    assert sent["regions"][-1]["box"] == pytest.approx(drawn, abs=1e-6)


# ---- corrections -----------------------------------------------------------------------------------------------------


@pytest.fixture
def review(page: Browser, server: Server) -> Browser:
    page.visit(f"{server.url}/#corrections", 1280, 900)
    page.until(
        "document.querySelectorAll('.items button').length > 2 && !!document.querySelector('#corrections canvas')"
    )
    page.sent.clear()
    return page


def decided(page: Browser, count: int) -> None:
    page.until(f"document.querySelector('#c-progress').textContent.startsWith('{count} of ')")


def test_corrections_are_accepted_edited_rejected_and_taken_back(review, server):
    assert len(json_of(server.client.get("/v1/corrections", params={"round": 2, "state": "open"}))["items"]) > 2
    decided(review, 0)
    index = review.ask(
        "[...document.querySelectorAll('.items button')].findIndex((b) => !b.textContent.includes('no rewrite'))"
    )
    review.click(f".items li:nth-child({index + 1}) button")
    review.press("a")
    decided(review, 1)
    assert review.sent[-1].method == "PUT" and review.sent[-1].body["verdict"] == "accept"
    review.click("#c-actions [data-act=reject]")
    decided(review, 2)
    review.press("e")
    review.until("!!document.querySelector('#corrections textarea')")
    review.until("!!document.querySelector('#corrections .stage canvas')")
    before = review.ask("document.querySelectorAll('#corrections .mark.rewrite').length")
    review.ask("document.querySelector('#corrections .stage').focus()")
    review.press("Enter")
    review.press("ArrowLeft")
    name = review.ask("[...document.querySelectorAll('#corrections .mark.rewrite .name')].at(-1).textContent")
    marks = " ".join(f"[box {chr(65 + n)}]" for n in range(before))
    review.type("#corrections textarea", f"It is here: [box {name}] {marks}.")
    review.click("#c-actions [data-act=save]")
    decided(review, 3)
    sent = review.sent[-1].body
    assert (
        sent["verdict"] == "edit" and sent["text"].startswith("It is here: [box]") and len(sent["boxes"]) == before + 1
    )
    told = json_of(server.client.get("/v1/corrections", params={"round": sent["round"], "state": "decided"}))
    kept = next(i for i in told["items"] if i["id"] == sent["id"])["decision"]
    assert kept["verdict"] == "edit" and kept["after"]["text"] == sent["text"]
    assert kept["after"]["boxes"] == [pytest.approx(b, abs=1e-6) for b in sent["boxes"]]
    review.pick("#c-state", "decided")
    review.until("document.querySelectorAll('.items button').length === 3")
    for left in (2, 1, 0):
        review.click(f".items li:nth-child({3 - left}) button")
        review.press("u")
        decided(review, left)


MANY = """(() => {
  const pixel = document.createElement('canvas').toDataURL();
  const { set } = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, 'src');
  Object.defineProperty(HTMLImageElement.prototype, 'src', { set(_) { set.call(this, pixel); } });
  const real = fetch, all = [...Array(45).keys()].map((n) => ({
    id: `item ${n}`, round: 1, modality: 'ct', task: 'VG', question: {text: `question ${n}`, boxes: []},
    before: {text: 'so', boxes: []}, truth: {text: 'yes', boxes: []}, after: {text: 'no', boxes: []}, by: '',
    reasons: [], rejected: null, image: {width: 1, height: 1}, decision: null }));
  window.decided = [];
  window.fetch = (path, how = {}) => {
    const told = (value) => Promise.resolve(new Response(JSON.stringify(value)));
    if (how.method === 'PUT') {
      const { id, verdict } = JSON.parse(how.body), found = all.find((item) => item.id === id);
      decided.push(id);
      found.decision = {verdict, after: null};
      return told(structuredClone(found));
    }
    const asked = new URLSearchParams(path.split('?')[1]), open = all.filter((item) => !item.decision);
    const at = Number(asked.get('offset'));
    return path.startsWith('/v1/corrections') ? told({round: 1, rounds: [1], total: open.length, open: open.length,
      decided: 45 - open.length, file: 'f', command: 'c', items: open.slice(at, at + 20)}) : real(path, how);
  };
})()"""


def test_no_open_correction_is_passed_over_from_page_to_page(review):
    review.ask(MANY)
    review.pick("#c-round", "1")
    review.until("document.getElementById('c-pages').textContent === '1 to 20 of 45'")
    for number in range(45):
        review.until(
            f"document.querySelector('#c-list [aria-current=true]')?.textContent.endsWith('question {number}')"
        )
        review.press("r")
        review.until(f"decided.length === {number + 1}")
        decided(review, number + 1)
        if number in (19, 39):
            review.press("j")
    assert review.ask("decided") == [f"item {n}" for n in range(45)]


def test_the_command_for_the_next_run_is_shown_and_copied(review, server):
    command = json_of(server.client.get("/v1/corrections", params={"round": 1}))["command"]
    assert text(review, ".command code") == command and command.startswith(f"{spell_program()} run")
    review.call(
        "Browser.grantPermissions", origin=server.url, permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    review.click(".command button")
    review.until("document.getElementById('said').textContent === 'The command is copied.'")
    assert review.ask("navigator.clipboard.readText()") == command


# ---- for all ---------------------------------------------------------------------------------------------------------

NAMES = """[...document.querySelectorAll(
    'button, a, input, select, textarea, [tabindex="0"], summary, meter, progress')]
  .filter((e) => e.checkVisibility() && !(e.ariaLabel || e.getAttribute('aria-labelledby') || e.textContent.trim()
    || [...(e.labels ?? [])].some((l) => l.textContent.trim()))).map((e) => e.outerHTML)"""
SMALL = """[...document.querySelectorAll('button, a, select, input:not([type=file]), textarea, summary')]
  .filter((e) => e.checkVisibility() && !e.closest('.skip, .words'))
  .map((e) => [e, (e.closest('.check') ?? e).getBoundingClientRect()])
  .filter(([, r]) => r.width < 24 || r.height < 24).map(([e]) => e.outerHTML)"""
FAINT = """(() => {
  const parts = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const shine = (c) => c.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (e) => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length && c[3] !== 0) return c; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility() || e.closest('svg, .unseen, .skip, option, :disabled')) continue;
    const [a, b] = [shine(parts(getComputedStyle(e).color)), shine(back(e))].sort((p, q) => q - p);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.push([contrast, e.outerHTML.slice(0, 120)]);
  }
  return found;
})()"""


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (360, False), (360, True)])
def test_everything_has_a_name_contrast_and_room_on_any_screen(page, server, film, width, dark):
    for view in ("ask", "corrections"):
        page.visit(f"{server.url}/#{view}", width, 740, dark=dark)
        page.until("document.getElementById('state').dataset.state === 'ready'")
        if view == "ask":
            open_file(page, film)
            draw(page, (0.2, 0.2), (0.6, 0.6))
            page.click("[data-task=what]")
            answered(page)
            page.ask("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        else:
            page.until("!!document.querySelector('.items button')")
            page.click("#c-actions [data-act=edit]")
        assert page.ask(NAMES) == [] and page.ask(SMALL) == [] and page.ask(FAINT) == []
        assert page.ask("document.documentElement.scrollWidth") == width
        page.ask("scrollTo(0, document.body.scrollHeight)")
        bottom = page.ask(
            "(({top, bottom}) => [top, bottom])(document.getElementById('notice').getBoundingClientRect())"
        )
        assert 0 <= bottom[0] < bottom[1] < 200 and "Research use only" in text(page, "#notice")


def test_the_focus_is_seen_and_goes_in_the_order_of_the_page(page, png):
    open_file(page, png)
    page.ask("document.querySelector('.skip').focus()")
    order = []
    while page.press("Tab") or page.ask("document.activeElement !== document.body"):
        order.append(
            page.ask(
                "document.activeElement.id || document.activeElement.dataset.task || document.activeElement.textContent"
            )
        )
        seen = page.ask("(({outlineStyle, outlineWidth}) => outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2)"
                        "(getComputedStyle(document.activeElement.id === 'file' ? document.activeElement.parentElement "
                        ": document.activeElement))")  # fmt: skip
        assert seen, order
    wanted = ["file", "Box", "stage", "name", "what", "question", "insert"]
    assert [o for o in order if o in wanted] == wanted


def test_nothing_is_left_in_the_browser(page, png):
    open_file(page, png)
    page.click("[data-task=overall]")
    answered(page)
    kept = page.ask("[localStorage.length, sessionStorage.length, document.cookie]")
    assert kept == [0, 0, ""] and page.ask("indexedDB.databases().then((d) => d.length)") == 0
    assert page.ask("caches.keys().then((k) => k.length)") == 0


def test_the_page_has_the_colours_of_the_reports():
    colours = dict(re.findall(r"(--[\w-]+): (#\w+)", STYLE.partition("@media")[0]))
    ours = dict(re.findall(r"(--[\w-]+): (#\w+)", (PAGE / "style.css").read_text().partition("@media")[0]))
    shared = colours.keys() & ours.keys()
    assert len(shared) >= 10 and {k: ours[k] for k in shared} == {k: colours[k] for k in shared}


def test_candidates_have_their_scores_in_the_words_of_the_reports():
    words = re.search(r"const SCORES = \{(.*?)\};", (PAGE / "answer.js").read_text(), re.S)[1]
    assert dict(re.findall(r'"?(\w[\w ]*?)"?: "([^"]+)"', words)) == SCORERS


def test_no_markup_is_made_of_words():
    for path in PAGE.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|localStorage|eval\(", path.read_text()
        )
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"\sstyle=|\son\w+=|https?://|<script(?![^>]*src=)", html)

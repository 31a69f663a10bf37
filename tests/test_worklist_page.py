"""The worklist on the page of `clinkd serve`, in a browser: what arrived, and what a person decides about it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from browser import Browser
from clinkd.hospital.correction_rows import make_corrections
from clinkd.hospital.worklist import (
    AnswerCaution,
    ArrivedImage,
    FoundRegion,
    ModelAnswer,
    RuledQuestion,
    Worklist,
    WorklistDecision,
    WorklistEntry,
)  # fmt: skip
from clinkd.records import Box
from clinkd.serving.app import Served
from clinkd.serving.asking import RequestHandler
from clinkd.serving.decoding import Decoders
from clinkd.serving.engine import Engine
from serving import LIMITS, TOKEN, Server, listening
from test_serving_page import FAINT, NAMES, SMALL, places, text
from test_serving_replies import ScriptedAnswerer

FOUND = (FoundRegion(Box(0.25, 0.25, 0.5, 0.5), "liver"),)


@pytest.fixture
def worklist(tmp_path: Path) -> Iterator[Worklist]:
    made = Worklist(tmp_path / "worklist")
    yield made
    made.close()


class WorklistAtHand:
    """In the place of the worklist of one server: that of the test at hand."""

    current: Worklist

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current, name)


@pytest.fixture(scope="module")
def at_hand() -> WorklistAtHand:
    return WorklistAtHand()


@pytest.fixture(scope="module")
def one_server(at_hand: WorklistAtHand) -> Iterator[Server]:
    """One server for all tests: a browser finds its files and decoded pages again."""
    handler = RequestHandler(Engine(ScriptedAnswerer, LIMITS), Decoders(LIMITS), LIMITS)
    with listening(Served("scripted", handler, worklist=cast("Worklist", at_hand))) as made:
        made.until_ready()
        yield made


@pytest.fixture
def server(one_server: Server, at_hand: WorklistAtHand, worklist: Worklist) -> Server:
    at_hand.current = worklist
    return one_server


@pytest.fixture
def page(chromium: Browser, server: Server) -> Iterator[Browser]:
    yield chromium
    chromium.leave()
    told, chromium.told = chromium.told, []
    assert told == []


def arrive(worklist: Worklist, count: int = 1, question: str = "Where is the liver?") -> list[str]:
    """CT images that arrived, each with a question that is answered; the ids of the entries."""
    ids = []
    for _ in range(count):
        ds = dcmread(get_testdata_file("CT_small.dcm"))
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.PatientName = "Canary^Patient"
        content = io.BytesIO()
        ds.save_as(content)
        facts = ArrivedImage(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, "CT", "ABDOMEN")
        [id] = worklist.add_image(content.getvalue(), facts, [RuledQuestion("liver on CT", question)])
        caution = AnswerCaution("unknown_name", "not a name this model learned: <b>lever</b>")
        found = ModelAnswer("The liver is at [box].", FOUND, (caution,), 0.72)
        assert worklist.set_answer(id, found)
        ids.append(id)
    return ids


def look(page: Browser, server: Server, width: int = 1280, dark: bool = False) -> None:
    """The worklist, with the image of its first entry shown."""
    page.visit(f"{server.url}/?token={TOKEN}#worklist", width, 900, dark)
    page.until("document.querySelector('#w-stage canvas')?.width === 128")
    page.sent.clear()


def badge(page: Browser, words: str) -> None:
    """Wait until the entry that is open is in that state."""
    page.until(f"document.querySelector('#w-detail .verdict')?.textContent === {json.dumps(words)}")


def refresh(page: Browser) -> None:
    page.ask("dispatchEvent(new Event('focus'))")


def opened(page: Browser) -> str:
    found: str = page.ask("document.querySelector('#w-list [aria-current=true]')?.dataset.id ?? ''")
    return found


def test_a_server_without_a_worklist_has_no_tab(chromium):
    handler = RequestHandler(Engine(ScriptedAnswerer, LIMITS), Decoders(LIMITS), LIMITS)
    with listening(Served("scripted", handler)) as server:
        chromium.visit(f"{server.url}/?token={TOKEN}#worklist")
        chromium.until("document.getElementById('state').dataset.state === 'ready'")
        assert chromium.ask("document.getElementById('to-worklist').hidden && !document.getElementById('ask').hidden")
        chromium.leave()  # before its server ends, of which it would complain


def test_an_answer_is_shown_accepted_taken_back_and_sent(page, server, worklist):
    first, second = arrive(worklist, 2)
    look(page, server)
    assert opened(page) == first and "2 to decide" in text(page, "#w-counts")
    words = text(page, "#w-detail")
    assert "not a name this model learned: <b>lever</b>" in words and "72 %" in words and "ABDOMEN" in words
    assert page.ask("document.querySelector('#w-stage .mark.model .name').textContent") == "1 liver"
    assert "Research use only" in text(page, "#notice")
    assert "Canary" not in page.ask("document.documentElement.textContent")
    page.press("a")
    badge(page, "accepted, waits to be sent")
    assert worklist.get(first).final == WorklistDecision("accepted", "The liver is at [box].", FOUND)
    page.press("u")
    badge(page, "to decide")
    assert worklist.get(first).decision is None
    page.press("a")
    badge(page, "accepted, waits to be sent")
    send(worklist)
    worklist.put_off(first, "the archive does not answer", 60)
    refresh(page)
    badge(page, "on its way to the archive")
    assert "the archive does not answer. It is tried again." in text(page, "#w-detail")
    assert page.ask("document.querySelector('[data-act=undo]')") is None  # what may be there already is not taken back
    worklist.set_sent(first)
    refresh(page)
    badge(page, "sent")
    page.press("n")
    page.until(f"document.querySelector('#w-list [aria-current=true]')?.dataset.id === {json.dumps(second)}")


def test_an_answer_is_edited_in_words_names_and_corners(page, server, worklist):
    [id] = arrive(worklist)
    look(page, server)
    page.press("e")
    page.until("!!document.querySelector('#w-detail textarea')")
    page.type("#w-detail .boxes input", "spleen")
    assert page.ask("document.querySelector('#w-stage .mark.rewrite .name').textContent") == "A spleen"
    start, end = places(page, (0.5, 0.5), (0.75, 0.625), stage="#w-stage")
    page.mouse((start[0] + 2, start[1] + 2), ((start[0] + end[0]) / 2, end[1]), (end[0] + 2, end[1] + 2))
    page.type("#w-detail textarea", "The spleen is at [box A].")
    page.click("[data-act=save]")
    badge(page, "accepted, waits to be sent")
    decision = worklist.get(id).decision
    assert decision.kind == "edited" and decision.text == "The spleen is at [box]."
    [region] = decision.boxes
    assert region.name == "spleen" and region.box.corners == pytest.approx((0.25, 0.25, 0.75, 0.625), abs=0.01)
    assert "spleen" in text(page, "#w-detail dl")
    assert page.ask("document.querySelector('#w-stage .mark.rewrite .name').textContent") == "spleen"
    page.press("e")  # once more, from where it was left
    assert page.ask("document.querySelector('#w-detail textarea').value") == "The spleen is at [box A]."


def test_a_box_that_the_answer_does_not_mention_is_not_saved(page, server, worklist):
    [id] = arrive(worklist)
    look(page, server)
    page.press("e")
    page.until("!!document.querySelector('#w-detail textarea')")
    page.ask("document.querySelector('#w-stage').focus()")
    page.press("Enter")
    page.click("[data-act=save]")
    assert text(page, "#error") == "Box B is not in the answer. Mention it there, or delete it."
    page.click("[aria-label='Delete box B']")
    page.click("[data-act=cancel]")
    badge(page, "to decide")
    assert page.ask("document.querySelectorAll('#w-stage .mark').length") == 1 and worklist.get(id).decision is None


def test_a_rejection_with_a_note(page, server, worklist):
    [id] = arrive(worklist)
    look(page, server)
    page.press("r")
    page.press("x")  # goes into the note
    page.press("Enter")
    badge(page, "rejected, never sent")
    assert worklist.get(id).decision == WorklistDecision("rejected", note="x")  # never sent: see the tests of Worklist
    assert "Note: x" in text(page, "#w-detail")


def test_a_rejection_with_the_right_answer_is_kept_to_learn_from(page, server, worklist):
    [id] = arrive(worklist)
    worklist.sends = "all"
    look(page, server)
    assert "seen by a person or not (--send all)" in text(page, "#w-sends")
    page.press("r")
    page.press("x")
    page.click("[data-act=right]")
    page.type("#w-detail .boxes input", "spleen")
    page.type("#w-detail textarea", "The spleen is at [box A].")
    page.click("[data-act=save]")
    badge(page, "rejected, never sent")
    spleen = (FoundRegion(FOUND[0].box, "spleen"),)
    assert worklist.get(id).decision == WorklistDecision("rejected", "The spleen is at [box].", spleen, "x")
    assert "Rejected; right is: The spleen is at" in text(page, "#w-detail") and worklist.take_unsent() is None
    [row] = make_corrections(worklist)
    assert [one["name"] for one in row["objects"]] == ["spleen"]


@pytest.mark.slow  # the conflict itself: tests/test_serving_worklist.py
def test_a_decision_of_another_person_is_shown_and_not_overwritten(page, server, worklist):
    first, second = arrive(worklist, 2)
    look(page, server)
    page.ask("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")  # it does not look again
    page.ask("fetch('/v1/worklist').then((reply) => reply.text())")
    worklist.decide(first, WorklistDecision("rejected", note="no liver"), worklist.get(first).revision)
    page.press("a")
    page.until("document.getElementById('error').textContent.includes('meanwhile it was rejected')")
    badge(page, "rejected, never sent")
    assert "Note: no liver" in text(page, "#w-detail")
    assert worklist.get(first).state == "rejected"
    page.ask("delete document.hidden")
    page.press("n")
    badge(page, "to decide")
    page.until("document.querySelector('#w-stage canvas')?.width === 128")
    page.press("e")
    page.type("#w-detail textarea", "My own words [box A].")
    worklist.decide(second, WorklistDecision("accepted"), worklist.get(second).revision)
    refresh(page)
    page.until("document.querySelector('#w-changed').textContent.startsWith('Another person')")
    for kept in ("accepted", "edited"):  # refused once, with the words kept; then meant so
        assert page.ask("document.querySelector('#w-detail textarea').value") == "My own words [box A]."
        assert worklist.get(second).decision.kind == "accepted"
        page.click("[data-act=save]")
        page.until(
            "document.querySelector('#w-changed').textContent.includes('once more')" if kept == "accepted"
            else "!document.querySelector('#w-detail textarea')"
        )  # fmt: skip
    assert worklist.get(second).decision.text == "My own words [box]."
    assert [line for line in page.told if "409" not in line] == []
    page.told.clear()


@pytest.mark.slow  # the same list, over several looks at the server
def test_what_arrives_moves_neither_the_place_nor_an_edit(page, server, worklist):
    ids = arrive(worklist, 22)
    look(page, server)
    page.click("#w-later")
    page.until("document.querySelectorAll('#w-list button').length === 2")
    page.click(f"[data-id='{ids[20]}']")
    page.until("document.querySelector('#w-stage canvas')?.width === 128")
    page.press("e")
    page.type("#w-detail textarea", "Half a sent")
    arrive(worklist)
    refresh(page)
    page.until("document.querySelectorAll('#w-list button').length === 3")
    assert opened(page) == ids[20] and "23 to decide" in text(page, "#w-counts")
    assert page.ask("document.querySelector('#w-detail textarea').value") == "Half a sent"
    assert page.ask("document.activeElement.tagName") == "TEXTAREA"
    page.click("[data-act=cancel]")
    page.click("#w-earlier")
    page.until("document.querySelectorAll('#w-list button').length === 20")
    page.pick("#w-state", "failed")
    page.until("!document.getElementById('w-none').hidden")


@pytest.mark.parametrize(("width", "dark"), [pytest.param(1280, False, marks=pytest.mark.slow), (360, True)])
def test_it_has_names_contrast_and_room_on_any_screen(page, server, worklist, width, dark):
    arrive(worklist, 2)
    look(page, server, width, dark)
    for key in ("e", "r"):
        page.press(key)
        page.ask("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert page.ask(NAMES) == [] and page.ask(SMALL) == [] and page.ask(FAINT) == []
        assert page.ask("document.documentElement.scrollWidth") == width
        page.click("[data-act=cancel]")


def send(worklist: Worklist) -> WorklistEntry:
    """Take the next entry, as the sender does."""
    taken = worklist.take_unsent()
    assert taken
    return taken

"""The worklist over the API: pages, images, and decisions that meet each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from clinkd.hospital.worklist import STATES, ArrivedImage, FoundRegion, ModelAnswer, RuledQuestion, Worklist
from clinkd.records import Box
from clinkd.serving.app import Served, create
from clinkd.serving.asking import RequestHandler
from clinkd.serving.decoding import Decoders
from clinkd.serving.engine import Engine
from serving import LIMITS, json_of

BOX = [0.125, 0.25, 0.5, 0.75]


def open_model() -> None:
    raise AssertionError("no route of the worklist opens the model")


@pytest.fixture
def worklist(tmp_path: Path) -> Iterator[Worklist]:
    made = Worklist(tmp_path / "work")
    yield made
    made.close()


@pytest.fixture
def client(worklist: Worklist) -> TestClient:
    handler = RequestHandler(Engine(open_model, LIMITS), Decoders(LIMITS), LIMITS)
    return TestClient(create(Served("scripted", handler, worklist=worklist)))


def fill(worklist: Worklist, count: int = 3) -> list[str]:
    ids = []
    for number in range(1, count + 1):
        facts = ArrivedImage("1.2.1", "1.2.2", f"1.2.3.{number}", "CT", "CHEST")
        ids += worklist.add_image(f"image {number}".encode(), facts, [RuledQuestion("chest", "Where is the heart?")])
        worklist.set_answer(ids[-1], ModelAnswer("The heart[box].", (FoundRegion(Box(*BOX), "heart"),), (), 0.75))
    return ids


def test_entries_come_in_pages_with_what_they_hold(client, worklist):
    ids = fill(worklist)
    worklist.leave_out("MR")
    page = json_of(client.get("/v1/worklist", params={"limit": 2}))
    assert page["counts"] == {state: 3 * (state == "answered") for state in STATES} and page["after"] == ids[1]
    assert page["left_out"] == {"MR": 1}
    assert page["entries"][0] == {
        "id": ids[0], "arrived": page["entries"][0]["arrived"], "study": "1.2.1", "series": "1.2.2",
        "instance": "1.2.3.1", "frame": 1, "modality": "CT", "body_part": "CHEST", "rule": "chest",
        "question": "Where is the heart?", "state": "answered", "decision": None, "why": "", "revision": 1,
        "answer": {
            "text": "The heart[box].", "boxes": [{"box": BOX, "name": "heart"}], "warnings": [],
            "confidence": 0.75, "answered": "",
        },
    }  # fmt: skip
    last = json_of(client.get("/v1/worklist", params={"limit": 2, "after": page["after"]}))
    assert [entry["id"] for entry in last["entries"]] == ids[2:] and last["after"] is None
    assert json_of(client.get("/v1/worklist", params={"state": "sent"}))["entries"] == []
    assert json_of(client.get(f"/v1/worklist/{ids[0]}")) == page["entries"][0]
    image = client.get(f"/v1/worklist/{ids[1]}/image")
    assert image.content == b"image 2" and image.headers["content-type"] == "application/dicom"


def test_a_decision_meets_another(client, worklist):
    [id] = fill(worklist, 1)
    body = {"kind": "edited", "text": "No, here[box].", "boxes": [{"box": BOX, "name": "heart"}], "revision": 1}
    entry = json_of(client.post(f"/v1/worklist/{id}/decision", json=body))
    assert entry["state"] == "accepted" and entry["revision"] == 2
    assert entry["decision"] == {"kind": "edited", "text": body["text"], "boxes": body["boxes"], "note": ""}
    late = client.post(f"/v1/worklist/{id}/decision", json={"kind": "rejected", "revision": 1})
    assert json_of(late, 409)["error"]["code"] == "conflict"
    entry = json_of(client.post(f"/v1/worklist/{id}/decision", json={"kind": "rejected", "revision": 2, "note": "x"}))
    assert entry["state"] == "rejected" and entry["decision"]["note"] == "x"
    entry = json_of(client.post(f"/v1/worklist/{id}/decision", json={"kind": "undo", "revision": 3}))
    assert entry["state"] == "answered" and entry["decision"] is None


def test_what_is_wrong_is_refused(client, worklist):
    [id] = fill(worklist, 1)
    for place in ("", "/image"):
        assert json_of(client.get(f"/v1/worklist/none{place}"), 404)["error"]["code"] == "missing"
    assert client.post("/v1/worklist/none/decision", json={"kind": "rejected", "revision": 1}).status_code == 404
    for wrong in (
        {"kind": "sent", "revision": 1}, {"kind": "accepted"}, {"kind": "edited", "revision": 1},
        {"kind": "edited", "revision": 1, "text": "a", "boxes": [{"box": [0, 0, 0, 1], "name": ""}]},
        {"kind": "edited", "revision": 1, "text": "a[box][box]", "boxes": [{"box": BOX, "name": ""}]},
    ):  # fmt: skip
        assert client.post(f"/v1/worklist/{id}/decision", json=wrong).status_code == 400
    assert client.get("/v1/worklist", params={"state": "lost"}).status_code == 400
    assert worklist.get(id).state == "answered"


def test_only_a_server_with_a_worklist_has_its_routes():
    handler = RequestHandler(Engine(open_model, LIMITS), Decoders(LIMITS), LIMITS)
    client = TestClient(create(Served("scripted", handler)))
    assert client.get("/v1/worklist").status_code == 404 and not json_of(client.get("/v1/about"))["worklist"]


def test_the_page_is_told_of_a_worklist(client):
    assert json_of(client.get("/v1/about"))["worklist"]

"""Every reply in JSON, byte by byte: what clients read stays as it is, whatever the classes behind it are called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydicom.data import get_testdata_file

from clinkd import __version__
from clinkd.config import RunConfig
from clinkd.inference.self_consistency import self_consistency
from clinkd.records import (
    BOX_MARK,
    Box,
    BoxedText,
    Candidate,
    Correction,
    ImageRef,
    Modality,
    Prediction,
    Sample,
    Task,
    Turn,
)
from clinkd.workflows.answer_warnings import AnswerWarning
from clinkd.workflows.ask import Answer
from clinkd.workflows.review import ReviewedAnswer
from serving import Server, picture, serving_model, uri

STORED = Path(__file__).parent / "serving_replies.json"
BOX = [1 / 3, 0.125, 0.5, 0.4375]
LEFT, RIGHT = Box(0.1, 0.2, 1 / 3, 0.6), Box(0.5, 0.25, 0.75, 1.0)


class ScriptedAnswerer:
    """Gives one answer to every question, with all that an answer may have."""

    names, config, scorer = ("liver", "spleen"), RunConfig(), None

    def read(self, text: str, picture: object = None) -> BoxedText:
        return BoxedText(text)

    def as_seen(self, text: BoxedText, picture: object = None) -> BoxedText:
        return text

    def count_prompt_tokens(self, question: object) -> int:
        return 11

    def stream_answers(self, questions: list[object], how: object) -> Iterator[object]:
        yield lambda: {n: BoxedText("The liver[box].", (LEFT,)) for n in range(len(questions))}
        candidates = (
            Candidate(
                "raw", BoxedText("The liver[box] and[box].", (LEFT, RIGHT)), -0.25, {"clip": 0.125}, ("(1,", "2)")
            ),
            Candidate("other", BoxedText("Näher: no spleen."), None, {}, (), True),
        )
        prediction = Prediction("x", candidates, chosen=0, by="scripted")
        consistency = self_consistency(prediction, [4, 3], self.names)
        warnings = (AnswerWarning("unknown_name", "not a name this model learned: Näher"),)
        meaning = (
            "on 120 validation questions of ROC, answers whose candidates differ so were wrong in 61 % against 18 %"
        )
        uncertain = f"{consistency.why}; {meaning}"
        return [Answer(prediction, consistency, False, 11, 4, warnings, uncertain, 0.8125) for _ in questions]


class ScriptedReview:
    """Two wrong answers, one of them decided."""

    rounds, file, command = [1, 2], Path("corrections-human.jsonl"), "clinkd run small"

    def __init__(self) -> None:
        turn = Turn(Task.VG, BoxedText("Where is the liver at[box]?", (RIGHT,)), BoxedText("Here[box].", (LEFT,)))
        images = (ImageRef("a.png", 96, 64),), (ImageRef("b.png"),)
        samples = [Sample(f"s{n}", image, Modality.CT, (turn,), "g") for n, image in enumerate(images)]
        wrong = [Correction(s.id, 1, BoxedText("No."), s.answer, 0.5, ("similarity", "box")) for s in samples]
        edited = Correction(
            "s0", 1, BoxedText("No."), turn.answer, 0.5, ("box",), BoxedText("At[box].", (RIGHT,)), "human"
        )
        rewrite = Correction("s0", 1, BoxedText("No."), turn.answer, 0.5, ("box",), BoxedText("It is here."), "offline")
        self.reviewed = [ReviewedAnswer(samples[0], rewrite, edited), ReviewedAnswer(samples[1], wrong[1], None)]

    def list_answers(self, round: int) -> list[ReviewedAnswer]:
        return self.reviewed

    def decide(self, id: str, round: int, verdict: str, after: BoxedText | None, seen: object) -> ReviewedAnswer:
        return ReviewedAnswer(
            self.reviewed[0].sample, self.reviewed[0].correction, Correction(id, 1, after, after, 1.0, after=after)
        )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_model(ScriptedAnswerer, ScriptedReview(), seconds=60.0) as server:
        yield server


def conversation(stream: bool = False, **options: object) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": uri(picture())}},
        {"type": "text", "text": f"What is {BOX_MARK}?"},
    ]
    return {"model": "scripted", "stream": stream, "seed": 1, "messages": [{"role": "user", "content": parts}],
            "stream_options": {"include_usage": True}, "clinkd": {"boxes": [BOX]}, **options}  # fmt: skip


def requests() -> dict[str, tuple[str, str, object]]:
    image, wrong = uri(picture()), {"model": "scripted", "messages": []}
    dicom = uri(Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes())
    edit = {"id": "s0", "round": 1, "verdict": "edit", "text": "At [box].", "boxes": [BOX]}
    return {
        "health": ("GET", "/healthz", None),
        "about": ("GET", "/v1/about", None),
        "models": ("GET", "/v1/models", None),
        "picture opened": ("POST", "/v1/open", {"image": image}),
        "DICOM opened": ("POST", "/v1/open", {"image": dicom, "window": "40/400"}),
        "grounded": ("POST", "/v1/ground", {"image": image, "phrase": "spleen"}),
        "referred": ("POST", "/v1/refer", {"image": image, "boxes": [BOX, [0, 0, 1, 1]]}),
        "completed": ("POST", "/v1/chat/completions", conversation()),
        "streamed": ("POST", "/v1/chat/completions", conversation(stream=True)),
        "corrections": ("GET", "/v1/corrections?limit=2", None),
        "decided": ("PUT", "/v1/corrections", edit),
        "refused by the body": ("POST", "/v1/chat/completions", wrong),
        "refused by a value": ("POST", "/v1/refer", {"image": image, "boxes": [[1, 1, 0, 0]]}),
        "missing": ("POST", "/v1/chat/completions", conversation(model="other")),
        "no such route": ("GET", "/nothing", None),
    }


def steady(text: str) -> str:
    """Without what differs each time, and without long images."""
    text = text.replace(f'"version":"{__version__}"', '"version":"VERSION"')
    text = re.sub(r'"(seconds)":0\.\d+|"(seconds)":0.0', '"seconds":0', text)
    text = re.sub(r'"created":\d+', '"created":0', text)
    text = re.sub(r"chatcmpl-[0-9a-f]{32}", "chatcmpl-ID", text)
    return re.sub(r'"(picture|values)":"[^"]+"', r'"\1":"LONG"', text)


def replies(server: Server) -> dict[str, list[object]]:
    received = {}
    for name, (method, path, body) in requests().items():
        reply = server.client.request(method, path, json=body) if body else server.client.request(method, path)
        received[name] = [reply.status_code, reply.headers["content-type"], steady(reply.text)]
    stranger = httpx2.get(server.url + "/v1/about")
    received["no token"] = [stranger.status_code, stranger.headers["content-type"], stranger.text]
    return received


def test_every_reply_is_the_stored_one_byte_by_byte(server: Server) -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    received = replies(server)
    assert list(received) == list(stored)
    for name, reply in received.items():
        assert reply == stored[name], name

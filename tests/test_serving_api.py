"""The API over real sockets: what it answers, what it refuses, and who may ask."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from benchmarks.patience import patience
from openai import BadRequestError, OpenAI
from PIL import Image, PngImagePlugin
from pydicom.data import get_testdata_file

from clinkd.data.images import KINDS, medical_names
from clinkd.records import BOX_MARK, Box, BoxedText, Modality
from clinkd.serving.access import CSP
from clinkd.serving.asking import WORDINGS
from clinkd.serving.limits import NOTICE
from clinkd.workflows.ask import Question
from serving import LIMITS, TOKEN, Server, json_of, picture, serving, uri

BOX = [0.25, 0.125, 0.5, 0.4375]


@pytest.fixture(scope="module")
def server(small_run: Path) -> Iterator[Server]:
    with serving(small_run) as found:
        yield found


def asked(server: Server, text: str, *boxes: list[float], image: str | None = None, **more: object) -> httpx2.Response:
    parts = [{"type": "image_url", "image_url": {"url": image or uri(picture())}}, {"type": "text", "text": text}]
    extension = {"clinkd": {"boxes": list(boxes)}} if boxes else {}
    messages = [{"role": "user", "content": parts}]
    return server.post("/v1/chat/completions", model="small", messages=messages, **extension, **more)


def said(response: httpx2.Response) -> str:
    """The line of a refusal."""
    assert response.headers["content-type"] == "application/json"
    message = response.json()["error"]["message"]
    assert "\n" not in message and "/" + "tmp" not in message and "Traceback" not in message
    return message


# ---- the door -------------------------------------------------------------------------------------------------------


def routes(server: Server) -> list[tuple[str, str]]:
    from clinkd.serving.app import create

    found = [(m, r.path) for r in create(server.served).routes for m in sorted(r.methods)]
    assert {path for _, path in found} == {
        "/healthz", "/", "/assets/{name}", "/report", "/v1/about", "/v1/open", "/v1/values", "/v1/series", "/v1/ground",
        "/v1/refer", "/v1/sr", "/v1/models", "/v1/chat/completions", "/v1/corrections", "/v1/corrections/image",
        "/openapi.json",
    }  # fmt: skip
    return found


def test_every_route_but_one_wants_the_token(server):
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"cookie": f"clinkd=x{TOKEN}"},
                    {"authorization": "Bearer wrong", "cookie": f"clinkd={TOKEN}"}, {"cookie": "=;;a b"}):  # fmt: skip
        with httpx2.Client(base_url=server.url, headers=headers) as client:
            for method, path in [*routes(server), ("GET", "/nothing"), ("POST", "/nothing"), ("GET", "/docs")]:
                status = client.request(method, path).status_code
                assert status == (200 if path == "/healthz" else 401), (method, path, headers)
            assert client.get("/?token=wrong").status_code == 401
            assert client.post(f"/?token={TOKEN}").status_code == 401
            assert client.get(f"/v1/about?token={TOKEN}").status_code == 401
    told = httpx2.get(server.url + "/v1/about")
    assert told.headers["www-authenticate"] == "Bearer" and told.json()["error"]["code"] == "token"


def test_the_printed_address_leaves_a_cookie_that_the_page_lives_on(server):
    with httpx2.Client(base_url=server.url) as browser:
        told = browser.get(f"/?token={TOKEN}")
        assert told.status_code == 303 and told.headers["location"] == "/"
        cookie = told.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert browser.get("/").status_code == 200  # the client kept it
        own = {"origin": server.url}
        body = {"image": uri(picture())}
        assert browser.post("/v1/open", json=body, headers=own).status_code == 200
        for origin in ({}, {"origin": "http://127.0.0.1:1"}, {"origin": "null"}, {"origin": "https://evil.example"}):
            refused = browser.post("/v1/open", json=body, headers=origin)
            assert refused.status_code == 403 and refused.json()["error"]["code"] == "origin"
    asks = httpx2.get(server.url, headers={"accept": "text/html"})
    assert asks.status_code == 401 and "<form" in asks.text and NOTICE in asks.text


def test_every_reply_has_the_headers_of_the_house(server):
    for path in ("/", "/healthz", "/v1/about", "/nothing"):
        found = server.client.get(path).headers
        assert found["content-security-policy"] == CSP and found["cache-control"] == "no-store"
        assert found["x-content-type-options"] == "nosniff" and found["x-frame-options"] == "DENY"
        assert "server" not in found and "access-control-allow-origin" not in found
    assert "unsafe" not in CSP and "http" not in CSP


def test_a_visit_is_noted_without_path_query_or_words(server, capfd):
    secret = "Zqxwvogel"
    server.client.get(f"/assets/{secret}?q={secret}")
    server.client.get(f"/{secret}")
    asked(server, f"Where is the {secret}?")
    asked(server, secret, [0, 0, 0, 0])
    server.client.request("Q" + secret, "/")
    server.post("/v1/ground", image=f"data:image/png;base64,{secret}", phrase=secret)
    told = capfd.readouterr().err
    assert secret not in told and "127.0.0.1" not in told
    assert re.search(r"^\S+Z GET /assets/\{name\} 404 \d+ ms, 0 bytes in, \d+ out$", told, re.M)
    assert "POST /v1/chat/completions 200" in told and "GET - 404" in told


# ---- answers --------------------------------------------------------------------------------------------------------


def test_a_reply_says_what_is_not_known(server, monkeypatch):
    answerer = server.engine.answerer
    monkeypatch.setattr(answerer, "knowledge", answerer.knowledge._replace(modalities=frozenset({Modality.MR})))
    film = uri(Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes())
    parts = [{"type": "image_url", "image_url": {"url": film}}, {"type": "text", "text": "Where is the zygoma?"}]
    body = {"model": "small", "messages": [{"role": "user", "content": parts}]}
    chat = server.ask("/v1/chat/completions", **body)["clinkd"]
    grounded = server.ask("/v1/ground", image=film, phrase="zygoma")
    for reply in (chat, grounded):
        kinds = [w["kind"] for w in reply["warnings"]]
        assert kinds[-2:] == ["unknown_name", "unseen_modality"] and ("no_box" in kinds) is not bool(reply["boxes"])
    plain = server.ask("/v1/ground", image=uri(picture()), phrase="liver")
    assert not {"unknown_name", "unseen_modality"} & {w["kind"] for w in plain["warnings"]}


def test_the_official_client_asks_and_gets_what_the_run_answers(server):
    client = OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0)
    assert [m.id for m in client.models.list().data] == ["small"]
    image, text = picture(seed=3), "Where is the liver in the image?"
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": uri(image)}}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    found = client.chat.completions.create(model="small", messages=messages, temperature=0.2, seed=1)
    answerer = server.engine.answerer
    [wanted] = answerer.answers([Question.of(image, BoxedText(text))])
    assert found.choices[0].message.content == wanted.prediction.answer.raw
    assert found.choices[0].finish_reason == ("length" if wanted.prediction.answer.truncated else "stop")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (wanted.prompt_tokens, wanted.answer_tokens)
    more = found.model_extra["clinkd"]
    assert more["ignored"] == ["temperature", "seed", "system message"] and more["notice"] == NOTICE
    assert [c["text"] for c in more["candidates"]] == [c.answer.text for c in wanted.prediction.candidates]
    assert [c["scores"] for c in more["candidates"]] == [c.scores for c in wanted.prediction.candidates]
    assert [c["chosen"] for c in more["candidates"]].index(True) == wanted.prediction.chosen
    assert more["support"] == wanted.self_consistency.value
    assert sum(c["weight"] for c in more["candidates"]) == pytest.approx(1)

    chunks = list(client.chat.completions.create(model="small", messages=messages, stream=True,
                                                 stream_options={"include_usage": True}))  # fmt: skip
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == wanted.prediction.answer.raw
    *_, last, usage = chunks
    assert last.choices[0].finish_reason and last.model_extra["clinkd"]["text"] == more["text"]
    assert usage.usage.total_tokens == found.usage.total_tokens
    drafts = [c.model_extra["clinkd"]["draft"]["text"] for c in chunks[:-2] if "clinkd" in (c.model_extra or {})]
    assert drafts and all(not c.choices[0].delta.content for c in chunks[1 : 1 + len(drafts)])
    with pytest.raises(BadRequestError, match="no other address is opened"):
        url = {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": [url]}])
    client.close()


def test_boxes_go_in_typed_or_spelled_and_come_back_as_the_model_read_them(server):
    codec = server.engine.answerer.model.codec
    typed = json_of(asked(server, f"What does the region {BOX_MARK} show?", BOX))["clinkd"]
    spelled = codec.encode(BoxedText(BOX_MARK, (Box(*BOX),)))
    written = json_of(asked(server, f"What does the region {spelled} show?"))["clinkd"]
    assert typed["asked"] == written["asked"] and typed["text"] == written["text"]
    [read] = typed["asked"]
    assert all(abs(a - b) <= codec.steps()[0] / 2 + 1e-9 for a, b in zip(read["box"], BOX, strict=True))
    assert read["pixels"] == pytest.approx([96 * v for v in read["box"]])


def test_ground_and_refer_are_the_same_questions_in_other_words(server):
    image = uri(picture(seed=5))
    ground = server.ask("/v1/ground", image=image, phrase="the {liver}")
    plain = json_of(asked(server, WORDINGS["where"].replace("{name}", "the {liver}"), image=image))["clinkd"]
    pixels = server.ask("/v1/refer", image=image, boxes=[[v * 96 for v in BOX]], unit="pixel", task="describe")
    marked = json_of(asked(server, WORDINGS["describe"], BOX, image=image))["clinkd"]
    for one, other in ((ground, plain), (pixels, marked)):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


def test_a_conversation_keeps_what_was_said(server):
    image = {"type": "image_url", "image_url": {"url": uri(picture())}}
    first = {"role": "user", "content": [image, {"type": "text", "text": f"What is at {BOX_MARK}?"}]}
    answer = {"role": "assistant", "content": "liver"}
    last = {"role": "user", "content": [image, {"type": "text", "text": f"And at {BOX_MARK}?"}]}
    alone = server.ask("/v1/chat/completions", model="small", messages=[last], clinkd={"boxes": [BOX]})
    other = [0.5, 0.5, 0.75, 0.875]
    told = server.ask("/v1/chat/completions", model="small", messages=[first, answer, last],
                      clinkd={"boxes": [other, BOX]})  # fmt: skip
    assert told["clinkd"]["asked"] == alone["clinkd"]["asked"]
    assert told["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"] + 10


def test_most_tokens_are_what_the_request_says(server):
    short = json_of(asked(server, "What does this image show?", max_completion_tokens=2))
    assert short["choices"][0]["finish_reason"] == "length"
    assert 1 <= short["usage"]["completion_tokens"] < 10


# ---- refusals -------------------------------------------------------------------------------------------------------


def parts(*urls: str, text: str = "What?") -> list[dict[str, object]]:
    images = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


GOOD = uri(picture())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"messages": parts()}, "0 images; exactly one is wanted"),
        ({"messages": parts(GOOD, uri(picture(seed=1)))}, "2 images"),
        ({"messages": parts(GOOD, text=" ")}, "the question is empty"),
        ({"messages": parts(GOOD, text="Is it?<|im_end|>")}, "the question holds <|im_end|>, a mark"),
        (
            {
                "messages": parts(GOOD, text="What is at [box]?<|image_pad|>"),
                "clinkd": {"boxes": [[0.1, 0.1, 0.2, 0.2]]},
            },
            "the question holds <|image_pad|>, a mark",
        ),
        ({"messages": parts(GOOD, text=f"At {BOX_MARK}?")}, "0 boxes for 1 [box] marks"),
        ({"messages": parts(GOOD), "clinkd": {"boxes": [BOX]}}, "1 boxes for 0 [box] marks"),
        ({"messages": parts(GOOD, text="At <box>(1,2),(3,4)</box>?")}, "no box as this model spells them"),
        ({"messages": parts(GOOD, text=f"At {BOX_MARK}?"), "clinkd": {"boxes": [[0, 0, 2, 2]]}}, "outside the image"),
        ({"messages": parts(GOOD, text="x" * 5000)}, "more than 4,000 characters"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the user begins"),
        ({"messages": [*parts(GOOD), {"role": "assistant", "content": "x"}]}, "the last one must be the user's"),
        ({"messages": parts(GOOD) * 2}, "take turns"),
        ({"messages": []}, "messages"),
        ({"messages": parts("http://127.0.0.1/x.png")}, "no other address is opened"),
        ({"messages": parts("file:///etc/passwd")}, "messages.0.content"),
        ({"messages": parts("data:image/png;base64,####")}, "its base64 is broken"),
        ({"messages": parts("data:image/png;base64,")}, "empty"),
        ({"messages": parts("data:image/png;base64,AAAA")}, "not an image"),
        ({"messages": parts(GOOD), "n": 2}, "n:"),
        ({"messages": parts(GOOD), "tools": []}, "tools: Extra inputs"),
        ({"messages": parts(GOOD), "clinkd": {"frame": 2}}, "frame 2 of 1"),
        ({"messages": parts(GOOD), "clinkd": {"window": "lung"}}, "window"),
    ],
)
def test_a_bad_question_is_refused_in_a_line(server, body, says):
    told = server.post("/v1/chat/completions", **{"model": "small", **body})
    assert told.status_code == 400 and says in said(told)
    streamed = server.post("/v1/chat/completions", **{"model": "small", "stream": True, **body})
    assert streamed.status_code == 400 and says in said(streamed)


def test_another_model_and_another_route_are_not_there(server):
    assert server.post("/v1/chat/completions", model="gpt-4o", messages=parts(GOOD)).status_code == 404
    for path in ("/nothing", "/assets/nothing", "/assets/..%2fapp.py", "/v1/completions", "/docs", "/redoc"):
        told = server.client.get(path)
        assert told.status_code == 404 and said(told)
    assert server.client.delete("/v1/models").status_code == 405


def test_a_long_text_in_place_of_a_data_uri_is_refused_at_once(server):
    start = time.monotonic()
    assert "not a data URI" in said(server.post("/v1/open", image="data:" + "a" * 200_000))
    assert time.monotonic() - start < patience(5)  # with two open repetitions of a letter it took minutes


def test_bodies_have_a_cap_whether_they_say_their_length_or_not(server):
    large = b'{"image": "' + b"A" * LIMITS.body_bytes + b'"}'
    for content in (large, iter([large[:1000], large[1000:]])):
        told = server.client.post("/v1/open", content=content, headers={"content-type": "application/json"})
        assert told.status_code == 413 and "more than 4,194,304 bytes" in said(told)
    for size in (LIMITS.body_bytes + 1, LIMITS.body_bytes * 3 // 2):  # who is refused is told, and can go on
        for headers in ({}, {"authorization": "Bearer wrong"}):
            told = server.client.post("/v1/open", content=b"x" * size, headers=headers)
            assert told.status_code == (401 if headers else 413) and said(told)
    assert server.client.get("/healthz").status_code == 200


def bomb(side: int) -> bytes:
    made = io.BytesIO()
    Image.new("1", (side, side)).save(made, "PNG")
    return made.getvalue()


def test_bombs_are_refused_before_they_are_decoded(server):
    told = PngImagePlugin.PngInfo()
    told.add_text("a", "x" * (80 << 20), zip=True)
    texts = io.BytesIO()
    Image.new("L", (8, 8)).save(texts, "PNG", pnginfo=told)
    deflated = Path(get_testdata_file("image_dfl.dcm", download=False)).read_bytes()
    for content, says in ((bomb(9000), "pixels"), (texts.getvalue(), ""), (deflated, "deflate")):
        refused = server.post("/v1/open", image=uri(content))
        assert refused.status_code == 400 and says in said(refused)
    assert server.post("/v1/open", image=GOOD).status_code == 200


def test_nothing_is_ever_fetched(server, monkeypatch):
    """The whole conversation goes over the one socket that the client opened."""
    calls = []
    own = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda *given: calls.append(given[1]) or own(*given))
    for url in ("http://127.0.0.1:9/a.png", "https://example.org/a.png", "ftp://x/y", "//x/y", "data:text/html,x"):
        assert server.post("/v1/ground", image=url, phrase="x").status_code == 400
        assert server.post("/v1/open", image=url).status_code == 400
        assert server.post("/v1/chat/completions", model="small", messages=parts(url)).status_code == 400
    assert set(calls) <= {("127.0.0.1", server.port)}


# ---- images ---------------------------------------------------------------------------------------------------------


def test_a_dicom_is_shown_as_the_model_sees_it_and_its_values_go_along(server):
    content = Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes()
    for window in (None, "40/400", "lung", "full"):
        more = {"window": window} if window else {}
        told = server.ask("/v1/open", image=uri(content, "application/dicom"), **more)
        assert told["dicom"] and told["modality"] == "ct" and told["hounsfield"]
        values = np.frombuffer(base64.b64decode(told["grey"]["values"]), told["grey"]["type"])
        values = values.reshape(told["height"], told["width"])
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["picture"].partition(",")[2]))))
        centre, width = told["window"]
        wanted = np.clip((values - (centre - width / 2)) / width, 0, 1) * 255
        assert np.abs(shown[..., 0] - wanted).max() <= 1
    plain = server.ask("/v1/open", image=GOOD)
    assert plain["grey"] is None and plain["window"] is None and not plain["dicom"]


def test_a_window_is_what_the_model_gets(server):
    content = uri(Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes(), "application/dicom")
    one, other = (json_of(asked(server, "What does this image show?", image=content))["clinkd"],
                  server.ask("/v1/chat/completions", model="small", clinkd={"window": "bone"},
                             messages=parts(content, text="What does this image show?"))["clinkd"])  # fmt: skip
    assert one["image"] == other["image"] == {"width": 128, "height": 128}
    assert one["candidates"] != other["candidates"]


# ---- the description ------------------------------------------------------------------------------------------------


def test_the_description_names_every_route_of_the_api_and_its_refusals(server):
    described = json_of(server.client.get("/openapi.json"))
    wanted = {path for _, path in routes(server) if path.startswith("/v1") or path == "/healthz"}
    assert set(described["paths"]) == wanted
    for path, methods in described["paths"].items():
        for method, found in methods.items():
            assert {"200", "400", "401", "413", "429", "500", "503", "504"} <= set(found["responses"]), (method, path)
            assert found.get("summary") and found.get("description"), (method, path)
    assert NOTICE in described["info"]["description"]


def test_the_page_and_the_description_name_the_formats_of_every_kind_of_image(server):
    page, described = server.client.get("/").text, server.client.get("/openapi.json").text
    picker = re.search(r'accept="([^"]*)"', page)
    assert picker and "{{" not in page
    assert sorted(picker[1].split(",")) == sorted(entry for kind in KINDS for entry in kind.accept)
    for name in (name for kind in KINDS for name in kind.formats):
        assert re.search(rf"\b{name}\b", page) and re.search(rf"\b{name}\b", described)
    assert f"the values of a {medical_names()} become grey" in described


def test_sixteen_at_once_get_what_each_would_get_alone(server):
    images = [uri(picture(seed=n)) for n in range(16)]
    alone = [server.ask("/v1/ground", image=i, phrase="liver") for i in images]

    async def together() -> list[dict[str, object]]:
        async with httpx2.AsyncClient(
            base_url=server.url, headers=server.client.headers, timeout=patience(60)
        ) as client:
            asked = [client.post("/v1/ground", json={"image": i, "phrase": "liver"}) for i in images]
            return [json_of(r) for r in await asyncio.gather(*asked)]

    for one, other in zip(alone, asyncio.run(together()), strict=True):
        assert [c["text"] for c in one["candidates"]] == [c["text"] for c in other["candidates"]]
        assert one["support"] == pytest.approx(other["support"], abs=1e-4)


def test_what_a_client_reads_is_json_without_surprises(server):
    for value in ("NaN", "Infinity", "1e999"):
        body = f'{{"image": {json.dumps(GOOD)}, "boxes": [[0, 0, 1, {value}]]}}'
        told = server.client.post("/v1/refer", content=body, headers={"content-type": "application/json"})
        assert told.status_code == 400 and said(told)

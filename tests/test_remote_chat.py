"""Calls to a chat API over real sockets: made once, paid once, never repeated in words, never beyond the budget."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import json
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from chat_api import INPUT_PRICE, OUTPUT_PRICE, Answer, Call, ChatApi, completion, serving
from clinkd.config import ChatConfig
from clinkd.records import BadInput
from clinkd.remote import Chat, Journal, OverBudget, encode_body, make_client

SCHEMA = {"type": "object"}
SECRET = "zebra-quagga-okapi"


@pytest.fixture(scope="module")
def server() -> Iterator[ChatApi]:
    with serving(ChatApi()) as api:
        yield api


@pytest.fixture
def api(server: ChatApi) -> ChatApi:
    server.calls, server.charged, server.seconds = [], 0, 0.0
    server.script = lambda call: "yes"
    return server


def config(api: ChatApi, **more: Any) -> ChatConfig:
    plain = {
        "base_url": api.url, "model": "m", "input_price": INPUT_PRICE, "output_price": OUTPUT_PRICE, "budget": 10.0,
        "attempts": 3, "max_tokens": 50, "timeout_seconds": 5.0,
    }  # fmt: skip
    return ChatConfig.model_validate({**plain, **more})


def asked(chat: Chat, *texts: str) -> list[dict[str, Any]]:
    return [chat.body([{"role": "user", "content": text}], SCHEMA) for text in texts]


def talk(api: ChatApi, folder: Path, *texts: str, **more: Any) -> tuple[list[Any], Any]:
    with Journal(folder / "j.sqlite") as journal:
        chat = Chat(config(api, **more), journal)
        return list(chat.replies(asked(chat, *texts))), journal.ledger()


def at_first(*answers: Answer) -> Callable[[Call], Answer]:
    """These in turn, then "yes"."""
    left = list(answers)
    return lambda call: left.pop(0) if left else "yes"


def no(status: int, code: str = "", **headers: str) -> JSONResponse:
    error = {"error": {"message": f"you sent {SECRET}", "type": "x", "code": code or None}}
    return JSONResponse(error, status, headers)


def test_replies_come_in_order_and_cost_what_the_server_counts(api: ChatApi, tmp_path: Path) -> None:
    api.script = lambda call: call.body["messages"][0]["content"].upper()
    texts = [f"text {n}" for n in range(20)]
    replies, ledger = talk(api, tmp_path, *texts, concurrency=5)
    assert [r.texts for r in replies] == [(t.upper(),) for t in texts]
    assert ledger.spent == api.charged > 0 and ledger.reserved == 0
    assert all(c.headers["x-stainless-retry-count"] == "0" for c in api.calls)


def test_the_bytes_that_leave_are_those_that_a_dry_run_tells(api: ChatApi, tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        chat = Chat(config(api, candidates=2), journal)
        bodies = asked(chat, "é \u2028 <b> \U0001f600", "plain")
        assert [encode_body(b) for b in chat.unpaid_bodies(bodies)] == [encode_body(b) for b in bodies]
        assert not api.calls
        list(chat.replies(bodies))
        assert sorted(c.raw for c in api.calls) == sorted(map(encode_body, bodies))
        assert chat.unpaid_bodies(bodies) == []


def test_what_was_paid_for_is_not_paid_for_again(api: ChatApi, tmp_path: Path) -> None:
    talk(api, tmp_path, "a", "b", "a")
    replies, _ = talk(api, tmp_path, "a", "b", "c")
    assert len(api.calls) == 3 and all(r.texts == ("yes",) for r in replies)
    talk(api, tmp_path, "a", temperature=0.1)  # another parameter is another call
    assert len(api.calls) == 4


PAST = "Mon, 01 Jan 1990 00:00:00 GMT"


@pytest.mark.parametrize("as_date", [False, True])
def test_a_rate_limit_is_waited_for_as_long_as_it_says(api: ChatApi, tmp_path: Path, as_date: bool) -> None:
    value = email.utils.formatdate(time.time() + 3, usegmt=True) if as_date else "1.2"
    api.script = at_first(no(429, **{"Retry-After": value}))
    replies, ledger = talk(api, tmp_path, *map(str, range(6)), concurrency=1)
    assert all(r.texts for r in replies) and len(api.calls) == 7
    assert api.calls[1].at - api.calls[0].at > (1.5 if as_date else 1.19)
    assert ledger.spent == api.charged


def test_a_rate_limit_holds_for_all_threads(api: ChatApi, tmp_path: Path) -> None:
    api.script = at_first(*[no(429, **{"Retry-After": "1"})] * 2)
    talk(api, tmp_path, *map(str, range(8)), concurrency=2)
    told = api.calls[1].at
    assert not [c for c in api.calls[2:] if c.at < told + 0.95]


@pytest.mark.parametrize("value", ["0", *(pytest.param(v, marks=pytest.mark.slow) for v in (PAST, "-5", "soon"))])
def test_a_wait_of_nothing_does_not_use_up_all_attempts_at_once(api: ChatApi, tmp_path: Path, value: str) -> None:
    api.script = at_first(*[no(429, **{"Retry-After": value})] * 2)
    assert talk(api, tmp_path, "a")[0][0].texts == ("yes",)
    assert api.calls[1].at - api.calls[0].at >= 0.25 and api.calls[2].at - api.calls[1].at >= 0.5


@pytest.mark.parametrize(
    ("value", "told"),
    [("86400", "86,400 s"), ("99999999999", "99,999,999,999 s"), ("9" * 400, "inf s"),
     ("Fri, 31 Dec 9999 23:59:59 GMT", r"\d{3},\d{3},\d{3},\d{3} s")],
)  # fmt: skip
def test_too_long_a_wait_stops_the_run(api: ChatApi, tmp_path: Path, value: str, told: str) -> None:
    api.script = at_first(no(429, **{"Retry-After": value}))
    with pytest.raises(BadInput, match=f"left alone for {told}"):
        talk(api, tmp_path, "a")
    assert len(api.calls) == 1


@pytest.mark.parametrize("status", [500, *(pytest.param(n, marks=pytest.mark.slow) for n in (503, 408))])
def test_a_server_error_is_tried_again_and_then_stops_with_nothing_lost(
    api: ChatApi, tmp_path: Path, status: int
) -> None:
    api.script = at_first(no(status), no(status))
    assert talk(api, tmp_path, "a")[0][0].texts == ("yes",)
    api.script = lambda call: no(status)
    with pytest.raises(BadInput, match=f"HTTP {status}, 3 times; what came back is kept"):
        talk(api, tmp_path, "a", "b", concurrency=1)
    api.script = lambda call: "now"
    assert [r.texts for r in talk(api, tmp_path, "a", "b")[0]] == [("yes",), ("now",)]


@pytest.mark.parametrize("how", ["drop", "cut"])
def test_a_lost_answer_is_paid_for_twice_or_left_as_the_knob_says(api: ChatApi, tmp_path: Path, how: str) -> None:
    api.script = at_first(how)
    replies, ledger = talk(api, tmp_path, "a")
    assert replies[0].texts == ("yes",) and len(api.calls) == 2 and api.repeats == 1
    assert ledger.spent >= api.charged and ledger.reserved == 0
    api.script = at_first(how)
    replies, ledger = talk(api, tmp_path, "b", "c", on_unknown="skip", concurrency=1)
    assert replies[0].texts == () and "lost" in replies[0].why and replies[1].texts == ("yes",)
    assert ledger.states == {"done": 2, "unknown": 1} and ledger.spent >= api.charged
    calls = len(api.calls)
    assert talk(api, tmp_path, "b", on_unknown="skip")[0][0].texts == () and len(api.calls) == calls


def test_a_server_that_is_too_slow_is_a_lost_answer(api: ChatApi, tmp_path: Path) -> None:
    api.seconds = 1.0
    replies, ledger = talk(api, tmp_path, "a", on_unknown="skip", timeout_seconds=0.3)
    assert "lost" in replies[0].why and ledger.spent >= api.charged > 0


def dripping(seconds: float) -> StreamingResponse:
    """A blank every tenth of a second, then a good answer: no single read is too slow."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(round(seconds * 10)):
            yield b" "
            await asyncio.sleep(0.1)
        yield json.dumps(completion(["yes"], None)).encode()

    return StreamingResponse(body(), media_type="application/json")


def test_an_answer_that_drips_takes_no_longer_than_a_call_may(api: ChatApi, tmp_path: Path) -> None:
    api.script = lambda call: dripping(0.5)
    assert talk(api, tmp_path, "a", timeout_seconds=5)[0][0].texts == ("yes",)
    api.script = lambda call: dripping(30)
    since = time.monotonic()
    replies, ledger = talk(api, tmp_path, "b", on_unknown="skip", timeout_seconds=1)
    assert "lost" in replies[0].why and time.monotonic() - since < 5 and ledger.states == {"done": 1, "unknown": 1}


@pytest.mark.parametrize("packed", [True, False])
def test_an_answer_beyond_all_measure_is_a_lost_one(api: ChatApi, tmp_path: Path, packed: bool) -> None:
    good = json.dumps(completion(["yes"], None)).encode()
    headers = {"Content-Encoding": "gzip"} if packed else {}

    def answer(blanks: int) -> Response:
        body = b" " * blanks + good
        return Response(gzip.compress(body) if packed else body, 200, headers, "application/json")

    api.script = lambda call: answer(100)
    assert talk(api, tmp_path, "a")[0][0].texts == ("yes",)
    assert api.calls[0].headers["accept-encoding"] == "identity"
    api.script = lambda call: answer(60_000_000)
    replies, _ = talk(api, tmp_path, "b", on_unknown="skip")
    assert "lost" in replies[0].why


def test_nobody_there_costs_nothing(api: ChatApi, tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        chat = Chat(config(api, base_url="http://127.0.0.1:9/v1", attempts=2), journal)
        with pytest.raises(BadInput, match=r"http://127.0.0.1:9 cannot be reached, 2 times"):
            list(chat.replies(asked(chat, "a")))
        assert journal.ledger().spent == 0 and journal.state is not None


def test_the_budget_is_never_passed_and_may_be_raised(api: ChatApi, tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(40)]
    with Journal(tmp_path / "j.sqlite") as journal:
        one = Chat(config(api), journal).maximum_cost(asked(Chat(config(api), journal), "text 10")[0])
    budget = 1.3 * one / 1e9
    with pytest.raises(OverBudget, match=r"reflect.chat.budget: .* US dollars are spent .*; raise it"):
        talk(api, tmp_path, *texts, budget=budget, concurrency=4)
    with Journal(tmp_path / "j.sqlite") as journal:
        found = journal.ledger()
    assert 0 < api.charged <= found.spent <= budget * 1e9 and 2 <= found.states["done"] < 40
    assert len(talk(api, tmp_path, *texts, budget=1.0)[0]) == 40 and api.repeats == 0


@pytest.mark.parametrize(("status", "code"), [(401, ""), (404, "model_not_found"), (429, "insufficient_quota")])
def test_what_no_second_call_can_mend_stops_at_once(api: ChatApi, tmp_path: Path, status: int, code: str) -> None:
    api.script = lambda call: no(status, code)
    with pytest.raises(BadInput, match=f"HTTP {status}.*check base_url, model and the key"):
        talk(api, tmp_path, "a", "b", "c", concurrency=1)
    assert len(api.calls) == 1


def test_a_call_refused_for_what_it_holds_is_one_row_unless_it_is_the_first(api: ChatApi, tmp_path: Path) -> None:
    api.script = lambda call: no(400)
    with pytest.raises(BadInput, match="replies_as=schema"):
        talk(api, tmp_path, "a")
    api.script = lambda call: no(400) if "bad" in call.user else "yes"
    replies, _ = talk(api, tmp_path, "a", "bad", "b", concurrency=1)
    assert replies[1].why == "refused by the server (HTTP 400)" and replies[2].texts == ("yes",)


@pytest.mark.parametrize("end", ["length", "content_filter"])
def test_a_reply_that_is_not_whole_is_none(api: ChatApi, tmp_path: Path, end: str) -> None:
    api.script = lambda call: completion(["half an ans"], {"prompt_tokens": 5, "completion_tokens": 3}, end)
    replies, ledger = talk(api, tmp_path, "a")
    assert replies[0].texts == () and end in replies[0].why and ledger.states == {"done": 1}


def test_a_server_that_counts_nothing_is_taken_at_the_most(api: ChatApi, tmp_path: Path) -> None:
    api.script = lambda call: completion(["yes"], None)
    with Journal(tmp_path / "j.sqlite") as journal:
        chat = Chat(config(api), journal)
        bodies = asked(chat, "a")
        list(chat.replies(bodies))
        assert journal.ledger().spent == chat.maximum_cost(bodies[0])


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -5000, "completion_tokens": -3}, {"prompt_tokens": "5", "completion_tokens": "3"},
        {"prompt_tokens": 10**30, "completion_tokens": 3}, {"prompt_tokens": None, "completion_tokens": 3},
        {"prompt_tokens": 5}, {"prompt_tokens": 0.5, "completion_tokens": 3}, {},
        {"prompt_tokens": True, "completion_tokens": False}, [1, 2], "many",
    ],
)  # fmt: skip
def test_a_count_that_cannot_be_is_none_and_the_reply_is_kept(api: ChatApi, tmp_path: Path, usage: Any) -> None:
    api.script = lambda call: completion(["yes"], usage)
    with Journal(tmp_path / "j.sqlite") as journal:
        chat = Chat(config(api), journal)
        bodies = asked(chat, "a")
        assert [r.texts for r in chat.replies(bodies)] == [("yes",)]
        assert journal.ledger().spent == chat.maximum_cost(bodies[0]) and journal.ledger().reserved == 0


def test_thoughts_that_are_counted_in_the_total_alone_are_paid_for(api: ChatApi, tmp_path: Path) -> None:
    api.script = lambda call: completion(
        ["yes"], {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 5 + 1 + 30}
    )
    assert talk(api, tmp_path, "a")[1].spent == round((5 * INPUT_PRICE + 31 * OUTPUT_PRICE) * 1000)


@pytest.mark.parametrize("content", [[{"type": "text", "text": "yes"}], 5, {"a": 1}, True, None, ""])
def test_a_reply_that_is_no_text_is_none(api: ChatApi, tmp_path: Path, content: Any) -> None:
    api.script = lambda call: completion([content], None)
    for _ in range(2):  # from the server, and from the journal
        replies, _ = talk(api, tmp_path, "a")
        assert replies[0].texts == () and replies[0].why == "an empty reply"
    assert len(api.calls) == 1


def test_a_picture_of_few_bytes_may_cost_as_many_tokens_as_a_large_one(api: ChatApi, tmp_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    api.script = lambda call: completion(["yes"], {"prompt_tokens": 48_169 + 30, "completion_tokens": 50})
    with Journal(tmp_path / "j.sqlite") as journal:
        chat = Chat(config(api, budget=0.05), journal)  # less than the call costs
        body = chat.body([{"role": "user", "content": [{"type": "text", "text": "a"}, picture]}], SCHEMA)
        with pytest.raises(OverBudget):
            list(chat.replies([body]))
        chat = Chat(config(api, budget=0.2), journal)
        list(chat.replies([body]))
        assert journal.ledger().spent <= chat.maximum_cost(body)


def test_a_redirect_is_not_followed(api: ChatApi, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        talk(api, tmp_path, "a", base_url=api.url.replace("/v1", "/moved"), attempts=1)
    assert len(api.calls) == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://api.example.org/v1", "in the clear"),
        ("http://8.8.8.8/v1", "in the clear"),
        ("ftp://127.0.0.1/v1", "an address such as"),
        ("api.openai.com", "an address such as"),
        ("https://me:secret@api.example.org/v1", "an address such as"),
        ("https://api.example.org/v1?key=secret", "an address such as"),
        ("https://:secret@api.example.org/v1", "an address such as"),
        ("http://127.0.0.1\n/v1", "an address such as"),
        ("http://134744072/v1", "in the clear"),  # 8.8.8.8, as resolvers take it
        ("http://0x08080808/v1", "in the clear"),
        ("http://[::1", "an address such as"),
        ("https://api.example.org/v1", "NO_SUCH_KEY: not set"),
    ],
)
def test_an_address_that_may_not_be_used_is_refused(api: ChatApi, url: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as told:
        make_client(config(api, base_url=url, key_variable="NO_SUCH_KEY"))
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("key", ["sk-secr\u00e9t", "sk-sec\nret", "sk-secret\u200b"])
def test_a_key_that_cannot_be_sent_is_refused_before_any_call(
    api: ChatApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(BadInput, match="OPENAI_API_KEY: holds a character that no key has") as told:
        talk(api, tmp_path, "a")
    assert "sk-" not in str(told.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "192.168.1.9", "10.0.0.3", "gpu01", "gpu.lan", "[::1]"])
def test_places_in_the_house_may_be_talked_to_in_the_clear(api: ChatApi, host: str) -> None:
    make_client(config(api, base_url=f"http://{host}:8000/v1"))


def test_no_proxy_sees_what_is_not_encrypted(api: ChatApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert talk(api, tmp_path, "a")[0][0].texts == ("yes",)


def test_neither_key_nor_text_stands_in_errors_logs_or_the_journal(
    api: ChatApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hushhush")
    caplog.set_level(logging.DEBUG)
    told = []
    for script in (no(500), no(400), no(401), no(422, "you_sent"), "drop", "cut", no(418), no(504)):
        api.script = lambda call, script=script: script
        try:
            talk(api, tmp_path, SECRET, attempts=1)
        except BadInput as error:
            told.append("".join(traceback.format_exception(error)))
            assert "openai." not in told[-1]
    api.script = lambda call: "yes"
    talk(api, tmp_path, SECRET)
    assert len(told) == 8 and api.calls[0].headers["authorization"] == "Bearer sk-hushhush"
    kept = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    for secret in (SECRET, "sk-hushhush"):
        assert secret not in " ".join(told) and secret not in caplog.text and secret.encode() not in kept


@pytest.mark.parametrize(("as_", "wanted"), [("schema", "json_schema"), ("object", "json_object"), ("text", None)])
def test_json_is_demanded_as_the_server_can(api: ChatApi, tmp_path: Path, as_: str, wanted: str | None) -> None:
    talk(api, tmp_path, "a", replies_as=as_, limit_as="max_completion_tokens")
    body = json.loads(api.calls[0].raw)
    assert body.get("response_format", {}).get("type") == wanted and body["max_completion_tokens"] == 50

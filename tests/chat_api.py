"""An OpenAI-compatible chat API on the loopback interface, for tests: real sockets, its own count of charges."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

INPUT_PRICE, OUTPUT_PRICE = 2.5, 10.0  # US dollars for a million tokens, as ChatConfig has them


@dataclass
class Call:
    """One call as the server saw it."""

    body: dict[str, Any]
    raw: bytes
    headers: dict[str, str]
    at: float
    number: int

    @property
    def user(self) -> str:
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else content[0]["text"]

    @property
    def data(self) -> dict[str, str]:
        """The JSON between the two lines with a tag."""
        tag, said, end = self.user.split("\n")
        assert re.fullmatch(r"<record-[0-9a-f]{8}>", tag) and end == tag.replace("<", "</")
        return json.loads(said)


Answer = dict[str, Any] | Response | str | None


@dataclass
class ChatApi:
    """`script` says what becomes of a call: a text, a body, a whole response, or None for the truth in other words.

    "drop" closes the connection after the call was counted; "cut" sends half of the JSON; `seconds` is its time.
    """

    script: Callable[[Call], Answer] = lambda call: None
    seconds: float = 0.0
    calls: list[Call] = field(default_factory=list)
    charged: int = 0  # nano-dollars
    url: str = ""

    @property
    def repeats(self) -> int:
        """Calls beyond the first with the same body."""
        return sum(n - 1 for n in Counter(c.raw for c in self.calls).values())

    def charge(self, call: Call, texts: list[str]) -> dict[str, int]:
        """Four bytes a token, as of ordinary English."""
        sent = math.ceil(len(json.dumps(call.body["messages"])) / 4)
        written = sum(math.ceil(len(text) / 4) for text in texts)
        self.charged += math.ceil((sent * INPUT_PRICE + written * OUTPUT_PRICE) * 1000)
        return {"prompt_tokens": sent, "completion_tokens": written, "total_tokens": sent + written}


def completion(texts: list[str], usage: dict[str, int] | None, end: str = "stop") -> dict[str, Any]:
    choices = [
        {"index": n, "finish_reason": end, "message": {"role": "assistant", "content": text}}
        for n, text in enumerate(texts)
    ]
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage,
    }  # fmt: skip


def said(text: str) -> str:
    return json.dumps({"answer": text})


def reworded(truth: str) -> str:
    """The truth in other words, which every check lets pass."""
    return f"Here, {truth[0].lower()}{truth[1:]}" if len(truth.split()) > 3 else truth


@contextmanager
def serving(api: ChatApi) -> Iterator[ChatApi]:
    """The API on a free port, with `url` set, until the end of the block."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        raw = await request.body()
        call = Call(json.loads(raw), raw, dict(request.headers), time.monotonic(), len(api.calls))
        api.calls.append(call)
        wanted = api.script(call)
        if isinstance(wanted, Response):
            return wanted
        if isinstance(wanted, dict):
            return JSONResponse(wanted)
        drop, cut = wanted == "drop", wanted == "cut"
        texts = ["yes" if drop or cut else said(reworded(call.data["truth"])) if wanted is None else str(wanted)]
        texts *= call.body.get("n", 1)
        usage = api.charge(call, texts)
        await asyncio.sleep(api.seconds)
        if drop:
            request.scope["abort"]()
        body = json.dumps(completion(texts, usage))
        return Response(body[: len(body) // 2] if cut else body, media_type="application/json")

    @app.post("/moved/chat/completions")
    async def moved(request: Request) -> Response:
        api.calls.append(Call({}, await request.body(), {}, time.monotonic(), len(api.calls)))
        return RedirectResponse(f"{api.url}/chat/completions", status_code=307)

    async def with_abort(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["abort"] = receive.__self__.transport.abort
        await app(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(with_abort, host="127.0.0.1", port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    api.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield api
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(timeout=10)

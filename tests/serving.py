"""A server of ours on the loopback interface, in this process, for tests."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import uvicorn
from benchmarks.patience import Deadline, patience
from PIL import Image

from browser import Browser
from clinkd.hospital.worklist import Worklist
from clinkd.pipeline.runs import open_run
from clinkd.serving.access import AuthMiddleware
from clinkd.serving.app import Served, create
from clinkd.serving.asking import RequestHandler
from clinkd.serving.decoding import Decoders
from clinkd.serving.engine import Engine
from clinkd.serving.limits import ServerLimits
from clinkd.serving.server import make_server_config
from clinkd.workflows.ask import Answerer
from clinkd.workflows.review import Review

TOKEN = "a-token-for-these-tests"
LIMITS = ServerLimits(
    body_bytes=4 << 20,
    held_bytes=16 << 20,
    pixels=1_000_000,
    queue=64,
    decoders=1,
    seconds=patience(60),
    decoder_seconds=patience(20),
)


def json_of(reply: httpx2.Response, status: int = 200) -> Any:
    """What a reply holds, which must be of that status."""
    assert reply.status_code == status, f"{reply.status_code}, not {status}: {reply.text[:500]}"
    return reply.json()


class Server:
    """Where it is, and a client that holds the token."""

    def __init__(self, served: Served, port: int) -> None:
        self.served, self.port, self.url = served, port, f"http://127.0.0.1:{port}"
        self.engine = served.handler.engine
        self.client = httpx2.Client(
            base_url=self.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=patience(60)
        )

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return self.client.post(path, json=body)

    def ask(self, path: str, **body: Any) -> Any:
        """What a question gets; it must not be refused."""
        return json_of(self.post(path, **body))

    def until_ready(self) -> None:
        end = Deadline(60)
        while json_of(self.client.get("/healthz"))["status"] == "loading":
            assert not end.passed()
            time.sleep(0.02)


@contextmanager
def serving(
    run: Path, opened: Answerer | None = None, worklist: Worklist | None = None, **caps: Any
) -> Iterator[Server]:
    """The server of a run, with its model loaded, or with one that is `opened` already."""
    limits, found = replace(LIMITS, **caps), open_run(run)
    handler = RequestHandler(Engine(lambda: opened or Answerer.of_run(found), limits), Decoders(limits), limits)
    with listening(Served(found.folder.name, handler, found.report(), Review(found), worklist)) as server:
        server.until_ready()
        yield server


@contextmanager
def serving_model(opened: Callable[[], Any], review: Any = None, **caps: Any) -> Iterator[Server]:
    """The server of a model that no run made, under the name "scripted"."""
    limits = replace(LIMITS, **caps)
    handler = RequestHandler(Engine(opened, limits), Decoders(limits), limits)
    with listening(Served("scripted", handler, None, review)) as server:
        server.until_ready()
        yield server


@contextmanager
def listening(served: Served) -> Iterator[Server]:
    """Whatever is served, behind the door."""
    app = AuthMiddleware(create(served), TOKEN, served.handler.limits)
    own = socket.socket()
    own.bind(("127.0.0.1", 0))
    server = uvicorn.Server(make_server_config(app))
    thread = threading.Thread(target=server.run, args=([own],), daemon=True)
    thread.start()
    end = Deadline(60)
    while not server.started:
        assert thread.is_alive() and not end.passed()
        time.sleep(0.01)
    try:
        made = Server(served, own.getsockname()[1])
        with made.client:
            yield made
    finally:
        server.should_exit = True
        thread.join(patience(30))


def picture(width: int = 96, height: int = 96, seed: int = 0) -> Image.Image:
    """A picture of no meaning."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def uri(content: bytes | Image.Image, kind: str = "image/png") -> str:
    """As a data URI."""
    if isinstance(content, Image.Image):
        made = io.BytesIO()
        content.save(made, "PNG")
        content = made.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@contextmanager
def opened_page(browser: Browser, server: Server) -> Iterator[Browser]:
    """The page, opened anew; nothing may have been complained of at its end."""
    browser.visit(f"{server.url}/?token={TOKEN}", 1280, 900)
    browser.until("document.getElementById('state').dataset.state === 'ready'")
    browser.sent.clear()
    yield browser
    told, browser.told = browser.told, []
    assert told == []

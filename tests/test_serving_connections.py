"""Clients that are slow, many, gone or malformed: each is refused or disconnected, and the others are served."""

from __future__ import annotations

import io
import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from benchmarks.patience import Deadline, patience
from hypothesis import given, settings
from hypothesis import strategies as st

from clinkd.serving import connections
from serving import TOKEN, Server, json_of, picture, serving_model, uri
from slices import ct
from test_serving_replies import ScriptedAnswerer, ScriptedReview

HEAD = f"POST /v1/open HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with little patience."""
    limits = {"head_seconds": 0.3, "stall_seconds": 0.3, "bytes_per_second": 10_000_000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "_LOOK_SECONDS", 0.05)
        with serving_model(ScriptedAnswerer, ScriptedReview(), **limits) as found:
            yield found


@pytest.fixture(scope="module")
def small_server() -> Iterator[Server]:
    """A server with room for few."""
    with serving_model(ScriptedAnswerer, address_connections=8) as found:
        found.client.close()
        yield found


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(server: Server, stack: ExitStack, sent: str = "") -> socket.socket:
    made = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), patience(20)))
    made.sendall(sent.encode("latin-1"))
    return made


def begin_upload(server: Server, stack: ExitStack) -> socket.socket:
    """A connection that the server knows to be an upload before another one comes."""
    made = connect(server, stack, f"{HEAD}Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
    assert made.recv(100).startswith(b"HTTP/1.1 100")
    return made


def closed_after(one: socket.socket) -> float:
    """Seconds until the server ends a connection."""
    start = time.monotonic()
    try:
        while one.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - start


def test_idle_connections_make_room_for_a_request_and_then_uploads_do(small_server, sockets):
    server = small_server
    upload = begin_upload(server, sockets)
    idle = [connect(server, sockets) for _ in range(8)]
    assert closed_after(idle[0]) < patience(2)  # the oldest one, at once
    assert answer_to(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == b"HTTP/1.1 200 OK"
    assert closed_after(idle[1]) < patience(2)
    upload.sendall(b"{}      \n")
    assert upload.recv(100).startswith(b"HTTP/1.1 400")
    uploads = [begin_upload(server, sockets) for _ in range(9)]
    assert closed_after(uploads[0]) < patience(2)
    uploads[1].sendall(b"{}      \n")
    assert uploads[1].recv(100).startswith(b"HTTP/1.1 400")


PARTS = {
    "nothing": "",
    "line": "GET /healthz HT",
    "head": "GET /healthz HTTP/1.1\r\nHost: x\r\nX-",
    "body": f"{HEAD}Content-Length: 99\r\n\r\n{{",
    "chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\n{{",
    "second head": "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost",
    "second body": f"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n{HEAD}Content-Length: 99\r\n\r\n{{",
}


def test_who_sends_a_part_and_then_bytes_now_and_then_is_disconnected(server, sockets):
    start = time.monotonic()
    still = {name: connect(server, sockets, sent) for name, sent in PARTS.items()}
    while still and time.monotonic() < start + patience(20):
        time.sleep(0.05)
        for name, one in list(still.items()):
            try:
                one.sendall(b"a")
            except OSError:
                del still[name]
                assert time.monotonic() - start > 0.2, name
    assert not still


def test_who_does_not_read_a_reply_is_disconnected(server, sockets):
    one = socket.socket()
    sockets.enter_context(one)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", server.port))
    body = json.dumps({"image": uri(picture(1000, 1000))}).encode()
    end = time.monotonic() + patience(20)
    with pytest.raises(OSError):
        for _ in range(3):  # more than the buffers of both ends hold
            one.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while time.monotonic() < end:
            time.sleep(0.05)
            one.sendall(b"a")
    assert time.monotonic() < end


def test_a_slow_upload_that_moves_is_taken(server, sockets):
    body = json.dumps({"image": uri(picture())}).encode() + b" " * 2_000_000
    one = connect(server, sockets, f"{HEAD}Content-Length: {len(body)}\r\n\r\n")
    for start in range(0, len(body), 200_000):
        one.sendall(body[start : start + 200_000])
        time.sleep(0.01)
    assert one.recv(100).startswith(b"HTTP/1.1 200")


def values_request() -> bytes:
    """A request of 125 kB whose reply has 16 MB: the values of one frame, 64 times."""
    stream = io.BytesIO()
    ct(np.zeros((250, 250), np.int16), RescaleSlope=0.5, RescaleIntercept=0.25).save_as(stream)
    path = "/v1/values?" + "&".join(["frame=1"] * 64)
    return f"{HEAD.replace('/v1/open', path)}Content-Length: {stream.tell()}\r\n\r\n".encode() + stream.getvalue()


def test_replies_that_nobody_reads_are_bounded_in_memory(sockets):
    caps = {"pixels": 4_000_000, "held_bytes": 40 << 20}
    with serving_model(ScriptedAnswerer, **caps) as server:
        asked = []
        for status in (b"200", b"200", b"503"):
            one = sockets.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.settimeout(patience(20))
            one.connect(("127.0.0.1", server.port))
            one.sendall(values_request())
            assert one.recv(12).endswith(status)
            asked.append(one)
        end = Deadline(20)
        asked[0].close()
        while not answer_to(server, values_request()).endswith(b"200 OK"):  # who left holds nothing any more
            assert not end.passed()


def test_a_long_reply_that_is_read_slowly_is_sent_to_its_end(sockets):
    limits = {"pixels": 4_000_000, "stall_seconds": 0.5, "bytes_per_second": 10_000_000}
    with pytest.MonkeyPatch.context() as patch, serving_model(ScriptedAnswerer, **limits) as server:
        patch.setattr(connections, "_LOOK_SECONDS", 0.05)
        one = connect(server, sockets, values_request().decode("latin-1"))
        received = 0
        while received < 64 * 250 * 250 * 4:
            received += len(one.recv(1 << 19, socket.MSG_WAITALL))
            time.sleep(0.04)
        assert received < 64 * 250 * 250 * 4 + 2000


def test_connections_stay_below_the_limit_of_open_files(monkeypatch):
    for files, most in ((1024, 512), (256, 128), (64, 1), (resource.RLIM_INFINITY, 512)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert connections._count_possible(512) == most


# ---- malformed ------------------------------------------------------------------------------------------------------

LONE = ["\\ud800", "\\udfff", "a \\ud800 b", "\\udc00\\ud800"]
BODIES = [
    ("POST", "/v1/open", {"image": uri(picture()), "window": "@"}),
    ("POST", "/v1/open", {"image": "@"}),
    ("POST", "/v1/ground", {"image": uri(picture()), "phrase": "@"}),
    ("POST", "/v1/refer", {"image": uri(picture()), "boxes": [[0, 0, 1, 1]], "task": "@"}),
    ("POST", "/v1/sr", {"image": uri(b""), "question": {"text": "@"}, "answer": {"text": "a"}, "regions": []}),
    ("POST", "/v1/sr", {"image": uri(b""), "question": {"text": "a"}, "answer": {"text": "a"},
                        "regions": [{"box": [0, 0, 1, 1], "label": "@", "by": "model"}]}),
    ("PUT", "/v1/corrections", {"id": "@", "round": 1, "verdict": "reject"}),
    ("PUT", "/v1/corrections", {"id": "a", "round": 1, "verdict": "edit", "text": "@", "boxes": []}),
    ("POST", "/v1/chat/completions", {"model": "@", "messages": [{"role": "user", "content": "a"}]}),
    ("POST", "/v1/chat/completions", {"model": "scripted", "user": "@", "stream": True,
                                      "messages": [{"role": "user", "content": "a"}]}),
    ("POST", "/v1/chat/completions", {"model": "scripted", "messages": [
        {"role": "system", "content": "@", "name": "@"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri(picture())}},
                                     {"type": "text", "text": "@"}]}]}),
    ("POST", "/v1/ground", {"image": uri(picture()), "phrase": "a", "@": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
def test_half_of_a_surrogate_pair_is_refused_in_every_field(server, method, path, body):
    for text in LONE:
        content = json.dumps(body).replace("@", text)
        reply = server.client.request(method, path, content=content, headers={"content-type": "application/json"})
        assert json_of(reply, 400)["error"]["code"] == "invalid", text


def answer_to(server: Server, head: bytes) -> bytes:
    """The first line of the reply; none if the connection was ended."""
    with socket.create_connection(("127.0.0.1", server.port), patience(20)) as one:
        one.sendall(head)
        try:
            return one.recv(1 << 16).partition(b"\r\n")[0]
        except ConnectionResetError:
            return b""


VALUE = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.text("[]:/@%?#=;\\\"' http9é\u200b", max_size=16).map(lambda text: text.encode()),
    st.sampled_from([b"http://[", b"http://[::1", b"http://a:b", b"//", b"null", b"[", b"\xff\xfe", b"9" * 5000, b"-1",
                     b"0x10", b"Bearer \xc3\xa9", b"Bearer", b"clinkd=\"\\355\\240\\200\"", b"bytes=-", b"1 2"]),
)  # fmt: skip
PATHS = ["/", "/v1/open", "/v1/open/", "/?token=%ED%A0%80", "/v1/corrections?id=%ED%A0%80&round=%00"]
NAMES = ["Origin", "Host", "Content-Length", "Authorization", "Cookie", "Content-Type", "Transfer-Encoding", "Expect",
         "Accept", "Connection", "Upgrade", "X-Forwarded-For", "X-Forwarded-Proto", "If-Range", "Range"]  # fmt: skip


@pytest.mark.parametrize("examples", [8, pytest.param(600, marks=pytest.mark.slow)])
def test_no_malformed_header_is_a_fault_of_the_program(server, examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(name=st.sampled_from(NAMES), value=VALUE, with_token=st.booleans(), path=st.sampled_from(PATHS))
    def send(name: str, value: bytes, with_token: bool, path: str) -> None:
        login = f"Cookie: clinkd={TOKEN}" if name == "Origin" else f"Authorization: Bearer {TOKEN}"
        lines = [f"POST {path} HTTP/1.1", login if with_token else "A: b", "Connection: close"]
        lines += ["Host: x"] * (name != "Host")
        lines += ["Content-Length: 2"] * (name not in ("Content-Length", "Transfer-Encoding"))
        value = value.translate(bytes.maketrans(b"\r\n", b"  "))
        head = "\r\n".join([*lines, f"{name}: "]).encode() + value + b"\r\n\r\n{}"
        first = answer_to(server, head)
        assert not first or re.match(rb"HTTP/1.1 [1234]\d\d ", first), (first, head)

    send()
    for value in ("http://[", "http://[::1", "[", "é"):  # whatever was drawn
        head = f"POST /v1/open HTTP/1.1\r\nHost: x\r\nCookie: clinkd={TOKEN}\r\nOrigin: {value}\r\n\r\n"
        assert answer_to(server, head.encode()) == b"HTTP/1.1 403 Forbidden", value

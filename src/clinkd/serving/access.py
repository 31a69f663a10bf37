"""The check before all routes: who may enter, how large a body may be, and what the log says of a request.

Every route but `/healthz` needs the token: as `Authorization: Bearer`, which every client of OpenAI's API sends, or as
the cookie that the printed address sets. A browser sends a cookie for any page that asks it to, so a page of another
origin can change nothing with the cookie alone.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import NoReturn

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clinkd.serving.fair import CLIENT
from clinkd.serving.limits import ServerLimits
from clinkd.serving.schemas import failure_body

OPEN = "/healthz"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": CSP,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_LOGIN = b"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>ClinKD: token wanted</title><h1>Token wanted</h1>
<p>Open the address that <code>clinkd serve</code> printed, or give its token here.</p>
<form method="get" action="/"><label>Token <input name="token" type="password" autocomplete="off" required></label>
<button>Open</button></form><p>Research use only, not for clinical decisions.</p></html>"""

_FINISH_SECONDS = 5.0  # that a refused client has to end its upload
_PIECE_BYTES = 1 << 20  # of a reply, which waits here, and is counted, until its client has read what went before


class _AlreadyReplied(Exception):
    """The request has its reply; the result of the app does not count."""


class AuthMiddleware:
    """An ASGI app in front of another one."""

    def __init__(self, app: ASGIApp, token: str, limits: ServerLimits, cookie: str = "clinkd") -> None:
        self.app, self.limits, self.cookie = app, limits, cookie
        self._token = token.encode()
        self.held = 0  # bytes of all bodies in memory now
        self.held_replies = 0  # bytes of all large replies that wait to be read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)  # the server's own start and stop; there are no web sockets
            return
        visit = _Visit(scope, receive, send, self)
        CLIENT.set((scope.get("client") or ("",))[0])
        try:
            refusal = self._find_refusal(scope)
            await (refusal(visit) if refusal else self.app(scope, visit.receive, visit.send))
        except _AlreadyReplied:
            pass
        except Exception as error:
            # its words may be a patient's and are not repeated; a reply that has begun ends here
            print(f"clinkd: a fault of the program ({type(error).__name__})", file=sys.stderr)
            await visit.refuse(500, "a fault of the program", "fault")
        finally:
            self.held -= visit.bytes_in
            self.held_replies -= visit.reply_bytes
            visit.log()

    def _find_refusal(self, scope: Scope) -> Callable[[_Visit], Awaitable[None]] | None:
        """The way to refuse a request; None if it may go on."""
        if scope["path"] == OPEN:
            return None
        connection = HTTPConnection(scope)
        headers = connection.headers
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(token.strip()):
            return None
        if "authorization" not in headers and self._is_token(connection.cookies.get(self.cookie, "")):
            if scope["method"] in ("GET", "HEAD") or _is_same_origin(headers):
                return None
            return lambda visit: visit.refuse(403, "asked by a page of another origin", "origin")
        offered = connection.query_params.get("token", "")
        if scope["path"] == "/" and scope["method"] == "GET" and self._is_token(offered):
            return lambda visit: visit.set_cookie(offered)
        if scope["path"] == "/" and "text/html" in headers.get("accept", ""):
            return lambda visit: visit.reply(401, _LOGIN, "text/html; charset=utf-8")
        return lambda visit: visit.refuse(401, "the token is missing or wrong: give Authorization: Bearer", "token")

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token)


def _is_same_origin(headers: Headers) -> bool:
    return headers.get("origin", "").partition("://")[2] == headers.get("host", "\0")


class _Visit:
    """One request and its reply."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, middleware: AuthMiddleware) -> None:
        self.scope, self._receive, self._send, self.middleware = scope, receive, send, middleware
        self.start = time.monotonic()
        self.status, self.bytes_in, self.bytes_out = 0, 0, 0
        self.reply_bytes = 0  # as its head says
        self.refused = False
        self.complete = False  # whether the body was read to its end

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            length, limits = len(message.get("body", b"")), self.middleware.limits
            self.complete = not message.get("more_body", False)
            if self.bytes_in + length > limits.body_bytes:
                await self._reject(413, f"a body of more than {limits.body_bytes:,} bytes", "too_large")
            if self.middleware.held + length > limits.held_bytes:
                await self._reject(503, "too much is being uploaded; come again in 1 s", "crowded")
            self.middleware.held += length  # until the visit ends
            self.bytes_in += length
        return message

    async def _reject(self, status: int, why: str, code: str) -> NoReturn:
        """Reply instead of the app, which may handle the error raised here as its own error with the body."""
        await self.refuse(status, why, code)
        self.refused = True
        raise _AlreadyReplied

    async def send(self, message: Message) -> None:
        if self.refused:
            return
        if message["type"] == "http.response.start":
            await self._hold_reply(Headers(raw=message["headers"]))
            self.status = message["status"]
            present = {k for k, _ in message["headers"]}
            added = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in present]
            message = {**message, "headers": [*message["headers"], *added]}
        else:
            body = message.get("body", b"")
            self.bytes_out += len(body)
            last = max(0, len(body) - 1) // _PIECE_BYTES * _PIECE_BYTES
            for at in range(0, last, _PIECE_BYTES):
                await self._send({**message, "body": body[at : at + _PIECE_BYTES], "more_body": True})
            message = {**message, "body": body[last:]}
        await self._send(message)

    async def _hold_reply(self, headers: Headers) -> None:
        """Count a large reply until it is read, and refuse it where too many wait; one alone may be of any size."""
        length, middleware = int(headers.get("content-length", 0)), self.middleware
        if length <= _PIECE_BYTES:
            return
        if 0 < middleware.held_replies > middleware.limits.held_bytes - length:
            await self._reject(503, "too many large replies wait to be read; come again in 1 s", "crowded")
        middleware.held_replies += length
        self.reply_bytes = length

    async def refuse(self, status: int, why: str, code: str) -> None:
        extra = {401: [(b"www-authenticate", b"Bearer")], 503: [(b"retry-after", b"1")]}.get(status)
        await self.reply(status, json.dumps(failure_body(status, why, code)).encode(), "application/json", extra)

    async def reply(self, status: int, body: bytes, kind: str, extra: list[tuple[bytes, bytes]] | None = None) -> None:
        if self.status:  # the reply has begun
            return
        await self._drain_body()
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *(extra or [])]
        if not self.complete and self.scope["method"] not in ("GET", "HEAD"):
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": b"" if self.scope["method"] == "HEAD" else body})

    async def _drain_body(self) -> None:
        """Read and drop the rest of a body for a while: a client that is still sending would otherwise see a broken
        connection and not the reply."""
        end, left = time.monotonic() + _FINISH_SECONDS, 2 * self.middleware.limits.body_bytes
        while not self.complete and left > 0:
            try:
                message = await asyncio.wait_for(self._receive(), max(0.0, end - time.monotonic()))
            except TimeoutError:
                return
            left -= len(message.get("body", b""))
            self.complete = message["type"] != "http.request" or not message.get("more_body", False)

    async def set_cookie(self, token: str) -> None:
        """Set the token as a cookie, so that it leaves the visible address."""
        cookie = f"{self.middleware.cookie}={token}; Path=/; HttpOnly; SameSite=Strict"
        await self.reply(303, b"", "text/plain", [(b"location", b"/"), (b"set-cookie", cookie.encode())])

    def log(self) -> None:
        """Write a line of the log: the path of a known route or none, no query, no text, no address."""
        route = getattr(self.scope.get("route"), "path", OPEN if self.scope["path"] == OPEN else "-")
        milliseconds = (time.monotonic() - self.start) * 1000
        time_text = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        method = self.scope["method"] if self.scope["method"].isalpha() else "-"
        sizes = f"{self.bytes_in} bytes in, {self.bytes_out} out"
        print(f"{time_text} {method} {route} {self.status or 'gone'} {milliseconds:.0f} ms, {sizes}", file=sys.stderr)

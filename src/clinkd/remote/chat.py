"""Calls to an OpenAI-compatible chat API: several at a time, each made once, paid once, and never beyond the budget.

The words of an error of the server or the library are never repeated: they may hold what was sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from clinkd.config import ChatConfig
from clinkd.records import BadInput
from clinkd.remote.journal import NANO, Journal, OverBudget

if TYPE_CHECKING:
    from openai import OpenAI

PATIENCE_SECONDS = 300.0  # if a server asks for a longer wait, the run stops
_OVERHEAD_TOKENS = 64  # that a server's template may put around each message
_PICTURE_TOKENS = 50_000  # gpt-4o-mini counts up to 48,169, and 8,500 for one whose PNG has a hundred bytes
_NOT_DONE = {408, 409, 425, 429, 503}  # refused before any work
_FINAL = {401, 402, 403, 404, 405, 410, 413, 415}
_SAFE_CODES = ("insufficient_quota", "model_not_found", "invalid_api_key")  # may stand in a message
_MILLION = 1_000_000
_MAX_BYTES = 4 << 20  # of an answer
_MAX_COUNT = 10**9  # tokens; no call has so many

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """The complete texts for one conversation, one a candidate, or `why` there are none; `cut`: the texts that ended at
    the token limit."""

    texts: tuple[str, ...] = ()
    why: str | None = None
    cut: tuple[str, ...] = ()


class Chat:
    """The model behind the endpoint in `config`, and the journal of its calls.

    Raises BadInput for an address that would send text unencrypted over a public network, and if no key is set.
    """

    def __init__(self, config: ChatConfig, journal: Journal) -> None:
        assert config.base_url and config.model
        assert config.input_price is not None and config.output_price is not None
        self.config, self.journal, self.model = config, journal, config.model
        self._input_price, self._output_price = config.input_price, config.output_price
        self._stopped = threading.Event()
        self._reason: BadInput | None = None
        self._free_at = 0.0  # on the monotonic clock: the server asked for no call before
        self._client = make_client(config)

    # -- bodies of calls ----------------------------------------------------------------------------------------------

    def body(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON body of a call."""
        config = self.config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": list(messages),
            "temperature": config.temperature,
            config.limit_as: config.max_tokens,
        }
        if config.candidates > 1:
            body["n"] = config.candidates
        if config.replies_as == "schema":
            named = {"name": "reply", "strict": True, "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif config.replies_as == "object":
            body["response_format"] = {"type": "json_object"}
        return body

    def maximum_cost(self, body: Mapping[str, Any]) -> int:
        """The maximum cost of a call in nano-dollars: no token of a text is shorter than a byte."""
        parts = [part for m in body["messages"] if not isinstance(m["content"], str) for part in m["content"]]
        pictures = sum(part["type"] == "image_url" for part in parts)
        sent = len(encode_body(body)) + _OVERHEAD_TOKENS * len(body["messages"]) + _PICTURE_TOKENS * pictures
        return self._price(sent, self.config.max_tokens * self.config.candidates)

    def _price(self, sent: int, written: int) -> int:
        return math.ceil((sent * self._input_price + written * self._output_price) * NANO / _MILLION)

    def unpaid_bodies(self, bodies: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The bodies that would really be sent, each once: the journal has the replies to the others."""
        body_by_key = {key_of(b): b for b in bodies}
        return [b for key, b in body_by_key.items() if self.journal.reply(key) is None and not self._is_skipped(key)]

    # -- calls --------------------------------------------------------------------------------------------------------

    def replies(self, bodies: Sequence[Mapping[str, Any] | None]) -> Iterator[Reply]:
        """The reply to each body, in order. Equal bodies are one call; a call that is done is not made again.

        None stands for a text that may not be sent, and its reply says so.

        Raises BadInput if the budget is reached, the server refuses the key or the model, or cannot be reached after
        `attempts`: the replies until then are in the journal.
        """
        key_by_position = [None if body is None else key_of(body) for body in bodies]
        pairs = zip(key_by_position, bodies, strict=True)
        body_by_key = {key: body for key, body in pairs if key is not None and body is not None}
        self.journal.enlist(body_by_key, self.model)
        self._stopped.clear()
        self._reason = None
        pool = ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="chat")
        futures: dict[str, Future[Reply]] = {}
        try:
            for key, body in body_by_key.items():
                futures[key] = pool.submit(self._ensure_reply, key, body)
            for sent_key in key_by_position:
                yield _NOT_SENT if sent_key is None else futures[sent_key].result()
        finally:
            self._stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)  # wait for calls in flight: they are paid for

    def _ensure_reply(self, key: str, body: Mapping[str, Any]) -> Reply:
        """The reply in the journal, or from a call, of which `attempts` are made at most."""
        if (stored := self.journal.reply(key)) is not None:
            return _read_reply(stored)
        if self._is_skipped(key):
            return Reply(why=_LOST)
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._attempt(key, body)
            except _RetryableError as error:
                if attempt >= self.config.attempts:
                    raise self._stop(f"{error}, {self.config.attempts} times") from None
                self._stopped.wait(_wait_seconds(attempt))
            except OverBudget as error:
                raise self._stop(f"reflect.chat.budget: {error}; raise it", OverBudget) from None

    def _is_skipped(self, key: str) -> bool:
        return self.config.on_unknown == "skip" and self.journal.state(key) == "unknown"

    def _attempt(self, key: str, body: Mapping[str, Any]) -> Reply:
        """One call, written to the journal before and after."""
        self._wait_for_the_server()
        if self._stopped.is_set():
            raise self._reason or self._stop("stopped")
        reserve = self.maximum_cost(body)
        self._reserve(key, reserve)
        outcome = self._call(body)
        if isinstance(outcome, _Done):
            cost = reserve if outcome.tokens is None else self._price(*outcome.tokens)
            self.journal.done(key, cost, outcome.reply)
            return _read_reply(outcome.reply)
        if isinstance(outcome, _Refused):
            return self._handle_refusal(key, outcome, reserve)
        if not outcome.sent:
            self.journal.failed(key, outcome.what)
            raise _RetryableError(f"{_host(self.config)} cannot be reached")
        return self._handle_lost(key, outcome.what)

    def _reserve(self, key: str, reserve: int) -> None:
        """Reserve the price of a call. Raises OverBudget if no call in flight could free some of the budget."""
        budget = None if self.config.budget is None else round(self.config.budget * NANO)
        while True:
            try:
                self.journal.begin(key, self.model, reserve, budget)
                return
            except OverBudget as error:
                if not error.reserved or self._stopped.wait(0.05):
                    raise

    def _call(self, body: Mapping[str, Any]) -> _Done | _Refused | _Lost:
        """Make a call. No error of the library leaves this function: it knows what was sent."""
        import openai
        from openai.types.chat import ChatCompletion

        try:  # the client's own method would reorder the body, and what is sent must be what was shown
            completion = self._client.post("/chat/completions", content=encode_body(body), cast_to=ChatCompletion)
            reply = json.dumps([{"text": c.message.content, "end": c.finish_reason} for c in completion.choices])
            return _Done(reply, _read_token_counts(completion.usage))
        except openai.APIStatusError as error:
            code = str(error.code or "")
            safe_code = code if re.fullmatch(r"[a-z_]{3,40}", code) else ""
            return _Refused(error.status_code, safe_code, error.response.headers.get("retry-after", "").strip())
        except openai.APIConnectionError as error:
            return _Lost("its answer was lost on the way", sent=not _never_connected(error))
        except Exception:  # cut or garbled: the call was answered and paid for, but the answer cannot be read
            return _Lost("its answer came garbled")

    def _handle_lost(self, key: str, what: str) -> Reply:
        self.journal.unknown(key, what)
        if self.config.on_unknown == "skip":
            return Reply(why=_LOST)
        raise _RetryableError(f"{_host(self.config)} was called, and {what}")

    def _handle_refusal(self, key: str, refusal: _Refused, reserve: int) -> Reply:
        status, code = refusal.status, refusal.code
        answer = f"HTTP {status}" + (f" {code}" if code in _SAFE_CODES else "")
        if status in (502, 504) or status >= 520:  # from a gateway: the server behind it may have done the work
            return self._handle_lost(key, f"its gateway gave up ({answer})")
        self.journal.failed(key, answer, 0 if status < 500 or status in _NOT_DONE else reserve)
        if status in _FINAL or code in _SAFE_CODES:
            raise self._stop(f"the server says {answer}: check base_url, model and the key")
        if status in _NOT_DONE or status >= 500:
            self._delay_calls(refusal.retry_after)
            raise _RetryableError(f"{_host(self.config)} says {answer}")
        if not self.journal.answered(self.model):
            raise self._stop(
                f"the server says {answer} to the first call: it may not know replies_as={self.config.replies_as} or "
                f"limit_as={self.config.limit_as}"
            )
        return Reply(why=f"refused by the server ({answer})")

    def _delay_calls(self, value: str) -> None:
        """Note until when the server wants no call, by a number or a date in its header (RFC 9110, 10.2.3).

        Raises BadInput for a long wait.
        """
        seconds = 0.0
        if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", value):
            seconds = float(value)
        elif value:
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                seconds = max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
        if seconds > PATIENCE_SECONDS:
            raise self._stop(f"the server wants to be left alone for {seconds:,.0f} s")
        self._free_at = max(self._free_at, time.monotonic() + seconds)

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _wait_for_the_server(self) -> None:
        """As long as the server asked any of the threads to wait."""
        while (left := self._free_at - time.monotonic()) > 0 and not self._stopped.wait(min(left, 1.0)):
            pass

    def _stop(self, why: str, kind: type[BadInput] = BadInput) -> BadInput:
        self._stopped.set()
        error = kind(f"{why}; what came back is kept in {self.journal.path}, and the same command goes on from there")
        self._reason = self._reason or error  # the first reason is the one that all threads raise
        return self._reason


class _RetryableError(Exception):
    """The call may be made again."""


class _Done(NamedTuple):
    reply: str  # JSON
    tokens: tuple[int, int] | None  # read and written, if the server counts them


class _Refused(NamedTuple):
    status: int
    code: str
    retry_after: str


class _Lost(NamedTuple):
    what: str
    sent: bool = True


_NOT_SENT = Reply(why="not sent: its words hold what looks like a box")
_LOST = "the answer of the call was lost, and it is not paid for again (reflect.chat.on_unknown=skip)"


def user_message(text: str, picture: str | None) -> Message:
    """A user's message: a text, and a picture as a data URI if there is one."""
    if picture is None:
        return {"role": "user", "content": text}
    image = {"type": "image_url", "image_url": {"url": picture}}
    return {"role": "user", "content": [{"type": "text", "text": text}, image]}


def _read_token_counts(usage: Any) -> tuple[int, int] | None:
    """Tokens read and written, or None if the counts are not plausible; tokens in the total alone count as written."""
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    read, written, total = (getattr(usage, name, None) for name in names)
    if type(read) is not int or type(written) is not int or not (0 <= read < _MAX_COUNT and 0 <= written < _MAX_COUNT):
        return None
    return read, max(written, total - read if type(total) is int and total < _MAX_COUNT else 0)


def key_of(body: Mapping[str, Any]) -> str:
    """The key of a call in the journal: a hash of model, prompt and parameters."""
    return hashlib.sha256(encode_body(body)).hexdigest()


def encode_body(body: Mapping[str, Any]) -> bytes:
    """The bytes of a body as they are sent."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _read_reply(reply: str) -> Reply:
    choices = json.loads(reply)
    whole = tuple(c["text"] for c in choices if isinstance(c["text"], str) and c["text"] and c["end"] in ("stop", None))
    if whole:
        return Reply(whole)
    ends = sorted({str(c["end"]) for c in choices if re.fullmatch(r"\w{1,30}", str(c["end"]))} - {"stop", "None"})
    cut = tuple(c["text"] for c in choices if isinstance(c["text"], str) and c["end"] == "length")
    return Reply(why=f"no whole reply (ended by {', '.join(ends)})" if ends else "an empty reply", cut=cut)


def _wait_seconds(attempt: int) -> float:
    """Before the next attempt: half a second, doubled after each attempt; at random, so that threads do not call at the
    same moments."""
    jitter = 0.5 + int.from_bytes(os.urandom(2), "big") / 65536
    return min(30.0, 0.5 * 2.0 ** (attempt - 1)) * jitter


def _never_connected(error: BaseException) -> bool:
    """Whether a call failed before anything was sent."""
    before_sending = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol")
    cause = error.__cause__
    while cause is not None and type(cause).__name__ not in before_sending:
        cause = cause.__cause__
    return cause is not None


def _host(config: ChatConfig) -> str:
    """Scheme and host of the endpoint: the part of an address that may stand in a message."""
    parts = urlsplit(config.base_url or "")
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def make_client(config: ChatConfig) -> OpenAI:
    """Open the library's client. Raises BadInput for an address that may not be used, and if no key is set."""
    url = config.base_url or ""
    try:
        parts = urlsplit(url)
        usable = url.isprintable() and parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.query or parts.fragment:
        raise BadInput(
            "reflect.chat.base_url: an address such as https://api.openai.com/v1 is wanted, without a name, a key or "
            "a query in it"
        )
    secure = parts.scheme == "https"
    if not secure and not _is_nearby(str(parts.hostname)):
        raise BadInput(
            f"reflect.chat.base_url={_host(config)}: texts would go over a public network in the clear; use https"
        )
    key = os.environ.get(config.key_variable, "").strip()
    if not key and secure:
        raise BadInput(f"{config.key_variable}: not set; put the key of {_host(config)} there (and nowhere else)")
    if not (key.isascii() and key.isprintable()):
        raise BadInput(
            f"{config.key_variable}: holds a character that no key has, perhaps from copying; put it there anew"
        )
    import openai

    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # below this level they log what is sent
    # no redirect may carry a text elsewhere; a proxy reads unencrypted text, so only https may go through one
    http = openai.DefaultHttpxClient(
        follow_redirects=False,
        trust_env=secure,
        timeout=config.timeout_seconds,
        event_hooks={"request": [_note_start], "response": [partial(_read_whole, seconds=config.timeout_seconds)]},
    )
    return openai.OpenAI(
        base_url=url,
        api_key=key or "none",
        max_retries=0,
        timeout=config.timeout_seconds,
        http_client=http,
        default_headers={"Accept-Encoding": "identity"},
    )


def _note_start(request: Any) -> None:
    request.extensions["started"] = time.monotonic()


def _read_whole(response: Any, seconds: float) -> None:
    """Read an answer within `seconds` from the start of the call: the library restarts its clock with each piece.

    Raises TimeoutError after that, and for an answer that is too large to be one.
    """
    until, left, pieces = response.request.extensions["started"] + seconds, _MAX_BYTES, []
    packed = response.headers.get("content-encoding", "identity") != "identity"  # against our request
    for piece in response.iter_bytes():
        pieces.append(piece)
        left -= len(piece)
        if time.monotonic() > until or left < 0 or (packed and response.num_bytes_downloaded > _MAX_BYTES // 64):
            raise TimeoutError
    response._content = b"".join(pieces)  # where the library keeps a body


def _is_nearby(host: str) -> bool:
    """Whether a host is this machine, a private address, or a name without dots or in a local domain."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host):  # a number is an address too, and its target is not visible
            return False
        return "." not in host or host.rstrip(".").endswith((".local", ".localhost", ".internal", ".lan", ".intranet"))
    return address.is_loopback or address.is_private or address.is_link_local

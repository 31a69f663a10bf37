"""HTTP within bounds: how many bytes an answer may have, and how long each of them may take.

Imported only where requests is installed.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

BUSY = (429, 503, 504)
FILES = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_IMAGE_BYTES = 2 << 30  # of an answer that is a file
_TEXT_BYTES = 16 << 20  # of any other; 500 instances take 0.2 MB
_BYTES_PER_SECOND = 100_000  # that an answer must have at least, beside the timeout
_PART_BYTES = 1 << 16
_WAITS = (0.5, 1.0, 2.0)  # seconds before a busy archive is asked again


class AnswerTooLong(requests.RequestException):
    """An answer has more bytes than any that we can use; `most`: how many it may have."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most


def make_session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no proxy, and no password of a file of the user's
    for scheme in ("http://", "https://"):
        session.mount(scheme, _BoundedAdapter())
    return session


class _BoundedAdapter(HTTPAdapter):
    """Reads each answer to its end before anybody sees it. What a library would read for itself has no bound: the body
    that it throws away before it asks again, and lines behind the last part."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._sockets = sockets = weakref.WeakSet[socket.socket]()
        pools = {"http": urllib3.HTTPConnectionPool, "https": urllib3.HTTPSConnectionPool}
        self.poolmanager.pool_classes_by_scheme = {name: _watch_pool(pool, sockets) for name, pool in pools.items()}

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """The answer to a request. A connection that was lost before it is made once more: an archive may have closed
        one that was idle, and to store an object twice does no harm."""
        lost, waits = False, iter(_WAITS)
        while True:
            try:
                response = self._exchange(request, kwargs)
            except requests.ConnectionError as error:
                if lost or isinstance(error, (requests.Timeout, requests.exceptions.SSLError)):
                    raise
                lost = True
                continue
            if response.is_redirect:  # to whom a query with the ID of a patient would go
                raise requests.TooManyRedirects(response=response)
            seconds = next(waits, None)
            if response.status_code not in BUSY or seconds is None:
                return response
            time.sleep(seconds)

    def _exchange(self, request: requests.PreparedRequest, kwargs: dict[str, Any]) -> requests.Response:
        with _Watch(self._sockets, kwargs["timeout"]) as watch:
            response = super().send(request, **{**kwargs, "stream": True})
            most = _IMAGE_BYTES if response.ok and request.headers.get("Accept") == FILES else _TEXT_BYTES
            try:
                response._content = b"".join(_read_parts(response, most, watch))
                response._content_consumed = True
            except urllib3.exceptions.HTTPError:
                raise requests.exceptions.ChunkedEncodingError from None
            finally:
                response.close()
        return response


def _read_parts(response: requests.Response, most: int, watch: _Watch) -> Iterator[bytes]:
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > most:
        raise AnswerTooLong(most)
    received = 0
    while part := response.raw.read1(_PART_BYTES, decode_content=True):
        received += len(part)
        if received > most:
            raise AnswerTooLong(most)
        watch.extend(received)
        yield part


class _Watch:
    """Ends the connections of a block that takes too long: the timeout of a socket begins anew with each byte."""

    def __init__(self, sockets: weakref.WeakSet[socket.socket], seconds: float) -> None:
        self._sockets, self._seconds = sockets, seconds
        self._start, self._allowed = time.monotonic(), seconds
        self._done, self._expired = threading.Event(), False

    def extend(self, received: int) -> None:
        self._allowed = self._seconds + received / _BYTES_PER_SECOND

    def __enter__(self) -> _Watch:
        self._thread = threading.Thread(target=self._run, name="pacs", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._done.set()
        self._thread.join()
        if self._expired and (error is None or isinstance(error, Exception)):
            raise requests.ReadTimeout from None

    def _run(self) -> None:
        while (left := self._start + self._allowed - time.monotonic()) > 0:
            if self._done.wait(left):
                return
        self._expired = True
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # that of TLS would lose its state


def _watch_pool(pool: Any, sockets: weakref.WeakSet[socket.socket]) -> Any:
    """A class of pools whose connections put their sockets into a set."""

    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})

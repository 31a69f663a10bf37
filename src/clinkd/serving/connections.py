"""The connections of a server: how many may be open, and how slow a client may be.

A client that sends or reads too slowly is disconnected. Where too many connections are open, the oldest one without a
request makes room for the new one, or else the one whose request has been arriving the longest; never one that is being
answered.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Literal

from uvicorn.protocols.http.h11_impl import H11Protocol

from clinkd.serving.access import AuthMiddleware

BACKLOG = 64  # connections that the kernel holds, and that are taken at once
_OTHER_FILES = 64  # open ones beside the connections: listener, pipes to decoders, files of the page
_LOOK_SECONDS = 1.0  # between two looks at a connection


class BoundedConnection(H11Protocol):
    """One connection, with the limits of the app behind it.

    A head has `head_seconds`. A body, and a reply that waits to be read, have `stall_seconds` and a second more for
    each `bytes_per_second` that moved.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        assert isinstance(self.config.app, AuthMiddleware)
        self.limits = self.config.app.limits
        self.address = self.client[0] if self.client else ""
        self._since = self.loop.time()
        self._reads_until: float | None = self._since + self.limits.head_seconds
        self._unread, self._written_until = 0, 0.0
        self._look = self.loop.call_later(_LOOK_SECONDS, self._disconnect_slow)
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.waits_for
        super().data_received(data)
        after, now = self.waits_for, self.loop.time()
        if after == "body" and before == "body" and self._reads_until is not None:
            self._reads_until += len(data) / self.limits.bytes_per_second
        elif after == "body":
            self._reads_until = now + self.limits.stall_seconds
        elif after == "answer":
            self._reads_until = None
        elif self._reads_until is None or before != "head":
            self._reads_until = now + self.limits.head_seconds

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()  # may begin with the next request, if that was sent already
        # who sends nothing more is disconnected by uvicorn
        self._reads_until = self._since + self.limits.stall_seconds if self.waits_for == "body" else None

    @property
    def waits_for(self) -> Literal["head", "body", "answer"]:
        if self.cycle is None or self.cycle.response_complete:
            return "head"
        return "body" if self.cycle.more_body else "answer"

    def _make_room(self) -> None:
        """Disconnect other connections, or this one, where too many are open: a tenth at once, since a look at all of
        them takes time."""
        others = [c for c in self.connections if isinstance(c, BoundedConnection) and not c.transport.is_closing()]
        same = [c for c in others if c.address == self.address]
        for open_now, most in (
            (same, self.limits.address_connections),
            (others, _count_possible(self.limits.connections)),
        ):
            if len(open_now) > most:
                free = [c for c in open_now if c is not self and c.waits_for != "answer"]
                # who has never finished a request goes before who has, and who sends one goes last
                free.sort(key=lambda c: (c.waits_for == "body", c.cycle is not None, c._since))
                for oldest in free[: max(1, most // 10)] or [self]:
                    oldest.transport.abort()
                return

    def pause_writing(self) -> None:
        super().pause_writing()
        self._count_read()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._count_read()  # before the next piece of the reply hides how much it was

    def _count_read(self) -> None:
        """Give a client more time for what it has read of a reply."""
        now, unread = self.loop.time(), self.transport.get_write_buffer_size()
        if not self._unread:
            self._written_until = now + self.limits.stall_seconds
        self._written_until += max(0, self._unread - unread) / self.limits.bytes_per_second
        self._unread = unread

    def _disconnect_slow(self) -> None:
        self._count_read()
        now, unread = self.loop.time(), self._unread
        if (unread and now > self._written_until) or (self._reads_until is not None and now > self._reads_until):
            self.transport.abort()
        else:
            self._look = self.loop.call_later(_LOOK_SECONDS, self._disconnect_slow)


def _count_possible(wanted: int) -> int:
    """The connections that fit under the process's limit of open files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files - BACKLOG - _OTHER_FILES))

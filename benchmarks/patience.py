"""How long to wait for another process: longer where the machine is slower, measured when it matters."""

from __future__ import annotations

import functools
import time

ROUNDS = 1_000_000
QUIET_SECONDS = 0.05  # that the rounds take on a quiet core
KEPT_SECONDS = 5.0  # for which a measurement holds: it is work itself, and waits come by the dozen


def slowness() -> float:
    """How many times longer than on a quiet core a fixed piece of work takes now; at least 1."""
    return _measure(time.monotonic() // KEPT_SECONDS)


@functools.lru_cache(maxsize=1)
def _measure(moment: float) -> float:
    """The slowness of a moment, the same for all who ask in it."""
    start = time.perf_counter()
    sum(n * n for n in range(ROUNDS))
    return max(1.0, (time.perf_counter() - start) / QUIET_SECONDS)


def patience(seconds: float) -> float:
    """A limit of so many seconds on a quiet machine, for this one as it is now."""
    return seconds * slowness()


class Deadline:
    """The end of a wait. When `seconds` are over the machine is measured, and they grow by as much as it is slower."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.monotonic(), seconds
        self._measured = False

    def passed(self) -> bool:
        if time.monotonic() - self.start < self.seconds:
            return False
        if not self._measured:
            self._measured = True
            self.seconds = patience(self.seconds)
        return time.monotonic() - self.start >= self.seconds

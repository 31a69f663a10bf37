"""Which client is served next: of those that wait, the one that had the least of the server's time lately.

So a client with many or slow requests takes the time that others leave, and not theirs. Clients are told apart by their
addresses; behind a proxy all have one, and then the oldest request is the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextvars import ContextVar

from clinkd.serving.limits import QueueFull

CLIENT: ContextVar[str] = ContextVar("address of the client that asks", default="")
HALF_LIFE = 10.0  # seconds after which the time that a client had counts half
_SHARE = 0.75  # of a queue that one address may fill while others ask
_KNOWN = 0.01  # seconds that a refused request counts, so that its client is known to ask
_MOST_ADDRESSES = 1000  # that are remembered


class FairShare:
    """The seconds that each address had, counted less the longer they are over."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}  # seconds, and when that was on the monotonic clock

    def spend(self, address: str, seconds: float) -> None:
        """Count seconds of the server's time for an address."""
        self._spent[address] = (self.spent().get(address, 0.0) + seconds, time.monotonic())
        if len(self._spent) > _MOST_ADDRESSES:
            spent = self.spent()
            del self._spent[min(spent, key=spent.__getitem__)]

    def spent(self) -> dict[str, float]:
        """Seconds by address, as they count now."""
        now = time.monotonic()
        return {address: s * 0.5 ** ((now - then) / HALF_LIFE) for address, (s, then) in self._spent.items()}

    def demand_room(self, address: str, waiting: Sequence[str], most: int, error: QueueFull) -> None:
        """Raises the error where one request more is too many: for the queue with these addresses, or for this one."""
        others = any(seconds > _KNOWN / 2 for other, seconds in self.spent().items() if other != address)
        own = math.ceil(_SHARE * most) if others else most
        if len(waiting) >= most or waiting.count(address) >= own:
            self.spend(address, _KNOWN)
            raise error

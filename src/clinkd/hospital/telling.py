"""Lines on the terminal of what goes wrong while images are listened for."""

from __future__ import annotations

import math
import sys
import time

_TELL_SECONDS = 600.0  # until the same trouble is told again


def tell(line: str) -> None:
    print(f"clinkd: {line}", file=sys.stderr, flush=True)


class RecurringTroubles:
    """Tells what may come again and again, once in a while."""

    def __init__(self) -> None:
        self.told = dict[str, float]()  # when each line was told, on the monotonic clock

    def tell(self, line: str) -> None:
        now = time.monotonic()
        if self.told.get(line, -math.inf) + _TELL_SECONDS <= now:
            self.told = {old: told for old, told in self.told.items() if told + _TELL_SECONDS > now} | {line: now}
            tell(line)

"""Stops that wait: SIGINT and SIGTERM are held until a step is whole, then handed on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """The signal that was held, if one came."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.held: int | None = None
        self._before = {n: h for n in SIGNALS if (h := signal.getsignal(n)) not in (None, signal.SIG_IGN)}

    @property
    def asked(self) -> bool:
        return self.held is not None

    def hand_on(self) -> None:
        """Let whoever handled the signal before have it: that raises, as a rule. Where it returns, training goes on.

        SIGTERM where the signal reached another process of the same training only.
        """
        number, self.held = self.held or signal.SIGTERM, None
        self._release()
        signal.raise_signal(number)
        self._hold()

    def _hold(self) -> None:
        for number in self._before:
            signal.signal(number, self._note)

    def _release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.asked:  # a second one will not wait: what was saved before is all that stays
            self.hand_on()
            return
        self.held = number
        os.write(2, f"{self.title}: stops when this step is done and saved; once more to stop at once\n".encode())


@contextlib.contextmanager
def stops_held(title: str) -> Iterator[Stop]:
    """Hold SIGINT and SIGTERM in the block, which looks at `asked` between steps, saves, and calls `hand_on`.

    A handler that raises (Ctrl-C, and SIGTERM in the commands) may do so between the updates of two parameters, which
    are made in place: what it leaves belongs to no step, and to save the step before would take a copy of everything
    at each step. Hence the signal waits, not the one who catches it. Outside the main thread no handler can raise, and
    nothing is held.
    """
    stop = Stop(title)
    main = threading.current_thread() is threading.main_thread()
    try:
        if main:
            stop._hold()
        yield stop
    finally:
        if main:
            stop._release()
    if stop.held is not None:  # came after the last look
        signal.raise_signal(stop.held)

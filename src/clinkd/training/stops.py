"""SIGINT and SIGTERM are held until a step is done, then handed on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """The signal that is held, if one came."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.held: int | None = None
        self._before = {n: h for n in SIGNALS if (h := signal.getsignal(n)) not in (None, signal.SIG_IGN)}

    @property
    def requested(self) -> bool:
        return self.held is not None

    def hand_on(self) -> None:
        """Pass the signal to its former handler, which usually raises. If it returns, training goes on.

        If the signal reached only another process of the same training, SIGTERM is passed on.
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
        if self.requested:  # a second signal does not wait: only what was saved before stays
            self.hand_on()
            return
        self.held = number
        os.write(2, f"{self.title}: stops when this step is done and saved; once more to stop at once\n".encode())


@contextlib.contextmanager
def stops_held(title: str) -> Iterator[Stop]:
    """Hold SIGINT and SIGTERM in the block, which checks `requested` between steps, saves, and calls `hand_on`.

    A handler that raises (Ctrl-C, and SIGTERM in the commands) may do so between the updates of two parameters, which
    happen in place. Such weights belong to no step, and to be able to save the step before, each step would have to
    copy all weights. So the signal waits. Outside the main thread no handler can raise, and nothing is held.
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
    if stop.held is not None:  # came after the last check
        signal.raise_signal(stop.held)

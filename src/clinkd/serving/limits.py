"""The limits of a server, each checked before any work."""

from __future__ import annotations

import time
from dataclasses import dataclass

from clinkd.data.images.limits import UPLOADS

NOTICE = "Research use only, not for clinical decisions."


@dataclass(frozen=True)
class ServerLimits:
    """Limits of one server. `body_bytes`: of one request; `held_bytes`: of all bodies in memory at once."""

    body_bytes: int = 64 << 20
    held_bytes: int = 256 << 20
    pixels: int = UPLOADS.pixels  # of a frame
    held_pixels: int = 4 * UPLOADS.pixels  # of all decoded images in memory at once, 3 bytes each
    frames: int = UPLOADS.frames  # of a file
    text: int = 4000  # characters of one question or answer
    turns: int = 16  # questions of one conversation
    boxes: int = 32  # in one question
    queue: int = 64  # questions that wait
    batch: int = 16  # questions answered together
    # The demo's model takes 2.5 kB a token of a batch, and 5 bytes a pair of tokens of each prompt: 0.7 GB at most.
    prompt_tokens: int = 4096  # of one question, with its image and the conversation before it
    batch_tokens: int = 32_768  # of a batch: questions x beams x (longest prompt + most tokens of an answer)
    seconds: float = 60.0  # from the request to its answer: opening the image, waiting and answering
    connections: int = 512  # open at once; fewer where the process may open few files
    address_connections: int = 256  # of one client's address
    head_seconds: float = 10.0  # for the head of a request
    stall_seconds: float = 20.0  # for a body, or the reading of a reply, and a second more for each
    bytes_per_second: int = 100_000  # that moved
    keep_seconds: int = 30  # that a connection stays open after a reply
    decoders: int = 2  # processes that open images
    decoder_bytes: int = 3 << 30  # of memory for one of them
    decoder_seconds: float = 20.0  # for one image


class QueueFull(Exception):
    """The queue takes no more questions. `seconds`: after which to come again."""

    def __init__(self, seconds: int, what: str = "the queue is full") -> None:
        super().__init__(f"{what}; come again in {seconds} s")
        self.seconds = seconds


class DeadlineExceeded(Exception):
    """The time for an answer is over."""


class TimeLimit:
    """The time that is left to one request, by a clock that nobody sets."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, 0 when it is over."""
        return max(0.0, self._end - time.monotonic())

    def error(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer within {self.seconds:g} s")

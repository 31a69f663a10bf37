"""The limits of a server, each checked before any work."""

from __future__ import annotations

from dataclasses import dataclass

from clinkd.data.images.limits import UPLOADS

NOTICE = "Research use only, not for clinical decisions."


@dataclass(frozen=True)
class ServerLimits:
    """Limits of one server. `body_bytes`: of one request; `held_bytes`: of all bodies in memory at once."""

    body_bytes: int = 64 << 20
    held_bytes: int = 256 << 20
    pixels: int = UPLOADS.pixels  # of a frame
    frames: int = UPLOADS.frames  # of a file
    text: int = 4000  # characters of one question or answer
    turns: int = 16  # questions of one conversation
    boxes: int = 32  # in one question
    queue: int = 64  # questions that wait
    batch: int = 16  # questions answered together
    seconds: float = 60.0  # from the question to its answer
    decoders: int = 2  # processes that open images
    decoder_bytes: int = 3 << 30  # of memory for one of them
    decoder_seconds: float = 20.0  # for one image

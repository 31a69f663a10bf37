"""What one receiver of images may take at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReceiverLimits:
    """Limits of one receiver."""

    image_bytes: int = 256 << 20  # of one image
    held_bytes: int = 1 << 30  # of all images in memory at once
    connections: int = 16
    pdu_bytes: int = 1 << 18  # of one message of the network
    stall_seconds: float = 30.0  # for a PDU, and a second more for each
    bytes_per_second: int = 100_000  # that moved
    idle_seconds: float = 120.0  # that a connection may be silent between two PDUs

"""Eyes: image features learned from ordinary photographs, computed once and never trained."""

from clinkd.model.eyes.cells import CELL, Eyes, Whitening, look, look_in_parallel
from clinkd.model.eyes.network import CHANNELS, EyesNetwork, find_license

__all__ = [
    "CELL",
    "CHANNELS",
    "Eyes",
    "EyesNetwork",
    "Whitening",
    "find_license",
    "look",
    "look_in_parallel",
]

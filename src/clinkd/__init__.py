"""ClinKD: teach a vision-language model medical refer-and-ground question answering from little data."""

from clinkd.version import __version__

__all__ = ["__version__"]

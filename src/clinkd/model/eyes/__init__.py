"""Eyes: image features learned from ordinary photographs, computed once and never trained."""

from clinkd.model.eyes.network import CHANNELS, EyesNetwork

__all__ = ["CHANNELS", "EyesNetwork"]

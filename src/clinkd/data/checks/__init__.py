"""Checks of whole data sets: near-duplicates, what can be guessed without the image, lengths, counts."""

__all__ = ["check", "guessability", "lengths", "near", "stats"]

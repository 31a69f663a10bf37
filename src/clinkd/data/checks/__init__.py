"""Checks over whole tables of data: near-duplicates, what is guessed without looking, lengths, counts."""

__all__ = ["check", "guessability", "lengths", "near", "stats"]

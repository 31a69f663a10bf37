"""Whether two answers agree: words, negation, sides, numbers, facts."""

__all__ = [
    "agreement",
    "conflicts",
    "equality",
    "facts",
    "foreign",
    "languages",
    "negation",
    "phrases",
    "sides",
    "verdicts",
    "words",
]

"""ClinKD: teach a vision-language model medical refer-and-ground question answering from little data."""

__version__ = "0.1.0"

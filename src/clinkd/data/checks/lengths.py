"""Count the tokens of a sample: its images after the resize of the model family, its words, its boxes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Protocol

from clinkd.data.codecs import make_codec
from clinkd.data.grids import FACTOR, smart_resize
from clinkd.records import BadInput, ImageRef, Sample

BYTES_A_TOKEN = 4  # of English text with a large vocabulary
BOX_TOKENS = 20  # <|box_start|>(123,456),(789,987)<|box_end|>, one token a digit
TURN_TOKENS = 10  # the marks around a question and its answer
IMAGE_MARKS = 2


class Counting(Protocol):
    """Counts the tokens of a sample."""

    how: str

    def __call__(self, sample: Sample) -> int: ...


class TokenEstimator:
    """Estimates the tokens of a sample without a tokenizer: four bytes of text a token, twenty tokens a box."""

    how = "estimated: 4 bytes of text a token, 20 tokens a box"

    def __call__(self, sample: Sample) -> int:
        texts = [part for turn in sample.turns for part in (turn.question, turn.answer)]
        words = sum(len(t.text) if t.text.isascii() else len(t.text.encode()) for t in texts)
        boxes = sum(len(t.boxes) for t in texts)
        text_tokens = -(-words // BYTES_A_TOKEN) + BOX_TOKENS * boxes + TURN_TOKENS * len(sample.turns)
        return text_tokens + sum(_count_image_tokens(i) for i in sample.images)


class TokenCounter:
    """Counts the tokens of a sample with the tokenizer of a model. Raises BadInput without a tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        file = folder / "tokenizer.json" if folder.is_dir() else folder
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exceptions
            raise BadInput(f"--tokenizer {folder}: no readable tokenizer.json there ({error})") from None
        self.how = f"counted with {file}"
        self._codec = make_codec("qwen2-vl")

    def __call__(self, sample: Sample) -> int:
        texts = [self._codec.encode(part) for turn in sample.turns for part in (turn.question, turn.answer)]
        words = sum(len(e.ids) for e in self._tokenizer.encode_batch(texts, add_special_tokens=False))
        return words + TURN_TOKENS * len(sample.turns) + sum(_count_image_tokens(i) for i in sample.images)


def _count_image_tokens(image: ImageRef) -> int:
    """Tokens of one image; 0 if its size is unknown."""
    return _count_grid_tokens(image.width, image.height) if image.width and image.height else 0


@lru_cache(maxsize=4096)
def _count_grid_tokens(width: int, height: int) -> int:
    size = smart_resize(width, height)
    return (size.width // FACTOR) * (size.height // FACTOR) + IMAGE_MARKS

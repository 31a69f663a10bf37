"""Count the tokens of a sample: its images after the resize of the model family, its words, its boxes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from clinkd.data.codecs import make_codec
from clinkd.data.grids import FACTOR, smart_resize
from clinkd.records import BadInput, BoxedText, ImageRef, Sample

BYTES_A_TOKEN = 4  # of English text with a large vocabulary
BOX_TOKENS = 20  # <|box_start|>(123,456),(789,987)<|box_end|>, one token a digit
TURN_TOKENS = 10  # the marks around a question and its answer
IMAGE_MARKS = 2


class TokenEstimator:
    """Estimates the tokens of a sample without a tokenizer: four bytes of text a token, twenty tokens a box."""

    how = "estimated: 4 bytes of text a token, 20 tokens a box"

    def __call__(self, sample: Sample) -> int:
        texts = [part for turn in sample.turns for part in (turn.question, turn.answer)]
        image_tokens = sum(_count_image_tokens(image) for image in sample.images)
        return self._count_text_tokens(texts) + TURN_TOKENS * len(sample.turns) + image_tokens

    def _count_text_tokens(self, texts: Sequence[BoxedText]) -> int:
        text_bytes = sum(len(t.text) if t.text.isascii() else len(t.text.encode()) for t in texts)
        return -(-text_bytes // BYTES_A_TOKEN) + BOX_TOKENS * sum(len(t.boxes) for t in texts)


class TokenCounter(TokenEstimator):
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

    def _count_text_tokens(self, texts: Sequence[BoxedText]) -> int:
        encodings = self._tokenizer.encode_batch([self._codec.encode(t) for t in texts], add_special_tokens=False)
        return sum(len(encoding.ids) for encoding in encodings)


def _count_image_tokens(image: ImageRef) -> int:
    """Tokens of one image; 0 if its size is unknown."""
    return _count_grid_tokens(image.width, image.height) if image.width and image.height else 0


@lru_cache(maxsize=4096)
def _count_grid_tokens(width: int, height: int) -> int:
    size = smart_resize(width, height)
    return (size.width // FACTOR) * (size.height // FACTOR) + IMAGE_MARKS

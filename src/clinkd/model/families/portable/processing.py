"""Images and texts as the model was trained on them: its resampling, its chat template, its spelling of boxes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import Qwen2VLProcessor
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from clinkd.boxed_text import Box, BoxedText
from clinkd.data.codecs import Codec, make_codec
from clinkd.data.grids import Size, smart_resize, square_resize

Corners = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image


class ClinkdImageProcessor(Qwen2VLImageProcessorPil):
    """As the stock one, but with `square` each image is resampled to a square of about its area."""

    square = False

    def resampled_size(self, width: int, height: int, bounds: tuple[int, int] | None = None) -> Size:
        """The size to which an image is resampled. `bounds`: least and most pixels, if not those of `size`."""
        least, most = bounds or (self.size["shortest_edge"], self.size["longest_edge"])
        resize = square_resize if self.square else smart_resize
        return resize(width, height, self.patch_size * self.merge_size, min(least, most), most)

    def resize(self, image: np.ndarray, size: SizeDict, resample: Any, factor: int, **_: Any) -> np.ndarray:
        """An image [3, height, width], resampled."""
        height, width = image.shape[-2:]
        wanted = self.resampled_size(width, height, (size.shortest_edge, size.longest_edge))
        target = SizeDict(height=wanted.height, width=wanted.width)
        resized: np.ndarray = super(Qwen2VLImageProcessorPil, self).resize(image, size=target, resample=resample)
        return resized

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        size = self.resampled_size(width, height)
        return size.width * size.height // self.patch_size**2


class ClinkdProcessor(Qwen2VLProcessor):
    """As the stock one, without videos, and with a pair of methods to spell and to read boxes.

    `boxes`, `box_bins`: how this model spells boxes.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        boxes: str = "qwen2-vl",
        box_bins: int = 1000,
        **_: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.boxes, self.box_bins = boxes, box_bins

    @property
    def codec(self) -> Codec:
        return make_codec(self.boxes, self.box_bins)

    def spell_boxes(self, question: str, boxes: Sequence[Corners], image_size: tuple[int, int]) -> str:
        """The question with a box of `boxes` in the place of each "[box]", as this model spells it.

        Boxes are (left, top, right, bottom) in pixels of the image, of which `image_size` is (width, height): of
        several images the last.
        """
        width, height = image_size
        fractions = tuple(Box(x1 / width, y1 / height, x2 / width, y2 / height) for x1, y1, x2, y2 in boxes)
        return self.codec.encode(BoxedText(question, fractions), self.image_processor.resampled_size(width, height))

    def read_boxes(self, answer: str, image_size: tuple[int, int]) -> tuple[str, list[Corners]]:
        """The words of an answer, with "[box]" in the place of each box, and the boxes in pixels of the image.

        Decode the answer by `post_process_image_text_to_text`, which leaves the marks of boxes in it. What looks like a
        box and is none is cut out with a warning.
        """
        width, height = image_size
        decoded = self.codec.decode(answer, self.image_processor.resampled_size(width, height))
        if decoded.unparsed_boxes:
            warnings.warn(f"read as no box: {', '.join(decoded.unparsed_boxes)}", stacklevel=2)
        boxes = [(b.x1 * width, b.y1 * height, b.x2 * width, b.y2 * height) for b in decoded.answer.boxes]
        return decoded.answer.text, boxes

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **settings: Any
    ) -> list[str]:
        """Texts of tokens. The marks of boxes stay where other special tokens go."""
        rows = generated_outputs.tolist() if hasattr(generated_outputs, "tolist") else generated_outputs
        rows = [rows] if rows and isinstance(rows[0], int) else rows
        rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
        if skip_special_tokens:
            marks = {*self.codec.special_tokens}
            added = self.tokenizer.added_tokens_decoder.items()
            dropped = {number for number, token in added if token.special and token.content not in marks}
            rows = [[number for number in row if number not in dropped] for row in rows]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=False, **settings)
        return texts

"""Make a question for the queue from a request, and a reply from its answer."""

from __future__ import annotations

import base64
import binascii
import threading
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Literal

from clinkd.data import questions
from clinkd.language.phrases import find_phrases
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText
from clinkd.serving import schemas
from clinkd.serving.decoding import Decoders, Opened
from clinkd.serving.engine import AnswerRequest, AnswerResult, Engine
from clinkd.serving.limits import NOTICE, QueueFull, ServerLimits, TimeLimit

if TYPE_CHECKING:
    from PIL import Image

    from clinkd.workflows.ask import Answerer, Question

# A wording of each task from the training data; {name} is the structure to find.
WORDINGS = {
    "where": questions.WHERE[0],
    "what": questions.WHAT[0],
    "describe": questions.DESCRIBE[1],
    "overall": questions.OVERALL[2],
}


class RequestHandler:
    """Opens images, asks questions and writes replies, with the engine, the decoders and their limits."""

    def __init__(self, engine: Engine, decoders: Decoders, limits: ServerLimits) -> None:
        self.engine, self.decoders, self.limits = engine, decoders, limits
        self._held_pixels = 0
        self._lock = threading.Lock()

    async def picture(self, image: str, frame: int | None, window: str | None, grey: bool = False) -> Opened:
        """The frame of an image given as a data URI. Raises BadInput, and QueueFull if too many pixels are held."""
        return await self.open_picture(decode_data_uri(image), frame, window, grey)

    async def open_picture(
        self, content: bytes, frame: int | None, window: str | None = None, grey: bool = False
    ) -> Opened:
        """As `picture`, of the bytes of a file."""
        opened = await self.decoders.open(content, frame, window, grey)
        pixels = opened.picture.width * opened.picture.height
        weakref.finalize(opened.picture, self._hold_pixels, -pixels)
        self._hold_pixels(pixels)
        if self._held_pixels > self.limits.held_pixels:
            raise QueueFull(1, "too many pixels of large images wait")
        return opened

    async def describe_files(self, heads: Sequence[schemas.FileHead]) -> schemas.SeriesReply:
        """What each file is, by its first bytes, or why that cannot be told."""
        files = list[schemas.FileReply | schemas.FileRefusal]()
        for file in heads:
            try:
                about = await self.decoders.describe(decode_data_uri(file.head), file.size)
                files.append(schemas.FileReply.model_validate(about))
            except BadInput as error:
                files.append(schemas.FileRefusal(why=str(error)))
        return schemas.SeriesReply(files=files)

    def _hold_pixels(self, pixels: int) -> None:
        with self._lock:  # the last one to forget an image may be the model's thread
            self._held_pixels += pixels

    async def ask(
        self, picture: Opened, request: AnswerRequest, limit: TimeLimit, ignored: Sequence[str] = ()
    ) -> AsyncIterator[schemas.Draft | CompletedRequest]:
        """Drafts if they are wanted, then the answer. `ignored`: the parts of the request that have no effect."""
        start = time.monotonic()
        async for event in self.engine.ask(request, limit):
            if isinstance(event, AnswerResult):
                yield CompletedRequest(event, self._make_reply(event, picture, ignored, time.monotonic() - start))
            else:
                yield schemas.Draft.model_validate(event)

    async def answer(
        self, picture: Opened, request: AnswerRequest, limit: TimeLimit, ignored: Sequence[str] = ()
    ) -> CompletedRequest:
        """The answer alone."""
        async for event in self.ask(picture, request, limit, ignored):
            if isinstance(event, CompletedRequest):
                return event
        raise AssertionError("every question ends in an answer or an error")

    def _make_reply(
        self, result: AnswerResult, picture: Opened, ignored: Sequence[str], seconds: float
    ) -> schemas.AnswerReply:
        assert self.engine.answerer
        prediction, consistency, reordered, *_ = result.answer
        text, question, size = prediction.answer.answer, result.question.text, picture.picture.size
        named = zip(text.boxes, find_phrases(text, question.text, self.engine.answerer.names), strict=True)
        asked_boxes = self.engine.answerer.as_seen(question, picture.picture).boxes
        candidates = zip(prediction.candidates, consistency.weights, consistency.similarities, strict=True)
        return schemas.AnswerReply.model_validate(
            {
                "text": text.text,
                "boxes": [{**schemas.place_box(b, *size), "phrase": p, "span": span} for b, (p, span) in named],
                "asked": [schemas.place_box(b, *size) for b in asked_boxes],
                "candidates": [
                    {
                        "text": c.answer.text,
                        "boxes": c.answer.boxes,
                        "logprob": c.logprob,
                        "weight": weight,
                        "likeness": likeness,
                        "scores": c.scores,
                        "chosen": n == prediction.chosen,
                        "truncated": c.truncated,
                        "unread": c.unread,
                    }
                    for n, (c, weight, likeness) in enumerate(candidates)
                ],
                "support": consistency.value,
                "uncertain": result.answer.uncertain is not None,
                "why": result.answer.uncertain,
                "confidence": result.answer.confidence,
                "warnings": result.answer.warnings,
                "reordered": reordered,
                "image": picture.picture,
                "ignored": ignored,
                "seconds": round(seconds, 4),
                "notice": NOTICE,
            }
        )


class CompletedRequest:
    """An answer and its reply."""

    def __init__(self, result: AnswerResult, reply: schemas.AnswerReply) -> None:
        self.result, self.reply = result, reply

    @property
    def raw(self) -> str:
        """The text as the model wrote it."""
        return self.result.answer.prediction.answer.raw

    @property
    def finish(self) -> Literal["stop", "length"]:
        return "length" if self.result.answer.prediction.answer.truncated else "stop"

    @property
    def usage(self) -> schemas.Usage:
        prompt, completion = self.result.answer.prompt_tokens, self.result.answer.answer_tokens
        return schemas.Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def decode_data_uri(image: str) -> bytes:
    """The bytes of a data URI. Raises BadInput if its base64 is broken."""
    try:
        return base64.b64decode(image.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise BadInput("image: its base64 is broken") from None


def make_box(corners: Sequence[float], size: tuple[int, int] | None = None) -> Box:
    """A box in fractions. `size`: width and height of the image if the corners are pixels. Raises BadInput."""
    width, height = size or (1, 1)
    x1, y1, x2, y2 = corners
    return Box(x1 / width, y1 / height, x2 / width, y2 / height)


def read_question(picture: Opened, text: str, boxes: Sequence[Box], answerer: Answerer) -> Question:
    """A question without turns before it. Raises BadInput as `read_text`."""
    from clinkd.workflows.ask import Question

    return Question.of(picture.picture, read_text(answerer, text, boxes, picture.picture), picture.modality)


def read_text(answerer: Answerer, text: str, boxes: Sequence[Box], picture: Image.Image) -> BoxedText:
    """A text with a `[box]` mark for each box of a picture; without any mark, boxes in the model's spelling are read.

    Raises BadInput for a text that cannot be shown to the model.
    """
    if not boxes and BOX_MARK not in text:
        return answerer.read(text, picture)
    from clinkd.workflows.ask import demand_words

    demand_words(text)
    boxed_text = BoxedText(text, tuple(boxes))
    answerer.as_seen(boxed_text, picture)
    return boxed_text

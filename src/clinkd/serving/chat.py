"""OpenAI's chat completions: one image and a conversation about it, whole or streamed."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from clinkd.records import BOX_MARK, BadInput, BoxedText, Task, Turn
from clinkd.serving import schemas
from clinkd.serving.asking import CompletedRequest, RequestHandler, box_of, spelled
from clinkd.serving.decoding import Opened
from clinkd.serving.engine import AnswerRequest
from clinkd.serving.limits import ServerLimits

if TYPE_CHECKING:
    from PIL import Image

    from clinkd.workflows.ask import Answerer, Question


class Conversation:
    """A request read: the one image of it, and what was said in turns, the user first and last.

    Raises BadInput where it is not so, and for boxes that fit no mark.
    """

    def __init__(self, request: schemas.ChatRequest, limits: ServerLimits) -> None:
        self.request = request
        self.said: list[str] = []
        images: list[str] = []
        for number, message in enumerate(m for m in request.messages if m.role in ("user", "assistant")):
            if message.role != ("user", "assistant")[number % 2]:
                raise BadInput("messages: user and assistant take turns, and the user begins")
            if not isinstance(message.content, str):
                images += [p.image_url.url for p in message.content if isinstance(p, schemas.ImagePart)]
            self.said.append(_words(message))
        if len(self.said) % 2 == 0:
            raise BadInput("messages: the last one must be the user's")
        if len(self.said) > 2 * limits.turns:
            raise BadInput(f"messages: more than {limits.turns} questions")
        if any(len(text) > limits.text for text in self.said):
            raise BadInput(f"messages: a text of more than {limits.text:,} characters")
        if len(set(images)) != 1:
            raise BadInput(f"messages: {len(set(images))} images; exactly one is wanted")
        self.image = images[0]
        self.boxes = [box_of(corners) for corners in request.clinkd.boxes]
        marks = sum(text.count(BOX_MARK) for text in self.said[::2])
        if marks != len(self.boxes) or marks > limits.boxes:
            raise BadInput(
                f"clinkd.boxes: {len(self.boxes)} boxes for {marks} {BOX_MARK} marks in the user's texts, "
                f"at most {limits.boxes}"
            )

    def answer_request(self, picture: Opened, wants_drafts: bool = False) -> AnswerRequest:
        """The question for the queue; it is read once there is a model to make it for."""

        def read(answerer: Answerer) -> Question:
            from clinkd.workflows.ask import Question

            return Question((picture.picture,), tuple(self._turns(answerer, picture.picture)))

        return AnswerRequest(read, self.request.options, wants_drafts)

    def _turns(self, answerer: Answerer, picture: Image.Image) -> Iterator[Turn]:
        left = list(self.boxes)
        for asked, answered in zip(self.said[::2], [*self.said[1::2], ""], strict=True):
            count = asked.count(BOX_MARK)
            question = spelled(answerer, asked, left[:count], picture)
            left = left[count:]
            yield Turn(Task.QA, question, answerer.read(answered, picture) if answered else BoxedText(""))


def _words(message: schemas.Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(p.text for p in message.content if isinstance(p, schemas.TextPart))


async def whole(handler: RequestHandler, conversation: Conversation, picture: Opened) -> schemas.ChatReply:
    """The reply when all is written."""
    request = conversation.request
    completed = await handler.answer(picture, conversation.answer_request(picture), request.ignored)
    choice = schemas.Choice(message=schemas.ChatMessage(content=completed.raw), finish_reason=completed.finish)
    return schemas.ChatReply(
        id=_new_id(), created=int(time.time()), model=request.model, choices=[choice], usage=completed.usage,
        clinkd=completed.reply,
    )  # fmt: skip


async def streamed(
    handler: RequestHandler, conversation: Conversation, picture: Opened, fault: Callable[[Exception], Any]
) -> AsyncIterator[bytes]:
    """The reply as server-sent events: drafts beside empty deltas, then the text, which does not change any more.

    What OpenAI's clients put together is the final answer alone; a beam may be overtaken until the last token.
    """
    request = conversation.request
    head = {"id": _new_id(), "object": "chat.completion.chunk", "created": int(time.time()), "model": request.model}

    def chunk(delta: dict[str, str], finish: str | None = None, **more: Any) -> bytes:
        return event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})

    yield chunk({"role": "assistant", "content": ""})
    try:
        async for told in handler.ask(picture, conversation.answer_request(picture, True), request.ignored):
            if isinstance(told, CompletedRequest):
                for piece in _pieces(told.raw):
                    yield chunk({"content": piece})
                yield chunk({}, told.finish, clinkd=told.reply.model_dump())
                if request.stream_options and request.stream_options.include_usage:
                    yield event({**head, "choices": [], "usage": told.usage.model_dump()})
            else:
                yield chunk({}, clinkd={"draft": told.model_dump()})
    except Exception as error:
        yield event(fault(error))
    yield b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _pieces(text: str, words: int = 4) -> Sequence[str]:
    """A text in pieces of some words each, nothing left out."""
    parts = text.split(" ")
    lines = [" ".join(parts[n : n + words]) for n in range(0, len(parts), words)]
    return [line if n == 0 else f" {line}" for n, line in enumerate(lines)]


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"

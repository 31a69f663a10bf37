"""OpenAI's chat completions: one image and a conversation about it, as one reply or stream_chat."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from clinkd.records import BOX_MARK, BadInput, BoxedText, Task, Turn
from clinkd.serving import schemas
from clinkd.serving.asking import CompletedRequest, RequestHandler, make_box, read_text
from clinkd.serving.decoding import Opened
from clinkd.serving.engine import AnswerRequest
from clinkd.serving.limits import ServerLimits, TimeLimit

if TYPE_CHECKING:
    from clinkd.workflows.ask import Answerer, Question

T = TypeVar("T")


class Conversation:
    """A request that was read: its one image, and the texts in turns, the user first and last.

    Raises BadInput for any other form, and if boxes and marks differ in number.
    """

    def __init__(self, request: schemas.ChatRequest, limits: ServerLimits) -> None:
        self.request = request
        self.texts: list[str] = []
        images: list[str] = []
        for number, message in enumerate(m for m in request.messages if m.role in ("user", "assistant")):
            if message.role != ("user", "assistant")[number % 2]:
                raise BadInput("messages: user and assistant take turns, and the user begins")
            if not isinstance(message.content, str):
                images += [p.image_url.url for p in message.content if isinstance(p, schemas.ImagePart)]
            self.texts.append(_text_of(message))
        if len(self.texts) % 2 == 0:
            raise BadInput("messages: the last one must be the user's")
        if len(self.texts) > 2 * limits.turns:
            raise BadInput(f"messages: more than {limits.turns} questions")
        if any(len(text) > limits.text for text in self.texts):
            raise BadInput(f"messages: a text of more than {limits.text:,} characters")
        if len(set(images)) != 1:
            raise BadInput(f"messages: {len(set(images))} images; exactly one is wanted")
        self.image = images[0]
        self.boxes = [make_box(corners) for corners in request.clinkd.boxes]
        marks = sum(text.count(BOX_MARK) for text in self.texts[::2])
        if marks != len(self.boxes) or marks > limits.boxes:
            raise BadInput(
                f"clinkd.boxes: {len(self.boxes)} boxes for {marks} {BOX_MARK} marks in the user's texts, "
                f"at most {limits.boxes}"
            )

    def answer_request(self, picture: Opened, wants_drafts: bool = False) -> AnswerRequest:
        """The request to the engine, whose question is made once the model is ready."""
        return AnswerRequest(partial(self._read_question, picture), self.request.options, wants_drafts)

    def _read_question(self, opened: Opened, answerer: Answerer) -> Question:
        from clinkd.workflows.ask import Question

        picture = opened.picture
        turns, boxes = list[Turn](), list(self.boxes)
        for question_text, answer_text in zip(self.texts[::2], [*self.texts[1::2], ""], strict=True):
            count = question_text.count(BOX_MARK)
            question = read_text(answerer, question_text, boxes[:count], picture)
            boxes = boxes[count:]
            turns.append(Turn(Task.QA, question, answerer.read(answer_text, picture) if answer_text else BoxedText("")))
        return Question((picture,), tuple(turns), opened.modality)


def _text_of(message: schemas.Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(p.text for p in message.content if isinstance(p, schemas.TextPart))


async def complete_chat(
    handler: RequestHandler, conversation: Conversation, picture: Opened, limit: TimeLimit
) -> schemas.ChatReply:
    """The reply in one piece."""
    request = conversation.request
    completed = await handler.answer(picture, conversation.answer_request(picture), limit, request.ignored)
    choice = schemas.Choice(message=schemas.ChatMessage(content=completed.raw), finish_reason=completed.finish)
    return schemas.ChatReply(
        id=_make_id(), created=int(time.time()), model=request.model, choices=[choice], usage=completed.usage,
        clinkd=completed.reply,
    )  # fmt: skip


async def stream_chat(
    handler: RequestHandler, conversation: Conversation, picture: Opened, limit: TimeLimit,
    describe_error: Callable[[Exception], Any],
) -> AsyncIterator[bytes]:  # fmt: skip
    """The reply as server-sent events: drafts beside empty deltas, then the text, which does not change any more.

    OpenAI's clients join only the deltas, so they get the final answer; the best beam may change until the last token.
    An error before the first draft is raised here, so that the reply has its status; a later one is an event.
    """
    events = handler.ask(picture, conversation.answer_request(picture, True), limit, conversation.request.ignored)
    return _write_events(await anext(events), events, conversation.request, describe_error)


async def _write_events(
    first: schemas.Draft | CompletedRequest,
    others: AsyncIterator[schemas.Draft | CompletedRequest],
    request: schemas.ChatRequest,
    describe_error: Callable[[Exception], Any],
) -> AsyncIterator[bytes]:
    head = {"id": _make_id(), "object": "chat.completion.chunk", "created": int(time.time()), "model": request.model}

    def chunk(delta: dict[str, str], finish: str | None = None, **more: Any) -> bytes:
        return encode_event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})

    yield chunk({"role": "assistant", "content": ""})
    try:
        async for news in _chain(first, others):
            if isinstance(news, CompletedRequest):
                for piece in _split_words(news.raw):
                    yield chunk({"content": piece})
                yield chunk({}, news.finish, clinkd=news.reply.model_dump())
                if request.stream_options and request.stream_options.include_usage:
                    yield encode_event({**head, "choices": [], "usage": news.usage.model_dump()})
            else:
                yield chunk({}, clinkd={"draft": news.model_dump()})
    except Exception as error:
        yield encode_event(describe_error(error))
    yield b"data: [DONE]\n\n"


async def _chain(first: T, others: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for other in others:
        yield other


def encode_event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _split_words(text: str, words: int = 4) -> Sequence[str]:
    """A text in pieces of a few words each; joined, they are the text."""
    parts = text.split(" ")
    pieces = [" ".join(parts[n : n + words]) for n in range(0, len(parts), words)]
    return [piece if n == 0 else f" {piece}" for n, piece in enumerate(pieces)]


def _make_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"

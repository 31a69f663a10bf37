"""One model, many who ask: questions that wait are answered together, and nobody waits without end.

The model works in a thread of its own, which also opens it; the server's loop only ever waits. Questions wait in a
bounded queue. Those of one batch are written together a token a step; one whose reader has left, or whose time is over,
is dropped from the queue, and a batch that nobody waits for any more is not written to its end.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from clinkd.records import BadInput, BoxedText
from clinkd.serving.options import AnswerOptions

if TYPE_CHECKING:
    from clinkd.config import AnswerConfig
    from clinkd.workflows.ask import Answer, Answerer, Question

DRAFT_SECONDS = 0.05  # at most so often a reader is shown what is being written
_NEWS = 0.2  # weight of the newest batch in the mean time of one


class QueueFull(Exception):
    """No more questions are taken. `seconds`: after which to come again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; come again in {seconds} s")
        self.seconds = seconds


class DeadlineExceeded(Exception):
    """The time for an answer is over."""


class ModelUnavailable(Exception):
    """There is no model to ask: it could not be opened, or the server stops. `seconds`: as of QueueFull."""

    seconds = 10


@dataclass
class AnswerRequest:
    """A question in the queue. `read` makes it of what the request held, once the model is there, and may refuse.

    Questions with the same options are answered together.
    """

    read: Callable[[Answerer], Question]
    options: AnswerOptions = field(default_factory=AnswerOptions)
    wants_drafts: bool = False


class AnswerResult(NamedTuple):
    """An answer, and the question as the model got it."""

    answer: Answer
    question: Question


@dataclass(eq=False)
class _Ticket:
    asked: AnswerRequest
    until: float
    loop: asyncio.AbstractEventLoop
    told: asyncio.Queue[BoxedText | AnswerResult | Exception] = field(default_factory=asyncio.Queue)
    gone: bool = False
    shown: float = 0.0

    @property
    def waits(self) -> bool:
        return not self.gone and time.monotonic() < self.until

    def tell(self, what: BoxedText | AnswerResult | Exception) -> None:
        if not self.gone:
            try:
                self.loop.call_soon_threadsafe(self.told.put_nowait, what)
            except RuntimeError:  # the loop is closed: the server has ended
                self.gone = True


class Engine:
    """The queue and the thread behind it."""

    def __init__(self, opened: Callable[[], Answerer], batch: int, queue: int) -> None:
        self.batch, self.queue = batch, queue
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.why: str | None = None
        self.answerer: Answerer | None = None
        self._opened = opened
        self._waiting: deque[_Ticket] = deque()
        self._change = threading.Condition()
        self._stopped = False
        self._batch_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Refuse all who wait."""
        with self._change:
            self._stopped = True
            self._change.notify()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def ask(self, asked: AnswerRequest, seconds: float) -> AsyncIterator[BoxedText | AnswerResult]:
        """Drafts, where they are wanted, then the answer. Who stops listening is forgotten.

        Raises QueueFull at once where too many wait, DeadlineExceeded when `seconds` are over, ModelUnavailable where
        there is no model, and what is wrong with the question as BadInput.
        """
        ticket = _Ticket(asked, time.monotonic() + seconds, asyncio.get_running_loop())
        with self._change:  # which one thread may enter twice
            self.demand_room()
            self._waiting.append(ticket)
            self._change.notify()
        try:
            while True:
                try:
                    told = await asyncio.wait_for(ticket.told.get(), max(0.0, ticket.until - time.monotonic()))
                except TimeoutError:
                    raise DeadlineExceeded(f"no answer within {seconds:g} s") from None
                if isinstance(told, Exception):
                    raise told
                yield told
                if isinstance(told, AnswerResult):
                    return
        finally:
            ticket.gone = True

    def demand_room(self) -> None:
        """Raises QueueFull or ModelUnavailable, as `ask` would now."""
        with self._change:
            if self.state == "failed" or self._stopped:
                raise ModelUnavailable(self.why or "the server stops")
            if len(self._waiting) >= self.queue:
                self._waiting = deque(t for t in self._waiting if t.waits)
            if len(self._waiting) >= self.queue:
                batches = math.ceil(len(self._waiting) / self.batch)
                raise QueueFull(max(1, math.ceil(batches * self._batch_seconds)))

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self.answerer = self._opened()
            self.state = "ready"
        except Exception as error:
            self.why = str(error) if isinstance(error, BadInput) else f"the model could not be opened ({_named(error)})"
            self.state = "failed"
            print(f"clinkd: {self.why}", file=sys.stderr)
        while batch := self._next():
            self._answer(batch)

    def _next(self) -> list[_Ticket]:
        """Those who have waited longest and want answers of one kind; none when the server stops."""
        with self._change:
            while True:
                self._waiting = deque(t for t in self._waiting if t.waits)
                if self._stopped or self.state == "failed":
                    for ticket in self._waiting:
                        ticket.tell(ModelUnavailable(self.why or "the server stops"))
                    self._waiting.clear()
                    return []
                if self._waiting:
                    break
                self._change.wait()
            options = self._waiting[0].asked.options
            batch = [t for t in self._waiting if t.asked.options == options][: self.batch]
            self._waiting = deque(t for t in self._waiting if t not in batch)
            return batch

    def _answer(self, tickets: Sequence[_Ticket]) -> None:
        assert self.answerer
        read: list[tuple[_Ticket, Question]] = []
        for ticket in tickets:
            try:
                read.append((ticket, ticket.asked.read(self.answerer)))
            except Exception as error:
                ticket.tell(_told(error))
        if not read:
            return
        start = time.monotonic()
        try:
            config = tickets[0].asked.options.change(self.answerer.config.answer)
            self._write([t for t, _ in read], [q for _, q in read], config)
        except Exception as error:
            if len(read) == 1:
                read[0][0].tell(_told(error))
            else:  # one of them is at fault: the others get their answers
                for ticket, _ in read:
                    self._answer([ticket])
        spent = time.monotonic() - start
        self._batch_seconds += (spent - self._batch_seconds) * (_NEWS if self._batch_seconds else 1.0)

    def _write(self, tickets: Sequence[_Ticket], questions: Sequence[Question], config: AnswerConfig) -> None:
        assert self.answerer
        writing = self.answerer.answering(questions, config)
        try:
            while any(t.waits for t in tickets):
                drafts, now = next(writing), time.monotonic()
                due = {n: t for n, t in enumerate(tickets) if t.asked.wants_drafts and now > t.shown + DRAFT_SECONDS}
                for n, text in drafts().items() if due else ():
                    if n in due:
                        due[n].shown = now
                        due[n].tell(text)
        except StopIteration as done:
            for ticket, question, answer in zip(tickets, questions, done.value, strict=True):
                ticket.tell(AnswerResult(answer, question))
        finally:
            writing.close()


def _told(error: Exception) -> Exception:
    """What may be told of an error to who asked: of a fault of ours, that there was one."""
    if isinstance(error, BadInput):
        return error
    print(f"clinkd: a question could not be answered ({_named(error)})", file=sys.stderr)
    return RuntimeError("a fault of the program")


def _named(error: Exception) -> str:
    """The kind of an error and where it was met, without its words, which may be a patient's."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}, {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"

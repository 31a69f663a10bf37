"""One model for many clients: waiting questions are answered in batches, and no client waits without end.

The model is opened and runs in its own thread; the server's event loop only waits. Questions wait in a bounded queue.
A batch is decoded together, one token a step. Its tokens are counted before: a question beyond a limit is refused, and
a large one is not joined with others. A question whose client has left, or whose time is over, is dropped from the
queue, and a batch for which no client waits is stopped.
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
from clinkd.serving.fair import CLIENT, FairShare
from clinkd.serving.limits import QueueFull, ServerLimits, TimeLimit
from clinkd.serving.options import AnswerOptions

if TYPE_CHECKING:
    from clinkd.config import AnswerConfig
    from clinkd.workflows.ask import Answer, Answerer, Question

DRAFT_SECONDS = 0.05  # between two drafts of an answer, at least
FINISH_SECONDS = 3.0  # that a batch has to end when the server stops
LONG_TURN = 4.0  # times the mean seconds of a batch, after which a batch gives way to another client that waits
_LOOK_SECONDS = 0.1  # between two looks whether the model is ready
_LEAST_TURN = 1.0  # seconds that a batch has in any case
_NEWEST_WEIGHT = 0.2  # weight of the newest batch in the mean seconds of a batch


class ModelUnavailable(Exception):
    """The model could not be opened, or the server stops. `seconds`: after which to come again."""

    seconds = 10


@dataclass
class AnswerRequest:
    """A request for the queue. `read` makes the question once the model is ready, and may raise BadInput.

    Requests with the same options are answered together.
    """

    read: Callable[[Answerer], Question]
    options: AnswerOptions = field(default_factory=AnswerOptions)
    wants_drafts: bool = False


class _GaveWay(Exception):
    """A batch took long, and others wait."""


class AnswerResult(NamedTuple):
    """An answer, and its question as the model got it."""

    answer: Answer
    question: Question


@dataclass(eq=False)
class _QueuedRequest:
    request: AnswerRequest
    limit: TimeLimit
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[BoxedText | AnswerResult | Exception] = field(default_factory=asyncio.Queue)
    address: str = field(default_factory=CLIENT.get)
    abandoned: bool = False
    gave_way: bool = False  # it is not joined with others that did not
    shown: float = 0.0  # when its last draft was sent, on the monotonic clock
    question: Question | None = None  # once it is read
    prompt: int = 0  # its tokens

    @property
    def waits(self) -> bool:
        return not self.abandoned and self.limit.left > 0

    def send(self, event: BoxedText | AnswerResult | Exception) -> None:
        if not self.abandoned:
            try:
                self.loop.call_soon_threadsafe(self.events.put_nowait, event)
            except RuntimeError:  # the loop is closed: the server has ended
                self.abandoned = True


class Engine:
    """The queue and the thread behind it."""

    def __init__(self, open_answerer: Callable[[], Answerer], limits: ServerLimits) -> None:
        self.limits = limits
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.why: str | None = None
        self.answerer: Answerer | None = None
        self._open_answerer = open_answerer
        self._waiting: deque[_QueuedRequest] = deque()
        self._share = FairShare()
        self._change = threading.Condition()
        self._stopped = False
        self._ends_at = math.inf  # on the monotonic clock
        self._batch_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Refuse all waiting requests, and soon those that are being answered."""
        with self._change:
            if not self._stopped:
                self._stopped, self._ends_at = True, time.monotonic() + FINISH_SECONDS
            self._change.notify()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def wait_until_loaded(self) -> None:
        """Return when the model is ready, or none will be: for those whose time does not begin before."""
        while self.state == "loading" and not self._stopped:
            await asyncio.sleep(_LOOK_SECONDS)

    async def ask(self, request: AnswerRequest, limit: TimeLimit) -> AsyncIterator[BoxedText | AnswerResult]:
        """Drafts if they are wanted, then the answer. A caller that stops listening leaves the queue.

        Raises QueueFull at once if too many requests wait, DeadlineExceeded when the time is over, ModelUnavailable if
        there is no model, and BadInput for a question that is wrong or too long.
        """
        queued = _QueuedRequest(request, limit, asyncio.get_running_loop())
        with self._change:  # one thread may enter it twice
            self.demand_room()
            self._waiting.append(queued)
            self._change.notify()
        try:
            while True:
                try:
                    event = await asyncio.wait_for(queued.events.get(), limit.left)
                except TimeoutError:
                    raise limit.error() from None
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, AnswerResult):
                    return
        finally:
            queued.abandoned = True

    def demand_room(self) -> None:
        """Raises QueueFull or ModelUnavailable, as `ask` would now."""
        with self._change:
            if self.state == "failed" or self._stopped:
                raise ModelUnavailable(self.why or "the server stops")
            if len(self._waiting) >= self.limits.queue:
                self._waiting = deque(t for t in self._waiting if t.waits)
            batches = math.ceil(len(self._waiting) / self.limits.batch)
            full = QueueFull(max(1, math.ceil(batches * self._batch_seconds)))
            self._share.demand_room(CLIENT.get(), [t.address for t in self._waiting], self.limits.queue, full)

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self.answerer = self._open_answerer()
            self.state = "ready"
        except Exception as error:
            self.why = str(error) if isinstance(error, BadInput) else f"the model could not be opened ({_trace(error)})"
            self.state = "failed"
            print(f"clinkd: {self.why}", file=sys.stderr)
        while self._answer_next():
            pass

    def _answer_next(self) -> bool:
        """Answer a batch, of which nothing is kept while the next one is waited for; False when the server stops."""
        batch = self._take_batch()
        if batch:
            self._answer(batch)
        return bool(batch)

    def _take_batch(self) -> list[_QueuedRequest]:
        """Requests with equal options, those first whose clients had the least of the model's time lately, then those
        that waited longest; none when the server stops."""
        with self._change:
            while True:
                self._waiting = deque(t for t in self._waiting if t.waits)
                if self._stopped or self.state == "failed":
                    for queued in self._waiting:
                        queued.send(ModelUnavailable(self.why or "the server stops"))
                    self._waiting.clear()
                    return []
                if self._waiting:
                    break
                self._change.wait()
            spent = self._share.spent()
            in_turn = sorted(self._waiting, key=lambda queued: spent.get(queued.address, 0.0))
            options, gave_way = in_turn[0].request.options, in_turn[0].gave_way
            alike = [t for t in in_turn if t.request.options == options and t.gave_way == gave_way]
            batch = alike[: self.limits.batch]
            self._waiting = deque(t for t in self._waiting if t not in batch)
            return batch

    def _answer(self, batch: Sequence[_QueuedRequest]) -> None:
        assert self.answerer
        batch = self._put_back_large([queued for queued in batch if self._read(queued)])
        if not batch:
            return
        start = time.monotonic()
        try:
            self._decode(batch, batch[0].request.options.change(self.answerer.config.answer))
        except _GaveWay:  # answered from its beginning when its client's turn comes again
            with self._change:
                for queued in batch:
                    queued.gave_way = True
                self._waiting.extend(batch)
                self._charge(batch, time.monotonic() - start)
            return
        except Exception as error:
            if len(batch) == 1:
                batch[0].send(_safe_error(error))
            else:  # one request is at fault: the others get their answers
                for queued in batch:
                    self._answer([queued])
        seconds = time.monotonic() - start
        with self._change:
            self._charge(batch, seconds)
        self._batch_seconds += (seconds - self._batch_seconds) * (_NEWEST_WEIGHT if self._batch_seconds else 1.0)

    def _charge(self, batch: Sequence[_QueuedRequest], seconds: float) -> None:
        for queued in batch:
            self._share.spend(queued.address, seconds / len(batch))

    def _demand_turn(self, batch: Sequence[_QueuedRequest], start: float) -> None:
        """Raises _GaveWay if a batch takes much longer than others do, and another client waits, with no such batch."""
        if time.monotonic() - start > max(_LEAST_TURN, LONG_TURN * self._batch_seconds):
            addresses = {queued.address for queued in batch}
            with self._change:
                others = (queued for queued in self._waiting if queued.waits and not queued.gave_way)
                if any(queued.address not in addresses for queued in others):
                    raise _GaveWay

    def _read(self, queued: _QueuedRequest) -> bool:
        """Read the question and count its tokens; its client is told where it cannot be answered."""
        assert self.answerer
        if queued.question is not None:
            return True
        try:
            question, limits = queued.request.read(self.answerer), self.limits
            queued.prompt = self.answerer.count_prompt_tokens(question)
            if queued.prompt > limits.prompt_tokens:
                raise BadInput(
                    f"{queued.prompt:,} tokens of image, conversation and question, more than "
                    f"{limits.prompt_tokens:,}: shorten them, or have the server started with more --prompt-tokens"
                )
            if (tokens := self._count_tokens([queued])) > limits.batch_tokens:
                raise BadInput(
                    f"{tokens:,} tokens of all beams with max_new_tokens, more than {limits.batch_tokens:,}: lower "
                    "beams, candidates or max_new_tokens, or have the server started with more --batch-tokens"
                )
            queued.question = question
        except Exception as error:
            queued.send(_safe_error(error))
        return queued.question is not None

    def _count_tokens(self, batch: Sequence[_QueuedRequest]) -> int:
        """The most tokens that a batch with equal options may come to hold."""
        assert self.answerer
        config = batch[0].request.options.change(self.answerer.config.answer)
        rows = len(batch) * (config.beams if config.method == "beams" else config.candidates)
        return rows * (max(queued.prompt for queued in batch) + config.max_new_tokens)

    def _put_back_large(self, batch: Sequence[_QueuedRequest]) -> list[_QueuedRequest]:
        """The part of a batch within the limit of tokens; the others are the next in the queue."""
        part, others = list[_QueuedRequest](), list[_QueuedRequest]()
        for queued in batch:
            fits = self._count_tokens([*part, queued]) <= self.limits.batch_tokens
            (part if fits else others).append(queued)
        with self._change:
            self._waiting.extendleft(reversed(others))
        return part

    def _decode(self, batch: Sequence[_QueuedRequest], config: AnswerConfig) -> None:
        assert self.answerer
        questions = [queued.question for queued in batch if queued.question]
        writing, start = self.answerer.stream_answers(questions, config), time.monotonic()
        try:
            while any(t.waits for t in batch):
                self._demand_turn(batch, start)
                if time.monotonic() > self._ends_at:
                    raise ModelUnavailable("the server stops")
                drafts, now = next(writing), time.monotonic()
                due = {n: t for n, t in enumerate(batch) if t.request.wants_drafts and now > t.shown + DRAFT_SECONDS}
                for n, text in drafts().items() if due else ():
                    if n in due:
                        due[n].shown = now
                        due[n].send(text)
        except StopIteration as done:
            for queued, question, answer in zip(batch, questions, done.value, strict=True):
                queued.send(AnswerResult(answer, question))
        finally:
            writing.close()


def _safe_error(error: Exception) -> Exception:
    """The error for the client; a fault of the program without its words."""
    if isinstance(error, BadInput | ModelUnavailable):
        return error
    print(f"clinkd: a question could not be answered ({_trace(error)})", file=sys.stderr)
    return RuntimeError("a fault of the program")


def _trace(error: Exception) -> str:
    """The type of an error and its place, without its words, which may be a patient's."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}, {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"

"""Listen to an archive beside the page: the model of the server answers what arrives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from clinkd.data.dicom_objects import WARNINGS
from clinkd.hospital.listen import Listening, ModelBusy, Send
from clinkd.hospital.polling import Polling
from clinkd.hospital.rules import Rules
from clinkd.hospital.worklist import (
    AnswerCaution,
    FoundRegion,
    ModelAnswer,
    Worklist,
    WorklistDecision,
    WorklistEntry,
    WorklistLimits,
)
from clinkd.pacs import Archive, Receiver, ReceiverAddress, ReceiverLimits
from clinkd.records import BOX_MARK, BadInput, Box
from clinkd.serving.asking import RequestHandler, read_question
from clinkd.serving.decoding import Decoders
from clinkd.serving.engine import AnswerRequest, Engine, ModelUnavailable
from clinkd.serving.limits import NOTICE, DeadlineExceeded, QueueFull, TimeLimit

T = TypeVar("T")
ANSWER_SECONDS = 600.0  # by a model that is ready; nobody waits at a page for these answers
_BUSY_SECONDS = 2.0


@dataclass(frozen=True)
class ListenPlan:
    """What to listen to, what to ask, and where answers go. `model`: name and fingerprint of the model."""

    folder: Path
    rules: Rules
    model: tuple[str, str]
    receiver: ReceiverAddress | None = None
    receiver_limits: ReceiverLimits | None = None
    polling: Polling | None = None
    archive: Archive | None = None
    send: Send = "accepted"
    limits: WorklistLimits | None = None


@contextmanager
def listening(plan: ListenPlan, say: Callable[[str], object], engine: Engine) -> Iterator[Worklist]:
    """Listen in the block, by the model of an engine. `say` is told what is done with images and answers."""
    with ExitStack() as ends:
        receiver, port = None, 0
        if plan.receiver:
            receiver = Receiver(
                plan.receiver, lambda content: running.receive(content), plan.receiver_limits,
                lambda line: running.troubles.tell(line),
            )  # fmt: skip
            ends.callback(receiver.stop)
            port = receiver.bind()  # before all else: where it is taken, nothing is left behind
        worklist = Worklist(plan.folder, plan.model[1], plan.limits)
        ends.callback(lambda: [say(line) for line in _describe_end(worklist)])
        ends.callback(worklist.close)
        running = Listening(worklist, plan.rules, plan.archive, plan.send)
        desk = ServedDesk(engine, plan.model)
        ends.callback(desk.close)
        ends.callback(running.stop)
        if receiver:
            ends.callback(receiver.stop)
            receiver.start()
            say(f"listens  {receiver.address.host}:{port} as {receiver.address.title} (C-STORE, C-ECHO)")
        for line in _describe(plan, worklist):
            say(line)
        running.start(desk, polling=plan.polling)
        yield worklist


def _describe_end(worklist: Worklist) -> Iterator[str]:
    if worklist.left_out:
        counts = ", ".join(f"{number} {modality}" for modality, number in sorted(worklist.left_out.items()))
        yield f"not kept {counts}: no rule asks about them"


def _describe(plan: ListenPlan, worklist: Worklist) -> Iterator[str]:
    yield f"notice   {NOTICE} Every object that is sent says so."
    yield f"rules    {', '.join(plan.rules)}"
    counts = {state: number for state, number in worklist.counts().items() if number}
    yield f"worklist {plan.folder}: {', '.join(f'{n} {state}' for state, n in counts.items()) or 'empty'}"
    if (days := worklist.limits.keep_days) is not None:
        yield f"keeps    images {days:g} days after all about them was sent, rejected or failed"
    if plan.polling:
        yield f"polls    every {plan.polling.every_seconds:g} s, for studies of today and yesterday"
    if plan.archive is None:
        yield "sends    nothing: no --to"
    elif plan.send == "all":
        yield "sends    EVERY answer, also those that nobody has seen (--send all)"
    else:
        yield "sends    only answers that a person accepted"


class ServedDesk:
    """Answers by an engine, from threads. It has a loop and decoders of its own: what arrives keeps no page waiting."""

    def __init__(self, engine: Engine, model: tuple[str, str]) -> None:
        self.model = model
        self.handler = RequestHandler(engine, Decoders(engine.limits), engine.limits)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="desk", daemon=True)
        self._thread.start()

    def answer(self, entry: WorklistEntry, image: bytes) -> ModelAnswer:
        return self._wait(self._answer(entry, image))

    def write_report(self, entry: WorklistEntry, image: bytes) -> bytes:
        return self._wait(self._write_report(entry, image))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self.handler.decoders.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except QueueFull as full:
            raise ModelBusy(full.seconds) from None
        except ModelUnavailable:
            raise ModelBusy(_BUSY_SECONDS) from None
        except DeadlineExceeded as late:
            raise BadInput(str(late)) from None

    async def _answer(self, entry: WorklistEntry, image: bytes) -> ModelAnswer:
        await self.handler.engine.wait_until_loaded()
        picture = await self.handler.open_picture(image, entry.frame)
        request = AnswerRequest(partial(read_question, picture, entry.question, ()))
        reply = (await self.handler.answer(picture, request, TimeLimit(ANSWER_SECONDS))).reply
        regions = tuple(FoundRegion(Box(*named.box), named.phrase) for named in reply.boxes)
        cautions = [AnswerCaution(warning.kind, warning.message) for warning in reply.warnings]
        if reply.why is not None:
            cautions.append(AnswerCaution("uncertain", reply.why))
        answered = datetime.now(UTC).isoformat(timespec="seconds")
        return ModelAnswer(reply.text, regions, tuple(cautions), reply.confidence, answered, *self.model)

    async def _write_report(self, entry: WorklistEntry, image: bytes) -> bytes:
        assert entry.answer
        by_person = isinstance(entry.final, WorklistDecision) and entry.final.kind == "edited"
        told = entry.final or entry.answer
        fields: dict[str, Any] = {} if by_person else {"confidence": entry.answer.confidence}
        return await self.handler.decoders.report(
            image,
            frame=entry.frame,
            question=entry.question,
            answer=" ".join(told.text.replace(BOX_MARK, "").split()),
            regions=[
                {"box": list(r.box.corners), "label": r.name, "by": "person" if by_person else "model"}
                for r in told.boxes
            ],
            warnings=[(c.kind, c.message) for c in entry.answer.warnings if c.kind in WARNINGS],
            model=entry.answer.model,
            version=entry.answer.version,
            answered=entry.answer.answered or None,
            **fields,
        )

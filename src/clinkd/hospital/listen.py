"""Listen to an archive: what arrives is kept, asked by rules, answered once, and sent back when a person accepted it.

All that must survive a kill is in the worklist; the threads here only move its entries on.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, Protocol

from clinkd.hospital.correction_rows import CORRECTIONS, make_corrections
from clinkd.hospital.object_kinds import PLACE, ObjectKind, read_arrival, read_kind
from clinkd.hospital.polling import PolledArchive, Polling
from clinkd.hospital.pull import NO_IMAGES
from clinkd.hospital.rules import MODALITIES, Rules, ask_by_rules
from clinkd.hospital.telling import RecurringTroubles, tell
from clinkd.hospital.worklist import (
    LONGEST_WAIT,
    ArrivedImage,
    ModelAnswer,
    RuledQuestion,
    Worklist,
    WorklistEntry,
    WorklistFull,
    WorklistUnwritable,
)
from clinkd.pacs import Archive, StoreRefusal, StoreStatus
from clinkd.records import BadInput
from clinkd.storage import write_atomic

_REMOVE_SECONDS = 3600.0  # between two looks for images that are not kept any more
_RETRY_SECONDS = 5.0  # of what could not be sent; twice as long each time
Send = Literal["accepted", "all"]


class ModelBusy(Exception):
    """The model takes no question now; try again after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class AnsweringDesk(Protocol):
    """Who answers, in several threads."""

    def answer(self, entry: WorklistEntry, image: bytes) -> ModelAnswer:
        """Raises BadInput where the image or the question cannot be answered, and ModelBusy."""
        ...

    def write_report(self, entry: WorklistEntry, image: bytes) -> bytes:
        """The object to send: the same for the same entry. Raises BadInput where there can be none, and ModelBusy."""
        ...


class Listening:
    """Takes images (`receive` goes to a receiver), and from `start` to `stop` has them answered and sent."""

    def __init__(
        self, worklist: Worklist, rules: Rules, archive: Archive | None = None, send: Send = "accepted"
    ) -> None:
        """`archive`: where answers are sent, None: nowhere; `send`: which of them."""
        self.worklist, self.rules, self.archive, self.send = worklist, rules, archive, send
        worklist.sends = send if archive else "nothing"
        self.counts = Counter[str]()  # of what happened since the start
        self.troubles = RecurringTroubles()
        self._desk: AnsweringDesk | None = None
        self._threads: list[threading.Thread] = []
        self._change = threading.Condition()
        self.stopped = False  # nothing more is begun
        self._version = 0
        self._answering: set[str] = set()
        self._put_off = Counter[str]()
        self._stored = set[str]()  # ids that an archive took, but that are not written down as sent
        self._corrected: list[tuple[str, int]] | None = None  # decisions that the file of corrections has
        worklist.notify(self._wake)

    def receive(self, content: bytes) -> None:
        """As `take`, for a receiver: what cannot be read is told here, too, where the sender has only a status."""
        try:
            self.take(content)
        except BadInput as error:
            self.troubles.tell(f"an image is refused: {str(error).removeprefix(f'{PLACE}: ')}")
            raise

    def take(self, content: bytes) -> None:
        """Keep an image and the questions about it. When this returns, they are on the disk.

        Raises BadInput and StoreRefusal with the reason why it is not kept.
        """
        kind, questions = read_kind(content), list[RuledQuestion]()
        asked = ask_by_rules(self.rules, ArrivedImage("", "", "", kind.modality, kind.body_part))
        if kind.image and (kind.decodable or asked):  # damaged ones are refused, also those that nobody asks about
            facts = read_arrival(content, kind)
            questions = ask_by_rules(self.rules, facts)
        if not questions:
            self._leave_out(kind)
            raise StoreRefusal(StoreStatus.NOT_ASKED, "no rule asks about such an object; it is not kept")
        try:
            self.worklist.add_image(content, facts, questions)
        except (WorklistFull, WorklistUnwritable) as full:
            self.troubles.tell(f"images are refused: {full}")
            why = str(full).removeprefix(f"{self.worklist.folder}: ")  # a path is nothing for the network
            raise StoreRefusal(StoreStatus.OUT_OF_RESOURCES, why) from None
        self.counts["images"] += 1

    def _leave_out(self, kind: ObjectKind) -> None:
        """Count an object that no rule asks about, and tell of the first of each modality."""
        word = kind.modality if kind.modality in (*MODALITIES, *NO_IMAGES) else "other"
        if self.worklist.leave_out(word) == 1:
            elsewhere = kind.image and any(word in rule.modality and rule.body_part for rule in self.rules.values())
            part = "of this body part" if kind.body_part else "without a body part"
            asked = f"its rules ask about none {part} (BodyPartExamined)" if elsewhere else "no rule asks about it"
            tell(f"{word}: {asked}, so it is not kept; told once, counted on the page")

    def start(self, desk: AnsweringDesk, answering: int = 4, polling: Polling | None = None) -> None:
        """Begin to answer, `answering` questions at a time, to send, to poll and to remove what is not kept."""
        self._desk = desk
        loops: list[tuple[str, Callable[[], object]]] = [("answers", self._answer_next)] * answering
        loops.append(("corrections", self._write_corrections))
        if self.archive is not None:
            loops.append(("sending", self._send_next))
        if polling is not None:
            polled = PolledArchive(polling.archive, self)
            loops.append(("polling", lambda: self._poll(polled, polling.every_seconds)))
        if self.worklist.limits.keep_days is not None:
            loops.append(("retention", self._remove_settled))
        self._threads = [threading.Thread(target=self._run, args=(step,), name=n, daemon=True) for n, step in loops]
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """Begin nothing more, and wait for what is under way; what is not done waits in the worklist."""
        with self._change:
            self.stopped = True
            self._change.notify_all()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _wake(self) -> None:
        with self._change:
            self._version += 1
            self._change.notify_all()

    def _run(self, step: Callable[[], object]) -> None:
        """Repeat a step that returns the seconds to wait where nothing is to be done, until the next change."""
        while not self.stopped:
            version = self._version
            try:
                seconds = step()
            except Exception as error:
                known = isinstance(error, WorklistUnwritable)  # words of another may be a patient's
                self.troubles.tell(str(error) if known else f"a fault of the program ({type(error).__name__})")
                self._pause(_RETRY_SECONDS)  # changes of others would end another wait at once
                continue
            if isinstance(seconds, float):
                self._wait_for_change(version, seconds)

    def _wait_for_change(self, version: int, seconds: float) -> None:
        with self._change:
            self._change.wait_for(lambda: self.stopped or self._version != version, seconds)

    # -- answering ----------------------------------------------------------------------------------------------------

    def _answer_next(self) -> float | None:
        assert self._desk
        with self._change:
            entry = self.worklist.next_waiting(skip=sorted(self._answering))
            if entry is None:
                return 60.0
            self._answering.add(entry.id)
        try:
            answer = self._desk.answer(entry, self.worklist.image(entry.id))
            if self.worklist.set_answer(entry.id, answer):
                self.counts["answers"] += 1
        except ModelBusy as busy:
            self._pause(busy.seconds)
        except WorklistUnwritable:  # no fault of the image: it waits
            raise
        except BadInput as error:
            self.worklist.fail(entry.id, str(error))
        except Exception as error:
            self.worklist.fail(entry.id, f"a fault of the program ({type(error).__name__})")
        finally:
            self._answering.discard(entry.id)
        return None

    def _pause(self, seconds: float) -> None:
        with self._change:
            self._change.wait_for(lambda: self.stopped, seconds)

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send_next(self) -> float | None:
        assert self._desk and self.archive
        entry = self.worklist.take_unsent(undecided=self.send == "all")
        if entry is None:
            return _RETRY_SECONDS
        try:
            if entry.id not in self._stored:
                self.archive.store(self._desk.write_report(entry, self.worklist.image(entry.id)))
                self._stored.add(entry.id)
        except ModelBusy as busy:
            self._pause(busy.seconds)
            return None
        except BadInput as error:
            seconds = min(_RETRY_SECONDS * 2 ** self._put_off[entry.id], LONGEST_WAIT)
            self._put_off[entry.id] += 1
            self.worklist.put_off(entry.id, str(error), seconds)
            return None
        self.worklist.set_sent(entry.id)
        self._stored.discard(entry.id)
        self._put_off.pop(entry.id, None)
        self.counts["sent"] += 1
        return None

    # -- polling ------------------------------------------------------------------------------------------------------

    def _poll(self, polled: PolledArchive, every_seconds: float) -> None:
        polled.poll()
        self._pause(every_seconds)

    # -- retention ----------------------------------------------------------------------------------------------------

    def _remove_settled(self) -> None:
        self.counts["removed"] += self.worklist.remove_settled()
        self._pause(_REMOVE_SECONDS)

    # -- corrections --------------------------------------------------------------------------------------------------

    def _write_corrections(self) -> float:
        """Write what people answered better than the model, where a decision changed: images are read for it."""
        file = self.worklist.folder / CORRECTIONS
        decided = [(entry.id, entry.revision) for entry in self.worklist.list_decided("edited", "rejected")]
        if decided == self._corrected and file.exists():
            return 3600.0
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make_corrections(self.worklist))
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        if text != before:
            write_atomic(file, text)
        self._corrected = decided
        return 3600.0

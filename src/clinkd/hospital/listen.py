"""Listen to an archive: what arrives is kept, asked by rules, answered once, and sent back when a person accepted it.

All that must survive a kill is in the worklist; the threads here only move its entries on.
"""

from __future__ import annotations

import io
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal, NamedTuple, Protocol

from clinkd.data.images import kind_of
from clinkd.data.images.dicom_header import open_header
from clinkd.data.images.limits import UPLOADS
from clinkd.hospital.pull import NO_IMAGES
from clinkd.hospital.rules import MODALITIES, Rules, ask_by_rules
from clinkd.hospital.worklist import (
    IMAGES,
    LONGEST_WAIT,
    ArrivedImage,
    ModelAnswer,
    RuledQuestion,
    Worklist,
    WorklistEntry,
    WorklistFull,
    WorklistUnwritable,
)
from clinkd.pacs import (
    Archive,
    ArchiveUnreachable,
    SeriesIncomplete,
    SeriesReference,
    StoreRefusal,
    StoreStatus,
    StudyQuery,
    read_instance_header,
)
from clinkd.records import BadInput, Modality, is_uid
from clinkd.storage import write_atomic

PLACE = "the image"
CORRECTIONS = "corrections.jsonl"  # in the folder of the worklist; `clinkd data import` reads it
_REMOVE_SECONDS = 3600.0  # between two looks for images that are not kept any more
_RETRY_SECONDS = 5.0  # of what could not be sent; twice as long each time
_TELL_SECONDS = 600.0  # until the same trouble is told again
_FIELDS = ("SOPInstanceUID", "SOPClassUID", "BodyPartExamined")  # in no order but that the last of the header is last
_LEVELS = ("Study", "Series", "SOP")
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


@dataclass(frozen=True, slots=True)
class Polling:
    """Ask an archive for new images: of today and the day before, by the modalities of the rules."""

    archive: Archive
    every_seconds: float = 60.0


class ObjectKind(NamedTuple):
    """What a DICOM object is, by the first elements of its header. `image`: by its class; `decodable`: whether pixels
    that are compressed so are read."""

    modality: str
    body_part: str
    image: bool
    decodable: bool


def read_kind(content: bytes) -> ObjectKind:
    """Raises BadInput for what is no readable DICOM, and StoreRefusal where its own UIDs are not those under which it
    was sent."""
    from pydicom.uid import UID

    stream = io.BytesIO(content)
    if not kind_of(stream).reportable:
        raise BadInput(f"{PLACE}: not a DICOM")
    with open_header(stream, PLACE, UPLOADS, also=_FIELDS, until=_FIELDS[-1]) as header:
        ds, decodable = header.ds, header.decodable
        sent = [str(ds.file_meta.get(f"MediaStorage{name}") or "") for name in _FIELDS[:2]]
        stated = [str(ds.get(name) or "") for name in _FIELDS[:2]]
        modality, body_part = _read_term(ds.get("Modality")), _read_term(ds.get("BodyPartExamined"))
    if not all(map(is_uid, stated)):
        raise BadInput(f"{PLACE}: its own UID, or that of its class, is missing or not valid")
    if any(name and name != own for name, own in zip(sent, stated, strict=True)):
        raise StoreRefusal(StoreStatus.MISMATCH, "its UIDs are not those of the request")
    return ObjectKind(modality, body_part, "Image" in UID(stated[1]).keyword, decodable)


def read_arrival(content: bytes, kind: ObjectKind) -> ArrivedImage:
    """The facts of a DICOM image of this kind, from its header alone. Raises BadInput for what is no readable one."""
    with open_header(io.BytesIO(content), PLACE, UPLOADS, also=_FIELDS) as header:
        study, series, instance = [str(header.ds.get(f"{level}InstanceUID") or "") for level in _LEVELS]
        frames = header.frames
    if not all(map(is_uid, (study, series, instance))):
        raise BadInput(f"{PLACE}: the UID of its study, its series or itself is missing or not valid")
    return ArrivedImage(study, series, instance, kind.modality, kind.body_part, frames)


def _read_term(value: object) -> str:
    """A word of the header if it has the form of one (VR CS), otherwise ""; no free text passes."""
    word = str(value or "").strip().upper()
    return word if len(word) <= 16 and word.isascii() and word.replace("_", "").replace(" ", "").isalnum() else ""


class _Known:
    """SOP Instance UIDs that need not be fetched: of the worklist, and of what was refused since the start."""

    def __init__(self, worklist: Worklist) -> None:
        self.worklist, self.refused = worklist, set[str]()

    def __contains__(self, instance: object) -> bool:
        return instance in self.refused or self.worklist.knows(str(instance))


class Listening:
    """Takes images (`receive` goes to a receiver), and from `start` to `stop` has them answered and sent."""

    def __init__(
        self, worklist: Worklist, rules: Rules, archive: Archive | None = None, send: Send = "accepted"
    ) -> None:
        """`archive`: where answers are sent, None: nowhere; `send`: which of them."""
        self.worklist, self.rules, self.archive, self.send = worklist, rules, archive, send
        worklist.sends = send if archive else "nothing"
        self.counts = Counter[str]()  # of what happened since the start
        self._desk: AnsweringDesk | None = None
        self._threads: list[threading.Thread] = []
        self._change = threading.Condition()
        self._version, self._stopped = 0, False
        self._answering: set[str] = set()
        self._put_off = Counter[str]()
        self._stored = set[str]()  # ids that an archive took, but that are not written down as sent
        self._told = dict[str, float]()  # when a trouble was told, on the monotonic clock
        self._corrected: list[tuple[str, int]] | None = None  # decisions that the file of corrections has
        self._known = _Known(worklist)
        worklist.notify(self._wake)

    def receive(self, content: bytes) -> None:
        """As `take`, for a receiver: what cannot be read is told here, too, where the sender has only a status."""
        try:
            self.take(content)
        except BadInput as error:
            self.tell_trouble(f"an image is refused: {str(error).removeprefix(f'{PLACE}: ')}")
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
            self._leave_out(kind.modality)
            raise StoreRefusal(StoreStatus.NOT_ASKED, "no rule asks about such an object; it is not kept")
        try:
            self.worklist.add_image(content, facts, questions)
        except (WorklistFull, WorklistUnwritable) as full:
            self.tell_trouble(f"images are refused: {full}")
            why = str(full).removeprefix(f"{self.worklist.folder}: ")  # a path is nothing for the network
            raise StoreRefusal(StoreStatus.OUT_OF_RESOURCES, why) from None
        self.counts["images"] += 1

    def _leave_out(self, modality: str) -> None:
        """Count an object that no rule asks about, and tell of the first of each modality."""
        word = modality if modality in (*MODALITIES, *NO_IMAGES) else "other"
        if self.worklist.leave_out(word) == 1:
            _tell(f"{word}: no rule asks about it, so it is not kept; told once, counted on the page")

    def start(self, desk: AnsweringDesk, answering: int = 4, polling: Polling | None = None) -> None:
        """Begin to answer, `answering` questions at a time, to send, to poll and to remove what is not kept."""
        self._desk = desk
        loops: list[tuple[str, Callable[[], object]]] = [("answers", self._answer_next)] * answering
        loops.append(("corrections", self._write_corrections))
        if self.archive is not None:
            loops.append(("sending", self._send_next))
        if polling is not None:
            loops.append(("polling", lambda: self._poll(polling)))
        if self.worklist.limits.keep_days is not None:
            loops.append(("retention", self._remove_settled))
        self._threads = [threading.Thread(target=self._run, args=(step,), name=n, daemon=True) for n, step in loops]
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """Begin nothing more, and wait for what is under way; what is not done waits in the worklist."""
        with self._change:
            self._stopped = True
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
        while not self._stopped:
            version = self._version
            try:
                seconds = step()
            except WorklistUnwritable as error:
                self.tell_trouble(str(error))
                self._pause(_RETRY_SECONDS)  # changes of others would end another wait at once
                continue
            except Exception as error:  # its words may be a patient's
                self.tell_trouble(f"a fault of the program ({type(error).__name__})")
                self._pause(_RETRY_SECONDS)
                continue
            if isinstance(seconds, float):
                self._wait_for_change(version, seconds)

    def tell_trouble(self, line: str) -> None:
        """Tell a line that may come again and again, once in a while."""
        now = time.monotonic()
        if self._told.get(line, -math.inf) + _TELL_SECONDS <= now:
            self._told = {old: told for old, told in self._told.items() if told + _TELL_SECONDS > now} | {line: now}
            _tell(line)

    def _wait_for_change(self, version: int, seconds: float) -> None:
        with self._change:
            self._change.wait_for(lambda: self._stopped or self._version != version, seconds)

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
            self._change.wait_for(lambda: self._stopped, seconds)

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

    def _poll(self, polling: Polling) -> None:
        """Fetch the images of the archive that are not known yet. A refusal or a lost connection is told, and the next
        round tries again."""
        try:
            for series in find_recent_series(polling.archive, self.rules):
                self._poll_series(polling.archive, series)
                if self._stopped:
                    return
        except BadInput as error:
            _tell(str(error))
        except StoreRefusal as full:
            _tell(f"no more images are fetched: {full}")
        self._pause(polling.every_seconds)

    def _poll_series(self, archive: Archive, series: SeriesReference) -> None:
        try:
            for content in archive.fetch_series(series, skip=self._known):
                self._take_polled(content)
                if self._stopped:
                    return
        except ArchiveUnreachable:
            raise
        except SeriesIncomplete as error:
            for instance in error.unusable:
                self._refuse(instance, error.failures[instance])
            if len(error.failures) > len(error.unusable):
                _tell(str(error))
        except BadInput as error:  # of this series alone
            _tell(str(error))

    def _take_polled(self, content: bytes) -> None:
        try:
            self.take(content)
        except (BadInput, StoreRefusal) as error:
            if isinstance(error, StoreRefusal) and error.status == StoreStatus.OUT_OF_RESOURCES:
                raise
            instance = read_instance_header(content).instance
            self._refuse(instance, f"instance {instance}: {error}" if isinstance(error, BadInput) else "")

    def _refuse(self, instance: str, told: str) -> None:
        """Fetch an image no more until the next start; what is told is told once."""
        self.counts["refused"] += 1
        self._known.refused.add(instance)
        if told:
            _tell(told)

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


def _tell(line: str) -> None:
    print(f"clinkd: {line}", file=sys.stderr, flush=True)


def find_recent_series(archive: Archive, rules: Rules) -> list[SeriesReference]:
    """The series of studies of today and the day before of which a rule may ask, each once."""
    days = f"{date.today() - timedelta(days=1)}..{date.today()}"
    words = [rule.modality for rule in rules.values()]
    modalities = sorted({word for of_rule in words for word in of_rule}) if all(words) else [None]
    found = [series for word in modalities for series in archive.find_series(StudyQuery(modality=word, date=days))]
    return [series for series in dict.fromkeys(found) if series.modality not in NO_IMAGES]


def make_corrections(worklist: Worklist) -> list[dict[str, Any]]:
    """What people answered where they edited or rejected the model's answer, in the form `boxes` of `data import`: a
    row a frame. Boxes are named objects; an answer without boxes is a question with its answer. What has no right
    answer, or whose image is gone, teaches nothing and is left out."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in worklist.list_decided("edited", "rejected"):
        decision, key = entry.decision, (entry.instance, entry.frame)
        if decision is None or (right := decision.right_answer) is None:
            continue
        if key not in rows:
            try:
                rows[key] = _begin_row(entry, worklist.image(entry.id))
            except BadInput:
                continue
        width, height = rows[key]["width"], rows[key]["height"]
        named = [
            {"name": r.name, "box": [v * size for v, size in zip(r.box.corners, (width, height) * 2, strict=True)]}
            for r in decision.boxes
            if r.name.strip()
        ]
        rows[key]["objects"] += [one for one in named if one not in rows[key]["objects"]]
        if not decision.boxes:
            rows[key]["qa"].append({"question": entry.question, "answer": right.words})
    return [row for row in rows.values() if row["objects"] or row["qa"]]


def _begin_row(entry: WorklistEntry, image: bytes) -> dict[str, Any]:
    stream = io.BytesIO(image)
    facts = kind_of(stream).describe(stream, PLACE, entry.frame)
    return {
        "id": f"worklist_{entry.instance}_{entry.frame}",
        "image": f"{IMAGES}/{entry.instance}.dcm" + (f"#{entry.frame}" if facts.frames > 1 else ""),
        "modality": (facts.modality or Modality.OTHER).value,
        "width": facts.width,
        "height": facts.height,
        "objects": [],
        "qa": [],
    }

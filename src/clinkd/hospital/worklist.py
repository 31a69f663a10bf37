"""Images that arrived, the questions about them, their answers and what a person decided: a list that outlives kills.

A question is a row of a SQLite file, and each change is on the disk before the call returns. The id of a question is
derived from the image, the frame, the question and the model, so the same image that arrives twice is one entry.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, Record, is_uid
from clinkd.storage import make_folder, write_atomic
from clinkd.workflows.review import DecisionConflict

EntryState = Literal["waiting", "answered", "failed", "accepted", "rejected", "sent", "unsent"]
DecisionKind = Literal["accepted", "edited", "rejected"]
Sends = Literal["nothing", "accepted", "all"]  # which answers go to an archive
STATES: tuple[EntryState, ...] = get_args(EntryState)
SETTLED = ("sent", "rejected", "failed")  # nothing is done with these any more, but that a rejection is thought over
FILE, IMAGES = "worklist.sqlite", "images"  # in its folder
_IMAGE, _DRAFT = ".dcm", ".draft"  # a draft was not answered with success yet
MOST_LISTED = 500  # entries of one page
LONGEST_WAIT = 3600.0  # seconds until what could not be sent is tried again

_NAMESPACE = uuid.UUID("d6c1f0de-2b0d-5a51-9d0e-6f3a9f3c7a11")
_TABLE = """
create table if not exists entries (
    number integer primary key autoincrement, id text not null unique, arrived text not null,
    study text not null, series text not null, instance text not null, frame integer not null,
    modality text not null, body_part text not null, rule text not null, question text not null,
    model text not null, state text not null, answer text, decision text, why text not null default '',
    revision integer not null default 0,
    due real not null default 0 -- seconds since 1970: when it may be sent, or since when it is settled
);
create index if not exists by_state on entries (state, number);
create index if not exists by_instance on entries (instance);
"""
_COLUMNS = (
    "id, arrived, study, series, instance, frame, modality, body_part, rule, question, state, answer, decision, why, "
    "revision"
)


@dataclass(frozen=True, slots=True)
class ArrivedImage:
    """Facts of the header of a DICOM image that arrived. `modality` and `body_part` are those of the header."""

    study: str
    series: str
    instance: str
    modality: str = ""
    body_part: str = ""
    frames: int = 1


@dataclass(frozen=True, slots=True)
class RuledQuestion:
    """A question about a frame (from 1) of an image, and the name of the rule that asks it."""

    rule: str
    question: str
    frame: int = 1


@dataclass(frozen=True, slots=True)
class FoundRegion(Record):
    """A box of an answer and the name of what it shows, "" where unknown."""

    box: Box
    name: str = ""


@dataclass(frozen=True, slots=True)
class AnswerCaution(Record):
    """One thing that is not known about an answer, by its kind and in words."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class ModelAnswer(Record):
    """The answer of the model. `text` has a `[box]` mark for each of `boxes`; `confidence` is 0 to 1, None if none is
    known; `answered`: when it was given, UTC, as ISO 8601; `model` and `version`: who gave it."""

    text: str
    boxes: tuple[FoundRegion, ...] = ()
    warnings: tuple[AnswerCaution, ...] = ()
    confidence: float | None = None
    answered: str = ""
    model: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class WorklistDecision(Record):
    """What a person decided. `text` and `boxes`: the answer that is right; those of the model where it is accepted."""

    kind: DecisionKind
    text: str = ""
    boxes: tuple[FoundRegion, ...] = ()
    note: str = ""

    @property
    def teaches(self) -> bool:
        """Whether it corrects the model, which needs the image."""
        return self.kind != "accepted" and self.right_answer is not None

    @property
    def right_answer(self) -> BoxedText | None:
        """The answer to learn from; None for a rejection without one. Marks at the end where the text has none.

        Raises BadInput where the text has marks, but not one for each box.
        """
        if not self.text.strip():
            if self.boxes:
                raise BadInput("the text is empty, though there are boxes; write what they show")
            return None
        marks = "" if BOX_MARK in self.text else f" {BOX_MARK}" * len(self.boxes)
        return BoxedText(self.text + marks, tuple(region.box for region in self.boxes))


@dataclass(frozen=True, slots=True)
class WorklistEntry:
    """A question about an image, and how far it is. `arrived`: UTC, as ISO 8601; `why`: of a failure, or of what could
    not be sent; `revision` grows by each change."""

    id: str
    arrived: str
    study: str
    series: str
    instance: str
    frame: int
    modality: str
    body_part: str
    rule: str
    question: str
    state: EntryState
    answer: ModelAnswer | None = None
    decision: WorklistDecision | None = None
    why: str = ""
    revision: int = 0

    @property
    def final(self) -> ModelAnswer | WorklistDecision | None:
        """The answer that counts: a person's where there is one, else the model's."""
        return self.decision or self.answer


_Entries: TypeAlias = list[WorklistEntry]  # a class below has a method `list`
_Names: TypeAlias = list[str]


class MissingEntry(BadInput):
    """There is no such entry, or its image is gone."""


class WorklistUnwritable(BadInput):
    """A change could not be written, and is not done: the disk is full, or the folder is gone."""


class WorklistFull(Exception):
    """The worklist takes no more images: its text says why, in one line."""


@dataclass(frozen=True, slots=True)
class WorklistLimits:
    """Limits of one worklist, beyond which it takes no image until some are done."""

    waiting: int = 10_000  # questions without an answer
    bytes: int = 50 << 30  # of all images that it holds
    undo_seconds: float = 0.0  # for so long a decision is not sent, so that it can be taken back
    keep_days: float | None = None  # that an image stays after all about it is settled; None: for ever


class Worklist:
    """The entries of a folder, in the order of their arrival. One process at a time may open it; its threads share it.

    `model`: what tells one model from another. What another model answered stays as it is, and what still waits for it
    is asked of this one. `sends`: what who listens with it sends; `left_out`: objects that came since the start and
    about which no rule asks, by modality.
    """

    sends: Sends = "nothing"

    def __init__(self, folder: Path, model: str = "", limits: WorklistLimits | None = None) -> None:
        """Raises BadInput where another process has it open, or its file is broken."""
        self.folder, self.model, self.limits = Path(folder), model, limits or WorklistLimits()
        self.left_out = Counter[str]()
        self._lock = threading.RLock()
        self._listeners: list[Callable[[], object]] = []
        file = self.folder / FILE
        try:
            make_folder(self.folder / IMAGES)
            file.touch(0o600)
        except OSError as error:
            told = f"cannot be made or written ({error.strerror}); give another --folder"
            raise BadInput(f"{self.folder}: {told}") from None
        try:
            self._base = sqlite3.connect(file, timeout=0.2, isolation_level=None, check_same_thread=False)
            for pragma in ("locking_mode=exclusive", "journal_mode=wal", "synchronous=full"):
                self._base.execute(f"pragma {pragma}")
            self._base.executescript(_TABLE)
            self._base.execute("begin immediate")  # takes the lock, which is kept
            self._take_over_waiting()
            self._base.execute("commit")
            self._finish_drafts()
        except sqlite3.DatabaseError as error:
            raise BadInput(_explain_closed(file, error)) from None
        self._place = file.stat()
        self._bytes = sum(path.stat().st_size for path in (self.folder / IMAGES).iterdir())

    def _finish_drafts(self) -> None:
        """After a kill: an image whose questions are on the disk gets its name; another one is removed, as its sender
        sends it again."""
        for draft in (self.folder / IMAGES).glob(f"*{_DRAFT}"):
            if self._base.execute("select 1 from entries where instance = ?", (draft.stem,)).fetchone():
                draft.replace(draft.with_suffix(_IMAGE))
            else:
                draft.unlink()

    def _take_over_waiting(self) -> None:
        """What waits for the answer of another model is a question to this one, once."""
        terms = "from entries where state = 'waiting' and model != ?"
        waiting = self._base.execute(f"select id, instance, frame, question {terms}", (self.model,)).fetchall()
        for old, *asked in waiting:
            renamed = (self._make_id(*asked), self.model, old)
            self._base.execute("update or ignore entries set id = ?, model = ? where id = ?", renamed)
        self._base.execute(f"delete {terms}", (self.model,))

    def close(self) -> None:
        with self._lock:
            self._base.close()

    def notify(self, listener: Callable[[], object]) -> None:
        """Call `listener` after each change, in the thread that makes it."""
        self._listeners.append(listener)

    # -- what arrives -------------------------------------------------------------------------------------------------

    def add_image(self, content: bytes, facts: ArrivedImage, questions: Sequence[RuledQuestion]) -> _Names:
        """Keep an image and its questions; when this returns, both are on the disk. Returns the ids of new entries.

        A question that is known is not asked again. Raises WorklistFull beyond a limit, WorklistUnwritable on a full
        disk, and BadInput for a UID that is not valid.
        """
        path = self._image_path(facts.instance)
        draft = path.with_suffix(_DRAFT)
        with self._changing(draft) as base:
            rows = [self._make_row(facts, question) for question in questions]
            known = {id for id, *_ in rows if base.execute("select 1 from entries where id = ?", (id,)).fetchone()}
            fresh = [row for row in rows if row[0] not in known]
            if not fresh:
                return []
            self._demand_room(len(fresh), 0 if path.exists() else len(content))
            if not path.exists():
                write_atomic(draft, content)
            marks = ", ".join("?" * len(fresh[0]))
            names = "id, arrived, study, series, instance, frame, modality, body_part, rule, question, model, state"
            base.executemany(f"insert or ignore into entries ({names}) values ({marks})", fresh)
            return [row[0] for row in fresh]

    def leave_out(self, modality: str) -> int:
        """Count an object that is not kept; how many of its modality came."""
        with self._lock:
            self.left_out[modality] += 1
            return self.left_out[modality]

    def remove_settled(self) -> int:
        """Remove the images about which all was settled longer ago than they are kept; how many. Those that teach
        stay. All entries stay, so the same image is not asked about again."""
        if self.limits.keep_days is None:
            return 0
        removed, latest = 0, time.time() - 86400 * self.limits.keep_days
        for path in sorted((self.folder / IMAGES).glob(f"*{_IMAGE}")):
            terms = "select state, due, decision from entries where instance = ?"
            with self._lock:  # for each, so that what arrives need not wait for all
                rows = self._base.execute(terms, (path.stem,)).fetchall()
                settled = all(state in SETTLED and due <= latest for state, due, _ in rows)
                if rows and settled and not any(_read_decision(decision).teaches for *_, decision in rows if decision):
                    size = path.stat().st_size
                    path.unlink()
                    self._bytes -= size
                    removed += 1
        return removed

    def knows(self, instance: str) -> bool:
        """Whether there is an entry about an image, of this model."""
        terms = "where instance = ? and model = ? limit 1"
        with self._lock:
            row = self._base.execute(f"select 1 from entries {terms}", (instance, self.model)).fetchone()
        return row is not None

    def _make_row(self, facts: ArrivedImage, asked: RuledQuestion) -> tuple[Any, ...]:
        id = self._make_id(facts.instance, asked.frame, asked.question)
        arrived = datetime.now(UTC).isoformat(timespec="milliseconds")
        image = (facts.study, facts.series, facts.instance, asked.frame, facts.modality, facts.body_part)
        return (id, arrived, *image, asked.rule, asked.question, self.model, "waiting")

    def _make_id(self, instance: str, frame: int, question: str) -> str:
        return str(uuid.uuid5(_NAMESPACE, "\n".join((instance, str(frame), question, self.model))))

    def _demand_room(self, questions: int, size: int) -> None:
        if self._count("waiting") + questions > self.limits.waiting:
            raise WorklistFull(f"{self.limits.waiting:,} questions wait for an answer")
        if self._bytes + size > self.limits.bytes:
            raise WorklistFull(f"the images of the worklist take {self.limits.bytes:,} bytes, as many as are allowed")

    def _image_path(self, instance: str) -> Path:
        if not is_uid(instance):
            raise BadInput("its SOPInstanceUID is missing or not valid; mend the header")
        return self.folder / IMAGES / f"{instance}{_IMAGE}"

    # -- what is there ------------------------------------------------------------------------------------------------

    def list(self, state: EntryState | None = None, after: str | None = None, limit: int = 50) -> _Entries:
        """Entries in a state, or all, in the order of their arrival, those behind the entry with the id `after`."""
        terms, values = ["number > coalesce((select number from entries where id = ?), 0)"], [after]
        if state is not None:
            terms, values = [*terms, "state = ?"], [*values, state]
        return self._select(f"where {' and '.join(terms)} order by number limit ?", *values, min(limit, MOST_LISTED))

    def counts(self) -> dict[str, int]:
        """How many entries are in each state."""
        with self._lock:
            counted = dict(self._base.execute("select state, count(*) from entries group by state"))
        return {state: counted.get(state, 0) for state in STATES}

    def get(self, id: str) -> WorklistEntry:
        """Raises MissingEntry where there is no such entry."""
        found = self._select("where id = ?", id)
        if not found:
            raise MissingEntry("no entry of that id in the worklist")
        return found[0]

    def image(self, id: str) -> bytes:
        """The DICOM file of an entry. Raises MissingEntry where there is no such entry, or its image is gone."""
        try:
            return self._image_path(self.get(id).instance).read_bytes()
        except FileNotFoundError:
            raise MissingEntry("the image of that entry is not there any more") from None

    def next_waiting(self, skip: Sequence[str] = ()) -> WorklistEntry | None:
        """The entry that waits longest for its answer, None if none does. `skip`: ids that are being answered."""
        marks = ", ".join("?" * len(skip))
        found = self._select(f"where state = 'waiting' and id not in ({marks}) order by number limit 1", *skip)
        return found[0] if found else None

    def _select(self, terms: str, *values: Any) -> _Entries:
        with self._lock:
            rows = self._base.execute(f"select {_COLUMNS} from entries {terms}", values).fetchall()
        return [_read_entry(row) for row in rows]

    def _count(self, state: EntryState) -> int:
        (count,) = self._base.execute("select count(*) from entries where state = ?", (state,)).fetchone()
        return int(count)

    # -- answers and decisions ----------------------------------------------------------------------------------------

    def set_answer(self, id: str, answer: ModelAnswer) -> bool:
        """Keep the answer of an entry that waits. False, with nothing changed, where it has one."""
        return self._move(id, ("waiting",), "answered", answer=_dump(answer))

    def fail(self, id: str, why: str) -> bool:
        """An entry that waits cannot be answered. False, with nothing changed, where it does not wait."""
        return self._move(id, ("waiting",), "failed", why=why, due=time.time())

    def decide(self, id: str, decision: WorklistDecision, revision: int) -> WorklistEntry:
        """Keep what a person decided, who saw `revision` of the entry; an earlier decision is replaced until it is
        sent.

        Raises DecisionConflict where the entry changed meanwhile, and BadInput where there is nothing to decide, for an
        edit without a text, and for a text whose marks are not one a box.
        """
        with self._changing() as base:
            entry = self._demand_open(id, revision)
            assert entry.answer
            if decision.kind == "accepted":
                decision = WorklistDecision("accepted", entry.answer.text, entry.answer.boxes, decision.note)
            elif decision.right_answer is None and decision.kind == "edited":
                raise BadInput("edited: the new text is missing")
            state: EntryState = "rejected" if decision.kind == "rejected" else "accepted"
            change = "state = ?, decision = ?, due = ?, revision = revision + 1"
            due = time.time() + self.limits.undo_seconds
            base.execute(f"update entries set {change} where id = ?", (state, _dump(decision), due, id))
            return self.get(id)

    def undo(self, id: str, revision: int) -> WorklistEntry:
        """Take a decision back until it is sent. Raises as `decide` does."""
        with self._changing() as base:
            if self._demand_open(id, revision).decision is None:
                raise BadInput("there is no decision to take back")
            change = "state = 'answered', decision = null, due = 0, revision = revision + 1"
            base.execute(f"update entries set {change} where id = ?", (id,))
            return self.get(id)

    def _demand_open(self, id: str, revision: int) -> WorklistEntry:
        """The entry if it has an answer and its image, is not on its way to the archive, and did not change since
        `revision`."""
        entry = self.get(id)
        if entry.revision != revision:
            decided = f"it was {entry.decision.kind}" if entry.decision else "it changed"
            raise DecisionConflict(f"entry {id}", f"{decided} (revision {entry.revision}, {entry.state})")
        if entry.answer is None or entry.state not in ("answered", "accepted", "rejected"):
            raise BadInput(f"an entry that is {entry.state} takes no decision")
        if not self._image_path(entry.instance).exists():
            raise BadInput("its image is not kept any more, so it takes no other decision")
        return entry

    def list_decided(self, *kinds: DecisionKind) -> Iterator[WorklistEntry]:
        """Entries with a decision of these kinds."""
        decided = self._select("where decision is not null order by number")
        return (entry for entry in decided if entry.decision and entry.decision.kind in kinds)

    # -- sending ------------------------------------------------------------------------------------------------------

    def take_unsent(self, undecided: bool = False) -> WorklistEntry | None:
        """The next entry to send, which counts as unsent from now on and takes no decision any more; None if none is
        due. `undecided`: also answers about which nobody decided; else those that were on their way wait for a person.
        """
        states = "'accepted', 'unsent', 'answered'" if undecided else "'accepted', 'unsent'"
        now = time.time()
        latest = now + max(LONGEST_WAIT, self.limits.undo_seconds)  # due later: the clock was put back
        with self._changing() as base:
            if not undecided:
                back = "update entries set state = 'answered', due = 0, revision = revision + 1"
                base.execute(f"{back} where state = 'unsent' and decision is null")
            terms = f"where state in ({states}) and (due <= ? or due > ?) order by due, number limit 1"
            found = self._select(terms, now, latest)
            if not found:
                return None
            if found[0].state != "unsent":
                base.execute(
                    "update entries set state = 'unsent', revision = revision + 1 where id = ?", (found[0].id,)
                )
            return self.get(found[0].id)

    def set_sent(self, id: str) -> bool:
        """An entry is in the archive."""
        return self._move(id, ("unsent",), "sent", why="", due=time.time())

    def put_off(self, id: str, why: str, seconds: float) -> bool:
        """An entry could not be sent, and is tried again after `seconds`."""
        return self._move(id, ("unsent",), "unsent", why=why, due=time.time() + seconds)

    def _move(self, id: str, states: Sequence[EntryState], state: EntryState, **columns: Any) -> bool:
        """Change an entry that is in one of `states`; whether it was."""
        changes = "".join(f", {name} = ?" for name in columns)
        places = ", ".join("?" * len(states))
        with self._changing() as base:
            cursor = base.execute(
                f"update entries set state = ?, revision = revision + 1{changes} where id = ? and state in ({places})",
                (state, *columns.values(), id, *states),
            )
            return cursor.rowcount == 1

    @contextlib.contextmanager
    def _changing(self, draft: Path | None = None) -> Iterator[sqlite3.Connection]:
        """A change that is on the disk, or not done at all, when the block ends. `draft`: an image that the block may
        write, which gets its own name when its questions are on the disk."""
        with self._lock:
            self._demand_place()
            try:
                self._base.execute("begin immediate")
                yield self._base
                self._base.execute("commit")
            except BaseException as error:
                if self._base.in_transaction:  # not after a write that failed
                    self._base.execute("rollback")
                if draft:
                    draft.unlink(missing_ok=True)
                reason = error.__cause__ if isinstance(error, BadInput) else error
                if isinstance(reason, OSError | sqlite3.OperationalError):
                    why = getattr(reason, "strerror", None) or reason
                    raise WorklistUnwritable(f"{self.folder}: no room left to write, or no right to ({why})") from None
                raise
            if draft and draft.exists():
                self._bytes += draft.stat().st_size
                draft.replace(draft.with_suffix(_IMAGE))
        for listener in self._listeners:
            listener()

    def _demand_place(self) -> None:
        """Raises WorklistUnwritable where the file is not at its place any more: what is written would be lost."""
        try:
            if os.path.samestat((self.folder / FILE).stat(), self._place):
                return
        except OSError:
            pass
        raise WorklistUnwritable(f"{self.folder}: moved or removed while it is listened with; end, and start again")


def _explain_closed(file: Path, error: sqlite3.DatabaseError) -> str:
    """Why a worklist cannot be opened."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"{file.parent}: another process listens with it; end that one, or give another --folder"
    if name == "SQLITE_ERROR":  # a table, or a column of it, is not as it should be
        return f"{file}: of another version of ClinKD; move it away, or give another --folder"
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_FULL", "SQLITE_PERM")):
        return f"{file.parent}: cannot be written ({error}); see to its disk and its rights, or give another --folder"
    return f"{file}: not a worklist, or damaged; move it away, or bring back a good copy"


def _dump(record: Record) -> str:
    return json.dumps(record.to_json(), ensure_ascii=False)


def _read_decision(text: str) -> WorklistDecision:
    return WorklistDecision.from_json(json.loads(text))


def _read_entry(row: Sequence[Any]) -> WorklistEntry:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    for name, kind in (("answer", ModelAnswer), ("decision", WorklistDecision)):
        if values[name]:
            values[name] = kind.from_json(json.loads(values[name]))
    return WorklistEntry(**values)

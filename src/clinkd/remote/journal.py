"""A ledger of calls that cost money (sqlite): each is written down, and its price reserved, before it is made.

    new -> inflight (price reserved) -> done | failed | unknown

`failed`: the server refused the call. `unknown`: the call may have been done and paid for, but its answer was lost; its
whole reserve then counts as spent. A call in flight when its process died is unknown too. So the journal never counts
less than the server, as long as a reserve is never less than a price.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from clinkd.records import BadInput
from clinkd.storage import make_folder, naming_full_disk, open_private

NANO = 1_000_000_000  # money is counted in whole billionths of a US dollar
State = Literal["new", "inflight", "done", "failed", "unknown"]
_TABLES = """
create table if not exists calls (
    key text primary key,
    model text not null,
    state text not null check (state in ('new', 'inflight', 'done', 'failed', 'unknown')),
    calls integer not null default 0,     -- times it was made
    reserved integer not null default 0,  -- of the call in flight, nano-dollars
    spent integer not null default 0,     -- of all calls before it
    reply text,
    reason text,                          -- a word of ours, never one of the server's
    changed text not null
) strict, without rowid;
create table if not exists ledger (id integer primary key check (id = 1), reserved integer, spent integer) strict;
insert or ignore into ledger values (1, 0, 0);
"""


class OverBudget(BadInput):
    """A call was not made because it might pass the budget, of which `reserved` belongs to calls in flight."""

    reserved: int = 0


@dataclass(frozen=True, slots=True)
class Ledger:
    """Nano-dollars spent and reserved, and the number of calls in each state."""

    spent: int
    reserved: int
    states: dict[State, int] = field(default_factory=dict)

    @property
    def dollars(self) -> float:
        """Spent and reserved together."""
        return (self.spent + self.reserved) / NANO


class Journal(contextlib.AbstractContextManager["Journal"]):
    """The calls in one file, of one process at a time (its threads may share it).

    Every change is a transaction that is on the disk before the next line runs (WAL, synchronous=FULL): a kill at any
    point loses no written reply and no price. Of the texts, only the replies are kept.

    Raises BadInput if another process has the file, or if the file is not a journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.Lock()
        with naming_full_disk(path):
            make_folder(path.parent)
            self._lock: IO[bytes] = open(f"{path}.lock", "ab", opener=open_private)  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise BadInput(f"{path}: another run uses this journal; wait for it, or name another file") from None
        try:
            path.touch(0o600)  # replies are texts about patients
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            tables = {name for (name,) in self._db.execute("select name from sqlite_master where type = 'table'")}
            if others := tables - {"calls", "ledger"}:
                raise sqlite3.DatabaseError(f"it has a table {min(others)}")
            for pragma in ("journal_mode=wal", "synchronous=full"):
                self._db.execute(f"pragma {pragma}").close()
            self._db.executescript(_TABLES)
            columns = "key, model, state, calls, reserved, spent, reply, reason, changed"
            self._db.execute(f"select {columns} from calls").close()
            with self._transaction():
                self._count_as_spent("state = 'inflight'", (), "its process died")
        except sqlite3.DatabaseError as error:
            self._lock.close()
            raise BadInput(
                f"{path}: not a journal that can be read ({error}); move it away, or name another file"
            ) from None

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()
        self._lock.close()

    # -- reads -------------------------------------------------------------------------------------------------------

    def state(self, key: str) -> State | None:
        """None if the journal does not have the call."""
        state: State | None = self._read_value("select state from calls where key = ?", key)
        return state

    def reply(self, key: str) -> str | None:
        """The reply, if the call is done."""
        reply: str | None = self._read_value("select reply from calls where key = ? and state = 'done'", key)
        return reply

    def answered(self, model: str) -> bool:
        """Whether any call to this model was ever done."""
        return self._read_value("select 1 from calls where model = ? and state = 'done' limit 1", model) is not None

    def ledger(self) -> Ledger:
        with self._guard:
            reserved, spent = self._db.execute("select reserved, spent from ledger").fetchone()
            states = dict(self._db.execute("select state, count(*) from calls group by state"))
        return Ledger(spent, reserved, states)

    # -- changes ------------------------------------------------------------------------------------------------------

    def enlist(self, keys: Iterable[str], model: str) -> None:
        """Write down calls to make; those in the journal stay as they are."""
        with self._transaction():
            self._db.executemany(
                "insert or ignore into calls (key, model, state, changed) values (?, ?, 'new', ?)",
                ((key, model, _now()) for key in keys),
            )

    def begin(self, key: str, model: str, reserve: int, budget: int | None) -> None:
        """Reserve `reserve` nano-dollars for a call that is to be made now.

        Raises OverBudget, with nothing changed, if all that is spent and reserved would pass `budget`.
        """
        with self._transaction():
            reserved, spent = self._db.execute("select reserved, spent from ledger").fetchone()
            if budget is not None and spent + reserved + reserve > budget:
                error = OverBudget(
                    f"{(spent + reserved) / NANO:.4f} US dollars are spent or set aside, and the next call may cost "
                    f"{reserve / NANO:.4f}: more than the budget of {budget / NANO:g}"
                )
                error.reserved = reserved
                raise error
            self._db.execute(
                "insert into calls (key, model, state, calls, reserved, changed) values (?, ?, 'inflight', 1, ?, ?) "
                "on conflict (key) do update set state = 'inflight', calls = calls + 1, reserved = excluded.reserved, "
                "reason = null, changed = excluded.changed",
                (key, model, reserve, _now()),
            )
            self._db.execute("update ledger set reserved = reserved + ?", (reserve,))

    def done(self, key: str, cost: int, reply: str) -> None:
        """The call brought a reply, for `cost` nano-dollars."""
        self._end_call(key, "done", cost, reply, None)

    def failed(self, key: str, reason: str, cost: int = 0) -> None:
        """The server refused the call."""
        self._end_call(key, "failed", cost, None, reason)

    def unknown(self, key: str, reason: str) -> None:
        """Nobody knows whether the call was done: its reserve counts as spent."""
        with self._transaction():
            self._count_as_spent("key = ? and state = 'inflight'", (key,), reason)

    def _end_call(self, key: str, state: State, cost: int, reply: str | None, reason: str | None) -> None:
        with self._transaction():
            (reserved,) = self._db.execute(
                "select reserved from calls where key = ? and state = 'inflight'", (key,)
            ).fetchone()
            self._db.execute(
                "update calls set state = ?, reserved = 0, spent = spent + ?, reply = ?, reason = ?, changed = ? "
                "where key = ?",
                (state, cost, reply, reason, _now(), key),
            )
            self._db.execute("update ledger set reserved = reserved - ?, spent = spent + ?", (reserved, cost))

    def _count_as_spent(self, condition: str, values: tuple[Any, ...], reason: str) -> None:
        self._db.execute(
            "update ledger set spent = spent + lost, reserved = reserved - lost from "
            f"(select coalesce(sum(reserved), 0) as lost from calls where {condition})",
            values,
        )
        self._db.execute(
            "update calls set state = 'unknown', spent = spent + reserved, reserved = 0, reason = ?, changed = ? "
            f"where {condition}",
            (reason, _now(), *values),
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guard, naming_full_disk(self.path):
            try:
                self._db.execute("begin immediate")
                yield
                self._db.execute("commit")
            except sqlite3.OperationalError as error:
                if "full" in str(error):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
                raise BadInput(
                    f"{self.path}: cannot be written ({error}); mend that, then the same command goes on from there"
                ) from None
            finally:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("rollback")

    def _read_value(self, query: str, value: str) -> Any:
        """The first column of the first row; None if there is no row."""
        with self._guard:
            row = self._db.execute(query, (value,)).fetchone()
        return row[0] if row else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

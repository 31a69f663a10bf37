"""The ledger of paid calls: whatever happens, it never counts less than was spent, and never passes the budget."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clinkd.records import BadInput
from clinkd.remote import Journal, OverBudget


def sums(path: Path) -> tuple[int, int]:
    """Spent and reserved, added up over the calls."""
    with sqlite3.connect(path) as db:
        return db.execute("select sum(spent), sum(reserved) from calls").fetchone()


def test_a_call_goes_its_way_and_its_reserve_becomes_its_cost(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.enlist(["a", "b"], "m")
        assert journal.state("a") == "new" and journal.reply("a") is None and journal.state("c") is None
        journal.begin("a", "m", 100, 1000)
        assert journal.state("a") == "inflight" and journal.ledger().reserved == 100
        journal.done("a", 40, "hello")
        assert journal.reply("a") == "hello" and journal.answered("m") and not journal.answered("other")
        journal.begin("b", "m", 100, 1000)
        journal.failed("b", "HTTP 429")
        found = journal.ledger()
        assert (found.spent, found.reserved, found.states) == (40, 0, {"done": 1, "failed": 1})
        journal.begin("b", "m", 100, 1000)
        journal.unknown("b", "lost")
        assert journal.ledger().spent == 140 and journal.state("b") == "unknown"


def test_the_ledger_is_the_sum_of_its_calls_in_any_order_of_things(tmp_path: Path) -> None:
    dice = random.Random(0)
    path = tmp_path / "j.sqlite"
    journal = Journal(path)
    flying: dict[str, int] = {}
    for _ in range(600):
        if flying and dice.random() < 0.6:
            key = dice.choice(list(flying))
            reserve = flying.pop(key)
            end = dice.choice(["done", "failed", "unknown", "charged"])
            if end == "done":
                journal.done(key, dice.randrange(reserve + 1), "x")
            elif end == "unknown":
                journal.unknown(key, "lost")
            else:
                journal.failed(key, "HTTP 500", reserve if end == "charged" else 0)
        else:
            key, reserve = f"k{dice.randrange(60)}", dice.randrange(1, 50)
            if key in flying or journal.reply(key) is not None:
                continue
            try:
                journal.begin(key, "m", reserve, 3000)
                flying[key] = reserve
            except OverBudget:
                pass
        found = journal.ledger()
        assert found.spent + found.reserved <= 3000 and found.reserved == sum(flying.values())
        if dice.random() < 0.03:
            journal.close()
            journal, flying = Journal(path), {}  # those in flight are lost, and count as spent
            assert journal.ledger().reserved == 0 and "inflight" not in journal.ledger().states
            assert journal.ledger().spent == found.spent + found.reserved
    journal.close()
    assert sums(path) == (found.spent, found.reserved) or sums(path) == (found.spent + found.reserved, 0)


def test_many_threads_never_pass_the_budget(tmp_path: Path) -> None:
    refused = []
    with Journal(tmp_path / "j.sqlite") as journal:

        def work(who: int) -> None:
            for n in range(25):
                key = f"{who}/{n}"
                try:
                    journal.begin(key, "m", 10, 500)
                    journal.done(key, 10, "x")
                except OverBudget:
                    refused.append(key)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        found = journal.ledger()
    assert found.spent == 500 and found.states["done"] == 50 and len(refused) == 150


def test_a_refused_call_changes_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.begin("a", "m", 60, 100)
        with pytest.raises(OverBudget, match="more than the budget"):
            journal.begin("b", "m", 60, 100)
        assert journal.state("b") is None and journal.ledger().reserved == 60
        journal.begin("b", "m", 40, 100)


def test_what_was_in_flight_when_its_process_died_counts_as_spent(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from clinkd.remote import Journal\n"
        "j = Journal(Path(sys.argv[1])); j.begin('a', 'm', 70, None); j.begin('b', 'm', 5, None); j.done('b', 5, 'x')\n"
        "os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "j.sqlite"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code, str(path)], env=env).returncode == -9
    with Journal(path) as journal:
        assert journal.state("a") == "unknown" and journal.reply("b") == "x" and journal.ledger().spent == 75


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite"), pytest.raises(BadInput, match="another run uses this journal"):
        Journal(tmp_path / "j.sqlite")
    Journal(tmp_path / "j.sqlite").close()


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    path.write_bytes(b"my thesis, the only copy" * 100)
    with pytest.raises(BadInput, match="not a journal"):
        Journal(path)
    assert path.read_bytes() == b"my thesis, the only copy" * 100


def test_another_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("create table vectors (model text)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(BadInput, match="not a journal that can be read .it has a table vectors"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_full_disk_is_told_in_a_line_and_costs_nothing_but_the_reply(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.begin("a", "m", 100, None)
        pages = journal._db.execute("pragma page_count").fetchone()[0]
        journal._db.execute(f"pragma max_page_count={pages + 1}")
        with pytest.raises(BadInput, match=r"j\.sqlite: no room left to write"):
            journal.done("a", 5, "x" * 100_000)
        assert journal.state("a") == "inflight" and journal.ledger().reserved == 100
        journal._db.execute(f"pragma max_page_count={pages + 100}")
        journal.done("a", 5, "x" * 100_000)
        assert journal.ledger().spent == 5 and journal.ledger().reserved == 0


def test_a_disk_that_fails_is_told_in_a_line_and_no_call_is_made(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal._db.execute("pragma query_only=1")
        with pytest.raises(BadInput, match=r"j\.sqlite: cannot be written \(attempt to write a readonly database\)"):
            journal.begin("a", "m", 100, None)
        journal._db.execute("pragma query_only=0")
        assert journal.state("a") is None and journal.ledger().reserved == 0
        journal.begin("a", "m", 100, None)


def test_the_file_is_its_owners_alone_and_on_the_disk_at_every_commit(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        assert (tmp_path / "j.sqlite").stat().st_mode & 0o077 == 0
        assert journal._db.execute("pragma journal_mode").fetchone() == ("wal",)
        assert journal._db.execute("pragma synchronous").fetchone() == (2,)

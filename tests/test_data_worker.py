"""Processes that may die: what a job does to its own leaves this one, and the next job, unharmed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clinkd.data.worker import JobFailed, Worker, WorkerLimits, WorkerLost


def act(request: list[Any], content: bytes) -> tuple[Any, list[bytes]]:
    """A job that does as it is told, and says which process did it."""
    word, *more = request
    if word == "die":
        os.kill(os.getpid(), signal.SIGABRT)
    if word == "spin":
        while True:
            pass
    if word == "sleep":
        time.sleep(more[0])
    if word == "fail":
        raise ValueError("words of a header")
    if word == "take":
        bytearray(more[0])
    if word == "write":
        Path(more[0]).write_bytes(b"x")
    if word == "speak":
        os.write(1, b"noise")
        os.write(2, b"noise")
    return [os.getpid(), more], [content[::-1]] * (2 if word == "double" else 1)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(act, WorkerLimits(2.0, 1 << 30))
    yield worker
    worker.close()


def pid(worker: Worker) -> int:
    (number, _), _ = worker(["say"])
    return int(number)


def test_one_process_does_many_jobs(worker: Worker) -> None:
    reply, contents = worker(["say", 1, "ü", None], b"abc" * 1_000_000)
    assert reply[1] == [1, "ü", None] and contents == [b"cba" * 1_000_000]
    assert worker(["double"], b"abc")[1] == [b"cba", b"cba"]
    assert pid(worker) == pid(worker) == reply[0] != os.getpid()


@pytest.mark.parametrize("order", [["die"], ["sleep", 60], ["spin"]])
def test_a_lost_process_is_replaced(worker: Worker, order: list[Any]) -> None:
    before, start = pid(worker), time.monotonic()
    with pytest.raises(WorkerLost):
        worker(order)
    assert time.monotonic() - start < 20
    after = pid(worker)
    assert after != before
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)


def test_a_failed_job_is_named_and_keeps_its_process(worker: Worker, tmp_path: Path) -> None:
    before = pid(worker)
    for request, name in ((["fail"], "ValueError"), (["take", 2 << 30], "MemoryError")):
        if name == "MemoryError" and sys.platform != "linux":
            continue
        with pytest.raises(JobFailed) as failed:
            worker(request)
        assert str(failed.value) == name
    with pytest.raises(JobFailed, match="OSError"):
        worker(["write", str(tmp_path / "a")])
    assert pid(worker) == before


def test_nothing_is_written_to_the_screen(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    worker(["speak"])
    assert capfd.readouterr() == ("", "")


def test_threads_wait_for_each_other(worker: Worker) -> None:
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = worker(["say", number], str(number).encode())

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: (reply[1], contents) for n, (reply, contents) in answers.items()} == {
        n: ([n], [str(n).encode()[::-1]]) for n in range(10, 20)
    }


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("last", ["say", "spin"])
def test_the_process_ends_with_the_one_that_started_it(last: str) -> None:
    """One that waits ends at once, one that is in an endless loop when its seconds of the CPU are over."""
    code = f"""if True:
        import os, threading
        from clinkd.data.worker import Worker, WorkerLimits
        from test_data_worker import act
        worker = Worker(act, WorkerLimits(1.5, 1 << 30))
        (number, _), _ = worker(["say"])
        print(number, flush=True)
        threading.Timer(0.5, os.kill, (os.getpid(), 9)).start()
        worker([{last!r}])
        threading.Event().wait()
    """
    paths = os.pathsep.join(p for p in sys.path if p)
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, timeout=60
    )
    number, patience = int(run.stdout), time.monotonic() + 20
    while _runs(number):
        assert time.monotonic() < patience
        time.sleep(0.02)


def _runs(number: int) -> bool:
    """Whether a process does: one that ended and that nobody waited for does not."""
    stat = Path(f"/proc/{number}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

"""Processes that are forks of this one, which has imported all: to be waited for, killed and asked what they said."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.patience import Deadline

PATIENCE_SECONDS = 900  # only what hangs takes so long, however busy the machine is


def fork(todo: Callable[[], object], log: Path) -> int:
    """The process that does it, the first of a session of its own; what it says goes to `log`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        todo()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(pid: int, seconds: float = PATIENCE_SECONDS) -> int:
    """Exit status, negative for a signal. Who takes too long for a machine as slow as this one is killed, and named;
    killed is also who is waited for when this process is stopped."""
    deadline = Deadline(seconds)
    try:
        while not deadline.passed():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
    except KeyboardInterrupt:
        _kill(pid)
        raise
    _kill(pid)
    print(f"process {pid} took longer than {deadline.seconds:g} s and was killed", file=sys.stderr)
    return -signal.SIGALRM


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def session_of(pid: int) -> list[int]:
    """The processes that still live of the session that `fork` began: it and all that it started."""
    living = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(") ")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if int(session) == pid and state != "Z":
            living.append(int(entry.name))
    return living

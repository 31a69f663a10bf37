"""A process that may die, for decoders in C that broken files end: what it takes with it is one answer."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

Job = Callable[[Any, bytes], tuple[Any, bytes]]  # JSON and bytes in, JSON and bytes out


class WorkerLost(Exception):
    """A job ended its process, or took too long."""


class JobFailed(Exception):
    """A job raised an exception of this name; its words stay behind, they may be those of a header."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Of one job: seconds on the clock and of the CPU, and bytes that its process may map (Linux alone)."""

    seconds: float
    memory_bytes: int


class Worker:
    """Does a job, a function of a module, in a process of its own: started when needed, kept, and made anew once lost.

    The process writes no file and no word, and ends with this one. JSON and bytes go both ways: nothing that it sends
    is ever run. Calls from several threads wait for each other. A process that was forked must not use it.
    """

    def __init__(self, job: Job, limits: WorkerLimits | None = None) -> None:
        self._job, self._limits = job, limits
        self._lock = threading.Lock()
        self._pipe: Connection | None = None
        self._end: Callable[[], object] = lambda: None

    def __call__(self, request: Any, content: bytes = b"") -> tuple[Any, bytes]:
        """What the job makes of a request. Raises WorkerLost or JobFailed."""
        with self._lock:
            pipe = self._pipe or self._start()
            try:
                pipe.send_bytes(json.dumps(request).encode())
                pipe.send_bytes(content)
                if not pipe.poll(self._limits.seconds if self._limits else None):
                    raise TimeoutError
                (reply, failure), blob = json.loads(pipe.recv_bytes()), pipe.recv_bytes()
            except (OSError, EOFError, ValueError, TypeError):
                self._close()
                raise WorkerLost from None
        if failure is not None:
            raise JobFailed(failure)
        return reply, blob

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        self._end()
        self._pipe = None

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        limits = (str(self._limits.seconds), str(self._limits.memory_bytes)) if self._limits else ()
        words = (f"{self._job.__module__}:{self._job.__qualname__}", str(theirs.fileno()), *limits)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from clinkd.data.worker import serve; serve()", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
            )
        self._pipe, self._end = ours, weakref.finalize(self, _end, ours, process)
        return ours


def _end(pipe: Connection, process: subprocess.Popen[bytes]) -> None:
    pipe.close()
    process.kill()
    process.wait()


# ---- in the process -------------------------------------------------------------------------------------------------


def serve() -> None:
    """What a Worker's process runs, until its other end is gone."""
    name, fd, *limits = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end ends it
    seconds, memory_bytes = (float(limits[0]), int(limits[1])) if limits else (None, None)
    confine(memory_bytes)
    module, _, function = name.partition(":")
    job: Job = getattr(importlib.import_module(module), function)
    pipe = Connection(int(fd))
    with contextlib.suppress(EOFError, OSError):
        while True:
            request, content = json.loads(pipe.recv_bytes()), pipe.recv_bytes()
            if seconds is not None:
                allow_cpu(seconds)
            try:
                (reply, blob), failure = job(request, content), None
            except Exception as error:
                reply, blob, failure = None, b"", type(error).__name__
            pipe.send_bytes(json.dumps([reply, failure]).encode())
            pipe.send_bytes(blob)


def confine(memory_bytes: int | None) -> None:
    """Write no file, leave no image of the memory behind, and map no more of it than this and what was allowed."""
    caps = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if memory_bytes is not None and sys.platform == "linux":
        caps[resource.RLIMIT_AS] = memory_bytes
    for which, cap in caps.items():
        hard = resource.getrlimit(which)[1]
        most = cap if hard == resource.RLIM_INFINITY else min(cap, hard)
        resource.setrlimit(which, (most, most))


def allow_cpu(seconds: float) -> None:
    """Let this process compute so many seconds more, then end it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))

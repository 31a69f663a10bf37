"""A process that may die, for decoders in C that crash on broken files: its end costs one answer."""

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
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

Job = Callable[[Any, bytes], tuple[Any, Sequence[bytes]]]  # JSON and bytes in, JSON and any number of bytes out
_REPLY_BYTES = 1 << 20  # at most, of the JSON of a reply
_CONTENT_BYTES = 1 << 30  # at most, of each of its bytes objects


class WorkerLost(Exception):
    """A job ended its process, or took too long."""


class JobFailed(Exception):
    """A job raised an exception of this name. The message is not passed on: it may hold words of a header."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Limits of one job: seconds on the clock and of the CPU, and bytes that its process may map (Linux alone)."""

    seconds: float | None = None
    memory_bytes: int | None = None


_NO_LIMITS = WorkerLimits()


class Worker:
    """Does a job, a function of a module, in another process, which starts when needed and is replaced once lost.

    The process writes no file and prints nothing, and ends with this one. Both sides send JSON and bytes: nothing that
    it sends is ever run. Calls from several threads wait for each other. A forked process must not use the worker.
    """

    def __init__(self, job: Job, limits: WorkerLimits = _NO_LIMITS) -> None:
        self.job, self.limits = job, limits
        self._lock = threading.RLock()
        self._pipe: Connection | None = None
        self._end: Callable[[], object] = lambda: None
        self._kill: Callable[[], object] = lambda: None

    def __call__(self, request: Any, content: bytes = b"") -> tuple[Any, list[bytes]]:
        """The result of the job for a request. Raises WorkerLost or JobFailed."""
        with self._lock:
            pipe = self.start()
            try:
                pipe.send_bytes(json.dumps(request).encode())
                pipe.send_bytes(content)
                if not pipe.poll(self.limits.seconds):
                    raise TimeoutError
                reply, failure, count = json.loads(pipe.recv_bytes(_REPLY_BYTES))
                contents = [pipe.recv_bytes(_CONTENT_BYTES) for _ in range(count)]
            except (OSError, EOFError, ValueError, TypeError):
                self.close()
                raise WorkerLost from None
        if failure is not None:
            raise JobFailed(failure)
        return reply, contents

    def start(self) -> Connection:
        """Start the process if none runs, so that the first job need not wait for it; returns the pipe to it."""
        with self._lock:
            if self._pipe is None:
                self._pipe, theirs = Pipe()
                with theirs:
                    self._kill, wait = self.start_process(theirs)
                self._end = weakref.finalize(self, _end_process, self._pipe, self._kill, wait)
            return self._pipe

    def kill(self) -> None:
        """End the process from another thread; its job is lost, and the next one gets a new process."""
        self._kill()

    def close(self) -> None:
        with self._lock:
            self._end()
            self._pipe = None

    def start_process(self, pipe: Connection) -> tuple[Callable[[], object], Callable[[], object]]:
        """Start the process for the other end of the pipe; returns a function that kills it and one that waits."""
        limits = json.dumps(astuple(self.limits))
        words = (f"{self.job.__module__}:{self.job.__qualname__}", str(pipe.fileno()), limits)
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from clinkd.data.worker import serve; serve()", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"},
            pass_fds=[pipe.fileno()],
        )
        return process.kill, process.wait


def _end_process(pipe: Connection, kill: Callable[[], object], wait: Callable[[], object]) -> None:
    pipe.close()
    kill()
    wait()


# ---- in the process -------------------------------------------------------------------------------------------------


def serve() -> None:
    """Do the job that the command line names, until the other end of the pipe is gone."""
    name, fd, limits = sys.argv[1:]
    module, _, function = name.partition(":")
    job: Job = getattr(importlib.import_module(module), function)
    do_jobs(Connection(int(fd)), job, WorkerLimits(*json.loads(limits)))


def do_jobs(pipe: Connection, job: Job, limits: WorkerLimits) -> None:
    """Answer requests until the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end ends this process
    _confine(limits.memory_bytes)
    with contextlib.suppress(EOFError, OSError):
        while True:
            request, content = json.loads(pipe.recv_bytes()), pipe.recv_bytes()
            if limits.seconds is not None:
                _allow_cpu(limits.seconds)
            try:
                (reply, contents), failure = job(request, content), None
            except Exception as error:
                reply, contents, failure = None, (), type(error).__name__
            pipe.send_bytes(json.dumps([reply, failure, len(contents)]).encode())
            for part in contents:
                pipe.send_bytes(part)


def _confine(memory_bytes: int | None) -> None:
    """Let this process write no file, leave no core dump, and map no more memory than these bytes."""
    caps = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if memory_bytes is not None and sys.platform == "linux":
        caps[resource.RLIMIT_AS] = memory_bytes
    for kind, cap in caps.items():
        hard = resource.getrlimit(kind)[1]
        limit = cap if hard == resource.RLIM_INFINITY else min(cap, hard)
        resource.setrlimit(kind, (limit, limit))


def _allow_cpu(seconds: float) -> None:
    """Let this process compute for so many more seconds, then end it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))

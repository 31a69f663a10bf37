"""Processes of tests that need torch, or an archive: forks of a server that has imported it and computed nothing.

The import takes longer than most of what they do, so each process of tests pays for it once.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch


def _make_server(*modules: str) -> forkserver.ForkServer:
    """A server of our own: that of the whole process also forks the decoders of uploads, whose memory has a cap, and
    torch would take most of it."""
    server = forkserver.ForkServer()
    server.set_forkserver_preload([*modules])
    return server


TORCH = _make_server("clinkd.cli", "clinkd.pipeline.steps")
LISTENERS = _make_server("clinkd.hospital.listen", "pynetdicom")


def start(
    log: Path, variables: Mapping[str, str], function: Callable[..., object], *arguments: Any,
    server: forkserver.ForkServer = TORCH,
) -> BaseProcess:  # fmt: skip
    """A process that calls a function of a module, in this one's environment and `variables`.

    Its exit status is what the function returns, 0 for None. What it prints is added to `log`.
    """
    forks = multiprocessing.get_context("forkserver")
    process = forks.Process(target=_call, args=(log, {**os.environ, **variables}, function, *arguments))
    with patch.object(forkserver, "connect_to_new_process", server.connect_to_new_process):
        process.start()
    return process


def _call(log: Path, environment: Mapping[str, str], function: Callable[..., object], *arguments: Any) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(function(*arguments))  # type: ignore[arg-type]  # None is 0


def run_together(
    log: Path, function: Callable[..., object], *arguments: Any, seconds: float = 300, number: int = 2
) -> list[int | None]:
    """Exit statuses of `number` processes that do one run, with the variables that `torchrun` sets.

    As there, the others are asked to end where one fails. Who takes longer than `seconds` is killed: -9.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    ranks = map(str, range(number))
    started = [start(log, {**common, "RANK": n, "LOCAL_RANK": n}, function, *arguments) for n in ranks]
    deadline = time.monotonic() + seconds
    while any(p.is_alive() for p in started) and not any(p.exitcode for p in started) and time.monotonic() < deadline:
        for process in started:
            process.join(0.05)
    for process in started:
        process.terminate()
    for process in started:
        process.join(30)
        process.kill()
        process.join()
    return [process.exitcode for process in started]

"""Ends programs with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import psutil

GRACE_SECONDS = 5.0  # until programs that were killed are gone


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End a program and its children, also those with a group of their own, and wait until they are gone.

    A program that was started with a group of its own may have ended before: what is left of the group ends, too.
    """
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    process.wait()
    psutil.wait_procs(children, timeout=GRACE_SECONDS)

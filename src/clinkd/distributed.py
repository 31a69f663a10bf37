"""The processes that do one run together, as `torchrun` or `accelerate launch` start them. There may be only one.

The first of them, the main process, decides and writes; the others join it in work for all. They share the folder of
runs. torch is imported only if there are several.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # a stage that the main process does alone may take days


class PeerLost(RuntimeError):
    """Another process of the run has ended; it says why itself."""


def size() -> int:
    """The number of processes."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "MASTER_ADDR" in os.environ else 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def local_rank() -> tuple[int, int]:
    """The number of this process on its machine, and how many processes run there."""
    return (int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])) if size() > 1 else (0, 1)


def is_main() -> bool:
    """Whether this process decides and writes."""
    return rank() == 0


def broadcast_object(value: T) -> T:
    """The main process's value, in every process. Raises PeerLost if the main process has ended."""
    if size() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    with collective():
        dist.broadcast_object_list(values, src=0, group=_group())
    return values[0]


def wait_for_all() -> None:
    """Wait until every process is here. Raises PeerLost if one has ended."""
    if size() > 1:
        import torch.distributed as dist

        with collective():
            dist.barrier(group=_group())


def on_main_process(work: Callable[[], None]) -> None:
    """Let the main process do the work while the others wait. Raises PeerLost in the others if it fails."""
    if is_main():
        work()
    wait_for_all()


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """Around work in which processes wait for each other: raises PeerLost if it fails because another has ended."""
    try:
        yield
    except RuntimeError as error:  # neither gloo nor NCCL has a class of its own for a closed connection
        if size() > 1 and any(word in str(error) for word in ("gloo", "NCCL")):
            raise PeerLost(f"process {rank()}: another process has ended: {error}") from None
        raise


@cache
def _group() -> Any:
    """A group with a long timeout; the collectives of a training keep the usual short one."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return dist.new_group(backend="gloo", timeout=PATIENCE)

"""The processes that do one run together, as `torchrun` or `accelerate launch` start them; a lone one is a crew of one.

The first of them, `main`, decides and writes; the others take part where there is work for all. They share the folder
of runs. torch is imported only where there is more than one.
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
    """Another process of the crew has ended; it says why itself."""


def size() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "MASTER_ADDR" in os.environ else 1


def rank() -> int:
    """Which one this is, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def local_rank() -> tuple[int, int]:
    """Which one this is on its machine, and how many there are on it."""
    return (int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])) if size() > 1 else (0, 1)


def is_main() -> bool:
    """Whether this is the one that decides and writes."""
    return rank() == 0


def broadcast_object(value: T) -> T:
    """The main process's value, in every process. Raises Left where it is gone."""
    if size() == 1:
        return value
    import torch.distributed as dist

    box: list[Any] = [value]
    _meet(lambda group: dist.broadcast_object_list(box, src=0, group=group))
    found: T = box[0]
    return found


def wait_for_all() -> None:
    """Until every process is here. Raises Left where one is gone."""
    if size() > 1:
        import torch.distributed as dist

        _meet(lambda group: dist.barrier(group=group))


def on_main_process(work: Callable[[], None]) -> None:
    """Let the main process do it while the others wait. Raises Left in these where it fails."""
    if is_main():
        work()
    wait_for_all()


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """Around work in which processes wait for each other: raises Left where that fails because another is gone."""
    try:
        yield
    except RuntimeError as error:  # neither gloo nor NCCL has a class of its own for a closed connection
        if size() > 1 and any(word in str(error) for word in ("gloo", "NCCL")):
            raise PeerLost(f"process {rank()}: another process has ended: {error}") from None
        raise


def _meet(call: Callable[[Any], None]) -> None:
    with collective():
        call(_group())


@cache
def _group() -> Any:
    """A group that waits for long; collectives of a training keep the usual short patience."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return dist.new_group(backend="gloo", timeout=PATIENCE)

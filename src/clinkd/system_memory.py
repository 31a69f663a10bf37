"""The main memory that processes hold, and what is free for a new one, in MB."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # v2, v1


def free_memory_mb() -> float:
    """Free main memory for a new process, by the system or by a container's limit, whichever is lower."""
    bounds: list[int] = [psutil.virtual_memory().available]
    for group in _control_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")):
        bounds += _free_bytes_of(group)
    return min(bounds) / 1e6


def _control_groups(root: Path, memberships: Path) -> list[Path]:
    """The control groups that bound this process's memory, each with all above it."""
    groups = {root, root / "memory"}
    with suppress(OSError):
        for line in memberships.read_text().splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds == "" or "memory" in kinds.split(","):
                inner = (root / "memory" if kinds else root) / name.lstrip("/")
                groups |= {inner, *(p for p in inner.parents if p.is_relative_to(root))}
    return sorted(groups)


def _free_bytes_of(group: Path) -> Iterator[int]:
    """Free bytes below the limit of a control group, with the file pages that it gives up when it needs room."""
    for limit_file, usage_file in _CGROUP_FILES:
        with suppress(OSError):
            limit, usage = ((group / name).read_text().strip() for name in (limit_file, usage_file))
            if limit.isdigit():
                yield int(limit) - int(usage) + _reclaimable_bytes(group)


def _reclaimable_bytes(group: Path) -> int:
    with suppress(OSError):
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
    return 0


def peak_mb() -> float:
    """The most that this process held since `forget_peak`, or ever if the system cannot forget."""
    with suppress(OSError):  # psutil does not know it, and getrusage never forgets
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def forget_peak() -> None:
    """Start `peak_mb` again."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Give freed memory back to the system, which a C library else keeps for later."""
    with suppress(OSError, AttributeError):  # another library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def held_mb() -> float:
    """What this process holds now."""
    return float(psutil.Process().memory_info().rss / 1e6)


def helpers_mb(process: psutil.Process) -> float:
    """What all child processes of one hold now; a page that several hold is divided among them."""
    held = 0
    with suppress(psutil.Error):
        for child in process.children(recursive=True):
            with suppress(psutil.Error):  # it may have ended meanwhile
                held += child.memory_full_info().pss
    return held / 1e6

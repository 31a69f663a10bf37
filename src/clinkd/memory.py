"""What processes hold of main memory, and what is left for a new one; as Linux tells it, in MB."""

from __future__ import annotations

import math
import resource
from contextlib import suppress
from pathlib import Path


def free_memory_mb() -> float:
    """Of main memory, for a new process: what the system says, or a container's limit where that is lower."""
    bounds = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        bounds.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration):
        return math.inf
    for group in _groups():
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with suppress(OSError):
                most, taken = ((group / name).read_text().strip() for name in (limit, used))
                if most.isdigit():
                    bounds.append(int(most) - int(taken) + _reclaimable(group))
    return min(bounds) / 1e6


def _groups() -> list[Path]:
    """The control groups that bound this process's memory, each with all above it."""
    root = Path("/sys/fs/cgroup")
    found = {root, root / "memory"}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds == "" or "memory" in kinds.split(","):
                inner = (root / "memory" if kinds else root) / name.lstrip("/")
                found |= {inner, *(p for p in inner.parents if p.is_relative_to(root))}
    return sorted(found)


def _reclaimable(group: Path) -> int:
    """Bytes of file pages that a group gives up when it needs room."""
    with suppress(OSError):
        for line in (group / "memory.stat").read_text().splitlines():
            if line.split()[0] in ("inactive_file", "total_inactive_file"):
                return int(line.split()[1])
    return 0


def held_mb(process: int | str) -> float:
    """What a process holds now; 0 where it is gone."""
    return _told(process, "status", "VmRSS")


def peak_mb() -> float:
    """The most that this process held since `forget_peak`, or ever where the system cannot forget."""
    return _told("self", "status", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def forget_peak() -> None:
    """Begin anew with `peak_mb`."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def helpers_mb(process: int | str) -> float:
    """What all processes below one hold now, pages that several of them hold divided among these."""
    return sum(_told(child, "smaps_rollup", "Pss") for child in _below(process))


def _below(process: int | str) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                found += [child, *_below(child)]
    return found


def _told(process: int | str, file: str, what: str) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) / 1000
    return 0.0

"""Free memory is bounded by the system and by every control group above the process; peaks can be forgotten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from clinkd import system_memory


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def free_bytes(root: Path, memberships: str) -> list[int]:
    (root.parent / "memberships").write_text(memberships)
    groups = system_memory._control_groups(root, root.parent / "memberships")
    return [count for group in groups for count in system_memory._free_bytes_of(group)]


def test_a_limit_of_any_group_above_bounds_and_file_pages_are_free(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    stat = "anon 7\ninactive_file 30\nactive_file 5"
    write_group(root / "pod", memory__max="1000", memory__current="900", memory__stat=stat)
    write_group(root / "pod/inner", memory__max="max", memory__current="800", memory__stat=stat)
    write_group(root / "other", memory__max="1", memory__current="1", memory__stat=stat)
    assert free_bytes(root, "0::/pod/inner\n") == [1000 - 900 + 30]
    write_group(root / "pod/inner", memory__max="850")
    assert free_bytes(root, "0::/pod/inner\n") == [130, 850 - 800 + 30]
    assert free_bytes(root, "0::/elsewhere\n") == []


def test_groups_of_the_first_version_bound_too(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    files = {"memory__limit_in_bytes": "500", "memory__usage_in_bytes": "100"}
    write_group(root / "memory/job", **files, memory__stat="inactive_file 1\ntotal_inactive_file 40")
    write_group(root / "memory", **{**files, "memory__limit_in_bytes": "9000"}, memory__stat="inactive_file 2")
    assert free_bytes(root, "5:cpu,memory:/job\n4:pids:/x\n0::/\n") == [9000 - 100 + 2, 500 - 100 + 40]


def test_free_memory_is_the_least_of_the_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available = psutil.virtual_memory().available / 1e6
    assert 0 < system_memory.free_memory_mb() < psutil.virtual_memory().total / 1e6
    monkeypatch.setattr(system_memory, "_control_groups", lambda *paths: [tmp_path])
    assert system_memory.free_memory_mb() == pytest.approx(available, rel=0.5)
    write_group(tmp_path, memory__max="3000000", memory__current="1000000")
    assert system_memory.free_memory_mb() == 2.0
    write_group(tmp_path, memory__stat="inactive_file 500000")
    assert system_memory.free_memory_mb() == 2.5


def test_a_peak_is_kept_until_it_is_forgotten() -> None:
    block = np.ones(20_000_000)  # 160 MB
    del block
    high = system_memory.peak_mb()
    system_memory.forget_peak()
    assert system_memory.peak_mb() < high - 100


def test_what_processes_below_hold_is_counted_with_those_below_them() -> None:
    before = system_memory.helpers_mb(psutil.Process())  # of other tests' processes
    code = "import sys; b = b'x' * 50_000_000; print(flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {code!r}]); c.wait()"
    with subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdin
        child.stdout.readline()
        assert 50 < system_memory.helpers_mb(psutil.Process()) - before < 500
        child_process = psutil.Process(child.pid)
        assert 50 < system_memory.helpers_mb(child_process) < system_memory.helpers_mb(psutil.Process()) + 1
        child.stdin.close()
    assert system_memory.helpers_mb(child_process) == 0.0  # gone

"""What every benchmark prints: rows of ours beside a rival of the same run, for people or for a program."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` is ours by the rival's."""

    what: str
    ours: float
    rival: float
    rival_name: str
    unit: str

    @property
    def ratio(self) -> float:
        return self.ours / self.rival if self.rival else float("nan")


def machine() -> dict[str, Any]:
    """Commit, machine and versions."""
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, capture_output=True, text=True).stdout.strip()
    versions = {p: metadata.version(p) for p in ("torch", "transformers", "numpy", "clinkd")}
    return {
        "commit": commit,
        "machine": f"{platform.machine()}, {_processor()}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def show(rows: list[Row], as_json: bool) -> None:
    """Print rows, with commit, machine and versions."""
    about = machine()
    if as_json:
        print(json.dumps([{**asdict(r), "ratio": r.ratio, **about} for r in rows], indent=1))
        return
    for row in rows:
        print(
            f"{row.what}: {row.ours:.4g} {row.unit}, {row.rival_name} {row.rival:.4g} {row.unit}, ratio {row.ratio:.3f}"
        )
    print(", ".join(f"{k} {v}" for k, v in about.items()))

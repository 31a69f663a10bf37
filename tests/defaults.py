"""Defaults of the knobs as the stages of a run see them; `python -m tests.defaults` writes them down.

A stage's identity leaves out what equals its default, so a changed default would pass for the work of the old one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from clinkd.pipeline.knobs import KNOBS
from clinkd.pipeline.stages import VERSIONS
from clinkd.settings import complete

GOLDEN = Path(__file__).parent / "data" / "defaults.json"


def current() -> dict[str, Any]:
    """For each kind of stage its version and the defaults of its knobs; `see` has none."""
    defaults = {kind: json.loads(json.dumps(complete({}, group))) for kind, group in KNOBS.items()}
    return {kind: {"version": VERSIONS[kind], "defaults": defaults.get(kind, {})} for kind in VERSIONS}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of knobs as dotted names."""
    names: dict[str, Any] = {}
    for name, value in tree.items():
        names |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return names


def unraised(golden: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The stages a default of which has changed while their version has not, with the knob."""
    faults = []
    for kind, entry in now.items():
        before, after = flat(golden.get(kind, {}).get("defaults", {})), flat(entry["defaults"])
        changed = [name for name in before if name in after and before[name] != after[name]]
        if changed and entry["version"] == golden[kind]["version"]:
            faults.append(f"{changed[0]} has a new default: raise VERSIONS[{kind!r}] in pipeline/stages.py")
    return faults


if __name__ == "__main__":
    if GOLDEN.is_file() and (faults := unraised(json.loads(GOLDEN.read_text()), current())):
        sys.exit("\n".join(faults))
    GOLDEN.write_text(json.dumps(current(), indent=1) + "\n")

"""The experiments: recipes of whole runs, the rows of an ablation, and the claims that rows test.

`EXPERIMENTS` holds the names for `clinkd run` and `clinkd recipe`; `REQUIRED` the knobs that the user must give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

from clinkd.config import RunConfig
from clinkd.experiments.claims import CLAIMS, ROWS, Claim, Primary
from clinkd.experiments.recipes import demo, describe_missing, laptop, paper, real, small
from clinkd.experiments.rows import (
    SWEEPS,
    TABLE_2,
    AblationRow,
    bird,
    distilled,
    drawn,
    matched,
    positions,
    reflected,
    selected,
    tuned,
    unreflected,
)
from clinkd.records import BadInput

__all__ = [
    "CLAIMS", "EXPERIMENTS", "REQUIRED", "ROWS", "SWEEPS", "TABLE_2", "AblationRow", "Claim", "Primary",
    "describe_missing", "laptop", "paper", "real", "require_folders", "small",
]  # fmt: skip

_MAKERS: tuple[Callable[[], RunConfig], ...] = (
    demo, real, laptop, paper, small, bird, tuned, positions, distilled, selected, reflected, matched, drawn,
    unreflected,
)  # fmt: skip
EXPERIMENTS: Mapping[str, Callable[[], RunConfig]] = {make.__name__: make for make in _MAKERS}

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "real": ("data.path",),
    "laptop": ("data.path", "model.base"),
    "paper": ("data.path", "model.base"),
}


def require_folders(name: str, config: RunConfig) -> None:
    """Raise BadInput where a run of the experiment `name` lacks a folder that only the user knows."""
    for knob in REQUIRED.get(name, ()):
        if reduce(getattr, knob.split("."), config) is None:
            raise BadInput(f"{knob}: `{name}` needs a folder here; give it with --set {knob}=FOLDER")

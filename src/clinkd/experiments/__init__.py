"""The experiments: recipes of whole runs, the rows of an ablation, and the claims that rows test.

`EXPERIMENTS` holds the names for `clinkd run` and `clinkd recipe`; `REQUIRED` the knobs that the user must give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

from clinkd.config import RunConfig
from clinkd.experiments.claims import CLAIMS, ROWS, Claim, Primary
from clinkd.experiments.recipes import demo, describe_missing, laptop, modern, paper, real, small
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
    "describe_missing", "laptop", "list_missing_folders", "real", "require_folders", "small",
]  # fmt: skip

_MAKERS: tuple[Callable[[], RunConfig], ...] = (
    demo, real, laptop, modern, paper, small, bird, tuned, positions, distilled, selected, reflected, matched, drawn,
    unreflected,
)  # fmt: skip
EXPERIMENTS: Mapping[str, Callable[[], RunConfig]] = {make.__name__: make for make in _MAKERS}

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "real": ("data.path",),
    "laptop": ("data.path", "model.base"),
    "modern": ("data.path", "model.base"),
    "paper": ("data.path", "model.base", "select.clip.base"),
}


def list_missing_folders(name: str, config: RunConfig) -> list[str]:
    """The knobs of the folders that only the user knows and that a run of the experiment `name` lacks.

    One of a CLIP is not needed where none chooses among the candidates.
    """
    needs_clip = config.select.scorer == "clip" and not config.select.clip.eyes
    needed = [knob for knob in REQUIRED.get(name, ()) if needs_clip or knob != "select.clip.base"]
    return [knob for knob in needed if reduce(getattr, knob.split("."), config) is None]


def require_folders(name: str, config: RunConfig) -> None:
    """Raise BadInput where a run of the experiment `name` lacks a folder that only the user knows."""
    for knob in list_missing_folders(name, config):
        raise BadInput(f"{knob}: `{name}` needs a folder here; give it with --set {knob}=FOLDER")

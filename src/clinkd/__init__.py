"""ClinKD: teach a vision-language model medical refer-and-ground question answering from little data.

In a notebook: `clinkd.load("demo").ask("scan.dcm", "Where is the liver?")`. What is heavy is imported when used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clinkd.version import __version__

if TYPE_CHECKING:
    from clinkd.config import RunConfig
    from clinkd.notebook import BoxedAnswer, Data, LoadedModel, Scores, TrainedRun, evaluate, load, read, recipe, run
    from clinkd.records import BadInput

__all__ = [
    "BadInput",
    "BoxedAnswer",
    "Data",
    "LoadedModel",
    "RunConfig",
    "Scores",
    "TrainedRun",
    "__version__",
    "evaluate",
    "load",
    "read",
    "recipe",
    "run",
]

_HOMES = {"BadInput": "clinkd.records", "RunConfig": "clinkd.config"}  # of names that are not from clinkd.notebook


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'clinkd' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "clinkd.notebook")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

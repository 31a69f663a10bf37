"""What one task scored in one mode, in the form that `clinkd evaluate --json` prints; all figures x100."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clinkd.records import Task

Mode = Literal["official", "strict"]
MODES: tuple[Mode, ...] = ("official", "strict")


@dataclass(frozen=True, slots=True)
class Share:
    """One modality: items (truth boxes for VG, else answers), how many were found where that is counted, its score."""

    total: int
    score: float | None
    hits: int | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        hits = {} if self.hits is None else {"hits": self.hits}
        parts = {"parts": dict(self.parts)} if self.parts else {}
        return {**hits, "total": self.total, "score": self.score, **parts}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`score` is the mean over modalities with items, None with `why` where it could not be computed.

    `parts`: other figures, means over modalities. `unparsed`: answers without a box that can be read, where one was
    asked for; they are misses. `interval`: 95 %, bootstrap by image. `blind_by`: the score of each image-blind twin.
    """

    mode: Mode
    task: Task
    metric: str
    score: float | None
    by_modality: Mapping[str, Share]
    parts: Mapping[str, float] = field(default_factory=dict)
    unparsed: int = 0
    interval: tuple[float, float] | None = None
    why: str | None = None
    blind_by: Mapping[str, float] = field(default_factory=dict)
    answers: int = 0
    truncated: int = 0
    empty: int = 0

    @property
    def blind(self) -> float | None:
        """The best of the blind twins."""
        return max(self.blind_by.values(), default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "task": self.task.value,
            "metric": self.metric,
            "score": self.score,
            "why": self.why,
            "interval": list(self.interval) if self.interval else None,
            "by_modality": {name: share.to_json() for name, share in self.by_modality.items()},
            "parts": dict(self.parts),
            "unparsed": self.unparsed,
            "truncated": self.truncated,
            "empty": self.empty,
            "answers": self.answers,
            "blind": self.blind,
            "blind_by": dict(self.blind_by),
        }

"""The claims that an ablation tests: for each its arms, and the one comparison that was named before any run.

All other comparisons of a claim are exploratory: their p-values are adjusted by Holm's method, and they are so marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from clinkd.experiments.arms import distillation, layouts, parts, positions, reflection, selection
from clinkd.experiments.rows import BASE_ROWS, AblationRow


class Primary(NamedTuple):
    """The primary comparison of a claim: `row` against `against` in the measure `column` of a results file.

    `smallest`: the difference that is to be seen four times in five, in the measure's own unit. `otherwise`: the
    measure where no run has the first, as data without captions have no average of four. `fixed`: pairs that were
    fixed before the rest was run (LOG.md), so that nothing is concluded from fewer: who looks again and again finds
    more by chance.
    """

    row: str
    against: str
    column: str
    smallest: float
    otherwise: str | None = None
    fixed: int = 0


class Claim(NamedTuple):
    """A claim of the paper as a question, its arms, and its primary comparison (None: none was named)."""

    question: str
    rows: Mapping[str, AblationRow]
    primary: Primary | None = None


CLAIMS: Mapping[str, Claim] = {
    "parts": Claim(
        "What does each part of the method do?",
        parts.ROWS,
        Primary("whole", "plain", "Average of four", 4.0, "ROC Recall", fixed=5),
    ),
    "distillation": Claim(
        "Does a teacher help where labels are few?",
        distillation.ROWS,
        Primary("kd-11", "plain-11", "VG mIoU", 4.0, fixed=5),
    ),
    "positions": Claim(
        "What of the tied positions helps: the stride, the gap, or both?",
        positions.ROWS,
        Primary("tied", "stock", "VG mIoU", 4.0, fixed=13),  # from scratch; published results are of pretrained models
    ),
    "layouts": Claim("Which rotary pairs should stand for height and width?", layouts.ROWS),
    "reflection": Claim(
        "Is rewriting the wrong answers better than rewriting any?",
        reflection.ROWS,
        Primary("three-tests", "random-rows", "VG mIoU", 1.5, fixed=42),
    ),
    "selection": Claim(
        "Does a choice among the beams beat the first beam?",
        selection.ROWS,
        Primary("crops", "first", "ROC Recall", 1.5),
    ),
}
ROWS: Mapping[str, AblationRow] = {k: row for claim in CLAIMS.values() for k, row in claim.rows.items()} | dict(
    BASE_ROWS
)

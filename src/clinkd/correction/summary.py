"""What a review found and what came of it, counted by task and modality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from clinkd.records import Correction, Modality, Sample, Table, Task

REASONS = ("similarity", "box", "laterality", "negation", "count")
_COLUMNS = ("reviewed", "wrong", *REASONS, "corrected", "rejected")


def summary(corrections: Iterable[Correction], samples: Sequence[Sample]) -> Table:
    """Counts a round, task and modality, and a last row with their sums. One answer may be wrong for several reasons.

    A row is left out where nothing was reviewed.
    """
    where = {s.id: (s.task, s.modality) for s in samples}
    counts: dict[tuple[int, Task, Modality], Counter[str]] = {}
    for c in corrections:
        cell = counts.setdefault((c.round, *where[c.id]), Counter())
        cell.update(["reviewed", *c.reasons])
        cell.update({"wrong": int(c.wrong), "corrected": int(c.after is not None), "rejected": int(bool(c.rejected))})
    tasks, modalities = list(Task), list(Modality)
    order = sorted(counts, key=lambda key: (key[0], tasks.index(key[1]), modalities.index(key[2])))
    rows = [(str(r), t.value, m.value, *(str(counts[r, t, m][k]) for k in _COLUMNS)) for r, t, m in order]
    total = sum(counts.values(), Counter[str]())
    rows.append(("all", "all", "all", *(str(total[k]) for k in _COLUMNS)))
    return Table("Reflection: answers reviewed and corrected", ("round", "task", "modality", *_COLUMNS), tuple(rows))

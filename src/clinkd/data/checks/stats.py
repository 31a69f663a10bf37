"""Count the questions of a data set by task, modality and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from clinkd.records import Modality, Sample, Table, Task


def count_samples(samples: Sequence[Sample]) -> Table:
    """Questions by split and modality (rows) and task (columns), with the number of images and groups."""
    tasks = [t for t in Task if any(s.task is t for s in samples)]
    rows = []
    for split in sorted({s.split or "-" for s in samples}, key=["train", "validation", "test", "-"].index):
        in_split = [s for s in samples if (s.split or "-") == split]
        for modality in Modality:
            if in_modality := [s for s in in_split if s.modality is modality]:
                rows.append((split, modality.value, *_count_parts(in_modality, tasks)))
        rows.append((split, "all", *_count_parts(in_split, tasks)))
    columns = ("split", "modality", "groups", "images", *(t.value for t in tasks))
    return Table("Questions by split, modality and task", columns, tuple(rows))


def _count_parts(samples: Sequence[Sample], tasks: Sequence[Task]) -> list[str]:
    """The numbers of groups, of images, and of samples of each task."""
    questions = Counter(s.task for s in samples)
    groups = {s.group for s in samples}
    images = {i.path for s in samples for i in s.images}
    return [str(n) for n in (len(groups), len(images), *(questions[t] for t in tasks))]

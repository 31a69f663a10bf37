"""What a data set holds: questions by task, modality and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from clinkd.records import Modality, Sample, Table, Task


def count_samples(samples: Sequence[Sample]) -> Table:
    """Questions by split and modality (rows) and task (columns), with the number of images and groups."""
    cells = Counter((s.split or "-", s.modality, s.task) for s in samples)
    tasks = [t for t in Task if any(key[2] is t for key in cells)]
    rows = []
    for split in sorted({s.split or "-" for s in samples}, key=["train", "validation", "test", "-"].index):
        in_split = [s for s in samples if (s.split or "-") == split]
        for modality in [m for m in Modality if any(s.modality is m for s in in_split)]:
            in_modality = [s for s in in_split if s.modality is modality]
            rows.append(
                (
                    split,
                    modality.value,
                    *_count_groups_and_images(in_modality),
                    *(str(cells[split, modality, t]) for t in tasks),
                )
            )
        rows.append(
            (
                split,
                "all",
                *_count_groups_and_images(in_split),
                *(str(sum(s.task is t for s in in_split)) for t in tasks),
            )
        )
    columns = ("split", "modality", "groups", "images", *(t.value for t in tasks))
    return Table("Questions by split, modality and task", columns, tuple(rows))


def _count_groups_and_images(samples: Sequence[Sample]) -> tuple[str, str]:
    groups = {s.group for s in samples}
    images = {i.path for s in samples for i in s.images}
    return str(len(groups)), str(len(images))

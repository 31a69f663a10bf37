"""Read all files of a run's finished stages, and compare them with the checksums that the stages recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clinkd.pipeline.damage import Damage, has_checksums, list_damages, list_extra
from clinkd.pipeline.graph import StageStatus, read_record
from clinkd.pipeline.runs import Run
from clinkd.storage import folder_bytes, progress


@dataclass(frozen=True, slots=True)
class VerifiedStage:
    """A stage and what is wrong with it. `read`: its files have checksums, and all were read; of a stage of an older
    version, sizes alone were compared. `extra`: files that its work did not write, which nothing reads."""

    status: StageStatus
    damages: tuple[Damage, ...]
    extra: tuple[Path, ...]
    read: bool


def verify_run(run: Run) -> list[VerifiedStage]:
    """Every stage of a run, in order, with all its damages. Nothing is changed."""
    return list(_verify_stages(run))


def _verify_stages(run: Run) -> Iterator[VerifiedStage]:
    statuses = run.status()
    sizes = [folder_bytes(s.folder.resolve()) for s in statuses]
    with progress(sum(sizes) // 10**6, "verify", "MB") as advance:
        for status, size in zip(statuses, sizes, strict=True):
            if not status.folder.is_dir():
                yield VerifiedStage(status, (status.damage,) if status.damage else (), (), False)
                continue
            record, read = read_record(status.folder), has_checksums(status.folder)
            damages = tuple(list_damages(status.name, status.folder, record, contents=True))
            extra = tuple(list_extra(status.folder, record)) if record and not damages else ()
            yield VerifiedStage(status, damages, extra, read)
            advance(size // 10**6)

"""Poll an archive for new images, and take each once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Protocol

from clinkd.hospital.pull import NO_IMAGES
from clinkd.hospital.rules import Rules
from clinkd.hospital.telling import tell
from clinkd.hospital.worklist import Worklist
from clinkd.pacs import (
    Archive,
    ArchiveUnreachable,
    SeriesIncomplete,
    SeriesReference,
    StoreRefusal,
    StoreStatus,
    StudyQuery,
    read_instance_header,
)
from clinkd.records import BadInput


@dataclass(frozen=True, slots=True)
class Polling:
    """Ask an archive for new images: of today and the day before, by the modalities of the rules."""

    archive: Archive
    every_seconds: float = 60.0


class ImageTaker(Protocol):
    """Who takes the images. `take` raises BadInput and StoreRefusal; `counts`: of what happened."""

    rules: Rules
    worklist: Worklist
    counts: Counter[str]
    stopped: bool

    def take(self, content: bytes) -> None: ...


class _Known:
    """SOP Instance UIDs that need not be fetched: of the worklist, and of what was refused since the start."""

    def __init__(self, worklist: Worklist) -> None:
        self.worklist, self.refused = worklist, set[str]()

    def __contains__(self, instance: object) -> bool:
        return instance in self.refused or self.worklist.knows(str(instance))


class PolledArchive:
    """An archive that is asked again and again for what a taker does not know yet."""

    def __init__(self, archive: Archive, taker: ImageTaker) -> None:
        self.archive, self.taker = archive, taker
        self._known = _Known(taker.worklist)

    def poll(self) -> None:
        """Fetch the images of the archive that are not known yet. A refusal or a lost connection is told, and the next
        round tries again."""
        try:
            for series in _find_recent_series(self.archive, self.taker.rules):
                self._poll_series(series)
                if self.taker.stopped:
                    return
        except BadInput as error:
            tell(str(error))
        except StoreRefusal as full:
            tell(f"no more images are fetched: {full}")

    def _poll_series(self, series: SeriesReference) -> None:
        try:
            for content in self.archive.fetch_series(series, skip=self._known):
                self._take_polled(content)
                if self.taker.stopped:
                    return
        except ArchiveUnreachable:
            raise
        except SeriesIncomplete as error:
            for instance in error.unusable:
                self._refuse(instance, error.failures[instance])
            if len(error.failures) > len(error.unusable):
                tell(str(error))
        except BadInput as error:  # of this series alone
            tell(str(error))

    def _take_polled(self, content: bytes) -> None:
        try:
            self.taker.take(content)
        except (BadInput, StoreRefusal) as error:
            if isinstance(error, StoreRefusal) and error.status == StoreStatus.OUT_OF_RESOURCES:
                raise
            instance = read_instance_header(content).instance
            self._refuse(instance, f"instance {instance}: {error}" if isinstance(error, BadInput) else "")

    def _refuse(self, instance: str, told: str) -> None:
        """Fetch an image no more until the next start; what is told is told once."""
        self.taker.counts["refused"] += 1
        self._known.refused.add(instance)
        if told:
            tell(told)


def _find_recent_series(archive: Archive, rules: Rules) -> list[SeriesReference]:
    """The series of studies of today and the day before of which a rule may ask, each once."""
    days = f"{date.today() - timedelta(days=1)}..{date.today()}"
    words = [rule.modality for rule in rules.values()]
    modalities = sorted({word for of_rule in words for word in of_rule}) if all(words) else [None]
    found = [series for word in modalities for series in archive.find_series(StudyQuery(modality=word, date=days))]
    return [series for series in dict.fromkeys(found) if series.modality not in NO_IMAGES]

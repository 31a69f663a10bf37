"""The nouns that both ways of talking to an archive share: what is asked, what is named, and what an archive does."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Protocol

from clinkd.records import BadInput, is_uid

_DAY = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)")
GO_ON = "the same command goes on from there"
_WILD = re.compile(r"[*?\\\x00-\x1f]")  # a * matches everything, a backslash parts several values


@dataclass(frozen=True, slots=True)
class StudyQuery:
    """Which studies are meant; None: any. Raises BadInput for what no archive can match.

    A query is matched exactly, never by a pattern: a slip must not fetch a whole archive.
    """

    study: str | None = None  # Study Instance UID
    accession: str | None = None  # accession number
    patient: str | None = None  # ID, not the name
    modality: str | None = None  # of series, as CT; the others of a study are left out
    date: str | None = None  # of the study: 2026-11-30, or a range, 2026-11-01..2026-11-30; an end may be left out
    limit: int | None = None  # studies

    def __post_init__(self) -> None:
        for name in ("study", "accession", "patient", "modality"):
            value = getattr(self, name)
            if value is not None and (not value.strip() or _WILD.search(value) or len(value) > 64):
                raise BadInput(f"{name}: one exact value of 1 to 64 characters is wanted, without * ? or \\")
            object.__setattr__(self, name, value and value.strip())
        if self.study is not None and not is_uid(self.study):
            raise BadInput(f"study = {self.study}: no UID; digits and points are wanted, as 1.2.840.113619.2.55")
        if self.modality is not None:
            object.__setattr__(self, "modality", self.modality.upper())
        if self.limit is not None and self.limit < 1:
            raise BadInput(f"limit = {self.limit}: 1 or more is wanted")
        if self.date is not None:
            object.__setattr__(self, "date", _spell_dates(self.date))  # in the spelling of DICOM

    @property
    def anything(self) -> bool:
        """Whether every study of an archive is meant."""
        return not any((self.study, self.accession, self.patient, self.modality, self.date))

    def with_limit(self, limit: int) -> StudyQuery:
        return replace(self, limit=limit)

    def study_keys(self) -> dict[str, str]:
        """What is asked about studies, by the keyword of DICOM; "" where any is meant."""
        keys = (self.study, self.accession, self.patient, self.date, self.modality)
        names = ("StudyInstanceUID", "AccessionNumber", "PatientID", "StudyDate", "ModalitiesInStudy")
        return {name: key or "" for name, key in zip(names, keys, strict=True)}

    def matches_study(self, named: Mapping[str, str]) -> bool:
        """Whether a study that an archive names is meant. Some archives leave out of account what they do not know, and
        name all their studies."""
        wanted = self.study_keys()
        same = ("StudyInstanceUID", "AccessionNumber", "PatientID")
        if any(wanted[key] and named.get(key, "").strip().casefold() != wanted[key].casefold() for key in same):
            return False
        first, dash, last = wanted["StudyDate"].partition("-")
        day = named.get("StudyDate", "").strip()
        if not dash:
            return first in ("", day)
        return bool(day) and (first or day) <= day <= (last or day)


def _spell_dates(text: str) -> str:
    """A day or a range as DICOM spells it: 20261130, 20261101-20261130, 20261101-. Raises BadInput for no such."""
    parts = text.split("..") if ".." in text else [text]
    if len(parts) == 1 and re.fullmatch(r"(\d{8})?-(\d{8})?", text):
        parts = text.split("-")
    try:
        days = [_read_day(part) for part in parts]
        if len(days) > 2 or not any(days) or (len(days) == 2 and all(days) and days[0] > days[1]):
            raise ValueError
    except ValueError:
        raise BadInput(
            f"date = {text[:40]}: a day is wanted, as 2026-11-30, or a range, as 2026-11-01..2026-11-30"
        ) from None
    return "-".join(days)


def _read_day(text: str) -> str:
    if not text:
        return ""
    if (match := _DAY.fullmatch(text)) is None:
        raise ValueError(text)
    return date(*map(int, match.groups())).strftime("%Y%m%d")


@dataclass(frozen=True, slots=True)
class SeriesReference:
    """A series of an archive. `instances`: their number, None where the archive does not say."""

    study: str
    series: str
    modality: str
    instances: int | None = None


def read_count(text: str) -> int | None:
    """A number of instances as an archive states it; None where it states none."""
    return int(text) if text.isdecimal() and len(text) < 10 else None


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files of an encrypted connection, in PEM: whom to trust (`ca`; None: as this machine does), and who we are."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        for name in ("ca", "certificate", "key"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise BadInput(f"{name} = {path}: no such file; give one in PEM")
        if (self.certificate is None) != (self.key is None):
            raise BadInput("certificate and key belong together: give both, or neither")


class ArchiveUnreachable(BadInput):
    """The archive cannot be reached, or the connection was lost: the same may work later."""


class SeriesIncomplete(BadInput):
    """Some images of a series did not come, or cannot be used. `failures`: a line for each of them, by SOP Instance
    UID; `unusable`: which of them would come as they are again."""

    def __init__(self, reasons: Mapping[str, str], unusable: Collection[str] = ()) -> None:
        self.failures = {uid: f"instance {uid}: {why}" for uid, why in reasons.items()}
        self.unusable = unusable
        super().__init__(f"{len(reasons)} images of a series did not come: {next(iter(self.failures.values()))}")


class Archive(Protocol):
    """What holds the images of a hospital. Each call raises BadInput where the archive refuses, and ArchiveUnreachable
    where it cannot be reached."""

    def find_series(self, query: StudyQuery) -> list[SeriesReference]:
        """The series of the studies that are meant, study by study."""
        ...

    def fetch_series(self, series: SeriesReference, skip: Container[str] = ()) -> Iterator[bytes]:
        """Yield a DICOM file for each instance of a series, whose header has the UIDs that were asked for. `skip`: SOP
        Instance UIDs that are there already. Raises SeriesIncomplete where one does not come, after all that do, and
        BadInput where none comes."""
        ...

    def store(self, content: bytes) -> None:
        """Give the archive a DICOM file. Raises BadInput with the reason where it is refused."""
        ...

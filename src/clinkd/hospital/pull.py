"""Bring studies from an archive into a folder; what is there is not fetched again.

Files and folders are named by UIDs alone: `STUDY/SERIES/INSTANCE.dcm`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from clinkd.pacs import Archive, ArchiveUnreachable, SeriesIncomplete, SeriesReference, StudyQuery, read_instance_header
from clinkd.records import BadInput
from clinkd.storage import progress, write_atomic

# PS3.3 C.7.3.1.1.1: reports, marks, plans, curves and papers, which show no image
NO_IMAGES = frozenset((
    "SR", "SEG", "DOC", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTINTENT", "REG", "FID", "ANN",
    "AU", "ECG", "EPS", "EEG", "EMG", "EOG", "HD", "RESP", "PLAN", "STAIN", "M3D", "SMR", "TEXTUREMAP", "RWV", "ASMT",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class PullPlan:
    """What there is to bring. `present`: SOP Instance UIDs that the folder has, by series; `left_out`: series without
    images; `cut`: whether more studies match than the limit."""

    series: tuple[SeriesReference, ...]
    present: dict[str, frozenset[str]]
    left_out: tuple[SeriesReference, ...] = ()
    cut: bool = False

    @property
    def studies(self) -> int:
        return len({series.study for series in self.series})

    @property
    def instances(self) -> int | None:
        """Of all series; None where the archive does not say."""
        return sum_instances(self.series)

    @property
    def there(self) -> int:
        """How many of them the folder has."""
        return sum(map(len, self.present.values()))


@dataclass
class PullResult:
    """What came: `files` with `size_bytes`, and one line for each thing that did not."""

    files: int = 0
    size_bytes: int = 0
    problems: list[str] = field(default_factory=list)


def sum_instances(series: Iterable[SeriesReference]) -> int | None:
    numbers = [one.instances for one in series]
    return None if None in numbers else sum(number for number in numbers if number is not None)


def plan_pull(archive: Archive, query: StudyQuery, folder: Path) -> PullPlan:
    """Ask the archive what there is. Series without images are left out unless the query names their modality.

    Raises BadInput where nothing matches.
    """
    if query.anything:
        raise BadInput("every study of the archive would come: name some, by --study, --accession, --patient, "
                       "--modality or --date")  # fmt: skip
    more = query if query.limit is None else query.with_limit(query.limit + 1)
    found = archive.find_series(more)
    studies = list(dict.fromkeys(series.study for series in found))
    kept = set(studies[: query.limit])
    found = [series for series in found if series.study in kept]
    if not found:
        raise BadInput("no study matches; an archive compares numbers and IDs letter by letter, and a day is as "
                       "2026-11-30")  # fmt: skip
    wanted = tuple(series for series in found if query.modality or series.modality not in NO_IMAGES)
    if not wanted:
        kinds = ", ".join(sorted({series.modality for series in found}))
        raise BadInput(f"the studies that match hold no images ({kinds}); --modality {found[0].modality} fetches those")
    present = {
        one.series: frozenset(p.stem for p in _place(folder, one).glob("*.dcm") if p.is_file()) for one in wanted
    }
    left_out = tuple(series for series in found if series not in wanted)
    return PullPlan(wanted, present, left_out, cut=len(studies) > len(kept))


def _place(folder: Path, series: SeriesReference) -> Path:
    return folder / series.study / series.series


def pull(archive: Archive, plan: PullPlan, folder: Path) -> PullResult:
    """Fetch what is not there yet. A file is whole and on the disk before it has its name, so the same call goes on
    after any end. What the archive refuses is told, and the next series follows; raises BadInput where it is lost."""
    result = PullResult()
    with progress(plan.instances, "pull", "files", done=plan.there) as advance:
        for series in plan.series:
            present = plan.present[series.series]
            with contextlib.closing(_fetch(archive, series, present, result.problems)) as contents:
                for content in contents:
                    name = f"{read_instance_header(content).instance}.dcm"
                    write_atomic(_place(folder, series) / name, content)
                    result.files += 1
                    result.size_bytes += len(content)
                    advance(1)
    return result


def _fetch(
    archive: Archive, series: SeriesReference, present: frozenset[str], problems: list[str]
) -> Generator[bytes, None, None]:
    try:
        yield from archive.fetch_series(series, skip=present)
    except ArchiveUnreachable:
        raise
    except SeriesIncomplete as error:
        problems += error.failures.values()
    except BadInput as error:
        problems.append(f"series {series.series}: {error}")

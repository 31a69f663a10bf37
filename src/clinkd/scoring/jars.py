"""The jars that SPICE runs on: four are fetched once and kept in the user's cache, the others are pycocoevalcap's.

Each is pinned by its SHA-256 in `spice.sha256`. A full check of the fetched ones (387 MB) is stamped with the size and
time of each file, so that later starts look at these alone. SPICE and CoreNLP are AGPL and GPL: they are called as a
program of their own, and never copied from here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from clinkd.records import BadInput
from clinkd.scoring.captions import NotComputed, find_pycocoevalcap
from clinkd.storage import cache_folder, naming_full_disk, new_folder, progress, read_json, sha256_file, write_json

POM = Path(__file__).with_name("spice.pom.xml")
PINS = Path(__file__).with_name("spice.sha256")
FETCHED_MB = 387
_FETCHED, _WHEEL = "fetched", "wheel"  # the first folder of a name in PINS: whence the file comes
_STAMP = "checked.json"
_LOOK_SECONDS = 0.2  # between two looks at how far a download is


def jars_identity() -> str | None:
    """`version` of the SPICE that is installed; None where none is."""
    return None if trouble() else version()


def class_path() -> str:
    """What Java is given as `-cp`. Raises NotComputed where a jar is missing or is not the pinned one."""
    if reason := trouble():
        raise NotComputed(
            f"SPICE: {reason}; `clinkd spice install` fetches its jars (387 MB), or takes them --from DIR; "
            "then evaluate again"
        )
    wheel = find_pycocoevalcap() / "spice"
    for name, sha256 in _pins(_WHEEL).items():
        if not (wheel / name).is_file() or sha256_file(wheel / name) != sha256:
            raise NotComputed(
                f"SPICE: {name} is not that of pycocoevalcap 1.2; pip install pycocoevalcap==1.2, then evaluate again"
            )
    return os.pathsep.join(map(str, [*(wheel / n for n in _pins(_WHEEL)), *(folder() / n for n in _pins(_FETCHED))]))


def folder() -> Path:
    """Where the fetched jars are, or will be."""
    return cache_folder() / "spice" / f"jars-{version()}"


def trouble() -> str | None:
    """Why the fetched jars cannot be used; None where they can."""
    place = folder()
    if not place.is_dir():
        return "not installed"
    if missing := [n for n in _pins(_FETCHED) if not (place / n).is_file()]:
        return f"{missing[0]} is missing"
    with contextlib.suppress(BadInput):
        if read_json(place / _STAMP) == _stamps(place):
            return None
    # copied from elsewhere, or touched
    if damaged := _first_unlike(place):
        return f"{damaged} is damaged (its SHA-256 is not the pinned one)"
    with contextlib.suppress(OSError, BadInput):  # in a folder that may not be written to, it is checked each time
        write_json(place / _STAMP, _stamps(place))
    return None


def install(source: Path | None = None) -> bool:
    """Put the four jars into the cache, from Maven Central or from a folder that holds them.

    Returns False where they are there already. A download that was broken off is gone on with. Raises BadInput naming
    the file that is missing or not the pinned one, or saying what Maven said.
    """
    if trouble() is None:
        return False
    if folder().is_dir():
        shutil.rmtree(folder())  # damaged
    kept = cache_folder() / "spice" / "maven"
    with new_folder(folder()) as draft:
        if source is None:
            _fetch(draft, kept)
        else:
            _copy(source, draft)
        if unlike := _first_unlike(draft):
            shutil.rmtree(kept, ignore_errors=True)
            raise BadInput(
                f"{(source or draft) / unlike}: its SHA-256 is {sha256_file(draft / unlike)[:12]}..., and "
                f"{_pins(_FETCHED)[unlike][:12]}... is wanted; nothing was installed: get this file anew"
            )
        write_json(draft / _STAMP, _stamps(draft))
    shutil.rmtree(kept, ignore_errors=True)
    return True


def _fetch(draft: Path, kept: Path) -> None:
    """By Maven, with a repository of ours that lasts until all is there."""
    program = shutil.which("mvn")
    if program is None:
        raise BadInput(
            "no mvn on PATH; install Maven (Debian, Ubuntu: apt install maven), or give --from DIR, a folder with "
            f"{', '.join(_pins(_FETCHED))} of Maven Central"
        )
    goal = ["dependency:copy-dependencies", "-DexcludeTransitive=true", f"-DoutputDirectory={draft}"]
    command = [program, "-B", "-ntp", "-Dstyle.color=never", f"-Dmaven.repo.local={kept}", "-f", str(POM), *goal]
    with naming_full_disk(kept):
        kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as said:
        with (
            progress(FETCHED_MB, "jars of SPICE", "MB") as advance,
            subprocess.Popen(command, cwd=kept, stdin=subprocess.DEVNULL, stdout=said, stderr=said) as process,
        ):
            try:
                seen = 0
                while process.poll() is None:
                    time.sleep(_LOOK_SECONDS)
                    now = max(seen, min(FETCHED_MB, _jar_bytes(kept) // 1_000_000))
                    advance(now - seen)
                    seen = now
            finally:
                process.kill()
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").splitlines()
    if process.returncode:
        told = [line.removeprefix("[ERROR] ") for line in lines if line.startswith("[ERROR] ")] or lines or ["nothing"]
        raise BadInput(
            f"Maven could not fetch the jars of SPICE: {told[0][:400]}; the same command goes on, or give --from DIR, "
            f"a folder with {', '.join(_pins(_FETCHED))}"
        )
    _demand(draft)


def _jar_bytes(kept: Path) -> int:
    """What has come of the jars themselves; Maven's own parts are counted by nobody."""
    total = 0
    for path in (p for part in ("edu/stanford", "org/mozilla") for p in (kept / part).rglob("*")):
        with contextlib.suppress(OSError):  # a part becomes a file under another name
            total += path.stat().st_size
    return total


def _copy(source: Path, draft: Path) -> None:
    _demand(source)
    for name in _pins(_FETCHED):
        shutil.copyfile(source / name, draft / name)


def _demand(place: Path) -> None:
    if missing := [n for n in _pins(_FETCHED) if not (place / n).is_file()]:
        raise BadInput(f"{place}: no {', no '.join(missing)}; a folder with {', '.join(_pins(_FETCHED))} is wanted")


def _first_unlike(place: Path) -> str | None:
    return next((n for n, sha256 in _pins(_FETCHED).items() if sha256_file(place / n) != sha256), None)


def _stamps(place: Path) -> dict[str, list[int]]:
    found = {name: (place / name).stat() for name in _pins(_FETCHED)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}


def _pins(whence: str) -> dict[str, str]:
    """Names of files, and their SHA-256."""
    rows = (line.split("  ") for line in PINS.read_text().splitlines())
    return {name.removeprefix(f"{whence}/"): sha256 for sha256, name in rows if name.startswith(f"{whence}/")}


def version() -> str:
    """Twelve hexadecimal digits that tell these jars from others."""
    return hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]

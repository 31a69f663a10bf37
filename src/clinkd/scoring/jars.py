"""The jars that SPICE runs on: four are fetched once and kept in the user's cache, the others come with pycocoevalcap.

Each is pinned by its SHA-256 in `spice.sha256`. After a full check of the fetched jars (387 MB) the size and time of
each file are written down, so that later starts compare only these. SPICE and CoreNLP are AGPL and GPL: they are called
as a program of their own, and never copied from here.
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
from clinkd.storage import cache_folder, make_folder, new_folder, progress, read_json, sha256_file, write_json

POM = Path(__file__).with_name("spice.pom.xml")
PINS = Path(__file__).with_name("spice.sha256")
FETCHED_MB = 387
_FETCHED, _WHEEL = "fetched", "wheel"  # the first folder of a name in PINS: the origin of the file
_STAMP = "checked.json"
_LOOK_SECONDS = 0.2  # between two updates of a download's progress


def jars_identity() -> str | None:
    """The `version` of the installed jars; None where none are installed."""
    return None if find_problem() else version()


def class_path() -> str:
    """The class path for Java. Raises NotComputed where a jar is missing or is not the pinned one."""
    if reason := find_problem():
        raise NotComputed(
            f"SPICE: {reason}; `clinkd spice install` fetches its jars (387 MB), or takes them --from DIR; "
            "then evaluate again"
        )
    wheel = find_pycocoevalcap() / "spice"
    if wrong := _find_changed(wheel, _WHEEL):
        raise NotComputed(
            f"SPICE: {wrong} is not that of pycocoevalcap 1.2; pip install pycocoevalcap==1.2, then evaluate again"
        )
    return os.pathsep.join(map(str, [*(wheel / n for n in _pins(_WHEEL)), *(folder() / n for n in _pins(_FETCHED))]))


def folder() -> Path:
    """The folder of the fetched jars, whether they are installed or not."""
    return cache_folder() / "spice" / f"jars-{version()}"


def find_problem() -> str | None:
    """Why the fetched jars cannot be used; None where they can."""
    place = folder()
    if not place.is_dir():
        return "not installed"
    if missing := _find_missing(place):
        return f"{missing[0]} is missing"
    with contextlib.suppress(BadInput):
        if read_json(place / _STAMP) == _stamps(place):
            return None
    # copied from elsewhere, or touched
    if changed := _find_changed(place):
        return f"{changed} is damaged (its SHA-256 is not the pinned one)"
    with contextlib.suppress(OSError, BadInput):  # in a folder without write permission, each call checks it
        write_json(place / _STAMP, _stamps(place))
    return None


def install(source: Path | None = None) -> bool:
    """Put the four jars into the cache, from Maven Central or from a folder that holds them.

    Returns False where they are installed already. It continues a download that was stopped. Raises BadInput naming
    the file that is missing or not the pinned one, or with Maven's own message.
    """
    if find_problem() is None:
        return False
    if folder().is_dir():
        shutil.rmtree(folder())  # damaged
    repository = cache_folder() / "spice" / "maven"
    with new_folder(folder()) as draft:
        if source is None:
            _fetch(draft, repository)
        if missing := _find_missing(source or draft):
            wanted = f"a folder with {', '.join(_pins(_FETCHED))} is wanted"
            raise BadInput(f"{source or draft}: no {', no '.join(missing)}; {wanted}")
        if source is not None:
            for name in _pins(_FETCHED):
                shutil.copyfile(source / name, draft / name)
        if changed := _find_changed(draft):
            shutil.rmtree(repository, ignore_errors=True)
            raise BadInput(
                f"{(source or draft) / changed}: its SHA-256 is {sha256_file(draft / changed)[:12]}..., and "
                f"{_pins(_FETCHED)[changed][:12]}... is wanted; nothing was installed: get this file anew"
            )
        write_json(draft / _STAMP, _stamps(draft))
    shutil.rmtree(repository, ignore_errors=True)
    return True


def _fetch(draft: Path, repository: Path) -> None:
    """Fetch the jars by Maven, with a repository of our own that stays until they are complete."""
    program = shutil.which("mvn")
    if program is None:
        raise BadInput(
            "no mvn on PATH; install Maven (Debian, Ubuntu: apt install maven), or give --from DIR, a folder with "
            f"{', '.join(_pins(_FETCHED))} of Maven Central"
        )
    goal = ["dependency:copy-dependencies", "-DexcludeTransitive=true", f"-DoutputDirectory={draft}"]
    command = [program, "-B", "-ntp", "-Dstyle.color=never", f"-Dmaven.repo.local={repository}", "-f", str(POM), *goal]
    make_folder(repository)
    with tempfile.TemporaryFile() as output:
        with (
            progress(FETCHED_MB, "jars of SPICE", "MB") as advance,
            subprocess.Popen(
                command, cwd=repository, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            ) as process,
        ):
            try:
                shown_mb = 0
                while process.poll() is None:
                    time.sleep(_LOOK_SECONDS)
                    fetched_mb = max(shown_mb, min(FETCHED_MB, _count_jar_bytes(repository) // 1_000_000))
                    advance(fetched_mb - shown_mb)
                    shown_mb = fetched_mb
            finally:
                process.kill()
        output.seek(0)
        lines = output.read().decode("utf-8", "replace").splitlines()
    if process.returncode:
        errors = [line.removeprefix("[ERROR] ") for line in lines if line.startswith("[ERROR] ")]
        raise BadInput(
            f"Maven could not fetch the jars of SPICE: {[*errors, *lines, 'nothing'][0][:400]}; the same command goes "
            f"on, or give --from DIR, a folder with {', '.join(_pins(_FETCHED))}"
        )


def _count_jar_bytes(repository: Path) -> int:
    """The bytes of the jars themselves so far, without Maven's own parts."""
    total = 0
    for path in (p for part in ("edu/stanford", "org/mozilla") for p in (repository / part).rglob("*")):
        with contextlib.suppress(OSError):  # a part becomes a file under another name
            total += path.stat().st_size
    return total


def _find_missing(place: Path) -> list[str]:
    return [name for name in _pins(_FETCHED) if not (place / name).is_file()]


def _find_changed(place: Path, origin: str = _FETCHED) -> str | None:
    """The first file that is missing or has another SHA-256 than the pinned one."""
    for name, sha256 in _pins(origin).items():
        if not (place / name).is_file() or sha256_file(place / name) != sha256:
            return name
    return None


def _stamps(place: Path) -> dict[str, list[int]]:
    stats = {name: (place / name).stat() for name in _pins(_FETCHED)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _pins(origin: str) -> dict[str, str]:
    """The SHA-256 of each file, by its name."""
    rows = (line.split("  ") for line in PINS.read_text().splitlines())
    return {name.removeprefix(f"{origin}/"): sha256 for sha256, name in rows if name.startswith(f"{origin}/")}


def version() -> str:
    """Twelve hexadecimal digits, which identify these jars."""
    return hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]

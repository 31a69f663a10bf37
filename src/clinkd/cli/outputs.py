"""The files that a command may write: never over a file that it did not make."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from clinkd.records import BadInput

ENDED = 143
CHECK_PAGE, QUARANTINE, PICTURE = (
    b"<title>Check of data</title>",
    b'{"clinkd": "quarantine"',
    b"clinkd",
)  # how each begins
REPORT = b"<title>ClinKD run"
_HEAD_BYTES = 4096


def may_write(flag: str, path: Path | None, mark: bytes | None = None) -> None:
    """Raise BadInput where `path` is neither a new file nor one that such a command made before.

    Such a file has `mark` near its start; without a mark no file may exist.
    """
    if path is None:
        return
    from clinkd.storage import nearest_existing

    parent = nearest_existing(path.absolute().parent)
    if not parent.is_dir():
        raise BadInput(f"{flag} {path}: {parent} is no folder; choose another place")
    if not os.access(parent, os.W_OK):
        raise BadInput(f"{flag} {path}: {parent} cannot be written; choose another place")
    if not path.exists():
        return
    if not path.is_file():
        raise BadInput(f"{flag} {path}: is {'a folder' if path.is_dir() else 'no plain file'}; name a file")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head and (mark is None or mark not in head):
        whose = ", and not of this command" if mark else ""
        raise BadInput(f"{flag} {path}: is there already{whose}; choose another name")


def end_in_order() -> None:
    """Make SIGTERM close drafts as Ctrl-C does."""

    def end(*_: object) -> NoReturn:
        sys.exit(ENDED)

    try:
        signal.signal(signal.SIGTERM, end)
    except ValueError:  # outside the main thread no signal arrives
        return

"""Which run a verb is about, where none is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clinkd.cli.screen import tell

if TYPE_CHECKING:
    from clinkd.pipeline.runs import Run

WHICH_RUN = "a name under --runs, or a path; the newest finished run by default"


def choose_run(wanted: str | None, runs: Path, unfinished: bool = False) -> Run:
    """The run that is named; else the newest finished one (the newest of all with `unfinished`), told on stderr."""
    from clinkd.pipeline.runs import find_finished_run, find_run, is_finished

    run = (find_run if unfinished else find_finished_run)(wanted, runs)
    if wanted is None:
        kind = "newest finished run" if is_finished(run.folder) and not unfinished else "newest run"
        tell(f"run {run.folder.name}, the {kind}")
    return run

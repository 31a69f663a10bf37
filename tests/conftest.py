"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest

from browser import Browser, program
from clinkd.scoring.captions import CaptionScorer
from clinkd.storage import cache_folder

if TYPE_CHECKING:
    from serving import Server

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Of several processes of tests each stays on a core of its own, with all that it starts: where two take two
    threads each, as torch does by the number of cores, they wait for each other."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


# Files that take longest, the longest first: begun last, one of them would keep one core while the other has no more.
LONG_FILES = (
    "test_training_resume", "test_pipeline_run", "test_recipes_real", "test_pipeline_estimate", "test_serving_server",
    "test_training_trajectory", "test_data_check", "test_serving_page",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the Makefile tells xdist to keep this order."""
    items.sort(key=lambda item: LONG_FILES.index(item.path.stem) if item.path.stem in LONG_FILES else len(LONG_FILES))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Ctrl-C ends the session after the test at hand even where that runs a command, which catches it and goes home."""
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        session.shouldstop = "stopped by Ctrl-C"
        if callable(before):
            before(number, frame)

    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)


@pytest.fixture(scope="session", autouse=True)
def users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's own cache, which tests leave alone unless they ask for it: they find an empty one, without SPICE."""
    own = cache_folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLINKD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield own


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and golden scores that is kept beside the repository, never in it."""
    folder = Path(os.environ.get("CLINKD_SHARED") or ROOT.parent / "shared").resolve()
    if not (folder / "data" / "dev" / "records.jsonl").is_file():
        pytest.skip(f"no real data at {folder}: set CLINKD_SHARED to the folder that holds data/dev/records.jsonl")
    return folder


@pytest.fixture(scope="session")
def scorer() -> Iterator[CaptionScorer]:
    """One METEOR, and what it has counted so far."""
    with CaptionScorer() as scorer:
        yield scorer


@pytest.fixture(scope="module")
def one_meteor(scorer: CaptionScorer) -> Iterator[CaptionScorer]:
    """Files that evaluate in this process share one METEOR: to start it takes twelve seconds of a core, to ask it
    none. What it counts is held against published figures elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CaptionScorer, "opened", lambda given=None: contextlib.nullcontext(given or scorer))
        yield scorer


@pytest.fixture(scope="module")
def failing_java(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Java that fails, for processes that are started here: they score without METEOR, whose start takes longer than
    all else that they do. Its folder, the first of PATH."""
    folder = tmp_path_factory.mktemp("bin")
    with pytest.MonkeyPatch.context() as patch:
        fail_java(folder, patch)
        yield str(folder)


def fail_java(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Put a Java that fails into a folder, and that first into PATH."""
    java = folder / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


SMALL_RUN = [
    "data.phantoms.train_images=32", "data.phantoms.validation_images=8", "data.phantoms.test_images=8",
    "data.workers=1", "teacher.share=0.5", "teacher.fit.epochs=1", "distill.fit.epochs=1", "reflect.fit.epochs=1",
    'data.phantoms.tasks=["VG","ROC"]', "reflect.review_share=0.2", "reflect.recheck=0",
    "select.clip.epochs=1", "select.clip.rows=16",
    "answer.max_new_tokens=16", "evaluate.shuffled=false", "evaluate.replicates=20", "model.tiny.hidden=48",
    "model.tiny.layers=1", "model.tiny.heads=2", "threads=1",
]  # fmt: skip


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run on few phantoms, `RUNS/small`, made once for all processes of a session. It has the
    stages of the demo and has learned next to nothing. Copy it before changing it."""
    from clinkd.cli import main

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    runs = base / "small-run"
    with (base / "small-run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (runs / "small" / "report.html").exists():
            settings = (word for knob in SMALL_RUN for word in ("--set", knob))
            assert main(["run", "demo", "--runs", str(runs), "--name", "small", *settings]) == 0
    return runs / "small"


@pytest.fixture(scope="session")
def started_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all files of tests: to start it takes longer than most that is looked at with it."""
    program()
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def chromium(started_browser: Browser) -> Iterator[Browser]:
    """The browser for a file of tests, whose page is left at the end. That its server was gone is no complaint."""
    yield started_browser
    started_browser.leave()
    started_browser.told.clear()


@pytest.fixture
def page(chromium: Browser, server: Server) -> Iterator[Browser]:
    """The page of the `server` that a file of tests has, opened anew."""
    from serving import opened_page

    with opened_page(chromium, server) as opened:
        yield opened

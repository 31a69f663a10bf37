"""The session of tests itself: it can be stopped, and it begins with what takes longest."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import LONG_FILES, pytest_sessionstart

TESTS = Path(__file__).parent


def test_ctrl_c_ends_the_session_where_a_test_swallows_it() -> None:
    session = SimpleNamespace(shouldstop=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        pytest_sessionstart(session)  # type: ignore[arg-type]
        assert not session.shouldstop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert session.shouldstop  # pytest looks at it after each test
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a job in the background inherits it ignored
        pytest_sessionstart(session)  # type: ignore[arg-type]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_files_that_take_longest_are_there() -> None:
    assert len(set(LONG_FILES)) == len(LONG_FILES) and all((TESTS / f"{name}.py").is_file() for name in LONG_FILES)

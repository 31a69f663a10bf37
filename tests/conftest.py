"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and golden scores that is kept beside the repository, never in it."""
    folder = Path(os.environ.get("CLINKD_SHARED") or ROOT.parent / "shared").resolve()
    if not (folder / "data" / "dev" / "records.jsonl").is_file():
        pytest.skip(f"no real data at {folder}: set CLINKD_SHARED to the folder that holds data/dev/records.jsonl")
    return folder

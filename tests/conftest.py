"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from clinkd.storage import cache_folder

ROOT = Path(__file__).resolve().parent.parent


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

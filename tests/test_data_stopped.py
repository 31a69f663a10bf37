"""A check or an import that is stopped says what is true, leaves nothing, and can be done again."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clinkd.cli import main
from clinkd.cli.outputs import ENDED
from clinkd.data.checks import check, near
from clinkd.data.checks.near import examine_images
from clinkd.records import ImageRef

PHASES = {  # what is done in each
    "read": "clinkd.data.checks.check.Checker.check_row",
    "open": "clinkd.data.checks.near._look",
    "compare": "clinkd.data.checks.check.find_similar_pairs",
    "set aside": "clinkd.data.importing.quarantine",
    "write": "clinkd.data.importing._encode_line",
    "publish": "clinkd.storage.sync_tree",
}


@pytest.fixture(autouse=True)
def _keep_signals() -> Iterator[None]:
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


def make_sheet(folder: Path) -> Path:
    for name in ("a", "b"):
        coarse = np.random.default_rng(ord(name)).integers(0, 256, (6, 8), np.uint8)
        Image.fromarray(coarse).resize((64, 48)).save(folder / f"{name}.png")
    rows = [f"{name}.png,Is it so?,yes,{modality}" for name, modality in (("a", "ct"), ("b", "ct"), ("a", "none"))]
    (folder / "sheet.csv").write_text("\n".join(["image,question,answer,modality", *rows]))
    return folder / "sheet.csv"


def call(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as ending:
        return int(ending.code or 0)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", PHASES)
def test_a_stopped_import_says_the_truth_and_leaves_nothing(
    tmp_path: Path, phase: str, kind: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, home = make_sheet(tmp_path), tmp_path / "home"
    words = [
        "data",
        "import",
        str(sheet),
        "--out",
        str(home / "out"),
        "--quarantine",
        str(home / "bad.jsonl"),
        "--copy",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(PHASES[phase], lambda *_, **__: signal.raise_signal(kind))
        assert call(words) == (130 if kind == signal.SIGINT else ENDED)
    told = capsys.readouterr().err
    assert "Traceback" not in told and (phase != "open" or "open images: 0/2 images, stopped" in told)
    assert told.splitlines()[-1].endswith("no data set was made, and the same command begins anew")
    assert {p.name for p in home.iterdir()} <= {"bad.jsonl"}
    assert call(words) == 0 and (home / "out/samples.jsonl").is_file()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_check_says_so(
    tmp_path: Path, kind: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "find_similar_pairs", lambda *_: signal.raise_signal(kind))
    assert call(["data", "check", str(make_sheet(tmp_path))]) == (130 if kind == signal.SIGINT else ENDED)
    assert capsys.readouterr().err.endswith("nothing was written, and the same command begins anew\n")


def test_stopped_phantoms_leave_no_folder_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(folder: Path, *_: Any, **__: Any) -> None:
        (folder / "images").mkdir()
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("clinkd.data.phantoms.write_phantoms", stop)
    assert call(["data", "phantoms", str(tmp_path / "drawn")]) == 130 and list(tmp_path.iterdir()) == []


def sleep_over_one(request: tuple[str, dict[str, Any]], content: bytes) -> tuple[Any, list[bytes]]:
    if request[1]["path"] == "slow.png":
        time.sleep(60)
    return (None, 0, False), [bytes(256)]


def test_nobody_waits_for_an_image_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_INLINE", 1)
    monkeypatch.setattr(near, "_JOB", 2)
    monkeypatch.setattr(near, "look_in_worker", sleep_over_one)
    looks = examine_images(tmp_path, [ImageRef(name) for name in ("a.png", "b.png", "slow.png", "slow.png")], 1)
    assert next(looks).why is None
    time.sleep(0.1)  # the worker is with the next
    before = time.monotonic()
    looks.close()  # type: ignore[attr-defined]  # as an interrupt does
    assert time.monotonic() - before < 10

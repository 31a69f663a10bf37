"""The page of `clinkd serve` with a CT of real size: until a slice is seen, scrolling, other planes, memory.

    python -m benchmarks.stacks [--json] [--slices 300] [--side 512] [--only series,multiframe,nifti,packed]

The same volume as single DICOM files, one file of many frames, a NIfTI and a .nii.gz, in a headless Chromium beside
a server with the limits of `clinkd serve`. Its model answers nothing: no question is asked. Scrolling turns the wheel
30 times a second for five seconds; a picture counts when it stands on the page.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.report import Row, add_outputs, show

sys.path.append(str(Path(__file__).parent.parent / "tests"))
FORMS = ("series", "multiframe", "nifti", "packed")
STEPS_A_SECOND, SECONDS = 30, 5.0
COUNT_BYTES = """(() => { const real = fetch; globalThis.sentBytes = 0;
  globalThis.fetch = (path, how) => { sentBytes += how?.body?.length ?? 0; return real(path, how); }; })()"""
SCROLL = """new Promise((done) => {
  const stage = document.getElementById('stage'), seen = [];
  new MutationObserver(() => seen.push(stage.getAttribute('aria-label'))).observe(stage, {attributes: true,
    attributeFilter: ['aria-label']});
  const box = stage.getBoundingClientRect();
  const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true, cancelable: true};
  const turning = setInterval(() => stage.dispatchEvent(new WheelEvent('wheel', {...at, deltaY: 100})), 1000 / %d);
  setTimeout(() => { clearInterval(turning); done(new Set(seen).size); }, %d); })"""


def make_volume(slices: int, side: int) -> Any:
    """Hounsfield units with the noise of a CT, which packs as badly as a real one does."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = np.where(x**2 + 1.8 * y**2 < 0.8, 40, -1000)
    noise = rng.normal(0, 15, (8, side, side))
    return np.stack([body + noise[n % 8] + 100 * (x**2 + y**2 < 0.3 * n / slices) for n in range(slices)]).astype("<i2")


def write_files(form: str, volume: Any, folder: Path) -> list[Path]:
    from nibabel import Nifti1Image

    from slices import ct, enhanced

    folder.mkdir()
    if form == "series":
        paths = [folder / f"IM{n:04}" for n in range(len(volume))]
        for n, path in enumerate(paths):
            ct(volume[n], ImagePositionPatient=[0, 0, n], InstanceNumber=n + 1).save_as(path)
        return paths
    path = folder / {"multiframe": "ct.dcm", "nifti": "ct.nii", "packed": "ct.nii.gz"}[form]
    if form == "multiframe":
        enhanced(range(len(volume)), volume, 1.0).save_as(path)
    else:
        Nifti1Image(volume.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1])).to_filename(path)
    return [path]


def resident_bytes(pid: int) -> int:
    """Of the processes that draw pages, below a browser."""
    total, parents = 0, {pid}
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
            if int(words[1]) in parents:
                parents.add(int(folder.name))
                total += 4096 * int(words[21]) * (b"--type=renderer" in command)
        except (OSError, IndexError):
            continue
    return total


def measure(page: Any, url: str, paths: Sequence[Path], what: str, raw: int) -> Iterator[Row]:
    page.visit(url, 1280, 900)
    page.until("document.getElementById('state').dataset.state === 'ready'")
    page.call("Network.disable")  # else each body would be copied to this process, and measured with the page
    page.ask(COUNT_BYTES)
    before, start = resident_bytes(page.process.pid), time.monotonic()
    page.choose("#file", *paths)
    shown = "document.getElementById('facts').textContent"
    page.until(f"{shown} || !document.getElementById('error').hidden", 600)
    if not page.ask(shown):
        why = page.ask("document.getElementById('error').textContent")
        print(f"{what}: {why}", file=sys.stderr)
        return
    yield Row(f"{what}: until the first slice is seen", time.monotonic() - start, 2, "goal", "s")
    yield Row(f"{what}: sent until then", page.ask("sentBytes") / 1e6, raw / 1e6, "the volume", "MB")
    if len(paths) > 1:
        page.until(f"document.getElementById('frame-said').textContent.endsWith('of {len(paths)}')", 600)
        yield Row(f"{what}: until all can be scrolled", time.monotonic() - start, 10, "goal", "s")
        page.until("document.getElementById('stage').getAttribute('aria-busy') === 'false'")
    page.pick("#frame", "1")
    time.sleep(3)
    pictures = page.ask(SCROLL % (STEPS_A_SECOND, 1000 * SECONDS))
    yield Row(f"{what}: scrolling", pictures / SECONDS, STEPS_A_SECOND, "turns of the wheel", "/s")
    time.sleep(1)
    held = resident_bytes(page.process.pid) - before
    yield Row(f"{what}: held after scrolling", held / 1e6, raw / 1e6, "the volume", "MB")
    if page.ask("document.getElementById('planes').hidden"):
        return
    start = time.monotonic()
    page.pick("#plane", "coronal")
    page.until("document.getElementById('stage').getAttribute('aria-label').includes('coronal')", 600)
    yield Row(f"{what}: until another plane is seen", time.monotonic() - start, 10, "goal", "s")
    held = resident_bytes(page.process.pid) - before
    yield Row(f"{what}: held with another plane", held / 1e6, raw / 1e6, "the volume", "MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--only", default=",".join(FORMS), metavar="FORM,...")
    add_outputs(parser)
    args = parser.parse_args()
    from browser import Browser
    from clinkd.serving.limits import ServerLimits
    from serving import TOKEN, serving_model
    from test_serving_replies import ScriptedAnswerer

    limits = ServerLimits()
    caps = {name: getattr(limits, name) for name in ("body_bytes", "held_bytes", "pixels", "decoders")}
    volume, rows = make_volume(args.slices, args.side), []
    with tempfile.TemporaryDirectory() as home, serving_model(ScriptedAnswerer, **caps) as server:
        for form in args.only.split(","):
            paths = write_files(form, volume, Path(home) / form)
            what = f"{args.slices} slices of {args.side} x {args.side}, {form}"
            with Browser(Path(home) / f"{form}-profile") as page:
                rows += measure(page, f"{server.url}/?token={TOKEN}", paths, what, volume.nbytes)
    show(rows, args)


if __name__ == "__main__":
    main()

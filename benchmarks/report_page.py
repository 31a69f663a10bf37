"""The report of a large test set: bytes, seconds to write it, and seconds until a browser shows it.

    python -m benchmarks.report_page [--json] [--questions 2000] [--side 480]

Draws so many images of smooth shapes, texture and noise (as JPEG, with one question each, the worst case: every card
needs a picture of its own), answers with three candidates, and writes the page, with names hidden as in a run.
Chromium, where it is on PATH, then opens it.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
from benchmarks.report import Row, add_outputs, show
from PIL import Image

from clinkd.records import Box, BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Score, Task, Turn
from clinkd.remote import PlainPage
from clinkd.reporting.browse import AnsweredSample
from clinkd.reporting.gallery import choose_gallery
from clinkd.reporting.report import RunSummary, ShownAnswers, write_report, write_shared

SEEN = (
    "The image shows a cross section at the level of the upper abdomen. The organs are of usual size and the outlines "
    "are smooth. No free fluid is seen around them."
)


def drawn(side: int, noise: np.random.Generator, colour: bool) -> Image.Image:
    """Shapes of several sizes under fine texture and noise: about as hard to compress as a scan."""
    size = (side, side * 5 // 6)
    whole = np.zeros((size[1], size[0]))
    for cells, weight in ((4, 110), (12, 50), (40, 22), (120, 10)):
        small = Image.fromarray(noise.random((cells, cells), dtype=np.float32))
        whole += weight * np.asarray(small.resize(size, Image.Resampling.BICUBIC))
    whole += noise.normal(0, 5, whole.shape)
    grey = Image.fromarray(whole.clip(0, 255).astype(np.uint8))
    return Image.merge("RGB", (grey, grey.point(lambda v: v * 0.7), grey.point(lambda v: v * 0.6))) if colour else grey


def answered(root: Path, questions: int, side: int) -> list[AnsweredSample]:
    """One question an image, over four tasks and eight modalities; every third kind of image has colours."""
    dice, noise, found = random.Random(0), np.random.default_rng(0), []
    tasks, modalities = tuple(Task)[:4], tuple(Modality)[:8]
    for number in range(questions):
        name = f"ward-{number % 40}/case-{number:05d}.jpg"
        (root / name).parent.mkdir(exist_ok=True)
        drawn(side, noise, number % 3 == 0).save(root / name, quality=92)
        x, y = dice.uniform(0, 0.6), dice.uniform(0, 0.6)
        said = BoxedText(f"{SEEN} It is at [box].", (Box(x, y, x + 0.3, y + 0.3),))
        image = ImageRef(name, side, side * 5 // 6)
        turn = Turn(tasks[number % 4], BoxedText(f"What is seen in image {number}?"), said)
        item = Sample(str(number), (image,), modalities[number // 4 % 8], (turn,), name, f"source {number % 5}")
        raw = said.text.replace("[box]", "<box>(120,240),(420,540)</box>")
        three = tuple(Candidate(raw, said, -dice.random(), {"clip": dice.random()}) for _ in range(3))
        found.append(
            AnsweredSample(number + 1, item, Prediction(item.id, three), dice.random() < 0.6, {"mIoU": dice.random()})
        )
    return found


def opened(path: Path, home: Path) -> tuple[float, float]:
    """Seconds until a Chromium first shows something of a page, and until all of it stands and its script has run."""
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from browser import Browser

    with Browser(home) as browser:
        browser.open(path)
        first = browser.ask("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        return first / 1000, browser.ask("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--side", type=int, default=480, help="pixels of an image's longer side")
    add_outputs(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, redirect_stderr(io.StringIO()):
        root = Path(temporary)
        items = answered(root, args.questions, args.side)
        given = sum(p.stat().st_size for p in root.rglob("*.jpg")) / 1e6
        scores = [Score("model", t, "Recall", m, 50.0, 60) for t in tuple(Task)[:2] for m in tuple(Modality)[:8]]
        terms = {part for a in items for part in Path(a.sample.images[0].path).parts}
        start, used = time.perf_counter(), os.times().user
        gallery = choose_gallery([a.sample for a in items], [a.prediction for a in items], 24)
        summary = RunSummary(name="bench", tables=[], scores=scores, setup=[], wall_seconds={})
        on_page = ShownAnswers(image_root=root, answered=items, gallery=gallery, shown=PlainPage(terms))
        write_report(root / "report.html", summary, on_page)
        seconds, user = time.perf_counter() - start, os.times().user - used
        write_shared(root / "shared.html", summary, items)
        whole, shared = ((root / name).stat().st_size / 1e6 for name in ("report.html", "shared.html"))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        what = f"{args.questions:,} questions, as many images of {args.side} pixels"
        rows = [
            Row(f"{what}: the page", whole, 25, "goal", "MB"),
            Row(f"{what}: the page, beside the images themselves", whole, given, "their JPEG files", "MB"),
            Row(f"{what}: the page to be mailed", shared, 25, "goal", "MB"),
            Row(f"{what}: to write it", seconds, 60, "goal", "s"),
            Row(f"{what}: to write it, processor time", user, 60, "goal", "s"),
            Row("peak memory", memory, 1000, "goal", "MB"),
        ]
        if shutil.which("chromium"):
            first, all_of_it = opened(root / "report.html", root / "home")
            rows.append(Row(f"{what}: until Chromium shows the table", first, 1, "goal", "s"))
            rows.append(Row(f"{what}: until all of it stands", all_of_it, 2, "goal", "s"))
    show(rows, args)


if __name__ == "__main__":
    main()

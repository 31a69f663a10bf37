"""Draw docs/demo.png from a finished run: the first VG question of each modality in the test split, answered.

Truth is solid, the answer dashed; which question is shown does not depend on its answer.

Usage: .venv/bin/python docs/picture.py runs/demo
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from clinkd import pipeline
from clinkd.data.images import open_image
from clinkd.records import PAPER_MODALITIES, Prediction, Sample, Task
from clinkd.reporting import viewer
from clinkd.storage import JsonLines, read_json

SIDE, GAP = 288, 8


def main() -> None:
    run = pipeline.find(sys.argv[1])
    prepared = run.stage("prepare")
    root = prepared / read_json(prepared / "data.json")["root"]
    samples = [Sample.from_json(r) for r in JsonLines(prepared / "test.jsonl").read()]
    records = JsonLines(run.stage("select") / "predictions.jsonl").read()
    answers = {p.id: p for p in map(Prediction.from_json, records)}
    sheet = Image.new("RGB", (4 * SIDE + 3 * GAP, 2 * SIDE + GAP), "white")
    for place, modality in enumerate(PAPER_MODALITIES):
        sample = next(s for s in samples if s.modality is modality and s.task is Task.VG)
        said = answers[sample.id].answer.answer.boxes
        boxes, colours = [*sample.answer.boxes, *said], [viewer.TRUTH] * len(sample.answer.boxes)
        labels = [f"{modality.value}: {sample.names[0]}"] + [""] * (len(boxes) - 1)
        picture = viewer.overlay(
            open_image(root, sample.images[0]), boxes, labels, [*colours, *[viewer.ANSWER] * len(said)]
        )
        x, y = place % 4 * (SIDE + GAP), place // 4 * (SIDE + GAP)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
    sheet.save(Path(__file__).with_name("demo.png"), optimize=True)


main()

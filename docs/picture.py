"""Draw docs/demo.png from a finished run: the first VG question of each modality in the test split, answered.

Which question is shown does not depend on its answer. Which box is the truth and which the answer stands below.

Usage: .venv/bin/python docs/picture.py runs/demo
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clinkd.data.images import open_image
from clinkd.pipeline.prepared import read_data_source, read_predictions, read_split
from clinkd.pipeline.runs import Run, open_run
from clinkd.records import PAPER_MODALITIES, Box, Candidate, Sample, Task
from clinkd.reporting.viewer.overlay import ANSWER, TRUTH, draw_boxes

SIDE, GAP, COLUMNS, LEGEND = 288, 8, 4, 44  # pixels, but for the columns
WIDTH = COLUMNS * (SIDE + GAP) - GAP


def draw_sheet(run: Run) -> Image.Image:
    """The answered questions in rows, and the legend of their boxes below."""
    root, _ = read_data_source(run.stage("prepare"))
    answers = {p.id: p.answer for p in read_predictions(run.stage("select"))}
    grounding = [s for s in read_split(run.stage("prepare"), "test") if s.task is Task.VG]
    firsts = [next((s for s in grounding if s.modality is m), None) for m in PAPER_MODALITIES]
    pictures = [_draw_answered(root, s, answers[s.id]) for s in firsts if s is not None]
    height = -(-len(pictures) // COLUMNS) * (SIDE + GAP)
    sheet = Image.new("RGB", (WIDTH, height + LEGEND), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % COLUMNS * (SIDE + GAP), place // COLUMNS * (SIDE + GAP)))
    sheet.paste(_draw_legend(), (0, height))
    return sheet


def _draw_answered(root: Path, sample: Sample, answer: Candidate) -> Image.Image:
    true, answered = sample.answer.boxes, answer.answer.boxes
    colours = [TRUTH] * len(true) + [ANSWER] * len(answered)
    label = f"{sample.modality.value}: {sample.names[0]}"
    picture = draw_boxes(open_image(root, sample.images[0]), [*true, *answered], [label], colours)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _draw_legend() -> Image.Image:
    """A box of each kind, drawn as on the pictures, and its name."""
    strip = Image.new("RGB", (WIDTH, LEGEND), "#30363b")
    for left, colour, text in (
        (16, TRUTH, "solid blue: the truth"),
        (320, ANSWER, "dashed orange: the model's answer"),
    ):
        corners = (left / WIDTH, 10 / LEGEND, (left + 56) / WIDTH, 34 / LEGEND)
        strip = draw_boxes(strip, [Box(*corners)], colours=[colour], side_pixels=WIDTH)
        font = ImageFont.load_default(18)
        ImageDraw.Draw(strip).text((left + 70, LEGEND / 2), text, fill="white", font=font, anchor="lm")
    return strip


if __name__ == "__main__":
    draw_sheet(open_run(Path(sys.argv[1]))).save(Path(__file__).with_name("demo.png"), optimize=True)

"""The pictures of docs/TUTORIAL.md, of its own material and the run that it makes.

    python docs/tutorial_pictures.py RUN IMAGE

Asks the model of RUN where the left lung is in IMAGE, and draws four images of the run with their true boxes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import clinkd
from clinkd.reporting.viewer.overlay import draw_boxes

HERE = Path(__file__).resolve().parent
SIDE, GAP = 256, 8
QUESTION = "Where is the left lung?"


def draw_scans(run: Path) -> None:
    data = clinkd.load(run).run.data()
    sheet = Image.new("RGB", (4 * SIDE + 3 * GAP, SIDE), "white")
    grounding = [sample for sample in data.samples if sample.task == "VG"]
    paths = sorted({sample.images[0].path for sample in grounding})[:4]
    for place, path in enumerate(paths):
        asked = [sample for sample in grounding if sample.images[0].path == path]
        boxes = [box for sample in asked for box in sample.answer.boxes]
        names = [sample.names[0] for sample in asked for _ in sample.answer.boxes]
        picture = draw_boxes(data.open(asked[0]), boxes, names, side_pixels=2 * SIDE)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (place * (SIDE + GAP), 0))
    sheet.save(HERE / "tutorial-scans.png", optimize=True)


def main() -> None:
    run, image = Path(sys.argv[1]), sys.argv[2]
    draw_scans(run)
    with tempfile.TemporaryDirectory() as folder:
        png = Path(folder) / "answer.png"
        words = ["ask", "--run", str(run), image, QUESTION, "--out", str(png)]
        subprocess.run([sys.executable, "-m", "clinkd", *words], check=True)
        png.replace(HERE / "tutorial-answer.png")


if __name__ == "__main__":
    main()

"""What every benchmark prints: rows of ours beside a rival of the same run, for people or for a program."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` is ours by the rival's."""

    what: str
    ours: float
    rival: float
    rival_name: str
    unit: str

    @property
    def ratio(self) -> float:
        return self.ours / self.rival if self.rival else float("nan")


def machine() -> dict[str, Any]:
    """Commit, machine and versions."""
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, capture_output=True, text=True).stdout.strip()
    versions = {p: metadata.version(p) for p in ("torch", "transformers", "numpy", "clinkd")}
    return {
        "commit": commit,
        "machine": f"{platform.machine()}, {_processor()}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has."""
    parser.add_argument("--json", action="store_true", help="rows for a program, on stdout")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the same rows for a spreadsheet")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="a picture of the ratios")


def show(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Print rows, with commit, machine and versions, and write what else `add_outputs` was asked for."""
    about = machine()
    told = [{**asdict(r), "ratio": r.ratio if r.rival else None, **about} for r in rows]  # JSON has no NaN
    if args.json:
        print(json.dumps(told, indent=1))
    else:
        for row in rows:
            ours, rival = f"{row.ours:.4g} {row.unit}", f"{row.rival_name} {row.rival:.4g} {row.unit}"
            print(f"{row.what}: {ours}, {rival}, ratio {row.ratio:.3f}")
        print(", ".join(f"{k} {v}" for k, v in about.items()))
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(told[0]))
            writer.writeheader()
            writer.writerows(told)
    if args.plot:
        plot(rows, f"{about['machine']}, {about['commit']}").save(args.plot)


# ---- the picture ----------------------------------------------------------------------------------------------------

WIDTH, LINE, LEFT, RIGHT = 1280, 46, 620, 150
PAPER, INK, DIM, OURS, RIVAL = "#ffffff", "#1c2733", "#6b7885", "#2f6f9f", "#c9d3dc"


def plot(rows: Sequence[Row], about: str) -> Image.Image:
    """Each row as a bar of ours above one of the rival's, which has the same length or the longer one's whole line."""
    picture = Image.new("RGB", (WIDTH, 70 + LINE * len(rows) + 40), PAPER)
    draw = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(17), ImageFont.load_default(13)
    draw.rectangle((24, 22, 38, 36), fill=OURS)
    draw.text((46, 19), "ours", INK, large)
    draw.rectangle((110, 22, 124, 36), fill=RIVAL)
    draw.text((132, 19), "rival of the same run; at the right, ours by the rival's", INK, large)
    room = WIDTH - LEFT - RIGHT
    for number, row in enumerate(rows):
        top = 62 + number * LINE
        draw.text((24, top + 2), _cut(row.what, large, LEFT - 40), INK, large)
        most = max(row.ours, row.rival) or 1.0
        draw.text((24, top + 23), f"{row.ours:.4g} against {row.rival:.4g} {row.unit} ({row.rival_name})", DIM, small)
        for value, color, place in ((row.ours, OURS, top + 4), (row.rival, RIVAL, top + 20)):
            draw.rectangle((LEFT, place, LEFT + max(2, room * value / most), place + 13), fill=color)
        draw.text((WIDTH - RIGHT + 24, top + 9), f"{row.ratio:.3g}", INK, ImageFont.load_default(20))
    draw.text((24, picture.height - 28), about, DIM, small)
    return picture


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: float) -> str:
    while font.getlength(text) > most:
        text = text[:-2].rstrip(" .") + "."
    return text

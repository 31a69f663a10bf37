"""Read and check a data set of the size of Med-GRIT-270k: seconds and memory.

    python -m benchmarks.data [--json] [--rows 270000] [--folder DIR]

Writes synthetic rows in Med-GRIT's own form (train.json with several turns a row, Test_{VG,RO,GC,MII}.json with one;
nothing of Med-GRIT itself), then runs `clinkd data import` and `clinkd data check` on them without opening images, each
in a process of its own. The floor beside it is what the standard library takes to parse the same files and no more.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Row, add_outputs, show

PREFIXES = (
    "ct_00",
    "mr_t1",
    "x_ray",
    "pet_00",
    "endoscopy_00",
    "dermoscopy_00",
    "fundus_photography_00",
    "ultrasound_00",
)
NAMES = (
    "left lung",
    "right lung",
    "liver",
    "spleen",
    "left kidney",
    "bladder",
    "polyp",
    "optic disc",
    "tumour",
    "heart",
)
TESTS = {"VG": "vg", "RO": "roc", "GC": "rc", "MII": "mia"}
SEEN = (
    "The image shows a cross section at the level of the upper abdomen. The organs are of usual size and the outlines "
    "are smooth. No free fluid is seen around them."
)


def _box(dice: random.Random) -> tuple[str, int]:
    x, y = dice.randrange(0, 700), dice.randrange(0, 700)
    width, height = dice.randrange(40, 299), dice.randrange(40, 299)
    return f"<box>({x},{y}),({x + width},{y + height})</box>", x + width // 2


def _turn(kind: str, dice: random.Random) -> list[str]:
    box, middle = _box(dice)
    name = dice.choice(NAMES)
    if name.startswith(("left", "right")):  # where the patient's left is in a picture
        name = f"{'left' if middle > 500 else 'right'} {name.split()[1]}"
    if kind == "vg":
        return [f"Where is the {name} located in the image?", f"The <ref>{name}</ref> is located at {box}."]
    if kind == "roc":
        return [f"What is in the region {box}?", name]
    if kind == "rc":
        return [
            f"Can you describe {box}?",
            f"In this region there is the {name}, of usual size and with a smooth edge.",
        ]
    return ["What can you interpret from the overall image?", f"{SEEN} Number {dice.randrange(10**6)}."]


def _rows(
    count: int, kinds: tuple[str, ...], turns: int, first: int, dice: random.Random
) -> Iterator[dict[str, object]]:
    for number in range(first, first + count):
        stem = f"{PREFIXES[number % 8]}--SET{number % 40}--case{number // 6:06d}--x_{number % 6:04d}"
        said = [_turn(dice.choice(kinds), dice) for _ in range(dice.randint(1, turns))]
        said[0][0] = f"<img>images/{stem}.png</img>{said[0][0]}"
        yield {"id": stem, "conversations": said}


def write(folder: Path, rows: int, seed: int = 0) -> None:
    """train.json with eight ninths of the rows, four test files with the rest; images are named, not made."""
    dice = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    test = rows // 36
    plan = [("train.json", rows - 4 * test, tuple(TESTS.values()), 3)]
    plan += [(f"Test_{name}.json", test, (kind,), 1) for name, kind in TESTS.items()]
    first = 0
    for name, count, kinds, turns in plan:
        with (folder / name).open("w", encoding="utf-8") as file:
            file.write("[\n")
            for at, row in enumerate(_rows(count, kinds, turns, first, dice)):
                file.write(f"{',' if at else ''}{json.dumps(row)}\n")
            file.write("]\n")
        first += -(-count // 6) * 6


def _measured(*words: str) -> tuple[float, float]:
    """Seconds and peak megabytes of a command of its own."""
    code = (
        "import resource, subprocess, sys, time; t = time.perf_counter(); "
        "rc = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; s = time.perf_counter() - t; "
        "print(rc, s, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    out = subprocess.run([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True, check=True).stdout
    status, seconds, megabytes = out.split()
    if status != "0":
        raise SystemExit(f"{' '.join(words)}: exit status {status}")
    return float(seconds), float(megabytes)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=270_000)
    parser.add_argument("--folder", type=Path, help="where the rows are written, and kept (a temporary folder)")
    add_outputs(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = args.folder or Path(temporary)
        source, made = home / "medgrit", home / "imported"
        if not source.is_dir():
            write(source, args.rows)
        floor, plain = _measured(
            sys.executable, "-c", "import json, sys; [json.load(open(p)) for p in sys.argv[1:]]",
            *map(str, sorted(source.iterdir())),
        )  # fmt: skip
        clinkd = [sys.executable, "-c", "import sys; from clinkd.cli import main; sys.exit(main(sys.argv[1:]))", "data"]
        if made.is_dir():
            raise SystemExit(f"{made}: is there already; remove it")
        seconds, memory = _measured(*clinkd, "import", str(source), "--out", str(made), "--no-images")
        checked, checking = _measured(*clinkd, "check", str(source), "--no-images", "--json")
        what, rival = f"{args.rows:,} rows of Med-GRIT's form", "json.load of the same files"
        show(
            [
                Row(f"{what}: import and check, without images", seconds, floor, rival, "s"),
                Row(f"{what}: peak memory of it", memory, plain, rival, "MB"),
                Row(f"{what}: check alone", checked, floor, rival, "s"),
                Row(f"{what}: peak memory of it", checking, plain, rival, "MB"),
            ],
            args,
        )


if __name__ == "__main__":
    main()

"""Check many small images, and compare their hashes, where few and where many are alike: seconds, memory, and a stop.

    python -m benchmarks.images [--json] [--hashes 300000] [--images 300000] [--folder DIR]

The hashes are made, with thumbnails that fit: all different; half of them of one picture; clusters a bit apart. The
rival compares all of a tenth of them with all, by numpy: the whole would take a hundred times as long. The images are
PNGs of 32 x 32 pixels: `clinkd data check` opens and compares them, and is interrupted at several points, as by Ctrl-C;
the rivals are Pillow's decoding of the same files in one process, and the limits that ours has to keep (600 MB, 1 s).
--hashes 0 or --images 0 leaves out a part.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from benchmarks.data import _measured
from benchmarks.report import Row, add_outputs, show
from numpy.typing import NDArray
from PIL import Image

from clinkd.data.checks.near import Look
from clinkd.data.checks.similar import BITS, find_similar_pairs

CLINKD = [sys.executable, "-c", "import sys; from clinkd.cli import main; sys.exit(main(sys.argv[1:]))"]
KINDS = ("all different", "half of one picture", "clusters a bit apart")
IN_CLUSTER = 3000
MOST_MB, MOST_STOP_SECONDS = 600, 1.0
STOPS = (0.05, 0.3, 0.7)  # shares of the whole time, which varies
START_SECONDS = 3.0  # before, Python itself may still be importing
FOLDER_FILES = 1000


def make_hashes(kind: str, count: int, rng: np.random.Generator) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes, and the number of the picture of each."""
    hash_N, picture_N = rng.integers(0, 2**64, count, dtype=np.uint64), np.arange(count)
    if kind == KINDS[1]:
        half = rng.permutation(count)[: count // 2]
        hash_N[half], picture_N[half] = hash_N[0], 0
    if kind == KINDS[2]:
        picture_N = rng.integers(0, max(1, count // IN_CLUSTER), count)
        hash_N = hash_N[picture_N] ^ (np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64))
    return hash_N, picture_N


def look_at(hash_N: NDArray[np.uint64], picture_N: NDArray[np.int64]) -> Iterator[Look]:
    """With a thumbnail of each picture, a little noise on it."""
    for number, (bits, picture) in enumerate(zip(hash_N.tolist(), picture_N.tolist(), strict=True)):
        pixels = np.random.default_rng(picture).integers(8, 248, 256, np.int16)
        noise = np.random.default_rng((1, number)).integers(-4, 5, 256, np.int16)
        yield Look(None, bits, (pixels + noise).astype(np.uint8).tobytes())


def count_near(hash_N: NDArray[np.uint64]) -> int:
    """The number of pairs of similar hashes, from all pairs."""
    near = 0
    for start in range(0, len(hash_N), 256):
        near += int((np.bitwise_count(hash_N[start : start + 256, None] ^ hash_N[start:]) <= BITS).sum())
    return near


def compare_hashes(count: int) -> Iterator[Row]:
    for kind in KINDS:
        hash_N, picture_N = make_hashes(kind, count, np.random.default_rng(0))
        looks = list(look_at(hash_N, picture_N))
        start = time.perf_counter()
        pairs = len(find_similar_pairs(looks, range(count), [0] * count))
        ours = time.perf_counter() - start
        if pairs != count - len(np.unique(picture_N)):
            raise SystemExit(f"{kind}: {pairs} pairs, not {count - len(np.unique(picture_N))}")
        start = time.perf_counter()
        count_near(hash_N[: count // 10])
        yield Row(f"{count:,} hashes, {kind}", ours, time.perf_counter() - start, "all with all of a tenth", "s")


def write_images(folder: Path, count: int) -> None:
    """PNGs of 32 x 32 pixels, and records with a question on each; a sheet's rows would stay in memory, 2 kB each."""
    with (folder / "records.jsonl").open("w") as records:
        for number in range(count):
            place = folder / f"{number // FOLDER_FILES}"
            place.mkdir(exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32), np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png", compress_level=1)
            qa = [{"question": f"Is there a lesion in {number}?", "answer": "no"}]
            image = f"{number // FOLDER_FILES}/{number}.png"
            records.write(json.dumps({"id": f"{number}", "image": image, "modality": "CT", "qa": qa}) + "\n")


DECODE = "import sys; from pathlib import Path; from PIL import Image\n"
DECODE += "for path in Path(sys.argv[1]).rglob('*.png'): Image.open(path).convert('L')"


def stop_after(words: list[str], seconds: float) -> float:
    """Seconds from an interrupt to the end of a command."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    before = time.monotonic()
    process.send_signal(signal.SIGINT)
    told = process.communicate()[1]
    if process.returncode != 130 or "begins anew" not in told:
        raise SystemExit(f"interrupted after {seconds:.1f} s: status {process.returncode}: {told[-500:]}")
    return time.monotonic() - before


def check_images(folder: Path, count: int) -> Iterator[Row]:
    if not (folder / "records.jsonl").is_file():
        write_images(folder, count)
    words = [*CLINKD, "data", "check", str(folder)]
    floor, _ = _measured(sys.executable, "-c", DECODE, str(folder))
    seconds, memory = _measured(*words)
    what = f"{count:,} images of 32x32: check"
    yield Row(what, seconds, floor, "Pillow decodes them, one process", "s")
    yield Row(f"{what}, peak memory", memory, MOST_MB, "limit", "MB")
    for share in (share for share in STOPS if share * seconds > START_SECONDS):
        stopped = stop_after(words, share * seconds)
        yield Row(f"{what}, stopped after {share:.0%}", stopped, MOST_STOP_SECONDS, "limit", "s")


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--hashes", type=int, default=300_000)
    parser.add_argument("--images", type=int, default=300_000)
    parser.add_argument("--folder", type=Path, help="where the images are written, and kept (a temporary folder)")
    add_outputs(parser)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it ignored
    rows = list(compare_hashes(args.hashes)) if args.hashes else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows += check_images(folder, args.images) if args.images else []
    show(rows, args)


if __name__ == "__main__":
    main()

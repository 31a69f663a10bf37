"""Pairs of an answer and its truth under SPICE: seconds the first time, and once their scores are known.

    python -m benchmarks.spice [CAPTIONS.jsonl] [--json] [--pairs 7000]

CAPTIONS.jsonl: lines with "references", a list of texts; without it, the sentences of drawn images, one or two in a
text. A pair is a text as the answer and one of another line as the truth, all pairs unlike. Needs SPICE (`clinkd spice
install`). The rival is a program started for every hundred pairs, with nothing kept. CPU seconds stand beside the
seconds, for a machine that others use too. Memory is the most that all hold at one time.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Row, add_outputs, show
from benchmarks.scoring import Peak, sentences

from clinkd.scoring import spice
from clinkd.scoring.captions import Caption, CaptionScorer

AT_A_TIME = 100
SECONDS_OF_7000, MEGABYTES = 480.0, 8192.0
DRAWN = 5000  # texts of drawn images


def draw_texts(seed: int = 0) -> list[list[str]]:
    dice, known = random.Random(seed), sentences()
    return [[" ".join(dice.sample(known, dice.randint(1, 2)))] for _ in range(DRAWN)]


class Taken(NamedTuple):
    seconds: float
    cpu_seconds: float


def pairs(texts: Sequence[Sequence[str]], number: int, seed: int = 0) -> list[Caption]:
    """So many pairs of two lines' texts, no two alike."""
    dice = random.Random(seed)
    found: dict[Caption, None] = {}
    while len(found) < number:
        one, other = dice.sample(texts, 2)
        found[Caption(dice.choice(one), (dice.choice(other),))] = None
    return list(found)


def timed(call: Callable[[], object]) -> Taken:
    """Of this process and of those that it started."""

    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    start, before = time.perf_counter(), cpu()
    call()
    return Taken(time.perf_counter() - start, cpu() - before)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("captions", type=Path, nargs="?", metavar="CAPTIONS.jsonl")
    parser.add_argument("--pairs", type=int, default=7000)
    add_outputs(parser)
    args = parser.parse_args()
    lines = args.captions.read_text().splitlines() if args.captions else ()
    texts = [json.loads(line)["references"] for line in lines] or draw_texts()
    asked = pairs(texts, args.pairs)
    with tempfile.TemporaryDirectory() as temp:
        scorers = [CaptionScorer(Path(temp, "scores.sqlite")) for _ in range(2)]
        with Peak() as peak:
            first, known = (timed(partial(spice.spice_counts, asked, scorer)) for scorer in scorers)
    program = spice.find_program()
    some = CaptionScorer().tokenized(asked[:AT_A_TIME])
    plain = timed(lambda: program.run(some, None))
    times, name = len(asked) / len(some), f"{len(some)} at a time, from {len(some)}"
    what = f"{len(asked)} pairs of {len({t for c in asked for t in (c.candidate, *c.references)})} texts"
    limit = SECONDS_OF_7000 / 7000
    show(
        [
            Row(f"{what}, by the clock", first.seconds, limit * len(asked), "our limit", "s"),
            Row("pairs a second", len(asked) / first.seconds, 1 / limit, "our limit", "pairs/s"),
            Row("memory with that of Java", peak.megabytes, MEGABYTES, "what SPICE may take here", "MB"),
            Row(f"{what}, the first time", first.seconds, plain.seconds * times, name, "s"),
            Row("the same, CPU", first.cpu_seconds, plain.cpu_seconds * times, name, "s"),
            Row("the same pairs, their scores known", known.seconds, first.seconds, "the first time", "s"),
            Row("the same, CPU", known.cpu_seconds, first.cpu_seconds, "the first time", "s"),
        ],
        args,
    )


if __name__ == "__main__":
    main()

"""Pairs of an answer and its truth compared a second, by a sentence embedding whose references are known, and by rules.

    python -m benchmarks.similarity [--json] [--pairs 2000] [--folder MODEL]

all-MiniLM-L6-v2 from the extra `embeddings`, or a sentence-transformers model in a folder. Pairs are truths of drawn
images and, as answers, truths of other images of the same task, so no answer is known before. The rival of the same
run embeds both texts of each pair, as a plain loop over the library does. Medians of `--repeats` passes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.report import Row, add_outputs, show

from clinkd.clip.embedder import BATCH, PACKAGE, TextEmbedder
from clinkd.correction.embedding import EmbeddingSimilarity
from clinkd.correction.similarity import LexicalSimilarity
from clinkd.data import phantoms
from clinkd.records import ImageRef, Sample


def texts(number: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Answers and truths, so many of each."""
    rng, dice, modalities = np.random.default_rng(seed), random.Random(seed), list(phantoms.STRUCTURES)
    drawn: list[Sample] = []
    while len(drawn) < number:
        image = phantoms.draw_phantom(rng, modalities[len(drawn) % len(modalities)], structures=2)
        drawn += phantoms.make_phantom_samples(image, ImageRef("x.png", 96, 96), f"i{len(drawn)}", "train", dice)
    drawn = drawn[:number]
    by_task: dict[str, list[str]] = {}
    for sample in drawn:
        by_task.setdefault(sample.task, []).append(sample.answer.words)
    return [f"{dice.choice(by_task[s.task])} " for s in drawn], [s.answer.words for s in drawn]


def pairs_a_second(call: Callable[[], object], pairs: int, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return pairs / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a sentence-transformers model; the package's without")
    add_outputs(parser)
    args = parser.parse_args()
    embedder = TextEmbedder(args.folder)
    answers, truths = texts(args.pairs)
    unlike = [f"{answer}({number})" for number, answer in enumerate(answers)]
    unique = len(set(answers))
    known = EmbeddingSimilarity(embedder, truths)
    rules = LexicalSimilarity(truths)

    def plain() -> list[float]:
        return [float(v) for v in (embedder.embed(answers) * embedder.embed(truths)).sum(axis=1)]

    ours = pairs_a_second(lambda: known.similar(answers, truths), args.pairs, args.repeats)
    theirs = pairs_a_second(plain, args.pairs, args.repeats)
    offline = pairs_a_second(lambda: rules.similar(answers, truths), args.pairs, args.repeats)
    name = args.folder.name if args.folder else f"all-MiniLM-L6-v2 ({PACKAGE})"
    hard = pairs_a_second(lambda: known.similar(unlike, truths), args.pairs, args.repeats)
    what = f"{args.pairs} pairs, {name}, batch {BATCH}, references known"
    show(
        [
            Row(f"{what}, {unique} answers unlike", ours, theirs, "both texts embedded", "pairs/s"),
            Row("the same, no two answers alike", hard, theirs, "both texts embedded", "pairs/s"),
            Row("the same pairs by rules, offline", offline, ours, "the embedding", "pairs/s"),
        ],
        args,
    )


if __name__ == "__main__":
    main()

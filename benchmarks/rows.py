"""How rows are laid out: questions behind one image prefix, and rows packed into lines, beside the plain ways.

    python -m benchmarks.rows [--json] [--device cuda] [--image-tokens 256] [--hidden 256] [--layers 4]

One model with random weights of the stock architecture; a step is forward, fused loss and backward of all its weights.
Shared: four questions of an image as one row, and as four rows of a batch. Packed: rows of the lengths of Med-GRIT
(one question with a short, a middle or a long answer, images of several sizes) packed into lines, one row a step, and
in batches of rows of like length with the same number of tokens.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from benchmarks.report import Row, add_outputs, show
from PIL import Image

from clinkd.config import ModelConfig, TinyConfig
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy
from clinkd.records import Box, BoxedText, ImageRef, Modality, Sample, Task, Turn

PATCH, MERGE = 14, 2
NAMES = ("left kidney", "liver", "spleen", "right lung", "bladder", "heart")
WORDS = "the image shows organs of usual size with smooth outlines and no free fluid around them in the upper abdomen"


def sample(number: int, ref: ImageRef, kind: int, dice: random.Random) -> Sample:
    """A question of Med-GRIT's kinds: a box, a name, or sentences for an answer."""
    box = Box(0.1, 0.2, 0.5 + dice.random() / 4, 0.6)
    name = dice.choice(NAMES)
    turns = (
        Turn(Task.VG, BoxedText(f"Where is the {name} in the image?"), BoxedText(f"Here is the {name}[box].", (box,))),
        Turn(Task.ROC, BoxedText("What is at [box]?", (box,)), BoxedText(name)),
        Turn(Task.MIA, BoxedText("What does this image show?"), BoxedText(" ".join([WORDS] * dice.randint(1, 4)))),
    )
    return Sample(f"s{number}", (ref,), Modality.CT, (turns[kind % 3],), ref.path)


def network(samples: Sequence[Sample], args: argparse.Namespace) -> VisionLanguageModel:
    side = round(args.image_tokens**0.5)
    tiny = TinyConfig(
        hidden=args.hidden, layers=args.layers, heads=args.hidden // 64, mlp=3 * args.hidden, vision_hidden=128,
        vision_layers=2, patch=PATCH, image_pixels=PATCH * MERGE * side, vocabulary=1000,
    )  # fmt: skip
    config = ModelConfig(positions="mrope", layout="sections", boxes="qwen2-vl", square=False, tiny=tiny)
    grey = Image.new("RGB", (64, 64), (90, 90, 90))
    model = new_tiny(
        config, spell_samples(samples, config), 0, lambda ref: grey.resize((ref.width or 1, ref.height or 1))
    )
    return model.to(args.device).train()


def seconds(steps: Callable[[], None], repeats: int = 3) -> float:
    """The best of so many, after one that warms up."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        steps()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def learn(model: VisionLanguageModel, rows: Sequence[Sequence[Sample]], line_tokens: int = 0) -> None:
    model.line_tokens = line_tokens
    model.zero_grad(set_to_none=True)
    batch = model.encode(rows).to(model.device)
    CrossEntropy()(model.hidden_states(batch), model.head.weight_VH, batch.labels_N).sum.backward()


def tokens(model: VisionLanguageModel, row: Sequence[Sample]) -> int:
    model.line_tokens = 0
    return int(model.encode([row]).input_ids_BS.shape[1])


def by_length(rows: Sequence[list[Sample]], lengths: Sequence[int], most: int) -> list[list[list[Sample]]]:
    """Batches of rows of like length, padded to no more than `most` tokens."""
    batches: list[list[list[Sample]]] = []
    for k in sorted(range(len(rows)), key=lambda k: lengths[k]):
        if not batches or (len(batches[-1]) + 1) * lengths[k] > most:
            batches.append([])
        batches[-1].append(rows[k])
    return batches


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--image-tokens", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--line-tokens", type=int, default=384)
    add_outputs(parser)
    args = parser.parse_args()
    dice = random.Random(0)
    big = round(args.image_tokens**0.5) * PATCH * MERGE
    four = [sample(k, ImageRef(f"{Path('a.png')}", big, big), k, dice) for k in range(4)]
    model = network(four, args)
    shared = seconds(lambda: learn(model, [four]))
    separate = seconds(lambda: learn(model, [[s] for s in four]))
    out = [
        Row(
            f"4 questions of an image of {args.image_tokens} tokens, samples a second", 4 / shared, 4 / separate,
            "separate rows", "samples/s",
        )
    ]  # fmt: skip
    sizes = [(PATCH * MERGE * dice.randint(2, 6), PATCH * MERGE * dice.randint(2, 6)) for _ in range(48)]
    rows = [[sample(k, ImageRef(f"{k}.png", w, h), k, dice)] for k, (w, h) in enumerate(sizes)]
    small = argparse.Namespace(**{**vars(args), "image_tokens": 16})
    model = network([s for row in rows for s in row], small)
    for (s,) in rows:  # images of their own sizes, 4 to 36 tokens
        ref = s.images[0]
        model.processor.size = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 36 * (PATCH * MERGE) ** 2}
        assert ref.width and ref.height
    lengths = [tokens(model, row) for row in rows]
    most = args.line_tokens
    packed = seconds(lambda: learn(model, rows, most))
    one = seconds(lambda: [learn(model, [row]) for row in rows] and None)
    like = by_length(rows, lengths, most)
    grouped = seconds(lambda: [learn(model, batch) for batch in like] and None)
    what = f"rows of {min(lengths)} to {max(lengths)} tokens packed into lines of {most}, samples a second"
    count = len(rows)
    out.append(Row(what, count / packed, count / one, "one row a step", "samples/s"))
    out.append(Row(what, count / packed, count / grouped, "batches of like length", "samples/s"))
    show(out, args)


if __name__ == "__main__":
    main()

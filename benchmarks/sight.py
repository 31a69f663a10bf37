"""What a fixed tower sees, read from the disk, beside looking anew: seconds of a training step, bytes an image.

    python -m benchmarks.sight [--json] [--steps 7]

A model of Qwen2-VL-2B's proportions, widths and layers a quarter each: 8 layers of 320 for 28 x 28 pixels a token, 7
layers of 384 with a head of a quarter of the vocabulary. One image of 256 tokens with 4 questions a step, LoRA in the
text part, tower and merger fixed, blocks computed again, as the recipe `laptop` has it. A step is what a training does
for a micro-batch: opening and encoding, loss, gradients; the update of the additions is left out on both sides.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from benchmarks.report import Row, add_outputs, show
from PIL import Image

from clinkd.config import AnswerConfig, LoraConfig, ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.model.encode import group_by_images
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy, Distillation
from clinkd.records import ImageRef, Sample
from clinkd.training import FeatureCache, LiveTeacher, cache_features

TINY = TinyConfig(
    hidden=384, layers=7, heads=3, mlp=2240, vision_hidden=320, vision_layers=8, vision_heads=4, patch=14,
    image_pixels=448, vocabulary=640, init_std=0.02,
)  # fmt: skip
VOCABULARY = 151_936 // 4
QUESTIONS = 4
WIDTH, TOKENS = 1536, 256  # of Qwen2-VL-2B, of an image


class Bench:
    """Phantoms at 448 pixels, and a model that looks beside one that reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = PhantomConfig(train_images=6, validation_images=1, test_images=1, image_pixels=512)
        samples = [s for s in phantoms.write_phantoms(folder, config, 0) if s.split == "train"]
        self.rows = [row[:QUESTIONS] for row in group_by_images(samples)]
        self.images = {s.images[0] for s in samples}
        self.live, self.read = self.model(samples), self.model(samples)
        start = time.perf_counter()
        self.bytes_an_image = cache_features(folder / "sight", self.live, self.images, "see") / len(self.images)
        self.seconds_an_image = (time.perf_counter() - start) / len(self.images)
        FeatureCache(folder / "sight", self.read).serve(self.read)

    def model(self, samples: Sequence[Sample]) -> VisionLanguageModel:
        def opened(ref: ImageRef) -> Image.Image:
            return open_image(self.folder, ref)

        config = ModelConfig(tiny=TINY)
        made = new_tiny(config, spell_samples(samples, config), 0, opened)
        made.network.resize_token_embeddings(VOCABULARY, mean_resizing=False)
        made.images.free_bytes = 0  # one image is kept: of thousands no other would be, either
        return made


def dressed(model: VisionLanguageModel) -> VisionLanguageModel:
    """As a training has it."""
    model.freeze(("vision", "merger"))
    model.adapt(LoraConfig(), 0)
    model.recompute_blocks(True)
    return model.train()


def tuned(model: VisionLanguageModel, row: list[Sample]) -> None:
    """A step of teacher or reflection, or of a distillation whose teacher is stored, but for reading that."""
    batch = model.encode([row])
    CrossEntropy()(model.hidden_states(batch), model.head.weight_VH, batch.labels_N).sum.backward()


def distilled(model: VisionLanguageModel, row: list[Sample], tutor: LiveTeacher) -> None:
    """A step beside a teacher that runs, one vision pass for both."""
    batch = model.encode([row])
    with torch.no_grad():
        seen = model.vision_features(batch)
    goal = tutor.targets(batch, seen)
    Distillation(0.5, 2.0)(model.hidden_states(batch, seen), model.head.weight_VH, batch.labels_N, goal).sum.backward()


def answered(model: VisionLanguageModel, row: list[Sample]) -> None:
    model.generate(row, AnswerConfig(max_new_tokens=16))


def median(ways: dict[str, Callable[[list[Sample]], object]], rows: list[list[Sample]], steps: int) -> dict[str, float]:
    """Seconds of each way, in turns, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(steps + 1):
        row = rows[number % len(rows)]
        for name, way in ways.items():
            start = time.perf_counter()
            way(row)
            found[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds[1:])) for name, seconds in found.items()}


def rows_of_figures(bench: Bench, steps: int) -> list[Row]:
    """All figures."""
    models = {"stored": bench.read, "live": bench.live}
    answers = median({n: lambda row, m=m: answered(m.eval(), row) for n, m in models.items()}, bench.rows, steps)
    encoded = median({n: lambda row, m=m: m.encode([row]) for n, m in models.items()}, bench.rows, steps)
    for model in models.values():
        dressed(model)
    tutors = {n: LiveTeacher(bench.model([s for row in bench.rows for s in row])) for n in models}
    plain = median({n: lambda row, m=m: tuned(m, row) for n, m in models.items()}, bench.rows, steps)
    beside = median(
        {n: lambda row, m=m, t=tutors[n]: distilled(m, row, t) for n, m in models.items()}, bench.rows, steps
    )
    patches = bench.live.encode(bench.rows[:1]).pixels_TD
    return [
        Row(what, took["stored"], took["live"], "live", "s")
        for what, took in {
            f"training step, 1 image of {TOKENS} tokens, {QUESTIONS} questions, LoRA": plain,
            "the same beside a teacher that runs": beside,
            "encoding of it": encoded,
            f"answers to {QUESTIONS} questions, 3 beams, 16 tokens": answers,
        }.items()
    ] + [
        Row("making an image's features, once", bench.seconds_an_image, plain["live"] - plain["stored"],
            "what a step saves", "s"),
        Row(f"bytes an image, {TOKENS} tokens, H {TINY.hidden}", bench.bytes_an_image, 4 * patches.numel(),
            "its patches", "B"),
        Row(f"bytes an image, {TOKENS} tokens, H {WIDTH}, by count", 4 * TOKENS * WIDTH, 4 * patches.numel(),
            "its patches", "B"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=7)
    add_outputs(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        show(rows_of_figures(Bench(Path(folder)), args.steps), args)


if __name__ == "__main__":
    main()

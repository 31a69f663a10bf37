"""Share of a tiny training step that is spent on positions, for every scheme, in one run on the same rows.

python -m benchmarks.positions [--json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from benchmarks.report import Row, add_outputs, show
from PIL import Image

from clinkd.config import ModelConfig, PhantomConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.model.encode import group_by_images
from clinkd.model.vlm import new_tiny, spell_samples
from clinkd.objectives import CrossEntropy
from clinkd.records import ImageRef

SCHEMES = [
    {"positions": "tied", "layout": "halves"},
    {"positions": "mrope", "layout": "sections"},
    {"positions": {"kind": "mrope", "spatial_reset": True}, "layout": "interleaved"},
    {"positions": "gap", "layout": "sections"},
    {"positions": "sequential", "layout": "sections"},
]


def median(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2]


def figures(folder: Path) -> list[Row]:
    config = PhantomConfig(train_images=24, validation_images=1, test_images=1)
    samples = [s for s in phantoms.write_phantoms(folder, config, 0) if s.split == "train"]

    def opened(ref: ImageRef) -> Image.Image:
        return open_image(folder, ref)

    found = []
    for knobs in SCHEMES:
        model = new_tiny(ModelConfig(**knobs), spell_samples(samples, ModelConfig()), 0, opened)
        batch = model.encode([row[:3] for row in group_by_images(samples)])
        image_BS = batch.input_ids_BS == model.network.config.image_token_id
        grids_N2 = batch.grids_I3[:, 1:] // 2
        steps, places = [], []
        for _ in range(21):
            start = time.perf_counter()
            loss = CrossEntropy()(model.hidden_states(batch), model.head.weight_VH, batch.labels_N)
            (loss.sum / loss.tokens).backward()
            steps.append(time.perf_counter() - start)
            start = time.perf_counter()
            with torch.no_grad():
                model.scheme.positions(image_BS, batch.running_BS, grids_N2)
            places.append(time.perf_counter() - start)
        name = " ".join("reset" if v is True else str(v) for v in knobs.values())
        found.append(Row(f"positions, {name}", 1e3 * median(places), 1e3 * median(steps), "the whole step", "ms"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    add_outputs(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        show(figures(Path(folder)), args)


if __name__ == "__main__":
    main()

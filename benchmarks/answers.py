"""Answers a second: batched, by the code as it is, beside one by one by transformers' own generate, of one model.

    python -m benchmarks.answers [--run RUNFOLDER] [--questions 384] [--alone 48] [--batches 1,8,32,64,128]

With --run: the last trained model of a finished run on drawn images, such as `runs/demo`, and its test questions.
Without: the demo's tiny model, trained here for --seconds; its answers end, as a fresh model's need not. The rival is
asked --alone of the same questions, spread over all of them, and finds the same answers, or this stops.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.report import Row, add_outputs, show
from PIL import Image

from clinkd.config import AnswerConfig, FitConfig, ModelConfig, PhantomConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.inference import answer
from clinkd.model.encode import encode_prompts
from clinkd.model.vlm import VisionLanguageModel, load, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy
from clinkd.records import Candidate, ImageRef, Sample
from clinkd.storage import JsonLines
from clinkd.training import FitRun, fit

BATCH = 64
METHODS = {
    "3 beams": AnswerConfig(),
    "greedy": AnswerConfig(beams=1, candidates=1),
    "3 diverse groups": AnswerConfig(method="diverse"),
    "3 draws": AnswerConfig(method="sampling"),
}


def trained(folder: Path, seconds: float) -> tuple[VisionLanguageModel, list[Sample]]:
    """The demo's tiny model after so many seconds, and questions of the test split."""
    config = ModelConfig()
    samples = phantoms.write_phantoms(folder, PhantomConfig(train_images=600, validation_images=1, test_images=96), 0)
    learnt = [s for s in samples if s.split == "train"]

    def opened(ref: ImageRef) -> Image.Image:
        return open_image(folder, ref)

    model = new_tiny(config, spell_samples(learnt, config), 0, opened)
    how = FitConfig(epochs=1.0, rows=24, optimizer="muon", learning_rate=3e-3)
    end, lap = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        fit(model, learnt, CrossEntropy(), how, FitRun(folder / f"fit-{lap}", lap, "train"))
        lap += 1
    return model, [s for s in samples if s.split == "test"]


def of_run(run: Path) -> tuple[VisionLanguageModel, list[Sample]]:
    """The last model of a run that was not stopped, and its test questions."""
    stages = {p.name: p.resolve() for p in (run / "stages").iterdir()}
    last = max(n for n in stages if n.startswith("reflect")) if "reflect-1" in stages else "distill"

    def opened(ref: ImageRef) -> Image.Image:
        return open_image(stages["prepare"], ref)

    samples = [Sample.from_json(r) for r in JsonLines(stages["prepare"] / "test.jsonl").read()]
    return load(stages[last] / "model", opened), samples


def stock(model: VisionLanguageModel, sample: Sample, config: AnswerConfig) -> list[Candidate]:
    """One question by transformers' own generate, from pixels."""
    ids_BS, seen_BS = encode_prompts([sample], model.text, model.images).whole()
    pixels_TD, grids_I3 = model.images.patches(sample.images)
    with torch.inference_mode():
        made = model.network.generate(
            input_ids=ids_BS, attention_mask=seen_BS, mm_token_type_ids=(ids_BS == model.text.image_token).int(),
            pixel_values=pixels_TD, image_grid_thw=grids_I3, max_new_tokens=config.max_new_tokens,
            num_beams=config.beams, num_return_sequences=config.candidates, do_sample=False, length_penalty=1.0,
            eos_token_id=model.text.end, pad_token_id=model.text.pad, suppress_tokens=model.suppressed_tokens,
        )  # fmt: skip
    return [model._read(ids, None) for ids in made[:, ids_BS.shape[1] :].tolist()]


def pace(model: VisionLanguageModel, samples: Sequence[Sample], config: AnswerConfig) -> tuple[float, list[str]]:
    """Answers a second as a run makes them, and the first answers."""
    model.images.cache.clear()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = answer(model, samples, config, file=Path(folder) / "a.jsonl", by="it", title="answer")
        return len(samples) / (time.perf_counter() - start), [p.candidates[0].raw for p in found]


def rows_of_figures(
    model: VisionLanguageModel, samples: Sequence[Sample], alone: int, batches: Sequence[int], name: str
) -> list[Row]:
    """All figures. Raises SystemExit where the rival's answers are others."""
    few = samples[:: max(1, len(samples) // alone)][:alone]
    rows = []
    single: dict[str, float] = {}
    for method, config in METHODS.items():
        if config.method == "beams":
            start = time.perf_counter()
            wanted = [stock(model, s, config)[0].raw for s in few]
            single[method] = len(few) / (time.perf_counter() - start)
            same = pace(model, few, config)[1]
            unlike = sum(a != b for a, b in zip(same, wanted, strict=True))
            if unlike > len(few) // 50:  # rounding decides between answers of equal score
                raise SystemExit(f"{method}: {unlike} of {len(few)} answers are not those of the rival")
        rival = "generate, one by one" if method in single else "generate, 3 beams, one by one"
        for batch in batches if method == "3 beams" else (BATCH,):
            asked = samples if batch > 1 else few
            ours, _ = pace(model, asked, config.model_copy(update={"batch": batch}))
            theirs = single.get(method, single["3 beams"])
            rows.append(Row(f"{name}, {method}, batch {batch}", ours, theirs, rival, "answers/s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, metavar="RUNFOLDER", help="a finished run on drawn images")
    parser.add_argument("--seconds", type=float, default=60, help="training, without --run")
    parser.add_argument("--questions", type=int, default=384)
    parser.add_argument("--alone", type=int, default=48, help="questions of the rival")
    parser.add_argument("--batches", default="1,8,32,64,128", help="batch sizes with 3 beams")
    add_outputs(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, samples = of_run(args.run) if args.run else trained(Path(folder), args.seconds)
        batches = [int(b) for b in args.batches.split(",")]
        name = "trained by a run" if args.run else f"trained {args.seconds:g} s"
        show(rows_of_figures(model.eval(), samples[: args.questions], args.alone, batches, name), args)


if __name__ == "__main__":
    main()

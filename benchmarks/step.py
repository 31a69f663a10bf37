"""A step of distillation beside one of plain tuning: how much of the speed that counted operations allow is had.

    python -m benchmarks.step [--json] [--shape small] [--steps 12]
    python -m benchmarks.step --device cuda --shape 2b --image-tokens 1024 --warm-up 20
    python -m benchmarks.step --device cuda --shape 7b --weights bfloat16 --image-tokens 1024 --warm-up 20

Random weights, bare pairs of a drawn image of `--image-tokens` tokens and its questions, tower and merger fixed, one
vision pass for teacher and student. A step is loss and gradients; the update of the weights, the same for all, is left
out. Distillation with a live teacher has more to do than tuning; by the operations counted from shapes
(`clinkd.model.flops`, equal to torch's FlopCounterMode; what is computed again does not count) it may run at a share of
tuning's speed, and `ours` is the share it runs at. The ways take turns, step by step, so that whatever else the machine
does meets all alike; medians after the warm-up. MFU is by the published dense bfloat16 peak of a GPU, on a CPU by
square float32 products measured in this run. Memory is the peak of a process that has this way alone: of the GPU by
tensors, on a CPU of the whole process.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from benchmarks.report import Row, add_outputs, show
from PIL import Image

from clinkd.config import ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.model.encode import group_by_images
from clinkd.model.families import TINY as FAMILY
from clinkd.model.flops import peak_flops, training_operations
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy, Distillation, Loss
from clinkd.records import ImageRef
from clinkd.training import LiveTeacher, StoredTeacher, Teacher, identify_store, is_store_full, store_teacher

# text width, layers, heads, key-value heads, feed-forward; vision width, layers, heads; vocabulary, head of its own
SHAPES = {
    "small": (512, 6, 8, 2, 2048, 320, 8, 4, 8192, False),
    "2b": (1536, 28, 12, 2, 8960, 1280, 32, 16, 151_936, False),
    "7b": (3584, 28, 28, 4, 18_944, 1280, 32, 16, 152_064, True),
}
TEACHERS = ("live", "states", "draws")


class Bench:
    """A student, who teaches it each way (`ways`; None: nobody), and batches.

    Stores that an earlier one left in `folder` are read, and then no teacher is made but for the live way.
    """

    def __init__(self, folder: Path, args: argparse.Namespace, ways: Sequence[str]) -> None:
        self.folder, self.args, self.device = folder, args, torch.device(args.device)
        self.side = side = round(args.image_tokens**0.5) * 28
        drawn = PhantomConfig(train_images=args.rows * 3, validation_images=1, test_images=1, image_pixels=side)
        self.samples = [s for s in phantoms.write_phantoms(folder, drawn, 0) if s.split == "train"]
        self.student = self.model(0)
        self.student.freeze(("vision", "merger"))
        self.tutors = {way: self.tutor(way.removeprefix("KD ")) for way in ways}
        self.__dict__.pop("teacher", None)  # the live way has it, nobody else needs it now
        rows = [row[:4] for row in group_by_images(self.samples)]
        cut = [rows[k : k + args.rows] for k in range(0, len(rows) - args.rows + 1, args.rows)]
        self.batches = [self.student.encode(part).to(self.device) for part in cut]

    @cached_property
    def teacher(self) -> VisionLanguageModel:
        """Of other weights than the student, but for what it sees."""
        made = self.model(1)
        made.network.model.visual.load_state_dict(self.student.network.model.visual.state_dict())
        return made

    def tutor(self, kind: str) -> Teacher | None:
        """SFT, live, states or draws."""
        if kind == "SFT":
            return None
        return LiveTeacher(self.teacher) if kind == "live" else self.stored(kind)

    def model(self, seed: int) -> VisionLanguageModel:
        def opened(ref: ImageRef) -> Image.Image:
            return open_image(self.folder, ref)

        width, layers, heads, shared, mlp, eyes, blocks, looks, vocabulary, apart = SHAPES[self.args.shape]
        tiny = TinyConfig(
            hidden=width, layers=layers, heads=heads, mlp=mlp, vision_hidden=eyes, vision_layers=blocks,
            vision_heads=looks, patch=14, image_pixels=self.side, init_std=0.02,
        )  # fmt: skip
        config = ModelConfig(tiny=TinyConfig(patch=14, image_pixels=self.side))
        made = new_tiny(config, spell_samples(self.samples, config), seed, opened)  # for its tokenizer
        stock: dict[str, Any] = FAMILY.tiny_settings(tiny, made.tokenizer)
        stock["text_config"] |= {"num_key_value_heads": shared, "vocab_size": vocabulary}
        stock["tie_word_embeddings"] = stock["text_config"]["tie_word_embeddings"] = not apart
        torch.manual_seed(seed)
        with self.device:
            made.network = FAMILY.build(stock, config)
        made.network.config.system_turn = False
        return made.to(self.device, getattr(torch, self.args.weights))

    def stored(self, kind: Any) -> StoredTeacher:
        by, folder = self.folder / "teacher", self.folder / kind
        if not by.exists():
            self.teacher.save(by)
        identity = identify_store(kind, self.samples, by, self.student, temperature=2.0, draws=50, seed=0)
        if not is_store_full(folder):
            store_teacher(folder, self.teacher, self.samples, identity, title=kind, rows_a_pass=1)
        return StoredTeacher(folder, identity)

    def step(self, name: str, number: int) -> tuple[float, int, int]:
        """Seconds, operations and samples of one step."""
        batch, tutor, model = self.batches[number % len(self.batches)], self.tutors[name], self.student
        mine, beside = training_operations(model.operations(batch)), tutor.operations(batch, False) if tutor else 0
        assert mine is not None and beside is not None
        model.zero_grad()
        self.wait()
        start = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.loss(name, batch)
        (loss.sum / loss.tokens).backward()
        self.wait()
        return time.perf_counter() - start, mine + beside, batch.num_samples

    def loss(self, name: str, batch: Any) -> Loss:
        model, tutor = self.student, self.tutors[name]
        seen = model.vision_features(batch)
        hidden_NH, weight_VH = model.hidden_states(batch, seen), model.head.weight_VH
        if tutor is None:
            return CrossEntropy()(hidden_NH, weight_VH, batch.labels_N)
        goal = tutor.targets(batch, seen)
        return Distillation(0.5, 2.0)(hidden_NH, weight_VH, batch.labels_N, goal)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peak_here(bench: Bench) -> float:
    """Megabytes that steps of the one way of `bench` came to."""
    (name,) = bench.tutors
    for number in range(2):
        bench.step(name, number)
    if bench.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    # not getrusage: its peak may be that of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


def peaks(ways: Sequence[str], folder: Path) -> dict[str, float]:
    """Megabytes by way, each in a process of its own that finds its stores in `folder`."""
    words = [sys.executable, "-m", "benchmarks.step", *sys.argv[1:], "--folder", str(folder), "--peak"]
    found = {way: subprocess.run([*words, way], stdout=subprocess.PIPE, text=True, check=True).stdout for way in ways}
    return {way: float(told.split()[-1]) for way, told in found.items()}


def figures(bench: Bench) -> list[Row]:
    """Speed and MFU."""
    args, found = bench.args, {name: list[tuple[float, int, int]]() for name in bench.tutors}
    names = list(bench.tutors)
    for number in range(args.warm_up + args.steps):
        for place in range(len(names)):
            name = names[(number + place) % len(names)]  # none is always the first
            taken = bench.step(name, number)
            if number >= args.warm_up:
                found[name].append(taken)
    seconds = {n: statistics.median(s for s, _, _ in taken) for n, taken in found.items()}
    work = {n: statistics.median(w for _, w, _ in taken) for n, taken in found.items()}
    samples = statistics.median(k for _, _, k in found["SFT"])
    peak = peak_flops(bench.device, torch.bfloat16 if bench.device.type == "cuda" else torch.float32)
    shape = f"{args.shape}, {args.rows} x {args.image_tokens} image tokens, {args.device}"
    rows = []
    for name in bench.tutors:
        if name != "SFT":
            had, allowed = seconds["SFT"] / seconds[name], work["SFT"] / work[name]
            rows.append(
                Row(f"{name}: speed by that of SFT, {shape}", had, allowed, "counted operations allow", "share")
            )
    for name in bench.tutors:
        speed = work[name] / seconds[name]
        rows.append(
            Row(f"{name}: operations a second (the ratio is the MFU)", speed / 1e9, peak / 1e9, "peak", "GFLOP/s")
        )
    for name in bench.tutors:
        rows.append(Row(f"{name}: samples a second", samples / seconds[name], samples / seconds["SFT"], "SFT", "1/s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES], default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32", help="as they are kept")
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=TEACHERS)
    parser.add_argument("--rows", type=int, default=2, help="images a step")
    parser.add_argument("--image-tokens", type=int, default=256)
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the measured ones; 20 on a GPU")
    parser.add_argument("--steps", type=int, default=12)
    add_outputs(parser)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak_here(Bench(args.folder, args, [args.peak])))
        return
    ways = ["SFT", *(f"KD {kind}" for kind in args.teachers)]
    with tempfile.TemporaryDirectory() as scratch:
        rows = figures(Bench(Path(scratch), args, ways))
        gc.collect()  # what the models of this process had is for those that follow
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        took = peaks(ways, Path(scratch))
    rows += [Row(f"{way}: peak memory", mb, took["SFT"], "SFT", "MB") for way, mb in took.items()]
    show(rows, args)


if __name__ == "__main__":
    main()

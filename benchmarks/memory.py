"""Peak memory of a model at real size, beside the bytes of its weights in bfloat16.

    python -m benchmarks.memory [--json] [--shape 2b] [--image-tokens 256] [--folder EMPTY_FOLDER]

Random weights in the shape of a Qwen2-VL, written in bfloat16 to a folder of temporary files (2b: 4.4 GB), are loaded:
bare; for a step of LoRA distillation with a live teacher of LoRA, merge and all; and for an answer by 3 beams. Ours is
`model.dtype=bf16`, the rival the bytes of the weights. Each runs in a process of its own, and its peak is that of all
its resident memory, with Python and torch (about 0.8 GB) and with the pages of the file that it maps (VmHWM).
`--dtype float32` measures the default, `--quantize nf4` matrices of the text in four bits.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from benchmarks.report import Row, add_outputs, show
from benchmarks.step import SHAPES
from PIL import Image

from clinkd.config import AnswerConfig, FitConfig, LoraConfig, ModelConfig, TinyConfig
from clinkd.model.families import TINY as FAMILY
from clinkd.model.folders import read_shapes
from clinkd.model.vlm import VisionLanguageModel, load, new_tiny
from clinkd.objectives import Distillation
from clinkd.records import BoxedText, ImageRef, Modality, Sample, Task, Turn
from clinkd.training import FitRun, LiveTeacher, fit

TEXT = "Where is the liver? It is here."
TASKS = {"load": "load", "distill": "one LoRA distillation step with a live teacher", "answer": "an answer by 3 beams"}
KNOBS = {"positions": "native", "layout": "sections", "boxes": "qwen2-vl", "square": False}


def grey_image(ref: ImageRef) -> Image.Image:
    return Image.new("RGB", (ref.width, ref.height), (90, 90, 90))


def write_base(folder: Path, shape: str) -> None:
    """A stock folder of random bfloat16 weights."""
    width, layers, heads, shared, mlp, eyes, blocks, looks, vocabulary, apart = SHAPES[shape]
    sizes = TinyConfig(
        hidden=width, layers=layers, heads=heads, mlp=mlp, vision_hidden=eyes, vision_layers=blocks,
        vision_heads=looks, patch=14, image_pixels=448, init_std=0.02,
    )  # fmt: skip
    knobs = ModelConfig(tiny=TinyConfig(patch=14, image_pixels=448), **KNOBS)
    model = new_tiny(knobs, [TEXT] * 4, 0, grey_image)  # for its tokenizer
    stock = FAMILY.tiny_settings(sizes, model.tokenizer)
    stock["text_config"] |= {"num_key_value_heads": shared, "vocab_size": vocabulary}
    stock["tie_word_embeddings"] = stock["text_config"]["tie_word_embeddings"] = not apart
    with torch.device("meta"):
        network = FAMILY.build(stock, knobs)
    torch.manual_seed(0)
    network = network.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, -0.04, 0.04)
    model.network = network
    model.save(folder, stock=True)


def peak_of(task: str, base: Path, args: argparse.Namespace) -> float:
    """Bytes that this process came to by a task; to write the weights is one, too."""
    if task == "write":
        write_base(base, args.shape)
        return 0.0
    model = load(base, grey_image, ModelConfig(base=base, dtype=args.dtype, quantize=args.quantize, **KNOBS)).eval()
    side = round(args.image_tokens**0.5) * 28
    turn = Turn(Task.QA, BoxedText("Where is the liver?"), BoxedText("It is here."))
    sample = Sample("", (ImageRef("", side, side),), Modality.CT, (turn,), "")
    if task == "answer":
        model.generate([sample], AnswerConfig(max_new_tokens=32))
    elif task == "distill":
        distill(model, sample, args)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def distill(model: VisionLanguageModel, sample: Sample, args: argparse.Namespace) -> None:
    """A step, with checkpoint and merge."""
    lora, precision = LoraConfig(), "bf16" if args.dtype == "bf16" else "float32"
    config = FitConfig(epochs=1, rows=1, lora=lora, precision=precision, recompute=args.recompute)
    linear = ((n, m) for n, m in model.network.named_modules() if isinstance(m, torch.nn.Linear))
    layers = {n: (m.out_features, m.in_features) for n, m in linear}
    additions = {
        name: (torch.randn(lora.rank, wide) * 0.01, torch.randn(tall, lora.rank) * 0.01)
        for name, (tall, wide) in layers.items()
        if name.startswith(FAMILY.text)
    }
    teacher = LiveTeacher(model.with_additions(additions))
    with tempfile.TemporaryDirectory() as folder:
        fit(model, [sample], Distillation(), config, FitRun(Path(folder), 0, "distill"), teacher=teacher)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES], default="2b")
    parser.add_argument("--dtype", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--quantize", choices=("none", "nf4"), default="none")
    parser.add_argument("--recompute", choices=("nothing", "blocks"), default="nothing")
    parser.add_argument("--image-tokens", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="keep the weights here, and use those that are here")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
    add_outputs(parser)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(peak_of(args.peak, args.folder, args)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        base = args.folder or Path(scratch) / "base"
        words = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--folder", str(base), "--peak"]
        if not base.exists():
            subprocess.run([*words, "write"], check=True, stdout=subprocess.DEVNULL)
        weights = 2 * sum(map(math.prod, read_shapes(base).values()))
        done = {t: subprocess.run([*words, t], check=True, stdout=subprocess.PIPE, text=True) for t in args.tasks}
    peaks = {task: float(ended.stdout.split()[-1]) for task, ended in done.items()}
    show([Row(TASKS[t], peak / 1e9, weights / 1e9, "bf16 weights", "GB") for t, peak in peaks.items()], args)


if __name__ == "__main__":
    main()

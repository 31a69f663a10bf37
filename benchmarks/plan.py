"""What `clinkd plan --measure` says, beside what the run then takes: seconds and memory, by stage and of the whole.

    python -m benchmarks.plan [--json] [--images 160] [--only demo|laptop]

Ours: the estimate. Rival: the real run of the same recipe, right after it, on the same machine; other work on it spoils
both, so that its load is told on stderr. `demo` runs as it stands. `laptop` runs on phantoms and on a small folder of
the stock layout that is taught for a minute before, as a model that knows no end mark never ends an answer.

Memory is that of all processes of the run together, the Java programs of the scores and those that draw among them,
looked at every PAUSE seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from benchmarks.report import Row, add_outputs, show

from clinkd import system_memory

PAUSE = 0.2
RIVAL = "the run"


@dataclass
class Seen:
    """What a run took; MB of it and of the processes that it starts."""

    seconds: float = 0.0
    by_stage: dict[str, float] = field(default_factory=dict)  # seconds
    memory: dict[str, float] = field(default_factory=dict)
    peak: float = 0.0


def planned(words: list[str], runs: Path) -> tuple[dict[str, dict[str, float]], dict[str, float], float]:
    """Stages by name, the whole, and the seconds that the plan itself took."""
    start = time.monotonic()
    command = [sys.executable, "-m", "clinkd", "plan", *words, "--runs", str(runs), "--measure", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout)
    return {s["stage"]: s for s in told["stages"]}, told["whole"], time.monotonic() - start


def held_mb(process: psutil.Process) -> float:
    """What a process holds now; 0 where it is gone."""
    with contextlib.suppress(psutil.Error):
        return float(process.memory_info().rss / 1e6)
    return 0.0


def watched(words: list[str], runs: Path) -> Seen:
    """Do the run and look at it. Raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "clinkd", "run", *words, "--runs", str(runs)]
    found, start = Seen(), time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    process = psutil.Process(child.pid)
    try:
        while child.poll() is None:
            now = held_mb(process) + system_memory.helpers_mb(process)
            found.peak = max(found.peak, now)
            stage = next((p.name.rpartition("-")[0] for p in (runs / ".stages").glob("*.part")), None)
            if stage:
                found.memory[stage] = max(found.memory.get(stage, 0.0), now)
            time.sleep(PAUSE)
    finally:
        child.kill()
    found.seconds = time.monotonic() - start
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    for record in (runs / ".stages").glob("*/stage.json"):
        stage = record.parent.name.rpartition("-")[0]
        found.by_stage[stage] = json.loads(record.read_text())["seconds"]
    return found


def compared(name: str, words: list[str], runs: Path) -> list[Row]:
    """The rows of a recipe."""
    print(f"{name}: load {os.getloadavg()[0]:.1f} before the plan", file=sys.stderr, flush=True)
    stages, whole, took = planned(words, runs)
    print(f"{name}: load {os.getloadavg()[0]:.1f} before the run", file=sys.stderr, flush=True)
    seen = watched(words, runs)
    print(f"{name}: load {os.getloadavg()[0]:.1f} after it", file=sys.stderr, flush=True)
    rows = [Row(f"{name}, {s}", e["seconds"], seen.by_stage[s], RIVAL, "s") for s, e in stages.items()]
    rows += [Row(f"{name}, {s}, memory", stages[s]["memory_mb"], mb, RIVAL, "MB") for s, mb in seen.memory.items()]
    return [
        *rows,
        Row(f"{name}, whole", whole["seconds"], sum(seen.by_stage.values()), f"{RIVAL}, its stages", "s"),
        Row(f"{name}, whole, from start to end", whole["seconds"], seen.seconds, RIVAL, "s"),
        Row(f"{name}, whole, memory", whole["memory_mb"], seen.peak, RIVAL, "MB"),
        Row(f"{name}, the plan itself", took, seen.seconds, RIVAL, "s"),
    ]


def given(home: Path, images: int) -> list[str]:
    """The words of `laptop` on a data set and a small taught folder of the stock layout, both made under `home`."""
    from PIL import Image

    from clinkd.config import FitConfig, ModelConfig, PhantomConfig, TinyConfig
    from clinkd.data import phantoms
    from clinkd.data.images import open_image
    from clinkd.data.writers import write_jsonl
    from clinkd.model.vlm import new_tiny, spell_samples
    from clinkd.objectives import CrossEntropy
    from clinkd.records import ImageRef
    from clinkd.training import FitRun, fit

    drawn = PhantomConfig(train_images=images, validation_images=images // 10, test_images=images // 5)
    samples = phantoms.write_phantoms(home / "set", drawn, 0)
    write_jsonl(samples, home / "set" / "samples.jsonl")
    tiny = TinyConfig(
        hidden=256, layers=4, heads=4, mlp=768, vision_hidden=128, vision_layers=4, patch=14, image_pixels=112,
        vocabulary=1000,
    )  # fmt: skip
    knobs = ModelConfig(positions="mrope", layout="sections", boxes="qwen2-vl", tiny=tiny)

    def opened(ref: ImageRef) -> Image.Image:
        return open_image(home / "set", ref)

    model = new_tiny(knobs, spell_samples(samples, knobs), 0, opened)
    train = [s for s in samples if s.split == "train"]
    taught = FitConfig(epochs=8, rows=24, questions=3, optimizer="muon", learning_rate=3e-3)
    fit(model, train, CrossEntropy(), taught, FitRun(home / "fit", 0, "teach"))
    model.save(home / "base", stock=True)
    return ["laptop", "--set", f"data.path={home / 'set'}", "--set", f"model.base={home / 'base'}"]


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=160, help="of the data that laptop learns from")
    parser.add_argument("--only", choices=("demo", "laptop"))
    add_outputs(parser)
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        if args.only != "laptop":
            rows += compared("demo", ["demo"], home / "runs-demo")
        if args.only != "demo":
            rows += compared("laptop", given(home, args.images), home / "runs-laptop")
    show(rows, args)


if __name__ == "__main__":
    main()

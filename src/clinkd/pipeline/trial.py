"""A run in small: every stage by its own code, on a part of the data and for a few steps, timed and weighed.

`python -m clinkd.pipeline.trial CONFIG.json FOLDER` is a process of its own, so that one that takes too much memory
ends alone. It writes a JSON object a line to stdout: what it made of each stage, as `Tried`.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from clinkd.config import AnswerConfig, FitConfig, RunConfig
from clinkd.model import VisionLanguageModel
from clinkd.pipeline import work as steps
from clinkd.pipeline.graph import Stage, Work
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.stages import plan
from clinkd.records import Sample, Split
from clinkd.storage import read_json, write_json

STEPS = {True: 16, False: 4}  # of each training: a tiny model's first steps tell little
HELD_IMAGES = 12  # for validation and test
LEAST_TRAIN_IMAGES = 24
LOOK_SECONDS = 0.2
LONGEST, SHORTEST = 48, 8  # answers whose generation is timed, tokens


def small(config: RunConfig) -> RunConfig:
    """The run with a part of its images, a few steps a training, and short answers."""
    rows = [fit.rows for fit in config.fits().values()]
    clip = config.select.clip if config.select.scorer == "clip" and config.select.clip.base is None else None
    images = max([LEAST_TRAIN_IMAGES, *rows, *([clip.rows] if clip else [])])
    drawn = config.data.phantoms.model_copy(
        update={"train_images": images, "validation_images": HELD_IMAGES, "test_images": HELD_IMAGES}
    )

    def few(fit: FitConfig | None, share: float = 1.0) -> FitConfig | None:
        if fit is None:
            return None
        of = max(1, round(share * images))
        return fit.model_copy(
            update={"epochs": STEPS[config.model.base is None] * fit.rows / of, "checkpoint_seconds": 1e9}
        )

    changed: dict[str, Any] = {"data": config.data.model_copy(update={"phantoms": drawn})}
    if config.model.base is None and (pretrain := config.model.tiny.pretrain):
        taught = pretrain.model_copy(update={"vision": few(pretrain.vision), "pairs": few(pretrain.pairs)})
        tiny = config.model.tiny.model_copy(update={"pretrain": taught})
        changed["model"] = config.model.model_copy(update={"tiny": tiny})
    for name in ("teacher", "distill", "reflect"):
        part = getattr(config, name)
        if part is not None:
            share = part.share if name == "teacher" else 1.0
            changed[name] = part.model_copy(update={"fit": few(part.fit, share)})
    if clip:
        select = config.select
        fewer = clip.model_copy(update={"epochs": 3.0 * clip.rows / images})
        changed["select"] = select.model_copy(update={"clip": fewer})
    changed["answer"] = config.answer.model_copy(update={"max_new_tokens": SHORTEST})
    return config.model_copy(update=changed)


def run(config: RunConfig, folder: Path) -> None:
    """Do the small run in `folder` and print what each stage took."""
    mini = small(config)
    finished: dict[str, Path] = {}
    on_gpu = Machine.of(config).ready() != "cpu"
    free = {"gpu_free_mb": torch.cuda.mem_get_info()[0] / 1e6} if on_gpu else {}
    for stage in plan(mini):
        finished[stage.name] = folder / stage.name
        tried = _try(stage, {need.name: finished[need.name] for need in stage.needs}, folder / stage.name)
        if stage.name == "prepare":
            tried |= free | _lessen(folder / "prepare", mini)
        if stage.name == ("see" if mini.model.sight == "stored" else "base"):
            tried["generate"] = _generating(config, stage, finished)
        print(json.dumps(tried), flush=True)


def _try(stage: Stage, inputs: dict[str, Path], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    recorded: dict[str, Any] = {}
    _forget_peak()
    with _Helpers() as helpers:
        start = time.monotonic()
        stage.work(Work(folder, inputs, stage.seed, recorded.__setitem__))
        seconds = time.monotonic() - start
    write_json(folder / "stage.json", {"identity": stage.identity, "seconds": seconds})
    return {
        "stage": stage.name,
        "seconds": seconds,
        "memory_mb": _peak_mb() + helpers.peak_mb,
        "disk_mb": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6,
        "fits": {path.parent.name: _step_seconds(path) for path in sorted(folder.glob("fit-*/log.jsonl"))},
        "recorded": recorded,
    }


def _step_seconds(log: Path) -> list[float]:
    """Of each step after the first, which warms up."""
    told = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        (b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(told)
    ]  # fmt: skip


def _lessen(prepared: Path, mini: RunConfig) -> dict[str, Any]:
    """Keep of each split so many images as the small run is to have. Characters of all answers there were, in the order
    in which they are asked; questions and images kept of each split; memory of a sample.
    """
    most: dict[Split, int] = {
        "train": mini.data.phantoms.train_images, "validation": HELD_IMAGES, "test": HELD_IMAGES,
    }  # fmt: skip
    lengths: dict[str, list[int]] = {}
    asked: dict[str, int] = {}
    images: dict[str, int] = {}
    tracemalloc.start()
    for split, number in most.items():
        samples = steps.read_split(prepared, split)
        if split == "train":
            sample_mb = tracemalloc.get_traced_memory()[0] / len(samples) / 1e6
            tracemalloc.stop()
        in_order = sorted(samples, key=lambda s: (s.task.value, len(s.answer.text), len(s.question.text)))
        lengths[split] = [len(s.answer.text) for s in in_order]
        kept = dict.fromkeys(s.images for s in samples)
        kept = dict.fromkeys(list(kept)[:number])
        left = [s for s in samples if s.images in kept]
        asked[split], images[split] = len(left), len(kept)
        steps._write_lines(prepared / f"{split}.jsonl", (s.to_json() for s in left))
    return {"answers": lengths, "asked": asked, "images": images, "sample_mb": sample_mb}


def _generating(config: RunConfig, stage: Stage, finished: dict[str, Path]) -> dict[str, Any]:
    """Seconds of a batch of short and of long answers, for one beam and for those of the final answers."""
    work = Work(finished[stage.name], finished, stage.seed, lambda key, value: None)
    here = steps._Room(work, Machine.of(config))
    model, samples = here.model("base"), here.samples("train")
    tall, wide = model.images.target(samples[0].images[0])
    _forget_peak()
    asked = (samples * (1 + config.answer.batch // len(samples)))[: config.answer.batch]
    found: dict[str, Any] = {"tokens_a_character": _density(model, samples), "image_mb": 3 * tall * wide / 1e6}
    for beams in sorted({1, config.answer.beams}):
        knobs = config.answer.model_copy(update={"beams": beams, "candidates": min(beams, config.answer.candidates)})
        timed = {n: _generate(model, asked, knobs, n) for n in (SHORTEST, LONGEST)}
        a_token = (timed[LONGEST] - timed[SHORTEST]) / (LONGEST - SHORTEST)
        found[str(beams)] = {"batch": timed[SHORTEST] - SHORTEST * a_token, "token": a_token}
    return {**found, "memory_mb": _peak_mb()}


def _generate(model: VisionLanguageModel, asked: Sequence[Sample], config: AnswerConfig, tokens: int) -> float:
    """Seconds of answers of exactly so many tokens: no token of the vocabulary is their end."""
    end, model.text.end = model.text.end, -1
    best = float("inf")
    try:
        for _ in range(2):
            start = time.monotonic()
            model.generate(asked, config.model_copy(update={"max_new_tokens": tokens}))
            best = min(best, time.monotonic() - start)
    finally:
        model.text.end = end
    return best


def _density(model: VisionLanguageModel, samples: Sequence[Sample]) -> float:
    """Answer tokens by character of the answer's text."""
    tokens = sum(len(turns[-1][1]) for turns in model.text.segments(samples))
    return tokens / max(1, sum(len(s.answer.text) for s in samples))


def _forget_peak() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    """Most that was taken since `_forget_peak`: of the GPU where there is one, else of memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        told = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in told if line.startswith("VmHWM")) / 1000
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


class _Helpers:
    """The most memory that programs started from here took together, looked at now and then."""

    def __enter__(self) -> _Helpers:
        self.peak_mb = 0.0
        self.ended = threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        self.watch.start()
        return self

    def _look(self) -> None:
        while not self.ended.wait(LOOK_SECONDS):
            self.peak_mb = max(self.peak_mb, sum(map(_held_mb, _children(os.getpid()))))

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.watch.join()


def _children(process: int) -> list[int]:
    """All below a process."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            below = [int(n) for n in (thread / "children").read_text().split()]
            found += [n for child in below for n in (child, *_children(child))]
    return found


def _held_mb(process: int) -> float:
    """Pages that several processes hold are divided among them."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1000
    return 0.0


if __name__ == "__main__":
    run(RunConfig.model_validate(read_json(Path(sys.argv[1]))), Path(sys.argv[2]))

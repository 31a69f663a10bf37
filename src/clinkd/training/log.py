"""Figures of a training by step: speed and memory, as JSON lines, for TensorBoard and for accelerate's trackers."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clinkd import distributed
from clinkd.model.flops import peak_flops
from clinkd.storage import JsonLines

LOG_EVERY = 10  # optimiser steps between two lines of the log; each of the first ten steps has a line
Track = Callable[[int, dict[str, float]], None]


class Speedometer:
    """Answer tokens a second over the last steps, and the used share of the machine's peak (MFU)."""

    def __init__(self, device: torch.device, precision: str, processes: int) -> None:
        exact = precision != "bf16" and device.type == "cpu"
        self.peak: float | None = None
        with suppress(RuntimeError):  # no memory on the GPU, or no such product: training goes on without this figure
            self.peak = peak_flops(device, torch.float32 if exact else torch.bfloat16) * processes
        self.marks = deque([(time.monotonic(), 0, 0)], maxlen=LOG_EVERY + 1)

    def after_step(self, tokens: int, operations: int) -> dict[str, float]:
        """Figures after one more step of so many tokens and operations (0: not known).

        "mfu" is left out if it is not known, or above 1: then the peak was measured too low, on a busy machine.
        """
        self.marks.append((time.monotonic(), tokens, operations))
        seconds = self.marks[-1][0] - self.marks[0][0]
        recent_tokens, recent_operations = (sum(mark[n] for mark in list(self.marks)[1:]) for n in (1, 2))
        if seconds <= 0:
            return {"tokens_per_second": 0.0}
        figures = {"tokens_per_second": recent_tokens / seconds}
        if self.peak and 0 < recent_operations / seconds <= self.peak:
            figures["mfu"] = recent_operations / seconds / self.peak
        return figures


def shown_on_bar(speed: dict[str, float]) -> dict[str, Any]:
    """The figures of a speedometer for the progress bar."""
    tokens = {"answer_tokens_per_s": round(speed["tokens_per_second"])}
    return tokens | ({"mfu": f"{speed['mfu']:.0%}"} if "mfu" in speed else {})


def peak_memory_mb(device: torch.device) -> float:
    """The most memory ever taken: on a GPU by tensors, otherwise by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # KiB on Linux


@contextmanager
def trackers_of(accelerator: Accelerator, title: str, knobs: dict[str, Any]) -> Iterator[Track]:
    """A function that passes a step's figures to accelerate's trackers, if there are any."""
    if not accelerator.log_with:
        yield lambda step, figures: None
        return
    names = {"wandb": {"name": title}, "mlflow": {"run_name": title}}
    accelerator.init_trackers("clinkd", {k: str(v) for k, v in knobs.items()}, names)
    try:
        yield lambda step, figures: accelerator.log(figures, step)
    finally:
        # not end_training, which also ends the group of processes, but other stages follow
        for tracker in accelerator.trackers:
            tracker.finish()


class TrainingLog:
    """Figures by step, as JSON lines and for TensorBoard. A resumed run writes the steps that it repeats again."""

    def __init__(self, folder: Path, first: int) -> None:
        self.main = distributed.is_main()
        self.start = time.monotonic()
        self.lines = JsonLines(folder / "log.jsonl")
        self.board: Any = None
        if self.main:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def __enter__(self) -> TrainingLog:
        return self

    def report_damage(self, lines: Sequence[str]) -> None:
        """Write reports of damage to stderr and to the log."""
        for line in lines if self.main else ():
            print(line, file=sys.stderr, flush=True)
            self.lines.append({"damaged": line})

    @staticmethod
    def is_due(step: int) -> bool:
        """Whether a step has a line."""
        return step <= LOG_EVERY or step % LOG_EVERY == 0

    def write(self, step: int, figures: dict[str, float]) -> None:
        if not self.main:
            return
        seconds = round(time.monotonic() - self.start, 2)
        self.lines.append({"step": step, "seconds": seconds, **{k: round(v, 6) for k, v in figures.items()}})
        self._call_board(lambda board: [board.add_scalar(name, value, step) for name, value in figures.items()])

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self._call_board(lambda board: board.close())

    def _call_board(self, call: Callable[[Any], object]) -> None:
        """Call TensorBoard, which shows the same as the lines: if it cannot write, training goes on without it."""
        try:
            if self.board is not None:
                call(self.board)
        except OSError as error:
            self.board = None
            print(f"TensorBoard: {error}; {self.lines.path} has the figures", file=sys.stderr, flush=True)

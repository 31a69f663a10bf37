"""One training loop for teacher, distillation and reflection: they differ in samples, objective and teacher only."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from clinkd import distributed
from clinkd.config import FitConfig
from clinkd.model.encode import Labelled
from clinkd.objectives import Objective
from clinkd.records import BadInput, Sample
from clinkd.storage import progress
from clinkd.training.checkpoint import load_checkpoint, save_checkpoint
from clinkd.training.fsdp import unshard_model
from clinkd.training.lengths import rows_within
from clinkd.training.log import Speedometer, TrainingLog, peak_memory_mb, shown_on_bar, trackers_of
from clinkd.training.optimizers import set_learning_rate, share_of_peak
from clinkd.training.step import LossModule, TrainStep
from clinkd.training.stops import Stop, stops_held
from clinkd.training.teachers import Learner, Teacher
from clinkd.training.windows import Rows, encode_ahead, sample_windows, step_seed

SAVING_SHARE = 0.05  # of the time, at most, where checkpoints are large


@dataclass(frozen=True)
class FitRun:
    """Where a training runs, and as what.

    `folder` gets its checkpoints and its log. `schedule_part` (k, n): this is part k, from 0, of n equal parts of
    one learning-rate curve, as the rounds of reflection are. Several processes (`clinkd.distributed`) each take
    their part of every window. `shard`: they also share the weights, and afterwards the main one alone has them, on
    the CPU; without it each has all. `trackers` of accelerate ("wandb", "mlflow") get the figures, too, each
    attempt as a run of its own.
    """

    folder: Path
    seed: int
    title: str
    schedule_part: tuple[int, int] = (0, 1)
    shard: bool = False
    trackers: Sequence[str] = ()


@dataclass(frozen=True)
class Fitted:
    """What a stage did: rows there are, optimiser steps, samples seen (with repeats), mean loss over the last tenth of
    the steps, and how many parameters learned."""

    num_rows: int
    num_steps: int
    num_samples: int
    final_loss: float
    num_trained: int


def fit(
    model: Learner,
    samples: Sequence[Sample],
    objective: Objective,
    config: FitConfig,
    run: FitRun,
    teacher: Teacher | None = None,
) -> Fitted:
    """Train `model` in place on `samples`; go on from the newest checkpoint in the run's folder where there is one.

    A step's gradient is the sum of the objective over the window's answer tokens, of all micro-batches and processes,
    divided once by their number. Which rows a step sees is a function of seed and step alone, and so is all chance in
    it, so a run that was interrupted ends with the bits of one that was not, on as many threads and processes.

    SIGINT and SIGTERM wait for the end of the running step and a checkpoint of it.

    Raises BadInput where there is nothing to learn from, where the objective lacks its teacher, for a checkpoint of
    another training, and on a full disk, which leaves the last good checkpoint.
    """
    if objective.needs_teacher and teacher is None:
        raise BadInput(f"{run.title}: distillation needs a teacher")
    rows = rows_within(model, samples, config, run.folder, run.title)
    if not rows:
        raise BadInput(f"{run.title}: no samples to train on")
    num_steps = math.ceil(config.epochs * len(rows) / config.rows)
    with model.prepared_for(config, run.seed):
        accelerator = Accelerator(cpu=model.device.type == "cpu", log_with=list(run.trackers) or None)
        config.demand_even_shares(f"{run.title}: fit", accelerator.num_processes)
        step = TrainStep(LossModule(model, objective, teacher, config.precision), config, accelerator, run.shard)
        fingerprint = run_fingerprint(rows, objective, config, run, teacher)
        with accelerator.main_process_first():  # it sets aside what is damaged
            state = TrainingState(run.folder, model, step.optimizers, fingerprint, config.checkpoint_seconds)
        _take_steps(step, state, rows, num_steps, config, run)
        num_trained = sum(p.numel() for p in step.trained)
        unshard_model(model)
    tail = state.losses[-max(1, num_steps // 10) :]
    return Fitted(len(rows), num_steps, state.num_samples, sum(tail) / len(tail), num_trained)


def _take_steps(
    step: TrainStep, state: TrainingState, rows: Rows, num_steps: int, config: FitConfig, run: FitRun
) -> None:
    """The steps that are left."""
    first, (part, parts) = state.steps, run.schedule_part
    windows = (step.deal(window) for window in sample_windows(rows, config, run.seed, first, num_steps))
    speedometer = Speedometer(step.model.device, config.precision, step.processes)
    with (
        stops_held(run.title) as stop,
        step.threads.opened(),
        ThreadPoolExecutor(1) as thread,
        TrainingLog(run.folder, first) as log,
        trackers_of(step.accelerator, run.title, {**config.identity(), "seed": run.seed}) as track,
        progress(num_steps, run.title, "steps", done=first) as advance,
    ):
        log.report_damage(state.reports)
        for number, batches in zip(range(first, num_steps), encode_ahead(thread, step.model, windows), strict=True):
            window = _count(step, batches, stop.asked, state.is_due())
            state.save_or_stop(stop, window.stops, window.saves)
            torch.manual_seed(step_seed(run.seed, number, distributed.rank()))
            set_learning_rate(step.optimizers, share_of_peak((part + number / num_steps) / parts, config))
            losses = step.update(batches, window.tokens)
            if not math.isfinite(losses["loss"]):
                raise BadInput(
                    f"{run.title}: the loss is {losses['loss']} at step {number + 1}; lower fit.learning_rate"
                )
            state.add_step(window.samples, losses["loss"])
            speed = speedometer.after_step(window.tokens, window.operations)
            advance(1, loss=round(losses["loss"], 3), **shown_on_bar(speed))
            if log.is_due(number + 1):
                figures = {**losses, "tokens": window.tokens, "samples": window.samples, **speed}
                figures["peak_memory_mb"] = peak_memory_mb(step.model.device)
                log.write(number + 1, figures)
                track(number + 1, figures)
        # what follows, such as saving the model, may take long
        state.save_or_stop(stop, *step.all_reduce_sums(stop.asked, state.is_due()))


class WindowCounts(NamedTuple):
    """Sums over all processes; `stops` and `saves`: how many of them were asked to stop, or find it time to save."""

    tokens: int
    samples: int
    operations: int
    stops: int
    saves: int


def _count(step: TrainStep, batches: Sequence[Labelled], stop: bool, save: bool) -> WindowCounts:
    tokens, samples = sum(b.labels_N.numel() for b in batches), sum(b.num_samples for b in batches)
    return WindowCounts(*step.all_reduce_sums(tokens, samples, step.operations(batches), stop, save))


class TrainingState:
    """How far a training is, as its newest checkpoint told and every step since added; and when to save it."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        fingerprint: dict[str, Any],
        seconds: float,
    ) -> None:
        restored = load_checkpoint(folder, model, optimizers, fingerprint)
        self.folder, self.model, self.optimizers, self.fingerprint = folder, model, optimizers, fingerprint
        self.reports = restored.reports
        self.steps = self.saved_steps = restored.step
        self.num_samples: int = restored.state.get("samples", 0)
        self.losses: list[float] = restored.state.get("losses", [])
        self.saved_at, self.seconds, self.wait = time.monotonic(), seconds, seconds

    def add_step(self, samples: int, loss: float) -> None:
        self.steps += 1
        self.num_samples += samples
        self.losses.append(loss)

    def is_due(self) -> bool:
        """Whether the main process finds it time to save."""
        return distributed.is_main() and time.monotonic() - self.saved_at > self.wait

    def save_or_stop(self, stop: Stop, stops: int, saves: int) -> None:
        """Save, and hand the signal on, where any process wants it: they must save and stop at the same step."""
        if stops or saves:
            self._save()
        if stops:
            stop.hand_on()

    def _save(self) -> None:
        """Save the state, where it does not lie there already."""
        start = time.monotonic()
        if self.steps > self.saved_steps:
            state = {"course": self.fingerprint, "samples": self.num_samples, "losses": self.losses}
            save_checkpoint(self.folder, self.steps, self.model, self.optimizers, state)
        self.saved_steps, self.saved_at = self.steps, time.monotonic()
        if self.seconds:
            self.wait = max(self.seconds, (self.saved_at - start) / SAVING_SHARE)


def run_fingerprint(
    rows: Rows, objective: Objective, config: FitConfig, run: FitRun, teacher: Teacher | None
) -> dict[str, Any]:
    """What decides every step from the weights at the start, as JSON values."""
    samples = hashlib.sha256()
    for sample in (s for row in rows for s in row):
        samples.update(f"{sample.id}\0{sample.answer}\0".encode(errors="backslashreplace"))
    return {
        "fit": config.identity(),
        "objective": str(objective),
        "teacher": type(teacher).__name__ if teacher else None,
        "seed": run.seed,
        "lap": list(run.schedule_part),
        "samples": samples.hexdigest()[:12],
    }

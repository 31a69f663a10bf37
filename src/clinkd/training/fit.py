"""One training loop for teacher, distillation and reflection, which differ only in samples, objective and teacher."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance
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
from clinkd.training.not_finite import demand_finite_weights, explain_loss
from clinkd.training.optimizers import set_learning_rate, share_of_peak
from clinkd.training.step import LossModule, TrainStep
from clinkd.training.stops import Stop, stops_held
from clinkd.training.teachers import Learner, Teacher
from clinkd.training.windows import Rows, encode_ahead, sample_windows, step_seed

NOISE = 2.0  # standard errors of a difference that is not noise
SAVING_SHARE = 0.05  # at most this share of the time is spent on saving large checkpoints


@dataclass(frozen=True)
class FitRun:
    """The place, seed and title of a training.

    `folder` gets the checkpoints and the log. `schedule_part` (k, n): this is part k, from 0, of n equal parts of one
    learning-rate curve, as for the rounds of reflection. Several processes (`clinkd.distributed`) each take their part
    of every window. `shard`: they also share out the weights, and afterwards only the main process has them, on the
    CPU; without it each process has all weights. `trackers` of accelerate ("wandb", "mlflow") get the figures, too,
    each attempt as a separate run. `unlabelled`: ids of samples whose answers are no labels, so only the KL counts.
    """

    folder: Path
    seed: int
    title: str
    schedule_part: tuple[int, int] = (0, 1)
    shard: bool = False
    trackers: Sequence[str] = ()
    unlabelled: Set[str] = frozenset()


@dataclass(frozen=True)
class Fitted:
    """The result of a training: rows, optimiser steps, samples (with repeats), mean loss over the last tenth of the
    steps, whether the loss still fell at the end, and the number of trained parameters."""

    num_rows: int
    num_steps: int
    num_samples: int
    final_loss: float
    falling: bool
    num_trained: int


def is_falling(losses: Sequence[float]) -> bool:
    """Whether the mean loss of the last quarter of the steps lies below that of the quarter before, by more than noise,
    by 1 %, and by a twentieth of the whole fall. A training of under eight steps has not settled: it counts as falling.
    """
    quarter = len(losses) // 4
    if quarter < 2:
        return True
    before, last = losses[-2 * quarter : -quarter], losses[-quarter:]
    mean, spread = fmean(before), math.sqrt((variance(before) + variance(last)) / quarter)
    fall, whole = mean - fmean(last), fmean(losses[: max(1, len(losses) // 10)]) - fmean(last)
    return fall > max(NOISE * spread, 0.01 * mean, 0.05 * whole)


def fit(
    model: Learner,
    samples: Sequence[Sample],
    objective: Objective,
    config: FitConfig,
    run: FitRun,
    teacher: Teacher | None = None,
) -> Fitted:
    """Train `model` in place on `samples`, from the newest checkpoint in the run's folder, if there is one.

    A step's gradient is the sum of the objective over the window's answer tokens, of all micro-batches and processes,
    divided once by the number of these tokens. The rows of a step, and all its random numbers, depend only on seed and
    step: with equal numbers of threads and processes an interrupted run ends with the bits of an uninterrupted one.

    SIGINT and SIGTERM wait until the running step is done and saved in a checkpoint.

    Raises BadInput if there are no samples, if the objective lacks its teacher, for a checkpoint of another training,
    and on a full disk, where the last good checkpoint stays.
    """
    if objective.needs_teacher and teacher is None:
        raise BadInput(f"{run.title}: distillation needs a teacher")
    rows = rows_within(model, samples, config, run.folder, run.title)
    if not rows:
        raise BadInput(f"{run.title}: no samples to train on")
    num_steps = config.count_steps(len(rows))
    with model.prepared_for(config, run.seed):
        accelerator = Accelerator(cpu=model.device.type == "cpu", log_with=list(run.trackers) or None)
        config.demand_even_shares(f"{run.title}: fit", accelerator.num_processes)
        loss = LossModule(model, objective, teacher, config.precision, run.unlabelled)
        step = TrainStep(loss, config, accelerator, run.shard)
        fingerprint = run_fingerprint(rows, objective, config, run, teacher)
        with accelerator.main_process_first():  # it moves damaged checkpoints aside
            state = TrainingState(run.folder, model, step.optimizers, fingerprint, config.checkpoint_seconds)
        demand_finite_weights(model, run.title)
        _take_steps(step, state, rows, num_steps, config, run)
        num_trained = sum(p.numel() for p in step.trained)
        unshard_model(model)
    tail = state.losses[-max(1, num_steps // 10) :]
    final_loss, falling = sum(tail) / len(tail), is_falling(state.losses)
    return Fitted(len(rows), num_steps, state.num_samples, final_loss, falling, num_trained)


def _take_steps(
    step: TrainStep, state: TrainingState, rows: Rows, num_steps: int, config: FitConfig, run: FitRun
) -> None:
    """Take the remaining steps."""
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
            window = _count_window(step, batches, stop.requested, state.is_due())
            state.save_or_stop(stop, window.stops, window.saves)
            torch.manual_seed(step_seed(run.seed, number, distributed.rank()))
            set_learning_rate(step.optimizers, share_of_peak((part + number / num_steps) / parts, config))
            losses = step.update(batches, window.tokens)
            if not math.isfinite(losses["loss"]):
                why = explain_loss(step, batches, number == first)
                raise BadInput(f"{run.title}: the loss is {losses['loss']} at step {number + 1}; {why}")
            state.add_step(window.samples, losses["loss"])
            speed = speedometer.after_step(window.tokens, window.operations)
            advance(1, loss=round(losses["loss"], 3), **shown_on_bar(speed))
            if log.is_due(number + 1):
                figures = {**losses, "tokens": window.tokens, "samples": window.samples, **speed}
                figures["peak_memory_mb"] = peak_memory_mb(step.model.device)
                log.write(number + 1, figures)
                track(number + 1, figures)
        # the next work, such as saving the model, may take long
        state.save_or_stop(stop, *step.all_reduce_sums(stop.requested, state.is_due()))


class WindowCounts(NamedTuple):
    """Sums over all processes; `stops` and `saves`: how many processes were asked to stop, or are due to save."""

    tokens: int
    samples: int
    operations: int
    stops: int
    saves: int


def _count_window(step: TrainStep, batches: Sequence[Labelled], stop: bool, save: bool) -> WindowCounts:
    tokens, samples = sum(b.labels_N.numel() for b in batches), sum(b.num_samples for b in batches)
    return WindowCounts(*step.all_reduce_sums(tokens, samples, step.operations(batches), stop, save))


class TrainingState:
    """The progress of a training, from its newest checkpoint and all steps since, and the time of the next save."""

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
        """Whether this is the main process and it is time to save."""
        return distributed.is_main() and time.monotonic() - self.saved_at > self.wait

    def save_or_stop(self, stop: Stop, stops: int, saves: int) -> None:
        """Save, and hand the signal on, if any process wants it: all must save and stop at the same step."""
        if stops or saves:
            self._save()
        if stops:
            stop.hand_on()

    def _save(self) -> None:
        """Save the state, if it is not saved already."""
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
    """All that decides the steps, besides the weights at the start, as JSON values."""
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

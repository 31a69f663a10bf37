"""One training loop for teacher, distillation and reflection: they differ in samples, objective and teacher only."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clinkd import crew
from clinkd.config import FitConfig
from clinkd.model import Batch, Labelled, Sight, VisionLanguageModel, rows_of
from clinkd.model.flops import training_operations
from clinkd.objectives import CrossEntropy, Distillation, Loss, Samples, States
from clinkd.records import BadInput, Sample
from clinkd.storage import progress
from clinkd.training.checkpoint import load_checkpoint, save_checkpoint
from clinkd.training.lanes import Lanes, lanes_for
from clinkd.training.lengths import rows_within
from clinkd.training.log import Speedometer, TrainingLog, peak_memory_mb, trackers_of
from clinkd.training.optimizers import make_optimizers, set_learning_rate, share_of_peak
from clinkd.training.shards import made_whole, whole
from clinkd.training.shards import shard as sharded
from clinkd.training.stops import stops_held

SAVING_SHARE = 0.05  # of the time, at most, where checkpoints are large
Learner = VisionLanguageModel | Sight


class Teacher(Protocol):
    """Who shows the student what to say at a batch's answer tokens."""

    def goal(self, batch: Batch) -> States | Samples: ...

    def operations(self, batch: Batch, sight: bool) -> int | None:
        """Operations it takes, those of its vision tower included if `sight`; None where they are not known."""
        ...


class LiveTeacher:
    """A model that runs beside the student, in evaluation mode and without gradients."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def goal(self, batch: Batch, seen: Any = None) -> States:
        return States(self.model.hidden_states(batch, seen), self.model.head.weight_VH)

    def operations(self, batch: Batch, sight: bool) -> int | None:
        """Of one forward."""
        parts = self.model.operations(batch)
        if parts is None:
            return None
        return sum(part.forward for name, part in parts.items() if sight or name in ("text", "head"))

    def sees_as(self, model: Learner) -> bool:
        """Whether one vision pass serves both: tower and merger are equal and frozen."""
        return isinstance(model, VisionLanguageModel) and self.model.sees_as(model)


@dataclass(frozen=True)
class Fitted:
    """What a stage did: rows there are, optimiser steps, samples seen (with repeats), mean loss over the last tenth of
    the steps, and how many parameters learned."""

    num_rows: int
    num_steps: int
    num_samples: int
    final_loss: float
    num_trained: int


class _Trainee(nn.Module):
    """Model and objective as one module, so that a data-parallel wrapper sees one forward from batch to loss."""

    def __init__(
        self,
        model: Learner,
        objective: CrossEntropy | Distillation,
        teacher: Teacher | None,
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        super().__init__()
        self.model, self.objective, self.precision = model, objective, precision
        self.share_sight = isinstance(teacher, LiveTeacher) and teacher.sees_as(model)

    def forward(self, batch: Any, teacher: Teacher | None) -> Loss:
        # not accelerate's: its state is one for the whole process, and stages may differ
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self._loss(batch, teacher)

    def operations(self, batch: Any, teacher: Teacher | None) -> int:
        """Operations of a batch, forward and backward, those of the teacher included; 0 where they are not known."""
        student = training_operations(self.model.operations(batch))
        beside = teacher.operations(batch, sight=not self.share_sight) if teacher else 0
        return 0 if student is None or beside is None else student + beside

    def _loss(self, batch: Any, teacher: Teacher | None) -> Loss:
        head = self.model.head
        if not isinstance(self.objective, Distillation):
            hidden_NH = self.model.hidden_states(batch)
            return self.objective(hidden_NH, head.weight_VH, batch.labels_N, head.added(hidden_NH))
        assert teacher is not None
        if self.share_sight and isinstance(teacher, LiveTeacher) and isinstance(self.model, VisionLanguageModel):
            with torch.no_grad():
                seen = self.model.see(batch)
            hidden_NH = self.model.hidden_states(batch, seen)
            goal: States | Samples = teacher.goal(batch, seen)
        else:
            if isinstance(teacher, LiveTeacher) and batch.seen_FH is not None:
                raise BadInput(
                    "model.sight=stored: the teacher's tower or merger is not the student's, whose features were "
                    "stored; set model.sight=live"
                )
            hidden_NH, goal = self.model.hidden_states(batch), teacher.goal(batch)
        return self.objective(hidden_NH, head.weight_VH, batch.labels_N, goal, head.added(hidden_NH))


def fit(
    model: Learner,
    samples: Sequence[Sample],
    objective: CrossEntropy | Distillation,
    config: FitConfig,
    *,
    folder: Path,
    seed: int,
    title: str,
    teacher: Teacher | None = None,
    lap: tuple[int, int] = (0, 1),
    shard: bool = False,
    trackers: Sequence[str] = (),
) -> Fitted:
    """Train `model` in place on `samples`; go on from `folder`'s newest checkpoint where there is one.

    A step's gradient is the sum of the objective over the window's answer tokens, of all micro-batches and processes,
    divided once by their number. Which rows a step sees is a function of seed and step alone, and so is all chance in
    it, so a run that was interrupted ends with the bits of one that was not, on as many threads and processes. `lap`
    (k, n): this is part k, from 0, of n equal parts of one learning-rate curve, as the rounds of reflection are.

    Several processes (`clinkd.crew`) each take their part of every window. `shard`: they also share the weights, and
    afterwards the main one alone has them, on the CPU; without it each has all. `trackers` of accelerate ("wandb",
    "mlflow") get the figures, too, each attempt as a run of its own.

    SIGINT and SIGTERM wait for the end of the running step and a checkpoint of it.

    Raises BadInput where there is nothing to learn from, where the objective lacks its teacher, for a checkpoint of
    another training, and on a full disk, which leaves the last good checkpoint.
    """
    if isinstance(objective, Distillation) and teacher is None:
        raise BadInput(f"{title}: distillation needs a teacher")
    rows = _rows(model, samples, config, folder, title)
    _dress(model, config, seed)
    descent = _Descent(model, objective, teacher, config, title, shard, trackers)
    num_steps = math.ceil(config.epochs * len(rows) / config.rows)
    course = _course(rows, objective, config, seed, teacher, lap)
    with descent.accelerator.main_process_first():  # it sets aside what is damaged
        restored = load_checkpoint(folder, model, descent.optimizers, course)
    first = last = restored.step
    num_samples: int = restored.state.get("samples", 0)
    losses: list[float] = restored.state.get("losses", [])
    saved, wait = time.monotonic(), config.checkpoint_seconds
    speed = Speedometer(model.device, config.precision, descent.processes)
    windows = (descent.dealt(picked) for picked in _windows(rows, config, seed, first, num_steps))

    def keep(step: int) -> None:
        """Save the state after so many steps, where it does not lie there already."""
        nonlocal last, saved, wait
        start = time.monotonic()
        if step > last:
            state = {"course": course, "samples": num_samples, "losses": losses}
            save_checkpoint(folder, step, model, descent.optimizers, state)
        last, saved = step, time.monotonic()
        if config.checkpoint_seconds:
            wait = max(config.checkpoint_seconds, (saved - start) / SAVING_SHARE)

    with (
        stops_held(title) as stop,
        descent.lanes.opened(),
        ThreadPoolExecutor(1) as ahead,
        TrainingLog(folder, first) as log,
        trackers_of(descent.accelerator, title, {**config.identity(), "seed": seed}) as track,
        progress(num_steps, title, "steps", done=first) as advance,
    ):
        log.report_damage(restored.reports)
        for step, batches in zip(range(first, num_steps), _prefetch(ahead, model, windows), strict=True):
            words, questions = sum(b.labels_N.numel() for b in batches), sum(b.num_samples for b in batches)
            due = crew.is_main() and time.monotonic() - saved > wait
            # the processes must save and stop at the same step
            tokens, seen, stopped, save, operations = descent.agreed(
                words, questions, stop.asked, due, descent.operations(batches)
            )
            if stopped or save:
                keep(step)
            if stopped:
                stop.hand_on()
            torch.manual_seed(_dice(seed, step, crew.rank()))
            set_learning_rate(descent.optimizers, share_of_peak((lap[0] + step / num_steps) / lap[1], config))
            shown = descent.step(batches, tokens)
            if not math.isfinite(shown["loss"]):
                raise BadInput(f"{title}: the loss is {shown['loss']} at step {step + 1}; lower fit.learning_rate")
            num_samples += seen
            losses.append(shown["loss"])
            pace = speed.after_step(tokens, operations)
            advance(1, loss=round(shown["loss"], 3), **_on_bar(pace))
            memory = {"peak_memory_mb": peak_memory_mb(model.device)}
            figures = {**shown, "tokens": tokens, "samples": seen, **pace, **memory}
            if log.is_due(step + 1):
                log.write(step + 1, figures)
                track(step + 1, figures)
        stopped, save = descent.agreed(stop.asked, time.monotonic() - saved > wait)
        if stopped or save:  # what follows, such as saving the model, may take long
            keep(num_steps)
        if stopped:
            stop.hand_on()
    num_trained = sum(p.numel() for p in descent.trained)
    made_whole(model)
    _undress(model)
    tail = losses[-max(1, num_steps // 10) :]
    return Fitted(len(rows), num_steps, num_samples, sum(tail) / len(tail), num_trained)


def _on_bar(pace: dict[str, float]) -> dict[str, Any]:
    shown: dict[str, Any] = {"answer_tokens_per_s": round(pace["tokens_per_second"])}
    return shown | ({"mfu": f"{pace['mfu']:.0%}"} if "mfu" in pace else {})


def _rows(model: Learner, samples: Sequence[Sample], config: FitConfig, folder: Path, title: str) -> list[list[Sample]]:
    if isinstance(model, VisionLanguageModel):
        rows = rows_within(model, samples, config, folder, title)
    else:
        rows = rows_of(samples)
    if not rows:
        raise BadInput(f"{title}: no samples to train on")
    return rows


def _dress(model: Learner, config: FitConfig, seed: int) -> None:
    """Make of a plain model one that is trained as `config` says."""
    model.freeze(config.freeze)
    if isinstance(model, VisionLanguageModel):
        model.recompute_blocks(config.recompute == "blocks")
        model.compile_blocks(config.compile)
        model.line_tokens = config.pack
        if config.lora is not None:
            model.adapt(config.lora, seed)
    model.train()


def _undress(model: Learner) -> None:
    """The plain model again, with what it learned."""
    model.eval()
    if isinstance(model, VisionLanguageModel):
        model.recompute_blocks(False)
        model.compile_blocks(False)
        model.line_tokens = 0
        model.merge()


class _Descent:
    """Windows of rows to updates of the weights, on the lanes or processes there are."""

    def __init__(
        self, model: Learner, objective: CrossEntropy | Distillation, teacher: Teacher | None, config: FitConfig,
        title: str, shard: bool, trackers: Sequence[str],
    ) -> None:  # fmt: skip
        self.accelerator = Accelerator(cpu=model.device.type == "cpu", log_with=list(trackers) or None)
        self.processes = self.accelerator.num_processes
        config.demand_even_shares(f"{title}: fit", self.processes)
        self.model, self.teacher, self.clip = model, teacher, config.clip
        trainee = _Trainee(model, objective, teacher, config.precision)
        self.shared = shard and self.processes > 1
        if self.shared:
            self.trainee = sharded(trainee, model.blocks, model.device)
        else:
            self.trainee = self.accelerator.prepare_model(trainee)
        self.optimizers = make_optimizers(model, config)  # of the parameters as they are now
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.lanes = Lanes(lanes_for(model, config.rows // config.accumulate) if self.processes == 1 else 1)
        self.accumulate = config.accumulate
        self.grouped = config.accumulate > 1 and not config.pack
        self.count = trainee.operations

    def dealt(self, rows: list[list[Sample]]) -> list[list[list[Sample]]]:
        """This process's rows of a window, by micro-batch.

        Rows of like length come together, so that little is padded, and all processes have long ones at a time; where
        rows are packed, or there is one micro-batch, nothing is won by that.
        """
        if self.grouped:
            rows = sorted(rows, key=self._length)
        mine = rows[crew.rank() :: self.processes]
        size = len(mine) // self.accumulate
        together = [mine[k * size : (k + 1) * size] for k in range(self.accumulate)]
        return [part[lane :: self.lanes.number] for part in together for lane in range(self.lanes.number)]

    def _length(self, row: list[Sample]) -> float:
        """Tokens of a row, roughly: those of its images, and one for three characters."""
        words = sum(len(turn.question.text) + len(turn.answer.text) for s in row for turn in s.turns)
        return sum(math.prod(self.model.images.grid(ref)) for ref in row[0].images) + words / 3

    def operations(self, batches: Sequence[Labelled]) -> int:
        """Of this process's part of a window; 0 where they are not known."""
        counts = [self.count(batch, self.teacher) for batch in batches]
        return sum(counts) if all(counts) else 0

    def agreed(self, *counts: int) -> list[int]:
        """Their sums over the processes."""
        found: list[int] = self.accelerator.reduce(torch.tensor(counts).to(self.model.device), "sum").tolist()
        return found

    def step(self, batches: Sequence[Labelled], tokens: int) -> dict[str, float]:
        """One update by a window of `tokens` answer tokens over all processes; its mean losses and gradient norm."""
        if self.lanes.number > 1:
            found = self.lanes.backward(self._loss, batches, self.trained, 1 / tokens)
        else:
            found = [self._backward(b, tokens, last=b is batches[-1]) for b in batches]
        norm = whole(self.accelerator.clip_grad_norm_(self.trained, self.clip))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for loss in found:
            for name, part in {"loss": loss.sum.detach(), **loss.parts}.items():
                sums[name] = sums.get(name, torch.zeros_like(part)) + part
        names = sorted(sums)
        means = (self.accelerator.reduce(torch.stack([sums[n] for n in names]), "sum") / tokens).tolist()
        return {**dict(zip(names, means, strict=True)), "grad_norm": float(norm)}

    def _loss(self, batch: Labelled) -> Loss:
        found: Loss = self.trainee(batch.to(self.model.device), self.teacher)
        return found

    def _backward(self, batch: Labelled, tokens: int, last: bool) -> Loss:
        # Shards are summed after each micro-batch: whole gradients would have to be kept in between.
        with nullcontext() if last or self.shared else self.accelerator.no_sync(self.trainee):
            loss = self._loss(batch)
            # data-parallel wrappers average over processes; the window's sum is wanted
            self.accelerator.backward(loss.sum * self.processes / tokens)
        return loss


def _course(
    rows: list[list[Sample]], objective: CrossEntropy | Distillation, config: FitConfig, seed: int,
    teacher: Teacher | None, lap: tuple[int, int],
) -> dict[str, Any]:  # fmt: skip
    """What decides every step from the weights at the start, as JSON values."""
    said = hashlib.sha256()
    for sample in (s for row in rows for s in row):
        said.update(f"{sample.id}\0{sample.answer}\0".encode(errors="backslashreplace"))
    return {
        "fit": config.identity(),
        "objective": str(objective),
        "teacher": type(teacher).__name__ if teacher else None,
        "seed": seed,
        "lap": list(lap),
        "samples": said.hexdigest()[:12],
    }


def _dice(seed: int, step: int, process: int) -> int:
    """A seed for what chance there is in a step, so that no generator's state outlives it."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0])


def _windows(
    rows: list[list[Sample]], config: FitConfig, seed: int, first: int, num_steps: int
) -> Iterator[list[list[Sample]]]:
    """For each step, the rows of its window, over all processes and micro-batches."""
    orders: dict[int, np.ndarray] = {}
    for step in range(first, num_steps):
        picked = []
        for place in range(step * config.rows, (step + 1) * config.rows):
            epoch, index = divmod(place, len(rows))
            if epoch not in orders:
                orders = {epoch: np.random.default_rng([seed, epoch]).permutation(len(rows))}
            picked.append(_draw(rows[orders[epoch][index]], config.questions, seed, epoch))
        yield picked


def _draw(row: list[Sample], most: int, seed: int, epoch: int) -> list[Sample]:
    if not most or len(row) <= most:
        return row
    ranked = sorted(row, key=lambda s: hashlib.sha256(f"{seed} {epoch} {s.id}".encode()).digest())
    return ranked[:most]


def _prefetch(
    ahead: ThreadPoolExecutor, model: Learner, windows: Iterator[list[list[list[Sample]]]]
) -> Iterator[list[Labelled]]:
    """Encode the next window while this one trains."""

    def encode(window: list[list[list[Sample]]]) -> list[Labelled]:
        return [model.encode(rows) for rows in window]

    coming = None
    for window in windows:
        ready, coming = coming, ahead.submit(encode, window)
        if ready is not None:
            yield ready.result()
    if coming is not None:
        yield coming.result()

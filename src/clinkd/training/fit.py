"""One training loop for teacher, distillation and reflection: they differ in samples, objective and teacher only."""

from __future__ import annotations

import hashlib
import math
import resource
import sys
import time
from collections import deque
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

from clinkd.config import FitConfig
from clinkd.model import Batch, Labelled, Sight, VisionLanguageModel, rows_of
from clinkd.objectives import CrossEntropy, Distillation, Loss, Samples, States
from clinkd.records import BadInput, Sample
from clinkd.storage import JsonLines, progress
from clinkd.training.checkpoint import load_checkpoint, save_checkpoint
from clinkd.training.lanes import Lanes, lanes_for
from clinkd.training.lengths import rows_within
from clinkd.training.optimizers import make_optimizers, set_learning_rate, share_of_peak
from clinkd.training.stops import stops_held

LOG_EVERY = 10  # optimiser steps between two lines of the log
Learner = VisionLanguageModel | Sight


class Teacher(Protocol):
    """Who shows the student what to say at a batch's answer tokens."""

    def goal(self, batch: Batch) -> States | Samples: ...


class LiveTeacher:
    """A model that runs beside the student, in evaluation mode and without gradients."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def goal(self, batch: Batch, seen: Any = None) -> States:
        return States(self.model.hidden_states(batch, seen), self.model.head.weight_VH)

    def sees_as(self, model: Learner) -> bool:
        """Whether one vision pass serves both: tower and merger are equal and frozen."""
        return isinstance(model, VisionLanguageModel) and self.model.sees_as(model)


@dataclass(frozen=True)
class Fitted:
    """What a stage did: optimiser steps, samples seen (with repeats), mean loss over the last tenth of the steps."""

    num_steps: int
    num_samples: int
    final_loss: float


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
) -> Fitted:
    """Train `model` in place on `samples`; go on from `folder`'s newest checkpoint where there is one.

    A step's gradient is the sum of the objective over the window's answer tokens, of all micro-batches and processes,
    divided once by their number. Which rows a step sees is a function of seed and step alone, and so is all chance in
    it, so a run that was interrupted ends with the bits of one that was not, on as many threads and processes. `lap`
    (k, n): this is part k, from 0, of n equal parts of one learning-rate curve, as the rounds of reflection are.

    SIGINT and SIGTERM wait for the end of the running step and a checkpoint of it.

    Raises BadInput where there is nothing to learn from, where the objective lacks its teacher, for a checkpoint of
    another training, and on a full disk, which leaves the last good checkpoint.
    """
    if isinstance(objective, Distillation) and teacher is None:
        raise BadInput(f"{title}: distillation needs a teacher")
    if isinstance(model, VisionLanguageModel):
        rows = rows_within(model, samples, config, folder, title)
    else:
        rows = rows_of(samples)
    if not rows:
        raise BadInput(f"{title}: no samples to train on")
    model.freeze(config.freeze)
    if isinstance(model, VisionLanguageModel):
        model.recompute_blocks(config.recompute == "blocks")
        model.line_tokens = config.pack
        if config.lora is not None:
            model.adapt(config.lora, seed)
    model.train()
    accelerator = Accelerator(cpu=model.device.type == "cpu")
    if config.rows % (config.accumulate * accelerator.num_processes):
        raise BadInput(
            f"{title}: fit.rows={config.rows} must be a multiple of fit.accumulate={config.accumulate} times the "
            f"{accelerator.num_processes} processes"
        )
    optimizers = make_optimizers(model, config)
    trainee = accelerator.prepare_model(_Trainee(model, objective, teacher, config.precision))
    num_steps = math.ceil(config.epochs * len(rows) / config.rows)
    course = _course(rows, objective, config, seed, teacher, lap)
    with accelerator.main_process_first():  # it sets aside what is damaged
        restored = load_checkpoint(folder, model, optimizers, course)
    first = last = restored.step
    num_samples: int = restored.state.get("samples", 0)
    losses: list[float] = restored.state.get("losses", [])
    saved = time.monotonic()
    trained = [p for p in model.parameters() if p.requires_grad]
    alone = accelerator.num_processes == 1
    lanes = Lanes(lanes_for(model, config.rows // config.accumulate) if alone else 1)
    parts = config.accumulate * lanes.number
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    steps = (picked[mine] for picked in _windows(rows, config, seed, first, num_steps))
    windows = ([picked[part::parts] for part in range(parts)] for picked in steps)

    def loss_of(batch: Labelled) -> Loss:
        found: Loss = trainee(batch.to(model.device), teacher)
        return found

    def keep(step: int) -> None:
        """Save the state after so many steps, where it does not lie there already."""
        nonlocal last, saved
        if accelerator.is_main_process and step > last:
            state = {"course": course, "samples": num_samples, "losses": losses}
            save_checkpoint(folder, step, model, optimizers, state)
        last, saved = step, time.monotonic()

    with (
        stops_held(title) as stop,
        lanes.opened(),
        ThreadPoolExecutor(1) as ahead,
        _Log(folder, first, accelerator.is_main_process) as log,
        progress(num_steps, title, "steps", done=first) as advance,
    ):
        log.report(restored.reports)
        for step, batches in zip(range(first, num_steps), _prefetch(ahead, model, windows), strict=True):
            words, questions = sum(b.labels_N.numel() for b in batches), sum(b.num_samples for b in batches)
            counts = torch.tensor([words, questions, stop.asked])  # the processes must stop at the same step
            tokens, seen, stopped = accelerator.reduce(counts.to(model.device), "sum").tolist()
            if stopped:
                keep(step)
                stop.hand_on()
            torch.manual_seed(_dice(seed, step, accelerator.process_index))
            set_learning_rate(optimizers, share_of_peak((lap[0] + step / num_steps) / lap[1], config))
            sums: dict[str, Tensor] = {}
            if lanes.number > 1:
                found = lanes.backward(loss_of, batches, trained, 1 / tokens)
            else:
                found = []
                for number, batch in enumerate(batches, start=1):
                    with accelerator.no_sync(trainee) if number < len(batches) else nullcontext():
                        found.append(loss_of(batch))
                        # data-parallel wrappers average over processes; the window's sum is wanted
                        accelerator.backward(found[-1].sum * accelerator.num_processes / tokens)
            for loss in found:
                for name, part in {"loss": loss.sum.detach(), **loss.parts}.items():
                    sums[name] = sums.get(name, torch.zeros_like(part)) + part
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            num_samples += seen
            names = sorted(sums)
            totals = accelerator.reduce(torch.stack([sums[n] for n in names]), "sum") / tokens
            shown = dict(zip(names, totals.tolist(), strict=True))
            if not math.isfinite(shown["loss"]):
                raise BadInput(f"{title}: the loss is {shown['loss']} at step {step + 1}; lower fit.learning_rate")
            losses.append(shown["loss"])
            pace = log.pace(tokens)
            advance(1, loss=round(shown["loss"], 3), answer_tokens_per_s=round(pace))
            figures = {**shown, "grad_norm": float(norm), "tokens": tokens, "samples": seen}
            log.write(step + 1, {**figures, "tokens_per_second": pace, "peak_memory_mb": _peak_memory_mb(model.device)})
            if time.monotonic() - saved > config.checkpoint_seconds:
                keep(step + 1)
        if stop.asked:
            keep(num_steps)
            stop.hand_on()
    model.eval()
    if isinstance(model, VisionLanguageModel):
        model.recompute_blocks(False)
        model.line_tokens = 0
        model.merge()
    tail = losses[-max(1, num_steps // 10) :]
    return Fitted(num_steps, num_samples, sum(tail) / len(tail))


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


def _peak_memory_mb(device: torch.device) -> float:
    """Most that was ever taken: of the GPU by tensors, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # KiB on Linux


class _Log:
    """Figures by step, as JSON lines and for TensorBoard. A resumed run writes its repeated steps again."""

    def __init__(self, folder: Path, first: int, main: bool) -> None:
        self.main = main
        self.start = time.monotonic()
        self.marks = deque([(self.start, 0)], maxlen=LOG_EVERY + 1)
        self.lines = JsonLines(folder / "log.jsonl")
        self.board: Any = None
        if main:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def __enter__(self) -> _Log:
        return self

    def report(self, lines: Sequence[str]) -> None:
        """What was found damaged goes to stderr, too."""
        for line in lines if self.main else ():
            print(line, file=sys.stderr, flush=True)
            self.lines.append({"damaged": line})

    def pace(self, tokens: int) -> float:
        """Answer tokens a second over the last steps, these of one step more."""
        self.marks.append((time.monotonic(), tokens))
        seconds = self.marks[-1][0] - self.marks[0][0]
        return sum(n for _, n in list(self.marks)[1:]) / seconds if seconds > 0 else 0.0

    def write(self, step: int, figures: dict[str, float]) -> None:
        if not self.main or (step % LOG_EVERY and step > 1):
            return
        seconds = round(time.monotonic() - self.start, 2)
        self.lines.append({"step": step, "seconds": seconds, **{k: round(v, 6) for k, v in figures.items()}})
        for name, value in figures.items():
            self.board.add_scalar(name, value, step)

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        if self.board is not None:
            self.board.close()

"""One optimiser step: from the rows of a window to an update of the weights, on all threads or processes."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from contextlib import nullcontext
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clinkd import distributed
from clinkd.config import FitConfig
from clinkd.model.encode import Labelled
from clinkd.model.flops import training_operations
from clinkd.objectives import NO_LABEL, Loss, Objective
from clinkd.records import Sample
from clinkd.training.fsdp import full_tensor, is_sharded, shard_module
from clinkd.training.micro_batches import ThreadedMicroBatches, count_threads
from clinkd.training.optimizers import make_optimizers
from clinkd.training.teachers import AveragedTeacher, Learner, LiveTeacher, Teacher
from clinkd.training.windows import Rows


class LossModule(nn.Module):
    """Model and objective as one module, so that a data-parallel wrapper sees one forward from batch to loss.

    `unlabelled`: ids of samples whose answers are no labels: they have no CE, only the teacher's KL.
    """

    def __init__(
        self,
        model: Learner,
        objective: Objective,
        teacher: Teacher | None,
        precision: Literal["float32", "bf16"] = "float32",
        unlabelled: Set[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.model, self.objective, self.precision, self.unlabelled = model, objective, precision, unlabelled
        self.teacher = teacher if objective.needs_teacher else None
        self.shares_vision = self.teacher is not None and self.teacher.shares_vision_with(model)

    def forward(self, batch: Any) -> Loss:
        with self.autocast():
            features: Any = self.model.vision_features(batch) if self.shares_vision else None
            hidden_NH = self.model.hidden_states(batch, features)
            targets = self.teacher.targets(batch, features) if self.teacher else None
            head = self.model.head
            return self.objective(hidden_NH, head.weight_VH, self._labels(batch), targets, head.added(hidden_NH))

    def autocast(self) -> torch.autocast:
        """The precision of products. Not accelerate's: its state holds for the whole process, and stages may differ."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _labels(self, batch: Any) -> Tensor:
        labels_N: Tensor = batch.labels_N
        if not self.unlabelled:
            return labels_N
        hidden = [name in self.unlabelled for name, _ in batch.spans]
        tokens = torch.tensor([number for _, number in batch.spans])
        return labels_N.masked_fill(torch.tensor(hidden).repeat_interleave(tokens).to(labels_N.device), NO_LABEL)

    def operations(self, batch: Any) -> int | None:
        """Operations of a batch, forward and backward, with those of the teacher; None if they are not known."""
        student = training_operations(self.model.operations(batch))
        teacher = self.teacher.operations(batch, vision=not self.shares_vision) if self.teacher else 0
        return None if student is None or teacher is None else student + teacher


class TrainStep:
    """Updates the weights by windows of rows."""

    def __init__(self, loss: LossModule, config: FitConfig, accelerator: Accelerator, sharded: bool) -> None:
        self.accelerator, self.processes = accelerator, accelerator.num_processes
        self.model, self.loss, self.clip = loss.model, loss, config.clip
        self.sharded = sharded and self.processes > 1
        if isinstance(loss.teacher, LiveTeacher):
            teacher = loss.teacher.model
            if not self.sharded:
                teacher.share_fixed_weights(loss.model)
            elif not is_sharded(teacher):
                shard_module(teacher, teacher.blocks, teacher.device)
        if self.sharded:
            self.module = shard_module(loss, self.model.blocks, self.model.device)
        else:
            self.module = accelerator.prepare_model(loss)
        self.optimizers = make_optimizers(self.model, config)  # of the parameters in their present form
        if isinstance(loss.teacher, AveragedTeacher):
            self.optimizers.append(loss.teacher.follow(self.model))  # the last: it sees the updated weights
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.threads = ThreadedMicroBatches(
            count_threads(self.model, config.rows // config.accumulate) if self.processes == 1 else 1
        )
        self.accumulate = config.accumulate
        self.grouped = config.accumulate > 1 and not config.pack

    def deal(self, rows: Rows) -> list[Rows]:
        """This process's rows of a window, by micro-batch.

        Rows of similar length come together: there is little padding, and all processes get long rows at the same time.
        With packed rows, or a single micro-batch, that would gain nothing.
        """
        if self.grouped:
            rows = sorted(rows, key=self._length)
        mine = rows[distributed.rank() :: self.processes]
        size = len(mine) // self.accumulate
        parts = [mine[k * size : (k + 1) * size] for k in range(self.accumulate)]
        return [part[thread :: self.threads.number] for part in parts for thread in range(self.threads.number)]

    def _length(self, row: list[Sample]) -> float:
        """Tokens of a row, roughly: those of its images, and one for every three characters."""
        words = sum(len(turn.question.text) + len(turn.answer.text) for s in row for turn in s.turns)
        return sum(math.prod(self.model.images.grid(ref)) for ref in row[0].images) + words / 3

    def operations(self, batches: Sequence[Labelled]) -> int:
        """Operations of this process's part of a window; 0 if they are not known."""
        counts = [self.loss.operations(batch) for batch in batches]
        return sum(n for n in counts if n is not None) if None not in counts else 0

    def all_reduce_sums(self, *counts: int) -> list[int]:
        """The sums of these counts over the processes."""
        sums: list[int] = self.accelerator.reduce(torch.tensor(counts).to(self.model.device), "sum").tolist()
        return sums

    def update(self, batches: Sequence[Labelled], tokens: int) -> dict[str, float]:
        """Update the weights by a window, `tokens` answer tokens over all processes; mean losses and gradient norm."""
        if self.threads.number > 1:
            losses = self.threads.backward(self._loss, batches, self.trained, 1 / tokens)
        else:
            losses = [self._backward(b, tokens, last=b is batches[-1]) for b in batches]
        norm = full_tensor(self.accelerator.clip_grad_norm_(self.trained, self.clip))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for loss in losses:
            for name, part in {"loss": loss.sum.detach(), **loss.parts}.items():
                sums[name] = sums.get(name, torch.zeros_like(part)) + part
        names = sorted(sums)
        means = (self.accelerator.reduce(torch.stack([sums[n] for n in names]), "sum") / tokens).tolist()
        return {**dict(zip(names, means, strict=True)), "grad_norm": float(norm)}

    def _loss(self, batch: Labelled) -> Loss:
        loss: Loss = self.module(batch.to(self.model.device))
        return loss

    def _backward(self, batch: Labelled, tokens: int, last: bool) -> Loss:
        # Shards are summed after each micro-batch: otherwise whole gradients would be kept in between.
        with nullcontext() if last or self.sharded else self.accelerator.no_sync(self.module):
            loss = self._loss(batch)
            # data-parallel wrappers average over processes, but the window's sum is wanted
            self.accelerator.backward(loss.sum * self.processes / tokens)
        return loss

"""Micro-batches of a small model in parallel on the CPU, a thread each.

Products of matrices with a hundred columns gain little from a second thread; two halves of a batch, each on its own
core, gain nearly all of it (LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clinkd.objectives import Loss

ROWS_A_THREAD = 12  # with fewer rows a thread waits for Python more than it computes
SMALL = 20_000_000  # parameters; a larger model fills the cores by itself, and each thread holds a whole gradient


def count_threads(model: nn.Module, rows: int) -> int:
    """How many micro-batches of a window of `rows` run at once: 1, except for a small model on several CPU threads."""
    parameters = list(model.parameters())
    if any(p.device.type != "cpu" for p in parameters) or sum(p.numel() for p in parameters) > SMALL:
        return 1
    return max(1, min(torch.get_num_threads(), rows // ROWS_A_THREAD))


class ThreadedMicroBatches:
    """`number` threads that compute losses and gradients of micro-batches."""

    def __init__(self, number: int) -> None:
        self.number = number

    @contextmanager
    def opened(self) -> Iterator[None]:
        """In the block the threads run, and share torch's own threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, before // self.number))
        try:
            with ThreadPoolExecutor(self.number, "micro-batch") as self.pool:
                yield
        finally:
            torch.set_num_threads(before)

    def backward(
        self, loss_of: Callable[[Any], Loss], batches: Sequence[Any], parameters: Sequence[Tensor], scale: float
    ) -> list[Loss]:
        """Set the gradients of `parameters` to those of `scale` times the summed losses; return the losses, detached.

        Gradients are added in the order of the batches, whichever ends first, so the sum always has the same bits.
        """

        def compute_gradients(batch: Any) -> tuple[Loss, tuple[Tensor | None, ...]]:
            loss = loss_of(batch)
            gradients = torch.autograd.grad(loss.sum * scale, parameters, allow_unused=True)
            return Loss(loss.sum.detach(), loss.tokens, loss.parts), gradients

        losses = []
        for loss, gradients in self.pool.map(compute_gradients, batches):
            losses.append(loss)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return losses

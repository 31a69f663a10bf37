"""Micro-batches of a small model side by side on the CPU, a thread each.

Matrices of a hundred columns gain little from a second thread inside each product; two halves of a batch, each on a
core of its own, gain nearly all of it (LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clinkd.objectives import Loss

ROWS_A_THREAD = 12  # below it a thread waits for Python more than it computes
SMALL = 20_000_000  # parameters; a larger model fills the cores by itself, and each thread holds a gradient of its own


def count_threads(model: nn.Module, rows: int) -> int:
    """How many micro-batches of a window of `rows` to run at once: 1 but for a small model on several CPU threads."""
    parameters = list(model.parameters())
    if any(p.device.type != "cpu" for p in parameters) or sum(p.numel() for p in parameters) > SMALL:
        return 1
    return max(1, min(torch.get_num_threads(), rows // ROWS_A_THREAD))


class ThreadedMicroBatches:
    """`number` threads that take losses and gradients of micro-batches."""

    def __init__(self, number: int) -> None:
        self.number = number

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Start the threads, and share torch's own among them until the end."""
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
        """Set the gradients of `parameters` to those of `scale` times the summed losses; the losses, detached.

        Gradients are added in the order of the batches, whichever ends first, so the sum has the same bits every time.
        """

        def work(batch: Any) -> tuple[Loss, tuple[Tensor | None, ...]]:
            loss = loss_of(batch)
            gradients = torch.autograd.grad(loss.sum * scale, parameters, allow_unused=True)
            return Loss(loss.sum.detach(), loss.tokens, loss.parts), gradients

        losses = []
        for loss, gradients in self.pool.map(work, batches):
            losses.append(loss)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return losses

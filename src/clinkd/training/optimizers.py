"""The optimisers of a stage and its learning-rate curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from clinkd.config import FitConfig

# Rows of these are looked up one by one: orthogonalising the table (Muon) would tie tokens that never met.
TABLES = ("embed_tokens", "lm_head", "slots")


def make_optimizers(model: nn.Module, config: FitConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or under `muon` Muon for weight matrices and AdamW for the rest.

    Weight decay goes to matrices only. Muon: Jordan et al. 2024; its learning rate is scaled by sqrt(max(1, rows /
    columns)) as there.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    by_muon = [p for name, p in trained if config.optimizer == "muon" and p.ndim == 2 and not _is_table(name)]
    others = [p for _, p in trained if not any(p is q for q in by_muon)]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    ]
    if by_muon:
        made.append(Muon(by_muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay, momentum=0.95))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


class Muon(torch.optim.Muon):
    """torch's Muon, with its matrix iteration in float32 on a CPU.

    In bfloat16, as torch has it, a processor without AVX-512 multiplies an element at a time: a step of the demo took
    1.2 seconds instead of 0.1 (LOG.md). On a GPU the step is torch's own.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        on_cpu = all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
        if closure is not None or not on_cpu:
            return super().step(closure)  # type: ignore[no-untyped-call]
        for group in self.param_groups:
            rate, momentum = float(group["lr"]), group["momentum"]
            for weights in (p for p in group["params"] if p.grad is not None):
                state = self.state[weights]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weights.grad)
                mean = state["momentum_buffer"].lerp_(weights.grad, 1 - momentum)
                towards = weights.grad.lerp(mean, momentum) if group["nesterov"] else mean
                towards = orthogonal(towards.float(), group["ns_coefficients"], group["ns_steps"], group["eps"])
                weights.mul_(1 - rate * group["weight_decay"])
                rows, columns = weights.shape
                weights.add_(towards, alpha=-rate * math.sqrt(max(1.0, rows / columns)))
        return None


def orthogonal(
    matrix_RC: torch.Tensor, coefficients: tuple[float, float, float], steps: int, least: float
) -> torch.Tensor:
    """[R, C] the nearest matrix of about equal singular values, by Newton and Schulz's iteration of fifth order (Jordan
    et al. 2024), in the matrix's own precision. `least`: of the norm it is divided by."""
    a, b, c = coefficients
    tall = matrix_RC.size(0) > matrix_RC.size(1)
    found = matrix_RC.T if tall else matrix_RC
    found = found / found.norm().clamp(min=least)
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if tall else found


def _is_table(name: str) -> bool:
    return any(table in name for table in TABLES)


def share_of_peak(done: float, config: FitConfig) -> float:
    """Linear warm-up, then a cosine to zero (or flat); `done` is the share of the curve that lies behind, 0..1."""
    if done < config.warmup:
        return max(done, 1e-3) / config.warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / (1 - config.warmup)))


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Every group's rate to `share` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share

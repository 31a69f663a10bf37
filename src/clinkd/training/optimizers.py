"""The optimisers of a stage and its learning-rate curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from clinkd.config import FitConfig

# Rows of these tables are looked up one by one: to orthogonalise a table (Muon) would tie tokens that never met.
TABLES = ("embed_tokens", "lm_head", "pos_embed", "slots")


def make_optimizers(model: nn.Module, config: FitConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, with `adamw8bit` its states in eight bits; or with `muon`, Muon for weight matrices and
    AdamW for the rest.

    Only matrices get weight decay. Muon: Jordan et al. 2024, with their scale sqrt(max(1, rows / columns)) of the
    learning rate.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    by_muon = [p for name, p in trained if config.optimizer == "muon" and p.ndim == 2 and not _is_table(name)]
    others = [p for _, p in trained if not any(p is q for q in by_muon)]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    groups = [g for g in groups if g["params"]]
    if config.optimizer == "adamw8bit":
        from clinkd.training.eight_bit import EightBitAdamW

        optimizers: list[torch.optim.Optimizer] = [EightBitAdamW(groups, lr=config.learning_rate, betas=betas)]
    elif groups or not by_muon:
        optimizers = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)]
    else:  # what LoRA adds to the text is matrices alone
        optimizers = []
    if by_muon:
        optimizers.append(Muon(by_muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay, momentum=0.95))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


class Muon(torch.optim.Muon):
    """torch's Muon, with its matrix iteration in float32 on a CPU.

    In bfloat16, torch's choice, a processor without AVX-512 multiplies one element at a time: a step of the demo took
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
                update = weights.grad.lerp(mean, momentum) if group["nesterov"] else mean
                update = orthogonal(update.float(), group["ns_coefficients"], group["ns_steps"], group["eps"])
                weights.mul_(1 - rate * group["weight_decay"])
                rows, columns = weights.shape
                weights.add_(update, alpha=-rate * math.sqrt(max(1.0, rows / columns)))
        return None


def orthogonal(
    matrix_RC: torch.Tensor, coefficients: tuple[float, float, float], steps: int, least: float
) -> torch.Tensor:
    """The nearest matrix [R, C] with about equal singular values, by Newton and Schulz's iteration of fifth order
    (Jordan et al. 2024), in the matrix's own precision. `least`: lower bound of the norm by which it is divided."""
    a, b, c = coefficients
    tall = matrix_RC.size(0) > matrix_RC.size(1)
    wide = matrix_RC.T if tall else matrix_RC
    wide = wide / wide.norm().clamp(min=least)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if tall else wide


def _is_table(name: str) -> bool:
    return any(table in name for table in TABLES)


def share_of_peak(done: float, config: FitConfig) -> float:
    """Linear warm-up from `warmup_start`, then a cosine to zero (or a constant).

    `done`: the share of the curve that is done, 0..1.
    """
    if done < config.warmup:
        return min(1.0, max(done, config.warmup_start) / config.warmup)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / (1 - config.warmup)))


def set_learning_rate(optimizers: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Set the rate of every group to `share` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share

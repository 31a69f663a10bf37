"""The optimisers of a stage and its learning-rate curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        made.append(
            torch.optim.Muon(by_muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay, momentum=0.95)
        )
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


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

"""What a batch is trained on: cross-entropy, and distillation (CE + a T^2 KL) / (1 + a), straight from hidden states.

Shapes: N answer tokens, H hidden width of the student, G of the teacher, V vocabulary. An objective returns sums and
counts; the training loop alone divides, once, by the tokens of the whole accumulation window over all processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from clinkd.records import BadInput


@dataclass(frozen=True)
class Loss:
    """Sum of the loss over `tokens` answer tokens; `parts` are the sums it is made of, detached, for the log."""

    sum: Tensor
    tokens: int
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CrossEntropy:
    """-log p(label), in float32."""

    def __call__(self, hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor) -> Loss:
        logits_NV = (hidden_NH @ weight_VH.T).float()
        total = F.cross_entropy(logits_NV, labels_N, reduction="sum")
        return Loss(total, labels_N.numel(), {"ce": total.detach()})


@dataclass(frozen=True)
class Distillation:
    """(CE + a T^2 KL(teacher || student)) / (1 + a), paper, section Pseudo-Augmented Medical Distillation.

    CE is taken at temperature 1; in the KL both distributions are softmax(logits / T). Both terms run over the same
    tokens. (In print an "=" is missing, and the minus belongs to the first sum.)
    """

    kd_weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.kd_weight < 0:
            raise BadInput(f"distill.kd_weight={self.kd_weight:g} must be 0 or more")
        if self.temperature <= 0:
            raise BadInput(f"distill.temperature={self.temperature:g} must be above 0")

    def __call__(
        self, hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor, teacher_NG: Tensor, teacher_weight_VG: Tensor
    ) -> Loss:
        """Raises BadInput where teacher and student have unequal vocabularies."""
        if weight_VH.shape[0] != teacher_weight_VG.shape[0]:
            raise BadInput(
                f"the student has {weight_VH.shape[0]} vocabulary entries, the teacher {teacher_weight_VG.shape[0]}: "
                "distillation needs the same tokenizer and head size on both sides"
            )
        logits_NV = (hidden_NH @ weight_VH.T).float()
        with torch.no_grad():
            goal_NV = F.log_softmax((teacher_NG @ teacher_weight_VG.T).float() / self.temperature, dim=-1)
        ce = F.cross_entropy(logits_NV, labels_N, reduction="sum")
        soft_NV = F.log_softmax(logits_NV / self.temperature, dim=-1)
        kl = F.kl_div(soft_NV, goal_NV, reduction="sum", log_target=True)
        total = (ce + self.kd_weight * self.temperature**2 * kl) / (1 + self.kd_weight)
        return Loss(total, labels_N.numel(), {"ce": ce.detach(), "kl": kl.detach()})

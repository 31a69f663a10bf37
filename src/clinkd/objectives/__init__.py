"""Objectives: cross-entropy, and distillation (CE + a T^2 KL) / (1 + a), computed directly from hidden states.

Shapes: N answer tokens, H hidden width of the student, G of the teacher, V vocabulary, R rank. An objective returns
sums and counts. Only the training loop divides, once, by the tokens of the whole accumulation window over all
processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from clinkd.objectives.fused import (
    CHUNK_BYTES,
    NO_LABEL,
    Fused,
    HiddenStateTargets,
    LossWeights,
    SampledTargets,
    compute_log_probs,
)
from clinkd.records import BadInput

__all__ = [
    "CHUNK_BYTES", "NO_LABEL", "CrossEntropy", "Distillation", "HiddenStateTargets", "Loss", "LowRank", "Objective",
    "SampledTargets", "SmoothedCrossEntropy", "compute_log_probs",
]  # fmt: skip


class Loss(NamedTuple):
    """Sum of the loss over `tokens` answer tokens; `parts` are the sums of its terms, detached, for the log."""

    sum: Tensor
    tokens: int
    parts: dict[str, Tensor]


class LowRank(NamedTuple):
    """The addition of LoRA to a head's logits, low_NR @ up_VR.T: low is hidden @ A.T, scaled, and up is B."""

    low_NR: Tensor
    up_VR: Tensor


class Objective(ABC):
    """A loss, made of CE and KL(teacher || student), weighted by `loss_weights`; both are float32.

    `chunk`: tokens at a time; None: as many as fit into a fixed amount of memory.
    """

    chunk: int | None
    needs_teacher: ClassVar[bool]

    @property
    @abstractmethod
    def loss_weights(self) -> LossWeights:
        """The weights of the two terms, and the temperature of the KL."""

    def __call__(
        self,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        labels_N: Tensor,
        targets: HiddenStateTargets | SampledTargets | None = None,
        added: LowRank | None = None,
    ) -> Loss:
        """`labels_N`: entries, or NO_LABEL for a token without CE; `targets`: of the teacher, if the objective
        needs one; `added`: the addition of LoRA to the head.

        Raises BadInput if teacher and student have unequal vocabularies.
        """
        assert (targets is not None) == self.needs_teacher
        if isinstance(targets, HiddenStateTargets) and len(weight_VH) != len(targets.weight_VG):
            raise BadInput(
                f"the student has {len(weight_VH)} vocabulary entries, the teacher {len(targets.weight_VG)}: "
                "distillation needs the same tokenizer and head size on both sides"
            )
        low_NR, up_VR = added or (None, None)
        with torch.autocast(hidden_NH.device.type, enabled=False):  # float32 here means float32
            total, ce, kl = Fused.apply(  # type: ignore[no-untyped-call]
                hidden_NH, weight_VH, low_NR, up_VR, labels_N, targets, self.loss_weights, self.chunk
            )
        return Loss(total, labels_N.numel(), {"ce": ce, "kl": kl} if self.needs_teacher else {"ce": ce})


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """-log p(label)."""

    chunk: int | None = None
    needs_teacher: ClassVar[bool] = False
    loss_weights: ClassVar[LossWeights] = LossWeights(ce=1.0, kl=0.0, temperature=1.0)


@dataclass(frozen=True)
class SmoothedCrossEntropy(Objective):
    """Cross-entropy with the label (1 - e) onehot + e / V (label smoothing, Szegedy et al. 2016)."""

    smoothing: float
    chunk: int | None = None
    needs_teacher: ClassVar[bool] = False

    @property
    def loss_weights(self) -> LossWeights:
        return LossWeights(1.0, 0.0, 1.0, self.smoothing)


@dataclass(frozen=True)
class Distillation(Objective):
    """(CE + a T^2 KL(teacher || student)) / (1 + a), paper, section Pseudo-Augmented Medical Distillation.

    CE has temperature 1; in the KL both distributions are softmax(logits / T). Both terms run over the same tokens. (In
    print an "=" is missing, and the minus belongs to the first sum.) a may be infinite: then the loss is T^2 KL.
    """

    kd_weight: float = 0.5
    temperature: float = 2.0
    chunk: int | None = None
    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.kd_weight >= 0:
            raise BadInput(f"distill.kd_weight={self.kd_weight:g} must be 0 or more")
        if not 0 < self.temperature < math.inf:
            raise BadInput(f"distill.temperature={self.temperature:g} must be above 0")

    @property
    def loss_weights(self) -> LossWeights:
        kd = 1.0 if math.isinf(self.kd_weight) else self.kd_weight / (1 + self.kd_weight)
        return LossWeights(1 - kd, kd * self.temperature**2, self.temperature)

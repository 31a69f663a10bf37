"""Teachers, which give a student its targets at a batch's answer tokens, and the one that runs beside the student."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from clinkd.model.encode import Batch
from clinkd.model.vision import VisionPretrainer
from clinkd.model.vlm import VisionLanguageModel
from clinkd.objectives import HiddenStateTargets, SampledTargets
from clinkd.records import BadInput

Learner = VisionLanguageModel | VisionPretrainer


class Teacher(Protocol):
    """Gives the targets of a distillation."""

    def targets(self, batch: Batch, features: Any = None) -> HiddenStateTargets | SampledTargets:
        """Targets at the batch's answer tokens. `features`: of its images, if `shares_vision_with` allows them."""
        ...

    def shares_vision_with(self, model: Learner) -> bool:
        """Whether the teacher can use this student's features of an image."""
        ...

    def operations(self, batch: Batch, vision: bool) -> int | None:
        """Operations of the teacher, those of its vision tower included if `vision`; None if they are not known."""
        ...


class LiveTeacher:
    """A model that runs beside the student, in evaluation mode and without gradients."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def targets(self, batch: Batch, features: Any = None) -> HiddenStateTargets:
        """Raises BadInput if the batch has only stored features, which are another model's."""
        if features is None and batch.features_FH is not None:
            raise BadInput(
                "model.vision_features=cached: the teacher's tower or merger is not the student's, whose features were "
                "stored; set model.vision_features=live"
            )
        return HiddenStateTargets(self.model.hidden_states(batch, features), self.model.head.weight_VH)

    def shares_vision_with(self, model: Learner) -> bool:
        """Whether tower and merger of both models are equal and frozen."""
        return self.model.shares_vision_with(model.visual)

    def operations(self, batch: Batch, vision: bool) -> int | None:
        """Operations of one forward."""
        parts = self.model.operations(batch)
        if parts is None:
            return None
        return sum(part.forward for name, part in parts.items() if vision or name in ("text", "head"))

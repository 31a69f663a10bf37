"""Who shows a student what to say at a batch's answer tokens, and the model that does so beside the student."""

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

    def goal(self, batch: Batch, seen: Any = None) -> HiddenStateTargets | SampledTargets:
        """Targets at the batch's answer tokens. `seen`: the features of its images, where `sees_as` allows them."""
        ...

    def sees_as(self, model: Learner) -> bool:
        """Whether the teacher takes the features that this student makes of an image."""
        ...

    def operations(self, batch: Batch, sight: bool) -> int | None:
        """Operations it takes, those of its vision tower included if `sight`; None where they are not known."""
        ...


class LiveTeacher:
    """A model that runs beside the student, in evaluation mode and without gradients."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def goal(self, batch: Batch, seen: Any = None) -> HiddenStateTargets:
        """Raises BadInput where the batch has stored features only, which are another model's."""
        if seen is None and batch.seen_FH is not None:
            raise BadInput(
                "model.vision_features=cached: the teacher's tower or merger is not the student's, whose features were "
                "stored; set model.vision_features=live"
            )
        return HiddenStateTargets(self.model.hidden_states(batch, seen), self.model.head.weight_VH)

    def sees_as(self, model: Learner) -> bool:
        """Whether tower and merger of both are equal and frozen."""
        return self.model.sees_as(model.visual)

    def operations(self, batch: Batch, sight: bool) -> int | None:
        """Of one forward."""
        parts = self.model.operations(batch)
        if parts is None:
            return None
        return sum(part.forward for name, part in parts.items() if sight or name in ("text", "head"))

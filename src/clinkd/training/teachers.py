"""Teachers, which give a student its targets at a batch's answer tokens, and those that run beside the student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from clinkd.model.encode import Batch, template_identity
from clinkd.model.vision import VisionPretrainer
from clinkd.model.vlm import VisionLanguageModel
from clinkd.objectives import HiddenStateTargets, SampledTargets
from clinkd.records import BadInput
from clinkd.training.feature_cache import image_identity
from clinkd.training.fsdp import full_tensor

Learner = VisionLanguageModel | VisionPretrainer
MATCHED = {  # what a teacher has in common with its student, by the names of their identities
    "vocabulary": "vocabulary", "system": "system turn", "frame": "chat template", "codec": "spelling of boxes",
    "step": "step of boxes", "processor": "image processor", "square": "shape of images", "eyes": "image features",
}  # fmt: skip


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


def match_student(
    teacher: VisionLanguageModel, student: VisionLanguageModel, live: Sequence[str] = (), knob: str = "the teacher"
) -> None:
    """Cut the teacher's head to the rows of the student's, where both have more rows than the tokenizer has entries:
    sizes of one family fill it up differently (Qwen2-VL has 151,936 rows in the 2B and 152,064 in the 7B).

    Raises BadInput, after the `knob` that names the teacher, with what else differs of what both must have in common:
    the vocabulary, the chat template, the spelling of boxes and, where it runs beside the student and gets its patches,
    how images are cut. `live`: the settings by which it would not run so; none where it does not.
    """
    ours, theirs = (
        template_identity(model.text) | (image_identity(model.images) if live else {}) for model in (student, teacher)
    )
    for name, what in MATCHED.items():
        if ours.get(name) != theirs.get(name):
            way_out = f", or set {' and '.join(live)}" if live and name in image_identity(teacher.images) else ""
            raise BadInput(f"{knob}: its {what} is not that of the student; take a teacher of its family{way_out}")
    rows, least = len(student.head.weight_VH), len(student.tokenizer)
    if len(teacher.head.weight_VH) > rows >= least:
        teacher.cut_head(rows)


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
        return HiddenStateTargets(self.model(batch, features), self.model.head.weight_VH)

    def shares_vision_with(self, model: Learner) -> bool:
        """Whether tower and merger of both models are equal and frozen."""
        return self.model.shares_vision_with(model.visual, full_tensor)

    def operations(self, batch: Batch, vision: bool) -> int | None:
        """Operations of one forward."""
        parts = self.model.operations(batch)
        if parts is None:
            return None
        return sum(part.forward for name, part in parts.items() if vision or name in ("text", "head"))


class AveragedTeacher(LiveTeacher):
    """The student's own weights, averaged over its steps (mean teacher, Tarvainen and Valpola 2017).

    `model`: a copy of the student as it begins. After each step its weights t become d t + (1 - d) s, with the decay d
    and the student's weights s.
    """

    def __init__(self, model: VisionLanguageModel, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    def follow(self, student: Learner) -> WeightAverage:
        """What averages the weights after each step of this student."""
        means = dict(self.model.named_parameters())
        for name, p in student.named_parameters():
            if p.requires_grad:
                means[name].data = means[name].data.to(p.dtype)
        return WeightAverage({p: means[n] for n, p in student.named_parameters() if p.requires_grad}, self.decay)


class WeightAverage(torch.optim.Optimizer):
    """Averages in place of updates: an optimizer, so that a checkpoint has the averages and a resume goes on with them.

    `means`: the tensor of the average by the parameter that it follows.
    """

    def __init__(self, means: dict[torch.nn.Parameter, torch.nn.Parameter], decay: float) -> None:
        super().__init__([*means], {"lr": 0.0, "peak": 0.0})
        self.means, self.decay = means, decay
        self._share_means()

    def _share_means(self) -> None:
        for parameter, mean in self.means.items():
            self.state[parameter]["mean"] = mean.data

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for parameter, mean in self.means.items():
            mean.lerp_(parameter, 1 - self.decay)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        with torch.no_grad():
            for parameter, mean in self.means.items():
                mean.copy_(self.state[parameter]["mean"])
        self._share_means()

"""Why a loss is NaN or infinite: weights at the start, inputs, the teacher's targets, or else the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clinkd.model.encode import Labelled
from clinkd.model.folders import find_not_finite
from clinkd.records import BadInput
from clinkd.training.step import TrainStep

_INPUTS = {"pixels_TD": "pixels of an image", "features_FH": "stored features of an image"}


def demand_finite_weights(model: nn.Module, title: str) -> None:
    """Raises BadInput, with the weight, for a model that has NaN or infinite ones before it is trained."""
    if name := find_not_finite(model.state_dict()):
        raise BadInput(
            f"{title}: weight {name} holds NaN or infinite numbers before the first step, so no learning rate helps; "
            "train what it begins from anew, or take another model.base"
        )


def explain_loss(step: TrainStep, batches: Sequence[Labelled], is_first: bool) -> str:
    """The cause of a loss that is not finite, as far as it can be told, and the way out. `is_first`: no step was taken
    since the weights were looked at. All processes must ask."""
    cause = next((cause for batch in batches if (cause := _find_cause(step, batch.to(step.model.device)))), None)
    if any(step.all_reduce_sums(cause is not None)):
        return cause or "another process met inputs or targets that are not finite, and names them"
    if is_first:
        return (
            "weights and inputs are finite and no step was taken, so it is not the learning rate: numbers grow too "
            "large inside the model; set fit.precision=float32 if it is not, or take another model.base"
        )
    return "lower fit.learning_rate"


def _find_cause(step: TrainStep, batch: Any) -> str | None:
    inputs = {name: value for name in _INPUTS if isinstance(value := getattr(batch, name, None), Tensor)}
    samples = ", ".join(id for id, _ in getattr(batch, "spans", ())[:3])
    if name := find_not_finite(inputs):
        return f"the {_INPUTS[name]} hold NaN or infinite numbers, among samples {samples} ...; mend or drop it"
    teacher = step.loss.teacher
    if teacher is None or step.sharded:  # a part of a sharded model cannot be asked alone
        return None
    with torch.no_grad(), step.loss.autocast():
        features = step.model.vision_features(batch) if step.loss.shares_vision else None
        targets = teacher.targets(batch, features)
    if find_not_finite(vars(targets)):
        return "the teacher's targets are not finite; train it anew, with a lower teacher.fit.learning_rate"
    return None

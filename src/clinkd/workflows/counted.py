"""Weights of a pretrained base and of what is trained, counted from the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clinkd.config import FitConfig, ModelConfig, RunConfig

FLOAT = 4  # bytes of a weight that learns
FIXED = {"float32": 4, "bf16": 2}  # of any other, and of each on the disk, by `model.dtype`
NF4 = 1 / 2 + (1 + 4 / 256) / 64  # with a byte of scale for 64, and a float of that for 256
# bytes of optimiser state for a weight: in eight bits with a scale for 256; muon's: of matrices
STATES = {"adamw": 2 * FLOAT, "adamw8bit": 2 + 2 * FLOAT / 256, "muon": FLOAT}
# words in the names of weights, in the order in which they are looked for; all others are of the text
NAMED = {"head": ("lm_head",), "merger": ("merger", "projector"), "vision": ("visual.", "vision_tower.")}


def list_trainings(config: RunConfig) -> Iterator[tuple[str, FitConfig]]:
    """The stages that begin from the base or from one another, and how each is trained."""
    for name, teacher in config.list_teachers().items():
        if not config.teachers or config.teachers[name.removeprefix("teacher-")].tune:
            yield name, teacher.fit
    if config.distill:
        yield "distill", config.distill.fit
    if config.reflect:
        yield from ((f"reflect-{number}", config.reflect.fit) for number in range(1, config.reflect.rounds + 1))


class WeightShape(NamedTuple):
    """Of a weight its part of the model, whether it is the table of the text's tokens, and its shape."""

    part: str
    table: bool
    shape: tuple[int, ...]

    @property
    def is_text_matrix(self) -> bool:
        """Whether it is a matrix of the text's blocks, which `model.quantize` is for."""
        return self.part == "text" and len(self.shape) == 2 and not self.table


def read_weights(base: Path) -> list[WeightShape]:
    """The weights of a base or of that of an adapter, from the headers of its files."""
    from clinkd.model.folders import base_of, read_shapes

    weights = []
    for name, shape in read_shapes(base_of(base)).items():
        part = next((part for part, words in NAMED.items() if any(word in name for word in words)), "text")
        weights.append(WeightShape(part, "embed_tokens" in name, shape))
    return weights


def count_by_part(weights: Iterable[WeightShape]) -> dict[str, int]:
    """How many numbers each part of the model has."""
    counts = dict.fromkeys((*NAMED, "text"), 0)
    for weight in weights:
        counts[weight.part] += math.prod(weight.shape)
    return counts


def count_weights(base: Path) -> dict[str, int]:
    """How many weights each part of the model has, from the headers of its files."""
    return count_by_part(read_weights(base))


def fixed_bytes(weights: Sequence[WeightShape], model: ModelConfig) -> float:
    """Bytes in memory of a weight that does not learn, on average over all."""
    whole, total = FIXED[model.dtype], sum(math.prod(w.shape) for w in weights)
    few = sum(math.prod(w.shape) for w in weights if w.is_text_matrix) if model.quantize == "nf4" else 0
    return whole - (whole - NF4) * few / total


def trained_bytes(fit: FitConfig) -> float:
    """Bytes of a trained weight: gradient and optimiser in memory; as many for weight and optimiser in a checkpoint."""
    return FLOAT + STATES[fit.optimizer]


def has_live_teacher(config: RunConfig, stage: str) -> bool:
    """Whether the teacher is asked beside the training of a stage."""
    if stage == "distill":
        return bool(config.distill and config.distill.kd_weight > 0 and config.distill.teacher_as == "live")
    return bool(stage.startswith("reflect") and config.reflect and config.reflect.objective == "distill")


def count_teacher(config: RunConfig, stage: str, weights: Mapping[str, int]) -> int:
    """The weights of a live teacher that are not those of the student, by part: all that either has ever trained. Where
    LoRA made both of one base, there are none."""
    if not has_live_teacher(config, stage):
        return 0
    assert config.teacher and config.distill
    if config.teacher.base:
        return sum(count_weights(config.teacher.base).values())
    fits = [
        config.teacher.fit,
        config.distill.fit,
        *([config.reflect.fit] if stage != "distill" and config.reflect else []),
    ]
    if config.shard:
        return sum(weights.values())
    if stage == "distill" and not config.distill.on_policy and all(fit.lora for fit in fits):
        return 0
    if config.model.quantize == "nf4":  # nothing is ever merged into them
        return 0
    return sum(n for part, n in weights.items() if any(fit.trains(part) for fit in fits))

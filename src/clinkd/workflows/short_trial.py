"""A trial of a deep base by short copies of it: the parts that a trial in small does otherwise.

Time and memory grow evenly with the number of blocks. So each stage is tried on a copy with one block of each kind, and
on one with more of each, in the proportion of the base: the difference is what these take. A step is of one row, whose
images are small: the time of real rows is that of their operations, and what they keep for the backward is counted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from clinkd.config import FitConfig, RunConfig
from clinkd.model.activations import Activations, count_activations
from clinkd.model.shortened import list_block_kinds, shorten
from clinkd.model.vlm import VisionLanguageModel
from clinkd.records import Sample
from clinkd.settings import change_knobs, override
from clinkd.workflows.counted import FIXED, count_weights
from clinkd.workflows.forecast import StageEstimate
from clinkd.workflows.gpus import LongestRow, count_kept_bytes

LARGE = 200_000_000  # weights of a base that is tried by short copies on a CPU; a GPU takes a few steps of it at once
IMAGE_TOKENS = 256  # most of an image in such a trial
STEPS = 2  # of each training: the second one is timed, and needs all memory that later ones do
MORE_BLOCKS = 3  # of the most frequent kind in the longer copy: what one takes is lost among what else differs
TRAINED_ROWS, HELD_ROWS = 2, 1
TRIED_QUESTIONS = 2  # most of a row: the head alone has as many weights as five blocks of two billion
TOKENS = 6  # of answers that are timed
ANSWER_TOKENS = 1  # of those that the stages write: the time of answers is measured apart
TOGETHER = 16  # most that are answered together
WEIGHED_ROWS = 12  # rows whose operations are counted


def list_large_bases(config: RunConfig) -> list[str]:
    """The knobs that name a base of so many weights."""
    bases = {"model.base": config.model.base, "teacher.base": config.teacher and config.teacher.base}
    return [knob for knob, base in bases.items() if base and sum(count_weights(base).values()) >= LARGE]


class Copies(NamedTuple):
    """`configs`: of a run of the shortest copies and of one of the longer copies, or of the run itself where its base
    is tried whole. `blocks`: what is to be told of them. `times`: how many times as much as the longer copies have
    beside the shortest ones the bases have, by weights."""

    configs: list[RunConfig]
    blocks: str = ""
    times: float = 0.0


def write_copies(config: RunConfig, knobs: Sequence[str], folder: Path) -> Copies:
    """Write two short copies of each base that these knobs name. Raises BadInput as `shorten`."""
    if not knobs:
        return Copies([config])
    settings: tuple[list[str], list[str]] = ([], [])
    weights, blocks = [0, 0, 0], [0, 0, 0]  # of shortest copies, longer copies and bases
    for knob in knobs:
        base = config.model.base if knob == "model.base" else config.teacher and config.teacher.base
        assert base
        own = change_knobs(config.model, base=base)
        further = {kind: len(kind.places) - 1 for kind in list_block_kinds(own)}
        share = min(1.0, MORE_BLOCKS / max(1, *further.values()))
        for number, part in enumerate((0.0, share)):
            kept, place = {kind: 1 + round(part * more) for kind, more in further.items()}, folder / f"{knob}-{number}"
            shorten(own, kept, place)
            settings[number].append(f"{knob}={place}")
            weights[number] += sum(count_weights(place).values())
            blocks[number] += sum(kept.values())
        weights[2] += sum(count_weights(base).values())
        blocks[2] += sum(len(kind.places) for kind in further)
    times = (weights[2] - weights[0]) / max(1, weights[1] - weights[0])
    told = f"{blocks[0]} and {blocks[1]} of its {blocks[2]} blocks"
    return Copies([override(config, own_settings) for own_settings in settings], told, times)


def extrapolate(shortest: StageEstimate, longer: StageEstimate, times: float) -> StageEstimate:
    """What a stage takes of the whole base, from what it takes of its two copies. Blocks take no less than nothing,
    whatever chance makes of a small difference."""
    amounts: dict[str, Any] = {}
    for name in ("seconds", "memory_mb", "disk_mb", "passing_mb", "trained_parameters"):
        least = getattr(shortest, name)
        amounts[name] = least + type(least)(max(0, getattr(longer, name) - least) * times)
    return replace(shortest, **amounts, measured_steps=shortest.measured_steps + longer.measured_steps)


# ---- from small rows to real ones -----------------------------------------------------------------------------------


class Scale(NamedTuple):
    """How many times as much the real thing is as what is tried: operations of a row, operations of the tower on an
    image, tokens of an image."""

    row: float = 1.0
    image: float = 1.0
    tokens: float = 1.0

    def of(self, kind: str, loop: str) -> float:
        """Of the time of a loop of a stage."""
        if kind == "see":
            return self.image
        return self.row if loop in ("likelihoods", "stored_samples") else 1.0


def compare_rows(
    model: VisionLanguageModel, tried: Sequence[list[Sample]], real: Sequence[list[Sample]], kept: Activations
) -> Scale:
    """The scale of real rows, with images as large as the run has them, to those tried. Without operations of the
    tower, by tokens alone."""
    images = model.images
    before, cached = (images.processor, images.feature_lookup), images.feature_lookup is not None
    images.feature_lookup = None
    means = []
    for rows, processor in ((tried, images.processor), (real, kept.images.processor)):
        images.forget()
        images.processor = processor
        works = [_count_work(model, row, cached) for row in rows]
        means.append([sum(column) / len(rows) for column in zip(*works, strict=True)])
    images.forget()
    images.processor, images.feature_lookup = before
    return Scale(*(there / here if here else 1.0 for here, there in zip(*means, strict=True)))


def _count_work(model: VisionLanguageModel, row: list[Sample], cached: bool) -> tuple[float, float, float]:
    """Of a row: operations forward (without the tower's where its features are `cached`), those of the tower, and
    tokens of its images."""
    batch = model.encode([row])
    tokens = float(sum(math.prod(model.images.grid(ref)) for ref in row[0].images))
    parts = model.operations(batch)
    if parts is None:
        return float(batch.input_ids_BS.numel()), tokens, tokens
    forward = {name: float(part.forward) for name, part in parts.items()}
    tower = forward["vision"] + forward["merger"]
    return sum(forward.values()) - (tower if cached else 0.0), tower, tokens


@dataclass(frozen=True)
class MoreMemory:
    """The memory of real rows beside that of the rows tried, counted: what a training keeps for the backward, and what
    answers keep. `rows`: the longest of all, and of those tried; `images_a_batch`: of questions that are answered
    together."""

    config: RunConfig
    small: RunConfig
    rows: tuple[LongestRow, LongestRow]
    images_a_batch: float
    kept: Mapping[str, tuple[Activations, Activations]]  # by precision: of real images, and of small ones

    @property
    def any_kept(self) -> tuple[Activations, Activations]:
        """Of any precision: for images, and for answers."""
        return next(iter(self.kept.values()))

    @classmethod
    def of(
        cls, config: RunConfig, small: RunConfig, rows: tuple[LongestRow, LongestRow], images_a_batch: float
    ) -> MoreMemory:
        kept: dict[str, tuple[Activations, Activations]] = {}
        for precision in {fit.precision for fit in config.fits().values()} or {"float32"}:
            real = count_activations(config.model, precision)
            images = copy.copy(real.images)
            images.processor = copy.deepcopy(images.processor)
            images.family.limit_image_tokens(images.processor, small.model.max_image_tokens)
            kept[precision] = real, replace(real, images=images)
        return cls(config, small, rows, images_a_batch, kept)

    def training_mb(self, name: str) -> float:
        """Of the training of these knobs ("distill.fit")."""
        return self._kept(self.config, name, 0) - self._kept(self.small, name, 1)

    def _kept(self, config: RunConfig, name: str, which: int) -> float:
        fit: FitConfig = config.fits()[name]
        return count_kept_bytes(config, fit, self.kept[fit.precision][which], self.rows[which]) / 1e6

    def answers_mb(self, tried_images: int) -> float:
        """Keys and values of all questions, and what a block makes of their images."""
        (real, small), (longest, short), answer = self.any_kept, self.rows, self.config.answer
        questions = min(TOGETHER, answer.batch)
        fronts = self.images_a_batch * real.image_tokens(longest.images)
        tried = tried_images * small.image_tokens(short.images)
        rows = answer.batch * answer.rows * (longest.text_tokens(1) + answer.max_new_tokens)
        rows -= questions * answer.rows * (short.text_tokens(1) + TOKENS)
        patches = (fronts - tried) * real.images.geometry.merge**2
        passing = max((fronts - tried) * real.text.a_block, patches * real.vision.a_block)
        cached = (fronts - tried + rows) * real.cached * FIXED[self.config.model.dtype]
        return max(0.0, passing + cached) / 1e6


def extrapolate_stages(copies: Copies, runs: Sequence[Iterator[StageEstimate]]) -> Iterator[StageEstimate]:
    """The stages of the whole base, from those of its copies, which are tried in turns: what else the machine does
    slows both of them."""
    for shortest, *longer in zip(*runs, strict=True):
        yield extrapolate(shortest, longer[0], copies.times) if longer else shortest

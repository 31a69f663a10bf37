"""What each stage of a run takes of every GPU, counted by part, and the nearest knobs with which it fits.

No weight is read and nothing is trained: weights are counted from the headers of their files, and what a training
keeps for the backward on two blocks (`model/activations.py`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from clinkd.config import FitConfig, LoraConfig, ModelConfig, RunConfig
from clinkd.data.readers.forms import read_samples
from clinkd.data.readers.source import Source
from clinkd.objectives import CHUNK_BYTES
from clinkd.pipeline.machine import share_rows
from clinkd.records import BadInput, ImageRef, Sample, Table
from clinkd.settings import change_knobs, override
from clinkd.workflows.counted import (
    FIXED,
    FLOAT,
    STATES,
    WeightShape,
    count_by_part,
    count_teacher,
    fixed_bytes,
    has_live_teacher,
    list_trainings,
    read_weights,
)

if TYPE_CHECKING:
    from clinkd.model.activations import Activations

PARTS = ("weights", "teacher", "gradients", "optimizer", "activations", "logits", "cache")
GIB = 1 << 30
CONTEXT = 1 * GIB  # of CUDA and its libraries
CHUNKS = 4  # matrices of logits at a time
CHARACTERS = 3  # of a token, at least


@dataclass(frozen=True)
class Gpus:
    """So many equal GPUs, each with so many GB of memory as its name says."""

    number: int
    gb: float

    @classmethod
    def read(cls, words: str) -> Gpus:
        """From "6x40". Raises BadInput for anything else."""
        if not (match := re.fullmatch(r"([1-9][0-9]{0,3})x([0-9]+(?:\.[0-9]+)?)", words.strip())):
            raise BadInput(f"--gpus {words}: NUMBERxGB is wanted, such as 1x80 or 6x40; several with commas between")
        return cls(int(match[1]), float(match[2]))

    def __str__(self) -> str:
        return f"{self.number} x {self.gb:g} GB"


@dataclass(frozen=True)
class StageMemory:
    """The bytes that a stage takes of each GPU, by part (`PARTS`)."""

    stage: str
    parts: Mapping[str, float]

    @property
    def whole(self) -> float:
        return sum(self.parts.values()) + CONTEXT

    def fits(self, gpus: Gpus) -> bool:
        return self.whole <= gpus.gb * GIB


@dataclass(frozen=True)
class LongestRow:
    """Of the training split: the images with the most pixels that a row has, and characters of the questions of the
    longest one with their answers, the longest first."""

    images: tuple[ImageRef, ...]
    characters: tuple[int, ...]

    def text_tokens(self, questions: int) -> float:
        return sum(self.characters[: questions or None]) / CHARACTERS


@dataclass(frozen=True)
class BaseSizes:
    """The weights of a pretrained base, read once."""

    weights: Sequence[WeightShape]

    @cached_property
    def parts(self) -> Mapping[str, int]:
        return count_by_part(self.weights)

    @cached_property
    def whole(self) -> int:
        """Weights in no block: tables, head and merger, which are whole in each process where others are shared out."""
        return sum(math.prod(w.shape) for w in self.weights if w.table or w.part in ("head", "merger"))

    def additions(self, lora: LoraConfig) -> int:
        """How many weights the additions of LoRA have."""
        matrices = (w for w in self.weights if w.part in lora.parts and len(w.shape) == 2 and not w.table)
        return sum(lora.rank * sum(w.shape) for w in matrices)

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def fixed(self, model: ModelConfig) -> float:
        """As `fixed_bytes`."""
        return fixed_bytes(self.weights, model)

    def held(self, share: int, blocks: int) -> float:
        """Weights in one of `share` processes that share them out: two blocks are whole at a time."""
        if share == 1:
            return self.total
        return self.whole + (self.total - self.whole) / share + 2 * self.parts["text"] / blocks


@dataclass
class GpuCount:
    """Counts a run, and the same with other knobs. Raises BadInput for files of base or data that cannot be read."""

    config: RunConfig
    row: LongestRow = field(init=False)
    bases: dict[Path, BaseSizes] = field(init=False)
    kept: dict[tuple[Path, str], Activations] = field(default_factory=dict, init=False)  # by base and precision

    def __post_init__(self) -> None:
        bases = {self.config.model.base, *self.config.teacher_bases().values()}
        self.row = find_longest_row(self.config)
        self.bases = {base: BaseSizes(read_weights(base)) for base in bases if base}

    def worst(self, config: RunConfig, gpus: Gpus) -> StageMemory:
        """The stage that takes most of each GPU."""
        shared, _ = share_rows(config, gpus.number)
        stages = [self._count_training(shared, stage, fit, gpus) for stage, fit in list_trainings(shared)]
        return max([*stages, self._count_answers(shared)], key=lambda stage: stage.whole)

    def nearest(self, gpus: Gpus) -> tuple[list[str], StageMemory] | None:
        """The fewest changes with which every stage fits, and what the worst then takes; None if there are none."""
        changes = list(_list_changes(self.config, gpus))
        for number in range(1, len(changes) + 1):
            for chosen in combinations(changes, number):
                settings = [setting for change in chosen for setting in change]
                try:
                    worst = self.worst(override(self.config, settings), gpus)
                except BadInput:  # knobs that exclude each other
                    continue
                if worst.fits(gpus):
                    return settings, worst
        return None

    def _keep(self, config: RunConfig, base: Path, precision: str) -> Activations:
        from clinkd.model.activations import count_activations

        if (base, precision) not in self.kept:
            self.kept[base, precision] = count_activations(change_knobs(config.model, base=base), precision)
        return self.kept[base, precision]

    def _count_training(self, config: RunConfig, stage: str, fit: FitConfig, gpus: Gpus) -> StageMemory:
        own = config.list_teachers().get(stage)
        base = (own and own.base) or config.model.base
        assert base
        sizes, kept = self.bases[base], self._keep(config, base, fit.precision)
        fixed, blocks, share = sizes.fixed(config.model), kept.text.blocks, gpus.number if config.shard else 1
        trained = 0 if fit.lora else sum(n for part, n in sizes.parts.items() if fit.trains(part))
        held = sizes.held(share, blocks)
        learning = sizes.additions(fit.lora) if fit.lora else trained / sizes.total * held
        # autocast keeps what learns in bfloat16, too, for a forward
        copies = 2 if fit.precision == "bf16" else 0
        parts = {
            "weights": held * fixed + learning * (FLOAT - fixed * (not fit.lora) + copies),
            "teacher": self._count_teacher(config, stage, sizes, share, blocks),
            "gradients": learning * FLOAT,
            "optimizer": (learning if fit.lora else trained / share) * STATES[fit.optimizer],
            "activations": count_kept_bytes(config, fit, kept, self.row, gpus.number),
            "logits": CHUNKS * CHUNK_BYTES["cuda"],
        }
        return StageMemory(stage, parts)

    def _count_teacher(self, config: RunConfig, stage: str, sizes: BaseSizes, share: int, blocks: int) -> float:
        """Bytes of a live teacher in one process."""
        if config.teacher and config.teacher.base and has_live_teacher(config, stage):
            own = self.bases[config.teacher.base]
            return own.held(share, blocks) * own.fixed(config.model)
        number = count_teacher(config, stage, sizes.parts)
        return (sizes.held(share, blocks) if number and share > 1 else number) * sizes.fixed(config.model)

    def _count_answers(self, config: RunConfig) -> StageMemory:
        assert config.model.base
        kept, answer = self._keep(config, config.model.base, "float32"), config.answer
        tokens = kept.image_tokens(self.row.images) + self.row.text_tokens(1) + answer.max_new_tokens
        sizes, number = self.bases[config.model.base], FIXED[config.model.dtype]
        cache = answer.batch * answer.rows * tokens * kept.cached * number
        return StageMemory("answer", {"weights": sizes.total * sizes.fixed(config.model), "cache": cache})


def count_kept_bytes(
    config: RunConfig, fit: FitConfig, kept: Activations, row: LongestRow, processes: int = 1
) -> float:
    """What a micro-batch of such rows keeps for the backward."""
    rows = math.ceil(fit.rows / (fit.accumulate * processes))
    images, recompute = rows * kept.image_tokens(row.images), fit.recompute == "blocks"
    tokens = images + rows * row.text_tokens(fit.questions)
    activations = kept.text.whole(min(tokens, rows * fit.max_tokens or math.inf), recompute)
    if fit.trains("vision") and config.model.vision_features == "live":
        activations += kept.vision.whole(images * kept.images.geometry.merge**2, recompute)
    return activations


def tabulate_gpus(config: RunConfig, words: str) -> Table:
    """The memory of the worst stage by part, on each kind of machine ("1x80,6x40"), and what makes it fit. Raises
    BadInput for other words and for a tiny base."""
    machines = [Gpus.read(word) for word in words.split(",")]
    if config.model.base is None:
        raise BadInput("--gpus: a tiny model takes next to nothing; give model.base")
    counted, rows, notes = GpuCount(config), list[tuple[str, ...]](), list[str]()
    for gpus in machines:
        worst = counted.worst(config, gpus)
        sizes = [f"{worst.parts[part] / GIB:.1f}" if part in worst.parts else "" for part in PARTS]
        rows.append((str(gpus), worst.stage, *sizes, f"{worst.whole / GIB:.1f}", "yes" if worst.fits(gpus) else "no"))
        if worst.fits(gpus):
            continue
        if near := counted.nearest(gpus):
            settings, then = near
            notes.append(f"{gpus}: fits ({then.whole / GIB:.1f}) with {' '.join(f'--set {s}' for s in settings)}")
        else:
            notes.append(f"{gpus}: no knobs make it fit; a smaller base, or a larger machine, is needed")
    notes.append("whole: with 1 GiB of CUDA; rows are counted as if each were the longest")
    columns = ("GPUs", "stage", *PARTS, "whole", "fits")
    return Table("memory of each GPU, GiB", columns, tuple(rows), tuple(notes))


def find_longest_row(config: RunConfig) -> LongestRow:
    """The most pixels and the most text of an image with its questions. Of phantoms, which are not drawn yet: the size
    that they will have, and no text. Raises BadInput as `read_samples`."""
    data, by_images = config.data, dict[tuple[ImageRef, ...], list[Sample]]()
    if data.path is None:
        return LongestRow((ImageRef("", data.phantoms.image_pixels, data.phantoms.image_pixels),), ())
    source = Source(data.path, max_questions=data.max_questions, max_boxes=data.max_boxes, seed=config.seed)
    for sample in read_samples(source, Counter()):
        by_images.setdefault(sample.images, []).append(sample)
    return choose_longest(by_images.values())


def choose_longest(rows: Collection[Sequence[Sample]]) -> LongestRow:
    """The most pixels, and the most text, that a row has."""
    texts = [
        sorted((sum(len(t.question.text) + len(t.answer.text) for t in s.turns) for s in samples), reverse=True)
        for samples in rows
    ]
    images = max((row[0].images for row in rows), key=lambda refs: sum((i.width or 0) * (i.height or 0) for i in refs))
    return LongestRow(images, tuple(max(texts, key=sum)))


def _list_changes(config: RunConfig, gpus: Gpus) -> Iterator[list[str]]:
    """Knobs of all trainings that take less memory, those that change least first."""
    fits = config.fits()

    def everywhere(setting: str) -> list[str]:
        return [f"{name}.{setting}" for name in fits]

    if any(fit.recompute == "nothing" for fit in fits.values()):
        yield everywhere("recompute=blocks")
    if any(fit.accumulate * gpus.number < fit.rows for fit in fits.values()):
        yield [f"{name}.accumulate={max(1, fit.rows // gpus.number)}" for name, fit in fits.items()]
    if gpus.number > 1 and not config.shard:
        yield ["shard=true"]
    if any(fit.precision == "float32" for fit in fits.values()):
        yield everywhere("precision=bf16")
    if config.model.dtype == "float32":
        yield ["model.dtype=bf16"]
    if config.answer.batch > 1:
        yield ["answer.batch=1"]
    if config.distill and config.distill.needs_teacher and config.distill.teacher_as == "live":
        yield ["distill.teacher_as=states"]
    if config.reflect and config.reflect.objective == "distill":
        yield ["reflect.objective=ce"]
    if any(fit.lora is None for fit in fits.values()):
        yield everywhere("lora={}")
    if config.model.quantize == "none":
        yield ["model.quantize=nf4"]

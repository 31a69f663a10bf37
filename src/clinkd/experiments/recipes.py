"""The recipes: whole runs, one function each."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from clinkd.config import (
    EYES_WHEEL,
    NAMED_POSITIONS,
    AnswerConfig,
    ClipConfig,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    FitConfig,
    LoraConfig,
    ModelConfig,
    PhantomConfig,
    PretrainConfig,
    ReflectConfig,
    RunConfig,
    SelectConfig,
    TeacherConfig,
    TinyConfig,
)
from clinkd.settings import change_knobs

SMALL_STUDY_STEPS = 60  # of each training of `real`


def _quick(epochs: float, rows: int = 24, questions: int = 0) -> FitConfig:
    """A training from scratch for a tiny model, in minutes (LOG.md)."""
    return FitConfig(
        epochs=epochs, rows=rows, questions=questions, optimizer="muon", muon_learning_rate=0.02, learning_rate=0.003,
        warmup=0.02,
    )  # fmt: skip


def demo() -> RunConfig:
    """The whole method (Table 1, row "ClinKD") on phantoms with a tiny Qwen2-VL: no download, minutes on two cores."""
    pretrain = PretrainConfig(vision=_quick(1.2), pairs=_quick(2.0, rows=48))
    return RunConfig(
        model=ModelConfig(tiny=TinyConfig(pretrain=pretrain)),
        teacher=TeacherConfig(fit=_quick(4.0, questions=3)),
        distill=DistillConfig(fit=_quick(1.2, questions=3)),
        reflect=ReflectConfig(review_share=0.1, fit=_quick(0.6, questions=3)),
        # chosen on the validation split (LOG.md): more steps on smaller pictures made the best scorer
        select=SelectConfig(clip=ClipConfig(grounding="both", epochs=3.0, image_pixels=32)),
    )


def real(data: Path | None = None) -> RunConfig:
    """The whole method (Table 1, row "ClinKD") on real images with a tiny Qwen2-VL and a small budget.

    Where the extra `eyes` is installed, the model gets image features of photographs in the place of pixels, and its
    tower is fixed after its own pretraining. Without, it must learn to see from these images alone, which shows that
    nothing between the files and the report is special to phantoms, and is too little to score well.
    RC is not computed: boxes and questions hold no captions. However few the images, each training takes a minimum of
    steps: on the validation questions of 50 images 60 gave more right boxes than no minimum. Each image is seen in
    eight variants, so an epoch is eight passes over the images.
    """
    return _real_by_eyes(data) if has_eyes() else _real_by_pixels(data)


def has_eyes() -> bool:
    """Whether the package with the weights of eyes is installed."""
    try:
        return bool(metadata.version(EYES_WHEEL))
    except metadata.PackageNotFoundError:
        return False


def describe_missing(config: RunConfig) -> str | None:
    """What a run goes without because an extra is not installed, in one line."""
    if config.data.path is None or config.model.base is not None or config.model.tiny.eyes or has_eyes():
        return None
    return (
        "no eyes (pip install 'clinkd[eyes]'): the tiny model learns to see from these images alone, which so far "
        "scored below answers that never saw them"
    )


def _small_study(epochs: float, questions: int = 4) -> FitConfig:
    return change_knobs(_quick(epochs, questions=questions), min_steps=SMALL_STUDY_STEPS)


def _real_by_eyes(data: Path | None) -> RunConfig:
    def fit(epochs: float) -> FitConfig:
        return change_knobs(_small_study(epochs), freeze=("vision", "merger"))

    # few and gentle steps: the tower starts as the identity, and loses what the eyes see if it learns long (LOG.md)
    vision = change_knobs(_small_study(0.25, questions=0), optimizer="adamw", learning_rate=0.001)
    pretrain = PretrainConfig(vision=vision, pairs=fit(4.5))
    tiny = TinyConfig(image_pixels=128, merge=1, eyes=True, pretrain=pretrain)
    study = _study(data, ModelConfig(vision_features="cached", tiny=tiny), fit, ClipConfig(eyes=True))
    return change_knobs(study, evaluate=EvaluateConfig(probe=True))


def _real_by_pixels(data: Path | None) -> RunConfig:
    pretrain = PretrainConfig(vision=_small_study(3, questions=0), pairs=_small_study(4.5, questions=0))
    model = ModelConfig(tiny=TinyConfig(image_pixels=96, pretrain=pretrain))
    return _study(data, model, _small_study, ClipConfig(epochs=1.0))


def _study(data: Path | None, model: ModelConfig, fit: Callable[[float], FitConfig], clip: ClipConfig) -> RunConfig:
    """What both ways of `real` have in common. `fit`: a training of so many epochs."""
    return RunConfig(
        name="real",
        data=DataConfig(path=data, variants=8, absent=0.1),
        model=change_knobs(model, box_bins=48),  # 16 locations an axis are too coarse for small boxes (LOG.md)
        teacher=TeacherConfig(fit=fit(1.5)),
        distill=DistillConfig(fit=fit(1.5)),
        reflect=ReflectConfig(review_share=0.25, fit=fit(0.5)),
        select=SelectConfig(clip=clip),
    )


def laptop(data: Path | None = None, base: Path | None = None) -> RunConfig:
    """The paper's method for a pretrained Qwen2-VL without a GPU: LoRA, vision fixed, at most 256 image tokens.

    Vision features and teacher outputs are computed once and read from the disk. Positions and their layout stay those
    of Qwen2-VL: a small base from stock positions found fewer boxes once it was loaded with tied ones (mean IoU 60.6
    before, 43.4 after; one in another layout under 3; LOG.md), and low-rank additions are little to learn that anew.
    `model.positions=tied` is the paper's.
    """
    fit = FitConfig(
        rows=8,
        accumulate=8,
        questions=4,
        learning_rate=1e-4,  # of additions alone: five times that of all weights
        freeze=("vision", "merger"),
        lora=LoraConfig(),
        recompute="blocks",
    )
    return RunConfig(
        name="laptop",
        data=DataConfig(path=data),
        model=ModelConfig(
            base=base,
            positions=NAMED_POSITIONS["native"],
            layout="sections",
            boxes="qwen2-vl",
            max_image_tokens=256,
            vision_features="cached",
        ),
        teacher=TeacherConfig(fit=fit),
        distill=DistillConfig(fit=fit, teacher_as="states"),
        reflect=ReflectConfig(review_share=0.25, fit=change_knobs(fit, epochs=1.0)),
        answer=AnswerConfig(max_new_tokens=128, batch=4),
    )


def paper(data: Path | None = None, base: Path | None = None) -> RunConfig:
    """Table 1, row "ClinKD" (VG 67.51, ROC 82.35, RC 70.56, MIA 65.69), as literally as the paper can be read.

    AdamW, 2e-5, cosine; two epochs of distillation, then two rounds of review and one epoch; positions tied with
    alpha 2 and halves; a = 0.5; three beams. Ours, where the paper is silent: T = 2, 48 images a step, the teacher's
    two epochs, products in bfloat16, the offline corrector in the place of GPT-4o (reflect.corrector=chat is for
    that). It needs the extra `embeddings`, and a CLIP: a tiny one of our own, which `trust=always` would follow,
    changed most answers at random.

    `halves` gives each axis a ladder of frequencies of its own, so nearly every frequency moves by which a pretrained
    text knows the order of its words. A run tells the number as it begins; whether its tuning mends it is not known.
    """
    fit = FitConfig(epochs=2, rows=48, accumulate=8, learning_rate=2e-5, precision="bf16", recompute="blocks")
    return RunConfig(
        name="paper",
        data=DataConfig(path=data, test_share=0.111),
        model=ModelConfig(base=base, positions=NAMED_POSITIONS["tied"], layout="halves", boxes="qwen2-vl", square=True),
        teacher=TeacherConfig(share=0.111, fit=fit),
        distill=DistillConfig(kd_weight=0.5, temperature=2, targets="truth", fit=fit),
        reflect=ReflectConfig(
            rounds=2,
            review_share=1,
            similarity="embedding",
            threshold=0.8,
            box_iou=0,
            conflicts=False,
            objective="ce",
            fit=change_knobs(fit, epochs=1.0),
        ),
        answer=AnswerConfig(beams=3, candidates=3, max_new_tokens=256, batch=16),
        select=SelectConfig(scorer="clip", trust="always", clip=ClipConfig(grounding="text")),
    )


def modern(data: Path | None = None, base: Path | None = None) -> RunConfig:
    """For Qwen3-VL (dense: 2B, 4B, 8B) on one GPU, with what published work at this scale supports. Not tested by us.

    Low-rank additions to every matrix of the text, at some ten times the rate of a full tuning: they learn less than
    that and forget less (arXiv 2405.09673), and little less where data are few (Schulman et al. 2025, "LoRA Without
    Regret"). Vision tower and merger are fixed and see each image once. Positions, their layout and the spelling of
    boxes stay those of the base: a gap like the tied one cost a pretrained model 2.7 points of grounding and 13 of
    reading documents (arXiv 2510.23095).

    Left out is what nothing published at this scale supports: a teacher of the student's size, rewritten answers, and a
    choice among beams without a CLIP that knows medicine. In a small model such a teacher cost 3.5 points
    (docs/RESULTS.md). `laptop` and `paper` have all of it.
    """
    fit = FitConfig(
        epochs=3, rows=16, accumulate=4, questions=4, learning_rate=2e-4, weight_decay=0.0, freeze=("vision", "merger"),
        lora=LoraConfig(rank=32, alpha=64), precision="bf16", recompute="blocks",
    )  # fmt: skip
    return RunConfig(
        name="modern",
        data=DataConfig(path=data),
        model=ModelConfig(
            base=base, positions=NAMED_POSITIONS["native"], layout="interleaved", boxes="qwen3-vl", square=False,
            vision_features="cached", dtype="bf16",
        ),
        teacher=None,
        distill=DistillConfig(kd_weight=0, fit=fit),
        reflect=None,
        answer=AnswerConfig(beams=1, candidates=1, max_new_tokens=256, batch=16),
        select=SelectConfig(scorer="first"),
    )  # fmt: skip


def small() -> RunConfig:
    """One structure an image, one question for its box: under a minute a run, to compare many seeds (LOG.md)."""
    phantoms = PhantomConfig(
        train_images=960, validation_images=8, test_images=400, structures=1, image_pixels=64, tasks=("VG",)
    )
    tiny = TinyConfig(
        hidden=48, layers=2, mlp=128, vision_hidden=48, pretrain=PretrainConfig(vision=_quick(2.0), pairs=None)
    )
    return RunConfig(
        name="small",
        data=DataConfig(phantoms=phantoms, workers=1),
        model=ModelConfig(box_bins=8, tiny=tiny),
        teacher=TeacherConfig(fit=_quick(10.0)),
        distill=DistillConfig(fit=_quick(8.0)),
        reflect=None,
        answer=AnswerConfig(beams=1, candidates=1, max_new_tokens=24),
        select=SelectConfig(scorer="first"),
        evaluate=EvaluateConfig(replicates=200, gallery=8),
    )

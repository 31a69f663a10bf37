"""The runs we stand behind, one function each; the ablation rows change two or three fields of another run.

`EXPERIMENTS` is what `clinkd run NAME` and `clinkd recipe NAME` know; `REQUIRED` names what each cannot guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path

from clinkd.config import (
    AnswerConfig,
    ClipConfig,
    DataConfig,
    DistillConfig,
    FitConfig,
    LoraConfig,
    ModelConfig,
    PretrainConfig,
    ReflectConfig,
    RunConfig,
    SelectConfig,
    TeacherConfig,
    TinyConfig,
    override,
)
from clinkd.records import BadInput


def _quick(epochs: float, rows: int = 24, questions: int = 0) -> FitConfig:
    """How a tiny model learns from scratch in minutes (LOG.md)."""
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
        # what it is shown was chosen on the validation split (LOG.md); more steps on smaller pictures taught it most
        select=SelectConfig(clip=ClipConfig(grounding="both", epochs=3.0, image_pixels=32)),
    )


def real(data: Path | None = None) -> RunConfig:
    """The whole method (Table 1, row "ClinKD") on real images with a tiny Qwen2-VL and a small budget.

    It shows that nothing between the files and the report is special to phantoms; it is too small to score well.
    RC is not computed: boxes and questions hold no captions.
    """
    pretrain = PretrainConfig(vision=_quick(20), pairs=_quick(24))
    return RunConfig(
        name="real",
        data=DataConfig(path=data),
        # 16 locations an axis are too coarse for the small boxes of real images (LOG.md)
        model=ModelConfig(box_bins=48, tiny=TinyConfig(image_pixels=96, pretrain=pretrain)),
        teacher=TeacherConfig(fit=_quick(6)),
        distill=DistillConfig(fit=_quick(6)),
        reflect=ReflectConfig(review_share=0.25, fit=_quick(2)),
    )


def laptop(data: Path | None = None, base: Path | None = None) -> RunConfig:
    """The paper's method for a pretrained Qwen2-VL without a GPU: LoRA, vision fixed, at most 256 image tokens.

    What the vision tower sees and what the teacher thinks is made once and read from the disk.
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
        model=ModelConfig(base=base, layout="interleaved", boxes="qwen2-vl", max_image_tokens=256, sight="stored"),
        teacher=TeacherConfig(fit=fit),
        distill=DistillConfig(fit=fit, teacher_as="states"),
        reflect=ReflectConfig(review_share=0.25, fit=fit.model_copy(update={"epochs": 1.0})),
        answer=AnswerConfig(max_new_tokens=128, batch=4),
    )


def paper(data: Path | None = None, base: Path | None = None) -> RunConfig:
    """Table 1, row "ClinKD" (VG 67.51, ROC 82.35, RC 70.56, MIA 65.69), as literally as the paper can be read.

    AdamW, 2e-5, cosine; two epochs of distillation, then two rounds of review and one epoch; positions tied with
    alpha 2 and halves; a = 0.5; three beams. Ours, where the paper is silent: T = 2, 48 images a step, the teacher's
    two epochs, the offline corrector in the place of GPT-4o (reflect.corrector=chat is for that). It needs the extra
    `embeddings`.
    """
    fit = FitConfig(epochs=2, rows=48, accumulate=8, learning_rate=2e-5)
    return RunConfig(
        name="paper",
        data=DataConfig(path=data, test_share=0.111),
        model=ModelConfig(base=base, positions="tied", alpha=2, layout="halves", boxes="qwen2-vl", square=True),
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
            fit=fit.model_copy(update={"epochs": 1.0}),
        ),
        answer=AnswerConfig(beams=3, candidates=3, max_new_tokens=256, batch=16),
        select=SelectConfig(scorer="clip", trust="always", clip=ClipConfig(grounding="text")),
    )


def tuned(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "Qwen2-VL-Med-GRIT-270k": stock positions, plain tuning, first beam.

    It makes as many passes over the training data as distillation and reflection together, so that rows compare.
    """
    base = base or demo()
    passes = base.distill.fit.epochs if base.distill else 0.0
    passes += base.reflect.rounds * base.reflect.fit.epochs if base.reflect else 0.0
    fit = base.distill.fit if base.distill else FitConfig()
    stock = base.model.model_copy(update={"positions": "mrope", "layout": "sections"})
    return base.model_copy(
        update={
            "name": "tuned",
            "model": stock,
            "teacher": None,
            "distill": DistillConfig(kd_weight=0, fit=fit.model_copy(update={"epochs": passes})),
            "reflect": None,
            "select": base.select.model_copy(update={"scorer": "first"}),
        }
    )


def positions(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "BiRD+MCG-RoPE": plain tuning with the tied positions."""
    base = base or demo()
    return tuned(base).model_copy(update={"name": "positions", "model": base.model})


def distilled(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "BiRD+Pseudo-Labels-KD": stock positions, a teacher and its pseudo-labels, first beam."""
    base = base or demo()
    plain = tuned(base)
    assert plain.distill is not None
    kd = base.distill or DistillConfig()
    return plain.model_copy(
        update={
            "name": "distilled",
            "teacher": base.teacher or TeacherConfig(),
            "distill": kd.model_copy(update={"targets": "pseudo", "fit": plain.distill.fit}),
        }
    )


def reflected(base: RunConfig | None = None) -> RunConfig:
    """Plain tuning, then reflective correction, with stock positions; the paper has no row for it."""
    base = base or demo()
    plain = tuned(base)
    assert plain.distill is not None
    fit = plain.distill.fit.model_copy(update={"epochs": base.distill.fit.epochs if base.distill else 1.0})
    distill = plain.distill.model_copy(update={"fit": fit})
    return plain.model_copy(
        update={"name": "reflected", "distill": distill, "reflect": base.reflect or ReflectConfig()}
    )


def selected(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "BiRD+SASG": plain tuning, the answer chosen among three beams by a CLIP."""
    return override(tuned(base), ["name=selected", "select.scorer=clip", "select.trust=always"])


EXPERIMENTS: Mapping[str, Callable[[], RunConfig]] = {
    "demo": demo,
    "real": real,
    "laptop": laptop,
    "paper": paper,
    "tuned": tuned,
    "positions": positions,
    "distilled": distilled,
    "reflected": reflected,
    "selected": selected,
}

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "real": ("data.path",),
    "laptop": ("data.path", "model.base"),
    "paper": ("data.path", "model.base"),
}


def check_given(name: str, config: RunConfig) -> None:
    """Raise BadInput where a run of the experiment `name` lacks a folder that only the user knows."""
    for knob in REQUIRED.get(name, ()):
        if reduce(getattr, knob.split("."), config) is None:
            raise BadInput(f"{knob}: `{name}` needs a folder here; give it with --set {knob}=FOLDER")

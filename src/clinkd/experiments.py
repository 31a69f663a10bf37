"""The experiments, one function each; the rows of an ablation change two or three fields of another run.

`EXPERIMENTS` holds the names for `clinkd run` and `clinkd recipe`; `REQUIRED` the knobs that the user must give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from clinkd.config import (
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
from clinkd.records import BadInput
from clinkd.settings import change_knobs, override

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

    It shows that nothing between the files and the report is special to phantoms; it is too small to score well.
    RC is not computed: boxes and questions hold no captions. However few the images, each training takes a minimum of
    steps: on the validation questions of 50 images 60 gave more right boxes than no minimum.
    """

    def fit(epochs: float) -> FitConfig:
        return change_knobs(_quick(epochs), min_steps=SMALL_STUDY_STEPS)

    pretrain = PretrainConfig(vision=fit(20), pairs=fit(24))
    return RunConfig(
        name="real",
        data=DataConfig(path=data),
        # 16 locations an axis are too coarse for the small boxes of real images (LOG.md)
        model=ModelConfig(box_bins=48, tiny=TinyConfig(image_pixels=96, pretrain=pretrain)),
        teacher=TeacherConfig(fit=fit(6)),
        distill=DistillConfig(fit=fit(6)),
        reflect=ReflectConfig(review_share=0.25, fit=fit(2)),
    )


def laptop(data: Path | None = None, base: Path | None = None) -> RunConfig:
    """The paper's method for a pretrained Qwen2-VL without a GPU: LoRA, vision fixed, at most 256 image tokens.

    Vision features and teacher outputs are computed once and read from the disk.
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
            base=base, layout="interleaved", boxes="qwen2-vl", max_image_tokens=256, vision_features="cached"
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
    two epochs, the offline corrector in the place of GPT-4o (reflect.corrector=chat is for that). It needs the extra
    `embeddings`.
    """
    fit = FitConfig(epochs=2, rows=48, accumulate=8, learning_rate=2e-5)
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


# -- the rows of the ablation: each is BiRD-like with one change ------------------------------------------------------


def bird(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "BiRD" (BiRD-like): sequential positions, plain tuning, the first beam.

    It makes as many passes over the training data as distillation and reflection together, for a fair comparison.
    """
    base = base or demo()
    fit = change_knobs(base.distill.fit if base.distill else FitConfig(), epochs=passes(base))
    return change_knobs(
        base,
        name="bird",
        model=change_knobs(base.model, positions="sequential", layout="sections"),
        teacher=None,
        distill=DistillConfig(kd_weight=0, fit=fit),
        reflect=None,
        select=change_knobs(base.select, scorer="first"),
    )


def passes(base: RunConfig) -> float:
    """Count the passes over the training data of a run after its base, without those of the teacher."""
    distillation = base.distill.fit.epochs if base.distill else 0.0
    return distillation + (base.reflect.rounds * base.reflect.fit.epochs if base.reflect else 0.0)


def tuned(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "Qwen2-VL-Med-GRIT-270k": stock M-RoPE, plain tuning, the first beam."""
    return override(bird(base), ["name=tuned", "model.positions=mrope"])


def positions(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "BiRD+MCG-RoPE": plain tuning with the positions of the whole method."""
    base = base or demo()
    return change_knobs(bird(base), name="positions", model=base.model)


def distilled(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "BiRD+Pseudo-Labels-KD": the teacher into a second copy, as many steps as plain tuning."""
    base = base or demo()
    plain = bird(base)
    assert plain.distill is not None
    distill = change_knobs(base.distill or DistillConfig(), fit=plain.distill.fit)
    return change_knobs(plain, name="distilled", teacher=base.teacher or TeacherConfig(), distill=distill)


def selected(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "BiRD+SASG": plain tuning, the answer chosen among the beams as the whole method does."""
    base = base or demo()
    return change_knobs(bird(base), name="selected", select=base.select)


def reflected(base: RunConfig | None = None) -> RunConfig:
    """BiRD-like, then reflective correction, as many steps as plain tuning; the paper has no row for it."""
    base = base or demo()
    reflect = base.reflect or ReflectConfig()
    rest = max(0.1, passes(base) - reflect.rounds * reflect.fit.epochs)
    return change_knobs(override(bird(base), [f"distill.fit.epochs={rest}"]), name="reflected", reflect=reflect)


def matched(base: RunConfig | None = None) -> RunConfig:
    """Control: distillation with no more compute than plain tuning, the teacher's training counted.

    In forward passes over the training data: a trained pass is three, a teacher's pass beside it one more. So of the
    3 P of plain tuning the teacher takes 3 share E, and (3 P - 3 share E) / 4 passes are left for the student.
    """
    base = base or demo()
    kd = distilled(base)
    assert kd.teacher is not None
    left = (3 * passes(base) - 3 * kd.teacher.share * kd.teacher.fit.epochs) / 4
    if left <= 0:
        raise BadInput(
            f"teacher.fit.epochs={kd.teacher.fit.epochs:g}: the teacher alone takes the compute of plain tuning; "
            "lower it for the row of equal compute"
        )
    return override(kd, ["name=matched", f"distill.fit.epochs={round(left, 4)}"])


def drawn(base: RunConfig | None = None) -> RunConfig:
    """Control: the whole method with as many rewrites, but of answers chosen at random instead of the wrong ones."""
    base = base or demo()
    return override(base, ["name=drawn", "reflect.rewrite=random", "reflect.recheck=0"])


def unreflected(base: RunConfig | None = None) -> RunConfig:
    """The whole method without reflection: as many steps, all of them of distillation."""
    base = base or demo()
    assert base.distill is not None, "a method without distillation has no such row"
    return override(base, ["name=unreflected", f"distill.fit.epochs={passes(base)}", "reflect=null"])


def whole(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "ClinKD": the run itself."""
    return change_knobs(base or demo(), name="whole")


class AblationRow(NamedTuple):
    """A row of an ablation: how to make it from a run, and the row that it is compared with (`against`)."""

    title: str
    change: str  # from the row `against`
    make: Callable[[RunConfig], RunConfig]
    against: str | None
    printed: str | None = None  # the row of the paper's Table 2


ROWS: Mapping[str, AblationRow] = {
    "bird": AblationRow("BiRD-like", "sequential positions, plain tuning, first beam", bird, None, "BiRD"),
    "tuned": AblationRow("Qwen2-VL, tuned", "M-RoPE", tuned, "bird", "Qwen2-VL, tuned"),
    "positions": AblationRow("+ MCG-RoPE", "tied positions", positions, "bird", "BiRD + MCG-RoPE"),
    "distilled": AblationRow("+ KD", "teacher and distillation", distilled, "bird", "BiRD + pseudo-label KD"),
    "matched": AblationRow("+ KD, equal compute", "the same, with no more compute than plain tuning", matched, "bird"),
    "selected": AblationRow("+ SASG", "the choice among beams", selected, "bird", "BiRD + SASG"),
    "whole": AblationRow("ClinKD", "all of these, and reflection", whole, "bird", "ClinKD"),
    "drawn": AblationRow("ClinKD, rewrites at random", "as many rewrites, of answers drawn at random", drawn, "whole"),
    "unreflected": AblationRow("ClinKD, no reflection", "distillation in its place", unreflected, "whole"),
    "reflected": AblationRow("+ reflection", "two rounds of review", reflected, "bird"),
}
TABLE_2 = ("bird", "tuned", "positions", "distilled", "selected", "whole", "matched", "drawn")


class Sweep(NamedTuple):
    """Values of one knob, on one row."""

    title: str
    row: str
    knob: str
    values: tuple[Any, ...]


SWEEPS: Mapping[str, Sweep] = {
    "alpha": Sweep("Step between patches", "positions", "model.positions.stride", (1, 2, 4)),
    "weight": Sweep("Weight of the KL term, a", "distilled", "distill.kd_weight", (0.25, 0.5, 1, 2)),
    "temperature": Sweep("Temperature, T", "distilled", "distill.temperature", (1, 2, 4)),
    "share": Sweep("The teacher's share of the data", "distilled", "teacher.share", (0.05, 0.111, 0.25)),
    "targets": Sweep("Labels of the CE term", "distilled", "distill.targets", ("truth", "pseudo", "mixed")),
    "trust": Sweep("Where the choice may decide", "selected", "select.trust", ("validated", "always")),
}


_MAKERS: tuple[Callable[[], RunConfig], ...] = (
    demo, real, laptop, paper, small, bird, tuned, positions, distilled, selected, reflected, matched, drawn,
    unreflected,
)  # fmt: skip
EXPERIMENTS: Mapping[str, Callable[[], RunConfig]] = {make.__name__: make for make in _MAKERS}

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "real": ("data.path",),
    "laptop": ("data.path", "model.base"),
    "paper": ("data.path", "model.base"),
}


def require_folders(name: str, config: RunConfig) -> None:
    """Raise BadInput where a run of the experiment `name` lacks a folder that only the user knows."""
    for knob in REQUIRED.get(name, ()):
        if reduce(getattr, knob.split("."), config) is None:
            raise BadInput(f"{knob}: `{name}` needs a folder here; give it with --set {knob}=FOLDER")

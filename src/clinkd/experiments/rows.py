"""The rows of an ablation: each changes two or three fields of another run. The paper's Table 2, and sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from clinkd.config import (
    DistillConfig,
    FitConfig,
    GeneralConfig,
    PretrainConfig,
    ReflectConfig,
    RunConfig,
    TeacherConfig,
)
from clinkd.experiments.recipes import demo
from clinkd.records import BadInput
from clinkd.settings import change_knobs, override


def bird(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "BiRD" (BiRD-like): sequential positions, plain tuning, the first beam.

    It makes as many passes over the training data as distillation and reflection together, for a fair comparison.
    """
    base = base or demo()
    return change_knobs(
        base,
        name="bird",
        model=change_knobs(base.model, positions="sequential", layout="sections"),
        teacher=None,
        teachers={},
        distill=DistillConfig(kd_weight=0, fit=_join_fits(base)),
        reflect=None,
        select=change_knobs(base.select, scorer="first"),
    )


def _join_fits(base: RunConfig) -> FitConfig:
    """One training with the passes of distillation and all rounds, and at least their least steps."""
    fit, reflect = base.distill.fit if base.distill else FitConfig(), base.reflect
    least = (fit.min_steps if base.distill else 0) + (reflect.rounds * reflect.fit.min_steps if reflect else 0)
    return change_knobs(fit, epochs=passes(base), min_steps=least)


def passes(base: RunConfig) -> float:
    """Count the passes over the training data of a run after its base, without those of the teacher."""
    distillation = base.distill.fit.epochs if base.distill else 0.0
    return distillation + (base.reflect.rounds * base.reflect.fit.epochs if base.reflect else 0.0)


def compute(run: RunConfig) -> float:
    """Count the forward passes over the training questions that a run takes after its base.

    A trained pass is three; one beside a live teacher, and one of an averaged teacher, four. Storing a teacher's
    outputs, and answers that are trained on or reviewed, take one. All models count as if they had the same size.
    """
    forwards = 3 * run.teacher.share * run.teacher.fit.epochs if run.teacher else 0.0
    if distill := run.distill:
        stored = distill.kd_weight > 0 and distill.teacher_as in ("states", "draws")
        forwards += trained_share(distill) * (distill.fit.epochs * forwards_a_pass(distill) + stored)
        known = distill.labelled or (run.teacher.share if run.teacher else 0.0)
        forwards += {"truth": 0.0, "pseudo": 1.0, "mixed": distill.pseudo_share}[distill.targets] * (1 - known)
        forwards += distill.on_policy * distill.phases
    if reflect := run.reflect:
        trained = 4 if reflect.objective == "distill" else 3
        forwards += reflect.rounds * (trained * reflect.fit.epochs + reflect.review_share)
    return forwards


def trained_share(distill: DistillConfig) -> float:
    """The share of the training questions that the student learns from."""
    return distill.labelled if distill.labelled and distill.targets == "truth" else 1.0


def forwards_a_pass(distill: DistillConfig) -> int:
    """The forward passes that a pass of the student costs, its teacher's among them."""
    return 4 if distill.kd_weight > 0 and distill.teacher_as in ("live", "average") else 3


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
    teacher = base.teacher or TeacherConfig()
    return change_knobs(plain, name="distilled", teacher=teacher, teachers=base.teachers, distill=distill)


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
    """Control: distillation with no more compute than plain tuning, all that the teacher does counted (`compute`).

    With the paper's teacher, live and asked for no pseudo-labels, 3 share E of the 3 P forward passes of plain tuning
    are its training, and (3 P - 3 share E) / 4 passes are left for the student.
    """
    base = base or demo()
    kd = distilled(base)
    assert kd.teacher and kd.distill
    a_pass = trained_share(kd.distill) * forwards_a_pass(kd.distill)
    left = (compute(bird(base)) - compute(kd)) / a_pass + kd.distill.fit.epochs
    if left <= 0:
        raise BadInput(
            f"teacher.fit.epochs={kd.teacher.fit.epochs:g}: the teacher alone takes the compute of plain tuning; "
            "lower it for the row of equal compute"
        )
    return override(kd, ["name=matched", f"distill.fit.epochs={round(left, 4)}"])


def drawn(base: RunConfig | None = None) -> RunConfig:
    """Control: the whole method with as many rewrites, but of answers chosen at random instead of the wrong ones."""
    base = base or demo()
    return override(base, ["name=drawn", "reflect.rewrite=random"])


def unreflected(base: RunConfig | None = None) -> RunConfig:
    """The whole method without reflection: its rounds go on with distillation on the truths, step for step."""
    base = base or demo()
    one_teacher = base.teacher and not base.teachers and base.distill and base.distill.kd_weight > 0
    objective = "distill" if one_teacher else "ce"
    return change_knobs(base, name="unreflected", reflect=train_on_truths(base.reflect, objective))


def train_on_truths(reflect: ReflectConfig | None, objective: str) -> ReflectConfig | None:
    """The same rounds, but nothing is rewritten: exactly as many steps, of the same rows and schedule, on truths."""
    if reflect is None:
        return None
    return change_knobs(reflect, rewrite="none", corrector="offline", chat=None, objective=objective)


def whole(base: RunConfig | None = None) -> RunConfig:
    """Table 2, row "ClinKD": the run itself."""
    return change_knobs(base or demo(), name="whole")


def start_from_drawings(run: RunConfig, images: int, pairs: FitConfig) -> RunConfig:
    """The run on a base that learned from so many drawings of plain things, or from those that the run names itself;
    `pairs`: how the whole model learns them."""
    tiny, phantoms = run.model.tiny, run.data.phantoms
    known = tiny.pretrain or PretrainConfig()
    general = known.general or GeneralConfig(
        images=images, structures=phantoms.structures, image_pixels=phantoms.image_pixels
    )
    pretrain = change_knobs(known, pairs=pairs, general=general)
    return change_knobs(run, model=change_knobs(run.model, tiny=change_knobs(tiny, pretrain=pretrain)))


class AblationRow(NamedTuple):
    """A row of an ablation: how to make it from a run, and the row that it is compared with (`against`)."""

    title: str
    change: str  # from the row `against`
    make: Callable[[RunConfig], RunConfig]
    against: str | None
    printed: str | None = None  # the row of the paper's Table 2


BASE_ROWS: Mapping[str, AblationRow] = {
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

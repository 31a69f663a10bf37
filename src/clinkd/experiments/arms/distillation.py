"""Arms of a claim: distillation where it can win.

All arms begin from one base that has seen drawings of plain things and no medicine (`model.tiny.pretrain.general`): the
usual tiny base learns from the boxes and names of all training images, so that no truth could be hidden. There are POOL
times as many images as in the run, of which few are labelled. Where an arm does not say otherwise, its student takes as
many optimiser steps as the run's own distillation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from clinkd.config import DistillConfig, FitConfig, PretrainConfig, RunConfig, TeacherConfig
from clinkd.experiments.rows import AblationRow, compute, forwards_a_pass, start_from_drawings, trained_share
from clinkd.settings import change_knobs, override

SHARE = 0.11  # of the training images, labelled; the paper's teacher has 11.1 %
SHARES = {"1": 0.01, "3": 0.03, "11": SHARE, "33": 0.33}
POOL = 6  # of the run's training images: with 11 % of them alone plain tuning stays below blind answers (LOG.md)
TEACHER_STEPS = 0.5  # of a teacher, in those of the student, whatever its share


def _begin(run: RunConfig) -> RunConfig:
    """The run on a base of plain things, without reflection, by its first beam."""
    known = run.model.tiny.pretrain or PretrainConfig()
    pairs = known.pairs or (run.distill.fit if run.distill else FitConfig())
    number = run.data.phantoms.train_images
    begun = start_from_drawings(run, 4 * number, change_knobs(pairs, epochs=2.0))
    begun = override(begun, [f"data.phantoms.train_images={POOL * number}"])
    return change_knobs(begun, reflect=None, select=change_knobs(run.select, scorer="first"))


def _epochs(run: RunConfig, share: float) -> float:
    """The passes over a share of the training images that take as many steps as the run's distillation over all."""
    return round((run.distill.fit if run.distill else FitConfig()).epochs / share / POOL, 4)


def _distill(run: RunConfig, teacher: TeacherConfig | None, **knobs: object) -> RunConfig:
    """The run with this teacher, and a distillation that has the knobs and the fit of the run's own."""
    fit = change_knobs(run.distill.fit if run.distill else FitConfig(), epochs=_epochs(run, 1.0))
    distill = DistillConfig(**{"fit": fit, **knobs})  # type: ignore[arg-type]
    return change_knobs(_begin(run), teacher=teacher, teachers={}, distill=distill)


def plain(share: float | None, run: RunConfig) -> RunConfig:
    """Plain tuning on the labelled share alone; None: on all."""
    fit = run.distill.fit if run.distill else FitConfig()
    fit = change_knobs(fit, epochs=_epochs(run, share or 1.0))
    return _distill(run, None, kd_weight=0, labelled=share, fit=fit)


def distilled(share: float, run: RunConfig, **knobs: object) -> RunConfig:
    """A teacher on the labelled share; the student learns from its truths, pseudo-labels of the rest, and the KL."""
    return _distill(run, _teach(run, share), labelled=share, targets="pseudo", **knobs)


def _teach(run: RunConfig, share: float, **knobs: object) -> TeacherConfig:
    fit = (run.teacher or TeacherConfig()).fit
    fit = change_knobs(fit, epochs=round(TEACHER_STEPS * _epochs(run, share), 4))
    return TeacherConfig(share=share, fit=fit, **knobs)  # type: ignore[arg-type]


def untaught(run: RunConfig) -> RunConfig:
    """Pseudo-labels from the untrained base, as the paper's introduction says; the KL is the trained teacher's."""
    return distilled(SHARE, run, pseudo_from="base")


def hard(run: RunConfig) -> RunConfig:
    """Pseudo-labels from the teacher, without its KL."""
    return distilled(SHARE, run, kd_weight=0)


def on_policy(run: RunConfig) -> RunConfig:
    """Half of the questions are trained on an answer of the student's own, by the teacher's KL alone (GKD)."""
    return distilled(SHARE, run, on_policy=0.5)


def larger(run: RunConfig) -> RunConfig:
    """A teacher of twice the width and one layer more, from a base of its own."""
    small = distilled(SHARE, run)
    tiny = run.model.tiny
    size = {
        "hidden": 2 * tiny.hidden, "heads": 2 * tiny.heads, "mlp": 2 * tiny.mlp, "layers": tiny.layers + 1,
        "vision_hidden": 2 * tiny.vision_hidden, "vision_layers": tiny.vision_layers + 1,
        "vision_heads": tiny.vision_heads,
    }  # fmt: skip
    return change_knobs(small, teacher=_teach(run, SHARE, size=size))


def paper(run: RunConfig) -> RunConfig:
    """As the paper's experiments: every truth is known; the teacher was tuned on a share of them."""
    return _distill(run, _teach(run, SHARE))


def cropped(run: RunConfig) -> RunConfig:
    """The same with a teacher that sees only the boxes of question and truth, each with a margin."""
    return _distill(run, _teach(run, SHARE, view="crop"), teacher_as="states")


def averaged(share: float | None, run: RunConfig) -> RunConfig:
    """Plain tuning with the student's own averaged weights as teacher."""
    tuned = plain(share, run)
    assert tuned.distill
    kd_weight = (run.distill or DistillConfig()).kd_weight or DistillConfig().kd_weight
    return change_knobs(tuned, distill=change_knobs(tuned.distill, kd_weight=kd_weight, teacher_as="average"))


def smoothed(share: float | None, run: RunConfig) -> RunConfig:
    """Plain tuning with label smoothing."""
    return override(plain(share, run), ["distill.smoothing=0.1"])


def longer(run: RunConfig) -> RunConfig:
    """Plain tuning on the labelled share with as much compute as distillation, all that the teacher does counted."""
    tuned = plain(SHARE, run)
    assert tuned.distill
    epochs = compute(distilled(SHARE, run)) / trained_share(tuned.distill) / forwards_a_pass(tuned.distill)
    return override(tuned, [f"distill.fit.epochs={round(epochs, 4)}"])


def _rows_of_share(name: str, share: float) -> dict[str, AblationRow]:
    percent = f"{name} % labelled"
    taught = "teacher on these; its pseudo-labels and KL on the rest"
    return {
        f"plain-{name}": AblationRow(f"Plain, {percent}", "plain tuning on these alone", partial(plain, share), None),
        f"kd-{name}": AblationRow(f"KD, {percent}", taught, partial(distilled, share), f"plain-{name}"),
    }


ROWS: Mapping[str, AblationRow] = {
    **{row: made for name, share in SHARES.items() for row, made in _rows_of_share(name, share).items()},
    "plain-100": AblationRow("Plain, all labelled", "plain tuning", partial(plain, None), None),
    "kd-hard": AblationRow("KD, 11 %, no KL", "the teacher's pseudo-labels without its KL", hard, "kd-11"),
    "kd-base": AblationRow("KD, 11 %, base answers", "pseudo-labels of the untrained base", untaught, "kd-11"),
    "kd-larger": AblationRow("KD, 11 %, larger teacher", "a teacher of twice the width", larger, "kd-11"),
    "kd-policy": AblationRow("KD, 11 %, on-policy", "half of the answers are the student's own", on_policy, "kd-11"),
    "long-11": AblationRow("Plain, 11 %, longer", "as much compute as KD", longer, "kd-11"),
    "smooth-11": AblationRow("Plain, 11 %, smoothed", "label smoothing", partial(smoothed, SHARE), "plain-11"),
    "mean-11": AblationRow("Plain, 11 %, own average", "KL of averaged weights", partial(averaged, SHARE), "plain-11"),
    "kd-paper": AblationRow("KD, all labelled", "a teacher on 11 %, its KL on all truths", paper, "plain-100"),
    "kd-crop": AblationRow("KD, all labelled, crops", "its teacher sees only boxes", cropped, "kd-paper"),
}

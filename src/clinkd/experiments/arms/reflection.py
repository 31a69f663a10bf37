"""Arms of a claim: which answers are rewritten. All share base and distillation, and take the same steps."""

from __future__ import annotations

from collections.abc import Mapping

from clinkd.config import ReflectConfig, RunConfig
from clinkd.experiments.recipes import demo
from clinkd.experiments.rows import AblationRow, train_on_truths
from clinkd.settings import change_knobs, override


def three_tests(base: RunConfig | None = None) -> RunConfig:
    """Our rule: words, boxes and contradictions; what the offline corrector rewrites is learned beside the truths.

    A run without reflection gets two rounds, each a quarter as long as its distillation. Phantoms that ask for boxes
    alone, as `small` has them, ask for names, too, so that answers can be wrong in their words.
    """
    base = base or demo()
    if base.data.path is None and base.data.phantoms.tasks == ("VG",):
        base = override(base, ["data.phantoms.tasks=[VG, ROC]"])
    if base.reflect is None:
        assert base.distill is not None, "a method without distillation has no such row"
        fit = change_knobs(base.distill.fit, epochs=base.distill.fit.epochs / 4)
        base = change_knobs(base, reflect=ReflectConfig(review_share=0.5, fit=fit))
    return override(
        base, ["name=three-tests", "reflect.rewrite=wrong", "reflect.box_iou=0.5", "reflect.conflicts=true"]
    )


def random_rows(base: RunConfig | None = None) -> RunConfig:
    """Control: as many rewrites as our rule makes, of answers drawn from all."""
    return override(three_tests(base), ["name=random-rows", "reflect.rewrite=random"])


def no_rewrites(base: RunConfig | None = None) -> RunConfig:
    """Control: the rounds train on the truths alone."""
    base = three_tests(base)
    assert base.reflect is not None
    return change_knobs(base, name="no-rewrites", reflect=train_on_truths(base.reflect, base.reflect.objective))


def plain_rule(base: RunConfig | None = None) -> RunConfig:
    """The paper's rule: the cosine of a sentence embedding below 0.8, nothing else. Needs the extra `embeddings`."""
    rule = ("similarity=embedding", "threshold=0.8", "box_iou=0", "conflicts=false")
    return override(three_tests(base), ["name=plain-rule", *(f"reflect.{knob}" for knob in rule)])


ROWS: Mapping[str, AblationRow] = {
    "no-rewrites": AblationRow("No rewrites", "the rounds train on the truths alone", no_rewrites, None),
    "random-rows": AblationRow("Random rewrites", "as many, of answers drawn from all", random_rows, "no-rewrites"),
    "plain-rule": AblationRow("The paper's rule", "embedding below 0.8, nothing else", plain_rule, "random-rows"),
    "three-tests": AblationRow("Three tests", "words, boxes, contradictions", three_tests, "random-rows"),
}

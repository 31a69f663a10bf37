"""What a reader must know before the scores: trainings that were too short, a test split that is too small; and before
the work: a base that gets other positions than its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clinkd.config import NAMED_POSITIONS, TIED_EVIDENCE, Layout, ModelConfig, RunConfig
from clinkd.language.foreign import list_foreign_languages
from clinkd.model.folders import base_of, read_config
from clinkd.pipeline.graph import stage_record
from clinkd.records import Sample, Task
from clinkd.scoring.blind.baselines import IMAGES_SHUFFLED
from clinkd.settings import change_knobs

LEAST_GROUPS = 10  # of a test split, for any conclusion
PRETRAINED = {"fit-see": "model.tiny.pretrain.vision", "fit-pairs": "model.tiny.pretrain.pairs"}


def caution_bases(config: RunConfig) -> list[str]:
    """`caution_base` of the model of a run and of the pretrained bases of its teachers, whose knobs are named."""
    teachers = ((knob, change_knobs(config.model, base=base)) for knob, base in config.teacher_bases().items())
    return caution_base(config.model) + [f"{knob}: {line}" for knob, model in teachers for line in caution_base(model)]


def caution_base(model: ModelConfig) -> list[str]:
    """Cautions, before any work, about a pretrained base that gets other positions, another layout or another spelling
    of boxes than its own.

    Of a folder that is no stock one, there is nothing to tell. Raises BadInput if its config.json cannot be read, or
    its family cannot have these knobs.
    """
    base = model.base and base_of(model.base)
    if base is None or not (base / "config.json").is_file():
        return []
    from clinkd.model.families import FAMILIES
    from clinkd.model.positions import position_scheme

    settings = read_config(base / "config.json")
    family = next((family for family in FAMILIES if family.stock_type == settings.get("model_type")), None)
    if family is None:
        return []
    family.demand_knobs(model)
    cautions = []
    scheme = position_scheme(model.positions, family.native)
    if scheme != family.native:
        tied = model.positions == NAMED_POSITIONS["tied"]
        evidence = TIED_EVIDENCE if tied else "on pretrained weights not tested"
        cautions.append(f"model.positions={model.positions.name} in the place of the base's own (native): {evidence}")
    if model.layout != family.layout:
        change = _count_moved(settings, (family.layout, family.native.axes), (model.layout, scheme.axes))
        cautions.append(f"model.layout={model.layout} in the place of the base's own ({family.layout}){change}")
    if model.boxes != family.boxes:
        cautions.append(f"model.boxes={model.boxes} in the place of what the base was taught ({family.boxes})")
    return cautions


def _count_moved(settings: Mapping[str, Any], *layouts: tuple[Layout, tuple[int, ...]]) -> str:
    """How many rotary pairs have another frequency, and another axis, under the second layout than under the first, as
    the end of a sentence; "" where config.json does not tell the sections of a head."""
    from clinkd.model.positions import rotary_pairs

    match settings.get("text_config", settings):
        case {"rope_scaling": {"mrope_section": [int(time), int(height), int(width)]}} | {
            "rope_parameters": {"mrope_section": [int(time), int(height), int(width)]}
        }:
            sections = (time, height, width)
        case _:
            return ""
    number = sum(sections)  # each pair belongs to one axis
    own, new = (rotary_pairs(layout, axes, number, sections) for layout, axes in layouts)
    frequencies = sum(a != b for a, b in zip(own.exponent_P, new.exponent_P, strict=True))
    turned = sum(a != b for a, b in zip(own.axis_P, new.axis_P, strict=True))
    return (
        f": {frequencies} of {number} rotary frequencies move, by which its text knows the order of words, and "
        f"{turned} of {number} take another axis of an image"
    )


def list_cautions(stages: Mapping[str, Path], test: Sequence[Sample], scores: Mapping[str, Any]) -> list[str]:
    """The cautions about a run, one sentence each; `stages`: the folders of its stages by name; `scores`: as
    `Run.scores` has them."""
    pooled = [line for folder in stages.values() for line in stage_record(folder)["recorded"].get("cautions", ())]
    own = [*caution_few_groups(test), *caution_languages(test), *caution_blind(scores), *caution_undertrained([stages])]
    return [*own, *pooled]


def read_cautions(scores: Mapping[str, Any]) -> list[str]:
    """The cautions that the scores of a run (`Run.scores`) hold, as lines for the screen."""
    return [f"caution  {line}" for line in scores.get("cautions", ())]


def caution_few_groups(test: Sequence[Sample]) -> list[str]:
    """A caution if the test split has too few groups: images, or patients where one has several images."""
    number, noun = count_groups(test)
    return [f"{number} test {noun}: no conclusion"] if number < LEAST_GROUPS else []


def count_groups(samples: Sequence[Sample]) -> tuple[int, str]:
    """The number of groups, over which intervals are, and what they are: images, or patients where one has several."""
    number = len({s.group for s in samples})
    noun = "patient" if len({i.path for s in samples for i in s.images}) > number else "image"
    return number, f"{noun}{'s' * (number != 1)}"


def caution_languages(test: Sequence[Sample]) -> list[str]:
    """A caution for each language in which the sides of test samples are neither checked nor scored."""
    counts = Counter(name for sample in test for name in list_foreign_languages(sample))
    return [f"sides are not checked in {name}: {n} test sample{'s' * (n > 1)}" for name, n in sorted(counts.items())]


def caution_blind(scores: Mapping[str, Any]) -> list[str]:
    """A caution if answers that never saw the image score as high, in the main metric of a task: those of the best
    baseline, or the model's own to other images."""
    tasks = []
    for task in Task:
        figures = scores.get(task) or {}
        blind = [figures.get("blind"), (figures.get("blind_by") or {}).get(IMAGES_SHUFFLED)]
        score, known = figures.get("score"), [b for b in blind if b is not None]
        tasks += [task.value] if score is not None and known and score <= max(known) else []
    return [f"{', '.join(tasks)}: not above blind, so nothing shows that it looks at the image"] if tasks else []


def caution_undertrained(folds: Sequence[Mapping[str, Path]]) -> list[str]:
    """A caution for each training whose loss still fell at its end; `folds`: the stages of each fold, or of a run.

    Stages of older versions did not record that.
    """
    falling: dict[tuple[str, str], list[int]] = {}
    for stages in folds:
        for name, folder in stages.items():
            for training, record in stage_record(folder)["recorded"].items():
                if training.startswith("fit-") and record.get("falling"):
                    falling.setdefault((name, training), []).append(record["steps"])
    cautions = []
    for (name, training), steps in falling.items():
        knobs = PRETRAINED.get(training, f"{name.partition('-')[0]}.fit")
        number = f"{min(steps)} to {max(steps)}" if min(steps) < max(steps) else f"{steps[0]}"
        where = f" in {len(steps)} of {len(folds)} folds" if len(folds) > 1 else ""
        cautions.append(
            f"undertrained: stage {name}'s loss still falls after {number} steps{where}; "
            f"more {knobs}.epochs or {knobs}.min_steps"
        )
    return cautions

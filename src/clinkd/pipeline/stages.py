"""A run as a graph, in the order of the paper's Figure 2. `steps.py`, loaded as a stage runs, has the code of all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clinkd.config import (
    ClipConfig,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ModelConfig,
    ReflectConfig,
    RunConfig,
    SelectConfig,
    SpecialistConfig,
    TeacherConfig,
)
from clinkd.model.folders import base_of
from clinkd.pipeline.graph import POOLED, Stage, StageContext, describe_stage
from clinkd.pipeline.knobs import KNOBS
from clinkd.pipeline.machine import Machine
from clinkd.records import BadInput
from clinkd.settings import change_knobs
from clinkd.storage import sha256_file


def plan(config: RunConfig) -> list[Stage]:
    """List the stages of a run, each after the stages it needs; of a cross-validation, those that pool its folds.

    Raises BadInput if `data.path`, `model.base` or `select.clip.base` does not exist.
    """
    machine: dict[str, Any] = {"machine": Machine.of(config)}
    stages: list[Stage] = []

    stage = partial(_add_stage, stages, config.seed)
    if folds := config.fold_runs():
        _add_pooled_stages(stage, config, folds)
        return stages
    data = stage("prepare", _identify_data(config.data), config=config.data)
    base, features = _add_base(stages, config, config.model, data)
    model = _add_student(stages, config, data, base, features)
    clip = None
    if config.select.scorer == "clip":
        tokenizer = None if config.select.clip.eyes else base
        clip = stage("clip", _identify_clip(config.select.clip), data, tokenizer, config=config.select.clip, **machine)
    answer = stage("answer", config.answer, data, model, features, config=config.answer, previous=model.name, **machine)
    knobs = _identify_selection(config.select)
    select = stage("select", knobs, data, answer, clip, config=config.select, **machine)
    beside = _add_measurements(stage, config, data, model, features)
    rounds = [s for s in stages if s.name.startswith("reflect-")]
    stage("score", _identify_evaluation(config.evaluate), data, select, *beside, *rounds, whole=config)
    return stages


def _add_stage(
    stages: list[Stage],
    seed: int,
    name: str,
    knobs: Any,
    *needs: Stage | None,
    step: str | None = None,
    **arguments: Any,
) -> Stage:
    """Add a stage. `step` and `arguments`: the function of `steps.py` that does the work, and what it gets."""
    kind = step or name
    work, needed = _defer_step(kind, **arguments), tuple(n for n in needs if n)
    stages.append(Stage(name, VERSIONS[kind], knobs, needed, work, seed, kind in SHARED_STAGES, KNOBS.get(kind)))
    return stages[-1]


def _add_base(
    stages: list[Stage], config: RunConfig, model: ModelConfig, data: Stage, student: Stage | None = None,
    teacher: str = "teacher",
) -> tuple[Stage, Stage | None]:  # fmt: skip
    """Add what makes the base, and the features of images by its tower if they are cached. `student`: what makes the
    base of the student, where this is another one, of a `teacher`."""
    if model.base is None and model.dtype == "bf16":  # not of the knobs: a recipe has no base before it is given one
        raise BadInput("model.dtype=bf16: a tiny model is float32; give model.base, or set model.dtype=float32")
    suffix, knob = (f"-{teacher}", f"{teacher.replace('-', 's.')}.base") if student else ("", "model.base")
    if model.quantize == "nf4" and (model.base is None or base_of(model.base) != model.base):
        what = (
            f"a tiny model is float32; give {knob}" if model.base is None else f"{knob} is an adapter; merge it first"
        )
        raise BadInput(f"model.quantize=nf4: {what}, or set model.quantize=none")
    stage = partial(_add_stage, stages, config.seed)
    machine: dict[str, Any] = {"machine": Machine.of(config)}
    cached, eyes, tower, features, general = model.vision_features == "cached", None, None, None, None
    if drawn := model.base is None and model.tiny.pretrain and model.tiny.pretrain.general:
        # stock positions, as a general model has; neither the data nor the seed of a run counts, so runs share it. The
        # layout is the run's: other frequencies would undo what the base has learned of the order of words
        stock = change_knobs(model, positions="mrope")
        drawing: dict[str, Any] = {"config": stock, "workers": config.data.workers, "hardware": machine["machine"]}
        knobs = _identify_model(stock)
        general = _add_stage(stages, drawn.seed, f"general{suffix}", knobs, step="general", **drawing)
    if model.sees_by_eyes:
        eyes = stage("eyes", _identify_eyes(model), data, config=model, **machine)
    if cached and model.base is None and (pretrain := model.tiny.pretrain):
        # its tower is fixed from here on, so that the other half of its pretraining sees each image once, too
        alone = change_knobs(model, tiny=change_knobs(model.tiny, pretrain=change_knobs(pretrain, pairs=None)))
        tower = stage("tower", _identify_model(alone), data, eyes, config=alone, **machine)
        features = stage("see", {}, data, eyes, tower, **machine)
    start = (tower, features) if tower else (general, eyes)
    needs, arguments = [data, *start], {"config": model, **machine}
    if student and model.base:
        needs.append(student)
        arguments |= {"knob": knob, "student": student.name, "live": config.no_live_teacher}
    base = stage(f"base{suffix}", _identify_model(model, knob), *needs, step="base", **arguments)
    if cached and not features:
        features = stage("see", {}, data, eyes, base, **machine)
    return base, features


def _make_teacher_base(model: ModelConfig, teacher: TeacherConfig) -> ModelConfig | None:
    """The knobs of the teacher's base, where it is no copy of the student's, which `model` has."""
    if teacher.size:
        return change_knobs(model, tiny=change_knobs(model.tiny, **dict(teacher.size)))
    if teacher.base:
        return change_knobs(model, base=teacher.base, vision_features="live")
    return None


def _add_teachers(
    stages: list[Stage], config: RunConfig, data: Stage, base: Stage, features: Stage | None
) -> dict[str, Stage]:
    """Add the teachers, each with a base of its own, where it has one: the stage with the model of each by its name."""
    teachers: dict[str, Stage] = {}
    for name, teacher in config.list_teachers().items():
        specialist = config.teachers.get(name.removeprefix("teacher-"))
        own_base, seen = base, features
        if other := _make_teacher_base(config.model, teacher):
            owner = name if specialist and specialist.base else "teacher"  # those without one have that of `teacher`
            made = next((s for s in stages if s.name == f"base-{owner}"), None)
            own_base = made or _add_base(stages, config, other, data, base, owner)[0]
            seen = None  # the features are those of the student's tower
        teachers[name] = own_base
        if not specialist or specialist.tune:
            rows = {"rows": _identify_rows(config.teachers)[name]} if specialist else {}
            arguments: dict[str, Any] = {"config": teacher, "base": own_base.name, "machine": Machine.of(config)}
            arguments |= {"step": "teacher", "stage": name, "teachers": config.teachers}
            knobs = {**teacher.identity(), **rows}
            teachers[name] = _add_stage(stages, config.seed, name, knobs, data, own_base, seen, **arguments)
    return teachers


def _identify_rows(teachers: Mapping[str, SpecialistConfig]) -> dict[str, Any]:
    """For each of several teachers what decides its questions: its modalities and tasks, and those of the teachers
    before it that it shares questions with."""
    rows: dict[str, Any] = {}
    for number, (name, teacher) in enumerate(teachers.items()):
        before = [other for other in [*teachers.values()][:number] if other.meets(teacher)]
        own, *taken = ([sorted(t.modality), sorted(t.task)] for t in (teacher, *before))
        rows[f"teacher-{name}"] = {"own": own, "without": sorted(taken)}
    return rows


def _add_student(stages: list[Stage], config: RunConfig, data: Stage, base: Stage, features: Stage | None) -> Stage:
    """Add the teacher, its pseudo-labels, distillation and the rounds of reflection; the stage with the last model."""
    stage = partial(_add_stage, stages, config.seed)
    machine: dict[str, Any] = {"machine": Machine.of(config)}
    pseudo = None
    model = base
    teachers = _add_teachers(stages, config, data, base, features)
    asked = {s.name: s for s in teachers.values()}.values()  # of those that are not tuned, several may be one model
    rows = {"teachers": _identify_rows(config.teachers)} if config.teachers else {}
    if config.distill:
        arguments = {"config": config.distill, "teacher": config.teacher, "teachers": config.teachers, **machine}
        if config.distill.targets != "truth":
            knobs = {**_identify_pseudo(config.distill), "answer": config.answer.identity()}
            by_teacher = config.distill.pseudo_from == "teacher"
            if config.teacher and not by_teacher and config.distill.labelled is None:
                knobs["teacher_share"] = config.teacher.share  # which questions are new to the teacher
            knobs |= rows if by_teacher else {}
            authors = asked if by_teacher else [base]
            pseudo = stage("pseudo", knobs, data, *authors, features, answers=config.answer, **arguments)
        knobs = {**config.distill.identity(), **rows}
        model = stage("distill", knobs, data, base, *asked, pseudo, features, **arguments)
    reflect = config.reflect
    for number in range(1, reflect.rounds + 1) if reflect else ():
        assert reflect
        kd_teacher = teachers["teacher"] if reflect.objective == "distill" else None
        knobs = {**_identify_reflection(reflect), "round": number, "max_new_tokens": config.answer.max_new_tokens}
        arguments = {"config": reflect, "answers": config.answer, "distill": config.distill, **machine}
        arguments |= {"step": "reflect", "round": number, "previous": model.name}
        model = stage(f"reflect-{number}", knobs, data, model, kd_teacher, features, **arguments)
    return model


def _add_measurements(
    stage: Callable[..., Stage], config: RunConfig, data: Stage, model: Stage, features: Stage | None
) -> list[Stage]:
    """Add what stands in the report beside the answers of the final model, where it is asked for."""
    machine: dict[str, Any] = {"machine": Machine.of(config)}
    added, first_only = [], config.answer.first
    if config.evaluate.shuffled:
        arguments = {"config": first_only, "previous": model.name, **machine}
        added.append(stage("shuffle", first_only, data, model, features, **arguments))
    if config.evaluate.likelihood:
        arguments = {"batch": config.answer.batch, "previous": model.name, **machine}
        added.append(stage("likelihood", {}, data, model, features, **arguments))
    if config.evaluate.probe:
        added.append(stage("probe", {}, data, **machine))
    return added


def _add_pooled_stages(stage: Callable[..., Stage], config: RunConfig, folds: Sequence[RunConfig]) -> None:
    # the folds are runs of their own, so only the names of their stages stand here: each holds an identity
    keys = [{s.name: s.key for s in plan(fold)} for fold in folds]
    splits = stage("prepare", {POOLED: [k["prepare"] for k in keys]}, step="pool_splits", folds=keys)
    answers = {POOLED: [[k[name] for name in ("select", "shuffle", "likelihood", "probe") if name in k] for k in keys]}
    pooled = stage("select", answers, splits, step="pool_answers", folds=keys)
    stage("score", _identify_evaluation(config.evaluate), splits, pooled, whole=config)


# Raise the version when the code of a stage changes its result, so that older results are not taken for new ones.
VERSIONS = {
    "prepare": 3, "general": 2, "eyes": 2, "tower": 2, "base": 3, "see": 1, "teacher": 2, "pseudo": 2, "distill": 2,
    "reflect": 3, "clip": 2, "answer": 4, "select": 4, "shuffle": 1, "likelihood": 1, "probe": 1, "score": 9,
    "pool_splits": 1, "pool_answers": 2,
}  # fmt: skip


def identify_config(config: RunConfig) -> str:
    """Twelve hexadecimal digits for all that decides the result of a run but the versions of its code."""
    stages = [s for run in config.fold_runs() or [config] for s in plan(run)]
    essence = [(s.name, s.seed, s.essence(describe_stage(s)["config"]), [n.name for n in s.needs]) for s in stages]
    return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()[:12]


def _drop_knobs(knobs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The knobs without those that do not count for a stage. Left out, they read as their defaults."""
    return {name: value for name, value in knobs.items() if name not in names}


# Stages in which several processes share the work: the rows to train on, or the questions to answer.
SHARED_STAGES = {"general", "tower", "base", "teacher", "pseudo", "distill", "reflect", "answer", "shuffle"}


def _defer_step(step: str, machine: Machine | None = None, **arguments: Any) -> Callable[[StageContext], None]:
    """The work of a stage. A step for which a machine is given also gets the data and the models (`StageInputs`)."""

    def run_step(context: StageContext) -> None:
        from clinkd.pipeline import inputs, steps

        getattr(steps, step)(inputs.StageInputs(context, machine) if machine else context, **arguments)

    return run_step


def _identify_data(config: DataConfig) -> dict[str, Any]:
    """Phantoms: the knobs that count. Other data: the content of the file, the size and time of each image file, and
    the rules that split them, open and resample their images and choose words for a tokenizer. A new rule changes its
    name here and not the version of a stage: phantoms, which give the same by the old one, share that."""
    if config.path is None:
        return {"phantoms": config.phantoms.identity(), "variants": config.variants, "absent": config.absent}
    from clinkd.data.dataset import dataset_identity
    from clinkd.data.readers.source import Source

    knobs = _drop_knobs(config.identity(), "phantoms", *(["test_share"] if config.folds else []))
    rules = {"splits": "hash rank", "colours": "sRGB", "words": "of several patients", "grid": "exact"}
    return {**knobs, **dataset_identity(config.path, Source(config.path).root), **rules}


def _identify_model(config: ModelConfig, knob: str = "model.base") -> dict[str, Any]:
    """The knobs if the base is tiny, else the files of its folder (named by `knob`), and of that of an adapter's base.

    `model.vision_features` is left out: the stages that use stored features differ by their need `see`.
    """
    knobs = _drop_knobs(config.identity(), "vision_features")
    if config.base is None:
        return knobs
    base = base_of(config.base)
    if not (base / "config.json").is_file():
        from clinkd.model.families import no_folder

        raise no_folder(f"{knob}={base}")
    adapter = {"adapter": _describe_model_files(config.base)} if base != config.base else {}
    return {**_drop_knobs(knobs, "tiny"), **_describe_model_files(base), **adapter}


def _identify_pseudo(config: DistillConfig) -> dict[str, Any]:
    """The knobs that decide who answers which questions."""
    used = ("labelled", "targets", "pseudo_from", "pseudo_share")
    return {name: value for name, value in config.identity().items() if name in used}


def _identify_eyes(config: ModelConfig) -> dict[str, Any]:
    """What decides the cells of images. (The weights of the network are pinned: others raise the version.)"""
    tiny = config.tiny
    return {"patch": tiny.patch, "merge": tiny.merge, "image_pixels": tiny.image_pixels, "square": config.square}


def _identify_reflection(config: ReflectConfig) -> dict[str, Any]:
    """The knobs that count, and hashes of the files they name."""
    knobs = config.identity()
    embedding, chat = config.similarity == "embedding", config.corrector == "chat"
    knobs["embedder"] = _describe_model_files(config.embedder) if embedding and config.embedder else None
    knobs["chat"] = knobs["chat"] if chat else None
    knobs["replay"] = sha256_file(config.replay) if config.replay else None
    return knobs


def _describe_model_files(folder: Path, *kinds: str) -> dict[str, Any]:
    """What decides a model in a folder: hashes of its text files (JSON, and patterns in `kinds`), and the size and time
    of its files of weights, which reveal a replaced file without reading it."""
    text_files = sorted({p for kind in ("*.json", *kinds) for p in folder.rglob(kind)})
    weights = {p: p.stat() for p in sorted(folder.rglob("*.safetensors"))}
    return {
        "files": {p.relative_to(folder).as_posix(): sha256_file(p) for p in text_files},
        "weights": {p.relative_to(folder).as_posix(): [s.st_size, s.st_mtime_ns] for p, s in weights.items()},
    }


def _identify_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """The knobs, and the installed SPICE: after an installation, the scores that were missing are computed."""
    from clinkd.scoring import jars

    return {**config.identity(), "SPICE jars": jars.jars_identity()}


def _identify_selection(config: SelectConfig) -> dict[str, Any]:
    """The knobs; of the image-text model none but that it is the crop classifier, if it is."""
    knobs = config.identity()
    return {**knobs, "clip": {"eyes": True}} if config.clip.eyes else knobs


def _identify_clip(config: ClipConfig) -> dict[str, Any]:
    """The knobs if the image-text model is tiny, else the files of its folder. `select` decides which crops it sees and
    how texts are cut; but a tiny model learns crops only if it will see crops."""
    knobs = _drop_knobs(config.identity(), "overlong")
    if config.eyes:
        return {"eyes": True}
    if config.base is None:
        return {**knobs, "grounding": "text" if config.grounding == "text" else "crop"}
    if not any((config.base / name).is_file() for name in ("config.json", "open_clip_config.json")):
        raise BadInput(
            f"select.clip.base={config.base}: no config.json and no open_clip_config.json there; a folder with a CLIP "
            "or SigLIP of transformers, or a model of open_clip, is wanted"
        )
    return {"base": knobs["base"], **_describe_model_files(config.base, "*.json", "*.txt", "*.model")}

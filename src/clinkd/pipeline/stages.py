"""A run as a graph, in the order of the paper's Figure 2. What each stage does is in `work.py`, loaded when it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clinkd.config import ClipConfig, DataConfig, EvaluateConfig, ModelConfig, ReflectConfig, RunConfig
from clinkd.pipeline.graph import Stage, StageContext
from clinkd.pipeline.knobs import KNOBS
from clinkd.pipeline.machine import Machine
from clinkd.records import BadInput
from clinkd.storage import sha256_file


def plan(config: RunConfig) -> list[Stage]:
    """The stages of a run, each after what it needs.

    Raises BadInput where `data.path`, `model.base` or `select.clip.base` is not there.
    """
    at: dict[str, Any] = {"machine": Machine.of(config)}
    made: list[Stage] = []
    given: dict[str, Any]

    def stage(name: str, knobs: Any, *needs: Stage | None, step: str | None = None, **given: Any) -> Stage:
        todo = _later(step or name, **given)
        kind = step or name
        wanted = tuple(n for n in needs if n)
        made.append(Stage(name, VERSIONS[kind], knobs, wanted, todo, config.seed, kind in TOGETHER, KNOBS.get(kind)))
        return made[-1]

    data = stage("prepare", _data_identity(config.data), config=config.data)
    base = stage("base", _model_identity(config.model), data, config=config.model, **at)
    seen = stage("see", {}, data, base, **at) if config.model.sight == "stored" else None
    teacher = pseudo = None
    model = base
    if config.teacher:
        teacher = stage("teacher", config.teacher, data, base, seen, config=config.teacher, **at)
    if config.distill:
        if config.distill.targets != "truth":
            author = teacher if config.distill.pseudo_from == "teacher" else base
            knobs = _without(config.distill.identity(), "fit", "teacher_as", "draws")
            knobs["answer"] = config.answer.identity()
            given = {"config": config.distill, "answers": config.answer, "teacher": config.teacher}
            pseudo = stage("pseudo", knobs, data, author, seen, **given, **at)
        model = stage("distill", config.distill, data, base, teacher, pseudo, seen, config=config.distill, **at)
    reflect = config.reflect
    for number in range(1, reflect.rounds + 1) if reflect else ():
        assert reflect
        tutor = teacher if reflect.objective == "distill" else None
        given = {"config": reflect, "round": number, "answers": config.answer, "distill": config.distill}
        knobs = {**_reflect_identity(reflect), "round": number, "max_new_tokens": config.answer.max_new_tokens}
        model = stage(
            f"reflect-{number}", knobs, data, model, tutor, seen, step="reflect", previous=model.name, **given, **at
        )
    clip = None
    if config.select.scorer == "clip":
        clip = stage("clip", _clip_identity(config.select.clip), data, base, config=config.select.clip, **at)
    answer = stage("answer", config.answer, data, model, seen, config=config.answer, previous=model.name, **at)
    select = stage("select", config.select, data, answer, clip, config=config.select, **at)
    shuffle, one = None, config.answer.first
    if config.evaluate.shuffled:
        shuffle = stage("shuffle", one, data, model, seen, config=one, previous=model.name, **at)
    rounds = [s for s in made if s.name.startswith("reflect-")]
    stage("score", _evaluate_identity(config.evaluate), data, select, shuffle, *rounds, whole=config)
    return made


# Raised when the code of a stage comes to do something else, so that what it made before is not taken for its work.
VERSIONS = {
    "prepare": 3, "base": 3, "see": 1, "teacher": 2, "pseudo": 2, "distill": 2, "reflect": 3, "clip": 2, "answer": 4,
    "select": 4, "shuffle": 1, "score": 5,
}  # fmt: skip


def _without(knobs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The knobs without some that do not count for a stage; they then read as if they had their defaults."""
    return {name: value for name, value in knobs.items() if name not in names}


# Where each of several processes takes a part: of the rows that are trained on, or of the questions to answer.
TOGETHER = {"base", "teacher", "pseudo", "distill", "reflect", "answer", "shuffle"}


def _later(step: str, **given: Any) -> Callable[[StageContext], None]:
    def do(work: StageContext) -> None:
        from clinkd.pipeline import steps

        getattr(steps, step)(work, **given)

    return do


def _data_identity(config: DataConfig) -> dict[str, Any]:
    """Phantoms are decided by their knobs; read data by what the file holds, and by size and time of its images."""
    if config.path is None:
        return {"phantoms": config.phantoms.identity()}
    from clinkd import data

    knobs = _without(config.identity(), "phantoms")
    return {**knobs, **data.dataset_identity(config.path, data.Source(config.path).root)}


def _stamp(path: Path) -> list[int]:
    """Size and time of change: what tells a replaced file without reading it."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _model_identity(config: ModelConfig) -> dict[str, Any]:
    """What decides the base: the knobs, where it is tiny; else the files of the folder. How images are seen later on is
    no part of it: the stages that need `see` are told from others by that."""
    knobs = _without(config.identity(), "sight")
    if config.base is None:
        return knobs
    if not (config.base / "config.json").is_file():
        raise BadInput(
            f"model.base={config.base}: no config.json there; a Qwen2-VL folder in Hugging Face layout is wanted"
        )
    return {**_without(knobs, "tiny"), **_files_of(config.base)}


def _reflect_identity(config: ReflectConfig) -> dict[str, Any]:
    """The knobs that count, and what the files they name hold."""
    knobs = config.identity()
    embedding, chat = config.similarity == "embedding", config.corrector == "chat"
    knobs["embedder"] = _files_of(config.embedder) if embedding and config.embedder else None
    knobs["chat"] = knobs["chat"] if chat else None
    knobs["replay"] = sha256_file(config.replay) if config.replay else None
    return knobs


def _files_of(folder: Path, *kinds: str) -> dict[str, Any]:
    """What decides a model in a folder: its files of words (JSON, and others of `kinds`) whole, its weights by size and
    time of change."""
    words = sorted({p for kind in ("*.json", *kinds) for p in folder.rglob(kind)})
    return {
        "files": {p.relative_to(folder).as_posix(): sha256_file(p) for p in words},
        "weights": {p.relative_to(folder).as_posix(): _stamp(p) for p in sorted(folder.rglob("*.safetensors"))},
    }


def _evaluate_identity(config: EvaluateConfig) -> dict[str, Any]:
    """The knobs, and which SPICE is installed: once there is one, what was not computed without is scored anew."""
    from clinkd.scoring import jars

    return {**config.identity(), "SPICE jars": jars.jars_identity()}


def _clip_identity(config: ClipConfig) -> dict[str, Any]:
    """What decides the image-text model: the knobs, where it is tiny; else the files of the folder. What it is shown
    and how texts are cut is a matter of `select`, except that a tiny one is taught crops where it will see some."""
    knobs = _without(config.identity(), "overlong")
    if config.base is None:
        return {**knobs, "grounding": "text" if config.grounding == "text" else "crop"}
    if not any((config.base / name).is_file() for name in ("config.json", "open_clip_config.json")):
        raise BadInput(
            f"select.clip.base={config.base}: no config.json and no open_clip_config.json there; a folder with a CLIP "
            "or SigLIP of transformers, or a model of open_clip, is wanted"
        )
    return {"base": knobs["base"], **_files_of(config.base, "*.json", "*.txt", "*.model")}

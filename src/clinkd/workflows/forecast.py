"""What a run will take: time, memory and disk by stage, measured by a small run (`trial.py`); or counted, at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clinkd.config import RunConfig
from clinkd.pipeline.graph import StageStatus, draft_of
from clinkd.processes import kill_tree
from clinkd.records import BadInput
from clinkd.settings import dump
from clinkd.storage import folder_bytes, free_bytes, nearest_existing, progress, spell_bytes, write_json
from clinkd.system_memory import free_memory_mb
from clinkd.workflows.counted import (
    FIXED,
    FLOAT,
    count_by_part,
    count_teacher,
    fixed_bytes,
    list_trainings,
    read_weights,
    trained_bytes,
)
from clinkd.workflows.gpus import tabulate_gpus as tabulate_gpus

CHECKPOINTS = 3  # two kept, and one being written
OUT_OF_MEMORY = ("OutOfMemoryError", "CUDA out of memory", "can't allocate memory", "MemoryError", "bad_alloc")


@dataclass(frozen=True)
class StageEstimate:
    """What a stage will take, from `measured_steps` of its trainings: nothing if it is done.

    `disk_mb` stays; `passing_mb` is needed beside it while the stage runs.
    """

    stage: str
    state: str
    steps: int = 0
    seconds: float = 0.0
    memory_mb: float = 0.0
    disk_mb: float = 0.0
    passing_mb: float = 0.0
    measured_steps: int = 0
    trained_parameters: int = 0


@dataclass(frozen=True)
class Forecast:
    """The stages of a run, and what is free on the machine: `memory_mb` of the GPU if there is one.

    `drafts_mb`: disk that unfinished stages have taken already. `parameters`: of the model. `load`: cores that other
    work used before the trial; it makes times longer than they will be without it. `copies`: of how many blocks the
    short copies were that were tried in the place of a deep base; "" where it was tried whole.
    """

    stages: tuple[StageEstimate, ...]
    free_memory_mb: float
    free_disk_mb: float
    drafts_mb: float = 0.0
    parameters: int = 0
    load: float = 0.0
    copies: str = ""

    @property
    def todo(self) -> list[StageEstimate]:
        """The stages that are not done."""
        return [e for e in self.stages if e.state != "done"]

    @property
    def seconds(self) -> float:
        return sum(e.seconds for e in self.todo)

    @property
    def memory_mb(self) -> float:
        return max((e.memory_mb for e in self.todo), default=0.0)

    @property
    def disk_mb(self) -> float:
        """The disk that is needed at the worst moment."""
        return sum(e.disk_mb for e in self.todo) + max((e.passing_mb for e in self.todo), default=0.0)

    def demand_room(self, config: RunConfig) -> None:
        """Raises BadInput, with the way out, if memory or disk is too small."""
        worst = max(self.todo, key=lambda e: e.memory_mb, default=None)
        if worst:
            saved = estimate_savings(config, worst.stage, self.parameters, worst.trained_parameters)
            _demand_memory(config, worst.stage, worst.memory_mb, self.free_memory_mb, saved)
        _demand_disk(self.disk_mb, self.free_disk_mb + self.drafts_mb)


def _demand_memory(config: RunConfig, stage: str, needed_mb: float, free_mb: float, saved: Mapping[str, float]) -> None:
    if needed_mb > free_mb:
        raise BadInput(
            f"{stage} takes about {spell_bytes(needed_mb)} of memory and {spell_bytes(free_mb)} are free: "
            f"{suggest_knobs(config, stage, saved)}"
        )


def _demand_disk(needed_mb: float, free_mb: float) -> None:
    if needed_mb > free_mb:
        raise BadInput(
            f"the run takes about {spell_bytes(needed_mb)} of disk and {spell_bytes(free_mb)} are free: make room, or "
            "give another --runs"
        )


# ---- counted --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LeastCost:
    """What weights alone take: the stage that takes most memory, and the disk of all models and checkpoints that are
    to come. `saved_mb`: what knobs would save of that memory. `drafts_mb`: disk that is taken already."""

    stage: str
    memory_mb: float
    disk_mb: float
    saved_mb: Mapping[str, float]
    drafts_mb: float = 0.0

    def __str__(self) -> str:
        return f"{spell_bytes(self.memory_mb)} of memory ({self.stage}), {spell_bytes(self.disk_mb)} of disk"

    def demand_room(self, config: RunConfig, runs: Path) -> None:
        """Raises BadInput, with the way out, if even that is not free. The memory of a GPU is not checked."""
        if not (config.device != "cpu" and Path("/dev/nvidia0").exists()):
            _demand_memory(config, self.stage, self.memory_mb, free_memory_mb(), self.saved_mb)
        _demand_disk(self.disk_mb, free_bytes(runs) / 1e6 + self.drafts_mb)


def count_least(config: RunConfig, states: Sequence[StageStatus] = ()) -> LeastCost | None:
    """Count from the files of the base. None for a tiny base, which takes next to nothing, and if no stage that takes
    much is left to do. `states`: the progress of the stages, if any is done.

    Counted for a training: the weights of the student, those of a live teacher that it does not share with the student,
    gradients, and the optimiser's states for each trained weight; for the disk: models and checkpoints.

    Raises BadInput for a file of weights that cannot be read.
    """
    if config.model.base is None:
        return None
    shapes = read_weights(config.model.base)
    weights, fixed = count_by_part(shapes), fixed_bytes(shapes, config.model)
    total, done = sum(weights.values()), {s.name for s in states if s.state == "done"}
    memory = {}
    if waiting := [n for n in ("answer", "shuffle") if n not in done and (n == "answer" or config.evaluate.shuffled)]:
        memory[waiting[0]] = total * fixed / 1e6
    trained, disk, passing = {}, 0.0, 0.0
    for stage, fit in list_trainings(config):
        if stage in done:
            continue
        trained[stage] = 0 if fit.lora else sum(n for part, n in weights.items() if part not in fit.freeze)
        moving_mb = trained[stage] * trained_bytes(fit) / 1e6
        held = (total + count_teacher(config, stage, weights)) * fixed + trained[stage] * (FLOAT - fixed)
        memory[stage] = held / 1e6 + moving_mb
        if config.model.quantize == "none":  # else additions alone
            disk += total * fixed / 1e6
        passing = max(passing, CHECKPOINTS * moving_mb)
    if not memory:
        return None
    worst = max(memory, key=lambda name: memory[name])
    saved = estimate_savings(config, worst, total, trained.get(worst, 0))
    return LeastCost(worst, memory[worst], disk + passing, saved, drafts_mb(states))


def estimate_savings(config: RunConfig, stage: str, parameters: int, learning: int) -> dict[str, float]:
    """MB of a stage's memory that knobs save for certain, the most first; `learning` of its `parameters` are trained.

    Only a trial can tell what they save of activations.
    """
    kind = stage.partition("-")[0]
    fit = config.fits().get(f"{kind}.fit")
    if fit is None:
        return {}
    saved = {}
    if fit.lora is None and config.model.base is not None:
        saved[f"{kind}.fit.lora={{}}"] = learning * trained_bytes(fit) / 1e6
    if count_teacher(config, kind, {"text": 1}):
        knob = "distill.teacher_as=states" if kind == "distill" else "reflect.objective=ce"
        saved[knob] = parameters * FIXED[config.model.dtype] / 1e6
    return dict(sorted(saved.items(), key=lambda item: -item[1]))


def suggest_knobs(config: RunConfig, stage: str, saved_mb: Mapping[str, float] | None = None) -> str:
    """The knobs that lower the memory of a stage and are not turned yet, the strongest first, with the MB that one
    saves if that is known."""
    name = f"{stage.partition('-')[0]}.fit"
    fit = config.fits().get(name)
    saved_mb = saved_mb or estimate_savings(config, stage, 0, 0)
    knobs = {f"{knob} ({spell_bytes(mb)} less)" if mb else knob: True for knob, mb in saved_mb.items()}
    if fit is not None:
        knobs |= {
            f"{name}.recompute=blocks": fit.recompute == "nothing",
            f"{name}.precision=bf16": fit.precision == "float32",
            f"{name}.max_tokens=2048 (and {name}.overlong=shrink)": not fit.max_tokens,
            f"{name}.accumulate={fit.rows} (an image at a time)": fit.accumulate < fit.rows,
            "shard=true with several processes": not config.shard,
        }
    elif stage in ("answer", "pseudo", "shuffle", "likelihood"):
        knobs[f"answer.batch={max(1, config.answer.batch // 4)}"] = config.answer.batch > 1
    knobs["model.dtype=bf16 (and precision=bf16)"] = config.model.base is not None and config.model.dtype == "float32"
    knobs["model.max_image_tokens=256"] = config.model.base is not None and config.model.max_image_tokens > 256
    helpful = [knob for knob, helps in knobs.items() if helps]
    return "set " + ", or ".join(helpful) if helpful else "a smaller base, or a larger machine, is needed"


def drafts_mb(states: Sequence[StageStatus]) -> float:
    """Disk that unfinished stages have taken: the run goes on there, and does not need it again."""
    return sum(folder_bytes(draft_of(s.folder)) for s in states if s.state == "partial") / 1e6


# ---- measured -------------------------------------------------------------------------------------------------------


def forecast(config: RunConfig, states: Sequence[StageStatus], runs: Path) -> Forecast:
    """Try every stage in small, in a process of its own, and estimate what the run under `runs` takes. If all stages
    are done, nothing is tried.

    Raises BadInput, naming the stage, if its trial fails or is killed.
    """
    # before the trial takes some
    free, room, load = free_memory_mb(), free_bytes(runs) / 1e6, os.getloadavg()[0]
    if all(s.state == "done" for s in states):
        return Forecast(tuple(StageEstimate(s.name, "done") for s in states), free, room)
    estimates = []
    with progress(len(states), "measure", "stages") as advance:
        for stage, result in zip(states, _run_trial(config, states, runs), strict=True):
            tried = replace(StageEstimate(**result["estimate"]), state=stage.state)
            estimates.append(StageEstimate(stage.name, "done") if stage.state == "done" else tried)
            advance(1)
    memory = result["gpu_free_mb"] or free
    return Forecast(
        tuple(estimates), memory, room, drafts_mb(states), result["parameters"], load, result.get("copies", "")
    )


def _choose_scratch_folder(runs: Path) -> Path:
    """Where the trial writes: its models are as large as the run's, and the folder for temporary files may be small."""
    usual, place = Path(tempfile.gettempdir()), nearest_existing(runs)
    if os.access(place, os.W_OK) and shutil.disk_usage(place).free > shutil.disk_usage(usual).free:
        return place
    return usual


def _run_trial(config: RunConfig, states: Sequence[StageStatus], runs: Path) -> Iterator[dict[str, Any]]:
    """What `trial.py` prints: for each stage its estimate, the free memory of the GPU, and the model's parameters.

    However it ends, no process and no file of it is left.
    """
    with tempfile.TemporaryDirectory(prefix=".clinkd-plan-", dir=_choose_scratch_folder(runs)) as scratch:
        folder = Path(scratch)
        write_json(folder / "config.json", dump(config))
        command = [sys.executable, "-m", "clinkd.workflows.trial", str(folder / "config.json"), str(folder)]
        with (folder / "stderr").open("wb") as stderr:
            # what it leaves in the folder of temporary files when it is killed goes with the rest
            environment = {**os.environ, "TMPDIR": scratch}
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, env=environment, start_new_session=True
            )
        tried = 0
        try:
            assert child.stdout is not None
            for line in child.stdout:
                yield json.loads(line)
                tried += 1
            child.wait()
        finally:
            kill_tree(child)
        if tried < len(states):
            stderr_text = (folder / "stderr").read_text("utf-8")
            raise BadInput(_explain_failure(config, states[tried].name, child.returncode, stderr_text))


def _explain_failure(config: RunConfig, stage: str, status: int, stderr: str) -> str:
    if status == -9:
        return f"the trial of {stage} was killed: memory will not do; {suggest_knobs(config, stage)}"
    lines = stderr.strip().splitlines() or [f"it ended with {status}"]
    if any(word in lines[-1] for word in OUT_OF_MEMORY):
        return f"the trial of {stage} ran out of memory: {suggest_knobs(config, stage)}"
    return f"the trial of {stage} failed: {lines[-1].rpartition('BadInput: ')[2]}"

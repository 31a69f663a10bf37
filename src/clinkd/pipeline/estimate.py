"""What a run will take: time, memory and disk by stage, from a run in small (`trial.py`); or counted, at once."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinkd.config import FitConfig, RunConfig, dump
from clinkd.pipeline.graph import StageStatus
from clinkd.records import BadInput
from clinkd.storage import progress, spell_bytes, write_json

FLOAT = 4  # bytes of a weight, whatever the file holds
ADAM = 2 * FLOAT  # bytes of the optimiser's states, a weight
CHECKPOINTS = 3  # two kept, and one being written
JAVA_SECONDS = 5.5  # of the scoring's Java programs, whatever there is to score
IMAGE_CACHE_MB = 256.0  # of resampled images, each training (clinkd.model.encode)
SPLITS = ("train", "validation", "test")
PRETRAINED = {"fit-see": "model.tiny.pretrain.vision", "fit-pairs": "model.tiny.pretrain.pairs"}
PIXEL_BYTES = 3 * FLOAT * 2  # of a CLIP's pixel, twice while they are put together


@dataclass(frozen=True)
class Estimate:
    """What a stage will take. `disk_mb` stays; `passing_mb` is needed beside it while the stage runs."""

    stage: str
    state: str
    steps: int
    seconds: float
    memory_mb: float
    disk_mb: float
    passing_mb: float


@dataclass(frozen=True)
class Forecast:
    """The stages of a run, and what of the machine is free: `memory_mb` of the GPU where there is one."""

    stages: tuple[Estimate, ...]
    free_memory_mb: float
    free_disk_mb: float

    @property
    def todo(self) -> list[Estimate]:
        """Those that are not done."""
        return [e for e in self.stages if e.state != "done"]

    @property
    def seconds(self) -> float:
        return sum(e.seconds for e in self.todo)

    @property
    def memory_mb(self) -> float:
        return max((e.memory_mb for e in self.todo), default=0.0)

    @property
    def disk_mb(self) -> float:
        """What is needed at the worst moment."""
        return sum(e.disk_mb for e in self.todo) + max((e.passing_mb for e in self.todo), default=0.0)

    def demand_room(self, config: RunConfig) -> None:
        """Raises BadInput, with the way out, where memory or disk will not do."""
        worst = max(self.todo, key=lambda e: e.memory_mb, default=None)
        if worst:
            _demand_memory(config, worst.stage, worst.memory_mb, self.free_memory_mb)
        _demand_disk(self.disk_mb, self.free_disk_mb)


def _demand_memory(config: RunConfig, stage: str, needed_mb: float, free_mb: float) -> None:
    if needed_mb > free_mb:
        raise BadInput(
            f"{stage} takes about {spell_bytes(needed_mb)} of memory and {spell_bytes(free_mb)} are free: "
            f"{ways_out(config, stage)}"
        )


def _demand_disk(needed_mb: float, free_mb: float) -> None:
    if needed_mb > free_mb:
        raise BadInput(
            f"the run takes about {spell_bytes(needed_mb)} of disk and {spell_bytes(free_mb)} are free: make room, or "
            "give another --runs"
        )


# ---- counted --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Least:
    """What weights alone take: the stage that takes most memory, and the disk of all models and checkpoints."""

    stage: str
    memory_mb: float
    disk_mb: float

    def __str__(self) -> str:
        return f"{spell_bytes(self.memory_mb)} of memory ({self.stage}), {spell_bytes(self.disk_mb)} of disk"

    def demand_room(self, config: RunConfig, runs: Path) -> None:
        """Raises BadInput, with the way out, where even that is not free; a GPU's memory is not looked at."""
        if not (config.device != "cpu" and Path("/dev/nvidia0").exists()):
            _demand_memory(config, self.stage, self.memory_mb, free_memory_mb())
        _demand_disk(self.disk_mb, free_disk_mb(runs))


def least(config: RunConfig) -> Least | None:
    """Counted from the base's files; None where the base is a tiny one, which takes next to nothing.

    Weights are float32 in memory and on disk. Of a training these are counted: the weights of the student and of a live
    teacher, gradients, and AdamW's two states a trained weight; of the disk, the models of all stages and checkpoints.
    """
    if config.model.base is None:
        return None
    parts = _weights(config.model.base)
    every = sum(parts.values())
    trainings = {name: fit for name, fit in config.fits().items() if not name.startswith("model.")}
    memory: dict[str, float] = {"answer": every * FLOAT / 1e6}
    passing = 0.0
    for name, fit in trainings.items():
        stage = name.removesuffix(".fit")
        learning = _learning(parts, fit)
        models = 1 + _has_live_teacher(config, stage)
        memory[stage] = (models * every * FLOAT + learning * (FLOAT + ADAM)) / 1e6
        passing = max(passing, CHECKPOINTS * learning * (FLOAT + ADAM) / 1e6)
    stage = max(memory, key=lambda name: memory[name])
    rounds = config.reflect.rounds - 1 if config.reflect else 0
    return Least(stage, memory[stage], (len(trainings) + rounds) * every * FLOAT / 1e6 + passing)


def _weights(base: Path) -> dict[str, int]:
    """Numbers by part of the model, from the heads of its files."""
    from safetensors import safe_open

    found = dict.fromkeys(("vision", "merger", "text", "head"), 0)
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = "merger" if "visual.merger" in name else "vision" if "visual." in name else "text"
                found["head" if "lm_head" in name else part] += math.prod(file.get_slice(name).get_shape())
    return found


def _learning(parts: Mapping[str, int], fit: FitConfig) -> int:
    return 0 if fit.lora else sum(n for part, n in parts.items() if part not in fit.freeze)


def _has_live_teacher(config: RunConfig, stage: str) -> bool:
    if stage == "distill":
        return bool(config.distill and config.distill.kd_weight > 0 and config.distill.teacher_as == "live")
    return bool(stage.startswith("reflect") and config.reflect and config.reflect.objective == "distill")


def ways_out(config: RunConfig, stage: str) -> str:
    """The knobs that lower the memory of a stage and are not turned yet, the strongest first."""
    found: list[str] = []
    kind = stage.partition("-")[0]
    fit = config.fits().get(f"{kind}.fit")
    if fit is not None:
        name = f"{kind}.fit"
        if fit.lora is None and config.model.base is not None:
            found.append(f"{name}.lora={{}} (gradients and optimiser of additions alone)")
        if _has_live_teacher(config, kind) and kind == "distill":
            found.append("distill.teacher_as=states (no teacher beside the student)")
        if fit.recompute == "nothing":
            found.append(f"{name}.recompute=blocks")
        if fit.precision == "float32":
            found.append(f"{name}.precision=bf16")
        if not fit.max_tokens:
            found.append(f"{name}.max_tokens=2048 (and {name}.overlong=shrink)")
        if fit.accumulate < fit.rows:
            found.append(f"{name}.accumulate={fit.rows} (an image at a time)")
        if not config.shard:
            found.append("shard=true with several processes")
    elif kind in ("answer", "pseudo") and config.answer.batch > 1:
        found.append(f"answer.batch={max(1, config.answer.batch // 4)}")
    if config.model.base is not None and config.model.max_image_tokens > 256:
        found.append("model.max_image_tokens=256")
    return "set " + ", or ".join(found) if found else "a smaller base, or a larger machine, is needed"


# ---- the machine ----------------------------------------------------------------------------------------------------


def free_memory_mb() -> float:
    """Of main memory, for a new process: what the system says, or a container's limit where that is lower."""
    bounds = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        bounds.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration):
        return math.inf
    for group in _groups():
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with suppress(OSError):
                most, taken = ((group / name).read_text().strip() for name in (limit, used))
                if most.isdigit():
                    bounds.append(int(most) - int(taken) + _reclaimable(group))
    return min(bounds) / 1e6


def _groups() -> list[Path]:
    """The control groups that bound this process's memory, each with all above it."""
    root = Path("/sys/fs/cgroup")
    found = {root, root / "memory"}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds == "" or "memory" in kinds.split(","):
                inner = (root / "memory" if kinds else root) / name.lstrip("/")
                found |= {inner, *(p for p in inner.parents if p.is_relative_to(root))}
    return sorted(found)


def _reclaimable(group: Path) -> int:
    """Bytes of file pages that a group gives up when it needs room."""
    with suppress(OSError):
        for line in (group / "memory.stat").read_text().splitlines():
            if line.split()[0] in ("inactive_file", "total_inactive_file"):
                return int(line.split()[1])
    return 0


def free_disk_mb(runs: Path) -> float:
    """On the disk of a folder that need not be there yet."""
    place = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    return shutil.disk_usage(place).free / 1e6


# ---- measured -------------------------------------------------------------------------------------------------------


def forecast(config: RunConfig, states: Sequence[StageStatus], runs: Path) -> Forecast:
    """Try every stage in small, in a process of its own, and reckon what all of it takes.

    Raises BadInput where a trial fails or is killed, naming its stage.
    """
    tried: dict[str, dict[str, Any]] = {}
    free = free_memory_mb()  # before the trial takes some
    with progress(len(states), "measure", "stages") as advance:
        for result in _trial(config, states):
            tried[result["stage"]] = result
            advance(1)
    sums = _Sums(config, tried)
    made = tuple(sums.estimate(s.name, s.state) for s in states)
    memory = tried["prepare"].get("gpu_free_mb") or free
    return Forecast(made, memory, free_disk_mb(runs))


def _trial(config: RunConfig, states: Sequence[StageStatus]) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="clinkd-plan-") as scratch:
        folder = Path(scratch)
        write_json(folder / "config.json", dump(config))
        words = [sys.executable, "-m", "clinkd.pipeline.trial", str(folder / "config.json"), str(folder)]
        with (folder / "told").open("wb") as told:
            child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=told)
        done = 0
        try:
            assert child.stdout is not None
            for line in child.stdout:
                yield json.loads(line)
                done += 1
            child.wait()
        finally:
            child.kill()
        if done < len(states):
            raise BadInput(_failure(config, states[done].name, child.returncode, (folder / "told").read_text("utf-8")))


def _failure(config: RunConfig, stage: str, status: int, told: str) -> str:
    if status == -9:
        return f"the trial of {stage} was killed: memory will not do; {ways_out(config, stage)}"
    lines = told.strip().splitlines() or [f"it ended with {status}"]
    return f"the trial of {stage} failed: {lines[-1].rpartition('BadInput: ')[2]}"


class _Sums:
    """From a run in small to the whole."""

    def __init__(self, config: RunConfig, tried: Mapping[str, Mapping[str, Any]]) -> None:
        self.config, self.tried = config, tried
        told = tried["prepare"]["recorded"]
        self.mini: Mapping[str, int] = tried["prepare"]["asked"]
        self.mini_images: Mapping[str, int] = tried["prepare"]["images"]
        self.answers: Mapping[str, list[int]] = tried["prepare"]["answers"]
        self.generate = next(t["generate"] for t in tried.values() if "generate" in t)
        self.questions: dict[str, int] = {split: told[split]["questions"] for split in SPLITS}
        self.images: dict[str, int] = {split: told[split]["images"] for split in SPLITS}
        if config.data.path is None:
            drawn = config.data.phantoms
            whole = {
                "train": drawn.train_images, "validation": drawn.validation_images, "test": drawn.test_images,
            }  # fmt: skip
            self.questions = {s: round(n / self.images[s] * whole[s]) for s, n in self.questions.items()}
            self.images = whole

    def estimate(self, name: str, state: str) -> Estimate:
        """One stage."""
        tried, kind = self.tried[name], name.partition("-")[0]
        steps, seconds = self._fits(kind, tried)
        loops = {k: v for k, v in tried["recorded"].items() if isinstance(v, dict) and "units" in v}
        fixed = max(0.0, tried["seconds"] - self._tried_fits(tried) - sum(v["seconds"] for v in loops.values()))
        for loop, measured in loops.items():
            seconds += self._loop(kind, loop, measured)
        whole = kind in ("select", "score") or (kind == "prepare" and not loops)
        seconds += self._whole(kind, tried["seconds"]) if whole else fixed
        trained = [v["trained parameters"] for k, v in tried["recorded"].items() if k.startswith("fit-")]
        passing = CHECKPOINTS * max(trained, default=0) * (FLOAT + ADAM) / 1e6
        stored = tried["recorded"].get("stored teacher")
        if stored:
            passing += stored["bytes"] * self.questions["train"] / self.mini["train"] / 1e6
        return Estimate(name, state, steps, seconds, self._memory(kind, tried), self._disk(kind, tried), passing)

    # -- time

    def _fits(self, kind: str, tried: Mapping[str, Any]) -> tuple[int, float]:
        """Steps and seconds of all trainings of a stage."""
        steps, seconds = 0, 0.0
        for name, paces in tried["fits"].items():
            fit = self.config.fits()[PRETRAINED.get(name, f"{kind}.fit")]
            rows = tried["recorded"][name]["rows"] * self.images["train"] / self.mini_images["train"]
            number = math.ceil(fit.epochs * rows / fit.rows)
            steps, seconds = steps + number, seconds + number * statistics.median(paces)
        return steps, seconds

    @staticmethod
    def _tried_fits(tried: Mapping[str, Any]) -> float:
        return float(
            sum(tried["recorded"][n]["steps"] * statistics.median(paces) for n, paces in tried["fits"].items())
        )

    def _loop(self, kind: str, loop: str, measured: Mapping[str, float]) -> float:
        """Seconds of something that a stage does so many times."""
        if loop == "answers":
            return self._answering(kind)
        units: float = {
            "draw": sum(self.images.values()),
            "images": sum(self.images.values()),
            "stored samples": self.questions["train"],
            "pairs": self.config.select.clip.epochs * self.images["train"],
        }[loop]
        return measured["seconds"] / measured["units"] * units

    def _answering(self, kind: str) -> float:
        config, train = self.config, self.questions["train"]
        if kind == "reflect" and config.reflect:
            return self._generation({"train": config.reflect.review_share * train}, 1)
        if kind == "pseudo" and config.distill:
            outside = train * (1 - config.teacher.share if config.teacher else 1.0)
            share = 1.0 if config.distill.targets == "pseudo" else config.distill.pseudo_share
            return self._generation({"train": share * outside}, config.answer.beams)
        asked = {split: float(self.questions[split]) for split in ("validation", "test")}
        return self._generation(asked, config.answer.beams)

    def _generation(self, asked: Mapping[str, float], beams: int) -> float:
        """Batches in order of length: each takes as long as its longest answer."""
        pace: Mapping[str, float] = self.generate[str(beams)]
        batch = self.config.answer.batch
        seconds = 0.0
        density: float = self.generate["tokens_a_character"]
        for split, number in asked.items():
            lengths = self.answers[split]
            batches = number / batch
            for k in range(math.ceil(batches)):
                part = lengths[int(k / batches * len(lengths)) : int(min(1, (k + 1) / batches) * len(lengths))]
                tokens = min(max(part or lengths[-1:]) * density + 1, self.config.answer.max_new_tokens)
                seconds += min(1.0, batches - k) * (pace["batch"] + pace["token"] * tokens)
        return seconds

    def _whole(self, kind: str, seconds: float) -> float:
        """A stage whose time goes with the answers it looks at."""
        if kind == "prepare":
            return seconds
        splits = ["test"] if kind == "score" or self.config.select.trust == "always" else ["validation", "test"]
        there, here = (sum(asked[s] for s in splits) for asked in (self.questions, self.mini))
        fixed = min(seconds, JAVA_SECONDS) if kind == "score" else 0.0
        return fixed + (seconds - fixed) * there / here

    # -- memory and disk

    def _memory(self, kind: str, tried: Mapping[str, Any]) -> float:
        """What it took in small, and what more samples and images add; of a GPU, the former alone."""
        found: float = tried["memory_mb"]
        if kind in ("answer", "pseudo", "reflect"):  # longer answers than those of the small run
            found = max(found, self.generate["memory_mb"])
        if "gpu_free_mb" in self.tried["prepare"]:
            return found
        new = self.images["train"] - self.mini_images["train"]
        found += (self.questions["train"] - self.mini["train"]) * float(self.tried["prepare"]["sample_mb"])
        if tried["fits"] and self.config.model.sight == "live":
            found += min(IMAGE_CACHE_MB, new * self.generate["image_mb"])
        if kind == "clip":
            found += new * self.config.select.clip.image_pixels**2 * PIXEL_BYTES / 1e6
        return found

    def _disk(self, kind: str, tried: Mapping[str, Any]) -> float:
        taken: float = tried["disk_mb"]
        if kind == "see" or (kind == "prepare" and self.config.data.path is None):
            return taken * sum(self.images.values()) / sum(self.mini_images.values())
        if kind in ("pseudo", "answer", "select"):
            return taken * sum(self.questions.values()) / sum(self.mini.values())
        return taken

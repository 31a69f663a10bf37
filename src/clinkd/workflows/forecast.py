"""What a run will take: time, memory and disk by stage, from a run in small (`trial.py`); or counted, at once."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinkd.config import FitConfig, RunConfig
from clinkd.pipeline import plan
from clinkd.pipeline.graph import StageStatus, draft_of, plan_stages
from clinkd.pipeline.runs import RUNS
from clinkd.records import SPLITS, BadInput
from clinkd.settings import dump
from clinkd.storage import folder_bytes, free_bytes, progress, spell_bytes, standing, write_json
from clinkd.system_memory import free_memory_mb

FLOAT = 4  # bytes of a weight, whatever the file holds
STATES = {"adamw": 2 * FLOAT, "muon": FLOAT}  # bytes of the optimiser's, a weight; muon's of matrices
CHECKPOINTS = 3  # two kept, and one being written
IMAGE_CACHE_MB = 256.0  # of resampled images, each training (clinkd.model.encode)
PRETRAINED = {"fit-see": "model.tiny.pretrain.vision", "fit-pairs": "model.tiny.pretrain.pairs"}
PIXEL_BYTES = 3 * FLOAT * 2  # of a CLIP's pixel, twice while they are put together
OUT_OF_MEMORY = ("OutOfMemoryError", "CUDA out of memory", "can't allocate memory", "MemoryError", "bad_alloc")


@dataclass(frozen=True)
class StageEstimate:
    """What a stage will take, from `measured_steps` of its trainings: nothing where it is done.

    `disk_mb` stays; `passing_mb` is needed beside it while the stage runs.
    """

    stage: str
    state: str
    steps: int
    seconds: float
    memory_mb: float
    disk_mb: float
    passing_mb: float
    measured_steps: int = 0
    trained_parameters: int = 0


@dataclass(frozen=True)
class Forecast:
    """The stages of a run, and what of the machine is free: `memory_mb` of the GPU where there is one.

    `drafts_mb`: what stages that are half done have on the disk already. `parameters`: of the model. `load`: cores that
    other work had before the trial; it makes times longer than they will be without it.
    """

    stages: tuple[StageEstimate, ...]
    free_memory_mb: float
    free_disk_mb: float
    drafts_mb: float = 0.0
    parameters: int = 0
    load: float = 0.0

    @property
    def todo(self) -> list[StageEstimate]:
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
            saved = savings(config, worst.stage, self.parameters, worst.trained_parameters)
            _demand_memory(config, worst.stage, worst.memory_mb, self.free_memory_mb, saved)
        _demand_disk(self.disk_mb, self.free_disk_mb + self.drafts_mb)


def _demand_memory(config: RunConfig, stage: str, needed_mb: float, free_mb: float, saved: Mapping[str, float]) -> None:
    if needed_mb > free_mb:
        raise BadInput(
            f"{stage} takes about {spell_bytes(needed_mb)} of memory and {spell_bytes(free_mb)} are free: "
            f"{ways_out(config, stage, saved)}"
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
    to come. `saved_mb`: what knobs would save of that memory. `drafts_mb`: what of the disk is taken already."""

    stage: str
    memory_mb: float
    disk_mb: float
    saved_mb: Mapping[str, float]
    drafts_mb: float = 0.0

    def __str__(self) -> str:
        return f"{spell_bytes(self.memory_mb)} of memory ({self.stage}), {spell_bytes(self.disk_mb)} of disk"

    def demand_room(self, config: RunConfig, runs: Path) -> None:
        """Raises BadInput, with the way out, where even that is not free; a GPU's memory is not looked at."""
        if not (config.device != "cpu" and Path("/dev/nvidia0").exists()):
            _demand_memory(config, self.stage, self.memory_mb, free_memory_mb(), self.saved_mb)
        _demand_disk(self.disk_mb, free_bytes(runs) / 1e6 + self.drafts_mb)


def count_least(config: RunConfig, states: Sequence[StageStatus] = ()) -> LeastCost | None:
    """Counted from the base's files; None where the base is a tiny one, which takes next to nothing, and where nothing
    is left to do of what takes most. `states`: how far the stages are, if any is done.

    Weights are float32 in memory and on disk. Of a training these are counted: the weights of the student and of a live
    teacher, gradients, and the optimiser's states a trained weight; of the disk, models and checkpoints.

    Raises BadInput for a file of weights that cannot be read.
    """
    if config.model.base is None:
        return None
    parts, done = _weights(config.model.base), {s.name for s in states if s.state == "done"}
    every = sum(parts.values())
    learning = {s: _learning(parts, fit) for s, fit in _trainings(config).items() if s not in done}
    answering = [n for n in ("answer", "shuffle") if n not in done and (n == "answer" or config.evaluate.shuffled)]
    memory = dict.fromkeys(answering[:1], every * FLOAT / 1e6)
    passing = 0.0
    for stage, number in learning.items():
        each = _trained_bytes(_trainings(config)[stage])
        memory[stage] = ((1 + _has_live_teacher(config, stage)) * every * FLOAT + number * each) / 1e6
        passing = max(passing, CHECKPOINTS * number * each / 1e6)
    if not memory:
        return None
    worst = max(memory, key=lambda name: memory[name])
    saved = savings(config, worst, every, learning.get(worst, 0))
    return LeastCost(worst, memory[worst], len(learning) * every * FLOAT / 1e6 + passing, saved, drafts_mb(states))


def _trainings(config: RunConfig) -> dict[str, FitConfig]:
    """By stage, those that begin from the base."""
    found: dict[str, FitConfig] = {}
    for name, fit in config.fits().items():
        kind = name.removesuffix(".fit")
        if kind == "reflect" and config.reflect:
            found |= {f"reflect-{n}": fit for n in range(1, config.reflect.rounds + 1)}
        elif not name.startswith("model."):
            found[kind] = fit
    return found


def _weights(base: Path) -> dict[str, int]:
    """Numbers by part of the model, from the heads of its files."""
    from safetensors import SafetensorError, safe_open

    found = dict.fromkeys(("vision", "merger", "text", "head"), 0)
    for path in sorted(base.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    part = "merger" if "visual.merger" in name else "vision" if "visual." in name else "text"
                    found["head" if "lm_head" in name else part] += math.prod(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise BadInput(f"model.base: {path} is damaged or no safetensors file ({error}); copy it anew") from None
    return found


def _learning(parts: Mapping[str, int], fit: FitConfig) -> int:
    return 0 if fit.lora else sum(n for part, n in parts.items() if part not in fit.freeze)


def _trained_bytes(fit: FitConfig) -> int:
    """Of gradient and optimiser in memory, and just so of weight and optimiser in a checkpoint."""
    return FLOAT + STATES[fit.optimizer]


def _has_live_teacher(config: RunConfig, stage: str) -> bool:
    if stage == "distill":
        return bool(config.distill and config.distill.kd_weight > 0 and config.distill.teacher_as == "live")
    return bool(stage.startswith("reflect") and config.reflect and config.reflect.objective == "distill")


def savings(config: RunConfig, stage: str, parameters: int, learning: int) -> dict[str, float]:
    """MB of a stage's memory that knobs save for certain, the most first; `learning` of its `parameters` are trained.

    What they save of activations is known to a trial alone.
    """
    kind = stage.partition("-")[0]
    fit = config.fits().get(f"{kind}.fit")
    if fit is None:
        return {}
    found = {}
    if fit.lora is None and config.model.base is not None:
        found[f"{kind}.fit.lora={{}}"] = learning * _trained_bytes(fit) / 1e6
    if _has_live_teacher(config, kind):
        knob = "distill.teacher_as=states" if kind == "distill" else "reflect.objective=ce"
        found[knob] = parameters * FLOAT / 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def ways_out(config: RunConfig, stage: str, saved_mb: Mapping[str, float] | None = None) -> str:
    """The knobs that lower the memory of a stage and are not turned yet, the strongest first; what is saved for
    certain is told where it is known."""
    kind = stage.partition("-")[0]
    fit = config.fits().get(f"{kind}.fit")
    known = saved_mb or savings(config, stage, 0, 0)
    found = [f"{knob} ({spell_bytes(mb)} less)" if mb else knob for knob, mb in known.items()]
    if fit is not None:
        name = f"{kind}.fit"
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
    elif kind in ("answer", "pseudo", "shuffle") and config.answer.batch > 1:
        found.append(f"answer.batch={max(1, config.answer.batch // 4)}")
    if config.model.base is not None and config.model.max_image_tokens > 256:
        found.append("model.max_image_tokens=256")
    return "set " + ", or ".join(found) if found else "a smaller base, or a larger machine, is needed"


def drafts_mb(states: Sequence[StageStatus]) -> float:
    """What stages that are half done have on the disk: the run goes on in it, and needs it no second time."""
    return sum(folder_bytes(draft_of(s.folder)) for s in states if s.state == "partial") / 1e6


# ---- measured -------------------------------------------------------------------------------------------------------


def forecast(config: RunConfig, runs: Path = RUNS) -> Forecast:
    """What each stage of a run under `runs` will take: time, memory and disk, from a run in small.

    Raises BadInput where a trial fails or is killed, naming its stage.
    """
    return forecast_stages(config, [look.status for look in plan_stages(plan(config), runs)], runs)


def forecast_stages(config: RunConfig, states: Sequence[StageStatus], runs: Path) -> Forecast:
    """Try every stage in small, in a process of its own, and reckon what all of it takes; of a run that is done,
    nothing is tried.

    Raises BadInput where a trial fails or is killed, naming its stage.
    """
    tried: dict[str, dict[str, Any]] = {}
    # before the trial takes some
    free, room, load = free_memory_mb(), free_bytes(runs) / 1e6, os.getloadavg()[0]
    if all(s.state == "done" for s in states):
        return Forecast(tuple(_nothing(s.name) for s in states), free, room)
    with progress(len(states), "measure", "stages") as advance:
        for result in _trial(config, states, _roomiest(runs)):
            tried[result["stage"]] = result
            advance(1)
    sums = _Sums(config, tried)
    made = tuple(_nothing(s.name) if s.state == "done" else sums.estimate(s.name, s.state) for s in states)
    memory = tried["prepare"].get("gpu_free_mb") or free
    return Forecast(made, memory, room, drafts_mb(states), tried["base"]["recorded"]["parameters"], load)


def _nothing(stage: str) -> StageEstimate:
    return StageEstimate(stage, "done", 0, 0.0, 0.0, 0.0, 0.0)


def _roomiest(runs: Path) -> Path:
    """Where the trial writes: its models are as large as the run's, and a folder for such things may be in memory."""
    usual, place = Path(tempfile.gettempdir()), standing(runs)
    if os.access(place, os.W_OK) and shutil.disk_usage(place).free > shutil.disk_usage(usual).free:
        return place
    return usual


def _trial(config: RunConfig, states: Sequence[StageStatus], room: Path) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix=".clinkd-plan-", dir=room) as scratch:
        folder = Path(scratch)
        write_json(folder / "config.json", dump(config))
        words = [sys.executable, "-m", "clinkd.workflows.trial", str(folder / "config.json"), str(folder)]
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
    if any(word in lines[-1] for word in OUT_OF_MEMORY):
        return f"the trial of {stage} ran out of memory: {ways_out(config, stage)}"
    return f"the trial of {stage} failed: {lines[-1].rpartition('BadInput: ')[2]}"


class _Sums:
    """From a run in small to the whole."""

    def __init__(self, config: RunConfig, tried: Mapping[str, Mapping[str, Any]]) -> None:
        self.config, self.tried = config, tried
        told = tried["prepare"]["recorded"]
        self.mini: Mapping[str, int] = tried["prepare"]["asked"]
        self.mini_images: Mapping[str, int] = tried["prepare"]["images"]
        self.wide: Mapping[str, Mapping[str, int]] = tried["prepare"]["wide"]
        self.answers: Mapping[str, list[tuple[int, int]]] = tried["prepare"]["answers"]
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
        rows = tried["prepare"]["rows"]
        self.mini_rows: int = rows["tried"]
        self.rows: int = round(rows["all"] / told["train"]["images"] * self.images["train"])
        self.on_gpu = "gpu_free_mb" in tried["prepare"]

    def estimate(self, name: str, state: str) -> StageEstimate:
        """One stage."""
        tried, kind = self.tried[name], name.partition("-")[0]
        steps, seconds = self._fits(kind, tried)
        loops = {k: v for k, v in tried["recorded"].items() if isinstance(v, dict) and "units" in v}
        fixed = max(0.0, tried["seconds"] - self._tried_fits(tried) - sum(v["seconds"] for v in loops.values()))
        for loop, measured in loops.items():
            seconds += self._loop(kind, loop, measured)
        seconds += self._rest(kind, tried, fixed) + self._read(kind)
        passing, trained = 0.0, 0
        for fitted, fit in self._trained(kind, tried):
            passing = max(passing, CHECKPOINTS * fitted * _trained_bytes(fit) / 1e6)
            trained = max(trained, fitted)
        stored = tried["recorded"].get("stored_teacher")
        if stored:
            passing += stored["bytes"] * self.questions["train"] / self.mini["train"] / 1e6
        memory, disk = self._memory(kind, tried), self._disk(kind, tried)
        paced = sum(len(paces) for paces in tried["fits"].values())
        return StageEstimate(name, state, steps, seconds, memory, disk, passing, paced, trained)

    def _fit(self, kind: str, name: str) -> FitConfig:
        return self.config.fits()[PRETRAINED.get(name, f"{kind}.fit")]

    def _trained(self, kind: str, tried: Mapping[str, Any]) -> Iterator[tuple[int, FitConfig]]:
        """How many parameters each training of a stage trains."""
        for name in tried["fits"]:
            yield tried["recorded"][name]["trained_parameters"], self._fit(kind, name)

    # -- time

    def _fits(self, kind: str, tried: Mapping[str, Any]) -> tuple[int, float]:
        """Steps and seconds of all trainings of a stage."""
        steps, seconds = 0, 0.0
        for name, paces in tried["fits"].items():
            fit = self._fit(kind, name)
            share = self._drawn(kind, self.rows) / self._drawn(kind, self.mini_rows)
            rows = tried["recorded"][name]["rows"] * share
            number = math.ceil(round(fit.epochs * rows / fit.rows, 6))
            steps, seconds = steps + number, seconds + number * statistics.median(paces)
            if self.config.model.vision_features == "live" and not self.on_gpu:
                # a trial sees its few images again and again; opening goes on beside the steps, on the same cores
                seconds += self._opened(fit.epochs * rows, rows) * self.generate["open_seconds"] / self._threads()
        return steps, seconds

    def _threads(self) -> int:
        return self.config.threads or len(os.sched_getaffinity(0))

    def _opened(self, seen: float, images: float) -> float:
        """How many images are opened where so many are seen, with repeats: those that find no place are opened anew."""
        if images * self.generate["image_mb"] <= IMAGE_CACHE_MB:
            return min(seen, images)
        return seen

    def _drawn(self, kind: str, rows: int) -> int:
        """How many of so many rows a stage trains on."""
        if kind == "teacher" and self.config.teacher:
            from clinkd.data.split import count_sampled_images

            return count_sampled_images(rows, self.config.teacher.share, self.config.seed)
        return rows

    @staticmethod
    def _tried_fits(tried: Mapping[str, Any]) -> float:
        return float(
            sum(tried["recorded"][n]["steps"] * statistics.median(paces) for n, paces in tried["fits"].items())
        )

    def _loop(self, kind: str, loop: str, measured: Mapping[str, float]) -> float:
        """Seconds of something that a stage does so many times."""
        if loop == "answers":
            return self._answering(kind)
        if loop == "rechecks":
            again = min(self.config.reflect.recheck, self._reviewed) if self.config.reflect else 0
            return self._generation({"train": again}, 1)
        units: float = {
            "draw": sum(self.images.values()),
            "images": sum(self.images.values()),
            "stored_samples": self.questions["train"],
            "pairs": self.config.select.clip.epochs * self.images["train"],
            "corrections": self._reviewed,
        }[loop]
        return measured["seconds"] / measured["units"] * units

    def _answering(self, kind: str) -> float:
        config, train = self.config, self.questions["train"]
        if kind == "reflect" and config.reflect:
            return self._generation({"train": self._reviewed}, 1)
        if kind == "pseudo" and config.distill:
            outside = train * (1 - config.teacher.share if config.teacher else 1.0)
            share = 1.0 if config.distill.targets == "pseudo" else config.distill.pseudo_share
            return self._generation({"train": share * outside}, config.answer.rows)
        if kind == "shuffle":
            return self._generation({"test": float(self.questions["test"])}, 1)
        asked = {split: float(self.questions[split]) for split in ("validation", "test")}
        return self._generation(asked, config.answer.rows)

    @property
    def _reviewed(self) -> float:
        """Questions that a round reviews."""
        return self.config.reflect.review_share * self.questions["train"] if self.config.reflect else 0.0

    def _generation(self, asked: Mapping[str, float], rows: int) -> float:
        """As if answers of like length were batched, each batch taking as long as its longest: what has ended leaves
        its batch, so that a batch of several lengths takes about as long."""
        pace: Mapping[str, float] = self.generate[str(rows)]
        batch = self.config.answer.batch
        seconds = 0.0
        a_character, a_box, any_case = self.generate["answer_tokens"]
        for split, number in asked.items():
            lengths = [a_character * c + a_box * b + any_case for c, b in self.answers[split]]
            batches = number / batch
            for k in range(math.ceil(batches)):
                part = lengths[int(k / batches * len(lengths)) : int(min(1, (k + 1) / batches) * len(lengths))]
                tokens = min(max(1.0, *(part or lengths[-1:])), self.config.answer.max_new_tokens)
                seconds += min(1.0, batches - k) * (pace["batch"] + pace["token"] * tokens)
            if self.config.model.vision_features == "live":
                seconds += self._asked_images(split, number) * self.generate["open_seconds"]
        return float(seconds)

    def _asked_images(self, split: str, number: float) -> float:
        """Of a split's images, those with a question among so many drawn."""
        images, questions = self.images[split], self.questions[split]
        unseen: float = max(0.0, 1 - number / questions) ** (questions / max(1, images))
        return images * (1 - unseen)

    def _rest(self, kind: str, tried: Mapping[str, Any], fixed: float) -> float:
        """Seconds beside trainings and loops: of stages that look at answers, by their number."""
        splits = ["test"] if kind == "score" or self.config.select.trust == "always" else ["validation", "test"]
        more = sum(self.questions[s] for s in splits) / sum(self.wide["asked"][s] for s in splits)
        if kind == "select":
            return float(tried["seconds"]) * more
        if kind == "score":
            blind, always = tried["blind_seconds"], tried["fixed_seconds"]
            by_answers = max(0.0, tried["seconds"] - always - blind) * more
            return float(always + by_answers + blind * self.questions["train"] / self.wide["asked"]["train"])
        return fixed

    def _read(self, kind: str) -> float:
        """Seconds that reading the training questions takes longer than those of the trial."""
        if kind in ("prepare", "see", "answer", "select", "shuffle"):
            return 0.0
        seen = self.wide["asked"] if kind in ("clip", "score") else self.mini
        return max(0, self.questions["train"] - seen["train"]) * float(self.tried["prepare"]["sample_seconds"])

    # -- memory and disk

    def _memory(self, kind: str, tried: Mapping[str, Any]) -> float:
        """What it took in small, and what more samples and images add; of a GPU, the former alone."""
        found: float = tried["memory_mb"]
        if kind in ("answer", "pseudo", "reflect", "shuffle"):  # longer answers than those of the small run
            found = max(found, self.generate["memory_mb"])
        if self.on_gpu:
            return found
        wide = kind in ("clip", "select", "score")
        new = self.images["train"] - (self.wide["images"] if wide else self.mini_images)["train"]
        asked = (self.wide["asked"] if wide else self.mini)["train"]
        found += (self.questions["train"] - asked) * float(self.tried["prepare"]["sample_mb"])
        if tried["fits"] and self.config.model.vision_features == "live":
            found += min(IMAGE_CACHE_MB, new * self.generate["image_mb"])
        if kind == "clip":
            found += new * self.config.select.clip.image_pixels**2 * PIXEL_BYTES / 1e6
        return found

    def _disk(self, kind: str, tried: Mapping[str, Any]) -> float:
        taken: float = tried["disk_mb"]
        if kind == "see":
            return taken * sum(self.images.values()) / sum(self.mini_images.values())
        if kind == "prepare" and self.config.data.path is None:
            drawn = tried["recorded"]
            return taken * sum(self.images.values()) / sum(int(drawn[s]["images"]) for s in SPLITS)
        if kind == "select":
            return taken * self.questions["test"] / self.wide["asked"]["test"]
        if kind == "shuffle":
            return taken * self.questions["test"] / max(1, self.mini["test"])
        if kind in ("pseudo", "answer"):
            return taken * sum(self.questions.values()) / sum(self.mini.values())
        return taken

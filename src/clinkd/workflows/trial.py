"""Estimate a run from a small one: every stage by its own code, on a part of the data and for a few steps.

`python -m clinkd.workflows.trial CONFIG.json FOLDER` is an own process: if it takes too much memory, only it ends.
It prints a JSON object a line for each stage: `estimate` (a `StageEstimate`), `gpu_free_mb`, `parameters`, `copies`.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from clinkd import system_memory
from clinkd.config import AnswerConfig, FitConfig, RunConfig
from clinkd.data.split import count_sampled_images
from clinkd.model.encode import group_by_images
from clinkd.model.vlm import VisionLanguageModel
from clinkd.pipeline import report, steps
from clinkd.pipeline.cautions import PRETRAINED
from clinkd.pipeline.graph import Stage, StageContext
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.prepared import DATA, PREDICTIONS, read_split
from clinkd.pipeline.stages import plan
from clinkd.records import SPLITS, Sample, Split, Task
from clinkd.scoring.captions import CaptionScorer, NotComputed
from clinkd.scoring.spice import estimate_cpu_seconds, find_program
from clinkd.settings import change_knobs, override
from clinkd.storage import folder_bytes, read_json, write_json, write_lines
from clinkd.workflows.counted import count_weights, trained_bytes
from clinkd.workflows.forecast import CHECKPOINTS, StageEstimate
from clinkd.workflows.gpus import choose_longest
from clinkd.workflows.short_trial import (
    ANSWER_TOKENS,
    HELD_ROWS,
    IMAGE_TOKENS,
    STEPS,
    TOGETHER,
    TOKENS,
    TRAINED_ROWS,
    TRIED_QUESTIONS,
    WEIGHED_ROWS,
    MoreMemory,
    Scale,
    compare_rows,
    extrapolate_stages,
    list_large_bases,
    write_copies,
)
from clinkd.workflows.trial_rows import Counts, choose_heaviest, choose_typical, count_samples, write_truths

LOOK_SECONDS = 0.2
LONGEST, SHORTEST = 48, 8  # answers whose generation is timed, tokens
OPENED = 24  # images whose opening is timed
SPELLED = 1000  # answers of a split whose tokens are counted, or up to twice as many
SAMPLE_MB = 0.0015  # a sample in memory
IMAGE_CACHE_MB = 256.0  # resampled images that a training keeps (clinkd.model.encode)
PIXEL_BYTES = 3 * 4 * 2  # a CLIP's pixel in float32, twice while they are put together

TRAIN: tuple[Split, ...] = ("train",)
HELD: tuple[Split, ...] = ("validation", "test")
TEST: tuple[Split, ...] = ("test",)
# The questions that a stage looks at: its loops and its files grow with their number.
QUESTIONS = {
    "prepare": SPLITS, "eyes": SPLITS, "see": SPLITS, "pseudo": TRAIN, "distill": TRAIN, "reflect": TRAIN,
    "clip": TRAIN, "answer": HELD, "select": HELD, "shuffle": TEST, "likelihood": TEST, "probe": SPLITS, "score": TEST,
}  # fmt: skip
LOOKING = ("eyes", "see")  # stages that look at each image once, whatever is asked about it
ANSWERING = ("pseudo", "reflect", "answer", "shuffle")
FIXED_FILES = ("general", "distill", "reflect", "clip", "score")  # a model or a page, whatever the number of questions
# Rows of each split for stages without a large model: enough for a step of a CLIP, and truths to score as answers.
WIDE: dict[Split, int] = {"train": 128, "validation": 40, "test": 40}
WIDE_STAGES = ("clip", "select", "score")
WITHOUT_BASE = ("prepare", "clip", "select", "probe", "score")  # take nothing of a base but its tokenizer


def shrink_config(config: RunConfig, short: bool = False) -> RunConfig:
    """The run with fewer images, a few steps of each training, though no more than the run itself takes, and short
    answers. How many rows given data has is not known yet: on them each training takes the few steps.

    `short`: of a short copy of a deep base, in steps of one row with small images."""
    few = 16 if config.model.base is None else 4  # of each training: a tiny model's first steps tell little
    kept, whole = _count_kept_rows(config, short), _count_drawn_images(config, "train")
    settings = [f"answer.max_new_tokens={ANSWER_TOKENS if short else SHORTEST}"]
    if short:
        few, whole = STEPS, None
        settings.append(f"model.max_image_tokens={min(IMAGE_TOKENS, config.model.max_image_tokens)}")
    for split, number in kept.items():
        settings.append(f"data.phantoms.{split}_images={_limit_to_drawn(config, split, max(WIDE[split], number))}")
    drawings = _count_drawings(config)
    if drawings:
        settings.append(f"model.tiny.pretrain.general.images={min(drawings, kept['train'])}")
    for name, fit in config.fits().items():
        rows = drawings if drawings and name.startswith("model.") else whole
        steps = few if rows is None else min(few, fit.count_steps(_count_trained_rows(config, name, rows)))
        # half a step less, rounded up by the training: as many steps whatever the rounding of the epochs
        a_step = 1 if short else fit.rows
        epochs = (steps - 0.5) * a_step / max(1, _count_trained_rows(config, name, kept["train"]))
        settings += [f"{name}.rows=1", f"{name}.accumulate=1"] if short else []
        settings += [f"{name}.epochs={epochs}", f"{name}.min_steps=0", f"{name}.checkpoint_seconds=1000000000"]
    if config.reflect:  # a trial pays nobody
        settings.append("reflect.corrector=offline")
        if short:  # other rounds are the same work, and the time of answers is measured apart
            settings += ["reflect.rounds=1", f"reflect.recheck={min(1, config.reflect.recheck)}"]
    return override(config, settings)


def _count_kept_rows(config: RunConfig, short: bool = False) -> dict[Split, int]:
    """How many rows of each split the small run keeps."""
    if short:
        return {"train": TRAINED_ROWS, "validation": HELD_ROWS, "test": HELD_ROWS}
    train, held = (128, 12) if config.model.base is None else (24, 4)
    most = {"train": max([train, *(fit.rows for fit in config.fits().values())]), "validation": held, "test": held}
    return {split: _limit_to_drawn(config, split, most[split]) for split in SPLITS}


def _limit_to_drawn(config: RunConfig, split: Split, number: int) -> int:
    drawn = _count_drawn_images(config, split)
    return number if drawn is None else min(number, drawn)


def _count_drawn_images(config: RunConfig, split: Split) -> int | None:
    """The phantoms of a split, an image a row; None where data is given."""
    return None if config.data.path else int(getattr(config.data.phantoms, f"{split}_images"))


def _count_drawings(config: RunConfig) -> int:
    """The drawings of plain things that a tiny base learns from, an image a row; 0 if it does not."""
    pretrain = config.model.tiny.pretrain if config.model.base is None else None
    return pretrain.general.images if pretrain and pretrain.general else 0


def _count_trained_rows(config: RunConfig, name: str, rows: int) -> int:
    """On how many of the training rows a stage, or the training of these knobs, trains."""
    distill = config.distill
    if name.startswith("teacher") and config.teacher:
        return count_sampled_images(rows, config.teacher.share, config.seed)
    if name.startswith("distill") and distill and distill.labelled and distill.targets == "truth":
        return count_sampled_images(rows, distill.labelled, config.seed)
    return rows


@dataclass
class Trial:
    """What a stage took in small; `fits`: seconds of the steps of each training."""

    seconds: float
    memory_mb: float
    disk_mb: float
    fits: dict[str, list[float]]
    recorded: dict[str, Any]
    update_seconds: float = 0.0  # of a step: what the optimizer took, whatever the number of rows


class SmallRun:
    """The small run of `config` in `folder`, and what it tells about the whole run.

    `deep`: the run of the whole base, where that of `config` is a short copy of it. `first`: the run of another copy,
    which is a stage ahead, and does what needs no model for both.
    """

    def __init__(
        self, config: RunConfig, folder: Path, deep: RunConfig | None = None, first: SmallRun | None = None
    ) -> None:
        self.config, self.folder, self.small = config, folder, shrink_config(config, deep is not None)
        self.deep, self.first = deep, first
        self.wide_folder: Path = first.wide_folder if first else folder / "wide"
        self.scale = Scale()
        self.more: MoreMemory | None = None  # how much real rows take beside those tried
        self.on_gpu = Machine.of(config).ready() != "cpu"
        self.live = config.model.vision_features == "live"
        self.finished: dict[str, Path] = {}
        self.estimates: dict[str, StageEstimate] = {}
        self.image_seconds: float | None = None  # before an answer begins
        self.held_mb: dict[str, float] = {}  # as a stage begins
        self.parameters = 0
        self.paces: dict[int, tuple[float, float]] = {}
        self.open_seconds = self.image_mb = 0.0  # measured after the base; the drawings before it are small

    def estimate_stages(self) -> Iterator[StageEstimate]:
        """Try each stage, in order."""
        stages = plan(self.small)
        for number, stage in enumerate(stages, start=1):
            if self.first and stage.name in WITHOUT_BASE:
                self._take_over(stage.name)
            else:
                self.estimates[stage.name] = self._estimate_stage(stage)
            yield self.estimates[stage.name]
            if self.deep and self.config.reflect and stage.name == "reflect-1":  # other rounds are the same work
                for again in range(2, self.config.reflect.rounds + 1):
                    yield replace(self.estimates["reflect-1"], stage=f"reflect-{again}")
            later = {need.name for stage in stages[number:] for need in stage.needs}
            wanted = {place for name, place in self.finished.items() if name in later}
            for place in {*self.finished.values()} - wanted:  # models are large
                if place.parent == self.folder:  # and not that of the first run
                    shutil.rmtree(place)
            self.finished = {name: place for name, place in self.finished.items() if place in wanted}

    def _take_over(self, name: str) -> None:
        """A stage that the first run has done."""
        assert self.first
        self.finished[name], self.estimates[name] = self.first.finished[name], self.first.estimates[name]
        if name == "prepare":
            for known in ("answers", "drawn", "whole", "wide", "narrow"):
                setattr(self, known, getattr(self.first, known))

    def _estimate_stage(self, stage: Stage) -> StageEstimate:
        place = self.finished[stage.name] = self.folder / stage.name
        inputs = {need.name: self.finished[need.name] for need in stage.needs}
        if stage.name in WIDE_STAGES:
            inputs["prepare"] = self.wide_folder
        tried = self._try_scoring if stage.name == "score" else partial(self._try_stage, place=place)
        trial = tried(stage, inputs)
        if stage.name == "prepare":
            self.thin(place)
        if stage.name == "base":
            self.parameters = trial.recorded["parameters"]
        if not self.paces and {"base", *([] if self.live else ["see"])} <= self.finished.keys():
            self._measure_answers(stage)
        if stage.name in ("answer", "shuffle"):
            files: dict[Split, str] = steps.ANSWER_FILES if stage.name == "answer" else {"test": PREDICTIONS}
            write_truths(place, self.wide_folder, files, self.config.answer.candidates)
        return self.estimate(stage.name, trial)

    # ---- in small

    def _try_stage(
        self, stage: Stage, inputs: Mapping[str, Path], place: Path, captions: CaptionScorer | None = None
    ) -> Trial:
        """`captions`: with which the stage of the scores counts."""
        place.mkdir()
        recorded: dict[str, Any] = {}
        context = StageContext(place, inputs, stage.seed, recorded.__setitem__)
        self.held_mb[stage.name] = _forget_peak()
        with _watch_helpers() as helpers_mb, _watch_updates() as updates:
            seconds = _time(
                lambda: stage.work(context) if captions is None else report.write(context, self.small, captions)
            )
        write_json(place / "stage.json", {"identity": stage.identity, "seconds": seconds})
        fits = {path.parent.name: _read_step_seconds(path) for path in sorted(place.glob("fit-*/log.jsonl"))}
        updates_a_step = sum(updates) / max(1, sum(recorded[name]["steps"] for name in fits))
        memory_mb = self._without_rest(stage.name, _peak_mb()) + max(helpers_mb)
        return Trial(seconds, memory_mb, folder_bytes(place) / 1e6, fits, recorded, updates_a_step)

    def _without_rest(self, stage: str, peak_mb: float) -> float:
        """The peak, without what trials of other copies have left in this process: differences between copies are
        small, and count for many blocks."""
        return peak_mb if self.first is None else peak_mb - self.held_mb[stage] + self.first.held_mb[stage]

    def _try_scoring(self, stage: Stage, inputs: Mapping[str, Path]) -> Trial:
        """Score a few answers as a run does, without the stored SPICE scores of other runs. Then score more, and the
        few again, by the programs that run already: their difference is the time of answers, without any start."""
        few = {**inputs, "prepare": self.folder / "prepare", "select": self.folder / "few"}
        shutil.copytree(inputs["select"], few["select"])
        write_truths(few["select"], few["prepare"], {"test": PREDICTIONS}, self.config.answer.candidates)
        with CaptionScorer(self.folder / "spice.sqlite") as captions:
            first, more, again = (
                self._try_stage(stage, answers, self.folder / place, captions)
                for place, answers in (("score", few), ("score-more", inputs), ("score-again", few))
            )
        more_questions = self.wide["questions"]["test"] - self.narrow["questions"]["test"]
        self.scoring_pace = max(0.0, more.seconds - again.seconds) / max(1, more_questions) + self._spice_pace()
        return replace(first, memory_mb=max(first.memory_mb, more.memory_mb), disk_mb=more.disk_mb)

    def _spice_pace(self) -> float:
        """Seconds of a question of the test split for SPICE, which a start of its own would show too coarsely: it
        parses the captions, each once."""
        try:
            find_program()
        except NotComputed:
            return 0.0
        samples = read_split(self.folder / "prepare", "test")
        captions = {s.answer.text for s in samples if s.task is Task.RC}
        return estimate_cpu_seconds(sorted(captions)) / max(1, len(samples))

    def thin(self, prepared: Path) -> None:
        """Keep a few typical rows of each split; `wide` gets more."""
        wide = self.wide_folder
        shutil.copytree(prepared, wide, ignore=shutil.ignore_patterns("images", "*.jsonl"))
        about = read_json(prepared / DATA)
        write_json(wide / DATA, {**about, "root": str((prepared / about["root"]).resolve())})
        samples = {split: read_split(prepared, split) for split in SPLITS}
        self.answers = {split: part[:: max(1, len(part) // SPELLED)] for split, part in samples.items()}
        self.drawn = self.whole = count_samples(samples)
        if self.config.data.path is None:
            images = {split: getattr(self.config.data.phantoms, f"{split}_images") for split in SPLITS}
            self.whole = {
                unit: {split: round(n / self.drawn["images"][split] * images[split]) for split, n in counts.items()}
                for unit, counts in self.drawn.items()
            }
        numbers = _count_kept_rows(self.config, self.deep is not None)
        self.wide = self._keep_typical(samples, {split: max(n, WIDE[split]) for split, n in numbers.items()}, wide)
        self.narrow = self._keep_typical(samples, numbers, prepared)

    def _keep_typical(self, samples: Mapping[Split, list[Sample]], numbers: Mapping[Split, int], place: Path) -> Counts:
        kept = {}
        for split, number in numbers.items():
            few = self.deep and numbers["train"] == TRAINED_ROWS
            choose = choose_heaviest if few else choose_typical
            rows = choose(group_by_images(samples[split]), number, self.config.model.max_image_tokens)
            if few:
                rows = [row[:: max(1, len(row) // TRIED_QUESTIONS)][:TRIED_QUESTIONS] for row in rows]
            ids = {s.id for row in rows for s in row}
            kept[split] = [s for s in samples[split] if s.id in ids]
            write_lines(place / f"{split}.jsonl", (s.to_json() for s in kept[split]))
        return count_samples(kept)

    def _measure_answers(self, stage: Stage) -> None:
        """Time the opening of an image, and batches of answers, with one row a question and with as many as the final
        answers have; count the tokens of true answers."""
        self.held_mb["answers"] = _forget_peak()  # before there is a model
        context = StageContext(self.finished[stage.name], self.finished, stage.seed, lambda key, value: None)
        inputs = steps.StageInputs(context, Machine.of(self.config))
        model, samples = inputs.model("base"), inputs.samples("train")
        images = list(dict.fromkeys(i for s in samples for i in s.images))[:OPENED]
        self.open_seconds = _time(lambda: [model.images.pixels(image) for image in images]) / len(images)
        self.image_mb = sum(model.images.pixels(image).nbytes for image in images) / len(images) / 1e6
        self.tokens = {
            split: [len(turns[-1][1]) for turns in model.text.segments(part)] for split, part in self.answers.items()
        }
        if self.deep:
            self._measure_scale(model, samples)
        _forget_peak()
        # by rows a question: seconds of a batch, and of each token of its answers
        time_answers = self._time_few_answers if self.deep else self._time_answers
        self.paces = {rows: time_answers(model, samples, rows) for rows in {1, self.config.answer.rows}}
        self.answers_mb = self._without_rest("answers", _peak_mb())

    def _measure_scale(self, model: VisionLanguageModel, samples: Sequence[Sample]) -> None:
        """How much more real rows are than those tried."""
        assert self.deep
        rows = group_by_images(read_split(self.wide_folder, "train"))
        real = choose_typical(rows, WEIGHED_ROWS, self.config.model.max_image_tokens)
        if self.first:
            self.more = self.first.more
        else:
            longest = choose_longest(choose_heaviest(rows, 1, self.config.model.max_image_tokens))
            tried = choose_longest(group_by_images(samples))
            self.more = MoreMemory.of(self.deep, self.small, (longest, tried), self._count_images_a_batch())
        assert self.more
        self.scale = compare_rows(model, group_by_images(samples), real, self.more.any_kept[0])
        self.image_mb *= self.scale.tokens

    def _count_images_a_batch(self) -> float:
        """Questions about an image stand together."""
        images, questions = (sum(self.whole[unit][split] for split in HELD) for unit in ("images", "questions"))
        return max(1.0, self.config.answer.batch * images / questions)

    def _time_answers(self, model: VisionLanguageModel, samples: Sequence[Sample], rows: int) -> tuple[float, float]:
        batch = (list(samples) * (1 + self.config.answer.batch // len(samples)))[: self.config.answer.batch]
        seconds = []
        for tokens in (SHORTEST, LONGEST):
            with _answers_of(model, self.config.answer, rows, tokens) as knobs:
                seconds.append(min(_time(partial(model.generate, batch, knobs)) for _ in range(2)))
        # if other work disturbs it, the short one may have taken longer
        a_token = max(0.0, seconds[1] - seconds[0]) / (LONGEST - SHORTEST)
        return max(0.0, seconds[0] - SHORTEST * a_token), a_token

    def _time_few_answers(
        self, model: VisionLanguageModel, samples: Sequence[Sample], rows: int
    ) -> tuple[float, float]:
        """Of a few questions about one image, then about two: the difference is what an image takes."""
        number = min(TOGETHER, self.config.answer.batch)
        one, two = ([s for row in group_by_images(samples)[:n] for s in row[:1]] for n in (1, TRAINED_ROWS))
        with _answers_of(model, self.config.answer, rows, TOKENS) as knobs:
            marks = [time.monotonic()]
            marks += [time.monotonic() for _ in model.decode_stream((one * number)[:number], knobs)]
            if self.image_seconds is None:
                start = _time(lambda: next(model.decode_stream((two * number)[:number], knobs)))
                self.image_seconds = max(0.0, start - (marks[1] - marks[0])) / max(1, len(two) - 1)
        a_token = statistics.median(b - a for a, b in pairwise(marks[1:]))
        questions = max(0.0, marks[1] - marks[0] - self.image_seconds - a_token)
        more = self.config.answer.batch / number
        return questions * more + self._count_images_a_batch() * self.image_seconds * self.scale.row, a_token * more

    # ---- from small to whole

    def estimate(self, stage: str, trial: Trial) -> StageEstimate:
        """The whole stage, from what it took in small."""
        kind = stage.partition("-")[0]
        steps, seconds, rest, passing, trained = 0, 0.0, trial.seconds, 0.0, 0
        for name, paces in trial.fits.items():
            fit = self.config.fits()[PRETRAINED.get(name, f"{kind}.fit")]
            recorded, pace = trial.recorded[name], statistics.median(paces or [0.0])  # one step is among the rest
            rows = recorded["rows"] * self._count_times_rows(kind)
            if kind == "distill" and len(trial.fits) > 1 and self.config.distill:
                fit = self.config.distill.phase_fit
            number = fit.count_steps(round(rows, 6))
            steps += number
            seconds += number * self._step_seconds(fit, pace, trial.update_seconds)
            seconds += self._opening_seconds(max(fit.epochs, fit.min_steps * fit.rows / rows), rows)
            rest -= recorded["steps"] * pace
            trained = max(trained, recorded["trained_parameters"])
            passing = max(passing, CHECKPOINTS * recorded["trained_parameters"] * trained_bytes(fit) / 1e6)
        growth = self._growth(kind)
        for name, loop in trial.recorded.items():
            if isinstance(loop, dict) and "units" in loop:
                rest -= loop["seconds"]
                seconds += self._loop_seconds(kind, name, loop)
        if stored := trial.recorded.get("stored_teacher"):
            passing += stored["bytes"] * growth / 1e6
        seconds += max(0.0, rest) * (growth if kind == "select" else 1.0)
        if kind == "score":
            seconds += self.scoring_pace * (self.whole["questions"]["test"] - self.narrow["questions"]["test"])
        if kind == "see":
            growth *= self.scale.tokens
        growing_mb = trial.recorded.get("bytes", trial.disk_mb * 1e6) / 1e6  # beside the eyes, which do not grow
        disk = trial.disk_mb + growing_mb * (0.0 if kind in FIXED_FILES else growth - 1)
        paced = sum(map(len, trial.fits.values()))
        return StageEstimate(stage, "missing", steps, seconds, self._memory(kind, trial), disk, passing, paced, trained)

    def _step_seconds(self, fit: FitConfig, pace: float, update: float) -> float:
        """A step of all rows, from one in small."""
        if not self.deep:
            return pace
        update = min(update, pace)  # whatever the rows
        return (pace - update) * fit.rows * self.scale.row + update

    def _counts_of(self, kind: str) -> Counts:
        """What the small stage of a kind saw."""
        return self.drawn if kind == "prepare" else self.wide if kind in WIDE_STAGES else self.narrow

    def _count_times_rows(self, kind: str) -> float:
        """How many times as many rows the trainings of the whole stage have as those of the small one."""
        if kind == "general":
            return self._growth(kind)
        whole, narrow = (_count_trained_rows(self.config, kind, c["rows"]["train"]) for c in (self.whole, self.narrow))
        return whole / narrow

    def _growth(self, kind: str) -> float:
        """How many times as many questions, images or drawings the whole stage looks at as the small one."""
        if kind == "general":
            return _count_drawings(self.config) / _count_drawings(self.small)
        if kind not in QUESTIONS:
            return 1.0
        unit = "images" if kind in LOOKING else "questions"
        small, whole = (sum(c[unit][s] for s in QUESTIONS[kind]) for c in (self._counts_of(kind), self.whole))
        return whole / small

    def _opening_seconds(self, epochs: float, rows: float) -> float:
        """Seconds to open the images of a training. A trial sees its few images again and again; images that find no
        place in memory are opened again in each pass, beside the steps, on the same cores."""
        if not self.live or self.on_gpu:
            return 0.0
        passes = min(1.0, epochs) if rows * self.image_mb <= IMAGE_CACHE_MB else epochs
        return passes * rows * self.open_seconds / torch.get_num_threads()

    def _loop_seconds(self, kind: str, name: str, loop: Mapping[str, float]) -> float:
        if name == "whitened":
            return loop["seconds"] * min(self._growth(kind), steps.WHITENED / loop["units"])
        if name not in ("answers", "rechecks"):
            return loop["seconds"] * self._growth(kind) * self.scale.of(kind, name)
        questions = loop["units"] * self._growth(kind)
        if name == "rechecks" and self.config.reflect:
            reviewed = self.whole["questions"]["train"] * self.config.reflect.review_share
            questions = min(reviewed, self.config.reflect.recheck)
        return self.answer_seconds(kind, questions)

    def answer_seconds(self, kind: str, questions: float) -> float:
        """As if batches held answers of similar length and took as long as their longest. A real batch holds several
        lengths, but answers that end leave it, so that it takes about as long."""
        seconds_a_batch, seconds_a_token = self.paces[self.config.answer.rows if kind in ("answer", "pseudo") else 1]
        tokens = np.concatenate([self.tokens[s] for s in QUESTIONS[kind]]).clip(max=self.config.answer.max_new_tokens)
        batches = questions / self.config.answer.batch
        places = max(1, math.ceil(batches))
        longest = np.quantile(tokens, np.arange(1, places + 1) / places)
        images = min(questions, sum(self.whole["images"][s] for s in QUESTIONS[kind])) if self.live else 0
        return batches * (seconds_a_batch + seconds_a_token * float(longest.mean())) + images * self.open_seconds

    def _memory(self, kind: str, trial: Trial) -> float:
        """What it took in small, and on a CPU what more samples and images add."""
        memory, answers_mb = trial.memory_mb, self.answers_mb if kind in ANSWERING else 0.0
        if self.more:
            memory += self.more.training_mb(f"{kind}.fit") if trial.fits else 0.0
            answers_mb += self.more.answers_mb(TRAINED_ROWS) if answers_mb else 0.0
        memory = max(memory, answers_mb)  # for answers of full length
        if self.on_gpu:
            return memory
        questions, images = (
            self.whole[unit]["train"] - self._counts_of(kind)[unit]["train"] for unit in ("questions", "images")
        )
        memory += questions * SAMPLE_MB
        if trial.fits and self.live:
            memory += min(IMAGE_CACHE_MB, images * self.image_mb)
        if kind == "clip" and not self.config.select.clip.eyes:
            memory += images * self.config.select.clip.image_pixels**2 * PIXEL_BYTES / 1e6
        return memory


def _time(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _read_step_seconds(log: Path) -> list[float]:
    """Of each step after the first, which warms up."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(lines)]


@contextmanager
def _answers_of(model: VisionLanguageModel, config: AnswerConfig, rows: int, tokens: int) -> Iterator[AnswerConfig]:
    """Knobs for answers of so many rows a question. In the block each has all tokens: no token ends an answer."""
    beams = {"beams": rows} if config.method == "beams" else {}
    model.text.end, end = -1, model.text.end
    yield change_knobs(config, candidates=min(rows, config.candidates), max_new_tokens=tokens, **beams)
    model.text.end = end


@contextmanager
def _watch_updates() -> Iterator[list[float]]:
    """Seconds of each step of an optimizer; several of one training step are several."""
    starts, seconds = list[float](), list[float]()
    hooks = (
        register_optimizer_step_pre_hook(lambda *_: starts.append(time.monotonic())),
        register_optimizer_step_post_hook(lambda *_: seconds.append(time.monotonic() - starts.pop())),
    )
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _forget_peak() -> float:
    """MB that are held now."""
    gc.collect()
    system_memory.give_back()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    system_memory.forget_peak()
    return system_memory.held_mb()


def _peak_mb() -> float:
    """Most that was taken since `_forget_peak`: of the GPU if there is one, else of memory."""
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else system_memory.peak_mb()


@contextmanager
def _watch_helpers() -> Iterator[list[float]]:
    """MB that the programs started from here take together, looked at every `LOOK_SECONDS`."""
    looks, process, ended = [0.0], psutil.Process(), threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            looks.append(system_memory.helpers_mb(process))

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield looks
    finally:
        ended.set()
        watch.join()


def try_run(config: RunConfig, folder: Path) -> Iterator[dict[str, Any]]:
    """For each stage what `clinkd plan --measure` is told. Of bases that are deep for this machine, short copies."""
    large = list_large_bases(config) if Machine.of(config).ready() == "cpu" else []
    copies = write_copies(config, large, folder / "copies")
    runs = list[SmallRun]()
    for number, copy in enumerate(copies.configs):
        place = folder / f"copy-{number}" if large else folder
        place.mkdir(exist_ok=True)
        runs.append(SmallRun(copy, place, config if large else None, runs[0] if runs else None))
    gpu_free_mb = torch.cuda.mem_get_info()[0] / 1e6 if runs[0].on_gpu else None
    parameters = sum(count_weights(config.model.base).values()) if large and config.model.base else 0
    for estimate in extrapolate_stages(copies, [run.estimate_stages() for run in runs]):
        yield {
            "estimate": asdict(estimate), "gpu_free_mb": gpu_free_mb, "parameters": parameters or runs[0].parameters,
            "copies": copies.blocks,
        }  # fmt: skip


def main(config_file: Path, folder: Path) -> None:
    """Print a line for each stage."""
    for line in try_run(RunConfig.model_validate(read_json(config_file)), folder):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

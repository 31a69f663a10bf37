"""Estimate a run from a small one: every stage by its own code, on a part of the data and for a few steps.

`python -m clinkd.workflows.trial CONFIG.json FOLDER` is an own process: if it takes too much memory, only it ends.
It prints a JSON object a line for each stage: `estimate` (a `StageEstimate`), `gpu_free_mb`, `parameters`.
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

from clinkd import system_memory
from clinkd.config import RunConfig
from clinkd.data.split import count_sampled_images
from clinkd.model.encode import group_by_images
from clinkd.model.vlm import VisionLanguageModel
from clinkd.pipeline import report, steps
from clinkd.pipeline.cautions import PRETRAINED
from clinkd.pipeline.graph import Stage, StageContext
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.prepared import DATA, PREDICTIONS, read_split
from clinkd.pipeline.stages import plan
from clinkd.records import SPLITS, Candidate, Prediction, Sample, Split, Task
from clinkd.scoring.captions import CaptionScorer, NotComputed
from clinkd.scoring.spice import estimate_cpu_seconds, find_program
from clinkd.settings import change_knobs, override
from clinkd.storage import folder_bytes, read_json, write_json, write_lines
from clinkd.workflows.counted import trained_bytes
from clinkd.workflows.forecast import CHECKPOINTS, StageEstimate

LOOK_SECONDS = 0.2
LONGEST, SHORTEST = 48, 8  # answers whose generation is timed, tokens
OPENED = 24  # images whose opening is timed
SPELLED = 1000  # answers of a split whose tokens are counted, or up to twice as many
SIDE = 28  # pixels of an image token of Qwen2-VL
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
ANSWERING = ("pseudo", "reflect", "answer", "shuffle")
FIXED_FILES = ("general", "distill", "reflect", "clip", "score")  # a model or a page, whatever the number of questions
# Rows of each split for stages without a large model: enough for a step of a CLIP, and truths to score as answers.
WIDE: dict[Split, int] = {"train": 128, "validation": 40, "test": 40}
WIDE_STAGES = ("clip", "select", "score")

Counts = dict[str, dict[Split, int]]  # of "questions", "rows" and "images", by split


def shrink_config(config: RunConfig) -> RunConfig:
    """The run with fewer images, a few steps of each training, though no more than the run itself takes, and short
    answers. How many rows given data has is not known yet: on them each training takes the few steps."""
    few = 16 if config.model.base is None else 4  # of each training: a tiny model's first steps tell little
    kept, whole = _count_kept_rows(config), _count_drawn_images(config, "train")
    settings = [f"answer.max_new_tokens={SHORTEST}"]
    for split, number in kept.items():
        settings.append(f"data.phantoms.{split}_images={_limit_to_drawn(config, split, max(WIDE[split], number))}")
    drawings = _count_drawings(config)
    if drawings:
        settings.append(f"model.tiny.pretrain.general.images={min(drawings, kept['train'])}")
    for name, fit in config.fits().items():
        rows = drawings if drawings and name.startswith("model.") else whole
        steps = few if rows is None else min(few, fit.count_steps(_count_trained_rows(config, name, rows)))
        # half a step less, rounded up by the training: as many steps whatever the rounding of the epochs
        epochs = (steps - 0.5) * fit.rows / max(1, _count_trained_rows(config, name, kept["train"]))
        settings += [f"{name}.epochs={epochs}", f"{name}.min_steps=0", f"{name}.checkpoint_seconds=1000000000"]
    if config.reflect:  # a trial pays nobody
        settings.append("reflect.corrector=offline")
    return override(config, settings)


def _count_kept_rows(config: RunConfig) -> dict[Split, int]:
    """How many rows of each split the small run keeps."""
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


class SmallRun:
    """The small run of `config` in `folder`, and what it tells about the whole run."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config, self.folder, self.small = config, folder, shrink_config(config)
        self.on_gpu = Machine.of(config).ready() != "cpu"
        self.live = config.model.vision_features == "live"
        self.finished: dict[str, Path] = {}
        self.parameters = 0
        self.open_seconds = self.image_mb = 0.0  # measured after the base; the drawings before it are small

    def estimate_stages(self) -> Iterator[StageEstimate]:
        """Try each stage, in order."""
        stages, measured = plan(self.small), False
        for number, stage in enumerate(stages, start=1):
            place = self.finished[stage.name] = self.folder / stage.name
            inputs = {need.name: self.finished[need.name] for need in stage.needs}
            if stage.name in WIDE_STAGES:
                inputs["prepare"] = self.folder / "wide"
            tried = self._try_scoring if stage.name == "score" else partial(self._try_stage, place=place)
            trial = tried(stage, inputs)
            if stage.name == "prepare":
                self.thin(place)
            if stage.name == "base":
                self.parameters = trial.recorded["parameters"]
            if not measured and {"base", *([] if self.live else ["see"])} <= self.finished.keys():
                self._measure_answers(stage)
                measured = True
            if stage.name in ("answer", "shuffle"):
                files: dict[Split, str] = steps.ANSWER_FILES if stage.name == "answer" else {"test": PREDICTIONS}
                write_truths(place, self.folder / "wide", files, self.config.answer.candidates)
            yield self.estimate(stage.name, trial)
            wanted = {need.name for later in stages[number:] for need in later.needs}
            for name in self.finished.keys() - wanted:  # models are large
                shutil.rmtree(self.finished.pop(name))

    # ---- in small

    def _try_stage(
        self, stage: Stage, inputs: Mapping[str, Path], place: Path, captions: CaptionScorer | None = None
    ) -> Trial:
        """`captions`: with which the stage of the scores counts."""
        place.mkdir()
        recorded: dict[str, Any] = {}
        context = StageContext(place, inputs, stage.seed, recorded.__setitem__)
        _forget_peak()
        with _watch_helpers() as helpers_mb:
            seconds = _time(
                lambda: stage.work(context) if captions is None else report.write(context, self.small, captions)
            )
        write_json(place / "stage.json", {"identity": stage.identity, "seconds": seconds})
        fits = {path.parent.name: _read_step_seconds(path) for path in sorted(place.glob("fit-*/log.jsonl"))}
        return Trial(seconds, _peak_mb() + max(helpers_mb), folder_bytes(place) / 1e6, fits, recorded)

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
        wide = self.folder / "wide"
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
        numbers = _count_kept_rows(self.config)
        self.wide = self._keep_typical(samples, {split: max(n, WIDE[split]) for split, n in numbers.items()}, wide)
        self.narrow = self._keep_typical(samples, numbers, prepared)

    def _keep_typical(self, samples: Mapping[Split, list[Sample]], numbers: Mapping[Split, int], place: Path) -> Counts:
        kept = {}
        for split, number in numbers.items():
            rows = choose_typical(group_by_images(samples[split]), number, self.config.model.max_image_tokens)
            ids = {s.id for row in rows for s in row}
            kept[split] = [s for s in samples[split] if s.id in ids]
            write_lines(place / f"{split}.jsonl", (s.to_json() for s in kept[split]))
        return count_samples(kept)

    def _measure_answers(self, stage: Stage) -> None:
        """Time the opening of an image, and batches of short and long answers, with one row a question and with as many
        as the final answers have; count the tokens of true answers."""
        context = StageContext(self.finished[stage.name], self.finished, stage.seed, lambda key, value: None)
        inputs = steps.StageInputs(context, Machine.of(self.config))
        model, samples = inputs.model("base"), inputs.samples("train")
        images = list(dict.fromkeys(i for s in samples for i in s.images))[:OPENED]
        self.open_seconds = _time(lambda: [model.images.pixels(image) for image in images]) / len(images)
        self.image_mb = sum(model.images.pixels(image).nbytes for image in images) / len(images) / 1e6
        self.tokens = {
            split: [len(turns[-1][1]) for turns in model.text.segments(part)] for split, part in self.answers.items()
        }
        _forget_peak()
        batch = (samples * (1 + self.config.answer.batch // len(samples)))[: self.config.answer.batch]
        # by rows a question: seconds of a batch, and of each token of its answers
        self.paces = {rows: self._time_answers(model, batch, rows) for rows in {1, self.config.answer.rows}}
        self.answers_mb = _peak_mb()

    def _time_answers(self, model: VisionLanguageModel, batch: Sequence[Sample], rows: int) -> tuple[float, float]:
        config = self.config.answer
        beams = {"beams": rows} if config.method == "beams" else {}
        model.text.end, end = -1, model.text.end  # no token of the vocabulary ends an answer: each has the full length
        seconds = []
        for tokens in (SHORTEST, LONGEST):
            knobs = change_knobs(config, candidates=min(rows, config.candidates), max_new_tokens=tokens, **beams)
            seconds.append(min(_time(partial(model.generate, batch, knobs)) for _ in range(2)))
        model.text.end = end
        # if other work disturbs it, the short one may have taken longer
        a_token = max(0.0, seconds[1] - seconds[0]) / (LONGEST - SHORTEST)
        return max(0.0, seconds[0] - SHORTEST * a_token), a_token

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
            seconds += number * pace + self._opening_seconds(max(fit.epochs, fit.min_steps * fit.rows / rows), rows)
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
        growing_mb = trial.recorded.get("bytes", trial.disk_mb * 1e6) / 1e6  # beside the eyes, which do not grow
        disk = trial.disk_mb + growing_mb * (0.0 if kind in FIXED_FILES else growth - 1)
        paced = sum(map(len, trial.fits.values()))
        return StageEstimate(stage, "missing", steps, seconds, self._memory(kind, trial), disk, passing, paced, trained)

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
        """How many times as many questions, or drawings, the whole stage looks at as the small one."""
        if kind == "general":
            return _count_drawings(self.config) / _count_drawings(self.small)
        if kind not in QUESTIONS:
            return 1.0
        small, whole = (sum(c["questions"][s] for s in QUESTIONS[kind]) for c in (self._counts_of(kind), self.whole))
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
            return loop["seconds"] * self._growth(kind)
        questions = loop["units"] * self._growth(kind)
        if name == "rechecks" and self.config.reflect:
            questions = min(questions, self.config.reflect.recheck)
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
        memory = max(trial.memory_mb, self.answers_mb if kind in ANSWERING else 0.0)  # for answers of full length
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


def count_samples(samples: Mapping[Split, Sequence[Sample]]) -> Counts:
    """Questions, rows and images of each split."""
    return {
        "questions": {split: len(part) for split, part in samples.items()},
        "rows": {split: len(group_by_images(part)) for split, part in samples.items()},
        "images": {split: len({i.path for s in part for i in s.images}) for split, part in samples.items()},
    }


def choose_typical(rows: Sequence[list[Sample]], number: int, most_tokens: int) -> list[list[Sample]]:
    """`number` rows that represent all: of each modality its share, from short to long, and the heaviest row, which
    decides the memory. `most_tokens`: of an image."""

    def weight(row: list[Sample]) -> float:
        images = sum(min((i.width or 0) * (i.height or 0) / SIDE**2, most_tokens) for i in row[0].images)
        return images + sum(len(s.question.text) + len(s.answer.text) for s in row) / 3

    if len(rows) <= number:
        return list(rows)
    order = sorted(rows, key=lambda row: (row[0].modality, weight(row)))
    places = [int((k + 0.5) * len(order) / number) for k in range(number)]
    heaviest = max(range(len(order)), key=lambda k: weight(order[k]))
    nearest = min(range(number), key=lambda k: abs(places[k] - heaviest))
    places[nearest] = heaviest
    return [order[k] for k in places]


def write_truths(answered: Path, prepared: Path, files: Mapping[Split, str], candidates: int) -> None:
    """Replace the answers of a model of a few steps by truths. A trained model comes near to truths, and the stages
    that look at answers take longer over them."""
    for split, name in files.items():
        samples = read_split(prepared, split)
        predictions = []
        for k, sample in enumerate(samples):
            truths = dict.fromkeys(samples[(k + n) % len(samples)].answer for n in range(candidates))
            predictions.append(Prediction(sample.id, tuple(Candidate(a.text, a) for a in truths), by="truth"))
        write_lines(answered / name, (p.to_json() for p in predictions))
        if split == "validation":
            supports = ({"id": p.id, "supports": [1.0] * len(p.candidates)} for p in predictions)
            write_lines(answered / steps.SUPPORTS, supports)


def _forget_peak() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    system_memory.forget_peak()


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


def main(config_file: Path, folder: Path) -> None:
    """Print a line for each stage."""
    run = SmallRun(RunConfig.model_validate(read_json(config_file)), folder)
    gpu_free_mb = torch.cuda.mem_get_info()[0] / 1e6 if run.on_gpu else None
    for estimate in run.estimate_stages():
        line = {"estimate": asdict(estimate), "gpu_free_mb": gpu_free_mb, "parameters": run.parameters}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""A run in small: every stage by its own code, on a part of the data and for a few steps, timed and weighed.

`python -m clinkd.workflows.trial CONFIG.json FOLDER` is a process of its own, so that one that takes too much memory
ends alone. It writes a JSON object a line to stdout: what it made of each stage, as `Tried`.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from clinkd import system_memory
from clinkd.config import AnswerConfig, FitConfig, RunConfig
from clinkd.model.encode import rows_of
from clinkd.model.vlm import VisionLanguageModel
from clinkd.pipeline import report, steps
from clinkd.pipeline.graph import Stage, StageContext
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.prepared import DATA, PREDICTIONS, read_predictions, read_split
from clinkd.pipeline.stages import plan
from clinkd.records import BOX_MARK, Candidate, Prediction, Sample, Split
from clinkd.scoring.baselines import image_blind_baselines
from clinkd.scoring.captions import CaptionScorer
from clinkd.settings import change_knobs
from clinkd.storage import folder_bytes, read_json, write_json, write_lines

STEPS = {True: 16, False: 4}  # of each training: a tiny model's first steps tell little
CLIP_STEPS = 3
MOST_CLIP_IMAGES = 256
SCORED_IMAGES = 40  # of validation and of test, whose truths are scored as if they were answers
LOOK_SECONDS = 0.2
LONGEST, SHORTEST = 48, 8  # answers whose generation is timed, tokens
OPENED = 24  # images whose opening is timed
SIDE = 28  # pixels of an image token of Qwen2-VL


@dataclass(frozen=True)
class Part:
    """How many images of each split the small run has: to train on, to answer about; for the CLIP; to score."""

    train: int
    held: int
    clip: int
    scored: int = SCORED_IMAGES

    @classmethod
    def of(cls, config: RunConfig) -> Part:
        rows = [fit.rows for fit in config.fits().values()]
        train, held = (128, 12) if config.model.base is None else (24, 4)
        train = max([train, *rows])
        clip = config.select.clip
        wanted = round(CLIP_STEPS * clip.rows / clip.epochs) if config.select.scorer == "clip" else 0
        return cls(train, held, max(train, min(wanted, MOST_CLIP_IMAGES)))


def small(config: RunConfig) -> RunConfig:
    """The run with a part of its images, a few steps a training, and short answers."""
    part = Part.of(config)
    drawn = change_knobs(
        config.data.phantoms, train_images=part.clip, validation_images=part.scored, test_images=part.scored
    )

    def few(fit: FitConfig | None, share: float = 1.0) -> FitConfig | None:
        if fit is None:
            return None
        of = max(1, round(share * part.train))
        return change_knobs(fit, epochs=STEPS[config.model.base is None] * fit.rows / of, checkpoint_seconds=1e9)

    changed: dict[str, Any] = {"data": change_knobs(config.data, phantoms=drawn)}
    if config.model.base is None and (pretrain := config.model.tiny.pretrain):
        taught = change_knobs(pretrain, vision=few(pretrain.vision), pairs=few(pretrain.pairs))
        tiny = change_knobs(config.model.tiny, pretrain=taught)
        changed["model"] = change_knobs(config.model, tiny=tiny)
    for name in ("teacher", "distill", "reflect"):
        group = getattr(config, name)
        if group is not None:
            share = group.share if name == "teacher" else 1.0
            changed[name] = change_knobs(group, fit=few(group.fit, share))
    if config.reflect:  # a trial pays nobody
        changed["reflect"] = change_knobs(changed["reflect"], corrector="offline")
    changed["answer"] = change_knobs(config.answer, max_new_tokens=SHORTEST)
    return change_knobs(config, **changed)


def run(config: RunConfig, folder: Path) -> None:
    """Do the small run in `folder` and print what each stage took.

    What needs no large model, the CLIP and what looks at answers, sees more of the data: `wide`.
    """
    mini, part = small(config), Part.of(config)
    finished: dict[str, Path] = {}
    wide = folder / "wide"
    on_gpu = Machine.of(config).ready() != "cpu"
    free = {"gpu_free_mb": torch.cuda.mem_get_info()[0] / 1e6} if on_gpu else {}
    stages = plan(mini)
    for number, stage in enumerate(stages, start=1):
        finished[stage.name] = folder / stage.name
        inputs = {need.name: finished[need.name] for need in stage.needs}
        if stage.name in ("clip", "select", "score"):
            inputs["prepare"] = wide
        # the scores of SPICE that other runs know would make it quicker than a first run is
        do = _score(mini, folder / "spice.sqlite") if stage.name == "score" else stage.work
        tried = _try(stage, inputs, folder / stage.name, do)
        if stage.name == "prepare":
            tried |= free | _lessen(folder / "prepare", wide, part, config.model.max_image_tokens)
        if stage.name == ("see" if mini.model.vision_features == "cached" else "base"):
            tried["generate"] = _generating(config, stage, finished)
        if stage.name == "answer":
            _speak_well(folder / "answer", wide, steps.SPOKEN, config.answer.candidates)
        if stage.name == "shuffle":
            _speak_well(folder / "shuffle", wide, {"test": PREDICTIONS}, 1)
        if stage.name == "score":
            tried |= _scoring(mini, stage, inputs, folder)
        wanted = {need.name for later in stages[number:] for need in later.needs}
        for name in finished.keys() - wanted:  # models are large
            shutil.rmtree(finished.pop(name))
        print(json.dumps(tried), flush=True)


def _score(config: RunConfig, spice_file: Path) -> Callable[[StageContext], None]:
    def do(work: StageContext) -> None:
        with CaptionScorer(spice_file) as captions:
            report.write(work, config, captions)

    return do


def _try(stage: Stage, inputs: dict[str, Path], folder: Path, do: Callable[[StageContext], None]) -> dict[str, Any]:
    folder.mkdir()
    recorded: dict[str, Any] = {}
    _forget_peak()
    with _Helpers() as helpers:
        start = time.monotonic()
        do(StageContext(folder, inputs, stage.seed, recorded.__setitem__))
        seconds = time.monotonic() - start
    write_json(folder / "stage.json", {"identity": stage.identity, "seconds": seconds})
    return {
        "stage": stage.name,
        "seconds": seconds,
        "memory_mb": _peak_mb() + helpers.peak_mb,
        "disk_mb": folder_bytes(folder) / 1e6,
        "fits": {path.parent.name: _step_seconds(path) for path in sorted(folder.glob("fit-*/log.jsonl"))},
        "recorded": recorded,
    }


def _step_seconds(log: Path) -> list[float]:
    """Of each step after the first, which warms up."""
    told = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        (b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(told)
    ]  # fmt: skip


def _lessen(prepared: Path, wide: Path, part: Part, most_tokens: int) -> dict[str, Any]:
    """Keep of each split so many rows as the small run is to have images, such as stand for all; `wide` gets more.

    Of every answer there was, the characters beside its boxes, and the boxes, in the order in which they are asked;
    questions, images and rows kept; memory and seconds of a sample.
    """
    shutil.copytree(prepared, wide, ignore=shutil.ignore_patterns("images", "*.jsonl"))
    about = read_json(prepared / DATA)
    write_json(wide / DATA, {**about, "root": str((prepared / about["root"]).resolve())})
    found: dict[str, Any] = {"answers": {}, "asked": {}, "images": {}, "wide": {"asked": {}, "images": {}}}
    most: dict[Split, tuple[int, int]] = {
        "train": (part.train, part.clip), "validation": (part.held, part.scored), "test": (part.held, part.scored),
    }  # fmt: skip
    tracemalloc.start()
    for split, (number, more) in most.items():
        samples = read_split(prepared, split)
        if split == "train":
            found["sample_mb"] = tracemalloc.get_traced_memory()[0] / len(samples) / 1e6
            tracemalloc.stop()
            start = time.monotonic()
            samples = read_split(prepared, split)
            found["sample_seconds"] = (time.monotonic() - start) / len(samples)
        rows = rows_of(samples)
        if split == "train":
            found["rows"] = {"all": len(rows), "tried": min(number, len(rows))}
        in_order = sorted(samples, key=lambda s: (s.task.value, len(s.answer.text), len(s.question.text)))
        found["answers"][split] = [_size(s) for s in in_order]
        for place, told, least in ((wide, found["wide"], more), (prepared, found, number)):
            kept = {s.id for row in typical(rows, least, most_tokens) for s in row}
            left = [s for s in samples if s.id in kept]
            told["asked"][split], told["images"][split] = len(left), len({i for s in left for i in s.images})
            write_lines(place / f"{split}.jsonl", (s.to_json() for s in left))
    return found


def _size(sample: Sample) -> tuple[int, int]:
    """Characters of the answer beside its boxes, and boxes: a box is spelled with many tokens."""
    return len(sample.answer.text.replace(BOX_MARK, "")), len(sample.answer.boxes)


def typical(rows: Sequence[list[Sample]], number: int, most_tokens: int) -> list[list[Sample]]:
    """So many rows that stand for all: of each modality its part, from short to long, the heaviest of all among them,
    which decides the memory. `most_tokens`: of an image."""

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


def _speak_well(answered: Path, prepared: Path, spoken: Mapping[Split, str], candidates: int) -> None:
    """Put truths in the place of what a model of a few steps says, as those are what a trained one comes near to: what
    looks at answers afterwards takes longer over them."""
    for split, name in spoken.items():
        samples = read_split(prepared, split)
        said = []
        for k, sample in enumerate(samples):
            among = [samples[(k + n) % len(samples)].answer for n in range(candidates)]
            distinct = list(dict.fromkeys(among))
            said.append(Prediction(sample.id, tuple(Candidate(a.text, a) for a in distinct), by="truth"))
        write_lines(answered / name, (p.to_json() for p in said))


def _scoring(config: RunConfig, stage: Stage, inputs: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Seconds that scores take whatever there is to score, such as the start of Java; and those of the blind twins,
    which go with the training questions."""
    few = folder / "few"
    shutil.copytree(inputs["prepare"], few)
    shutil.copytree(inputs["select"], few, dirs_exist_ok=True)
    train, test = (read_split(few, split) for split in ("train", "test"))
    one = rows_of(test)[0]
    for name, some in (("train", rows_of(train)[0]), ("test", one)):
        write_lines(few / f"{name}.jsonl", (s.to_json() for s in some))
    said = [p for p in read_predictions(few) if p.id in {s.id for s in one}]
    write_lines(few / PREDICTIONS, (p.to_json() for p in said))
    place = folder / "few-score"
    do = _score(config, folder / "few.sqlite")
    fixed = _try(stage, {**inputs, "prepare": few, "select": few}, place, do)["seconds"]
    start = time.monotonic()
    image_blind_baselines(train, test)
    return {"fixed_seconds": fixed, "blind_seconds": time.monotonic() - start}


def _generating(config: RunConfig, stage: Stage, finished: dict[str, Path]) -> dict[str, Any]:
    """Seconds of a batch of short and of long answers, for one row a question and for those of the final answers."""
    work = StageContext(finished[stage.name], finished, stage.seed, lambda key, value: None)
    here = steps.StageInputs(work, Machine.of(config))
    model, samples = here.model("base"), here.samples("train")
    found: dict[str, Any] = {"answer_tokens": _tokens(model, samples), **_opening(model, samples)}
    _forget_peak()
    asked = (samples * (1 + config.answer.batch // len(samples)))[: config.answer.batch]
    for rows in sorted({1, config.answer.rows}):
        beams = {"beams": rows} if config.answer.method == "beams" else {}
        knobs = change_knobs(config.answer, candidates=min(rows, config.answer.candidates), **beams)
        timed = {n: _generate(model, asked, knobs, n) for n in (SHORTEST, LONGEST)}
        # where other work disturbs it, the short one may have taken longer
        a_token = max(0.0, timed[LONGEST] - timed[SHORTEST]) / (LONGEST - SHORTEST)
        found[str(rows)] = {"batch": max(0.0, timed[SHORTEST] - SHORTEST * a_token), "token": a_token}
    return {**found, "memory_mb": _peak_mb()}


def _generate(model: VisionLanguageModel, asked: Sequence[Sample], config: AnswerConfig, tokens: int) -> float:
    """Seconds of answers of exactly so many tokens: no token of the vocabulary is their end."""
    end, model.text.end = model.text.end, -1
    best = float("inf")
    try:
        for _ in range(2):
            start = time.monotonic()
            model.generate(asked, change_knobs(config, max_new_tokens=tokens))
            best = min(best, time.monotonic() - start)
    finally:
        model.text.end = end
    return best


def _tokens(model: VisionLanguageModel, samples: Sequence[Sample]) -> list[float]:
    """Tokens of an answer by character, by box, and in any case; by least squares."""
    tokens_N = np.array([len(turns[-1][1]) for turns in model.text.segments(samples)])
    told_N3 = np.array([(*_size(s), 1) for s in samples])
    return [float(w) for w in np.linalg.lstsq(told_N3, tokens_N, rcond=None)[0]]


def _opening(model: VisionLanguageModel, samples: Sequence[Sample]) -> dict[str, float]:
    """Seconds to open an image and cut it to size, for the first time, and MB to keep it."""
    refs = list(dict.fromkeys(i for s in samples for i in s.images))[:OPENED]
    start = time.monotonic()
    kept = sum(model.images.pixels(ref).nbytes for ref in refs)
    return {"open_seconds": (time.monotonic() - start) / max(1, len(refs)), "image_mb": kept / max(1, len(refs)) / 1e6}


def _forget_peak() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    system_memory.forget_peak()


def _peak_mb() -> float:
    """Most that was taken since `_forget_peak`: of the GPU where there is one, else of memory."""
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else system_memory.peak_mb()


class _Helpers:
    """The most memory that programs started from here took together, looked at now and then."""

    def __enter__(self) -> _Helpers:
        self.peak_mb = 0.0
        self.process = psutil.Process()
        self.ended = threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        self.watch.start()
        return self

    def _look(self) -> None:
        while not self.ended.wait(LOOK_SECONDS):
            self.peak_mb = max(self.peak_mb, system_memory.helpers_mb(self.process))

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.watch.join()


if __name__ == "__main__":
    run(RunConfig.model_validate(read_json(Path(sys.argv[1]))), Path(sys.argv[2]))

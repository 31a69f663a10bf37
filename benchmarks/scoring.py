"""Answers scored by the papers' scripts and strictly, with intervals and blind twins: seconds and memory.

    python -m benchmarks.scoring [--json] [--predictions 30000]

A file of answers for each of VG, ROC, RC and MIA, in equal parts, of eight modalities and four questions an image;
sentences are put together from those of drawn images, answers are truths with words and boxes changed, no two alike.
SPICE is left out (`python -m benchmarks.spice`). The limits are what we hold ourselves to on two cores. CPU seconds are
those of this process, told by part, without the parts that it calls, and of the Java programs, which run beside it.
Where other work runs on the machine, they tell more than the clock. Memory is the most that all hold at one time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
from benchmarks.report import Row, add_outputs, show

from clinkd.data import phantoms
from clinkd.records import ImageRef, Task
from clinkd.reporting import strict
from clinkd.scoring import official
from clinkd.scoring.captions import CaptionScorer
from clinkd.scoring.measures.boxes import BOXES
from clinkd.scoring.measures.names import NAMES
from clinkd.scoring.measures.texts import CHRF, CLAIMS, FACT_TUPLES
from clinkd.scoring.outcome import MODES
from clinkd.scoring.score import GroupedCounts, ScoredAnswers
from clinkd.workflows import answer as answering
from clinkd.workflows import evaluate as evaluating

SECONDS, MEGABYTES, IMPORT_SECONDS = 90.0, 2048.0, 1.0
TASKS = (Task.VG, Task.ROC, Task.RC, Task.MIA)
PREFIXES = ("ct", "mr", "x", "pet", "endoscopy", "dermoscopy", "fundus", "ultrasound")
QUESTIONS = 4  # of an image


def sentences() -> list[str]:
    rng, dice, modalities = np.random.default_rng(0), random.Random(0), list(phantoms.STRUCTURES)
    found = set()
    for number in range(200):
        image = phantoms.draw_phantom(rng, modalities[number % len(modalities)], structures=2)
        drawn = phantoms.make_phantom_samples(image, ImageRef("x.png", 96, 96), "x", "test", dice)
        found |= {s.answer.words for s in drawn if s.task in (Task.RC, Task.MIA)}
    return sorted(found)


def rows(task: Task, number: int, known: list[str]) -> Iterator[dict[str, object]]:
    dice = random.Random(task.value)
    words = sorted({w for text in known for w in text.split()})
    names = phantoms.NAMES
    for n in range(number):
        image = n // QUESTIONS
        name = dice.choice(names)
        question = f"Where is the {name}?"
        if task is Task.VG:
            truth, answer = zip(*(_boxes(dice) for _ in range(dice.randint(1, 3))), strict=True)
            truth, answer = (f"The {name} is at {' and '.join(b)}." for b in (truth, answer))
        elif task is Task.ROC:
            question = f"What is at {_boxes(dice)[0]}?"
            truth, answer = f"{name}.", f"This is the {dice.choice([name, name, dice.choice(names)])}."
        else:
            question = f"Describe {_boxes(dice)[0]}." if task is Task.RC else "What does the image show?"
            truth = " ".join(dice.sample(known, 1 if task is Task.RC else 3)) + f" Level {n}."
            answer = " ".join(dice.choice(words) if dice.random() < 0.3 else w for w in truth.split())
        yield {
            "id": n,
            "image": f"{PREFIXES[image % len(PREFIXES)]}_00--set--{image}.png",
            "question": question,
            "annotation": truth,
            "response": f"{answer}<|im_end|>",
        }


def _boxes(dice: random.Random) -> tuple[str, str]:
    x, y, w, h = dice.randrange(700), dice.randrange(700), dice.randrange(40, 290), dice.randrange(40, 290)
    a, b = dice.randrange(-20, 21), dice.randrange(-20, 21)
    moved = (max(x + a, 0), max(y + b, 0), x + w + a, y + h + b)
    return (
        f"<box>({x},{y}),({x + w},{y + h})</box>",
        "<box>({},{}),({},{})</box>".format(*moved),
    )


def cpu() -> float:
    """CPU seconds of this process and of all that it started, also of those that still run."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    running = (child.cpu_times() for child in psutil.Process().children())
    return sum(u.ru_utime + u.ru_stime for u in used) + sum(c.user + c.system for c in running)


def own_cpu() -> float:
    """CPU seconds of the thread that runs, without those of Java, which runs beside it."""
    return time.thread_time()


class Peak:
    """The most memory that this process and all that it started held at one time, in MB, looked at twice a second."""

    def __init__(self) -> None:
        self.megabytes = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        process = psutil.Process()
        while not self._end.wait(0.5):
            held = 0.0
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # ended meanwhile
                    held += one.memory_info().rss / 2**20
            self.megabytes = max(self.megabytes, held)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processors."""
    start, before = time.perf_counter(), cpu()
    call()
    return time.perf_counter() - start, cpu() - before


class Parts:
    """CPU seconds by part, of functions that are timed wherever they are called. What a part calls of another part
    counts for the other alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open = [0.0]  # seconds of the parts within each open part

    def time(self, part: str, owner: object, name: str) -> None:
        call = getattr(owner, name)

        def timed_call(*args: object, **knobs: object) -> object:
            before = own_cpu()
            self._open.append(0.0)
            try:
                return call(*args, **knobs)
            finally:
                used, within = own_cpu() - before, self._open.pop()
                self._open[-1] += used
                self.seconds[part] = self.seconds.get(part, 0.0) + used - within

        setattr(owner, name, timed_call)

    def time_all(self) -> None:
        """Time what an evaluation spends its seconds on."""
        self.time("reading", answering, "read_released")
        self.time("baselines", evaluating, "answer_blindly")
        self.time("BLEU and ROUGE", CaptionScorer, "counts")
        self.time("CIDEr", CaptionScorer, "cider")
        self.time("tokens, without Java", CaptionScorer, "tokenized")
        self.time("official, all else", evaluating, "_score_by_scripts")
        self.time("official intervals", official._CountedAnswers, "compute_interval")
        self.time("strict intervals", GroupedCounts, "bootstrap")
        self.time("tables", strict, "tabulate_scores")
        measure_names = {BOXES: "boxes", NAMES: "names", CHRF: "chrF", FACT_TUPLES: "facts", CLAIMS: "claims"}
        for measure, name in measure_names.items():
            counting = SimpleNamespace(count=measure.count)
            self.time(f"strict {name}", counting, "count")
            object.__setattr__(measure, "count", counting.count)  # a measure is frozen
        self.time("strict, all else", evaluating, "score_predictions")
        self.time("strict scores", ScoredAnswers, "scores")
        self.time("strict gains", ScoredAnswers, "gains")


def import_seconds() -> float:
    """The median of five starts, that of an empty program taken off."""

    def start(code: str) -> float:
        return sorted(timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))[1] for _ in range(5))[2]

    return start("import clinkd.scoring") - start("pass")


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--predictions", type=int, default=30_000)
    parser.add_argument("--profile", type=Path, metavar="FILE", help="where the time goes, for pstats")
    add_outputs(parser)
    args = parser.parse_args()
    each = args.predictions // len(TASKS)
    known = sentences()
    with tempfile.TemporaryDirectory() as temp:
        files = {task: Path(temp, f"{task.value}.jsonl") for task in TASKS}
        for task, file in files.items():
            file.write_text("".join(f"{json.dumps(r)}\n" for r in rows(task, each, known)))

        def score_all() -> None:
            with CaptionScorer() as captions:
                captions.leave_out_spice = True
                for task, file in files.items():
                    answers = answering.read_released(answering.ReleasedFiles({task: file}), MODES)
                    start = time.perf_counter(), cpu()
                    found = evaluating.evaluate(answers, captions=captions)
                    scores = {o.mode: o.score() for o in found.outcomes}
                    told = {mode: score if score is None else round(score, 1) for mode, score in scores.items()}
                    used = time.perf_counter() - start[0], cpu() - start[1]
                    print(f"{task.value}: {told}, {used[0]:.1f} s, {used[1]:.1f} CPU s", file=sys.stderr)

        if args.profile:
            import cProfile

            cProfile.runctx("score_all()", {}, {"score_all": score_all}, str(args.profile))
            return
        parts = Parts()
        parts.time_all()
        before_python = time.process_time()
        with Peak() as peak:
            clock, processors = timed(score_all)
        python = time.process_time() - before_python
    parts.seconds["Java: tokenizer and METEOR"] = processors - python
    parts.seconds["all else"] = processors - sum(parts.seconds.values())
    for part, seconds in sorted(parts.seconds.items(), key=lambda item: -item[1]):
        print(f"{seconds:8.1f} CPU s  {part}", file=sys.stderr)
    what = f"{each * len(TASKS):,} answers in both modes"
    show(
        [
            Row(f"{what}, by the clock", clock, SECONDS, "our limit", "s"),
            Row(f"{what}, of the processors", processors, 2 * SECONDS, "our limit on two cores", "CPU s"),
            Row(f"{what}, memory with that of Java", peak.megabytes, MEGABYTES, "our limit", "MB"),
            Row("import of clinkd.scoring", import_seconds(), IMPORT_SECONDS, "our limit", "CPU s"),
        ],
        args,
    )


if __name__ == "__main__":
    main()

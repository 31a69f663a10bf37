"""Outside scorers: programs that get pairs of a truth and an answer, and print a number for each (docs/EVALUATION.md).

So RadGraph F1, CheXbert, GREEN or a model as judge score the same answers as our own metrics, with the same intervals
and beside the same image-blind baselines. A program is started once, without a shell, and gets every pair once, however
many rows share it. Scores count only where it ended well and printed one finite number for each pair.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np

from clinkd.data.codecs import make_codec
from clinkd.processes import kill_tree
from clinkd.records import BadInput, BoxedText, Modality, Prediction, Sample, Task
from clinkd.scoring.captions import Counts
from clinkd.scoring.measure import Mean, Measure, Metric, Rules, SampleAnswer
from clinkd.scoring.metrics import MEASURES
from clinkd.storage import progress, visible

TASKS = tuple(task for task in Task if task is not Task.VG)  # an answer to VG is boxes, and a scorer reads words
TIMEOUT_SECONDS = 3600.0

_NAME = re.compile(r"\w[\w .@/+-]{0,39}")
_COLUMNS = ("answers", "score")
_MOST_BYTES, _MOST_BYTES_A_PAIR = 1 << 20, 4096  # that a program may print
_STDERR_BYTES = 1 << 16  # the end of its stderr, which is kept
_GRACE_SECONDS = 5.0  # to read what an ended program left in its pipes
_QUESTION_CODEC = make_codec("qwen-vl")


class OutsideScorer(NamedTuple):
    """A program and its arguments, and the name of its figure in tables."""

    name: str
    command: tuple[str, ...]
    timeout_seconds: float = TIMEOUT_SECONDS


class TextPair(NamedTuple):
    """What a scorer is told of an answer: texts alone, without boxes (but for those of the question), pixels, patients
    and names of files."""

    task: Task
    modality: Modality
    question: str
    truth: str
    answer: str


def parse_scorers(texts: Sequence[str], timeout_seconds: float) -> list[OutsideScorer]:
    """Read `NAME=CMD` of each. Raises BadInput for a name that is taken or odd, and a program that is not there."""
    if not 0 < timeout_seconds < math.inf:
        raise BadInput(f"--scorer-timeout {timeout_seconds:g}: seconds above 0 are wanted")
    taken = {metric.casefold() for measure in MEASURES for metric in measure.metrics}
    scorers = []
    for text in texts:
        name, sign, line = (part.strip() for part in text.partition("="))
        if not sign or not _NAME.fullmatch(name):
            raise BadInput(f"--scorer {text}: NAME=CMD is wanted, the name of a figure and the program that gives it")
        if name.casefold() in taken:
            raise BadInput(f"--scorer {name}: a metric of that name exists, or is given twice; choose another name")
        taken.add(name.casefold())
        try:
            command = shlex.split(line)
        except ValueError as error:
            raise BadInput(f"--scorer {name}: {line!r} cannot be read as a command ({error})") from None
        if not command or shutil.which(command[0]) is None:
            raise BadInput(
                f"--scorer {name}: {(command or [''])[0]!r} is no program that can be run here; a script needs its "
                f"interpreter before it, as in --scorer '{name}=python script.py'"
            )
        scorers.append(OutsideScorer(name, tuple(command), timeout_seconds))
    return scorers


def make_outside_measure(scorer: OutsideScorer) -> Measure:
    """The measure whose counts are the program's scores: a mean over answers."""

    def count(items: Sequence[SampleAnswer], _: Rules) -> Counts:
        pairs = [_make_pair(item) for item in items]
        unique = list(dict.fromkeys(pairs))
        scores = dict(zip(unique, score_pairs(scorer, unique), strict=True))
        return np.array([[1.0, scores[pair]] for pair in pairs])

    return _make_measure(scorer.name, count)


def make_stored_measure(
    name: str, samples: Sequence[Sample], predictions: Sequence[Prediction], scores: Mapping[str, float]
) -> Measure:
    """The same figure from kept scores: those of the predictions of a system by the id of their sample.

    It is of the tasks with a kept score; a system may be joined from folders that were not all scored. Its `count`
    raises BadInput naming an answer to such a task without a score.
    """
    score_by_answer = {(p.id, p.answer.answer): scores[p.id] for p in predictions if p.id in scores}
    tasks = {s.task for s in samples if s.id in scores}

    def count(items: Sequence[SampleAnswer], _: Rules) -> Counts:
        keys = [(item.sample.id, item.answer.answer) for item in items]
        if missing := next((id for id, answer in keys if (id, answer) not in score_by_answer), None):
            raise BadInput(f"no score of {name} is kept for the answer to {missing!r}; evaluate with --scorer again")
        return np.array([[1.0, score_by_answer[key]] for key in keys])

    return _make_measure(name, count, tuple(task for task in TASKS if task in tasks))


def _make_measure(
    name: str, count: Callable[[Sequence[SampleAnswer], Rules], Counts], tasks: tuple[Task, ...] = TASKS
) -> Measure:
    return Measure(tasks, _COLUMNS, count, (Metric(name, Mean("score", "answers")),))


def _make_pair(item: SampleAnswer) -> TextPair:
    sample = item.sample
    return TextPair(
        sample.task,
        sample.modality,
        _spell_question(sample.question),
        sample.answer.words,
        item.answer.answer.words,
    )


def _spell_question(question: BoxedText) -> str:
    """With its boxes in thousandths: without them nobody knows what is asked."""
    try:
        return _QUESTION_CODEC.encode(question)
    except BadInput:  # the words hold a box already
        return question.words


def score_pairs(scorer: OutsideScorer, pairs: Sequence[TextPair]) -> list[float]:
    """Start the program, give it the pairs, and return its score of each, in their order.

    Raises BadInput naming the scorer, the line at fault, and the last line that the program wrote to stderr.
    """
    if not pairs:
        return []
    # ASCII: no character within a text ends a line, whatever the program splits lines by
    rows = (json.dumps({"id": number, **pair._asdict()}) for number, pair in enumerate(pairs, start=1))
    run = _ProgramRun(scorer, "".join(f"{row}\n" for row in rows).encode("ascii"), len(pairs))
    return _ScoreLines(run.fail, len(pairs)).read(run.output())


class _ProgramRun:
    """One run of the program. Whatever happens, it and its children have ended when `output` returns."""

    def __init__(self, scorer: OutsideScorer, request: bytes, num_pairs: int) -> None:
        self.scorer = scorer
        self.request = request
        self.num_pairs = num_pairs
        self._said = b""

    def output(self) -> bytes:
        """All that the program printed. Raises BadInput where it fails, takes too long or prints too much."""
        try:
            process = subprocess.Popen(
                self.scorer.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a group of its own, which is ended as a whole
            )
        except (OSError, ValueError) as error:
            self.fail(f"did not start ({error})")
        assert process.stdin and process.stdout and process.stderr
        most = _MOST_BYTES + _MOST_BYTES_A_PAIR * self.num_pairs
        stdout = _PipeReader(process.stdout, most, lambda: kill_tree(process))
        stderr = _PipeReader(process.stderr, _STDERR_BYTES)
        threading.Thread(target=_write_all, args=(process.stdin, self.request), daemon=True).start()
        try:
            in_time = self._wait(process, stdout)
        finally:
            kill_tree(process)
            for reader in (stdout, stderr):
                reader.join(_GRACE_SECONDS)
        self._said = bytes(stderr.content)
        if stdout.too_much:
            self.fail(f"printed more than {most:,} bytes for {self.num_pairs:,} pairs, and was stopped")
        if not in_time:
            self.fail(
                f"had not ended after {self.scorer.timeout_seconds:g} s, and was stopped; give it longer with "
                "--scorer-timeout SECONDS"
            )
        if process.returncode:
            signalled = process.returncode < 0
            self.fail(f"ended by {'signal' if signalled else 'exit status'} {abs(process.returncode)}")
        if stdout.is_alive():
            self.fail("ended and left a program behind that still holds its output")
        return bytes(stdout.content)

    def _wait(self, process: subprocess.Popen[bytes], stdout: _PipeReader) -> bool:
        """Whether the program ended in time; a bar counts its lines."""
        deadline, lines = time.monotonic() + self.scorer.timeout_seconds, 0
        with progress(self.num_pairs, self.scorer.name, "pair") as advance:
            while (left := deadline - time.monotonic()) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(left, 0.5))
                seen = min(stdout.lines, self.num_pairs)
                advance(seen - lines)
                lines = seen
                if process.returncode is not None:
                    return True
        return False

    def fail(self, what: str) -> NoReturn:
        said = [line for line in self._said.decode("utf-8", "replace").splitlines() if line.strip()]
        last = f"; its last words: {visible(said[-1].strip())[:300]}" if said else ""
        raise BadInput(f"--scorer {self.scorer.name}: {what}; none of its scores is used{last}")


class _PipeReader(threading.Thread):
    """Reads a pipe to its end. With `stop` it keeps the first bytes and calls `stop` where there are more; without it,
    it keeps the last."""

    def __init__(self, pipe: IO[bytes], most_bytes: int, stop: Callable[[], None] | None = None) -> None:
        super().__init__(daemon=True)
        self._pipe, self._most_bytes, self._stop_program = pipe, most_bytes, stop
        self.content = bytearray()
        self.lines = 0
        self.too_much = False
        self.start()

    def run(self) -> None:
        while chunk := os.read(self._pipe.fileno(), 1 << 16):
            self.content += chunk
            self.lines += chunk.count(b"\n")
            if len(self.content) <= self._most_bytes:
                continue
            if self._stop_program is not None:
                self.too_much = True
                self._stop_program()
                break
            del self.content[: -self._most_bytes]
        self._pipe.close()


def _write_all(pipe: IO[bytes], content: bytes) -> None:
    with contextlib.suppress(OSError):  # the program ended, or reads no further
        pipe.write(content)
    with contextlib.suppress(OSError):
        pipe.close()


class _ScoreLines:
    """Reads what a program printed: a number a line, in the order of the pairs, or JSON lines `{"id", "score"}`."""

    def __init__(self, fail: Callable[[str], NoReturn], num_pairs: int) -> None:
        self._fail = fail
        self._num_pairs = num_pairs
        self._ids = {str(id) for id in range(1, num_pairs + 1)}

    def read(self, output: bytes) -> list[float]:
        try:
            lines = output.decode("utf-8").rstrip().split("\n")
        except UnicodeDecodeError as error:
            self._fail(f"printed no text ({error})")
        if lines == [""]:
            self._fail(f"printed nothing for {self._num_pairs:,} pairs")
        if len(lines) != self._num_pairs:
            self._fail(f"printed {len(lines):,} lines for {self._num_pairs:,} pairs")
        if not lines[0].lstrip().startswith("{"):
            return [self._check_number(number, line, line) for number, line in enumerate(lines, start=1)]
        scores: dict[str, float] = {}
        for number, line in enumerate(lines, start=1):
            id, score = self._read_row(number, line)
            if id in scores:
                self._fail(f"line {number} scores the pair {id} again")
            scores[id] = score
        return [scores[str(id)] for id in range(1, self._num_pairs + 1)]

    def _read_row(self, number: int, line: str) -> tuple[str, float]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not {"id", "score"} <= row.keys():
            self._fail(f'line {number} is {_shorten(line)}, and {{"id": ..., "score": ...}} is wanted')
        if str(row["id"]) not in self._ids:
            self._fail(f"line {number} scores a pair {_shorten(str(row['id']))}, which it was not given")
        return str(row["id"]), self._check_number(number, row["score"], line)

    def _check_number(self, number: int, value: Any, line: str) -> float:
        """The number, or that which a plain line spells."""
        score = math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):
                score = float(value)
        elif value is line and "_" not in line:
            with contextlib.suppress(ValueError):
                score = float(line)
        if not math.isfinite(score):
            self._fail(f"line {number} is {_shorten(line)}, and a finite number is wanted")
        return score


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")

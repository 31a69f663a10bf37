"""SPICE (Anderson et al. 2016) by its authors' program: the overlap of what two texts say, as tuples of a scene graph.

`jars` names the files that it runs on. The program takes ~10 s to start, ~30 ms of a core for a short text, and for a
long text more, by the cube of its length (250 words: 80 s). Therefore it gets many pairs at a time, the long texts
last; a text of many pairs is parsed once, and the score of a pair is kept on the disk. Where the program fails on a
pair, this pair is named and nothing is scored: a figure of the other answers would be another figure, and SPICE itself
counts a text that it had no memory to parse as one that says nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from clinkd.scoring import jars
from clinkd.scoring.captions import UTF8, Caption, CaptionScorer, Counts, NotComputed, find_java
from clinkd.storage import cache_folder, progress
from clinkd.system_memory import free_memory_mb

SPICE_COLUMNS = ("answers", "F-score")

MAIN = "edu.anu.spice.SpiceScorer"
MOST_MB, LEAST_MB = 6000, 800  # of the heap: a sentence of 250 words takes over 1.4 GB
FREE_SHARE = 0.75  # of the free memory that the heap may take
OUT_OF_MEMORY = 3  # exit status under -XX:+ExitOnOutOfMemoryError
BATCH_SECONDS = 120.0  # CPU seconds, measured: a stopped run loses as much, and each batch costs a start (10 s)
REPEATS = 50  # with so many texts of a batch to parse again, a second start takes less time
START_SECONDS, PATIENCE = 300.0, 40.0  # a batch may take START_SECONDS + PATIENCE * its CPU seconds: a busy machine


class FailedPair(NotComputed):
    """SPICE fails on one pair alone: the pair at `place`."""

    def __init__(self, place: int, what: str) -> None:
        super().__init__(f"SPICE {what}; nothing is scored, since a figure of the other answers would be another one")
        self.place = place


class _BatchError(Exception):
    """A batch has no scores, for this reason. `pair`: the pair that failed alone. `crashed`: the program ended by an
    error of its own."""

    def __init__(self, reason: str, pair: Caption | None = None, crashed: bool = False) -> None:
        super().__init__(reason)
        self.pair, self.crashed = pair, crashed


def spice_counts(captions: Sequence[Caption], scorer: CaptionScorer) -> Counts:
    """[N, 2]: 1, and SPICE's F-score (0..1) of each answer. Equal pairs are scored once, and once for all runs.

    `scorer` gives the tokens of the texts. Raises NotComputed where SPICE, Java or memory is missing, and FailedPair
    where SPICE fails on a pair.
    """
    if not captions:
        return np.zeros((0, len(SPICE_COLUMNS)))
    if scorer.leave_out_spice:
        raise NotComputed("SPICE is left out")
    program = find_program()
    captions_in_tokens = scorer.tokenized(captions)
    unique = list(dict.fromkeys(captions_in_tokens))
    cache = SpiceCache(scorer.spice_file or scores_file(), jars.version())
    scores = cache.read(unique)
    if missing := [c for c in unique if c not in scores]:
        with (
            tempfile.TemporaryDirectory(prefix="clinkd-spice-") as parses,
            progress(len(unique), "SPICE", "pair", done=len(scores)) as advance,
        ):
            batch_scorer = _BatchScorer(program, Path(parses))
            try:
                for batch in _split_batches(missing):
                    for part, part_scores in batch_scorer.score_parts(batch):
                        cache.write(part, part_scores)
                        scores |= zip(part, part_scores, strict=True)
                        advance(len(part))
            except _BatchError as error:
                assert error.pair
                raise FailedPair(captions_in_tokens.index(error.pair), str(error)) from None
    return np.array([[1.0, scores[c]] for c in captions_in_tokens])


def find_program() -> Program:
    """The program that computes SPICE here. Raises NotComputed where a part of it is missing."""
    return Program(find_java(), jars.class_path(), _heap_mb())


def scores_file() -> Path:
    """The cache of the scores of all runs."""
    return cache_folder() / "spice" / "scores.sqlite"


def _split_batches(captions: Sequence[Caption]) -> Iterator[list[Caption]]:
    """Batches of about BATCH_SECONDS, the short texts first."""
    batch: list[Caption] = []
    parsed: set[str] = set()
    seconds = 0.0
    for caption in sorted(captions, key=lambda c: estimate_cpu_seconds(_texts(c))):
        added_seconds = estimate_cpu_seconds([t for t in _texts(caption) if t not in parsed])
        if batch and seconds + added_seconds > BATCH_SECONDS:
            yield batch
            batch, seconds = [], 0.0
        batch.append(caption)
        parsed |= set(_texts(caption))
        seconds += added_seconds
    yield batch


def _texts(*captions: Caption) -> list[str]:
    return [text for caption in captions for text in (caption.candidate, *caption.references)]


def estimate_cpu_seconds(texts: Sequence[str]) -> float:
    """The time to parse these texts, measured on texts of 10 to 250 words."""
    return sum(0.03 + 5e-6 * len(text.split()) ** 3 for text in texts)


def _heap_mb() -> int:
    free = free_memory_mb()
    heap = int(min(MOST_MB, FREE_SHARE * free))
    if heap < LEAST_MB:
        raise NotComputed(
            f"SPICE needs {LEAST_MB / FREE_SHARE:.0f} MB of free memory, and {free:.0f} are; end something, then "
            "evaluate again"
        )
    return heap


class _BatchScorer:
    """Scores batches. Until the end SPICE keeps what it parsed in the folder `parses`.

    SPICE parses every text that it has not kept, also each copy of a text within a batch. Therefore a batch with many
    copies is preceded by a batch with each of its texts once. What SPICE keeps holds the texts: it must not outlive the
    computation.
    """

    def __init__(self, program: Program, parses: Path) -> None:
        self.program = program
        self.parses: Path | None = parses
        self.parsed: set[str] = set()

    def score_parts(self, batch: Sequence[Caption]) -> Iterator[tuple[Sequence[Caption], list[float]]]:
        """The batch with its F-scores, in as few parts as possible. Raises _BatchError naming a pair."""
        try:
            scores = self._score(batch)
        except _BatchError as reason:
            if len(batch) == 1:
                words = ", ".join(str(len(text.split())) for text in _texts(batch[0]))
                raise _BatchError(f"{reason}, given one pair alone (texts of {words} words)", batch[0]) from None
            middle = len(batch) // 2
            yield from self.score_parts(batch[:middle])
            yield from self.score_parts(batch[middle:])
        else:
            yield batch, scores

    def _score(self, batch: Sequence[Caption]) -> list[float]:
        texts = [text for text in _texts(*batch) if text not in self.parsed]
        unique = list(dict.fromkeys(texts))
        if len(texts) - len(unique) >= REPEATS and self.parses:
            self._run([Caption(a, (b,)) for a, b in zip(unique[::2], [*unique[1::2], unique[-1]], strict=False)])
        scores = self._run(batch)
        self.parsed |= set(unique)
        return scores

    def _run(self, batch: Sequence[Caption]) -> list[float]:
        try:
            return self.program.run(batch, self.parses)
        except _BatchError as error:
            if not error.crashed or self.parses is None:
                raise
            self.parses = None  # the libraries by which it keeps parses do not work with every Java and machine
            return self.program.run(batch, None)


class Program(NamedTuple):
    """The command that is started for each batch."""

    java: str
    class_path: str
    heap_mb: int

    def run(self, batch: Sequence[Caption], parses: Path | None) -> list[float]:
        """F-scores. SPICE keeps what it parsed in the folder `parses`, if one is given. Raises _BatchError."""
        # A sentence that finds no memory must not be passed over: Java ends at once.
        memory = [f"-Xmx{self.heap_mb}m", "-XX:+UseParallelGC", "-XX:+ExitOnOutOfMemoryError"]
        opened, kept = (_OPEN, ["-cache", str(parses)]) if parses else ([], [])
        rows = [{"image_id": i, "test": c.candidate, "refs": c.references} for i, c in enumerate(batch)]
        with tempfile.TemporaryDirectory(prefix="clinkd-spice-") as temp:
            asked, scored = Path(temp, "asked.json"), Path(temp, "told.json")
            asked.write_text(json.dumps(rows))
            java = [self.java, *opened, *UTF8, *memory, f"-Djava.io.tmpdir={temp}", "-cp", self.class_path]
            command = [*java, MAIN, str(asked), "-out", str(scored), "-subset", "-silent", *kept]
            self._start(command, Path(temp), START_SECONDS + PATIENCE * estimate_cpu_seconds(_texts(*batch)))
            try:
                f_scores = {r["image_id"]: float(r["scores"]["All"]["f"]) for r in json.loads(scored.read_bytes())}
                return [f_scores[i] for i in range(len(batch))]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise _BatchError(f"left no scores that can be read ({type(error).__name__}: {error})") from None

    def _start(self, command: Sequence[str], folder: Path, patience: float) -> None:
        try:
            completed = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience, check=False
            )
        except subprocess.TimeoutExpired:
            raise _BatchError(f"did not end within {patience:.0f} s") from None
        except OSError as error:
            raise NotComputed(f"SPICE did not start ({error})") from error
        status = completed.returncode
        if status == OUT_OF_MEMORY:
            raise _BatchError(f"found too little memory in a heap of {self.heap_mb} MB (it takes {MOST_MB} where free)")
        if status:
            raise _BatchError(f"ended with status {status} ({_find_message(completed.stderr)})", crashed=True)


# The fst library, by which SPICE keeps what it parsed, looks into Java's own classes, which Java 16 closed.
_OPEN = [
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
        *("java.io", "java.lang", "java.lang.reflect", "java.math", "java.net", "java.nio", "java.text", "java.time"),
        *("java.util", "java.util.concurrent", "sun.nio.ch"),
    )
]


def _find_message(stderr: bytes) -> str:
    """The last line that is no place in a Java stack trace."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    return next((line[:200] for line in reversed(lines) if line and not line.startswith(("at ", "..."))), "silently")


# ---- the cache ------------------------------------------------------------------------------------------------------


class SpiceCache:
    """Scores in a file (sqlite), by a hash of the pair and of the jars, without the texts. Several processes may write
    to it.

    It only saves time: where the file cannot be read or written, everything is computed anew.
    """

    def __init__(self, path: Path, version: str) -> None:
        self.path, self.version = path, version

    def read(self, captions: Sequence[Caption]) -> dict[Caption, float]:
        """The scores of the pairs that are in the cache."""
        scores: dict[Caption, float] = {}
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as base:
            for caption in captions:
                if row := base.execute("select f from scores where pair = ?", (self._key(caption),)).fetchone():
                    scores[caption] = row[0]
        return scores

    def write(self, captions: Sequence[Caption], scores: Sequence[float]) -> None:
        """Add all of them, or none."""
        rows = [(self._key(c), f) for c, f in zip(captions, scores, strict=True)]
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as base, base:
            base.executemany("insert or ignore into scores values (?, ?)", rows)

    def size(self) -> int:
        """The number of pairs."""
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as base:
            return cast(int, base.execute("select count(*) from scores").fetchone()[0])
        return 0

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as base:
            try:
                base.execute("create table if not exists scores (pair blob primary key, f real not null) without rowid")
                yield base
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # no sqlite, or torn: of no use to anybody
                self.path.unlink(missing_ok=True)
                raise

    def _key(self, caption: Caption) -> bytes:
        texts = [self.version, caption.candidate, *caption.references]
        return hashlib.sha256(json.dumps(texts).encode()).digest()

"""SPICE (Anderson et al. 2016) by its authors' program: the overlap of what two texts say, as tuples of a scene graph.

`jars` says what it runs on. It takes ~10 s to start, ~30 ms of a core for a short text, and with the cube of its length
more for a long one (250 words: 80 s). So it is given many pairs at a time, the long ones last; a text of many pairs is
parsed once, and what was said of a pair is kept on the disk. A pair that it fails on is named and nothing is scored:
never is a number given for a part of the answers, or in the place of a parse that found no memory (which SPICE would
count as an answer that says nothing).
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
from numpy.typing import NDArray

from clinkd.scoring import jars
from clinkd.scoring.captions import UTF8, Caption, CaptionScorer, NotComputed, find_java
from clinkd.storage import cache_folder, progress
from clinkd.system_memory import free_memory_mb

Counts = NDArray[np.float64]

SPICE_COLUMNS = ("answers", "F-score")

MAIN = "edu.anu.spice.SpiceScorer"
MOST_MB, LEAST_MB = 6000, 800  # of the heap: a sentence of 250 words takes over 1.4 GB
FREE_SHARE = 0.75  # of the free memory that the heap may take
OUT_OF_MEMORY = 3  # exit status under -XX:+ExitOnOutOfMemoryError
# CPU seconds, measured: bounds what a broken-off run loses against what starting anew costs (10 s)
BATCH_SECONDS = 120.0
REPEATS = 50  # texts of a batch that it would parse again, from which on a second start is worth its while
# waited for: so long, and so many times the CPU seconds: it may be a busy machine
START_SECONDS, PATIENCE = 300.0, 40.0


class FailedPair(NotComputed):
    """SPICE fails on one pair alone: the one at `place`."""

    def __init__(self, place: int, what: str) -> None:
        super().__init__(f"SPICE {what}; nothing is scored, since a figure of the other answers would be another one")
        self.place, self.what = place, what


class _BatchError(Exception):
    """A batch came to nothing: the reason, and the pair, where it is of one alone."""

    def __init__(self, reason: str, pair: Caption | None = None) -> None:
        super().__init__(reason)
        self.pair = pair


class _Crashed(_BatchError):
    """A batch came to nothing, since the program ended by a fault."""


def spice_counts(captions: Sequence[Caption], scorer: CaptionScorer) -> Counts:
    """[N, 2]: 1, and SPICE's F-score (0..1) of each answer. Equal pairs are worked out once, and once for all runs.

    The tokens of the texts are those of `scorer`. Raises NotComputed where SPICE, Java or memory is missing, and
    FailedPair where it fails on a pair.
    """
    if not captions:
        return np.zeros((0, len(SPICE_COLUMNS)))
    program = ready()
    spoken = scorer.tokenized(captions, program.java)
    unique = list(dict.fromkeys(spoken))
    store = SpiceCache(scorer.spice_file or scores_file(), jars.version())
    scores = store.read(unique)
    todo = [c for c in unique if c not in scores]
    if todo:
        with (
            tempfile.TemporaryDirectory(prefix="clinkd-spice-") as parses,
            progress(len(unique), "SPICE", "pair", done=len(scores)) as advance,
        ):
            reader = _BatchScorer(program, Path(parses))
            try:
                for batch in _batches(todo):
                    for part, found in _scored(reader, batch):
                        store.write(part, found)
                        scores |= zip(part, found, strict=True)
                        advance(len(part))
            except _BatchError as broken:
                assert broken.pair
                raise FailedPair(spoken.index(broken.pair), str(broken)) from None
    return np.array([[1.0, scores[c]] for c in spoken])


def ready() -> Program:
    """What is needed to compute SPICE here. Raises NotComputed where something of it is missing."""
    return Program(find_java(), jars.class_path(), _heap_mb())


def scores_file() -> Path:
    """Where the scores of all runs are kept."""
    return cache_folder() / "spice" / "scores.sqlite"


def _scored(reader: _BatchScorer, batch: Sequence[Caption]) -> Iterator[tuple[Sequence[Caption], list[float]]]:
    """The batch with its scores, in so few parts as it can be done in. Raises _Broken naming a pair."""
    try:
        found = reader.score(batch)
    except _BatchError as reason:
        if len(batch) == 1:
            words = ", ".join(str(len(text.split())) for text in _texts(batch[0]))
            raise _BatchError(f"{reason}, given one pair alone (texts of {words} words)", batch[0]) from None
        middle = len(batch) // 2
        yield from _scored(reader, batch[:middle])
        yield from _scored(reader, batch[middle:])
    else:
        yield batch, found


def _batches(captions: Sequence[Caption]) -> Iterator[list[Caption]]:
    """Of about BATCH_SECONDS each, the short ones first."""
    batch: list[Caption] = []
    seen: set[str] = set()
    spent = 0.0
    for caption in sorted(captions, key=lambda c: _cpu_seconds(_texts(c))):
        new = [t for t in _texts(caption) if t not in seen]
        if batch and spent + _cpu_seconds(new) > BATCH_SECONDS:
            yield batch
            batch, spent = [], 0.0
        batch.append(caption)
        seen |= set(new)
        spent += _cpu_seconds(new)
    yield batch


def _texts(*captions: Caption) -> list[str]:
    return [text for caption in captions for text in (caption.candidate, *caption.references)]


def _cpu_seconds(texts: Sequence[str]) -> float:
    """Of parsing, measured on texts of 10 to 250 words."""
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
    """Scores batches; what SPICE parsed is kept in the folder `parses` meanwhile.

    SPICE parses each text that it has not kept, so also one that stands in a batch many times. Therefore the texts of
    such a batch are first given to it once each. What it keeps holds the texts: it must not outlive the computation.
    """

    def __init__(self, program: Program, parses: Path) -> None:
        self.program = program
        self.parses: Path | None = parses
        self.read: set[str] = set()

    def score(self, batch: Sequence[Caption]) -> list[float]:
        """F-scores. Raises _Broken."""
        texts = [text for text in _texts(*batch) if text not in self.read]
        new = list(dict.fromkeys(texts))
        if len(texts) - len(new) >= REPEATS and self.parses:
            self._run([Caption(a, (b,)) for a, b in zip(new[::2], [*new[1::2], new[-1]], strict=False)])
        scores = self._run(batch)
        self.read |= set(new)
        return scores

    def _run(self, batch: Sequence[Caption]) -> list[float]:
        try:
            return self.program.run(batch, self.parses)
        except _Crashed:
            if self.parses is None:
                raise
            self.parses = None  # the libraries by which it keeps parses do not work with every Java and machine
            return self.program.run(batch, None)


class Program(NamedTuple):
    """What is started for each batch."""

    java: str
    class_path: str
    heap_mb: int

    def run(self, batch: Sequence[Caption], parses: Path | None) -> list[float]:
        """F-scores. What was parsed is kept in the folder `parses`, if one is given. Raises _Broken."""
        with tempfile.TemporaryDirectory(prefix="clinkd-spice-") as temp:
            asked, told = Path(temp, "asked.json"), Path(temp, "told.json")
            rows = [{"image_id": i, "test": c.candidate, "refs": c.references} for i, c in enumerate(batch)]
            asked.write_text(json.dumps(rows))
            java = [*_OPEN, *self._java(asked.parent)] if parses else self._java(asked.parent)
            kept = ["-cache", str(parses)] if parses else []
            command = [self.java, *java, MAIN, str(asked), "-out", str(told), "-subset", "-silent", *kept]
            self._start(command, asked.parent, START_SECONDS + PATIENCE * _cpu_seconds(_texts(*batch)))
            try:
                found = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in json.loads(told.read_bytes())}
                return [found[i] for i in range(len(batch))]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise _BatchError(f"left no scores that can be read ({type(error).__name__}: {error})") from None

    def _java(self, temp: Path) -> list[str]:
        # A sentence that finds no memory must not be passed over: Java ends at once.
        memory = [f"-Xmx{self.heap_mb}m", "-XX:+UseParallelGC", "-XX:+ExitOnOutOfMemoryError"]
        return [*UTF8, *memory, f"-Djava.io.tmpdir={temp}", "-cp", self.class_path]

    def _start(self, command: Sequence[str], folder: Path, patience: float) -> None:
        try:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience, check=False
            )
        except subprocess.TimeoutExpired:
            raise _BatchError(f"did not end within {patience:.0f} s") from None
        except OSError as error:
            raise NotComputed(f"SPICE did not start ({error})") from error
        if done.returncode == OUT_OF_MEMORY:
            raise _BatchError(f"found too little memory in a heap of {self.heap_mb} MB (it takes {MOST_MB} where free)")
        if done.returncode:
            raise _Crashed(f"ended with status {done.returncode} ({_last_words(done.stderr)})")


# The fst library, by which SPICE keeps what it parsed, looks into Java's own classes, which Java 16 closed.
_OPEN = [
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
        *("java.io", "java.lang", "java.lang.reflect", "java.math", "java.net", "java.nio", "java.text", "java.time"),
        *("java.util", "java.util.concurrent", "sun.nio.ch"),
    )
]


def _last_words(stderr: bytes) -> str:
    """The last line that says something: Java ends with where it was."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    return next((line[:200] for line in reversed(lines) if line and not line.startswith(("at ", "..."))), "silently")


# ---- what is kept ---------------------------------------------------------------------------------------------------


class SpiceCache:
    """Scores by a hash of the pair and of the jars, in a file (sqlite) that several processes may write to. No text.

    It only saves time: where it cannot be read or written to, everything is worked out anew.
    """

    def __init__(self, path: Path, version: str) -> None:
        self.path, self.version = path, version

    def read(self, captions: Sequence[Caption]) -> dict[Caption, float]:
        """Those that are known."""
        found: dict[Caption, float] = {}
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as base:
            for caption in captions:
                row = base.execute("select f from scores where pair = ?", (self._key(caption),)).fetchone()
                if row:
                    found[caption] = row[0]
        return found

    def write(self, captions: Sequence[Caption], scores: Sequence[float]) -> None:
        """All of them, or none."""
        rows = [(self._key(c), f) for c, f in zip(captions, scores, strict=True)]
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as base, base:
            base.executemany("insert or ignore into scores values (?, ?)", rows)

    def size(self) -> int:
        """How many are kept."""
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
        told = [self.version, caption.candidate, *caption.references]
        return hashlib.sha256(json.dumps(told).encode()).digest()

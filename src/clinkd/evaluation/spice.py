"""SPICE (Anderson et al. 2016) by its authors' program: the overlap of what two texts say, as tuples of a scene graph.

`jars` says what it runs on. It takes ~10 s to start, ~30 ms of a core for a short text, and with the cube of its length
more for a long one (250 words: 80 s). So it is given many pairs at a time, the long ones last, and what it said of a
pair is kept on the disk. A pair that it fails on is named and nothing is scored: never is a number given for a part of
the answers, or in the place of a parse that found no memory (which SPICE would count as an answer that says nothing).
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

from clinkd.evaluation import jars
from clinkd.evaluation.captions import UTF8, Caption, NotComputed, find_java, tokenized
from clinkd.memory import free_memory_mb
from clinkd.storage import cache_folder, progress

Counts = NDArray[np.float64]

MAIN = "edu.anu.spice.SpiceScorer"
MOST_MB, LEAST_MB = 6000, 800  # of the heap: a sentence of 250 words takes over 1.4 GB
FREE_SHARE = 0.75  # of the free memory that the heap may take
OUT_OF_MEMORY = 3  # exit status under -XX:+ExitOnOutOfMemoryError
# CPU seconds, measured: bounds what a broken-off run loses against what starting anew costs (10 s)
BATCH_SECONDS = 120.0
START_SECONDS, PATIENCE = (
    300.0,
    40.0,
)  # waited for: so long, and so many times the CPU seconds: it may be a busy machine


class FailedPair(NotComputed):
    """SPICE fails on one pair alone: the one at `place`."""

    def __init__(self, place: int, what: str) -> None:
        super().__init__(f"SPICE {what}; nothing is scored, since a figure of the other answers would be another one")
        self.place, self.what = place, what


class _Broken(Exception):
    """A batch came to nothing: the reason, and the pair, where it is of one alone."""

    def __init__(self, reason: str, pair: Caption | None = None) -> None:
        super().__init__(reason)
        self.pair = pair


def spice_counts(captions: Sequence[Caption]) -> Counts:
    """[N, 2]: 1, and SPICE's F-score (0..1) of each answer. Equal pairs are worked out once, and once for all runs.

    Raises NotComputed where SPICE, Java or memory is missing, and FailedPair where it fails on a pair.
    """
    if not captions:
        return np.zeros((0, 2))
    program = ready()
    spoken = tokenized(captions, program.java)
    unique = list(dict.fromkeys(spoken))
    store = Store(_at or scores_file(), jars.version())
    scores = store.read(unique)
    todo = [c for c in unique if c not in scores]
    if todo:
        with progress(len(unique), "SPICE", "pair", done=len(scores)) as advance:
            try:
                for batch in _batches(todo):
                    for part, found in _scored(program, batch):
                        store.write(part, found)
                        scores |= zip(part, found, strict=True)
                        advance(len(part))
            except _Broken as broken:
                assert broken.pair
                raise FailedPair(spoken.index(broken.pair), str(broken)) from None
    return np.array([[1.0, scores[c]] for c in spoken])


def ready() -> Program:
    """What is needed to compute SPICE here. Raises NotComputed where something of it is missing."""
    return Program(find_java(), jars.class_path(), _heap_mb())


def scores_file() -> Path:
    """Where the scores of all runs are kept."""
    return cache_folder() / "spice" / "scores.sqlite"


def _scored(program: Program, batch: Sequence[Caption]) -> Iterator[tuple[Sequence[Caption], list[float]]]:
    """The batch with its scores, in so few parts as it can be done in. Raises _Broken naming a pair."""
    try:
        found = program.run(batch)
    except _Broken as reason:
        if len(batch) == 1:
            words = ", ".join(str(len(t.split())) for t in (batch[0].candidate, *batch[0].references))
            raise _Broken(f"{reason}, given one pair alone (texts of {words} words)", batch[0]) from None
        middle = len(batch) // 2
        yield from _scored(program, batch[:middle])
        yield from _scored(program, batch[middle:])
    else:
        yield batch, found


def _batches(captions: Sequence[Caption]) -> Iterator[list[Caption]]:
    """Of about BATCH_SECONDS each, the short ones first."""
    batch: list[Caption] = []
    spent = 0.0
    for caption in sorted(captions, key=_cpu_seconds):
        if batch and spent + _cpu_seconds(caption) > BATCH_SECONDS:
            yield batch
            batch, spent = [], 0.0
        batch.append(caption)
        spent += _cpu_seconds(caption)
    yield batch


def _cpu_seconds(caption: Caption) -> float:
    """Of parsing the texts of a pair, measured on texts of 10 to 250 words."""
    return sum(0.03 + 5e-6 * len(t.split()) ** 3 for t in (caption.candidate, *caption.references))


def _heap_mb() -> int:
    free = free_memory_mb()
    heap = int(min(MOST_MB, FREE_SHARE * free))
    if heap < LEAST_MB:
        raise NotComputed(
            f"SPICE needs {LEAST_MB / FREE_SHARE:.0f} MB of free memory, and {free:.0f} are; end something, then "
            "evaluate again"
        )
    return heap


class Program(NamedTuple):
    """What is started for each batch."""

    java: str
    class_path: str
    heap_mb: int

    def run(self, batch: Sequence[Caption]) -> list[float]:
        """F-scores. Raises _Broken."""
        with tempfile.TemporaryDirectory(prefix="clinkd-spice-") as temp:
            asked, told = Path(temp, "asked.json"), Path(temp, "told.json")
            rows = [{"image_id": i, "test": c.candidate, "refs": c.references} for i, c in enumerate(batch)]
            asked.write_text(json.dumps(rows))
            self._start(asked, told, sum(map(_cpu_seconds, batch)))
            try:
                found = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in json.loads(told.read_bytes())}
                return [found[i] for i in range(len(batch))]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise _Broken(f"left no scores that can be read ({type(error).__name__}: {error})") from None

    def _start(self, asked: Path, told: Path, cpu_seconds: float) -> None:
        # A sentence that finds no memory must not be passed over: Java ends at once. `-cache` breaks since Java 16.
        java = (
            self.java, *UTF8, f"-Xmx{self.heap_mb}m", "-XX:+UseParallelGC", "-XX:+ExitOnOutOfMemoryError",
            f"-Djava.io.tmpdir={asked.parent}", "-cp", self.class_path,
        )  # fmt: skip
        command = [*java, MAIN, str(asked), "-out", str(told), "-subset", "-silent"]
        patience = START_SECONDS + PATIENCE * cpu_seconds
        try:
            done = subprocess.run(
                command, cwd=asked.parent, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience, check=False
            )
        except subprocess.TimeoutExpired:
            raise _Broken(f"did not end within {patience:.0f} s") from None
        except OSError as error:
            raise NotComputed(f"SPICE did not start ({error})") from error
        if done.returncode == OUT_OF_MEMORY:
            raise _Broken(f"found too little memory in a heap of {self.heap_mb} MB (it takes {MOST_MB} where free)")
        if done.returncode:
            raise _Broken(f"ended with status {done.returncode} ({_last_words(done.stderr)})")


def _last_words(stderr: bytes) -> str:
    """The last line that says something: Java ends with where it was."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    return next((line[:200] for line in reversed(lines) if line and not line.startswith(("at ", "..."))), "silently")


# ---- what is kept ---------------------------------------------------------------------------------------------------

_at: Path | None = None


@contextlib.contextmanager
def kept_at(path: Path) -> Iterator[None]:
    """Inside the block scores are kept there, and those of other runs are not known."""
    global _at
    before, _at = _at, path
    try:
        yield
    finally:
        _at = before


class Store:
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

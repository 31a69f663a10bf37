"""Similarity by a sentence embedding, as in the paper; the vectors of references are cached on the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clinkd.correction.similarity import text_hash
from clinkd.records import BadInput
from clinkd.storage import make_folder, naming_full_disk

Vectors = NDArray[np.float32]
_AT_A_TIME = 1024  # texts between two writes
_IN_MEMORY = Path(":memory:")  # sqlite's name of a database without a file


class Embedder(Protocol):
    """Texts to vectors [len(texts), width] of length 1. `identity` changes with the weights."""

    @property
    def identity(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> Vectors: ...


class EmbeddingSimilarity:
    """Cosine of two sentence embeddings; below 0 it counts as 0.

    It knows synonyms, which rules do not ("renal" is near "kidney"), and passes a wrong side ("left lung" against
    "right lung": .98), so review tests sides, negation, counts and boxes beside it. Texts are embedded as they are
    written: a sentence model knows capitals and punctuation.

    Vectors of `references` are kept in the file `store` by a hash of their text (None: in memory alone), so a second
    round, or another run on the same truths, embeds answers only. `step` is told of references as they are embedded.
    """

    name = "embedding"

    def __init__(
        self,
        embedder: Embedder,
        references: Iterable[str],
        store: Path | None = None,
        step: Callable[[int], None] = lambda n: None,
    ) -> None:
        self._embedder = embedder
        texts = {text_hash(t, exact=True): t for t in references}
        with _open_cache(store or _IN_MEMORY) as cache:
            self._cached = _read_vectors(cache, embedder.identity, texts)
            step(len(self._cached))
            todo = sorted((t, key) for key, t in texts.items() if key not in self._cached)
            for start in range(0, len(todo), _AT_A_TIME):
                batch = todo[start : start + _AT_A_TIME]
                vectors = dict(zip((key for _, key in batch), embedder.embed([t for t, _ in batch]), strict=True))
                rows = [(embedder.identity, key, v.astype("<f4").tobytes()) for key, v in vectors.items()]
                with cache:
                    cache.executemany("insert or replace into vectors values (?, ?, ?)", rows)
                self._cached |= vectors
                step(len(batch))

    def similar(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
        """[len(a)] values in 0..1, rounded to 6 places; exactly 1 for equal texts, 0 if one is empty."""
        keys = {text: text_hash(text, exact=True) for text in (*a, *b) if text.strip()}
        uncached = sorted({t for t, key in keys.items() if key not in self._cached})
        new_vectors = dict(zip(uncached, self._embedder.embed(uncached), strict=True)) if uncached else {}

        def vector(text: str) -> Vectors:
            return new_vectors[text] if text in new_vectors else self._cached[keys[text]]

        return [
            1.0 if x == y else 0.0 if x not in keys or y not in keys
            else round(float(np.clip(vector(x) @ vector(y), 0, 1)), 6)
            for x, y in zip(a, b, strict=True)
        ]  # fmt: skip


def _read_vectors(cache: sqlite3.Connection, model: str, keys: Iterable[str]) -> dict[str, Vectors]:
    query = "select vector from vectors where model = ? and text = ?"
    rows = {key: cache.execute(query, (model, key)).fetchone() for key in keys}
    return {key: np.frombuffer(row[0], dtype="<f4").astype(np.float32) for key, row in rows.items() if row}


@contextmanager
def _open_cache(path: Path) -> Iterator[sqlite3.Connection]:
    with naming_full_disk(path):
        make_folder(path.parent)
        path.touch(0o600)
        db = sqlite3.connect(path, timeout=60)
        try:
            db.execute("pragma journal_mode=wal")
            db.execute(
                "create table if not exists vectors (model text, text text, vector blob not null, "
                "primary key (model, text)) strict, without rowid"
            )
            yield db
        except sqlite3.DatabaseError as error:
            raise BadInput(f"{path}: not a store of vectors ({error}); remove it, it is made anew") from None
        finally:
            db.close()

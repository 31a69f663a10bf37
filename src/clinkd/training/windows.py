"""The rows of each step, which depend only on seed and step, and their tensors, encoded during the step before."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from clinkd.config import FitConfig
from clinkd.model.encode import Labelled
from clinkd.records import Sample
from clinkd.training.teachers import Learner

Rows = list[list[Sample]]


def sample_windows(rows: Rows, config: FitConfig, seed: int, first: int, num_steps: int) -> Iterator[Rows]:
    """For each step from `first`, the rows of its window, for all processes and micro-batches."""
    orders: dict[int, np.ndarray] = {}
    for step in range(first, num_steps):
        window = []
        for place in range(step * config.rows, (step + 1) * config.rows):
            epoch, index = divmod(place, len(rows))
            if epoch not in orders:
                orders = {epoch: np.random.default_rng([seed, epoch]).permutation(len(rows))}
            window.append(_sample_questions(rows[orders[epoch][index]], config.questions, seed, epoch))
        yield window


def _sample_questions(row: list[Sample], most: int, seed: int, epoch: int) -> list[Sample]:
    if not most or len(row) <= most:
        return row
    ranked = sorted(row, key=lambda s: hashlib.sha256(f"{seed} {epoch} {s.id}".encode()).digest())
    return ranked[:most]


def step_seed(seed: int, step: int, process: int) -> int:
    """A seed for the random numbers of a step, so that no generator's state outlives the step."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0])


def encode_ahead(thread: ThreadPoolExecutor, model: Learner, windows: Iterator[list[Rows]]) -> Iterator[list[Labelled]]:
    """The micro-batches of each window; the next one is encoded while this one trains."""

    def encode(window: list[Rows]) -> list[Labelled]:
        return [model.encode(rows) for rows in window]

    encoding: deque[Future[list[Labelled]]] = deque()
    for window in windows:
        encoding.append(thread.submit(encode, window))
        if len(encoding) > 1:
            yield encoding.popleft().result()
    yield from (future.result() for future in encoding)

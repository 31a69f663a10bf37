"""Decode every image once, in worker processes: does it open, and does another image show the same?

Legend: N images, P pairs, T pixels of a thumbnail.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clinkd.data.images import open_image
from clinkd.data.worker import Worker, WorkerLost
from clinkd.records import BadInput, ImageRef

BITS = 4  # perceptual hashes that differ in at most so many of 64 bits may be of one picture
MIN_CORRELATION = 0.99  # of the thumbnails of such pictures
THUMBNAIL = 16  # pixels a side
_JOB = 16  # images that a worker gets at once
_INLINE = 48  # at most so many are decoded without workers, because their start takes longer
_SAFE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")  # their decoders do not crash
_BANDS = 5  # two hashes that differ in four bits agree in one of five bands


@dataclass(frozen=True, slots=True)
class Look:
    """A decoded image: `why` it cannot be used, or its 64-bit perceptual hash and its grey thumbnail [T]."""

    why: str | None
    hash: int = 0
    thumbnail: bytes = b""
    flat: bool = False  # one colour all over


def examine_images(root: Path, images: Sequence[ImageRef], workers: int) -> Iterator[Look]:
    """Yield a Look for every image, in order. Each worker process holds one image at a time."""
    if len(images) <= _INLINE and all(i.path.lower().endswith(_SAFE_SUFFIXES) for i in images):
        yield from (_look(root, image) for image in images)
        return
    jobs = [images[i : i + _JOB] for i in range(0, len(images), _JOB)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    started = [Worker(look_in_worker) for _ in range(min(workers, len(jobs)))]
    for worker in started:
        idle.put(worker)

    def examine_job(job: Sequence[ImageRef]) -> list[Look]:
        worker = idle.get()
        try:
            return [_look_apart(worker, root, image) for image in job]
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(len(started))
    try:
        for looks in pool.map(examine_job, jobs):
            yield from looks
    finally:
        pool.shutdown(cancel_futures=True)  # if the caller stops early, the rest is not decoded
        for worker in started:
            worker.close()


def _look_apart(worker: Worker, root: Path, image: ImageRef) -> Look:
    """Decode an image in a worker process. If a decoder crashes on a damaged file, only this image is lost."""
    try:
        (why, hash_, flat), [thumbnail] = worker([str(root), image.to_json()])
        return Look(why, hash_, thumbnail, flat)
    except WorkerLost:
        return Look("its decoder crashed; the file is damaged: bring back the original")


def look_in_worker(request: tuple[str, dict[str, Any]], content: bytes) -> tuple[Any, list[bytes]]:
    """The task of the worker processes."""
    look = _look(Path(request[0]), ImageRef.from_json(request[1]))
    return (look.why, look.hash, look.flat), [look.thumbnail]


def _look(root: Path, image: ImageRef) -> Look:
    import imagehash

    try:
        grey = open_image(root, image).convert("L")
    except BadInput as error:
        return Look(str(error).removeprefix(f"image {image.path}: "))
    if (image.width, image.height) not in ((None, None), grey.size):
        size = f"{grey.width}x{grey.height}"
        return Look(f"the image has {size} pixels, not {image.width}x{image.height}; correct it, and the boxes with it")
    perceptual_hash = int(str(imagehash.phash(grey)), 16)
    thumbnail = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    low, high = grey.getextrema()
    return Look(None, perceptual_hash, thumbnail.tobytes(), low == high)


class Pair(NamedTuple):
    """The numbers of two images that look the same; the earlier one is first."""

    first: int
    second: int


def find_similar_pairs(
    looks: Sequence[Look], groups: Sequence[int], splits: Sequence[str] | Sequence[int]
) -> list[Pair]:
    """Pairs of images of different groups that show the same.

    Their hashes differ in at most 4 of 64 bits, and their thumbnails correlate to 0.99. So size, compression and
    brightness may differ, but mirrored and cropped copies are not found. Images of one colour are in no pair. The pairs
    are enough to join all images that show the same, and hold one across splits for every image that has any: a
    thousand copies make a thousand pairs, not half a million. A hash has five bands; of two similar hashes at least one
    band is equal, so that not all images need be compared with all.
    """
    usable = np.array([i for i, look in enumerate(looks) if look.why is None and not look.flat], np.int64)
    if usable.size < 2:
        return []
    _, split_N = np.unique(splits, return_inverse=True)  # numbers are compared faster than names
    collector = _PairCollector(looks, usable, np.asarray(groups), split_N)
    edges = np.linspace(0, 64, _BANDS + 1).astype(int)
    for low, high in itertools.pairwise(edges):
        band_N = (collector.hash_N >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band_N, kind="stable")
        starts = np.flatnonzero(np.diff(band_N[order], prepend=band_N[order[:1]] + np.uint64(1)))
        for members in np.split(order, starts[1:]):
            for position in range(len(members) - 1):  # one by one: all pairs of a large bucket would fill the memory
                collector.compare(int(members[position]), members[position + 1 :])
    return sorted(Pair(int(usable[a]), int(usable[b])) for a, b in collector.pairs)


class _PairCollector:
    """The pairs so far, and the images that they join. Numbers count the N usable images."""

    def __init__(
        self, looks: Sequence[Look], usable: NDArray[np.int64], groups: NDArray[Any], splits: NDArray[Any]
    ) -> None:
        self.hash_N = np.array([looks[i].hash for i in usable], np.uint64)
        self.group_N, self.split_N = groups[usable], splits[usable]
        pixels = b"".join(looks[i].thumbnail for i in usable)
        self.pixel_NT = np.frombuffer(pixels, np.uint8).reshape(len(usable), -1)
        self.joined_N = np.arange(len(usable))  # the smallest number of the images joined with each one
        self.across_N = np.zeros(len(usable), bool)  # has a pair across splits
        self.pairs: list[tuple[int, int]] = []

    def compare(self, one: int, others: NDArray[np.int64]) -> None:
        """Keep the pairs of `one` with others that join new images or are the first across splits."""
        across = self.split_N[others] != self.split_N[one]
        new = (self.joined_N[others] != self.joined_N[one]) | (across & ~self.across_N[others])
        others = others[new & (self.group_N[others] != self.group_N[one])]
        others = others[np.bitwise_count(self.hash_N[others] ^ self.hash_N[one]) <= BITS]
        if not others.size:
            return
        centred_PT = self.pixel_NT[others].astype(np.float64)
        centred_PT -= centred_PT.mean(1, keepdims=True)
        centred_T = self.pixel_NT[one] - self.pixel_NT[one].mean()
        norm_P = np.sqrt((centred_PT**2).sum(1) * (centred_T @ centred_T))
        for other in others[centred_PT @ centred_T >= MIN_CORRELATION * norm_P]:
            self.pairs.append((one, int(other)))
            self.across_N[other] |= bool(self.split_N[other] != self.split_N[one])
            least, greatest = sorted((self.joined_N[one], self.joined_N[other]))
            self.joined_N[self.joined_N == greatest] = least

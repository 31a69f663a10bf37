"""Do images open, and do two of them show the same: every image decoded once, in worker processes.

Legend: N images, P pairs, T pixels of a thumbnail.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clinkd.data.images import open_image
from clinkd.data.worker import Worker, WorkerLost
from clinkd.records import BadInput, ImageRef

BITS = 4  # perceptual hashes that differ in so many of 64 bits may be of one picture
ALIKE = 0.99  # and their thumbnails must correlate so well
THUMBNAIL = 16  # pixels a side
_JOB = 16  # images a worker takes at once
_INLINE = 48  # so few are done here: starting workers takes longer
_HARMLESS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")  # decoders that do not crash
_BANDS = 5  # two hashes that differ in four bits agree in one of five bands


@dataclass(frozen=True, slots=True)
class Look:
    """What decoding an image showed: `why` it cannot be used, or its 64-bit perceptual hash and grey thumbnail [T]."""

    why: str | None
    hash: int = 0
    thumbnail: bytes = b""
    flat: bool = False  # one colour all over


def examine(root: Path, images: Sequence[ImageRef], workers: int) -> Iterator[Look]:
    """A Look at every image, in order; each worker process holds one image at a time."""
    if len(images) <= _INLINE and all(i.path.lower().endswith(_HARMLESS) for i in images):
        yield from (_look(root, image) for image in images)
        return
    jobs = [images[i : i + _JOB] for i in range(0, len(images), _JOB)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    made = [Worker(look_in_worker) for _ in range(min(workers, len(jobs)))]
    for worker in made:
        idle.put(worker)

    def examine_job(job: Sequence[ImageRef]) -> list[Look]:
        worker = idle.get()
        try:
            return [_look_apart(worker, root, image) for image in job]
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(len(made))
    try:
        for looks in pool.map(examine_job, jobs):
            yield from looks
    finally:
        pool.shutdown(cancel_futures=True)  # where nobody wants the rest, it is not decoded before going away
        for worker in made:
            worker.close()


def _look_apart(worker: Worker, root: Path, image: ImageRef) -> Look:
    """A Look by a process that may die: damage that a decoder in C dies of costs one image."""
    try:
        (why, hash_, flat), [thumbnail] = worker([str(root), asdict(image)])
        return Look(why, hash_, thumbnail, flat)
    except WorkerLost:
        return Look("its decoder crashed; the file is damaged: bring back the original")


def look_in_worker(request: tuple[str, dict[str, Any]], content: bytes) -> tuple[Any, list[bytes]]:
    """What the workers do."""
    look = _look(Path(request[0]), ImageRef(**request[1]))
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
    found = int(str(imagehash.phash(grey)), 16)
    small = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    low, high = grey.getextrema()
    return Look(None, found, small.tobytes(), low == high)


class Pair(NamedTuple):
    """Numbers of two images that look the same, the earlier first."""

    first: int
    second: int


def alike(looks: Sequence[Look], groups: Sequence[int], splits: Sequence[int]) -> list[Pair]:
    """Pairs of images of different groups that show the same: hashes within 4 of 64 bits, thumbnails alike to 0.99.

    Found whatever the size, the compression or the brightness; mirrored and cropped copies are not. Images of one
    colour are like none. Given are enough pairs to join all that belong together, and one across splits for every image
    that has any; so a thousand copies make a thousand pairs, not half a million. Of five bands of a hash one is equal,
    so all need not be compared with all.
    """
    usable = np.array([i for i, look in enumerate(looks) if look.why is None and not look.flat], np.int64)
    if usable.size < 2:
        return []
    found = _PairCollector(looks, usable, np.asarray(groups), np.asarray(splits))
    edges = np.linspace(0, 64, _BANDS + 1).astype(int)
    for low, high in itertools.pairwise(edges):
        band_N = (found.hash_N >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band_N, kind="stable")
        starts = np.flatnonzero(np.diff(band_N[order], prepend=band_N[order[:1]] + np.uint64(1)))
        for members in np.split(order, starts[1:]):
            for place in range(len(members) - 1):  # a row at a time: a bucket of many must not fill the memory
                found.compare(int(members[place]), members[place + 1 :])
    return sorted(Pair(int(usable[a]), int(usable[b])) for a, b in found.pairs)


class _PairCollector:
    """Pairs so far, and which images they join. Numbers here count the usable images, N of them."""

    def __init__(
        self, looks: Sequence[Look], usable: NDArray[np.int64], groups: NDArray[Any], splits: NDArray[Any]
    ) -> None:
        self.hash_N = np.array([looks[i].hash for i in usable], np.uint64)
        self.group_N, self.split_N = groups[usable], splits[usable]
        pixels = b"".join(looks[i].thumbnail for i in usable)
        self.pixel_NT = np.frombuffer(pixels, np.uint8).reshape(len(usable), -1)
        self.joined_N = np.arange(len(usable))  # the least number of those joined with each
        self.told_N = np.zeros(len(usable), bool)  # has a pair across splits
        self.pairs: list[tuple[int, int]] = []

    def compare(self, one: int, others: NDArray[np.int64]) -> None:
        """Keep the pairs of `one` with others that tell something new."""
        across = self.split_N[others] != self.split_N[one]
        new = (self.joined_N[others] != self.joined_N[one]) | (across & ~self.told_N[others])
        others = others[new & (self.group_N[others] != self.group_N[one])]
        others = others[np.bitwise_count(self.hash_N[others] ^ self.hash_N[one]) <= BITS]
        if not others.size:
            return
        centred_PT = self.pixel_NT[others].astype(np.float64)
        centred_PT -= centred_PT.mean(1, keepdims=True)
        own_T = self.pixel_NT[one] - self.pixel_NT[one].mean()
        together = centred_PT @ own_T
        for other in others[together >= ALIKE * np.sqrt((centred_PT**2).sum(1) * (own_T @ own_T))]:
            self.pairs.append((one, int(other)))
            self.told_N[other] |= bool(self.split_N[other] != self.split_N[one])
            least, greatest = sorted((self.joined_N[one], self.joined_N[other]))
            self.joined_N[self.joined_N == greatest] = least

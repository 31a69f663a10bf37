"""Do images open, and do two of them show the same: every image decoded once, in worker processes.

Legend: N images, P pairs, T pixels of a thumbnail.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clinkd.data.images import open_image
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
    """A Look at every image, in order; the process holds one image a worker at a time."""
    if len(images) <= _INLINE and all(i.path.lower().endswith(_HARMLESS) for i in images):
        yield from _examine(root, images)
        return
    jobs = deque(images[i : i + _JOB] for i in range(0, len(images), _JOB))
    while jobs:
        with ProcessPoolExecutor(min(max(workers, 1), len(jobs)), mp_context=get_context("spawn")) as pool:
            try:
                for looks in pool.map(partial(_examine, root), list(jobs)):
                    yield from looks
                    jobs.popleft()
                continue
            except BrokenProcessPool:
                pass  # damage that a decoder in C dies of: which of the images, the next lines tell
            except BaseException:  # do not decode the rest before going away
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for image in jobs.popleft():
            yield _alone(root, image)


def _alone(root: Path, image: ImageRef) -> Look:
    """A Look by a process of its own, which may die."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_look, root, image).result()
        except BrokenProcessPool:
            return Look("its decoder crashed; the file is damaged: bring back the original")


def _examine(root: Path, images: Sequence[ImageRef]) -> list[Look]:
    return [_look(root, image) for image in images]


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


def alike(looks: Sequence[Look]) -> list[Pair]:
    """Pairs of images that show the same: hashes within 4 of 64 bits and thumbnails that correlate to 0.99.

    Found whatever the size, the compression or the brightness; mirrored and cropped copies are not. Images of one
    colour are like none. Every pair is found (of five bands of a hash, one is equal), without comparing all with all.
    """
    usable = np.array([i for i, look in enumerate(looks) if look.why is None and not look.flat], np.int64)
    if usable.size < 2:
        return []
    hash_N = np.array([looks[i].hash for i in usable], np.uint64)
    edges = np.linspace(0, 64, _BANDS + 1).astype(int)
    found: list[NDArray[np.int64]] = []
    for low, high in itertools.pairwise(edges):
        band_N = (hash_N >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        found += _close_in_band(band_N, hash_N)
    pair_P2 = np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), np.int64)
    return [Pair(int(usable[a]), int(usable[b])) for a, b in pair_P2 if _correlate(looks[usable[a]], looks[usable[b]])]


def _close_in_band(band_N: NDArray[np.uint64], hash_N: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """Pairs [P, 2] of equal band whose whole hashes are close."""
    order = np.argsort(band_N, kind="stable")
    starts = np.flatnonzero(np.diff(band_N[order], prepend=band_N[order[:1]] + np.uint64(1)))
    found = []
    for start, end in zip(starts, np.append(starts[1:], len(order)), strict=True):
        members = np.sort(order[start:end])
        for place, member in enumerate(members[:-1]):  # a row at a time: a bucket of many must not fill the memory
            others = members[place + 1 :]
            close = others[np.bitwise_count(hash_N[others] ^ hash_N[member]) <= BITS]
            if close.size:
                found.append(np.stack([np.full(close.size, member), close], axis=1))
    return found


def _correlate(a: Look, b: Look) -> bool:
    one, two = (np.frombuffer(look.thumbnail, np.uint8).astype(np.float64) for look in (a, b))
    one, two = one - one.mean(), two - two.mean()
    return bool(one @ two >= ALIKE * np.sqrt((one @ one) * (two @ two)))

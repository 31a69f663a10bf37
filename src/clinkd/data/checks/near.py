"""Decode every image once, in worker processes: does it open, and what is compared with other images?

Legend: T pixels of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from PIL import Image

from clinkd.data.images import open_image
from clinkd.data.worker import Worker, WorkerLost
from clinkd.records import BadInput, ImageRef

THUMBNAIL = 16  # pixels a side
FLAT_LEVELS = 2  # grey levels of 255 between which a thumbnail shows nothing: a black slice with noise
_JOB = 16  # images that a worker gets at once
_INLINE = 48  # at most so many are decoded without workers, because their start takes longer
_SAFE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")  # their decoders do not crash


@dataclass(frozen=True, slots=True)
class Look:
    """A decoded image: `why` it cannot be used, or its 64-bit perceptual hash and its grey thumbnail [T]."""

    why: str | None
    hash: int = 0
    thumbnail: bytes = b""
    flat: bool = False  # one colour all over, or nearly


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

    ended = Event()

    def examine_job(job: Sequence[ImageRef]) -> list[Look]:
        worker = idle.get()
        try:
            return [_look_apart(worker, root, image) for image in job if not ended.is_set()]
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(len(started))
    try:
        for looks in pool.map(examine_job, jobs):
            yield from looks
    finally:  # if the caller stops early, nobody waits for an image
        ended.set()
        for worker in started:
            worker.kill()
        pool.shutdown(cancel_futures=True)
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
    thumbnail = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()
    return Look(None, perceptual_hash, thumbnail, max(thumbnail) - min(thumbnail) <= FLAT_LEVELS)

"""Files from outside are opened in other processes, which may die without harm to the server.

Each process is forked from a clean one that holds the decoders and nothing else. Its memory and time are limited, and
it writes no file. It ends when it takes too long, dies, or has opened `TURN` files. Both sides of the pipe send JSON
and bytes: nothing that a broken decoder sends is ever run.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from numpy.typing import NDArray
from PIL import Image

from clinkd.data.images import kind_of
from clinkd.data.images.limits import UPLOADS, FileLimits
from clinkd.data.images.upload import decode_frame, decode_values, describe_head, open_upload
from clinkd.data.worker import JobFailed, Worker, WorkerLimits, WorkerLost, do_jobs
from clinkd.records import BadInput, Box, Modality
from clinkd.serving.fair import CLIENT, FairShare
from clinkd.serving.limits import QueueFull, ServerLimits

TURN = 200  # files that one process opens
_LOST = "the file could not be decoded: it takes more memory or time than is allowed, or breaks its decoder"
_TOO_LARGE = "the image takes more memory than is allowed; shrink it first"
_Reply = tuple[dict[str, Any], Sequence[bytes]]
_PRELOADED = [__name__, "pydicom", "numpy"]


class Opened(NamedTuple):
    """One frame of a file: its facts as plain values, its picture, and its grey values (little-endian, row by row, of
    the type that `about` says) if the request asks for them and there are any."""

    about: dict[str, Any]
    picture: Image.Image
    grey: bytes | None

    @property
    def modality(self) -> Modality:
        """As the file states it, else OTHER."""
        return Modality(self.about["modality"])


class _Decoder(Worker):
    """A worker that is forked from a clean process with the decoders loaded, so that a new one is there at once."""

    files = 0  # opened by the process that runs now
    process: Any = None

    def start_process(self, pipe: Connection) -> tuple[Callable[[], object], Callable[[], object]]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self.files = 0
        self.process = context.Process(target=do_jobs, args=(pipe, self.job, self.limits), daemon=True, name="decoder")
        self.process.start()
        return self.process.kill, self.process.join


class _Waiting(NamedTuple):
    """A request in the queue for a decoder, which it will be given."""

    address: str
    decoder: asyncio.Future[_Decoder]


class Decoders:
    """Some processes, started when they are needed. The files of at most `queue` requests wait for them."""

    def __init__(self, limits: ServerLimits) -> None:
        job = partial(_decode_upload, replace(UPLOADS, pixels=limits.pixels, frames=limits.frames))
        self._decoders = [
            _Decoder(job, WorkerLimits(limits.decoder_seconds, limits.decoder_bytes)) for _ in range(limits.decoders)
        ]
        self._idle = list(self._decoders)
        self._waiting: list[_Waiting] = []
        self._queue, self._share = limits.queue, FairShare()

    async def open(self, content: bytes, frame: int | None, window: str | None, grey: bool = False) -> Opened:
        """A frame of an image. Raises BadInput where the file cannot be decoded, QueueFull where too many wait.

        Cancelled, it leaves the queue, or ends the process that opens the file.
        """
        request = {"do": "show", "frame": frame, "window": window, "grey": grey}
        about, (pixels, *grey_values) = await self._run_job(request, content)
        picture = Image.frombytes("RGB", (about["width"], about["height"]), pixels)
        return Opened(about, picture, grey_values[0] if grey_values else None)

    async def values(self, content: bytes, frames: Sequence[int]) -> tuple[str, bytes]:
        """Grey values of frames of a DICOM, one behind the other, little-endian, and their type: int16, uint16 or
        float32. Raises as `open`."""
        about, [values] = await self._run_job({"do": "values", "frames": list(frames)}, content)
        return about["type"], values

    async def describe(self, head: bytes, size: int) -> dict[str, Any]:
        """What a file is and where its frames lie, by its first bytes, as plain values.

        Raises BadInput where these do not tell it.
        """
        about, _ = await self._run_job({"do": "describe", "size": size}, head)
        return about

    async def report(self, content: bytes, **fields: Any) -> bytes:
        """A structured report about a DICOM, see `data.dicom_objects`. Raises BadInput for another file."""
        _, [report] = await self._run_job({"do": "report", **fields}, content)
        return report

    def warm(self) -> None:
        """Start a process, so that the first file need not wait for it."""
        self._decoders[0].start()

    def close(self) -> None:
        for decoder in self._decoders:
            decoder.close()

    async def _run_job(self, request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], list[bytes]]:
        decoder, address, start = await self._wait_for_decoder(), CLIENT.get(), time.monotonic()
        job = asyncio.create_task(asyncio.to_thread(_run_in, decoder, request, content))

        def give_back(done: asyncio.Task[Any]) -> None:  # also where nobody waits for it any more
            if not done.cancelled():
                done.exception()  # looked at, or else asyncio writes it to the log
            self._share.spend(address, time.monotonic() - start)
            self._hand_out(decoder)

        job.add_done_callback(give_back)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            decoder.kill()
            raise

    async def _wait_for_decoder(self) -> _Decoder:
        waiting = _Waiting(CLIENT.get(), asyncio.get_running_loop().create_future())
        full = QueueFull(1, "too many images wait to be opened")
        self._share.demand_room(waiting.address, [w.address for w in self._waiting], self._queue, full)
        self._waiting.append(waiting)
        self._hand_out()
        try:
            return await waiting.decoder
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif not waiting.decoder.cancelled():  # it was handed out just before
                self._hand_out(waiting.decoder.result())
            raise

    def _hand_out(self, *free: _Decoder) -> None:
        """Give the idle decoders, and those that became free, to who had the least of their time lately."""
        self._idle += free
        self._waiting = [waiting for waiting in self._waiting if not waiting.decoder.cancelled()]
        while self._idle and self._waiting:
            spent = self._share.spent()
            first = min(self._waiting, key=lambda waiting: spent.get(waiting.address, 0.0))
            self._waiting.remove(first)
            first.decoder.set_result(self._idle.pop(0))


def _run_in(decoder: _Decoder, request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], list[bytes]]:
    try:
        reply, contents = decoder(request, content)
    except WorkerLost:
        raise BadInput(_LOST) from None
    except JobFailed as failure:  # no decoder's words leave: they may be those of a header
        name = str(failure)
        raise BadInput(_TOO_LARGE if name == "MemoryError" else f"the file could not be decoded ({name})") from None
    finally:
        decoder.files += 1
        if decoder.files >= TURN:
            decoder.close()
    if "bad" in reply:
        raise BadInput(reply["bad"])
    return reply, contents


# -- in the process ---------------------------------------------------------------------------------------------------


def _decode_upload(limits: FileLimits, request: dict[str, Any], content: bytes) -> _Reply:
    """The job of a decoder."""
    try:
        return _JOBS[request.pop("do")](content, limits, **request)
    except BadInput as error:
        return {"bad": str(error)}, ()


def _show(content: bytes, limits: FileLimits, frame: int | None, window: str | None, grey: bool) -> _Reply:
    decoded = decode_frame(content, frame, window, limits)
    facts = decoded.facts
    about: dict[str, Any] = {
        "width": facts.width,
        "height": facts.height,
        "frames": facts.frames,
        "frame": decoded.number,
        "dicom": kind_of(open_upload(content)).reportable,
        "modality": (facts.modality or Modality.OTHER).value,
        "burned_in": facts.burned_in,
        "windows": facts.windows,
        "hounsfield": decoded.hounsfield,
        "window": decoded.window,
    }
    contents = [decoded.picture.tobytes()]
    if grey and decoded.grey is not None:
        low, high = decoded.grey.ends
        kind, values = _pack_values(decoded.grey.to_values())
        about |= {"type": kind, "inverted": decoded.grey.inverted, "low": low, "high": high}
        contents.append(values)
    return about, contents


def _pack_values(values: NDArray[Any]) -> tuple[str, bytes]:
    return values.dtype.name, values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _values(content: bytes, limits: FileLimits, frames: Sequence[int]) -> _Reply:
    kind, values = _pack_values(decode_values(content, frames, limits))
    return {"type": kind}, [values]


def _describe(content: bytes, limits: FileLimits, size: int) -> _Reply:
    kind, facts, geometry = describe_head(content, size, limits)
    about = {"kind": kind, "width": facts.width, "height": facts.height, "frames": facts.frames}
    return {**about, "modality": (facts.modality or Modality.OTHER).value, **asdict(geometry)}, ()


def _report(
    content: bytes, limits: FileLimits, frame: int | None, regions: Sequence[dict[str, Any]], **told: Any
) -> _Reply:
    """`told`: question, answer, name and version of the model, and perhaps confidence, warnings and when (ISO 8601)."""
    from clinkd.data.dicom_objects import Model, Region, ReportedAnswer, write_report

    drawn = [Region(Box(*r["box"]), r["label"], r["by"]) for r in regions]
    model, answered = Model(told["model"], told["version"]), told.get("answered")
    answer = ReportedAnswer(
        told["question"], told["answer"], drawn, model, frame, told.get("confidence"), told.get("warnings", ()),
        datetime.fromisoformat(answered) if answered else None,
    )  # fmt: skip
    return {}, [write_report(content, answer, limits=limits)]


_JOBS: dict[str, Callable[..., _Reply]] = {"show": _show, "values": _values, "describe": _describe, "report": _report}

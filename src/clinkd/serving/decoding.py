"""Files from outside are opened in processes of their own, which can be lost without loss.

Each of them is forked from a clean one that holds the decoders and nothing else, may take so much memory and so much
time, writes no file, and is ended when it takes too long, dies, or has served its turn. What goes over the pipe is JSON
and bytes, both ways: nothing that a broken decoder sends is ever run.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from clinkd.data.worker import allow_cpu, confine
from clinkd.records import BadInput, Box
from clinkd.serving.limits import ServerLimits

if TYPE_CHECKING:
    from clinkd.data.images.limits import FileLimits as FileLimits

TURN = 200  # files that one process opens
_REPLY_BYTES = 1 << 30
_LOST = "the file could not be decoded: it takes more memory or time than is allowed, or breaks its decoder"


class Opened(NamedTuple):
    """One frame of a file: what `decode_frame` tells of it as plain values, its picture, its grey values (float32
    in little-endian order, row by row) if they were wanted and there are any."""

    about: dict[str, Any]
    picture: Image.Image
    grey: bytes | None


class Decoders:
    """Some processes, made when they are needed."""

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "clinkd.data.images.upload", "pydicom", "numpy"])
        self._idle: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        for _ in range(limits.decoders):
            self._idle.put(None)

    async def open(self, content: bytes, frame: int | None, window: str | None, grey: bool = False) -> Opened:
        """A frame of an image. Raises BadInput for what cannot be shown."""
        about, blobs = await self._run({"do": "show", "frame": frame, "window": window, "grey": grey}, content)
        size = (about["width"], about["height"])
        return Opened(about, Image.frombytes("RGB", size, blobs[0]), blobs[1] if grey and len(blobs) > 1 else None)

    async def report(self, content: bytes, **told: Any) -> bytes:
        """A structured report about a DICOM, see `data.structured_report`. Raises BadInput for another file."""
        _, [made] = await self._run({"do": "report", **told}, content)
        return made

    def warm(self) -> None:
        """Start the clean process, so that the first file need not wait for it."""
        process = self._idle.get()
        self._idle.put(process or _Process(self._context, self.limits))

    def close(self) -> None:
        for _ in range(self.limits.decoders):
            if process := self._idle.get():
                process.end()

    async def _run(self, asked: dict[str, Any], content: bytes) -> tuple[dict[str, Any], list[bytes]]:
        return await asyncio.to_thread(self._wait, asked, content)

    def _wait(self, asked: dict[str, Any], content: bytes) -> tuple[dict[str, Any], list[bytes]]:
        process = self._idle.get()
        kept = None
        try:
            process = process or _Process(self._context, self.limits)
            told, blobs = process.call(asked, content, self.limits.decoder_seconds)
            kept = process if process.served < TURN else None
        finally:
            if process is not None and kept is None:
                process.end()
            self._idle.put(kept)
        if "bad" in told:
            raise BadInput(told["bad"])
        return told, blobs


class _Process:
    def __init__(self, context: Any, limits: ServerLimits) -> None:
        ours, theirs = context.Pipe()
        self.pipe: Connection = ours
        self.served = 0
        self.process = context.Process(target=_serve, args=(theirs, limits), daemon=True, name="decoder")
        self.process.start()
        theirs.close()

    def call(self, asked: dict[str, Any], content: bytes, seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        """Raises BadInput, and is of no use any more, where nothing comes back in time."""
        self.served += 1
        try:
            self.pipe.send_bytes(json.dumps(asked).encode())
            self.pipe.send_bytes(content)
            if not self.pipe.poll(seconds):
                raise TimeoutError
            told = json.loads(self.pipe.recv_bytes(1 << 20))
            return told, [self.pipe.recv_bytes(_REPLY_BYTES) for _ in range(int(told.pop("blobs")))]
        except (EOFError, OSError, ValueError, KeyError):
            raise BadInput(_LOST) from None

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()


# -- in the process ---------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, limits: ServerLimits) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends it
    confine(limits.decoder_bytes)
    while True:
        try:
            asked, content = json.loads(pipe.recv_bytes()), pipe.recv_bytes()
        except (EOFError, OSError):
            return
        allow_cpu(limits.decoder_seconds)
        told, blobs = _done(asked, content, limits)
        pipe.send_bytes(json.dumps({**told, "blobs": len(blobs)}).encode())
        for blob in blobs:
            pipe.send_bytes(blob)


def _done(asked: dict[str, Any], content: bytes, limits: ServerLimits) -> tuple[dict[str, Any], Sequence[bytes]]:
    try:
        return _DOING[asked.pop("do")](content, limits, **asked)
    except BadInput as error:
        return {"bad": str(error)}, ()
    except MemoryError:
        return {"bad": "the image takes more memory than is allowed; shrink it first"}, ()
    except Exception as error:  # no decoder's words leave: they may be those of a header
        return {"bad": f"the file could not be decoded ({type(error).__name__})"}, ()


def _show(
    content: bytes, limits: ServerLimits, frame: int | None, window: str | None, grey: bool
) -> tuple[dict[str, Any], Sequence[bytes]]:
    from clinkd.data.images.upload import decode_frame

    shown = decode_frame(content, frame, window, _caps(limits), grey)
    about: dict[str, Any] = {
        "width": shown.width,
        "height": shown.height,
        "frames": shown.frames,
        "frame": shown.frame,
        "dicom": shown.dicom,
        "modality": shown.modality.value,
        "burned_in": shown.burned_in,
        "windows": shown.windows,
        "hounsfield": shown.hounsfield,
        "window": shown.window,
    }
    blobs = [shown.picture.tobytes()]
    if shown.grey is not None:
        about |= {"inverted": shown.grey.inverted, "low": shown.grey.low, "high": shown.grey.high}
        blobs.append(shown.grey.values.astype("<f4").tobytes())
    return about, blobs


def _caps(limits: ServerLimits) -> FileLimits:
    from clinkd.data.images.limits import UPLOADS

    return replace(UPLOADS, pixels=limits.pixels, frames=limits.frames)


def _report(
    content: bytes, limits: ServerLimits, frame: int | None, regions: Sequence[dict[str, Any]], **texts: str
) -> tuple[dict[str, Any], Sequence[bytes]]:
    """`texts`: of the question and the answer, and which model of which version it was."""
    from clinkd.data.structured_report import Model, Region, write_report

    drawn = [Region(Box(*r["box"]), r["label"], r["by"]) for r in regions]
    model = Model(texts["model"], texts["version"])
    return {}, [write_report(content, frame, texts["question"], texts["answer"], drawn, model, _caps(limits))]


_DOING: dict[str, Callable[..., tuple[dict[str, Any], Sequence[bytes]]]] = {"show": _show, "report": _report}

"""DICOM images of no meaning, a desk that answers them at once, and an archive in memory, for tests of listening."""

from __future__ import annotations

import hashlib
import io
import random
import resource
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

from clinkd.hospital.listen import Listening, ModelBusy
from clinkd.hospital.rules import read_rules
from clinkd.hospital.worklist import FILE, FoundRegion, ModelAnswer, Worklist, WorklistEntry
from clinkd.pacs import ArchiveUnreachable, Receiver, ReceiverAddress, SeriesReference, StudyQuery
from clinkd.records import BadInput, Box

RULES = "ct:\n  modality: CT\n  questions: Where is the heart?\n"


def make_image(number: int = 1, side: int = 8, **elements: object) -> Dataset:
    """A CT slice."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CTImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.Modality = "1.2.1", "1.2.2", "CT"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows = image.Columns = side
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    image.PixelData = np.random.default_rng(number).integers(0, 4096, (side, side), np.uint16).tobytes()
    for name, value in elements.items():
        setattr(image, name, value)
    return image


def encode(image: Dataset) -> bytes:
    """As the bytes of a file, also where its meta information tells another story than the image."""
    file = io.BytesIO()
    image.preamble = bytes(128)
    dcmwrite(file, image)
    return file.getvalue()


def damage(content: bytes, rng: random.Random) -> bytes:
    """A data set with one damage, of the bytes that follow the meta information."""
    kind = rng.choice(["cut", "flip", "zero", "insert", "length", "empty", "noise"])
    place = rng.randrange(len(content))
    data = bytearray(content)
    if kind == "cut":
        return bytes(data[:place])
    if kind == "flip":
        for _ in range(rng.randrange(1, 40)):
            data[rng.randrange(min(len(data), 300))] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif kind == "insert":
        data[place:place] = rng.randbytes(rng.randrange(1, 200))
    elif kind == "length":
        data[place : place + 4] = b"\xff\xff\xff\x7f"
    elif kind == "empty":
        return b"\x08\x00"
    else:
        data = bytearray(rng.randbytes(rng.randrange(2, 4000)))
    return bytes(data)


class ScriptedDesk:
    """Gives one answer to every question, and counts how often each was asked. `busy`: refusals before that."""

    def __init__(self, busy: int = 0) -> None:
        self.asked: list[str] = []
        self.busy = busy
        self._lock = threading.Lock()

    def answer(self, entry: WorklistEntry, image: bytes) -> ModelAnswer:
        with self._lock:
            if self.busy:
                self.busy -= 1
                raise ModelBusy(0.01)
            self.asked.append(entry.id)
        if b"BROKEN" in image:
            raise BadInput("the file could not be decoded")
        return ModelAnswer("The heart[box].", (FoundRegion(Box(0.25, 0.25, 0.5, 0.75), "heart"),))

    def write_report(self, entry: WorklistEntry, image: bytes) -> bytes:
        assert entry.final
        return f"{entry.id} {entry.final.text}".encode()


class MemoryArchive:
    """Holds what it is given. `lost`: how many calls of `store` find no connection."""

    def __init__(self, images: dict[str, bytes] | None = None, lost: int = 0) -> None:
        self.images, self.lost = images or {}, lost
        self.stored: list[bytes] = []
        self.fetched: list[str] = []

    def find_series(self, query: StudyQuery) -> list[SeriesReference]:
        assert query.date
        return [SeriesReference("1.2.1", "1.2.2", "CT", len(self.images))] if query.modality in ("CT", None) else []

    def fetch_series(self, series: SeriesReference, skip: Container[str] = ()) -> Iterator[bytes]:
        for name, content in list(self.images.items()):
            if name not in skip:
                self.fetched.append(name)
                yield content

    def store(self, content: bytes) -> None:
        if self.lost:
            self.lost -= 1
            raise ArchiveUnreachable("no connection")
        self.stored.append(content)


@contextmanager
def filling_disk(worklist: Worklist) -> Iterator[Callable[[], None]]:
    """From the call on, the file of a worklist takes no more, until the block ends."""
    before, wal = resource.getrlimit(resource.RLIMIT_FSIZE), worklist.folder / f"{FILE}-wal"
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FolderArchive:
    """Keeps each object it is given as a file, by what it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, content: bytes) -> None:
        path = self.folder / hashlib.sha256(content).hexdigest()
        path.write_bytes(content)
        with (self.folder / "calls").open("ab") as file:
            file.write(b".")


def listen_until_killed(folder: Path, port: int, ready: Connection) -> None:
    """A process that receives, answers by a script and sends all answers."""
    (folder / "rules.yaml").write_text(RULES)
    worklist = Worklist(folder / "work", "model")
    archive: Any = FolderArchive(folder / "archive")
    running = Listening(worklist, read_rules(folder / "rules.yaml"), archive, "all")
    running.start(ScriptedDesk())
    Receiver(ReceiverAddress(port=port), running.take).start()
    ready.send(True)
    threading.Event().wait()


@contextmanager
def associated(port: int, title: str = "SENDER", called: str = "CLINKD", **tls: Any) -> Iterator[Any]:
    """An association that sends CT images, and asks whether the other side is there."""
    entity = AE(title)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    entity.add_requested_context("1.2.840.10008.1.1")
    association = entity.associate("127.0.0.1", port, ae_title=called, **tls)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()

"""Peers for tests of archives: a DICOM node of pynetdicom, a DICOMweb address that misbehaves, and images to send."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from threading import Thread
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom import AE, DEFAULT_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ComprehensiveSRStorage,
    MRImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from pynetdicom.transport import ThreadedAssociationServer

CANARY = "Canary^Anna"
CANARIES = ("Canary", "CANARY", "Anna", "MRN-77", "19610704", "Dr^Secret", "Elmstreet")
STUDY, OTHER_STUDY = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"


def make_image(series: int = 1, number: int = 1, study: str = STUDY, **values: Any) -> Dataset:
    """A small CT of a patient whose name must appear nowhere."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.StudyInstanceUID = CTImageStorage, study
    ds.SeriesInstanceUID, ds.SOPInstanceUID = f"{study}.{series}", f"{study}.{series}.{number}"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = CANARY, "MRN-77", "19610704", "F"
    ds.ReferringPhysicianName, ds.PatientAddress = "Dr^Secret", "Elmstreet 1"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20261130", "101112", "A100", "1"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", str(series), str(number)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 16, 12, 11
    ds.PixelData = np.random.default_rng(number).integers(0, 4096, (16, 16), np.uint16).tobytes()
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def to_bytes(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def compress(ds: Dataset) -> Dataset:
    """The same image in a syntax that a plain connection does not take."""
    from pydicom.encaps import encapsulate

    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


def same_content(one: bytes, other: bytes) -> bool:
    """Whether two DICOM files hold the same data set, with pixels as they were, whoever wrote their first lines."""
    left, right = (dcmread(io.BytesIO(content)) for content in (one, other))
    packed = [ds.file_meta.TransferSyntaxUID.is_compressed for ds in (left, right)]
    return left == right and packed[0] == packed[1]


class PeerServer(ThreadedAssociationServer):
    """Looks often whether it is to end, which the library's own does each half second; so it must not clean up then."""

    def service_actions(self) -> None:
        pass


@dataclass
class Peer:
    """An archive on the DICOM network that keeps its images in memory. `gets`: it offers C-GET; `moves_to`: the port to
    which it sends for C-MOVE; `dies_after`: images after which it drops the connection; `deaf`: it leaves the keys of a
    query out of account; `unsendable`: UIDs of images at which it ends what it sends; `names`: how often it names a
    thing."""

    title: str = "PEER"
    images: list[Dataset] = field(default_factory=list)
    gets: bool = True
    moves_to: int | None = None
    dies_after: int | None = None
    deaf: bool = False
    unsendable: tuple[str, ...] = ()
    names: int = 1
    refuses: int = 0  # the status that it answers to C-STORE
    requests: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"dicom://{self.title}@127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def listening(self, **options: Any) -> Iterator[Peer]:
        entity = AE(self.title)
        entity.require_called_aet = True
        entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        if self.gets:
            entity.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
        if self.moves_to is not None:
            entity.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
            for syntaxes in ([ExplicitVRLittleEndian], [JPEG2000Lossless]):
                entity.add_requested_context(CTImageStorage, syntaxes)
        for storage in (CTImageStorage, MRImageStorage, ComprehensiveSRStorage):
            syntaxes = [*DEFAULT_TRANSFER_SYNTAXES, JPEG2000Lossless]
            entity.add_supported_context(storage, syntaxes, scu_role=True, scp_role=True)
        handlers = [
            (evt.EVT_C_FIND, self._find), (evt.EVT_C_GET, self._get), (evt.EVT_C_MOVE, self._move),
            (evt.EVT_C_STORE, self._store),
        ]  # fmt: skip
        server = entity.make_server(("127.0.0.1", 0), evt_handlers=handlers, server_class=PeerServer, **options)
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            BaseServer.shutdown(server)
            server.server_close()

    def _match(self, asked: Dataset, also: tuple[str, ...] = ()) -> list[Dataset]:
        keys = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", *also)

        def fits(image: Dataset, key: str) -> bool:
            wanted = asked.get(key)
            wanted = [wanted] if isinstance(wanted, str) else wanted
            return not wanted or not wanted[0] or str(image.get(key)) in map(str, wanted)

        return [image for image in self.images if all(fits(image, key) for key in keys)]

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier
        level = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID"}.get(
            asked.QueryRetrieveLevel, "SOPInstanceUID"
        )
        self.requests.append(f"find {asked.QueryRetrieveLevel}")
        matching = (
            self.images
            if self.deaf and level == "StudyInstanceUID"
            else self._match(asked, ("AccessionNumber", "PatientID", "Modality"))
        )
        for uid in dict.fromkeys(str(image[level].value) for image in matching):
            if event.is_cancelled:
                yield 0xFE00, None
                return
            one = next(image for image in matching if image[level].value == uid)
            named = Dataset()
            for element in asked:
                if element.keyword in one:
                    named.add(one[element.keyword])
            if "NumberOfSeriesRelatedInstances" in asked:
                of_series = [i for i in self.images if i.SeriesInstanceUID == one.SeriesInstanceUID]
                named.NumberOfSeriesRelatedInstances = len(of_series)
            for _ in range(self.names):
                yield 0xFF00, named

    def _send(self, event: evt.Event, kind: str) -> Iterator[tuple[int, Dataset | None]]:
        matching = self._match(event.identifier)
        self.requests.append(f"{kind} {event.identifier.QueryRetrieveLevel}")
        yield len(matching)  # type: ignore[misc]  # as the library wants it
        for number, image in enumerate(matching):
            if number == self.dies_after:
                event.assoc.abort()
                return
            if image.SOPInstanceUID in self.unsendable:
                yield 0xC000, None
                return
            yield 0xFF00, image

    def _get(self, event: evt.Event) -> Iterator[Any]:
        yield from self._send(event, "get")

    def _move(self, event: evt.Event) -> Iterator[Any]:
        yield "127.0.0.1", self.moves_to
        yield from self._send(event, "move")

    def _store(self, event: evt.Event) -> int:
        if not self.refuses:
            self.images.append(dcmread(io.BytesIO(event.encoded_dataset())))
        return self.refuses


Answer = tuple[int, dict[str, str], bytes | Iterator[bytes]]  # parts are sent one by one, until nobody reads on


@contextlib.contextmanager
def misbehaving_web(answer: Callable[[str, str, dict[str, str]], Answer | None]) -> Iterator[str]:
    """The address of a DICOMweb that answers what a function says, by method, path and headers; None: it hangs up."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            reply = answer(self.command, self.path, dict(self.headers))
            self.close_connection = True
            if reply is None:
                return
            status, headers, body = reply
            self.send_response(status)
            length = {"Content-Length": str(len(body))} if isinstance(body, bytes) else {}
            for name, value in (length | {"Connection": "close"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                for part in [body] if isinstance(body, bytes) else body:
                    self.wfile.write(part)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


def as_part(content: bytes) -> Answer:
    """A reply of WADO-RS."""
    body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--x--\r\n"
    return 200, {"Content-Type": 'multipart/related; type="application/dicom"; boundary="x"'}, body


def as_json(*items: dict[str, Any]) -> Answer:
    """A reply of QIDO-RS: items of keyword -> value."""
    from pydicom.datadict import tag_for_keyword

    def element(value: Any) -> dict[str, Any]:
        return {"vr": "UI", "Value": [value]}

    body = [{f"{tag_for_keyword(name):08X}": element(value) for name, value in item.items()} for item in items]
    return 200, {"Content-Type": "application/dicom+json"}, json.dumps(body).encode()

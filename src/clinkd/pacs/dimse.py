"""An archive by the DICOM network (DIMSE): C-FIND, C-GET or else C-MOVE to a receiver of our own, C-STORE."""

from __future__ import annotations

import contextlib
import io
import queue
import socket
import ssl
import threading
from collections import deque
from collections.abc import Container, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clinkd.pacs.archive import (
    GO_ON,
    ArchiveUnreachable,
    SeriesIncomplete,
    SeriesReference,
    StudyQuery,
    TlsFiles,
    read_count,
)
from clinkd.pacs.instance import (
    STORED_BEFORE,
    ImageUnusable,
    StoreRefusal,
    check_instance,
    explain_status,
    read_instance_header,
)
from clinkd.pacs.limits import ReceiverLimits
from clinkd.records import BadInput, is_uid

if TYPE_CHECKING:
    from pydicom import Dataset
    from pynetdicom.association import Association
    from pynetdicom.events import Event

_FIND, _MOVE, _GET = (f"1.2.840.10008.5.1.4.1.2.2.{n}" for n in (1, 2, 3))  # the study root's
_PENDING = (0xFF00, 0xFF01)
_STORED = (0x0000, STORED_BEFORE, 0xB000, 0xB006, 0xB007)  # with or without a warning
_NOT_OFFERED = 0x0211
_LOST = -1  # in the place of a status, where the connection ended
_REFUSED = 0x0124
_MOST_CONTEXTS = 126  # an association has 128, two of them for the commands
_INSTANCES = 100  # that one command names
_FAILED = 5  # instances one after the other, each asked for alone, from which on no more are asked for
_QUEUED = 4  # instances in memory
_MOVED = ReceiverLimits(image_bytes=2 << 30, held_bytes=4 << 30)  # images that were asked for
_CLOSED_SECONDS = 0.2
_STOP_SECONDS = 2.0  # that an archive has to stop sending, before the connection is dropped
# Each alone, so that the archive may send a file as it holds it, in whichever of these that is.
_SYNTAXES = (
    ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2"),
    *((f"1.2.840.10008.1.2.4.{n}",) for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
    ("1.2.840.10008.1.2.5",), ("1.2.840.10008.1.2.1.99",), ("1.2.840.10008.1.2.2",),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DicomNode:
    """An application entity of the DICOM network. `tls`: None for a connection in the clear."""

    host: str
    port: int
    title: str
    tls: TlsFiles | None = None

    def __str__(self) -> str:
        return f"{self.title} at {self.host}:{self.port}"


@dataclass(frozen=True)
class DimseArchive:
    """An archive that speaks DIMSE. It sends what we ask for on our own connection, or else to `receive_port`."""

    node: DicomNode
    own_title: str
    receive_port: int
    timeout_seconds: float

    def find_series(self, query: StudyQuery) -> list[SeriesReference]:
        with self._associate([(_FIND, _SYNTAXES[0])]) as association:
            named = self._find(association, "STUDY", query.study_keys(), query.limit)
            # each once: after a patient's ID was mended, an archive may name a study under both
            studies = dict.fromkeys(study["StudyInstanceUID"] for study in named if query.matches_study(study))
            found = (series for study in studies for series in self._list_series(association, study, query.modality))
            return list({series.series: series for series in found}.values())

    def _list_series(self, association: Association, study: str, modality: str | None) -> Iterator[SeriesReference]:
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": modality or ""}
        for named in self._find(association, "SERIES", {**keys, "NumberOfSeriesRelatedInstances": ""}):
            if modality in (None, named["Modality"]):
                number = read_count(named["NumberOfSeriesRelatedInstances"])
                yield SeriesReference(study, named["SeriesInstanceUID"], named["Modality"], number)

    def fetch_series(self, series: SeriesReference, skip: Container[str] = ()) -> Iterator[bytes]:
        keys = {"StudyInstanceUID": series.study, "SeriesInstanceUID": series.series}
        with self._associate([(_FIND, _SYNTAXES[0])]) as association:
            asked = {**keys, "SOPInstanceUID": "", "SOPClassUID": ""}
            named = list(self._find(association, "IMAGE", asked))
        wanted = {n["SOPInstanceUID"]: n["SOPClassUID"] for n in named if n["SOPInstanceUID"] not in skip}
        order = _SeriesOrder(series, wanted, whole=bool(wanted) and len(wanted) == len(named))
        for operation in (_GET, _MOVE):
            if order.missing and not (order.received and order.last == _LOST):
                yield from self._fetch_missing(operation, order)
        if (missing := order.missing) and (order.last == _LOST or not order.received):
            told = f"{self.node}: {len(missing)} of {len(wanted)} images of a series did not come"
            if order.last == _LOST:
                raise ArchiveUnreachable(f"{told}: the connection was lost; {GO_ON}")
            entered = f"have {self.own_title} entered there, with this machine and port {self.receive_port}"
            raise BadInput(f"{told}: {explain_status(order.last)}; {entered}")
        reasons = {uid: f"{self.node} did not send it: {explain_status(order.codes[uid])}; {GO_ON}" for uid in missing}
        if reasons or order.unusable:
            raise SeriesIncomplete(order.unusable | reasons, set(order.unusable))

    def store(self, content: bytes) -> None:
        from pydicom import dcmread

        header = read_instance_header(content)
        with self._associate([(header.sop_class, (header.transfer_syntax,))]) as association:
            try:
                status = association.send_c_store(dcmread(io.BytesIO(content)))
            except Exception as error:  # of pydicom, whose message may quote the file
                raise BadInput(f"not a DICOM file that can be sent ({type(error).__name__})") from None
            code = self._read_status(status)
        if code not in _STORED:
            raise BadInput(f"{self.node} refuses an object: {explain_status(code)}")

    # -- associations -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _associate(
        self, contexts: Iterable[tuple[str, Sequence[str]]], handlers: Sequence[Any] = (), receives: bool = False
    ) -> Iterator[Association]:
        """A connection for these classes of objects, each with its transfer syntaxes. `receives`: the archive may send
        objects on it, too."""
        from pynetdicom import build_role, evt

        entity = self._make_entity()
        reached = threading.Event()
        classes = dict.fromkeys(syntax for syntax, _ in contexts) if receives else {}
        for syntax, transfers in contexts:
            entity.add_requested_context(syntax, list(transfers))
        association = entity.associate(
            self.node.host, self.node.port, ae_title=self.node.title,
            ext_neg=[build_role(name, scp_role=True) for name in classes if name not in (_FIND, _GET)],
            evt_handlers=[(evt.EVT_CONN_OPEN, _send_at_once), (evt.EVT_CONN_OPEN, lambda _: reached.set()), *handlers],
            tls_args=(make_tls_context(self.node.tls), self.node.host) if self.node.tls else None,
        )  # fmt: skip
        if not association.is_established:
            raise ArchiveUnreachable(f"{self.node}: {self._explain_failure(association, reached.is_set())}")
        try:
            yield association
        except BaseException:
            association.abort()
            raise
        if association.is_established:
            association.release()

    def _make_entity(self) -> Any:
        from pynetdicom import _config

        from clinkd.pacs.connection import OwnEntity

        # it would spell out each answer for a log that nobody reads, which takes longer than the answer itself
        _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
        entity = OwnEntity(self.own_title)
        entity.connection_timeout = min(10.0, self.timeout_seconds)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.timeout_seconds
        return entity

    def _explain_failure(self, association: Association, reached: bool) -> str:
        answer = association.acceptor.primitive
        if association.is_rejected and answer is not None:
            reason = str(answer.reason_str).lower()
            if "called" in reason:
                return "refused, it has another application entity title; check the title in the address"
            if "calling" in reason:
                return f"refused, it does not know us; have {self.own_title} entered there, or give --aet"
            return f"refused ({reason}); ask who runs the archive"
        if not reached:
            over_tls = ", or not by TLS: --ca names whom to trust, --certificate and --key who we are"
            return f"cannot be reached; check host and port{over_tls if self.node.tls else ''}"
        return (
            "it ended the connection, or offers nothing of what we ask; check title and port, and whether it wants "
            f"dicoms:// (TLS); have {self.own_title} entered there"
        )

    def _read_status(self, status: Dataset) -> int:
        if "Status" not in status:
            raise ArchiveUnreachable(f"{self.node}: the connection was lost; {GO_ON}")
        return int(status.Status)

    # -- asking -------------------------------------------------------------------------------------------------------

    def _find(
        self, association: Association, level: str, keys: Mapping[str, str], most: int | None = None
    ) -> Iterator[dict[str, str]]:
        """What the archive names, each with the keys that were asked for; at most so many."""
        number = 0
        for status, named in association.send_c_find(_make_identifier(level, keys), _FIND):
            code = self._read_status(status)
            if code in _PENDING and named is not None and (most is None or number < most):
                number += 1
                values = {name: _read(named, name) for name in keys}
                for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                    if name in values and not is_uid(values[name]):
                        raise BadInput(f"{self.node} names something without a valid {name}; ask who runs the archive")
                yield values
                if number == most:
                    association.send_c_cancel(1, query_model=_FIND)
            elif code not in (0x0000, 0xFE00, *_PENDING):
                raise BadInput(f"{self.node} does not answer what was asked: {explain_status(code)}")

    # -- fetching -----------------------------------------------------------------------------------------------------

    def _fetch_missing(self, operation: str, order: _SeriesOrder) -> Iterator[bytes]:
        """Yield what an operation brings of what is missing, and note its statuses. Some archives end at the first
        image that they cannot send: then the others are asked for one by one."""
        uids, whole, failed = list(order.missing), order.whole and not order.received, 0
        step = len(uids) if whole else _INSTANCES
        batches = deque(uids[start : start + step] for start in range(0, len(uids), step))
        keys = {"StudyInstanceUID": order.series.study, "SeriesInstanceUID": order.series.series}
        while batches and failed < _FAILED:
            inbox = _Inbox(order.series, {uid: order.wanted[uid] for uid in batches.popleft()})
            names = {} if whole else {"SOPInstanceUID": "\\".join(inbox.wanted)}
            identifier = _make_identifier("SERIES" if whole else "IMAGE", {**keys, **names})
            code = yield from self._retrieve(operation, identifier, inbox)
            if code == _NOT_OFFERED:
                return
            whole = False
            order.take(inbox, code)
            missing = [uid for uid in inbox.wanted if uid not in inbox.received]
            if missing and (code == _LOST or (operation == _MOVE and not order.received)):
                return
            if len(inbox.wanted) > 1:
                batches.extend([uid] for uid in missing)
            else:
                failed = failed + 1 if missing else 0

    def _retrieve(self, operation: str, identifier: Dataset, inbox: _Inbox) -> Generator[bytes, None, int]:
        """Yield what an operation brings, and return its last status."""
        from pynetdicom import evt

        gets = operation == _GET
        storage = _storage_contexts(inbox.wanted.values()) if gets else []
        contexts = [(_FIND, _SYNTAXES[0]), (operation, _SYNTAXES[0]), *storage]  # the first is known to be accepted
        handlers = [(evt.EVT_C_STORE, inbox.store)] if gets else []
        with self._associate(contexts, handlers, receives=gets) as association:
            accepted = association.accepted_contexts
            offered = any(context.abstract_syntax == operation for context in accepted)
            if not offered or (gets and not any(context.as_scp for context in accepted)):
                return _NOT_OFFERED
            if gets:
                responses = association.send_c_get(identifier, _GET)
                return (yield from self._receive(association, operation, responses, inbox))
            with self._listen(inbox, association.requestor.address):
                responses = association.send_c_move(identifier, self.own_title, _MOVE)
                return (yield from self._receive(association, operation, responses, inbox))

    def _receive(
        self, association: Association, operation: str, responses: Iterator[tuple[Dataset, Any]], inbox: _Inbox
    ) -> Generator[bytes, None, int]:
        """Yield what arrives while a thread follows the responses, and return the last status."""
        last = _LOST

        def follow() -> None:
            nonlocal last
            try:
                for status, _ in responses:
                    last = int(status.get("Status", _LOST))
            except Exception:  # a garbled answer; what the library says may quote it
                last = _LOST
            finally:
                inbox.end()

        thread = threading.Thread(target=follow, daemon=True, name="pacs")
        thread.start()
        try:
            yield from inbox
        except BaseException:  # nobody reads on
            inbox.closed.set()
            association.send_c_cancel(1, query_model=operation)
            thread.join(_STOP_SECONDS)
            raise
        thread.join()
        return last

    @contextlib.contextmanager
    def _listen(self, inbox: _Inbox, address: str) -> Iterator[None]:
        """Receive from this archive in the block, at the address of this machine from which it is reached."""
        from pynetdicom import evt

        entity = self._make_entity()
        entity.require_called_aet = True
        entity.require_calling_aet = [self.node.title]
        for syntax, transfers in _storage_contexts(inbox.wanted.values()):
            entity.add_supported_context(syntax, list(transfers))
        tls = self.node.tls
        if tls is not None and tls.certificate is None:
            raise BadInput(f"{self.node} sends over a connection of its own: give --certificate and --key for it")
        from clinkd.pacs.connection import BoundedServer

        context = make_tls_context(tls, serves=True) if tls else None
        place, handlers = (address, self.receive_port), [(evt.EVT_C_STORE, inbox.receive)]
        try:
            server = BoundedServer.open(entity, place, _MOVED, ssl_context=context, evt_handlers=handlers)
        except OSError as error:
            raise BadInput(f"port {self.receive_port}: cannot be listened at ({error.strerror}); give --port") from None
        server.serve()
        try:
            yield
        finally:
            server.shutdown()


@dataclass
class _SeriesOrder:
    """What is wanted of a series, as in an inbox, and what came of it. `whole`: nothing is skipped, so it is asked for
    by the series alone: some take no list; `codes`: the last status by SOP Instance UID; `last`: that of all."""

    series: SeriesReference
    wanted: Mapping[str, str]
    whole: bool
    received: set[str] = field(default_factory=set)
    unusable: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    last: int = _NOT_OFFERED

    @property
    def missing(self) -> list[str]:
        return [uid for uid in self.wanted if uid not in self.received]

    def take(self, inbox: _Inbox, code: int) -> None:
        self.received |= inbox.received
        self.unusable |= inbox.unusable
        self.codes |= dict.fromkeys(inbox.wanted, code)
        self.last = code


@dataclass
class _Inbox:
    """Instances on their way from the threads of the network to the reader, a few at a time. `wanted`: by SOP Instance
    UID the class, "" where the archive does not name it; `unusable`: why, of what was received."""

    series: SeriesReference
    wanted: Mapping[str, str]
    received: set[str] = field(default_factory=set)
    unusable: dict[str, str] = field(default_factory=dict)
    closed: threading.Event = field(default_factory=threading.Event)
    contents: queue.Queue[bytes | None] = field(default_factory=lambda: queue.Queue(_QUEUED))

    def receive(self, event: Event) -> int:
        """As `store`, from a receiver whose memory is bounded."""
        from clinkd.pacs.connection import held_object

        try:
            with held_object(event):
                return self.store(event)
        except StoreRefusal as refusal:
            return refusal.status

    def store(self, event: Event) -> int:
        """Take an instance and return the status for its sender. What nobody asked for is refused."""
        uid = str(getattr(event.request, "AffectedSOPInstanceUID", ""))
        if uid not in self.wanted:
            return _REFUSED
        content = event.encoded_dataset()
        try:
            check_instance(content, self.series, uid)
        except ImageUnusable as error:
            self.unusable[uid] = str(error)  # success all the same: at a failure some archives send no more
        else:
            if not self._put(content):
                return 0xA700
        self.received.add(uid)
        return 0x0000

    def end(self) -> None:
        self._put(None)

    def _put(self, content: bytes | None) -> bool:
        while not self.closed.is_set():
            with contextlib.suppress(queue.Full):
                self.contents.put(content, timeout=_CLOSED_SECONDS)
                return True
        return False

    def __iter__(self) -> Iterator[bytes]:
        while (content := self.contents.get()) is not None:
            yield content


def _send_at_once(event: Event) -> None:
    """Without this an answer of two parts waits for a word from the other side in between: 40 ms an image."""
    if (connection := event.assoc.dul.socket) is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _storage_contexts(classes: Iterable[str]) -> list[tuple[str, Sequence[str]]]:
    """Classes of objects with the transfer syntaxes that are taken: each syntax alone, where there is room."""
    from pynetdicom import StoragePresentationContexts

    named = sorted({name for name in classes if is_uid(name)})
    if named and len(named) * len(_SYNTAXES) <= _MOST_CONTEXTS:
        return [(name, transfers) for name in named for transfers in _SYNTAXES]
    names = named or [str(context.abstract_syntax) for context in StoragePresentationContexts]
    together = [syntax for transfers in _SYNTAXES for syntax in transfers]
    return [(name, together) for name in names[:_MOST_CONTEXTS]]


def _make_identifier(level: str, keys: Mapping[str, str]) -> Dataset:
    from pydicom import Dataset

    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    if not "".join(keys.values()).isascii():
        identifier.SpecificCharacterSet = "ISO_IR 192"
    for name, value in keys.items():
        setattr(identifier, name, value.split("\\") if "\\" in value else value)
    return identifier


def _read(ds: Dataset, keyword: str) -> str:
    """An element as text, "" where it is missing or cannot be read."""
    try:
        value = ds.get(keyword)
        return "" if value is None else str(value).strip()
    except Exception:  # whatever pydicom meets in a damaged one
        return ""


def make_tls_context(tls: TlsFiles, serves: bool = False) -> ssl.SSLContext:
    """The rules of an encrypted connection: the other side must show a certificate that we trust, on both ends."""
    purpose = ssl.Purpose.CLIENT_AUTH if serves else ssl.Purpose.SERVER_AUTH
    try:
        context = ssl.create_default_context(purpose, cafile=tls.ca)
    except (ssl.SSLError, OSError):
        raise BadInput(f"ca = {tls.ca}: it cannot be read; give a PEM file") from None
    if serves:
        context.verify_mode = ssl.CERT_REQUIRED
    if tls.certificate and tls.key:
        try:
            context.load_cert_chain(tls.certificate, tls.key)
        except (ssl.SSLError, OSError):
            raise BadInput(f"certificate = {tls.certificate}: it and its key cannot be read; give PEM files") from None
    return context

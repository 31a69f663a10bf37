"""Images that arrive by C-STORE: kept before success is answered, refused with a status, and within all limits."""

from __future__ import annotations

import io
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmarks.patience import Deadline, patience
from pydicom import Dataset, dcmread
from pydicom.uid import (
    HTJ2K,
    MPEG4HP41,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    SegmentationStorage,
)
from pynetdicom import AE, Association
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as StudyFind  # type: ignore[attr-defined]

from arrivals import associated, make_image
from clinkd.pacs import AllowedPeer, Receiver, ReceiverAddress, ReceiverLimits, StoreRefusal, StoreStatus, TlsFiles
from clinkd.records import BadInput

SUCCESS, NOT_ASKED, OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND = StoreStatus
LIMITS = ReceiverLimits(stall_seconds=patience(5))


@contextmanager
def receiving(
    take: Callable[[bytes], object], limits: ReceiverLimits = LIMITS, **address: Any
) -> Iterator[tuple[Receiver, int]]:
    receiver = Receiver(ReceiverAddress(port=0, **address), take, limits)
    port = receiver.start()
    try:
        yield receiver, port
    finally:
        receiver.stop()


def test_an_image_is_kept_as_it_was_before_success_is_answered():
    kept: list[bytes] = []
    with receiving(kept.append) as (receiver, port), associated(port) as association:
        assert association.send_c_echo().Status == SUCCESS
        image = make_image()
        assert association.send_c_store(image).Status == SUCCESS
        [content] = kept
        stored = dcmread(io.BytesIO(content))
        assert stored == image and stored.file_meta.MediaStorageSOPInstanceUID == "1.2.3.1"
        assert receiver.outcomes == {SUCCESS: 1}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreRefusal(OUT_OF_RESOURCES, "the disk is full"), OUT_OF_RESOURCES),
        (StoreRefusal(MISMATCH, "another class"), MISMATCH),
        (StoreRefusal(NOT_ASKED, "no rule"), NOT_ASKED),
        (BadInput("no image"), CANNOT_UNDERSTAND),
        (RuntimeError("Mustermann^Max"), OUT_OF_RESOURCES),
    ],
)
def test_what_is_not_kept_is_refused_with_its_status(error, status, capfd):
    def take(content: bytes) -> None:
        raise error

    with receiving(take) as (receiver, port), associated(port) as association:
        reply = association.send_c_store(make_image())
        assert reply.Status == status and reply.ErrorComment and "Mustermann" not in reply.ErrorComment
        assert association.send_c_echo().Status == SUCCESS
        assert receiver.outcomes == {status: 1}
    assert capfd.readouterr() == ("", "")


def test_a_whole_study_is_taken_whatever_is_in_it():
    classes = [EnhancedSRStorage, SegmentationStorage, CTImageStorage, "1.3.12.2.1107.5.9.1"]  # the last is a vendor's
    sender, kept = AE("SENDER"), list[bytes]()
    for name in classes:
        sender.add_requested_context(name, [HTJ2K, ExplicitVRLittleEndian])  # the second one is read
        sender.add_requested_context(name, [MPEG4HP41])  # not read, but told so
    for name, syntax in ((CTImageStorage, DeflatedExplicitVRLittleEndian), (StudyFind, ExplicitVRLittleEndian)):
        sender.add_requested_context(name, [syntax])
    with receiving(kept.append) as (_, port):
        association = sender.associate("127.0.0.1", port, ae_title="CLINKD")
        accepted = [(c.abstract_syntax, *c.transfer_syntax) for c in association.accepted_contexts]
        assert accepted == [(name, s) for name in classes for s in (ExplicitVRLittleEndian, MPEG4HP41)]
        for name in classes:
            image = make_image(1, SOPClassUID=name)
            image.file_meta.MediaStorageSOPClassUID = name
            assert association.send_c_store(image).Status == SUCCESS
        association.release()
    assert [dcmread(io.BytesIO(content)).SOPClassUID for content in kept] == classes


SENT_SYNTAXES = [
    "1.2", "1.2.1", "1.2.2", *(f"1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 102, 110, 201, 202, 203)), "1.2.5"
]  # fmt: skip


@pytest.mark.parametrize(("syntaxes", "accepted"), [(SENT_SYNTAXES, True), (["1.2.1.99"], False)])
def test_images_arrive_in_each_syntax_but_what_could_inflate_to_any_size(syntaxes, accepted):
    """Each alone, as an archive proposes what it does not compress anew; what is not read must be told, too."""
    entity = AE("SENDER")
    for syntax in syntaxes:
        entity.add_requested_context(CTImageStorage, f"1.2.840.10008.{syntax}")
    entity.add_requested_context("1.2.840.10008.1.1")
    with receiving(lambda content: None) as (_, port):
        association = entity.associate("127.0.0.1", port, ae_title="CLINKD")
        taken = [c.transfer_syntax[0] for c in association.accepted_contexts if c.abstract_syntax == CTImageStorage]
        association.release()
    assert taken == [f"1.2.840.10008.{syntax}" for syntax in syntaxes if accepted]


def test_an_image_beyond_the_limit_is_refused_and_the_next_one_is_kept():
    kept: list[bytes] = []
    with (
        receiving(kept.append, ReceiverLimits(image_bytes=10_000)) as (receiver, port),
        associated(port) as association,
    ):
        reply = association.send_c_store(make_image(1, 400))  # many PDUs
        assert reply.Status == OUT_OF_RESOURCES and reply.ErrorComment == "an image of more than 10,000 bytes"
        assert association.send_c_store(make_image(2)).Status == SUCCESS and len(kept) == 1
        assert all(a.dimse.held == 0 and not a.dimse.refused for a in receiver._server.active_associations)


def test_images_in_memory_are_bounded_over_all_connections():
    def take(content: bytes) -> None:
        assert receiver._server.held_bytes > 1000
        with associated(port) as second:
            replies.append(second.send_c_store(make_image(2, 32)).Status)

    replies: list[int] = []
    with receiving(take, ReceiverLimits(held_bytes=4000)) as (receiver, port), associated(port) as association:
        assert association.send_c_store(make_image(1, 32)).Status == SUCCESS
    assert replies == [OUT_OF_RESOURCES]


def test_connections_are_bounded():
    with (
        receiving(lambda content: None, ReceiverLimits(connections=1)) as (_, port),
        associated(port) as first,
        associated(port) as second,
    ):
        assert first.is_established and not second.is_established


def test_other_machines_need_to_be_named():
    with pytest.raises(BadInput, match="--host 0.0.0.0: any machine of the network could send; say who may"):
        Receiver(ReceiverAddress("0.0.0.0"), lambda content: None)
    Receiver(ReceiverAddress("0.0.0.0", allowed=(AllowedPeer("10.0.0.5", "ORTHANC"),)), lambda content: None)
    Receiver(ReceiverAddress("localhost"), lambda content: None)


@pytest.mark.parametrize("text", ["10.0.0.5", "host/TITLE", "10.0.0.5/", "10.0.0.5/A TITLE THAT IS LONG", "1/2/3"])
def test_who_may_send_is_an_address_and_a_title(text):
    with pytest.raises(BadInput, match=r"--allow .* is the form"):
        AllowedPeer.parse(text)
    assert AllowedPeer.parse("10.0.0.5/ORTHANC") == ("10.0.0.5", "ORTHANC")


WHY_AWAY = [
    "turned away 127.0.0.1: its own title is not the one of --allow",
    "turned away 127.0.0.1: it calls another title than CLINKD",
    "turned away 127.0.0.1: its address is not one of --allow",
    "turned away 127.0.0.1: not by TLS, or without a certificate that is trusted",
]


def test_who_is_turned_away_is_told_by_address(certificates):
    told, loopback = list[str](), AllowedPeer("127.0.0.1", "FRIEND")
    tls = TlsFiles(certificates / "ca.pem", certificates / "server.pem", certificates / "server.key")
    for address in (
        ReceiverAddress(port=0, allowed=(loopback,)),
        ReceiverAddress(port=0, allowed=(AllowedPeer("10.0.0.5", "CANARY"),)),
        ReceiverAddress(port=0, tls=tls),
    ):
        receiver = Receiver(address, lambda content: None, LIMITS, told.append)
        port = receiver.start()
        for names in ({}, {"title": "CANARY"}, {"called": "CANARY"})[: 3 if loopback in address.allowed else 1]:
            with associated(port, **{"title": "FRIEND", **names}):
                pass
        receiver.stop()
    end = Deadline(patience(20))
    while len(told) < 4 and not end.passed():  # a peer knows it a moment before
        time.sleep(0.01)
    assert sorted(told) == sorted(WHY_AWAY)


def test_a_stranger_is_rejected_by_title_and_by_address():
    allowed = (AllowedPeer("127.0.0.1", "FRIEND"), AllowedPeer("10.0.0.5", "STRANGER"))
    with receiving(lambda content: None, allowed=allowed) as (_, port):
        with associated(port, title="FRIEND") as friend:
            assert friend.is_established
        with associated(port, title="STRANGER") as stranger:
            assert stranger.is_rejected
        with associated(port, title="FRIEND", called="ANOTHER") as lost:
            assert lost.is_rejected
    with (
        receiving(lambda content: None, allowed=allowed[1:]) as (_, port),
        associated(port, title="STRANGER") as stranger,
    ):
        assert not stranger.is_established


# ---- peers that do not keep to the protocol --------------------------------------------------------------------------


def pdu(kind: int, content: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BBL", kind, 0, len(content) if length is None else length) + content


def sees_the_end(peer: socket.socket) -> bool:
    """Whether the other side ends the connection, perhaps after an abort."""
    peer.settimeout(patience(20))
    try:
        while peer.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def raw(association: Association) -> socket.socket:
    """The socket of an association of ours, to say on it what no library says."""
    return association.dul.socket.socket


@pytest.mark.parametrize(
    "sent", [pdu(1, b"", 0xFFFFFFFF), pdu(9, b"x"), b"GET / HTTP/1.1\r\n\r\n", pdu(4, b"\0" * 20)], ids=range(4)
)
def test_what_is_no_association_is_ended(sent, capfd):
    with (
        receiving(lambda content: None, ReceiverLimits(stall_seconds=1.0)) as (_, port),
        socket.create_connection(("127.0.0.1", port)) as peer,
    ):
        peer.sendall(sent)
        assert sees_the_end(peer)
        with associated(port) as association:
            assert association.is_established
    assert capfd.readouterr() == ("", "")


def command(number: int, last: bool = True, **elements: Any) -> bytes:
    """A command of one fragment, on the first context."""
    from pynetdicom.dsutils import encode

    ds = Dataset()
    ds.CommandField, ds.MessageID, ds.CommandDataSetType = number, 1, 0x0101
    for name, value in elements.items():
        setattr(ds, name, value)
    body = encode(ds, True, True)
    group = struct.pack("<HHLL", 0, 0, 4, len(body))
    fragment = bytes([1, 3 if last else 1]) + group + body
    return pdu(4, struct.pack(">L", len(fragment)) + fragment)


ENDLESS_COMMAND = pdu(4, struct.pack(">L", 8002) + b"\1\1" + b"\0" * 8000)


@pytest.mark.parametrize(
    "sent",
    [
        command(0x0100), command(0x7777), command(0x0020), ENDLESS_COMMAND * 20,
        pdu(4, struct.pack(">L", 2) + b"\1\0" + b"x"), pdu(4, struct.pack(">L", 1) + b"\1"),
        pdu(4, struct.pack(">L", 10) + b"\1\2" + b"\0" * 8), pdu(4, b"\0" * 8, 1 << 30),
        command(0x0001, CommandDataSetType=1, Priority=0) + pdu(4, struct.pack(">L", 2) + b"\1\2"),
    ],
    ids=range(9),
)  # fmt: skip
def test_a_peer_that_breaks_the_protocol_is_aborted_and_others_go_on(sent, capfd):
    with receiving(lambda content: None) as (_, port), associated(port) as association:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            request = association.requestor.primitive
            from pynetdicom.pdu import A_ASSOCIATE_RQ

            asked = A_ASSOCIATE_RQ()
            asked.from_primitive(request)
            peer.sendall(asked.encode())
            peer.settimeout(patience(10))
            assert peer.recv(1 << 16)[0] == 2  # accepted
            peer.sendall(sent)
            assert sees_the_end(peer)
        assert association.send_c_echo().Status == SUCCESS
    assert capfd.readouterr() == ("", "")


def test_a_silent_peer_is_ended(capfd):
    with (
        receiving(lambda content: None, ReceiverLimits(stall_seconds=0.3)) as (_, port),
        socket.create_connection(("127.0.0.1", port)) as silent,
        socket.create_connection(("127.0.0.1", port)) as halting,
    ):
        halting.sendall(pdu(1, b"\0" * 10, 100))
        assert sees_the_end(silent) and sees_the_end(halting)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("listens", "address", "own"),
    [
        ("127.0.0.1", "dicom://ANOTHER@127.0.0.1:11112", True),  # the same socket, whatever the title
        ("127.0.0.1", "dicoms://ANOTHER@localhost:11112/", True),
        ("localhost", "dicom://ANOTHER@127.0.0.1:11112", True),
        ("127.0.0.1", "dicom://ANOTHER@[::ffff:127.0.0.1]:11112", True),
        ("0.0.0.0", "dicom://ANOTHER@127.0.0.7:11112", True),
        ("127.0.0.1", "dicom://CLINKD@127.0.0.7:11112", True),
        ("127.0.0.1", "dicom://ORTHANC@127.0.0.7:11112", False),  # another one at another address of this machine
        ("127.0.0.1", "dicom://CLINKD@127.0.0.1:11113", False),
        ("0.0.0.0", "dicom://CLINKD@192.0.2.1:11112", False),  # no machine has this address
        ("127.0.0.1", "https://127.0.0.1:11112", False),
        ("127.0.0.1", "dicom://CLINKD@127.0.0.1:x", False),
    ],
)
def test_an_address_of_the_receiver_is_known_however_it_is_spelled(listens, address, own):
    assert ReceiverAddress(listens).is_reached_at(address) == own


def test_the_name_of_this_machine_is_one_of_its_addresses(monkeypatch):
    names = {"reading-room": "127.0.1.1", "127.0.0.1": "127.0.0.1", "0.0.0.0": "0.0.0.0"}
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: resolve(names.get(host, host), *rest, **more)
    )
    assert ReceiverAddress("0.0.0.0").is_reached_at("dicom://ANOTHER@reading-room:11112")
    assert ReceiverAddress().is_reached_at("dicom://CLINKD@reading-room:11112")
    assert not ReceiverAddress().is_reached_at("dicom://ORTHANC@reading-room:11112")


def test_a_peer_waits_from_the_port_on_and_a_port_is_taken_once():
    kept: list[bytes] = []
    receiver = Receiver(ReceiverAddress(port=0), kept.append)
    port = receiver.bind()
    with pytest.raises(BadInput, match=rf"--port {port}: cannot be taken \(Address already in use\); --port 0"):
        Receiver(ReceiverAddress(port=port), kept.append).bind()
    with pytest.raises(BadInput, match=r"--host 192.0.2.1 .*; give an address of this machine"):
        Receiver(ReceiverAddress("192.0.2.1", allowed=(AllowedPeer("10.0.0.5", "ORTHANC"),)), kept.append).bind()
    threading.Timer(0.1, receiver.start).start()
    with associated(port) as association:
        assert association.send_c_store(make_image()).Status == SUCCESS
    receiver.stop()
    receiver = Receiver(ReceiverAddress(port=port), kept.append)  # free again, and given back unused
    receiver.bind()
    receiver.stop()


def test_nothing_is_left_running():
    with receiving(lambda content: None) as (_, port), associated(port) as association:
        assert association.is_established
    end = Deadline(20)
    while any("AcceptorThread" in thread.name for thread in threading.enumerate()):
        assert not end.passed()
        time.sleep(0.02)


# ---- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server and a client from it."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
            f"{name}.pem", "-days", "2",
        )  # fmt: skip
    return folder


def test_with_tls_a_peer_needs_a_certificate(certificates):
    files = TlsFiles(certificates / "ca.pem", certificates / "server.pem", certificates / "server.key")
    trusting = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    trusting.check_hostname = False
    known = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    known.check_hostname = False
    known.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    kept: list[bytes] = []
    with receiving(kept.append, tls=files, host="127.0.0.1") as (_, port):
        silent = socket.create_connection(("127.0.0.1", port))
        with silent, associated(port, tls_args=(known, None)) as association:  # nobody is kept out
            assert association.send_c_store(make_image()).Status == SUCCESS
        with associated(port, tls_args=(trusting, None)) as stranger:
            assert not stranger.is_established
        with associated(port) as plain:
            assert not plain.is_established
    assert len(kept) == 1
    broken = TlsFiles(certificates / "ca.key", certificates / "server.pem", certificates / "server.key")
    with pytest.raises(BadInput, match="give a PEM file"):
        Receiver(ReceiverAddress(port=0, tls=broken), kept.append).start()

"""Archives by DICOMweb and DIMSE: a real Orthanc, peers of pynetdicom, and all that can go wrong on the way."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from tests.orthanc import PASSWORD, TITLE, USER, Orthanc, free_port
from tests.pacs_peers import (
    CANARIES,
    OTHER_STUDY,
    STUDY,
    Answer,
    Peer,
    as_json,
    as_part,
    compress,
    make_image,
    misbehaving_web,
    same_content,
    to_bytes,
)

from clinkd.pacs import (
    Archive,
    ArchiveUnreachable,
    ReceiverLimits,
    SeriesIncomplete,
    SeriesReference,
    StudyQuery,
    TlsFiles,
    connect,
    read_instance_header,
)
from clinkd.pacs.archive import read_count
from clinkd.pacs.instance import STORED_BEFORE
from clinkd.records import BadInput

SERIES = SeriesReference(STUDY, f"{STUDY}.1", "CT", 3)


def make_images() -> list[Dataset]:
    """Two studies: three CT and two MR, and one report."""
    images = [make_image(1, number) for number in (1, 2, 3)]
    images += [make_image(2, number, Modality="MR") for number in (1, 2)]
    return [*images, make_image(1, 1, OTHER_STUDY, Modality="SR", AccessionNumber="B200", StudyDate="20261001")]


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLINKD_PACS_TOKEN", raising=False)
    monkeypatch.setenv("CLINKD_PACS_USER", USER)
    monkeypatch.setenv("CLINKD_PACS_PASSWORD", PASSWORD)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    archive = Orthanc(tmp_path_factory.mktemp("orthanc")).start()
    try:
        yield archive
    finally:
        archive.stop()


@pytest.fixture(scope="module")
def mover(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc that does not hand images over on our own connection."""
    archive = Orthanc(tmp_path_factory.mktemp("mover"), {"DicomAlwaysAllowGet": False})
    us = {"AET": "CLINKD", "Host": "127.0.0.1", "Port": archive.receive_port, "AllowGet": False}
    archive.options["DicomModalities"] = {"clinkd": us}
    try:
        yield archive.start()
    finally:
        archive.stop()


def check_archive(archive: Archive, images: list[Dataset], exact: bool = False) -> None:
    """Store, find and fetch: what an archive must do, whichever it is and however it is reached."""
    contents = {str(image.SOPInstanceUID): to_bytes(image) for image in images}
    for content in contents.values():
        archive.store(content)
    found = archive.find_series(StudyQuery(accession="A100"))
    assert {(s.study, s.series, s.modality, s.instances) for s in found} == {
        (STUDY, f"{STUDY}.1", "CT", 3), (STUDY, f"{STUDY}.2", "MR", 2),
    }  # fmt: skip
    for query, modalities in (
        (StudyQuery(study=STUDY, modality="mr"), ["MR"]),
        (StudyQuery(patient="MRN-77", date="2026-11-01..2026-11-30", modality="CT"), ["CT"]),
        (StudyQuery(date="20261001"), ["SR"]),
        (StudyQuery(date="..2026-10-31"), ["SR"]),
        (StudyQuery(accession="A1"), []),
        (StudyQuery(patient="MRN-78"), []),
        (StudyQuery(study="1.2.3"), []),
    ):
        assert [series.modality for series in archive.find_series(query)] == modalities, query
    assert len({series.study for series in archive.find_series(StudyQuery(limit=1))}) == 1
    series = next(series for series in found if series.modality == "CT")
    uids = [f"{series.series}.{number}" for number in (1, 2, 3)]
    fetched = list(archive.fetch_series(series))
    pairs = [(content, next(c for c in fetched if same_content(c, content))) for content in map(contents.get, uids)]  # type: ignore[arg-type]
    assert len(fetched) == 3 and all(not exact or one == other for one, other in pairs)
    assert len(list(archive.fetch_series(series, skip={uids[0]}))) == 2
    assert list(archive.fetch_series(series, skip=set(uids))) == []
    stopped = archive.fetch_series(series)
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["web", pytest.param("dicom", marks=pytest.mark.slow)])
def test_orthanc_is_found_fetched_and_stored_to(orthanc: Orthanc, way: str) -> None:
    check_archive(connect(getattr(orthanc, way), receive_port=orthanc.receive_port), make_images(), exact=way == "web")


@pytest.mark.slow  # an Orthanc of its own
def test_orthanc_that_only_moves_sends_to_a_receiver_of_ours(mover: Orthanc) -> None:
    archive = connect(mover.dicom, receive_port=mover.receive_port)
    check_archive(archive, make_images())
    with pytest.raises(
        BadInput, match=r"3 of 3 images of a series did not come: .*have OTHER entered there, with this"
    ):
        list(connect(mover.dicom, "OTHER", free_port()).fetch_series(SERIES))
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", mover.receive_port))
        taken.listen()
        with pytest.raises(BadInput, match=rf"port {mover.receive_port}: cannot be listened at .*give --port"):
            list(archive.fetch_series(SERIES))


@pytest.mark.parametrize("gets", [True, False])
def test_a_peer_is_found_fetched_and_stored_to(gets: bool) -> None:
    port = free_port()
    with Peer(gets=gets, moves_to=port).listening() as peer:
        check_archive(connect(peer.address, receive_port=port), make_images())
        assert {request.partition(" ")[0] for request in peer.requests} == {"find", "get" if gets else "move"}


@pytest.mark.parametrize("gets", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_compressed_image_comes_as_it_is(gets: bool) -> None:
    image = compress(make_image())
    port = free_port()
    with Peer(images=[image], gets=gets, moves_to=port).listening() as peer:
        archive = connect(peer.address, receive_port=port)
        archive.store(to_bytes(image))
        assert len(peer.images) == 2 and same_content(to_bytes(peer.images[1]), to_bytes(image))
        del peer.images[1]
        (content,) = archive.fetch_series(SERIES)
        assert same_content(content, to_bytes(image))


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def expect(told: str, address: str, kind: type[BadInput] = BadInput, **options: Any) -> None:
    """What is told, in one line without a word of the patient's, where an archive is asked for the studies of one."""
    with pytest.raises(kind, match=told) as caught:
        connect(address, timeout_seconds=5, **options).find_series(StudyQuery(patient="MRN-77"))
    line = str(caught.value)
    assert "\n" not in line and PASSWORD not in line and not any(word in line for word in CANARIES), line


def test_a_wrong_address_is_told_with_what_to_try(orthanc: Orthanc) -> None:
    nobody = free_port()
    expect(r"HTTP 404: is the address the root of DICOMweb", f"{orthanc.web}-not")
    expect(r"HTTP 400: is the address the root of DICOMweb", orthanc.web.removesuffix("/dicom-web"))
    expect(r"no encrypted connection; .*begin with http://", orthanc.web.replace("http:", "https:"), ArchiveUnreachable)
    expect(r"the connection was lost", f"http://127.0.0.1:{orthanc.dicom_port}/dicom-web", ArchiveUnreachable)
    expect(r"cannot be reached; check host and port$", f"http://127.0.0.1:{nobody}/dicom-web", ArchiveUnreachable)
    expect(r"cannot be reached; check host and port$", f"dicom://{TITLE}@127.0.0.1:{nobody}", ArchiveUnreachable)
    expect(r"check host and port, or not by TLS: --ca", orthanc.dicom.replace("dicom:", "dicoms:"), ArchiveUnreachable)
    expect(r"ended the connection, or offers nothing", f"dicom://{TITLE}@127.0.0.1:{orthanc.http_port}")
    expect(r"another application entity title; check the title in the address", orthanc.dicom.replace(TITLE, "WRONG"))


def test_a_wrong_password_or_token_is_told(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLINKD_PACS_PASSWORD", "wrong-password")
    expect(r"HTTP 401: it wants a token or a password, or refuses that of CLINKD_PACS_TOKEN", orthanc.web)
    monkeypatch.setenv("CLINKD_PACS_TOKEN", "wrong-token")
    expect(r"HTTP 401: it wants a token or a password", orthanc.web)


def test_a_token_is_sent_to_nobody_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = list[str]()

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        sent.append(headers["Authorization"])
        return as_json()

    monkeypatch.setenv("CLINKD_PACS_TOKEN", "token-1")
    with misbehaving_web(answer) as address:
        assert connect(address).find_series(StudyQuery(patient="MRN-77")) == []
    assert sent == ["Bearer token-1"]
    with pytest.raises(BadInput, match="CLINKD_PACS_TOKEN would go over the network in the clear; use https"):
        connect("http://pacs.hospital.example/dicom-web")
    monkeypatch.setenv("CLINKD_PACS_TOKEN", "tökén")
    with pytest.raises(BadInput, match="a character that none has"):
        connect("https://pacs.hospital.example/dicom-web")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("pacs", "is wanted"), ("ftp://pacs/x", "is wanted"), ("https://u:geheim@pacs/d", "no password"),
        ("https://u@pacs/d", "no name in it"), ("https://pacs/d?patient=MRN-77", "no query"),
        ("dicom://pacs:104", "title and the port"), ("dicom://A@pacs", "title and the port"),
        ("dicom://A@pacs:0104000", "is wanted"), ("dicom://ABCDEFGHIJKLMNOPQ@pacs:104", "1 to 16 plain characters"),
        ("dicom://A@pacs:104/x", "is wanted"), ("https://[::1/d", "is wanted"),
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_without_repeating_it(address: str, told: str) -> None:
    with pytest.raises(BadInput, match=told) as caught:
        connect(address)
    assert "geheim" not in str(caught.value) and "MRN" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"study": "1.2.x"}, {"study": "../1"}, {"accession": "A*"}, {"patient": "A\\B"}, {"patient": ""}, {"limit": 0},
        {"modality": "?"}, {"date": "yesterday"}, {"date": "2026-13-01"}, {"date": ".."}, {"date": "2026-11"},
        {"date": "2026-11-30..2026-11-01"}, {"accession": "A" * 65},
    ],
)  # fmt: skip
def test_a_query_that_cannot_be_matched_exactly_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        StudyQuery(**wrong)


@pytest.mark.parametrize(
    ("date", "spelled"),
    [
        ("2026-11-30", "20261130"), ("20261130", "20261130"), ("2026-11-01..2026-11-30", "20261101-20261130"),
        ("20261101-20261130", "20261101-20261130"), ("2026-11-01..", "20261101-"), ("..20261130", "-20261130"),
    ],
)  # fmt: skip
def test_days_and_ranges_are_spelled_as_dicom_does(date: str, spelled: str) -> None:
    query = StudyQuery(date=date)
    assert query.date == spelled
    for day in ("20261031", "20261101", "20261115", "20261130", "20261201"):
        first, dash, last = spelled.partition("-")
        expected = (first or "0") <= day <= (last or "9") if dash else day == first
        assert query.matches_study({"StudyDate": day}) == expected
    assert not query.matches_study({})


def test_blanks_around_what_is_asked_do_not_count() -> None:
    assert StudyQuery(patient=" MRN-77 ").matches_study({"PatientID": "MRN-77"})  # as archives keep an ID


def test_an_archive_that_leaves_keys_out_of_account_brings_no_other_study() -> None:
    items = [
        {"StudyInstanceUID": STUDY, "PatientID": "MRN-77"}, {"StudyInstanceUID": OTHER_STUDY, "PatientID": "MRN-78"},
    ]  # fmt: skip

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        if "/series" in path:
            return as_json({"SeriesInstanceUID": f"{STUDY}.1", "Modality": "CT"})
        return as_json(*items)  # whatever the page

    with misbehaving_web(answer) as address:
        assert connect(address).find_series(StudyQuery(patient="MRN-77")) == [
            SeriesReference(STUDY, f"{STUDY}.1", "CT", None)
        ]
    images = [make_image(), make_image(1, 1, OTHER_STUDY, PatientID="MRN-78")]
    with Peer(images=images, deaf=True).listening() as peer:
        assert {s.study for s in connect(peer.address).find_series(StudyQuery(patient="MRN-77"))} == {STUDY}


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ((200, {"Content-Type": "text/html"}, b"<html>MRN-77"), "not as DICOMweb"),
        ((200, {}, b'["Canary"]'), "not as DICOMweb"),
        ((200, {}, b"null"), "not as DICOMweb"),
        ((200, {}, b'{"error": "Canary"}'), "without a valid StudyInstanceUID"),
        (as_json({"StudyInstanceUID": "../../Canary"}), "without a valid StudyInstanceUID"),
        (
            (302, {"Location": "http://127.0.0.1:9/Canary"}, b""),
            r"sends us to another address \(http://127.0.0.1:9\); give",
        ),
        ((500, {}, b"Canary"), "HTTP 500: a fault of the archive"),
        ((403, {}, b"Canary"), "HTTP 403: we may not do this"),
        ((200, {"Content-Length": "100"}, b"[]"), "the connection was lost"),
        (None, "the connection was lost"),
    ],
)
def test_what_a_broken_archive_answers_is_one_line(reply: Answer | None, told: str) -> None:
    with misbehaving_web(lambda *_: reply) as address:
        expect(told, address)


def test_an_image_that_came_broken_off_does_not_count() -> None:
    content = to_bytes(make_image())
    _, kind, whole = as_part(content)
    assert isinstance(whole, bytes)
    body = [whole]

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        if path.partition("?")[0].endswith("/instances"):
            return as_json({"SOPInstanceUID": f"{STUDY}.1.1"})
        return 200, kind, body[0]

    with misbehaving_web(answer) as address:
        archive = connect(address)
        assert list(archive.fetch_series(SERIES)) == [content]
        body[0] = b"\r\npreamble\r\n" + whole.replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n", 1)
        assert list(archive.fetch_series(SERIES)) == [content]
        for end in (10, 60, len(whole) - 10):
            body[0] = whole[:end]
            with pytest.raises(BadInput, match=rf"1 images .*instance {STUDY}.1.1: .*came broken off"):
                list(archive.fetch_series(SERIES))


@pytest.mark.parametrize(("unsendable", "moves"), [(1, True), (2, False)])
def test_what_follows_an_image_that_an_archive_cannot_send_comes_too(unsendable: int, moves: bool) -> None:
    """Also where nothing comes before it."""
    images, port = [make_image(1, number) for number in (1, 2, 3, 4)], free_port()
    with Peer(
        images=images, unsendable=(f"{STUDY}.1.{unsendable}",), moves_to=port if moves else None
    ).listening() as peer:
        came = list[bytes]()
        with pytest.raises(SeriesIncomplete, match=rf"1 images .*instance {STUDY}.1.{unsendable}: .*status C000"):
            came.extend(connect(peer.address, receive_port=port).fetch_series(SERIES))
            pytest.fail("the end was not told")
        assert sorted(read_instance_header(content).instance for content in came) == [
            f"{STUDY}.1.{n}" for n in (1, 2, 3, 4) if n != unsendable
        ]
        assert [one for one in peer.requests if "move" in one] == ["move IMAGE"] * moves


def test_an_archive_that_can_send_next_to_nothing_is_not_asked_for_each_image() -> None:
    images = [make_image(1, number) for number in range(1, 31)]
    unsendable = tuple(f"{STUDY}.1.{n}" for n in range(2, 31))
    with Peer(images=images, unsendable=unsendable).listening() as peer:
        with pytest.raises(SeriesIncomplete, match="29 images of a series did not come"):
            list(connect(peer.address).fetch_series(SERIES))
        assert len([one for one in peer.requests if one.startswith("get")]) == 1 + 5
    port = free_port()
    with Peer(images=images[1:], unsendable=unsendable, moves_to=port).listening() as peer:
        with pytest.raises(BadInput, match=r"29 of 29 images .* \(status C000\); have CLINKD entered there"):
            list(connect(peer.address, receive_port=port).fetch_series(SERIES))
        assert [one.partition(" ")[0] for one in peer.requests] == ["find", *["get"] * (1 + 5), "move"]


def test_an_archive_whose_every_get_fails_moves_the_series_whole() -> None:
    images, port = [make_image(1, number) for number in (1, 2, 3)], free_port()

    class Mover(Peer):
        """Ends each C-GET at once."""

        def _get(self, event: Any) -> Iterator[Any]:
            yield 1
            yield 0xC000, None

    with Mover(images=images, moves_to=port).listening() as peer:
        assert len(list(connect(peer.address, receive_port=port).fetch_series(SERIES))) == 3
        assert peer.requests[-1] == "move SERIES"


def test_a_study_that_is_named_twice_is_one() -> None:
    with Peer(images=[make_image(1), make_image(2)], names=2).listening() as peer:
        found = connect(peer.address).find_series(StudyQuery(study=STUDY))
    assert [series.series for series in found] == [f"{STUDY}.1", f"{STUDY}.2"]


@pytest.mark.parametrize("gets", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_archive_that_dies_in_the_middle_of_a_series_is_told(gets: bool) -> None:
    port, images = free_port(), [make_image(1, number) for number in (1, 2, 3)]
    with Peer(images=images, gets=gets, moves_to=port, dies_after=1).listening() as peer:
        came = list[bytes]()
        with pytest.raises(ArchiveUnreachable, match=r"2 of 3 images .*the connection was lost; the same command goes"):
            came.extend(connect(peer.address, receive_port=port).fetch_series(SERIES))
            pytest.fail("the end was not told")
        for content in connect(peer.address, receive_port=port).fetch_series(SERIES):
            came.append(content)
            break
        assert len(came) == 2


def test_what_an_archive_moves_to_us_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clinkd.pacs.dimse._MOVED", ReceiverLimits(image_bytes=10_000))
    port, images = free_port(), [make_image(1, 1), make_image(1, 2, PixelData=bytes(20_000)), make_image(1, 3)]
    came = list[bytes]()
    with (
        Peer(images=images, gets=False, moves_to=port).listening() as peer,
        pytest.raises(SeriesIncomplete, match="1 images of a series did not come") as told,
    ):
        for content in connect(peer.address, receive_port=port).fetch_series(SERIES):
            came.append(content)
    assert len(came) == 2 and not told.value.unusable
    assert list(told.value.failures) == [images[1].SOPInstanceUID]


class SendsAll(Peer):
    """Leaves out of account what is asked."""

    def _match(self, asked: Dataset, also: tuple[str, ...] = ()) -> list[Dataset]:
        return self.images


def test_an_image_of_another_series_is_left_out_by_its_name() -> None:
    images = [make_image(1, 1), make_image(2, 1)]
    with SendsAll(images=images).listening() as peer:
        came = list[bytes]()
        with pytest.raises(SeriesIncomplete, match="the archive sent another image") as told:
            came.extend(connect(peer.address).fetch_series(SERIES))
            pytest.fail("it was not told")
    assert [read_instance_header(content).instance for content in came] == [images[0].SOPInstanceUID]
    assert list(told.value.unusable) == list(told.value.failures) == [images[1].SOPInstanceUID]


@pytest.mark.parametrize(
    ("status", "told"), [(0xA700, "out of resources"), (0xC123, "cannot process"), (0x0124, "auth")]
)
def test_what_an_archive_does_not_take_is_told_with_its_reason(status: int, told: str) -> None:
    with Peer(refuses=status).listening() as peer, pytest.raises(BadInput, match=rf"{told}.*\(status {status:04X}\)"):
        connect(peer.address).store(to_bytes(make_image()))
    failed = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [status]}}]}}
    answer = (409, {"Content-Type": "application/dicom+json"}, json.dumps(failed).encode())
    with misbehaving_web(lambda *_: answer) as address, pytest.raises(BadInput, match=rf"{told}.* {status:04X}\)"):
        connect(address).store(to_bytes(make_image()))


def test_what_an_archive_has_already_counts_as_stored() -> None:
    with Peer(refuses=STORED_BEFORE).listening() as peer:
        connect(peer.address).store(to_bytes(make_image()))


@pytest.mark.parametrize(("text", "count"), [("12", 12), ("", None), ("\u00b2", None), ("-1", None), ("9" * 10, None)])
def test_a_count_is_read_only_where_it_is_one(text: str, count: int | None) -> None:
    assert read_count(text) == count


def test_damaged_files_are_not_sent(orthanc: Orthanc) -> None:
    content = to_bytes(make_image())
    for address in (orthanc.web, orthanc.dicom):
        for damaged in (b"", b"junk", content[:200], content[132:], to_bytes(make_image(StudyInstanceUID="Canary"))):
            with pytest.raises(BadInput) as caught:
                connect(address).store(damaged)
            assert "Canary" not in str(caught.value)


def test_peers_with_certificates_talk_over_tls(tmp_path: Path) -> None:
    def make_certificate(name: str) -> tuple[Path, Path]:
        certificate, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        words += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key)]
        subprocess.run(["openssl", *words, "-out", str(certificate)], check=True, capture_output=True)
        return certificate, key

    theirs, ours = make_certificate("archive"), make_certificate("clinkd")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ours[0])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(*theirs)
    with Peer(images=[make_image()]).listening(ssl_context=context) as peer:
        address = peer.address.replace("dicom:", "dicoms:")
        archive = connect(address, tls=TlsFiles(theirs[0], *ours), timeout_seconds=5)
        assert len(list(archive.fetch_series(SERIES))) == 1
        expect("or not by TLS", address, ArchiveUnreachable)
        expect("ended the connection|cannot be reached", peer.address, ArchiveUnreachable)
        in_clear = f"http://127.0.0.1:{peer.port}/dicom-web"
        expect("the connection was lost; .*, or the address should begin with https://$", in_clear, ArchiveUnreachable)
        by_web = f"https://localhost:{peer.port}/dicom-web"  # its certificate comes before any word of HTTP
        expect(r"no encrypted connection \(self-signed certificate\); --ca names", by_web, ArchiveUnreachable)
        expect(r"\(Hostname mismatch, .*'localhost'\); --ca", by_web, ArchiveUnreachable, tls=TlsFiles(theirs[0]))
    with pytest.raises(BadInput, match="no such file"):
        TlsFiles(ca=tmp_path / "absent.pem")
    with pytest.raises(BadInput, match="belong together"):
        TlsFiles(certificate=ours[0])


def test_nothing_of_a_patient_reaches_a_log(
    orthanc: Orthanc, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(0)
    for address in (orthanc.web, orthanc.dicom):
        archive = connect(address)
        archive.store(to_bytes(make_image()))
        for series in archive.find_series(StudyQuery(patient="MRN-77", accession="A100")):
            list(archive.fetch_series(series))
    with Peer(dies_after=0, images=[make_image()]).listening() as peer, pytest.raises(BadInput):
        list(connect(peer.address, timeout_seconds=2).fetch_series(SERIES))
    strange = [make_image(AccessionNumber="Canary^Anna of Elmstreet 1", StudyID="Canary^Anna of Elmstreet 1")]
    with Peer(images=strange).listening() as peer, warnings.catch_warnings(record=True) as warned:
        assert len(connect(peer.address).find_series(StudyQuery(study=STUDY))) == 1
        (content,) = connect(peer.address).fetch_series(SERIES)
        connect(peer.address).store(content)
    printed = "".join(capfd.readouterr()) + caplog.text + "".join(str(warning.message) for warning in warned)
    assert not any(word in printed for word in CANARIES), printed


def test_without_the_extra_its_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pynetdicom and dicomweb_client: not installed: pip install 'clinkd\[pacs\]'"):
        connect("https://pacs/dicom-web")


def test_many_images_come_in_several_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clinkd.pacs.dimse._INSTANCES", 4)
    with Peer(images=[make_image(1, number) for number in range(1, 9)]).listening() as peer:
        assert len(list(connect(peer.address).fetch_series(SERIES, skip={f"{STUDY}.1.1"}))) == 7
        assert peer.requests.count("get IMAGE") == 2

"""Damaged images, and damaged answers, of an archive by DICOMweb: each is one line, and the good images come."""

from __future__ import annotations

import itertools
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from benchmarks.patience import Deadline, patience
from tests.pacs_peers import STUDY, Answer, as_json, as_part, misbehaving_web, to_bytes
from tests.pacs_peers import make_image as make_ct

from arrivals import RULES, ScriptedDesk, damage
from clinkd.cli import main
from clinkd.hospital.listen import Listening
from clinkd.hospital.polling import Polling
from clinkd.hospital.rules import read_rules
from clinkd.hospital.worklist import Worklist
from clinkd.pacs import ArchiveUnreachable, SeriesIncomplete, SeriesReference, StudyQuery, connect
from clinkd.records import BadInput

SERIES = SeriesReference(STUDY, f"{STUDY}.1", "CT")
COUNTS = [40, pytest.param(2000, marks=pytest.mark.slow)]
BOUNDS = "clinkd.pacs.web_session"
FILE = {"Content-Type": 'multipart/related; type="application/dicom"; boundary="x"'}
CHUNKED = {**FILE, "Transfer-Encoding": "chunked"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLINKD_PACS_TOKEN", raising=False)
    monkeypatch.delenv("CLINKD_PACS_USER", raising=False)
    monkeypatch.delenv("CLINKD_PACS_PASSWORD", raising=False)
    monkeypatch.chdir(tmp_path)


def damage_answer(content: bytes, kind: str, rng: random.Random) -> Answer | None:
    """An answer of WADO-RS about a good image, with a damage that the answer itself has."""
    status, headers, whole = as_part(content)
    assert isinstance(whole, bytes)
    place = rng.randrange(len(whole) - 8)
    return {
        "cut": (status, headers, whole[:place]),
        "shorter than said": (status, {**headers, "Content-Length": str(len(whole) + 1000)}, whole),
        "another boundary": (status, {**headers, "Content-Type": 'multipart/related; boundary="y"'}, whole),
        "another type": (status, {"Content-Type": "text/html"}, b"<html>Canary^Anna"),
        "another image": as_part(to_bytes(make_ct(1, 9_999))),
        "another study": as_part(to_bytes(make_ct(1, 1, "1.2.3"))),
        "nothing": (status, headers, b""),
        "fault": (500, {}, b"Canary^Anna"),
        "gone": (404, {}, b"Canary^Anna"),
        "elsewhere": (302, {"Location": "http://127.0.0.1:9/Canary\xff"}, b""),
        "no gzip": (status, {**headers, "Content-Encoding": "gzip"}, whole),
        "a bad chunk": (status, CHUNKED, iter([b"10\r\n" + whole[:16] + b"\r\nnot-a-number\r\n"])),
        "hangs up": None,
    }[kind]


KINDS = ("cut", "shorter than said", "another boundary", "another type", "another image", "another study", "nothing",
         "fault", "gone", "elsewhere", "no gzip", "a bad chunk", "hangs up")  # fmt: skip


class DamagedArchive:
    """A series of which each tenth image is good, and of the others each fourth answer is damaged and not the file."""

    def __init__(self, count: int) -> None:
        rng, self.good = random.Random(0), dict[str, bytes]()
        self.answers, self.contents = dict[str, Answer | None](), dict[str, bytes]()
        kinds = itertools.cycle(KINDS)
        for number in range(1, count + 1):
            content, uid = to_bytes(make_ct(1, number)), f"{SERIES.series}.{number}"
            if number % 10 == 0:
                self.good[uid] = content
            elif number % 4:
                start = content.index(b"\x08\0\x16\0UI")
                content = content[:start] + damage(content[start:], rng)
            self.contents[uid] = content
            damaged = number % 4 == 0 and uid not in self.good
            self.answers[uid] = damage_answer(content, next(kinds), rng) if damaged else as_part(content)

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer | None:
        path, _, query = path.partition("?")
        if path.endswith("/studies"):
            return as_json({"StudyInstanceUID": STUDY, "StudyDate": f"{date.today():%Y%m%d}"})
        if path.endswith("/series"):
            return as_json({"SeriesInstanceUID": SERIES.series, "Modality": "CT"})
        if path.endswith("/instances"):
            start = int(dict(pair.split("=") for pair in query.split("&"))["offset"])
            return as_json(*({"SOPInstanceUID": uid} for uid in list(self.answers)[start : start + 500]))
        return self.answers[path.rpartition("/")[2]]


@pytest.mark.parametrize("count", COUNTS)
def test_of_damaged_images_each_is_told_and_the_good_ones_come(
    count: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clinkd.cli.pacs.SHOWN", count)
    archive = DamagedArchive(count)
    with misbehaving_web(archive.answer) as address:
        status = main(["pacs", "pull", address, "--study", STUDY, "--out", "scans"])
    out, err = capfd.readouterr()
    assert status == 2 and "Canary" not in out + err and "Traceback" not in err
    files = {path.stem: path.read_bytes() for path in Path("scans").rglob("*.dcm")}
    assert archive.good.items() <= files.items()
    assert all(archive.contents[uid] == content for uid, content in files.items())  # as the archive holds them
    assert not [path for path in Path("scans").rglob("*") if path.is_file() and path.suffix not in (".dcm", ".csv")]
    lines = [line for line in err.splitlines() if line.startswith("clinkd: instance ")]
    told = [line.split()[2].rstrip(":") for line in lines]
    assert sorted(told) == sorted(archive.answers.keys() - files.keys())
    with_capfd = Counter(line.split(": ", 2)[2].partition(":")[2][:40] or line.split(": ", 2)[2] for line in lines)
    print(f"{count} images: {len(files)} came ({len(archive.good)} good), {len(told)} told", dict(with_capfd))


@pytest.mark.parametrize("count", COUNTS)
def test_of_polled_images_the_good_ones_are_asked_about(count: int, capfd: pytest.CaptureFixture[str]) -> None:
    archive = DamagedArchive(count)
    Path("rules.yaml").write_text(RULES)
    worklist = Worklist(Path("work"), "model")
    running = Listening(worklist, read_rules(Path("rules.yaml")))
    with misbehaving_web(archive.answer) as address:
        running.start(ScriptedDesk(), polling=Polling(connect(address), 600.0))
        end = Deadline(patience(30 + count / 10))
        while "images of a series did not come" not in (told := capfd.readouterr().err) and not end.passed():
            time.sleep(0.05)
        running.stop()
    known = [uid for uid in archive.answers if worklist.knows(uid)]
    worklist.close()
    assert archive.good.keys() <= set(known) and "Canary" not in told and "fault of the program" not in told
    assert len(known) == running.counts["images"] < count / 2
    print(f"{count} images polled: {len(known)} kept ({len(archive.good)} good), {running.counts['refused']} refused")


# ---- answers without an end ------------------------------------------------------------------------------------------


def repeat(part: bytes, seconds: float = 0.0) -> Iterator[bytes]:
    """The same part for as long as somebody reads, but not for ever."""
    end = Deadline(patience(30))
    while not end.passed():
        yield part
        time.sleep(seconds)


ENDLESS: dict[str, Callable[[], Answer]] = {
    "chunks": lambda: (200, CHUNKED, repeat(b"1000\r\n" + bytes(4096) + b"\r\n")),
    "no length": lambda: (200, FILE, repeat(bytes(4096))),
    "a length": lambda: (200, {**FILE, "Content-Length": str(10**15)}, repeat(bytes(4096))),
    "a bomb": lambda: (200, {**FILE, "Content-Encoding": "gzip"}, _compress_zeros()),
}
SLOW: dict[str, Callable[[], Answer]] = {
    "a drip": lambda: (200, FILE, repeat(b"x", 0.02)),
    "a dripping chunk": lambda: (200, CHUNKED, itertools.chain([b"ffffffff\r\n"], repeat(b"x", 0.02))),
    "lines behind the last chunk": lambda: (200, CHUNKED, itertools.chain([b"0\r\n"], repeat(b"X: y\r\n", 0.02))),
    "silence": lambda: (200, {**FILE, "Content-Length": "100"}, repeat(b"", 0.02)),
}


def _compress_zeros() -> Iterator[bytes]:
    import zlib

    packer = zlib.compressobj(wbits=31)
    yield from (packer.compress(bytes(1 << 16)) for _ in range(1000))


def answer_instances(reply: Callable[[], Answer | None]) -> Callable[[str, str, dict[str, str]], Answer | None]:
    """Two images of a series: one with a reply, then a good one."""

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer | None:
        path = path.partition("?")[0]
        if path.endswith("/instances"):
            return as_json(*({"SOPInstanceUID": f"{SERIES.series}.{n}"} for n in (1, 2)))
        return reply() if path.endswith(".1") else as_part(to_bytes(make_ct(1, 2)))

    return answer


@pytest.mark.parametrize("kind", [*ENDLESS, *SLOW])
def test_an_answer_without_an_end_is_left_and_the_next_image_comes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{BOUNDS}._IMAGE_BYTES", 1_000_000)
    came, told = list[bytes](), "sends more than 1 MB" if kind in ENDLESS else "no more came for 0.3 s, or too slowly"
    threads = threading.active_count()
    with misbehaving_web(answer_instances({**ENDLESS, **SLOW}[kind])) as address:
        archive = connect(address, timeout_seconds=0.3 if kind in SLOW else patience(20))
        with pytest.raises(SeriesIncomplete, match=rf"^1 images .* instance {SERIES.series}.1: .*{told}"):
            came.extend(archive.fetch_series(SERIES))
            pytest.fail("the end was not told")
        assert list(archive.fetch_series(SERIES, skip={f"{SERIES.series}.1"}))
    assert threading.active_count() <= threads + 3  # of the peer, which may still write


def test_a_head_that_comes_too_slowly_ends_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            for _ in range(2):
                client, _ = server.accept()
                with client:
                    try:
                        for part in itertools.chain([b"HTTP/1.1 200 OK\r\n"], repeat(b"X-Name: Canary\r\n", 0.02)):
                            client.sendall(part)
                    except OSError:
                        return

        threading.Thread(target=drip, daemon=True).start()
        archive = connect(f"http://127.0.0.1:{server.getsockname()[1]}/dicom-web", timeout_seconds=0.3)
        with pytest.raises(ArchiveUnreachable, match=r"no more came for 0.3 s|the connection was lost"):
            archive.find_series(StudyQuery(study=STUDY))


def test_an_archive_that_loses_every_image_is_not_asked_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer | None:
        if path.partition("?")[0].endswith("/instances"):
            return as_json(*({"SOPInstanceUID": f"{SERIES.series}.{n}"} for n in range(1, 100)))
        asked.append(path)
        return 200, {"Content-Length": "100"}, b"x"

    with misbehaving_web(answer) as address, pytest.raises(ArchiveUnreachable, match="the connection was lost"):
        list(connect(address).fetch_series(SERIES))
    assert len(asked) == 5


def test_a_busy_archive_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{BOUNDS}._WAITS", (0.0, 0.0, 0.0))
    replies = iter([(503, {}, b""), (429, {}, b"Canary"), as_part(to_bytes(make_ct(1, 1)))])
    with misbehaving_web(answer_instances(lambda: next(replies))) as address:
        assert len(list(connect(address).fetch_series(SERIES))) == 2
    with misbehaving_web(lambda *_: (503, {}, b"")) as address, pytest.raises(ArchiveUnreachable, match="it is busy"):
        list(connect(address).fetch_series(SERIES))


# ---- answers to searches ---------------------------------------------------------------------------------------------

NUMBER = "9" * 5000


@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b"[" + NUMBER.encode() + b"]", b'[{"0020000D": {"Value": [', b"\xff\xfe[]", b"[1, 2]",
     b'{"a":' * 100_000, b'[{"0020000D": {"Value": [NaN]}}]', b'[{"0020000D": {"Value": "1.2"}}]',
     b"[" + b" " * 17_000_000],
)  # fmt: skip
def test_a_search_that_is_answered_with_nonsense_is_one_line(body: bytes) -> None:
    with (
        misbehaving_web(lambda *_: (200, {"Content-Type": "application/dicom+json"}, body)) as address,
        pytest.raises(BadInput, match=r"not as DICOMweb|without a valid StudyInstanceUID|sends more than 17 MB"),
    ):
        connect(address).find_series(StudyQuery(study=STUDY))


@pytest.mark.parametrize("count", ["²", NUMBER, "-1", "1e9"])
def test_a_number_of_images_that_is_none_is_left_out(count: str) -> None:
    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        if "/series" in path:
            return as_json(
                {"SeriesInstanceUID": SERIES.series, "Modality": "CT", "NumberOfSeriesRelatedInstances": count}
            )
        return as_json({"StudyInstanceUID": STUDY})

    with misbehaving_web(answer) as address:
        assert connect(address).find_series(StudyQuery(study=STUDY)) == [SERIES]


def test_an_archive_that_names_ever_more_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clinkd.pacs.dicomweb._MOST", 20)
    numbers = itertools.count()

    def answer(*_: Any) -> Answer:
        return as_json(*({"StudyInstanceUID": f"1.2.{next(numbers)}"} for _ in range(6)))

    with misbehaving_web(answer) as address, pytest.raises(BadInput, match="names more than 20; ask for less"):
        connect(address).find_series(StudyQuery(study=STUDY))


# ---- answers to what is stored ---------------------------------------------------------------------------------------

UID = f"{STUDY}.1.1"
KEPT = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [UID]}}]}}


def failing(reason: Any) -> dict[str, Any]:
    item = {} if reason is None else {"00081197": {"vr": "US", "Value": [reason]}}
    return {"00081198": {"vr": "SQ", "Value": [{**item, "00081155": {"vr": "UI", "Value": [UID]}}]}}


@pytest.mark.parametrize(
    ("status", "answer", "told"),
    [
        (200, KEPT, ""), (202, KEPT, ""), (200, f"<NativeDicomModel>{UID}</NativeDicomModel>", ""),
        (200, {**KEPT, "00081198": {"vr": "SQ", "Value": []}}, ""), (409, failing(0x0111), ""),  # it has it already
        (200, failing(0xA700), "out of resources"), (200, failing(None), "a fault of the archive"),
        (200, failing("x"), "a fault of the archive"), (200, failing(float("inf")), "a fault of the archive"),
        (200, "<html>Canary</html>", "not that it keeps the object"), (200, "", "not that it keeps the object"),
        (200, {"00081199": {"vr": "SQ", "Value": [{}]}}, "not that it keeps"),
        (200, "[" * 100_000, "not that it keeps"),
        (204, "", "not that it keeps"), (409, "Canary", "HTTP 409"), (409, {}, "HTTP 409"), (500, KEPT, "HTTP 500"),
        (200, json.dumps(KEPT)[:30], "not that it keeps"), (303, "", "another address"),
    ],
)  # fmt: skip
def test_an_object_counts_as_stored_where_the_archive_says_so(status: int, answer: Any, told: str) -> None:
    body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
    headers = {"Content-Type": "application/dicom+json"} | ({"Location": "/Canary"} if status == 303 else {})
    with misbehaving_web(lambda *_: (status, headers, body)) as address:
        archive = connect(address)
        if not told:
            archive.store(to_bytes(make_ct()))
            return
        with pytest.raises(BadInput, match=told) as caught:
            archive.store(to_bytes(make_ct()))
    assert "Canary" not in str(caught.value) and "\n" not in str(caught.value)

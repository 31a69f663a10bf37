"""Listening: what arrives is asked once and answered once, and only what a person accepted is sent."""

from __future__ import annotations

import errno
import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.patience import Deadline, patience
from pydicom import dcmread
from pydicom.encaps import encapsulate
from tests.dicom_images import make_image as encode_image

from arrivals import RULES, MemoryArchive, ScriptedDesk, encode, filling_disk, make_image
from clinkd.cli import main
from clinkd.hospital.correction_rows import CORRECTIONS
from clinkd.hospital.listen import Listening
from clinkd.hospital.object_kinds import read_arrival, read_kind
from clinkd.hospital.polling import PolledArchive, Polling
from clinkd.hospital.rules import read_rules
from clinkd.hospital.worklist import (
    ArrivedImage,
    FoundRegion,
    ModelAnswer,
    Worklist,
    WorklistDecision,
    WorklistEntry,
    WorklistLimits,
)
from clinkd.pacs import SeriesIncomplete, StoreRefusal, StoreStatus
from clinkd.records import BadInput, Box
from clinkd.serving.limits import ServerLimits
from clinkd.serving.listening import ServedDesk

RIGHT = FoundRegion(Box(0.5, 0.25, 0.75, 1.0), "heart")


def until(done: Callable[[], object]) -> None:
    end = Deadline(patience(20))
    while not done():
        assert not end.passed()
        time.sleep(0.005)


@contextmanager
def listening(
    folder: Path, archive: MemoryArchive | None = None, send: str = "accepted", desk: ScriptedDesk | None = None,
    rules: str = RULES, limits: WorklistLimits | None = None, polled: MemoryArchive | None = None,
) -> Iterator[Listening]:  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "rules.yaml").write_text(rules)
    worklist = Worklist(folder / "work", "model", limits)
    made = Listening(worklist, read_rules(folder / "rules.yaml"), archive, send)  # type: ignore[arg-type]
    made.start(desk or ScriptedDesk(), polling=Polling(polled, 0.05) if polled else None)
    try:
        yield made
    finally:
        made.stop()
        worklist.close()


def answered(listening: Listening, count: int) -> list[str]:
    until(lambda: listening.worklist.counts()["waiting"] == 0 and len(listening.worklist.list()) == count)
    return [entry.id for entry in listening.worklist.list()]


def decide(listening: Listening, id: str, *decision: object) -> None:
    listening.worklist.decide(id, WorklistDecision(*decision), listening.worklist.get(id).revision)  # type: ignore[arg-type]


def test_facts_are_read_from_the_header_alone():
    image = make_image(7, BodyPartExamined="CHEST", PatientName="Canary^Paul")
    assert read_arrival(encode(image), read_kind(encode(image))) == ArrivedImage(
        "1.2.1", "1.2.2", "1.2.3.7", "CT", "CHEST", 1
    )
    image.BodyPartExamined = "CHEST/CANARY"
    assert read_arrival(encode(image), read_kind(encode(image))).body_part == ""


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda image: image.file_meta.update({"MediaStorageSOPInstanceUID": "1.2.99"}), 0xA900),
        (lambda image: image.update({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}), 0xA900),
        (lambda image: image.update({"Modality": "US"}), 0xB006),
    ],
)
def test_what_is_not_what_it_was_sent_as_or_not_asked_about_is_not_kept(tmp_path, change, status):
    image = make_image()
    change(image)
    with listening(tmp_path) as running, pytest.raises(StoreRefusal) as refusal:
        running.take(encode(image))
    assert refusal.value.status == status


ANY_RULE = "any:\n  questions: What is this?\n"
SR, SEG, PRIVATE = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.66.4", "1.3.12.2.1107.5.9.1"


def make_object(sop_class: str, modality: str, **elements: object) -> bytes:
    """An object of another class than an image's."""
    made = make_image(1, Modality=modality, SOPClassUID=sop_class, **elements)
    made.file_meta.MediaStorageSOPClassUID = sop_class
    if sop_class != SEG:
        del made.PixelData, made.Rows
    return encode(made)


def test_what_no_rule_asks_about_is_not_kept_but_counted(tmp_path, capfd):
    with listening(tmp_path, rules=ANY_RULE) as running:
        for content in (make_object(SR, "SR"), make_object(SEG, "SEG"), make_object(SR, "SR"),
                        make_object(PRIVATE, "CANARY")):  # fmt: skip
            with pytest.raises(StoreRefusal, match="no rule asks about such an object") as refusal:
                running.take(content)
            assert refusal.value.status == 0xB006
        assert running.worklist.left_out == {"SR": 2, "SEG": 1, "other": 1} and running.worklist.list() == []
        assert not list((tmp_path / "work" / "images").iterdir())
    told = capfd.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in told] == [" SR", " SEG", " other"] and "CANARY" not in str(told)


@pytest.mark.parametrize(
    ("modality", "body_part", "why"),
    [
        ("CT", "CANARY", "CT: its rules ask about none of this body part (BodyPartExamined)"),
        ("CT", "", "CT: its rules ask about none without a body part (BodyPartExamined)"),
        ("US", "CHEST", "US: no rule asks about it"),
    ],
)
def test_an_image_that_only_its_body_part_keeps_from_a_rule_is_told_so(tmp_path, capfd, modality, body_part, why):
    rules = "ct:\n  modality: CT\n  body_part: CHEST\n  questions: What is this?\n"
    with listening(tmp_path, rules=rules) as running, pytest.raises(StoreRefusal):
        running.take(encode(make_image(Modality=modality, BodyPartExamined=body_part)))
    assert capfd.readouterr().err == f"clinkd: {why}, so it is not kept; told once, counted on the page\n"


def test_a_film_that_is_not_read_is_refused_where_a_rule_asks_about_it(tmp_path):
    film = make_image(1)
    film.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
    film.PixelData = encapsulate([bytes(64)])
    film["PixelData"].is_undefined_length = True
    with listening(tmp_path) as running:
        with pytest.raises(BadInput, match=r"compressed as MPEG-4 .* which is not read"):
            running.take(encode(film))
        film.Modality = "US"
        with pytest.raises(StoreRefusal) as refusal:
            running.take(encode(film))
        assert refusal.value.status == 0xB006 and running.worklist.left_out == {"US": 1}


@pytest.mark.parametrize(
    ("syntax", "way_out"),
    [("1.2.840.10008.1.2.4.201", "pip install pylibjpeg pylibjpeg-openjpeg"), ("1.2.840.10008.1.2.4.110", "gdcmconv")],
)
def test_what_a_receiver_cannot_read_is_told_with_its_way_out(tmp_path, capfd, syntax, way_out):
    image = make_image()
    image.file_meta.TransferSyntaxUID = syntax
    image.PixelData = encapsulate([bytes(64)])
    image["PixelData"].is_undefined_length = True
    with listening(tmp_path) as running:
        for _ in range(3):
            with pytest.raises(
                BadInput, match=rf"compressed as (High-Throughput|JPEG XL).*, which is not read; .*{way_out}"
            ):
                running.receive(encode(image))
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("clinkd: an image is refused: compressed as ") and way_out in line


def test_a_damaged_image_is_refused_also_where_no_rule_asks_about_it(tmp_path):
    with listening(tmp_path) as running:
        for damaged in (
            encode(make_image(1, Modality="MR", Rows=4000)),
            make_object("1.2.840.10008.5.1.4.1.1.4", "MR"),
        ):
            with pytest.raises(BadInput):
                running.take(damaged)
        assert not running.worklist.left_out


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize("content", [b"", b"%PDF-1.4", encode(make_image())[:400], encode(make_image())[:-20]])
def test_what_is_no_whole_image_is_refused(tmp_path, content):
    with listening(tmp_path) as running:
        with pytest.raises(BadInput):
            running.take(content)
        assert running.worklist.list() == []


def test_a_full_worklist_refuses_with_out_of_resources(tmp_path):
    with listening(tmp_path, limits=WorklistLimits(bytes=10)) as running, pytest.raises(StoreRefusal) as refusal:
        running.take(encode(make_image()))
    assert refusal.value.status == 0xA700


def test_each_question_is_answered_once(tmp_path):
    desk = ScriptedDesk(busy=3)
    with listening(tmp_path, desk=desk) as running:
        for number in (1, 2, 3, 1, 2):
            running.take(encode(make_image(number)))
        ids = answered(running, 3)
        assert sorted(desk.asked) == sorted(ids) and running.worklist.counts()["answered"] == 3
    again = ScriptedDesk()
    with listening(tmp_path, desk=again) as running:  # another start
        running.take(encode(make_image(2)))
        assert answered(running, 3) == ids and again.asked == []


def test_what_cannot_be_answered_says_why(tmp_path):
    with listening(tmp_path) as running:
        running.take(encode(make_image(1, PatientComments="BROKEN")))
        [id] = answered(running, 1)
        entry = running.worklist.get(id)
        assert entry.state == "failed" and entry.why == "the file could not be decoded"


def test_only_what_a_person_accepted_is_sent_and_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("clinkd.hospital.listen._RETRY_SECONDS", 0.02)
    archive = MemoryArchive(lost=3)
    with listening(tmp_path, archive) as running:
        for number in range(1, 5):
            running.take(encode(make_image(number)))
        accepted, edited, rejected, _ = answered(running, 4)
        decide(running, rejected, "rejected", "", (), "nonsense")
        decide(running, accepted, "accepted")
        decide(running, edited, "edited", "Here[box].", (RIGHT,))
        until(lambda: running.worklist.counts()["sent"] == 2)
        states = {entry.id: entry.state for entry in running.worklist.list()}
    assert sorted(archive.stored) == sorted([f"{accepted} The heart[box].".encode(), f"{edited} Here[box].".encode()])
    assert states[rejected] == "rejected" and list(states.values()).count("answered") == 1


def test_all_answers_are_sent_where_that_is_wanted(tmp_path):
    archive = MemoryArchive()
    with listening(tmp_path, archive, "all") as running:
        running.take(encode(make_image()))
        until(lambda: running.worklist.counts()["sent"] == 1)
    assert len(archive.stored) == 1


def test_an_archive_is_polled_and_nothing_is_fetched_twice(tmp_path):
    images = {f"1.2.3.{n}": encode(make_image(n, Modality="CT" if n < 3 else "MR")) for n in (1, 2, 3)}
    archive = MemoryArchive(images)
    with listening(tmp_path, polled=archive) as running:
        answered(running, 2)
        archive.images["1.2.3.9"] = encode(make_image(9))
        answered(running, 3)
        assert running.counts["refused"] == 1  # of the other modality, which no rule asks about
    assert sorted(archive.fetched) == ["1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.9"]


class DamagedSeries(MemoryArchive):
    """An image of it is damaged, and one does not come now."""

    def fetch_series(self, series, skip=()):
        reasons = {uid: "why" for uid in ("1.2.3.4", "1.2.3.5") if uid not in skip}
        yield from super().fetch_series(series, skip)
        raise SeriesIncomplete(reasons, [uid for uid in reasons if uid == "1.2.3.4"])


def test_a_damaged_image_is_polled_and_told_once(tmp_path, capfd):
    archive = DamagedSeries({"1.2.3.1": encode(make_image(1))})
    with listening(tmp_path) as running:
        polled = PolledArchive(archive, running)
        for _ in range(2):
            polled.poll()
    told = [line for line in capfd.readouterr().err.splitlines() if line.endswith("why")]
    assert told == [
        "clinkd: instance 1.2.3.4: why",
        "clinkd: 2 images of a series did not come: instance 1.2.3.4: why",
        "clinkd: 1 images of a series did not come: instance 1.2.3.5: why",
    ]
    assert running.counts["refused"] == 1 and archive.fetched == ["1.2.3.1"]


def test_a_full_disk_is_out_of_resources(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with listening(tmp_path) as running:
        monkeypatch.setattr("clinkd.hospital.worklist.write_atomic", fail)
        with pytest.raises(StoreRefusal, match="no room left") as told:
            running.take(encode(make_image(1)))
        assert told.value.status == StoreStatus.OUT_OF_RESOURCES


def test_what_was_sent_is_not_sent_again_where_the_disk_is_full_meanwhile(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("clinkd.hospital.listen._RETRY_SECONDS", 0.02)
    archive = MemoryArchive()
    with listening(tmp_path, archive, "all") as running:
        with filling_disk(running.worklist) as fill:
            monkeypatch.setattr(archive, "store", lambda content: (archive.stored.append(content), fill()))
            running.take(encode(make_image()))
            until(lambda: archive.stored and running.troubles.told)
            time.sleep(0.2)  # ten tries
            with pytest.raises(StoreRefusal, match="^no room left to write"):
                running.take(encode(make_image(2)))
        until(lambda: running.worklist.counts()["sent"] == 1)
    assert len(archive.stored) == 1
    line = f"{tmp_path / 'work'}: no room left to write, or no right to (disk I/O error)"
    assert capfd.readouterr().err.splitlines() == [f"clinkd: {line}", f"clinkd: images are refused: {line}"]


def test_an_answer_that_a_full_disk_does_not_take_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("clinkd.hospital.listen._RETRY_SECONDS", 0.02)
    desk = ScriptedDesk()
    with listening(tmp_path, desk=desk) as running:
        with filling_disk(running.worklist) as fill:
            make_answer = desk.answer
            monkeypatch.setattr(desk, "answer", lambda *given: (fill(), make_answer(*given))[1])
            running.take(encode(make_image()))
            until(lambda: len(desk.asked) > 1)
            monkeypatch.undo()
        until(lambda: running.worklist.counts()["answered"] == 1)


def test_what_people_answered_better_becomes_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with listening(tmp_path) as running:
        for number in range(1, 5):
            running.take(encode(make_image(number, 64, PatientID=f"P{number}")))
        accepted, edited, rejected, worded = answered(running, 4)
        decide(running, accepted, "accepted")
        decide(running, rejected, "rejected")
        decide(running, edited, "edited", "Here[box].", (RIGHT,))
        decide(running, worded, "rejected", "There is no heart.")
        file = tmp_path / "work" / CORRECTIONS
        until(lambda: file.exists() and len(file.read_text().splitlines()) == 2)
    first, second = map(json.loads, file.read_text().splitlines())
    assert first["objects"] == [{"name": "heart", "box": [32.0, 16.0, 48.0, 64.0]}] and first["modality"] == "ct"
    assert second["qa"] == [{"question": "Where is the heart?", "answer": "There is no heart."}]
    assert main(["data", "import", str(file), "--out", "mydata", "--workers", "1"]) == 0
    assert "data     mydata: 3 samples of 2 images" in capsys.readouterr().out


def test_a_report_names_the_model_that_answered_and_not_the_one_that_runs_now():
    desk = ServedDesk(SimpleNamespace(limits=ServerLimits()), ("second", "v2"))  # type: ignore[arg-type]
    answer = ModelAnswer("The heart.", answered="2026-11-30T12:00:00+00:00", model="first", version="v1")
    place = ("1.2.1", "1.2.2", "1.2.3.1", 1)
    entry = WorklistEntry("id", "", *place, "CT", "", "ct", "Where is the heart?", "unsent", answer)
    try:
        report = str(dcmread(io.BytesIO(desk.write_report(entry, encode_image("CT")))))
    finally:
        desk.close()
    assert "first" in report and "second" not in report


@pytest.mark.parametrize("taken", ["--port", "--page-port"])
def test_no_address_is_told_where_a_port_is_taken_and_nothing_is_left(tmp_path, capsys, monkeypatch, taken):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = {"--port": "0", "--page-port": "0", taken: str(other.getsockname()[1])}
        words = ["pacs", "listen", "model", "--rules", "rules.yaml", *chain(*ports.items())]
        assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].endswith(
        f"cannot be taken (Address already in use); {taken} 0 takes a free one"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rules.yaml"]


@pytest.mark.parametrize("option", ["--to", "--poll"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_answers_are_not_sent_to_the_receiver_itself(tmp_path, capsys, host, option):
    (tmp_path / "rules.yaml").write_text(RULES)
    words = ["pacs", "listen", "--rules", str(tmp_path / "rules.yaml"), option, f"dicom://CLINKD@{host}:11112"]
    assert main(words) == 2
    assert f"{option} dicom://CLINKD@{host}:11112: that is this receiver itself" in capsys.readouterr().err

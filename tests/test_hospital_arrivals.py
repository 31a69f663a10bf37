"""The figures of listening: kills while images arrive, damaged files, and names that must not leave."""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from benchmarks.patience import Deadline, patience
from pydicom import Dataset, dcmread
from pydicom.tag import Tag

import processes
from arrivals import RULES, ScriptedDesk, associated, damage, encode, listen_until_killed, make_image
from clinkd.hospital.listen import Listening
from clinkd.hospital.rules import read_rules
from clinkd.hospital.worklist import Worklist, WorklistDecision
from clinkd.pacs import Receiver, ReceiverAddress
from listen_command import ListenCommand, ReportArchive
from orthanc import free_port

DOCS = Path(__file__).parents[1] / "docs" / "PACS.md"
FAILURES = (0xA700, 0xA900, 0xC000)
NOT_ASKED = 0xB006  # where the damage makes it another modality


class KilledService:
    """A listening process that is killed and started again."""

    def __init__(self, folder: Path) -> None:
        (folder / "archive").mkdir()
        self.folder, self.port = folder, free_port()
        self.process: Any = None

    def start(self) -> None:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        of_it = (listen_until_killed, self.folder, self.port, theirs)
        self.process = processes.start(self.folder / "log", {}, *of_it, server=processes.LISTENERS)
        theirs.close()
        assert ours.poll(patience(60)) and ours.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(patience(20))


def send(port: int, numbers: list[int], seconds: float) -> list[int]:
    """Those of the images that were answered with success within a time."""
    kept, end = [], time.monotonic() + seconds
    with associated(port) as association:
        association.dimse_timeout = seconds  # it waits so long for the reply of a receiver that was killed
        for number in numbers:
            if time.monotonic() > end or not association.is_established:
                break
            try:
                if getattr(association.send_c_store(make_image(number)), "Status", None) == 0:
                    kept.append(number)
            except RuntimeError:  # the connection ended just before
                break
    return kept


@pytest.mark.parametrize(("kills", "images"), [(2, 4), pytest.param(40, 200, marks=pytest.mark.slow)])
def test_nothing_is_lost_or_answered_twice_over_kills(tmp_path, kills, images):
    service, rng = KilledService(tmp_path), random.Random(kills)
    kept: set[int] = set()
    for _ in range(kills):
        service.start()
        threading.Timer(rng.uniform(0.02, 0.3), service.process.kill).start()
        wanted = [n for n in range(1, images + 1) if n not in kept][: 1 + images // kills * 2]
        kept |= set(send(service.port, wanted, 1.0))
        service.process.join(patience(20))
    service.start()
    kept |= set(send(service.port, [n for n in range(1, images + 1) if n not in kept], patience(60)))
    assert kept == set(range(1, images + 1))
    end = Deadline(patience(60))
    while len(list((tmp_path / "archive").iterdir())) < images + 1 and not end.passed():
        time.sleep(0.02)
    time.sleep(0.3)
    service.kill()
    worklist = Worklist(tmp_path / "work", "model")
    entries = worklist.list(limit=500)
    assert {int(e.instance.rpartition(".")[2]) for e in entries} == kept and len(entries) == images
    assert {e.state for e in entries} == {"sent"} and {e.revision for e in entries} == {3}  # answered, taken, sent
    assert len(list((tmp_path / "archive").iterdir())) == images + 1  # each object once, and the count of calls
    for entry in entries:
        assert dcmread(io.BytesIO(worklist.image(entry.id))).SOPInstanceUID == entry.instance
    worklist.close()


# ---- damaged files ---------------------------------------------------------------------------------------------------


def store_raw(association: Any, content: bytes, number: int) -> int | None:
    """The status of a data set that is sent as it is, of whatever bytes."""
    from pynetdicom.dimse_primitives import C_STORE

    request = C_STORE()
    request.MessageID, request.Priority = number % 65535 + 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{number}"
    request.DataSet = io.BytesIO(content)
    context = next(c for c in association.accepted_contexts if c.abstract_syntax == request.AffectedSOPClassUID)
    association._reactor_checkpoint.clear()  # as pynetdicom's own requests: its reactor would take the reply
    while not association._is_paused:
        time.sleep(0.001)
    association.dimse.send_msg(request, context.context_id)
    _, reply = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return getattr(reply, "Status", None)


@pytest.mark.parametrize("count", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_images_are_refused_with_a_status_and_nothing_ends(tmp_path, count, capfd):
    (tmp_path / "rules.yaml").write_text(RULES)
    worklist = Worklist(tmp_path / "work", "model")
    running = Listening(worklist, read_rules(tmp_path / "rules.yaml"))
    receiver, rng, statuses = Receiver(ReceiverAddress(port=0), running.take), random.Random(0), Counter[int | None]()
    port = receiver.start()
    with associated(port) as association:
        for number in range(1, count + 1):
            image = make_image(number)
            whole = encode(image)
            content = damage(whole[whole.index(b"\x08\0\x16\0UI") :], rng)
            status = store_raw(association, content, number)
            statuses[status] += 1
            if status == 0:  # a damage that no header shows: of the pixels, or of an element that nobody reads
                assert worklist.knows(f"1.2.3.{number}")
            else:
                assert status in (*FAILURES, NOT_ASKED) and not worklist.knows(f"1.2.3.{number}")
        assert association.is_established and association.send_c_echo().Status == 0
    receiver.stop()
    kept = worklist.counts()["waiting"]
    worklist.close()
    assert statuses[0] == kept < count / 2 and sum(statuses.values()) == count
    assert capfd.readouterr() == ("", "")


# ---- names that must not leave ---------------------------------------------------------------------------------------


def fill_with_canaries(image: Dataset) -> str:
    """Put one name into every element of text that an image may have."""
    from pydicom.datadict import DicomDictionary

    canary, taken = "CANARY", {"SpecificCharacterSet", "PhotometricInterpretation", "Modality"}
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        if keyword in taken or keyword in image or retired or Tag(tag).group in (0, 2, 4) or not keyword:
            continue
        if vr in ("PN", "LO", "SH", "ST", "LT", "UT", "UC", "CS", "AE"):
            setattr(image, keyword, f"{canary}^X" if vr == "PN" else canary)
    return canary


def test_no_name_leaves_the_images(tmp_path, capfd):
    (tmp_path / "rules.yaml").write_text(RULES)
    image = make_image(1)
    canary = fill_with_canaries(image)
    assert encode(image).count(canary.encode()) > 1000
    image.PixelPresentation = "MONOCHROME"
    worklist = Worklist(tmp_path / "work", "model")
    running = Listening(worklist, read_rules(tmp_path / "rules.yaml"))
    running.start(ScriptedDesk())
    receiver = Receiver(ReceiverAddress(port=0), running.take)
    with associated(receiver.start(), title=canary) as association:
        statuses = [association.send_c_store(image).Status]
        image.Modality = "MR"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3.2"
        refused = association.send_c_store(image)
        statuses.append(refused.Status)
        image.Rows = 4000
        statuses.append(association.send_c_store(image).Status)
    assert statuses == [0, 0xB006, 0xC000] and canary not in refused.ErrorComment
    end = Deadline(patience(20))
    while worklist.counts()["waiting"] and not end.passed():
        time.sleep(0.01)
    receiver.stop()
    running.stop()
    [entry] = worklist.list()
    assert entry.state == "answered" and entry.body_part == canary  # a word of the header that rules may ask for
    worklist.decide(entry.id, WorklistDecision("rejected", "none"), 1)
    shown = json.dumps([entry.id, entry.instance, entry.why, running.counts, receiver.outcomes, worklist.left_out])
    worklist.close()
    names = [path.name for path in tmp_path.rglob("*")]
    out, err = capfd.readouterr()
    assert canary not in shown + out + err + "\n".join(names)


# ---- the command, with a real model ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_answers_with_a_real_model_and_sends_what_a_person_accepts(small_run, tmp_path):
    """`clinkd pacs listen` in a process of its own, another receiver in the place of an archive, and the page's API."""
    archive, port = ReportArchive(), free_port()
    archive.go_on.set()
    with archive.running() as sends_to:
        words = ("--port", str(port), "--to", f"dicom://ORTHANC@127.0.0.1:{sends_to}")
        with ListenCommand(small_run, tmp_path, *words) as listener:
            listener.until_open(port)
            with associated(port) as association:
                assert [association.send_c_store(make_image(n, 64)).Status for n in (1, 2)] == [0, 0]
            listener.until(answered=2)
            first, second = listener.entries("answered")
            listener.decide(first, "accepted")
            listener.decide(second, "rejected")
            listener.until(sent=1)
    [report] = archive.stored
    assert report.Modality == "SR" and report.StudyInstanceUID == "1.2.1"
    [series] = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert [image.ReferencedSOPInstanceUID for image in series.ReferencedSOPSequence] == [first["instance"]]
    assert "Research use only" in listener.out and "only answers that a person accepted" in listener.out
    assert "Traceback" not in listener.out

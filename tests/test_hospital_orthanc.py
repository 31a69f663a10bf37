"""Listening beside a real archive, Orthanc: it sends whole studies, it is polled, and it gets answers."""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest

from arrivals import RULES, encode, make_image
from clinkd.hospital.listen import Listening
from clinkd.hospital.rules import read_rules
from clinkd.hospital.worklist import STATES, Worklist
from clinkd.pacs import Receiver, ReceiverAddress
from listen_command import ListenCommand
from orthanc import Orthanc

SR, SEG, MR, PRIVATE = (
    "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.4", "1.3.12.2.1107.5.9.1"
)  # fmt: skip


def make_study(orthanc: Orthanc, date: str = "20261130", study: str = "1.2.3") -> str:
    """Give it a study of two CT among other objects; how it calls the study. All UIDs begin with `study`."""
    kinds = [(SR, "SR"), (MR, "MR"), (PRIVATE, "OT"), ("", "CT"), (SEG, "SEG"), ("", "CT")]
    for number, (sop_class, modality) in enumerate(kinds, 1):
        image = make_image(number, 64, Modality=modality, PatientID="P", StudyDate=date, StudyID="1")
        if sop_class:
            image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
        image.StudyInstanceUID, image.SeriesInstanceUID = f"{study}.0", f"{study}.0.{4 if modality == 'CT' else number}"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{study}.{number}"
        if modality in ("SR", "OT"):
            del image.PixelData, image.Rows
        given = orthanc.get("/instances", encode(image))
    return str(given["ParentStudy"])


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    running = Orthanc(tmp_path / "orthanc", {"TranscodeDicomProtocol": False}).start()
    yield running
    running.stop()


@contextmanager
def receiving(folder: Path, port: int) -> Iterator[Listening]:
    (folder / "rules.yaml").write_text(RULES)
    worklist = Worklist(folder / "work", "model")
    running = Listening(worklist, read_rules(folder / "rules.yaml"))
    receiver = Receiver(ReceiverAddress(port=port), running.take)
    receiver.start()
    try:
        yield running
    finally:
        receiver.stop()
        worklist.close()


def send(orthanc: Orthanc, resource: str) -> dict[str, object]:
    """Have a study sent to CLINKD as its "send" button does, which ends at the first failure."""
    order = {"Resources": [resource], "Synchronous": True}
    return dict(orthanc.get("/modalities/clinkd/store", json.dumps(order).encode()))


@pytest.mark.slow
def test_an_archive_sends_a_whole_study_and_what_nobody_asks_about_is_counted(orthanc: Orthanc, tmp_path: Path) -> None:
    study = make_study(orthanc)
    with receiving(tmp_path, orthanc.receive_port) as running:
        sent = send(orthanc, study)
        assert (sent["InstancesCount"], sent["FailedInstancesCount"]) == (6, 0)
        assert {entry.instance for entry in running.worklist.list()} == {"1.2.3.4", "1.2.3.6"}
        assert running.worklist.left_out == {"SR": 1, "MR": 1, "OT": 1, "SEG": 1}


@pytest.mark.slow
def test_an_archive_is_told_of_a_damaged_image(orthanc: Orthanc, tmp_path: Path) -> None:
    image = make_image(1, Rows=4000, PatientID="P", StudyID="1")
    instance = orthanc.get("/instances", encode(image))["ID"]
    with receiving(tmp_path, orthanc.receive_port) as running:
        with pytest.raises(urllib.error.HTTPError):
            send(orthanc, instance)
        assert running.counts["images"] == 0 and not running.worklist.left_out


# ---- the command, with a real model ----------------------------------------------------------------------------------


def list_reports(orthanc: Orthanc) -> list[str]:
    """The SOP Instance UIDs of reports that it was given beside the one of the study."""
    order = {"Level": "Instance", "Query": {"Modality": "SR"}, "Expand": True}
    found = orthanc.get("/tools/find", json.dumps(order).encode())
    return sorted({one["MainDicomTags"]["SOPInstanceUID"] for one in found} - {"1.2.3.1", "1.2.9.1"})


@pytest.mark.slow
@pytest.mark.parametrize("way", ["web", "dicom"])
def test_an_archive_is_polled_and_gets_what_a_person_accepted(
    orthanc: Orthanc, small_run: Path, tmp_path: Path, way: str
) -> None:
    address, today = getattr(orthanc, way), date.today().strftime("%Y%m%d")
    make_study(orthanc, today)
    make_study(orthanc, "20200101", study="1.2.9")
    with ListenCommand(small_run, tmp_path, "--poll", address, "--every", "1", "--to", address) as listener:
        listener.until(answered=2)
        orthanc.get("/instances", encode(make_image(99, 64, PatientID="P", StudyDate=today)))
        listener.until(answered=3)
        assert list_reports(orthanc) == []
        listener.accept()
        listener.until(answered=2, sent=1)
        time.sleep(3)  # polls that find nothing new, and no answer of our own
        assert listener.counts() == {state: {"answered": 2, "sent": 1}.get(state, 0) for state in STATES}
    assert len(list_reports(orthanc)) == 1
    assert "polls    every 1 s" in listener.out and "page     http" in listener.out


@pytest.mark.slow
def test_every_answer_goes_to_the_archive_once_where_that_is_wanted(
    orthanc: Orthanc, small_run: Path, tmp_path: Path
) -> None:
    study, port = make_study(orthanc), str(orthanc.receive_port)
    for start in range(2):  # the second start, and the same study, change nothing
        with ListenCommand(small_run, tmp_path, "--port", port, "--send", "all", "--to", orthanc.dicom) as listener:
            listener.until(waiting=0)
            sent = send(orthanc, study)
            assert sent["FailedInstancesCount"] == 0
            listener.until(sent=2)
            kept = list_reports(orthanc)
            assert len(kept) == 2
            left_out = listener.client.get("/v1/worklist").json()["left_out"]
            assert left_out == {"SR": 1 + 2 * start, "MR": 1, "OT": 1, "SEG": 1}  # our own reports, too
        assert "sends    EVERY answer, also those that nobody has seen" in listener.out
        assert "not kept 1 MR, 1 OT, 1 SEG," in listener.out

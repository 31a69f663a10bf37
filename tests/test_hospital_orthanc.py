"""Listening beside a real archive, Orthanc: it sends whole studies, it is polled, and it gets answers."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arrivals import RULES, encode, make_image
from clinkd.hospital.listen import Listening
from clinkd.hospital.rules import read_rules
from clinkd.hospital.worklist import Worklist
from clinkd.pacs import Receiver, ReceiverAddress
from orthanc import Orthanc

SR, SEG, MR, PRIVATE = (
    "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.4", "1.3.12.2.1107.5.9.1"
)  # fmt: skip


def make_study(orthanc: Orthanc, date: str = "20261130") -> str:
    """Give it a study of two CT among other objects; how it calls the study."""
    kinds = [(SR, "SR"), (MR, "MR"), (PRIVATE, "OT"), ("", "CT"), (SEG, "SEG"), ("", "CT")]
    for number, (sop_class, modality) in enumerate(kinds, 1):
        image = make_image(number, 64, Modality=modality, PatientID="P", StudyDate=date, StudyID="1")
        if sop_class:
            image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
        image.SeriesInstanceUID = f"1.2.2.{(modality == 'CT' and 4) or number}"
        if modality in ("SR", "OT"):
            del image.PixelData, image.Rows
        study = orthanc.get("/instances", encode(image))["ParentStudy"]
    return str(study)


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

"""The listening verb is told to end in the middle of its work: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks.patience import patience

from arrivals import associated, encode, make_image
from listen_command import ListenCommand, ReportArchive
from orthanc import free_port
from test_pacs_receiver import command, pdu, raw

QUESTIONS = "ct:\n  modality: CT\n  questions:\n" + "".join(f"    - Where is structure {n}?\n" for n in range(20))
CODES = {signal.SIGINT: (130, "stopped"), signal.SIGTERM: (143, "asked to end")}


def begin_to_send(association: Any, number: int) -> None:
    """The first half of an image, of which the other never comes."""
    image = make_image(number, 64)
    context = association.accepted_contexts[0].context_id
    names = {"AffectedSOPClassUID": image.SOPClassUID, "AffectedSOPInstanceUID": image.SOPInstanceUID}
    peer = raw(association)
    peer.sendall(command(0x0001, CommandDataSetType=1, Priority=0, **names))
    half = encode(image)[400:4000]
    peer.sendall(pdu(4, (len(half) + 2).to_bytes(4, "big") + bytes([context, 0]) + half))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_listener_that_is_told_to_end_loses_nothing_and_does_nothing_twice(
    small_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """While an answer is made, an image is received, and a report is sent. At Ctrl-C the archive answers in time, at
    SIGTERM it is silent until the listener has ended."""
    port, archive, answers_in_time = free_port(), ReportArchive(), number == signal.SIGINT
    with archive.running() as sends_to:
        words = ("--port", str(port), "--to", f"dicom://ORTHANC@127.0.0.1:{sends_to}")
        with ListenCommand(small_run, tmp_path, *words, rules=QUESTIONS) as listener:
            listener.until_open(port)
            with associated(port) as association:
                assert [association.send_c_store(make_image(n, 64)).Status for n in (1, 2, 3)] == [0] * 3
            while not listener.counts()["answered"]:
                time.sleep(0.05)
            listener.accept()
            assert archive.begun.wait(patience(20))
            with associated(port) as half:
                begin_to_send(half, 4)
                if answers_in_time:
                    threading.Timer(0.5, archive.go_on.set).start()
                listener.end(number)
        code, words_at_end = CODES[number]
        assert listener.code == code
        told = [line for line in listener.out.splitlines() if line.startswith("clinkd: ")]
        assert told == [
            f"clinkd: {words_at_end}; what arrived, was answered and decided is kept, and the same command goes on "
            "from there"
        ]
        archive.go_on.set()
        with ListenCommand(small_run, tmp_path, *words, rules=QUESTIONS) as listener:
            listener.until_open(port)
            listener.until(sent=1)
            with associated(port) as association:
                assert [association.send_c_store(make_image(n, 64)).Status for n in (3, 4)] == [0] * 2
            listener.until(waiting=0, sent=1, answered=4 * 20 - 1, failed=0)
            assert {entry["revision"] for entry in listener.entries("answered")} == {1}
    assert " waiting" in next(line for line in listener.out.splitlines() if line.startswith("worklist "))
    assert len(archive.stored) == (1 if answers_in_time else 2)
    assert len({report.SOPInstanceUID for report in archive.stored}) == 1

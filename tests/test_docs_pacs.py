"""docs/PACS.md: its commands, given to a real archive, print what stands below them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from tests.orthanc import Orthanc
from tests.pacs_peers import OTHER_STUDY, make_image, to_bytes
from tests.test_hospital_push import record_of, write_answers

from clinkd.cli import main
from clinkd.hospital.pull import NO_IMAGES
from clinkd.pacs.addresses import OWN_TITLE, RECEIVE_PORT
from clinkd.pacs.connect import PASSWORD, TOKEN, USER
from clinkd.version import spell_program

TEXT = (Path(__file__).parents[1] / "docs" / "PACS.md").read_text(encoding="utf-8")
BLOCKS = [*re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S), ("", "")]
ELSEWHERE = ("pip", "make", "Orthanc")  # the installation, and what the test starts itself


def test_the_commands_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # as through a pipe, whatever runs the tests
    (tmp_path / "files").mkdir()
    images = [make_image(1, number) for number in (1, 2, 3)] + [make_image(2, 1, Modality="MR")]
    images += [make_image(3, 1, Modality="SR"), make_image(1, 1, OTHER_STUDY, AccessionNumber="B200")]
    for number, image in enumerate(images):
        (tmp_path / "files" / f"{number}.dcm").write_bytes(to_bytes(image))
    config = json.loads(next(block for kind, block in BLOCKS if kind == "json"))
    archive = Orthanc(tmp_path / "orthanc")
    ports = {"8042": str(archive.http_port), "4242": str(archive.dicom_port)}
    user, password = next(iter(config["RegisteredUsers"].items()))
    archive.user, archive.password = user, password
    archive.options = {k: v for k, v in config.items() if not k.endswith(("Port", "Directory")) and k != "Plugins"}
    archive.start()
    try:
        for number, (kind, block) in enumerate(BLOCKS):
            if kind != "sh" or block.startswith(ELSEWHERE):
                continue
            if block.startswith("clinkd ask"):  # there is no run here: another answers
                images = sorted(str(p.relative_to("scans")) for p in Path("scans").rglob("*.dcm"))
                write_answers(tmp_path, [record_of(Path("scans"), n, image) for n, image in enumerate(images)])
                continue
            program, *words = shlex.split(re.sub("8042|4242", lambda match: ports[match[0]], block))
            if program == "export":
                for word in words:
                    monkeypatch.setenv(*word.split("=", 1))
            elif program == "clinkd":
                assert main(words) == 0
            else:
                subprocess.run([program, *words], check=True, capture_output=True)
            said = capfd.readouterr().out.replace(f" {spell_program()} ", " clinkd ")  # however the tests were started
            printed = {" ".join(line.split()) for line in said.splitlines()}
            follows, expected = BLOCKS[number + 1]
            if follows == "text":
                assert {" ".join(line.split()) for line in expected.splitlines()} <= printed, printed
    finally:
        archive.stop()
    assert len(list((tmp_path / "scans").rglob("*.dcm"))) == 5


def test_names_and_numbers_are_those_there_are() -> None:
    for name in (TOKEN, USER, PASSWORD, OWN_TITLE, str(RECEIVE_PORT)):
        assert name in TEXT
    assert {"SR", "SEG", "RTSTRUCT", "DOC"} <= NO_IMAGES

"""clinkd pacs pull: whole files under their UIDs, each fetched once, and a sheet that keeps what a person wrote."""

from __future__ import annotations

import contextlib
import csv
import resource
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.orthanc import PASSWORD, USER, Orthanc
from tests.pacs_peers import (
    CANARIES,
    OTHER_STUDY,
    STUDY,
    Answer,
    Peer,
    as_json,
    as_part,
    make_image,
    misbehaving_web,
    to_bytes,
)

from clinkd.cli import main
from clinkd.hospital import pull as pulling
from clinkd.hospital.image_sheet import SHEET, add_to_sheet

SMALL_DISK = 200_000  # bytes of one file


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLINKD_PACS_USER", USER)
    monkeypatch.setenv("CLINKD_PACS_PASSWORD", PASSWORD)
    monkeypatch.delenv("COLUMNS", raising=False)  # as through a pipe, whatever runs the tests
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    images = [make_image(1, number) for number in (1, 2, 3)] + [make_image(2, 1, Modality="MR")]
    images.append(make_image(3, 1, Modality="SR"))
    images.append(make_image(1, 1, OTHER_STUDY, PatientID="MRN-78", AccessionNumber="B200"))
    with Peer(images=images).listening() as archive:
        yield archive


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    archive = Orthanc(tmp_path / "orthanc").start()
    try:
        yield archive
    finally:
        archive.stop()


def give(capfd: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    """Exit status, output and errors of `clinkd pacs pull`, without a word of a patient's."""
    status = main(["pacs", "pull", *map(str, words), "--out", "scans"])
    told = capfd.readouterr()
    assert not any(word in told.out + told.err for word in CANARIES), told
    return status, told.out, told.err


def files(folder: Path = Path("scans")) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def rows(path: Path = Path("scans") / SHEET) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


CT_FILES = [f"{STUDY}/{STUDY}.1/{STUDY}.1.{number}.dcm" for number in (1, 2, 3)]
MR_FILE = f"{STUDY}/{STUDY}.2/{STUDY}.2.1.dcm"


def test_images_are_filed_once_with_a_sheet_that_is_imported(peer: Peer, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = give(capfd, peer.address, "--accession", "A100")
    assert status == 0 and files() == [*CT_FILES, MR_FILE, SHEET]
    assert "note     left out: 1 series SR, which are no images; --modality SR fetches them" in out
    assert "pulled   scans: 4 files (0 MB) of 2 series in 1 study; 0 were there before" in out
    assert "pull: 4/4 files" in err
    assert [row["image"] for row in rows()] == [*CT_FILES, MR_FILE]
    assert {row["modality"] for row in rows()} == {"ct", "mr"} and len({row["patient"] for row in rows()}) == 1
    assert all((Path("scans") / name).stat().st_mode & 0o77 == 0 for name in files())
    peer.requests.clear()
    status, out, _ = give(capfd, peer.address, "--accession", "A100")
    assert status == 0 and "pulled   scans: 0 files (0 MB) of 2 series in 1 study; 4 were there before" in out
    assert not any(request.startswith("get") for request in peer.requests)
    lines = (Path("scans") / SHEET).read_text().splitlines()
    lines[1] = lines[1].replace("16,16,,,,,,,", "16,16,Is there a nodule?,no,nodule,1,2,9,9")
    (Path("scans") / SHEET).write_text("\n".join(lines))
    command = next(line for line in out.splitlines() if line.startswith("next")).split("clinkd ", 1)[1]
    assert main([*shlex.split(command), "--workers", "1"]) == 0
    assert "mydata: 3 samples of 1 images" in capfd.readouterr().out


def test_a_key_that_every_user_can_read_is_told(peer: Peer, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "key.pem").write_text("of no meaning: the connection is in the clear")
    note = "note     --key key.pem: every user of this machine can read it; chmod 600 key.pem\n"
    for mode, told in ((0o644, note), (0o640, "")):
        (here / "key.pem").chmod(mode)
        words = ("--accession", "A100", "--dry-run", "--certificate", "key.pem", "--key", "key.pem")
        status, out, _ = give(capfd, peer.address, *words)
        assert status == 0 and out.partition("note     left out")[0] == told


def test_a_dry_run_tells_what_would_come_and_writes_nothing(peer: Peer, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = give(capfd, peer.address, "--accession", "A100", "--dry-run")
    assert status == 0 and not Path("scans").exists()
    assert "would be 4 files of 2 series in 1 study; 0 are there" in out
    assert [line.split() for line in out.splitlines() if f"{STUDY}." in line] == [
        [STUDY, f"{STUDY}.1", "CT", "3", "0"], [STUDY, f"{STUDY}.2", "MR", "1", "0"],
    ]  # fmt: skip


def test_what_matches_nothing_is_an_error_and_so_is_the_whole_archive(
    peer: Peer, capfd: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["--accession", "NONE"], "no study matches; an archive compares numbers and IDs letter by letter"),
        ([], "every study of the archive would come: name some, by --study"),
        (["--limit", "3"], "every study of the archive would come"),
        (["--accession", "A*"], "accession: one exact value"),
        (["--date", "gestern"], "date = gestern: a day is wanted"),
        (["--accession", "A100", "--timeout", "0"], "--timeout 0"),
        (["--accession", "A100", "--port", "70000"], "receive port = 70000"),
    ):
        status, _, err = give(capfd, peer.address, *words)
        assert status == 2 and told in err and err.count("\n") == 1, err
    assert not Path("scans").exists()


def test_a_limit_takes_so_many_studies_and_says_that_there_are_more(
    peer: Peer, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = give(capfd, peer.address, "--modality", "CT", "--limit", "1")
    assert status == 0 and files() == [*CT_FILES, SHEET] and "more studies match than --limit takes" in out
    status, out, _ = give(capfd, peer.address, "--modality", "CT", "--limit", "2")
    assert len(rows()) == 4 and "more studies" not in out and "3 were there before" in out


# ---- the sheet ------------------------------------------------------------------------------------------------------


def fill_folder(*numbers: int) -> None:
    for number in numbers:
        path = Path("scans") / STUDY / f"{STUDY}.1" / f"{STUDY}.1.{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_bytes(make_image(1, number)))


@pytest.mark.parametrize(
    ("encoding", "separator", "end"),
    [("utf-8", ",", "\n"), ("utf-8-sig", ";", ""), ("cp1252", ";", "\r\n"), ("utf-16", "\t", "")],
)
def test_what_a_person_wrote_stays_to_the_byte(encoding: str, separator: str, end: str) -> None:
    fill_folder(1, 2)
    head = ["reader", "image", "question", "answer"]  # of hers; some of ours she has deleted
    old = "\r\n".join(map(separator.join, [head, ["Frau Müller", CT_FILES[0], "Gibt es Ödeme?", "nein"]])) + end
    content = old.encode(encoding)
    (Path("scans") / SHEET).write_bytes(content)
    added = add_to_sheet(Path("scans"))
    assert added.lines == 1 and added.problems == []
    now = (Path("scans") / SHEET).read_bytes()
    assert now.startswith(content)
    read = now.decode(encoding).split("\r\n" if end != "\n" else "\n")
    lines = [line.strip("\r").split(separator) for line in read if line]
    assert lines[-1] == ["", CT_FILES[1], "", ""] and len(lines) == 3
    assert add_to_sheet(Path("scans")).lines == 0 and (Path("scans") / SHEET).read_bytes() == now


def test_a_sheet_that_cannot_be_read_is_left_alone(peer: Peer, capfd: pytest.CaptureFixture[str]) -> None:
    fill_folder(1)
    for content, told in ((b"Bild,Frage\na,b\n", "has no column image"), (b'image\n"a\n', "not CSV")):
        (Path("scans") / SHEET).write_bytes(content)
        status, _, err = give(capfd, peer.address, "--accession", "A100")
        assert status == 2 and told in err and (Path("scans") / SHEET).read_bytes() == content


def test_what_is_no_image_has_no_line(capfd: pytest.CaptureFixture[str]) -> None:
    fill_folder(1, 2)
    damaged = Path("scans") / CT_FILES[1]
    damaged.write_bytes(damaged.read_bytes()[:-200])
    report = make_image(1, 3, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33")
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
    (Path("scans") / CT_FILES[2]).write_bytes(to_bytes(report))
    added = add_to_sheet(Path("scans"))
    assert (added.lines, added.annotations, len(added.problems)) == (1, 1, 1)
    assert added.problems[0].startswith(f"{CT_FILES[1]}: ") and not any(word in added.problems[0] for word in CANARIES)


def test_what_shows_no_image_is_counted_and_no_problem() -> None:
    fill_folder(1, 2, 3)
    for name, sop_class in zip(CT_FILES[:2], ("1.2.840.10008.5.1.4.1.1.104.1", "1.3.12.2.1107.5.9.1"), strict=True):
        paper = make_image(1, 1, SOPClassUID=sop_class)
        del paper.PixelData, paper.Rows
        (Path("scans") / name).write_bytes(to_bytes(paper))
    added = add_to_sheet(Path("scans"))
    assert (added.lines, added.others, added.problems) == (1, 2, [])


# ---- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["web", "dicom"])
def test_a_pull_from_an_archive_that_is_killed_goes_on_where_it_was(
    orthanc: Orthanc, way: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from clinkd.pacs import connect

    for number in range(1, 13):
        connect(orthanc.web).store(to_bytes(make_image(1, number)))
    write_atomic = pulling.write_atomic

    def write_and_kill(*given: Any) -> None:
        write_atomic(*given)
        if len(files()) == 3:
            orthanc.stop()

    words = [getattr(orthanc, way), "--accession", "A100", "--timeout", "10"]
    monkeypatch.setattr(pulling, "write_atomic", write_and_kill)
    status, _, err = give(capfd, *words)
    line = err.splitlines()[-1]
    assert status == 2 and ("connection was lost" in line or "cannot be reached" in line), err
    came = files()
    assert 3 <= len(came) < 12 and all(name.endswith(".dcm") for name in came)
    monkeypatch.setattr(pulling, "write_atomic", write_atomic)
    status, _, err = give(capfd, *words)
    assert status == 2 and "cannot be reached" in err and files() == came
    orthanc.start()
    status, out, _ = give(capfd, *words)
    assert status == 0 and f"pulled   scans: {12 - len(came)} files" in out and f"{len(came)} were there before" in out
    assert len(files()) == 13 and len(rows()) == 12
    for name in came:
        assert (Path("scans") / name).read_bytes()[128:132] == b"DICM"


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_DISK, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_what_came_stays(capfd: pytest.CaptureFixture[str]) -> None:
    large = make_image(1, 2, Rows=512, Columns=512, PixelData=bytes(512 * 512 * 2))
    with Peer(images=[make_image(1, 1), large, make_image(1, 3)]).listening() as peer:
        with small_disk():
            status, _, err = give(capfd, peer.address, "--study", STUDY)
        line = err.splitlines()[-1]
        assert status == 2 and "no room left to write" in line and "same command to go on" in line
        assert files() == CT_FILES[:1]
        status, out, _ = give(capfd, peer.address, "--study", STUDY)
        assert status == 0 and files() == [*CT_FILES, SHEET] and "1 were there before" in out


def test_one_damaged_image_does_not_keep_the_others_back(capfd: pytest.CaptureFixture[str]) -> None:
    bodies = {CT_FILES[0]: to_bytes(make_image(1, 1)), CT_FILES[1]: b"junk", CT_FILES[2]: to_bytes(make_image(9, 9))}

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        path = path.partition("?")[0]
        if path.endswith("/studies"):
            return as_json({"StudyInstanceUID": STUDY})
        if path.endswith("/series"):
            return as_json(*({"SeriesInstanceUID": f"{STUDY}.{n}", "Modality": "CT"} for n in (1, 2)))
        if path.endswith(f"{STUDY}.2/instances"):
            return 500, {}, b"Canary^Anna"
        if path.endswith("/instances"):
            return as_json(
                {"SOPInstanceUID": f"{STUDY}.1.4"}, *({"SOPInstanceUID": Path(name).stem} for name in bodies)
            )
        if path.endswith(".1.4"):
            return 404, {}, b"Canary^Anna"
        return as_part(next(body for name, body in bodies.items() if path.endswith(Path(name).stem)))

    with misbehaving_web(answer) as address:
        status, out, err = give(capfd, address, "--study", STUDY)
    assert status == 2 and files() == [CT_FILES[0], SHEET] and len(rows()) == 1
    assert "pulled   scans: 1 file (0 MB) of 2 series in 1 study; 0 were there before; 4 problems" in out
    for told in (
        f"instance {STUDY}.1.2: not a whole DICOM file",
        f"instance {STUDY}.1.3: the archive sent another image",
        f"instance {STUDY}.1.4: 127.0.0.1",
        f"series {STUDY}.2: 127.0.0.1",
    ):
        assert told in err


def test_where_nothing_comes_nothing_is_made(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Peer(images=[make_image()], gets=False).listening() as peer:  # it offers no C-MOVE, either
        status, out, err = give(capfd, peer.address, "--accession", "A100")
        assert status == 2 and not (here / "scans").exists() and "pulled   scans: 0 files" in out
        assert "1 of 1 images of a series did not come: it does not offer this operation (status 0211)" in err
        (here / "scans").write_text("")
        status, _, err = give(capfd, peer.address, "--accession", "A100")
        assert status == 2 and "--out scans: is no folder" in err

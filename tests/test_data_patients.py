"""Patients nobody told: words for nobody, ids in the names of files, numbers spelled in two ways."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.test_data_dicom import write

from clinkd.data.checks.check import Checker, Checks, Findings
from clinkd.data.importing import Division, import_data
from clinkd.data.patients import names_nobody, note_patients
from clinkd.data.readers.dicom_folder import list_sheet_lines
from clinkd.data.readers.forms import read_rows, read_samples
from clinkd.data.readers.source import NAMELESS_NOTE, Source
from clinkd.records import BadInput, Modality, Task
from clinkd.reporting.survey import write_survey_page


@pytest.mark.parametrize(
    "text",
    ["", " ", "ANONYMOUS", "anon", "Anonymized", "anonymised^patient", "REMOVED", "unknown", "UNKNOWN PATIENT", "XXX",
     "de-identified", "not available", "Anonym", "-", "PatientID", "none"],
)  # fmt: skip
def test_words_for_nobody(text: str) -> None:
    assert names_nobody(text)


@pytest.mark.parametrize("text", ["0", "7", "p1", "ANON-0012", "patient 3", "A", "X", "Müller", "unknown-2", "none1"])
def test_what_may_be_a_patient(text: str) -> None:
    assert not names_nobody(text)


def suggest(*paths: str) -> tuple[str, set[str], int] | None:
    """The suggested flag, the parts that it finds, and how many images share one; the stated numbers are checked."""
    notes = list(note_patients({path: path for path in paths}, None))
    if not notes:
        return None
    ((text, count),) = notes
    stated = re.search(r"give (--group .*) \((\d+) groups of (\d+) images\)$", text)
    assert stated and "\n" not in text and int(stated[3]) == len(paths)
    _, flag = shlex.split(stated[1])
    found = [re.search(flag, path) for path in paths]
    parts = {(m[1] or m[0]) for m in found if m}
    assert all(found) and len(parts) == int(stated[2])
    return flag, parts, count


@pytest.mark.parametrize(
    ("paths", "parts", "count"),
    [
        # NIH ChestX-ray14, in the shelves of its archives
        (["images_001/images/00000001_000.png", "images_001/images/00000001_001.png",
          "images_002/images/00004968_003.png"], {"00000001", "00004968"}, 2),
        (["p10_s3_v1.png", "p10_s4_v1.png", "p11_s3_v1.png", "p11_s3_v2.png"], {"p10", "p11"}, 4),
        (["1.2.840.1.7-1.png", "1.2.840.1.7-2.png", "1.2.840.1.8-1.png"], {"1.2.840.1.7", "1.2.840.1.8"}, 2),
        # CheXpert
        (["train/patient00001/study1/view1_frontal.jpg", "train/patient00001/study2/view1_frontal.jpg",
          "train/patient00002/study1/view1_frontal.jpg"], {"patient00001", "patient00002"}, 2),
        # MIMIC-CXR-JPG: the folder p10 is a shelf
        (["files/p10/p10000032/s50414267/a.jpg", "files/p10/p10000032/s53189527/b.jpg",
          "files/p11/p11000011/s51029426/c.jpg"], {"p10000032", "p11000011"}, 2),
        # DeepLesion
        (["Images_png/000001_01_01/103.png", "Images_png/000001_02_01/104.png", "Images_png/000002_01_01/1.png"],
         {"000001", "000002"}, 2),
        (["BRATS_001_z12.png", "BRATS_001_z13.png", "BRATS_002_z12.png"], {"BRATS_001", "BRATS_002"}, 2),
        (["site1_p10_3.png", "site1_p10_4.png", "site2_p11_3.png"], {"site1_p10", "site2_p11"}, 2),
        (["a/p1_1.png", "a/p1_2.png", "b/p2_1.png", "b/other.png"], {"p1", "p2", "b/other.png"}, 2),
        (["case 1 a.png", "case 1 b.png", "case 2 a.png"], {"case 1", "case 2"}, 2),
    ],
)  # fmt: skip
def test_a_shared_id_in_the_names_is_told_with_the_flag_that_parts_them(
    paths: list[str], parts: set[str], count: int
) -> None:
    suggestion = suggest(*paths)
    assert suggestion is not None
    assert suggestion[1:] == (parts, count)


@pytest.mark.parametrize(
    "paths",
    [
        ["0001.png", "0002.png", "0003.png"],
        ["ISIC_0000001.jpg", "ISIC_0000002.jpg"],
        ["images_001/1.png", "images_001/2.png", "images_002/3.png", "images_002/4.png"],
        ["train_1.png", "train_2.png", "test_1.png", "test_2.png"],
        ["covid19_1.png", "covid19_2.png", "normal_1.png", "normal_2.png"],
        ["2021-01-02_a.png", "2021-01-02_b.png", "2022-01-02_c.png"],
        ["site1_1.png", "site1_2.png", "site2_1.png"],
        ["xmlab1/source.jpg", "xmlab2/source.jpg"],
        ["0004cf85-14cd-4a87.dcm", "000924cf-0f8d-42bd.dcm"],
        ["a/b.png", "a/c.png", "one.png"],
    ],
)
def test_names_that_part_nothing_are_not_told(paths: list[str]) -> None:
    assert suggest(*paths) is None


def read_and_check(source: Source) -> Findings:
    """Rows and headers alone: no pixel is decoded."""
    checker = Checker(Checks(), None)
    for result in read_rows(source, checker.findings.notes):
        checker.check_row(result)
    return checker.close()


def write_sheet(folder: Path, *lines: str, head: str = "image,question,answer,modality,patient") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "s.csv").write_text("\n".join([head, *lines]) + "\n")
    return folder / "s.csv"


def find_groups(source: Source) -> list[str]:
    return [sample.group for sample in read_samples(source, Counter())]


def test_a_sheet_without_patients_is_told_until_it_has_them(tmp_path: Path) -> None:
    names = ["00000001_000.png", "00000001_001.png", "00000002_000.png"]
    lines = [f"{name},Q{k}?,It is.,ct" for k, name in enumerate(names)]
    file = write_sheet(tmp_path, *[f"{line}," for line in lines])
    closed = Source(file, open_images=False)
    (note,) = [note for note in read_and_check(closed).notes if "--group" in note]
    flag = shlex.split(note)[shlex.split(note).index("--group") + 1]
    grouped = Source(file, open_images=False, group=flag)
    assert find_groups(grouped) == ["00000001", "00000001", "00000002"]
    assert not any("patient" in note for note in read_and_check(grouped).notes)
    file = write_sheet(tmp_path, *[f"{line},{p}" for line, p in zip(lines, "aab", strict=True)])
    assert not any("patient" in note for note in read_and_check(closed).notes)


def test_one_patient_for_all_is_told(tmp_path: Path) -> None:
    file = write_sheet(tmp_path, *[f"{k}.png,Q{k}?,It is.,ct,X7" for k in range(3)])
    (note,) = read_and_check(Source(file, open_images=False)).notes.items()
    assert note[1] == 3 and "all in this source" in note[0] and "empty it in your file" in note[0]
    grouped = write_sheet(tmp_path, *[f"{k}.png,Q{k}?,It is.,ct," for k in range(3)])
    (note,) = read_and_check(Source(grouped, open_images=False, group=r"\.png")).notes.items()
    assert note[0].endswith("change --group")


def test_a_word_for_nobody_in_a_sheet_is_no_patient(tmp_path: Path) -> None:
    file = write_sheet(tmp_path, *[f"{k}.png,Q{k}?,It is.,ct,Unknown" for k in range(3)])
    source = Source(file, open_images=False)
    assert find_groups(source) == ["0.png", "1.png", "2.png"]
    assert read_and_check(source).notes == {
        "images have the patient 'Unknown', which names nobody; taken as if it were empty": 3
    }
    write_sheet(tmp_path, *[f"{k}.png,Q{k}?,It is.,ct,{p}" for k, p in enumerate(["unknown", "unknown", "p1"])])
    assert find_groups(source) == ["unknown", "unknown", "p1"]
    assert read_and_check(source).notes == {
        "images have the patient 'unknown', which names nobody; kept together as one": 2
    }


# ---- DICOM ----------------------------------------------------------------------------------------------------------


def write_dicoms(root: Path, count: int, **elements: Any) -> Path:
    """A sheet and files; two neighbours are of one study."""
    root.mkdir()
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 200, (8, 8), np.uint8)
        write(root / f"{k}.dcm", pixels, StudyInstanceUID=f"1.2.{k // 2}", **elements)
    return write_sheet(root, *[f"{k}.dcm,Q{k}?,A" for k in range(count)], head="image,question,answer")


@pytest.mark.parametrize("patient", ["ANONYMOUS", "anon", "", "0", "000", "Unknown", "REMOVED", "XXXX"])
def test_a_header_with_a_word_for_nobody_names_no_patient(tmp_path: Path, patient: str) -> None:
    source = Source(write_dicoms(tmp_path / "a", 6, PatientID=patient))
    groups = find_groups(source)
    assert groups[::2] == groups[1::2] and len(set(groups)) == 3
    assert read_and_check(source).notes[NAMELESS_NOTE] == 6


def test_a_modality_that_contradicts_the_header_is_told(tmp_path: Path) -> None:
    file = write_dicoms(tmp_path / "a", 2, Modality="MR")
    notes: Counter[str] = Counter()
    assert {s.modality for s in read_samples(Source(file, modality=Modality.CT), notes)} == {Modality.CT}
    assert notes["images are mr by their header; --modality ct is taken where no row says it"] == 2
    write_sheet(file.parent, "0.dcm,Q?,yes,ct", "1.dcm,Q?,yes,mr", head="image,question,answer,modality")
    notes.clear()
    assert [s.modality for s in read_samples(Source(file), notes)] == [Modality.CT, Modality.MR]
    assert notes["images are mr by their header and ct in the sheet, which is taken"] == 1


def test_every_form_keeps_the_patients_and_studies_of_headers(tmp_path: Path) -> None:
    root = write_dicoms(tmp_path / "a", 4, PatientID="anon").parent
    expected = find_groups(Source(root / "s.csv"))
    box = {"bbox": [1, 1, 4, 4], "category_id": 1}
    coco = {
        "images": [{"id": k, "file_name": f"{k}.dcm", "width": 8, "height": 8} for k in range(4)],
        "annotations": [{"id": k, "image_id": k, **box} for k in range(4)],
        "categories": [{"id": 1, "name": "lung"}],
    }
    rows = {
        "vqa": [{"image": f"{k}.dcm", "question": f"Q{k}?", "answer": "A"} for k in range(4)],
        "sharegpt": [
            {
                "image": f"{k}.dcm",
                "conversations": [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}],
            }
            for k in range(4)
        ],
        "boxes": [
            {"id": f"r{k}", "image": f"{k}.dcm", "modality": "CT", "qa": [{"question": "Q?", "answer": "A"}]}
            for k in range(4)
        ],
        "coco": coco,
    }
    for form, value in rows.items():
        (root / f"{form}.json").write_text(json.dumps(value))
        source = Source(
            root / f"{form}.json", form=form, modality=None if form == "boxes" else Modality.CT, tasks=(Task.VG,)
        )
        assert find_groups(source) == expected, form
    assert [row.group for row in read_rows(Source(root, form="dicom"), Counter())] == expected
    assert [line["patient"] for line in list_sheet_lines(root) if line["image"].endswith("dcm")] == expected


def test_frames_of_a_file_are_never_divided(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", np.zeros((2, 4, 5), np.uint8), NumberOfFrames=2, PatientID="", StudyInstanceUID="")
    rows = [{"image": f"a.dcm#{k}", "question": f"Q{k}?", "answer": "A"} for k in (1, 2)]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    for group in (None, ".+"):
        assert find_groups(Source(tmp_path / "q.json", modality=Modality.CT, group=group)) == ["a.dcm", "a.dcm"]


def test_one_word_for_all_headers_is_told_with_the_flag_that_divides(tmp_path: Path) -> None:
    file = write_dicoms(tmp_path / "a", 4, PatientID="STUDYDATA")
    (note,) = [note for note in read_and_check(Source(file)).notes if "all in this source" in note]
    assert "--group '.+' divides by file" in note
    assert find_groups(Source(file, group=".+")) == [f"{k}.dcm" for k in range(4)]


def test_de_identified_images_are_divided_and_told_everywhere(tmp_path: Path, shared: Path) -> None:
    case = shared / "cases/data/13_anonymous"
    if not case.is_dir():
        pytest.skip("the small inputs that go wrong are not here")
    findings = import_data([Source(case / "s.csv")], tmp_path / "out", Checks(workers=1), Division(0.25, 0.25))
    assert findings.clean and findings.groups == {"train": 4, "validation": 2, "test": 2}
    assert findings.notes[NAMELESS_NOTE] == 8
    assert json.loads((tmp_path / "out/dataset.json").read_text())["left_out"][NAMELESS_NOTE] == 8
    write_survey_page(findings, tmp_path / "page.html")
    assert NAMELESS_NOTE in (tmp_path / "page.html").read_text()


# ---- numbers --------------------------------------------------------------------------------------------------------


def check_sheets(*files: Path) -> Findings:
    checker = Checker(Checks(), None)
    for file in files:
        for result in read_rows(Source(file, open_images=False), checker.findings.notes):
            checker.check_row(result)
    return checker.close()


def test_a_patient_number_in_two_spellings_is_one_patient(tmp_path: Path) -> None:
    one = write_sheet(tmp_path / "a", "1.png,Q1?,A,ct,7", "2.png,Q2?,A,ct,8", "5.png,Q2?,A,ct,0")
    two = write_sheet(tmp_path / "b", "3.png,Q3?,A,ct,007", "4.png,Q4?,A,ct,8.0", "6.png,Q4?,A,ct,70")
    findings = check_sheets(one, two)
    assert findings.clean and findings.joined == [("7", "007"), ("8", "8.0")]
    assert findings.notes["patient '007' is taken for '7', the same number"] == 1


def test_a_patient_may_be_a_number_in_json(tmp_path: Path) -> None:
    row = {"id": "r", "image": "a.png", "modality": "CT", "qa": [{"question": "Q?", "answer": "A"}]}
    for form, wanted in ((7, "7"), (7.0, "7"), ("007", "007")):
        (tmp_path / "r.json").write_text(json.dumps([row | {"group": form}]))
        assert find_groups(Source(tmp_path / "r.json", form="boxes", open_images=False)) == [wanted]
    for wrong in (7.5, True, float("inf")):
        (tmp_path / "r.json").write_text(json.dumps([row | {"group": wrong}]))
        with pytest.raises(BadInput, match="group = "):
            find_groups(Source(tmp_path / "r.json", form="boxes", open_images=False))


def test_a_patient_number_in_two_spellings_and_two_splits_is_refused(tmp_path: Path) -> None:
    head = "image,question,answer,modality,patient,split"
    one = write_sheet(tmp_path / "a", "1.png,Q1?,A,ct,7,train", head=head)
    two = write_sheet(tmp_path / "b", "3.png,Q3?,A,ct,007,test", head=head)
    (problem,) = check_sheets(one, two).bad
    assert (problem.field, problem.value, problem.kind, problem.file) == ("patient", "007", "split", str(two))
    assert "the same number as '7', which is in train in row 2 of s.csv" in problem.why


def test_what_groups_thousands_of_images_is_no_patient() -> None:
    paths = [f"mr_{n % 3:02d}--{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}{chr(97 + n // 676)}.png" for n in range(3000)]
    assert not list(note_patients({path: path for path in paths}, None))
    assert list(note_patients({path: path for path in paths[:600]}, None))

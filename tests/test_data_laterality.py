"""Where the patient's left lies in a DICOM, by its header, and what follows from it for words, boxes and scores.

The rules are those of DICOM PS3.3 C.7.6.1.1.1 (edges), C.7.6.2.1.1 (plane) and C.8.11.5 (views); the least cosine is
that of D. Clunie's PixelMed, https://public.kitware.com/pipermail/insight-users/2005-March/012246.html.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from tests.test_data_dicom import RAMP, describe, item, write

from clinkd.data.checks.check import Checker, Checks, Findings
from clinkd.data.images import read_image_size
from clinkd.data.importing import Division, import_data
from clinkd.data.readers.forms import read_rows, read_samples
from clinkd.data.readers.source import Source
from clinkd.data.writers import write_coco, write_sharegpt
from clinkd.language.facts import Lexicon
from clinkd.language.sides import convert_side, find_side_contradiction
from clinkd.records import BadInput, Box, BoxedText, Candidate, ImageRef, Laterality, Modality, Sample, Side, Task, Turn
from clinkd.reporting.survey import write_survey_page
from clinkd.scoring import measure, metrics

AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]
IOP, EDGES, VIEW = "ImageOrientationPatient", "PatientOrientation", "ViewPosition"


def turn(degrees: float, about: str, cosines: list[float]) -> list[float]:
    """The plane turned about an axis of the body, by a rotation matrix written out."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = {"y": [[c, 0, s], [0, 1, 0], [-s, 0, c]], "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]]}[about]
    return [round(float(v), 6) for axis in (cosines[:3], cosines[3:]) for v in np.array(matrix) @ axis]


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({IOP: AXIAL}, "right", IOP),
    ({IOP: CORONAL, "Modality": "MR"}, "right", IOP),
    ({IOP: AXIAL, "PatientPosition": "FFS"}, "right", IOP),
    ({IOP: [-1, 0, 0, 0, -1, 0], "PatientPosition": "HFP"}, "left", IOP),
    ({IOP: [-1, 0, 0, 0, 1, 0]}, "left", IOP),
    ({IOP: [0, 1, 0, 0, 0, -1], "Modality": "MR"}, "none", IOP),
    ({IOP: [0, 1, 0, 1, 0, 0]}, "none", IOP),  # left and right lie above each other
    ({IOP: turn(30, "z", AXIAL)}, "right", IOP),
    ({IOP: turn(150, "z", AXIAL)}, "left", IOP),
    ({IOP: turn(45, "z", AXIAL)}, "unknown", IOP),
    ({IOP: turn(60, "z", CORONAL)}, "none", IOP),
    ({IOP: turn(45, "y", CORONAL)}, "unknown", IOP),
    ({IOP: [0, 0, 0, 0, 0, 0]}, "unknown", IOP),
    ({IOP: [1, 0, 0, 1, 0, 0]}, "unknown", IOP),
    ({IOP: [1, 0, 0]}, "unknown", IOP),
    ({EDGES: ["L", "F"], VIEW: "PA"}, "right", EDGES),
    ({EDGES: ["L", "F"], VIEW: "AP"}, "right", EDGES),
    ({EDGES: ["R", "F"], VIEW: "PA"}, "left", EDGES),
    ({EDGES: ["LA", "FP"]}, "right", EDGES),
    ({EDGES: ["A", "F"], VIEW: "LL"}, "none", EDGES),
    ({EDGES: ["PR", "F"]}, "none", EDGES),
    ({EDGES: ["L", "F"], VIEW: "LL"}, "unknown", f"{EDGES} and {VIEW}, which contradict each other"),
    ({EDGES: ["A", "F"], VIEW: "PA"}, "unknown", f"{EDGES} and {VIEW}, which contradict each other"),
    ({IOP: AXIAL, EDGES: ["L", "P"]}, "right", IOP),
    ({IOP: AXIAL, EDGES: ["R", "P"]}, "unknown", f"{IOP} and {EDGES}, which contradict each other"),
    ({EDGES: "L"}, "unknown", EDGES),
    ({EDGES: ["L", "R"]}, "unknown", EDGES),
    ({EDGES: ["X", "F"]}, "unknown", EDGES),
    ({EDGES: ["LE", "D"], "AnatomicalOrientationType": "QUADRUPED"}, "unknown", EDGES),
    ({EDGES: [], VIEW: "AP"}, "right", VIEW),
    ({VIEW: "PA", "Modality": "DX"}, "right", VIEW),
    ({VIEW: "LATERAL", "Modality": "CR"}, "none", VIEW),
    ({VIEW: "RL", "Modality": "DX"}, "none", VIEW),
    ({VIEW: "LAO", "Modality": "DX"}, "unknown", VIEW),
    ({"Modality": "MG", "ImageLaterality": "R", EDGES: ["P", "L"]}, "none", "ImageLaterality"),
    ({"Modality": "MG", VIEW: "MLO"}, "none", "Modality MG"),
    ({"PatientPosition": "HFP"}, "unknown", "PatientPosition"),
]


@pytest.mark.parametrize(("elements", "left", "rule"), CASES)
def test_the_header_tells_where_the_patients_left_is(
    tmp_path: Path, elements: dict[str, Any], left: str, rule: str
) -> None:
    facts = describe(write(tmp_path / "a.dcm", RAMP, **elements), "a")
    assert facts.laterality is not None
    assert (facts.laterality.left, facts.laterality.rule) == (left, rule)
    assert read_image_size(tmp_path, "a.dcm", "a").laterality == facts.laterality


@pytest.mark.parametrize("elements", [{}, {"PatientPosition": "HFS"}, {VIEW: "SECRET NAME"}, {EDGES: ["", ""]}])
def test_a_header_that_tells_nothing_leaves_it_to_the_modality(tmp_path: Path, elements: dict[str, Any]) -> None:
    assert describe(write(tmp_path / "a.dcm", RAMP, **elements), "a").laterality is None


def test_a_broken_plane_leaves_the_sides_unknown_and_the_file_readable(tmp_path: Path) -> None:
    content = write(tmp_path / "a.dcm", RAMP, ImageOrientationPatient=AXIAL).read_bytes()
    stored = b"\\".join(b"%.1f" % cosine for cosine in AXIAL)
    assert content.count(stored) == 1
    for broken in (stored.replace(b"1", b"x"), b" " * len(stored)):
        (tmp_path / "b.dcm").write_bytes(content.replace(stored, broken))
        assert describe(tmp_path / "b.dcm", "b").laterality == Laterality("unknown", IOP)
    empty = write(tmp_path / "c.dcm", RAMP, ImageOrientationPatient=[])
    assert describe(empty, "c").laterality is None


def test_frames_have_planes_of_their_own(tmp_path: Path) -> None:
    def plane(cosines: list[float]) -> Dataset:
        return item(PlaneOrientationSequence=[item(ImageOrientationPatient=cosines)])

    frames = np.zeros((3, 4, 5), np.uint8)
    groups = [plane([0, 1, 0, 0, 0, -1]), plane([-1, 0, 0, 0, -1, 0]), Dataset()]
    write(
        tmp_path / "e.dcm", frames, NumberOfFrames=3,
        PerFrameFunctionalGroupsSequence=groups, SharedFunctionalGroupsSequence=[plane(AXIAL)],
    )  # fmt: skip
    found = [read_image_size(tmp_path, f"e.dcm#{k}", "e").laterality for k in (1, 2, 3)]
    assert [laterality and laterality.left for laterality in found] == ["none", "left", "right"]


# ---- words and boxes ------------------------------------------------------------------------------------------------

AT_LEFT, AT_RIGHT = Box(0.05, 0.1, 0.45, 0.9), Box(0.55, 0.1, 0.95, 0.9)  # halves of the picture


def ask_where(words: str, box: Box, left: Any, side: Side = "patient", modality: Modality = Modality.CT) -> Sample:
    image = ImageRef("a.dcm", 64, 64, laterality=left and Laterality(left, IOP))
    answer = Turn(Task.VG, BoxedText("Where is it?"), BoxedText(f"{words} [box]", (box,)))
    return Sample("a1", (image,), modality, (answer,), "g", "", (words,), (), side)


@pytest.mark.parametrize(
    ("left", "good_boxes"),
    [
        (None, [AT_RIGHT]), ("right", [AT_RIGHT]), ("left", [AT_LEFT]),
        ("none", [AT_LEFT, AT_RIGHT]), ("unknown", [AT_LEFT, AT_RIGHT]),
    ],
)  # fmt: skip
def test_words_are_held_to_the_half_that_the_header_tells(left: str | None, good_boxes: list[Box]) -> None:
    for box in (AT_LEFT, AT_RIGHT):
        found = find_side_contradiction(ask_where("left kidney", box, left))
        assert (found is None) == (box in good_boxes)
        assert not (found and left == "left" and "--side" in found), "both frames say the same there"
        on_image = find_side_contradiction(ask_where("left kidney", box, left, "image"))
        assert (on_image is None) == (box is AT_LEFT), "the picture's own left is where it always is"


def test_a_told_side_holds_in_a_modality_without_a_convention() -> None:
    assert find_side_contradiction(ask_where("left kidney", AT_LEFT, "right", modality=Modality.OTHER))
    assert find_side_contradiction(ask_where("left kidney", AT_LEFT, None, modality=Modality.OTHER)) is None


def test_a_conversion_follows_the_header() -> None:
    mirrored = convert_side(ask_where("left kidney", AT_RIGHT, "right"), "image")
    assert mirrored.answer.words == "right kidney" and find_side_contradiction(mirrored) is None
    same = convert_side(ask_where("left kidney", AT_LEFT, "left"), "image")
    assert same.answer.words == "left kidney" and same.side == "image" and find_side_contradiction(same) is None
    for left, why in (("none", "are not side by side in this picture"), ("unknown", "are unknown in this picture")):
        with pytest.raises(BadInput, match=rf"'left kidney .*{why} \(by {IOP}\); write the text anew for side=image"):
            convert_side(ask_where("left kidney", AT_LEFT, left), "image")
        named = convert_side(ask_where("the patient's left kidney", AT_LEFT, left), "image")
        assert named.answer.words == "the patient's left kidney"


def test_the_wrong_side_is_scored_where_there_are_sides() -> None:
    answer = Candidate("", BoxedText("[box]", (AT_LEFT,)))
    columns = metrics.BOXES.columns
    for left, counted in ((None, 1), ("right", 1), ("left", 1), ("unknown", 1), ("none", 0)):
        item = measure.SampleAnswer(ask_where("left kidney", AT_RIGHT, left), answer)
        counts = dict(zip(columns, metrics.BOXES.count([item], measure.Rules(0.5, Lexicon(())))[0], strict=True))
        assert counts["truth boxes with a side"] == counts["on the other side"] == counted


# ---- from the files to the data set ---------------------------------------------------------------------------------


def write_scans(root: Path) -> Path:
    """A sheet with three true rows: a sagittal MR, a lateral X-ray, a prone CT (boxes of the left kidney)."""
    root.mkdir()
    kinds: dict[str, dict[str, Any]] = {
        "mr": {IOP: [0, 1, 0, 0, 0, -1], "Modality": "MR"},
        "lateral": {EDGES: ["A", "F"], VIEW: "LL", "Modality": "DX"},
        "prone": {IOP: [-1, 0, 0, 0, -1, 0], "Modality": "CT", "PatientPosition": "HFP"},
    }
    lines = ["image,name,x1,y1,x2,y2"]
    for number, (name, elements) in enumerate(kinds.items()):
        noise = np.random.default_rng(number).integers(0, 200, (44, 50), np.int16)
        write(root / f"{name}.dcm", noise, PatientID=name, **elements)
        lines.append(f"{name}.dcm,left kidney,2,5,15,30")
    (root / "s.csv").write_text("\n".join(lines) + "\n")
    return root / "s.csv"


LEFT_NOTE = f"images with the patient's left at the picture's left, by {IOP}"
SAGITTAL_NOTE = f"images without left and right side by side, by {IOP}; words of the patient's sides are not compared"


def read_and_check(source: Source) -> Findings:
    """Rows and headers alone: no pixel is decoded."""
    checker = Checker(Checks(), None)
    for result in read_rows(source, checker.findings.notes):
        checker.check_row(result)
    return checker.close()


def test_true_rows_of_unusual_views_are_good_and_the_rule_is_recorded(tmp_path: Path) -> None:
    source = Source(write_scans(tmp_path / "scans"))
    expected = {"mr": Laterality("none", IOP), "lateral": Laterality("none", EDGES), "prone": Laterality("left", IOP)}
    out = tmp_path / "out"
    findings = import_data([source], out, Checks(workers=1), Division(0, 0), copy=True)
    assert findings.clean, findings.bad
    assert findings.notes[LEFT_NOTE] == 1 and any(note.startswith(SAGITTAL_NOTE) for note in findings.notes)
    write_survey_page(findings, tmp_path / "page.html")
    assert LEFT_NOTE in html.unescape((tmp_path / "page.html").read_text())
    assert json.loads((out / "dataset.json").read_text())["left_out"][LEFT_NOTE] == 1
    for opened in (True, False):  # the copies have no header any more
        samples = read_samples(Source(out, open_images=opened), Counter())
        assert {Path(s.images[0].path).name.split(".")[0]: s.images[0].laterality for s in samples} == expected
    assert read_and_check(Source(out)).clean


def test_a_false_row_is_still_told_without_false_advice(tmp_path: Path) -> None:
    sheet = write_scans(tmp_path / "scans")
    sheet.write_text(sheet.read_text().replace("prone.dcm,left kidney,2,5,15,30", "prone.dcm,left kidney,32,5,45,30"))
    (problem,) = read_and_check(Source(sheet)).bad
    assert problem.kind == "side" and "is in the picture's right half" in problem.why
    assert "correct the word or the box" in problem.why and "--side" not in problem.why


def test_an_export_tells_that_it_does_not_hold_the_side(tmp_path: Path) -> None:
    samples = [ask_where("left kidney", AT_LEFT, "left")]
    (note,) = write_coco(samples, tmp_path / "c.json")
    assert note == "images whose DICOM header told where the patient's left is, which COCO does not hold"
    (note,) = write_sharegpt(samples, tmp_path / "s")
    assert note.endswith("which a conversation does not hold")


def test_a_data_set_of_an_older_version_takes_the_side_from_its_files(tmp_path: Path) -> None:
    sheet = write_scans(tmp_path / "scans")
    samples = read_samples(Source(sheet), Counter())
    lines = [sample.to_json() for sample in samples]
    for line in lines:
        assert line["images"][0].pop("laterality")
    file = sheet.parent / "samples.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [s.images for s in read_samples(Source(file), Counter())] == [s.images for s in samples]
    lines[0]["images"][0]["laterality"] = {"left": "up", "rule": ""}
    file.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(BadInput, match=r"images\[0\].laterality = .*mend it, or import the data anew"):
        read_samples(Source(file), Counter())

"""Answers as DICOM SR: the round trip, what pydicom, highdicom and dcmtk read in them, and odd sources."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import warnings
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pydicom
import pytest
from highdicom import sr
from pydicom import Dataset, uid
from pydicom.data import get_testdata_file
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.codedict import codes

from clinkd.data.dicom_objects import (
    NOTICE,
    WARNINGS,
    Model,
    Region,
    ReportedAnswer,
    read_code_map,
    write_report,
    write_segmentation,
)
from clinkd.data.images.dicom import Dicom
from clinkd.data.phantoms import NAMES
from clinkd.records import BadInput, Box
from clinkd.workflows.answer_warnings import Kind
from mutations import survivors
from structured_reports import read_report

SHIPPED = Path(pydicom.__file__).parent / "data"
is_dicom, describe = Dicom().sniff, Dicom().describe
MODEL = Model("tiny-demo", "2026.11")
LABELS = (
    "liver",
    "the left kidney",
    "a tumour of the Ösophagus",
    "肝臓",
    "",
    "x" * 200,
    "back\\slash",
    "Small Intestine",
)


def file(name: str) -> bytes:
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


def region(dice: random.Random) -> Region:
    x1, x2 = sorted(dice.choice((0, 1, dice.random(), dice.random(), 1 / 3)) for _ in range(2))
    y1, y2 = sorted(dice.random() for _ in range(2))
    box = Box(x1, y1, x2, y2) if x2 - x1 > 1e-3 and y2 - y1 > 1e-3 else Box(0, 0, 1, 1)
    return Region(box, dice.choice(LABELS), dice.choice(("model", "person")))


def in_pixels(box: Box, columns: int, rows: int) -> list[np.float32]:
    ends = ((box.x1, columns), (box.y1, rows), (box.x2, columns), (box.y2, rows))
    return [np.float32(share * size) for share, size in ends]


def parsed(content: bytes) -> sr.ComprehensiveSR:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sr.ComprehensiveSR.from_dataset(pydicom.dcmread(io.BytesIO(content)))


def made(content: bytes, *regions: Region, frame: int | None = None) -> bytes:
    return write_report(content, ReportedAnswer("Where is it?", "Here.", regions, MODEL, frame))


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_the_round_trip_over_all_files_is_exact(every: int) -> None:
    dice = random.Random(0)
    trips, films = 0, 0
    warnings.simplefilter("ignore")  # pydicom's, of these files
    files = sorted(p for p in SHIPPED.rglob("*") if p.is_file() and "TINY_ALPHA" not in p.parts)
    for path in [p for p in files if is_dicom(p)][::every]:
        try:
            facts = describe(path, "x")
            frame = dice.choice((None, facts.frames))
            wanted = tuple(region(dice) for _ in range(dice.randrange(4)))
            question, answer = dice.choice(LABELS), "Two lines\nof an answer, 2\\3; ü and 肝.\n" * dice.randrange(3)
            content = write_report(path.read_bytes(), ReportedAnswer(question, answer, wanted, MODEL, frame))
        except BadInput:
            continue
        report = read_report(content, facts.width, facts.height)
        assert (report.question, report.answer, report.model) == (question, answer.strip(), MODEL)
        assert report.frame == (frame or 1)
        assert report.instance == str(pydicom.dcmread(path, force=True, stop_before_pixels=True).SOPInstanceUID)
        assert [(r.label, r.by) for r in report.regions] == [(r.label, r.by) for r in wanted]
        for found, meant in zip(report.regions, wanted, strict=True):
            size = (facts.width, facts.height)
            assert in_pixels(found.box, *size) == in_pixels(meant.box, *size)
        trips += 1
        films += facts.frames > 1
    assert trips >= 90 // every and films >= 7 // every


def test_highdicom_finds_the_regions() -> None:
    box = Box(0.25, 0.5, 0.75, 1)
    regions = (Region(box, "the liver", "model"), Region(box, "left kidney", "person"), Region(box, "", "person"))
    report = parsed(made(file("CT_small.dcm"), *regions))
    assert isinstance(report.content, sr.MeasurementReport)
    groups = report.content.get_planar_roi_measurement_groups()
    assert len(groups) == 3 and len({g.tracking_uid for g in groups}) == 3
    for group in groups:
        assert group.roi.graphic_type is sr.GraphicTypeValues.POLYLINE
        assert group.roi.value.tolist() == [[32, 64], [96, 64], [96, 128], [32, 128], [32, 64]]
    assert groups[0].finding_type == codes.SCT.Liver
    assert (groups[1].finding_type.scheme_designator, groups[1].finding_type.meaning) == ("99CLINKD", "left kidney")
    assert groups[2].finding_type is None
    found = report.content.get_planar_roi_measurement_groups(tracking_uid=groups[1].tracking_uid)
    assert len(found) == 1 and found[0].tracking_identifier == "2: left kidney"


def items(ds: Dataset) -> list[Dataset]:
    below = ds.get("ContentSequence") or []
    return [x for child in below for x in (child, *items(child))]


def named(ds: Dataset, meaning: str) -> list[Any]:
    found = [i for i in items(ds) if i.ConceptNameCodeSequence[0].CodeMeaning == meaning]
    return [i.get("TextValue") or i.get("PersonName") or i.get("UID") for i in found]


def test_what_a_report_states() -> None:
    source = pydicom.dcmread(io.BytesIO(file("CT_small.dcm")))
    box = Box(0, 0, 0.5, 0.5)
    content = made(file("CT_small.dcm"), Region(box, "liver", "model"), Region(box, "cyst", "person"))
    ds = pydicom.dcmread(io.BytesIO(content))
    assert ds.SOPClassUID == uid.ComprehensiveSRStorage and ds.Modality == "SR"
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == ("PARTIAL", "UNVERIFIED", "PRELIMINARY")
    assert ds.ContentQualification == "RESEARCH" and "research use only" in ds.SeriesDescription
    assert named(ds, "Comment") == [NOTICE] and NOTICE.startswith("Research use only")
    assert ds.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (ds.PatientID, ds.PatientName) == (source.PatientID, source.PatientName)
    assert (ds.StudyInstanceUID, ds.StudyDate) == (source.StudyInstanceUID, source.StudyDate)
    assert ds.SeriesInstanceUID != source.SeriesInstanceUID and ds.SOPInstanceUID != source.SOPInstanceUID
    assert "PixelData" not in ds and len(content) < 20_000
    (evidence,) = ds.CurrentRequestedProcedureEvidenceSequence
    (instance,) = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert instance.ReferencedSOPClassUID == source.SOPClassUID == uid.CTImageStorage
    classes = {e.value for e in ds.iterall() if e.keyword == "ReferencedSOPClassUID"}
    assert classes == {uid.CTImageStorage}
    assert named(ds, "Algorithm Name") == ["tiny-demo"] and named(ds, "Algorithm Version") == ["2026.11"]
    assert named(ds, "Person Observer Name") == ["Reader^Anonymous"]
    assert not [i for i in items(ds) if "ReferencedFrameNumber" in i]  # one frame needs no number
    again = pydicom.dcmread(io.BytesIO(made(file("CT_small.dcm"))))
    assert named(ds, "Device Observer UID") == named(again, "Device Observer UID")


def test_a_frame_is_named_where_there_are_several() -> None:
    film = file("examples_ybr_color.dcm")
    ds = pydicom.dcmread(io.BytesIO(made(film, Region(Box(0, 0, 1, 1), "", "model"), frame=7)))
    references = [i.ReferencedSOPSequence[0] for i in items(ds) if i.ValueType == "IMAGE"]
    assert [r.ReferencedFrameNumber for r in references] == [7]
    with pytest.raises(BadInput, match="frame 999 of"):
        made(film, frame=999)


# ---- codes, warnings and identity -----------------------------------------------------------------------------------


def test_a_region_is_bounded_by_its_rectangle_and_has_codes() -> None:
    box = Box(0, 0, 0.5, 0.5)
    names = ("liver", "subarachnoid haemorrhage", "the left kidney", "soft tissue sarcoma", "left nonsense")
    regions = [Region(box, name, "model") for name in names]
    groups = parsed(made(file("CT_small.dcm"), *regions)).content.get_planar_roi_measurement_groups()
    for group in groups:
        (purpose,) = group.get_qualitative_evaluations(name=codes.DCM.GeometricPurposeOfRegion)
        assert purpose.value == codes.SCT.BoundedBy and purpose[0].RelationshipType == "CONTAINS"
        assert not group.get_measurements()  # viewers look for the rectangle below the first number of a group
    types = [(g.finding_type.scheme_designator, g.finding_type.meaning) for g in groups]
    private = [("99CLINKD", "subarachnoid haemorrhage"), ("99CLINKD", "left kidney")]
    assert types == [("SCT", "Liver"), *private, ("SCT", "Sarcoma of soft tissue"), ("99CLINKD", "left nonsense")]
    sites = [[(s.value.meaning, s.laterality and s.laterality.meaning) for s in g.finding_sites] for g in groups]
    assert sites == [[], [("Subarachnoid space", None)], [("Kidney", "Left")], [], []]


def test_confidence_and_warnings_stand_in_a_group_of_the_answer() -> None:
    told = ReportedAnswer("q", "a", [Region(Box(0, 0, 1, 1), "liver", "model")], MODEL, None, 0.82345678)
    told = replace(told, warnings=[("no_box", "no box given"), ("unknown_name", "not a name: ü\0")])
    content = write_report(file("CT_small.dcm"), told)
    (group,) = parsed(content).content.get_image_measurement_groups()
    (number,) = group.get_measurements()
    assert (float(number.value), number.unit) == (0.8235, codes.UCUM.NoUnits)
    (reference,) = group.source_images
    assert reference.referenced_sop_instance_uid == pydicom.dcmread(io.BytesIO(file("CT_small.dcm"))).SOPInstanceUID
    texts = [(i.ConceptNameCodeSequence[0], i.TextValue) for i in items(group[0]) if i.ValueType == "TEXT"]
    found = [(c.CodeValue, c.CodingSchemeDesignator, t) for c, t in texts if c.CodeValue in WARNINGS]
    assert found == [("no_box", "99CLINKD", "no box given"), ("unknown_name", "99CLINKD", "not a name: ü")]
    assert named(pydicom.dcmread(io.BytesIO(content)), "Algorithm Name") == ["tiny-demo"] * 2
    with pytest.raises(BadInput, match="confidence = 1.2"):
        replace(told, confidence=1.2)
    with pytest.raises(BadInput, match="warning = tired"):
        replace(told, warnings=[("tired", "x")])


def test_the_kinds_of_warnings_are_those_of_answers() -> None:
    assert set(get_args(Kind)) == set(WARNINGS) and all(len(kind) <= 16 for kind in WARNINGS)


WRITERS = (write_report, write_segmentation)


@pytest.mark.parametrize("write", WRITERS)
def test_a_repeat_is_the_same_object_and_another_answer_another_one(write: Any) -> None:
    image, at = file("MR_small.dcm"), datetime(2026, 11, 30, 12)
    told = ReportedAnswer("q", "a", [Region(Box(0, 0, 0.5, 0.5), "liver", "model")], MODEL, answered=at)
    ds = pydicom.dcmread(io.BytesIO(write(image, told)))
    assert write(image, told) == write(image, told)
    assert (ds.ContentDate, ds.ContentTime, ds.InstanceCreationDate) == ("20261130", "120000", "20261130")
    later = pydicom.dcmread(io.BytesIO(write(image, replace(told, answered=datetime(2027, 1, 1)))))
    assert later.SOPInstanceUID == ds.SOPInstanceUID and later.ContentDate != ds.ContentDate
    others = [
        replace(told, question="other"), replace(told, answer="other"), replace(told, confidence=0.5),
        replace(told, regions=[*told.regions, *told.regions]), replace(told, warnings=[("no_box", "x")]),
        replace(told, regions=[replace(told.regions[0], by="person")]), replace(told, model=Model("tiny-demo", "2")),
    ]  # fmt: skip
    found = [pydicom.dcmread(io.BytesIO(write(image, other))) for other in others]
    found.append(pydicom.dcmread(io.BytesIO(write(file("CT_small.dcm"), told))))
    uids = {str(o.SOPInstanceUID) for o in (ds, *found)}
    assert len(uids) == len(others) + 2 and all(uid.startswith("2.25.") for uid in uids)
    series = [o.SeriesInstanceUID == ds.SeriesInstanceUID for o in found]
    assert series == [*[True] * 6, False, False]  # one series for a model and a series of images


def test_both_objects_track_a_region_by_one_uid() -> None:
    told = ReportedAnswer("q", "a", [Region(Box(0, 0, 0.5, 0.5), "liver", "model")] * 2, MODEL)
    image = file("MR_small.dcm")
    report, segmentation = (
        parsed(write_report(image, told)),
        pydicom.dcmread(io.BytesIO(write_segmentation(image, told))),
    )
    groups = report.content.get_planar_roi_measurement_groups()
    uids = [str(group.tracking_uid) for group in groups]
    assert uids == [str(s.TrackingUID) for s in segmentation.SegmentSequence] and len(set(uids)) == 2


def test_the_starter_map_has_codes_of_the_standard_for_names_of_the_phantoms() -> None:
    known = concepts["SCT"]
    listed = {(code, meaning) for entry in known.values() for code, (meaning, _) in entry.items()}
    starter = read_code_map()
    assert len(starter.entries) > 70 and {"liver", "optic disc", "melanoma"} <= set(NAMES) & set(starter.entries)
    for name, entry in starter.entries.items():
        for code in (entry.code, entry.site):
            known_code = code and (code.value, code.meaning) in listed
            assert code is None or known_code or code.scheme_designator == "99CLINKD", name


def test_a_class_map_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "codes.yaml"
    own.write_text(
        "findings:\n  Käfer: {code: 99HOSP 17 Käfer, site: SCT 69536005 Head}\nstructures:\n  liver: 99HOSP L L\n"
    )
    codes_of = read_code_map(own)
    assert codes_of.find("der Käfer").code.scheme_designator == "99CLINKD"
    found = codes_of.find("käfer")
    assert (found.group, found.code.value, found.site and found.site.meaning) == ("findings", "17", "Head")
    assert codes_of.find("Liver").code.scheme_designator == "99HOSP" and codes_of.find("lung").code.value == "39607008"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"), ("a: [", "not readable as YAML"), ("- a", "its groups are"),
        ("organs:\n  a: b", "its groups are"), ("findings: 3", "names are wanted"), ("findings:\n  a: 7", "write"),
        ("findings:\n  a: SCT 1", "code = SCT 1: write"), ("findings:\n  a: {side: x}", "write"),
        ("findings:\n  a: SCT 1 " + "x" * 65, "at most 64"),
    ],
)  # fmt: skip
def test_class_maps_that_are_refused(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "codes.yaml").write_text(text)
    with pytest.raises(BadInput, match=said) as found:
        read_code_map(tmp_path / "codes.yaml")
    assert "codes.yaml" in str(found.value) and "\n" not in str(found.value)


# ---- odd sources ----------------------------------------------------------------------------------------------------


def changed(name: str = "CT_small.dcm", **elements: Any) -> bytes:
    ds = pydicom.dcmread(str(get_testdata_file(name, download=False)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in elements.items():
            if value is None:
                delattr(ds, keyword)
            else:
                element = pydicom.DataElement(
                    keyword, pydicom.datadict.dictionary_VR(keyword), value, validation_mode=pydicom.config.IGNORE
                )
                ds[keyword] = element
        out = io.BytesIO()
        ds.save_as(out)
    return out.getvalue()


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
@pytest.mark.parametrize("value", [None, "", "Kanarienvogel", "1." * 40 + "1"])
def test_a_source_without_uids_is_refused(keyword: str, value: str | None) -> None:
    content = changed(**{keyword: value})
    if keyword.startswith("SOP") and not value:  # the file's meta information says it, too
        assert made(content)
        return
    with pytest.raises(BadInput, match=f"its {keyword} is missing or not valid") as found:
        made(content)
    assert "Kanarien" not in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    "values",
    [
        {"PatientID": None, "PatientName": None, "PatientBirthDate": "19991399", "PatientSex": "Kanarienvogel"},
        {"PatientID": "x" * 200, "PatientName": "x" * 300, "PatientBirthDate": "Kanarienvogel", "PatientSex": None},
        {"PatientID": "a\\b", "StudyDate": "2001.01.01", "StudyTime": "noon", "PatientAge": "old"},
        {"PatientID": "a\nb", "StudyID": "x" * 99, "AccessionNumber": "x" * 99, "StudyDescription": "x" * 99},
    ],
)
def test_what_the_standard_does_not_allow_stands_empty(
    values: dict[str, str | None], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = changed(**values)
    caplog.clear()
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as noise:
        warnings.simplefilter("always")
        content = made(source, Region(Box(0, 0, 1, 1), "liver", "model"))
    assert (noise, capfd.readouterr(), caplog.records) == ([], ("", ""), [])
    ds = pydicom.dcmread(io.BytesIO(content))
    assert not [keyword for keyword in values if ds.get(keyword)]
    assert len(parsed(content).content.get_planar_roi_measurement_groups()) == 1


@pytest.mark.parametrize("name", ["Yamada^Tarou=山田^太郎=やまだ^たろう", "Buc^Jérôme", "Single", ""])
@pytest.mark.parametrize("charset", ["ISO_IR 192", ["", "ISO 2022 IR 87"], "ISO_IR 100"])
def test_names_are_copied_in_any_character_set(name: str, charset: Any) -> None:
    legal = name if charset != "ISO_IR 100" else name.partition("=")[0]
    try:
        content = changed(SpecificCharacterSet=charset, PatientName=legal)
        kept = str(pydicom.dcmread(io.BytesIO(content)).PatientName)
    except (UnicodeEncodeError, ValueError):
        pytest.skip("not of that character set")
    ds = pydicom.dcmread(io.BytesIO(made(content)))
    assert str(ds.PatientName) == kept and ds.SpecificCharacterSet == "ISO_IR 192"


def test_retired_and_private_classes_are_referred_to() -> None:
    for known in ("1.2.840.10008.5.1.4.1.1.6", "1.2.840.99999.1", "1.2.840.10008.5.1.4.1.1.77.1.6"):
        ds = pydicom.dcmread(io.BytesIO(made(changed(SOPClassUID=known), Region(Box(0, 0, 1, 1), "liver", "model"))))
        assert {e.value for e in ds.iterall() if e.keyword == "ReferencedSOPClassUID"} == {known}
        origin = [i.get("PixelOriginInterpretation") for i in items(ds) if i.ValueType == "SCOORD"]
        assert origin == (["FRAME"] if known.endswith("77.1.6") else [None])


@pytest.mark.parametrize("text", ["\ud800", "\0", "a\tb\x1b[31m", "\r\n", "\u202e", "x" * 100_000])
def test_any_text_can_be_written(text: str) -> None:
    regions = [Region(Box(0, 0, 1, 1), text, "model")]
    content = write_report(file("CT_small.dcm"), ReportedAnswer(text, text, regions, Model(text, text)))
    report = read_report(content, 128, 128)
    assert report.question == report.answer and report.question.isprintable()
    assert len(parsed(content).content.get_planar_roi_measurement_groups()) == 1


def test_sources_that_are_refused() -> None:
    image = io.BytesIO()
    from PIL import Image

    Image.new("L", (4, 4)).save(image, "PNG")
    for content, said in (
        (image.getvalue(), "not a DICOM, so no DICOM object"),
        (b"", "not a DICOM"),
        (file("image_dfl.dcm"), "deflated"),
        (file("reportsi.dcm"), "without pixels"),
        (file("MR_truncated.dcm"), "cut"),
    ):
        with pytest.raises(BadInput, match=said):
            made(content)
    with pytest.raises(BadInput, match="too small to be written"):
        made(file("CT_small.dcm"), Region(Box(0.5, 0, 0.5 + 1e-12, 1), "", "model"))


def test_pixels_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clinkd.data.images.dicom._decode_values", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(Dataset, "pixel_array", property(lambda _: pytest.fail("decoded")))
    assert made(file("JPEG2000.dcm"), Region(Box(0, 0, 1, 1), "", "model"))


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dcmtk is not installed")
def test_dcmtk_reads_it(tmp_path: Path) -> None:
    regions = [Region(Box(0, 0, 0.5, 1), label, by) for label in ("liver", "cyst", "") for by in ("model", "person")]  # type: ignore[arg-type]
    for number, content in enumerate((made(file("CT_small.dcm"), *regions), made(file("examples_ybr_color.dcm")))):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content)
        done = subprocess.run(["dsrdump", "+Pl", str(path)], capture_output=True, text=True, check=True, timeout=60)
        assert "Comprehensive SR Document" in done.stdout
        told = [line for line in done.stderr.splitlines() if "ISO_IR 192" not in line]  # UTF-8, which it reads
        assert told == []


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_sources_are_reported_on_or_refused(tmp_path: Path, count: int) -> None:
    said = survivors("structured_reports:judged", count, 3, tmp_path, 60 + count)
    assert len(said) == count and [line for line in said if not line.endswith(": ")] == []

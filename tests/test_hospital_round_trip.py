"""From an archive and back: images into Orthanc, pulled, asked, answers pushed, found by QIDO, read by highdicom."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom import seg, sr

from clinkd import pipeline
from clinkd.boxes import iou_matrix
from clinkd.cli import main
from clinkd.config import RunConfig
from clinkd.data.codecs import make_codec
from clinkd.data.phantoms import STRUCTURES, draw_phantom
from clinkd.hospital.pull import plan_pull, pull
from clinkd.hospital.push import PushPlan, push
from clinkd.inference.self_consistency import SelfConsistency
from clinkd.pacs import Archive, StudyQuery, connect
from clinkd.pipeline.graph import Stage
from clinkd.pipeline.runs import find_run
from clinkd.records import Box, BoxedText, Candidate, Modality, Prediction
from clinkd.settings import override
from clinkd.storage import write_json
from clinkd.workflows.answer_warnings import AnswerWarning
from clinkd.workflows.ask import Answer, Question
from clinkd.workflows.batch import ask_about_folder, ask_many
from dicom_images import COLUMNS, ROWS, make_image
from dicom_images import FORMS as IMAGE_FORMS
from listen_command import ListenCommand
from orthanc import PASSWORD, USER, Orthanc

CODEC = make_codec("locations", 16)
Key = tuple[str, int | None]  # an image, and a frame where it has several
FORMS = ("CT", "MR", "CR", "US", "US film", "enhanced CT", "enhanced MR", "DX", "PET", "photograph")


@dataclass
class MarkFinder:
    """Answers with the bright mark that it finds in the pixels, spelled by a codec of 16 places an axis."""

    config: RunConfig
    names: tuple[str, ...] = ("liver",)

    def read(self, text: str, picture: Any = None) -> BoxedText:
        return BoxedText(text)

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        rows, columns = np.nonzero(np.asarray(question.pictures[0].convert("L")) > 200)
        width, height = question.pictures[0].size
        corners = (columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height)
        found = BoxedText("The liver [box].", (Box(*map(float, corners)),))
        spelled = CODEC.decode(CODEC.encode(found)).answer
        consistency = SelfConsistency((1.0,), (1.0,), 1.0, "")
        doubts = (AnswerWarning("unseen_modality", "never saw this"),)
        return Answer(Prediction("x", (Candidate("", spelled),)), consistency, False, 1, 1, doubts)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def plan(config: RunConfig) -> list[Stage]:
        def report(work: Any) -> None:
            write_json(work.folder / "table.json", {})
            (work.folder / "report.html").write_text("<p>")

        teacher = Stage("teacher", 1, config.teacher, (), lambda work: None, config.seed)
        return [teacher, Stage("report", 1, config.evaluate, (teacher,), report, config.seed)]

    monkeypatch.setattr(pipeline, "plan", plan)
    monkeypatch.setattr("clinkd.workflows.batch.Answerer.of_run", lambda run: MarkFinder(run.config))
    pipeline.run(override(RunConfig(), ["name=small"]), tmp_path / "runs")
    return find_run("small", tmp_path / "runs")


@pytest.fixture
def orthanc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Orthanc]:
    orthanc = Orthanc(tmp_path / "orthanc").start()
    monkeypatch.setenv("CLINKD_PACS_USER", USER)
    monkeypatch.setenv("CLINKD_PACS_PASSWORD", PASSWORD)
    yield orthanc
    orthanc.stop()


@pytest.fixture
def archive(orthanc: Orthanc) -> Archive:
    return connect(orthanc.web)


def fetch(archive: Archive, study: str, modality: str) -> list[bytes]:
    found = archive.find_series(StudyQuery(study=study, modality=modality))
    return [content for series in found for content in archive.fetch_series(series)]


@pytest.mark.slow
def test_twenty_images_go_to_an_archive_and_their_answers_back(archive: Archive, run: Any, tmp_path: Path) -> None:
    rng = random.Random(0)
    marks, sources, frames = {}, {}, 0
    for number in range(20):
        left, top = rng.randrange(COLUMNS - 8), rng.randrange(ROWS - 8)
        mark = (left, top, rng.randrange(left + 4, COLUMNS + 1), rng.randrange(top + 4, ROWS + 1))
        content = make_image(FORMS[number % len(FORMS)], 1 + number // len(FORMS), mark)
        archive.store(content)
        source = pydicom.dcmread(io.BytesIO(content))
        marks[str(source.SOPInstanceUID)], sources[str(source.SOPInstanceUID)] = mark, source
        frames += int(source.get("NumberOfFrames", 1))
    studies = sorted({str(source.StudyInstanceUID) for source in sources.values()})

    images = tmp_path / "images"
    for study in studies:
        assert not pull(archive, plan_pull(archive, StudyQuery(study=study), images), images).problems
    answers = tmp_path / "answers.csv"
    assert ask_many(run, ask_about_folder(images, ["Where is the liver?"]), answers).errors == 0
    plan = PushPlan(answers, images, "https://archive", segment=True)
    result = push(plan, archive)
    assert (result.rows, result.sent, result.problems) == (frames, 2 * frames, [])
    assert push(plan, archive).sent == 0

    worst, seen = 0.0, {"SR": set(), "SEG": set()}
    steps = np.repeat([CODEC.steps()], 2, axis=0).ravel() * (COLUMNS, ROWS, COLUMNS, ROWS)
    for study in studies:
        for content in fetch(archive, study, "SR"):
            report = sr.srread(io.BytesIO(content))
            (group,) = report.content.get_planar_roi_measurement_groups()
            (reference,) = group.roi.ContentSequence[0].ReferencedSOPSequence
            corners = np.concatenate([group.roi.value.min(0), group.roi.value.max(0)])
            key = check_references(reference, report, sources)
            seen["SR"].add(key)
            worst = max(worst, measure_distance(corners, marks[key[0]], steps / 2))
        for content in fetch(archive, study, "SEG"):
            segmentation = seg.segread(io.BytesIO(content))
            (groups,) = segmentation.PerFrameFunctionalGroupsSequence
            shared = segmentation.SharedFunctionalGroupsSequence[0]
            derivation = (groups.get("DerivationImageSequence") or shared.DerivationImageSequence)[0]
            rows, columns = np.nonzero(segmentation.pixel_array.reshape(ROWS, COLUMNS))
            corners = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            reference = derivation.SourceImageSequence[0]
            key = check_references(reference, segmentation, sources)
            seen["SEG"].add(key)
            measure_distance(corners, marks[key[0]], steps / 2 + 1)
    assert len(seen["SR"]) == len(seen["SEG"]) == frames
    print(f"{frames} frames of {len(sources)} images: farthest corner of a report {worst:.2f} pixels of {steps / 2}")


def check_references(reference: Any, ds: Any, sources: dict[str, Any]) -> Key:
    """The image and frame that an object refers to, after its other references were held against that image."""
    source = sources[reference.ReferencedSOPInstanceUID]
    assert reference.ReferencedSOPClassUID == source.SOPClassUID and ds.StudyInstanceUID == source.StudyInstanceUID
    frame = reference.get("ReferencedFrameNumber")
    assert (frame is None) == (int(source.get("NumberOfFrames", 1)) == 1)
    if "ReferencedSeriesSequence" in ds:
        assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
        assert ds.get("FrameOfReferenceUID") == source.get("FrameOfReferenceUID")
    else:
        assert ds.get_evidence()[0][1:3] == (source.SeriesInstanceUID, source.SOPInstanceUID)
    return str(source.SOPInstanceUID), None if frame is None else int(frame)


def measure_distance(corners: Any, mark: Any, most: Any) -> float:
    """How far a box is off, in pixels; `most`: the farthest it may be, left, top, right and bottom."""
    apart = np.abs(corners - np.array(mark))
    assert (apart <= most + 1e-3).all(), (apart, most)
    return float(apart.max())


# ---- a trained model ------------------------------------------------------------------------------------------------

PICTURED = {  # forms by what is drawn in them
    Modality.CT: ("CT", "enhanced CT"), Modality.MR: ("MR", "enhanced MR"), Modality.ULTRASOUND: ("US", "US film"),
    Modality.XRAY: ("CR", "DX"), Modality.PET: ("PET", "PET"),
}  # fmt: skip


DICOM_WORDS = {
    Modality.CT: ("CT",), Modality.MR: ("MR",), Modality.ULTRASOUND: ("US",), Modality.XRAY: ("CR", "DX"),
    Modality.PET: ("PT",),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> Path:
    folder = Path(os.environ.get("CLINKD_TRAINED_RUN", "none"))
    if not (folder / "table.json").is_file():
        pytest.skip("no trained model: run the demo (`make demo`) and set CLINKD_TRAINED_RUN to its folder, runs/demo")
    return folder


def call(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


def store_phantoms(archive: Archive, number: int) -> tuple[dict[str, Any], dict[Key, tuple[str, Box]]]:
    """Images of four modalities and more in all their forms: the headers by UID, and name and box in each frame."""
    sources, truths = {}, {}
    for n in range(number):
        modality = list(PICTURED)[n % len(PICTURED)]
        form = PICTURED[modality][n // len(PICTURED) % 2]
        rng = np.random.default_rng([2026, n])
        drawings = [draw_phantom(rng, modality, structures=1) for _ in range(IMAGE_FORMS[form][2])]
        content = make_image(form, 100 + n, pictures=np.stack([drawing.image for drawing in drawings]))
        archive.store(content)
        source = pydicom.dcmread(io.BytesIO(content))
        sources[str(source.SOPInstanceUID)] = source
        for frame, drawing in enumerate(drawings, start=1):
            (drawn,) = drawing.structures
            truths[str(source.SOPInstanceUID), frame if len(drawings) > 1 else None] = drawn.name, drawn.box
    return sources, truths


def read_objects(archive: Archive, sources: dict[str, Any]) -> tuple[dict[Key, Any], dict[Key, Any]]:
    """The boxes of the reports and of the segmentations that the archive has, in pixels, by image and frame."""
    reports: dict[Key, Any] = {}
    segmentations: dict[Key, Any] = {}
    for study in {str(source.StudyInstanceUID) for source in sources.values()}:
        for content in fetch(archive, study, "SR"):
            report = sr.srread(io.BytesIO(content))
            for group in report.content.get_planar_roi_measurement_groups():
                (reference,) = group.roi.ContentSequence[0].ReferencedSOPSequence
                corners = np.concatenate([group.roi.value.min(0), group.roi.value.max(0)])
                reports.setdefault(check_references(reference, report, sources), []).append(corners)
        for content in fetch(archive, study, "SEG"):
            segmentation = seg.segread(io.BytesIO(content))
            shared = segmentation.SharedFunctionalGroupsSequence[0]
            pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
            for groups, mask in zip(segmentation.PerFrameFunctionalGroupsSequence, pixels, strict=True):
                derivation = (groups.get("DerivationImageSequence") or shared.DerivationImageSequence)[0]
                rows, columns = np.nonzero(mask)
                corners = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                key = check_references(derivation.SourceImageSequence[0], segmentation, sources)
                segmentations.setdefault(key, []).append(corners)
    return reports, segmentations


def compare_boxes(drawn: dict[Key, Any], sources: dict[str, Any], told: dict[Key, dict[str, str]]) -> float:
    """How far the boxes of objects are from those of the answers at most, in pixels. `told`: rows of `clinkd ask` by
    image and frame; there must be no other objects."""
    worst = 0.0
    for key, row in told.items():
        size = np.array([sources[key[0]].Columns, sources[key[0]].Rows] * 2)
        boxes = [np.array(box.split(), float) * size for box in row["boxes"].split(";") if box]
        steps = np.repeat([CODEC.steps()], 2, axis=0).ravel() * size
        for corners, box in zip(drawn.get(key, []), boxes, strict=True):
            worst = max(worst, measure_distance(corners, box, steps / 2 + 1))
    assert drawn.keys() <= told.keys()
    return worst


@pytest.mark.slow
def test_a_trained_model_answers_twenty_images_of_an_archive(
    orthanc: Orthanc, archive: Archive, trained: Path, tmp_path: Path
) -> None:
    """By the verbs alone: the boxes in the archive are those of answers.csv. The overlap with truths is printed."""
    sources, truths = store_phantoms(archive, 20)
    images, sheet, answers = (tmp_path / name for name in ("images", "questions.csv", "answers.csv"))
    for source in sources.values():
        call("pacs", "pull", orthanc.web, "--out", images, "--study", source.StudyInstanceUID)
    files = {path.stem: path.relative_to(images) for path in images.rglob("*.dcm")}
    places = [f"{files[uid]}#{frame}" if frame else f"{files[uid]}" for uid, frame in truths]
    asked = [f"{place},Where is the {name}?" for place, (name, _) in zip(places, truths.values(), strict=True)]
    sheet.write_text("\n".join(["image,question", *asked]))
    call("ask", images, "--run", trained, "--questions", sheet, "--out", answers)
    call("pacs", "push", orthanc.web, "--answers", answers, "--images", images, "--seg")

    with answers.open(newline="") as file:
        told = dict(zip(truths, csv.DictReader(file), strict=True))
    worst, overlaps = [compare_boxes(drawn, sources, told) for drawn in read_objects(archive, sources)], []
    for key, row in told.items():
        boxes = [Box(*map(float, box.split())) for box in row["boxes"].split(";") if box]
        overlaps.append(float(iou_matrix([truths[key][1]], boxes).max(initial=0)))
    sure = sum(bool(row["confidence"]) for row in told.values())
    modalities = len({source.Modality for source in sources.values()})
    print(
        f"{len(told)} frames of {len(sources)} images, {modalities} modalities: farthest corner of a report "
        f"{worst[0]:.2f}, of a segmentation {worst[1]:.2f} pixels; IoU with the truth "
        f"{np.mean(overlaps):.2f}, {np.mean(np.array(overlaps) >= 0.5):.0%} from 0.5 on; {sure} have a confidence"
    )


@pytest.mark.slow
def test_a_trained_model_answers_what_an_archive_sends_it(
    orthanc: Orthanc, archive: Archive, trained: Path, tmp_path: Path
) -> None:
    """`clinkd pacs listen` by the network alone: Orthanc sends (C-STORE), a person accepts what was asked about the
    structure that is drawn, and those reports alone come back, with the boxes that `clinkd ask` gives."""
    sources, truths = store_phantoms(archive, 10)
    rules = "".join(
        f"{DICOM_WORDS[kind][0]}:\n  modality: [{', '.join(DICOM_WORDS[kind])}]\n  frames: all\n  questions:\n"
        + "".join(f"    - Where is the {name}?\n" for name in STRUCTURES[kind])
        for kind in PICTURED
    )
    words = ("--port", str(orthanc.receive_port), "--to", orthanc.dicom)
    with ListenCommand(trained, tmp_path, *words, rules=rules) as listener:
        listener.until_open(orthanc.receive_port)
        order = {"Resources": [one["ID"] for one in orthanc.get("/instances?expand")], "Synchronous": True}
        sent = orthanc.get("/modalities/clinkd/store", json.dumps(order).encode())
        assert (sent["InstancesCount"], sent["FailedInstancesCount"]) == (10, 0)
        listener.until(waiting=0, failed=0)
        entries, chosen = listener.entries("answered"), {}
        for entry in entries:
            key = entry["instance"], entry["frame"] if (entry["instance"], 1) in truths else None
            if entry["question"] == f"Where is the {truths[key][0]}?":
                chosen[key] = entry
                listener.accept(entry)
        assert chosen.keys() == truths.keys() and len(entries) == 3 * len(truths)
        listener.until(sent=len(truths), answered=len(entries) - len(truths))

    images, sheet, answers = (tmp_path / name for name in ("worklist/images", "questions.csv", "answers.csv"))
    places = [f"{uid}.dcm#{frame}" if frame else f"{uid}.dcm" for uid, frame in truths]
    asked = [f"{place},Where is the {name}?" for place, (name, _) in zip(places, truths.values(), strict=True)]
    sheet.write_text("\n".join(["image,question", *asked]))
    call("ask", images, "--run", trained, "--questions", sheet, "--out", answers)
    with answers.open(newline="") as file:
        told = dict(zip(truths, csv.DictReader(file), strict=True))
    for key, row in told.items():
        assert chosen[key]["answer"]["confidence"] == (float(row["confidence"]) if row["confidence"] else None)
    reports, segmentations = read_objects(archive, sources)
    assert not segmentations
    worst = compare_boxes(reports, sources, told)
    print(f"{len(told)} frames of {len(sources)} images: farthest corner of a report {worst:.2f} pixels")

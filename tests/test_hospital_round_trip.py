"""From an archive and back: images into Orthanc, pulled, asked, answers pushed, found by QIDO, read by highdicom."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom import seg, sr

from clinkd import pipeline
from clinkd.config import RunConfig
from clinkd.data.codecs import make_codec
from clinkd.hospital.pull import plan_pull, pull
from clinkd.hospital.push import PushPlan, push
from clinkd.inference.self_consistency import SelfConsistency
from clinkd.pacs import Archive, StudyQuery, connect
from clinkd.pipeline.graph import Stage
from clinkd.pipeline.runs import find_run
from clinkd.records import Box, BoxedText, Candidate, Prediction
from clinkd.settings import override
from clinkd.storage import write_json
from clinkd.workflows.answer_warnings import AnswerWarning
from clinkd.workflows.ask import Answer, Question
from clinkd.workflows.batch import ask_about_folder, ask_many
from dicom_images import COLUMNS, ROWS, make_image
from orthanc import PASSWORD, USER, Orthanc

CODEC = make_codec("locations", 16)
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
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    orthanc = Orthanc(tmp_path / "orthanc").start()
    monkeypatch.setenv("CLINKD_PACS_USER", USER)
    monkeypatch.setenv("CLINKD_PACS_PASSWORD", PASSWORD)
    yield connect(orthanc.web)
    orthanc.stop()


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
            worst = max(worst, check(reference, corners, report, steps / 2, marks, sources, seen["SR"]))
        for content in fetch(archive, study, "SEG"):
            segmentation = seg.segread(io.BytesIO(content))
            (groups,) = segmentation.PerFrameFunctionalGroupsSequence
            shared = segmentation.SharedFunctionalGroupsSequence[0]
            derivation = (groups.get("DerivationImageSequence") or shared.DerivationImageSequence)[0]
            rows, columns = np.nonzero(segmentation.pixel_array.reshape(ROWS, COLUMNS))
            corners = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            reference = derivation.SourceImageSequence[0]
            check(reference, corners, segmentation, steps / 2 + 1, marks, sources, seen["SEG"])
    assert len(seen["SR"]) == len(seen["SEG"]) == frames
    print(f"{frames} frames of {len(sources)} images: farthest corner of a report {worst:.2f} pixels of {steps / 2}")


def check(
    reference: Any, corners: Any, ds: Any, most: Any, marks: dict[str, Any], sources: dict[str, Any], seen: set[Any]
) -> float:
    """Whether an object refers to its image and frame, and its box lies where the mark is; how far it is off."""
    source = sources[reference.ReferencedSOPInstanceUID]
    assert reference.ReferencedSOPClassUID == source.SOPClassUID and ds.StudyInstanceUID == source.StudyInstanceUID
    frame = reference.get("ReferencedFrameNumber")
    assert (frame is None) == (int(source.get("NumberOfFrames", 1)) == 1)
    if "ReferencedSeriesSequence" in ds:
        assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
        assert ds.get("FrameOfReferenceUID") == source.get("FrameOfReferenceUID")
    else:
        assert ds.get_evidence()[0][1:3] == (source.SeriesInstanceUID, source.SOPInstanceUID)
    seen.add((str(source.SOPInstanceUID), frame))
    apart = np.abs(corners - marks[str(source.SOPInstanceUID)])
    assert (apart <= most + 1e-3).all(), (apart, most)
    return float(apart.max())

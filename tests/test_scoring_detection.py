"""Confidences beside boxes: average precision against pycocotools, FROC against a plain count, hits by IoU."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clinkd.boxes import iou_matrix
from clinkd.config import EvaluateConfig
from clinkd.data.readers.source import Source
from clinkd.records import (
    BadInput,
    Box,
    BoxedText,
    Candidate,
    ImageRef,
    Modality,
    Prediction,
    Sample,
    Task,
    Turn,
)
from clinkd.scoring.detection import (
    FALSE_POSITIVES,
    PRECISIONS,
    Detection,
    measure_detection,
)
from clinkd.scoring.reading.answer_files import HowToRead
from clinkd.scoring.reading.box_families import read_answer
from clinkd.workflows.answer import read_answers, read_test_set
from clinkd.workflows.evaluate import evaluate

NEAR, FAR = Box(0.1, 0.1, 0.3, 0.3), Box(0.6, 0.6, 0.9, 0.9)


def boxed(boxes: tuple[Box, ...]) -> BoxedText:
    return BoxedText(" ".join(["[box]"] * len(boxes)), boxes)


def sample(number: int, *boxes: Box, name: str = "mass") -> Sample:
    turn = Turn(Task.VG, BoxedText(f"Where is the {name}?"), boxed(boxes))
    image = ImageRef(f"{number}.png", 200, 100)
    return Sample(f"{number}-{name}", (image,), Modality.CT, (turn,), f"p{number}", names=(name,))


def says(of: Sample, *scored: tuple[Box, float]) -> Prediction:
    answer = boxed(tuple(box for box, _ in scored))
    return Prediction(of.id, (Candidate("", answer, box_scores=tuple(score for _, score in scored)),))


# ---- confidences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ('[{"bbox_2d": [100, 200, 400, 500], "label": "liver", "score": 0.9}]', (0.9,)),
        ('[{"bbox_2d": [1, 2, 4, 5], "confidence": "87%"}, {"bbox_2d": [9, 9, 40, 50], "prob": ".5"}]', (0.87, 0.5)),
        ('{"x1": 100, "y1": 200, "x2": 400, "y2": 500, "probability": 1e-05}', (1e-05,)),
        ('[{"bbox_2d": [1, 2, 400, 500], "score": 0.9}, {"bbox_2d": [9, 9, 40, 50]}]', ()),  # one of two states none
        ('[{"bbox_2d": [100, 200, 400, 500], "confidence": "high"}]', ()),
        ('[{"bbox_2d": [100, 200, 400, 500], "score": "nan"}]', ()),
        ('[{"score": 0.9, "label": "liver", "box": {"xmin": 1, "ymin": 2, "xmax": 30, "ymax": 40}}]', (0.9,)),
        ('{"bboxes": [[1, 2, 30, 40], [5, 5, 9, 9]], "labels": ["a", "b"], "scores": [0.9, 0.8]}', (0.9, 0.8)),
        ('[{"bbox_2d": [1, 2, 400, 500], "score": 0.9}, {"bbox_2d": [1, 2, 400, 500], "score": 0.2}]', (0.9,)),
        ("<box>(100,200),(400,500)</box>", ()),
    ],
)  # fmt: skip
def test_a_confidence_stays_beside_its_box(answer: str, scores: tuple[float, ...]) -> None:
    read = read_answer(answer, "qwen3-vl")
    assert read.scores == scores and read.answer.boxes and not read.unread


def test_percent_of_a_confidence_or_a_label_does_not_change_the_box() -> None:
    plain = read_answer('{"bbox_2d": [10, 20, 40, 50]}', "thousandths").answer.boxes
    for more in ('"confidence": "93%"', '"label": "50% stenosis"'):
        assert read_answer('{"bbox_2d": [10, 20, 40, 50], ' + more + "}", "thousandths").answer.boxes == plain


def test_a_candidate_keeps_its_scores_and_old_ones_open() -> None:
    scored = says(sample(1), (NEAR, 0.5)).answer
    assert Candidate.from_json(json.loads(json.dumps(scored.to_json()))) == scored
    old = Candidate("", boxed((NEAR,)))
    assert "box_scores" not in old.to_json() and Candidate.from_json(old.to_json()) == old
    with pytest.raises(BadInput, match="2 box_scores but 1 boxes"):
        Candidate("", boxed((NEAR,)), box_scores=(0.1, 0.2))


# ---- average precision ----------------------------------------------------------------------------------------------


def detected(image: int, category: int, bbox: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def make_coco(draw: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A truth of twelve images, the last three empty, and results: near misses, strays over the border, wrong names."""
    images = [{"id": n, "file_name": f"{n}.png", "width": 120, "height": 90, "split": "test"} for n in range(12)]
    categories = [{"id": k, "name": name, "supercategory": "ct"} for k, name in enumerate(("cyst", "mass", "stone"))]
    truths, results = [], []
    for image in range(9):
        for _ in range(draw.integers(1, 4)):
            x, y, w, h = (int(v) for v in (draw.integers(60), draw.integers(40), *draw.integers(10, 40, 2)))
            truth = {"image_id": image, "category_id": int(draw.integers(2)), "bbox": [x, y, w, h], "area": w * h}
            truths.append({"id": len(truths) + 1, "iscrowd": 0, **truth})
    for truth in truths:
        for _ in range(draw.integers(4)):
            bbox = [float(v) for v in np.array(truth["bbox"]) + draw.normal(0, 3, 4)]
            score = float(np.round(draw.random(), 1))  # many ties
            results.append(detected(truth["image_id"], truth["category_id"], bbox, score))
    results += [detected(image, int(draw.integers(3)), [90, 60, 50, 50], 0.35) for image in range(12)]
    results += [detected(t["image_id"], t["category_id"], [300, 0, 9, 9], 0.0) for t in truths]
    return {"images": images, "categories": categories, "annotations": truths}, results


def ask_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    """[T, R, K] precisions."""
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(r) for r in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 2]


def detect(folder: Path, truth: dict[str, Any], results: list[dict[str, Any]], least: float = 0.0) -> Detection:
    for name, value in (("coco.json", truth), ("results.json", results)):
        (folder / name).write_text(json.dumps(value))
    test = read_test_set(Source(folder / "coco.json", open_images=False, tasks=(Task.VG,)))
    answers = read_answers([folder / "results.json"], test, "wrong", least, HowToRead(), None)
    evaluation = evaluate(answers, ["strict"], EvaluateConfig(replicates=0))
    assert evaluation.detection and evaluation.to_json()["detection"] == evaluation.detection.to_json()
    return evaluation.detection


def test_average_precision_of_coco_results_is_that_of_pycocotools(tmp_path: Path) -> None:
    truth, results = make_coco(np.random.default_rng(5))
    detection = detect(tmp_path, truth, results)
    expected = ask_pycocotools(truth, results)[:, :, :2]  # of stone there is no truth
    assert detection.mean_precision == pytest.approx([100 * expected[t].mean() for t in (slice(None), 0, 5)], abs=1e-12)
    for k, name in enumerate(("cyst", "mass")):
        assert detection.precision[name][0] == pytest.approx(100 * expected[:, :, k].mean(), abs=1e-12)
    assert np.isnan(detection.precision["stone"]).all() and detection.to_json()["by_class"]["stone"] is None
    assert (detection.images, detection.boxes) == (12, len(results)) and 0 < detection.mean_precision[0] < 100
    titles = [table.title for table in detection.tables()]
    assert titles == ["Average precision", "FROC"] and detection.tables()[0].rows[0][0] == "mean of 2 classes"


def test_the_case_of_coco_results(shared: Path) -> None:
    folder = shared / "cases" / "evaluation" / "coco"
    if not folder.is_dir():
        pytest.skip(f"no cases at {folder}")
    test = read_test_set(Source(folder / "ann.json", modality=Modality.CT, tasks=(Task.VG,)), "all")
    for least, expected in ((0.0, (58.065, 78.261, 66.667)), (0.5, (84.375, 78.261, 81.203))):
        answers = read_answers([folder / "res.json"], test, "wrong", least, HowToRead(), None)
        evaluation = evaluate(answers, ["strict"], EvaluateConfig(replicates=0))
        figures = {s.metric: s.value for s in evaluation.strict.scores if (s.row, s.modality) == ("model", None)}
        assert [figures[m] for m in ("Precision", "Recall", "F1")] == pytest.approx(expected, abs=5e-4)
        truth, results = (json.loads((folder / name).read_text()) for name in ("ann.json", "res.json"))
        precision = ask_pycocotools(truth, [r for r in results if r["score"] >= least])
        assert evaluation.detection is not None
        assert evaluation.detection.mean_precision[0] == pytest.approx(100 * precision.mean(), abs=1e-12)


def test_without_a_confidence_nothing_is_ranked(tmp_path: Path) -> None:
    truth, results = make_coco(np.random.default_rng(6))
    detection = detect(tmp_path, truth, [{k: v for k, v in r.items() if k != "score"} for r in results])
    assert detection.why == f"{len(results):,} of {len(results):,} boxes have no score"
    assert detection.to_json()["AP50"] is None and detection.to_json()["FROC"] is None and detection.tables() == []
    asked = [sample(1, NEAR), sample(2, FAR)]
    bare = Prediction(asked[1].id, (Candidate("", boxed((FAR,))),))
    for said, why in (
        ([says(asked[0], (NEAR, 0.5)), bare], "1 of 2 boxes have no"),
        ([says(s) for s in asked], "no answer has a box"),
    ):
        found = measure_detection(asked, said, 0.5)
        assert found and found.why and found.why.startswith(why)
    assert measure_detection([], [], 0.5) is None
    nothing = measure_detection([sample(3)], [says(sample(3), (NEAR, 1))], 0.5)
    assert nothing and nothing.why == "no question has a truth box"


def test_perfect_answers_score_100_and_an_iou_of_a_half_is_a_hit() -> None:
    asked = [sample(n, NEAR, FAR) for n in range(4)]
    perfect = measure_detection(asked, [says(s, (NEAR, 0.9), (FAR, 0.8)) for s in asked], 0.5)
    assert perfect and perfect.mean_precision == (100, 100, 100) and set(perfect.sensitivity.values()) == {100}
    assert all(ends and ends[0] < 60 and ends[1] > 99.9 for ends in perfect.intervals.values())  # of four images
    half = Box(0.1, 0.1, 0.3, 0.2)  # in pixels 40 x 10 of 40 x 20
    found = measure_detection([sample(1, NEAR)], [says(sample(1), (half, 0.5))], 0.5)
    assert found and dict(zip(PRECISIONS, found.mean_precision, strict=True))["AP50"] == pytest.approx(100)
    assert found.intervals["mean"] is None  # one group tells nothing of others


# ---- FROC -----------------------------------------------------------------------------------------------------------


def count_froc(asked: list[Sample], answers: list[Prediction], rates: list[float]) -> list[float]:
    """Sensitivity at each rate: every threshold is tried, and the points are joined by straight lines."""
    scores = sorted({s for p in answers for s in p.answer.box_scores}, reverse=True)
    points = [(0.0, 0.0)]
    for threshold in scores:
        hits = misses = 0
        for item, prediction in zip(asked, answers, strict=True):
            answer = prediction.answer
            ranked = sorted(zip(answer.box_scores, answer.answer.boxes, strict=True), key=lambda x: -x[0])
            free = list(item.answer.boxes)
            for score, box in ranked:
                if score >= threshold:
                    best = max(free, key=lambda t: iou_matrix([t], [box])[0, 0], default=None)
                    if best and iou_matrix([best], [box])[0, 0] >= 0.5:
                        free.remove(best)
                        hits += 1
                    elif all(iou_matrix([t], [box])[0, 0] < 0.5 for t in item.answer.boxes):
                        misses += 1
        points.append((misses / len(asked), hits / sum(len(s.answer.boxes) for s in asked)))
    result = []
    for rate in rates:
        before = [p for p in points if p[0] <= rate][-1]
        after = next((p for p in points if p[0] > rate), None)
        share = 0.0 if after is None else (rate - before[0]) / (after[0] - before[0])
        result.append(before[1] + share * ((after or before)[1] - before[1]))
    return result


def test_froc_is_what_a_plain_count_finds() -> None:
    draw = np.random.default_rng(8)
    asked, answers = [], []
    for n in range(25):
        truth = tuple(Box(x, y, x + 0.2, y + 0.2) for x, y in draw.uniform(0, 0.8, (draw.choice([0, 1, 2]), 2)))
        scored = []
        for box in truth * 2:
            x, y = np.clip(np.array([box.x1, box.y1]) + draw.normal(0, 0.03, 2), 0, 0.8).tolist()
            scored.append((Box(x, y, x + 0.2, y + 0.2), float(np.round(draw.random(), 1))))
        for x, y in draw.uniform(0, 0.8, (draw.integers(4), 2)).tolist():
            scored.append((Box(x, y, x + 0.2, y + 0.2), float(np.round(draw.random() * 0.9, 1))))
        asked.append(sample(n, *truth))
        answers.append(says(asked[-1], *scored))
    found = measure_detection(asked, answers, 0.5)
    expected = count_froc(asked, answers, list(FALSE_POSITIVES.values()))
    assert found and [found.sensitivity[k] / 100 for k in FALSE_POSITIVES] == pytest.approx(expected)
    assert found.sensitivity["mean"] == pytest.approx(100 * np.mean(expected)) and len({*expected}) > 4
    ends = found.intervals["mean"]
    assert ends and ends[0] < found.sensitivity["mean"] < ends[1]


def test_images_without_a_truth_box_count_in_froc() -> None:
    asked = [sample(0, NEAR), *(sample(n) for n in range(1, 8))]
    answers = [says(asked[0], (FAR, 0.9), (NEAR, 0.5)), *(says(s) for s in asked[1:])]
    found = measure_detection(asked, answers, 0.5)
    assert found and found.images == 8 and found.sensitivity["1/8"] == 100  # one false box in eight images
    alike = [replace(s, images=asked[0].images) for s in asked]  # one picture, of which the data make eight groups
    assert (one := measure_detection(alike, answers, 0.5)) and one.images == 1 and one.sensitivity["1/2"] == 0
    few = measure_detection(asked[:4], answers[:4], 0.5)
    assert few and few.sensitivity["1/8"] == 0 and few.sensitivity["1/4"] == 100

"""The page of answers that no run of ours gave, the figures on pages, and the numbers behind them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clinkd import cli
from clinkd.boxes import iou
from clinkd.language.facts import Lexicon
from clinkd.records import Box, BoxedText, Candidate, ImageRef, Modality, Prediction, Sample, Table, Task, Turn
from clinkd.reporting.figures import draw_figures, rename_classes
from clinkd.reporting.report import RunSummary, ShownAnswers, write_report
from clinkd.scoring.plotted import NO_CONFIDENCES, NONE, OTHER, SEVERAL, describe_confidence, describe_figures

CLASSES = tuple(f"organ{letter}" for letter in "abcdefghijklmn")  # 14 of them


# ---- the page -------------------------------------------------------------------------------------------------------


def write_rows(folder: Path, count: int = 6) -> Path:
    """Rows in the papers' form about images of which every third is nowhere, and the second lies deeper."""
    images = folder / "images"
    (images / "deep").mkdir(parents=True)
    lines = []
    for n in range(count):
        name = f"{'ct' if n % 2 else 'mr'}_{n}.png"
        if n % 3:
            Image.new("RGB", (40, 30), (9 * n, 20, 30)).save(images / ("deep" if n % 3 == 2 else "") / name)
        answer = ("<box>(100,100),(500,500)</box>", "<box>(600,600),(900,900)</box>", "I cannot say <b>")[n % 3]
        row = {
            "id": n,
            "image": name,
            "question": f"Where is part {n}?",
            "annotation": "<box>(100,100),(500,500)</box>",
        }
        lines.append(json.dumps({**row, "response": answer}))
    file = folder / "answers.jsonl"
    file.write_text("\n".join(lines))
    return file


def evaluate(file: Path, out: Path, *words: object) -> str:
    flags = ["--predictions", file, "--task", "VG", "--replicates", "20", "--as", "GPT-x", "--out", out, *words]
    assert cli.main(["evaluate", *map(str, flags)]) == 0
    return (out / "report.html").read_text()


def read_data(html: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(re.search('id="data">(.*?)</script>', html)[1])
    return found


def test_a_page_of_foreign_answers_holds_all_of_them_under_its_own_title(tmp_path: Path) -> None:
    html = evaluate(write_rows(tmp_path), tmp_path / "out", "--mode", "strict")
    data = read_data(html)
    assert "<title>GPT-x on answers.jsonl</title>" in html
    assert [(s["n"], s["v"]) for s in data["samples"]] == [(n + 1, n % 3 == 0) for n in range(6)]
    assert data["samples"][2]["c"][0]["a"] == "I cannot say <b>" and data["samples"][0]["f"]["F1"] == 1
    assert data["pictures"] == [[None, 4, 3]] * 6 and "data:image/" not in html and "--images FOLDER" in html
    shown = re.sub("<style>.*?</style>|<script.*?</script>", "", html, flags=re.S)
    for word in ("ClinKD run", "knob", "Set-up", "Time", "First beam", "oracle", "Corrections"):
        assert not re.search(rf"\b{word}\b", shown), word
    rows = dict(re.findall('<th scope="row">([^<]*)</th><td>([^<]*)</td>', shown))
    assert rows["system"] == "GPT-x" and rows["questions"] == "6 VG"
    assert rows["answers without a box where one was asked for"] == "2"
    assert " style=" not in shown and "<script" not in shown
    # of so few answers there are reasons in the place of figures
    figures = json.loads((tmp_path / "out" / "table.json").read_text())["figures"]
    assert figures["boxes"]["why"] == "6 truth boxes are too few, 20 are wanted" and figures["boxes"]["why"] in shown
    assert figures["token_probability"] == {"VG": {"why": "the answers bring no probabilities"}}
    assert figures["confidence"]["VG"] == {"answers": 0, "of": 4, "why": NO_CONFIDENCES}
    assert "Token probability of VG is not drawn: the answers bring no probabilities" in shown
    assert (
        f"Confidence of VG, MIA or QA is not drawn: {NO_CONFIDENCES}" in shown and "how well boxes overlap" not in shown
    )


def test_pictures_are_found_by_their_names_and_those_that_are_missing_are_told(tmp_path: Path) -> None:
    file, out = write_rows(tmp_path), tmp_path / "out"
    html = evaluate(file, out, "--images", tmp_path / "images")
    assert html.count("data:image/") == 4
    assert "2 of 6 pictures are missing or cannot be read" in html and "first in question 1." in html
    blank = [n for n, entry in enumerate(read_data(html)["pictures"]) if entry == [None, 4, 3]]
    assert blank == [0, 3]  # the others are in cards or in the data, with the size of the image
    plain = tmp_path / "plain"
    evaluate(file, plain)
    for name in ("samples.jsonl", "evaluation.json", "scores.jsonl"):  # the pictures are for the page alone
        assert (out / name).read_text() == (plain / name).read_text()


def test_a_folder_of_pictures_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--predictions", str(write_rows(tmp_path)), "--task", "VG", "--images", str(tmp_path / "none")]
    assert cli.main(["evaluate", *words]) == 2
    assert "no such folder" in capsys.readouterr().err


# ---- the numbers behind the figures ---------------------------------------------------------------------------------


def draw_boxes(rng: np.random.Generator, most: int) -> BoxedText:
    corners = rng.random((rng.integers(0, most + 1), 4)) * [0.5, 0.5, 0.45, 0.45] + [0, 0, 0.02, 0.02]
    boxes = tuple(Box(x, y, x + w, y + h) for x, y, w, h in corners.tolist())
    return BoxedText(" ".join(["[box]"] * len(boxes)) or "none", boxes)


def draw_answers(seed: int = 0) -> tuple[list[Sample], list[Prediction], list[Prediction]]:
    """60 questions of VG and of ROC with answers, and those of a blind baseline to most of VG."""
    rng, samples, predictions, blind = np.random.default_rng(seed), [], [], []
    for n in range(60):
        truth, answer = draw_boxes(rng, 3), draw_boxes(rng, 4)
        named = CLASSES[min(n % 20, 13)], str(rng.choice([*CLASSES, "nothing", "organa and organb"]))
        for task, (true, said) in {Task.VG: (truth, answer), Task.ROC: map(BoxedText, named)}.items():
            turn = Turn(task, BoxedText("?"), true)
            names = (true.text,) if task is Task.ROC else ()
            samples.append(
                Sample(f"{task}{n}", (ImageRef(f"{n}.png", 9, 9),), Modality.CT, (turn,), f"{n}", names=names)
            )
            predictions.append(Prediction(f"{task}{n}", (Candidate("", said, math.log(0.5 + n / 200)),)))
        if n % 7:
            blind.append(Prediction(f"VG{n}", (Candidate("", draw_boxes(rng, 1)),)))
    return samples, predictions, blind


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    samples, predictions, blind = draw_answers()
    figures = {s.id: {"F1": float(n % 3 == 0), "Recall": float(n % 2)} for n, s in enumerate(samples)}
    found = describe_figures(samples, predictions, ("median box", blind), figures, Lexicon(CLASSES), 20)
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    return found


def test_numbers_of_boxes_are_those_of_a_naive_loop(described: dict[str, Any]) -> None:
    samples, predictions, blind = draw_answers()
    boxes = described["boxes"]
    assert boxes["blind_is"] == "median box"
    for row, answers in (("model", predictions), ("blind", blind)):
        said = {p.id: p.answer.answer.boxes for p in answers}
        pairs = [
            (truth, max((iou(truth, box) for box in said.get(s.id, ())), default=0.0))
            for s in samples
            if s.task is Task.VG
            for truth in s.answer.boxes
        ]
        best = [value for _, value in pairs]
        assert boxes["truth_boxes"] == len(best) == sum(boxes["histogram"]["counts"][row])
        assert boxes["histogram"]["counts"][row][0] == sum(value < 0.05 for value in best)
        for threshold, share in zip(boxes["recall"]["thresholds"], boxes["recall"]["shares"][row], strict=True):
            assert share == pytest.approx(sum(value >= threshold for value in best) / len(best))
        edges = boxes["size"]["edges"]
        for low, high, count, mean in zip(
            edges[:-1], edges[1:], boxes["size"]["counts"], boxes["size"]["mean_iou"][row], strict=True
        ):
            inside = [value for truth, value in pairs if low < truth.area <= high]
            assert len(inside) == count and (mean is None if not inside else mean == pytest.approx(np.mean(inside)))


def test_names_are_counted_by_truth_and_by_what_was_named(described: dict[str, Any]) -> None:
    samples, predictions, _ = draw_answers()
    names = described["names"]
    assert (
        len(names["columns"]) == 12 + 3 and names["columns"][-3:] == [OTHER, NONE, SEVERAL] and names["classes"] == 14
    )
    assert names["rows"][0] == "organn" and names["rows"][-1] == OTHER  # the commonest; the two rarest are together
    said = {p.id: p.answer.answer.text for p in predictions}
    counted = {(row, column): count for row, counts in zip(names["rows"], names["counts"], strict=True)
               for column, count in zip(names["columns"], counts, strict=True)}  # fmt: skip
    assert sum(counted.values()) == names["answers"] == 60

    def count(truth: str, *texts: str) -> int:
        return sum(s.answer.text == truth and said[s.id] in texts for s in samples if s.task is Task.ROC)

    assert counted["organn", "organn"] == count("organn", "organn")
    assert counted["organn", NONE] == count("organn", "nothing")
    assert counted["organn", SEVERAL] == count("organn", "organa and organb")
    rare = set(CLASSES) - {*names["columns"]}
    assert len(rare) == 2 and counted["organn", OTHER] == count("organn", *rare)


def test_every_figure_is_drawn_with_a_title_and_a_sentence_and_can_be_read_aloud(described: dict[str, Any]) -> None:
    html = "".join(draw_figures(described))
    assert "by an older version, which did not look at their confidence" in html
    titles = re.findall("<figcaption>(.*?)</figcaption>", html)
    assert titles == [
        "VG: how well boxes overlap", "VG: recall by the least IoU of a found box",
        "VG: overlap by the size of the true box", "VG: reliability diagram", "VG: risk by coverage",
        "ROC: reliability diagram", "ROC: risk by coverage",
    ]  # fmt: skip
    assert len(re.findall('<svg class="bars" role="img" aria-label="[^"]{40,}"', html)) == len(titles)
    assert len(re.findall(r'</figure><p class="soft">[^<]{60,}</p>', html)) == len(titles)
    assert "ROC: truth (rows) by what was named (columns)" in html and "style=" not in html and "nan" not in html
    [observed, calibrated] = re.findall('<polyline class="curve c[01]" points="([^"]*)"', html)[2:4]
    assert calibrated == "52.0,224.0 482.0,34.0" and len(observed.split()) == html.count('class="whisker"') // 2


def test_the_confidence_that_is_told_is_drawn_beside_the_token_probability_and_the_constant(
    described: dict[str, Any],
) -> None:
    samples, answers, _ = draw_answers()
    told = [
        replace(p, confidence=0.3 + n / 200 if n % 11 else None) if p.answer.answer.boxes else p
        for n, p in enumerate(answers)
    ]
    why = {"VG": "a fold told none", "MIA or QA": "9 answers are too few"}
    confidence = describe_confidence(samples, told, Lexicon(CLASSES), why, 20)
    html = "".join(draw_figures({**described, "confidence": confidence}))
    before, after = html.split("<summary>Token probability by task</summary>")
    titles = re.findall("<figcaption>(.*?)</figcaption>", before)
    assert titles[-2:] == ["VG: reliability diagram", "VG: risk by coverage"]
    last = before[before.index("VG: reliability diagram") :]
    for name in ("confidence", "as said", "token probability", "any order"):
        assert f">{name}</text>" in last, name
    assert len(re.findall('<polyline class="curve c2"', last)) == 2 and "ROC: reliability diagram" in after
    rows = re.findall('<th scope="row"[^>]*>([^<]*)</th><td>([^<]*)</td>', before)[-2:]
    known = confidence["VG"]
    assert rows == [("VG", str(known["answers"])), ("token probability", str(known["answers"]))]
    assert f"{known['of'] - known['answers']} of {known['of']} answers have none: a fold told none." in before
    assert "Confidence of MIA or QA is not drawn: 9 answers are too few." in before


def test_names_of_classes_can_be_hidden(described: dict[str, Any]) -> None:
    hidden = rename_classes(described, lambda name: f"class {CLASSES.index(name) + 1}")
    html = "".join(draw_figures(hidden))
    assert "organ" not in html and "class 14" in html and NONE in html
    assert hidden["names"]["counts"] == described["names"]["counts"] and rename_classes({}, str) == {}


def test_sources_are_shown_as_other_words_of_the_data(tmp_path: Path) -> None:
    by_source = Table("By source", ("Task", "Source"), (("VG", "Mary's images"),), (), "by_source")
    summary = RunSummary(name="mine", tables=[by_source], scores=())
    write_report(tmp_path / "page.html", summary, ShownAnswers(image_root=None, shown=hide_mary))
    for name in ("page.html", "table.md"):
        text = (tmp_path / name).read_text()
        assert "By source" in text and "Mary" not in text


def hide_mary(text: str) -> str:
    return text.replace("Mary", "…")

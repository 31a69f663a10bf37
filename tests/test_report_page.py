"""The report in a browser: cells open their questions, filters find theirs, nothing complains, leaks or overflows."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from browser import Browser, program
from clinkd.cli import main
from clinkd.config import RunConfig
from clinkd.correction.summary import reflection_tables
from clinkd.experiments import EXPERIMENTS
from clinkd.language.facts import Lexicon
from clinkd.pipeline import graph, plan
from clinkd.pipeline.graph import trace_lineage
from clinkd.pipeline.report import _spell_public_knob, read_training_curves
from clinkd.pipeline.runs import begin_run
from clinkd.records import (
    Box,
    BoxedText,
    Candidate,
    Correction,
    ImageRef,
    Modality,
    Prediction,
    Sample,
    Score,
    Task,
    Turn,
)
from clinkd.remote import PlainPage, Scrubber
from clinkd.reporting.browse import AnsweredSample, choose_evenly, select_for_page, select_without_text
from clinkd.reporting.cases import SharedCases
from clinkd.reporting.columns import explain_columns
from clinkd.reporting.figures import Curve
from clinkd.reporting.gallery import choose_gallery
from clinkd.reporting.opening import choose_three, state_result
from clinkd.reporting.report import RunSummary, ShownAnswers, write_report, write_shared
from clinkd.reporting.tables import RetestResult, effect_table, read_table, tabulate_scores
from clinkd.reporting.viewer.page import document, section
from clinkd.scoring.score import Gain, score_predictions
from clinkd.settings import override
from clinkd.storage import write_json, write_lines

HOSTILE = "</script><img src=x onerror=alert(1)><!--"
HEAD = {Task.VG: "F1", Task.ROC: "Recall", Task.RC: "SPICE", Task.MIA: "mBMR"}
TASKS, MODALITIES = tuple(HEAD), (Modality.CT, Modality.MR, Modality.PET)


def a_box(dice: random.Random) -> Box:
    x, y = dice.uniform(0, 0.6), dice.uniform(0, 0.6)
    return Box(round(x, 3), round(y, 3), round(x + 0.3, 3), round(y + 0.25, 3))


def test_set(root: Path, images: int, side: int = 48, seed: int = 0) -> list[AnsweredSample]:
    """Four questions an image, with three candidates each; some are right, of some nobody can say."""
    dice, noise, found = random.Random(seed), np.random.default_rng(seed), []
    for number in range(images):
        name, modality = f"i{number}.png", MODALITIES[number % 3]
        Image.fromarray(noise.integers(0, 255, (side, side * 4 // 3), dtype=np.uint8)).save(root / name)
        for task in TASKS:
            box = a_box(dice)
            question = BoxedText("Where is the liver?") if task is Task.VG else BoxedText("What is at [box]?", (box,))
            truth = BoxedText("At [box].", (box,)) if task is Task.VG else BoxedText(f"liver {number}")
            if number == 0:
                question = BoxedText(f"{question.text} {HOSTILE}", question.boxes)
            source = ("atlas", "clinic")[number % 2]
            image = ImageRef(name, side * 4 // 3, side)
            key = f"{task.value}-{number}"
            item = Sample(key, (image,), modality, (Turn(task, question, truth),), name, source)
            said = [BoxedText("Here: [box]", (a_box(dice),)) for _ in range(3)]
            candidates = tuple(Candidate("<box>raw", s, -1.5, {"clip": 0.25}) for s in said)
            worth, right = round(dice.random(), 3), dice.choice([True, False, None])
            prediction = Prediction(key, candidates, dice.randrange(3), confidence=0.734 if task is Task.VG else None)
            found.append(AnsweredSample(len(found) + 1, item, prediction, right, {HEAD[task]: worth}))
    return found


test_set.__test__ = False  # type: ignore[attr-defined]


def scores_of(answered: Sequence[AnsweredSample]) -> list[Score]:
    counts = Counter((a.sample.task, a.sample.modality) for a in answered)
    found = [Score("model", t, HEAD[t], m, 50.0, n, None, (40.0, 60.0)) for (t, m), n in counts.items()]
    found += [Score("model", t, HEAD[t], None, 50.0, sum(counts[t, m] for m in MODALITIES)) for t in TASKS]
    return found + [Score("constant", t, HEAD[t], m, 20.0, n) for (t, m), n in counts.items()]


# of the token probability, as 0.1.0 wrote it before it had a name of its own
OLD_CALIBRATION = {
    "answers": 40, "of": 40, "right": 30, "mean_confidence": 0.8, "ece": 0.05, "ece_interval": None,
    "ece_if_calibrated": 0.03, "ece_equal_mass": 0.04, "brier": 0.17, "aurc": 0.2, "excess_aurc": 0.1,
    "bins": [{"low": 0.7, "high": 0.8, "answers": 40, "confidence": 0.8, "accuracy": 0.75, "interval": [0.6, 0.9]}],
    "risk_coverage": {"coverage": [0.5, 1.0], "risk": [0.1, 0.25]},
}  # fmt: skip


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[AnsweredSample]]:
    root = tmp_path_factory.mktemp("page")
    return root, test_set(root, 21)


@pytest.fixture(scope="module")
def report(answered: tuple[Path, list[AnsweredSample]], monkeypatch_module: pytest.MonkeyPatch) -> Path:
    root, items = answered
    pairs = [(a.sample, a.prediction) for a in items]
    gallery = choose_gallery([s for s, _ in pairs], [p for _, p in pairs], 6)
    steps = [(float(x), 5.0 / x) for x in range(1, 300)]
    scores = scores_of(items)
    summary = RunSummary(
        name="r",
        tables=tabulate_scores(scores),
        scores=scores,
        setup=[("seed", "0", "")],
        wall_seconds={"teacher": 1.0},
        curves=[Curve("Distillation", {"loss": steps, "cross-entropy": steps, "KL": steps})],
    )
    write_report(root / "report.html", summary, ShownAnswers(image_root=root, answered=items, gallery=gallery))
    plain = RunSummary(tables=tabulate_scores(scores), scores=scores, setup=[], wall_seconds={})
    write_shared(root / "shared.html", plain, items)
    return root / "report.html"


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    """VG is headed by F1 here, whatever else it is headed by."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("tables", "browse", "figures"):
            patch.setattr(f"clinkd.reporting.{module}.PRIMARY_METRIC", {**HEAD, Task.QA: "Accuracy"})
        yield patch


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program()
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
        assert opened.told == []


def numbers(browser: Browser) -> list[int]:
    """Of the questions whose cards stand there, in order."""
    found: list[int] = browser.ask("[...document.querySelectorAll('#cards article')].map((c) => +c.dataset.sample)")
    return found


def more(browser: Browser, cards: int) -> None:
    """Click for more until so many cards stand there: on a busy machine a click may fall while the page still moves."""
    ended = time.monotonic() + 20
    while len(numbers(browser)) < cards and time.monotonic() < ended:
        before = len(numbers(browser))
        browser.click("#more")
        tried = time.monotonic() + 2
        while len(numbers(browser)) == before and time.monotonic() < tried:
            time.sleep(0.05)
    assert len(numbers(browser)) == cards


def told(browser: Browser) -> str:
    said: str = browser.ask("document.getElementById('count').textContent")
    return said


def test_every_cell_opens_the_questions_that_the_table_counts(browser, report, answered):
    browser.open(report)
    cells = browser.ask("[...document.querySelectorAll('table.grid a')].map((a) => [a.getAttribute('href'), a.title])")
    assert len(cells) == len(TASKS) * (len(MODALITIES) + 1)
    for href, title in cells:
        task, modality = re.search(r"task=(\w+)", href)[1], re.search(r"modality=(\w+)|$", href)[1]
        items = [a for a in answered[1] if a.sample.task == task and modality in (None, a.sample.modality)]
        assert f"; {len(items)} questions" in title
        browser.ask(f"location.hash = {json.dumps(href)}; new Promise((done) => setTimeout(done, 20))")
        metric = HEAD[Task(task)]
        worst = sorted(items, key=lambda a: (a.figures[metric], 0.5 if a.right is None else float(a.right), a.number))
        assert numbers(browser) == [a.number for a in worst[:24]]
        assert told(browser).startswith(f"{len(items)} questions of 84")
    assert not browser.told


def test_a_click_and_a_key_open_a_cell_and_go_there(browser, report):
    browser.open(report)
    browser.click("table.grid a[href*='task=ROC'][href*='modality=mr']")
    assert told(browser).startswith("7 questions of 84") and browser.ask("document.activeElement.id") == "count"
    assert -1 < browser.ask("document.getElementById('answers').getBoundingClientRect().top") < 5
    browser.ask("document.querySelector('table.grid a[href*=\"task=VG\"]').focus()")
    browser.press("Enter")
    assert "task=VG" in browser.ask("location.hash") and told(browser).startswith("7 questions of 84")


def test_a_card_tells_the_confidence_of_its_answer_where_there_is_one(browser, report):
    for without_script in (False, True):
        browser.call("Emulation.setScriptExecutionDisabled", value=without_script)
        browser.open(report)
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
        texts = browser.ask("[...document.querySelectorAll('#cards article')].map((card) => card.innerText)")
        told_of_vg = {(text.startswith("VG"), bool(re.search(r"Confidence\s+73 %", text))) for text in texts}
        assert told_of_vg == {(True, True), (False, False)}, (without_script, texts)


def test_more_cards_come_on_demand_and_take_the_focus(browser, report):
    browser.open(report)
    assert len(numbers(browser)) == 6 and "first 6 are shown" in told(browser)
    more(browser, 30)
    assert browser.ask("document.activeElement.dataset.sample") == str(numbers(browser)[6])
    for count in (54, 78, 84):
        more(browser, count)
    assert sorted(numbers(browser)) == list(range(1, 85)) and browser.ask("document.getElementById('more').hidden")


@pytest.mark.parametrize(
    ("fragment", "wanted"),
    [
        ("verdict=wrong&task=RC", lambda a: a.right is False and a.sample.task is Task.RC),
        ("verdict=open", lambda a: a.right is None),
        ("source=1&verdict=right", lambda a: a.right is True and a.sample.source == "clinic"),
        ("q=LIVER+17", lambda a: "liver 17" in a.sample.answer.text),
        ("by=mBMR&order=best", lambda a: a.sample.task is Task.MIA),
        ("sample=33", lambda a: a.number == 33),
        ("task=nonsense&q=nothing+like+it", lambda a: False),
    ],
)
def test_the_address_says_what_is_shown(browser, report, answered, fragment, wanted):
    browser.open(report, fragment)
    assert browser.ask("document.activeElement.id") == "count"
    while not browser.ask("document.getElementById('more').hidden"):
        browser.ask("document.getElementById('more').click()")
    assert sorted(numbers(browser)) == [a.number for a in answered[1] if wanted(a)]


def test_a_filter_changes_the_address_and_all_come_back(browser, report):
    browser.open(report)
    browser.ask("(() => { const f = document.querySelector('select[name=verdict]'); f.value = 'wrong'; "
                "f.dispatchEvent(new Event('input', {bubbles: true})); })()")  # fmt: skip
    assert browser.ask("location.hash") == "#verdict=wrong" and not told(browser).startswith("84")
    browser.click("#filter button")
    assert told(browser).startswith("84 questions of 84") and browser.ask("location.hash") == "#answers"


def test_boxes_lie_where_they_are_and_those_of_a_candidate_can_be_drawn(browser, report, answered):
    item = next(a for a in answered[1] if a.sample.task is Task.VG)
    browser.open(report, f"sample={item.number}")
    inside = """(() => {
      const p = document.querySelector('#cards .shot img').getBoundingClientRect();
      return [...document.querySelectorAll('#cards .over .line.KIND')].map((e) => {
        const r = e.getBBox(), m = e.getScreenCTM();
        return [(m.a * r.x + m.e - p.x) / p.width, (m.d * r.y + m.f - p.y) / p.height,
                m.a * r.width / p.width, m.d * r.height / p.height];
      });
    })()"""
    (truth,) = browser.ask(inside.replace("KIND", "truth"))
    box = item.sample.answer.boxes[0]
    assert truth == pytest.approx([box.x1, box.y1, box.width, box.height], abs=0.002)
    browser.ask("document.querySelector('#cards details').open = true")
    for k in (0, 1, 2):
        browser.click(f"#cards li:nth-child({k + 1}) button")
        (drawn,) = browser.ask(inside.replace("KIND", "answer"))
        box = item.prediction.candidates[k].answer.boxes[0]
        assert drawn == pytest.approx([box.x1, box.y1, box.width, box.height], abs=0.002)
    pressed = browser.ask("[...document.querySelectorAll('#cards li button')].map((b) => b.ariaPressed)")
    assert pressed == ["false", "false", "true"]
    chosen = browser.ask("[...document.querySelectorAll('#cards li')].findIndex((e) => e.className === 'chosen')")
    assert chosen == item.prediction.chosen
    browser.click("#kinds input[value=truth]")
    hidden = "getComputedStyle(document.querySelector('#cards .over .line.truth')).display"
    assert browser.ask(hidden) == "none"


def test_what_people_wrote_is_text_and_nothing_runs(browser, report):
    browser.open(report, "sample=1")
    assert HOSTILE in browser.ask("document.querySelector('#cards dd').textContent")
    assert browser.ask("document.querySelectorAll('img:not([src^=\"data:\"])').length") == 0
    assert browser.ask("document.querySelectorAll('script').length") == 2


@pytest.mark.parametrize("name", ["report.html", "shared.html"])
@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_screen_is_not_scrolled_sideways(browser, report, name, dark):
    browser.open(report.with_name(name), "task=VG", width=360, height=740, dark=dark)
    browser.ask("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.ask("document.documentElement.scrollWidth") == 360
    contrasts = browser.ask(
        "[...document.querySelectorAll('h2, dd, .soft, .good, .bad, th, td b')].slice(0, 40).map((e) => "
        "[getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor])"
    )
    assert all(contrast(*pair) > 4.5 for pair in contrasts)


def contrast(*colours: str) -> float:
    """Of two colours by WCAG 2."""
    shine = []
    for colour in colours:
        parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        shine.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(shine) + 0.05) / (min(shine) + 0.05)


def test_without_a_script_tables_and_a_gallery_stand_there(browser, report):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(report)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    held = "[...document.querySelectorAll('#result img, #cards img')].map((e) => e.dataset.picture)"
    pictures = browser.ask(held)  # of the opening and of the gallery, none of them twice
    assert len(pictures) == len(set(pictures)) == 8
    assert browser.ask("getComputedStyle(document.getElementById('filter')).display") == "none"
    assert browser.ask("document.querySelectorAll('table.grid td').length") > 12


def test_several_systems_stand_side_by_side_over_one_picture(browser, answered, tmp_path):
    root, items = answered
    systems = {name: {a.sample.id: a.prediction for a in items} for name in ("BiRD <old>", "ours", "blind")}
    samples = [a.sample for a in items]
    cases = SharedCases(samples, systems, dict.fromkeys((s.id for s in samples), root))
    html = cases.render(cases.choose_evenly(5), "notice")
    assert html.count("data:image/") == 5 and html.count("<use href=") == 10 and "<old>" not in html
    path = tmp_path / "cases.html"
    path.write_text(document("Cases", [section("Cases", [html])]))
    browser.open(path, width=360, height=740)
    heights = browser.ask("[...document.querySelectorAll('.shot > svg:first-child')].map((e) => e.clientHeight)")
    assert len(heights) == 15 and min(heights) > 100 and browser.ask("document.documentElement.scrollWidth") == 360
    shown = browser.ask("[...document.querySelectorAll('use')].every((e) => e.getBBox().width > 0)")
    assert shown


# ---- how much of it --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_reduced_evenly_and_told(tmp_path):
    items = test_set(tmp_path, 24, side=240)
    whole = select_for_page(items, tmp_path, str)
    assert len(whole.data["samples"]) == 96 and "All 96 questions" in whole.notes[0]
    small = select_for_page(items, tmp_path, str, most_bytes=2_400_000)
    size = len(json.dumps(small.data))
    assert 500_000 < size <= 900_000 and "smaller than the images" in small.notes[-1]
    assert len(small.data["samples"]) == 96 and len(small.pictures) == 24
    few = select_for_page(items, tmp_path, str, most_bytes=1_700_000)
    kinds = Counter((s["t"], s["m"]) for s in few.data["samples"])
    assert len(json.dumps(few.data)) <= 220_000 and len(kinds) == 12 and max(kinds.values()) - min(kinds.values()) <= 1
    assert f"{len(few.data['samples'])} of the 96 questions" in few.notes[0] and "evenly" in few.notes[0]
    assert [s["n"] for s in few.data["samples"]] == sorted(s["n"] for s in few.data["samples"])


def test_a_spread_takes_all_of_the_rare_and_none_twice(tmp_path):
    items = test_set(tmp_path, 12)
    rare = items[0]._replace(number=99, sample=replace(items[0].sample, modality=Modality.FUNDUS, id="x"))
    for most in (1, 7, 13, 30, 48, 500):
        kept = choose_evenly([*items, rare], most)
        assert len(kept) == min(most, 49) == len({a.number for a in kept})
        assert most < 13 or rare in kept


def test_a_page_hides_by_a_thousand_terms_what_a_scrubber_hides():
    dice = random.Random(0)
    letters = [
        "Müller",
        "MÜLLER",
        "lung",
        "Anna^Maria",
        "x-7",
        "CASE 12",
        "left",
        "[box]",
        "Straße",
        "2019-03-02",
        "(7)",
    ]
    for _ in range(60):
        terms = {" ".join(dice.choices(letters, k=dice.randint(1, 3))) for _ in range(8)} | {"^^^", "Box"}
        text = dice.choice([" ", ", "]).join(dice.choices([*letters, "strasse", "ANNA", "of", "maria."], k=9))
        assert PlainPage(terms)(text) == Scrubber(terms).plain(text)


# ---- a page to be mailed ---------------------------------------------------------------------------------------------

CANARY = "SanktGallus"


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, RunConfig]:
    """A run with a hospital's name wherever one can be, as its stages would have left it."""
    (tmp_path / "base").mkdir()
    settings = [f"model.base={tmp_path / 'base' / CANARY}", "model.positions=native"]
    settings += ["reflect.rounds=1", f"name={CANARY}", "select.scorer=first"]
    (tmp_path / "base" / CANARY).mkdir()
    (tmp_path / "base" / CANARY / "config.json").write_text("{}")
    config = override(EXPERIMENTS["demo"](), settings)
    stages, runs = plan(config), tmp_path / "runs"
    begin_run(config, stages, runs)
    at = {s.name: runs / graph.CACHE / s.key for s in stages}
    for stage, record in zip(stages, graph.describe_stages(stages), strict=True):
        write_json(at[stage.name] / "stage.json", {**record, "seconds": 1.0, "recorded": {}})
    scan = dcmread(get_testdata_file("CT_small.dcm", download=False))
    scan.InstitutionName = CANARY
    (at["prepare"] / CANARY).mkdir()
    scan.save_as(at["prepare"] / CANARY / "scan.dcm")
    said = BoxedText(f"{CANARY} shows [box]", (Box(0.1, 0.1, 0.4, 0.4),))
    names = (CANARY, f"{CANARY} 2")
    samples = [
        Sample(f"{CANARY}{i}", (ImageRef(f"{CANARY}/scan.dcm", 128, 128),), Modality.CT, (Turn(Task.VG, said, said),),
               CANARY, source, names)
        for i, source in enumerate((CANARY, f"{CANARY} B"))
    ]  # fmt: skip
    write_json(at["prepare"] / "data.json", {"root": "", "lexicon": Lexicon(names).to_json()})
    for split in ("train", "test"):
        write_lines(at["prepare"] / f"{split}.jsonl", (s.to_json() for s in samples))
    answers = (Candidate(f"{CANARY} raw", said, -1.0, {CANARY: 0.5}, (CANARY,)), Candidate(CANARY, BoxedText(CANARY)))
    write_lines(at["answer"] / "predictions.jsonl", ())
    write_lines(at["select"] / "predictions.jsonl", (Prediction(s.id, answers, 0, CANARY).to_json() for s in samples))
    fixes = [
        Correction(samples[0].id, 1, said, said, 0.2, ("similarity",), said, CANARY),
        Correction(samples[1].id, 1, said, said, 0.2, ("box",), None, CANARY, f"{CANARY} is left out: {CANARY}"),
    ]
    write_lines(at["reflect-1"] / "corrections.jsonl", (c.to_json() for c in fixes))
    log = at["teacher"] / "fit-teacher" / "log.jsonl"
    log.parent.mkdir()
    write_lines(
        log, [{"damaged": f"/{CANARY}/x"}, *({"step": n, "loss": 3.0 / n, "ce": 3.0 / n} for n in (1, 2, 2, 3))]
    )
    scored = at["score"]
    found = [Score("model", Task.VG, "Recall", m, 60.0, 2) for m in (Modality.CT, None)]
    found.append(Score("model", Task.MIA, "mBMR", None, None, 2, f"no Java at /opt/{CANARY}/bin"))
    by_source = {"title": "By source", "columns": ["Task", "Source"], "rows": [["VG", s.source] for s in samples]}
    plain = [{"title": t.title, "columns": t.columns, "rows": t.rows, "notes": t.notes} for t in tabulate_scores(found)]
    write_json(scored / "tables.json", [*plain, {**by_source, "notes": [f"of '{CANARY}'"]}])
    write_lines(scored / "scores.jsonl", (s.to_json() for s in found))
    write_lines(scored / "answers.jsonl", ({"id": s.id, "right": True, "figures": {"Recall": 1.0}} for s in samples))
    named = {"rows": [CANARY], "columns": [CANARY, "another class", "no class", "several classes"]}
    figures = {"names": {**named, "classes": 1, "counts": [[9, 0, 1, 0]]}, "calibration": {"VG": OLD_CALIBRATION}}
    write_json(scored / "table.json", {"figures": figures})
    (scored / "report.html").write_text("<title>ClinKD run: old</title>")
    return runs, config


def texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    for part in parts if isinstance(parts, list) else ():
        yield from texts(part)


def test_a_shared_page_holds_nothing_that_anybody_wrote(finished, capsys):
    runs, _ = finished
    assert main(["report", "--runs", str(runs), "--share"]) == 0
    path = runs / CANARY / "report-shared.html"
    assert str(path) in capsys.readouterr().out
    html = path.read_text()
    assert CANARY.lower() not in html.lower() and "data:image/" not in html and str(runs.parent) not in html
    assert (
        "source 1" in html
        and "source 2" in html
        and "class 1" in html
        and "Refused: the truth stays" in html
        and "Teacher" in html
    )
    data = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])
    known = {*Task, *Modality, *data["modalities"].values(), "Recall", "SPICE", "mBMR", "Accuracy", "Facts F1", "mIoU"}
    known |= {"Open recall of words", "F1", "pictures", "modalities", "sources", "first", "samples", "ask", "tru"}
    known |= set("ntmvfckbslxp")
    assert set(texts(data)) <= known and data["sources"] == [] and len(data["samples"]) == 2
    assert data["samples"][0]["tru"] == [[0.1, 0.1, 0.4, 0.4]]


def test_the_page_is_written_again_with_names_hidden_and_no_scoring(finished, monkeypatch):
    runs, _ = finished
    monkeypatch.setattr("clinkd.pipeline.report.score_predictions", None)
    assert main(["report", CANARY, "--runs", str(runs)]) == 0
    html = (runs / CANARY / "report.html").read_text()
    data = html[html.index('id="data">') :]
    assert CANARY not in data and "[id] shows" in data and html.count("data:image/") >= 1
    assert "[id]" in html[html.index('id="corrections"') :]


def test_tables_are_found_by_their_keys_whatever_their_titles_say(finished):
    """Those of version 0.1.0, as `finished` holds them, have titles alone; those of today keys."""
    runs, _ = finished
    (file,) = runs.glob(".stages/score-*/tables.json")
    tables = [read_table(value) for value in json.loads(file.read_text())]
    assert [t.key for t in tables if t.key] == ["scores", "by_modality", "by_source"]
    write_json(file, [{**asdict(t), "title": f"{t.title}, renamed"} for t in tables])
    assert main(["report", CANARY, "--runs", str(runs), "--share"]) == 0
    html = (runs / CANARY / "report-shared.html").read_text()
    assert "Scores, renamed" in html and "By source, renamed" in html and "Task by modality, renamed" not in html
    assert CANARY.lower() not in html.lower() and "source 1" in html


def test_a_page_goes_nowhere_over_a_file_of_others(finished, tmp_path, capsys):
    runs, _ = finished
    out = tmp_path / "mine.txt"
    out.write_text("mine")
    words = ["report", "--runs", str(runs), "--share", "--out"]
    assert main([*words, str(out)]) == 2 and out.read_text() == "mine"
    assert "not of this command" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "new.html")]) == 0 == main([*words, str(tmp_path / "new.html")])


def test_figures_of_an_older_version_are_drawn_under_their_name_of_today(finished, tmp_path):
    runs, _ = finished
    page = tmp_path / "page.html"
    assert main(["report", "--runs", str(runs), "--out", str(page)]) == 0
    html = page.read_text()
    assert "Token probability</caption>" in html and "VG: reliability diagram" in html
    assert (
        "by an older version, which did not look at their confidence" in html and "a tenth of the answers" not in html
    )


def test_a_run_that_was_scored_by_an_older_version_is_told_so(finished, capsys):
    runs, _ = finished
    next(runs.glob(".stages/score-*/answers.jsonl")).unlink()
    assert main(["report", "--runs", str(runs)]) == 2
    assert "scores the run anew" in capsys.readouterr().err


def test_a_knob_is_shared_where_it_is_a_figure_or_a_choice():
    from clinkd.settings import panel

    config = override(EXPERIMENTS["demo"](), ["data.path=/data/Charité", "select.tasks=[VG, MIA]", "device=cpu"])
    told = {k.name: _spell_public_knob(k) for k in panel(config)}
    assert told["data.path"] == told["name"] == "(given)" and told["device"] == "cpu" and told["seed"] == "0"
    assert told["select.tasks"] == "VG, MIA" and told["teacher.share"] == "0.111"


def test_the_logs_of_all_trainings_are_found_through_what_a_stage_needed(finished):
    runs, config = finished
    ends = {s.name: runs / graph.CACHE / s.key for s in plan(config) if s.name in ("select", "reflect-1")}
    found = trace_lineage(ends)
    names = list(found)
    assert {"prepare", "base", "teacher", "distill", "reflect-1", "answer", "select"} <= set(names)
    assert names.index("prepare") < names.index("teacher") < names.index("distill") < names.index("answer")
    (curve,) = read_training_curves(found)
    assert curve.title == "Teacher" and curve.series == {"loss": [(1, 3.0), (2, 1.5), (3, 1.0)]}


def test_scores_and_boxes_alone_hold_no_exact_size_of_an_image(answered):
    data = select_without_text(answered[1]).data
    assert data["pictures"] == [[None, 320, 240]] and len(data["samples"]) == 84


# ---- the opening -----------------------------------------------------------------------------------------------------


def test_the_result_is_one_sentence_that_spells_out_the_tasks():
    scores = [
        Score("model", Task.VG, "F1", None, 82.84, 9), Score("centre", Task.VG, "F1", None, 9.0, 9),
        Score("most common", Task.VG, "F1", None, 8.0, 9), Score("model", Task.ROC, "Recall", None, 50.0, 9),
        Score("model", Task.MIA, "mBMR", None, None, 2, "no Java"),
    ]  # fmt: skip
    sentence = state_result(scores)
    assert (
        "finding a named structure, with a box (VG) 82.8 (9.0); naming the structure in a box (ROC) 50.0 (-)."
        in sentence
    )
    assert "MIA" not in sentence and state_result([]) == ""


def test_three_pictures_show_a_right_answer_a_near_one_and_a_wrong_one(tmp_path):
    items = [item for item in test_set(tmp_path, 6) if item.sample.task is Task.VG]
    verdicts = [(False, 0.0), (True, 1.0), (False, 0.4), (None, 0.9), (False, 0.7), (True, 1.0)]
    judged = [i._replace(right=r, figures={"IoU": v}) for i, (r, v) in zip(items, verdicts, strict=True)]
    assert [(name, item.number) for name, item in choose_three(judged)] == [
        ("Right", judged[1].number), ("Near", judged[4].number), ("Wrong", judged[0].number),
    ]  # fmt: skip
    assert [name for name, _ in choose_three(judged[:1])] == ["Wrong"] and choose_three([]) == []


def test_the_page_opens_with_the_result_and_folds_the_knobs(finished):
    runs, _ = finished
    assert main(["report", CANARY, "--runs", str(runs)]) == 0
    html = (runs / CANARY / "report.html").read_text()
    opening = html[html.index('<section id="result"') : html.index('<section id="scores"')]
    assert opening.count('<article class="card">') >= 1 and "Right · VG" in opening and CANARY not in opening
    assert '<details class="folded"><summary>All ' in html[html.index('<section id="set-up"') :]


def test_the_first_screen_holds_result_pictures_and_headline_table(browser, report):
    browser.open(report)
    edges = "(({top, bottom, right}) => [top, bottom, right])(document.querySelector('NAME').getBoundingClientRect())"
    for name in ("#result > p", "#result .three", "#result table"):
        top, bottom, right = browser.ask(edges.replace("NAME", name))
        assert 0 < top < bottom < 900 and right <= 1280, name
    assert browser.ask("document.querySelectorAll('#result .three .card').length") == 3
    scroll = "(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)(document.querySelector('#result .scroll'))"
    assert browser.ask(scroll) == 0
    assert browser.ask("document.documentElement.scrollHeight") < 8_000
    browser.open(report, width=390, height=844)
    ratios = browser.ask("[...document.querySelectorAll('.three .shot')].map((e) => e.clientWidth / e.clientHeight)")
    assert len(ratios) == 3 and ratios == pytest.approx([4 / 3] * 3, rel=0.02)  # the boxes lie where they are
    assert browser.ask("document.documentElement.scrollHeight") < 12_000


def test_an_interval_is_read_without_a_mouse_and_folded_parts_are_printed(browser, report):
    browser.open(report)
    cell = browser.ask("document.querySelector('table.grid a').innerText.split(/\\n+/)")
    assert cell[:3] == ["50.0", "[40.0, 60.0]", "blind 20.0"]
    assert browser.ask("document.querySelectorAll('.folded[open]').length") == 0
    browser.ask("dispatchEvent(new Event('beforeprint'))")
    assert browser.ask("document.querySelectorAll('.folded:not([open])').length") == 0


def columns_without_meaning(html: str) -> list[str]:
    """Heads of tables without their meaning, in each table or in the list below it."""
    heads = re.findall(r'<th scope="col"([^>]*)>(.*?)</th>', html)
    listed = " ".join(re.findall(r"<dt>(.*?)</dt>", html))
    return [head for tip, head in heads if "title=" not in tip or (head or "First column") not in listed]


def test_every_column_of_every_table_says_what_it_is(small_run, tmp_path):
    """Of a whole run; and of tables that it may lack."""
    html = (small_run / "report.html").read_text()
    assert html.count("<table") > 8 and columns_without_meaning(html) == []
    samples = [item.sample for item in test_set(tmp_path, 1)]
    again = [RetestResult(1, "VG-0", Task.VG, Modality.CT, True, False, BoxedText("so"))]
    wrong = Correction("VG-0", 1, BoxedText("a"), BoxedText("b"), 0.2, ("box",), None, "offline", "so")
    scored = [Score("by clip", Task.QA, "Accuracy", None, 1.0, 3), Score("model", Task.QA, "Accuracy", None, 1.0, 3)]
    gains = [Gain("by clip", Task.QA, "Accuracy", 1.0, (0.0, 2.0))]
    items = [item for item in test_set(tmp_path, 4) if item.sample.task is Task.VG]
    answers = [item.prediction for item in items]
    rules = EXPERIMENTS["demo"]().evaluate
    sources = score_predictions([i.sample for i in items], answers, {"centre": answers}, Lexicon(()), rules).by_source()
    tables = [sources, effect_table(again), *reflection_tables([wrong], samples), *tabulate_scores(scored, gains)]
    heads = {head for table in tables for head in table.columns}
    assert "Which" in heads and {head for head in heads if not explain_columns([head])} == set()

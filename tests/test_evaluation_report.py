"""Tables for people and programs, and the page: right cells, honest gaps, nothing that could run or load."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from subprocess import run
from sys import executable

import pytest
from PIL import Image

from clinkd.correction.summary import reflection_tables
from clinkd.language.facts import Lexicon
from clinkd.pipeline.report import _charge_choices
from clinkd.pipeline.runs import score_table
from clinkd.records import (
    BadInput,
    Box,
    BoxedText,
    Candidate,
    Correction,
    ImageRef,
    Modality,
    Prediction,
    Sample,
    Score,
    Table,
    Task,
    Turn,
)
from clinkd.reporting.browse import AnsweredSample
from clinkd.reporting.gallery import choose_gallery, choose_rewritten
from clinkd.reporting.printed import paper_tables
from clinkd.reporting.report import RunSummary, ShownAnswers, write_report
from clinkd.reporting.tables import (
    RetestResult,
    ScoreIndex,
    charge_selection,
    describe_scores,
    effect_table,
    tabulate_scores,
    to_csv,
    to_markdown,
)
from clinkd.reporting.viewer.page import SCRIPT, table
from clinkd.scoring.intervals import wilson_interval
from clinkd.scoring.measure import Rules
from clinkd.scoring.score import Gain
from clinkd.storage import write_json

HOSTILE = "<script>alert(1)</script><img src=x onerror=\"a('b')\">|[box]"
WHY = "SPICE is not part"


def both(row: str, task: Task, metric: str, value: float | None, why: str | None = None) -> list[Score]:
    """The figure of CT alone, which is then the mean too."""
    return [Score(row, task, metric, m, value, 10, why) for m in (Modality.CT, None)]


@pytest.fixture
def scores() -> list[Score]:
    found = []
    for row, value in (
        ("model", 60.0),
        ("first beam", 55.0),
        ("oracle", 70.0),
        ("constant", 20.0),
        ("other image", 30.0),
    ):
        found += both(row, Task.VG, "F1", value) + both(row, Task.ROC, "Recall", value + 1)
        found += both(row, Task.RC, "SPICE", None, WHY) + both(row, Task.RC, "Facts F1", value + 2)
        found += both(row, Task.MIA, "mBMR", value + 3)
    return found + both("median box", Task.VG, "F1", 25.0)


def test_json_for_a_program(scores: list[Score]) -> None:
    found = describe_scores(scores, {"teacher": 1.5})
    for task in Task:  # every metric is there, so that a new row of scoring/metrics.py is too
        assert set(found[task.value]["metrics"]) == {s.metric for s in scores if s.task is task}
    assert found["mode"] == "strict" and found["wall_seconds"] == {"teacher": 1.5}
    assert found["VG"] == {
        "metric": "F1",
        "score": 60.0,
        "blind": 30.0,
        "interval": None,
        "answers": 10,
        "blind_is": "other image",
        "blind_chosen_on": "test",
        "blind_by": {"constant": 20.0, "other image": 30.0, "median box": 25.0},
        "by_modality": {"ct": {"score": 60.0, "blind": 30.0, "interval": None, "answers": 10}},
        "metrics": {"F1": {"score": 60.0, "blind": 30.0, "interval": None, "answers": 10}},
    }
    assert "median box" not in found["ROC"]["blind_by"]
    assert (found["RC"]["score"], found["RC"]["why"]) == (None, WHY)
    assert found["RC"]["by_modality"]["ct"] == {
        "score": None, "blind": None, "interval": None, "answers": 10, "why": WHY,
    }  # fmt: skip
    assert found["RC"]["facts"] == {"score": 62.0, "blind": 32.0}
    assert found["MIA"]["facts"]["score"] is None and "no facts" in found["MIA"]["facts"]["why"]
    assert found["QA"]["score"] is None and "no QA questions" in found["QA"]["why"]
    assert found["average"] is None and "RC" in found["average_why"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_average_is_of_the_four_tasks_once_all_are_there(scores: list[Score]) -> None:
    spice = both("model", Task.RC, "SPICE", 62.0)
    found = describe_scores([s for s in scores if s.metric != "SPICE"] + spice, {})
    assert found["average"] == (60 + 61 + 62 + 63) / 4 and "average_why" not in found


def test_selection_for_a_program(scores: list[Score]) -> None:
    more = [Score("agreement", Task.VG, "F1", None, 57.0, 10, None, (50.0, 64.0))]
    gained = Gain("agreement", Task.VG, "F1", 2.0, (-1.0, 5.0))
    found = describe_scores([*scores, *more], {}, [gained])["selection"]
    assert list(found) == ["VG"] and list(found["VG"]) == ["F1"]
    rows = found["VG"]["F1"]
    assert list(rows) == ["first beam", "agreement", "model", "oracle"]
    assert rows["first beam"] == {"score": 55.0, "interval": None}
    own = {"score": 57.0, "interval": (50.0, 64.0), "gain": 2.0, "gain_interval": (-1.0, 5.0)}
    assert rows["agreement"] == own
    assert describe_scores(scores, {})["selection"] == {}


def test_what_spans_0_is_not_called_a_gain(scores: list[Score]) -> None:
    more = [s for row in ("agreement", "by clip") for s in both(row, Task.VG, "F1", 57.0)]
    gained = [
        Gain("agreement", Task.VG, "F1", 2.0, (-1.0, 5.0)),
        Gain("by clip", Task.VG, "F1", 2.0, (0.5, 3.5)),
        Gain("by clip", Task.ROC, "Recall", -9.0, (-12.0, -6.0)),
        Gain("by clip", Task.MIA, "mBMR", 1.0, (-12.0, 16.0)),
        Gain("model", Task.VG, "F1", 0.0, (0.0, 0.0)),
        Gain("oracle", Task.VG, "F1", 15.0, (10.0, 20.0)),
    ]
    table = next(t for t in tabulate_scores([*scores, *more], gained) if t.key == "selection")
    assert table.columns == ("", "First beam", "Agreement", "By clip", "Chosen", "Oracle")
    assert table.rows[:3] == (
        ("VG F1", "55.0", "57.0", "57.0", "60.0", "70.0"),
        ("  above the first beam", "-", "+2.0", "+2.0", "+0.0", "+15.0"),
        ("  95 % interval of that", "-", "[-1.0, 5.0]", "[0.5, 3.5]", "[0.0, 0.0]", "[10.0, 20.0]"),
    )
    assert table.notes[:4] == (
        "Agreement: no gain and no loss: every interval spans 0.",
        "By clip: better than the first beam in VG F1 +2.0; worse in ROC Recall -9.0; no difference seen in the rest.",
        "Chosen: scores as the first beam does, in every task.",
        "The most that any choice among these candidates could gain (oracle): VG F1 +15.0.",
    )


def test_what_a_choice_cost_stands_below_it(scores: list[Score]) -> None:
    more = [s for row in ("agreement", "by clip") for s in both(row, Task.VG, "F1", 57.0)]
    gained = [Gain("by clip", Task.VG, "F1", 2.0, (0.5, 3.5))]
    table = next(t for t in tabulate_scores([*scores, *more], gained) if t.key == "selection")
    charged = charge_selection(table, {"first beam": 0.0, "agreement": 0.25, "by clip": 31.0, "model": 31.0})
    costs = dict(zip(charged.columns[1:], charged.rows[-1][1:], strict=True))
    assert costs == {"First beam": "0.0", "Agreement": "0.2", "By clip": "31.0", "Chosen": "31.0", "Oracle": "-"}


def test_what_a_crop_classifier_was_trained_for_is_charged(tmp_path: Path) -> None:
    """It stands in the place of the CLIP, under another name."""
    scored = {"agreement": 0.25, "random": 0.0, "crop classifier": 6.0}
    records: dict[str, object] = {"select": {"recorded": {"scoring_seconds": scored}}, "clip": {"seconds": 30}}
    for stage, record in records.items():
        write_json(tmp_path / stage / "stage.json", record)
    charged = _charge_choices({stage: tmp_path / stage for stage in records})
    trained = dict.fromkeys(("by crop classifier", "by crop alone", "model"), 36.0)
    assert charged == {"agreement": 0.25, "random": 0.0, "first beam": 0.0, **trained}


def test_where_no_other_choice_scores_otherwise_selection_is_not_spoken_of(scores: list[Score]) -> None:
    same = [Gain("model", Task.VG, "F1", 0.0, (0.0, 0.0))]
    assert [t.title for t in tabulate_scores(scores, same)] == [t.title for t in tabulate_scores(scores)]


def test_how_far_the_model_is_above_the_best_baseline_has_an_interval(scores: list[Score]) -> None:
    best = ScoreIndex(scores).best_baseline(Task.VG, "F1")
    gains = [Gain(row or "", Task.VG, "F1", 30.0, (12.0, 41.5)) for row in (best, "another")]
    overall = tabulate_scores(scores, gains)[0]
    place = [row[0].strip() for row in overall.rows].index("Model above it")
    assert overall.rows[place + 1][overall.columns.index("VG F1")] == "[12.0, 41.5]"
    described = describe_scores(scores, {}, gains)
    assert (described["VG"]["above_blind"], described["VG"]["above_blind_interval"]) == (30.0, [12.0, 41.5])
    assert "VG: the model minus the best blind baseline is +30.0 [+12.0, +41.5]" in score_table(described, "").notes
    assert "above_blind" not in described["ROC"] and described["selection"] == {}


def test_tables_show_gaps_as_gaps(scores: list[Score]) -> None:
    overall, by_modality, *rest = tabulate_scores(scores)
    column = overall.columns.index("RC SPICE")
    lines = {r[0].strip(): r for r in overall.rows}
    assert lines["Model"][column] == "not computed" and lines["Model"][-1] == "-"
    assert any(WHY in n for n in overall.notes)
    assert lines["Best blind baseline"][overall.columns.index("VG F1")] == "30.0"
    assert lines["Model above it"][overall.columns.index("VG F1")] == "+30.0"
    assert by_modality.columns[1:9] == ("CT", "MR", "X-ray", "PET", "Endoscopy", "Dermoscopy", "Fundus", "Ultrasound")
    assert by_modality.rows[0][1:3] == ("60.0", "-")
    assert "Outside the paper's modalities" not in [t.title for t in rest]
    assert all(len(r) == len(t.columns) for t in (overall, by_modality, *rest) for r in t.rows)


def test_modalities_outside_the_paper_stand_apart(scores: list[Score]) -> None:
    more = [Score("model", Task.VG, "F1", Modality.MICROSCOPY, 40.0, 3)]
    outside = next(t for t in tabulate_scores(scores + more) if t.title.startswith("Outside"))
    assert outside.rows[0][1] == "40.0"


def test_the_papers_slips_are_named() -> None:
    notes = " ".join(n for t in paper_tables() for n in t.notes)
    slips = [float(v) for v in re.findall(r"is (\d+\.\d+), printed", notes)]
    assert sorted(slips) == pytest.approx([42.03, 60.85, 65.30, 67.65])
    assert "Not comparable" in notes


def test_csv_has_a_line_for_each_score(scores: list[Score]) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(scores))))
    assert len(lines) == len(scores)
    assert {r["value"] for r in lines if r["metric"] == "SPICE"} == {""}


def test_markdown_cells_cannot_break_out() -> None:
    text = to_markdown(Table("T", ("a", "b"), (("x|y", "<b>\nline"),)))
    row = next(line for line in text.splitlines() if "x" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 3 and "<b>" not in text


# ---- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags and attributes of a page, checked to be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, str] = {}  # of scripts, by id
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.texts[self.tags[-1][1].get("id") or ""] = data

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def hostile_sample(folder: Path, number: int, task: Task = Task.VG) -> Sample:
    Image.new("RGB", (40, 30), (90, 20, 30)).save(folder / f"{number}.png")
    text = BoxedText(HOSTILE, (Box(0.1, 0.1, 0.5, 0.5),))
    kinds = (Modality.CT, Modality.PET)
    turn = Turn(task, text, text)
    return Sample(f"s{number}", (ImageRef(f"{number}.png", 40, 30),), kinds[number % 2], (turn,), f"g{number}", HOSTILE)


def guessed(item: Sample) -> Prediction:
    return Prediction(item.id, (Candidate(HOSTILE, item.answer, -0.5, {HOSTILE: 0.25}, (HOSTILE,), True),), by=HOSTILE)


@pytest.fixture
def html(tmp_path: Path, scores: list[Score]) -> str:
    items = [hostile_sample(tmp_path, i) for i in range(2)]
    found = ("s0", 1, items[0].answer, items[0].answer, 0.3, ("box",))
    fixes = [
        Correction(*found, items[1].answer, HOSTILE),
        Correction(*found, None, HOSTILE, HOSTILE),
    ]
    later = RetestResult(1, "s0", Task.VG, Modality.CT, True, False, items[0].answer)
    summary = RunSummary(
        name=HOSTILE,
        tables=[*tabulate_scores(scores), Table(HOSTILE, (HOSTILE,), ((HOSTILE,),), (HOSTILE,))],
        scores=scores,
        setup=[(HOSTILE, HOSTILE, HOSTILE)],
        reflection=[*reflection_tables(fixes, items), effect_table([later])],
        wall_seconds={HOSTILE: 2.0},
    )
    answers = ShownAnswers(
        gallery=[(s, guessed(s)) for s in items],
        image_root=tmp_path,
        rewritten=choose_rewritten(items, fixes, [later], 8),
        rules=Rules(0.5, Lexicon((HOSTILE,))),
    )
    write_report(tmp_path / "report.html", summary, answers)
    assert (tmp_path / "table.md").is_file() and (tmp_path / "table.csv").is_file()
    return (tmp_path / "report.html").read_text()


def test_nothing_hostile_gets_through(html: str) -> None:
    page = Page(html)
    assert not {"iframe", "object", "link", "base"} & {t for t, _ in page.tags}
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on") or a in ("style", "action")]
    sources = [a["src"] for t, a in page.tags if t == "img"]
    assert len(sources) == 4 and all((s or "").startswith("data:image/") for s in sources)
    assert all((a["href"] or "").startswith("#") for t, a in page.tags if t == "a")
    scripts = [a for t, a in page.tags if t == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}] and page.texts[""] == SCRIPT
    data = json.loads(page.texts["data"])
    assert data["samples"][0]["q"] == data["samples"][0]["c"][0]["a"] == HOSTILE and "<" not in page.texts["data"]


def test_the_policy_allows_the_style_the_script_and_the_pictures_only(html: str) -> None:
    policy = next(a["content"] for t, a in Page(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    kinds = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert kinds.pop("style-src") == f"'sha256-{digest(re.search('<style>(.*?)</style>', html, re.S)[1])}'"
    assert kinds.pop("script-src") == f"'sha256-{digest(SCRIPT)}'"
    none = {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}
    assert kinds == {**none, "img-src": "data:", "require-trusted-types-for": "'script'"}


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_page_can_be_read_aloud_and_opens_with_the_result(html: str) -> None:
    page = Page(html)
    assert ("html", {"lang": "en"}) in page.tags
    assert all(a.get("alt") for t, a in page.tags if t == "img")
    assert all(a.get("aria-label") or a.get("aria-hidden") for t, a in page.tags if t == "svg")
    assert all(a.get("scope") for t, a in page.tags if t == "th")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {(a["href"] or "")[1:] for t, a in page.tags if t == "a"}
    assert {link for link in links if "=" not in link} <= set(ids)
    assert "task=VG&modality=ct&by=F1" in links
    sentence, picture, grid = map(html.index, ("in brackets the best baseline", "<svg", "Task by modality: model,"))
    assert sentence < picture < grid
    assert "Research use only" in html


def bare(scores: list[Score]) -> RunSummary:
    return RunSummary(name="r", tables=[], scores=scores, setup=[], wall_seconds={})


def test_a_picture_is_embedded_once_whatever_is_asked_about_it(tmp_path: Path, scores: list[Score]) -> None:
    items = [hostile_sample(tmp_path, 0, task) for task in (Task.VG, Task.ROC, Task.RC)]
    items = [replace(s, id=f"s{i}") for i, s in enumerate(items)]
    answered = [AnsweredSample(i, s, guessed(s), None, {}) for i, s in enumerate(items, start=1)]
    shown = ShownAnswers(image_root=tmp_path, answered=answered, gallery=[(items[1], guessed(items[1]))])
    write_report(tmp_path / "report.html", bare(scores), shown)
    html = (tmp_path / "report.html").read_text()
    assert html.count("data:image/") == 1
    data = json.loads(Page(html).texts["data"])
    assert data["pictures"] == [[None, 40, 30]] and [s["p"] for s in data["samples"]] == [0, 0, 0]


def test_an_unreadable_image_is_named_and_nothing_is_written(tmp_path: Path, scores: list[Score]) -> None:
    item = hostile_sample(tmp_path, 1)
    (tmp_path / "1.png").write_bytes(b"no image")
    out = tmp_path / "out"
    with pytest.raises(BadInput, match="1.png"):
        write_report(
            out / "report.html", bare(scores), ShownAnswers(image_root=tmp_path, gallery=[(item, guessed(item))])
        )
    assert not out.exists()


def test_the_gallery_takes_turns_and_is_blind_to_the_answers(tmp_path: Path) -> None:
    items = [hostile_sample(tmp_path, i, t) for i in range(10) for t in (Task.VG,)]
    chosen = choose_gallery(items, [guessed(s) for s in items], 4)
    assert [s.modality for s, _ in chosen].count(Modality.CT) == 2
    assert len({s.group for s, _ in chosen}) == 4
    assert len(choose_gallery(items, [guessed(s) for s in items], 99)) == 10


class Seen:
    """A hook that marks what it lets through."""

    def __call__(self, text: str) -> str:
        return text.replace("SECRET", "[shown]")


def test_every_text_of_people_and_models_goes_through_the_hook(tmp_path: Path, scores: list[Score]) -> None:
    item = hostile_sample(tmp_path, 0)
    secret = BoxedText("SECRET at [box]", (Box(0.2, 0.2, 0.6, 0.6),))
    item = replace(item, turns=(Turn(Task.VG, secret, secret),))
    said = Candidate("SECRET raw", secret, None, {}, ("(SECRET",))
    fixes = [
        Correction("s0", 1, secret, secret, 0.3, ("box",), secret, "offline"),
        Correction("s0", 2, secret, secret, 0.3, ("box",), None, "offline", "names SECRET"),
        Correction("s0", 3, secret, secret, 0.3, ("box",), None, "offline", "leaves out: SECRET"),
    ]
    later = [RetestResult(1, "s0", Task.VG, Modality.CT, True, False, secret)]
    answers = ShownAnswers(
        image_root=tmp_path,
        gallery=[(item, Prediction("s0", (said,)))],
        rewritten=choose_rewritten([item], fixes, later, 8),
        shown=Seen(),
    )
    write_report(tmp_path / "report.html", replace(bare(scores), reflection=[effect_table(later)]), answers)
    html = (tmp_path / "report.html").read_text()
    # question, truth, answer, unread and raw, on the card and in the data; question, before and truth of three;
    # rewritten, after, two refusals
    assert html.count("[shown]") == 2 * 5 + 9 + 4 and "SECRET" not in html


def wrong(number: int, task: Task, reasons: tuple[str, ...], refused: bool = False) -> tuple[Sample, Correction]:
    turn = Turn(task, BoxedText("What?"), BoxedText("liver"))
    kind = (Modality.CT, Modality.PET)[number % 2]
    item = Sample(f"s{number}", (ImageRef(f"{number}.png", 8, 8),), kind, (turn,), f"g{number}")
    after = None if refused else BoxedText("The liver.")
    why = "boxes differ" if refused else None
    return item, Correction(item.id, 1, BoxedText("lung"), item.answer, 0.1, reasons, after, "offline", why)


def test_the_gallery_of_corrections_is_spread_and_bounded() -> None:
    pairs = [wrong(i, Task.ROC, ("similarity",)) for i in range(200)]
    pairs += [wrong(200 + i, Task.RC, ("similarity", "count")) for i in range(6)]
    pairs += [wrong(300 + i, Task.MIA, ("laterality",)) for i in range(6)]
    pairs += [wrong(400 + i, Task.MIA, ("negation",), refused=True) for i in range(30)]
    items, fixes = [s for s, _ in pairs], [c for _, c in pairs]
    right = replace(fixes[0], id="s1", reasons=(), after=None, by="")
    later = [
        RetestResult(1, f"s{i}", Task.ROC, Modality.CT, True, i % 4 == 0, BoxedText("liver")) for i in range(150, 160)
    ]
    chosen = choose_rewritten(items, [right, *fixes], later, 12)
    assert len(chosen) == len({r.sample.id for r in chosen}) == 12 and all(r.correction.wrong for r in chosen)
    kinds = Counter((r.sample.task, r.correction.rejected is not None) for r in chosen)
    assert kinds == {(Task.ROC, False): 3, (Task.RC, False): 3, (Task.MIA, False): 3, (Task.MIA, True): 3}
    assert {r.sample.modality for r in chosen if r.sample.task is Task.ROC} == {Modality.CT, Modality.PET}
    assert all(r.again for r in chosen if r.sample.task is Task.ROC)  # those that were asked again come first
    assert len(choose_rewritten(items, fixes[:3], [], 12)) == 3
    assert len(choose_rewritten(items, fixes[-30:], [], 12)) == 12


def test_effect_of_reflection_is_shares_of_both_kinds() -> None:
    outcomes = [(True, False)] * 6 + [(True, True)] * 2 + [(False, False)] * 10
    again = [
        RetestResult(1, str(i), Task.VG, (Modality.CT, Modality.PET)[i % 2], was, now, BoxedText("x"))
        for i, (was, now) in enumerate(outcomes)
    ]
    table = effect_table(again)
    assert [r[0] for r in table.rows] == ["Round 1, all", "Round 1, VG", "  CT", "  PET"]
    # by hand, Wilson at z = 1.96: 6 of 8 and 0 of 10
    assert table.rows[0][1:] == ("8", "6", "75.0", "[40.9, 92.9]", "10", "0", "0.0", "[0.0, 27.8]")
    assert table.rows[2][1:4] == ("4", "3", "75.0")
    none_wrong = effect_table([a for a in again if not a.before_wrong])
    assert none_wrong.rows[0][1:5] == ("0", "0", "-", "-")


@pytest.mark.parametrize(("part", "whole"), [(0, 7), (1, 9), (30, 80), (80, 80)])
def test_wilson_against_its_definition(part: int, whole: int) -> None:
    """Its ends are the shares p at which the observed one lies 1.96 standard errors of p away."""
    low, high = wilson_interval(part, whole)
    share = part / whole
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / whole), rel=1e-6)


def test_a_long_table_of_corrections_is_shown_in_short(tmp_path: Path, scores: list[Score]) -> None:
    again = [
        RetestResult(n, str(i), t, m, True, False, BoxedText("x"))
        for n in (1, 2)
        for t in (Task.VG, Task.ROC, Task.RC)
        for i, m in enumerate(tuple(Modality)[:8])
    ]
    summary = replace(bare(scores), reflection=[effect_table(again)])
    write_report(tmp_path / "report.html", summary, ShownAnswers(image_root=tmp_path))
    html = (tmp_path / "report.html").read_text()
    Page(html)
    own = html[html.index('<section id="corrections"') :]
    before, _, inside = own.partition("<summary>Every row</summary>")
    assert (
        "Round 2, RC" in before
        and "Dermoscopy" not in before
        and inside.partition("</table>")[0].count("Dermoscopy") == 6
    )


def test_html_table_escapes() -> None:
    assert "<script>" not in table(Table("t", ("a",), ((HOSTILE,),)))


def test_scoring_starts_without_torch_in_a_moment() -> None:
    code = (
        "import sys, time; t = time.time(); import clinkd.scoring; "
        "assert time.time() - t < 5, 'slow'; "
        "assert not {'torch', 'transformers', 'scipy', 'pandas'} & set(sys.modules)"
    )
    assert run([executable, "-c", code], env={"PYTHONPATH": str(Path(__file__).parents[1] / "src")}).returncode == 0

"""`clinkd compare`: whose figures stand where, what is joined and compared, and what is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clinkd.cli import main
from clinkd.config import EvaluateConfig
from clinkd.language.facts import Lexicon
from clinkd.pipeline.prepared import OUTSIDE
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
from clinkd.reporting.cases import SharedCases
from clinkd.reporting.compare import ComparedAnswers
from clinkd.reporting.printed import paper_tables
from clinkd.reporting.systems import ComparedSystems, System, TaskResult, pool_systems, system_tables
from clinkd.scoring.measure import Rules
from clinkd.storage import write_json, write_lines
from clinkd.workflows.compare import HowToCompare, _Member, _name_apart, compare


def result(score: float | None, **by_modality: float) -> TaskResult:
    return TaskResult(score, {Modality(m): v for m, v in by_modality.items()}, (1.0, 2.0), 3.0, "no jars")


def ours(**more: float) -> System:
    tasks = {Task.VG: result(10, ct=5, mr=15), Task.ROC: result(20, ct=20), Task.MIA: result(30, ct=30)}
    return System("ours", "scans", tasks | {Task(t): result(v, ct=v) for t, v in more.items()})


def test_an_average_stands_only_over_all_four():
    table, by_modality = system_tables([ours()], "strict")
    assert table.rows[0] == ("ours", "scans", "10.0", "20.0", "-", "30.0", "-")
    assert system_tables([ours(RC=40)], "strict")[0].rows[0][-1] == "25.0"
    assert by_modality.rows[0][:3] == ("VG F1", "5.0", "15.0") and by_modality.rows[0][-1] == "10.0"
    assert by_modality.rows[-1][1:3] == ("18.3", "15.0")  # of CT (5 + 20 + 30) / 3
    failed = System("theirs", "scans", {Task.RC: TaskResult(None, {Modality.CT: None}, why="no jars")})
    free = System("free", "scans", {Task.QA: result(60, ct=60)})
    table, *_, of_free = system_tables([ours(RC=40), free], "strict")
    assert [row[5:8] for row in table.rows if row[0] in ("ours", "free")] == [("30.0", "-", "25.0"), ("-", "60.0", "-")]
    assert table.columns[-2:] == ("QA Accuracy", "Average") and of_free.rows[0][:2] == ("QA Accuracy", "60.0")
    table = system_tables([failed], "official")[0]
    assert table.rows[0][4] == "not computed" and "theirs: RC not computed: no jars" in table.notes


@pytest.mark.parametrize("mode", ["strict", "official"])
@pytest.mark.parametrize("same", [True, False])
def test_the_papers_rows_stand_among_ours_only_on_its_data_and_by_its_scripts(mode, same):
    tables = ComparedSystems(mode, [ours()], same_data=same).tables()
    said = [row[0] for table in tables for row in table.rows]
    assert any("rinted" in s for s in said) == (same and mode == "official")
    assert any("stand apart" in n for n in tables[0].notes) != (same and mode == "official")
    assert tables[0].columns[2] == {"strict": "VG F1", "official": "VG Recall@0.5"}[mode]


def test_the_papers_own_tables_name_its_metrics_and_its_slips():
    first, *by_modality = paper_tables()
    assert (
        first.columns[1] == "VG Recall@0.5"
        and ("ClinKD on LLaVA-Med-qa0.2k", "-", "-", "-", "13.24", "-") in first.rows
    )
    assert all(t.rows[0][0] == "VG Recall@0.5" for t in by_modality)
    assert any("67.65, printed 67.51" in n for t in by_modality for n in t.notes)


def test_seeds_are_pooled():
    low, high = (
        ours(),
        ours()._replace(name="other", results={Task.VG: result(14, ct=9, mr=19), Task.ROC: result(None)}),
    )
    pooled = pool_systems([low, high])
    assert pooled.name == "ours other" and pooled.test_set == "scans"
    assert pooled.results[Task.VG][:2] == (12, {Modality.CT: 7, Modality.MR: 17})
    assert pooled.results[Task.VG].interval == pytest.approx((12 - 12.706 * 2, 12 + 12.706 * 2), abs=0.01)
    assert pooled.results[Task.ROC].score is None and pooled.results[Task.MIA].score is None


# ---- the verb -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def few_exchanges(monkeypatch):
    monkeypatch.setattr("clinkd.reporting.compare.EXCHANGES", 99)
    monkeypatch.setattr("clinkd.reporting.compare._EXCHANGES_A_TEST", 1)
    monkeypatch.setattr("clinkd.workflows.compare.EvaluateConfig", lambda: EvaluateConfig(replicates=50))


BOX, FAR = Box(0.1, 0.1, 0.3, 0.3), Box(0.6, 0.6, 0.8, 0.8)
SAID = {Task.ROC: ("liver", "cyst"), Task.VG: ("[box]", "[box]")}


def asked(number: int, task: Task = Task.ROC, modality: Modality = Modality.CT) -> Sample:
    boxes = (BOX,) if task is Task.VG else ()
    turn = Turn(task, BoxedText("What?"), BoxedText(SAID[task][0], boxes))
    return Sample(
        f"s{number}", (ImageRef(f"{number}.png", 64, 64),), modality, (turn,), f"g{number}", "set", ("liver",)
    )


def folder(place: Path, samples: Sequence[Sample], right: Sequence[bool], **told: object) -> Path:
    """As `clinkd evaluate --out` writes it."""
    place.mkdir(parents=True)
    texts = [
        BoxedText(SAID[s.task][not r], ((BOX if r else FAR),) if s.task is Task.VG else ())
        for s, r in zip(samples, right, strict=True)
    ]
    predictions = [Prediction(s.id, (Candidate(t.text, t),)) for s, t in zip(samples, texts, strict=True)]
    write_lines(place / "samples.jsonl", (s.to_json() for s in samples))
    write_lines(place / "predictions.jsonl", (p.to_json() for p in predictions))
    tasks = {s.task.value: {"score": 50.0, "blind": 20.0, "by_modality": {"ct": {"score": 50.0}}} for s in samples}
    write_json(place / "table.json", {**tasks, "official": tasks})
    about = {"system": place.name, "test_set": {"name": "scans"}, "modes": ["official", "strict"]}
    write_json(place / "evaluation.json", {**about, **told})
    return place


def named(tmp_path: Path, *names: str) -> list[str]:
    """Folders that answered the same questions, the first best."""
    samples = [asked(i, modality=Modality.CT if i % 2 else Modality.PET) for i in range(12)]
    return [str(folder(tmp_path / n, samples, [i % (12 >> k) != 0 for i in range(12)])) for k, n in enumerate(names)]


def test_folders_are_compared_with_the_first(tmp_path, capsys):
    places = named(tmp_path, "a", "b", "c")
    assert main(["compare", *places, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [s["system"] for s in told["systems"]] == ["a", "b", "c"] and told["systems"][0]["ROC"]["blind"] == 20
    assert [(t["ours"], t["theirs"]) for t in told["comparisons"]] == [("a", "b"), ("a", "c")]
    of = told["comparisons"][1]["tasks"]["ROC"]
    assert (of["metric"], of["questions"], of["groups"]) == ("Recall", 12, 12) and of["p_holm"] >= of["metrics"][
        "Recall"
    ]["p"]
    assert of["metrics"]["Recall"]["difference"] == pytest.approx(100 * (11 - 8) / 12)
    assert set(of["metrics"]["Recall"]["by_modality"]) == {"ct", "pet"} and of["sentence"].startswith("ROC Recall: ")
    assert main(["compare", *places, "--all-pairs", "--mode", "official"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Systems by task" in shown and "b - c" in shown and "the system of the row less" in shown and "BiRD" in shown
    assert main(["compare", places[0], places[2], "--against", places[1], places[1]]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "a c - b" in shown and "means over 2 seeds; their intervals are Student's" in shown
    assert main(["compare", places[0], "--against", places[1]]) == 0 and "a - b" in capsys.readouterr().out
    assert main(["compare", places[0]]) == 0 and "Differences" not in capsys.readouterr().out


def test_files_of_one_system_are_joined(tmp_path, capsys):
    """VG and ROC, as files that both count from 0; another system has VG alone and is compared on that."""
    grounding, classes = ([asked(i, task) for i in range(12)] for task in (Task.VG, Task.ROC))
    for name, right in (("A", 12), ("B", 5)):
        folder(tmp_path / f"{name}-vg", grounding, [i < right for i in range(12)], system=name)
    folder(tmp_path / "A-roc", classes, [True] * 12, system="A", test_set={"name": "classes"})
    words = [str(tmp_path / n) for n in ("A-vg", "A-roc", "B-vg")]
    assert main(["compare", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    joined, alone = told["systems"]
    assert joined["test_set"] == "scans, classes" and {"VG", "ROC"} <= joined.keys() and "ROC" not in alone
    assert f"A is joined from {words[0]}, {words[1]}, each with tasks of its own." in told["notes"]
    (pair,) = told["comparisons"]
    assert set(pair["tasks"]) == {"VG"} and pair["tasks"]["VG"]["metrics"]["F1"]["difference"] == pytest.approx(
        700 / 12
    )


def keep_scores(place: Path, ids: Sequence[str], score: object) -> Path:
    """As `clinkd evaluate --scorer` leaves them behind."""
    write_lines(place / OUTSIDE, ({"scorer": "judge", "id": id, "score": score} for id in ids))
    return place


def test_outside_scores_stay_where_folders_are_joined(tmp_path, capsys):
    """Of one of two joined folders, as no program scores VG."""
    grounding, classes = ([asked(i, task) for i in range(6)] for task in (Task.VG, Task.ROC))
    words = []
    for name, score in (("A", 0.75), ("B", 0.5)):
        of_classes = folder(tmp_path / f"{name}-roc", classes, [True] * 6, system=name)
        words += [str(folder(tmp_path / f"{name}-vg", grounding, [True] * 6, system=name))]
        words += [str(keep_scores(of_classes, [s.id for s in classes], score))]
    assert main(["compare", *words, "--json"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert pair["tasks"]["ROC"]["metrics"]["judge"]["difference"] == pytest.approx(25)
    assert "judge" not in pair["tasks"]["VG"]["metrics"]
    for ids, score, told in ((["s0"], 0.5, "no score of judge is kept for the answer to"), (["s0"], "x", "are not as")):
        keep_scores(tmp_path / "B-roc", ids, score)
        assert main(["compare", *words]) == 2 and told in capsys.readouterr().err


def test_systems_that_are_alike_have_no_interval_without_a_width(tmp_path, capsys):
    samples = [asked(i) for i in range(6)]
    words = [str(folder(tmp_path / n, samples, [i < 4 for i in range(6)])) for n in "abcd"]
    assert main(["compare", *words[:2], "--json"]) == 0
    recall = json.loads(capsys.readouterr().out)["comparisons"][0]["tasks"]["ROC"]["metrics"]["Recall"]
    assert (recall["difference"], recall["interval"], recall["p"], recall["smallest"]) == (0, None, 1, None)
    assert main(["compare", *words[:2], "--against", *words[2:], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    recall = told["comparisons"][0]["tasks"]["ROC"]["metrics"]["Recall"]
    assert (recall["interval"], recall["p"], recall["smallest"], recall["ours_interval"]) == (None, 1, None, None)
    assert told["systems"][0]["ROC"]["interval"] is None and told["systems"][0]["ROC"]["score"] == 50


def test_systems_of_one_name_are_told_apart_from_one_named_like_that():
    answers = ComparedAnswers("a", [], [], Rules(0.5, Lexicon(())))
    members = [_Member(answers, System(name, "", {}), ()) for name in ("a", "a", "a (1)")]
    assert [m.system.name for m in _name_apart(members)] == ["a (1)", "a (2)", "a (1) (3)"]


def test_what_cannot_be_compared_is_left_out_with_the_reason(tmp_path, capsys):
    a, b = named(tmp_path, "a", "b")
    other = folder(tmp_path / "other", [asked(i, Task.VG) for i in range(4)], [True] * 4)
    loose = folder(tmp_path / "loose", [asked(i) for i in range(4)], [True] * 4, modes=["official"])
    assert main(["compare", a, b, str(other), str(loose), "--mode", "official", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["systems"]) == 4 and [c["theirs"] for c in told["comparisons"]] == ["b"]
    assert "a and other share no question" in told["not_compared"][0] and "'ROC" not in told["not_compared"][0]
    assert "loose was evaluated by the papers' scripts alone" in told["not_compared"][1]
    assert main(["compare", a, str(other)]) == 0
    assert "not compared: a and other share no question" in capsys.readouterr().out


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """Folders to be refused, and a and b, which are right."""
    place, samples = tmp_path_factory.mktemp("wrong"), [asked(i) for i in range(4)]
    for name, more in {
        "a": {}, "b": {}, "finer": {"iou": 0.7}, "twin": {"system": "a"}, "broken": {"test_set": None}, "list": {},
        "word": {}, "less": {}, "loose": {"modes": ["official"]},
    }.items():  # fmt: skip
        folder(place / name, samples, [True] * 4, **more)
    folder(place / "other", [asked(i, Task.VG) for i in range(4)], [True] * 4)
    write_json(place / "list" / "evaluation.json", [])
    write_json(place / "word" / "table.json", {"ROC": {"score": "high", "by_modality": {"ct": {"score": 1}}}})
    (place / "less" / "samples.jsonl").unlink()
    (place / "plain").mkdir()
    (place / "sharp.jsonl").write_text("{}")
    return place


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a", "--all-pairs"], "--all-pairs: 1 systems; 2 to 6"),
        (["a", "b", "--against", "a"], "--against: 1 for 2 runs"),
        (["a", "b", "--against", "b", "a", "--all-pairs"], "give one of the two"),
        (["a", "--against", "other"], "a and other share no question"),
        (["a", "a", "--against", "b", "b"], "a and b are given twice, and a pair is one seed"),
        (["a", "b", "--against", "other", "b"], "a and other share no question"),
        (["a", "--against", "finer"], "evaluate.iou=0.5 of a is 0.7 in finer"),
        (["a", "nowhere"], "nowhere: no run of that name or path"),
        (["a", "plain"], "plain: neither a run nor a folder of clinkd evaluate --out"),
        (["a", "a"], "a: is given twice"),
        (["a", "twin"], "a: ROC is in a and twin; folders of one system are joined"),
        (["a", "broken"], "broken: its files are not as"),
        (["a", "list"], "list: its files are not as"),
        (["a", "word"], "word: its files are not as `clinkd evaluate --out` writes them ('high' is no score)"),
        (["a", "less"], "less/samples.jsonl: missing"),
        (["a", "loose"], "loose: not evaluated in mode strict, only official"),
        (["a", "b", "--page", "sharp.jsonl"], "not of this command"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(wrong, capsys, monkeypatch, words, told):
    monkeypatch.chdir(wrong)
    assert main(["compare", *words]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("clinkd: ") and told in line


def test_the_former_verb_names_the_new_one(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["systems", "demo", "--page", "x.html"])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["systems"])
    assert "clinkd compare FOLDER..." in capsys.readouterr().err


# ---- the page -------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)


HOSTILE = ("<script>alert(1)<", "a&b\"'><img src=x onerror=y>", "-x\x1b[31m\nend")


def test_the_page_is_one_file_and_obeys_no_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = named(tmp_path / "answers", *HOSTILE)
    assert main(["compare", *places, "--page", "page.html"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    tags = Tags(page).seen
    assert "script" not in tags and "img" not in tags and "link" not in tags and "&lt;script&gt;alert(1)" in page
    for title in ("Systems", "Differences", "The same questions, answered by each", "The paper&#x27;s figures"):
        assert f"<h2>{title}</h2>" in page
    assert page.index("<h2>Differences") < page.index('class="apart"') < page.index("ClinKD on LLaVA-Med-qa0.2k")
    assert page.count('<article class="card case">') == 12 and "ROC · CT: 6 of 6 questions" in page
    assert main(["compare", *places, "--page", "page.html"]) == 0  # its own page may be written anew
    same = ["compare", *places, "--page", "page.html", "--same-data", "--mode", "official"]
    assert main(same) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Printed: BiRD" in page and 'class="apart"' not in page


def test_cases_that_differ_most_come_first_in_each_part(tmp_path):
    samples = [asked(i, (Task.VG, Task.ROC)[i % 2]) for i in range(8)]
    right = {s.id: Prediction(s.id, (Candidate("", BoxedText("liver")),)) for s in samples}
    cases = SharedCases(samples, {"a": right, "b": {k: v for k, v in right.items() if k != "s5"}}, {})
    assert [s.id for s in cases.choose_differing({"s3": 1.0, "s5": 1.0, "s6": 0.5}, 5)] == [
        "s6",
        "s3",
        "s0",
        "s1",
        "s2",
    ]
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(tmp_path / "3.png")
    html = replace(cases, roots={"s3": tmp_path}).render_by_kind([samples[3], samples[0]], "notice")
    assert html.count("data:image/") == 1 and html.count("<figure>") == 4 and "VG · CT: 1 of 4 questions" in html
    with pytest.raises(BadInput, match="nobody: no question"):
        SharedCases(samples, {"nobody": {}}, {}).choose_evenly(2)


def test_evaluated_files_stand_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """From the papers' rows: `evaluate --out` and `compare` understand each other."""
    for name, answers in {"sharp": ("liver", "right kidney"), "blunt": ("liver", "liver")}.items():
        rows = [
            {"id": i, "image": f"{m}_00--{i}.png", "question": "What is this?", "annotation": a, "response": said}
            for i, (m, a, said) in enumerate(zip(("ct", "x"), ("liver", "right kidney"), answers, strict=True))
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        words = ["evaluate", "--predictions", str(tmp_path / f"{name}.jsonl"), "--task", "ROC"]
        assert main([*words, "--as", name, "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()
    for mode in ("official", "strict"):
        told = compare([str(tmp_path / n) for n in ("sharp", "blunt")], tmp_path, HowToCompare(mode=mode)).to_json()
        sharp, blunt = told["systems"]
        assert sharp["system"] == "sharp" and sharp["ROC"]["score"] == 100 and blunt["ROC"]["score"] == 50
        assert blunt["ROC"]["by_modality"] == {"ct": 100, "xray": 0} and blunt["average"] is None
        assert told["comparisons"][0]["tasks"]["ROC"]["metrics"]["Recall"]["difference"] == 50

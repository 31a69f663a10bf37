"""The verb ask: which words are the run, the image and the question; and many questions in one start."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image, ImageFont
from pydicom import dcmread
from pydicom.data import get_testdata_file

from clinkd import cli, pipeline
from clinkd.config import RunConfig
from clinkd.inference.self_consistency import SelfConsistency
from clinkd.pipeline.graph import Stage
from clinkd.records import BadInput, Box, BoxedText, Candidate, Prediction
from clinkd.reporting.viewer.overlay import draw_answer
from clinkd.settings import override
from clinkd.storage import sha256_file, write_json
from clinkd.workflows.answer_warnings import AnswerWarning
from clinkd.workflows.ask import Answer, Answerer, AskResult, Question

BATCH = 3


@dataclass
class ScriptedAnswerer:
    """Answers with the question and the width of the image. "too long" is refused; "stop" is Ctrl-C if it `stops`."""

    config: RunConfig
    stops: bool = False
    names: tuple[str, ...] = ("Leber",)
    batches: list[list[str]] = field(default_factory=list)

    def read(self, text: str, picture: Image.Image | None = None) -> BoxedText:
        if not text:
            raise BadInput("the question is empty")
        return BoxedText(text)

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        texts = [question.text.text for question in questions]
        if self.stops and "stop" in texts:
            raise KeyboardInterrupt
        if "too long" in texts:
            raise BadInput("the question is too long")
        self.batches.append(texts)
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer:
        width = question.pictures[0].width
        box = BoxedText(f"{question.text.text} on {width}: [box]", (Box(0.25, 0.5, 0.75, 1.0),))
        candidates = (Candidate("raw", BoxedText("No.")), Candidate("raw", box, -0.5, {"clip": 0.5}))
        consistency = SelfConsistency((0.5, 0.5), (0.0, 1.0), 0.5, "the candidates differ in their boxes")
        answer = Answer(Prediction("x", candidates, chosen=1), consistency, False, 1, 1)
        doubts = (AnswerWarning("no_box", "no box; given"), AnswerWarning("unknown_name", "x"))
        return answer._replace(uncertain="the candidates disagree", warnings=doubts, confidence=0.8125)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the finished run `small`, and a folder of images as the place of work."""

    def plan(config: RunConfig) -> list[Stage]:
        def report(work):
            write_json(work.folder / "table.json", {})
            (work.folder / "report.html").write_text("<p>")

        teacher = Stage("teacher", 1, config.teacher, (), lambda work: None, config.seed)
        return [teacher, Stage("report", 1, config.evaluate, (teacher,), report, config.seed)]

    monkeypatch.setattr(pipeline, "plan", plan)
    for name in ("older", "small"):
        pipeline.run(override(RunConfig(), [f"name={name}", f"answer.batch={BATCH}"]), tmp_path / "runs")
    work = tmp_path / "work"
    (work / "images").mkdir(parents=True)
    for width in (40, 50):
        Image.new("RGB", (width, 20)).save(work / "images" / f"{width}.png")
    shutil.copy(str(get_testdata_file("CT_small.dcm", download=False)), work / "images")
    monkeypatch.chdir(work)
    return tmp_path / "runs"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedAnswerer]:
    """The models that were loaded."""
    loaded: list[ScriptedAnswerer] = []

    def of_run(run):
        loaded.append(ScriptedAnswerer(run.config, stops=not loaded))
        return loaded[-1]

    monkeypatch.setattr("clinkd.workflows.batch.Answerer.of_run", of_run)
    return loaded


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Run, image and question of each single call."""
    calls = []

    def ask(run, image, question, out):
        calls.append((run.folder.name, str(image), question))
        return AskResult(Prediction("q", (Candidate("b", BoxedText("b")),)), Path("o.png"))

    monkeypatch.setattr("clinkd.workflows.ask.ask", ask)
    return calls


def ask(runs: Path, *words: object) -> int:
    return cli.main(["ask", "--runs", str(runs), *map(str, words)])


def write_sheet(rows: Sequence[Sequence[str]], name: str = "sheet.csv") -> Path:
    with Path(name).open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return Path(name)


def read_csv(name: str) -> list[dict[str, str]]:
    with Path(name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


# ---- one question ---------------------------------------------------------------------------------------------------


def test_a_question_needs_no_quotes_and_the_first_word_may_be_a_run(runs, single, capsys):
    assert ask(runs, "scan.png", "Where", "is", "the liver") == 0
    assert "clinkd: run small, the newest finished run" in capsys.readouterr().err
    assert ask(runs, "older", "scan.png", "Where is it?") == 0
    assert ask(runs, "--run", "older", "scan.png", "Where?") == 0
    assert capsys.readouterr().err == ""  # the run was named
    assert ask(runs, "--run", "older", "small", "Where?") == 0
    assert single == [
        ("small", "scan.png", "Where is the liver"), ("older", "scan.png", "Where is it?"),
        ("older", "scan.png", "Where?"), ("older", "small", "Where?"),
    ]  # fmt: skip


def test_a_word_that_names_a_run_and_a_file_is_refused_with_both_spellings(runs, single, capsys):
    Image.new("RGB", (9, 9)).save("older.png")
    Path("older.png").rename("older")
    assert ask(runs, "older", "Where is it?") == 2
    err = capsys.readouterr().err
    assert "`clinkd ask --run older IMAGE QUESTION`" in err and "`clinkd ask ./older QUESTION`" in err
    assert ask(runs, "./older", "Where is it?") == 0 and ask(runs, "--run", "small", "older", "Where?") == 0
    assert [call[:2] for call in single] == [("small", "older"), ("small", "older")]


def test_a_second_image_is_no_word_of_the_question(runs, single, capsys):
    Image.new("RGB", (9, 9)).save("other.png")
    assert ask(runs, "scan.png", "other.png", "Where", "is", "it?") == 2
    assert "other.png: a file among the words" in capsys.readouterr().err and not single


REFUSED = [
    (["older"], "is a run; give it an image and a question"),
    (["scan.png"], "what about it? give a question"),
    (["scan.png", "What?", "--out", "there.png"], "is there already"),
    (["images"], "where the answers go, as --out answers.csv"),
    (["images", "--out", "a.csv"], "give --question TEXT"),
    (["images", "Where?", "--out", "a.csv"], "given as --question TEXT"),
    (["images", "--question", " ", "--out", "a.csv"], "it is empty"),
    (["images", "--question", "a", "--questions", "s.csv", "--out", "a.csv"], "--questions and --question"),
    (["images", "--question", "a", "--out", "a.txt"], "written as .csv or .jsonl"),
    (["images", "--question", "a", "--out", "there.csv"], "is there already"),
    (["images", "--questions", "no.csv", "--out", "a.csv"], "no.csv: no such file"),
    (["head.csv", "--out", "a.csv"], "its columns are image, frage; question is missing"),
]


def test_what_cannot_be_asked_is_one_line(runs, single, scripted, capsys):
    for name in ("there.png", "there.csv"):
        Path(name).write_text("of somebody")
    write_sheet([["image", "frage"], ["40.png", "Wo?"]], "head.csv")
    for words, says in REFUSED:
        assert ask(runs, *words) == 2, words
        assert says in capsys.readouterr().err
    assert not single and not scripted and Path("there.csv").read_text() == "of somebody"


def test_a_picture_has_the_question_and_the_answer_below_the_image():
    image = Image.new("RGB", (512, 300))
    answer = BoxedText("Here it is [box].", (Box(0.1, 0.1, 0.5, 0.5),))
    drawn = draw_answer(image, BoxedText("Where is the liver? " * 20), answer)
    assert drawn.width == 512 and drawn.height > 300 + 4 * 14  # lines of text
    below = np.array(drawn.convert("L"))[300:]
    assert below[:, 0].min() == 255 == below[:, -1].min() and (below < 90).sum() > 500  # dark letters, none cut
    short = draw_answer(image, BoxedText("Where?"), answer)
    assert 300 < short.height < drawn.height
    assert draw_answer(image, BoxedText("Where?"), BoxedText("W" * 300)).height > short.height  # no blank to break at


def test_letters_that_the_only_font_lacks_are_spelled_in_others(monkeypatch):
    image, answer = Image.new("RGB", (512, 300)), BoxedText("")
    own_font = ImageFont.load_default(15)
    monkeypatch.setattr("clinkd.reporting.viewer.overlay._load_text_font", lambda size: (own_font, False))
    with_umlauts = draw_answer(image, BoxedText("Wo ist die größte Läsion, à côté?"), answer)
    assert with_umlauts == draw_answer(image, BoxedText("Wo ist die groesste Laesion, a cote?"), answer)


def test_two_threads_are_answered_one_after_another():
    class Slow(Answerer):
        inside = most = 0

        def stream_answers(self, questions, how):
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(0.02)
            yield
            self.inside -= 1
            return [how]

    slow = Slow("slow", RunConfig(), None, {})
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(slow.answers, [[], [], []])) == [[slow.config.answer]] * 3
    assert slow.most == 1


# ---- many questions -------------------------------------------------------------------------------------------------


def test_a_sheet_of_questions_becomes_a_row_each_with_what_is_wrong_with_it(runs, scripted, capsys):
    rows = [
        ["ID", "Image", "Question"],
        ["a", "CT_small.dcm", "Wo ist die Leber? ä"], ["b", "none.png", "What?"], ["", "40.png", ""],
        ["d", "40.png", "too long"], ["e", "50.png", "What?"], ["f", "", "What?"], ["g", "../x.png", "What?"],
    ]  # fmt: skip
    assert ask(runs, "images", "--questions", write_sheet(rows), "--out", "a.csv", "--pictures", "drawn/x") == 1
    printed = capsys.readouterr()
    assert "2 of 7 questions are answered" in printed.out and "5 rows have no answer" in printed.err
    answers = read_csv("a.csv")
    assert [row["id"] for row in answers] == ["a", "b", "4", "d", "e", "f", "g"]
    first = answers[0]
    dicom = Path("images/CT_small.dcm")
    assert (first["sha256"], first["sop_instance_uid"]) == (sha256_file(dicom), dcmread(dicom).SOPInstanceUID)
    assert first["answer"] == "Wo ist die Leber? ä on 128: [box]" and first["error"] == ""
    assert first["boxes"] == "0.25 0.5 0.75 1" and first["boxes_pixels"] == "32 64 96 128"
    assert first["candidates"] == "No. | Wo ist die Leber? ä on 128: [0.25 0.5 0.75 1]"
    assert first["confidence"] == "0.8125" and answers[1]["confidence"] == ""
    assert first["uncertain"] == "the candidates disagree" and first["box_names"] == "Leber"
    assert first["warnings"] == "no_box: no box; given; unknown_name: x"
    assert re.fullmatch("small/teacher@[0-9a-f]{16}", first["model"]) and answers[1]["model"] == ""
    errors = [row["error"] for row in answers]
    assert "no such file" in errors[1] and "empty" in errors[2] and "too long" in errors[3]
    assert errors[4] == "" and "names no image" in errors[5] and "leads out" in errors[6]
    assert sorted(path.name for path in Path("drawn/x").iterdir()) == ["00001-a.png", "00005-e.png"]
    assert len(scripted) == 1 and not list(Path().glob("*.journal.jsonl"))


def test_the_same_question_about_every_image_of_a_folder(runs, scripted):
    Path("images/notes.txt").write_text("no image")
    Path("images/broken.png").write_text("no image")
    words = ("images", "--question", "Where?", "--question", "What?", "--out", "images/a.jsonl")
    assert ask(runs, *words, "--pictures", "images/drawn") == 1
    rows = [json.loads(line) for line in Path("images/a.jsonl").read_text().splitlines()]
    asked = [
        (name, text) for name in ("40.png", "50.png", "CT_small.dcm", "broken.png") for text in ("Where?", "What?")
    ]
    assert [(row["image"], row["question"]) for row in rows] == asked
    assert [bool(row["error"]) for row in rows] == [name == "broken.png" for name, _ in asked]
    assert rows[0]["boxes"] == [[0.25, 0.5, 0.75, 1.0]] and rows[0]["boxes_pixels"] == [[10, 10, 30, 20]]
    assert rows[0]["box_names"] == ["Where?"]
    assert rows[0]["warnings"][1] == {"kind": "unknown_name", "message": "x"}
    assert rows[0]["candidates"][1]["chosen"] and rows[0]["sop_instance_uid"] == ""
    assert [len(texts) for texts in scripted[0].batches] == [3, 3]


@pytest.mark.parametrize("name", ["sheet.xlsx", "sheet.jsonl"])
def test_a_sheet_beside_its_images_is_enough(runs, scripted, name):
    if name.endswith("xlsx"):
        book = openpyxl.Workbook()
        for row in (["image", "question"], ["images/40.png", "What?"]):
            book.active.append(row)
        book.save(name)
    else:
        Path(name).write_text('{"image": "images/40.png", "question": "What?", "id": null}\n')
    assert ask(runs, "older", name, "--out", "a.csv") == 0
    [row] = read_csv("a.csv")
    assert row["answer"] == "What? on 40: [box]"


def test_a_stopped_batch_goes_on_and_refuses_other_questions_and_runs(runs, scripted, capsys):
    rows = [["image", "question"], *([f"{w}.png", f"{n}"] for n in range(5) for w in (40, 50)), ["40.png", "stop"]]
    sheet = write_sheet(rows)
    words = ("images", "--questions", sheet, "--out", "a.csv", "--pictures", "drawn")
    assert ask(runs, *words) == 130
    assert "the same command goes on" in capsys.readouterr().err and not Path("a.csv").exists()
    assert ask(runs, "older", *words) == 2 and "of another run" in capsys.readouterr().err
    assert ask(runs, *words[:-2]) == 2 and "of another --pictures" in capsys.readouterr().err
    other = write_sheet([*rows, ["40.png", "more"]], "other.csv")
    assert ask(runs, "images", "--questions", other, *words[3:]) == 2
    assert "of another list of questions" in capsys.readouterr().err

    assert ask(runs, *words) == 0
    assert [len(model.batches) for model in scripted] == [3, 1] and scripted[1].batches == [["4", "stop"]]
    assert [row["question"] for row in read_csv("a.csv")] == [question for _, question in rows[1:]]
    assert len(list(Path("drawn").iterdir())) == 11
    assert ask(runs, *words) == 2 and "is there already" in capsys.readouterr().err


def test_a_batch_killed_when_its_answers_were_written_is_done(runs, scripted, capsys, monkeypatch):
    journal, words = Path("a.csv.journal.jsonl"), ("images", "--question", "What?", "--out", "a.csv")
    with monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", lambda path, **_: None)
        assert ask(runs, *words) == 0 and journal.exists()
    answers = Path("a.csv").read_bytes()
    Path("a.csv").write_bytes(answers + b"of a person")
    assert ask(runs, *words) == 2 and "are kept in a.csv.journal" in capsys.readouterr().err
    assert Path("a.csv").read_bytes() == answers + b"of a person" and journal.exists()
    Path("a.csv").write_bytes(answers)
    assert ask(runs, *words) == 0 and Path("a.csv").read_bytes() == answers
    assert len(scripted) == 1 and sorted(path.name for path in Path().glob("*a.csv*")) == ["a.csv"]


def test_pictures_go_into_a_folder_of_their_own(runs, scripted, capsys):
    Path("drawn").mkdir()
    Path("drawn/of somebody.txt").write_text("")
    assert ask(runs, "images", "--question", "a", "--out", "a.csv", "--pictures", "drawn") == 2
    assert "not empty" in capsys.readouterr().err and not scripted and not list(Path().glob("a.csv*"))

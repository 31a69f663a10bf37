"""Words in, words out: every verb has its help, every error is one line, and a run can be driven by commands alone."""

import contextlib
import csv
import errno
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from clinkd import cli, pipeline
from clinkd.cli.screen import show, split_modalities
from clinkd.config import EYES_WHEEL
from clinkd.pipeline.graph import Stage
from clinkd.pipeline.runs import open_run, score_table
from clinkd.records import PAPER_MODALITIES, BadInput, Box, BoxedText, Candidate, Prediction
from clinkd.storage import write_json
from clinkd.version import spell_program
from clinkd.workflows.answer_warnings import AnswerWarning
from clinkd.workflows.ask import AskResult

VERBS = [
    "run", "plan", "status", "why", "recipe", "table", "ask", "correct", "export", "doctor", "report", "compare",
    "ablate", "evaluate", "serve", "spice install", "spice status",
    "runs list", "runs rm", "runs pack", "runs open", "runs verify",
    "pacs pull", "pacs push", "pacs listen",
]  # fmt: skip
VERBS += [f"data {v}" for v in ("import", "check", "export", "split", "sheet", "stats", "show", "boxes", "phantoms")]
SCORES = {
    "mode": "strict",
    "VG": {
        "score": 61.2,
        "blind": 12.0,
        "blind_by": {"median box": 12.0},
        "by_modality": {"ct": {"score": 61.2, "blind": 12.0}},
    },
    "average": 61.2,
}


def command(*arguments):
    return [sys.executable, "-c", "import sys; from clinkd.cli import main; sys.exit(main())", *map(str, arguments)]


def call(capsys, *arguments):
    status = cli.main([str(a) for a in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def refused(capsys, *arguments):
    """The one line of a command that must fail."""
    status, out, err = call(capsys, *arguments)
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("clinkd: "), (status, out, err)
    return err


@pytest.fixture
def short_plan(monkeypatch):
    """Two stages in the place of the real ones: quick, and with a table and a report at the end."""

    def plan(config):
        def teach(work):
            (work.folder / "weights").write_text("w")

        def report(work):
            assert (work.inputs["teacher"] / "weights").read_text() == "w"
            write_json(work.folder / "table.json", SCORES)
            (work.folder / "report.html").write_text("<p>")

        teacher = Stage("teacher", 1, config.teacher, (), teach, config.seed)
        return [teacher, Stage("report", 1, config.evaluate, (teacher,), report, config.seed)]

    monkeypatch.setattr(pipeline, "plan", plan)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        cli.main([*verb.split(), "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and f"example: clinkd {verb}" in said


def test_the_verbs_listed_here_are_all_there_are():
    def leaves(parser, words):
        kinds = [a for a in parser._actions if a.__class__.__name__ == "_SubParsersAction"]
        if not kinds:
            yield words
        for name, under in kinds[0].choices.items() if kinds else ():
            yield from leaves(under, f"{words} {name}".strip())

    assert sorted(leaves(cli._parser(), "")) == sorted(VERBS)


def refusal(capsys, *words):
    """The one line about words that are refused before a verb is called."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(w) for w in words])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and err.count("\n") == 1, (out, err)
    return err


@pytest.mark.parametrize("verb", VERBS)
def test_no_flag_may_be_cut_short(verb):
    parser = {v.prog: v for v in cli._parser()._list_verbs()}[f"clinkd {verb}"]
    flags = [f for f in parser._option_string_actions if f.startswith("--")]
    assert "--help" in flags and "--debug" in flags
    for flag in flags:
        shorter = [flag[:end] for end in range(3, len(flag)) if flag[:end] not in flags]
        assert [s for s in shorter if any(t[0] for t in _as_options(parser, s))] == [], verb


def _as_options(parser, word):
    """The actions that argparse takes a word for."""
    read = parser._parse_optional(word)
    return [] if read is None else (read if isinstance(read, list) else [read])


SPELLED_RIGHT = [
    ("serve --run X", "give the run as: clinkd serve X; see"),
    ("table --json --run=real", "give the run as: clinkd table real --json; see"),
    ("status --run X --runs DIR", "give the run as: clinkd status X --runs DIR; see"),
    ("report --run", "give the run as: clinkd report RUN; see"),
    ("export real FOLDER", "give the run as: clinkd export --run real FOLDER; see"),
    ("plan demo --measur", "did you mean --measure?"),
    ("table --jsno", "did you mean --json?"),
    ("plan demo --share", "--share belongs to clinkd report; see"),
    ("data stats X --quarantine Y", "--quarantine belongs to clinkd data import, clinkd data check, clinkd evaluate;"),
]


@pytest.mark.parametrize(("words", "right"), SPELLED_RIGHT, ids=[words for words, _ in SPELLED_RIGHT])
def test_a_flag_of_another_verb_is_spelled_right(capsys, words, right):
    err = refusal(capsys, *words.split())
    assert right in err and "unrecognized arguments" in err


def test_without_a_name_the_newest_finished_run_is_taken_and_named(capsys, short_plan, tmp_path, monkeypatch):
    runs = ("--runs", tmp_path)
    call(capsys, "run", "demo", *runs, "--name", "whole")
    call(capsys, "run", "demo", *runs, "--name", "cut", "--seed", "1")
    cut = json.loads((tmp_path / "cut" / "run.json").read_text())["stages"][-1]
    shutil.rmtree(tmp_path / ".stages" / f"report-{cut['identity']}")
    for words in (["table"], ["why", "teacher"]):
        status, out, err = call(capsys, *words, *runs)
        assert status == 0 and out and err == "clinkd: run whole, the newest finished run\n", words
    _, out, err = call(capsys, "status", *runs)
    assert "1 of 2 stages done" in " ".join(out.split()) and err.startswith("clinkd: run cut, the newest run\n")
    taken = []

    def take(run, *_):
        taken.append(run.folder.name)
        raise BadInput("taken")

    monkeypatch.setattr("clinkd.pipeline.report.report", take)
    monkeypatch.setattr("clinkd.workflows.export.export", take)
    call(capsys, "report", *runs)
    call(capsys, "export", tmp_path / "out", *runs)
    call(capsys, "report", "cut", *runs)
    assert taken == ["whole", "whole", "cut"]
    monkeypatch.setattr("clinkd.pipeline.runs.Run.answering_stages", ["teacher"])  # all that this short plan has
    monkeypatch.setattr("clinkd.serving.server._run_server", lambda source, *_: taken.append(source.run.folder.name))
    status, _, err = call(capsys, "serve", "--port", "0", *runs)
    assert status == 0 and taken[-1] == "whole" and err == "clinkd: run whole, the newest finished run\n"
    shutil.move(tmp_path / "whole", tmp_path / "elsewhere" / "whole")
    status, _, err = call(capsys, "serve", "--port", "0", *runs)
    assert status == 0 and taken[-1] == "cut" and err == "clinkd: run cut, the newest run\n"
    shutil.move(tmp_path / "elsewhere" / "whole", tmp_path / "whole")
    assert call(capsys, "why", "cut", "teacher", *runs)[:2] == call(capsys, "why", "teacher", "--run", "cut", *runs)[:2]
    assert "name one run" in refused(capsys, "why", "cut", "teacher", "--run", "whole", *runs)
    assert "cut: a run, no experiment; give its config, as: " in refused(capsys, "plan", "cut", *runs)


WIDE_SCORES = {
    task: {
        "score": 100.0,
        "blind": 63.7,
        "by_modality": {m: {"score": 100.0, "blind": 63.4} for m in PAPER_MODALITIES},
    }
    for task in ("VG", "ROC", "RC", "MIA", "QA")
}


def test_at_80_columns_scores_are_whole_and_spelled_out(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show(*split_modalities(score_table(WIDE_SCORES, "demo: test split, of a very long title " * 3)))
    out = capsys.readouterr().out
    assert "…" not in out and out.count("100.0/63.4") == 5 * len(PAPER_MODALITIES)
    first, below = out.split("score/blind by modality")
    assert all(len(line) <= 80 for line in out.splitlines()[1:] if "blind:" not in line)
    assert "ROC: referring object classification: naming the structure in a box; not the curve" in " ".join(
        first.split()
    )
    assert " ".join(out.split()).count("not the curve") == 1 and "ultrasound" in below


def test_status_tells_a_live_run_from_a_stopped_one(capsys, short_plan, tmp_path):
    call(capsys, "run", "demo", "--runs", tmp_path)
    last = json.loads((tmp_path / "demo" / "run.json").read_text())["stages"][-1]
    folder = tmp_path / ".stages" / f"report-{last['identity']}"
    folder.rename(folder.with_name(folder.name + ".part"))
    lock = folder.with_name(folder.name + ".lock")
    status, out, _ = call(capsys, "status", "demo", "--runs", tmp_path)
    assert status == 0 and "stopped" in out and "go on with: " in out
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        status, out, _ = call(capsys, "status", "demo", "--runs", tmp_path)
    assert status == 0 and "at work" in out and "stopped" not in out and "go on with" not in out
    status, out, _ = call(capsys, "status", "demo", "--runs", tmp_path)  # killed: the file stays, its lock does not
    assert "stopped" in out and "go on with: " in out


def test_the_commands_of_the_closing_screen_work_as_printed(capsys, small_run, tmp_path, monkeypatch):
    shutil.copytree(small_run.parent, tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    served = []

    def serve(source, *rest):
        served.append(source.run.folder.name)
        rest[-1]()  # tells its address

    monkeypatch.setattr("clinkd.serving.server._run_server", serve)
    monkeypatch.setattr(sys, "argv", [".venv/bin/clinkd"])
    cli._show_closing(open_run(Path("runs/small")), Path("runs"))
    lines = capsys.readouterr().out.partition("next  ")[2].splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    assert [words[:2] for words in commands] == [
        [".venv/bin/clinkd", verb] for verb in ("ask", "serve", "data", "table", "recipe")
    ]
    assert commands[2][2] == "import" and Path(commands[0][4]).is_file()
    for words in commands:
        status, out, err = call(capsys, *words[1:])
        assert status == 0 and out, (words, err)
    assert served == ["small"] and Path("mydata/samples.jsonl").is_file()
    questions = list(csv.DictReader(Path("runs/small/examples/sheet.csv").read_text().splitlines()))
    assert 1 < len(questions) <= 3 and all(Path("runs/small/examples", q["image"]).is_file() for q in questions)
    cli._show_closing(open_run(Path("runs/small")), Path("runs"))
    assert "--out mydata-2" in capsys.readouterr().out  # the first name is taken


def test_the_program_is_spelled_as_it_was_started(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "my env" / "bin" / "clinkd"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    spelled = {}
    for path in ("", str(program.parent)):
        monkeypatch.setenv("PATH", path)
        for started in (str(program), "my env/bin/clinkd", "/else/clinkd/__main__.py", "-c"):
            monkeypatch.setattr(sys, "argv", [started])
            spelled[bool(path), started] = spell_program()
    assert spelled[False, str(program)] == spelled[False, "my env/bin/clinkd"] == "'my env/bin/clinkd'"
    assert spelled[True, str(program)] == spelled[True, "my env/bin/clinkd"] == spelled[False, "-c"] == "clinkd"
    assert spelled[True, "/else/clinkd/__main__.py"].endswith(" -m clinkd")


def test_import_names_a_run_that_is_not_there_yet(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (64, 64)).save("a.png")
    Path("sheet.csv").write_text("image,modality,question,answer\na.png,ct,What is it?,A head.\n")
    for out, named in (("one", "data.path=one   #"), ("two", "data.path=two --name real-two   #")):
        status, printed, _ = call(capsys, "data", "import", "sheet.csv", "--images", ".", "--out", out)
        assert status == 0 and named in printed, printed
        Path("runs/real").mkdir(parents=True, exist_ok=True)


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom clinkd.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'rich', 'yaml', 'PIL'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_run_status_table_why_and_a_second_run(capsys, short_plan, tmp_path):
    runs = ("--runs", tmp_path)
    status, out, err = call(capsys, "run", "demo", *runs)
    assert status == 0 and "61.2" in out and str(tmp_path / "demo" / "report.html") in out and "clinkd ask" in out
    assert "teacher: done in" in err
    status, out, err = call(capsys, "run", "demo", *runs)
    assert status == 0 and "teacher: done before" in err and "report: done before" in err

    status, out, _ = call(capsys, "status", *runs)
    assert status == 0 and "2 of 2 stages done" in out
    status, out, _ = call(capsys, "table", "demo", *runs, "--json")
    printed = json.loads(out)
    assert printed.pop("wall_seconds").keys() == {"teacher", "report"} and printed == SCORES
    status, out, _ = call(capsys, "table", *runs, "--csv")
    assert list(csv.reader(out.splitlines()))[:2] == [
        ["task", "score", "blind", "ct"],
        ["VG", "61.2", "12.0", "61.2/12.0"],
    ]
    assert "VG" in call(capsys, "table", tmp_path / "demo", *runs)[1]

    status, out, _ = call(capsys, "plan", "demo", *runs, "--set", "teacher.share=0.5")
    assert status == 0 and "would run" in out and "share is 0.5 here and 0.111 there" in out
    assert call(capsys, "run", "demo", *runs, "--set", "teacher.share=0.5", "--name", "half")[0] == 0
    status, out, _ = call(capsys, "why", "report", "--run", "half", *runs)
    assert status == 0 and out.startswith("teacher: share is 0.5 here and 0.111 there")


def test_another_config_in_the_same_folder(capsys, short_plan, tmp_path):
    call(capsys, "run", "demo", "--runs", tmp_path)
    line = refused(capsys, "run", "demo", "--runs", tmp_path, "--seed", "3")
    assert "seed is 3 here and 0 there" in line and "--name" in line and "--replace" in line
    assert call(capsys, "run", "demo", "--runs", tmp_path, "--seed", "3", "--replace")[0] == 0


def test_a_printed_recipe_can_be_run(capsys, short_plan, tmp_path):
    status, out, _ = call(capsys, "recipe", "demo")
    (tmp_path / "mine.yaml").write_text(out)
    assert (
        status == 0
        and call(capsys, "run", tmp_path / "mine.yaml", "--runs", tmp_path / "runs", "--name", "mine")[0] == 0
    )
    assert (tmp_path / "runs" / "mine" / "config.yaml").is_file()
    listed = call(capsys, "recipe")[1]
    assert all(name in listed for name in ("demo", "real", "laptop", "modern", "paper"))
    assert "# Give it: data.path, model.base" in call(capsys, "recipe", "paper")[1]


BAD = [
    (["run", "dmeo"], "dmeo: no such experiment; did you mean demo?"),
    (["run", "qqqqqq"], "there are demo, real"),
    (["run", "none.yaml"], "none.yaml: no such file"),
    (["run", "real"], "data.path: `real` needs a folder here; give it with --set data.path=FOLDER"),
    (["plan", "demo", "--set", "distill.kd_wieght=1"], "did you mean distill.kd_weight?"),
    (["run", "real", "--set", "data.path=nowhere"], "data.path=nowhere: no such file or folder"),
    (["run", "demo", "--name", "a/b"], "name: a/b given"),
    (["run", "demo", "--seed", "-1"], "seed: -1 given"),
    (["recipe", "papr"], "did you mean paper?"),
    (["status", "nosuch"], "nosuch: no run of that name or path"),
    (["table"], "no runs yet"),
    (["why", "teacher"], "no runs yet"),
    (["ask", "x.png", "Where?"], "no runs yet"),
    (["serve"], "no runs yet"),
    (["serve", "nosuch"], "nosuch: no run of that name or path"),
    (["serve", "--host", "0.0.0.0"], "--host 0.0.0.0: other machines could ask; give a token first"),
    (["serve", "--queue", "0"], "--queue 0: a number above 0 and below 1,000,000 is wanted"),
    (["serve", "--port", "70000"], "--port 70000: 0 to 65535 is wanted"),
    (["serve", "--token-file", "none"], "--token-file none: cannot be read"),
    (["data", "stats", "nowhere"], "no such file"),
    (["data", "phantoms", "new", "--images", "0"], "--images 0"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_wrong_input_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [[], ["rnu"], ["run"], ["table", "--json", "--csv"], ["run", "demo", "--seed", "x"]]
)
def test_unknown_words_are_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1 and "--help" in err


def test_a_fault_of_ours_leaves_a_traceback_file(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def broken(*_):
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("clinkd.pipeline.runs.find_run", broken)
    status, _, err = call(capsys, "status")
    (file,) = tmp_path.iterdir()
    assert status == 1 and err.count("\n") == 1 and str(file) in err and "ZeroDivisionError: a b" in err
    assert "Traceback" in file.read_text()
    with pytest.raises(ZeroDivisionError):
        cli.main(["status", "--debug"])


def test_errors_of_the_system_are_one_line(capsys, monkeypatch, tmp_path):
    (tmp_path / "runs").write_text("a file")
    status, _, err = call(capsys, "run", "demo", "--runs", tmp_path / "runs")
    assert status in (1, 2) and err.count("\n") == 1


def test_ask_prints_answer_candidates_and_picture(capsys, short_plan, tmp_path, monkeypatch):
    answer = BoxedText("It is here [box].", (Box(0.1, 0.2, 0.3, 0.4),))
    candidates = (
        Candidate("b", BoxedText("b"), -0.5, {"clip": 0.1}),
        Candidate("It is [here]", answer, None, {"clip": 0.25}),
    )
    warnings = (AnswerWarning("no_box", "no box given"), AnswerWarning("other_side", "the other side"))
    asked = AskResult(Prediction("q", candidates, chosen=1), tmp_path / "o.png", "they differ", warnings)
    monkeypatch.setattr("clinkd.workflows.ask.ask", lambda run, image, question, out: asked)
    call(capsys, "run", "demo", "--runs", tmp_path)
    status, out, _ = call(capsys, "ask", "--runs", tmp_path, tmp_path / "i.png", "Where is it?")
    remarks = "uncertain: they differ\nwarning: no box given\nwarning: the other side\n"
    assert status == 0 and out.startswith(f"It is here [box].\n{remarks}box      0.100 0.200 0.300 0.400")
    assert "It is [here]" in out and "0.250" in out and "-0.500" in out and str(tmp_path / "o.png") in out


def test_data_verbs(capsys, tmp_path):
    folder = tmp_path / "phantoms"
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        from clinkd.config import PhantomConfig

        small = PhantomConfig(train_images=16, validation_images=8, test_images=8)
        patch.setattr("clinkd.config.PhantomConfig", lambda: small)
        status, out, _ = call(capsys, "data", "phantoms", folder, "--images", "16", "--seed", "1")
    assert status == 0 and "train" in out and (folder / "samples.jsonl").is_file()
    assert "not empty" in refused(capsys, "data", "phantoms", folder)
    status, out, _ = call(capsys, "data", "stats", folder)
    assert status == 0 and "guessability" in out
    first = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    status, out, _ = call(capsys, "data", "show", folder, first["id"], "--out", tmp_path / "x.png")
    assert status == 0 and first["id"] in out and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "no sample of that id" in refused(capsys, "data", "show", folder, "nosuch")


def test_doctor_works_also_without_torch(capsys, monkeypatch):
    status, out, _ = call(capsys, "doctor")
    assert status == 0 and all(
        word in out for word in ("clinkd", "cores", "memory", "device", "java", "SPICE", "Chromium", EYES_WHEEL)
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    status, out, _ = call(capsys, "doctor")
    assert status == 0 and "torch does not import" in out


SLOW_RUN = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it ignored
from clinkd import cli, pipeline
from clinkd.pipeline.graph import Stage
from clinkd.storage import write_json
def work(given):
    print("working", flush=True)
    time.sleep(float(sys.argv[1]))
    write_json(given.folder / "table.json", {"average": None})
    (given.folder / "report.html").write_text("")
pipeline.plan = lambda config: [Stage("only", 1, {}, (), work)]
sys.exit(cli.main(["run", "demo", "--runs", sys.argv[2]]))
"""


@pytest.mark.parametrize(("kind", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_so_and_goes_on(tmp_path, kind, status):
    worker = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, "60", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert worker.stdout.readline() == "working\n"
    time.sleep(0.1)
    worker.send_signal(kind)
    _, err = worker.communicate(timeout=20)
    assert worker.returncode == status and "Traceback" not in err
    again = subprocess.run([sys.executable, "-c", SLOW_RUN, "0", str(tmp_path)], capture_output=True, text=True)
    assert again.returncode == 0 and "going on where it stopped" in again.stderr


def test_a_reader_that_leaves_early_is_no_error():
    shell = " ".join(f"'{word}'" for word in command("recipe", "demo")) + " | head -1"
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr and "Error" not in done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("clinkd ")
    assert Path(cli.__file__).is_file()


def test_a_folder_that_cannot_be_written_is_refused_with_the_way_out(capsys):
    assert cli._report_error(OSError(errno.EROFS, "Read-only file system", "runs/.stages/x.tmp")) == 2
    said = capsys.readouterr().err
    assert "runs/.stages/x.tmp: Read-only file system; give a folder that can be written, with --runs or --out" in said


@pytest.mark.parametrize(
    ("words", "near"),
    [(["runn"], "run"), (["data", "chek"], "check"), (["data", "export", "x", "--to", "coko", "--out", "y"], "coco")],
)
def test_a_mistyped_choice_is_answered_with_the_nearest(capsys, words, near):
    with pytest.raises(SystemExit):
        cli.main(words)
    assert f"; did you mean {near}?; see clinkd" in capsys.readouterr().err


def test_shares_that_leave_nothing_are_refused_by_their_flags_before_reading(capsys, tmp_path):
    words = ["data", "import", str(tmp_path / "none.csv"), "--out", str(tmp_path / "x"), "--test", "20"]
    assert cli.main(words) == 2
    assert "--validation 0.1, --test 20: shares" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("status",), ("plan",), ("data", "check"), ("ask",)])
def test_no_name_steers_the_terminal(words, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "x\x1b]0;pwned\x07\x1b[31m\u202e.yaml"
    with contextlib.suppress(SystemExit):  # wrong arguments
        cli.main([*words, name])
    out, err = capfd.readouterr()
    assert "\\x1b" in out + err and not set("\x1b\x07\u202e") & set(out + err)


def test_a_key_of_a_recipe_steers_no_terminal(capfd, tmp_path):
    (tmp_path / "a.yaml").write_text('"\\e[31mknob": 1')
    assert cli.main(["plan", str(tmp_path / "a.yaml")]) == 2
    assert "\\x1b[31mknob: no such knob" in capfd.readouterr().err


@pytest.mark.parametrize(("closed", "status"), [("<&-", 0), (">&-", 0), ("<&- >&- 2>&-", 0), ("| head -c 1", 0)])
def test_a_closed_stream_is_no_fault(closed, status):
    line = f"{shlex.quote(sys.executable)} -m clinkd recipe {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\nmore"),
    ],
)
def test_too_little_memory_is_told_in_a_line(error, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "choose_run", fail)
    assert cli.main(["table", "demo"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "not enough memory" in err and "ulimit" in err and "a fault of" not in err

"""Outside scorers: what they are told, how their scores count, and programs that hang, flood, crash or lie."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from clinkd.cli import main
from clinkd.records import BadInput, Modality, Task
from clinkd.scoring import outside
from clinkd.scoring.outside import OutsideScorer, TextPair, parse_scorers, score_pairs

PYTHON = (sys.executable, "-I", "-S", "-c")
PAIRS = [
    TextPair(Task.MIA, Modality.CT, "What\u2028is there?", f"truth {n}", "" if n else "an answer") for n in range(3)
]
BY_LENGTH = "import sys, json\nfor line in sys.stdin: print(len(json.loads(line)['answer']) / 10)"
BY_ID = (
    "import sys, json\nrows = [json.loads(line) for line in sys.stdin]\n"
    "for r in rows[::-1]: print(json.dumps({'id': r['id'], 'score': len(r['answer']) / 10, 'why': 'x'}))"
)


def run(code: str, seconds: float = 60, pairs: Sequence[TextPair] = PAIRS) -> list[float]:
    return score_pairs(OutsideScorer("judge", (*PYTHON, code), seconds), pairs)


def test_scores_are_read_by_line_or_by_id() -> None:
    assert run(BY_LENGTH) == run(BY_ID) == [0.9, 0, 0]
    assert run("never started", pairs=[]) == []


def test_a_scorer_is_told_texts_and_nothing_else(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    assert run(f"import sys; open({str(seen)!r}, 'w').write(sys.stdin.read()); print('1\\n1\\n1')") == [1, 1, 1]
    rows = [json.loads(line) for line in seen.read_text().splitlines()]
    assert rows == [{"id": n, **pair._asdict()} for n, pair in enumerate(PAIRS, start=1)]
    assert list(rows[0]) == ["id", "task", "modality", "question", "truth", "answer"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('0.5\\n0.5')", "printed 2 lines for 3 pairs"),
        ("print('1\\n1\\n1\\n1')", "printed 4 lines for 3 pairs"),
        ("print('1\\n\\n1')", "line 2 is '', and a finite number"),
        ("", "printed nothing for 3 pairs"),
        ("print('1\\nnan\\n1')", "line 2 is 'nan', and a finite number"),
        ("print('1\\n1\\n1e999')", "line 3 is '1e999', and a finite number"),
        ("print('1\\nF1: 0.3\\n1')", "line 2 is 'F1: 0.3', and a finite number"),
        ("print('True\\n1_0\\n1')", "line 1 is 'True'"),
        ("import sys; sys.stdout.buffer.write(b'1\\n\\xff\\n1')", "printed no text"),
        ("print('{\"id\": 1, \"score\": 1}\\n' * 3)", "line 2 scores the pair 1 again"),
        ("print('{\"id\": 9, \"score\": 1}\\n' * 3)", "line 1 scores a pair '9', which it was not given"),
        ("print('{\"id\": 1, \"score\": null}\\n' * 3)", "line 1 is .*null.*, and a finite number"),
        ("print('{\"id\": 1, \"score\": true}\\n' * 3)", "line 1 is .*true.*, and a finite number"),
        ("print('{\"id\": 1, \"score\": 1' + 400 * '0' + '}\\n1\\n1')", "line 1 is .*, and a finite number"),
        ("print('{\"id\": 1}\\n' * 3)", '"score": ...} is wanted'),
        ("print('{' + '\"a\":{' * 9000 + '\\n1\\n1')", "line 1 is"),
        ("print('1\\n1\\n1'); raise SystemExit(3)", "ended by exit status 3"),
        ("import os; os.abort()", "ended by signal 6"),
        ("raise ValueError('no weights')", "exit status 1.*; its last words: ValueError: no weights$"),
        ("import sys; sys.stderr.write('\\x1b[2Jbad\\n'); sys.exit(2)", r"its last words: \\x1b\[2Jbad$"),
    ],
)  # fmt: skip
def test_a_scorer_that_fails_is_named_and_none_of_its_scores_is_used(code: str, message: str) -> None:
    with pytest.raises(BadInput, match=f"^--scorer judge: .*{message}") as failed:
        run(code)
    assert "none of its scores is used" in str(failed.value) and "\n" not in str(failed.value)


def test_a_scorer_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    file, started = tmp_path / "child", time.monotonic()
    code = (
        "import subprocess, time\n"
        "c = [subprocess.Popen(['sleep', '60'], start_new_session=new) for new in (False, True)]\n"
        f"open({str(file)!r}, 'w').write(' '.join(str(p.pid) for p in c))\nprint(1, flush=True)\ntime.sleep(60)"
    )
    with pytest.raises(BadInput, match="had not ended after 0.5 s, and was stopped; give it longer with --scorer-time"):
        run(code, seconds=0.5)
    assert time.monotonic() - started < 20
    for child in file.read_text().split():
        assert not _runs(int(child))


def test_a_child_that_outlives_its_scorer_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "child"
    code = (
        "import subprocess\np = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(file)!r}, 'w').write(str(p.pid))\nprint('1\\n1\\n1')"
    )
    assert run(code) == [1, 1, 1]
    assert not _runs(int(file.read_text()))


def _runs(pid: int) -> bool:
    """Whether it still runs two seconds after it was killed. A zombie does not: its parent has not asked for it yet."""
    for _ in range(40):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return False
            os.kill(pid, 0)
        except OSError:
            return False
        time.sleep(0.05)
    return True


def test_a_scorer_that_floods_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "_MOST_BYTES", 100_000)
    monkeypatch.setattr(outside, "_MOST_BYTES_A_PAIR", 0)
    with pytest.raises(BadInput, match="printed more than 100,000 bytes for 3 pairs, and was stopped"):
        run("import sys\nwhile True: sys.stdout.write('1\\n' * 1000)")
    code = "import sys\nsys.stderr.write('x' * 300_000 + '\\nthe end\\n'); print('1\\n1\\n1')"
    assert run(code) == [1, 1, 1]  # of what is only said the end is kept
    with pytest.raises(BadInput, match="last words: the end"):
        run(f"{code}; sys.exit(1)")


def test_a_scorer_need_not_read_its_pairs() -> None:
    many = [pair._replace(answer="x" * 100_000) for pair in PAIRS]
    assert run("print('1\\n2\\n-3.5')", pairs=many) == [1, 2, -3.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("judge", "NAME=CMD is wanted"),
        ("=true", "NAME=CMD is wanted"),
        ("a\tb=true", "NAME=CMD is wanted"),
        ("mbmr=true", "a metric of that name exists"),
        ("judge='true", "cannot be read as a command"),
        ("judge=", "'' is no program that can be run here"),
        (
            "judge=no-such-program --x",
            "'no-such-program' is no program that can be run here; a script needs its interp",
        ),
    ],
)
def test_a_scorer_that_cannot_start_is_refused_before_anything_else(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--predictions", "no-such-file", "--task", "MIA", "--scorer", text]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and "--scorer" in line


def test_odd_flags_of_scorers() -> None:
    with pytest.raises(BadInput, match="given twice"):
        parse_scorers(["judge=true", "Judge=true"], 1)
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="--scorer-timeout"):
            parse_scorers([], seconds)
    assert parse_scorers(["my judge=true 'a b' $HOME;ls"], 5) == [
        OutsideScorer("my judge", ("true", "a b", "$HOME;ls"), 5)  # no shell reads it
    ]


# ---- from the command line ------------------------------------------------------------------------------------------

TRUTHS = ("liver", "spleen", "lung", "heart", "liver", "kidney")
SCORE = (  # 1 where truth and answer are equal; counts its starts and what it is asked
    "import sys, json\nrows = [json.loads(line) for line in sys.stdin]\n"
    "open({log!r}, 'a').write(json.dumps(rows) + '\\n')\nfor r in rows: print(float(r['truth'] == r['answer']))\n"
)


def write_rows(file: Path, answers: Sequence[str]) -> Path:
    rows = [
        {"id": n, "image": f"ct_{n}.png", "question": "What is it?", "annotation": truth, "response": answer}
        for n, (truth, answer) in enumerate(zip(TRUTHS, answers, strict=True))
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def test_scores_stand_beside_our_own_and_in_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, script = tmp_path / "log", tmp_path / "score.py"
    script.write_text(SCORE.format(log=str(log)))
    flags = ["--task", "QA", "--scorer", f"exact={sys.executable} -I -S {script}", "--replicates", "50"]
    told = {}
    for name, answers in (("good", TRUTHS), ("bad", (*TRUTHS[:2], "none", "none", "none", "none"))):
        file = write_rows(tmp_path / f"{name}.jsonl", answers)
        out = ["--out", str(tmp_path / name)]
        assert main(["evaluate", "--predictions", str(file), *flags, *out, "--json"]) == 0
        told[name] = json.loads(capsys.readouterr().out)
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(asked) == 2, "a program starts once for an evaluation"
    texts = [(row["truth"], row["answer"]) for row in asked[1]]
    assert len(set(texts)) == len(texts) > len(TRUTHS)  # the baselines' answers, each pair once
    assert not any("ct_0.png" in json.dumps(row) for row in asked[0])
    bad = told["bad"]["scorers"]["exact"]["QA"]
    assert bad["score"] == pytest.approx(100 / 3) and bad["by_modality"]["ct"]["answers"] == 6
    assert bad["interval"][0] < bad["score"] < bad["interval"][1] and set(bad["blind_by"])
    assert told["bad"]["strict"]["QA"]["parts"]["exact"] == pytest.approx(100 / 3)
    assert told["good"]["scorers"]["exact"]["QA"]["score"] == 100
    table = json.loads((tmp_path / "bad" / "table.json").read_text())
    assert table["QA"]["metrics"]["exact"]["score"] == pytest.approx(100 / 3)
    assert "exact" in (tmp_path / "bad" / "report.html").read_text()
    from clinkd.workflows.compare import HowToCompare, compare

    (comparison,) = compare([str(tmp_path / "good"), str(tmp_path / "bad")], tmp_path, HowToCompare()).comparisons
    difference = comparison.get(Task.QA, "exact")
    assert difference and difference.value == pytest.approx(200 / 3) and difference.interval
    assert len(log.read_text().splitlines()) == 2, "a comparison starts no program"


def test_failures_from_the_command_line_leave_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_rows(tmp_path / "rows.jsonl", TRUTHS), tmp_path / "out"
    words = ["evaluate", "--predictions", str(file), "--out", str(out), "--scorer", f"x={sys.executable} -I -S -c 0"]
    assert main([*words, "--task", "QA"]) != 0
    assert "--scorer x: printed nothing" in capsys.readouterr().err and not out.exists()
    assert main([*words, "--task", "VG"]) != 0
    assert "every question asks for boxes" in capsys.readouterr().err
    assert main([*words, "--task", "QA", "--mode", "official"]) != 0
    assert "leave out --mode official" in capsys.readouterr().err

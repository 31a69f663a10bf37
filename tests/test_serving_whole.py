"""As a person goes: from a file dropped on the page to a run that has learned from what was decided there."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from browser import Browser, arrived, program
from clinkd.cli import main
from clinkd.correction.correctors import HUMAN
from clinkd.records import BOX_MARK
from clinkd.version import spell_program
from serving import TOKEN, Server, json_of, serving
from structured_reports import read_report

CORNERS = ((0.25, 0.25), (0.625, 0.75))
TAUGHT = "A person says: it is here [box]."


def place(page: Browser, stage: str, x: float, y: float) -> tuple[float, float]:
    """Where a point of the picture is in the window."""
    left, top, width, height = page.ask(
        f"(({{x, y, width, height}}) => [x, y, width, height])"
        f"(document.querySelector('{stage} canvas').getBoundingClientRect())"
    )
    return left + x * width, top + y * height


def opened(page: Browser, path: Path) -> None:
    page.ask("document.getElementById('facts').textContent = ''")
    page.drop(*place(page, "#stage", 0.5, 0.5), path) if page.ask("!!document.querySelector('#stage canvas')") else (
        page.choose("#file", path)
    )
    page.until("document.getElementById('facts').textContent !== ''")


def told(page: Browser) -> dict[str, object]:
    """The answer that stands there, by what is saved of it."""
    page.until("document.getElementById('answer').ariaBusy !== 'true' && !document.getElementById('saving').hidden")
    return page.ask("document.querySelector('#answer .words').textContent")


def the_whole_way(page: Browser, server: Server, run: Path, folder: Path) -> list[str]:
    """Open, draw, ask, see, save, and correct three; the ids of these."""
    page.visit(f"{server.url}/?token={TOKEN}", 1280, 900)
    page.until("document.getElementById('state').dataset.state === 'ready'")
    page.downloads(folder)
    prepared = run / "stages" / "prepare"
    sample = next(s for s in map(json.loads, (prepared / "test.jsonl").open()) if s["turns"][0]["task"] == "VG")
    opened(page, (prepared / sample["images"][0]["path"]).resolve())
    page.mouse(*(place(page, "#stage", *corner) for corner in CORNERS))
    page.click("[data-task=what]")
    said = told(page)
    page.click("#save-json")
    kept = json.loads(arrived(folder, "json"))
    assert kept["question"]["text"].count(BOX_MARK) == 1 and kept["model"] == server.served.name
    page.click("#save-png")
    assert arrived(folder, "png").startswith(b"\x89PNG")
    page.type("#name", sample["names"][0])
    page.click("#where-form button")
    page.until("document.querySelectorAll('#history li').length === 2")
    assert told(page) and said is not None

    opened(page, Path(str(get_testdata_file("CT_small.dcm", download=False))))
    page.mouse(*(place(page, "#stage", *corner) for corner in CORNERS))
    page.click("[data-task=describe]")
    page.until("document.querySelectorAll('#history li').length === 3")
    told(page)
    page.click("#save-sr")
    report = read_report(arrived(folder, "dcm"), 128, 128)
    drawn = next(r.box for r in report.regions if r.by == "person")
    assert drawn.corners == pytest.approx([v for corner in CORNERS for v in corner], abs=1 / 128)

    page.click("#to-corrections")
    page.until("document.querySelectorAll('.items button').length > 2")
    page.until("document.querySelector('#c-progress').textContent.startsWith('0 of ')")
    edited = []
    for number in range(3):
        page.press("e")
        page.until("!!document.querySelector('#corrections textarea')")
        page.until("!!document.querySelector('#corrections .stage canvas')")
        page.ask("document.querySelector('#corrections .stage').focus()")
        page.press("Enter")  # a box in the middle
        name = page.ask("[...document.querySelectorAll('#corrections .mark.rewrite .name')].at(-1).textContent")
        others = page.ask("document.querySelectorAll('#corrections .mark.rewrite').length") - 1
        rest = "".join(f" [box {chr(65 + n)}]" for n in range(others))
        page.type("#corrections textarea", TAUGHT.replace("[box]", f"[box {name}]") + rest)
        page.click("#c-actions [data-act=save]")
        page.until(f"document.querySelector('#c-progress').textContent.startsWith('{number + 1} of ')")
        edited.append(page.sent[-1].body["id"])
        if number < 2:
            page.press("j")
            page.until("!document.querySelector('#corrections textarea')")
    return edited


@pytest.mark.parametrize("which", ["small", pytest.param("demo", marks=pytest.mark.slow)])
def test_open_draw_ask_see_save_correct_and_learn(which, request, tmp_path, monkeypatch):
    program()
    runs = tmp_path / "runs"
    if which == "small":
        shutil.copytree(request.getfixturevalue("small_run").parent, runs, symlinks=True)
    else:
        assert main(["run", "demo", "--runs", str(runs)]) == 0
    with serving(runs / which) as server, Browser(tmp_path / "profile") as page:
        edited = the_whole_way(page, server, runs / which, tmp_path)
        assert page.told == []
        command = json_of(server.client.get("/v1/corrections", params={"round": 1}))["command"]
    words = shlex.split(command.removeprefix(spell_program()))
    monkeypatch.chdir(runs)
    assert main(words) == 0
    stage = runs / f"{which}-corrected" / "stages" / "reflect-2"  # the page begins with the last round
    made = {c["id"]: c for c in map(json.loads, (stage / "corrections.jsonl").open())}
    assert len(set(edited)) == 3
    for name in edited:
        # what the person wrote is the truth now; the answer was held against it, and is trained towards it
        assert made[name]["truth"]["text"].startswith(TAUGHT) and made[name]["by"] == HUMAN
        assert made[name]["after"] == made[name]["truth"]
    assert json.loads((stage / "stage.json").read_text())["recorded"]["overruled_truths"] == 3
    assert (runs / f"{which}-corrected" / "report.html").is_file()

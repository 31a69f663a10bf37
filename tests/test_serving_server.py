"""`clinkd serve` as a user starts it: what it prints, what it refuses, how it ends; and reports of what was drawn."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from benchmarks.patience import Deadline, patience
from pydicom import dcmread
from pydicom.data import get_testdata_file

from clinkd.own_address import is_loopback
from clinkd.records import BOX_MARK, BadInput
from clinkd.serving.server import TOKEN_VARIABLE, open_browser, read_user_token
from serving import Server, json_of, serving, uri
from structured_reports import read_report

TOKEN = "a-token-of-ones-own-1234"


@contextmanager
def started(*words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and where it listens."""
    given = [sys.executable, "-m", "clinkd", "serve", *words, "--port", "0", "--seconds", str(patience(60))]
    known = {k: v for k, v in os.environ.items() if k != TOKEN_VARIABLE}
    process = subprocess.Popen(
        given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**known, **environment}
    )
    try:
        line = process.stdout.readline()
        found = re.match(r"page     (http://127\.0\.0\.1:\d+)/(\?token=([\w-]+))?", line)
        assert found, line + process.stderr.read()
        process.token = found[3]
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def until_up(url: str) -> None:
    end = Deadline(60)
    while not end.passed():
        try:
            json_of(httpx2.get(url + "/healthz"))
            return
        except httpx2.TransportError:
            time.sleep(0.02)
    raise TimeoutError(f"the server is not up after {end.seconds:.0f} s")


def test_a_run_is_served_from_the_printed_address_and_leaves_nothing(small_run, tmp_path, tmp_path_factory):
    browser = tmp_path_factory.mktemp("browser") / "browser"
    browser.write_text('#!/bin/sh\nprintf %s "$1" > "$0.new" && mv "$0.new" "$0.url"\n')
    browser.chmod(0o700)
    before = {p: p.stat().st_mtime_ns for p in sorted(small_run.parent.rglob("*"))}
    place = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "BROWSER": f"{browser} %s"}
    with started("small", "--open", "--runs", str(small_run.parent), **place) as (process, url):
        until_up(url)
        assert httpx2.get(url).status_code == 401
        assert browser.with_suffix(".url").read_text() == f"{url}/?token={process.token}"
        with httpx2.Client(base_url=url, follow_redirects=True, timeout=patience(90)) as browser:
            assert browser.get(f"/?token={process.token}").status_code == 200
            assert json_of(browser.get("/v1/about"))["run"]["name"] == "small"
            content = Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes()
            body = {"image": uri(content), "phrase": "liver"}
            answer = json_of(browser.post("/v1/ground", json=body, headers={"origin": url}))  # waits for the model
            assert answer["image"] == {"width": 128, "height": 128}
            assert browser.get("/report").text.startswith("<!doctype html>")
        assert oct(umask_of(process.pid)) == "0o77"
        assert addresses_of(process.pid) == {"0100007F"}
        process.send_signal(signal.SIGINT)
        assert process.wait(patience(20)) in (0, 130)
        assert "Traceback" not in process.stderr.read()
    assert {p: p.stat().st_mtime_ns for p in sorted(small_run.parent.rglob("*"))} == before
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_without_a_browser_one_line_says_so(monkeypatch):
    lines: list[str] = []
    for opens in (True, False):
        monkeypatch.setattr("webbrowser.open", lambda url, opens=opens: opens)
        open_browser("http://127.0.0.1:1/?token=t", lines.append)
    assert lines == ["browser  none could be started here; open the address of the page by hand"]


def umask_of(pid: int) -> int:
    return int(re.search(r"^Umask:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1], 8)


def addresses_of(pid: int) -> set[str]:
    """Where a process listens, as the kernel writes addresses."""
    own = {os.readlink(p) for p in Path(f"/proc/{pid}/fd").iterdir() if p.exists() or p.is_symlink()}
    sockets = {m[1] for link in own if (m := re.match(r"socket:\[(\d+)\]", link))}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f[1].partition(":")[0] for f in lines if f[3] == "0A" and f[9] in sockets}


def test_a_model_alone_is_served_with_the_token_of_the_environment(small_run, tmp_path):
    from clinkd.cli import main

    out = tmp_path / "exported"
    assert main(["export", "--runs", str(small_run.parent), "--run", "small", str(out)]) == 0
    card = (out / "README.md").read_text()
    for told in ("drawn phantoms", "32 images", "Weights may memorise training texts", "words of at least 2 patients"):
        assert told in card
    with started(str(out), **{TOKEN_VARIABLE: TOKEN}) as (process, url):
        assert process.token is None
        until_up(url)
        with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=patience(90)) as client:
            about = json_of(client.get("/v1/about"))
            assert about["name"] == "exported" and about["run"] is None
            assert client.get("/v1/corrections").status_code == client.get("/report").status_code == 404
            content = Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes()
            answer = json_of(client.post("/v1/ground", json={"image": uri(content), "phrase": "liver"}))
            assert answer["candidates"][0]["chosen"] and not answer["reordered"]
        process.terminate()
        assert process.wait(patience(20)) in (0, -signal.SIGTERM, 143)


def test_tokens_are_long_and_fit_a_header(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_user_token(None) is None
    for text in ("short", "has a blank in it, see", "ü" * 20, "", "x" * 300, "semicolon;semicolon;"):
        monkeypatch.setenv(TOKEN_VARIABLE, text)
        with pytest.raises(BadInput, match=f"{TOKEN_VARIABLE}: 16 letters"):
            read_user_token(None)
        (tmp_path / "token").write_text(text, encoding="utf-8")
        with pytest.raises(BadInput, match="--token-file"):
            read_user_token(tmp_path / "token")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_user_token(tmp_path / "token") == TOKEN


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True),
    ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False), ("", False),
    ("localhost.example.org", False)])  # fmt: skip
def test_which_addresses_only_this_machine_reaches(host, local):
    assert is_loopback(host) is local


def test_a_port_that_is_taken_is_told(small_run, capsys, monkeypatch, tmp_path):
    from clinkd.cli import main

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", "small", "--runs", str(small_run.parent), "--port", port]) == 2
    assert f"--port {port}: cannot be taken (Address already in use); --port 0 takes a" in capsys.readouterr().err
    (tmp_path / "token").write_text(TOKEN)
    for host, mode in (("192.0.2.1", 0o644), ("nobody.invalid", 0o640)):
        (tmp_path / "token").chmod(mode)
        words = ["--host", host, "--port", "0", "--token-file", str(tmp_path / "token")]
        assert main(["serve", "small", "--runs", str(small_run.parent), *words]) == 2
        out, err = capsys.readouterr()
        assert "give an address of this machine: 127.0.0.1" in err and "--port 0 takes" not in err
        told = f"note     --token-file {tmp_path / 'token'}: every user of this machine can read it; chmod 600 "
        assert (told in out) == (mode == 0o644)


# ---- a box through the API, and back as a report ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(small_run: Path) -> Iterator[Server]:
    with serving(small_run) as found:
        yield found


def reported(server: Server, image: str, region: dict[str, object]) -> httpx2.Response:
    return server.post("/v1/sr", image=image, question={"text": "What?"}, answer={"text": "A"}, regions=[region])


DICOMS = ("CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm", "rtdose.dcm")


def test_a_drawn_box_comes_back_exactly_where_no_text_lies_between(server):
    dice = np.random.default_rng(0)
    for name in DICOMS:
        image = uri(Path(get_testdata_file(name, download=False)).read_bytes(), "application/dicom")
        size = server.ask("/v1/open", image=image)
        for _ in range(5):
            (x1, x2), (y1, y2) = sorted(dice.random(2)), sorted(dice.random(2))
            region = {"box": [x1, y1, x2, y2], "label": "liver", "by": "person"}
            told = server.post(
                "/v1/sr", image=image, question={"text": "What?"}, answer={"text": "A"}, regions=[region]
            )
            assert told.status_code == 200 and told.headers["content-type"] == "application/dicom"
            [back] = read_report(told.content, size["width"], size["height"]).regions
            wanted = np.float32([x1 * size["width"], y1 * size["height"], x2 * size["width"], y2 * size["height"]])
            found = np.multiply(back.box.corners, [size["width"], size["height"]] * 2)
            assert np.array_equal(np.float32(found), wanted) and back.by == "person" and back.label == "liver"


def test_a_report_has_the_warnings_and_the_confidence_of_the_answer(server):
    image = uri(Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes(), "application/dicom")
    told = {"question": {"text": "What?"}, "answer": {"text": "A"}, "regions": []}
    warning = {"kind": "unknown_name", "message": "not a name this model learned: lever"}
    content = server.post("/v1/sr", image=image, **told, confidence=0.8125, warnings=[warning]).content
    items = list(dcmread(io.BytesIO(content)).iterall())
    assert warning["message"] in {str(e.value) for e in items if e.keyword == "TextValue"}
    assert 0.8125 in {float(e.value) for e in items if e.keyword == "NumericValue"}
    for wrong in ({"confidence": 1.5}, {"warnings": [{"kind": "other", "message": "x"}]}):
        assert server.post("/v1/sr", image=image, **told, **wrong).status_code == 400


def test_a_drawn_box_through_the_models_text_is_within_half_a_step_and_a_pixel(server):
    codec = server.engine.answerer.model.codec
    dice = np.random.default_rng(1)
    image = uri(Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes(), "application/dicom")
    for _ in range(5):
        box = [*dice.uniform(0, 0.45, 2), *dice.uniform(0.55, 1, 2)]
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": f"What is {BOX_MARK}?"}]
        asked = server.ask("/v1/chat/completions", model="small", clinkd={"boxes": [box]},
                           messages=[{"role": "user", "content": content}])["clinkd"]["asked"]  # fmt: skip
        region = {"box": asked[0]["box"], "label": "", "by": "model"}
        told = reported(server, image, region)
        assert told.status_code == 200, told.text
        [back] = read_report(told.content, 128, 128).regions
        assert np.abs(np.subtract(back.box.corners, box)).max() <= codec.steps()[0] / 2 + 1 / 128


@pytest.mark.parametrize(("image", "says"), [(uri(b"\x89PNG\r\n"), "not a DICOM"), (uri(b""), "not a DICOM")])
def test_only_a_dicom_can_be_reported_on(server, image, says):
    told = server.post("/v1/sr", image=image, question={"text": "a"}, answer={"text": "b"}, regions=[])
    assert told.status_code == 400 and says in told.json()["error"]["message"]

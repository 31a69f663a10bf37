"""A headless Chromium that tests look at pages with, spoken to over its DevTools pipe."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pytest
from benchmarks.patience import Deadline

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 30.0
KEYS = {
    "Backspace": 8, "Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36,
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Delete": 46, "+": 187, "-": 189,
}  # fmt: skip
HELD = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


class Sent(NamedTuple):
    method: str
    path: str
    body: Any


def program() -> str:
    """Where Chromium is; the test is skipped where it is nowhere."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found:
        pytest.skip("no Chromium on PATH: install Debian's chromium to look at the pages")
    return found


class Browser:
    """One page that can be looked at and clicked on. `told` holds what it complained about: errors, violations of the
    policy, and requests for anything but the page itself, its server, and data URIs. `sent` holds what was put or
    posted to that server."""

    def __init__(self, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()

        def place() -> None:  # the pipe is at 3 (it reads) and 4 (it writes)
            low, high = (os.dup(fd) for fd in (ours[0], theirs[1]))
            os.dup2(low, 3)
            os.dup2(high, 4)

        words = [program(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            words, preexec_fn=place, pass_fds=(3, 4), stdout=quiet, stderr=quiet, start_new_session=True
        )
        self.profile = profile
        os.close(ours[0])
        os.close(theirs[1])
        self.writes, self.reads = ours[1], theirs[0]
        self.numbers, self.kept, self.session = itertools.count(1), b"", ""
        self.told: list[str] = []
        self.sent: list[Sent] = []
        self.origin = ""
        self.events: list[dict[str, Any]] = []
        target = next(t for t in self._targets() if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Network.enable", maxPostDataSize=1 << 21)

    def _targets(self) -> list[dict[str, Any]]:
        end = Deadline(SECONDS)
        while not end.passed():
            found: list[dict[str, Any]] = self.call("Target.getTargets")["targetInfos"]
            if any(t["type"] == "page" for t in found):
                return found
            time.sleep(0.05)
        raise TimeoutError("Chromium opened no page")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # its helpers, too, which write into the profile
        self.process.wait()
        os.close(self.writes)
        os.close(self.reads)
        end = Deadline(SECONDS)
        while self.profile.exists():  # a helper may be dying still
            assert not end.passed(), f"{self.profile} is still written to"
            shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        asked = {"id": number, "method": method, "params": parameters}
        if self.session:
            asked["sessionId"] = self.session
        os.write(self.writes, json.dumps(asked).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.kept:
            piece = os.read(self.reads, 1 << 20)
            assert piece, "Chromium ended"
            self.kept += piece
        line, _, self.kept = self.kept.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        about = message.get("params", {})
        kind = message.get("method", "")
        self.events.append({"method": kind})
        if kind == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.told.append(f"error: {details.get('exception', {}).get('description', details['text'])}")
        elif kind == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.told.append(f"log: {about['entry']['text']}")
        elif kind == "Runtime.consoleAPICalled":
            self.told.append(f"console: {about['args']}")
        elif kind == "Network.requestWillBeSent":
            url, body = about["request"]["url"], about["request"].get("postData")
            ours = url.startswith(("data:", f"blob:{self.origin}/")) or (self.origin and url.startswith(self.origin))
            if not ours and about.get("type") != "Document":
                self.told.append(f"request: {url}")
            if body and body.startswith("{"):  # not the bytes of a file
                self.sent.append(Sent(about["request"]["method"], url.removeprefix(self.origin), json.loads(body)))

    def open(self, path: Path, fragment: str = "", width: int = 1280, height: int = 900, dark: bool = False) -> float:
        """Show a page from the start, and return the seconds until all of it stood."""
        return self.visit(path.resolve().as_uri() + (f"#{fragment}" if fragment else ""), width, height, dark)

    def visit(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> float:
        """The same for any address; requests to its server are its own affair."""
        self.origin = url[: url.index("/", 8)] if url.startswith("http") else ""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.leave()
        start = time.monotonic()
        self.call("Page.navigate", url=url)
        self._until("Page.loadEventFired")
        return time.monotonic() - start

    def leave(self) -> None:
        """Show nothing, so that the next page stands alone."""
        self.call("Page.navigate", url="about:blank")
        self._until("Page.loadEventFired")

    def _until(self, event: str) -> None:
        end = Deadline(SECONDS)
        while not any(e["method"] == event for e in self.events):
            assert not end.passed(), f"no {event} in {end.seconds:.0f} s"
            self._message()
        self.events.clear()

    def ask(self, expression: str) -> Any:
        """The value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        box = self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
        self.settle()

    def press(self, key: str, *held: str) -> None:
        """A key, down and up, while others are held: Alt, Control, Meta, Shift."""
        text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        modifiers = sum(HELD[name] for name in held)
        code = KEYS.get(key) or ord(key.upper())
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=modifiers,
                      **more)  # fmt: skip
        self.settle()

    def settle(self) -> None:
        """Until what was just done has been drawn."""
        self.ask("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")

    def until(self, expression: str, seconds: float = SECONDS) -> Any:
        """The value of an expression as soon as it is true."""
        end = Deadline(seconds)
        while not (found := self.ask(expression)):
            assert not end.passed(), (expression, self.told, f"{end.seconds:.0f} s")
            time.sleep(0.02)
        return found

    def type(self, selector: str, text: str) -> None:
        """Type a text into a field, in the place of what is there."""
        self.ask(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()")
        self.call("Input.insertText", text=text)

    def pick(self, selector: str, value: str) -> None:
        """Choose in a list, or set a slider."""
        self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)}; "
            "for (const n of ['input', 'change']) e.dispatchEvent(new Event(n, {bubbles: true})); })()"
        )

    def mouse(self, *path: tuple[float, float], button: str = "left") -> None:
        """Press at the first point, go over the others, and let go at the last."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(path) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*path, path[-1]], strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=1, clickCount=1)
        self.settle()

    def hover(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def wheel(self, x: float, y: float, down: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=down)
        self.settle()

    def touch(self, *steps: Sequence[tuple[float, float]]) -> None:
        """Fingers: where they touch first, where they go, and all of them up."""
        for number, points in enumerate([*steps, ()]):
            kind = "touchEnd" if not points else "touchMove" if number else "touchStart"
            at = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(points)]
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=at)
        self.settle()

    def choose(self, selector: str, *paths: Path) -> None:
        """Give files to an input of files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def drop(self, x: float, y: float, *paths: Path) -> None:
        """Let files fall on the page."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def downloads(self, folder: Path) -> None:
        """Where files go that the page gives away."""
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def picture(self, path: Path, whole: bool = False) -> None:
        """What is seen, as a PNG."""
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made["data"]))


def arrived(folder: Path, ending: str) -> bytes:
    """What the page has given away, as soon as it is there."""
    end = Deadline(SECONDS)
    while not (found := [p for p in folder.glob(f"*.{ending}") if p.stat().st_size]):
        assert not end.passed(), list(folder.iterdir())
        time.sleep(0.02)
    return found[0].read_bytes()

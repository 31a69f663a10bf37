"""The pictures of the page in docs/SERVING.md, taken from a run in a headless Chromium.

    python docs/screens.py RUN [IMAGE NAME]

Opens a test image of the run (or IMAGE), asks where NAME is, then shows the first of the run's corrections.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "tests")]
from browser import Browser  # noqa: E402

TOKEN = "a-token-for-pictures"


def question(prepared: Path) -> tuple[Path, str]:
    """The first image of the test split with two structures, and the name of one of them."""
    asked: dict[str, str] = {}
    for line in (prepared / "test.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if sample["turns"][0]["task"] != "VG":
            continue
        image, name = sample["images"][0]["path"], sample["names"][0]
        if image in asked and asked[image] != name:
            return prepared / image, name
        asked[image] = name
    raise SystemExit("no test image with two structures")


def main() -> None:
    run = Path(sys.argv[1])
    given = (Path(sys.argv[2]), sys.argv[3]) if len(sys.argv) > 3 else question((run / "stages" / "prepare").resolve())
    words = [sys.executable, "-m", "clinkd", "serve", str(run), "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "CLINKD_TOKEN": TOKEN})
    try:
        assert server.stdout
        found = re.search(r"http://\S+?:\d+", server.stdout.readline())
        assert found
        with tempfile.TemporaryDirectory() as home, Browser(Path(home)) as page:
            page.visit(f"{found[0]}/?token={TOKEN}", 1280, 800)
            page.until("document.getElementById('state').textContent.includes('ready')", 120)
            page.choose("#file", given[0])
            page.until("!document.getElementById('hint')?.checkVisibility()")
            page.type("#name", given[1])
            page.click("#where-form button")
            page.until("Boolean(document.querySelector('#candidates li'))")
            page.picture(HERE / "page.png")
            page.click("#to-corrections")
            page.until("Boolean(document.querySelector('.items button'))")
            page.until("document.querySelector('#corrections canvas')?.width > 0")
            page.picture(HERE / "corrections.png")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

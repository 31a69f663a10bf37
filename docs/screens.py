"""The pictures of the page in docs/SERVING.md and docs/PACS.md, taken from a run in a headless Chromium.

    python docs/screens.py RUN [IMAGE NAME]

Opens a test image of the run (or IMAGE), asks where NAME is, then shows the first of the run's corrections. Then some
test images are sent as DICOM to `clinkd pacs listen`, and the worklist is shown.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "tests")]
from browser import Browser  # noqa: E402

TOKEN = "a-token-for-pictures"
SHOWN = {"ct": "CT", "mr": "MR", "ultrasound": "US", "xray": "DX"}  # modalities of the worklist, and DICOM's words
EACH = 2  # images of a modality


def read_samples(prepared: Path) -> Iterator[dict[str, Any]]:
    """Questions of the test split that want a box."""
    for line in (prepared / "test.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if sample["turns"][0]["task"] == "VG":
            yield sample


def question(prepared: Path) -> tuple[Path, str]:
    """The first image of the test split with two structures, and the name of one of them."""
    asked: dict[str, str] = {}
    for sample in read_samples(prepared):
        image, name = sample["images"][0]["path"], sample["names"][0]
        if image in asked and asked[image] != name:
            return prepared / image, name
        asked[image] = name
    raise SystemExit("no test image with two structures")


@contextmanager
def started(until: str, *words: str) -> Iterator[str]:
    """A command of clinkd, and what it printed to the line that begins so."""
    server = subprocess.Popen(
        [sys.executable, "-m", "clinkd", *words],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "CLINKD_TOKEN": TOKEN},
    )  # fmt: skip
    try:
        assert server.stdout
        told = list[str]()
        while not (told and told[-1].startswith(until)):
            line = server.stdout.readline()
            assert line, told
            told.append(line)
        yield "".join(told)
    finally:
        server.terminate()
        server.wait()


def visit(page: Browser, told: str, view: str = "") -> None:
    address = re.search(r"http://\S+?:\d+", told)
    assert address
    page.visit(f"{address[0]}/?token={TOKEN}{view}", 1280, 800)
    page.until("document.getElementById('state').textContent.includes('ready')", 120)


def show_page(page: Browser, image: Path, name: str) -> None:
    page.choose("#file", image)
    page.until("!document.getElementById('hint')?.checkVisibility()")
    page.type("#name", name)
    page.click("#where-form button")
    page.until("Boolean(document.querySelector('#candidates li'))")
    page.picture(HERE / "page.png")
    page.click("#to-corrections")
    page.until("Boolean(document.querySelector('.items button'))")
    page.until("document.querySelector('#corrections canvas')?.width > 0")
    page.picture(HERE / "corrections.png")


def write_images(prepared: Path, rules: Path) -> list[Any]:
    """Test images of some modalities as DICOM; the rules ask each modality for a structure that these images have."""
    from pydicom.uid import generate_uid

    from arrivals import make_image

    images, asked = [], {}
    for kind, modality in SHOWN.items():
        first, *others = (s for s in read_samples(prepared) if s["modality"] == kind)
        same = [first, *(s for s in others if s["names"] == first["names"])]
        asked[kind] = {"modality": modality, "questions": first["turns"][0]["question"]}
        for sample in same[:EACH]:
            grey = np.asarray(Image.open(prepared / sample["images"][0]["path"]).convert("L"))
            uid, bits = generate_uid(), {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
            size = dict(zip(("Rows", "Columns"), grey.shape, strict=True))
            image = make_image(Modality=modality, SOPInstanceUID=uid, PixelData=grey.tobytes(), **bits, **size)
            image.file_meta.MediaStorageSOPInstanceUID = uid
            images.append(image)
    rules.write_text(json.dumps(asked))
    return images


def send_images(images: list[Any], port: int) -> None:
    from pynetdicom import AE

    sender = AE()
    sender.add_requested_context(images[0].SOPClassUID)
    link = sender.associate("127.0.0.1", port, ae_title="CLINKD")
    assert link.is_established
    assert all(link.send_c_store(image).Status == 0 for image in images)
    link.release()


def show_worklist(page: Browser, told: str, images: list[Any]) -> None:
    """With all answered and the first one looked at."""
    found = re.search(r"listens +127\.0\.0\.1:(\d+)", told)
    assert found, told
    send_images(images, int(found[1]))
    visit(page, told, "#worklist")
    page.until(f"document.getElementById('w-state').options[0]?.textContent === 'to decide ({len(images)})'", 120)
    page.until("document.querySelector('#w-stage canvas')?.width > 0")
    page.picture(HERE / "worklist.png")


def main() -> None:
    run = Path(sys.argv[1])
    prepared = (run / "stages" / "prepare").resolve()
    given = (Path(sys.argv[2]), sys.argv[3]) if len(sys.argv) > 3 else question(prepared)
    with tempfile.TemporaryDirectory() as home, Browser(Path(home) / "profile") as page:
        with started("page", "serve", str(run), "--port", "0") as told:
            visit(page, told)
            show_page(page, *given)
        rules, folder = Path(home) / "rules.yaml", Path(home) / "worklist"
        images = write_images(prepared, rules)
        words = ("--rules", str(rules), "--folder", str(folder), "--port", "0", "--page-port", "0")
        archive = ("--to", "dicom://ORTHANC@127.0.0.1:4242")  # nothing is sent before the picture is taken
        with started("page", "pacs", "listen", str(run), *words, *archive) as told:
            show_worklist(page, told, images)


if __name__ == "__main__":
    main()

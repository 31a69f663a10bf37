"""The pictures of the page in docs/SERVING.md and docs/PACS.md, taken from a run in a headless Chromium.

    python docs/screens.py RUN [IMAGE NAME]

Opens a test image of the run (or IMAGE), asks where NAME is, then shows the first of the run's corrections, and a
worklist of test images, as if they had arrived as DICOM, with one answer accepted.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "tests")]
from browser import Browser  # noqa: E402
from clinkd.hospital.worklist import ArrivedImage, RuledQuestion, Worklist, WorklistDecision  # noqa: E402

if TYPE_CHECKING:  # processes that open files import this one, and must not wait for torch
    from serving import Server

TOKEN = "a-token-for-these-tests"  # of serving.py

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


def fill(worklist: Worklist, server: Server, prepared: Path) -> None:
    """Test images of some modalities, answered by the model; the first answer is accepted."""
    from arrivals import encode, make_image
    from clinkd.serving.listening import ServedDesk

    desk = ServedDesk(server.engine, (server.served.name, ""))
    for kind, modality in SHOWN.items():
        samples = [sample for sample in read_samples(prepared) if sample["modality"] == kind]
        for sample in samples[: 2 * EACH : 2]:
            grey = np.asarray(Image.open(prepared / sample["images"][0]["path"]).convert("L"))
            instance = f"1.2.3.{len(worklist.list()) + 1}"
            image = make_image(
                Modality=modality, SOPInstanceUID=instance, Rows=grey.shape[0], Columns=grey.shape[1],
                BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=grey.tobytes(),
            )  # fmt: skip
            image.file_meta.MediaStorageSOPInstanceUID = instance
            facts = ArrivedImage(image.StudyInstanceUID, image.SeriesInstanceUID, instance, modality)
            asked = RuledQuestion(f"{sample['names'][0]} on {modality}", sample["turns"][0]["question"])
            [id] = worklist.add_image(encode(image), facts, [asked])
            worklist.set_answer(id, desk.answer(worklist.get(id), encode(image)))
    desk.close()
    first = worklist.list()[0]
    worklist.decide(first.id, WorklistDecision("accepted"), first.revision)


def visit(page: Browser, server: Server, view: str = "") -> None:
    page.visit(f"{server.url}/?token={TOKEN}{view}", 1280, 800)
    page.until("document.getElementById('state').textContent.includes('ready')")


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


def main() -> None:
    from serving import serving

    run = Path(sys.argv[1])
    prepared = (run / "stages" / "prepare").resolve()
    given = (Path(sys.argv[2]), sys.argv[3]) if len(sys.argv) > 3 else question(prepared)
    with tempfile.TemporaryDirectory() as home, Browser(Path(home) / "profile") as page:
        with serving(run) as server:
            visit(page, server)
            show_page(page, *given)
        worklist = Worklist(Path(home) / "worklist")
        worklist.sends = "accepted"
        with serving(run, worklist=worklist) as server:
            fill(worklist, server, prepared)
            visit(page, server, "#worklist")
            page.until("document.querySelector('#w-stage canvas')?.width > 0")
            page.pick("#w-state", "")
            page.until("document.querySelectorAll('#w-list li').length > 7")
            page.picture(HERE / "worklist.png")
        worklist.close()


if __name__ == "__main__":
    main()

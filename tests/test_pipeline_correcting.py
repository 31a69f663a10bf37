"""Corrections in a whole run: over a chat API with nothing of a patient in what leaves, and from an edited file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from fastapi.responses import JSONResponse
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from chat_api import INPUT_PRICE, OUTPUT_PRICE, ChatApi, serving
from clinkd.cli import main
from clinkd.config import AnswerConfig, ReflectConfig
from clinkd.data.images.identifying import identifying_texts
from clinkd.experiments import demo
from clinkd.language.facts import Lexicon
from clinkd.pipeline import correcting, plan, steps
from clinkd.records import BadInput, ImageRef
from clinkd.settings import override

SMALL = [
    "data.validation_share=0.2", "data.test_share=0.2", "data.workers=1", "teacher=null", "distill.kd_weight=0",
    "distill.fit.epochs=0.2", "reflect.fit.epochs=0.2", "reflect.rounds=1", "reflect.review_share=1",
    "model.tiny.pretrain=null", "model.tiny.hidden=48", "model.tiny.layers=1", "model.tiny.heads=2",
    "answer.max_new_tokens=8", "select.scorer=agreement", "evaluate.replicates=20", "evaluate.gallery=40",
]  # fmt: skip
NAME, NUMBER, DAY, PLACE = "Zqxwvogel^Kanarina", "PID-884422-Q", "20210304", "Xyloklinik Quaggastadt"
FOLDER = "Zqxwvogel_Kanarina_770"
CANARIES = (
    "zqxwvogel", "kanarina", "884422", "20210304", "2021-03-04", "xyloklinik", "quaggastadt", "zqprivate", "a_770",
)  # fmt: skip


def dicom(path: Path, seed: int) -> None:
    """A CT slice whose every text field holds something that must not be found again."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientID, ds.StudyInstanceUID = "CT", f"{NUMBER}{seed}", generate_uid()
    for keyword in (
        "PatientName", "ReferringPhysicianName", "OperatorsName", "PatientBirthName", "RequestingPhysician",
    ):  # fmt: skip
        setattr(ds, keyword, NAME)
    for keyword in ("InstitutionName", "StudyDescription", "SeriesDescription", "PatientComments", "PatientAddress",
                    "StationName", "AccessionNumber", "ProtocolName", "ImageComments"):  # fmt: skip
        setattr(ds, keyword, PLACE[:16] if keyword in ("StationName", "AccessionNumber") else PLACE)
    for keyword in ("StudyDate", "PatientBirthDate", "ContentDate"):
        setattr(ds, keyword, DAY)
    inner = Dataset()
    inner.PatientID, inner.CodeMeaning = NUMBER, PLACE
    ds.OtherPatientIDsSequence = [inner]
    ds.private_block(0x11, "ZQPRIVATE", create=True).add_new(1, "LO", "Zqprivate words")
    ds.Rows = ds.Columns = 64
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = np.random.default_rng(seed).integers(0, 255, (64, 64), dtype=np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty slices with boxes and questions; names, numbers and dates of patients stand in questions and answers."""
    folder = tmp_path_factory.mktemp("ward")
    lines = []
    for n in range(20):
        relative = f"images/{FOLDER}/Zqxwvogel-{n}.dcm"
        dicom(folder / relative, n)
        told = [
            {"question": f"What did Dr. Zqxwvogel see on 2021-03-04 in patient {NUMBER}{n}?", "answer": "a cyst"},
            {"question": "Who has the cyst?", "answer": f"kanarina ZQXWVOGEL of {PLACE}, slice Zqxwvogel-{n}"},
            {"question": f"Is {FOLDER} well?", "answer": "yes, since 04.03.2021"},
        ]
        box = [5 + n, 5, 40 + n, 50]
        lines.append(
            {"id": f"slice{n}", "image": relative, "modality": "CT", "width": 64, "height": 64,
             "objects": [{"name": "kidney", "box": box}], "qa": told}
        )  # fmt: skip
    (folder / "records.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder


@pytest.fixture
def api() -> Iterator[ChatApi]:
    with serving(ChatApi()) as found:
        yield found


def chat(api: ChatApi, **more: Any) -> list[str]:
    knobs = {"base_url": api.url, "model": "m", "input_price": INPUT_PRICE, "output_price": OUTPUT_PRICE, "budget": 1,
             "attempts": 2, **more}  # fmt: skip
    return ["reflect.corrector=chat", "reflect.chat={}", *(f"reflect.chat.{k}={v}" for k, v in knobs.items())]


def words(ward: Path, runs: Path, *settings: str) -> list[str]:
    every = [f"data.path={ward}", *SMALL, *settings]
    return ["run", "demo", "--runs", str(runs), *(x for s in every for x in ("--set", s))]


def found_in(text: str) -> list[str]:
    return [c for c in CANARIES if c in text.lower()]


def test_nothing_of_a_patient_leaves_or_is_shown(
    ward: Path, api: ChatApi, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # what is looked for would be found: it stands in the prepared texts, which stay in the house
    api.script = lambda call: JSONResponse({"error": {"message": call.user}}, 500)
    assert main(words(ward, tmp_path, *chat(api, question="true"))) == 2  # a failure, and its words
    stopped = capfd.readouterr()
    assert "HTTP 500, 2 times" in stopped.err
    prepared = (next((tmp_path / ".stages").glob("prepare-*")) / "train.jsonl").read_text()
    assert set(CANARIES) - {"zqprivate", "20210304"} <= set(found_in(prepared))

    dry = ["correct", "demo", "--runs", str(tmp_path), "--dry-run"]
    assert main(dry) == 0
    told = capfd.readouterr()
    before = len(api.calls)
    api.script = lambda call: None
    assert main(words(ward, tmp_path, *chat(api, question="true"))) == 0
    done = capfd.readouterr()
    sent = {c.raw.decode() for c in api.calls[before:]}
    assert set(told.out.splitlines()) == sent and len(sent) > 10 and "would leave" in told.err

    report = (tmp_path / "demo" / "report.html").read_text()
    journal = b"".join(p.read_bytes() for p in tmp_path.glob("chat.sqlite*"))
    shown = {"sent": "".join(c.raw.decode() for c in api.calls), "headers": str([c.headers for c in api.calls]),
             "screen": "".join([*stopped, *told, *done]), "report": report, "journal": journal.decode(errors="replace"),
             "table": (tmp_path / "demo" / "stages" / "score" / "table.md").read_text()}  # fmt: skip
    assert {k: found_in(v) for k, v in shown.items() if found_in(v)} == {}
    assert "[id]" in report and "[date]" in report and "[ID-1]" in shown["sent"] and "[DATE-1]" in shown["sent"]

    stage = tmp_path / "demo" / "stages" / "reflect-1"
    corrections = [json.loads(x) for x in (stage / "corrections.jsonl").read_text().splitlines()]
    taken = [c for c in corrections if c["after"] is not None]
    assert len(taken) > 10 and {c["by"] for c in taken} == {"m"}
    # what was hidden has come back, where a truth holds it
    restored = [c for c in taken if "cyst" not in json.dumps(c["truth"]) and "kidney" not in json.dumps(c["truth"])]
    assert restored and all(
        found_in(said) or "04.03.2021" in said for said in (json.dumps(c["after"]) for c in restored)
    )
    effect = [json.loads(x) for x in (stage / "effect.jsonl").read_text().splitlines()]
    assert {"id", "task", "modality", "before_wrong", "after_wrong", "answer"} == set(effect[0])
    assert "answer after" in report.lower() or "after the round" in report.lower()

    # a person looks at the corrections, and they are replayed
    mine = tmp_path / "mine.jsonl"
    assert main(["correct", "demo", "--runs", str(tmp_path), "--out", str(mine)]) == 0
    assert len(api.calls) == before + len(sent)  # all of it was paid for
    lines = [json.loads(x) for x in mine.read_text().splitlines()]
    edited = next(c for c in lines if c["after"] is not None and isinstance(c["after"], dict))
    edited["after"]["text"], edited["by"] = "Seen here: the kidney [box].", "human"
    mine.write_text("".join(json.dumps(c) + "\n" for c in lines))
    replay = ["reflect.corrector=replay", f"reflect.replay={mine}"]
    assert main([*words(ward, tmp_path, *replay), "--name", "replayed"]) == 0
    stage = tmp_path / "replayed" / "stages" / "reflect-1"
    again = {c["id"]: c for c in map(json.loads, (stage / "corrections.jsonl").read_text().splitlines())}
    assert again[edited["id"]]["by"] == "human" and again[edited["id"]]["after"]["text"].startswith("Seen here")
    capfd.readouterr()


def test_every_text_of_a_header_and_the_path_are_looked_for(ward: Path) -> None:
    told = " ".join(identifying_texts(ward, ImageRef(f"images/{FOLDER}/Zqxwvogel-3.dcm"))).lower()
    wanted = {c for c in CANARIES if "-" not in c} | {f"{NUMBER}3".lower(), "zqxwvogel-3", FOLDER.lower()}
    assert {c for c in wanted if c not in told} == set()


def test_a_header_that_cannot_be_read_stops_what_would_leave(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x08\0\x05\0CS\xff\xff")
    with pytest.raises(BadInput, match=r"x\.dcm"):
        identifying_texts(tmp_path, ImageRef("x.dcm"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["reflect.corrector=chat"], "corrector=chat needs chat.base_url"),
        (["reflect.corrector=chat", "reflect.chat={}", "reflect.chat.base_url=http://x/v1"], "needs chat.model"),
        (["reflect.corrector=chat", "reflect.chat={}", "reflect.chat.base_url=http://x/v1", "reflect.chat.model=m"],
         "needs chat.input_price"),
        (["reflect.corrector=chat", "reflect.chat={}", "reflect.chat.base_url=http://x/v1", "reflect.chat.model=m",
          "reflect.chat.input_price=1", "reflect.chat.output_price=1"], "give chat.budget"),
        (["reflect.corrector=replay"], "corrector=replay needs replay"),
        (["reflect.corrector=replay", "reflect.replay=/none/x.jsonl"], "reflect.replay=/none/x.jsonl: No such file"),
        (["reflect.similarity=embedding", "reflect.embedder=/none"], "reflect.embedder=/none: no modules.json"),
        (["reflect.corrector=chat", "reflect.chat={}", "reflect.chat.base_url=https://x.example/v1",
          "reflect.chat.model=m", "reflect.chat.input_price=0", "reflect.chat.output_price=0",
          "reflect.chat.key_variable=NO_SUCH_KEY"], "NO_SUCH_KEY: not set"),
    ],
)  # fmt: skip
def test_a_corrector_that_is_not_all_there_is_refused_before_any_work(
    settings: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["run", "demo", "--runs", str(tmp_path), *(x for s in settings for x in ("--set", s))]
    assert main(given) == 2
    told = capsys.readouterr().err.strip()
    assert says in told and "\n" not in told
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("modality", "burnt", "says"), [("US", "", "pictures of ultrasound"), ("CT", "YES", "1 DICOM files say")]
)
def test_pixels_that_may_show_a_name_do_not_leave(
    ward: Path, api: ChatApi, tmp_path: Path, modality: str, burnt: str, says: str
) -> None:
    from clinkd.records import BoxedText, Modality, Sample, Task, Turn

    (tmp_path / "data.json").write_text('{"root": "", "lexicon": {"names": []}}')
    ds = pydicom.dcmread(ward / f"images/{FOLDER}/Zqxwvogel-3.dcm")
    ds.BurnedInAnnotation = burnt
    ds.save_as(tmp_path / "x.dcm")
    turn = Turn(Task.QA, BoxedText("?"), BoxedText("a cyst"))
    kind = {"US": Modality.ULTRASOUND, "CT": Modality.CT}[modality]
    sample = Sample("s", (ImageRef("x.dcm", 64, 64),), kind, (turn,), "s")
    config = override(demo(), chat(api, pixels="true")).reflect
    assert isinstance(config, ReflectConfig)
    context = correcting.CorrectionContext(config, tmp_path, tmp_path, 0, [sample])
    with pytest.raises(BadInput, match=says):
        context.open_corrector([sample]).__enter__()
    assert not api.calls


def test_pixels_leave_without_a_header_where_they_may(ward: Path, api: ChatApi, tmp_path: Path) -> None:
    import base64

    from clinkd.correction.correctors import Wrong
    from clinkd.records import BoxedText, Correction, Modality, Sample, Task, Turn

    (tmp_path / "data.json").write_text(json.dumps({"root": str(ward), "lexicon": {"names": []}}))
    image = ImageRef(f"images/{FOLDER}/Zqxwvogel-3.dcm", 64, 64)
    sample = Sample("s", (image,), Modality.CT, (Turn(Task.QA, BoxedText("?"), BoxedText("a cyst")),), "s")
    config = override(demo(), chat(api, pixels="true")).reflect
    assert isinstance(config, ReflectConfig)
    context = correcting.CorrectionContext(config, tmp_path, tmp_path, 0, [sample])
    with context.open_corrector([sample]) as corrector:
        list(
            corrector.rewrite([Wrong(sample, Correction("s", 1, BoxedText("x"), sample.answer, 0.1, ("similarity",)))])
        )
    content = api.calls[0].body["messages"][1]["content"]
    png = base64.b64decode(content[1]["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert (
        png.startswith(b"\x89PNG") and not found_in(png.decode("latin-1")) and not found_in(api.calls[0].raw.decode())
    )


def test_what_the_files_hold_decides_a_stage(tmp_path: Path) -> None:
    mine = tmp_path / "c.jsonl"
    mine.write_text("")
    settings = ["reflect.corrector=replay", f"reflect.replay={mine}"]

    def identity(*more: str) -> str:
        return next(s.identity for s in plan(override(demo(), [*more])) if s.name == "reflect-1")

    before = identity(*settings)
    mine.write_text("\n")
    assert identity(*settings) != before != identity()
    # what is not used, and what only costs, decide nothing
    price = ["reflect.chat={}", "reflect.chat.model=m", "reflect.chat.base_url=http://x/v1"]
    paid = ["reflect.corrector=chat", *price, "reflect.chat.input_price=1", "reflect.chat.output_price=1"]
    assert identity(*price) == identity()
    assert identity(*paid, "reflect.chat.budget=1") == identity(*paid, "reflect.chat.budget=9")
    assert identity(*paid, "reflect.chat.budget=1") != identity(*paid, "reflect.chat.budget=1", "reflect.chat.model=n")


def test_a_run_that_is_going_on_elsewhere_is_told(api: ChatApi, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from clinkd.remote import Journal\nJournal(Path(sys.argv[1]))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    from clinkd.remote import Journal

    with Journal(tmp_path / "j.sqlite"):
        told = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "j.sqlite")], env=env, capture_output=True, text=True
        )
    assert told.returncode == 1 and "another run uses this journal" in told.stderr


class Killed(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("file", ["write_json", "write_lines"])
def test_a_round_that_is_killed_while_it_writes_has_all_its_files_after_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    def kill(*_: object, **__: object) -> None:
        raise Killed

    nothing: Any = SimpleNamespace(
        folder=tmp_path, inputs={"prepare": tmp_path}, seed=0, model=lambda _: None, samples=lambda _: [], vary=list,
        record=lambda *_: None, answer=lambda *_: [], fit=kill, lexicon=Lexicon(()),
        correction_context=lambda *_: SimpleNamespace(review_answers=lambda *_: [], correct_answers=lambda *_: []),
    )  # fmt: skip
    monkeypatch.setattr(steps, "replace_overruled_truths", lambda *_: [])
    monkeypatch.setattr(steps, "choose_share", lambda *_: [])
    for killed in (kill, getattr(steps, file)):
        monkeypatch.setattr(steps, file, killed)
        with pytest.raises(Killed):
            steps.reflect(nothing, ReflectConfig(), 1, "distill", AnswerConfig(), None)
    assert {p.name for p in tmp_path.iterdir()} == {"corrections.jsonl", "summary.json"}

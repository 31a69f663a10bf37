"""Ask a finished run's model about one image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from clinkd import data, viewer
from clinkd.inference import rerank
from clinkd.pipeline.graph import stage_record
from clinkd.pipeline.prepared import about
from clinkd.pipeline.runs import Asked, Run
from clinkd.pipeline.work import load_model, scorer_of
from clinkd.records import BOX_MARK, BadInput, Box, BoxedText, ImageRef, Modality, Prediction, Sample, Task, Turn


def ask(run: Run, image: Path, question: str, overlay: Path | None = None) -> Asked:
    """The candidates for one question, scored and chosen as the run chooses; boxes drawn on a PNG at `overlay`."""
    config = run.config
    out = overlay or Path(f"{image.stem}-answer.png")
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise BadInput(f"--out {out}: the boxes are drawn on a .png or .jpg")
    if not question.strip():
        raise BadInput('the question is empty: ask something, as "Where is the kidney?"')
    picture = data.open_image(image.parent, image.name)
    last = run.last_trained

    def given(_: ImageRef) -> Image.Image:
        return picture

    model = load_model(run.stage(last), given).eval()
    ref = ImageRef(image.name, picture.width, picture.height)
    asked = model.codec.decode(question)
    if asked.unread:
        example = model.codec.encode(BoxedText(BOX_MARK, (Box(0.25, 0.25, 0.5, 0.5),)))
        raise BadInput(
            f"the question holds {asked.unread[0]!r}, no box as this model spells them, for example {example}"
        )
    turn = Turn(Task.QA, asked.answer, BoxedText(""))
    sample = Sample("ask", (ref,), Modality.OTHER, (turn,), group="ask", side="image")
    candidates = tuple(model.generate([sample], config.answer, config.seed)[0])
    prediction = Prediction("ask", candidates, by=f"{run.folder.name}/{last}")
    if config.select.scorer in ("clip", "agreement"):
        clip = run.stage("clip") if config.select.scorer == "clip" else None
        scorer = scorer_of(config.select, clip, given, about(run.stage("prepare")).lexicon, config.seed)
        # as the run chose: where its validation did not trust the scorer, scores are shown but do not decide
        trusted = trusts(stage_record(run.stage("select"))["recorded"], asked.answer, candidates[0].answer)
        prediction = rerank({"ask": sample}, [prediction], scorer, [Task.QA] if trusted else [])[0]
    chosen = prediction.answer.answer
    drawn = viewer.overlay(picture, chosen.boxes, [str(n) for n in range(1, len(chosen.boxes) + 1)])
    drawn.save(out)
    return Asked(prediction, out)


def trusts(recorded: Mapping[str, Any], question: BoxedText, answer: BoxedText) -> bool:
    """Whether a run reorders answers to all tasks that a free question with this first answer may be of, among those
    it had questions of; `recorded` is what its `select` kept."""
    alike = (Task.ROC, Task.RC) if question.boxes else (Task.VG,) if answer.boxes else (Task.MIA, Task.QA)
    tasks = recorded["tasks reordered"]
    met = recorded.get("gain on validation over the first beam", tasks)
    return any(t in met for t in alike) and all(t in tasks for t in alike if t in met)

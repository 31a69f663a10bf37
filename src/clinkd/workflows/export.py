"""Write a finished run's model to a folder to carry away: weights, processor, and a card that tells its origin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clinkd.model.served import double_positions, has_code, write_served
from clinkd.model.vlm import VisionLanguageModel
from clinkd.pipeline.graph import read_versions, stage_record
from clinkd.pipeline.models import load_model
from clinkd.pipeline.prepared import read_data, read_split
from clinkd.pipeline.runs import Run, score_table
from clinkd.records import BadInput, Sample
from clinkd.settings import K, Knobs, change_knobs, recipe_text
from clinkd.storage import new_folder, write_atomic
from clinkd.workflows.loading import describe_loading

CARD = "README.md"


@dataclass(frozen=True)
class ExportedModel:
    """A written model: the stage that made it, and what loads it: the stock class of its family, or the code in the
    folder, if there is any; else clinkd alone."""

    folder: Path
    stage: str
    stock: bool
    code: bool
    family: str


def export(run: Run, out: Path, doubled: bool = False) -> ExportedModel:
    """Write the last model of a run to a new folder, load it again, and compare logits on questions.

    `doubled`: with positions that are whole numbers (`double_positions`).

    Raises BadInput if `out` is not empty, the run has no finished model, or the written model gives other logits.
    """
    out = out.resolve()
    with new_folder(out) as draft:
        stage = run.last_trained
        prepared = run.stage("prepare")
        open_image, _ = read_data(prepared)
        model = load_model(run.stage(stage), open_image).eval()
        _write(run, model, read_split(prepared, "validation")[:4], draft, stage, doubled)
    return ExportedModel(out, stage, model.is_stock, has_code(model), model.family.name)


def _write(
    run: Run, model: VisionLanguageModel, questions: list[Sample], draft: Path, stage: str, doubled: bool
) -> None:
    model.save(draft, model.is_stock)
    if doubled:
        double_positions(model.network.config, draft)
    write_served(model, draft, run.config.answer.max_new_tokens)
    difference = model.difference(draft, questions)
    if difference > 0:
        raise BadInput(f"{draft}: what was written gives other logits (by {difference:g}); nothing was exported")
    write_atomic(draft / CARD, card(run, model, stage, doubled))


def card(run: Run, model: VisionLanguageModel, stage: str, doubled: bool = False) -> str:
    """The model card: what the model is, how to load it, its scores, and what it was made from."""
    knobs = model.knobs
    parameters = sum(p.numel() for p in model.parameters())
    record = stage_record(run.stage("prepare"))
    data = {k: v for k, v in record["config"].items() if k in ("sha256", "images", "phantoms") and v}
    base = run.config.model.base
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        "tags: [medical, visual-question-answering, visual-grounding, clinkd]",
        *([f"base_model: {base.name}"] if base else []),
        "---",
        "",
        f"# {run.folder.name}",
        "",
        f"A {model.family.name} of {parameters:,} parameters, taught medical refer-and-ground question answering by "
        f"[ClinKD](https://arxiv.org/abs/2502.05928) (stage `{stage}`). **Research use only. Not a medical device; "
        "nothing it says may inform a clinical decision.**",
        "",
        "## Load",
        "",
        *describe_loading(model, doubled),
        "",
        f"Boxes in text are spelled as `{knobs.boxes}`; positions are `{knobs.positions.name}` ({knobs.layout})"
        + (", and images are resampled to a square before the vision tower." if knobs.square else "."),
        "" if model.text.chat.system else "Prompts open with the user's turn: there is no system turn.",
        "After writing, the folder was loaded again and gave the same logits, bit for bit, on validation questions.",
        "",
        "## Scores",
        "",
        *_scores(run),
        "",
        "## What it learned from",
        "",
        *_describe_training(run, read_split(run.stage("prepare"), "train")),
        "",
        "## Where it comes from",
        "",
        "- " + ", ".join(f"{k} {v}" for k, v in read_versions().items()),
        f"- data: `{json.dumps(data, default=str)}`",
        *(f"- stage {s['name']}: {s['identity']}" for s in run.stages),
        "",
        "<details><summary>Every knob</summary>",
        "",
        "```yaml",
        recipe_text(_without_paths(run.config), "").strip(),
        "```",
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


def _describe_training(run: Run, samples: Sequence[Sample]) -> list[str]:
    """What the model learned from, and what of it the folder may give away."""
    patients, images = len({s.group for s in samples}), len({i.path for s in samples for i in s.images})
    modalities = ", ".join(sorted({s.modality for s in samples}))
    model, path = run.config.model, run.config.data.path
    name = f"`{path.name}`, {patients:,} patients (groups)" if path else "drawn phantoms, which are nobody's"
    least = model.tiny.min_patients
    words = "" if model.base else f" The vocabulary was learned from words of at least {least} patients (groups)."
    variants = f", each in {run.config.data.variants} variants" if run.config.data.variants > 1 else ""
    return [
        f"{name}: {images:,} images{variants}, {len(samples):,} questions, {modalities} (the training split).{words}",
        "",
        "Weights may memorise training texts, with the names in them: nothing scrubs these before training but the "
        "person who gives them.",
    ]


def _without_paths(config: K) -> K:
    """Keep only the last name of each file and folder: others read the card."""
    shorter = {
        name: Path(value.name)
        if isinstance(value, Path)
        else _without_paths(value)
        if isinstance(value, Knobs)
        else value
        for name, value in config
    }
    return change_knobs(config, **shorter)


def _scores(run: Run) -> list[str]:
    scores: Mapping[str, Any] = run.scores()
    table = score_table(scores, "")
    lines = ["| " + " | ".join(cells) + " |" for cells in (table.columns, *table.rows)]
    return [lines[0], "|" + "---|" * len(table.columns), *lines[1:], "", *(f"- {note}" for note in table.notes)]

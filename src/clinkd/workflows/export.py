"""Write a finished run's model to a folder to carry away: weights, processor, and a card that tells its origin."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from clinkd.model.additions import write_adapter
from clinkd.model.exported.licence import Licence, read_licence
from clinkd.model.exported.served import double_positions, has_code, write_served
from clinkd.model.exported.written import (
    ANSWER_TOKENS,
    ReplyMatch,
    WrittenMatch,
    compare_adapter,
    compare_folder,
    give_replies,
)
from clinkd.model.folders import base_of, read_weight_type
from clinkd.model.vlm import VisionLanguageModel
from clinkd.pipeline.damage import POINTER, read_stage_json
from clinkd.pipeline.graph import read_versions, stage_record
from clinkd.pipeline.models import load_model
from clinkd.pipeline.prepared import read_data, read_split
from clinkd.pipeline.runs import Run, score_table
from clinkd.records import BadInput, Sample
from clinkd.settings import K, Knobs, change_knobs, recipe_text
from clinkd.storage import new_folder, write_atomic, write_json
from clinkd.workflows.loading import describe_loading

CARD, CHECKS, ADAPTER_FOLDER = "README.md", "export.json", "adapter"
QUESTIONS = 20  # of the validation split, asked before and after
DataType = Literal["float32", "bfloat16", "float16"]
Kept = Literal["float32", "bfloat16", "nf4"]


@dataclass(frozen=True)
class ExportOptions:
    """How a model is written. `dtype`: None for the type of the base's weights.

    `max_drift`: the most answers of a hundred that rounding to the type may change. None: told only, as what a changed
    word costs depends on the task, and a base in this type was rounded just so. `adapter`: LoRA beside the weights.
    `doubled`: positions that are whole numbers (`double_positions`).
    """

    dtype: DataType | None = None
    max_drift: float | None = None
    adapter: bool = False
    doubled: bool = False


@dataclass(frozen=True)
class ExportChecks:
    """What a written model answered to validation questions beside the model that it was written from.

    `kept`: the type in which the run keeps its weights. With nf4 it is compared as the sum in float32 of what four bits
    stand for and what LoRA added beside it.
    """

    dtype: str
    kept: Kept
    written: WrittenMatch
    adapter: WrittenMatch | None = None
    rank: int = 0  # of the adapter

    def describe(self) -> list[str]:
        """In sentences."""
        same, drift = self.written
        fewer = f" (the validation split has no {QUESTIONS})" if same.questions < QUESTIONS else ""
        gap = f"they differ by {same.largest_difference:.1g} at most" if same.largest_difference else "bit for bit"
        lines = [
            f"Loaded again, it gave the same answers to {same.questions} validation questions{fewer}, and the same "
            f"logits: {gap}. Compared are {ANSWER_TOKENS} tokens of each answer at most."
        ]
        if self.dtype == self.kept:
            lines.append(f"No weight was rounded: the run keeps them in {self.kept}.")
        elif self.dtype != "float32":
            lines.append(
                f"Weights were rounded to {self.dtype} (the run keeps them in {self.kept}): of the answers "
                f"{_describe_drift(drift)} those of before; logits differ by {drift.largest_difference:.2g} at most."
            )
        if self.dtype != "float32":
            lines.append("Both multiplied in float32: what a machine rounds in other products comes on top.")
        if self.adapter:
            sum_, model = self.adapter
            what = "the model" if self.kept == "float32" else "the base with what was added, computed without peft"
            lines.append(
                f"The base with the adapter (LoRA, rank {self.rank}, by peft), both in float32, gave the same answers "
                f"as {what}, in float32; logits differ by {sum_.largest_difference:.1g} at most."
            )
            run = {
                "bfloat16": "The run rounded that sum to bfloat16 (model.dtype=bf16), the adapter does not",
                "nf4": "The run trained the adapter on the base in 4 bits (model.quantize=nf4), not on the whole one",
            }
            if self.kept != "float32":
                lines.append(
                    f"{run[self.kept]}: of its answers {_describe_drift(model)} those of the model; logits differ by "
                    f"{model.largest_difference:.2g} at most."
                )
        return lines

    def to_json(self) -> dict[str, Any]:
        """As values of JSON."""
        same, drift = map(asdict, self.written)
        adapter = None
        if self.adapter:
            whole, model = map(asdict, self.adapter)
            adapter = {"rank": self.rank, **whole, "against_model": model}
        about = {"dtype": self.dtype, "kept": self.kept, "answer_tokens": ANSWER_TOKENS}
        return {**about, "written": same, "against_float32": drift, "adapter": adapter}


def _describe_drift(drift: ReplyMatch) -> str:
    return f"{drift.equal_answers} of {drift.questions} {'is' if drift.equal_answers == 1 else 'are'}"


@dataclass(frozen=True)
class ExportedModel:
    """A written model: the stage that made it, and what loads it: the stock class of its family, or the code in the
    folder, if there is any; else clinkd alone. And its checks."""

    folder: Path
    stage: str
    stock: bool
    code: bool
    family: str
    checks: ExportChecks


def export(run: Run, out: Path, options: ExportOptions = ExportOptions()) -> ExportedModel:
    """Write the last model of a run to a new folder, load it again, and ask both questions.

    Raises BadInput if `out` is not empty, the run has no finished model or not the adapter that is asked for, the type
    of its base is not known, the written model answers otherwise, or rounding changes more than it may.
    """
    if options.max_drift is not None and not 0 <= options.max_drift <= 100:
        raise BadInput(f"--max-drift={options.max_drift:g}: a percentage from 0 to 100 is wanted")
    out = out.resolve()
    with new_folder(out) as draft:
        stage = run.last_trained
        prepared = run.stage("prepare")
        open_image, _ = read_data(prepared)
        model = load_model(run.stage(stage), open_image, torch.float32).eval()
        if _find_kept(run, model) == "bfloat16":  # as the run has its weights, also those of a base in float32
            model.round_weights(torch.bfloat16)
            model.round_weights(torch.float32)
        base = _find_base(run, stage)
        if options.adapter:
            _demand_additions(run, model, stage, base)
        checks = _write(run, model, base, draft, replace(options, dtype=options.dtype or _find_type(base)))
        licence = _pass_licences_on(run, stage, base, draft)
        write_json(draft / CHECKS, {"stage": stage, **checks.to_json()})
        loading = describe_loading(model, options.doubled)
        write_atomic(draft / CARD, card(run, model, stage, checks, licence, loading))
    return ExportedModel(out, stage, model.is_stock, has_code(model), model.family.name, checks)


def _write(
    run: Run, model: VisionLanguageModel, base: Path | None, draft: Path, options: ExportOptions
) -> ExportChecks:
    """Write the weights, and the adapter if it is wanted. Raises BadInput where either answers otherwise."""
    every = read_split(run.stage("prepare"), "validation")
    number = min(QUESTIONS, len(every))
    questions = [every[k * len(every) // number] for k in range(number)]
    before, rank, adapter = give_replies(model, questions), 0, None
    kept = _find_kept(run, model)
    if options.adapter:
        assert base and model.additions
        rank = write_adapter(model.additions, draft / ADAPTER_FOLDER, base.name)
        adapter = compare_adapter(model, draft / ADAPTER_FOLDER, base, questions, before, kept == "float32")
        if not adapter.same_type.same:
            raise BadInput(f"the adapter on {base} {_describe_gap(adapter.same_type)}; nothing was exported")
    assert options.dtype
    model.round_weights(getattr(torch, options.dtype))
    model.save(draft, model.is_stock)
    if options.doubled:
        double_positions(model.network.config, draft)
    write_served(model, draft, run.config.answer.max_new_tokens)
    model.network.float()
    written = compare_folder(model, draft, questions, before, rounded=options.dtype != "float32")
    if not written.same_type.same:
        raise BadInput(f"what was written in {options.dtype} {_describe_gap(written.same_type)}; nothing was exported")
    drift = written.before
    changed = 100 * (1 - drift.equal_answers / drift.questions)
    if options.max_drift is not None and changed > options.max_drift:
        raise BadInput(
            f"--max-drift={options.max_drift:g}: rounding to {options.dtype} changes {changed:.3g} % of "
            f"{drift.questions} answers; nothing was exported; give --dtype float32, or a larger --max-drift"
        )
    return ExportChecks(options.dtype, kept, written, adapter, rank)


def _describe_gap(agreement: ReplyMatch) -> str:
    changed = agreement.questions - agreement.equal_answers
    if math.isinf(agreement.largest_difference):
        return "gives logits that are no finite numbers (another --dtype may hold them)"
    return (
        f"gives other logits (by {agreement.largest_difference:g}) and {changed} of {agreement.questions} answers that "
        "are not the model's"
    )


def _find_base(run: Run, stage: str) -> Path | None:
    """The folder of the pretrained base of a stage's model, where it was when the run began; None for weights from
    scratch."""
    given, name = run.config.model.base, "base"
    if stage == "teacher" and run.config.teacher and run.config.teacher.base:
        given, name = run.config.teacher.base, "base-teacher"
    return _find_pretrained(run, name, given) if given else None


def _find_pretrained(run: Run, name: str, given: Path) -> Path:
    """The folder of the model that was given for the stage `name`, where it was when the run began."""
    pointer = run.folder / "stages" / name / POINTER
    return Path(read_stage_json(pointer)["folder"]) if pointer.is_file() else base_of(given)


def _find_kept(run: Run, model: VisionLanguageModel) -> Kept:
    """The type in which a run keeps the weights of its model."""
    if run.config.model.quantize == "nf4":
        return "nf4"
    return "bfloat16" if model.knobs.dtype == "bf16" else "float32"


def _find_type(base: Path | None) -> DataType:
    """The type of the weights of a base; float32 from scratch. Raises BadInput where it is not known."""
    dtype = read_weight_type(base) if base and base.is_dir() else None
    if base and not dtype:
        raise BadInput(f"{base}: there are no weights there whose type the export could have; give one by --dtype")
    return cast(DataType, dtype or "float32")


def _demand_additions(run: Run, model: VisionLanguageModel, stage: str, base: Path | None) -> None:
    """Raises BadInput, with the reason, where no adapter can stand for the model."""
    config, whole = run.config, "--adapter: {}; leave it out and carry the whole model away"
    line = {"teacher": config.teacher} if stage == "teacher" else {"distill": config.distill, "reflect": config.reflect}
    given = config.teacher.base if stage == "teacher" and config.teacher else None
    knob, given = ("teacher.base", given) if given else ("model.base", config.model.base)
    if not base or not base.is_dir():
        what = f"its base is no longer at {base}" if base else "this run has no pretrained base to add anything to"
        raise BadInput(whole.format(what))
    if not model.is_stock:
        knobs = f"positions={model.knobs.positions.name}, layout={model.knobs.layout}"
        raise BadInput(whole.format(f"{knobs} are not the base's own: with an adapter it would keep those, and err"))
    if stage == "base":
        raise BadInput(whole.format(f"this run trained nothing: its model is {base}, and nothing was added to it"))
    if full := [f"{name}.fit.lora=null" for name, part in line.items() if part and not part.fit.lora]:
        raise BadInput(whole.format(f"with {', '.join(full)} all weights were trained, and no adapter holds that"))
    if given and base_of(given) != given:
        raise BadInput(whole.format(f"{knob}={given} is an adapter itself, and merged"))
    if not model.additions:
        stages = [run.stage(s["name"]).resolve() for s in run.stages if s["name"].startswith(tuple(line))]
        raise BadInput(
            f"--adapter: stage {stage} was trained by a version that kept no additions apart; remove "
            f"{' and '.join(map(str, stages))}, then `{run.command}` trains them anew; or leave --adapter out"
        )


def _pass_licences_on(run: Run, stage: str, base: Path | None, draft: Path) -> tuple[list[str], list[str]]:
    """Copy the texts of the licences of the base, and of teachers with a base of their own. Lines for the head of the
    card, and its section on the licence."""
    licence = read_licence(base) if base and base.is_dir() else None
    if licence:
        licence.copy_files(draft)
    head, section = _describe_licence(base, licence)
    for knob, given in run.config.teacher_bases().items() if stage != "base" else ():
        name = knob.removesuffix(".base").replace("s.", "-", 1)
        teacher = _find_pretrained(run, f"base-{name}", given)
        if teacher == base:
            continue
        licence = read_licence(teacher) if teacher.is_dir() else None
        if licence:
            licence.copy_files(draft, f"{name}-")
        section += ["", *_describe_licence(teacher, licence, "teacher's base", f"{name}-")[1]]
    if any(draft.glob("*.py")):
        section += [
            "",
            "The `.py` files are ClinkD's, under Apache-2.0, as each says: no other licence here is theirs.",
        ]
    return [*([f"base_model: {json.dumps(base.name)}"] if base else []), *head], section


def _describe_licence(
    base: Path | None, licence: Licence | None, what: str = "base", prefix: str = ""
) -> tuple[list[str], list[str]]:
    """Lines for the head of the card, and its section on the licence. `licence`: None where the folder is not there;
    `prefix`: of the names of its texts."""
    if base is None:
        return [], ["The weights were trained from scratch: they are under no licence of a base."]
    if licence is None:
        gone = f"The folder of the {what}, `{base.name}`, was not there any more when this was written"
        return [], [f"{gone}, so its licence is not known here: look it up before passing it on."]
    fields, names = licence.fields, ", ".join(f"`{prefix}{path.name}`" for path in licence.files)
    texts = f" Its texts are copied here: {names}." if names else ""
    head = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    link = f" ({fields['license_link']})" if "license_link" in fields else ""
    if not licence.name:
        named = f"The folder of the {what}, `{base.name}`, names no licence{link}"
        return head, [f"{named}: look it up before passing it on.{texts}"]
    line = f"The {what}, `{base.name}`, says that it is under `{licence.name}`{link}.{texts}"
    return head, [line, *(["", licence.restriction] if licence.restriction else [])]


def card(
    run: Run, model: VisionLanguageModel, stage: str, checks: ExportChecks, licence: tuple[list[str], list[str]],
    loading: Sequence[str],
) -> str:  # fmt: skip
    """The model card: what the model is, how to load it, its checks and scores, and what it was made from.

    `licence`: lines for its head, and its section on that; `loading`: its section on that.
    """
    knobs = model.knobs
    square = knobs.square or model.images.geometry.square
    parameters = sum(p.numel() for p in model.parameters())
    lines = [
        *_HEAD,
        *licence[0],
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
        *loading,
        "",
        f"Boxes in text are spelled as `{knobs.boxes}`; positions are `{knobs.positions.name}` ({knobs.layout})"
        + (", and images are resampled to a square before the vision tower." if square else "."),
        *([] if model.text.chat.system else ["Prompts open with the user's turn: there is no system turn."]),
        "",
        "## Checked when it was written",
        "",
        *(f"- {line}" for line in checks.describe()),
        "",
        "## Licence",
        "",
        *licence[1],
        "",
        "## Scores",
        "",
        *_scores(run),
        "",
        "## What it learned from",
        "",
        *_describe_training(run, read_split(run.stage("prepare"), "train")),
        "",
        *_describe_origin(run),
    ]
    return "\n".join(lines) + "\n"


def _describe_origin(run: Run) -> list[str]:
    """Versions, data, stages and knobs."""
    record = stage_record(run.stage("prepare"))
    data = {k: v for k, v in record["config"].items() if k in ("sha256", "images", "phantoms") and v}
    return [
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


_HEAD = (
    "---",
    "library_name: transformers",
    "pipeline_tag: image-text-to-text",
    "tags: [medical, visual-question-answering, visual-grounding, clinkd]",
)


def _scores(run: Run) -> list[str]:
    scores: Mapping[str, Any] = run.scores()
    table = score_table(scores, "")
    lines = ["| " + " | ".join(cells) + " |" for cells in (table.columns, *table.rows)]
    return [lines[0], "|" + "---|" * len(table.columns), *lines[1:], "", *(f"- {note}" for note in table.notes)]

"""Open the models of finished stages, and what chooses among their answers. No code of training is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clinkd.clip.crops import CropClassifier
from clinkd.clip.model import ImageTextModel
from clinkd.config import ModelConfig, SelectConfig
from clinkd.inference import Agreement, ClipScorer, CropScorer, FirstBeam, RandomScorer, Scorer
from clinkd.language.facts import Lexicon
from clinkd.model.additions import read_additions, write_additions
from clinkd.model.encode import OpenImage
from clinkd.model.vlm import VisionLanguageModel, load
from clinkd.pipeline.damage import MODEL, POINTER, UNTRAINED, demand_whole_model, read_stage_json
from clinkd.storage import make_folder, write_json

CROP_WEIGHTS = "crop_weights"  # in the record of `select`: by kind of answer, the weight of the log-probability


def load_model(stage: Path, open_image: OpenImage, dtype: torch.dtype | None = None) -> VisionLanguageModel:
    """The model of a stage, or the pretrained one that it points to; in the type of `model.dtype`, unless `dtype` says
    another; a quantized one then becomes a plain one in float32. Raises BadInput, with the way out, if a file of it
    differs from its checksum."""
    demand_whole_model(stage)
    if (stage / POINTER).is_file():
        pointer = read_stage_json(stage / POINTER)
        knobs = ModelConfig.model_validate(pointer["model"])
        quantized = knobs.quantize == "nf4"
        model = load(Path(pointer["folder"]), open_image, knobs, None if quantized else dtype)
        model.additions = {}
        if quantized:
            model.pointer = pointer
            model.put_additions(read_additions(stage / MODEL) or {})
            if dtype:
                model.dequantize()
        return model
    model = load(stage / MODEL, open_image, dtype=dtype)
    model.additions = read_additions(stage / MODEL)
    return model


def save_model(model: VisionLanguageModel, stage: Path) -> None:
    """Save a model as that of a stage, with what LoRA added to the pretrained base, where that is known. Of a quantized
    one that is all: it points to its base, which is quantized again when it is loaded."""
    if model.pointer:
        write_json(stage / POINTER, model.pointer)
        make_folder(stage / MODEL)
    else:
        model.save(stage / MODEL)
    if model.additions:
        write_additions(model.additions, stage / MODEL)


def make_scorer(
    config: SelectConfig,
    clip: Path | None,
    open_image: OpenImage,
    lexicon: Lexicon,
    seed: int,
    recorded: Mapping[str, Any] | None = None,
) -> Scorer:
    """The scorer that a config names; `clip` is the folder of that stage, if the run has it. The first beam is taken
    where no CLIP could be trained. `recorded`: by the run's `select`, whose weights a crop classifier goes on with."""
    if config.scorer == "clip":
        assert clip
        if (clip / UNTRAINED).is_file():
            return FirstBeam()
        demand_whole_model(clip)
        if config.clip.eyes:
            weights = {kind: fitted["weight"] for kind, fitted in (recorded or {}).get(CROP_WEIGHTS, {}).items()}
            return CropScorer(CropClassifier.load(clip / MODEL, open_image), lexicon.names, weights)
        pointer = clip / POINTER
        folder = Path(read_stage_json(pointer)["folder"]) if pointer.is_file() else clip / MODEL
        model = ImageTextModel.load(folder, open_image, config.clip.overlong)
        return ClipScorer(model, config.clip.grounding, lexicon.names)
    if config.scorer == "agreement":
        return Agreement()
    return FirstBeam() if config.scorer == "first" else RandomScorer(seed)

"""Open the models of finished stages, and what chooses among their answers. No code of training is loaded."""

from __future__ import annotations

from pathlib import Path

from clinkd.clip.model import ImageTextModel
from clinkd.config import ModelConfig, SelectConfig
from clinkd.inference import Agreement, ClipScorer, FirstBeam, RandomScorer, Scorer
from clinkd.language.facts import Lexicon
from clinkd.model.encode import OpenImage
from clinkd.model.vlm import VisionLanguageModel, load
from clinkd.pipeline.damage import MODEL, POINTER, UNTRAINED, demand_whole_model, read_stage_json


def load_model(stage: Path, open_image: OpenImage) -> VisionLanguageModel:
    """The model of a stage, or the pretrained one that it points to. Raises BadInput, with the way out, if a file of it
    differs from its checksum."""
    demand_whole_model(stage)
    if (stage / POINTER).is_file():
        pointer = read_stage_json(stage / POINTER)
        return load(Path(pointer["folder"]), open_image, ModelConfig.model_validate(pointer["model"]))
    return load(stage / MODEL, open_image)


def make_scorer(config: SelectConfig, clip: Path | None, open_image: OpenImage, lexicon: Lexicon, seed: int) -> Scorer:
    """The scorer that a config names; `clip` is the folder of that stage, if the run has it. The first beam is taken
    where no CLIP could be trained."""
    if config.scorer == "clip":
        assert clip
        if (clip / UNTRAINED).is_file():
            return FirstBeam()
        demand_whole_model(clip)
        pointer = clip / POINTER
        folder = Path(read_stage_json(pointer)["folder"]) if pointer.is_file() else clip / MODEL
        model = ImageTextModel.load(folder, open_image, config.clip.overlong)
        return ClipScorer(model, config.clip.grounding, lexicon.names)
    if config.scorer == "agreement":
        return Agreement()
    return FirstBeam() if config.scorer == "first" else RandomScorer(seed)

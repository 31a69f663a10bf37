"""The stages before the method begins: frozen image features, a taught tower, and the base."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from clinkd import distributed
from clinkd.config import FitConfig, ModelConfig, PretrainConfig
from clinkd.data.general_drawings import SHAPES, write_drawings
from clinkd.data.questions import make_bare_pairs
from clinkd.language.facts import Lexicon
from clinkd.model.eyes import Eyes, EyesNetwork, Whitening, find_license, look, look_in_parallel
from clinkd.model.folders import base_of
from clinkd.model.quantized import count_numbers
from clinkd.model.vision import VisionPretrainer
from clinkd.model.vlm import VisionLanguageModel, load, tiny_images
from clinkd.pipeline.damage import MODEL, POINTER, point_to
from clinkd.pipeline.graph import StageContext
from clinkd.pipeline.inputs import FEATURES, StageInputs, record_seconds
from clinkd.pipeline.machine import Machine
from clinkd.pipeline.prepared import DATA, read_images
from clinkd.records import ImageRef, Sample
from clinkd.storage import progress, publish, write_json, write_lines
from clinkd.training import cache_cells, cache_features, match_student

WHITENED = 256  # most training images, spread over all, whose features decide the whitening
DRAWINGS = "drawn"
PRETRAINED_VISION = "seen"  # the model between the two halves of its pretraining


def general(context: StageContext, config: ModelConfig, workers: int, hardware: Machine) -> None:
    """A base that knows images but no medicine, from drawings of plain things."""
    pretrain, drawn = config.tiny.pretrain, context.folder / DRAWINGS
    assert pretrain and pretrain.general
    total = pretrain.general.images

    def draw() -> None:
        assert pretrain and pretrain.general
        with record_seconds(context, "draw", total), progress(total, "draw plain things", "images") as advance:
            samples = write_drawings(drawn, pretrain.general, workers, advance)
        write_lines(drawn / "train.jsonl", (s.to_json() for s in samples))
        write_json(drawn / DATA, {"root": "", "lexicon": Lexicon(()).to_json()})

    distributed.on_main_process(draw)
    work = StageInputs(replace(context, inputs={"prepare": drawn}), hardware)
    train = work.samples("train")
    model = work.new_model(train, config)
    named, invented = (make_bare_pairs([s for s in train if (s.names[0] in SHAPES) is kind]) for kind in (True, False))
    work.save(_pretrain(work, model, named, pretrain, invented))
    for part in (DRAWINGS, PRETRAINED_VISION):
        distributed.on_main_process(partial(shutil.rmtree, work.folder / part, ignore_errors=True))


def eyes(work: StageInputs, config: ModelConfig) -> None:
    """Fit the whitening of frozen image features on training images, then compute the cells of every image."""
    network, images = EyesNetwork.from_wheel(), tiny_images(config, work.open_image)
    train = sorted(read_images(work.inputs["prepare"], "train"), key=str)
    number = min(WHITENED, len(train))
    chosen = [train[k * len(train) // number] for k in range(number)]
    with record_seconds(work, "whitened", len(chosen)), progress(len(chosen), "whiten", "images") as advance:

        def see_channels(ref: ImageRef) -> torch.Tensor:
            advance(1)
            return look(network, images.picture(ref)).flatten(0, 1)

        whitening = Whitening.fit(look_in_parallel(see_channels, chosen), images.geometry.values)
    images.eyes = Eyes(network, whitening, find_license())
    images.eyes.save(work.folder)
    refs = work.list_images()
    with record_seconds(work, "images", len(refs)):
        work.record("bytes", cache_cells(work.folder / FEATURES, images, refs, "look at images"))


def tower(work: StageInputs, config: ModelConfig) -> None:
    """Make the tiny model and pretrain its vision tower, which is then fixed: `see` computes its features once."""
    train = work.vary(work.samples("train"))
    model, pairs = work.new_model(train, config), make_bare_pairs(train)
    _demand_places(work, model)
    work.record("bare_pairs", len(pairs))
    if config.tiny.pretrain and config.tiny.pretrain.vision and pairs:
        _pretrain_vision(work, model, pairs, config.tiny.pretrain.vision)
    work.save(model)


def see(work: StageInputs) -> None:
    """Compute the features of every image of every split, and of every variant, with the frozen vision tower."""
    refs = work.list_images()
    model = work.model("tower" if "tower" in work.inputs else "base")
    with record_seconds(work, "images", len(refs)):
        num_bytes = cache_features(work.folder / FEATURES, model, refs, "see images")
    work.record("bytes", num_bytes)


def base(
    work: StageInputs, config: ModelConfig, student: str | None = None, live: Sequence[str] = (),
    knob: str = "teacher.base",
) -> None:  # fmt: skip
    """Make the model before any training: random weights, or a check that pretrained weights load with the knobs, and
    that a teacher's (given by `knob`) fit the model of the stage `student`; `live`: as `match_student`."""
    if general_stage := next((name for name in work.inputs if name.startswith("general")), None):
        model = load(work.inputs[general_stage] / MODEL, work.open_image, config)  # with the positions of this run
        _demand_places(work, model)
        work.save(model)
    elif "tower" in work.inputs:
        model, pairs = work.model("tower"), make_bare_pairs(work.vary(work.samples("train")))
        if config.tiny.pretrain and config.tiny.pretrain.pairs and pairs:
            work.fit(model, pairs, config.tiny.pretrain.pairs, "pairs")
        work.save(model)
    elif config.base is None:
        train = work.vary(work.samples("train"))
        model = work.new_model(train, config)
        _demand_places(work, model)
        if config.tiny.pretrain:
            model = _pretrain(work, model, make_bare_pairs(train), config.tiny.pretrain)
        work.save(model)
        distributed.on_main_process(lambda: shutil.rmtree(work.folder / PRETRAINED_VISION, ignore_errors=True))
    else:
        model = load(config.base, work.open_image, config, foreign=True)
        _demand_places(work, model)
        _keep_pretrained(work, model, config)
    work.record("parameters", sum(map(count_numbers, model.parameters())))
    if student:  # what does not fit is found out before the teacher is trained
        match_student(model, work.model(student), live, f"{knob}={config.base}")


def _keep_pretrained(work: StageInputs, model: VisionLanguageModel, config: ModelConfig) -> None:
    """Point to the pretrained model; but keep one into which an adapter was merged."""
    folder, knobs = config.base, config.model_dump(mode="json")
    assert folder
    if (base := base_of(folder)) != folder:
        line = f"base: {folder} is an adapter of {base}, and merged"
        distributed.on_main_process(lambda: print(line, file=sys.stderr, flush=True))
        work.save(model)
        work.record("adapter_of", str(base))
    else:
        distributed.on_main_process(lambda: write_json(work.folder / POINTER, {**point_to(folder), "model": knobs}))


def _demand_places(work: StageInputs, model: VisionLanguageModel) -> None:
    """Raises BadInput, before anything is trained, for an image of any split that finds no place in the text."""
    model.demand_places(sorted(work.list_images(), key=str))


def _pretrain(
    work: StageInputs, model: VisionLanguageModel, pairs: Sequence[Sample], config: PretrainConfig,
    more: Sequence[Sample] = (),
) -> VisionLanguageModel:  # fmt: skip
    """Pretrain the vision tower, then the whole model, on bare pairs. No sentence of the four tasks is used.

    `more`: pairs for the whole model alone, whose names are no classes of the tower.
    """
    work.record("bare_pairs", len(pairs))
    vision_folder, draft = work.folder / PRETRAINED_VISION, work.folder / f".{PRETRAINED_VISION}.part"
    if config.vision and pairs:
        if not vision_folder.is_dir():
            _pretrain_vision(work, model, pairs, config.vision)

            def save_vision() -> None:
                shutil.rmtree(draft, ignore_errors=True)
                model.save(draft)
                publish(draft, vision_folder)

            distributed.on_main_process(save_vision)
            work.drop_checkpoints()
        model = load(vision_folder, work.open_image).to(work.device)
    if config.pairs and pairs:
        work.fit(model, [*pairs, *more], config.pairs, "pairs")
    return model


def _pretrain_vision(work: StageInputs, model: VisionLanguageModel, pairs: Sequence[Sample], config: FitConfig) -> None:
    pretrainer = VisionPretrainer(model, [s.names[0] for s in pairs]).to(work.device)
    work.fit(pretrainer, pairs, config, "see")
    pretrainer.return_codes(model)

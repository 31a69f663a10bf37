"""What an exported folder holds beside a model's weights, so that other programs serve what was trained.

The chat template, how answers end, and where no stock class has the model's positions or its square images: the code of
our classes, which a loader runs only with `trust_remote_code=True`, and which needs torch and transformers alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from clinkd.model.families import family_of, scheme_knobs
from clinkd.model.positions import position_scheme
from clinkd.model.vlm import VisionLanguageModel
from clinkd.records import BadInput

LICENCE = "# Copied from ClinkD.\n# SPDX-License-Identifier: Apache-2.0\n\n"  # at the head of each file of code
IMPORT = re.compile(r"^from (clinkd[\w.]*) import", re.MULTILINE)


def needs_code(model: VisionLanguageModel) -> bool:
    """Whether no stock class gives this model's answers from an image: positions, layout or square images."""
    return not model.is_stock or makes_squares(model)


def makes_squares(model: VisionLanguageModel) -> bool:
    """Whether images become squares that the stock processor does not make."""
    return model.knobs.square and not model.images.geometry.square


def has_code(model: VisionLanguageModel) -> bool:
    """Whether the code that it needs can be carried: not with `eyes`, nor in a family that has none to carry."""
    return needs_code(model) and model.family.carried_processors() is not None and model.images.eyes is None


def write_served(model: VisionLanguageModel, folder: Path, max_new_tokens: int) -> None:
    """Add to the folder of a saved model what serves it. `max_new_tokens`: of an answer."""
    (folder / "chat_template.jinja").write_text(model.text.chat.jinja(), encoding="utf-8")
    GenerationConfig(
        eos_token_id=model.text.end,
        pad_token_id=model.text.pad,
        suppress_tokens=model.suppressed_tokens,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    ).save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", lambda settings: settings.update(padding_side="left"))
    if model.is_stock:
        # stock classes pass over these; `load_foreign` takes spelling of boxes, square images and prompts from there
        kept = {"scheme": model.network.config.scheme, "system_turn": model.network.config.system_turn}
        _edit(folder / "config.json", lambda settings: settings.update(kept))
    if has_code(model):
        _write_code(model, folder)
    elif settings := model.family.stock_processor_settings(model.network.config):
        _edit(folder / "processor_config.json", lambda kept: kept.update(settings))


def double_positions(config: Any, folder: Path) -> None:
    """Let a model in a folder multiply positions by 2, and divide frequencies by 2: half positions become whole ones.
    `config`: of its network.

    No angle changes, as a power of two rounds nothing. Raises BadInput where that makes no whole numbers, or they are
    whole as they are.
    """
    knobs = scheme_knobs(config)
    scheme = position_scheme(knobs.positions, family_of(config).native)
    name = f"--positions doubled: positions are {knobs.positions.name}"
    if scheme.is_whole(1):
        raise BadInput(f"{name}, which are whole numbers as they are; leave the option out")
    if not scheme.is_whole(2):
        raise BadInput(f"{name}, and twice such a position is not always a whole number; leave the option out")

    def change(settings: dict[str, Any]) -> None:
        settings["text_config"]["rope_step"] = 2
        rope = settings["text_config"]["rope_parameters"]
        rope["factor"] = 2.0
        if knobs.layout != "halves":  # whose frequencies are not the ladder of the stock classes
            rope["rope_type"] = "linear"

    _edit(folder / "config.json", change)


def _write_code(model: VisionLanguageModel, folder: Path) -> None:
    """The code, and in each configuration the class in it that the Auto classes of transformers shall take."""
    network, carried = model.family.network_class, model.family.carried_processors()
    assert carried
    image_processor, processor = carried
    copy_code({cls.__module__ for cls in (network, processor)}, folder)
    if not model.is_stock:
        _map(folder / "config.json", AutoConfig=network.config_class, AutoModelForImageTextToText=network)
    about = {"image_processor_type": image_processor.__name__, "square": model.knobs.square}
    _edit(folder / "preprocessor_config.json", lambda settings: settings.update(about))
    _map(folder / "preprocessor_config.json", AutoImageProcessor=image_processor)
    spelling = {"boxes": model.knobs.boxes, "box_bins": model.knobs.box_bins}
    _edit(folder / "processor_config.json", lambda s: s.update(processor_class=processor.__name__, **spelling))
    _map(folder / "processor_config.json", AutoProcessor=processor)


def copy_code(modules: Iterable[str], folder: Path) -> None:
    """Copy modules, and those of ours that they import, to files of one folder. Nothing but the imports changes, and
    each names its licence: the LICENSE that may lie beside it is that of a base."""
    waiting, copied = [*modules], dict[str, str]()
    while waiting:
        module = waiting.pop()
        name = module.rpartition(".")[2]
        assert copied.get(name, module) == module, f"{module} and {copied[name]} would be one file"
        if name in copied:
            continue
        copied[name] = module
        spec = find_spec(module)
        assert spec and spec.origin
        code = Path(spec.origin).read_text(encoding="utf-8")
        waiting += IMPORT.findall(code)
        beside = IMPORT.sub(lambda match: f"from .{match[1].rpartition('.')[2]} import", code)
        (folder / f"{name}.py").write_text(LICENCE + beside, encoding="utf-8")


def _map(path: Path, **classes: type) -> None:
    names = {auto: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for auto, cls in classes.items()}
    _edit(path, lambda settings: settings.update(auto_map=names))


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(settings)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

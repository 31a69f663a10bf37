"""What a family of vision-language models is to the rest of the package: its names, its classes and a few hooks.

Shapes: I images, T vision patches of all images, F merged image tokens of all images, H hidden width of the text.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from clinkd.config import Layout, ModelConfig, TinyConfig
from clinkd.model.positions import PositionScheme, position_scheme
from clinkd.records import BadInput
from clinkd.settings import read_older_tree

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

# knobs that say how a base comes about, not what a checkpoint is
NOT_CARRIED = {"base", "tiny", "vision_features", "quantize"}
VISION_PLACES = ("fullatt_block_indexes", "deepstack_visual_indexes")  # numbers of blocks of the tower that differ
OWN_KEYS = ("scheme", "system_turn", "eyes")  # of the configuration of our checkpoints; no stock class knows them


@dataclass(frozen=True)
class ChatTemplate:
    """The marks and words around images, questions and answers. A mark is one token."""

    system: str | None  # what the system turn says; None: prompts open with the user's turn
    system_turn: str  # with {} in the place of `system`
    user: str  # opens a turn of the user
    image_start: str
    image_token: str  # stands once for each merged patch
    image_end: str
    answer: str  # stands between a question and its answer
    end: str  # the mark that ends an answer
    between: str  # stands between an answer and the next turn
    pad: str
    suppressed: tuple[str, ...]  # marks that no answer holds: an undertrained model may else emit image tokens
    words: tuple[str, ...]  # the words among all these, for the vocabulary of a tiny model
    first: str = ""  # the mark before all else, if there is one
    image_mark: str = ""  # what the stock processor turns into all marks of an image; "": it takes these

    @property
    def opening(self) -> str:
        """What stands before the images of the first turn."""
        return self.first + (self.system_turn.format(self.system) if self.system else "") + self.user

    def jinja(self) -> str:
        """The same as a template of Jinja, for other programs."""
        before, _, behind = self.system_turn.partition("{}")
        marks = {
            "opening": self.opening.removesuffix(self.user),
            "before_system": before,
            "behind_system": behind,
            "before_user": self.user,
            "image": self.image_mark or self.image_start + self.image_token + self.image_end,
            "system_turn": self.system_turn,
            "before_answer": self.answer,
            "behind_answer": self.end + self.between,
        }
        return "".join(f"{{% set {name} = {json.dumps(text)} %}}" for name, text in marks.items()) + TURNS


# Behind the marks of a family. Images of a message stand before its text, wherever they are given.
TURNS = (
    "{% macro write(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content if part.type == 'image' %}{{ image }}{% endfor %}"
    "{% for part in content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}{% endmacro %}"
    "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}"
    "{% if not system_turn %}{{ raise_exception('this model has no system turn') }}{% endif %}"
    "{{ before_system }}{{ write(messages[0].content) }}{{ behind_system }}"
    "{% else %}{% set turns = messages %}{{ opening }}{% endif %}"
    "{% for message in turns %}{% if message.role != ['user', 'assistant'][loop.index0 % 2] %}"
    "{{ raise_exception('user and assistant take turns here, the user first') }}{% endif %}"
    "{% if message.role == 'user' %}{{ before_user }}{{ write(message.content) }}"
    "{% else %}{{ before_answer }}{{ write(message.content) }}{{ behind_answer }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ before_answer }}{% endif %}"
)


@dataclass(frozen=True)
class ImageGeometry:
    """How an image is cut: `patch` pixels a side of a patch, `merge` patches a side of what becomes one token."""

    patch: int
    merge: int
    values: int  # numbers that describe a patch
    least_pixels: int
    most_pixels: int
    square: bool = False  # all images become one square, whatever `model.square` says

    @property
    def factor(self) -> int:
        """Pixels a side of what becomes one token."""
        return self.patch * self.merge

    @property
    def least_side(self) -> int:
        """Patches a side of the smallest square image."""
        return math.isqrt(self.least_pixels) // self.patch if self.square else self.merge


@dataclass(frozen=True)
class Family(ABC):
    """All that the package asks of a family. Each field is given and each method is written in the family's own file.

    The paths of modules are those of `get_submodule`: `visual` and `text_blocks` in the network, the others in
    `visual`, which is the vision tower with the merger.
    """

    name: str  # as a person says it
    stock_type: str  # model_type in the config.json of a stock folder
    own_type: str  # model_type in the config.json of our checkpoints
    network_class: type[PreTrainedModel]  # the stock class with a position scheme of choice
    stock_class: type[PreTrainedModel]
    processor_class: Any  # the image processor
    native: PositionScheme  # of the stock class
    layout: Layout  # of the stock class's rotary pairs
    boxes: str  # the spelling of boxes that stock weights were taught
    chat: ChatTemplate
    special_tokens: tuple[str, ...]
    visual: str
    embeddings: tuple[str, ...]
    vision_blocks: str
    mergers: tuple[str, ...]
    text: str
    text_blocks: str
    videos: ClassVar[bool] = True  # whether the stock processor takes videos, too, and so needs torchvision
    blind_types: ClassVar[tuple[str, ...]] = ()  # model_types of its relatives that read no images

    @property
    def vision_modules(self) -> tuple[str, ...]:
        """The modules in the network that tower and merger are."""
        return (self.visual,)

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The modules of each part that can be frozen or adapted."""
        return {
            "vision": tuple(f"{self.visual}.{name}" for name in (*self.embeddings, self.vision_blocks)),
            "merger": tuple(f"{self.visual}.{name}" for name in self.mergers),
            "text": (self.text,),
            "head": ("lm_head",),
        }

    @abstractmethod
    def tiny_settings(self, tiny: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """The stock configuration of a tiny model, as its config.json would hold it.

        Raises BadInput where widths, heads and patches do not fit together.
        """

    @abstractmethod
    def tiny_processor(self, tiny: TinyConfig) -> Any:
        """The image processor of a tiny model: it resamples all images to about the same area."""

    @abstractmethod
    def configure(self, stock: dict[str, Any], knobs: ModelConfig) -> Any:
        """The configuration of `network_class` from a stock one, with the scheme that `knobs` name written into it.

        It holds `scheme`, the knobs but for NOT_CARRIED, and `system_turn`, whether prompts open with a system turn.
        """

    @abstractmethod
    def stock_settings(self, config: Any) -> dict[str, Any]:
        """The stock configuration from one of `network_class`: the inverse of `configure`."""

    def demand_knobs(self, knobs: ModelConfig) -> None:  # noqa: B027 - most families take all
        """Raises BadInput, before any work, for knobs that cannot be had with this family."""

    def complete_processor(self, processor: Any, config: Any) -> None:  # noqa: B027
        """Tell a loaded processor what of `config`, of the network, it needs for `geometry`, but does not hold itself.

        Raises BadInput where the two do not fit.
        """

    @abstractmethod
    def geometry(self, processor: Any) -> ImageGeometry:
        """How the processor cuts an image, as it is set now."""

    @abstractmethod
    def limit_image_tokens(self, processor: Any, most: int) -> None:
        """Let the processor make no more than `most` tokens of an image."""

    @abstractmethod
    def patches(self, processor: Any, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Patches [T, values] float32 of resampled images, and grids [I, 3] (frames, patches high, patches wide)."""

    @abstractmethod
    def order_patches(self, patches_YXD: Tensor, merge: int) -> Tensor:
        """Patches [T, D] of one image in the order of `patches`, from those at their places in it."""

    @abstractmethod
    def vision_features(self, visual: nn.Module, pixels_TD: Tensor, grids_I3: Tensor) -> Tensor:
        """Merged features [F, H] of patches: tower and merger. A family whose text takes features of several depths
        gives them side by side, [F, depths * H]."""

    def carried_processors(self) -> tuple[type, type] | None:
        """Image processor and processor whose code, with that of `network_class`, goes into exported folders; None: the
        code of this family wants more of clinkd, and its folders are loaded by clinkd alone."""
        return None

    def stock_processor_settings(self, config: Any) -> dict[str, Any]:
        """What processor_config.json must say to the Auto classes beside an exported stock model. `config`: of the
        network."""
        return {}

    def feature_width(self, config: Any) -> int:
        """Numbers of an image token in `vision_features`: the text width, unless a family gives more than one depth."""
        return int(config.text_config.hidden_size)

    @abstractmethod
    def inputs(
        self, config: Any, ids_BS: Tensor, mask: Tensor, positions_3BS: Tensor, features: tuple[Tensor, ...] | None
    ) -> dict[str, Any]:
        """Arguments by which the network takes tokens, mask, positions and, in the place of pixels, the merged features
        of each image (None: the text has no image tokens). `config`: of the network.

        `mask` is [B, 1, S, S], True where query attends to key; or, in decoding, [B, K], 1 at the tokens so far, of
        which the last S are these.
        """

    @abstractmethod
    def pixel_inputs(self, image_BS: Tensor, pixels_TD: Tensor, grids_I3: Tensor) -> dict[str, Any]:
        """Arguments by which the stock class takes images. image_BS: True at image tokens."""

    @abstractmethod
    def vision_attention(self, visual: nn.Module, grids_I3: Tensor) -> int | None:
        """Operations of the attention in one forward of the tower, for images of these grids. None: not known."""

    # -- the same for all -----------------------------------------------------------------------------------------

    def list_blocks(self, config: Any) -> dict[str, list[str]]:
        """The kind of each block of text and tower. `config`: of the network. Blocks of a kind take equal time and
        memory: those of the text that look a window back or all the way, those of the tower whose features the text
        gets, too."""
        text, vision = config.text_config, config.vision_config
        text_kinds = getattr(text, "layer_types", None) or ["block"] * text.num_hidden_layers
        vision_kinds = ["block"] * getattr(vision, vision_depth_key(vision))
        for key in VISION_PLACES:
            for place in getattr(vision, key, None) or ():
                vision_kinds[place] = key
        return {"text": list(text_kinds), "vision": vision_kinds}

    def keep_blocks(self, config: Any, kept: Mapping[str, Sequence[int]]) -> PreTrainedConfig:
        """A stock configuration with these blocks of text and tower alone, in this order."""
        settings = self.stock_settings(config)
        text, vision = settings["text_config"], settings["vision_config"]
        text["num_hidden_layers"] = len(kept["text"])
        if text.get("layer_types"):
            text["layer_types"] = [text["layer_types"][k] for k in kept["text"]]
        vision[vision_depth_key(config.vision_config)] = len(kept["vision"])
        for key in VISION_PLACES:
            if key in vision:
                vision[key] = [n for n, k in enumerate(kept["vision"]) if k in vision[key]]
        short: PreTrainedConfig = self.stock_class.config_class(**settings)
        return short

    def build(self, stock: dict[str, Any], knobs: ModelConfig) -> Any:
        """A network with random weights, drawn from torch's current generator."""
        return self.network_class(self.configure(stock, knobs))

    def is_stock(self, config: Any) -> bool:
        """Whether the stock class computes the same: the family's own positions and rotary pairs, from pixels."""
        knobs = scheme_knobs(config)
        positions = position_scheme(knobs.positions, self.native)
        return positions == self.native and knobs.layout == self.layout and not config.eyes

    def as_stock(self, network: Any) -> PreTrainedModel:
        """The same weights in the stock class, sharing their memory. Raises BadInput where positions or patches are not
        stock."""
        if network.config.eyes:
            raise BadInput(
                "this model sees by eyes (model.tiny.eyes), and no stock processor has them: save it as one of ours"
            )
        if not self.is_stock(network.config):
            knobs = scheme_knobs(network.config)
            raise BadInput(f"positions={knobs.positions.name}, layout={knobs.layout} exist in no stock class")
        with torch.device("meta"):
            stock = self.stock_class(self.stock_class.config_class(**self.stock_settings(network.config)))
        stock.load_state_dict(network.state_dict(), assign=True)
        stock.tie_weights()
        stock.generation_config = network.generation_config
        return stock


def vision_depth_key(vision: Any) -> str:
    """What the configuration of a tower calls the number of its blocks."""
    return "depth" if hasattr(vision, "depth") else "num_hidden_layers"


def scheme_knobs(config: Any) -> ModelConfig:
    """The ModelConfig a checkpoint was made with, as far as the checkpoint must know it."""
    unknown: list[str] = []
    knobs = read_older_tree(config.scheme or {}, ModelConfig, unknown)
    if unknown:
        raise BadInput(f"config.json: scheme.{unknown[0]}: not known to this version of clinkd, which is older")
    return ModelConfig(base=Path("."), **knobs)  # a checkpoint is its own base


def write_scheme(knobs: ModelConfig) -> dict[str, Any]:
    """The inverse of `scheme_knobs`: what a checkpoint must know of its knobs."""
    return knobs.model_dump(mode="json", exclude=NOT_CARRIED)


def count_full_attention(blocks: int, width: int, grids_I3: Tensor) -> int:
    """Operations of so many blocks in which each patch of an image attends to all of it."""
    return 4 * blocks * width * sum(n**2 for n in grids_I3.prod(-1).tolist())


def drop_keys(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A configuration without some keys, and without those that transformers writes beside the settings."""
    return {
        k: v for k, v in settings.items() if k not in (*keys, "model_type", "architectures", "transformers_version")
    }

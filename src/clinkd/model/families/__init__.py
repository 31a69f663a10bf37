"""One file a family of vision-language models; nothing outside knows its name. A new family is a member of FAMILIES."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from clinkd.config import NAMED_POSITIONS, ModelConfig
from clinkd.model.families.family import ChatTemplate, Family, ImageGeometry, scheme_knobs, write_scheme
from clinkd.model.families.gemma3 import GEMMA3
from clinkd.model.families.qwen2_5_vl import QWEN2_5_VL
from clinkd.model.families.qwen2_vl import QWEN2_VL
from clinkd.model.families.qwen3_vl import QWEN3_VL
from clinkd.model.folders import ModelFolder, base_of, read_config
from clinkd.model.quantized import make_plain, quantized_loading
from clinkd.records import BadInput
from clinkd.settings import change_knobs

__all__ = [
    "FAMILIES", "TINY", "TYPES", "ChatTemplate", "Family", "ImageGeometry", "family_of", "load_folder", "load_written",
    "native_knobs", "no_folder", "read_family", "scheme_knobs",
]  # fmt: skip

FAMILIES: tuple[Family, ...] = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, GEMMA3)
TINY = QWEN2_VL  # of the embedded tiny model
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}  # by the word of `model.dtype`


def family_of(config: Any) -> Family:
    """The family of the configuration of one of our networks."""
    return next(family for family in FAMILIES if config.model_type == family.own_type)


def no_folder(folder: Path | str) -> BadInput:
    """The refusal of a folder without config.json, or of the knob that names it, as "KNOB=FOLDER"."""
    names = " or ".join(family.name for family in FAMILIES)
    return BadInput(f"{folder}: no config.json there; a {names} folder in Hugging Face layout is wanted")


def _read_config(folder: Path) -> tuple[dict[str, Any], str | None, Family | None]:
    """A folder's config.json, the `model_type` in it and whose it is."""
    path = folder / "config.json"
    if not path.is_file():
        raise no_folder(folder)
    settings = read_config(path)
    kind = settings.get("model_type")
    return settings, kind, next((family for family in FAMILIES if kind in (family.stock_type, family.own_type)), None)


def native_knobs(folder: Path) -> ModelConfig | None:
    """The knobs that leave a stock model, or that of an adapter, as it is: those that an export wrote into it, if any.
    None for a checkpoint of ours, which has its own."""
    stock, kind, family = _read_config(base_of(folder))
    family = family or FAMILIES[0]  # a type that no family has is refused when the folder is loaded
    if kind == family.own_type:
        return None
    if isinstance(stock.get("scheme"), dict):
        return change_knobs(scheme_knobs(SimpleNamespace(**stock)), base=folder)
    settings = {"positions": NAMED_POSITIONS["native"], "layout": family.layout, "boxes": family.boxes, "square": False}
    return ModelConfig.model_validate({"base": folder, **settings})


def read_family(folder: Path, knobs: ModelConfig) -> tuple[Family, Any]:
    """The family of a stock folder or an adapter's base, and the configuration of our network with these knobs.

    Raises BadInput where the folder is none of any family.
    """
    stock, kind, family = _read_config(base_of(folder))
    if family is None:
        raise _foreign(folder, kind)
    return family, family.configure(stock, knobs)


def _foreign(folder: Path, kind: str | None) -> BadInput:
    if relative := next((family for family in FAMILIES if kind in family.blind_types), None):
        return BadInput(
            f"{folder}: model_type is {kind!r}, a model of text alone, which reads no images; take a {relative.name} "
            f"that does ({relative.stock_type!r})"
        )
    wanted = " or ".join(f"{family.name} ({family.stock_type!r})" for family in FAMILIES)
    return BadInput(f"{folder}: model_type is {kind!r}, but a {wanted} is wanted")


def load_folder(opened: ModelFolder, knobs: ModelConfig | None, dtype: torch.dtype | None = None) -> Any:
    """Weights from a folder: a stock one of any family (then `knobs` name the scheme) or one of ours (`knobs` None).

    Their type is `dtype`, or that of the scheme; with `quantize` the matrices of the text's blocks have four bits.
    Weights that have their type in the file are not copied: they are a private map of the file, which takes memory as
    they are read or changed.

    Raises BadInput where the folder is not one of these, or any weight is missing, left over or not finite.
    """
    folder = opened.folder
    stock, kind, family = _read_config(folder)
    if knobs is None and (family is None or kind != family.own_type):
        raise BadInput(f"{folder} holds a {kind!r} model, not one trained here")
    if family is None:
        raise _foreign(folder, kind)
    cls = family.network_class
    config = family.configure(stock, knobs) if knobs is not None else cls.config_class(**stock)
    config.scheme = write_scheme(scheme_knobs(config))  # an older version wrote other names
    dtype = dtype or TYPES[scheme_knobs(config).dtype]
    quantized = knobs is not None and knobs.quantize == "nf4"
    loading = quantized_loading([*family.vision_modules, "lm_head"], dtype) if quantized else {}
    network, report = opened.network(cls, config=config, dtype=dtype, **loading)
    if quantized:
        make_plain(network)
    wrong = {k: sorted(map(str, v)) for k, v in report.items() if v and k.endswith(("_keys", "_msgs"))}
    if wrong:
        what = "; ".join(f"{k.replace('_', ' ')}: {', '.join(names[:3])} ({len(names)})" for k, names in wrong.items())
        raise BadInput(f"{folder}: its weights do not fit a {family.name} of its config.json: {what}")
    return network


def load_written(opened: ModelFolder, dtype: torch.dtype) -> Any:
    """A folder that was just written, as whoever gets it will load it: by the stock class where that is its type."""
    _, kind, family = _read_config(opened.folder)
    assert family is not None
    return opened.network(family.network_class if kind == family.own_type else family.stock_class, dtype=dtype)[0]

"""Low-rank additions (LoRA, arXiv 2106.09685) to whole parts of a network, by peft, to be merged into the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from clinkd.records import BadInput

NAME = "default"  # of what learns
BESIDE = "beside"  # of what stays as it is
HEAD = "lm_head"
Additions = Mapping[str, tuple[Tensor, Tensor]]  # A [R, H] and B [V, R] by the name of the layer


def add(network: PreTrainedModel, prefixes: Sequence[str], rank: int, alpha: float, seed: int) -> None:
    """Put an addition, zero at first, on every linear layer below `prefixes`, beside an earlier one if there is any;
    all else stops learning.

    Raises BadInput if a layer shares its weight with another: merging would change both.
    """
    inner = tuple(f"{name}." for name, _ in layers(network))
    chosen = [
        name
        for name, m in network.named_modules()
        if isinstance(m, nn.Linear | LoraLayer) and name.startswith(tuple(prefixes)) and not name.startswith(inner)
    ]
    if not chosen:
        raise BadInput(f"fit.lora.parts: the network has no linear layer in {', '.join(prefixes)}")
    if HEAD in chosen and network.get_submodule(HEAD).weight is network.get_input_embeddings().weight:
        raise BadInput("fit.lora.parts: the head is one with the input table in this model; leave head out")
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=chosen)
    _inject(network, settings, NAME, seed)
    for _, layer in layers(network):
        layer.set_adapter([*layer.lora_A])
        layer.cast_input_dtype_enabled = (
            False  # autocast does it, and keeps one copy for the backward where peft has two
        )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(f".{NAME}." in name)


def _inject(network: PreTrainedModel, settings: LoraConfig, name: str, seed: int = 0) -> None:
    network.__dict__.pop("peft_config", None)  # of an earlier addition, of which peft would warn
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, network, adapter_name=name)


def layers(network: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The layers that have an addition."""
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def take_off(network: nn.Module, merged: bool) -> Additions:
    """Put the plain layers back into their places, with the additions `merged` into their weights or without any. Gives
    what has learned, the scale within B."""
    learned: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in list(layers(network)):
        if NAME in layer.lora_A:
            down_RH, up_VR, scale = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME]
            learned[name] = down_RH.detach(), up_VR.detach() * scale
        if merged:
            layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer.get_base_layer())
    return learned


def put_beside(network: PreTrainedModel, additions: Additions) -> None:
    """Give layers of a network additions that stay beside their weights; only the head gets a sum of its own, as
    whoever computes logits takes one matrix."""
    chosen = [name for name in additions if name != HEAD]
    settings = LoraConfig(r=1, lora_alpha=1, lora_dropout=0.0, target_modules=chosen)
    if chosen:
        _inject(network, settings, BESIDE)
    for name, layer in layers(network):
        down_RH, up_VR = (factor.to(plain_weight(layer).device) for factor in additions[name])
        layer.lora_A[BESIDE].weight = nn.Parameter(down_RH, requires_grad=False)
        layer.lora_B[BESIDE].weight = nn.Parameter(up_VR, requires_grad=False)
    if HEAD in additions:
        head, (down_RH, up_VR) = network.get_submodule(HEAD), additions[HEAD]
        weight_VH = plain_weight(head)
        added_VH = (up_VR @ down_RH).to(weight_VH.device)
        head.weight = nn.Parameter((weight_VH.detach() + added_VH).to(weight_VH.dtype))


def stack(earlier: Additions, later: Additions) -> Additions:
    """What equals one addition after the other: A above A and B beside B, so that the ranks add up."""
    stacked = dict(earlier)
    for name, (down_RH, up_VR) in later.items():
        if name in earlier:
            before_RH, before_VR = (t.to(down_RH.device) for t in earlier[name])
            down_RH, up_VR = torch.cat((before_RH, down_RH)), torch.cat((before_VR, up_VR), dim=1)
        stacked[name] = down_RH, up_VR
    return stacked


def merge_additions(network: PreTrainedModel, additions: Additions, scale: float, name: str) -> None:
    """Add `scale` * B @ A to layers of a network, in float32. The layers may be named as transformers named them before
    it put the text under `language_model`: then by the end of their names.

    Raises BadInput for a layer that is not there or is not linear, or that shares its weight with another. `name`: how
    errors name the adapter.
    """
    linear = {path: module for path, module in network.named_modules() if isinstance(module, nn.Linear)}
    with torch.no_grad():
        for layer, (down_RH, up_VR) in additions.items():
            end = "." + layer.removeprefix("model.")
            paths = [layer] if layer in linear else [path for path in linear if path.endswith(end)]
            if len(paths) != 1:
                raise BadInput(f"{name}: {layer} is {'several layers' if paths else 'no linear layer'} of the base")
            weight = linear[paths[0]].weight
            if weight is network.get_input_embeddings().weight:
                raise BadInput(f"{name}: changes the head, which is one with the input table in its base")
            if weight.shape != (len(up_VR), down_RH.shape[1]):
                raise BadInput(f"{name}: {layer} is of other sizes in the base; give the base that it was trained on")
            weight.copy_(weight.float() + scale * (up_VR.float() @ down_RH.float()))


def factors(layer: nn.Module) -> tuple[Tensor, Tensor, float] | None:
    """A [R, H], B [V, R] and the scale of a layer's addition; None if it has none."""
    if not isinstance(layer, LoraLayer):
        return None
    return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME]


def plain_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer without its addition."""
    base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    assert isinstance(base.weight, Tensor)
    return base.weight

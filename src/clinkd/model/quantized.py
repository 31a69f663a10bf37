"""Matrices in four bits: NF4 with its scales quantized again (QLoRA, arXiv 2305.14314), by bitsandbytes.

They cannot learn, nor can anything be merged into them: what LoRA adds stays beside them. Starts without torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from clinkd.records import BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn


def demand_bitsandbytes(setting: str, instead: str) -> None:
    """Raises BadInput if the package that a setting needs is not installed; `instead`: the value that needs none."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput(
            f"{setting}: bitsandbytes is not installed; pip install 'clinkd[bitsandbytes]', or set {instead}"
        )


def quantized_loading(whole: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    """Arguments by which transformers quantizes each matrix of linear layers as it reads it, but for those in the
    modules `whole`. Products have the type `dtype`. Raises BadInput as `demand_bitsandbytes`.

    It is done on the CPU, so a base has the same four bits on every machine.
    """
    demand_bitsandbytes("model.quantize=nf4", "none")
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[*whole],
    )  # fmt: skip
    return {"quantization_config": settings, "device_map": {"": "cpu"}}


def make_plain(network: Any) -> None:
    """Take off what transformers and peft know a quantized network by: ours is one with other linear layers."""
    network.hf_quantizer.remove_quantization_config(network)
    del network.is_loaded_in_4bit
    for module in network.modules():
        getattr(module, "config", module).__dict__.pop("_is_quantized", None)
    for _, layer in quantized_layers(network):
        # a kernel of some CPUs would turn the weights, which a teacher shares with its student, into another order
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quantized_layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers whose matrix has four bits."""
    from torch import nn

    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and is_quantized(module.weight):
            yield name, module


def is_quantized(parameter: torch.Tensor) -> bool:
    """Whether a parameter holds two numbers a byte."""
    return not parameter.dtype.is_floating_point


def count_numbers(parameter: torch.Tensor) -> int:
    """How many weights a parameter holds."""
    return parameter.numel() * (2 if is_quantized(parameter) else 1)


def dequantize(network: nn.Module) -> None:
    """Put plain layers in the place of quantized ones: the numbers that four bits stand for, in float32."""
    from bitsandbytes.functional import dequantize_4bit
    from torch import nn

    for name, layer in [*quantized_layers(network)]:
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        whole_VH = dequantize_4bit(layer.weight.data, layer.weight.quant_state)  # type: ignore[attr-defined]
        plain.weight, plain.bias = nn.Parameter(whole_VH.float(), requires_grad=False), layer.bias
        network.set_submodule(name, plain)

"""Files of what LoRA added to a base: kept beside the weights of a stage, and as an adapter for peft.

Shapes: R rank, H inputs and V outputs of a layer.
"""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from clinkd.model.adapters import Additions
from clinkd.model.folders import LOW_RANK

ADDITIONS = "additions.safetensors"


def write_additions(additions: Additions, folder: Path) -> None:
    """Keep additions beside the weights that they were merged into."""
    tensors = {f"{name}.{k}": t for name, pair in additions.items() for k, t in zip("AB", pair, strict=True)}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / ADDITIONS)


def read_additions(folder: Path) -> Additions | None:
    """The additions beside the weights in a folder; None if none were kept."""
    if not (folder / ADDITIONS).is_file():
        return None
    tensors = load_file(folder / ADDITIONS)
    return {name[:-2]: (tensor, tensors[f"{name[:-2]}.B"]) for name, tensor in tensors.items() if name.endswith(".A")}


def write_adapter(additions: Additions, folder: Path, base: str) -> int:
    """Write additions as peft does, and give their rank, one for all layers: a layer with less is filled up by zeros.

    `base`: the name of the model that they are to be added to.
    """
    rank = max(len(down_RH) for down_RH, _ in additions.values())
    settings = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=sorted(additions))
    settings.base_model_name_or_path, settings.inference_mode = base, True
    settings.save_pretrained(folder)
    tensors: dict[str, Tensor] = {}
    for name, (down_RH, up_VR) in additions.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = pad(down_RH, (0, 0, 0, rank - len(down_RH))).cpu()
        tensors[f"base_model.model.{name}.lora_B.weight"] = pad(up_VR, (0, rank - up_VR.shape[1])).cpu()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / LOW_RANK, {"format": "pt"})
    return rank

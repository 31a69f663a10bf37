"""A file of what LoRA added to a base, kept beside the weights of a stage.

Shapes: R rank, H inputs and V outputs of a layer.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from clinkd.model.adapters import Additions

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

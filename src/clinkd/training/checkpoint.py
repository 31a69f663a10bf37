"""Resumable checkpoints: weights and optimiser state in safetensors, published by a rename, verified when read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clinkd.records import BadInput
from clinkd.storage import Manifest, naming_full_disk, publish, write_json

KEPT = 2


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: dict[str, Any]
) -> None:
    """Write `folder/step-NNNNNN` whole or not at all, and drop all but the newest two.

    `state` is what else a resume needs, as JSON values.
    """
    final = folder / f"step-{step:07d}"
    draft = folder / f".{final.name}.part"
    shutil.rmtree(draft, ignore_errors=True)
    with naming_full_disk(final):
        draft.mkdir(parents=True)
        trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, draft / "weights.safetensors")
        save_file(_flat(optimizers), draft / "optimizers.safetensors")
        write_json(draft / "state.json", {"step": step, **state})
        Manifest.write(draft)
        if not final.exists():
            publish(draft, final)
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def load_checkpoint(
    folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any] | None:
    """Restore the newest checkpoint that verifies into model and optimisers; its state, or None where there is none.

    A damaged checkpoint is set aside as `damaged-...` and the one before it is taken.
    """
    for found in reversed(checkpoints(folder)):
        try:
            Manifest.verify(found)
        except BadInput:
            found.rename(found.with_name(f"damaged-{found.name}"))
            continue
        weights = load_file(found / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(weights[name])
        _restore(optimizers, load_file(found / "optimizers.safetensors"))
        state: dict[str, Any] = json.loads((found / "state.json").read_text(encoding="utf-8"))
        return state
    return None


def _flat(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"{number}.{index}.{key}": torch.as_tensor(value).contiguous()
        for number, optimizer in enumerate(optimizers)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def _restore(optimizers: Sequence[torch.optim.Optimizer], flat: dict[str, Tensor]) -> None:
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in flat.items():
            owner, index, key = name.split(".", 2)
            if int(owner) == number:
                state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

"""Resumable checkpoints: weights and optimiser state in safetensors, published by a rename, verified when read.

    step-0000120/
      weights.safetensors      the trained parameters, by name
      optimizers.safetensors   every tensor of their states: OPTIMISER.PARAMETER.KEY
      state.json               step, course, and what else the loop keeps
      manifest.json            size and SHA-256 of each, written last

No state of a random generator is kept, as none outlives a step: `fit` draws from seed, step and process alone.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clinkd import distributed
from clinkd.config import FitConfig
from clinkd.records import BadInput
from clinkd.settings import complete, differences
from clinkd.storage import Manifest, naming_full_disk, publish, read_json, sync_folder, write_json
from clinkd.training.fsdp import gather_full, shard_like

KEPT = 2
WEIGHTS, OPTIMIZERS, STATE = "weights.safetensors", "optimizers.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{7,})")


@dataclass(frozen=True)
class Restored:
    """Where to go on: steps that lie behind, `state` as it was saved (empty at the start), a line on each damage."""

    step: int
    state: dict[str, Any]
    reports: tuple[str, ...]


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: Mapping[str, Any]
) -> None:
    """Write `folder/step-NNNNNNN` whole or not at all, then drop what is older than the newest two that verify.

    Each of these is on the disk before the next begins: the files, the manifest of their checksums, the name. `state`
    is what else a resume needs, as JSON values, and the `course` (see `load_checkpoint`). Of several processes each
    calls this, with its part of what is shared out, and the main one writes.

    Raises BadInput on a full disk, after making room again; the checkpoints before it stay.
    """
    weights, states = gather_full(_trained(model).items()), gather_full(_flat(optimizers).items())
    if not distributed.is_main():
        return
    final = folder / f"step-{step:07d}"
    draft = folder / f".{final.name}.part"
    with naming_full_disk(final):
        _make(folder)
        _sweep(folder)
        try:
            draft.mkdir()
            save_file(weights, draft / WEIGHTS)
            save_file(states, draft / OPTIMIZERS)
            write_json(draft / STATE, {"step": step, **state})
            Manifest.write(draft)
            publish(draft, final)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        _prune(folder)


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    found = {p: _NAME.fullmatch(p.name) for p in folder.glob("step-*") if p.is_dir()}
    return sorted((p for p, named in found.items() if named), key=lambda p: int(p.name.removeprefix("step-")))


def load_checkpoint(
    folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], course: Mapping[str, Any]
) -> Restored:
    """Restore the newest checkpoint that verifies into model and optimisers.

    One that is damaged is set aside as `damaged-...`, and the one before it is taken. `course` is what decides every
    step, as JSON values.

    Raises BadInput, with nothing changed, for a checkpoint of another course, or with other parameters than these.
    """
    damages: list[str] = []
    for found in reversed(checkpoints(folder)):
        trouble = _trouble(found)
        if trouble is None:
            state = _restore(found, model, optimizers, course)
            return Restored(state["step"], state, tuple(f"{d}; going on from {found.name}" for d in damages))
        damages.append(f"{trouble}; set aside as {_set_aside(found).name}")
    return Restored(0, {}, tuple(f"{d}; no other is left, so this begins anew" for d in damages))


# ---- folders --------------------------------------------------------------------------------------------------------


def _make(folder: Path) -> None:
    """A new folder's own name must be on the disk, too, before what is in it can be counted on."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync_folder(folder.parent)


def _prune(folder: Path) -> None:
    """Drop what is older than the newest two that verify.

    The older of these two is read for that: it may have been damaged since, and what is deleted does not come back.
    Names are taken away, and that put on the disk, before files are: what is half deleted never passes for damaged.
    """
    older = checkpoints(folder)[:-1]
    if len(older) < KEPT:
        return
    sound = 1  # the newest was written a moment ago
    while older and sound < KEPT:
        sound += _trouble(older.pop()) is None
    for old in older:
        old.rename(folder / f".{old.name}.old")
    sync_folder(folder)
    _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove drafts that a crash left, and what was being deleted."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left)


def _trouble(checkpoint: Path) -> str | None:
    """Which file is damaged, and how; None where all is well."""
    try:
        Manifest.verify(checkpoint)
    except BadInput as error:
        return str(error).rpartition("; remove ")[0]
    except OSError as error:
        if error.errno != errno.EIO:  # a worn disk refuses to read what it lost
            raise
        return f"{error.filename or checkpoint}: {os.strerror(errno.EIO)}"
    return None


def _set_aside(checkpoint: Path) -> Path:
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
    return checkpoint.rename(aside)


# ---- contents -------------------------------------------------------------------------------------------------------


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """In the order in which their states are numbered."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _flat(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"{number}.{index}.{key}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def _read_course(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The course in a checkpoint, perhaps of an older version, with every knob of a training by today's names."""
    return {**stored, "fit": complete(stored["fit"], FitConfig)} if "fit" in stored else dict(stored)


def _restore(
    found: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], course: Mapping[str, Any]
) -> dict[str, Any]:
    state: dict[str, Any] = read_json(found / STATE)
    trained, weights, flat = _trained(model), load_file(found / WEIGHTS), load_file(found / OPTIMIZERS)
    odd = (
        next(iter(differences(course, _read_course(state["course"]))), None)
        or _odd_weights(trained, weights)
        or _odd_state(optimizers, flat)
    )
    if odd:
        raise BadInput(
            f"{found}: is of another training ({odd}); give the settings back, or remove {found.parent} to begin anew"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(shard_like(weights[name], parameter))
    for number, optimizer in enumerate(optimizers):
        parameters = _parameters(optimizer)
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in flat.items():
            owner, index, key = name.split(".", 2)
            if int(owner) == number:
                owned = tensor.clone()  # else it stays a map of the file
                entries.setdefault(int(index), {})[key] = (
                    shard_like(owned, parameters[int(index)]) if owned.ndim else owned
                )
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def _odd_weights(trained: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """Where trained parameters and saved ones differ in name, shape or type."""

    def kind(tensor: Tensor | None) -> str:
        return "not trained" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

    for name in [*trained, *(n for n in weights if n not in trained)]:
        here, there = kind(trained.get(name)), kind(weights.get(name))
        if here != there:
            return f"{name} is {here} here and {there} there"
    return None


def _odd_state(optimizers: Sequence[torch.optim.Optimizer], flat: Mapping[str, Tensor]) -> str | None:
    """Where a saved tensor belongs to no parameter, or is neither of its shape nor a number."""
    parameters = {
        f"{number}.{index}": parameter.shape
        for number, optimizer in enumerate(optimizers)
        for index, parameter in enumerate(_parameters(optimizer))
    }
    for name, tensor in flat.items():
        shape = parameters.get(name.rpartition(".")[0])
        if shape is None or (tensor.ndim and tensor.shape != shape):
            return f"the optimiser's {name} is {list(tensor.shape)} there and {shape and list(shape)} here"
    return None

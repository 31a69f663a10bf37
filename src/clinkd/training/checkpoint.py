"""Checkpoints to resume from: weights and optimiser state in safetensors, published by a rename, verified when read.

    step-0000120/
      weights.safetensors      the trained parameters, by name
      optimizers.safetensors   every tensor of their states: OPTIMISER.PARAMETER.KEY
      state.json               step, course, and the other values that the loop keeps
      manifest.json            size and SHA-256 of each file, written last

No state of a random generator is saved, as none outlives a step: the random numbers of `fit` depend only on seed, step
and process.
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
from clinkd.storage import Manifest, make_folder, naming_full_disk, publish, read_json, sync_folder, write_json
from clinkd.training.fsdp import gather_full, shard_like

KEPT = 2
WEIGHTS, OPTIMIZERS, STATE = "weights.safetensors", "optimizers.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{7,})")


@dataclass(frozen=True)
class Restored:
    """The point to resume from: steps done, `state` as it was saved (empty at the start), a line on each damage."""

    step: int
    state: dict[str, Any]
    reports: tuple[str, ...]


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: Mapping[str, Any]
) -> None:
    """Write `folder/step-NNNNNNN` whole or not at all, then delete all older than the newest two sound ones.

    Each of these is on the disk before the next begins: the files, the manifest of their checksums, the name. `state`
    holds the `course` (see `load_checkpoint`) and all else that a resume needs, as JSON values. Of several processes
    each calls this with its part of what is shared out, and the main one writes.

    Raises BadInput on a full disk, after it has freed the space again; earlier checkpoints stay.
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
            draft.mkdir(0o700)
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
    folders = [p for p in folder.glob("step-*") if p.is_dir() and _NAME.fullmatch(p.name)]
    return sorted(folders, key=lambda p: int(p.name.removeprefix("step-")))


def load_checkpoint(
    folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], course: Mapping[str, Any]
) -> Restored:
    """Restore the newest sound checkpoint into model and optimisers.

    A damaged one is moved aside as `damaged-...`, and the one before it is taken. `course` holds all that decides the
    steps, as JSON values.

    Raises BadInput, with nothing changed, for a checkpoint of another course or with other parameters.
    """
    damages: list[str] = []
    for checkpoint in reversed(checkpoints(folder)):
        damage = _find_damage(checkpoint)
        if damage is None:
            state = _restore(checkpoint, model, optimizers, course)
            return Restored(state["step"], state, tuple(f"{d}; going on from {checkpoint.name}" for d in damages))
        damages.append(f"{damage}; set aside as {_set_aside(checkpoint).name}")
    return Restored(0, {}, tuple(f"{d}; no other is left, so this begins anew" for d in damages))


# ---- folders --------------------------------------------------------------------------------------------------------


def _make(folder: Path) -> None:
    """Make a folder whose own name is on the disk, too: without it, its files could be lost."""
    if not folder.is_dir():
        make_folder(folder)
        sync_folder(folder.parent)


def _prune(folder: Path) -> None:
    """Delete all checkpoints older than the newest two sound ones.

    The older of these two is verified first: it may have been damaged since, and deleted files do not come back. The
    rename is on the disk before files are deleted, so a half deleted checkpoint is never taken for a damaged one.
    """
    older = checkpoints(folder)[:-1]
    if len(older) < KEPT:
        return
    sound = 1  # the newest was written a moment ago
    while older and sound < KEPT:
        sound += _find_damage(older.pop()) is None
    for old in older:
        old.rename(folder / f".{old.name}.old")
    sync_folder(folder)
    _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove the drafts that a crash left, and half deleted checkpoints."""
    for remains in folder.glob(".step-*"):
        shutil.rmtree(remains)


def _find_damage(checkpoint: Path) -> str | None:
    """The damaged file and its damage; None if all files are sound."""
    try:
        Manifest.verify(checkpoint)
    except BadInput as error:
        return str(error).rpartition("; remove ")[0]
    except OSError as error:
        if error.errno != errno.EIO:  # a failing disk gives this error for lost data
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
    """The parameters in the order in which the optimiser numbers their states."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _flat(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"{number}.{index}.{key}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def _read_course(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The course in a checkpoint, perhaps of an older version, with today's names for all knobs."""
    return {**stored, "fit": complete(stored["fit"], FitConfig)} if "fit" in stored else dict(stored)


def _restore(
    checkpoint: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], course: Mapping[str, Any]
) -> dict[str, Any]:
    state: dict[str, Any] = read_json(checkpoint / STATE)
    trained, weights, flat = _trained(model), load_file(checkpoint / WEIGHTS), load_file(checkpoint / OPTIMIZERS)
    difference = (
        next(iter(differences(course, _read_course(state["course"]))), None)
        or _compare_weights(trained, weights)
        or _compare_states(optimizers, flat)
    )
    if difference:
        raise BadInput(
            f"{checkpoint}: is of another training ({difference}); give the settings back, or remove "
            f"{checkpoint.parent} to begin anew"
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
                copy = tensor.clone()  # otherwise it would stay a map of the file
                entries.setdefault(int(index), {})[key] = (
                    shard_like(copy, parameters[int(index)]) if copy.ndim else copy
                )
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def _compare_weights(trained: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """The first difference between trained and saved parameters in name, shape or type; None if there is none."""

    def describe(tensor: Tensor | None) -> str:
        return "not trained" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

    for name in [*trained, *(n for n in weights if n not in trained)]:
        here, there = describe(trained.get(name)), describe(weights.get(name))
        if here != there:
            return f"{name} is {here} here and {there} there"
    return None


def _compare_states(optimizers: Sequence[torch.optim.Optimizer], flat: Mapping[str, Tensor]) -> str | None:
    """The first saved tensor that belongs to no parameter, or has neither its shape nor a single number, nor is a scale
    or table of eight-bit states (`eight_bit.py`); or None."""
    parameters = {
        f"{number}.{index}": parameter.shape
        for number, optimizer in enumerate(optimizers)
        for index, parameter in enumerate(_parameters(optimizer))
    }
    for name, tensor in flat.items():
        owner, _, key = name.rpartition(".")
        shape = parameters.get(owner)
        if shape is None or (tensor.ndim and tensor.shape != shape and not key.startswith(("absmax", "qmap"))):
            return f"the optimiser's {name} is {list(tensor.shape)} there and {shape and list(shape)} here"
    return None

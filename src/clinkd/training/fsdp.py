"""Weights, gradients and optimiser states shared out among processes (FSDP2), and put together again.

This uses torch's own `fully_shard`, not accelerate: its plugin is one for the whole process, wraps the optimisers, and
would keep what the stages of a run share. A tensor is saved whole, so that any number of processes can resume.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from clinkd import distributed


def shard_module(module: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> nn.Module:
    """Shard `module` in place: each process keeps its part, and a block is whole only while it computes.

    Weights outside the blocks (tables, head, merger) are whole from the forward to the end of the backward, as the
    objective reads the head's weight outside of any module's forward.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    return module


def is_sharded(module: nn.Module) -> bool:
    """Whether an earlier training has sharded this module."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor. All processes must ask for the same tensors in the same order."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def gather_full(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors whole, contiguous and detached in the main process; the others only take part."""
    full_tensors: dict[str, Tensor] = {}
    for name, tensor in tensors:
        full = full_tensor(tensor.detach())
        if distributed.is_main():
            full_tensors[name] = (full.cpu() if isinstance(tensor, DTensor) else full).contiguous()
    return full_tensors


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process has whole, shared out as `like` is."""
    if not isinstance(like, DTensor):
        return full
    moved = full.to(like.device_mesh.device_type)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def unshard_model(model: nn.Module) -> None:
    """Replace sharded parameters by plain ones: on the CPU in the main process; the others keep only their shapes."""
    parameters: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, part in list(module.named_parameters(recurse=False)):
            if not isinstance(part, DTensor):
                continue
            if part not in parameters:  # a tied one stays one
                full = full_tensor(part.detach())
                full = full.cpu() if distributed.is_main() else full.to("meta")
                parameters[part] = nn.Parameter(full, requires_grad=part.requires_grad)
            module.register_parameter(name, parameters[part])

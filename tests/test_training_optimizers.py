"""Muon on a CPU: torch's own step, but for the precision of its matrix iteration."""

from __future__ import annotations

import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from clinkd.training.optimizers import Muon, orthogonal

COEFFICIENTS = (3.4445, -4.775, 2.0315)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_the_iteration_is_torchs_where_both_are_in_bfloat16(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    theirs = _zeropower_via_newtonschulz(matrix, COEFFICIENTS, 5, 1e-7)
    assert torch.equal(orthogonal(matrix.bfloat16(), COEFFICIENTS, 5, 1e-7), theirs)
    ours = orthogonal(matrix.double(), COEFFICIENTS, 5, 1e-7)
    assert torch.linalg.svdvals(ours).sub(1).abs().max() < 0.35  # what five steps of these coefficients reach
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    directions = left.T @ ours @ right.T
    assert (directions - directions.diag().diag()).abs().max() < 1e-8  # the singular vectors stay


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_torchs_up_to_rounding_to_bfloat16(nesterov):
    dice = torch.Generator().manual_seed(1)
    start = [torch.randn(24, 40, generator=dice), torch.randn(40, 8, generator=dice)]
    pairs = [[torch.nn.Parameter(s.clone()) for s in start] for _ in range(2)]
    knobs = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.95, "nesterov": nesterov}
    ours, theirs = Muon(pairs[0], **knobs), torch.optim.Muon(pairs[1], **knobs)
    for _ in range(4):
        for mine, other in zip(*pairs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=dice)
            other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    for mine, other, begun in zip(*pairs, start, strict=True):
        moved = (other - begun).norm()
        assert (mine - other).norm() < 0.02 * moved and moved > 0.1
    buffers = [o.state_dict()["state"][0]["momentum_buffer"] for o in (ours, theirs)]
    assert torch.equal(*buffers)  # so that a checkpoint of either goes on


def test_parameters_without_gradient_stay():
    still = torch.nn.Parameter(torch.ones(3, 4))
    Muon([still]).step()
    assert torch.equal(still, torch.ones(3, 4))

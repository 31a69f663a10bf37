"""AdamW and the warm-up by their knobs; Muon on a CPU: torch's own step, but for its matrix iteration's precision."""

from __future__ import annotations

import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from clinkd.config import FitConfig
from clinkd.training.optimizers import Muon, make_optimizers, orthogonal, share_of_peak

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


def test_adamw_has_the_betas_of_its_knobs():
    model = torch.nn.Linear(2, 2)
    (ours,) = make_optimizers(model, FitConfig())
    assert {group["betas"] for group in ours.param_groups} == {(0.9, 0.98)}
    (stock,) = make_optimizers(model, FitConfig(adam_beta1=0.8, adam_beta2=0.999))
    assert {group["betas"] for group in stock.param_groups} == {(0.8, 0.999)}


def test_the_warm_up_starts_where_its_knob_says_and_never_passes_the_peak():
    assert share_of_peak(0, FitConfig(warmup=0.04)) == pytest.approx(1 / 40)
    assert share_of_peak(0, FitConfig(warmup=0.04, warmup_start=0.01)) == pytest.approx(1 / 4)
    stock = FitConfig(warmup=0.1, warmup_start=0)  # transformers: step / (steps of the warm-up)
    assert [share_of_peak(step / 100, stock) for step in (0, 1, 5)] == pytest.approx([0, 0.1, 0.5])
    assert share_of_peak(0, FitConfig(warmup=0.0005)) == 1  # it was twice the peak
    assert share_of_peak(0, FitConfig(warmup=0.01, warmup_start=0.5)) == 1

"""AdamW by its knobs and in eight bits, the warm-up; Muon on a CPU: torch's own step in another precision."""

from __future__ import annotations

import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from clinkd.config import FitConfig
from clinkd.experiments.recipes import paper
from clinkd.pipeline.machine import Machine
from clinkd.records import BadInput
from clinkd.settings import override
from clinkd.training.checkpoint import load_checkpoint, save_checkpoint
from clinkd.training.optimizers import Muon, make_optimizers, orthogonal, share_of_peak
from clinkd.workflows.counted import STATES

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


def test_muon_is_alone_where_all_that_learns_is_matrices():
    added = torch.nn.Sequential(torch.nn.Linear(8, 2, bias=False), torch.nn.Linear(2, 8, bias=False))  # as LoRA's
    (alone,) = make_optimizers(added, FitConfig(optimizer="muon", muon_learning_rate=0.25))
    assert isinstance(alone, Muon) and [group["peak"] for group in alone.param_groups] == [0.25]
    rest, muon = make_optimizers(torch.nn.Linear(8, 2), FitConfig(optimizer="muon"))
    assert isinstance(rest, torch.optim.AdamW) and isinstance(muon, Muon)


def test_the_warm_up_starts_where_its_knob_says_and_never_passes_the_peak():
    assert share_of_peak(0, FitConfig(warmup=0.04)) == pytest.approx(1 / 40)
    assert share_of_peak(0, FitConfig(warmup=0.04, warmup_start=0.01)) == pytest.approx(1 / 4)
    stock = FitConfig(warmup=0.1, warmup_start=0)  # transformers: step / (steps of the warm-up)
    assert [share_of_peak(step / 100, stock) for step in (0, 1, 5)] == pytest.approx([0, 0.1, 0.5])
    assert share_of_peak(0, FitConfig(warmup=0.0005)) == 1  # it was twice the peak
    assert share_of_peak(0, FitConfig(warmup=0.01, warmup_start=0.5)) == 1


# ---- eight bits -----------------------------------------------------------------------------------------------------

EIGHT = FitConfig(optimizer="adamw8bit")


def take_steps(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], numbers: range) -> None:
    for number in numbers:
        dice = torch.Generator().manual_seed(number)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=dice) * 0.1 + 0.05
        for optimizer in optimizers:
            optimizer.step()


def test_states_of_eight_bits_take_a_quarter_and_steps_are_nearly_those_of_adamw():
    pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed")
    ours, theirs = (torch.nn.Linear(256, 128) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    (eight,), (whole,) = make_optimizers(ours, EIGHT), make_optimizers(theirs, FitConfig())
    take_steps(ours, [eight], range(20))
    take_steps(theirs, [whole], range(20))
    moved = (theirs.weight - start).norm()
    assert moved > 1 and (ours.weight - theirs.weight).norm() < 0.05 * moved
    sizes = [sum(t.nbytes for k, t in o.state[m.weight].items() if torch.is_tensor(t) and "qmap" not in k)
             for o, m in ((eight, ours), (whole, theirs))]  # fmt: skip
    assert sizes[0] == pytest.approx(STATES["adamw8bit"] * ours.weight.numel())
    assert sizes[0] < 0.26 * sizes[1]
    assert eight.state[ours.bias]["state1"].dtype == torch.float32, "too few to be worth it"


def test_a_checkpoint_of_eight_bits_goes_on_to_the_bit(tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra bitsandbytes is not installed")
    straight, stopped = torch.nn.Linear(256, 128), torch.nn.Linear(256, 128)
    stopped.load_state_dict(straight.state_dict())
    through, before = make_optimizers(straight, EIGHT), make_optimizers(stopped, EIGHT)
    take_steps(straight, through, range(6))
    take_steps(stopped, before, range(3))
    save_checkpoint(tmp_path, 3, stopped, before, {"step": 3, "course": {}})
    again = torch.nn.Linear(256, 128)
    after = make_optimizers(again, EIGHT)
    assert load_checkpoint(tmp_path, again, after, {}).step == 3
    take_steps(again, after, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), straight.parameters(), strict=True))


def test_eight_bits_are_refused_where_they_cannot_be(monkeypatch):
    run = override(paper(), ["distill.fit.optimizer=adamw8bit"])
    with pytest.raises(BadInput, match=r"distill\.fit\.optimizer=adamw8bit needs whole weights"):
        override(run, ["shard=true"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"bitsandbytes is not installed; pip install 'clinkd\[bitsandbytes\]'"):
        Machine.demand(run)

"""The fused losses against float64 autograd and by properties: values, slopes, chunks, low rank, teacher draws."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clinkd.objectives import CrossEntropy, Distillation, HiddenStateTargets, Loss, LowRank, SampledTargets
from clinkd.records import BadInput

N, H, G, V, R = 13, 12, 8, 37, 3


class Case(NamedTuple):
    """Leaves that need gradients, and what does not."""

    hidden: Tensor
    weight: Tensor
    low: Tensor
    up: Tensor
    labels: Tensor
    teacher: Tensor
    head: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.hidden, self.weight, self.low, self.up

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers in another precision, as leaves of their own."""
        return Case(
            *(t.detach().to(dtype).requires_grad_() for t in self.leaves),
            self.labels,
            self.teacher.to(dtype),
            self.head.to(dtype),
        )


def case(seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Case:
    dice = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=dice) * scale).to(dtype)

    labels = torch.randint(V, (N,), generator=dice)
    leaves = [draw(N, H), draw(V, H), draw(N, R), draw(V, R)]
    return Case(*(t.requires_grad_() for t in leaves), labels, draw(N, G), draw(V, G))


def by_the_formula(c: Case, kd_weight: float, temperature: float, low_rank: bool = True) -> Tensor:
    """(CE + a T^2 KL) / (1 + a) in float64, as printed."""
    logits = c.hidden @ c.weight.T + (c.low @ c.up.T if low_rank else 0)
    q = (c.teacher @ c.head.T / temperature).log_softmax(-1)
    p = (logits / temperature).log_softmax(-1)
    ce = F.cross_entropy(logits, c.labels, reduction="sum")
    kl = (q.exp() * (q - p)).sum()
    if math.isinf(kd_weight):
        return temperature**2 * kl
    return (ce + kd_weight * temperature**2 * kl) / (1 + kd_weight)


def fused(c: Case, objective: Distillation, low_rank: bool = True) -> Loss:
    added = LowRank(c.low, c.up) if low_rank else None
    return objective(c.hidden, c.weight, c.labels, HiddenStateTargets(c.teacher, c.head), added)


def gradients(loss: Tensor, c: Case) -> list[Tensor]:
    return [g.double() for g in torch.autograd.grad(loss, c.leaves, allow_unused=True) if g is not None]


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Relative distance, by the norm."""
    return float((ours.double() - theirs).norm() / theirs.norm().clamp_min(1e-30))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("kd_weight", [0.0, 0.5, math.inf])
def test_value_and_gradients_equal_autograd_in_float64(temperature: float, kd_weight: float) -> None:
    c = case()
    exact = c.to(torch.float64)
    theirs = by_the_formula(exact, kd_weight, temperature)
    ours = fused(c, Distillation(kd_weight, temperature))
    assert ours.sum.item() == pytest.approx(theirs.item(), rel=1e-5)
    slopes = gradients(theirs * 0.25, exact)
    for mine, true in zip(gradients(ours.sum * 0.25, c), slopes, strict=True):
        assert apart(mine, true) < 1e-5
    double = fused(exact, Distillation(kd_weight, temperature))
    assert double.sum.item() == pytest.approx(theirs.item(), rel=1e-12)
    for mine, true in zip(gradients(double.sum, exact), slopes, strict=True):
        assert apart(mine, 4 * true) < 1e-11


@pytest.mark.parametrize("chunk", [1, 2, 5, 12, 13, 100])
def test_the_size_of_a_chunk_changes_nothing(chunk: int) -> None:
    c = case(1).to(torch.float64)
    whole, parts = fused(c, Distillation()), fused(c, Distillation(chunk=chunk))
    assert parts.sum.item() == pytest.approx(whole.sum.item(), rel=1e-12)
    for mine, true in zip(gradients(parts.sum, c), gradients(whole.sum, c), strict=True):
        assert apart(mine, true) < 1e-12


def test_the_reported_loss_has_the_slope_that_is_given() -> None:
    c = case(2).to(torch.float64)
    objective = Distillation(0.7, 1.5)
    slopes = gradients(fused(c, objective).sum, c)
    step = 1e-5
    for leaf, slope in zip(c.leaves, slopes, strict=True):
        for place in ((0, 0), (1, 2), (5, 1)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    leaf[place] += sign * step
                    values.append(fused(c, objective).sum.item())
                    leaf[place] -= sign * step
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(slope[place]), rel=1e-5, abs=1e-7)


def test_a_model_has_no_distance_to_itself() -> None:
    c = case(3)
    same = Distillation(math.inf, 2.0)(
        c.hidden, c.weight, c.labels, HiddenStateTargets(c.hidden.detach(), c.weight.detach())
    )
    assert same.sum.item() == 0 and all(not g.any() for g in gradients(same.sum, c))


@pytest.mark.parametrize("kd_weight", [0.5, math.inf])
def test_a_nearly_equal_teacher_in_bfloat16(kd_weight: float) -> None:
    dice = torch.Generator().manual_seed(4)
    hidden, weight = (torch.randn(s, 64, generator=dice).bfloat16() for s in (40, 300))
    near = (hidden.float() * (1 + 0.02 * torch.randn(40, 64, generator=dice))).bfloat16()
    labels = torch.randint(300, (40,), generator=dice)
    narrow = [t.clone().requires_grad_() for t in (hidden, weight)]
    ours = Distillation(kd_weight, 2.0)(*narrow, labels, HiddenStateTargets(near, weight))
    wide = [t.double().requires_grad_() for t in (hidden, weight)]
    logits = wide[0] @ wide[1].T
    q, p = ((x / 2).log_softmax(-1) for x in (near.double() @ weight.double().T, logits))
    ce, kl = F.cross_entropy(logits, labels, reduction="sum"), (q.exp() * (q - p)).sum()
    theirs = 4 * kl if math.isinf(kd_weight) else (ce + kd_weight * 4 * kl) / (1 + kd_weight)
    assert ours.sum.item() == pytest.approx(theirs.item(), rel=1e-3)
    for mine, true in zip(torch.autograd.grad(ours.sum, narrow), torch.autograd.grad(theirs, wide), strict=True):
        assert mine.dtype == torch.bfloat16 and apart(mine, true) < 5e-3


def test_far_apart_teachers_do_not_overflow() -> None:
    c = case(5, scale=12.0)
    exact = c.to(torch.float64)
    ours, theirs = fused(c, Distillation(1.0, 0.5)), by_the_formula(exact, 1.0, 0.5)
    assert ours.sum.item() == pytest.approx(theirs.item(), rel=1e-5)
    for mine, true in zip(gradients(ours.sum, c), gradients(theirs, exact), strict=True):
        assert mine.isfinite().all() and apart(mine, true) < 1e-4


def test_no_tokens_are_no_loss() -> None:
    c = case(6)
    nothing = c.labels[:0]
    for loss in (
        CrossEntropy()(c.hidden[:0], c.weight, nothing),
        Distillation()(c.hidden[:0], c.weight, nothing, HiddenStateTargets(c.teacher[:0], c.head)),
    ):
        assert loss.tokens == 0 and loss.sum.item() == 0
        assert all(not g.any() for g in gradients(loss.sum, c))


def test_cross_entropy_is_torchs() -> None:
    c = case(7)
    exact = c.to(torch.float64)
    ours = CrossEntropy(chunk=4)(c.hidden, c.weight, c.labels)
    theirs = F.cross_entropy(exact.hidden @ exact.weight.T, c.labels, reduction="sum")
    assert ours.sum.item() == pytest.approx(theirs.item(), rel=1e-6)
    for mine, true in zip(gradients(ours.sum, c), gradients(theirs, exact), strict=True):
        assert apart(mine, true) < 1e-6


def test_a_frozen_head_gets_no_gradient_and_none_is_made() -> None:
    c = case(8)
    frozen = c.weight.detach()
    made: list[tuple[int, ...]] = []
    original = torch.zeros_like

    def watched(like: Tensor, **options: object) -> Tensor:
        made.append(tuple(like.shape))
        return original(like, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "zeros_like", watched)
        loss = Distillation()(c.hidden, frozen, c.labels, HiddenStateTargets(c.teacher, c.head), LowRank(c.low, c.up))
        loss.sum.backward()
    assert frozen.grad is None and (V, H) not in made and (V, R) in made
    assert c.up.grad is not None and c.hidden.grad is not None


def test_a_window_is_the_sum_of_its_micro_batches() -> None:
    c = case(9).to(torch.float64)
    whole = gradients(fused(c, Distillation()).sum, c)
    total = [torch.zeros_like(g) for g in whole]
    for rows in (slice(0, 4), slice(4, 5), slice(5, N)):
        goal = HiddenStateTargets(c.teacher[rows], c.head)
        loss = Distillation()(c.hidden[rows], c.weight, c.labels[rows], goal, LowRank(c.low[rows], c.up))
        for into, part in zip(total, gradients(loss.sum, c), strict=True):
            into += part
    for mine, true in zip(total, whole, strict=True):
        assert apart(mine, true) < 1e-12


def test_teacher_draws_have_the_mean_of_the_whole_teacher() -> None:
    c = case(10).to(torch.float64)
    objective = Distillation(0.5, 2.0)
    logq = (c.teacher @ c.head.T / 2).log_softmax(-1)
    entropy = -(logq.exp() * logq).sum(-1)
    everything = torch.arange(V).expand(N, V)
    exact = objective(
        c.hidden, c.weight, c.labels, SampledTargets(everything, logq.exp(), entropy), LowRank(c.low, c.up)
    )
    true = fused(c, objective)
    slope = gradients(true.sum, c)
    assert exact.sum.item() == pytest.approx(true.sum.item(), rel=1e-12)
    for mine, goal in zip(gradients(exact.sum, c), slope, strict=True):
        assert apart(mine, goal) < 1e-11
    dice = torch.Generator().manual_seed(0)
    values, slopes = [], []
    for _ in range(400):
        drawn = torch.multinomial(logq.exp(), 12, replacement=True, generator=dice)
        shares = torch.full(drawn.shape, 1 / 12, dtype=torch.float64)
        loss = objective(c.hidden, c.weight, c.labels, SampledTargets(drawn, shares, entropy), LowRank(c.low, c.up))
        values.append(loss.sum.item())
        slopes.append(gradients(loss.sum, c)[0])
    spread = torch.tensor(values).std() / 20
    assert abs(sum(values) / 400 - true.sum.item()) < 4 * spread
    assert apart(torch.stack(slopes).mean(0), slope[0]) < 0.06


@pytest.mark.parametrize(
    "knobs", [{"kd_weight": -1.0}, {"kd_weight": math.nan}, {"temperature": 0.0}, {"temperature": math.inf}]
)
def test_impossible_knobs_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(knobs))):
        Distillation(**knobs)

"""Cross-entropy and distillation directly from hidden states: a chunk of tokens at a time, gradients with the value.

No [N, V] matrix exists: the logits of a chunk are computed, turned in place into the gradient of the loss, and used for
the gradients of hidden states and head. So a loss token takes only the memory of its hidden state. Logits, softmax and
sums are float32 whatever the dtype of the model; the head's gradient is summed in float32.

Legend: N loss tokens, C of them in a chunk; H, G hidden widths of student and teacher; R rank of a low-rank part of the
head; V vocabulary; K teacher samples a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29}  # size of one [C, V] matrix; about four exist at a time
CACHE_BYTES = 1 << 21  # size of one matrix between two products, on a CPU
BLOCK = 1 << 14  # vocabulary rows that are turned to float32 at once if the head is stored in fewer bits
NO_LABEL = -100  # as torch's cross-entropy has it


@dataclass(frozen=True)
class HiddenStateTargets:
    """The teacher's last hidden states [N, G] and its head [V, G], without gradients."""

    hidden_NG: Tensor
    weight_VG: Tensor

    def part(self, rows: slice) -> HiddenStateTargets:
        return HiddenStateTargets(self.hidden_NG[rows], self.weight_VG)


@dataclass(frozen=True)
class SampledTargets:
    """Samples of the teacher at the objective's temperature: vocabulary entries, their shares, and the exact entropy.

    `shares_NK` estimate the teacher's distribution without bias and sum to 1 for each token (random-sampling
    distillation, ACL 2025 long 885); `entropy_N` is the entropy of the whole distribution, natural log, so that the KL
    keeps its value.
    """

    entries_NK: Tensor
    shares_NK: Tensor
    entropy_N: Tensor

    def part(self, rows: slice) -> SampledTargets:
        return SampledTargets(self.entries_NK[rows], self.shares_NK[rows], self.entropy_N[rows])


@dataclass(frozen=True)
class LossWeights:
    """The loss is `ce` times CE plus `kl` times KL(teacher || student), with softmax(z / T) in the KL.

    `smoothing` e: the label of the CE has probability 1 - e, and e is spread evenly over all V entries, it among them.
    """

    ce: float
    kl: float
    temperature: float
    smoothing: float = 0.0


class Fused(torch.autograd.Function):
    """(loss, CE, KL), each summed over the tokens. CE and KL carry no gradient.

    `low_NR`, `up_VR`: a low-rank part of the head, logits = hidden @ weight.T + low @ up.T (LoRA: low is the hidden
    state times A, scaled; up is B). If the head needs no gradient, none is computed. A token with the label NO_LABEL
    has no CE, only the KL.
    """

    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        low_NR: Tensor | None,
        up_VR: Tensor | None,
        labels_N: Tensor,
        targets: HiddenStateTargets | SampledTargets | None,
        loss_weights: LossWeights,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (hidden_NH, weight_VH, low_NR, up_VR)
        needs_grad = [t is not None and needed for t, needed in zip(inputs, ctx.needs_input_grad, strict=False)]
        grads = [
            torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32) if k % 2 else t.dtype)
            if t is not None and needs_grad[k]
            else None
            for k, t in enumerate(inputs)
        ]
        size = chunk or _chunk_size(hidden_NH.device.type, weight_VH.shape[0])
        exact = torch.promote_types(hidden_NH.dtype, torch.float32)
        sums = torch.zeros(2, dtype=exact, device=hidden_NH.device)
        for start in range(0, len(labels_N), size):
            rows = slice(start, start + size)
            logits_CV = _compute_logits(hidden_NH[rows], weight_VH)
            if low_NR is not None and up_VR is not None:
                logits_CV += _compute_logits(low_NR[rows], up_VR)
            chunk_targets = targets.part(rows) if targets is not None else None
            sums += _sum_losses(logits_CV, labels_N[rows], chunk_targets, loss_weights, any(needs_grad))
            for k, (x_NK, weight_VK) in enumerate(((hidden_NH, weight_VH), (low_NR, up_VR))):
                into_x, into_weight = grads[2 * k : 2 * k + 2]
                if into_x is not None and weight_VK is not None:
                    into_x[rows] = _multiply(logits_CV, weight_VK)
                if into_weight is not None and x_NK is not None:
                    _add_outer(into_weight, logits_CV, x_NK[rows])
        ctx.grads = grads
        ctx.mark_non_differentiable(sums)
        return loss_weights.ce * sums[0] + loss_weights.kl * sums[1], sums[0].clone(), sums[1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the gradients were given away by the first backward; compute the loss again")
        grads = [g if g is None else g.mul_(scale) for g in ctx.grads]
        ctx.grads = None
        return (*grads, None, None, None, None)


@torch.no_grad()
def compute_log_probs(hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor, chunk: int | None = None) -> Tensor:
    """log p(label) of each token [N], natural log: minus the CE of that token, and, like it, without a matrix [N, V].

    Float32 whatever the dtype of the model (float64 stays). `chunk`: tokens at a time; None: as many as fit into a
    fixed amount of memory.
    """
    size = chunk or _chunk_size(hidden_NH.device.type, weight_VH.shape[0])
    log_probs = [torch.zeros(0, dtype=torch.promote_types(hidden_NH.dtype, torch.float32), device=hidden_NH.device)]
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for start in range(0, len(labels_N), size):
            rows = slice(start, start + size)
            logits_CV = _compute_logits(hidden_NH[rows], weight_VH)
            log_probs.append(logits_CV.gather(1, labels_N[rows, None])[:, 0] - logits_CV.logsumexp(1))
    return torch.cat(log_probs)


def _chunk_size(device: str, vocabulary: int) -> int:
    return max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocabulary))


def _sum_losses(
    logits_CV: Tensor,
    labels_C: Tensor,
    targets: HiddenStateTargets | SampledTargets | None,
    loss_weights: LossWeights,
    slope: bool,
) -> Tensor:
    """CE and KL, summed; with `slope` the logits become the gradient of the loss with respect to themselves.

    On a CPU a few tokens at a time: a logit, which is used a dozen times, then stays in the cache.
    """
    teacher_CV = (
        _compute_logits(targets.hidden_NG, targets.weight_VG) if isinstance(targets, HiddenStateTargets) else None
    )
    step = (
        len(labels_C) if logits_CV.is_cuda else max(1, CACHE_BYTES // (logits_CV.element_size() * logits_CV.shape[1]))
    )
    sums = logits_CV.new_zeros(2)
    for start in range(0, len(labels_C), step):
        rows = slice(start, start + step)
        samples = targets.part(rows) if isinstance(targets, SampledTargets) else None
        step_targets = teacher_CV[rows] if teacher_CV is not None else samples
        sums += torch.stack(_compute_loss(logits_CV[rows], labels_C[rows], step_targets, loss_weights, slope))
    return sums


def _compute_loss(
    logits_CV: Tensor, labels_C: Tensor, targets: Tensor | SampledTargets | None, loss_weights: LossWeights, slope: bool
) -> tuple[Tensor, Tensor]:
    """CE and KL of some tokens. Overwrites their logits by gradients, and the teacher's, if `targets` are logits."""
    norm_C1 = logits_CV.logsumexp(1, keepdim=True)
    smoothing, known_C1 = loss_weights.smoothing, (labels_C != NO_LABEL)[:, None]
    picked = labels_C[:, None].clamp(min=0)
    target_C1 = logits_CV.gather(1, picked)
    if smoothing:
        target_C1 = target_C1.lerp(logits_CV.mean(1, keepdim=True), smoothing)
    ce = ((norm_C1 - target_C1) * known_C1).sum()
    kl, kl_slope_CV = ce.new_zeros(()), None
    if targets is not None:
        student_CV = logits_CV / loss_weights.temperature if loss_weights.temperature != 1 else logits_CV.clone()
        student_CV -= student_CV.logsumexp(1, keepdim=True)
        kl, kl_slope_CV = (
            _kl_from_samples(student_CV, targets)
            if isinstance(targets, SampledTargets)
            else _kl_from_logits(student_CV, targets, loss_weights)
        )
    if slope:
        logits_CV.sub_(norm_C1).exp_()
        if smoothing:
            logits_CV -= smoothing / logits_CV.shape[1]
        logits_CV.scatter_add_(1, picked, logits_CV.new_full(picked.shape, smoothing - 1.0))
        logits_CV *= loss_weights.ce * known_C1.to(logits_CV.dtype)
        if kl_slope_CV is not None:
            logits_CV.add_(kl_slope_CV, alpha=loss_weights.kl / loss_weights.temperature)
    return ce, kl


def _kl_from_logits(student_CV: Tensor, teacher_CV: Tensor, loss_weights: LossWeights) -> tuple[Tensor, Tensor]:
    """KL(q || p) and p - q, from log p and the teacher's logits. Overwrites both.

    Computed from differences of logarithms, without cancellation if student and teacher are nearly equal: p - q is
    +-max(p, q) (1 - e^-|u|) with u = log p - log q, and the KL is the sum of -q u + p - q, whose terms are all >= 0.
    """
    if loss_weights.temperature != 1:
        teacher_CV /= loss_weights.temperature
    teacher_CV -= teacher_CV.logsumexp(1, keepdim=True)
    larger_CV = torch.maximum(student_CV, teacher_CV).exp_()
    u_CV = student_CV.sub_(teacher_CV)
    q_CV = teacher_CV.exp_()
    difference_CV = u_CV.abs().neg_().expm1_().neg_().mul_(larger_CV)
    difference_CV = torch.copysign(difference_CV, u_CV, out=larger_CV)
    kl = (difference_CV - q_CV.mul_(u_CV)).sum()
    return kl, difference_CV


def _kl_from_samples(student_CV: Tensor, targets: SampledTargets) -> tuple[Tensor, Tensor]:
    """The same from samples: -H(q) - sum of shares log p, and p minus the shares. Overwrites log p."""
    kl = -(targets.entropy_N.sum() + (targets.shares_NK * student_CV.gather(1, targets.entries_NK)).sum())
    difference_CV = student_CV.exp_().scatter_add_(1, targets.entries_NK, -targets.shares_NK.to(student_CV.dtype))
    return kl, difference_CV


# ---- products, float32 inside whatever the model is stored in -------------------------------------------------------


def _compute_logits(x_CK: Tensor, weight_VK: Tensor) -> Tensor:
    """x @ weight.T in float32 (float64 stays)."""
    if _same_precision(x_CK, weight_VK):
        return x_CK @ weight_VK.T
    if x_CK.is_cuda:
        return torch.mm(x_CK, weight_VK.T.to(x_CK.dtype), out_dtype=torch.float32)
    x_CK = x_CK.float()
    out_CV = x_CK.new_empty(len(x_CK), len(weight_VK))
    for rows in _split_rows(weight_VK):
        torch.mm(x_CK, weight_VK[rows].float().T, out=out_CV[:, rows])
    return out_CV


def _multiply(slope_CV: Tensor, weight_VK: Tensor) -> Tensor:
    """slope @ weight."""
    if _same_precision(slope_CV, weight_VK):
        return slope_CV @ weight_VK
    if slope_CV.is_cuda:
        return torch.mm(slope_CV.to(weight_VK.dtype), weight_VK, out_dtype=torch.float32)
    out_CK = slope_CV.new_zeros(len(slope_CV), weight_VK.shape[1])
    for rows in _split_rows(weight_VK):
        out_CK.addmm_(slope_CV[:, rows], weight_VK[rows].float())
    return out_CK


def _add_outer(total_VK: Tensor, slope_CV: Tensor, x_CK: Tensor) -> None:
    """total += slope.T @ x."""
    if _same_precision(slope_CV, x_CK):
        total_VK.addmm_(slope_CV.T, x_CK)
    elif slope_CV.is_cuda:
        narrow_CV = slope_CV.to(x_CK.dtype)
        for rows in _split_rows(total_VK):
            total_VK[rows] += torch.mm(narrow_CV[:, rows].T, x_CK, out_dtype=torch.float32)
    else:
        total_VK.addmm_(slope_CV.T, x_CK.float())


def _same_precision(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.dtype in (torch.float32, torch.float64)


def _split_rows(weight_VK: Tensor) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, len(weight_VK), BLOCK)]

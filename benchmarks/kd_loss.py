"""The fused distillation loss beside the plain one: seconds, and memory by loss token.

    python -m benchmarks.kd_loss [--json] [--device cuda] [--tokens 1024] [--hidden 1536] [--vocabulary 151936]

Rivals, in the same run: `plain` is (CE + a T^2 KL) / (1 + a) by autograd on whole [N, V] logits in float32, as most
trainers write it; `products` is the four matrix products that any such loss needs (logits of student and teacher, the
gradients of hidden states and head) and nothing else; `TRL` (where it is installed: pip install trl==1.16.0) is its
chunked divergence, KL(teacher || student) alone, against ours at a = infinity, and both that and its chunked log
probability of the labels against the whole of ours; TRL has no function for both, and makes each logit once more for
the gradients. That the ways agree is looked at first, on a few tokens. They take turns, and each is the best of its
three; memory is the peak of a process of its own, at two numbers of tokens, so that its slope is what one token takes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from benchmarks.report import Row, add_outputs, show
from torch import Tensor

from clinkd.objectives import Distillation, HiddenStateTargets

KD, TEMPERATURE = 0.5, 2.0


def inputs(tokens: int, hidden: int, vocabulary: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Student and teacher of one width: hidden states, heads, labels."""
    dice = torch.Generator(device).manual_seed(0)
    shape = {"hidden_NH": (tokens, hidden), "weight_VH": (vocabulary, hidden)}
    shape |= {"teacher_NH": (tokens, hidden), "head_VH": (vocabulary, hidden)}
    made = {k: torch.randn(s, generator=dice, device=device).mul_(0.05).to(dtype) for k, s in shape.items()}
    made["labels_N"] = torch.randint(vocabulary, (tokens,), generator=dice, device=device)
    for name in ("hidden_NH", "weight_VH"):
        made[name].requires_grad_()
    return made


def ours(x: dict[str, Tensor]) -> None:
    teacher = HiddenStateTargets(x["teacher_NH"], x["head_VH"])
    Distillation(KD, TEMPERATURE)(x["hidden_NH"], x["weight_VH"], x["labels_N"], teacher).sum.backward()


def plain(x: dict[str, Tensor]) -> None:
    logits_NV = (x["hidden_NH"] @ x["weight_VH"].T).float()
    with torch.no_grad():
        goal_NV = F.log_softmax((x["teacher_NH"] @ x["head_VH"].T).float() / TEMPERATURE, dim=-1)
    ce = F.cross_entropy(logits_NV, x["labels_N"], reduction="sum")
    soft_NV = F.log_softmax(logits_NV / TEMPERATURE, dim=-1)
    kl = F.kl_div(soft_NV, goal_NV, reduction="sum", log_target=True)
    ((ce + KD * TEMPERATURE**2 * kl) / (1 + KD)).backward()


@torch.no_grad()
def products(x: dict[str, Tensor]) -> None:
    step = max(1, (1 << 26) // (4 * len(x["weight_VH"])))
    into_VH = torch.zeros_like(x["weight_VH"])
    for start in range(0, len(x["labels_N"]), step):
        rows = slice(start, start + step)
        logits_CV = x["hidden_NH"][rows] @ x["weight_VH"].T
        x["teacher_NH"][rows] @ x["head_VH"].T
        logits_CV @ x["weight_VH"]
        into_VH.addmm_(logits_CV.T, x["hidden_NH"][rows])


def ours_kl(x: dict[str, Tensor]) -> None:
    teacher = HiddenStateTargets(x["teacher_NH"], x["head_VH"])
    Distillation(float("inf"), TEMPERATURE)(x["hidden_NH"], x["weight_VH"], x["labels_N"], teacher).sum.backward()


def trl_kl(x: dict[str, Tensor]) -> None:
    _trl_kl(x).backward()


def trl(x: dict[str, Tensor]) -> None:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    given = x["hidden_NH"], x["weight_VH"], None, x["labels_N"]
    says_N = ChunkedLogProbFunction.apply(*given, 1.0, 8192, None, 1.0, ())[0]
    ((-says_N.sum() + KD * _trl_kl(x)) / (1 + KD)).backward()


def _trl_kl(x: dict[str, Tensor]) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student, teacher = (x["hidden_NH"], x["weight_VH"], None), (x["teacher_NH"], x["head_VH"], None)
    apart_N, _ = ChunkedDivergenceFunction.apply(*student, *teacher, 0.0, TEMPERATURE)
    return TEMPERATURE**2 * apart_N.sum()


def has_trl() -> bool:
    try:
        import trl.kernels.chunked_divergence  # noqa: F401
    except ImportError as error:
        print(f"TRL is left out ({error}): pip install trl==1.16.0", file=sys.stderr)
        return False
    return True


WAYS: dict[str, Callable[[dict[str, Tensor]], None]] = {
    "ours": ours, "plain": plain, "products": products, "ours_kl": ours_kl, "trl": trl, "trl_kl": trl_kl,
}  # fmt: skip


def agree(way: str, other: str, device: str) -> None:
    """Raises SystemExit where two ways do not have the same gradients, on tokens with opinions."""
    x = inputs(32, 64, 1000, device, torch.float32)
    for name in ("hidden_NH", "weight_VH", "teacher_NH", "head_VH"):
        x[name].data.mul_(20)
    found = []
    for name in (way, other):
        for tensor in x.values():
            tensor.grad = None
        WAYS[name](x)
        found.append([x[n].grad for n in ("hidden_NH", "weight_VH")])
    for mine, theirs in zip(*found, strict=True):
        assert mine is not None and theirs is not None
        apart = float((mine - theirs).norm() / theirs.norm())
        if not apart < 1e-4:
            raise SystemExit(f"{way} and {other} are not the same loss: their gradients are {apart:.1e} apart")


def seconds(ways: Sequence[str], x: dict[str, Tensor], repeats: int = 3) -> dict[str, float]:
    """The best of so many of each, in turns, so that other work on the machine meets all alike."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):  # the first one warms up
        for way in ways:
            for tensor in x.values():
                tensor.grad = None
            start = time.perf_counter()
            WAYS[way](x)
            if x["labels_N"].is_cuda:
                torch.cuda.synchronize()
            found[way].append(time.perf_counter() - start)
    return {way: min(took[1:]) for way, took in found.items()}


def peak(way: str, tokens: int, args: argparse.Namespace) -> float:
    """Megabytes that a process of its own came to."""
    words = [sys.executable, "-m", "benchmarks.kd_loss", "--peak", way, "--tokens", str(tokens)]
    words += ["--hidden", str(args.hidden), "--vocabulary", str(args.vocabulary), "--device", args.device]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def _peak_here(x: dict[str, Tensor], way: str) -> float:
    if x["labels_N"].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        WAYS[way](x)
        return float(torch.cuda.max_memory_allocated()) / 1e6
    import resource

    WAYS[way](x)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--device", default="cpu")
    add_outputs(parser)
    parser.add_argument("--peak", choices=[*WAYS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    if args.peak:
        print(_peak_here(inputs(args.tokens, args.hidden, args.vocabulary, args.device, dtype), args.peak))
        return
    rivals = has_trl()
    for mine, other in [("ours", "plain"), *([("ours", "trl"), ("ours_kl", "trl_kl")] if rivals else [])]:
        agree(mine, other, args.device)
    # ours takes so little that only many tokens stand out of the noise; plain would not fit with so many
    span = {"ours": (args.tokens, 3 * args.tokens), "plain": (args.tokens // 2, args.tokens)}
    slope = {w: (peak(w, many, args) - peak(w, few, args)) / (many - few) for w, (few, many) in span.items()}
    x: dict[str, Tensor] = inputs(args.tokens, args.hidden, args.vocabulary, args.device, dtype)
    took = seconds([way for way in WAYS if rivals or ("trl" not in way and way != "ours_kl")], x)
    shape = f"{args.tokens} tokens, H {args.hidden}, V {args.vocabulary}, {args.device}"
    rows = [
        Row(f"KD loss and gradients, {shape}", took["ours"], took["plain"], "plain", "s"),
        Row(f"KD loss and gradients, {shape}", took["ours"], took["products"], "the four products", "s"),
        Row(f"memory by loss token, {shape}", slope["ours"], slope["plain"], "plain", "MB"),
    ]
    if rivals:
        rows += [
            Row(f"KD loss and gradients, {shape}", took["ours"], took["trl"], "TRL's two chunked functions", "s"),
            Row(f"KL alone and gradients, {shape}", took["ours_kl"], took["trl_kl"], "TRL's chunked divergence", "s"),
        ]
        slope["trl"] = (peak("trl", 3 * args.tokens, args) - peak("trl", args.tokens, args)) / (2 * args.tokens)
        name = "TRL's two chunked functions"
        rows.append(Row(f"memory by loss token, {shape}", slope["ours"], slope["trl"], name, "MB"))
    show(rows, args)


if __name__ == "__main__":
    main()

"""The fused distillation loss beside the plain one: seconds, and memory by loss token.

    python -m benchmarks.kd_loss [--json] [--device cuda] [--tokens 1024] [--hidden 1536] [--vocabulary 151936]

Rivals, in the same run: `plain` is (CE + a T^2 KL) / (1 + a) by autograd on whole [N, V] logits in float32, as most
trainers write it; `products` is the four matrix products that any such loss needs (logits of student and teacher, the
gradients of hidden states and head) and nothing else. Each is the best of three; memory is the peak of a process of its
own, at two numbers of tokens, so that its slope is what one loss token takes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from benchmarks.report import Row, show
from torch import Tensor

from clinkd.objectives import Distillation, States

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
    teacher = States(x["teacher_NH"], x["head_VH"])
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


WAYS: dict[str, Callable[[dict[str, Tensor]], None]] = {"ours": ours, "plain": plain, "products": products}


def seconds(way: str, x: dict[str, Tensor], repeats: int = 3) -> float:
    """The best of so many."""
    found = []
    for _ in range(repeats + 1):  # the first one warms up
        for tensor in x.values():
            tensor.grad = None
        start = time.perf_counter()
        WAYS[way](x)
        if x["labels_N"].is_cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", choices=[*WAYS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    if args.peak:
        print(_peak_here(inputs(args.tokens, args.hidden, args.vocabulary, args.device, dtype), args.peak))
        return
    # ours takes so little that only many tokens stand out of the noise; plain would not fit with so many
    span = {"ours": (args.tokens, 3 * args.tokens), "plain": (args.tokens // 2, args.tokens)}
    slope = {w: (peak(w, many, args) - peak(w, few, args)) / (many - few) for w, (few, many) in span.items()}
    x: dict[str, Tensor] = inputs(args.tokens, args.hidden, args.vocabulary, args.device, dtype)
    took = {way: seconds(way, x) for way in WAYS}
    shape = f"{args.tokens} tokens, H {args.hidden}, V {args.vocabulary}, {args.device}"
    rows = [
        Row(f"KD loss and gradients, {shape}", took["ours"], took["plain"], "plain", "s"),
        Row(f"KD loss and gradients, {shape}", took["ours"], took["products"], "the four products", "s"),
        Row(f"memory by loss token, {shape}", slope["ours"], slope["plain"], "plain", "MB"),
    ]
    show(rows, args.json)


if __name__ == "__main__":
    main()

"""A stored teacher beside the one that runs: bytes a token, seconds a step, and what chance costs.

    python -m benchmarks.stored_teacher [--json] [--draws 50]

A tiny teacher is taught for a minute, so that it has opinions, and stored both ways. Rivals: the same logits kept whole
in 16 bits (by count), a step with the teacher beside the student, and independent draws. Errors are relative, of the
KL's gradient by the student's hidden states, mean over tokens; `what is left of the mean` is that of the mean over many
seeds, which falls with their number where there is no bias.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.report import Row, add_outputs, show
from PIL import Image
from torch import Tensor

from clinkd.config import FitConfig, ModelConfig, PhantomConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.model.encode import Batch, group_by_images
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy, Distillation, HiddenStateTargets, SampledTargets
from clinkd.records import ImageRef, Sample
from clinkd.training import FitRun, LiveTeacher, StoredTeacher, Teacher, fit, identify_store, store_teacher
from clinkd.training.stored import Kind, sample_entries

T, SEEDS = 2.0, 64
WIDTH, VOCABULARY = 1536, 151_936  # of Qwen2-VL-2B


class Bench:
    """Phantoms, a student and a taught teacher, and its stores, under `folder`."""

    def __init__(self, folder: Path, draws: int) -> None:
        self.folder, self.draws = folder, draws
        config = PhantomConfig(train_images=240, validation_images=1, test_images=1)
        self.samples = [s for s in phantoms.write_phantoms(folder, config, 0) if s.split == "train"]
        self.student, self.teacher = self._model(0), self._model(1)
        taught = FitConfig(epochs=15, rows=24, questions=3, optimizer="muon", learning_rate=3e-3)
        fit(self.teacher, self.samples, CrossEntropy(), taught, FitRun(folder / "fit", 0, "teach"))
        self.teacher.save(folder / "teacher")

    def _model(self, seed: int) -> VisionLanguageModel:
        def opened(ref: ImageRef) -> Image.Image:
            return open_image(self.folder, ref)

        config = ModelConfig()
        return new_tiny(config, spell_samples(self.samples, config), seed, opened)

    def stored(self, kind: Kind) -> StoredTeacher:
        by, folder = self.folder / "teacher", self.folder / kind
        identity = identify_store(kind, self.samples, by, self.student, temperature=T, draws=self.draws, seed=0)
        store_teacher(folder, self.teacher, self.samples, identity, title=kind, rows_a_pass=24)
        return StoredTeacher(folder, identity)


def bytes_a_token(tutor: StoredTeacher, tokens: int) -> float:
    """Of the shards alone: the head is written once, the index is by sample."""
    return sum(p.stat().st_size for p in tutor.folder.glob("shard-*")) / tokens


def step_seconds(bench: Bench, batches: list[Batch], tutors: dict[str, Teacher | None]) -> dict[str, float]:
    """Median seconds of a loss and its gradients, the ways in turns; None: cross-entropy alone."""
    model, found = bench.student.train(), {name: list[float]() for name in tutors}
    for batch in batches:
        for name, tutor in tutors.items():
            model.zero_grad()
            start = time.perf_counter()
            hidden_NH, weight_VH = model.hidden_states(batch), model.head.weight_VH
            if tutor is None:
                loss = CrossEntropy()(hidden_NH, weight_VH, batch.labels_N)
            else:
                loss = Distillation(0.5, T)(hidden_NH, weight_VH, batch.labels_N, tutor.targets(batch))
            loss.sum.backward()
            found[name].append(time.perf_counter() - start)
    return {name: sorted(seconds)[len(seconds) // 2] for name, seconds in found.items()}


def slope(bench: Bench, batch: Batch, goal: HiddenStateTargets | SampledTargets) -> Tensor:
    """Of the KL by the student's hidden states."""
    with torch.no_grad():
        hidden_NH = bench.student.hidden_states(batch)
    hidden_NH.requires_grad_()
    loss = Distillation(float("inf"), T)(hidden_NH, bench.student.head.weight_VH.detach(), batch.labels_N, goal)
    return torch.autograd.grad(loss.sum, hidden_NH)[0]


def errors(bench: Bench, batch: Batch, sample: Callable[[int], SampledTargets]) -> tuple[float, float]:
    """Of one draw, and of the mean over SEEDS of them."""
    live = LiveTeacher(bench.teacher).targets(batch)
    true_NH = slope(bench, batch, live)
    many = torch.stack([slope(bench, batch, sample(seed)) for seed in range(SEEDS)])
    size_N = true_NH.norm(dim=-1)
    one = ((many - true_NH).norm(dim=-1) / size_N).mean()
    return float(one), float(((many.mean(0) - true_NH).norm(dim=-1) / size_N).mean())


def by_chance(bench: Bench, batch: Batch) -> dict[str, Callable[[int], SampledTargets]]:
    """Ours and independent draws, from a seed."""
    live, draws = LiveTeacher(bench.teacher).targets(batch), bench.draws
    p_NV = (live.hidden_NG @ live.weight_VG.T / T).softmax(1)
    entropy_N = torch.special.entr(p_NV).sum(1)

    def goal(entries_NK: Tensor) -> SampledTargets:
        return SampledTargets(entries_NK, torch.full(entries_NK.shape, 1 / draws), entropy_N)

    def ours(seed: int) -> SampledTargets:
        by = bench.folder / "teacher"
        identity = identify_store("draws", bench.samples[:1], by, bench.student, temperature=T, draws=draws, seed=seed)
        made = sample_entries(live, batch.spans, identity)
        return goal(made["entries_M"].long().repeat_interleave(made["counts_M"].long()).view(-1, draws))

    def independent(seed: int) -> SampledTargets:
        dice = torch.Generator().manual_seed(seed)
        return goal(torch.multinomial(p_NV, draws, replacement=True, generator=dice))

    return {"ours": ours, "independent": independent}


def rows_of_figures(bench: Bench) -> list[Row]:
    """All figures."""
    samples: list[Sample] = bench.samples
    rows = [row[:3] for row in group_by_images(samples)]
    batches = [bench.student.encode(rows[start : start + 24]) for start in range(0, len(rows), 24)]
    states, draws = bench.stored("states"), bench.stored("draws")
    whole = bench.student.encode(group_by_images(samples))
    tokens, size = len(whole.labels_N), len(bench.teacher.head.weight_VH)
    read = draws.targets(whole)
    assert isinstance(read, SampledTargets)
    kept = float((read.shares_NK > 0).sum(1).float().mean())
    entropy = float(read.entropy_N.mean())
    dense = "logits in 16 bits"
    found = [
        Row(f"bytes a token, states, V {size}", bytes_a_token(states, tokens), 2 * size, dense, "B"),
        Row(f"bytes a token, {bench.draws} draws, V {size}", bytes_a_token(draws, tokens), 2 * size, dense, "B"),
        Row(f"bytes a token, states in 16 bits, G {WIDTH}, V {VOCABULARY}", 2 * WIDTH, 2 * VOCABULARY, dense, "B"),
        Row(
            f"bytes a token, {bench.draws} draws of {kept:.1f} entries, V {VOCABULARY}",
            5 * kept + 5, 2 * VOCABULARY, dense, "B",
        ),
        Row("entries kept a token", kept, bench.draws, f"draws, teacher of {entropy:.2f} nats", "entries"),
    ]  # fmt: skip
    ways: dict[str, Teacher | None] = {"live": LiveTeacher(bench.teacher), "states": states, "draws": draws}
    step_seconds(bench, batches[:1], ways)
    took = step_seconds(bench, batches * 3, {**ways, "none": None})
    found += [Row(f"KD step, {n}", took[n], took["live"], "live", "s") for n in ("states", "draws")]
    found += [
        Row(f"KD step, {n}", took[n], took["none"], "cross-entropy alone", "s") for n in ("live", "states", "draws")
    ]
    chance = {name: errors(bench, batches[0], sample) for name, sample in by_chance(bench, batches[0]).items()}
    for number, what in enumerate(("error of the KL's gradient by a token", f"the same, mean over {SEEDS} seeds")):
        found.append(Row(what, chance["ours"][number], chance["independent"][number], "independent draws", "relative"))
    found.append(Row("error of the mean by that of one", chance["ours"][1], chance["ours"][0] / SEEDS**0.5,
                     "without bias", "relative"))  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=50)
    add_outputs(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        show(rows_of_figures(Bench(Path(folder), args.draws)), args)


if __name__ == "__main__":
    main()

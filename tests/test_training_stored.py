"""A teacher on disk: equal to the one that runs, unbiased where drawn, resumable, refused where stale or damaged."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from clinkd.config import DistillConfig, FitConfig, ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.model.encode import Batch, group_by_images
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import Distillation, HiddenStateTargets
from clinkd.objectives import SampledTargets as Draws
from clinkd.pipeline import distilling, inputs, steps
from clinkd.pipeline.graph import Stage, StageContext, execute, stage_record
from clinkd.pipeline.machine import Machine
from clinkd.records import BadInput, BoxedText, ImageRef, Sample
from clinkd.storage import write_lines
from clinkd.training import (
    FitRun,
    LiveTeacher,
    StoredTeacher,
    fit,
    identify_store,
    is_store_full,
    store_teacher,
    stored,
    tensor_store,
)
from clinkd.training.stored import Identity, Kind

TINY = TinyConfig(
    hidden=32, layers=1, heads=2, mlp=48, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=400
)
T, DRAWS = 2.0, 20


class Bench:
    """Phantoms, a teacher that was saved, and stores of it under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = PhantomConfig(train_images=16, validation_images=1, test_images=1)
        drawn = phantoms.write_phantoms(folder / "data", config, 0)
        self.samples = sorted((s for s in drawn if s.split == "train"), key=lambda s: s.id)
        self.teacher = self.model(1)
        self.teacher.save(folder / "teacher")

    def model(self, seed: int = 0) -> VisionLanguageModel:
        def opened(ref: ImageRef) -> Image.Image:
            return open_image(self.folder / "data", ref)

        config = ModelConfig(tiny=TINY)
        made = new_tiny(config, spell_samples(self.samples, config), seed, opened)
        with torch.no_grad():
            made.network.lm_head.weight *= 4 if seed else 1  # a teacher that has opinions
        return made

    def identity(
        self,
        kind: Kind,
        samples: list[Sample] | None = None,
        teacher: Path | None = None,
        temperature: float = T,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> Identity:
        teacher = teacher or self.folder / "teacher"
        return identify_store(
            kind, samples or self.samples, teacher, self.teacher, temperature=temperature, draws=draws, seed=seed
        )

    def store(self, folder: Path, identity: Identity, samples: list[Sample] | None = None, rows: int = 4) -> Path:
        store_teacher(folder, self.teacher, samples or self.samples, identity, title="store", rows_a_pass=rows)
        return folder

    def batch(self, first: int = 0, last: int = 4) -> Batch:
        return self.teacher.encode(group_by_images(self.samples)[first:last])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads wait for each other more than they compute at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("stored"))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SHARD_SAMPLES", 30)


@pytest.fixture(scope="module")
def whole(bench: Bench) -> dict[Kind, Path]:
    """A finished store of each kind; copy it to change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "SHARD_SAMPLES", 30)
        return {
            "states": bench.store(bench.folder / "states", bench.identity("states")),
            "draws": bench.store(bench.folder / "draws", bench.identity("draws")),
        }


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def same(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    """A difference of megabytes is not to be printed."""
    return one == other


def loss_and_gradients(model: VisionLanguageModel, batch: Batch, goal: HiddenStateTargets | Draws) -> list[Tensor]:
    loss = Distillation(0.5, T)(model.hidden_states(batch), model.head.weight_VH, batch.labels_N, goal)
    return [loss.sum.detach(), *torch.autograd.grad(loss.sum, list(model.parameters()))]


def distribution(bench: Bench, batch: Batch) -> Tensor:
    goal = LiveTeacher(bench.teacher).targets(batch)
    return (goal.hidden_NG.double() @ goal.weight_VG.double().T / T).softmax(1)


def test_a_batch_knows_whose_its_answer_tokens_are(bench: Bench) -> None:
    rows = group_by_images(bench.samples)[:3]
    batch = bench.teacher.encode(rows).to(torch.device("cpu"))
    assert [name for name, _ in batch.spans] == [s.id for row in rows for s in row]
    alone = {s.id: bench.teacher.encode([[s]]).labels_N for row in rows for s in row}
    assert torch.equal(batch.labels_N, torch.cat([alone[name] for name, _ in batch.spans]))
    assert [tokens for _, tokens in batch.spans] == [len(alone[name]) for name, _ in batch.spans]


# ---- states ---------------------------------------------------------------------------------------------------------


def test_stored_states_have_the_bits_of_the_teacher_that_runs(bench: Bench, whole: dict[Kind, Path]) -> None:
    tutor, batch = StoredTeacher(whole["states"], bench.identity("states")), bench.batch()
    live, read = LiveTeacher(bench.teacher).targets(batch), tutor.targets(batch)
    assert isinstance(read, HiddenStateTargets)
    assert torch.equal(live.hidden_NG, read.hidden_NG) and torch.equal(live.weight_VG, read.weight_VG)
    student = bench.model()
    ours, theirs = (loss_and_gradients(student, batch, goal) for goal in (read, live))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_rows_of_other_batches_are_found_wherever_they_stand(bench: Bench, whole: dict[Kind, Path]) -> None:
    tutor = StoredTeacher(whole["states"], bench.identity("states"))
    mixed = random.Random(0).sample(bench.samples, 25)
    batch = bench.teacher.encode([[s] for s in mixed])
    live, read = LiveTeacher(bench.teacher).targets(batch), tutor.targets(batch)
    assert isinstance(read, HiddenStateTargets) and torch.allclose(live.hidden_NG, read.hidden_NG, atol=1e-4)


def test_states_keep_the_type_of_the_model(bench: Bench, tmp_path: Path) -> None:
    narrow = bench.model(1).bfloat16()
    some = bench.samples[:8]
    identity = bench.identity("states", some)
    store_teacher(tmp_path, narrow, some, identity, title="store", rows_a_pass=4)
    read = StoredTeacher(tmp_path, identity).targets(bench.teacher.encode(group_by_images(some)))
    assert isinstance(read, HiddenStateTargets) and read.hidden_NG.dtype == read.weight_VG.dtype == torch.bfloat16


def test_a_fit_under_stored_states_goes_the_way_of_the_live_one(
    bench: Bench, whole: dict[Kind, Path], tmp_path: Path
) -> None:
    def trained(tutor: LiveTeacher | StoredTeacher, name: str) -> tuple[VisionLanguageModel, float]:
        student = bench.model()
        config = FitConfig(epochs=3, rows=8, questions=3, warmup=0.3, learning_rate=5e-4)
        done = fit(
            student, bench.samples, Distillation(2.0, T), config,
            FitRun(tmp_path / name, 0, "kd"), teacher=tutor,
        )  # fmt: skip
        return student, done.final_loss

    live, live_loss = trained(LiveTeacher(bench.teacher), "live")
    read, read_loss = trained(StoredTeacher(whole["states"], bench.identity("states")), "states")
    assert read_loss == pytest.approx(live_loss, rel=1e-5)
    for a, b in zip(live.parameters(), read.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-3)  # Adam divides rounding noise by its own size at the first steps
    _, drawn_loss = trained(StoredTeacher(whole["draws"], bench.identity("draws")), "draws")
    assert drawn_loss == pytest.approx(live_loss, rel=0.2)


def test_lanes_may_read_at_once(bench: Bench, whole: dict[Kind, Path]) -> None:
    tutor, batches = StoredTeacher(whole["draws"], bench.identity("draws")), [bench.batch(k, k + 2) for k in range(14)]
    fresh = StoredTeacher(whole["draws"], bench.identity("draws"))
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(fresh.targets, batches), map(tutor.targets, batches), strict=True):
            assert torch.equal(one.shares_NK, other.shares_NK) and torch.equal(one.entries_NK, other.entries_NK)


# ---- draws ----------------------------------------------------------------------------------------------------------


def test_shares_sum_to_one_and_the_entropy_is_exact(bench: Bench, whole: dict[Kind, Path]) -> None:
    batch = bench.batch()
    goal = StoredTeacher(whole["draws"], bench.identity("draws")).targets(batch)
    assert isinstance(goal, Draws)
    assert torch.allclose(goal.shares_NK.sum(1), torch.ones(len(batch.labels_N)), atol=1e-6)
    assert (goal.shares_NK * DRAWS - (goal.shares_NK * DRAWS).round()).abs().max() < 1e-5
    assert goal.entries_NK.shape[1] <= DRAWS and int(goal.entries_NK.max()) < len(bench.teacher.head.weight_VH)
    p = distribution(bench, batch)
    assert torch.allclose(goal.entropy_N.double(), -(p * p.log()).sum(1), rtol=1e-5)
    for entries, shares in zip(goal.entries_NK, goal.shares_NK, strict=True):
        named = entries[shares > 0].tolist()
        assert len(named) == len(set(named))  # merged


@pytest.mark.parametrize("seeds", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_draws_have_no_bias_and_less_variance_than_independent_ones(bench: Bench, seeds: int) -> None:
    batch = bench.batch(0, 2)
    live = LiveTeacher(bench.teacher).targets(batch)
    p, student = distribution(bench, batch), bench.model()
    hidden = student.hidden_states(batch).detach().requires_grad_()
    weight = student.head.weight_VH.detach()

    def slope(goal: HiddenStateTargets | Draws) -> tuple[float, Tensor]:
        loss = Distillation(float("inf"), T)(hidden, weight, batch.labels_N, goal)
        return loss.sum.item(), torch.autograd.grad(loss.sum, hidden)[0].double()

    value, true = slope(live)
    shares, values, slopes = [], [], []
    for seed in range(seeds):
        goal = goal_of(stored.sample_entries(live, batch.spans, bench.identity("draws", seed=seed)), DRAWS)
        shares.append(torch.zeros_like(p).scatter_add_(1, goal.entries_NK, goal.shares_NK.double()))
        found = slope(goal)
        values.append(found[0])
        slopes.append(found[1])
    along = [float((found * true).sum() / true.norm()) for found in slopes]
    for ours, theirs in ((values, value), (along, float(true.norm()))):
        assert abs(sum(ours) / seeds - theirs) < 4 * torch.tensor(ours).std() / seeds**0.5
    for many, mean in ((torch.stack(shares), p), (torch.stack(slopes), true)):
        error = many.std(0) / seeds**0.5
        z = ((many.mean(0) - mean) / error.clamp_min(1e-12))[error > 1e-6]
        # single errors are not normal, but thousands of them together have the mean square of chance alone
        assert len(z) > 500 and abs(float(z.square().mean()) - 1) < 0.25
    independent = p * (1 - p) / DRAWS
    assert float(torch.stack(shares).var(0).sum()) < 0.9 * float(independent.sum())


def goal_of(tensors: dict[str, Tensor], draws: int) -> Draws:
    """Draws as written, without a file: a row of `draws` entries a token, a draw each."""
    entries = tensors["entries_M"].long().repeat_interleave(tensors["counts_M"].long()).view(-1, draws)
    return Draws(entries, torch.full(entries.shape, 1 / draws), tensors["entropy_N"])


def test_draws_are_those_of_the_temperature(bench: Bench, tmp_path: Path) -> None:
    batch, found = bench.batch(), {}
    for temperature in (0.5, 4.0):
        identity = bench.identity("draws", temperature=temperature)
        goal = StoredTeacher(bench.store(tmp_path / f"{temperature}", identity), identity).targets(batch)
        live = LiveTeacher(bench.teacher).targets(batch)
        p = (live.hidden_NG.double() @ live.weight_VG.double().T / temperature).softmax(1)
        assert isinstance(goal, Draws) and torch.allclose(goal.entropy_N.double(), -(p * p.log()).sum(1), rtol=1e-3)
        found[temperature] = (goal.shares_NK > 0).sum(1).float().mean()
    assert found[0.5] < 0.6 * found[4.0]


def test_a_large_vocabulary_is_taken_in_chunks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, identity = bench.batch(), bench.identity("draws")
    goal = LiveTeacher(bench.teacher).targets(batch)
    one = stored.sample_entries(goal, batch.spans, identity)
    monkeypatch.setattr(stored, "CUMULATIVE_BYTES", 7 * 8 * len(goal.weight_VG))
    monkeypatch.setattr(stored, "BLOCK", 64)
    parts = stored.sample_entries(goal, batch.spans, identity)
    assert all(torch.equal(one[name], parts[name]) for name in ("entries_M", "counts_M", "kept_N"))
    assert [stored._narrow_type(most) for most in (255, 256, 32767, 151_936)] == [
        torch.uint8, torch.int16, torch.int16, torch.int32,
    ]  # fmt: skip


# ---- writing and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["states", "draws"])
def test_the_order_of_samples_changes_no_byte(
    bench: Bench, whole: dict[Kind, Path], tmp_path: Path, kind: Kind
) -> None:
    mixed = random.Random(1).sample(bench.samples, len(bench.samples))
    assert bench.identity(kind, mixed) == bench.identity(kind)
    assert same(content(bench.store(tmp_path / kind, bench.identity(kind), mixed)), content(whole[kind]))


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["states", "draws"])
def test_a_store_that_was_stopped_anywhere_ends_with_the_same_bytes(
    bench: Bench, tmp_path: Path, kind: Kind, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    wanted, left, passes = content(bench.store(tmp_path / "wanted", bench.identity(kind), rows=2)), 0, 0
    calls = {"targets": LiveTeacher.targets, "write": tensor_store.write_atomic}

    def stopping(name: str) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal left, passes
            passes += name == "targets"
            left -= 1
            if left < 0:
                raise Stop
            return calls[name](*arguments)

        return call

    def stopped(folder: Path, after: int) -> bool:
        nonlocal left
        left = after
        try:
            bench.store(folder, bench.identity(kind), rows=2)
        except Stop:
            with pytest.raises(BadInput, match="never finished"):
                StoredTeacher(folder, bench.identity(kind))
            return True
        return False

    monkeypatch.setattr(LiveTeacher, "targets", stopping("targets"))
    monkeypatch.setattr(tensor_store, "write_atomic", stopping("write"))
    for after in range(0, 100, every):
        folder, passes = tmp_path / str(after), 0
        if not stopped(folder, after):
            break
        (folder / ".shard-00001.safetensors.123.tmp").write_bytes(b"half")
        assert not is_store_full(folder) and not stopped(folder, 100)
        assert same(content(folder), wanted)
        assert passes <= 9 + 3, "finished shards are not computed again"
    assert 10 < after < 20 + every and passes == 9
    assert not stopped(folder, 1)  # all stands: the index alone is written again
    assert same(content(folder), wanted) and passes == 9


def test_files_cut_anywhere_are_made_again(bench: Bench, whole: dict[Kind, Path], tmp_path: Path) -> None:
    dice, wanted = random.Random(2), content(whole["draws"])
    for number in range(12):
        folder = tmp_path / str(number)
        shutil.copytree(whole["draws"], folder)
        (folder / "manifest.json").unlink()
        for name in dice.sample([n for n in wanted if n not in ("about.json", "manifest.json")], 2):
            (folder / name).write_bytes(wanted[name][: dice.randrange(len(wanted[name]))])
        bench.store(folder, bench.identity("draws"))
        assert same(content(folder), wanted)


def test_a_full_disk_is_named(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="no room left"):
        bench.store(tmp_path / "full", bench.identity("draws"))


# ---- refused --------------------------------------------------------------------------------------------------------


def test_a_stale_store_is_refused_and_named(bench: Bench, whole: dict[Kind, Path], tmp_path: Path) -> None:
    other = bench.samples[3]
    told = replace(other.turns[-1], answer=BoxedText("something else"))
    answered = [replace(s, turns=(*s.turns[:-1], told)) if s.id == other.id else s for s in bench.samples]
    weights = tmp_path / "teacher"
    shutil.copytree(bench.folder / "teacher", weights)
    file = bytearray((weights / "model.safetensors").read_bytes())
    file[-1] ^= 1
    (weights / "model.safetensors").write_bytes(file)
    spoken = replace(bench.identity("draws"), template="0" * 16)
    stale = {
        "samples is": bench.identity("draws", answered),
        "teacher is": bench.identity("draws", teacher=weights),
        "template is": spoken,
        "temperature is 1.0 here and 2.0 there": bench.identity("draws", temperature=1.0),
        "draws is 12 here and 20 there": bench.identity("draws", draws=12),
        "seed is 7 here and 0 there": bench.identity("draws", seed=7),
        "kind is states here and draws there": bench.identity("states"),
    }
    for words, identity in stale.items():
        with pytest.raises(BadInput, match=f"{words}.*remove .* to make it anew"):
            StoredTeacher(whole["draws"], identity)
        with pytest.raises(BadInput, match=words):
            bench.store(whole["draws"], identity)
    assert bench.identity("states", temperature=1.0, draws=3, seed=9) == bench.identity("states")
    with pytest.raises(BadInput, match=r"no \*\.safetensors"):
        bench.identity("states", teacher=tmp_path)


def test_every_byte_flip_is_detected(bench: Bench, whole: dict[Kind, Path], tmp_path: Path) -> None:
    dice, identity = random.Random(3), bench.identity("draws")
    folder = tmp_path / "draws"
    shutil.copytree(whole["draws"], folder)
    StoredTeacher(folder, identity)
    for name, good in content(folder).items():
        for place in dice.sample(range(len(good)), min(len(good), 15)):
            flipped = bytearray(good)
            flipped[place] ^= 1 << dice.randrange(8)
            (folder / name).write_bytes(flipped)
            with pytest.raises(BadInput):
                StoredTeacher(folder, identity)
        (folder / name).write_bytes(good)
    StoredTeacher(folder, identity)


def test_a_sample_that_is_not_there_is_named(bench: Bench, tmp_path: Path) -> None:
    some = bench.samples[:10]
    identity = bench.identity("draws", some)
    tutor = StoredTeacher(bench.store(tmp_path, identity, some), identity)
    absent = bench.samples[-1]
    with pytest.raises(BadInput, match=f"sample {absent.id} is not in the stored teacher"):
        tutor.targets(bench.teacher.encode([[absent]]))
    longer = some[0].answered(BoxedText("an answer of quite another length than before"), "")
    with pytest.raises(BadInput, match=f"sample {longer.id} has .* answer tokens"):
        tutor.targets(bench.teacher.encode([[longer]]))
    with pytest.raises(BadInput, match="two samples have this id"):
        bench.identity("draws", [*some, longer])
    assert bench.identity("draws", [*some, some[0]]) == identity


# ---- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["states", "draws"])
def test_only_the_asked_rows_are_read(
    bench: Bench, whole: dict[Kind, Path], kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, slice]] = []
    real = tensor_store.safe_open

    class Watched:
        """Hands out slices only."""

        def __init__(self, path: Path, framework: str) -> None:
            self.file = real(path, framework)

        def get_slice(self, name: str) -> Watched:
            self.name, self.rows = name, self.file.get_slice(name)
            return self

        def __getitem__(self, rows: slice) -> Tensor:
            asked.append((self.name, rows))
            return self.rows[rows]

    tutor, batch = StoredTeacher(whole[kind], bench.identity(kind)), bench.batch(2, 4)
    monkeypatch.setattr(tensor_store, "safe_open", Watched)
    tutor.store.mapped.clear()
    tutor.targets(batch)
    counted = {name: sum(r.stop - r.start for n, r in asked if n == name) for name, _ in asked}
    by_token = ["hidden_NG"] if kind == "states" else ["kept_N", "entropy_N"]
    assert all(counted[name] == len(batch.labels_N) for name in by_token)
    assert set(counted) == {*by_token, *(() if kind == "states" else ("entries_M", "counts_M"))}


# ---- in a run -------------------------------------------------------------------------------------------------------


def test_a_stage_distils_from_a_store_goes_on_with_it_and_clears_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(work: StageContext) -> None:
        shutil.copytree(bench.folder / "data", work.folder, dirs_exist_ok=True)
        steps.write_json(work.folder / steps.DATA, {"root": "", "lexicon": phantoms.LEXICON.to_json()})
        write_lines(work.folder / "train.jsonl", (s.to_json() for s in bench.samples))

    def saved(model: VisionLanguageModel) -> Callable[[StageContext], None]:
        return lambda work: model.save(work.folder / "model")

    config = DistillConfig(teacher_as="draws", draws=8, fit=FitConfig(epochs=1, rows=8))
    ready = Stage("prepare", 1, {}, (), prepare)
    base, taught = (
        Stage(n, 1, {}, (ready,), saved(m)) for n, m in (("base", bench.model()), ("teacher", bench.teacher))
    )

    def distil(config: DistillConfig) -> Callable[[StageContext], None]:
        return lambda context: steps.distill(steps.StageInputs(context, Machine("cpu", 1)), config, None)

    student = Stage("distill", 1, config, (ready, base, taught), distil(config))
    real, stores = inputs.fit, []

    def killed(*arguments: object, **named: object) -> object:
        assert isinstance(named["teacher"], StoredTeacher)
        stores.append(content(named["teacher"].folder))
        if len(stores) == 1:
            raise KeyboardInterrupt
        monkeypatch.undo()
        return real(*arguments, **named)

    monkeypatch.setattr(inputs, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        execute([ready, base, taught, student], tmp_path / "run")
    monkeypatch.setattr(distilling, "store_teacher", lambda *_, **__: pytest.fail("the store was there already"))
    monkeypatch.setattr(inputs, "fit", killed)
    done = execute([ready, base, taught, student], tmp_path / "run")["distill"]
    assert stores[0] == stores[1] and not (done / distilling.STORE).exists() and (done / "model").is_dir()
    assert stage_record(done)["recorded"]["stored_teacher"]["bytes"] > 1000
    assert {"teacher_as", "draws"} <= set(config.identity())
    plain = config.model_copy(update={"kd_weight": 0.0})
    tuned = replace(student, config=plain, work=distil(plain))
    done = execute([ready, base, taught, tuned], tmp_path / "run")["distill"]
    assert (done / "model").is_dir() and "stored_teacher" not in stage_record(done)["recorded"]

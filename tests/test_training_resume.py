"""Training that was stopped, killed, or whose disk is full or damaged ends with the bits of one that was not."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clinkd.cli.outputs import ENDED, end_in_order
from clinkd.config import FitConfig, ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.images import open_image
from clinkd.model.vlm import VisionLanguageModel, new_tiny, spell_samples
from clinkd.objectives import CrossEntropy, Distillation, Loss
from clinkd.records import BadInput, Sample
from clinkd.storage import Manifest
from clinkd.training import FitRun, LiveTeacher, checkpoint, fit
from clinkd.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from processes import run_together

ROOT = Path(__file__).resolve().parent.parent
TINY = TinyConfig(
    hidden=16, layers=1, heads=2, mlp=32, vision_hidden=16, vision_layers=1, vision_heads=2, vocabulary=400
)
CONFIG = FitConfig(epochs=2, rows=4, questions=1, optimizer="muon", checkpoint_seconds=0)  # 6 steps
RARE = CONFIG.model_copy(update={"checkpoint_seconds": 1e9})
FILES = {"weights.safetensors", "optimizers.safetensors", "state.json", "manifest.json"}


@dataclass(frozen=True)
class Dropped(CrossEntropy):
    """An objective in which there is chance."""

    def __call__(self, hidden_NH: Tensor, *more: object) -> Loss:
        return super().__call__(torch.nn.functional.dropout(hidden_NH, 0.3), *more)


class Bench:
    def __init__(self, folder: Path) -> None:
        config = PhantomConfig(train_images=12, validation_images=1, test_images=1)
        self.samples = [s for s in phantoms.write_phantoms(folder, config, 0) if s.split == "train"]
        self.folder = folder

    def model(self, seed: int = 0) -> VisionLanguageModel:
        config = ModelConfig(tiny=TINY)
        return new_tiny(config, spell_samples(self.samples, config), seed, lambda ref: open_image(self.folder, ref))

    def fit(
        self,
        folder: Path,
        config: FitConfig = CONFIG,
        objective: CrossEntropy | Distillation = CrossEntropy(),  # noqa: B008 - frozen
        seed: int = 3,
        samples: list[Sample] | None = None,
    ) -> list[Tensor]:
        """The weights with which a new process, so to speak, ends."""
        model = self.model()
        teacher = LiveTeacher(self.model(1)) if isinstance(objective, Distillation) else None
        given = samples or self.samples
        fit(model, given, objective, config, FitRun(folder, seed, "short"), teacher=teacher)
        return [p.detach() for p in model.parameters()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="module")
def finished(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, bench.fit(folder)


@pytest.fixture(scope="module")
def whole(finished: tuple[Path, list[Tensor]]) -> list[Tensor]:
    """The weights that a fit ends with which was never stopped."""
    return finished[1]


@pytest.fixture
def trained(finished: tuple[Path, list[Tensor]], tmp_path: Path) -> Path:
    """A copy of its folder, to be damaged."""
    return shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)


@pytest.fixture
def loop() -> ModuleType:
    return sys.modules["clinkd.training.fit"]


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_in_order()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def steps(folder: Path) -> list[int]:
    return [int(c.name.removeprefix("step-")) for c in checkpoints(folder)]


def in_step(loop: ModuleType, monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Do something in the midst of a step, counted from 1."""
    real, calls = loop.set_learning_rate, []

    def set_then_act(*arguments: object) -> None:
        real(*arguments)
        calls.append(1)
        if len(calls) == number:
            act()

    monkeypatch.setattr(loop, "set_learning_rate", set_then_act)


# ---- stops ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "end"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_stop_waits_for_its_step_and_a_checkpoint(
    bench, whole, loop, handlers, tmp_path, monkeypatch, capfd, kind, end
):
    before = signal.getsignal(kind)
    with monkeypatch.context() as patch:
        in_step(loop, patch, 3, lambda: signal.raise_signal(kind))
        with pytest.raises(end) as caught:
            bench.fit(tmp_path, RARE)
    if kind == signal.SIGTERM:
        assert caught.value.code == ENDED
    assert steps(tmp_path) == [3] and {p.name for p in checkpoints(tmp_path)[0].iterdir()} == FILES
    assert capfd.readouterr().err.count("short: stops when this step is done and saved") == 1
    assert signal.getsignal(kind) == before
    assert same(bench.fit(tmp_path, RARE), whole)


def test_a_stop_in_the_last_step_is_saved_too(bench, whole, loop, handlers, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        in_step(loop, patch, 6, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit):
            bench.fit(tmp_path, RARE)
    assert steps(tmp_path) == [6]
    assert same(bench.fit(tmp_path, RARE), whole)


def test_a_second_stop_does_not_wait(bench, whole, loop, handlers, tmp_path, monkeypatch):
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        in_step(loop, patch, 3, twice)
        with pytest.raises(KeyboardInterrupt):
            bench.fit(tmp_path, RARE)
    assert steps(tmp_path) == [] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(bench.fit(tmp_path, RARE), whole)


def test_a_handler_that_returns_lets_training_go_on(bench, whole, loop, handlers, tmp_path, monkeypatch):
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    in_step(loop, monkeypatch, 2, lambda: [signal.raise_signal(n) for n in (signal.SIGINT, signal.SIGTERM)])
    assert same(bench.fit(tmp_path, RARE), whole)
    assert came == [signal.SIGTERM] and steps(tmp_path) == [2]


# ---- chance ---------------------------------------------------------------------------------------------------------


def test_chance_in_a_step_is_the_same_after_a_resume(bench, loop, tmp_path, monkeypatch):
    objective, config = Dropped(), CONFIG
    expected = bench.fit(tmp_path / "whole", config, objective)
    assert not same(expected, bench.fit(tmp_path / "other", config, objective, seed=4))

    def torn() -> NoReturn:
        raise RuntimeError

    with monkeypatch.context() as patch:
        in_step(loop, patch, 4, torn)
        with pytest.raises(RuntimeError):
            bench.fit(tmp_path / "parts", config, objective)
    torch.rand(5)  # a new process stands elsewhere
    assert same(bench.fit(tmp_path / "parts", config, objective), expected)


# ---- disks ----------------------------------------------------------------------------------------------------------


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Stands for a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [10, 5_000, 90_000], ids=["state", "weights", "optimisers"])
def test_a_full_disk_keeps_the_last_good_checkpoint(bench, whole, loop, tmp_path, monkeypatch, limit):
    def save(folder: Path, step: int, *more: object) -> None:
        with small_files(limit if step == 4 else resource.RLIM_INFINITY):
            save_checkpoint(folder, step, *more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save)
        with pytest.raises(BadInput, match=r"step-0000004: no room left to write .*; free some space") as caught:
            bench.fit(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert steps(tmp_path) == [2, 3] and not list(tmp_path.glob(".step-*"))
    assert same(bench.fit(tmp_path), whole)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_damage_is_told_and_the_checkpoint_before_taken(bench, whole, trained, capfd, name, damage):
    for _ in range(2):  # the second time, there is one that was set aside
        damage(trained / "step-0000006" / name)
        assert same(bench.fit(trained), whole)
        (line,) = [x for x in capfd.readouterr().err.splitlines() if "damaged-step" in x]
        assert line.startswith(str(trained / "step-0000006")) and (name in line or name == "manifest.json")
        assert line.endswith("; set aside as damaged-step-0000006; going on from step-0000005")
        assert {"damaged": line} in [json.loads(x) for x in (trained / "log.jsonl").read_text().splitlines()]
        assert steps(trained) == [5, 6] and (trained / "damaged-step-0000006").is_dir()


def test_where_all_are_damaged_training_begins_anew(bench, whole, trained, capfd):
    for each in checkpoints(trained):
        flip(each / "weights.safetensors")
    capfd.readouterr()
    assert same(bench.fit(trained), whole)
    assert capfd.readouterr().err.count("; no other is left, so this begins anew") == 2


def test_what_a_worn_disk_refuses_to_read_is_damaged(bench, whole, tmp_path, monkeypatch, capfd):
    bench.fit(tmp_path)
    real = Manifest.verify

    def verify(folder: Path) -> None:
        if folder.name == "step-0000006":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Manifest, "verify", verify)
        assert same(bench.fit(tmp_path), whole)
    assert "step-0000006: Input/output error; set aside" in capfd.readouterr().err


def test_one_that_is_damaged_does_not_count_among_the_two_that_are_kept(tmp_path):
    model = torch.nn.Linear(2, 2)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, model, [], {"course": {}})
    flip(tmp_path / "step-0000003" / "weights.safetensors")
    save_checkpoint(tmp_path, 4, model, [], {"course": {}})
    assert steps(tmp_path) == [2, 3, 4]
    save_checkpoint(tmp_path, 5, model, [], {"course": {}})
    assert steps(tmp_path) == [4, 5]
    (tmp_path / "step-old").mkdir()
    save_checkpoint(tmp_path, 10_000_000, model, [], {"course": {}})
    assert steps(tmp_path) == [5, 10_000_000]
    assert load_checkpoint(tmp_path, model, [], {}).step == 10_000_000


# ---- another training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"config": CONFIG.model_copy(update={"epochs": 3.0})}, r"fit\.epochs is 3\.0 here and 2\.0 there"),
        ({"config": CONFIG.model_copy(update={"freeze": ("vision",)})}, r"fit\.freeze is"),
        ({"config": CONFIG.model_copy(update={"optimizer": "adamw"})}, r"fit\.optimizer is adamw here and muon there"),
        ({"seed": 4}, "seed is 4 here and 3 there"),
        ({"objective": Distillation()}, r"objective is Distillation\(kd_weight=0\.5.* here and CrossEntropy"),
        ({"samples": True}, "samples is"),
    ],
    ids=["epochs", "freeze", "optimizer", "seed", "objective", "samples"],
)
def test_a_checkpoint_of_another_training_is_refused(bench, tmp_path, given, named):
    bench.fit(tmp_path)
    if "samples" in given:
        first, *others = bench.samples
        given = {"samples": [first.answered(others[0].answer, ""), *others]}
    with pytest.raises(BadInput, match=f"{named}.*; give the settings back, or remove .* to begin anew") as caught:
        bench.fit(tmp_path, **given)
    assert "\n" not in str(caught.value) and steps(tmp_path) == [5, 6]


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path):
    def made(columns: int, kind: type[torch.optim.Optimizer]) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Linear(columns, 3)
        optimizer = kind(model.parameters())
        model(torch.ones(1, columns)).sum().backward()
        optimizer.step()
        return model, optimizer

    model, optimizer = made(4, torch.optim.AdamW)
    save_checkpoint(tmp_path, 1, model, [optimizer], {"course": {}})
    for columns, frozen, named in (
        (5, (), r"weight is float32 \[3, 5\] here and float32 \[3, 4\] there"),
        (4, ("bias",), r"bias is not trained here and float32 \[3\] there"),
    ):
        other, others = made(columns, torch.optim.AdamW)
        for name in frozen:
            other.get_parameter(name).requires_grad_(False)
        before = [p.clone() for p in other.parameters()]
        with pytest.raises(BadInput, match=named):
            load_checkpoint(tmp_path, other, [others], {})
        assert same(before, list(other.parameters()))
    again = torch.nn.Linear(4, 3)
    few = torch.optim.AdamW([again.bias])
    before = [p.clone() for p in again.parameters()]
    with pytest.raises(BadInput, match=r"the optimiser's 0\.0\.\w+ is \[3, 4\] there and \[3\] here"):
        load_checkpoint(tmp_path, again, [few], {})
    with pytest.raises(BadInput, match=r"the optimiser's 0\.0\.\w+ is .* there and None here"):
        load_checkpoint(tmp_path, again, [], {})
    assert same(before, list(again.parameters()))
    assert load_checkpoint(tmp_path, again, [torch.optim.AdamW(again.parameters())], {}).step == 1
    assert same(list(model.parameters()), list(again.parameters()))


# ---- two processes --------------------------------------------------------------------------------------------------


def stop_one_of_two(folder: Path, stop: int) -> None:
    """One process of a training, of which the second asks for a stop in step `stop`."""
    torch.set_num_threads(1)
    end_in_order()
    rank = os.environ["RANK"]
    loop, steps = sys.modules["clinkd.training.fit"], []
    real = loop.set_learning_rate

    def set_then_stop(*arguments):
        real(*arguments)
        steps.append(1)
        if rank == "1" and len(steps) == stop:
            signal.raise_signal(signal.SIGTERM)

    loop.set_learning_rate = set_then_stop
    weights = Bench(folder / f"phantoms-{rank}").fit(folder / "fit", RARE)
    save_file({str(n): w.clone() for n, w in enumerate(weights)}, folder / f"end-{rank}.safetensors")


@pytest.mark.slow
def test_a_stop_of_one_process_is_one_of_all(tmp_path):
    def run(name: str, stop: int) -> tuple[int, list[bytes]]:
        (tmp_path / name).mkdir(exist_ok=True)
        statuses = run_together(tmp_path / "log.txt", stop_one_of_two, tmp_path / name, stop)
        return next(filter(None, statuses), 0), [p.read_bytes() for p in sorted((tmp_path / name).glob("end-*"))]

    status, expected = run("whole", 0)
    assert status == 0 and len(expected) == 2 and expected[0] == expected[1]
    status, ends = run("parts", 3)
    assert status and not ends and steps(tmp_path / "parts" / "fit") == [3]
    assert run("parts", 0) == (0, expected)


# ---- crashes, in processes of their own -----------------------------------------------------------------------------


def crashes(*words: str) -> dict[str, tuple[int, int]]:
    """Recovered and tried, by what was tried. In memory where possible: kills and faults cannot tell; it is fast."""
    command = [sys.executable, "-m", "benchmarks.crashes", "--json", *words]
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        given = {**os.environ, "TMPDIR": scratch}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=given)
    assert done.returncode == 0, done.stderr + done.stdout
    return {row["what"]: (row["ours"], row["rival"]) for row in json.loads(done.stdout)}


def test_a_slice_of_all_crashes_is_recovered_to_the_bit():
    found = crashes("--kills", "6", "--damages", "1", "--every", "13")
    assert all(recovered == tried for recovered, tried in found.values()) and len(found) == 13
    for command in ("run", "import", "serve", "ask", "pack", "export"):
        assert found[f"kills of `{command}` at random points"] == (1, 1)
    for how in ("an error", "the end of the process", "a power cut"):
        assert found[f"{how} at each operation of a save"][1] > 1


@pytest.mark.slow
def test_all_crashes_are_recovered_to_the_bit():
    found = crashes("--kills", "100", "--damages", "100", "--seed", "1")
    assert all(recovered == tried for recovered, tried in found.values())
    assert found["a power cut at each operation of a save"][1] > 25

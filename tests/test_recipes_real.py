"""The recipes for pretrained weights, unedited but for two paths, on a stock Qwen2-VL folder and Med-GRIT files.

The slice changes the length of answers, too. The folder is of the stock layout and of a tiny size, its weights random:
what runs is the code, not a result.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from clinkd.cli import main
from clinkd.config import ModelConfig, PhantomConfig, TinyConfig
from clinkd.data import phantoms
from clinkd.data.codecs import make_codec
from clinkd.data.images import open_image
from clinkd.model.families import TINY, Family
from clinkd.model.families.qwen3_vl import QWEN3_VL
from clinkd.model.vlm import new_tiny, spell_samples
from clinkd.records import ImageRef, Sample, Task
from processes import run_together
from test_families_stock import make_twin
from test_model_clip import clip_folder

pytestmark = pytest.mark.usefixtures("one_meteor")
TESTS = {Task.VG: "VG", Task.ROC: "RO", Task.RC: "GC", Task.MIA: "MII"}


def write_medgrit(folder: Path, images: Path, samples: list[Sample]) -> None:
    """Phantoms in Med-GRIT's own form: train.json of several turns a row, four test files of one."""
    family = make_codec("qwen-vl")
    names: dict[str, str] = {}

    def row(asked: list[Sample]) -> dict[str, object]:
        path = asked[0].images[0].path
        name = names.setdefault(path, f"{asked[0].modality}_00--PHANTOM--{len(names):04d}--x_0000.png")
        if not (images / name).exists():
            Image.open(folder.parent / "drawn" / path).save(images / name)
        said = [[family.encode(s.question), family.encode(s.answer)] for s in asked]
        said[0][0] = f"<img>images/{name}</img>{said[0][0]}"
        return {"id": name.removesuffix(".png"), "conversations": said}

    by_image: dict[str, list[Sample]] = {}
    for s in samples:
        by_image.setdefault(s.images[0].path, []).append(s)
    held = {p for p, asked in by_image.items() if asked[0].split == "test"}
    (folder / "train.json").write_text(json.dumps([row(a) for p, a in by_image.items() if p not in held]))
    for task, name in TESTS.items():
        rows = [row([s]) for p in held for s in by_image[p] if s.task is task]
        (folder / f"Test_{name}.json").write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set imported from Med-GRIT files, and a stock Qwen2-VL folder; beside it one of Qwen3-VL, `qwen3`."""
    home = tmp_path_factory.mktemp("real")
    config = PhantomConfig(train_images=8, validation_images=2, test_images=4, structures=1)
    samples = phantoms.write_phantoms(home / "drawn", config, 0)
    for name in ("medgrit", "sa-med2d/images"):
        (home / name).mkdir(parents=True)
    write_medgrit(home / "medgrit", home / "sa-med2d/images", samples)
    words = ["data", "import", str(home / "medgrit"), "--images", str(home / "sa-med2d"), "--out", str(home / "set")]
    assert main([*words, "--validation", "0.2", "--workers", "1"]) == 0
    tiny = TinyConfig(
        hidden=48,
        layers=2,
        heads=2,
        mlp=64,
        vision_hidden=32,
        vision_layers=1,
        vision_heads=2,
        vocabulary=400,
        patch=14,
        image_pixels=56,
    )
    knobs = ModelConfig(positions="mrope", layout="sections", boxes="qwen2-vl", tiny=tiny)

    def opened(ref: ImageRef) -> Image.Image:
        return open_image(home / "drawn", ref)

    new_tiny(knobs, spell_samples(samples, knobs), 0, opened).save(home / "base", stock=True)
    assert json.loads((home / "base/config.json").read_text())["model_type"] == "qwen2_vl"
    make_twin(QWEN3_VL, home / "qwen3").bfloat16().save_pretrained(home / "qwen3")  # as it is published
    return home / "set", home / "base"


# random weights never end an answer, so 256 tokens of each are most of the time that a recipe takes
SHORT = ("answer.max_new_tokens=12",)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("laptop", (*SHORT, "reflect.recheck=0"), id="laptop"),
        pytest.param("paper", (*SHORT, "reflect.recheck=0"), id="paper"),
        pytest.param("modern", SHORT, id="modern"),
        pytest.param("laptop", (), id="laptop as it stands", marks=pytest.mark.slow),
        pytest.param("paper", (), id="paper as it stands", marks=pytest.mark.slow),
        pytest.param("modern", (), id="modern as it stands", marks=pytest.mark.slow),
    ],
)
def test_a_recipe_for_real_weights_runs(
    given: tuple[Path, Path], name: str, changes: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder, base = given
    family = QWEN3_VL if name == "modern" else TINY
    base = base.with_name("qwen3") if name == "modern" else base
    looks: list[int] = []
    see = type(family).vision_features

    def counted(self: Family, visual: torch.nn.Module, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        looks.append(len(grids))
        return see(self, visual, pixels, grids)

    monkeypatch.setattr(type(family), "vision_features", counted)
    knobs = [f"data.path={folder}", f"model.base={base}", *changes]
    if name == "paper":
        knobs.append(f"select.clip.base={clip_folder(tmp_path / 'clip')}")
    words = ["run", name, "--runs", str(tmp_path), *(word for knob in knobs for word in ("--set", knob))]
    assert main(words) == 0, capsys.readouterr().err
    # a head of 24 numbers has 12 pairs; the bases are stock, so all but `paper` leave them as they are
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("caution")]
    assert len(told) == (2 if name == "paper" else 0) and ("11 of 12 rotary" in told[1] if told else True)
    stored = name != "paper"  # each image is looked at once, whatever is done with it, and a blank one at the start
    assert (looks == [1] * 15) == stored and len(looks) >= 15
    capsys.readouterr()
    assert main(["table", name, "--runs", str(tmp_path), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    for task in ("VG", "ROC", "MIA"):
        assert scores[task]["score"] is not None
    method = set() if name == "modern" else {"teacher", "reflect-1", "reflect-2"}
    assert {"distill", "answer", "score"} | method <= set(scores["wall_seconds"])
    assert ("see" in scores["wall_seconds"]) == stored
    image = tmp_path / "other.png"
    Image.new("RGB", (80, 60), "grey").save(image)
    asked = ["ask", str(image), "Where is the kidney?", "--out", str(tmp_path / "drawn.png")]
    assert main([*asked, "--runs", str(tmp_path), "--run", name]) == 0, capsys.readouterr().err
    assert main(["export", str(tmp_path / "model"), "--runs", str(tmp_path), "--run", name]) == 0
    vision = [k for k in weights(base) if "visual" in k]
    before, after = weights(base), weights(tmp_path / "model")
    changed = {k for k in before if k in after and before[k] != after[k]}
    assert changed
    assert (set(vision) & changed == set()) == stored  # its tower stays as it was


@pytest.mark.slow
def test_eight_processes_do_a_recipe_as_it_stands(given: tuple[Path, Path], tmp_path: Path) -> None:
    """8 rows in 8 micro-batches a process: 8 processes get a row each."""
    knobs = [f"data.path={given[0]}", f"model.base={given[1]}", *SHORT, "reflect.recheck=0", "threads=1"]
    words = ["run", "laptop", "--runs", str(tmp_path), *(word for knob in knobs for word in ("--set", knob))]
    log = tmp_path / "log.txt"
    assert run_together(log, main, words, seconds=1200, number=8) == [0] * 8, log.read_text()[-3000:]
    line = "8 processes: rows=8, accumulate=8 of teacher.fit, distill.fit, reflect.fit become rows=8, accumulate=1\n"
    assert log.read_text().count(line) == 1 and log.read_text().count("report  ") == 1
    assert json.loads((tmp_path / "laptop" / "table.json").read_text())["VG"]["score"] is not None


def weights(folder: Path) -> dict[str, bytes]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {key: file.get_tensor(key).view(torch.uint8).numpy().tobytes() for key in file.keys()}  # noqa: SIM118

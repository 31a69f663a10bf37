"""`import clinkd` and what it opens to a notebook: quick to import, answers that show themselves, one kind of error."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import resource
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from pydicom.data import get_testdata_file

import clinkd
from clinkd.pipeline.runs import load_config
from clinkd.records import Box, Modality, Task
from clinkd.scoring.metrics import PRIMARY_METRIC
from clinkd.settings import change_knobs

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
HEAVY = "torch", "transformers", "numpy", "pydantic", "PIL"


@pytest.fixture(scope="module")
def model(small_run: Path) -> clinkd.LoadedModel:
    return clinkd.load("small", runs=small_run.parent)


@pytest.fixture
def runs(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the folder of all runs; the small one is called `demo` there."""
    shutil.copytree(small_run.parent, tmp_path / "runs", symlinks=True)
    (tmp_path / "runs" / "small").rename(tmp_path / "runs" / "demo")
    return tmp_path / "runs"


# ---- the root -------------------------------------------------------------------------------------------------------


def test_import_is_quick_and_without_heavy_packages() -> None:
    code = (
        "import resource, sys, clinkd\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"print(used.ru_utime + used.ru_stime, *[name for name in {HEAVY} if name in sys.modules])"
    )
    seconds, *heavy = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert heavy == [] and float(seconds) <= 0.3


def test_no_public_name_is_that_of_a_module_even_after_all_are_imported() -> None:
    modules = [m.name for m in pkgutil.iter_modules(clinkd.__path__)]
    of_extras = "clinkd.clip.open_clip_towers", "clinkd.training.eight_bit"
    for module in pkgutil.walk_packages(clinkd.__path__, "clinkd."):
        if module.name not in ("clinkd.__main__", *of_extras):
            importlib.import_module(module.name)
    assert "notebook" in modules and len(modules) > 15
    assert not {*modules} & {*clinkd.__all__}
    for name in clinkd.__all__:
        assert not isinstance(getattr(clinkd, name), ModuleType), name
    assert {*clinkd.__all__} <= {*dir(clinkd)}
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        clinkd.laod  # type: ignore[attr-defined]  # noqa: B018


# ---- ask ------------------------------------------------------------------------------------------------------------


def test_a_model_answers_about_a_file_and_a_picture_alike(model: clinkd.LoadedModel) -> None:
    data = model.run.data()
    sample = next(s for s in data.samples if s.split == "test" and s.task is Task.VG)
    file = data.root / sample.images[0].path
    answer = model.ask(str(file), sample.question.text)
    assert answer == model.ask(Image.open(file), sample.question.text)
    assert answer.text and len(answer.candidates) == 3 and all("box" in warning for warning in answer.warnings)
    assert len(model.ask(file, sample.question.text, beams=2).candidates) == 2
    assert len(model.ask(file, sample.question.text, beams=4, candidates=1).candidates) == 1


def test_the_modality_that_a_file_states_is_minded(model: clinkd.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from clinkd.workflows.ask import Answerer

    scan = str(get_testdata_file("CT_small.dcm", download=False))
    answerer = model._load_answerer()
    assert answerer.knowledge is not None
    seen = answerer.knowledge._replace(modalities=frozenset({Modality.FUNDUS}))
    monkeypatch.setattr(answerer, "knowledge", seen)
    assert isinstance(answerer, Answerer)
    assert any("never saw this modality: ct" in w for w in model.ask(scan, "What is this?").warnings)
    picture = Image.new("RGB", (64, 64))
    assert not any("modality" in w for w in model.ask(picture, "What is this?").warnings)


def test_grey_levels_beyond_eight_bits_are_stretched_as_those_of_a_file(tmp_path: Path) -> None:
    from clinkd.data.images import open_image
    from clinkd.notebook import _open_picture

    grey = Image.new("I;16", (4, 2), 700)
    grey.putpixel((1, 1), 900)
    grey.save(tmp_path / "grey.png")
    assert _open_picture(grey).tobytes() == open_image(tmp_path, "grey.png").tobytes()
    assert _open_picture(grey).getpixel((1, 1)) == (255, 255, 255)


def test_an_answer_shows_its_words_and_boxes() -> None:
    image = Image.new("RGB", (200, 100))
    boxes = Box(0.25, 0.5, 0.5, 0.75), Box(0.999, 0.999, 1, 1)
    answer = clinkd.BoxedAnswer("Where is <it>?", "It is at [box], [box].", boxes, (), "the candidates disagree", image)
    assert answer.pixels == ((50, 50, 100, 75), (199, 99, 200, 100))
    assert answer.picture().size == (400, 200) and answer.picture().getbbox() is not None
    assert answer._repr_png_().startswith(b"\x89PNG")
    shown = answer._repr_html_()
    assert "Where is &lt;it&gt;?" in shown and "uncertain: the candidates disagree" in shown and "base64," in shown


def test_an_exported_folder_is_a_model_too(model: clinkd.LoadedModel, tmp_path: Path) -> None:
    from clinkd.workflows.export import export

    exported = clinkd.load(export(model.run._open(), tmp_path / "carried").folder)
    assert exported.name == "carried"
    answer = exported.ask(Image.new("RGB", (96, 96)), "Where is the liver?", beams=1, max_new_tokens=2)
    assert len(answer.candidates) == 1 and answer.image.size == (96, 96)
    with pytest.raises(clinkd.BadInput, match="belongs to no run here"):
        exported.run  # noqa: B018


# ---- data and scores ------------------------------------------------------------------------------------------------


def test_bad_rows_are_told_and_good_ones_read(tmp_path: Path) -> None:
    Image.new("RGB", (96, 96)).save(tmp_path / "scan.png")
    rows = ["image;modality;name;x1;y1;x2;y2", "scan.png;ct;liver;20;30;60;70", "none.png;ct;<liver>;1;2;3;4"]
    (tmp_path / "sheet.csv").write_text("\n".join(rows))
    data = clinkd.read(str(tmp_path / "sheet.csv"), images=str(tmp_path), tasks="VG")
    assert [s.task for s in data.samples] == [Task.VG] and data.open(data.samples[0]).size == (96, 96)
    [problem] = data.problems
    assert (problem.row, problem.field) == (3, "image") and "no such file" in problem.why
    assert "1 bad rows" in data._repr_html_() and "none.png" in data._repr_html_()


def test_an_evaluation_scores_as_the_run_did(model: clinkd.LoadedModel, tmp_path: Path) -> None:
    ours = clinkd.evaluate(model, model.run.data(), tasks=["vg"], out=tmp_path / "kept")
    theirs = model.run.scores
    assert ours.to_json()["VG"] == theirs.to_json()["VG"]
    assert ours.tasks == (Task.VG,) and ours["VG"] == theirs["VG"]
    assert ours.by_modality == {"VG": theirs.by_modality["VG"]} and "ct" in ours.by_modality["VG"]
    assert "<td>VG</td>" in ours._repr_html_() and "<td>ROC</td>" not in ours._repr_html_()
    assert (tmp_path / "kept" / "answers.jsonl").is_file()
    with pytest.raises(clinkd.BadInput, match="ROC: no such question was asked; asked were VG"):
        ours["ROC"]


def test_without_pandas_a_frame_is_refused_in_a_line(
    model: clinkd.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        clinkd.BadInput, match=r"pandas is not installed; pip install -c constraints.txt '\.\[notebook\]'"
    ):
        model.run.scores.to_pandas()


def test_a_frame_holds_every_figure(model: clinkd.LoadedModel) -> None:
    pytest.importorskip("pandas", reason="the extra `notebook` is not installed")
    scores = model.run.scores
    frame = scores.to_pandas()
    assert len(frame) == len(scores.records)
    [mean] = frame.query(
        f"row == 'model' and task == 'VG' and metric == '{PRIMARY_METRIC[Task.VG]}' and modality == 'mean'"
    ).value
    assert mean == scores["VG"]


# ---- one kind of error ----------------------------------------------------------------------------------------------


def test_wrong_input_is_one_clear_line(model: clinkd.LoadedModel, tmp_path: Path) -> None:
    data, picture = model.run.data(), Image.new("RGB", (9, 9))
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("image,modality\n")
    wrong = {
        lambda: clinkd.load("nope", runs=tmp_path): "nope: no run of that name or path",
        lambda: model.ask(tmp_path / "none.png", "Where?"): "none.png: no such file",
        lambda: model.ask(picture, " "): "the question is empty",
        lambda: model.ask(picture, "Where?", candidates=9): "answer.candidates=9 is more than answer.beams=3",
        lambda: clinkd.read(tmp_path / "none.csv"): "none.csv: no such file or folder",
        lambda: clinkd.read(sheet, imagess="a"): "imagess: no field of a source; did you mean images?",
        lambda: clinkd.read(sheet, modality="foo"): "modality 'foo' is unknown",
        lambda: clinkd.read(sheet, seed="x"): "seed='x': input should be a valid integer",
        lambda: clinkd.read(sheet, max_boxes=0): "max_boxes=0: give 1 or more",
        lambda: clinkd.evaluate(model, data, tasks=["XX"]): "XX: no such task",
        lambda: clinkd.evaluate(model, data, tasks=["RC"]): "asks no such question in split=test, but ROC, VG",
        lambda: clinkd.evaluate(model, clinkd.Data("empty", ())): "empty: no question could be read",
        lambda: clinkd.evaluate(model, data, split="dev"): "small has no question there (splits: test, train, valid",
        lambda: clinkd.evaluate(model, data, out=tmp_path): "exists and is no evaluation",
        lambda: clinkd.recipe("reall"): "reall: no such experiment; did you mean real?",
        lambda: clinkd.recipe("real"): "data.path: `real` needs a folder here; give data=FOLDER",
        lambda: clinkd.recipe(
            "paper", data="d", **{"model.base": "b"}
        ): 'select.clip.base: `paper` needs a folder here; give **{"select.clip.base": FOLDER}',
        lambda: clinkd.recipe("demo", seeed=1): "seeed: no such knob; did you mean seed?",
        lambda: clinkd.run(clinkd.recipe("demo"), runs=sheet): "sheet.csv",
    }
    for call, message in wrong.items():
        with pytest.raises(clinkd.BadInput) as caught:
            call()
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_knobs_of_a_recipe_are_plain_values(tmp_path: Path) -> None:
    config = clinkd.recipe(
        "real", data=tmp_path, name="mine", **{"reflect.rounds": 1, "teacher.fit.learning_rate": 1e-5}
    )
    assert (config.name, config.data.path) == ("mine", tmp_path)
    assert config.reflect and config.reflect.rounds == 1 and config.teacher
    assert config.teacher.fit.learning_rate == 1e-5
    assert clinkd.recipe("demo", reflect=None).reflect is None


# ---- docs/notebook.ipynb --------------------------------------------------------------------------------------------


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cell(source: str, names: dict[str, Any]) -> str:
    """Run a cell as a notebook does. Returns how its last line shows itself there."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is None:
        return ""
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # type: ignore[attr-defined]
    return str(value._repr_html_()) if hasattr(value, "_repr_html_") else repr(value)


def test_the_cells_of_the_notebook_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its training is that of the small run, which is done; `make test-all` runs the notebook as it stands."""
    small, checked = load_config(runs / "demo" / "config.yaml"), clinkd.recipe
    monkeypatch.setattr("clinkd.notebook.recipe", lambda *a, **k: change_knobs(small, name=checked(*a, **k).name))
    (runs.parent / "docs").mkdir()
    monkeypatch.chdir(runs.parent / "docs")
    names: dict[str, Any] = {}
    shown = []
    for source in code_cells():
        if "to_pandas" in source and find_spec("pandas") is None:
            with pytest.raises(clinkd.BadInput, match="pandas is not installed"):
                run_cell(source, names)
        else:
            shown.append(run_cell(source, names))
    assert "<td>VG</td>" in shown[0] and "data:image/png" in shown[1]
    assert len(names["own"].problems) == 1 and names["scores"].by_modality.keys() == {"VG"}
    assert names["first"].report.is_file() and (runs / "first").is_dir()


@pytest.mark.slow
def test_the_notebook_runs_as_it_stands(runs: Path) -> None:
    for package in ("nbclient", "ipykernel", "pandas"):
        pytest.importorskip(package, reason="the extra `notebook` is not installed")
    import nbformat
    from nbclient import NotebookClient

    (runs.parent / "docs").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(runs.parent / "docs")}}).execute()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert used.ru_utime - before.ru_utime <= 30  # processor time, as the machine may be busy
    kinds = {kind for cell in notebook.cells for out in cell.get("outputs", ()) for kind in out.get("data", ())}
    assert {"text/html", "image/png"} <= kinds and (runs / "first" / "report.html").exists()

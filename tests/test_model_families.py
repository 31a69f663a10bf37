"""Families of models: each gives all that the package asks of it, and no file outside model/families names one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from clinkd.config import ModelConfig, TinyConfig
from clinkd.data.codecs import SPELLINGS, make_codec
from clinkd.model import families, tiny
from clinkd.model.families import FAMILIES, Family
from clinkd.model.folders import opened_folder
from clinkd.records import BadInput

SOURCE = Path(__file__).parents[1] / "src" / "clinkd"
NAMES = re.compile("qwen|gemma3|medgemma", re.IGNORECASE)
# Texts for people: which data files are read, which folders are taken, what the paper's tables call their rows.
TEXTS = {
    "config.py", "experiments/recipes.py", "experiments/rows.py", "cli/evaluate.py", "data/readers/forms.py",
    "data/readers/source.py", "model/exported/licence.py", "reporting/ablation.py", "reporting/printed.py",
    "scoring/reading/box_families.py",
}  # fmt: skip
CODECS = {"data/codecs.py"}  # the spellings themselves
HOOKS = sorted(Family.__abstractmethods__)
FIELDS = [field.name for field in fields(Family)]


def load_folder(folder: Path, knobs: ModelConfig | None) -> object:
    with opened_folder(folder, "a model") as opened:
        return families.load_folder(opened, knobs, torch.float32)


def named_families(path: str, tree: ast.Module) -> Iterator[str]:
    """Places of a file outside docstrings and comments that name a family, spellings of boxes left out."""
    docstrings = {
        statement.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for statement in node.body[:1]
        if isinstance(statement, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            rest = node.value if path not in TEXTS | CODECS else ""
            for spelling in sorted(SPELLINGS, key=len, reverse=True):
                rest = rest.replace(spelling, "")
            names = [rest]
        else:
            values = (getattr(node, field, None) for field in ("id", "attr", "name", "module", "arg", "asname"))
            names = [value for value in values if isinstance(value, str) and path not in CODECS]
        yield from (f"{path}:{getattr(node, 'lineno', 0)} {name}" for name in names if NAMES.search(name))


def test_no_file_outside_names_a_family() -> None:
    paths = {str(path.relative_to(SOURCE)): path for path in SOURCE.rglob("*.py")}
    outside = {name: path for name, path in paths.items() if not name.startswith("model/families/")}
    assert len(outside) > 100 and outside.keys() >= TEXTS | CODECS
    places = [place for name, path in outside.items() for place in named_families(name, ast.parse(path.read_text()))]
    assert places == []


def test_a_named_family_is_found() -> None:
    code = '"""Qwen."""\nfrom a.qwen2_vl import B as c\nd = "boxes of qwen2-vl"\nQwenX.e("a Qwen2-VL", k_qwen=1)\n'
    found = list(named_families("model/vlm.py", ast.parse(code)))
    assert [place.split()[0] for place in found] == ["model/vlm.py:2", *["model/vlm.py:4"] * 3]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_family_without_a_hook_cannot_be_made(family: Family, hook: str) -> None:
    given = {name: getattr(family, name) for name in FIELDS}
    lame = type("Lame", (type(family),), {hook: getattr(Family, hook)})
    with pytest.raises(TypeError, match=f"abstract method '?{hook}"):
        lame(**given)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("name", FIELDS)
def test_a_family_without_a_field_cannot_be_made(family: Family, name: str) -> None:
    given = {field: getattr(family, field) for field in FIELDS if field != name}
    with pytest.raises(TypeError, match=name):
        type(family)(**given)


def test_a_model_type_is_of_one_family() -> None:
    types = [kind for family in FAMILIES for kind in (family.stock_type, family.own_type)]
    assert len(types) == len(set(types))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_names_of_a_family_fit_its_network(family: Family) -> None:
    """Modules at their paths, marks that are one token, a configuration that goes there and back."""
    shape = TinyConfig()
    tokenizer = tiny.train_tokenizer(["a word", *family.chat.words], 300, family.special_tokens)
    settings = family.tiny_settings(shape, tokenizer)
    network = family.build(settings, ModelConfig(positions="native", layout=family.layout))
    assert families.family_of(network.config) is family and isinstance(network, family.network_class)
    visual = network.get_submodule(family.visual)
    for path in (*family.embeddings, family.vision_blocks, *family.mergers):
        visual.get_submodule(path)
    assert len(network.get_submodule(family.text_blocks)) == shape.layers
    assert {name for names in family.parts.values() for name in names} <= dict(network.named_modules()).keys()
    marks = (family.chat.image_start, family.chat.image_token, family.chat.image_end, family.chat.end, family.chat.pad)
    for mark in (*marks, *family.chat.suppressed):
        assert len(tokenizer.encode(mark.strip(), add_special_tokens=False)) == 1
    assert family.is_stock(network.config) and isinstance(family.as_stock(network), family.stock_class)
    make_codec(family.boxes)
    processor = family.tiny_processor(shape)
    least = 4 if not (cut := family.geometry(processor)).square else cut.least_pixels // cut.factor**2
    family.limit_image_tokens(processor, least)
    cut = family.geometry(processor)
    assert cut.most_pixels <= least * cut.factor**2
    operations = family.vision_attention(visual, torch.tensor([[1, 2, 2]]))
    assert operations is None or operations > 0


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    for knobs in (None, ModelConfig(base=tmp_path)):
        with pytest.raises(BadInput, match=f"no config.json there; a {FAMILIES[0].name}.* folder"):
            load_folder(tmp_path, knobs)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(BadInput, match="model_type is 'llava', but a .* is wanted"):
        load_folder(tmp_path, families.native_knobs(tmp_path))
    with pytest.raises(BadInput, match="holds a 'llava' model, not one trained here"):
        load_folder(tmp_path, None)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="is not JSON"):
        families.native_knobs(tmp_path)

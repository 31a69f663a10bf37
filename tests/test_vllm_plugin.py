"""Our positions as vLLM would look them up: the same cosines, turns and places as in our own model. vLLM is not run."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.modeling_qwen2_vl import rotate_half

from clinkd import vllm_plugin
from clinkd.config import NAMED_POSITIONS, AffinePositions, ModelConfig, Positions, TinyConfig
from clinkd.model.families import TINY as TINY_FAMILY
from clinkd.model.families.portable.networks import rotary_pairs_of
from clinkd.model.families.vllm_plugin import prompt_rows, rotary_table, rotate
from clinkd.model.positions import Affine
from clinkd.model.vlm import new_tiny
from clinkd.records import BadInput
from clinkd.vllm_plugin import SERVED, register

LENGTH = 128
GRIDS = torch.tensor([[3, 5], [4, 4]])
TEXT = 4
TINY = TinyConfig(
    hidden=64, layers=1, heads=2, mlp=64, vision_hidden=32, vision_layers=1, vision_heads=2, vocabulary=300
)


def prompt() -> torch.Tensor:
    """Text, an image, text, an image, text: True at image tokens."""
    parts = [torch.zeros(TEXT)]
    for height, width in GRIDS.tolist():
        parts += [torch.ones(height * width), torch.zeros(TEXT)]
    return torch.cat(parts).bool()


@pytest.mark.parametrize("layout", ["sections", "interleaved", "halves"])
@pytest.mark.parametrize("positions", [*NAMED_POSITIONS.values(), AffinePositions(stride=0.5)], ids=str)
def test_tables_and_rows_give_what_our_model_has(positions: Positions, layout: str) -> None:
    config = ModelConfig(tiny=TINY, positions=positions, layout=layout)
    model = new_tiny(config, ["the liver is here"], 0, lambda ref: Image.new("RGB", (8, 8)))
    network, text = model.network.model, model.network.config.text_config
    image_S = prompt()
    longer_S = torch.cat((image_S, torch.zeros(3).bool()))  # three tokens of an answer
    theirs_3BS = network.scheme.positions(longer_S[None], torch.arange(len(longer_S))[None], GRIDS)
    states = torch.zeros(1, len(longer_S), 1)
    cosine_BSD, sine_BSD = network.language_model.rotary_emb(states, theirs_3BS)

    rows_3S, delta = prompt_rows(model.scheme, image_S, GRIDS, LENGTH)
    later_S = torch.arange(len(image_S), len(longer_S)) + delta
    rows_3S = torch.cat((rows_3S, later_S.expand(3, -1)), dim=1)
    pairs = rotary_pairs_of(text)
    table_R2P = rotary_table(pairs, text.rope_parameters["rope_theta"], LENGTH)
    cos_3SP, sin_3SP = table_R2P[rows_3S].chunk(2, dim=-1)
    for pair, axis in enumerate(pairs.axis_P):
        assert cos_3SP[axis, :, pair].equal(cosine_BSD[0, :, pair])
        assert sin_3SP[axis, :, pair].equal(sine_BSD[0, :, pair])

    head_dim = 2 * len(pairs.axis_P)
    heads_SHD = torch.randn(len(longer_S), 2, head_dim, generator=torch.Generator().manual_seed(0))
    stock = heads_SHD * cosine_BSD[0, :, None] + rotate_half(heads_SHD) * sine_BSD[0, :, None]
    ours = rotate(heads_SHD.flatten(1), rows_3S, table_R2P, pairs.axis_P)
    assert torch.allclose(ours.view_as(stock), stock, atol=1e-6)


def test_text_alone_counts_on_from_nought() -> None:
    rows_3S, delta = prompt_rows(Affine(), torch.zeros(5).bool(), torch.zeros(0, 2, dtype=torch.long), LENGTH)
    assert rows_3S.equal(torch.arange(5).expand(3, -1)) and delta == 0


def test_a_table_is_the_same_whatever_type_is_the_default() -> None:
    pairs = rotary_pairs_of(new_tiny(ModelConfig(tiny=TINY), ["a b"], 0, lambda ref: Image.new("RGB", (8, 8)))
                            .network.config.text_config)  # fmt: skip
    plain = rotary_table(pairs, 1e4, 1000)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert rotary_table(pairs, 1e4, 1000).equal(plain)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("scheme", "length", "told"),
    [
        (Affine(stride=0.3), LENGTH, "steps of 1/4"),
        (Affine(), len(prompt()) - 1, "from 0 to 41"),
        (Affine(stride=1.5, gap=1.25, resume="extent"), LENGTH, "not in steps of 1/4 .text: 1"),
    ],
)
def test_what_the_table_lacks_is_refused(scheme: Affine, length: int, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        prompt_rows(scheme, prompt(), GRIDS, length)


def test_where_vllm_has_other_parts_it_goes_on_without_us(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    register()
    assert "clinkd: this vLLM cannot serve its models" in capsys.readouterr().err
    with pytest.raises(ImportError, match="clinkd: this vLLM cannot serve its models"):
        getattr(vllm_plugin, SERVED)


LOADED = """
import importlib, importlib.metadata, json, os, sys, types
from transformers.utils import logging
logging.set_verbosity_info()
places, before = {}, dict(os.environ)
registry = types.SimpleNamespace(register_model=places.__setitem__)
sys.modules["vllm"] = types.SimpleNamespace(ModelRegistry=registry)
importlib.metadata.EntryPoint("clinkd", sys.argv[1], "vllm.general_plugins").load()()
idle = [name for name in sys.modules if name.startswith("clinkd.")]
[(name, place)] = places.items()
module, _, attribute = place.partition(":")
try:
    getattr(importlib.import_module(module), attribute)
except ImportError as error:
    print(json.dumps([name, idle, "clinkd.model.families" in sys.modules, str(error), dict(os.environ) == before,
                      logging.get_verbosity() == logging.INFO, logging.is_progress_bar_enabled()]))
"""


def test_the_entry_point_leaves_a_process_of_vllm_as_it_was() -> None:
    """It is loaded as vLLM loads it, and a model is asked for; what stands for vLLM has none of its parts."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    value = project["entry-points"]["vllm.general_plugins"]["clinkd"]
    words = [sys.executable, "-c", LOADED, value]
    told = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    name, idle, imported, refusal, *unchanged = told
    assert name == SERVED == TINY_FAMILY.network_class.__name__
    assert sorted(idle) == ["clinkd.version", "clinkd.vllm_plugin"], "nothing heavy before a model is asked for"
    assert imported and "this vLLM cannot serve its models (" in refusal and unchanged == [True] * 3

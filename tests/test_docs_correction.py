"""docs/CORRECTION.md and SELECTION.md: their knobs and values exist, their YAML is a config."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from clinkd.config import RunConfig
from clinkd.experiments import demo
from clinkd.settings import override, panel

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "CORRECTION.md").read_text()
KNOBS = re.findall(r"`((?:reflect|select|answer)\.[a-z_.]+)(?:=([^`]+))?`", TEXT + (DOCS / "SELECTION.md").read_text())
FOLDERS = ("FOLDER",)


def whole() -> RunConfig:
    """The demo with a chat, so that every knob is there."""
    return override(demo(), ["reflect.chat={}"])


@pytest.mark.parametrize(("name", "value"), sorted(set(KNOBS)))
def test_a_knob_that_is_named_exists_and_takes_the_value(name: str, value: str) -> None:
    assert name in {knob.name for knob in panel(whole())}
    for choice in value.split("|") if value and value not in FOLDERS else ():
        override(whole(), [f"{name}={choice}"])


def test_enough_is_named() -> None:
    assert len(set(KNOBS)) > 15


def test_the_yaml_is_a_config_and_its_defaults_are_those_told() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    tree = whole().model_dump()
    given = yaml.safe_load(block)["reflect"]
    tree["reflect"] |= {**given, "chat": {**tree["reflect"]["chat"], **given["chat"]}}
    config = RunConfig.model_validate(tree)
    assert config.reflect and config.reflect.chat and config.reflect.chat.budget == 5

"""docs/ABLATION.md: its commands are the program's, its rows and sweeps those there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from clinkd.cli import _parser
from clinkd.experiments import CLAIMS, ROWS, SWEEPS, AblationRow, small
from clinkd.experiments.rows import BASE_ROWS
from clinkd.workflows.ablate import AblationPlan

TEXT = (Path(__file__).parent.parent / "docs" / "ABLATION.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_one_of_the_programs(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "clinkd"
    args = _parser().parse_args(words[1:])
    AblationPlan.of(small(), [r for r in args.rows or () if r in ROWS], args.sweep, args.seeds)


def read_rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `([a-z0-9-]+)` \| `?([a-z0-9-]*)`? *\|", text, re.MULTILINE))


def spell_rows(rows: Mapping[str, AblationRow]) -> dict[str, str]:
    return {name: row.against or "" for name, row in rows.items()}


def test_every_row_and_sweep_is_told() -> None:
    assert read_rows(TEXT.partition("\n## ")[0]) == spell_rows(BASE_ROWS)
    swept = re.search(r"--sweep (\S+)", TEXT)
    assert swept and swept[1].split(",") == list(SWEEPS)


def test_the_arms_of_each_claim_are_told() -> None:
    told = dict(re.findall(r"^### `([a-z]+)`: .*\n((?:(?!^##).*\n)*)", TEXT, re.MULTILINE))
    assert {name: read_rows(text) for name, text in told.items()} == {n: spell_rows(c.rows) for n, c in CLAIMS.items()}

"""docs/ABLATION.md: its commands are the program's, its rows and sweeps those there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from clinkd.cli import _parser
from clinkd.experiments import ROWS, SWEEPS, small
from clinkd.workflows.ablate import AblationPlan

TEXT = (Path(__file__).parent.parent / "docs" / "ABLATION.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_one_of_the_programs(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "clinkd"
    args = _parser().parse_args(words[1:])
    AblationPlan.of(small(), [r for r in args.rows or () if r in ROWS], args.sweep, args.seeds)


def test_every_row_and_sweep_is_told() -> None:
    rows = dict(re.findall(r"^\| `([a-z]+)` \| `?([a-z]*)`? *\|", TEXT, re.MULTILINE))
    assert rows == {name: row.against or "" for name, row in ROWS.items()}
    swept = re.search(r"--sweep (\S+)", TEXT)
    assert swept and swept[1].split(",") == list(SWEEPS)

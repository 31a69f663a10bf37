"""Arms of a claim: which rotary pairs stand for which axis."""

from __future__ import annotations

from collections.abc import Mapping

from clinkd.experiments.rows import AblationRow

ROWS: Mapping[str, AblationRow] = {}

"""Arms of a claim: the tied positions taken apart."""

from __future__ import annotations

from collections.abc import Mapping

from clinkd.experiments.rows import AblationRow

ROWS: Mapping[str, AblationRow] = {}

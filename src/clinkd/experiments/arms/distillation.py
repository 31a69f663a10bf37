"""Arms of a claim: distillation where it can win."""

from __future__ import annotations

from collections.abc import Mapping

from clinkd.experiments.rows import AblationRow

ROWS: Mapping[str, AblationRow] = {}

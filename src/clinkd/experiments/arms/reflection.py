"""Arms of a claim: which answers are rewritten."""

from __future__ import annotations

from collections.abc import Mapping

from clinkd.experiments.rows import AblationRow

ROWS: Mapping[str, AblationRow] = {}

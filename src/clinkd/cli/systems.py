"""The verb `systems`: the paper's Tables 1, 3 and 4 of runs and of anybody's evaluated answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clinkd.cli.outputs import may_write
from clinkd.cli.screen import show
from clinkd.cli.words import Parser, add_verb

MADE = b"<title>ClinKD: systems side by side</title>"


def add(verbs: Any, runs: Parser) -> None:
    """The verb, among others; `runs` holds the options of every verb that looks for runs."""
    made = add_verb(
        verbs,
        "systems",
        _systems,
        "put runs and evaluated answers beside each other, in the form of the paper's Tables 1, 3 and 4",
        "clinkd systems demo answers/BiRD --mode official --page systems.html",
        [runs],
    )
    made.add_argument("systems", nargs="+", metavar="RUN", help="a run, or a folder of clinkd evaluate --out")
    made.add_argument("--mode", choices=["strict", "official"], default="strict", help="of the scores (strict)")
    made.add_argument(
        "--same-data",
        action="store_true",
        help="the test set is the paper's: its printed rows stand in the tables",
    )
    made.add_argument("--page", type=Path, metavar="HTML", help="also as a page, with the same questions side by side")
    made.add_argument("--json", action="store_true", help="for a program")


def _systems(args: argparse.Namespace) -> int:
    import json

    from clinkd import evaluation
    from clinkd.pipeline.systems import systems

    may_write("--page", args.page, MADE)
    found = systems(args.systems, args.runs, args.mode, args.same_data, args.page)
    if args.json:
        each = [
            {"system": s.name, "test_set": s.test_set, "mode": args.mode, "average": s.average,
             **{t.value: {"score": r.score, "interval": r.interval, "blind": r.blind, "why": r.why,
                          "by_modality": {m.value: v for m, v in r.by_modality.items()}} for t, r in s.results.items()}}
            for s in found.systems
        ]  # fmt: skip
        print(json.dumps(each, indent=1, allow_nan=False))
        return 0
    for table in [*found.tables, *([] if args.same_data else evaluation.paper_tables()[:1])]:
        show(table)
    if found.page:
        print(f"page     {found.page}")
    return 0
